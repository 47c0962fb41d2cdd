"""Commands called by another module: without a user, for which nothing is checked, or as its caller."""

import subprocess
from pathlib import Path

import pytest

ROW, VIEW = "fs:v1:profile:u1", ("FS.REGISTER", "profile", "ENTITY", "user", "SCHEMA", "n", "INT")

# A call of each command that asks who its caller is.
CALLS = [
    ("FS.PUBLISH", ROW, "n", "1"),
    ("FS.MPUBLISH", ROW, '{"n": 2}'),
    ("FS.CONSUME", "profile"),
    ("FS.TRIM", "profile", "MAXLEN", "5"),
    ("FS.INFO", "profile"),
    ("FS.SCAN", "profile", "0"),
    ("FS.GET", ROW),
    ("FS.DROP", "profile", "DATA"),
]


@pytest.fixture(scope="module")
def calling_module(tmp_path_factory):
    library = tmp_path_factory.mktemp("calling_module") / "calling_module.so"
    source = Path(__file__).with_name("calling_module.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", library, source], check=True)
    return str(library)


@pytest.fixture
def client(fresh_server, calling_module):
    client = fresh_server({"enable-module-command": "yes"}).client()
    client.execute_command("MODULE", "LOAD", calling_module)
    client.execute_command(*VIEW)
    return client


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call[0])
def test_a_module_without_a_user_may_do_all_and_the_server_lives(client, call):
    client.execute_command("CALLER.CALL", "v", *call)
    assert client.ping()
    assert client.info("fs")["fs_panics"] == 0


def test_what_a_module_publishes_is_published(client):
    assert client.execute_command("CALLER.CALL", "v", "FS.PUBLISH", ROW, "n", "7")
    assert client.execute_command("FS.GET", ROW) == [b"n", 7]


@pytest.mark.parametrize("call", CALLS[:5], ids=lambda call: call[0])
def test_a_module_that_acts_for_its_caller_is_refused_what_the_caller_is(client, call):
    client.execute_command("FS.PUBLISH", ROW, "n", "1")
    client.execute_command("ACL", "SETUSER", "narrow", "on", "nopass", "+@all", "~fs:v1:*")
    client.execute_command("AUTH", "narrow", "")
    with pytest.raises(Exception, match=r"(?i)noperm|permission"):
        client.execute_command("CALLER.CALL", "vC", *call)
    client.execute_command("AUTH", "default", "")
    assert client.execute_command("FS.GET", ROW) == [b"n", 1]
