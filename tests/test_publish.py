"""Writing: FS.PUBLISH, FS.MPUBLISH and FS.DEL, told by what native commands then find in rows and streams."""

import itertools
import json
import math
import random
import struct
from contextlib import contextmanager
from decimal import Decimal

import numpy as np
import pytest
import valkey

ROW, LOG, LETTERS = "fs:v1:profile:u1", "fs:stream:profile", "fs:dlq:profile"
ALL_TYPES = "i INT f FLOAT b BOOL s STRING t TIMESTAMP e VECTOR 3 l LIST"
MINUTE_MS = 60_000
CODES = {"NOVIEW", "NOFEATURE", "SCHEMA", "FUTURE", "WRONGTYPE"}


def fs(client, line: str, *more):
    """Calls a command: a line of words, and arguments that are no plain words."""
    return client.execute_command(*line.split(), *more)


def register(client, schema: str, options: str = "", view: str = "profile") -> None:
    assert fs(client, f"FS.REGISTER {view} ENTITY user {options} SCHEMA {schema}") == b"OK"


def now_ms(client) -> int:
    seconds, microseconds = client.time()
    return seconds * 1000 + microseconds // 1000


def features(client, key: str = ROW) -> dict:
    """The row's features by name, without the fields that tell of times."""
    return {name: value for name, value in client.hgetall(key).items() if not name.startswith(b"_")}


def seconds(ms: int) -> Decimal:
    return Decimal(ms) / 1000


def times(client, key: str = ROW) -> tuple:
    """`_updated_at` and `_times`, as exact numbers."""
    updated_at, exceptions = client.hmget(key, "_updated_at", "_times")
    exceptions = (
        None if exceptions is None else json.loads(exceptions, parse_float=Decimal, parse_int=Decimal)
    )
    return Decimal(updated_at.decode()), exceptions


def info(client, view: str = "profile") -> dict:
    reply = fs(client, f"FS.INFO {view}")
    return dict(zip(reply[::2], reply[1::2], strict=True))


@contextmanager
def refused(client, code: str, *parts: str):
    """The call inside is refused with this code and these words, and no key changes."""
    before = (
        client.execute_command("DEBUG", "DIGEST"),
        client.xlen(LOG) if client.type(LOG) == b"stream" else None,
    )
    with pytest.raises(valkey.ResponseError) as caught:
        yield
    message = str(caught.value)
    # The client takes ERR off, and leaves the other codes.
    assert (message.split()[0] if message.split()[0] in CODES else "ERR") == code, message
    assert [part for part in parts if part not in message] == [], message
    after = (
        client.execute_command("DEBUG", "DIGEST"),
        client.xlen(LOG) if client.type(LOG) == b"stream" else None,
    )
    assert after == before, f"{message}, and yet something changed"


# Values

# A feature, its stored form, then the words and the JSON values that mean it.
ACCEPTED = """
i 42                    42 +42 42.0 4.2e1          JSON 42 42.0 "42" 4.2e1
i -7                    -7 -7.0                    JSON -7 "-7" -7.0
i 0                     0 -0                       JSON 0 -0
i 9223372036854775807   9223372036854775807        JSON 9223372036854775807
i -9223372036854775808  -9223372036854775808       JSON -9223372036854775808
f 0.5                   0.5 .5 5e-1 0.500          JSON 0.5 5e-1 "0.5" 0.500
f 5                     5 5.0                      JSON 5 5.0 "5"
f -1e300                -1e300                     JSON -1e300 "-1e300"
b 1                     true True TRUE 1           JSON true 1 "true" "True" "1"
b 0                     false False 0              JSON false 0 "false" "0"
s plain                 plain                      JSON "plain" "pl\\u0061in"
s grün☃                 grün☃                      JSON "grün\\u2603" "gr\\u00fcn☃"
s true                  true                       JSON "true"
t 1700000000123         1700000000123 1700000000123.0    JSON 1700000000123 "1700000000123"
l [1,"a",[2.5,{"b":null}]]    [1,"a",[2.5,{"b":null}]]   JSON [1,"a",[2.5,{"b":null}]]
"""
# A feature, then words and JSON values that it does not take.
REFUSED = """
i abc 5.5 9223372036854775808 1e300 nan 0x10 true            JSON 5.5 true [5] "x" {} ""
f abc nan inf -Infinity 1e999 0,5 0x1p3                      JSON 1e999 true "nan" [0.5] {} ""
b yes 2 t 1.0 -1                                             JSON 2 "yes" [true] {} 1.5 ""
s                                                            JSON 5 true [1] {} {"a":1} {"$base64":"%"} "\\ud800"
t abc 1700000000 99999999999 1700000000.5                    JSON 1700000000 true "x" [1] ""
e 1,2 1,2,3,4 1,2,x [1,2,3 1,nan,2 1,1e39,2                  JSON [1,2] [1,2,3,4] [[1,2,3]] [1,"a",2] 5 {} [1e39,0,0]
l 5 {} [1 [1]x [nan] ['a']                                   JSON 5 "x" {} true
"""


def table(text: str):
    """Each row as its first words, and the lists of words before and after JSON."""
    for line in text.strip().splitlines():
        words = line.split()
        place = words.index("JSON")
        yield words[:place], words[place + 1 :]


def test_a_value_is_stored_in_one_form_whatever_form_it_comes_in(client):
    register(client, ALL_TYPES)
    vector, blob = np.array([0.1, -2, 3e7], "<f4").tobytes(), b'a\n"b"\0'
    rows = [
        (feature, stored.encode(), words, documents)
        for (feature, stored, *words), documents in table(ACCEPTED)
    ]
    rows += [
        (
            "e",
            vector,
            [vector, "0.1,-2,30000000", "[0.1, -2.0, 3e7]", " 0.1 , -2 , 3e7 "],
            ["[0.1, -2, 3e7]"],
        ),
        ("e", vector, [], ['"0.1,-2,3e7"', '"[0.1,-2,3e7]"']),
        ("s", b"", [""], ['""']),
        ("s", blob, [blob], ['"a\\n\\"b\\"\\u0000"']),
        ("s", b"\xff\xfe", [b"\xff\xfe"], ['{"$base64":"//4="}']),
    ]
    for feature, stored, words, documents in rows:
        for word in words:
            fs(client, f"FS.PUBLISH {ROW} {feature}", word)
            assert client.hget(ROW, feature) == stored, (feature, word)
        for document in documents:
            fs(client, f"FS.PUBLISH {ROW} JSON", f'{{"{feature}":{document}}}')
            assert client.hget(ROW, feature) == stored, (feature, document)
            fs(client, f"FS.MPUBLISH {ROW}", f'{{ "{feature}" : {document} }}')
            assert client.hget(ROW, feature) == stored, (feature, document)


def test_a_value_of_another_type_refuses_the_whole_update(client):
    register(client, ALL_TYPES)
    fs(client, f"FS.PUBLISH {ROW} AT {now_ms(client) - MINUTE_MS} i 1 s before")
    blob = np.array([1, 2, np.nan], "<f4").tobytes()
    for (feature, *words), documents in table(REFUSED):
        more = {
            "i": ["", " 5", "5 "],
            "s": [],
            "e": ["", blob, blob[:11], blob + b"\0"],
            "l": ["", b'["\xff"]'],
        }
        other = "s" if feature == "i" else "i"
        named = "SCHEMA", "'profile'", f"'{feature}'"
        for word in (*words, *more.get(feature, [""])):
            with refused(client, *named):
                fs(client, f"FS.PUBLISH {ROW} {other} 5 {feature}", word)
        for document in documents:
            object_ = f'{{"{other}":"5","{feature}":{document}}}'
            with refused(client, *named):
                fs(client, f"FS.PUBLISH {ROW} JSON", object_)
            with refused(client, *named):
                fs(client, f"FS.MPUBLISH {ROW}", f'{{"{other}":"5"}}', ROW, object_)


def test_an_integral_float_beyond_exactness_is_not_rounded_in_silence(client):
    register(client, ALL_TYPES)
    for text in ("9007199254740993.0", "-9007199254740993.0", "9007199254740993e0", "36028797018963969.0"):
        for words in (["i", text], ["JSON", f'{{"i":{text}}}']):
            try:
                fs(client, f"FS.PUBLISH {ROW}", *words)
            except valkey.ResponseError as refusal:
                assert str(refusal).startswith("SCHEMA ")
            else:
                assert client.hget(ROW, "i") == str(int(Decimal(text))).encode(), text


def test_a_double_is_stored_as_its_shortest_decimal(client):
    register(client, "f FLOAT")
    draw = random.Random(5)
    numbers = [struct.unpack("<d", draw.randbytes(8))[0] for _ in range(300)]
    numbers = [number for number in numbers if math.isfinite(number)]
    numbers += [
        5e-324,
        1.7976931348623157e308,
        2.2250738585072014e-308,
        1e300,
        -0.0,
        0.1,
        0.3,
        1e22,
        1e23,
        2.0**53,
    ]
    for number in numbers:
        for words in (["f", repr(number)], ["JSON", json.dumps({"f": number})]):
            fs(client, f"FS.PUBLISH {ROW}", *words)
            stored = client.hget(ROW, "f").decode()
            assert Decimal(stored) == Decimal(repr(number)), stored
            assert math.copysign(1, float(stored)) == math.copysign(1, number), stored


def test_bounds_and_values_are_inclusive_and_closed(client):
    register(
        client, "i INT MIN -5 MAX 5 f FLOAT MIN 0.5 t TIMESTAMP MAX 1700000000000 s STRING VALUES 2 free pro"
    )
    for line in ("i -5", "i 5", "f 0.5", "f 1e300", "t 1700000000000", "s pro"):
        fs(client, f"FS.PUBLISH {ROW} {line}")
        assert client.hget(ROW, line.split()[0]).decode() == line.split()[1]
    for line in ("i -6", "i 6", "f 0.49", "f -1", "t 1700000000001", "s Pro", "s gold"):
        with refused(client, "SCHEMA", "'profile'", *(f"'{word}'" for word in line.split())):
            fs(client, f"FS.PUBLISH {ROW} {line}")


def test_only_what_is_published_is_stored_and_defaults_are_not(client):
    register(client, "i INT DEFAULT 7 f FLOAT DEFAULT 0.5 s STRING x INT INPUT")
    moment = now_ms(client) - MINUTE_MS
    fs(client, f"FS.PUBLISH {ROW} AT {moment} s a x 5")
    assert set(client.hgetall(ROW)) == {b"s", b"_updated_at", b"_feature_view"}
    assert times(client) == (seconds(moment), None)
    assert json.loads(client.xrevrange(LOG, count=1)[0][1][b"features"]) == {"s": "a", "x": 5}
    # An update of inputs alone has no row.
    fs(client, "FS.PUBLISH fs:v1:profile:u2 x 5")
    assert client.exists("fs:v1:profile:u2") == 0


def test_the_last_word_on_a_feature_counts(client):
    register(client, "i INT s STRING")
    fs(client, f"FS.PUBLISH {ROW} i 1 s a i 2")
    assert features(client) == {b"i": b"2", b"s": b"a"}
    fs(client, f"FS.PUBLISH {ROW} JSON", '{"i":3,"s":"b","i":null}')
    assert features(client) == {b"s": b"b"}


def test_unknown_features_are_refused_or_dropped_and_counted(client):
    register(client, "i INT")
    register(client, "i INT", "EXTRA IGNORE", view="loose")
    with refused(client, "NOFEATURE", "'profile'", "'colour'"):
        fs(client, f"FS.PUBLISH {ROW} i 1 colour red")
    with refused(client, "NOFEATURE", "'profile'", "'_times'"):
        fs(client, f"FS.PUBLISH {ROW} JSON", '{"i":1,"_times":{}}')
    fs(client, "FS.PUBLISH fs:v1:loose:u1 i 1 colour red _updated_at 5")
    fs(client, "FS.PUBLISH fs:v1:loose:u1 JSON", '{"i":2,"_times":{"i":9},"deep":[[{}]]}')
    assert features(client, "fs:v1:loose:u1") == {b"i": b"2"}
    assert times(client, "fs:v1:loose:u1")[1] is None
    assert info(client, "loose")[b"extra_fields_dropped"] == 4
    fs(client, "FS.PUBLISH fs:v1:loose:u2 colour red")
    assert client.exists("fs:v1:loose:u2") == 0
    assert all(b"colour" not in entry[b"features"] for _, entry in client.xrange("fs:stream:loose"))
    with refused(client, "SCHEMA", "'loose'", "'i'"):
        fs(client, "FS.PUBLISH fs:v1:loose:u1 colour red i x")


# Event time


class Row:
    """What the contract says of a row, feature by feature: the newest event wins, at equal times the later arrival."""

    def __init__(self):
        self.values: dict[str, tuple[int, str | None]] = {}

    def publish(self, at_ms: int, update: dict) -> None:
        for name, value in update.items():
            if at_ms >= self.values.get(name, (0, None))[0]:
                self.values[name] = (at_ms, value)

    def check(self, client, key: str) -> None:
        assert features(client, key) == {
            n.encode(): v.encode() for n, (_, v) in self.values.items() if v is not None
        }
        newest = max(at for at, _ in self.values.values())
        exceptions = {n: seconds(at) for n, (at, v) in self.values.items() if v is None or at != newest}
        assert times(client, key) == (seconds(newest), exceptions or None)
        assert client.hget(key, "_feature_view") == b"profile"


@pytest.mark.parametrize("seed", range(40))
def test_event_time_wins_for_each_feature_and_for_removals(client, seed):
    draw = random.Random(seed)
    count = draw.choice([2, 5, 12])
    names = [f"g{i}" for i in range(count)]
    register(client, " ".join(f"{name} INT" for name in names), "LOG OFF" if seed % 2 else "")
    start, row = now_ms(client) - MINUTE_MS, Row()
    for _ in range(60):
        # Few moments, so that equal times are common.
        at_ms = start + draw.randrange(8) * draw.choice([1, 1000])
        update = {
            name: draw.choice([None, str(draw.randrange(100))])
            for name in draw.sample(names, draw.randint(1, count))
        }
        words = [word for name, value in update.items() for word in (name, value)]
        if None in words or draw.random() < 0.3:
            fs(client, f"FS.PUBLISH {ROW} AT {at_ms} JSON", json.dumps(update))
        else:
            fs(client, f"FS.PUBLISH {ROW} AT {at_ms}", *words)
        row.publish(at_ms, update)
        row.check(client, ROW)


def test_any_order_of_updates_ends_in_the_same_row(client):
    register(client, "a INT b INT c STRING")
    start = now_ms(client) - MINUTE_MS
    updates = [{"a": 1, "b": 1, "c": "x"}, {"b": 2}, {"a": None}, {"c": "y", "b": None}, {"a": 5}]
    rows = set()
    for i, order in enumerate(itertools.permutations(range(len(updates)))):
        key = f"fs:v1:profile:order{i}"
        for j in order:
            fs(client, f"FS.PUBLISH {key} AT {start + j} JSON", json.dumps(updates[j]))
        rows.add(tuple(sorted(client.hgetall(key).items())))
    assert len(rows) == 1
    assert dict(rows.pop())[b"a"] == b"5"


def test_a_superseded_update_is_logged_and_counted_and_leaves_the_row_alone(client):
    register(client, "a INT b INT")
    newest = now_ms(client) - MINUTE_MS
    fs(client, f"FS.PUBLISH {ROW} AT {newest} a 1 b 1")
    before = client.hgetall(ROW)
    entry_id = fs(client, f"FS.PUBLISH {ROW} AT {newest - 1} a 2")
    assert client.hgetall(ROW) == before
    assert client.xrevrange(LOG, count=1)[0][0] == entry_id
    fs(client, f"FS.PUBLISH {ROW} AT {newest - 1} JSON", '{"a":null}')
    assert client.hgetall(ROW) == before
    assert info(client)[b"superseded"] == 2
    assert client.xlen(LOG) == 3


def test_an_update_without_a_time_always_takes_effect(client):
    register(client, "a INT b INT")
    ahead = now_ms(client) + 2 * MINUTE_MS
    fs(client, f"FS.PUBLISH {ROW} AT {ahead} a 1")
    fs(client, f"FS.PUBLISH {ROW} a 2")
    assert features(client) == {b"a": b"2"}
    assert times(client) == (seconds(ahead), None)
    # A feature that is not touched does not count: this one's time is the clock's.
    before = now_ms(client)
    fs(client, f"FS.PUBLISH {ROW} b 1")
    assert seconds(before) <= times(client)[1]["b"] <= seconds(now_ms(client))
    # A removal that lies ahead counts, too.
    fs(client, f"FS.PUBLISH {ROW} AT {ahead} JSON", '{"a":null}')
    fs(client, f"FS.PUBLISH {ROW} a 3")
    assert features(client) == {b"a": b"3", b"b": b"1"}
    fs(client, f"FS.PUBLISH {ROW} JSON", '{"a":null}')
    assert features(client) == {b"b": b"1"}


def test_a_row_written_by_hand_loses_to_newer_events_and_wins_over_older_ones(client):
    register(client, "a INT b INT")
    moment = now_ms(client) - MINUTE_MS
    client.hset(ROW, mapping={"a": "1", "b": "True", "_updated_at": str(seconds(moment)), "other": "x"})
    fs(client, f"FS.PUBLISH {ROW} AT {moment - 1} a 2")
    assert client.hget(ROW, "a") == b"1"
    fs(client, f"FS.PUBLISH {ROW} AT {moment + 1} a 3")
    assert client.hmget(ROW, "a", "b", "other") == [b"3", b"True", b"x"]
    assert times(client) == (seconds(moment + 1), {"b": seconds(moment)})
    # Without a time it is older than every event.
    client.delete(ROW)
    client.hset(ROW, mapping={"a": "1", "b": "1", "_updated_at": "yesterday"})
    fs(client, f"FS.PUBLISH {ROW} AT {moment - 10**10} a 2")
    fs(client, f"FS.PUBLISH {ROW} AT {moment - 10**10 - 1} b 2")
    assert features(client) == {b"a": b"2", b"b": b"2"}


def test_times_that_are_not_milliseconds_are_refused(client):
    register(client, "a INT")
    for at, part in [
        ("1700000000", "looks like seconds"),
        ("99999999999", "looks like seconds"),
        ("-5", "negative"),
    ]:
        with refused(client, "ERR", part, at):
            fs(client, f"FS.PUBLISH {ROW} AT {at} a 1")
        with refused(client, "ERR", part, at):
            fs(client, f"FS.MPUBLISH {ROW}", f'{{"a":1,"_at":{at}}}')
    for at in ("", "x", "1700000000000.5", "1e12", "99999999999999999999", "1700000000 000"):
        with refused(client, "ERR", at):
            fs(client, f"FS.PUBLISH {ROW} AT", at, "a", "1")
    for at in ("1.5", '"1700000000000"', "null", "[]", "99999999999999999999"):
        with refused(client, "ERR"):
            fs(client, f"FS.MPUBLISH {ROW}", f'{{"a":1,"_at":{at}}}')
    assert fs(client, f"FS.PUBLISH {ROW} AT 100000000000 a 1")


def test_an_event_time_beyond_the_clock_skew_is_refused(fresh_server):
    client = fresh_server().client()
    register(client, "a INT")
    assert fs(client, f"FS.PUBLISH {ROW} AT {now_ms(client) + 4 * MINUTE_MS} a 1")
    for skew_ms, ahead_ms in [(300_000, 6 * MINUTE_MS), (1000, 10_000), (0, 5_000)]:
        client.config_set("fs.max-clock-skew", skew_ms)
        at = now_ms(client) + ahead_ms
        with refused(client, "FUTURE", "'profile'", str(at)):
            fs(client, f"FS.PUBLISH {ROW} AT {at} a 2")
        with refused(client, "FUTURE", "'profile'", str(at)):
            fs(client, f"FS.MPUBLISH {ROW}", '{"a":2}', ROW, f'{{"a":2,"_at":{at}}}')
    for at in (4_000_000_000_000, 2**62):
        with refused(client, "FUTURE", str(at)):
            fs(client, f"FS.PUBLISH {ROW} AT {at} a 2")
    client.config_set("fs.max-clock-skew", 3_600_000)
    assert fs(client, f"FS.PUBLISH {ROW} AT {now_ms(client) + 50 * MINUTE_MS} a 3")


# Expiry


def test_the_row_expires_a_ttl_after_its_newest_event(client):
    register(client, "a INT b INT TTL 5m", "TTL 1h")
    moment, hour = now_ms(client) - MINUTE_MS, 60 * MINUTE_MS
    newest = 0
    for offset in (0, -5, 7, 7, 3, 20, -MINUTE_MS):
        fs(client, f"FS.PUBLISH {ROW} AT {moment + offset} a 1 b 1")
        newest = max(newest, moment + offset)
        assert client.pexpiretime(ROW) == newest + hour, offset
    fs(client, f"FS.MPUBLISH {ROW}", f'{{"a":1,"_at":{moment + 30}}}')
    assert client.pexpiretime(ROW) == moment + 30 + hour
    before = now_ms(client)
    fs(client, f"FS.PUBLISH {ROW} a 1")
    assert before + hour <= client.pexpiretime(ROW) <= now_ms(client) + hour
    register(client, "a INT TTL 5m", view="eternal")
    fs(client, "FS.PUBLISH fs:v1:eternal:u1 a 1")
    assert client.pexpiretime("fs:v1:eternal:u1") == -1


def test_a_changed_ttl_reaches_the_expiry_with_the_next_update_of_the_row(client):
    hour = 60 * MINUTE_MS
    for offset in (0, 5, -5):
        key = f"fs:v1:profile:o{offset}"
        fs(client, "FS.REGISTER profile ENTITY user TTL 1h SCHEMA a INT b INT")
        moment = now_ms(client) - MINUTE_MS
        fs(client, f"FS.PUBLISH {key} AT {moment} a 1")
        fs(client, "FS.ALTER profile TTL 2h")
        fs(client, f"FS.PUBLISH {key} AT {moment + offset} b 1")
        assert client.pexpiretime(key) == max(moment, moment + offset) + 2 * hour, offset
        fs(client, "FS.ALTER profile TTL NONE")
        fs(client, f"FS.PUBLISH {key} AT {moment + offset} b 2")
        assert client.pexpiretime(key) == -1, offset
        fs(client, "FS.DROP profile")


def test_an_update_that_is_too_old_on_arrival_is_logged_and_counted(client):
    register(client, "a INT", "TTL 1h")
    old = now_ms(client) - 61 * MINUTE_MS
    entry_id = fs(client, f"FS.PUBLISH {ROW} AT {old} a 1")
    assert client.exists(ROW) == 0
    assert [id_ for id_, _ in client.xrange(LOG)] == [entry_id]
    fs(client, f"FS.PUBLISH {ROW} AT {old + 2 * MINUTE_MS} a 2")
    before = client.hgetall(ROW), client.pexpiretime(ROW)
    fs(client, f"FS.MPUBLISH {ROW}", f'{{"a":3,"_at":{old}}}')
    assert (client.hgetall(ROW), client.pexpiretime(ROW)) == before
    assert (info(client)[b"expired_on_arrival"], client.xlen(LOG)) == (2, 3)
