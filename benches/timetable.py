"""A load by the clock: requests are due at fixed times, whether or not the server has answered those before.

So a stall of the server is felt by every request that was due during it, and not by one alone.
"""

import ctypes
import itertools
import select
import socket
import time
from collections.abc import Sequence

import libvalkey
from load import ANSWER_SECONDS_MAX, BUFFER_BYTES, BenchError, connect, first_error

PR_SET_TIMERSLACK = 29
TIMER_SLACK_NS, USUAL_SLACK = 1000, 0


class Caller:
    """A connection with a request due every `period_s` seconds, and one at most under way.

    `waits_ns`: from when a request was due until its answer had come, in order, until they are taken.
    """

    def __init__(self, port: int, requests: Sequence[bytes], period_s: float, offset_s: float):
        self.socket = connect(port)
        self.reader = libvalkey.Reader()
        self.requests = itertools.cycle(requests)
        self.period_ns, self.offset_ns = int(period_s * 1e9), int(offset_s * 1e9)
        self.due_ns, self.end_ns = 0, 0
        self.waiting = False
        self.waits_ns: list[int] = []

    def begin(self, start_ns: int, seconds: float) -> None:
        self.due_ns = start_ns + self.offset_ns
        self.end_ns = start_ns + int(seconds * 1e9)

    def take_ms(self) -> list[float]:
        """The waits since they were last taken."""
        taken, self.waits_ns = self.waits_ns, []
        return [wait_ns / 1e6 for wait_ns in taken]

    @property
    def done(self) -> bool:
        return not self.waiting and self.due_ns >= self.end_ns

    def send(self) -> None:
        self.socket.sendall(next(self.requests))
        self.waiting = True

    def close(self) -> None:
        self.socket.close()

    def receive(self) -> None:
        """Takes what has come; the wait ends with the whole answer."""
        received = self.socket.recv(BUFFER_BYTES)
        if not received:
            raise BenchError("the server closed the connection")
        self.reader.feed(received)
        reply = self.reader.gets()
        if reply is False:
            return
        if error := first_error(reply):
            raise BenchError(f"a request by the clock was answered: {error}")
        self.waits_ns.append(time.perf_counter_ns() - self.due_ns)
        self.due_ns += self.period_ns
        self.waiting = False


def run_timetable(callers: Sequence[Caller], seconds: float) -> None:
    """Sends the requests of so many seconds when they are due. Returns when all are answered."""
    by_socket = {caller.socket: caller for caller in callers}
    # The kernel may wake a sleeper late by this much.
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, TIMER_SLACK_NS)
    try:
        start_ns = time.perf_counter_ns()
        for caller in callers:
            caller.begin(start_ns, seconds)
        while not all(caller.done for caller in callers):
            for answered in send_and_wait(by_socket):
                by_socket[answered].receive()
    finally:
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, USUAL_SLACK)


def send_and_wait(callers: dict[socket.socket, Caller]) -> list[socket.socket]:
    """Sends what is due; returns with the next answers, or without any when the next request is due."""
    next_ns = None
    for caller in callers.values():
        if caller.waiting or caller.done:
            continue
        if caller.due_ns <= time.perf_counter_ns():
            caller.send()
        elif next_ns is None or caller.due_ns < next_ns:
            next_ns = caller.due_ns
    pause_s = ANSWER_SECONDS_MAX
    if next_ns is not None:
        pause_s = max(0.0, (next_ns - time.perf_counter_ns()) / 1e9)
    # Not epoll, which counts in milliseconds.
    answered = select.select(list(callers), [], [], pause_s)[0]
    if not answered and next_ns is None:
        raise BenchError(f"no answer in {ANSWER_SECONDS_MAX} seconds")
    return answered
