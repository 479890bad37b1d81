"""Many photos -> their styles, a few at a time, kept on the disk so that a stopped run resumes; and files of styles."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dsgan_datasets.annotations.folder import generator_fingerprint, write_bytes
from dsgan_datasets.checkpoints.errors import CheckpointError
from dsgan_datasets.checkpoints.tensors import fingerprint
from dsgan_datasets.checkpoints.torch_file import read_torch_file
from dsgan_datasets.contents import ContentError, read_bounded
from dsgan_datasets.files import is_file
from dsgan_datasets.inversion.inverter import Inversion, Inverter
from dsgan_datasets.inversion.photos import Photos
from dsgan_datasets.parallel import parallel_map

#: Bytes of a file of styles: 100,000 photos of 18 vectors of 512 are 3.7e9.
_LONGEST_STYLES = 2**32
#: Batches of photos that are read together and inverted side by side, on as many cores as there are.
_SIDE_BY_SIDE = 8
_FIELDS = tuple(field.name for field in dataclasses.fields(Inversion))


def invert_photos(
    inverter: Inverter, photos: Photos, *, work: Path | None = None, start: Tensor | None = None
) -> Inversion:
    """The styles of all photos, with a progress bar.

    Args:
        inverter: finds them.
        photos: of the inverter's size.
        work: folder that keeps what is found, batch by batch, until `finish_work` removes it: the same call resumes
            there, also with more photos. None keeps nothing.
        start: styles to start from, float32 [N, num_ws, w_dim].

    Raises:
        ValueError: photos of another size, or none.
        OSError: the folder cannot be written to.

    Example:
        >>> from dsgan_datasets import Inverter, read_photos
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces")  # doctest: +SKIP
        >>> photos = read_photos("my-photos", labeled.image_size)  # doctest: +SKIP
        >>> found = invert_photos(Inverter(labeled.generator, labeled.recipe), photos)  # doctest: +SKIP
        >>> found.styles.shape  # doctest: +SKIP
        torch.Size([30, 10, 128])
    """
    if not len(photos):
        raise ValueError("there are no photos to invert")
    batch = inverter.recipe.compute_batch
    decisive = [
        generator_fingerprint(inverter.generator),
        inverter.recipe.to_dict()["rendering"],
        dataclasses.asdict(inverter.settings),
    ]
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
    found: list[Inversion] = []
    with tqdm(total=len(photos), desc="inverting", unit="photo", delay=2, leave=False) as progress:

        def one(task: tuple[Tensor, Tensor | None]) -> Inversion:
            images, begin = task
            pixels = hashlib.sha256(images.numpy().tobytes()).hexdigest()
            styles = None if begin is None else hashlib.sha256(begin.numpy().tobytes()).hexdigest()
            file = None if work is None else work / f"{fingerprint(decisive, pixels, styles)[:32]}.npz"
            part = _kept(file)
            if part is None:
                part = inverter.invert(images, begin)
                _keep(file, part)  # at once: the other batches may take minutes
            progress.update(len(images))
            return part

        for at in range(0, len(photos), _SIDE_BY_SIDE * batch):
            images = torch.stack([photos[i].image for i in range(at, min(at + _SIDE_BY_SIDE * batch, len(photos)))])
            begins = [None] * len(images) if start is None else start[at : at + len(images)].split(batch)
            found += parallel_map(one, list(zip(images.split(batch), begins, strict=False)), inverter.device)
    return Inversion(**{name: torch.cat([getattr(part, name) for part in found]) for name in _FIELDS})


def finish_work(work: Path) -> None:
    """Remove what `invert_photos` kept, once its result is written.

    Example:
        >>> tmp.mkdir()
        >>> finish_work(tmp)
        >>> tmp.exists()
        False
    """
    shutil.rmtree(work, ignore_errors=True)


def _keep(file: Path | None, part: Inversion) -> None:
    if file is not None:
        content = io.BytesIO()
        np.savez(content, **{name: getattr(part, name).numpy() for name in _FIELDS})
        write_bytes(file, content.getvalue())


def _kept(file: Path | None) -> Inversion | None:
    """What a file holds; None if it is not there, or damaged."""
    if file is None or not is_file(file):
        return None
    try:
        with np.load(file, allow_pickle=False) as stored:
            return Inversion(**{name: torch.from_numpy(stored[name]) for name in _FIELDS})
    except Exception:  # a damaged file may raise anything at all: what it held is computed again
        return None


def read_styles(path: Path, names: tuple[str, ...], num_ws: int, w_dim: int) -> Tensor:
    """Styles to start from, such as an encoder's, of an ``.npy``, ``.pt`` or ``.pth`` file; no code from it is run.

    Args:
        path: it holds [N, num_ws, w_dim] or [N, w_dim] in the order of the photos; a ``.pt`` may hold a dict from the
            names of the photos to [num_ws, w_dim] or [w_dim] instead.
        names: of the photos, in order.
        num_ws, w_dim: of the generator.

    Returns:
        float32 [N, num_ws, w_dim].

    Raises:
        CheckpointError: the file cannot be read, or holds something else.

    Example:
        >>> tmp.mkdir()
        >>> np.save(tmp / "styles.npy", np.zeros((2, 8), np.float32))
        >>> read_styles(tmp / "styles.npy", ("a", "b"), num_ws=10, w_dim=8).shape
        torch.Size([2, 10, 8])
    """
    content = _read_npy(path) if path.suffix == ".npy" else read_torch_file(path)
    if isinstance(content, Mapping):
        by_name = {Path(str(name)).stem: value for name, value in content.items()}
        if missing := [name for name in names if not isinstance(by_name.get(name), Tensor)]:
            raise CheckpointError(f"{path} has no styles of {missing[0]}, and of {len(missing) - 1} other photos")
        content = [_one_style(path, name, by_name[name], num_ws, w_dim) for name in names]
        return torch.stack(content)
    if not isinstance(content, Tensor) or content.dim() not in (2, 3) or len(content) != len(names):
        what = list(content.shape) if isinstance(content, Tensor) else type(content).__name__
        raise CheckpointError(
            f"{path} holds {what}, expected styles [{len(names)}, {num_ws}, {w_dim}], one for each photo"
        )
    return torch.stack([_one_style(path, name, row, num_ws, w_dim) for name, row in zip(names, content, strict=True)])


def _one_style(path: Path, name: str, style: Tensor, num_ws: int, w_dim: int) -> Tensor:
    style = style[0] if style.dim() == 3 and len(style) == 1 else style
    style = style.expand(num_ws, -1) if style.dim() == 1 else style
    if tuple(style.shape) != (num_ws, w_dim) or not style.is_floating_point() or not bool(style.isfinite().all()):
        raise CheckpointError(
            f"{path}: the styles of {name} are {style.dtype} {list(style.shape)}, expected finite floats "
            f"[{num_ws}, {w_dim}]: they must be of an encoder for this generator"
        )
    return style.float()


def _read_npy(path: Path) -> Tensor:
    try:
        return torch.from_numpy(np.load(io.BytesIO(read_bounded(path, _LONGEST_STYLES)), allow_pickle=False))
    except ContentError as error:
        raise CheckpointError(f"{path} {error}") from None
    except OSError:
        raise
    except Exception as error:  # a damaged file may raise anything at all
        raise CheckpointError(
            f"{path} is not an .npy file of numbers (a dict of arrays is a pickle, which is not read: save one array)"
        ) from error
