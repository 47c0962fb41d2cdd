"""Who else works on the stream: other groups, the group `fs` changed by hand, other consumers."""

import threading

import pytest
from profile_view import (
    EPOCH_S,
    GROUP,
    LOG,
    MODULE,
    add_many,
    await_drained,
    consumer,
    figures,
    register,
    rows,
    rows_by_entries,
)

from server import await_until


def test_other_groups_keep_their_own_cursors(store):
    client = store.client()
    client.xgroup_create(LOG, "feature_writers", id="0", mkstream=True)
    client.xgroup_create(LOG, "idle", id="$")
    read, stop = [], threading.Event()

    def work(name, own):
        while not stop.is_set() or own.xinfo_groups(LOG)[0]["lag"]:
            answer = own.xreadgroup("feature_writers", name, {LOG: ">"}, count=17, block=20)
            ids = [id for _, entries in answer or [] for id, _ in entries]
            read.extend(ids)
            if ids:
                own.xack(LOG, "feature_writers", *ids)

    threads = [threading.Thread(target=work, args=(f"c{i}", store.client())) for i in range(2)]
    for thread in threads:
        thread.start()
    ids = [id for start in range(0, 4_000, 500) for id in add_many(client, 500, start=start)]
    await_drained(client)
    stop.set()
    for thread in threads:
        thread.join()
    assert sorted(read) == sorted(ids)
    groups = {g["name"]: g for g in client.xinfo_groups(LOG)}
    assert set(groups) == {b"feature_writers", b"idle", b"fs"}
    assert (groups[b"feature_writers"]["pending"], groups[b"feature_writers"]["lag"]) == (0, 0)
    assert (groups[b"idle"]["lag"], groups[b"idle"]["pending"]) == (4_000, 0)
    assert (groups[b"fs"]["lag"], groups[b"fs"]["pending"]) == (0, 0)
    assert rows(client) == rows_by_entries(client)


def test_entries_from_before_the_view_was_registered_are_read_from_the_start(fresh_server):
    client = fresh_server().client()
    add_many(client, 1_000)
    client.xgroup_create(LOG, "feature_writers", id="$")
    register(client)
    await_drained(client)
    assert rows(client) == rows_by_entries(client)
    assert figures(client)["consumed"] == 1_000


def test_entries_from_before_the_module_was_loaded_are_read_from_the_start(fresh_server):
    server = fresh_server(module=None)
    client = server.client()
    # Entries 1 to 99 were trimmed by their owner before anybody here could read them: they are not lost to us.
    add_many(client, 1_000)
    client.xtrim(LOG, maxlen=901, approximate=False)
    client.hset(
        "fs:v1:profile:u1", mapping={"n": 5, "_updated_at": EPOCH_S + 5_000, "_feature_view": "profile"}
    )
    expected = rows_by_entries(client) | {"u1": {"n": 5}}
    client.execute_command("MODULE", "LOAD", MODULE)
    register(client)
    await_drained(client)
    assert rows(client) == expected
    assert (figures(client)["consumed"], figures(client)["lost_entries"]) == (901, 0)


GROUP_CHANGES = [
    (("XGROUP", "DESTROY", LOG, GROUP), 0),
    (("XGROUP", "SETID", LOG, GROUP, "0"), 5_000),
    (("XGROUP", "SETID", LOG, GROUP, "0", "ENTRIESREAD", 0), 5_000),
    (("XGROUP", "SETID", LOG, GROUP, "0", "ENTRIESREAD", 5_000), 5_000),
    (("XGROUP", "SETID", LOG, GROUP, "0", "ENTRIESREAD", 9_000), 5_000),
    (("XGROUP", "SETID", LOG, GROUP, "$"), 0),
    (("XGROUP", "CREATECONSUMER", LOG, GROUP, "somebody"), 0),
    (("XGROUP", "CREATE", LOG, "another", "0"), 0),
    (("XGROUP", "DESTROY", LOG, "another"), 0),
]


@pytest.mark.parametrize("command, again", GROUP_CHANGES)
def test_the_group_may_be_changed_by_hand(fresh_server, command, again):
    client = fresh_server().client()
    register(client)
    add_many(client, 5_000)
    await_until(lambda: figures(client)["consumed"] == 5_000, what="the first entries")
    client.execute_command(*command)
    # Entries that FS.PUBLISH applies in its call must not hide those that are still to be read.
    for i in range(100):
        client.execute_command("FS.PUBLISH", "fs:v1:profile:p", "AT", (EPOCH_S + i) * 1000, "n", i)
    add_many(client, 10, start=5_000)
    await_until(lambda: figures(client)["consumed"] >= 5_000 + again + 10, 5, what="all entries")
    await_drained(client)
    assert figures(client)["consumed"] == 5_000 + again + 10
    assert rows(client) == rows_by_entries(client)
    assert figures(client)["lost_entries"] == 0


def test_a_group_made_by_hand_decides_where_reading_begins(fresh_server):
    client = fresh_server().client()
    ids = add_many(client, 100)
    client.xgroup_create(LOG, GROUP, id=ids[59])
    register(client)
    await_until(lambda: figures(client)["lag_entries"] == 0, what="the rest")
    assert figures(client)["consumed"] == 40
    assert (figures(client)["cursor"], figures(client)["lost_entries"]) == (ids[-1], 0)
    await_drained(client)


def test_a_wrong_count_of_read_entries_hides_none(fresh_server):
    client = fresh_server().client()
    register(client)
    add_many(client, 10)
    await_drained(client)
    consumer(client, "STOP")
    add_many(client, 5_000)
    client.execute_command("XGROUP", "SETID", LOG, GROUP, "0", "ENTRIESREAD", 5_010)
    consumer(client, "START")
    for _ in range(3):
        # Each makes the consumer look anew.
        consumer(client, "STOP")
        consumer(client, "START")
        client.execute_command("FS.PUBLISH", "fs:v1:profile:p", "AT", EPOCH_S * 1000, "n", 0)
    await_until(lambda: figures(client)["consumed"] == 10 + 5_010, 5, what="all entries")
    await_drained(client)
    assert rows(client) == rows_by_entries(client)
