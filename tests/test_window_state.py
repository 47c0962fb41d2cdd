"""The window state of an entity as a key among keys: its type, size, expiry and copies, and when it goes away."""

import json
import math
import random

import numpy as np
import pytest
import valkey
from profile_view import figures, pairs, register
from test_persistence import debug_load_the_aof, debug_reload, restart, rewrite, rewrite_the_aof_and_restart
from windowed_view import (
    ALL,
    DAY_MS,
    HOUR_MS,
    LOG,
    NUMERIC,
    OTHER,
    ROW,
    SIZES,
    SMALL,
    STATE,
    VIEW,
    an_event,
    answers,
    clock_ms,
    digest,
    fill,
    fs,
    held,
    publish,
    register_all,
    scanned,
    value,
    windows,
)

from server import await_until

# Copies of the key


def test_a_state_is_a_key_of_its_own_type(small):
    publish(small)
    assert sorted(small.keys()) == sorted([ROW.encode(), STATE.encode(), LOG.encode()])
    assert small.type(STATE) == b"fs-window"
    # An update that carries only inputs makes no row.
    small.execute_command("FS.PUBLISH", OTHER, "NOLOG", "x", 5)
    assert (small.exists(OTHER), small.type("fs:w1:profile:u2")) == (0, b"fs-window")
    # One that carries none makes no state.
    small.execute_command("FS.PUBLISH", "fs:v1:profile:u3", "NOLOG", "n", 5)
    assert small.exists("fs:v1:profile:u3", "fs:w1:profile:u3") == 1
    for command in (("GET", STATE), ("HGETALL", STATE), ("XLEN", STATE), ("FS.GET", STATE)):
        with pytest.raises(valkey.ResponseError):
            small.execute_command(*command)


def test_the_digest_tells_states_apart_and_nothing_else(client):
    register_all(client, "DEDUP", "10m")
    fill(client, SIZES | {f"more{i}": 1 + i for i in range(20)})
    before = held(client)
    assert len(before) == len({value for value, _ in before.values()}) == 23
    answers(client, clock_ms(client))
    client.execute_command("FS.EXPLAIN", "fs:v1:profile:many")
    assert held(client) == before, "reading changed a state"
    for feature, given in an_event(random.Random(1)).items():
        for entity in ("one", "many"):
            key = f"fs:w1:profile:{entity}"
            last = digest(client, key)
            event = json.dumps({feature: given})
            client.execute_command("FS.PUBLISH", f"fs:v1:profile:{entity}", "JSON", event)
            assert digest(client, key) != last, (feature, entity)


@pytest.mark.parametrize(
    "come_back",
    [restart, rewrite_the_aof_and_restart, debug_reload, debug_load_the_aof],
    ids=lambda f: f.__name__,
)
def test_states_of_all_functions_survive(fresh_server, come_back):
    server = fresh_server({"appendonly": "no" if come_back is restart else "yes"})
    client = server.client()
    register_all(client, "DEDUP", "10m")
    now_ms = clock_ms(client)
    fill(client)
    before, served = held(client), answers(client, now_ms)
    assert set(served) == {b"one", b"few", b"many"}
    for _ in range(2):
        come_back(server)
        client = server.client()
        assert held(client) == before
        assert answers(client, now_ms) == served
    # And they go on.
    other = fresh_server().client()
    register_all(other, "DEDUP", "10m")
    for entity in SIZES:
        key = f"fs:w1:profile:{entity}"
        other.restore(key, client.pexpiretime(key), client.dump(key), absttl=True)
    for at in (client, other):
        fill(at, {"one": 300, "few": 300, "many": 300}, seed=2, now_ms=now_ms)
    assert answers(client, now_ms) == answers(other, now_ms) != served


def test_an_aof_of_commands_holds_the_states(fresh_server):
    server = fresh_server({"appendonly": "yes", "appendfsync": "always"})
    client = server.client()
    register_all(client)
    now_ms = clock_ms(client)
    fill(client)
    before, served = held(client), answers(client, now_ms)
    client.config_set("aof-use-rdb-preamble", "no")
    rewrite(server)
    (base,) = server.folder.glob("appendonlydir/*.base.*")
    assert base.read_bytes().startswith(b"*"), "the base of the AOF is made of commands"
    server.restart(kill=True)
    client = server.client()
    assert held(client) == before
    # Such a file holds no definitions.
    register_all(client)
    assert answers(client, now_ms) == served


@pytest.mark.parametrize("way", ["COPY", "RENAME", "RESTORE", "COPY to a database and back"])
def test_a_copy_of_a_state_is_the_same_and_its_own(client, way):
    register_all(client, "DEDUP", "10m")
    now_ms = clock_ms(client)
    fill(client)
    before, served = held(client), answers(client, now_ms)
    expected = {}
    for entity in SIZES:
        source, target = f"fs:w1:profile:{entity}", f"fs:w1:profile:new-{entity}"
        match way:
            case "COPY":
                assert client.copy(source, target)
            case "RENAME":
                assert client.rename(source, target)
            case "RESTORE":
                client.restore(target, client.pexpiretime(source), client.dump(source), absttl=True)
            case _:
                assert client.copy(source, target, destination_db=1)
                with valkey_in_database(client, 1) as there:
                    assert there.copy(target, target, destination_db=0)
        expected[target.encode()] = before[source.encode()]
    found = held(client)
    assert {key: found[key] for key in expected} == expected
    for entity in SIZES:
        key = f"fs:v1:profile:new-{entity}"
        assert client.execute_command("FS.GET", key, "AT", now_ms) == served[entity.encode()], entity
    # What happens to one of them does not happen to the other.
    fill(client, {f"new-{entity}": 50 for entity in SIZES}, seed=3, now_ms=now_ms)
    after = held(client)
    assert all(after[key] != expected[key] for key in expected)
    if way == "RENAME":
        assert set(after) == set(expected)
        assert value(client, "events", "fs:v1:profile:many") == 0
    else:
        assert {key: after[key] for key in before} == before
        assert client.unlink(*expected) == 3
        assert (held(client), answers(client, now_ms)) == (before, served)


def valkey_in_database(client, number: int):
    settings = client.get_connection_kwargs() | {"db": number}
    return valkey.Valkey(connection_pool=valkey.ConnectionPool(**settings))


# Size


def test_memory_grows_with_the_hops_and_stays_within_its_bound(client):
    hops, hour = 60, HOUR_MS
    for name, words in NUMERIC.items():
        register(client, view=name, schema=windows({name: words}, "WINDOW 1h HOP 1m"))
    bounds = {}
    for name in NUMERIC:
        (feature,) = (f for f in pairs(fs(client, f"FS.DESCRIBE {name}"))["schema"] if name.encode() in f)
        bounds[name] = pairs(feature)["state_bytes_max"]
    now_ms = clock_ms(client)
    chance = random.Random(4)
    sizes = {name: [] for name in NUMERIC}
    keys = {name: f"fs:w1:{name}:{'u' * (40 - len(name))}" for name in NUMERIC}

    def feed(i, at_ms):
        event = {
            # Fifteen digits, the last one no zero: all of one length as text, and no sum of them is exact.
            "x": (chance.randrange(10**13, 10**14) * 10 + 7) / 10**9,
            "whole": i % 500,
            "word": f"w{i}",
            "emb": [i, 0.5, -i],
            "weight": 1,
        }
        with client.pipeline(transaction=False) as pipeline:
            for key in keys.values():
                words = ("NOLOG", "AT", at_ms, "JSON", json.dumps(event))
                pipeline.execute_command("FS.PUBLISH", key.replace("fs:w1", "fs:v1"), *words)
            pipeline.execute()

    def measure():
        for name, key in keys.items():
            sizes[name].append(client.memory_usage(key, samples=0))

    feed(0, now_ms - 3 * hour)
    measure()
    steps = 3 * hops * 3
    for i in range(1, steps):
        feed(i, now_ms - 3 * hour + i * 3 * hour // steps)
        if i % 90 == 0:
            measure()
    # The hops are full: whatever comes now comes on top.
    measure()
    full = {name: sizes[name][-1] for name in NUMERIC}
    for i in range(300):
        feed(i, now_ms - 1 - chance.randrange(hour - 120_000))
    measure()
    # What a key and an expiry take by themselves, and the server's object header, which MEMORY USAGE of a state counts.
    plain = keys["sum"].replace("fs:w1", "plain")
    client.set(plain, "", px=10**9)
    frame = client.memory_usage(plain, samples=0) + 32
    for name in NUMERIC:
        assert max(sizes[name]) <= bounds[name] + frame, (name, bounds[name], sizes[name])
        if name != "last":
            assert full[name] > sizes[name][0], (name, sizes[name])
    # The rate of events is no matter where a hop is a few numbers.
    for name in (
        "events",
        "count_x",
        "sum",
        "decayed",
        "mean",
        "lowest",
        "highest",
        "var_samp",
        "first",
        "centre",
    ):
        assert sizes[name][-1] == full[name], (name, sizes[name])


def test_big_states_are_freed_off_the_main_thread_and_whole(fresh_server):
    client = fresh_server().client()
    kinds = {"sum": ALL["sum"], "p90": ALL["p90"], "var_samp": ALL["var_samp"]}
    register(client, "LOG", "OFF", schema=windows(kinds, "WINDOW 4096s HOP 1s"))
    now_ms, chance = clock_ms(client), random.Random(6)
    with client.pipeline(transaction=False) as pipeline:
        for i in range(4_000):
            for entity in ("u1", "u2"):
                words = ("AT", now_ms - i * 1_000, "x", chance.gauss(0, 1e6))
                pipeline.execute_command("FS.PUBLISH", f"fs:v1:profile:{entity}", *words)
        pipeline.execute()
    usage = client.memory_usage(STATE, samples=0)
    assert usage > 100_000

    def freed():
        return client.info("memory")["lazyfreed_objects"]

    def await_freed(more, used):
        await_until(lambda: freed() >= more, what="the state to be freed by the other thread")
        await_until(
            lambda: client.info("memory")["lazyfree_pending_objects"] == 0, what="nothing to be left to free"
        )
        await_until(lambda: client.info("memory")["used_memory"] < used - usage // 2, what="its memory back")

    before, used = freed(), client.info("memory")["used_memory"]
    assert client.unlink(STATE) == 1
    await_freed(before + 1, used)
    assert client.execute_command("FS.GET", ROW, "sum") == [b"sum", b"0"]
    before, used = freed(), client.info("memory")["used_memory"]
    client.flushall(asynchronous=True)
    await_freed(before + 1, used)
    client.execute_command("FS.PUBLISH", ROW, "x", 5)
    assert client.execute_command("FS.GET", ROW, "sum") == [b"sum", b"5"]


def test_active_defragmentation_moves_states_and_changes_none(fresh_server):
    client = fresh_server({"hz": 100}).client()
    try:
        client.config_set("activedefrag", "yes")
    except valkey.ResponseError as refusal:
        pytest.skip(f"this server cannot defragment: {refusal}")
    client.config_set("activedefrag", "no")
    register_all(client)
    fill(client, {f"u{i}": 60 for i in range(1_500)})
    client.unlink(*[f"fs:w1:profile:u{i}" for i in range(1_500) if i % 3])
    now_ms = clock_ms(client)
    before, served = held(client), answers(client, now_ms)
    assert len(before) == 500
    for name, setting in {"ignore-bytes": 1, "threshold-lower": 1, "cycle-min": 50, "cycle-max": 75}.items():
        client.config_set(f"active-defrag-{name}", setting)
    client.config_set("activedefrag", "yes")
    await_until(lambda: client.info("stats")["active_defrag_hits"] > 1_000, 30, "states to be moved")
    await_until(lambda: client.info("stats")["active_defrag_key_hits"] > 500, 30, "many states to be moved")
    assert (held(client), answers(client, now_ms)) == (before, served)
    fill(client, {f"u{i}": 5 for i in range(0, 1_500, 3)}, seed=2)
    assert client.unlink(*before) == 500


# Neighbours


def test_at_the_memory_limit_events_are_refused_whole(fresh_server):
    client = fresh_server({"fs.sweep-interval": 20}).client()
    fs(client, f"FS.REGISTER profile ENTITY user DEDUP 1h SCHEMA {SMALL}")
    publish(client, ROW, 2, "EVENT", "e1")
    before = client.execute_command("DEBUG", "DIGEST")
    client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
    for command in [
        ("FS.PUBLISH", ROW, "x", 1),
        ("FS.PUBLISH", OTHER, "NOLOG", "EVENT", "e2", "x", 1),
        ("FS.MPUBLISH", ROW, '{"x": 1}'),
        ("FS.REPLAY", VIEW, "FROM", "0", "WINDOWS"),
    ]:
        with pytest.raises(valkey.exceptions.OutOfMemoryError):
            client.execute_command(*command)
        assert client.execute_command("DEBUG", "DIGEST") == before, command
    assert client.execute_command("FS.GET", ROW) == [b"n", 1, b"c", 1, b"s", b"2"]
    # What frees memory is not refused.
    assert client.execute_command("FS.DEL", ROW) == 1
    assert not client.exists(STATE)
    client.config_set("maxmemory", 0)
    publish(client, ROW, 3, "EVENT", "e1")
    assert client.execute_command("FS.GET", ROW) == [b"n", 1, b"c", 1, b"s", b"3"]


def test_who_watches_the_row_hears_of_its_windows(small, server):
    publish(small, ROW, 2)
    for change in [
        lambda: small.execute_command("FS.PUBLISH", ROW, "x", 1),
        lambda: small.execute_command("FS.PUBLISH", ROW, "NOLOG", "AT", clock_ms(small) - HOUR_MS, "x", 1),
        lambda: small.execute_command("FS.MPUBLISH", ROW, '{"x": 1}'),
    ]:
        with server.client() as watcher, watcher.pipeline() as pipeline:
            pipeline.watch(ROW)
            pipeline.multi()
            pipeline.ping()
            change()
            with pytest.raises(valkey.WatchError):
                pipeline.execute()
    # Not of those of another row.
    with server.client() as watcher, watcher.pipeline() as pipeline:
        pipeline.watch(ROW)
        pipeline.multi()
        pipeline.ping()
        small.execute_command("FS.PUBLISH", OTHER, "x", 1)
        assert pipeline.execute() == [True]


# Expiry


def test_a_state_expires_when_its_longest_window_has_passed(client):
    schema = "x FLOAT INPUT s FLOAT AGG SUM x WINDOW 1h HOP 1m c INT AGG COUNT x WINDOW 7d HOP 1d"
    span = 8 * DAY_MS
    for view, options, remembered in [
        ("plain", "", 0),
        ("short", "DEDUP 7d", 7 * DAY_MS),
        ("long", "DEDUP 30d", 30 * DAY_MS),
    ]:
        fs(client, f"FS.REGISTER {view} ENTITY user TTL 1s {options} SCHEMA {schema}")
        row, state = f"fs:v1:{view}:u1", f"fs:w1:{view}:u1"
        now_ms = clock_ms(client)
        # In this order: the last arrivals are late, and shorten nothing. Each is an event of its own.
        least = 0
        for at in (["AT", now_ms - 400 * DAY_MS], [], ["AT", now_ms + 60_000], ["AT", now_ms - DAY_MS]):
            event = at[1] if at else 0
            before = clock_ms(client)
            client.execute_command("FS.PUBLISH", row, "NOLOG", *at, "EVENT", f"e{event}", "x", 1)
            after = clock_ms(client)
            # Windows go by event time and clock, ids by the clock alone.
            least = max(least, max(event, before) + span, before + remembered)
            most = max(least, after + span, after + remembered)
            assert least - 1_000 <= client.pexpiretime(state) <= most + 1_000, (view, at)
        # What comes later without an id shortens nothing either.
        client.execute_command("FS.PUBLISH", row, "NOLOG", "x", 1)
        assert client.pexpiretime(state) >= least - 1_000, view


def test_an_expired_state_is_gone_and_the_row_is_not(client):
    schema = (
        "n INT x FLOAT INPUT s FLOAT AGG SUM x WINDOW 1s HOP 100ms m FLOAT AGG MEAN x WINDOW 1s DEFAULT 7"
    )
    fs(client, f"FS.REGISTER profile ENTITY user SCHEMA {schema}")
    publish(client, ROW, 5)
    assert client.execute_command("FS.GET", ROW) == [b"n", 1, b"s", b"5", b"m", b"5"]
    await_until(
        lambda: client.execute_command("FS.GET", ROW, "s", "m") == [b"s", b"0", b"m", b"7"], what="the end"
    )
    await_until(lambda: not client.exists(STATE), what="the state to expire")
    assert client.execute_command("FS.GET", ROW) == [b"n", 1, b"s", b"0", b"m", b"7"]
    publish(client, ROW, 6)
    assert client.execute_command("FS.GET", ROW, "s") == [b"s", b"6"]


# FS.SCAN


def test_scanning_lists_entities_that_have_only_a_state(small):
    fs(small, f"FS.REGISTER profile VERSION 2 ENTITY user SCHEMA {SMALL}")
    fs(small, f"FS.REGISTER profile2 ENTITY user SCHEMA {SMALL}")
    expected = set()
    for i in range(60):
        words = [("n", 1), ("x", 1), ("n", 1, "x", 1)][i % 3]
        small.execute_command("FS.PUBLISH", f"fs:v1:profile:u{i}", *words)
        expected.add(b"u%d" % i)
    small.execute_command("FS.PUBLISH", "fs:v2:profile:second", "x", 1)
    small.execute_command("FS.PUBLISH", "fs:v1:profile2:other", "x", 1)
    assert scanned(small, VIEW, "VERSION", 1) == expected
    assert scanned(small, VIEW, "VERSION", 1, "COUNT", 1_000) == expected
    assert scanned(small) == {b"second"}
    assert scanned(small, "profile2") == {b"other"}
    small.delete(*[f"fs:w1:profile:u{i}" for i in range(60)])
    assert scanned(small, VIEW, "VERSION", 1) == {entity for entity in expected if int(entity[1:]) % 3 != 1}


# Permissions and protocols


@pytest.fixture
def guarded(server, small):
    """Makes clients of a user that may call everything, on the keys that the rules name."""

    def make(*rules: str):
        small.execute_command("ACL", "SETUSER", "eve", "reset", "on", "nopass", "+@all", *rules)
        return server.client(username="eve", password="any")

    yield make
    small.acl_deluser("eve")
    small.acl_log_reset()


def test_the_right_to_a_row_is_the_right_to_its_state(small, guarded):
    publish(small, ROW, 2)
    publish(small, OTHER, 2)
    small.execute_command("FS.PUBLISH", "fs:v1:profile:u3", "NOLOG", "x", 1)
    user = guarded("~fs:v1:profile:u[14]", f"%W~{LOG}")
    publish(user, ROW, 3)
    assert user.execute_command("FS.MPUBLISH", ROW, '{"x": 4}') == 1
    assert user.execute_command("FS.GET", ROW) == [b"n", 1, b"c", 3, b"s", b"9"]
    assert user.execute_command("FS.GET", ROW, "AT", clock_ms(small), "c") == [b"c", 3]
    assert user.execute_command("FS.MGET", "c,s", ROW, "fs:v1:profile:u4") == [[3, b"9"], [0, b"0"]]
    assert len(user.execute_command("FS.TENSOR", "c,s", ROW)) == 8
    assert user.execute_command("FS.EXPLAIN", ROW)
    user.execute_command("FS.PUBLISH", "fs:v1:profile:u4", "NOLOG", "x", 1)
    assert scanned(user) == {b"u1", b"u4"}
    for command in [
        ("FS.GET", OTHER, "c"),
        ("FS.PUBLISH", OTHER, "x", 1),
        ("TYPE", STATE),
        ("DUMP", STATE),
        ("DEL", STATE),
        ("RESTORE", STATE, 0, small.dump(STATE), "REPLACE"),
        ("COPY", STATE, ROW, "REPLACE"),
    ]:
        before = held(small)
        with pytest.raises(valkey.exceptions.NoPermissionError):
            user.execute_command(*command)
        assert held(small) == before
    assert user.delete(ROW) == 1
    assert not small.exists(STATE)
    assert user.execute_command("FS.DEL", "fs:v1:profile:u4") == 1
    assert sorted(held(small)) == [b"fs:w1:profile:u2", b"fs:w1:profile:u3"]


def test_reading_or_writing_a_state_needs_that_right_to_the_row(small, guarded):
    publish(small, ROW, 2)
    reader = guarded(f"%R~{ROW}")
    assert reader.execute_command("FS.GET", ROW, "c") == [b"c", 1]
    before = held(small)
    for command in (("FS.PUBLISH", ROW, "NOLOG", "x", 1), ("FS.DEL", ROW), ("DEL", ROW)):
        with pytest.raises(valkey.exceptions.NoPermissionError):
            reader.execute_command(*command)
    assert held(small) == before
    writer = guarded(f"%W~{ROW}")
    writer.execute_command("FS.PUBLISH", ROW, "NOLOG", "x", 3)
    with pytest.raises(valkey.exceptions.NoPermissionError):
        writer.execute_command("FS.GET", ROW, "c")
    assert value(small, "s") == b"5"


def test_replaying_and_dropping_states_needs_the_keys_of_rows_and_streams(small, guarded):
    publish(small, ROW, 2)
    user = guarded("~fs:v1:profile:*", "~fs:stream:profile", "~fs:dlq:profile")
    assert user.execute_command("FS.REPLAY", "profile", "FROM", "0", "WINDOWS") == 1
    assert value(small, "s") == b"2"
    user.execute_command("FS.DROP", "profile", "DATA")
    await_until(lambda: not small.exists(ROW, STATE, LOG), what="the end of FS.DROP DATA")


def test_both_protocols_serve_windows_typed(server, client):
    register(client, schema=windows())
    events = [
        {"x": 1.5, "whole": 4, "word": "a", "tags": [1], "emb": [1, 0, 0], "weight": 1},
        {"x": 2.5, "whole": 4, "word": "b", "tags": [], "emb": [0, 1, 0], "weight": 3},
        {"x": -1, "whole": 5, "word": "a", "tags": ["t"], "emb": [0, 0, 4], "weight": 0},
    ]
    now_ms = clock_ms(client) // HOUR_MS * HOUR_MS - DAY_MS
    for i, event in enumerate(events):
        client.execute_command("FS.PUBLISH", ROW, "AT", now_ms + i, "JSON", json.dumps(event))
    third, variance = 1.0, sum((x - 1) ** 2 for x in (1.5, 2.5, -1))
    expected = {
        "events": 3,
        "count_x": 3,
        "sum": 3.0,
        "mean": third,
        "lowest": -1.0,
        "highest": 2.5,
        "var_pop": variance / 3,
        "var_samp": variance / 2,
        "stddev_pop": math.sqrt(variance / 3),
        "stddev_samp": math.sqrt(variance / 2),
        "first": b"a",
        "distinct": 2,
        "centre": [1 / 3, 1 / 3, 4 / 3],
        "weighted": [0.25, 0.75, 0.0],
    }
    lists = {
        "last": ["t"],
        "last_k": ["a", "b", "a"],
        "top": [["a", 2], ["b", 1]],
        "histogram": [[4, 2], [5, 1]],
    }
    for protocol in (2, 3):
        reader = server.client(protocol=protocol)
        reply = reader.execute_command("FS.GET", ROW, "AT", now_ms + 5)
        served = {k.decode(): v for k, v in reply.items()} if protocol == 3 else pairs(reply)
        for name, wanted in expected.items():
            given = served[name]
            if isinstance(wanted, float):
                assert isinstance(given, float if protocol == 3 else bytes), name
                assert float(given) == pytest.approx(wanted, rel=1e-9), name
            elif isinstance(wanted, list):
                assert [float(number) for number in given] == pytest.approx(wanted, rel=1e-6), name
            else:
                assert (given, type(given)) == (wanted, type(wanted)), name
        for name, wanted in lists.items():
            assert json.loads(served[name]) == wanted and isinstance(served[name], bytes), name
        # The day passed: over no events.
        names = ("events", "sum", "mean", "first", "top", "centre")
        reply = reader.execute_command("FS.GET", ROW, *names)
        zero = 0.0 if protocol == 3 else b"0"
        assert list(reply.values() if protocol == 3 else reply[1::2]) == [0, zero, None, None, b"[]", None]
        rows = reader.execute_command("FS.MGET", ",".join(names), ROW, OTHER)
        assert rows == [[0, zero, None, None, b"[]", None]] * 2
        status = reader.execute_command("FS.GET", ROW, "AT", now_ms + 5, "WITHSTATUS", "events", "n")
        status = list(status.values()) if protocol == 3 else status[1::2]
        assert status == [[3, b"PRESENT", 3], [None, b"NOT_FOUND", None]]
    tensor = np.frombuffer(client.execute_command("FS.TENSOR", "events,sum,mean,centre", ROW), "<f4")
    assert tensor[:2].tolist() == [0, 0] and np.isnan(tensor[2:]).all() and len(tensor) == 6


def test_the_figures_of_a_view_tell_of_its_windows(small):
    names = ("window_events", "late_events", "too_late_events", "duplicates", "dedup_overflows")
    told = figures(small)
    assert [told[name] for name in names] == [0] * 5
    explained = pairs(small.execute_command("FS.EXPLAIN", ROW))["features"]
    by_name = {told["feature"]: told for told in map(pairs, explained)}
    before_ms = clock_ms(small)
    assert [by_name[b"n"][f"window_{end}_ms"] for end in ("start", "end")] == [None, None]
    for name, window, hop in ((b"c", HOUR_MS, 60_000), (b"s", 7 * DAY_MS, 3 * HOUR_MS)):
        start, end = (by_name[name][f"window_{end}_ms"] for end in ("start", "end"))
        # The hop that holds the clock is the last one; it may have ended since.
        assert end - start == window + hop and end % hop == 0
        assert 0 < end - before_ms + 5_000 <= hop + 5_000
