"""Full resyncs, and what replicas answer and refuse."""

import time

import pytest
import valkey
from profile_view import (
    EPOCH_S,
    add,
    add_many,
    await_drained,
    figures,
    register,
    rows,
)
from test_replication import QUICK, Writers, assert_same, await_synced

from server import await_until

# Full resync


def definitions(client):
    return {
        name: client.execute_command("FS.DESCRIBE", name, "JSON")
        for name, _, _ in client.execute_command("FS.VIEWS")
    }


LOADS = ["disabled", "on-empty-db", "swapdb"]


@pytest.mark.parametrize("load, channel", [*((load, "no") for load in LOADS), ("on-empty-db", "yes")])
def test_a_replica_attached_in_full_flow_equals_the_primary(fresh_server, load, channel):
    primary = fresh_server(QUICK | {"dual-channel-replication-enabled": channel})
    client = primary.client()
    register(client, "MAXLEN", 1_000_000, "TTL", "7d")
    # Old updates expire on arrival; these are of today.
    now_s = int(time.time()) - 3600
    with client.pipeline(transaction=False) as pipeline:
        for i in range(5_000):
            add(pipeline, f"u{i % 50}", {"n": i}, now_s + i / 10)
        pipeline.execute()
    with Writers([primary]) as writers:
        first = primary.replica({"repl-diskless-load": load})
        writers.await_more(300)
        second = primary.replica({"repl-diskless-load": load})
        writers.await_more(300)
    await_drained(client)
    for replica in (first, second):
        assert_same(primary, replica)


@pytest.mark.parametrize("load", LOADS)
def test_a_full_resync_replaces_the_definitions_also_by_nothing(fresh_server, load):
    defined, bare = fresh_server(QUICK), fresh_server(QUICK)
    register(defined.client(), schema=("theirs", "INT"))
    register(defined.client(), view="common", schema=("theirs", "INT"))
    defined.client().execute_command("FS.CONSUMER", "STOP", "common")
    replica = fresh_server(QUICK | {"repl-diskless-load": load})
    client = replica.client()
    register(client, schema=("ours", "FLOAT"))
    register(client, view="own", schema=("ours", "FLOAT"))
    register(client, version=2, view="common", schema=("ours", "FLOAT"))
    client.execute_command("FS.PUBLISH", "fs:v1:own:u1", "ours", 1)
    client.replicaof("127.0.0.1", defined.port)
    await_synced(replica, defined)
    assert definitions(client) == definitions(defined.client())
    assert not client.keys("fs:v1:own*")
    with pytest.raises(valkey.ResponseError, match="NOVIEW"):
        client.execute_command("FS.GET", "fs:v1:own:u1")
    client.replicaof("127.0.0.1", bare.port)
    await_synced(replica, bare)
    assert client.execute_command("FS.VIEWS") == []
    # What it was told is what it keeps as a primary.
    client.replicaof("NO", "ONE")
    register(client, view="own", schema=("n", "INT"))
    client.xadd("fs:stream:own", {"entity_id": "u1", "features": '{"n": 5}'})
    await_until(lambda: client.hget("fs:v1:own:u1", "n") == b"5", what="the row")


def test_a_failed_resync_keeps_the_old_definitions(fresh_server):
    # A transfer that would take minutes, read as it comes: the load is under way when the sender dies.
    primary = fresh_server(QUICK | {"rdb-key-save-delay": 20_000, "rdbcompression": "no"})
    register(primary.client(), schema=("theirs", "INT"))
    with primary.client().pipeline(transaction=False) as pipeline:
        for i in range(5_000):
            pipeline.set(f"filler{i}", "x" * 5_000)
        pipeline.execute()
    replica = fresh_server(QUICK | {"repl-diskless-load": "on-empty-db"})
    client = replica.client()
    register(client, schema=("ours", "FLOAT"))
    register(client, view="own", schema=("ours", "FLOAT"))
    before = definitions(client)
    client.replicaof("127.0.0.1", primary.port)
    await_until(lambda: "Loading DB in memory" in replica.log(), 20, "the load to begin")
    primary.kill()
    await_until(lambda: is_answering(client), 20, "the load to fail")
    client.replicaof("NO", "ONE")
    assert "the load failed, the definitions stay as they were" in replica.log()
    assert definitions(client) == before
    assert client.execute_command("FS.PUBLISH", "fs:v1:own:u2", "ours", 2)
    assert client.execute_command("FS.GET", "fs:v1:own:u2") == [b"ours", b"2"]


def is_answering(client):
    try:
        return (
            client.info("persistence")["loading"] == 0
            and client.info("replication")["master_sync_in_progress"] == 0
        )
    except valkey.ConnectionError:
        return False


def test_a_replica_of_a_replica_is_the_same_and_can_be_promoted(fresh_server):
    primary = fresh_server(QUICK)
    middle = primary.replica({"repl-diskless-load": "on-empty-db"})
    register(primary.client())
    last = middle.replica({"replicaof": f"127.0.0.1 {middle.port}", "repl-diskless-load": "on-empty-db"})
    client = primary.client()
    client.execute_command("FS.PUBLISH", "fs:v1:profile:p", "label", "published")
    client.execute_command("FS.ALTER", "profile", "ADD", "more", "INT", "DEFAULT", 3)
    add_many(client, 2_000)
    add(client, "u1", {"n": "no number"})
    await_drained(client)
    assert_same(primary, middle)
    assert_same(middle, last)
    last.client().replicaof("NO", "ONE")
    add(last.client(), "u1", {"more": 4}, EPOCH_S + 9_999)
    await_until(
        lambda: last.client().hget("fs:v1:profile:u1", "more") == b"4", what="the promoted server's row"
    )
    assert figures(last.client())["consumed"] == 1


# Replicas


def test_a_replica_neither_consumes_nor_writes(fresh_server):
    primary = fresh_server(QUICK)
    replica = primary.replica({"repl-diskless-load": "on-empty-db"})
    client = primary.client()
    register(client, version=2)
    register(client, version=1, schema=("n", "INT"))
    client.execute_command("FS.CONSUMER", "STOP", "profile")
    add_many(client, 100)
    primary.await_replicated(replica)
    # The stop is lifted on the replica's copy by the same command as everywhere; that it is a replica must hold it.
    client.execute_command("FS.CONSUMER", "START", "profile")
    await_drained(client)
    primary.await_replicated(replica)
    told = figures(replica.client())
    assert (told["consumer"], told["consumed"], told["lag_entries"]) == (b"replica", 0, 0)
    assert_same(primary, replica)
    refused = [
        ("FS.PUBLISH", "fs:v1:profile:u1", "n", 1),
        ("FS.MPUBLISH", "fs:v1:profile:u1", '{"n": 1}'),
        ("FS.DEL", "fs:v1:profile:u1"),
        ("FS.REGISTER", "other", "ENTITY", "u", "SCHEMA", "n", "INT"),
        ("FS.ALTER", "profile", "TTL", "1d"),
        ("FS.DROP", "profile"),
        ("FS.CONSUMER", "STOP", "profile"),
        ("FS.CONSUME", "profile"),
        ("FS.REPLAY", "profile", "FROM", "0"),
        ("FS.TRIM", "profile", "MAXLEN", 0),
        ("FS.EFFECT", "fs:v1:profile:u1", "x"),
    ]
    for command in refused:
        with pytest.raises(valkey.ResponseError, match=r"read only replica|NOPERM"):
            replica.client().execute_command(*command)
    assert_same(primary, replica)


def test_reading_commands_answer_the_same_on_a_replica(fresh_server):
    primary = fresh_server(QUICK)
    replica = primary.replica({"repl-diskless-load": "on-empty-db"})
    client = primary.client()
    schema = ("n", "INT", "DEFAULT", 7, "score", "FLOAT", "flag", "BOOL", "label", "STRING", "v", "VECTOR", 2)
    register(client, "TTL", "30d", schema=schema)
    key = "fs:v1:profile:u1"
    client.execute_command("FS.PUBLISH", key, "score", "0.1", "flag", "true", "v", "[1, 2.5]")
    client.execute_command("FS.PUBLISH", "fs:v1:profile:u2", "JSON", '{"n": 4, "label": "x"}')
    add(client, "u3", {"n": 9}, time.time())
    await_drained(client)
    primary.await_replicated(replica)
    reads = [
        ("FS.GET", key),
        ("FS.GET", key, "label", "n"),
        ("FS.GET", "fs:v1:profile:none"),
        ("FS.MGET", "*", key, "fs:v1:profile:u2", "fs:v1:profile:none", "fs:v1:profile:u3"),
        ("FS.TENSOR", "n,score,flag,v", key, "fs:v1:profile:u2"),
        ("FS.DESCRIBE", "profile", "JSON"),
        ("FS.DESCRIBE", "profile"),
        ("FS.VIEWS",),
    ]
    theirs = replica.client()
    for command in reads:
        answer = client.execute_command(*command)
        assert answer and theirs.execute_command(*command) == answer, command
    scanned = theirs.execute_command("FS.SCAN", "profile", 0, "COUNT", 1000)
    assert (scanned[0], sorted(scanned[1])) == (b"0", [b"u1", b"u2", b"u3"])
    status = theirs.execute_command("FS.GET", key, "WITHSTATUS", "n", "score")
    assert [status[1][:2], status[3][:2]] == [[7, b"DEFAULT"], [b"0.1", b"PRESENT"]]
    assert b"_updated_at" not in theirs.execute_command("FS.EXPLAIN", key)
    assert figures(theirs)["length"] == 3


def test_stops_and_deletions_hold_after_a_promotion(fresh_server):
    primary = fresh_server(QUICK)
    replica = primary.replica({"repl-diskless-load": "on-empty-db"})
    client = primary.client()
    register(client)
    client.execute_command("FS.CONSUMER", "STOP", "profile")
    add(client, "gone", {"n": 1}, EPOCH_S)
    add(client, "kept", {"n": 1}, EPOCH_S)
    client.execute_command("FS.DEL", "fs:v1:profile:gone")
    primary.await_replicated(replica)
    primary.kill()
    client = replica.client()
    client.replicaof("NO", "ONE")
    assert figures(client)["consumer"] == b"stopped"
    assert figures(client)["tombstones"] == 1
    client.execute_command("FS.CONSUMER", "START", "profile")
    await_drained(client)
    assert rows(client) == {"kept": {"n": 1}}
    add(client, "gone", {"n": 2}, EPOCH_S)
    await_until(lambda: rows(client).get("gone") == {"n": 2}, what="a later entry's row")
