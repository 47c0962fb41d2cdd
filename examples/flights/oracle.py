"""What must be in the store: the last values of every view, computed by pandas from the updates alone.

The rule is the store's first promise. For each feature on its own: the value with the latest event time
counts, and at equal times the one that arrived later.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from dataset import View, present


@dataclass(frozen=True)
class Fact:
    """A feature's value and, in unix milliseconds, when it was true."""

    value: object
    event_time_ms: int


def last_values(view: View) -> dict[str, dict[str, Fact]]:
    """Each entity's facts by feature; an entity without a value for a feature has no entry for it."""
    # A stable sort keeps the order of arrival among equal times, so the last one is the one that counts.
    return last_arrivals(view, view.updates.sort_values("event_time_s", kind="stable"))


def last_arrivals(view: View, updates: pd.DataFrame) -> dict[str, dict[str, Fact]]:
    """The facts that come last in the order of `updates`."""
    rows = {entity_id: {} for entity_id in updates["entity_id"].unique()}
    for feature, spec in view.schema.items():
        known = updates.loc[updates[feature].notna(), ["entity_id", "event_time_s", feature]]
        last = known.drop_duplicates("entity_id", keep="last")
        values = present(last[feature])
        for entity_id, event_time_s, value in zip(
            last["entity_id"], last["event_time_s"], values, strict=True
        ):
            rows[entity_id][feature] = Fact(typed(spec[0], value), int(event_time_s) * 1000)
    return rows


def typed(feature_type: str, value: object) -> object:
    """The value as a reader must get it."""
    match feature_type:
        case "INT" | "TIMESTAMP":
            return int(value)
        case "FLOAT":
            return float(value)
        case "BOOL":
            return bool(value)
        case "VECTOR":
            return [np.float32(component) for component in value]
        case _:
            return str(value)


def same(expected: object, got: object) -> bool:
    """Equal in value and in type. Components of a vector are compared as the float32 that the store keeps."""
    if isinstance(expected, list):
        return isinstance(got, list) and expected == [np.float32(component) for component in got]
    return type(got) is type(expected) and got == expected


def tensor(
    view: View, rows: dict[str, dict[str, Fact]], features: list[str], entity_ids: list[str]
) -> np.ndarray:
    """The matrix that FS.TENSOR must answer: float32, NaN where a value or the row is absent."""
    matrix = []
    for entity_id in entity_ids:
        facts = rows.get(entity_id, {})
        matrix.append([n for feature in features for n in numbers(view.schema[feature], facts.get(feature))])
    return np.array(matrix, dtype=np.float32)


def numbers(spec: tuple, fact: Fact | None) -> list:
    """A feature's columns in a tensor: a vector's components, a STRING's index in VALUES, else the number."""
    width = spec[1] if spec[0] == "VECTOR" else 1
    if fact is None:
        return [np.nan] * width
    if spec[0] == "STRING":
        return [spec[3:].index(fact.value)]
    return fact.value if spec[0] == "VECTOR" else [fact.value]
