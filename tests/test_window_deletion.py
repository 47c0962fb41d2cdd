"""What takes the window state of an entity along and what leaves it, and keys of another type in its place."""

import contextlib

import pytest
import valkey
from profile_view import await_drained, module_figures
from windowed_view import (
    LETTERS,
    LOG,
    OTHER,
    ROW,
    SMALL,
    STATE,
    clock_ms,
    digest,
    fs,
    held,
    publish,
    value,
)

from server import await_until

# Deletion


def in_transaction(client):
    with client.pipeline() as pipeline:
        pipeline.delete(ROW)
        pipeline.execute()


def in_script(client):
    client.eval("redis.call('DEL', KEYS[1])", 1, ROW)


TAKING = {
    "FS.DEL": lambda client: client.execute_command("FS.DEL", ROW),
    "DEL": lambda client: client.delete(ROW),
    "UNLINK": lambda client: client.unlink(ROW),
    "DEL of several": lambda client: client.delete("none", ROW, "fs:v1:profile:u3", LOG),
    "HDEL of all fields": lambda client: client.hdel(ROW, *client.hkeys(ROW)),
    "in a transaction": in_transaction,
    "in a script": in_script,
}


@pytest.mark.parametrize("way", TAKING)
def test_a_deleted_row_takes_its_state_along(small, way):
    neighbours = ["u11", "u", "U1", "u2", "u1:x"]
    for entity in ("u1", *neighbours):
        publish(small, f"fs:v1:profile:{entity}", 2)
    before = held(small)
    TAKING[way](small)
    assert small.exists(ROW, STATE) == 0
    assert small.execute_command("FS.GET", ROW) == [b"n", None, b"c", 0, b"s", b"0"]
    del before[STATE.encode()]
    assert held(small) == before and len(before) == 5
    publish(small, ROW, 3)
    assert small.execute_command("FS.GET", ROW) == [b"n", 1, b"c", 1, b"s", b"3"]


def expire(client):
    client.pexpire(ROW, 1)
    await_until(lambda: not client.exists(ROW), what="the row to expire")


def rename_over(client):
    client.hset("more", "n", 5)
    client.rename("more", ROW)


def copy_over(client):
    client.hset("more", "n", 5)
    client.copy("more", ROW, replace=True)


KEEPING = {
    "expiry": expire,
    "RENAME": lambda client: client.rename(ROW, "elsewhere"),
    "RENAME over it": rename_over,
    "COPY over it": copy_over,
    "HDEL of one field": lambda client: client.hdel(ROW, "n"),
    "MOVE": lambda client: client.move(ROW, 1),
}


@pytest.mark.parametrize("way", KEEPING)
def test_a_row_that_goes_otherwise_leaves_its_state(small, way):
    publish(small, ROW, 2)
    publish(small, ROW, 3)
    before = held(small)
    KEEPING[way](small)
    assert held(small) == before and len(before) == 1
    small.delete("elsewhere")
    assert held(small) == before
    assert small.execute_command("FS.GET", ROW, "c", "s") == [b"c", 2, b"s", b"5"]
    publish(small, ROW, 4)
    assert small.execute_command("FS.GET", ROW, "c", "s") == [b"c", 3, b"s", b"9"]


def test_deleting_a_row_that_is_not_there_leaves_the_state(small):
    small.execute_command("FS.PUBLISH", ROW, "x", 5)
    before = held(small)
    assert before and not small.exists(ROW)
    with small.pipeline() as pipeline:
        pipeline.delete(ROW)
        pipeline.unlink(ROW)
        pipeline.hdel(ROW, "n")
        assert pipeline.execute() == [0, 0, 0]
    assert small.eval("return redis.call('DEL', KEYS[1])", 1, ROW) == 0
    assert held(small) == before
    # A row past its time is not there, though the server may not have noticed yet.
    publish(small, ROW, 6)
    before = held(small)
    small.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    try:
        small.pexpire(ROW, 1)
        past = clock_ms(small) + 5
        await_until(lambda: clock_ms(small) > past, what="the row's time to pass")
        assert small.delete(ROW) == 0
    finally:
        small.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 1)
    assert held(small) == before
    assert value(small, "c") == 2


def test_expiry_and_eviction_of_rows_take_no_states(fresh_server):
    settings = {"notify-keyspace-events": "Exeg", "maxmemory-policy": "volatile-ttl", "maxmemory-samples": 20}
    client = fresh_server(settings).client()
    events = client.pubsub()
    events.psubscribe("__keyevent@0__:*")

    def await_event(name, key):
        def is_heard():
            message = events.get_message(ignore_subscribe_messages=True)
            return message and (message["channel"], message["data"]) == (
                f"__keyevent@0__:{name}".encode(),
                key,
            )

        await_until(is_heard, what=f"the event {name} of {key}")

    schema = "n INT text STRING x FLOAT INPUT c INT AGG COUNT x WINDOW 1h s FLOAT AGG SUM x WINDOW 7d"
    fs(client, f"FS.REGISTER profile ENTITY user TTL 200ms SCHEMA {schema}")
    publish(client, ROW, 2)
    await_event("expired", ROW.encode())
    assert (client.exists(ROW), client.type(STATE)) == (0, b"fs-window")
    assert client.execute_command("FS.GET", ROW, "n", "c", "s") == [b"n", None, b"c", 1, b"s", b"2"]
    publish(client, ROW, 3)
    assert client.execute_command("FS.GET", ROW, "c", "s") == [b"c", 2, b"s", b"5"]
    # Rows go first when memory is short, because their time is up first.
    fs(client, "FS.ALTER profile TTL 1h LOG OFF")
    for i in range(200):
        client.execute_command("FS.PUBLISH", f"fs:v1:profile:e{i}", "n", i, "x", i, "text", "x" * 50_000)
    before = held(client)
    assert len(before) == 201
    client.config_set("maxmemory", client.info("memory")["used_memory"] - (3 << 20))
    await_until(lambda: client.info("stats")["evicted_keys"] > 20, what="rows to be evicted")
    client.config_set("maxmemory", 0)
    left = client.exists(*[f"fs:v1:profile:e{i}" for i in range(200)])
    assert left <= 180
    assert held(client) == before
    assert [value(client, "s", f"fs:v1:profile:e{i}") for i in range(200)] == [b"%d" % i for i in range(200)]


def test_a_deletion_and_what_is_published_after_it_in_one_transaction(small):
    get = ("FS.GET", ROW, "c", "s")
    fresh, one, both = [b"c", 0, b"s", b"0"], [b"c", 1, b"s", b"5"], [b"c", 2, b"s", b"11"]
    for delete in ("DEL", "UNLINK", "FS.DEL"):
        publish(small, ROW, 1)
        with small.pipeline() as pipeline:
            pipeline.execute_command(delete, ROW)
            pipeline.execute_command(*get)
            publish(pipeline, ROW, 5)
            pipeline.execute_command(*get)
            assert pipeline.execute()[1::2] == [fresh, one], delete
        assert small.execute_command(*get) == one
        with small.pipeline() as pipeline:
            publish(pipeline, ROW, 7)
            pipeline.execute_command(delete, ROW)
            publish(pipeline, ROW, 8)
            pipeline.execute_command(delete, ROW)
            publish(pipeline, ROW, 5)
            publish(pipeline, ROW, 6)
            pipeline.execute_command(*get)
            assert pipeline.execute()[-1] == both, delete
        assert small.execute_command(*get) == both
        script = (
            "redis.call(ARGV[1], KEYS[1]) local none = redis.call('FS.GET', KEYS[1], 'c', 's') "
            "redis.call('FS.PUBLISH', KEYS[1], 'n', '1', 'x', '5') "
            "return {none, redis.call('FS.GET', KEYS[1], 'c', 's')}"
        )
        assert small.eval(script, 1, ROW, delete) == [fresh, one], delete
        assert small.execute_command(*get) == one
        with small.pipeline() as pipeline:
            publish(pipeline, OTHER, 7)
            pipeline.execute_command(delete, OTHER)
            pipeline.execute()
        assert small.exists(OTHER, "fs:w1:profile:u2") == 0, delete


def test_a_native_row_and_its_state_go_together_too(small):
    # A row that another writer made, over a state that was there.
    small.execute_command("FS.PUBLISH", ROW, "NOLOG", "x", 5)
    small.hset(ROW, "n", 7)
    assert small.delete(ROW) == 1
    assert small.exists(STATE) == 0


def test_fs_del_counts_entities_and_holds_against_the_backlog(small):
    publish(small, ROW)
    small.execute_command("FS.PUBLISH", OTHER, "x", 1)
    small.execute_command("FS.PUBLISH", "fs:v1:profile:u3", "n", 1)
    keys = [ROW, OTHER, "fs:v1:profile:u3", "fs:v1:profile:u4"]
    assert small.execute_command("FS.DEL", *keys) == 3
    assert small.execute_command("FS.DEL", *keys) == 0
    assert small.keys() == [LOG.encode()]
    fs(small, "FS.CONSUMER STOP profile")
    for entity in ("u1", "u2"):
        small.xadd(LOG, {"entity_id": entity, "features": '{"n": 1, "x": 2}'})
        small.xadd(LOG, {"entity_id": entity, "features": '{"x": 3}'})
    publish(small, ROW, 9)
    publish(small, OTHER, 9)
    assert small.execute_command("FS.DEL", ROW) == 1
    assert small.delete(OTHER) == 1
    small.xadd(LOG, {"entity_id": "u1", "features": '{"x": 4}'})
    fs(small, "FS.CONSUMER START profile")
    await_drained(small)
    # What FS.DEL buried stays buried; a native DEL knows nothing of a backlog.
    assert [value(small, "s", key) for key in (ROW, OTHER)] == [b"4", b"5"]
    assert [small.exists(key) for key in (ROW, OTHER)] == [0, 1]


def test_deleting_the_state_alone_leaves_the_row(small):
    publish(small, ROW, 2)
    assert small.delete(STATE) == 1
    assert small.execute_command("FS.GET", ROW) == [b"n", 1, b"c", 0, b"s", b"0"]
    publish(small, ROW, 3)
    assert small.execute_command("FS.GET", ROW) == [b"n", 1, b"c", 1, b"s", b"3"]


def test_renaming_and_copying_both_keys_moves_an_entity(small):
    publish(small, ROW, 2)
    small.rename(ROW, OTHER)
    assert [value(small, "c", key) for key in (ROW, OTHER)] == [1, 0]
    small.rename(STATE, "fs:w1:profile:u2")
    assert small.execute_command("FS.GET", OTHER) == [b"n", 1, b"c", 1, b"s", b"2"]
    assert small.execute_command("FS.GET", ROW) == [b"n", None, b"c", 0, b"s", b"0"]
    small.copy(OTHER, ROW)
    small.copy("fs:w1:profile:u2", STATE)
    publish(small, ROW, 5)
    assert [value(small, "s", key) for key in (ROW, OTHER)] == [b"7", b"2"]


def test_dropping_data_takes_the_states_of_that_version(small):
    for view in ("profile VERSION 2", "profile2"):
        fs(small, f"FS.REGISTER {view} ENTITY user SCHEMA {SMALL}")
    keys = [f"fs:v{version}:profile:u{i}" for version in (1, 2) for i in range(50)]
    for key in (*keys, "fs:v1:profile2:u1"):
        publish(small, key)
    small.delete(*[key for key in keys if key.endswith("7")])
    for key in keys[::9]:
        small.execute_command("FS.PUBLISH", key, "x", 5)
    small.set("fs:w11:profile:u1", "x")

    def states(version, view="profile"):
        return set(small.keys(f"fs:w{version}:{view}:*"))

    assert len(states(1)) > 40 and len(states(2)) > 40
    others = states(1) | states(1, "profile2") | states(11)
    fs(small, "FS.DROP profile VERSION 2 DATA")
    await_until(lambda: module_figures(small)["dropping"] == 0, what="the end of FS.DROP DATA")
    assert (states(2), states("*", "*")) == (set(), others)
    fs(small, "FS.DROP profile")
    assert states("*", "*") == others
    fs(small, f"FS.REGISTER profile ENTITY user SCHEMA {SMALL}")
    assert value(small, "c", "fs:v1:profile:u1") > 0
    fs(small, "FS.DROP profile DATA")
    await_until(lambda: module_figures(small)["dropping"] == 0, what="the end of FS.DROP DATA")
    assert states("*", "*") == {b"fs:w1:profile2:u1", b"fs:w11:profile:u1"}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_flushing_takes_all_states(small, asynchronous):
    for i in range(50):
        publish(small, f"fs:v1:profile:u{i}")
    small.flushall(asynchronous=asynchronous)
    assert small.dbsize() == 0
    assert small.execute_command("FS.GET", ROW) == [b"n", None, b"c", 0, b"s", b"0"]
    publish(small, ROW, 3)
    assert small.execute_command("FS.GET", ROW) == [b"n", 1, b"c", 1, b"s", b"3"]


# Keys of another type


OTHER_TYPES = {
    "string": lambda client, key: client.set(key, "x"),
    "hash": lambda client, key: client.hset(key, "f", "v"),
    "stream": lambda client, key: client.xadd(key, {"f": "v"}),
}


@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_a_key_of_another_type_in_a_states_place_is_refused_and_kept(small, kind):
    small.execute_command("FS.PUBLISH", ROW, "n", 1)
    OTHER_TYPES[kind](small, STATE)
    before = small.execute_command("DEBUG", "DIGEST")
    for command in [
        ("FS.PUBLISH", ROW, "x", 1),
        ("FS.PUBLISH", ROW, "NOLOG", "n", 5, "x", 1),
        ("FS.MPUBLISH", OTHER, '{"n": 1, "x": 1}', ROW, '{"n": 2, "x": 1}'),
        ("FS.GET", ROW, "c"),
        ("FS.MGET", "c,s", OTHER, ROW),
        ("FS.TENSOR", "c", ROW),
    ]:
        with pytest.raises(valkey.ResponseError, match=f"WRONGTYPE.*{STATE}"):
            small.execute_command(*command)
        assert small.execute_command("DEBUG", "DIGEST") == before, command
    small.xadd(LOG, {"entity_id": "u1", "features": '{"n": 3, "x": 1}'})
    await_until(lambda: small.exists(LETTERS), what="the dead letter")
    assert b"WRONGTYPE" in small.xrange(LETTERS)[0][1][b"error"]
    assert small.hget(ROW, "n") == b"1"
    # It is nobody's state, so nobody takes it along.
    held = digest(small, STATE)
    with contextlib.suppress(valkey.ResponseError):
        small.execute_command("FS.DEL", ROW)
    assert digest(small, STATE) == held
    small.delete(ROW)
    assert digest(small, STATE) == held


@pytest.mark.parametrize("delete", ["DEL", "UNLINK"])
def test_a_string_over_a_row_leaves_the_state_until_it_is_deleted(small, delete):
    publish(small, ROW, 2)
    publish(small, OTHER, 3)
    before = held(small)
    small.set(ROW, "x")
    assert held(small) == before and len(before) == 2
    assert small.execute_command(delete, ROW) == 1
    del before[STATE.encode()]
    assert held(small) == before
    publish(small, ROW, 4)
    assert small.execute_command("FS.GET", ROW) == [b"n", 1, b"c", 1, b"s", b"4"]


@pytest.mark.parametrize("delete", ["DEL", "UNLINK"])
@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_whatever_stands_in_a_rows_place_takes_the_state_along(small, kind, delete):
    for key in (ROW, OTHER):
        small.execute_command("FS.PUBLISH", key, "NOLOG", "x", 5)
    OTHER_TYPES[kind](small, ROW)
    before = held(small)
    assert small.execute_command(delete, ROW) == 1
    del before[STATE.encode()]
    assert held(small) == before and len(before) == 1
    assert small.execute_command("FS.GET", ROW, "c", "s") == [b"c", 0, b"s", b"0"]


def test_a_state_in_the_place_of_something_else_is_refused_and_kept(small):
    publish(small)
    for key, commands in {
        "fs:v1:profile:u5": [("FS.GET", "fs:v1:profile:u5"), ("FS.PUBLISH", "fs:v1:profile:u5", "n", 1)],
        LOG: [("FS.PUBLISH", ROW, "n", 2)],
    }.items():
        small.delete(key)
        small.copy(STATE, key)
        before = small.execute_command("DEBUG", "DIGEST")
        for command in commands:
            with pytest.raises(valkey.ResponseError, match="WRONGTYPE"):
                small.execute_command(*command)
            assert small.execute_command("DEBUG", "DIGEST") == before
        small.delete(key)
