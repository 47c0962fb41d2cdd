"""Key rules of users, drawn at random, and what the server thinks of them: HGETALL of each row is the oracle."""

import random

import valkey
from profile_view import module_figures

IDS = [b"u1", b"u2", b"i1", b"a", b"ab", b"*", b"[", b"\\", b"u*", b"\xff\0", b"x:y", b" "]
# Of all rows of a view, of some, of none; with brackets that are never closed and stars that are none.
PATTERNS = """
fs:v1:profile:* fs:v1:account:* fs:v1:goods:* fs:v1:clicks:* fs:v1:clicks:u1:* fs:* ** fs:v?:* fs:v1:[a-z]*:*
fs:v1:profile:u1 fs:v1:account:u1 fs:v1:goods:i1 fs:v1:clicks:u1:i1 fs:v1:*1 fs:v1:*[12] fs:v1:*:[^a]* fs:v1:*:\\*
fs:v1:profile:u* fs:v1:profile:?* fs:v1:profile:[au]* fs:v1:profile:[*] fs:v1:profile:[* fs:v1:profile[:*
fs:v1:account[^x-z* fs:v1:goods:??* fs:v1:g*s:*a* fs:v1:clicks[:][u]* fs:v1:clicks:\\* fs:v1:goods:\\[ fs:v2:*
fs:v1:profile: fs:v1:profile fs:v1:account:*x fs:v1:goods:i1* FS:V1:* fs:v1:clicks:*:* fs:v1:*[:* fs:stream:* fs:w1:*
fs:v1:*:u* fs:v1:goods[:
"""
ALL_KEYS = (
    ["~*"],
    ["%RW~*"],
    ["%R~*", "%W~*"],
    ["%W~*"],
    ["(+@all ~*)"],
    ["(+@read %R~*)", "(+@write %W~*)"],
)


def some_ids(draw: random.Random) -> list[bytes]:
    """Two at least."""
    return draw.choices(IDS, k=draw.choice([2, 3, 6]))


def some_rules(draw: random.Random) -> list[str]:
    if draw.random() < 0.05:
        return draw.choice(ALL_KEYS)
    rules = []
    for _ in range(draw.choice([1, 2, 4, 8])):
        right = draw.choices(["%R~", "~", "%RW~", "%W~"], weights=[6, 4, 2, 1])[0]
        rule = right + draw.choice(PATTERNS.split())
        # A selector stands for itself, with the commands of the oracle and of the service.
        rules.append(draw.choice([rule, rule, rule, f"(+@all {rule})", f"(+@read {rule})"]))
    return rules


def may_read(client, key: bytes) -> bool:
    try:
        client.hgetall(key)
    except valkey.exceptions.NoPermissionError:
        return False
    return True


def check_service(admin, client, call: list, keys: list[bytes], rules: list[str]) -> bool:
    """Does the server let this user, `eve`, read all of these rows? The service must be of its opinion."""
    closed = {key for key in keys if not may_read(client, key)}
    served = module_figures(admin)["rows_served"]
    admin.acl_log_reset()
    try:
        client.execute_command(*call)
    except valkey.exceptions.NoPermissionError as refusal:
        assert closed, (rules, call, refusal)
        (entry,) = (dict(zip(e[::2], e[1::2], strict=True)) for e in admin.execute_command("ACL", "LOG"))
        assert (entry[b"username"], entry[b"reason"]) == (b"eve", b"key")
        assert entry[b"object"] in closed, (rules, call, entry)
        assert module_figures(admin)["rows_served"] == served
    else:
        assert not closed, f"{call} is served by {rules} although these are closed: {closed}"
        assert admin.execute_command("ACL", "LOG") == []
    return not closed
