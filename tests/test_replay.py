"""FS.REPLAY: rows made again from the log."""

import random
import socket
import threading

import pytest
import valkey
from profile_view import (
    EPOCH_S,
    LOG,
    add,
    add_many,
    await_drained,
    digests,
    figures,
    pairs,
    register,
    rows,
    rows_by_entries,
)

from server import await_until


def test_a_replay_makes_rows_again_and_fills_a_new_version(store):
    client = store.client()
    chance = random.Random(3)
    for i in range(1_500):
        time_s = EPOCH_S + chance.randrange(99)
        client.execute_command("FS.PUBLISH", f"fs:v1:profile:u{i % 40}", "AT", time_s * 1000, "n", i)
        add(client, f"u{i % 31}", {"score": i / 8}, EPOCH_S + chance.randrange(99))
    await_drained(client)
    expected, held = rows_by_entries(client), digests(client)
    assert rows(client) == expected
    client.delete(*held)
    assert client.execute_command("FS.REPLAY", "profile", "FROM", "0") == 3_000
    assert (rows(client), digests(client)) == (expected, held)
    # Into another version, from the middle; what is no update of it is passed over.
    register(client, version=2, schema=("n", "FLOAT", "score", "FLOAT"))
    middle = client.xrange(LOG)[1_000][0]
    expected = rows_by_entries(client, since=middle)
    add(client, "u1", {"label": "of version 1 only"}, EPOCH_S)
    await_drained(client)
    assert client.execute_command("FS.REPLAY", "profile", "FROM", middle, "VERSION", 2) == 2_000
    assert rows(client, "fs:v2:profile:") == expected
    # Rows never go back.
    client.execute_command("FS.PUBLISH", "fs:v1:profile:u1", "NOLOG", "n", 77)
    before = digests(client)
    assert client.execute_command("FS.REPLAY", "profile", "FROM", "0", "VERSION", 1) == 3_001
    assert digests(client) == before
    assert figures(client)["cursor"] == client.xrevrange(LOG, count=1)[0][0]


def test_a_replay_is_refused_where_nobody_can_wait(store):
    client = store.client()
    add(client, "u1", {"n": 1}, EPOCH_S)
    await_drained(client)
    with client.pipeline() as pipeline:
        pipeline.execute_command("FS.REPLAY", "profile", "FROM", "0")
        pipeline.ping()
        refusal, pong = pipeline.execute(raise_on_error=False)
    assert isinstance(refusal, valkey.ResponseError) and "MULTI" in str(refusal) and pong is True
    with pytest.raises(valkey.ResponseError, match="script"):
        client.eval("return redis.call('FS.REPLAY', 'profile', 'FROM', '0')", 0)
    for words in (["FROM", "x"], ["FROM"], [], ["FROM", "0", "VERSION", 9], ["FROM", "0", "0"]):
        with pytest.raises(valkey.ResponseError):
            client.execute_command("FS.REPLAY", "profile", *words)
    assert client.execute_command("FS.REPLAY", "profile", "FROM", "99999999999999999") == 0
    assert figures(client)["replaying"] is None


def test_a_replay_goes_on_when_its_caller_goes_away(slow_store):
    client = slow_store.client()
    add_many(client, 30_000)
    register(client, "CONSUMER", "OFF", version=2)
    with socket.create_connection(("127.0.0.1", slow_store.port)) as caller:
        caller.sendall(b"FS.REPLAY profile FROM 0 VERSION 2\r\n")
        replaying = await_until(lambda: figures(client)["replaying"], what="the replay to begin")
        assert pairs(replaying)["version"] == 2
    await_until(lambda: figures(client)["replaying"] is None, 30, what="the replay to end")
    await_drained(client)
    assert rows(client, "fs:v2:profile:") == rows(client) == rows_by_entries(client)


def test_replays_take_turns_and_each_caller_hears_of_its_own(slow_store):
    client = slow_store.client()
    register(client, view="other")
    for view, count in (("profile", 5_000), ("other", 3_000)):
        add_many(client, count, log=f"fs:stream:{view}")
        await_drained(client, f"fs:stream:{view}")
    middle = client.xrange(LOG)[4_000][0]
    asked = [
        ("profile", "0", 5_000),
        ("other", "0", 3_000),
        ("profile", middle, 1_000),
        ("profile", "0", 5_000),
    ]
    answers = [None] * len(asked)

    def replay(place, view, since):
        answers[place] = slow_store.client().execute_command("FS.REPLAY", view, "FROM", since)

    threads = [threading.Thread(target=replay, args=(i, *asked[i][:2])) for i in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [count for *_, count in asked]


def test_dropping_the_view_ends_its_replay(slow_store):
    client, caller = slow_store.client(), slow_store.client()
    add_many(client, 30_000)
    await_drained(client)
    answers = []

    def replay():
        with pytest.raises(valkey.ResponseError) as refusal:
            caller.execute_command("FS.REPLAY", "profile", "FROM", "0")
        answers.append(str(refusal.value))

    thread = threading.Thread(target=replay)
    thread.start()
    await_until(lambda: figures(client)["replaying"], what="the replay to begin")
    client.execute_command("FS.DROP", "profile")
    thread.join()
    assert answers and answers[0].startswith("NOVIEW"), answers


def test_a_row_deleted_during_a_replay_stays_deleted(slow_store):
    client, caller = slow_store.client(), slow_store.client()
    add_many(client, 30_000, entities=1_000)
    await_drained(client)
    thread = threading.Thread(target=lambda: caller.execute_command("FS.REPLAY", "profile", "FROM", "0"))
    thread.start()
    await_until(lambda: figures(client)["replaying"], what="the replay to begin")
    client.execute_command("FS.DEL", "fs:v1:profile:u1", "fs:v1:profile:u999")
    assert figures(client)["replaying"], "the replay was over before the deletion"
    thread.join()
    assert client.exists("fs:v1:profile:u1", "fs:v1:profile:u999") == 0
    assert len(rows(client)) == 998
