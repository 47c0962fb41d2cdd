"""Compares every row of the store with the rows that the updates must come to."""

import valkey
from dataset import View, batches
from oracle import Fact, same

BATCH_ROWS = 200
DIFFERENCES_SHOWN = 20


class Comparison:
    """Counts what was compared, prints and counts what differs."""

    def __init__(self) -> None:
        self.rows = 0
        self.values = 0
        self.absent = 0
        self.event_times = 0
        self.differences = 0

    def check(self, what: str, expected: object, got: object) -> None:
        """One thing that must be so."""
        if expected != got:
            self.difference(f"{what}: expected {expected!r}, got {got!r}")

    def difference(self, text: str) -> None:
        self.differences += 1
        if self.differences <= DIFFERENCES_SHOWN:
            print(f"  DIFFERENT {text}")

    def view(self, client: valkey.Valkey, view: View, rows: dict[str, dict[str, Fact]]) -> None:
        """Entities by FS.SCAN, values and their types by FS.MGET, event times by FS.EXPLAIN."""
        stored = scan(client, view)
        for entity_id in sorted(stored ^ rows.keys()):
            self.difference(
                f"{view.name} {entity_id}: {'not in' if entity_id in rows else 'only in'} the store"
            )
        for batch in batches(rows.items(), BATCH_ROWS):
            keys = [view.key(entity_id) for entity_id, _ in batch]
            pipeline = client.pipeline(transaction=False)
            pipeline.execute_command("FS.MGET", "*", *keys)
            for key in keys:
                pipeline.execute_command("FS.EXPLAIN", key)
            vectors, *explanations = pipeline.execute()
            for (entity_id, facts), values, explanation in zip(batch, vectors, explanations, strict=True):
                self.row(view, entity_id, facts, values, explanation)

    def row(
        self, view: View, entity_id: str, facts: dict[str, Fact], values: list, explanation: dict
    ) -> None:
        self.rows += 1
        if len(values) != len(view.schema):
            self.difference(
                f"{view.name} {entity_id}: {len(view.schema)} features expected, got {len(values)}"
            )
            return
        event_times = {feature["feature"]: feature["event_time_ms"] for feature in explanation["features"]}
        for feature, got in zip(view.schema, values, strict=True):
            where = f"{view.name} {entity_id} {feature}"
            fact = facts.get(feature)
            if fact is None:
                self.absent += 1
                self.check(where, None, got)
                continue
            self.values += 1
            if not same(fact.value, got):
                self.difference(f"{where}: expected {fact.value!r}, got {got!r}")
            # Time 0 stands for the server's own clock: there is nothing to compare with.
            if fact.event_time_ms:
                self.event_times += 1
                self.check(f"{where} event time", fact.event_time_ms, event_times.get(feature))


def scan(client: valkey.Valkey, view: View) -> set[str]:
    """The ids of all entities that have a row or window state."""
    entity_ids, cursor = set(), "0"
    while True:
        cursor, some = client.execute_command("FS.SCAN", view.name, cursor, "COUNT", 1000)
        entity_ids.update(some)
        if cursor == "0":
            return entity_ids
