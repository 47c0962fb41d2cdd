"""How much memory the column cache takes: never more than it may, and what is read most stays."""

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
    serve,
    serve_all,
    set_service,
)

from server import await_until

WIDE = "a INT DEFAULT 3 f FLOAT e VECTOR 200"


def wide(i: int) -> dict:
    return {"a": i, "f": i / 4, "e": [i] * 200}


class Watch:
    """Asks at each step how much the cache holds; never may it be more than its limit."""

    def __init__(self, server, limit: int):
        self.server, self.limit, self.most = server, limit, 0

    def look(self, what: str) -> dict:
        told = figures(self.server)
        assert told["bytes"] <= self.limit, f"{told['bytes']} bytes of {self.limit} {what}: {told}"
        self.most = max(self.most, told["bytes"])
        return told


@pytest.mark.parametrize("limit", [120_000, 400_000, 1_500_000])
@pytest.mark.parametrize("storage", ["HASH", "PACKED"])
def test_the_cache_never_takes_more_than_it_may(fresh_server, limit, storage):
    server = fresh_server(QUICK | {SETTING: limit})
    client = server.client()
    watch = Watch(server, limit)
    for view, schema in (("v", "a INT"), ("w", WIDE), ("x", "a INT f FLOAT")):
        define(client, view, schema, f"STORAGE {storage}")
    shapes = {
        "v": (ids_of(12_000), lambda i: {"a": i}),
        "w": (ids_of(3_000), wide),
        # The first ids are short, so that the others stand beside their records.
        "x": (ids_of(50) + ids_of(4_000, 50, 500), lambda i: {"a": i, "f": i}),
    }
    for view, (ids, row) in shapes.items():
        for batch in batches(ids):
            publish(client, batch, view, row)
            watch.look("after publishing")
    for _ in range(2):
        for view, (ids, _) in shapes.items():
            for batch in batches(ids, 100):
                serve(client, batch, view)
                watch.look(f"after reading rows of {view}")
    assert watch.most > limit * 0.6 and watch.look("")["rows"] > 50
    # What is deleted is forgotten; what that leaves counts as well.
    for view, (ids, _) in shapes.items():
        for batch in batches(ids, 1_000):
            client.delete(*(b"fs:v1:%s:%s" % (view.encode(), id_) for id_ in batch))
            watch.look("after deleting")
    assert watch.look("")["rows"] == 0


def test_rows_that_come_and_go_never_take_more_than_they_may(fresh_server):
    limit = 1_000_000
    server = fresh_server(QUICK | {SETTING: limit})
    client = server.client()
    define(client, "v", "a INT")
    watch = Watch(server, limit)
    for turn in range(6):
        ids = ids_of(12_000, turn * 5_000)
        publish(client, ids, row=lambda i: {"a": i})
        for batch in batches(ids, 1_000):
            serve(client, batch)
            watch.look("after reading")
        client.delete(*(b"fs:v1:v:%s" % id_ for id_ in ids[:9_000]))
        watch.look("after deleting")
    assert watch.most > limit * 0.6


def test_rows_that_are_read_again_and_again_stay(fresh_server):
    server = fresh_server(QUICK | {SETTING: 200_000})
    client = server.client()
    define(client)
    ids = ids_of(10_000)
    publish(client, ids)
    hot, cold = ids[:100], ids[100:]
    serve(client, hot)
    for batch in batches(cold, 30):
        serve(client, batch)
        assert hits_and_misses(server, lambda: serve(client, hot)) == (100, 0)
    assert 500 < figures(server)["rows"] < 5_000


def test_a_view_that_is_read_takes_room_from_the_largest(fresh_server):
    limit = 400_000
    server = fresh_server(QUICK | {SETTING: limit})
    client = server.client()
    define(client, "v")
    publish(client, ids_of(10_000))
    serve_all(client, ids_of(10_000))
    assert figures(server)["bytes"] > limit * 0.8
    define(client, "w")
    publish(client, ids_of(300), "w")
    serve(client, ids_of(300), "w")
    assert hits_and_misses(server, lambda: serve(client, ids_of(300), "w")) == (300, 0)
    assert figures(server)["bytes"] <= limit


def test_the_limit_holds_at_once_when_it_is_changed_and_memory_follows(fresh_server):
    server = fresh_server(QUICK)
    client = server.client()
    define(client, "v", WIDE)
    ids = ids_of(6_000)
    publish(client, ids, row=wide)
    expected = serve_all(client, ids)
    await_warm(server, 6_000)

    def used() -> int:
        return client.info("memory")["used_memory"]

    full, full_bytes = used(), figures(server)["bytes"]
    assert full_bytes > 6_000 * 800
    for limit in (3_000_000, 1_000_000, 0):
        client.config_set(SETTING, limit)
        await_until(lambda limit=limit: figures(server)["bytes"] <= limit, what="the cache to shrink")
        freed = full_bytes - figures(server)["bytes"]
        await_until(lambda freed=freed: full - used() > freed * 0.9, what="the memory to be given back")
        assert serve_all(client, ids) == expected
        assert figures(server)["bytes"] <= limit
    told = figures(server)
    assert (told["rows"], told["bytes"]) == (0, 0)
    empty = used()
    # Nothing is read: it fills by itself.
    client.config_set(SETTING, ROOMY)
    await_warm(server, 6_000)
    assert used() - empty > full_bytes * 0.9
    assert hits_and_misses(server, lambda: serve_all(client, ids)) == (6_000, 0)
    assert serve_all(client, ids) == expected
    # Without services there is nothing to answer.
    client.execute_command("FS.SERVICE", "DEL", "of_v")
    await_until(lambda: figures(server)["bytes"] == 0, what="the cache to be given up")
    await_until(lambda: full - used() > full_bytes * 0.9, what="the memory to be given back")
    set_service(client, "v", WIDE)
    await_warm(server, 6_000)


def test_a_cache_that_is_off_answers_nothing_and_fills_nothing(fresh_server):
    server = fresh_server(QUICK | {SETTING: 0})
    client = server.client()
    define(client)
    publish(client, ids_of(500))
    for _ in range(3):
        assert hits_and_misses(server, lambda: serve(client, ids_of(500))) == (0, 0)
    told = figures(server)
    assert (told["rows"], told["bytes"], told["warming"]) == (0, 0, 0)
