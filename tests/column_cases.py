"""The column cache against reading without it: views, services, and what must be answered.

Whatever was done before, one MULTI reads rows through the cache, without it, and one by one with FS.GET: all three say
the same, bit for bit.
"""

import struct
from dataclasses import dataclass

import numpy as np
from drifting_view import module_info
from windowed_view import fs

SETTING = "fs.column-cache-max-bytes"
ROOMY = 256 << 20
CATEGORIES = ("x", "y", "z")
SCHEMA = (
    "a INT DEFAULT 3 f FLOAT TTL 1s s STRING b BOOL c STRING VALUES 3 x y z v VECTOR 3 t TIMESTAMP "
    "n INT INPUT w INT AGG COUNT n WINDOW 1d"
)
# By name and version; those of version 2 come and go.
VIEWS = {
    "h@1": f"ENTITY user TTL 3s MAXLEN 300 SCHEMA {SCHEMA}",
    "h@2": f"ENTITY user MAXLEN 300 SCHEMA {SCHEMA}",
    "p@1": f"ENTITY user TTL 3s MAXLEN 300 STORAGE PACKED SCHEMA {SCHEMA}",
    "g@1": f"ENTITY item MAXLEN 300 STORAGE PACKED SCHEMA {SCHEMA}",
    "both@1": f"ENTITY user_item TTL 3s MAXLEN 300 SCHEMA {SCHEMA}",
}
RANKING = "CONTEXT user CANDIDATE item PAIR user_item"
CONTEXT_ID = b"e1"
IDS = [b"e%d" % i for i in range(9)] + [b"x" * 40, b"y" * 99, b"\0\r\n\xff *"]


@dataclass(frozen=True)
class Service:
    """A service of format TENSOR. `features`: `view@version:feature` each."""

    name: str
    features: tuple[str, ...]
    ranks: bool = False
    with_status: bool = True

    def setting(self) -> list:
        options = [*RANKING.split()] * self.ranks + ["FORMAT", "TENSOR"] + ["WITHSTATUS"] * self.with_status
        return ["FS.SERVICE", "SET", self.name, *options, "FEATURES", len(self.features), *self.features]

    def reading(self, ids: list[bytes]) -> list:
        return ["FS.RANK", self.name, CONTEXT_ID, *ids] if self.ranks else ["FS.SERVE", self.name, *ids]

    def parts(self) -> dict[str, list[str]]:
        """The features of each version of a view, in their order."""
        parts: dict[str, list[str]] = {}
        for feature in self.features:
            view, _, name = feature.partition(":")
            parts.setdefault(view, []).append(name)
        return parts

    def key(self, view: str, id_: bytes) -> bytes:
        """The row of a version of a view for an id of the answer."""
        if self.ranks:
            id_ = {"h": CONTEXT_ID, "both": CONTEXT_ID + b":" + id_}.get(view.partition("@")[0], id_)
        return row_key(view, id_)

    def single_calls(self, ids: list[bytes]) -> list[list]:
        calls = [
            ["FS.GET", self.key(view, id_), "WITHSTATUS", *names]
            for id_ in ids
            for view, names in self.parts().items()
        ]
        return calls


SERVICES = [
    Service("of_hashes", tuple(f"h@1:{name}" for name in "afcvw")),
    Service("of_both", ("h@1:b", "p@1:a", "h@1:f", "p@1:v", "p@1:w", "p@1:c", "p@1:t", "h@1:v")),
    Service("plain", ("p@1:f", "p@1:b", "h@1:a"), with_status=False),
    Service("of_two", ("h@2:a", "h@2:f", "h@2:v", "h@2:b")),
    Service(
        "ranked",
        ("both@1:f", "h@1:a", "g@1:v", "g@1:a", "both@1:c", "h@1:f", "g@1:w", "both@1:v", "g@1:t"),
        ranks=True,
    ),
]
# Nothing of these grows too old while a test runs.
LASTING = {
    view: words.replace("TTL 3s", "TTL 1h").replace("TTL 1s", "TTL 1h") for view, words in VIEWS.items()
}
# Comes and goes, and what is mirrored with it.
PASSING = Service("passing", ("h@2:c", "h@2:t", "h@1:t", "h@1:b"))


def row_key(view: str, id_: bytes) -> bytes:
    name, _, version = view.partition("@")
    return b"fs:v%s:%s:%s" % (version.encode(), name.encode(), id_)


def define(client, services=SERVICES, views=VIEWS) -> None:
    for view, words in views.items():
        name, _, version = view.partition("@")
        fs(client, f"FS.REGISTER {name} VERSION {version} {words}")
    for service in services:
        client.execute_command(*service.setting())


def figures(server) -> dict:
    """What INFO tells of the cache."""
    told = module_info(server)
    return {
        name.removeprefix("column_cache_"): value for name, value in told.items() if "column_cache" in name
    }


def counted(server) -> tuple[int, int]:
    """Rows that were served, and values that were unreadable."""
    told = module_info(server)
    return told["rows_served"], told["invalid_values"]


# What must be answered, by single calls


def numbers(feature: str, value) -> bytes | None:
    """A value of FS.GET as float32; None: it has no number."""
    if value is None:
        return None
    if feature == "c":
        found = value.decode(errors="replace")
        return struct.pack("<f", CATEGORIES.index(found)) if found in CATEGORIES else None
    values = [float(number) for number in (value if feature == "v" else [value])]
    # What is too large for a float32 is infinite there.
    with np.errstate(over="ignore"):
        return np.array(values, "<f8").astype("<f4").tobytes()


def tensor_of(service: Service, ids: list[bytes], replies: list) -> tuple[list[int], bytes, list[bool]]:
    """The shape, the numbers, and a bit for each, from the replies of the single calls."""
    blob, bits, replies = b"", [], iter(replies)
    for _ in ids:
        row = {}
        for view, names in service.parts().items():
            flat = next(replies)
            pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)
            row |= {f"{view}:{name.decode()}": told for name, told in pairs}
            assert len(names) == len(flat) // (1 if isinstance(flat, dict) else 2)
        for feature in service.features:
            name = feature.partition(":")[2]
            value, status, _ = row[feature]
            found = numbers(name, value)
            blob += found or struct.pack("<f", float("nan")) * (3 if name == "v" else 1)
            bits += [status == b"PRESENT" and found is not None] * (3 if name == "v" else 1)
    return [len(ids), len(bits) // len(ids)], blob, bits


def bits_of(bitmap: bytes, count: int) -> list[bool]:
    return [bool(bitmap[i // 8] >> (i % 8) & 1) for i in range(count)]


def code(reply) -> str | None:
    return str(reply).partition(" ")[0] if isinstance(reply, Exception) else None


class Difference(AssertionError):
    """The cache and the rows said different things of these ids."""

    def __init__(self, what: str, ids: list[bytes]):
        super().__init__(what)
        self.ids = ids


def rows_of(reply) -> list:
    """The numbers and bits of each row of a reply."""
    if isinstance(reply, Exception):
        return []
    (count, width), blob, *bitmap = reply
    numbers = [blob[i * width * 4 : (i + 1) * width * 4] for i in range(count)]
    bits = bits_of(bitmap[0], count * width) if bitmap else [None] * (count * width)
    return [(number, bits[i * width : (i + 1) * width]) for i, number in enumerate(numbers)]


def compare(service: Service, ids: list[bytes], cached, read, singles: list) -> None:
    """Three ways to read the same rows at the same time."""

    def check(is_right: bool, what: str) -> None:
        if is_right:
            return
        rows = list(zip(ids, rows_of(cached), rows_of(read), strict=False))
        differing = [(id_, *both) for id_, *both in rows if both[0] != both[1]] or rows
        named = [id_ for id_, *_ in differing]
        calls = zip(service.single_calls(ids), singles, strict=True)
        told = [f"{call[1]}: {reply}" for call, reply in calls if any(call[1].endswith(id_) for id_ in named)]
        lines = [f"{id_}: cached {both[0]}, read {both[1]}" for id_, *both in differing]
        refused = [str(reply) for reply in (cached, read) if code(reply)]
        raise Difference("\n".join([f"{service.name}: {what}", *refused, *lines, *told]), named)

    check(code(cached) == code(read), "one is refused, or both differently")
    refused = {code(reply) for reply in singles if isinstance(reply, Exception)}
    if code(cached):
        check(code(cached) in refused, "single calls are not refused so")
        return
    check(cached == read, "the cache says something else")
    check(not refused, "single calls are refused")
    shape, blob, bits = tensor_of(service, ids, singles)
    check(cached[:2] == [shape, blob], "single calls tell other numbers")
    if service.with_status:
        check(bits_of(cached[2], len(bits)) == bits, "single calls tell another bitmap")


def check_reading(client, ids: list[bytes], services=SERVICES, limit: int = ROOMY, first=()) -> list[bytes]:
    """Compares, with changes `first` between two readings in the same transaction. Answers keys of wrong types."""
    with client.pipeline(transaction=True) as transaction:
        if first:
            for service in services:
                transaction.execute_command(*service.reading(ids))
            for call in first:
                transaction.execute_command(*call)
        for service in services:
            transaction.execute_command(*service.reading(ids))
        transaction.execute_command("CONFIG", "SET", SETTING, 0)
        for service in services:
            transaction.execute_command(*service.reading(ids))
            for call in service.single_calls(ids):
                transaction.execute_command(*call)
        transaction.execute_command("CONFIG", "SET", SETTING, limit)
        replies = transaction.execute(raise_on_error=False)
    if first:
        replies = replies[len(services) + len(first) :]
    cached, replies = replies[: len(services)], iter(replies[len(services) + 1 :])
    wrong = []
    for service, answer in zip(services, cached, strict=True):
        read = next(replies)
        calls = service.single_calls(ids)
        singles = [next(replies) for _ in calls]
        compare(service, ids, answer, read, singles)
        wrong += [call[1] for call, reply in zip(calls, singles, strict=True) if code(reply) == "WRONGTYPE"]
    return wrong
