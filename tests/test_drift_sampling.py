"""What feeds the current windows of drift, what they keep of it, and what they take of memory."""

import contextlib
import math

import pytest
import valkey
from drifting_view import (
    ROW,
    all_arrivals,
    arrivals,
    assert_drifts_the_same,
    drift,
    module_info,
    publish_rows,
    register_watched,
    typed,
)
from profile_view import LOG, await_drained, entry
from test_drift_calls import HOUR_MS, OTHER
from windowed_view import clock_ms, fs

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


def test_windows_and_baselines_stay_within_their_memory(fresh_server):
    server = fresh_server()
    client = typed(server)
    numeric = {"n": "INT", "x": "FLOAT", "flag": "BOOL", "seen": "TIMESTAMP"}

    def held() -> int:
        return module_info(server)["drift_samples_bytes"]

    assert held() == 0
    schema = " ".join(f"{name} {type_}" for name, type_ in numeric.items())
    fs(client, f"FS.REGISTER profile ENTITY user LOG OFF SCHEMA {schema}")
    for begin in range(0, 60_000, 10_000):
        rows = range(begin, begin + 10_000)
        publish_rows(client, [{"n": i, "x": i / 7, "flag": i % 2 > 0, "seen": 10**12 + i} for i in rows])
    windows = held()
    for name in numeric:
        fs(client, f"FS.BASELINE profile {name} STATS mean {10**12 if name == 'seen' else 1} stddev 1")
    sizes = [drift(client, "profile", name)[name, "MEAN"]["current_n"] for name in numeric]
    assert min(sizes) > 8_000
    assert 9 * sum(sizes) <= windows <= 120_000 * len(numeric)
    for name in numeric.keys() - {"flag"}:
        fs(client, f"FS.BASELINE profile {name} SAMPLES 10000", *range(10**12, 10**12 + 10_000))
    assert windows + 3 * 80_000 <= held() <= windows + 3 * 120_000
    # What has no length of its own: texts by their beginning, vectors by their sum, lists by their number.
    for name, words, least, most, value in (
        ("text", "s STRING", 640_000, 2_000_000, lambda i: f"{i}" + "t" * 2_000),
        ("vector", "v VECTOR 64", 64 * 4, 48 * 64 * 8 + 2_000, lambda i: [i] * 64),
        ("list", "l LIST", 0, 4_000, lambda i: [i] * 64),
    ):
        before = held()
        fs(client, f"FS.REGISTER {name} ENTITY user LOG OFF SCHEMA {words}")
        publish_rows(client, [{words[0]: value(i)} for i in range(12_000)], view=name)
        assert least <= held() - before <= most, name
        fs(client, f"FS.DROP {name}")
        assert held() == before
    fs(client, "FS.DROP profile")
    assert held() == 0
