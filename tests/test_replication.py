"""Every copy is the same: replicas, full resyncs, coordinated failovers and promotions after a power cut.

Plain XADDs are the load, native commands the oracle: a row must be the last value by event time of the entries that the
stream holds up to the cursor, computed here from XRANGE, and two servers must agree on DEBUG DIGEST-VALUE of every key.
"""

import itertools
import json
import os
import random
import signal
import threading
import time

import pytest
import valkey
from profile_view import (
    EPOCH_S,
    LOG,
    add,
    add_many,
    await_drained,
    digests,
    entries_read,
    entry,
    figures,
    group,
    module_figures,
    register,
    rows,
    rows_by_entries,
)

from server import await_until

QUICK = {"fs.sweep-interval": 10}
# The shortest slices, so that a test can come between them.
SLOW = QUICK | {"fs.consumer-slice-us": 50}
AOF = {"appendonly": "yes", "appendfsync": "no"}


def everything(client):
    """All that two copies must agree on."""
    keys = sorted(client.scan_iter(count=1000))
    streams = [key for key in keys if client.type(key) == b"stream"]
    views = client.execute_command("FS.VIEWS")
    return {
        "digests": dict(zip(keys, client.execute_command("DEBUG", "DIGEST-VALUE", *keys), strict=True))
        if keys
        else {},
        "expiries": {key: client.pexpiretime(key) for key in keys},
        "groups": {key: client.xinfo_groups(key) for key in streams},
        "streams": {key: client.xinfo_stream(key)["entries-added"] for key in streams},
        "definitions": {
            (name, version): client.execute_command("FS.DESCRIBE", name, "VERSION", version, "JSON")
            for name, _, versions in views
            for version in versions
        },
        "cursors": {name: figures(client, name)["cursor"] for name, _, _ in views},
    }


def assert_same(primary, replica):
    """Compares what both hold, once the replica has caught up with a primary on which nothing moves."""
    primary.await_replicated(replica)
    ours, theirs = everything(primary.client()), everything(replica.client())
    for aspect, expected in ours.items():
        assert theirs[aspect] == expected, aspect


class Writers:
    """Threads that XADD one numbered update after another to whoever is the primary, until they are stopped.

    Each has entities of its own and counts what was acknowledged. A refusal (READONLY) was not written; anything else
    ends the thread and fails the test.
    """

    def __init__(self, servers, threads=2):
        self.acknowledged = [0] * threads
        self.failures = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(place, [server.client() for server in servers]))
            for place in range(threads)
        ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, place, clients):
        try:
            turn = itertools.cycle(clients)
            client = next(turn)
            while not self._stop.is_set():
                number = self.acknowledged[place] + 1
                try:
                    add(client, f"w{place}-{number % 20}", {"n": number}, EPOCH_S + number)
                except valkey.ReadOnlyError:
                    client = next(turn)
                    continue
                self.acknowledged[place] = number
        except Exception as failure:
            self.failures.append(failure)

    def await_more(self, count):
        before = sum(self.acknowledged)
        await_until(
            lambda: self.failures or sum(self.acknowledged) >= before + count, 30, f"{count} more entries"
        )
        assert not self.failures


def await_synced(replica, primary):
    await_until(
        lambda: replica.info("replication")["master_link_status"] == "up", 30, "the link to the primary"
    )
    primary.await_replicated(replica)


def fail_over(old, new):
    """A coordinated failover, awaited at both ends."""
    await_until(
        lambda: old.info("replication")["slave0"]["state"] == "online",
        20,
        "the primary to see its replica online",
    )
    old.client().execute_command("FAILOVER", "TO", "127.0.0.1", new.port, "TIMEOUT", 20_000)
    await_until(lambda: new.info("replication")["role"] == "master", 20, "the promotion")
    await_until(
        lambda: old.info("replication").get("master_link_status") == "up",
        20,
        "the old primary to follow the new one",
    )


# Equality


@pytest.mark.parametrize("seed", range(3))
def test_a_replica_equals_its_primary_after_any_mix_of_writes(fresh_server, seed):
    primary = fresh_server(QUICK)
    replica = primary.replica()
    client, chance = primary.client(), random.Random(seed)
    register(client, "TTL", "1d", "MAXLEN", 300, "EXTRA", "IGNORE")
    now_s = int(time.time())
    versions = itertools.count(2)
    ran = set()

    def key():
        return f"fs:v1:profile:u{chance.randrange(12)}"

    def update():
        drawn = {"n": chance.choice([chance.randrange(9), None]), "score": chance.random(), "label": "ä\0\n"}
        return {name: drawn[name] for name in chance.sample(sorted(drawn), chance.randint(1, 3))}

    def at_ms():
        return (now_s - chance.choice([0, 10, 20, 3_000, 90_000])) * 1000

    def register_and_drop():
        version = next(versions)
        register(client, version=version, schema=("n", "FLOAT"))
        client.execute_command("FS.REPLAY", "profile", "FROM", "0", "VERSION", version)
        if chance.random() < 0.5:
            client.execute_command("FS.DROP", "profile", "VERSION", version, "DATA")

    def transaction():
        with client.pipeline() as pipeline:
            pipeline.execute_command("FS.PUBLISH", key(), "n", 1)
            add(pipeline, "u1", {"n": 5}, now_s)
            pipeline.execute_command("FS.PUBLISH", key(), "AT", at_ms(), "n", 2)
            pipeline.execute()

    def script():
        publish = "redis.call('XADD', KEYS[2], '*', 'entity_id', 'u2', 'features', '{\"n\": 4}')"
        client.eval(f"{publish} return redis.call('FS.PUBLISH', KEYS[1], 'n', '3')", 2, key(), LOG)

    mix = {
        "publish": lambda: client.execute_command("FS.PUBLISH", key(), "JSON", json.dumps(update())),
        "publish at": lambda: client.execute_command(
            "FS.PUBLISH", key(), "AT", at_ms(), "JSON", json.dumps(update())
        ),
        "publish event": lambda: client.execute_command("FS.PUBLISH", key(), "EVENT", "e\xff", "n", 7),
        "publish nolog": lambda: client.execute_command("FS.PUBLISH", key(), "NOLOG", "label", b"\xff\0"),
        "mpublish": lambda: client.execute_command(
            "FS.MPUBLISH", key(), json.dumps(update()), key(), json.dumps(update() | {"_at": at_ms()})
        ),
        "del": lambda: client.execute_command("FS.DEL", key(), key()),
        "xadd": lambda: add(client, key()[14:], update(), at_ms() / 1000),
        "xadd invalid": lambda: add(client, "u1", {"n": "none"}),
        "xadd extra": lambda: add(client, "u1", {"n": 1, "unknown": 2}),
        "xadd trimming": lambda: client.xadd(LOG, entry("u4", {"n": 1}), maxlen=50),
        "alter": lambda: client.execute_command(
            "FS.ALTER", "profile", "VERSION", 1, "MAXLEN", chance.randint(100, 400)
        ),
        "register": register_and_drop,
        "stop": lambda: client.execute_command("FS.CONSUMER", "STOP", "profile"),
        "start": lambda: client.execute_command("FS.CONSUMER", "START", "profile"),
        "consume": lambda: client.execute_command("FS.CONSUME", "profile", "COUNT", chance.randint(1, 9)),
        "trim": lambda: client.execute_command("FS.TRIM", "profile", "MAXLEN", chance.randint(0, 90)),
        "replay": lambda: client.execute_command("FS.REPLAY", "profile", "FROM", "0", "VERSION", 1),
        "xdel": lambda: client.xdel(
            LOG, *[id for id, _ in client.xrange(LOG)[:: chance.randint(2, 9)]], "1-1"
        ),
        "xtrim": lambda: client.xtrim(LOG, maxlen=chance.randrange(99)),
        "group lost": lambda: client.execute_command("XGROUP", "DESTROY", LOG, "fs"),
        "group moved": lambda: group(client) and client.execute_command("XGROUP", "SETID", LOG, "fs", "0"),
        "native": lambda: client.hset(key(), "label", "by hand"),
        "native del": lambda: client.delete(key()),
        "transaction": transaction,
        "script": script,
    }
    weights = [8 if name.startswith(("publish", "xadd", "mpublish")) else 1 for name in mix]
    for name in list(mix) + chance.choices(list(mix), weights, k=600):
        mix[name]()
        ran.add(name)
    assert ran == set(mix)
    client.execute_command("FS.CONSUMER", "START", "profile")
    await_drained(client)
    await_until(lambda: module_figures(client)["dropping"] == 0, what="the drops to end")
    assert figures(client)["dead_letters"] > 0
    assert figures(client)["superseded"] > 0
    assert figures(client)["expired_on_arrival"] > 0
    assert_same(primary, replica)


# Failover, pause, promotion


def consumed_by(servers):
    return sum(figures(server.client())["consumed"] for server in servers)


@pytest.mark.parametrize("settings", [QUICK, QUICK | AOF], ids=["memory", "aof"])
def test_coordinated_failovers_under_load_lose_nothing_and_apply_nothing_twice(fresh_server, settings):
    first = fresh_server(settings)
    register(first.client(), "MAXLEN", 1_000_000)
    second = first.replica({"repl-diskless-load": "on-empty-db"})
    with Writers([first, second], threads=3) as writers:
        for old, new in [(first, second), (second, first)] * 3:
            writers.await_more(300)
            # A backlog, so that the failover comes while the consumer writes.
            add_many(old.client(), 2_000)
            fail_over(old, new)
            assert not writers.failures
    client = first.client()
    await_drained(client)
    assert rows(client) == rows_by_entries(client)
    assert consumed_by([first, second]) == client.xlen(LOG) == sum(writers.acknowledged) + 6 * 2_000
    assert [figures(server.client())["lost_entries"] for server in (first, second)] == [0, 0]
    for place, number in enumerate(writers.acknowledged):
        assert client.hget(f"fs:v1:profile:w{place}-{number % 20}", "n") == str(number).encode()
    assert_same(first, second)


@pytest.mark.parametrize("settings", [SLOW, SLOW | AOF], ids=["memory", "aof"])
def test_nothing_moves_while_writes_are_paused(fresh_server, settings):
    primary = fresh_server(settings)
    replica = primary.replica({"repl-diskless-load": "on-empty-db"})
    client, other = primary.client(), primary.client()
    register(client, "MAXLEN", 1_000_000)
    register(client, view="gone", schema=("n", "INT"))
    register(client, version=2)
    client.execute_command("FS.ALTER", "profile", "VERSION", 2, "CONSUMER", "OFF")
    for i in range(3_000):
        client.hset(f"fs:v1:gone:{i}", "n", i)
    client.execute_command("FS.CONSUMER", "STOP", "profile")
    add_many(client, 10_000)
    client.execute_command("FS.CONSUMER", "START", "profile")
    client.execute_command("FS.DROP", "gone", "DATA")
    replayed = []
    replay = threading.Thread(
        target=lambda: replayed.append(
            other.execute_command("FS.REPLAY", "profile", "FROM", "0", "VERSION", 2)
        )
    )
    replay.start()
    # Consuming, replaying and deleting, all at once and none at its end, when the pause comes.
    await_until(
        lambda: (f := figures(client))["consumed"] > 100 and f["replaying"], what="the work to be under way"
    )
    client.client_pause(100_000, all=False)
    assert figures(client)["consumer"] == b"waiting"
    cursor, offset = figures(client)["cursor"], primary.info("replication")["master_repl_offset"]
    held = client.execute_command("FS.INFO")
    keys = client.dbsize()
    # Thirty sweeps and hundreds of slices would fit in here.
    time.sleep(0.3)
    assert (figures(client)["cursor"], client.dbsize()) == (cursor, keys)
    assert client.execute_command("FS.INFO") == held
    # The primary's PINGs are all that replicas hear.
    assert primary.info("replication")["master_repl_offset"] - offset < 100
    assert figures(client)["lag_entries"] > 0
    client.client_unpause()
    await_drained(client)
    replay.join()
    assert replayed == [10_000]
    await_until(lambda: not client.keys("fs:v1:gone:*"), what="the dropped rows to go")
    expected = rows_by_entries(client)
    assert rows(client) == expected
    assert rows(client, prefix="fs:v2:profile:") == expected
    assert figures(client)["consumed"] == 10_000
    await_until(lambda: module_figures(client)["dropping"] == 0, what="the drop to end")
    assert_same(primary, replica)


def test_a_failover_ends_a_replay_with_a_sentence(fresh_server):
    first = fresh_server(SLOW)
    second = first.replica({"repl-diskless-load": "on-empty-db"})
    client, other = first.client(), first.client()
    register(client, "CONSUMER", "OFF", "MAXLEN", 100_000)
    add_many(client, 20_000)
    answers = []

    def replay():
        try:
            answers.append(other.execute_command("FS.REPLAY", "profile", "FROM", "0"))
        except valkey.ResponseError as error:
            answers.append(str(error))

    thread = threading.Thread(target=replay)
    thread.start()
    await_until(lambda: figures(client)["replaying"], what="the replay to begin")
    fail_over(first, second)
    thread.join()
    assert isinstance(answers[0], str), answers
    assert figures(second.client())["replaying"] is None
    # It can be asked for again on the new primary.
    assert second.client().execute_command("FS.REPLAY", "profile", "FROM", "0") == 20_000
    assert rows(second.client()) == rows_by_entries(second.client())
    assert_same(second, first)


@pytest.mark.parametrize("end", ["TIMEOUT", "ABORT"])
def test_a_failover_that_does_not_come_to_pass_delays_the_consumer_only(fresh_server, end):
    primary = fresh_server(SLOW | AOF)
    replica = primary.replica({"repl-diskless-load": "on-empty-db"})
    client = primary.client()
    register(client, "MAXLEN", 1_000_000)
    add_many(client, 20_000)
    await_until(lambda: entries_read(client) > 100, what="some progress")
    # A replica that stands still never catches up.
    os.kill(replica.process.pid, signal.SIGSTOP)
    try:
        add_many(client, 100, start=20_000)
        patience = ("TIMEOUT", 500) if end == "TIMEOUT" else ()
        client.execute_command("FAILOVER", "TO", "127.0.0.1", replica.port, *patience)
        await_until(lambda: figures(client)["consumer"] == b"waiting", what="the consumer to wait")
        cursor = figures(client)["cursor"]
        time.sleep(0.1)
        assert (figures(client)["cursor"], figures(client)["lag_entries"] > 0) == (cursor, True)
        if end == "ABORT":
            client.execute_command("FAILOVER", "ABORT")
        await_until(lambda: figures(client)["consumer"] == b"running", what="the consumer to go on")
        await_until(lambda: figures(client)["cursor"] != cursor, what="the cursor to move")
    finally:
        os.kill(replica.process.pid, signal.SIGCONT)
    await_drained(client)
    assert figures(client)["consumed"] == client.xlen(LOG) == 20_100
    assert rows(client) == rows_by_entries(client)
    assert_same(primary, replica)


def test_a_replica_that_restarts_from_its_own_files_is_the_same(fresh_server):
    for settings in ({}, AOF):
        primary = fresh_server(QUICK)
        replica = primary.replica(settings)
        client = primary.client()
        register(client, "TTL", "700d")
        add_many(client, 1_000)
        await_drained(client)
        primary.await_replicated(replica)
        await_until(
            lambda at=replica: at.info("persistence")["aof_rewrite_in_progress"] == 0, what="the first AOF"
        )
        replica.restart()
        add_many(client, 1_000, start=500)
        client.execute_command("FS.DEL", "fs:v1:profile:u1")
        client.execute_command("FS.ALTER", "profile", "ADD", "more", "INT")
        await_drained(client)
        await_synced(replica, primary)
        assert_same(primary, replica)


@pytest.mark.parametrize("rewritten", [False, True])
def test_the_aof_of_a_replica_alone_brings_everything_back(fresh_server, rewritten):
    primary = fresh_server(QUICK)
    replica = primary.replica({"appendonly": "yes", "appendfsync": "always"})
    client, other = primary.client(), replica.client()
    register(client, "TTL", "700d", "MAXLEN", 500)
    add_many(client, 1_000)
    add(client, "u1", {"n": "no number"})
    for i in range(300):
        client.execute_command("FS.PUBLISH", f"fs:v1:profile:u{i % 70}", "n", i, "label", b"\xff\0")
        if rewritten and i == 150:
            await_until(
                lambda: not other.info("persistence")["aof_rewrite_in_progress"], what="the first AOF"
            )
            other.bgrewriteaof()
    client.execute_command("FS.DEL", "fs:v1:profile:u1")
    client.execute_command("FS.ALTER", "profile", "ADD", "more", "INT")
    await_drained(client)
    primary.await_replicated(replica)
    await_until(lambda: not other.info("persistence")["aof_rewrite_in_progress"], what="the AOF")
    held = everything(client)
    primary.kill()
    replica.restart(kill=True, config={"replicaof": "no one"})
    after = everything(replica.client())
    for aspect, expected in held.items():
        assert after[aspect] == expected, aspect


@pytest.mark.parametrize("node_entries", [1, 100])
@pytest.mark.parametrize("maxlen", [1, 10, 5_000])
def test_a_promoted_replica_takes_published_entries_for_neither_new_nor_lost(
    fresh_server, maxlen, node_entries
):
    primary = fresh_server({"stream-node-max-entries": node_entries})
    replica = primary.replica({"repl-diskless-load": "on-empty-db"})
    client = primary.client()
    register(client, "MAXLEN", maxlen)
    with client.pipeline(transaction=False) as pipeline:
        for i in range(2_500):
            pipeline.execute_command(
                "FS.PUBLISH", f"fs:v1:profile:u{i % 9}", "AT", (EPOCH_S + i) * 1000, "n", i
            )
        pipeline.execute()
    primary.await_replicated(replica)
    primary.kill()
    client = replica.client()
    before = digests(client)
    client.replicaof("NO", "ONE")
    await_drained(client)
    told = figures(client)
    assert (told["consumed"], told["lost_entries"], told["superseded"]) == (0, 0, 0)
    assert digests(client) == before and len(before) == 9


def test_a_log_that_was_replaced_is_read_from_its_start_also_after_a_promotion(fresh_server):
    primary = fresh_server(QUICK)
    replica = primary.replica({"repl-diskless-load": "on-empty-db"})
    client = primary.client()
    register(client)
    add_many(client, 10)
    await_drained(client)
    client.execute_command("FS.CONSUMER", "STOP", "profile")
    last_ms = int(client.xinfo_stream(LOG)["last-generated-id"].split(b"-")[0])
    for id in ("1-1", f"{last_ms + 5}-0"):
        add(client, f"e{id}", {"n": 1}, EPOCH_S, log="incoming", id=id)
    client.rename("incoming", LOG)
    client.execute_command("FS.CONSUMER", "START", "profile")
    primary.await_replicated(replica)
    primary.kill()
    client = replica.client()
    client.replicaof("NO", "ONE")
    await_drained(client)
    assert {entity for entity in rows(client) if entity.startswith("e")} == {"e1-1", f"e{last_ms + 5}-0"}


def test_deleting_dropped_data_goes_on_after_a_failover(fresh_server):
    first = fresh_server(SLOW)
    second = first.replica({"repl-diskless-load": "on-empty-db"})
    client = first.client()
    register(client)
    with client.pipeline(transaction=False) as pipeline:
        for i in range(40_000):
            pipeline.hset(f"fs:v1:profile:{i}", "n", i)
        pipeline.set("fs:v1:profiles:1", "another view's")
        add(pipeline, "u1", {"n": 1})
        pipeline.execute()
    client.execute_command("FS.DROP", "profile", "DATA")
    await_until(lambda: client.dbsize() < 39_000, what="the deletion to be under way")
    fail_over(first, second)
    new = second.client()
    assert new.dbsize() > 1
    with pytest.raises(valkey.ResponseError, match="BUSY"):
        register(new)
    await_until(lambda: module_figures(new)["dropping"] == 0, what="the drop to end")
    assert new.keys() == [b"fs:v1:profiles:1"]
    register(new)
    assert_same(second, first)


def test_a_replica_promoted_after_a_power_cut_goes_on_from_the_cursor(fresh_server):
    for cut_after in (200, 1_000, 3_000):
        primary = fresh_server(SLOW)
        replica = primary.replica({"repl-diskless-load": "on-empty-db"})
        register(primary.client(), "MAXLEN", 1_000_000)
        primary.client().execute_command("FS.CONSUMER", "STOP", "profile")
        add_many(primary.client(), 20_000)
        primary.await_replicated(replica)
        primary.client().execute_command("FS.CONSUMER", "START", "profile")
        client = replica.client()
        await_until(
            lambda least=cut_after, at=client: entries_read(at) >= least, what="the replica to hear of rows"
        )
        primary.kill()
        # Rows and cursor moved in one unit: what the replica holds is exactly what its cursor says.
        consumed = group(client)["entries-read"]
        assert cut_after <= consumed < 20_000
        cursor = group(client)["last-delivered-id"]
        assert rows(client) == rows_by_entries(client, until=cursor)
        client.replicaof("NO", "ONE")
        await_drained(client)
        assert rows(client) == rows_by_entries(client)
        assert (figures(client)["consumed"], figures(client)["lost_entries"]) == (20_000 - consumed, 0)
        # And it takes new entries.
        add(client, "new", {"n": 1}, EPOCH_S)
        await_until(lambda at=client: at.exists("fs:v1:profile:new"), what="the new entry's row")
