"""Calls around drift: which of them feed a window, and FS.DRIFT itself, which waits for a thread while others go on."""

import contextlib
import math
import os
import random
import select
import shutil
import subprocess
from pathlib import Path

import pytest
import valkey
from profile_view import LOG, await_drained, entry, module_figures
from test_drift_state import (
    ROW,
    SCHEMA,
    all_arrivals,
    arrivals,
    assert_drifts_the_same,
    define,
    drift,
    everything_drifts,
    publish_rows,
    register_watched,
    traffic,
    typed,
)
from test_permissions import user
from test_window_state import clock_ms, fs, valkey_in_database

from server import Server, await_until, required_file

OTHER = "fs:v1:profile:u2"
HOUR_MS = 3_600_000
PLACES = [required_file("VALKEY_SERVER").parent, *Path(__file__).parents[1].glob(".tools/server-*/bin")]
CLI = shutil.which("valkey-cli") or shutil.which("valkey-cli", path=os.pathsep.join(map(str, PLACES)))


# What feeds a window


# Calls, and what they add to each window: values, and arrivals without. What is not named gets nothing.
PUBLISHED = {
    "a part of the row": ([f"FS.PUBLISH {ROW} n 1"], {"n": (1, 0), "x": (0, 1)}),
    "inputs alone": ([f"FS.PUBLISH {ROW} part 1"], {"part": (1, 0), "kind": (0, 1)}),
    "both": (
        [f"FS.PUBLISH {ROW} kind a x 1"],
        {"n": (0, 1), "x": (1, 0), "part": (0, 1), "kind": (1, 0)},
    ),
    "a null": ([f'FS.PUBLISH {ROW} JSON {{"n":null,"x":1}}'], {"n": (0, 1), "x": (1, 0)}),
    "a null alone": ([f'FS.PUBLISH {ROW} JSON {{"n":null}}'], {"n": (0, 1), "x": (0, 1)}),
    "without a log's entry": ([f"FS.PUBLISH {ROW} NOLOG n 1"], {"n": (1, 0), "x": (0, 1)}),
    "many rows": (
        [f'FS.MPUBLISH {ROW} {{"n":1}} {OTHER} {{"n":2,"x":3}} {ROW} {{"part":4}}'],
        {"n": (2, 0), "x": (1, 1), "part": (1, 0), "kind": (0, 1)},
    ),
    "an earlier event time": (
        [f"FS.PUBLISH {ROW} n 1", f"FS.PUBLISH {ROW} AT {{past}} n 2", f"FS.PUBLISH {ROW} AT {{past}} n 2"],
        {"n": (3, 0), "x": (0, 3)},
    ),
    "an event again": (
        [f"FS.PUBLISH {ROW} EVENT e n 1 part 1"] * 3 + [f"FS.PUBLISH {OTHER} EVENT e n 1"],
        {"n": (2, 0), "x": (0, 2), "part": (1, 0), "kind": (0, 1)},
    ),
    "entries": (
        [
            f'XADD {LOG} * entity_id u1 features {{"n":1,"part":2}}',
            f'XADD {LOG} * entity_id u1 event_id e features {{"x":1}}',
            f'XADD {LOG} * entity_id u1 event_id e features {{"x":1}}',
        ],
        {"n": (1, 1), "x": (1, 1), "part": (1, 0), "kind": (0, 1)},
    ),
    "entries that are none": (
        [
            f'XADD {LOG} * entity_id u1 features {{"n":"none"}}',
            f'XADD {LOG} * features {{"n":1}}',
            f"XADD {LOG} * entity_id u1 features x",
        ],
        {},
    ),
    "refused": (
        [
            f"FS.PUBLISH {ROW} x 1 n none",
            f"FS.PUBLISH {ROW} unknown 1",
            f"FS.PUBLISH {ROW} AT {{future}} n 1",
            f'FS.MPUBLISH {OTHER} {{"n":1}} {ROW} {{"n":"none"}}',
            f'FS.MPUBLISH {OTHER} {{"n":1}} {ROW} {{"n":1,"_at":{{future}}}}',
        ],
        {},
    ),
    "a replay": (
        [f"FS.PUBLISH {ROW} n 1 part 1", "FS.REPLAY profile FROM 0", "FS.REPLAY profile FROM 0 WINDOWS"],
        {"n": (1, 0), "x": (0, 1), "part": (1, 0), "kind": (0, 1)},
    ),
    "native writes": ([f"HSET {ROW} n 1", f"HDEL {ROW} n", f"FS.DEL {ROW}", f"DEL {ROW}"], {}),
    "reads of what is sampled as published": (
        [f"FS.PUBLISH {ROW} n 1", f"FS.GET {ROW} n x", f"FS.MGET n,x {ROW} {ROW}", f"FS.TENSOR n,x {ROW}"],
        {"n": (1, 0), "x": (0, 1)},
    ),
    "reads of a window": (
        [f"FS.GET {ROW}", f"FS.GET {ROW} c", f"FS.MGET c,n {ROW} {OTHER}", f"FS.TENSOR c {OTHER}"],
        {"c": (5, 0)},
    ),
    "reads that are not sampled": (
        [f"FS.GET {ROW} AT {{now}}", f"FS.EXPLAIN {ROW}", f"FS.GET {ROW} none"],
        {},
    ),
}
SERVED = {
    "a row": ([f"FS.GET {ROW}"], {"n": (1, 0), "x": (0, 1), "d": (0, 1), "old": (0, 1), "c": (1, 0)}),
    "what was asked for": ([f"FS.GET {ROW} n", f"FS.GET {ROW} WITHSTATUS x"], {"n": (1, 0), "x": (0, 1)}),
    "many rows": (
        [f"FS.MGET n,x {ROW} {OTHER} {ROW}", f"FS.TENSOR n {ROW} {ROW}", f"FS.MGET * {ROW}"],
        {"n": (5, 1), "x": (0, 4), "d": (0, 1), "old": (0, 1), "c": (1, 0)},
    ),
    "no row": ([f"FS.GET {OTHER} n d"], {"n": (0, 1), "d": (0, 1)}),
    "a default": ([f"FS.GET {ROW} d"], {"d": (0, 1)}),
    "a value that is too old": ([f"FS.GET {ROW} old"], {"old": (0, 1)}),
    "a value that is none": ([f"HSET {ROW} n none", f"FS.GET {ROW} n"], {"n": (0, 1)}),
    "what is published": (
        [f"FS.PUBLISH {ROW} n 1 part 2", f'XADD {LOG} * entity_id u1 features {{"n":1}}'],
        {},
    ),
    "reads that are not sampled": (
        [f"FS.GET {ROW} AT {{now}} n", f"FS.EXPLAIN {ROW}", f"FS.GET {ROW} none", "FS.SCAN profile 0"],
        {},
    ),
    "in a script": ([f"EVAL return(redis.call('FS.GET','{ROW}','n')) 0"], {"n": (1, 0)}),
}


def run(client, lines: list[str]) -> None:
    """Runs the calls, whatever they answer, and waits for the consumer."""
    now_ms = clock_ms(client)
    times = {"now": now_ms, "past": now_ms - 60_000, "future": now_ms + HOUR_MS}
    for line in lines:
        for name, ms in times.items():
            line = line.replace(f"{{{name}}}", str(ms))
        with contextlib.suppress(valkey.ResponseError):
            client.execute_command(*line.split())
    if any(line.startswith("XADD") for line in lines):
        await_drained(client)


@pytest.mark.parametrize("case", PUBLISHED)
def test_a_window_of_publishes_takes_in(server, case):
    client = typed(server)
    register_watched(client, "DEDUP", "1h")
    lines, expected = PUBLISHED[case]
    run(server.client(), lines)
    if "refused" in case:
        assert not client.exists(ROW)
    nothing = dict.fromkeys(("n", "x", "part", "kind", "c"), (0, 0))
    assert all_arrivals(client) == nothing | expected


@pytest.mark.parametrize("case", SERVED)
def test_a_window_of_what_is_served_takes_in(server, case):
    client = typed(server)
    schema = "n INT x FLOAT d INT DEFAULT 5 old INT TTL 1m part FLOAT INPUT c INT AGG COUNT part WINDOW 1h"
    register_watched(client, "SAMPLE", "1", "ON", "SERVE", schema=schema)
    now_ms = clock_ms(client)
    fs(client, f"FS.PUBLISH {ROW} AT {now_ms - HOUR_MS} n 1 old 1")
    lines, expected = SERVED[case]
    run(server.client(), lines)
    features = "n x d old c"
    assert all_arrivals(client, features) == dict.fromkeys(features.split(), (0, 0)) | expected


def test_each_version_hears_of_its_own_arrivals(server):
    client = typed(server)
    for version in (1, 2, 3):
        fs(client, f"FS.REGISTER profile VERSION {version} ENTITY user SCHEMA n INT x FLOAT")
        fs(client, f"FS.BASELINE profile VERSION {version} n STATS mean 1 stddev 1")
    fs(client, "FS.ALTER profile VERSION 3 CONSUMER OFF")
    client.xadd(LOG, entry("u1", {"n": 1}))
    await_drained(server.client())
    fs(client, f"FS.PUBLISH {ROW} x 1")
    told = [arrivals(client, "n", "profile", "VERSION", version) for version in (1, 2, 3)]
    assert told == [(1, 1), (1, 0), (0, 0)]
    fs(client, "FS.BASELINE profile VERSION 1 n CLEAR CURRENT")
    told = [arrivals(client, "n", "profile", "VERSION", version) for version in (1, 2, 3)]
    assert told == [(0, 0), (1, 0), (0, 0)]


def test_another_place_of_sampling_empties_the_windows_that_it_concerns(fresh_server):
    primary = fresh_server()
    replica = primary.replica({"repl-diskless-load": "on-empty-db"})
    client = typed(primary)
    register_watched(client)
    none = (0, 0)

    def some():
        fs(client, f"FS.PUBLISH {ROW} n 1 part 1")
        fs(client, f"FS.GET {ROW}")

    some()
    expected = {"n": (1, 0), "x": (0, 1), "part": (1, 0), "kind": (0, 1), "c": (1, 0)}
    assert all_arrivals(client) == expected
    for unchanged in ("SAMPLE 0.5 ON PUBLISH", "SAMPLE 1 ON PUBLISH", "TTL 5d"):
        fs(client, f"FS.ALTER profile {unchanged}")
        assert all_arrivals(client) == expected
    fs(client, "FS.ALTER profile SAMPLE 1 ON SERVE")
    # Windows were sampled as served before, and are.
    assert all_arrivals(client, "n x c") == {"n": none, "x": none, "c": (1, 0)}
    some()
    assert all_arrivals(client, "n x c") == {"n": (1, 0), "x": (0, 1), "c": (2, 0)}
    primary.await_replicated(replica)
    assert all_arrivals(typed(replica), "n x c") == {"n": none, "x": none, "c": none}
    fs(client, "FS.ALTER profile SAMPLE 1 ON PUBLISH")
    assert all_arrivals(client) == {"n": none, "x": none, "part": none, "kind": none, "c": (2, 0)}
    some()
    assert all_arrivals(client) == expected | {"c": (3, 0)}
    assert_drifts_the_same(primary, replica)


@pytest.mark.parametrize("rate", [1, 0.3])
@pytest.mark.parametrize("bursts", [1, 4])
def test_beyond_the_bound_each_arrival_is_as_likely_as_any_other(fresh_server, rate, bursts):
    client = typed(fresh_server({"fs.drift-samples": 1_000}))
    count = 40_000
    fs(
        client,
        f"FS.REGISTER profile ENTITY user SAMPLE {rate} ON PUBLISH SCHEMA tenth INT ramp FLOAT other INT",
    )
    # So many that the test of two samples is one of a sample against known shares.
    fs(client, "FS.BASELINE profile tenth CATEGORIES 10", *[w for i in range(10) for w in (i, 10**9)])
    fs(client, "FS.BASELINE profile ramp SAMPLES 1000", *[(i + 0.5) * count / 1_000 for i in range(1_000)])
    rows = [{"tenth": i * 10 // count, "ramp": i} for i in range(count)]
    if bursts > 1:
        # Arrivals without the value are no places in its sample.
        rows = [row for i, r in enumerate(rows) for row in ([r, {"other": 1}] if i // 5_000 % 2 else [r])]
    publish_rows(client, rows)
    told = drift(client, "profile")
    size = told["ramp", "KS"]["current_n"]
    assert 700 <= size <= 1_000
    assert told["tenth", "CHI2"]["p_value"] > 1e-4
    assert told["ramp", "KS"]["p_value"] > 1e-4
    assert abs(told["ramp", "MEAN"]["current"] - count / 2) < 4 * count / math.sqrt(12 * size)
    assert abs(told["ramp", "STDDEV"]["current"] * math.sqrt(12) / count - 1) < 0.1
    came = sum(arrivals(client, "tenth")) / len(rows)
    assert abs(came - rate) < 0.02


@pytest.mark.parametrize("rate", [0, 0.1, 1])
def test_a_share_of_the_arrivals_is_sampled(fresh_server, rate):
    client = typed(fresh_server())
    register_watched(client, "SAMPLE", rate, "ON", "PUBLISH")
    count = 20_000
    publish_rows(client, [{"n": i, "part": 1} if i % 2 else {"n": i} for i in range(count)])
    for feature, of in (("n", count), ("x", count), ("part", count / 2), ("kind", count / 2)):
        present, absent = arrivals(client, feature)
        assert (absent if feature in ("n", "part") else present) == 0
        assert abs(present + absent - of * rate) <= 5 * math.sqrt(of * rate * (1 - rate)), feature
    fs(client, f"FS.ALTER profile SAMPLE {rate} ON SERVE")
    keys = [f"fs:v1:profile:u{i % 50}" for i in range(1_000)]
    for _ in range(count // 1_000):
        client.execute_command("FS.MGET", "n,x", *keys)
    for feature in ("n", "x"):
        assert abs(sum(arrivals(client, feature)) - count * rate) <= 5 * math.sqrt(count * rate * (1 - rate))


def test_a_window_can_be_cleared_and_frozen(fresh_server):
    client = typed(fresh_server())
    register_watched(client)
    with pytest.raises(valkey.ResponseError):
        fs(client, "FS.BASELINE profile x FREEZE")
    publish_rows(client, [{"n": i, "x": i / 2} for i in range(300)])
    fs(client, "FS.BASELINE profile x FREEZE")
    told = drift(client, "profile", "x")
    assert {"MEAN", "STDDEV", "KS", "PSI", "WASSERSTEIN", "JS", "MISSING"} == {method for _, method in told}
    assert all(each["statistic"] == 0 and each["baseline_n"] == 300 for each in told.values())
    fs(client, "FS.BASELINE profile x CLEAR CURRENT")
    assert all_arrivals(client, "n x") == {"n": (300, 0), "x": (0, 0)}
    publish_rows(client, [{"x": 1_000}] * 100)
    assert drift(client, "profile", "x")["x", "KS"]["statistic"] == 1
    fs(client, "FS.BASELINE profile x CLEAR BASELINE")
    # What its definition expects counts again.
    assert {method for _, method in drift(client, "profile", "x")} == {"MISSING"}
    assert arrivals(client, "x") == (100, 0)


# A call that takes a while


WIDE = 8


class Slow:
    """A store in which FS.DRIFT of the view `wide` takes a while, and connections that ask and do not read."""

    def __init__(self, server):
        self.server, self.client = server, typed(server)
        chance = random.Random(4)
        fs(self.client, f"FS.REGISTER wide ENTITY user LOG OFF SCHEMA {floats(WIDE)}")
        values = [round(chance.gauss(0, 1), 6) for _ in range(200_000)]
        for i in range(WIDE):
            fs(self.client, f"FS.BASELINE wide f{i} SAMPLES {len(values)}", *values)
        rows = [{f"f{i}": chance.gauss(i / 4, 1) for i in range(WIDE)} for _ in range(10_000)]
        publish_rows(self.client, rows, view="wide")

    def ask(self, *words):
        """A connection that has asked, its answer not read."""
        connection = self.server.client().connection_pool.get_connection("FS.DRIFT")
        connection.send_command("FS.DRIFT", *(words or ("wide",)))
        return connection

    def ask_many(self, count: int) -> list:
        """So many that wait at one time, as another client was told."""
        asked = [self.ask() for _ in range(count)]
        await_until(lambda: self.blocked() >= min(count, 3), what="callers that wait")
        return asked

    def blocked(self) -> int:
        return self.client.info("clients")["blocked_clients"]


def floats(count: int) -> str:
    return " ".join(f"f{i} FLOAT" for i in range(count))


def answer(connection):
    """What a connection reads: the reply, or the first word of an error."""
    try:
        return connection.read_response()
    except valkey.ResponseError as error:
        return str(error).split()[0]


def calls(client, *words):
    try:
        return client.execute_command("FS.DRIFT", *words)
    except valkey.ResponseError as error:
        return str(error).split()[0]


@pytest.fixture(scope="module")
def slow_store():
    made = Server({"fs.drift-samples": 1_000_000, "fs.drift-interval": 0})
    yield Slow(made)
    made.stop()


@pytest.fixture
def slow(slow_store):
    yield slow_store
    await_until(lambda: slow_store.blocked() == 0, 60, "the last call to be answered")
    assert module_figures(slow_store.server.client())["panics"] == 0


def test_others_are_answered_while_a_call_waits(slow):
    other = slow.server.client()
    expected = calls(other, "wide")
    connections = slow.ask_many(5)
    # Answered in this order: first what came later, to be read and to be written.
    answered = 0
    while not select.select([connections[-1]._sock], [], [], 0)[0]:
        other.set("key", answered)
        assert other.get("key") == str(answered).encode()
        answered += 1
    assert answered > 10
    assert [answer(connection) for connection in connections] == [expected] * 5


def test_calls_of_many_clients_queue_and_each_is_answered_what_it_asked(slow):
    asked = [
        ["wide"],
        ["wide", "f3"],
        ["wide", "METHOD", "KS"],
        ["wide", "f1", "METHOD", "MEAN", "THRESHOLD", "5"],
        ["wide", "f2", "METHOD", "PSI", "THRESHOLD", "0.01", "METHOD", "JS"],
        ["wide", "VERSION", "1", "f7"],
        ["wide", "METHOD", "CHI2"],
        ["wide", "none"],
    ]
    client = slow.server.client()
    expected = {tuple(words): calls(client, *words) for words in asked}
    assert len({repr(told) for told in expected.values()}) == len(asked)
    order = asked * 4
    random.Random(1).shuffle(order)
    connections = [slow.ask(*words) for words in order]
    await_until(lambda: slow.blocked() >= 3, what="callers that wait")
    # Read in another order than they were asked.
    for words, connection in reversed(list(zip(order, connections, strict=True))):
        assert answer(connection) == expected[tuple(words)], words
    # Many calls on one connection are answered one after the other, with what else it asks between them.
    with client.pipeline(transaction=False) as pipeline:
        for words in order[:6]:
            pipeline.execute_command("FS.DRIFT", *words)
            pipeline.ping()
        told = pipeline.execute(raise_on_error=False)
    words_of_errors = [str(each).split()[0] if isinstance(each, Exception) else each for each in told[::2]]
    assert words_of_errors == [expected[tuple(words)] for words in order[:6]]
    assert told[1::2] == [True] * 6


@pytest.mark.parametrize("way", ["goes away", "is killed"])
def test_a_caller_that_is_gone_harms_nobody(slow, way):
    expected = calls(slow.server.client(), "wide")
    for gone in ({0}, {1, 3}, {5}, set(range(6))):
        connections = [slow.server.client().connection_pool.get_connection("FS.DRIFT") for _ in range(6)]
        ids = []
        for connection in connections:
            connection.send_command("CLIENT", "ID")
            ids.append(connection.read_response())
            connection.send_command("FS.DRIFT", "wide")
        await_until(lambda: slow.blocked() >= 3, what="callers that wait")
        for i in gone:
            if way == "goes away":
                connections[i].disconnect()
            else:
                # It may have been answered meanwhile, but it is there.
                assert slow.client.client_kill_filter(_id=ids[i]) == 1
        for i, connection in enumerate(connections):
            if i not in gone:
                assert answer(connection) == expected
        await_until(lambda: slow.blocked() == 0, 60, "nobody to wait")
        assert calls(slow.server.client(), "wide") == expected


def test_pauses_hold_no_call_for_good(slow):
    expected = calls(slow.server.client(), "wide")
    connections = slow.ask_many(4)
    slow.client.client_pause(300, all=True)
    assert [answer(connection) for connection in connections] == [expected] * 4
    # It writes nothing, so a pause of writes does not concern it.
    slow.client.client_pause(100_000, all=False)
    assert calls(slow.server.client(), "wide") == expected
    slow.client.client_unpause()


CHANGES = [
    "FS.DROP small",
    "FS.ALTER small ADD more INT DEFAULT 1",
    "FS.BASELINE small f0 CLEAR BASELINE",
    "FS.BASELINE small f0 CLEAR CURRENT",
    "FS.BASELINE small f1 STATS mean 1 stddev 5",
    "FS.BASELINE small f0 FREEZE",
    "FS.REGISTER small VERSION 2 ENTITY user SCHEMA n INT",
    "FLUSHALL",
    "DEBUG RELOAD",
    "CONFIG SET fs.drift-samples 500000",
]


def test_what_changes_while_a_call_waits_is_answered_as_it_was_or_as_it_is(slow):
    client = slow.server.client()
    for change in CHANGES:
        fs(client, f"FS.REGISTER small ENTITY user LOG OFF SCHEMA {floats(2)}")
        for i in range(2):
            fs(client, f"FS.BASELINE small f{i} SAMPLES 1000", *range(1_000))
        publish_rows(client, [{"f0": i, "f1": -i} for i in range(500)], view="small")
        before = calls(client, "small")
        connections = [slow.ask(*words) for words in [["wide"]] * 4 + [["small"]] * 3]
        await_until(lambda: slow.blocked() >= 3, what="callers that wait")
        fs(client, change)
        after = calls(client, "small")
        for connection in connections[4:]:
            told = answer(connection)
            # Each feature as it was or as it is; of a view that is gone nothing.
            assert told == after or all(finding in before or finding in after for finding in told), change
            assert isinstance(told, str) or len(told) in (len(before), len(after)), change
        assert len({repr(answer(connection)) for connection in connections[:4]}) == 1
        if client.execute_command("FS.VIEWS")[0][0] == b"small":
            fs(client, "FS.DROP small")


def test_a_server_that_stops_waits_for_no_call(slow):
    expected = everything_drifts(slow.client)
    slow.ask_many(6)
    slow.server.restart()
    slow.client = typed(slow.server)
    assert everything_drifts(slow.client) == expected


# Where and how it may be called


def test_it_is_an_error_where_nobody_may_wait(server):
    client = server.client()
    define(client)
    traffic(server, 300)
    with client.pipeline() as pipeline:
        pipeline.set("key", 1)
        pipeline.execute_command("FS.DRIFT", "profile")
        pipeline.set("key", 2)
        done, refusal, last = pipeline.execute(raise_on_error=False)
    assert isinstance(refusal, valkey.ResponseError) and "MULTI" in str(refusal)
    assert (done, last, client.get("key")) == (True, True, b"2")
    for way in ("call", "pcall"):
        with pytest.raises(valkey.ResponseError, match=r"FS.DRIFT .* cannot run inside MULTI or a script"):
            client.eval(f"return redis.{way}('FS.DRIFT', 'profile')", 0)
    # A baseline is set in both.
    with client.pipeline() as pipeline:
        fs(pipeline, "FS.BASELINE profile n STATS mean 1 stddev 2")
        assert pipeline.execute() == [b"OK"]
    assert client.eval("return redis.call('FS.BASELINE', 'profile', 'n', 'CLEAR', 'BASELINE')", 0) == b"OK"
    for line in ("FS.DRIFT profile", "FS.BASELINE profile n STATS mean 1 stddev 2"):
        with valkey_in_database(client, 1) as there, pytest.raises(valkey.ResponseError, match="database 0"):
            fs(there, line)


def test_replicas_answer_it_and_take_no_baselines(fresh_server):
    primary = fresh_server()
    replica = primary.replica({"repl-diskless-load": "on-empty-db"})
    client, other = typed(primary), typed(replica)
    define(client)
    traffic(primary, 300)
    primary.await_replicated(replica)
    assert drift(other, "profile") == drift(client, "profile")
    for line in ("profile n STATS mean 1 stddev 2", "profile n FREEZE", "profile n CLEAR CURRENT"):
        with pytest.raises(valkey.ReadOnlyError):
            fs(other, f"FS.BASELINE {line}")
    assert drift(other, "profile") == drift(client, "profile")


MEMBERS = [
    "feature", "method", "baseline", "current", "statistic", "p_value", "effect", "threshold", "alert", "baseline_n",
    "current_n", "status",
]  # fmt: skip


def test_answers_have_one_shape_in_both_protocols(server):
    client = typed(server)
    define(client)
    # A baseline that never moved: what moves now is infinitely far.
    fs(client, "FS.BASELINE profile seen SAMPLES 100", *[5_000_000_000_000] * 100)
    traffic(server, 400)
    new = client.execute_command("FS.DRIFT", "profile")
    old = server.client(decode_responses=True).execute_command("FS.DRIFT", "profile")
    assert len(new) == len(old) > 30
    assert [told["feature"] for told in new] == sorted((t["feature"] for t in new), key=SCHEMA.split().index)
    kinds = {
        "feature": str, "method": str, "status": str, "alert": bool, "statistic": float, "p_value": float,
        "effect": float, "threshold": float, "baseline_n": int, "current_n": int,
    }  # fmt: skip
    for told, flat in zip(new, old, strict=True):
        assert list(told) == MEMBERS == flat[::2]
        for (name, value), text in zip(told.items(), flat[1::2], strict=True):
            if name in kinds:
                assert value is None or type(value) is kinds[name], (name, value)
            if isinstance(value, float):
                assert float(text) == value
            else:
                assert text == value and type(text) is (int if isinstance(value, bool) else type(value))
        assert told["alert"] == (told["status"] == "ALERT")
        assert (told["p_value"] is not None) == (told["method"] in ("KS", "CHI2"))
    infinite = drift(client, "profile", "seen")["seen", "STDDEV"]
    assert infinite["statistic"] == infinite["effect"] == math.inf


@pytest.mark.skipif(CLI is None, reason="there is no valkey-cli beside the server, on the PATH or in .tools")
@pytest.mark.parametrize("words", [["-2"], ["-3"]])
def test_people_can_read_an_answer(server, words):
    client = typed(server)
    define(client)
    traffic(server, 300)
    line = [CLI, "-p", str(server.port), "--no-raw", *words, "FS.DRIFT", "profile", "n", "METHOD", "MEAN"]
    printed = subprocess.run(line, capture_output=True, text=True, timeout=30, check=True).stdout
    (told,) = client.execute_command(*line[-5:])
    for name, value in told.items():
        text = "" if value in (None, True) else str(value).removesuffix(".0")
        assert f'"{name}"' in printed and text in printed, printed


def test_permissions_are_those_of_the_log_and_of_an_administrator(server):
    admin = server.client()
    define(admin)
    try:
        assert fs(user(server, f"%R~{LOG}"), "FS.DRIFT profile")
        for rules in ([], [f"%W~{LOG}"], ["%R~fs:stream:other"], ["~fs:v1:profile:*"]):
            with pytest.raises(valkey.exceptions.NoPermissionError):
                fs(user(server, *rules), "FS.DRIFT profile")
        baseline = "FS.BASELINE profile n STATS mean 1 stddev 2"
        assert fs(user(server, "resetkeys"), baseline) == b"OK"
        for refused in ("admin", "dangerous", "write", "fs"):
            with pytest.raises(valkey.exceptions.NoPermissionError):
                fs(user(server, f"-@{refused}"), baseline)
        for refused in ("read", "fs"):
            with pytest.raises(valkey.exceptions.NoPermissionError):
                fs(user(server, "~*", f"-@{refused}"), "FS.DRIFT profile")
        assert fs(user(server, "~*", "-@admin", "-@dangerous", "-@write"), "FS.DRIFT profile")
    finally:
        admin.acl_deluser("eve")


def test_both_commands_are_documented(server):
    client = typed(server)
    told = client.execute_command("FS.HELP")
    for command in ("FS.DRIFT", "FS.BASELINE"):
        ((_, docs),) = client.execute_command("COMMAND DOCS", command).items()
        assert docs["summary"] and docs["arguments"] and any(docs["summary"] in line for line in told)
