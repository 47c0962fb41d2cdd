"""Random changes of the rows of column_cases.py by anybody: every kind of command that can touch or replace a key."""

import json
import random
import struct
from collections import Counter, deque

import valkey
from column_cases import CATEGORIES, CONTEXT_ID, IDS, PASSING, SCHEMA, VIEWS, code, row_key
from windowed_view import clock_ms

# What others are made from.
SOURCES = {
    "l": ["RPUSH", "l", "3", "1", "2"],
    "set": ["SADD", "set", "a", "b"],
    "zset": ["ZADD", "zset", "1", "a", "2", "b"],
    "geo": ["GEOADD", "geo", "13.3", "38.1", "a", "15", "37.5", "b"],
    "pf": ["PFADD", "pf", "a", "b"],
    "bits": ["SET", "bits", "abc"],
}
# Each begins with how often it comes; several calls stand on one line. `K`: a row's key, `J`: another one.
ROWS = """
3 DEL K
2 UNLINK K J
2 RENAME K J
1 RENAMENX K J
2 COPY K J REPLACE
1 COPY K J
1 COPY K K DB 1 REPLACE
1 MOVE K 1
2 SELECT 1|MOVE K 0|SELECT 0
1 SELECT 1|COPY K J DB 0 REPLACE|SELECT 0
1 SELECT 1|DEL K|SELECT 0
2 PEXPIRE K ms
1 EXPIRE K 1
1 EXPIRE K -1
1 PEXPIREAT K at
1 EXPIREAT K 1
1 PEXPIRE K 1
2 PERSIST K
1 TOUCH K
1 EXPIRE K 100 GT
1 PEXPIRE K ms LT
3 HSET K field value
2 HMSET K field value a 5
2 HSETNX K field value
2 HDEL K field
2 HINCRBY K a 1
2 HINCRBYFLOAT K f 0.25
1 HSET K _updated_at sec
1 HSET K _times times
1 HDEL K _times
1 HDEL K _updated_at
1 HDEL K a f b c v t s _updated_at _times _feature_view
1 HEXPIRE K 1 FIELDS 1 field
2 HPEXPIRE K ms FIELDS 2 field a
1 HPEXPIREAT K at FIELDS 1 field
1 HEXPIREAT K 1 FIELDS 1 field
1 HPERSIST K FIELDS 2 field a
1 HPEXPIRE K 1 FIELDS 1 field
1 HPEXPIRE K ms FIELDS 1 _updated_at
1 HPEXPIRE K ms FIELDS 1 _times
1 HPEXPIRE K ms FIELDS 1 s
2 HSETEX K PX ms FIELDS 1 field value
1 HSETEX K KEEPTTL FIELDS 1 field value
1 HGETEX K PX ms FIELDS 1 field
1 HGETEX K PERSIST FIELDS 1 field
1 HGETDEL K FIELDS 1 field
2 SETRANGE K at80 byte
1 SETBIT K at640 1
1 BITFIELD K SET u8 at640 77
1 APPEND K byte
1 GETEX K PX ms
1 GETEX K PERSIST
1 GETDEL K
2 SET K string
1 SET K string PX ms
1 SET K string KEEPTTL
1 SET K string XX GET
1 GETSET K string
1 PSETEX K ms string
1 MSET K string J string
1 MSETNX K string
1 SETNX K string
1 BITOP OR K J J
1 BITOP AND K J nothing
3 RESTORE K 0 dump REPLACE
2 RESTORE K ms dump REPLACE
2 RESTORE K at dump REPLACE ABSTTL
1 RESTORE K 0 dump REPLACE IDLETIME 5
1 RESTORE K 0 dump
2 FS.DEL K J
1 FS.COPY h FROM 1 TO 2
1 FS.COPY h FROM 2 TO 1
1 HSET wK a 1
1 DEL wK
1 PEXPIRE wK ms
""".strip().splitlines()
# What replaces a row by what is none: rarer, so that rows stay readable.
OTHERS = """
2 SET K junk
1 INCR K
1 INCRBYFLOAT K 1
1 SETEX K 9 junk
1 SADD K 1
1 LPUSH K x
1 RPUSH K x
1 ZADD K 1 x
1 XADD K * f v
1 XGROUP CREATE K group $ MKSTREAM
1 PFADD K a b
1 PFMERGE K pf
1 SUNIONSTORE K set
1 SINTERSTORE K set
1 SDIFFSTORE K set
1 SINTERSTORE K set nothing
1 ZUNIONSTORE K 1 zset
1 ZINTERSTORE K 1 zset
1 ZDIFFSTORE K 1 zset
1 ZRANGESTORE K zset 0 -1
1 ZUNIONSTORE K 1 nothing
1 SORT l STORE K
1 SORT nothing STORE K
1 GEOSEARCHSTORE K geo FROMMEMBER a BYRADIUS 500 km ASC
1 GEORADIUS geo 15 37 500 km STORE K
1 GEOADD K 13 38 a
1 BITOP NOT K bits
1 LMOVE l K LEFT RIGHT
1 RPOPLPUSH l K
1 SMOVE set K a
1 RENAME set K
1 COPY zset K REPLACE
1 BLMOVE l K LEFT LEFT 0.01
1 SPOP K 9
1 LPOP K 9
1 ZPOPMIN K 9
1 LMPOP 1 K LEFT COUNT 9
1 SREM K 1 a b
1 LTRIM K 1 0
1 ZREMRANGEBYRANK K 0 -1
""".strip().splitlines()
WHOLE = """
1 FLUSHDB
1 FLUSHALL
1 FLUSHALL ASYNC
1 FLUSHDB ASYNC
3 SWAPDB 0 1
1 SWAPDB 1 0
""".strip().splitlines()


def an_update(draw: random.Random) -> dict:
    """Values of some features, nulls among them."""
    drawn = {
        "a": draw.randrange(-9, 99),
        "f": draw.random(),
        "s": "text" * draw.randrange(4),
        "b": draw.random() < 0.5,
        "c": draw.choice(CATEGORIES),
        "v": [draw.random() for _ in range(3)],
        "t": 1_700_000_000_000 + draw.randrange(9**9),
        "n": 1,
    }
    names = draw.sample(sorted(drawn), draw.randint(1, len(drawn)))
    return {name: None if name != "n" and draw.random() < 0.15 else drawn[name] for name in names}


class Changes:
    """Random commands on rows of these views, of all kinds that the server has. `done`: how often by name."""

    FIELDS = "abcftvs"

    def __init__(self, server, draw: random.Random):
        self.client, self.draw = server.client(), draw
        self.has = {name.upper() for name in self.client.execute_command("COMMAND LIST")}
        # Replies as they are: the client's readers of replies know not all forms of all commands.
        self.bare = server.client()
        self.bare.response_callbacks.clear()
        self.done: Counter = Counter()
        self.dumps, self.strings = [], [b"junk"]
        self.history: deque = deque(maxlen=2_000)
        self.ways = {"plain": 6, "transaction": 2, "script": 2, "function": 1}
        self.client.execute_command(
            "FUNCTION",
            "LOAD",
            "REPLACE",
            "#!lua name=changes\nserver.register_function('change', function(keys, args) "
            "for call in string.gmatch(args[1], '%d+') do local words = {} "
            "for i = 1, tonumber(call) do words[i] = table.remove(args, 2) end "
            "server.pcall(unpack(words)) end return 'OK' end)",
        )

    SCRIPT = (
        "local at = 2 for call in string.gmatch(ARGV[1], '%d+') do "
        "server.pcall(unpack(ARGV, at, at + call - 1)) at = at + call end return 'OK'"
    )

    def key(self) -> bytes:
        draw = self.draw
        view = draw.choices(list(VIEWS), weights=[4, 2, 4, 2, 2])[0]
        id_ = draw.choice(IDS)
        return row_key(view, CONTEXT_ID + b":" + id_ if view == "both@1" else id_)

    def word(self, word: str, key: bytes, other: bytes):
        draw = self.draw
        now_ms = clock_ms(self.client) if word in ("at", "sec", "times") else 0
        match word:
            case "K":
                return key
            case "J":
                return other
            case "wK":
                return key.replace(b"fs:v", b"fs:w", 1)
            case "ms":
                return draw.choice([1, 30, 100, 1000, 5000])
            case "at":
                return now_ms + draw.choice([-5, 1, 30, 1000, 5000])
            case "sec":
                return (now_ms - draw.randrange(4000)) / 1000
            case "times":
                return json.dumps(
                    {"a": now_ms / 1000, draw.choice("fc"): (now_ms - draw.randrange(2000)) / 1000}
                )
            case "field":
                return draw.choice(self.FIELDS)
            case "value":
                return draw.choice(["1", "zz", "0.5", "x", "y", struct.pack("<3f", 1, 2, draw.random())])
            case "at80":
                return draw.randrange(80)
            case "at640":
                return draw.randrange(640)
            case "byte":
                return draw.randbytes(1)
            case "dump":
                return draw.choice(self.dumps) if self.dumps else b"none"
            case "string":
                return draw.choice(self.strings)
        return word

    def publish(self) -> list[list]:
        draw, key = self.draw, self.key()
        at_ms = clock_ms(self.client) - draw.choice([0, draw.randrange(2500)])
        row = json.dumps(an_update(draw))
        view = key.split(b":")[2].decode()
        entry = {"entity_id": key.split(b":", 3)[3], "features": row, "timestamp": at_ms / 1000}
        flat = [word for pair in entry.items() for word in pair]
        return draw.choices(
            [
                [["FS.PUBLISH", key, "AT", at_ms, "JSON", row]],
                [["FS.PUBLISH", key, "AT", at_ms, "NOLOG", "JSON", row]],
                [["FS.PUBLISH", key, "JSON", row]],
                [["FS.PUBLISH", key, "a", draw.randrange(99), "c", draw.choice(CATEGORIES)]],
                [
                    [
                        "FS.MPUBLISH",
                        *(word for _ in range(6) for word in (self.key(), json.dumps(an_update(draw)))),
                    ]
                ],
                [["XADD", f"fs:stream:{view}", "*", *flat]],
            ],
            weights=[4, 2, 2, 2, 4, 2],
        )[0]

    def define(self) -> list[list]:
        """Changes of definitions and services; those that come out as they were are of no consequence."""
        draw = self.draw
        default, ttl = draw.randrange(9), draw.choice(["", "TTL 1s", "TTL 2s"])
        schema = SCHEMA.replace("DEFAULT 3", f"DEFAULT {default}")
        again = f"FS.REGISTER h VERSION 2 {VIEWS['h@2']}".replace(SCHEMA, schema).split()
        return draw.choice(
            [
                [["FS.DROP", "h", "VERSION", "2"], again],
                [["FS.DROP", "h", "VERSION", "2", "DATA"], again],
                [f"FS.ALTER h VERSION 1 TTL {draw.choice(['3s', '2s', '4s'])}".split()],
                [f"FS.ALTER g TTL {draw.choice(['1s', '9s', 'NONE'])}".split()],
                [f"FS.ALTER h VERSION 2 ADD more{draw.randrange(3)} INT DEFAULT {default} {ttl}".split()],
                [PASSING.setting()],
                [["FS.SERVICE", "DEL", "passing"]],
                [["FS.REPLAY", "h", "FROM", "0"]],
                [["FS.REPLAY", "p", "FROM", "0"]],
            ]
        )

    def native(self, templates) -> list[list]:
        templates = [line for line in templates if self.is_there(line)]
        line = self.draw.choices(templates, weights=[int(t.split()[0]) for t in templates])[0]
        key, other = self.key(), self.key()
        # Mostly of the same kind: what is renamed and copied stays a row.
        if self.draw.random() < 0.6:
            other = key[: len(key.rsplit(b":", 1)[0]) + 1] + self.draw.choice(IDS)
        calls = [call.split() for call in line.partition(" ")[2].split("|")]
        calls = [[self.word(word, key, other) for word in call] for call in calls]
        source = next((word for word in calls[0] if word in SOURCES), None)
        return [SOURCES[source], *calls] if source else calls

    def is_there(self, line: str) -> bool:
        return all(call.split()[0].encode() in self.has for call in line.partition(" ")[2].split("|"))

    def some(self) -> list[list]:
        """One change, of one call or several."""
        kinds = {"publish": 50, "rows": 30, "others": 2, "define": 1, "whole": 0.2}
        match self.draw.choices(list(kinds), weights=list(kinds.values()))[0]:
            case "publish":
                return self.publish()
            case "rows":
                return self.native(ROWS)
            case "others":
                return self.native(OTHERS)
            case "define":
                return self.define()
        return self.native(WHOLE)

    def run(self, calls: list[list], way: str | None = None) -> None:
        """Executes calls in some way; what is refused is refused."""
        if self.draw.random() < 0.2:
            self.keep_copies()
        way = way or self.draw.choices(list(self.ways), weights=list(self.ways.values()))[0]
        lengths = " ".join(str(len(call)) for call in calls)
        flat = [word for call in calls for word in call]
        if way in ("plain", "transaction"):
            with self.bare.pipeline(transaction=way == "transaction") as pipeline:
                for call in calls:
                    pipeline.execute_command(*call)
                replies = pipeline.execute(raise_on_error=False)
            names = [call[0] for call, reply in zip(calls, replies, strict=True) if not code(reply)]
        else:
            how = ["EVAL", self.SCRIPT, 0] if way == "script" else ["FCALL", "change", 0]
            assert self.client.execute_command(*how, lengths, *flat) == b"OK"
            names = []
        self.note(way, calls)
        self.done.update([*names, way])

    def note(self, way: str, calls) -> None:
        self.history.append((clock_ms(self.client), way, calls))

    def told_of(self, ids: list[bytes]) -> str:
        """What was last done to rows of these ids, or to all."""

        def is_of(call: list) -> bool:
            keys = [word for word in call if isinstance(word, bytes)]
            return not keys or any(key.endswith(id_) for key in keys for id_ in ids)

        told = [
            f"{time_ms} {way} {call}"
            for time_ms, way, calls in self.history
            for call in calls
            if call and is_of(call)
        ]
        return "\n".join(told[-40:])

    def keep_copies(self) -> None:
        """Rows as they are now, to be put back some time."""
        key = self.key()
        dump = self.client.dump(key)
        self.dumps = [*self.dumps[-20:], *([dump] if dump else [])]
        try:
            string = self.client.get(key)
        except valkey.ResponseError:
            return
        self.strings = [*self.strings[-20:], *([string] if string else [])]
