"""Memory of a row: published by the module against the same hash written by hand, both with an expiry."""

import random
import time

import rows
from load import BenchError, Connection, Workload, pipelines
from measure import Bench
from reading import write_all
from report import Result, Series
from servers import Server

TARGET = 1.05
STEADY_POLLS = 10
POLL_SECONDS = 0.02
STEADY_SECONDS_MAX = 10
SEED = 13


def memory(bench: Bench) -> list[Result]:
    """MEMORY USAGE of sampled rows, and the growth of used_memory over all of them."""
    view = rows.PROFILE_TTL
    hand = [[], []]
    own = [[], []]
    with Server(bench.version, bench.module) as server:
        if bench.module:
            server.call(*view.definition())
        for round_number in range(bench.effort.memory_rounds):
            bench.say(
                f"memory of {rows.ENTITIES:,} rows, round {round_number + 1} of {bench.effort.memory_rounds}"
            )
            store = list(rows.all_rows(view, seed=SEED + round_number))
            entities = random.Random(SEED).sample([entity for entity, _ in store], bench.effort.sampled_rows)
            requests = pipelines(
                rows.write_by_hand(view, view.hand_key(entity), row) for entity, row in store
            )
            keep(
                hand,
                fill(server, Workload("HSET", requests, {}, replies=2), list(map(view.hand_key, entities))),
            )
            if bench.module:
                requests = pipelines(rows.publish(view, entity, row, "NOLOG") for entity, row in store)
                keep(own, fill(server, Workload("FS.PUBLISH", requests, {}), list(map(view.key, entities))))
    titles = [
        "MEMORY USAGE of a published row / HSET and PEXPIRE",
        "used_memory per published row / HSET and PEXPIRE",
    ]
    counts = [bench.effort.sampled_rows, rows.ENTITIES]
    results = []
    for title, native, module, count in zip(titles, hand, own, counts, strict=True):
        result = Result(
            "memory", title, server.version, "bytes/row", Series(native), Series(module), count, TARGET
        )
        result.digits = 1
        results.append(result)
    return results


def keep(series: list[list[float]], figures: tuple[float, float]) -> None:
    for values, figure in zip(series, figures, strict=True):
        values.append(figure)


def fill(server: Server, writing: Workload, sampled_keys: list[str]) -> tuple[float, float]:
    """Writes all rows into the emptied server. Returns bytes a row as MEMORY USAGE and as used_memory see
    them.
    """
    server.call("FLUSHALL", "SYNC")
    before = steady_memory(server.connection)
    write_all(server, writing)
    grown = steady_memory(server.connection) - before
    count = server.call("DBSIZE")
    if count != rows.ENTITIES:
        raise BenchError(f"{writing.name} left {count} keys instead of {rows.ENTITIES}")
    usage = [server.call("MEMORY", "USAGE", key, "SAMPLES", 0) for key in sampled_keys]
    return sum(usage) / len(usage), grown / count


def steady_memory(connection: Connection) -> int:
    """used_memory once it has stopped moving: tables are rehashed in the background after a load."""
    deadline = time.monotonic() + STEADY_SECONDS_MAX
    last, steady = -1, 0
    while steady < STEADY_POLLS:
        if time.monotonic() > deadline:
            raise BenchError("used_memory of an idle server does not stop moving")
        time.sleep(POLL_SECONDS)
        used = int(connection.info("memory")["used_memory"])
        steady = steady + 1 if abs(used - last) < 4096 else 0
        last = used
    return last
