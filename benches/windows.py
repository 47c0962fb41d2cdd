"""Windows: one event into three windows of three functions, and one read of a week, against what is done by hand.

By hand: a sorted set for one counter, and a Lua script over hash buckets. All sides get the same events: random
entities, so many a week of each, at times that have passed already. A history of one week comes first, so that
each side lets old events go as fast as it takes new ones.
"""

import math
import random
import threading
import time
from dataclasses import dataclass

import events
import numpy
import rows
from events import Event, Stream, Traffic, stream_operations, write_events
from load import PIPELINE, BenchError, Workload, command, pipelines
from measure import Bench, Side, compare, nothing
from reading import as_map, write_all
from report import Result
from rows import HOUR_MS, LOG_LENGTH_MAX, MINUTE_MS, WEEK_MS, WINDOWED, WINDOWED_HOURLY
from servers import Replica, Server
from writing import check_ids, check_log_entries

TARGET_COUNTER, TARGET_LOGGED, TARGET_BUCKETS, TARGET_READ = 0.4, 0.6, 0.3, 0.03
WEEK_HOURS = 168
READS_SHARE = 20
CHECKED_ENTITIES = 200
REWRITE_SECONDS_MAX = 60
POLL_SECONDS = 0.02
SEED = 17

# Length and hop of the three windows; the script has the hops that the module chooses. It looks once a day for
# buckets that have left their window: that bounds the hash and costs little.
WINDOWS = {"1h": (HOUR_MS, MINUTE_MS), "24h": (24 * HOUR_MS, 30 * MINUTE_MS), "7d": (WEEK_MS, 3 * HOUR_MS)}
COUNT_SCRIPT = """\
local hops = {60000, 1800000, 10800000}
local lengths = {3600000, 86400000, 604800000}
local key, now = KEYS[1], tonumber(ARGV[1])
for window, hop in ipairs(hops) do
  local bucket = window .. ':' .. math.floor(now / hop)
  redis.call('HINCRBY', key, bucket .. ':n', 1)
  redis.call('HINCRBYFLOAT', key, bucket .. ':s', ARGV[2])
end
local cleaned = redis.call('HGET', key, 'cleaned')
if not cleaned or now - cleaned >= 86400000 then
  local old = {}
  for _, field in ipairs(redis.call('HKEYS', key)) do
    local window, bucket = string.match(field, '^(%d):(%d+)')
    window = tonumber(window)
    if window and tonumber(bucket) < math.floor((now - lengths[window]) / hops[window]) then
      old[#old + 1] = field
    end
  end
  if #old > 0 then redis.call('HDEL', key, unpack(old)) end
  redis.call('HSET', key, 'cleaned', ARGV[1])
  redis.call('EXPIRE', key, 777600)
end
"""
SUM_SCRIPT = """\
local newest = math.floor(ARGV[1] / 3600000)
local fields = {}
for bucket = newest - 167, newest do
  fields[#fields + 1] = bucket .. ':n'
  fields[#fields + 1] = bucket .. ':s'
end
local values = redis.call('HMGET', KEYS[1], unpack(fields))
local count, sum = 0, 0
for at = 1, #values, 2 do
  if values[at] then
    count = count + values[at]
    sum = sum + values[at + 1]
  end
end
return {count, string.format('%.17g', sum)}
"""


@dataclass(frozen=True)
class Life:
    """How lively an entity is. A sorted set of few members is a list in one block, one of many is a skip list."""

    name: str
    events_a_week: int
    entities_divisor: int
    is_target: bool


HOURLY = Life("an event an hour", WEEK_HOURS, 5, is_target=True)
QUIET = Life("two events a day", 14, 1, is_target=False)


def windows(bench: Bench) -> list[Result]:
    """CPU of one event, logged and not; then the same with a replica and AOF, which inform."""
    results = []
    for life in (HOURLY, QUIET):
        results += windows_of(bench, life)
    return results


def windows_of(bench: Bench, life: Life) -> list[Result]:
    measured = stream_operations(bench.effort.writes * (bench.effort.rounds + 1))
    entities = bench.effort.windowed_entities // life.entities_divisor
    history = entities * life.events_a_week // PIPELINE * PIPELINE
    traffic = Traffic(entities, life.events_a_week, history + 4 * measured, SEED)
    with Server(bench.version, bench.module) as server:
        sides = Sides(bench, server, traffic, measured, life, entities)
        sides.load(history)
        results = unlogged(bench, sides) + logged(bench, sides)
        sides.check()
        if not life.is_target:
            return results
        server.call("CONFIG", "SET", "appendonly", "yes", "appendfsync", "everysec")
        await_rewritten(server)
        with Replica(bench.version, bench.module, server) as replica:
            results += unlogged(bench, sides, replica) + logged(bench, sides, replica)
        sides.check()
    return results


def unlogged(bench: Bench, sides: "Sides", replica: Replica | None = None) -> list[Result]:
    """Against the sorted set and, without a replica, against the script."""
    numbers = sides.take()
    bench.say(f"one event into 9 windows / sorted set / Lua{copied(replica)}")
    own = sides.module(numbers, "NOLOG") if bench.module else None
    workloads = [sides.counter(numbers), own, None if replica else sides.buckets(numbers)]
    counter, module, buckets = sides.compare(workloads, replica)
    what = f"one event into 3 windows of 3 functions, {sides.life.name}, NOLOG{copied(replica)}"
    title = f"{what} / ZADD ZREMRANGEBYSCORE ZCARD EXPIRE of one counter"
    judged = sides.life.is_target and not replica
    results = sides.results(title, counter, module, TARGET_COUNTER if judged else None, replica)
    if not replica:
        reach = TARGET_BUCKETS if judged else None
        results += sides.results(f"{what} / Lua over hash buckets", buckets, module, reach)
    return results


def logged(bench: Bench, sides: "Sides", replica: Replica | None = None) -> list[Result]:
    """Against the sorted set and a log of the same entries."""
    numbers = sides.take()
    bench.say(f"one event into 9 windows, logged / sorted set and XADD{copied(replica)}")
    workloads = [sides.counter(numbers, True), sides.module(numbers) if bench.module else None]
    counter, module = sides.compare(workloads, replica)
    check_log_entries(sides.server, WINDOWED, native_only=bench.module is None)
    what = f"one event into 3 windows of 3 functions, {sides.life.name}, logged{copied(replica)}"
    judged = sides.life.is_target and not replica
    title = f"{what} / the same commands and XADD"
    return sides.results(title, counter, module, TARGET_LOGGED if judged else None, replica)


def copied(replica: Replica | None) -> str:
    return ", replica and AOF" if replica else ""


class Sides:
    """The three ways to count the same events, on one server."""

    def __init__(
        self, bench: Bench, server: Server, traffic: Traffic, measured: int, life: Life, entities: int
    ):
        self.bench, self.server, self.traffic, self.measured = bench, server, traffic, measured
        self.life, self.entities = life, entities
        self.digest = server.call("SCRIPT", "LOAD", COUNT_SCRIPT).decode()
        # The events that each side got: the script has no part in all comparisons.
        self.counted = {"counter": [], "buckets": [], "module": []}
        if bench.module:
            server.call(*WINDOWED.definition())

    def take(self) -> range:
        return self.traffic.take(self.measured)

    def load(self, count: int) -> None:
        """Brings a week of events into every side."""
        numbers = self.traffic.take(count)
        self.bench.say(f"{count:,} events of a week into {self.entities:,} entities")
        write_events(self.server, "ZADD", by_counter, 4, self.traffic, numbers)
        write_events(self.server, "EVALSHA", self.by_script, 1, self.traffic, numbers)
        if self.bench.module:
            write_events(self.server, "FS.PUBLISH", by_module, 1, self.traffic, numbers)
        for counted in self.counted.values():
            counted.append(numbers)

    def counter(self, numbers: range, logs: bool = False) -> Stream:
        self.counted["counter"].append(numbers)
        write = by_counter_and_log if logs else by_counter
        requests = pipelines(map(write, self.traffic.events(numbers)))
        calls = dict.fromkeys(["zadd", "zremrangebyscore", "zcard", "expire"] + ["xadd"] * logs, 1)
        return Stream("ZADD", requests, calls, replies=len(calls))

    def buckets(self, numbers: range) -> Stream:
        self.counted["buckets"].append(numbers)
        requests = pipelines(map(self.by_script, self.traffic.events(numbers)))
        return Stream("EVALSHA", requests, {"evalsha": 1})

    def module(self, numbers: range, *options: str) -> Stream:
        self.counted["module"].append(numbers)
        requests = pipelines(
            events.publish(WINDOWED, event, *options) for event in self.traffic.events(numbers)
        )
        check = events.check_nil if options else check_ids
        return Stream("FS.PUBLISH", requests, {"fs.publish": 1}, check=check)

    def by_script(self, event: Event) -> bytes:
        return command("EVALSHA", self.digest, 1, buckets_key(event.entity), event.time_ms, event.x)

    def compare(self, workloads: list[Stream | None], replica: Replica | None) -> list[Side]:
        settle = replica.catch_up if replica else nothing
        return compare(self.bench, self.server, workloads, self.bench.effort.writes, settle)

    def results(
        self, title: str, native: Side, module: Side, reach: float | None, replica: Replica | None = None
    ) -> list[Result]:
        version, operations = self.server.version, self.bench.effort.writes
        cpu = (native.cpu_us, module.cpu_us)
        results = [Result("windows", title, version, "us CPU/event", *cpu, operations, reach)]
        results[0].details = {"entities": f"{self.entities:,}"}
        if replica:
            sent = (native.replicated_bytes, module.replicated_bytes)
            title = "the same, bytes replicated"
            results.append(Result("windows", title, version, "bytes/event", *sent, operations, digits=0))
        return results

    def check(self) -> None:
        """Every side holds what the events come to."""
        now_ms = self.traffic.time_ms(self.traffic.taken)
        source = random.Random(SEED)
        for number in source.sample(range(self.entities), min(CHECKED_ENTITIES, self.entities)):
            entity = rows.entity_id(number)
            happened = self.traffic.events_of(number)
            took = {side: [e for e in happened if contains(self.counted[side], e)] for side in self.counted}
            self.check_counter(entity, took["counter"])
            self.check_buckets(entity, took["buckets"])
            if self.bench.module:
                self.check_module(entity, took["module"], now_ms)

    def check_counter(self, entity: str, took: list[Event]) -> None:
        found = {member.decode() for member in self.server.call("ZRANGE", WINDOWED.hand_key(entity), 0, -1)}
        alive = {event.member for event in took if event.time_ms > took[-1].time_ms - WEEK_MS}
        if found != alive:
            raise BenchError(f"the sorted set of {entity} holds {found} instead of {alive}")

    def check_buckets(self, entity: str, took: list[Event]) -> None:
        found = {
            name: float(text)
            for name, text in as_map(self.server.call("HGETALL", buckets_key(entity))).items()
        }
        if not took:
            return
        for window, (length_ms, hop_ms) in enumerate(WINDOWS.values(), 1):
            inside = in_window(took, took[-1].time_ms, length_ms, hop_ms)
            fields = {f"{window}:{event.time_ms // hop_ms}" for event in inside}
            count, total = (sum(found.get(f"{field}:{kind}", 0) for field in fields) for kind in "ns")
            check_sums(entity, inside, count, total)

    def check_module(self, entity: str, took: list[Event], now_ms: int) -> None:
        found = as_map(self.server.call("FS.GET", WINDOWED.key(entity), "AT", now_ms))
        for name, (length_ms, hop_ms) in WINDOWS.items():
            inside = in_window(took, now_ms, length_ms, hop_ms)
            check_sums(entity, inside, found[f"count_{name}"], float(found[f"sum_{name}"]))
            mean = found[f"mean_{name}"]
            if (mean is None) != (not inside):
                raise BenchError(f"the mean of {entity} over {len(inside)} events is {mean}")
            if inside:
                check_sums(entity, inside, len(inside), float(mean) * len(inside))


def contains(ranges: list[range], event: Event) -> bool:
    return any(event.number in numbers for numbers in ranges)


def in_window(took: list[Event], now_ms: int, length_ms: int, hop_ms: int) -> list[Event]:
    """The events that lie in the window at a time: hops count whole."""
    begin_ms, end_ms = (now_ms - length_ms) // hop_ms * hop_ms, now_ms // hop_ms * hop_ms + hop_ms
    return [event for event in took if begin_ms <= event.time_ms < end_ms]


def check_sums(entity: str, expected: list[Event], count: float, total: float) -> None:
    expected_total = math.fsum(float(event.x) for event in expected)
    if count != len(expected) or not math.isclose(total, expected_total, rel_tol=1e-9, abs_tol=1e-9):
        raise BenchError(
            f"{entity} shows {count} events with {total} instead of {len(expected)} with {expected_total}"
        )


def buckets_key(entity: str) -> str:
    return f"nf:b1:{WINDOWED.name}:{entity}"


def by_counter(event: Event) -> bytes:
    key = WINDOWED.hand_key(event.entity)
    added = command("ZADD", key, event.time_ms, event.member)
    removed = command("ZREMRANGEBYSCORE", key, "-inf", event.time_ms - WEEK_MS)
    return added + removed + command("ZCARD", key) + command("EXPIRE", key, WEEK_MS // 1000)


def by_counter_and_log(event: Event) -> bytes:
    entry = {
        "entity_id": event.entity,
        "features": WINDOWED.json({"x": event.x}),
        "timestamp": f"{event.time_ms / 1000:.3f}",
        "feature_view": WINDOWED.name,
    }
    words = [word for field in entry.items() for word in field]
    return by_counter(event) + command(
        "XADD", WINDOWED.hand_stream, "MAXLEN", "~", LOG_LENGTH_MAX, "*", *words
    )


def by_module(event: Event) -> bytes:
    return events.publish(WINDOWED, event, "NOLOG")


def await_rewritten(server: Server) -> None:
    """Returns when the append-only file that was just switched on is complete."""
    deadline = time.monotonic() + REWRITE_SECONDS_MAX
    while True:
        state = server.connection.info("persistence")
        if state["aof_rewrite_in_progress"] == state["aof_rewrite_scheduled"] == "0":
            return
        if time.monotonic() > deadline:
            raise BenchError("the append-only file is not rewritten")
        threading.Event().wait(POLL_SECONDS)


def window_get(bench: Bench) -> list[Result]:
    """Count and sum of a week in hours, one event in each. The hashes are listpacks as they come, then tables."""
    count = bench.effort.hourly_entities
    with Server(bench.version, bench.module) as server:
        if bench.module:
            server.call(*WINDOWED_HOURLY.definition())
        bench.say(f"{WEEK_HOURS} events, one an hour, into {count:,} entities")
        now_ms = int(time.time() * 1000)
        cents = numpy.random.default_rng(SEED).integers(1, 60_000, size=(count, WEEK_HOURS))
        hours = [now_ms // HOUR_MS * HOUR_MS - hour * HOUR_MS for hour in reversed(range(WEEK_HOURS))]
        fill_hours(bench, server, cents, hours)
        entities = numpy.random.default_rng(SEED + 1).integers(count, size=2 * count).tolist()
        digest = server.call("SCRIPT", "LOAD", SUM_SCRIPT).decode()
        scripts = pipelines(command("EVALSHA", digest, 1, hours_key(number), now_ms) for number in entities)
        keys = [WINDOWED_HOURLY.key(rows.entity_id(number)) for number in entities]
        reads = pipelines(command("FS.GET", key, "count_7d", "sum_7d") for key in keys)

        def read(encoding: str, reach: float | None) -> Result:
            found = server.call("OBJECT", "ENCODING", hours_key(count - 1)).decode()
            if found != encoding:
                raise BenchError(f"the hashes are {found} instead of {encoding}")
            title = f"count and sum over 7 days by FS.GET / Lua over 168 hash buckets ({encoding})"
            bench.say(title)
            native = Workload("EVALSHA", scripts, {"evalsha": 1}, check=check_week(cents, entities, (0, 1)))
            own = Workload("FS.GET", reads, {"fs.get": 1}, check=check_week(cents, entities, (1, 3)))
            operations = bench.effort.reads // READS_SHARE
            sides = compare(bench, server, [native, own if bench.module else None], operations)
            cpu = (side.cpu_us for side in sides)
            result = Result("window_get", title, server.version, "us CPU/op", *cpu, operations, reach)
            result.details = {"entities": f"{count:,}"}
            return result

        results = [read("listpack", None)]
        # A hash changes at its next write. As a table it is read faster, so this is what counts.
        server.call("CONFIG", "SET", "hash-max-listpack-entries", WEEK_HOURS)
        touched = (command("HSET", hours_key(number), "touched", 1) for number in range(count))
        write_all(server, Stream("HSET", pipelines(touched), {}))
        return [*results, read("hashtable", TARGET_READ)]


def fill_hours(bench: Bench, server: Server, cents: numpy.ndarray, hours: list[int]) -> None:
    """Hour by hour, entity after entity, so that what one entity gets does not lie together."""
    for hour, time_ms in enumerate(hours):
        happened = [
            Event(0, rows.entity_id(number), time_ms, events.value(int(cents[number, hour])))
            for number in range(len(cents))
        ]
        hashes = (
            command("HSET", hours_key(number), f"{bucket}:n", 1, f"{bucket}:s", event.x)
            for bucket in [time_ms // HOUR_MS]
            for number, event in enumerate(happened)
        )
        write_all(server, Stream("HSET", pipelines(hashes), {}))
        if bench.module:
            requests = pipelines(events.publish(WINDOWED_HOURLY, event, "NOLOG") for event in happened)
            write_all(server, Stream("FS.PUBLISH", requests, {}, check=events.check_nil))


def hours_key(number: int) -> str:
    return f"nf:b1:{WINDOWED_HOURLY.name}:{rows.entity_id(number)}"


def check_week(cents: numpy.ndarray, entities: list[int], positions: tuple[int, int]):
    """Judges replies that hold count and sum at the given positions."""

    def check(index: int, replies: list) -> None:
        for number, reply in zip(entities[index * PIPELINE :], replies, strict=False):
            count, total = (float(reply[at]) for at in positions)
            if count != WEEK_HOURS or not math.isclose(total, cents[number].sum() / 100, rel_tol=1e-9):
                raise BenchError(f"{rows.entity_id(number)} answered {reply}, which is not what was written")

    return check
