"""Feature services: what FS.SERVICE takes and refuses, and which ids FS.SERVE and FS.RANK take.

The values that are served are compared in test_service_values.py; what outlives what is in test_service_state.py.
"""

import json
import random
import re
import resource
import struct

import numpy as np
import pytest
import valkey
from drifting_view import module_info
from service_views import (
    FORMATS,
    RANKED,
    RANKING,
    SERVED,
    SMALL,
    VARIANTS,
    answers,
    as_map,
    define,
    described,
    everything,
    reading,
    register,
    services,
    set_service,
    settings,
    told,
    variant,
    without_ages,
)
from test_odd_input import CODES, ODD_VALUES, Refusal, Wire, refused_properly
from windowed_view import fs

# Setting


@pytest.fixture
def defined(client):
    define(client)
    return client


def refused(client, code: str, part: str, *words) -> None:
    with pytest.raises(valkey.ResponseError) as refusal:
        client.execute_command(*words)
    # The client takes ERR away.
    told = str(refusal.value)
    told = told if re.match(f"({CODES}) ", told) else f"ERR {told}"
    assert told.startswith(f"{code} ") and part in told, (words[:6], told)


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_service_is_told_as_it_was_set(server, defined, protocol):
    client = server.client(protocol=protocol)
    assert services(client) == sorted(settings())
    for name, (features, with_status, format_) in {
        variant(name, format_, with_status): (features, with_status, format_)
        for name, features in (SERVED | RANKED).items()
        for format_, with_status in VARIANTS
        if variant(name, format_, with_status) in settings()
    }.items():
        reply = as_map(fs(client, f"FS.SERVICE GET {name}"))
        assert type(reply[b"withstatus"]) is (bool if protocol == 3 else int)
        versions = [view.split(":")[0] for view in dict.fromkeys(f.split(":")[0] for f in features)]
        columns = [f"goods:emb[{i}]" for i in range(3)]
        assert described(client, name) == {
            "service": name,
            **dict(zip(("context", "candidate", "pair"), RANKING.split()[1::2], strict=True)),
            **({} if name.startswith("rank") else dict.fromkeys(("context", "candidate", "pair"))),
            "format": format_.lower(),
            "withstatus": with_status,
            "features": list(features),
            # `profile` was set when its newest version was 2.
            "versions": [
                [view.split("@")[0], int(view.split("@")[1]) if "@" in view else {"profile": 2}.get(view, 1)]
                for view in versions
            ],
            "columns": [
                column
                for feature in features
                for column in (columns if (format_, feature) == ("TENSOR", "goods:emb") else [feature])
            ],
            "problem": None,
        }
    assert list(reply) == [
        *(b"service", b"context", b"candidate", b"pair", b"format"),
        *(b"withstatus", b"features", b"versions", b"columns", b"problem"),
    ]


def test_a_version_that_is_not_named_is_pinned_when_the_service_is_set(client):
    register(client, "v", "ENTITY user SCHEMA a INT DEFAULT 1")
    for name in ("one", "two"):
        set_service(client, name, "FEATURES 1 v:a")
    register(client, "v@3", "ENTITY user SCHEMA a FLOAT DEFAULT 3.5 b INT")
    set_service(client, "two", "FEATURES 1 v:a")
    set_service(client, "both", "FEATURES 4 v:a v@1:a v:b v@3:a")
    # A version between them is not the newest.
    register(client, "v@2", "ENTITY user SCHEMA a INT DEFAULT 2")
    for name, versions, row in [
        ("one", [["v", 1]], [1]),
        ("two", [["v", 3]], [b"3.5"]),
        ("both", [["v", 3], ["v", 1]], [b"3.5", 1, None, b"3.5"]),
    ]:
        assert described(client, name)["versions"] == versions
        (served,) = fs(client, f"FS.SERVE {name} u1")
        assert served[1::2] == row
        assert [text.decode() for text in served[::2]] == described(client, name)["features"]
    # A service is set again as it is: the newest is another now, and so is the service.
    set_service(client, "one", "FEATURES 1 v:a")
    assert described(client, "one")["versions"] == [["v", 3]]


def test_a_service_is_replaced_and_deleted(defined):
    before, views = told(defined), fs(defined, "FS.VIEWS")
    set_service(defined, "rank_map", "FORMAT ARRAY FEATURES 1 account:since")
    assert described(defined, "rank_map")["context"] is None
    assert fs(defined, "FS.SERVE rank_map u2") == [[1_700_000_000_000]]
    refused(defined, "ERR", "'rank_map' does not rank", "FS.RANK", "rank_map", "u1", "i1")
    assert fs(defined, "FS.SERVICE DEL rank_map") == b"OK"
    for line in ("GET rank_map", "DEL rank_map"):
        refused(defined, "NOSERVICE", "'rank_map'", "FS.SERVICE", *line.split())
    for command in ("FS.SERVE", "FS.RANK"):
        refused(defined, "NOSERVICE", "'rank_map'", command, "rank_map", "u1", "i1")
    assert told(defined) == {name: reply for name, reply in before.items() if name != "rank_map"}
    assert fs(defined, "FS.VIEWS") == views
    for name in services(defined):
        fs(defined, f"FS.SERVICE DEL {name}")
    assert services(defined) == []


def test_options_stand_in_any_order_and_case(client):
    define(client)
    features = "FEATURES 2 both:clicks profile@1:age"
    orders = [
        "CONTEXT user CANDIDATE item PAIR user_item FORMAT array WITHSTATUS",
        "withstatus Pair user_item format ARRAY candidate item Context user",
        "FORMAT Array PAIR user_item CANDIDATE item WithStatus CONTEXT user",
    ]
    for order in orders:
        set_service(client, "s", f"{order} {features}")
        set_service(client, "known", f"{orders[0]} {features}")
        assert described(client, "s") == described(client, "known") | {"service": "s"}
    assert fs(client, "fs.service set s features 1 profile@1:age") == b"OK"
    assert fs(client, "Fs.Service gEt s")[1] == b"s"


REFUSED = [
    ("WITHSTATUS FORMAT MAP", "ERR", "FEATURES is missing"),
    ("WITHSTATUS MAP FEATURES 1 goods:price", "ERR", "expected FEATURES or an option, got 'MAP'"),
    ("WITHSTATUS WITHSTATUS FEATURES", "ERR", "number of FEATURES is missing"),
    ("WITHSTATUS FEATURES 0", "ERR", "at least 1"),
    ("FEATURES 0 goods:price", "ERR", "at least 1"),
    ("FEATURES -1 goods:price", "ERR", "at least 1, got '-1'"),
    ("FEATURES 1.0 goods:price", "ERR", "got '1.0'"),
    ("FEATURES 18446744073709551616 goods:price", "ERR", "whole number"),
    ("FEATURES 18446744073709551615 goods:price", "ERR", "at most 4096"),
    ("FEATURES goods:price goods:emb", "ERR", "got 'goods:price'"),
    ("FEATURES 2 goods:price", "ERR", "view:feature is missing"),
    ("FEATURES 1 goods:price more", "ERR", "unexpected argument 'more'"),
    ("FEATURES 1 goods:price FORMAT TENSOR", "ERR", "unexpected argument 'FORMAT'"),
    ("FEATURES 2 goods:price goods:price", "ERR", "names 'goods:price' twice"),
    ("FEATURES 3 goods@1:price goods:price goods@1:price", "ERR", "names 'goods@1:price' twice"),
    ("FEATURES 1 goods", "ERR", "expected view:feature or view@version:feature, got 'goods'"),
    ("FEATURES 1 goods@1", "ERR", "expected view:feature"),
    ("FEATURES 1 goods@x:price", "ERR", "VERSION must be"),
    ("FEATURES 1 goods@:price", "ERR", "VERSION must be"),
    ("FEATURES 1 goods@0:price", "ERR", "at least 1"),
    ("FEATURES 1 goods@1000000000:price", "ERR", "at most 999999999"),
    ("FEATURES 1 goods@1@1:price", "ERR", "VERSION must be"),
    ("FEATURES 1 goods@7:price", "NOVIEW", "version 7 of view 'goods'"),
    ("FEATURES 1 none:price", "NOVIEW", "'none'"),
    ("FEATURES 1 none@1:price", "NOVIEW", "'none'"),
    ("FEATURES 1 :price", "NOVIEW", "''"),
    ("FEATURES 1 Goods:price", "NOVIEW", "'Goods'"),
    ("FEATURES 1 goods:none", "NOFEATURE", "view 'goods' has no feature 'none'"),
    ("FEATURES 1 goods:", "NOFEATURE", "view 'goods' has no feature ''"),
    ("FEATURES 1 goods:price:", "NOFEATURE", "'price:'"),
    ("FEATURES 1 goods:_updated_at", "NOFEATURE", "'_updated_at'"),
    ("FEATURES 1 profile:plan", "NOFEATURE", "'plan'"),
    # The first fault is told, whatever follows.
    ("FEATURES 2 none:price goods:price", "NOVIEW", "'none'"),
    ("FEATURES 3 goods:price goods:none goods:emb", "NOFEATURE", "no feature 'none'"),
    ("FEATURES 2 goods goods:price", "ERR", "expected view:feature or view@version:feature, got 'goods'"),
    ("FEATURES 2 goods@x:price goods:price", "ERR", "VERSION must be"),
    ("FEATURES 1 profile@1:seen", "NOFEATURE", "is an INPUT"),
    ("FEATURES 2 goods:price profile:age", "SCHEMA", "entities 'item' and 'user'"),
    ("FORMAT TENSOR FEATURES 1 profile:tags", "SCHEMA", "'tags' of view 'profile' is LIST and has no number"),
    ("FORMAT TENSOR FEATURES 2 profile@1:age profile@1:text", "SCHEMA", "a STRING needs VALUES"),
    ("FORMAT CSV FEATURES 1 goods:price", "ERR", "FORMAT must be MAP or ARRAY or TENSOR or JSON, got 'CSV'"),
    ("FORMAT FEATURES 1 goods:price", "ERR", "FORMAT must be"),
    ("CONTEXT user FEATURES 1 goods:price", "ERR", "stand together"),
    ("CANDIDATE item FEATURES 1 goods:price", "ERR", "stand together"),
    ("PAIR user_item FEATURES 1 both:clicks", "ERR", "stand together"),
    ("CONTEXT user PAIR user_item FEATURES 1 both:clicks", "ERR", "stand together"),
    ("CONTEXT user CANDIDATE user FEATURES 1 profile:age", "ERR", "entity 'user' is named twice"),
    ("CONTEXT user CANDIDATE item PAIR user FEATURES 1 profile:age", "ERR", "entity 'user' is named twice"),
    ("CONTEXT user CANDIDATE item PAIR item FEATURES 1 profile:age", "ERR", "entity 'item' is named twice"),
    ("CONTEXT user CANDIDATE item FEATURES 1 both:clicks", "SCHEMA", "entity 'user_item'"),
    ("CONTEXT a CANDIDATE b PAIR c FEATURES 1 both:clicks", "SCHEMA", "entity 'user_item'"),
    ("CONTEXT User CANDIDATE item FEATURES 1 goods:price", "ERR", "entity name 'User' must match"),
    ("CONTEXT user CANDIDATE 1 FEATURES 1 goods:price", "ERR", "entity name '1' must match"),
    (f"CONTEXT {'u' * 65} CANDIDATE item FEATURES 1 goods:price", "ERR", "at most 64 bytes"),
    ("CONTEXT user CANDIDATE item PAIR FEATURES 1 both:clicks", "ERR", "entity name 'FEATURES' must match"),
    (f"FEATURES 4097{' goods:price' * 4097}", "ERR", "a service has at most 4096 features, got 4097"),
]


def test_what_cannot_be_served_is_refused_and_changes_nothing(client):
    for view, words in SMALL.items():
        register(client, view, words)
    set_service(client, "known", "FEATURES 1 goods:price")
    before = everything(client)
    for words, code, part in REFUSED:
        for name in ("s", "known"):
            refused(client, code, part, "FS.SERVICE", "SET", name, *words.split())
        assert everything(client) == before
    for words in ("s", "", "s FEATURES", "s FEATURES 1"):
        refused(client, "ERR", "wrong number of arguments", "FS.SERVICE", "SET", *words.split())
    for words in (
        "SET",
        "GET",
        "DEL",
        "GET a b",
        "DEL a b",
        "LIST x",
        "HELP x",
        "ADD s FEATURES 1 goods:price",
        "",
    ):
        with pytest.raises(valkey.ResponseError, match=r"wrong number of arguments|unknown subcommand"):
            client.execute_command("FS.SERVICE", *words.split())
    for words in ("FS.SERVE", "FS.SERVE known", "FS.RANK", "FS.RANK known", "FS.RANK known u1"):
        refused(client, "ERR", "wrong number of arguments", *words.split())
    assert everything(client) == before


NAMES = [
    b"",
    b"S",
    b"1s",
    b"_s",
    b"s-1",
    b"s t",
    b"s\0",
    b"s\n",
    b"\xff",
    "ä".encode(),
    b"s" * 65,
    b"*",
    b"s:t",
]


def test_odd_names_are_refused(client):
    register(client, "v", "ENTITY user SCHEMA a INT DEFAULT 1")
    for name in {*NAMES, *ODD_VALUES.values()} - {b"nan"}:
        refused(client, "ERR", "service name", "FS.SERVICE", "SET", name, "FEATURES", "1", "v:a")
        for words in (["FS.SERVICE", "GET", name], ["FS.SERVICE", "DEL", name], ["FS.SERVE", name, "u"]):
            refused(client, "NOSERVICE", "is not set", *words)
        refused(client, "NOSERVICE", "is not set", "FS.RANK", name, "u", "i")
    assert services(client) == []
    # What may be a name: words of the syntax, too.
    for name in ("set", "features", "s", "s_1", "s" * 64):
        set_service(client, name, "FEATURES 1 v:a")
        assert fs(client, f"FS.SERVE {name} u") == [[b"v:a", 1]]
    assert services(client) == sorted(services(client))


def test_a_service_takes_as_many_features_as_it_may_name(client):
    names = [f"f{i}" for i in range(4_096)]
    schema = " ".join(f"{name} INT DEFAULT {i}" for i, name in enumerate(names))
    register(client, "wide", f"ENTITY user SCHEMA {schema}")
    client.execute_command("FS.PUBLISH", "fs:v1:wide:u1", "f7", -7, "f4095", -1)
    references = [f"wide:{name}" for name in reversed(names)]
    for format_ in ("ARRAY", "TENSOR"):
        set_service(client, format_.lower(), f"FORMAT {format_} FEATURES 4096 {' '.join(references)}")
    assert described(client, "tensor")["columns"] == references
    expected = np.array([list(range(4_096)), list(range(4_096))], "<f4")
    expected[0, [7, 4_095]] = [-7, -1]
    assert np.array_equal(fs(client, "FS.SERVE array u1 u2"), expected[:, ::-1])
    shape, blob = fs(client, "FS.SERVE tensor u1 u2")
    assert np.array_equal(np.frombuffer(blob, "<f4").reshape(shape), expected[:, ::-1])


# Ids


ODD_IDS = [
    b"\0",
    b"\r\n",
    b"\xff\xfe",
    b" ",
    b"*",
    b"i1",
    b":",
    b"a:b",
    b"i" * 512,
    "ü".encode(),
    b"$5\r\nhello\r\n",
    b"FEATURES",
]


def test_ids_are_any_bytes(defined):
    client = defined
    for i, id_ in enumerate(ODD_IDS):
        client.execute_command("FS.PUBLISH", b"fs:v1:goods:" + id_, "price", i)
        client.execute_command("FS.PUBLISH", b"fs:v1:profile:" + id_, "age", i)
    set_service(client, "goods", "FORMAT ARRAY FEATURES 1 goods:price")
    set_service(client, "no_pairs", f"{RANKING} FORMAT ARRAY FEATURES 2 profile@1:age goods:price")
    ids = [*ODD_IDS, *ODD_IDS[::-1], ODD_IDS[0]]
    prices = [[str(ODD_IDS.index(id_)).encode()] for id_ in ids]
    assert client.execute_command("FS.SERVE", "goods", *ids) == prices
    for i, context_id in enumerate(ODD_IDS):
        # A colon in the context's id is in nobody's way where no pair is read.
        expected = [[i, *price] for price in prices]
        assert client.execute_command("FS.RANK", "no_pairs", context_id, *ids) == expected


def test_pairs_are_context_and_candidate_with_a_colon_between(defined):
    client = defined
    candidates = [id_ for id_ in ODD_IDS if len(id_) < 500]
    contexts = [id_ for id_ in candidates if b":" not in id_]
    for i, context_id in enumerate(contexts):
        for j, id_ in enumerate(candidates):
            client.execute_command(
                "FS.PUBLISH", b"fs:v1:both:" + context_id + b":" + id_, "clicks", 100 * i + j
            )
    set_service(client, "clicks", f"{RANKING} FORMAT ARRAY FEATURES 1 both:clicks")
    for i, context_id in enumerate(contexts):
        reply = client.execute_command("FS.RANK", "clicks", context_id, *candidates)
        assert reply == [[100 * i + j] for j in range(len(candidates))]
    for context_id in (b":", b"a:b", b":a", b"a:"):
        refused(client, "ERR", "holds a ':'", "FS.RANK", "clicks", context_id, "i1")


def test_ids_that_no_entity_can_have_are_refused(defined):
    client = defined
    for id_ in (b"", b"i" * 513, b"\0" * 100_000):
        part = f"has {len(id_)} bytes, allowed are 1 to 512"
        for words in (
            ["FS.SERVE", "entity_map", id_],
            ["FS.SERVE", "entity_tensor", "u1", "u2", id_, "u3"],
            ["FS.RANK", "rank_json", id_, "i1"],
            ["FS.RANK", "rank_tensor_status", "u1", "i1", id_],
        ):
            refused(client, "ERR", part, *words)
    # Both are ids of entities, but together they are none: FS.GET refuses the same key.
    set_service(client, "clicks", f"{RANKING} FEATURES 1 both:clicks")
    for sizes in ((512, 512), (1, 511), (511, 1), (256, 256)):
        user, item = (b"u" * size for size in sizes)
        part = f"has {sum(sizes) + 1} bytes, allowed are 1 to 512"
        refused(client, "ERR", part, "FS.GET", b"fs:v1:both:" + user + b":" + item)
        refused(client, "ERR", part, "FS.RANK", "clicks", user, item)
    refused(client, "ERR", "has 513 bytes", "FS.RANK", "clicks", "u", "i", b"i" * 511, "i")
    assert client.execute_command("FS.RANK", "clicks", b"u" * 255, b"i" * 256) == [[b"both:clicks", 0]]


def test_ten_thousand_ids_are_served_in_their_order(client):
    register(client, "profile", "ENTITY user SCHEMA age INT DEFAULT -1")
    register(client, "goods", "ENTITY item SCHEMA price FLOAT stock INT DEFAULT 0")
    register(client, "both", "ENTITY user_item SCHEMA clicks INT")
    client.execute_command("FS.PUBLISH", "fs:v1:profile:u1", "age", 34)
    with client.pipeline(transaction=False) as pipeline:
        for i in range(0, 3_000, 2):
            pipeline.execute_command("FS.PUBLISH", f"fs:v1:goods:i{i}", "NOLOG", "price", i / 8, "stock", i)
            pipeline.execute_command("FS.PUBLISH", f"fs:v1:both:u1:i{i}", "NOLOG", "clicks", -i)
        pipeline.execute()
    draw = random.Random(1)
    ids = [f"i{draw.randrange(3_000)}" for _ in range(10_000)]
    goods = client.execute_command("FS.MGET", "*", *(f"fs:v1:goods:{id_}" for id_ in ids))
    clicks = client.execute_command("FS.MGET", "*", *(f"fs:v1:both:u1:{id_}" for id_ in ids))
    expected = [[*row, 34, *pair] for row, pair in zip(goods, clicks, strict=True)]
    assert len({tuple(row) for row in expected}) > 1_000
    features = "FEATURES 4 goods:price goods:stock profile:age both:clicks"
    for format_ in ("ARRAY", "TENSOR", "JSON"):
        set_service(client, format_.lower(), f"{RANKING} FORMAT {format_} {features}")
    assert client.execute_command("FS.RANK", "array", "u1", *ids) == expected
    matrix = np.array([[np.nan if v is None else float(v) for v in row] for row in expected], "<f4")
    shape, blob = client.execute_command("FS.RANK", "tensor", "u1", *ids)
    assert np.array_equal(np.frombuffer(blob, "<f4").reshape(shape), matrix, equal_nan=True)
    rows = json.loads(client.execute_command("FS.RANK", "json", "u1", *ids))
    told = np.array([[np.nan if v is None else v for v in row.values()] for row in rows], "<f4")
    assert np.array_equal(told, matrix, equal_nan=True)
    set_service(client, "goods", "FORMAT ARRAY FEATURES 2 goods:price goods:stock")
    assert client.execute_command("FS.SERVE", "goods", *ids) == goods


def test_a_reply_that_is_out_of_proportion_is_refused_before_anything_is_read(fresh_server):
    # Each asks for gigabytes; a server that tries fails here, not the machine.
    server = fresh_server()
    resource.prlimit(server.process.pid, resource.RLIMIT_AS, (4 << 30, 4 << 30))
    with Wire(server) as wire:
        default = struct.pack("<65536f", *range(65536))
        for view, entity in (("big", "user"), ("bigger", "item")):
            wire.call(
                "FS.REGISTER",
                view,
                "ENTITY",
                entity,
                "SCHEMA",
                "emb",
                *["VECTOR", 65_536],
                "DEFAULT",
                default,
            )
        wire.call("SET", "fs:v1:big:wrong", "x")
        for format_ in FORMATS:
            words = f"FORMAT {format_} FEATURES"
            wire.call("FS.SERVICE", "SET", f"s_{format_.lower()}", *words.split(), "1", "big:emb")
            ranking = f"CONTEXT user CANDIDATE item {words} 2 big:emb bigger:emb".split()
            assert wire.call("FS.SERVICE", "SET", f"r_{format_.lower()}", *ranking) == b"OK"
        # 4Mi values are 64 such rows; a tensor of 512 MiB is 2048.
        for name, most in (("array", 64), ("map", 64), ("json", 64), ("tensor", 2_048)):
            for call in (
                ["FS.SERVE", f"s_{name}", *["wrong"] * (most + 1)],
                ["FS.SERVE", f"s_{name}", *["wrong"] * 100_000],
                ["FS.RANK", f"r_{name}", "wrong", *["wrong"] * (most // 2 + 1)],
            ):
                reply = wire.call(*call)
                assert refused_properly(reply) and "allowed are" in str(reply), (call[:3], reply)
            # One fewer is read.
            reply = wire.call("FS.SERVE", f"s_{name}", *["wrong"] * most)
            assert str(reply).startswith("WRONGTYPE "), (name, reply)
            reply = wire.call("FS.RANK", f"r_{name}", "wrong", *["i"] * (most // 2))
            assert str(reply).startswith("WRONGTYPE "), (name, reply)
        rows = json.loads(wire.call("FS.SERVE", "s_json", *["u"] * 64))
        assert len(rows) == 64 and all(row["big:emb"] == list(range(65536)) for row in rows)
        assert wire.call("PING") == b"PONG"


# Databases, arguments, transactions, scripts


def test_services_live_in_database_0(server, defined):
    before = everything(defined)
    other = server.client(db=1)
    for words in (
        ["FS.SERVICE", "SET", "s", "FEATURES", "1", "goods:price"],
        ["FS.SERVICE", "GET", "rank_map"],
        ["FS.SERVICE", "DEL", "rank_map"],
        ["FS.SERVICE", "LIST"],
        ["FS.SERVICE", "HELP"],
        reading("entity_tensor"),
        reading("rank_json"),
    ):
        refused(other, "ERR", "database 0", *words)
    assert other.dbsize() == 0
    assert everything(defined) == before


def test_a_row_of_another_type_refuses_the_whole_call(defined):
    before = answers(defined)
    for key, kinds in [
        ("fs:v1:profile:u2", "entity texts"),
        ("fs:v1:account:none", "entity"),
        ("fs:w1:profile:u1", "entity texts rank"),
        ("fs:v1:profile:u1", "entity texts rank rank_texts"),
        ("fs:v1:goods:i2", "rank rank_texts"),
        ("fs:v1:both:u1:none", "rank rank_texts"),
    ]:
        defined.copy(key, "kept", replace=True)
        # A row that is deleted takes its windows along, one that is overwritten does not.
        defined.rpush("other", "x")
        defined.rename("other", key)
        for name, reply in answers(defined).items():
            if re.sub(r"_(map|array|json|tensor)(_status)?$", "", name) in kinds.split():
                assert reply.startswith("WRONGTYPE ") and f"'{key}'" in reply, (name, reply)
            else:
                assert reply == before[name]
        if defined.exists("kept"):
            defined.rename("kept", key)
        else:
            defined.delete(key)
    assert answers(defined) == before


def test_transactions_and_scripts_are_served(server, defined):
    for protocol in (2, 3):
        client = server.client(protocol=protocol)
        expected = answers(client)
        with client.pipeline(transaction=True) as transaction:
            for name in expected:
                transaction.execute_command(*reading(name))
            transaction.execute_command("FS.SERVE", "nothing", "u1")
            *replies, refusal = transaction.execute(raise_on_error=False)
        assert str(refusal).startswith("NOSERVICE ")
        assert [without_ages(reply) for reply in replies] == list(expected.values())
    in_resp2 = answers(server.client())
    library = (
        "#!lua name=lib\nserver.register_function{function_name='run', flags={'no-writes'}, "
        "callback=function(k, a) return server.call(unpack(a)) end}"
    )
    defined.function_load(library, replace=True)
    for name, reply in in_resp2.items():
        # A nil ends a table of Lua: JSON and tensors come through whole.
        if "json" not in name and "tensor" not in name:
            continue
        for call in (
            ["EVAL", "return redis.call(unpack(ARGV))", 0],
            ["EVAL_RO", "return redis.call(unpack(ARGV))", 0],
            ["EVAL", "#!lua flags=no-writes\nreturn redis.call(unpack(ARGV))", 0],
            ["FCALL_RO", "run", 0],
        ):
            assert without_ages(defined.execute_command(*call, *reading(name))) == reply, (call, name)
    for script in ("EVAL_RO", "EVAL"):
        words = ["FS.SERVICE", "SET", "of_a_script", "FEATURES", "1", "goods:price"]
        call = [script, "return redis.call(unpack(ARGV))", 0, *words]
        if script == "EVAL":
            assert defined.execute_command(*call) == b"OK"
        else:
            refused(defined, "ERR", "read-only script", *call)
        assert ("of_a_script" in services(defined)) == (script == "EVAL")


WORDS = (
    "s known ranking FEATURES CONTEXT CANDIDATE PAIR FORMAT MAP ARRAY TENSOR JSON CSV WITHSTATUS 0 1 2 3 4097 user "
    "item user_item goods:price goods:emb goods@1:price profile:age profile@1:age profile@1:plan profile:tags "
    "both:clicks goods@2:price none:a goods:none u1 i1 u1:i1 SET GET DEL LIST"
)


@pytest.mark.parametrize("seed", range(3))
def test_random_arguments_are_answered_and_a_refusal_changes_nothing(server, seed):
    draw = random.Random(seed)
    words = [*WORDS.encode().split(), *(odd for odd in ODD_VALUES.values() if len(odd) < 1_000)]
    valid = [
        b"FS.SERVICE SET s CONTEXT user CANDIDATE item PAIR user_item FORMAT TENSOR WITHSTATUS FEATURES 3 "
        b"goods:price both:clicks profile@1:age",
        b"FS.SERVICE SET known FORMAT JSON FEATURES 2 profile@1:plan profile:age",
        b"FS.SERVICE GET known",
        b"FS.SERVICE DEL s",
        b"FS.SERVICE LIST",
        b"FS.SERVE known u1 u2",
        b"FS.RANK ranking u1 i1 i2",
        b"FS.SERVE ranking u1",
        b"FS.RANK s u1 i1",
    ]
    ranking = b"FS.SERVICE SET ranking CONTEXT user CANDIDATE item FEATURES 2 goods:price profile:age".split()
    taken, refusals = set(), 0
    with Wire(server) as wire:
        for view, definition in SMALL.items():
            name, _, version = view.partition("@")
            wire.call("FS.REGISTER", name, "VERSION", version or 1, *definition.split())

        def held() -> tuple:
            names = wire.call("FS.SERVICE", "LIST")
            return (
                names,
                [wire.call("FS.SERVICE", "GET", name) for name in names],
                wire.call("DEBUG", "DIGEST"),
            )

        before = held()
        for _ in range(2_500):
            call = draw.choice([ranking, *([line.split(b" ") for line in valid] * 2)])
            for _ in range(draw.choice([0, 0, 1, 1, 2, 3])):
                at = draw.randrange(1, len(call) + 1)
                call = [
                    *call[:at],
                    *draw.choices(words, k=draw.randrange(3)),
                    *call[at + draw.randrange(2) :],
                ]
            reply = wire.call(*call)
            after = held()
            if refused_properly(reply):
                refusals += 1
                assert after == before, (call, reply)
                continue
            taken.add(b" ".join(call[: 1 + (call[0] == b"FS.SERVICE")]))
            match call[:2]:
                case [b"FS.SERVICE", sub] if sub.upper() == b"SET":
                    assert after[0] == sorted({*before[0], call[2]}), call
                case [b"FS.SERVICE", sub] if sub.upper() == b"DEL":
                    assert after[0] == sorted({*before[0]} - {call[2]}), call
                case _:
                    assert after == before, call
            before = after
        assert 500 < refusals < 2_000
        assert {b"FS.SERVICE SET", b"FS.SERVICE DEL", b"FS.SERVICE GET", b"FS.SERVE", b"FS.RANK"} <= taken
        # What was set can be read, or says why not.
        for name in before[0]:
            for call in (["FS.SERVE", name, "u1"], ["FS.RANK", name, "u1", "i1"]):
                reply = wire.call(*call)
                assert not isinstance(reply, Refusal) or "rank" in str(reply), (call, reply)
        assert module_info(server)["panics"] == 0
