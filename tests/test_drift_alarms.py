"""When FS.DRIFT raises the alarm: as rarely as its level says where nothing has changed, and where something has.

Everything that is random has a fixed seed; rates are compared with the binomial distribution at four sigma, verdicts
with SciPy's of the same values. Besides, categories of any bytes, and values of which a textbook has no answer.
"""

import json
from collections import Counter

import numpy as np
import pytest
from drift_oracle import LEVEL, THRESHOLDS, Baseline, Categories, Window, verdicts
from scipy import stats
from test_drift_values import Drift, check, executed, mpublish, text_of

PAIRS, SIGMAS = 1000, 4
VIEW = "rides"


def register(client, type_: str, names: list[str], is_input: bool = True) -> None:
    # Inputs are sampled like all others, and make no rows.
    schema = [word for name in names for word in (name, *type_.split(), *["INPUT"] * is_input)]
    words = ["FS.REGISTER", VIEW, "ENTITY", "ride", "LOG", "OFF", "SCHEMA", *schema]
    assert client.execute_command(*words) == b"OK"


def set_baselines(client, names: list[str], calls: list[list]) -> None:
    commands = [["FS.BASELINE", VIEW, name, *words] for name, words in zip(names, calls, strict=True)]
    assert set(executed(client, commands)) == {b"OK"}


def check_rate(hits: int, of: int, what: str) -> None:
    sigma = np.sqrt(LEVEL * (1 - LEVEL) / of)
    assert abs(hits / of - LEVEL) <= SIGMAS * sigma, f"{what}: {hits} of {of}"


def numbers_of_one_distribution(draw, name: int, n: int) -> np.ndarray:
    """Some distribution, the same for both sides of a pair."""
    match name % 4:
        case 0:
            return draw.normal(35, 12, n)
        case 1:
            return draw.exponential(3, n)
        case 2:
            return draw.lognormal(1, 2, n)
    return draw.uniform(-1, 1, n)


def check_alarms(server, method: str, threshold: float, expected: list, what: str) -> tuple[int, int]:
    """All verdicts are as expected, and the level says how many are significant. How many alert and are significant."""
    told = Drift(server)(VIEW, "METHOD", method, "THRESHOLD", repr(threshold))
    check(told, expected, "pairs of one distribution")
    significant = [entry["p_value"] < LEVEL for entry in told]
    check_rate(sum(significant), PAIRS, f"p < {LEVEL} of {what}")
    alerts = sum(entry["alert"] for entry in told)
    assert alerts == sum(s and e["effect"] > threshold for s, e in zip(significant, told, strict=True))
    assert 0 < alerts <= sum(significant)
    return alerts, sum(significant)


@pytest.mark.parametrize(("n", "m", "threshold"), [(1000, 1300, 0.06), (150, 170, THRESHOLDS["KS"])])
def test_kolmogorov_and_smirnov_alarm_as_often_as_their_level_says(server, client, n, m, threshold):
    draw = np.random.default_rng([21, n])
    names = [f"f{i}" for i in range(PAIRS)]
    old = [numbers_of_one_distribution(draw, i, n) for i in range(PAIRS)]
    new = [numbers_of_one_distribution(draw, i, m) for i in range(PAIRS)]
    register(client, "FLOAT", names)
    set_baselines(client, names, [["SAMPLES", n, *map(repr, x.tolist())] for x in old])
    mpublish(client, VIEW, [dict(zip(names, row, strict=True)) for row in np.array(new).T.tolist()], 100)
    thresholds = {"KS": threshold}
    expected = [
        v
        for name, a, b in zip(names, old, new, strict=True)
        for v in verdicts(name, Baseline("SAMPLES", numbers=a), Window(b.tolist()), thresholds)
    ]
    alerts, significant = check_alarms(server, "KS", threshold, expected, f"{n} and {m} values")
    # Some are significant without an effect, or all that are have one: the threshold of this case says which.
    assert (alerts < significant) == (n == 1000)


@pytest.mark.parametrize(("n", "m", "threshold"), [(1000, 1300, 0.08), (200, 220, THRESHOLDS["CHI2"])])
@pytest.mark.parametrize("form", ["CATEGORIES", "SAMPLES"])
def test_pearsons_test_alarms_as_often_as_its_level_says(server, client, n, m, threshold, form):
    draw = np.random.default_rng([22, n])
    names = [f"f{i}" for i in range(PAIRS)]
    old, new = [], []
    for i in range(PAIRS):
        # No category is so rare that chi-squared would not follow its distribution.
        shares = draw.dirichlet(np.full(2 + i % 8, 5.0)) + 0.1
        old.append(draw.choice(len(shares), n, p=shares / shares.sum()))
        new.append(draw.choice(len(shares), m, p=shares / shares.sum()))
    register(client, "STRING", names)
    counts = [Counter(b"c%d" % x for x in values) for values in old]
    if form == "CATEGORIES":
        calls = [["CATEGORIES", len(c), *(word for pair in c.items() for word in pair)] for c in counts]
    else:
        calls = [["SAMPLES", n, *(b"c%d" % x for x in values)] for values in old]
    set_baselines(client, names, calls)
    rows = [dict(zip(names, (b"c%d" % x for x in row), strict=True)) for row in np.array(new).T]
    mpublish(client, VIEW, rows, 100)
    thresholds = {"CHI2": threshold}
    expected = [
        v
        for name, a, b in zip(names, counts, new, strict=True)
        for v in verdicts(name, Baseline(form, counts=a), Window([b"c%d" % x for x in b]), thresholds)
    ]
    check_alarms(server, "CHI2", threshold, expected, f"{n} and {m} values")


# What each method must catch, and what it must not: the same change, a little over its threshold and a little under.

N = 1000
GRID = (np.arange(N) + 0.5) / N
NORMAL = 10 + stats.norm.ppf(GRID)  # Mean 10, deviation nearly 1.
DEVIATION = float(np.std(NORMAL))
UNIFORM = GRID * 100


def share_moved(share: float) -> np.ndarray:
    """UNIFORM, of which the lowest values have gone above all others, so that D is their share."""
    moved = round(share * N)
    return np.concatenate([UNIFORM[moved:], 200 + GRID[:moved]])


def first_bin_empties(share: float) -> np.ndarray:
    """UNIFORM, of which a share of the values of the first bin is in the second."""
    moved = round(share * N / 10)
    return np.concatenate([UNIFORM[:moved] + 10, UNIFORM[moved:]])


def absent_in(arrivals: int) -> list:
    return [*[None] * arrivals, *NORMAL.tolist()[arrivals:]]


def in_categories(**counts: int) -> list[bytes]:
    return [value.encode() for value, count in counts.items() for _ in range(count)]


ABC = in_categories(a=500, b=300, c=200)
EAST = np.array([[1.0, 0.0]] * 200, dtype=np.float32)


def turned(degrees: float) -> np.ndarray:
    return np.array([[np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]] * 200, dtype=np.float32)


# The type, the baseline, what must alert and what must not.
SHIFTS = {
    "MEAN": ("FLOAT", NORMAL, NORMAL + 2.01, NORMAL + 1.99),
    "MEAN, downwards": ("FLOAT", NORMAL, NORMAL - 2.01, NORMAL - 1.99),
    "MEAN, of a negative one": ("FLOAT", -NORMAL, -NORMAL - 2.01, -NORMAL + 1.99),
    "MEAN, standardized": ("FLOAT", NORMAL - 10, NORMAL - 10 + 0.101, NORMAL - 10 + 0.099),
    "STDDEV": ("FLOAT", NORMAL, 10 + (NORMAL - 10) * 1.31, 10 + (NORMAL - 10) * 1.29),
    "STDDEV, narrower": ("FLOAT", NORMAL, 10 + (NORMAL - 10) * 0.69, 10 + (NORMAL - 10) * 0.71),
    "KS": ("FLOAT", UNIFORM, share_moved(0.105), share_moved(0.095)),
    "PSI": ("FLOAT", UNIFORM, first_bin_empties(0.85), first_bin_empties(0.8)),
    "PSI, of categories": (
        "STRING",
        ABC,
        in_categories(a=290, b=510, c=200),
        in_categories(a=305, b=495, c=200),
    ),
    "WASSERSTEIN": ("FLOAT", NORMAL, NORMAL + 0.101 * DEVIATION, NORMAL + 0.099 * DEVIATION),
    "JS": ("FLOAT", UNIFORM, share_moved(0.052), share_moved(0.049)),
    "CHI2": ("STRING", ABC, in_categories(a=400, b=350, c=250), in_categories(a=406, b=347, c=247)),
    "MISSING": ("FLOAT", NORMAL, absent_in(51), absent_in(49)),
    "NEW_CATEGORIES": (
        "STRING",
        ABC,
        in_categories(a=470, b=279, c=200, d=51),
        in_categories(a=470, b=281, c=200, d=49),
    ),
    "CENTROID": ("VECTOR 2", EAST, turned(26), turned(25.5)),
}


def listed(values) -> list:
    """Values as they are published: floats, bytes, rows of a matrix."""
    return values.tolist() if isinstance(values, np.ndarray) and values.ndim == 1 else list(values)


@pytest.mark.parametrize("name", SHIFTS)
@pytest.mark.parametrize("protocol", [2, 3])
def test_every_method_catches_what_is_over_its_threshold_and_nothing_under(server, client, name, protocol):
    type_, old, over, under = SHIFTS[name]
    method = name.split(",")[0]
    names = ["over", "under"]
    register(client, type_, names, is_input=False)
    set_baselines(client, names, [["SAMPLES", len(old), *map(text_of, listed(old))]] * 2)
    rows = zip(listed(over), listed(under), strict=True)
    mpublish(client, VIEW, [dict(zip(names, row, strict=True)) for row in rows])
    told = [entry for entry in Drift(server, protocol)(VIEW) if entry["method"] == method.encode()]
    assert [(entry["feature"], entry["alert"], entry["status"]) for entry in told] == [
        (b"over", True, b"ALERT"),
        (b"under", False, b"OK"),
    ]
    high, low = (entry["effect"] for entry in told)
    assert low < THRESHOLDS[method] < high
    # What equals its threshold is no alert.
    for threshold, alerts in ((low * 0.999, [True, True]), (low, [True, False]), (high, [False, False])):
        entries = Drift(server, protocol)(VIEW, "METHOD", method, "THRESHOLD", repr(threshold))
        assert [(e["alert"], e["threshold"]) for e in entries] == [(alert, threshold) for alert in alerts]


def test_an_effect_that_is_not_significant_and_a_significant_trifle_are_no_alerts(server, client):
    grids = [(100, 0.14), (10_000, 0.06)]
    for n, share in grids:
        grid, moved = (np.arange(n) + 0.5) / n, round(share * n)
        old, new = grid, np.concatenate([grid[moved:], 1 + grid[:moved]])
        register(client, "FLOAT", ["x"], is_input=False)
        set_baselines(client, ["x"], [["SAMPLES", n, *map(repr, old.tolist())]])
        mpublish(client, VIEW, [{"x": x} for x in new.tolist()])
        (told,) = Drift(server)(VIEW, "x", "METHOD", "KS")
        assert told["status"] == b"OK" and told["alert"] is False
        assert (told["p_value"] < LEVEL, told["effect"] > 0.1) == (n == 10_000, n == 100)
        assert client.execute_command("FS.DROP", VIEW) == b"OK"
    for n, moved in ((100, 8), (10_000, 300)):
        old, new = {"a": n // 2, "b": n // 2}, {"a": n // 2 + moved, "b": n // 2 - moved}
        register(client, "STRING", ["x"], is_input=False)
        set_baselines(client, ["x"], [["CATEGORIES", 2, *(word for pair in old.items() for word in pair)]])
        mpublish(client, VIEW, [{"x": value} for value in in_categories(**new)])
        (told,) = Drift(server)(VIEW, "x", "METHOD", "CHI2", "THRESHOLD", "0.07")
        assert told["status"] == b"OK" and told["alert"] is False
        assert (told["p_value"] < LEVEL, told["effect"] > 0.07) == (n == 10_000, n == 100)
        assert client.execute_command("FS.DROP", VIEW) == b"OK"


# Categories as others write them


def test_categories_are_any_bytes_of_any_length(server, client):
    long = b"x" * 100_000
    values = [
        b"",
        b"\0",
        b"a\0b",
        b"\xff\xfe",
        b"it's",
        b"'quoted'",
        b"'US' 0.5",
        b"two words",
        b"line\r\nbreak",
        "größe".encode(),
        b"x" * 64,
        b"x" * 65,
        long,
        long + b"1",
        long + b"2",
    ]
    draw = np.random.default_rng(4)
    register(client, "STRING", ["c", "s"], is_input=False)
    old = Counter({value: 7 + 3 * i for i, value in enumerate(values)})
    samples = list(old.elements())
    calls = [
        ["CATEGORIES", len(old), *(word for pair in old.items() for word in pair)],
        ["SAMPLES", len(samples), *samples],
    ]
    set_baselines(client, ["c", "s"], calls)
    now = [values[i] for i in draw.integers(0, len(values), 300)] + [long + b"3", b"y" * 70] * 20
    executed(client, [["FS.PUBLISH", f"fs:v1:{VIEW}:r1", "NOLOG", "c", value, "s", value] for value in now])
    told = Drift(server)(VIEW)
    wanted = [v for f in "cs" for v in verdicts(f, Baseline("CATEGORIES", counts=old), Window(now))]
    for entry, verdict in zip(told, wanted, strict=True):
        exact = {"statistic": verdict.finding.statistic, "p_value": verdict.finding.p_value}
        for name, value in exact.items():
            assert entry[name] == (None if value is None else pytest.approx(value, rel=1e-9)), entry
        assert entry["current_n"] == len(now) and entry["alert"] is verdict.alert
        for name in ("baseline", "current"):
            check_text(entry[name], getattr(verdict.finding, name))


def check_text(told: bytes | float | None, wanted: object) -> None:
    """A long value is told by its beginning and a hash, in no more bytes than the longest of the others."""
    if not isinstance(wanted, Categories):
        assert told == wanted
        return
    value = told.rpartition(b" ")[0]
    long = [v for v in wanted.shares if len(v) > 64]
    assert wanted.accepts(told) or (len(value) <= 64 and any(v.startswith(value[:40]) for v in long)), told


def test_long_values_that_begin_alike_are_not_taken_for_each_other(server, client):
    register(client, "STRING", ["c"], is_input=False)
    alike = [b"x" * 100 + bytes([i]) for i in range(2)]
    set_baselines(client, ["c"], [["CATEGORIES", 1, alike[0], 1000]])
    executed(client, [["FS.PUBLISH", f"fs:v1:{VIEW}:r1", "NOLOG", "c", alike[i % 2]] for i in range(200)])
    (new,) = Drift(server)(VIEW, "METHOD", "NEW_CATEGORIES")
    assert (new["statistic"], new["alert"]) == (0.5, True)
    (psi,) = Drift(server)(VIEW, "METHOD", "PSI")
    texts = [psi[name].rpartition(b" ")[0] for name in ("baseline", "current")]
    assert texts[0] == texts[1] and texts[0].startswith(b"x" * 40) and len(texts[0]) <= 64
    assert new["current"].rpartition(b" ")[0] not in texts


@pytest.mark.parametrize("number", [2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63), 0, -1])
def test_whole_numbers_of_any_size_are_found_in_their_baseline(server, client, number):
    schema = {"n": {"type": "INT"}, "e": {"type": "INT", "expected": {"top_categories": {str(number): 1}}}}
    document = json.dumps({"entity": "ride", "schema": schema})
    assert client.execute_command("FS.REGISTER", VIEW, "JSON", document) == b"OK"
    set_baselines(client, ["n"], [["CATEGORIES", 1, number, 1000]])
    mpublish(client, VIEW, [{"n": number, "e": number}] * 200)
    told = Drift(server)(VIEW)
    assert {(e["method"], e["status"]) for e in told} == {
        (m, b"OK") for m in (b"PSI", b"CHI2", b"MISSING", b"NEW_CATEGORIES")
    }
    assert {e["statistic"] for e in told} == {0.0}


# Where a textbook has no answer

ONES = [1.0] * 100
SPREAD = np.random.default_rng(5).normal(size=400).tolist()
PLUS_MINUS = [-2.0, 2.0] * 100
NOTHING = [np.zeros(2, dtype=np.float32)] * 100
ACROSS = [np.array([x, 0], dtype=np.float32) for x in PLUS_MINUS]
EASTWARD = [np.array([1, 0], dtype=np.float32)] * 100
UNANSWERED = {
    "nothing changed": ("FLOAT", [5.7] * 100, [5.7] * 300),
    "a constant begins to vary": ("FLOAT", [5.7] * 100, SPREAD),
    "the same value, another number of times": ("FLOAT", [0.4] * 101, [0.4] * 100),
    "another constant": ("FLOAT", [5.7] * 100, [5.8] * 100),
    "zeros stay": ("FLOAT", [0.0] * 100, [-0.0] * 150),
    "zeros begin to vary": ("FLOAT", [0.0] * 100, SPREAD),
    "zeros become ones": ("FLOAT", [0.0] * 100, ONES),
    "what varied is constant": ("FLOAT", SPREAD, [0.5] * 100),
    "a mean of exactly 0": ("FLOAT", PLUS_MINUS, [x + 0.25 for x in PLUS_MINUS]),
    "a mean of nearly 0": ("FLOAT", [x + 1e-9 for x in PLUS_MINUS], [x + 2e-9 for x in PLUS_MINUS]),
    "standardized": ("FLOAT", [x + 0.001 for x in PLUS_MINUS], [x + 0.002 for x in PLUS_MINUS]),
    "one value": ("STRING", [b"a"] * 100, [b"a"] * 130),
    "another value": ("STRING", [b"a"] * 100, [b"b"] * 130),
    "all true": ("BOOL", [True] * 100, [True] * 130),
    "no direction": ("VECTOR 2", NOTHING, ACROSS),
    "a direction lost": ("VECTOR 2", EASTWARD, ACROSS),
    "a direction found": ("VECTOR 2", ACROSS, EASTWARD),
    "the other direction": ("VECTOR 2", EASTWARD, [-x for x in EASTWARD]),
    "the largest": ("FLOAT", [8e307] * 100, [-8e307] * 100),
    "from smallest to largest": ("FLOAT", [1e-300] * 100 + [0.0] * 100, [8e307] * 100),
    "99 and 100": ("FLOAT", SPREAD[:99], SPREAD[100:200]),
    "100 and 99": ("FLOAT", SPREAD[:100], SPREAD[100:199]),
    "100 and 100": ("FLOAT", SPREAD[:100], SPREAD[100:200]),
    "99 and 100 words": ("STRING", [b"a"] * 99, [b"b"] * 100),
    "100 and 99 vectors": ("VECTOR 2", EASTWARD, EASTWARD[:99]),
    "100 arrivals, 90 values": ("FLOAT", SPREAD, SPREAD[:90] + [None] * 10),
    "no values": ("FLOAT", SPREAD, [None] * 120),
    "no words": ("STRING", [b"a"] * 100, [None] * 120),
    "no vectors": ("VECTOR 2", EASTWARD, [None] * 120),
    "no arrivals": ("FLOAT", SPREAD, []),
}


def baseline_of(type_: str, values: list) -> Baseline:
    if type_ == "STRING":
        return Baseline("SAMPLES", counts=Counter(values))
    if type_ == "VECTOR 2":
        return Baseline("SAMPLES", vectors=np.array(values, dtype=float))
    return Baseline("SAMPLES", numbers=np.array([float(x) for x in values]))


@pytest.mark.parametrize("name", UNANSWERED)
@pytest.mark.parametrize("protocol", [2, 3])
def test_where_the_textbook_has_no_answer(server, client, name, protocol):
    type_, old, now = UNANSWERED[name]
    register(client, type_, ["f", "anchor"], is_input=False)
    set_baselines(client, ["f"], [["SAMPLES", len(old), *map(text_of, old)]])
    mpublish(client, VIEW, [{"f": value, "anchor": old[0]} for value in now])
    there = [value for value in now if value is not None]
    wanted = verdicts("f", baseline_of(type_, old), Window(there, len(now) - len(there)))
    check(Drift(server, protocol)(VIEW), wanted, name)


@pytest.mark.parametrize(
    ("mean", "stddev", "now"),
    [
        (0.0, 0.0, [0.0] * 100),
        (0.0, 0.0, ONES),
        (0.0, 0.5, SPREAD),
        (-3.0, 0.0, [-3.0] * 100),
        (-3.0, 0.0, SPREAD),
        (1e300, 1e300, SPREAD),
        (1e-300, 1e-300, SPREAD),
    ],
)
def test_figures_alone_are_compared_by_the_same_rules(server, client, mean, stddev, now):
    register(client, "FLOAT", ["f"], is_input=False)
    set_baselines(client, ["f"], [["STATS", "mean", repr(mean), "stddev", repr(stddev)]])
    mpublish(client, VIEW, [{"f": value} for value in now])
    wanted = verdicts("f", Baseline("STATS", mean=mean, deviation=stddev), Window(now))
    check(Drift(server)(VIEW), wanted, f"{mean} {stddev}")
