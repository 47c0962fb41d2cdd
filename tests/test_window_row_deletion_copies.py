"""Rows that go, with their window states, on replicas and in the AOF."""

import threading

from test_persistence import ALWAYS, QUICK
from test_replication import assert_same, everything
from test_resync import await_synced
from test_window_copies import COUNT_AND_SUM, ENTITIES, ROW, STATE, Traffic, assert_serves_the_same
from windowed_view import answers, clock_ms, fs

from server import Server, await_until

# Rows that go


def test_what_expiry_and_eviction_take_elsewhere_leaves_windows_on_every_copy(fresh_server):
    settings = {"maxmemory-policy": "volatile-ttl", "maxmemory-samples": 20}
    primary = fresh_server(ALWAYS | settings)
    replica = primary.replica(
        {"repl-diskless-load": "on-empty-db", "appendonly": "yes", "appendfsync": "always"}
    )
    client = primary.client()
    schema = f"text STRING {COUNT_AND_SUM}"
    fs(client, f"FS.REGISTER profile ENTITY user TTL 1h LOG OFF SCHEMA {schema}")
    for i in range(150):
        client.execute_command("FS.PUBLISH", f"fs:v1:profile:u{i}", "n", i, "x", i, "text", "x" * 50_000)
    for i in range(50):
        client.pexpire(f"fs:v1:profile:u{i}", 1)
    await_until(
        lambda: client.exists(*[f"fs:v1:profile:u{i}" for i in range(50)]) == 0, what="rows to expire"
    )
    client.config_set("maxmemory", client.info("memory")["used_memory"] - (3 << 20))
    await_until(lambda: client.info("stats")["evicted_keys"] > 20, what="rows to be evicted")
    client.config_set("maxmemory", 0)
    assert client.exists(*[f"fs:v1:profile:u{i}" for i in range(150)]) < 80
    assert len(client.keys("fs:w*")) == 150
    # A deletion beside them is told apart.
    survivor = next(key for key in client.scan_iter("fs:v1:*"))
    client.delete(survivor)
    assert len(client.keys("fs:w*")) == 149
    assert_same(primary, replica)
    before = everything(client)
    assert sum(key.startswith(b"fs:w") for key in before["digests"]) == 149
    await_until(
        lambda: not replica.info("persistence")["aof_rewrite_in_progress"], what="the replica's first AOF"
    )
    primary.restart(kill=True)
    assert everything(primary.client()) == before
    await_synced(replica, primary)
    primary.kill()
    replica.restart(kill=True, config={"replicaof": "no one"})
    assert everything(replica.client()) == before


def commands_in(aof: bytes) -> list[list[bytes]]:
    """The commands of an AOF, comments left out."""
    found, at = [], 0
    while at < len(aof):
        if aof[at : at + 1] == b"#":
            at = aof.index(b"\n", at) + 1
            continue
        words = int(aof[at + 1 : aof.index(b"\r\n", at)])
        at = aof.index(b"\r\n", at) + 2
        command = []
        for _ in range(words):
            size = int(aof[at + 1 : aof.index(b"\r\n", at)])
            at = aof.index(b"\r\n", at) + 2
            command.append(aof[at : at + size])
            at += size + 2
        found.append(command)
    return found


def units(commands: list[list[bytes]]) -> list[list[list[bytes]]]:
    """The commands, by what is executed as one."""
    found, transaction = [], None
    for command in commands:
        match command[0].upper():
            case b"MULTI":
                transaction = []
            case b"EXEC":
                found.append(transaction)
                transaction = None
            case _ if transaction is not None:
                transaction.append(command)
            case _:
                found.append([command])
    assert transaction is None
    return found


def written(server: Server) -> list:
    """What a server has written to its AOF since the last rewrite, by units."""

    def files():
        is_rewriting = server.info("persistence")["aof_rewrite_in_progress"]
        found = list(server.folder.glob("appendonlydir/*.incr.aof"))
        return found if len(found) == 1 and not is_rewriting else None

    (file,) = await_until(files, what="the first AOF")
    commands = [
        command
        for command in commands_in(file.read_bytes())
        if command[0].upper() not in (b"SELECT", b"PING")
    ]
    return units(commands)


def test_a_deletion_reaches_copies_as_one_unit(fresh_server):
    primary = fresh_server(ALWAYS)
    replica = primary.replica({"repl-diskless-load": "on-empty-db"})
    client = primary.client()
    fs(client, f"FS.REGISTER profile ENTITY user LOG OFF SCHEMA {COUNT_AND_SUM}")
    for way in ("DEL", "UNLINK", "FS.DEL", "HDEL", "DEL of a string", "DEL in MULTI", "DEL in a script"):
        client.execute_command("FS.PUBLISH", ROW, "n", 1, "x", 1)
        if way == "DEL of a string":
            client.set(ROW, "x")
        primary.await_replicated(replica)
        before = [len(written(server)) for server in (primary, replica)]
        left = 0
        match way:
            case "DEL in MULTI":
                with client.pipeline() as pipeline:
                    pipeline.execute_command("FS.PUBLISH", ROW, "n", 2, "x", 2)
                    pipeline.delete(ROW)
                    pipeline.execute_command("FS.PUBLISH", ROW, "n", 3, "x", 3)
                    pipeline.execute()
                left = 1
            case "DEL in a script":
                script = "redis.call('DEL', KEYS[1]) redis.call('FS.PUBLISH', KEYS[1], 'n', '3', 'x', '3')"
                client.eval(script, 1, ROW)
                left = 1
            case "HDEL":
                client.hdel(ROW, *client.hkeys(ROW))
            case _:
                client.execute_command(way.split()[0], ROW)
        assert client.exists(ROW, STATE) == 2 * left, way
        primary.await_replicated(replica)
        assert_same(primary, replica)
        for server, count in zip((primary, replica), before, strict=True):
            units_since = written(server)[count:]
            assert len(units_since) == 1, (way, units_since)
            commands = [command[0].upper().decode() for command in units_since[0]]
            if way != "FS.DEL":
                assert way.split()[0] in commands, (way, commands)


def test_nobody_sees_a_row_without_its_windows(fresh_server):
    primary = fresh_server(QUICK)
    replica = primary.replica({"repl-diskless-load": "on-empty-db"})
    client, there = primary.client(), replica.client()
    fs(client, f"FS.REGISTER profile ENTITY user LOG OFF SCHEMA {COUNT_AND_SUM}")
    client.execute_command("FS.PUBLISH", ROW, "n", 0, "x", 0)
    primary.await_replicated(replica)
    seen, failures, done = set(), [], threading.Event()

    def read():
        while not done.is_set():
            with there.pipeline() as pipeline:
                pipeline.execute_command("FS.GET", ROW, "n", "c", "s")
                pipeline.exists(ROW, STATE)
                (_, n, _, count, _, total), keys = pipeline.execute()
            seen.add((n is None, count))
            if (n is None, count, float(total), keys) not in {
                (True, 0, 0.0, 0),
                (False, 1, float(n or 0), 2),
            }:
                failures.append((n, count, total, keys))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for i in range(1, 1_500):
            with client.pipeline() as pipeline:
                pipeline.delete(ROW)
                pipeline.execute_command("FS.PUBLISH", ROW, "n", i, "x", i)
                pipeline.execute()
            if i % 100 == 0:
                client.delete(ROW)
                seen.clear()
                await_until(lambda: failures or (True, 0) in seen, what="the reader to see the deletion")
                client.execute_command("FS.PUBLISH", ROW, "n", i, "x", i)
                await_until(lambda: failures or (False, 1) in seen, what="the reader to see the row")
    finally:
        done.set()
        thread.join()
    assert not failures, failures[:5]
    assert_same(primary, replica)


def test_a_chain_of_replicas_is_the_same(fresh_server):
    primary = fresh_server(QUICK)
    middle = primary.replica({"repl-diskless-load": "on-empty-db"})
    traffic = Traffic(primary.client(), seed=11)
    traffic.define()
    last = middle.replica({"replicaof": f"127.0.0.1 {middle.port}", "repl-diskless-load": "swapdb"})
    traffic.run(200)
    traffic.settle()
    assert_serves_the_same(primary, middle)
    assert_serves_the_same(middle, last)
    # What a replica serves by its own clock is served without a write.
    before = everything(last.client())
    assert len(answers(last.client(), clock_ms(last.client()) + 120_000)) >= ENTITIES // 2
    assert everything(last.client()) == before
