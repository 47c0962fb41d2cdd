"""Clients as people have them: valkey-py with both parsers, redis-py, iovalkey and node-redis, in both protocols."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import redis
import valkey
from valkey._parsers import _LibvalkeyParser, _RESP2Parser

from server import await_until, required_file

NODE_SCRIPT = Path(__file__).with_name("client.cjs")
ROW, OTHER, LOG = "fs:v1:profile:u1", "fs:v1:profile:u2", "fs:stream:profile"
NAMES = "age score ok name seen emb tags"
VECTOR = np.array([0.1, -2, 3e7], "<f4")

# Library, protocol, and options of its connections.
PYTHON = {
    "valkey-py-libvalkey-RESP2": (valkey, 2, {"parser_class": _LibvalkeyParser}),
    "valkey-py-libvalkey-RESP3": (valkey, 3, {"parser_class": _LibvalkeyParser}),
    "valkey-py-pure-RESP2": (valkey, 2, {"parser_class": _RESP2Parser}),
    "valkey-py-pure-RESP3": (valkey, 3, {"parser_class": _RESP2Parser}),
    "redis-py-RESP2": (redis, 2, {}),
    "redis-py-RESP3": (redis, 3, {}),
}


@pytest.fixture
def furnished(server):
    """A client of ours beside the one that is tried, and a view of all types."""
    client = server.client()
    client.config_set("notify-keyspace-events", "KEA")
    schema = "age INT DEFAULT 7 score FLOAT ok BOOL name STRING seen TIMESTAMP emb VECTOR 3 tags LIST"
    client.execute_command("FS.REGISTER", "profile", "ENTITY", "user", "SCHEMA", *schema.split())
    return client


@pytest.fixture(params=PYTHON)
def tried(server, furnished, request, monkeypatch):
    library, protocol, options = PYTHON[request.param]
    if options.get("parser_class") is _RESP2Parser:
        # As where libvalkey is not installed: the connection treats the two parsers differently.
        monkeypatch.setattr("valkey.connection.LIBVALKEY_AVAILABLE", False)
    client_class = library.Valkey if library is valkey else library.Redis
    pool = library.ConnectionPool(
        host="127.0.0.1", port=server.port, protocol=protocol, socket_timeout=20, **options
    )
    client = client_class(connection_pool=pool)
    client.protocol, client.library = protocol, library
    yield client
    client.close()
    pool.disconnect()


def as_map(client, reply) -> dict:
    """A map is a dictionary in RESP3, and a flat list in RESP2."""
    assert isinstance(reply, dict if client.protocol == 3 else list)
    return reply if client.protocol == 3 else dict(zip(reply[::2], reply[1::2], strict=True))


def publish_one_of_each(client) -> bytes:
    words = ["age", 42, "score", 0.1, "ok", "true", "name", b"\xff\0x", "seen", 1_700_000_000_000]
    return client.execute_command(
        "FS.PUBLISH", ROW, *words, "emb", VECTOR.tobytes(), "tags", json.dumps([1, "a"])
    )


def test_python_clients_publish_and_read(tried, furnished):
    entry_id = publish_one_of_each(tried)
    assert [id_ for id_, _ in furnished.xrange(LOG)] == [entry_id]
    if tried.protocol == 3:
        values = [42, 0.1, True, b"\xff\0x", 1_700_000_000_000, [0.1, -2.0, 3e7], b'[1, "a"]']
    else:
        values = [42, b"0.1", 1, b"\xff\0x", 1_700_000_000_000, [b"0.1", b"-2", b"3e7"], b'[1, "a"]']

    def numbers(row: list) -> list:
        """Decimals as numbers: 3e7 has more than one spelling."""
        return [[float(x) for x in v] if isinstance(v, list) else v for v in row]

    row = as_map(tried, tried.execute_command("FS.GET", ROW))
    assert list(row) == NAMES.encode().split()
    assert numbers(list(row.values())) == numbers(values)
    assert [type(value) for value in row.values()] == [type(value) for value in values]
    absent = [7, *[None] * 6]
    rows = tried.execute_command("FS.MGET", "*", ROW, OTHER)
    assert [numbers(row) for row in rows] == [numbers(values), absent]

    statuses = as_map(tried, tried.execute_command("FS.GET", OTHER, "WITHSTATUS", "age", "score"))
    assert statuses == {b"age": [7, b"DEFAULT", None], b"score": [None, b"NOT_FOUND", None]}
    told = as_map(tried, tried.execute_command("FS.EXPLAIN", ROW))
    assert as_map(tried, told[b"features"][1])[b"served"] == values[1]
    assert as_map(tried, tried.execute_command("FS.DESCRIBE", "profile"))[b"entity"] == b"user"
    assert as_map(tried, tried.execute_command("FS.INFO", "profile"))[b"published"] == 1
    cursor, ids = tried.execute_command("FS.SCAN", "profile", 0, "COUNT", 1000)
    assert (cursor, ids) == (b"0", [b"u1"])


def test_python_clients_read_tensors_with_numpy(tried, furnished):
    publish_one_of_each(tried)
    blob = tried.execute_command("FS.TENSOR", "age,score,ok,emb", ROW, OTHER)
    tensor = np.frombuffer(blob, "<f4").reshape(2, -1)
    nan = np.nan
    expected = np.array([[42, 0.1, 1, *VECTOR], [7, nan, nan, nan, nan, nan]], "<f4")
    assert np.array_equal(tensor, expected, equal_nan=True)


def test_python_clients_set_and_read_services(tried, furnished):
    publish_one_of_each(tried)
    reading = "FEATURES 4 profile:age profile:ok profile:score profile:emb"
    for format_ in ("MAP", "ARRAY", "JSON", "TENSOR"):
        for name, options in ((format_.lower(), ""), (f"{format_.lower()}_status", "WITHSTATUS")):
            words = f"FORMAT {format_} {options} {reading}".split()
            assert tried.execute_command("FS.SERVICE SET", name, *words) == b"OK"
            assert tried.execute_command("FS.SERVICE", "SET", name, *words) == b"OK"
    assert tried.execute_command("FS.SERVICE LIST") == sorted(
        f"{format_}{status}".encode()
        for format_ in ("map", "array", "json", "tensor")
        for status in ("", "_status")
    )
    told = as_map(tried, tried.execute_command("FS.SERVICE GET", "tensor_status"))
    columns = ["profile:age", "profile:ok", "profile:score", *[f"profile:emb[{i}]" for i in range(3)]]
    assert [column.decode() for column in told[b"columns"]] == columns
    assert bool(told[b"withstatus"]) and isinstance(told[b"withstatus"], bool if tried.protocol == 3 else int)

    names = [name.encode() for name in ("profile:age", "profile:ok", "profile:score", "profile:emb")]
    # Values come as in the other readings, where the tests above look at each.
    rows = tried.execute_command("FS.MGET", "age,ok,score,emb", ROW, OTHER)
    assert (rows[0][0], float(rows[0][2]), rows[1]) == (42, 0.1, [7, None, None, None])

    def served(name: str):
        return tried.execute_command("FS.SERVE", name, "u1", "u2")

    assert served("array") == rows
    assert [list(as_map(tried, row).items()) for row in served("map")] == [
        list(zip(names, row, strict=True)) for row in rows
    ]
    statuses = [[b"PRESENT"] * 4, [b"DEFAULT", *[b"NOT_FOUND"] * 3]]
    ages = tried.execute_command("FS.SERVE", "array_status", "u1")[0]
    assert all(type(age) is int and age >= 0 for _, _, age in ages)
    for reply in (
        served("array_status"),
        [list(as_map(tried, row).values()) for row in served("map_status")],
    ):
        assert [[value for value, _, _ in row] for row in reply] == rows
        assert [[status for _, status, _ in row] for row in reply] == statuses
    plain = [[42, True, 0.1, [0.1, -2, 3e7]], [7, None, None, None]]
    assert [list(row.items()) for row in json.loads(served("json"))] == [
        list(zip((name.decode() for name in names), row, strict=True)) for row in plain
    ]

    # As the reference says it: no copy, no parsing.
    reply = served("tensor_status")
    matrix = np.frombuffer(reply[1], "<f4").reshape(reply[0])
    assert not matrix.flags.owndata
    nan = np.nan
    expected = np.array([[42, 1, 0.1, *VECTOR], [7, nan, nan, nan, nan, nan]], "<f4")
    assert np.array_equal(matrix, expected, equal_nan=True)
    n, k = reply[0]
    present = np.unpackbits(np.frombuffer(reply[2], "u1"), bitorder="little", count=n * k).reshape(n, k)
    assert present.tolist() == [[1] * 6, [0] * 6]
    assert served("tensor") == reply[:2]
    with pytest.raises(tried.library.ResponseError, match="NOSERVICE "):
        served("nothing")
    assert tried.execute_command("FS.SERVICE DEL", "map") == b"OK"


def test_python_clients_write_to_the_stream(tried, furnished):
    tried.xadd(LOG, {"entity_id": "u2", "features": json.dumps({"age": 5, "emb": [1, 2, 3]})})
    await_until(lambda: furnished.exists(OTHER), what="the entry to be consumed")
    assert tried.hget(OTHER, "age") == b"5"
    assert np.array_equal(np.frombuffer(tried.hget(OTHER, "emb"), "<f4"), [1, 2, 3])


def test_python_clients_pipeline_and_see_errors(tried, furnished):
    for transaction in (False, True):
        pipeline = tried.pipeline(transaction=transaction)
        for i in range(100):
            pipeline.execute_command("FS.PUBLISH", ROW, "age", i)
            pipeline.execute_command("FS.MGET", "age", ROW)
        pipeline.execute_command("FS.PUBLISH", ROW, "age", "x")
        *replies, refusal = pipeline.execute(raise_on_error=False)
        assert replies[1::2] == [[[i]] for i in range(100)]
        assert len(set(replies[::2])) == 100
        assert isinstance(refusal, tried.library.ResponseError)
        assert str(refusal).startswith("SCHEMA feature 'age' of view 'profile'")
    for line, message in [("FS.GET fs:v1:nobody:u1", "NOVIEW "), (f"FS.GET {ROW} x", "NOFEATURE ")]:
        with pytest.raises(tried.library.ResponseError, match=message):
            tried.execute_command(*line.split())


def test_python_clients_hear_of_updates(tried, furnished):
    with tried.pubsub() as events:
        events.subscribe(f"__keyspace@0__:{ROW}")
        assert events.get_message(timeout=10)["type"] == "subscribe"
        publish_one_of_each(tried)
        furnished.execute_command("FS.DEL", ROW)
        heard = [events.get_message(timeout=10)["data"] for _ in range(2)]
    assert heard == [b"hset", b"del"]


@pytest.mark.parametrize(
    ("library", "protocol"),
    [("iovalkey", 2), ("redis", 2), ("redis", 3)],
    ids=["iovalkey", "redis-RESP2", "redis-RESP3"],
)
def test_node_clients_do_all_of_it(server, furnished, library, protocol):
    done = subprocess.run(
        [required_file("FS_NODE"), NODE_SCRIPT, library, str(protocol), str(server.port)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    typed = protocol == 3
    half, yes, vector = (0.5, True, [0.1, -2, 3]) if typed else ("0.5", 1, ["0.1", "-2", "3"])
    values = [42, half, yes, "grün", 1_700_000_000_000, vector, '[1,"a"]']
    assert told["ids"] == [id_.decode() for id_, _ in furnished.xrange(LOG)][:1]
    assert told["row"] == dict(zip(NAMES.split(), values, strict=True))
    assert told["rows"] == [[42, half], [7, None]]
    assert told["status"] == {"age": [7, "DEFAULT", None]}
    assert told["tensor"] == [42, 0.5, *np.array([0.1, -2, 3], "<f4").tolist()]
    assert told["consumed"] == "9"
    assert told["pipeline"] == [[[0]], [[1]], [[2]], [[3]], [[4]]]
    assert told["refusal"].startswith("SCHEMA feature 'age' of view 'profile' expects INT, got 'x'")
    assert told["heard"] == ["hset", "del"]
    assert furnished.hget("fs:v1:made:u1", "age") == b"5", "the view that the script registered takes updates"
