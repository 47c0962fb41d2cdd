"""FS.REPLAY WINDOWS: windows are cleared and counted again from the log, while traffic goes on."""

import json
import random
import threading

import pytest
import valkey
from profile_view import LOG, await_drained, consumer, entry, figures
from test_window_dedup import HOUR_MS, OTHER, ROW, STATE, add, define, publish, windows
from test_window_state import valkey_in_database
from windowed_view import an_event, answers, clock_ms, digest, entities, fs, held, register_all

from server import await_until

# Counting again


def counted(client, since: str = "-", dedup: bool = False) -> dict[str, tuple[int, float]]:
    """By the entries of the log: how often each entity carries x, and its sum."""
    seen, found = set(), {}
    for _, fields in client.xrange(LOG, since):
        entity, id = fields[b"entity_id"].decode(), fields.get(b"event_id")
        if dedup and id is not None and (entity, id) in seen:
            continue
        seen.add((entity, id))
        values = json.loads(fields[b"features"])
        if values.get("x") is not None:
            count, total = found.get(entity, (0, 0.0))
            found[entity] = count + 1, total + float(values["x"])
    return found


def all_windows(client, version: int = 1) -> dict[str, tuple[int, float]]:
    names = [entity.decode() for entity in entities(client, "profile", version)]
    found = {name: windows(client, f"fs:v{version}:profile:{name}") for name in names}
    return {name: given for name, given in found.items() if given != (0, 0.0)}


def replay(client, line: str = "FROM 0 WINDOWS") -> int:
    return fs(client, f"FS.REPLAY profile {line}")


def add_many(client, count: int, entities: int = 40, start: int = 0) -> None:
    with client.pipeline(transaction=False) as pipeline:
        for i in range(start, start + count):
            pipeline.xadd(LOG, entry(f"u{i % entities}", {"n": i, "x": i}))
        pipeline.execute()


@pytest.fixture
def slow(fresh_server):
    """A server with the shortest slices, so that a test can come between them."""
    server = fresh_server({"fs.sweep-interval": 20, "fs.consumer-slice-us": 50})
    define(server.client())
    return server


def test_counting_again_gives_the_same_for_every_function(fresh_server):
    server = fresh_server({"fs.sweep-interval": 20})
    client = server.client()
    register_all(client, "DEDUP", "1h", "MAXLEN", 100_000)
    now_ms, chance = clock_ms(client), random.Random(12)
    # No two events of one time, in any order, logged in the order of their effect.
    times = chance.sample(range(now_ms - 2 * HOUR_MS, now_ms), 1_200)
    for i, at_ms in enumerate(times):
        key, event = f"fs:v1:profile:u{chance.randrange(15)}", json.dumps(an_event(chance) | {"n": i})
        if i % 3:
            id = f"e{chance.randrange(100)}"
            client.execute_command("FS.PUBLISH", key, "AT", at_ms, "EVENT", id, "JSON", event)
        else:
            client.xadd(LOG, entry(key.rpartition(":")[2], event, at_ms / 1000))
            client.execute_command("FS.CONSUME", "profile")
    before, rows = answers(client, now_ms), {key: digest(client, key) for key in client.keys("fs:v1:*")}
    assert len(before) == 15 and figures(client)["duplicates"] > 50
    for _ in range(2):
        assert replay(client) == client.xlen(LOG)
        after = answers(client, now_ms)
        for entity, told in before.items():
            for name, old, new in zip(told[::2], told[1::2], after[entity][1::2], strict=True):
                assert is_same(old, new), (entity, name, old, new)
        assert {key: digest(client, key) for key in rows} == rows


def is_same(old, new) -> bool:
    """Equal, but for the last digits of numbers."""
    if isinstance(old, list):
        return len(old) == len(new) and all(map(is_same, old, new))
    try:
        return old == new or float(new) == pytest.approx(float(old), rel=1e-9, abs=1e-9)
    except (TypeError, ValueError):
        return False


def test_only_what_the_log_has_is_counted_again(client):
    define(client)
    client.execute_command("FS.PUBLISH", ROW, "x", 1)
    client.execute_command("FS.PUBLISH", ROW, "NOLOG", "x", 2)
    client.execute_command("FS.PUBLISH", OTHER, "NOLOG", "n", 1, "x", 2)
    middle = client.execute_command("FS.PUBLISH", ROW, "x", 4)
    client.execute_command("FS.PUBLISH", ROW, "x", 8)
    assert (windows(client), windows(client, OTHER)) == ((4, 15.0), (1, 2.0))
    assert replay(client) == 3
    assert (windows(client), windows(client, OTHER)) == ((3, 13.0), (0, 0.0))
    # Rows are not cleared.
    assert client.hget(OTHER, "n") == b"1"
    assert replay(client, f"FROM {middle.decode()} WINDOWS") == 2
    assert windows(client) == (2, 12.0)
    client.xtrim(LOG, maxlen=1, approximate=False)
    assert replay(client) == 1
    assert windows(client) == (1, 8.0)
    assert replay(client, "FROM 99999999999999999 WINDOWS") == 0
    assert windows(client) == (0, 0.0)
    # And all goes on.
    client.execute_command("FS.PUBLISH", ROW, "x", 16)
    assert windows(client) == (1, 16.0)
    assert replay(client) == 2
    assert windows(client) == (2, 24.0)


def test_a_plain_replay_leaves_windows_alone(client):
    define(client)
    for i in range(200):
        client.execute_command("FS.PUBLISH", f"fs:v1:profile:u{i % 20}", "n", i, "x", 1)
        client.execute_command("FS.PUBLISH", f"fs:v1:profile:u{i % 20}", "NOLOG", "x", 2)
    client.delete(*[f"fs:v1:profile:u{i}" for i in range(5)])
    before = held(client)
    assert len(before) == 15
    assert replay(client, "FROM 0") == 200
    assert held(client) == before
    assert len(client.keys("fs:v1:*")) == 20
    assert windows(client, "fs:v1:profile:u7") == (20, 30.0)
    assert windows(client, "fs:v1:profile:u3") == (0, 0.0)


def test_pending_entries_are_counted_once(client):
    for version in (1, 2):
        define(client, version=version)
    for order in (["windows"], ["plain", "windows"], ["windows", "windows"], ["windows", "plain"], ["plain"]):
        add_many(client, 100)
        await_drained(client)
        consumer(client, "STOP")
        add_many(client, 200, start=50)
        client.execute_command("FS.PUBLISH", ROW, "x", 5)
        for kind in order:
            replay(client, "FROM 0 VERSION 1" + (" WINDOWS" if kind == "windows" else ""))
        # More while it is pending.
        add_many(client, 50)
        client.execute_command("FS.PUBLISH", ROW, "x", 6)
        fs(client, "FS.CONSUME profile COUNT 30")
        consumer(client, "START")
        await_drained(client)
        assert all_windows(client) == counted(client), order
        # The other version was not replayed, and counts what was added; FS.PUBLISH went to the first one alone.
        expected = counted(client)
        published = sum(b"applied" in fields for _, fields in client.xrange(LOG))
        assert sum(count for count, _ in all_windows(client, 2).values()) == (
            sum(count for count, _ in expected.values()) - published
        ), order


def test_duplicates_in_the_log_are_counted_once_again(client):
    define(client, "DEDUP 1h")
    for i in range(300):
        add(client, f"e{i % 70}", i, f"fs:v1:profile:u{i % 3}")
        client.xadd(LOG, entry(f"u{i % 3}", {"x": 0.5}))
    await_drained(client)
    expected = counted(client, dedup=True)
    assert all_windows(client) == expected and figures(client)["duplicates"] == 300 - 3 * 70
    for _ in range(2):
        assert replay(client) == 600
        assert all_windows(client) == expected
    # What was counted again is known again.
    known = publish(client, "e7", 9)
    entries = [
        id
        for id, fields in client.xrange(LOG)
        if (fields[b"entity_id"], fields.get(b"event_id")) == (b"u1", b"e7")
    ]
    assert known == entries[0]
    assert all_windows(client) == expected
    consumer(client, "STOP")
    add(client, "e7", 9)
    add(client, "fresh", 9)
    add(client, "fresh", 9)
    replay(client)
    consumer(client, "START")
    await_drained(client)
    expected = counted(client, dedup=True)
    assert all_windows(client) == expected


def test_a_view_without_dedup_counts_each_entry_again(client):
    define(client)
    for _ in range(2):
        add(client, "e")
    await_drained(client)
    assert replay(client) == 2
    assert windows(client) == (2, 2.0)


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_new_version_fills_its_windows_from_the_log_of_the_old_one(client, by_hand):
    define(client)
    add_many(client, 500)
    for i in range(100):
        client.execute_command("FS.PUBLISH", f"fs:v1:profile:u{i % 40}", "x", i)
    await_drained(client)
    define(client, *(["CONSUMER OFF"] if by_hand else []), version=2)
    assert replay(client, "FROM 0 VERSION 1 WINDOWS") == 600
    assert all_windows(client, 2) == {}
    assert replay(client, "FROM 0 VERSION 2 WINDOWS") == 600
    expected = counted(client)
    assert all_windows(client, 2) == all_windows(client, 1) == expected
    # Entries reach both from now on, if its consumer is on; FS.PUBLISH only the version it names.
    add_many(client, 40)
    client.execute_command("FS.PUBLISH", "fs:v2:profile:u1", "x", 1_000)
    await_drained(client)
    held_1 = all_windows(client, 1)
    assert (all_windows(client, 2)["u1"] == (expected["u1"][0] + 1, expected["u1"][1] + 1_000)) == by_hand
    if not by_hand:
        assert all_windows(client, 2)["u2"] == held_1["u2"] != expected["u2"]
    # The newest version is meant when none is named.
    assert replay(client) == 641
    assert all_windows(client, 2) == counted(client)
    assert all_windows(client, 1) == held_1


def begin_replay(server, client) -> tuple[threading.Thread, list[int]]:
    """A replay of 12,000 entries that is under way; what it answers comes into the list."""
    add_many(client, 12_000)
    await_drained(client)
    other, replayed = server.client(), []
    thread = threading.Thread(target=lambda: replayed.append(replay(other)))
    thread.start()
    await_until(lambda: figures(client)["replaying"], what="the replay to begin")
    return thread, replayed


def test_live_traffic_during_a_replay_is_counted_once(slow):
    client = slow.client()
    thread, replayed = begin_replay(slow, client)
    live = 0
    while thread.is_alive():
        key = f"fs:v1:profile:u{live % 60}"
        client.execute_command("FS.PUBLISH", key, "n", live, "x", 1_000_000)
        add_many(client, 3, entities=50, start=live)
        live += 1
    thread.join()
    assert live > 10 and replayed[0] >= 12_000
    await_drained(client)
    assert all_windows(client) == counted(client)
    assert replay(client) == client.xlen(LOG)
    assert all_windows(client) == counted(client)


def test_windows_are_counted_again_once_at_a_time(slow):
    client = slow.client()
    thread, replayed = begin_replay(slow, client)
    for _ in range(3):
        with pytest.raises(valkey.ResponseError, match=r"profile.*being counted again already"):
            replay(client)
    thread.join()
    assert replayed == [client.xlen(LOG)] and all_windows(client) == counted(client)
    # Another one may follow.
    assert replay(client) == client.xlen(LOG)
    assert all_windows(client) == counted(client)


def test_repetitions_during_a_replay_are_counted_once(fresh_server):
    server = fresh_server({"fs.sweep-interval": 20, "fs.consumer-slice-us": 50})
    client, other = server.client(), server.client()
    define(client, "DEDUP 1h")
    with client.pipeline(transaction=False) as pipeline:
        for i in range(15_000):
            add(pipeline, f"e{i // 40}", i, f"fs:v1:profile:u{i % 40}")
        pipeline.execute()
    await_drained(client)
    before = counted(client, dedup=True)
    assert all_windows(client) == before
    thread = threading.Thread(target=lambda: replay(other))
    thread.start()
    await_until(lambda: figures(client)["replaying"], what="the replay to begin")
    sent = 0
    while thread.is_alive():
        # Of the end, which the replay has not reached, and of its begin.
        id = f"e{374 - sent % 40}" if sent % 2 else f"e{sent % 40}"
        key = f"fs:v1:profile:u{sent % 40}"
        publish(client, id, 7, key)
        add(client, id, 8, key)
        sent += 1
    thread.join()
    assert sent > 10
    await_drained(client)
    # Whatever was logged of them, each event counts once.
    assert {entity: count for entity, (count, _) in all_windows(client).items()} == {
        entity: count for entity, (count, _) in before.items()
    }


def test_an_entity_deleted_during_a_replay_stays_deleted(slow):
    client, other = slow.client(), slow.client()
    add_many(client, 20_000, entities=1_000)
    await_drained(client)
    thread = threading.Thread(target=lambda: replay(other))
    thread.start()
    await_until(lambda: figures(client)["replaying"], what="the replay to begin")
    assert fs(client, "FS.DEL fs:v1:profile:u1 fs:v1:profile:u999") == 2
    assert figures(client)["replaying"], "the replay was over before the deletion"
    thread.join()
    for entity in ("u1", "u999"):
        assert windows(client, f"fs:v1:profile:{entity}") == (0, 0.0)
    assert windows(client, "fs:v1:profile:u2") == counted(client)["u2"]


def test_states_and_counting_again_are_of_one_history(client, fresh_server):
    define(client)
    for x in (1, 2):
        client.execute_command("FS.PUBLISH", ROW, "n", 1, "x", x)
    old = client.dump(STATE)
    for _ in range(3):
        replay(client)
    new = client.dump(STATE)
    assert windows(client) == (2, 3.0)
    # What was dumped is served wherever it is restored, whatever was counted again there.
    other = fresh_server().client()
    define(other)
    for dump in (old, new):
        other.restore(STATE, 0, dump, replace=True)
        assert windows(other) == (2, 3.0)
        other.execute_command("FS.PUBLISH", ROW, "NOLOG", "x", 4)
        assert windows(other) == (3, 7.0)
    # There, too, it is cleared.
    other.execute_command("FS.PUBLISH", ROW, "x", 8)
    for dump in (old, new):
        other.restore(STATE, 0, dump, replace=True)
        assert replay(other) == 1
        assert windows(other) == (1, 8.0)
    # Without its data dropped, the view finds its states again.
    fs(client, "FS.DROP profile")
    define(client)
    assert windows(client) == (2, 3.0)
    client.execute_command("FS.PUBLISH", ROW, "x", 4)
    assert windows(client) == (3, 7.0)


def restore(client, dump):
    client.restore(STATE, 0, dump, replace=True)


def rename(client, dump):
    client.restore("parked", 0, dump)
    client.rename("parked", STATE)


def copy(client, dump):
    client.restore("parked", 0, dump, replace=True)
    client.copy("parked", STATE, replace=True)


def move(client, dump):
    with valkey_in_database(client, 1) as there:
        there.restore(STATE, 0, dump)
        client.delete(STATE)
        assert there.move(STATE, 0)


def copy_from_another_database(client, dump):
    with valkey_in_database(client, 1) as there:
        there.restore(STATE, 0, dump, replace=True)
        assert there.copy(STATE, STATE, destination_db=0, replace=True)


@pytest.mark.parametrize("bring", [restore, rename, copy, move, copy_from_another_database])
def test_a_state_that_comes_from_elsewhere_is_of_the_present(client, bring):
    define(client, view="elsewhere")
    for x in (1, 2):
        client.execute_command("FS.PUBLISH", "fs:v1:elsewhere:u1", "x", x)
    dumps = []
    for count in range(4):
        # Counted anew there never, and once, twice, three times.
        dumps.append(client.dump("fs:w1:elsewhere:u1"))
        assert fs(client, "FS.REPLAY elsewhere FROM 0 WINDOWS") == 2, count
    define(client)
    client.execute_command("FS.PUBLISH", ROW, "x", 8)
    # Counted anew here less often than there, then more often.
    for dump in (dumps[3], dumps[0], dumps[2], dumps[1], dumps[0]):
        bring(client, dump)
        assert windows(client) == (2, 3.0)
        client.execute_command("FS.PUBLISH", ROW, "NOLOG", "x", 4)
        assert windows(client) == (3, 7.0)
        assert replay(client) == 1
        assert windows(client) == (1, 8.0)


def test_words_of_a_replay(client):
    define(client)
    client.execute_command("FS.PUBLISH", ROW, "x", 4)
    before = held(client)
    for words in (
        "WINDOWS",
        "WINDOWS FROM 0",
        "FROM 0 WINDOWS 5",
        "FROM WINDOWS",
        "FROM 0 WINDOW",
        "FROM x WINDOWS",
    ):
        with pytest.raises(valkey.ResponseError):
            replay(client, words)
    with pytest.raises(valkey.ResponseError, match="NOVIEW"):
        replay(client, "FROM 0 VERSION 9 WINDOWS")
    with client.pipeline() as pipeline:
        fs(pipeline, "FS.REPLAY profile FROM 0 WINDOWS")
        (refusal,) = pipeline.execute(raise_on_error=False)
    assert isinstance(refusal, valkey.ResponseError) and "MULTI" in str(refusal)
    assert held(client) == before
    assert replay(client, "FROM 0 VERSION 1 WINDOWS") == replay(client, "from 0 windows") == 1
