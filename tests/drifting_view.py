"""A view with everything that can drift, for tests: traffic for it, and what FS.DRIFT tells of it."""

import json
import random

import valkey
from profile_view import LOG, await_drained, entry
from test_persistence import (
    cut_the_power,
    debug_load_the_aof,
    restart_from_the_aof,
)
from windowed_view import clock_ms, fs

from server import await_until

ROW = "fs:v1:profile:u1"
# Every type, inputs, and a window, which is sampled as served whatever the view says.
SCHEMA = (
    "n INT x FLOAT flag BOOL word STRING seen TIMESTAMP v VECTOR 3 tags LIST part FLOAT INPUT kind STRING INPUT "
    "c INT AGG COUNT part WINDOW 1h"
)
INPUTS = {"part", "kind"}
PLAIN = {"n", "x", "flag", "word", "seen", "v"}
SMALL = "n INT x FLOAT part FLOAT INPUT kind STRING INPUT c INT AGG COUNT part WINDOW 1h"
DAY_MS = 86_400_000
# Where only commands come back, no node's own reads do.
OF_COMMANDS_ALONE = {restart_from_the_aof, cut_the_power, debug_load_the_aof}


def typed(server, **options):
    """A client that is told types: maps, doubles, booleans."""
    return server.client(protocol=3, decode_responses=True, **options)


def drift(client, *words) -> dict:
    """What FS.DRIFT answers, by feature and method."""
    return {(told["feature"], told["method"]): told for told in client.execute_command("FS.DRIFT", *words)}


def everything_drifts(client) -> dict:
    """All that two copies must agree on: every answer for every version, or why there is none."""
    told = {}
    for view, _, versions in client.execute_command("FS.VIEWS"):
        for version in versions:
            try:
                told[view, version] = drift(client, view, "VERSION", version)
            except valkey.ResponseError as error:
                told[view, version] = str(error)
    return told


def assert_drifts_the_same(primary, replica) -> None:
    """The answers about publishes; what was served is each node's own."""
    primary.await_replicated(replica)
    ours, theirs = (of_publishes(everything_drifts(typed(server))) for server in (primary, replica))
    assert ours == theirs
    assert any(told for told in ours.values() if isinstance(told, dict)), "nothing was compared"


def of_publishes(told: dict) -> dict:
    """Without what is sampled as served."""
    own = {at: answer for at, answer in told.items() if at[0] != "served" and isinstance(answer, dict)}
    left = {at: {key: each for key, each in answer.items() if key[0] != "c"} for at, answer in own.items()}
    return {at: answer for at, answer in told.items() if at[0] != "served"} | left


def arrivals(client, feature: str, view: str = "profile", *words) -> tuple[int, int]:
    """How many arrivals of the window had the value, and how many did not."""
    told = drift(client, view, *words, feature, "METHOD", "MISSING")[feature, "MISSING"]
    absent = round(told["current_n"] * (told["current"] or 0))
    return told["current_n"] - absent, absent


def all_arrivals(client, features: str = "n x part kind c") -> dict:
    return {feature: arrivals(client, feature) for feature in features.split()}


def register_watched(client, *options, view: str = "profile", schema: str = SMALL) -> None:
    """A view whose features all have the least baseline: how many values may be missing."""
    fs(client, f"FS.REGISTER {view} ENTITY user", *options, "SCHEMA", *schema.split())
    document = json.loads(client.execute_command("FS.DESCRIBE", view, "JSON"))
    fs(client, f"FS.DROP {view}")
    for feature in document["schema"]:
        feature["expected"] = {"missing": 0}
    client.execute_command("FS.REGISTER", view, "JSON", json.dumps(document))


def publish_rows(client, rows: list[dict], view: str = "profile") -> None:
    """Rows in their order, without a log's entry where they are many."""
    with client.pipeline(transaction=False) as pipeline:
        for begin in range(0, len(rows), 500):
            words = []
            for i, row in enumerate(rows[begin : begin + 500]):
                words += [f"fs:v1:{view}:u{i % 50}", json.dumps(row)]
            pipeline.execute_command("FS.MPUBLISH", *words)
        pipeline.execute()


# A store with everything that can drift


def define(client, *options) -> None:
    """The view `profile`, sampled as published, and `served`, sampled as served; all have baselines."""
    fs(client, "FS.REGISTER profile ENTITY user MAXLEN 5000", *options, "SCHEMA", *SCHEMA.split())
    fs(client, "FS.REGISTER served ENTITY user SAMPLE 1 ON SERVE SCHEMA y FLOAT z STRING w INT DEFAULT 3")
    chance = random.Random(3)
    vectors = [",".join(str(round(chance.gauss(1, 1), 3)) for _ in range(3)) for _ in range(150)]
    for words in (
        ["profile n STATS mean 10 stddev 20 min 0 max 99"],
        ["profile x SAMPLES 200", *[chance.gauss(0, 1) for _ in range(200)], "MISSING", 0.05],
        ["profile flag CATEGORIES 2 true 60 false 140"],
        ["profile word CATEGORIES 3 w0 100 w1 50 w2 50 MISSING 0.1"],
        ["profile seen SAMPLES 100", *[1_700_000_000_000 + i for i in range(100)]],
        ["profile v SAMPLES 150", *vectors],
        ["profile part SAMPLES 200", *[chance.random() for _ in range(200)]],
        ["profile kind CATEGORIES 2 k0 500 k1 500"],
        ["profile c STATS mean 50 stddev 1"],
        ["served y STATS mean 1 stddev 1 missing 0.5"],
        ["served z CATEGORIES 2 a 100 b 100"],
    ):
        fs(client, f"FS.BASELINE {words[0]}", *words[1:])


def an_update(chance: random.Random) -> dict:
    """Values of some features, nulls among them, at least of one."""
    drawn = {
        "n": chance.randrange(100),
        "x": chance.gauss(0.5, 2),
        "flag": chance.random() < 0.7,
        "word": f"w{chance.randrange(5)}" + "ä" * chance.randrange(80),
        "seen": 1_700_000_000_000 + chance.randrange(200),
        "v": [chance.gauss(0, 1) for _ in range(3)],
        "tags": ["a", chance.randrange(9)],
        "part": chance.random() * 2,
        "kind": f"k{chance.randrange(3)}",
    }
    names = chance.sample(sorted(drawn), chance.randint(1, len(drawn)))
    return {name: None if name not in INPUTS and chance.random() < 0.1 else drawn[name] for name in names}


def traffic(server, count: int = 600, seed: int = 1) -> list[dict]:
    """Updates on every way in; answers them."""
    client, chance = server.client(), random.Random(seed)
    now_ms = clock_ms(client)
    updates = [an_update(chance) for _ in range(count)]
    with client.pipeline(transaction=False) as pipeline:
        for i, update in enumerate(updates):
            key, row = f"fs:v1:profile:u{chance.randrange(20)}", json.dumps(update)
            words = [word for field in entry(key.rsplit(":", 1)[1], update).items() for word in field]
            ways = [
                ("FS.PUBLISH", key, "JSON", row),
                ("FS.PUBLISH", key, "NOLOG", "EVENT", f"e{i}", "JSON", row),
                ("FS.PUBLISH", key, "AT", now_ms - chance.randrange(3_000_000), "JSON", row),
                ("FS.MPUBLISH", key, row),
                ("EVAL", "return redis.call('FS.PUBLISH', KEYS[1], 'JSON', ARGV[1])", 1, key, row),
                ("XADD", LOG, "*", *words),
            ]
            pipeline.execute_command(*chance.choice(ways))
        pipeline.execute()
    await_drained(client)
    return updates


def serve(client, count: int, seed: int = 2) -> None:
    chance = random.Random(seed)
    for i in range(20):
        client.execute_command("FS.PUBLISH", f"fs:v1:served:u{i}", "y", i, "z", chance.choice("abc"))
    for _ in range(count):
        client.execute_command("FS.GET", f"fs:v1:served:u{chance.randrange(30)}")
        client.execute_command("FS.GET", f"fs:v1:profile:u{chance.randrange(20)}")


def counted(updates: list[dict]) -> dict:
    """Arrivals with and without each value, as the rule says: inputs and others are told of apart."""
    told = {}
    for group in (PLAIN, INPUTS):
        met = [u for u in updates if (u.keys() & INPUTS if group is INPUTS else u.keys() - INPUTS)]
        for feature in group:
            present = sum(update.get(feature) is not None for update in met)
            told[feature] = (present, len(met) - present)
    return told


def came(client) -> dict:
    return {feature: arrivals(client, feature) for feature in PLAIN | INPUTS}


def module_info(server) -> dict:
    return {name.removeprefix("fs_"): told for name, told in server.info("fs").items()}


def await_checks(server, count: int = 3) -> None:
    """Waits until the alerts were looked at so often from now on."""
    least = module_info(server)["drift_checks"] + count
    await_until(lambda: module_info(server)["drift_checks"] >= least, 20, f"{count} checks")


def alerts_written(client) -> list:
    return client.xrange("fs:alerts")
