"""Other writers under the keys of packed rows: whatever they leave, readers are answered and nobody else is disturbed.

What is no row of the view is INVALID to readers and WRONGTYPE to writers; FS.DEL mends it.
"""

import contextlib
import json
import math
import random
import resource
import struct

import pytest
import valkey
from packed_rows import (
    FINGERPRINT_OF_NOTHING,
    STATUSES,
    bad_value,
    document_of,
    good_value,
    header,
    refusal,
    slots_of,
    unpacked,
)
from profile_view import add, await_drained
from windowed_view import clock_ms, fs

SCHEMA = (
    "a INT DEFAULT 7 b BOOL s STRING c STRING VALUES 3 x y z v VECTOR 2 f FLOAT TTL 10m t TIMESTAMP l LIST "
    "d STRING VALUES 2 p q DEFAULT q e STRING n INT INPUT w INT AGG COUNT n WINDOW 1h"
)
NUMBERS = "a,b,c,v,f,t,d,w"
ROW, GOOD, LAST = "fs:v1:view:row", "fs:v1:view:good", "fs:v1:view:last"
VALUES = {"c": {"x", "y", "z"}, "d": {"p", "q"}}
DEFAULTS = {"a": 7, "d": b"q"}
# An event time that a row may have.
AT = 1_760_000_000_000


@pytest.fixture
def client(server):
    client = server.client(protocol=3)
    fs(client, f"FS.REGISTER view ENTITY user STORAGE PACKED SCHEMA {SCHEMA}")
    fs(client, "FS.SERVICE SET all FORMAT TENSOR WITHSTATUS FEATURES 3 view:a view:v view:d")
    return client


def stored_features(client) -> list[dict]:
    schema = document_of(client, "view")["schema"]
    return [feature for feature in schema if not feature.get("input") and not feature.get("agg")]


def publish(client, key: str, update: dict, *options):
    return client.execute_command("FS.PUBLISH", key, *options, "JSON", json.dumps(update))


def fill(client, chance: random.Random, key: str, now_ms: int) -> bytes:
    """Publishes values of some features at some times; the row."""
    features = stored_features(client)
    for _ in range(chance.choice([1, 2, 4])):
        chosen = chance.sample(features, chance.randint(1, len(features)))
        update = {f["name"]: None if chance.random() < 0.1 else good_value(chance, f) for f in chosen}
        publish(client, key, update, "AT", now_ms - chance.randrange(1_000_000))
    return client.get(key)


def is_sound(name: str, kind: str, value) -> bool:
    match kind:
        case "INT" | "TIMESTAMP":
            return type(value) is int and -(2**63) <= value < 2**63
        case "FLOAT":
            return type(value) is float and math.isfinite(value)
        case "BOOL":
            return type(value) is bool
        case "VECTOR":
            return len(value) == 2 and all(math.isfinite(x) for x in value)
        case "LIST":
            return type(json.loads(value)) is list
    return type(value) is bytes and (name not in VALUES or value.decode() in VALUES[name])


def check_served(told: dict, kinds: dict, defaults: dict = DEFAULTS) -> set[bytes]:
    """Every value is sound, or a default. Answers the statuses."""
    stored = {name.decode(): answer for name, answer in told.items() if name != b"w"}
    assert set(stored) == set(kinds)
    for name, (value, status, age_ms) in stored.items():
        assert status in STATUSES
        assert age_ms is None or type(age_ms) is int
        if status == b"PRESENT":
            assert is_sound(name, kinds[name], value), (name, value)
        else:
            assert value == defaults.get(name), (name, value, status)
    return {status for _, status, _ in stored.values()}


def damages(chance: random.Random, row: bytes) -> list[list]:
    """Commands that spoil the row, or one whole row in its place."""
    length = len(row)
    edges = [0, 1, 2, 3, 5, 6, 11, 12, 20, 21, 25, 29, 33, length - 1, length, length + 20]
    at = chance.choice([chance.randrange(length), chance.choice(edges)])
    commands = [
        ["SETRANGE", ROW, at, chance.choice([b"\0", b"\1", b"\xff", b"\x7f", chance.randbytes(1)])],
        ["SETRANGE", ROW, at, chance.choice([b"\xff" * 8, b"\0" * 8, chance.randbytes(4)])],
        ["SETBIT", ROW, chance.randrange(8 * length + 9), chance.choice([0, 1])],
        ["APPEND", ROW, chance.randbytes(chance.choice([1, 9, 300]))],
        ["SET", ROW, row[: chance.randrange(length)]],
        ["SET", ROW, row[:at] + row[at + 1 :]],
        ["SET", ROW, row[:6] + chance.randbytes(length)],
        ["SET", ROW, row[:12] + chance.randbytes(length)],
        ["SET", ROW, row[:6] + chance.randbytes(6) + row[12:]],
        ["SET", ROW, chance.randbytes(chance.randrange(60))],
        ["SET", ROW, chance.choice([b"", b"1", b"junk", b"12345", b"\1"])],
        ["INCRBY", ROW, 5],
    ]
    return chance.choices(commands, k=chance.choice([1, 1, 1, 2, 4]))


@pytest.mark.parametrize("seed", range(4))
def test_thousands_of_damages_are_read_soundly_and_mended(client, server, seed):
    chance, now_ms = random.Random(seed), clock_ms(client)
    kinds = {feature["name"]: feature["type"] for feature in stored_features(client)}
    features = stored_features(client)
    fill(client, chance, GOOD, now_ms)
    fill(client, chance, LAST, now_ms)
    seen, refused, taken = set(), 0, 0
    for i in range(1_000):
        if i % 20 == 0:
            client.delete(ROW)
            row = fill(client, chance, ROW, now_ms)
            # What the neighbours answer; ages move with the clock.
            good, last = fs(client, f"FS.MGET * {GOOD} {LAST}")
            tensor = fs(client, f"FS.TENSOR {NUMBERS} {GOOD} {LAST}")
        update = {f["name"]: good_value(chance, f) for f in chance.sample(features, 2)}
        with client.pipeline(transaction=True) as pipeline:
            pipeline.set(ROW, row)
            commands = damages(chance, row)
            for words in commands:
                pipeline.execute_command(*words)
            pipeline.execute_command("FS.GET", ROW, "WITHSTATUS")
            fs(pipeline, f"FS.MGET * {GOOD} {ROW} {LAST}")
            fs(pipeline, f"FS.TENSOR {NUMBERS} {GOOD} {ROW} {LAST}")
            fs(pipeline, "FS.SERVE all good row last")
            pipeline.execute_command("FS.EXPLAIN", ROW)
            pipeline.execute_command("FS.GET", ROW, "AT", now_ms + 60_000, "WITHSTATUS", *kinds)
            publish(pipeline, ROW, update)
            pipeline.execute_command("FS.GET", ROW, "WITHSTATUS")
            fs(pipeline, f"FS.DEL {ROW}")
            publish(pipeline, ROW, update)
            fs(pipeline, f"FS.GET {ROW} WITHSTATUS")
            answers = pipeline.execute(raise_on_error=False)[1 + len(commands) :]
        told, many, numbers, served, explained, at, published, after, deleted, _, mended = answers
        what = (commands, row)
        assert not [
            answer for answer in answers if isinstance(answer, Exception) and answer is not published
        ], what
        statuses = check_served(told, kinds)
        seen |= statuses
        assert many[0] == good and many[2] == last and many[1] == [value for value, _, _ in told.values()], (
            what
        )
        width = len(tensor) // 2
        assert numbers[:width] + numbers[-width:] == tensor and len(numbers) == 3 * width, what
        assert served[0] == [3, 4]
        assert {f[b"feature"]: f[b"status"] for f in explained[b"features"]} == {
            name: status for name, (_, status, _) in told.items()
        }
        # What is of a later time is not known then, whatever its default.
        then = {name for name, (_, status, _) in at.items() if status == b"NOT_FOUND"}
        check_served(
            at, kinds, {name: value for name, value in DEFAULTS.items() if name.encode() not in then}
        )
        if isinstance(published, Exception):
            assert str(published).startswith(f"WRONGTYPE key '{ROW}'"), (published, what)
            assert statuses == {b"INVALID"}, what
            assert after == told, what
            refused += 1
        else:
            # An unstamped update always takes effect.
            check_served(after, kinds)
            assert {after[name.encode()][1] for name in update} == {b"PRESENT"}, (after, update, what)
            taken += 1
        assert deleted == 1
        assert {name.decode() for name, (_, status, _) in mended.items() if status == b"PRESENT"} == {
            *update,
            "w",
        }
    assert seen >= {b"PRESENT", b"DEFAULT", b"NOT_FOUND", b"INVALID"}
    assert refused > 200 and taken > 200
    assert server.info("fs")["fs_panics"] == 0


JUNK = {
    "text": b"junk",
    "nothing": b"",
    "a number": b"5",
    "zeros": b"\0" * 80,
    "a header of zeros": header(False, 0, b"\0\0\0", 0),
    "too many slots": header(False, 65_535, FINGERPRINT_OF_NOTHING, AT),
    "no times where they should be": header(True, 0, FINGERPRINT_OF_NOTHING, AT),
    "times that are cut off": header(True, 0, FINGERPRINT_OF_NOTHING, AT) + b"\xff\xff" + b"\0" * 99,
    "a time of no slot": header(True, 0, FINGERPRINT_OF_NOTHING, AT) + struct.pack("<HHq", 1, 10, AT),
    "a time of a slot that is none": header(True, 0, FINGERPRINT_OF_NOTHING, AT)
    + struct.pack("<HHq", 1, 0, 2**62),
    "a time too far away": header(False, 0, FINGERPRINT_OF_NOTHING, 2**47 - 1),
    "a time too long ago": header(False, 0, FINGERPRINT_OF_NOTHING, -(2**47)),
    "another format": b"\2" + header(False, 0, FINGERPRINT_OF_NOTHING, AT)[1:],
    "flags of another day": b"\x41" + header(False, 0, FINGERPRINT_OF_NOTHING, AT)[1:],
    "a header cut off": header(False, 0, FINGERPRINT_OF_NOTHING, AT)[:-1],
}


@pytest.mark.parametrize("what", JUNK)
def test_a_string_that_is_no_row_is_invalid_to_read_and_refused_to_write(client, what):
    client.set(ROW, JUNK[what])
    publish(client, GOOD, {"a": 1, "c": "z"})
    before, count = invalid_values(client), len(stored_features(client))
    told = fs(client, f"FS.GET {ROW} WITHSTATUS")
    plain = {name: answer for name, answer in told.items() if name != b"w"}
    assert plain == {name: [DEFAULTS.get(name.decode()), b"INVALID", None] for name in plain}
    assert len(plain) == count and told[b"w"] == [0, b"PRESENT", None]
    assert invalid_values(client) == before + count
    assert fs(client, f"FS.MGET a,s,c {ROW} {GOOD}") == [[7, None, None], [1, None, b"z"]]
    tensor = struct.pack("<2f", 7, math.nan) + struct.pack("<2f", 1, 2)
    assert fs(client, f"FS.TENSOR a,c {ROW} {GOOD}") == tensor
    explained = fs(client, f"FS.EXPLAIN {ROW}")
    assert explained[b"exists"] is True and explained[b"event_time_ms"] is None
    assert {f[b"status"] for f in explained[b"features"]} == {b"INVALID", b"PRESENT"}
    assert refusal(client, *f"FS.PUBLISH {ROW} a 1".split()).startswith(f"WRONGTYPE key '{ROW}'")
    # All rows or none.
    many = ("FS.MPUBLISH", GOOD, '{"a": 2}', ROW, '{"a": 2}')
    assert refusal(client, *many).startswith(f"WRONGTYPE key '{ROW}'")
    assert fs(client, f"FS.GET {GOOD} a") == {b"a": 1}
    assert client.get(ROW) == JUNK[what]
    assert client.xlen("fs:stream:view") == 1
    assert fs(client, f"FS.DEL {ROW}") == 1
    assert client.exists(ROW) == 0
    publish(client, ROW, {"a": 3})
    assert fs(client, f"FS.GET {ROW} WITHSTATUS a")[b"a"][:2] == [3, b"PRESENT"]


def invalid_values(client) -> int:
    return fs(client, "FS.INFO view")[b"invalid_values"]


OTHER_TYPES = {
    "a hash": ["HSET", ROW, "a", 1],
    "a list": ["RPUSH", ROW, "a"],
    "a set": ["SADD", ROW, "a"],
    "a sorted set": ["ZADD", ROW, 1, "a"],
    "a stream": ["XADD", ROW, "*", "a", 1],
}


@pytest.mark.parametrize("what", OTHER_TYPES)
def test_another_type_under_the_key_is_refused_to_both(client, what):
    client.execute_command(*OTHER_TYPES[what])
    publish(client, GOOD, {"a": 1})
    digest = client.execute_command("DEBUG", "DIGEST")
    for words in [
        ["FS.GET", ROW],
        ["FS.GET", ROW, "AT", clock_ms(client), "a"],
        ["FS.MGET", "a", GOOD, ROW],
        ["FS.TENSOR", "a", GOOD, ROW],
        ["FS.EXPLAIN", ROW],
        ["FS.SERVE", "all", "good", "row"],
        ["FS.PUBLISH", ROW, "a", 1],
        ["FS.MPUBLISH", GOOD, '{"a": 2}', ROW, '{"a": 2}'],
    ]:
        assert refusal(client, *words).startswith("WRONGTYPE "), words
        assert client.execute_command("DEBUG", "DIGEST") == digest, words
    assert fs(client, "FS.SCAN view 0 COUNT 1000")[1] == [b"good"]


def test_a_hash_of_a_view_that_was_of_hashes_is_refused_to_both(client):
    # The version is dropped and comes back packed.
    fs(client, "FS.REGISTER other ENTITY user SCHEMA a INT")
    fs(client, "FS.PUBLISH fs:v1:other:u1 a 1")
    fs(client, "FS.DROP other")
    fs(client, "FS.REGISTER other ENTITY user STORAGE PACKED SCHEMA a INT")
    for line in ("FS.GET fs:v1:other:u1", "FS.PUBLISH fs:v1:other:u1 a 2"):
        assert refusal(client, *line.split()).startswith("WRONGTYPE ")
    client.delete("fs:v1:other:u1")
    fs(client, "FS.PUBLISH fs:v1:other:u1 a 2")
    fs(client, "FS.DROP other")
    fs(client, "FS.REGISTER other ENTITY user SCHEMA a INT")
    for line in ("FS.GET fs:v1:other:u1", "FS.PUBLISH fs:v1:other:u1 a 2"):
        assert refusal(client, *line.split()).startswith("WRONGTYPE ")


def test_entries_for_a_damaged_row_become_dead_letters_and_the_others_go_on(client, server):
    client.set(ROW, "junk")
    resp2 = server.client()
    for entity in ("good", "row", "last"):
        add(resp2, entity, {"a": 5}, log="fs:stream:view")
    await_drained(resp2, "fs:stream:view")
    assert fs(client, f"FS.MGET a {GOOD} {ROW} {LAST}") == [[5], [7], [5]]
    assert client.get(ROW) == b"junk"
    ((_, letter),) = resp2.xrange("fs:dlq:view")
    assert any(b"WRONGTYPE" in value for value in letter.values())
    # The replay of the log tells as much, and goes on.
    fs(client, f"FS.DEL {ROW}")
    client.set(ROW, "junk")
    fs(client, "FS.REPLAY view FROM 0")
    assert client.get(ROW) == b"junk"
    fs(client, f"FS.DEL {ROW}")
    fs(client, "FS.REPLAY view FROM 0")
    assert fs(client, f"FS.MGET a {GOOD} {ROW} {LAST}") == [[5], [5], [5]]


def slot_at(client, name: str) -> int:
    return next(at for feature, at, _ in slots_of(document_of(client, "view")) if feature == name)


SLOTS = {
    "f": [struct.pack("<d", x) for x in (math.nan, math.inf, -math.inf)],
    "b": [b"\2", b"\xff"],
    "c": [struct.pack("<I", i) for i in (3, 2**32 - 1)],
    "v": [struct.pack("<2f", *pair) for pair in ((math.nan, 1), (1, math.inf))],
}


@pytest.mark.parametrize("name", SLOTS)
def test_a_slot_that_is_no_value_is_invalid_by_itself_and_mended_by_its_next_update(client, name):
    row = {"a": 1, "b": True, "c": "x", "v": [1, 2], "f": 1, "e": "end"}
    for spoiled in SLOTS[name]:
        publish(client, ROW, row)
        before = fs(client, f"FS.MGET * {ROW}")
        client.setrange(ROW, slot_at(client, name), spoiled)
        count = invalid_values(client)
        told = fs(client, f"FS.GET {ROW} WITHSTATUS")
        assert [n for n, (_, status, _) in told.items() if status == b"INVALID"] == [name.encode()]
        assert invalid_values(client) == count + 1
        # An update of another feature leaves it so.
        publish(client, ROW, {"a": 1})
        assert fs(client, f"FS.GET {ROW} WITHSTATUS {name}")[name.encode()][1] == b"INVALID"
        publish(client, ROW, {name: row[name]})
        assert fs(client, f"FS.MGET * {ROW}") == before


def test_a_text_of_a_list_that_is_none_is_invalid_by_itself(client):
    for text in (b"{}", b"[1", b"\xff", b"5"):
        publish(client, ROW, {"a": 1, "l": ["xyz"]})
        client.setrange(ROW, client.get(ROW).index(b'["xyz"]'), text.ljust(7))
        told = fs(client, f"FS.GET {ROW} WITHSTATUS a l")
        assert (told[b"a"][:2], told[b"l"][:2]) == ([1, b"PRESENT"], [None, b"INVALID"]), text


def test_an_update_never_makes_a_row_that_is_none(client):
    # A text that its bit says is not there, and that is there all the same.
    publish(client, ROW, {"a": 1, "s": "a long text", "e": "end"})
    bits_at = slot_at(client, "e") + 4
    client.setrange(ROW, bits_at, bytes([client.get(ROW)[bits_at] & ~0b100]))
    told = fs(client, f"FS.MGET a,s,e {ROW}")
    try:
        publish(client, ROW, {"a": 2, "e": ""})
    except valkey.ResponseError as refused:
        assert str(refused).startswith("WRONGTYPE ") and told == [[7, None, None]]
    else:
        assert told == [[1, None, b"end"]]
        assert fs(client, f"FS.MGET a,s,e {ROW}") == [[2, None, b""]]
        # What stood there is gone, and so are bytes behind the row.
        client.append(ROW, b"more")
        publish(client, ROW, {"a": 3})
        assert unpacked(client.get(ROW), document_of(client, "view"))[0] == {"a": 3, "e": b""}


# How many texts each say that they end where the row ends, how long it is, and what of memory the server may have.
OVERLAPS = {
    "more than a string may have": (300, 2_000_000, None),
    "more than there is memory": (1_000, 8_000_000, 4_000_000_000),
    "some": (20, 1_000_000, None),
}


@pytest.mark.parametrize("what", OVERLAPS)
@pytest.mark.parametrize("order", ["all of it", "forth and back", "the last one"])
def test_no_row_makes_its_next_update_much_larger(fresh_server, what, order):
    count, filling, memory = OVERLAPS[what]
    server = fresh_server()
    client = server.client(protocol=3)
    schema = " ".join(f"s{i} STRING" for i in range(count))
    fs(client, f"FS.REGISTER view ENTITY user STORAGE PACKED SCHEMA {schema} a INT")
    publish(client, ROW, {f"s{i}": "" for i in range(count)} | {"a": 1})
    row = client.get(ROW)
    start, end = len(row), len(row) + filling
    ends = {
        "all of it": [end] * count,
        "forth and back": [end, start] * (count // 2),
        "the last one": [start] * (count - 1) + [end],
    }[order]
    texts = struct.pack(f"<{count}I", *ends)
    client.set(ROW, row[:12] + texts + row[12 + len(texts) :] + b"x" * filling)
    if memory:
        resource.prlimit(server.process.pid, resource.RLIMIT_AS, (memory, memory))
    try:
        publish(client, ROW, {"a": 2})
    except valkey.ResponseError as refused:
        assert str(refused).startswith("WRONGTYPE ") and order == "forth and back"
        assert fs(client, f"FS.GET {ROW} WITHSTATUS a") == {b"a": [None, b"INVALID", None]}
    else:
        assert fs(client, f"FS.GET {ROW} a") == {b"a": 2}
    # The others are older than `a` now: each has a time of its own.
    assert client.strlen(ROW) <= end + 2 + 10 * count


# How long another writer makes a row, and the text of the update after it.
LONG = {"as long as a row may be": (370, 60), "longer than a row may be": (400, 60), "much longer": (450, 64)}


@pytest.mark.parametrize("what", LONG)
def test_an_update_of_a_very_long_row_is_made_or_refused_and_never_lost(fresh_server, what):
    # A text that another writer made longer than any update may be, and one beside it.
    long, more = (size << 20 for size in LONG[what])
    server = fresh_server({"fs.sweep-interval": 20})
    client = server.client(protocol=3, socket_timeout=60)
    fs(client, "FS.REGISTER view ENTITY user STORAGE PACKED SCHEMA s STRING t STRING a INT")
    publish(client, ROW, {"s": "", "t": "", "a": 1})
    end = client.strlen(ROW) + long
    client.setrange(ROW, end - 1, b"x")
    for slot in (12, 16):
        client.setrange(ROW, slot, struct.pack("<I", end))
    before = fs(client, f"FS.GET {ROW} WITHSTATUS a")[b"a"][:2]
    assert before == ([None, b"INVALID"] if long > 384 << 20 else [1, b"PRESENT"])
    entries = client.xlen("fs:stream:view")
    try:
        client.execute_command("FS.PUBLISH", ROW, "a", 2, "t", b"y" * more)
    except valkey.ResponseError:
        assert fs(client, f"FS.GET {ROW} WITHSTATUS a")[b"a"][:2] == before
        assert client.xlen("fs:stream:view") == entries
    else:
        assert fs(client, f"FS.GET {ROW} a") == {b"a": 2}
    if before[1] == b"INVALID":
        fs(client, f"FS.DEL {ROW}")
    publish(client, ROW, {"s": "short", "a": 3})
    assert fs(client, f"FS.MGET s,a {ROW}") == [[b"short", 3]]


def test_a_replica_follows_updates_of_damaged_rows_to_the_bit(fresh_server):
    primary = fresh_server()
    replica = primary.replica()
    client, chance = primary.client(protocol=3), random.Random(9)
    fs(client, f"FS.REGISTER view ENTITY user STORAGE PACKED SCHEMA {SCHEMA}")
    now_ms = clock_ms(client)
    features = stored_features(client)
    taken = 0
    for i in range(600):
        if i % 10 == 0 or not client.exists(ROW):
            client.delete(ROW)
            row = fill(client, chance, ROW, now_ms)
        for words in damages(chance, row):
            with contextlib.suppress(valkey.ResponseError):
                client.execute_command(*words)
        update = {f["name"]: good_value(chance, f) for f in chance.sample(features, 2)}
        with contextlib.suppress(valkey.ResponseError):
            publish(client, ROW, update)
            taken += 1
        client.rename(ROW, f"fs:v1:view:row{i % 50}")
    assert taken > 100
    primary.await_replicated(replica)
    other = replica.client()
    assert other.execute_command("DEBUG", "DIGEST") == client.execute_command("DEBUG", "DIGEST")
    rows = sorted(client.keys("fs:v1:view:*"))
    assert len(rows) > 40
    with_times = [
        (at.get(key), at.pexpiretime(key), at.execute_command("FS.MGET", "*", key))
        for at in (server.client() for server in (primary, replica))
        for key in rows
    ]
    assert with_times[: len(rows)] == with_times[len(rows) :]


def test_bad_values_are_refused_and_change_nothing(client):
    chance = random.Random(1)
    publish(client, ROW, {"a": 1, "c": "x", "v": [1, 2], "l": [1]})
    digest = client.execute_command("DEBUG", "DIGEST")
    for feature in stored_features(client):
        if feature["type"] == "STRING" and not feature.get("values"):
            continue
        for _ in range(6):
            update = json.dumps({"e": "new", feature["name"]: bad_value(chance, feature)})
            assert refusal(client, "FS.PUBLISH", ROW, "JSON", update).startswith("SCHEMA "), update
            assert client.execute_command("DEBUG", "DIGEST") == digest
