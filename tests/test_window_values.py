"""What windows serve, against the recomputation over all events in window_oracle.py.

Each generated case of window_cases.py is a view of its own, fed by every way in, and read at random times and at the
server's clock. Besides, the rules by themselves.
"""

from collections import Counter

import numpy as np
import pytest
import valkey
from window_cases import KINDS, Call, Case, Read, shown
from window_oracle import (
    Between,
    Each,
    Exactly,
    Window,
)

from server import await_until

BATCHES, CASES_A_BATCH = 26, 40
BEGIN_MS = 1_580_000_400_000  # A whole hour.


# The server


class Reader:
    """A connection of one protocol that turns replies into plain values, after a look at their form."""

    def __init__(self, server, protocol: int):
        self.client, self.protocol = server.client(protocol=protocol), protocol

    def value(self, type_: str, reply):
        if reply is None:
            return None
        match type_.split()[0]:
            case "FLOAT":
                assert type(reply) is (float if self.protocol == 3 else bytes), reply
                return float(reply)
            case "BOOL":
                assert type(reply) is (bool if self.protocol == 3 else int), reply
                return bool(reply)
            case "VECTOR":
                return tuple(self.value("FLOAT", number) for number in reply)
            case "LIST":
                return reply.decode()
        assert type(reply) is (bytes if type_ == "STRING" else int), reply
        return reply

    def features(self, case: Case, reply, with_status: bool) -> dict[str, list]:
        """A reply of FS.GET as feature to `[value]` or `[value, status, age_ms]`."""
        pairs = reply.items() if self.protocol == 3 else zip(reply[::2], reply[1::2], strict=True)
        told = {}
        for name, value in pairs:
            name = name.decode()
            parts = [value[0], value[1].decode(), value[2]] if with_status else [value]
            told[name] = [self.value(case.type_of(name), parts[0]), *parts[1:]]
        return told


@pytest.fixture(scope="module")
def coverage() -> Counter:
    """What the generated cases compared: values of each kind of window."""
    return Counter()


def now_ms(client) -> int:
    seconds, microseconds = client.time()
    return seconds * 1000 + microseconds // 1000


def executed(client, commands: list[list]) -> list:
    """The replies of commands, errors among them."""
    with client.pipeline(transaction=False) as pipeline:
        for words in commands:
            pipeline.execute_command(*words)
        return pipeline.execute(raise_on_error=False)


def register(client, view: str, inputs: dict[str, str], windows: list[Window], *options) -> None:
    words = ["FS.REGISTER", view, "ENTITY", "user", *options, "SCHEMA"]
    for name, type_ in inputs.items():
        words += [name, *type_.split(), "INPUT"]
    for w in windows:
        words += [w.name, *w.type.split(), "AGG", *w.agg.split()]
        words += ["WINDOW", f"{w.window_ms}ms", "HOP", f"{w.hop_ms}ms"]
    assert client.execute_command(*words) == b"OK"


def info(reply) -> dict:
    return {name.decode(): value for name, value in zip(reply[::2], reply[1::2], strict=True)}


def feed(client, cases: list[Case]) -> None:
    """Sends the rounds of all cases side by side, and waits for the consumer after each."""
    for step in range(max(len(case.rounds) for case in cases)):
        sent = [(case, call) for case in cases for calls in case.rounds[step : step + 1] for call in calls]
        for (case, call), reply in zip(sent, executed(client, [call.words for _, call in sent]), strict=True):
            check_answer(case, call, reply)
        await_consumed(client, [case for case, call in sent if call.words[0] == "XADD"])


def check_answer(case: Case, call: Call, reply) -> None:
    def check(is_right: bool) -> None:
        assert is_right, case.report(shown(call.words), f"answered {reply!r}, expected {call.answer}")

    match call.answer:
        case "future":
            check(isinstance(reply, valkey.ResponseError) and str(reply).startswith("FUTURE "))
        case "the first id":
            check(reply == case.first_ids.get(call.event_id, reply) and not isinstance(reply, Exception))
        case "an id" | "nil":
            check(type(reply) is bytes if call.answer == "an id" else reply is None)
            case.first_ids.setdefault(call.event_id, reply)
        case None:
            check(type(reply) is int)
        case rows:
            check(reply == rows)


def await_consumed(client, cases: list[Case]) -> None:
    views = list(dict.fromkeys(case.view for case in cases))

    def lags() -> list:
        return [
            info(reply)["lag_entries"] for reply in executed(client, [["FS.INFO", view] for view in views])
        ]

    if views:
        await_until(lambda: set(lags()) == {0}, 30, "the consumers to reach the end of their logs")


def check_figures(case: Case, reply) -> None:
    told = info(reply)
    expected = {name: case.figures[name] for name in ("late_events", "duplicates")}
    expected |= {"dead_letters": case.figures["dead letters"], "dedup_overflows": 0}
    assert {name: told[name] for name in expected} == expected, case.report("FS.INFO", f"tells {told}")
    if not case.runs_ahead:
        # Windows that share state may take what one of them alone would refuse, never the other way round.
        most = case.figures["too_late_events"]
        least = most if case.is_alone else 0
        assert least <= told["too_late_events"] <= most, case.report("FS.INFO", f"tells {told}, not {most}")


def check_hops(reply, case: Case) -> None:
    """What FS.DESCRIBE says of windows and hops is what the recomputation takes them for."""
    features = [info(feature) for feature in info(reply)["schema"]]
    told = {f["name"].decode(): (f["agg"], f["window_ms"], f["hop_ms"]) for f in features}
    expected = dict.fromkeys(case.inputs, (None, None, None))
    expected |= {w.name: (w.agg.encode(), w.window_ms, w.hop_ms) for w in case.windows}
    for window in case.windows:
        if window.function == "DECAYED_SUM":
            # Durations are told in their largest unit.
            expected[window.name] = (told[window.name][0], *expected[window.name][1:])
    assert told == expected, case.report("FS.DESCRIBE", told)


def check_read(reader: Reader, case: Case, read: Read, reply, clock_ms: int) -> Counter:
    """One FS.GET .. AT; counts what was compared."""
    names = read.names or case.served()
    verdicts = {name: case.may_be_too_old(name, read.at_ms, clock_ms) for name in names}
    seen = Counter()
    if isinstance(reply, Exception):
        text = str(reply)
        allowed = [name for name, (may, _) in verdicts.items() if may]
        is_named = any(f"'{name}'" in text for name in allowed) and f"'{case.view}'" in text
        assert text.startswith("TOOOLD ") and is_named, case.report(read, f"answered {text}")
        seen["too old"] += 1
        return seen
    refusable = [name for name, (_, must) in verdicts.items() if must]
    assert not refusable, case.report(read, f"answered {reply}, but AT is too old for {refusable}")
    told = reader.features(case, reply, read.with_status)
    assert sorted(told) == sorted(names), case.report(read, f"tells of {sorted(told)}")
    for name, got in told.items():
        fault = case.fault(name, got, read.at_ms)
        assert fault is None, case.report(read, f"{name} {fault}")
        if name not in case.inputs and case[name].inside(case.events, read.at_ms):
            seen[case.kinds[name]] += 1
    return seen


def check_clock(reader: Reader, case: Case) -> Counter:
    """FS.GET, FS.MGET and FS.TENSOR at the server's clock, each between two readings of it."""
    names = case.served()
    numeric = [n for n in names if case.type_of(n) not in ("LIST", "STRING")]
    commands = [["FS.GET", case.key, "WITHSTATUS"], ["FS.MGET", ",".join(names), case.key]]
    commands += [["FS.TENSOR", ",".join(numeric), case.key]] if numeric else []
    replies = executed(reader.client, [["TIME"], *[words for c in commands for words in (c, ["TIME"])]])
    times = [seconds * 1000 + microseconds // 1000 for seconds, microseconds in replies[::2]]
    for place, (words, reply) in enumerate(zip(commands, replies[1::2], strict=True)):
        assert not isinstance(reply, Exception), case.report(shown(words), f"answered {reply}")
        moments = range(times[place], times[place + 1] + 1)
        if words[0] == "FS.TENSOR":
            check_tensor(case, numeric, reply, moments)
            continue
        if words[0] == "FS.GET":
            told = reader.features(case, reply, True)
        else:
            told = {n: [reader.value(case.type_of(n), v)] for n, v in zip(names, reply[0], strict=True)}
        assert sorted(told) == sorted(names), case.report(shown(words), f"tells of {sorted(told)}")
        for name, got in told.items():
            faults = [case.fault(name, got, moment, True) for moment in moments]
            assert None in faults, case.report(f"{shown(words)} at {moments}", f"{name} {faults[0]}")
    return Counter(["clock"])


def check_tensor(case: Case, names: list[str], reply: bytes, moments: range) -> None:
    columns = np.frombuffer(reply, "<f4")
    widths = {n: int(case.type_of(n).split()[1]) if " " in case.type_of(n) else 1 for n in names}
    assert len(columns) == sum(widths.values()), case.report("FS.TENSOR", f"has {len(columns)} columns")
    place = 0
    for name in names:
        got = columns[place : place + widths[name]]
        place += widths[name]
        bounds = [case_bounds(case, name, moment, widths[name]) for moment in moments]
        assert any(
            all(
                np.isnan(x) if np.isnan(low) else low <= x <= high
                for x, (low, high) in zip(got, each, strict=True)
            )
            for each in bounds
        ), case.report(f"FS.TENSOR at {moments}", f"{name} is {got}, expected {bounds[0]}")


def case_bounds(case: Case, name: str, at_ms: int, width: int) -> list[tuple]:
    """Lowest and highest float32 of each column of a feature."""
    if name in case.inputs:
        expected = Exactly(case.plain(name, None)[0])
    else:
        expected = case[name].expected(case.events, at_ms)
        if expected == Exactly(None):
            expected = Exactly(case.defaults.get(name))
    with np.errstate(over="ignore"):
        match expected:
            case Exactly(None):
                return [(np.nan, np.nan)] * width
            case Each(parts):
                return [(np.float32(part.low), np.float32(part.high)) for part in parts]
            case Between(low, high):
                return [(np.float32(low), np.float32(high))]
            case Exactly(value):
                numbers = value if isinstance(value, tuple) else [value]
                exact = [np.float32(np.int64(x)) if type(x) is int else np.float32(x) for x in numbers]
                return [(x, x) for x in exact]


@pytest.mark.parametrize("batch", range(BATCHES))
def test_generated_cases_serve_what_all_their_events_say(server, coverage, batch):
    client = server.client()
    start_ms = now_ms(client)
    cases = [Case(batch * CASES_A_BATCH + i, start_ms) for i in range(CASES_A_BATCH)]
    for case, reply in zip(cases, executed(client, [case.words for case in cases]), strict=True):
        assert reply == b"OK", case.report("the registration", f"answered {reply}")
    for case, reply in zip(cases, executed(client, [["FS.DESCRIBE", c.view] for c in cases]), strict=True):
        check_hops(reply, case)
    feed(client, cases)
    for case, reply in zip(cases, executed(client, [["FS.INFO", c.view] for c in cases]), strict=True):
        check_figures(case, reply)
    seen = Counter()
    readers = [Reader(server, 2), Reader(server, 3)]
    for place, reader in enumerate(readers):
        # Every other case, then the rest, by the other protocol.
        reads = [(case, read) for case in cases[place::2] for read in case.reads()]
        commands = [
            ["FS.GET", case.key, "AT", read.at_ms, *["WITHSTATUS"] * read.with_status, *read.names]
            for case, read in reads
        ]
        replies = executed(reader.client, commands)
        clock_ms = now_ms(client)
        for (case, read), reply in zip(reads, replies, strict=True):
            seen += check_read(reader, case, read, reply, clock_ms)
    for place, case in enumerate(cases):
        if case.is_live or place % 5 == 0:
            seen += check_clock(readers[place % 2], case)
    coverage.update(seen, batches=1)


def test_the_generated_cases_cover_every_function(coverage):
    """They compare windows that hold events, not only empty ones."""
    if coverage["batches"] < BATCHES:
        pytest.skip("not all generated cases have run")
    assert {kind: coverage[kind] for kind in KINDS if coverage[kind] < 200} == {}
    assert coverage["too old"] > 500 and coverage["clock"] > 300
