"""dsgan:// paths on Detectron2's PathManager: stock mappers and evaluators read samples as if they were files."""

from __future__ import annotations

import io
from typing import Any

from detectron2.utils.file_io import PathHandler, PathManager

from dsgan_datasets.adapters.detectron2.registered import RegisteredDataset, resolve
from dsgan_datasets.sources.addresses import SCHEME


class DSGANPathHandler(PathHandler):
    """Opens the addresses of `dsgan_datasets.sources.addresses`, images as PPM and masks as PGM, for reading.

    An index always names the same sample: one that is no longer there is generated again. An address of another
    dataset is refused.

    Example:
        >>> from dsgan_datasets.adapters.detectron2 import register
        >>> path = register("read", "demo-faces", device="cpu").path(3, "image")
        >>> path[:8], path[17:], PathManager.open(path, "rb").read(12)
        ('dsgan://', 'image/read_0_3.ppm', b'P6 64 64 255')
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [SCHEME]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> io.BytesIO:
        if mode not in ("r", "rb"):
            raise ValueError(f"{path} can only be read, not opened with mode {mode!r}")
        return io.BytesIO(encode(*resolve(path)))

    def _exists(self, path: str, **kwargs: Any) -> bool:
        try:
            resolve(path)
        except FileNotFoundError:
            return False
        return True

    _isfile = _exists

    def _isdir(self, path: str, **kwargs: Any) -> bool:
        return False


def encode(dataset: RegisteredDataset, index: int, kind: str) -> bytes:
    """An image as binary PPM, or a semantic target as binary PGM: what every reader takes, without compression.

    Source: https://netpbm.sourceforge.net/doc/ppm.html
    """
    sample = dataset.sample(index)
    height, width = sample.image.shape[1:]
    if kind == "image":
        return b"P6 %d %d 255\n" % (width, height) + sample.image.permute(1, 2, 0).cpu().numpy().tobytes()
    return b"P5 %d %d 255\n" % (width, height) + dataset.labels.sem_seg(sample.mask).byte().cpu().numpy().tobytes()


PathManager.register_handler(DSGANPathHandler(), allow_override=True)
