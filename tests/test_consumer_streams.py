"""Streams that come and go: deleted, renamed, copied, restored, expired, swapped, flushed."""

import pytest
import valkey
from profile_view import EPOCH_S, GROUP, LOG, add, add_many, await_drained, consumer, figures, rows

from server import await_until


def feed(client, log, ids):
    """Entries with these ids, one row each."""
    for id in ids:
        add(client, f"e{id}", {"n": 1}, EPOCH_S, log=log, id=id)
    return {f"e{id}": {"n": 1} for id in ids}


def ids_around(client):
    """Ids before and after those in the log, as a second producer's stream holds them."""
    ms = int(client.xinfo_stream(LOG)["last-generated-id"].split(b"-")[0])
    return ["1-1", "2-1", f"{ms - 60_000}-0", f"{ms + 1}-0", f"{ms + 2}-5"]


def deleted(client, ids):
    client.delete(LOG)
    return feed(client, LOG, ids)


def deleted_in_a_transaction(client, ids):
    with client.pipeline() as pipeline:
        pipeline.delete(LOG)
        expected = feed(pipeline, LOG, ids)
        pipeline.execute()
    return expected


def renamed(client, ids):
    expected = feed(client, "incoming", ids)
    client.rename("incoming", LOG)
    return expected


def copied(client, ids):
    expected = feed(client, "incoming", ids)
    client.copy("incoming", LOG, replace=True)
    return expected


def restored(client, ids):
    expected = feed(client, "incoming", ids)
    client.restore(LOG, 0, client.dump("incoming"), replace=True)
    return expected


def copied_from_another_database(client, ids):
    expected = feed(client, "incoming", ids)
    client.move("incoming", 1)
    client.select(1)
    client.execute_command("COPY", "incoming", LOG, "DB", 0, "REPLACE")
    client.select(0)
    return expected


def overwritten(client, ids):
    client.set(LOG, "no stream")
    with pytest.raises(valkey.ResponseError, match="WRONGTYPE"):
        client.execute_command("FS.PUBLISH", "fs:v1:profile:p", "n", 1)
    client.delete(LOG)
    return feed(client, LOG, ids)


def expired(client, ids):
    client.pexpire(LOG, 1)
    await_until(lambda: not client.exists(LOG), what="the log to expire")
    return feed(client, LOG, ids)


def swapped(client, ids):
    client.select(1)
    expected = feed(client, LOG, ids)
    client.select(0)
    client.swapdb(0, 1)
    return expected


def flushed(client, ids):
    client.flushall()
    return feed(client, LOG, ids)


REPLACEMENTS = [
    deleted,
    deleted_in_a_transaction,
    renamed,
    copied,
    restored,
    copied_from_another_database,
    overwritten,
    expired,
    swapped,
    flushed,
]


@pytest.mark.parametrize("replace", REPLACEMENTS, ids=lambda f: f.__name__)
def test_another_stream_under_the_key_is_read_from_its_start(store, replace):
    client = store.client(single_connection_client=True)
    add_many(client, 10)
    await_drained(client)
    expected = replace(client, ids_around(client))
    await_until(lambda: expected.items() <= rows(client).items(), 5, what=f"the rows {sorted(expected)}")
    await_drained(client)
    assert figures(client)["lost_entries"] == 0
    add(client, "last", {"n": 2}, EPOCH_S)
    await_until(lambda: "last" in rows(client), what="the row of a later entry")


@pytest.mark.parametrize("replace", [deleted, renamed], ids=lambda f: f.__name__)
def test_a_stopped_consumer_reads_another_stream_from_its_start_as_well(store, replace):
    client = store.client(single_connection_client=True)
    add_many(client, 10)
    await_drained(client)
    consumer(client, "STOP")
    expected = replace(client, ids_around(client))
    consumer(client, "START")
    await_until(lambda: expected.items() <= rows(client).items(), 5, what=f"the rows {sorted(expected)}")


def test_a_stream_that_brings_its_own_group_goes_on_from_there(store):
    client = store.client()
    ids = add_many(client, 10, log="fs:stream:elsewhere")
    client.xgroup_create("fs:stream:elsewhere", GROUP, id=ids[6], entries_read=7)
    add_many(client, 5)
    await_drained(client)
    client.delete(*client.keys("fs:v1:*"))
    client.rename("fs:stream:elsewhere", LOG)
    await_drained(client)
    assert sorted(rows(client)) == ["u7", "u8", "u9"]
    assert (figures(client)["consumed"], figures(client)["lost_entries"]) == (5 + 3, 0)


def test_the_log_in_another_database_is_none(store):
    client, elsewhere = store.client(), store.client(db=1)
    add_many(elsewhere, 10)
    with pytest.raises(valkey.ResponseError, match="database 0"):
        elsewhere.execute_command("FS.CONSUME", "profile")
    add(client, "u1", {"n": 1})
    await_drained(client)
    assert figures(client)["consumed"] == 1
    assert elsewhere.keys() == [LOG.encode()] and elsewhere.xinfo_groups(LOG) == []
