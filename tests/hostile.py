"""Files that try to run something, to hang the reader or to fill the memory; bytes are made when asked for.

`PAYLOADS` and `BOMBS` are pieces of pickles (opcodes that push one object). `snapshot`, `zip_file` and `legacy_file`
put a piece into a file of each kind; `TORCH_FILES` are whole files, `DIRECTORIES` edit a checkpoint directory.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from dsgan_datasets.checkpoints.tensors import digest_tensors

GOLDEN = Path(__file__).parent / "golden"
SMALL_SNAPSHOT = GOLDEN / "sg2ada_fullsnapshot16.pkl"
CLASSIFIERS = GOLDEN / "dgan_sg1_128_c7_ckpt"
TOUCH = "touch CANARY"
WRITE = "open('CANARY', 'w')"

# Opcodes


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def raw(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value) if abs(value) < 2**31 else long_number(value)


def long_number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def name(module: str, qualified: str) -> bytes:
    return f"c{module}\n{qualified}\n".encode()


def stack_name(module: str, qualified: str) -> bytes:
    return text(module) + text(qualified) + b"\x93"


def many(*items: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(items) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + many(*arguments) + b"R"


def mapping(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def put(place: int) -> bytes:
    return b"r" + struct.pack("<I", place)


def get(place: int) -> bytes:
    return b"j" + struct.pack("<I", place)


def listed(*items: bytes) -> bytes:
    return b"](" + b"".join(items) + b"e"


def repeated(function: bytes, argument: bytes, times: int) -> bytes:
    """A tuple that begins with the function and its arguments, and continues with the results of calling it."""
    return many(function + put(0), argument + b"\x85" + put(1), (get(0) + get(1) + b"R") * times)


# Files around a piece


def snapshot(piece: bytes, protocol: int = 4) -> bytes:
    return b"\x80" + bytes([protocol]) + mapping(G_ema=piece) + b"."


def zip_file(piece: bytes) -> bytes:
    return archive({"a/data.pkl": b"\x80\x02" + mapping(model_state_dict=piece) + b"."})


def archive(entries: dict[str, bytes], *, deflated: Collection[str] = ()) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as z:
        for entry, data in entries.items():
            z.writestr(entry, data, zipfile.ZIP_DEFLATED if entry in deflated else zipfile.ZIP_STORED)
    return file.getvalue()


def legacy_header() -> bytes:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    return b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system))


def legacy_file(piece: bytes, tail: bytes = pickle.dumps([], 2)) -> bytes:
    return legacy_header() + b"\x80\x02" + mapping(model_state_dict=piece) + b"." + tail


def nested(piece: bytes, tail: bytes = pickle.dumps([], 2)) -> bytes:
    """A storage of a snapshot: torch.storage._load_from_bytes."""
    return call(name("torch.storage", "_load_from_bytes"), raw(legacy_header() + b"\x80\x02" + piece + b"." + tail))


def storage_id(count: int, key: str = "0", dtype: str = "FloatStorage") -> bytes:
    return many(text("storage"), name("torch", dtype), text(key), text("cpu"), long_number(count), b"N") + b"Q"


def storage_file(count: int, values: bytes, declared: int | None = None) -> bytes:
    declared = count if declared is None else declared
    tail = pickle.dumps(["0"], 2) + struct.pack("<q", declared) + values
    return legacy_header() + b"\x80\x02" + storage_id(count) + b"." + tail


def one_storage(count: int, values: bytes, declared: int | None = None) -> bytes:
    return call(name("torch.storage", "_load_from_bytes"), raw(storage_file(count, values, declared)))


def tensor(storage: bytes, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *more: bytes) -> bytes:
    numbers = (many(*map(long_number, size)), many(*map(long_number, stride)))
    return call(
        name("torch._utils", "_rebuild_tensor_v2"), storage, long_number(offset), *numbers, b"\x89", b"N", *more
    )


def array(shape: tuple[int, ...], dtype: str, values: bytes) -> bytes:
    empty = call(name("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray"), many(number(0)), raw(b"b"))
    kind = call(name("numpy", "dtype"), text(dtype), b"\x89", b"\x88")
    return empty + many(number(1), many(*map(long_number, shape)), kind, b"\x89", raw(values)) + b"b"


def module(class_name: str = "Generator", **state: bytes) -> bytes:
    meta = mapping(type=text("class"), class_name=text(class_name), state=mapping(**state), module_src=text(WRITE))
    return call(name("torch_utils.persistence", "_reconstruct_persistent_obj"), meta)


# Pieces that try to run something

OS = call(name("builtins", "__import__"), text("os"))

PAYLOADS: dict[str, bytes] = {
    "os.system": call(name("os", "system"), text(TOUCH)),
    "posix.system": call(name("posix", "system"), text(TOUCH)),
    "posix.system by stack": call(stack_name("posix", "system"), text(TOUCH)),
    "nt.system": call(name("nt", "system"), text(TOUCH)),
    "eval": call(name("builtins", "eval"), text(WRITE)),
    "eval of Python 2": call(name("__builtin__", "eval"), text(WRITE)),
    "exec": call(name("builtins", "exec"), text(WRITE)),
    "compile": call(name("builtins", "exec"), call(name("builtins", "compile"), text(WRITE), text("x"), text("exec"))),
    "open": call(name("builtins", "open"), text("CANARY"), text("w")),
    "io.open": call(name("io", "open"), text("CANARY"), text("w")),
    "getattr": call(call(name("builtins", "getattr"), OS, text("system")), text(TOUCH)),
    "setattr": call(name("builtins", "setattr"), name("collections", "OrderedDict"), text("x"), number(1)),
    "map": call(
        name("builtins", "list"), call(name("builtins", "map"), name("posix", "system"), b"]" + text(TOUCH) + b"a")
    ),
    "call of a call": call(call(name("collections", "OrderedDict")), text(TOUCH)),
    "call of text": call(text("os.system"), text(TOUCH)),
    "call of a type": call(name("torch", "FloatStorage"), number(10**9)),
    "call with a list": name("posix", "system") + b"]" + text(TOUCH) + b"aR",
    "allowed function with keywords": name("collections", "OrderedDict") + b")" + mapping(x=b"N") + b"\x92",
    "attrgetter": call(call(name("operator", "attrgetter"), text("system")), OS),
    "methodcaller": call(call(name("operator", "methodcaller"), text("system"), text(TOUCH)), OS),
    "partial": call(call(name("functools", "partial"), name("posix", "system"), text(TOUCH))),
    "subprocess": call(name("subprocess", "Popen"), b"]" + text("touch") + b"a" + text("CANARY") + b"a"),
    "check_output": call(name("subprocess", "check_output"), text(TOUCH)),
    "pty.spawn": call(name("pty", "spawn"), text("/bin/sh")),
    "importlib": call(name("importlib", "import_module"), text("antigravity")),
    "runpy": call(name("runpy", "run_path"), text("CANARY")),
    "webbrowser": call(name("webbrowser", "open"), text("http://localhost:1/")),
    "urlopen": call(name("urllib.request", "urlopen"), text("http://localhost:1/")),
    "socket": call(name("socket", "create_connection"), many(text("localhost"), number(1))),
    "ctypes": call(name("ctypes", "CDLL"), text("libc.so.6")),
    "shutil.rmtree": call(name("shutil", "rmtree"), text("nowhere")),
    "Path.write_text": call(stack_name("pathlib", "Path.write_text"), text("CANARY"), text("")),
    "timeit": call(name("timeit", "timeit"), text(WRITE), text("pass")),
    "profile": call(name("cProfile", "run"), text(WRITE)),
    "debugger": call(name("bdb", "Bdb.run"), text(WRITE)),
    "doctest": call(name("doctest", "debug_script"), text(WRITE)),
    "marshal": call(name("marshal", "loads"), raw(b"\xe3")),
    "function type": call(name("types", "FunctionType"), b"N", b"}"),
    "pip": call(name("pip", "main"), b"]" + text("--version") + b"a"),
    "pickle.loads": call(name("pickle", "loads"), raw(b"cposix\nsystem\n(X\x0c\x00\x00\x00touch CANARYtR.")),
    "_pickle.loads": call(name("_pickle", "loads"), raw(b"cposix\nsystem\n(X\x0c\x00\x00\x00touch CANARYtR.")),
    "torch.load": call(name("torch", "load"), text("CANARY")),
    "torch.serialization.load": call(name("torch.serialization", "load"), text("CANARY")),
    "torch.jit.load": call(name("torch.jit", "load"), text("CANARY")),
    "torch.hub": call(name("torch.hub", "load"), text("a/b"), text("c")),
    "torch compile": call(name("torch.utils.cpp_extension", "load"), text("x"), text("CANARY")),
    "numpy.load": call(name("numpy", "load"), text("CANARY")),
    "numpy.save": call(name("numpy", "save"), text("CANARY"), number(0)),
    "numpy runstring": call(name("numpy.testing._private.utils", "runstring"), text(WRITE), b"}"),
    "copyreg": call(name("copyreg", "_reconstructor"), name("posix", "system"), name("builtins", "object"), b"N"),
    "add_extension": call(name("copyreg", "add_extension"), text("os"), text("system"), number(1)),
    "extension 1": b"\x82\x01",
    "extension 2": b"\x83\x01\x00",
    "extension 4": b"\x84\x01\x00\x00\x00",
    "persistent id": b"Pposix.system\n",
    "persistent id of text": text(TOUCH) + b"Q",
    "persistent id of a module": many(text("module"), name("torch", "FloatStorage"), text("CANARY"), text("x")) + b"Q",
    "instance": b"(" + text(TOUCH) + b"iposix\nsystem\n",
    "object": b"(" + name("posix", "system") + text(TOUCH) + b"o",
    "new object": name("posix", "system") + many(text(TOUCH)) + b"\x81",
    "new object with keywords": name("builtins", "object") + b")}\x92",
    "text argument of Python 2": call(name("posix", "system"), b"U\x0ctouch CANARY"),
    "name in pieces": text("posix")
    + put(1)
    + text("system")
    + put(2)
    + get(1)
    + get(2)
    + b"\x93"
    + many(text(TOUCH))
    + b"R",
    "name that is a number": number(1) + text("system") + b"\x93",
    "dotted module": call(stack_name("dsgan_datasets.checkpoints.directory.os", "system"), text(TOUCH)),
    "class of an allowed class": call(stack_name("collections", "OrderedDict.__class__"), text("x")),
    "globals of an allowed function": stack_name("torch._utils", "_rebuild_parameter.__globals__"),
    "method of an allowed class": call(stack_name("collections", "OrderedDict.fromkeys"), b"]"),
    "empty name": name("", ""),
    "name with a space": name("torch._utils _rebuild_parameter", ""),
    "state of a function": name("torch._utils", "_rebuild_parameter")
    + mapping(call=name("torch", "FloatStorage"))
    + b"b",
    "slots of a function": name("torch._utils", "_rebuild_parameter")
    + many(b"N", mapping(call=name("torch", "FloatStorage")))
    + b"b",
    "state of a type": name("torch", "FloatStorage") + mapping(__reduce__=b"N") + b"b",
    "state of text": text("x") + mapping(x=b"N") + b"b",
    "items of a function": name("collections", "OrderedDict") + text("a") + b"Ns",
    "item of a list": b"]" + number(0) + b"Ns",
    "append to a function": name("collections", "OrderedDict") + b"Na",
}

#: These name something that only snapshots may name, and there only in a certain way.
SNAPSHOT_PAYLOADS: dict[str, bytes] = {
    "nested os.system": nested(call(name("posix", "system"), text(TOUCH))),
    "nested plain pickle": call(name("torch.storage", "_load_from_bytes"), raw(b"cposix\nsystem\n(Vtouch\ntR.")),
    "nested zip": call(
        name("torch.storage", "_load_from_bytes"), raw(zip_file(call(name("posix", "system"), text(TOUCH))))
    ),
    "nested header": call(
        name("torch.storage", "_load_from_bytes"), raw(b"\x80\x02" + call(name("posix", "system"), text(TOUCH)) + b".")
    ),
    "nested storage type": nested(call(name("torch", "load"), text("CANARY"))),
    "nested nested": nested(nested(storage_id(0))),
    "nested persistent id": nested(many(text("file"), text("CANARY")) + b"Q"),
    "second state of a module": module() + mapping(class_name=text("x")) + b"b",
    "source of a function": call(
        name("torch_utils.persistence", "_reconstruct_persistent_obj"),
        mapping(type=text("func"), module_src=text(WRITE), func_name=text("f")),
    ),
    "import hook": call(name("torch_utils.persistence", "import_hook"), name("posix", "system")),
    "dtype of objects": call(name("numpy", "dtype"), text("O8"), b"\x89", b"\x88"),
    "array of objects": array((1,), "O8", b"\0" * 8),
    "array of another class": call(name("numpy.core.multiarray", "_reconstruct"), name("torch", "x"), many(), b"N"),
    "array class called": call(name("numpy", "ndarray"), many(long_number(2**40))),
    "state of an array": array((1,), "u1", b"x") + mapping(__class__=b"N") + b"b",
}

# Pieces that try to hang the reader or to fill the memory


def _tuples(levels: int) -> bytes:
    """A tuple of twice the same tuple of twice …"""
    return number(1) + put(0) + b"".join(get(level) + b"\x86" + put(level + 1) for level in range(levels))


def _lists(levels: int) -> bytes:
    """The same with lists."""
    return many(number(1) + put(0), *(listed(get(level), get(level)) + put(level + 1) for level in range(levels)))


def _keyed(key: bytes) -> bytes:
    return b"}" + key + b"Ns"


def _deep(opening: bytes, closing: bytes, levels: int) -> bytes:
    return opening * levels + b"N" + closing * levels


def _equal_hashes(count: int) -> bytes:
    """Keys that are multiples of 2^61 - 1: Python hashes each to 0."""
    return b"}(" + b"".join(long_number(i * (2**61 - 1)) + b"N" for i in range(1, count)) + b"u"


def _pairs(count: int) -> bytes:
    return listed(*(many(number(i), b"N") for i in range(count)))


ORDERED = name("collections", "OrderedDict")

BOMBS: dict[str, Callable[[], bytes]] = {
    "hashes of shared tuples": lambda: _keyed(_tuples(60)),
    "hashes of shared tuples in a set": lambda: b"\x8f(" + _tuples(60) + b"\x90",
    "hashes of shared tuples in pairs": lambda: call(ORDERED, listed(many(_tuples(60), b"N"))),
    "equal hashes": lambda: _equal_hashes(60_000),
    "keys that are lists": lambda: _keyed(b"]"),
    "keys that are not numbers": lambda: _keyed(b"G\x7f\xf8\x00\x00\x00\x00\x00\x00"),
    "shared tuples": lambda: _tuples(60),
    "shared lists": lambda: _lists(60),
    "a long text again and again": lambda: many(text("x" * 10**6) + put(0), get(0) * 90_000),
    "far places of the memo": lambda: b"N" + b"".join(put(2**32 - 1 - i) for i in range(1000)),
    "many places of the memo": lambda: b"N" + b"\x94" * 500_000,
    "many sets": lambda: listed(b"\x8f" * 500_000),
    "many dicts": lambda: listed(b"}" * 190_000),
    "many marks": lambda: b"(" * 500_000,
    "unbalanced marks": lambda: b"t" * 1000,
    "an empty stack": lambda: b"\x85\x86\x87sue",
    "a place that is empty": lambda: get(77),
    "deep lists": lambda: _deep(b"]", b"a", 90_000),
    "deep tuples": lambda: _deep(b"", b"\x85", 190_000),
    "deep dicts": lambda: _deep(b"}" + text("a"), b"s", 60_000),
    "deep marks": lambda: _deep(b"(", b"t", 90_000),
    "deep states": lambda: _deep(b"}", b"b", 90_000),
    "a list in itself": lambda: b"]" + put(0) + get(0) + b"a",
    "a dict in itself": lambda: b"}" + put(0) + text("a") + get(0) + b"s",
    "a long that ends beyond the file": lambda: b"\x8b" + struct.pack("<i", 2**31 - 1) + b"1",
    "a long of negative length": lambda: b"\x8b" + struct.pack("<i", -5),
    "a long of many digits": lambda: b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6,
    "digits": lambda: b"L" + b"9" * 10**6 + b"L\n",
    "a text of absurd length": lambda: b"\x8d" + struct.pack("<Q", 2**63) + b"x",
    "bytes of absurd length": lambda: b"\x8e" + struct.pack("<Q", 2**62) + b"x",
    "bytes of 16 GB": lambda: b"\x8e" + struct.pack("<Q", 2**34) + b"x",
    "bytes of 4 GB": lambda: b"B" + struct.pack("<I", 2**32 - 1) + b"x",
    "a bytearray of 8 GB": lambda: b"\x96" + struct.pack("<Q", 2**33) + b"x",
    "a frame of absurd length": lambda: b"\x95" + struct.pack("<Q", 2**63 - 1) + b"}" * 100,
    "buffers": lambda: b"\x97\x98",
    "a text that is none": lambda: b"X\x02\x00\x00\x00\xff\xff",
    "drops": lambda: b"N" * 1000 + b"0" * 999,
    "duplicates": lambda: b"]" + b"2" * 1000 + b"a" * 1000,
    "a dict made over and over": lambda: repeated(ORDERED, _pairs(20_000), 20_000),
    "a set made over and over": lambda: repeated(name("builtins", "set"), listed(*map(number, range(99_000))), 20_000),
    "a call with many arguments": lambda: many(
        name("torch._utils", "_rebuild_parameter") + put(0),
        many(b"N" * 100_000) + put(1),
        (get(0) + get(1) + b"R") * 20_000,
    ),
    "a storage of terabytes": lambda: tensor(storage_id(2**40), 0, (1,), (1,)),
    "a storage of exabytes": lambda: tensor(storage_id(2**60), 0, (1,), (1,)),
    "a storage of negative size": lambda: tensor(storage_id(-1), 0, (1,), (1,)),
    "a storage that is not there": lambda: tensor(storage_id(15 * 10**6), 0, (1,), (1,)),
    "storages that are not there": lambda: listed(*(storage_id(15 * 10**6, str(i)) for i in range(1000))),
    "a storage above": lambda: tensor(storage_id(1, "../../data.pkl"), 0, (1,), (1,)),
    "an absolute storage": lambda: tensor(storage_id(1, "/etc/passwd"), 0, (1,), (1,)),
    "a storage whose key is a number": lambda: (
        many(text("storage"), name("torch", "FloatStorage"), number(0), text("cpu"), number(1)) + b"Q"
    ),
    "a quantized storage": lambda: storage_id(1, dtype="QInt8Storage"),
    "a complex storage": lambda: storage_id(1, dtype="ComplexFloatStorage"),
}

FOUR = struct.pack("<4f", 1, 2, 3, 4)


def _of_four(offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Callable[[], bytes]:
    return lambda: tensor(one_storage(4, FOUR), offset, size, stride)


def _modules(levels: int, copies: int) -> bytes:
    """Networks in networks, each in `copies` places of the next."""
    chain = (
        module(_modules=mapping(**{f"m{i}": get(level) for i in range(copies)})) + put(level + 1)
        for level in range(levels)
    )
    return many(module() + put(0), *chain)


def _square(side: int) -> bytes:
    return tensor(one_storage(side * side, bytes(4 * side * side)), 0, (side, side), (1, side))


SNAPSHOT_BOMBS: dict[str, Callable[[], bytes]] = {
    "a tensor beyond its storage": _of_four(0, (5,), (1,)),
    "strides beyond the storage": _of_four(0, (2, 2), (4, 1)),
    "an offset beyond the storage": _of_four(1, (4,), (1,)),
    "a tensor of terabytes": _of_four(0, (10**6, 10**6), (0, 0)),
    "a tensor of absurd size": _of_four(0, (2**63 - 1,) * 8, (0,) * 8),
    "a negative stride": _of_four(1, (2,), (-1,)),
    "a negative size": _of_four(0, (-2, -2), (1, 1)),
    "a thousand dimensions": _of_four(0, (1,) * 1000, (0,) * 1000),
    "an empty tensor of absurd size": _of_four(0, (2**47, 0), (1, 1)),
    "a storage shorter than declared": lambda: tensor(one_storage(4, FOUR[:9]), 0, (4,), (1,)),
    "a storage longer than declared": lambda: tensor(one_storage(4, FOUR * 2), 0, (4,), (1,)),
    "a storage of another length": lambda: tensor(one_storage(4, FOUR, declared=2**60), 0, (4,), (1,)),
    "a nested storage of terabytes": lambda: tensor(one_storage(2**40, FOUR), 0, (4,), (1,)),
    "storages that nobody refers to": lambda: nested(storage_id(0), pickle.dumps(["0", "1", "0"], 2) + bytes(24)),
    "one storage again and again": lambda: repeated(
        name("torch.storage", "_load_from_bytes"), raw(storage_file(250_000, bytes(10**6))), 10_000
    ),
    "one small storage again and again": lambda: repeated(
        name("torch.storage", "_load_from_bytes"), raw(storage_file(0, b"")), 100_000
    ),
    "one tensor again and again": lambda: many(_square(500) + put(0), get(0) * 10_000),
    "a tensor under many names": lambda: many(
        _square(500) + put(0), module(_parameters=mapping(**{f"p{i}": get(0) for i in range(5000)}))
    ),
    "modules in two places": lambda: _modules(28, 2),
    "deep modules": lambda: _modules(3000, 1),
    "a module that is its own child": lambda: many(
        b"}" + put(0), module(_modules=get(0)) + put(1), get(0) + text("a") + get(1) + b"s"
    ),
    "a module with a list of modules": lambda: module(_modules=listed(number(1))),
    "a module whose names are numbers": lambda: module(_modules=_keyed(number(1))),
    "a module without class": lambda: call(
        name("torch_utils.persistence", "_reconstruct_persistent_obj"), mapping(type=text("class"), state=b"}")
    ),
    "a class name of control characters": lambda: module("\x1b[2J\r\nGenerator\u202e" * 1000, _modules=b"}"),
    "resolutions without end": lambda: module(
        _modules=mapping(
            synthesis=module("S", block_resolutions=listed(number(4) * 90_000), _modules=b"}"),
            mapping=module("M", _modules=b"}"),
        )
    ),
    "an array of absurd shape": lambda: array((2**31, 2**31), "f8", b""),
    "an array of another size": lambda: array((4,), "f4", FOUR[:15]),
    "an array of negative shape": lambda: array((-1, -16), "u1", FOUR),
    "an array without numbers": lambda: array((2**47, 2**47, 0), "f8", b""),
    "a number of another size": lambda: call(
        name("numpy.core.multiarray", "scalar"), call(name("numpy", "dtype"), text("f8"), b"\x89", b"\x88"), raw(b"1")
    ),
    "a dtype of absurd length": lambda: call(name("numpy", "dtype"), text("f" * 10**6), b"\x89", b"\x88"),
}

# Pieces for the placeholders of names that are not known, in a file of which a network is wanted


def thing(module_name: str, qualified: str, **state: bytes) -> bytes:
    """An object of some class, with attributes."""
    return name(module_name, qualified) + b")\x81" + mapping(**state) + b"b"


FASTGAN = ("pg_modules.networks_fastgan", "Generator")
TENSORFLOW = ("dnnlib.tflib.network", "Network")


def _things(levels: int, copies: int, kind: tuple[str, str] = FASTGAN) -> bytes:
    """Networks in networks of an allowed class, each in `copies` places of the next; the last is what is left."""
    first = thing(*kind) + put(0)
    chain = (
        thing(*kind, _modules=mapping(**{f"m{i}": get(level) for i in range(copies)})) + put(level + 1)
        for level in range(levels)
    )
    return b"(" + first + b"".join(chain) + b"1" + get(levels)


def _own_child(kind: tuple[str, str], key: str) -> bytes:
    return (
        b"}"
        + put(0)
        + b"0"
        + thing(*kind, **{key: get(0)})
        + put(1)
        + b"0"
        + get(0)
        + text("a")
        + get(1)
        + b"s0"
        + get(1)
    )


STRANGE = name("some.package", "Thing")
PLACEHOLDERS: dict[str, Callable[[], bytes]] = {
    "one called again and again": lambda: repeated(STRANGE, number(1), 150_000),
    "calls of calls": lambda: STRANGE + b")R" * 150_000,
    "attributes given again and again": lambda: (
        STRANGE
        + b")\x81"
        + put(0)
        + b"0"
        + mapping(**{f"a{i}": b"N" for i in range(20_000)})
        + put(1)
        + b"0"
        + get(0)
        + (get(1) + b"b") * 100_000
    ),
    "a million keys of other types": lambda: b"}(" + (b")N") * 190_000 + b"u",
    "keys of shared tuples": lambda: _keyed(_tuples(60)),
    "long names again and again": lambda: (
        b"(" + text("m" * 10**6) + put(0) + text("x") + put(1) + b"01" + many((get(0) + get(1) + b"\x93") * 100_000)
    ),
    "items put into one": lambda: STRANGE + b")\x81(" + b"N" * 350_000 + b"e",
    "a network of them that holds itself": lambda: _own_child(FASTGAN, "_modules"),
    "a TensorFlow network that holds itself": lambda: many(_own_child(TENSORFLOW, "components")),
    "networks in two places of the next": lambda: _things(28, 2),
    "rosinality's in two places of the next": lambda: _things(28, 2, ("model", "Generator")),
    "networks of TensorFlow 3000 deep": lambda: many(_things(3000, 1, TENSORFLOW)),
    "a network with a stranger inside": lambda: thing(*FASTGAN, _modules=mapping(synthesis=thing("os", "system"))),
    "a network that is a call": lambda: call(STRANGE, text(TOUCH)),
    "frozen sets of sets": lambda: b"(" * 1 + b"".join(b"(" for _ in range(300)) + b"N" + b"\x91" * 300 + b"t",
    "a class with keywords": lambda: STRANGE + b")" + mapping(x=call(name("posix", "system"), text(TOUCH))) + b"\x92",
    "noise without end": lambda: mapping(
        **{f"g_synthesis.blocks.{r}x{r}.epi1.top_epi.noise.weight": b"N" for r in range(1, 2000)}
    ),
}

# Whole files of torch.save

ONE = tensor(storage_id(4), 0, (4,), (1,))
ENTRIES = {"a/data.pkl": b"\x80\x02" + mapping(model_state_dict=mapping(w=ONE)) + b".", "a/data/0": FOUR}


def _edited(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data and len(old) == len(new)
    return data.replace(old, new)


def _overlapping(entries: int) -> bytes:
    """An archive whose entries all lie on the same megabyte."""
    local, central, directory, start = archive({"a/data/0000": bytes(10**6)}), b"", b"", 0
    start = local.index(b"PK\x01\x02")
    record = local[start : local.index(b"PK\x05\x06")]
    for i in range(entries):
        central += record.replace(b"a/data/0000", b"a/data/%04d" % i)
    pieces = b"".join(storage_id(250_000, f"{i:04d}") for i in range(entries))
    content = archive({"a/data.pkl": b"\x80\x02" + listed(pieces) + b"."})
    cut = content.index(b"PK\x01\x02")
    entry = bytearray(content[cut : content.index(b"PK\x05\x06")])
    entry[42:46] = struct.pack("<I", start)
    directory = central + bytes(entry)
    count = entries + 1
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(directory), start + cut, 0)
    return local[:start] + content[:cut] + directory + end


TORCH_FILES: dict[str, Callable[[], bytes]] = {
    "a deflated pickle": lambda: archive(ENTRIES, deflated=["a/data.pkl"]),
    "a deflated bomb": lambda: archive({"a/data.pkl": b"\x80\x02" + b"N" * 10**8}, deflated=["a/data.pkl"]),
    "a deflated storage": lambda: archive({**ENTRIES, "a/data/0": FOUR}, deflated=["a/data/0"]),
    "a storage of another size": lambda: archive({**ENTRIES, "a/data/0": FOUR + b"x"}),
    "no storage": lambda: archive({"a/data.pkl": ENTRIES["a/data.pkl"]}),
    "no pickle": lambda: archive({"a/data/0": FOUR}),
    "two pickles": lambda: archive({**ENTRIES, "b/data.pkl": ENTRIES["a/data.pkl"]}),
    "two files of one name": lambda: _edited(archive({**ENTRIES, "a/data/1": FOUR}), b"a/data/1", b"a/data/0"),
    "TorchScript": lambda: archive({**ENTRIES, "a/constants.pkl": b"\x80\x02).", "a/code/__torch__.py": b"x"}),
    "big-endian": lambda: archive({**ENTRIES, "a/byteorder": b"big"}),
    "a byte order of absurd length": lambda: archive({**ENTRIES, "a/byteorder": b"little" * 10**5}),
    "a damaged storage": lambda: _edited(archive(ENTRIES), FOUR, FOUR[::-1]),
    "an encrypted pickle": lambda: _edited(
        archive(ENTRIES), b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"
    ),
    "many entries": lambda: archive({f"{i}": b"" for i in range(110_000)}),
    "many signatures": lambda: archive({**ENTRIES, "a/x": b"PK\x01\x02" * 10**6}),
    "entries on top of each other": lambda: _overlapping(500),
    "an entry longer than the file": lambda: _edited(
        archive({"a/data.pkl": b"N" * 77777}), struct.pack("<II", 77777, 77777), struct.pack("<II", *[2**31] * 2)
    ),
    "no zip": lambda: b"PK\x03\x04 not a zip",
    "an archive without end": lambda: archive(ENTRIES)[:-30],
    "a name with zeros": lambda: _edited(archive(ENTRIES), b"a/data/0", b"a/data\0" + b"0"),
    "nothing": lambda: b"",
    "text": lambda: b"hello\n" * 100,
    "a tar file": lambda: b"pickle" + bytes(506),
    "another magic number": lambda: pickle.dumps(1, 2) + legacy_file(b"}")[15:],
    "another version": lambda: b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 7, {})),
    "a header of many values": lambda: b"\x80\x02" + b"]" * 10**6,
    "legacy, big-endian": lambda: _edited(legacy_file(ONE), b"little_endianq\x02\x88", b"little_endianq\x02\x89"),
    "legacy without values": lambda: legacy_file(ONE, pickle.dumps(["0"], 2)),
    "legacy with fewer values": lambda: legacy_file(ONE, pickle.dumps(["0"], 2) + struct.pack("<q", 4) + FOUR[:9]),
    "legacy with more values": lambda: legacy_file(ONE, pickle.dumps(["0"], 2) + struct.pack("<q", 4) + FOUR * 2),
    "legacy with another length": lambda: legacy_file(ONE, pickle.dumps(["0"], 2) + struct.pack("<q", -1) + FOUR),
    "legacy with other keys": lambda: legacy_file(ONE, pickle.dumps(["1"], 2) + struct.pack("<q", 4) + FOUR),
    "legacy with a key twice": lambda: legacy_file(
        ONE, pickle.dumps(["0", "0"], 2) + 2 * (struct.pack("<q", 4) + FOUR)
    ),
    "legacy with keys of no text": lambda: legacy_file(ONE, pickle.dumps([0, {}], 2)),
    "legacy without keys": lambda: legacy_file(ONE, b""),
}


# Checkpoint directories


def _config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def _tensors(stem: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = safetensors.torch.load_file(folder / f"{stem}.safetensors")
        change(tensors)
        safetensors.torch.save_file(tensors, folder / f"{stem}.safetensors")
        # With its digest, which would give the change away before anything looks at the tensors.
        _config(lambda config: config["parts"][stem].update(sha256=digest_tensors(tensors)))(folder)

    return edit


def _network(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The config of a network, in that of a checkpoint."""
    return config["parts"][name]["config"]


def _bytes(file: str, data: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / file).write_bytes(data)

    return write


def _header(file: str, header: bytes, length: int | None = None) -> Callable[[Path], None]:
    length = len(header) if length is None else length
    return _bytes(f"{file}.safetensors", struct.pack("<Q", length) + header + bytes(64))


DIRECTORIES: dict[str, Callable[[Path], None]] = {
    "deep JSON": _bytes("config.json", b'{"a":' * 200_000),
    "deep values": _bytes("config.json", b'{"format_version":' + b"[" * 900 + b"]" * 900 + b"}"),
    "a version of many digits": _bytes("config.json", b'{"format_version":' + b"9" * 10**6 + b"}"),
    "a config that is too large": _bytes("config.json", b'{"format_version":1,"x":"' + b"x" * 5 * 10**6 + b'"}'),
    "a config that is not text": _bytes("config.json", b"\xff\xfe{"),
    "a config of a list": _bytes("config.json", b"[1]"),
    "a header of absurd length": _header("generator", b"{}", 2**63),
    "a header beyond the file": _header("interpreter", b"{}", 10**8),
    "a deep header": _header("generator", b'{"a":' * 100_000),
    "a header without end": _header("generator", b'{"a":{"dtype":"F32",'),
    "a tensor of absurd shape": _header(
        "generator", b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'
    ),
    "a tensor beyond the file": _header(
        "interpreter", b'{"w1":{"dtype":"F32","shape":[9999],"data_offsets":[0,39996]}}'
    ),
    "tensors on top of each other": _header(
        "generator",
        b'{"a":{"dtype":"F32","shape":[16],"data_offsets":[0,64]},"b":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}',
    ),
    "8-bit floats": _tensors(
        "generator", lambda t: t.update({"mapping.w_avg": t["mapping.w_avg"].to(torch.float8_e5m2)})
    ),
    "complex numbers": _tensors("interpreter", lambda t: t.update(b3=t["b3"].to(torch.complex64))),
    "integers": _tensors("interpreter", lambda t: t.update(b3=t["b3"].to(torch.int64))),
    "NaN": _tensors("generator", lambda t: t["mapping.w_avg"].fill_(float("nan"))),
    "matrices of one dimension": _tensors("interpreter", lambda t: t.update(w1=t["w1"].flatten())),
    "a matrix without dimension": _tensors("interpreter", lambda t: t.update(w3=torch.tensor(1.0))),
    "layers without end": _config(
        lambda c: _network(c, "generator").update(mapping_layers=8192, w_dim=8192, z_dim=8192)
    ),
    "wide blocks": _config(
        lambda c: _network(c, "generator").update(channels=dict.fromkeys(_network(c, "generator")["channels"], 8192))
    ),
    "a million classes": _config(lambda c: _network(c, "generator").update(c_dim=2**20, embed_dim=2**20)),
    "an image of absurd size": _config(lambda c: _network(c, "generator").update(img_resolution=2**40)),
    "a clamp of many digits": _config(lambda c: _network(c, "generator").update(conv_clamp=10**400)),
    "an architecture of a list": _config(lambda c: _network(c, "generator").update(architecture=["stylegan2"] * 10**5)),
    "a section of another type": _config(lambda c: c["parts"].update(generator=[1])),
    "parts of another type": _config(lambda c: c.update(parts=["generator"])),
    "a digest of a list": _config(lambda c: c["parts"]["generator"].update(sha256=["x"] * 10**5)),
    "a labeler of another kind": _config(lambda c: c.update(labeler=["joint"])),
    "a joint generator of colors": _config(lambda c: c.update(labeler="joint")),
    "an origin of a list": _config(lambda c: c.update(provenance=["x"])),
    "another number of members": _config(lambda c: _network(c, "interpreter").update(members=10**12)),
    "many names": _config(lambda c: c["targets"][0].update(classes=[{"name": f"{i}"} for i in range(50_000)])),
    "a name that is a dict": _config(lambda c: c["targets"][0]["classes"][0].update(name={"a": 1})),
    "a map of infinity": _config(lambda c: c["recipe"]["labeling"].update(class_map=[float("inf")])),
    "pairs of three": _config(lambda c: c["targets"][0].update(flip_pairs=[[1, 2, 3]])),
    "a layout of a list": _config(lambda c: _network(c, "interpreter").update(layout=["convs"])),
    "psi of many digits": _config(lambda c: c["recipe"]["sampling"].update(truncation_psi=10**400)),
    "a fingerprint of a list": _config(lambda c: c.update(fingerprint=["x" * 10**5])),
    "a calibration of text": _config(lambda c: c.update(calibration="x")),
}
