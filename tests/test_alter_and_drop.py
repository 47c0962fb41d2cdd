"""FS.ALTER changes what may change in place, FS.DROP takes a version or all of it."""

import pytest
from test_definitions import (
    FULL,
    LETTERS,
    LOG,
    ROW,
    as_map,
    await_dropped,
    describe,
    document,
    fs,
    refused,
    views,
)

from server import await_until

# FS.ALTER


def test_what_may_change_in_place_changes(client):
    fs(client, "FS.REGISTER profile VERSION 2 ENTITY user TTL 7d SCHEMA age INT TTL 1h")
    fs(client, "FS.REGISTER profile ENTITY user SCHEMA age INT")
    expected, older = describe(client), document(client, "profile VERSION 1")
    off, on = (0, 1) if isinstance(expected["log"], int) else (False, True)
    for words, changes in [
        ("TTL 8d", {"ttl_ms": 8 * 86_400_000}),
        ("TTL NONE", {"ttl_ms": None}),
        ("TTL 1h", {"ttl_ms": 3_600_000}),
        ("LOG OFF", {"log": off}),
        ("LOG ON", {"log": on}),
        ("MAXLEN 5", {"maxlen": 5}),
        ("CONSUMER OFF", {"consumer": off}),
        ("EXTRA IGNORE", {"extra": b"ignore"}),
        ("EXTRA REFUSE", {"extra": b"refuse"}),
        ("DESCRIPTION new", {"description": b"new"}),
        ("ttl none log off maxlen 7", {"ttl_ms": None, "log": off, "maxlen": 7}),
    ]:
        expected |= changes
        assert fs(client, f"FS.ALTER profile {words}") == b"OK"
        assert describe(client) == expected, words
        assert fs(client, f"FS.ALTER profile VERSION 2 {words}") == b"OK"
        assert describe(client) == expected, words
    assert document(client, "profile VERSION 1") == older
    fs(client, "FS.ALTER profile VERSION 1 MAXLEN 9")
    assert (describe(client), describe(client, "profile VERSION 1")["maxlen"]) == (expected, 9)


@pytest.mark.parametrize("storage", ["HASH", "PACKED"])
def test_added_features_come_last_and_serve_their_defaults_at_once(client, storage):
    fs(client, f"FS.REGISTER profile ENTITY user STORAGE {storage} SCHEMA age INT name STRING")
    fs(client, f"FS.PUBLISH {ROW} age 5 name x")
    more = "ADD score FLOAT DEFAULT 0.5 MIN 0 ADD plan STRING VALUES 2 free pro TTL 1d ADD raw INT INPUT"
    fs(client, f"FS.ALTER profile {more}")
    assert fs(client, f"FS.GET {ROW}") == [b"age", 5, b"name", b"x", b"score", b"0.5", b"plan", None]
    assert refused(client, "SCHEMA", f"FS.PUBLISH {ROW} score -1")
    fs(client, f"FS.PUBLISH {ROW} score 1 plan pro raw 5")
    assert fs(client, f"FS.MGET * {ROW}") == [[5, b"x", b"1", b"pro"]]
    words = (
        "age INT name STRING score FLOAT DEFAULT 0.5 MIN 0 plan STRING VALUES 2 free pro TTL 1d raw INT INPUT"
    )
    assert fs(client, f"FS.REGISTER profile ENTITY user STORAGE {storage} SCHEMA {words}") == b"OK"
    client.xadd(LOG, {"entity_id": "u2", "features": '{"score":2}'})
    await_until(lambda: client.exists("fs:v1:profile:u2"), what="the new feature to be consumed")
    assert fs(client, "FS.GET fs:v1:profile:u2 score") == [b"score", b"2"]


BAD_ALTERATIONS = """
VERSION 1
ENTITY item
VERSION 2 TTL 1h
SCHEMA more INT
STORAGE HASH
STORAGE PACKED
DROP age
RENAME age years
ADD
ADD more
ADD age INT
ADD age FLOAT
ADD more WORD
ADD more INT DEFAULT x
ADD more INT TTL 8d
ADD more VECTOR
ADD more INT AGG COUNT
ADD more FLOAT AGG COUNT WINDOW 1d
ADD more FLOAT AGG SUM nobody WINDOW 1d
ADD more INT ADD more INT
TTL
TTL 0
TTL 1h
LOG
LOG MAYBE
MAXLEN 0
MAXLEN x
DEDUP 1h
CONSUMER PAUSE
EXTRA DROP
DESCRIPTION
MAXLEN 5 TTL x
ADD more INT NONSENSE
JSON {}
"""


def test_what_is_fixed_needs_a_new_version(client):
    fs(client, f"FS.REGISTER profile {FULL}")
    told = document(client)
    for words in BAD_ALTERATIONS.strip("\n").split("\n"):
        refused(client, "NOVIEW" if "VERSION 2" in words else "ERR", f"FS.ALTER profile {words}")
        assert document(client) == told, words
    refused(client, "NOVIEW", "FS.ALTER nobody TTL 1h")


def test_the_definition_as_altered_is_the_same_definition(client):
    fs(client, "FS.REGISTER profile ENTITY user TTL 1h SCHEMA age INT")
    for alteration, words in [
        ("TTL NONE", "ENTITY user SCHEMA age INT"),
        ("TTL 2h", "ENTITY user TTL 2h SCHEMA age INT"),
        ("TTL NONE LOG OFF", "ENTITY user LOG OFF SCHEMA age INT"),
        ("LOG ON MAXLEN 5 EXTRA IGNORE", "ENTITY user MAXLEN 5 EXTRA IGNORE SCHEMA age INT"),
        ("DESCRIPTION x", "ENTITY user MAXLEN 5 EXTRA IGNORE DESCRIPTION x SCHEMA age INT"),
        ("DESCRIPTION", "ENTITY user MAXLEN 5 EXTRA IGNORE SCHEMA age INT"),
    ]:
        fs(client, f"FS.ALTER profile {alteration}", *([""] if alteration == "DESCRIPTION" else []))
        assert fs(client, f"FS.REGISTER profile {words}") == b"OK", alteration
        refused(client, "VIEWEXISTS", f"FS.REGISTER profile {words} name STRING")


# FS.DROP


def furnish(client) -> None:
    """Two versions with rows, a log and dead letters, and neighbours with similar names."""
    for view in ("profile", "profile VERSION 2", "profile2"):
        fs(client, f"FS.REGISTER {view} ENTITY user SCHEMA age INT")
    for key in ("fs:v1:profile:u1", "fs:v2:profile:u1", "fs:v2:profile:*", "fs:v1:profile2:u1"):
        fs(client, f"FS.PUBLISH {key} age 1")
    client.xadd(LOG, {"entity_id": "u1", "features": "x"})
    await_until(lambda: client.exists(LETTERS), what="the dead letter")
    for key in (
        "fs:v11:profile:u1",
        "fs:v1:profil:u1",
        "fs:v1:profile",
        "xfs:v1:profile:u1",
        "fs:stream:profile:x",
    ):
        client.set(key, "x")


def test_packed_rows_go_with_their_version_too(client):
    fs(client, "FS.REGISTER profile ENTITY user SCHEMA age INT")
    fs(client, "FS.REGISTER profile VERSION 2 ENTITY user STORAGE PACKED SCHEMA age INT")
    for version in (1, 2):
        fs(client, f"FS.PUBLISH fs:v{version}:profile:u1 age 5")
    assert fs(client, "FS.DROP profile VERSION 2") == b"OK"
    assert client.type("fs:v2:profile:u1") == b"string"
    fs(
        client,
        "FS.REGISTER profile VERSION 2 ENTITY user STORAGE PACKED SCHEMA age INT name STRING DEFAULT x",
    )
    assert fs(client, "FS.GET fs:v2:profile:u1") == [b"age", 5, b"name", b"x"]
    assert fs(client, "FS.DROP profile VERSION 2 DATA") == b"OK"
    await_dropped(client)
    assert sorted(client.keys("fs:v*")) == [b"fs:v1:profile:u1"]


def test_dropping_leaves_the_data_unless_it_is_asked_for(client):
    furnish(client)
    before = sorted(client.keys())
    assert fs(client, "FS.DROP profile VERSION 2") == b"OK"
    assert views(client) == [[b"profile", b"user", [1]], [b"profile2", b"user", [1]]]
    refused(client, "NOVIEW", "FS.GET fs:v2:profile:u1")
    assert fs(client, f"FS.GET {ROW}") == [b"age", 1]
    assert fs(client, "FS.DROP profile") == b"OK"
    assert views(client) == [[b"profile2", b"user", [1]]]
    assert sorted(client.keys()) == before
    # The rows are read under whatever is registered next.
    fs(client, "FS.REGISTER profile VERSION 2 ENTITY item SCHEMA age FLOAT name STRING DEFAULT x")
    assert fs(client, "FS.GET fs:v2:profile:u1") == [b"age", b"1", b"name", b"x"]
    for line in ("nobody", "profile VERSION 7", "profile VERSION 7 DATA"):
        refused(client, "NOVIEW", f"FS.DROP {line}")
    for line in ("profile DATA VERSION 2", "profile NOW", "profile VERSION", "profile VERSION x"):
        refused(client, "ERR", f"FS.DROP {line}")
    assert [view for view, *_ in views(client)] == [b"profile", b"profile2"]


def test_dropping_with_data_takes_exactly_what_the_version_stored(client):
    furnish(client)
    before = set(client.keys())
    assert fs(client, "FS.DROP profile VERSION 2 DATA") == b"OK"
    await_dropped(client)
    # The log is that of all versions: it goes with the last one.
    assert before - set(client.keys()) == {b"fs:v2:profile:u1", b"fs:v2:profile:*"}
    assert fs(client, "FS.DROP profile DATA") == b"OK"
    await_dropped(client)
    assert before - set(client.keys()) == {
        *(b"fs:v2:profile:u1", b"fs:v2:profile:*", b"fs:v1:profile:u1"),
        *(LOG.encode(), LETTERS.encode()),
    }
    fs(client, "FS.REGISTER profile ENTITY user SCHEMA age INT")
    assert fs(client, f"FS.GET {ROW}") == [b"age", None]


def test_a_name_is_busy_until_its_data_is_gone(fresh_server):
    client = fresh_server({"fs.consumer-slice-us": 50}).client()
    for version in (1, 2):
        fs(client, f"FS.REGISTER profile VERSION {version} ENTITY user SCHEMA age INT")
    pipeline = client.pipeline(transaction=False)
    for i in range(30_000):
        pipeline.execute_command("FS.PUBLISH", f"fs:v{1 + i % 2}:profile:u{i}", "NOLOG", "age", 1)
    pipeline.execute()
    with client.pipeline() as transaction:
        # Inside MULTI the background does not come in between.
        fs(transaction, "FS.DROP profile VERSION 1 DATA")
        fs(transaction, "FS.REGISTER profile ENTITY user SCHEMA age INT")
        fs(transaction, "FS.REGISTER profile VERSION 3 ENTITY user SCHEMA age INT")
        fs(transaction, "FS.PUBLISH fs:v2:profile:new age 5")
        fs(transaction, "FS.INFO")
        dropped, busy, other, published, told = transaction.execute(raise_on_error=False)
    assert (dropped, other, as_map(told)["dropping"]) == (b"OK", b"OK", 1)
    assert isinstance(published, bytes)
    assert str(busy).startswith("BUSY ") and "'profile'" in str(busy)
    with client.pipeline() as transaction:
        fs(transaction, "FS.DROP profile DATA")
        for version in (1, 2, 3, 4):
            fs(transaction, f"FS.REGISTER profile VERSION {version} ENTITY user SCHEMA age INT")
        dropped, *busy = transaction.execute(raise_on_error=False)
    assert dropped == b"OK"
    assert all(str(refusal).startswith("BUSY ") for refusal in busy), busy
    await_dropped(client)
    assert client.keys("fs:*") == []
    assert fs(client, "FS.REGISTER profile ENTITY user SCHEMA age INT") == b"OK"


def test_definitions_outlive_flushall_and_go_through_transactions_and_scripts(client):
    client.eval("return redis.call('FS.REGISTER', 'profile', 'ENTITY', 'user', 'SCHEMA', 'age', 'INT')", 0)
    with client.pipeline() as transaction:
        fs(transaction, "FS.ALTER profile ADD name STRING DEFAULT x")
        transaction.execute_command("FS.PUBLISH", ROW, "age", 1)
        transaction.execute_command("FS.GET", ROW)
        transaction.flushall()
        transaction.execute_command("FS.GET", ROW)
        _, _, full, _, empty = transaction.execute()
    assert (full, empty) == ([b"age", 1, b"name", b"x"], [b"age", None, b"name", b"x"])
    assert views(client) == [[b"profile", b"user", [1]]]
