"""Damaged model files: as a bad disk or network makes them, and as somebody may forge them."""

from __future__ import annotations

import copy
import json
import random
import zlib
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load, save

from rlprune.deploy.spec import SCHEMA

VERSION = {"rlprune_schema": str(SCHEMA)}
_NAMES = ("relu", "cat", "pad", "reshape", "getitem", "size", "per_channel", "floordiv", "eval")
_KINDS = ("input", "gated", "follower", "conv", "linear", "affine", "expand", "call", "output")
_NUMBERS = (0, 1, -1, 2, 3, 255, 1 << 20, 1 << 31, 1 << 40, 1 << 63, 10**30, 10**400, -(10**400))
_REALS = (0.0, -1.0, 0.5, 1e-300, 1e300, float("nan"), float("inf"))
_OTHERS = (None, True, False, "", "x", "0", [], {}, [[]], {"r": 0}, {"r": -1}, {"s": [0, 1, 2]})


def mutate(content: bytes, rng: random.Random) -> bytes:
    """The file with a random fault, half of the time inside its description."""
    if rng.random() < 0.5:
        return rng.choice(_BYTES)(content, rng)
    return _described(content, rng)


# --- bytes ----------------------------------------------------------------------------------


def _flip(content: bytes, rng: random.Random) -> bytes:
    """One to eight bits, anywhere or in the header."""
    changed = bytearray(content)
    end = rng.choice((len(changed), 8, min(400, len(changed))))
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def _insert(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + rng.randbytes(rng.randint(1, 64)) + content[at:]


def _overwrite(content: bytes, rng: random.Random) -> bytes:
    at, noise = rng.randrange(len(content)), rng.randbytes(rng.randint(1, 64))
    return content[:at] + noise + content[at + len(noise) :]


def _swap(content: bytes, rng: random.Random) -> bytes:
    """Two blocks of equal length change places."""
    size = rng.randint(1, len(content) // 4)
    first = rng.randrange(len(content) - 2 * size + 1)
    second = rng.randrange(first + size, len(content) - size + 1)
    changed = bytearray(content)
    changed[first : first + size] = content[second : second + size]
    changed[second : second + size] = content[first : first + size]
    return bytes(changed)


def _header(content: bytes, rng: random.Random) -> bytes:
    """Another word or number in safetensors' own header, of the same length."""
    end = 8 + int.from_bytes(content[:8], "little")
    changed = bytearray(content)
    at = rng.randrange(8, end)
    changed[at] = rng.choice(b'0123456789{}[],:" FUIB')
    return bytes(changed)


_BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip,
    _truncate,
    _insert,
    _overwrite,
    _swap,
    _header,
)


# --- the description ------------------------------------------------------------------------


def _described(content: bytes, rng: random.Random) -> bytes:
    """One to three changes in the JSON text, which is packed again."""
    blocks = load(content)
    plain = json.loads(zlib.decompress(blocks["description"].numpy().tobytes()))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        plain = _changed(plain, rng)
    text = json.dumps(plain).encode()
    kind = rng.random()
    if kind < 0.05:  # no JSON any more
        text = rng.choice(_BYTES[:5])(text, rng)
    elif kind < 0.1:  # deeper, or longer, than Python likes
        number = b"7" * 5000 if rng.random() < 0.5 else b"[" * 3000 + b"]" * 3000
        text = text.replace(b"1", number, 1)
    packed = zlib.compress(text)
    blocks["description"] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    return save(blocks, VERSION)


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all values below ``value``."""
    if not isinstance(value, dict | list):
        return []
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        found.append((*at, key))
        found += _places(item, (*at, key))
    return found


def _changed(plain: Any, rng: random.Random) -> Any:
    """A copy with one value changed, in any part of it alike."""
    plain = copy.deepcopy(plain)
    if not isinstance(plain, dict) or not plain:
        return plain
    part = rng.choice(list(plain))
    root: Any = plain[part]
    if part == "model" and isinstance(root, dict) and root:
        part = rng.choice(list(root))
        root, holder = root[part], root
    else:
        holder = plain
    places = _places(root) if isinstance(root, dict | list) else []
    if not places:
        holder[part] = _other(root, rng)
        return plain
    *path, key = rng.choice(places)
    for step in path:
        root = root[step]
    if isinstance(root, list) and rng.random() < 0.3:
        _shuffle(root, key, rng)
    elif rng.random() < 0.1:
        del root[key]
    else:
        root[key] = _other(root[key], rng)
    return plain


def _shuffle(items: list[Any], at: int, rng: random.Random) -> None:
    """An item less, twice, many times, or at another place."""
    kind = rng.randrange(4)
    if kind == 0:
        del items[at]
    elif kind == 1:
        items.insert(at, copy.deepcopy(items[at]))
    elif kind == 2:
        items[at:at] = [items[at]] * rng.choice((2, 100, 1000))
    else:
        items.append(items.pop(at))


def _other(value: Any, rng: random.Random) -> Any:
    """Something else: near, of the same type, or of none that fits."""
    kind = rng.random()
    if isinstance(value, int) and not isinstance(value, bool) and kind < 0.7:
        return rng.choice((value + 1, value - 1, -value, 2 * value, rng.choice(_NUMBERS)))
    if isinstance(value, float) and kind < 0.7:
        return rng.choice((value * 2, -value, value + 1e-3, rng.choice(_REALS)))
    if isinstance(value, str) and kind < 0.7:
        return rng.choice((*_NAMES, *_KINDS, value + "x", value[:-1], "x" * 10_000))
    if kind < 0.8:
        return rng.choice((*_NUMBERS, *_REALS))
    if kind < 0.85:
        nested: Any = value
        for _ in range(rng.choice((2, 20, 100))):
            nested = [nested]
        return nested
    return copy.deepcopy(rng.choice(_OTHERS))
