"""Rows: the views that are measured and random values for their entities.

Both sides of a comparison read the same row, or write the same values. What is written by hand lies under
`nf:` instead of `fs:`, as long as the module's own keys but of no interest to the module.
"""

import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from load import command

ENTITIES = 100_000
LOG_LENGTH_MAX = 10_000
TTL = "7d"
MINUTE_MS, HOUR_MS, WEEK_MS = 60_000, 3_600_000, 7 * 86_400_000
TTL_MS = WEEK_MS
COUNTRIES = ["DE", "FR", "US", "BR", "IN", "JP", "NG", "CA", "MX", "ID", "PL", "SE", "TR", "VN", "ZA", "AU"]

Row = dict[str, str]

PROFILE = {
    "age": "INT",
    "score": "FLOAT",
    "country": "STRING",
    "is_premium": "BOOL",
    "last_seen": "TIMESTAMP",
    "watch_count": "INT",
    "avg_session": "FLOAT",
}
NUMBERS = {
    "views": "INT",
    "clicks": "INT",
    "click_rate": "FLOAT",
    "dwell_time": "FLOAT",
    "price_mean": "FLOAT",
    "rating": "FLOAT",
    "age_days": "INT",
}


@dataclass(frozen=True)
class View:
    """A feature view of the benchmark. Names are of one length, so that keys are too."""

    name: str
    features: dict[str, str]
    ttl: bool
    entity: str = field(default="user", kw_only=True)
    packed: bool = field(default=False, kw_only=True)

    def definition(self, *options: str | int) -> list[str]:
        words = ["FS.REGISTER", self.name, "ENTITY", self.entity]
        words += ["TTL", TTL] if self.ttl else []
        words += ["STORAGE", "PACKED"] if self.packed else []
        words += [*map(str, options), "SCHEMA"]
        return words + [word for feature in self.features.items() for word in feature]

    def as_packed(self) -> "View":
        """The same with packed rows, under a name of the same length."""
        return replace(self, name="pack" + self.name[4:], packed=True)

    def key(self, entity: str) -> str:
        return f"fs:v1:{self.name}:{entity}"

    def hand_key(self, entity: str) -> str:
        return f"nf:v1:{self.name}:{entity}"

    @property
    def stream(self) -> str:
        return f"fs:stream:{self.name}"

    @property
    def hand_stream(self) -> str:
        return f"nf:stream:{self.name}"

    @property
    def age(self) -> str:
        """How titles tell the views apart."""
        return f"TTL {TTL}" if self.ttl else "no TTL"

    def random_row(self, source: random.Random) -> Row:
        """The values of all features as text, as the store writes them."""
        return {feature: random_value(feature, kind, source) for feature, kind in self.features.items()}

    def json(self, row: Row) -> str:
        """The features as the log writes them."""
        return json.dumps(self.typed(row), separators=(",", ":"))

    def typed(self, row: Row) -> dict:
        return {feature: typed_value(self.features[feature], text) for feature, text in row.items()}


@dataclass(frozen=True)
class WindowView(View):
    """A view of `windows` over its one feature, which is an input: a window's name to its type and rule."""

    windows: dict[str, str]

    def definition(self, *options: str | int) -> list[str]:
        words = [*super().definition(*options), "INPUT"]
        return words + [word for name, rule in self.windows.items() for word in (name, *rule.split())]

    def state_key(self, entity: str) -> str:
        return f"fs:w1:{self.name}:{entity}"


def typed_value(kind: str, text: str) -> int | float | bool | str:
    match kind:
        case "INT" | "TIMESTAMP":
            return int(text)
        case "FLOAT":
            return float(text)
        case "BOOL":
            return text == "1"
    return text


PROFILE_TTL = View("user_profile", PROFILE, ttl=True)
PROFILE_LASTING = View("user_lasting", PROFILE, ttl=False)
NUMBERS_TTL = View("user_numbers", NUMBERS, ttl=True)
NUMBERS_LASTING = View("user_metrics", NUMBERS, ttl=False)
STREAMED = View("user_streams", PROFILE, ttl=True)
FIFTY_TTL = View("user_factors", {f"factor_{at:02}": "FLOAT" for at in range(50)}, ttl=True)
SIX = {name: NUMBERS[name] for name in list(NUMBERS)[:6]}
RANKING_USERS = View("user_context", SIX, ttl=True)
RANKED_ITEMS = View("item_numbers", SIX, ttl=True, entity="item")

INPUT = {"x": "FLOAT"}
FUNCTIONS = {"count": "INT AGG COUNT", "sum": "FLOAT AGG SUM x", "mean": "FLOAT AGG MEAN x"}


def windows(functions: list[str], lengths: list[str], *hop: str) -> dict[str, str]:
    """Each function over each length of time."""
    return {
        f"{function}_{length}": " ".join([FUNCTIONS[function], "WINDOW", length, *hop])
        for length in lengths
        for function in functions
    }


THREE_OF_THREE = windows(["count", "sum", "mean"], ["1h", "24h", "7d"])
WINDOWED = WindowView("user_windows", INPUT, False, THREE_OF_THREE)
WINDOWED_HOURLY = WindowView("user_history", INPUT, False, windows(["count", "sum"], ["7d"], "HOP", "1h"))
WINDOWED_SUM = WindowView("user_summary", INPUT, False, windows(["count", "sum"], ["7d"]))


def entity_id(number: int, entity: str = "user") -> str:
    return f"{entity}_{number:06d}"


def random_entities(count: int, seed: int) -> list[str]:
    source = random.Random(seed)
    return [entity_id(source.randrange(ENTITIES)) for _ in range(count)]


def random_value(feature: str, kind: str, source: random.Random) -> str:
    match kind:
        case "INT":
            return str(source.randrange(18, 90) if feature == "age" else source.randrange(5000))
        case "FLOAT":
            return shortest(
                round(source.random(), 6) if feature == "score" else round(source.random() * 1000, 2)
            )
        case "STRING":
            return source.choice(COUNTRIES)
        case "BOOL":
            return source.choice("01")
        case "TIMESTAMP":
            return str(int(time.time() * 1000) - source.randrange(30 * 86_400_000))
    raise ValueError(kind)


def shortest(number: float) -> str:
    return repr(number).removesuffix(".0")


def all_rows(view: View, seed: int) -> Iterator[tuple[str, Row]]:
    """Every entity with random values."""
    source = random.Random(seed)
    for number in range(ENTITIES):
        yield entity_id(number), view.random_row(source)


def publish(view: View, entity: str, row: Row, *options: str) -> bytes:
    pairs = [word for pair in row.items() for word in pair]
    return command("FS.PUBLISH", view.key(entity), *options, *pairs)


def write_by_hand(view: View, key: str, row: Row) -> bytes:
    """The same hash as a published row, by HSET and PEXPIRE. An operation of two commands with a TTL, else of
    one.
    """
    pairs = [word for pair in row.items() for word in pair]
    written = command("HSET", key, *pairs, "_updated_at", now_text(), "_feature_view", view.name)
    return written + command("PEXPIRE", key, TTL_MS) if view.ttl else written


def now_text() -> str:
    """Now in unix seconds, as rows and log entries carry it."""
    return f"{time.time():.3f}"
