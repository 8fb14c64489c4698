"""One way to malform the content of a file, chosen by a random generator: of bytes, of text, of JSON and of tables."""

import json
import random
from copy import deepcopy
from io import BytesIO
from typing import Any

ODD_NUMBERS = (0, -1, 1, 2**31, -(2**63), 2**64, 10**400, 1e308, -1e-320, float("nan"), float("inf"), float("-inf"))
ODD_TEXTS = (
    "", " ", "\0", "a\0b", "\ud800", "\u202e", "\ufeff", "é" * 3, "x" * 100_000, "../../etc/passwd", "<script>",
    "{{ 1/0 }}", "%s%n", "\r\n", "'", '"', "nan", "-0", "1e999", "None", "null", "-", "~", "$HOME", "*", "[", "\\",
    "\x1b[2J",
)  # fmt: skip
ODD = (*ODD_NUMBERS, *ODD_TEXTS, None, True, False, [], {}, [[]], [None], {"": {}}, [1, "a"], {"a": [1]})


def malformed(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """What was done, and what came of it."""
    ways = [cut, flipped, zeroed, joined, inserted, repeated, encoded, nested, noise]
    if content[:4] == b"PAR1":
        ways += [table] * 6
    elif content[:1] in b"[{" and content:
        ways += [tree] * 9
    elif b"\n" in content[:4000]:
        ways += [lines] * 6
    way = rng.choice(ways)
    return way.__name__, way(content, rng)


def cut(content: bytes, rng: random.Random) -> bytes:
    at = rng.choice((rng.randrange(len(content) + 1), rng.randrange(min(64, len(content) + 1))))
    return content[:at] if rng.random() < 0.8 else content[at:]


def flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content or b"\0")
    ends = rng.random() < 0.4  # where headers stand
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        at = rng.randrange(len(changed))
        if ends:
            at = rng.choice((at % 200, -1 - at % 400)) % len(changed)
        changed[at] = changed[at] ^ (1 << rng.randrange(8)) if rng.random() < 0.5 else rng.randrange(256)
    return bytes(changed)


def zeroed(content: bytes, rng: random.Random) -> bytes:
    """A block that the disk never wrote."""
    at, size = rng.randrange(len(content) + 1), rng.choice((1, 16, 512, 4096))
    return content[:at] + bytes(len(content[at : at + size])) + content[at + size :]


def joined(content: bytes, rng: random.Random) -> bytes:
    return content + rng.choice((content, b"\0", b"\n", b"}", b"]", b",", b"\xff", content[: len(content) // 2]))


def inserted(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    odd = (
        b"\0",
        b'"',
        b"\n",
        b"\r",
        b"{",
        b"[",
        b",",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"9" * 5000,
        b"\\u0000",
        b"\x1b[2J",
    )
    return content[:at] + rng.choice(odd) + content[at:]


def repeated(content: bytes, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(content) + 1), rng.choice((1, 10, 100))
    return content[: at + size] + content[at : at + size] * rng.choice((1, 2, 50)) + content[at + size :]


def encoded(content: bytes, rng: random.Random) -> bytes:
    text = content.decode("utf-8", errors="replace")
    return text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7", "utf-16-be")), errors="replace")


def nested(content: bytes, rng: random.Random) -> bytes:
    open_, close = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"((", b"))"), (b'"\\', b'"'), (b"a.", b"=1")))
    depth = rng.choice((10, 900, 5_000, 100_000))
    return open_ * depth + rng.choice((content, b"1", b"")) + close * rng.choice((depth, 0))


def noise(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.choice((0, 4, 12))] + rng.randbytes(rng.choice((0, 1, 40, 3000)))


def lines(content: bytes, rng: random.Random) -> bytes:
    """Rows dropped, doubled, exchanged; fields exchanged or odd; of JSON lines, TOML and CSV."""
    rows = content.splitlines(keepends=True)
    at = rng.randrange(len(rows))
    way = rng.randrange(6)
    if way == 0:
        del rows[at]
    elif way == 1:
        rows.insert(at, rows[rng.randrange(len(rows))])
    elif way == 2:
        rng.shuffle(rows)
    elif rows[at][:1] == b"{":
        rows[at] = tree(rows[at], rng) + b"\n"
    elif b" = " in rows[at]:
        written = rng.choice((_json(rng.choice(ODD)), b"1979-05-27", b"0x7fffffffffffffffffff", b"'''", b"inf", b"nan"))
        rows[at] = rows[at].partition(b" = ")[0] + b" = " + written + b"\n"
    else:
        mark = rng.choice((b",", b"\t", b";", b'"'))
        fields = rows[at].rstrip(b"\n").split(mark)
        rng.shuffle(fields)
        fields.append(rng.choice((b"", _json(rng.choice(ODD)))))
        rows[at] = mark.join(fields) + rng.choice((b"\n", b"", b"\r\n"))
    return b"".join(rows)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", errors="surrogatepass")


def tree(content: bytes, rng: random.Random) -> bytes:
    """Fields of JSON dropped, doubled, renamed, exchanged, made odd, at any depth."""
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        return flipped(content, rng)
    for _ in range(rng.choice((1, 1, 2, 5))):
        _change(told, rng)
    return _json(told)


def _change(told: Any, rng: random.Random) -> None:
    while isinstance(told, dict | list) and told:
        keys = list(told) if isinstance(told, dict) else list(range(len(told)))
        key = rng.choice(keys)
        if isinstance(told[key], dict | list) and told[key] and rng.random() < 0.6:
            told = told[key]
            continue
        other, way = rng.choice(keys), rng.randrange(6)
        if way == 0:
            del told[key]
        elif way == 1:
            told[key], told[other] = told[other], told[key]
        elif way == 2 and isinstance(told, dict):
            told[rng.choice(("", str(key) + " ", str(key).upper(), "\0"))] = told.pop(key)
        elif way == 3 and isinstance(told[key], int) and not isinstance(told[key], bool):
            told[key] = told[key] * rng.choice((-1, 2, 10**6)) + rng.choice((0, 1, -1))
        else:
            told[key] = deepcopy(rng.choice(ODD))  # which may be changed next
        return


def table(content: bytes, rng: random.Random) -> bytes:
    """A whole table that says other things: columns gone, renamed, of other types; rows gone, doubled, null, odd."""
    import polars as pl

    try:
        frame = pl.read_parquet(BytesIO(content))
    except BaseException:  # it was malformed before; polars may panic
        return flipped(content, rng)
    if not frame.width:
        return flipped(content, rng)
    name, other, way = rng.choice(frame.columns), rng.choice(frame.columns), rng.randrange(9)
    column = frame[name]
    if way == 0:
        frame = frame.drop(name)
    elif way == 1:
        frame = frame.rename({name: rng.choice(("", name + " ", name.upper(), "a\0b"))})
    elif way == 2:
        frame = frame.with_columns(frame[other].alias(name))
    elif way == 3:
        frame = frame.with_columns(pl.lit(None, dtype=column.dtype).alias(name))
    elif way == 4:
        kind = rng.choice((pl.String, pl.Float64, pl.Int64, pl.UInt8, pl.Boolean, pl.Binary, pl.Date, pl.Categorical))
        frame = frame.with_columns(pl.Series(name, [None] * len(frame), dtype=kind))
    elif way == 5:
        frame = frame.head(rng.choice((0, 1, len(frame) // 2)))
    elif way == 6:
        frame = pl.concat([frame, frame.head(rng.randint(1, 5))])
    elif way == 7:
        odd = ODD_TEXTS if column.dtype == pl.String else ODD_NUMBERS
        values = column.to_list()
        for _ in range(min(len(values), rng.choice((1, 1, 50)))):
            values[rng.randrange(len(values))] = _fitting(rng.choice(odd), column.dtype)
        frame = frame.with_columns(pl.Series(name, values, dtype=column.dtype, strict=False))
    else:
        frame = frame.select(pl.struct(pl.all()).alias(name))
    made = BytesIO()
    frame.write_parquet(made)
    return made.getvalue()


def _fitting(value: Any, dtype: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace").decode()
    if dtype.is_integer():
        return int(value) % 2**31 - 2**30 if abs(value) < 1e300 else None
    return float(value) if abs(value) < 1e300 or value != value or value in (float("inf"), float("-inf")) else 1e308
