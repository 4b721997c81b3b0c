"""Ways in which files are damaged: bytes, pieces of text, and values of documents."""

from __future__ import annotations

import json
import random
import re
from typing import Any

_PIECES = (
    *(b'"', b"\n", b",", b"\0", b"\xff", b"nan", b"inf", b"-1", b"1e400", b"\xef\xbb\xbf"),
    *(b"\xff\xfe", b"{", b"[", b"]", b"}", b"&a ", b"*a", b"..", b"/", b"\\", b";", b"\t", b"'"),
    *(b"99999999999999999999", b"0", b"''", b"\r", b"\xe2\x80\xa8", b"**", b": ", b"- ", b"#"),
    *(b"<", b">", b"&amp;", b"<!DOCTYPE a>", b"<![CDATA[", b"%s", b"${x}", b"!!python/none ", b"~"),
    *(b"[" * 3000, b"{a: " * 3000, b"<a>" * 3000, b"9" * 5000, b'{"a":' * 3000, b"A&amp;" * 100000),
)
_VALUES = (
    *(None, True, False, 0, -1, 1, 10**30, -(10**30), 0.5, -1e308, 1e-320, float("nan")),
    *(
        float("inf"),
        "",
        "x",
        "../../../etc/passwd",
        "/etc/passwd",
        "\0",
        "\n",
        "\ud800",
        "a" * 5000,
    ),
    *("p0.png", "cat", "**/*", "[", "1,2", "nan", "NaN", "-", "C:\\a.png", "http://x/y.png"),
    *([], {}, [[]], [None], {"": None}, [1, 2, 3], [1, 2, 3, 4], [-5, -5, 1e9, 1e9], {"x": 1}),
)
_TEXTS = (
    *(
        "nan",
        "inf",
        "-inf",
        "-1",
        "0",
        "1e400",
        "99999999999999999999999",
        "",
        " ",
        "x",
        "''",
        '""',
    ),
    *("../..", "/", "/etc/passwd", "\\", "**", "[", "{", "null", "true", "0x10", "1_000", "١٢"),
    *(
        "é",
        "😀",
        "9" * 5000,
        "a" * 300,
        "1,5",
        "1;5",
        "\t",
        "%",
        "utf-7",
        "utf-16",
        "cp037",
        "rot13",
    ),
)
_TOKEN = re.compile(r"[\w.+-]+|\"[^\"]*\"")


def damage(content: bytes, random: random.Random) -> bytes:
    """Return a file's content with some of it changed.

    Args:
        content: The whole file.
        random: Decides what is changed, and how.
    """
    choice = random.random()
    if choice < 0.4:
        changed = _document(content, random)
        if changed is not None:
            return changed
    if choice < 0.7:
        changed = _tokens(content, random)
        if changed is not None:
            return changed
    return _bytes(content, random)


def _bytes(content: bytes, random: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 5, 20))):
        at = random.randrange(len(changed) + 1)
        # Headers decide how the rest is read.
        if random.random() < 0.3:
            at = min(at, random.randrange(64))
        kind = random.random()
        if kind < 0.3:
            changed[at:at] = random.choice(_PIECES) * random.choice((1, 1, 1, 50))
            if len(changed) > 1 << 22:
                return bytes(changed)
        elif kind < 0.45:
            del changed[at : at + random.randint(1, 10)]
        elif kind < 0.8:
            changed[at : at + 1] = bytes([random.choice((0, 1, 127, 255, random.randrange(256)))])
        elif kind < 0.88:
            del changed[at:]
        elif kind < 0.94:
            changed[at : at + 4] = random.choice(
                (b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\x7f\xff\xff\xff")
            )
        else:
            changed += changed[at : at + 200]
    return bytes(changed)


def _tokens(content: bytes, random: random.Random) -> bytes | None:
    """Put other words in the place of some, in a text; None for what is none."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    found = list(_TOKEN.finditer(text))
    if not found:
        return None
    for match in sorted(
        random.sample(found, min(len(found), random.choice((1, 1, 2, 4)))),
        key=lambda match: -match.start(),
    ):
        text = text[: match.start()] + random.choice(_TEXTS) + text[match.end() :]
    return text.encode(random.choice(("utf-8",) * 8 + ("utf-16", "utf-8-sig", "utf-32")))


def _document(content: bytes, random: random.Random) -> bytes | None:
    """Put other values in the place of some, in a JSON document; None for what is none."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    for _ in range(random.choice((1, 1, 1, 3))):
        value = _changed(value, random)
    return json.dumps(value).encode(errors="surrogatepass")


def _changed(value: Any, random: random.Random) -> Any:
    if not isinstance(value, dict | list) or not value or random.random() < 0.05:
        return random.choice(_VALUES)
    key = random.choice(list(value) if isinstance(value, dict) else range(len(value)))
    kind = random.random()
    if kind < 0.08:
        del value[key]
    elif kind < 0.12 and isinstance(value, dict):
        value[random.choice(("", "x", "id", "name", "0"))] = value.pop(key)
    elif kind < 0.16 and isinstance(value, list):
        value.insert(0, value[key])
    else:
        value[key] = _changed(value[key], random)
    return value
