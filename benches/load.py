"""Load: commands as bytes, and a client that replays them and only counts what comes back.

Pipelines are built before anything is measured and replayed over a few connections, so that the server, not
Python, is what limits the rate. Replies are parsed and checked once (`Workload.calibrate`); after that their
lines or bytes are counted, and a reply of another shape ends the run with an error instead of being measured.
"""

import itertools
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import libvalkey

PIPELINE = 16
CONNECTIONS = 16
ANSWER_SECONDS_MAX = 30
CALIBRATED_PIPELINES = 64
BUFFER_BYTES = 1 << 18


class BenchError(Exception):
    """One sentence for the person at the terminal: what was found and where."""


def command(*words: bytes | str | int) -> bytes:
    """A command as the protocol writes it."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        text = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(text), text))
    return b"".join(parts)


def pipelines(operations: Iterable[bytes]) -> list[bytes]:
    """Groups operations by PIPELINE; a remainder that does not fill one is left out."""
    operations = list(operations)
    full = len(operations) // PIPELINE * PIPELINE
    return [b"".join(operations[at : at + PIPELINE]) for at in range(0, full, PIPELINE)]


class Connection:
    """One connection that parses its replies: for definitions, figures and checks."""

    def __init__(self, port: int, protocol: int = 2):
        self.socket = connect(port)
        self.reader = libvalkey.Reader()
        if protocol != 2:
            self.call("HELLO", protocol)

    def call(self, *words: bytes | str | int):
        """The reply of one command; an error reply raises BenchError."""
        reply = self.exchange(command(*words), 1)[0][0]
        if error := first_error(reply):
            raise BenchError(f"{' '.join(map(str, words[:3]))} answered: {error}")
        return reply

    def exchange(self, request: bytes, count: int) -> tuple[list, bytes]:
        """Sends commands and returns their `count` replies, parsed and as received."""
        self.socket.sendall(request)
        replies, raw = [], bytearray()
        while len(replies) < count:
            reply = self.reader.gets()
            if reply is not False:
                replies.append(reply)
                continue
            received = self.socket.recv(BUFFER_BYTES)
            if not received:
                raise BenchError("the server closed the connection")
            raw += received
            self.reader.feed(received)
        return replies, bytes(raw)

    def info(self, section: str) -> dict[str, str]:
        lines = self.call("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def close(self) -> None:
        self.socket.close()


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS_MAX)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def first_error(reply) -> libvalkey.ReplyError | None:
    """The first error in a reply, however deep it sits."""
    if isinstance(reply, libvalkey.ReplyError):
        return reply
    if isinstance(reply, dict):
        reply = itertools.chain(reply.keys(), reply.values())
    elif not isinstance(reply, list):
        return None
    return next((error for part in reply if (error := first_error(part))), None)


@dataclass
class Workload:
    """What one side does.

    `pipelines`: PIPELINE operations each. `calls`: how often the server must count which command per
    operation. `replies`: replies per operation. `check`: judges the parsed replies of the pipeline with the
    given index, and raises if they are not the expected values.
    """

    name: str
    pipelines: list[bytes]
    calls: dict[str, int]
    replies: int = 1
    protocol: int = 2
    check: Callable[[int, list], None] = lambda index, replies: None
    unit: bytes | None = field(default=None, init=False)
    expected: int = field(default=0, init=False)

    def calibrate(self, port: int) -> None:
        """Runs some pipelines, checks their replies, and learns what one pipeline's replies count."""
        every = max(1, len(self.pipelines) // CALIBRATED_PIPELINES)
        sizes, lines = self.run_checked(port, range(0, len(self.pipelines), every))
        if len(sizes) == 1:
            self.unit, self.expected = None, sizes.pop()
        else:
            self.count_lines(lines)

    def run_checked(self, port: int, indexes: Iterable[int]) -> tuple[set[int], set[int]]:
        """Runs the pipelines with the given indexes. Returns what bytes and lines a pipeline's replies had."""
        connection = Connection(port, self.protocol)
        sizes, lines = set(), set()
        for index in indexes:
            replies, raw = connection.exchange(self.pipelines[index], PIPELINE * self.replies)
            if error := first_error(replies):
                raise BenchError(f"{self.name} answered: {error}")
            self.check(index, replies)
            sizes.add(len(raw))
            lines.add(raw.count(b"\n"))
        connection.close()
        return sizes, lines

    def count_lines(self, lines: set[int]) -> None:
        """The replies of a pipeline are complete when so many lines have come."""
        if len(lines) != 1:
            raise BenchError(f"{self.name}: replies have {sorted(lines)} lines, so they are not of one shape")
        self.unit, self.expected = b"\n", lines.pop()


class Client:
    """Replays pipelines over some connections, each with one pipeline under way."""

    def __init__(self, port: int, protocol: int = 2, connections: int = CONNECTIONS):
        self.sockets = {}
        self.poll = select.epoll()
        self.buffer = bytearray(BUFFER_BYTES)
        self.position = 0
        for _ in range(connections):
            connection = connect(port)
            if protocol != 2:
                connection.sendall(command("HELLO", protocol))
                read_hello(connection)
            self.sockets[connection.fileno()] = connection
            self.poll.register(connection.fileno(), select.EPOLLIN)

    def run(self, workload: Workload, operations: int) -> None:
        """Does so many operations, going on in the workload where the last run ended."""
        count = operations // PIPELINE
        start = self.position % len(workload.pipelines)
        self.position += count
        self.replay(workload, itertools.islice(itertools.cycle(workload.pipelines), start, start + count))

    def replay(
        self, workload: Workload, requests: Iterator[bytes], latencies_ns: list[int] | None = None
    ) -> None:
        """Sends `requests` until they end and returns when the last reply has come."""
        unit, expected, buffer = workload.unit, workload.expected, self.buffer
        clock = time.perf_counter_ns
        missing, sent_ns = {}, {}
        for fd, request in zip(self.sockets, requests, strict=False):
            missing[fd], sent_ns[fd] = expected, clock()
            self.sockets[fd].sendall(request)
        while missing:
            events = self.poll.poll(ANSWER_SECONDS_MAX)
            if not events:
                raise BenchError(
                    f"{workload.name}: no answer, {sum(missing.values())} of the expected replies miss"
                )
            for fd, _ in events:
                size = self.sockets[fd].recv_into(buffer)
                if size == 0 or fd not in missing:
                    raise BenchError(f"{workload.name}: the connection was closed or more came than expected")
                if missing[fd] == expected and buffer[0] == 0x2D:
                    raise BenchError(
                        f"{workload.name} answered: {bytes(buffer[:size]).splitlines()[0].decode()}"
                    )
                missing[fd] -= size if unit is None else buffer.count(unit, 0, size)
                if missing[fd] > 0:
                    continue
                if missing[fd] < 0:
                    raise BenchError(f"{workload.name}: a reply is larger than those that were checked")
                if latencies_ns is not None:
                    latencies_ns.append(clock() - sent_ns[fd])
                request = next(requests, None)
                if request is None:
                    del missing[fd]
                    continue
                missing[fd], sent_ns[fd] = expected, clock()
                self.sockets[fd].sendall(request)

    def close(self) -> None:
        for connection in self.sockets.values():
            connection.close()
        self.poll.close()


def read_hello(connection: socket.socket) -> None:
    reader = libvalkey.Reader()
    while (reply := reader.gets()) is False:
        reader.feed(connection.recv(BUFFER_BYTES))
    if error := first_error(reply):
        raise BenchError(f"HELLO answered: {error}")
