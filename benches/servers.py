"""Servers under test: started on loopback with jemalloc, measured by the CPU time of all their threads.

A server dies with the script, whichever way that ends, and writes only into a temporary folder.
"""

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from load import BenchError, Connection

CHECKOUT = Path(__file__).resolve().parent.parent
TOOLS = CHECKOUT / ".tools"
START_SECONDS_MAX = 20
SYNC_SECONDS_MAX = 60
POLL_SECONDS = 0.005
MEMORY_MAX = "4gb"
PR_SET_PDEATHSIG = 1

PROGRAMS = {
    "9": ("VALKEY_SERVER_9", TOOLS / "server-9.1" / "bin" / "valkey-server"),
    "8": ("VALKEY_SERVER_8", TOOLS / "server-8.0" / "bin" / "valkey-server"),
}


def program(server: str) -> str:
    variable, default = PROGRAMS[server]
    path = os.environ.get(variable) or str(default)
    if shutil.which(path) is None:
        raise BenchError(f"no server for {server}: set {variable} or run make bench, which sets it")
    return path


def module_path() -> Path:
    default = CHECKOUT / "target" / "release" / "libvalkey_feature_store.so"
    path = Path(os.environ.get("FS_MODULE") or default)
    if not path.is_file():
        raise BenchError("the module is not built: run make bench, set FS_MODULE, or give --native-only")
    return path.resolve()


def jemalloc() -> str:
    found = os.environ.get("JEMALLOC") or next(map(str, TOOLS.glob("server-8.0/**/libjemalloc.so.2")), None)
    if found is None or not Path(found).is_file():
        raise BenchError(
            "no jemalloc for a server built with libc's malloc: set JEMALLOC to libjemalloc.so.2"
        )
    return found


def feast_python() -> str:
    """The Python that has Feast."""
    path = Path(os.environ.get("FEAST_PYTHON") or TOOLS / "feast" / "bin" / "python")
    if not path.is_file():
        raise BenchError("Feast is not installed: set FEAST_PYTHON or run make bench, which installs it")
    return str(path)


def die_with_parent() -> None:
    """Run in the child between fork and exec, or at the start of a child process."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Server:
    """One server process. `options`: configuration beyond the common one, as name and value words."""

    def __init__(self, version: str, module: Path | None, *options: str):
        self.folder = tempfile.TemporaryDirectory(prefix="fs-bench-")
        self.port = free_port()
        self.module = module
        path = program(version)
        environment = dict(os.environ)
        banner = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
        if "malloc=jemalloc" not in banner:
            environment["LD_PRELOAD"] = jemalloc()
        words = [path, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.folder.name]
        words += ["--save", "", "--maxmemory", MEMORY_MAX, "--maxmemory-policy", "noeviction"]
        words += [
            "--auto-aof-rewrite-percentage",
            "0",
            "--repl-ping-replica-period",
            "3600",
            "--io-threads",
            "1",
        ]
        words += [
            word
            for name, value in zip(options[::2], options[1::2], strict=True)
            for word in (f"--{name}", value)
        ]
        if module:
            words += ["--loadmodule", str(module)]
        self.log = Path(self.folder.name) / "log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                preexec_fn=die_with_parent,
            )
        try:
            self.connection = self.wait_until_ready()
            if "jemalloc" not in Path(f"/proc/{self.process.pid}/maps").read_text():
                raise BenchError("the server runs without jemalloc: set JEMALLOC")
        except BaseException:
            self.stop()
            raise
        self.version = self.connection.info("server").get("valkey_version", "?")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()

    def wait_until_ready(self) -> Connection:
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                connection = Connection(self.port)
                connection.call("PING")
                return connection
            except (ConnectionError, BenchError):
                time.sleep(POLL_SECONDS)
        tail = self.log.read_text(errors="replace").splitlines()[-8:]
        raise BenchError("the server did not start:\n  " + "\n  ".join(tail))

    def call(self, *words):
        try:
            return self.connection.call(*words)
        except (ConnectionError, BenchError) as error:
            raise BenchError(f"{error}{self.last_words()}") from None

    def last_words(self) -> str:
        """What the server's log says if it is gone, else nothing."""
        try:
            self.process.wait(0.5)
        except subprocess.TimeoutExpired:
            return ""
        lines = self.log.read_text(errors="replace").splitlines()
        crash = next(
            (at for at, line in enumerate(lines) if "BUG REPORT" in line or "panicked" in line),
            len(lines) - 15,
        )
        return "\nthe server is gone, its log says:\n  " + "\n  ".join(lines[max(0, crash - 2) : crash + 30])

    def cpu_ns(self) -> int:
        """CPU time of all threads since the start. The scheduler's own count: exact, unlike the clock ticks
        of stat.
        """
        total = 0
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            try:
                total += int((task / "schedstat").read_text().split()[0])
            except FileNotFoundError:
                continue
        return total

    def replication_offset(self) -> int:
        return int(self.connection.info("replication")["master_repl_offset"])

    def calls(self) -> dict[str, int]:
        """Calls by command name in lower case, as the server counts them."""
        found = {}
        for name, text in self.connection.info("commandstats").items():
            found[name.removeprefix("cmdstat_").lower()] = int(re.search(r"calls=(\d+)", text)[1])
        return found

    def errors(self) -> dict[str, str]:
        return self.connection.info("errorstats") | {
            "total": self.connection.info("stats")["total_error_replies"]
        }


class Replica(Server):
    """A server that follows another one. It is in step when `start` returns."""

    def __init__(self, version: str, module: Path | None, primary: Server):
        super().__init__(version, module, "replicaof", f"127.0.0.1 {primary.port}")
        self.primary = primary
        deadline = time.monotonic() + SYNC_SECONDS_MAX
        while "state=online" not in primary.connection.info("replication").get("slave0", ""):
            if time.monotonic() > deadline or self.process.poll() is not None:
                self.stop()
                raise BenchError(f"the replica did not reach its primary{self.last_words()}")
            time.sleep(POLL_SECONDS)

    def catch_up(self) -> None:
        """Returns when the replica has everything that the primary had written when this was called."""
        target = self.primary.replication_offset()
        deadline = time.monotonic() + SYNC_SECONDS_MAX
        while int(self.connection.info("replication")["slave_repl_offset"]) < target:
            if time.monotonic() > deadline:
                raise BenchError("the replica fell behind its primary")
            time.sleep(POLL_SECONDS)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
