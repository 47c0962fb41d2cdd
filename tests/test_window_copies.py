"""Windows are the same on every copy: replicas, full resyncs, the AOF, the RDB, failovers and promotions.

The load is a mix of everything that writes windows. Two copies must agree on DEBUG DIGEST-VALUE and expiry of every
key, and on what FS.GET answers AT one moment.
"""

import itertools
import json
import random
import threading

import pytest
import valkey
from profile_view import LOG, await_drained, consumer, entry, figures, module_figures
from test_persistence import ALWAYS, QUICK, WAYS, effects_in
from test_replication import assert_same, everything, fail_over
from test_resync import await_synced
from test_window_replay import all_windows, counted
from windowed_view import an_event, clock_ms, entities, fs, register_all, scanned, value

from server import Server, await_until

ENTITIES = 12
ROW, STATE = "fs:v1:profile:u1", "fs:w1:profile:u1"
SECOND = (
    "n INT x FLOAT INPUT word STRING INPUT top LIST AGG TOP_K 5 word WINDOW 1d s_1d FLOAT AGG SUM x WINDOW 1d "
    "s_7d FLOAT AGG SUM x WINDOW 7d c INT AGG COUNT WINDOW 30d"
)
COUNT_AND_SUM = "n INT x FLOAT INPUT c INT AGG COUNT x WINDOW 1d s FLOAT AGG SUM x WINDOW 7d"


class Traffic:
    """Everything that can happen to windows, drawn at random; each kind at least once."""

    def __init__(self, client, seed: int):
        self.client, self.chance = client, random.Random(seed)
        self.now_ms = clock_ms(client)
        self.numbers = itertools.count()
        self.mix = {
            name.removeprefix("do_"): getattr(self, name) for name in dir(self) if name.startswith("do_")
        }

    def define(self) -> None:
        register_all(self.client, "DEDUP", "10m", "TTL", "1d", "MAXLEN", 2_000)
        fs(self.client, f"FS.REGISTER profile VERSION 2 ENTITY user EXTRA IGNORE SCHEMA {SECOND}")

    def run(self, steps: int) -> None:
        chosen = list(self.mix) + self.chance.choices(
            list(self.mix),
            [8 if name.startswith(("publish", "add", "several")) else 1 for name in self.mix],
            k=steps,
        )
        self.chance.shuffle(chosen)
        for name in chosen:
            self.mix[name]()

    def settle(self) -> None:
        """Until nothing moves by itself."""
        consumer(self.client, "START")
        await_drained(self.client)
        await_until(lambda: module_figures(self.client)["dropping"] == 0, what="the drops to end")
        # A row that expires meanwhile would be another one there and here.
        await_until(
            lambda: all(
                left < 0 or left > 10_000 for left in map(self.client.pttl, self.client.keys("fs:v*"))
            ),
            what="the rows with little time left to go",
        )

    # What is drawn

    def entity(self) -> str:
        return f"u{self.chance.randrange(ENTITIES)}"

    def key(self, version: int | None = None) -> str:
        return f"fs:v{version or self.chance.choice([1, 1, 2])}:profile:{self.entity()}"

    def event(self, key: str = "fs:v1:") -> dict:
        event = an_event(self.chance) | ({"n": next(self.numbers)} if self.chance.random() < 0.5 else {})
        known = ("n", "x", "word") if key.startswith("fs:v2:") else event
        return {name: given for name, given in event.items() if name in known} or {"x": 0.5}

    def at_ms(self) -> int:
        minute = 60_000
        ago = [
            0,
            1,
            10_000,
            5 * minute,
            50 * minute,
            3 * 60 * minute,
            26 * 60 * minute,
            400 * 1_440 * minute,
            -minute,
        ]
        return self.now_ms - self.chance.choice(ago)

    def id(self) -> str:
        return f"e{self.chance.randrange(40)}"

    def publish(self, *options, key: str | None = None, via=None) -> None:
        key = key or self.key()
        event = json.dumps(self.event(key))
        (via or self.client).execute_command("FS.PUBLISH", key, *options, "JSON", event)

    def add(self, *more, **options) -> None:
        fields = entry(self.entity(), self.event(), self.at_ms() / 1000) | dict(
            zip(more[::2], more[1::2], strict=True)
        )
        self.client.xadd(LOG, fields, **options)

    # What happens

    def do_publish(self):
        self.publish()

    def do_publish_at(self):
        self.publish("AT", self.at_ms())

    def do_publish_event(self):
        self.publish("AT", self.at_ms(), "EVENT", self.id())

    def do_publish_unlogged(self):
        self.publish("NOLOG", "EVENT", self.id())

    def do_several(self):
        words = []
        for _ in range(self.chance.randint(1, 4)):
            key = self.key()
            words += [key, json.dumps(self.event(key) | {"_at": self.at_ms(), "_event": self.id()})]
        self.client.execute_command("FS.MPUBLISH", *words)

    def do_add(self):
        self.add()

    def do_add_with_id(self):
        self.add("event_id", self.id())

    def do_add_trimming(self):
        self.add(maxlen=300)

    def do_invalid(self):
        self.client.xadd(LOG, entry(self.entity(), {"x": "none"}))

    def do_delete_natively(self):
        self.client.delete(self.key(), self.key())

    def do_unlink(self):
        self.client.unlink(self.key())

    def do_delete_what_was_set_over(self):
        key = self.key()
        self.client.set(key, "x")
        self.client.delete(key)

    def do_delete_fields(self):
        key = self.key()
        if fields := self.client.hkeys(key):
            self.client.hdel(key, *fields)

    def do_delete(self):
        self.client.execute_command("FS.DEL", self.key(), self.key())

    def do_delete_state(self):
        self.client.delete(self.key().replace("fs:v", "fs:w"))

    def do_expire(self):
        key = self.key()
        if self.client.pexpire(key, 1):
            # The consumer may write it again meanwhile.
            await_until(lambda: not 0 <= self.client.pttl(key) <= 1, what="the row to expire")

    def do_move(self):
        source, target = self.key(1), self.key(1)
        if self.client.exists(source):
            self.client.rename(source, target)
        source, target = source.replace("fs:v", "fs:w"), target.replace("fs:v", "fs:w")
        if source != target and self.client.exists(source):
            self.client.copy(source, target, replace=True)

    def do_restore(self):
        source, target = (self.key(1).replace("fs:v", "fs:w") for _ in range(2))
        if dump := self.client.dump(source):
            self.client.restore(target, self.client.pexpiretime(source), dump, replace=True, absttl=True)

    def do_transaction(self):
        key = self.key()
        with self.client.pipeline() as pipeline:
            self.publish(key=key, via=pipeline)
            pipeline.delete(key)
            self.publish("EVENT", self.id(), key=key, via=pipeline)
            pipeline.xadd(LOG, entry(self.entity(), self.event()))
            pipeline.execute()

    def do_script(self):
        key = self.key()
        script = (
            "redis.call('FS.PUBLISH', KEYS[1], 'JSON', ARGV[1]) redis.call(ARGV[3], KEYS[1]) "
            "redis.call('FS.PUBLISH', KEYS[1], 'JSON', ARGV[2])"
        )
        events = [json.dumps(self.event(key)) for _ in range(2)]
        self.client.eval(script, 1, key, *events, self.chance.choice(["DEL", "UNLINK", "FS.DEL"]))

    def do_stop(self):
        consumer(self.client, "STOP")

    def do_start(self):
        consumer(self.client, "START")

    def do_consume(self):
        self.client.execute_command("FS.CONSUME", "profile", "COUNT", self.chance.randint(1, 30))

    def do_trim(self):
        self.client.execute_command("FS.TRIM", "profile", "MAXLEN", self.chance.randint(100, 400))

    def do_replay(self):
        fs(self.client, f"FS.REPLAY profile FROM 0 VERSION {self.chance.choice([1, 2])}")

    def do_replay_windows(self):
        fs(self.client, f"FS.REPLAY profile FROM 0 VERSION {self.chance.choice([1, 2])} WINDOWS")

    def do_alter(self):
        function = self.chance.choice(["MIN", "STDDEV_SAMP", "COUNT", "LAST"])
        type_ = "INT" if function == "COUNT" else "FLOAT"
        window = self.chance.choice(["1h", "2d", "90d"])
        words = f"more{next(self.numbers)} {type_} AGG {function} x WINDOW {window}"
        fs(self.client, f"FS.ALTER profile VERSION 2 ADD {words}")

    def do_new_version(self):
        version = 3 + next(self.numbers)
        fs(
            self.client,
            f"FS.REGISTER profile VERSION {version} ENTITY user EXTRA IGNORE SCHEMA {COUNT_AND_SUM}",
        )
        fs(self.client, f"FS.REPLAY profile FROM 0 VERSION {version} WINDOWS")
        if self.chance.random() < 0.7:
            fs(self.client, f"FS.DROP profile VERSION {version} DATA")

    def do_limit_ids(self):
        self.client.config_set("fs.dedup-max-ids", self.chance.choice([2, 1024]))


def versions(client) -> list[int]:
    return [version for view in client.execute_command("FS.VIEWS") for version in view[2]]


def served(client, at_ms: int) -> dict:
    """Of every version: what FS.GET answers of each entity; FS.GET that cannot answer tells why."""
    told = {}
    for version in versions(client):
        for entity in sorted(entities(client, "profile", version)):
            key = f"fs:v{version}:profile:".encode() + entity
            try:
                told[key] = client.execute_command("FS.GET", key, "AT", at_ms, "WITHSTATUS")
            except valkey.ResponseError as refusal:
                told[key] = str(refusal)
    return told


def assert_serves_the_same(primary: Server, replica: Server) -> None:
    assert_same(primary, replica)
    at_ms = clock_ms(primary.client()) + 120_000
    ours = served(primary.client(), at_ms)
    for server in (primary, replica):
        listed = scanned(server.client(), "profile", "VERSION", 1, "COUNT", 1_000)
        assert listed == entities(primary.client())
    assert len(ours) > ENTITIES and not any(isinstance(told, str) for told in ours.values())
    assert served(replica.client(), at_ms) == ours


@pytest.mark.parametrize("seed", range(2))
def test_all_copies_are_the_same_after_any_mix_of_writes(fresh_server, seed):
    primary = fresh_server(ALWAYS)
    replica = primary.replica({"repl-diskless-load": "on-empty-db", "appendonly": "no"})
    client = primary.client()
    traffic = Traffic(client, seed)
    traffic.define()
    traffic.run(600)
    traffic.settle()
    told = figures(client)
    for name in (
        "window_events",
        "late_events",
        "too_late_events",
        "duplicates",
        "dedup_overflows",
        "superseded",
    ):
        assert told[name] > 0, f"{name}: the traffic is not what it should be"
    assert len(client.keys("fs:w*")) > ENTITIES
    assert_serves_the_same(primary, replica)
    # A replica that was not there, and gets it all at once.
    late = primary.replica({"repl-diskless-load": "disabled", "appendonly": "no"})
    assert_serves_the_same(primary, late)
    # A power cut: the AOF alone.
    at_ms = clock_ms(client) + 120_000
    before, answered = everything(client), served(client, at_ms)
    primary.restart(kill=True)
    client = primary.client()
    for aspect, expected in everything(client).items():
        assert before[aspect] == expected, aspect
    assert served(client, at_ms) == answered
    await_synced(replica, primary)
    assert_serves_the_same(primary, replica)


@pytest.mark.parametrize("come_back, settings", WAYS, ids=lambda p: getattr(p, "__name__", ""))
def test_windows_survive(fresh_server, come_back, settings):
    server = fresh_server(settings)
    traffic = Traffic(server.client(), seed=7)
    traffic.define()
    traffic.run(150)
    traffic.settle()
    at_ms = clock_ms(server.client()) + 120_000
    before, answered = everything(server.client()), served(server.client(), at_ms)
    assert len(answered) > ENTITIES
    come_back(server)
    client = server.client()
    for aspect, expected in everything(client).items():
        assert before[aspect] == expected, aspect
    assert served(client, at_ms) == answered
    # And all goes on.
    traffic.client = client
    traffic.run(50)
    traffic.settle()
    client.execute_command("FS.PUBLISH", "fs:v2:profile:new", "NOLOG", "x", 2)
    assert value(client, "s_7d", "fs:v2:profile:new") == b"2"


def test_an_aof_that_was_cut_off_anywhere_brings_windows_and_log_in_step(fresh_server):
    server = fresh_server(ALWAYS | {"aof-load-truncated": "yes"})
    client = server.client()
    fs(client, f"FS.REGISTER profile ENTITY user MAXLEN 1000000 DEDUP 1h SCHEMA {COUNT_AND_SUM}")
    for i in range(300):
        key = f"fs:v1:profile:u{i % 7}"
        with client.pipeline() as pipeline:
            pipeline.execute_command("FS.PUBLISH", key, "EVENT", f"e{i % 90}", "n", i, "x", i)
            pipeline.xadd(LOG, entry(f"u{i % 5}", {"x": i}) | {"event_id": f"f{i % 90}"})
            pipeline.execute()
    await_drained(client)
    whole_log = client.xlen(LOG)
    server.kill()
    (file,) = server.folder.glob("appendonlydir/*.incr.aof")
    whole, chance = file.read_bytes(), random.Random(5)
    begin = whole.index(b"FS.REGISTER") + 600
    for _ in range(6):
        file.write_bytes(whole[: chance.randrange(begin, len(whole))])
        server.start()
        client = server.client()
        await_drained(client)
        assert 0 < client.xlen(LOG) < whole_log
        assert all_windows(client) == counted(client, dedup=True)
        server.kill()


def test_damaged_effects_in_an_aof_take_nothing_down(fresh_server):
    server = fresh_server(ALWAYS)
    traffic = Traffic(server.client(), seed=3)
    traffic.define()
    traffic.run(100)
    traffic.settle()
    server.kill()
    (file,) = server.folder.glob("appendonlydir/*.incr.aof")
    whole, chance = file.read_bytes(), random.Random(6)
    places = list(effects_in(whole))
    assert len(places) > 80
    for _ in range(12):
        hurt = bytearray(whole)
        for begin, end in chance.sample(places, len(places) // 2):
            match chance.randrange(3):
                case 0:
                    hurt[chance.randrange(begin, end)] ^= 1 << chance.randrange(8)
                case 1:
                    hurt[begin + 1 : end] = chance.randbytes(end - begin - 1)
                case 2:
                    # What announces long integers and lengths.
                    hurt[chance.randrange(begin, end)] = chance.choice([0, 251, 252, 253, 254, 255])
        file.write_bytes(hurt)
        server.start()
        client = server.client()
        for version in versions(client):
            for entity in entities(client, "profile", version):
                key = f"fs:v{version}:profile:".encode() + entity
                client.execute_command("FS.GET", key, "WITHSTATUS")
                client.execute_command("FS.PUBLISH", key, "NOLOG", "EVENT", "new", "x", 1)
        # What is in memory now can be saved, and what is saved can be loaded.
        assert client.execute_command("DEBUG", "RELOAD") == b"OK"
        assert module_figures(client)["panics"] == 0
        server.kill()
    server.check_log()
    assert "was not executed: " in server.log()


def test_a_promoted_replica_counts_on(fresh_server):
    first = fresh_server(QUICK)
    second = first.replica({"repl-diskless-load": "on-empty-db"})
    servers = [first, second]
    fs(first.client(), f"FS.REGISTER profile ENTITY user SCHEMA {COUNT_AND_SUM}")
    count = 0
    for old, new in (servers, servers[::-1], servers):
        client = old.client()
        for i in range(200):
            client.execute_command("FS.PUBLISH", f"fs:v1:profile:u{i % 5}", "x", 1)
            client.xadd(LOG, entry(f"u{i % 5}", {"x": 1}))
        count += 2 * 200 // 5
        # Some of it is still to be consumed.
        fail_over(old, new)
        client = new.client()
        await_drained(client)
        assert [value(client, "c", f"fs:v1:profile:u{i}") for i in range(5)] == [count] * 5
        assert_same(new, old)
    # Without a word.
    client = second.client()
    client.xadd(LOG, entry("u1", {"x": 1}))
    await_drained(client)
    second.await_replicated(first)
    second.kill()
    client = first.client()
    client.replicaof("NO", "ONE")
    client.execute_command("FS.PUBLISH", ROW, "x", 1)
    assert client.execute_command("FS.GET", ROW, "c", "s") == [b"c", count + 2, b"s", b"%d" % (count + 2)]


def test_windows_count_each_entry_once_over_failovers_in_full_flow(fresh_server):
    first = fresh_server(QUICK | {"fs.consumer-slice-us": 50})
    second = first.replica({"repl-diskless-load": "on-empty-db"})
    fs(first.client(), f"FS.REGISTER profile ENTITY user MAXLEN 1000000 SCHEMA {COUNT_AND_SUM}")
    total = 0
    for old, new in [(first, second), (second, first)] * 2:
        with old.client().pipeline(transaction=False) as pipeline:
            for i in range(3_000):
                pipeline.xadd(LOG, entry(f"u{i % 30}", {"x": 1}))
            pipeline.execute()
        total += 3_000
        fail_over(old, new)
    client = first.client()
    await_drained(client)
    assert [value(client, "c", f"fs:v1:profile:u{i}") for i in range(30)] == [total // 30] * 30
    assert_same(first, second)


def test_a_replay_of_windows_that_a_failover_ends_can_be_asked_for_again(fresh_server):
    first = fresh_server(QUICK | {"fs.consumer-slice-us": 50})
    second = first.replica({"repl-diskless-load": "on-empty-db"})
    client, other = first.client(), first.client()
    fs(client, f"FS.REGISTER profile ENTITY user MAXLEN 1000000 SCHEMA {COUNT_AND_SUM}")
    with client.pipeline(transaction=False) as pipeline:
        for i in range(20_000):
            pipeline.xadd(LOG, entry(f"u{i % 50}", {"x": 1}))
        pipeline.execute()
    await_drained(client)
    answered = []

    def replay():
        try:
            answered.append(fs(other, "FS.REPLAY profile FROM 0 WINDOWS"))
        except valkey.ResponseError as refusal:
            answered.append(str(refusal))

    thread = threading.Thread(target=replay)
    thread.start()
    await_until(lambda: figures(client)["replaying"], what="the replay to begin")
    fail_over(first, second)
    thread.join()
    assert isinstance(answered[0], str), answered
    client = second.client()
    client.xadd(LOG, entry("u1", {"x": 1}))
    assert fs(client, "FS.REPLAY profile FROM 0 WINDOWS") == 20_001
    await_drained(client)
    assert [value(client, "c", f"fs:v1:profile:u{i}") for i in range(50)] == [400, 401] + [400] * 48
    assert_same(second, first)
