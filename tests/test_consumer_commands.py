"""FS.CONSUME, FS.CONSUMER, FS.DEL and FS.TRIM on a log with a backlog."""

import pytest
import valkey
from profile_view import (
    EPOCH_S,
    LOG,
    add,
    add_many,
    await_drained,
    consumer,
    figures,
    group,
    register,
    rows,
    rows_by_entries,
)

from server import await_until


def test_consuming_by_hand_goes_step_by_step(store):
    client = store.client()
    consumer(client, "STOP")
    assert client.execute_command("FS.CONSUME", "profile") == [0, None]
    ids = add_many(client, 2_500)
    done = 0
    for count in (1, 2, 127, 128, 129, 1):
        done += count
        assert client.execute_command("FS.CONSUME", "profile", "COUNT", count) == [count, ids[done - 1]]
        assert group(client)["last-delivered-id"] == ids[done - 1]
        assert (group(client)["entries-read"], group(client)["lag"]) == (done, 2_500 - done)
        assert figures(client)["lag_entries"] == 2_500 - done
        assert rows(client) == rows_by_entries(client, until=ids[done - 1])
    with client.pipeline() as pipeline:
        pipeline.execute_command("FS.CONSUME", "profile")
        pipeline.xlen(LOG)
        assert pipeline.execute()[0] == [1_000, ids[done + 999]]
    script = "return redis.call('FS.CONSUME', 'profile', 'COUNT', '10000')"
    assert client.eval(script, 0) == [2_500 - done - 1_000, ids[-1]]
    assert client.execute_command("FS.CONSUME", "profile", "COUNT", 5) == [0, ids[-1]]
    assert (figures(client)["consumer"], figures(client)["consumed"]) == (b"stopped", 2_500)
    for words in (["COUNT", 0], ["COUNT", -1], ["COUNT", "x"], ["COUNT"], ["COUNT", 1, 2]):
        with pytest.raises(valkey.ResponseError):
            client.execute_command("FS.CONSUME", "profile", *words)


def test_consuming_by_hand_while_the_consumer_runs_applies_nothing_twice(slow_store):
    client = slow_store.client()
    for start in range(0, 20_000, 2_000):
        add_many(client, 2_000, start=start)
        client.execute_command("FS.CONSUME", "profile", "COUNT", 300)
    await_drained(client)
    assert figures(client)["consumed"] == 20_000
    assert rows(client) == rows_by_entries(client)


def test_a_stopped_consumer_stands_still_and_goes_on_where_it_stood(slow_store):
    client = slow_store.client()
    add_many(client, 20_000)
    for _ in range(5):
        before = figures(client)["consumed"]
        await_until(lambda least=before + 500: figures(client)["consumed"] > least, what="some progress")
        consumer(client, "STOP")
        told = figures(client)
        assert told["lag_entries"] > 0, "it was over before it was stopped"
        assert (told["consumer"], told["lag_ms"] > 0) == (b"stopped", True)
        assert rows(client) == rows_by_entries(client, until=told["cursor"])
        assert figures(client) | {"lag_ms": 0} == told | {"lag_ms": 0}
        consumer(client, "START")
    consumer(client, "START")
    await_drained(client)
    assert figures(client)["consumed"] == 20_000


def test_a_deleted_row_is_not_brought_back_by_the_backlog(store):
    client = store.client()
    register(client, version=2)
    consumer(client, "STOP")
    add(client, "a", {"n": 1}, EPOCH_S)
    add(client, "b", {"n": 1}, EPOCH_S)
    client.execute_command("FS.PUBLISH", "fs:v1:profile:a", "label", "x")
    # Row a is there, row b is not yet: both are deleted as far as the backlog goes, under version 1 alone.
    assert client.execute_command("FS.DEL", "fs:v1:profile:a", "fs:v1:profile:b") == 1
    add(client, "b", {"n": 2}, EPOCH_S - 50)
    assert figures(client)["tombstones"] == 2
    consumer(client, "START")
    await_drained(client)
    assert rows(client) == {"b": {"n": 2}}
    assert rows(client, "fs:v2:profile:") == {"a": {"n": 1}, "b": {"n": 1}}
    add(client, "a", {"n": 3}, EPOCH_S - 99)
    await_until(lambda: rows(client).get("a") == {"n": 3}, what="the row of a later entry")
    await_until(lambda: figures(client)["tombstones"] == 0, what="the deletions to be forgotten")


def test_deleting_in_full_flow_and_in_one_transaction_with_entries(store):
    client = store.client()
    for i in range(200):
        with client.pipeline() as pipeline:
            for j in range(20):
                add(pipeline, f"e{i}-{j % 4}", {"n": j}, EPOCH_S + j)
            pipeline.execute_command("FS.DEL", f"fs:v1:profile:e{i}-0", f"fs:v1:profile:e{i}-1")
            add(pipeline, f"e{i}-1", {"n": -1}, EPOCH_S)
            pipeline.execute()
    await_drained(client)
    expected = {f"e{i}-{j}": {"n": n} for i in range(200) for j, n in ((1, -1), (2, 18), (3, 19))}
    assert rows(client) == expected


def flush_another_database(server):
    server.client(db=1).set("k", "v")
    server.client(db=1).flushdb()


def swap_other_databases(server):
    server.client().swapdb(1, 2)


def make_the_log_anew(server):
    # With ids below those that the deletion saw.
    server.client().delete(LOG)


@pytest.mark.parametrize("happen", [flush_another_database, swap_other_databases], ids=lambda f: f.__name__)
def test_a_deletion_outlives_what_happens_in_other_databases(store, happen):
    client = store.client()
    consumer(client, "STOP")
    add(client, "gone", {"n": 1}, EPOCH_S)
    add(client, "kept", {"n": 1}, EPOCH_S)
    client.execute_command("FS.DEL", "fs:v1:profile:gone")
    happen(store)
    consumer(client, "START")
    await_drained(client)
    assert rows(client) == {"kept": {"n": 1}}


def test_a_deletion_does_not_hide_entries_of_a_new_log(store):
    client = store.client()
    consumer(client, "STOP")
    add(client, "u1", {"n": 1}, EPOCH_S)
    client.execute_command("FS.DEL", "fs:v1:profile:u1")
    client.delete(LOG)
    add(client, "u1", {"n": 2}, EPOCH_S, id="1-1")
    consumer(client, "START")
    await_drained(client)
    assert rows(client) == {"u1": {"n": 2}}


def test_trimming_by_command_spares_what_is_not_consumed(store):
    client = store.client()
    add_many(client, 100)
    await_drained(client)
    consumer(client, "STOP")
    add_many(client, 50)
    assert client.execute_command("FS.TRIM", "profile", "MAXLEN", 120) == 30
    assert client.execute_command("FS.TRIM", "profile", "MAXLEN", 0) == 70
    assert client.execute_command("FS.TRIM", "profile", "MAXLEN", 0) == 0
    assert client.xlen(LOG) == 50
    consumer(client, "START")
    await_drained(client)
    assert client.execute_command("FS.TRIM", "profile", "MAXLEN", 0) == 50
    assert (figures(client)["lost_entries"], figures(client)["consumed"]) == (0, 150)
