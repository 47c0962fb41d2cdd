"""Measuring: two workloads in turn on one server, in CPU time and replicated bytes per operation."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from load import PIPELINE, BenchError, Client, Workload
from report import Series
from servers import Server


@dataclass(frozen=True)
class Effort:
    """How much is done for one figure."""

    rounds: int
    reads: int
    writes: int
    backlog: int
    window_seconds: float
    memory_rounds: int
    sampled_rows: int
    idle_seconds: float
    windowed_entities: int
    hourly_entities: int
    dense_entities: int
    wait_slices: int


FULL = Effort(7, 160_000, 64_000, 600_000, 2.0, 5, 2000, 2.0, 100_000, 10_000, 512, 8)
QUICK = Effort(5, 32_000, 16_000, 120_000, 0.4, 2, 200, 0.5, 10_000, 1_600, 256, 3)


@dataclass
class Bench:
    """What a benchmark is given: the server's version, the module (None for native sides only) and the
    effort.
    """

    version: str
    module: Path | None
    effort: Effort

    def say(self, text: str) -> None:
        print(f"bench: {self.version}: {text}", file=sys.stderr, flush=True)


@dataclass
class Side:
    """What was measured of one workload, one value a round."""

    cpu_us: Series
    replicated_bytes: Series


def nothing() -> None:
    """Settles a server that has nobody to wait for."""


def compare(
    bench: Bench,
    server: Server,
    workloads: list[Workload | None],
    operations: int,
    settle: Callable[[], None] = nothing,
) -> list[Side]:
    """Runs the workloads in turn, round after round, after a round that is not counted.

    `workloads`: None stands for a side that cannot run. `settle`: returns when what an operation set off has
    ended, such as the sending to a replica; the CPU it takes counts. Raises if a command did not run as often
    as it should have, or if the server counted an error.
    """
    return compare_servers(bench, [(server, workload) for workload in workloads], operations, settle)


def compare_servers(
    bench: Bench,
    pairs: list[tuple[Server, Workload | None]],
    operations: int,
    settle: Callable[[], None] = nothing,
) -> list[Side]:
    """The same with a server for each workload."""
    operations = operations // PIPELINE * PIPELINE
    running = [Runner(server, workload) for server, workload in pairs if workload]
    sides = [Side(Series([]), Series([])) for _ in pairs]
    try:
        for round_number in range(bench.effort.rounds + 1):
            figures = iter([runner.measure(operations, settle) for runner in running])
            for side, (_, workload) in zip(sides, pairs, strict=True):
                if workload and (figure := next(figures)) and round_number > 0:
                    side.cpu_us.values.append(figure[0])
                    side.replicated_bytes.values.append(figure[1])
    finally:
        for runner in running:
            runner.client.close()
    return sides


class Runner:
    """A workload with its connections to a server."""

    def __init__(self, server: Server, workload: Workload):
        self.server, self.workload = server, workload
        try:
            workload.calibrate(server.port)
            self.client = Client(server.port, workload.protocol)
        except (ConnectionError, BenchError) as error:
            raise BenchError(f"{workload.name}: {error}{server.last_words()}") from None

    def measure(self, operations: int, settle: Callable[[], None]) -> tuple[float, float]:
        """CPU microseconds and replicated bytes per operation."""
        server, workload = self.server, self.workload
        calls, errors, offset = server.calls(), server.errors(), server.replication_offset()
        before_ns = server.cpu_ns()
        try:
            self.client.run(workload, operations)
            settle()
        except (ConnectionError, BenchError) as error:
            raise BenchError(f"{workload.name}: {error}{server.last_words()}") from None
        cpu_ns = server.cpu_ns() - before_ns
        sent = server.replication_offset() - offset
        check_counters(server, workload, operations, calls, errors)
        return cpu_ns / 1000 / operations, sent / operations


def check_counters(server: Server, workload: Workload, operations: int, calls: dict, errors: dict) -> None:
    after = server.calls()
    for name, count in workload.calls.items():
        done = after.get(name, 0) - calls.get(name, 0)
        if done != operations * count:
            raise BenchError(f"{workload.name}: {name} ran {done} times instead of {operations * count}")
    if server.errors() != errors:
        raise BenchError(f"{workload.name}: the server counted errors: {server.errors()}")
