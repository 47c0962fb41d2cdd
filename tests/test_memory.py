"""At the memory limit: writes are refused whole, the consumer waits, reads go on, eviction takes nothing down."""

import random
import threading
import time

import pytest
import valkey
from profile_view import (
    DEAD_LETTERS,
    EPOCH_S,
    LOG,
    add,
    add_many,
    await_drained,
    consumer,
    digests,
    entries_read,
    entry,
    figures,
    group,
    register,
    rows,
    rows_by_entries,
)
from test_replication import assert_same

from server import await_until

# Slices are the shortest, so that memory can run out between them.
QUICK = {"fs.sweep-interval": 20, "fs.consumer-slice-us": 50}
ROOMY = 1 << 30


@pytest.fixture
def server(fresh_server):
    server = fresh_server(QUICK)
    register(server.client(), "MAXLEN", 1_000_000)
    return server


def fill_up(client):
    """The server has more than it may have from now on; what is there stays."""
    client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)


def make_room(client):
    client.config_set("maxmemory", ROOMY)


def test_writes_are_refused_whole_and_reads_go_on(server):
    client = server.client()
    client.execute_command("FS.PUBLISH", "fs:v1:profile:u1", "n", 1, "label", "x")
    add(client, "u2", {"n": 2}, EPOCH_S)
    await_drained(client)
    before, view = digests(client, ""), client.execute_command("FS.DESCRIBE", "profile", "JSON")
    fill_up(client)
    refused = [
        ("FS.PUBLISH", "fs:v1:profile:u1", "n", 5),
        ("FS.PUBLISH", "fs:v1:profile:new", "NOLOG", "n", 5),
        ("FS.MPUBLISH", "fs:v1:profile:u1", '{"n": 5}', "fs:v1:profile:new", '{"n": 5}'),
        ("FS.CONSUME", "profile"),
        ("FS.REPLAY", "profile", "FROM", "0"),
        ("XADD", LOG, "*", "entity_id", "u1", "features", '{"n": 5}'),
    ]
    for command in refused:
        with pytest.raises(valkey.exceptions.OutOfMemoryError, match="maxmemory"):
            client.execute_command(*command)
        assert digests(client, "") == before, command
    with client.pipeline() as pipeline, pytest.raises(valkey.ResponseError):
        pipeline.execute_command("FS.PUBLISH", "fs:v1:profile:u1", "n", 6)
        pipeline.execute_command("FS.GET", "fs:v1:profile:u1")
        pipeline.execute()
    with pytest.raises(valkey.ResponseError, match="maxmemory"):
        client.eval("return redis.call('FS.PUBLISH', KEYS[1], 'n', '7')", 1, "fs:v1:profile:u1")
    assert digests(client, "") == before
    assert client.execute_command("FS.GET", "fs:v1:profile:u1") == [b"n", 1, b"score", None, b"label", b"x"]
    assert client.execute_command("FS.MGET", "n", "fs:v1:profile:u1", "fs:v1:profile:u2") == [[1], [2]]
    assert len(client.execute_command("FS.TENSOR", "n", "fs:v1:profile:u1")) == 4
    assert client.execute_command("FS.SCAN", "profile", 0, "COUNT", 100)[0] == b"0"
    assert client.execute_command("FS.DESCRIBE", "profile", "JSON") == view
    assert figures(client)["consumer"] == b"waiting"
    # What frees memory is not refused.
    assert client.execute_command("FS.DEL", "fs:v1:profile:u1") == 1
    assert client.execute_command("FS.TRIM", "profile", "MAXLEN", 0) == 2
    make_room(client)
    assert client.execute_command("FS.PUBLISH", "fs:v1:profile:u1", "n", 8)


@pytest.mark.parametrize("replicated", [False, True])
def test_the_consumer_waits_for_memory_and_goes_on(server, replicated):
    client = server.client()
    replica = server.replica({"repl-diskless-load": "on-empty-db"}) if replicated else None
    add_many(client, 30_000)
    client.xadd(LOG, entry("u1", "no object"))
    for _ in range(3):
        await_until(lambda: entries_read(client) > 100, what="some progress")
        fill_up(client)
        held, cursor = figures(client), group(client)
        assert held["lag_entries"] > 0, "it was over before memory ran out"
        # Many ticks and sweeps would fit in here.
        time.sleep(0.1)
        assert figures(client) | {"lag_ms": 0} == held | {"lag_ms": 0}
        assert (held["consumer"], group(client)) == (b"waiting", cursor)
        assert rows(client) == rows_by_entries(client, until=held["cursor"])
        make_room(client)
    await_drained(client)
    assert (figures(client)["consumed"], figures(client)["lost_entries"]) == (30_001, 0)
    assert client.xlen(DEAD_LETTERS) == 1
    client.xdel(LOG, client.xrevrange(LOG, count=1)[0][0])
    assert rows(client) == rows_by_entries(client)
    if replica:
        assert_same(server, replica)


def test_a_replay_waits_for_memory_and_goes_on(server):
    client, caller = server.client(), server.client()
    add_many(client, 20_000)
    await_drained(client)
    answers = []
    thread = threading.Thread(
        target=lambda: answers.append(caller.execute_command("FS.REPLAY", "profile", "FROM", "0"))
    )
    thread.start()
    await_until(lambda: figures(client)["replaying"], what="the replay to begin")
    fill_up(client)
    held = figures(client)["replaying"]
    assert held, "it was over before memory ran out"
    time.sleep(0.1)
    assert figures(client)["replaying"] == held and not answers
    make_room(client)
    thread.join()
    assert answers == [20_000]


def test_filling_up_by_publishing_writes_each_update_whole_or_not_at_all(server):
    client = server.client()
    client.config_set("maxmemory", client.info("memory")["used_memory"] + (2 << 20))
    published = 0
    with pytest.raises(valkey.exceptions.OutOfMemoryError):
        while True:
            update = ("n", published, "label", "x" * 5_000)
            client.execute_command("FS.PUBLISH", f"fs:v1:profile:u{published}", *update)
            published += 1
    assert published > 50
    keys = [f"fs:v1:profile:u{i}" for i in range(published)]
    assert client.exists(*keys) == client.xlen(LOG) == published
    assert not client.exists(f"fs:v1:profile:u{published}")
    assert all(client.hstrlen(key, "label") == 5_000 for key in keys)
    assert client.execute_command("FS.DEL", *keys[:50]) == 50
    client.xtrim(LOG, maxlen=0, approximate=False)
    assert client.execute_command("FS.PUBLISH", f"fs:v1:profile:u{published}", "n", 1)


def test_an_evicted_log_is_counted_and_logged(server):
    client = server.client()
    add_many(client, 10)
    await_drained(client)
    consumer(client, "STOP")
    client.delete(*client.keys("fs:v1:*"))
    for i in range(100):
        add(client, f"u{i}", {"label": "x" * 50_000}, EPOCH_S)
    # The log is the only key there is.
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("maxmemory", client.info("memory")["used_memory"] - (1 << 20))
    await_until(lambda: not client.exists(LOG), what="the log to be evicted")
    make_room(client)
    consumer(client, "START")
    await_until(
        lambda: figures(client)["lost_entries"] == 100, 3, what="the loss of 100 entries to be counted"
    )
    assert "100 entries of view 'profile'" in server.log()
    # The next stream under the key is a new one.
    add_many(client, 10)
    await_drained(client)
    assert rows(client) == rows_by_entries(client)
    assert figures(client)["lost_entries"] == 100


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
def test_eviction_in_full_flow_takes_nothing_down(fresh_server, policy):
    views = ("a", "b", "c")
    # Samples of one, so that what goes is often a log.
    server = fresh_server(QUICK | {"maxmemory-policy": policy, "maxmemory-samples": 1})
    client = server.client()
    for view in views:
        register(client, "MAXLEN", 500, view=view)
    client.config_set("maxmemory", client.info("memory")["used_memory"] + (3 << 20))
    failures = []

    def write(seed):
        own, chance = server.client(), random.Random(seed)
        try:
            for i in range(2_000):
                view, entity = chance.choice(views), f"u{chance.randrange(2_000)}"
                key = f"fs:v1:{view}:{entity}"
                match chance.randrange(6):
                    case 0 | 1:
                        own.execute_command("FS.PUBLISH", key, "n", i, "label", "x" * chance.randrange(3_000))
                    case 2 | 3:
                        label = "x" * chance.randrange(3_000)
                        add(own, entity, {"n": i, "label": label}, EPOCH_S + i, log=f"fs:stream:{view}")
                    case 4:
                        own.execute_command("FS.MGET", "*", key)
                    case 5:
                        own.execute_command("FS.DEL", key)
        except Exception as failure:
            failures.append(failure)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert client.info("stats")["evicted_keys"] > 100
    make_room(client)
    for view in views:
        client.xadd(f"fs:stream:{view}", entry("last", {"n": 7}))
        await_until(lambda v=view: client.hget(f"fs:v1:{v}:last", "n") == b"7", what="the row of a new entry")
        await_drained(client, f"fs:stream:{view}")
