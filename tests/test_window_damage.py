"""Damaged dumps of window states: refused or harmless, and never the end of the server."""

import json
import math
import random

import pytest
from profile_view import module_figures, pairs, register
from windowed_view import (
    ALL,
    HOUR_MS,
    clock_ms,
    digest,
    fill,
    fs,
    register_all,
    windows,
)

from server import await_until

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
