"""What the column cache must not change: counters, samples, permissions, changed services and definitions, eviction."""

import json
import random

import pytest
import valkey
from column_cases import (
    CONTEXT_ID,
    IDS,
    LASTING,
    ROOMY,
    SERVICES,
    SETTING,
    Service,
    check_reading,
    counted,
    define,
    figures,
    row_key,
)
from column_changes import an_update
from column_fill import QUICK, await_warm, hits_and_misses, ids_of, publish, serve_all, set_service
from column_fill import define as define_one
from drifting_view import arrivals, register_watched, typed
from profile_view import module_figures
from windowed_view import clock_ms, fs

from server import await_until

SEVERAL = IDS[:8]


def fill(client) -> None:
    """Rows of all views, the same each time, some of them missing."""
    draw = random.Random(3)
    for view in LASTING:
        for id_ in SEVERAL:
            key = row_key(view, CONTEXT_ID + b":" + id_ if view == "both@1" else id_)
            client.delete(key)
            if id_ in SEVERAL[:6]:
                client.execute_command("FS.PUBLISH", key, "JSON", json.dumps(an_update(draw)))


@pytest.fixture
def shop(client):
    """A client of a server with all views and services, and some rows."""
    define(client, views=LASTING)
    fill(client)
    yield client
    client.config_set(SETTING, ROOMY)


def call(client, *words):
    try:
        return client.execute_command(*words)
    except valkey.ResponseError as error:
        return str(error)


# Counters and samples


def spoil(client, draw: random.Random) -> None:
    """Leaves values that nobody can read, in rows of hashes and of bytes."""
    for id_ in draw.sample(SEVERAL, 3):
        client.hset(row_key("h@1", id_), draw.choice("abfv"), "junk")
        client.hset(row_key("h@1", id_), "c", "none of them")
        client.set(row_key("p@1", id_), "no row")
    client.hset(row_key("both@1", CONTEXT_ID + b":" + SEVERAL[0]), "a", "junk")


def test_rows_served_and_unreadable_values_are_counted_as_without_the_cache(server, shop):
    draw = random.Random(1)
    added = {}
    for limit in (0, ROOMY):
        shop.config_set(SETTING, limit)
        added[limit] = []
        draw.seed(1)
        for turn in range(40):
            if turn == 10:
                spoil(shop, draw)
            service = draw.choice(SERVICES)
            ids = draw.choices(SEVERAL, k=draw.randint(1, 9))
            before = counted(server)
            call(shop, *service.reading(ids))
            told = counted(server)
            added[limit].append((service.name, ids, [b - a for a, b in zip(before, told, strict=True)]))
        if limit == 0:
            # The cache begins with rows as they were.
            fill(shop)
    assert figures(server)["hits"] > 0
    for without, with_cache in zip(added[0], added[ROOMY], strict=True):
        assert without == with_cache
    assert sum(counts[1] for *_, counts in added[0]) > 10


def test_a_view_that_is_sampled_as_it_is_served_is_read(fresh_server):
    server = fresh_server(QUICK)
    client, told = server.client(), typed(server)
    register_watched(client, "SAMPLE", 1, "ON", "SERVE", view="s", schema="n INT f FLOAT")
    publish(client, ids_of(50), "s", lambda i: {"n": i, "f": i})
    set_service(client, "s", "n INT f FLOAT")
    for _ in range(4):
        assert hits_and_misses(server, lambda: serve_all(client, ids_of(60), "s")) == (0, 0)
    assert figures(server)["rows"] == 0
    assert arrivals(told, "n", "s") == (200, 40)
    # What is no more sampled so is cached, and the other way round.
    fs(client, "FS.ALTER s SAMPLE 1 ON PUBLISH")
    await_warm(server, 50)
    assert hits_and_misses(server, lambda: serve_all(client, ids_of(50), "s")) == (50, 0)
    fs(client, "FS.ALTER s SAMPLE 1 ON SERVE")
    before = arrivals(told, "n", "s")[0]
    serve_all(client, ids_of(50), "s")
    assert arrivals(told, "n", "s")[0] == before + 50
    await_until(lambda: figures(server)["rows"] == 0, what="the cache to be given up")


# Permissions


def test_who_may_not_read_a_row_is_not_served_from_the_cache(server, shop):
    for _ in range(2):
        for service in SERVICES:
            call(shop, *service.reading(SEVERAL))
    assert hits_and_misses(server, lambda: shop.execute_command(*SERVICES[0].reading(SEVERAL[:6]))) == (6, 0)
    rules = ["on", "nopass", "resetkeys", "+@all", "~fs:v1:h:e1", "~fs:v1:h:e2", "%W~fs:v1:h:e3"]
    shop.execute_command("ACL", "SETUSER", "eve", *rules)
    eve = server.client(username="eve", password="")
    reading = SERVICES[0].reading
    assert eve.execute_command(*reading([b"e1", b"e2"])) == shop.execute_command(*reading([b"e1", b"e2"]))
    for ids in ([b"e3"], [b"e1", b"e3"], [b"e0"], SEVERAL):
        shop.acl_log_reset()
        before = figures(server), counted(server)
        with pytest.raises(valkey.exceptions.NoPermissionError):
            eve.execute_command(*reading(ids))
        assert (figures(server), counted(server)) == before
        assert [entry["reason"] for entry in shop.acl_log()] == ["key"]
    # One more right, and the other way round, at once.
    shop.execute_command("ACL", "SETUSER", "eve", "~fs:v1:h:e3")
    assert eve.execute_command(*reading([b"e3"])) == shop.execute_command(*reading([b"e3"]))
    shop.execute_command("ACL", "SETUSER", "eve", "resetkeys", "~fs:v1:p:*")
    with pytest.raises(valkey.exceptions.NoPermissionError):
        eve.execute_command(*reading([b"e1"]))
    shop.execute_command("ACL", "DELUSER", "eve")


# Services and definitions change


def test_services_that_change_and_share_views_answer_from_what_is_there(server, shop):
    draw = random.Random(5)
    names = [f"h@1:{name}" for name in "abfcvtw"] + [f"p@1:{name}" for name in "abfcvtw"]
    services = {}
    for _ in range(150):
        service = Service(
            f"s{draw.randrange(4)}",
            tuple(draw.sample(names, draw.randint(1, 9))),
            with_status=draw.random() < 0.7,
        )
        if draw.random() < 0.2 and len(services) > 1:
            fs(shop, f"FS.SERVICE DEL {services.popitem()[0]}")
        shop.execute_command(*service.setting())
        services[service.name] = service
        for _ in range(2):
            check_reading(shop, SEVERAL, services=list(services.values()))
        key = row_key(draw.choice(["h@1", "p@1"]), draw.choice(SEVERAL))
        shop.execute_command("FS.PUBLISH", key, "JSON", json.dumps(an_update(draw)))
        check_reading(shop, SEVERAL, services=list(services.values()))
    assert figures(server)["hits"] > 1_000


def test_altered_views_are_answered_as_they_are_now(server, shop):
    more = Service("more", ("h@1:added", "h@1:a", "p@1:later", "p@1:a"))
    service = Service("of_one", ("h@1:a", "h@1:f", "p@1:f", "p@1:a"))
    shop.execute_command(*service.setting())

    def check() -> list:
        for _ in range(2):
            check_reading(shop, SEVERAL, services=[service])
        return shop.execute_command(*service.reading(SEVERAL))

    before = check()
    fs(shop, "FS.ALTER h VERSION 1 ADD added INT DEFAULT 17")
    fs(shop, "FS.ALTER p ADD later FLOAT")
    assert check() == before
    shop.execute_command(*more.setting())
    for _ in range(2):
        check_reading(shop, SEVERAL, services=[service, more])
    fs(shop, "FS.PUBLISH fs:v1:h:e1 added 5")
    fs(shop, "FS.PUBLISH fs:v1:p:e1 later 5")
    check_reading(shop, SEVERAL, services=[service, more])


@pytest.mark.parametrize("storage", ["HASH", "PACKED"])
def test_another_ttl_rules_rows_that_are_cached(fresh_server, storage):
    server = fresh_server(QUICK)
    client = server.client()
    define_one(client, "v", "a INT DEFAULT 3 f FLOAT", f"TTL 1h STORAGE {storage}")
    ids = ids_of(20)
    at_ms = client.time()[0] * 1000 - 600_000
    for i, id_ in enumerate(ids):
        words = ["AT", at_ms] if i % 2 else []
        client.execute_command("FS.PUBLISH", b"fs:v1:v:" + id_, *words, "a", 9, "f", i)

    def check() -> list:
        """What is answered, the same from the cache and without it."""
        cached = [serve_all(client, ids) for _ in range(2)]
        with client.pipeline(transaction=True) as transaction:
            transaction.execute_command("CONFIG", "SET", SETTING, 0)
            transaction.execute_command("FS.SERVE", "of_v", *ids)
            transaction.execute_command("CONFIG", "SET", SETTING, ROOMY)
            _, read, _ = transaction.execute()
        assert cached == [[read]] * 2
        return read

    fresh = check()
    # A shorter one makes old what was fresh, a longer one fresh what was old.
    fs(client, "FS.ALTER v TTL 5m")
    assert check() != fresh
    fs(client, "FS.ALTER v TTL 2h")
    assert check() == fresh
    fs(client, "FS.ALTER v TTL NONE")
    assert check() == fresh
    assert figures(server)["hits"] >= 4 * 20


@pytest.mark.parametrize("storage", ["HASH", "PACKED"])
@pytest.mark.parametrize("later", ["a 9", "f 9", "a 9 f 9"])
def test_a_value_grows_too_old_in_the_cache_whatever_else_is_published(fresh_server, storage, later):
    """`f` is nearly too old when something is published; what is not published again is not younger for it."""
    server = fresh_server(QUICK)
    client = server.client()
    define_one(client, "v", "a INT f FLOAT TTL 1s", f"TTL 1h STORAGE {storage}")
    at_ms = clock_ms(client) - 500
    client.execute_command("FS.PUBLISH", "fs:v1:v:u0", "AT", at_ms, "a", 1, "f", 2)
    serve_all(client, [b"u0"])
    client.execute_command("FS.PUBLISH", "fs:v1:v:u0", *later.split())
    published_ms = clock_ms(client)
    for due_ms in (at_ms + 1_000, published_ms + 1_000):
        await_until(lambda due_ms=due_ms: clock_ms(client) > due_ms, what="a value to be too old")
        with client.pipeline(transaction=True) as transaction:
            transaction.execute_command("FS.SERVE", "of_v", "u0")
            transaction.execute_command("CONFIG", "SET", SETTING, 0)
            transaction.execute_command("FS.SERVE", "of_v", "u0")
            transaction.execute_command("CONFIG", "SET", SETTING, ROOMY)
            cached, _, read, _ = transaction.execute()
        assert cached == read


@pytest.mark.parametrize("storage", ["HASH", "PACKED"])
def test_a_view_that_is_dropped_and_registered_again_is_answered_as_it_is_now(fresh_server, storage):
    server = fresh_server(QUICK)
    client = server.client()
    schema = "a INT DEFAULT 3 f FLOAT"
    define_one(client, "v", schema, f"STORAGE {storage}")
    ids = ids_of(20)
    publish(client, ids, row=lambda i: {"a": i, "f": i})
    first = serve_all(client, ids)
    assert hits_and_misses(server, lambda: serve_all(client, ids)) == (20, 0)
    fs(client, "FS.DROP v")
    with pytest.raises(valkey.ResponseError, match="NOVIEW"):
        serve_all(client, ids)
    # Rows stay where they are; while nobody looks after them they change.
    client.delete("fs:v1:v:u7")
    if storage == "HASH":
        client.hset("fs:v1:v:u8", "a", 99)
    fs(client, f"FS.REGISTER v ENTITY user STORAGE {storage} SCHEMA {schema}")
    cached = [serve_all(client, ids) for _ in range(2)]
    client.config_set(SETTING, 0)
    assert [serve_all(client, ids)] * 2 == cached
    assert cached[0] != first
    client.config_set(SETTING, ROOMY)
    fs(client, "FS.DROP v DATA")
    await_until(lambda: not module_figures(client)["dropping"], what="the rows to be deleted")
    fs(client, f"FS.REGISTER v ENTITY user STORAGE {storage} SCHEMA a INT DEFAULT 4 f FLOAT DEFAULT 8")
    cached = [serve_all(client, ids) for _ in range(2)]
    client.config_set(SETTING, 0)
    assert [serve_all(client, ids)] * 2 == cached


def test_a_transaction_that_changes_definitions_reads_what_it_defined(server, shop):
    service = SERVICES[0]
    for again in ("DEFAULT 8", "DEFAULT 9"):
        words = LASTING["h@1"].replace("DEFAULT 3", again).split()
        first = [
            ["FS.DROP", "h", "VERSION", "1"],
            ["FS.REGISTER", "h", "VERSION", "1", *words],
            ["HDEL", row_key("h@1", b"e1"), "a"],
        ]
        check_reading(shop, SEVERAL, services=[service], first=first)
        check_reading(shop, SEVERAL, services=[service])


# Eviction


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random", "volatile-ttl"])
def test_evicted_rows_are_not_answered_any_more(fresh_server, policy):
    server = fresh_server(QUICK | {"maxmemory-policy": policy})
    client = server.client()
    define(client, views=LASTING)
    limit = 2_000_000
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 3_000_000)
    draw, recent = random.Random(2), []
    for _ in range(200):
        for view in ("h", "p"):
            words = []
            for _ in range(40):
                row = an_update(draw) | {"s": "x" * draw.randrange(600)}
                words += [f"fs:v1:{view}:e{draw.randrange(8_000)}", json.dumps(row)]
            client.execute_command("FS.MPUBLISH", *words)
        ids = [b"e%d" % draw.randrange(8_000) for _ in range(30)]
        recent, ids = ids[:10], ids + recent
        check_reading(client, ids, services=SERVICES[:3], limit=limit)
    told = client.info("stats")
    assert told["evicted_keys"] > 500
    seen = figures(server)
    assert min(seen["hits"], seen["misses"], seen["forgotten"]) > 100, seen
