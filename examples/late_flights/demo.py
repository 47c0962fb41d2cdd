"""Trains the model on a server of its own, starts the app beside it, and asks it what a traveller would ask.

    python demo.py [--every N] [--serve]

`--every`: plays one flight number in N. `--serve`: goes on answering until it is interrupted.
"""

import argparse
import json
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from urllib.request import Request, urlopen

import pandas as pd
import train
import uvicorn
import valkey
from app import create_app
from fastapi import FastAPI
from history import HOUR_S, LATE_MIN, LEAD_S, flights
from own_server import DemoError, own_server

ORIGIN = "JFK"
BOARD_S = 6 * HOUR_S
SHOWN = 8


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--every", type=int, default=train.EVERY, metavar="N")
    options.add_argument("--serve", action="store_true")
    options = options.parse_args()
    # Progress is for reading while it happens, also through a pipe.
    sys.stdout.reconfigure(line_buffering=True)
    # A request to end must pass through the `finally` clauses, for they end the server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with own_server() as port, tempfile.TemporaryDirectory() as folder:
            demonstrate(f"valkey://127.0.0.1:{port}", str(Path(folder, "late_flights.joblib")), options)
    except (DemoError, valkey.ValkeyError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print()
    return 0


def demonstrate(url: str, model: str, options: argparse.Namespace) -> None:
    begin = time.monotonic()
    train.main(url, model, options.every)
    print(f"  {time.monotonic() - begin:.1f} s\n")
    client = valkey.Valkey.from_url(url, protocol=3, decode_responses=True)
    with running(create_app(client, model)) as address:
        leaving = board(flights(options.every))
        asked = train.NOW.tz_convert("America/New_York")
        print(f"POST {address}/rank: {len(leaving)} flights from {ORIGIN}, asked at {asked:%H:%M on %B %d}")
        answers = ask(address, ORIGIN, leaving["flight"].tolist())
        show(answers, leaving.set_index("flight"))
        if options.serve:
            print(f"\n{url} and {address}/docs are there until you press Ctrl-C")
            signal.pause()


def board(flights: pd.DataFrame) -> pd.DataFrame:
    """What leaves the airport in the next hours, as far as it can still be asked for."""
    soon_s = int(train.NOW.timestamp()) + LEAD_S
    return flights[
        (flights["origin"] == ORIGIN) & flights["scheduled_s"].between(soon_s, soon_s + BOARD_S, "left")
    ]


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """Runs the app on a free loopback port; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def ask(address: str, origin: str, flights: list[str]) -> list[dict]:
    question = json.dumps({"origin": origin, "flights": flights}).encode()
    request = Request(f"{address}/rank", question, {"Content-Type": "application/json"})
    with urlopen(request, timeout=30) as response:
        return json.load(response)


def show(answers: list[dict], flights: pd.DataFrame) -> None:
    """The first and the last answers, beside what came of these flights in the end."""
    print(f"  {'flight':8}{'to':>5}{'leaves':>8}{'late':>8}   in the end")
    shown = answers if len(answers) <= 2 * SHOWN else [*answers[:SHOWN], None, *answers[-SHOWN:]]
    for answer in shown:
        if answer is None:
            print("  ...")
            continue
        flight = flights.loc[answer["flight"]]
        leaves = f"{flight['hour']:02}:{flight['minute']:02}"
        print(
            f"  {answer['flight']:8}{flight['dest']:>5}{leaves:>8}{answer['late']:8.1%}   {outcome(flight)}"
        )


def outcome(flight: pd.Series) -> str:
    if pd.isna(flight["arr_delay"]):
        return "did not arrive"
    delay = int(flight["arr_delay"])
    return f"{delay} min late" if delay > LATE_MIN else "on time"


if __name__ == "__main__":
    sys.exit(main())
