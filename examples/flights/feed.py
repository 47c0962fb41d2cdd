"""Three ways into the store: rows in batches, single updates with their event time, plain streams."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import valkey
from dataset import HALTS, View, batches
from own_server import DemoError

ROWS_PER_COMMAND = 100
COMMANDS_PER_ROUND_TRIP = 500
SECONDS_MAX = 240
SECONDS_WITHOUT_PROGRESS_MAX = 20
POLL_SECONDS = 0.05
REPORT_SECONDS = 1.5


def publish_rows(client: valkey.Valkey, view: View) -> int:
    """Publishes rows as JSON, many in a command (all of them or none). Returns how many were taken."""
    taken = 0
    commands = batches(view.records(), ROWS_PER_COMMAND)
    for batch in batches(commands, COMMANDS_PER_ROUND_TRIP // ROWS_PER_COMMAND):
        pipeline = client.pipeline(transaction=False)
        for rows in batch:
            words = [
                word
                for entity_id, _, features in rows
                for word in (view.key(entity_id), json.dumps(features))
            ]
            pipeline.execute_command("FS.MPUBLISH", *words)
        taken += sum(pipeline.execute())
    return taken


def publish_updates(client: valkey.Valkey, view: View) -> list[valkey.ResponseError]:
    """Publishes each update with its own event time. Returns the refusals."""
    refusals = []
    for batch in batches(view.records(), COMMANDS_PER_ROUND_TRIP):
        pipeline = client.pipeline(transaction=False)
        for entity_id, event_time_s, features in batch:
            words = [word for feature, value in features.items() for word in (feature, argument(value))]
            pipeline.execute_command("FS.PUBLISH", view.key(entity_id), "AT", event_time_s * 1000, *words)
        refusals += [
            reply for reply in pipeline.execute(raise_on_error=False) if isinstance(reply, Exception)
        ]
    return refusals


def argument(value: object) -> object:
    """A value as the client library takes it: vectors travel as raw float32."""
    match value:
        case bool():
            return int(value)
        case list():
            return np.array(value, dtype="<f4").tobytes()
        case _:
            return value


@contextmanager
def producers(views: list[View], port: int) -> Iterator[list[subprocess.Popen]]:
    """One producer process a view. All of them have prepared their updates, none has written any."""
    script = Path(__file__).with_name("producer.py")
    with ExitStack() as stack:
        started = []
        for view in views:
            process = subprocess.Popen(
                [sys.executable, script, view.name, str(port)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(end, process)
            started.append(process)
        for view, process in zip(views, started, strict=True):
            if process.stdout.readline().split() != ["ready", str(len(view.updates))]:
                raise DemoError(f"the producer of {view.name} did not get ready")
        yield started


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate()


def run_producers(
    client: valkey.Valkey, views: list[View], port: int, at_halt: Callable[[pd.Timestamp], None]
) -> dict[str, float]:
    """Runs one producer a view until the store has consumed everything. Returns the seconds of each view.

    At each of the HALTS all events up to it are written and consumed and none after it; `at_halt` is called,
    and its time does not count.
    """
    with producers(views, port) as started:
        progress = Progress(client, [view.name for view in views])
        for moment in HALTS:
            counts = {view.name: view.count_until(moment) for view in views}
            for process, count in zip(started, counts.values(), strict=True):
                process.stdin.write(f"{count}\n")
                process.stdin.flush()
            while True:
                # In this order: what is written is seen as pending.
                complete = written(client, views, started) == counts
                if not progress.pending() and complete:
                    break
                progress.report(REPORT_SECONDS)
                time.sleep(POLL_SECONDS)
            with progress.paused():
                at_halt(moment)
        if counts != {view.name: len(view.updates) for view in views}:
            raise DemoError(f"there are events after the last halt, {moment}")
        progress.report(0)
        return progress.seconds


def written(client: valkey.Valkey, views: list[View], started: list[subprocess.Popen]) -> dict[str, int]:
    """How many entries each producer has written. Errors when one has ended."""
    ended = [view.name for view, process in zip(views, started, strict=True) if process.poll() is not None]
    if ended:
        raise DemoError(f"the producer of {', '.join(ended)} has ended early")
    return {view.name: entries_added(client, view.name) for view in views}


def await_consumed(client: valkey.Valkey, views: list[str]) -> None:
    """Waits until every entry in the streams of the named views is in the rows."""
    progress = Progress(client, views)
    while progress.pending():
        time.sleep(POLL_SECONDS)


class Progress:
    """What the streams hold and how far the store has come with them; ends a wait that leads nowhere."""

    def __init__(self, client: valkey.Valkey, views: list[str]) -> None:
        self.client = client
        self.views = views
        self.begin = self.moved = self.reported = time.monotonic()
        self.consumed = dict.fromkeys(views, 0)
        # When each view was last seen to consume something.
        self.seconds = dict.fromkeys(views, 0.0)
        self.written = dict.fromkeys(views, 0)
        self.headed = False

    def pending(self) -> bool:
        """Whether entries wait to be consumed. Errors when nothing moves any more."""
        infos = [self.client.execute_command("FS.INFO", view) for view in self.views]
        now = time.monotonic()
        for info in infos:
            if info["consumed"] > self.consumed[info["view"]]:
                self.consumed[info["view"]] = info["consumed"]
                self.seconds[info["view"]] = now - self.begin
                self.moved = now
        pending = any(info["lag_entries"] for info in infos)
        stalled = pending and now - self.moved > SECONDS_WITHOUT_PROGRESS_MAX
        if stalled or now - self.begin > SECONDS_MAX:
            states = [f"{info['view']}: lag {info['lag_entries']}, {info['consumer']}" for info in infos]
            waited = now - self.begin
            raise DemoError(f"the streams are not consumed after {waited:.0f} s ({'; '.join(states)})")
        return pending

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens meanwhile takes no time."""
        begin = time.monotonic()
        yield
        passed = time.monotonic() - begin
        self.begin += passed
        self.moved += passed
        self.reported += passed

    def report(self, every_seconds: float) -> None:
        """Prints one line a view, at most every so many seconds."""
        now = time.monotonic()
        passed = now - self.reported
        if passed < every_seconds:
            return
        if not self.headed:
            columns = ("written", "per s", "consumed", "lag", "lag ms")
            print(f"    time  {'view':14}" + "".join(f"{column:>11}" for column in columns))
            self.headed = True
        for view in self.views:
            written = entries_added(self.client, view)
            info = self.client.execute_command("FS.INFO", view)
            rate = (written - self.written[view]) / passed
            self.written[view] = written
            figures = (written, round(rate), info["consumed"], info["lag_entries"], info["lag_ms"] or 0)
            line = "".join(f"{figure:11,}" for figure in figures)
            print(f"  {now - self.begin:5.1f}s  {view:14}{line}")
        self.reported = now


def entries_added(client: valkey.Valkey, view: str) -> int:
    """How many entries the stream ever took, by the server's own count."""
    try:
        return client.xinfo_stream(f"fs:stream:{view}")["entries-added"]
    except valkey.ResponseError:
        # No stream yet.
        return 0
