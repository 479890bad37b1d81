"""Training images in memory: read from folders and tars, scaled to the generator's size, split by their keys.

Shapes: N images, H = W pixels; images are uint8 [N, 3, H, W].
"""

import hashlib
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dsgan_datasets.images import open_picture

KINDS = ("jpg", "jpeg", "png", "webp")


def decode(data: bytes) -> Image.Image:
    """An image file.

    Raises:
        ValueError: not an image of `KINDS`, or a damaged one.
    """
    return open_picture(data, formats=("JPEG", "PNG", "WEBP"), most_pixels=2**27, what="")


def read_image(data: bytes, resolution: int) -> np.ndarray:
    """The middle square of an image file, averaged over areas to uint8 [resolution, resolution, 3].

    Raises:
        ValueError: not an image, or one that is smaller than that.
    """
    image = decode(data).convert("RGB")
    side = min(image.size)
    if side < resolution:
        raise ValueError(f"is {image.width}×{image.height} pixels, smaller than the generator's {resolution}")
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((resolution, resolution), Image.Resampling.BOX))


def tar_files(path: Path, kinds: Sequence[str]) -> Iterator[tuple[str, str, bytes]]:
    """Key, kind and content of the files FOLDER/KEY.KIND of a tar, in its order.

    Raises:
        ValueError: not a tar, or a damaged one.
    """
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                name, _, kind = name.partition(".")
                file = tar.extractfile(member) if kind.lower() in kinds else None
                if file is not None:
                    yield f"{folder}/{name}" if folder else name, kind.lower(), file.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is neither a folder nor a tar that can be read ({reason})") from error


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Key and content of each image of a tar or folder; KEY.seg.png and the like are skipped."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            name, _, kind = file.name.partition(".")
            if kind.lower() in KINDS and file.is_file():
                yield (file.parent.relative_to(path) / name).as_posix(), file.read_bytes()
    else:
        yield from ((key, data) for key, _, data in tar_files(path, KINDS))


def read_images(paths: Sequence[Path], resolution: int) -> tuple[list[str], Tensor]:
    """Keys and images of folders (searched to any depth) and WebDataset tars, in their order.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a path without images, or an image that cannot be used.
    """
    keys: list[str] = []
    images: list[np.ndarray] = []
    with tqdm(desc="read", unit="image", delay=2) as bar:
        for path in paths:
            if not path.exists():
                raise FileNotFoundError(f"{path} does not exist: give folders of images or tars")
            before = len(keys)
            for key, data in _files(path):
                try:
                    images.append(read_image(data, resolution))
                except ValueError as error:
                    raise ValueError(f"{path}: {key} {error}") from error
                keys.append(key)
                bar.update()
            if len(keys) == before:
                hint = "; it holds tars: name them (DIR/*.tar)" if path.is_dir() and any(path.glob("*.tar")) else ""
                raise ValueError(f"{path} contains no images ({', '.join(KINDS)}){hint}")
    return keys, torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def is_validation(key: str, share: float) -> bool:
    """Whether an image is kept from training; a matter of its key alone, so no reordering or addition moves it."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) < share * 2**64


def split(keys: Sequence[str], images: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Images to train on and images to validate on."""
    held_out = torch.tensor([is_validation(key, share) for key in keys])
    return images[~held_out], images[held_out]


def digest(images: Tensor) -> str:
    """SHA-256 (hex) of images: their shape and every pixel."""
    return hashlib.sha256(str(list(images.shape)).encode() + images.numpy().tobytes()).hexdigest()
