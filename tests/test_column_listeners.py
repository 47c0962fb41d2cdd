"""Another module that acts on a row while its change is still being told: the column cache holds what comes out."""

import json
import subprocess
from pathlib import Path

import pytest
from column_cases import IDS, LASTING, SERVICES, Service, check_reading, define, figures, row_key

ROW, OTHER = IDS[1], IDS[2]
IDS_READ = [ROW, OTHER]
FIRST = {"a": 5, "f": 0.5, "b": True, "c": "y", "v": [1, 2, 3], "t": 1_700_000_000_000}
# Windows change after the row.
STORED = Service("stored", ("h@1:b", "p@1:a", "h@1:f", "p@1:v", "p@1:f", "p@1:c", "h@1:a"))
SCRIPT = "server.call('SET', 'seen', server.call('FS.SERVE', 'stored', ARGV[1])[2]) return 1"
# The same after another change of the row `KEYS[1]`, whichever of the two it is.
CHANGING = "server.pcall('HSET', KEYS[1], 'a', 77, 'f', 7) server.pcall('SETRANGE', KEYS[1], 0, 'junk') "
# What the store does to the row `K`, and what the other module does when it hears of it. Not all of the server's own
# commands bear that their key goes while they tell of it.
CHANGES = """
FS.PUBLISH K a 9
FS.PUBLISH K JSON {"f":null,"n":1}
FS.MPUBLISH J {"a":8} K {"a":9}
FS.DEL K
""".strip().splitlines()
ANSWERS = """
HSET K a 77
HDEL K a f
HINCRBY K a 5
SETRANGE K 20 xyz
COPY J K REPLACE
RENAME J K
DEL K
PEXPIRE K 5000
FS.PUBLISH K a 77 f 77
FS.PUBLISH J a 77
FS.DEL K
FLUSHALL
SWAPDB 0 1
SUNIONSTORE K set
FS.SERVICE SET of_both FORMAT TENSOR WITHSTATUS FEATURES 2 h@1:t p@1:t
FS.DROP h VERSION 1
""".strip().splitlines()


@pytest.fixture(scope="module")
def listening_module(tmp_path_factory):
    library = tmp_path_factory.mktemp("listening_module") / "listening_module.so"
    source = Path(__file__).with_name("listening_module.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", library, source], check=True)
    return str(library)


def prepare(client) -> None:
    client.flushall()
    define(client, views=LASTING)
    client.execute_command(*STORED.setting())
    for view in ("h@1", "p@1"):
        for i, id_ in enumerate(IDS_READ):
            client.execute_command("FS.PUBLISH", row_key(view, id_), "JSON", json.dumps(FIRST | {"a": i}))
    for _ in range(2):
        check_reading(client, IDS_READ)
    client.sadd("set", "a")


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_listener_makes_of_a_row_is_what_is_answered(fresh_server, listening_module, change):
    server = fresh_server()
    client = server.client()
    client.response_callbacks.clear()
    client.execute_command("MODULE", "LOAD", listening_module)
    define(server.client(), views=LASTING)
    for view in ("h@1", "p@1"):
        words = {"K": row_key(view, ROW), "J": row_key(view, OTHER)}
        for answer in ANSWERS:
            prepare(server.client())
            client.execute_command("LISTENER.DO", *(words.get(word, word) for word in answer.split()))
            with client.pipeline(transaction=False) as pipeline:
                pipeline.execute_command(*(words.get(word, word) for word in change.split()))
                pipeline.execute(raise_on_error=False)
            for _ in range(2):
                check_one(client, change, answer)
            client.execute_command("LISTENER.DO")
    assert figures(server)["hits"] > 50
    assert server.info("fs")["fs_panics"] == 0


def check_one(client, change: str, answer: str) -> None:
    # The service and its views may be others now.
    services = [SERVICES[0], SERVICES[2]] if answer.startswith("FS.S") else SERVICES[:3]
    try:
        check_reading(client, IDS_READ, services=services)
    except AssertionError as error:
        raise AssertionError(f"after {change}, and {answer} when it was heard of: {error}") from None


READ_IN = [(change, "") for change in CHANGES if " J " not in change]
READ_IN += [(change, CHANGING) for change, _ in READ_IN if "DEL" not in change]


@pytest.mark.parametrize("change, before", READ_IN)
def test_what_a_listener_reads_is_what_the_row_holds(fresh_server, listening_module, change, before):
    server = fresh_server()
    client = server.client()
    client.response_callbacks.clear()
    client.execute_command("MODULE", "LOAD", listening_module)
    define(server.client(), views=LASTING)
    for view in ("h@1", "p@1"):
        words = {"K": row_key(view, ROW), "J": row_key(view, OTHER)}
        prepare(server.client())
        client.execute_command("LISTENER.DO", "EVAL", before + SCRIPT, 1, words["K"], ROW)
        with client.pipeline(transaction=False) as pipeline:
            pipeline.execute_command(*(words.get(word, word) for word in change.split()))
            pipeline.execute()
        seen, now = client.get("seen"), client.execute_command("FS.SERVE", "stored", ROW)[1]
        assert seen == now, (change, view)
