"""How far approximate window functions may be off.

They are APPROX_COUNT_DISTINCT and APPROX_PERCENTILE, and TOP_K and HISTOGRAM beyond 256 values. Each event
carries many inputs, each a trial of its own; entities are more of them. Seeds are fixed.
"""

import json
import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats
from window_oracle import HOUR_MS, MINUTE_MS, stored, within_percent

BEGIN_MS = 1_580_000_400_000  # A whole hour.
STANDARD_ERROR = 0.023
EXACT_VALUES = 256
BINS_MAX = 4096
# A check that holds fails by chance once in so many draws of its seeds.
CHANCE = 1e-4


@pytest.fixture
def client(server):
    return server.client(protocol=3)


def register(client, inputs: dict[str, str], windows: dict[str, str]) -> None:
    """A view without a log: inputs with their types, windows with what follows their names."""
    words = ["FS.REGISTER", "rough", "ENTITY", "user", "LOG", "OFF", "SCHEMA"]
    for name, type_ in inputs.items():
        words += [name, type_, "INPUT"]
    for name, definition in windows.items():
        words += [name, *definition.split()]
    assert client.execute_command(*words) == b"OK"


def key_of(entity: int) -> str:
    return f"fs:v1:rough:u{entity}"


def feed(client, key: str, times: list[int], columns: dict[str, list]) -> None:
    """Publishes one event for each time, in that order, with a value of each column."""
    forms = {str: '"%s"', int: "%d", float: "%r"}
    members = ",".join(f'"{name}":{forms[type(column[0])]}' for name, column in columns.items())
    template = '{"_at":%d,' + members + "}"
    rows = list(zip(times, *columns.values(), strict=True))
    with client.pipeline(transaction=False) as pipeline:
        for start in range(0, len(rows), 500):
            words = [word for row in rows[start : start + 500] for word in (key, template % row)]
            pipeline.execute_command("FS.MPUBLISH", *words)
        replies = pipeline.execute()
    assert sum(replies) == len(rows)


def read(client, key: str, at_ms: int) -> dict:
    return {
        name.decode(): value for name, value in client.execute_command("FS.GET", key, "AT", at_ms).items()
    }


# Distinct values


def check_errors(errors: list[float], what: str) -> None:
    """Relative errors are those of a sketch with the documented standard error."""
    far = sum(abs(error) > 3 * STANDARD_ERROR for error in errors)
    # The normal distribution leaves 0.27 percent beyond three standard errors.
    far_max = stats.binom.isf(CHANCE, len(errors), 2 * stats.norm.sf(3))
    assert far <= far_max, f"{what}: {far} of {len(errors)} are off by more than 3 standard errors"
    mean_square = sum(error * error for error in errors) / len(errors)
    allowed = STANDARD_ERROR * math.sqrt(stats.chi2.isf(CHANCE, len(errors)) / len(errors))
    assert math.sqrt(mean_square) <= allowed, (
        f"{what}: the error is {math.sqrt(mean_square):.4f}, at most {allowed:.4f}"
    )


TRIALS = 16
VALUES = {
    "numbers in a row": ("INT", lambda trial, i: trial * 10_000_000 + i),
    "numbers far apart": ("INT", lambda trial, i: (i * 1_000_003 + trial) << 20),
    "words": ("STRING", lambda trial, i: f"user_{trial}_{i}"),
    "fractions": ("FLOAT", lambda trial, i: (trial + 1) / 7 + i / 1000),
}


def distinct_windows(type_: str) -> tuple[dict, dict]:
    inputs = {f"v{trial}": type_ for trial in range(TRIALS)}
    return inputs, {
        f"d{trial}": f"INT AGG APPROX_COUNT_DISTINCT v{trial} WINDOW 1h" for trial in range(TRIALS)
    }


# The size up to which each of some entities grows.
GROWING = [5_000] * 4 + [20_000] * 3 + [60_000] * 2
SIZES = [300, 600, 1_000, 2_500, 5_000, 6_500, 10_000, 20_000, 60_000]


@pytest.mark.parametrize("values", VALUES)
def test_distinct_counts_are_within_their_standard_error(client, values):
    type_, value = VALUES[values]
    register(client, *distinct_windows(type_))
    errors = {size: [] for size in SIZES}
    for entity, last in enumerate(GROWING):
        draw = np.random.default_rng(entity)
        done = 0
        for size in [size for size in SIZES if size <= last]:
            # Values come in the hour in any order, and one in ten comes again.
            places = [*range(done, size), *draw.integers(0, size, (size - done) // 10).tolist()]
            columns = {
                f"v{trial}": [value(entity * TRIALS + trial, place) for place in places]
                for trial in range(TRIALS)
            }
            times = (BEGIN_MS + draw.integers(0, HOUR_MS, len(places))).tolist()
            feed(client, key_of(entity), times, columns)
            told = read(client, key_of(entity), BEGIN_MS + HOUR_MS - 1)
            errors[size] += [(told[f"d{trial}"] - size) / size for trial in range(TRIALS)]
            done = size
    for size, some in errors.items():
        check_errors(some, f"{values}, {size} of them")


def test_distinct_counts_stay_within_their_standard_error_as_the_window_moves(client):
    register(client, *distinct_windows("INT"))
    minutes_after = (0, 10, 30, 45, 55, 58)
    errors = {minutes: [] for minutes in minutes_after}
    for entity in range(5):
        draw = np.random.default_rng(entity)
        count = 15_000
        # Some values come again later, some come late.
        times = np.sort(draw.integers(0, HOUR_MS, count))
        values = np.arange(count)
        again = draw.integers(0, count, count // 5)
        times = np.append(times, draw.integers(0, HOUR_MS, len(again)))
        values = np.append(values, again)
        order = np.argsort(times + draw.integers(0, 5 * MINUTE_MS, len(times)))
        times, values = times[order], values[order]
        columns = {f"v{t}": ((entity * TRIALS + t) * 10_000_000 + values).tolist() for t in range(TRIALS)}
        feed(client, key_of(entity), (BEGIN_MS + times).tolist(), columns)
        newest = np.zeros(count, dtype=np.int64)
        np.maximum.at(newest, values, times)
        for minutes in minutes_after:
            at_ms = BEGIN_MS + HOUR_MS - 1 + minutes * MINUTE_MS
            told = read(client, key_of(entity), at_ms)
            start_ms = (at_ms - HOUR_MS) // MINUTE_MS * MINUTE_MS - BEGIN_MS
            left = int((newest >= start_ms).sum())
            assert left > 100
            errors[minutes] += [(told[f"d{trial}"] - left) / left for trial in range(TRIALS)]
        told = read(client, key_of(entity), BEGIN_MS + 2 * HOUR_MS + MINUTE_MS)
        assert {told[f"d{trial}"] for trial in range(TRIALS)} == {0}
    for minutes, some in errors.items():
        check_errors(some, f"{minutes} minutes later")


def test_what_left_a_sketch_does_not_come_back(client):
    """Long after, also after as many hops as its stamps may count to, one value is one value."""
    register(client, *distinct_windows("INT"))
    for entity, hops in enumerate(
        [61, 62, 1_000, 4_095, 16_383, 16_384, 32_767, 32_768, 65_535, 65_536, 500_000]
    ):
        key = key_of(entity)
        columns = {
            f"v{trial}": list(range(trial * 10_000, trial * 10_000 + 1_000)) for trial in range(TRIALS)
        }
        feed(client, key, [BEGIN_MS + i for i in range(1_000)], columns)
        errors = [(count - 1_000) / 1_000 for count in read(client, key, BEGIN_MS).values()]
        check_errors(errors, "before")
        for step in (1, 2):
            at_ms = BEGIN_MS + step * hops * MINUTE_MS
            feed(client, key, [at_ms], {f"v{trial}": [1] for trial in range(TRIALS)})
            assert set(read(client, key, at_ms).values()) == {1}, (hops, step)


@pytest.mark.parametrize("values", VALUES)
def test_distinct_counts_are_exact_while_the_window_holds_256_values(client, values):
    """Of windows of several lengths over one input, each by itself, whatever the state holds for the others."""
    type_, value = VALUES[values]
    trials, lengths, hop_ms = 4, (5, 20, 60), MINUTE_MS
    windows = {
        f"d{trial}_{minutes}": f"INT AGG APPROX_COUNT_DISTINCT v{trial} WINDOW {minutes}m HOP 1m"
        for trial in range(trials)
        for minutes in lengths
    }
    register(client, {f"v{trial}": type_ for trial in range(trials)}, windows)
    draw = np.random.default_rng(7)
    # 256 new values in any 21 hops, so that many at most in a window of 20 minutes; one in four comes again.
    numbers = np.arange(12 * EXACT_VALUES)
    numbers = np.append(numbers, draw.choice(numbers, len(numbers) // 3))
    times = BEGIN_MS + numbers * 21 // EXACT_VALUES * hop_ms + draw.integers(0, hop_ms, len(numbers))
    # Some come late.
    order = np.argsort(times + draw.integers(0, 3 * hop_ms, len(times)))
    times, numbers = times[order].tolist(), numbers[order].tolist()
    most, beside_more, errors = 0, 0, []
    for start in range(0, len(times), EXACT_VALUES):
        end = start + EXACT_VALUES
        columns = {f"v{trial}": [value(trial, n) for n in numbers[start:end]] for trial in range(trials)}
        feed(client, key_of(0), times[start:end], columns)
        for minutes_later in (0, 20, 45):
            at_ms = max(times[:end]) + minutes_later * MINUTE_MS
            told = read(client, key_of(0), at_ms)
            inside = {}
            for minutes in lengths:
                begin_ms = (at_ms - minutes * MINUTE_MS) // hop_ms * hop_ms
                inside[minutes] = len(
                    {n for n, t in zip(numbers[:end], times[:end], strict=True) if t >= begin_ms}
                )
            for minutes, count in inside.items():
                counts = [told[f"d{trial}_{minutes}"] for trial in range(trials)]
                if count <= EXACT_VALUES:
                    assert set(counts) == {count}, (minutes, minutes_later)
                    most = max(most, count)
                    beside_more += max(inside.values()) > EXACT_VALUES
                else:
                    errors += [(got - count) / count for got in counts]
    assert most == EXACT_VALUES and beside_more > 20
    check_errors(errors, "beyond")


@pytest.mark.parametrize("values", VALUES)
def test_distinct_counts_are_exact_while_256_values_are_within_reach(client, values):
    """Thousands of values come by."""
    type_, value = VALUES[values]
    register(client, *distinct_windows(type_))
    key, hop_ms = key_of(0), MINUTE_MS
    # 61 hops are in reach, 256 values in any 61 of them.
    times = sorted(BEGIN_MS + (61 * i // EXACT_VALUES) * hop_ms + i % 7 for i in range(2_000))
    for start in range(0, len(times), 50):
        columns = {f"v{t}": [value(t, i) for i in range(start, start + 50)] for t in range(TRIALS)}
        feed(client, key, times[start : start + 50], columns)
        for at_ms in (times[start + 49], times[start + 49] + 20 * MINUTE_MS):
            begin_ms, end_ms = (at_ms - HOUR_MS) // hop_ms * hop_ms, at_ms // hop_ms * hop_ms + hop_ms
            inside = sum(begin_ms <= time_ms < end_ms for time_ms in times[: start + 50])
            assert inside <= EXACT_VALUES
            told = read(client, key, at_ms)
            assert {told[f"d{trial}"] for trial in range(TRIALS)} == {inside}


# Percentiles

SHARES = [0.001, 0.01, 0.1, 0.29, 0.5, 0.75, 0.9, 0.99, 0.999]
DISTRIBUTIONS = {
    "delays": lambda draw, n: draw.lognormal(3, 1.5, n),
    "heavy": lambda draw, n: draw.pareto(0.7, n) + 1e-3,
    "signed": lambda draw, n: draw.normal(0, 100, n),
    "near_zero": lambda draw, n: draw.normal(0, 1e-300, n),
    "zeros": lambda draw, n: draw.choice([0.0, -0.0, 1.0, -1.0, 1e-9], n),
    "two_hills": lambda draw, n: np.where(
        draw.random(n) < 0.5, draw.normal(-1e6, 1, n), draw.normal(1e9, 1, n)
    ),
    "scales": lambda draw, n: draw.choice([-1, 1], n) * 10.0 ** draw.uniform(-300, 300, n),
    "whole": lambda draw, n: draw.integers(-50, 200, n).astype(float),
}


@pytest.mark.parametrize(("size", "seeds"), [(1, 10), (2, 10), (10, 40), (100, 40), (1_000, 15), (20_000, 2)])
def test_percentiles_are_always_within_one_percent(client, size, seeds):
    windows = {
        f"{name}{place}": f"FLOAT AGG APPROX_PERCENTILE {share} {name} WINDOW 1h"
        for name in DISTRIBUTIONS
        for place, share in enumerate(SHARES)
    }
    register(client, dict.fromkeys(DISTRIBUTIONS, "FLOAT"), windows)
    for seed in range(seeds):
        draw = np.random.default_rng(seed)
        columns = {name: numbers(draw, size) for name, numbers in DISTRIBUTIONS.items()}
        times = BEGIN_MS + draw.integers(0, HOUR_MS, size)
        feed(
            client, key_of(seed), times.tolist(), {name: column.tolist() for name, column in columns.items()}
        )
        for minutes in (0, 20, 50):
            at_ms = BEGIN_MS + HOUR_MS - 1 + minutes * MINUTE_MS
            told = read(client, key_of(seed), at_ms)
            inside = times >= (at_ms - HOUR_MS) // MINUTE_MS * MINUTE_MS
            for name, column in columns.items():
                ranked = np.sort(column[inside]).tolist()
                for place, share in enumerate(SHARES):
                    got = told[f"{name}{place}"]
                    if not ranked:
                        assert got is None
                        continue
                    value = ranked[math.floor(share * (len(ranked) - 1))]
                    assert within_percent(value).accepts(got), (seed, minutes, name, share, value, got)


@pytest.mark.parametrize(
    "number", [5e-324, -5e-324, 3e-323, 2.2250738585072014e-308, 1e-300, 1.0, 1e300, 1.7976931348623157e308]
)
def test_a_percentile_of_one_value_at_the_ends_of_a_double(client, number):
    register(client, {"x": "FLOAT"}, {"p": "FLOAT AGG APPROX_PERCENTILE 0.5 x WINDOW 1h"})
    for place, value in enumerate((number, -number)):
        feed(client, key_of(place), [BEGIN_MS], {"x": [value]})
        got = read(client, key_of(place), BEGIN_MS)["p"]
        assert within_percent(value).accepts(got), (value, got)


@pytest.mark.parametrize("signs", [[1], [-1], [-1, 1]], ids=["positive", "negative", "both"])
def test_beyond_4096_bins_a_hop_only_values_near_zero_lose_precision(client, signs):
    shares = [round(place / 100, 2) for place in range(1, 100)]
    windows = {f"p{i}": f"FLOAT AGG APPROX_PERCENTILE {share} x WINDOW 1h" for i, share in enumerate(shares)}
    register(client, {"x": "FLOAT"}, windows)
    draw = np.random.default_rng(1)
    values = draw.choice(signs, 20_000) * 10.0 ** draw.uniform(-150, 150, 20_000)
    feed(client, key_of(0), [BEGIN_MS] * len(values), {"x": values.tolist()})
    told = read(client, key_of(0), BEGIN_MS)
    ranked = np.sort(values).tolist()
    # As many values fill at most as many bins.
    kept = np.sort(np.abs(values))[-BINS_MAX]
    precise = 0
    for i, share in enumerate(shares):
        value, got = ranked[math.floor(share * (len(ranked) - 1))], told[f"p{i}"]
        if abs(value) >= kept:
            precise += 1
            assert within_percent(value).accepts(got), (share, value, got)
        else:
            assert abs(got) <= 1.01 * kept, (share, value, got)
    assert precise >= 15


# The most frequent values

PLACES = 256
WORDS = {f"s{i}": "STRING" for i in range(4)} | {f"n{i}": "INT" for i in range(4)}


def zipf(draw, distinct: int, size: int, exponent: float) -> list[int]:
    weights = 1 / np.arange(1, distinct + 1) ** exponent
    return draw.choice(distinct, size, p=weights / weights.sum()).tolist()


def check_ranking(told: list, type_: str, values: list) -> None:
    """A histogram of Space-Saving: the right total, no value too low, and none higher than the bound."""
    counts = Counter(values)
    error_max = len(values) // PLACES
    assert len(told) <= PLACES
    assert sum(count for _, count in told) == len(values)
    forms = [stored(type_, value.encode() if type_ == "STRING" else value) for value, _ in told]
    assert len(set(forms)) == len(forms)
    keys = [(-count, form) for (_, count), form in zip(told, forms, strict=True)]
    assert keys == sorted(keys)
    for value, count in told:
        assert counts[value] <= count <= counts[value] + error_max, value
    assert {value for value, count in counts.items() if count > error_max} <= {value for value, _ in told}


@pytest.mark.parametrize("is_ordered", [True, False], ids=["in order", "in any order"])
@pytest.mark.parametrize(("distinct", "size"), [(256, 5_000), (257, 5_000), (1_000, 3_000), (10_000, 20_000)])
def test_rankings_beyond_256_values_keep_their_bounds(client, distinct, size, is_ordered):
    windows = {f"{name}_all": f"LIST AGG HISTOGRAM {name} WINDOW 1h" for name in WORDS}
    windows |= {f"{name}_top": f"LIST AGG TOP_K 10 {name} WINDOW 1h" for name in WORDS}
    register(client, WORDS, windows)
    for seed in range(3):
        draw = np.random.default_rng(seed)
        columns = {
            name: zipf(draw, distinct, size, exponent)
            for name, exponent in zip(WORDS, [0.2, 0.8, 1.1, 1.5] * 2, strict=True)
        }
        columns |= {name: [f"item {i}" for i in columns[name]] for name in WORDS if WORDS[name] == "STRING"}
        times = BEGIN_MS + draw.integers(0, HOUR_MS, size)
        times = np.sort(times) if is_ordered else times
        feed(client, key_of(seed), times.tolist(), columns)
        told = {n: json.loads(v) for n, v in read(client, key_of(seed), BEGIN_MS + HOUR_MS - 1).items()}
        for name, type_ in WORDS.items():
            check_ranking(told[f"{name}_all"], type_, columns[name])
            assert told[f"{name}_top"] == told[f"{name}_all"][:10]
            if distinct <= EXACT_VALUES:
                counts = Counter(columns[name])
                assert dict(told[f"{name}_all"]) == counts
        for minutes in (1, 30, 59, 60, 61):
            at_ms = BEGIN_MS + HOUR_MS - 1 + minutes * MINUTE_MS
            told = {n: json.loads(v) for n, v in read(client, key_of(seed), at_ms).items()}
            left = int((times >= (at_ms - HOUR_MS) // MINUTE_MS * MINUTE_MS).sum())
            for name in WORDS:
                assert sum(count for _, count in told[f"{name}_all"]) == left, (minutes, name)


def test_rankings_are_exact_while_the_state_holds_256_values(client):
    register(client, {"n": "INT"}, {"all": "LIST AGG HISTOGRAM n WINDOW 1h"})
    # Thousands of values come by, no more than that within reach; each comes twice.
    times = [BEGIN_MS + (61 * (i // 2) // EXACT_VALUES) * MINUTE_MS for i in range(6_000)]
    for start in range(0, len(times), 200):
        feed(
            client, key_of(0), times[start : start + 200], {"n": [i // 2 for i in range(start, start + 200)]}
        )
        at_ms = times[start + 199]
        begin_ms = (at_ms - HOUR_MS) // MINUTE_MS * MINUTE_MS
        inside = Counter(i // 2 for i, time_ms in enumerate(times[: start + 200]) if time_ms >= begin_ms)
        assert len(inside) <= EXACT_VALUES
        told = json.loads(read(client, key_of(0), at_ms)["all"])
        assert told == sorted(
            ([n, count] for n, count in inside.items()), key=lambda pair: (-pair[1], str(pair[0]))
        )
