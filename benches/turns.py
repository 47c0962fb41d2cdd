"""Timing two sides of a client in turn: some calls of one, then as many of the other."""

import statistics
import time
from collections.abc import Callable

import valkey
from load import BenchError
from report import Series

# So few that what slows the machine for a while slows both sides, so many that neither side finds the caches full
# of what the other left.
CALLS_A_TURN = 10


def take_turns(sides: list[Callable[[int], float] | None], rounds: int, calls: int) -> list[Series]:
    """Each side's milliseconds a call, the median of each round, after a round that is not counted.

    A side makes the call with the given number and returns what it took; None stands for one that cannot run.
    """
    found = [Series([]) for _ in sides]
    for number in range(rounds + 1):
        took_ms: list[list[float]] = [[] for _ in sides]
        for begin in range(0, calls, CALLS_A_TURN):
            for side, took in zip(sides, took_ms, strict=True):
                took += (
                    [side(number * calls + at) for at in range(begin, begin + CALLS_A_TURN)] if side else []
                )
        for series, took in zip(found, took_ms, strict=True):
            if number > 0 and took:
                series.values.append(statistics.median(took))
    return found


def milliseconds(call: Callable, *arguments) -> float:
    started_ns = time.perf_counter_ns()
    call(*arguments)
    return (time.perf_counter_ns() - started_ns) / 1e6


def libvalkey_client(port: int) -> valkey.Valkey:
    """A client that parses replies in C."""
    client = valkey.Valkey(port=port)
    connection = client.connection_pool.get_connection("PING")
    if "Libvalkey" not in connection._parser.__class__.__name__:
        raise BenchError("valkey-py does not use libvalkey's parser: install libvalkey")
    client.connection_pool.release(connection)
    return client
