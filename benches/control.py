"""Controls: what the module costs those who do not call it, by native commands with and without it loaded.

These rows inform. They tell how far a comparison inside one server could be off, because the module's
notification handlers and timers are charged to the native side as well.
"""

import threading

import rows
from load import PIPELINE, Workload, command, pipelines
from measure import Bench, compare_servers
from report import Result, Series
from servers import Server
from writing import by_multi, load_by_hand, random_updates

SEED = 14


def control(bench: Bench) -> list[Result]:
    """HGETALL, HSET, the MULTI of the publish benchmark and an idle server; `module` means with it loaded."""
    view = rows.PROFILE_TTL
    results = []
    with Server(bench.version, None) as bare, Server(bench.version, bench.module) as loaded:
        for server in (bare, loaded):
            load_by_hand(bench, server, view)
        entities = rows.random_entities(rows.ENTITIES, SEED)
        updates = random_updates(view)
        single = pipelines(
            command("HSET", view.hand_key(e), "watch_count", row["watch_count"]) for e, row in updates
        )
        cases = [
            (lambda: Workload("HGETALL", hgetall(view, entities), {"hgetall": 1}), bench.effort.reads),
            (lambda: Workload("HSET", single, {"hset": 1}), bench.effort.reads),
            (lambda: by_multi(view, updates), bench.effort.writes),
        ]
        for make, operations in cases:
            bench.say(f"control: {make().name} with the module loaded / without")
            sides = compare_servers(
                bench, [(bare, make()), (loaded, make() if bench.module else None)], operations
            )
            title = f"control: {make().name} with the module loaded / without, no replica"
            native, module = (side.cpu_us for side in sides)
            results.append(Result("control", title, bare.version, "us CPU/op", native, module, operations))
        results.append(idle(bench, bare, loaded))
    return results


def hgetall(view: rows.View, entities: list[str]) -> list[bytes]:
    return pipelines(
        command("HGETALL", view.hand_key(entity))
        for entity in entities[: len(entities) // PIPELINE * PIPELINE]
    )


def idle(bench: Bench, bare: Server, loaded: Server) -> Result:
    """CPU of servers that nobody asks anything, in milliseconds a second."""
    bench.say("control: idle servers")
    figures = [[], []]
    for _ in range(bench.effort.rounds):
        before = [server.cpu_ns() for server in (bare, loaded)]
        threading.Event().wait(bench.effort.idle_seconds)
        for values, server, start in zip(figures, (bare, loaded), before, strict=True):
            values.append((server.cpu_ns() - start) / 1e6 / bench.effort.idle_seconds)
    native, module = Series(figures[0]), Series(figures[1] if bench.module else [])
    title = "control: idle server with the module loaded / without"
    return Result("control", title, bare.version, "ms CPU/s", native, module, 1)
