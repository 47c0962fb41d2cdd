"""Alerts of drift: when one starts and ends, what is told of it and where, and that no copy repeats or forgets one.

The values are made so that their place to the threshold is known: alternating around a mean, or a shifted ramp, whose
Kolmogorov-Smirnov distance is the shift over its length. Checks are awaited by their count.
"""

import itertools
import json

import numpy as np
import pytest
from drifting_view import (
    alerts_written,
    await_checks,
    define,
    drift,
    everything_drifts,
    module_info,
    publish_rows,
    traffic,
    typed,
)
from scipy import stats
from test_persistence import ALWAYS
from test_replication import assert_same, fail_over
from test_resync import is_answering
from windowed_view import clock_ms, fs

from server import await_until

QUICK = {"fs.drift-interval": 100, "fs.sweep-interval": 10}
FIELDS = [
    "event", "view", "version", "feature", "method", "baseline", "current", "statistic", "p_value", "effect",
    "threshold", "baseline_n", "current_n",
]  # fmt: skip
# Around a baseline of mean 100 and deviation 10: the effect on MEAN is a hundredth of the distance, its threshold 0.2.
FAR, BETWEEN, NEAR = 130, 118, 112


@pytest.fixture
def server(fresh_server):
    """Checks ten times a second, and has one feature with a baseline of its mean and deviation."""
    server = fresh_server(QUICK)
    register(server)
    return server


def register(server) -> None:
    client = typed(server)
    fs(client, "FS.REGISTER profile ENTITY user LOG OFF SCHEMA x FLOAT n INT word STRING")
    fs(client, "FS.BASELINE profile x STATS mean 100 stddev 10")


def move(client, mean: float, feature: str = "x", view: str = "profile", *then) -> None:
    """The current values are now around this mean, as far from it as the baseline's."""
    replace(client, feature, [mean + (10 if i % 2 else -10) for i in range(200)], view, *then)


def replace(client, feature: str, values: list, view: str = "profile", *then) -> None:
    """Puts these values in place of the current ones, and runs one more command, before any check can come."""
    words = [
        word
        for i, value in enumerate(values)
        for word in (f"fs:v1:{view}:u{i}", json.dumps({feature: value}))
    ]
    with client.pipeline() as pipeline:
        fs(pipeline, f"FS.BASELINE {view} {feature} CLEAR CURRENT")
        pipeline.execute_command("FS.MPUBLISH", *words)
        if then:
            pipeline.execute_command(*then)
        pipeline.execute()


def told(client, method: str | None = None) -> list[tuple]:
    """What the stream tells, in short: event, feature and method."""
    entries = [(e["event"], e["feature"], e["method"]) for _, e in alerts_written(client)]
    return [entry for entry in entries if method in (None, entry[2])]


def active(server) -> int:
    return module_info(server)["drift_alerts"]


def await_told(client, count: int) -> None:
    await_until(lambda: len(told(client)) >= count, 20, f"{count} entries")


START, END = ("start", "x", "MEAN"), ("end", "x", "MEAN")


# Start and end


def test_an_alert_starts_and_ends_and_between_the_two_it_stays(server):
    client = typed(server)
    expected = []
    # On the way out, 0.18 is no alert yet; on the way back, it still is one.
    for mean, entries in [
        (100, []),
        (BETWEEN, []),
        (FAR, [START]),
        (BETWEEN, []),
        (FAR, []),
        (122, []),
        (117, []),
        (NEAR, [END]),
        (BETWEEN, []),
        (79, [START]),
        (83, []),
        (85, [END]),
    ]:
        move(client, mean)
        expected += entries
        await_checks(server)
        assert told(client) == expected, mean
        assert active(server) == (expected[-1:] == [START])
        # Asked, it says what is so now.
        (now,) = fs(client, "FS.DRIFT profile x METHOD MEAN")
        assert now["alert"] == (abs(mean - 100) > 20)
        assert now["effect"] == pytest.approx(abs(mean - 100) / 100)
    assert module_info(server)["drift_alerts_started"] == 2


def test_a_p_value_ends_an_alert_only_well_above_the_level(server):
    client = typed(server)
    fs(client, "FS.BASELINE profile x SAMPLES 100", *range(10_000, 10_100))

    def shift(by: int) -> float:
        """Moves the ramp, and answers the p-value; the distance is a hundredth of the shift."""
        replace(client, "x", list(range(10_000 + by, 10_100 + by)))
        found = stats.ks_2samp(np.arange(100), np.arange(by, 100 + by), method="asymp")
        assert found.statistic == pytest.approx(by / 100)
        await_checks(server)
        return found.pvalue

    started, ended = ("start", "x", "KS"), ("end", "x", "KS")
    # One test with a p-value is all there is: the level is 0.05.
    assert shift(30) < 0.05 and told(client, "KS") == [started]
    assert 0.05 < shift(17) < 0.2 and told(client, "KS") == [started]
    # The distance alone would keep it.
    assert shift(12) > 0.2 and told(client, "KS") == [started, ended]
    assert 0.05 < shift(17) < 0.2 and told(client, "KS") == [started, ended]


@pytest.mark.parametrize("others", ["tests", "too few values"])
def test_the_level_is_shared_by_all_tests_with_a_p_value(fresh_server, others):
    server = fresh_server(QUICK | {"fs.drift-interval": 0})
    client = typed(server)
    # Ten tests of numbers and nine of categories beside the one that is looked at: all of them at rest.
    numbers, categories = [f"f{i}" for i in range(10)], [f"s{i}" for i in range(9)]
    schema = " ".join([f"{f} FLOAT" for f in ["x", *numbers]] + [f"{f} STRING" for f in categories])
    fs(client, f"FS.REGISTER profile ENTITY user LOG OFF SCHEMA {schema}")
    for feature in ["x", *numbers]:
        fs(client, f"FS.BASELINE profile {feature} SAMPLES 100", *range(10_000, 10_100))
    for feature in categories:
        fs(client, f"FS.BASELINE profile {feature} CATEGORIES 2 a 50 b 50")
    fs(client, "FS.REGISTER more ENTITY user LOG OFF SCHEMA x FLOAT")
    fs(client, "FS.BASELINE more x SAMPLES 100", *range(100))
    count = 100 if others == "tests" else 99
    still = {f: (lambda i: 10_000 + i) for f in numbers} | {f: (lambda i: "ab"[i % 2]) for f in categories}
    publish_rows(client, [{f: value(i) for f, value in still.items()} for i in range(count)])
    publish_rows(client, [{"x": i} for i in range(count)], view="more")
    shift = 22
    publish_rows(client, [{"x": 10_000 + shift + i} for i in range(100)])
    p = stats.ks_2samp(np.arange(100), np.arange(shift, 100 + shift), method="asymp").pvalue
    tests = 1 + len(numbers) + len(categories) + 1
    assert 0.05 / tests < p < 0.05
    asked = drift(client, "profile", "x")["x", "KS"]
    assert asked["alert"] and asked["p_value"] == pytest.approx(p, rel=1e-6)
    client.config_set("fs.drift-interval", 100)
    await_checks(server)
    if others == "tests":
        assert told(client, "KS") == []
        fs(client, "FS.DROP more")
        for feature in numbers[1:] + categories:
            fs(client, f"FS.BASELINE profile {feature} CLEAR BASELINE")
        # Of two tests the level is 0.025.
        assert p < 0.05 / 2
        await_checks(server)
    assert told(client, "KS") == [("start", "x", "KS")]


def test_too_few_values_leave_an_alert_as_it_is(server):
    client = typed(server)
    move(client, FAR)
    await_told(client, 1)
    for values in ([1], [100] * 99, [1_000] * 99):
        replace(client, "x", values)
        await_checks(server)
        assert drift(client, "profile", "x")["x", "MEAN"]["status"] == "INSUFFICIENT"
        assert told(client) == [START] and active(server) == 1
    move(client, 100)
    await_told(client, 2)
    replace(client, "x", [1_000] * 99)
    await_checks(server)
    assert told(client) == [START, END] and active(server) == 0


ENDS = {
    "FS.BASELINE profile x CLEAR BASELINE": [END],
    # Another baseline, of which there is no such test.
    "FS.BASELINE profile n CATEGORIES 1 5 100": [("end", "n", "MEAN")],
    "FS.DROP profile": [END, ("end", "n", "MEAN")],
    "FS.DROP profile VERSION 1": [END, ("end", "n", "MEAN")],
    # These end nothing.
    "FLUSHALL": [],
    "FS.DEL fs:v1:profile:u1": [],
    "FS.REGISTER profile VERSION 2 ENTITY user SCHEMA x FLOAT": [],
    "FS.ALTER profile TTL 5d": [],
    "DEBUG RELOAD": [],
}


@pytest.mark.parametrize("line", ENDS)
def test_an_alert_ends_when_there_is_nothing_left_to_test(server, line):
    client = typed(server)
    fs(client, "FS.BASELINE profile n STATS mean 100 stddev 10")
    publish_rows(client, [dict.fromkeys("xn", FAR + (10 if i % 2 else -10)) for i in range(200)])
    await_told(client, 2)
    fs(client, line)
    await_checks(server)
    after = told(client)[0 if line == "FLUSHALL" else 2 :]
    assert sorted(entry for entry in after if entry[2] == "MEAN") == sorted(ENDS[line])
    changes = [1 if event == "start" else -1 for event, *_ in after]
    assert active(server) == 2 + sum(changes)
    if line == "FS.DROP profile":
        assert active(server) == 0
        register(server)
        await_checks(server)
        assert told(client)[2:] == after


# What is told


def test_an_entry_and_a_message_tell_what_was_measured(server):
    client = typed(server)
    subscriber = typed(server).pubsub()
    subscriber.subscribe("fs:alerts")
    await_until(
        lambda: (subscriber.get_message(timeout=1) or {}).get("type") == "subscribe", what="to subscribe"
    )
    fs(client, "FS.BASELINE profile n SAMPLES 120", *range(120))
    fs(client, "FS.BASELINE profile word CATEGORIES 2 a 500 b 500")
    # Of no deviation at all any other is infinitely far.
    fs(client, "FS.BASELINE profile x STATS mean 100 stddev 0")
    words = ["a", "b", "b", "b", "é'\n\"\\"]
    publish_rows(client, [{"x": 140 + i % 20, "n": i, "word": words[i % 5]} for i in range(400)])
    await_checks(server)
    measured = drift(client, "profile")
    flat = server.client(decode_responses=True).execute_command("FS.DRIFT", "profile")
    texts = {(t[1], t[3]): dict(zip(t[::2], t[1::2], strict=True)) for t in flat}
    alerting = {key for key, each in measured.items() if each["alert"]}
    assert {("x", "MEAN"), ("x", "STDDEV"), ("n", "KS"), ("n", "WASSERSTEIN"), ("word", "CHI2")} <= alerting
    assert ("word", "NEW_CATEGORIES") in alerting and len(alerting) < len(measured)
    assert texts["x", "MEAN"]["baseline_n"] is None is texts["x", "MEAN"]["p_value"]
    assert texts["x", "STDDEV"]["effect"] == "inf"
    entries = [entry for _, entry in alerts_written(client)]
    assert sorted(key_of(entry) for entry in entries) == sorted(alerting)
    messages = {key_of(each): each for each in (next_message(subscriber) for _ in entries)}
    for entry in entries:
        message, measure = messages[key_of(entry)], texts[key_of(entry)]
        assert list(entry) == FIELDS and sorted(message) == sorted(FIELDS)
        assert (entry["event"], entry["view"], entry["version"]) == ("start", "profile", "1")
        for member in FIELDS[5:]:
            value = measure[member]
            assert entry[member] == ("" if value is None else str(value)), (key_of(entry), member)
        for member, text in entry.items():
            value = message[member]
            same = float(text) == value if isinstance(value, int | float) else text == (value or "")
            assert same, (key_of(entry), member, value)
    # The end of one is told in the same way.
    move(client, 100)
    await_until(lambda: END in told(client), 20, "the end")
    ended = next(entry for _, entry in alerts_written(client) if (entry["event"], *key_of(entry)) == END)
    assert list(ended) == FIELDS and float(ended["effect"]) == 0
    message = await_until(lambda: (each := next_message(subscriber))["event"] == "end" and each, what="it")
    assert sorted(message) == sorted(FIELDS) and message["feature"] == "x"


def key_of(entry: dict) -> tuple[str, str]:
    return entry["feature"], entry["method"]


def next_message(subscriber) -> dict:
    data = await_until(lambda: subscriber.get_message(timeout=1), what="a message")["data"]
    return json.loads(data, parse_constant=pytest.fail)


def test_the_figures_of_the_module_count_alerts_and_checks(server):
    client = typed(server)
    before = module_info(server)
    assert (before["drift_alerts"], before["drift_alerts_started"]) == (0, 0)
    for i in range(3):
        move(client, FAR)
        await_told(client, 2 * i + 1)
        assert active(server) == 1
        move(client, 100)
        await_told(client, 2 * i + 2)
        assert active(server) == 0
    after = module_info(server)
    assert after["drift_alerts_started"] == 3
    assert after["drift_checks"] >= before["drift_checks"] + 6
    assert after["drift_samples_bytes"] > 0


def test_no_interval_is_no_check(server):
    client = typed(server)
    client.config_set("fs.drift-interval", 0)
    await_checks_to_rest(server)
    checks = module_info(server)["drift_checks"]
    move(client, FAR)
    await_time(client, 1_500)
    assert module_info(server)["drift_checks"] == checks
    assert told(client) == [] and drift(client, "profile", "x")["x", "MEAN"]["alert"]
    client.config_set("fs.drift-interval", 100)
    await_told(client, 1)
    assert told(client) == [START]


def await_time(client, ms: int) -> None:
    """Several checks would fit in here; that nothing happens cannot be awaited."""
    until_ms = clock_ms(client) + ms
    await_until(lambda: clock_ms(client) >= until_ms, what="the time to pass")


def await_checks_to_rest(server) -> None:
    """A check may be under way while the interval is set to 0."""
    seen = []

    def is_at_rest() -> bool:
        seen.append(module_info(server)["drift_checks"])
        await_time(server.client(), 150)
        return len(seen) > 1 and seen[-1] == seen[-2]

    await_until(is_at_rest, what="the last check")


def test_the_stream_keeps_about_the_newest_ten_thousand(server):
    client, replica = typed(server), server.replica({"repl-diskless-load": "on-empty-db"})
    with client.pipeline(transaction=False) as pipeline:
        for i in range(15_000):
            pipeline.xadd("fs:alerts", {"event": "start", "feature": "x", "method": "none", "i": i})
        pipeline.execute()
    move(client, FAR)
    await_until(lambda: active(server) == 1, 20, "the alert")
    await_until(lambda: client.xlen("fs:alerts") < 12_000, what="the stream to be trimmed")
    assert client.xlen("fs:alerts") >= 10_000
    assert client.xrevrange("fs:alerts", count=1)[0][1]["method"] == "MEAN"
    assert_same(server, replica)


# Copies


def some_alerts(server) -> None:
    """Alerts of all kinds that started, and some that ended."""
    client = typed(server)
    define(client)
    traffic(server, 300)
    register_second(client)
    for mean in (FAR, 100, FAR):
        move(client, mean, view="second")
        await_checks(server)
    assert {"start", "end"} == {event for event, *_ in told(client)} and active(server) > 5


def register_second(client) -> None:
    fs(client, "FS.REGISTER second ENTITY user LOG OFF SCHEMA x FLOAT")
    fs(client, "FS.BASELINE second x STATS mean 100 stddev 10")


def test_replicas_have_the_same_stream_and_check_nothing_themselves(fresh_server):
    primary = fresh_server(QUICK)
    replica = primary.replica({"repl-diskless-load": "on-empty-db"})
    some_alerts(primary)
    late = primary.replica({"repl-diskless-load": "disabled"})
    last = replica.replica({"replicaof": f"127.0.0.1 {replica.port}", "repl-diskless-load": "swapdb"})
    move(typed(primary), 100, view="second")
    await_checks(primary)
    for copy in (replica, late):
        assert_same(primary, copy)
    assert_same(replica, last)
    for copy in (replica, late, last):
        assert alerts_written(typed(copy)) == alerts_written(typed(primary))
        assert active(copy) == active(primary)
        assert module_info(copy)["drift_checks"] == 0


WAYS = ["REPLICAOF NO ONE", "FAILOVER", "restart", "power cut"]


@pytest.mark.parametrize("way", WAYS)
def test_whoever_goes_on_neither_repeats_nor_forgets(fresh_server, way):
    heir = first = fresh_server(ALWAYS | QUICK)
    if way == "REPLICAOF NO ONE":
        heir = first.replica({"repl-diskless-load": "on-empty-db"})
    some_alerts(first)
    client = typed(first)
    written, count = alerts_written(client), active(first)
    match way:
        case "REPLICAOF NO ONE":
            first.await_replicated(heir)
            first.kill()
            heir.client().replicaof("NO", "ONE")
        case "FAILOVER":
            heir = first.replica({"repl-diskless-load": "on-empty-db"})
            fail_over(first, heir)
        case "restart":
            first.restart()
        case "power cut":
            first.restart(kill=True)
    client = typed(heir)
    await_checks(heir)
    assert alerts_written(client) == written and active(heir) == count
    # The end of an alert that another one started, and a start after it.
    for mean, event in ((100, "end"), (FAR, "start")):
        move(client, mean, view="second")
        await_checks(heir)
        last = alerts_written(client)[-1][1]
        assert (last["event"], last["view"], last["method"]) == (event, "second", "MEAN")
    assert len(alerts_written(client)) == len(written) + 2 and active(heir) == count
    if way == "FAILOVER":
        assert_same(heir, first)


def test_a_resync_that_fails_takes_nothing_away(fresh_server):
    # A transfer that would take minutes: the load is under way when the sender dies.
    primary = fresh_server(QUICK | {"rdb-key-save-delay": 20_000, "rdbcompression": "no"})
    define(typed(primary))
    traffic(primary, 100, seed=9)
    with primary.client().pipeline(transaction=False) as pipeline:
        for i in range(5_000):
            pipeline.set(f"filler{i}", "x" * 5_000)
        pipeline.execute()
    replica = fresh_server(QUICK | {"repl-diskless-load": "on-empty-db"})
    some_alerts(replica)
    client = typed(replica)
    before, count = everything_drifts(client), active(replica)
    # Only without keys it reads what comes as it comes.
    client.flushall()
    client.replicaof("127.0.0.1", primary.port)
    await_until(lambda: "Loading DB in memory" in replica.log(), 20, "the load to begin")
    primary.kill()
    await_until(lambda: is_answering(client), 20, "the load to fail")
    client.replicaof("NO", "ONE")
    await_checks(replica)
    assert everything_drifts(client) == before and active(replica) == count


@pytest.mark.parametrize("settings", [{}, {"appendonly": "yes"}], ids=["memory", "aof"])
def test_failovers_while_alerts_come_and_go_harm_nobody(fresh_server, settings):
    first = fresh_server(QUICK | settings)
    second = first.replica({"repl-diskless-load": "on-empty-db"})
    register_second(typed(first))
    means = itertools.cycle((FAR, 100))
    for old, new in [(first, second), (second, first)] * 3:
        for _ in range(3):
            move(typed(old), next(means), view="second")
        fail_over(old, new)
        await_checks(new)
        assert_same(new, old)
        assert active(new) == active(old)
    events = [event for event, *_ in told(typed(first))]
    # Each failover left the mean elsewhere than the one before.
    assert len(events) >= 6 and events[0] == "start" and all(a != b for a, b in itertools.pairwise(events))


def test_nothing_is_written_while_writes_are_paused(fresh_server):
    primary = fresh_server(QUICK | {"appendonly": "yes"})
    replica = primary.replica({"repl-diskless-load": "on-empty-db"})
    client = typed(primary)
    register(primary)
    move(client, FAR, "x", "profile", "CLIENT", "PAUSE", 100_000, "WRITE")
    await_time(client, 1_000)
    assert not client.exists("fs:alerts") and active(primary) == 0
    client.client_unpause()
    await_told(client, 1)
    assert told(client) == [START]
    assert_same(primary, replica)


def test_nothing_is_written_over_the_memory_limit(server):
    client = typed(server)
    move(client, FAR, "x", "profile", "CONFIG", "SET", "maxmemory", 1)
    await_time(client, 1_000)
    assert not client.exists("fs:alerts") and active(server) == 0
    client.config_set("maxmemory", 0)
    await_told(client, 1)
    assert told(client) == [START]


def test_a_stream_that_is_no_stream_is_left_alone_and_the_log_tells(server):
    client = typed(server)
    client.set("fs:alerts", "x")
    move(client, FAR)
    await_until(lambda: "fs:alerts" in server.log(), 20, "the log to tell")
    await_checks(server)
    assert client.get("fs:alerts") == "x"
    # It does not fill the log while it lasts.
    lines = server.log().count("fs:alerts")
    await_checks(server, 5)
    assert server.log().count("fs:alerts") <= lines + 5
    client.delete("fs:alerts")
    fs(client, "FS.BASELINE profile n STATS mean 100 stddev 10")
    move(client, FAR, "n")
    await_until(lambda: client.exists("fs:alerts"), 20, "the stream")
    await_until(lambda: ("start", "n", "MEAN") in told(client), 20, "the next alert")
