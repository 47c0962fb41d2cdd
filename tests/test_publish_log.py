"""What FS.PUBLISH leaves in the log, several rows at once, deletion, and who hears of it."""

import base64
import itertools
import json
from decimal import Decimal

import numpy as np
import pytest
import valkey
from test_publish import (
    ALL_TYPES,
    LOG,
    MINUTE_MS,
    ROW,
    features,
    fs,
    info,
    now_ms,
    refused,
    register,
    seconds,
    times,
)

from server import await_until

# The log


def test_an_entry_of_the_log_says_all_that_was_published(client):
    register(client, ALL_TYPES + " gone INT")
    moment = now_ms(client) - MINUTE_MS
    moment -= moment % 1000 - 250
    object_ = {
        "i": -5,
        "f": 0.25,
        "b": True,
        "s": 'a"b',
        "t": moment,
        "e": [0.1, -2, 3e7],
        "l": [1, ["x"]],
        "gone": None,
    }
    entry_id = fs(client, f"FS.PUBLISH {ROW} AT {moment} EVENT click-1 JSON", json.dumps(object_))
    ((logged_id, fields),) = client.xrange(LOG)
    assert logged_id == entry_id
    assert list(fields) == [b"entity_id", b"features", b"timestamp", b"feature_view", b"applied", b"event_id"]
    logged = json.loads(fields.pop(b"features"))
    assert np.array_equal(np.array(logged.pop("e"), "<f4"), np.array([0.1, -2, 3e7], "<f4"))
    object_.pop("e")
    assert logged == object_
    assert [type(logged[name]) for name in "ifbs"] == [int, float, bool, str]
    assert fields.pop(b"applied")
    assert fields == {
        b"entity_id": b"u1",
        b"timestamp": f"{moment // 1000}.25".encode(),
        b"feature_view": b"profile",
        b"event_id": b"click-1",
    }
    fs(client, f"FS.PUBLISH {ROW} s", b"\xff\0")
    ((_, fields),) = client.xrevrange(LOG, count=1)
    assert b"event_id" not in fields
    assert json.loads(fields[b"features"]) == {"s": {"$base64": base64.b64encode(b"\xff\0").decode()}}


def test_entity_ids_are_any_bytes(client):
    register(client, "a INT")
    for entity in (b"u1:i9", b"\0\xff\r\n", b"{tag}", b":", b"x" * 512, "grün".encode(), b"*?[a]"):
        key = b"fs:v1:profile:" + entity
        fs(client, "FS.PUBLISH", key, "a", "1")
        assert client.hget(key, "a") == b"1"
        assert client.xrevrange(LOG, count=1)[0][1][b"entity_id"] == entity
    for entity in (b"", b"x" * 513):
        with refused(client, "ERR", "entity id"):
            fs(client, "FS.PUBLISH", b"fs:v1:profile:" + entity, "a", "1")


def test_what_is_not_logged_answers_nil(client):
    register(client, "a INT")
    register(client, "a INT", "LOG OFF", view="silent")
    assert fs(client, f"FS.PUBLISH {ROW} NOLOG a 1") is None
    assert fs(client, f"FS.PUBLISH {ROW} nolog event e1 at {now_ms(client)} a 2") is None
    assert fs(client, "FS.PUBLISH fs:v1:silent:u1 EVENT e1 a 3") is None
    assert fs(client, "FS.MPUBLISH fs:v1:silent:u1", '{"a":4}') == 1
    assert [client.hget(key, "a") for key in (ROW, "fs:v1:silent:u1")] == [b"2", b"4"]
    assert client.keys("fs:stream:*") == []
    fs(client, "FS.ALTER profile LOG OFF")
    assert fs(client, f"FS.PUBLISH {ROW} a 5") is None
    fs(client, "FS.ALTER profile LOG ON")
    assert fs(client, f"FS.PUBLISH {ROW} a 6") == client.xrange(LOG)[0][0]


def test_options_come_in_any_order_before_the_first_feature(client):
    # Words of the syntax that are no reserved names may be features.
    register(client, "log INT schema STRING version INT")
    moment = now_ms(client) - MINUTE_MS
    for options in (f"AT {moment} EVENT e1", f"event e1 at {moment}"):
        entry_id = fs(client, f"FS.PUBLISH {ROW} {options} log 1 schema AT version 2")
        ((_, fields),) = client.xrange(LOG, entry_id, entry_id)
        assert (fields[b"event_id"], Decimal(fields[b"timestamp"].decode())) == (b"e1", seconds(moment))
    assert features(client) == {b"log": b"1", b"schema": b"AT", b"version": b"2"}
    for words in (
        "AT",
        f"AT {moment}",
        "EVENT",
        "NOLOG",
        "EVENT e1",
        "JSON",
        "JSON {} log",
        f"log 1 AT {moment}",
        "log",
    ):
        with pytest.raises(valkey.ResponseError):
            fs(client, f"FS.PUBLISH {ROW} {words}")
    assert client.xlen(LOG) == 2
    for bad in ("", "x" * 513):
        with refused(client, "ERR", "event id"):
            fs(client, f"FS.PUBLISH {ROW} EVENT", bad, "log", "1")


@pytest.mark.parametrize("consumer", ["ON", "OFF"])
def test_the_log_is_trimmed_to_about_its_length(client, consumer):
    register(client, "a INT", f"MAXLEN 100 CONSUMER {consumer}")
    fs(client, f"FS.PUBLISH {ROW} a 0")
    if consumer == "ON":
        # Nothing is trimmed before the consumer has looked at the stream.
        await_until(lambda: client.execute_command("XINFO", "GROUPS", LOG), what="the consumer's group")
    pipeline = client.pipeline(transaction=False)
    for i in range(3000):
        pipeline.execute_command("FS.PUBLISH", ROW, "a", i)
    ids = pipeline.execute()
    node_entries = int(client.config_get("stream-node-max-entries")["stream-node-max-entries"])
    assert 100 <= client.xlen(LOG) <= 100 + node_entries
    assert [id_ for id_, _ in client.xrevrange(LOG, count=100)] == ids[:-101:-1]
    assert info(client)[b"lost_entries"] == 0


def test_only_the_version_that_the_key_names_takes_the_update(client):
    for version in (1, 2, 3):
        register(client, "a INT", view=f"profile VERSION {version}")
    fs(client, "FS.PUBLISH fs:v2:profile:u1 a 1")
    fs(client, "FS.MPUBLISH fs:v3:profile:u1", '{"a":1}')
    # The consumer passes by entries that are applied, and takes this one into all versions.
    client.xadd(LOG, {"entity_id": "u2", "features": '{"a":2}'})
    await_until(
        lambda: client.exists(*(f"fs:v{n}:profile:u2" for n in (1, 2, 3))) == 3, what="all three rows"
    )
    assert set(client.keys("*:u1")) == {b"fs:v2:profile:u1", b"fs:v3:profile:u1"}


def test_keys_of_other_types_are_refused_and_kept(client):
    register(client, "a INT")
    register(client, "a INT", view="other")
    for key in (ROW, LOG):
        for make in (
            lambda k: client.set(k, "x"),
            lambda k: client.zadd(k, {"x": 1}),
            lambda k: client.rpush(k, "x"),
        ):
            client.flushall()
            make(key)
            with refused(client, "WRONGTYPE", key):
                fs(client, f"FS.PUBLISH {ROW} a 1")
            with refused(client, "WRONGTYPE", key):
                fs(client, "FS.MPUBLISH fs:v1:other:u1", '{"a":1}', ROW, '{"a":1}')
    assert fs(client, f"FS.PUBLISH {ROW} NOLOG a 1") is None
    client.flushall()
    client.set("fs:v1:other:u1", "x")
    fs(client, f"FS.PUBLISH {ROW} a 1")
    with refused(client, "WRONGTYPE", "fs:v1:other:u1"):
        fs(client, f"FS.DEL {ROW} fs:v1:other:u1")


# FS.MPUBLISH and FS.DEL


def test_several_rows_are_published_all_or_none(client):
    register(client, "a INT MIN 0")
    register(client, "b STRING", "LOG OFF", view="other")
    good = [ROW, '{"a":1}', "fs:v1:other:u1", '{"b":"x"}', "fs:v1:profile:u2", '{"a":2}']
    ahead = now_ms(client) + 60 * MINUTE_MS
    for code, bad in [
        ("SCHEMA", [ROW, '{"a":-1}']),
        ("SCHEMA", [ROW, "{}"]),
        ("SCHEMA", [ROW, "[1]"]),
        ("SCHEMA", [ROW, ""]),
        ("NOFEATURE", ["fs:v1:other:u1", '{"a":1}']),
        ("NOVIEW", ["fs:v1:third:u1", '{"a":1}']),
        ("NOVIEW", ["fs:v2:profile:u1", '{"a":1}']),
        ("FUTURE", [ROW, f'{{"a":1,"_at":{ahead}}}']),
        ("ERR", [ROW, '{"a":1,"_event":5}']),
        ("ERR", [ROW, '{"a":1,"_event":""}']),
        ("ERR", ["user:1", '{"a":1}']),
        ("ERR", [ROW]),
    ]:
        with refused(client, code):
            fs(client, "FS.MPUBLISH", *good, *bad)
        if len(bad) == 2:
            with refused(client, code):
                fs(client, "FS.MPUBLISH", *bad, *good)
    assert fs(client, "FS.MPUBLISH", *good) == 3
    assert client.dbsize() == 4
    assert [entry[b"entity_id"] for _, entry in client.xrange(LOG)] == [b"u1", b"u2"]


def test_a_log_without_ids_left_refuses_all_rows(client):
    register(client, "a INT")
    register(client, "a INT", view="full")
    newest = 2**64 - 1
    for sequence, rows in [
        (newest, [ROW, "fs:v1:full:u1"]),
        (newest - 1, ["fs:v1:full:u1", "fs:v1:full:u2"]),
    ]:
        client.delete("fs:stream:full")
        client.xadd("fs:stream:full", {"entity_id": "u0", "features": "{}"}, id=f"{newest}-{sequence}")
        with refused(client, "ERR", "'full'"):
            fs(client, "FS.MPUBLISH", *itertools.chain(*((row, '{"a":1}') for row in rows)))


def test_rows_are_published_in_order_with_their_own_times_and_events(client):
    register(client, "a INT b INT")
    moment = now_ms(client) - MINUTE_MS
    objects = [{"a": 1, "_at": moment}, {"b": 2, "_at": moment - 5, "_event": "e2"}, {"a": 3, "_at": moment}]
    assert fs(client, "FS.MPUBLISH", *itertools.chain(*((ROW, json.dumps(o)) for o in objects))) == 3
    assert features(client) == {b"a": b"3", b"b": b"2"}
    assert times(client) == (seconds(moment), {"b": seconds(moment - 5)})
    logged = [entry for _, entry in client.xrange(LOG)]
    assert [entry.get(b"event_id") for entry in logged] == [None, b"e2", None]
    assert [json.loads(entry[b"features"]) for entry in logged] == [{"a": 1}, {"b": 2}, {"a": 3}]


def test_deleting_counts_the_rows_that_were_there(client):
    register(client, "a INT")
    for i in range(3):
        fs(client, f"FS.PUBLISH fs:v1:profile:u{i} a 1")
    assert fs(client, "FS.DEL fs:v1:profile:u0 fs:v1:profile:none fs:v1:profile:u0 fs:v1:profile:u2") == 2
    assert client.keys("fs:v1:*") == [b"fs:v1:profile:u1"]
    assert client.xlen(LOG) == 3
    for code, key in [("NOVIEW", "fs:v1:other:u1"), ("NOVIEW", "fs:v2:profile:u1"), ("ERR", LOG)]:
        with refused(client, code, *(["other"] if "other" in key else [])):
            fs(client, f"FS.DEL fs:v1:profile:u1 {key}")
    # A deletion leaves no event time behind: an older update makes the row anew.
    assert fs(client, "FS.DEL fs:v1:profile:u1") == 1
    fs(client, f"FS.PUBLISH fs:v1:profile:u1 AT {now_ms(client) - MINUTE_MS} a 5")
    assert features(client, "fs:v1:profile:u1") == {b"a": b"5"}


# Neighbours


def test_listeners_hear_the_events_of_the_native_commands(fresh_server):
    client = fresh_server({"notify-keyspace-events": "KEA"}).client()
    register(client, "a INT b INT", "TTL 1h")
    register(client, "a INT", "LOG OFF", view="silent")
    await_until(lambda: info(client)[b"consumer"] == b"running", what="the consumer")
    silent = "fs:v1:silent:u1"
    moment = now_ms(client) - MINUTE_MS
    with client.pubsub() as events:
        events.psubscribe("__keyspace@0__:*")
        assert events.get_message(timeout=5)["type"] == "psubscribe"

        def heard(*call) -> dict[str, list[str]]:
            """The events of one call by key; those of the consumer's group are not of the call."""
            fs(client, *call)
            client.publish("__keyspace@0__:end", "end")
            by_key: dict[str, list[str]] = {}
            while (message := events.get_message(timeout=5))["channel"] != b"__keyspace@0__:end":
                event = message["data"].decode()
                if not event.startswith("xgroup"):
                    by_key.setdefault(message["channel"].decode().removeprefix("__keyspace@0__:"), []).append(
                        event
                    )
            return {key: sorted(names) for key, names in by_key.items()}

        publish = f"FS.PUBLISH {ROW} AT"
        assert heard(f"{publish} {moment} a 1 b 1") == {ROW: ["expire", "hset"], LOG: ["xadd"]}
        assert heard(f"{publish} {moment} JSON", '{"b":null}') == {ROW: ["hdel", "hset"], LOG: ["xadd"]}
        assert heard(f"{publish} {moment - 5} a 5") == {LOG: ["xadd"]}
        assert heard(f"{publish} {moment + 5} NOLOG a 2") == {ROW: ["expire", "hset"]}
        assert heard(f"FS.PUBLISH {silent} a 1") == {silent: ["hset"]}
        assert heard("FS.MPUBLISH", silent, '{"a":2}', ROW, f'{{"a":2,"_at":{moment + 10}}}') == {
            silent: ["hset"],
            ROW: ["expire", "hset"],
            LOG: ["xadd"],
        }
        assert heard(f"FS.DEL {ROW} fs:v1:profile:none {silent}") == {ROW: ["del"], silent: ["del"]}


def test_a_transaction_that_watches_a_row_sees_its_update(client, server):
    register(client, "a INT")
    other = server.client()
    fs(client, f"FS.PUBLISH {ROW} a 1")
    for call, is_seen in [
        ([f"FS.PUBLISH {ROW} a 2"], True),
        ([f"FS.MPUBLISH {ROW}", '{"a":3}'], True),
        ([f"FS.DEL {ROW}"], True),
        ([f"FS.PUBLISH {ROW} a x"], False),
        ([f"FS.GET {ROW}"], False),
        (["FS.PUBLISH fs:v1:profile:u2 a 2"], False),
    ]:
        with client.pipeline() as transaction:
            transaction.watch(ROW)
            try:
                fs(other, *call)
            except valkey.ResponseError as refusal:
                assert str(refusal).startswith("SCHEMA"), refusal
            transaction.multi()
            transaction.ping()
            if is_seen:
                with pytest.raises(valkey.WatchError):
                    transaction.execute()
            else:
                assert transaction.execute() == [True], call


def test_a_client_that_caches_a_row_is_told_of_its_update(client, server):
    register(client, "a INT")
    fs(client, f"FS.PUBLISH {ROW} a 1")
    reader = server.client(single_connection_client=True)
    with server.client().pubsub() as invalidations:
        invalidations.subscribe("__redis__:invalidate")
        assert invalidations.get_message(timeout=5)["type"] == "subscribe"
        (redirect,) = (other["id"] for other in client.client_list(_type="pubsub"))
        reader.execute_command("CLIENT", "TRACKING", "ON", "REDIRECT", redirect)
        for read in (f"FS.GET {ROW}", f"FS.MGET a {ROW}", f"FS.TENSOR a {ROW}", f"FS.EXPLAIN {ROW}"):
            for write in (f"FS.PUBLISH {ROW} NOLOG a 2", f"FS.DEL {ROW}"):
                fs(client, f"FS.PUBLISH {ROW} NOLOG a 1")
                fs(reader, read)
                fs(client, write)
                assert invalidations.get_message(timeout=5)["data"] == [ROW.encode()], (read, write)


# Transactions and scripts


def test_updates_inside_a_transaction_are_applied_together(client):
    register(client, "a INT")
    with client.pipeline() as transaction:
        transaction.execute_command("FS.PUBLISH", ROW, "a", 1)
        transaction.hget(ROW, "a")
        transaction.execute_command("FS.PUBLISH", ROW, "a", "x")
        transaction.execute_command("FS.PUBLISH", ROW, "a", 2)
        transaction.xlen(LOG)
        first, value, refusal, second, length = transaction.execute(raise_on_error=False)
    assert isinstance(refusal, valkey.ResponseError) and str(refusal).startswith("SCHEMA")
    assert (value, length) == (b"1", 2)
    assert [id_ for id_, _ in client.xrange(LOG)] == [first, second]
    assert features(client) == {b"a": b"2"}


def test_scripts_publish_and_read_in_both_protocols(client):
    register(client, "a INT f FLOAT b BOOL s STRING e VECTOR 2")
    publish = "return redis.call('FS.PUBLISH', KEYS[1], 'a', '5', 'f', '0.5', 'b', 'true', 'e', '1,2')"
    entry_id = client.eval(publish, 1, ROW)
    assert [id_ for id_, _ in client.xrange(LOG)] == [entry_id]
    flat = client.eval("return redis.call('FS.GET', KEYS[1])", 1, ROW)
    assert flat == [b"a", 5, b"f", b"0.5", b"b", 1, b"s", None, b"e", [b"1", b"2"]]
    typed = """
        redis.setresp(3)
        local row = redis.call('FS.GET', KEYS[1]).map
        return {row.a, tostring(row.f.double), tostring(row.b), tostring(row.s), tostring(row.e[2].double)}
    """
    assert client.eval(typed, 1, ROW) == [5, b"0.5", b"true", b"nil", b"2"]
    caught = "return redis.pcall('FS.PUBLISH', KEYS[1], 'a', 'x').err"
    before = client.execute_command("DEBUG", "DIGEST")
    assert client.eval(caught, 1, ROW).startswith(b"SCHEMA feature 'a' of view 'profile'")
    assert client.execute_command("DEBUG", "DIGEST") == before
    with pytest.raises(valkey.ResponseError, match="Write commands are not allowed"):
        client.execute_command("EVAL_RO", publish, 1, ROW)
    assert client.execute_command("EVAL_RO", "return redis.call('FS.GET', KEYS[1], 'a')", 1, ROW) == [b"a", 5]
    assert client.eval("return redis.call('FS.MPUBLISH', KEYS[1], ARGV[1])", 1, ROW, '{"a":6}') == 1
    assert client.eval("return redis.call('FS.DEL', KEYS[1])", 1, ROW) == 1
