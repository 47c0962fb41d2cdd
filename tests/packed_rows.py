"""Packed rows in tests: a view twice, as hashes and packed, that must tell the same; and rows decoded.

`Twins` holds two views of one random schema and does the same to both, each step in one MULTI, so that both see one
clock. Whatever they answer is compared, names aside.
"""

import json
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path

import valkey
from profile_view import figures
from windowed_view import ALL, INPUTS, an_event, clock_ms

from server import await_until

CHECKOUT = Path(__file__).resolve().parents[1]
# Names of one length: logs are trimmed by the bytes of their entries.
HASH, PACKED = "view_of_hashes", "view_of_packed"
NAMES = re.compile(f"{HASH}|{PACKED}".encode())
HEADER_BYTES = 12
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
CATEGORIES = ("free", "pro", "b c", "grün", 'say "x"\n', "")
TEXTS = (
    b"",
    b"a",
    "grün ☃".encode(),
    b'say "\\n"\n\0',
    b"\xff\x00\xfe",
    b"x" * 700,
    b"10",
    b"nan",
    b"\0" * 40,
)
LISTS = ("[]", "[1]", ' [ 1,  "a" ] ', '["a",null,[true,2.5]]', '[[],[{"a":"ü"}]]', "[1e300,-0.0]")
# What is read of each service, by format.
FORMATS = ("MAP", "ARRAY", "JSON", "TENSOR")
STATUSES = {b"PRESENT", b"DEFAULT", b"NOT_FOUND", b"OUTSIDE_MAX_AGE", b"INVALID"}

# Rows, decoded


def header(times_of_its_own: bool, slots: int, fingerprint: bytes, updated_at_ms: int) -> bytes:
    """The first bytes of a row."""
    time = (updated_at_ms % 2**64).to_bytes(8, "little")[:6]
    return struct.pack("<BH", 129 if times_of_its_own else 1, slots) + fingerprint + time


# Of no features: the low bytes of the XXH3-64 of nothing.
FINGERPRINT_OF_NOTHING = (0x2D06800538D394C2).to_bytes(8, "little")[:3]


def documented() -> tuple[dict, list[tuple[str, str]]]:
    """What the first code of docs/PACKED.md defines, and all blocks of the document: language and text."""
    text = (CHECKOUT / "docs" / "PACKED.md").read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    defined: dict = {}
    exec(next(code for language, code in blocks if language == "python"), defined)
    return defined, blocks


def slots_of(document: dict) -> list[tuple[str, int, str]]:
    """Name, offset and struct format of each slot, reckoned from the schema alone."""
    at, slots = HEADER_BYTES, []
    for feature in document["schema"]:
        if feature.get("input") or feature.get("agg"):
            continue
        match feature["type"]:
            case "INT" | "TIMESTAMP":
                form = "q"
            case "FLOAT":
                form = "d"
            case "BOOL":
                form = "B"
            case "VECTOR":
                form = f"{feature['dim']}f"
            case "STRING" if feature.get("values"):
                form = "I"
            case _:
                form = "I"
        slots.append((feature["name"], at, form))
        at += struct.calcsize("<" + form)
    return slots


def unpacked(row: bytes, document: dict) -> tuple[dict, dict]:
    """The values and the event times of a row, read with struct and the schema alone; fails if a byte is left over.

    Values are as FS.GET tells them in RESP3.
    """
    schema = {feature["name"]: feature for feature in document["schema"]}
    slots = slots_of(document)
    assert row[0] in (1, 129)
    count, updated_at_ms = (
        int.from_bytes(row[1:3], "little"),
        int.from_bytes(row[6:12], "little", signed=True),
    )
    assert count <= len(slots)
    end = HEADER_BYTES if count == 0 else slots[count - 1][1] + struct.calcsize("<" + slots[count - 1][2])
    bits = int.from_bytes(row[end : end + (count + 7) // 8], "little")
    end += (count + 7) // 8
    times, last_named = {}, 0
    if row[0] == 129:
        (exceptions,) = struct.unpack_from("<H", row, end)
        assert exceptions > 0
        for i in range(exceptions):
            slot, time_ms = struct.unpack_from("<Hq", row, end + 2 + 10 * i)
            times[slots[slot][0]] = time_ms
            last_named = max(last_named, slot + 1)
        assert len(times) == exceptions
        end += 2 + 10 * exceptions
    # Slots after the last that holds a value or has a time are left out.
    assert count == max(bits.bit_length(), last_named)
    values = {}
    for place, (name, at, form) in enumerate(slots[:count]):
        numbers = struct.unpack_from("<" + form, row, at)
        is_there, feature = bits >> place & 1, schema[name]
        is_text = feature["type"] in ("STRING", "LIST") and not feature.get("values")
        if is_text:
            text, end = row[end : numbers[0]], numbers[0]
            assert is_there or text == b""
        if not is_there:
            assert is_text or not any(numbers), f"{name} is not there and has a slot that is not zero"
            continue
        times.setdefault(name, updated_at_ms)
        match feature["type"]:
            case "VECTOR":
                values[name] = list(numbers)
            case "BOOL":
                values[name] = {0: False, 1: True}[numbers[0]]
            case "STRING" if not is_text:
                values[name] = feature["values"][numbers[0]].encode()
            case "STRING" | "LIST":
                values[name] = text
            case _:
                values[name] = numbers[0]
    assert end == len(row)
    assert updated_at_ms >= max(times.values(), default=0)
    return values, times


def document_of(client, view: str, version: int = 1) -> dict:
    return json.loads(client.execute_command("FS.DESCRIBE", view, "VERSION", version, "JSON"))


# Values


def good_value(chance: random.Random, feature: dict):
    """A value as JSON has it. `feature`: of the document."""
    if feature.get("values"):
        return chance.choice(feature["values"])
    match feature["type"]:
        case "INT":
            return chance.choice([0, -1, 2**63 - 1, -(2**63), chance.randrange(-(10**6), 10**6), "12", 3.0])
        case "FLOAT":
            edges = [0, -0.0, 5e-324, 1.7976931348623157e308, -2.5, "1e3"]
            return chance.choice([*edges, chance.gauss(0, 1e3), chance.gauss(0, 1)])
        case "BOOL":
            return chance.choice([True, False, "true", "False", 1, 0])
        case "STRING":
            return chance.choice([chance.choice(TEXTS[:4]).decode(), f"t{chance.randrange(999)}" * 20])
        case "TIMESTAMP":
            return 1_700_000_000_000 + chance.randrange(10**9)
        case "VECTOR":
            return [
                chance.choice([0, -0.0, 1e-45, 3.4e38, chance.gauss(0, 1)]) for _ in range(feature["dim"])
            ]
        case "LIST":
            return json.loads(chance.choice(LISTS))


def good_word(chance: random.Random, feature: dict):
    """A value as a word of FS.PUBLISH has it."""
    match feature["type"]:
        case "VECTOR" if chance.random() < 0.5:
            return struct.pack(f"<{feature['dim']}f", *(chance.gauss(0, 1) for _ in range(feature["dim"])))
        case "STRING" if not feature.get("values"):
            return chance.choice(TEXTS)
        case "LIST":
            return chance.choice(LISTS)
    value = good_value(chance, feature)
    return value if isinstance(value, str) else json.dumps(value)


def bad_value(chance: random.Random, feature: dict):
    """One that is refused; a STRING without VALUES takes almost all."""
    if feature.get("values"):
        return "nobody"
    match feature["type"]:
        case "INT":
            return chance.choice(["abc", 1.5, 2**63, "", [1]])
        case "FLOAT":
            return chance.choice(["nan", "1e999", "", {}])
        case "BOOL":
            return chance.choice([2, "maybe", ""])
        case "TIMESTAMP":
            return chance.choice([1_700_000_000, "soon"])
        case "VECTOR":
            return chance.choice([[1.0] * (feature["dim"] + 1), "x", [1e39] * feature["dim"]])
    return {"a": 1}


def random_schema(chance: random.Random, with_windows: bool) -> list[str]:
    """The words of a schema: features of all types in any order, with all that features may have."""
    words: list[str] = []
    kinds = ["INT", "FLOAT", "BOOL", "STRING", "VALUES", "TIMESTAMP", "VECTOR", "LIST"]
    drawn = chance.choices(kinds, k=chance.choice([1, 3, 9, 17])) + chance.sample(kinds, 4)
    for i, kind in enumerate(drawn):
        dimensions = chance.choice([1, 2, 3, 8])
        values = chance.sample(CATEGORIES, chance.randint(1, len(CATEGORIES)))
        type_words = {"VALUES": ["STRING"], "VECTOR": ["VECTOR", str(dimensions)]}.get(kind, [kind])
        words += [f"f{i}", *type_words]
        defaults = {
            "INT": "7",
            "FLOAT": "-0.5",
            "BOOL": "true",
            "STRING": "dé",
            "VALUES": values[-1],
            "TIMESTAMP": "1700000000001",
            "VECTOR": ",".join(["0.25"] * dimensions),
            "LIST": "[0]",
        }
        if chance.random() < 0.3:
            words += ["DEFAULT", defaults[kind]]
        if chance.random() < 0.3:
            words += ["TTL", chance.choice(["2s", "10m", "20m"])]
        if kind in ("INT", "FLOAT") and chance.random() < 0.2:
            words += ["MIN", "-900", "MAX", "900"]
        if kind == "VALUES":
            words += ["VALUES", str(len(values)), *values]
    if with_windows:
        windows = chance.sample(sorted(ALL), 8)
        words += INPUTS.split()
        for name in windows:
            words += [name, *ALL[name].split(), "WINDOW", chance.choice(["1m", "1h", "1d"])]
    return words


# Two views of one schema


def nameless(reply):
    """A reply without the names of the two views, and without what is told of hashes alone."""
    match reply:
        case bytes():
            return NAMES.sub(b"VIEW", reply)
        case str():
            return NAMES.sub(b"VIEW", reply.encode())
        case Exception():
            return nameless(f"{type(reply).__name__} {reply}")
        case dict():
            return {nameless(name): nameless(value) for name, value in reply.items()}
        case list() | tuple():
            return [nameless(part) for part in reply]
        case float():
            # 0.0 == -0.0
            return struct.pack("<d", reply)
    return reply


def different(their, our, at: str = "") -> str:
    """Where two replies first differ."""
    if isinstance(our, list) and isinstance(their, list) and len(our) == len(their):
        i = next(i for i, (a, b) in enumerate(zip(our, their, strict=True)) if a != b)
        before = our[i - 1] if i and isinstance(our[i - 1], bytes) else i
        return different(their[i], our[i], f"{at} {before}")
    return f"{at}: packed {their!r}, hash {our!r}"


def timeless(letters: list) -> list:
    """Dead letters without what the clock says in them: the background writes them when it finds the time."""
    ahead = re.compile(rb"\d+ ms ahead")
    return [{name: ahead.sub(b"ahead", value) for name, value in fields.items()} for _, fields in letters]


class Twins:
    """The same view twice on one server. `options`: the words before SCHEMA."""

    def __init__(self, server, seed: int, with_windows: bool):
        self.chance = random.Random(seed)
        self.server = server
        self.ids = [b"u%d" % i for i in range(8)] + [b"\0\xff \r\n", "ü*".encode(), b"u" * 250]
        self.with_windows = with_windows
        # How many steps of each kind changed something, and how many were refused.
        self.done: dict[str, int] = {}
        self.refused = 0
        chance = self.chance
        self.has_log = chance.random() < 0.8
        options = [
            *chance.choice([[], ["TTL", "20m"], ["TTL", "1h"]]),
            *([] if self.has_log else ["LOG", "OFF"]),
            *chance.choice([[], ["EXTRA", "IGNORE"]]),
            *chance.choice([[], [], ["SAMPLE", "1", "ON", "SERVE"]]),
            *(chance.choice([[], ["DEDUP", "1h"]]) if with_windows else []),
        ]
        self.schema = random_schema(chance, with_windows)
        with server.client() as client:
            for view, storage in ((HASH, "HASH"), (PACKED, "PACKED")):
                words = ("ENTITY", "user", *options, "STORAGE", storage, "SCHEMA", *self.schema)
                assert client.execute_command("FS.REGISTER", view, *words) == b"OK"
                for service, words in self.services(view, client):
                    assert client.execute_command("FS.SERVICE", "SET", service, *words) == b"OK"
        self.learn()

    def services(self, view: str, client) -> list:
        document = document_of(client, view)
        numbers = [column["feature"] for column in document["tensor"]["columns"]]
        plain = [f["name"] for f in document["schema"] if not f.get("input")]
        made = []
        for form in FORMATS:
            features = [f"{view}:{name}" for name in (numbers if form == "TENSOR" else plain)]
            if features:
                words = ("FORMAT", form, "WITHSTATUS", "FEATURES", len(features), *features)
                made.append((f"{form.lower()}_{view}", words))
        return made

    def learn(self) -> None:
        """The document, as it is now."""
        with self.server.client() as client:
            self.document = document_of(client, HASH)
        self.features = self.document["schema"]
        self.by_name = {feature["name"]: feature for feature in self.features}
        self.written = [f for f in self.features if not f.get("agg")]
        self.served = [f["name"] for f in self.features if not f.get("input")]

    # Doing the same to both

    def both(self, words_of: Callable[[str], list], client=None) -> list:
        """Executes words of each view in one MULTI. Answers what both answered, which must be equal."""
        with (client or self.client).pipeline(transaction=True) as pipeline:
            for view in (HASH, PACKED):
                pipeline.execute_command(*words_of(view))
            ours, theirs = pipeline.execute(raise_on_error=False)
        assert nameless(theirs) == nameless(ours), words_of(PACKED)
        if isinstance(ours, Exception):
            self.refused += 1
        return [ours, theirs]

    @property
    def client(self):
        if getattr(self, "_client_of", None) is not self.server or not self.server._clients:
            self._client, self._client_of = self.server.client(), self.server
        return self._client

    def key(self, view: str, entity: bytes) -> bytes:
        return b"fs:v1:%s:%s" % (view.encode(), entity)

    def entity(self) -> bytes:
        return self.chance.choice(self.ids)

    def time_ms(self) -> int:
        """Around now, often the same one again, sometimes too old or too new."""
        chance, now_ms = self.chance, clock_ms(self.client)
        choices = [
            self.now_ms,
            self.now_ms - chance.randrange(9) * 100_000,
            now_ms - chance.randrange(HOUR_MS),
            now_ms - chance.randrange(3_000),
            now_ms - 2 * HOUR_MS,
            now_ms + chance.randrange(200_000),
        ]
        return chance.choice([*choices, *choices, now_ms + DAY_MS])

    def object(self) -> dict:
        """An update as JSON has it: values, removals, now and then what is refused."""
        chance = self.chance
        stored = [f for f in self.written if not f.get("input")]
        count = chance.choice([1, 1, 2, 4, len(stored)])
        update = {f["name"]: good_value(chance, f) for f in chance.sample(stored, min(count, len(stored)))}
        if self.with_windows and chance.random() < 0.6:
            update |= an_event(chance)
        for name in update:
            if chance.random() < 0.12:
                update[name] = None
            elif chance.random() < 0.01:
                update[name] = bad_value(chance, self.by_name[name])
        if chance.random() < 0.03:
            update["nobody"] = 1
        return update

    def publish(self) -> None:
        chance, entity = self.chance, self.entity()
        options = [
            *chance.choice([[], ["AT", self.time_ms()], ["AT", self.time_ms()]]),
            *chance.choice([[], [], ["EVENT", f"e{chance.randrange(30)}"]]),
            *chance.choice([[], [], [], ["NOLOG"]]),
        ]
        if chance.random() < 0.5:
            update = ["JSON", json.dumps(self.object())]
        else:
            stored = [f for f in self.written if not f.get("input")]
            update = []
            for feature in chance.sample(stored, chance.randint(1, len(stored))):
                update += [feature["name"], good_word(chance, feature)]
        self.both(lambda view: ["FS.PUBLISH", self.key(view, entity), *options, *update])

    def publish_many(self) -> None:
        rows = []
        for _ in range(self.chance.choice([1, 2, 5])):
            update = self.object()
            if self.chance.random() < 0.6:
                update["_at"] = self.time_ms()
            if self.chance.random() < 0.4:
                update["_event"] = f"e{self.chance.randrange(30)}"
            rows.append((self.entity(), json.dumps(update)))
        self.both(
            lambda view: ["FS.MPUBLISH", *(word for id_, row in rows for word in (self.key(view, id_), row))]
        )

    def append(self) -> None:
        """A plain XADD, taken in by the background or by FS.CONSUME."""
        chance = self.chance
        fields = {"entity_id": self.entity().replace(b"\xff", b""), "features": json.dumps(self.object())}
        if chance.random() < 0.7:
            fields["timestamp"] = self.time_ms() / 1000
        if chance.random() < 0.3:
            fields["event_id"] = f"e{chance.randrange(30)}"
        if chance.random() < 0.05:
            fields["features"] = "{"
        flat = [word for pair in fields.items() for word in pair]
        with self.client.pipeline(transaction=True) as pipeline:
            for view in (HASH, PACKED):
                pipeline.execute_command("XADD", f"fs:stream:{view}", "*", *flat)
            if chance.random() < 0.5:
                for view in (HASH, PACKED):
                    pipeline.execute_command("FS.CONSUME", view)
            answers = pipeline.execute()
        assert answers[0] == answers[1]
        self.await_consumed()

    def await_consumed(self) -> None:
        for view in (HASH, PACKED):
            await_until(
                lambda v=view: figures(self.client, v)["lag_entries"] == 0, what="the entries to be consumed"
            )

    def delete(self) -> None:
        entities = [self.entity() for _ in range(self.chance.choice([1, 1, 3]))]
        command = self.chance.choice(["FS.DEL", "DEL", "UNLINK"])
        self.both(lambda view: [command, *(self.key(view, entity) for entity in entities)])

    def replay(self) -> None:
        """Not inside MULTI: the clock moves between the two, by less than any event lies near to a bound."""
        more = self.chance.choice([[], ["WINDOWS"]]) if self.with_windows else []
        answers = [
            self.client.execute_command("FS.REPLAY", view, "FROM", 0, *more) for view in (HASH, PACKED)
        ]
        assert answers[0] == answers[1]

    def expire(self) -> None:
        entity, chance = self.entity(), self.chance
        words = chance.choice([["PERSIST"], ["PEXPIRE", 1], ["PEXPIRE", 900_000], ["EXPIRE", 5_000]])
        self.both(lambda view: [words[0], self.key(view, entity), *words[1:]])
        if words[-1] == 1:
            # Else one may still be there and the other not, where a step is not one MULTI.
            keys = [self.key(view, entity) for view in (HASH, PACKED)]
            await_until(lambda: not self.client.exists(*keys), what="the rows to expire")

    def move(self) -> None:
        source, target = self.chance.sample(self.ids, 2)
        words = self.chance.choice([["RENAME"], ["RENAMENX"], ["COPY"], ["COPY", "REPLACE"]])
        self.both(lambda view: [words[0], self.key(view, source), self.key(view, target), *words[1:]])

    def restore(self) -> None:
        source, target = self.entity(), self.entity()
        dumps = {view: self.client.dump(self.key(view, source)) for view in (HASH, PACKED)}
        if all(dumps.values()):
            ttl_ms = self.chance.choice([0, 700_000])
            self.both(lambda view: ["RESTORE", self.key(view, target), ttl_ms, dumps[view], "REPLACE"])

    def alter(self) -> None:
        """More features, another TTL."""
        if len(self.features) < 60 and self.chance.random() < 0.6:
            name = f"more{len(self.features)}"
            more = self.chance.choice([["INT", "DEFAULT", 1], ["STRING"], ["VECTOR", 2], ["BOOL"]])
            words = ["ADD", name, *more]
        else:
            words = ["TTL", self.chance.choice(["NONE", "20m", "1h"])]
        self.both(lambda view: ["FS.ALTER", view, *words])
        self.learn()

    def step(self) -> None:
        """One random operation."""
        steps = {
            self.publish: 30,
            self.publish_many: 10,
            self.append: 6,
            self.delete: 3,
            self.replay: 1 if self.has_log else 0,
            self.expire: 3,
            self.move: 3,
            self.restore: 2,
            self.alter: 1,
        }
        (do,) = self.chance.choices(list(steps), list(steps.values()))
        refused = self.refused
        do()
        if refused == self.refused:
            self.done[do.__name__] = self.done.get(do.__name__, 0) + 1

    def run(self, steps: int, read_every: int = 40) -> None:
        self.now_ms = clock_ms(self.client)
        for i in range(steps):
            self.step()
            if i % read_every == 0:
                self.compare()
        self.compare()

    # Reading both

    def readings(self, view: str) -> list[list]:
        """Calls of every command that reads."""
        chance = random.Random(self.chance_of_reading)
        ids = [*self.ids, b"nobody"]
        keys = [self.key(view, id_) for id_ in ids]
        some = chance.choices(self.served, k=chance.choice([1, 2, 12]))
        numbers = [column["feature"] for column in self.document["tensor"]["columns"]]
        calls: list[list] = []
        for key in keys:
            calls += [
                ["FS.GET", key],
                ["FS.GET", key, "WITHSTATUS"],
                ["FS.GET", key, "WITHSTATUS", *some],
                # Not where states of events ahead of the clock are anchored, which is when they came to each.
                ["FS.GET", key, "AT", self.now_ms - chance.choice([50_000, 700_000]), "WITHSTATUS"],
                ["FS.EXPLAIN", key],
                ["PTTL", key],
                ["PEXPIRETIME", key],
            ]
        calls += [["FS.MGET", "*", *keys], ["FS.MGET", ",".join(some), *keys], ["EXISTS", *keys]]
        if numbers:
            picked = chance.sample(numbers, chance.randint(1, len(numbers)))
            calls += [["FS.TENSOR", ",".join(names), *keys] for names in (numbers, picked)]
        for form in FORMATS if numbers else FORMATS[:-1]:
            calls.append(["FS.SERVE", f"{form.lower()}_{view}", *ids, *ids[:3]])
        calls += [["FS.INFO", view], ["XRANGE", f"fs:stream:{view}", "-", "+"]]
        calls.append(["XRANGE", f"fs:dlq:{view}", "-", "+"])
        return calls

    def compare(self, server=None) -> None:
        """Every reading command answers the same of both, on a server and in both protocols."""
        server = server or self.server
        self.chance_of_reading = self.chance.random()
        for protocol in (2, 3):
            with server.client(protocol=protocol) as client:
                with client.pipeline(transaction=True) as pipeline:
                    for view in (HASH, PACKED):
                        for call in self.readings(view):
                            pipeline.execute_command(*call)
                    for view in (HASH, PACKED):
                        pipeline.execute_command("FS.SCAN", view, 0, "COUNT", 100_000)
                    answers = pipeline.execute(raise_on_error=False)
                *answers, ours, theirs = answers
                assert (ours[0], sorted(ours[1])) == (theirs[0], sorted(theirs[1]))
                assert ours[0] == b"0"
                calls = self.readings(PACKED)
                for call, our, their in zip(calls, answers[: len(calls)], answers[len(calls) :], strict=True):
                    if call[:2] == ["XRANGE", f"fs:dlq:{PACKED}"]:
                        our, their = map(timeless, (our, their))
                    our, their = nameless(our), nameless(their)
                    assert their == our, f"{call}: {different(their, our)}"
        self.compare_definitions(server)

    def compare_definitions(self, server) -> None:
        with server.client() as client:
            ours, theirs = (document_of(client, view) for view in (HASH, PACKED))
            assert (ours.pop("storage"), theirs.pop("storage")) == ("hash", "packed")
            assert "packed" not in ours and len(theirs.pop("packed")) > 0
            del ours["view"], theirs["view"]
            assert theirs == ours
            types = {client.type(key) for key in client.scan_iter(f"fs:v1:{PACKED}:*")}
            assert types <= {b"string"}
            types = {client.type(key) for key in client.scan_iter(f"fs:v1:{HASH}:*")}
            assert types <= {b"hash"}


def refusal(client, *words) -> str:
    """What a call that must be refused is answered."""
    try:
        answer = client.execute_command(*words)
    except valkey.ResponseError as error:
        return str(error)
    raise AssertionError(f"{words} was answered {answer!r}")
