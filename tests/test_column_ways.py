"""Each way in which a row can change, one by one: the column cache notices it at once, on a replica as well.

A row is read until the cache answers, one thing is done, and it is read again: through the cache, without it, and with
FS.GET. Whether the answer is another one then stands in the tables, so that a case that does nothing fails.
"""

import contextlib
import json

import pytest
import valkey
from column_cases import IDS, LASTING, SERVICES, check_reading, code, define, figures, row_key
from column_changes import SOURCES, Changes
from profile_view import await_drained
from windowed_view import clock_ms

from server import await_until

ROW, OTHER = IDS[1], IDS[2]
IDS_READ = [ROW, OTHER]
FIRST = {"a": 5, "f": 0.5, "b": True, "c": "y", "v": [1, 2, 3], "t": 1_700_000_000_000, "n": 1}
SECOND = {"a": 7, "f": 0.75, "b": False, "c": "x", "v": [4, 5, 6], "t": 1_600_000_000_000, "n": 1}
ALL = "a f b c v t s _updated_at _times _feature_view"
# Of the row `K`, another one `J`, its window state `wK`. `dump`, `string`: what J was. `soon`: a moment from now.
CHANGING = """
DEL K
UNLINK K
RENAME J K
RENAME K elsewhere
RENAMENX K elsewhere
COPY J K REPLACE
SELECT 1|DEL K|SELECT 0|MOVE K 1
RESTORE K 0 dump REPLACE
RESTORE K far dump REPLACE ABSTTL
RESTORE K 0 dump REPLACE IDLETIME 5
EXPIRE K -1
EXPIREAT K 1
PEXPIRE K -1
PEXPIREAT K 1
SET K string
SET K string KEEPTTL
SET K string XX
SETEX K 100 string
PSETEX K 10000 string
GETSET K string
GETDEL K
MSET K string
SETRANGE K 0 junk
SETBIT K 0 1
BITFIELD K SET u8 0 77
BITOP OR K j J
BITOP AND K J nothing
BITOP NOT K J
HSET K a 9
HMSET K a 9 c z
HDEL K a
HDEL K ALL
HINCRBY K a 1
HINCRBYFLOAT K f 0.25
HSET K _updated_at 1
HSET K a junk
HSET K c none
HSETNX K f 9|HDEL K f|HSETNX K f 9
HSETEX K EX 100 FIELDS 1 a 9
HSETEX K KEEPTTL FIELDS 1 a 9
HSETEX K FXX FIELDS 1 a 9
HGETDEL K FIELDS 1 a
HEXPIRE K 0 FIELDS 1 a
HPEXPIRE K 0 FIELDS 2 a f
HEXPIREAT K 1 FIELDS 1 a
HPEXPIREAT K 1 FIELDS 1 a
HGETEX K PXAT 1 FIELDS 1 a
SUNIONSTORE K set
SINTERSTORE K set
SDIFFSTORE K set
SINTERSTORE K set nothing
ZUNIONSTORE K 1 zset
ZINTERSTORE K 1 zset
ZDIFFSTORE K 1 zset
ZUNIONSTORE K 1 nothing
ZRANGESTORE K zset 0 -1
SORT l STORE K
SORT nothing STORE K
GEOSEARCHSTORE K geo FROMMEMBER a BYRADIUS 500 km ASC
GEORADIUS geo 15 37 500 km STORE K
GEORADIUSBYMEMBER geo a 500 km STOREDIST K
RENAME set K
COPY zset K REPLACE
DEL K|LPUSH K x
DEL K|XADD K * f v
SELECT 1|RENAME J K|COPY K K DB 0 REPLACE|SELECT 0
SELECT 1|RENAME J K|SELECT 0|DEL K|SELECT 1|MOVE K 0|SELECT 0
FLUSHDB
FLUSHALL
FLUSHDB ASYNC
FLUSHALL ASYNC
SWAPDB 0 1
SWAPDB 1 0
SWAPDB 0 1|SWAPDB 0 2
DEL wK
FS.DEL K
FS.DEL J K
FS.PUBLISH K a 9
FS.PUBLISH K NOLOG a 9 c z
FS.PUBLISH K JSON {"a":null}
FS.PUBLISH K JSON {"v":[7,8,9],"n":1}
FS.PUBLISH K n 1
FS.MPUBLISH J {"a":9} K {"f":9}
FS.DEL K|FS.PUBLISH K a 9
""".strip().splitlines()
KEEPING = """
TOUCH K
PERSIST K
EXPIRE K 100
PEXPIREAT K far
RENAME K elsewhere|RENAME elsewhere K
MOVE K 1|SELECT 1|MOVE K 0|SELECT 0
COPY J K
RENAMENX J K
SWAPDB 0 1|SWAPDB 0 1
SWAPDB 1 2
SELECT 1|FLUSHDB|SELECT 0
SELECT 1|DEL K|SELECT 0
GETEX K PX 100000
GETEX K PERSIST
HPEXPIRE K 100000 FIELDS 2 a f
HPEXPIRE K 100000 FIELDS 2 a f|HPERSIST K FIELDS 2 a f
HGETEX K PX 100000 FIELDS 1 a
HSETEX K FNX FIELDS 1 a 9
HSET K others 1
HDEL K others
SET K string NX
FS.PUBLISH K AT past a 9
FS.PUBLISH K s text
""".strip().splitlines()
# After a moment nothing but the clock tells.
EXPIRING = """
PEXPIRE K ms
PEXPIREAT K soon
GETEX K PX ms
RESTORE K ms dump REPLACE
RESTORE K soon dump REPLACE ABSTTL
SET K string PX ms
SET K string PXAT soon
PSETEX K ms string
HPEXPIRE K ms FIELDS 1 a
HPEXPIREAT K soon FIELDS 2 f v
HSETEX K PX ms FIELDS 1 a 9
HSETEX K PXAT soon FIELDS 1 a 9
HGETEX K PX ms FIELDS 1 a
SELECT 1|RENAME J K|PEXPIRE K ms|SELECT 0|DEL K|SELECT 1|MOVE K 0|SELECT 0
PEXPIRE J ms|COPY J K REPLACE
PEXPIRE J ms|RENAME J K
HPEXPIRE J ms FIELDS 1 a|COPY J K REPLACE
HPEXPIRE J ms FIELDS 1 a|RENAME J K
HPEXPIRE K ms FIELDS 1 a|SWAPDB 0 1|SWAPDB 0 1
HPEXPIRE K ms FIELDS 1 a|SELECT 1|DEL K|SELECT 0|MOVE K 1|SELECT 1|MOVE K 0|SELECT 0
SELECT 1|HPEXPIRE K ms FIELDS 1 a|SELECT 0|SWAPDB 0 1
SELECT 1|HPEXPIRE K ms FIELDS 1 a|COPY K J DB 0 REPLACE|SELECT 0
RESTORE K 0 volatile REPLACE
HPEXPIRE J ms FIELDS 1 a|HPEXPIRE K ms FIELDS 1 a|DEL J
HPEXPIRE K ms FIELDS 1 a|DEBUG RELOAD
""".strip().splitlines()
SOON_MS = 60


@pytest.fixture(scope="module")
def pair(module_server):
    """A server whose keys expire only when they are looked at, and its replica, with the views."""
    replica = module_server.replica()
    for server in (module_server, replica):
        server.client().execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    client = module_server.client()
    define(client, views=LASTING)
    Changes(module_server, None)
    return module_server, replica


class Case:
    """A row of a view, `h` for hashes and `p` for packed ones, and one thing that is done to it."""

    def __init__(self, pair, line: str, view: str):
        self.primary, self.replica = pair
        self.client = self.primary.client()
        self.client.response_callbacks.clear()
        self.line, self.key, self.other = line, row_key(f"{view}@1", ROW), row_key(f"{view}@1", OTHER)
        self.client.execute_command("FLUSHALL")
        for database in (0, 1):
            with self.client.pipeline(transaction=False) as pipeline:
                pipeline.execute_command("SELECT", database)
                for name in ("h", "p"):
                    pipeline.execute_command(
                        "FS.PUBLISH", row_key(f"{name}@1", ROW), "JSON", json.dumps(FIRST)
                    )
                    pipeline.execute_command(
                        "FS.PUBLISH", row_key(f"{name}@1", OTHER), "JSON", json.dumps(SECOND)
                    )
                for source in SOURCES.values():
                    pipeline.execute_command(*source)
                pipeline.execute_command("SELECT", 0)
                pipeline.execute(raise_on_error=database == 0)
        # Rows are published in database 0 alone; another one has plain copies of the second row.
        for key in (self.key, self.other):
            self.client.execute_command("COPY", self.other, key, "DB", 1, "REPLACE")
        self.primary.await_replicated(self.replica)

    def calls(self) -> list[list]:
        words = {
            "K": self.key,
            "J": self.other,
            "wK": self.key.replace(b"fs:v", b"fs:w", 1),
            "dump": self.client.execute_command("DUMP", self.other),
            "string": self.string(),
            "far": clock_ms(self.primary.client()) + 3_600_000,
            "soon": clock_ms(self.primary.client()) + SOON_MS,
            "past": clock_ms(self.primary.client()) - 60_000,
            "ms": SOON_MS,
        }
        if "volatile" in self.line:
            with contextlib.suppress(valkey.ResponseError):
                self.client.execute_command("HPEXPIREAT", self.other, words["soon"], "FIELDS", 1, "a")
            words["volatile"] = self.client.execute_command("DUMP", self.other)
        calls = [
            call.replace("ALL", ALL) if call.startswith("HDEL") else call for call in self.line.split("|")
        ]
        return [[words.get(word, word) for word in call.split()] for call in calls]

    def string(self) -> bytes:
        try:
            return self.client.execute_command("GET", self.other)
        except valkey.ResponseError:
            return b"junk"

    def answers(self, server) -> list:
        client = server.client()
        client.response_callbacks.clear()
        with client.pipeline(transaction=True) as pipeline:
            for service in SERVICES:
                pipeline.execute_command(*service.reading(IDS_READ))
            return list(map(repr, pipeline.execute(raise_on_error=False)))

    def prime(self) -> list:
        """Reads until the cache answers wherever there is a row, on both servers."""
        for server in (self.primary, self.replica):
            self.answers(server)
            before = figures(server)
            told = self.answers(server)
            after = figures(server)
            # Two rows of each of five parts, and the one that is ranked for; two of each of three are not there.
            assert (after["hits"] - before["hits"], after["misses"] - before["misses"]) == (11, 6)
        return told

    def do(self, way: str) -> bool:
        """Does it, and checks what is read then. True: it was not refused."""
        calls, bare = self.calls(), self.client
        is_done = True
        if way == "transaction":
            check_reading(bare, IDS_READ, first=calls)
        elif way == "script":
            lengths = " ".join(str(len(call)) for call in calls)
            bare.execute_command(
                "EVAL", Changes.SCRIPT, 0, lengths, *(word for call in calls for word in call)
            )
        else:
            with bare.pipeline(transaction=False) as pipeline:
                for call in calls:
                    pipeline.execute_command(*call)
                replies = pipeline.execute(raise_on_error=False)
            is_done = not any(map(code, replies))
        check_reading(bare, IDS_READ)
        self.primary.await_replicated(self.replica)
        check_reading(self.replica.client(), IDS_READ)
        return is_done


def require(pair, line: str) -> None:
    """Skips a case of commands that the server does not have: those of fields that expire."""
    names = {call.split()[0] for call in line.split("|")}
    names |= {"HPEXPIREAT"} if "volatile" in line else set()
    known = {name.decode().upper() for name in pair[0].client().execute_command("COMMAND LIST")}
    missing = names - known
    is_older = pair[0].version < (9, 1) and all(name.startswith("H") for name in missing)
    assert not missing or is_older, missing
    if missing:
        pytest.skip(f"this server has no {', '.join(sorted(missing))}")


def outcome(pair, line: str, way: str) -> tuple[bool, bool]:
    """Was it done to a row of any kind, and is the answer another one?"""
    done = changed = False
    for view in ("h", "p"):
        case = Case(pair, line, view)
        before = case.prime()
        done |= case.do(way)
        changed |= case.answers(pair[0]) != before
    return done, changed


@pytest.mark.parametrize("line", CHANGING)
def test_what_changes_a_row_is_noticed_at_once(pair, line):
    require(pair, line)
    for way in ("plain", "transaction", "script"):
        assert outcome(pair, line, way) == (True, True), (line, way)


@pytest.mark.parametrize("line", KEEPING)
def test_what_changes_no_value_changes_no_answer(pair, line):
    require(pair, line)
    for way in ("plain", "transaction", "script"):
        assert outcome(pair, line, way) == (True, False), (line, way)


def await_passed(server, time_ms: int) -> None:
    client = server.client()
    await_until(lambda: clock_ms(client) > time_ms, what="the moment to pass")


@pytest.mark.parametrize("line", EXPIRING)
def test_what_the_clock_takes_is_not_answered_any_more(pair, line):
    require(pair, line)
    changed = False
    for view in ("h", "p"):
        case = Case(pair, line, view)
        before = case.prime()
        case.do("plain")
        due_ms = clock_ms(pair[0].client()) + SOON_MS
        for server in pair:
            await_passed(server, due_ms)
            check_reading(server.client(), IDS_READ)
        changed |= case.answers(pair[0]) != before
    assert changed


# Our own changes


def misses(server) -> int:
    return figures(server)["misses"]


OWN = """
FS.PUBLISH K a 9
FS.PUBLISH K NOLOG f 9 b true c z v 7,8,9 t 1700000000001
FS.PUBLISH K JSON {"a":null,"c":null,"v":null}
FS.PUBLISH K AT past a 9
FS.MPUBLISH J {"a":9,"n":1} K {"f":9}
""".strip().splitlines()


@pytest.mark.parametrize("line", OWN)
def test_a_row_that_the_store_itself_changes_stays_in_the_cache(pair, line):
    for view in ("h", "p"):
        for way in ("plain", "transaction", "script"):
            case = Case(pair, line, view)
            case.prime()
            before = [figures(server) for server in pair]
            assert case.do(way)
            for server, known in zip(pair, before, strict=True):
                told = figures(server)
                assert (told["forgotten"], told["rows"]) == (known["forgotten"], known["rows"]), (
                    line,
                    view,
                    way,
                )
                case.answers(server)
                # Only the six that are not there.
                assert misses(server) - told["misses"] == 6


@pytest.mark.parametrize("view", ["h", "p"])
def test_what_the_consumer_and_a_replay_write_is_answered_at_once(pair, view):
    case = Case(pair, "", view)
    primary, replica = pair
    case.prime()
    log = f"fs:stream:{view}"
    before = figures(primary)
    for i in range(20):
        entry = {"entity_id": ROW, "features": json.dumps({"a": i, "f": i / 4, "n": 1})}
        case.client.execute_command("XADD", log, "*", *(word for pair_ in entry.items() for word in pair_))
        check_reading(case.client, IDS_READ)
    client = primary.client()
    await_drained(client, log)
    assert client.execute_command("FS.GET", case.key, "a")[1] == 19
    check_reading(client, IDS_READ)
    assert figures(primary)["forgotten"] == before["forgotten"]
    # What was deleted comes back from the log.
    client.delete(case.key)
    check_reading(client, IDS_READ)
    client.execute_command("FS.REPLAY", view, "FROM", 0, "VERSION", 1)
    await_until(lambda: client.exists(case.key), what="the row to come back")
    await_until(lambda: primary.info("fs")["fs_replays"] == 0)
    check_reading(client, IDS_READ)
    primary.await_replicated(replica)
    check_reading(replica.client(), IDS_READ)
