"""Fixtures of all Python tests: servers from tests/server.py, and their logs in the report of a failed test."""

import subprocess

import pytest
from profile_view import register
from windowed_view import SMALL, fs

from server import Server, ServerFailed, required_file

LOG_OFFSETS = pytest.StashKey[dict]()


def pytest_sessionstart():
    try:
        required_file("VALKEY_SERVER"), required_file("FS_MODULE")
    except ServerFailed as failure:
        raise pytest.UsageError(str(failure)) from None


def pytest_report_header():
    program, module = required_file("VALKEY_SERVER"), required_file("FS_MODULE")
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False)
    return [
        f"server: {answer.stdout.strip() or answer.stderr.strip()}",
        f"        {program}",
        f"module: {module}",
    ]


@pytest.fixture(scope="module")
def module_server():
    """The server that the tests of one file share; tests ask for `server`."""
    shared = Server()
    yield shared
    shared.stop()


@pytest.fixture
def server(module_server):
    """A server shared within the file: without keys, views and services when the test begins.

    Settings that a test changes stay for the next one: a test that changes settings takes a `fresh_server`.
    """
    if not module_server.is_alive():
        # The test before this one took it down. The log keeps what it said, and is checked at the end of the file.
        module_server.kill()
        module_server.start()
    empty(module_server)
    return module_server


@pytest.fixture
def client(server):
    return server.client()


@pytest.fixture
def small(client):
    """A client of a server with the view `profile`: a plain feature, a count and a sum."""
    fs(client, f"FS.REGISTER profile ENTITY user SCHEMA {SMALL}")
    return client


@pytest.fixture
def fresh_server():
    """Makes servers of the test's own, `fresh_server({"appendonly": "yes"})`; stopped and checked at its end."""
    servers = []

    def make(*args, **options) -> Server:
        servers.append(Server(*args, **options))
        return servers[-1]

    yield make
    failures = []
    for made in servers:
        try:
            made.stop()
        except ServerFailed as failure:
            failures.append(str(failure))
    if failures:
        raise ServerFailed("\n".join(failures))


def empty(server: Server) -> None:
    """Removes keys, services and views; FLUSHALL alone keeps definitions, as it keeps functions."""
    with server.client() as client:
        for service in client.execute_command("FS.SERVICE LIST"):
            client.execute_command("FS.SERVICE DEL", service)
        for view in names(client.execute_command("FS.VIEWS")):
            client.execute_command("FS.DROP", view)
        client.flushall()


def names(reply) -> set[bytes]:
    """The names in a list of names, or of entries that begin with one."""
    return {entry if isinstance(entry, bytes) else entry[0] for entry in reply}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    item.stash[LOG_OFFSETS] = {id(server): len(server.log()) for server in Server.live}
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        offsets = item.stash.get(LOG_OFFSETS, {})
        for server in Server.live:
            tail = server.log_tail(offset=offsets.get(id(server), 0))
            report.sections.append((f"log of the server on port {server.port}", tail))
    return report


@pytest.fixture
def store(fresh_server):
    """A server with the view `profile`, that sweeps often; its figures begin at 0."""
    server = fresh_server({"fs.sweep-interval": 20})
    register(server.client(), "MAXLEN", 1_000_000)
    return server


@pytest.fixture
def slow_store(fresh_server):
    """The same with the shortest slices, so that a test can come between them."""
    server = fresh_server({"fs.sweep-interval": 20, "fs.consumer-slice-us": 50})
    register(server.client(), "MAXLEN", 1_000_000)
    return server
