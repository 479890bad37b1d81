"""A machine for pickles that knows few opcodes and fewer names, and what comes out of it.

A pickle is a program: it names functions and calls them. `pickletools` splits it into opcodes; this machine carries out
those that torch.save and the training code of StyleGAN write, and refuses all others. A name is never imported: a known
one is answered with a function or class of ours, any other is refused, or where only a part of the file is needed
becomes a `Foreign` object, which can be called and changed without anything happening. Every step is bounded by the
size of the file:

- only strings and integers may be keys, so nothing nested is ever hashed (forty shared tuples would take 2^40 steps);
- the memo is a dict, lengths are checked against what is left of the file, and the opcodes are counted;
- what a call copies is paid from a budget, so that a file cannot ask for the same megabyte a thousand times;
- the result is no deeper than 100 levels and has no loops, and unfolded it is about as large as the file at most:
  callers can traverse, copy or print it safely.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dsgan_datasets.checkpoints.errors import CheckpointError

MAX_OPCODES = 400_000  # a network of StyleGAN3 has 11,000, a discriminator of StyleGAN-XL ten times as many
MAX_DEPTH = 100
#: Modules of NVIDIA's code.
VENDORED = ("torch_utils.persistence", "dnnlib.util", "dnnlib.tflib.network", "dnnlib.tflib.tfutil")
_LONGEST_NAME = 200
#: What a result may take beyond its file: for small values that are shared.
SLACK = 64 * 2**20
#: Bytes that an item of a container and a call are counted as.
_ITEM, _CALL = 64, 2048


class Budget:
    """Bytes that the calls of a file may take and copy together: as many as it has, and some."""

    def __init__(self, file_size: int) -> None:
        self.left = file_size + SLACK

    def spend(self, size: int) -> None:
        """Take from it."""
        self.left -= size
        if self.left < 0:
            raise CheckpointError("refused: the file asks for more data than it holds")


class Name:
    """The placeholder of a function or class that a pickle may name."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call


class Holder:
    """An object as data: the name of its class, and its attributes.

    Args:
        name: of the class.
        state: attributes.
    """

    __slots__ = ("name", "state")

    def __init__(self, name: str, state: dict[Any, Any] | None = None) -> None:
        self.name = name
        self.state = {} if state is None else state

    def __repr__(self) -> str:
        return self.name

    def child(self, name: str) -> Holder:
        """The submodule of that name.

        Raises:
            CheckpointError: there is none.
        """
        found = self._entries("_modules").get(name)
        if not isinstance(found, Holder):
            raise CheckpointError(f"{self.name} has no submodule {name!r}")
        return found

    def children(self) -> dict[Any, Holder]:
        """All submodules."""
        return {name: part for name, part in self._entries("_modules").items() if isinstance(part, Holder)}

    def own_tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers of the module itself."""
        found = {**self._entries("_parameters"), **self._entries("_buffers")}
        return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Parameters and buffers with their dotted names, submodules included."""
        found = {f"{prefix}{name}": tensor for name, tensor in self.own_tensors().items()}
        for name, module in self.children().items():
            found.update(module.tensors(f"{prefix}{name}."))
        return found

    def _entries(self, kind: str) -> dict[Any, Any]:
        entries = self.state.get(kind, {})
        if not isinstance(entries, dict):
            raise CheckpointError(f"{self.name} has {kind} that are not a dict")
        return entries


class Foreign(Holder):
    """The placeholder of any name that is not known, and of what calling it gives: it keeps its state, nothing else."""

    __slots__ = ()

    def build(self, state: Any) -> None:
        """Keep attributes, which come as a dict, or as a dict and one of slots."""
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            if isinstance(part, dict):
                self.state.update(part)


class Machine:
    """Runs one pickle.

    Args:
        names: (module, name) -> what answers for it, which may have a method ``build(state)``.
        budget: pays for the calls.
        persistent_load: answers persistent ids; None refuses them.
        max_opcodes: more are refused.
        foreign: whether other names, and keys of other types than text and integers, become `Foreign` objects; they
            are refused otherwise.
    """

    def __init__(
        self,
        names: Mapping[tuple[str, str], Any],
        budget: Budget,
        persistent_load: Callable[[Any], Any] | None = None,
        max_opcodes: int = MAX_OPCODES,
        foreign: bool = False,
    ) -> None:
        self._names = names
        self._budget = budget
        self._persistent_load = persistent_load
        self._max_opcodes = max_opcodes
        self._foreign = foreign
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, stream: IO[bytes]) -> Any:
        """The object of the pickle that starts here; the stream is left behind its end.

        Raises:
            CheckpointError: it asks for something that is not allowed. A damaged one may raise anything else.
        """
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= self._max_opcodes:
                raise CheckpointError(f"refused: the pickle has more than {self._max_opcodes} opcodes")
            if opcode.name in _PLAIN:
                self._stack.append(argument)
            elif opcode.name in _CONSTANTS:
                self._stack.append(_CONSTANTS[opcode.name])
            elif opcode.name in _EMPTY:
                self._stack.append(_EMPTY[opcode.name]())
            elif step := self._STEPS.get(opcode.name) or (self._foreign and self._FOREIGN_STEPS.get(opcode.name)):
                step(self, argument)
            else:
                raise CheckpointError(f"refused: opcode {opcode.name}, which no file of weights needs")
        return self._stack.pop()

    def _nothing(self, _: Any) -> None:
        """Header, frame, end."""

    def _mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _pop(self, _: Any) -> None:
        self._stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._from_mark()

    def _from_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._from_mark()))

    def _tuple_of(self, count: int) -> None:
        items = tuple(self._stack[-count:])
        if len(items) != count:
            raise CheckpointError("a pickle that takes more than there is")
        self._stack[-count:] = [items]

    def _put(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    def _memoize(self, _: Any) -> None:
        self._put(len(self._memo))

    def _get(self, place: int) -> None:
        self._stack.append(self._memo[place])

    def _append(self, _: Any) -> None:
        self._extend([self._stack.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._from_mark())

    def _extend(self, items: list[Any]) -> None:
        self._top(list).extend(items)

    def _set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._top(dict)[self._key(key)] = value

    def _set_items(self, _: Any) -> None:
        items = self._from_mark()
        self._top(dict).update(self._pairs(items))

    def _pairs(self, items: list[Any]) -> Iterable[tuple[Any, Any]]:
        return zip(map(self._key, items[::2]), items[1::2], strict=True)

    def _add_items(self, _: Any) -> None:
        items = self._from_mark()
        self._top(set).update(map(self._key, items))

    def _top(self, kind: type) -> Any:
        top = self._stack[-1]
        if isinstance(top, Foreign):
            return kind()  # a list or dict of a class that is not known: what is put into it is dropped
        if type(top) is not kind:
            raise CheckpointError(f"a pickle puts items into a {type(top).__name__}, not a {kind.__name__}")
        return top

    def _key(self, value: Any) -> Any:
        try:
            return _key(value)
        except CheckpointError:
            if self._foreign:
                return Foreign(f"a key of type {type(value).__name__}")  # hashed by identity
            raise

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(self._named(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise CheckpointError("refused: the file asks for a name that is not text")
        self._stack.append(self._named(module, name))

    def _named(self, module: str, name: str) -> Any:
        # Packages that carry a copy of NVIDIA's code name it by their own path: package.torch_utils.persistence.
        vendored = next((part for part in VENDORED if module.endswith(f".{part}")), module)
        if (found := self._names.get((module, name), self._names.get((vendored, name)))) is not None:
            return found
        if not self._foreign:
            raise not_allowed(f"{module}.{name}")
        return Foreign(f"{vendored[:_LONGEST_NAME]}.{name[:_LONGEST_NAME]}")  # cut first: a long text costs each time

    def _call(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, Name | Foreign) or not isinstance(arguments, tuple):
            raise CheckpointError("refused: the file calls something that is not a function of the allow-list")
        self._budget.spend(_CALL + _cost(arguments) + sum(map(_cost, arguments)))
        self._stack.append(function.call(*arguments) if isinstance(function, Name) else Foreign(function.name))

    def _call_with_keywords(self, _: Any) -> None:
        keywords = self._stack.pop()
        if not isinstance(keywords, dict) or (keywords and not isinstance(self._stack[-2], Foreign)):
            raise CheckpointError("refused: the file calls a function of the allow-list with keywords")
        self._call(None)

    def _build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if type(target) is dict:
            return  # attributes of an OrderedDict or EasyDict: nobody reads them
        if not hasattr(target, "build"):
            raise CheckpointError(f"refused: the file tries to change a {type(target).__name__}")
        parts = state if isinstance(state, tuple) else (state,)
        self._budget.spend(_CALL + sum(map(_cost, parts)))
        target.build(state)

    def _external(self, _: Any) -> None:
        if self._persistent_load is None:
            raise CheckpointError("refused: the file asks for an external object (persistent id)")
        self._stack.append(self._persistent_load(self._stack.pop()))

    _STEPS: ClassVar[dict[str, Callable[[Machine, Any], None]]] = {
        **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
        "MARK": _mark,
        "TUPLE": _tuple,
        "TUPLE1": lambda machine, _: machine._tuple_of(1),
        "TUPLE2": lambda machine, _: machine._tuple_of(2),
        "TUPLE3": lambda machine, _: machine._tuple_of(3),
        **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _put),
        "MEMOIZE": _memoize,
        **dict.fromkeys(("BINGET", "LONG_BINGET"), _get),
        "APPEND": _append,
        "APPENDS": _appends,
        "SETITEM": _set_item,
        "SETITEMS": _set_items,
        "ADDITEMS": _add_items,
        "GLOBAL": _global,
        "STACK_GLOBAL": _stack_global,
        **dict.fromkeys(("REDUCE", "NEWOBJ"), _call),
        "BUILD": _build,
        "BINPERSID": _external,
    }
    #: What objects of other classes are made with; no file of weights alone needs it.
    _FOREIGN_STEPS: ClassVar[dict[str, Callable[[Machine, Any], None]]] = {
        "POP": _pop,
        "POP_MARK": _pop_mark,
        "DUP": lambda machine, _: machine._stack.append(machine._stack[-1]),
        "LIST": lambda machine, _: machine._stack.append(machine._from_mark()),
        "DICT": lambda machine, _: machine._stack.append(dict(machine._pairs(machine._from_mark()))),
        "FROZENSET": lambda machine, _: machine._stack.append(set(map(machine._key, machine._from_mark()))),
        "NEWOBJ_EX": _call_with_keywords,
        "PUT": _put,
        "GET": _get,
    }


#: Opcodes that push their argument. Texts of Python 2 are SHORT_BINSTRING.
_PLAIN = frozenset(
    [
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINSTRING", "BINSTRING"),
        *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    ]
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}


def not_allowed(name: str, where: str = "") -> CheckpointError:
    """The refusal of a name."""
    return CheckpointError(f"refused: the file asks for {name}{where}, which is not on the allow-list")


def _cost(argument: Any) -> int:
    """What it takes to copy an argument of a call."""
    if isinstance(argument, list | tuple | dict):
        return _ITEM * len(argument)
    return len(argument) if isinstance(argument, bytes | bytearray | str) else 0


def _key(value: Any) -> str | int:
    """A key of a dict or member of a set. Longer integers could be chosen to have equal hashes."""
    if type(value) is str or (isinstance(value, int) and abs(value) < 2**60):
        return value
    raise CheckpointError(f"refused: a key of type {type(value).__name__}; keys are strings or integers below 2^60")


def make_dict(items: Any = ()) -> dict[Any, Any]:
    """collections.OrderedDict; Python 2 gives it a list of pairs."""
    if not isinstance(items, list | tuple) or any(not isinstance(i, list | tuple) or len(i) != 2 for i in items):
        raise CheckpointError("an ordered dict of something other than pairs")
    return {_key(key): value for key, value in items}


def make_set(items: Any = ()) -> set[Any]:
    """builtins.set, which has no opcode before protocol 4."""
    if not isinstance(items, list | tuple):
        raise CheckpointError("a set of something other than a list")
    return set(map(_key, items))


def are_counts(values: Any) -> bool:
    """True for a list or tuple of integers from 0 to 2^48, such as a shape."""
    return isinstance(values, list | tuple) and all(type(v) is int and 0 <= v < 2**48 for v in values)


def check_content(content: Any, file_size: int, enter: Callable[[Foreign], bool] = lambda found: False) -> None:
    """Refuse content with loops or too many levels, and one that is far larger than its file when each shared part
    counts as often as it stands there.

    Args:
        content: what a machine returned.
        file_size: bytes of the file that it came from.
        enter: whether the attributes of a `Foreign` object count; they do not where nobody reads them.
    """

    def is_container(value: Any) -> bool:
        return isinstance(value, _CONTAINERS) and (not isinstance(value, Foreign) or enter(value))

    allowed = 2 * file_size + SLACK
    sizes: dict[int, int] = {}  # by the id of a container
    entered: set[int] = set()
    todo = [content] if is_container(content) else []
    while todo:
        value = todo[-1]
        if id(value) in sizes:
            todo.pop()
        elif id(value) not in entered:
            entered.add(id(value))
            if len(entered) - len(sizes) > MAX_DEPTH:  # entered, but not yet left: those that hold this one
                raise CheckpointError(f"refused: the content is nested deeper than {MAX_DEPTH} levels")
            below = [part for part in _parts(value) if is_container(part) and id(part) not in sizes]
            if any(id(part) in entered for part in below):
                raise CheckpointError("refused: a part of the content holds itself")
            todo += below
        else:
            sizes[id(value)] = size = sum(_ITEM + (sizes.get(id(part)) or _leaf_size(part)) for part in _parts(value))
            if size > allowed:
                raise CheckpointError(
                    f"refused: written out, the content takes more than {allowed / 1e6:.0f} MB, "
                    f"but the file has {file_size / 1e6:.1f} MB: a part of it is repeated over and over"
                )


_CONTAINERS = (dict, list, tuple, set, Holder)


def _parts(value: Any) -> Iterable[Any]:
    """What a container holds."""
    if isinstance(value, dict):
        return [*value, *value.values()]
    return [value.state] if isinstance(value, Holder) else value


def _leaf_size(value: Any) -> int:
    if isinstance(value, Tensor | np.ndarray):
        return value.nbytes
    return len(value) if isinstance(value, str | bytes | bytearray) else 0


# Tensors


class Storage:
    """Flat values that tensors are views of."""

    __slots__ = ("values",)

    def __init__(self, values: Tensor) -> None:
        self.values = values


#: Names of torch's storage classes.
STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """torch._utils._rebuild_tensor_v2: a view of its storage, with its own strides."""
    if not isinstance(storage, Storage) or not are_counts([offset]) or not are_counts(size) or not are_counts(stride):
        raise CheckpointError("a tensor with malformed storage, offset, size or stride")
    if len(size) != len(stride) or len(size) > 8:
        raise CheckpointError(f"a tensor with {len(size)} dimensions and {len(stride)} strides")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    elements, stored = math.prod(size), storage.values.numel()
    # A zero stride could turn one stored number into terabytes: a tensor is never larger than its storage.
    if elements and (last >= stored or elements > stored):
        raise CheckpointError(f"a tensor of size {size}, stride {stride} reaches beyond its {stored} stored values")
    if not elements:
        return torch.empty(size, dtype=storage.values.dtype, device="cpu")
    return torch.as_strided(storage.values, size, stride, offset)


def rebuild_parameter(data: Any, *_: Any) -> Tensor:
    """torch._utils._rebuild_parameter."""
    if not isinstance(data, Tensor):
        raise CheckpointError("a parameter without a tensor")
    return data


#: What a state dict needs.
TORCH_NAMES: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): Name(rebuild_tensor),  # before PyTorch 0.4
    ("torch._utils", "_rebuild_tensor_v2"): Name(rebuild_tensor),
    ("torch._utils", "_rebuild_parameter_with_state"): Name(rebuild_parameter),
    ("torch._utils", "_rebuild_parameter"): Name(rebuild_parameter),
    ("collections", "OrderedDict"): Name(make_dict),
    ("builtins", "set"): Name(make_set),
    ("__builtin__", "set"): Name(make_set),  # protocol 2
    **{("torch", name): dtype for name, dtype in STORAGE_DTYPES.items()},
}
