"""What FS.DRIFT says, against SciPy on the same values (drift_oracle.py).

Each generated view has a feature a pair: a baseline in one of its forms, and a current window that is published by one
of the ways in. Besides, the rules by themselves: windows, values as served, FREEZE, what textbooks leave open.
"""

import json
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import valkey
from drift_oracle import METHODS, THRESHOLDS, Baseline, Window, deviation_of, mean_of, verdicts

from server import await_until

ANCHORS = {"anchor": "INT", "anchor_input": "INT"}
TIME_MS = 1_700_000_000_000


# The server


class Drift:
    """A connection of one protocol that reads FS.DRIFT, after a look at the form of the reply."""

    def __init__(self, server, protocol: int = 3):
        self.client, self.protocol = server.client(protocol=protocol), protocol

    def __call__(self, *words) -> list[dict]:
        """The reply as RESP3 gives it: names, texts as bytes, numbers, booleans."""
        return [self._found(entry) for entry in self.client.execute_command("FS.DRIFT", *words)]

    def _found(self, entry) -> dict:
        assert type(entry) is (dict if self.protocol == 3 else list), entry
        pairs = entry.items() if self.protocol == 3 else zip(entry[::2], entry[1::2], strict=True)
        return {name.decode(): self._value(name.decode(), value) for name, value in pairs}

    def _value(self, name: str, value):
        if value is None or name in ("feature", "method", "status"):
            assert value is None or type(value) is bytes, (name, value)
            return value
        if name == "alert":
            assert type(value) is (bool if self.protocol == 3 else int), value
            return bool(value)
        if name in ("baseline_n", "current_n"):
            assert type(value) is int, value
            return value
        if name in ("baseline", "current") and type(value) is bytes and b" " in value:
            # A category and its share.
            return value
        assert type(value) is (float if self.protocol == 3 else bytes), (name, value)
        return float(value)


def executed(client, commands: list[list]) -> list:
    """The replies of commands, none of which may be an error."""
    with client.pipeline(transaction=False) as pipeline:
        for words in commands:
            pipeline.execute_command(*words)
        return pipeline.execute()


def text_of(value) -> str | bytes:
    """A value as a command's argument."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, np.ndarray):
        return ",".join(repr(float(x)) for x in value)
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


def json_of(value):
    """A value as a member of a JSON object."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.decode() if isinstance(value, bytes) else value


def mpublish(client, view: str, rows: list[dict], at_once: int = 500) -> None:
    """Publishes rows of feature to value, some hundred a command."""
    for start in range(0, len(rows), at_once):
        words = []
        for place, row in enumerate(rows[start : start + at_once]):
            object_ = {name: None if value is None else json_of(value) for name, value in row.items()}
            words += [f"fs:v1:{view}:u{place % 20}", json.dumps(object_)]
        assert client.execute_command("FS.MPUBLISH", *words) == len(words) // 2


def publish_as_json(client, view: str, rows: list[dict]) -> None:
    objects = [json.dumps({name: json_of(value) for name, value in row.items()}) for row in rows]
    executed(
        client,
        [["FS.PUBLISH", f"fs:v1:{view}:u{i % 20}", "NOLOG", "JSON", o] for i, o in enumerate(objects)],
    )


def publish_as_words(client, view: str, rows: list[dict]) -> None:
    commands = []
    for place, row in enumerate(rows):
        words = [word for name, value in row.items() if value is not None for word in (name, text_of(value))]
        commands.append(["FS.PUBLISH", f"fs:v1:{view}:u{place % 20}", "NOLOG", *words])
    executed(client, commands)


def add_to_the_log(client, view: str, rows: list[dict]) -> None:
    """Plain XADDs, and the wait until the consumer has taken them in."""
    commands = []
    for place, row in enumerate(rows):
        features = json.dumps({name: json_of(value) for name, value in row.items()})
        commands.append(
            ["XADD", f"fs:stream:{view}", "*", "entity_id", f"u{place % 20}", "features", features]
        )
    executed(client, commands)

    def lag() -> int:
        told = client.execute_command("FS.INFO", view)
        pairs = told.items() if isinstance(told, dict) else zip(told[::2], told[1::2], strict=True)
        return dict(pairs)[b"lag_entries"]

    await_until(lambda: lag() == 0, 30, f"the consumer to reach the end of the log of {view}")


WAYS_IN = {
    "FS.MPUBLISH": mpublish,
    "FS.PUBLISH NOLOG JSON": publish_as_json,
    "FS.PUBLISH NOLOG": publish_as_words,
    "XADD": add_to_the_log,
}


def check(told: list[dict], expected: list, what: str) -> None:
    got = [(entry["feature"].decode(), entry["method"].decode()) for entry in told]
    assert got == [(v.feature, v.method) for v in expected], what
    faults = [
        f"{verdict.feature} {verdict.method}: {fault}\n    of {entry}"
        for verdict, entry in zip(expected, told, strict=True)
        if (fault := verdict.fault(entry))
    ]
    assert not faults, f"{what}: {len(faults)} of {len(told)} differ\n" + "\n".join(faults[:12])


# Pairs


@dataclass(frozen=True)
class Pair:
    """A feature: its baseline, as it is known and as words say it, and the values that come; None is an absent one."""

    name: str
    kind: str
    type: str
    is_input: bool
    baseline: Baseline
    words: list
    expected: dict | None
    arrivals: list

    @property
    def window(self) -> Window:
        values = [value for value in self.arrivals if value is not None]
        return Window(values, len(self.arrivals) - len(values))


def normal(draw, n, change):
    return draw.normal(change, 1 + abs(change) / 2, n)


# How numbers are drawn: so many of them, of a distribution that has changed by so much.
FAMILIES = {
    "normal": normal,
    "far from 0": lambda draw, n, change: 35 + 12 * normal(draw, n, change),
    "skewed": lambda draw, n, change: draw.exponential(2 + change, n),
    "heavy tails": lambda draw, n, change: draw.standard_cauchy(n) * (1 + change),
    "lognormal": lambda draw, n, change: draw.lognormal(change, 2, n),
    "heavy ties": lambda draw, n, change: draw.poisson(2 + change, n).astype(float),
    "ties of tenths": lambda draw, n, change: np.round(normal(draw, n, change) * 0.7, 1),
    "ties of thirds": lambda draw, n, change: draw.poisson(1.5 + change, n) / 3,
    "two values": lambda draw, n, change: np.where(draw.random(n) < 0.2 + change / 2, 0.1, 0.7),
    "mostly one value": lambda draw, n, change: np.where(draw.random(n) < 0.9 - change, 0.3, draw.random(n)),
    "constant": lambda draw, n, change: np.full(n, 0.1 + round(change)),
    "constant, then not": lambda draw, n, change: np.full(n, 5.7) if change == 0 else draw.normal(5.7, 1, n),
    "next to 1e9": lambda draw, n, change: 1e9 + draw.uniform(change, 1, n),
    "1e-12": lambda draw, n, change: normal(draw, n, change) * 1e-12,
    "1e-300": lambda draw, n, change: normal(draw, n, change) * 1e-300,
    "1e12": lambda draw, n, change: normal(draw, n, change) * 1e12,
    "1e150": lambda draw, n, change: normal(draw, n, change) * 1e150,
    "1e300": lambda draw, n, change: normal(draw, n, change) * 1e300,
    "many scales": lambda draw, n, change: 10.0 ** draw.uniform(-200 + 30 * change, 200, n),
}
WHOLE = {
    "INT": lambda draw, n, change: [int(x) for x in draw.poisson(4 + 2 * change, n)],
    "INT of many values": lambda draw, n, change: [int(x) for x in draw.normal(change, 1, n) * 1e12],
    "TIMESTAMP": lambda draw, n, change: [
        TIME_MS + int(x) for x in draw.exponential(3.6e6 * (1 + change), n)
    ],
    "BOOL": lambda draw, n, change: [bool(x) for x in draw.random(n) < 0.3 + change / 4],
}
SIZES = (100, 101, 137, 200, 711, 1000, 1001, 2500)
CATEGORIES = {
    "few categories": (3, 3, 0.1),
    "two categories": (2, 2, 0.2),
    "many categories": (400, 400, 0.02),
    "more categories than values": (5000, 5000, 0.0),
    "categories unseen before": (6, 9, 0.02),
    "categories that disappear": (9, 5, 0.02),
    "one category": (1, 1, 0.0),
    "others altogether": (5, -5, 0.0),
}


class PairMaker:
    """Draws pairs with a seed; `rows` is how many arrivals their windows have."""

    def __init__(self, seed: int, rows: int):
        self.draw, self.rows = np.random.default_rng([20, seed]), rows
        # The largest window meets the largest baselines.
        self.sizes = (rows,) if rows > max(SIZES) else SIZES

    def pairs(self) -> list[Pair]:
        kinds = [*FAMILIES, *WHOLE, *CATEGORIES, "BOOL in categories", "INT in categories", "VECTOR"]
        return [self.pair(place, kind) for place, kind in enumerate(kinds)]

    def pair(self, place: int, kind: str) -> Pair:
        change = float(self.draw.choice([0, 0, 0.05, 0.15, 0.6, 0.95]))
        size = int(self.draw.choice(self.sizes))
        absent = float(self.draw.choice([0, 0, 0.02, 0.2]))
        missing = float(self.draw.choice([0, 0, 0.02, 0.125, 0.2]))
        arrivals = [self.draw.random() >= absent for _ in range(self.rows)]
        n = sum(arrivals)
        if kind in CATEGORIES or kind.endswith(" in categories"):
            type_, form, old, new = self.categories(kind, size, n, change)
        elif kind == "VECTOR":
            type_, form, (old, new) = "VECTOR 5", "SAMPLES", self.vectors(size, n, change)
        else:
            values = FAMILIES.get(kind) or WHOLE[kind]
            old, new = (list(values(self.draw, k, c)) for k, c in ((size, 0), (n, change)))
            type_ = "FLOAT" if kind in FAMILIES else kind.split()[0]
            old, new = ([float(x) for x in v] if type_ == "FLOAT" else v for v in (old, new))
            form = self.draw.choice(["SAMPLES"] * 6 + ["STATS", "EXPECTED"])
        values = iter(new)
        arrivals = [next(values) if is_there else None for is_there in arrivals]
        baseline, words, expected = formed(str(form), type_, old, missing)
        name = f"f{place}"
        return Pair(name, kind, type_, self.draw.random() < 0.2, baseline, words, expected, arrivals)

    def categories(self, kind: str, size: int, n: int, change: float) -> tuple:
        if kind == "BOOL in categories":
            return (
                "BOOL",
                "CATEGORIES",
                *(WHOLE["BOOL"](self.draw, k, c) for k, c in ((size, 0), (n, change))),
            )
        if kind == "INT in categories":
            return "INT", "CATEGORIES", *(WHOLE["INT"](self.draw, k, c) for k, c in ((size, 0), (n, change)))
        before, after, least = CATEGORIES[kind]
        names = [
            b"c%d" % i if i % 3 else f"größe '{i}' x".encode() for i in range(max(before, abs(after)) * 2)
        ]
        shares = self.draw.dirichlet(np.ones(before)) + least
        later = (1 - change) * np.resize(shares, abs(after)) + change * self.draw.dirichlet(
            np.ones(abs(after))
        )
        old = self.draw.choice(before, size, p=shares / shares.sum())
        new = self.draw.choice(abs(after), n, p=later / later.sum()) + (before if after < 0 else 0)
        form = self.draw.choice(["CATEGORIES", "SAMPLES", "EXPECTED"])
        return "STRING", str(form), [names[i] for i in old], [names[i] for i in new]

    def vectors(self, size: int, n: int, change: float) -> tuple:
        center = self.draw.normal(size=5)
        other = center + 3 * change * self.draw.normal(size=5)
        draws = [c + self.draw.normal(size=(k, 5)) for c, k in ((center, size), (other, n))]
        return tuple([row.astype(np.float32) for row in rows] for rows in draws)


def formed(form: str, type_: str, old: list, missing: float) -> tuple:
    """A baseline of values, the words that FS.BASELINE says it with, and the member of a document."""
    tail = ["MISSING", repr(missing)] if missing else []
    if form == "STATS" or (form == "EXPECTED" and type_ != "STRING"):
        few = np.array([float(x) for x in old[:50]])
        mean, deviation = mean_of(few), deviation_of(few)
        baseline = Baseline(form, mean=mean, deviation=deviation, missing=missing)
        words = ["STATS", "mean", repr(mean), "stddev", repr(deviation)]
        words += ["missing", repr(missing)] if missing else ["MIN", repr(mean - 1), "max", repr(mean + 1)]
        return baseline, words, {"mean": mean, "stddev": deviation, "missing": missing}
    if form == "EXPECTED":
        counts = Counter(old).most_common(4)
        # Rounded down, or they might sum up to more than 1.
        shares = {value: int(count / len(old) * 10_000) / 10_000 for value, count in counts}
        document = {"top_categories": {value.decode(): share for value, share in shares.items()}}
        return Baseline(form, shares=shares, missing=missing), [], document | {"missing": missing}
    if form == "CATEGORIES" or type_ == "STRING":
        counts = Counter(old)
        if form == "CATEGORIES":
            pairs = [word for value, count in counts.items() for word in (text_of(value), count)]
            words = ["CATEGORIES", len(counts), *pairs, *tail]
        else:
            words = ["SAMPLES", len(old), *old, *tail]
        return Baseline(form, counts=counts, missing=missing), words, None
    words = ["SAMPLES", len(old), *map(text_of, old), *tail]
    if type_.startswith("VECTOR"):
        return Baseline(form, vectors=np.array(old, dtype=float), missing=missing), words, None
    return Baseline(form, numbers=np.array([float(x) for x in old]), missing=missing), words, None


def register(client, view: str, pairs: list[Pair], **options) -> None:
    """By a document: that is where `expected` stands."""
    schema = {name: {"type": type_, "input": "input" in name} for name, type_ in ANCHORS.items()}
    for pair in pairs:
        schema[pair.name] = {"type": pair.type, "input": pair.is_input}
        if pair.baseline.form == "EXPECTED":
            schema[pair.name]["expected"] = pair.expected
    document = {"entity": "user", "schema": schema} | options
    assert client.execute_command("FS.REGISTER", view, "JSON", json.dumps(document)) == b"OK"
    for pair in pairs:
        if pair.words:
            assert client.execute_command("FS.BASELINE", view, pair.name, *pair.words) == b"OK"


def rows_of(pairs: list[Pair], draw) -> list[dict]:
    """The arrivals of all pairs side by side. What is absent is left out, or null."""
    rows = []
    for values in zip(*(pair.arrivals for pair in pairs), strict=True):
        row = {"anchor": len(rows), "anchor_input": 0}
        for pair, value in zip(pairs, values, strict=True):
            if value is not None or draw.random() < 0.5:
                row[pair.name] = value
        rows.append(row)
    return rows


# Many pairs at once

BATCHES = [
    (0, 1000, "FS.MPUBLISH"),
    (1, 137, "FS.PUBLISH NOLOG"),
    (2, 300, "FS.PUBLISH NOLOG JSON"),
    (3, 101, "FS.MPUBLISH"),
    (4, 1500, "XADD"),
    (5, 711, "FS.PUBLISH NOLOG JSON"),
    (6, 2000, "FS.PUBLISH NOLOG"),
    (7, 10_000, "FS.MPUBLISH"),
]


@pytest.fixture(scope="module")
def coverage() -> Counter:
    """What the generated pairs compared."""
    return Counter()


@pytest.mark.parametrize(("seed", "rows", "way"), BATCHES)
def test_generated_pairs_are_told_as_scipy_tells_them(server, coverage, seed, rows, way):
    client, view = server.client(), "drifting"
    maker = PairMaker(seed, rows)
    pairs = maker.pairs()
    register(client, view, pairs)
    WAYS_IN[way](client, view, rows_of(pairs, maker.draw))
    expected = [v for pair in pairs for v in verdicts(pair.name, pair.baseline, pair.window)]
    kinds = {pair.name: f"{pair.kind} {pair.type} {pair.baseline.form}" for pair in pairs}
    for protocol in (2, 3):
        drift = Drift(server, protocol)
        check(drift(view), expected, f"batch {seed}: {kinds}")
        # Some methods with thresholds of their own; then features by themselves.
        asked = {
            m: float(np.round(maker.draw.exponential(0.2), 6)) for m in METHODS if maker.draw.random() < 0.4
        }
        words = [
            word for m, threshold in asked.items() for word in ("METHOD", m, "THRESHOLD", repr(threshold))
        ]
        if asked:
            wanted = [v for pair in pairs for v in verdicts(pair.name, pair.baseline, pair.window, asked)]
            check(drift(view, "VERSION", 1, *words), wanted, f"batch {seed} by {asked}")
        for pair in pairs[protocol::5]:
            wanted = verdicts(pair.name, pair.baseline, pair.window)
            check(drift(view, pair.name), wanted, f"batch {seed}: {kinds[pair.name]}")
            method = str(maker.draw.choice(pair.baseline.methods))
            wanted = verdicts(pair.name, pair.baseline, pair.window, {method: THRESHOLDS[method]})
            check(drift(view, pair.name, "METHOD", method), wanted, f"batch {seed}: {kinds[pair.name]}")
    coverage.update(f"{v.method} {v.status}" for v in expected)
    coverage.update(f"{v.method} p" for v in expected if v.finding.p_value and v.finding.p_value < 0.9)
    coverage.update(pairs=len(pairs), batches=1)


def test_the_generated_pairs_cover_every_method(coverage):
    """They hold values that alert and values that do not, for every method."""
    if coverage["batches"] < len(BATCHES):
        pytest.skip("not all generated pairs have run")
    wanted = [f"{method} {status}" for method in METHODS for status in ("OK", "ALERT")]
    assert {name: coverage[name] for name in wanted if coverage[name] < 3} == {}
    assert coverage["pairs"] >= 200 and coverage["KS p"] > 50 and coverage["CHI2 p"] > 20, coverage


# Rules by themselves


def view_of(client, schema: str, *options: str, view: str = "rides") -> None:
    words = ["FS.REGISTER", view, "ENTITY", "ride", *options, "SCHEMA", *schema.split()]
    assert client.execute_command(*words) == b"OK"


def baseline(client, line: str, *more) -> None:
    assert client.execute_command("FS.BASELINE", *line.split(), *more) == b"OK"


def of_numbers(old, **more) -> Baseline:
    return Baseline("SAMPLES", numbers=np.array([float(x) for x in old]), **more)


def in_columns(**columns: list) -> list[dict]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def test_a_frozen_window_is_a_baseline_of_what_it_held(server, client):
    draw = np.random.default_rng(1)
    view_of(client, "x FLOAT n INT ok BOOL seen TIMESTAMP word STRING taste VECTOR 3 tags LIST")

    def columns(rows: int, change: float) -> dict[str, list]:
        there = {name: draw.random(rows) < 0.9 for name in ["x", "n", "ok", "seen", "word", "taste", "tags"]}
        values = {
            "x": draw.normal(change, 1, rows).tolist(),
            "n": [int(x) for x in draw.poisson(3 + change, rows)],
            "ok": [bool(x) for x in draw.random(rows) < 0.4],
            "seen": [TIME_MS + int(x) for x in draw.integers(0, 10**9, rows)],
            "word": [b"w%d" % x for x in draw.integers(0, 5 + round(4 * change), rows)],
            "taste": list(draw.normal(1, 1 + change, (rows, 3)).astype(np.float32)),
            "tags": [[int(x)] for x in draw.integers(0, 9, rows)],
        }
        return {n: [v if t else None for v, t in zip(values[n], there[n], strict=True)] for n in values}

    old, new = columns(1200, 0), columns(900, 0.6)
    mpublish(client, "rides", in_columns(**old))
    before = {name: [v for v in values if v is not None] for name, values in old.items()}
    for name in old:
        baseline(client, f"rides {name} FREEZE")
        baseline(client, f"rides {name} CLEAR CURRENT")
    mpublish(client, "rides", in_columns(**new))
    expected = []
    for name, values in before.items():
        more = {"missing": 1 - len(values) / 1200, "arrivals": 1200}
        match name:
            case "word":
                was = Baseline("SAMPLES", counts=Counter(values), **more)
            case "taste":
                was = Baseline("SAMPLES", vectors=np.array(values, dtype=float), **more)
            case "tags":
                was = Baseline("SAMPLES", **more)
            case _:
                was = of_numbers(values, **more)
        now = [value for value in new[name] if value is not None]
        expected += verdicts(name, was, Window(now, 900 - len(now)))
    check(Drift(server)("rides"), expected, "the frozen baselines")


def test_windows_are_sampled_as_they_are_served(server, client):
    span = "x WINDOW 1h HOP 1m"
    schema = f"x FLOAT INPUT n INT AGG COUNT {span} sum FLOAT AGG SUM {span} mean FLOAT AGG MEAN {span} "
    schema += f"last FLOAT AGG LAST {span} newest LIST AGG LAST_K 2 {span}"
    view_of(client, schema)
    draw = np.random.default_rng(2)
    old = draw.normal(size=300)
    names = ["n", "sum", "mean", "last"]
    counts = draw.poisson(3, 300)
    for name in ("x", *names):
        baseline(client, f"rides {name} SAMPLES 300", *map(repr, (counts if name == "n" else old).tolist()))
    arrivals = [float(x) for x in draw.normal(0.3, 1, 600)]
    entities = [int(x) for x in draw.integers(0, 150, 600)]
    executed(
        client,
        [["FS.PUBLISH", f"fs:v1:rides:e{e}", "x", repr(x)] for e, x in zip(entities, arrivals, strict=True)],
    )
    reader = server.client(protocol=3)
    replies = executed(reader, [["FS.GET", f"fs:v1:rides:e{e}", "WITHSTATUS"] for e in range(170)])
    values = {name: [] for name in names}
    for reply in replies:
        for name in names:
            value, status, _ = reply[name.encode()]
            values[name].append(value if status == b"PRESENT" else None)
    # More reads of one feature, which say nothing of the others.
    key = "fs:v1:rides:e1"
    values["sum"] += [row[0] for row in reader.execute_command("FS.MGET", "sum", key, key)]
    (narrow,) = np.frombuffer(reader.execute_command("FS.TENSOR", "sum", key), "<f4")
    assert narrow == np.float32(values["sum"][-1])
    # What came as a float32 is sampled as the double that it was.
    values["sum"].append(values["sum"][-1])
    expected = verdicts("x", of_numbers(old), Window(arrivals))
    for name in names:
        there = [value for value in values[name] if value is not None]
        assert len(there) > 140
        was = of_numbers(counts if name == "n" else old)
        expected += verdicts(name, was, Window(there, len(values[name]) - len(there)))
    check(Drift(server)("rides"), expected, "windows")


def test_values_are_sampled_as_they_are_served(server, client):
    schema = "x FLOAT DEFAULT 7 n INT ok BOOL word STRING VALUES 3 a b c taste VECTOR 2 raw FLOAT INPUT"
    view_of(client, schema, "SAMPLE", "1", "ON", "SERVE")
    draw = np.random.default_rng(3)
    rows = 220
    columns = {
        "x": [float(v) for v in draw.integers(-50, 50, rows) / 4],
        "n": [int(v) for v in draw.poisson(5, rows)],
        "ok": [bool(v) for v in draw.random(rows) < 0.5],
        "word": [b"abc"[v : v + 1] for v in draw.integers(0, 3, rows)],
        "taste": list(draw.normal(size=(rows, 2)).astype(np.float32)),
    }
    columns = {n: [v if draw.random() < 0.8 else None for v in values] for n, values in columns.items()}
    stored = [{k: v for k, v in row.items() if v is not None} for row in in_columns(**columns)]
    executed(
        client,
        [
            ["FS.PUBLISH", f"fs:v1:rides:e{i}", "JSON", json.dumps({n: json_of(v) for n, v in row.items()})]
            for i, row in enumerate(stored)
        ],
    )
    old = {
        "x": draw.normal(size=150).tolist(),
        "n": draw.poisson(5, 150).tolist(),
        "ok": [True, False] * 75,
        "word": [b"a", b"b", b"x"] * 50,
        "taste": list(draw.normal(size=(150, 2)).astype(np.float32)),
    }
    for name, values in old.items():
        baseline(client, f"rides {name} SAMPLES 150", *map(text_of, values))
    with pytest.raises(valkey.ResponseError, match=r"(?=.*'rides')(?=.*'x').*empty"):
        # Nothing was served yet.
        client.execute_command("FS.BASELINE", "rides", "x", "FREEZE")
    served = {name: [] for name in columns}

    def serve(command: str, names: list[str], ids: list[int]) -> None:
        keys = [f"fs:v1:rides:e{i}" for i in ids]
        if command == "FS.GET":
            executed(client, [["FS.GET", key, *names] for key in keys])
        else:
            client.execute_command(command, ",".join(names), *keys)
        for name in names:
            # The rest, default or not, is absent.
            served[name] += [stored[i].get(name) if i < rows else None for i in ids]

    serve("FS.GET", ["x", "n", "ok", "word", "taste"], [int(i) for i in draw.integers(0, 240, 120)])
    serve("FS.MGET", ["taste", "x", "word"], [int(i) for i in draw.integers(0, 240, 150)])
    serve("FS.TENSOR", ["ok", "word", "n"], [int(i) for i in draw.integers(0, 240, 150)])
    # Neither of these is sampled.
    executed(client, [["FS.EXPLAIN", "fs:v1:rides:e1"], ["FS.GET", "fs:v1:rides:e1", "AT", TIME_MS]])
    expected = []
    for name, values in served.items():
        there = [value for value in values if value is not None]
        match name:
            case "word":
                was = Baseline("SAMPLES", counts=Counter(old[name]))
            case "taste":
                was = Baseline("SAMPLES", vectors=np.array(old[name], dtype=float))
            case _:
                was = of_numbers(old[name])
        expected += verdicts(name, was, Window(there, len(values) - len(there)))
    for protocol in (2, 3):
        check(Drift(server, protocol)("rides"), expected, "what was served")
