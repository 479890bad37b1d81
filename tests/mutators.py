"""Ways to damage a file. Each takes its bytes, those of another file and a source of randomness."""

from __future__ import annotations

import copy
import json
import pickletools
import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from random import Random
from typing import Any

#: Integers at which something may turn over.
EXTREMES = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1)
NAMES = (
    *(b"posix\nsystem\n", b"builtins\neval\n", b"builtins\ngetattr\n", b"torch\nload\n", b"torch\nFloatStorage\n"),
    *(b"torch\nBoolStorage\n", b"torch\nHalfStorage\n", b"collections\nOrderedDict\n", b"builtins\nset\n"),
    *(
        b"torch._utils\n_rebuild_tensor_v2\n",
        b"torch._utils\n_rebuild_parameter\n",
        b"numpy\ndtype\n",
        b"numpy\nndarray\n",
    ),
    *(b"torch.storage\n_load_from_bytes\n", b"torch_utils.persistence\n_reconstruct_persistent_obj\n"),
    *(b"numpy.core.multiarray\n_reconstruct\n", b"numpy.core.multiarray\nscalar\n", b"_codecs\nencode\n"),
    *(b"numpy._core.numeric\n_frombuffer\n", b"dill._dill\n_create_array\n", b"copyreg\n_reconstructor\n"),
    *(b"dnnlib.tflib.network\nNetwork\n", b"torch.nn.modules.sparse\nEmbedding\n", b"os\nsystem\n"),
    *(b"pg_modules.networks_fastgan\nGenerator\n", b"pg_modules.blocks\nGLU\n", b"model\nGenerator\n"),
)
_CODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
_FORMATS = {"BININT": "<i", "BININT1": "<B", "BININT2": "<H", "BINPUT": "<B", "BINGET": "<B"}
_FORMATS |= {"LONG_BINPUT": "<I", "LONG_BINGET": "<I", "BINFLOAT": ">d", "FRAME": "<Q"}
_LENGTHS = {"BINUNICODE": "<I", "SHORT_BINUNICODE": "<B", "BINBYTES": "<I", "SHORT_BINBYTES": "<B", "LONG1": "<B"}

Mutator = Callable[[bytes, bytes, Random], bytes]


def flip_bits(data: bytes, other: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 2, 8, 64))):
        changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(changed)


def overwrite_a_run(data: bytes, other: bytes, random: Random) -> bytes:
    start, length = random.randrange(len(data)), random.choice((1, 2, 4, 8, 100, 5000))
    run = random.choice((bytes(length), b"\xff" * length, random.randbytes(length), data[-length:]))
    return data[:start] + run + data[start + length :]


def remove_or_insert_a_run(data: bytes, other: bytes, random: Random) -> bytes:
    start, length = random.randrange(len(data)), random.choice((1, 2, 4, 8, 100, 5000))
    if random.random() < 0.5:
        return data[:start] + data[start + length :]
    return data[:start] + random.randbytes(length) + data[start:]


def truncate(data: bytes, other: bytes, random: Random) -> bytes:
    return data[: random.choice((random.randrange(len(data)), random.randrange(min(len(data), 300)), len(data) - 1))]


def splice(data: bytes, other: bytes, random: Random) -> bytes:
    cut = random.randrange(len(data))
    return data[:cut] + other[random.randrange(len(other)) if random.random() < 0.5 else cut :]


def integer_to_extreme(data: bytes, other: bytes, random: Random) -> bytes:
    """Any aligned or unaligned place, as a length field would stand there."""
    start = random.randrange(min(len(data), random.choice((64, 4096, len(data)))))
    packed = struct.pack("<Q", random.choice(EXTREMES))[: random.choice((1, 2, 4, 8))]
    return data[:start] + packed + data[start + len(packed) :]


@lru_cache(maxsize=64)
def opcodes(data: bytes) -> tuple[tuple[str, int, int], ...]:
    """(name, start, end) of each opcode of the pickle that `data` begins with; what follows it is left alone."""
    found, ops = [], []
    try:
        for opcode, _, position in pickletools.genops(data):
            ops.append((opcode.name, position or 0))
    except ValueError:
        pass
    ends = [position for _, position in ops[1:]]
    if ops:
        found = [(name, start, end) for (name, start), end in zip(ops, [*ends, ops[-1][1] + 1], strict=True)]
    return tuple(found)


def pickle_start(data: bytes) -> int:
    """Where the pickle of interest begins: in a zip file, after the name data.pkl; in a legacy file, the fourth."""
    if data[:2] == b"PK":
        return max(data.find(b"\x80\x02}", data.find(b"data.pkl")), 0)
    start = 0
    if data[2:4] == b"\x8a\x0a":
        for _ in range(3):
            start = data.find(b"\x80\x02", start + 2)
    return max(start, 0)


def _with_opcodes(data: bytes, change: Callable[[bytes, list[tuple[str, int, int]]], bytes]) -> bytes:
    start = pickle_start(data)
    body = data[start:]
    found = list(opcodes(body))
    return data[:start] + change(body, found) if found else data


def swap_opcodes(data: bytes, other: bytes, random: Random) -> bytes:
    def change(body: bytes, found: list[tuple[str, int, int]]) -> bytes:
        a, b = sorted(random.sample(found, 2), key=lambda op: op[1]) if len(found) > 1 else (found[0], found[0])
        return body[: a[1]] + body[b[1] : b[2]] + body[a[2] : b[1]] + body[a[1] : a[2]] + body[b[2] :]

    return _with_opcodes(data, change)


def insert_opcodes(data: bytes, other: bytes, random: Random) -> bytes:
    def change(body: bytes, found: list[tuple[str, int, int]]) -> bytes:
        _, start, _ = random.choice(found)
        inserted = b"".join(random.choice(_CODES) for _ in range(random.choice((1, 1, 2, 5))))
        return body[:start] + inserted + body[start:]

    return _with_opcodes(data, change)


def repeat_opcodes(data: bytes, other: bytes, random: Random) -> bytes:
    def change(body: bytes, found: list[tuple[str, int, int]]) -> bytes:
        first = random.randrange(len(found))
        last = min(first + random.choice((0, 0, 3, 30)), len(found) - 1)
        run = body[found[first][1] : found[last][2]][:2000]
        return body[: found[last][2]] + run * random.choice((1, 2, 1000)) + body[found[last][2] :]

    return _with_opcodes(data, change)


def remove_opcodes(data: bytes, other: bytes, random: Random) -> bytes:
    def change(body: bytes, found: list[tuple[str, int, int]]) -> bytes:
        first = random.randrange(len(found))
        last = min(first + random.choice((0, 0, 1, 5)), len(found) - 1)
        return body[: found[first][1]] + body[found[last][2] :]

    return _with_opcodes(data, change)


def change_an_argument(data: bytes, other: bytes, random: Random) -> bytes:
    def change(body: bytes, found: list[tuple[str, int, int]]) -> bytes:
        name, start, _ = random.choice([op for op in found if op[0] in _FORMATS or op[0] in _LENGTHS] or found)
        code = _FORMATS.get(name) or _LENGTHS.get(name)
        if code is None:
            return body
        width = struct.calcsize(code)
        if code == ">d":
            packed = struct.pack(code, random.choice((float("nan"), float("inf"), -1e308, 0.0, 1e-320)))
        else:
            packed = (random.choice(EXTREMES) % 2 ** (8 * width)).to_bytes(width, "little")
        return body[: start + 1] + packed + body[start + 1 + width :]

    return _with_opcodes(data, change)


def long_argument(data: bytes, other: bytes, random: Random) -> bytes:
    """A small integer becomes one of up to 255 bytes."""

    def change(body: bytes, found: list[tuple[str, int, int]]) -> bytes:
        ops = [op for op in found if op[0] in ("BININT", "BININT1", "BININT2", "LONG1", "NEWTRUE", "NEWFALSE", "NONE")]
        _, start, end = random.choice(ops or found)
        value = random.randbytes(random.choice((1, 5, 8, 9, 255)))
        return body[:start] + b"\x8a" + bytes([len(value)]) + value + body[end:]

    return _with_opcodes(data, change)


def swap_a_name(data: bytes, other: bytes, random: Random) -> bytes:
    def change(body: bytes, found: list[tuple[str, int, int]]) -> bytes:
        names = [op for op in found if op[0] in ("GLOBAL", "STACK_GLOBAL")]
        if not names:
            return body
        _, start, end = random.choice(names)
        # A STACK_GLOBAL finds two texts on the stack: they stay there, and the new name comes on top.
        return body[:start] + b"c" + random.choice(NAMES) + body[end:]

    return _with_opcodes(data, change)


def swap_values(data: bytes, other: bytes, random: Random) -> bytes:
    """An opcode that pushes something is replaced by another one of the file: types change, the structure does not."""

    def change(body: bytes, found: list[tuple[str, int, int]]) -> bytes:
        pushes = [op for op in found if op[0].startswith(("BIN", "SHORT_BIN", "NEW", "NONE", "EMPTY", "LONG"))]
        pushes = [op for op in pushes if "PUT" not in op[0] and op[0] not in ("NEWOBJ", "BINPERSID")] or found
        for _ in range(random.choice((1, 1, 3))):
            a, b = random.choice(pushes), random.choice(pushes)
            if a[2] - a[1] == b[2] - b[1]:
                body = body[: a[1]] + body[b[1] : b[2]] + body[a[2] :]
        if body is data:
            return body
        a, b = random.choice(pushes), random.choice(pushes)
        return body[: a[1]] + body[b[1] : b[2]] + body[a[2] :]

    return _with_opcodes(data, change)


PLAIN: tuple[Mutator, ...] = (
    *(flip_bits, overwrite_a_run, remove_or_insert_a_run, truncate, splice, integer_to_extreme),
)
OPCODES: tuple[Mutator, ...] = (
    *(swap_opcodes, insert_opcodes, repeat_opcodes, remove_opcodes, change_an_argument, long_argument),
    *(swap_a_name, swap_values),
)


def change_json(data: bytes, other: bytes, random: Random) -> bytes:
    """Some values of a JSON file become values of other types, or other values of the file."""
    tree = json.loads(data)
    places = list(_places(tree))
    for _ in range(random.choice((1, 1, 2, 5))):
        holder, key = random.choice(places)
        donor, donor_key = random.choice(places)
        holder[key] = copy.deepcopy(random.choice((*JSON_VALUES, donor[donor_key])))
        places = list(_places(tree))
    return json.dumps(tree).encode()


JSON_VALUES = (
    None,
    True,
    -1,
    0,
    2**31,
    10**30,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    [],
    [1],
    {},
    {"a": 1},
    [[]] * 99,
)


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of every value in a tree of dicts and lists."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _places(tree[key])
