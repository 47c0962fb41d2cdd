"""A store with services of every kind, for tests: views of users, items and both, rows, and what services answer."""

import json
from itertools import product

from windowed_view import clock_ms, fs

FORMATS = ("MAP", "ARRAY", "JSON", "TENSOR")
VARIANTS = list(product(FORMATS, (False, True)))
VIEWS = {
    "profile": "ENTITY user TTL 30d SCHEMA age INT DEFAULT 7 plan STRING VALUES 2 free pro name STRING tags LIST "
    "score FLOAT TTL 1h x FLOAT INPUT c INT AGG COUNT x WINDOW 7d m FLOAT AGG MEAN x WINDOW 7d",
    "profile@2": "ENTITY user SCHEMA age FLOAT ok BOOL",
    "account": "ENTITY user SCHEMA since TIMESTAMP DEFAULT 1600000000000",
    "goods": "ENTITY item SCHEMA price FLOAT emb VECTOR 3 DEFAULT 1,2,3 label STRING",
    "both": "ENTITY user_item SCHEMA clicks INT DEFAULT 0 dwell FLOAT",
}
# Few features of each entity, an INPUT among them.
SMALL = {
    "profile": "ENTITY user SCHEMA age INT plan STRING VALUES 2 free pro seen FLOAT INPUT text STRING",
    "profile@2": "ENTITY user SCHEMA age FLOAT tags LIST",
    "goods": "ENTITY item SCHEMA price FLOAT emb VECTOR 3",
    "both": "ENTITY user_item SCHEMA clicks INT",
}
RANKING = "CONTEXT user CANDIDATE item PAIR user_item"
# Features that have numbers, and some that have none.
SERVED = {
    "entity": (
        "profile@1:age",
        "profile@1:plan",
        "profile@1:score",
        "profile:ok",
        "account:since",
        "profile@1:c",
    ),
    "texts": ("profile@1:name", "profile@1:tags", "profile@1:m", "profile:age"),
}
RANKED = {
    "rank": ("goods:price", "profile@1:age", "both:clicks", "goods:emb", "profile@1:c", "both:dwell"),
    "rank_texts": ("profile@1:name", "goods:label", "both:clicks"),
}
IDS, CONTEXT, CANDIDATES = ("u1", "u2", "none", "u1"), "u1", ("i1", "none", "i2", "i1")


def variant(name: str, format_: str, with_status: bool) -> str:
    return f"{name}_{format_.lower()}{'_status' * with_status}"


def settings() -> dict[str, str]:
    """What FS.SERVICE SET is given, by name: each list of features in every format that it has."""
    told = {}
    for (name, features), (format_, with_status) in product((SERVED | RANKED).items(), VARIANTS):
        if format_ == "TENSOR" and "texts" in name:
            continue
        options = f"{RANKING * (name in RANKED)} FORMAT {format_} {'WITHSTATUS' * with_status}"
        told[variant(name, format_, with_status)] = f"{options} FEATURES {len(features)} {' '.join(features)}"
    return told


def reading(service: str) -> list[str]:
    """The call that reads one of these services."""
    if service.startswith("rank"):
        return ["FS.RANK", service, CONTEXT, *CANDIDATES]
    return ["FS.SERVE", service, *IDS]


def register(client, view: str, words: str) -> None:
    """`view` may be `view@version`."""
    name, _, version = view.partition("@")
    assert fs(client, f"FS.REGISTER {name} VERSION {version or 1} {words}") in (b"OK", "OK")


def set_service(client, name: str, words: str) -> None:
    assert fs(client, f"FS.SERVICE SET {name} {words}") in (b"OK", "OK")


def fill(client) -> None:
    """Rows in several states; `none` has none."""
    now_ms = clock_ms(client)
    publish = ("FS.PUBLISH", "AT")
    for key, at_ms, update in [
        ("fs:v1:profile:u1", now_ms, {"age": 34, "plan": "pro", "name": "Zoë\0", "tags": [1, "a"], "x": 1.5}),
        ("fs:v1:profile:u1", now_ms - 7_200_000, {"score": 0.1, "x": 4}),
        ("fs:v1:profile:u2", now_ms, {"score": 0.25, "plan": None, "name": {"$base64": "//4A"}}),
        ("fs:v2:profile:u1", now_ms, {"age": 34.5, "ok": True}),
        ("fs:v1:account:u2", now_ms, {"since": 1_700_000_000_000}),
        ("fs:v1:goods:i1", now_ms, {"price": 9.99, "emb": [0.1, -2, 3e7], "label": 'say "ä"\n'}),
        ("fs:v1:goods:i2", now_ms, {"price": -0.0}),
        ("fs:v1:both:u1:i1", now_ms, {"clicks": 5, "dwell": 1e300}),
    ]:
        client.execute_command(publish[0], key, publish[1], at_ms, "JSON", json.dumps(update))
    client.hset("fs:v1:profile:u2", "age", "no number")
    client.hset("fs:v1:both:u1:i2", mapping={"clicks": "7.0", "dwell": "none", "others": "x"})


def define(client) -> None:
    for view, words in VIEWS.items():
        register(client, view, words)
    fill(client)
    for name, words in settings().items():
        set_service(client, name, words)


def services(client) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else name for name in fs(client, "FS.SERVICE LIST")]


def told(client) -> dict:
    """What FS.SERVICE GET tells of each."""
    return {name: fs(client, f"FS.SERVICE GET {name}") for name in services(client)}


def without_ages(reply):
    """A reply whose ages, the third of value, status and age, are `an age` or none."""
    if isinstance(reply, bytes) and reply[:2] in (b"[{", b"[]"):
        return without_ages(json.loads(reply))
    if isinstance(reply, dict):
        return {name: without_ages(value) for name, value in reply.items()}
    if not isinstance(reply, list):
        return reply
    if len(reply) == 3 and isinstance(reply[1], bytes | str) and type(reply[2]) is int:
        return [*reply[:2], "an age"]
    return [without_ages(part) for part in reply]


def answers(client) -> dict:
    """What each service answers, ages left out, or its refusal."""
    names = services(client)
    with client.pipeline(transaction=False) as pipeline:
        for name in names:
            pipeline.execute_command(*reading(name))
        replies = pipeline.execute(raise_on_error=False)
    return {
        name: str(reply) if isinstance(reply, Exception) else without_ages(reply)
        for name, reply in zip(names, replies, strict=True)
    }


def everything(client) -> tuple[dict, dict]:
    """All that two copies must agree on about services."""
    return told(client), answers(client)


def as_map(reply) -> dict:
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


def described(client, service: str) -> dict:
    """What FS.SERVICE GET tells, in plain text."""

    def plain(value):
        if isinstance(value, list):
            return [plain(part) for part in value]
        return value.decode() if isinstance(value, bytes) else value

    return {
        plain(name): plain(value) for name, value in as_map(fs(client, f"FS.SERVICE GET {service}")).items()
    }
