"""Each event counts once: DEDUP for retries, FS.REPLAY WINDOWS for counting again, and the figures that tell of it."""

import json

import pytest
import valkey
from profile_view import LOG, await_drained, consumer, entry, figures, register
from test_persistence import ALWAYS, cut_the_power, debug_reload, restart, rewrite_the_aof_and_restart
from test_replication import assert_same, fail_over
from windowed_view import clock_ms, digest, fs, value

from server import await_until

ROW, OTHER, STATE = "fs:v1:profile:u1", "fs:v1:profile:u2", "fs:w1:profile:u1"
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
SCHEMA = "n INT x FLOAT INPUT c INT AGG COUNT x WINDOW 1d s FLOAT AGG SUM x WINDOW 7d"


def define(client, *options, version: int = 1, view: str = "profile") -> None:
    words = " ".join(map(str, options))
    fs(client, f"FS.REGISTER {view} VERSION {version} ENTITY user MAXLEN 1000000 {words} SCHEMA {SCHEMA}")


@pytest.fixture
def hour(client):
    """A client of a server whose view `profile` remembers event ids for an hour."""
    define(client, "DEDUP 1h")
    return client


def windows(client, key: str = ROW) -> tuple[int, float]:
    _, count, _, total = client.execute_command("FS.GET", key, "c", "s")
    return count, float(total)


# The three ways to write an event with an id


def publish(client, id, x=1, key=ROW, *words):
    return client.execute_command("FS.PUBLISH", key, *words, "EVENT", id, "n", x, "x", x)


def publish_json(client, id, x=1, key=ROW):
    return client.execute_command("FS.PUBLISH", key, "EVENT", id, "JSON", json.dumps({"n": x, "x": x}))


def publish_several(client, id, x=1, key=ROW):
    return client.execute_command("FS.MPUBLISH", key, json.dumps({"n": x, "x": x, "_event": id}))


def add(client, event, x=1, key=ROW, id="*"):
    fields = entry(key.rpartition(":")[2], {"n": x, "x": x}) | {"event_id": event}
    return client.xadd(LOG, fields, id=id)


def add_and_await(client, id, x=1, key=ROW):
    written = add(client, id, x, key)
    await_drained(client)
    return written


WAYS = {"FS.PUBLISH": publish, "JSON": publish_json, "FS.MPUBLISH": publish_several, "XADD": add_and_await}


@pytest.mark.parametrize("first", WAYS)
@pytest.mark.parametrize("second", WAYS)
def test_an_event_has_its_effect_once(hour, first, second):
    WAYS[first](hour, "e1", 2)
    ((logged, _),) = hour.xrange(LOG)
    before = {key: digest(hour, key) for key in (ROW, STATE)}
    told = figures(hour)
    answer = WAYS[second](hour, "e1", 5)
    # No second row, no second count, no second entry but the one that a client added.
    assert {key: digest(hour, key) for key in before} == before
    assert (windows(hour), hour.hget(ROW, "n")) == ((1, 2.0), b"2")
    assert hour.xlen(LOG) == (2 if second == "XADD" else 1)
    assert figures(hour)["duplicates"] == told["duplicates"] + 1 == 1
    if second in ("FS.PUBLISH", "JSON"):
        assert answer == logged, "the id of the first entry is answered"
    # Another id and another entity are other events.
    WAYS[second](hour, "e2", 5)
    WAYS[second](hour, "e1", 7, OTHER)
    assert (windows(hour), hour.hget(ROW, "n")) == ((2, 7.0), b"5")
    assert windows(hour, OTHER) == (1, 7.0)
    assert figures(hour)["duplicates"] == 1


def test_several_of_one_event_in_one_command(hour):
    objects = [
        json.dumps({"n": x, "x": x, "_event": id}) for x, id in ((1, "a"), (2, "a"), (3, "b"), (4, "a"))
    ]
    hour.execute_command("FS.MPUBLISH", *[word for text in objects for word in (ROW, text)])
    hour.execute_command("FS.MPUBLISH", OTHER, objects[0], ROW, objects[2], OTHER, objects[3])
    assert (windows(hour), windows(hour, OTHER)) == ((2, 4.0), (1, 1.0))
    assert [fields[b"event_id"] for _, fields in hour.xrange(LOG)] == [b"a", b"b", b"a"]
    assert figures(hour)["duplicates"] == 4


def test_duplicates_in_transactions_and_scripts(hour):
    with hour.pipeline() as pipeline:
        for id in ("e1", "e1", "e2"):
            publish(pipeline, id)
        ids = pipeline.execute()
    assert ids[0] == ids[1] != ids[2]
    script = "return redis.call('FS.PUBLISH', KEYS[1], 'EVENT', ARGV[1], 'x', '9')"
    assert [hour.eval(script, 1, ROW, id) for id in ("e1", "e2")] == ids[1:]
    assert windows(hour) == (2, 2.0)


def test_ids_are_bytes_of_any_kind(hour):
    ids = [b"\xff\0\r\n", b"a", b"A", b"a ", b"\0", "ä".encode(), b"x" * 500, b"x" * 499 + b"y", b"7", b"07"]
    first = [publish(hour, id) for id in ids]
    assert len(set(first)) == len(ids)
    assert [publish(hour, id) for id in ids] == first
    for id in ids:
        add(hour, id)
    await_drained(hour)
    assert windows(hour) == (10, 10.0)


def test_what_was_not_logged_is_remembered_without_an_entry(hour):
    assert publish(hour, "e1", 2, ROW, "NOLOG") is None
    # Nothing was logged the first time, so there is no entry to answer.
    assert publish(hour, "e1", 3) is None
    assert publish(hour, "e1", 3, ROW, "NOLOG") is None
    assert windows(hour) == (1, 2.0) and not hour.exists(LOG)
    logged = publish(hour, "e2", 3)
    assert publish(hour, "e2", 4, ROW, "NOLOG") == logged
    assert windows(hour) == (2, 5.0)
    define(hour, "LOG OFF DEDUP 1h", view="silent")
    assert [publish(hour, "e", 2, "fs:v1:silent:u1") for _ in range(2)] == [None, None]
    assert windows(hour, "fs:v1:silent:u1") == (1, 2.0)


def test_an_update_that_is_refused_is_no_event(hour):
    ahead = ("AT", clock_ms(hour) + DAY_MS)
    for options, *words in [
        ((), "n", "none", "x", 1),
        ((), "x", "none"),
        ((), "nothing", 1),
        (("AT", 1), "x", 1),
        (ahead, "x", 1),
    ]:
        with pytest.raises(valkey.ResponseError):
            hour.execute_command("FS.PUBLISH", ROW, *options, "EVENT", "e", *words)
    with pytest.raises(valkey.ResponseError):
        hour.execute_command("FS.MPUBLISH", ROW, '{"x": 1, "_event": "e"}', OTHER, '{"x": "none"}')
    hour.xadd(LOG, {"entity_id": "u1", "features": '{"x": "none"}', "event_id": "e"})
    await_drained(hour)
    assert (figures(hour)["duplicates"], hour.exists(STATE)) == (0, 0)
    assert publish(hour, "e", 3)
    assert windows(hour) == (1, 3.0)


def test_events_without_an_id_and_views_without_dedup_know_no_duplicates(hour):
    for _ in range(2):
        hour.execute_command("FS.PUBLISH", ROW, "x", 1)
        hour.xadd(LOG, entry("u1", {"x": 1}))
    await_drained(hour)
    assert windows(hour) == (4, 4.0)
    define(hour, view="plain")
    key = "fs:v1:plain:u1"
    assert publish(hour, "e", 1, key) != publish(hour, "e", 1, key)
    assert windows(hour, key) == (2, 2.0)
    assert [figures(hour, view)["duplicates"] for view in ("profile", "plain")] == [0, 0]


def test_a_view_without_windows_can_have_dedup(client):
    fs(client, "FS.REGISTER profile ENTITY user DEDUP 1h SCHEMA n INT")
    first = client.execute_command("FS.PUBLISH", ROW, "EVENT", "e", "n", 1)
    assert client.execute_command("FS.PUBLISH", ROW, "EVENT", "e", "n", 2) == first
    client.xadd(LOG, entry("u1", {"n": 3}) | {"event_id": "e"})
    client.xadd(LOG, entry("u1", {"n": 4}) | {"event_id": "f"})
    await_drained(client)
    assert (client.hget(ROW, "n"), client.xlen(LOG), figures(client)["duplicates"]) == (b"4", 3, 2)
    assert client.type(STATE) == b"fs-window"


def test_versions_remember_for_themselves(hour):
    define(hour, "DEDUP 1h", version=2)
    second = "fs:v2:profile:u1"
    publish(hour, "e", 2)
    publish(hour, "e", 3, second)
    assert (windows(hour), windows(hour, second)) == ((1, 2.0), (1, 3.0))
    # An entry is for both, and for each of them an event that it saw.
    add_and_await(hour, "e", 4)
    add_and_await(hour, "f", 5)
    assert (windows(hour), windows(hour, second)) == ((2, 7.0), (2, 8.0))


def test_deleting_an_entity_forgets_its_events(hour):
    for delete in ("FS.DEL", "DEL", "UNLINK"):
        first = publish(hour, "e", 2)
        assert publish(hour, "e", 2) == first
        assert hour.execute_command(delete, ROW) == 1
        assert publish(hour, "e", 3) != first
        assert windows(hour) == (1, 3.0)
        hour.delete(ROW)
    # An expired row was forgotten by nobody.
    first = publish(hour, "e", 2)
    hour.pexpire(ROW, 1)
    await_until(lambda: not hour.exists(ROW), what="the row to expire")
    assert publish(hour, "e", 3) == first
    assert (windows(hour), hour.exists(ROW)) == ((1, 2.0), 0)


# How long


def test_an_id_is_forgotten_when_its_time_has_passed_by_arrival(client):
    define(client, "DEDUP 2s")
    before = clock_ms(client)
    # The event's own time is no matter.
    first = client.execute_command("FS.PUBLISH", ROW, "AT", before - 2 * DAY_MS, "EVENT", "e", "x", 1)
    after = clock_ms(client)
    answer = client.execute_command("FS.PUBLISH", ROW, "EVENT", "e", "x", 1)
    assert answer == first
    await_until(lambda: clock_ms(client) > after + 2_000, what="two seconds to pass")
    again = client.execute_command("FS.PUBLISH", ROW, "EVENT", "e", "x", 1)
    assert again != first
    assert figures(client)["duplicates"] == 1
    assert client.xlen(LOG) == 2
    assert windows(client)[0] == 1, "the first event was two days old"


def test_entries_arrive_when_their_ids_say(client):
    define(client, "DEDUP 10s")
    start = clock_ms(client) - 600_000
    effects = []
    for after_ms, id in [
        (0, "e"),
        (1, "e"),
        (9_999, "e"),
        (9_999, "f"),
        (10_001, "e"),
        (10_002, "e"),
        (19_998, "f"),
        (20_000, "f"),
        (20_002, "e"),
        (29_999, "e"),
    ]:
        count = windows(client)[0]
        add(client, id, id=f"{start + after_ms}-{len(effects)}")
        await_drained(client)
        effects.append(windows(client)[0] - count)
    # Ten seconds from the event that had the effect, not from its last repetition.
    assert effects == [1, 0, 0, 1, 1, 0, 0, 1, 1, 0]
    assert (figures(client)["duplicates"], client.xlen(LOG)) == (5, 10)


def test_an_entry_in_the_backlog_is_judged_by_its_arrival(client):
    define(client, "DEDUP 10s")
    consumer(client, "STOP")
    now_ms = clock_ms(client)
    add(client, "old", id=f"{now_ms - 60_000}-0")
    add(client, "near", id=f"{now_ms - 5_000}-0")
    # These two come first all the same; the clock is that of the server.
    assert publish(client, "old", 2) and publish(client, "near", 2)
    assert windows(client) == (2, 4.0)
    consumer(client, "START")
    await_drained(client)
    assert windows(client) == (3, 5.0)
    assert figures(client)["duplicates"] == 1


# How many


def test_ids_beyond_the_bound_are_forgotten_and_counted(fresh_server):
    client = fresh_server().client()
    define(client, "DEDUP 1h")
    assert client.config_get("fs.dedup-max-ids") == {"fs.dedup-max-ids": "1024"}
    with client.pipeline(transaction=False) as pipeline:
        for i in range(1_024):
            publish(pipeline, f"e{i}")
        first = pipeline.execute()
    assert figures(client)["dedup_overflows"] == 0
    assert [publish(client, f"e{i}") for i in (0, 500, 1_023)] == [first[0], first[500], first[1_023]]
    for i in range(1_024, 1_030):
        publish(client, f"e{i}")
    assert figures(client)["dedup_overflows"] == 6
    # The oldest went, an event of them has its effect again.
    assert [publish(client, f"e{i}") for i in (6, 7, 1_023)] == [first[6], first[7], first[1_023]]
    assert publish(client, "e5") not in first
    told = figures(client)
    assert (windows(client)[0], told["duplicates"], told["dedup_overflows"]) == (1_031, 6, 7)
    # It is the bound of an entity.
    client.config_set("fs.dedup-max-ids", 3)
    for id in ("a", "b", "c"):
        publish(client, id, 1, OTHER)
        add(client, f"{id}{id}", 1, "fs:v1:profile:u3")
    await_drained(client)
    assert figures(client)["dedup_overflows"] == 7
    assert len({publish(client, id, 1, OTHER) for id in ("a", "b", "c")}) == 3
    assert windows(client, OTHER) == (3, 3.0)
    add(client, "d", 1, "fs:v1:profile:u3")
    await_drained(client)
    assert figures(client)["dedup_overflows"] == 8


def test_ids_that_had_their_time_make_room_without_a_loss(client):
    define(client, "DEDUP 10s")
    start = clock_ms(client) - HOUR_MS
    for i in range(3_000):
        add(client, f"e{i}", id=f"{start + i * 50}-0")
    await_drained(client)
    # Never more than 200 within ten seconds.
    told = figures(client)
    assert (told["dedup_overflows"], told["duplicates"], windows(client)[0]) == (0, 0, 3_000)
    assert client.memory_usage(STATE, samples=0) < 400 * 100


# On every copy


@pytest.mark.parametrize(
    "come_back", [restart, cut_the_power, rewrite_the_aof_and_restart, debug_reload], ids=lambda f: f.__name__
)
def test_ids_survive(fresh_server, come_back):
    server = fresh_server({} if come_back is restart else ALWAYS)
    client = server.client()
    define(client, "DEDUP 1h")
    first = [publish(client, "p"), publish(client, "q", 1, OTHER)]
    added = add_and_await(client, "a")
    assert publish(client, "silent", 1, ROW, "NOLOG") is None
    for _ in range(2):
        come_back(server)
        client = server.client()
        assert [publish(client, "p"), publish(client, "q", 1, OTHER)] == first
        assert (publish(client, "a"), publish(client, "silent")) == (added, None)
        add_and_await(client, "p")
        assert (windows(client), windows(client, OTHER)) == ((3, 3.0), (1, 1.0))
        assert figures(client)["duplicates"] >= 5


@pytest.mark.parametrize("power_cut", [False, True])
def test_ids_are_known_to_a_promoted_replica(fresh_server, power_cut):
    first = fresh_server()
    second = first.replica({"repl-diskless-load": "on-empty-db"})
    client = first.client()
    define(client, "DEDUP 1h")
    known = {id: publish(client, id) for id in ("a", "b")}
    known["c"] = add_and_await(client, "c")
    consumer(client, "STOP")
    # In the backlog: a repetition and an event that nobody saw yet.
    add(client, "a")
    add(client, "d")
    first.await_replicated(second)
    if power_cut:
        first.kill()
        second.client().replicaof("NO", "ONE")
    else:
        fail_over(first, second)
    client = second.client()
    assert {id: publish(client, id) for id in known} == known
    consumer(client, "START")
    await_drained(client)
    assert windows(client) == (4, 4.0)
    assert figures(client)["duplicates"] == 4
    if not power_cut:
        assert_same(second, first)


# Figures


def test_late_and_too_late_events_are_told_once_each(client):
    schema = (
        "n INT x FLOAT INPUT weight FLOAT INPUT whole INT INPUT "
        "c INT AGG COUNT x WINDOW 1h s FLOAT AGG SUM weight WINDOW 1h long INT AGG COUNT whole WINDOW 7d"
    )
    register(client, schema=schema.split())
    now_ms = clock_ms(client)

    def told():
        found = figures(client)
        return found["late_events"], found["too_late_events"]

    steps = [
        (0, "x weight whole", (0, 0)),
        (0, "x", (0, 0)),
        (60_000, "x weight whole", (1, 0)),
        # Two windows refuse it, the third one takes it.
        (3 * HOUR_MS, "x weight whole", (2, 1)),
        (3 * HOUR_MS, "whole", (3, 1)),
        (30 * DAY_MS, "x", (4, 2)),
        (30 * DAY_MS, "whole", (5, 3)),
    ]
    for place, (ago, names, expected) in enumerate(steps):
        event = json.dumps(dict.fromkeys(names.split(), 1))
        if place % 2:
            client.xadd(LOG, entry("u1", event, (now_ms - ago) / 1000))
            await_drained(client)
        else:
            client.execute_command("FS.PUBLISH", ROW, "AT", now_ms - ago, "JSON", event)
        assert told() == expected, (ago, names)
    assert client.execute_command("FS.GET", ROW, "AT", now_ms, "c", "s", "long") == [
        b"c",
        3,
        b"s",
        b"2",
        b"long",
        4,
    ]
    # Late is what is older than the newest of its own entity.
    client.execute_command("FS.PUBLISH", OTHER, "AT", now_ms - 30 * DAY_MS, "x", 1)
    assert told() == (5, 3)


def test_an_event_ahead_of_the_clock_makes_no_others_too_late(client):
    define(client)
    fs(client, "FS.REGISTER brief ENTITY user SCHEMA x FLOAT INPUT c INT AGG COUNT x WINDOW 1m HOP 1s")
    key, now_ms = "fs:v1:brief:u1", clock_ms(client)
    client.execute_command("FS.PUBLISH", key, "AT", now_ms + 280_000, "x", 1)
    client.execute_command("FS.PUBLISH", key, "AT", now_ms, "x", 1)
    told = figures(client, "brief")
    assert (told["late_events"], told["too_late_events"]) == (1, 0)
    assert value(client, "c", key) == 1
    assert client.execute_command("FS.GET", key, "AT", now_ms + 280_000) == [b"c", 1]


def test_window_events_are_those_that_feed_windows(hour):
    assert figures(hour)["window_events"] == 0
    for write in (publish, publish_json, publish_several, add):
        for i in range(3):
            write(hour, f"{write.__name__}{i}")
    await_drained(hour)
    assert figures(hour)["window_events"] == 12
    # Neither a repetition nor an update without inputs is one.
    publish(hour, "publish1")
    hour.execute_command("FS.PUBLISH", ROW, "n", 1)
    assert figures(hour)["window_events"] == 12
    assert windows(hour)[0] == 12
