"""Drift: what sampling costs a publish, what other clients feel of FS.DRIFT, and what samples take of memory.

`native` is the module without the thing that is measured: FS.PUBLISH under `SAMPLE 0 ON PUBLISH`, clients while nobody
calls FS.DRIFT, a view without samples. It is the same view on the same server each time.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy
import rows
from events import Stream, check_nil
from load import PIPELINE, BenchError, Workload, command, pipelines
from measure import Bench, Runner, Side, nothing
from memory import steady_memory
from reading import as_map, load_rows, write_all
from report import Result, Series
from rows import Row, View
from servers import Replica, Server
from timetable import Caller, run_timetable
from writing import check_ids, random_updates

TARGET_PUBLISH, TARGET_P999_MS, TARGET_BYTES = 1.05, 1.0, 120_000
SAMPLES = 10_000
# What a view without samples may count.
EMPTY_BYTES_MAX = 1000
# Sides change so often in a round that what slows the machine for a while slows both.
SLICES, WRITES_SHARE = 8, 4
# So many arrivals fill a window and make it choose: it takes about one in five then, and fewer of more.
FILLED = 3000 * PIPELINE
CLIENTS, GETS_PER_SECOND, DRIFTS_PER_SECOND, SLICE_SECONDS = 4, 4000, 20, 1
METHODS = {"MEAN", "STDDEV", "KS", "PSI", "WASSERSTEIN", "JS", "MISSING"}
FEATURES, ENTITY = 50, "user_000000"
SEED = 19

DRIFTING = View("user_profile", rows.PROFILE, ttl=True)
DRIFTED = "score"
NUMBERS = View("user_numbers", {f"number_{at:02}": "FLOAT" for at in range(FEATURES)}, ttl=False)


def drift(bench: Bench) -> list[Result]:
    if not bench.module:
        return []
    return [*publish(bench, copied=False), *publish(bench, copied=True), waits(bench), *memory(bench)]


def publish(bench: Bench, copied: bool) -> list[Result]:
    """FS.PUBLISH with sampling on against the same with `SAMPLE 0`, logged and not.

    Two kinds of rows inform: with a replica and AOF, where the same costs are a smaller share of more; and while
    windows fill, where every value is kept.
    """
    options = ("appendonly", "yes", "appendfsync", "everysec") if copied else ()
    with Server(bench.version, bench.module, *options) as server:
        server.call(*DRIFTING.definition("SAMPLE", 0, "ON", "PUBLISH"))
        load_rows(bench, server, DRIFTING, seed=5, registered=True)
        check_samples(server, 0)
        if not copied:
            results = publish_on(bench, server, nothing, "")
            slice_operations = min(operations_of_slice(bench), SAMPLES // PIPELINE * PIPELINE)
            title = "FS.PUBLISH of 7 features, sampled / SAMPLE 0 ON PUBLISH, NOLOG, while windows fill"
            bench.say(title)
            workload = publishing(random_updates(DRIFTING), ("NOLOG",))
            sides = alternate(bench, server, workload, slice_operations, 0, nothing)
            cpu = (side.cpu_us for side in sides)
            done = slice_operations * SLICES
            return [*results, Result("drift", title, server.version, "us CPU/op", *cpu, done)]
        with Replica(bench.version, bench.module, server) as replica:
            return publish_on(bench, server, replica.catch_up, ", replica and AOF")


def publish_on(bench: Bench, server: Server, settle: Callable[[], None], where: str) -> list[Result]:
    updates = random_updates(DRIFTING)
    results = []
    for how, option in (("logged", ()), ("NOLOG", ("NOLOG",))):
        title = f"FS.PUBLISH of 7 features, sampled / SAMPLE 0 ON PUBLISH, {how}{where}"
        bench.say(title)
        slice_operations = operations_of_slice(bench)
        workload = publishing(updates, option)
        unsampled, sampled = alternate(bench, server, workload, slice_operations, FILLED, settle)
        operations = slice_operations * SLICES
        cpu = (unsampled.cpu_us, sampled.cpu_us)
        reach = None if where else TARGET_PUBLISH
        results.append(Result("drift", title, server.version, "us CPU/op", *cpu, operations, reach))
        if where:
            sent = (unsampled.replicated_bytes, sampled.replicated_bytes)
            what = "the same, bytes replicated"
            results.append(Result("drift", what, server.version, "bytes/op", *sent, operations, digits=0))
    return results


def operations_of_slice(bench: Bench) -> int:
    return bench.effort.writes // WRITES_SHARE // PIPELINE * PIPELINE


def publishing(updates: list[tuple[str, Row]], option: tuple[str, ...]) -> Workload:
    requests = pipelines(rows.publish(DRIFTING, entity, row, *option) for entity, row in updates)
    return Workload("FS.PUBLISH", requests, {"fs.publish": 1}, check=check_nil if option else check_ids)


def alternate(
    bench: Bench,
    server: Server,
    workload: Workload,
    operations: int,
    before: int,
    settle: Callable[[], None],
) -> list[Side]:
    """The same without and with sampling, in slices that take turns, after a round that is not counted.

    A round's figure is the median of its slices. The rate 0 empties the windows. `before`: as many operations fill
    them again; they are done on both sides.
    """
    sides = [Side(Series([]), Series([])) for _ in range(2)]
    runner = Runner(server, workload)
    try:
        for round_number in range(bench.effort.rounds + 1):
            figures: list[list] = [[], []]
            for number in range(SLICES):
                for rate in (0, 1) if number % 2 else (1, 0):
                    server.call("FS.ALTER", DRIFTING.name, "SAMPLE", rate, "ON", "PUBLISH")
                    runner.client.run(workload, before)
                    settle()
                    figures[rate].append(runner.measure(operations, settle))
                    check_samples(server, rate * min(before + operations, SAMPLES))
            for side, measured in zip(sides, figures, strict=True):
                if round_number > 0:
                    cpu_us, replicated_bytes = map(statistics.median, zip(*measured, strict=True))
                    side.cpu_us.values.append(cpu_us)
                    side.replicated_bytes.values.append(replicated_bytes)
    finally:
        runner.client.close()
    return sides


def check_samples(server: Server, values: int) -> None:
    """Each of the features has so many values; the last of them may just have made an eighth of them go."""
    kept = sampled_bytes(server)
    numbers = sum(kind != "STRING" for kind in DRIFTING.features.values())
    # A number takes nine bytes.
    if not (kept >= numbers * values * 7 if values else kept <= EMPTY_BYTES_MAX):
        raise BenchError(
            f"{kept} bytes of samples where {numbers} features and one more have {values} values"
        )


def sampled_bytes(server: Server) -> int:
    return int(server.connection.info("fs")["fs_drift_samples_bytes"])


def waits(bench: Bench) -> Result:
    """What clients that read one row at a time wait, while FS.DRIFT is called and while it is not."""
    rounds: dict[str, list[Waits]] = {"none": [], "FS.DRIFT": []}
    with Server(bench.version, bench.module) as server:
        server.call("CONFIG", "SET", "fs.drift-interval", 0)
        server.call(*DRIFTING.definition("SAMPLE", 0, "ON", "PUBLISH"))
        load_rows(bench, server, DRIFTING, seed=6, registered=True)
        fill_window(server, DRIFTING, random_updates(DRIFTING)[:SAMPLES])
        set_baseline(server, DRIFTING, DRIFTED, numpy.random.default_rng(SEED))
        check_drift(server, DRIFTING, DRIFTED)
        clients, drifting = callers(server)
        for number in range(bench.effort.rounds + 1):
            bench.say(f"waits of other clients, round {number} of {bench.effort.rounds}")
            calls, errors = server.calls(), server.errors()
            found = alternate_waits(clients, drifting, bench.effort.wait_slices)
            check_waits(server, calls, errors, found, bench.effort.wait_slices)
            if number > 0:
                for name, measured in found.items():
                    rounds[name].append(measured)
        for caller in (*clients, drifting):
            caller.close()
    title = f"worst client's p99.9 of FS.GET, {DRIFTS_PER_SECOND} FS.DRIFT a second - none"
    series = (Series([measured.worst_ms for measured in side]) for side in rounds.values())
    gets = GETS_PER_SECOND * SLICE_SECONDS * bench.effort.wait_slices
    result = Result("drift", title, server.version, "ms", *series, gets, TARGET_P999_MS)
    result.relation = "module - native"
    result.details = {
        f"{figure} of all ({name})": percentiles(side, percent).text(2)
        for figure, percent in (("p50", 50), ("p99", 99), ("p99.9", 99.9), ("max", 100))
        for name, side in rounds.items()
    }
    latencies_ms = numpy.concatenate([measured.drift_ms for measured in rounds["FS.DRIFT"]])
    for figure, percent in (("median", 50), ("p99", 99), ("max", 100)):
        result.details[f"FS.DRIFT {figure}"] = f"{numpy.percentile(latencies_ms, percent):.2f}"
    return result


@dataclass
class Waits:
    """What was waited in a round, in milliseconds: by each client in each slice, and for FS.DRIFT."""

    slices_ms: list[list[list[float]]]
    drift_ms: list[float]

    @property
    def all_ms(self) -> numpy.ndarray:
        return numpy.concatenate([waits_ms for clients_ms in self.slices_ms for waits_ms in clients_ms])

    @property
    def worst_ms(self) -> float:
        """The p99.9 of the client whose p99.9 is the largest: the median of the slices.

        Now and then the machine itself stands still, which would hide everything else. What FS.DRIFT does to others it
        does in every slice.
        """
        return statistics.median(
            max(float(numpy.percentile(waits_ms, 99.9)) for waits_ms in clients_ms)
            for clients_ms in self.slices_ms
        )


def percentiles(rounds: list[Waits], percent: float) -> Series:
    return Series([float(numpy.percentile(measured.all_ms, percent)) for measured in rounds])


def callers(server: Server) -> tuple[list[Caller], Caller]:
    """Clients that take turns with one read each, and the one that calls FS.DRIFT."""
    keys = [DRIFTING.key(entity) for entity in rows.random_entities(4096, SEED)]
    reads = [command("FS.GET", key) for key in keys]
    period_s = CLIENTS / GETS_PER_SECOND
    clients = [
        Caller(server.port, reads[at::CLIENTS], period_s, period_s * at / CLIENTS) for at in range(CLIENTS)
    ]
    call = command("FS.DRIFT", DRIFTING.name, DRIFTED)
    # Between two reads, so that it does not always come just before one.
    return clients, Caller(server.port, [call], 1 / DRIFTS_PER_SECOND, period_s / CLIENTS / 3)


def alternate_waits(clients: list[Caller], drifting: Caller, slices: int) -> dict[str, Waits]:
    """So many slices without calls of FS.DRIFT and as many with them, in turn."""
    found = {name: Waits([], []) for name in ("none", "FS.DRIFT")}
    sides = {"none": clients, "FS.DRIFT": [*clients, drifting]}
    for number in range(slices):
        for name in sorted(sides, reverse=bool(number % 2)):
            run_timetable(sides[name], SLICE_SECONDS)
            found[name].slices_ms.append([client.take_ms() for client in clients])
            found[name].drift_ms += drifting.take_ms()
    return found


def check_waits(server: Server, calls: dict, errors: dict, found: dict[str, Waits], slices: int) -> None:
    """Everything that was due was called, answered and counted by the server, on each side."""
    seconds = slices * SLICE_SECONDS
    gets = [len(measured.all_ms) for measured in found.values()]
    drifts = [len(measured.drift_ms) for measured in found.values()]
    if gets != [GETS_PER_SECOND * seconds] * 2 or drifts != [0, DRIFTS_PER_SECOND * seconds]:
        raise BenchError(f"{gets} of FS.GET and {drifts} of FS.DRIFT were answered in {seconds} seconds each")
    after = server.calls()
    for name, count in (("fs.get", sum(gets)), ("fs.drift", sum(drifts))):
        done = after.get(name, 0) - calls.get(name, 0)
        if done != count:
            raise BenchError(f"{name} ran {done} times instead of {count}")
    if server.errors() != errors:
        raise BenchError(f"the server counted errors: {server.errors()}")


def fill_window(server: Server, view: View, updates: list[tuple[str, Row]]) -> None:
    """Samples as many updates as a window holds: with one more it would let some go."""
    server.call("FS.ALTER", view.name, "SAMPLE", 1, "ON", "PUBLISH")
    publish_once(server, view, updates)


def publish_once(server: Server, view: View, updates: list[tuple[str, Row]]) -> None:
    requests = pipelines(rows.publish(view, entity, row, "NOLOG") for entity, row in updates)
    write_all(server, Stream("FS.PUBLISH", requests, {}, check=check_nil))


def set_baseline(server: Server, view: View, feature: str, source: numpy.random.Generator) -> None:
    values = (rows.shortest(value) for value in source.random(SAMPLES).round(9).tolist())
    server.call("FS.BASELINE", view.name, feature, "SAMPLES", SAMPLES, *values)


def check_drift(server: Server, view: View, feature: str) -> None:
    """All methods for numbers are tested, on full samples."""
    tests = [as_map(test) for test in server.call("FS.DRIFT", view.name, feature)]
    methods = {test["method"].decode() for test in tests}
    if methods != METHODS or {test["feature"].decode() for test in tests} != {feature}:
        raise BenchError(f"FS.DRIFT {view.name} {feature} answered {tests} instead of {sorted(METHODS)}")
    for test in tests:
        counts = (test["baseline_n"], test["current_n"])
        if test["method"] != b"MISSING" and counts != (SAMPLES, SAMPLES):
            raise BenchError(
                f"FS.DRIFT {view.name} {feature} compares {counts} values instead of {SAMPLES} each"
            )


def memory(bench: Bench) -> list[Result]:
    """Growth of used_memory by the samples of many features: first the current windows, then the baselines."""
    levels: list[list[float]] = [[], [], [], []]
    with Server(bench.version, bench.module) as server:
        server.call("CONFIG", "SET", "fs.drift-interval", 0)
        for number in range(bench.effort.memory_rounds):
            bench.say(
                f"memory of {FEATURES} features' samples, round {number + 1} of {bench.effort.memory_rounds}"
            )
            for level, used in zip(levels, fill(server, SEED + number), strict=True):
                level.append(used / FEATURES)
    results = []
    bare, current, baseline, tested = map(Series, levels)
    for what, before, after in (("current window", bare, current), ("baseline", current, baseline)):
        title = f"used_memory of a numeric feature's {what}, {SAMPLES:,} values: after - before"
        series = (before, after, FEATURES, TARGET_BYTES)
        result = Result("drift", title, server.version, "bytes/feature", *series, digits=0)
        result.relation = "module - native"
        results.append(result)
    more = Series([after - before for before, after in zip(baseline.values, tested.values, strict=True)])
    results[-1].details = {"more after FS.DRIFT of all": more.text(0)}
    return results


def fill(server: Server, seed: int) -> list[int]:
    """used_memory of a view without samples, with its current windows, with its baselines, and when tested."""
    source = numpy.random.default_rng(seed)
    server.call(*NUMBERS.definition("SAMPLE", 0, "ON", "PUBLISH"))
    updates = [update(values) for values in source.random((SAMPLES, FEATURES)).round(9)]
    # All that a row and its connections take is there before.
    publish_once(server, NUMBERS, updates)
    levels = [steady_memory(server.connection)]
    fill_window(server, NUMBERS, updates)
    levels.append(steady_memory(server.connection))
    for feature in NUMBERS.features:
        set_baseline(server, NUMBERS, feature, source)
    levels.append(steady_memory(server.connection))
    for feature in NUMBERS.features:
        check_drift(server, NUMBERS, feature)
    levels.append(steady_memory(server.connection))
    server.call("FS.DROP", NUMBERS.name, "DATA")
    return levels


def update(values: numpy.ndarray) -> tuple[str, Row]:
    texts = map(rows.shortest, values.tolist())
    return ENTITY, dict(zip(NUMBERS.features, texts, strict=True))
