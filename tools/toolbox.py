"""The tool folder: where things are, how commands are run, and what is already installed.

Nothing here needs root and nothing is written outside the tool folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
TOOLS = CHECKOUT / ".tools"
VENV = TOOLS / "venv"
VENV_PYTHON = VENV / "bin" / "python"


class SetupError(Exception):
    """One sentence for the person at the terminal: what failed and what to do about it."""


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def run(command: list, failure: str, env: dict | None = None, cwd: Path | None = None) -> str:
    """Runs a command and returns its output.

    `failure`: the sentence to end with if it fails; the last lines of the output are printed before it.
    """
    command = [str(word) for word in command]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **(env or {})},
            cwd=cwd,
        )
    except FileNotFoundError:
        raise SetupError(f"{command[0]} is not on this machine. {failure}") from None
    if done.returncode != 0:
        for line in done.stdout.strip().splitlines()[-15:]:
            print(f"  | {line}")
        raise SetupError(failure)
    return done.stdout


def link(path: Path, target: Path) -> None:
    """Makes `path` a relative link to `target`, replacing what was there in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(os.path.relpath(target, path.parent))
    fresh.replace(path)


def require_version(binary: Path, expected: str) -> None:
    """Starts `binary --version` and checks that the pinned version answers."""
    answer = run(
        [binary, "--version"], f"{binary} does not start: remove {TOOLS} and run this again."
    ).strip()
    if expected not in answer:
        raise SetupError(f"{binary} says '{answer}', not '{expected}': check the pins in tools/.")


@contextmanager
def locked():
    """One set-up at a time in a tool folder."""
    TOOLS.mkdir(exist_ok=True)
    with open(TOOLS / "setup.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up of this tool folder to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def step(name: str, *pins: str):
    """Yields True if the step has to run, because it never finished or because its pins changed since.

    The stamp is removed first and written last, so that a step that was interrupted runs again. The folder's own path
    is part of it: virtual environments do not survive a move.
    """
    stamp = TOOLS / "stamps" / name
    fingerprint = hashlib.sha256("\0".join([str(TOOLS), *pins]).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == fingerprint:
        yield False
        return
    stamp.unlink(missing_ok=True)
    yield True
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(fingerprint)
