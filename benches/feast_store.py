"""Feast with its Redis online store, on the same server with the same values, against FS.SERVE; both from Python.

Feast runs in a Python environment of its own (`feast_reader.py`). Each side is timed from entity ids to a numpy matrix.
"""

import json
import os
import select
import subprocess
import tempfile
from pathlib import Path

import numpy
import rows
from load import BenchError
from measure import Bench
from ranking import tensor_of
from report import Result
from servers import Server, die_with_parent, feast_python
from tables import Table
from turns import libvalkey_client, milliseconds, take_turns

READS_AT_LEAST = 50
ENTITIES = 500
STORED_ENTITIES = 10_000
DRAWS, CHECKED_CALLS = 100, 5
# Of the effort's reads: calls of each side in a round.
CALLS_SHARE = 3200
SERVICE = "numbers_of_users"
# The first start compiles all of Feast and what it imports.
ANSWER_SECONDS_MAX = 120
SEED = 24


def feast(bench: Bench) -> list[Result]:
    view = rows.NUMBERS_TTL
    names = list(view.features)
    title = f"get_online_features of {ENTITIES} entities by Feast to a numpy array / FS.SERVE by valkey-py"
    with Server(bench.version, bench.module) as server:
        table = Table.random(view, STORED_ENTITIES, SEED)
        if bench.module:
            table.load(bench, server)
            features = [f"{view.name}:{name}" for name in names]
            server.call("FS.SERVICE", "SET", SERVICE, "FORMAT", "TENSOR", "FEATURES", len(names), *features)
        bench.say(f"loading {STORED_ENTITIES:,} rows by Feast")
        client = libvalkey_client(server.port)
        source = numpy.random.default_rng(SEED)
        drawn = [source.choice(STORED_ENTITIES, ENTITIES, replace=False) for _ in range(DRAWS)]
        asked = [list(map(table.entity, numbers.tolist())) for numbers in drawn]

        def serve(entities: list[str]) -> numpy.ndarray:
            return tensor_of(client.execute_command("FS.SERVE", SERVICE, *entities))

        with Feast(server.port, table) as reader:
            bench.say(title)
            for numbers, entities in zip(drawn[:CHECKED_CALLS], asked, strict=False):
                check("Feast", table, numbers, reader.matrix(entities))
                if bench.module:
                    check("FS.SERVE", table, numbers, serve(entities))
            for entities in asked if bench.module else ():
                # The column cache has them from now on.
                serve(entities)
            sides = [
                lambda at: reader.milliseconds(asked[at % DRAWS]),
                (lambda at: milliseconds(serve, asked[at % DRAWS])) if bench.module else None,
            ]
            count = bench.effort.reads // CALLS_SHARE
            native, module = take_turns(sides, bench.effort.rounds, count)
        client.close()
    result = Result("feast", title, server.version, "ms", native, module, count, READS_AT_LEAST)
    result.relation, result.at_most, result.digits = "native / module", False, 3
    result.details = {"Feast": reader.version}
    return [result]


def check(name: str, table: Table, numbers: numpy.ndarray, found: numpy.ndarray) -> None:
    if not numpy.array_equal(found, table.float32(numbers)):
        raise BenchError(f"{name} answered {found}, which is not what was written")


class Feast:
    """The process that reads by Feast, asked and answering in lines of JSON."""

    def __init__(self, port: int, table: Table):
        self.folder = tempfile.TemporaryDirectory(prefix="fs-bench-")
        folder = Path(self.folder.name)
        numpy.save(folder / "numbers.npy", table.numbers)
        view = table.view
        (folder / "view.json").write_text(
            json.dumps({"name": view.name, "features": view.features, "ttl_ms": rows.TTL_MS})
        )
        self.log = folder / "log"
        reader = Path(__file__).with_name("feast_reader.py")
        # Feast leaves files in the temporary folder, and must tell nobody of its use.
        environment = os.environ | {"TMPDIR": self.folder.name, "FEAST_USAGE": "False"}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [feast_python(), str(reader), str(port), str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                preexec_fn=die_with_parent,
            )
        try:
            self.version = self.answer()
        except BaseException:
            self.stop()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.folder.cleanup()

    def answer(self):
        answered = select.select([self.process.stdout], [], [], ANSWER_SECONDS_MAX)[0]
        line = self.process.stdout.readline() if answered else b""
        if not line:
            tail = self.log.read_text(errors="replace").splitlines()[-8:]
            raise BenchError("Feast does not answer:\n  " + "\n  ".join(tail))
        return json.loads(line)

    def ask(self, what: str, entities: list[str]):
        self.process.stdin.write(json.dumps([what, entities]).encode() + b"\n")
        self.process.stdin.flush()
        return self.answer()

    def milliseconds(self, entities: list[str]) -> float:
        return self.ask("milliseconds", entities)

    def matrix(self, entities: list[str]) -> numpy.ndarray:
        return numpy.array(self.ask("matrix", entities), "<f4")
