"""Packed rows among native commands: they are strings like any other, and their writes are seen like native ones."""

import json
import random
import struct

import pytest
import valkey
from packed_rows import document_of, refusal, unpacked
from profile_view import digests
from windowed_view import clock_ms, fs

from server import await_until

ROW, OTHER, LOG = "fs:v1:view:u1", "fs:v1:view:u2", "fs:stream:view"
SCHEMA = "a INT b INT s STRING v VECTOR 3"


def register(client, *options, schema: str = SCHEMA, view: str = "view"):
    words = ("ENTITY", "user", *options, "STORAGE", "PACKED", "SCHEMA", *schema.split())
    assert client.execute_command("FS.REGISTER", view, *words) == b"OK"


def publish(client, update: dict, *options, key: str = ROW):
    return client.execute_command("FS.PUBLISH", key, *options, "JSON", json.dumps(update))


# Whoever watches


def test_listeners_hear_what_a_native_set_tells(fresh_server):
    client = fresh_server({"notify-keyspace-events": "KEA"}).client()
    register(client, "TTL", "1h")
    register(client, "LOG", "OFF", schema="a INT", view="silent")
    now = clock_ms(client)
    silent = "fs:v1:silent:u1"
    with client.pubsub() as events:
        events.psubscribe("__keyspace@0__:*")
        assert events.get_message(timeout=5)["type"] == "psubscribe"

        def heard(*calls) -> dict[str, list[str]]:
            """The events of calls by key, in their order; those of the consumer's group are not of the calls."""
            for call in calls:
                client.execute_command(*call)
            client.publish("__keyspace@0__:end", "end")
            by_key: dict[str, list[str]] = {}
            while (message := events.get_message(timeout=5))["channel"] != b"__keyspace@0__:end":
                event, key = message["data"].decode(), message["channel"].decode().split(":", 1)[1]
                if not event.startswith("xgroup") and key != LOG:
                    by_key.setdefault(key, []).append(event)
            return by_key

        client.set("native", "x")
        heard()
        for at_ms, update in [
            (now - 50, {"a": 1, "s": "x"}),
            (now - 40, {"a": 2}),
            (now - 30, {"a": None}),
        ]:
            # The oracle: what is native of the same effect.
            native = heard(["SET", "native", "y"], ["PEXPIREAT", "native", at_ms + 3_600_000])["native"]
            told = heard(["FS.PUBLISH", ROW, "AT", at_ms, "JSON", json.dumps(update)])
            assert told == {ROW: native}, update
        # The newest time stays, and with it the expiry.
        native = heard(["SET", "native", "z", "KEEPTTL"])["native"]
        assert heard(["FS.PUBLISH", ROW, "AT", now - 35, "b", 1]) == {ROW: native}
        assert heard(["FS.PUBLISH", ROW, "AT", now - 36, "b", 1]) == {}
        assert heard(["FS.PUBLISH", silent, "a", 1]) == {silent: heard(["SET", "native", "1"])["native"]}
        client.execute_command("FS.ALTER", "view", "TTL", "NONE")
        native = heard(["SET", "native", "z", "EX", 100], ["PERSIST", "native"])["native"]
        assert heard(["FS.PUBLISH", ROW, "AT", now - 35, "b", 2]) == {ROW: [native[0], native[-1]]}
        assert heard(["FS.PUBLISH", ROW, "AT", now - 35, "b", 2]) == {ROW: ["set"]}
        assert heard(["FS.DEL", ROW, silent]) == {ROW: ["del"], silent: ["del"]}
        many = ["FS.MPUBLISH", silent, '{"a":2}', ROW, '{"a":2}', silent, '{"a":3}']
        assert heard(many) == {silent: ["set", "set"], ROW: ["set"]}
        # By the consumer as well.
        client.xadd(LOG, {"entity_id": "u2", "features": '{"a": 1}'})
        client.execute_command("FS.CONSUME", "view")
        assert heard() == {OTHER: ["set"]}


def test_a_transaction_that_watches_a_row_sees_its_update(client, server):
    register(client)
    other = server.client()
    now = clock_ms(client)
    publish(client, {"a": 1}, "AT", now - 1_000)
    for call, is_seen in [
        (["FS.PUBLISH", ROW, "AT", now - 900, "a", 2], True),
        (["FS.PUBLISH", ROW, "AT", now - 900, "a", 2], True),
        (["FS.MPUBLISH", ROW, '{"a": 3}'], True),
        (["FS.PUBLISH", ROW, "a", "x"], False),
        (["FS.PUBLISH", OTHER, "a", 3], False),
        (["FS.GET", ROW], False),
        (["FS.TENSOR", "a,v", ROW], False),
        (["FS.DEL", ROW], True),
        (["FS.PUBLISH", ROW, "a", 1], True),
        (["FS.REPLAY", "view", "FROM", 0], True),
    ]:
        with client.pipeline() as transaction:
            transaction.watch(ROW)
            try:
                other.execute_command(*call)
            except valkey.ResponseError as refused:
                assert str(refused).startswith("SCHEMA"), refused
            transaction.multi()
            transaction.ping()
            if is_seen:
                with pytest.raises(valkey.WatchError):
                    transaction.execute()
            else:
                assert transaction.execute() == [True], call


def test_a_client_that_caches_a_row_is_told_of_its_update(client, server):
    register(client)
    fs(client, "FS.SERVICE SET all FEATURES 1 view:a")
    fs(client, "FS.SERVICE SET numbers FORMAT TENSOR FEATURES 1 view:a")
    publish(client, {"a": 1})
    reader = server.client(single_connection_client=True)
    reads = ["FS.GET KEY", "FS.GET KEY a", "FS.MGET a KEY", "FS.TENSOR a KEY", "FS.EXPLAIN KEY", "GET KEY"]
    with server.client().pubsub() as invalidations:
        invalidations.subscribe("__redis__:invalidate")
        assert invalidations.get_message(timeout=5)["type"] == "subscribe"
        (redirect,) = (other["id"] for other in client.client_list(_type="pubsub"))
        reader.execute_command("CLIENT", "TRACKING", "ON", "REDIRECT", redirect)
        for read in reads:
            for write in ("FS.PUBLISH KEY NOLOG a 2", 'FS.MPUBLISH KEY {"a":2}', "FS.DEL KEY"):
                publish(client, {"a": 1}, "NOLOG")
                fs(reader, read.replace("KEY", ROW))
                fs(client, write.replace("KEY", ROW))
                assert invalidations.get_message(timeout=5)["data"] == [ROW.encode()], (read, write)


def test_updates_in_transactions_and_scripts_are_seen_by_native_reads_at_once(client):
    register(client)
    with client.pipeline(transaction=True) as pipeline:
        pipeline.execute_command("FS.PUBLISH", ROW, "a", 1)
        pipeline.get(ROW)
        pipeline.execute_command("FS.PUBLISH", ROW, "a", "x")
        pipeline.execute_command("FS.PUBLISH", ROW, "a", 2)
        pipeline.get(ROW)
        _, first, refused, _, second = pipeline.execute(raise_on_error=False)
    document = document_of(client, "view")
    assert isinstance(refused, valkey.ResponseError)
    assert [unpacked(row, document)[0] for row in (first, second)] == [{"a": 1}, {"a": 2}]
    script = (
        "redis.call('FS.PUBLISH', KEYS[1], 'a', 5); local row = redis.call('GET', KEYS[1]); "
        "redis.call('DEL', KEYS[1]); return {row, redis.call('FS.GET', KEYS[1], 'a')[2]}"
    )
    row, after = client.eval(script, 1, ROW)
    assert (unpacked(row, document)[0], after) == ({"a": 5}, None)


# As a string


def test_rows_are_raw_strings_whatever_they_hold(client):
    register(client)
    # As short as a number: encodings of small strings are none of a row's.
    register(client, schema="b BOOL", view="small")
    publish(client, {"b": True}, key="fs:v1:small:u1")
    publish(client, {"a": 5, "v": [1, 2, 3]})
    for key in ("fs:v1:small:u1", ROW):
        assert client.type(key) == b"string"
        assert client.object("encoding", key) in (b"raw", b"embstr")
        assert client.strlen(key) == len(client.get(key)) == len(client.getrange(key, 0, -1))
    # Settings of hashes do not matter.
    size = client.memory_usage(ROW)
    client.config_set("hash-max-listpack-value", 8)
    client.config_set("hash-max-listpack-entries", 1)
    try:
        publish(client, {"a": 6, "v": [4, 5, 6]})
        assert client.object("encoding", ROW) in (b"raw", b"embstr") and client.memory_usage(ROW) == size
    finally:
        client.config_set("hash-max-listpack-value", 64)
        client.config_set("hash-max-listpack-entries", 512)


def test_a_row_takes_the_memory_of_a_string_and_less_than_its_hash(client):
    for view, storage in (("view", "PACKED"), ("hash", "HASH")):
        schema = " ".join(f"feature_{i} FLOAT" for i in range(40))
        words = ("ENTITY", "user", "STORAGE", storage, "SCHEMA", *schema.split())
        client.execute_command("FS.REGISTER", view, *words)
        chance = random.Random(1)
        update = {f"feature_{i}": chance.gauss(0, 1) for i in range(40)}
        publish(client, update, key=f"fs:v1:{view}:u1")
    client.set("fs:v1:same:u1", client.get(ROW))
    # A string that is set whole has no room to spare.
    same = client.memory_usage("fs:v1:same:u1")
    assert same <= client.memory_usage(ROW) <= same + 64
    assert client.memory_usage(ROW) < client.memory_usage("fs:v1:hash:u1") / 2
    # Growing and shrinking leaves no room behind.
    register(client, schema="s STRING a INT", view="text")
    for length in (10, 200_000, 10):
        publish(client, {"s": "x" * length, "a": 1}, key="fs:v1:text:u1")
    assert client.memory_usage("fs:v1:text:u1") < 400


def test_a_row_goes_where_native_commands_bring_it(client):
    register(client, "TTL", "1h")
    now = clock_ms(client)
    publish(client, {"a": 1, "s": "x"}, "AT", now - 1_000)
    publish(client, {"b": 2}, "AT", now - 2_000)
    before, row = fs(client, f"FS.MGET * {ROW}"), client.get(ROW)
    expiry = client.pexpiretime(ROW)
    assert expiry == now - 1_000 + 3_600_000

    def arrived(key: str, expires: int) -> None:
        assert fs(client, f"FS.MGET * {key}") == before
        assert (client.get(key), client.pexpiretime(key)) == (row, expires)
        # It is a row like any other: event time goes on.
        publish(client, {"b": 1}, "AT", now - 3_000, key=key)
        assert client.get(key) == row
        publish(client, {"b": 3}, "AT", now - 500, key=key)
        assert fs(client, f"FS.MGET b {key}") == [[3]]
        assert client.pexpiretime(key) == now - 500 + 3_600_000
        client.delete(key)

    client.copy(ROW, OTHER)
    arrived(OTHER, expiry)
    dumped = client.dump(ROW)
    client.restore(OTHER, 0, dumped)
    arrived(OTHER, -1)
    client.restore(OTHER, expiry, dumped, absttl=True)
    arrived(OTHER, expiry)
    client.set(OTHER, client.get(ROW))
    arrived(OTHER, -1)
    assert client.move(ROW, 1) and not client.exists(ROW)
    assert fs(client, f"FS.MGET a {ROW}") == [[None]]
    client.swapdb(0, 1)
    assert fs(client, f"FS.MGET * {ROW}") == before
    assert client.rename(ROW, OTHER)
    arrived(OTHER, expiry)
    client.restore(ROW, 0, dumped)
    assert client.getdel(ROW) == row
    assert fs(client, f"FS.MGET a {ROW}") == [[None]]
    client.swapdb(0, 1)
    client.flushall()


def test_a_dump_that_was_cut_or_changed_is_refused_or_no_row(client):
    register(client)
    publish(client, {"a": 1, "s": "some text", "v": [1, 2, 3]})
    dumped, chance, refused = client.dump(ROW), random.Random(3), 0
    for i in range(300):
        spoiled = bytearray(dumped)
        spoiled[chance.randrange(len(spoiled))] ^= 1 << chance.randrange(8)
        bad = bytes(spoiled) if i % 2 else dumped[: chance.randrange(len(dumped))]
        try:
            client.restore(OTHER, 0, bad, replace=True)
        except valkey.ResponseError:
            refused += 1
        fs(client, f"FS.GET {OTHER}")
    assert refused == 300, "the checksum of a dump finds every single bit"


def test_commands_of_hashes_do_not_reach_a_row(client):
    register(client)
    publish(client, {"a": 1})
    row = client.get(ROW)
    for line in ("HGETALL KEY", "HGET KEY a", "HSET KEY a 2", "HDEL KEY a", "HINCRBY KEY a 1", "LPUSH KEY x"):
        assert refusal(client, *line.replace("KEY", ROW).split()).startswith("WRONGTYPE "), line
    assert client.get(ROW) == row


def test_an_expiry_set_by_hand_rules_until_the_next_update(client):
    register(client, "TTL", "1h")
    now = clock_ms(client)
    publish(client, {"a": 1}, "AT", now - 1_000)
    for words in (["PERSIST", ROW], ["PEXPIREAT", ROW, now + 50_000]):
        client.execute_command(*words)
        publish(client, {"a": 1}, "AT", now - 2_000)
        assert client.pexpiretime(ROW) in (-1, now + 50_000)
        publish(client, {"a": 2}, "AT", now - 1_000)
        assert client.pexpiretime(ROW) == now - 1_000 + 3_600_000
    # A row is gone the moment it expires, for every reader.
    client.pexpire(ROW, 1)
    await_until(lambda: not client.exists(ROW), what="the row to expire")
    assert fs(client, f"FS.GET {ROW} a") == [b"a", None]
    publish(client, {"b": 1}, "AT", now - 1_000)
    assert fs(client, f"FS.MGET a,b {ROW}") == [[None, 1]]


def test_scans_of_the_view_find_rows_alone(client):
    register(client)
    register(client, schema="a INT", view="view2")
    for i in range(300):
        publish(client, {"a": i}, key=f"fs:v1:view:u{i}")
        publish(client, {"a": i}, key=f"fs:v1:view2:x{i}")
    client.hset("fs:v1:view:hash", "a", 1)
    client.set("fs:v2:view:other", "x")
    client.set("fs:v1:view:junk", "x")
    found, cursor = set(), b"0"
    while True:
        cursor, ids = client.execute_command("FS.SCAN", "view", cursor, "COUNT", 50)
        found.update(ids)
        if cursor == b"0":
            break
    # A string that is no row stands under a row's key all the same: FS.DEL finds it too.
    assert found == {*(b"u%d" % i for i in range(300)), b"junk"}


# Out of memory


def test_publishes_are_refused_whole_when_memory_is_out_and_reads_go_on(fresh_server):
    client = fresh_server({"fs.sweep-interval": 20}).client()
    register(client)
    publish(client, {"a": 1, "s": "x" * 1000})
    before, told = digests(client, ""), fs(client, f"FS.MGET * {ROW}")
    client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
    for command in [
        ("FS.PUBLISH", ROW, "a", 5),
        ("FS.PUBLISH", OTHER, "NOLOG", "a", 5),
        ("FS.MPUBLISH", ROW, '{"a": 5}', OTHER, '{"a": 5}'),
        ("FS.REPLAY", "view", "FROM", "0"),
        ("FS.CONSUME", "view"),
    ]:
        with pytest.raises(valkey.exceptions.OutOfMemoryError, match="maxmemory"):
            client.execute_command(*command)
        assert digests(client, "") == before, command
    assert fs(client, f"FS.MGET * {ROW}") == told
    assert fs(client, f"FS.TENSOR a {ROW}") == struct.pack("<f", 1)
    client.config_set("maxmemory", 1 << 30)
    assert publish(client, {"a": 6})
    assert fs(client, f"FS.GET {ROW} a") == [b"a", 6]
    client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
    # What frees memory is not refused.
    assert fs(client, f"FS.DEL {ROW}") == 1


def test_publishing_until_memory_is_out_leaves_whole_rows(fresh_server):
    client = fresh_server().client()
    register(client)
    client.config_set("maxmemory", client.info("memory")["used_memory"] + (3 << 20))
    taken, i = {}, 0
    while True:
        update = {"a": i, "s": f"{i}" * 500, "v": [i, i, i]}
        try:
            publish(client, update, key=f"fs:v1:view:u{i % 3000}")
        except valkey.exceptions.OutOfMemoryError:
            break
        taken[i % 3000] = update
        i += 1
    assert i > 100
    document = document_of(client, "view")
    rows = client.mget([f"fs:v1:view:u{entity}" for entity in taken])
    for row, update in zip(rows, taken.values(), strict=True):
        assert unpacked(row, document)[0] == update | {"s": update["s"].encode()}
    assert client.xlen(LOG) == i


def test_eviction_takes_whole_rows_and_readers_see_none(fresh_server):
    client = fresh_server({"maxmemory-policy": "allkeys-random"}).client()
    register(client, "LOG", "OFF")
    client.config_set("maxmemory", client.info("memory")["used_memory"] + (2 << 20))
    for i in range(4_000):
        publish(client, {"a": i, "s": "x" * 1000}, key=f"fs:v1:view:u{i}")
    keys = [f"fs:v1:view:u{i}" for i in range(4_000)]
    with client.pipeline(transaction=True) as pipeline:
        pipeline.exists(*keys)
        pipeline.execute_command("FS.MGET", "a,s", *keys)
        there, rows = pipeline.execute()
    values = [(i, row) for i, row in enumerate(rows) if row != [None, None]]
    assert there == len(values) and 0 < there < 4_000
    assert all(row == [i, b"x" * 1000] for i, row in values)
