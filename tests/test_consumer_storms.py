"""Everything at once: the rows are those that any order of arrival would have given."""

import json
import random

import pytest
from profile_view import (
    DEAD_LETTERS,
    EPOCH_S,
    LOG,
    SCHEMA,
    add,
    add_many,
    await_drained,
    digests,
    figures,
    newest,
    register,
    rows,
    rows_by_entries,
)

from server import await_until


@pytest.mark.parametrize("asynchronous", [False, True])
def test_flushing_in_full_flow_leaves_rows_and_log_in_step(slow_store, asynchronous):
    client, flusher = slow_store.client(), slow_store.client()
    for _ in range(5):
        add_many(client, 4_000)
        flusher.flushall(asynchronous=asynchronous)
        add_many(client, 1_000, start=4_000)
    await_drained(client)
    assert client.xlen(LOG) == 1_000
    assert rows(client) == rows_by_entries(client)


def test_swapping_databases_back_and_forth_in_full_flow(store):
    client, elsewhere = store.client(), store.client(db=1)
    add_many(client, 3_000)
    add_many(elsewhere, 2_000, start=10_000, entities=70)
    for _ in range(11):
        client.swapdb(0, 1)
        add_many(client, 100, start=20_000)
        await_until(lambda: rows(client), what="the first rows")
    await_drained(client)
    assert rows(client) == rows_by_entries(client)
    client.swapdb(0, 1)
    await_drained(client)
    assert rows(client) == rows_by_entries(client)
    assert figures(client)["consumed"] == 3_000 + 2_000 + 11 * 100


def test_definitions_change_in_full_flow(store):
    client = store.client()
    for i in range(20):
        add_many(client, 500, start=500 * i)
        client.execute_command("FS.ALTER", "profile", "ADD", f"more_{i}", "INT")
        add(client, f"m{i}", {f"more_{i}": i}, EPOCH_S)
        if i % 5 == 4:
            client.execute_command("FS.DROP", "profile")
            schema = [*SCHEMA, *(word for j in range(i + 1) for word in (f"more_{j}", "INT"))]
            register(client, "MAXLEN", 1_000_000, schema=schema)
    await_drained(client)
    told = {f"m{i}": client.hget(f"fs:v1:profile:m{i}", f"more_{i}") for i in range(20)}
    assert told == {f"m{i}": str(i).encode() for i in range(20)}
    assert client.xlen(DEAD_LETTERS) == 0
    by_entries = {entity: row for entity, row in rows_by_entries(client).items() if entity.startswith("u")}
    assert {entity: row for entity, row in rows(client).items() if entity.startswith("u")} == by_entries


@pytest.mark.parametrize("seed", range(6))
def test_any_order_repetition_and_split_of_updates_ends_in_one_row(store, seed):
    client, chance = store.client(), random.Random(seed)
    # Rows of a consumer that was there before, written by hand.
    arrivals = [(f"u{i}", {"n": -1, "label": "by hand"}, EPOCH_S + 4) for i in range(3)]
    for entity, row, time_s in arrivals:
        own = {"_updated_at": f"{time_s}.0", "_feature_view": "profile"}
        client.hset(f"fs:v1:profile:{entity}", mapping=row | own)
    updates = []
    for i in range(400):
        drawn = {"n": chance.choice([i, None]), "score": i / 4, "label": f"l{i}"}
        features = {name: drawn[name] for name in chance.sample(sorted(drawn), chance.randint(1, 3))}
        # Few times, so that ties are common.
        updates.append((f"u{chance.randrange(6)}", features, EPOCH_S + chance.randrange(20)))
    updates += chance.sample(updates, 150)
    chance.shuffle(updates)
    add(client, *updates[-1])
    while updates:
        # Entries wait for their consumer while a publish is applied at once: who arrives later is told by the log.
        way = chance.choice(["xadd", "xadd", "publish", "mpublish", "wait"])
        some = [updates.pop() for _ in range(min(len(updates), chance.randint(1, 8)))]
        if way == "xadd":
            for update in some:
                add(client, *update)
        elif way == "publish":
            await_drained(client)
            for entity, features, time_s in some:
                key = f"fs:v1:profile:{entity}"
                client.execute_command("FS.PUBLISH", key, "AT", time_s * 1000, "JSON", json.dumps(features))
        elif way == "mpublish":
            await_drained(client)
            words = [w for e, f, t in some for w in (f"fs:v1:profile:{e}", json.dumps(f | {"_at": t * 1000}))]
            assert client.execute_command("FS.MPUBLISH", *words) == len(some)
        else:
            await_drained(client)
            updates += some
            continue
        arrivals += some
    await_drained(client)
    expected = newest(arrivals)
    assert rows(client) == expected
    # A replay from the beginning changes nothing, bit for bit.
    held = digests(client)
    client.execute_command("FS.REPLAY", "profile", "FROM", "0")
    assert digests(client) == held
