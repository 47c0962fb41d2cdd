"""Packed rows against hashes of the same values: reading a row, and what it takes of memory."""

import json
import random
from collections.abc import Iterator

import rows
from load import BenchError, Workload, command, pipelines
from measure import Bench, compare
from memory import fill, keep, steady_memory
from reading import check_get, check_hgetall, check_hmget, check_tensor, load_rows, reading, result, write_all
from report import Result, Series
from rows import Row, View
from servers import Server
from tables import Table

TARGET_GET, TARGET_TENSOR, TARGET_TENSOR_50 = 0.8, 0.55, 0.15
TARGET_BYTES, TARGET_BYTES_JSON = 0.55, 0.08
# A row of 50 fields takes a server about this much longer than one of 7.
FIFTY_SHARE = 4
SEED = 23


def packed(bench: Bench) -> list[Result]:
    results = []
    for view in (rows.PROFILE_TTL, rows.PROFILE_LASTING):
        results.append(get(bench, view))
    for view, reach, share in (
        (rows.NUMBERS_TTL, TARGET_TENSOR, 1),
        (rows.NUMBERS_LASTING, TARGET_TENSOR, 1),
        (rows.FIFTY_TTL, TARGET_TENSOR_50, FIFTY_SHARE),
    ):
        results.append(tensor(bench, view, reach, bench.effort.reads // share))
    return results + memory(bench)


def get(bench: Bench, view: View) -> Result:
    """All seven features of a packed row against all fields of the module's own hash."""
    with Server(bench.version, bench.module) as server:
        store = load_rows(bench, server, view, seed=SEED)
        native = reading("HGETALL", view, [], 2, check_hgetall(view, store))
        module = None
        if bench.module:
            twin = view.as_packed()
            server.call(*twin.definition())
            write_all(server, publishing(twin, store.items()))
            module = reading("FS.GET", twin, [], 2, check_get(twin, store, list(twin.features)))
        title = f"FS.GET of all 7 features of a packed row / HGETALL of the hash, {view.age}, RESP2"
        bench.say(title)
        sides = compare(bench, server, [native, module], bench.effort.reads)
    return result("packed", title, server, sides, bench.effort.reads, TARGET_GET)


def tensor(bench: Bench, view: View, reach: float, operations: int) -> Result:
    """A row of numbers as one float32 blob against the fields of the module's own hash."""
    names = list(view.features)
    with Server(bench.version, bench.module) as server:
        table = Table.random(view, rows.ENTITIES, SEED)
        table.load(bench, server)
        native = reading("HMGET", view, names, 2, check_hmget(view, table, names))
        module = None
        if bench.module:
            twin = table.as_packed()
            twin.load(bench, server)
            module = reading("FS.TENSOR", twin.view, names, 2, check_tensor(twin.view, twin))
        title = f"FS.TENSOR of {len(names)} numbers of a packed row / HMGET of the hash, {view.age}"
        bench.say(title)
        sides = compare(bench, server, [native, module], operations)
    return result("packed", title, server, sides, operations, reach)


def publishing(view: View, updates) -> Workload:
    requests = pipelines(rows.publish(view, entity, row, "NOLOG") for entity, row in updates)
    return Workload("FS.PUBLISH", requests, {"fs.publish": 1})


def memory(bench: Bench) -> list[Result]:
    """Packed rows, hashes of the same and JSON of the same, each alone in the server, all with an expiry."""
    view = rows.PROFILE_TTL
    twin = view.as_packed()
    measured: dict[str, list[list[float]]] = {name: [[], []] for name in ("hash", "JSON", "packed")}
    with Server(bench.version, bench.module) as server:
        for registered in (view, twin) if bench.module else ():
            # Samples for drift are no part of a row.
            server.call(*registered.definition("SAMPLE", 0, "ON", "PUBLISH"))
        for number in range(bench.effort.memory_rounds):
            bench.say(
                f"memory of {rows.ENTITIES:,} packed rows, round {number + 1} of {bench.effort.memory_rounds}"
            )
            store = list(rows.all_rows(view, seed=SEED + number))
            sampled = random.Random(SEED).sample([entity for entity, _ in store], bench.effort.sampled_rows)
            keep(measured["JSON"], fill_json(server, view, store, sampled))
            for name, kept in (("hash", view), ("packed", twin)) if bench.module else ():
                keep(measured[name], fill(server, publishing(kept, store), [kept.key(e) for e in sampled]))
    results = []
    for native, what, reach in (
        ("hash", "hash of the same", TARGET_BYTES),
        ("JSON", "14 string keys of JSON, two a feature", TARGET_BYTES_JSON),
    ):
        for at, (how, count) in enumerate(
            (("MEMORY USAGE", bench.effort.sampled_rows), ("used_memory", rows.ENTITIES))
        ):
            title = f"{how} of an entity, packed, 7 features with TTL / {what}"
            series = (Series(measured[native][at]), Series(measured["packed"][at]), count, reach)
            results.append(Result("packed", title, server.version, "bytes/entity", *series, digits=1))
    return results


def fill_json(
    server: Server, view: View, store: list[tuple[str, Row]], sampled: list[str]
) -> tuple[float, float]:
    """As `memory.fill`, for entities of many keys. Returns bytes an entity, all its keys together."""
    server.call("FLUSHALL", "SYNC")
    before = steady_memory(server.connection)
    keys_an_entity = 2 * len(view.features)
    requests = pipelines(b"".join(json_writes(view, entity, row)) for entity, row in store)
    write_all(server, Workload("SET", requests, {}, replies=keys_an_entity))
    grown = steady_memory(server.connection) - before
    count = server.call("DBSIZE")
    if count != len(store) * keys_an_entity:
        raise BenchError(f"SET left {count} keys instead of {keys_an_entity} for each of {len(store)}")
    usage = [
        server.call("MEMORY", "USAGE", key, "SAMPLES", 0)
        for entity in sampled
        for key in json_keys(view, entity)
    ]
    return sum(usage) / len(sampled), grown / len(store)


def json_keys(view: View, entity: str) -> Iterator[str]:
    """The keys of an entity where each feature has one for its value and one for what is known of it."""
    for feature in view.features:
        key = f"{view.hand_key(entity)}:{feature}"
        yield key
        yield f"{key}:meta"


def json_writes(view: View, entity: str, row: Row) -> Iterator[bytes]:
    documents = []
    for feature, value in view.typed(row).items():
        documents.append({"value": value, "updated_at": float(rows.now_text())})
        documents.append({"view": view.name, "version": 1, "type": view.features[feature]})
    for key, document in zip(json_keys(view, entity), documents, strict=True):
        yield command("SET", key, json.dumps(document, separators=(",", ":")), "PX", rows.TTL_MS)
