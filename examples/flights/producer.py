"""A producer: writes the updates of one view to its stream with plain XADDs, as any client would.

    python producer.py VIEW PORT

It knows the stream's name and its four fields, and no command of the feature store. It says `ready N` when it
has loaded its N updates. Then it reads how many of them are to be written until the next halt, a line a halt: so
several producers start and halt together.
"""

import json
import sys
from collections.abc import Iterator
from itertools import islice

import dataset
import valkey

BATCH_ENTRIES = 500


def entries(view: dataset.View) -> Iterator[dict]:
    """Yields the fields of one stream entry after another."""
    encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
    for entity_id, event_time_s, features in view.records():
        yield {
            "entity_id": entity_id,
            "features": encode(features),
            "timestamp": event_time_s,
            "feature_view": view.name,
        }


def main() -> None:
    view = dataset.load(sys.argv[1])
    client = valkey.Valkey(host="127.0.0.1", port=int(sys.argv[2]), socket_timeout=60)
    print("ready", len(view.updates), flush=True)
    rest, written = entries(view), 0
    for line in iter(sys.stdin.readline, ""):
        for batch in dataset.batches(islice(rest, int(line) - written), BATCH_ENTRIES):
            pipeline = client.pipeline(transaction=False)
            for fields in batch:
                pipeline.xadd(f"fs:stream:{view.name}", fields)
            pipeline.execute()
            written += len(batch)


if __name__ == "__main__":
    main()
