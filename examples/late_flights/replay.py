"""Plays the past into the store as if it were happening now, and asks what the store would have answered then."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import valkey
from features import SERVICE, entity_ids
from history import HOUR_S, updates

ROWS_PER_COMMAND = 200


@dataclass(frozen=True)
class Column:
    """A column of what FS.RANK answers. `values`: those of a STRING, which stands there as its index."""

    name: str
    key_prefix: str
    entity: str
    feature: str
    values: list[str]

    def key(self, ids: dict[str, str]) -> str:
        return self.key_prefix + ids[self.entity]

    def number(self, value: object) -> float:
        """A value of FS.GET, as it stands in the matrix."""
        if value is None:
            return np.nan
        return self.values.index(value) if self.values else float(value)


def service_columns(client: valkey.Valkey) -> list[Column]:
    """The columns of the service, by the definitions that the store has."""
    service = client.execute_command("FS.SERVICE", "GET", SERVICE)
    versions, columns = dict(service["versions"]), []
    for name in service["columns"]:
        view, feature = name.split(":")
        described = client.execute_command("FS.DESCRIBE", view, "VERSION", versions[view])
        values = next(known["values"] for known in described["schema"] if known["name"] == feature)
        prefix = f"fs:v{versions[view]}:{view}:"
        columns.append(Column(name, prefix, described["entity"], feature, values or []))
    return columns


class Replay:
    """Events, moved in time so that `now_s` of theirs, a full hour, begins the hour that the server's clock is in."""

    def __init__(self, client: valkey.Valkey, events: pd.DataFrame, now_s: int) -> None:
        self.client, self.now_s = client, now_s
        self.columns = service_columns(client)
        self.names = [column.name for column in self.columns]
        # By whole hours, as windows move: they hold the same flights whenever this runs.
        self.moved_s = client.time()[0] // HOUR_S * HOUR_S - now_s
        self.known_s = events["known_s"].to_numpy()
        self.updates = list(updates(events[self.known_s < now_s], self.moved_s))
        self.played = 0

    def play(self, until_s: int) -> None:
        """Publishes what became known before that time, at most `now_s`."""
        until = min(int(np.searchsorted(self.known_s, until_s)), len(self.updates))
        for first in range(self.played, until, ROWS_PER_COMMAND):
            rows = self.updates[first : min(first + ROWS_PER_COMMAND, until)]
            self.client.execute_command("FS.MPUBLISH", *(word for row in rows for word in row))
        self.played = max(self.played, until)

    def matrix(self, at_ms: int, origins: Iterable[str], flights: Iterable[str]) -> np.ndarray:
        """What FS.RANK would have answered at that time of the server's clock: a row for each flight.

        FS.RANK reads windows at the clock, FS.GET .. AT reads them as of then.
        """
        ids = [entity_ids(*flight) for flight in zip(origins, flights, strict=True)]
        keys = [[column.key(of_flight) for column in self.columns] for of_flight in ids]
        # Each row is read once: the flights of an airport share its weather.
        features = {}
        for row in keys:
            for key, column in zip(row, self.columns, strict=True):
                features.setdefault(key, set()).add(column.feature)
        pipeline = self.client.pipeline(transaction=False)
        for key, names in features.items():
            pipeline.execute_command("FS.GET", key, "AT", at_ms, *names)
        found = dict(zip(features, pipeline.execute(), strict=True))
        numbers = [
            [column.number(found[key][column.feature]) for key, column in zip(row, self.columns, strict=True)]
            for row in keys
        ]
        return np.array(numbers, "<f4").reshape(len(keys), len(self.columns))
