"""Ranking: a service over users and items, calls of FS.RANK, and pipelines of HMGET that read the same rows."""

import itertools
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy
from load import BenchError, Client, Connection, Workload, command, first_error
from measure import check_counters
from servers import Server
from tables import Table

CANDIDATES = 500
SETTLE_SECONDS_MAX, POLL_SECONDS = 60, 0.005


@dataclass(frozen=True)
class Draw:
    """One user and the items that are ranked for them, by number."""

    user: int
    items: numpy.ndarray


def draws(users: int, items: int, count: int, seed: int) -> list[Draw]:
    """So many draws. Each item comes once before any comes again, in no order that a cache could follow."""
    source = numpy.random.default_rng(seed)
    shuffled = (source.permutation(items) for _ in itertools.count())
    parts = (order[at : at + CANDIDATES] for order in shuffled for at in range(0, items, CANDIDATES))
    return [Draw(int(source.integers(users)), part) for part in itertools.islice(parts, count)]


class Calls(Workload):
    """Requests that are sent one at a time on a connection, each an operation with all its replies."""

    position = 0

    def run_checked(self, port: int, indexes: Iterable[int]) -> tuple[set[int], set[int]]:
        connection = Connection(port)
        sizes, lines = set(), set()
        for index in indexes:
            replies, raw = connection.exchange(self.pipelines[index], self.replies)
            if error := first_error(replies):
                raise BenchError(f"{self.name} answered: {error}")
            self.check(index, replies)
            sizes.add(len(raw))
            lines.add(raw.count(b"\n"))
        connection.close()
        return sizes, lines

    def next(self, count: int) -> Iterator[bytes]:
        """The next requests, from the first on when they end."""
        start = self.position % len(self.pipelines)
        self.position += count
        return itertools.islice(itertools.cycle(self.pipelines), start, start + count)


class Ranking:
    """A service that answers a tensor of users' and items' numbers."""

    def __init__(self, users: Table, items: Table):
        self.users, self.items = users, items
        self.service = f"rank_{items.view.name}"

    def definition(self) -> list[str]:
        views = (self.users.view, self.items.view)
        features = [f"{view.name}:{feature}" for view in views for feature in view.features]
        words = ["FS.SERVICE", "SET", self.service, "CONTEXT", views[0].entity, "CANDIDATE", views[1].entity]
        return [*words, "FORMAT", "TENSOR", "FEATURES", str(len(features)), *features]

    def expected(self, draw: Draw) -> numpy.ndarray:
        """The tensor: the user's numbers in each row, then the item's."""
        return joined(self.users.float32([draw.user]), self.items.float32(draw.items))

    def rank(self, drawn: list[Draw]) -> Calls:
        def check(index: int, replies: list) -> None:
            self.require("FS.RANK", drawn[index], tensor_of(replies[0]))

        requests = [command(*self.rank_words(draw)) for draw in drawn]
        return Calls("FS.RANK", requests, {"fs.rank": 1}, check=check)

    def rank_words(self, draw: Draw) -> list[str]:
        items = map(self.items.entity, draw.items.tolist())
        return ["FS.RANK", self.service, self.users.entity(draw.user), *items]

    def hmget(self, drawn: list[Draw]) -> Calls:
        def check(index: int, replies: list) -> None:
            found = numpy.array(replies, "<f4")
            self.require("HMGET", drawn[index], joined(found[:1], found[1:]))

        names = list(self.items.view.features)
        requests = [b"".join(command("HMGET", key, *names) for key in self.keys(draw)) for draw in drawn]
        count = 1 + CANDIDATES
        return Calls("HMGET", requests, {"hmget": count}, replies=count, check=check)

    def keys(self, draw: Draw) -> list[str]:
        """The rows that one call reads: the user's and the items'."""
        return [self.users.key(draw.user), *map(self.items.key, draw.items.tolist())]

    def require(self, name: str, draw: Draw, found: numpy.ndarray) -> None:
        if not numpy.array_equal(found, self.expected(draw)):
            user = self.users.entity(draw.user)
            raise BenchError(f"{name} of {user} and {len(draw.items)} items is not what was written")


def joined(user: numpy.ndarray, items: numpy.ndarray) -> numpy.ndarray:
    """The tensor that a model reads, of the user's row and the items' rows."""
    tensor = numpy.empty((len(items), user.shape[1] + items.shape[1]), "<f4")
    tensor[:, : user.shape[1]] = user
    tensor[:, user.shape[1] :] = items
    return tensor


def tensor_of(reply: list) -> numpy.ndarray:
    """The numbers of a service's answer, where they lie."""
    return numpy.frombuffer(reply[1], "<f4").reshape(reply[0])


def cpu_us(server: Server, client: Client, calls: Calls, count: int) -> float:
    """The server's CPU microseconds a call, after every call was made once.

    So each side finds its own rows in the machine's caches, not those of the side before.
    """
    client.replay(calls, iter(calls.pipelines))
    counted, errors = server.calls(), server.errors()
    before_ns = server.cpu_ns()
    client.replay(calls, calls.next(count))
    cpu_ns = server.cpu_ns() - before_ns
    check_counters(server, calls, count, counted, errors)
    return cpu_ns / 1000 / count


class ColumnCache:
    """The module's cache of the numbers of rows that services read as tensors; on as the server starts.

    `rows`: how many it holds when it is filled.
    """

    SETTING = "fs.column-cache-max-bytes"

    def __init__(self, server: Server, rows: int):
        self.server, self.rows = server, rows
        self.max_bytes = int(dict([server.call("CONFIG", "GET", self.SETTING)])[self.SETTING.encode()])

    def switch(self, on: bool) -> None:
        """Returns when it is filled, or empty."""
        self.server.call("CONFIG", "SET", self.SETTING, self.max_bytes if on else 0)
        self.await_rows(self.rows if on else 0)

    def await_rows(self, rows: int) -> None:
        """Returns when it holds so many rows: the server fills and empties it in the background."""
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        while self.figure("rows") != rows or self.figure("warming"):
            if time.monotonic() > deadline:
                raise BenchError(f"the column cache holds {self.figure('rows')} rows, not {rows}")
            threading.Event().wait(POLL_SECONDS)

    def figure(self, name: str) -> int:
        return int(self.server.connection.info("fs")[f"fs_column_cache_{name}"])

    @contextmanager
    def require(self, on: bool):
        """Inside, every row that is asked for is found in it, or none."""
        before = [self.figure(name) for name in ("hits", "misses")]
        yield
        after = [self.figure(name) for name in ("hits", "misses")]
        hits, misses = (end - start for start, end in zip(before, after, strict=True))
        if (hits == 0) == on or (on and misses):
            how = "on" if on else "off"
            raise BenchError(f"{hits} rows came from the column cache and {misses} did not, with it {how}")
