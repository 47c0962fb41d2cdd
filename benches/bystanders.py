"""Bystanders: what clients that read one row at a time wait, beside calls of FS.RANK and beside pipelines of HMGET.

Both loads go by the clock, so many a second whatever the server does, each in a process of its own.
"""

import statistics
import time
from multiprocessing.connection import Connection as Pipe

import numpy
from load import BUFFER_BYTES, BenchError, command
from measure import Bench
from ranking import CANDIDATES, Calls, ColumnCache, Draw, Ranking
from readers import Beside
from report import Result, Series
from servers import Server
from timetable import Caller, run_timetable

TARGET_P99 = 0.5
READS_PER_SECOND, READERS = 20_000, 8
CALLS_PER_SECOND, CALLERS = 500, 4
SLICE_SECONDS = 1
# Of the effort's slices.
SLICES_SHARE = 2
SEED = 22

# Each side's waits in milliseconds: a list a slice in a list a round.
Waits = dict[str, list[list[list[float]]]]


def bystanders(
    bench: Bench, server: Server, ranked: Ranking, drawn: list[Draw], cache: ColumnCache
) -> Result:
    """p99 of single HMGETs beside FS.RANK over that beside the pipelines, in slices that take turns."""
    title = (
        f"p99 of {READS_PER_SECOND:,} HMGET a second beside {CALLS_PER_SECOND} FS.RANK of {CANDIDATES} items a second"
        f" / beside {CALLS_PER_SECOND} pipelines of {CANDIDATES + 1} HMGET"
    )
    sides = {"pipelines": ranked.hmget(drawn), "FS.RANK": ranked.rank(drawn)}
    for calls in sides.values():
        calls.calibrate(server.port)
    cache.switch(on=True)
    slices = max(1, bench.effort.wait_slices // SLICES_SHARE)
    waits: Waits = {name: [] for name in ("none", *sides)}
    calls_waits: Waits = {name: [] for name in sides}
    readers = readers_of(server, ranked)
    with ByTheClock(server.port, sides) as calling:
        for number in range(bench.effort.rounds + 1):
            bench.say(f"bystanders of FS.RANK, round {number} of {bench.effort.rounds}")
            measured = a_round(server, readers, calling, sides, slices)
            if number > 0:
                for kept, found in zip((waits, calls_waits), measured, strict=True):
                    for name, rounds in kept.items():
                        rounds.append(found[name])
    for reader in readers:
        reader.close()
    series = (percentiles(waits["pipelines"], 99), percentiles(waits["FS.RANK"], 99))
    reads = READS_PER_SECOND * SLICE_SECONDS * slices
    result = Result("serving", title, server.version, "ms", *series, reads, TARGET_P99, digits=3)
    for percent in (50, 99, 99.9):
        for name, rounds in waits.items():
            result.details[f"p{percent} ({name})"] = percentiles(rounds, percent).text(3)
    for name, rounds in calls_waits.items():
        result.details[f"median of {name}"] = percentiles(rounds, 50).text(3)
    return result


def percentiles(rounds: list[list[list[float]]], percent: float) -> Series:
    """A percentile of the waits: the median of a round's slices.

    Now and then the machine itself stands still, which would hide everything else. What calls do to bystanders they
    do in every slice.
    """
    return Series(
        [statistics.median(numpy.percentile(slices, percent, axis=1).tolist()) for slices in rounds]
    )


def readers_of(server: Server, ranked: Ranking) -> list[Caller]:
    """Clients that take turns with one HMGET each."""
    names = ranked.items.view.features
    numbers = numpy.random.default_rng(SEED).integers(len(ranked.items), size=4096).tolist()
    reads = [command("HMGET", ranked.items.key(number), *names) for number in numbers]
    period_s = READERS / READS_PER_SECOND
    return [
        Caller(server.port, reads[at::READERS], period_s, period_s * at / READERS) for at in range(READERS)
    ]


def a_round(
    server: Server, readers: list[Caller], calling: "ByTheClock", sides: dict[str, Calls], slices: int
) -> tuple[dict, dict]:
    """The waits of the bystanders and those of the calls beside them: a list a slice, by side."""
    waits: dict[str, list] = {name: [] for name in ("none", *sides)}
    calls_waits: dict[str, list] = {name: [] for name in sides}
    counted, errors = server.calls(), server.errors()
    for number in range(slices):
        for name in sorted(waits, reverse=bool(number % 2)):
            if name in sides:
                calling.begin(name)
            run_timetable(readers, SLICE_SECONDS)
            if name in sides:
                calls_waits[name].append(calling.end())
            waits[name].append([wait_ms for reader in readers for wait_ms in reader.take_ms()])
    seconds = slices * SLICE_SECONDS
    expected = {"hmget": READS_PER_SECOND * seconds * len(waits)}
    for calls in sides.values():
        for name, count in calls.calls.items():
            expected[name] = expected.get(name, 0) + CALLS_PER_SECOND * seconds * count
    after = server.calls()
    done = {name: after[name] - counted.get(name, 0) for name in expected}
    if done != expected or server.errors() != errors:
        raise BenchError(f"{done} ran instead of {expected}, errors: {server.errors()}")
    return waits, calls_waits


class ByTheClock(Beside):
    """A process that makes the calls of one side for a slice, and tells what it waited in milliseconds."""

    def __init__(self, port: int, sides: dict[str, Calls]):
        super().__init__(call_by_the_clock, port, sides)

    def begin(self, name: str) -> None:
        self.pipe.send(name)

    def end(self) -> list[float]:
        return self.answer()


def call_by_the_clock(pipe: Pipe, port: int, sides: dict[str, Calls]) -> None:
    callers = {
        name: [CountingCaller(port, calls, at) for at in range(CALLERS)] for name, calls in sides.items()
    }
    pipe.send("ready")
    while True:
        calling = callers[pipe.recv()]
        run_timetable(calling, SLICE_SECONDS)
        pipe.send([wait_ms for caller in calling for wait_ms in caller.take_ms()])


class CountingCaller(Caller):
    """A caller that only counts what comes back, so that it takes little of the machine."""

    def __init__(self, port: int, calls: Calls, at: int):
        period_s = CALLERS / CALLS_PER_SECOND
        super().__init__(port, calls.pipelines[at::CALLERS], period_s, period_s * at / CALLERS)
        self.calls = calls
        self.missing = 0

    def send(self) -> None:
        super().send()
        self.missing = self.calls.expected

    def receive(self) -> None:
        received = self.socket.recv(BUFFER_BYTES)
        if not received:
            raise BenchError("the server closed the connection")
        self.missing -= len(received) if self.calls.unit is None else received.count(self.calls.unit)
        if self.missing > 0:
            return
        self.waits_ns.append(time.perf_counter_ns() - self.due_ns)
        self.due_ns += self.period_ns
        self.waiting = False
