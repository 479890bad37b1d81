"""What a stopped training needs to resume, as a folder of small files, and the best generator so far.

DIR/state.json          names the current state, with its hash; replaced last, so there is always one whole state
DIR/state-000012/       config.json, state.json, and the tensors in safetensors files of at most 15 MB
DIR/best/               the best generator so far as `dsgan` reads it, and evaluation.json
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dsgan_datasets.files import atomic_write, write_json

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

MAX_FILE_BYTES = 15_000_000

Tensors = dict[str, Tensor]


class StateError(ValueError):
    """A folder that training cannot resume from; the message says why and what to do."""


# ------------------------------------------------------------------------------------------------- files


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; StateError if the file does not hold one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StateError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise StateError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


def write_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor], limit: int = MAX_FILE_BYTES) -> list[Path]:
    """Write NAME.safetensors, or NAME-1-of-K.safetensors …, no file larger than `limit` bytes.

    Raises:
        StateError: a single tensor is larger than that.
    """
    parts: list[Tensors] = [{}]
    room = limit
    for key, tensor in tensors.items():
        size = tensor.nbytes + len(key) + 200  # its entry in the header: name, type, shape, offsets
        if size > limit:
            raise StateError(f"tensor {key} takes {size:,} bytes, a file at most {limit:,}: choose a larger limit")
        if size > room:
            parts.append({})
            room = limit
        parts[-1][key] = tensor.detach().cpu().contiguous()
        room -= size
    stems = [name] if len(parts) == 1 else [f"{name}-{i}-of-{len(parts)}" for i in range(1, len(parts) + 1)]
    paths = [folder / f"{stem}.safetensors" for stem in stems]
    for path, part in zip(paths, parts, strict=True):
        with atomic_write(path) as file:
            file.write(save(part))
    return paths


def read_tensors(folder: Path, name: str) -> Tensors:
    """What `write_tensors` wrote.

    Raises:
        StateError: a file is missing or damaged.
    """
    paths = [folder / f"{name}.safetensors"]
    if not paths[0].is_file():
        found = sorted(folder.glob(f"{name}-*-of-*.safetensors"))
        if not found:
            raise StateError(f"{folder} has no {name}.safetensors")
        count = int(found[0].stem.rpartition("-")[2])
        paths = [folder / f"{name}-{i}-of-{count}.safetensors" for i in range(1, count + 1)]
    tensors: Tensors = {}
    for path in paths:
        try:
            tensors |= load(path.read_bytes())
        except (OSError, SafetensorError, ValueError) as error:
            raise StateError(f"{path} cannot be read: {error}") from error
    return tensors


# ------------------------------------------------------------------------------------------------- state


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training in the same folder; the lock goes with the process, however it ends.

    Raises:
        StateError: one does.
    """
    if folder.exists() and not folder.is_dir():
        raise StateError(f"--state {folder} is a file: give a folder, it is made if it does not exist")
    if (folder / "generator.safetensors").exists():
        raise StateError(f"--state {folder} holds a generator: give a folder of its own for the training")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StateError(f"another process trains in {folder}: stop it, or give another --state") from error
        yield


def save_state(
    folder: Path,
    config: Mapping[str, object],
    progress: Mapping[str, object],
    networks: Mapping[str, Mapping[str, Tensor]],
    limit: int = MAX_FILE_BYTES,
) -> Path:
    """Make this the current state of a folder; killed at any moment, it leaves the state before or this one.

    Args:
        folder: made if it does not exist.
        config: shape of the generator.
        progress: what is not a tensor.
        networks: name -> tensors.
        limit: largest file, bytes.

    Returns:
        The folder of the state.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = _current(folder)
    serial = int(before.name.removeprefix("state-")) + 1 if before else 1
    state = folder / f"state-{serial:06d}"
    shutil.rmtree(state, ignore_errors=True)  # of a save that was killed
    state.mkdir()
    paths = [path for name, tensors in networks.items() for path in write_tensors(state, name, tensors, limit)]
    write_json(state / "config.json", config)
    hashes = {path.name: _sha256(path) for path in (state / "config.json", *paths)}
    write_json(state / "state.json", {**progress, "sha256": hashes})
    write_json(folder / "state.json", {"current": state.name, "sha256": _sha256(state / "state.json")})
    for old in folder.glob("state-*"):
        if old != state:
            shutil.rmtree(old)
    return state


def load_state(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensors]] | None:
    """Config, progress and networks of the current state; None if the folder has none yet.

    Raises:
        StateError: the state is damaged.
    """
    state = _current(folder)
    if state is None:
        return None
    if (expected := read_json(folder / "state.json").get("sha256")) is not None:  # older states have none
        _check(state / "state.json", expected)
    progress = read_json(state / "state.json")
    hashes = progress.pop("sha256", None)
    if not isinstance(hashes, dict):
        raise StateError(f"{state / 'state.json'} lacks the hashes of its tensors")
    for name, expected in hashes.items():
        _check(state / name, expected)
    config = read_json(state / "config.json")
    names = {re.sub(r"(-\d+-of-\d+)?\.safetensors$", "", path.name) for path in state.glob("*.safetensors")}
    return config, progress, {name: read_tensors(state, name) for name in sorted(names)}


def start_folder(folder: Path) -> Path:
    """Where the networks to start from are: in the folder itself, or in the current state of a training there.

    Raises:
        StateError: the state is damaged.
    """
    return folder if (folder / "config.json").exists() else _current(folder) or folder


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check(path: Path, expected: object) -> None:
    """Raise a StateError if a file does not have a hash."""
    try:
        found = _sha256(path)
    except OSError as error:
        raise StateError(f"{path} cannot be read: {error}") from error
    if found != expected:
        raise StateError(f"{path} was changed or is damaged (SHA-256 {found[:12]}…, expected {expected!s:.12}…)")


def _current(folder: Path) -> Path | None:
    pointer = folder / "state.json"
    if not pointer.exists():
        return None
    name = read_json(pointer).get("current")
    if not isinstance(name, str) or not re.fullmatch(r"state-\d{6,}", name):
        raise StateError(f"{pointer} names the state {name!r:.40}, expected state-NNNNNN")
    return folder / name


# ------------------------------------------------------------------------------------------------- best


def save_best(folder: Path, write: Callable[[Path], object]) -> None:
    """Replace FOLDER/best by what `write` puts into the folder that it is given."""
    new, best, old = folder / ".best.new", folder / "best", folder / ".best.old"
    recover_best(folder)
    new.mkdir(parents=True)
    write(new)
    if best.exists():
        best.rename(old)
    new.rename(best)
    shutil.rmtree(old, ignore_errors=True)


def recover_best(folder: Path) -> None:
    """Put right what a kill within `save_best` left."""
    new, best, old = folder / ".best.new", folder / "best", folder / ".best.old"
    if old.exists() and not best.exists():  # the old one was moved away, so the new one is whole
        (new if new.exists() else old).rename(best)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
