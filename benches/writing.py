"""Writing one row: FS.PUBLISH against the same log entry, hash and expiry by MULTI and by a Lua script.

A replica is attached and the append-only file is on. What is sent to the replica until it has caught up
counts, in CPU and in bytes. Rows exist already, values and entities vary.
"""

import json
import random
import re

import rows
from load import PIPELINE, BenchError, Workload, command, pipelines
from measure import Bench, Side, compare
from reading import load_rows, write_all
from report import Result
from rows import LOG_LENGTH_MAX, Row, View
from servers import Replica, Server

TARGET_MULTI, TARGET_BYTES, TARGET_LUA = 0.7, 0.45, 0.4
OPERATIONS_BUILT = 96_000
SEED = 12

SCRIPT = """\
local features = cjson.encode({
  age = tonumber(ARGV[5]), score = tonumber(ARGV[6]), country = ARGV[7], is_premium = ARGV[8] == '1',
  last_seen = tonumber(ARGV[9]), watch_count = tonumber(ARGV[10]), avg_session = tonumber(ARGV[11])
})
local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[4], '*', 'entity_id', ARGV[1],
  'features', features, 'timestamp', ARGV[2], 'feature_view', ARGV[3])
redis.call('HSET', KEYS[2], 'age', ARGV[5], 'score', ARGV[6], 'country', ARGV[7], 'is_premium', ARGV[8],
  'last_seen', ARGV[9], 'watch_count', ARGV[10], 'avg_session', ARGV[11], '_updated_at', ARGV[2],
  '_feature_view', ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[12])
return id
"""


def publish(bench: Bench) -> list[Result]:
    """CPU and replicated bytes against MULTI, CPU against Lua."""
    view = rows.PROFILE_TTL
    results = []
    with (
        Server(bench.version, bench.module, "appendonly", "yes", "appendfsync", "everysec") as server,
        Replica(bench.version, bench.module, server) as replica,
    ):
        load_rows(bench, server, view, seed=3)
        load_by_hand(bench, server, view)
        replica.catch_up()
        updates = random_updates(view)
        sides = {
            "MULTI": by_multi(view, updates),
            "Lua": by_script(view, updates, server.call("SCRIPT", "LOAD", SCRIPT).decode()),
            "FS.PUBLISH": by_module(view, updates) if bench.module else None,
        }
        bench.say("FS.PUBLISH / MULTI / Lua, with a replica and AOF")
        multi, script, module = compare(
            bench, server, list(sides.values()), bench.effort.writes, replica.catch_up
        )
        check_log_entries(server, view, native_only=bench.module is None)
        check_same_copy(server, replica, view, updates)
        operations = bench.effort.writes
    against_multi = "FS.PUBLISH / MULTI XADD HSET PEXPIRE EXEC, replica and AOF"
    results.append(cpu(against_multi, server, multi, module, operations, TARGET_MULTI))
    bytes_sent = cpu("the same, bytes replicated", server, multi, module, operations, TARGET_BYTES)
    bytes_sent.native, bytes_sent.module = multi.replicated_bytes, module.replicated_bytes
    bytes_sent.unit, bytes_sent.digits = "bytes/op", 0
    results.append(bytes_sent)
    against_script = "FS.PUBLISH / Lua script by EVALSHA, replica and AOF"
    results.append(cpu(against_script, server, script, module, operations, TARGET_LUA))
    return results


def cpu(title: str, server: Server, native: Side, module: Side, operations: int, reach: float) -> Result:
    return Result(
        "publish", title, server.version, "us CPU/op", native.cpu_us, module.cpu_us, operations, reach
    )


def load_by_hand(bench: Bench, server: Server, view: View) -> None:
    bench.say(f"loading {rows.ENTITIES:,} rows by hand")
    store = rows.all_rows(view, seed=3)
    requests = pipelines(rows.write_by_hand(view, view.hand_key(entity), row) for entity, row in store)
    write_all(server, Workload("HSET", requests, {}, replies=2))


def random_updates(view: View) -> list[tuple[str, Row]]:
    source = random.Random(SEED)
    entities = rows.random_entities(OPERATIONS_BUILT, SEED)
    return [(entity, view.random_row(source)) for entity in entities]


def by_module(view: View, updates: list[tuple[str, Row]]) -> Workload:
    requests = pipelines(rows.publish(view, entity, row) for entity, row in updates)
    return Workload("FS.PUBLISH", requests, {"fs.publish": 1}, check=check_ids)


def by_multi(view: View, updates: list[tuple[str, Row]]) -> Workload:
    requests = pipelines(transaction(view, entity, row) for entity, row in updates)
    calls = dict.fromkeys(["multi", "xadd", "hset", "pexpire", "exec"], 1)
    return Workload("MULTI", requests, calls, replies=5)


def transaction(view: View, entity: str, row: Row) -> bytes:
    entry = [
        "entity_id",
        entity,
        "features",
        view.json(row),
        "timestamp",
        rows.now_text(),
        "feature_view",
        view.name,
    ]
    logged = command("XADD", view.hand_stream, "MAXLEN", "~", LOG_LENGTH_MAX, "*", *entry)
    written = rows.write_by_hand(view, view.hand_key(entity), row)
    return command("MULTI") + logged + written + command("EXEC")


def by_script(view: View, updates: list[tuple[str, Row]], digest: str) -> Workload:
    def call(entity: str, row: Row) -> bytes:
        fixed = [entity, rows.now_text(), view.name, LOG_LENGTH_MAX]
        keys = [view.hand_stream, view.hand_key(entity)]
        return command("EVALSHA", digest, 2, *keys, *fixed, *row.values(), rows.TTL_MS)

    requests = pipelines(call(entity, row) for entity, row in updates)
    return Workload("EVALSHA", requests, {"evalsha": 1}, check=check_ids)


def check_ids(index: int, replies: list) -> None:
    for reply in replies:
        if not isinstance(reply, bytes) or not re.fullmatch(rb"\d+-\d+", reply):
            raise BenchError(f"a write answered {reply} instead of a stream id")


def check_log_entries(server: Server, view: View, native_only: bool) -> None:
    """Both logs hold the same kind of entries, and about as many as they may."""
    logs = [view.hand_stream] if native_only else [view.hand_stream, view.stream]
    for log in logs:
        length = server.call("XLEN", log)
        if not LOG_LENGTH_MAX <= length <= LOG_LENGTH_MAX * 1.2:
            raise BenchError(f"{log} holds {length} entries with MAXLEN {LOG_LENGTH_MAX}")
        for _, fields in server.call("XREVRANGE", log, "+", "-", "COUNT", 100):
            entry = dict(zip(map(bytes.decode, fields[::2]), map(bytes.decode, fields[1::2]), strict=True))
            features = json.loads(entry["features"])
            kinds = {name: type(value) for name, value in features.items()}
            wanted = {name: type(rows.typed_value(kind, "1")) for name, kind in view.features.items()}
            number = (int, float)
            alike = all(kinds.get(n) is t or {kinds.get(n), t} <= set(number) for n, t in wanted.items())
            if not alike or entry["feature_view"] != view.name or not entry["entity_id"].startswith("user_"):
                raise BenchError(f"{log} holds an entry of another kind: {entry}")
            if not float(entry["timestamp"]) > 1e9:
                raise BenchError(f"{log} holds an entry without a time: {entry}")


def check_same_copy(server: Server, replica: Replica, view: View, updates: list[tuple[str, Row]]) -> None:
    """The replica holds the same rows and logs as the primary."""
    replica.catch_up()
    keys = [
        key for entity, _ in updates[: 20 * PIPELINE] for key in (view.key(entity), view.hand_key(entity))
    ]
    for key in keys:
        ours, theirs = (sorted(pairs(copy.call("HGETALL", key))) for copy in (server, replica))
        if ours != theirs or server.call("PEXPIRETIME", key) != replica.call("PEXPIRETIME", key):
            raise BenchError(f"the replica holds another {key}: {theirs} instead of {ours}")
    for log in (view.stream, view.hand_stream):
        ours, theirs = (copy.call("XREVRANGE", log, "+", "-", "COUNT", 5000) for copy in (server, replica))
        if ours != theirs or server.call("XLEN", log) != replica.call("XLEN", log):
            raise BenchError(f"the replica holds another {log}")


def pairs(reply: list) -> list[tuple]:
    return list(zip(reply[::2], reply[1::2], strict=True))
