"""Generated cases of windows: a view, the events of one entity, and what each read of it must answer.

A case is made from its number alone, and the clock, where its events lie around it: random windows, a random stream of
events, fed by every way in, and times to read at. The report of a failure lists its commands.
"""

import json
import random
import struct
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
from window_oracle import (
    COUNTED,
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    NUMBERS,
    SECOND_MS,
    Event,
    Exactly,
    Window,
    default_hop_ms,
    json_form,
)

EVENTS_MAX = 150  # So no window ever holds 256 distinct values: all functions but the percentile are exact.
AHEAD_MS_MAX = 4 * MINUTE_MS  # Less than fs.max-clock-skew.
AHEAD_HOPS_MAX = 16_000  # Farther ahead of the clock, an event may push out what is older.
LIFE_MS_MIN = 5 * MINUTE_MS  # So long a state outlives its last event at least: reads may come that late.
ERAS_MS = (1_000_000_000_000, 1_583_020_799_000, 1_735_689_600_000, 1_760_000_000_000)

ANY = (*COUNTED, "VECTOR 3", "LIST")
VECTORS = ("VECTOR 3", "VECTOR 1")
# What a window is made of: a function, and the types that its input may have.
KINDS = {
    "COUNT": (None,),
    "COUNT input": ANY,
    "SUM": NUMBERS,
    "DECAYED_SUM": NUMBERS,
    "MEAN": NUMBERS,
    "MIN": NUMBERS,
    "MAX": NUMBERS,
    "VAR_POP": NUMBERS,
    "VAR_SAMP": NUMBERS,
    "STDDEV_POP": NUMBERS,
    "STDDEV_SAMP": NUMBERS,
    "FIRST": ANY,
    "LAST": ANY,
    "LAST_K": ANY,
    "APPROX_COUNT_DISTINCT": ANY,
    "APPROX_PERCENTILE": NUMBERS,
    "TOP_K": COUNTED,
    "HISTOGRAM": COUNTED,
    "MEAN vector": VECTORS,
    "MEAN vector WEIGHT": VECTORS,
}
DEFAULTS = {
    "INT": 7,
    "FLOAT": -1.5,
    "BOOL": True,
    "STRING": b"none",
    "TIMESTAMP": 1_600_000_000_000,
    "LIST": "[0]",
    "VECTOR 3": (0.5, -1.0, 0.1),
    "VECTOR 1": (0.5,),
}
SPANS = (
    (MINUTE_MS, None),
    (10 * MINUTE_MS, None),
    (HOUR_MS, None),
    (HOUR_MS, MINUTE_MS),
    (90 * MINUTE_MS, 5 * MINUTE_MS),
    (2 * HOUR_MS, 2 * HOUR_MS),
    (DAY_MS, None),
    (DAY_MS, HOUR_MS),
    (7 * DAY_MS, None),
    (7 * DAY_MS, HOUR_MS),
    (30 * DAY_MS, 12 * HOUR_MS),
    (365 * DAY_MS, None),
)


# Values


FLOATS = ("plain", "positive", "huge", "tiny", "far from zero", "few", "mixed")
INTS = ("few", "huge", "far from zero")
TEXTS = (b"", b"a", b"b", "grün ☃".encode(), b'say "\\n"\n', b"\xff\x00\xfe", b"x" * 80, b"10", b"9")
LISTS = ("[]", "[1]", '["a",null,[true,2.5]]', "[[],[{}]]")


def float_of(draw: random.Random, family: str) -> float:
    match family:
        case "positive":
            return draw.expovariate(1 / 40)
        case "huge":
            return draw.choice([-1e300, 1e300, draw.uniform(-1e300, 1e300)])
        case "tiny":
            return draw.choice([1e-300, -1e-300, draw.uniform(-1e-300, 1e-300)])
        case "far from zero":
            return 1e9 + draw.random()
        case "few":
            return draw.choice([0.0, -0.0, 1.0, -1.0, 0.1, 1e16, 1.5e-5])
        case "mixed":
            return float_of(draw, draw.choice(FLOATS[:-1]))
    return round(draw.gauss(0, 100), draw.choice([0, 2, 15]))


def int_of(draw: random.Random, family: str) -> int:
    match family:
        case "huge":
            return draw.choice([-(2**63), 2**63 - 1, draw.randrange(-(2**63), 2**63)])
        case "far from zero":
            return 10**9 + draw.randrange(10)
    return draw.randrange(-9, 10)


def value_of(draw: random.Random, type_: str, family: str):
    match type_.split()[0]:
        case "INT":
            return int_of(draw, family)
        case "FLOAT":
            return float_of(draw, family)
        case "BOOL":
            return draw.random() < 0.6
        case "TIMESTAMP":
            return 1_700_000_000_000 + draw.randrange(20) * DAY_MS
        case "STRING":
            return draw.choice(TEXTS) if draw.random() < 0.8 else f"t{draw.randrange(1000)}".encode()
        case "LIST":
            return draw.choice(LISTS)
    return tuple(float(str(np.float32(draw.gauss(0, 10)))) for _ in range(int(type_.split()[1])))


def weight_of(draw: random.Random, type_: str):
    match type_:
        case "INT":
            return draw.choice([0, 0, 1, 2, 1000])
        case "BOOL":
            return draw.random() < 0.5
    return draw.choice([0.0, 0.5, 1e-3, 1e6, draw.random()])


def word(draw: random.Random, value) -> bytes | str:
    """A value as an argument of FS.PUBLISH."""
    if isinstance(value, bool):
        return draw.choice(["true", "1"] if value else ["false", "0"])
    if isinstance(value, tuple):
        text = ",".join(map(repr, value))
        # Few bytes may well read as text, and text comes first.
        return draw.choice(
            [text, f"[{text}]", struct.pack(f"<{len(value)}f", *value)][: 3 if value[1:] else 2]
        )
    return repr(value) if isinstance(value, float) else value


def compact(object_) -> str:
    return json.dumps(object_, separators=(",", ":"), ensure_ascii=False)


# Cases


@dataclass
class Input:
    """A feature that events carry. `is_marked`: it is an INPUT; else the row serves it too."""

    type: str
    is_weight: bool
    is_marked: bool
    family: str


@dataclass
class Call:
    """A command, and what it must answer: `an id`, `nil`, `future`, `the first id`, or a number of rows."""

    words: list
    answer: str | int | None
    event_id: str | None = None


@dataclass
class Read:
    """FS.GET AT a time, of some features or of all."""

    at_ms: int
    names: tuple = ()
    with_status: bool = False


@dataclass
class Case:
    """A view, the updates of one entity in rounds of calls, what of them counts, and the times to read at."""

    number: int
    now_ms: int
    inputs: dict[str, Input] = field(default_factory=dict)
    windows: list[Window] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)
    defaults: dict = field(default_factory=dict)
    rounds: list[list[Call]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    figures: Counter = field(default_factory=Counter)
    first_ids: dict = field(default_factory=dict)

    def __post_init__(self):
        draw = self.draw = random.Random(self.number)
        self.view = f"case{self.number}"
        self.key = f"fs:v1:{self.view}:u{draw.randrange(9)}"
        # Events around the server's clock, some of them ahead of it, or of another time.
        self.is_live = draw.random() < 0.35
        self.runs_ahead = self.is_live and draw.random() < 0.3
        self.end_ms = self.now_ms if self.is_live else draw.choice(ERAS_MS) + draw.randrange(DAY_MS)
        self.draw_windows()
        self.draw_calls()
        self.words = self.registration()

    def __getitem__(self, name: str) -> Window:
        return next(window for window in self.windows if window.name == name)

    @property
    def newest_ms(self) -> int:
        return max(event.time_ms for event in self.events)

    # The view

    def draw_windows(self) -> None:
        draw = self.draw
        self.is_alone = draw.random() < 0.3
        spans = [self.draw_span() for _ in range(draw.randint(1, 3))]
        # Often several windows over one input: they may share state.
        favourite = draw.choice([None, *KINDS])
        # Every function has its turn.
        first = list(KINDS)[self.number % len(KINDS)]
        self.named_hops = set()
        for i in range(1 if self.is_alone else draw.randint(2, 10)):
            kind = favourite if favourite and draw.random() < 0.5 else draw.choice(list(KINDS))
            self.draw_window(f"w{i}", first if i == 0 else kind, *draw.choice(spans))
        if not self.inputs or draw.random() < 0.2:
            self.add_input(draw.choice(ANY))
        if not any(feature.is_marked for feature in self.inputs.values()):
            draw.choice(list(self.inputs.values())).is_marked = True
        marked = tuple(name for name, feature in self.inputs.items() if feature.is_marked)
        self.windows = [window if window.input else replace(window, inputs=marked) for window in self.windows]
        longest_ms = max(window.window_ms + window.hop_ms for window in self.windows)
        # What remembers ids keeps the state as well.
        self.has_dedup = longest_ms < LIFE_MS_MIN or draw.random() < 0.2
        self.ahead_ms_max = min(AHEAD_MS_MAX, AHEAD_HOPS_MAX * min(window.hop_ms for window in self.windows))

    def draw_span(self) -> tuple[int, int | None]:
        """A window and its hop; None: the default hop."""
        draw = self.draw
        if draw.random() < 0.6:
            return draw.choice(SPANS)
        hop_ms = draw.choice([1, 7, 250, 999, SECOND_MS, MINUTE_MS, draw.randrange(1, 10_000_000)])
        hops = draw.choice([1, 2, 3, 10, 100, 1000, 4096, draw.randrange(1, 4097)])
        return hop_ms * max(hops, -(-SECOND_MS // hop_ms)), hop_ms

    def draw_window(self, name: str, kind: str, window_ms: int, hop_ms: int | None) -> None:
        draw = self.draw
        function, type_ = kind.split()[0], draw.choice(KINDS[kind])
        input_ = type_ and self.add_input(type_)
        weight = self.add_input(draw.choice(["INT", "FLOAT", "BOOL"]), True) if "WEIGHT" in kind else None
        argument = None
        match function:
            case "LAST_K":
                argument = draw.choice([1, 2, 10, 1024])
            case "TOP_K":
                argument = draw.choice([1, 3, 256])
            case "APPROX_PERCENTILE":
                argument = draw.choice([0.5, 0.9, 0.99, 0.001, 0.29, round(draw.uniform(0.01, 0.99), 3)])
            case "DECAYED_SUM":
                # A short one makes the default hop short, and 4096 hops are all that a window may have.
                shortest_ms = -(-hop_ms // 64) if hop_ms else max(SECOND_MS, window_ms // 600)
                argument = shortest_ms + draw.choice(
                    [0, draw.randrange(window_ms), draw.randrange(4 * window_ms)]
                )
        if hop_ms:
            self.named_hops.add(name)
        else:
            hop_ms = default_hop_ms(window_ms, argument if function == "DECAYED_SUM" else None)
        self.kinds[name] = kind
        window = Window(name, function, window_ms, hop_ms, input_, type_, argument, weight)
        self.windows.append(window)
        if draw.random() < 0.2:
            of_none = window.expected([], 0)
            # Where a window over no events has a value, that is the only default.
            self.defaults[name] = (
                DEFAULTS[window.type]
                if of_none == Exactly(None)
                else {"INT": 0, "FLOAT": 0.0, "LIST": "[]"}[window.type]
            )

    def add_input(self, type_: str, is_weight: bool = False) -> str:
        """The name of a feature of that type, often one that is there."""
        draw = self.draw
        fitting = [name for name, f in self.inputs.items() if (f.type, f.is_weight) == (type_, is_weight)]
        if fitting and draw.random() < 0.7:
            return draw.choice(fitting)
        name = f"{'weight' if is_weight else 'in'}{len(self.inputs)}"
        family = draw.choice({"FLOAT": FLOATS, "INT": INTS}.get(type_, ("any",)))
        self.inputs[name] = Input(type_, is_weight, draw.random() < 0.6, family)
        return name

    def registration(self) -> list:
        draw = self.draw
        features = [(name, self.inputs[name]) for name in self.inputs]
        features += [(window.name, window) for window in self.windows]
        draw.shuffle(features)
        if draw.random() < 0.3:
            document = {"entity": "user", "schema": [self.member(name, f) for name, f in features]}
            document |= {"dedup": "10m"} if self.has_dedup else {}
            return ["FS.REGISTER", self.view, "JSON", compact(document)]
        words = ["FS.REGISTER", self.view, "ENTITY", "user", *["DEDUP", "10m"] * self.has_dedup, "SCHEMA"]
        for name, feature in features:
            words += [name, *feature.type.split()]
            if isinstance(feature, Input):
                words += ["INPUT"] * feature.is_marked
                continue
            parts = [["AGG", *feature.agg.split()], ["WINDOW", f"{feature.window_ms}ms"]]
            if name in self.named_hops:
                parts.append(["HOP", f"{feature.hop_ms}ms"])
            if name in self.defaults:
                parts.append(["DEFAULT", word(draw, self.defaults[name])])
            draw.shuffle(parts)
            words += [word for part in parts for word in part]
        return words

    def member(self, name: str, feature: Input | Window) -> dict:
        """A feature in the JSON document of the view."""
        type_, *dimensions = feature.type.split()
        member = {"name": name, "type": type_} | ({"dim": int(dimensions[0])} if dimensions else {})
        if isinstance(feature, Input):
            return member | ({"input": True} if feature.is_marked else {})
        member |= {"agg": feature.agg, "window": f"{feature.window_ms}ms"}
        if name in self.named_hops:
            member["hop"] = f"{feature.hop_ms}ms"
        if name in self.defaults:
            member["default"] = json_form(feature.type, self.defaults[name])
        return member

    # The events

    def draw_calls(self) -> None:
        draw = self.draw
        total = draw.choice([0, 1, 2, *[draw.randint(3, 25)] * 4, *[draw.randint(25, EVENTS_MAX)] * 5])
        self.span_ms = int(draw.choice(self.windows).window_ms * draw.uniform(0.2, 3))
        self.cursor_ms = self.end_ms - self.span_ms
        self.step_ms = self.span_ms / max(total, 1)
        self.seen_ids, self.refused_ids = {}, []
        for size in self.split(total, draw.choice([1, 1, 2, 3])):
            calls, left = [], size
            by_stream = draw.random() < 0.3
            while left > 0:
                route = "XADD" if by_stream else draw.choice(["pairs", "JSON", "MPUBLISH"])
                many = min(left, draw.randint(1, 4)) if route == "MPUBLISH" else 1
                calls.append(self.draw_call(route, many))
                left -= many
            self.rounds.append(calls)

    def split(self, total: int, parts: int) -> list[int]:
        cuts = sorted(self.draw.randint(0, total) for _ in range(parts - 1))
        return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]

    def draw_call(self, route: str, many: int) -> Call:
        draw = self.draw
        is_refused = draw.random() < 0.02
        updates = [(self.draw_event(route), self.draw_id()) for _ in range(many)]
        if is_refused:
            # Beyond the clock's skew, and with it all that come in the same call. Their ids were never seen.
            ahead_ms = self.now_ms + HOUR_MS + draw.randrange(10 * DAY_MS)
            updates[-1] = replace(updates[-1][0], time_ms=ahead_ms), updates[-1][1]
            fates = ["refused"] * many
            self.refused_ids += [event_id for _, event_id in updates]
        else:
            fates = [self.count(event, event_id) for event, event_id in updates]
        event, event_id = updates[0]
        answer = {"counted": "an id", "duplicate": "the first id", "refused": "future"}[fates[0]]
        self.figures[f"{route} {fates[0]}"] += 1
        if route == "MPUBLISH":
            words = ["FS.MPUBLISH"]
            for event, event_id in updates:
                marks = {"_at": event.time_ms} | ({"_event": event_id} if event_id else {})
                words += [self.key, self.object(event, marks)]
            answer = "future" if is_refused else None if "duplicate" in fates else many
            return Call(words, answer)
        if route == "XADD":
            self.figures["dead letters"] += is_refused
            words = ["XADD", f"fs:stream:{self.view}", "*", "entity_id", self.key.split(":")[-1]]
            words += ["features", self.object(event, {})]
            words += ["timestamp", f"{event.time_ms // 1000}.{event.time_ms % 1000:03}"]
            words += ["event_id", event_id] if event_id else []
            return Call(words, "an id", event_id if fates == ["counted"] else None)
        words = ["FS.PUBLISH", self.key, "AT", event.time_ms]
        words += ["EVENT", event_id] if event_id else []
        if draw.random() < 0.5:
            words.append("NOLOG")
            answer = "nil" if answer == "an id" else answer
        if route == "pairs":
            words += [part for name, v in event.values.items() for part in (name, word(draw, v))]
        else:
            words += ["JSON", self.object(event, {})]
        return Call(words, answer, event_id)

    def object(self, event: Event, marks: dict) -> str:
        values = {
            name: None if value is None else json_form(self.inputs[name].type, value)
            for name, value in event.values.items()
        }
        return compact(values | marks)

    def draw_event(self, route: str) -> Event:
        draw = self.draw
        while True:
            values = {}
            for name, feature in self.inputs.items():
                if draw.random() < 0.75:
                    values[name] = (
                        weight_of(draw, feature.type)
                        if feature.is_weight
                        else value_of(draw, feature.type, feature.family)
                    )
                elif route != "pairs" and draw.random() < 0.1:
                    values[name] = None
            event = Event(self.draw_time(), values)
            # What no window takes is no event, and no matter of this file.
            if any(window.carries(event) for window in self.windows):
                return event

    def draw_time(self) -> int:
        draw = self.draw
        chance, window = draw.random(), draw.choice(self.windows)
        if self.runs_ahead and chance < 0.15:
            return self.now_ms + draw.randint(0, self.ahead_ms_max)
        if self.events and chance < 0.3:
            return draw.choice(self.events).time_ms
        if chance < 0.5:
            # Late, and perhaps too late.
            return self.cursor_ms - int(window.window_ms * draw.uniform(0, 1.5))
        self.cursor_ms = min(self.cursor_ms + int(draw.expovariate(1 / (self.step_ms + 1))), self.end_ms)
        if chance < 0.65:
            return window.hop(self.cursor_ms) * window.hop_ms - draw.choice([0, 0, 1])
        return self.cursor_ms

    def draw_id(self) -> str | None:
        draw = self.draw
        if self.seen_ids and draw.random() < 0.15:
            return draw.choice(list(self.seen_ids))
        if self.refused_ids and draw.random() < 0.5:
            return draw.choice(self.refused_ids)
        return f"e{draw.randrange(10**9)}" if draw.random() < 0.85 else None

    def count(self, event: Event, event_id: str | None) -> str:
        """Takes an event in by the contract's rule, and tells its fate."""
        if self.has_dedup and event_id in self.seen_ids:
            self.figures["duplicates"] += 1
            return "duplicate"
        if event_id is not None:
            self.seen_ids[event_id] = True
        if self.events:
            self.figures["late_events"] += event.time_ms < self.newest_ms
            # A single window, and nothing ahead of the clock: the newest event is the anchor.
            self.figures["too_late_events"] += any(
                window.is_too_late(event.time_ms, max(event.time_ms, self.newest_ms))
                for window in self.windows
            )
        self.events.append(event)
        return "counted"

    # Reading

    def reads(self) -> list[Read]:
        """At times from the newest event on, all features answer; before it, each by itself or with TOOOLD."""
        draw = self.draw
        if not self.events:
            return [Read(self.end_ms - draw.randrange(DAY_MS), with_status=True), Read(self.end_ms + DAY_MS)]
        newest, window = self.newest_ms, draw.choice(self.windows)
        longest_ms = max(window.window_ms + window.hop_ms for window in self.windows)
        gone_ms = window.hop(newest) * window.hop_ms + window.window_ms + window.hop_ms
        times = [
            newest,
            (window.hop(newest) + 1) * window.hop_ms - 1,
            (window.hop(newest) + 1) * window.hop_ms,
            *(newest + int(self.span_ms * draw.uniform(0, 1.5)) for _ in range(3)),
            newest + window.window_ms,
            # The last moment at which the window holds the newest event, and the first one without.
            gone_ms - 1,
            gone_ms,
            newest + longest_ms + draw.randrange(longest_ms),
        ]
        names, reads = self.served(), []
        for at_ms in times:
            some = () if draw.random() < 0.5 else tuple(draw.sample(names, draw.randint(1, len(names))))
            reads.append(Read(at_ms, some, draw.random() < 0.5))
        for name in draw.sample(names, min(3, len(names))):
            hop_ms = self[name].hop_ms if name not in self.inputs else MINUTE_MS
            start_ms = newest // hop_ms * hop_ms
            older_ms = start_ms - 1 - int(draw.choice([0, hop_ms, self.span_ms]) * draw.random())
            reads += [Read(at_ms, (name,), draw.random() < 0.5) for at_ms in (start_ms, older_ms)]
        return reads

    def served(self) -> list[str]:
        """All that FS.GET serves when no feature is named."""
        return [w.name for w in self.windows] + [n for n, f in self.inputs.items() if not f.is_marked]

    def type_of(self, name: str) -> str:
        return self.inputs[name].type if name in self.inputs else self[name].type

    def may_be_too_old(self, name: str, at_ms: int, clock_ms: int) -> tuple[bool, bool]:
        """Whether a read at a time may, and must, be refused as TOOOLD."""
        if name in self.inputs or not self.events:
            return False, False
        window, newest = self[name], self.newest_ms
        # The anchor is the newest event time, or the clock when it arrived where that is less.
        anchor_from, anchor_to = min(newest, self.now_ms), min(newest, clock_ms)
        match window.function:
            case "APPROX_COUNT_DISTINCT":
                # It cannot leave out what came after AT, be that state its own or shared.
                is_fed = any(window.carries(event) for event in self.events)
                must = is_fed and window.hop(at_ms) < window.hop(anchor_from)
                return window.hop(at_ms) < window.hop(anchor_to), must
            case "LAST" | "LAST_K":
                return window.hop(at_ms) < window.hop(newest), False
        # Where other windows share the state, it reaches back farther than this one needs.
        must = self.is_alone and window.hop(at_ms) < window.hop(anchor_from)
        return window.hop(at_ms) < window.hop(anchor_to), must

    def plain(self, name: str, at_ms: int | None) -> tuple[object, int | None]:
        """Value and event time of a feature that the row holds, as it is served at a time."""
        held = (None, None)
        for event in self.events:
            if name in event.values and (held[1] is None or event.time_ms >= held[1]):
                held = (event.values[name], event.time_ms)
        if at_ms is not None and held[1] is not None and held[1] > at_ms:
            return None, None
        return held

    def fault(self, name: str, got: list, at_ms: int, is_clock: bool = False) -> str | None:
        """What is wrong with a value, or a `[value, status, age_ms]`, of a feature; None: nothing."""
        if name in self.inputs:
            value, time_ms = self.plain(name, None if is_clock else at_ms)
            expected, default = Exactly(value), None
        else:
            expected, default = self[name].expected(self.events, at_ms), self.defaults.get(name)
            time_ms = self.newest_ms if self.events else None
        served = Exactly(default) if expected == Exactly(None) else expected
        if not served.accepts(got[0]):
            return f"serves {got[0]!r}, expected {served}"
        if got[1:]:
            missing = "NOT_FOUND" if default is None else "DEFAULT"
            status = missing if expected == Exactly(None) else "PRESENT"
            if got[1] != status:
                return f"has status {got[1]}, expected {status}"
            age_ms = None if time_ms is None else max(0, at_ms - time_ms)
            if got[2] != age_ms and not (name in self.inputs and value is None):
                return f"has age {got[2]}, expected {age_ms}"
        return None

    def report(self, read: object, what: str) -> str:
        """A failure with all that led to it."""
        lines = [f"case {self.number}, clock {self.now_ms}: {what}", f"read: {read}", *map(str, self.windows)]
        return "\n".join(
            [*lines, shown(self.words), *(shown(c.words) for calls in self.rounds for c in calls)]
        )


def shown(words: list) -> str:
    return " ".join(str(word) if str(word).isalnum() else repr(word) for word in words)
