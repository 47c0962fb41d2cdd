"""Calls around drift: which of them feed a window, and FS.DRIFT itself, which waits for a thread while others go on."""

import math
import os
import random
import select
import shutil
import subprocess
from pathlib import Path

import pytest
import valkey
from drifting_view import (
    SCHEMA,
    define,
    drift,
    everything_drifts,
    publish_rows,
    traffic,
    typed,
)
from profile_view import LOG, module_figures
from test_permissions import user
from test_window_state import valkey_in_database
from windowed_view import fs

from server import Server, await_until, required_file

OTHER = "fs:v1:profile:u2"
HOUR_MS = 3_600_000
PLACES = [required_file("VALKEY_SERVER").parent, *Path(__file__).parents[1].glob(".tools/server-*/bin")]
CLI = shutil.which("valkey-cli") or shutil.which("valkey-cli", path=os.pathsep.join(map(str, PLACES)))


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
