"""What a file is that is not one of weights, in one sentence with the way out."""

from __future__ import annotations

import re

_AGAIN = "the download failed: fetch the file itself"
#: How a file begins -> what it is. Files that people pass for weights, most often after a download went wrong.
_STARTS: tuple[tuple[bytes, str], ...] = (
    (rb"\s*(<!doctype html|<html|<head|<script)", f"an HTML page, not weights; {_AGAIN}"),
    (rb"\s*<\?xml", f"an XML page, such as a server's error, not weights; {_AGAIN}"),
    (
        rb"version https://git-lfs",
        "a Git LFS pointer, which stands for the real file: run `git lfs pull` in its repository",
    ),
    (rb"https?://", "a text with an address, not weights: download what it points to"),
    (rb"\s*[{\[]", f"JSON text, not weights; if it is a server's answer, {_AGAIN}"),
    (rb"(7z\xbc\xaf|Rar!|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd)", "an archive: unpack it and pass the file inside"),
    (rb".{257}ustar", "a tar archive: unpack it and pass the file inside"),
    (rb"\x89HDF", "an HDF5 file, as Keras writes it: only files of PyTorch and of dnnlib are read"),
    (
        rb"[\x08\x0a]\x0a?.{0,60}(onnx|pytorch)",
        "an ONNX file, which has no layers by name: pass the file it was made from",
    ),
    (rb".{8}\{\"", "a safetensors file: pass the checkpoint directory that it belongs to"),
    (rb"(\x89PNG|\xff\xd8\xff|GIF8|RIFF)", "a picture, not weights"),
)


def kind_of(start: bytes) -> str:
    """What a file is that begins with these bytes, and is neither a pickle nor a file of torch.save.

    Example:
        >>> kind_of(b"<!DOCTYPE html><html>")
        'an HTML page, not weights; the download failed: fetch the file itself'
    """
    if not start:
        return "an empty file; the download failed or was never finished: fetch it again"
    for pattern, what in _STARTS:
        if re.match(pattern, start, re.IGNORECASE | re.DOTALL):
            return what
    return (
        "not a generator file, which is a pickle or a file of torch.save: expected a checkpoint directory, "
        "or a file of the kinds in docs/generators.md"
    )
