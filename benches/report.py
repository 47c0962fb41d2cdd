"""Results: medians with their spread, a verdict on each target, as Markdown and as JSON."""

import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "results"


@dataclass
class Series:
    """The measurements of one side, one a round."""

    values: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def text(self, digits: int = 2) -> str:
        if not self.values:
            return "-"
        low, high = min(self.values), max(self.values)
        return f"{self.median:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"

    def document(self) -> dict:
        if not self.values:
            return {"rounds": 0}
        median, low, high = self.median, min(self.values), max(self.values)
        return {"rounds": len(self.values), "median": median, "min": low, "max": high, "values": self.values}


@dataclass
class Result:
    """One row of the table.

    `native` and `module`: one value a round, in `unit`; `module` is empty if only the native side ran.
    `compared`: one figure a round of what the target speaks of (`relation`: mostly module divided by native).
    `reach`: the target, None for rows that only inform. `at_most`: whether the target is an upper bound.
    `operations`: how many operations each measurement of a side stands for.
    """

    bench: str
    title: str
    server: str
    unit: str
    native: Series
    module: Series
    operations: int
    reach: float | None = None
    at_most: bool = True
    relation: str = "module / native"
    digits: int = 2
    details: dict = field(default_factory=dict)

    @property
    def compared(self) -> Series:
        pairs = zip(self.native.values, self.module.values, strict=bool(self.module.values))
        if self.relation == "module - native":
            return Series([module - native for native, module in pairs])
        if self.relation == "native / module":
            return Series([native / module for native, module in pairs])
        return Series([module / native for native, module in pairs])

    @property
    def met(self) -> bool | None:
        """None where there is no target or nothing was measured."""
        if self.reach is None or not self.module.values:
            return None
        return self.compared.median <= self.reach if self.at_most else self.compared.median >= self.reach

    def document(self) -> dict:
        return {
            "bench": self.bench,
            "title": self.title,
            "server": self.server,
            "unit": self.unit,
            "native": self.native.document(),
            "module": self.module.document(),
            "relation": self.relation,
            "compared": self.compared.document(),
            "reach": self.reach,
            "at_most": self.at_most,
            "met": self.met,
            "operations": self.operations,
            "details": self.details,
        }

    def cells(self) -> list[str]:
        signs = {"module / native": "", "native / module": "x"}
        sign = signs.get(self.relation, " " + self.unit)
        reach = "-" if self.reach is None else f"{'<=' if self.at_most else '>='} {self.reach:g}{sign}"
        met = {None: "-", True: "yes", False: "NO"}[self.met]
        count = f"{self.operations:,} x {len(self.native.values)}"
        native, module = self.native.text(self.digits), self.module.text(self.digits)
        return [
            self.server,
            self.title,
            self.unit,
            count,
            native,
            module,
            self.compared.text(3) + sign,
            reach,
            met,
        ]


COLUMNS = ["Valkey", "what", "unit", "operations x rounds", "native", "module", "compared", "reach", "met"]
NOTES = """\
Native and module ran in turn on the same server process; figures are medians with the smallest and the largest
of the rounds. `compared` is module divided by native (or minus, where a unit follows; or native divided by module,
where an x follows), round by round. CPU is that of all threads of the server, the kernel's share included. Rows
without a target inform."""


def markdown(results: list[Result], setting: dict) -> str:
    lines = ["# Benchmarks", "", *(f"- {name}: {value}" for name, value in setting.items()), ""]
    lines += [NOTES, "", table_line(COLUMNS), table_line(["---"] * len(COLUMNS))]
    lines += [table_line(result.cells()) for result in results]
    details = [result for result in results if result.details]
    if details:
        lines += ["", "Beside it:", ""]
        for result in details:
            text = ", ".join(f"{name} {value}" for name, value in result.details.items())
            lines.append(f"- {result.server}, {result.title}: {text}")
    return "\n".join(lines) + "\n"


def table_line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def write(results: list[Result], setting: dict) -> None:
    FOLDER.mkdir(exist_ok=True)
    document = {"setting": setting, "results": [result.document() for result in results]}
    (FOLDER / "latest.json").write_text(json.dumps(document, indent=1) + "\n")
    (FOLDER / "latest.md").write_text(markdown(results, setting))


def now_utc() -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
