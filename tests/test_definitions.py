"""Definitions: FS.REGISTER in both forms, FS.ALTER, FS.DESCRIBE, FS.VIEWS and FS.DROP."""

import json

import numpy as np
import pytest

from server import await_until

ROW, LOG, LETTERS = "fs:v1:profile:u1", "fs:stream:profile", "fs:dlq:profile"
RESERVED = (
    "at event nolog json withstatus default ttl min max values input description agg window hop where expr"
)
FULL = (
    "VERSION 1 ENTITY user TTL 7d LOG ON MAXLEN 500 CONSUMER ON EXTRA REFUSE STORAGE HASH DESCRIPTION text SCHEMA "
    "age INT DEFAULT 1 TTL 1d MIN 0 MAX 150 DESCRIPTION years plan STRING DEFAULT pro VALUES 2 free pro "
    "emb VECTOR 2 DEFAULT 0.5,-1 seen TIMESTAMP tags LIST raw FLOAT INPUT"
)
FULL_DOCUMENT = {
    "view": "profile",
    "version": 1,
    "entity": "user",
    "ttl": "7d",
    "log": True,
    "maxlen": 500,
    "consumer": True,
    "extra": "refuse",
    "storage": "hash",
    "description": "text",
    "schema": [
        {
            "name": "age",
            "type": "INT",
            "default": 1,
            "ttl": "1d",
            "min": 0,
            "max": 150,
            "description": "years",
        },
        {"name": "plan", "type": "STRING", "default": "pro", "values": ["free", "pro"]},
        {"name": "emb", "type": "VECTOR", "dim": 2, "default": [0.5, -1]},
        {"name": "seen", "type": "TIMESTAMP"},
        {"name": "tags", "type": "LIST"},
        {"name": "raw", "type": "FLOAT", "input": True},
    ],
}


def fs(client, line: str, *more):
    return client.execute_command(*line.split(), *more)


def as_map(reply) -> dict:
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {name.decode(): value for name, value in pairs}


def describe(client, line: str = "profile") -> dict:
    told = as_map(fs(client, f"FS.DESCRIBE {line}"))
    return told | {"schema": [as_map(feature) for feature in told["schema"]]}


def document(client, line: str = "profile") -> bytes:
    return fs(client, f"FS.DESCRIBE {line} JSON")


def views(client) -> list:
    return fs(client, "FS.VIEWS")


def await_dropped(client) -> None:
    await_until(lambda: as_map(fs(client, "FS.INFO"))["dropping"] == 0, what="the end of FS.DROP DATA")


def refused(client, code: str, line: str, *more) -> str:
    """The message of a call that is refused with this code, told by a script: the client takes ERR off."""
    message = client.eval("return redis.pcall(unpack(ARGV)).err", 0, *line.split(), *more)
    assert message and message.startswith(code.encode() + b" "), (line, more, message)
    return message.decode()


def test_the_two_forms_of_a_definition_say_the_same(client):
    shorter = json.loads(json.dumps(FULL_DOCUMENT))
    for name in ("view", "version", "log", "consumer", "extra", "storage"):
        del shorter[name]
    shorter["ttl"] = 7 * 86_400
    shorter["schema"] = {feature.pop("name"): feature for feature in shorter["schema"]}
    shorter["schema"]["seen"] = "timestamp"
    shorter["schema"]["emb"] = {"type": "embedding", "default": "0.5,-1"}
    assert fs(client, f"FS.REGISTER profile {FULL}") == b"OK"
    told = describe(client), document(client)
    for other in (FULL_DOCUMENT, shorter):
        assert fs(client, "FS.REGISTER profile JSON", json.dumps(other)) == b"OK"
        assert fs(client, "FS.DROP profile") == b"OK"
        assert fs(client, "FS.REGISTER profile json", json.dumps(other)) == b"OK"
        assert (describe(client), document(client)) == told
    assert fs(client, f"FS.REGISTER profile {FULL.lower()}") == b"OK"


def test_either_storage_is_told_and_taken_back(client):
    for storage in ("HASH", "PACKED"):
        words = FULL.replace("STORAGE HASH", f"STORAGE {storage}")
        assert fs(client, f"FS.REGISTER profile {words}") == b"OK"
        told, described = document(client), describe(client)
        assert described["storage"] == json.loads(told)["storage"].encode() == storage.lower().encode()
        assert ("packed" in json.loads(told)) == (storage == "PACKED")
        # What is told of the slots is not needed to make them again.
        shorter = {
            name: value for name, value in json.loads(told).items() if name not in ("packed", "tensor")
        }
        for other in (told, json.dumps(shorter), json.dumps(FULL_DOCUMENT | {"storage": storage.lower()})):
            assert fs(client, "FS.REGISTER profile JSON", other) == b"OK"
            assert fs(client, "FS.DROP profile") == b"OK"
            assert fs(client, "FS.REGISTER profile JSON", other) == b"OK"
            assert (document(client), describe(client)) == (told, described)
        assert fs(client, "FS.DROP profile") == b"OK"


def test_what_is_not_said_has_its_default(client):
    fs(client, "FS.REGISTER profile ENTITY user SCHEMA age INT")
    (feature,) = (told := describe(client)).pop("schema")
    assert {name: value for name, value in told.items() if name not in ("log", "consumer")} == {
        "view": b"profile",
        "version": 1,
        "entity": b"user",
        "ttl_ms": None,
        "maxlen": 10_000,
        "extra": b"refuse",
        "storage": b"hash",
        "dedup_ms": None,
        "sample_rate": b"1",
        "sample_on": b"publish",
        "description": b"",
    }
    assert told["log"] and told["consumer"]
    unset = {name: value for name, value in feature.items() if name not in ("name", "type", "columns")}
    assert (feature["name"], feature["type"], feature["columns"]) == (b"age", b"INT", 1)
    assert [name for name, value in unset.items() if value not in (None, 0, [], b"")] == []


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_description_tells_the_whole_definition(server, protocol):
    client = server.client(protocol=protocol)
    fs(client, f"FS.REGISTER profile {FULL}")
    told = describe(client)
    assert {name: told[name] for name in ("ttl_ms", "maxlen", "description")} == {
        "ttl_ms": 7 * 86_400_000,
        "maxlen": 500,
        "description": b"text",
    }
    yes, half = (True, [0.5, -1.0]) if protocol == 3 else (1, [b"0.5", b"-1"])
    assert told["log"] is yes
    features = {feature.pop("name").decode(): feature for feature in told["schema"]}
    assert list(features) == ["age", "plan", "emb", "seen", "tags", "raw"]
    assert [f["type"] for f in features.values()] == [
        b"INT",
        b"STRING",
        b"VECTOR 2",
        b"TIMESTAMP",
        b"LIST",
        b"FLOAT",
    ]
    assert [f["columns"] for f in features.values()] == [1, 1, 2, 1, None, 1]
    assert [f["default"] for f in features.values()] == [1, b"pro", half, None, None, None]
    assert {name: features["age"][name] for name in ("ttl_ms", "min", "max", "description")} == {
        "ttl_ms": 86_400_000,
        "min": 0,
        "max": 150,
        "description": b"years",
    }
    assert features["plan"]["values"] == [b"free", b"pro"]
    assert features["raw"]["input"] is yes


def test_the_same_again_changes_nothing_and_anything_else_is_refused(client):
    fs(client, f"FS.REGISTER profile {FULL}")
    told, digest = document(client), client.execute_command("DEBUG", "DIGEST")
    assert fs(client, f"FS.REGISTER profile {FULL}") == b"OK"
    for old, new in [
        ("ENTITY user", "ENTITY item"),
        ("TTL 7d", "TTL 8d"),
        ("TTL 7d", ""),
        ("LOG ON", "LOG OFF"),
        ("MAXLEN 500", "MAXLEN 501"),
        ("CONSUMER ON", "CONSUMER OFF"),
        ("EXTRA REFUSE", "EXTRA IGNORE"),
        ("STORAGE HASH", "STORAGE PACKED"),
        ("DESCRIPTION text", "DESCRIPTION Text"),
        ("age INT", "age FLOAT"),
        ("age INT", "years INT"),
        ("DEFAULT 1 ", "DEFAULT 2 "),
        ("DEFAULT 1 ", ""),
        ("TTL 1d", "TTL 2d"),
        ("MIN 0", "MIN -1"),
        ("MAX 150", "MAX 151"),
        ("DESCRIPTION years", "DESCRIPTION days"),
        ("2 free pro", "2 pro free"),
        ("2 free pro", "3 free pro team"),
        ("VECTOR 2 DEFAULT 0.5,-1", "VECTOR 3"),
        ("0.5,-1", "0.5,-1.5"),
        (" INPUT", ""),
        (" tags LIST", ""),
        ("seen TIMESTAMP tags LIST", "tags LIST seen TIMESTAMP"),
        ("raw FLOAT INPUT", "raw FLOAT INPUT more INT"),
    ]:
        assert old in FULL
        message = refused(client, "VIEWEXISTS", f"FS.REGISTER profile {FULL.replace(old, new, 1)}")
        assert "'profile'" in message, new
    assert (document(client), client.execute_command("DEBUG", "DIGEST")) == (told, digest)


def test_versions_stand_side_by_side(client):
    for version, schema in [(2, "age INT DEFAULT 2"), (1, "age FLOAT"), (10, "name STRING DEFAULT x")]:
        fs(client, f"FS.REGISTER profile VERSION {version} ENTITY user{version} SCHEMA {schema}")
    fs(client, "FS.REGISTER account ENTITY user SCHEMA age INT")
    assert views(client) == [[b"account", b"user", [1]], [b"profile", b"user10", [1, 2, 10]]]
    assert describe(client)["version"] == 10
    assert describe(client, "profile VERSION 2")["entity"] == b"user2"
    fs(client, "FS.PUBLISH fs:v1:profile:u1 age 0.5")
    assert fs(client, "FS.GET fs:v1:profile:u1") == [b"age", b"0.5"]
    assert fs(client, "FS.GET fs:v2:profile:u1") == [b"age", 2]
    assert fs(client, "FS.GET fs:v10:profile:u1") == [b"name", b"x"]
    assert "3" in refused(client, "NOVIEW", "FS.DESCRIBE profile VERSION 3")
    assert "'nobody'" in refused(client, "NOVIEW", "FS.DESCRIBE nobody")


# Types, names and durations


def test_types_have_aliases_and_a_vector_finds_its_size(client):
    aliases = "n numeric c categorical e embedding DEFAULT 1,2,3 v VECTOR 2 l list x Embedding 4 y vector DEFAULT [1]"
    fs(client, f"FS.REGISTER profile ENTITY user SCHEMA {aliases}")
    types = [feature["type"].decode() for feature in describe(client)["schema"]]
    assert types == ["FLOAT", "STRING", "VECTOR 3", "VECTOR 2", "LIST", "VECTOR 4", "VECTOR 1"]
    schema = {"e": {"type": "embedding", "dim": 3}, "d": {"type": "VECTOR", "default": [1, 2]}}
    fs(client, "FS.REGISTER other JSON", json.dumps({"entity": "user", "schema": schema}))
    assert [feature["type"] for feature in describe(client, "other")["schema"]] == [b"VECTOR 3", b"VECTOR 2"]


@pytest.mark.parametrize(
    ("duration", "ms"),
    [
        ("1500ms", 1500),
        ("90s", 90_000),
        ("2m", 120_000),
        ("12h", 43_200_000),
        ("7d", 604_800_000),
        ("5", 5000),
    ],
)
def test_durations_take_units_and_bare_seconds(client, duration, ms):
    fs(client, f"FS.REGISTER profile ENTITY user TTL {duration} SCHEMA age INT TTL {duration}")
    told = describe(client)
    assert (told["ttl_ms"], told["schema"][0]["ttl_ms"]) == (ms, ms)
    value = int(duration) if duration.isdigit() else duration
    again = {"entity": "user", "ttl": value, "schema": {"age": {"type": "INT", "ttl": value}}}
    assert fs(client, "FS.REGISTER profile JSON", json.dumps(again)) == b"OK"


def test_names_are_lower_case_words_of_at_most_64_bytes(client):
    for good in ("a", "a" * 64, "a1_", "version", "entity", "schema", "log", "add", "none", "int"):
        assert fs(client, f"FS.REGISTER {good} ENTITY {good} SCHEMA {good} INT") == b"OK"
        assert fs(client, f"FS.ALTER {good} ADD {good[:60]}_2 INT") == b"OK"
        assert fs(client, f"FS.DROP {good}") == b"OK"
    fs(client, "FS.REGISTER profile ENTITY user SCHEMA age INT")
    told = views(client), document(client)
    for bad in ("", "a" * 65, "A", "1a", "_a", "a-b", "a b", "a:b", "é", "a\0", b"\xff", *RESERVED.split()):
        name = bad if isinstance(bad, bytes) else bad.encode()
        refused(client, "ERR", "FS.REGISTER other ENTITY user SCHEMA", name, "INT")
        refused(client, "ERR", "FS.ALTER profile ADD", name, "INT")
        if bad not in RESERVED.split():
            refused(client, "ERR", "FS.REGISTER", name, "ENTITY", "user", "SCHEMA", "age", "INT")
            refused(client, "ERR", "FS.REGISTER other ENTITY", name, "SCHEMA", "age", "INT")
        if bad != b"\xff":
            refused(
                client,
                "ERR",
                "FS.REGISTER other JSON",
                json.dumps({"entity": "user", "schema": {bad: "INT"}}),
            )
    assert (views(client), document(client)) == told


BAD_WORDS = """

ENTITY
ENTITY user
ENTITY user SCHEMA
ENTITY user SCHEMA age
ENTITY user SCHEMA age WORD
ENTITY user SCHEMA age INT 5
ENTITY user SCHEMA age INT age INT
ENTITY user SCHEMA age INT name
ENTITY user SCHEMA age INT DEFAULT
ENTITY user SCHEMA age INT DEFAULT x
ENTITY user SCHEMA age INT DEFAULT 0.5
ENTITY user SCHEMA age FLOAT DEFAULT nan
ENTITY user SCHEMA age FLOAT MIN -inf
ENTITY user SCHEMA age INT MIN 5 MAX 4
ENTITY user SCHEMA age INT MIN 5 DEFAULT 4
ENTITY user SCHEMA age INT DEFAULT 6 MAX 5
ENTITY user SCHEMA age STRING MIN 5
ENTITY user SCHEMA age BOOL MAX 1
ENTITY user SCHEMA age INT VALUES 1 5
ENTITY user SCHEMA age STRING VALUES
ENTITY user SCHEMA age STRING VALUES 0
ENTITY user SCHEMA age STRING VALUES 2 x
ENTITY user SCHEMA age STRING VALUES 2 x x
ENTITY user SCHEMA age STRING VALUES -1 x
ENTITY user SCHEMA age STRING VALUES 1 x DEFAULT y
ENTITY user SCHEMA age TIMESTAMP DEFAULT 1700000000
ENTITY user SCHEMA age VECTOR
ENTITY user SCHEMA age VECTOR 0
ENTITY user SCHEMA age VECTOR -1
ENTITY user SCHEMA age VECTOR 99999999999999999999
ENTITY user SCHEMA age VECTOR 2 DEFAULT 1,2,3
ENTITY user SCHEMA age VECTOR 2 MIN 0
ENTITY user SCHEMA age LIST DEFAULT {}
ENTITY user SCHEMA age INT TTL
ENTITY user SCHEMA age INT TTL 0
ENTITY user SCHEMA age INT TTL NONE
ENTITY user SCHEMA age INT INPUT DEFAULT 5
ENTITY user SCHEMA age INT AGG COUNT WINDOW 1d
ENTITY user SCHEMA age INT EXPR x
ENTITY user TTL 1h SCHEMA age INT TTL 2h
ENTITY user TTL 0 SCHEMA age INT
ENTITY user TTL -1s SCHEMA age INT
ENTITY user TTL 1.5h SCHEMA age INT
ENTITY user TTL 1w SCHEMA age INT
ENTITY user TTL 99999999999999999999d SCHEMA age INT
ENTITY user LOG MAYBE SCHEMA age INT
ENTITY user MAXLEN 0 SCHEMA age INT
ENTITY user MAXLEN -5 SCHEMA age INT
ENTITY user MAXLEN 18446744073709551616 SCHEMA age INT
ENTITY user CONSUMER SCHEMA age INT
ENTITY user EXTRA DROP SCHEMA age INT
ENTITY user STORAGE SCHEMA age INT
ENTITY user STORAGE DISK SCHEMA age INT
ENTITY user DESCRIPTION SCHEMA age INT
ENTITY user NONSENSE SCHEMA age INT
ENTITY user VERSION 2 SCHEMA age INT
ENTITY user SCHEMA age INT SCHEMA name STRING
VERSION ENTITY user SCHEMA age INT
VERSION 0 ENTITY user SCHEMA age INT
VERSION 01x ENTITY user SCHEMA age INT
VERSION -1 ENTITY user SCHEMA age INT
VERSION 4294967296 ENTITY user SCHEMA age INT
SCHEMA age INT
JSON
"""
BAD_DOCUMENTS = """
[]
5
{}
{"entity":"user"}
{"entity":"user","schema":[]}
{"entity":"user","schema":{}}
{"entity":"user","schema":5}
{"entity":"user","schema":["age"]}
{"entity":"user","schema":{"age":5}}
{"entity":"user","schema":{"age":{}}}
{"entity":"user","schema":{"age":"WORD"}}
{"entity":"user","schema":{"age":"VECTOR"}}
{"entity":"user","schema":[{"type":"INT"}]}
{"entity":"user","schema":[{"name":"age","type":"INT"},{"name":"age","type":"INT"}]}
{"entity":"user","schema":{"age":{"type":"INT","default":"x"}}}
{"entity":"user","schema":{"age":{"type":"INT","default":{"x":1}}}}
{"entity":"user","schema":{"age":{"type":"INT","default":[1]}}}
{"entity":"user","schema":{"age":{"type":"INT","default":true}}}
{"entity":"user","schema":{"age":{"type":"INT","min":{"x":1}}}}
{"entity":"user","schema":{"age":{"type":"INT","max":[]}}}
{"entity":"user","schema":{"age":{"type":"INT","min":5,"max":4}}}
{"entity":"user","schema":{"age":{"type":"INT","ttl":-5}}}
{"entity":"user","schema":{"age":{"type":"INT","ttl":true}}}
{"entity":"user","schema":{"age":{"type":"INT","dim":2}}}
{"entity":"user","schema":{"age":{"type":"INT","nonsense":1}}}
{"entity":"user","schema":{"age":{"type":"INT","type":"FLOAT"}}}
{"entity":"user","schema":{"age":{"name":"years","type":"INT"}}}
{"entity":"user","schema":{"age":"INT","age":"FLOAT"}}
{"entity":"user","schema":{"age":{"type":"VECTOR 2","dim":3}}}
{"entity":"user","schema":{"age":{"type":"VECTOR","dim":0}}}
{"entity":"user","schema":{"age":{"type":"VECTOR","dim":2,"default":[1,2,3]}}}
{"entity":"user","schema":{"age":{"type":"VECTOR","dim":2.5}}}
{"entity":"user","schema":{"age":{"type":"STRING","values":"x"}}}
{"entity":"user","schema":{"age":{"type":"STRING","values":[5]}}}
{"entity":"user","schema":{"age":{"type":"STRING","values":["x","x"]}}}
{"entity":"user","schema":{"age":{"type":"INT","input":"yes"}}}
{"entity":"user","schema":{"age":"INT"},"view":"other"}
{"entity":"user","schema":{"age":"INT"},"nonsense":1}
{"entity":"user","schema":{"age":"INT"},"version":0}
{"entity":"user","schema":{"age":"INT"},"version":"1"}
{"entity":"user","schema":{"age":"INT"},"version":99999999999}
{"entity":"user","schema":{"age":"INT"},"ttl":-5}
{"entity":"user","schema":{"age":"INT"},"ttl":1.5}
{"entity":"user","schema":{"age":"INT"},"ttl":"soon"}
{"entity":"user","schema":{"age":"INT"},"maxlen":0}
{"entity":"user","schema":{"age":"INT"},"maxlen":-1}
{"entity":"user","schema":{"age":"INT"},"log":"ON"}
{"entity":"user","schema":{"age":"INT"},"log":null}
{"entity":"user","schema":{"age":"INT"},"extra":"drop"}
{"entity":"user","schema":{"age":"INT"},"storage":"disk"}
{"entity":"user","schema":{"age":"INT"},"storage":null}
{"entity":"user","schema":{"age":"INT"}} x
{"entity":"user","schema":{"age":"INT"}
{"entity":5,"schema":{"age":"INT"}}
{"entity":"User","schema":{"age":"INT"}}
"""


def test_no_error_leaves_a_definition_behind(client):
    for line in BAD_WORDS.strip("\n").split("\n"):
        refused(client, "ERR", f"FS.REGISTER profile {line}")
        assert views(client) == [], line
    for line in BAD_DOCUMENTS.strip().splitlines():
        refused(client, "ERR", "FS.REGISTER profile JSON", line)
        assert views(client) == [], line
    good = '{"entity":"user","schema":{"age":"INT"}}'
    for more in (["x"], ["SCHEMA", "age", "INT"]):
        refused(client, "ERR", "FS.REGISTER profile JSON", good, *more)
    for text in (b"\xff", b'{"entity":"user","schema":{"age":"INT"},"description":"\xff"}'):
        refused(client, "ERR", "FS.REGISTER profile JSON", text)
        refused(
            client,
            "ERR",
            "FS.REGISTER profile ENTITY user DESCRIPTION",
            text[:1] + b"\xff",
            "SCHEMA",
            "a",
            "INT",
        )
    assert views(client) == []
    assert client.dbsize() == 0


def test_an_aof_that_would_lose_definitions_is_refused(fresh_server):
    client = fresh_server({"appendonly": "yes", "aof-use-rdb-preamble": "no"}).client()
    message = refused(client, "ERR", "FS.REGISTER profile ENTITY user SCHEMA age INT")
    assert "aof-use-rdb-preamble" in message
    assert views(client) == []
    client.config_set("aof-use-rdb-preamble", "yes")
    assert fs(client, "FS.REGISTER profile ENTITY user SCHEMA age INT") == b"OK"


# The document of a definition

# What a document could lose: spaces, digits, signs, escapes, bytes that are no text, depth.
DEFAULTS = [
    ("INT", "-9223372036854775808"),
    ("FLOAT", "-0.0"),
    ("FLOAT", "5e-324"),
    ("FLOAT", "1.7976931348623157e308"),
    ("FLOAT", "0.1"),
    ("FLOAT", "123456789012345678"),
    ("BOOL", "False"),
    ("STRING", ""),
    ("STRING", b"\xff\0\r\n"),
    ("STRING", '{"$base64":"/w=="}'),
    ("STRING", "null"),
    ("STRING", '"\\ud800"'),
    ("TIMESTAMP", "1700000000123"),
    ("VECTOR", "0.1,-0.0,1e-45"),
    ("VECTOR 3", np.array([0.1, 3.4028235e38, 7], "<f4").tobytes()),
    ("LIST", "[1, 2]"),
    ("LIST", ' [ 1 , {"b" : 1, "a" : 2, "a": 3} ] '),
    ("LIST", "[12345678901234567890123, 1.10, 1e400, -0]"),
    ("LIST", '["\\ud800", "\\u0041", "é"]'),
    ("LIST", "[" * 200 + "]" * 200),
    ("LIST", "[]"),
]


def test_a_document_is_taken_back_unchanged_also_by_another_server(client, fresh_server):
    words = []
    for i, (type_, default) in enumerate(DEFAULTS):
        words += [f"g{i}", *type_.split(), "DEFAULT", default]
    registrations = {
        "full": FULL.split(),
        "defaults": ["ENTITY", "user", "SCHEMA", *words],
        "texts": [
            *["VERSION", 999_999_999, "ENTITY", "e" * 64, "TTL", "1500ms", "MAXLEN", 2**64 - 1, "LOG", "OFF"],
            *["EXTRA", "IGNORE", "CONSUMER", "OFF", "DESCRIPTION", 'a "b"\n\\ \u2028 é \0', "SCHEMA"],
            *["s", "STRING", "VALUES", 4, "", "a,b", '"', "é\0", "DESCRIPTION", "\x7f\t", "TTL", "1ms"],
            *["i", "INT", "MIN", -(2**63), "MAX", 2**63 - 1, "f", "FLOAT", "MIN", "-1e308", "MAX", "5e-324"],
            *["t", "TIMESTAMP", "MAX", 10**12, "x", "VECTOR", 700, "INPUT", "z", "INT", "a", "INT"],
        ],
    }
    other = fresh_server().client()
    for view, registration in registrations.items():
        assert client.execute_command("FS.REGISTER", view, *registration) == b"OK"
        text, told = document(client, view), describe(client, view)
        json.loads(text)
        assert fs(client, f"FS.REGISTER {view} JSON", text) == b"OK", text
        assert fs(other, f"FS.REGISTER {view} JSON", text) == b"OK"
        assert (document(other, view), describe(other, view)) == (text, told)
        assert other.execute_command("FS.REGISTER", view, *registration) == b"OK", (
            "the words say something else now"
        )
    assert fs(other, "FS.GET fs:v1:defaults:u1") == fs(client, "FS.GET fs:v1:defaults:u1")
    # What was saved is such a document, too.
    told = {view: (document(client, view), describe(client, view)) for view in registrations}
    assert client.execute_command("DEBUG", "RELOAD") == b"OK"
    assert {view: (document(client, view), describe(client, view)) for view in registrations} == told
    for view, registration in registrations.items():
        assert client.execute_command("FS.REGISTER", view, *registration) == b"OK"


def test_the_columns_in_a_document_are_those_of_a_tensor(client):
    fs(client, f"FS.REGISTER profile {FULL}")
    tensor = json.loads(document(client))["tensor"]
    columns = {column["feature"]: (column["offset"], column["width"]) for column in tensor["columns"]}
    assert list(columns) == ["age", "plan", "emb", "seen"]
    fs(client, f"FS.PUBLISH {ROW} age 5 plan free emb 2,3 seen 1700000000000")
    row = np.frombuffer(fs(client, f"FS.TENSOR {','.join(columns)} {ROW}"), "<f4")
    assert len(row) == tensor["width"]
    for name, (offset, width) in columns.items():
        own = np.frombuffer(fs(client, f"FS.TENSOR {name} {ROW}"), "<f4")
        assert np.array_equal(row[offset : offset + width], own)
