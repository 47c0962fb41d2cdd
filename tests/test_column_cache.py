"""The column cache never says anything but what the rows say: any mix of changes by anybody, at once and later."""

import random

import pytest
from column_cases import IDS, ROOMY, Difference, check_reading, define, figures
from column_changes import OTHERS, ROWS, WHOLE, Changes

QUICK = {"fs.sweep-interval": 20}
LIMITS = (ROOMY, ROOMY, ROOMY, 200_000, 60_000)


class Mix:
    """Random changes on a primary, and random rows read there and elsewhere after every few."""

    def __init__(self, servers, seed: int):
        self.servers, self.draw = servers, random.Random(seed)
        self.clients = [server.client() for server in servers]
        for client in self.clients:
            client.response_callbacks.clear()
        define(servers[0].client())
        for replica in servers[1:]:
            servers[0].await_replicated(replica)
        self.changes = Changes(servers[0], self.draw)
        templates = [*ROWS, *OTHERS, *WHOLE]
        self.in_turn = [line for line in templates if self.changes.is_there(line)]
        self.draw.shuffle(self.in_turn)

    def play(self, rounds: int) -> None:
        for i in range(rounds):
            for _ in range(self.draw.randint(1, 5)):
                self.changes.run(self.changes.some())
            if i % 8 == 0:
                # Each kind has its turn, however rare it is.
                line = self.in_turn[i // 8 % len(self.in_turn)]
                self.changes.run(self.changes.native([line]), "plain")
            self.check()

    def check(self) -> None:
        draw = self.draw
        ids = draw.sample(IDS, draw.randint(1, len(IDS)))
        for server, client in zip(self.servers, self.clients, strict=True):
            is_primary = client is self.clients[0]
            first = self.changes.some() if is_primary and draw.random() < 0.4 else ()
            try:
                wrong = check_reading(client, ids, limit=draw.choice(LIMITS), first=first)
            except Difference as difference:
                told = self.changes.told_of(difference.ids)
                raise AssertionError(f"{server}, after {first}: {difference}\n{told}") from None
            self.changes.note("first", first)
            # What is no row is refused, and hides the others.
            if is_primary and wrong and draw.random() < 0.7:
                client.execute_command("DEL", *wrong)

    def assert_met(self) -> None:
        """Was the cache asked, had it answers, did it forget, and was everything done?"""
        for server in self.servers:
            told = figures(server)
            assert min(told["hits"], told["misses"], told["forgotten"]) > 300, told
        missing = {line.split()[1] for line in ROWS if line in self.in_turn} - set(self.changes.done)
        assert not missing, f"{missing} never came to anything: {self.changes.done}"
        assert set(self.changes.ways) <= set(self.changes.done)


@pytest.mark.parametrize("seed", range(4))
def test_the_cache_says_what_the_rows_say_after_any_changes_on_the_primary_and_on_a_replica(
    fresh_server, seed
):
    primary = fresh_server(QUICK)
    mix = Mix([primary, primary.replica()], seed)
    mix.play(1_400)
    mix.assert_met()


@pytest.mark.parametrize("reload", ["RELOAD", "LOADAOF"])
def test_the_cache_says_what_the_rows_say_also_after_loads(fresh_server, reload):
    server = fresh_server(QUICK | {"appendonly": "yes"})
    mix = Mix([server], 11)
    for _ in range(40):
        mix.play(30)
        assert server.client().execute_command("DEBUG", reload) == b"OK"
        mix.check()
    mix.assert_met()


def test_the_cache_says_what_the_rows_say_while_it_is_full(fresh_server):
    """With a limit under which few rows fit, changed all the time."""
    server = fresh_server(QUICK | {"fs.column-cache-max-bytes": 75_000})
    mix = Mix([server], 21)
    mix.play(600)
    told = figures(server)
    assert min(told["hits"], told["misses"], told["forgotten"]) > 100, told
