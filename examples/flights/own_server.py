"""A Valkey server of one's own: on a free loopback port, in a temporary folder, gone with the process."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

CHECKOUT = Path(__file__).resolve().parents[2]
PR_SET_PDEATHSIG = 1


class DemoError(Exception):
    """One sentence for the person at the terminal."""


@contextmanager
def own_server() -> Iterator[int]:
    """Starts a server with the module loaded and yields its port.

    The environment may name the server (VALKEY_SERVER) and the module (FS_MODULE).
    """
    server = shutil.which(os.environ.get("VALKEY_SERVER", "valkey-server"))
    if server is None:
        raise DemoError("no Valkey server found: name its binary in VALKEY_SERVER")
    module = Path(
        os.environ.get("FS_MODULE", CHECKOUT / "target/release/libvalkey_feature_store.so")
    ).resolve()
    if not module.is_file():
        raise DemoError(
            f"no module at {module}: build it with `cargo build --release` or name it in FS_MODULE"
        )
    with tempfile.TemporaryDirectory(prefix="fs-demo-", ignore_cleanup_errors=True) as folder:
        port = free_port()
        options = {"bind": "127.0.0.1", "port": port, "dir": folder, "save": "", "loadmodule": module}
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        process = subprocess.Popen(
            [server, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            preexec_fn=die_with_parent if sys.platform == "linux" else None,
        )
        try:
            log = await_ready(process)
            # The pipe must be emptied, or a talkative server would stand still once it is full.
            Thread(target=log.extend, args=(process.stdout,), daemon=True).start()
            try:
                yield port
            except BaseException:
                if process.poll() is not None:
                    print("the server has ended; its last words:", *log, sep="\n  ", file=sys.stderr)
                raise
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def await_ready(process: subprocess.Popen) -> deque:
    """Reads the server's log up to the line that says it takes connections; returns the lines so far."""
    log = deque(maxlen=40)
    for line in process.stdout:
        log.append(line.rstrip())
        if "Ready to accept connections" in line:
            return log
    raise DemoError("the server did not start:\n  " + "\n  ".join(log))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def die_with_parent() -> None:
    """Has the kernel end the server even when this process is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
