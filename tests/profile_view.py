"""The view `profile` of the tests on consumers: writing entries, reading rows, and the oracle.


The oracle is a simple reading of the contract: per feature the value with the greatest event time, at equal times the
later arrival. It is computed here, from what was sent or from XRANGE; rows and groups are read with native commands.
"""

import contextlib
import json
import os

import valkey

from server import await_until

LOG, DEAD_LETTERS, GROUP = "fs:stream:profile", "fs:dlq:profile", "fs"
MODULE = os.environ.get("FS_MODULE")
SCHEMA = ("n", "INT", "score", "FLOAT", "label", "STRING")
# A day in the past: never FUTURE, and older than anything unstamped.
EPOCH_S = 1_760_000_000


def register(client, *options, view="profile", version=1, schema=SCHEMA):
    words = ("VERSION", version, "ENTITY", "user", *options, "SCHEMA", *schema)
    assert client.execute_command("FS.REGISTER", view, *words) == b"OK"


def entry(entity, features, timestamp=None):
    """The fields of an XADD as the contract wants them; the view may be left out."""
    fields = {
        "entity_id": entity,
        "features": features if isinstance(features, str) else json.dumps(features),
    }
    return fields | ({} if timestamp is None else {"timestamp": timestamp})


def add(client, entity, features, timestamp=None, log=LOG, id="*"):
    return client.xadd(log, entry(entity, features, timestamp), id=id)


def add_many(client, count, entities=50, start=0, log=LOG):
    with client.pipeline(transaction=False) as pipeline:
        for i in range(start, start + count):
            add(pipeline, f"u{i % entities}", {"n": i}, EPOCH_S + i, log=log)
        return pipeline.execute()


def figures(client, *view):
    """FS.INFO of the view `profile` or another one."""
    return pairs(client.execute_command("FS.INFO", *(view or ("profile",))))


def module_figures(client):
    return pairs(client.execute_command("FS.INFO"))


def pairs(flat):
    return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def consumer(client, action, view="profile"):
    assert client.execute_command("FS.CONSUMER", action, view) == b"OK"


def group(client, log=LOG):
    """The group `fs` as XINFO GROUPS tells it; {} where there is none."""
    with contextlib.suppress(valkey.ResponseError):
        return next((g for g in client.xinfo_groups(log) if g["name"] == b"fs"), {})
    return {}


def entries_read(client):
    return group(client).get("entries-read") or 0


def await_drained(client, log=LOG, timeout_s=30):
    """Waits until the group says that all was read: no lag, and as many entries read as were ever added."""

    def is_drained():
        at = group(client, log)
        return at.get("lag") == 0 and at["entries-read"] == client.xinfo_stream(log)["entries-added"]

    await_until(is_drained, timeout_s, what=f"the group fs to reach the end of {log}")


def newest(arrivals):
    """Rows by the contract, from (entity, {feature: value}, event time) in the order of arrival."""
    held = {}
    for entity, features, time_s in arrivals:
        row = held.setdefault(entity, {})
        for feature, value in features.items():
            if feature not in row or time_s >= row[feature][0]:
                row[feature] = (time_s, value)
    rows = {entity: {f: v for f, (_, v) in row.items() if v is not None} for entity, row in held.items()}
    return {entity: row for entity, row in rows.items() if row}


def rows_by_entries(client, since="-", until="+", log=LOG):
    """What the rows must hold by the entries that are in the stream."""
    return newest(
        (fields[b"entity_id"].decode(), json.loads(fields[b"features"]), float(fields[b"timestamp"]))
        for _, fields in client.xrange(log, since, until)
    )


def rows(client, prefix="fs:v1:profile:"):
    """The rows as HGETALL tells them, the row's own fields left out."""
    kinds = {"n": int, "score": float}
    keys = list(client.scan_iter(match=f"{prefix}*", count=1000))
    with client.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.hgetall(key)
        found = {}
        for key, row in zip(keys, pipeline.execute(), strict=True):
            fields = {f.decode(): v.decode() for f, v in row.items() if not f.startswith(b"_")}
            if fields:
                found[key.decode().removeprefix(prefix)] = {
                    f: kinds.get(f, str)(v) for f, v in fields.items()
                }
    return found


def digests(client, prefix="fs:v1:profile:"):
    return {key: client.execute_command("DEBUG", "DIGEST-VALUE", key) for key in client.keys(f"{prefix}*")}
