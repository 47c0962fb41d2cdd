"""Consuming a backlog while readers saturate the server: the module against a client's loop, and what readers
feel.

Three windows a round: readers alone, with the client's loop, with the module's consumer. Rows a second are
counted over the window by the cursor; the backlog is larger than what either consumes meanwhile. Where one is
drained early the time it took counts instead.
"""

import json
import random
import statistics
import threading
import time
from collections.abc import Iterator

import rows
from load import PIPELINE, BenchError, Client, Workload, command, pipelines
from measure import Bench
from readers import HandConsumer, Readers
from reading import as_map, load_rows
from report import Result, Series
from servers import Server

TARGET_RATE, TARGET_P999_MS = 4.0, 10.0
VIEW = rows.STREAMED
LOG_LENGTH = 950_000
ENTRIES_BUILT = 96_000
POLL_SECONDS = 0.05
CHECKED_ENTRIES = 500
SEED = 15


def consume(bench: Bench) -> list[Result]:
    """Rows a second, and the readers' p99.9 over what it is without any consumer."""
    windows = {"none": [], "loop": [], "module": []}
    with Server(bench.version, bench.module) as server:
        if bench.module:
            server.call(*VIEW.definition("MAXLEN", LOG_LENGTH))
            server.call("FS.CONSUMER", "STOP", VIEW.name)
        load_rows(bench, server, VIEW, seed=4, registered=True)
        bench.say("building and writing the backlogs")
        backlog = Backlog(server)
        backlog.write(VIEW.hand_stream, bench.effort.backlog // 2)
        with Readers(server.port, VIEW) as readers, HandConsumer(server.port, VIEW) as loop:
            consumers = {"none": NoConsumer(), "loop": Loop(loop)}
            if bench.module:
                consumers["module"] = Module(server)
            for number in range(bench.effort.rounds + 1):
                bench.say(f"consuming with busy readers, round {number} of {bench.effort.rounds}")
                if bench.module:
                    backlog.top_up(bench.effort.backlog)
                for name, consumer in consumers.items():
                    window = measure(server, readers, consumer, bench.effort.window_seconds)
                    if number > 0:
                        windows[name].append(window)
        if bench.module:
            check_rows(server)
    return results(bench, server, windows)


def results(bench: Bench, server: Server, windows: dict[str, list[dict]]) -> list[Result]:
    def series(name: str, figure: str) -> Series:
        return Series([window[figure] for window in windows[name]])

    title = "rows consumed with busy readers / Python loop"
    consumed = series("loop", "rows_per_s"), series("module", "rows_per_s")
    rate = Result("consume", title, server.version, "rows/s", *consumed, bench.effort.backlog, TARGET_RATE)
    rate.at_most, rate.digits = False, 0
    title = "readers' p99.9, module consuming - no consumer"
    tails = series("none", "p999_ms"), series("module", "p999_ms")
    reads = int(statistics.median(window["reads"] for window in windows["none"]))
    tail = Result("consume", title, server.version, "ms", *tails, reads, TARGET_P999_MS)
    tail.relation = "module - native"
    tail.details = {
        f"{figure} ({name})": f"{series(name, figure).median:,.2f}"
        for figure in ("reads_per_s", "server_cpu", "p50_ms", "p99_ms", "p999_ms", "max_ms")
        for name in windows
        if windows[name]
    }
    return [rate, tail]


def measure(server: Server, readers: Readers, consumer, seconds: float) -> dict:
    """One window: what the readers saw and how many rows were consumed."""
    readers.begin()
    cpu_ns = server.cpu_ns()
    started = time.monotonic()
    done, took = consumer.work(seconds)
    window = time.monotonic() - started
    cpu_share = (server.cpu_ns() - cpu_ns) / 1e9 / window
    seen = readers.end()
    consumer.finish()
    return seen | {"rows_per_s": done / took, "server_cpu": cpu_share, "reads_per_s": seen["reads"] / window}


class NoConsumer:
    def work(self, seconds: float) -> tuple[int, float]:
        threading.Event().wait(seconds)
        return 0, seconds

    def finish(self) -> None:
        """Nothing to do."""


class Loop:
    """The client's loop in its own process."""

    def __init__(self, process: HandConsumer):
        self.process = process

    def work(self, seconds: float) -> tuple[int, float]:
        """Rows and the seconds they took."""
        return self.process.work(seconds)

    def finish(self) -> None:
        """The loop has stopped with its window."""


class Module:
    """The module's consumer, watched by FS.INFO."""

    def __init__(self, server: Server):
        self.server = server

    def work(self, seconds: float) -> tuple[int, float]:
        """Rows and the seconds they took."""
        before = figures(self.server)
        started = time.monotonic()
        self.server.call("FS.CONSUMER", "START", VIEW.name)
        while True:
            threading.Event().wait(min(POLL_SECONDS, seconds))
            now = figures(self.server)
            took = time.monotonic() - started
            if took >= seconds or now["lag_entries"] == 0:
                break
        self.before = before
        return before["lag_entries"] - now["lag_entries"], took

    def finish(self) -> None:
        self.server.call("FS.CONSUMER", "STOP", VIEW.name)
        now = figures(self.server)
        moved = self.before["lag_entries"] - now["lag_entries"]
        if now["consumed"] - self.before["consumed"] != moved:
            raise BenchError(
                f"the lag fell by {moved} and {now['consumed'] - self.before['consumed']} were consumed"
            )
        for name in ("superseded", "expired_on_arrival", "dead_letters", "lost_entries", "invalid_values"):
            if now[name] != self.before[name]:
                raise BenchError(f"{name} of {VIEW.name} rose from {self.before[name]} to {now[name]}")


def figures(server: Server) -> dict:
    return as_map(server.call("FS.INFO", VIEW.name))


class Backlog:
    """Log entries as any client writes them."""

    def __init__(self, server: Server):
        self.server = server
        source = random.Random(SEED)
        entities = rows.random_entities(ENTRIES_BUILT, SEED)
        self.entries = [(entity, VIEW.json(VIEW.random_row(source))) for entity in entities]

    def write(self, stream: str, count: int) -> None:
        """Appends `count` entries with the time of now, so that they are newer than all before them."""
        now = rows.now_text()
        requests = pipelines(
            command(
                "XADD",
                stream,
                "*",
                "entity_id",
                entity,
                "features",
                features,
                "timestamp",
                now,
                "feature_view",
                VIEW.name,
            )
            for entity, features in self.entries
        )
        writing = Workload("XADD", requests, {"xadd": 1})
        writing.calibrate(self.server.port)
        client = Client(self.server.port)
        client.run(writing, count)
        client.close()

    def top_up(self, count: int) -> None:
        """Leaves about `count` entries for the module to consume, and trims what it has consumed."""
        lag = figures(self.server)["lag_entries"] or 0
        self.write(VIEW.stream, max(count - lag, PIPELINE))
        self.server.call("FS.TRIM", VIEW.name, "MAXLEN", count)
        lag = figures(self.server)["lag_entries"]
        if not lag or lag < count:
            raise BenchError(f"FS.INFO {VIEW.name} shows a lag of {lag} entries after {count} were written")


def check_rows(server: Server) -> None:
    """The last entries before the cursor are in their rows."""
    cursor = figures(server)["cursor"]
    for entity, features in newest_entries(server, cursor):
        found = {
            name: value.decode() for name, value in as_map(server.call("HGETALL", VIEW.key(entity))).items()
        }
        typed = VIEW.typed({name: found.get(name, "") for name in VIEW.features})
        if typed != features or found["_feature_view"] != VIEW.name:
            raise BenchError(f"{VIEW.key(entity)} holds {found} after an entry with {features} was consumed")


def newest_entries(server: Server, cursor: bytes) -> Iterator[tuple[str, dict]]:
    seen = set()
    for _, fields in server.call("XREVRANGE", VIEW.stream, cursor, "-", "COUNT", CHECKED_ENTRIES):
        entry = {name: value.decode() for name, value in as_map(fields).items()}
        if entry["entity_id"] not in seen:
            seen.add(entry["entity_id"])
            yield entry["entity_id"], json.loads(entry["features"])
