"""What FS.BASELINE, FS.DRIFT, SAMPLE and `expected` take, and what they refuse.

Errors are looked at as they stand on the wire: `CODE message`, naming the view, the feature and the value.
"""

import itertools
import json
import random
from collections import Counter

import pytest
from drift_oracle import METHODS
from test_drift_values import Drift
from test_odd_input import ODD_VALUES, Refusal, Wire, refused_properly, wire_map

TYPES = {
    "i": "INT",
    "x": "FLOAT",
    "ok": "BOOL",
    "word": "STRING",
    "seen": "TIMESTAMP",
    "taste": "VECTOR 2",
    "tags": "LIST",
}
SCHEMA = " ".join(f"{name} {type_}" for name, type_ in TYPES.items())
VALUES = {
    "i": ["5", "-3"],
    "x": ["0.5", "-1e300"],
    "ok": ["true", "0"],
    "word": ["DE", ""],
    "seen": ["1700000000000", "-86400000"],
    "taste": ["0.5,1", "[1,2]"],
    "tags": ["[1]", '["a"]'],
}
TIME_MS = 1_700_000_000_000


@pytest.fixture
def wire(server):
    with Wire(server) as connection:
        yield connection


def said(wire: Wire, line: str, *more):
    return wire.call(*line.split(), *more)


def register(wire: Wire, schema: str = SCHEMA, options: str = "", view: str = "rides") -> None:
    assert said(wire, f"FS.REGISTER {view} ENTITY ride {options} SCHEMA {schema}") == b"OK"


def refused(wire: Wire, code: str, names: list[str], line: str, *more) -> str:
    """The message of a call that is refused with this code and names these; nothing changes by it."""
    before = state(wire)
    reply = said(wire, line, *more)
    assert isinstance(reply, Refusal), (line, more, reply)
    assert refused_properly(reply) and str(reply).startswith(f"{code} "), (line, more, str(reply))
    assert [name for name in names if name not in str(reply)] == [], (line, more, str(reply))
    assert state(wire) == before, (line, more)
    return str(reply)


def state(wire: Wire) -> list:
    """All definitions, and what FS.DRIFT says of their baselines and windows."""
    told = []
    for view, _, versions in wire.call("FS.VIEWS"):
        for version in versions:
            words = (view, "VERSION", version)
            told.append([wire.call("FS.DESCRIBE", *words), wire.call("FS.DESCRIBE", *words, "JSON")])
            told.append(str(wire.call("FS.DRIFT", *words)))
    return told


# FS.BASELINE

FORMS = {
    "STATS": {"i", "x", "ok", "seen"},
    "SAMPLES": {"i", "x", "ok", "seen", "word", "taste"},
    "CATEGORIES": {"i", "ok", "word"},
    "FREEZE": set(TYPES),
    "CLEAR": set(TYPES),
}


def calls_of(form: str, name: str) -> list[list[str]]:
    """Valid calls of a form, were the feature of a type that it fits."""
    one, other = VALUES[name]
    return {
        "STATS": [
            ["STATS", "mean", "1.5", "stddev", "0"],
            ["stats", "STDDEV", "2", "MISSING", "0.5", "MAX", "9", "MEAN", "-1e300", "min", "-2"],
        ],
        "SAMPLES": [
            ["SAMPLES", "1", one],
            ["samples", "3", one, other, one, "MISSING", "1"],
            ["SAMPLES", "2", one, other, "missing", "0"],
        ],
        "CATEGORIES": [
            ["CATEGORIES", "1", one, "1"],
            ["categories", "2", one, "5", other, "9007199254740000", "missing", "0.25"],
        ],
        "FREEZE": [["FREEZE"], ["freeze"]],
        "CLEAR": [["CLEAR", "BASELINE"], ["clear", "current"]],
    }[form]


def publish_all(wire: Wire) -> None:
    words = [word for name, values in VALUES.items() for word in (name, values[0])]
    assert isinstance(wire.call("FS.PUBLISH", "fs:v1:rides:r1", *words), bytes)


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_a_baseline_fits_the_types_that_its_line_names(wire, form):
    register(wire)
    for name, type_ in TYPES.items():
        for words in calls_of(form, name):
            # FREEZE needs something to freeze, and a CLEAR CURRENT takes it away.
            publish_all(wire)
            if name in FORMS[form]:
                assert wire.call("FS.BASELINE", "rides", name, *words) == b"OK", (name, words)
                assert (
                    wire.call("FS.BASELINE", "rides", "VERSION", "1", name, *words) == b"OK"
                    or form == "FREEZE"
                )
            else:
                refused(wire, "SCHEMA", ["'rides'", f"'{name}'", type_], f"FS.BASELINE rides {name}", *words)


# What is refused: the feature and words after it, the code, and what the message names.
REFUSED = [
    ("x", "", "ERR", []),
    ("x", "NONSENSE", "ERR", ["NONSENSE"]),
    ("x", "STATS", "ERR", ["mean"]),
    ("x", "STATS mean", "ERR", ["mean"]),
    ("x", "STATS mean 1", "ERR", ["stddev"]),
    ("x", "STATS stddev 1", "ERR", ["mean"]),
    ("x", "STATS mean 1 mean 2 stddev 1", "ERR", ["mean"]),
    ("x", "STATS mean 1 stddev 1 stddev 1", "ERR", ["stddev"]),
    ("x", "STATS mean 1 stddev 1 min 0 min 0", "ERR", ["min"]),
    ("x", "STATS mean 1 stddev 1 missing 0 missing 0", "ERR", ["missing"]),
    ("x", "STATS mean 1 stddev 1 median 1", "ERR", ["median"]),
    ("x", "STATS mean 1 stddev 1 max", "ERR", ["max"]),
    ("x", "STATS mean abc stddev 1", "", ["'rides'", "'x'", "'abc'"]),
    ("x", "STATS mean nan stddev 1", "", ["'rides'", "'x'", "'nan'"]),
    ("x", "STATS mean 1 stddev inf", "", ["'rides'", "'x'", "'inf'"]),
    ("x", "STATS mean 1 stddev -0.5", "", ["'rides'", "'x'", "'-0.5'"]),
    ("x", "STATS mean 1e999 stddev 1", "", ["'rides'", "'x'", "'1e999'"]),
    ("x", "STATS mean 1 stddev 1 min nan", "", ["'rides'", "'x'", "'nan'"]),
    ("x", "STATS mean 1 stddev 1 max -inf", "", ["'rides'", "'x'", "'-inf'"]),
    ("x", "STATS mean 1 stddev 1 missing 1.01", "", ["'rides'", "'x'", "'1.01'"]),
    ("x", "STATS mean 1 stddev 1 missing -0.01", "", ["'rides'", "'x'", "'-0.01'"]),
    ("x", "STATS mean 1 stddev 1 missing nan", "", ["'rides'", "'x'", "'nan'"]),
    ("x", "SAMPLES", "ERR", ["SAMPLES"]),
    ("x", "SAMPLES 0", "ERR", ["0"]),
    ("x", "SAMPLES -1 5", "ERR", ["-1"]),
    ("x", "SAMPLES 1.5 5", "ERR", ["1.5"]),
    ("x", "SAMPLES abc 5", "ERR", ["abc"]),
    ("x", "SAMPLES 18446744073709551615 5", "", ["18446744073709551615"]),
    ("x", "SAMPLES 2 5", "ERR", []),
    ("x", "SAMPLES 1 5 6", "ERR", ["6"]),
    ("x", "SAMPLES 2 5 MISSING 0", "", ["'MISSING'"]),
    ("x", "SAMPLES 1 5 MISSING", "ERR", ["MISSING"]),
    ("x", "SAMPLES 1 5 MISSING 0 MISSING 0", "ERR", ["MISSING"]),
    ("x", "SAMPLES 1 5 MISSING 2", "", ["'rides'", "'x'", "'2'"]),
    ("x", "SAMPLES 2 5 nan", "SCHEMA", ["'rides'", "'x'", "FLOAT", "'nan'"]),
    ("x", "SAMPLES 2 5 -inf", "SCHEMA", ["'rides'", "'x'", "FLOAT", "'-inf'"]),
    ("x", "SAMPLES 2 5 abc", "SCHEMA", ["'rides'", "'x'", "FLOAT", "'abc'"]),
    ("x", "SAMPLES 1 1e999", "SCHEMA", ["'rides'", "'x'", "FLOAT", "'1e999'"]),
    ("i", "SAMPLES 2 5 5.5", "SCHEMA", ["'rides'", "'i'", "INT", "'5.5'"]),
    ("ok", "SAMPLES 2 true yes", "SCHEMA", ["'rides'", "'ok'", "BOOL", "'yes'"]),
    ("seen", "SAMPLES 1 1700000000", "SCHEMA", ["'rides'", "'seen'", "'1700000000'", "looks like seconds"]),
    ("taste", "SAMPLES 2 1,2 1,2,3", "SCHEMA", ["'rides'", "'taste'", "VECTOR 2", "1,2,3"]),
    ("taste", "SAMPLES 1 1,nan", "SCHEMA", ["'rides'", "'taste'", "VECTOR 2", "1,nan"]),
    ("word", "CATEGORIES", "ERR", ["CATEGORIES"]),
    ("word", "CATEGORIES 0", "ERR", ["0"]),
    ("word", "CATEGORIES 1 a", "ERR", []),
    ("word", "CATEGORIES 2 a 5 b", "ERR", []),
    ("word", "CATEGORIES 1 a 5 b 5", "ERR", ["b"]),
    ("word", "CATEGORIES 1 a 0", "", ["'rides'", "'word'", "'0'"]),
    ("word", "CATEGORIES 1 a -5", "", ["'rides'", "'word'", "'-5'"]),
    ("word", "CATEGORIES 1 a 0.5", "", ["'rides'", "'word'", "'0.5'"]),
    ("word", "CATEGORIES 1 a many", "", ["'rides'", "'word'", "'many'"]),
    ("word", "CATEGORIES 1 a 18446744073709551616", "", ["'rides'", "'word'", "'18446744073709551616'"]),
    ("word", "CATEGORIES 3 a 5 b 5 a 1", "", ["'rides'", "'word'", "'a'"]),
    ("i", "CATEGORIES 2 5 1 5.0 1", "", ["'rides'", "'i'", "'5.0'"]),
    ("ok", "CATEGORIES 2 true 1 1 1", "", ["'rides'", "'ok'", "'1'"]),
    ("i", "CATEGORIES 1 abc 1", "SCHEMA", ["'rides'", "'i'", "INT", "'abc'"]),
    ("ok", "CATEGORIES 1 maybe 1", "SCHEMA", ["'rides'", "'ok'", "BOOL", "'maybe'"]),
    ("x", "FREEZE now", "ERR", ["now"]),
    ("x", "FREEZE", "", ["'rides'", "'x'"]),
    ("x", "CLEAR", "ERR", []),
    ("x", "CLEAR ALL", "ERR", ["ALL"]),
    ("x", "CLEAR BASELINE CURRENT", "ERR", ["CURRENT"]),
    ("nothing", "FREEZE", "NOFEATURE", ["'rides'", "'nothing'"]),
    ("nothing", "CLEAR BASELINE", "NOFEATURE", ["'rides'", "'nothing'"]),
    ("", "", "ERR", []),
    ("VERSION 2 x", "FREEZE", "NOVIEW", ["'rides'", "2"]),
    ("VERSION 0 x", "FREEZE", "ERR", ["0"]),
    # No number follows: it is the name of a feature.
    ("VERSION x", "STATS mean 1 stddev 2", "NOFEATURE", ["'rides'", "'VERSION'"]),
]


@pytest.mark.parametrize(("feature", "words", "code", "names"), REFUSED)
def test_what_is_no_baseline_is_refused_by_name_and_changes_nothing(wire, feature, words, code, names):
    register(wire)
    for name in ("x", "word"):
        # What was there stays.
        assert said(wire, f"FS.BASELINE rides {name} SAMPLES 1 5 MISSING 0.5") == b"OK"
    reply = said(wire, f"FS.BASELINE rides {feature} {words}")
    # Where a value is to blame, its code may be that of a value or that of an argument.
    codes = [code] if code else ["SCHEMA", "ERR"]
    found = str(reply).split(" ")[0]
    assert isinstance(reply, Refusal) and found in codes, (words, reply)
    refused(wire, found, names, f"FS.BASELINE rides {feature} {words}")


def test_a_view_that_is_not_there_is_named(wire):
    register(wire)
    for words in ("STATS mean 1 stddev 1", "SAMPLES 1 5", "CATEGORIES 1 a 1", "FREEZE", "CLEAR BASELINE"):
        refused(wire, "NOVIEW", ["'nobody'"], f"FS.BASELINE nobody x {words}")
        refused(wire, "NOVIEW", ["'rides'", "7"], f"FS.BASELINE rides VERSION 7 x {words}")
    refused(wire, "NOVIEW", ["'nobody'"], "FS.DRIFT nobody")
    refused(wire, "NOVIEW", ["'rides'", "7"], "FS.DRIFT rides VERSION 7")


def test_a_baseline_holds_at_most_as_many_values_as_are_sampled(fresh_server):
    server = fresh_server({"fs.drift-samples": 200})
    with Wire(server) as wire:
        register(wire)
        for name, value in (("x", "1"), ("word", "a"), ("taste", "1,2"), ("ok", "1")):
            assert said(wire, f"FS.BASELINE rides {name} SAMPLES 200", *[value] * 200) == b"OK"
            line = f"FS.BASELINE rides {name} SAMPLES 201"
            refused(wire, "SCHEMA", ["'rides'", f"'{name}'", "201", "200"], line, *[value] * 201)
        # Categories are not values: there may be more.
        words = [word for i in range(500) for word in (f"c{i}", "7")]
        assert said(wire, "FS.BASELINE rides word CATEGORIES 500", *words) == b"OK"
        assert wire.call("CONFIG", "SET", "fs.drift-samples", 300) == b"OK"
        assert said(wire, "FS.BASELINE rides x SAMPLES 201", *["1"] * 201) == b"OK"


# FS.DRIFT

DRIFT_REFUSED = [
    ("rides nothing", "NOFEATURE", ["'rides'", "'nothing'"]),
    ("rides VERSION", "NOFEATURE", ["'rides'", "'VERSION'"]),
    ("rides VERSION 0", "ERR", ["0"]),
    ("rides VERSION x", "NOFEATURE", ["'rides'", "'VERSION'"]),
    ("rides METHOD", "ERR", ["METHOD"]),
    ("rides METHOD NONSENSE", "ERR", ["NONSENSE"]),
    ("rides METHOD MEAN THRESHOLD", "ERR", ["THRESHOLD"]),
    ("rides METHOD MEAN THRESHOLD abc", "ERR", ["abc"]),
    ("rides METHOD MEAN THRESHOLD nan", "ERR", ["nan"]),
    ("rides METHOD MEAN THRESHOLD inf", "ERR", ["inf"]),
    ("rides METHOD MEAN THRESHOLD 0.1 THRESHOLD 0.2", "ERR", ["THRESHOLD"]),
    ("rides METHOD MEAN METHOD MEAN", "ERR", ["MEAN"]),
    ("rides THRESHOLD 0.1", "NOFEATURE", ["'rides'", "'THRESHOLD'"]),
    ("rides x THRESHOLD 0.1", "ERR", ["THRESHOLD"]),
    ("rides x word", "ERR", ["word"]),
    ("rides x METHOD MEAN word", "ERR", ["word"]),
    # It has a baseline, but the method does not fit.
    ("rides x METHOD CHI2", "ERR", ["'rides'", "'x'", "CHI2"]),
    ("rides x METHOD MEAN METHOD CENTROID", "ERR", ["'rides'", "'x'", "CENTROID"]),
    ("rides word METHOD KS", "ERR", ["'rides'", "'word'", "KS"]),
    ("rides i METHOD KS", "ERR", ["'rides'", "'i'", "KS"]),
    ("rides taste METHOD MEAN", "ERR", ["'rides'", "'taste'", "MEAN"]),
    # It has no baseline.
    ("rides tags", "ERR", ["'rides'", "'tags'"]),
    ("rides ok METHOD MISSING", "ERR", ["'rides'", "'ok'"]),
    # Nothing in the view can be tested.
    ("empty", "ERR", ["'empty'"]),
    ("empty METHOD MEAN", "ERR", ["'empty'"]),
    ("numbers METHOD CHI2", "ERR", ["'numbers'"]),
    ("numbers METHOD CHI2 METHOD CENTROID", "ERR", ["'numbers'"]),
]


@pytest.mark.parametrize(("words", "code", "names"), DRIFT_REFUSED)
def test_what_cannot_be_tested_is_refused_by_name(wire, words, code, names):
    register(wire)
    register(wire, view="empty")
    register(wire, view="numbers")
    for line in (
        "rides x SAMPLES 2 1 2",
        "rides word SAMPLES 2 a b",
        "rides i STATS mean 1 stddev 2",
        "rides taste SAMPLES 1 1,2",
        "numbers x SAMPLES 1 5",
    ):
        assert said(wire, f"FS.BASELINE {line}") == b"OK"
    refused(wire, code, names, f"FS.DRIFT {words}")


def test_features_that_a_method_does_not_fit_are_left_out_of_a_view(server, client):
    with Wire(server) as wire:
        register(wire)
        for line in (
            "x SAMPLES 2 1 2",
            "i STATS mean 1 stddev 2",
            "ok CATEGORIES 2 1 5 0 5",
            "word SAMPLES 2 a b",
            "taste SAMPLES 1 1,2",
        ):
            assert said(wire, f"FS.BASELINE rides {line}") == b"OK"
    fitting = {
        "i": ("MEAN", "STDDEV", "MISSING"),
        "x": ("MEAN", "STDDEV", "KS", "PSI", "WASSERSTEIN", "JS", "MISSING"),
        "ok": ("PSI", "CHI2", "MISSING", "NEW_CATEGORIES"),
        "word": ("PSI", "CHI2", "MISSING", "NEW_CATEGORIES"),
        "taste": ("MISSING", "CENTROID"),
    }
    drift = Drift(server)
    for methods in [METHODS, *itertools.combinations(METHODS, 1), *itertools.combinations(METHODS, 2)]:
        for order in (methods, methods[::-1]):
            words = [word for method in order for word in ("METHOD", method.lower())]
            told = [(e["feature"].decode(), e["method"].decode()) for e in drift("rides", *words)]
            assert told == [(f, m) for f, fit in fitting.items() for m in order if m in fit]
    assert [e["method"].decode() for e in drift("rides", "x")] == list(fitting["x"])


def test_features_may_be_named_as_the_words_of_the_commands_are(server, client):
    names = "version method threshold missing samples stats freeze clear categories baseline current sample"
    with Wire(server) as wire:
        register(wire, " ".join(f"{name} FLOAT" for name in names.split()))
        for name in names.split():
            for before in (["rides"], ["rides", "VERSION", "1"]):
                for words in (
                    ["SAMPLES", "1", "5"],
                    ["CLEAR", "CURRENT"],
                    ["STATS", "mean", "1", "stddev", "2"],
                ):
                    assert wire.call("FS.BASELINE", *before, name, *words) == b"OK", (before, name)
        drift = Drift(server)
        told = [entry["feature"].decode() for entry in drift("rides", "METHOD", "MEAN")]
        assert told == names.split()
        for name in names.split():
            for before in (["rides"], ["rides", "VERSION", 1]):
                for words in (
                    [],
                    ["METHOD", "MEAN", "METHOD", "STDDEV"],
                    ["METHOD", "MEAN", "THRESHOLD", "0.5"],
                ):
                    told = drift(*before, name, *words)
                    assert {entry["feature"].decode() for entry in told} == {name}
                    assert len(told) == (words.count("METHOD") or 3)


# Anything at all


def random_calls(seed: int, count: int) -> list[list]:
    """Calls of FS.BASELINE and FS.DRIFT, and of SAMPLE: valid ones with words exchanged, doubled, taken out."""
    draw = random.Random(seed)
    valid = [
        ["FS.BASELINE", view, name, *words]
        for view in ("rides", "other")
        for name in TYPES
        for form in FORMS
        for words in calls_of(form, name)
    ]
    valid += [["FS.DRIFT", "rides", name, "METHOD", m, "THRESHOLD", "0.5"] for name in TYPES for m in METHODS]
    valid += [["FS.DRIFT", "rides", "VERSION", "1", "METHOD", "MEAN", "METHOD", "KS"]] * 20
    valid += [["FS.ALTER", "rides", "SAMPLE", "0.5", "ON", "SERVE"]] * 20
    words = [word for call in valid for word in call[1:]]
    words += [odd for odd in ODD_VALUES.values() if len(odd) < 1000]
    words += ["nan", "inf", "-0", "1e308", "-1e308", "5e-324", "MEAN", "mean", "0.1", "2", "3"]
    calls = []
    for _ in range(count):
        call = list(draw.choice(valid))
        for _ in range(draw.choice([0, 1, 1, 1, 2, 3])):
            at = draw.randrange(1, len(call) + 1)
            call[at : at + draw.randrange(2)] = draw.choices(words, k=draw.randrange(3))
        calls.append(call)
    return calls


@pytest.mark.parametrize("seed", range(3))
def test_random_calls_are_answered_and_a_refusal_changes_nothing(wire, seed):
    register(wire)
    register(wire, view="other")
    publish_all(wire)
    before, taken = state(wire), Counter()
    for call in random_calls(seed, 1500):
        reply = wire.call(*call)
        if refused_properly(reply):
            assert state(wire) == before, call
            taken[f"{call[0]} refused"] += 1
        else:
            taken[call[0]] += 1
            if b"CURRENT" in map(upper, call):
                # What FREEZE needs.
                publish_all(wire)
            before = state(wire)
    assert (
        min(taken[name] for name in ("FS.BASELINE", "FS.BASELINE refused", "FS.DRIFT", "FS.ALTER")) >= 10
    ), taken
    assert wire_map(wire.call("FS.INFO"))[b"panics"] == 0
    before = state(wire)
    assert wire.call("DEBUG", "RELOAD") == b"OK"
    assert state(wire) == before


def upper(word) -> bytes:
    return (word if isinstance(word, bytes) else word.encode()).upper()


# Documents

EXPECTED = [
    ("FLOAT", {"mean": 35.2, "stddev": 12, "min": 0, "max": 120, "missing": 0.01}, "MEAN STDDEV MISSING"),
    ("FLOAT", {"mean": 35.25}, "MEAN MISSING"),
    ("INT", {"stddev": 2.5}, "STDDEV MISSING"),
    ("TIMESTAMP", {"mean": 1.7e12, "stddev": 3.6e6}, "MEAN STDDEV MISSING"),
    ("BOOL", {"top_categories": {"true": 0.5, "false": 0.5}}, "PSI MISSING NEW_CATEGORIES"),
    ("BOOL", {"mean": 0.5, "min": 0}, "MEAN MISSING"),
    ("FLOAT", {"missing": 0.25}, "MISSING"),
    ("STRING", {"top_categories": {"US": 0.5, "DE": 0.2, 'it\'s "x"': 0.001}}, "PSI MISSING NEW_CATEGORIES"),
    ("STRING", {"top_categories": {"US": 0.5, "DE": 0.5}, "missing": 1}, "PSI MISSING NEW_CATEGORIES"),
    ("INT", {"top_categories": {"5": 0.125, "-7": 0.25}}, "PSI MISSING NEW_CATEGORIES"),
    ("VECTOR 2", {"missing": 0.5}, "MISSING"),
    ("LIST", {"missing": 0}, "MISSING"),
]


@pytest.mark.parametrize(("type_", "expected", "methods"), EXPECTED)
def test_what_a_document_expects_is_a_baseline_and_stays_as_it_was_said(server, type_, expected, methods):
    schema = {"f": {"type": type_, "expected": expected}, "plain": "INT"}
    with Wire(server) as wire:
        text = json.dumps({"entity": "ride", "schema": schema})
        assert wire.call("FS.REGISTER", "rides", "JSON", text) == b"OK"
        document = wire.call("FS.DESCRIBE", "rides", "JSON")
        by_name = {feature["name"]: feature for feature in json.loads(document)["schema"]}
        assert by_name["f"]["expected"] == expected and "expected" not in by_name["plain"]
        for form in (text, document):
            assert wire.call("FS.REGISTER", "rides", "JSON", form) == b"OK"
        other = json.loads(document)
        other["schema"][0]["expected"] = {"missing": 0.75}
        refused(wire, "VIEWEXISTS", ["'rides'"], "FS.REGISTER rides JSON", json.dumps(other))
        told = state(wire)
        assert wire.call("DEBUG", "RELOAD") == b"OK"
        assert state(wire) == told
        assert wire.call("FS.DROP", "rides") == b"OK"
        assert wire.call("FS.REGISTER", "rides", "JSON", document) == b"OK"
        assert state(wire) == told
        found = [(e["feature"], e["method"].decode()) for e in Drift(server)("rides")]
        assert found == [(b"f", method) for method in methods.split()]
        # FS.BASELINE counts before it, and what it expects counts again when that is cleared.
        assert said(wire, "FS.BASELINE rides plain STATS mean 1 stddev 2 missing 0.5") == b"OK"
        publish = {"INT": "5", "FLOAT": "1", "TIMESTAMP": str(TIME_MS), "BOOL": "1", "STRING": "US"}
        value = publish.get(type_, "[1,2]")
        said(wire, "FS.PUBLISH fs:v1:rides:r1 f", value)
        assert said(wire, "FS.BASELINE rides f FREEZE") == b"OK"
        (missing,) = (e for e in Drift(server)("rides", "f") if e["method"] == b"MISSING")
        assert (missing["baseline"], missing["baseline_n"]) == (0.0, 1)
        assert said(wire, "FS.BASELINE rides f CLEAR BASELINE") == b"OK"
        (missing,) = (e for e in Drift(server)("rides", "f") if e["method"] == b"MISSING")
        assert (missing["baseline"], missing["baseline_n"]) == (expected.get("missing", 0.0), None)


UNEXPECTED = [
    ("FLOAT", {"mean": "high"}),
    ("FLOAT", {"mean": None, "stddev": []}),
    ("FLOAT", {"stddev": -1}),
    ("FLOAT", {"missing": 1.5}),
    ("FLOAT", {"missing": -0.5}),
    ("FLOAT", {"median": 5}),
    ("FLOAT", {"top_categories": {"1": 0.5}}),
    ("STRING", {"mean": 5}),
    ("STRING", {"stddev": 5}),
    ("STRING", {"top_categories": {"US": 0.75, "DE": 0.5}}),
    ("STRING", {"top_categories": {"US": -0.1}}),
    ("STRING", {"top_categories": {"US": 1.1}}),
    ("STRING", {"top_categories": {"US": "much"}}),
    ("STRING", {"top_categories": ["US"]}),
    ("INT", {"top_categories": {"US": 0.5}}),
    ("BOOL", {"top_categories": {"maybe": 0.5}}),
    ("VECTOR 2", {"mean": 5}),
    ("LIST", {"mean": 5}),
    ("LIST", {"top_categories": {"[1]": 0.5}}),
    ("BOOL", {"mean": 0.5, "top_categories": {"true": 0.5, "false": 0.5}}),
    ("FLOAT", {"min": 5, "max": 4}),
    ("FLOAT", "normal"),
    ("FLOAT", [35, 12]),
]


@pytest.mark.parametrize(("type_", "expected"), UNEXPECTED)
def test_a_document_that_expects_what_cannot_be_is_refused(wire, type_, expected):
    document = {"entity": "ride", "schema": {"f": {"type": type_, "expected": expected}}}
    reply = wire.call("FS.REGISTER", "rides", "JSON", json.dumps(document))
    assert isinstance(reply, Refusal) and refused_properly(reply), reply
    assert str(reply).split(" ")[0] in ("ERR", "SCHEMA") and "'rides'" in str(reply) and "'f'" in str(reply)
    assert wire.call("FS.VIEWS") == []


# SAMPLE


def test_sample_is_said_in_words_and_in_documents_and_told_again(wire):
    for rate, where in itertools.product(("0", "1", "0.25", "1e-3"), ("PUBLISH", "SERVE")):
        register(wire, options=f"SAMPLE {rate} ON {where}")
        document = wire.call("FS.DESCRIBE", "rides", "JSON")
        told = state(wire)
        register(wire, options=f"sample {rate} on {where.lower()}")
        assert said(wire, "FS.DROP rides") == b"OK"
        assert wire.call("FS.REGISTER", "rides", "JSON", document) == b"OK"
        assert state(wire) == told
        assert said(wire, "FS.ALTER rides SAMPLE 0.5 ON SERVE TTL 1d") == b"OK"
        assert state(wire) != told
        assert said(wire, f"FS.ALTER rides TTL NONE SAMPLE {rate} ON {where}") == b"OK"
        assert wire.call("FS.DESCRIBE", "rides", "JSON") == document
        assert said(wire, "FS.DROP rides") == b"OK"
    # `1 ON PUBLISH` is what goes without saying.
    register(wire)
    told = state(wire)
    register(wire, options="SAMPLE 1 ON PUBLISH")
    assert state(wire) == told
    refused(
        wire, "VIEWEXISTS", ["'rides'"], f"FS.REGISTER rides ENTITY ride SAMPLE 1 ON SERVE SCHEMA {SCHEMA}"
    )


@pytest.mark.parametrize(
    "words",
    "|0.5|0.5 ON|ON SERVE|0.5 SERVE|0.5 ON READ|0.5 ON PUBLISH|SERVE|1.5 ON SERVE|-0.1 ON SERVE|nan ON SERVE|"
    "inf ON SERVE|many ON PUBLISH|50% ON PUBLISH".replace("PUBLISH|SERVE", "PUBLISH,SERVE").split("|"),
)
def test_a_sample_that_cannot_be_is_refused(wire, words):
    register(wire)
    refused(wire, "ERR", [], f"FS.ALTER rides SAMPLE {words}")
    refused(wire, "ERR", [], f"FS.REGISTER others ENTITY ride SAMPLE {words} SCHEMA x FLOAT")


def test_a_sample_that_cannot_be_is_refused_in_a_document(wire):
    register(wire)
    told = json.loads(wire.call("FS.DESCRIBE", "rides", "JSON"))
    sample = told["sample"]
    assert set(sample) == {"rate", "on"} and said(wire, "FS.DROP rides") == b"OK"
    odd = [{**sample, "rate": rate} for rate in (-0.1, 1.5, "many", None, [1])]
    odd += [{**sample, "on": on} for on in ("read", "", None, 1, ["serve"])]
    odd += [{"rate": 0.5}, {"on": "serve"}, {}, {**sample, "more": 1}, [0.5, "serve"], 0.5, "serve"]
    for value in odd:
        refused(wire, "ERR", [], "FS.REGISTER rides JSON", json.dumps({**told, "sample": value}))
