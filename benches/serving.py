"""Serving: FS.RANK of one user and 500 items against a pipeline of HMGET that reads the same 501 rows.

Rows lie in hashes and in packed rows with the same values, and are ranked with the column cache and without; it is
filled before it is measured. A connection has one call or pipeline under way.
"""

import random
import statistics

import bystanders
import numpy
import rows
from load import PIPELINE, BenchError, Client
from measure import Bench, Runner, nothing
from ranking import CANDIDATES, ColumnCache, Draw, Ranking, cpu_us, draws, joined, tensor_of
from report import Result, Series
from rows import RANKED_ITEMS, RANKING_USERS
from servers import Server
from tables import Table, publishing
from turns import libvalkey_client, milliseconds, take_turns
from writing import OPERATIONS_BUILT

TARGET_RANK, TARGET_PYTHON, TARGET_GROWTH, TARGET_UPKEEP = 0.1, 0.08, 1.3, 1.15
# Of the effort's reads: calls of FS.RANK on the server, and calls of each side from Python, in a round.
CALLS_SHARE, PYTHON_SHARE = 80, 1600
# How many times as many items as windowed entities the large store has: a million.
LARGE = 10
DRAWS = 400
# Few, because the cache is filled anew for each.
SLICES, WRITES_SHARE = 2, 2
CHECKED_DRAWS = 20
SEED = 21


def serving(bench: Bench) -> list[Result]:
    """What FS.RANK takes of the server and of a Python client, what others feel of it, and what its cache costs."""
    with Server(bench.version, bench.module) as server:
        users = Table.random(RANKING_USERS, rows.ENTITIES, SEED)
        items = Table.random(RANKED_ITEMS, rows.ENTITIES, SEED + 1)
        hashes, packed = Ranking(users, items), Ranking(users.as_packed(), items.as_packed())
        load(bench, server, hashes)
        if bench.module:
            load(bench, server, packed)
        cache = ColumnCache(server, 2 * (len(users) + len(items))) if bench.module else None
        drawn = draws(len(users), len(items), DRAWS, SEED)
        results = rank(bench, server, {"hashes": hashes, "packed rows": packed}, drawn, cache)
        results.append(from_python(bench, server, hashes, drawn, cache))
        if not cache:
            return results
        results.append(bystanders.bystanders(bench, server, hashes, drawn, cache))
        results += upkeep(bench, server, hashes, drawn, cache)
    return [*results, growth(bench)]


def load(bench: Bench, server: Server, loaded: Ranking) -> None:
    loaded.users.load(bench, server)
    loaded.items.load(bench, server)
    if bench.module:
        server.call(*loaded.definition())


def rank(
    bench: Bench,
    server: Server,
    rankings: dict[str, Ranking],
    drawn: list[Draw],
    cache: ColumnCache | None,
) -> list[Result]:
    """Without the cache, then with it, round after round, beside the pipeline."""
    what = f"FS.RANK of 1 user and {CANDIDATES} of {rows.ENTITIES:,} items, 6 numbers each, to a tensor"
    bench.say(f"{what} / pipeline of {CANDIDATES + 1} HMGET")
    pipeline = next(iter(rankings.values())).hmget(drawn)
    calls = {where: ranked.rank(drawn) for where, ranked in rankings.items()} if bench.module else {}
    native = Series([])
    own = {(where, cached): Series([]) for where in rankings for cached in (True, False)}
    count = bench.effort.reads // CALLS_SHARE
    pipeline.calibrate(server.port)
    client = Client(server.port)
    for number in range(bench.effort.rounds + 1):
        figures = {None: cpu_us(server, client, pipeline, count)}
        for cached in (False, True) if cache else ():
            cache.switch(cached)
            for where, workload in calls.items():
                with cache.require(cached):
                    if number == 0:
                        # Answers are right in either way, and of one size.
                        workload.calibrate(server.port)
                    figures[where, cached] = cpu_us(server, client, workload, count)
        if number > 0:
            native.values.append(figures.pop(None))
            for side, figure in figures.items():
                own[side].values.append(figure)
    client.close()
    results = []
    for (where, cached), module in own.items():
        how = "column cache" if cached else "no cache"
        title = f"{what}, over {where}, {how} / pipeline of {CANDIDATES + 1} HMGET"
        series = (native, module, count, TARGET_RANK if cached else None)
        results.append(Result("serving", title, server.version, "us CPU/call", *series, digits=1))
    return results


def from_python(
    bench: Bench, server: Server, ranked: Ranking, drawn: list[Draw], cache: ColumnCache | None
) -> Result:
    """Both sides by one client of valkey-py, each until it holds the tensor."""
    title = (
        f"FS.RANK of 1 user and {CANDIDATES} items over hashes, column cache, by valkey-py to a numpy array"
        f" / pipeline of {CANDIDATES + 1} HMGET"
    )
    bench.say(title)
    if cache:
        cache.switch(on=True)
    client = libvalkey_client(server.port)
    names = list(ranked.items.view.features)
    # What the application knows is ids and keys as text.
    asked = [(ranked.keys(draw), ranked.rank_words(draw)) for draw in drawn]

    def by_hand(keys: list[str]) -> numpy.ndarray:
        pipeline = client.pipeline(transaction=False)
        for key in keys:
            pipeline.execute_command("HMGET", key, *names)
        found = numpy.array(pipeline.execute(), "<f4")
        return joined(found[:1], found[1:])

    def by_module(words: list[str]) -> numpy.ndarray:
        return tensor_of(client.execute_command(*words))

    for draw, (keys, words) in zip(drawn[:CHECKED_DRAWS], asked, strict=False):
        ranked.require("the pipeline of HMGET", draw, by_hand(keys))
        if bench.module:
            ranked.require("FS.RANK", draw, by_module(words))
    sides = [
        lambda at: milliseconds(by_hand, asked[at % len(asked)][0]),
        (lambda at: milliseconds(by_module, asked[at % len(asked)][1])) if bench.module else None,
    ]
    count = bench.effort.reads // PYTHON_SHARE
    took_ms = take_turns(sides, bench.effort.rounds, count)
    client.close()
    return Result("serving", title, server.version, "ms", *took_ms, count, TARGET_PYTHON, digits=3)


def upkeep(
    bench: Bench, server: Server, ranked: Ranking, drawn: list[Draw], cache: ColumnCache
) -> list[Result]:
    """FS.PUBLISH of random items while all are cached, and with the cache off, in slices that take turns."""
    source = random.Random(SEED)
    numbers = [source.randrange(len(ranked.items)) for _ in range(OPERATIONS_BUILT)]
    fresh = Table.random(ranked.items.view, len(ranked.items), SEED + 2)
    slice_operations = bench.effort.writes // WRITES_SHARE // PIPELINE * PIPELINE
    results = []
    for how, options in (("logged", ()), ("NOLOG", ("NOLOG",))):
        title = f"FS.PUBLISH of 6 features of a cached row that a tensor is read of, {how} / column cache off"
        bench.say(title)
        writing = publishing(fresh, numbers, *options)
        runner = Runner(server, writing)
        sides = {False: Series([]), True: Series([])}
        for number in range(bench.effort.rounds + 1):
            figures = {False: [], True: []}
            for at in range(SLICES):
                for cached in (False, True) if at % 2 else (True, False):
                    cache.switch(cached)
                    figures[cached].append(runner.measure(slice_operations, nothing)[0])
            if number > 0:
                for cached, measured in figures.items():
                    sides[cached].values.append(statistics.median(measured))
        runner.client.close()
        # The last slice was with the cache.
        with cache.require(on=True):
            require_same(server, ranked, drawn)
        series = (sides[False], sides[True], slice_operations * SLICES, TARGET_UPKEEP)
        results.append(Result("serving", title, server.version, "us CPU/op", *series))
    return results


def require_same(server: Server, ranked: Ranking, drawn: list[Draw]) -> None:
    """FS.RANK answers what is in the rows, whatever was written before."""
    for draw in drawn[:CHECKED_DRAWS]:
        (answer,), _ = server.connection.exchange(ranked.rank([draw]).pipelines[0], 1)
        replies, _ = server.connection.exchange(ranked.hmget([draw]).pipelines[0], 1 + CANDIDATES)
        found = numpy.array(replies, "<f4")
        if not numpy.array_equal(tensor_of(answer), joined(found[:1], found[1:])):
            raise BenchError("FS.RANK does not answer what the rows hold after they were published")


def growth(bench: Bench) -> Result:
    """The same calls on a server with ten times as many items."""
    few, many = bench.effort.windowed_entities, bench.effort.windowed_entities * LARGE
    title = f"FS.RANK of 1 user and {CANDIDATES} of {many:,} items, column cache / of {few:,} items"
    with Server(bench.version, bench.module) as small, Server(bench.version, bench.module) as large:
        sides, caches = [], []
        for server, count in ((small, few), (large, many)):
            users = Table.random(RANKING_USERS, rows.ENTITIES, SEED)
            ranked = Ranking(users, Table.random(RANKED_ITEMS, count, SEED + 1))
            load(bench, server, ranked)
            calls = ranked.rank(draws(len(users), count, many // CANDIDATES, SEED))
            calls.calibrate(server.port)
            caches.append(ColumnCache(server, len(users) + count))
            caches[-1].switch(on=True)
            sides.append((server, Client(server.port), calls))
        bench.say(title)
        series = [Series([]), Series([])]
        count = bench.effort.reads // CALLS_SHARE
        for number in range(bench.effort.rounds + 1):
            figures = [cpu_us(server, client, calls, count) for server, client, calls in sides]
            if number > 0:
                for side, figure in zip(series, figures, strict=True):
                    side.values.append(figure)
        result = Result(
            "serving", title, large.version, "us CPU/call", *series, count, TARGET_GROWTH, digits=1
        )
        for name in ("rows", "bytes"):
            figures = [cache.figure(name) for cache in caches]
            result.details[f"cached {name}"] = " and ".join(f"{figure:,}" for figure in figures)
        for _, client, _ in sides:
            client.close()
    return result
