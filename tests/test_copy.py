"""FS.COPY: the rows of one version of a view brought into another, while traffic goes on."""

import json
import random
import socket

import pytest
import valkey
from profile_view import EPOCH_S, module_figures
from test_replication import assert_same, fail_over
from windowed_view import digest, fs

from server import await_until

EPOCH_MS = EPOCH_S * 1_000
STORED = "n INT MIN 0 MAX 90 f FLOAT s STRING b BOOL kind STRING VALUES 3 x y z v VECTOR 2 t TIMESTAMP l LIST"
SCHEMA = f"{STORED} x FLOAT INPUT c INT AGG COUNT x WINDOW 1h total FLOAT AGG SUM x WINDOW 1d"
ENTITIES = 60


def define(client, version: int, storage: str = "HASH", schema: str = SCHEMA, options: str = "") -> None:
    line = f"FS.REGISTER profile VERSION {version} ENTITY user {options} STORAGE {storage} SCHEMA {schema}"
    assert fs(client, line) == b"OK"


def random_update(chance: random.Random) -> dict:
    values = {
        "n": chance.randrange(90),
        "f": chance.gauss(0, 1e3),
        "s": chance.choice(["", "word", "ü\x00\n", "x" * 300]),
        "b": chance.random() < 0.5,
        "kind": chance.choice("xyz"),
        "v": [chance.random(), -1],
        "t": 1_700_000_000_000 + chance.randrange(10**6),
        "l": [chance.randrange(9), "a"],
        "x": chance.random(),
    }
    chosen = chance.sample(sorted(values), chance.randint(1, len(values)))
    return {name: None if chance.random() < 0.15 and name != "x" else values[name] for name in chosen}


def publish_some(
    client, chance: random.Random, count: int, version: int = 1, since_ms: int = EPOCH_MS
) -> None:
    with client.pipeline(transaction=False) as pipeline:
        for _ in range(count):
            key = f"fs:v{version}:profile:u{chance.randrange(ENTITIES)}"
            update = json.dumps(random_update(chance))
            pipeline.execute_command(
                "FS.PUBLISH", key, "AT", since_ms + chance.randrange(100_000), "NOLOG", "JSON", update
            )
        pipeline.execute()


def copy(client, source: int = 1, target: int = 2) -> list[int]:
    return fs(client, f"FS.COPY profile FROM {source} TO {target}")


def digests(client) -> dict:
    return {key: (digest(client, key), client.pexpiretime(key)) for key in client.scan_iter("fs:?2:*")}


def told(client, version: int) -> dict:
    """What FS.EXPLAIN tells of each entity, but for what names the version or moves with the clock."""
    found = {}
    for i in range(ENTITIES):
        flat = client.execute_command("FS.EXPLAIN", f"fs:v{version}:profile:u{i}")
        explained = dict(zip(flat[::2], flat[1::2], strict=True))
        features = [dict(zip(f[::2], f[1::2], strict=True)) for f in explained[b"features"]]
        kept = (b"feature", b"status", b"stored", b"served", b"event_time_ms", b"reason")
        found[i] = explained[b"event_time_ms"], [[feature[name] for name in kept] for feature in features]
    return found


@pytest.mark.parametrize(
    "storages", [("HASH", "PACKED"), ("PACKED", "HASH"), ("HASH", "HASH"), ("PACKED", "PACKED")]
)
def test_a_copy_says_what_the_rows_say(client, storages):
    chance = random.Random(str(storages))
    define(client, 1, storages[0])
    publish_some(client, chance, 800)
    rows = sum(1 for _ in client.scan_iter("fs:v1:*"))
    define(client, 2, storages[1])
    assert copy(client) == [rows, 0]
    assert told(client, 2) == told(client, 1)
    states = [key.decode().removeprefix("fs:w1:profile:") for key in client.scan_iter("fs:w1:*")]
    assert len(states) > 10
    for entity in states:
        assert digest(client, f"fs:w2:profile:{entity}") == digest(client, f"fs:w1:profile:{entity}")
    # Once more changes nothing, and nothing was logged.
    held = digests(client)
    assert copy(client) == [0, 0]
    assert digests(client) == held
    assert client.exists("fs:stream:profile") == 0


def test_event_time_wins_over_what_was_published_into_the_new_version(client):
    define(client, 1, schema="n INT s STRING f FLOAT")
    define(client, 2, "PACKED", schema="n INT s STRING f FLOAT")
    fs(client, f"FS.PUBLISH fs:v1:profile:u1 AT {EPOCH_MS + 5_000} n 1 s old")
    fs(client, f"FS.PUBLISH fs:v1:profile:u1 AT {EPOCH_MS + 6_000} JSON", json.dumps({"f": None}))
    fs(client, f"FS.PUBLISH fs:v2:profile:u1 AT {EPOCH_MS + 7_000} n 2")
    fs(client, f"FS.PUBLISH fs:v2:profile:u1 AT {EPOCH_MS + 1_000} s older f 1")
    # At equal times what is there stays: a copy is a fact of the past.
    fs(client, f"FS.PUBLISH fs:v1:profile:u2 AT {EPOCH_MS} n 100 s word")
    fs(client, f"FS.PUBLISH fs:v2:profile:u2 AT {EPOCH_MS} n 1")
    assert copy(client) == [2, 0]
    assert fs(client, "FS.GET fs:v2:profile:u1") == [b"n", 2, b"s", b"old", b"f", None]
    assert fs(client, "FS.GET fs:v2:profile:u2") == [b"n", 1, b"s", b"word", b"f", None]
    # The removal keeps its time.
    fs(client, f"FS.PUBLISH fs:v2:profile:u1 AT {EPOCH_MS + 5_500} f 3")
    assert fs(client, "FS.GET fs:v2:profile:u1 f") == [b"f", None]


def test_what_the_new_version_does_not_take_is_left_out_and_counted(client):
    define(client, 1)
    define(
        client,
        2,
        "PACKED",
        schema="n INT MAX 5 f INT kind STRING VALUES 1 x s FLOAT new INT DEFAULT 7 b BOOL",
    )
    values = {"n": 6, "f": 1.5, "kind": "y", "s": "text", "b": True, "l": [1]}
    fs(client, "FS.PUBLISH fs:v1:profile:u1 NOLOG JSON", json.dumps(values))
    fs(
        client,
        "FS.PUBLISH fs:v1:profile:u2 NOLOG JSON",
        json.dumps({"n": 5, "f": 2.0, "kind": "x", "s": "0.5"}),
    )
    assert copy(client) == [2, 5]
    expected = [b"n", None, b"f", None, b"kind", None, b"s", None, b"new", 7, b"b", 1]
    assert fs(client, "FS.GET fs:v2:profile:u1") == expected
    expected = [b"n", 5, b"f", 2, b"kind", b"x", b"s", None, b"new", 7, b"b", None]
    assert fs(client, "FS.GET fs:v2:profile:u2") == expected


def test_keys_that_are_no_rows_and_values_that_nobody_reads_are_passed_over(client):
    define(client, 1, schema="n INT s STRING")
    define(client, 2, "PACKED", schema="n INT s STRING")
    client.set("fs:v1:profile:text", "x")
    client.rpush("fs:v1:profile:list", 1)
    client.set("fs:w1:profile:state", "x")
    client.hset("fs:v1:profile:hand", mapping={"n": "abc", "s": "word", "other": 1})
    fs(client, "FS.PUBLISH fs:v1:profile:taken NOLOG n 1")
    client.rpush("fs:v2:profile:taken", 1)
    assert copy(client) == [1, 2]
    assert fs(client, "FS.GET fs:v2:profile:hand WITHSTATUS") == [
        b"n",
        [None, b"NOT_FOUND", None],
        b"s",
        [b"word", b"PRESENT", None],
    ]
    assert client.lrange("fs:v2:profile:taken", 0, -1) == [b"1"]
    assert sorted(client.keys("fs:?2:*")) == [b"fs:v2:profile:hand", b"fs:v2:profile:taken"]


def test_a_ttl_goes_on_from_the_event_time(client):
    define(client, 1, schema="n INT s STRING")
    define(client, 2, "PACKED", schema="n INT s STRING TTL 1h", options="TTL 1d")
    now_ms = int(client.time()[0]) * 1_000
    fs(client, f"FS.PUBLISH fs:v1:profile:u1 AT {now_ms - 7_200_000} NOLOG n 1 s word")
    fs(client, f"FS.PUBLISH fs:v1:profile:u2 AT {now_ms - 90_000_000} NOLOG n 2")
    assert copy(client) == [1, 1]
    assert fs(client, "FS.GET fs:v2:profile:u1") == [b"n", 1, b"s", None]
    assert client.pexpiretime("fs:v2:profile:u1") == now_ms - 7_200_000 + 86_400_000
    assert client.exists("fs:v2:profile:u2") == 0


def test_every_copy_of_the_server_has_the_same(fresh_server):
    primary = fresh_server({"appendonly": "yes", "appendfsync": "always", "fs.consumer-slice-us": 50})
    client, chance = primary.client(), random.Random(4)
    define(client, 1)
    define(client, 2, "PACKED")
    publish_some(client, chance, 400)
    replica = primary.replica()
    rows, refused = copy(client)
    assert (rows > 30, refused) == (True, 0)
    assert_same(primary, replica)
    before = told(client, 2)
    primary.restart(kill=True)
    assert told(primary.client(), 2) == before


def test_others_are_answered_while_rows_are_copied(slow_store):
    client = slow_store.client()
    fs(
        client,
        "FS.REGISTER profile VERSION 2 ENTITY user STORAGE PACKED SCHEMA n INT score FLOAT label STRING",
    )
    with client.pipeline(transaction=False) as pipeline:
        for i in range(6_000):
            fs(pipeline, f"FS.PUBLISH fs:v1:profile:u{i} NOLOG n {i} label word")
        pipeline.execute()
    waiting = connected(slow_store, "FS.COPY profile FROM 1 TO 2")
    await_until(lambda: module_figures(client)["copies"] == 1, what="the copy to begin")
    # It has its slices, we have our answers, and what is published meanwhile is newer.
    fs(client, "FS.PUBLISH fs:v2:profile:u5999 NOLOG n 7")
    assert module_figures(client)["copies"] == 1
    assert waiting.recv(100) == b"*2\r\n:6000\r\n:0\r\n"
    assert fs(client, "FS.GET fs:v2:profile:u5999 n label") == [b"n", 7, b"label", b"word"]
    # One whose caller goes away goes on.
    connected(slow_store, "FS.COPY profile FROM 2 TO 1").close()
    await_until(
        lambda: fs(client, "FS.GET fs:v1:profile:u5999 n") == [b"n", 7], what="the newer value in version 1"
    )


def connected(server, line: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    connection.sendall(f"{line}\r\n".encode())
    return connection


def test_a_copy_ends_early_where_it_cannot_go_on(slow_store):
    client = slow_store.client()
    replica = slow_store.replica()
    with client.pipeline(transaction=False) as pipeline:
        for i in range(20_000):
            fs(pipeline, f"FS.PUBLISH fs:v1:profile:u{i} NOLOG n {i}")
        pipeline.execute()
    schema = "ENTITY user SCHEMA n INT"
    for version in (2, 3):
        fs(client, f"FS.REGISTER profile VERSION {version} {schema}")
    waiting = connected(slow_store, "FS.COPY profile FROM 1 TO 2")
    await_until(lambda: module_figures(client)["copies"] == 1, what="the copy to begin")
    fs(client, "FS.DROP profile VERSION 2")
    assert b"NOVIEW version 2 of view 'profile' was dropped while it was copied" in waiting.recv(200)
    waiting = connected(slow_store, "FS.COPY profile FROM 1 TO 3")
    await_until(lambda: module_figures(client)["copies"] == 1, what="the copy to begin")
    fail_over(slow_store, replica)
    # The server lets go of those who wait for a write.
    assert waiting.recv(200).startswith(b"-UNBLOCKED")
    assert module_figures(client)["copies"] == 0
    # What was brought over before stays; the rest comes now.
    rows, refused = copy(replica.client(), 1, 3)
    assert rows <= 20_000 and refused == 0
    assert sum(1 for _ in replica.client().scan_iter("fs:v3:*", count=1_000)) == 20_000


def test_a_copy_is_refused_where_it_cannot_be(server, client):
    define(client, 1)
    define(client, 2)
    for line, message in [
        ("FS.COPY profile FROM 1 TO 1", "FROM and TO are both version 1"),
        ("FS.COPY profile FROM 1 TO 3", "NOVIEW version 3 of view 'profile'"),
        ("FS.COPY profile FROM 9 TO 1", "NOVIEW version 9 of view 'profile'"),
        ("FS.COPY other FROM 1 TO 2", "NOVIEW view 'other'"),
        ("FS.COPY profile TO 1 FROM 2", "FROM is missing"),
        ("FS.COPY profile FROM x TO 2", "VERSION must be"),
        ("FS.COPY profile FROM 1 TO 0", "VERSION must be"),
    ]:
        with pytest.raises(valkey.ResponseError, match=message):
            fs(client, line)
    with client.pipeline() as pipeline:
        fs(pipeline, "FS.COPY profile FROM 1 TO 2")
        with pytest.raises(valkey.ResponseError, match="cannot run inside MULTI"):
            pipeline.execute()
    with pytest.raises(valkey.ResponseError, match="cannot run inside MULTI or a script"):
        client.eval("return redis.call('FS.COPY', 'profile', 'FROM', 1, 'TO', 2)", 0)
    with server.client(db=1) as elsewhere, pytest.raises(valkey.ResponseError, match="database 0"):
        fs(elsewhere, "FS.COPY profile FROM 1 TO 2")


def test_permission_on_all_rows_of_both_versions_is_asked_for(server, client):
    define(client, 1)
    define(client, 2)
    for patterns, is_allowed in [
        ("~fs:*", True),
        ("~fs:v1:profile:* ~fs:v2:profile:*", True),
        ("~fs:v1:profile:*", False),
        ("%R~fs:v1:profile:* ~fs:v2:profile:*", False),
        ("~fs:v1:profile:* ~fs:v2:profile:u*", False),
        ("~fs:v[12]:profile:*", False),
    ]:
        fs(client, f"ACL SETUSER copier reset on nopass +@all {patterns}")
        with server.client(username="copier", password="any") as user:
            if is_allowed:
                assert fs(user, "FS.COPY profile FROM 1 TO 2") == [0, 0]
            else:
                with pytest.raises(valkey.ResponseError, match="no permission to read and write all keys"):
                    fs(user, "FS.COPY profile FROM 1 TO 2")
    fs(client, "ACL DELUSER copier")
