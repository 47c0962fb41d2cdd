"""Processes beside the benchmark: readers that saturate the server, and a consumer as an application writes
it.

Each waits for a word through its pipe, works, and sends back what it measured. They die with the script.
"""

import gc
import itertools
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection as Pipe

import numpy
import rows
import valkey
from load import ANSWER_SECONDS_MAX, PIPELINE, BenchError, Client, Workload, command, pipelines
from rows import View
from servers import die_with_parent

READERS = 50
WARM_PIPELINES = 2000
PIPELINES_PER_LOOK = 32
XREAD_COUNT = 100
SEED = 16


class Beside:
    """A process that runs `work(pipe, *arguments)`."""

    def __init__(self, work: Callable, *arguments):
        context = multiprocessing.get_context("fork")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=guarded, args=(work, other, *arguments), daemon=True)
        self.process.start()
        other.close()
        self.answer()

    def answer(self):
        if not self.pipe.poll(ANSWER_SECONDS_MAX):
            raise BenchError(f"{type(self).__name__} did not answer")
        found = self.pipe.recv()
        if isinstance(found, Exception):
            raise BenchError(f"{type(self).__name__}: {found!r}")
        return found

    def ask(self, word: object):
        self.pipe.send(word)
        return self.answer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.join()


def guarded(work: Callable, pipe: Pipe, *arguments) -> None:
    """Runs a process's work and sends what it dies of."""
    die_with_parent()
    gc.disable()
    try:
        work(pipe, *arguments)
    except EOFError:
        return
    except Exception as error:
        pipe.send(error)


class Readers(Beside):
    """Connections that read whole rows of random entities without a pause, and time each pipeline of them."""

    def __init__(self, port: int, view: View):
        super().__init__(read_forever, port, view)

    def begin(self) -> None:
        """Returns when the readers are under way."""
        self.ask("begin")

    def end(self) -> dict:
        """How many rows were read since `begin`, and the percentiles of the answers' times."""
        return self.ask("end")


def read_forever(pipe: Pipe, port: int, view: View) -> None:
    entities = rows.random_entities(2 * rows.ENTITIES, SEED)
    requests = pipelines(command("HGETALL", view.key(entity)) for entity in entities)
    workload = Workload("HGETALL", requests, {})
    workload.calibrate(port)
    client = Client(port, connections=READERS)
    pipe.send("ready")
    while pipe.recv() == "begin":
        latencies_ns: list[int] = []
        client.replay(workload, until_end(pipe, requests, latencies_ns), latencies_ns)
        p50, p99, p999, longest = (numpy.percentile(latencies_ns, [50, 99, 99.9, 100]) / 1e6).tolist()
        reads = len(latencies_ns) * PIPELINE
        pipe.send({"reads": reads, "p50_ms": p50, "p99_ms": p99, "p999_ms": p999, "max_ms": longest})


def until_end(pipe: Pipe, requests: list[bytes], latencies_ns: list[int]) -> Iterator[bytes]:
    """Requests until the pipe says end; says itself when the readers are warm."""
    for count, request in enumerate(itertools.cycle(requests)):
        if count == WARM_PIPELINES:
            latencies_ns.clear()
            pipe.send("reading")
        if count % PIPELINES_PER_LOOK == 0 and pipe.poll():
            pipe.recv()
            return
        yield request


class HandConsumer(Beside):
    """A loop of XREAD, json.loads and pipelined HSET, over again when it has come to the end of its stream."""

    def __init__(self, port: int, view: View):
        super().__init__(consume_forever, port, view)

    def work(self, seconds: float) -> tuple[int, float]:
        """Rows and the seconds they took."""
        self.pipe.send("begin")
        if self.pipe.poll(seconds):
            self.answer()
        return self.ask("end")


def consume_forever(pipe: Pipe, port: int, view: View) -> None:
    client = valkey.Valkey(port=port)
    if "Libvalkey" not in client.connection_pool.get_connection("PING")._parser.__class__.__name__:
        raise BenchError("valkey-py does not use libvalkey's parser: install libvalkey")
    last = b"0-0"
    pipe.send("ready")
    while pipe.recv() == "begin":
        count, started = 0, time.monotonic()
        while not pipe.poll():
            last, consumed = consume_once(client, view, last)
            count += consumed
        took = time.monotonic() - started
        pipe.recv()
        pipe.send((count, took))


def consume_once(client: valkey.Valkey, view: View, last: bytes) -> tuple[bytes, int]:
    """Brings up to XREAD_COUNT entries into their rows. Returns the cursor and how many they were."""
    streams = client.xread({view.hand_stream: last}, count=XREAD_COUNT)
    if not streams:
        return b"0-0", 0
    entries = streams[0][1]
    pipeline = client.pipeline(transaction=False)
    for _, entry in entries:
        features = json.loads(entry[b"features"])
        fields = {
            name: int(value) if value is True or value is False else value for name, value in features.items()
        }
        fields["_updated_at"] = entry[b"timestamp"]
        fields["_feature_view"] = entry[b"feature_view"]
        pipeline.hset(view.hand_key(entry[b"entity_id"].decode()), mapping=fields)
    pipeline.execute()
    return entries[-1][0], len(entries)
