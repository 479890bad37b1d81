"""Pictures of inversions: photo, reconstruction and difference side by side."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dsgan_datasets.inversion.inverter import Inversion
from dsgan_datasets.inversion.photos import Photos
from dsgan_datasets.pictures import heat_map, photo, sheet

#: Levels of 0 … 255 that are shown brightest in a difference.
_BRIGHTEST = 64
#: Photos on a sheet; more would not fit into a picture.
_SHOWN = 200


def inversion_sheet(photos: Photos, found: Inversion, *, title: str = "", columns: int = 3) -> Image.Image:
    """A contact sheet of the first 200 photos: photo | reconstruction | difference, with scores below.

    Args:
        photos, found: photos and their inversion.
        title: first words of the sheet.
        columns: photos side by side.

    Example:
        >>> from dsgan_datasets.inversion import Photo
        >>> black = Photo("black", torch.zeros(3, 8, 8, dtype=torch.uint8))
        >>> none = torch.zeros(1)
        >>> found = Inversion(torch.zeros(1, 2, 4), black.image[None], none, none, none)
        >>> inversion_sheet(Photos({"black": lambda: black}, (8, 8)), found).mode
        'RGB'
    """
    pictures, captions = [], []
    for row, each in zip(range(min(len(photos), _SHOWN)), photos, strict=False):
        difference = np.abs(each.image.numpy().astype(np.float64) - found.images[row].numpy()).mean(0)
        pictures.append([photo(each.image), photo(found.images[row]), heat_map(difference, _BRIGHTEST)])
        score = float(found.scores[row])
        captions.append(f"{each.name:.24}   score {score:.2f}{'' if score <= 1 else '   NOT TRUSTED'}")
    shown = f"photo | reconstruction | difference, bright = {_BRIGHTEST} levels"
    return sheet(pictures, captions, f"{title}   ({shown})".strip(), columns=columns)
