"""Permissions: every key that a command touches is checked before anything happens, as for native commands."""

import random
from collections import Counter

import pytest
import valkey
from profile_view import module_figures
from service_rules import check_service, some_ids, some_rules

from server import await_until

ROW, OTHER, LOG, LETTERS = "fs:v1:profile:u1", "fs:v1:profile:u2", "fs:stream:profile", "fs:dlq:profile"
ALL_ROWS = "fs:v1:profile:*"
MPUBLISH = ["FS.MPUBLISH", ROW, '{"age":9}', "fs:v1:account:u1", '{"age":9}']

# A call, and the key rules that it cannot do without.
NEEDED = [
    (["FS.GET", ROW], [f"%R~{ROW}"]),
    (["FS.GET", ROW, "WITHSTATUS", "age"], [f"%R~{ROW}"]),
    (["FS.EXPLAIN", ROW], [f"%R~{ROW}"]),
    (["FS.MGET", "*", ROW, OTHER], [f"%R~{ROW}", f"%R~{OTHER}"]),
    (["FS.TENSOR", "*", ROW, OTHER], [f"%R~{ROW}", f"%R~{OTHER}"]),
    (
        ["FS.SERVE", "serving", "u1", "u2"],
        [f"%R~{ROW}", f"%R~{OTHER}", "%R~fs:v1:account:u1", "%R~fs:v1:account:u2"],
    ),
    (
        ["FS.RANK", "ranking", "u1", "i1", "i2", "i1"],
        [
            f"%R~{ROW}",
            "%R~fs:v1:goods:i1",
            "%R~fs:v1:goods:i2",
            "%R~fs:v1:clicks:u1:i1",
            "%R~fs:v1:clicks:u1:i2",
        ],
    ),
    (["FS.PUBLISH", ROW, "age", "9"], [f"%W~{ROW}", f"%W~{LOG}"]),
    (["FS.PUBLISH", ROW, "EVENT", "e", "JSON", '{"age":9}'], [f"%W~{ROW}", f"%W~{LOG}"]),
    (["FS.PUBLISH", ROW, "NOLOG", "age", "9"], [f"%W~{ROW}"]),
    (["FS.PUBLISH", "fs:v1:silent:u1", "age", "9"], ["%W~fs:v1:silent:u1"]),
    (MPUBLISH, [f"%W~{ROW}", "%W~fs:v1:account:u1", f"%W~{LOG}", "%W~fs:stream:account"]),
    (["FS.DEL", ROW, OTHER], [f"%W~{ROW}", f"%W~{OTHER}"]),
    (["FS.INFO", "profile"], [f"%R~{LOG}"]),
    (["FS.CONSUME", "profile"], [f"~{LOG}"]),
    (["FS.TRIM", "profile", "MAXLEN", "0"], [f"~{LOG}"]),
    (["FS.REPLAY", "profile", "FROM", "0"], [f"%R~{LOG}", f"~{ALL_ROWS}"]),
    (["FS.COPY", "silent", "FROM", "1", "TO", "2"], ["~fs:v1:silent:*", "~fs:v2:silent:*"]),
    (["FS.DROP", "profile", "DATA"], [f"~{ALL_ROWS}", f"~{LOG}", f"~{LETTERS}"]),
]
KEYLESS = [
    "FS.REGISTER more ENTITY user SCHEMA age INT",
    "FS.ALTER profile MAXLEN 5",
    "FS.DESCRIBE profile JSON",
    "FS.VIEWS",
    "FS.CONSUMER STOP profile",
    "FS.SCAN profile 0",
    "FS.INFO",
    "FS.HELP",
    "FS.SERVICE SET more FEATURES 1 profile:age",
    "FS.SERVICE SET serving FEATURES 1 profile:age",
    "FS.SERVICE GET ranking",
    "FS.SERVICE LIST",
    "FS.SERVICE HELP",
    "FS.SERVICE DEL serving",
    "FS.DROP profile",
]


@pytest.fixture
def admin(server):
    """The default user of a furnished store; other users go when the test ends."""
    admin = server.client()
    furnish(admin)
    yield admin
    for name in admin.acl_users():
        if name != "default":
            admin.acl_deluser(name)
    admin.acl_log_reset()


def fs(client, line: str):
    return client.execute_command(*line.split())


def furnish(client) -> None:
    for service in fs(client, "FS.SERVICE LIST"):
        client.execute_command("FS.SERVICE DEL", service)
    for view in client.execute_command("FS.VIEWS"):
        client.execute_command("FS.DROP", view[0])
    await_until(lambda: dict_of(fs(client, "FS.INFO"))[b"dropping"] == 0, what="the end of FS.DROP DATA")
    client.flushall()
    for view, options in [("profile", ""), ("account", ""), ("silent", "LOG OFF")]:
        fs(client, f"FS.REGISTER {view} ENTITY user {options} SCHEMA age INT")
    fs(client, "FS.REGISTER silent VERSION 2 ENTITY user LOG OFF SCHEMA age INT")
    fs(client, "FS.REGISTER goods ENTITY item SCHEMA price FLOAT")
    fs(client, "FS.REGISTER clicks ENTITY user_item SCHEMA count INT")
    fs(client, "FS.SERVICE SET serving FEATURES 2 profile:age account:age")
    ranking = "CONTEXT user CANDIDATE item PAIR user_item FORMAT TENSOR"
    fs(
        client,
        f"FS.SERVICE SET ranking {ranking} FEATURES 3 goods:price profile:age clicks:count",
    )
    for key in (ROW, OTHER, "fs:v1:account:u1"):
        fs(client, f"FS.PUBLISH {key} age 1")
    client.xadd(LOG, {"entity_id": "u1", "features": "x"})
    await_until(lambda: client.exists(LETTERS), what="the dead letter")


def dict_of(reply: list) -> dict:
    return dict(zip(reply[::2], reply[1::2], strict=True))


def user(server, *rules: str):
    """A client of a user that may call everything, on the keys that the rules name."""
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "eve", "reset", "on", "nopass", "+@all", *rules)
    return server.client(username="eve", password="any")


def state(admin) -> tuple:
    views = fs(admin, "FS.VIEWS")
    definitions = [admin.execute_command("FS.DESCRIBE", view, "JSON") for view, *_ in views]
    definitions += [
        admin.execute_command("FS.SERVICE GET", service) for service in fs(admin, "FS.SERVICE LIST")
    ]
    return admin.execute_command("DEBUG", "DIGEST"), definitions


def opposite(rule: str) -> str:
    """The same keys with the other right, or with only half of both."""
    return {"%R": "%W", "%W": "%R", "~f": "%R~f"}[rule[:2]] + rule[2:]


@pytest.mark.parametrize(
    ("call", "rules"), [pytest.param(*needed, id="-".join(needed[0][:3])) for needed in NEEDED]
)
def test_a_call_needs_exactly_the_keys_that_it_touches(server, admin, call, rules):
    for i, needed in enumerate(rules):
        for instead in ([], [opposite(needed)]):
            client = user(server, *rules[:i], *instead, *rules[i + 1 :])
            before = state(admin)
            admin.acl_log_reset()
            with pytest.raises(valkey.exceptions.NoPermissionError):
                client.execute_command(*call)
            assert state(admin) == before, (needed, instead)
            entry = dict_of(admin.execute_command("ACL", "LOG")[0])
            assert (entry[b"username"], entry[b"reason"]) == (b"eve", b"key")
            assert entry[b"object"].startswith(b"fs:"), "the log names the key"
    user(server, *rules).execute_command(*call)


@pytest.mark.parametrize("line", KEYLESS)
def test_what_touches_no_key_needs_none(server, admin, line):
    fs(user(server, "resetkeys"), line)


def test_a_refusal_names_the_key(server, admin):
    client = user(server, f"~{ROW}")
    for line in (
        f"FS.PUBLISH {ROW} age 9",
        "FS.CONSUME profile",
        "FS.TRIM profile MAXLEN 0",
        "FS.INFO profile",
    ):
        with pytest.raises(valkey.exceptions.NoPermissionError, match=LOG):
            fs(client, line)
    with pytest.raises(valkey.exceptions.NoPermissionError, match="fs:v1:profile:"):
        fs(user(server, f"~{LOG}"), "FS.REPLAY profile FROM 0")


def test_a_right_to_all_rows_comes_from_one_pattern(server, admin):
    for rules in (
        "~*",
        "allkeys",
        "~fs:*",
        "~x %RW~*",
        "%R~* %W~*",
        "~fs:v?:profile:* ~fs:stream:* ~fs:dlq:*",
    ):
        for line in ("FS.REPLAY profile FROM 0", "FS.DROP profile VERSION 1 DATA"):
            furnish(admin)
            fs(user(server, *rules.split()), line)


SOME_ROWS = """
~fs:v1:profile:[^s]*
~fs:v1:profile:[a-z]*
~fs:v1:profile:??*
~fs:v1:profile:?????????????????????????*
~fs:v1:profile:*s
~fs:v1:profile:u* ~fs:v1:profile:s*
~fs:v1:profile:\\*
~fs:v1:profile:
~fs:v2:profile:*
~fs:v1:profil:*
%R~fs:* %W~fs:v1:profile:*
%R~*
%W~*
"""


def test_a_right_to_some_rows_is_no_right_to_all(server, admin):
    fs(admin, "FS.PUBLISH fs:v1:profile:secret age 1")
    before = state(admin)
    for rules in SOME_ROWS.strip().splitlines():
        client = user(server, *rules.split(), f"~{LOG}", f"~{LETTERS}")
        for line in ("FS.REPLAY profile FROM 0", "FS.DROP profile VERSION 1 DATA"):
            with pytest.raises(valkey.exceptions.NoPermissionError):
                fs(client, line)
            assert state(admin) == before, rules


def test_a_scan_hides_rows_that_the_user_may_not_read(server, admin):
    for entity in ("a1", "a2", "b1"):
        fs(admin, f"FS.PUBLISH fs:v1:profile:{entity} age 1")

    def seen(*rules: str) -> set[bytes]:
        return set(fs(user(server, *rules), "FS.SCAN profile 0 COUNT 1000")[1])

    assert seen("~*") == {b"a1", b"a2", b"b1", b"u1", b"u2"}
    assert seen("%R~fs:v1:profile:a*") == {b"a1", b"a2"}
    assert seen(f"~{ROW}", "%W~*") == {b"u1"}
    assert seen("%W~*") == set()
    assert seen("resetkeys") == set()
    client = user(server, "%R~fs:v1:profile:b*")
    script = "return redis.call('FS.SCAN', 'profile', 0, 'COUNT', 1000)"
    assert client.eval(script, 0) == [b"0", [b"b1"]]
    with client.pipeline() as transaction:
        transaction.execute_command("FS.SCAN", "profile", "0", "COUNT", "1000")
        assert transaction.execute() == [[b"0", [b"b1"]]]


def test_figures_of_dead_letters_need_their_key(server, admin):
    assert dict_of(fs(user(server, f"%R~{LOG}", f"%R~{LETTERS}"), "FS.INFO profile"))[b"dlq_length"] == 1
    assert dict_of(fs(user(server, f"%R~{LOG}", f"%W~{LETTERS}"), "FS.INFO profile"))[b"dlq_length"] is None


def test_whoever_may_add_to_the_stream_may_write_all_rows(server, admin):
    user(server, f"%W~{LOG}").xadd(LOG, {"entity_id": "u7", "features": '{"age":7}'})
    await_until(lambda: admin.hget("fs:v1:profile:u7", "age") == b"7", what="the entry to be consumed")


# Services, whose rows are no arguments: HGETALL of each is the oracle


@pytest.mark.parametrize("seed", range(4))
def test_a_service_is_served_exactly_to_those_who_may_read_each_of_its_rows(server, admin, seed):
    draw, seen = random.Random(seed), Counter()
    for _ in range(120):
        rules = some_rules(draw)
        client = user(server, *rules)
        for _ in range(4):
            first, *ids = some_ids(draw)
            call = ["FS.SERVE", "serving", *ids]
            keys = [b"fs:v1:%s:%s" % (view, id_) for view in (b"profile", b"account") for id_ in ids]
            if draw.random() < 0.5 and b":" not in first:
                call = ["FS.RANK", "ranking", first, *ids]
                keys = [b"fs:v1:profile:" + first]
                keys += [
                    key
                    for id_ in ids
                    for key in (b"fs:v1:goods:" + id_, b"fs:v1:clicks:%s:%s" % (first, id_))
                ]
            seen[call[0], check_service(admin, client, call, keys, rules)] += 1
        client.close()
    assert min(seen[call, is_open] for call in ("FS.SERVE", "FS.RANK") for is_open in (True, False)) > 10, (
        seen
    )


@pytest.mark.parametrize("pattern", ["fs:v1:profile[:*", "fs:v1:profile[^x-z*", "fs:v1:profile[*:*", "*[:*"])
def test_a_bracket_that_is_never_closed_opens_no_rows(server, admin, pattern):
    fs(admin, "FS.SERVICE SET serving FEATURES 1 profile:age")
    for id_ in (b"u1", b":", b"*", b"none"):
        client = user(server, f"%R~{pattern}")
        check_service(admin, client, ["FS.SERVE", "serving", id_], [b"fs:v1:profile:" + id_], [pattern])


def test_one_row_that_is_closed_refuses_all_of_a_call(server, admin):
    rules = [f"%R~{ROW}", "%R~fs:v1:clicks:*", *(f"%R~fs:v1:goods:i{i}" for i in range(1_000) if i != 777)]
    client = user(server, *rules)
    candidates = [f"i{i}" for i in range(1_000)]
    fs(client, "FS.RANK ranking u1 i776 i778")
    served = module_figures(admin)["rows_served"]
    admin.acl_log_reset()
    with pytest.raises(valkey.exceptions.NoPermissionError, match="'fs:v1:goods:i777'"):
        client.execute_command("FS.RANK", "ranking", "u1", *candidates)
    (entry,) = map(dict_of, admin.execute_command("ACL", "LOG"))
    assert (entry[b"object"], entry[b"context"]) == (b"fs:v1:goods:i777", b"module")
    assert module_figures(admin)["rows_served"] == served
    admin.execute_command("ACL", "SETUSER", "eve", "%R~fs:v1:goods:i777")
    (n, k), blob = client.execute_command("FS.RANK", "ranking", "u1", *candidates)
    assert (n, k, len(blob)) == (1_000, 3, 12_000)


def test_rights_to_services_are_those_of_their_subcommands(server, admin):
    setting = "FS.SERVICE SET more FEATURES 1 profile:age"
    lines = [
        setting,
        "FS.SERVICE GET serving",
        "FS.SERVICE LIST",
        "FS.SERVE serving u1",
        "FS.SERVICE DEL serving",
    ]
    for rules, allowed in [
        ("+fs.service|get", lines[1:2]),
        ("+fs.service|set", lines[:1]),
        ("+@read", lines[1:4]),
        ("+@fs -@dangerous", lines[1:4]),
        ("+@all -@admin", lines[1:4]),
        ("+fs.serve", lines[3:4]),
        ("+fs.service", [*lines[:3], lines[4]]),
        ("+@all -fs.service", lines[3:4]),
        ("+@all", lines),
    ]:
        for line in lines:
            furnish(admin)
            client = user(server, "~*", "-@all", *rules.split())
            if line in allowed:
                fs(client, line)
            else:
                with pytest.raises(valkey.exceptions.NoPermissionError):
                    fs(client, line)


def test_replicas_check_and_serve(fresh_server):
    primary = fresh_server()
    furnish(primary.client())
    replica = primary.replica()
    admin = replica.client()
    for rules, is_open in (
        (["%R~fs:v1:*"], True),
        ([f"%R~{ROW}", "%R~fs:v1:account:*"], False),
        (["%W~*"], False),
    ):
        client = user(replica, *rules)
        keys = [f"fs:v1:{view}:{id_}".encode() for view in ("profile", "account") for id_ in ("u1", "u2")]
        assert check_service(admin, client, ["FS.SERVE", "serving", "u1", "u2"], keys, rules) is is_open
    with pytest.raises(valkey.ReadOnlyError):
        fs(admin, "FS.SERVICE DEL serving")


# Transactions, scripts, and users that change


def test_permissions_hold_inside_transactions(server, admin):
    client = user(server, f"~{ROW}")
    before = state(admin)
    with client.pipeline() as transaction:
        # The server knows of the row's key alone and queues it; the stream's key is found out in EXEC.
        transaction.execute_command("FS.PUBLISH", ROW, "age", 9)
        transaction.execute_command("FS.GET", ROW)
        # Of these it knows no key at all.
        transaction.execute_command("FS.SERVE", "serving", "u1")
        transaction.execute_command("FS.RANK", "ranking", "u1", "i1")
        refusal, row, *refusals = transaction.execute(raise_on_error=False)
    for refused in (refusal, *refusals):
        assert isinstance(refused, valkey.exceptions.NoPermissionError)
    assert row == [b"age", 1]
    with client.pipeline() as transaction:
        transaction.execute_command("FS.PUBLISH", ROW, "NOLOG", "age", 9)
        transaction.execute_command("FS.GET", OTHER)
        with pytest.raises(valkey.ResponseError):
            transaction.execute()
    assert state(admin) == before


def test_permissions_hold_inside_scripts(server, admin):
    client = user(server, f"~{ROW}")
    before = state(admin)
    calls = [
        ["FS.GET", OTHER],
        ["FS.SERVE", "serving", "u1"],
        ["FS.RANK", "ranking", "u1", "i1"],
        ["FS.PUBLISH", OTHER, "NOLOG", "age", "9"],
        ["FS.PUBLISH", ROW, "age", "9"],
        ["FS.MPUBLISH", ROW, '{"age":9}'],
        ["FS.DEL", ROW, OTHER],
        ["FS.DROP", "profile", "DATA"],
        ["FS.TRIM", "profile", "MAXLEN", "0"],
        ["FS.EFFECT", ROW, "x"],
    ]
    library = "#!lua name=lib\nserver.register_function('run', function(k, a) return server.pcall(unpack(a)).err end)"
    admin.function_load(library, replace=True)
    for call in calls:
        for caught in (
            client.eval("return redis.pcall(unpack(ARGV)).err", 0, *call),
            client.eval("return redis.pcall(unpack(ARGV)).err", 1, ROW, *call),
            client.fcall("run", 0, *call),
        ):
            assert caught.startswith(b"NOPERM") or b"ermission" in caught, (call, caught)
    assert state(admin) == before
    assert client.eval("return redis.call('FS.GET', KEYS[1])", 1, ROW) == [b"age", 1]
    assert client.eval("return redis.call('FS.PUBLISH', KEYS[1], 'NOLOG', 'age', 2)", 1, ROW) is None


def test_a_user_that_changes_while_connected_is_checked_as_it_is_now(server, admin):
    client = user(server, "~*")
    assert fs(client, f"FS.GET {ROW}") == [b"age", 1]
    with client.pipeline() as transaction:
        transaction.watch("nothing")
        transaction.multi()
        transaction.execute_command("FS.PUBLISH", ROW, "age", 9)
        admin.execute_command("ACL", "SETUSER", "eve", "resetkeys", f"~{ROW}")
        before = state(admin)
        (refusal,) = transaction.execute(raise_on_error=False)
    assert isinstance(refusal, valkey.exceptions.NoPermissionError)
    for line in (f"FS.PUBLISH {ROW} age 9", f"FS.GET {OTHER}", "FS.DROP profile DATA", "FS.INFO profile"):
        with pytest.raises(valkey.exceptions.NoPermissionError):
            fs(client, line)
    admin.execute_command("ACL", "SETUSER", "eve", "-FS.GET")
    with pytest.raises(valkey.exceptions.NoPermissionError):
        fs(client, f"FS.GET {ROW}")
    assert state(admin) == before
    admin.execute_command("ACL", "SETUSER", "eve", "~*", "+FS.GET")
    assert fs(client, f"FS.PUBLISH {ROW} age 9")
    admin.execute_command("ACL", "DELUSER", "eve")
    with pytest.raises((valkey.ConnectionError, valkey.exceptions.AuthenticationError)):
        fs(client, f"FS.GET {ROW}")


def test_a_user_that_deletes_itself_keeps_nothing(server, admin):
    admin.execute_command("ACL", "SETUSER", "default", "resetkeys")
    try:
        client = user(server, "~*")
        with client.pipeline() as transaction:
            transaction.execute_command("ACL", "DELUSER", "eve")
            for call in (
                ["FS.SCAN", "profile", 0],
                ["FS.PUBLISH", ROW, "age", 9],
                ["FS.DROP", "profile", "DATA"],
            ):
                transaction.execute_command(*call)
            try:
                replies = transaction.execute(raise_on_error=False)[1:]
            except valkey.ConnectionError:
                replies = []  # The server closed the connection before they could be read.
        # What is left is the default user, whose keys are closed here.
        for reply in replies:
            assert reply == [b"0", []] or isinstance(reply, valkey.exceptions.NoPermissionError)
    finally:
        admin.execute_command("ACL", "SETUSER", "default", "allkeys")
    assert fs(admin, f"FS.GET {ROW}") == [b"age", 1]
    assert [view for view, *_ in fs(admin, "FS.VIEWS")] == [
        b"account",
        b"clicks",
        b"goods",
        b"profile",
        b"silent",
    ]


def test_effects_are_refused_from_every_client(server, admin):
    before = state(admin)
    for client in (admin, user(server, "~*")):
        for effect in (b"", b"\0", b"x" * 1000, b"\1\2\3"):
            with pytest.raises(valkey.exceptions.NoPermissionError):
                client.execute_command("FS.EFFECT", ROW, effect)
            with pytest.raises(valkey.exceptions.NoPermissionError):
                client.eval("return redis.call('FS.EFFECT', KEYS[1], ARGV[1])", 1, ROW, effect)
            with client.pipeline() as transaction:
                transaction.execute_command("FS.EFFECT", ROW, effect)
                (refusal,) = transaction.execute(raise_on_error=False)
            assert isinstance(refusal, valkey.exceptions.NoPermissionError)
    assert state(admin) == before


def test_effects_are_refused_from_clients_of_a_replica(fresh_server):
    primary = fresh_server()
    furnish(primary.client())
    replica = primary.replica({"replica-read-only": "no"})
    client = replica.client()
    before = state(client)
    with pytest.raises(valkey.exceptions.NoPermissionError):
        client.execute_command("FS.EFFECT", ROW, "x")
    assert state(client) == before


# What the server tells of commands


def commands(names: str) -> set[str]:
    """Commands by the server's own names, a subcommand's with a bar in it."""
    return {f"FS.{name}" for name in names.split()}


ADMIN = commands(
    "REGISTER ALTER DROP CONSUMER CONSUME REPLAY COPY TRIM EFFECT BASELINE SERVICE|SET SERVICE|DEL"
)
READING = commands(
    "GET MGET TENSOR SCAN EXPLAIN DESCRIBE VIEWS INFO DRIFT SERVE RANK SERVICE|GET SERVICE|LIST"
)
WRITING = commands("PUBLISH MPUBLISH DEL")
HELP = commands("HELP SERVICE|HELP")


ALL = ADMIN | READING | WRITING | HELP


def allowed(admin, rules: str) -> set[str]:
    """Which of our commands these rules allow. (ACL CAT of 8.0 knows built-in commands alone.)"""
    words = {"FS.CONSUMER": ["START", "profile"], "FS.TRIM": ["profile", "MAXLEN", "5"], "FS.VIEWS": []}
    admin.execute_command("ACL", "SETUSER", "eve", "reset", "on", "nopass", "~*", *rules.split())
    commands = set()
    for command in ALL:
        own = command.split("|")
        arity = admin.execute_command("COMMAND", "INFO", command)[command]["arity"]
        arguments = words.get(command, [ROW] * (abs(arity) - len(own)))
        if admin.execute_command("ACL", "DRYRUN", "eve", *own, *arguments) == b"OK":
            commands.add(command)
    return commands


def test_commands_are_in_the_categories_of_what_they_do(admin):
    listed = {name.decode() for name in admin.execute_command("COMMAND LIST", "FILTERBY", "MODULE", "fs")}
    assert listed - {"FS.SERVICE"} == ALL
    for rules, expected in [
        ("+@fs", ALL),
        ("+@read", READING),
        ("+@write", ADMIN | WRITING),
        ("+@admin", ADMIN),
        ("+@dangerous", ADMIN),
        ("+@fs -@dangerous", READING | WRITING | HELP),
        ("+@write -@admin", WRITING),
        ("+@all -@fs", set()),
        ("+FS.GET +fs.publish", commands("GET PUBLISH")),
        ("+fs.service|get", commands("SERVICE|GET")),
        ("+fs.service", commands("SERVICE|SET SERVICE|GET SERVICE|DEL SERVICE|LIST SERVICE|HELP")),
        ("+fs.service -fs.service|set -fs.service|del", commands("SERVICE|GET SERVICE|LIST SERVICE|HELP")),
        ("+@read -fs.service", READING - commands("SERVICE|GET SERVICE|LIST")),
        ("+fs.serve +FS.RANK", commands("SERVE RANK")),
    ]:
        assert allowed(admin, rules) == expected, rules
    assert allowed(admin, "+@fast") == ALL - allowed(admin, "+@slow")
    assert commands("GET PUBLISH") <= allowed(admin, "+@fast")


def test_the_keys_of_a_call_are_declared(admin):
    for line, keys, flags in [
        (f"FS.GET {ROW} WITHSTATUS age", [ROW], {"RO", "access"}),
        (f"FS.EXPLAIN {ROW}", [ROW], {"RO", "access"}),
        (f"FS.MGET age,b {ROW} {OTHER}", [ROW, OTHER], {"RO", "access"}),
        (f"FS.TENSOR * {OTHER} {ROW} {ROW}", [OTHER, ROW, ROW], {"RO", "access"}),
        (f"FS.PUBLISH {ROW} AT 5 age 1", [ROW], {"RW", "update"}),
        (f"FS.MPUBLISH {ROW} {{}} {OTHER} {{}}", [ROW, OTHER], {"RW", "update"}),
        (f"FS.DEL {ROW} {OTHER}", [ROW, OTHER], {"RM", "delete"}),
        (f"FS.EFFECT {ROW} x {LOG} y", [ROW, LOG], {"RW", "update"}),
    ]:
        assert admin.execute_command("COMMAND GETKEYS", *line.split()) == keys
        told = admin.execute_command("COMMAND GETKEYSANDFLAGS", *line.split())
        assert [(k.decode(), {flag.decode() for flag in own}) for k, own in told] == [
            (k, flags) for k in keys
        ], line


def test_commands_without_keys_declare_none(admin):
    for line in KEYLESS:
        with pytest.raises(valkey.ResponseError, match="no key arguments"):
            admin.execute_command("COMMAND GETKEYS", *line.split())
