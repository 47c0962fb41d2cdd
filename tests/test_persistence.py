"""What is on disk brings everything back: rows, logs, cursors, definitions; and damage is refused, not a crash."""

import random
import re
import threading
import time

import pytest
import valkey
from profile_view import (
    EPOCH_S,
    LOG,
    MODULE,
    add,
    add_many,
    await_drained,
    consumer,
    entries_read,
    figures,
    module_figures,
    register,
    rows,
    rows_by_entries,
)
from test_replication import everything

from server import ServerFailed, await_until

QUICK = {"fs.sweep-interval": 20}
# The shortest slices, so that a test can come between them.
SLOW = {"fs.consumer-slice-us": 50}
AOF = QUICK | {"appendonly": "yes", "appendfsync": "everysec"}
ALWAYS = QUICK | {"appendonly": "yes", "appendfsync": "always"}


# Ways to come back


def restart(server):
    server.restart()


def save_and_cut_the_power(server):
    server.client().save()
    server.restart(kill=True)


def restart_from_the_aof(server):
    server.restart(save=False)


def rewrite(server):
    client = server.client()
    before = client.info("persistence")["aof_rewrites"]
    client.bgrewriteaof()
    await_until(lambda: client.info("persistence")["aof_rewrites"] > before, what="the rewrite to end")
    await_until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], what="the rewrite to end")


def rewrite_the_aof_and_restart(server):
    rewrite(server)
    server.restart(save=False)


def cut_the_power(server):
    server.restart(kill=True)


def debug_reload(server):
    assert server.client().execute_command("DEBUG", "RELOAD") == b"OK"


def debug_load_the_aof(server):
    assert server.client().execute_command("DEBUG", "LOADAOF") == b"OK"


def turn_on_the_aof_and_cut_the_power(server):
    client = server.client()
    if client.config_get("appendonly")["appendonly"] == "no":
        client.config_set("appendonly", "yes")
        await_until(
            lambda: not client.info("persistence")["aof_rewrite_in_progress"], what="the first rewrite to end"
        )
        client.config_set("appendfsync", "always")
    server.restart(kill=True, config=ALWAYS)


WAYS = [
    (restart, QUICK),
    (save_and_cut_the_power, QUICK),
    (restart_from_the_aof, AOF),
    (rewrite_the_aof_and_restart, AOF),
    (cut_the_power, ALWAYS),
    (turn_on_the_aof_and_cut_the_power, QUICK),
    (debug_reload, QUICK),
    (debug_load_the_aof, AOF),
]


def fill(client):
    """Every kind of definition and state: versions, alterations, a stop, deletions, dead letters, expiries, cursors."""
    register(client, "TTL", "30d", "DESCRIPTION", "people ä\n")
    register(client, "LOG", "OFF", version=2, schema=("v", "VECTOR", 3, "n", "INT", "DEFAULT", 5, "MIN", 0))
    client.execute_command(
        "FS.ALTER", "profile", "VERSION", 1, "ADD", "more", "BOOL", "DEFAULT", "true", "MAXLEN", 500
    )
    client.execute_command("FS.ALTER", "profile", "VERSION", 2, "CONSUMER", "OFF", "EXTRA", "IGNORE")
    now_s = time.time()
    for i in range(300):
        client.execute_command("FS.PUBLISH", f"fs:v1:profile:u{i % 40}", "n", i, "label", b"\xff\0\r\n")
        client.execute_command(
            "FS.PUBLISH", f"fs:v1:profile:u{i % 40}", "JSON", '{"score": 0.1, "label": null}'
        )
        add(client, f"u{i % 30}", {"score": i / 7}, now_s - i)
    client.execute_command("FS.PUBLISH", "fs:v2:profile:u1", "v", "[0.1, 2, -3]")
    add(client, "u1", {"n": "no number"})
    client.execute_command("FS.DEL", "fs:v1:profile:u7")
    register(client, view="stopped")
    client.execute_command("FS.PUBLISH", "fs:v1:stopped:u1", "n", 1)
    await_drained(client)
    await_drained(client, "fs:stream:stopped")
    await_until(
        lambda: figures(client)["tombstones"] == 0, what="a deletion that nothing can undo to be forgotten"
    )
    consumer(client, "STOP", "stopped")
    for entity in ("gone", "kept"):
        client.xadd("fs:stream:stopped", {"entity_id": entity, "features": '{"n": 2}'})
    client.execute_command("FS.DEL", "fs:v1:stopped:gone")
    register(client, view="dropped")
    client.execute_command("FS.DROP", "dropped")


def told(client):
    """What FS.INFO tells that is no count since the start."""
    names = (
        "versions",
        "consumer",
        "length",
        "first_entry",
        "last_entry",
        "cursor",
        "lag_entries",
        "dlq_length",
    )
    return {v: [figures(client, v)[n] for n in (*names, "tombstones")] for v in ("profile", "stopped")}


@pytest.mark.parametrize("come_back, settings", WAYS, ids=lambda p: getattr(p, "__name__", ""))
def test_everything_survives(fresh_server, come_back, settings):
    server = fresh_server(settings)
    fill(server.client())
    held, info = everything(server.client()), told(server.client())
    assert info["stopped"][1:] != info["profile"][1:] and info["stopped"][-1] == 1
    for _ in range(2):
        come_back(server)
        client = server.client()
        after = everything(client)
        for aspect, expected in held.items():
            assert after[aspect] == expected, aspect
        # An AOF tells of deletions anew, until the consumer has seen that nothing can undo them.
        await_until(lambda at=client: told(at) == info, what=f"FS.INFO to tell {info}")
        with pytest.raises(valkey.ResponseError, match="NOVIEW"):
            client.execute_command("FS.DESCRIBE", "dropped")
    # And it goes on as if nothing had been.
    consumer(client, "START", "stopped")
    await_drained(client, "fs:stream:stopped")
    assert sorted(rows(client, "fs:v1:stopped:")) == ["kept", "u1"]
    assert figures(client, "stopped")["lost_entries"] == 0
    assert client.execute_command("FS.PUBLISH", "fs:v1:profile:new", "more", "false")
    add(client, "u1", {"n": 1_000})
    await_until(lambda: client.hget("fs:v1:profile:u1", "n") == b"1000", what="the row of a new entry")


# In full flow


class Writer:
    """A thread that XADDs numbered updates until its server is gone; it counts what was acknowledged."""

    def __init__(self, server, place):
        self.acknowledged = 0
        self._place, self._client = place, server.client()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        try:
            while True:
                number = self.acknowledged + 1
                add(self._client, f"w{self._place}-{number}", {"n": number}, EPOCH_S)
                self.acknowledged = number
        # The library meets its own closed socket now and then, where it should say that the connection is gone.
        except (valkey.ConnectionError, AttributeError):
            pass

    def join(self):
        self._thread.join()


def test_a_power_cut_in_full_flow_loses_nothing_that_was_acknowledged(fresh_server):
    server = fresh_server(ALWAYS)
    register(server.client(), "MAXLEN", 1_000_000)
    for cut in range(3):
        add_many(server.client(), 1_000, start=1_000 * cut)
        writers = [Writer(server, place=2 * cut + i) for i in range(2)]
        await_until(
            lambda some=writers: sum(w.acknowledged for w in some) > 200, what="some acknowledged writes"
        )
        if cut == 1:
            server.client().bgrewriteaof()
        server.kill()
        for writer in writers:
            writer.join()
        server.start()
        client = server.client()
        await_drained(client)
        held = rows(client)
        assert held == rows_by_entries(client)
        for i, writer in enumerate(writers):
            names = {f"w{2 * cut + i}-{number}" for number in range(1, writer.acknowledged + 1)}
            assert names <= held.keys()
        assert figures(client)["lost_entries"] == 0


@pytest.mark.parametrize("come_back, settings", WAYS, ids=lambda p: getattr(p, "__name__", ""))
def test_coming_back_in_full_flow_keeps_rows_and_cursor_in_step(fresh_server, come_back, settings):
    server = fresh_server(settings | SLOW)
    register(server.client(), "MAXLEN", 1_000_000)
    for start in (0, 5_000):
        add_many(server.client(), 5_000, start=start)
        await_until(lambda least=start + 100: entries_read(server.client()) > least, what="some progress")
        come_back(server)
    client = server.client()
    await_drained(client)
    assert client.xlen(LOG) == 10_000
    assert rows(client) == rows_by_entries(client)
    assert figures(client)["lost_entries"] == 0


@pytest.mark.parametrize("load, settings", [("RELOAD", QUICK), ("LOADAOF", AOF)])
def test_loading_in_full_flow_applies_nothing_twice(fresh_server, load, settings):
    client = fresh_server(settings | SLOW).client()
    register(client, "MAXLEN", 1_000_000)
    add_many(client, 20_000)
    for _ in range(5):
        so_far = entries_read(client)
        await_until(lambda least=so_far: entries_read(client) > least, what="some progress")
        with client.pipeline() as pipeline:
            pipeline.execute_command("DEBUG", load)
            pipeline.xinfo_groups(LOG)
            _, (loaded,) = pipeline.execute()
    # Figures begin anew with a load: this one must have had just as much to do as its cursor said.
    assert loaded["lag"] > 0, "the last load was not in full flow"
    await_drained(client)
    assert figures(client)["consumed"] == loaded["lag"] == 20_000 - loaded["entries-read"]
    assert rows(client) == rows_by_entries(client)


def test_an_aof_that_was_cut_off_anywhere_brings_rows_and_log_in_step(fresh_server):
    server = fresh_server(ALWAYS | {"aof-load-truncated": "yes"})
    client = server.client()
    register(client, "MAXLEN", 1_000_000)
    for i in range(40):
        add_many(client, 50, start=50 * i)
        client.execute_command("FS.PUBLISH", f"fs:v1:profile:u{i}", "AT", (EPOCH_S + 30 * i) * 1000, "n", -i)
    await_drained(client)
    server.kill()
    (file,) = server.folder.glob("appendonlydir/*.incr.aof")
    whole, chance = file.read_bytes(), random.Random(5)
    begin = whole.index(b"FS.REGISTER") + 300
    for _ in range(8):
        file.write_bytes(whole[: chance.randrange(begin, len(whole))])
        server.start()
        client = server.client()
        if client.exists(LOG):
            await_drained(client)
        assert rows(client) == rows_by_entries(client)
        assert figures(client)["lost_entries"] == 0
        server.kill()


def effects_in(aof):
    """Where the effects stand in an AOF: the commands `FS.EFFECT key effect [key effect ...]` hold them."""
    for command in re.finditer(rb"\*(\d+)\r\n\$9\r\nFS\.EFFECT\r\n", aof):
        at = command.end()
        for place in range(int(command[1]) - 1):
            size = int(aof[at + 1 : aof.index(b"\r\n", at)])
            begin = aof.index(b"\r\n", at) + 2
            if place % 2:
                yield begin, begin + size
            at = begin + size + 2


def test_damaged_effects_in_an_aof_take_nothing_down(fresh_server):
    server = fresh_server(ALWAYS)
    client = server.client()
    register(client, "TTL", "3650d")
    for i in range(20):
        add_many(client, 10, start=10 * i)
        add(client, "u1", {"n": "no number"})
        client.execute_command("FS.PUBLISH", f"fs:v1:profile:u{i}", "EVENT", "e", "n", i, "label", "x")
        client.execute_command("FS.PUBLISH", f"fs:v1:profile:u{i}", "JSON", '{"score": 1.5, "label": null}')
        client.execute_command("FS.DEL", f"fs:v1:profile:u{i}")
    await_drained(client)
    server.kill()
    (file,) = server.folder.glob("appendonlydir/*.incr.aof")
    whole, chance = file.read_bytes(), random.Random(6)
    places = list(effects_in(whole))
    assert len(places) > 80
    for _ in range(25):
        hurt = bytearray(whole)
        for begin, end in places:
            match chance.randrange(6):
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
        # What is damaged may say anything, ids of the year 3000 too: it is not served as an error, and writing goes on.
        client.execute_command("FS.CONSUME", "profile")
        for key in client.scan_iter(match="fs:v1:profile:*", _type="hash"):
            client.execute_command("FS.GET", key, "WITHSTATUS")
        client.execute_command("FS.PUBLISH", "fs:v1:profile:new", "NOLOG", "n", 1)
        assert client.execute_command("FS.GET", "fs:v1:profile:new", "n") == [b"n", 1]
        client.save()
        server.kill()
    server.check_log()
    assert "was not executed: " in server.log()


def test_deleting_dropped_data_goes_on_after_a_restart(fresh_server):
    server = fresh_server(QUICK | SLOW)
    client = server.client()
    register(client)
    register(client, version=2)
    with client.pipeline(transaction=False) as pipeline:
        for i in range(40_000):
            pipeline.hset(f"fs:v{1 + i % 2}:profile:{i}", "n", i)
        pipeline.execute()
    client.execute_command("FS.DROP", "profile", "DATA")
    await_until(lambda: client.dbsize() < 39_000, what="the deletion to be under way")
    server.restart()
    client = server.client()
    assert client.dbsize() > 0
    with pytest.raises(valkey.ResponseError, match="BUSY"):
        register(client)
    await_until(lambda: module_figures(client)["dropping"] == 0, what="the drop to end")
    assert client.dbsize() == 0
    register(client)
    server.restart()
    assert module_figures(server.client())["dropping"] == 0


# Definitions and files


def test_flushing_keeps_definitions(fresh_server):
    server = fresh_server(AOF)
    client = server.client()
    fill(client)
    before = everything(client)["definitions"]
    client.flushall()
    assert everything(client)["definitions"] == before
    assert (figures(client)["cursor"], figures(client, "stopped")["tombstones"]) == (None, 0)
    rewrite(server)
    client.flushall(asynchronous=True)
    server.restart(save=False)
    client = server.client()
    assert everything(client)["definitions"] == before
    assert figures(client, "stopped")["consumer"] == b"stopped"
    add(client, "u1", {"n": 1})
    await_drained(client)
    assert rows(client) == {"u1": {"n": 1}}


def test_an_aof_that_would_lose_definitions_is_refused_with_a_sentence(fresh_server):
    client = fresh_server(AOF | {"aof-use-rdb-preamble": "no"}).client()
    with pytest.raises(valkey.ResponseError, match="aof-use-rdb-preamble"):
        register(client)
    assert client.execute_command("FS.VIEWS") == []
    client.config_set("aof-use-rdb-preamble", "yes")
    register(client)
    client.config_set("aof-use-rdb-preamble", "no")
    client.config_set("appendonly", "no")
    register(client, view="another")


@pytest.mark.parametrize("dropped", [False, True])
def test_a_file_without_definitions_loads_where_the_module_is_not(fresh_server, dropped):
    server = fresh_server(QUICK)
    client = server.client()
    if dropped:
        register(client)
        add(client, "u1", {"n": 1})
        await_drained(client)
        client.execute_command("FS.DROP", "profile")
    client.hset("h", "f", "v")
    server.module = None
    server.config = {name: value for name, value in server.config.items() if not name.startswith("fs.")}
    server.restart()
    client = server.client()
    assert client.hget("h", "f") == b"v"
    assert client.hget("fs:v1:profile:u1", "n") == (b"1" if dropped else None)
    client.execute_command("MODULE", "LOAD", MODULE)
    register(client)


def damaged(payload, chance):
    """Ways to hurt bytes, the length unchanged: the file around them stays whole."""
    hurt = bytearray(payload)
    match chance.randrange(5):
        case 0:
            hurt[chance.randrange(len(hurt))] ^= 1 << chance.randrange(8)
        case 1:
            hurt[chance.randrange(24)] = chance.randrange(256)
        case 2:
            for _ in range(20):
                hurt[chance.randrange(len(hurt))] = chance.randrange(256)
        case 3:
            cut = chance.randrange(len(hurt))
            hurt[cut:] = bytes([chance.choice([0, 0xFF])]) * (len(hurt) - cut)
        case 4:
            hurt = bytearray(chance.randbytes(len(hurt)))
    return bytes(hurt)


def test_damaged_definitions_are_refused_without_a_crash(fresh_server):
    server = fresh_server(QUICK | {"rdbchecksum": "no", "rdbcompression": "no"})
    client = server.client()
    register(
        client,
        "TTL",
        "1d",
        schema=("n", "INT", "DEFAULT", 7, "v", "VECTOR", 2, "s", "STRING", "VALUES", 1, "x"),
    )
    consumer(client, "STOP")
    add(client, "u1", {"n": 1})
    client.execute_command("FS.DEL", "fs:v1:profile:u1")
    client.save()
    server.kill()
    file = server.folder / "dump.rdb"
    whole = file.read_bytes()
    # The aux payload, around the one definition in it: before it names and lengths, behind it cursor and deletions.
    (document,) = re.finditer(rb'\{"view".*\}', whole)
    begin, end = document.start() - 14, document.end() + 8
    assert whole[begin:end].count(b"profile") >= 2
    chance = random.Random(8)
    refused = 0
    for _ in range(60):
        file.write_bytes(whole[:begin] + damaged(whole[begin:end], chance) + whole[end:])
        refused += is_refused(server)
    for _ in range(20):
        file.write_bytes(whole[: chance.randrange(begin, end)])
        refused += is_refused(server)
    # Some damage cannot be told from a definition: another letter in a text, another TTL.
    assert refused >= 50
    server.check_log()
    assert "fs: the definitions in the RDB cannot be loaded: " in server.log()
    file.write_bytes(whole)
    server.start()
    assert figures(server.client())["tombstones"] == 1


def is_refused(server):
    try:
        server.start()
    except ServerFailed:
        return True
    assert server.client().ping()
    assert server.client().execute_command("FS.HELP")
    server.kill()
    return False


def test_the_module_cannot_be_unloaded_and_says_so(fresh_server):
    server = fresh_server(QUICK)
    client = server.client()
    register(client)
    add_many(client, 100)
    with pytest.raises(valkey.ResponseError, match="unload"):
        client.execute_command("MODULE", "UNLOAD", "fs")
    await_drained(client)
    assert rows(client) == rows_by_entries(client)
    with pytest.raises(valkey.ResponseError):
        client.execute_command("MODULE", "LOAD", MODULE)
    assert client.execute_command("FS.VIEWS") == [[b"profile", b"user", [1]]]
