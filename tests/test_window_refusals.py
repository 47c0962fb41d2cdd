"""Definitions of windows that are refused, each by name."""

import json

import pytest
from test_definitions import as_map, document, fs, refused, views
from test_window_definitions import INPUTS, LETTERS, LOG, ROW, STATE, inputs_as_documents, register

from server import await_until

# What is refused

# The feature `bad`, and what is wrong with it: message and feature are named in each.
BAD = """
INT AGG COUNT WINDOW 999ms HOP 1ms
INT AGG COUNT WINDOW 1500ms
INT AGG COUNT WINDOW 1h HOP 7m
INT AGG COUNT WINDOW 1h HOP 2h
INT AGG COUNT WINDOW 4097s HOP 1s
INT AGG COUNT WINDOW 4097s
INT AGG COUNT WINDOW 4097ms HOP 1ms
INT AGG COUNT
INT AGG COUNT HOP 1m
INT AGG COUNT x
INT WINDOW 1h
INT HOP 1m
INT WINDOW 1h HOP 1m
FLOAT AGG COUNT WINDOW 1h
FLOAT AGG COUNT x WINDOW 1h
INT AGG SUM x WINDOW 1h
INT AGG SUM whole WINDOW 1h
INT AGG DECAYED_SUM 1h x WINDOW 1h
INT AGG MEAN whole WINDOW 1h
INT AGG MIN whole WINDOW 1h
INT AGG MAX whole WINDOW 1h
INT AGG VAR_POP x WINDOW 1h
INT AGG VAR_SAMP x WINDOW 1h
INT AGG STDDEV_POP x WINDOW 1h
INT AGG STDDEV_SAMP x WINDOW 1h
INT AGG FIRST x WINDOW 1h
STRING AGG LAST x WINDOW 1h
VECTOR 4 AGG LAST emb WINDOW 1h
STRING AGG LAST_K 2 word WINDOW 1h
FLOAT AGG APPROX_COUNT_DISTINCT x WINDOW 1h
INT AGG APPROX_PERCENTILE 0.5 whole WINDOW 1h
STRING AGG TOP_K 2 word WINDOW 1h
STRING AGG HISTOGRAM word WINDOW 1h
FLOAT AGG MEAN emb WINDOW 1h
VECTOR 3 AGG MEAN x WINDOW 1h
VECTOR 4 AGG MEAN emb WINDOW 1h
VECTOR 3 AGG SUM emb WINDOW 1h
FLOAT AGG SUM word WINDOW 1h
FLOAT AGG SUM tags WINDOW 1h
FLOAT AGG SUM emb WINDOW 1h
FLOAT AGG MIN word WINDOW 1h
FLOAT AGG STDDEV_POP emb WINDOW 1h
FLOAT AGG DECAYED_SUM 1h word WINDOW 1h
FLOAT AGG APPROX_PERCENTILE 0.5 word WINDOW 1h
FLOAT AGG APPROX_PERCENTILE 0.5 emb WINDOW 1h
LIST AGG TOP_K 2 tags WINDOW 1h
LIST AGG TOP_K 2 emb WINDOW 1h
LIST AGG HISTOGRAM tags WINDOW 1h
LIST AGG HISTOGRAM emb WINDOW 1h
VECTOR 3 AGG MEAN emb WEIGHT word WINDOW 1h
VECTOR 3 AGG MEAN emb WEIGHT tags WINDOW 1h
VECTOR 3 AGG MEAN emb WEIGHT emb WINDOW 1h
VECTOR 3 AGG MEAN emb WEIGHT nobody WINDOW 1h
FLOAT AGG MEAN x WEIGHT weight WINDOW 1h
FLOAT AGG SUM nobody WINDOW 1h
FLOAT AGG SUM bad WINDOW 1h
FLOAT AGG SUM good WINDOW 1h
VECTOR 3 AGG MEAN emb WEIGHT good WINDOW 1h
LIST AGG LAST_K 0 x WINDOW 1h
LIST AGG LAST_K 1025 x WINDOW 1h
LIST AGG TOP_K 0 word WINDOW 1h
LIST AGG TOP_K 257 word WINDOW 1h
FLOAT AGG APPROX_PERCENTILE 0 x WINDOW 1h
FLOAT AGG APPROX_PERCENTILE 1 x WINDOW 1h
FLOAT AGG APPROX_PERCENTILE 1.5 x WINDOW 1h
FLOAT AGG APPROX_PERCENTILE -0.5 x WINDOW 1h
FLOAT AGG APPROX_PERCENTILE nan x WINDOW 1h
FLOAT AGG DECAYED_SUM 15ms x WINDOW 1h HOP 1s
FLOAT AGG DECAYED_SUM 15ms x WINDOW 1h
FLOAT AGG DECAYED_SUM 936ms x WINDOW 1h HOP 1m
FLOAT AGG SUM x WINDOW 1h TTL 1h
FLOAT AGG SUM x WINDOW 1h MIN 0
FLOAT AGG SUM x WINDOW 1h MAX 5
FLOAT AGG SUM x WINDOW 1h INPUT
FLOAT INPUT AGG SUM x WINDOW 1h
INT AGG COUNT x WINDOW 1h DEFAULT 1
FLOAT AGG SUM x WINDOW 1h DEFAULT 0.5
FLOAT AGG DECAYED_SUM 1h x WINDOW 1h DEFAULT 1
LIST AGG LAST_K 2 x WINDOW 1h DEFAULT [1]
INT AGG APPROX_COUNT_DISTINCT x WINDOW 1h DEFAULT 7
LIST AGG TOP_K 2 word WINDOW 1h DEFAULT [["a",1]]
LIST AGG HISTOGRAM word WINDOW 1h DEFAULT [[]]
FLOAT AGG MEAN x WINDOW 1h DEFAULT five
VECTOR 3 AGG MEAN emb WINDOW 1h DEFAULT 1,2
"""
# What does not even read as words of a feature.
UNREADABLE = """
FLOAT AGG
FLOAT AGG WINDOW 1h
FLOAT AGG MEDIAN x WINDOW 1h
FLOAT AGG SUM
FLOAT AGG SUM WINDOW 1h
FLOAT AGG SUM X WINDOW 1h
FLOAT AGG DECAYED_SUM x WINDOW 1h
FLOAT AGG DECAYED_SUM 0 x WINDOW 1h
FLOAT AGG DECAYED_SUM -1h x WINDOW 1h
FLOAT AGG APPROX_PERCENTILE x WINDOW 1h
LIST AGG LAST_K x WINDOW 1h
LIST AGG LAST_K -1 x WINDOW 1h
LIST AGG LAST_K many x WINDOW 1h
LIST AGG TOP_K 1.5 word WINDOW 1h
LIST AGG TOP_K 18446744073709551617 word WINDOW 1h
VECTOR 3 AGG MEAN emb WEIGHT WINDOW 1h
FLOAT AGG SUM x weight WINDOW 1h
FLOAT AGG SUM x WINDOW
FLOAT AGG SUM x WINDOW 0
FLOAT AGG SUM x WINDOW -1h
FLOAT AGG SUM x WINDOW soon
FLOAT AGG SUM x WINDOW 99999999999999999999d
FLOAT AGG SUM x WINDOW 1h HOP
FLOAT AGG SUM x WINDOW 1h HOP 0
FLOAT AGG SUM x WINDOW 1h HOP 0ms
FLOAT AGG SUM x WINDOW 1h HOP 0.5ms
"""


def lines(text: str) -> list[str]:
    return text.strip().splitlines()


@pytest.mark.parametrize("bad", lines(BAD))
def test_a_refusal_names_view_and_feature(client, bad):
    good = "good INT AGG COUNT WINDOW 1h"
    for schema in (f"{INPUTS} {good} bad {bad}", f"bad {bad} {INPUTS} {good}"):
        message = refused(client, "ERR", f"FS.REGISTER profile ENTITY user SCHEMA {schema}")
        assert "'profile'" in message and "'bad'" in message, message
    assert views(client) == []
    register(client, good)
    before = document(client)
    message = refused(client, "ERR", f"FS.ALTER profile ADD bad {bad}")
    assert "'profile'" in message and "'bad'" in message, message
    assert document(client) == before
    assert client.dbsize() == 0


def test_unreadable_words_change_nothing(client):
    for bad in lines(UNREADABLE):
        refused(client, "ERR", f"FS.REGISTER profile ENTITY user SCHEMA {INPUTS} bad {bad}")
        assert views(client) == [], bad
    for options in ("DEDUP", "DEDUP 0", "DEDUP -1s", "DEDUP soon", "DEDUP NONE"):
        refused(client, "ERR", f"FS.REGISTER profile ENTITY user {options} SCHEMA n INT")
        assert views(client) == [], options
    register(client, "")
    before = document(client)
    for bad in lines(UNREADABLE):
        refused(client, "ERR", f"FS.ALTER profile ADD bad {bad}")
        assert document(client) == before, bad


BAD_MEMBERS = """
{"type":"FLOAT","agg":"SUM x"}
{"type":"FLOAT","window":"1h"}
{"type":"FLOAT","hop":"1m"}
{"type":"FLOAT","agg":"","window":"1h"}
{"type":"FLOAT","agg":"MEDIAN x","window":"1h"}
{"type":"FLOAT","agg":"SUM","window":"1h"}
{"type":"FLOAT","agg":"SUM nobody","window":"1h"}
{"type":"FLOAT","agg":"SUM x weight","window":"1h"}
{"type":"FLOAT","agg":"SUM x WINDOW 1h"}
{"type":"FLOAT","agg":"SUM x WINDOW 1h","window":"1h"}
{"type":"FLOAT","agg":["SUM","x"],"window":"1h"}
{"type":"FLOAT","agg":"SUM x","window":"1h","hop":"7m"}
{"type":"FLOAT","agg":"SUM x","window":"1h","ttl":"1h"}
{"type":"FLOAT","agg":"SUM x","window":"1h","min":0}
{"type":"FLOAT","agg":"SUM x","window":"1h","input":true}
{"type":"FLOAT","agg":"SUM x","window":"1h","default":1}
{"type":"INT","agg":"SUM x","window":"1h"}
{"type":"LIST","agg":"LAST_K 0 x","window":"1h"}
{"type":"FLOAT","agg":"APPROX_PERCENTILE 1 x","window":"1h"}
"""


def test_a_document_is_refused_for_the_same_reasons(client):
    for line in lines(BAD_MEMBERS):
        for schema in (
            [*inputs_as_documents(), {"name": "bad"} | json.loads(line)],
            {f.pop("name"): f for f in inputs_as_documents()} | {"bad": json.loads(line)},
        ):
            text = json.dumps({"entity": "user", "schema": schema})
            message = refused(client, "ERR", "FS.REGISTER profile JSON", text)
            assert "'profile'" in message, (line, message)
            assert views(client) == [], line
    for duration in (0, -1, 1.5, "soon", True, [1]):
        for member in ("window", "hop"):
            bad = {"name": "bad", "type": "FLOAT", "agg": "SUM x", "window": "1h"} | {member: duration}
            text = json.dumps({"entity": "user", "schema": [*inputs_as_documents(), bad]})
            refused(client, "ERR", "FS.REGISTER profile JSON", text)
        text = json.dumps({"entity": "user", "dedup": duration, "schema": {"n": "INT"}})
        refused(client, "ERR", "FS.REGISTER profile JSON", text)
        assert views(client) == [], duration
    # Durations are words, or seconds, as elsewhere in a document.
    feature = {"name": "w", "type": "FLOAT", "agg": "sum x", "window": 3_600, "hop": 60}
    text = json.dumps({"entity": "user", "dedup": 600, "schema": [*inputs_as_documents(), feature]})
    assert fs(client, "FS.REGISTER profile JSON", text) == b"OK"
    assert register(client, "w FLOAT AGG SUM x WINDOW 1h HOP 1m", "DEDUP 10m") == b"OK"


def test_a_bare_count_needs_an_input_to_count(client):
    for schema in ("n INT w INT AGG COUNT WINDOW 1h", "w INT AGG COUNT WINDOW 1h"):
        message = refused(client, "ERR", f"FS.REGISTER profile ENTITY user SCHEMA {schema}")
        assert "'profile'" in message and "'w'" in message and "INPUT" in message
    fs(client, "FS.REGISTER profile ENTITY user SCHEMA n INT")
    message = refused(client, "ERR", "FS.ALTER profile ADD w INT AGG COUNT WINDOW 1h")
    assert "'profile'" in message and "'w'" in message and "INPUT" in message
    assert fs(client, "FS.ALTER profile ADD w INT AGG COUNT n WINDOW 1h ADD x INT INPUT") == b"OK"
    assert fs(client, "FS.ALTER profile ADD bare INT AGG COUNT WINDOW 1h") == b"OK"
    fs(client, f"FS.PUBLISH {ROW} n 1")
    fs(client, f"FS.PUBLISH {ROW} x 1")
    assert fs(client, f"FS.GET {ROW} w bare") == [b"w", 1, b"bare", 1]


def test_what_stands_at_a_limit_is_taken(client):
    good = [
        "INT AGG COUNT WINDOW 1s HOP 1ms",
        "INT AGG COUNT WINDOW 1s",
        "INT AGG COUNT WINDOW 1s HOP 1s",
        "INT AGG COUNT WINDOW 1500ms HOP 500ms",
        "INT AGG COUNT WINDOW 4096ms HOP 1ms",
        "INT AGG COUNT WINDOW 4096h HOP 1h",
        "LIST AGG LAST_K 1024 x WINDOW 1h",
        "LIST AGG TOP_K 256 word WINDOW 1h",
        "FLOAT AGG APPROX_PERCENTILE 0.000001 x WINDOW 1h",
        "FLOAT AGG APPROX_PERCENTILE 0.999999 x WINDOW 1h",
        "FLOAT AGG DECAYED_SUM 16ms x WINDOW 1h HOP 1s",
        "FLOAT AGG DECAYED_SUM 938ms x WINDOW 1h HOP 1m",
        "INT AGG COUNT x WINDOW 1h DEFAULT 0",
        "FLOAT AGG SUM x WINDOW 1h DEFAULT 0",
        "FLOAT AGG DECAYED_SUM 1h x WINDOW 1h DEFAULT 0",
        "LIST AGG LAST_K 2 x WINDOW 1h DEFAULT []",
        "INT AGG APPROX_COUNT_DISTINCT x WINDOW 1h DEFAULT 0",
        "LIST AGG TOP_K 2 word WINDOW 1h DEFAULT []",
        "LIST AGG HISTOGRAM word WINDOW 1h DEFAULT []",
        "FLOAT AGG MEAN x WINDOW 1h DEFAULT -5.5",
        "STRING AGG FIRST word WINDOW 1h DEFAULT none",
        "FLOAT AGG APPROX_PERCENTILE 0.5 x WINDOW 1h DEFAULT 7",
        "VECTOR 3 AGG MEAN emb WINDOW 1h DEFAULT 1,2,3",
        "embedding AGG MEAN emb WINDOW 1h DEFAULT 1,2,3",
        "numeric AGG SUM x WINDOW 1h",
        "list AGG LAST_K 1 x WINDOW 1h",
        "categorical AGG LAST word WINDOW 1h",
    ]
    register(client, " ".join(f"g{i} {words}" for i, words in enumerate(good)))
    text = document(client)
    assert fs(client, "FS.REGISTER profile JSON", text) == b"OK"
    # Over no events: what the table says.
    values = as_map(fs(client, f"FS.GET {ROW}"))
    assert [values[f"g{i}"] for i in range(12, 24)] == [
        *(0, b"0", b"0", b"[]", 0, b"[]", b"[]"),
        *(b"-5.5", b"none", b"7", [b"1", b"2", b"3"], [b"1", b"2", b"3"]),
    ]


def test_a_window_cannot_be_published(client):
    register(client, "s FLOAT AGG SUM x WINDOW 1h")
    before = client.execute_command("DEBUG", "DIGEST")
    for line, *more in [
        (f"FS.PUBLISH {ROW} s 1",),
        (f"FS.PUBLISH {ROW} x 1 s 1",),
        (f"FS.PUBLISH {ROW} NOLOG JSON", '{"x": 1, "s": 1}'),
        (f"FS.PUBLISH {ROW} JSON", '{"s": null, "x": 1}'),
        ("FS.MPUBLISH fs:v1:profile:u2", '{"x": 1}', ROW, '{"s": 1}'),
    ]:
        message = refused(client, "SCHEMA", line, *more)
        assert "'profile'" in message and "'s'" in message, message
    assert client.execute_command("DEBUG", "DIGEST") == before
    client.xadd(LOG, {"entity_id": "u1", "features": '{"x": 1, "s": 1}'})
    await_until(lambda: client.exists(LETTERS), what="the dead letter")
    (letter,) = (fields for _, fields in client.xrange(LETTERS))
    assert b"'s'" in letter[b"error"] and b"SCHEMA" in letter[b"error"]
    assert not client.exists(STATE, ROW)


def test_inputs_of_windows_keep_their_own_checks(client):
    register(
        client,
        "s FLOAT AGG SUM narrow WINDOW 1h narrow INT MIN 0 MAX 9 INPUT m VECTOR 3 AGG MEAN emb WEIGHT weight WINDOW 1h",
    )
    for words, feature in [
        ("narrow 10", "narrow"),
        ("narrow x", "narrow"),
        ("x 1 narrow -1", "narrow"),
        ("emb 1,2", "emb"),
        ("emb 1,2,3 weight -0.5", "weight"),
        ("weight -1", "weight"),
    ]:
        message = refused(client, "SCHEMA", f"FS.PUBLISH {ROW} {words}")
        assert "'profile'" in message and f"'{feature}'" in message, message
        assert not client.exists(STATE, ROW, LOG)
    fs(client, f"FS.PUBLISH {ROW} narrow 9 emb 1,2,3 weight 0")
    assert fs(client, f"FS.GET {ROW} s m") == [b"s", b"9", b"m", None]
