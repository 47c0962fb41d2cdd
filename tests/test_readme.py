"""README.md is run from top to bottom: its valkey-cli sessions and Python snippets must answer what it says.

docs/COMMANDS.md must be what the server tells; `UPDATE_DOCS=1 make test ARGS=tests/test_readme.py` rewrites it.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import valkey

from server import Server, await_until

CHECKOUT = Path(__file__).resolve().parents[1]
PROMPT = "127.0.0.1:6379> "
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# What differs from run to run, and what stands for it.
VARYING = {
    r'"\d{13}-\d+"': '"ID"',
    r"\b\d{10}\.\d+\b|\b\d{13}\b": "TIME",
    r'("(?:age|time_left|expires_in|lag)_ms" => \(integer\)) \d+': r"\1 MS",
    r'("PRESENT" \(integer\)) \d+': r"\1 AGE",
}
# The numbers that valkey-cli prints before elements of arrays and maps.
NUMBERING = re.compile(r"(?<!\S)\d+[)#] +")


def test_sessions_and_snippets_answer_what_the_readme_says(fresh_server):
    server = fresh_server()
    # A connection, not a client: clients turn some replies into other values.
    connection = valkey.Connection(host="127.0.0.1", port=server.port, protocol=3)
    printed, count = "", 0
    for language, text in BLOCK.findall((CHECKOUT / "README.md").read_text()):
        if language == "console":
            for session in text.split(PROMPT)[1:]:
                command, _, expected = session.partition("\n")
                check(command, expected, ask(connection, command))
                count += 1
                if command.startswith("XADD"):
                    await_consumed(server)
        elif language == "python":
            printed = run_python(server, text)
            count += 1
        elif language == "text":
            check("what the snippet prints", text, printed)
    connection.disconnect()
    assert count > 20, "the README's blocks were not found"


def test_the_command_reference_is_what_the_server_tells(server):
    path = CHECKOUT / "docs" / "COMMANDS.md"
    with server.client(decode_responses=True) as client:
        reference = client.execute_command("FS.HELP", "REFERENCE").rstrip("\n") + "\n"
    if os.environ.get("UPDATE_DOCS"):
        path.write_text(reference)
    assert path.read_text() == reference, "docs/COMMANDS.md is out of date: UPDATE_DOCS=1 rewrites it"


def check(what: str, expected: str, got: str) -> None:
    """Compares without layout and numbering; a line `...` of the README stands for anything."""
    parts = re.split(r"^\.\.\.$", expected, flags=re.MULTILINE)
    pattern = ".*".join(re.escape(plain(part)) for part in parts)
    assert re.fullmatch(pattern, plain(got), re.DOTALL), (
        f"{what}\nREADME: {plain(expected)}\nserver: {plain(got)}"
    )


def plain(text: str) -> str:
    text = " ".join(NUMBERING.sub("", text).split())
    for pattern, name in VARYING.items():
        text = re.sub(pattern, name, text)
    return text


def ask(connection: valkey.Connection, command: str) -> str:
    """The answer as valkey-cli prints it, but for layout and numbering."""
    connection.send_command(*shlex.split(command))
    try:
        reply = connection.read_response()
    except valkey.ResponseError as error:
        return f"(error) {error}"
    # A status and a text that is meant for people are printed as they are.
    is_text = reply == b"OK" or command.startswith("INFO")
    return reply.decode() if is_text else shown(reply)


def shown(reply: object) -> str:
    match reply:
        case None:
            return "(nil)"
        case bool():
            return f"({str(reply).lower()})"
        case int():
            return f"(integer) {reply}"
        case float():
            return f"(double) {repr(reply).removesuffix('.0')}"
        case bytes():
            return '"' + "".join(map(shown_byte, reply)) + '"'
        case dict():
            return "\n".join(f"{shown(name)} => {shown(value)}" for name, value in reply.items())
    return "\n".join(map(shown, reply))


def shown_byte(byte: int) -> str:
    escapes = {7: r"\a", 8: r"\b", 9: r"\t", 10: r"\n", 13: r"\r", 34: r"\"", 92: r"\\"}
    return escapes.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}")


def await_consumed(server: Server) -> None:
    with server.client(protocol=3, decode_responses=True) as client:
        views = [name for name, *_ in client.execute_command("FS.VIEWS")]
        for view in views:
            await_until(lambda v=view: client.execute_command("FS.INFO", v)["lag_entries"] == 0, what=view)


def run_python(server: Server, snippet: str) -> str:
    """A process of its own, as a reader would run it."""
    program = snippet.replace("6379", str(server.port))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
