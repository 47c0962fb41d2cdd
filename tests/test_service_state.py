"""Feature services through restarts, copies and failovers, and while the views that they read change.

What two copies must agree on is what FS.SERVICE GET tells of each service and what reading it answers.
"""

import random

import pytest
import valkey
from drifting_view import publish_rows
from service_changes import Mix, assert_changed, assert_told, change, define_watched, refusal
from service_views import (
    SMALL,
    answers,
    define,
    described,
    everything,
    reading,
    register,
    services,
    set_service,
    settings,
    told,
)
from test_persistence import ALWAYS, AOF, MODULE, QUICK, WAYS, damaged, rewrite
from test_replication import assert_same, fail_over
from test_resync import LOADS, await_synced, is_answering
from test_services import REFUSED
from windowed_view import fs

from server import ServerFailed, await_until


def offset(client) -> int:
    return client.info("replication")["master_repl_offset"]


# Coming back


@pytest.mark.parametrize("come_back, settings", WAYS, ids=lambda p: getattr(p, "__name__", ""))
def test_services_survive(fresh_server, come_back, settings):
    server = fresh_server(settings)
    client = server.client()
    define(client)
    change(client)
    assert_changed(client)
    before = everything(client)
    for _ in range(2):
        come_back(server)
        client = server.client()
        assert everything(client) == before
        assert_changed(client)
    # And they can be set, deleted and read as before.
    set_service(client, "of_gone", "FEATURES 1 back:b")
    assert fs(client, "FS.SERVE of_gone none") == [[b"back:b", None]]
    fs(client, "FS.SERVICE DEL of_other")
    assert refusal(client, "FS.SERVE of_other none").startswith("NOSERVICE ")
    register(client, "gone", "ENTITY user SCHEMA a INT DEFAULT 1")
    come_back(server)
    assert fs(server.client(), "FS.SERVE of_gone none") == [[b"back:b", None]]


def test_an_rdb_brings_back_what_was_saved_and_an_aof_what_came_since(fresh_server):
    for settings_, is_all_back in ((QUICK, False), (ALWAYS, True)):
        server = fresh_server(settings_)
        client = server.client()
        define(client)
        client.save()
        saved = everything(client)
        change(client)
        newest = everything(client)
        server.restart(kill=True)
        assert everything(server.client()) == (newest if is_all_back else saved)


def test_an_aof_that_was_cut_off_anywhere_brings_whole_services(fresh_server):
    server = fresh_server(ALWAYS | {"aof-load-truncated": "yes"})
    client = server.client()
    register(client, "v", "ENTITY user SCHEMA " + " ".join(f"f{i} INT DEFAULT {i}" for i in range(40)))
    expected = {}
    for i in range(1, 40):
        words = f"FEATURES {i} {' '.join(f'v:f{j}' for j in range(i))}"
        set_service(client, f"s{i}", words)
        expected[f"s{i}".encode()] = [[part for j in range(i) for part in (f"v:f{j}".encode(), j)]]
    server.kill()
    (file,) = server.folder.glob("appendonlydir/*.incr.aof")
    whole, chance = file.read_bytes(), random.Random(5)
    begin, counts = whole.index(b"FS.SERVICE"), set()
    for _ in range(12):
        file.write_bytes(whole[: chance.randrange(begin, len(whole))])
        server.start()
        client = server.client()
        found = fs(client, "FS.SERVICE LIST")
        # As many as came before the cut, each as it was set.
        assert sorted(found) == sorted(f"s{i}".encode() for i in range(1, len(found) + 1))
        assert all(client.execute_command("FS.SERVE", name, "u1") == expected[name] for name in found)
        counts.add(len(found))
        server.kill()
    assert len(counts) > 5


def test_services_without_views_survive_and_the_last_leaves_a_file_for_servers_without_the_module(
    fresh_server,
):
    server = fresh_server(QUICK)
    client = server.client()
    define(client)
    for view, *_ in fs(client, "FS.VIEWS"):
        client.execute_command("FS.DROP", view)
    before = everything(client)
    assert all(answer.startswith(f"NOVIEW service '{name}': ") for name, answer in before[1].items())
    server.restart()
    client = server.client()
    assert everything(client) == before
    for name in services(client):
        fs(client, f"FS.SERVICE DEL {name}")
    client.flushall()
    client.hset("h", "f", "v")
    server.module = None
    server.config = {name: value for name, value in server.config.items() if not name.startswith("fs.")}
    server.restart()
    client = server.client()
    assert client.hget("h", "f") == b"v"
    client.execute_command("MODULE", "LOAD", MODULE)
    assert services(client) == []


def test_flushing_keeps_services_and_swapping_databases_takes_their_rows(fresh_server):
    server = fresh_server(AOF)
    client = server.client()
    define(client)
    change(client)
    defined, served = everything(client)
    client.swapdb(0, 1)
    assert told(client) == defined
    without_rows = answers(client)
    assert without_rows != served and without_rows.keys() == served.keys()
    assert server.client(db=1).dbsize() > 5
    client.swapdb(0, 1)
    assert everything(client) == (defined, served)
    for asynchronous in (False, True):
        client.flushall(asynchronous=asynchronous)
        assert everything(client) == (defined, without_rows)
    client.flushdb()
    rewrite(server)
    server.restart(save=False)
    assert everything(server.client()) == (defined, without_rows)


def test_an_aof_that_would_lose_services_is_refused_with_a_sentence(fresh_server):
    client = fresh_server(AOF).client()
    register(client, "v", "ENTITY user SCHEMA a INT")
    set_service(client, "known", "FEATURES 1 v:a")
    client.config_set("aof-use-rdb-preamble", "no")
    before, at = everything(client), offset(client)
    for name in ("known", "s"):
        assert "aof-use-rdb-preamble" in refusal(client, f"FS.SERVICE SET {name} FORMAT JSON FEATURES 1 v:a")
    assert everything(client) == before and offset(client) == at
    fs(client, "FS.SERVICE DEL known")
    client.config_set("aof-use-rdb-preamble", "yes")
    set_service(client, "s", "FEATURES 1 v:a")


def test_damaged_services_are_refused_without_a_crash(fresh_server):
    server = fresh_server(QUICK | {"rdbchecksum": "no", "rdbcompression": "no"})
    client = server.client()
    register(client, "v", "ENTITY user SCHEMA first INT second VECTOR 2 third STRING VALUES 2 x y")
    set_service(client, "serving", "FORMAT TENSOR WITHSTATUS FEATURES 3 v:second v@1:first v:third")
    set_service(client, "ranking", "CONTEXT user CANDIDATE item PAIR pair FEATURES 2 v:third v:first")
    client.save()
    before = everything(client)
    server.kill()
    file = server.folder / "dump.rdb"
    whole = file.read_bytes()
    # Behind the definition of the view stand the services, by name; behind them what drift is found by.
    begin = whole.index(b"ranking") - 3
    end = whole.rindex(b"STRING VALUES", begin) + 17
    assert whole[begin:end].count(b"serving") == 1
    chance, refused, read = random.Random(8), 0, 0
    for i in range(80):
        hurt = damaged(whole[begin:end], chance)
        file.write_bytes(
            whole[:begin] + hurt + whole[end:] if i < 60 else whole[: chance.randrange(begin, end)]
        )
        try:
            server.start()
        except ServerFailed:
            refused += 1
            continue
        client = server.client()
        # Some damage cannot be told from a service: another letter, another format. It can be asked for, read, deleted.
        for name in services(client):
            for call in (
                ["FS.SERVICE", "GET", name],
                ["FS.SERVE", name, "u1"],
                ["FS.RANK", name, "u1", "i1"],
            ):
                with client.pipeline(transaction=False) as pipeline:
                    pipeline.execute_command(*call)
                    (reply,) = pipeline.execute(raise_on_error=False)
                assert not isinstance(reply, Exception) or "internal error" not in str(reply), (call, reply)
            assert fs(client, f"FS.SERVICE DEL {name}") == b"OK"
            read += 1
        server.kill()
    assert refused >= 40 and read >= 2
    server.check_log()
    assert "fs: the definitions in the RDB cannot be loaded: " in server.log()
    file.write_bytes(whole)
    server.start()
    assert everything(server.client()) == before


# Copies


def assert_copies_agree(primary, *replicas) -> None:
    for protocol in (2, 3):
        ours = everything(primary.client(protocol=protocol))
        for replica in replicas:
            primary.await_replicated(replica)
            assert everything(replica.client(protocol=protocol)) == ours, replica


@pytest.mark.parametrize("seed", range(3))
def test_replicas_and_theirs_follow_any_mix_of_changes(fresh_server, seed):
    primary = fresh_server(QUICK)
    replica = primary.replica({"repl-diskless-load": "on-empty-db"})
    # What a user of this one would be refused, its primary may order.
    last = replica.replica(
        {"replicaof": f"127.0.0.1 {replica.port}", "appendonly": "yes", "aof-use-rdb-preamble": "no"}
    )
    client, draw = primary.client(), random.Random(seed)
    define(client)
    mix = Mix(client, draw)
    mix.play(250)
    assert len(mix.refused) > 5
    assert sum(described(client, name)["problem"] is not None for name in services(client)) > 1
    assert_copies_agree(primary, replica, last)
    assert_same(primary, last)
    for line in ("SET s FEATURES 1 goods:price", f"DEL {services(client)[0]}"):
        assert "read only replica" in refusal(replica.client(), f"FS.SERVICE {line}")
    # Loaded from a file of its own it is the same, and as a primary it goes on.
    before = everything(client)
    replica.client().execute_command("DEBUG", "RELOAD")
    assert everything(replica.client()) == before
    primary.kill()
    replica.client().replicaof("NO", "ONE")
    assert everything(replica.client()) == before
    set_service(replica.client(), "entity_new", "FEATURES 1 profile@1:age")
    assert_copies_agree(replica, last)
    assert "entity_new" in services(last.client())


@pytest.mark.parametrize("load", LOADS)
def test_a_full_resync_replaces_the_services_also_by_nothing(fresh_server, load):
    defined, bare = fresh_server(QUICK), fresh_server(QUICK)
    define(defined.client())
    change(defined.client())
    replica = fresh_server(QUICK | {"repl-diskless-load": load})
    client = replica.client()
    register(client, "own", "ENTITY user SCHEMA a INT DEFAULT 1")
    register(client, "goods", "ENTITY user SCHEMA price INT DEFAULT 1")
    for name in ("own", "rank_map", "entity_array", "pinned"):
        set_service(client, name, "FEATURES 2 own:a goods:price")
    # Planned before, they must be planned anew.
    assert fs(client, "FS.SERVE rank_map u1") == [[b"own:a", 1, b"goods:price", 1]]
    client.replicaof("127.0.0.1", defined.port)
    await_synced(replica, defined)
    assert_changed(client)
    assert everything(client) == everything(defined.client())
    client.replicaof("127.0.0.1", bare.port)
    await_synced(replica, bare)
    assert services(client) == []
    assert refusal(client, "FS.SERVE pinned u1").startswith("NOSERVICE ")
    client.replicaof("NO", "ONE")
    define(client)
    assert services(client) == sorted(settings())


def test_a_failed_resync_keeps_the_old_services(fresh_server):
    # A transfer that would take minutes, read as it comes: the load is under way when the sender dies.
    primary = fresh_server(QUICK | {"rdb-key-save-delay": 20_000, "rdbcompression": "no"})
    define(primary.client())
    with primary.client().pipeline(transaction=False) as pipeline:
        for i in range(5_000):
            pipeline.set(f"filler{i}", "x" * 5_000)
        pipeline.execute()
    replica = fresh_server(QUICK | {"repl-diskless-load": "on-empty-db"})
    client = replica.client()
    register(client, "profile", "ENTITY user SCHEMA age INT DEFAULT 1")
    set_service(client, "entity_map", "FEATURES 1 profile:age")
    set_service(client, "own", "FEATURES 1 profile:age")
    before = told(client)
    client.replicaof("127.0.0.1", primary.port)
    await_until(lambda: "Loading DB in memory" in replica.log(), 20, "the load to begin")
    primary.kill()
    await_until(lambda: is_answering(client), 20, "the load to fail")
    client.replicaof("NO", "ONE")
    assert told(client) == before
    assert fs(client, "FS.SERVE own u1") == [[b"profile:age", 1]]


@pytest.mark.parametrize("settings_", [QUICK, AOF], ids=["memory", "aof"])
def test_services_go_through_failovers(fresh_server, settings_):
    first = fresh_server(settings_)
    second = first.replica({"repl-diskless-load": "on-empty-db"})
    define(first.client())
    change(first.client())
    before = everything(first.client())
    for i, (old, new) in enumerate([(first, second), (second, first)] * 2):
        fail_over(old, new)
        assert everything(new.client()) == before
        set_service(new.client(), f"entity_of_{i}", "FEATURES 1 profile@1:age")
        fs(new.client(), f"FS.SERVICE DEL {services(new.client())[0]}")
        assert_copies_agree(new, old)
        before = everything(new.client())


# What is told to copies


def test_only_what_changes_a_service_is_replicated(fresh_server):
    primary = fresh_server(QUICK | {"repl-ping-replica-period": "3600"})
    replica = primary.replica()
    client = primary.client()
    register(client, "v", "ENTITY user SCHEMA a INT b INT")
    words = "CONTEXT user CANDIDATE item PAIR pair FORMAT ARRAY WITHSTATUS FEATURES 2 v:a v@1:b"
    set_service(client, "s", words)
    same = [
        words,
        words.lower(),
        "withstatus pair pair format array candidate item context user FEATURES 2 v:a v@1:b",
    ]
    others = [
        "FORMAT ARRAY WITHSTATUS FEATURES 2 v:a v@1:b",
        words.replace("ARRAY", "MAP"),
        words.replace("WITHSTATUS", ""),
        words.replace("v:a v@1:b", "v@1:b v:a"),
        words.replace("v@1:b", "v:b"),
        words.replace("PAIR pair", ""),
        words.replace("PAIR pair", "PAIR both"),
        words.replace("CANDIDATE item", "CANDIDATE thing"),
    ]

    def grows(line: str) -> bool:
        # What a heartbeat or the link itself adds, a call that is told to nobody adds too.
        before = offset(client)
        fs(client, line)
        return offset(client) > before

    for again in same:
        assert not grows(f"FS.SERVICE SET s {again}"), again
    for other in others:
        assert grows(f"FS.SERVICE SET s {other}"), other
        assert not grows(f"FS.SERVICE SET s {other}"), other
        primary.await_replicated(replica)
        assert told(replica.client()) == told(client)
    for line in ("GET s", "LIST", "HELP"):
        assert not grows(f"FS.SERVICE {line}")
    assert not grows("FS.RANK s u1 i1")
    # The same words mean another version now.
    register(client, "v@2", "ENTITY user SCHEMA a INT b INT")
    assert grows(f"FS.SERVICE SET s {others[-1]}")
    assert not grows(f"FS.SERVICE SET s {others[-1]}")
    assert grows("FS.SERVICE DEL s")
    for view, words in SMALL.items():
        register(client, view, words)
    before = offset(client)
    assert refusal(client, "FS.SERVICE DEL s").startswith("NOSERVICE ")
    for words, *_ in REFUSED:
        refusal(client, f"FS.SERVICE SET s {words}")
    assert offset(client) == before
    assert_copies_agree(primary, replica)


# Views that change


@pytest.fixture
def watched(client):
    """A client of a store with services that read the view `profile`, and one that does not."""
    define_watched(client)
    return client


SAME = "ENTITY user SCHEMA age INT DEFAULT 1 plan STRING VALUES 2 free pro"
OTHERS = {
    "another type": (
        "age FLOAT",
        "SCHEMA service '{}': 'profile:age' was INT when the service was set and is FLOAT",
    ),
    "a vector": (
        "age VECTOR 2",
        "SCHEMA service '{}': 'profile:age' was INT when the service was set and is VECTOR 2",
    ),
    "no longer served": (
        "age INT INPUT",
        "NOFEATURE service '{}': feature 'age' of view 'profile' is an INPUT",
    ),
    "no such feature": ("years INT", "NOFEATURE service '{}': view 'profile' has no feature 'age'"),
    "no longer a number": (
        "age STRING",
        "SCHEMA service '{}': 'profile:age' was INT when the service was set and is",
    ),
}


@pytest.mark.parametrize("words, problem", OTHERS.values(), ids=OTHERS)
def test_a_view_that_comes_back_as_another_is_told(watched, words, problem):
    before = everything(watched)
    fs(watched, "FS.DROP profile")
    assert_told(watched, "NOVIEW service '{}': view 'profile' is not registered")
    register(watched, "profile", f"ENTITY user SCHEMA {words} plan STRING VALUES 2 free pro")
    (name,) = services(watched)[:1]
    whole = described(watched, name)["problem"]
    assert whole.startswith(problem.format(name)), whole
    assert_told(watched, whole.replace(f"'{name}'", "'{}'"))
    fs(watched, "FS.DROP profile")
    register(watched, "profile", SAME)
    assert everything(watched) == before


VALUES = {
    "others": ["free", "gold"],
    "one more": ["free", "pro", "gold"],
    "one fewer": ["free"],
    "another order": ["pro", "free"],
    "none": [],
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_other_values_are_told_as_they_are_other_numbers(watched, values):
    fs(watched, "FS.DROP profile")
    words = ["VALUES", len(values), *values] if values else []
    watched.execute_command(
        "FS.REGISTER", "profile", *["ENTITY", "user", "SCHEMA", "age", "INT", "plan", "STRING"], *words
    )
    for name in services(watched):
        if name != "untouched":
            assert refusal(watched, " ".join(reading(name))).startswith(
                f"SCHEMA service '{name}': 'profile:plan' was "
            )


def test_values_are_told_apart_where_they_join_to_the_same_words(client):
    words = ["FS.REGISTER", "v", "ENTITY", "user", "SCHEMA", "s", "STRING", "VALUES"]
    for before, after in [
        (["a b", "c"], ["a", "b", "c"]),
        (["a b", "c"], ["a", "b c"]),
        (["a", "b"], ["a b"]),
        (["", "a"], [" a"]),
        (["a,b"], ["a", "b"]),
    ]:
        client.execute_command(*words, len(before), *before)
        set_service(client, "s", "FORMAT TENSOR FEATURES 1 v:s")
        fs(client, "FS.DROP v")
        client.execute_command(*words, len(after), *after)
        assert refusal(client, "FS.SERVE s u1").startswith("SCHEMA service 's': 'v:s' was "), (before, after)
        fs(client, "FS.DROP v")


def test_another_entity_is_told(client):
    register(client, "account", "ENTITY user SCHEMA b INT")
    for entity in ("item", "thing"):
        register(client, "v", "ENTITY user SCHEMA a INT")
        for name, words in [
            ("one", "FEATURES 1 v:a"),
            ("two", "FEATURES 2 v:a account:b"),
            ("rank", "CONTEXT user CANDIDATE item FEATURES 2 v:a account:b"),
        ]:
            set_service(client, name, words)
        fs(client, "FS.DROP v")
        register(client, "v", f"ENTITY {entity} SCHEMA a INT")
        for name in ("two", "rank", "one"):
            assert refusal(client, " ".join(reading(name))).startswith(f"SCHEMA service '{name}': "), (
                name,
                entity,
            )
        fs(client, "FS.DROP v")


def test_a_view_that_comes_back_with_other_defaults_and_times_to_live_is_read(watched):
    fs(watched, "FS.DROP profile DATA")
    fs(watched, "FS.VIEWS")
    await_until(lambda: not watched.exists("fs:v1:profile:u1"), what="the data to go")

    def register_again():
        try:
            register(
                watched,
                "profile",
                "ENTITY user TTL 1h SCHEMA more INT plan STRING VALUES 2 free pro age INT MIN 0 DEFAULT 5",
            )
        except valkey.ResponseError as busy:
            assert str(busy).startswith("BUSY ")
            return False
        return True

    await_until(register_again, what="the name to be free")
    assert fs(watched, "FS.SERVE entity_array u1") == [[None, 5]]
    assert fs(watched, "FS.RANK rank_array u1 i1") == [[b"2", 5, None]]
    assert not [name for name in services(watched) if described(watched, name)["problem"]]


def test_services_follow_a_view_that_is_altered(watched):
    client = watched
    seconds, micros = client.time()
    fs(client, f"FS.PUBLISH fs:v1:profile:old AT {seconds * 1000 + micros // 1000 - 7_200_000} age 7")

    def statuses() -> list:
        return [row[1][1] for row in fs(client, "FS.SERVE entity_array_status u1 old")]

    assert statuses() == [b"PRESENT", b"PRESENT"]
    fs(client, "FS.ALTER profile TTL 1h")
    assert statuses() == [b"PRESENT", b"OUTSIDE_MAX_AGE"]
    assert fs(client, "FS.SERVE entity_array u1 old") == [[b"pro", 34], [None, 1]]
    fs(client, "FS.ALTER profile TTL NONE")
    assert statuses() == [b"PRESENT", b"PRESENT"]
    # What is added changes no service that is there; one that is set again may read it.
    before = told(client)
    fs(client, "FS.ALTER profile ADD more INT DEFAULT 9")
    assert told(client) == before
    set_service(client, "untouched", "FORMAT ARRAY FEATURES 2 profile:more profile:age")
    assert fs(client, "FS.SERVE untouched u1") == [[9, 34]]
    # Window states that a replay voids are read anew.
    register(client, "events", "ENTITY user SCHEMA n INT x FLOAT INPUT c INT AGG COUNT x WINDOW 7d")
    set_service(client, "counts", "FORMAT ARRAY FEATURES 1 events:c")
    fs(client, "FS.PUBLISH fs:v1:events:u1 x 1")
    assert fs(client, "FS.SERVE counts u1 u2") == [[1], [0]]
    fs(client, "FS.TRIM events MAXLEN 0")
    fs(client, "FS.REPLAY events FROM 0 WINDOWS")
    assert fs(client, "FS.SERVE counts u1 u2") == [[0], [0]]


def test_a_version_that_is_dropped_takes_only_its_services_along(client):
    for version in (1, 2):
        register(client, f"v@{version}", f"ENTITY user SCHEMA a INT DEFAULT {version}")
        set_service(client, f"of_{version}", "FEATURES 1 v:a")
    set_service(client, "of_both", "FEATURES 2 v@1:a v@2:a")
    fs(client, "FS.DROP v VERSION 2")
    assert fs(client, "FS.SERVE of_1 u1") == [[b"v:a", 1]]
    for name in ("of_2", "of_both"):
        expected = f"NOVIEW service '{name}': version 2 of view 'v' is not registered"
        assert refusal(client, f"FS.SERVE {name} u1") == expected
        assert described(client, name)["problem"] == expected
    # Set again, it means the newest that is there.
    set_service(client, "of_2", "FEATURES 1 v:a")
    assert fs(client, "FS.SERVE of_2 u1") == [[b"v:a", 1]]
    register(client, "v@2", "ENTITY user SCHEMA a INT DEFAULT 3")
    assert fs(client, "FS.SERVE of_both u1") == [[b"v@1:a", 1, b"v@2:a", 3]]


def test_a_dropped_view_gives_its_memory_back_although_a_service_read_it(fresh_server):
    client = fresh_server().client()
    features = [f"f{i}" for i in range(50)]
    register(client, "v", f"ENTITY user SCHEMA {' FLOAT '.join(features)} FLOAT")
    set_service(client, "s", "FEATURES 1 v:f1")

    def used_bytes() -> int:
        return client.info("memory")["used_memory"]

    before = used_bytes()
    # What drift is found in is most of it.
    publish_rows(client, [dict.fromkeys(features, i + 0.5) for i in range(5_000)], "v")
    assert fs(client, "FS.SERVE s u1")[0][1] is not None
    taken = used_bytes() - before
    fs(client, "FS.DROP v")
    client.flushall()
    await_until(lambda: used_bytes() - before < taken / 4, what=f"most of {taken} bytes to be given back")
    assert refusal(client, "FS.SERVE s u1").startswith("NOVIEW ")


def test_a_transaction_sees_its_own_changes(client):
    register(client, "v", "ENTITY user SCHEMA a INT DEFAULT 1")
    set_service(client, "s", "FEATURES 1 v:a")
    calls = [
        "FS.SERVE s u1",
        "FS.SERVICE SET s FORMAT ARRAY FEATURES 1 v:a",
        "FS.SERVE s u1",
        "FS.PUBLISH fs:v1:v:u1 NOLOG a 7",
        "FS.SERVE s u1",
        "FS.REGISTER v VERSION 2 ENTITY user SCHEMA a INT DEFAULT 2",
        "FS.SERVICE SET s FORMAT ARRAY FEATURES 2 v:a v@1:a",
        "FS.SERVE s u1",
        "FS.DROP v VERSION 1",
        "FS.SERVE s u1",
        "FS.SERVICE DEL s",
        "FS.SERVE s u1",
    ]
    with client.pipeline() as transaction:
        for line in calls:
            transaction.execute_command(*line.split())
        replies = transaction.execute(raise_on_error=False)
    assert replies[:9:2] == [[[b"v:a", 1]], [[1]], [[7]], b"OK", b"OK"]
    assert (replies[1], replies[3], replies[5], replies[7]) == (b"OK", None, b"OK", [[2, 7]])
    assert [str(reply).split()[0] for reply in replies[9::2]] == ["NOVIEW", "NOSERVICE"]
    assert replies[10] == b"OK" and services(client) == []
