"""Views with windows for tests: every function, events to feed them, and what their states answer."""

import json
import random

from profile_view import register

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
