"""What is removed before it was read: counted exactly, and never by the module itself below the hard cap."""

import contextlib
import random
import time

import pytest
import valkey
from profile_view import (
    EPOCH_S,
    GROUP,
    LOG,
    add,
    add_many,
    await_drained,
    consumer,
    entry,
    figures,
    group,
    newest,
    register,
    rows,
    rows_by_entries,
)

from server import await_until


def trim_exactly(client):
    client.xtrim(LOG, maxlen=250, approximate=False)


def trim_by_id(client):
    client.xtrim(LOG, minid=client.xrevrange(LOG)[249][0], approximate=False)


def trim_while_adding(client):
    client.xadd(LOG, entry("u1", {"n": 1}), maxlen=251, approximate=False)


def delete_the_first(client):
    client.xdel(LOG, *[id for id, _ in client.xrange(LOG)[:-250]])


def delete_the_last(client):
    client.xdel(LOG, *[id for id, _ in client.xrange(LOG)[250:]])


def delete_some_between(client):
    ids = [id for id, _ in client.xrange(LOG)]
    client.xdel(LOG, *ids[:50], *ids[200:650], *ids[-250:])


def delete_all(client):
    client.xdel(LOG, *[id for id, _ in client.xrange(LOG)])


REMOVALS = [
    (trim_exactly, 750),
    (trim_by_id, 750),
    (trim_while_adding, 750),
    (delete_the_first, 750),
    (delete_the_last, 750),
    (delete_some_between, 750),
    (delete_all, 1_000),
]


@pytest.mark.parametrize("remove, lost", REMOVALS, ids=lambda p: getattr(p, "__name__", p))
def test_entries_removed_ahead_of_the_cursor_are_counted_exactly(store, remove, lost):
    client = store.client()
    add_many(client, 300)
    await_drained(client)
    consumer(client, "STOP")
    client.xtrim(LOG, maxlen=0, approximate=False)
    add_many(client, 1_000)
    remove(client)
    left = client.xlen(LOG)
    consumer(client, "START")
    await_until(lambda: figures(client)["lost_entries"], 5, what="the loss to be counted")
    told = figures(client)
    assert (told["lost_entries"], told["consumed"], told["lag_entries"]) == (lost, 300 + left, 0)
    assert (
        f"fs: {lost} entries of view 'profile' were removed from the log before they were consumed"
        in store.log()
    )
    # Counted once, however often somebody looks again.
    client.execute_command("XGROUP", "DESTROY", LOG, GROUP)
    add_many(client, 10)
    await_drained(client)
    assert figures(client)["lost_entries"] == lost


@pytest.mark.parametrize("remove", [remove for remove, _ in REMOVALS], ids=lambda f: f.__name__)
def test_the_group_has_no_lag_at_the_end_whatever_was_removed(store, remove):
    client = store.client()
    add_many(client, 300)
    await_drained(client)
    consumer(client, "STOP")
    add_many(client, 700)
    remove(client)
    consumer(client, "START")
    await_until(lambda: figures(client)["lost_entries"], 5, what="the loss to be counted")
    await_drained(client, timeout_s=2)


def test_entries_that_a_consumer_stopped_from_the_beginning_never_saw_are_lost_as_well(store):
    client = store.client()
    consumer(client, "STOP")
    add_many(client, 1_000)
    client.xtrim(LOG, maxlen=250, approximate=False)
    consumer(client, "START")
    await_drained(client)
    assert (figures(client)["consumed"], figures(client)["lost_entries"]) == (250, 750)


# In one transaction with the entries, so that the consumer cannot look in between: (before them, after them).
BEGINNINGS = {
    "a log that was never there": ([], []),
    "deleted": ([("DEL", LOG)], []),
    "flushed": ([("FLUSHALL",)], []),
    "renamed away": ([("RENAME", LOG, "elsewhere")], []),
    "a group of somebody else": ([("DEL", LOG)], [("XGROUP", "CREATE", LOG, "theirs", 0)]),
    "a group from the start": ([("DEL", LOG), ("XGROUP", "CREATE", LOG, "theirs", 0, "MKSTREAM")], []),
    "our group, gone again": (
        [("DEL", LOG)],
        [("XGROUP", "CREATE", LOG, GROUP, 0), ("XGROUP", "DESTROY", LOG, GROUP)],
    ),
}


@pytest.mark.parametrize("left", [250, 0])
@pytest.mark.parametrize("before, after", BEGINNINGS.values(), ids=BEGINNINGS)
def test_what_a_new_log_loses_before_the_first_look_is_counted(store, before, after, left):
    client = store.client()
    earlier = 10 if before else 0
    add_many(client, earlier)
    if earlier:
        await_drained(client)
    with client.pipeline(transaction=True) as pipeline:
        for command in before:
            pipeline.execute_command(*command)
        for i in range(1_000):
            add(pipeline, "u1", {"n": i}, EPOCH_S)
        for command in after:
            pipeline.execute_command(*command)
        pipeline.xtrim(LOG, maxlen=left, approximate=False)
        pipeline.execute()
    await_drained(client)
    told = figures(client)
    assert (told["consumed"], told["lost_entries"]) == (earlier + left, 1_000 - left)


@pytest.mark.parametrize(
    "after", [[], [("XGROUP", "CREATE", LOG, "theirs", 0)]], ids=["alone", "with a group"]
)
@pytest.mark.parametrize("before", [[], [("FLUSHALL",)], [("DEL", LOG)]], ids=["new", "flushed", "deleted"])
def test_what_a_log_loses_that_a_publish_began_is_counted(store, before, after):
    client = store.client()
    with client.pipeline(transaction=True) as pipeline:
        for command in before:
            pipeline.execute_command(*command)
        pipeline.execute_command("FS.PUBLISH", "fs:v1:profile:u1", "AT", EPOCH_S * 1000, "n", 1)
        for i in range(1_000):
            add(pipeline, "u2", {"n": i}, EPOCH_S)
        for command in after:
            pipeline.execute_command(*command)
        pipeline.xtrim(LOG, maxlen=250, approximate=False)
        pipeline.execute()
    await_drained(client)
    assert (figures(client)["consumed"], figures(client)["lost_entries"]) == (250, 750)


@pytest.mark.parametrize("destroys", [False, True], ids=["before a look", "without its group"])
def test_what_goes_with_its_log_before_the_consumer_stands_anywhere_is_lost(store, destroys):
    client = store.client()
    client.execute_command("FS.CONSUMER", "STOP", "profile")
    if destroys:
        add_many(client, 990)
        await_until(lambda: client.xinfo_groups(LOG), what="the group of the consumer")
    with client.pipeline(transaction=True) as pipeline:
        if destroys:
            pipeline.xgroup_destroy(LOG, GROUP)
        else:
            for i in range(990):
                add(pipeline, "u1", {"n": i}, EPOCH_S)
        pipeline.delete(LOG)
        pipeline.execute()
    await_until(lambda: figures(client)["lost_entries"] >= 990, what="the count of what was lost")
    add_many(client, 10)
    client.execute_command("FS.CONSUMER", "START", "profile")
    await_drained(client)
    assert (figures(client)["consumed"], figures(client)["lost_entries"]) == (10, 990)


@pytest.mark.parametrize("left", [250, 0])
def test_what_a_stream_lost_before_it_became_the_log_is_not_counted(store, left):
    client = store.client()
    add_many(client, 1_000, log="elsewhere")
    client.xtrim("elsewhere", maxlen=left, approximate=False)
    with client.pipeline(transaction=True) as pipeline:
        pipeline.rename("elsewhere", LOG)
        add(pipeline, "u1", {"n": 1}, EPOCH_S)
        pipeline.execute()
    await_drained(client)
    assert (figures(client)["consumed"], figures(client)["lost_entries"]) == (left + 1, 0)


def test_a_loss_is_counted_once_however_often_the_log_is_looked_at(store):
    client = store.client()
    client.execute_command("FS.CONSUMER", "STOP", "profile")
    add_many(client, 1_000)
    client.xtrim(LOG, maxlen=250, approximate=False)
    for i in range(3):
        client.xgroup_create(LOG, f"theirs{i}", 0)
        await_until(lambda: figures(client)["lost_entries"] >= 750, what="a look at the log")
    client.execute_command("FS.CONSUMER", "START", "profile")
    await_drained(client)
    assert (figures(client)["consumed"], figures(client)["lost_entries"]) == (250, 750)


def test_a_loss_is_counted_once_however_it_comes_about(store):
    client = store.client()
    add_many(client, 10)
    await_drained(client)
    consumer(client, "STOP")
    add_many(client, 1_000)
    client.xtrim(LOG, maxlen=250, approximate=False)
    # The consumer looks at what is left, and then that goes too.
    client.execute_command("XGROUP", "DESTROY", LOG, GROUP)
    await_until(lambda: group(client), what="the group to be made again")
    client.delete(LOG)
    consumer(client, "START")
    add_many(client, 10)
    await_drained(client)
    assert (figures(client)["lost_entries"], figures(client)["consumed"]) == (1_000, 20)


EVENTS_OF_THE_KEY = [
    [("PEXPIREAT", LOG, 4_000_000_000_000)],
    [("EXPIRE", LOG, 1_000), ("PERSIST", LOG)],
    [("RENAME", LOG, "elsewhere"), ("RENAME", "elsewhere", LOG)],
    [("COPY", LOG, "elsewhere"), ("DEL", "elsewhere")],
    [("MOVE", LOG, 1), ("SWAPDB", 0, 1), ("MOVE", LOG, 1), ("SWAPDB", 0, 1)],
    [("TOUCH", LOG), ("OBJECT", "FREQ", LOG), ("DUMP", LOG), ("XINFO", "STREAM", LOG, "FULL")],
    [("XSETID", LOG, "9999999999999-0")],
]


@pytest.mark.parametrize("commands", EVENTS_OF_THE_KEY, ids=lambda c: c[0][0])
def test_what_happens_to_the_key_but_not_to_its_entries_loses_none(store, commands):
    client = store.client()
    add_many(client, 100)
    await_drained(client)
    consumer(client, "STOP")
    add_many(client, 100, start=100)
    for command in commands:
        with contextlib.suppress(valkey.ResponseError):
            client.execute_command(*command)
    consumer(client, "START")
    await_until(
        lambda: figures(client)["consumed"] >= 200 and figures(client)["lag_entries"] == 0, 5, "all entries"
    )
    # A group that is lost later is made again where the consumer stood.
    client.execute_command("XGROUP", "DESTROY", LOG, GROUP)
    add_many(client, 100, start=200)
    await_drained(client)
    assert (figures(client)["consumed"], figures(client)["lost_entries"]) == (300, 0)
    assert rows(client) == rows_by_entries(client)


def test_entries_removed_after_they_were_read_are_not_lost(store):
    client = store.client()
    ids = add_many(client, 500)
    await_drained(client)
    client.xdel(LOG, *ids[10:20], ids[-1])
    client.xtrim(LOG, maxlen=100, approximate=False)
    add_many(client, 10)
    await_drained(client)
    client.xtrim(LOG, maxlen=0, approximate=False)
    add_many(client, 10)
    await_drained(client)
    assert (figures(client)["lost_entries"], figures(client)["consumed"]) == (0, 520)


@pytest.mark.parametrize("restart", [False, True])
def test_own_trimming_never_drops_what_is_not_consumed(fresh_server, restart):
    server = fresh_server()
    client = server.client()
    register(client, "MAXLEN", 100)
    add_many(client, 50)
    await_drained(client)
    consumer(client, "STOP")
    arrivals = []
    for i in range(500):
        arrivals += [(f"x{i}", {"n": i}, EPOCH_S), (f"p{i}", {"n": i}, EPOCH_S)]
        add(client, *arrivals[-2])
        client.execute_command("FS.PUBLISH", f"fs:v1:profile:p{i}", "AT", EPOCH_S * 1000, "n", i)
    client.execute_command("FS.TRIM", "profile", "MAXLEN", 0)
    if restart:
        server.restart()
        client = server.client()
        client.execute_command("FS.PUBLISH", "fs:v1:profile:p", "AT", EPOCH_S * 1000, "n", 1)
        client.execute_command("FS.TRIM", "profile", "MAXLEN", 0)
    assert client.xlen(LOG) == 1_000 + restart
    consumer(client, "START")
    await_drained(client)
    expected = (
        newest(arrivals) | {f"u{i}": {"n": i} for i in range(50)} | ({"p": {"n": 1}} if restart else {})
    )
    assert rows(client) == expected
    assert (figures(client)["lost_entries"], client.xlen(LOG) <= 200) == (0, True)


@pytest.mark.parametrize("node_entries", [1, 100])
@pytest.mark.parametrize("maxlen", [1, 10, 300])
def test_a_short_log_loses_nothing_however_writers_take_turns(fresh_server, maxlen, node_entries):
    # With blocks of one entry trimming is exact.
    client = fresh_server({"stream-node-max-entries": node_entries}).client()
    register(client, "MAXLEN", maxlen)
    chance, added = random.Random(maxlen + node_entries), 0
    for _ in range(60):
        with client.pipeline(transaction=chance.random() < 0.5) as pipeline:
            for _ in range(chance.randrange(1, 60)):
                added += 1
                if chance.random() < 0.5:
                    add(pipeline, f"x{added}", {"n": added}, EPOCH_S)
                else:
                    key = f"fs:v1:profile:p{added}"
                    pipeline.execute_command("FS.PUBLISH", key, "AT", EPOCH_S * 1000, "n", added)
            pipeline.execute()
    await_drained(client)
    assert sorted(row["n"] for row in rows(client).values()) == list(range(1, added + 1))
    assert figures(client)["lost_entries"] == 0

    def publish_trims() -> bool:
        client.execute_command("FS.PUBLISH", "fs:v1:profile:last", "n", 1)
        return client.xlen(LOG) <= maxlen + node_entries

    # Once the consumer has seen that all is read, a publish trims to the length that was asked for, but for one block.
    await_until(publish_trims, what="a log of the length that was asked for")


@pytest.mark.parametrize("seed", range(8))
def test_every_entry_is_consumed_or_lost_and_none_is_counted_twice(fresh_server, seed):
    server = fresh_server({"fs.sweep-interval": 10, "fs.consumer-slice-us": 50, "stream-node-max-entries": 7})
    client, chance = server.client(), random.Random(seed)
    register(client, "MAXLEN", 200)
    added = 0

    def xadd():
        nonlocal added
        count = chance.choice([1, 5, 300])
        add_many(client, count)
        added += count

    def xdel():
        ids = [id for id, _ in client.xrange(LOG, count=400)]
        client.xdel(LOG, *chance.sample(ids, len(ids) // 3), "1-1")

    moves = [
        xadd,
        xadd,
        xadd,
        xdel,
        lambda: client.xtrim(LOG, maxlen=chance.choice([0, 10, 150]), approximate=False),
        lambda: client.xtrim(LOG, maxlen=50, approximate=True),
        lambda: client.execute_command("FS.TRIM", "profile", "MAXLEN", chance.choice([0, 10, 150])),
        lambda: client.execute_command("FS.CONSUME", "profile", "COUNT", chance.choice([1, 70, 1_000])),
        lambda: client.execute_command("FS.ALTER", "profile", "MAXLEN", chance.choice([1, 50, 500])),
        lambda: client.exists(LOG) and client.execute_command("XGROUP", "DESTROY", LOG, GROUP),
        lambda: consumer(client, "STOP"),
        lambda: consumer(client, "START"),
        lambda: time.sleep(0.02),
    ]
    for _ in range(200):
        chance.choice(moves)()
    consumer(client, "START")
    xadd()
    await_drained(client)
    told = figures(client)
    assert told["consumed"] + told["lost_entries"] == added, told


def stopped_after_a_look(server, client):
    add_many(client, 10)
    await_drained(client)
    consumer(client, "STOP")
    return client


def stopped_before_the_first_look(server, client):
    consumer(client, "STOP")
    add_many(client, 10)
    return client


def stopped_and_restarted(server, client):
    stopped_after_a_look(server, client)
    server.restart()
    return server.client()


STOPS = [stopped_after_a_look, stopped_before_the_first_look, stopped_and_restarted]


@pytest.mark.parametrize("stop", STOPS, ids=lambda f: f.__name__)
def test_the_hard_cap_drops_and_counts(fresh_server, stop):
    server = fresh_server({"fs.log-hard-cap": 500})
    client = server.client()
    register(client, "MAXLEN", 100)
    client = stop(server, client)
    before = figures(client)["consumed"]
    client.execute_command("FS.TRIM", "profile", "MAXLEN", 0)
    waiting = figures(client)["lag_entries"]
    add_many(client, 2_000, entities=2_000)
    client.execute_command("FS.PUBLISH", "fs:v1:profile:p", "AT", EPOCH_S * 1000, "n", 1)
    client.execute_command("FS.PUBLISH", "fs:v1:profile:p", "AT", EPOCH_S * 1000, "n", 2)
    left = client.xlen(LOG)
    # Trimming keeps whole blocks of 100 entries.
    assert 500 <= left <= 600
    kept = rows_by_entries(client)
    consumer(client, "START")
    await_drained(client)
    assert kept.items() <= rows(client).items()
    told = figures(client)
    assert (told["lost_entries"], told["consumed"] - before) == (2_002 + waiting - left, left - 2)
    # A larger cap keeps more.
    client.config_set("fs.log-hard-cap", 5_000)
    consumer(client, "STOP")
    add_many(client, 2_000, entities=2_000)
    client.execute_command("FS.PUBLISH", "fs:v1:profile:p", "AT", EPOCH_S * 1000, "n", 1)
    assert client.xlen(LOG) >= 2_001


def test_what_publishing_trims_while_nobody_consumes_is_not_lost(store):
    client = store.client()
    register(client, "MAXLEN", 100, view="quiet")
    client.execute_command("FS.PUBLISH", "fs:v1:quiet:u1", "n", 0)
    await_drained(client, "fs:stream:quiet")
    client.execute_command("FS.ALTER", "quiet", "CONSUMER", "OFF")
    for i in range(1_000):
        client.execute_command("FS.PUBLISH", "fs:v1:quiet:u1", "n", i)
    client.execute_command("FS.ALTER", "quiet", "CONSUMER", "ON")
    await_drained(client, "fs:stream:quiet")
    assert client.xlen("fs:stream:quiet") <= 200
    assert figures(client, "quiet")["lost_entries"] == 0
