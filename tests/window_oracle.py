"""Windows recomputed from the list of all events: the rule of the documentation once more, in the plainest Python.

`Window.expected` tells what a window must serve at a time: an object that accepts the right values and refuses all
others. One value is right for counts, first and last values, extremes, lists; an interval where a double rounds or a
sketch may err. Nothing is kept between calls and nothing is shared: each looks at every event.

A value is an int (INT, TIMESTAMP), float, bool, bytes (STRING), a tuple of floats (VECTOR: each the shortest decimal of
its float32) or the compact JSON text of a list (LIST).
"""

import base64
import json
import math
import struct
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Context, Decimal
from fractions import Fraction
from itertools import accumulate

SECOND_MS, MINUTE_MS, HOUR_MS, DAY_MS = 1_000, 60_000, 3_600_000, 86_400_000
DEFAULT_HOPS_MS = (
    *(n * SECOND_MS for n in (1, 5, 10, 30)),
    *(n * MINUTE_MS for n in (1, 5, 10, 30)),
    *(n * HOUR_MS for n in (1, 3, 6, 12)),
    DAY_MS,
)
LARGEST = sys.float_info.max
# Sums and means may be off by this share of the sum, or mean, of the magnitudes: of the result itself where all values
# have one sign. Where they cancel out, the result has no digits that a sum of doubles could promise.
ROUNDING = Fraction(1, 10**9)
# What a variance may be off by beyond ROUNDING of itself, as a share of the deviation times the root mean square. That
# is how far it moves when each value moves by a few of its own last bits; the square of the mean times the double's
# precision, which the textbook formula loses, is a million times more for 1e9 + small.
VARIANCE_ROUNDING = Fraction(16, 2**52)
# Decimal places beyond which a double has fewer digits than elsewhere.
SMALLEST_SQUARE = Fraction(1, 10**315)
SMALLEST_DECAYED = Fraction(1, 10**290)
PERCENTILE_ERROR = Fraction(1, 100) + ROUNDING
PRECISE = Context(prec=40, Emax=10**9, Emin=-(10**9))

NUMBERS = ("INT", "FLOAT", "BOOL", "TIMESTAMP")
COUNTED = ("INT", "FLOAT", "BOOL", "TIMESTAMP", "STRING")
ZERO_WITHOUT_EVENTS = {"COUNT", "SUM", "DECAYED_SUM", "APPROX_COUNT_DISTINCT"}
LISTS = {"LAST_K", "TOP_K", "HISTOGRAM"}


def default_hop_ms(window_ms: int, half_life_ms: int | None = None) -> int:
    """The hop of a window that names none."""
    longest = max(SECOND_MS, window_ms / 48)
    if half_life_ms is not None:
        longest = max(SECOND_MS, min(longest, half_life_ms))
    return max(hop for hop in DEFAULT_HOPS_MS if window_ms % hop == 0 and hop <= longest)


@dataclass(frozen=True)
class Event:
    """An update: its event time and the values it carries. Lists of events are in the order of arrival."""

    time_ms: int
    values: dict


@dataclass(frozen=True)
class Window:
    """A feature that aggregates.

    `argument`: half-life in ms, k or q of the functions that have one. `inputs`: for a COUNT without an input, the
    names of the view's INPUT features.
    """

    name: str
    function: str
    window_ms: int
    hop_ms: int
    input: str | None = None
    input_type: str | None = None
    argument: int | float | None = None
    weight: str | None = None
    inputs: tuple = ()

    @property
    def type(self) -> str:
        if self.function in LISTS:
            return "LIST"
        if self.function in ("COUNT", "APPROX_COUNT_DISTINCT"):
            return "INT"
        if self.function in ("FIRST", "LAST") or self.input_type.startswith("VECTOR"):
            return self.input_type
        return "FLOAT"

    @property
    def agg(self) -> str:
        """The words after AGG."""
        argument = f"{self.argument}ms" if self.function == "DECAYED_SUM" else self.argument
        words = [self.function, argument, self.input, self.weight and f"WEIGHT {self.weight}"]
        return " ".join(str(word) for word in words if word is not None)

    def hop(self, time_ms: int) -> int:
        """The number of the hop that holds a time."""
        return time_ms // self.hop_ms

    def span(self, at_ms: int) -> tuple[int, int]:
        """Begin and end of the window read at a time; the end is not in it."""
        return (at_ms - self.window_ms) // self.hop_ms * self.hop_ms, (self.hop(at_ms) + 1) * self.hop_ms

    def is_too_late(self, time_ms: int, anchor_ms: int) -> bool:
        """Whether this window alone refuses an event. `anchor_ms`: the entity's newest event time, or the clock."""
        return self.hop(time_ms) < self.hop(anchor_ms) - self.window_ms // self.hop_ms

    def carries(self, event: Event) -> bool:
        """Whether an event gives this window something."""
        names = self.inputs if self.input is None else (self.input,)
        if not any(event.values.get(name) is not None for name in names):
            return False
        return self.weight is None or event.values.get(self.weight) is not None

    def decay(self, time_ms: int, at_ms: int) -> float:
        """What an event of one time weighs in a sum as it is seen at another."""
        return 2.0 ** ((time_ms - at_ms) / self.argument) if self.function == "DECAYED_SUM" else 1.0

    def term(self, event: Event, at_ms: int) -> Fraction:
        """What an event adds to a sum as it is seen at a time."""
        return Fraction(float(event.values[self.input])) * Fraction(self.decay(event.time_ms, at_ms))

    def arrived(self, events: Iterable[Event], at_ms: int) -> list[Event]:
        """The window's events at a time, in the order of arrival."""
        start_ms, end_ms = self.span(at_ms)
        if self.function == "APPROX_COUNT_DISTINCT":
            # An event ahead of the clock counts from its arrival, and leaves with its event time.
            end_ms = math.inf
        return [event for event in events if start_ms <= event.time_ms < end_ms and self.carries(event)]

    def inside(self, events: Iterable[Event], at_ms: int) -> list[Event]:
        """The window's events at a time: in the order of event times, at equal times in the order of arrival."""
        return sorted(self.arrived(events, at_ms), key=lambda event: event.time_ms)

    def partial_sums(self, events: Iterable[Event], at_ms: int) -> list[Fraction]:
        """What a sum is on its way: within a hop after each arrival, then after each hop.

        The hops are the window's own, or the shortest that a window which shares its state might have.
        """
        held, found = self.arrived(events, at_ms), []
        for hop_ms in {self.hop_ms, 1}:
            hops = {}
            for event in held:
                hops.setdefault((event.time_ms // hop_ms + 1) * hop_ms, []).append(event)
            sums = []
            for end_ms in sorted(hops):
                terms = [self.term(event, end_ms) for event in hops[end_ms]]
                found += accumulate(terms)
                sums.append(sum(terms) * Fraction(self.decay(end_ms, at_ms)))
            found += accumulate(sums)
        return found

    def expected(self, events: Iterable[Event], at_ms: int) -> "Exactly | Between | Each | Json":
        """What the window serves at a time; `Exactly(None)`: its default, or nil."""
        held = self.inside(events, at_ms)
        if not held and self.function not in ZERO_WITHOUT_EVENTS | LISTS:
            return Exactly(None)
        values = [event.values[self.input] for event in held] if self.input else []
        match self.function:
            case "COUNT":
                return Exactly(len(held))
            case "FIRST":
                return Exactly(values[0])
            case "LAST":
                return Exactly(values[-1])
            case "LAST_K":
                newest = values[::-1][: self.argument]
                return Json([json_form(self.input_type, value) for value in newest])
            case "APPROX_COUNT_DISTINCT":
                # Exact: callers keep every window at 256 distinct values or fewer.
                return Exactly(len({stored(self.input_type, value) for value in values}))
            case "TOP_K" | "HISTOGRAM":
                return Json(ranked(self.input_type, values)[: self.argument])
            case "MEAN" if self.input_type.startswith("VECTOR"):
                return mean_vector(
                    values, [event.values[self.weight] if self.weight else 1 for event in held]
                )
        numbers = [float(value) for value in values]
        magnitude = exact_sum(map(abs, numbers))
        weight_max = 2**64 if self.function == "DECAYED_SUM" else 1  # No half-life is under 1/64 of the hop.
        ends = ends_left(self.partial_sums(events, at_ms)) if magnitude * weight_max > LARGEST else set()
        match self.function:
            case "SUM":
                value = exact_sum(numbers)
                return near(value, magnitude) if is_told(value, ends) else FINITE
            case "DECAYED_SUM":
                terms = [self.term(event, at_ms) for event in held]
                value = sum(terms)
                return near(value, sum(map(abs, terms)), SMALLEST_DECAYED) if is_told(value, ends) else FINITE
            case "MEAN":
                n = len(numbers)
                return FINITE if ends else near(exact_sum(numbers) / n, magnitude / n)
            case "MIN":
                return Exactly(min(numbers))
            case "MAX":
                return Exactly(max(numbers))
            case "VAR_SAMP" | "STDDEV_SAMP" if len(numbers) == 1:
                return Exactly(None)
            case "VAR_POP" | "VAR_SAMP" | "STDDEV_POP" | "STDDEV_SAMP":
                divisor = len(numbers) - self.function.endswith("SAMP")
                is_deviation = self.function.startswith("STDDEV")
                return replace(FINITE, low=0.0) if ends else spread(numbers, divisor, is_deviation)
            case "APPROX_PERCENTILE":
                value = sorted(numbers)[math.floor(self.argument * (len(numbers) - 1))]
                return within_percent(value)
        raise ValueError(self.function)


# What accepts a value


@dataclass(frozen=True)
class Exactly:
    """One value. Zeros of both signs are one."""

    value: object

    def accepts(self, got) -> bool:
        return type(got) is type(self.value) and got == self.value


@dataclass(frozen=True)
class Between:
    """A double from `low` to `high`."""

    low: float
    high: float

    def accepts(self, got) -> bool:
        return type(got) is float and self.low <= got <= self.high


# Of what left the range of a double on its way, no more is promised.
FINITE = Between(-LARGEST, LARGEST)


@dataclass(frozen=True)
class Each:
    """A vector, each number with its own interval."""

    parts: tuple

    def accepts(self, got) -> bool:
        return (
            type(got) is tuple
            and len(got) == len(self.parts)
            and all(part.accepts(x) for part, x in zip(self.parts, got, strict=True))
        )


@dataclass(frozen=True)
class Json:
    """A JSON text that says this list."""

    value: list

    def accepts(self, got) -> bool:
        return type(got) is str and same_json(self.value, parsed(got))


def parsed(text: str):
    """JSON as Python values; `-0` stays a float, which has that number."""
    return json.loads(text, parse_int=lambda digits: -0.0 if digits == "-0" else int(digits))


def same_json(expected, got) -> bool:
    if isinstance(expected, list):
        return (
            isinstance(got, list)
            and len(got) == len(expected)
            and all(same_json(e, g) for e, g in zip(expected, got, strict=True))
        )
    if type(expected) is float:
        # A whole FLOAT is written without a point.
        return type(got) in (int, float) and repr(float(got)) == repr(expected)
    return type(got) is type(expected) and got == expected


# Forms of a value


def stored(type_: str, value) -> bytes:
    """The stored form, by which values are told apart and ties are ordered."""
    match type_.split()[0]:
        case "FLOAT":
            return shortest(value).encode()
        case "BOOL":
            return b"1" if value else b"0"
        case "STRING":
            return value
        case "VECTOR":
            return struct.pack(f"<{len(value)}f", *value)
        case "LIST":
            return value.encode()
    return str(value).encode()


def shortest(number: float) -> str:
    """The shortest decimal that reads back the same: no `.0`, an exponent only from 1e16 on and below 1e-5."""
    text = repr(number).removesuffix(".0")
    if "e" not in text:
        return text
    digits, exponent = text.split("e")
    return format(Decimal(text), "f") if int(exponent) == -5 else f"{digits}e{int(exponent)}"


def json_form(type_: str, value):
    """What a JSON reader makes of a value."""
    match type_.split()[0]:
        case "STRING":
            try:
                return value.decode()
            except UnicodeDecodeError:
                return {"$base64": base64.b64encode(value).decode()}
        case "VECTOR":
            return list(value)
        case "LIST":
            return parsed(value)
    return value


def float32(number: float) -> float:
    """The float32 nearest to a number, whole."""
    return struct.unpack("<f", struct.pack("<f", number))[0]


# Arithmetic


def exact_sum(numbers: Iterable[float]) -> Fraction:
    numbers = list(numbers)
    try:
        return Fraction(math.fsum(numbers))
    except OverflowError:
        return sum(map(Fraction, numbers), Fraction(0))


def capped(number: Fraction) -> float:
    """As a double; beyond its range the largest one."""
    return float(max(min(number, Fraction(LARGEST)), -Fraction(LARGEST)))


def near(value: Fraction, magnitude: Fraction, floor: Fraction = Fraction(0)) -> Between:
    allowed = ROUNDING * magnitude + floor
    return Between(capped(value - allowed), capped(value + allowed))


def ends_left(partial_sums: Iterable[Fraction]) -> set[bool]:
    """Which ends of a double's range sums have left on their way; True: the upper one."""
    return {partial > 0 for partial in partial_sums if abs(partial) > LARGEST}


def is_told(value: Fraction, ends: set[bool]) -> bool:
    """Whether a sum is what it is, or the largest double of its sign. It stays beyond the one end that it has left."""
    return not ends or (abs(value) > LARGEST and ends == {value > 0})


def within_percent(value: float) -> "Between | Exactly":
    if value == 0:
        return Exactly(0.0)
    off = PERCENTILE_ERROR * abs(Fraction(value))
    return Between(capped(Fraction(value) - off), capped(Fraction(value) + off))


def spread(numbers: list[float], divisor: int, is_deviation: bool) -> "Between | Exactly":
    """Variance or standard deviation, exactly: all numbers are whole over one power of two."""
    ratios = [number.as_integer_ratio() for number in numbers]
    unit = max(denominator for _, denominator in ratios)
    whole = [numerator * (unit // denominator) for numerator, denominator in ratios]
    n, total, squares = len(whole), sum(whole), sum(x * x for x in whole)
    deviations = Fraction(n * squares - total * total, n * unit * unit)
    if deviations == 0:
        return Exactly(0.0)
    variance = deviations / divisor
    if deviations > LARGEST:
        # The sum that it is made of leaves the range of a double.
        return replace(FINITE, low=0.0)
    allowed = ROUNDING * variance + SMALLEST_SQUARE
    allowed += VARIANCE_ROUNDING * Fraction(root(variance * Fraction(squares, n * unit * unit)))
    low, high = max(variance - allowed, Fraction(0)), variance + allowed
    return Between(root(low), root(high)) if is_deviation else Between(capped(low), capped(high))


def root(number: Fraction) -> float:
    quotient = PRECISE.divide(Decimal(number.numerator), Decimal(number.denominator))
    return float(PRECISE.sqrt(quotient))


def mean_vector(vectors: list[tuple], weights: list) -> "Each | Exactly":
    weights = [Fraction(weight) for weight in weights]
    total = sum(weights, Fraction(0))
    if total == 0:
        return Exactly(None)
    parts = []
    for column in zip(*vectors, strict=True):
        terms = [Fraction(float32(x)) * weight for x, weight in zip(column, weights, strict=True)]
        mean, magnitude = sum(terms) / total, sum(map(abs, terms)) / total
        # It is served as a float32.
        allowed = abs(mean) / 2**24 + Fraction(1, 2**150) + ROUNDING * magnitude
        parts.append((mean - allowed, mean + allowed))
    # A number is served as the shortest decimal of its float32, which lies within the same rounding once more.
    return Each(
        tuple(Between(float(low - abs(low) / 2**24), float(high + abs(high) / 2**24)) for low, high in parts)
    )


def ranked(type_: str, values: list) -> list:
    """Values with their counts: the most frequent first, equals in the order of their stored bytes."""
    counts = Counter(stored(type_, value) for value in values)
    of_form = {stored(type_, value): value for value in values}
    order = sorted(counts, key=lambda form: (-counts[form], form))
    return [[json_form(type_, of_form[form]), counts[form]] for form in order]
