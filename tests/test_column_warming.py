"""The column cache fills itself: after a start, a copy, a new service, a raised limit; nobody notices it."""

import pytest
from column_cases import ROOMY, SETTING, figures
from column_fill import (
    QUICK,
    await_warm,
    batches,
    define,
    hits_and_misses,
    ids_of,
    publish,
    serve_all,
    set_service,
)
from drifting_view import module_info
from test_persistence import WAYS
from test_replication import fail_over
from test_resync import LOADS
from windowed_view import fs

from server import await_until

SCHEMA = "a INT DEFAULT 3 f FLOAT c STRING VALUES 2 x y"
# A hash whose fields all stand in one block, and one that is a table.
WIDE = SCHEMA + " e VECTOR 30"
IDS = ids_of(1_500)
SLOW = QUICK | {"fs.consumer-slice-us": 50}


def fill(server) -> dict[str, list]:
    """Rows of two views, hashes and packed. What is served, by view."""
    client = server.client()
    define(client, "v", SCHEMA)
    define(client, "p", SCHEMA, "STORAGE PACKED TTL 1d")
    for view in ("v", "p"):
        publish(client, IDS, view)
    return served(client)


def served(client) -> dict[str, list]:
    return {view: serve_all(client, IDS, view) for view in ("v", "p")}


def assert_warm(server, expected: dict) -> None:
    """Fills itself, and answers all from the first call on."""
    await_warm(server, 2 * len(IDS))
    client = server.client()
    assert hits_and_misses(server, lambda: served(client)) == (2 * len(IDS), 0)
    assert served(client) == expected


@pytest.mark.parametrize("come_back, settings", WAYS, ids=lambda p: getattr(p, "__name__", ""))
def test_it_is_full_again_after_every_way_to_come_back(fresh_server, come_back, settings):
    server = fresh_server(settings)
    expected = fill(server)
    for _ in range(2):
        come_back(server)
        assert_warm(server, expected)


@pytest.mark.parametrize("load", LOADS)
def test_it_is_full_on_a_replica_after_a_full_resync(fresh_server, load):
    primary = fresh_server(QUICK)
    expected = fill(primary)
    replica = primary.replica({"repl-diskless-load": load})
    chained = replica.replica({"repl-diskless-load": load})
    assert_warm(replica, expected)
    assert_warm(chained, expected)
    # And again, in place of what was there.
    other = fresh_server(QUICK)
    client = other.client()
    define(client, "v", "a INT DEFAULT 4")
    publish(client, IDS[:100], row=lambda i: {"a": -i})
    replica.client().replicaof("127.0.0.1", other.port)
    await_warm(replica, 100)
    await_warm(chained, 100)
    for server in (replica, chained):
        told = serve_all(server.client(), IDS)
        assert told == serve_all(client, IDS)


def test_it_is_full_on_both_sides_of_a_failover(fresh_server):
    primary = fresh_server(QUICK)
    replica = primary.replica()
    expected = fill(primary)
    primary.await_replicated(replica)
    assert served(replica.client()) == expected
    fail_over(primary, replica)
    for server in (replica, primary):
        assert_warm(server, expected)
    publish(replica.client(), IDS[:50], row=lambda i: {"a": -1})
    changed = served(replica.client())
    assert changed != expected
    replica.await_replicated(primary)
    assert served(primary.client()) == changed
    assert_warm(primary, changed)


def test_a_new_service_and_more_features_fill_it(fresh_server):
    server = fresh_server(QUICK)
    replica = server.replica()
    client = server.client()
    client.execute_command(*f"FS.REGISTER v ENTITY user SCHEMA {WIDE}".split())
    publish(client, IDS)
    assert figures(server)["rows"] == 0
    set_service(client, "v", "a INT")
    for each in (server, replica):
        await_warm(each, len(IDS))
    before = {each: figures(each)["bytes"] for each in (server, replica)}
    set_service(client, "v", WIDE, "more")
    for each in (server, replica):
        grown = before[each] + len(IDS) * 30 * 4
        await_until(lambda each=each, grown=grown: figures(each)["bytes"] >= grown, what="the cache to grow")
        await_warm(each, len(IDS))
        for name in ("of_v", "more"):

            def read(each=each, name=name):
                each.client().execute_command("FS.SERVE", name, *IDS)

            assert hits_and_misses(each, read) == (len(IDS), 0)
    # In a format of values there are no numbers to answer.
    fs(client, "FS.SERVICE DEL more")
    fs(client, "FS.SERVICE SET of_v FEATURES 1 v:a")
    for each in (server, replica):
        await_until(lambda each=each: figures(each)["rows"] == 0, what="the cache to be given up")


@pytest.mark.parametrize("storage", ["HASH", "PACKED"])
@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu"])
def test_filling_leaves_no_trace_in_what_the_server_counts(fresh_server, policy, storage):
    server = fresh_server(QUICK | {"maxmemory-policy": policy, SETTING: 0})
    client = server.client()
    # Without a log nothing else is looked at in the background.
    define(client, "v", SCHEMA, f"LOG OFF CONSUMER OFF STORAGE {storage}")
    publish(client, IDS)
    option, place = ("IDLETIME", 5_000) if policy == "allkeys-lru" else ("FREQ", 77)
    keys = [b"fs:v1:v:%s" % id_ for id_ in IDS]
    for key in keys:
        client.execute_command("RESTORE", key, 0, client.dump(key), "REPLACE", option, place)

    def seen() -> list[int]:
        return [
            client.execute_command("OBJECT", "IDLETIME" if option == "IDLETIME" else "FREQ", key)
            for key in keys
        ]

    def counted() -> dict:
        told = client.info("stats")
        names = ("keyspace_hits", "keyspace_misses", "expired_keys", "total_error_replies")
        of_module = module_info(server)
        return {name: told[name] for name in names} | {
            name: of_module[name] for name in ("rows_served", "invalid_values", "column_cache_misses")
        }

    before = seen()
    assert min(before) >= place
    counts = counted()
    client.config_set(SETTING, ROOMY)
    await_warm(server, len(IDS))
    told, after = counted(), seen()
    # Idle keys stay idle; uses are forgotten by and by.
    if option == "IDLETIME":
        assert min(after) >= place
    else:
        assert place - 1 <= min(after) and max(after) <= place
    assert told == counts
    # Whereas reading is counted, also from the cache.
    serve_all(client, IDS)
    assert counted()["rows_served"] == counts["rows_served"] + len(IDS)


def test_what_is_no_row_does_not_stop_it(fresh_server):
    server = fresh_server(QUICK | {SETTING: 0})
    client = server.client()
    define(client, "v", SCHEMA)
    define(client, "p", SCHEMA, "STORAGE PACKED")
    client.execute_command(*f"FS.REGISTER unread ENTITY user SCHEMA {SCHEMA}".split())
    for view in ("v", "p", "unread"):
        publish(client, IDS, view)
    with client.pipeline(transaction=False) as pipeline:
        for i in range(300):
            for key in (
                f"fs:v1:v:list{i}",
                f"fs:v1:p:list{i}",
                f"fs:v9:v:{i}",
                f"fs:v1:nobody:{i}",
                f"fs:vx{i}",
                f"fs:v1:v{i}",
            ):
                pipeline.rpush(key, "x")
            pipeline.set(f"fs:v1:v:text{i}", "text")
            pipeline.set(f"fs:v1:p:text{i}", "text")
            pipeline.hset(f"fs:v1:p:hash{i}", "a", 5)
            pipeline.hset(f"fs:v1:v:bad{i}", "a", "junk")
            pipeline.hset(f"fs:v1:v:{'i' * 500}{i}", "a", 5)
            pipeline.set(f"other{i}", "x")
            pipeline.hset(f"fs:v1:v:other{i}", "nothing", "of it")
            # A key of any bytes, and rows that are gone when they are looked at.
            pipeline.hset(b"fs:v1:v:\xff\0%d" % i, "a", 6)
            pipeline.psetex(f"fs:v1:p:gone{i}", 1, "x")
        pipeline.execute()
    client.config_set(SETTING, ROOMY)
    # Ids of any bytes and length are rows, so is a hash without its features.
    await_warm(server, 2 * len(IDS) + 3 * 300)
    assert module_info(server)["panics"] == 0
    assert hits_and_misses(server, lambda: served(client)) == (2 * len(IDS), 0)


def test_others_are_answered_while_it_fills_and_nothing_is_written(fresh_server):
    server = fresh_server(SLOW | {SETTING: 0})
    replica = server.replica()
    client = server.client()
    define(client, "v", WIDE)
    ids = ids_of(20_000)
    publish(client, ids)
    server.await_replicated(replica)
    for each in (server, replica):
        reader = each.client()
        dirty, offset = digest(reader), reader.info("replication")["master_repl_offset"]
        monitor = each.client().connection_pool.get_connection("MONITOR")
        monitor.send_command("MONITOR")
        assert monitor.read_response() == b"OK"
        reader.config_set(SETTING, ROOMY)
        during = []
        await_until(lambda each=each: figures(each)["warming"], what="the filling to begin")
        while figures(each)["warming"]:
            during.append(reader.execute_command("FS.SERVE", "of_v", "u5", "u19999"))
        reader.execute_command("ECHO", "the end")
        told = set()
        while "ECHO" not in told:
            # A line is: when, who, and the words of the command in quotes.
            told.add(monitor.read_response().split(b'"')[1].decode().upper())
        monitor.disconnect()
        # Between the slices came many calls, each with the same answer.
        assert len(during) > 20 and all(reply == during[0] for reply in during)
        await_warm(each, len(ids))
        writing = {
            name.decode().upper() for name in reader.execute_command("COMMAND LIST FILTERBY ACLCAT write")
        }
        assert "SCAN" in told and not told & writing
        assert digest(reader) == dirty
        if each is server:
            assert reader.info("replication")["master_repl_offset"] - offset < 1_000


def digest(client) -> bytes:
    return client.execute_command("DEBUG", "DIGEST")


def test_a_change_while_it_fills_is_not_lost(fresh_server):
    server = fresh_server(SLOW | {SETTING: 0})
    client = server.client()
    define(client, "v", SCHEMA)
    ids = ids_of(20_000)
    publish(client, ids)
    client.config_set(SETTING, ROOMY)
    await_until(lambda: figures(server)["warming"], what="the filling to begin")
    changes = 0
    while figures(server)["warming"]:
        i = changes % len(ids)
        client.hset(b"fs:v1:v:" + ids[i], "a", -i)
        client.execute_command("FS.PUBLISH", b"fs:v1:v:" + ids[-1 - i], "a", -i)
        client.delete(b"fs:v1:v:" + ids[len(ids) // 2 + i])
        changes += 1
    assert changes > 20
    cached = serve_all(client, ids)
    client.config_set(SETTING, 0)
    assert serve_all(client, ids) == cached


def test_a_limit_that_is_too_low_for_all_ends_the_filling(fresh_server):
    limit = 200_000
    server = fresh_server(QUICK)
    client = server.client()
    define(client, "v", WIDE)
    ids = ids_of(5_000)
    publish(client, ids)
    client.config_set(SETTING, limit)
    set_service(client, "v", WIDE, "again")
    await_until(lambda: figures(server)["bytes"] <= limit, what="the cache to shrink")
    server.restart(config={SETTING: limit})
    client = server.client()
    await_until(
        lambda: figures(server)["rows"] > 500 and not figures(server)["warming"], what="the filling to end"
    )
    assert figures(server)["bytes"] <= limit
    cached = [serve_all(client, batch) for batch in batches(ids, 200)]
    client.config_set(SETTING, 0)
    assert [serve_all(client, batch) for batch in batches(ids, 200)] == cached
