"""Photos as the generator would have seen them, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from dsgan_datasets.annotations.folder import Array
from dsgan_datasets.annotations.mistakes import Findings
from dsgan_datasets.contents import ContentError
from dsgan_datasets.images import PictureError, open_picture
from dsgan_datasets.inversion.alignment import Alignment
from dsgan_datasets.targets.base import Target

#: Formats of photos, as Pillow calls them.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
#: A photo may have more pixels than a picture of ours.
_MOST_PIXELS = 2**27


@dataclass(frozen=True)
class Photo:
    """One photo as the generator would have seen it.

    Attributes:
        name: what it is called: path without ending, and the number of the annotation it was cropped by.
        image: uint8 RGB [3, H, W], aligned.
        alignment: where the frame lies in the photo; None of photos that were not changed.

    Example:
        >>> Photo("holiday-beach", torch.zeros(3, 64, 64, dtype=torch.uint8)).name
        'holiday-beach'
    """

    name: str
    image: Tensor
    alignment: Alignment | None = None


#: Reads a photo; its error continues a sentence that begins with the photo's name.
Reader = Callable[[], Photo]
#: Name of a photo -> field of a target -> its label in the photo's frame.
Labels = Mapping[str, Mapping[str, Array]]
#: Reads labels that came with photos: photos, targets, findings.
LabelReader = Callable[[Any, Sequence[Target], Findings], dict[str, dict[str, Array]]]


class Photos(Sequence[Photo]):
    """Photos that are read when they are asked for; get them from `read_photos`.

    Args:
        readers: name -> what reads the photo, in order.
        size: (H, W) of aligned images.
        license: of the photos, as far as it is known.
        labels: reads the labels that came with them, see `read_labels`; None if nothing came.
        left_out: names of photos that lay beside them and could not be used.

    Example:
        >>> gray = Photo("gray", torch.full((3, 8, 8), 128, dtype=torch.uint8))
        >>> photos = Photos({"gray": lambda: gray}, (8, 8))
        >>> len(photos), photos[0].name, photos.size
        (1, 'gray', (8, 8))
    """

    def __init__(
        self,
        readers: Mapping[str, Reader],
        size: tuple[int, int],
        license: str = "unspecified",
        *,
        labels: LabelReader | None = None,
        left_out: Collection[str] = (),
    ) -> None:
        self._readers = dict(readers)
        self.names = tuple(self._readers)
        self.size = size
        self.license = license
        self.labels = labels
        self.left_out = frozenset(left_out)

    def __len__(self) -> int:
        """Number of photos."""
        return len(self.names)

    @overload
    def __getitem__(self, number: int) -> Photo: ...

    @overload
    def __getitem__(self, number: slice) -> Photos: ...

    def __getitem__(self, number: int | slice) -> Photo | Photos:
        """A photo by its number, or some of the photos."""
        if isinstance(number, slice):
            names = self.names[number]
            others = self.left_out | (set(self.names) - set(names))
            readers = {name: self._readers[name] for name in names}
            return Photos(readers, self.size, self.license, labels=self.labels, left_out=others)
        return self._readers[self.names[number]]()

    def __iter__(self) -> Iterator[Photo]:
        """The photos in order."""
        return (read() for read in self._readers.values())


def upright(content: bytes) -> Image.Image:
    """The RGB picture of a file, turned as its EXIF data says.

    Raises:
        ContentError: it cannot be used; the message continues a sentence that begins with the photo's name.
    """
    try:
        picture = open_picture(content, formats=_FORMATS, most_pixels=_MOST_PIXELS)
    except PictureError as error:
        raise ContentError(error.reason) from None
    if picture.mode.startswith(("I", "F")):
        raise ContentError(
            f"has more than 8 bits a channel (mode {picture.mode}): choose the window of gray values that matters, the "
            "same as for the images that the generator was trained on, map it to 0 … 255, and save it with 8 bits"
        )
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if int(np.asarray(picture.getchannel("A")).min()) < 255:
            raise ContentError("is transparent in places: put it on a background first")
    return ImageOps.exif_transpose(picture).convert("RGB")
