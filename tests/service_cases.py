"""Generated cases of services: views, rows in every state, services that read them, and ids to ask for.

A case is made from its number alone, and the clock, where its event times lie around it. The report of a failure lists
its commands.
"""

import json
import random
import struct
from dataclasses import dataclass, field

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
# In a service that ranks: context, candidate and pair.
ENTITIES = ("user", "item", "user_item")
# Types as they decide what is stored, what is served and what is a number. VALUES is a STRING that has them.
KINDS = ("INT", "FLOAT", "BOOL", "STRING", "VALUES", "TIMESTAMP", "VECTOR", "LIST")
NUMERIC = ("INT", "FLOAT", "BOOL", "VALUES", "TIMESTAMP", "VECTOR")
CATEGORIES = ("free", "pro", "b c", "grün", 'say "\\n"\n', "")
DIMENSIONS = (1, 2, 3, 8)
INPUTS = "x FLOAT INPUT word STRING INPUT flag BOOL INPUT emb VECTOR 3 INPUT"
# Windows: their type, their words, and what of them is served over no events.
WINDOWS = {
    "INT": ("INT AGG COUNT x", "0"),
    "FLOAT": ("FLOAT AGG MEAN x", None),
    "BOOL": ("BOOL AGG LAST flag", None),
    "STRING": ("STRING AGG FIRST word", None),
    "VECTOR": ("VECTOR 3 AGG MEAN emb", None),
    "LIST": ("LIST AGG LAST_K 3 word", "[]"),
}
TEXTS = (
    b"",
    b"a",
    "grün ☃".encode(),
    b'say "\\n"\n\0',
    b"\xff\x00\xfe",
    b"\xed\xa0\x80",
    b"x" * 700,
    b"10",
    b"nan",
)
LISTS = (
    "[]",
    "[1]",
    '["a",null,[true,2.5]]',
    '[[],[{"a":"ü"}]]',
    '["\\ud83d\\ude00\\u0000"]',
    "[1e300,-0.0]",
)
USER_IDS = (b"u1", b"u2", b"\0\r\n\xff", "ü *".encode(), b"u" * 250)
ITEM_IDS = (b"i1", b"i2", b"i:3", b":", b"*?[", b"\xff\xfe", b"i" * 250)


@dataclass
class Feature:
    """A feature of a version. `window`: it is one."""

    kind: str
    words: list
    window: bool = False

    @property
    def is_numeric(self) -> bool:
        return self.kind in NUMERIC


@dataclass
class View:
    """A version of a view."""

    name: str
    version: int
    entity: str
    storage: str
    ttl_ms: int | None
    features: dict[str, Feature] = field(default_factory=dict)

    def key(self, id_: bytes) -> bytes:
        return b"fs:v%d:%s:%s" % (self.version, self.name.encode(), id_)

    @property
    def has_windows(self) -> bool:
        return any(feature.window for feature in self.features.values())

    def words(self) -> list:
        options = [] if self.ttl_ms is None else ["TTL", f"{self.ttl_ms}ms"]
        options += [] if self.storage == "HASH" else ["STORAGE", self.storage]
        schema = [word for name, feature in self.features.items() for word in (name, *feature.words)]
        inputs = INPUTS.split() if self.has_windows else []
        return [
            *("FS.REGISTER", self.name, "VERSION", self.version, "ENTITY", self.entity),
            *(*options, "SCHEMA", *inputs, *schema),
        ]


@dataclass
class Reference:
    """A feature that a service reads, and the words that name it there."""

    view: View
    feature: str
    text: str

    @property
    def kind(self) -> str:
        return self.view.features[self.feature].kind


@dataclass
class Service:
    """A service without its format: that many are made of it. The ids of the call are those of a row each."""

    name: str
    entities: tuple  # Of one that ranks: context and candidate, and the pair where there is one.
    references: list[Reference]
    context_id: bytes | None
    ids: list[bytes]

    def setting(self, format_: str, with_status: bool) -> list:
        words = ["FS.SERVICE", "SET", self.variant(format_, with_status)]
        for word, entity in zip(("CONTEXT", "CANDIDATE", "PAIR"), self.entities, strict=False):
            words += [word, entity]
        words += [*["FORMAT", format_], *["WITHSTATUS"] * with_status]
        return [*words, "FEATURES", len(self.references), *(reference.text for reference in self.references)]

    def variant(self, format_: str, with_status: bool) -> str:
        return f"{self.name}_{format_.lower()}{'_status' * with_status}"

    def reading(self, format_: str, with_status: bool) -> list:
        name = self.variant(format_, with_status)
        if self.entities:
            return ["FS.RANK", name, self.context_id, *self.ids]
        return ["FS.SERVE", name, *self.ids]

    def role(self, reference: Reference) -> str:
        if not self.entities:
            return "entity"
        return ("context", "candidate", "pair")[self.entities.index(reference.view.entity)]

    def key(self, reference: Reference, id_: bytes) -> bytes:
        """The row of a reference in the row of an id."""
        row_id = {"context": self.context_id, "pair": b"%s:%s" % (self.context_id or b"", id_)}
        return reference.view.key(row_id.get(self.role(reference), id_))

    @property
    def is_numeric(self) -> bool:
        return all(reference.kind in NUMERIC for reference in self.references)


# Values


def value_of(draw: random.Random, feature: Feature) -> bytes | str:
    """A value of the feature as FS.PUBLISH takes it."""
    match feature.kind:
        case "INT":
            return str(draw.choice([draw.randrange(-9, 10), draw.randrange(-(2**63), 2**63), 2**24 + 1]))
        case "FLOAT":
            odd = [-0.0, 0.1, 1e300, -1e-300, 1e39, 5e-324, 3.4028235e38]
            return repr(draw.choice([draw.gauss(0, 100), draw.choice(odd)]))
        case "BOOL":
            return draw.choice(["true", "False", "1", "0"])
        case "STRING":
            return draw.choice(TEXTS)
        case "VALUES":
            return draw.choice(CATEGORIES)
        case "TIMESTAMP":
            return str(draw.choice([0, 1_700_000_000_000 + draw.randrange(DAY_MS), -100_000_000_000]))
        case "LIST":
            return draw.choice(LISTS)
    return json.dumps([draw.choice([draw.gauss(0, 1), 0.1, -0.0, 3e7]) for _ in range(dimensions(feature))])


def json_of(draw: random.Random, feature: Feature):
    """The same as a member of a JSON object, now and then null."""
    if draw.random() < 0.2:
        return None
    value = value_of(draw, feature)
    match feature.kind:
        case "STRING":
            return "ä\0" if draw.random() < 0.5 else {"$base64": "//4A"}
        case "LIST" | "VECTOR":
            return json.loads(value)
        case "BOOL":
            return value in ("true", "1")
    return value


def dimensions(feature: Feature) -> int:
    return int(feature.words[1])


def field_by_hand(draw: random.Random, feature: Feature) -> bytes | str:
    """A field as another writer may leave it: as the store does, in another spelling, of another type, or of none."""
    good = draw.random() < 0.5
    match feature.kind:
        case "INT":
            return draw.choice(
                ["7", "25.0", "1e3", "-0"] if good else ["", "abc", "5.5", "9" * 30, " 5", "nan"]
            )
        case "FLOAT":
            return draw.choice(
                ["5.0", "1E3", "-0", "7", ".5"] if good else ["", "x", "nan", "inf", "1e999", "0x1"]
            )
        case "BOOL":
            return draw.choice(["1", "True", "FALSE"] if good else ["", "yes", "2", "1.0"])
        case "STRING":
            return draw.choice(TEXTS)
        case "VALUES":
            # Any bytes are a STRING, but only those of VALUES have a number.
            return draw.choice(CATEGORIES if good else ["gold", "FREE", b"\xff", "b"])
        case "TIMESTAMP":
            return draw.choice(["1700000000000", "0", "1.7e12"] if good else ["", "1700000000", "today"])
        case "LIST":
            return draw.choice([*LISTS, " [1, 2]\n"] if good else ["", "{}", "[1", "1", b"[\xff]", "null"])
    numbers = [draw.gauss(0, 1) for _ in range(dimensions(feature))]
    raw = struct.pack(f"<{len(numbers)}f", *numbers)
    text = ",".join(map(str, numbers))
    not_finite = struct.pack(f"<{len(numbers)}f", *numbers[1:], float("nan"))
    if good:
        # Four bytes of text may well be one float32.
        return draw.choice([raw, text, f"[{text}]", f" {text} "])
    return draw.choice([b"", raw[1:] + b"\xff\xff", f"{text},1", not_finite, "x" * 5])


def default_of(draw: random.Random, kind: str) -> str:
    return {
        "INT": "7",
        "FLOAT": "-1.5",
        "BOOL": "true",
        "STRING": draw.choice(["none", ""]),
        "VALUES": CATEGORIES[2],
        "TIMESTAMP": "1600000000000",
        "LIST": '["none"]',
    }[kind]


# Cases


class Case:
    """Views with rows in every state, and services over them. `storages`: how a row may lie, most often as a hash."""

    def __init__(self, number: int, now_ms: int, storages: list[str]):
        self.number, self.now_ms, self.draw = number, now_ms, random.Random(number)
        self.storages = storages
        self.views: list[View] = []
        self.commands: list[list] = []
        ids = {"user": USER_IDS, "item": ITEM_IDS}
        self.ids = {entity: self.draw.sample(own, 4) for entity, own in ids.items()}
        self.pairs = [b"%s:%s" % (user, item) for user in self.ids["user"] for item in self.ids["item"]]
        for i in range(self.draw.randint(3, 4)):
            self.draw_view(i)
        self.services = [self.draw_service(i) for i in range(3)]

    def report(self, service: Service, *parts) -> str:
        """What was found, and the commands that made what the service reads."""
        named = {service.key(reference, id_) for reference in service.references for id_ in service.ids}
        states = {key.replace(b"fs:v", b"fs:w", 1) for key in named}
        views = [reference.view.words() for reference in service.references]
        lines = [shown(words) for words in self.commands if words[1] in named | states or words in views]
        return "\n".join([f"case {self.number} at {self.now_ms}:", *map(str, parts), "after", *lines])

    # Views and rows

    def draw_view(self, place: int) -> None:
        draw = self.draw
        # One of each entity at least, so that something can be ranked.
        entity = ENTITIES[place] if place < 3 else draw.choice(ENTITIES)
        for version in sorted(draw.sample([1, 2, 7, 999_999_999], draw.choice([1, 1, 2, 3]))):
            ttl_ms = draw.choice([None, None, HOUR_MS, 30 * DAY_MS])
            storage = draw.choice(["HASH", "HASH", *self.storages])
            view = View(f"c{self.number}_{place}", version, entity, storage, ttl_ms)
            for i in range(draw.choice([1, 3, 6, 12])):
                view.features[f"f{i}"] = self.draw_feature(view)
            self.views.append(view)
            self.commands.append(view.words())
            for id_ in self.pairs if entity == "user_item" else self.ids[entity]:
                self.draw_row(view, id_)

    def draw_feature(self, view: View) -> Feature:
        draw = self.draw
        if draw.random() < 0.25:
            kind = draw.choice(list(WINDOWS))
            words, over_nothing = WINDOWS[kind]
            words = [*words.split(), "WINDOW", draw.choice(["1h", "7d"])]
            if draw.random() < 0.5:
                default = "1,2,3" if kind == "VECTOR" else over_nothing or default_of(draw, kind)
                words += ["DEFAULT", default]
            return Feature(kind, words, window=True)
        kind = draw.choice(KINDS)
        size = draw.choice(DIMENSIONS)
        words = {
            "VALUES": ["STRING", "VALUES", len(CATEGORIES), *CATEGORIES],
            "VECTOR": ["VECTOR", size],
        }.get(kind, [kind])
        if draw.random() < 0.5:
            words = [
                *words,
                "DEFAULT",
                ",".join(["0.5"] * size) if kind == "VECTOR" else default_of(draw, kind),
            ]
        if draw.random() < 0.5:
            words = [*words, "TTL", f"{min(view.ttl_ms or DAY_MS, draw.choice([600_000, DAY_MS]))}ms"]
        return Feature(kind, words)

    def draw_row(self, view: View, id_: bytes) -> None:
        draw, key = self.draw, view.key(id_)
        kinds = ["none", "published", "by hand", "both", "deleted", "expired", "wrong type"]
        kind = draw.choices(kinds, weights=[12, 40, 20, 20, 3, 3, 2])[0]
        if kind in ("published", "both", "deleted", "expired"):
            for _ in range(draw.randint(1, 4)):
                self.draw_update(view, key)
        if kind in ("by hand", "both"):
            (self.draw_fields if view.storage == "HASH" else self.draw_bytes)(view, key)
        match kind:
            case "deleted":
                self.commands.append([draw.choice(["FS.DEL", "DEL"]), key])
            case "expired":
                self.commands.append(["PEXPIRE", key, 1])
            case "wrong type":
                state = key.replace(b"fs:v", b"fs:w", 1)
                self.commands.append(["RPUSH", draw.choice([key, state]) if view.has_windows else key, "x"])

    def draw_update(self, view: View, key: bytes) -> None:
        draw = self.draw
        age_ms = draw.choice([0, 60_000, draw.randrange(2 * HOUR_MS), draw.randrange(9 * DAY_MS)])
        words = ["FS.PUBLISH", key, "AT", self.now_ms - age_ms, "NOLOG"]
        stored = {name: feature for name, feature in view.features.items() if not feature.window}
        names = draw.sample(sorted(stored), draw.randint(0, len(stored)))
        inputs = {
            "x": draw.gauss(0, 9),
            "flag": draw.random() < 0.5,
            "word": "ä\0",
            "emb": [1, draw.random(), 3],
        }
        events = draw.sample(sorted(inputs), draw.randint(0, 4)) if view.has_windows else []
        if not names and not events:
            return
        if events or draw.random() < 0.3:
            update = {name: json_of(draw, stored[name]) for name in names}
            update |= {name: inputs[name] for name in events}
            self.commands.append([*words, "JSON", json.dumps(update)])
        else:
            pairs = [word for name in names for word in (name, value_of(draw, stored[name]))]
            self.commands.append([*words, *pairs])

    def draw_fields(self, view: View, key: bytes) -> None:
        """Fields as another writer leaves them, those of windows and of nobody among them."""
        draw = self.draw
        fields = {"others": "x", "f": b"\xff"} if draw.random() < 0.3 else {}
        for name, feature in view.features.items():
            if draw.random() < 0.6:
                fields[name] = "5" if feature.window else field_by_hand(draw, feature)
        times_s = [self.now_ms / 1000 - age for age in (0, 30, 5000, 200_000, -100)]
        if draw.random() < 0.8:
            fields["_updated_at"] = draw.choice([*times_s, *times_s, "", "x", "nan", "-5", "1e99", b"\xff"])
        if draw.random() < 0.4:
            times = {
                name: draw.choice([*times_s, "x", None]) for name in view.features if draw.random() < 0.5
            }
            fields["_times"] = draw.choice([json.dumps(times), json.dumps(times), "", "[]", "{", b"\xff"])
        if fields:
            self.commands.append(["HSET", key, *(word for pair in fields.items() for word in pair)])
        if draw.random() < 0.2:
            self.commands.append(["HDEL", key, draw.choice(["_updated_at", "_times", *view.features])])

    def draw_bytes(self, view: View, key: bytes) -> None:
        """Bytes of a packed row as another writer spoils them, or its own."""
        draw = self.draw
        for _ in range(draw.choice([1, 1, 3])):
            spoiling = ["SETRANGE", key, draw.randrange(80), draw.randbytes(draw.choice([1, 1, 4]))]
            self.commands.append(draw.choice([spoiling, spoiling, ["APPEND", key, draw.randbytes(9)]]))

    # Services

    def draw_service(self, place: int) -> Service:
        draw = self.draw
        entities = draw.choice([(), (), ENTITIES, ENTITIES[:2]])
        allowed = entities or (draw.choice(sorted({view.entity for view in self.views})),)
        numeric = draw.random() < 0.6
        candidates = [
            (view, name)
            for view in self.views
            if view.entity in allowed
            for name, feature in view.features.items()
            if feature.is_numeric or not numeric
        ]
        if not candidates:
            return self.draw_service(place)
        references = []
        for view, name in draw.sample(candidates, min(len(candidates), draw.choice([1, 3, 8, 20]))):
            spellings = [f"{view.name}@{view.version}:{name}"]
            if view.version == max(other.version for other in self.views if other.name == view.name):
                spellings.append(f"{view.name}:{name}")
            # One feature may stand there in both spellings.
            count = draw.choice([1, 1, 1, 2])
            for text in draw.sample(spellings, min(len(spellings), count)):
                references.append(Reference(view, name, text))
        draw.shuffle(references)
        own_ids = (
            {"user_item": self.pairs}.get(allowed[0], self.ids.get(allowed[0])) if not entities else None
        )
        ids = [*(own_ids or self.ids["item"]), b"unknown"]
        # Some ids come again and again.
        ids = draw.choices(ids, k=draw.choice([1, 2, 5, 9]))
        context_id = draw.choice([*self.ids["user"], b"unknown"]) if entities else None
        if context_id and not any(reference.view.entity == "user_item" for reference in references):
            context_id = draw.choice([context_id, b"u:1"])
        return Service(f"s{self.number}_{place}", entities, references, context_id, ids)


def shown(words: list) -> str:
    """A call as one can type it, but for words that are very long."""
    texts = [repr(word)[1:] if isinstance(word, bytes) else str(word) for word in words]
    return " ".join(text if len(text) < 200 else f"{text[:20]}...({len(text)})" for text in texts)
