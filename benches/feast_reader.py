"""Reads by Feast. Runs in Feast's own Python environment, beside the benchmark.

    python feast_reader.py PORT FOLDER

FOLDER has `view.json` (name, features, ttl_ms) and `numbers.npy` (a row for each entity). Answers lines of JSON: first
Feast's version, then one for each question, `[what, entities]`: `milliseconds` that a read took, or its `matrix`.
"""

import datetime
import json
import os
import sys
import time
from pathlib import Path

# Whatever else prints must not come between the answers.
ANSWERS = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)

import feast  # noqa: E402
import numpy  # noqa: E402
import pandas  # noqa: E402
from feast.types import Float64, Int64  # noqa: E402


def main(port: str, folder: Path) -> None:
    view = json.loads((folder / "view.json").read_text())
    store = filled_store(port, folder, view)
    features = [f"{view['name']}:{name}" for name in view["features"]]

    def read(entities: list[str]) -> numpy.ndarray:
        found = store.get_online_features(features=features, entity_rows={"user_id": entities}).to_dict()
        return numpy.array([found[name] for name in view["features"]], dtype=numpy.float32).T

    answer(feast.__version__)
    for line in sys.stdin:
        what, entities = json.loads(line)
        started_ns = time.perf_counter_ns()
        matrix = read(entities)
        took_ms = (time.perf_counter_ns() - started_ns) / 1e6
        answer(took_ms if what == "milliseconds" else matrix.tolist())


def answer(value: object) -> None:
    ANSWERS.write(json.dumps(value) + "\n")


def filled_store(port: str, folder: Path, view: dict) -> feast.FeatureStore:
    """A store with the rows in its online store."""
    ttl = datetime.timedelta(milliseconds=view["ttl_ms"])
    online = {
        "type": "redis",
        "connection_string": f"127.0.0.1:{port}",
        "key_ttl_seconds": int(ttl.total_seconds()),
    }
    store = feast.FeatureStore(
        config=feast.RepoConfig(
            project="bench",
            provider="local",
            registry=str(folder / "registry.db"),
            online_store=online,
            entity_key_serialization_version=3,
        )
    )
    user = feast.Entity(name="user", join_keys=["user_id"], value_type=feast.ValueType.STRING)
    types = {"INT": Int64, "FLOAT": Float64}
    schema = [feast.Field(name=name, dtype=types[kind]) for name, kind in view["features"].items()]
    # Nothing is read of the file: rows are written to the online store directly.
    source = feast.FileSource(path=str(folder / "none.parquet"), timestamp_field="event_timestamp")
    store.apply(
        [user, feast.FeatureView(name=view["name"], entities=[user], ttl=ttl, schema=schema, source=source)]
    )
    numbers = numpy.load(folder / "numbers.npy")
    frame = pandas.DataFrame(numbers, columns=list(view["features"]))
    frame = frame.astype({name: "int64" for name, kind in view["features"].items() if kind == "INT"})
    frame["user_id"] = [f"user_{number:06d}" for number in range(len(frame))]
    frame["event_timestamp"] = pandas.Timestamp.now("UTC")
    store.write_to_online_store(view["name"], frame)
    return store


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
