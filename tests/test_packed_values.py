"""STORAGE PACKED tells what STORAGE HASH tells: the same random life of two views of one schema, and every answer.

The same on replicas, and after restarts, resyncs and failovers.
"""

import pytest
from packed_rows import HASH, PACKED, Twins, nameless
from profile_view import await_drained
from test_replication import assert_same, await_synced, fail_over

QUICK = {"fs.sweep-interval": 20}
AOF = {"appendonly": "yes", "appendfsync": "always"}
SEEDS = range(8)


def assert_copied(primary, replica, twins):
    """Both hold the same, and tell the same of both views."""
    client = primary.client()
    for view in (HASH, PACKED):
        # Else the group's cursor would move between the two looks.
        if client.exists(f"fs:stream:{view}"):
            await_drained(client, f"fs:stream:{view}")
    assert_same(primary, replica)
    twins.compare(replica)


@pytest.mark.parametrize("seed", SEEDS)
def test_packed_rows_answer_what_hashes_answer(server, seed):
    twins = Twins(server, seed, with_windows=seed % 2 == 1)
    twins.run(400)
    # All kinds of steps took place, and some were refused.
    assert twins.refused > 0 and twins.done["publish"] > 100
    assert {"publish_many", "append", "delete", "expire", "move", "alter"} <= set(twins.done)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_replica_answers_the_same_of_both(fresh_server, seed):
    primary = fresh_server(QUICK)
    early = primary.replica()
    twins = Twins(primary, 100 + seed, with_windows=seed % 2 == 0)
    twins.run(120)
    late = primary.replica({"repl-diskless-load": "swapdb"})
    twins.run(120)
    for replica in (early, late):
        assert_copied(primary, replica, twins)


def test_a_replica_that_went_astray_is_the_same_again_after_a_full_resync(fresh_server):
    primary = fresh_server(QUICK)
    replica = primary.replica()
    twins = Twins(primary, 300, with_windows=True)
    twins.run(150)
    primary.await_replicated(replica)
    astray = replica.client()
    astray.replicaof("NO", "ONE")
    for view in (HASH, PACKED):
        astray.execute_command("FS.DROP", view, "DATA")
    full_before = primary.info("stats")["sync_full"]
    astray.replicaof("127.0.0.1", primary.port)
    await_synced(replica, primary)
    assert primary.info("stats")["sync_full"] == full_before + 1
    assert_copied(primary, replica, twins)
    twins.run(60)
    assert_copied(primary, replica, twins)


def test_after_a_failover_both_go_on_the_same(fresh_server):
    primary = fresh_server(QUICK)
    replica = primary.replica()
    twins = Twins(primary, 400, with_windows=True)
    twins.run(150)
    fail_over(primary, replica)
    twins.server = replica
    twins.run(150)
    assert_copied(replica, primary, twins)


def rows_of(client) -> dict:
    keys = sorted(client.scan_iter("fs:[vw]1:*", count=1_000))
    return {
        key: (client.execute_command("DEBUG", "DIGEST-VALUE", key)[0], client.pexpiretime(key))
        for key in keys
    }


WAYS = {
    "an RDB file": ({}, {}),
    "an AOF": (AOF, {"save": False}),
    "an AOF after a rewrite": (AOF, {"save": False}),
    "an AOF after a power cut": (AOF, {"kill": True}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", [500, 501])
def test_a_restart_changes_nothing(fresh_server, way, seed):
    config, restart = WAYS[way]
    server = fresh_server(QUICK | config)
    twins = Twins(server, seed, with_windows=seed % 2 == 0)
    # A short expiry that another step set would come due between the two looks.
    twins.run(150)
    if "rewrite" in way:
        server.client().bgrewriteaof()
        twins.run(50)
    before = rows_of(server.client())
    server.restart(**restart)
    after = rows_of(server.client())
    now_ms = int(server.client().time()[0]) * 1000
    lasting = {key: value for key, value in before.items() if value[1] == -1 or value[1] > now_ms + 5_000}
    assert len(lasting) > 5
    assert {key: after.get(key) for key in lasting} == lasting
    twins.compare()
    twins.run(60)


def test_a_reload_while_running_changes_nothing(server):
    twins = Twins(server, 600, with_windows=True)
    twins.run(150)
    before = server.client().execute_command("DEBUG", "DIGEST")
    server.client().execute_command("DEBUG", "RELOAD")
    assert server.client().execute_command("DEBUG", "DIGEST") == before
    twins.compare()
    twins.run(60)


@pytest.mark.parametrize("seed", range(700, 706))
def test_drift_is_the_same_of_both(server, seed):
    twins = Twins(server, seed, with_windows=seed % 2 == 0)
    twins.run(200)
    frozen = 0
    for feature in twins.served:
        told = twins.both(lambda view, name=feature: ["FS.BASELINE", view, name, "FREEZE"])
        frozen += told[0] == b"OK"
    twins.run(200)
    client = server.client(protocol=3)
    ours, theirs = (client.execute_command("FS.DRIFT", view) for view in (HASH, PACKED))
    assert nameless(theirs) == nameless(ours)
    assert frozen > 0 and len(ours) >= frozen and any(told[b"current_n"] for told in ours)
