"""Tables of numbers: all rows of one view as a matrix, where rows are many or many are read at a time."""

import numpy
import rows
from events import Stream, check_nil
from load import PIPELINE, Workload, pipelines
from measure import Bench
from reading import write_all
from rows import Row, View
from servers import Server
from writing import check_ids

CHUNK_ROWS = 10_000 * PIPELINE
HUNDREDTHS_MAX = 500_000


class Table:
    """Rows of random numbers, by number or by entity. `numbers`: a row each, as they were written."""

    def __init__(self, view: View, numbers: numpy.ndarray):
        self.view, self.numbers = view, numbers

    @classmethod
    def random(cls, view: View, count: int, seed: int) -> "Table":
        hundredths = numpy.random.default_rng(seed).integers(1, HUNDREDTHS_MAX, (count, len(view.features)))
        is_float = [kind == "FLOAT" for kind in view.features.values()]
        return cls(view, numpy.where(is_float, hundredths / 100, hundredths // 100))

    def as_packed(self) -> "Table":
        """The same rows in a view of packed rows."""
        return Table(self.view.as_packed(), self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, entity: str) -> Row:
        return self.row(int(entity.rpartition("_")[2]))

    def row(self, number: int) -> Row:
        texts = map(rows.shortest, self.numbers[number].tolist())
        return dict(zip(self.view.features, texts, strict=True))

    def entity(self, number: int) -> str:
        return rows.entity_id(number, self.view.entity)

    def key(self, number: int) -> str:
        return self.view.key(self.entity(number))

    def float32(self, numbers) -> numpy.ndarray:
        """What a model reads of the rows with these numbers."""
        return self.numbers[numbers].astype("<f4")

    def load(self, bench: Bench, server: Server, *options: str | int) -> None:
        """Registers the view with these options and writes every row; by hand if there is no module."""
        bench.say(f"loading {len(self):,} rows of {self.view.name}")
        if bench.module:
            server.call(*self.view.definition(*options))
        for begin in range(0, len(self), CHUNK_ROWS):
            written = range(begin, min(begin + CHUNK_ROWS, len(self)))
            if bench.module:
                write_all(server, publishing(self, written, "NOLOG"))
                continue
            requests = pipelines(
                rows.write_by_hand(self.view, self.key(number), self.row(number)) for number in written
            )
            write_all(server, Stream("HSET", requests, {}, replies=2 if self.view.ttl else 1))


def publishing(table: Table, numbers, *options: str) -> Workload:
    """FS.PUBLISH of the rows with these numbers."""
    requests = pipelines(
        rows.publish(table.view, table.entity(number), table.row(number), *options) for number in numbers
    )
    check = check_nil if "NOLOG" in options else check_ids
    return Workload("FS.PUBLISH", requests, {"fs.publish": 1}, check=check)
