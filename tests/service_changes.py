"""Changes of services and of the views that they read, for tests, and what is told of them."""

import random
import re
from collections.abc import Callable

import pytest
import valkey
from service_views import (
    RANKED,
    RANKING,
    SERVED,
    VARIANTS,
    described,
    reading,
    register,
    services,
    set_service,
    settings,
    variant,
)
from test_odd_input import CODES
from windowed_view import fs


def refusal(client, line: str) -> str:
    """What a call is refused with, the code first."""
    with pytest.raises(valkey.ResponseError) as refused:
        fs(client, line)
    text = str(refused.value)
    # The client takes ERR away.
    return text if re.match(f"({CODES}) ", text) else f"ERR {text}"


# Services in every state


def change(client) -> None:
    """Leaves services of altered, dropped and changed views, some replaced, deleted, of a pinned version."""
    register(client, "gone", "ENTITY user SCHEMA a INT DEFAULT 1")
    register(client, "other", "ENTITY user SCHEMA a INT DEFAULT 1 s STRING VALUES 2 x y")
    register(client, "back", "ENTITY user SCHEMA a INT DEFAULT 1")
    for view in ("gone", "other", "back"):
        set_service(client, f"of_{view}", f"FEATURES 2 {view}:a profile@1:age")
        fs(client, f"FS.DROP {view}")
    set_service(client, "of_values", "FORMAT TENSOR FEATURES 1 profile@1:plan")
    register(client, "other", "ENTITY user SCHEMA a FLOAT DEFAULT 1 s STRING VALUES 2 y x")
    register(client, "back", "ENTITY user SCHEMA b INT a INT DEFAULT 2")
    fs(client, "FS.ALTER goods TTL 1h ADD more INT DEFAULT 5")
    set_service(client, "with_more", "FEATURES 2 goods:more goods:price")
    set_service(client, "pinned", "FEATURES 1 account:since")
    register(client, "account@9", "ENTITY user SCHEMA since INT DEFAULT 9")
    set_service(client, "newest", "FEATURES 1 account:since")
    set_service(client, "rank_map", f"{RANKING} FORMAT ARRAY FEATURES 1 goods:price")
    fs(client, "FS.SERVICE DEL entity_map")


def assert_changed(client) -> None:
    """Are they in the states that `change` left?"""
    assert set(services(client)) == (settings().keys() - {"entity_map"}) | {
        *("of_gone", "of_other", "of_back", "of_values", "with_more", "pinned", "newest"),
    }
    problems = {name: described(client, name)["problem"] for name in services(client)}
    assert {name for name, problem in problems.items() if problem} == {"of_gone", "of_other"}
    assert fs(client, "FS.SERVE pinned none") == [[b"account:since", 1_600_000_000_000]]
    assert fs(client, "FS.SERVE newest none") == [[b"account:since", 9]]
    assert fs(client, "FS.SERVE of_back none") == [[b"back:a", 2, b"profile@1:age", 7]]


# Any mix of changes


OTHER_VIEWS = {
    "profile VERSION 2": ("ENTITY user SCHEMA age FLOAT ok BOOL", "ENTITY user SCHEMA age FLOAT ok INT"),
    "profile VERSION 3": ("ENTITY user SCHEMA age STRING ok INT",),
    "account VERSION 1": (
        "ENTITY user SCHEMA since INT",
        "ENTITY user SCHEMA since TIMESTAMP DEFAULT 1500000000000",
    ),
    "account VERSION 2": ("ENTITY user SCHEMA since TIMESTAMP",),
    "both VERSION 1": (
        "ENTITY user_item SCHEMA clicks INT DEFAULT 1 dwell FLOAT",
        "ENTITY item SCHEMA clicks INT",
    ),
}


class Mix:
    """Random changes of the store that `service_views.define` makes. `refused`: calls that came to nothing."""

    def __init__(self, client, draw: random.Random):
        self.client, self.draw, self.refused = client, draw, []
        self.kinds: dict[str, tuple[int, Callable]] = {
            "set": (9, self.set_any),
            "set again": (2, self.set_again),
            "delete": (3, lambda: self.run(f"FS.SERVICE DEL {draw.choice(services(client))}")),
            "delete none": (1, lambda: self.run("FS.SERVICE DEL nothing")),
            "drop": (1, lambda: self.run(f"FS.DROP {draw.choice(list(OTHER_VIEWS))}")),
            "register": (3, self.register),
            "alter": (1, lambda: self.run(f"FS.ALTER goods TTL {draw.choice(['1h', '30d', 'NONE'])}")),
            "publish": (
                2,
                lambda: self.run(f"FS.PUBLISH fs:v1:goods:i{draw.randrange(3)} price {draw.random()}"),
            ),
            "transaction": (1, self.transaction),
            "script": (1, self.script),
        }
        self.last = "entity_last FEATURES 1 profile@1:age"

    def play(self, count: int) -> None:
        """Each kind once, and more of them at random."""
        weights = [weight for weight, _ in self.kinds.values()]
        for name in [*self.kinds, *self.draw.choices(list(self.kinds), weights, k=count)]:
            self.kinds[name][1]()

    def run(self, line: str) -> None:
        # What is named may be gone, or another.
        try:
            fs(self.client, line)
        except valkey.ResponseError as error:
            assert re.match("(NOVIEW|NOFEATURE|NOSERVICE|SCHEMA|VIEWEXISTS) ", str(error)), (line, error)
            self.refused.append(line)

    def set_any(self) -> None:
        draw = self.draw
        ranks = draw.random() < 0.5
        format_, with_status = draw.choice(VARIANTS)
        features = [*SERVED["entity"], *(RANKED["rank"] if ranks else ())]
        if format_ != "TENSOR":
            features += [*SERVED["texts"], *(RANKED["rank_texts"] if ranks else ())]
        chosen = draw.sample(sorted(set(features)), draw.randint(1, 5))
        options = f"{RANKING * ranks} FORMAT {format_} {'WITHSTATUS' * with_status}"
        name = f"{'rank' if ranks else 'entity'}_{draw.randrange(4)}"
        self.last = f"{name} {options} FEATURES {len(chosen)} {' '.join(chosen)}"
        self.set_again()

    def set_again(self) -> None:
        self.run(f"FS.SERVICE SET {self.last}")

    def register(self) -> None:
        view = self.draw.choice(list(OTHER_VIEWS))
        self.run(f"FS.REGISTER {view} {self.draw.choice(OTHER_VIEWS[view])}")

    def transaction(self) -> None:
        with self.client.pipeline() as pipeline:
            for line in (
                "FS.REGISTER v ENTITY user SCHEMA a INT",
                "FS.SERVICE SET entity_v FEATURES 1 v:a",
                "FS.DROP v",
            ):
                pipeline.execute_command(*line.split())
            pipeline.execute()

    def script(self) -> None:
        words = f"{RANKING} FEATURES 1 goods:price".split()
        self.client.eval("return redis.call('FS.SERVICE', 'SET', 'rank_s', unpack(ARGV))", 0, *words)


# Services of one view


def define_watched(client) -> None:
    """Services of each format over a user's and an item's view, and one of the item's alone."""
    register(client, "profile", "ENTITY user SCHEMA age INT DEFAULT 1 plan STRING VALUES 2 free pro")
    register(client, "goods", "ENTITY item SCHEMA price FLOAT DEFAULT 2")
    for format_, with_status in VARIANTS:
        options = f"FORMAT {format_} {'WITHSTATUS' * with_status} FEATURES"
        set_service(client, variant("entity", format_, with_status), f"{options} 2 profile:plan profile:age")
        ranking = f"CONTEXT user CANDIDATE item {options} 3 goods:price profile:age profile:plan"
        set_service(client, variant("rank", format_, with_status), ranking)
    set_service(client, "untouched", "FEATURES 1 goods:price")
    fs(client, "FS.PUBLISH fs:v1:profile:u1 age 34 plan pro")
    assert not [name for name in services(client) if described(client, name)["problem"]]


def assert_told(client, problem: str) -> None:
    """Does every service that reads the profile say so, in reading and in FS.SERVICE GET, while the other answers?"""
    for name in services(client):
        if name == "untouched":
            assert fs(client, "FS.SERVE untouched i1") == [[b"goods:price", b"2"]]
            continue
        expected = problem.format(name)
        assert refusal(client, " ".join(reading(name))) == expected
        shown = described(client, name)
        assert (shown["problem"], shown["columns"]) == (expected, [])
        assert shown["versions"] == [*([["goods", 1]] if name.startswith("rank") else []), ["profile", 1]]
