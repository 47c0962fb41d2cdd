"""The consumer: what becomes of plain XADDs, whoever else works on the stream.

The oracle is a simple reading of the contract: per feature the value with the greatest event time, at equal times the
later arrival. It is computed here, from what was sent or from XRANGE; rows and groups are read with native commands.
"""

import contextlib
import itertools
import json
import os
import random
import socket
import threading
import time

import pytest
import valkey

from server import await_until

LOG, DEAD_LETTERS, GROUP = "fs:stream:profile", "fs:dlq:profile", "fs"
MODULE = os.environ.get("FS_MODULE")
SCHEMA = ("n", "INT", "score", "FLOAT", "label", "STRING")
# A day in the past: never FUTURE, and older than anything unstamped.
EPOCH_S = 1_760_000_000


def register(client, *options, view="profile", version=1, schema=SCHEMA):
    words = ("VERSION", version, "ENTITY", "user", *options, "SCHEMA", *schema)
    assert client.execute_command("FS.REGISTER", view, *words) == b"OK"


def entry(entity, features, timestamp=None):
    """The fields of an XADD as the contract wants them; the view may be left out."""
    fields = {"entity_id": entity, "features": features if isinstance(features, str) else json.dumps(features)}
    return fields | ({} if timestamp is None else {"timestamp": timestamp})


def add(client, entity, features, timestamp=None, log=LOG, id="*"):
    return client.xadd(log, entry(entity, features, timestamp), id=id)


def add_many(client, count, entities=50, start=0, log=LOG):
    with client.pipeline(transaction=False) as pipeline:
        for i in range(start, start + count):
            add(pipeline, f"u{i % entities}", {"n": i}, EPOCH_S + i, log=log)
        return pipeline.execute()


def figures(client, *view):
    """FS.INFO of the view `profile` or another one."""
    return pairs(client.execute_command("FS.INFO", *(view or ("profile",))))


def module_figures(client):
    return pairs(client.execute_command("FS.INFO"))


def pairs(flat):
    return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def consumer(client, action, view="profile"):
    assert client.execute_command("FS.CONSUMER", action, view) == b"OK"


def group(client, log=LOG):
    """The group `fs` as XINFO GROUPS tells it; {} where there is none."""
    with contextlib.suppress(valkey.ResponseError):
        return next((g for g in client.xinfo_groups(log) if g["name"] == b"fs"), {})
    return {}


def await_drained(client, log=LOG, timeout_s=30):
    """Waits until the group says that all was read: no lag, and as many entries read as were ever added."""

    def is_drained():
        at = group(client, log)
        return at.get("lag") == 0 and at["entries-read"] == client.xinfo_stream(log)["entries-added"]

    await_until(is_drained, timeout_s, what=f"the group fs to reach the end of {log}")


def newest(arrivals):
    """Rows by the contract, from (entity, {feature: value}, event time) in the order of arrival."""
    held = {}
    for entity, features, time_s in arrivals:
        row = held.setdefault(entity, {})
        for feature, value in features.items():
            if feature not in row or time_s >= row[feature][0]:
                row[feature] = (time_s, value)
    rows = {entity: {f: v for f, (_, v) in row.items() if v is not None} for entity, row in held.items()}
    return {entity: row for entity, row in rows.items() if row}


def rows_by_entries(client, until="+", log=LOG):
    """What the rows must hold by the entries that are in the stream."""
    return newest(
        (fields[b"entity_id"].decode(), json.loads(fields[b"features"]), float(fields[b"timestamp"]))
        for _, fields in client.xrange(log, max=until)
    )


def rows(client, prefix="fs:v1:profile:"):
    """The rows as HGETALL tells them, the row's own fields left out."""
    kinds = {"n": int, "score": float}
    keys = list(client.scan_iter(match=f"{prefix}*", count=1000))
    with client.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.hgetall(key)
        found = {}
        for key, row in zip(keys, pipeline.execute(), strict=True):
            fields = {f.decode(): v.decode() for f, v in row.items() if not f.startswith(b"_")}
            if fields:
                found[key.decode().removeprefix(prefix)] = {f: kinds.get(f, str)(v) for f, v in fields.items()}
    return found


@pytest.fixture
def store(fresh_server):
    """A server with the view `profile`, that sweeps often; its figures begin at 0."""
    server = fresh_server({"fs.sweep-interval": 20})
    register(server.client(), "MAXLEN", 1_000_000)
    return server


# What XADD brings


def test_a_plain_xadd_becomes_a_row(store):
    client = store.client()
    id = add(client, "u1", {"n": 3, "score": 0.5, "label": "a b"}, "1760000000.25")
    await_drained(client)
    assert client.hgetall("fs:v1:profile:u1") == {
        b"n": b"3",
        b"score": b"0.5",
        b"label": b"a b",
        b"_updated_at": b"1760000000.25",
        b"_feature_view": b"profile",
    }
    told = figures(client)
    assert (told["cursor"], told["lag_entries"], told["lag_ms"]) == (id, 0, 0)
    assert (told["consumed"], told["dead_letters"], told["lost_entries"]) == (1, 0, 0)


def test_without_a_timestamp_the_entry_id_tells_the_time(store):
    client = store.client()
    add(client, "u1", {"n": 1}, id="1760000000123-0")
    id = add(client, "u2", {"n": 1})
    await_drained(client)
    assert client.hget("fs:v1:profile:u1", "_updated_at") == b"1760000000.123"
    assert float(client.hget("fs:v1:profile:u2", "_updated_at")) == int(id.split(b"-")[0]) / 1000


def by_pipeline(client, entries):
    with client.pipeline(transaction=False) as pipeline:
        for fields in entries:
            pipeline.xadd(LOG, fields)
        pipeline.execute()


def by_transactions(client, entries):
    for some in itertools.batched(entries, 100) if hasattr(itertools, "batched") else [entries]:
        with client.pipeline() as pipeline:
            for fields in some:
                pipeline.xadd(LOG, fields)
            pipeline.execute()


def by_scripts(client, entries):
    add_all = "for i = 1, #ARGV, 6 do redis.call('XADD', KEYS[1], '*', unpack(ARGV, i, i + 5)) end"
    for i in range(0, len(entries), 100):
        arguments = [word for fields in entries[i : i + 100] for pair in fields.items() for word in pair]
        client.eval(add_all, 1, LOG, *arguments)


@pytest.mark.parametrize("send", [by_pipeline, by_transactions, by_scripts])
def test_thousands_of_xadds_become_rows_however_they_come(store, send):
    client = store.client()
    chance = random.Random(1)
    arrivals = [(f"u{chance.randrange(300)}", {"n": i}, EPOCH_S + chance.randrange(1_000)) for i in range(5_000)]
    send(client, [entry(*arrival) for arrival in arrivals])
    await_drained(client)
    assert rows(client) == newest(arrivals)
    assert figures(client)["consumed"] == 5_000


def test_several_views_and_versions_are_consumed_at_once(store):
    client = store.client()
    views = ["a", "b", "c", "d"]
    for view in views:
        register(client, view=view)
        register(client, view=view, version=3)
        register(client, "CONSUMER", "OFF", view=view, version=2)
    for start in range(0, 2_000, 500):
        for view in views:
            add_many(client, 500, start=start, log=f"fs:stream:{view}")
    for view in views:
        await_drained(client, f"fs:stream:{view}")
        expected = rows_by_entries(client, log=f"fs:stream:{view}")
        assert rows(client, f"fs:v1:{view}:") == rows(client, f"fs:v3:{view}:") == expected
        assert rows(client, f"fs:v2:{view}:") == {}
        assert figures(client, view)["consumed"] == 2_000


OBJECT = '{"n": 1}'
REFUSED = [
    ({"features": OBJECT}, "entity_id"),
    ({"entity_id": "u1"}, "features"),
    ({"entity_id": "", "features": OBJECT}, "0 bytes"),
    ({"entity_id": "x" * 513, "features": OBJECT}, "513"),
    ({"entity_id": "u1", "features": "[1]"}, "object"),
    ({"entity_id": "u1", "features": '"n"'}, "object"),
    ({"entity_id": "u1", "features": ""}, "SCHEMA"),
    ({"entity_id": "u1", "features": '{"n": 1'}, "SCHEMA"),
    ({"entity_id": "u1", "features": b'{"label": "\xff"}'}, "SCHEMA"),
    ({"entity_id": "u1", "features": '{"n": ' + "[" * 100_000}, "SCHEMA"),
    ({"entity_id": "u1", "features": "[" * 100_000 + "]" * 100_000}, "SCHEMA"),
    ({"entity_id": "u1", "features": '{"n": "three"}'}, "'n'"),
    ({"entity_id": "u1", "features": '{"n": 1.5}'}, "'n'"),
    ({"entity_id": "u1", "features": '{"n": 9223372036854775808}'}, "'n'"),
    ({"entity_id": "u1", "features": '{"score": 1e400}'}, "SCHEMA"),
    ({"entity_id": "u1", "features": '{"n": {"a": 1}}'}, "'n'"),
    ({"entity_id": "u1", "features": '{"n": 1, "unknown": 2}'}, "unknown"),
    ({"entity_id": "u1", "features": OBJECT, "timestamp": "yesterday"}, "yesterday"),
    ({"entity_id": "u1", "features": OBJECT, "timestamp": "1760000000000"}, "looks like milliseconds"),
    ({"entity_id": "u1", "features": OBJECT, "timestamp": "-5"}, "-5"),
    ({"entity_id": "u1", "features": OBJECT, "timestamp": "4000000000"}, "FUTURE"),
    ({"entity_id": "u1", "features": OBJECT, "feature_view": "other"}, "other"),
    ({"nothing": "\0\r\n"}, "entity_id"),
]


def test_what_is_no_update_becomes_a_dead_letter_with_its_reason(store):
    client = store.client()
    add(client, "before", {"n": 1}, EPOCH_S)
    ids = [client.xadd(LOG, fields) for fields, _ in REFUSED]
    add(client, "after", {"n": 2}, EPOCH_S)
    await_drained(client)
    letters = client.xrange(DEAD_LETTERS)
    assert len(letters) == len(REFUSED) == figures(client)["dead_letters"] == figures(client)["dlq_length"]
    for (_, letter), id, (fields, reason) in zip(letters, ids, REFUSED, strict=True):
        error = letter.pop(b"error").decode(errors="replace")
        assert reason in error and "profile" in error, (error[:200], reason)
        assert letter.pop(b"source_id") == id
        own = {k.encode(): v if isinstance(v, bytes) else v.encode() for k, v in fields.items()}
        assert letter == own
    assert rows(client) == {"before": {"n": 1}, "after": {"n": 2}}


def test_an_entry_may_be_an_update_of_one_version_only(store):
    client = store.client()
    register(client, version=2, schema=("n", "STRING"))
    register(client, "CONSUMER", "OFF", version=3, schema=("n", "STRING"))
    id = add(client, "u1", {"n": "three"}, EPOCH_S)
    await_drained(client)
    assert client.hget("fs:v2:profile:u1", "n") == b"three"
    assert not client.exists("fs:v1:profile:u1") and not client.exists("fs:v3:profile:u1")
    ((_, letter),) = client.xrange(DEAD_LETTERS)
    assert letter[b"source_id"] == id and b"'n'" in letter[b"error"]


def test_a_key_of_another_type_stops_nothing(store):
    client = store.client()
    client.set("fs:v1:profile:u1", "a string")
    client.set("fs:v1:profile:u2", "another")
    add(client, "u1", {"n": 1})
    add(client, "u3", {"n": 3})
    await_drained(client)
    assert b"WRONGTYPE" in client.xrange(DEAD_LETTERS)[0][1][b"error"]
    # And when the dead letters have no place either.
    client.delete(DEAD_LETTERS)
    client.set(DEAD_LETTERS, "mine")
    add(client, "u2", {"n": 2})
    add(client, "u4", {"n": 4})
    await_drained(client)
    assert (client.get("fs:v1:profile:u1"), client.get(DEAD_LETTERS)) == (b"a string", b"mine")
    assert client.hget("fs:v1:profile:u3", "n") + client.hget("fs:v1:profile:u4", "n") == b"34"
    assert figures(client)["dead_letters"] == 2
    assert "no place among the dead letters" in store.log()


def test_dead_letters_are_capped_like_the_log(fresh_server):
    client = fresh_server().client()
    register(client, "MAXLEN", 200)
    by_pipeline(client, [{"number": i} for i in range(3_000)])
    await_drained(client)
    # Trimming keeps whole blocks of 100 entries.
    assert 200 <= client.xlen(DEAD_LETTERS) <= 300 and 200 <= client.xlen(LOG) <= 300
    assert client.xrevrange(DEAD_LETTERS, count=1)[0][1][b"number"] == b"2999"
    assert (figures(client)["dead_letters"], figures(client)["lost_entries"]) == (3_000, 0)


def test_large_entries_and_ids_are_consumed(store):
    client = store.client()
    entity = bytes(range(256)) * 2
    text = "x" * (1 << 20)
    for i in range(20):
        add(client, "large", {"label": text, "n": i}, EPOCH_S + i)
        client.xadd(LOG, {"entity_id": entity, "features": json.dumps({"n": i}), **{f"f{j}": j for j in range(2_000)}})
    await_drained(client)
    assert client.hmget("fs:v1:profile:large", "label", "n") == [text.encode(), b"19"]
    assert client.hget(b"fs:v1:profile:" + entity, "n") == b"19"
    assert figures(client)["dead_letters"] == 0


def test_updates_too_old_for_the_ttl_are_counted_not_stored(fresh_server):
    client = fresh_server().client()
    register(client, "TTL", "1h")
    now_s = time.time()
    add(client, "old", {"n": 1}, now_s - 3_700)
    add(client, "young", {"n": 1}, now_s - 3_500)
    await_drained(client)
    assert rows(client) == {"young": {"n": 1}}
    assert abs(client.pexpiretime("fs:v1:profile:young") - (now_s + 100) * 1000) <= 1
    assert (figures(client)["expired_on_arrival"], client.xlen(LOG)) == (1, 2)


def test_deeply_nested_json_takes_nothing_down(fresh_server):
    client = fresh_server().client()
    register(client, schema=("l", "LIST"))
    for depth in (10, 100, 100_000):
        add(client, f"u{depth}", '{"l": ' + "[" * depth + "]" * depth + "}")
    await_drained(client)
    told = figures(client)
    assert told["consumed"] == 3
    # Deep lists may be refused, not lost.
    assert len(client.keys("fs:v1:profile:*")) + told["dead_letters"] == 3
    assert client.hget("fs:v1:profile:u10", "l") == b"[" * 10 + b"]" * 10


# Who else works on the stream


def test_other_groups_keep_their_own_cursors(store):
    client = store.client()
    client.xgroup_create(LOG, "feature_writers", id="0", mkstream=True)
    client.xgroup_create(LOG, "idle", id="$")
    read, stop = [], threading.Event()

    def work(name, own):
        while not stop.is_set() or own.xinfo_groups(LOG)[0]["lag"]:
            answer = own.xreadgroup("feature_writers", name, {LOG: ">"}, count=17, block=20)
            ids = [id for _, entries in answer or [] for id, _ in entries]
            read.extend(ids)
            if ids:
                own.xack(LOG, "feature_writers", *ids)

    threads = [threading.Thread(target=work, args=(f"c{i}", store.client())) for i in range(2)]
    for thread in threads:
        thread.start()
    ids = [id for start in range(0, 4_000, 500) for id in add_many(client, 500, start=start)]
    await_drained(client)
    stop.set()
    for thread in threads:
        thread.join()
    assert sorted(read) == sorted(ids)
    groups = {g["name"]: g for g in client.xinfo_groups(LOG)}
    assert set(groups) == {b"feature_writers", b"idle", b"fs"}
    assert (groups[b"feature_writers"]["pending"], groups[b"feature_writers"]["lag"]) == (0, 0)
    assert (groups[b"idle"]["lag"], groups[b"idle"]["pending"]) == (4_000, 0)
    assert (groups[b"fs"]["lag"], groups[b"fs"]["pending"]) == (0, 0)
    assert rows(client) == rows_by_entries(client)


def test_entries_from_before_the_view_was_registered_are_read_from_the_start(fresh_server):
    client = fresh_server().client()
    add_many(client, 1_000)
    client.xgroup_create(LOG, "feature_writers", id="$")
    register(client)
    await_drained(client)
    assert rows(client) == rows_by_entries(client)
    assert figures(client)["consumed"] == 1_000


def test_entries_from_before_the_module_was_loaded_are_read_from_the_start(fresh_server):
    server = fresh_server(module=None)
    client = server.client()
    # Entries 1 to 99 were trimmed by their owner before anybody here could read them: they are not lost to us.
    add_many(client, 1_000)
    client.xtrim(LOG, maxlen=901, approximate=False)
    client.hset("fs:v1:profile:u1", mapping={"n": 5, "_updated_at": EPOCH_S + 5_000, "_feature_view": "profile"})
    expected = rows_by_entries(client) | {"u1": {"n": 5}}
    client.execute_command("MODULE", "LOAD", MODULE)
    register(client)
    await_drained(client)
    assert rows(client) == expected
    assert (figures(client)["consumed"], figures(client)["lost_entries"]) == (901, 0)


GROUP_CHANGES = [
    (("XGROUP", "DESTROY", LOG, GROUP), 0),
    (("XGROUP", "SETID", LOG, GROUP, "0"), 5_000),
    (("XGROUP", "SETID", LOG, GROUP, "0", "ENTRIESREAD", 0), 5_000),
    (("XGROUP", "SETID", LOG, GROUP, "0", "ENTRIESREAD", 5_000), 5_000),
    (("XGROUP", "SETID", LOG, GROUP, "0", "ENTRIESREAD", 9_000), 5_000),
    (("XGROUP", "SETID", LOG, GROUP, "$"), 0),
    (("XGROUP", "CREATECONSUMER", LOG, GROUP, "somebody"), 0),
    (("XGROUP", "CREATE", LOG, "another", "0"), 0),
    (("XGROUP", "DESTROY", LOG, "another"), 0),
]


@pytest.mark.parametrize("command, again", GROUP_CHANGES)
def test_the_group_may_be_changed_by_hand(fresh_server, command, again):
    client = fresh_server().client()
    register(client)
    add_many(client, 5_000)
    await_until(lambda: figures(client)["consumed"] == 5_000, what="the first entries")
    client.execute_command(*command)
    # Entries that FS.PUBLISH applies in its call must not hide those that are still to be read.
    for i in range(100):
        client.execute_command("FS.PUBLISH", "fs:v1:profile:p", "AT", (EPOCH_S + i) * 1000, "n", i)
    add_many(client, 10, start=5_000)
    await_until(lambda: figures(client)["consumed"] >= 5_000 + again + 10, what="all entries")
    await_drained(client)
    assert figures(client)["consumed"] == 5_000 + again + 10
    assert rows(client) == rows_by_entries(client)
    assert figures(client)["lost_entries"] == 0


def test_a_group_made_by_hand_decides_where_reading_begins(fresh_server):
    client = fresh_server().client()
    ids = add_many(client, 100)
    client.xgroup_create(LOG, GROUP, id=ids[59])
    register(client)
    await_until(lambda: figures(client)["lag_entries"] == 0, what="the rest")
    assert figures(client)["consumed"] == 40
    assert (figures(client)["cursor"], figures(client)["lost_entries"]) == (ids[-1], 0)
    await_drained(client)
