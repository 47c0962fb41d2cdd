"""Many rows for the tests of the column cache, and what it holds of them."""

import json

from column_cases import figures
from windowed_view import fs

from server import await_until

QUICK = {"fs.sweep-interval": 20}
BATCH = 400


def define(
    client, view: str = "v", schema: str = "a INT DEFAULT 3 f FLOAT c STRING VALUES 2 x y", options: str = ""
) -> None:
    """A view, and a service `of_{view}` that reads all its numbers."""
    fs(client, f"FS.REGISTER {view} ENTITY user {options} SCHEMA {schema}")
    set_service(client, view, schema)


def set_service(client, view: str, schema: str, name: str | None = None) -> None:
    types = ("INT", "FLOAT", "VECTOR", "STRING")
    words = schema.split()
    features = [f"{view}:{words[i - 1]}" for i, word in enumerate(words) if i and word in types]
    fs(
        client,
        f"FS.SERVICE SET {name or 'of_' + view} FORMAT TENSOR WITHSTATUS FEATURES {len(features)}",
        *features,
    )


def ids_of(count: int, start: int = 0, length: int = 0) -> list[bytes]:
    return [b"u%d" % i + b"-" * (length - len(b"u%d" % i)) for i in range(start, start + count)]


def batches(ids: list[bytes], size: int = BATCH):
    for begin in range(0, len(ids), size):
        yield ids[begin : begin + size]


def publish(
    client, ids: list[bytes], view: str = "v", row=lambda i: {"a": i, "f": i / 4, "c": "xy"[i % 2]}
) -> None:
    for batch in batches(ids):
        words = [
            word
            for i, id_ in enumerate(batch)
            for word in (b"fs:v1:%s:%s" % (view.encode(), id_), json.dumps(row(i)))
        ]
        client.execute_command("FS.MPUBLISH", *words)


def serve(client, ids: list[bytes], view: str = "v"):
    return client.execute_command("FS.SERVE", f"of_{view}", *ids)


def serve_all(client, ids: list[bytes], view: str = "v") -> list:
    return [serve(client, batch, view) for batch in batches(ids)]


def hits_and_misses(server, read) -> tuple[int, int]:
    """What reading adds to them."""
    before = figures(server)
    read()
    after = figures(server)
    return after["hits"] - before["hits"], after["misses"] - before["misses"]


def await_warm(server, rows: int) -> None:
    """Waits until the cache was filled without being asked."""
    await_until(
        lambda: figures(server)["rows"] == rows and not figures(server)["warming"],
        30,
        f"the cache of {server} to hold {rows} rows",
    )
