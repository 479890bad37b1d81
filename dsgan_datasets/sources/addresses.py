"""``dsgan://`` addresses of samples, which stand in for file names where a framework wants some.

    dsgan://FINGERPRINT/KIND/NAME_SEED_INDEX.EXTENSION        dsgan://0525d18e/image/demo-faces_0_7.png

FINGERPRINT is the first eight digits of the source's; KIND is "image" or the field of a label, such as "mask"; NAME is
the last part of the checkpoint's path in MMSegmentation and Ultralytics, and the registered name in Detectron2,
percent-encoded. The last part alone is different for each sample of a dataset, as tools save pictures under it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from dsgan_datasets.latents import MAX_INDEX

SCHEME = "dsgan://"
GRAMMAR = f"{SCHEME}FINGERPRINT/KIND/NAME_SEED_INDEX.png, KIND being image, mask or another label"

_PATTERN = re.compile(
    rf"{SCHEME}(?P<fingerprint>[0-9a-f]{{8}})/(?P<kind>[a-z][a-z0-9_]*)/"
    r"(?P<name>[^/]+)_(?P<seed>0|[1-9][0-9]*)_(?P<index>0|[1-9][0-9]*)\.(?P<extension>png|ppm|pgm)"
)


@dataclass(frozen=True)
class SampleAddress:
    """Where a picture of a sample is found; `str` gives the address, `parse` reads it.

    Attributes:
        fingerprint: the first eight digits of the source's.
        kind: "image", or the field of a label.
        name: a word for people, or the registered name.
        seed: of the dataset.
        index: number of the sample.
        extension: of the file that readers get: "png", "ppm" or "pgm".

    Example:
        >>> address = SampleAddress("0525d18e", "mask", "faces/train", seed=1, index=7)
        >>> str(address)
        'dsgan://0525d18e/mask/faces%2Ftrain_1_7.png'
        >>> parse(str(address)) == address
        True
    """

    fingerprint: str
    kind: str
    name: str
    seed: int
    index: int
    extension: str = "png"

    def __str__(self) -> str:
        name = quote(self.name, safe=" ")
        return f"{SCHEME}{self.fingerprint}/{self.kind}/{name}_{self.seed}_{self.index}.{self.extension}"


def parse(address: str) -> SampleAddress:
    """The parts of an address.

    Raises:
        FileNotFoundError: it is not one, as it takes the place of a file name.
    """
    found = _PATTERN.fullmatch(address)
    if found is None or len(found["seed"]) > 20 or len(found["index"]) > 20 or int(found["index"]) > MAX_INDEX:
        raise FileNotFoundError(f"{address:.300} names no sample; expected {GRAMMAR}")
    parts = found.groupdict()
    return SampleAddress(
        parts["fingerprint"],
        parts["kind"],
        unquote(parts["name"]),
        int(parts["seed"]),
        int(parts["index"]),
        parts["extension"],
    )
