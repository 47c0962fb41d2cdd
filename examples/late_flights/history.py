"""The flights of 2013 as a store learns of them: each fact with the time at which it is known, and not before.

That rule is what keeps the answers out of the questions. A delay on departure is known when the plane has left, a late
arrival when it has landed, an hour's weather when the hour is over.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

sys.path.append(str(Path(__file__).resolve().parents[1] / "flights"))
from dataset import WIND_MPH_MAX, present, table, unix_seconds

HOUR_S = 3600
LATE_MIN = 15
# A traveller asks at a full hour, at least so long before the scheduled departure.
LEAD_S = 2 * HOUR_S
# The schedule of a flight is known so long before. No flight number leaves an airport twice within 8 hours.
SCHEDULED_S = 8 * HOUR_S
# The file tells the minutes in the air, and landings in the time of a zone that it does not tell. Where that is New
# York's, taxiing took 185 minutes at most.
TAXI_S = 4 * HOUR_S


def flights(every: int) -> pd.DataFrame:
    """The flights whose number divides by `every`, by departure; `late` is null where none arrived."""
    frame = table("flights")
    frame = frame[frame["flight"] % every == 0]
    scheduled_s = unix_seconds(pd.to_datetime(frame["time_hour"])) + frame["minute"] * 60
    return frame.assign(
        flight=frame["carrier"] + "-" + frame["flight"].astype(str),
        scheduled_s=scheduled_s,
        asked_s=scheduled_s // HOUR_S * HOUR_S - LEAD_S,
        late=(frame["arr_delay"] > LATE_MIN).where(frame["arr_delay"].notna()),
    ).sort_values("scheduled_s", kind="stable", ignore_index=True)


def events(flights: pd.DataFrame) -> pd.DataFrame:
    """What the store is told, by the time at which it is known: `known_s`, `view`, `entity_id`, `features`."""
    departed_s = flights["scheduled_s"] + flights["dep_delay"].fillna(0) * 60
    weather = table("weather")
    frames = [
        facts(
            "schedule",
            flights["origin"] + ":" + flights["flight"],
            flights["scheduled_s"] - SCHEDULED_S,
            carrier=flights["carrier"],
            distance_mi=flights["distance"],
            minute=flights["hour"] * 60 + flights["minute"],
            weekday=pd.to_datetime(flights[["year", "month", "day"]]).dt.day_of_week,
        ),
        # A cancelled flight is one without a delay, told when it should have left.
        facts(
            "traffic",
            flights["origin"],
            departed_s,
            dep_delay_min=flights["dep_delay"],
            cancelled=flights["dep_delay"].isna(),
        ),
        facts(
            "record",
            flights["flight"],
            departed_s + flights["air_time"] * 60 + TAXI_S,
            arr_delay_min=flights["arr_delay"],
            late=flights["late"],
        ),
        facts(
            "weather",
            weather["origin"],
            unix_seconds(pd.to_datetime(weather["time_hour"])) + HOUR_S,
            temp_f=weather["temp"],
            humidity=weather["humid"],
            wind_mph=weather["wind_speed"].where(weather["wind_speed"] <= WIND_MPH_MAX),
            rain_in=weather["precip"],
            pressure_mbar=weather["pressure"],
            visibility_mi=weather["visib"],
        ),
    ]
    return pd.concat(frames).sort_values("known_s", kind="stable", ignore_index=True)


def facts(view: str, entity_ids: pd.Series, known_s: pd.Series, **features: pd.Series) -> pd.DataFrame:
    """Events of one view; absent values are left out, and so is what never came to be known."""
    columns = [present(column) for column in features.values()]
    values = [
        {name: value for name, value in zip(features, row, strict=True) if value is not None}
        for row in zip(*columns, strict=True)
    ]
    frame = pd.DataFrame({"known_s": known_s, "view": view, "entity_id": entity_ids, "features": values})
    return frame[known_s.notna()]


def updates(events: pd.DataFrame, moved_s: int) -> Iterator[tuple[str, str]]:
    """Yields the key and the JSON object of each event, as FS.MPUBLISH takes them, with times that are moved."""
    columns = (events[name].tolist() for name in ("known_s", "view", "entity_id", "features"))
    for known_s, view, entity_id, features in zip(*columns, strict=True):
        at_ms = (int(known_s) + moved_s) * 1000
        yield f"fs:v1:{view}:{entity_id}", json.dumps({"_at": at_ms, **features})
