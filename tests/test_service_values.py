"""What FS.SERVE and FS.RANK answer, against FS.GET and FS.TENSOR of one row and one feature at a time.

Each generated case of service_cases.py is read in every format, with and without status, in both protocols. All calls
of a comparison stand in one MULTI: they see one clock and so the same ages. Besides, what reading counts and samples.
"""

import base64
import json
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import valkey
from drifting_view import arrivals, module_info, register_watched, typed
from profile_view import figures
from service_cases import KINDS, NUMERIC, WINDOWS, Case, Reference, Service, shown
from service_views import RANKING, SMALL, VARIANTS, as_map, register, set_service
from windowed_view import fs

BATCHES, CASES_A_BATCH = 10, 50


@dataclass
class Cell:
    """One feature of one row, as single calls tell it. Each may be an error."""

    plain: object
    with_status: object
    tensor: object

    @property
    def status(self) -> str:
        return self.with_status[1].decode()


@pytest.fixture(scope="module")
def coverage() -> Counter:
    """What the generated cases compared: values by how they were read, of what kind they were and in what state."""
    return Counter()


def same(a, b) -> bool:
    """Equal, and of the same types and signs."""
    return repr(a) == repr(b)


# Reading


class Reader:
    """A connection of one protocol that reads a service whole, and all that is in it one by one."""

    def __init__(self, server, protocol: int):
        self.client, self.protocol = server.client(protocol=protocol), protocol

    def read(self, service: Service) -> tuple[dict, dict]:
        """The reply of each variant, and the cells by key and feature."""
        variants = [v for v in VARIANTS if v[0] != "TENSOR" or service.is_numeric]
        cells = {
            (key, reference.feature): reference
            for reference in service.references
            for key in {service.key(reference, id_) for id_ in service.ids}
        }
        with self.client.pipeline(transaction=True) as transaction:
            for (key, feature), reference in cells.items():
                transaction.execute_command("FS.GET", key, feature)
                transaction.execute_command("FS.GET", key, "WITHSTATUS", feature)
                if reference.kind in NUMERIC:
                    transaction.execute_command("FS.TENSOR", feature, key)
            for variant in variants:
                transaction.execute_command(*service.reading(*variant))
            replies = iter(transaction.execute(raise_on_error=False))
        told = {}
        for place, reference in cells.items():
            got = [self.value(next(replies)) for _ in range(2)]
            told[place] = Cell(*got, next(replies) if reference.kind in NUMERIC else None)
        return {variant: next(replies) for variant in variants}, told

    @staticmethod
    def value(reply):
        """The one value of FS.GET's map."""
        return reply if isinstance(reply, Exception) else next(iter(as_map(reply).values()))


def in_json(kind: str, value):
    """What a value of FS.GET, in either protocol, must be in JSON."""
    if value is None:
        return None
    match kind:
        case "FLOAT":
            return float(value)
        case "BOOL":
            return bool(value)
        case "VECTOR":
            return [float(number) for number in value]
        case "LIST":
            return json.loads(value)
        case "STRING" | "VALUES":
            try:
                return value.decode()
            except UnicodeDecodeError:
                return {"$base64": base64.b64encode(value).decode()}
    return value


def is_in_json(kind: str, got, expected) -> bool:
    """Is this the value? A number has no type in JSON, but an integer is written as one."""
    match kind:
        case _ if expected is None:
            return got is None
        case "FLOAT":
            return type(got) in (int, float) and same(float(got), expected)
        case "VECTOR":
            return len(got) == len(expected) and all(map(is_in_json, ["FLOAT"] * len(got), got, expected))
    return same(got, expected)


def parsed(text: bytes) -> list[dict]:
    """JSON of a reply. Python alone forgets the sign of -0 and all but one of two members of a name, and takes NaN."""

    def refuse(word: str):
        raise AssertionError(f"{word} is no JSON")

    def members(pairs: list[tuple]) -> dict:
        assert len(dict(pairs)) == len(pairs), f"a name stands twice among {pairs}"
        return dict(pairs)

    return json.loads(
        text.decode(),
        object_pairs_hook=members,
        parse_constant=refuse,
        parse_int=lambda digits: -0.0 if digits == "-0" else int(digits),
    )


# Comparing


class Comparison:
    """One service of a case, as one protocol answers it."""

    def __init__(self, case: Case, service: Service, reader: Reader):
        self.case, self.service, self.protocol = case, service, reader.protocol
        self.seen = Counter()
        self.replies, self.cells = reader.read(service)

    def cell(self, reference: Reference, id_: bytes) -> Cell:
        return self.cells[self.service.key(reference, id_), reference.feature]

    def check(self, is_right: bool, variant: tuple, *parts) -> None:
        calls = (shown(self.service.setting(*variant)), shown(self.service.reading(*variant)))
        if not is_right:
            pytest.fail(self.case.report(self.service, f"RESP{self.protocol}", *calls, *parts))

    def compare(self) -> Counter:
        for variant, reply in self.replies.items():
            format_, with_status = variant
            refused = self.refusals(format_, with_status)
            if refused or isinstance(reply, Exception):
                self.check(str(reply) in refused, variant, f"answered {reply!r}, single calls {refused}")
                self.seen["refused", format_, with_status] += 1
                continue
            match format_:
                case "TENSOR":
                    self.compare_tensor(variant, reply)
                case "JSON":
                    self.compare_json(variant, reply)
                case _:
                    self.compare_rows(variant, reply)
            self.count(variant)
        return self.seen

    def refusals(self, format_: str, with_status: bool) -> set[str]:
        """What single calls are refused with."""
        cells = self.cells.values()
        told = {
            "TENSOR": [cell.tensor for cell in cells],
            True: [cell.with_status for cell in cells],
            False: [cell.plain for cell in cells],
        }["TENSOR" if format_ == "TENSOR" else with_status]
        return {str(reply) for reply in told if isinstance(reply, Exception)}

    def expected_row(self, id_: bytes, with_status: bool) -> list:
        cells = [self.cell(reference, id_) for reference in self.service.references]
        return [cell.with_status if with_status else cell.plain for cell in cells]

    def compare_rows(self, variant: tuple, reply) -> None:
        format_, with_status = variant
        names = [reference.text.encode() for reference in self.service.references]
        self.check(len(reply) == len(self.service.ids), variant, f"answered {len(reply)} rows")
        for id_, row in zip(self.service.ids, reply, strict=True):
            expected = self.expected_row(id_, with_status)
            if format_ == "MAP":
                self.check(isinstance(row, dict) == (self.protocol == 3), variant, f"a row is {row}")
                row, expected = list(as_map(row).items()), list(zip(names, expected, strict=True))
            self.check(same(row, expected), variant, f"id {id_}: {row}", f"single calls: {expected}")

    def compare_json(self, variant: tuple, reply) -> None:
        self.check(type(reply) is bytes, variant, f"answered {type(reply)}")
        rows = parsed(reply)
        names = [reference.text for reference in self.service.references]
        self.check(len(rows) == len(self.service.ids), variant, f"answered {len(rows)} rows")
        for id_, row in zip(self.service.ids, rows, strict=True):
            self.check(list(row) == names, variant, f"names {list(row)}")
            told = self.expected_row(id_, variant[1])
            for reference, expected in zip(self.service.references, told, strict=True):
                got = row[reference.text]
                if variant[1]:
                    value, status, age_ms = expected
                    self.check(same(got[1:], [status.decode(), age_ms]), variant, f"{got}, not {expected}")
                    got, expected = got[0], value
                expected = in_json(reference.kind, expected)
                is_right = is_in_json(reference.kind, got, expected)
                self.check(is_right, variant, f"{reference.text} of {id_}: {got!r}, not {expected!r}")

    def compare_tensor(self, variant: tuple, reply) -> None:
        (n, k), blob, *bitmap = reply
        rows = [[self.cell(r, id_) for r in self.service.references] for id_ in self.service.ids]
        expected = b"".join(cell.tensor for row in rows for cell in row)
        self.check(n == len(rows) and 4 * n * k == len(expected), variant, f"shape {n}, {k}")
        self.check(blob == expected, variant, f"tensor {blob}", f"single calls: {expected}")
        self.check(len(bitmap) == variant[1], variant, f"{len(reply)} parts")
        if not variant[1]:
            return
        present = np.zeros((n, k), "u1")
        for i, row in enumerate(rows):
            column = 0
            for reference, cell in zip(self.service.references, row, strict=True):
                width = len(cell.tensor) // 4
                # A window is there although its row is none; whether it is present no single call tells then.
                unknown = isinstance(cell.with_status, Exception)
                present[i, column : column + width] = 255 if unknown else is_present(reference, cell)
                column += width
        bits = np.unpackbits(np.frombuffer(bitmap[0], "u1"), bitorder="little")
        self.check(len(bitmap[0]) == -(-n * k // 8), variant, f"{len(bitmap[0])} bytes of bits")
        self.check(not bits[n * k :].any(), variant, "a bit is set behind the last one")
        got = np.where(present == 255, 255, bits[: n * k].reshape(n, k))
        self.check(np.array_equal(got, present), variant, f"bits {got}", f"by the statuses {present}")

    def count(self, variant: tuple) -> None:
        """What was compared."""
        at = (*variant, self.protocol)
        for reference in self.service.references:
            role = self.service.role(reference)
            kind = (
                f"window {reference.kind}"
                if reference.view.features[reference.feature].window
                else reference.kind
            )
            for id_ in self.service.ids:
                cell = self.cell(reference, id_)
                if isinstance(cell.with_status, Exception):
                    continue
                status = "no number" if has_no_number(reference, cell) else cell.status
                self.seen[at, kind, status] += 1
                if not kind.startswith("window"):
                    self.seen[at, "storage", reference.view.storage, cell.status] += 1
                self.seen[at, "role", role, status] += 1
        parts = Counter(id(reference.view) for reference in self.service.references)
        self.seen[at, "versions", len(parts) > len({r.view.name for r in self.service.references})] += 1
        self.seen[at, "wide", max(parts.values()) > 8] += 1
        self.seen[at, "ids", len(set(self.service.ids)) < len(self.service.ids)] += 1


def has_no_number(reference: Reference, cell: Cell) -> bool:
    """A STRING that is none of VALUES: it is served as text, but no column can hold it."""
    is_text = reference.kind == "VALUES" and cell.status == "PRESENT"
    values = reference.view.features[reference.feature].words
    return is_text and cell.with_status[0] not in [str(word).encode() for word in values[3 : 3 + values[2]]]


def is_present(reference: Reference, cell: Cell) -> bool:
    return cell.status == "PRESENT" and not has_no_number(reference, cell)


def prepare(client, case: Case) -> None:
    """Makes the views, rows and services; a tensor of what has no number is refused."""
    with client.pipeline(transaction=False) as pipeline:
        for words in case.commands:
            pipeline.execute_command(*words)
        for words, reply in zip(case.commands, pipeline.execute(raise_on_error=False), strict=True):
            assert not isinstance(reply, Exception), (
                f"case {case.number}: {shown(words)} is answered by {reply}"
            )
    for service in case.services:
        for variant in VARIANTS:
            words = service.setting(*variant)
            if variant[0] == "TENSOR" and not service.is_numeric:
                with pytest.raises(valkey.ResponseError, match=r"^SCHEMA .*has no number"):
                    client.execute_command(*words)
            else:
                assert client.execute_command(*words) == b"OK", f"case {case.number}: {shown(words)}"


def storages_of(client) -> list[str]:
    """How rows may lie, as FS.REGISTER documents it: words behind STORAGE."""
    (line,) = [
        line.decode() for line in client.execute_command("FS.HELP", "FS.REGISTER") if b"[STORAGE " in line
    ]
    return re.search(r"\[STORAGE ([^\]]+)\]", line).group(1).strip("<>").split(" | ")


@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_service_serves_what_single_calls_serve(server, coverage, batch):
    readers = [Reader(server, protocol) for protocol in (2, 3)]
    client = readers[0].client
    storages = storages_of(client)
    for number in range(batch * CASES_A_BATCH, (batch + 1) * CASES_A_BATCH):
        seconds, micros = client.time()
        case = Case(number, seconds * 1000 + micros // 1000, storages)
        prepare(client, case)
        for service in case.services:
            for reader in readers:
                coverage.update(Comparison(case, service, reader).compare())
    coverage["batches"] += 1


STATUSES = ("PRESENT", "DEFAULT", "NOT_FOUND", "OUTSIDE_MAX_AGE", "INVALID")


def test_every_format_met_every_type_in_every_state(client, coverage):
    if coverage["batches"] < BATCHES:
        pytest.skip("not all batches ran")
    # Any bytes are a STRING; those of VALUES may be none of them instead.
    states = {(kind, status) for kind in KINDS for status in STATUSES}
    states -= {("STRING", "INVALID"), ("VALUES", "INVALID")}
    states |= {("VALUES", "no number")}
    # A window over nothing has a value, if it is a count or a list, and never grows old.
    states |= {(f"window {kind}", "PRESENT") for kind in WINDOWS}
    states |= {
        (f"window {kind}", status)
        for kind in ("FLOAT", "BOOL", "STRING", "VECTOR")
        for status in ("DEFAULT", "NOT_FOUND")
    }
    states |= {
        (("role", role), status) for role in ("entity", "context", "candidate", "pair") for status in STATUSES
    }
    states |= {(("storage", storage), status) for storage in storages_of(client) for status in STATUSES}
    missing = []
    for format_, with_status in VARIANTS:
        for protocol in (2, 3):
            at = (format_, with_status, protocol)
            for kind, status in states:
                is_kind = isinstance(kind, str)
                has_number = not is_kind or kind.removeprefix("window ") in NUMERIC
                key = (at, kind, status) if is_kind else (at, *kind, status)
                if (format_ != "TENSOR" or has_number) and not coverage[key]:
                    missing.append(key)
            for what in ("versions", "wide", "ids"):
                missing += [(at, what, is_so) for is_so in (True, False) if not coverage[at, what, is_so]]
        if not coverage["refused", format_, with_status]:
            missing.append(("refused", format_, with_status))
    assert not missing


# What is counted


def test_what_is_read_is_counted_the_same_in_every_format(client, server):
    for view, words in SMALL.items():
        register(client, view, words)
    client.hset("fs:v1:profile:u1", mapping={"age": "x", "plan": "free"})
    client.hset("fs:v1:goods:i1", mapping={"price": "x", "emb": "1,2"})
    client.hset("fs:v1:goods:i2", "price", "1")
    client.hset("fs:v1:both:u1:i2", "clicks", "x")
    features = "FEATURES 5 goods:emb profile@1:age both:clicks goods:price profile@1:plan"
    for format_, with_status in VARIANTS:
        status = "WITHSTATUS" * with_status
        set_service(client, "ranking", f"{RANKING} FORMAT {format_} {status} {features}")
        set_service(client, "serving", f"FORMAT {format_} {status} FEATURES 2 profile@1:age profile:age")
        # A call: rows that it reads, and fields of them by view that are none.
        for call, rows, invalid in [
            ("FS.RANK ranking u1 i1 i2 none", 7, {"profile": 1, "goods": 2, "both": 1}),
            ("FS.RANK ranking u1 i1 i1", 5, {"profile": 1, "goods": 4}),
            ("FS.RANK ranking none i2", 3, {}),
            ("FS.SERVE serving u1 u2 u1", 6, {"profile": 2}),
            ("FS.SERVE nothing u1", 0, {}),
            ("FS.SERVE serving u1 " + "u" * 513, 0, {}),
        ]:
            before = counts(client, server)
            try:
                fs(client, call)
            except valkey.ResponseError:
                assert rows == 0
            expected = {"rows_served": rows, **dict.fromkeys(("profile", "goods", "both"), 0), **invalid}
            after = counts(client, server)
            grown = {name: after[name] - before[name] for name in expected}
            assert grown == expected, (format_, with_status, call)


def counts(client, server) -> dict:
    views = {view: figures(client, view)["invalid_values"] for view in ("profile", "goods", "both")}
    return {"rows_served": module_info(server)["rows_served"]} | views


def test_a_text_that_is_none_of_values_is_invalid_where_a_number_is_asked_for(client):
    register(client, "profile", SMALL["profile"])
    client.hset("fs:v1:profile:u1", "plan", "gold")
    for format_, count in (("MAP", 0), ("ARRAY", 0), ("JSON", 0), ("TENSOR", 1)):
        set_service(client, "s", f"FORMAT {format_} FEATURES 1 profile:plan")
        before = figures(client)["invalid_values"]
        fs(client, "FS.SERVE s u1 u2")
        assert figures(client)["invalid_values"] - before == count, format_


@pytest.mark.parametrize(("format_", "with_status"), VARIANTS)
def test_what_is_served_is_sampled_as_by_fs_get(server, format_, with_status):
    client = typed(server)
    binary = server.client()  # A tensor is no text.
    register_watched(
        client,
        *("SAMPLE", 1, "ON", "SERVE"),
        schema="n INT d INT DEFAULT 3 part FLOAT INPUT c INT AGG COUNT part WINDOW 1h",
    )
    register_watched(client, view="published", schema="n INT part FLOAT INPUT")
    # FS.DROP and another definition: items instead of users.
    fs(client, "FS.REGISTER goods ENTITY item SAMPLE 1 ON SERVE SCHEMA price FLOAT")
    fs(client, "FS.BASELINE goods price STATS mean 1 stddev 1 missing 0")
    for key, feature in (
        ("profile:u1", "n"),
        ("profile:u2", "d"),
        ("published:u1", "n"),
        ("goods:i1", "price"),
    ):
        client.hset(f"fs:v1:{key}", feature, 1)
    client.hset("fs:v1:profile:u3", "n", "none")
    options = f"FORMAT {format_} {'WITHSTATUS' * with_status}"
    set_service(client, "serving", f"{options} FEATURES 4 profile:n published:n profile:d profile:c")
    set_service(client, "ranking", f"CONTEXT user CANDIDATE item {options} FEATURES 2 profile:n goods:price")
    fs(binary, "FS.SERVE serving u1 u2 u3 u1")
    # Values and arrivals without: what is served for want of a value is none.
    came = {name: arrivals(client, name) for name in ("n", "d", "c")}
    assert came == {"n": (2, 2), "d": (1, 3), "c": (4, 0)}
    assert arrivals(client, "n", "published") == (0, 0)
    # One FS.GET of each row adds as much.
    for user in ("u1", "u2", "u3", "u1"):
        fs(binary, f"FS.GET fs:v1:profile:{user} n d c")
    assert {name: arrivals(client, name) for name in came} == {
        name: (2 * present, 2 * absent) for name, (present, absent) in came.items()
    }
    # The context is read once, however many are ranked.
    fs(binary, "FS.RANK ranking u1 i1 i2 i1")
    assert arrivals(client, "n") == (5, 4)
    assert arrivals(client, "d") == (2, 6)
    assert arrivals(client, "price", "goods") == (2, 1)
    # What is refused is served to nobody.
    client.rpush("fs:v1:goods:wrong", "x")
    for call in ("FS.SERVE serving u1 " + "u" * 513, "FS.RANK ranking u1 i1 " + "i" * 513):
        with pytest.raises(valkey.ResponseError):
            fs(binary, call)
    assert arrivals(client, "n") == (5, 4)
