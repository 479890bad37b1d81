"""Ways to damage a file. Each takes its bytes, those of another file and a source of randomness."""

from __future__ import annotations

import copy
import json
import pickletools
import struct
import zlib
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
    try:
        tree = json.loads(data)
    except ValueError:
        return flip_bits(data, other, random)
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


def change_text(data: bytes, other: bytes, random: Random) -> bytes:
    """Some runs of a text become others that parsers stumble over."""
    for _ in range(random.choice((1, 1, 3))):
        start = random.randrange(len(data) + 1)
        data = data[:start] + random.choice(_TEXTS) + data[start + random.choice((0, 1, 5)) :]
    return data


_TEXTS = (
    *(b"[" * 2000, b'{"a":' * 2000, b"9" * 5000, b"1e999", b"NaN", b"-Infinity", b"-0", b"0.1e-400", b"1" + b"0" * 400),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"\\ud800", b"\xc3", b"\r\n", b"\x1b[31m", b'"', b"}", b"]", b",", b":"),
    *(b"true", b"null", b'"' + b"x" * 3000 + b'"', b"%!PS-Adobe-3.0 EPSF-3.0\n", b"PK\x03\x04", b"<?xml?>"),
)


def encode_anew(data: bytes, other: bytes, random: Random) -> bytes:
    """As an editor saves a text: another encoding, perhaps cut or with a bit changed."""
    text = data.decode("utf-8", "replace").encode(
        random.choice(("utf-8-sig", "utf-16", "utf-16-be", "utf-32", "cp037"))
    )
    return random.choice((text, truncate(text, other, random), flip_bits(text, other, random)))


TEXT: tuple[Mutator, ...] = (change_json, change_json, change_text, encode_anew, flip_bits, truncate, splice)


def change_chunks(data: bytes, other: bytes, random: Random) -> bytes:
    """Some bytes of a PNG file change, and the checksums with them: the damage reaches what lies behind them."""
    chunks = list(_chunks(data))
    if not chunks:
        return flip_bits(data, other, random)
    for _ in range(random.choice((1, 1, 2, 8))):
        number = random.randrange(len(chunks))
        kind, body = chunks[number]
        how = random.random()
        if how < 0.6 and body:
            at = random.randrange(len(body))
            value = random.choice((random.randrange(256), 0, 255))
            chunks[number] = kind, body[:at] + bytes([value]) + body[at + 1 :]
        elif how < 0.7:
            chunks[number] = kind, body[: random.randrange(len(body) + 1)] * random.choice((1, 2, 50))
        elif how < 0.8:
            chunks.insert(random.randrange(len(chunks)), chunks[number])
        elif how < 0.9:
            del chunks[number]
            chunks = chunks or [(b"IEND", b"")]
        else:
            chunks.insert(number, (random.choice(_KINDS_OF_CHUNKS), random.choice((body, random.randbytes(9), b""))))
    packed = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return data[:8] + b"".join(packed)


_KINDS_OF_CHUNKS = (b"PLTE", b"tRNS", b"IDAT", b"iCCP", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT", b"eXIf", b"gAMA")


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


def become_another_format(data: bytes, other: bytes, random: Random) -> bytes:
    """The beginning of another kind of file, before or instead of the own."""
    start = random.choice(_STARTS)
    return random.choice((start + data, start + data[len(start) :], start))


_STARTS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n",
    *(
        b"\xc5\xd0\xd3\xc6" + bytes(28),
        b"GIF89a",
        b"BM",
        b"II*\0",
        b"\xff\xd8\xff\xe0",
        b"P6\n9 9\n255\n",
        b"PK\x03\x04",
    ),
    *(b"%PDF-1.7\n", b"RIFF\0\0\0\0WEBP", b"\0\0\0\x0cjP  \r\n", b"8BPS\0\1", b"\x93NUMPY\1\0", b"\x80\x04", b"<svg>"),
)

PICTURE: tuple[Mutator, ...] = (change_chunks, change_chunks, change_chunks, become_another_format, flip_bits, truncate)


def change_words(data: bytes, other: bytes, random: Random) -> bytes:
    """A command line, as a JSON list: words are replaced, left out, doubled, exchanged, or changed within."""
    words = json.loads(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(words) + 1)
        how = random.randrange(5)
        if how == 0:
            words.insert(at, random.choice(WORDS))
        elif how == 1:
            words.insert(at, random.choice(words) if words else "info")
        elif words and at < len(words):
            word = words[at]
            place = random.randrange(len(word) + 1)
            words[at] = (word[:place] + random.choice(_LETTERS) + word[place:]) if how == 2 else random.choice(WORDS)
            if how == 3:
                del words[at]
    return json.dumps(words).encode()


#: None asks for much work, for a program or for another machine.
WORDS = (
    *(
        "",
        "-",
        "--",
        "---",
        "-h",
        "--help",
        "--set",
        "--set=",
        "--seed",
        "--seed=-1",
        "--seed=1e3",
        "--seed=" + "9" * 5000,
    ),
    *("--psi", "--psi=nan", "--psi=inf", "--psi=[0.5,0.9]", "--num-samples=0", "--num-samples=2", "--num-samples=x"),
    *(
        "--set=size=[8,8]",
        "--set=size=x",
        "--set=size=[0,0]",
        "--set=size=-1",
        "--set=self=1",
        "--set=psi=" + "[" * 5000,
    ),
    *("--set=truncation_psi={}", "--set=truncation_psi=NaN", "--set=truncation_psi=1e999", "--set=reject_fraction=2"),
    *("--set=class_label=7", "--set=class_label=[1,2]", "--set=group_size=0", "--set=group_size=true", "--set=dtype=x"),
    *("--set=compute_batch=0", "--set=map_classes={}", "--set=area_rules=[[1]]", "--set=threshold=null", "--set=a=b=c"),
    *("--start", "--start=-1", "--start=" + "9" * 400, "--out", "--out=", "--out=missing/x.png", "--out=/dev/null/x"),
    *("--device", "--device=cpu", "--device=cuda:99", "--device=gpu", "--format", "--format=coco", "--format=x"),
    *("--classes", "--classes=a,a", "--classes={", "--classes=[1]", "--split=a=2", "--split=train=0.5", "--split=x"),
    *(
        "faces",
        "to-annotate",
        "shards",
        "argv.json",
        "missing",
        "faces/config.json",
        "x" * 5000,
        "\udcff",
        "é\n\x1b[31m",
    ),
    *("{}", "[]", "null", "1e999", "-1", "0", "2", "3", "NaN", "true", "@argv.json", "%s%n", "*", "~", "--overwrite"),
)
_LETTERS = ("=", "-", "\0", "\n", "\udcff", "é", "[", "{", '"', "0", "9" * 30, ",", ":", ".", " ")
