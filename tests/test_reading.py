"""Reading: FS.GET, FS.MGET, FS.TENSOR, FS.EXPLAIN and FS.SCAN, in both protocols, against HMGET and numpy."""

import random
import struct
from decimal import Decimal

import numpy as np
import pytest
import valkey

from server import await_until

MINUTE_MS = 60_000
TYPES = {"i": "INT", "f": "FLOAT", "b": "BOOL", "s": "STRING", "t": "TIMESTAMP", "e": "VECTOR 3", "l": "LIST"}
SCHEMA = " ".join(f"{name} {type_}" for name, type_ in TYPES.items())
ROW = "fs:v1:profile:u1"


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def reader(server, request):
    reader = server.client(protocol=request.param)
    reader.protocol = request.param
    return reader


def fs(client, line: str, *more):
    return client.execute_command(*line.split(), *more)


def register(client, schema: str, options: str = "", view: str = "profile") -> None:
    assert fs(client, f"FS.REGISTER {view} ENTITY user {options} SCHEMA {schema}") == b"OK"


def as_map(reply) -> dict:
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


def get(client, key: str, *features: str) -> dict:
    return {name.decode(): value for name, value in as_map(fs(client, f"FS.GET {key}", *features)).items()}


def with_status(client, key: str, *features: str) -> dict:
    reply = as_map(fs(client, f"FS.GET {key} WITHSTATUS", *features))
    return {name.decode(): (value, status.decode(), age) for name, (value, status, age) in reply.items()}


def tensor(client, features: str, *keys: str) -> np.ndarray:
    return np.frombuffer(fs(client, f"FS.TENSOR {features}", *keys), "<f4").reshape(len(keys), -1)


def now_ms(client) -> int:
    seconds, microseconds = client.time()
    return seconds * 1000 + microseconds // 1000


def decoded(type_: str, field: bytes | None):
    """A field of a hash as a value, by the contract's table of stored forms."""
    if field is None:
        return None
    match type_.split()[0]:
        case "INT" | "TIMESTAMP":
            return int(field)
        case "FLOAT":
            return float(field)
        case "BOOL":
            return {b"1": True, b"0": False}[field]
        case "VECTOR":
            # A float32 is told by its own shortest decimal: 0.1, not 0.10000000149011612.
            return [float(str(x)) for x in np.frombuffer(field, "<f4")]
    return field


def replied(reader, type_: str, value):
    """A value of a reply, after its form was checked: doubles and booleans in RESP3, text and integers in RESP2."""
    if value is None or type_ in ("STRING", "LIST"):
        assert value is None or type(value) is bytes
        return value
    if type_.startswith("VECTOR"):
        return [replied(reader, "FLOAT", x) for x in value]
    in_resp3 = {"FLOAT": float, "BOOL": bool}.get(type_, int)
    in_resp2 = {"FLOAT": bytes}.get(type_, int)
    assert type(value) is (in_resp3 if reader.protocol == 3 else in_resp2), value
    return {"FLOAT": float, "BOOL": bool}.get(type_, int)(value)


def same(a, b) -> bool:
    """Equal, and of the same sign where both are zero."""
    return repr(a) == repr(b)


def random_value(draw: random.Random, type_: str):
    match type_.split()[0]:
        case "INT":
            return str(draw.choice([draw.randrange(-(2**63), 2**63), draw.randrange(-9, 10)]))
        case "FLOAT":
            return repr(
                draw.choice([draw.gauss(0, 1), draw.gauss(0, 1) * 10.0 ** draw.randrange(-300, 300), -0.0])
            )
        case "BOOL":
            return draw.choice(["true", "false"])
        case "STRING":
            return draw.randbytes(draw.choice([0, 1, 5, 50]))
        case "TIMESTAMP":
            return str(draw.randrange(10**11, 10**13))
        case "VECTOR":
            return np.array([draw.gauss(0, 10) for _ in range(3)], "<f4").tobytes()
    return draw.choice(["[]", '[1,"a"]', "[[null]]"])


@pytest.mark.parametrize("listpack", [128, 0], ids=["listpack", "hashtable"])
def test_readers_get_what_the_hash_holds(client, reader, listpack):
    register(client, SCHEMA)
    settings = client.config_get("hash-max-listpack-*")
    client.config_set("hash-max-listpack-entries", listpack, "hash-max-listpack-value", 4096)
    draw = random.Random(listpack)
    keys = [f"fs:v1:profile:u{i}" for i in range(40)]
    try:
        for key in keys:
            for name in draw.sample(sorted(TYPES), draw.randrange(8)):
                fs(client, f"FS.PUBLISH {key} {name}", random_value(draw, TYPES[name]))
    finally:
        client.config_set(*(word for setting in settings.items() for word in setting))
    full = [key for key in keys if client.exists(key)]
    assert {client.object("ENCODING", key) for key in full} == ({b"listpack"} if listpack else {b"hashtable"})

    for names in (list(TYPES), ["l", "i"], ["e"], ["s", "s", "b"], draw.sample(sorted(TYPES), 6)):
        rows = fs(reader, f"FS.MGET {','.join(names)}", *keys)
        for key, row in zip(keys, rows, strict=True):
            expected = [decoded(TYPES[n], f) for n, f in zip(names, client.hmget(key, names), strict=True)]
            told = [replied(reader, TYPES[n], value) for n, value in zip(names, row, strict=True)]
            assert same(told, expected), key
            by_name = get(reader, key, *names)
            assert list(by_name) == list(dict.fromkeys(names))
            told = {n: replied(reader, TYPES[n], value) for n, value in by_name.items()}
            assert same(told, dict(zip(names, expected, strict=True))), key
    assert fs(reader, "FS.MGET *", *keys) == fs(reader, f"FS.MGET {','.join(TYPES)}", *keys)
    assert [list(get(reader, key).values()) for key in keys] == fs(reader, "FS.MGET *", *keys)


def test_doubles_come_back_bit_by_bit(client, reader):
    register(client, "f FLOAT e VECTOR 4")
    draw = random.Random(3)
    numbers = [struct.unpack("<d", draw.randbytes(8))[0] for _ in range(500)]
    numbers = [x for x in numbers if np.isfinite(x)] + [
        1e300,
        5e-324,
        -5e-324,
        -0.0,
        0.0,
        0.1,
        2.0**63,
        1e16,
        1e17,
    ]
    for number in numbers:
        fs(client, f"FS.PUBLISH {ROW} NOLOG f {number!r}")
        assert struct.pack("<d", float(get(reader, ROW, "f")["f"])) == struct.pack("<d", number)
        assert struct.pack("<d", float(fs(reader, f"FS.MGET f {ROW}")[0][0])) == struct.pack("<d", number)
    words = np.frombuffer(draw.randbytes(4 * 4000), "<f4")
    words = words[np.isfinite(words)]
    for vector in np.resize(np.append(words, np.array([0.1, 1e-45, -0.0, 3.4028235e38], "<f4")), (900, 4)):
        fs(client, f"FS.PUBLISH {ROW} NOLOG e", vector.tobytes())
        told = [
            Decimal(repr(x)) if reader.protocol == 3 else Decimal(x.decode())
            for x in get(reader, ROW, "e")["e"]
        ]
        assert told == [Decimal(str(x)) for x in vector]
        assert np.array_equal(tensor(client, "e", ROW)[0].view("<u4"), vector.view("<u4"))


def test_the_widest_vector_comes_back_whole(client, reader):
    register(client, "e VECTOR 65536")
    vector = np.random.default_rng(1).standard_normal(65_536).astype("<f4")
    fs(client, f"FS.PUBLISH {ROW} e", vector.tobytes())
    assert fs(reader, f"FS.TENSOR e {ROW}") == vector.tobytes()
    assert np.array_equal(np.array([float(x) for x in get(reader, ROW)["e"]], "<f4"), vector)
    with pytest.raises(valkey.ResponseError, match="65536"):
        register(client, "e VECTOR 65537", view="wider")


def test_a_tensor_is_what_numpy_makes_of_the_rows(client):
    register(
        client,
        "i INT DEFAULT 7 f FLOAT b BOOL DEFAULT true t TIMESTAMP plan STRING VALUES 3 free pro team DEFAULT pro "
        "e VECTOR 2 DEFAULT 0.5,-1 plain VECTOR 3 city STRING VALUES 2 a b",
    )
    nan = np.nan
    missing = [7, nan, 1, nan, 1, 0.5, -1, nan, nan, nan, nan]
    rows = [
        ("", missing),
        ("i -5 f 0.1 b false t 1700000000123", [-5, 0.1, 0, 1700000000123, *missing[4:]]),
        ("plan team e 1e-3,3e38 plain 1,2,3 city a", [*missing[:4], 2, 1e-3, 3e38, 1, 2, 3, 0]),
        ("i 9223372036854775807 f 5e-324 b 1 plan free", [2**63 - 1, 5e-324, 1, nan, 0, *missing[5:]]),
        ("i 16777217 f -0.0 city b", [16777217, -0.0, *missing[2:10], 1]),
    ]
    keys = [f"fs:v1:profile:u{i}" for i in range(len(rows))]
    for key, (words, _) in zip(keys, rows, strict=True):
        if words:
            fs(client, f"FS.PUBLISH {key} {words}")
    expected = np.array([row for _, row in rows], dtype=object)
    exact = np.array(
        [[np.float32(np.int64(x)) if type(x) is int else np.float32(x) for x in row] for row in expected]
    )
    assert np.array_equal(tensor(client, "*", *keys), exact, equal_nan=True)
    assert np.array_equal(tensor(client, "plain,i,i", *keys), exact[:, [7, 8, 9, 0, 0]], equal_nan=True)
    assert np.array_equal(
        tensor(client, "city", keys[4], keys[0], keys[4]), exact[[4, 0, 4], 10:], equal_nan=True
    )


def test_a_feature_without_a_number_is_refused_before_any_row_is_read(client):
    register(client, "i INT s STRING l LIST plan STRING VALUES 1 free")
    fs(client, f"FS.PUBLISH {ROW} i 1")
    for features in ("s", "l", "*", "i,l", "plan,s"):
        for keys in ([ROW], ["fs:v1:profile:none"], [ROW, "fs:v1:other:u1"]):
            with pytest.raises(valkey.ResponseError, match=r"^SCHEMA feature '[sl]' of view 'profile'"):
                fs(client, f"FS.TENSOR {features}", *keys)
    assert tensor(client, "i,plan", ROW).shape == (1, 2)


# Freshness


def test_a_status_says_why_a_value_is_or_is_not_served(client, reader):
    register(client, "a INT DEFAULT 7 b FLOAT TTL 10m c STRING TTL 10m DEFAULT old d BOOL e INT", "TTL 1h")
    start = now_ms(client)
    oldest, old, new = start - 59 * MINUTE_MS, start - 11 * MINUTE_MS, start - 5 * MINUTE_MS
    fs(client, f"FS.PUBLISH {ROW} AT {oldest} a 1 d true")
    fs(client, f"FS.PUBLISH {ROW} AT {old} b 0.5 c x")
    fs(client, f"FS.PUBLISH {ROW} AT {new} JSON", '{"e":null}')

    def check(expected: dict) -> None:
        """Expected are value, status and event time."""
        statuses = with_status(reader, ROW)
        assert {n: status[:2] for n, status in statuses.items()} == {n: e[:2] for n, e in expected.items()}
        for name, (_, _, at_ms) in expected.items():
            age_ms = statuses[name][2]
            assert age_ms is at_ms is None or start <= at_ms + age_ms <= now_ms(client), name
        plain = [value for value, _, _ in statuses.values()]
        assert list(get(reader, ROW).values()) == plain
        assert fs(reader, f"FS.MGET * {ROW}") == [plain]

    true = True if reader.protocol == 3 else 1
    check(
        {
            "a": (1, "PRESENT", oldest),
            "b": (None, "OUTSIDE_MAX_AGE", old),
            "c": (b"old", "OUTSIDE_MAX_AGE", old),
            "d": (true, "PRESENT", oldest),
            "e": (None, "NOT_FOUND", None),
        }
    )
    # The newest event keeps the row; what is older than the view's TTL is not served from it.
    too_old = (start - 61 * MINUTE_MS) // 1000 * 1000
    client.hset(ROW, mapping={"b": "x", "_times": f'{{"a":{too_old // 1000}}}', "_updated_at": new / 1000})
    client.hdel(ROW, "d")
    check(
        {
            "a": (7, "OUTSIDE_MAX_AGE", too_old),
            "b": (None, "INVALID", new),
            "c": (b"x", "PRESENT", new),
            "d": (None, "NOT_FOUND", None),
            "e": (None, "NOT_FOUND", None),
        }
    )


def test_a_new_ttl_rules_reads_at_once(client, reader):
    register(client, "a INT DEFAULT 7", "TTL 1h")
    fs(client, f"FS.PUBLISH {ROW} AT {now_ms(client) - 20 * MINUTE_MS} a 1")
    for ttl, served in [("10m", (7, "OUTSIDE_MAX_AGE")), ("30m", (1, "PRESENT")), ("NONE", (1, "PRESENT"))]:
        fs(client, f"FS.ALTER profile TTL {ttl}")
        assert with_status(reader, ROW)["a"][:2] == served, ttl
        assert fs(reader, f"FS.MGET a {ROW}") == [[served[0]]]
        assert tensor(client, "a", ROW) == [[served[0]]]


def test_a_value_from_ahead_of_the_clock_is_fresh(client, reader):
    register(client, "a INT TTL 1s")
    fs(client, f"FS.PUBLISH {ROW} AT {now_ms(client) + 2 * MINUTE_MS} a 1")
    assert with_status(reader, ROW) == {"a": (1, "PRESENT", 0)}


def test_a_value_grows_too_old_while_fresher_ones_stay(client, reader):
    register(client, "a INT DEFAULT 7 b INT TTL 250ms DEFAULT 8", "TTL 1h")
    fs(client, f"FS.PUBLISH {ROW} a 1 b 1")
    assert with_status(reader, ROW)["b"][:2] == (1, "PRESENT")
    value, status, age = await_until(
        lambda: (told := with_status(reader, ROW)["b"])[1] != "PRESENT" and told, what="b to grow too old"
    )
    assert (value, status) == (8, "OUTSIDE_MAX_AGE") and age > 250
    assert with_status(reader, ROW)["a"][:2] == (1, "PRESENT")
    assert tensor(client, "*", ROW).tolist() == [[1, 8]]


def test_a_missing_row_is_a_row_without_values(client, reader):
    register(client, "a INT DEFAULT 7 b FLOAT DEFAULT 0.5 c BOOL d STRING DEFAULT x e VECTOR 2 DEFAULT 1,0.1")
    half, vector = (0.5, [1.0, 0.1]) if reader.protocol == 3 else (b"0.5", [b"1", b"0.1"])
    values = {"a": 7, "b": half, "c": None, "d": b"x", "e": vector}
    fs(client, "FS.PUBLISH fs:v1:profile:gone a 1")
    client.pexpire("fs:v1:profile:gone", 1)
    await_until(lambda: client.pttl("fs:v1:profile:gone") == -2, what="the row to expire")
    fs(client, "FS.PUBLISH fs:v1:profile:empty JSON", '{"a":null}')
    for key in ("fs:v1:profile:none", "fs:v1:profile:gone", "fs:v1:profile:empty"):
        assert get(reader, key) == values
        assert fs(reader, f"FS.MGET * {key}") == [list(values.values())]
        statuses = {n: (v, "NOT_FOUND" if v is None else "DEFAULT", None) for n, v in values.items()}
        assert with_status(reader, key) == statuses
        numbers = np.array([[7, 0.5, np.nan, 1, 0.1]], "<f4")
        assert np.array_equal(tensor(client, "a,b,c,e", key), numbers, equal_nan=True)
        told = as_map(fs(reader, f"FS.EXPLAIN {key}"))
        assert bool(told[b"exists"]) == (key == "fs:v1:profile:empty")
        assert [as_map(feature)[b"served"] for feature in told[b"features"]] == list(values.values())


# Rows that others wrote

HAND_WRITTEN = [
    ("i", [b"25.0", b"25"], 25),
    ("i", [b"abc", b"", b"5.5", b"9223372036854775808", b"0x19", b"\xff", b"25\0"], None),
    ("f", [b"1e3", b"1000", b"1000.0"], 1000.0),
    ("f", [b"nan", b"inf", b"", b"1,5", b"1e999"], None),
    ("b", [b"True", b"true", b"1"], True),
    ("b", [b"False", b"0"], False),
    ("b", [b"yes", b"", b"2"], None),
    ("s", [b"\xff\0"], b"\xff\0"),
    ("s", [b""], b""),
    ("t", [b"1700000000000"], 1700000000000),
    ("t", [b"1700000000", b"now"], None),
    ("e", [b"0.1,0.2,-3", b"[0.1, 0.2, -3.0]", np.array([0.1, 0.2, -3], "<f4").tobytes()], [0.1, 0.2, -3.0]),
    ("e", [b"1,2", b"1,2,3,4", b"", b"x", b"\0" * 11, b"\0" * 16, b"\xff" * 12], None),
    ("l", [b"[1]"], b"[1]"),
    ("l", [b"{}", b"", b"[1", b"[\xff]"], None),
]


def test_a_field_that_is_not_of_its_type_is_absent_and_counted(client, reader):
    register(client, SCHEMA)
    invalid = 0
    for name, fields, value in HAND_WRITTEN:
        for field in fields:
            client.delete(ROW)
            client.hset(ROW, mapping={name: field, "note": "mine"})
            told, status, age = with_status(reader, ROW)[name]
            assert (replied(reader, TYPES[name], told), age) == (value, None), field
            assert status == ("INVALID" if value is None else "PRESENT"), field
            assert same(replied(reader, TYPES[name], get(reader, ROW, name)[name]), value), field
            invalid += 2 * (value is None)
    told = as_map(fs(client, "FS.INFO profile"))
    assert told[b"invalid_values"] == invalid


def test_only_fields_that_bear_the_name_of_a_feature_are_read(client, reader):
    register(client, SCHEMA)
    client.hset(ROW, mapping={"I": 1, "i ": 1, "i\0": 1, "ii": 1, "": 1, "_i": 1, "profile": 1, "i,f": 1})
    for features in ([], ["i", "f"]):
        assert set(get(reader, ROW, *features).values()) == {None}
    assert fs(reader, f"FS.MGET * {ROW}") == [[None] * 7]
    for features in ("I", "i ,f,", "", "ii", "_updated_at", "i\0"):
        with pytest.raises(valkey.ResponseError, match="NOFEATURE"):
            fs(reader, "FS.MGET", features, ROW)


@pytest.mark.parametrize(
    ("updated_at", "event_time_ms"),
    [
        ("1700000000", 1700000000000),
        ("1700000000.5", 1700000000500),
        ("1700000000.123456", 1700000000123),
        ("", None),
        ("yesterday", None),
        ("nan", None),
        ("-5", None),
        ("1700000000000", None),
    ],
)
def test_the_time_of_a_row_written_by_hand_is_read_where_it_is_one(client, reader, updated_at, event_time_ms):
    register(client, "a INT b INT TTL 1h")
    client.hset(ROW, mapping={"a": 1, "b": 2, "_updated_at": updated_at})
    statuses = with_status(reader, ROW)
    if event_time_ms is None:
        # Nobody knows how old it is, so no TTL can rule it.
        assert statuses == {"a": (1, "PRESENT", None), "b": (2, "PRESENT", None)}
    else:
        assert statuses["b"][:2] == (None, "OUTSIDE_MAX_AGE")
        assert 0 <= now_ms(client) - event_time_ms - statuses["a"][2] < MINUTE_MS
    assert as_map(fs(client, f"FS.EXPLAIN {ROW}"))[b"event_time_ms"] == event_time_ms


def test_a_field_that_expired_by_itself_is_absent(client, reader, server):
    if server.version < (9,):
        pytest.skip("fields expire since Valkey 9")
    register(client, SCHEMA)
    fs(client, f"FS.PUBLISH {ROW} i 1 f 2 s x t 1700000000000 b 1")
    client.execute_command("HPEXPIRE", ROW, 1, "FIELDS", 2, "i", "s")
    await_until(lambda: client.hmget(ROW, "i", "s") == [None, None], what="the fields to expire")
    assert [get(reader, ROW)[n] for n in "is"] == [None, None]
    assert get(reader, ROW, "i") == {"i": None}
    # What is published anew does not inherit the expiry of the field.
    client.execute_command("HPEXPIRE", ROW, 100_000, "FIELDS", 1, "f")
    fs(client, f"FS.PUBLISH {ROW} f 3 i 4")
    assert client.execute_command("HPTTL", ROW, "FIELDS", 2, "f", "i") == [-1, -1]


def test_wide_rows_read_like_any_other(client, reader):
    names = [f"g{i}" for i in range(300)]
    register(client, " ".join(f"{name} FLOAT" for name in names))
    draw = random.Random(1)
    keys = [f"fs:v1:profile:u{i}" for i in range(20)]
    for key in keys:
        chosen = draw.sample(names, draw.choice([1, 20, 150, 300]))
        fs(client, f"FS.PUBLISH {key}", *(word for name in chosen for word in (name, repr(draw.random()))))
        # A hash table that grew and shrank is scanned in another order.
        client.hdel(key, *draw.sample(names, 100))
        client.hset(key, mapping={f"x{i}": "y" * 100 for i in range(draw.randrange(2000))} | {"z": 1})
        client.hdel(key, *[f"x{i}" for i in range(0, 2000, 3)])
    for chosen in (names, names[::-1], draw.sample(names, 100), ["g299"], ["g7", "g299", "g0"]):
        expected = [[None if f is None else float(f) for f in client.hmget(key, chosen)] for key in keys]
        told = fs(reader, f"FS.MGET {','.join(chosen)}", *keys)
        assert [[None if x is None else float(x) for x in row] for row in told] == expected
        numbers = np.array([[np.nan if x is None else x for x in row] for row in expected], "<f4")
        assert np.array_equal(tensor(client, ",".join(chosen), *keys), numbers, equal_nan=True)
        assert [get(reader, key, *chosen) for key in keys] == [
            dict(zip(chosen, row, strict=True)) for row in told
        ]


# FS.EXPLAIN and FS.SCAN


def test_an_explanation_agrees_with_what_is_served(client, reader):
    register(client, "a INT DEFAULT 7 b FLOAT TTL 10m c STRING d INT e VECTOR 2 f LIST", "TTL 1h")
    start = now_ms(client)
    fs(client, f"FS.PUBLISH {ROW} AT {start - 20 * MINUTE_MS} a 1 b 0.5 e 1,0.1")
    fs(client, f"FS.PUBLISH {ROW} AT {start - MINUTE_MS} JSON", '{"c":"x","d":null}')
    client.hset(ROW, "f", "{}")
    told = as_map(fs(reader, f"FS.EXPLAIN {ROW}"))
    features = {as_map(entry)[b"feature"].decode(): as_map(entry) for entry in told.pop(b"features")}
    assert 0 <= told.pop(b"expires_in_ms") - client.pttl(ROW) < MINUTE_MS
    assert bool(told.pop(b"exists"))
    assert told == {
        b"key": ROW.encode(),
        b"view": b"profile",
        b"version": 1,
        b"event_time_ms": start - MINUTE_MS,
    }

    statuses = with_status(reader, ROW)
    assert {n: (f[b"served"], f[b"status"].decode()) for n, f in features.items()} == {
        n: (value, status) for n, (value, status, _) in statuses.items()
    }
    fields = dict(zip(features, client.hmget(ROW, *features), strict=True))
    assert {n: f[b"stored"] for n, f in features.items()} == fields | {"e": statuses["e"][0]}
    old, new = start - 20 * MINUTE_MS, start - MINUTE_MS
    event_times = {"a": old, "b": old, "c": new, "d": new, "e": old, "f": new}
    assert {n: f[b"event_time_ms"] for n, f in features.items()} == event_times
    assert {n: f[b"ttl_ms"] for n, f in features.items()} == {
        n: (10 if n == "b" else 60) * MINUTE_MS for n in features
    }
    assert features["b"][b"time_left_ms"] == 0
    assert 0 <= old + 60 * MINUTE_MS - start - features["a"][b"time_left_ms"] < MINUTE_MS
    types = [f[b"type"] for f in features.values()]
    assert types == [b"INT", b"FLOAT", b"STRING", b"INT", b"VECTOR 2", b"LIST"]
    for name, words in {"b": b"10m", "d": b"removed", "f": b"'{}'"}.items():
        assert words in features[name][b"reason"], features[name]


def scanned(client, line: str) -> list[bytes]:
    ids, cursor = [], b"0"
    while True:
        cursor, step = fs(client, f"FS.SCAN {line.format(cursor=cursor.decode())}")
        ids += step
        if cursor == b"0":
            return ids


def test_a_scan_lists_the_rows_of_one_version(client):
    for view in ("profile", "profile VERSION 2", "profile2"):
        register(client, "a INT", view=view)
    ids = {1: [b"u%d" % i for i in range(500)], 2: [b"", b"\xff\0", b"a:b", b"*", b"{t}", b"x" * 512][1:]}
    pipeline = client.pipeline(transaction=False)
    for version, of_version in ids.items():
        for entity in of_version:
            pipeline.execute_command("FS.PUBLISH", b"fs:v%d:profile:%s" % (version, entity), "a", 1)
    pipeline.execute_command("FS.PUBLISH", "fs:v1:profile2:other", "a", 1)
    pipeline.set("fs:v1:profile:string", "x")
    pipeline.hset("fs:v1:profile:", "a", 1)
    pipeline.execute()
    for words in ("", "COUNT 1", "COUNT 10000", "COUNT 7"):
        assert sorted(set(scanned(client, f"profile {{cursor}} VERSION 1 {words}"))) == sorted(ids[1])
        assert sorted(set(scanned(client, f"profile {{cursor}} {words}"))) == sorted(ids[2])
    assert scanned(client, "profile2 {cursor}") == [b"other"]
    for words, code in [
        ("nobody 0", "NOVIEW"),
        ("profile 0 VERSION 3", "NOVIEW"),
        ("profile x", "cursor"),
        ("profile -1", "cursor"),
        ("profile 0 COUNT 0", "COUNT"),
        ("profile 0 MATCH *", "MATCH"),
    ]:
        with pytest.raises(valkey.ResponseError, match=code):
            fs(client, f"FS.SCAN {words}")


# What cannot be read


def test_keys_that_do_not_belong_together_or_hold_no_row_are_refused(client, reader):
    for view in ("profile", "profile VERSION 2", "other"):
        register(client, "a INT x INT INPUT", view=view)
    fs(client, f"FS.PUBLISH {ROW} a 1")
    client.set("fs:v1:profile:string", "x")
    client.xadd("fs:v1:profile:stream", {"a": 1})
    cases = [
        (f"{{}} a {ROW} fs:v2:profile:u1", "ERR", "fs:v2:profile:u1"),
        (f"{{}} a {ROW} fs:v1:other:u1", "ERR", "fs:v1:other:u1"),
        (f"{{}} a {ROW} user:1", "ERR", "user:1"),
        (f"{{}} a {ROW} fs:v1:profile:string", "WRONGTYPE", "fs:v1:profile:string"),
        (f"{{}} a fs:v1:profile:stream {ROW}", "WRONGTYPE", "fs:v1:profile:stream"),
        (f"{{}} x {ROW}", "NOFEATURE", "'x'"),
        (f"{{}} b {ROW}", "NOFEATURE", "'b'"),
        (f"{{}} *,a {ROW}", "NOFEATURE", "'*'"),
        ("{} a fs:v3:profile:u1", "NOVIEW", "'profile'"),
        ("{} a fs:v1:third:u1", "NOVIEW", "'third'"),
    ]
    for line, code, part in cases:
        for command in ("FS.MGET", "FS.TENSOR"):
            with pytest.raises(valkey.ResponseError) as caught:
                fs(reader, line.format(command))
            assert part in str(caught.value)
            assert code == "ERR" or str(caught.value).startswith(code)
    for command in ("FS.GET", "FS.EXPLAIN"):
        for key, code in [
            ("fs:v1:profile:string", "WRONGTYPE"),
            ("fs:v3:profile:u1", "NOVIEW"),
            ("user:1", "user:1"),
        ]:
            with pytest.raises(valkey.ResponseError, match=code):
                fs(reader, f"{command} {key}")
    for features in (["x"], ["a", "x"], ["b"], ["WITHSTATUS", "x"], ["_updated_at"]):
        with pytest.raises(valkey.ResponseError, match="NOFEATURE"):
            fs(reader, f"FS.GET {ROW}", *features)
