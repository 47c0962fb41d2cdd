"""Real Valkey servers for the tests: started, waited for, restarted, replicated, stopped.

The rules kept here: no fixed sleeps (everything is awaited with a bound), servers listen on loopback only, no server
outlives the test process, and a server that crashed or printed a panic fails the test that stops it.

Which server and module: the environment variables VALKEY_SERVER and FS_MODULE, which `make test` sets.
"""

import ctypes
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import valkey
from valkey.backoff import NoBackoff
from valkey.retry import Retry

START_TIMEOUT_S = 30
STOP_TIMEOUT_S = 20
PORTS = range(
    12000, 22000
)  # Below the kernel's ephemeral ports, also with the 10000 that the cluster bus adds.

CONFIG = {
    "bind": "127.0.0.1",
    "save": "",
    "appendonly": "no",
    "enable-debug-command": "yes",
    "enable-module-command": "yes",
    "repl-diskless-sync-delay": "0",
    "repl-ping-replica-period": "1",
    "shutdown-timeout": "1",
}

# What a server prints when it dies of a bug, and what Rust prints when code panics, even if the panic was caught.
CRASH = re.compile(
    r"BUG REPORT|ASSERTION FAILED|Guru Meditation|crashed by signal|panicked at|memory corruption"
)

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG = 1


def await_until(predicate: Callable[[], object], timeout_s: float = 10, what: str = "the condition"):
    """Polls until `predicate` answers something true, and returns that; fails after `timeout_s`.

    `what` completes the sentence "waited 10 s for ...".
    """
    deadline = time.monotonic() + timeout_s
    pause_s = 0.001
    while True:
        answer = predicate()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {timeout_s:g} s for {what}; last answer: {answer!r}")
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.05)


class ServerFailed(AssertionError):
    """A server that did not start, did not stop, or crashed; the message ends with its log."""


class Server:
    """One server process on a port and in a folder of its own.

    `config`: settings by name, over the defaults in CONFIG; settings of the module (`fs.*`) too.
    `module_args`: arguments of the module. `module=None` starts a server without it.
    """

    live: ClassVar[list["Server"]] = []

    def __init__(self, config: dict | None = None, module_args: tuple = (), module: str | None = "FS_MODULE"):
        self.program = required_file("VALKEY_SERVER")
        self.module = required_file(module) if module else None
        self.module_args = [str(argument) for argument in module_args]
        self.config = {**CONFIG, **(config or {})}
        # A test that provokes a panic on purpose says so.
        self.panic_expected = False
        self.process: subprocess.Popen | None = None
        self.port = 0
        self._replicas: list[Server] = []
        self._clients: list[valkey.Valkey] = []
        self.folder = Path(tempfile.mkdtemp(prefix="valkey-test-"))
        self.log_path = self.folder / "server.log"
        try:
            self.start()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def __repr__(self) -> str:
        return f"<Server {self.port}>"

    # Life

    def start(self) -> None:
        """Starts the process in its folder, on the port it had before if any, and waits until it answers."""
        assert self.process is None, "the server is running"
        keep_port = self.port != 0
        for _ in range(5):
            if not keep_port:
                self.port = free_port()
            offset = len(self.log())
            self._spawn()
            try:
                self._await_ready()
            except BaseException as failure:
                self._reap(signal.SIGKILL)
                # Another process may take a free port before the server does.
                if "Address already in use" in self.log()[offset:] and not keep_port:
                    continue
                if isinstance(failure, AssertionError):
                    raise ServerFailed(f"the server did not start: {failure}\n{self.log_tail()}") from None
                raise
            Server.live.append(self)
            return
        raise ServerFailed("no free port was found in 5 tries")

    def stop(self) -> None:
        """Stops the server and its replicas, and fails if it had crashed, hangs or left a panic in its log."""
        if not self.folder.exists():
            return
        try:
            for replica in self._replicas:
                replica.stop()
            if self.process is not None:
                self._shut_down("NOSAVE")
            self.check_log()
        finally:
            self._reap(signal.SIGKILL)
            shutil.rmtree(self.folder, ignore_errors=True)

    def restart(self, kill: bool = False, save: bool = True, config: dict | None = None) -> None:
        """Stops and starts the server in the same folder and on the same port.

        By default a graceful shutdown that saves an RDB file; `save=False` does not; `kill=True` is a power cut, after
        which only what was on disk before is there. `config` changes settings for the new start.
        """
        if kill:
            self._reap(signal.SIGKILL)
            self.check_log()
        else:
            self._shut_down("SAVE" if save else "NOSAVE")
        self.config.update(config or {})
        self.start()

    def kill(self) -> None:
        """A power cut: SIGKILL, and no start."""
        self._reap(signal.SIGKILL)

    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    # Clients

    def client(self, protocol: int = 2, **options) -> valkey.Valkey:
        """A client that answers bytes; options go to valkey-py. It is closed when the server is stopped."""
        options = {"socket_timeout": 30, "decode_responses": False, "retry": Retry(NoBackoff(), 0)} | options
        client = valkey.Valkey(host="127.0.0.1", port=self.port, protocol=protocol, **options)
        self._clients.append(client)
        return client

    @property
    def version(self) -> tuple[int, ...]:
        """Valkey's version, for what differs between versions: `server.version >= (9,)`."""
        return tuple(int(part) for part in self.info("server")["valkey_version"].split("."))

    def info(self, section: str) -> dict:
        with self.client() as client:
            return client.info(section)

    # Replication

    def replica(self, config: dict | None = None) -> "Server":
        """A server that replicates this one, in sync; it is stopped with this one."""
        settings = {**self.config, **(config or {}), "replicaof": f"127.0.0.1 {self.port}"}
        replica = Server(settings, self.module_args, module="FS_MODULE" if self.module else None)
        self._replicas.append(replica)
        await_until(
            lambda: replica.info("replication")["master_link_status"] == "up",
            timeout_s=START_TIMEOUT_S,
            what=f"the link of {replica} to {self}",
        )
        self.await_replicated(replica)
        return replica

    def await_replicated(self, replica: "Server", timeout_s: float = 10) -> None:
        """Waits until the replica has applied everything this server wrote before the call."""
        offset = self.info("replication")["master_repl_offset"]
        await_until(
            lambda: replica.info("replication").get("slave_repl_offset", -1) >= offset,
            timeout_s=timeout_s,
            what=f"{replica} to reach offset {offset} of {self}",
        )

    # Log

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_tail(self, lines: int = 60, offset: int = 0) -> str:
        tail = self.log()[offset:].splitlines()[-lines:]
        return "\n".join([f"--- log of {self} ---", *tail, "---"])

    def check_log(self) -> None:
        """Fails if the log tells of a crash, or of a panic that the test did not announce."""
        marks = {mark.group() for mark in CRASH.finditer(self.log())}
        if self.panic_expected:
            marks.discard("panicked at")
        if marks:
            raise ServerFailed(f"the server's log says '{', '.join(sorted(marks))}'\n{self.log_tail(200)}")

    # The process

    def _command(self) -> list[str]:
        command = [str(self.program), "--port", str(self.port), "--dir", str(self.folder)]
        for name, value in self.config.items():
            # Settings such as replicaof and client-output-buffer-limit are several words.
            words = str(value).split(" ") if value != "" else [""]
            command += [f"--{name}", *words]
        if self.module:
            command += ["--loadmodule", str(self.module), *self.module_args]
        return command

    def _spawn(self) -> None:
        parent = os.getpid()

        def die_with_parent() -> None:
            # The kernel kills the server when the thread that started it ends: start servers from the main thread.
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                self._command(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )

    def _await_ready(self) -> None:
        with self.client(socket_timeout=1, socket_connect_timeout=1) as client:

            def answers() -> bool:
                code = self.process.poll()
                assert code is None, f"it ended with code {code}"
                try:
                    return client.ping()
                except valkey.exceptions.NoPermissionError:
                    return True
                except valkey.exceptions.AuthenticationError:
                    return True
                except (valkey.exceptions.ConnectionError, valkey.exceptions.TimeoutError):
                    return False  # Not listening yet, or loading (BusyLoadingError is a ConnectionError).

            await_until(answers, START_TIMEOUT_S, what="an answer to PING")

    def _shut_down(self, mode: str) -> None:
        """Ends the process by SHUTDOWN, which a server that crashed or hangs does not follow."""
        code = self.process.poll()
        if code is not None:
            self._reap(signal.SIGKILL)
            raise ServerFailed(f"the server had ended by itself with code {code}\n{self.log_tail(200)}")
        refusal = self._shutdown_command(mode)
        if refusal and mode == "SAVE":
            raise ServerFailed(f"the server refused to save and stop: {refusal}\n{self.log_tail()}")
        if refusal:
            self.process.terminate()
        try:
            code = self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._reap(signal.SIGKILL)
            raise ServerFailed(
                f"the server did not stop within {STOP_TIMEOUT_S} s\n{self.log_tail(200)}"
            ) from None
        self._reap(signal.SIGKILL)
        if code != 0:
            raise ServerFailed(f"the server ended with code {code}\n{self.log_tail(200)}")

    def _shutdown_command(self, mode: str) -> str:
        """Sends SHUTDOWN and answers why the server refuses it, "" if it does not."""
        force = " FORCE" if mode == "NOSAVE" else ""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=STOP_TIMEOUT_S) as connection:
                connection.sendall(f"SHUTDOWN {mode}{force}\r\n".encode())
                # A server that goes down says nothing, an answer is an error.
                return connection.recv(1000).decode(errors="replace").strip()
        except ConnectionError:
            return ""
        except OSError as error:
            return str(error) or "no answer"

    def _reap(self, by: signal.Signals) -> None:
        for client in self._clients:
            client.close()
        self._clients.clear()
        if self.process is not None:
            self.process.send_signal(by)
            self.process.wait()
            self.process = None
        if self in Server.live:
            Server.live.remove(self)


def free_port() -> int:
    """A port that nothing listens on, nor on its cluster bus port."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
            return port
    raise ServerFailed("no free port was found in 100 tries")


def required_file(variable: str) -> Path:
    """The file that an environment variable names; fails with what to do where it does not."""
    value = os.environ.get(variable)
    if not value:
        raise ServerFailed(f"{variable} is not set: run the tests by `make test`, which builds and sets it")
    path = Path(shutil.which(value) or value).absolute()
    if not path.is_file():
        raise ServerFailed(
            f"{variable} names {path}, which is no file: run the tests by `make test`, which builds it"
        )
    return path
