"""The current windows of drift: what comes into them and what does not, their bounds, and what outlives what.

A window is seen through FS.DRIFT alone: how many values and arrivals it holds, its mean, and how it lies to a baseline.
Copies must agree on every member of every answer.
"""

import contextlib
import random

import pytest
import valkey
from drifting_view import (
    DAY_MS,
    OF_COMMANDS_ALONE,
    ROW,
    alerts_written,
    all_arrivals,
    arrivals,
    assert_drifts_the_same,
    await_checks,
    came,
    counted,
    define,
    drift,
    everything_drifts,
    module_info,
    of_publishes,
    publish_rows,
    register_watched,
    serve,
    traffic,
    typed,
)
from profile_view import LOG, entry
from test_persistence import (
    ALWAYS,
    QUICK,
    WAYS,
    damaged,
    effects_in,
)
from test_replication import fail_over
from test_resync import LOADS, await_synced
from test_window_state import valkey_in_database
from windowed_view import fs

from server import ServerFailed, await_until

# Coming back


@pytest.mark.parametrize("come_back, settings", WAYS, ids=lambda p: getattr(p, "__name__", ""))
def test_windows_baselines_and_alerts_survive(fresh_server, come_back, settings):
    server = fresh_server(settings | {"fs.drift-interval": 100})
    client = typed(server)
    define(client)
    updates = traffic(server)
    serve(client, 240)
    for feature in ("served y", "profile tags"):
        fs(client, f"FS.BASELINE {feature} FREEZE")
    await_checks(server)
    before, written = everything_drifts(client), alerts_written(client)
    active = module_info(server)["drift_alerts"]
    assert active >= 5 and len(before["profile", 1]) >= 25
    assert came(client) == counted(updates)
    frozen = before["served", 1]["y", "MEAN"]["baseline_n"]
    assert 100 <= frozen == before["served", 1]["y", "MEAN"]["current_n"]
    for _ in range(2):
        come_back(server)
        client = typed(server)
        after = everything_drifts(client)
        assert of_publishes(after) == of_publishes(before)
        if come_back not in OF_COMMANDS_ALONE:
            assert after == before
        # What was frozen is a baseline like any other, wherever its values came from.
        assert after["served", 1]["y", "MEAN"]["baseline_n"] == frozen
        await_checks(server)
        assert alerts_written(client) == written
        assert module_info(server)["drift_alerts"] == active
    # And it goes on.
    more = traffic(server, 200, seed=9)
    assert came(client) == counted(updates + more)


def test_an_rdb_brings_back_what_was_saved_and_an_aof_what_came_since(fresh_server):
    for settings, is_all_back in ((QUICK, False), (ALWAYS, True)):
        server = fresh_server(settings)
        client = typed(server)
        define(client)
        traffic(server, 200)
        client.save()
        saved = everything_drifts(client)
        traffic(server, 200, seed=2)
        fs(client, "FS.BASELINE profile n STATS mean 7 stddev 1")
        newest = everything_drifts(client)
        assert newest != saved
        server.restart(kill=True)
        assert everything_drifts(typed(server)) == (newest if is_all_back else saved)


# Copies


def test_replicas_of_all_kinds_are_equal_to_the_bit(fresh_server):
    # A small bound, so that what is kept is a choice; the replica's own settings say otherwise.
    primary = fresh_server(QUICK)
    replica = primary.replica({"fs.drift-samples": 333, "repl-diskless-load": "on-empty-db"})
    client = typed(primary)
    define(client)
    client.config_set("fs.drift-samples", 150)
    traffic(primary, 500)
    fs(client, "FS.BASELINE profile part FREEZE")
    last = replica.replica({"replicaof": f"127.0.0.1 {replica.port}", "repl-diskless-load": "swapdb"})
    traffic(primary, 500, seed=2)
    with client.pipeline() as pipeline:
        pipeline.execute_command("FS.PUBLISH", ROW, "n", 5)
        pipeline.flushall()
        pipeline.execute_command("FS.PUBLISH", ROW, "n", 6)
        fs(pipeline, "FS.BASELINE profile word CLEAR CURRENT")
        fs(pipeline, "FS.BASELINE profile tags FREEZE")
        pipeline.execute()
    fs(client, "FS.ALTER profile ADD more INT DEFAULT 1")
    fs(client, "FS.BASELINE profile more STATS mean 5 stddev 2")
    client.xadd(LOG, entry("u1", {"more": 1}))
    traffic(primary, 300, seed=3)
    sizes = {told["current_n"] for told in drift(client, "profile", "METHOD", "MEAN").values()}
    assert max(sizes) <= 150
    late = primary.replica({"repl-diskless-load": "disabled"})
    for copy in (replica, late):
        assert_drifts_the_same(primary, copy)
    assert_drifts_the_same(replica, last)
    # One that restarts from its own file goes on as well.
    replica.restart()
    await_synced(replica, primary)
    traffic(primary, 100, seed=4)
    assert_drifts_the_same(primary, replica)
    await_synced(last, replica)
    assert_drifts_the_same(replica, last)


def test_what_is_served_is_each_nodes_own(fresh_server):
    primary = fresh_server(QUICK)
    replica = primary.replica({"repl-diskless-load": "on-empty-db"})
    client, other = typed(primary), typed(replica)
    define(client)
    serve(client, 150)
    primary.await_replicated(replica)
    assert arrivals(other, "y", "served") == arrivals(other, "c") == (0, 0)
    for _ in range(7):
        other.execute_command("FS.GET", "fs:v1:served:u1", "y")
        other.execute_command("FS.MGET", "c,n", "fs:v1:profile:u1", "fs:v1:profile:u2")
    assert (arrivals(other, "y", "served"), arrivals(other, "c")) == ((7, 0), (14, 0))
    assert sum(arrivals(client, "y", "served")) == sum(arrivals(client, "c")) == 150
    # A baseline is the same everywhere, also where it was frozen from what only one node has.
    fs(client, "FS.BASELINE served y FREEZE")
    primary.await_replicated(replica)
    ours, theirs = (drift(at, "served")["y", "WASSERSTEIN"] for at in (client, other))
    assert ours["baseline_n"] == theirs["baseline_n"] > 50
    assert ours["baseline"] == theirs["baseline"]
    # One that comes later has served nothing yet.
    late = typed(primary.replica({"repl-diskless-load": "disabled"}))
    assert arrivals(late, "y", "served") == (0, 0)
    assert drift(late, "served")["y", "WASSERSTEIN"]["baseline_n"] == ours["baseline_n"]


@pytest.mark.parametrize("load", LOADS)
def test_a_full_resync_brings_the_primarys_publishes_and_leaves_what_was_served(fresh_server, load):
    primary = fresh_server(QUICK)
    replica = primary.replica({"repl-diskless-load": load})
    client, other = typed(primary), typed(replica)
    define(client)
    traffic(primary, 200)
    serve(client, 120)
    primary.await_replicated(replica)
    for _ in range(130):
        other.execute_command("FS.GET", "fs:v1:served:u1")
    # It goes its own way for a while, so that it must begin anew.
    other.replicaof("NO", "ONE")
    traffic(replica, 100, seed=5)
    fs(other, "FS.BASELINE profile n STATS mean 77 stddev 1")
    assert of_publishes(everything_drifts(other)) != of_publishes(everything_drifts(client))
    served = drift(other, "served")
    full_before = primary.info("stats")["sync_full"]
    other.replicaof("127.0.0.1", primary.port)
    await_synced(replica, primary)
    assert primary.info("stats")["sync_full"] == full_before + 1
    assert_drifts_the_same(primary, replica)
    assert drift(other, "served") == served != drift(client, "served")


@pytest.mark.parametrize("way", ["REPLICAOF NO ONE", "FAILOVER"])
def test_a_promoted_replica_goes_on_where_the_primary_stood(fresh_server, way):
    # So few that each arrival decides anew what is kept.
    primary = fresh_server(QUICK | {"fs.drift-samples": 200})
    replica = primary.replica({"repl-diskless-load": "on-empty-db"})
    client, other = typed(primary), typed(replica)
    define(client)
    traffic(primary, 700)
    primary.await_replicated(replica)
    if way == "FAILOVER":
        fail_over(primary, replica)
        traffic(replica, 300, seed=6)
        assert_drifts_the_same(replica, primary)
        return
    other.replicaof("NO", "ONE")
    # The same arrivals from here on make the same sample: the place in the order of arrivals is part of the state.
    for at in (client, other):
        publish_rows(at, [{"n": i % 90, "x": i / 7, "word": f"w{i % 7}", "part": i} for i in range(1_500)])
    ours, theirs = (of_publishes(everything_drifts(at)) for at in (client, other))
    assert ours == theirs
    assert ours["profile", 1]["x", "KS"]["current_n"] > 100


# Keys and definitions


KEYS_GO = ["FLUSHALL", "FLUSHALL ASYNC", "FLUSHDB", "SWAPDB 0 1", "FS.DEL", "DEL", "expiry"]


@pytest.mark.parametrize("way", KEYS_GO)
def test_windows_and_baselines_are_about_arrivals_and_not_about_keys(fresh_server, way):
    primary = fresh_server(QUICK)
    replica = primary.replica({"repl-diskless-load": "on-empty-db"})
    client = typed(primary)
    define(client)
    updates = traffic(primary, 300)
    serve(client, 120)
    before, keys = everything_drifts(client), client.keys("fs:v1:*")
    match way:
        case "FS.DEL" | "DEL":
            client.execute_command(way, *keys)
        case "expiry":
            assert all(client.pexpire(key, 1) for key in keys)
            await_until(lambda: not client.keys("fs:v1:*"), what="the rows to expire")
        case _:
            client.execute_command(*way.split())
    assert client.keys("fs:v1:*") == []
    assert everything_drifts(client) == before
    assert_drifts_the_same(primary, replica)
    if way == "SWAPDB 0 1":
        with valkey_in_database(client, 1) as there, pytest.raises(valkey.ResponseError):
            there.execute_command("FS.DRIFT", "profile")
    more = traffic(primary, 50, seed=8)
    assert came(client) == counted(updates + more)
    assert_drifts_the_same(primary, replica)


def test_definitions_take_their_windows_and_baselines_along(fresh_server):
    server = fresh_server(QUICK | {"appendonly": "yes"})
    client = typed(server)
    register_watched(client)
    fs(client, f"FS.PUBLISH {ROW} n 1")
    before = all_arrivals(client)
    # A feature that is added begins empty, and the others stay.
    fs(client, "FS.ALTER profile ADD more INT")
    fs(client, "FS.BASELINE profile more STATS mean 1 stddev 1")
    assert all_arrivals(client) == before
    assert arrivals(client, "more") == (0, 0)
    fs(client, f"FS.PUBLISH {ROW} more 1 x 1")
    assert all_arrivals(client, "n x more") == {"n": (1, 1), "x": (1, 1), "more": (1, 0)}
    # A new version has neither, and takes nothing away.
    fs(client, "FS.REGISTER profile VERSION 2 ENTITY user SCHEMA n INT")
    with pytest.raises(valkey.ResponseError):
        fs(client, "FS.DRIFT profile")
    fs(client, "FS.BASELINE profile n STATS mean 1 stddev 1")
    fs(client, "FS.PUBLISH fs:v2:profile:u1 n 3")
    assert arrivals(client, "n") == (1, 0)
    assert arrivals(client, "n", "profile", "VERSION", 1) == (1, 1)
    fs(client, "FS.DROP profile VERSION 2")
    assert all_arrivals(client, "n more") == {"n": (1, 1), "more": (1, 0)}
    # The same name again is another view; the AOF knows that as well.
    fs(client, "FS.DROP profile")
    fs(client, "FS.REGISTER profile ENTITY user SCHEMA n INT x FLOAT")
    with pytest.raises(valkey.ResponseError):
        fs(client, "FS.DRIFT profile")
    fs(client, "FS.BASELINE profile n STATS mean 1 stddev 1")
    for _ in range(2):
        assert arrivals(client, "n") == (0, 0)
        server.restart(save=False)
        client = typed(server)


# Bounds


def test_new_bounds_cut_what_is_there_and_replicas_follow(fresh_server):
    primary = fresh_server(QUICK)
    replica = primary.replica({"repl-diskless-load": "on-empty-db", "fs.drift-samples": 333})
    client = typed(primary)
    fs(client, "FS.REGISTER profile ENTITY user LOG OFF SCHEMA tenth INT x FLOAT")
    fs(client, "FS.BASELINE profile x STATS mean 1 stddev 1")
    fs(client, "FS.BASELINE profile tenth CATEGORIES 10", *[w for i in range(10) for w in (i, 10**9)])

    def size() -> int:
        assert_drifts_the_same(primary, replica)
        return drift(client, "profile")["x", "MEAN"]["current_n"]

    def publish(begin: int, end: int) -> None:
        publish_rows(client, [{"tenth": i * 10 // 20_000, "x": i} for i in range(begin, end)])

    publish(0, 6_000)
    assert size() == 6_000
    client.config_set("fs.drift-samples", 1_000)
    publish(6_000, 6_001)
    assert 700 <= size() <= 1_000
    publish(6_001, 12_000)
    assert 700 <= size() <= 1_000
    client.config_set("fs.drift-samples", 10_000)
    publish(12_000, 20_000)
    assert 1_000 < size() <= 10_000
    # All arrivals are as likely as before, those under the old bound and those under the new one.
    assert drift(client, "profile")["tenth", "CHI2"]["p_value"] > 1e-4
    client.config_set("fs.drift-max-age", 1_000)

    def only_new_ones() -> bool:
        publish_rows(client, [{"x": -1}] * 150)
        return drift(client, "profile")["x", "MEAN"]["current"] == -1

    await_until(only_new_ones, what="the old values to leave")
    client.config_set("fs.drift-max-age", DAY_MS)
    publish_rows(client, [{"x": -3}] * 2_000)
    assert size() > 50
    assert -3 <= drift(client, "profile")["x", "MEAN"]["current"] < -1, "what has left does not come back"
    # Without an arrival they leave as well, also in the share of what is missing.
    client.config_set("fs.drift-max-age", 1_000)
    publish_rows(client, [{"x": -3}])
    for at in (client, typed(replica)):
        await_until(lambda at=at: arrivals(at, "x") == (0, 0), what="the window to empty")
        assert drift(at, "profile")["x", "MEAN"]["current_n"] == 0
    with pytest.raises(valkey.ResponseError):
        fs(client, "FS.BASELINE profile x FREEZE")


# Damage


def is_refused(server) -> bool:
    """Whether the server does not start; one that does answers, goes on and can be saved and loaded again."""
    try:
        server.start()
    except ServerFailed:
        return True
    client = server.client()
    for view, _, versions in client.execute_command("FS.VIEWS"):
        for version in versions:
            with contextlib.suppress(valkey.ResponseError):
                client.execute_command("FS.DRIFT", view, "VERSION", version)
    # Damage to the definition may have made another limit or name.
    with contextlib.suppress(valkey.ResponseError):
        client.execute_command(
            "FS.PUBLISH", ROW, "NOLOG", "n", 1, "x", 2, "word", "w", "v", "1,2,3", "part", 1
        )
        client.execute_command("FS.GET", ROW)
    await_checks(server, 2)
    assert client.execute_command("DEBUG", "RELOAD") == b"OK"
    server.kill()
    return False


def test_damaged_windows_and_baselines_in_an_rdb_are_refused_without_a_crash(fresh_server):
    server = fresh_server({"rdbchecksum": "no", "rdbcompression": "no", "fs.drift-interval": 100})
    client = typed(server)
    define(client)
    traffic(server, 150)
    serve(client, 120)
    fs(client, "FS.BASELINE profile tags FREEZE")
    await_checks(server)
    whole_before = everything_drifts(client)
    client.flushall()
    client.save()
    server.kill()
    file = server.folder / "dump.rdb"
    whole = file.read_bytes()
    # No keys are left, so all between the first definition and the end mark is ours.
    begin, end = whole.index(b'{"view"') - 14, len(whole) - 9
    assert whole.count(b"w4", begin, end) >= 5
    chance, refused = random.Random(8), 0
    for i in range(60):
        # All of it at once, or a small piece of it.
        first = begin if i % 3 == 0 else chance.randrange(begin, end - 100)
        last = end if i % 3 == 0 else first + 100
        file.write_bytes(whole[:first] + damaged(whole[first:last], chance) + whole[last:])
        refused += is_refused(server)
    for _ in range(15):
        file.write_bytes(whole[: chance.randrange(begin, end)])
        refused += is_refused(server)
    # A number may be another one: that cannot be told.
    assert refused >= 25
    server.check_log()
    file.write_bytes(whole)
    server.start()
    assert everything_drifts(typed(server)) == whole_before


def test_damaged_effects_on_windows_and_baselines_take_nothing_down(fresh_server):
    server = fresh_server(ALWAYS | {"fs.drift-interval": 100})
    client = typed(server)
    define(client)
    traffic(server, 150)
    serve(client, 120)
    for feature in ("profile tags", "profile part", "served y"):
        fs(client, f"FS.BASELINE {feature} FREEZE")
    fs(client, "FS.BASELINE profile x CLEAR CURRENT")
    client.config_set("fs.drift-samples", 500)
    client.config_set("fs.drift-max-age", 3_600_000)
    traffic(server, 50, seed=2)
    await_checks(server)
    server.kill()
    (file,) = server.folder.glob("appendonlydir/*.incr.aof")
    whole, chance = file.read_bytes(), random.Random(6)
    places = [(begin, end) for begin, end in effects_in(whole) if end - begin >= 24]
    assert len(places) > 80
    for _ in range(20):
        hurt = bytearray(whole)
        for begin, end in chance.sample(places, len(places) // 2):
            hurt[begin:end] = damaged(hurt[begin:end], chance)
        file.write_bytes(hurt)
        assert not is_refused(server)
    server.check_log()
    assert "was not executed: " in server.log()
