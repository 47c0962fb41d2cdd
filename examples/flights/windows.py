"""Windows at a moment: what the store answers AT it, against pandas over all flights up to it.

The rule of a window of length w and hop h, read at t: the events with event time in
[floor((t - w) / h) * h, floor(t / h) * h + h). pandas filters the flights by it and computes each function anew.
"""

from collections import Counter
from dataclasses import dataclass

import pandas as pd
import valkey
from comparison import Comparison, scan
from dataset import View, Window, batches, present

BATCH_ENTITIES = 200
# How far a value may be off, relative to what it must be.
LARGEST_ERROR = {
    "COUNT": 0.0,
    "MEAN": 1e-9,
    "APPROX_PERCENTILE": 0.01,
    "APPROX_COUNT_DISTINCT": 0.0,
}
# Distinct values are counted exactly up to so many in the state, then with this standard error.
DISTINCT_EXACT_MAX, DISTINCT_STANDARD_ERROR = 256, 0.023
# A bound itself is a product of doubles.
ROUNDING = 1 + 1e-12


@dataclass
class Moment:
    """What came of the comparison at one moment.

    `estimated`: distinct counts that need not be exact. `errors`: the largest relative error of each function.
    """

    at: pd.Timestamp
    sent: int
    entities: int
    values: int
    estimated: int
    errors: dict[str, float]
    differences: int


class Windows:
    """Compares all windows of a view at one moment after the other, and keeps what came of it."""

    def __init__(self, client: valkey.Valkey, view: View, comparison: Comparison) -> None:
        self.client, self.view, self.comparison = client, view, comparison
        self.entity_ids = sorted(view.updates["entity_id"].unique())
        self.crowded_since_ms = crowded_since_ms(view)
        self.moments: list[Moment] = []

    def compare(self, at: pd.Timestamp) -> Moment:
        """Reads every entity AT the moment; what was not sent yet has no part in it."""
        at_ms = milliseconds(at)
        sent = self.view.updates[self.view.updates["event_time_s"] * 1000 <= at_ms]
        seen = set(sent["entity_id"])
        moment = Moment(at, len(sent), len(seen), 0, 0, dict.fromkeys(LARGEST_ERROR, 0.0), 0)
        differences = self.comparison.differences
        for entity_id in sorted(seen ^ scan(self.client, self.view)):
            where = "not in" if entity_id in seen else "only in"
            self.comparison.difference(f"{self.view.name} {entity_id} at {at}: {where} the store")
        expected = {
            feature: values(window, sent, at_ms, self.entity_ids)
            for feature, window in self.view.windows.items()
        }
        for entity_id, got in self.read(at_ms):
            for feature, window in self.view.windows.items():
                self.value(moment, entity_id, feature, window, expected[feature][entity_id], got[feature])
        moment.differences = self.comparison.differences - differences
        self.moments.append(moment)
        return moment

    def read(self, at_ms: int):
        """Yields each entity with its features AT the moment."""
        for batch in batches(self.entity_ids, BATCH_ENTITIES):
            pipeline = self.client.pipeline(transaction=False)
            for entity_id in batch:
                words = ("AT", at_ms, *self.view.windows)
                pipeline.execute_command("FS.GET", self.view.key(entity_id), *words)
            yield from zip(batch, pipeline.execute(), strict=True)

    def value(
        self, moment: Moment, entity_id: str, feature: str, window: Window, expected: object, got: object
    ) -> None:
        """Compares one value, as exactly as its function promises."""
        moment.values += 1
        largest = LARGEST_ERROR[window.function]
        since_ms = self.crowded_since_ms.get(entity_id)
        if window.function == "APPROX_COUNT_DISTINCT" and since_ms and since_ms <= milliseconds(moment.at):
            largest = 3 * DISTINCT_STANDARD_ERROR
            moment.estimated += 1
        if expected is None or type(got) is not type(expected):
            right = expected is None and got is None
        else:
            error = relative_error(expected, got)
            moment.errors[window.function] = max(moment.errors[window.function], error)
            right = error <= largest * ROUNDING
        if not right:
            where = f"{self.view.name} {entity_id} {feature} AT {milliseconds(moment.at)}"
            self.comparison.difference(f"{where}: expected {expected!r}, got {got!r}")

    def table(self) -> None:
        """Prints a line for each moment."""
        functions = ("count", "mean", "percentile", "distinct")
        lines = [("moment (UTC)", "flights", "entities", "values", *functions, "estimated", "differences")]
        for moment in self.moments:
            counts = [f"{count:,}" for count in (moment.sent, moment.entities, moment.values)]
            errors = [f"{error:.3g}" for error in moment.errors.values()]
            lines.append(
                (f"{moment.at:%Y-%m-%d %H:%M}", *counts, *errors, moment.estimated, f"{moment.differences:,}")
            )
        for at, *cells in lines:
            print(f"  {at:16}" + "".join(f"{cell:>12}" for cell in cells))


def values(window: Window, sent: pd.DataFrame, at_ms: int, entity_ids: list[str]) -> dict[str, object]:
    """What each entity's window must hold at the moment, by pandas from the events alone."""
    begin_ms = (at_ms - window.span_ms) // window.hop_ms * window.hop_ms
    end_ms = at_ms // window.hop_ms * window.hop_ms + window.hop_ms
    event_time_ms = sent["event_time_s"] * 1000
    entities = sent[(begin_ms <= event_time_ms) & (event_time_ms < end_ms)].groupby("entity_id")
    match window.agg:
        case ("COUNT",):
            found = entities.size()
        case ("MEAN", source):
            found = entities[source].mean()
        case ("APPROX_PERCENTILE", share, source):
            found = entities[source].quantile(share, interpolation="lower")
        case ("APPROX_COUNT_DISTINCT", source):
            found = entities[source].nunique()
    if window.type == "INT":
        return found.reindex(entity_ids, fill_value=0).to_dict()
    return dict(zip(entity_ids, present(found.reindex(entity_ids)), strict=True))


def crowded_since_ms(view: View) -> dict[str, int]:
    """Entities for which the store may have begun to estimate the number of distinct values, and since when.

    State reaches back from the newest event by the longest window; windows over one input may share it.
    """
    counted = [window for window in view.windows.values() if window.function == "APPROX_COUNT_DISTINCT"]
    longest = max(counted, key=lambda window: window.span_ms)
    source = longest.agg[-1]
    known = view.updates[view.updates[source].notna()].sort_values("event_time_s", kind="stable")
    since_ms = {}
    for entity_id, events in known.groupby("entity_id"):
        times_ms, names = (events["event_time_s"] * 1000).tolist(), events[source].tolist()
        held, oldest = Counter(), 0
        for time_ms, name in zip(times_ms, names, strict=True):
            held[name] += 1
            begin_ms = (time_ms // longest.hop_ms) * longest.hop_ms - longest.span_ms
            while times_ms[oldest] < begin_ms:
                held[names[oldest]] -= 1
                if not held[names[oldest]]:
                    del held[names[oldest]]
                oldest += 1
            if len(held) > DISTINCT_EXACT_MAX:
                since_ms[entity_id] = time_ms
                break
    return since_ms


def relative_error(expected: float, got: float) -> float:
    if expected == got:
        return 0.0
    return abs(got - expected) / abs(expected) if expected else float("inf")


def milliseconds(moment: pd.Timestamp) -> int:
    return int(moment.timestamp() * 1000)
