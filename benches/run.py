"""Benchmarks of the feature store against native commands on the same server.

    python benches/run.py [--quick] [--only get,tensor] [--servers 9,8] [--native-only]

Prints a table and leaves it in benches/results/latest.md and latest.json. Ends with 1 if a target was missed
and with 2 if something could not be measured. `make bench` sets the environment: VALKEY_SERVER_9,
VALKEY_SERVER_8, JEMALLOC and FS_MODULE.
"""

import argparse
import gc
import os
import signal
import sys
import time

import consuming
import control
import drift
import feast_store
import measure
import memory
import packed
import reading
import report
import servers
import serving
import window_memory
import windows
import writing
from load import CONNECTIONS, PIPELINE, BenchError
from rows import ENTITIES

BENCHES = {
    "get": reading.get,
    "get3": reading.get_some,
    "tensor": reading.tensor,
    "publish": writing.publish,
    "consume": consuming.consume,
    "memory": memory.memory,
    "windows": windows.windows,
    "window_get": windows.window_get,
    "window_memory": window_memory.window_memory,
    "drift": drift.drift,
    "serving": serving.serving,
    "packed": packed.packed,
    "feast": feast_store.feast,
    "control": control.control,
}


def main() -> int:
    options = parse()
    # SIGTERM ends the script like Ctrl-C does: servers are stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    results, failures = [], []
    try:
        module = None if options.native_only else servers.module_path()
        for version in options.servers:
            servers.program(version)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    effort = measure.QUICK if options.quick else measure.FULL
    gc.disable()
    try:
        for version in options.servers:
            for name in options.only:
                try:
                    results += BENCHES[name](measure.Bench(version, module, effort))
                except (BenchError, OSError) as error:
                    failures.append(f"{version} {name}: {error}")
                    print(f"bench: {failures[-1]}", file=sys.stderr, flush=True)
                gc.collect()
    except KeyboardInterrupt:
        failures.append("stopped before the end")
    setting = {
        "run": f"{report.now_utc()}, {time.monotonic() - started:.0f} s{', quick' if options.quick else ''}",
        "servers": ", ".join(dict.fromkeys(result.server for result in results)) + ", all with jemalloc",
        "machine": f"{os.cpu_count()} cores, shared",
        "load": f"{CONNECTIONS} connections, pipelined by {PIPELINE}, {ENTITIES:,} entities",
    }
    if failures:
        setting["not measured"] = "; ".join(failure.splitlines()[0] for failure in failures)
    report.write(results, setting)
    print(report.markdown(results, setting))
    missed = [f"{result.server}: {result.title}" for result in results if result.met is False]
    for line in missed:
        print(f"bench: target missed: {line}", file=sys.stderr)
    return 2 if failures else 1 if missed else 0


def parse() -> argparse.Namespace:
    def listed(known: list[str]):
        def convert(text: str) -> list[str]:
            names = text.split(",")
            if unknown := [name for name in names if name not in known]:
                raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(known)}")
            return names

        return convert

    parser = argparse.ArgumentParser(description="Measures the feature store against native commands.")
    parser.add_argument(
        "--quick", action="store_true", help="a few seconds a row, to see that everything works"
    )
    parser.add_argument("--only", type=listed(list(BENCHES)), default=list(BENCHES), help=", ".join(BENCHES))
    parser.add_argument(
        "--servers", type=listed(list(servers.PROGRAMS)), default=list(servers.PROGRAMS), help="9, 8"
    )
    parser.add_argument("--native-only", action="store_true", help="the native sides without the module")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
