"""The bytes of packed rows are those that docs/PACKED.md tells: decoded by its own code, by struct, and by numpy."""

import json
import random
import struct
import subprocess
import sys

import numpy as np
import pytest
from packed_rows import (
    PACKED,
    Twins,
    document_of,
    documented,
    good_value,
    header,
    nameless,
    random_schema,
    refusal,
    slots_of,
    unpacked,
)
from windowed_view import clock_ms, fs

FULL = (
    "a INT b BOOL s STRING c STRING VALUES 3 x y z v VECTOR 2 raw FLOAT INPUT f FLOAT t TIMESTAMP l LIST "
    "count INT AGG COUNT raw WINDOW 1h e STRING"
)
AT = 1_760_000_000_000


def register(client, schema: str, *options, view: str = "view"):
    words = ("ENTITY", "user", "STORAGE", "PACKED", *options, "SCHEMA", *schema.split())
    assert client.execute_command("FS.REGISTER", view, *words) == b"OK"


def publish(client, key: str, at_ms: int, update: dict):
    return client.execute_command("FS.PUBLISH", key, "AT", at_ms, "JSON", json.dumps(update))


def fingerprint(row: bytes) -> bytes:
    return row[3:6]


def test_a_row_is_these_bytes(client):
    register(client, FULL)
    key = "fs:v1:view:u1"
    publish(client, key, AT + 5, {"a": -2, "b": True, "s": "grün", "c": "y", "v": [0.5, -1]})
    end = 12 + 8 + 1 + 4 + 4 + 8 + 1 + 5
    slots = struct.pack("<qBII2f", -2, 1, end, 1, 0.5, -1)
    row = client.get(key)
    assert row == header(False, 5, fingerprint(row), AT + 5) + slots + b"\x1f" + "grün".encode()
    # More of it, later and earlier; a value goes.
    text = '[1, "ü"]'.encode()
    client.execute_command("FS.PUBLISH", key, "AT", AT + 9, "l", text, "t", AT)
    publish(client, key, AT + 9, {"a": None})
    publish(client, key, AT, {"f": 0.1, "e": "", "b": False})
    times = [(0, AT + 9), (1, AT + 5), (2, AT + 5), (3, AT + 5), (4, AT + 5), (5, AT), (8, AT)]
    end = 12 + 8 + 1 + 4 + 4 + 8 + 8 + 8 + 4 + 4 + 2 + 2 + 10 * len(times) + 5
    slots = struct.pack("<qBII2f", 0, 1, end, 1, 0.5, -1)
    slots += struct.pack("<dqII", 0.1, AT, end + len(text), end + len(text))
    row = client.get(key)
    assert row == (
        header(True, 9, fingerprint(row), AT + 9)
        + slots
        + struct.pack("<H", 0b1_1111_1110)
        + struct.pack("<H", len(times))
        + b"".join(struct.pack("<Hq", *time) for time in times)
        + "grün".encode()
        + text
    )
    # All at one time: no times of its own.
    publish(client, key, AT + 20, {"a": 1, "b": True, "s": "", "c": "x", "v": [0, 0]})
    publish(client, key, AT + 20, {"f": 1, "t": AT, "l": [], "e": "e"})
    row = client.get(key)
    assert row.startswith(header(False, 9, fingerprint(row), AT + 20)) and row.endswith(b"[]e")


def test_documents_tell_where_the_slots_are(client):
    for seed in range(40):
        schema = random_schema(random.Random(seed), with_windows=seed % 2 == 0)
        view = f"view{seed}"
        words = ("ENTITY", "user", "STORAGE", "PACKED", "SCHEMA", *schema)
        assert client.execute_command("FS.REGISTER", view, *words) == b"OK"
        document = document_of(client, view)
        slots = slots_of(document)
        told = [(slot["feature"], slot["offset"]) for slot in document["packed"]]
        assert told == [(name, at) for name, at, _ in slots]
        for slot, (_, _, form) in zip(document["packed"], slots, strict=True):
            dtype = np.dtype(slot["type"])
            assert dtype.itemsize == struct.calcsize("<" + form), slot
            assert dtype.base.byteorder in "|=<"
    # FS.REGISTER takes the document back.
    again = client.execute_command("FS.DESCRIBE", "view3", "JSON")
    assert client.execute_command("FS.REGISTER", "view3", "JSON", again) == b"OK"
    client.execute_command("FS.DROP", "view3")
    assert client.execute_command("FS.REGISTER", "view3", "JSON", again) == b"OK"
    assert client.execute_command("FS.DESCRIBE", "view3", "JSON") == again


def as_told(value, feature: dict):
    """A value for comparing: a LIST as what its text means, the numbers of a VECTOR as float32."""
    if feature["type"] == "LIST" and isinstance(value, bytes):
        return json.loads(value)
    return np.array(value, "<f4").tobytes() if feature["type"] == "VECTOR" else value


@pytest.mark.parametrize("seed", range(8))
def test_decoded_rows_hold_what_the_server_tells(server, seed):
    twins = Twins(server, 700 + seed, with_windows=seed % 2 == 0)
    decode = documented()[0]["decode"]
    client = server.client(protocol=3)
    compared, removals = 0, 0
    for _ in range(10):
        twins.run(30)
        document = document_of(client, PACKED)
        schema = {feature["name"]: feature for feature in document["schema"]}
        for entity in twins.ids:
            key = twins.key(PACKED, entity)
            with client.pipeline(transaction=True) as pipeline:
                pipeline.get(key)
                pipeline.execute_command("FS.EXPLAIN", key)
                row, explained = pipeline.execute()
            told = {
                feature[b"feature"].decode(): feature
                for feature in explained[b"features"]
                if feature[b"window_end_ms"] is None
            }
            if row is None:
                assert explained[b"exists"] is False
                continue
            values, times = unpacked(row, document)
            decoded, decoded_times = decode(row, document)
            assert nameless(as_told_all(decoded, schema)) == nameless(as_told_all(values, schema))
            assert decoded_times == times
            for name, feature in told.items():
                assert feature[b"event_time_ms"] == times.get(name), name
                present = feature[b"status"] in (b"PRESENT", b"OUTSIDE_MAX_AGE")
                assert present == (name in values), name
                if feature[b"status"] == b"PRESENT":
                    served = as_told(feature[b"served"], schema[name])
                    assert nameless(served) == nameless(as_told(values[name], schema[name])), name
                    compared += 1
                removals += not present and name in times
    assert compared > 100 and removals > 0


def as_told_all(values: dict, schema: dict) -> dict:
    return {name: as_told(value, schema[name]) for name, value in values.items()}


def test_whole_rows_are_one_numpy_array(client):
    register(client, FULL)
    chance, rows = random.Random(5), 200
    schema = document_of(client, "view")["schema"]
    stored = [feature for feature in schema if not feature.get("input") and not feature.get("agg")]
    for i in range(rows):
        # The last feature is there, so that no slot is left out.
        update = {feature["name"]: good_value(chance, feature) for feature in stored}
        publish(client, f"fs:v1:view:u{i}", AT, update)
    dtype = documented()[0]["dtype_of"](document_of(client, "view"))
    keys = [f"fs:v1:view:u{i}" for i in range(rows)]
    array = np.frombuffer(b"".join(row[: dtype.itemsize] for row in client.mget(keys)), dtype)
    names = ("a", "b", "c", "v", "f", "t")
    told = client.execute_command("FS.TENSOR", ",".join(names), *keys)
    with np.errstate(over="ignore"):
        columns = [array[name].astype("<f4").reshape(rows, -1) for name in names]
    assert np.hstack(columns).tobytes() == told


# Fingerprints

BASE = "a INT c STRING VALUES 2 x y v VECTOR 2"
ROW = {"a": 1, "c": "x", "v": [1, 2]}
SAME = [
    BASE,
    "a INT DEFAULT 5 MIN 0 c STRING VALUES 2 x y DEFAULT x v VECTOR 2 DEFAULT 1,2",
    "a INT TTL 1h c STRING VALUES 2 x y DESCRIPTION text v VECTOR 2",
    f"{BASE} more INT",
    f"n INT INPUT {BASE}",
    f"n INT INPUT count INT AGG COUNT n WINDOW 1h {BASE}",
]
OTHERS = [
    "b INT c STRING VALUES 2 x y v VECTOR 2",
    "a TIMESTAMP c STRING VALUES 2 x y v VECTOR 2",
    "a FLOAT c STRING VALUES 2 x y v VECTOR 2",
    "a INT c STRING VALUES 2 y x v VECTOR 2",
    "a INT c STRING VALUES 2 x z v VECTOR 2",
    "a INT c STRING VALUES 3 x y z v VECTOR 2",
    "a INT c STRING VALUES 1 xy v VECTOR 2",
    "a INT c STRING v VECTOR 2",
    "a INT c STRING VALUES 2 x y v VECTOR 3",
    "a INT c STRING VALUES 2 x y w VECTOR 2",
    "c STRING VALUES 2 x y a INT v VECTOR 2",
    "n INT a INT c STRING VALUES 2 x y v VECTOR 2",
]


def test_fingerprints_are_equal_where_features_are_equal(client):
    prints = {}
    for i, schema in enumerate(SAME + OTHERS):
        register(client, schema, view=f"view{i}")
        key = f"fs:v1:view{i}:u1"
        names = [slot["feature"] for slot in document_of(client, f"view{i}")["packed"]]
        # Whatever the features are, the row holds those up to the vector.
        fill = {"b": 1, "a": 1_700_000_000_000, "c": "x", "n": 1, "v": [1, 2], "w": [1, 2]}
        update = {name: fill[name] for name in names if name in fill}
        if "xy" in schema:
            update["c"] = "xy"
        if "VECTOR 3" in schema:
            update["v"] = [1, 2, 3]
        publish(client, key, AT, update)
        prints[schema] = fingerprint(client.get(key))
    assert len({prints[schema] for schema in SAME}) == 1
    assert len(set(prints.values())) == 1 + len(OTHERS)


@pytest.mark.parametrize("schema", OTHERS)
def test_a_row_of_another_definition_is_invalid_and_never_garbage(client, schema):
    register(client, BASE)
    register(client, schema, view="other")
    publish(client, "fs:v1:view:u1", AT, ROW)
    client.copy("fs:v1:view:u1", "fs:v1:other:u1")
    told = fs(client, "FS.GET fs:v1:other:u1 WITHSTATUS")
    assert [status for _, status, _ in told[1::2]] == [b"INVALID"] * (len(told) // 2)
    assert {bytes(value or b"") for value, _, _ in told[1::2]} == {b""}


@pytest.mark.parametrize("schema", SAME)
def test_a_row_of_the_same_features_is_read(client, schema):
    register(client, BASE)
    register(client, schema, view="other")
    publish(client, "fs:v1:view:u1", AT, ROW)
    client.copy("fs:v1:view:u1", "fs:v1:other:u1")
    told = fs(client, "FS.MGET a,c,v fs:v1:other:u1")
    expected = [None, b"x", [b"1", b"2"]] if "TTL" in schema else [1, b"x", [b"1", b"2"]]
    assert told == [expected]
    # And it is written.
    publish(client, "fs:v1:other:u1", clock_ms(client), {"a": 7})
    assert fs(client, "FS.MGET a,c,v fs:v1:other:u1") == [[7, b"x", [b"1", b"2"]]]


def test_a_removal_in_a_row_of_other_features_is_not_taken_for_that_of_ours(client):
    # The row holds the feature that both have; what was removed is none of the other view's.
    register(client, "a INT b INT")
    register(client, "a INT z FLOAT", view="other")
    publish(client, "fs:v1:view:u1", AT + 1_000, {"a": 1, "b": None})
    client.rename("fs:v1:view:u1", "fs:v1:other:u1")
    assert refusal(client, "FS.PUBLISH", "fs:v1:other:u1", "AT", AT, "z", 1.5).startswith("WRONGTYPE ")
    told = fs(client, "FS.GET fs:v1:other:u1 WITHSTATUS")
    assert told == [b"a", [None, b"INVALID", None], b"z", [None, b"INVALID", None]]
    # Where both have all that the row tells of, it is read.
    register(client, "a INT b INT c FLOAT", view="wider")
    client.rename("fs:v1:other:u1", "fs:v1:wider:u1")
    publish(client, "fs:v1:wider:u1", AT, {"b": 5, "c": 1.5})
    assert fs(client, "FS.MGET a,b,c fs:v1:wider:u1") == [[1, None, b"1.5"]]


# The document


def test_the_documents_code_prints_what_it_says(fresh_server):
    server = fresh_server()
    client = server.client()
    _, blocks = documented()
    sessions = [text for language, text in blocks if language == "console"]
    code = "\n".join(text for language, text in blocks if language == "python")
    (printed,) = [text for language, text in blocks if language == "text"]
    schema = "age INT country STRING premium BOOL DEFAULT false taste VECTOR 2 city STRING"
    fs(client, f"FS.REGISTER user_profile ENTITY user TTL 30d SCHEMA {schema}")
    now = clock_ms(client)
    row = {"age": 34, "country": "DE", "taste": [0.25, 0.5], "city": "Berlin"}
    publish(client, "fs:v1:user_profile:user_001", now - 5, row)
    publish(client, "fs:v1:user_profile:user_001", now - 9, {"age": 33})
    (session,) = sessions
    for exchange in session.split("127.0.0.1:6379> ")[1:]:
        command, _, expected = exchange.strip().partition("\n")
        answer = fs(client, command)
        counts = [f"{i}) (integer) {n}" for i, n in enumerate(answer, 1)] if isinstance(answer, list) else []
        shown = "\n".join(counts) or answer.decode()
        assert shown == expected, command
    rows = [fs(client, f"FS.GET fs:v{version}:user_profile:user_001") for version in (1, 2)]
    assert rows[0] == rows[1]
    program = code.replace("6379", str(server.port))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == (printed, "")


def test_the_documents_definition_is_taken(client):
    text = next(text for language, text in documented()[1] if language == "" and "FS.REGISTER" in text)
    assert fs(client, text) == b"OK"
    told = document_of(client, "user_profile", 2)
    assert [slot["feature"] for slot in told["packed"]] == ["age", "country", "premium", "taste", "city"]


def fingerprint_as_documented(features: list[tuple[str, ...]]) -> bytes:
    """The low bytes of XXH3-64 over the parts of features, for at most 16 bytes.

    Source: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
    """
    text = b"".join(b"".join(part.encode() + b"\0" for part in feature) + b"\0" for feature in features)
    secret = bytes.fromhex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
        "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    )

    def word(data: bytes, at: int, form: str = "<Q") -> int:
        return struct.unpack_from(form, data, at)[0]

    def turned(number: int, bits: int) -> int:
        return (number << bits | number >> (64 - bits)) % 2**64

    length = len(text)
    if 4 <= length <= 8:
        both = word(text, length - 4, "<I") + (word(text, 0, "<I") << 32)
        hashed = both ^ word(secret, 8) ^ word(secret, 16)
        hashed ^= turned(hashed, 49) ^ turned(hashed, 24)
        hashed = hashed * 0x9FB21C651E98DF25 % 2**64
        hashed ^= (hashed >> 35) + length
        hashed = hashed * 0x9FB21C651E98DF25 % 2**64
        return (hashed ^ hashed >> 28).to_bytes(8, "little")[:3]
    assert 9 <= length <= 16
    low = word(text, 0) ^ word(secret, 24) ^ word(secret, 32)
    high = word(text, length - 8) ^ word(secret, 40) ^ word(secret, 48)
    product = low * high
    swapped = int.from_bytes(low.to_bytes(8, "little"), "big")
    hashed = (length + swapped + high + (product % 2**64 ^ product >> 64)) % 2**64
    hashed = (hashed ^ hashed >> 37) * 0x165667919E3779F9 % 2**64
    return (hashed ^ hashed >> 32).to_bytes(8, "little")[:3]


RECIPES = {
    "a INT": [("a", "INT")],
    "ab BOOL": [("ab", "BOOL")],
    "v VECTOR 2": [("v", "VECTOR 2")],
    "c STRING VALUES 1 x": [("c", "STRING", "x")],
    "c STRING VALUES 2 x yy": [("c", "STRING", "x", "yy")],
    "c STRING": [("c", "STRING")],
    "a INT b INT": [("a", "INT"), ("b", "INT")],
}


@pytest.mark.parametrize("schema", RECIPES)
def test_fingerprints_are_made_as_documented(client, schema):
    register(client, schema)
    features = RECIPES[schema]
    values = {"INT": 1, "BOOL": True, "VECTOR 2": [1, 2], "STRING": "x"}
    for count in range(1, len(features) + 1):
        update = {name: values[kind] for name, kind, *_ in features[:count]}
        publish(client, "fs:v1:view:u1", AT, update)
        row = client.get("fs:v1:view:u1")
        assert row.startswith(header(False, count, fingerprint_as_documented(features[:count]), AT))
    # A row of removals alone has the slots of what was removed.
    publish(client, "fs:v1:view:u2", AT, {features[0][0]: None})
    ((_, _, form), *_) = slots_of(document_of(client, "view"))
    slot = bytes(struct.calcsize("<" + form))
    if features[0] == ("c", "STRING"):
        # A text that is not there ends where it begins.
        slot = struct.pack("<I", 12 + 4 + 1 + 2 + 10)
    times = struct.pack("<HHq", 1, 0, AT)
    row = header(True, 1, fingerprint_as_documented(features[:1]), AT) + slot + b"\0" + times
    assert client.get("fs:v1:view:u2") == row
