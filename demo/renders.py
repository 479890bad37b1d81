"""The demo's domain: renders with exact part masks, read from their shards, as rendered or halved and merged.

Shapes: N images of 128 pixels as rendered, or of 64.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from images import decode, tar_files
from torch import Tensor
from tqdm import tqdm

SIDE = 128  # pixels of a render
KINDS = ("jpg", "seg.png")  # image and mask: the files of a key
#: The classes of a render, which are annotated at its full size.
RENDERED = (
    "background", "skin", "neck", "ear", "nose", "brow", "eye_white", "iris", "upper_lip", "lower_lip", "mouth", "hair",
    "beard", "clothes",
)  # fmt: skip
#: The classes that are annotated where renders are halved: an iris would be two pixels.
MERGED = (
    "background", "skin", "neck", "ear", "nose", "brow", "eye", "lips", "mouth", "hair", "beard", "clothes",
)  # fmt: skip
#: The 14 rendered classes (index) as the 12 merged ones (value): eye_white + iris -> eye, upper + lower lip -> lips.
MERGE = np.array([0, 1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 9, 10, 11], dtype=np.uint8)
# Merged classes from the most to the least frequent by pixels, and the rank of each in that order.
BY_FREQUENCY = (
    "background", "skin", "hair", "neck", "nose", "clothes", "beard", "lips", "brow", "ear", "eye", "mouth",
)  # fmt: skip
RARITY = np.array([BY_FREQUENCY.index(name) for name in MERGED])


def annotated_classes(side: int) -> tuple[str, ...]:
    """Names of the classes that are annotated in images of `side` pixels."""
    return RENDERED if side == SIDE else MERGED


def class_lookup(classes: Sequence[str], side: int) -> np.ndarray:
    """Class of each of the 14 rendered classes among some names, uint8 [14].

    Raises:
        ValueError: renders cannot have these classes.
    """
    if tuple(classes) == MERGED:
        return MERGE
    if tuple(classes) == RENDERED == annotated_classes(side):
        return np.arange(len(RENDERED), dtype=np.uint8)
    possible = dict.fromkeys((MERGED, annotated_classes(side)))
    raise ValueError(
        f"got the classes {', '.join(classes)}; renders of {side} pixels can have "
        + "; or ".join(", ".join(names) for names in possible)
    )


def read_renders(shards: Sequence[Path], classes: Sequence[str], side: int) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 3, H, W] and masks uint8 [N, H, W] of all renders of some shards, in their order.

    Args:
        shards: WebDataset tars.
        classes: names of the classes of the masks: `MERGED`, or at 128 pixels `RENDERED`.
        side: H = W, 128 or 64 pixels.

    Raises:
        ValueError: a shard that is not one of the domain's, or other classes or another side.
    """
    if side not in (SIDE, SIDE // 2):
        raise ValueError(f"renders come at {SIDE // 2} and {SIDE} pixels, not {side}")
    lookup = class_lookup(classes, side)
    images, masks = [], []
    for shard in tqdm(shards, "reading renders", unit="shard", delay=2, leave=False):
        for image, mask in _pairs(shard):
            mask = lookup[mask]
            images.append(image if side == SIDE else halve_image(image))
            masks.append(mask if side == SIDE else halve_mask(mask))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return pixels, torch.from_numpy(np.stack(masks))


def _pairs(shard: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Image [128, 128, 3] and mask [128, 128] of each key; the two files of a key follow each other."""
    held: dict[str, np.ndarray] = {}
    empty = True
    for key, kind, data in tar_files(shard, KINDS):
        try:
            held[f"{key}.{kind}"] = np.asarray(decode(data))  # a mask is of mode P: the class itself
        except ValueError as error:
            raise ValueError(f"{shard}: {key}.{kind} {error}") from error
        if len(held) < 2:
            continue
        if set(held) != {f"{key}.{kind}" for kind in KINDS}:
            raise ValueError(f"{shard}: {' and '.join(held)} follow each other, expected the two files of one key")
        image, mask = (held[f"{key}.{kind}"] for kind in KINDS)
        if image.shape != (SIDE, SIDE, 3) or mask.shape != (SIDE, SIDE) or mask.max() >= len(RENDERED):
            raise ValueError(
                f"{shard}: {key} is {image.shape} with mask {mask.shape} and class {mask.max()}, expected "
                f"{SIDE}×{SIDE} pixels and classes 0-{len(RENDERED) - 1}"
            )
        yield image, mask
        held, empty = {}, False
    if held:
        raise ValueError(f"{shard} ends after {' and '.join(held)}, expected {' and '.join(KINDS)} of each key")
    if empty:
        raise ValueError(f"{shard} contains no renders, expected {' and '.join(KINDS)} of each key")


def halve_image(image: np.ndarray) -> np.ndarray:
    """Box filter: uint8 [2H, 2W, 3] -> uint8 [H, W, 3]."""
    h, w, c = image.shape
    blocks = image.reshape(h // 2, 2, w // 2, 2, c).astype(np.uint16)
    return ((blocks.sum((1, 3)) + 2) // 4).astype(np.uint8)


def halve_mask(mask: np.ndarray) -> np.ndarray:
    """Majority of each 2x2 block of merged classes: uint8 [2H, 2W] -> uint8 [H, W].

    A tie goes to the rarer class: eyes, lips and mouth are a few pixels and would otherwise be eaten by the skin
    around them.
    """
    corners = np.stack([mask[i::2, j::2] for i in (0, 1) for j in (0, 1)])
    votes = (corners[:, None] == corners[None]).sum(1)
    winner = (votes * len(MERGED) + RARITY[corners]).argmax(0)
    return np.take_along_axis(corners, winner[None], 0)[0]
