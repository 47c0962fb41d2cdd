"""Events for windows: a stream of them that is much alike for every side, and what each side does with one.

An event is an entity, its time in unix milliseconds and a value x. By hand it becomes a member of a sorted set:
an id of 12 hexadecimal digits, a colon and the value, since the values are to be summed.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy
import rows
from load import CALIBRATED_PIPELINES, PIPELINE, BenchError, Workload, command, pipelines
from reading import write_all
from rows import MINUTE_MS, WEEK_MS, WindowView
from servers import Server

ID_FACTOR, ID_BITS = 0x9E3779B97F4A7C15, 48
CHUNK_EVENTS = 10_000 * PIPELINE


@dataclass(frozen=True)
class Event:
    number: int
    entity: str
    time_ms: int
    x: str

    @property
    def member(self) -> str:
        """Its member in a sorted set. The factor is odd, so no two ids are the same."""
        return f"{self.number * ID_FACTOR % (1 << ID_BITS):012x}:{self.x}"


class Traffic:
    """Events of random entities at a steady pace, the last of them a minute ago."""

    def __init__(self, entities: int, events_a_week: int, count: int, seed: int):
        source = numpy.random.default_rng(seed)
        self.count = count
        self.entities = source.integers(entities, size=count, dtype=numpy.int32)
        self.cents = source.integers(1, 60_000, size=count, dtype=numpy.int32)
        self.step_ms = WEEK_MS / (entities * events_a_week)
        self.begin_ms = int(time.time() * 1000) - MINUTE_MS - int(count * self.step_ms)
        self.taken = 0

    def take(self, count: int) -> range:
        """The numbers of the next `count` events."""
        if self.taken + count > self.count:
            raise BenchError(f"{self.taken + count} events are asked for, {self.count} were made")
        self.taken += count
        return range(self.taken - count, self.taken)

    def time_ms(self, number: int) -> int:
        return self.begin_ms + int(number * self.step_ms)

    def event(self, number: int) -> Event:
        entity = rows.entity_id(int(self.entities[number]))
        return Event(number, entity, self.time_ms(number), value(int(self.cents[number])))

    def events(self, numbers: range) -> Iterator[Event]:
        return map(self.event, numbers)

    def events_of(self, entity: int) -> list[Event]:
        """All events of an entity that were taken, in their order."""
        return [
            self.event(int(number)) for number in numpy.flatnonzero(self.entities[: self.taken] == entity)
        ]


def value(cents: int) -> str:
    return rows.shortest(cents / 100)


class Stream(Workload):
    """Operations that are done once each and in order: the first of them are those that are checked."""

    def calibrate(self, port: int) -> None:
        count = min(CALIBRATED_PIPELINES, len(self.pipelines) - 1)
        _, lines = self.run_checked(port, range(count))
        # Not by bytes: what a counter answers grows with time.
        self.count_lines(lines)
        del self.pipelines[:count]


def stream_operations(operations: int) -> int:
    """How many operations a Stream needs for so many after it was calibrated."""
    return operations + CALIBRATED_PIPELINES * PIPELINE


def write_events(
    server: Server, name: str, write: Callable[[Event], bytes], replies: int, traffic: Traffic, numbers: range
) -> None:
    """Does what a side does with an event, for many events in their order."""
    for at in range(0, len(numbers), CHUNK_EVENTS):
        requests = pipelines(map(write, traffic.events(numbers[at : at + CHUNK_EVENTS])))
        write_all(server, Stream(name, requests, {}, replies))


def publish(view: WindowView, event: Event, *options: str) -> bytes:
    return command("FS.PUBLISH", view.key(event.entity), "AT", event.time_ms, *options, "x", event.x)


def check_nil(index: int, replies: list) -> None:
    if any(reply is not None for reply in replies):
        raise BenchError(f"FS.PUBLISH NOLOG answered {replies} instead of nil")
