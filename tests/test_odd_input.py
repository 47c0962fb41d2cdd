"""Odd input: whatever a client sends, the server answers a proper reply or `CODE message`, lives, and a refused call
changes nothing.

The commands are taken from the server's own list, so a new command without a call in CALLS fails here.
"""

import random
import re
import resource
import socket
import struct

import libvalkey
import pytest

from server import await_until

CODES = "NOVIEW|NOFEATURE|NOSERVICE|VIEWEXISTS|BUSY|SCHEMA|FUTURE|TOOOLD|CROSSSLOT|WRONGTYPE|NOPERM|OOM|ERR|EXECABORT"
# One line of text, and no echo of a megabyte.
ERROR = re.compile(rf"(?:{CODES}) [^\x00-\x1f]{{1,2000}}")

ROW, OTHER_ROW, OLD_ROW = "fs:v2:profile:u1", "fs:v2:profile:u2", "fs:v1:profile:u1"
SCHEMA = (
    "age INT DEFAULT 0 MIN 0 MAX 150 name STRING plan STRING VALUES 2 free pro score FLOAT ok BOOL seen TIMESTAMP "
    "emb VECTOR 2 tags LIST"
)
TIME_MS = 1_700_000_000_000

# A valid call of each command, more than one where a command has more than one form.
CALLS = [
    "FS.REGISTER fresh VERSION 3 ENTITY user TTL 7d LOG ON MAXLEN 50 CONSUMER OFF EXTRA IGNORE STORAGE PACKED "
    "DESCRIPTION text SCHEMA age INT DEFAULT 1 TTL 1d MIN 0 MAX 9 DESCRIPTION text plan STRING VALUES 2 a b "
    "emb VECTOR 2 DEFAULT 0.5,1 raw LIST INPUT",
    'FS.REGISTER fresh JSON {"entity":"user","ttl":"7d","schema":{"age":{"type":"INT","default":1}}}',
    "FS.ALTER profile VERSION 2 TTL 7d LOG OFF MAXLEN 50 CONSUMER OFF EXTRA IGNORE DESCRIPTION text "
    "ADD more INT DEFAULT 5 MIN 0 MAX 9 ADD plan2 STRING VALUES 2 a b",
    "FS.DESCRIBE profile VERSION 2 JSON",
    "FS.VIEWS",
    "FS.DROP profile VERSION 2 DATA",
    f"FS.PUBLISH {ROW} AT {TIME_MS} EVENT e1 NOLOG age 5 plan pro score 0.5 ok true seen {TIME_MS} emb 1,2 tags [1]",
    f'FS.PUBLISH {ROW} AT {TIME_MS} JSON {{"age":5,"emb":[1,2],"name":null}}',
    f'FS.MPUBLISH {ROW} {{"age":5,"_at":{TIME_MS},"_event":"e"}} {OLD_ROW} {{"name":"x"}}',
    f"FS.DEL {ROW} {OLD_ROW}",
    f"FS.GET {ROW} WITHSTATUS age emb",
    f"FS.MGET age,emb {ROW} {OTHER_ROW}",
    f"FS.TENSOR age,emb {ROW} {OTHER_ROW}",
    "FS.SCAN profile 0 VERSION 2 COUNT 100",
    "FS.SERVICE SET fresh CONTEXT user CANDIDATE item PAIR user_item FORMAT TENSOR WITHSTATUS "
    "FEATURES 4 profile@1:age goods:price both:clicks profile:emb",
    "FS.SERVICE SET serving FEATURES 2 profile:name profile:age",
    "FS.SERVICE GET ranking",
    "FS.SERVICE DEL ranking",
    "FS.SERVICE LIST",
    "FS.SERVICE HELP",
    "FS.SERVE serving u1 u2",
    "FS.RANK ranking u1 i1 i2",
    f"FS.EXPLAIN {ROW}",
    "FS.CONSUMER STOP profile",
    "FS.CONSUME profile COUNT 10",
    "FS.REPLAY profile FROM 0-0 VERSION 2",
    "FS.COPY profile FROM 1 TO 2",
    "FS.TRIM profile MAXLEN 1",
    "FS.BASELINE profile VERSION 2 score SAMPLES 3 0.5 1 2 MISSING 0.1",
    "FS.BASELINE profile age STATS mean 40 stddev 10 min 0 max 99",
    "FS.BASELINE profile plan CATEGORIES 2 free 7 pro 3",
    "FS.DRIFT profile",
    "FS.DRIFT profile VERSION 2 age METHOD KS THRESHOLD 0.2 METHOD MEAN",
    "FS.INFO profile",
    "FS.HELP FS.GET",
    f"FS.EFFECT {ROW} bytes",
]

ODD_VALUES = {
    "a NUL byte": b"\0",
    "a NUL byte inside": b"pro\0file",
    "invalid UTF-8": b"\xc3\x28\xff",
    "an empty string": b"",
    "a line break": b"a\r\n-ERR b\r\n",
    "a mebibyte": b"x" * 2**20,
    "a mebibyte of digits": b"9" * 2**20,
    "a format": b"%s%n%p",
    "a glob": b"*",
    "brackets": b"[[[[{{{{",
    "a nested list": b"[" * 100_000 + b"]" * 100_000,
    "minus one": b"-1",
    "zero": b"0",
    "a fraction": b"1.5",
    "not a number": b"nan",
    "infinity": b"-inf",
    "the largest i64": b"9223372036854775807",
    "beyond i64": b"9223372036854775808",
    "the largest u64": b"18446744073709551615",
    "beyond u64": b"18446744073709551616",
    "the largest stream id": b"18446744073709551615-18446744073709551615",
    "a word of the syntax": b"SCHEMA",
    "a row's key": ROW.encode(),
    "a key of no view": b"fs:v1:nobody:u1",
    "a log's key": b"fs:stream:profile",
    "JSON": b'{"age":1}',
}


class Refusal(Exception):
    """An error reply, as it stands on the wire."""


class Wire:
    """A connection without a client library's opinions: an error is a value, the code its first word."""

    def __init__(self, server, timeout_s: float = 20):
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=timeout_s)
        self.reader = libvalkey.Reader(replyError=Refusal)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def calls(self, calls: list[list[bytes]]) -> list:
        """Sends calls together and answers their replies, in order."""
        self.socket.sendall(b"".join(map(packed, calls)))
        return [self.reply() for _ in calls]

    def call(self, *words) -> object:
        return self.calls([[word if isinstance(word, bytes) else str(word).encode() for word in words]])[0]

    def reply(self):
        while (reply := self.reader.gets()) is False:
            data = self.socket.recv(1 << 20)
            if not data:
                raise ConnectionError("the server closed the connection")
            self.reader.feed(data)
        return reply


@pytest.fixture
def wire(server):
    with Wire(server) as connection:
        yield connection


def packed(words: list[bytes]) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


# What FS.SERVICE SET is given for the services of a furnished store.
SERVICES = {
    "serving": "WITHSTATUS FEATURES 4 profile:age profile@1:name profile:tags profile:emb",
    "ranking": "CONTEXT user CANDIDATE item PAIR user_item FORMAT JSON FEATURES 3 profile:age goods:price both:clicks",
}
VIEWS = {
    "goods": "ENTITY item SCHEMA price FLOAT",
    "both": "ENTITY user_item STORAGE PACKED SCHEMA clicks INT DEFAULT 0",
}


def name_of(line: str) -> str:
    """The command of a call: a subcommand has two words."""
    words = line.split(" ")
    return " ".join(words[: 1 + (words[0] == "FS.SERVICE")])


def furnish(wire: Wire) -> None:
    """Two versions of a view with three rows and a log, and services that read them; the same each time."""
    for service in wire.call("FS.SERVICE", "LIST"):
        assert wire.call("FS.SERVICE", "DEL", service) == b"OK"
    for view in wire.call("FS.VIEWS"):
        assert wire.call("FS.DROP", view[0]) == b"OK"
    await_until(lambda: wire_map(wire.call("FS.INFO"))[b"dropping"] == 0, what="the end of FS.DROP DATA")
    wire.call("FLUSHALL")
    for version in (1, 2):
        words = f"FS.REGISTER profile VERSION {version} ENTITY user SCHEMA {SCHEMA}".split()
        assert wire.call(*words) == b"OK"
    for view, words in VIEWS.items():
        assert wire.call("FS.REGISTER", view, *words.split()) == b"OK"
    for service, words in SERVICES.items():
        assert wire.call("FS.SERVICE", "SET", service, *words.split()) == b"OK"
    for row in (ROW, OTHER_ROW, OLD_ROW):
        logged = wire.call("FS.PUBLISH", row, "AT", TIME_MS - 1000, "age", 7, "name", "x", "emb", "0.5,1")
        assert not isinstance(logged, Refusal), logged
    assert wire.call("FS.BASELINE", "profile", "age", "FREEZE") == b"OK"


def wire_map(reply: list) -> dict:
    return dict(zip(reply[::2], reply[1::2], strict=True))


def state(wire: Wire) -> tuple:
    """All keys, all definitions and all services."""
    views = wire.call("FS.VIEWS")
    definitions = [
        wire.call("FS.DESCRIBE", view, "VERSION", version, "JSON")
        for view, _, versions in views
        for version in versions
    ]
    baselines = [
        wire.call("FS.DESCRIBE", view, "VERSION", version)
        for view, _, versions in views
        for version in versions
    ]
    stopped = [wire_map(wire.call("FS.INFO", view))[b"consumer"] == b"stopped" for view, *_ in views]
    services = [wire.call("FS.SERVICE", "GET", service) for service in wire.call("FS.SERVICE", "LIST")]
    return wire.call("DEBUG", "DIGEST"), definitions, baselines, stopped, services


def refused_properly(reply) -> bool:
    """Is it a refusal? Fails if it is one that breaks the rules of errors."""
    if isinstance(reply, Refusal):
        assert ERROR.fullmatch(str(reply)), str(reply)[:3000]
        return True
    assert not any(isinstance(part, Refusal) for part in flat(reply)), reply
    return False


def flat(reply):
    if isinstance(reply, list):
        for part in reply:
            yield from flat(part)
    else:
        yield reply


def check_odd_calls(wire: Wire, calls: dict[str, list[bytes]]) -> None:
    """Each call is answered; one that is refused changes nothing; one that is taken leaves a furnished store anew."""
    furnish(wire)
    before = state(wire)
    for what, call in calls.items():
        if refused_properly(wire.call(*call)):
            assert state(wire) == before, f"{what} was refused, and changed something"
        else:
            furnish(wire)
            before = state(wire)
    assert wire_map(wire.call("FS.INFO"))[b"panics"] == 0


def call_id(line: str) -> str:
    words = line.split(" ")
    return "-".join([*name_of(line).split(), *(["JSON"] if "JSON" in words else [])])


def test_every_command_has_a_valid_call_here(wire):
    listed = {name.upper().decode() for name in wire.call("COMMAND", "LIST", "FILTERBY", "MODULE", "fs")}
    # A container of subcommands is no command of its own.
    containers = {name.split("|")[0] for name in listed if "|" in name}
    assert {name_of(line) for line in CALLS} == {name.replace("|", " ") for name in listed - containers}
    for line in CALLS:
        furnish(wire)
        reply = wire.call(*line.split(" "))
        assert isinstance(reply, Refusal) == line.startswith("FS.EFFECT"), (line, reply)


@pytest.mark.parametrize("line", CALLS, ids=call_id)
def test_any_odd_value_in_any_position_is_answered_and_a_refusal_changes_nothing(wire, line):
    words = line.encode().split(b" ")
    calls = {
        f"{what} as argument {i} of {line}": [*words[:i], odd, *words[i + 1 :]]
        for i in range(1, len(words))
        for what, odd in ODD_VALUES.items()
    }
    calls |= {f"{what} after {line}": [*words, odd] for what, odd in ODD_VALUES.items()}
    calls |= {f"{line} without its end from {i}": words[:i] for i in range(1, len(words))}
    check_odd_calls(wire, calls)


@pytest.mark.parametrize("line", CALLS, ids=call_id)
def test_ten_thousand_arguments_in_any_position_are_answered(wire, line):
    words = line.encode().split(b" ")
    calls = {
        f"10000 times argument {i} of {line}": [*words[:i], *[words[i]] * 10_000, *words[i + 1 :]]
        for i in range(1, len(words))
    }
    calls[f"10000 different words after {line}"] = [*words, *(b"w%d" % i for i in range(10_000))]
    calls[f"5000 keys with values after {line}"] = [*words, *[OTHER_ROW.encode(), b'{"age":1}'] * 5_000]
    check_odd_calls(wire, calls)


@pytest.mark.parametrize("name", ["age", "name", "plan", "score", "ok", "seen", "emb", "tags"])
def test_deep_nesting_and_huge_numbers_in_json_are_answered(wire, name):
    deep = 200_000
    values = [
        "[" * deep + "]" * deep,
        "[" * deep,
        '{"a":' * deep + "1" + "}" * deep,
        '{"$base64":' + "[" * deep + "]" * deep + "}",
        '{"$base64":"' + "A" * 2**20 + '"}',
        '{"$base64":"%"}',
        "9" * deep,
        "-" + "9" * deep + ".5",
        "1e" + "9" * 1000,
        "1e-" + "9" * 1000,
        "0." + "0" * deep + "1",
        "[" + "1," * deep + "1]",
        '"' + "\\u0000" * 1000 + '"',
        '"\\ud800"',
        '["\\ud800"]',
        '"\\uffff\\udbff\\udfff"',
        "tru",
        "1 2",
    ]
    calls = {}
    for i, value in enumerate(value.encode() for value in values):
        row, feature, object_ = ROW.encode(), name.encode(), b'{"%s":%s}' % (name.encode(), value)
        document = b'{"entity":"u","schema":{"a":{"type":"LIST","default":%s}}}' % value
        for call in (
            [b"FS.PUBLISH", row, b"JSON", object_],
            [b"FS.PUBLISH", row, feature, value],
            [b"FS.MPUBLISH", OTHER_ROW.encode(), b'{"age":1}', row, object_],
            [b"FS.REGISTER", b"fresh", b"JSON", document],
        ):
            calls[f"{call[0].decode()} of {len(call) - 1} words with value {i}, {value[:20]}"] = call
    check_odd_calls(wire, calls)


def test_rows_and_log_entries_that_others_left_in_disorder_are_answered(wire):
    deep = b"[" * 200_000 + b"]" * 200_000
    furnish(wire)
    object_of_deep = b'{"age":' + deep + b"}"
    for times in (b"", b"[]", b"{", b'{"age":"x"}', b'{"age":1e999}', object_of_deep, b"\xff", deep):
        for updated_at in (b"", b"nan", b"-5", b"1e99", b"1700000000000", b"\0", b"9" * 400, b"1700000000"):
            wire.call("DEL", ROW)
            wire.call(
                "HSET", ROW, "age", "x", "emb", "1", "tags", deep, "_times", times, "_updated_at", updated_at
            )
            for line in CALLS:
                if line.startswith(
                    ("FS.GET", "FS.MGET", "FS.TENSOR", "FS.EXPLAIN", "FS.PUBLISH", "FS.SERVE ", "FS.RANK")
                ):
                    reply = wire.call(*line.split(" "))
                    assert not refused_properly(reply), (line, times[:20], updated_at[:20], reply)
    for field in (b"entity_id", b"features", b"timestamp", b"feature_view", b"event_id", b"applied", b"\0"):
        for odd in (*ODD_VALUES.values(), object_of_deep):
            entry = {b"entity_id": b"u1", b"features": b'{"age":1}', field: odd}
            wire.call("XADD", "fs:stream:profile", "*", *(word for pair in entry.items() for word in pair))
    await_until(
        lambda: wire_map(wire.call("FS.INFO", "profile"))[b"lag_entries"] == 0, what="the log to be consumed"
    )
    assert wire.call("XLEN", "fs:dlq:profile") > 0
    assert wire_map(wire.call("FS.INFO"))[b"panics"] == 0


def test_keys_that_expire_under_a_call_are_answered(fresh_server):
    # A key that nobody has looked at since it expired goes away inside the call that looks, with its events.
    with Wire(fresh_server()) as wire:
        wire.call("DEBUG", "SET-ACTIVE-EXPIRE", 0)
        for line in [*CALLS, "FS.INFO", "INFO fs", "INFO everything"]:
            furnish(wire)
            for key in (ROW, OTHER_ROW, "fs:stream:profile", "fs:dlq:profile"):
                wire.call("PEXPIRE", key, 1)
            wire.call("SET", "last", "x", "PX", 1)
            await_until(lambda: wire.call("EXISTS", "last") == 0, what="the keys to expire")
            if not line.startswith("FS.EFFECT"):
                assert not refused_properly(wire.call(*line.split(" "))), line
            assert wire_map(wire.call("FS.INFO"))[b"panics"] == 0


@pytest.mark.parametrize(
    ("command", "times", "keys"),
    [
        ("FS.TENSOR", 300_000, 1),
        ("FS.TENSOR", 200, 10_000),
        ("FS.MGET", 10_000, 1),
        ("FS.MGET", 100, 1000),
        ("FS.GET", 10_000, 1),
    ],
)
def test_a_reply_that_multiplies_a_wide_vector_is_refused(fresh_server, command, times, keys):
    # Each asks for gigabytes, of rows that are not even there; a server that tries fails here, not the machine.
    server = fresh_server()
    resource.prlimit(server.process.pid, resource.RLIMIT_AS, (4 << 30, 4 << 30))
    row = "fs:v1:big:u1"
    with Wire(server) as wire:
        default = struct.pack("<65536f", *range(65536))
        wire.call(
            "FS.REGISTER", "big", "ENTITY", "user", "SCHEMA", "emb", "VECTOR", 65_536, "DEFAULT", default
        )
        names = ["emb"] * times
        call = [row, *names] if command == "FS.GET" else [",".join(names), *[row] * keys]
        assert refused_properly(wire.call(command, *call))
        assert wire.call("PING") == b"PONG"


def test_many_values_do_not_hold_up_the_server(fresh_server):
    # Each compared with each is half a minute, each looked up once is milliseconds.
    server = fresh_server()
    values = [str(i) for i in range(200_000)]
    with Wire(server, timeout_s=8) as wire:
        wire.call("FS.REGISTER", "v", "ENTITY", "u", "SCHEMA", "s", "STRING", "VALUES", len(values), *values)
        assert wire.call("PING") == b"PONG"


# What random calls take away comes back now and then, or soon all of them would answer NOVIEW.
RESTORING = [
    *(
        ["FS.REGISTER", "profile", "VERSION", version, "ENTITY", "user", "SCHEMA", *SCHEMA.split()]
        for version in "12"
    ),
    *(["FS.REGISTER", view, *words.split()] for view, words in VIEWS.items()),
    *(["FS.SERVICE", "SET", service, *words.split()] for service, words in SERVICES.items()),
    ["FS.CONSUMER", "START", "profile"],
    ["DEL", OTHER_ROW, "fs:dlq:profile"],
    ["FS.PUBLISH", ROW, "age", "7", "name", "x", "emb", "0.5,1"],
    ["XADD", "fs:stream:profile", "*", "entity_id", "u2", "features", '{"age":8}'],
    ["FS.PUBLISH", "fs:v1:both:u1:i1", "clicks", "3"],
]
# Writers that know nothing of the store.
NATIVES = [
    "HSET fs:v2:profile:u1 age",
    "HSET fs:v1:profile:u2 _updated_at",
    "HSET fs:v1:profile:u1 _times",
    "HDEL fs:v2:profile:u1 _updated_at age",
    "DEL fs:v2:profile:u1",
    "DEL fs:stream:profile",
    "SET fs:v2:profile:u2 x",
    "SET fs:dlq:profile x",
    "XADD fs:stream:profile * entity_id u1 features",
    "XTRIM fs:stream:profile MAXLEN 1",
    "XGROUP DESTROY fs:stream:profile fs",
    "XGROUP SETID fs:stream:profile fs 0",
    "RENAME fs:v2:profile:u2 fs:v2:profile:u1",
    "PERSIST fs:v2:profile:u1",
    "SETRANGE fs:v1:both:u1:i1 12",
    "APPEND fs:v1:both:u1:i1 x",
    "RENAME fs:v1:both:u1:i1 fs:v2:profile:u1",
    "COPY fs:v2:profile:u1 fs:v1:both:u1:i1 REPLACE",
]


def random_calls(seed: int, count: int) -> list[list[bytes]]:
    """Random calls from the words of all commands, with writers of the same keys between them."""
    draw = random.Random(seed)
    names = sorted({tuple(name_of(line).encode().split()) for line in CALLS})
    restoring = [[word.encode() for word in call] for call in RESTORING]
    natives = [line.encode().split() for line in NATIVES]
    words = sorted({word.encode() for line in CALLS for word in line.split() if not word.startswith("FS.")})
    words += [odd for odd in ODD_VALUES.values() if len(odd) < 1000]
    words += [b'{"age":%d}' % draw.randrange(200) for _ in range(10)]
    words += [b"%d" % (TIME_MS + draw.randrange(10**9)) for _ in range(5)]

    def anything() -> list[bytes]:
        return [*draw.choice(names), *draw.choices(words, k=draw.randrange(9))]

    def nearly_valid() -> list[bytes]:
        # A valid call with a few words exchanged, doubled or taken out comes further into the commands.
        call = draw.choice(CALLS).encode().split(b" ")
        for _ in range(draw.randrange(3)):
            if len(call) > 1:
                at = draw.randrange(1, len(call))
                call[at : at + draw.randrange(2)] = draw.choices(words, k=draw.randrange(3))
        return call

    def native() -> list[bytes]:
        return [*draw.choice(natives), *draw.choices(words, k=draw.randrange(3))]

    kinds = [anything, nearly_valid, native, lambda: draw.choice(restoring)]
    return [draw.choices(kinds, weights=[2, 5, 1, 2])[0]() for _ in range(count)]


@pytest.mark.parametrize("seed", range(8))
def test_ten_thousand_random_calls_are_answered_and_leave_a_sound_store(wire, seed):
    furnish(wire)
    calls = random_calls(seed, 10_000)
    taken = set()
    for i in range(0, len(calls), 100):
        batch = calls[i : i + 100]
        for call, reply in zip(batch, wire.calls(batch), strict=True):
            if call[0].startswith(b"FS.") and not refused_properly(reply):
                taken.add(name_of(b" ".join(call[:2]).decode(errors="replace")))
    commands = {name_of(line) for line in CALLS}
    assert commands - taken == {"FS.EFFECT"}, "of these commands no call came through, so nothing was tried"
    assert wire_map(wire.call("FS.INFO"))[b"panics"] == 0

    for view, _, versions in wire.call("FS.VIEWS"):
        assert wire.call("FS.CONSUMER", "START", view) == b"OK"
        for version in versions:
            document = wire.call("FS.DESCRIBE", view, "VERSION", version, "JSON")
            assert wire.call("FS.REGISTER", view, "JSON", document) == b"OK", document
            storage = wire_map(wire.call("FS.DESCRIBE", view, "VERSION", version))[b"storage"]
            type_of_rows = {b"hash": b"hash", b"packed": b"string"}[storage]
            for row in wire.call("KEYS", b"fs:v%d:%s:*" % (version, view)):
                if wire.call("TYPE", row) == type_of_rows:
                    assert not refused_properly(wire.call("FS.EXPLAIN", row))
    for service in wire.call("FS.SERVICE", "LIST"):
        told = wire_map(wire.call("FS.SERVICE", "GET", service))
        read = ("FS.RANK", service, "u1", "u2") if told[b"context"] else ("FS.SERVE", service, "u1")
        reply = wire.call(*read)
        assert refused_properly(reply) or told[b"problem"] is None, (told, reply)
        assert told[b"problem"] is None or str(reply).encode() == told[b"problem"], (told, reply)
    await_until(lambda: wire_map(wire.call("FS.INFO"))[b"dropping"] == 0, what="the end of FS.DROP DATA")
    await_until(lambda: wire_map(wire.call("FS.INFO"))[b"lag_entries"] == 0, what="the logs to be consumed")
    before = state(wire)
    assert wire.call("DEBUG", "RELOAD") == b"OK"
    assert state(wire) == before


def test_every_documented_code_names_what_it_refuses(wire):
    furnish(wire)
    wire.call("SET", "fs:v2:profile:string", "x")
    future_ms = 4_000_000_000_000
    cases = [
        ("FS.GET fs:v1:nobody:u1", "NOVIEW", ["nobody"]),
        ("FS.GET fs:v9:profile:u1", "NOVIEW", ["profile", "9"]),
        ("FS.DESCRIBE nobody", "NOVIEW", ["nobody"]),
        (f"FS.GET {ROW} nothing", "NOFEATURE", ["profile", "nothing"]),
        (f"FS.PUBLISH {ROW} nothing 1", "NOFEATURE", ["profile", "nothing"]),
        ("FS.REGISTER profile ENTITY user SCHEMA other INT", "VIEWEXISTS", ["profile", "1"]),
        (f"FS.PUBLISH {ROW} age abc", "SCHEMA", ["profile", "'age'", "INT", "'abc'"]),
        (f"FS.PUBLISH {ROW} age 151", "SCHEMA", ["profile", "'age'", "151", "150"]),
        (f"FS.PUBLISH {ROW} plan gold", "SCHEMA", ["profile", "'plan'", "'gold'"]),
        (f"FS.PUBLISH {ROW} emb 1,2,3", "SCHEMA", ["profile", "'emb'", "VECTOR 2", "1,2,3", "3"]),
        (f"FS.TENSOR tags {ROW}", "SCHEMA", ["profile", "'tags'", "LIST"]),
        (f"FS.PUBLISH {ROW} AT {future_ms} age 1", "FUTURE", ["profile", str(future_ms)]),
        ("FS.GET fs:v2:profile:string", "WRONGTYPE", ["fs:v2:profile:string"]),
        ("FS.SERVE serving u1 string", "WRONGTYPE", ["fs:v2:profile:string"]),
        ("FS.SERVE nobody u1", "NOSERVICE", ["nobody"]),
        ("FS.RANK nobody u1 i1", "NOSERVICE", ["nobody"]),
        ("FS.SERVICE GET nobody", "NOSERVICE", ["nobody"]),
        ("FS.SERVICE DEL nobody", "NOSERVICE", ["nobody"]),
        ("FS.SERVICE SET s FEATURES 1 nobody:age", "NOVIEW", ["nobody"]),
        ("FS.SERVICE SET s FEATURES 1 profile:nothing", "NOFEATURE", ["profile", "nothing"]),
        ("FS.SERVICE SET s FORMAT TENSOR FEATURES 1 profile:tags", "SCHEMA", ["'s'", "profile", "'tags'"]),
        (f"FS.EFFECT {ROW} x", "NOPERM", []),
        (f"FS.PUBLISH {ROW} AT 1700000000 age 1", "ERR", ["1700000000", "looks like seconds"]),
        (f"FS.PUBLISH {ROW} name x age", "ERR", ["profile", "'age'"]),
        ("FS.SCAN profile 0 NONSENSE", "ERR", ["NONSENSE"]),
        ("FS.CONSUMER PAUSE profile", "ERR", ["PAUSE"]),
        (f"FS.GET user:{ROW}", "ERR", [f"user:{ROW}"]),
    ]
    for line, code, parts in cases:
        reply = wire.call(*line.split(" "))
        assert refused_properly(reply), line
        assert str(reply).split(" ")[0] == code, (line, reply)
        assert [part for part in parts if part not in str(reply)] == [], (line, reply)


def test_a_name_whose_data_is_still_being_deleted_is_busy(wire):
    furnish(wire)
    # Inside MULTI nothing works in the background between the two.
    calls = [b"MULTI", b"FS.DROP profile DATA", b"FS.REGISTER profile ENTITY user SCHEMA age INT", b"EXEC"]
    *_, (dropped, busy) = wire.calls([call.split(b" ") for call in calls])
    assert dropped == b"OK"
    assert re.fullmatch(r"BUSY .*'profile'.*", str(busy)), busy


def test_writers_are_refused_beyond_the_memory_limit(fresh_server):
    with Wire(fresh_server()) as wire:
        furnish(wire)
        before = state(wire)
        wire.call("CONFIG", "SET", "maxmemory", "1mb", "maxmemory-policy", "noeviction")
        for line in CALLS:
            if line.startswith(("FS.PUBLISH", "FS.MPUBLISH", "FS.REGISTER", "FS.ALTER", "FS.SERVICE SET")):
                reply = wire.call(*line.split(" "))
                assert re.match("OOM ", str(reply)), (line, reply)
            reading = ("FS.GET", "FS.MGET", "FS.TENSOR", "FS.EXPLAIN", "FS.SCAN", "FS.DESCRIBE", "FS.SERVE ")
            if line.startswith((*reading, "FS.RANK", "FS.SERVICE GET", "FS.SERVICE LIST")):
                assert not refused_properly(wire.call(*line.split(" "))), line
        assert state(wire) == before


def test_a_panic_is_an_error_of_one_call(fresh_server):
    server = fresh_server(module_args=("debug", "yes"))
    server.panic_expected = True
    with Wire(server) as wire:
        furnish(wire)
        before = state(wire)
        plain = wire.call("FS.DEBUG", "PANIC")
        calls = [b"MULTI", b"FS.DEBUG PANIC", b"PING", b"EXEC"]
        *_, (in_multi, after_it) = wire.calls([call.split(b" ") for call in calls])
        in_script = wire.call("EVAL", "return redis.call('FS.DEBUG', 'PANIC')", 0)
        caught_in_script = wire.call("EVAL", "return redis.pcall('FS.DEBUG', 'PANIC')['err']", 0)
        for reply in (plain, in_multi, in_script):
            assert refused_properly(reply) and "FS.DEBUG" in str(reply), reply
        assert b"FS.DEBUG" in caught_in_script
        assert after_it == b"PONG"
        assert wire_map(wire.call("FS.INFO"))[b"panics"] == 4
        assert state(wire) == before
        assert not refused_properly(wire.call("FS.PUBLISH", ROW, "age", 8))


def test_faults_cannot_be_provoked_without_the_load_argument(wire):
    assert isinstance(wire.call("FS.DEBUG", "PANIC"), Refusal)
    assert wire_map(wire.call("FS.INFO"))[b"panics"] == 0


def test_a_database_other_than_0_is_refused(wire):
    furnish(wire)
    before = state(wire)
    wire.call("SELECT", 1)
    for line in CALLS:
        reply = wire.call(*line.split(" "))
        assert refused_properly(reply) and "database 0" in str(reply), (line, reply)
    assert wire.call("DBSIZE") == 0
    wire.call("SELECT", 0)
    assert state(wire) == before
