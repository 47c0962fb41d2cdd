"""What a plain XADD brings: rows, dead letters, several versions, whatever the entry lacks."""

import itertools
import json
import random
import threading
import time

import pytest
import valkey
from profile_view import (
    DEAD_LETTERS,
    EPOCH_S,
    GROUP,
    LOG,
    add,
    add_many,
    await_drained,
    consumer,
    digests,
    entry,
    figures,
    module_figures,
    newest,
    register,
    rows,
    rows_by_entries,
)

from server import await_until


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


def test_consuming_replaying_and_dropping_at_once_all_come_to_their_end(fresh_server):
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
    client.execute_command("FS.DROP", "gone", "DATA")
    for view in ("profile", "b", "c"):
        consumer(client, "START", view)
    for view in ("profile", "b", "c"):
        await_drained(client, f"fs:stream:{view}", timeout_s=60)
    await_until(lambda: module_figures(client)["dropping"] == 0, what="the drop to end")
    thread.join()
    for view in ("profile", "b", "c"):
        assert len(list(client.scan_iter(f"fs:v1:{view}:*", count=10_000))) == 20_000
    assert not list(client.scan_iter("fs:v1:gone:*", count=10_000))
