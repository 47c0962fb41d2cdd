"""Reading one row: FS.GET against HGETALL and HMGET, FS.TENSOR against HMGET; random entities on both sides."""

import struct

import rows
from load import PIPELINE, BenchError, Client, Workload, pipelines
from load import command as words
from measure import Bench, Side, compare
from report import Result
from rows import View
from servers import Server

SOME = ["age", "is_premium", "avg_session"]
TARGET_ALL, TARGET_SOME, TARGET_TENSOR = 1.1, 1.2, 1.05
SEED = 11


def get(bench: Bench) -> list[Result]:
    """All seven features, with and without a TTL, in both protocols."""
    results = []
    with Server(bench.version, bench.module) as server:
        for view in (rows.PROFILE_TTL, rows.PROFILE_LASTING):
            store = load_rows(bench, server, view, seed=1)
            for protocol in (2, 3):
                native = reading("HGETALL", view, [], protocol, check_hgetall(view, store))
                module = reading("FS.GET", view, [], protocol, check_get(view, store, list(view.features)))
                title = f"FS.GET of all 7 features / HGETALL, {view.age}, RESP{protocol}"
                sides = run(bench, server, title, native, module)
                target = TARGET_ALL if protocol == 2 else None
                results.append(result("get", title, server, sides, bench.effort.reads, target))
    return results


def get_some(bench: Bench) -> list[Result]:
    """Three of the seven features."""
    results = []
    with Server(bench.version, bench.module) as server:
        for view in (rows.PROFILE_TTL, rows.PROFILE_LASTING):
            store = load_rows(bench, server, view, seed=1)
            native = reading("HMGET", view, SOME, 2, check_hmget(view, store, SOME))
            module = reading("FS.GET", view, SOME, 2, check_get(view, store, SOME))
            title = f"FS.GET of 3 features / HMGET, {view.age}"
            sides = run(bench, server, title, native, module)
            results.append(result("get3", title, server, sides, bench.effort.reads, TARGET_SOME))
    return results


def tensor(bench: Bench) -> list[Result]:
    """Seven numbers as one float32 blob."""
    results = []
    with Server(bench.version, bench.module) as server:
        for view in (rows.NUMBERS_TTL, rows.NUMBERS_LASTING):
            store = load_rows(bench, server, view, seed=2)
            names = list(view.features)
            native = reading("HMGET", view, names, 2, check_hmget(view, store, names))
            module = reading("FS.TENSOR", view, names, 2, check_tensor(view, store))
            title = f"FS.TENSOR of 7 numbers / HMGET, {view.age}"
            sides = run(bench, server, title, native, module)
            results.append(result("tensor", title, server, sides, bench.effort.reads, TARGET_TENSOR))
    return results


def run(bench: Bench, server: Server, title: str, native: Workload, module: Workload) -> list[Side]:
    bench.say(title)
    return compare(bench, server, [native, module if bench.module else None], bench.effort.reads)


def result(
    bench: str, title: str, server: Server, sides: list[Side], operations: int, reach: float | None
) -> Result:
    native, module = (side.cpu_us for side in sides)
    return Result(bench, title, server.version, "us CPU/op", native, module, operations, reach)


def load_rows(
    bench: Bench, server: Server, view: View, seed: int, registered: bool = False
) -> dict[str, rows.Row]:
    """Writes every entity's row, by the module if there is one, and returns what they hold."""
    bench.say(f"loading {rows.ENTITIES:,} rows of {view.name}")
    store = dict(rows.all_rows(view, seed))
    if bench.module:
        if not registered:
            server.call(*view.definition())
        requests = pipelines(rows.publish(view, entity, row, "NOLOG") for entity, row in store.items())
        writing = Workload("FS.PUBLISH NOLOG", requests, {"fs.publish": 1})
    else:
        requests = pipelines(rows.write_by_hand(view, view.key(entity), row) for entity, row in store.items())
        writing = Workload("HSET", requests, {"hset": 1}, replies=2 if view.ttl else 1)
    write_all(server, writing)
    count = server.call("DBSIZE")
    if count % rows.ENTITIES:
        raise BenchError(f"{count} keys are there after loading {rows.ENTITIES} rows")
    return store


def write_all(server: Server, writing: Workload) -> None:
    """Does every operation of a workload once."""
    writing.calibrate(server.port)
    client = Client(server.port)
    client.run(writing, len(writing.pipelines) * PIPELINE)
    client.close()


def reading(name: str, view: View, features: list[str], protocol: int, check) -> Workload:
    """One read a random entity. `check`: judges the reply for an entity."""
    # Twice as many draws as entities: most rows are read, in no order that a cache could follow.
    entities = rows.random_entities(2 * rows.ENTITIES, SEED)
    arguments = [",".join(features)] if name == "FS.TENSOR" else []
    fields = [] if name == "FS.TENSOR" else features
    requests = pipelines(words(name, *arguments, view.key(entity), *fields) for entity in entities)

    def check_pipeline(index: int, replies: list) -> None:
        for entity, reply in zip(entities[index * PIPELINE :], replies, strict=False):
            if not check(entity, reply):
                raise BenchError(f"{name} {view.key(entity)} answered {reply}, which is not what was written")

    return Workload(name, requests, {name.lower(): 1}, protocol=protocol, check=check_pipeline)


def as_map(reply: list | dict) -> dict[str, object]:
    """A map of either protocol, with names as text."""
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {name.decode(): value for name, value in pairs}


def same_value(kind: str, text: str, value: object) -> bool:
    """Whether a reply's value, typed or as text, is the one that was written."""
    if value is None:
        return False
    if isinstance(value, bytes):
        value = rows.typed_value(kind, value.decode())
    return value == rows.typed_value(kind, text)


def check_hgetall(view: View, store: dict):
    def check(entity: str, reply) -> bool:
        found = {name: value.decode() for name, value in as_map(reply).items()}
        own = {"_feature_view": view.name, "_updated_at": found.get("_updated_at")}
        return found == store[entity] | own

    return check


def check_hmget(view: View, store: dict, names: list[str]):
    return lambda entity, reply: (
        [value.decode() for value in reply] == [store[entity][name] for name in names]
    )


def check_get(view: View, store: dict, names: list[str]):
    def check(entity: str, reply) -> bool:
        found = as_map(reply)
        row = store[entity]
        return list(found) == names and all(same_value(view.features[n], row[n], found[n]) for n in names)

    return check


def check_tensor(view: View, store: dict):
    def check(entity: str, reply) -> bool:
        return reply == struct.pack(f"<{len(view.features)}f", *view.typed(store[entity]).values())

    return check
