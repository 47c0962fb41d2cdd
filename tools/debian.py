"""Valkey 8.0 from Debian's packages, downloaded and unpacked without being installed.

apt-get is given a configuration and state folder of its own inside the tool folder, so it needs no root and leaves the
machine's lists alone. The mirror is the one the machine already uses: it is read off the machine's own sources.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from toolbox import TOOLS, SetupError, link, require_version, run, say

RELEASE = "bookworm"
VALKEY = "8.0.1"
PACKAGES = {
    "valkey-server": "8.0.1+dfsg1-1~bpo12+1",
    "valkey-tools": "8.0.1+dfsg1-1~bpo12+1",
    "libjemalloc2": "5.3.0-1",
    "liblzf1": "3.6-3",
}
# Libraries that nearly every machine has already. Fetched only where one is missing, and then in the release's newest
# version: security updates replace the older ones on the mirrors, so a pin would break within months.
LIBRARY_PACKAGES = {
    "libatomic.so.1": ["libatomic1"],
    "libssl.so.3": ["libssl3"],
    "libcrypto.so.3": ["libssl3"],
    "libsystemd.so.0": [
        "libsystemd0",
        "libcap2",
        "libgcrypt20",
        "libgpg-error0",
        "liblz4-1",
        "liblzma5",
        "libzstd1",
    ],
}
PROGRAMS = ["valkey-server", "valkey-cli", "valkey-benchmark"]
INSTEAD = "or name a server of your own with VALKEY_SERVER"

# A link would not do: the program's libraries lie beside it, where the loader does not look.
WRAPPER = """\
#!/bin/sh
here=$(cd "$(dirname "$0")/.." && pwd)
LD_LIBRARY_PATH="$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" exec "$here/root/usr/bin/$(basename "$0")" "$@"
"""


def pins() -> list[str]:
    return [f"{name}={version}" for name, version in PACKAGES.items()]


def install() -> None:
    """Leaves `server-8.0/bin` with the programs and `server-8.0/lib` with their libraries, jemalloc among them."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise SetupError(
                f"Valkey {VALKEY} comes as Debian packages and this machine has no {program}: use Debian {INSTEAD}."
            )
    apt = PrivateApt(TOOLS / "apt")
    say("server-8.0: reading Debian's package lists (about 10 MB)")
    apt.update()
    say(f"server-8.0: downloading {', '.join(pins())}")
    debs = apt.download(pins())

    staging = TOOLS / "server-8.0.new"
    shutil.rmtree(staging, ignore_errors=True)
    unpack(debs, staging)
    while missing := missing_libraries(staging):
        unknown = [name for name in missing if name not in LIBRARY_PACKAGES]
        if unknown:
            raise SetupError(
                f"Valkey {VALKEY} needs {', '.join(unknown)}, which this machine lacks: use Debian 12 {INSTEAD}."
            )
        packages = sorted({package for name in missing for package in LIBRARY_PACKAGES[name]})
        say(f"server-8.0: this machine lacks {', '.join(missing)}, downloading {', '.join(packages)}")
        unpack(apt.download(packages), staging)
        still = [name for name in missing_libraries(staging) if name in missing]
        if still:
            raise SetupError(
                f"{', '.join(still)} could not be had from Debian's packages: install it on this machine."
            )

    bin_folder = staging / "bin"
    bin_folder.mkdir()
    for program in PROGRAMS:
        wrapper = bin_folder / program
        wrapper.write_text(WRAPPER)
        wrapper.chmod(0o755)
    for program in PROGRAMS:
        require_version(bin_folder / program, VALKEY)
    installed = TOOLS / "server-8.0"
    shutil.rmtree(installed, ignore_errors=True)
    staging.rename(installed)


def unpack(debs: list[Path], folder: Path) -> None:
    root = folder / "root"
    root.mkdir(parents=True, exist_ok=True)
    for deb in debs:
        run(["dpkg-deb", "-x", deb, root], f"{deb.name} could not be unpacked: remove {TOOLS} and try again.")
    for library in [*root.glob("usr/lib/*/*.so*"), *root.glob("lib/*/*.so*")]:
        link(folder / "lib" / library.name, library)


def missing_libraries(folder: Path) -> list[str]:
    """Names of the libraries that the loader does not find for any of the programs."""
    missing = set()
    for program in PROGRAMS:
        listing = run(
            ["ldd", folder / "root" / "usr" / "bin" / program],
            f"{program} of Debian's package does not fit this machine: use Debian 12 {INSTEAD}.",
            env={"LD_LIBRARY_PATH": str(folder / "lib")},
        )
        missing.update(re.findall(r"^\s*(\S+) => not found", listing, re.MULTILINE))
    return sorted(missing)


class PrivateApt:
    """apt-get with lists, archives and sources of its own, and the machine's settings for proxies and certificates."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("lists/partial", "archives/partial", "debs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        (folder / "sources.list").write_text(sources_list(Path("/etc/apt")))
        self.configuration = folder / "apt.conf"
        self.configuration.write_text(
            f"""\
Dir::State "{folder}";
Dir::State::lists "{folder}/lists";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}";
Dir::Cache::archives "{folder}/archives";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
// Root would otherwise hand downloads to the user _apt, who may not write here.
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
// The machine's own hooks and extra indexes are for its own lists.
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
#clear Acquire::IndexTargets::deb::DEP-11;
#clear Acquire::IndexTargets::deb::DEP-11-icons;
#clear Acquire::IndexTargets::deb::DEP-11-icons-small;
#clear Acquire::IndexTargets::deb::DEP-11-icons-large;
#clear Acquire::IndexTargets::deb::DEP-11-icons-hidpi;
#clear Acquire::IndexTargets::deb::DEP-11-icons-large-hidpi;
"""
        )

    def update(self) -> None:
        run(
            ["apt-get", "--config-file", self.configuration, "--error-on=any", "update"],
            f"Debian's package lists could not be read: check the network and the machine's apt sources, {INSTEAD}.",
        )

    def download(self, packages: list[str]) -> list[Path]:
        debs = self.folder / "debs"
        shutil.rmtree(debs)
        debs.mkdir()
        run(
            ["apt-get", "--config-file", self.configuration, "download", *packages],
            f"{' '.join(packages)} could not be downloaded from {RELEASE} and {RELEASE}-backports: "
            f"check the network and that the mirror has these versions, {INSTEAD}.",
            cwd=debs,
        )
        return sorted(debs.glob("*.deb"))


def sources_list(etc_apt: Path) -> str:
    """Lines for the release and its backports, on the mirror that the machine's own sources name."""
    suites: dict[str, tuple[str, str]] = {}
    for uri, suite, signed_by in machine_sources(etc_apt):
        suites.setdefault(suite, (uri, signed_by))
    # The machine may run another release of Debian: its mirror carries this one too.
    release = suites.get(RELEASE) or next(iter(suites.values()), None)
    if release is None:
        raise SetupError(
            f"{etc_apt} names no Debian mirror to get Valkey {VALKEY} from: add one there, {INSTEAD}."
        )
    lines = ""
    for suite in (RELEASE, f"{RELEASE}-backports"):
        uri, signed_by = suites.get(suite, release)
        option = f"[signed-by={signed_by}] " if signed_by else ""
        lines += f"deb {option}{uri} {suite} main\n"
    return lines


def machine_sources(etc_apt: Path) -> list[tuple[str, str, str]]:
    """(uri, suite, key file or "") of every source of Debian's own, in the machine's order.

    Sources signed by anybody else's key are third parties' and left out, and so is the security archive, which lies
    elsewhere and holds no backports.
    """
    found = []
    for path in [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*"))]:
        if not path.is_file():
            continue
        text = re.sub(r"(?m)^\s*#.*\n?", "", path.read_text(errors="replace"))
        if path.suffix == ".sources":
            found += [source for stanza in re.split(r"\n\s*\n", text) for source in deb822_sources(stanza)]
        elif path.suffix == ".list":
            found += [source for line in text.splitlines() for source in one_line_sources(line)]
    debians = [s for s in found if "debian-archive" in s[2]] or [s for s in found if not s[2]]
    return [s for s in debians if "security" not in s[1]]


def deb822_sources(stanza: str) -> list[tuple[str, str, str]]:
    fields = {
        name.lower(): value.split()
        for name, value in re.findall(r"(?m)^(\S+):((?:.*)(?:\n[ \t].*)*)", stanza)
    }
    if "deb" not in fields.get("types", []) or "main" not in fields.get("components", []):
        return []
    if fields.get("enabled", ["yes"])[0].lower() in ("no", "false", "0"):
        return []
    signed_by = " ".join(fields.get("signed-by", []))
    return [(uri, suite, signed_by) for uri in fields.get("uris", []) for suite in fields.get("suites", [])]


def one_line_sources(line: str) -> list[tuple[str, str, str]]:
    parts = re.match(r"deb\s+(?:\[(.*?)\]\s+)?(\S+)\s+(\S+)\s+(.*)", line.strip())
    if parts is None or "main" not in parts[4].split():
        return []
    signed_by = re.search(r"signed-by=(\S+)", parts[1] or "")
    return [(parts[2], parts[3], signed_by[1] if signed_by else "")]
