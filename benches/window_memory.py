"""Memory of windows: count and sum over 7 days against a sorted set that holds the events of 7 days.

Three entities of different lives: one event an hour for a week; the same and then one event a second for an hour;
five events in a week and no more. Keys and their expiry count on both sides.
"""

import random
import time
from collections.abc import Callable

import events
import rows
from events import Event, Stream
from load import BenchError, command, pipelines
from measure import Bench
from memory import steady_memory
from reading import write_all
from report import Result, Series
from rows import HOUR_MS, MINUTE_MS, WEEK_MS, WINDOWED_SUM
from servers import Server

TARGET_HOURLY, TARGET_GROWTH, TARGET_IDLE = 0.2, 1.1, 1.0
WEEK_HOURS, DENSE_SECONDS, IDLE_EVENTS = 168, 3600, 5
SEED = 18

# Mean bytes of an entity by MEMORY USAGE, and as used_memory has grown.
Figures = tuple[float, float]


def window_memory(bench: Bench) -> list[Result]:
    with Server(bench.version, bench.module) as server:
        sides: list[Side] = [SortedSet(server)]
        if bench.module:
            server.call(*WINDOWED_SUM.definition())
            sides.append(Windows(server))
        lives = {life: [([], []), ([], [])] for life in ("hourly", "dense", "idle")}
        for number in range(bench.effort.memory_rounds):
            bench.say(f"memory of windows, round {number + 1} of {bench.effort.memory_rounds}")
            for at, side in enumerate(sides):
                figures = busy(bench, side, number) | idle(bench, side, number)
                for life, measured in figures.items():
                    for series, figure in zip(lives[life][at], measured, strict=True):
                        series.append(figure)
    return results(bench, server, lives)


def results(bench: Bench, server: Server, lives: dict) -> list[Result]:
    def row(
        title: str, native: list[float], module: list[float], entities: int, reach: float | None
    ) -> Result:
        series = Series(native), Series(module)
        return Result(
            "window_memory", title, server.version, "bytes/entity", *series, entities, reach, digits=1
        )

    found = []
    busy_entities, idle_entities = bench.effort.dense_entities, rows.ENTITIES
    for at, how in enumerate(("MEMORY USAGE", "used_memory")):
        (hand, own), (hand_dense, own_dense), (hand_idle, own_idle) = (
            (side[0][at], side[1][at]) for side in lives.values()
        )
        title = f"{how} of 7-day count and sum, one event an hour / sorted set"
        found.append(row(title, hand, own, busy_entities, TARGET_HOURLY))
        title = f"{how} of 7-day count and sum, then one event a second for an hour / before"
        growth = row(title, own, own_dense, busy_entities, TARGET_GROWTH)
        growth.details = {
            "sorted set before": Series(hand).text(0),
            "after": Series(hand_dense).text(0),
            "grown to": f"{Series(hand_dense).median / Series(hand).median:.1f}x",
        }
        found.append(growth)
        title = f"{how} of 7-day count and sum, {IDLE_EVENTS} events and idle / sorted set"
        # MEMORY USAGE leaves the expiry out.
        target = TARGET_IDLE if how == "used_memory" else None
        found.append(row(title, hand_idle, own_idle, idle_entities, target))
    return found


class Side:
    """One way to keep the events of the last 7 days."""

    name: str
    key: Callable[[str], str]

    def __init__(self, server: Server):
        self.server = server

    def add(self, happened: list[Event]) -> None:
        """Takes events in their order."""
        raise NotImplementedError

    def forget(self, entities: list[str], now_ms: int) -> None:
        """Lets events go that have left the window."""

    def check(self, entity: str, now_ms: int, count: int) -> None:
        """Whether so many events are in the window."""
        raise NotImplementedError


class SortedSet(Side):
    name = "ZADD"
    key = staticmethod(WINDOWED_SUM.hand_key)

    def add(self, happened: list[Event]) -> None:
        """One ZADD an entity: what a set holds does not depend on how its members came."""
        members: dict[str, list] = {}
        for event in happened:
            members.setdefault(event.entity, []).extend((event.time_ms, event.member))
        seconds = WEEK_MS // 1000
        requests = pipelines(
            command("ZADD", self.key(entity), *pairs) + command("EXPIRE", self.key(entity), seconds)
            for entity, pairs in members.items()
        )
        write_all(self.server, Stream(self.name, requests, {}, replies=2))

    def forget(self, entities: list[str], now_ms: int) -> None:
        for entity in entities:
            self.server.call("ZREMRANGEBYSCORE", self.key(entity), "-inf", now_ms - WEEK_MS)

    def check(self, entity: str, now_ms: int, count: int) -> None:
        found = self.server.call("ZCOUNT", self.key(entity), f"({now_ms - WEEK_MS}", "+inf")
        if found != count or self.server.call("ZCARD", self.key(entity)) != count:
            raise BenchError(f"the sorted set of {entity} holds {found} events instead of {count}")


class Windows(Side):
    name = "FS.PUBLISH"
    key = staticmethod(WINDOWED_SUM.state_key)

    def add(self, happened: list[Event]) -> None:
        requests = pipelines(events.publish(WINDOWED_SUM, event, "NOLOG") for event in happened)
        write_all(self.server, Stream(self.name, requests, {}, check=events.check_nil))

    def check(self, entity: str, now_ms: int, count: int) -> None:
        """A window holds whole hops, so it may show what the last of them holds beyond the week."""
        found = self.server.call("FS.GET", WINDOWED_SUM.key(entity), "AT", now_ms, "count_7d")[1]
        if not count <= found <= count + 3:
            raise BenchError(f"the window of {entity} shows {found} events instead of {count}")


def busy(bench: Bench, side: Side, seed: int) -> dict[str, Figures]:
    """An event an hour for a week, ending an hour ago; then an event a second until now."""
    entities = [rows.entity_id(number) for number in range(bench.effort.dense_entities)]
    before = emptied(side.server)
    source = random.Random(SEED + seed)
    numbers = iter(range(10**9))
    begin_ms = int(time.time() * 1000) - HOUR_MS - MINUTE_MS

    def happen(times_ms: list[int]) -> list[Event]:
        """Every entity has an event within a second of each of the times."""
        return [
            Event(
                next(numbers),
                entity,
                time_ms + source.randrange(1000),
                events.value(source.randrange(1, 60_000)),
            )
            for time_ms in times_ms
            for entity in entities
        ]

    for day in reversed(range(WEEK_HOURS // 24)):
        side.add(happen([begin_ms - (day * 24 + hour) * HOUR_MS for hour in reversed(range(24))]))
    hourly = measure(side, entities, bench.effort.sampled_rows, before)
    side.check(entities[0], begin_ms + 1000, WEEK_HOURS)
    for minute in range(DENSE_SECONDS // 60):
        side.add(happen([begin_ms + (minute * 60 + second) * 1000 for second in range(1, 61)]))
    now_ms = begin_ms + (DENSE_SECONDS + 1) * 1000
    side.forget(entities, now_ms)
    dense = measure(side, entities, bench.effort.sampled_rows, before)
    side.check(entities[0], now_ms, WEEK_HOURS - 1 + DENSE_SECONDS)
    return {"hourly": hourly, "dense": dense}


def idle(bench: Bench, side: Side, seed: int) -> dict[str, Figures]:
    """A few events in the last week, at random times, for many entities."""
    before = emptied(side.server)
    source = random.Random(SEED + seed)
    now_ms = int(time.time() * 1000) - MINUTE_MS
    entities = [rows.entity_id(number) for number in range(rows.ENTITIES)]
    # An hour from the border, so that the week holds them all while this runs.
    times_ms = [
        sorted(now_ms - source.randrange(WEEK_MS - HOUR_MS) for _ in range(IDLE_EVENTS)) for _ in entities
    ]
    for number in range(IDLE_EVENTS):
        side.add(
            [
                Event(
                    number * rows.ENTITIES + at,
                    entity,
                    time_ms[number],
                    events.value(source.randrange(1, 60_000)),
                )
                for at, (entity, time_ms) in enumerate(zip(entities, times_ms, strict=True))
            ]
        )
    figures = measure(side, entities, bench.effort.sampled_rows, before)
    side.check(entities[0], now_ms, IDLE_EVENTS)
    return {"idle": figures}


def emptied(server: Server) -> int:
    """used_memory of the server without keys."""
    server.call("FLUSHALL", "SYNC")
    return steady_memory(server.connection)


def measure(side: Side, entities: list[str], samples: int, before: int) -> Figures:
    grown = steady_memory(side.server.connection) - before
    count = side.server.call("DBSIZE")
    if count != len(entities):
        raise BenchError(f"{side.name} left {count} keys instead of {len(entities)}")
    sampled = random.Random(SEED).sample(entities, min(samples, len(entities)))
    usages = [side.server.call("MEMORY", "USAGE", side.key(entity), "SAMPLES", 0) for entity in sampled]
    return sum(usages) / len(usages), grown / count
