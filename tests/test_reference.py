"""The command reference: docs/COMMANDS.md, FS.HELP and COMMAND DOCS say the same, and what they say is so."""

import os
import re
from pathlib import Path

import pytest
import valkey

from server import await_until

REFERENCE = Path(__file__).parents[1] / "docs" / "COMMANDS.md"
ROW = "fs:v1:profile:u1"

# What to say for an argument: by its name, and where that is not enough by its command or its word before it.
VALUES = {
    "view": "profile",
    "version": "1",
    "entity": "user",
    "longest-age": "7d",
    "entries": "100",
    "text": "words",
    "duration": "10m",
    "dimensions": "1",
    "default": "5",
    "key": ROW,
    "milliseconds": "1700000000000",
    "id": "5-0",
    "value": "5",
    "object": '{"emb":[5]}',
    "features": "emb",
    "cursor": "0",
    "keys-to-look-at": "100",
    "command": "FS.SERVICE",
    "subcommand": "SET",
    "document": '{"entity":"user","schema":{"emb":{"type":"VECTOR","dim":1}}}',
    "feature": "emb",
    "count": "1",
    "bytes": "x",
    "rate": "1",
    "mean": "1",
    "stddev": "1",
    "min": "0",
    "max": "5",
    "share": "0",
    "share-of-absent-values": "0",
    "times": "7",
    "method": "MISSING",
    "threshold": "0.5",
    "TO version": "2",
    "service": "serving",
    "FS.RANK service": "ranking",
    "CONTEXT entity": "user",
    "CANDIDATE entity": "item",
    "PAIR entity": "user_item",
    "view:feature": "profile:emb",
    "context-id": "u1",
    "candidate-id": "i1",
}
# Options that no single feature can have together: left out of the call that has everything.
EXCLUSIVE = {"MIN", "MAX", "VALUES", "INPUT", "AGG"}


@pytest.fixture
def client(server):
    return server.client(protocol=3, decode_responses=True)


@pytest.fixture
def containers(client) -> dict[str, list[str]]:
    """The containers, and the subcommands of each as one writes them: in two words."""
    found = {}
    for name in listed(client):
        if "|" in name:
            found.setdefault(name.split("|")[0], []).append(name.replace("|", " "))
    return found


@pytest.fixture
def commands(client, containers) -> list[str]:
    """All commands that can be called, as one writes them: a subcommand in two words, a container not at all."""
    return sorted(name.replace("|", " ") for name in listed(client) if name not in containers)


def listed(client) -> list[str]:
    return client.execute_command("COMMAND LIST", "FILTERBY", "MODULE", "fs")


def as_listed(command: str) -> str:
    """The server's own name of a command: a subcommand's has a bar in it."""
    return command.replace(" ", "|")


@pytest.fixture
def sections(client) -> dict[str, str]:
    """The reference, a section a command."""
    parts = re.split(r"^## ", client.execute_command("FS.HELP", "REFERENCE"), flags=re.M)
    return {part.split("\n")[0]: part for part in parts[1:]}


def docs_of(client, command: str) -> dict:
    ((_, docs),) = client.execute_command("COMMAND DOCS", as_listed(command)).items()
    return docs


def info_of(client, command: str) -> list:
    (info,) = client.execute_command("COMMAND INFO", as_listed(command))
    return info


def syntax(argument: dict) -> str:
    """An argument as manuals write it."""
    parts = [syntax(part) for part in argument.get("arguments", [])]
    match argument["type"]:
        case "pure-token":
            value = argument["token"]
        case "oneof":
            value = " | ".join(parts)
        case "block":
            value = " ".join(parts)
        case _:
            value = argument["name"]
    flags = argument.get("flags", [])
    token = argument.get("token") if argument["type"] != "pure-token" else None
    if argument["type"] == "oneof" and len(parts) > 1 and not ("optional" in flags and not token):
        value = f"<{value}>"
    full = f"{token} {value}" if token else value
    if "multiple" in flags:
        # An optional word comes again with each value; one that must be there stands once.
        full += f" [{full if token and 'optional' in flags else value} ...]"
    return f"[{full}]" if "optional" in flags else full


def calls(command: str, arguments: list[dict], everything: bool) -> list[list[str]]:
    """Calls that the arguments allow: one for each choice, with or without what may be left out."""
    found: list[list[str]] = [[]]
    for argument in arguments:
        found = [call + more for call in found for more in words(command, argument, everything)]
    return found


def words(command: str, argument: dict, everything: bool) -> list[list[str]]:
    token = [argument["token"]] if "token" in argument else []
    if "optional" in argument.get("flags", []) and (not everything or EXCLUSIVE & set(token)):
        return [[]]
    match argument["type"]:
        case "pure-token":
            return [token]
        case "oneof":
            return [
                token + call for part in argument["arguments"] for call in words(command, part, everything)
            ]
        case "block":
            return [token + call for call in calls(command, argument["arguments"], everything)]
    name = argument["name"]
    if name == "type":
        return [["VECTOR" if everything else "INT"]]
    found = [VALUES[told] for before in [command, *token] if (told := f"{before} {name}") in VALUES]
    return [[*token, found[0] if found else VALUES[name]]]


def furnish(client, schema: str | None) -> None:
    """One view with one row and services that read it, or none of all."""
    for service in client.execute_command("FS.SERVICE LIST"):
        client.execute_command("FS.SERVICE DEL", service)
    for view in client.execute_command("FS.VIEWS"):
        client.execute_command("FS.DROP", view[0])
    await_until(lambda: client.execute_command("FS.INFO")["dropping"] == 0, what="the end of FS.DROP DATA")
    client.flushall()
    if schema:
        feature = schema.split()[0]
        client.execute_command("FS.REGISTER", "profile", "ENTITY", "user", "SCHEMA", *schema.split())
        client.execute_command("FS.PUBLISH", ROW, feature, "1")
        client.execute_command("FS.BASELINE", "profile", feature, "FREEZE")
        features = ("FEATURES", 1, f"profile:{feature}")
        client.execute_command("FS.SERVICE SET", "serving", *features)
        client.execute_command("FS.SERVICE SET", "ranking", "CONTEXT", "user", "CANDIDATE", "item", *features)


def test_the_reference_in_the_documentation_is_that_of_the_module(client):
    text = client.execute_command("FS.HELP", "REFERENCE")
    if os.environ.get("UPDATE_DOCS") == "1":
        REFERENCE.parent.mkdir(exist_ok=True)
        REFERENCE.write_text(text)
    assert REFERENCE.is_file() and REFERENCE.read_text() == text, "UPDATE_DOCS=1 rewrites docs/COMMANDS.md"


def test_every_command_is_in_the_help_and_in_the_reference(client, commands, sections):
    lines = client.execute_command("FS.HELP")
    assert len(lines) == 2 * len(commands)
    told = {
        command: (line, summary.strip())
        for line, summary in zip(lines[::2], lines[1::2], strict=True)
        for command in commands
        if f"{line} ".startswith(f"{command} ")
    }
    assert sorted(told) == commands
    assert [name for name in sections if name != "Settings"] == list(told), "both have one order"
    for command in commands:
        line, summary = told[command]
        section = sections[command]
        assert f"```\n{line}\n```" in section and f"\n\n{summary}\n\n" in section
        assert re.search(r"^\*\*Reply\*\*: \S.+", section, re.M), command
        for name in (command, command.lower(), command.removeprefix("FS.")):
            assert "\n".join(client.execute_command("FS.HELP", name)).split() == f"## {section}".split()
        # In as many arguments as the name has words.
        assert client.execute_command("FS.HELP", *command.split()) == client.execute_command(
            "FS.HELP", command
        )
    for bad in (
        ["nonsense"],
        ["FS."],
        [""],
        ["FS.GET", "more"],
        ["FS.SERVICE", "nonsense"],
        ["FS.SERVICE SET", "more"],
        ["SET"],
    ):
        with pytest.raises(valkey.ResponseError):
            client.execute_command("FS.HELP", *bad)


def test_a_container_is_no_command_but_tells_of_its_own(client, containers, commands, sections):
    assert list(containers) == ["FS.SERVICE"]
    for container, own in containers.items():
        assert sorted(own) == [command for command in commands if command.startswith(f"{container} ")]
        for call, refusal in [
            ([container], "wrong number of arguments"),
            ([container, "nonsense"], "unknown subcommand"),
            ([container, ""], "unknown subcommand"),
            ([container, "nonsense", "and", "more"], "unknown subcommand"),
        ]:
            with pytest.raises(valkey.ResponseError, match=refusal):
                client.execute_command(*call)
        assert container not in sections
        lines = client.execute_command("FS.HELP")
        assert not [line for line in lines if line == container]
        # Asked for by its name, it tells all of its own, in the order of the help.
        ordered = [name for name in sections if name in own]
        for name in (container, container.lower(), container.removeprefix("FS.")):
            told = "\n".join(client.execute_command("FS.HELP", name))
            assert told.split() == " ".join(f"## {sections[command]}" for command in ordered).split()
        pairs = zip(lines[::2], lines[1::2], strict=True)
        assert client.execute_command(f"{container} HELP") == [
            line for pair in pairs if pair[0].startswith(f"{container} ") for line in pair
        ]
        # COMMAND DOCS and COMMAND INFO of the container hold its subcommands.
        ((_, docs),) = client.execute_command("COMMAND DOCS", container).items()
        assert sorted(docs["subcommands"]) == sorted(map(as_listed, own))
        assert {name: docs_of(client, name.replace("|", " ")) for name in docs["subcommands"]} == docs[
            "subcommands"
        ]
        assert sorted(info[0] for info in info_of(client, container)[9]) == sorted(map(as_listed, own))


def test_command_docs_say_what_the_reference_says(client, commands, sections):
    for command in commands:
        docs, section = docs_of(client, command), sections[command]
        assert docs["group"] == "module" and docs["module"] == "fs"
        line = " ".join([command, *map(syntax, docs.get("arguments", []))])
        assert f"{docs['summary']}\n\n```\n{line}\n```" in section
        assert f"Complexity: {docs['complexity'].rstrip('.')}. Since {docs['since']}." in section, command


def test_every_call_that_the_documentation_allows_is_understood(client, commands, server):
    reader = server.client()  # A tensor is no text.
    # What a command makes must not be there yet.
    schemas = {"FS.REGISTER": None, "FS.ALTER": "other INT", "FS.BASELINE": "emb INT"}
    for command in commands:
        documented = docs_of(client, command).get("arguments", [])
        for call in calls(command, documented, False) + calls(command, documented, True):
            furnish(client, schemas.get(command, "emb VECTOR 1"))
            if command == "FS.COPY":
                client.execute_command(
                    "FS.REGISTER", "profile", "VERSION", 2, "ENTITY", "user", "SCHEMA", "emb", "INT"
                )
            try:
                reply = reader.execute_command(command, *call)
            except valkey.ResponseError as refusal:
                # FS.ALTER must be told something to change, and effects are not for clients.
                assert (command, call) == ("FS.ALTER", ["profile"]) or command == "FS.EFFECT", (call, refusal)
            else:
                assert reply is not None or "NOLOG" in call, (command, call)


def test_the_number_of_arguments_is_as_documented(client, commands):
    for command in commands:
        arity = info_of(client, command)[1]
        documented = docs_of(client, command).get("arguments", [])
        own_words = len(command.split())
        least = own_words + min(len(call) for call in calls(command, documented, False))
        most = own_words + max(len(call) for call in calls(command, documented, True))
        if command == "FS.ALTER":
            least += 2  # Something to change: an option and its value.
        is_open = any("multiple" in syntax(argument) or "..." in syntax(argument) for argument in documented)
        assert arity == (least if least == most and not is_open else -least), command


def test_flags_and_categories_are_as_documented(client, commands, sections, server):
    for command in commands:
        flags = set(info_of(client, command)[2]) - {"module"}
        documented = set(re.search(r"Flags: `([^`]*)`", sections[command]).group(1).split())
        assert {flag.replace("-", "") for flag in documented} == flags, command
        categories = set(re.findall(r"`@(\w+)`", sections[command].split("ACL:")[1]))
        assert "fs" in categories and len(categories & {"fast", "slow"}) == 1
        assert ("write" in flags) == ("write" in categories) and ("readonly" in flags) == (
            "read" in categories
        )
        if server.version >= (9,):
            # ACL CAT of 8.0 knows built-in commands alone.
            own = {
                name
                for name in client.execute_command("ACL", "CAT")
                if as_listed(command) in acl_category(client, name)
            }
            assert own == categories, command


def acl_category(client, name: str) -> set[str]:
    return {command.upper() for command in client.execute_command("ACL", "CAT", name)}


def test_settings_have_the_documented_defaults_and_ranges(fresh_server):
    client = fresh_server().client(protocol=3, decode_responses=True)
    rows = re.findall(
        r"^\| `(fs\.[a-z-]+)` \| (\d+) \| (\d+) to (\d+) \| (.+) \|$",
        client.execute_command("FS.HELP", "REFERENCE"),
        re.M,
    )
    assert {name: default for name, default, *_ in rows} == client.config_get("fs.*")
    assert len(rows) >= 4
    for name, default, least, most, what in rows:
        assert what.endswith(".")
        for value in (least, most):
            client.config_set(name, value)
            assert client.config_get(name) == {name: value}
        for value in (int(least) - 1, int(most) + 1, "x", ""):
            with pytest.raises(valkey.ResponseError):
                client.config_set(name, value)
        client.config_set(name, default)
