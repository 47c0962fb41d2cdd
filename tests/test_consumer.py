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
    fields = {
        "entity_id": entity,
        "features": features if isinstance(features, str) else json.dumps(features),
    }
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


def entries_read(client):
    return group(client).get("entries-read") or 0


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


def rows_by_entries(client, since="-", until="+", log=LOG):
    """What the rows must hold by the entries that are in the stream."""
    return newest(
        (fields[b"entity_id"].decode(), json.loads(fields[b"features"]), float(fields[b"timestamp"]))
        for _, fields in client.xrange(log, since, until)
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
                found[key.decode().removeprefix(prefix)] = {
                    f: kinds.get(f, str)(v) for f, v in fields.items()
                }
    return found


def digests(client, prefix="fs:v1:profile:"):
    return {key: client.execute_command("DEBUG", "DIGEST-VALUE", key) for key in client.keys(f"{prefix}*")}


@pytest.fixture
def store(fresh_server):
    """A server with the view `profile`, that sweeps often; its figures begin at 0."""
    server = fresh_server({"fs.sweep-interval": 20})
    register(server.client(), "MAXLEN", 1_000_000)
    return server


@pytest.fixture
def slow_store(fresh_server):
    """The same with the shortest slices, so that a test can come between them."""
    server = fresh_server({"fs.sweep-interval": 20, "fs.consumer-slice-us": 50})
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
    arrivals = [
        (f"u{chance.randrange(300)}", {"n": i}, EPOCH_S + chance.randrange(1_000)) for i in range(5_000)
    ]
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
        client.xadd(
            LOG, {"entity_id": entity, "features": json.dumps({"n": i}), **{f"f{j}": j for j in range(2_000)}}
        )
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


HAND_WRITTEN = [
    ({"n": "1", "_updated_at": "soon"}, True),
    ({"n": "1", "_updated_at": ""}, True),
    ({"n": "1", "_updated_at": "1e999"}, True),
    ({"n": "1", "_updated_at": "-1760000000"}, True),
    ({"n": "none", "score": b"\xff"}, True),
    ({"n": "1", "_updated_at": f"{EPOCH_S - 1}", "_times": "{"}, True),
    ({"n": "1", "_updated_at": f"{EPOCH_S - 1}", "_times": "[" * 100_000}, True),
    ({"n": "1", "_updated_at": f"{EPOCH_S - 1}", "_times": '{"n": "x", "gone": 5, "n": null}'}, True),
    ({"n": "1", "_updated_at": f"{EPOCH_S + 9}", "_times": f'{{"n": {EPOCH_S - 1}.5}}'}, True),
    ({"n": "1", "_updated_at": f"{EPOCH_S}.000"}, True),
    ({"n": "1", "_updated_at": f"{EPOCH_S}.001"}, False),
    ({"n": "1", "_updated_at": f"{EPOCH_S - 9}", "_times": f'{{"n": {EPOCH_S + 9}}}'}, False),
]


def test_rows_written_by_hand_take_updates_by_event_time(store):
    client = store.client()
    for i, (row, _) in enumerate(HAND_WRITTEN):
        client.hset(f"fs:v1:profile:u{i}", mapping=row)
        add(client, f"u{i}", {"n": 2, "label": "new"}, EPOCH_S)
    await_drained(client)
    for i, (row, wins) in enumerate(HAND_WRITTEN):
        told = client.hmget(f"fs:v1:profile:u{i}", "n", "label")
        assert told == [b"2" if wins else b"1", b"new"], row
    assert figures(client)["dead_letters"] == 0
    assert figures(client)["superseded"] == sum(not wins for _, wins in HAND_WRITTEN)


def test_neighbours_hear_of_what_the_consumer_writes(store):
    client, waiting, watching = store.client(), store.client(), store.client()
    client.execute_command("FS.ALTER", "profile", "TTL", "1d", "MAXLEN", 100)
    client.config_set("notify-keyspace-events", "KEA")
    heard = client.pubsub()
    heard.psubscribe("__keyspace@0__:fs:*")
    letters = []
    thread = threading.Thread(target=lambda: letters.extend(waiting.xread({DEAD_LETTERS: "$"}, block=20_000)))
    thread.start()
    await_until(
        lambda: client.info("clients")["blocked_clients"] == 1, what="somebody to wait for dead letters"
    )
    with watching.pipeline() as pipeline:
        pipeline.watch("fs:v1:profile:u1")
        with client.pipeline() as together:
            for i in range(250):
                add(together, "u1", {"n": i}, time.time())
            add(together, "u1", {"n": "none"})
            together.execute()
        await_drained(client)
        pipeline.multi()
        pipeline.ping()
        with pytest.raises(valkey.WatchError):
            pipeline.execute()
    thread.join()
    assert letters[0][1][0][1][b"entity_id"] == b"u1"
    events = set()

    def listen():
        while message := heard.get_message():
            if message["type"] != "pmessage":
                continue
            events.add((message["channel"].decode().partition(":fs:")[2], message["data"].decode()))
        return expected <= events

    expected = {
        ("v1:profile:u1", "hset"),
        ("v1:profile:u1", "expire"),
        ("dlq:profile", "xadd"),
        ("stream:profile", "xtrim"),
    }
    await_until(listen, 5, what=f"the events {sorted(expected)}")
    # And of nothing else.
    assert {key for key, _ in events} == {"v1:profile:u1", "dlq:profile", "stream:profile"}


def test_keys_that_only_look_like_logs_disturb_nobody(store):
    client = store.client()
    for key in [
        "fs:stream:",
        "fs:stream:Profile",
        "fs:stream:profile:x",
        "fs:stream:a b",
        b"fs:stream:\xff\0",
        "fs:dlq:x",
    ]:
        add(client, "u1", {"n": 1}, log=key)
        client.xgroup_create(key, GROUP, id="0")
        client.delete(key)
    client.execute_command("FS.DROP", "profile")
    add(client, "u1", {"n": 1}, EPOCH_S)
    assert client.xinfo_stream(LOG)["groups"] <= 1
    assert client.keys() == [LOG.encode()]
    register(client)
    await_drained(client)
    assert rows(client) == {"u1": {"n": 1}}


def test_the_last_id_of_all_is_consumed_and_ends_the_log(store):
    client = store.client()
    last = f"{2**64 - 1}-{2**64 - 1}"
    add(client, "u1", {"n": 1}, EPOCH_S, id=f"{2**64 - 1}-5")
    add(client, "u2", {"n": 2}, EPOCH_S, id=last)
    await_drained(client)
    assert rows(client) == {"u1": {"n": 1}, "u2": {"n": 2}}
    assert figures(client)["cursor"] == last.encode()
    held = digests(client, "fs:")
    with pytest.raises(valkey.ResponseError, match="takes no more entries"):
        client.execute_command("FS.PUBLISH", "fs:v1:profile:u1", "n", 5)
    assert digests(client, "fs:") == held
    assert client.execute_command("FS.CONSUME", "profile") == [0, last.encode()]
    assert client.execute_command("FS.REPLAY", "profile", "FROM", last) == 1
    client.delete(LOG)
    assert client.execute_command("FS.PUBLISH", "fs:v1:profile:u1", "n", 5)


def test_background_work_leaves_the_server_to_its_clients(fresh_server):
    server = fresh_server()
    client, caller = server.client(), server.client()
    for view in ("profile", "b", "c"):
        register(client, "MAXLEN", 1_000_000, view=view)
        consumer(client, "STOP", view)
        add_many(client, 20_000, entities=20_000, log=f"fs:stream:{view}")
    register(client, view="gone")
    for start in range(0, 40_000, 1_000):
        client.eval(
            "for i = 1, 1000 do redis.call('HSET', KEYS[1] .. (ARGV[1] + i), 'n', i) end",
            1,
            "fs:v1:gone:",
            start,
        )
    thread = threading.Thread(target=lambda: caller.execute_command("FS.REPLAY", "profile", "FROM", "0"))
    thread.start()
    client.config_resetstat()
    began = time.monotonic()
    client.execute_command("FS.DROP", "gone", "DATA")
    for view in ("profile", "b", "c"):
        consumer(client, "START", view)
    for view in ("profile", "b", "c"):
        await_drained(client, f"fs:stream:{view}", timeout_s=60)
    await_until(lambda: module_figures(client)["dropping"] == 0, what="the drop to end")
    thread.join()
    # All of it took a while, no turn of the event loop did. Other processes may hold up one turn, not by that much.
    spent_ms, longest_ms = (
        (time.monotonic() - began) * 1000,
        client.info("debug")["eventloop_duration_max"] / 1000,
    )
    assert longest_ms < spent_ms / 10


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
    client.hset(
        "fs:v1:profile:u1", mapping={"n": 5, "_updated_at": EPOCH_S + 5_000, "_feature_view": "profile"}
    )
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
    await_until(lambda: figures(client)["consumed"] >= 5_000 + again + 10, 5, what="all entries")
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


def test_a_wrong_count_of_read_entries_hides_none(fresh_server):
    client = fresh_server().client()
    register(client)
    add_many(client, 10)
    await_drained(client)
    consumer(client, "STOP")
    add_many(client, 5_000)
    client.execute_command("XGROUP", "SETID", LOG, GROUP, "0", "ENTRIESREAD", 5_010)
    consumer(client, "START")
    for _ in range(3):
        # Each makes the consumer look anew.
        consumer(client, "STOP")
        consumer(client, "START")
        client.execute_command("FS.PUBLISH", "fs:v1:profile:p", "AT", EPOCH_S * 1000, "n", 0)
    await_until(lambda: figures(client)["consumed"] == 10 + 5_010, 5, what="all entries")
    await_drained(client)
    assert rows(client) == rows_by_entries(client)


# Streams that come and go


def feed(client, log, ids):
    """Entries with these ids, one row each."""
    for id in ids:
        add(client, f"e{id}", {"n": 1}, EPOCH_S, log=log, id=id)
    return {f"e{id}": {"n": 1} for id in ids}


def ids_around(client):
    """Ids before and after those in the log, as a second producer's stream holds them."""
    ms = int(client.xinfo_stream(LOG)["last-generated-id"].split(b"-")[0])
    return ["1-1", "2-1", f"{ms - 60_000}-0", f"{ms + 1}-0", f"{ms + 2}-5"]


def deleted(client, ids):
    client.delete(LOG)
    return feed(client, LOG, ids)


def deleted_in_a_transaction(client, ids):
    with client.pipeline() as pipeline:
        pipeline.delete(LOG)
        expected = feed(pipeline, LOG, ids)
        pipeline.execute()
    return expected


def renamed(client, ids):
    expected = feed(client, "incoming", ids)
    client.rename("incoming", LOG)
    return expected


def copied(client, ids):
    expected = feed(client, "incoming", ids)
    client.copy("incoming", LOG, replace=True)
    return expected


def restored(client, ids):
    expected = feed(client, "incoming", ids)
    client.restore(LOG, 0, client.dump("incoming"), replace=True)
    return expected


def copied_from_another_database(client, ids):
    expected = feed(client, "incoming", ids)
    client.move("incoming", 1)
    client.select(1)
    client.execute_command("COPY", "incoming", LOG, "DB", 0, "REPLACE")
    client.select(0)
    return expected


def overwritten(client, ids):
    client.set(LOG, "no stream")
    with pytest.raises(valkey.ResponseError, match="WRONGTYPE"):
        client.execute_command("FS.PUBLISH", "fs:v1:profile:p", "n", 1)
    client.delete(LOG)
    return feed(client, LOG, ids)


def expired(client, ids):
    client.pexpire(LOG, 1)
    await_until(lambda: not client.exists(LOG), what="the log to expire")
    return feed(client, LOG, ids)


def swapped(client, ids):
    client.select(1)
    expected = feed(client, LOG, ids)
    client.select(0)
    client.swapdb(0, 1)
    return expected


def flushed(client, ids):
    client.flushall()
    return feed(client, LOG, ids)


REPLACEMENTS = [
    deleted,
    deleted_in_a_transaction,
    renamed,
    copied,
    restored,
    copied_from_another_database,
    overwritten,
    expired,
    swapped,
    flushed,
]


@pytest.mark.parametrize("replace", REPLACEMENTS, ids=lambda f: f.__name__)
def test_another_stream_under_the_key_is_read_from_its_start(store, replace):
    client = store.client(single_connection_client=True)
    add_many(client, 10)
    await_drained(client)
    expected = replace(client, ids_around(client))
    await_until(lambda: expected.items() <= rows(client).items(), 5, what=f"the rows {sorted(expected)}")
    await_drained(client)
    assert figures(client)["lost_entries"] == 0
    add(client, "last", {"n": 2}, EPOCH_S)
    await_until(lambda: "last" in rows(client), what="the row of a later entry")


@pytest.mark.parametrize("replace", [deleted, renamed], ids=lambda f: f.__name__)
def test_a_stopped_consumer_reads_another_stream_from_its_start_as_well(store, replace):
    client = store.client(single_connection_client=True)
    add_many(client, 10)
    await_drained(client)
    consumer(client, "STOP")
    expected = replace(client, ids_around(client))
    consumer(client, "START")
    await_until(lambda: expected.items() <= rows(client).items(), 5, what=f"the rows {sorted(expected)}")


def test_a_stream_that_brings_its_own_group_goes_on_from_there(store):
    client = store.client()
    ids = add_many(client, 10, log="fs:stream:elsewhere")
    client.xgroup_create("fs:stream:elsewhere", GROUP, id=ids[6], entries_read=7)
    add_many(client, 5)
    await_drained(client)
    client.delete(*client.keys("fs:v1:*"))
    client.rename("fs:stream:elsewhere", LOG)
    await_drained(client)
    assert sorted(rows(client)) == ["u7", "u8", "u9"]
    assert (figures(client)["consumed"], figures(client)["lost_entries"]) == (5 + 3, 0)


def test_the_log_in_another_database_is_none(store):
    client, elsewhere = store.client(), store.client(db=1)
    add_many(elsewhere, 10)
    with pytest.raises(valkey.ResponseError, match="database 0"):
        elsewhere.execute_command("FS.CONSUME", "profile")
    add(client, "u1", {"n": 1})
    await_drained(client)
    assert figures(client)["consumed"] == 1
    assert elsewhere.keys() == [LOG.encode()] and elsewhere.xinfo_groups(LOG) == []


# What is removed before it was read


def trim_exactly(client):
    client.xtrim(LOG, maxlen=250, approximate=False)


def trim_by_id(client):
    client.xtrim(LOG, minid=client.xrevrange(LOG)[249][0], approximate=False)


def trim_while_adding(client):
    client.xadd(LOG, entry("u1", {"n": 1}), maxlen=251, approximate=False)


def delete_the_first(client):
    client.xdel(LOG, *[id for id, _ in client.xrange(LOG)[:-250]])


def delete_the_last(client):
    client.xdel(LOG, *[id for id, _ in client.xrange(LOG)[250:]])


def delete_some_between(client):
    ids = [id for id, _ in client.xrange(LOG)]
    client.xdel(LOG, *ids[:50], *ids[200:650], *ids[-250:])


def delete_all(client):
    client.xdel(LOG, *[id for id, _ in client.xrange(LOG)])


REMOVALS = [
    (trim_exactly, 750),
    (trim_by_id, 750),
    (trim_while_adding, 750),
    (delete_the_first, 750),
    (delete_the_last, 750),
    (delete_some_between, 750),
    (delete_all, 1_000),
]


@pytest.mark.parametrize("remove, lost", REMOVALS, ids=lambda p: getattr(p, "__name__", p))
def test_entries_removed_ahead_of_the_cursor_are_counted_exactly(store, remove, lost):
    client = store.client()
    add_many(client, 300)
    await_drained(client)
    consumer(client, "STOP")
    client.xtrim(LOG, maxlen=0, approximate=False)
    add_many(client, 1_000)
    remove(client)
    left = client.xlen(LOG)
    consumer(client, "START")
    await_until(lambda: figures(client)["lost_entries"], 5, what="the loss to be counted")
    told = figures(client)
    assert (told["lost_entries"], told["consumed"], told["lag_entries"]) == (lost, 300 + left, 0)
    assert (
        f"fs: {lost} entries of view 'profile' were removed from the log before they were consumed"
        in store.log()
    )
    # Counted once, however often somebody looks again.
    client.execute_command("XGROUP", "DESTROY", LOG, GROUP)
    add_many(client, 10)
    await_drained(client)
    assert figures(client)["lost_entries"] == lost


@pytest.mark.parametrize("remove", [remove for remove, _ in REMOVALS], ids=lambda f: f.__name__)
def test_the_group_has_no_lag_at_the_end_whatever_was_removed(store, remove):
    client = store.client()
    add_many(client, 300)
    await_drained(client)
    consumer(client, "STOP")
    add_many(client, 700)
    remove(client)
    consumer(client, "START")
    await_until(lambda: figures(client)["lost_entries"], 5, what="the loss to be counted")
    await_drained(client, timeout_s=2)


def test_entries_that_a_consumer_stopped_from_the_beginning_never_saw_are_lost_as_well(store):
    client = store.client()
    consumer(client, "STOP")
    add_many(client, 1_000)
    client.xtrim(LOG, maxlen=250, approximate=False)
    consumer(client, "START")
    await_drained(client)
    assert (figures(client)["consumed"], figures(client)["lost_entries"]) == (250, 750)


def test_a_loss_is_counted_once_however_it_comes_about(store):
    client = store.client()
    add_many(client, 10)
    await_drained(client)
    consumer(client, "STOP")
    add_many(client, 1_000)
    client.xtrim(LOG, maxlen=250, approximate=False)
    # The consumer looks at what is left, and then that goes too.
    client.execute_command("XGROUP", "DESTROY", LOG, GROUP)
    await_until(lambda: group(client), what="the group to be made again")
    client.delete(LOG)
    consumer(client, "START")
    add_many(client, 10)
    await_drained(client)
    assert (figures(client)["lost_entries"], figures(client)["consumed"]) == (1_000, 20)


EVENTS_OF_THE_KEY = [
    [("PEXPIREAT", LOG, 4_000_000_000_000)],
    [("EXPIRE", LOG, 1_000), ("PERSIST", LOG)],
    [("RENAME", LOG, "elsewhere"), ("RENAME", "elsewhere", LOG)],
    [("COPY", LOG, "elsewhere"), ("DEL", "elsewhere")],
    [("MOVE", LOG, 1), ("SWAPDB", 0, 1), ("MOVE", LOG, 1), ("SWAPDB", 0, 1)],
    [("TOUCH", LOG), ("OBJECT", "FREQ", LOG), ("DUMP", LOG), ("XINFO", "STREAM", LOG, "FULL")],
    [("XSETID", LOG, "9999999999999-0")],
]


@pytest.mark.parametrize("commands", EVENTS_OF_THE_KEY, ids=lambda c: c[0][0])
def test_what_happens_to_the_key_but_not_to_its_entries_loses_none(store, commands):
    client = store.client()
    add_many(client, 100)
    await_drained(client)
    consumer(client, "STOP")
    add_many(client, 100, start=100)
    for command in commands:
        with contextlib.suppress(valkey.ResponseError):
            client.execute_command(*command)
    consumer(client, "START")
    await_until(
        lambda: figures(client)["consumed"] >= 200 and figures(client)["lag_entries"] == 0, 5, "all entries"
    )
    # A group that is lost later is made again where the consumer stood.
    client.execute_command("XGROUP", "DESTROY", LOG, GROUP)
    add_many(client, 100, start=200)
    await_drained(client)
    assert (figures(client)["consumed"], figures(client)["lost_entries"]) == (300, 0)
    assert rows(client) == rows_by_entries(client)


def test_entries_removed_after_they_were_read_are_not_lost(store):
    client = store.client()
    ids = add_many(client, 500)
    await_drained(client)
    client.xdel(LOG, *ids[10:20], ids[-1])
    client.xtrim(LOG, maxlen=100, approximate=False)
    add_many(client, 10)
    await_drained(client)
    client.xtrim(LOG, maxlen=0, approximate=False)
    add_many(client, 10)
    await_drained(client)
    assert (figures(client)["lost_entries"], figures(client)["consumed"]) == (0, 520)


@pytest.mark.parametrize("restart", [False, True])
def test_own_trimming_never_drops_what_is_not_consumed(fresh_server, restart):
    server = fresh_server()
    client = server.client()
    register(client, "MAXLEN", 100)
    add_many(client, 50)
    await_drained(client)
    consumer(client, "STOP")
    arrivals = []
    for i in range(500):
        arrivals += [(f"x{i}", {"n": i}, EPOCH_S), (f"p{i}", {"n": i}, EPOCH_S)]
        add(client, *arrivals[-2])
        client.execute_command("FS.PUBLISH", f"fs:v1:profile:p{i}", "AT", EPOCH_S * 1000, "n", i)
    client.execute_command("FS.TRIM", "profile", "MAXLEN", 0)
    if restart:
        server.restart()
        client = server.client()
        client.execute_command("FS.PUBLISH", "fs:v1:profile:p", "AT", EPOCH_S * 1000, "n", 1)
        client.execute_command("FS.TRIM", "profile", "MAXLEN", 0)
    assert client.xlen(LOG) == 1_000 + restart
    consumer(client, "START")
    await_drained(client)
    expected = (
        newest(arrivals) | {f"u{i}": {"n": i} for i in range(50)} | ({"p": {"n": 1}} if restart else {})
    )
    assert rows(client) == expected
    assert (figures(client)["lost_entries"], client.xlen(LOG) <= 200) == (0, True)


@pytest.mark.parametrize("node_entries", [1, 100])
@pytest.mark.parametrize("maxlen", [1, 10, 300])
def test_a_short_log_loses_nothing_however_writers_take_turns(fresh_server, maxlen, node_entries):
    # With blocks of one entry trimming is exact.
    client = fresh_server({"stream-node-max-entries": node_entries}).client()
    register(client, "MAXLEN", maxlen)
    chance, added = random.Random(maxlen + node_entries), 0
    for _ in range(60):
        with client.pipeline(transaction=chance.random() < 0.5) as pipeline:
            for _ in range(chance.randrange(1, 60)):
                added += 1
                if chance.random() < 0.5:
                    add(pipeline, f"x{added}", {"n": added}, EPOCH_S)
                else:
                    key = f"fs:v1:profile:p{added}"
                    pipeline.execute_command("FS.PUBLISH", key, "AT", EPOCH_S * 1000, "n", added)
            pipeline.execute()
    await_drained(client)
    assert sorted(row["n"] for row in rows(client).values()) == list(range(1, added + 1))
    assert figures(client)["lost_entries"] == 0
    # Once all is read, the next publish trims to the length that was asked for, but for one block.
    client.execute_command("FS.PUBLISH", "fs:v1:profile:last", "n", 1)
    assert client.xlen(LOG) <= maxlen + node_entries


@pytest.mark.parametrize("seed", range(8))
def test_every_entry_is_consumed_or_lost_and_none_is_counted_twice(fresh_server, seed):
    server = fresh_server({"fs.sweep-interval": 10, "fs.consumer-slice-us": 50, "stream-node-max-entries": 7})
    client, chance = server.client(), random.Random(seed)
    register(client, "MAXLEN", 200)
    added = 0

    def xadd():
        nonlocal added
        count = chance.choice([1, 5, 300])
        add_many(client, count)
        added += count

    def xdel():
        ids = [id for id, _ in client.xrange(LOG, count=400)]
        client.xdel(LOG, *chance.sample(ids, len(ids) // 3), "1-1")

    moves = [
        xadd,
        xadd,
        xadd,
        xdel,
        lambda: client.xtrim(LOG, maxlen=chance.choice([0, 10, 150]), approximate=False),
        lambda: client.xtrim(LOG, maxlen=50, approximate=True),
        lambda: client.execute_command("FS.TRIM", "profile", "MAXLEN", chance.choice([0, 10, 150])),
        lambda: client.execute_command("FS.CONSUME", "profile", "COUNT", chance.choice([1, 70, 1_000])),
        lambda: client.execute_command("FS.ALTER", "profile", "MAXLEN", chance.choice([1, 50, 500])),
        lambda: client.exists(LOG) and client.execute_command("XGROUP", "DESTROY", LOG, GROUP),
        lambda: consumer(client, "STOP"),
        lambda: consumer(client, "START"),
        lambda: time.sleep(0.02),
    ]
    for _ in range(200):
        chance.choice(moves)()
    consumer(client, "START")
    xadd()
    await_drained(client)
    told = figures(client)
    assert told["consumed"] + told["lost_entries"] == added, told


def stopped_after_a_look(server, client):
    add_many(client, 10)
    await_drained(client)
    consumer(client, "STOP")
    return client


def stopped_before_the_first_look(server, client):
    consumer(client, "STOP")
    add_many(client, 10)
    return client


def stopped_and_restarted(server, client):
    stopped_after_a_look(server, client)
    server.restart()
    return server.client()


STOPS = [stopped_after_a_look, stopped_before_the_first_look, stopped_and_restarted]


@pytest.mark.parametrize("stop", STOPS, ids=lambda f: f.__name__)
def test_the_hard_cap_drops_and_counts(fresh_server, stop):
    server = fresh_server({"fs.log-hard-cap": 500})
    client = server.client()
    register(client, "MAXLEN", 100)
    client = stop(server, client)
    before = figures(client)["consumed"]
    client.execute_command("FS.TRIM", "profile", "MAXLEN", 0)
    waiting = figures(client)["lag_entries"]
    add_many(client, 2_000, entities=2_000)
    client.execute_command("FS.PUBLISH", "fs:v1:profile:p", "AT", EPOCH_S * 1000, "n", 1)
    client.execute_command("FS.PUBLISH", "fs:v1:profile:p", "AT", EPOCH_S * 1000, "n", 2)
    left = client.xlen(LOG)
    # Trimming keeps whole blocks of 100 entries.
    assert 500 <= left <= 600
    kept = rows_by_entries(client)
    consumer(client, "START")
    await_drained(client)
    assert kept.items() <= rows(client).items()
    told = figures(client)
    assert (told["lost_entries"], told["consumed"] - before) == (2_002 + waiting - left, left - 2)
    # A larger cap keeps more.
    client.config_set("fs.log-hard-cap", 5_000)
    consumer(client, "STOP")
    add_many(client, 2_000, entities=2_000)
    client.execute_command("FS.PUBLISH", "fs:v1:profile:p", "AT", EPOCH_S * 1000, "n", 1)
    assert client.xlen(LOG) >= 2_001


def test_what_publishing_trims_while_nobody_consumes_is_not_lost(store):
    client = store.client()
    register(client, "MAXLEN", 100, view="quiet")
    client.execute_command("FS.PUBLISH", "fs:v1:quiet:u1", "n", 0)
    await_drained(client, "fs:stream:quiet")
    client.execute_command("FS.ALTER", "quiet", "CONSUMER", "OFF")
    for i in range(1_000):
        client.execute_command("FS.PUBLISH", "fs:v1:quiet:u1", "n", i)
    client.execute_command("FS.ALTER", "quiet", "CONSUMER", "ON")
    await_drained(client, "fs:stream:quiet")
    assert client.xlen("fs:stream:quiet") <= 200
    assert figures(client, "quiet")["lost_entries"] == 0


# Commands on consumers


def test_consuming_by_hand_goes_step_by_step(store):
    client = store.client()
    consumer(client, "STOP")
    assert client.execute_command("FS.CONSUME", "profile") == [0, None]
    ids = add_many(client, 2_500)
    done = 0
    for count in (1, 2, 127, 128, 129, 1):
        done += count
        assert client.execute_command("FS.CONSUME", "profile", "COUNT", count) == [count, ids[done - 1]]
        assert group(client)["last-delivered-id"] == ids[done - 1]
        assert (group(client)["entries-read"], group(client)["lag"]) == (done, 2_500 - done)
        assert figures(client)["lag_entries"] == 2_500 - done
        assert rows(client) == rows_by_entries(client, until=ids[done - 1])
    with client.pipeline() as pipeline:
        pipeline.execute_command("FS.CONSUME", "profile")
        pipeline.xlen(LOG)
        assert pipeline.execute()[0] == [1_000, ids[done + 999]]
    script = "return redis.call('FS.CONSUME', 'profile', 'COUNT', '10000')"
    assert client.eval(script, 0) == [2_500 - done - 1_000, ids[-1]]
    assert client.execute_command("FS.CONSUME", "profile", "COUNT", 5) == [0, ids[-1]]
    assert (figures(client)["consumer"], figures(client)["consumed"]) == (b"stopped", 2_500)
    for words in (["COUNT", 0], ["COUNT", -1], ["COUNT", "x"], ["COUNT"], ["COUNT", 1, 2]):
        with pytest.raises(valkey.ResponseError):
            client.execute_command("FS.CONSUME", "profile", *words)


def test_consuming_by_hand_while_the_consumer_runs_applies_nothing_twice(slow_store):
    client = slow_store.client()
    for start in range(0, 20_000, 2_000):
        add_many(client, 2_000, start=start)
        client.execute_command("FS.CONSUME", "profile", "COUNT", 300)
    await_drained(client)
    assert figures(client)["consumed"] == 20_000
    assert rows(client) == rows_by_entries(client)


def test_a_stopped_consumer_stands_still_and_goes_on_where_it_stood(slow_store):
    client = slow_store.client()
    add_many(client, 20_000)
    for _ in range(5):
        before = figures(client)["consumed"]
        await_until(lambda least=before + 500: figures(client)["consumed"] > least, what="some progress")
        consumer(client, "STOP")
        told = figures(client)
        assert told["lag_entries"] > 0, "it was over before it was stopped"
        assert (told["consumer"], told["lag_ms"] > 0) == (b"stopped", True)
        assert rows(client) == rows_by_entries(client, until=told["cursor"])
        assert figures(client) | {"lag_ms": 0} == told | {"lag_ms": 0}
        consumer(client, "START")
    consumer(client, "START")
    await_drained(client)
    assert figures(client)["consumed"] == 20_000


def test_a_deleted_row_is_not_brought_back_by_the_backlog(store):
    client = store.client()
    register(client, version=2)
    consumer(client, "STOP")
    add(client, "a", {"n": 1}, EPOCH_S)
    add(client, "b", {"n": 1}, EPOCH_S)
    client.execute_command("FS.PUBLISH", "fs:v1:profile:a", "label", "x")
    # Row a is there, row b is not yet: both are deleted as far as the backlog goes, under version 1 alone.
    assert client.execute_command("FS.DEL", "fs:v1:profile:a", "fs:v1:profile:b") == 1
    add(client, "b", {"n": 2}, EPOCH_S - 50)
    assert figures(client)["tombstones"] == 2
    consumer(client, "START")
    await_drained(client)
    assert rows(client) == {"b": {"n": 2}}
    assert rows(client, "fs:v2:profile:") == {"a": {"n": 1}, "b": {"n": 1}}
    add(client, "a", {"n": 3}, EPOCH_S - 99)
    await_until(lambda: rows(client).get("a") == {"n": 3}, what="the row of a later entry")
    await_until(lambda: figures(client)["tombstones"] == 0, what="the deletions to be forgotten")


def test_deleting_in_full_flow_and_in_one_transaction_with_entries(store):
    client = store.client()
    for i in range(200):
        with client.pipeline() as pipeline:
            for j in range(20):
                add(pipeline, f"e{i}-{j % 4}", {"n": j}, EPOCH_S + j)
            pipeline.execute_command("FS.DEL", f"fs:v1:profile:e{i}-0", f"fs:v1:profile:e{i}-1")
            add(pipeline, f"e{i}-1", {"n": -1}, EPOCH_S)
            pipeline.execute()
    await_drained(client)
    expected = {f"e{i}-{j}": {"n": n} for i in range(200) for j, n in ((1, -1), (2, 18), (3, 19))}
    assert rows(client) == expected


def flush_another_database(server):
    server.client(db=1).set("k", "v")
    server.client(db=1).flushdb()


def swap_other_databases(server):
    server.client().swapdb(1, 2)


def make_the_log_anew(server):
    # With ids below those that the deletion saw.
    server.client().delete(LOG)


@pytest.mark.parametrize("happen", [flush_another_database, swap_other_databases], ids=lambda f: f.__name__)
def test_a_deletion_outlives_what_happens_in_other_databases(store, happen):
    client = store.client()
    consumer(client, "STOP")
    add(client, "gone", {"n": 1}, EPOCH_S)
    add(client, "kept", {"n": 1}, EPOCH_S)
    client.execute_command("FS.DEL", "fs:v1:profile:gone")
    happen(store)
    consumer(client, "START")
    await_drained(client)
    assert rows(client) == {"kept": {"n": 1}}


def test_a_deletion_does_not_hide_entries_of_a_new_log(store):
    client = store.client()
    consumer(client, "STOP")
    add(client, "u1", {"n": 1}, EPOCH_S)
    client.execute_command("FS.DEL", "fs:v1:profile:u1")
    client.delete(LOG)
    add(client, "u1", {"n": 2}, EPOCH_S, id="1-1")
    consumer(client, "START")
    await_drained(client)
    assert rows(client) == {"u1": {"n": 2}}


def test_trimming_by_command_spares_what_is_not_consumed(store):
    client = store.client()
    add_many(client, 100)
    await_drained(client)
    consumer(client, "STOP")
    add_many(client, 50)
    assert client.execute_command("FS.TRIM", "profile", "MAXLEN", 120) == 30
    assert client.execute_command("FS.TRIM", "profile", "MAXLEN", 0) == 70
    assert client.execute_command("FS.TRIM", "profile", "MAXLEN", 0) == 0
    assert client.xlen(LOG) == 50
    consumer(client, "START")
    await_drained(client)
    assert client.execute_command("FS.TRIM", "profile", "MAXLEN", 0) == 50
    assert (figures(client)["lost_entries"], figures(client)["consumed"]) == (0, 150)


# Replay


def test_a_replay_makes_rows_again_and_fills_a_new_version(store):
    client = store.client()
    chance = random.Random(3)
    for i in range(1_500):
        time_s = EPOCH_S + chance.randrange(99)
        client.execute_command("FS.PUBLISH", f"fs:v1:profile:u{i % 40}", "AT", time_s * 1000, "n", i)
        add(client, f"u{i % 31}", {"score": i / 8}, EPOCH_S + chance.randrange(99))
    await_drained(client)
    expected, held = rows_by_entries(client), digests(client)
    assert rows(client) == expected
    client.delete(*held)
    assert client.execute_command("FS.REPLAY", "profile", "FROM", "0") == 3_000
    assert (rows(client), digests(client)) == (expected, held)
    # Into another version, from the middle; what is no update of it is passed over.
    register(client, version=2, schema=("n", "FLOAT", "score", "FLOAT"))
    middle = client.xrange(LOG)[1_000][0]
    expected = rows_by_entries(client, since=middle)
    add(client, "u1", {"label": "of version 1 only"}, EPOCH_S)
    await_drained(client)
    assert client.execute_command("FS.REPLAY", "profile", "FROM", middle, "VERSION", 2) == 2_000
    assert rows(client, "fs:v2:profile:") == expected
    # Rows never go back.
    client.execute_command("FS.PUBLISH", "fs:v1:profile:u1", "NOLOG", "n", 77)
    before = digests(client)
    assert client.execute_command("FS.REPLAY", "profile", "FROM", "0", "VERSION", 1) == 3_001
    assert digests(client) == before
    assert figures(client)["cursor"] == client.xrevrange(LOG, count=1)[0][0]


def test_a_replay_is_refused_where_nobody_can_wait(store):
    client = store.client()
    add(client, "u1", {"n": 1}, EPOCH_S)
    await_drained(client)
    with client.pipeline() as pipeline:
        pipeline.execute_command("FS.REPLAY", "profile", "FROM", "0")
        pipeline.ping()
        refusal, pong = pipeline.execute(raise_on_error=False)
    assert isinstance(refusal, valkey.ResponseError) and "MULTI" in str(refusal) and pong is True
    with pytest.raises(valkey.ResponseError, match="script"):
        client.eval("return redis.call('FS.REPLAY', 'profile', 'FROM', '0')", 0)
    for words in (["FROM", "x"], ["FROM"], [], ["FROM", "0", "VERSION", 9], ["FROM", "0", "0"]):
        with pytest.raises(valkey.ResponseError):
            client.execute_command("FS.REPLAY", "profile", *words)
    assert client.execute_command("FS.REPLAY", "profile", "FROM", "99999999999999999") == 0
    assert figures(client)["replaying"] is None


def test_a_replay_goes_on_when_its_caller_goes_away(slow_store):
    client = slow_store.client()
    add_many(client, 30_000)
    register(client, "CONSUMER", "OFF", version=2)
    with socket.create_connection(("127.0.0.1", slow_store.port)) as caller:
        caller.sendall(b"FS.REPLAY profile FROM 0 VERSION 2\r\n")
        replaying = await_until(lambda: figures(client)["replaying"], what="the replay to begin")
        assert pairs(replaying)["version"] == 2
    await_until(lambda: figures(client)["replaying"] is None, 30, what="the replay to end")
    await_drained(client)
    assert rows(client, "fs:v2:profile:") == rows(client) == rows_by_entries(client)


def test_replays_take_turns_and_each_caller_hears_of_its_own(slow_store):
    client = slow_store.client()
    register(client, view="other")
    for view, count in (("profile", 5_000), ("other", 3_000)):
        add_many(client, count, log=f"fs:stream:{view}")
        await_drained(client, f"fs:stream:{view}")
    middle = client.xrange(LOG)[4_000][0]
    asked = [
        ("profile", "0", 5_000),
        ("other", "0", 3_000),
        ("profile", middle, 1_000),
        ("profile", "0", 5_000),
    ]
    answers = [None] * len(asked)

    def replay(place, view, since):
        answers[place] = slow_store.client().execute_command("FS.REPLAY", view, "FROM", since)

    threads = [threading.Thread(target=replay, args=(i, *asked[i][:2])) for i in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [count for *_, count in asked]


def test_dropping_the_view_ends_its_replay(slow_store):
    client, caller = slow_store.client(), slow_store.client()
    add_many(client, 30_000)
    await_drained(client)
    answers = []

    def replay():
        with pytest.raises(valkey.ResponseError) as refusal:
            caller.execute_command("FS.REPLAY", "profile", "FROM", "0")
        answers.append(str(refusal.value))

    thread = threading.Thread(target=replay)
    thread.start()
    await_until(lambda: figures(client)["replaying"], what="the replay to begin")
    client.execute_command("FS.DROP", "profile")
    thread.join()
    assert answers and answers[0].startswith("NOVIEW"), answers


def test_a_row_deleted_during_a_replay_stays_deleted(slow_store):
    client, caller = slow_store.client(), slow_store.client()
    add_many(client, 30_000, entities=1_000)
    await_drained(client)
    thread = threading.Thread(target=lambda: caller.execute_command("FS.REPLAY", "profile", "FROM", "0"))
    thread.start()
    await_until(lambda: figures(client)["replaying"], what="the replay to begin")
    client.execute_command("FS.DEL", "fs:v1:profile:u1", "fs:v1:profile:u999")
    assert figures(client)["replaying"], "the replay was over before the deletion"
    thread.join()
    assert client.exists("fs:v1:profile:u1", "fs:v1:profile:u999") == 0
    assert len(rows(client)) == 998


# Storms


@pytest.mark.parametrize("asynchronous", [False, True])
def test_flushing_in_full_flow_leaves_rows_and_log_in_step(slow_store, asynchronous):
    client, flusher = slow_store.client(), slow_store.client()
    for _ in range(5):
        add_many(client, 4_000)
        flusher.flushall(asynchronous=asynchronous)
        add_many(client, 1_000, start=4_000)
    await_drained(client)
    assert client.xlen(LOG) == 1_000
    assert rows(client) == rows_by_entries(client)


def test_swapping_databases_back_and_forth_in_full_flow(store):
    client, elsewhere = store.client(), store.client(db=1)
    add_many(client, 3_000)
    add_many(elsewhere, 2_000, start=10_000, entities=70)
    for _ in range(11):
        client.swapdb(0, 1)
        add_many(client, 100, start=20_000)
        await_until(lambda: rows(client), what="the first rows")
    await_drained(client)
    assert rows(client) == rows_by_entries(client)
    client.swapdb(0, 1)
    await_drained(client)
    assert rows(client) == rows_by_entries(client)
    assert figures(client)["consumed"] == 3_000 + 2_000 + 11 * 100


def test_definitions_change_in_full_flow(store):
    client = store.client()
    for i in range(20):
        add_many(client, 500, start=500 * i)
        client.execute_command("FS.ALTER", "profile", "ADD", f"more_{i}", "INT")
        add(client, f"m{i}", {f"more_{i}": i}, EPOCH_S)
        if i % 5 == 4:
            client.execute_command("FS.DROP", "profile")
            schema = [*SCHEMA, *(word for j in range(i + 1) for word in (f"more_{j}", "INT"))]
            register(client, "MAXLEN", 1_000_000, schema=schema)
    await_drained(client)
    told = {f"m{i}": client.hget(f"fs:v1:profile:m{i}", f"more_{i}") for i in range(20)}
    assert told == {f"m{i}": str(i).encode() for i in range(20)}
    assert client.xlen(DEAD_LETTERS) == 0
    by_entries = {entity: row for entity, row in rows_by_entries(client).items() if entity.startswith("u")}
    assert {entity: row for entity, row in rows(client).items() if entity.startswith("u")} == by_entries


@pytest.mark.parametrize("seed", range(6))
def test_any_order_repetition_and_split_of_updates_ends_in_one_row(store, seed):
    client, chance = store.client(), random.Random(seed)
    # Rows of a consumer that was there before, written by hand.
    arrivals = [(f"u{i}", {"n": -1, "label": "by hand"}, EPOCH_S + 4) for i in range(3)]
    for entity, row, time_s in arrivals:
        own = {"_updated_at": f"{time_s}.0", "_feature_view": "profile"}
        client.hset(f"fs:v1:profile:{entity}", mapping=row | own)
    updates = []
    for i in range(400):
        drawn = {"n": chance.choice([i, None]), "score": i / 4, "label": f"l{i}"}
        features = {name: drawn[name] for name in chance.sample(sorted(drawn), chance.randint(1, 3))}
        # Few times, so that ties are common.
        updates.append((f"u{chance.randrange(6)}", features, EPOCH_S + chance.randrange(20)))
    updates += chance.sample(updates, 150)
    chance.shuffle(updates)
    add(client, *updates[-1])
    while updates:
        # Entries wait for their consumer while a publish is applied at once: who arrives later is told by the log.
        way = chance.choice(["xadd", "xadd", "publish", "mpublish", "wait"])
        some = [updates.pop() for _ in range(min(len(updates), chance.randint(1, 8)))]
        if way == "xadd":
            for update in some:
                add(client, *update)
        elif way == "publish":
            await_drained(client)
            for entity, features, time_s in some:
                key = f"fs:v1:profile:{entity}"
                client.execute_command("FS.PUBLISH", key, "AT", time_s * 1000, "JSON", json.dumps(features))
        elif way == "mpublish":
            await_drained(client)
            words = [w for e, f, t in some for w in (f"fs:v1:profile:{e}", json.dumps(f | {"_at": t * 1000}))]
            assert client.execute_command("FS.MPUBLISH", *words) == len(some)
        else:
            await_drained(client)
            updates += some
            continue
        arrivals += some
    await_drained(client)
    expected = newest(arrivals)
    assert rows(client) == expected
    # A replay from the beginning changes nothing, bit for bit.
    held = digests(client)
    client.execute_command("FS.REPLAY", "profile", "FROM", "0")
    assert digests(client) == held
