"""Definitions of windows: the words and the document of every function, what is refused, FS.ALTER ADD, FS.DESCRIBE."""

import itertools
import json
import random
import re
import time

from test_definitions import as_map, describe, document, fs, refused

ROW, LOG, LETTERS = "fs:v1:profile:u1", "fs:stream:profile", "fs:dlq:profile"
STATE = "fs:w1:profile:u1"
# One of every type: a plain feature, and events' fields that are not served.
INPUTS = (
    "n INT x FLOAT INPUT whole INT INPUT flag BOOL INPUT word STRING INPUT seen TIMESTAMP INPUT "
    "tags LIST INPUT emb VECTOR 3 INPUT wide VECTOR 4 INPUT weight FLOAT INPUT"
)
INPUT_TYPES = {
    "n": "INT",
    "x": "FLOAT",
    "whole": "INT",
    "flag": "BOOL",
    "word": "STRING",
    "seen": "TIMESTAMP",
    "tags": "LIST",
    "emb": "VECTOR 3",
}
NUMBERS = ("n", "x", "whole", "flag", "seen")
COUNTABLE = (*NUMBERS, "word")
OF_NUMBERS = ("SUM", "MEAN", "MIN", "MAX", "VAR_POP", "VAR_SAMP", "STDDEV_POP", "STDDEV_SAMP")

# Every function over every input that it takes, with the type that it must have.
FUNCTIONS = [
    ("INT", "COUNT"),
    *(("INT", f"COUNT {name}") for name in INPUT_TYPES),
    *(("FLOAT", f"{function} {name}") for function in OF_NUMBERS for name in NUMBERS),
    *(("FLOAT", f"DECAYED_SUM {half_life} x") for half_life in ("57s", "56250ms", "30m", "7d")),
    *(("FLOAT", f"DECAYED_SUM 1h {name}") for name in NUMBERS),
    *((type_, f"{function} {name}") for name, type_ in INPUT_TYPES.items() for function in ("FIRST", "LAST")),
    *(("LIST", f"LAST_K {k} {name}") for k, name in zip((1, 2, 1024) * 3, INPUT_TYPES, strict=False)),
    *(("INT", f"APPROX_COUNT_DISTINCT {name}") for name in INPUT_TYPES),
    *(
        ("FLOAT", f"APPROX_PERCENTILE {q} {name}")
        for q, name in zip((0.5, 0.01, 0.999) * 2, NUMBERS, strict=False)
    ),
    *(("LIST", f"TOP_K {k} {name}") for k, name in zip((1, 2, 256) * 2, COUNTABLE, strict=True)),
    *(("LIST", f"HISTOGRAM {name}") for name in COUNTABLE),
    ("VECTOR 3", "MEAN emb"),
    *(("VECTOR 3", f"MEAN emb WEIGHT {name}") for name in ("weight", *NUMBERS)),
]
NAMES = [f"f{i}" for i in range(len(FUNCTIONS))]


def register(client, features: str, options: str = "", view: str = "profile"):
    return fs(client, f"FS.REGISTER {view} ENTITY user {options} SCHEMA {INPUTS} {features}")


def inputs_as_documents() -> list:
    words = INPUTS.replace("VECTOR ", "VECTOR_").replace(" INPUT", "+INPUT").split()
    return [
        {"name": name, "type": type_.removesuffix("+INPUT").replace("_", " "), "input": "+" in type_}
        for name, type_ in zip(words[::2], words[1::2], strict=True)
    ]


def features_of(told: dict) -> dict:
    return {feature["name"].decode(): feature for feature in told["schema"]}


# Both forms


def test_every_function_reads_the_same_in_both_forms_and_is_told_as_it_was_said(client, fresh_server):
    words = " ".join(
        f"{name} {type_} AGG {agg} WINDOW 7d HOP 1h"
        for name, (type_, agg) in zip(NAMES, FUNCTIONS, strict=True)
    )
    documents = inputs_as_documents() + [
        {"name": name, "type": type_, "agg": agg, "window": "7d", "hop": "1h"}
        for name, (type_, agg) in zip(NAMES, FUNCTIONS, strict=True)
    ]
    assert register(client, words, "DEDUP 10m") == b"OK"
    told, text = describe(client), document(client)
    assert told["dedup_ms"] == 600_000
    features = features_of(told)
    for name, (type_, agg) in zip(NAMES, FUNCTIONS, strict=True):
        feature = features[name]
        shown = {key: feature[key] for key in ("type", "agg", "window_ms", "hop_ms")}
        assert shown == {
            "type": type_.encode(),
            "agg": agg.encode(),
            "window_ms": 7 * 86_400_000,
            "hop_ms": 3_600_000,
        }, agg
        assert isinstance(feature["state_bytes_max"], int) and feature["state_bytes_max"] > 0, agg
        assert not feature["input"] and feature["ttl_ms"] is None, agg
        width = {"VECTOR 3": 3, "STRING": None, "LIST": None}.get(type_, 1)
        assert feature["columns"] == width, agg
    for name in INPUT_TYPES:
        plain = [features[name][key] for key in ("agg", "window_ms", "hop_ms", "state_bytes_max")]
        assert plain == [None] * 4, name
    whole = json.loads(text)
    assert whole["dedup"] == "10m"
    by_name = {feature["name"]: feature for feature in whole["schema"]}
    for name, (_, agg) in zip(NAMES, FUNCTIONS, strict=True):
        assert [by_name[name][key] for key in ("agg", "window", "hop")] == [agg, "7d", "1h"], agg
    assert all("agg" not in by_name[name] for name in INPUT_TYPES)
    # Back and forth.
    spoken = json.dumps({"entity": "user", "dedup": "10m", "schema": documents})
    other = fresh_server().client()
    for form in (spoken, text):
        assert fs(client, "FS.REGISTER profile JSON", form) == b"OK"
        assert fs(other, "FS.REGISTER profile JSON", form) == b"OK"
        assert (document(other), describe(other)) == (text, told)
        assert register(other, words, "DEDUP 10m") == b"OK"
        assert register(other, words.lower(), "dedup 10m") == b"OK"
        fs(other, "FS.DROP profile")
    assert client.execute_command("DEBUG", "RELOAD") == b"OK"
    assert (document(client), describe(client)) == (text, told)
    assert register(client, words, "DEDUP 10m") == b"OK"


def test_words_after_the_type_come_in_any_order(client):
    parts = ["AGG LAST word", "WINDOW 1h", "HOP 30s", "VALUES 2 a b", "DEFAULT a", "DESCRIPTION text"]
    assert register(client, "w STRING " + " ".join(parts)) == b"OK"
    (window,) = (feature for feature in describe(client)["schema"] if feature["name"] == b"w")
    assert [window[key] for key in ("agg", "window_ms", "hop_ms", "values", "default", "description")] == [
        b"LAST word",
        3_600_000,
        30_000,
        [b"a", b"b"],
        b"a",
        b"text",
    ]
    for order in itertools.permutations(parts):
        # The same definition again is OK, another is not.
        assert register(client, "w STRING " + " ".join(order)) == b"OK", order
    refused(
        client,
        "VIEWEXISTS",
        f"FS.REGISTER profile ENTITY user SCHEMA {INPUTS} w STRING AGG LAST word WINDOW 1h",
    )
    members = {"agg": "LAST word", "window": "1h", "hop": "30s", "values": ["a", "b"], "default": "a"}
    for names in itertools.permutations(members):
        feature = {"name": "w", "type": "STRING", "description": "text"} | {
            name: members[name] for name in names
        }
        schema = inputs_as_documents() + [feature]
        assert (
            fs(client, "FS.REGISTER profile JSON", json.dumps({"entity": "user", "schema": schema})) == b"OK"
        )


def test_an_input_is_any_feature_without_agg_also_one_further_down(client):
    words = (
        "late FLOAT AGG SUM after WINDOW 1h top LIST AGG TOP_K 2 plain WINDOW 1h after INT INPUT plain STRING"
    )
    assert fs(client, f"FS.REGISTER profile ENTITY user SCHEMA {words}") == b"OK"
    fs(client, f"FS.PUBLISH {ROW} after 2 plain a")
    fs(client, f"FS.PUBLISH {ROW} after 3")
    assert fs(client, f"FS.GET {ROW}") == [b"late", b"5", b"top", b'[["a",1]]', b"plain", b"a"]


def test_a_definition_that_differs_in_a_window_is_another(client):
    words = (
        "s FLOAT AGG SUM x WINDOW 1h HOP 1m d FLOAT AGG DECAYED_SUM 30m x WINDOW 1h "
        "m FLOAT AGG MEAN x WINDOW 1d DEFAULT 5"
    )
    assert register(client, words, "DEDUP 10m") == b"OK"
    before = document(client)
    for old, new in [
        ("AGG SUM x WINDOW 1h HOP 1m", ""),
        ("SUM x", "SUM weight"),
        ("SUM x", "MIN x"),
        ("WINDOW 1h HOP 1m", "WINDOW 1h HOP 30s"),
        ("WINDOW 1h HOP 1m", "WINDOW 2h HOP 1m"),
        ("30m x", "31m x"),
        ("WINDOW 1d", "WINDOW 2d"),
        ("DEFAULT 5", "DEFAULT 6"),
        ("DEFAULT 5", ""),
        ("MEAN x", "MEAN x DESCRIPTION text"),
    ]:
        assert old in words
        line = f"FS.REGISTER profile ENTITY user DEDUP 10m SCHEMA {INPUTS} {words.replace(old, new, 1)}"
        assert "'profile'" in refused(client, "VIEWEXISTS", line)
    for options in ("", "DEDUP 11m"):
        refused(client, "VIEWEXISTS", f"FS.REGISTER profile ENTITY user {options} SCHEMA {INPUTS} {words}")
    assert document(client) == before
    # What is said as it would be anyway is the same.
    assert register(client, words.replace("WINDOW 1d", "WINDOW 24h HOP 30m"), "DEDUP 600") == b"OK"
    assert register(client, words.replace(" HOP 1m", ""), "DEDUP 600s") == b"OK"


# Hops

HOPS_MS = [
    *(1_000, 5_000, 10_000, 30_000, 60_000, 300_000, 600_000, 1_800_000),
    *(3_600_000, 10_800_000, 21_600_000, 43_200_000, 86_400_000),
]
WINDOWS_S = [
    *(1, 7, 47, 48, 49, 61, 90, 239, 240, 241, 300, 479, 480, 600, 1_440, 2_880, 3_600, 4_096, 4_800, 5_000),
    *(14_400, 28_800, 86_400, 90_000, 172_800, 518_400, 604_800, 950_400, 1_036_800, 2_592_000, 4_147_200),
    31_536_000,
]


def default_hop_ms(window_ms: int, most_ms: int | None = None) -> int:
    most_ms = min(window_ms / 48, most_ms or window_ms)
    return max(hop for hop in HOPS_MS if window_ms % hop == 0 and hop <= max(most_ms, 1_000))


def test_the_default_hop_is_the_largest_round_one_within_a_48th(client):
    words = " ".join(f"w{s} FLOAT AGG SUM x WINDOW {s}s" for s in WINDOWS_S)
    register(client, words)
    hops = {name: f["hop_ms"] for name, f in features_of(describe(client)).items() if f["agg"]}
    assert hops == {f"w{s}": default_hop_ms(s * 1_000) for s in WINDOWS_S}
    assert len(set(hops.values())) == len(HOPS_MS)


def test_the_default_hop_of_a_decayed_sum_is_at_most_its_half_life(client):
    cases = [(w, h) for w in (3_600_000, 86_400_000, 604_800_000) for h in (300_000, 899_999, 10**8)]
    cases += [(3_600_000, 16), (3_600_000, 999), (3_600_000, 4_999), (3_600_000, 5_000)]
    words = " ".join(f"w{w}h{h} FLOAT AGG DECAYED_SUM {h}ms x WINDOW {w}ms" for w, h in cases)
    register(client, words)
    hops = {name: f["hop_ms"] for name, f in features_of(describe(client)).items() if f["agg"]}
    assert hops == {f"w{w}h{h}": default_hop_ms(w, h) for w, h in cases}
    assert hops["w604800000h300000"] == 300_000 and hops["w3600000h16"] == 1_000


# FS.ALTER


def test_a_window_is_added_to_a_view_with_states(client):
    register(client, "s FLOAT AGG SUM x WINDOW 1h top LIST AGG TOP_K 2 word WINDOW 1h")
    now_ms = int(time.time() * 1000)
    entities = [f"fs:v1:profile:u{i}" for i in range(20)]
    chance = random.Random(1)
    for i in range(400):
        key, at_ms = chance.choice(entities), now_ms - chance.randrange(1_800_000)
        word = f"w{chance.randrange(5)}"
        fs(client, f"FS.PUBLISH {key} AT {at_ms} x {i} word {word} whole {i} seen {now_ms}")

    def told(key, *names):
        return fs(client, f"FS.GET {key} AT {now_ms} {' '.join(names)}")

    old = ("s", "top")
    before = {key: told(key, *old) for key in entities}
    states = {key: client.execute_command("DEBUG", "DIGEST-VALUE", key) for key in client.keys("fs:w1:*")}
    assert len(states) == 20
    # Other inputs, a longer window of the same sum, another function of the same input.
    more = {
        "wholes": "FLOAT AGG SUM whole WINDOW 1d HOP 1h",
        "kinds": "INT AGG APPROX_COUNT_DISTINCT seen WINDOW 2h",
        "s_7d": "FLOAT AGG SUM x WINDOW 7d",
        "events": "INT AGG COUNT WINDOW 1h",
        "lowest": "FLOAT AGG MIN x WINDOW 1h DEFAULT -1",
    }
    assert fs(client, f"FS.ALTER profile {' '.join(f'ADD {n} {w}' for n, w in more.items())}") == b"OK"
    assert {key: told(key, *old) for key in entities} == before
    for key in entities:
        # No state reaches back that far yet: what is there is served, not refused.
        expected = {"wholes": b"0", "kinds": 0, "s_7d": before[key][1], "events": 0, "lowest": b"-1"}
        assert as_map(told(key, *more)) == expected
        assert fs(client, f"FS.GET {key} WITHSTATUS wholes")[1][:2] == [b"0", b"PRESENT"]
    # It counts from now on, beside those that were there.
    for key in entities:
        fs(client, f"FS.PUBLISH {key} AT {now_ms} whole 7 seen {now_ms}")
        fs(client, f"FS.PUBLISH {key} AT {now_ms} whole 8")
        assert told(key, "wholes", "kinds") == [b"wholes", b"15", b"kinds", 1]
        assert told(key, "events", "lowest") == [b"events", 2, b"lowest", b"-1"]
        assert told(key, *old) == before[key]
    # The log knows the rest.
    assert fs(client, "FS.REPLAY profile FROM 0 WINDOWS") == 440
    sums, totals, counts, lows = {}, {}, {}, {}
    for _, fields in client.xrange(LOG):
        key, values = f"fs:v1:profile:{fields[b'entity_id'].decode()}", json.loads(fields[b"features"])
        sums[key] = sums.get(key, 0) + values.get("x", 0)
        totals[key] = totals.get(key, 0) + values["whole"]
        counts[key] = counts.get(key, 0) + 1
        lows[key] = min(lows.get(key, 1e9), values.get("x", 1e9))
    for key in entities:
        values = as_map(told(key, *old, *more))
        assert [values[name] for name in old] == before[key][1::2]
        assert float(values["s"]) == float(values["s_7d"]) == sums[key]
        assert (float(values["wholes"]), values["events"]) == (totals[key], counts[key])
        assert float(values["lowest"]) == lows[key]


def test_a_window_added_over_an_input_of_others_begins_with_the_next_hop(client):
    register(client, "s FLOAT AGG SUM x WINDOW 1h HOP 1m")
    # The begin of an hour.
    start_ms, minute_ms = 1_760_000_400_000, 60_000

    def publish(after_ms, x):
        fs(client, f"FS.PUBLISH {ROW} AT {start_ms + after_ms} x {x}")

    def told(after_ms):
        return as_map(fs(client, f"FS.GET {ROW} AT {start_ms + after_ms} s lowest var"))

    publish(-59 * minute_ms, 2)
    publish(0, 5)
    span = "WINDOW 1h HOP 1m"
    longer = "ADD s_1d FLOAT AGG SUM x WINDOW 1d HOP 1m ADD s_7d FLOAT AGG SUM x WINDOW 7d"
    more = f"{longer} ADD lowest FLOAT AGG MIN x {span} ADD var FLOAT AGG VAR_POP x {span}"
    assert fs(client, f"FS.ALTER profile {more}") == b"OK"
    # As far as the state goes that is there.
    assert fs(client, f"FS.GET {ROW} AT {start_ms} s_1d s_7d") == [b"s_1d", b"7", b"s_7d", b"7"]
    assert told(0) == {"s": b"7", "lowest": None, "var": None}
    # Of the hop that was there before they know nothing, nor of what still comes into it.
    publish(30_000, 3)
    assert told(30_000) == {"s": b"10", "lowest": None, "var": None}
    publish(minute_ms, 6)
    assert told(minute_ms) == {"s": b"16", "lowest": b"6", "var": b"0"}
    publish(2 * minute_ms, 4)
    assert told(2 * minute_ms) == {"s": b"18", "lowest": b"4", "var": b"1"}
    assert told(61 * minute_ms) == {"s": b"10", "lowest": b"4", "var": b"1"}
    assert told(62 * minute_ms) == {"s": b"4", "lowest": b"4", "var": b"0"}


def test_altering_what_a_state_does_not_see_leaves_it_alone(client):
    register(client, "s FLOAT AGG SUM x WINDOW 1h")
    fs(client, f"FS.PUBLISH {ROW} x 5")
    before = client.execute_command("DEBUG", "DIGEST-VALUE", STATE)
    for words in (
        "TTL 1d",
        "TTL NONE",
        "LOG OFF",
        "MAXLEN 5",
        "EXTRA IGNORE",
        "ADD more INT",
        "ADD in FLOAT INPUT",
    ):
        assert fs(client, f"FS.ALTER profile {words}") == b"OK"
        assert client.execute_command("DEBUG", "DIGEST-VALUE", STATE) == before
        assert fs(client, f"FS.GET {ROW} s") == [b"s", b"5"]
    fs(client, f"FS.PUBLISH {ROW} x 6 in 1")
    assert fs(client, f"FS.GET {ROW} s") == [b"s", b"11"]


# What is told of commands


def tokens(arguments) -> list[str]:
    found = []
    for argument in arguments:
        found += [argument["token"]] if argument.get("token") else []
        found += tokens(argument.get("arguments", []))
    return found


def test_command_docs_know_the_words_of_windows(server):
    client = server.client(protocol=3, decode_responses=True)
    for command, words in {
        "FS.REGISTER": {"AGG", "WINDOW", "HOP", "DEDUP"},
        "FS.ALTER": {"AGG", "WINDOW", "HOP"},
        "FS.GET": {"AT"},
        "FS.REPLAY": {"WINDOWS"},
    }.items():
        ((_, docs),) = client.execute_command("COMMAND DOCS", command).items()
        assert words <= set(tokens(docs["arguments"])), command
        assert words <= set(re.findall(r"\w+", " ".join(client.execute_command("FS.HELP", command)))), command
    reference = "\n".join(client.execute_command("FS.HELP", "FS.REGISTER"))
    for function in (agg.split()[0] for _, agg in FUNCTIONS):
        assert function in reference
    for command, names in {
        "FS.DESCRIBE": ["agg", "window_ms", "hop_ms", "state_bytes_max", "dedup_ms"],
        "FS.EXPLAIN": ["window_start_ms", "window_end_ms"],
        "FS.INFO": ["window_events", "late_events", "too_late_events", "duplicates", "dedup_overflows"],
    }.items():
        page = "\n".join(client.execute_command("FS.HELP", command))
        assert all(f"`{name}`" in page for name in names), command
    settings = client.execute_command("FS.HELP", "REFERENCE")
    assert "| `fs.dedup-max-ids` | 1024 |" in settings


def test_the_columns_of_a_tensor_include_windows_that_have_numbers(client):
    register(
        client,
        "c INT AGG COUNT WINDOW 1h top LIST AGG TOP_K 2 word WINDOW 1h v VECTOR 3 AGG MEAN emb WINDOW 1h "
        "last STRING AGG LAST word WINDOW 1h kind STRING AGG LAST word WINDOW 1h VALUES 2 a b",
    )
    tensor = json.loads(document(client))["tensor"]
    assert [(c["feature"], c["offset"], c["width"]) for c in tensor["columns"]] == [
        ("n", 0, 1),
        ("c", 1, 1),
        ("v", 2, 3),
        ("kind", 5, 1),
    ]
    assert tensor["width"] == 6
