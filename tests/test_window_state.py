"""The window state of an entity as a key among keys: its type, size, expiry and copies, and when it goes away."""

import contextlib
import json
import math
import random

import numpy as np
import pytest
import valkey
from profile_view import await_drained, figures, module_figures, pairs, register
from test_persistence import debug_load_the_aof, debug_reload, restart, rewrite, rewrite_the_aof_and_restart

from server import await_until

VIEW = "profile"
ROW, OTHER, STATE = "fs:v1:profile:u1", "fs:v1:profile:u2", "fs:w1:profile:u1"
LOG, LETTERS = "fs:stream:profile", "fs:dlq:profile"
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
INPUTS = (
    "n INT x FLOAT INPUT whole INT INPUT flag BOOL INPUT word STRING INPUT seen TIMESTAMP INPUT "
    "tags LIST INPUT emb VECTOR 3 INPUT weight FLOAT INPUT"
)
# One window of every function.
ALL = {
    "events": "INT AGG COUNT",
    "count_x": "INT AGG COUNT x",
    "sum": "FLOAT AGG SUM x",
    "decayed": "FLOAT AGG DECAYED_SUM 30m x",
    "mean": "FLOAT AGG MEAN x",
    "lowest": "FLOAT AGG MIN x",
    "highest": "FLOAT AGG MAX x",
    "var_pop": "FLOAT AGG VAR_POP x",
    "var_samp": "FLOAT AGG VAR_SAMP x",
    "stddev_pop": "FLOAT AGG STDDEV_POP x",
    "stddev_samp": "FLOAT AGG STDDEV_SAMP x",
    "first": "STRING AGG FIRST word",
    "last": "LIST AGG LAST tags",
    "last_k": "LIST AGG LAST_K 5 word",
    "distinct": "INT AGG APPROX_COUNT_DISTINCT word",
    "p90": "FLOAT AGG APPROX_PERCENTILE 0.9 x",
    "top": "LIST AGG TOP_K 3 word",
    "histogram": "LIST AGG HISTOGRAM whole",
    "centre": "VECTOR 3 AGG MEAN emb",
    "weighted": "VECTOR 3 AGG MEAN emb WEIGHT weight",
}
# Of numbers alone: no values of their own length.
NUMERIC = ALL | {
    "first": "FLOAT AGG FIRST x",
    "last": "INT AGG LAST whole",
    "last_k": "LIST AGG LAST_K 5 whole",
    "top": "LIST AGG TOP_K 3 whole",
}
SMALL = "n INT x FLOAT INPUT c INT AGG COUNT x WINDOW 1h s FLOAT AGG SUM x WINDOW 7d"


def fs(client, line: str, *more):
    return client.execute_command(*line.split(), *more)


def windows(kinds: dict = ALL, span: str = "WINDOW 1h") -> list[str]:
    """The words of a schema: inputs, and a window of each kind."""
    return f"{INPUTS} {' '.join(f'{name} {words} {span}' for name, words in kinds.items())}".split()


def register_all(client, *options, view: str = VIEW, version: int = 1):
    """Every function over an hour, and those that share over a day."""
    longer = {f"{name}_1d": ALL[name] for name in ("sum", "mean", "distinct", "top", "p90", "last_k")}
    schema = [*windows(), *windows(longer, "WINDOW 1d")[len(INPUTS.split()) :]]
    register(client, *options, view=view, version=version, schema=schema)


def an_event(chance: random.Random) -> dict:
    """Values of some inputs, at least of one."""
    drawn = {
        "x": chance.choice(
            [0, -1.5, 7, chance.gauss(0, 100), 1e9 + chance.random(), -chance.random() * 1e-9]
        ),
        "whole": chance.randrange(-300, 300),
        "flag": chance.choice([True, False]),
        "word": f"w{chance.randrange(900)}" + "ä" * chance.randrange(3),
        "seen": 1_700_000_000_000 + chance.randrange(1_000_000),
        "tags": [chance.randrange(9), "ü"],
        "emb": [chance.gauss(0, 1) for _ in range(3)],
        "weight": chance.random() * 5,
    }
    return {name: drawn[name] for name in chance.sample(sorted(drawn), chance.randint(1, len(drawn)))}


def clock_ms(client) -> int:
    seconds, micros = client.time()
    return seconds * 1000 + micros // 1000


# Entities by how much their states hold: beyond the exact counts, beyond one event, hardly anything.
SIZES = {"one": 1, "few": 6, "many": 800}


def fill(client, sizes: dict = SIZES, view: str = VIEW, seed: int = 1, now_ms: int | None = None) -> None:
    """Events of the last hours, in no order, for entities of each size."""
    chance, now_ms = random.Random(seed), now_ms or clock_ms(client)
    with client.pipeline(transaction=False) as pipeline:
        for entity, count in sizes.items():
            for _ in range(count):
                at_ms = now_ms - chance.choice([0, chance.randrange(HOUR_MS), chance.randrange(4 * HOUR_MS)])
                words = ("NOLOG", "AT", at_ms, "JSON", json.dumps(an_event(chance)))
                pipeline.execute_command("FS.PUBLISH", f"fs:v1:{view}:{entity}", *words)
        pipeline.execute()


def digest(client, key) -> bytes:
    (value,) = client.execute_command("DEBUG", "DIGEST-VALUE", key)
    return value


def held(client) -> dict:
    """All window states: their digests and expiries."""
    return {key: (digest(client, key), client.pexpiretime(key)) for key in sorted(client.scan_iter("fs:w*"))}


def entities(client, view: str = VIEW, version: int = 1) -> set[bytes]:
    """The entities that have a row or a window state."""
    prefixes = [f"fs:{kind}{version}:{view}:".encode() for kind in "vw"]
    return {
        key.removeprefix(prefix)
        for prefix in prefixes
        for key in client.scan_iter(prefix + b"*", count=1_000)
    }


def answers(client, at_ms: int, view: str = VIEW) -> dict:
    """What is served of every entity."""
    return {
        entity: client.execute_command("FS.GET", f"fs:v1:{view}:".encode() + entity, "AT", at_ms)
        for entity in sorted(entities(client, view))
    }


def scanned(client, view: str = VIEW, *options) -> set[bytes]:
    found, cursor = set(), b"0"
    while True:
        cursor, entities = client.execute_command("FS.SCAN", view, cursor, *options)
        found.update(entities)
        if cursor == b"0":
            return found


def value(client, name: str, key: str = ROW):
    return client.execute_command("FS.GET", key, name)[1]


def publish(client, key: str = ROW, x: float = 1, *words):
    return client.execute_command("FS.PUBLISH", key, *words, "n", 1, "x", x)


@pytest.fixture
def client(server):
    return server.client()


@pytest.fixture
def small(client):
    """A client of a server with the view `profile`: a plain feature, a count and a sum."""
    fs(client, f"FS.REGISTER profile ENTITY user SCHEMA {SMALL}")
    return client


# Copies of the key


def test_a_state_is_a_key_of_its_own_type(small):
    publish(small)
    assert sorted(small.keys()) == sorted([ROW.encode(), STATE.encode(), LOG.encode()])
    assert small.type(STATE) == b"fs-window"
    # An update that carries only inputs makes no row.
    small.execute_command("FS.PUBLISH", OTHER, "NOLOG", "x", 5)
    assert (small.exists(OTHER), small.type("fs:w1:profile:u2")) == (0, b"fs-window")
    # One that carries none makes no state.
    small.execute_command("FS.PUBLISH", "fs:v1:profile:u3", "NOLOG", "n", 5)
    assert small.exists("fs:v1:profile:u3", "fs:w1:profile:u3") == 1
    for command in (("GET", STATE), ("HGETALL", STATE), ("XLEN", STATE), ("FS.GET", STATE)):
        with pytest.raises(valkey.ResponseError):
            small.execute_command(*command)


def test_the_digest_tells_states_apart_and_nothing_else(client):
    register_all(client, "DEDUP", "10m")
    fill(client, SIZES | {f"more{i}": 1 + i for i in range(20)})
    before = held(client)
    assert len(before) == len({value for value, _ in before.values()}) == 23
    answers(client, clock_ms(client))
    client.execute_command("FS.EXPLAIN", "fs:v1:profile:many")
    assert held(client) == before, "reading changed a state"
    for feature, given in an_event(random.Random(1)).items():
        for entity in ("one", "many"):
            key = f"fs:w1:profile:{entity}"
            last = digest(client, key)
            event = json.dumps({feature: given})
            client.execute_command("FS.PUBLISH", f"fs:v1:profile:{entity}", "JSON", event)
            assert digest(client, key) != last, (feature, entity)


@pytest.mark.parametrize(
    "come_back",
    [restart, rewrite_the_aof_and_restart, debug_reload, debug_load_the_aof],
    ids=lambda f: f.__name__,
)
def test_states_of_all_functions_survive(fresh_server, come_back):
    server = fresh_server({"appendonly": "no" if come_back is restart else "yes"})
    client = server.client()
    register_all(client, "DEDUP", "10m")
    now_ms = clock_ms(client)
    fill(client)
    before, served = held(client), answers(client, now_ms)
    assert set(served) == {b"one", b"few", b"many"}
    for _ in range(2):
        come_back(server)
        client = server.client()
        assert held(client) == before
        assert answers(client, now_ms) == served
    # And they go on.
    other = fresh_server().client()
    register_all(other, "DEDUP", "10m")
    for entity in SIZES:
        key = f"fs:w1:profile:{entity}"
        other.restore(key, client.pexpiretime(key), client.dump(key), absttl=True)
    for at in (client, other):
        fill(at, {"one": 300, "few": 300, "many": 300}, seed=2, now_ms=now_ms)
    assert answers(client, now_ms) == answers(other, now_ms) != served


def test_an_aof_of_commands_holds_the_states(fresh_server):
    server = fresh_server({"appendonly": "yes", "appendfsync": "always"})
    client = server.client()
    register_all(client)
    now_ms = clock_ms(client)
    fill(client)
    before, served = held(client), answers(client, now_ms)
    client.config_set("aof-use-rdb-preamble", "no")
    rewrite(server)
    (base,) = server.folder.glob("appendonlydir/*.base.*")
    assert base.read_bytes().startswith(b"*"), "the base of the AOF is made of commands"
    server.restart(kill=True)
    client = server.client()
    assert held(client) == before
    # Such a file holds no definitions.
    register_all(client)
    assert answers(client, now_ms) == served


@pytest.mark.parametrize("way", ["COPY", "RENAME", "RESTORE", "COPY to a database and back"])
def test_a_copy_of_a_state_is_the_same_and_its_own(client, way):
    register_all(client, "DEDUP", "10m")
    now_ms = clock_ms(client)
    fill(client)
    before, served = held(client), answers(client, now_ms)
    expected = {}
    for entity in SIZES:
        source, target = f"fs:w1:profile:{entity}", f"fs:w1:profile:new-{entity}"
        match way:
            case "COPY":
                assert client.copy(source, target)
            case "RENAME":
                assert client.rename(source, target)
            case "RESTORE":
                client.restore(target, client.pexpiretime(source), client.dump(source), absttl=True)
            case _:
                assert client.copy(source, target, destination_db=1)
                with valkey_in_database(client, 1) as there:
                    assert there.copy(target, target, destination_db=0)
        expected[target.encode()] = before[source.encode()]
    found = held(client)
    assert {key: found[key] for key in expected} == expected
    for entity in SIZES:
        key = f"fs:v1:profile:new-{entity}"
        assert client.execute_command("FS.GET", key, "AT", now_ms) == served[entity.encode()], entity
    # What happens to one of them does not happen to the other.
    fill(client, {f"new-{entity}": 50 for entity in SIZES}, seed=3, now_ms=now_ms)
    after = held(client)
    assert all(after[key] != expected[key] for key in expected)
    if way == "RENAME":
        assert set(after) == set(expected)
        assert value(client, "events", "fs:v1:profile:many") == 0
    else:
        assert {key: after[key] for key in before} == before
        assert client.unlink(*expected) == 3
        assert (held(client), answers(client, now_ms)) == (before, served)


def valkey_in_database(client, number: int):
    settings = client.get_connection_kwargs() | {"db": number}
    return valkey.Valkey(connection_pool=valkey.ConnectionPool(**settings))


# Size


def test_memory_grows_with_the_hops_and_stays_within_its_bound(client):
    hops, hour = 60, HOUR_MS
    for name, words in NUMERIC.items():
        register(client, view=name, schema=windows({name: words}, "WINDOW 1h HOP 1m"))
    bounds = {}
    for name in NUMERIC:
        (feature,) = (f for f in pairs(fs(client, f"FS.DESCRIBE {name}"))["schema"] if name.encode() in f)
        bounds[name] = pairs(feature)["state_bytes_max"]
    now_ms = clock_ms(client)
    chance = random.Random(4)
    sizes = {name: [] for name in NUMERIC}
    keys = {name: f"fs:w1:{name}:{'u' * (40 - len(name))}" for name in NUMERIC}

    def feed(i, at_ms):
        event = {
            # Fifteen digits, the last one no zero: all of one length as text, and no sum of them is exact.
            "x": (chance.randrange(10**13, 10**14) * 10 + 7) / 10**9,
            "whole": i % 500,
            "word": f"w{i}",
            "emb": [i, 0.5, -i],
            "weight": 1,
        }
        with client.pipeline(transaction=False) as pipeline:
            for key in keys.values():
                words = ("NOLOG", "AT", at_ms, "JSON", json.dumps(event))
                pipeline.execute_command("FS.PUBLISH", key.replace("fs:w1", "fs:v1"), *words)
            pipeline.execute()

    def measure():
        for name, key in keys.items():
            sizes[name].append(client.memory_usage(key, samples=0))

    feed(0, now_ms - 3 * hour)
    measure()
    steps = 3 * hops * 3
    for i in range(1, steps):
        feed(i, now_ms - 3 * hour + i * 3 * hour // steps)
        if i % 90 == 0:
            measure()
    # The hops are full: whatever comes now comes on top.
    measure()
    full = {name: sizes[name][-1] for name in NUMERIC}
    for i in range(300):
        feed(i, now_ms - 1 - chance.randrange(hour - 120_000))
    measure()
    # What a key and an expiry take by themselves, and the server's object header, which MEMORY USAGE of a state counts.
    plain = keys["sum"].replace("fs:w1", "plain")
    client.set(plain, "", px=10**9)
    frame = client.memory_usage(plain, samples=0) + 32
    for name in NUMERIC:
        assert max(sizes[name]) <= bounds[name] + frame, (name, bounds[name], sizes[name])
        if name != "last":
            assert full[name] > sizes[name][0], (name, sizes[name])
    # The rate of events is no matter where a hop is a few numbers.
    for name in (
        "events",
        "count_x",
        "sum",
        "decayed",
        "mean",
        "lowest",
        "highest",
        "var_samp",
        "first",
        "centre",
    ):
        assert sizes[name][-1] == full[name], (name, sizes[name])


def test_big_states_are_freed_off_the_main_thread_and_whole(fresh_server):
    client = fresh_server().client()
    kinds = {"sum": ALL["sum"], "p90": ALL["p90"], "var_samp": ALL["var_samp"]}
    register(client, "LOG", "OFF", schema=windows(kinds, "WINDOW 4096s HOP 1s"))
    now_ms, chance = clock_ms(client), random.Random(6)
    with client.pipeline(transaction=False) as pipeline:
        for i in range(4_000):
            for entity in ("u1", "u2"):
                words = ("AT", now_ms - i * 1_000, "x", chance.gauss(0, 1e6))
                pipeline.execute_command("FS.PUBLISH", f"fs:v1:profile:{entity}", *words)
        pipeline.execute()
    usage = client.memory_usage(STATE, samples=0)
    assert usage > 100_000

    def freed():
        return client.info("memory")["lazyfreed_objects"]

    def await_freed(more, used):
        await_until(lambda: freed() >= more, what="the state to be freed by the other thread")
        await_until(
            lambda: client.info("memory")["lazyfree_pending_objects"] == 0, what="nothing to be left to free"
        )
        await_until(lambda: client.info("memory")["used_memory"] < used - usage // 2, what="its memory back")

    before, used = freed(), client.info("memory")["used_memory"]
    assert client.unlink(STATE) == 1
    await_freed(before + 1, used)
    assert client.execute_command("FS.GET", ROW, "sum") == [b"sum", b"0"]
    before, used = freed(), client.info("memory")["used_memory"]
    client.flushall(asynchronous=True)
    await_freed(before + 1, used)
    client.execute_command("FS.PUBLISH", ROW, "x", 5)
    assert client.execute_command("FS.GET", ROW, "sum") == [b"sum", b"5"]


def test_active_defragmentation_moves_states_and_changes_none(fresh_server):
    client = fresh_server({"hz": 100}).client()
    try:
        client.config_set("activedefrag", "yes")
    except valkey.ResponseError as refusal:
        pytest.skip(f"this server cannot defragment: {refusal}")
    client.config_set("activedefrag", "no")
    register_all(client)
    fill(client, {f"u{i}": 60 for i in range(1_500)})
    client.unlink(*[f"fs:w1:profile:u{i}" for i in range(1_500) if i % 3])
    now_ms = clock_ms(client)
    before, served = held(client), answers(client, now_ms)
    assert len(before) == 500
    for name, setting in {"ignore-bytes": 1, "threshold-lower": 1, "cycle-min": 50, "cycle-max": 75}.items():
        client.config_set(f"active-defrag-{name}", setting)
    client.config_set("activedefrag", "yes")
    await_until(lambda: client.info("stats")["active_defrag_hits"] > 1_000, 30, "states to be moved")
    await_until(lambda: client.info("stats")["active_defrag_key_hits"] > 500, 30, "many states to be moved")
    assert (held(client), answers(client, now_ms)) == (before, served)
    fill(client, {f"u{i}": 5 for i in range(0, 1_500, 3)}, seed=2)
    assert client.unlink(*before) == 500


# Damaged dumps


def crc64_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x95AC9329AC4BC9B5 if byte & 1 else 0)
        table.append(byte)
    return table


CRC64 = crc64_table()
# A module's value begins with the type and the module's id; what follows is the module's, up to version and checksum.
HEAD, FOOT = 10, 10
UINT, FLOAT, DOUBLE, STRING = 2, 3, 4, 5


def crc64(data: bytes) -> bytes:
    """The checksum of a DUMP: the polynomial 0xad93d23594c935a9 (Jones), reflected."""
    crc, table = 0, CRC64
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc.to_bytes(8, "little")


def read_length(data: bytes, at: int) -> tuple[int, int]:
    match data[at] >> 6:
        case 0:
            return data[at] & 63, at + 1
        case 1:
            return (data[at] & 63) << 8 | data[at + 1], at + 2
    size = {0x80: 4, 0x81: 8}[data[at]]
    return int.from_bytes(data[at + 1 : at + 1 + size], "big"), at + 1 + size


def write_length(length: int) -> bytes:
    if length < 64:
        return bytes([length])
    if length < 1 << 14:
        return bytes([0x40 | length >> 8, length & 0xFF])
    if length < 1 << 32:
        return b"\x80" + length.to_bytes(4, "big")
    return b"\x81" + length.to_bytes(8, "big")


def parts_of(dump: bytes) -> list[tuple[int, int | bytes]]:
    """What the module wrote, one by one: numbers and strings."""
    body, at, parts = dump[HEAD:-FOOT], 0, []
    while True:
        code, at = read_length(body, at)
        if code == 0:
            assert at == len(body)
            return parts
        if code in (FLOAT, DOUBLE):
            size = 4 if code == FLOAT else 8
            given, at = body[at : at + size], at + size
        elif code == STRING and body[at] >> 6 == 3:
            # A short string of digits is written as a number.
            size = {0xC0: 1, 0xC1: 2, 0xC2: 4}[body[at]]
            number = int.from_bytes(body[at + 1 : at + 1 + size], "little", signed=True)
            given, at = str(number).encode(), at + 1 + size
        else:
            given, at = read_length(body, at)
            if code == STRING:
                given, at = body[at : at + given], at + given
        parts.append((code, given))


def body_of(parts: list) -> bytes:
    body = b""
    for code, given in parts:
        body += write_length(code)
        if code == STRING:
            body += write_length(len(given)) + given
        else:
            body += given if isinstance(given, bytes) else write_length(given)
    return body + b"\0"


def sealed(dump: bytes, body: bytes) -> bytes:
    """A dump with another body, and a checksum that says that all is well."""
    payload = dump[:HEAD] + body + dump[-FOOT:-8]
    return payload + crc64(payload)


def hurt(chance: random.Random, data: bytes) -> bytes:
    """Flips, overwrites, cuts or inserts bytes."""
    data, at = bytearray(data or b"\0"), chance.randrange(len(data) or 1)
    length = min(chance.choice([1, 1, 2, 4, 8, 40]), len(data) - at)
    match chance.randrange(8):
        case 0:
            for _ in range(chance.choice([1, 1, 1, 5])):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        case 1:
            data[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFB, 0xFC, 0xFD, 0xFE, 0xFF])
        case 2:
            data[at : at + length] = bytes([chance.choice([0, 0xFF, 0x7F, 0x80])]) * length
        case 3:
            data[at : at + length] = chance.randbytes(length)
        case 4:
            del data[at : at + length]
        case 5:
            data[at:at] = chance.choice([bytes(length), b"\xff" * length, chance.randbytes(length)])
        case 6:
            del data[at:]
        case 7:
            data[chance.randrange(min(24, len(data)))] = chance.randrange(256)
    return bytes(data)


def damaged(chance: random.Random, dump: bytes, others: list[bytes]) -> bytes:
    """A dump of which something is wrong, in what the server reads or, more often, in what the module does."""
    parts = parts_of(dump)
    place = chance.randrange(len(parts))
    code, given = parts[place]
    match chance.randrange(8):
        case 0:
            return sealed(dump, hurt(chance, dump[HEAD:-FOOT]))
        case 1:
            del parts[place]
        case 2:
            parts.insert(place, chance.choice(parts))
        case 3:
            foreign = chance.choice(parts_of(chance.choice(others)))
            if code == STRING == foreign[0]:
                cut = chance.randrange(len(given) + 1)
                foreign = STRING, given[:cut] + foreign[1][chance.randrange(len(foreign[1]) + 1) :]
            parts[place] = foreign
        case _:
            strings = [i for i, part in enumerate(parts) if part[0] != UINT] or [place]
            place = chance.choice([place, *strings])
            code, given = parts[place]
            if isinstance(given, bytes):
                new = hurt(chance, given)
                parts[place] = code, new if code == STRING else new.ljust(len(given), b"\0")[: len(given)]
            else:
                parts[place] = (
                    code,
                    chance.choice([0, 1, given + 1, given ^ 1 << chance.randrange(32), 2**63, 2**64 - 1]),
                )
    return sealed(dump, body_of(parts))


def types_of(client, view: str) -> dict[bytes, bytes]:
    schema = pairs(fs(client, f"FS.DESCRIBE {view}"))["schema"]
    return {feature["name"]: feature["type"] for feature in map(pairs, schema)}


def assert_typed(types: dict, reply: list) -> None:
    """What is served is of the feature's type, whatever the state says."""
    for name, served in zip(reply[::2], reply[1::2], strict=True):
        told = (name, served)
        match types[name]:
            case b"INT" if name != b"n":
                assert isinstance(served, int), told
            case _ if served is None:
                assert name not in (b"sum", b"decayed", b"last_k", b"top", b"histogram"), told
            case b"FLOAT":
                assert math.isfinite(float(served)), told
            case b"LIST" if name != b"last":
                assert isinstance(json.loads(served), list), told
            case b"VECTOR 3":
                assert len(served) == 3 and all(math.isfinite(float(number)) for number in served), told
            case _:
                assert isinstance(served, bytes), told


def use(client, view: str, entities: list[str]) -> None:
    """Everything that can be done with states that were restored; nothing of it may fail."""
    event = json.dumps({"x": 1.5, "whole": 2, "word": "w", "tags": [1], "emb": [1, 2, 3], "weight": 1})
    now_ms = clock_ms(client)
    with client.pipeline(transaction=False) as pipeline:
        for entity in entities:
            row, state = f"fs:v1:{view}:{entity}", f"fs:w1:{view}:{entity}"
            pipeline.execute_command("FS.GET", row)
            pipeline.execute_command("FS.GET", row, "WITHSTATUS")
            pipeline.execute_command("FS.EXPLAIN", row)
            pipeline.execute_command("FS.MGET", "*", row)
            pipeline.execute_command("MEMORY", "USAGE", state, "SAMPLES", 0)
            pipeline.execute_command("DEBUG", "DIGEST-VALUE", state)
            pipeline.dump(state)
            pipeline.copy(state, f"{state}-copy")
            pipeline.execute_command("FS.PUBLISH", row, "NOLOG", "EVENT", "e", "JSON", event)
            pipeline.execute_command("FS.GET", row)
            pipeline.execute_command("FS.GET", row, "AT", now_ms - HOUR_MS)
        replies = pipeline.execute(raise_on_error=False)
    count, types = len(replies) // len(entities), types_of(client, view)
    for place, entity in enumerate(entities):
        *told, at = replies[place * count : (place + 1) * count]
        failures = [reply for reply in told if isinstance(reply, Exception)]
        assert not failures, (view, entity, failures)
        assert not isinstance(at, Exception) or str(at).startswith("TOOOLD"), (view, entity, at)
        for served in (told[0], told[-1]):
            assert_typed(types, served)


def reload_and_free(client) -> None:
    """What was taken in can be saved, and what was saved can be loaded."""
    before = {key: digest(client, key) for key in client.scan_iter("fs:w*", count=1_000)}
    assert client.execute_command("DEBUG", "RELOAD") == b"OK"
    assert {key: digest(client, key) for key in before} == before
    free = [client.unlink, client.delete]
    for i, key in enumerate(before):
        assert free[i % 2](key) == 1


@pytest.fixture
def damageable(fresh_server):
    """A client of a server with a view of each kind and one of all, and dumps of their states, not compressed."""
    client = fresh_server({"rdbcompression": "no"}).client()
    dumps = {}
    for name, words in ALL.items():
        register(client, view=name, schema=windows({name: words}))
    register_all(client, "DEDUP", "10m", view="everything")
    now_ms = clock_ms(client)
    for view in (*ALL, "everything"):
        fill(client, {"few": 6, "many": 600 if view in ("distinct", "top", "histogram") else 60}, view)
        for i in range(9):
            client.execute_command(
                "FS.PUBLISH",
                f"fs:v1:{view}:many",
                "EVENT",
                f"e{i}",
                "AT",
                now_ms - i * 60_000,
                "x",
                i,
                "word",
                "w",
            )
        dumps[view] = [client.dump(f"fs:w1:{view}:{entity}") for entity in ("few", "many")]
    return client, {view: [dump for dump in pair if dump] for view, pair in dumps.items()}


def test_a_damaged_dump_is_refused_or_harmless(damageable):
    client, dumps = damageable
    everyone = [dump for pair in dumps.values() for dump in pair]
    for dump in everyone:
        # The checksum and the parts are read as the server writes them.
        assert crc64(dump[:-8]) == dump[-8:]
        assert dump[HEAD:-FOOT] == body_of(parts_of(dump)) and sealed(dump, dump[HEAD:-FOOT]) == dump
    client.flushall()
    chance, refused, taken, each = random.Random(9), 0, 0, 110
    for number, (view, pair) in enumerate(dumps.items()):
        for size, dump in enumerate(pair):
            key = f"fs:w1:{view}:whole{size}"
            assert client.restore(key, 0, dump) == b"OK"
            assert client.dump(key) == dump
            states = [f"d{size}-{i}" for i in range(each)]
            with client.pipeline(transaction=False) as pipeline:
                for entity in states:
                    pipeline.restore(f"fs:w1:{view}:{entity}", 0, damaged(chance, dump, everyone))
                replies = pipeline.execute(raise_on_error=False)
            good = [entity for entity, reply in zip(states, replies, strict=True) if reply == b"OK"]
            assert all(reply == b"OK" or "Bad data format" in str(reply) for reply in replies), replies
            use(client, view, [*good, f"whole{size}"])
            refused, taken = refused + each - len(good), taken + len(good)
        if number % 5 == 4:
            reload_and_free(client)
    reload_and_free(client)
    assert refused + taken >= 4_000 and refused > 1_000 and taken > 300
    await_until(lambda: client.info("memory")["lazyfree_pending_objects"] == 0, what="all to be freed")
    assert module_figures(client)["panics"] == 0


def test_a_state_of_another_view_does_no_harm(damageable):
    client, dumps = damageable
    client.flushall()
    for view in dumps:
        entities = []
        for other, pair in dumps.items():
            for size, dump in enumerate(pair):
                entities.append(f"{other}{size}")
                assert client.restore(f"fs:w1:{view}:{entities[-1]}", 0, dump) == b"OK"
        use(client, view, entities)
    reload_and_free(client)
    assert module_figures(client)["panics"] == 0


# Neighbours


def test_at_the_memory_limit_events_are_refused_whole(fresh_server):
    client = fresh_server({"fs.sweep-interval": 20}).client()
    fs(client, f"FS.REGISTER profile ENTITY user DEDUP 1h SCHEMA {SMALL}")
    publish(client, ROW, 2, "EVENT", "e1")
    before = client.execute_command("DEBUG", "DIGEST")
    client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
    for command in [
        ("FS.PUBLISH", ROW, "x", 1),
        ("FS.PUBLISH", OTHER, "NOLOG", "EVENT", "e2", "x", 1),
        ("FS.MPUBLISH", ROW, '{"x": 1}'),
        ("FS.REPLAY", VIEW, "FROM", "0", "WINDOWS"),
    ]:
        with pytest.raises(valkey.exceptions.OutOfMemoryError):
            client.execute_command(*command)
        assert client.execute_command("DEBUG", "DIGEST") == before, command
    assert client.execute_command("FS.GET", ROW) == [b"n", 1, b"c", 1, b"s", b"2"]
    # What frees memory is not refused.
    assert client.execute_command("FS.DEL", ROW) == 1
    assert not client.exists(STATE)
    client.config_set("maxmemory", 0)
    publish(client, ROW, 3, "EVENT", "e1")
    assert client.execute_command("FS.GET", ROW) == [b"n", 1, b"c", 1, b"s", b"3"]


def test_who_watches_the_row_hears_of_its_windows(small, server):
    publish(small, ROW, 2)
    for change in [
        lambda: small.execute_command("FS.PUBLISH", ROW, "x", 1),
        lambda: small.execute_command("FS.PUBLISH", ROW, "NOLOG", "AT", clock_ms(small) - HOUR_MS, "x", 1),
        lambda: small.execute_command("FS.MPUBLISH", ROW, '{"x": 1}'),
    ]:
        with server.client() as watcher, watcher.pipeline() as pipeline:
            pipeline.watch(ROW)
            pipeline.multi()
            pipeline.ping()
            change()
            with pytest.raises(valkey.WatchError):
                pipeline.execute()
    # Not of those of another row.
    with server.client() as watcher, watcher.pipeline() as pipeline:
        pipeline.watch(ROW)
        pipeline.multi()
        pipeline.ping()
        small.execute_command("FS.PUBLISH", OTHER, "x", 1)
        assert pipeline.execute() == [True]


# Expiry


def test_a_state_expires_when_its_longest_window_has_passed(client):
    schema = "x FLOAT INPUT s FLOAT AGG SUM x WINDOW 1h HOP 1m c INT AGG COUNT x WINDOW 7d HOP 1d"
    span = 8 * DAY_MS
    for view, options, remembered in [
        ("plain", "", 0),
        ("short", "DEDUP 7d", 7 * DAY_MS),
        ("long", "DEDUP 30d", 30 * DAY_MS),
    ]:
        fs(client, f"FS.REGISTER {view} ENTITY user TTL 1s {options} SCHEMA {schema}")
        row, state = f"fs:v1:{view}:u1", f"fs:w1:{view}:u1"
        now_ms = clock_ms(client)
        # In this order: the last arrivals are late, and shorten nothing. Each is an event of its own.
        least = 0
        for at in (["AT", now_ms - 400 * DAY_MS], [], ["AT", now_ms + 60_000], ["AT", now_ms - DAY_MS]):
            event = at[1] if at else 0
            before = clock_ms(client)
            client.execute_command("FS.PUBLISH", row, "NOLOG", *at, "EVENT", f"e{event}", "x", 1)
            after = clock_ms(client)
            # Windows go by event time and clock, ids by the clock alone.
            least = max(least, max(event, before) + span, before + remembered)
            most = max(least, after + span, after + remembered)
            assert least - 1_000 <= client.pexpiretime(state) <= most + 1_000, (view, at)
        # What comes later without an id shortens nothing either.
        client.execute_command("FS.PUBLISH", row, "NOLOG", "x", 1)
        assert client.pexpiretime(state) >= least - 1_000, view


def test_an_expired_state_is_gone_and_the_row_is_not(client):
    schema = (
        "n INT x FLOAT INPUT s FLOAT AGG SUM x WINDOW 1s HOP 100ms m FLOAT AGG MEAN x WINDOW 1s DEFAULT 7"
    )
    fs(client, f"FS.REGISTER profile ENTITY user SCHEMA {schema}")
    publish(client, ROW, 5)
    assert client.execute_command("FS.GET", ROW) == [b"n", 1, b"s", b"5", b"m", b"5"]
    await_until(
        lambda: client.execute_command("FS.GET", ROW, "s", "m") == [b"s", b"0", b"m", b"7"], what="the end"
    )
    await_until(lambda: not client.exists(STATE), what="the state to expire")
    assert client.execute_command("FS.GET", ROW) == [b"n", 1, b"s", b"0", b"m", b"7"]
    publish(client, ROW, 6)
    assert client.execute_command("FS.GET", ROW, "s") == [b"s", b"6"]


# Deletion


def in_transaction(client):
    with client.pipeline() as pipeline:
        pipeline.delete(ROW)
        pipeline.execute()


def in_script(client):
    client.eval("redis.call('DEL', KEYS[1])", 1, ROW)


TAKING = {
    "FS.DEL": lambda client: client.execute_command("FS.DEL", ROW),
    "DEL": lambda client: client.delete(ROW),
    "UNLINK": lambda client: client.unlink(ROW),
    "DEL of several": lambda client: client.delete("none", ROW, "fs:v1:profile:u3", LOG),
    "HDEL of all fields": lambda client: client.hdel(ROW, *client.hkeys(ROW)),
    "in a transaction": in_transaction,
    "in a script": in_script,
}


@pytest.mark.parametrize("way", TAKING)
def test_a_deleted_row_takes_its_state_along(small, way):
    neighbours = ["u11", "u", "U1", "u2", "u1:x"]
    for entity in ("u1", *neighbours):
        publish(small, f"fs:v1:profile:{entity}", 2)
    before = held(small)
    TAKING[way](small)
    assert small.exists(ROW, STATE) == 0
    assert small.execute_command("FS.GET", ROW) == [b"n", None, b"c", 0, b"s", b"0"]
    del before[STATE.encode()]
    assert held(small) == before and len(before) == 5
    publish(small, ROW, 3)
    assert small.execute_command("FS.GET", ROW) == [b"n", 1, b"c", 1, b"s", b"3"]


def expire(client):
    client.pexpire(ROW, 1)
    await_until(lambda: not client.exists(ROW), what="the row to expire")


def rename_over(client):
    client.hset("more", "n", 5)
    client.rename("more", ROW)


def copy_over(client):
    client.hset("more", "n", 5)
    client.copy("more", ROW, replace=True)


KEEPING = {
    "expiry": expire,
    "RENAME": lambda client: client.rename(ROW, "elsewhere"),
    "RENAME over it": rename_over,
    "COPY over it": copy_over,
    "HDEL of one field": lambda client: client.hdel(ROW, "n"),
    "MOVE": lambda client: client.move(ROW, 1),
}


@pytest.mark.parametrize("way", KEEPING)
def test_a_row_that_goes_otherwise_leaves_its_state(small, way):
    publish(small, ROW, 2)
    publish(small, ROW, 3)
    before = held(small)
    KEEPING[way](small)
    assert held(small) == before and len(before) == 1
    small.delete("elsewhere")
    assert held(small) == before
    assert small.execute_command("FS.GET", ROW, "c", "s") == [b"c", 2, b"s", b"5"]
    publish(small, ROW, 4)
    assert small.execute_command("FS.GET", ROW, "c", "s") == [b"c", 3, b"s", b"9"]


def test_deleting_a_row_that_is_not_there_leaves_the_state(small):
    small.execute_command("FS.PUBLISH", ROW, "x", 5)
    before = held(small)
    assert before and not small.exists(ROW)
    with small.pipeline() as pipeline:
        pipeline.delete(ROW)
        pipeline.unlink(ROW)
        pipeline.hdel(ROW, "n")
        assert pipeline.execute() == [0, 0, 0]
    assert small.eval("return redis.call('DEL', KEYS[1])", 1, ROW) == 0
    assert held(small) == before
    # A row past its time is not there, though the server may not have noticed yet.
    publish(small, ROW, 6)
    before = held(small)
    small.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    try:
        small.pexpire(ROW, 1)
        past = clock_ms(small) + 5
        await_until(lambda: clock_ms(small) > past, what="the row's time to pass")
        assert small.delete(ROW) == 0
    finally:
        small.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 1)
    assert held(small) == before
    assert value(small, "c") == 2


def test_expiry_and_eviction_of_rows_take_no_states(fresh_server):
    settings = {"notify-keyspace-events": "Exeg", "maxmemory-policy": "volatile-ttl", "maxmemory-samples": 20}
    client = fresh_server(settings).client()
    events = client.pubsub()
    events.psubscribe("__keyevent@0__:*")

    def await_event(name, key):
        def is_heard():
            message = events.get_message(ignore_subscribe_messages=True)
            return message and (message["channel"], message["data"]) == (
                f"__keyevent@0__:{name}".encode(),
                key,
            )

        await_until(is_heard, what=f"the event {name} of {key}")

    schema = "n INT text STRING x FLOAT INPUT c INT AGG COUNT x WINDOW 1h s FLOAT AGG SUM x WINDOW 7d"
    fs(client, f"FS.REGISTER profile ENTITY user TTL 200ms SCHEMA {schema}")
    publish(client, ROW, 2)
    await_event("expired", ROW.encode())
    assert (client.exists(ROW), client.type(STATE)) == (0, b"fs-window")
    assert client.execute_command("FS.GET", ROW, "n", "c", "s") == [b"n", None, b"c", 1, b"s", b"2"]
    publish(client, ROW, 3)
    assert client.execute_command("FS.GET", ROW, "c", "s") == [b"c", 2, b"s", b"5"]
    # Rows go first when memory is short, because their time is up first.
    fs(client, "FS.ALTER profile TTL 1h LOG OFF")
    for i in range(200):
        client.execute_command("FS.PUBLISH", f"fs:v1:profile:e{i}", "n", i, "x", i, "text", "x" * 50_000)
    before = held(client)
    assert len(before) == 201
    client.config_set("maxmemory", client.info("memory")["used_memory"] - (3 << 20))
    await_until(lambda: client.info("stats")["evicted_keys"] > 20, what="rows to be evicted")
    client.config_set("maxmemory", 0)
    left = client.exists(*[f"fs:v1:profile:e{i}" for i in range(200)])
    assert left <= 180
    assert held(client) == before
    assert [value(client, "s", f"fs:v1:profile:e{i}") for i in range(200)] == [b"%d" % i for i in range(200)]


def test_a_deletion_and_what_is_published_after_it_in_one_transaction(small):
    get = ("FS.GET", ROW, "c", "s")
    fresh, one, both = [b"c", 0, b"s", b"0"], [b"c", 1, b"s", b"5"], [b"c", 2, b"s", b"11"]
    for delete in ("DEL", "UNLINK", "FS.DEL"):
        publish(small, ROW, 1)
        with small.pipeline() as pipeline:
            pipeline.execute_command(delete, ROW)
            pipeline.execute_command(*get)
            publish(pipeline, ROW, 5)
            pipeline.execute_command(*get)
            assert pipeline.execute()[1::2] == [fresh, one], delete
        assert small.execute_command(*get) == one
        with small.pipeline() as pipeline:
            publish(pipeline, ROW, 7)
            pipeline.execute_command(delete, ROW)
            publish(pipeline, ROW, 8)
            pipeline.execute_command(delete, ROW)
            publish(pipeline, ROW, 5)
            publish(pipeline, ROW, 6)
            pipeline.execute_command(*get)
            assert pipeline.execute()[-1] == both, delete
        assert small.execute_command(*get) == both
        script = (
            "redis.call(ARGV[1], KEYS[1]) local none = redis.call('FS.GET', KEYS[1], 'c', 's') "
            "redis.call('FS.PUBLISH', KEYS[1], 'n', '1', 'x', '5') "
            "return {none, redis.call('FS.GET', KEYS[1], 'c', 's')}"
        )
        assert small.eval(script, 1, ROW, delete) == [fresh, one], delete
        assert small.execute_command(*get) == one
        with small.pipeline() as pipeline:
            publish(pipeline, OTHER, 7)
            pipeline.execute_command(delete, OTHER)
            pipeline.execute()
        assert small.exists(OTHER, "fs:w1:profile:u2") == 0, delete


def test_a_native_row_and_its_state_go_together_too(small):
    # A row that another writer made, over a state that was there.
    small.execute_command("FS.PUBLISH", ROW, "NOLOG", "x", 5)
    small.hset(ROW, "n", 7)
    assert small.delete(ROW) == 1
    assert small.exists(STATE) == 0


def test_fs_del_counts_entities_and_holds_against_the_backlog(small):
    publish(small, ROW)
    small.execute_command("FS.PUBLISH", OTHER, "x", 1)
    small.execute_command("FS.PUBLISH", "fs:v1:profile:u3", "n", 1)
    keys = [ROW, OTHER, "fs:v1:profile:u3", "fs:v1:profile:u4"]
    assert small.execute_command("FS.DEL", *keys) == 3
    assert small.execute_command("FS.DEL", *keys) == 0
    assert small.keys() == [LOG.encode()]
    fs(small, "FS.CONSUMER STOP profile")
    for entity in ("u1", "u2"):
        small.xadd(LOG, {"entity_id": entity, "features": '{"n": 1, "x": 2}'})
        small.xadd(LOG, {"entity_id": entity, "features": '{"x": 3}'})
    publish(small, ROW, 9)
    publish(small, OTHER, 9)
    assert small.execute_command("FS.DEL", ROW) == 1
    assert small.delete(OTHER) == 1
    small.xadd(LOG, {"entity_id": "u1", "features": '{"x": 4}'})
    fs(small, "FS.CONSUMER START profile")
    await_drained(small)
    # What FS.DEL buried stays buried; a native DEL knows nothing of a backlog.
    assert [value(small, "s", key) for key in (ROW, OTHER)] == [b"4", b"5"]
    assert [small.exists(key) for key in (ROW, OTHER)] == [0, 1]


def test_deleting_the_state_alone_leaves_the_row(small):
    publish(small, ROW, 2)
    assert small.delete(STATE) == 1
    assert small.execute_command("FS.GET", ROW) == [b"n", 1, b"c", 0, b"s", b"0"]
    publish(small, ROW, 3)
    assert small.execute_command("FS.GET", ROW) == [b"n", 1, b"c", 1, b"s", b"3"]


def test_renaming_and_copying_both_keys_moves_an_entity(small):
    publish(small, ROW, 2)
    small.rename(ROW, OTHER)
    assert [value(small, "c", key) for key in (ROW, OTHER)] == [1, 0]
    small.rename(STATE, "fs:w1:profile:u2")
    assert small.execute_command("FS.GET", OTHER) == [b"n", 1, b"c", 1, b"s", b"2"]
    assert small.execute_command("FS.GET", ROW) == [b"n", None, b"c", 0, b"s", b"0"]
    small.copy(OTHER, ROW)
    small.copy("fs:w1:profile:u2", STATE)
    publish(small, ROW, 5)
    assert [value(small, "s", key) for key in (ROW, OTHER)] == [b"7", b"2"]


def test_dropping_data_takes_the_states_of_that_version(small):
    for view in ("profile VERSION 2", "profile2"):
        fs(small, f"FS.REGISTER {view} ENTITY user SCHEMA {SMALL}")
    keys = [f"fs:v{version}:profile:u{i}" for version in (1, 2) for i in range(50)]
    for key in (*keys, "fs:v1:profile2:u1"):
        publish(small, key)
    small.delete(*[key for key in keys if key.endswith("7")])
    for key in keys[::9]:
        small.execute_command("FS.PUBLISH", key, "x", 5)
    small.set("fs:w11:profile:u1", "x")

    def states(version, view="profile"):
        return set(small.keys(f"fs:w{version}:{view}:*"))

    assert len(states(1)) > 40 and len(states(2)) > 40
    others = states(1) | states(1, "profile2") | states(11)
    fs(small, "FS.DROP profile VERSION 2 DATA")
    await_until(lambda: module_figures(small)["dropping"] == 0, what="the end of FS.DROP DATA")
    assert (states(2), states("*", "*")) == (set(), others)
    fs(small, "FS.DROP profile")
    assert states("*", "*") == others
    fs(small, f"FS.REGISTER profile ENTITY user SCHEMA {SMALL}")
    assert value(small, "c", "fs:v1:profile:u1") > 0
    fs(small, "FS.DROP profile DATA")
    await_until(lambda: module_figures(small)["dropping"] == 0, what="the end of FS.DROP DATA")
    assert states("*", "*") == {b"fs:w1:profile2:u1", b"fs:w11:profile:u1"}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_flushing_takes_all_states(small, asynchronous):
    for i in range(50):
        publish(small, f"fs:v1:profile:u{i}")
    small.flushall(asynchronous=asynchronous)
    assert small.dbsize() == 0
    assert small.execute_command("FS.GET", ROW) == [b"n", None, b"c", 0, b"s", b"0"]
    publish(small, ROW, 3)
    assert small.execute_command("FS.GET", ROW) == [b"n", 1, b"c", 1, b"s", b"3"]


# Keys of another type


OTHER_TYPES = {
    "string": lambda client, key: client.set(key, "x"),
    "hash": lambda client, key: client.hset(key, "f", "v"),
    "stream": lambda client, key: client.xadd(key, {"f": "v"}),
}


@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_a_key_of_another_type_in_a_states_place_is_refused_and_kept(small, kind):
    small.execute_command("FS.PUBLISH", ROW, "n", 1)
    OTHER_TYPES[kind](small, STATE)
    before = small.execute_command("DEBUG", "DIGEST")
    for command in [
        ("FS.PUBLISH", ROW, "x", 1),
        ("FS.PUBLISH", ROW, "NOLOG", "n", 5, "x", 1),
        ("FS.MPUBLISH", OTHER, '{"n": 1, "x": 1}', ROW, '{"n": 2, "x": 1}'),
        ("FS.GET", ROW, "c"),
        ("FS.MGET", "c,s", OTHER, ROW),
        ("FS.TENSOR", "c", ROW),
    ]:
        with pytest.raises(valkey.ResponseError, match=f"WRONGTYPE.*{STATE}"):
            small.execute_command(*command)
        assert small.execute_command("DEBUG", "DIGEST") == before, command
    small.xadd(LOG, {"entity_id": "u1", "features": '{"n": 3, "x": 1}'})
    await_until(lambda: small.exists(LETTERS), what="the dead letter")
    assert b"WRONGTYPE" in small.xrange(LETTERS)[0][1][b"error"]
    assert small.hget(ROW, "n") == b"1"
    # It is nobody's state, so nobody takes it along.
    held = digest(small, STATE)
    with contextlib.suppress(valkey.ResponseError):
        small.execute_command("FS.DEL", ROW)
    assert digest(small, STATE) == held
    small.delete(ROW)
    assert digest(small, STATE) == held


@pytest.mark.parametrize("delete", ["DEL", "UNLINK"])
def test_a_string_over_a_row_leaves_the_state_until_it_is_deleted(small, delete):
    publish(small, ROW, 2)
    publish(small, OTHER, 3)
    before = held(small)
    small.set(ROW, "x")
    assert held(small) == before and len(before) == 2
    assert small.execute_command(delete, ROW) == 1
    del before[STATE.encode()]
    assert held(small) == before
    publish(small, ROW, 4)
    assert small.execute_command("FS.GET", ROW) == [b"n", 1, b"c", 1, b"s", b"4"]


@pytest.mark.parametrize("delete", ["DEL", "UNLINK"])
@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_whatever_stands_in_a_rows_place_takes_the_state_along(small, kind, delete):
    for key in (ROW, OTHER):
        small.execute_command("FS.PUBLISH", key, "NOLOG", "x", 5)
    OTHER_TYPES[kind](small, ROW)
    before = held(small)
    assert small.execute_command(delete, ROW) == 1
    del before[STATE.encode()]
    assert held(small) == before and len(before) == 1
    assert small.execute_command("FS.GET", ROW, "c", "s") == [b"c", 0, b"s", b"0"]


def test_a_state_in_the_place_of_something_else_is_refused_and_kept(small):
    publish(small)
    for key, commands in {
        "fs:v1:profile:u5": [("FS.GET", "fs:v1:profile:u5"), ("FS.PUBLISH", "fs:v1:profile:u5", "n", 1)],
        LOG: [("FS.PUBLISH", ROW, "n", 2)],
    }.items():
        small.delete(key)
        small.copy(STATE, key)
        before = small.execute_command("DEBUG", "DIGEST")
        for command in commands:
            with pytest.raises(valkey.ResponseError, match="WRONGTYPE"):
                small.execute_command(*command)
            assert small.execute_command("DEBUG", "DIGEST") == before
        small.delete(key)


# FS.SCAN


def test_scanning_lists_entities_that_have_only_a_state(small):
    fs(small, f"FS.REGISTER profile VERSION 2 ENTITY user SCHEMA {SMALL}")
    fs(small, f"FS.REGISTER profile2 ENTITY user SCHEMA {SMALL}")
    expected = set()
    for i in range(60):
        words = [("n", 1), ("x", 1), ("n", 1, "x", 1)][i % 3]
        small.execute_command("FS.PUBLISH", f"fs:v1:profile:u{i}", *words)
        expected.add(b"u%d" % i)
    small.execute_command("FS.PUBLISH", "fs:v2:profile:second", "x", 1)
    small.execute_command("FS.PUBLISH", "fs:v1:profile2:other", "x", 1)
    assert scanned(small, VIEW, "VERSION", 1) == expected
    assert scanned(small, VIEW, "VERSION", 1, "COUNT", 1_000) == expected
    assert scanned(small) == {b"second"}
    assert scanned(small, "profile2") == {b"other"}
    small.delete(*[f"fs:w1:profile:u{i}" for i in range(60)])
    assert scanned(small, VIEW, "VERSION", 1) == {entity for entity in expected if int(entity[1:]) % 3 != 1}


# Permissions and protocols


@pytest.fixture
def guarded(server, small):
    """Makes clients of a user that may call everything, on the keys that the rules name."""

    def make(*rules: str):
        small.execute_command("ACL", "SETUSER", "eve", "reset", "on", "nopass", "+@all", *rules)
        return server.client(username="eve", password="any")

    yield make
    small.acl_deluser("eve")
    small.acl_log_reset()


def test_the_right_to_a_row_is_the_right_to_its_state(small, guarded):
    publish(small, ROW, 2)
    publish(small, OTHER, 2)
    small.execute_command("FS.PUBLISH", "fs:v1:profile:u3", "NOLOG", "x", 1)
    user = guarded("~fs:v1:profile:u[14]", f"%W~{LOG}")
    publish(user, ROW, 3)
    assert user.execute_command("FS.MPUBLISH", ROW, '{"x": 4}') == 1
    assert user.execute_command("FS.GET", ROW) == [b"n", 1, b"c", 3, b"s", b"9"]
    assert user.execute_command("FS.GET", ROW, "AT", clock_ms(small), "c") == [b"c", 3]
    assert user.execute_command("FS.MGET", "c,s", ROW, "fs:v1:profile:u4") == [[3, b"9"], [0, b"0"]]
    assert len(user.execute_command("FS.TENSOR", "c,s", ROW)) == 8
    assert user.execute_command("FS.EXPLAIN", ROW)
    user.execute_command("FS.PUBLISH", "fs:v1:profile:u4", "NOLOG", "x", 1)
    assert scanned(user) == {b"u1", b"u4"}
    for command in [
        ("FS.GET", OTHER, "c"),
        ("FS.PUBLISH", OTHER, "x", 1),
        ("TYPE", STATE),
        ("DUMP", STATE),
        ("DEL", STATE),
        ("RESTORE", STATE, 0, small.dump(STATE), "REPLACE"),
        ("COPY", STATE, ROW, "REPLACE"),
    ]:
        before = held(small)
        with pytest.raises(valkey.exceptions.NoPermissionError):
            user.execute_command(*command)
        assert held(small) == before
    assert user.delete(ROW) == 1
    assert not small.exists(STATE)
    assert user.execute_command("FS.DEL", "fs:v1:profile:u4") == 1
    assert sorted(held(small)) == [b"fs:w1:profile:u2", b"fs:w1:profile:u3"]


def test_reading_or_writing_a_state_needs_that_right_to_the_row(small, guarded):
    publish(small, ROW, 2)
    reader = guarded(f"%R~{ROW}")
    assert reader.execute_command("FS.GET", ROW, "c") == [b"c", 1]
    before = held(small)
    for command in (("FS.PUBLISH", ROW, "NOLOG", "x", 1), ("FS.DEL", ROW), ("DEL", ROW)):
        with pytest.raises(valkey.exceptions.NoPermissionError):
            reader.execute_command(*command)
    assert held(small) == before
    writer = guarded(f"%W~{ROW}")
    writer.execute_command("FS.PUBLISH", ROW, "NOLOG", "x", 3)
    with pytest.raises(valkey.exceptions.NoPermissionError):
        writer.execute_command("FS.GET", ROW, "c")
    assert value(small, "s") == b"5"


def test_replaying_and_dropping_states_needs_the_keys_of_rows_and_streams(small, guarded):
    publish(small, ROW, 2)
    user = guarded("~fs:v1:profile:*", "~fs:stream:profile", "~fs:dlq:profile")
    assert user.execute_command("FS.REPLAY", "profile", "FROM", "0", "WINDOWS") == 1
    assert value(small, "s") == b"2"
    user.execute_command("FS.DROP", "profile", "DATA")
    await_until(lambda: not small.exists(ROW, STATE, LOG), what="the end of FS.DROP DATA")


def test_both_protocols_serve_windows_typed(server, client):
    register(client, schema=windows())
    events = [
        {"x": 1.5, "whole": 4, "word": "a", "tags": [1], "emb": [1, 0, 0], "weight": 1},
        {"x": 2.5, "whole": 4, "word": "b", "tags": [], "emb": [0, 1, 0], "weight": 3},
        {"x": -1, "whole": 5, "word": "a", "tags": ["t"], "emb": [0, 0, 4], "weight": 0},
    ]
    now_ms = clock_ms(client) // HOUR_MS * HOUR_MS - DAY_MS
    for i, event in enumerate(events):
        client.execute_command("FS.PUBLISH", ROW, "AT", now_ms + i, "JSON", json.dumps(event))
    third, variance = 1.0, sum((x - 1) ** 2 for x in (1.5, 2.5, -1))
    expected = {
        "events": 3,
        "count_x": 3,
        "sum": 3.0,
        "mean": third,
        "lowest": -1.0,
        "highest": 2.5,
        "var_pop": variance / 3,
        "var_samp": variance / 2,
        "stddev_pop": math.sqrt(variance / 3),
        "stddev_samp": math.sqrt(variance / 2),
        "first": b"a",
        "distinct": 2,
        "centre": [1 / 3, 1 / 3, 4 / 3],
        "weighted": [0.25, 0.75, 0.0],
    }
    lists = {
        "last": ["t"],
        "last_k": ["a", "b", "a"],
        "top": [["a", 2], ["b", 1]],
        "histogram": [[4, 2], [5, 1]],
    }
    for protocol in (2, 3):
        reader = server.client(protocol=protocol)
        reply = reader.execute_command("FS.GET", ROW, "AT", now_ms + 5)
        served = {k.decode(): v for k, v in reply.items()} if protocol == 3 else pairs(reply)
        for name, value in expected.items():
            given = served[name]
            if isinstance(value, float):
                assert isinstance(given, float if protocol == 3 else bytes), name
                assert float(given) == pytest.approx(value, rel=1e-9), name
            elif isinstance(value, list):
                assert [float(number) for number in given] == pytest.approx(value, rel=1e-6), name
            else:
                assert (given, type(given)) == (value, type(value)), name
        for name, value in lists.items():
            assert json.loads(served[name]) == value and isinstance(served[name], bytes), name
        # The day passed: over no events.
        names = ("events", "sum", "mean", "first", "top", "centre")
        reply = reader.execute_command("FS.GET", ROW, *names)
        zero = 0.0 if protocol == 3 else b"0"
        assert list(reply.values() if protocol == 3 else reply[1::2]) == [0, zero, None, None, b"[]", None]
        rows = reader.execute_command("FS.MGET", ",".join(names), ROW, OTHER)
        assert rows == [[0, zero, None, None, b"[]", None]] * 2
        status = reader.execute_command("FS.GET", ROW, "AT", now_ms + 5, "WITHSTATUS", "events", "n")
        status = list(status.values()) if protocol == 3 else status[1::2]
        assert status == [[3, b"PRESENT", 3], [None, b"NOT_FOUND", None]]
    tensor = np.frombuffer(client.execute_command("FS.TENSOR", "events,sum,mean,centre", ROW), "<f4")
    assert tensor[:2].tolist() == [0, 0] and np.isnan(tensor[2:]).all() and len(tensor) == 6


def test_the_figures_of_a_view_tell_of_its_windows(small):
    names = ("window_events", "late_events", "too_late_events", "duplicates", "dedup_overflows")
    told = figures(small)
    assert [told[name] for name in names] == [0] * 5
    explained = pairs(small.execute_command("FS.EXPLAIN", ROW))["features"]
    by_name = {told["feature"]: told for told in map(pairs, explained)}
    before_ms = clock_ms(small)
    assert [by_name[b"n"][f"window_{end}_ms"] for end in ("start", "end")] == [None, None]
    for name, window, hop in ((b"c", HOUR_MS, 60_000), (b"s", 7 * DAY_MS, 3 * HOUR_MS)):
        start, end = (by_name[name][f"window_{end}_ms"] for end in ("start", "end"))
        # The hop that holds the clock is the last one; it may have ended since.
        assert end - start == window + hop and end % hop == 0
        assert 0 < end - before_ms + 5_000 <= hop + 5_000
