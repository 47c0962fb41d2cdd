"""Packed rows while definitions change, and at the bounds of what a definition may be."""

import json
import struct

import numpy as np
import pytest
from packed_rows import document_of, header, nameless, refusal, unpacked
from profile_view import module_figures
from windowed_view import clock_ms, fs

from server import await_until

AT = 1_760_000_000_000
KEY = "fs:v1:view:u1"
SLOTS_BYTES_MAX, TEXTS_BYTES_MAX = 1 << 20, 128 << 20


def register(client, schema: str, *options, view: str = "view", storage: str = "PACKED"):
    words = (*options, "STORAGE", storage, "SCHEMA", *schema.split())
    entity = () if "VERSION" in options else ("ENTITY", "user")
    assert client.execute_command("FS.REGISTER", view, *entity, *words) == b"OK"


def publish(client, update: dict, *options, key: str = KEY):
    return client.execute_command("FS.PUBLISH", key, *options, "JSON", json.dumps(update))


def read(client, key: str = KEY) -> dict:
    """Feature to value and status."""
    flat = fs(client, f"FS.GET {key} WITHSTATUS")
    return {name.decode(): tuple(told[:2]) for name, told in zip(flat[::2], flat[1::2], strict=True)}


# FS.ALTER


def test_added_features_are_absent_from_old_rows_and_come_with_the_next_update(client):
    register(client, "a INT s STRING b BOOL")
    publish(client, {"a": 1, "s": "x"}, "AT", AT)
    row = client.get(KEY)
    fs(client, "FS.ALTER view ADD f FLOAT DEFAULT 0.5 ADD raw INT INPUT ADD e STRING ADD v VECTOR 300")
    assert client.get(KEY) == row
    expected = {
        "a": (1, b"PRESENT"),
        "s": (b"x", b"PRESENT"),
        "b": (None, b"NOT_FOUND"),
        "f": (b"0.5", b"DEFAULT"),
        "e": (None, b"NOT_FOUND"),
        "v": (None, b"NOT_FOUND"),
    }
    assert read(client) == expected
    # An update of what was there before makes the row no longer; one of the new features does.
    publish(client, {"a": 2}, "AT", AT)
    assert (client.strlen(KEY), client.get(KEY)[:6]) == (len(row), row[:6])
    publish(client, {"e": "y", "v": [0.25] * 300}, "AT", AT - 5)
    expected |= {"a": (2, b"PRESENT"), "e": (b"y", b"PRESENT"), "v": ([b"0.25"] * 300, b"PRESENT")}
    assert read(client) == expected
    values, times = unpacked(client.get(KEY), document_of(client, "view"))
    assert values == {"a": 2, "s": b"x", "e": b"y", "v": [0.25] * 300}
    assert times == {"a": AT, "s": AT, "e": AT - 5, "v": AT - 5}
    tensor = fs(client, f"FS.TENSOR f,v,a {KEY} fs:v1:view:nobody")
    expected_tensor = np.array([[0.5, *[0.25] * 300, 2], [0.5, *[np.nan] * 301]], "<f4")
    assert np.array_equal(np.frombuffer(tensor, "<f4").reshape(2, -1), expected_tensor, equal_nan=True)


def test_slots_do_not_move_when_features_are_added(client):
    register(client, "a INT s STRING")
    before = document_of(client, "view")["packed"]
    fs(client, "FS.ALTER view ADD f FLOAT ADD c STRING VALUES 2 x y")
    after = document_of(client, "view")["packed"]
    assert after[: len(before)] == before
    told = [(slot["feature"], slot["offset"], slot["type"]) for slot in after[len(before) :]]
    assert told == [("f", 24, "<f8"), ("c", 32, "<u4")]


def test_features_are_added_up_to_the_bound_of_a_row_and_not_beyond(client):
    # 63 of 4,096 float32 and 16,380 bytes more: 4 are left.
    register(client, " ".join(f"v{i} VECTOR 4096" for i in range(63)) + " w VECTOR 4095")
    publish(client, {"w": [1] * 4095}, "AT", AT)
    told = document_of(client, "view")
    for more in ("ADD a INT", "ADD v VECTOR 2", "ADD s STRING ADD b BOOL", "ADD s STRING ADD t STRING"):
        assert "1048576" in refusal(client, *f"FS.ALTER view {more}".split())
        assert document_of(client, "view") == told
    fs(client, "FS.ALTER view ADD s STRING ADD n INT INPUT ADD count INT AGG COUNT n WINDOW 1h")
    assert "1048577 bytes" in refusal(client, "FS.ALTER", "view", "ADD", "b", "BOOL")
    publish(client, {"s": "end"}, "AT", AT)
    assert fs(client, f"FS.MGET s,count {KEY}") == [[b"end", 0]]
    values, _ = unpacked(client.get(KEY), document_of(client, "view"))
    assert values == {"w": [1] * 4095, "s": b"end"}
    assert client.strlen(KEY) == 12 + SLOTS_BYTES_MAX + 9 + 3


def test_another_ttl_rules_reads_at_once_and_the_key_with_the_next_update(client):
    for view, storage in (("view", "PACKED"), ("hash", "HASH")):
        register(client, "a INT TTL 10m b INT", "TTL", "1h", view=view, storage=storage)
    now = clock_ms(client)
    keys = (KEY, "fs:v1:hash:u1")

    def both(*words):
        with client.pipeline(transaction=True) as pipeline:
            for view, key in zip(("view", "hash"), keys, strict=True):
                replaced = {"KEY": key, "VIEW": view}
                pipeline.execute_command(*(replaced.get(word, word) for word in words))
            ours, theirs = pipeline.execute()
        assert ours == theirs, words
        return ours

    both("FS.PUBLISH", "KEY", "AT", now - 700_000, "a", 1, "b", 1)
    assert both("PEXPIRETIME", "KEY") == now - 700_000 + 3_600_000
    assert read(client) == {"a": (None, b"OUTSIDE_MAX_AGE"), "b": (1, b"PRESENT")}
    for ttl, b in (("11m", b"OUTSIDE_MAX_AGE"), ("NONE", b"PRESENT"), ("20m", b"PRESENT")):
        expiry = both("PEXPIRETIME", "KEY")
        both("FS.ALTER", "VIEW", "TTL", ttl)
        assert both("PEXPIRETIME", "KEY") == expiry
        assert both("FS.GET", "KEY", "WITHSTATUS", "b")[1][1] == b
        both("FS.PUBLISH", "KEY", "AT", now - 600_000, "b", 2)
        expected = -1 if ttl == "NONE" else now - 600_000 + {"11m": 660_000, "20m": 1_200_000}[ttl]
        assert both("PEXPIRETIME", "KEY") == expected, ttl
        both("FS.PUBLISH", "KEY", "AT", now - 700_000, "b", 1)
        both("FS.PUBLISH", "KEY", "AT", now - 600_000, "a", 2)


@pytest.mark.parametrize("storage", ["HASH", "PACKED"])
def test_storage_cannot_be_altered(client, storage):
    register(client, "a INT", storage=storage)
    publish(client, {"a": 1})
    told, kind = document_of(client, "view"), client.type(KEY)
    for word in ("HASH", "PACKED"):
        assert "a new version" in refusal(client, "FS.ALTER", "view", "STORAGE", word)
        words = ("FS.REGISTER", "view", "ENTITY", "user", "STORAGE", word, "SCHEMA", "a", "INT")
        if word == storage:
            assert client.execute_command(*words) == b"OK"
        else:
            assert refusal(client, *words).startswith("VIEWEXISTS ")
    assert (document_of(client, "view"), client.type(KEY)) == (told, kind)
    assert kind == {"HASH": b"hash", "PACKED": b"string"}[storage]


# FS.DROP and again


def test_a_view_that_comes_back_the_same_reads_its_rows(client):
    schema = "a INT s STRING c STRING VALUES 2 x y l LIST"
    register(client, schema)
    publish(client, {"a": 1, "s": "x", "c": "y", "l": [1]}, "AT", AT)
    publish(client, {"a": 2}, "AT", AT + 5)
    before, row = read(client), client.get(KEY)
    fs(client, "FS.DROP view")
    assert refusal(client, "FS.GET", KEY).startswith("NOVIEW ")
    register(client, schema)
    assert read(client) == before
    publish(client, {"s": "late"}, "AT", AT - 5)
    assert (read(client), client.get(KEY)) == (before, row)
    # With more features, other defaults and limits.
    fs(client, "FS.DROP view")
    register(client, "a INT MIN 0 s STRING c STRING VALUES 2 x y DEFAULT x l LIST n INT DEFAULT 9")
    assert read(client) == before | {"n": (9, b"DEFAULT")}
    # With fewer: the row has slots that the view has not.
    fs(client, "FS.DROP view")
    register(client, "a INT s STRING")
    assert read(client) == {"a": (None, b"INVALID"), "s": (None, b"INVALID")}
    assert refusal(client, *f"FS.PUBLISH {KEY} a 1".split()).startswith("WRONGTYPE ")
    fs(client, f"FS.DEL {KEY}")
    publish(client, {"a": 1})
    assert read(client) == {"a": (1, b"PRESENT"), "s": (None, b"NOT_FOUND")}


@pytest.mark.parametrize("storage", ["HASH", "PACKED"])
@pytest.mark.parametrize("schema", ["a INT z FLOAT", "y STRING z FLOAT"])
@pytest.mark.parametrize("removed", [["b"], ["a", "b"]])
def test_a_view_that_comes_back_with_other_features_does_not_take_over_removals(
    client, storage, schema, removed
):
    register(client, "a INT b INT", storage=storage)
    publish(client, {"a": 1, "b": 1}, "AT", AT)
    publish(client, dict.fromkeys(removed), "AT", AT + 1_000)
    fs(client, "FS.DROP view")
    register(client, schema, storage=storage)
    update = ("FS.PUBLISH", KEY, "AT", AT + 500, "z", 1.5)
    if storage == "HASH":
        # A hash names what its times are of.
        client.execute_command(*update)
    else:
        # The row tells of features that the view has not: it says so instead of superseding without a word.
        assert refusal(client, *update).startswith("WRONGTYPE ")
        assert {status for _, status in read(client).values()} == {b"INVALID"}
        fs(client, f"FS.DEL {KEY}")
        client.execute_command(*update)
    assert read(client)["z"] == (b"1.5", b"PRESENT")


@pytest.mark.parametrize("storage", ["HASH", "PACKED"])
def test_a_removal_that_is_the_last_thing_a_row_has_is_kept(client, storage):
    register(client, "a INT b INT", storage=storage)
    publish(client, {"a": 1, "b": 1}, "AT", AT)
    publish(client, {"b": None}, "AT", AT + 1_000)
    publish(client, {"b": 2}, "AT", AT + 500)
    assert read(client)["b"] == (None, b"NOT_FOUND")
    publish(client, {"a": None}, "AT", AT + 2_000)
    publish(client, {"a": 3, "b": 3}, "AT", AT + 900)
    assert read(client) == {"a": (None, b"NOT_FOUND"), "b": (None, b"NOT_FOUND")}
    publish(client, {"a": 4, "b": 4}, "AT", AT + 1_500)
    assert read(client) == {"a": (None, b"NOT_FOUND"), "b": (4, b"PRESENT")}


def test_dropping_with_data_deletes_packed_rows_and_nothing_else(client):
    register(client, "a INT n INT INPUT w INT AGG COUNT n WINDOW 1h")
    register(client, "a INT", view="view2")
    for i in range(50):
        publish(client, {"a": 1, "n": 1}, key=f"fs:v1:view:u{i}")
    publish(client, {"a": 1}, key="fs:v1:view2:u1")
    client.set("fs:v1:view", "x")
    client.set("fs:v11:view:u1", "x")
    fs(client, "FS.DROP view DATA")
    await_until(lambda: module_figures(client)["dropping"] == 0, what="the end of FS.DROP DATA")
    kept = {b"fs:v1:view2:u1", b"fs:stream:view2", b"fs:v1:view", b"fs:v11:view:u1"}
    assert set(client.keys()) == kept


def test_versions_of_both_storages_are_filled_by_one_log(client):
    schema = "a INT s STRING n INT INPUT w INT AGG COUNT n WINDOW 1h"
    register(client, schema)
    register(client, schema, "VERSION", 2, "ENTITY", "user", storage="HASH")
    register(client, schema, "VERSION", 3, "ENTITY", "user")
    now = clock_ms(client)
    for i in range(30):
        update = {"a": i, "s": f"t{i}", "n": 1} if i % 3 else {"a": None, "n": 1}
        fields = {
            "entity_id": f"u{i % 4}",
            "features": json.dumps(update),
            "timestamp": (now - i * 7 % 40) / 1000,
        }
        client.xadd("fs:stream:view", fields)
    fs(client, "FS.CONSUME view")
    keys = [[f"fs:v{version}:view:u{i}" for i in range(4)] for version in (1, 2, 3)]
    told = [client.execute_command("FS.MGET", "*", *of_version) for of_version in keys]
    assert told[0] == told[1] == told[2] and told[0][1][0] is not None
    assert {client.type(key) for key in keys[0] + keys[2]} == {b"string"}
    assert client.mget(keys[0]) == client.mget(keys[2])
    assert {client.type(key) for key in keys[1]} == {b"hash"}
    # Each moves into the other by a replay.
    for version in (2, 3):
        client.delete(*keys[version - 1])
        fs(client, f"FS.REPLAY view FROM 0 VERSION {version} WINDOWS")
        assert client.execute_command("FS.MGET", "*", *keys[version - 1]) == told[0]


def test_a_row_moved_to_a_version_of_the_other_storage_is_refused(client):
    register(client, "a INT")
    register(client, "a INT", "VERSION", 2, "ENTITY", "user", storage="HASH")
    publish(client, {"a": 1})
    publish(client, {"a": 2}, key="fs:v2:view:u2")
    client.rename(KEY, "fs:v2:view:u1")
    client.rename("fs:v2:view:u2", "fs:v1:view:u2")
    for key in ("fs:v2:view:u1", "fs:v1:view:u2"):
        for line in (f"FS.GET {key}", f"FS.PUBLISH {key} a 1", f"FS.DEL {key}"):
            assert refusal(client, *line.split()).startswith("WRONGTYPE "), line
        client.delete(key)
        publish(client, {"a": 3}, key=key)
        assert fs(client, f"FS.GET {key}") == [b"a", 3]


# Bounds


@pytest.mark.parametrize(
    ("schema", "size"),
    [
        (" ".join(f"v{i} VECTOR 16384" for i in range(16)), SLOTS_BYTES_MAX),
        (" ".join(f"v{i} VECTOR 16384" for i in range(16)) + " b BOOL", None),
        (" ".join(f"v{i} VECTOR 16384" for i in range(17)), None),
        ("x FLOAT INPUT " + " ".join(f"v{i} VECTOR 16384" for i in range(16)), SLOTS_BYTES_MAX),
    ],
)
def test_slots_of_a_mebibyte_are_the_most(client, schema, size):
    words = ("FS.REGISTER", "view", "ENTITY", "user", "STORAGE", "PACKED", "SCHEMA", *schema.split())
    if size is None:
        refused = refusal(client, *words)
        assert "'view'" in refused and str(SLOTS_BYTES_MAX) in refused
        assert fs(client, "FS.VIEWS") == []
        # As hashes they are none too many.
        register(client, schema, storage="HASH")
        return
    assert client.execute_command(*words) == b"OK"
    names = [slot["feature"] for slot in document_of(client, "view")["packed"]]
    rng = np.random.default_rng(1)
    vectors = {name: rng.standard_normal(16384, "<f4") for name in names}
    words = [word for name, vector in vectors.items() for word in (name, vector.tobytes())]
    client.execute_command("FS.PUBLISH", KEY, "NOLOG", *words)
    assert client.strlen(KEY) == 12 + size + 2
    assert client.get(KEY)[12 : 12 + size] == b"".join(vector.tobytes() for vector in vectors.values())
    tensor = client.execute_command("FS.TENSOR", ",".join(names), KEY)
    assert tensor == b"".join(vector.tobytes() for vector in vectors.values())
    # One of them later: the others stay.
    changed = rng.standard_normal(16384, "<f4")
    client.execute_command("FS.PUBLISH", KEY, "NOLOG", names[3], changed.tobytes())
    vectors[names[3]] = changed
    tensor = client.execute_command("FS.TENSOR", ",".join(names), KEY)
    assert tensor == b"".join(vector.tobytes() for vector in vectors.values())


def test_a_text_has_a_share_of_what_all_texts_of_a_row_may_have(fresh_server):
    client = fresh_server({"proto-max-bulk-len": "1gb"}).client(socket_timeout=60)
    names = [f"s{i}" for i in range(64)]
    register(client, " ".join(f"{name} STRING" for name in names) + " a INT")
    most = TEXTS_BYTES_MAX // 64
    publish(client, {"a": 1}, "NOLOG")
    row = client.get(KEY)
    refused = refusal(client, "FS.PUBLISH", KEY, "NOLOG", "a", 2, "s1", b"x" * (most + 1))
    assert refused.startswith("SCHEMA feature 's1' of view 'view'") and str(most) in refused
    many = ("FS.MPUBLISH", KEY, '{"a": 2}', KEY, json.dumps({"s0": "x" * (most + 1)}))
    assert refusal(client, *many).startswith("SCHEMA ")
    assert client.get(KEY) == row
    client.execute_command("FS.PUBLISH", KEY, "NOLOG", "s1", b"x" * most, "s2", b"y" * most, "s63", b"end")
    # `a` is older than the texts: it has a time of its own.
    assert client.strlen(KEY) == 12 + 64 * 4 + 8 + 9 + (2 + 10) + 2 * most + 3
    assert client.execute_command("FS.GET", KEY, "s1")[1] == b"x" * most
    # A change of one leaves the others as they are.
    client.execute_command("FS.PUBLISH", KEY, "NOLOG", "s1", b"short")
    values, _ = unpacked(client.get(KEY), document_of(client, "view"))
    assert values == {"s1": b"short", "s2": b"y" * most, "s63": b"end", "a": 1}
    # The entry of a plain XADD becomes a dead letter.
    client.xadd("fs:stream:view", {"entity_id": "u1", "features": json.dumps({"s0": "x" * (most + 1)})})
    await_until(lambda: client.exists("fs:dlq:view"), what="the dead letter")
    assert client.execute_command("FS.GET", KEY, "s1")[1] == b"short"


def test_a_view_of_texts_alone(client):
    register(client, "s STRING t STRING l LIST")
    for update in ({"t": "x"}, {"s": ""}, {"l": []}, {"t": None}, {"s": "ü" * 5000}, {"t": "back"}):
        publish(client, update, "AT", AT)
    expected = {"s": ("ü" * 5000).encode(), "t": b"back", "l": b"[]"}
    assert {name: value for name, (value, _) in read(client).items()} == expected
    assert unpacked(client.get(KEY), document_of(client, "view"))[0] == expected
    assert "'s'" in refusal(client, "FS.TENSOR", "*", KEY)


def test_a_view_of_one_bool(client):
    register(client, "b BOOL")
    for value, byte in ((True, 1), (False, 0)):
        publish(client, {"b": value}, "AT", AT)
        row = client.get(KEY)
        assert row == header(False, 1, row[3:6], AT) + bytes([byte, 1])
        assert read(client) == {"b": (int(value), b"PRESENT")}
        assert fs(client, f"FS.TENSOR b {KEY}") == struct.pack("<f", value)
    publish(client, {"b": None}, "AT", AT + 1)
    assert read(client) == {"b": (None, b"NOT_FOUND")}
    assert client.type(KEY) == b"string"


def test_a_view_of_inputs_and_windows_alone_has_no_rows(client):
    register(client, "x FLOAT INPUT c INT AGG COUNT x WINDOW 1h")
    assert document_of(client, "view")["packed"] == []
    publish(client, {"x": 1})
    assert client.exists(KEY) == 0
    assert read(client) == {"c": (1, b"PRESENT")}
    client.set(KEY, "junk")
    publish(client, {"x": 1})
    assert read(client) == {"c": (2, b"PRESENT")}


def test_4096_features_of_all_types(client):
    kinds = ["INT", "BOOL", "STRING", "FLOAT", "VECTOR 3", "TIMESTAMP", "LIST", "STRING VALUES 2 x y"]
    values = [5, True, "text", 0.5, [1, 2, 3], AT, [1], "y"]
    schema = " ".join(f"f{i} {kinds[i % 8]}" for i in range(4096))
    for view, storage in (("view", "PACKED"), ("hash", "HASH")):
        register(client, schema, view=view, storage=storage)
    keys = (KEY, "fs:v1:hash:u1")

    def same() -> None:
        for words in (("FS.MGET", "*"), ("FS.TENSOR", "f0,f4095,f4,f2048,f2047")):
            ours, theirs = (client.execute_command(*words, key) for key in keys)
            assert ours == theirs
        with client.pipeline(transaction=True) as pipeline:
            for key in keys:
                pipeline.execute_command("FS.GET", key, "WITHSTATUS")
            ours, theirs = pipeline.execute()
        assert ours == theirs

    now = clock_ms(client)
    updates = [
        ({"f4095": "y"}, now - 9),
        ({f"f{i}": values[i % 8] for i in range(4096)}, now - 5),
        ({f"f{i}": None for i in range(0, 4096, 3)}, now - 3),
        ({f"f{i}": values[i % 8] for i in range(0, 4096, 7)}, now - 4),
        ({"f0": 7}, now),
        ({f"f{i}": None for i in range(1, 4096)}, now + 1),
    ]
    for update, at_ms in updates:
        for key in keys:
            publish(client, update, "AT", at_ms, "NOLOG", key=key)
        same()
    row = client.get(KEY)
    # All are named: one with its value, the others were removed.
    assert row.startswith(header(True, 4096, row[3:6], now + 1))
    assert len(row) == 12 + 512 * (8 + 1 + 4 + 8 + 12 + 8 + 4 + 4) + 512 + 2 + 10 * 4096
    document = document_of(client, "view")
    values, times = unpacked(row, document)
    assert values == {"f0": 7} and times == {"f0": now} | {f"f{i}": now + 1 for i in range(1, 4096)}


def test_values_of_all_lengths_survive_changes_of_their_neighbours(client):
    for view, storage in (("view", "PACKED"), ("hash", "HASH")):
        register(client, "a STRING b LIST c STRING d STRING VALUES 1 x e STRING", view=view, storage=storage)
    lengths = [0, 1, 255, 256, 65_535, 65_536, 300_000, 3, 0]
    for i, length in enumerate(lengths):
        name = "abce"[i % 4]
        value = [0] * (length // 3) if name == "b" else "z" * length
        told = []
        for view in ("view", "hash"):
            publish(client, {name: value, "d": "x"}, "AT", AT - i % 3, key=f"fs:v1:{view}:u1")
            told.append(nameless(fs(client, f"FS.MGET * fs:v1:{view}:u1")))
        assert told[0] == told[1]
    unpacked(client.get(KEY), document_of(client, "view"))
