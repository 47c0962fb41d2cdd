"""Rules of windows by themselves: bounds, hops, order of events, and the clock."""

import random

import pytest
import valkey
from test_window_values import BEGIN_MS, Reader, executed, now_ms, register
from window_oracle import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    SECOND_MS,
    Event,
    Window,
    default_hop_ms,
)

from server import await_until

# Rules by themselves

# Sums of powers of two tell which events are inside.
EDGES = [
    (60_000, 10_000),
    (60_000, 60_000),
    (1_000, 1),
    (4_096, 1),
    (1_001, 7),
    (HOUR_MS, None),
    (7 * DAY_MS, None),
    (400 * DAY_MS, None),
]


@pytest.mark.parametrize(("window_ms", "hop_ms"), EDGES)
def test_an_event_counts_from_the_begin_of_its_hop_to_the_last_moment_of_the_window(
    server, window_ms, hop_ms
):
    client = server.client()
    words = ["FS.REGISTER", "edges", "ENTITY", "user", "DEDUP", "1h", "SCHEMA", "x", "FLOAT", "INPUT"]
    words += ["sum", "FLOAT", "AGG", "SUM", "x", "WINDOW", f"{window_ms}ms"]
    assert client.execute_command(*words, *(["HOP", f"{hop_ms}ms"] if hop_ms else [])) == b"OK"
    hop_ms = hop_ms or default_hop_ms(window_ms)
    newest_ms = BEGIN_MS // hop_ms * hop_ms + hop_ms - 1
    edges = {
        edge + side
        for hops in (0, 1, 2, window_ms // hop_ms - 1, window_ms // hop_ms)
        for edge in (newest_ms + 1 - hop_ms - hops * hop_ms,)
        for side in (-1, 0, 1)
        if edge + side <= newest_ms
    }
    times = [newest_ms, *sorted(edges - {newest_ms})]
    reads = sorted({time_ms + extra for time_ms in times for extra in (0, window_ms, window_ms + hop_ms)})
    reads = [at_ms for at_ms in reads if at_ms >= newest_ms]
    executed(client, [["FS.PUBLISH", "fs:v1:edges:u1", "AT", t, "x", 2**i] for i, t in enumerate(times)])
    replies = executed(client, [["FS.GET", "fs:v1:edges:u1", "AT", at_ms, "sum"] for at_ms in reads])
    for at_ms, (_, told) in zip(reads, replies, strict=True):
        start_ms = (at_ms - window_ms) // hop_ms * hop_ms
        end_ms = at_ms // hop_ms * hop_ms + hop_ms
        inside = sum(2**i for i, time_ms in enumerate(times) if start_ms <= time_ms < end_ms)
        assert float(told) == inside, f"AT {at_ms}: {float(told):b} for {inside:b}"


def test_hops_count_whole(client):
    """The rule by hand: a minute in hops of ten seconds."""
    words = "ENTITY user SCHEMA x FLOAT INPUT sum FLOAT AGG SUM x WINDOW 1m HOP 10s"
    assert client.execute_command("FS.REGISTER", "edges", *words.split()) == b"OK"
    key = "fs:v1:edges:u1"
    for i, after_ms in enumerate([-1, 0, 9_999, 10_000, 59_999, 60_000]):
        client.execute_command("FS.PUBLISH", key, "AT", BEGIN_MS + after_ms, "x", 2**i)
    for after_ms, inside in [
        (60_000, 0b111110),
        (69_999, 0b111110),
        (70_000, 0b111000),
        (79_999, 0b111000),
        (80_000, 0b110000),
        (119_999, 0b110000),
        (120_000, 0b100000),
        (129_999, 0b100000),
        (130_000, 0),
    ]:
        assert float(client.execute_command("FS.GET", key, "AT", BEGIN_MS + after_ms, "sum")[1]) == inside, (
            after_ms
        )
    with pytest.raises(valkey.ResponseError, match=r"^TOOOLD (?=.*'edges')(?=.*'sum')"):
        client.execute_command("FS.GET", key, "AT", BEGIN_MS + 59_999, "sum")


def test_values_move_with_the_clock_alone(server, client):
    readers = [Reader(server, 2), Reader(server, 3)]
    second, half = (SECOND_MS, SECOND_MS), (1_500, 250)
    functions = ["COUNT", "SUM", "MEAN", "MIN", "FIRST", "LAST", "APPROX_COUNT_DISTINCT", "HISTOGRAM"]
    windows = [
        Window(f"w{i}", function, *span, "x", "FLOAT")
        for i, (function, span) in enumerate((f, s) for f in functions for s in (second, half))
    ]
    windows += [
        Window("decayed", "DECAYED_SUM", *half, "x", "FLOAT", 300),
        Window("median", "APPROX_PERCENTILE", *second, "x", "FLOAT", 0.5),
        Window("newest", "LAST_K", *half, "x", "FLOAT", 3),
    ]
    register(client, "moving", {"x": "FLOAT"}, windows)
    key, start_ms = "fs:v1:moving:u1", now_ms(client)
    # One is past, one is ahead of the clock.
    events = [Event(start_ms - 100, {"x": 2.5}), Event(start_ms + 1_200, {"x": -1.0})]
    for event in events:
        client.execute_command("FS.PUBLISH", key, "AT", event.time_ms, "x", event.values["x"])
    counts, names = [], [w.name for w in windows]

    def look(reader: Reader) -> tuple:
        commands = [["TIME"], ["FS.GET", key], ["TIME"], ["FS.MGET", ",".join(names), key], ["TIME"]]
        first, told, between, row, last = executed(reader.client, commands)
        moments = [seconds * 1000 + microseconds // 1000 for seconds, microseconds in (first, between, last)]
        pairs = told.items() if reader.protocol == 3 else zip(told[::2], told[1::2], strict=True)
        by_name = {name.decode(): value for name, value in pairs}
        for window, again in zip(windows, row[0], strict=True):
            for value, (low, high) in [(by_name[window.name], moments[:2]), (again, moments[1:])]:
                got = reader.value(window.type, value)
                expected = [window.expected(events, at_ms) for at_ms in range(low, high + 1)]
                assert any(e.accepts(got) for e in expected), (
                    f"{window} at {low}: {got}, expected {expected[0]}"
                )
        return tuple(reader.value("INT", by_name[name]) for name in ("w0", "w1"))

    def is_empty() -> bool:
        counts.extend(map(look, readers))
        return counts[-1] == (0, 0)

    await_until(is_empty, 10, "the windows to run empty")
    steps = [count for place, count in enumerate(counts) if place == 0 or counts[place - 1] != count]
    for each in zip(*steps, strict=True):
        assert each[0] == 1 and max(each) >= 1 and each[-1] == 0, steps
    # The second window still holds the first event when the second one comes in.
    assert 2 in {count for _, count in steps}, steps


def assert_served(
    reader: Reader, key: str, windows: list[Window], events: list[Event], at_ms: int | None
) -> None:
    """FS.GET at a time, or at the clock, serves what the recomputation says."""
    read = ["FS.GET", key, *([] if at_ms is None else ["AT", at_ms])]
    first, told, last = executed(reader.client, [["TIME"], read, ["TIME"]])
    moments = [seconds * 1000 + microseconds // 1000 for seconds, microseconds in (first, last)]
    for window in windows:
        got = reader.value(window.type, told[window.name.encode()])
        expected = [
            window.expected(events, t) for t in ([at_ms] if at_ms else range(moments[0], moments[1] + 1))
        ]
        assert any(e.accepts(got) for e in expected), f"{window} at {at_ms}: {got}, expected {expected[0]}"


# Hops of so many ms, and how far an event may be ahead of the clock, by 16,000 hops or by fs.max-clock-skew.
AHEAD = [(1, 16_000), (7, 112_000), (18, 288_000), (19, 295_000), (SECOND_MS, 295_000), (HOUR_MS, 295_000)]


@pytest.mark.parametrize(("hop_ms", "ahead_ms"), AHEAD)
def test_events_ahead_of_the_clock_push_nothing_out(server, hop_ms, ahead_ms):
    reader = Reader(server, 3)
    functions = {"COUNT": None, "SUM": None, "MIN": None, "VAR_POP": None, "FIRST": None, "LAST": None}
    functions |= {"LAST_K": 9, "APPROX_COUNT_DISTINCT": None, "APPROX_PERCENTILE": 0.5, "HISTOGRAM": None}
    functions |= {"DECAYED_SUM": HOUR_MS}
    span = 4096 * hop_ms, hop_ms
    windows = [Window(f.lower() + "_x", f, *span, "x", "FLOAT", k) for f, k in functions.items()]
    windows.append(Window("centre", "MEAN", *span, "v", "VECTOR 1"))
    register(reader.client, "ahead", {"x": "FLOAT", "v": "VECTOR 1"}, windows, "DEDUP", "1h")
    key, start_ms = "fs:v1:ahead:u1", now_ms(reader.client)
    events = []
    # The last ones come late, and not too late.
    for after_ms in (0, ahead_ms, -hop_ms, ahead_ms - 1, 1, -500 * hop_ms, -1_000 * hop_ms):
        x = float(len(events))
        events.append(Event(start_ms + after_ms, {"x": x, "v": (x,)}))
        words = ["FS.PUBLISH", key, "AT", start_ms + after_ms, "x", x, "v", x]
        assert type(reader.client.execute_command(*words)) is bytes
        assert_served(reader, key, windows, events, None)
    told = reader.client.execute_command("FS.INFO", "ahead")
    assert told[b"too_late_events"] == 0
    for after_ms in (ahead_ms, ahead_ms + 1_000 * hop_ms):
        assert_served(reader, key, windows, events, start_ms + after_ms)


def test_a_window_loses_nothing_beside_one_of_very_short_hops(server):
    reader = Reader(server, 3)
    windows = [
        Window("short", "COUNT", 4_000, 1, "x", "FLOAT"),
        Window("long", "COUNT", 2_000, 250, "x", "FLOAT"),
        Window("other", "SUM", 4_000, 1, "x", "FLOAT"),
        Window("longest", "SUM", 3_000, 500, "x", "FLOAT"),
    ]
    register(reader.client, "beside", {"x": "FLOAT"}, windows, "DEDUP", "1h")
    key, start_ms = "fs:v1:beside:u1", now_ms(reader.client)
    events = []
    for after_ms in (0, 200_000, 1):
        events.append(Event(start_ms + after_ms, {"x": 1.0}))
        reader.client.execute_command("FS.PUBLISH", key, "AT", start_ms + after_ms, "x", 1)
        # Those of very short hops may have lost what is older than an event 200,000 hops ahead.
        assert_served(reader, key, windows[1::2], events, None)


@pytest.mark.parametrize("seed", [None, 1, 2], ids=["rising", "any order", "another order"])
@pytest.mark.parametrize(
    ("function", "k", "kept"), [("LAST", None, 64), ("LAST_K", 3, 64), ("LAST_K", 100, 100)]
)
def test_the_newest_values_ahead_of_the_clock_are_kept(server, function, k, kept, seed):
    reader, dropped = Reader(server, 3), 9
    window = Window("newest", function, HOUR_MS, SECOND_MS, "x", "INT", k)
    register(reader.client, "last", {"x": "INT"}, [window])
    start_ms = now_ms(reader.client)
    present = [Event(start_ms - 2 * SECOND_MS * i, {"x": -i}) for i in (2, 1, 0)]
    ahead = [Event(start_ms + (30 + 2 * i) * SECOND_MS, {"x": i}) for i in range(1, kept + dropped + 1)]

    def feed_all(key: str, events: list[Event]) -> None:
        words = [["FS.PUBLISH", key, "AT", e.time_ms, "x", e.values["x"]] for e in events]
        assert all(type(reply) is bytes for reply in executed(reader.client, words))

    # As many as are kept: none is missing at any time.
    key, events = "fs:v1:last:u1", present + ahead[dropped:]
    if seed:
        random.Random(seed).shuffle(events)
    feed_all(key, events)
    assert_served(reader, key, [window], events, None)
    for event in ahead[dropped:]:
        assert_served(reader, key, [window], events, event.time_ms)
    # More than that: the values at the clock and the newest are still there, and what is missing is not passed over.
    key, events = "fs:v1:last:u2", present + ahead
    if seed:
        random.Random(seed).shuffle(events)
    feed_all(key, events)
    assert_served(reader, key, [window], events, None)
    for place, event in enumerate(ahead):
        if place - (k or 1) + 1 >= dropped:
            assert_served(reader, key, [window], events, event.time_ms)
        else:
            with pytest.raises(valkey.ResponseError, match=r"^TOOOLD (?=.*'last')(?=.*'newest')"):
                reader.client.execute_command("FS.GET", key, "AT", event.time_ms)


def ordered_events(seed: int, count: int, reach_ms: int, begin_ms: int) -> list[Event]:
    """Events in the order of their times, no two at one time."""
    draw = random.Random(seed)
    times = sorted(draw.sample(range(begin_ms, begin_ms + reach_ms), count))
    return [Event(time_ms, {"x": float(draw.randrange(-1000, 1000))}) for time_ms in times]


def count_and_sum(client, window_ms: int, hop_ms: int) -> str:
    """The key of an entity in a view with a count and a sum."""
    span = f"WINDOW {window_ms}ms HOP {hop_ms}ms"
    words = f"ENTITY user SCHEMA x FLOAT INPUT n INT AGG COUNT x {span} sum FLOAT AGG SUM x {span}"
    assert client.execute_command("FS.REGISTER", "engine", *words.split()) == b"OK"
    return "fs:v1:engine:u1"


def read_on_the_way(client, key: str, events: list[Event], reads: list[tuple[int, int]]) -> list[tuple]:
    """Count and sum at times: each read is a moment, all events before which have come and no others, and its AT."""
    steps = [(e.time_ms, 1, ["FS.PUBLISH", key, "AT", e.time_ms, "x", e.values["x"]]) for e in events]
    steps += [(moment_ms, 0, ["FS.GET", key, "AT", at_ms, "n", "sum"]) for moment_ms, at_ms in reads]
    steps.sort(key=lambda step: step[:2])
    replies = executed(client, [words for _, _, words in steps])
    reads_only = [reply for (_, is_event, _), reply in zip(steps, replies, strict=True) if not is_event]
    return [(reply[1], float(reply[3])) for reply in reads_only]


@pytest.mark.parametrize(
    ("size_ms", "period_ms"),
    [
        (MINUTE_MS, 10 * SECOND_MS),
        (MINUTE_MS, 30 * SECOND_MS),
        (10 * MINUTE_MS, MINUTE_MS),
        (HOUR_MS, 5 * MINUTE_MS),
        (DAY_MS, HOUR_MS),
        (2 * SECOND_MS, 100),
    ],
)
def test_the_sliding_windows_of_stream_processors(client, size_ms, period_ms):
    """Flink, Beam and Kafka Streams: windows [k * period, k * period + size).

    One that ends at e is `WINDOW size - period HOP period` read AT e - 1.
    """
    key = count_and_sum(client, size_ms - period_ms, period_ms)
    events = ordered_events(size_ms + period_ms, 300, 60 * period_ms, BEGIN_MS + 17)
    held = {}
    for event in events:
        # As their assigners put it: the latest window that holds the event, then back while they still hold it.
        start_ms = event.time_ms - event.time_ms % period_ms
        while start_ms > event.time_ms - size_ms:
            held.setdefault(start_ms + size_ms, []).append(event.values["x"])
            start_ms -= period_ms
    ends = range(min(held), max(held) + period_ms, period_ms)
    told = read_on_the_way(client, key, events, [(end_ms, end_ms - 1) for end_ms in ends])
    assert len(told) >= 60
    assert told == [(len(held.get(end, [])), sum(held.get(end, []))) for end in ends]


@pytest.mark.parametrize("size_ms", [2 * SECOND_MS, MINUTE_MS, HOUR_MS, DAY_MS])
def test_tumbling_windows(client, size_ms):
    """A window [k * size, k * size + size) that ends at e is `WINDOW size / 2 HOP size / 2` read AT e - 1."""
    key = count_and_sum(client, size_ms // 2, size_ms // 2)
    events = ordered_events(size_ms, 300, 40 * size_ms, BEGIN_MS + 17)
    held = {}
    for event in events:
        held.setdefault((event.time_ms // size_ms + 1) * size_ms, []).append(event.values["x"])
    ends = range(min(held), max(held) + size_ms, size_ms)
    told = read_on_the_way(client, key, events, [(end_ms, end_ms - 1) for end_ms in ends])
    assert len(told) >= 40
    assert told == [(len(held.get(end, [])), sum(held.get(end, []))) for end in ends]


@pytest.mark.parametrize(
    ("window_ms", "hop_ms"),
    [
        (HOUR_MS, 5 * MINUTE_MS),
        (6 * HOUR_MS, 5 * MINUTE_MS),
        (12 * HOUR_MS, HOUR_MS),
        (7 * DAY_MS, HOUR_MS),
        (30 * DAY_MS, DAY_MS),
    ],
)
def test_the_sawtooth_windows_of_feature_platforms(client, window_ms, hop_ms):
    """Chronon: the head is at the query, the tail on the hop before query - window.

    Read when the events before the query have come: [floor((query - window) / hop) * hop, query).
    """
    key = count_and_sum(client, window_ms, hop_ms)
    events = ordered_events(window_ms + hop_ms, 300, 4 * window_ms, BEGIN_MS + 17)
    draw = random.Random(window_ms)
    queries = [event.time_ms for event in events]
    queries = sorted(
        {*queries, *(draw.randrange(queries[0], queries[-1] + 2 * window_ms) for _ in range(100))}
    )
    told = read_on_the_way(client, key, events, [(query_ms, query_ms) for query_ms in queries])
    for query_ms, got in zip(queries, told, strict=True):
        tail_ms = (query_ms - window_ms) // hop_ms * hop_ms
        inside = [event.values["x"] for event in events if tail_ms <= event.time_ms < query_ms]
        assert got == (len(inside), sum(inside)), query_ms


@pytest.mark.parametrize("hop_ms", [SECOND_MS, 30 * SECOND_MS, MINUTE_MS])
@pytest.mark.parametrize(
    "numbers",
    [
        [1.7e308, 1.7e308, 1.7e308],
        [-1.7e308, -1.7e308],
        [1.7e308, 1.7e308, -1.7e308, -1.7e308, 5.0],
        [1.7e308, -1.7e308, 1.7e308, -1.7e308],
        [1e300, -1e300, 1.0],
        [5e-324, 5e-324, -5e-324],
        [2.0**53, 1.0, 1.0, 1.0, -(2.0**53)],
    ],
)
def test_sums_at_the_ends_of_a_double(server, numbers, hop_ms):
    """A sum that leaves the range of a double is the largest one, and whatever is finite if it comes back.

    All others, and what is made of them, are what they are.
    """
    reader = Reader(server, 3)
    functions = ("SUM", "MEAN", "MIN", "MAX", "VAR_POP", "STDDEV_SAMP")
    windows = [Window(f"its_{f.lower()}", f, MINUTE_MS, hop_ms, "x", "FLOAT") for f in functions]
    windows.append(Window("decayed", "DECAYED_SUM", MINUTE_MS, hop_ms, "x", "FLOAT", HOUR_MS))
    register(reader.client, "ends", {"x": "FLOAT"}, windows)
    key = "fs:v1:ends:u1"
    events = [Event(BEGIN_MS + 1_000 * place, {"x": number}) for place, number in enumerate(numbers)]
    # What is left when these have gone is exact again.
    events.append(Event(BEGIN_MS + MINUTE_MS, {"x": 0.5}))
    for event in events:
        reader.client.execute_command("FS.PUBLISH", key, "AT", event.time_ms, "x", event.values["x"])
    for after_ms in (MINUTE_MS, MINUTE_MS + hop_ms, 2 * MINUTE_MS, 3 * MINUTE_MS + hop_ms):
        told = reader.client.execute_command("FS.GET", key, "AT", BEGIN_MS + after_ms)
        for window in windows:
            expected, got = window.expected(events, BEGIN_MS + after_ms), told[window.name.encode()]
            assert expected.accepts(got), f"{window} after {after_ms} ms: {got}, expected {expected}"
