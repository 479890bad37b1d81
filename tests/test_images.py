"""Pictures as files: what is encoded comes back, and equal pixels give equal bytes."""

from __future__ import annotations

import ast
import io
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsgan_datasets.images import PictureError, jpg, open_picture, png, read_pixels

IMAGE = torch.randint(0, 256, (3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(63).view(9, 7)


def test_images_are_stored_exactly_whatever_holds_them() -> None:
    rows = IMAGE.permute(1, 2, 0).numpy()
    content = png(IMAGE)
    assert np.array_equal(read_pixels(content, "RGB"), rows)
    assert png(rows) == content == png(Image.fromarray(rows))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_maps_of_ids_are_grayscale(dtype: torch.dtype) -> None:
    assert np.array_equal(read_pixels(png(IDS.to(dtype)), "L"), IDS.numpy())


def test_maps_of_16_bits_keep_them() -> None:
    levels = IDS.numpy().astype(np.uint16) * 1000
    assert np.array_equal(read_pixels(png(levels), "I;16"), levels)


def test_a_palette_colors_the_ids() -> None:
    with Image.open(io.BytesIO(png(IDS, palette=[(1, 2, 3), (4, 5, 6)]))) as picture:
        assert picture.mode == "P" and np.array_equal(np.asarray(picture), IDS.numpy())
        colors = np.asarray(picture.convert("RGB"))
    assert colors[0, 1].tolist() == [4, 5, 6] and colors[8, 6].tolist() == [255, 255, 255]
    with pytest.raises(ValueError, match="only a map of 8-bit ids"):
        png(IMAGE, palette=[(1, 2, 3)])


def test_jpeg_is_close_and_smaller_with_less_quality() -> None:
    smooth = torch.linspace(0, 255, 64).byte().expand(3, 64, 64)
    pixels = read_pixels(jpg(smooth, 90), "RGB", formats=("JPEG",)).astype(int)
    assert abs(pixels - smooth.permute(1, 2, 0).numpy()).mean() < 3
    assert len(jpg(smooth, 30)) < len(jpg(smooth, 95))


@pytest.mark.parametrize("content", [b"", b"no picture", png(IMAGE)[:50], png(IDS)])
def test_what_is_not_such_a_picture_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="a picture"):
        read_pixels(content, "RGB")


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not of shape \(5, 9, 7\)"):
        png(np.zeros((5, 9, 7), np.uint8))


# ------------------------------------------------------------------------------------- pictures of strangers


def saved(picture: Image.Image, format: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, format=format)
    return file.getvalue()


def zeros(width: int, height: int, bits: int = 8) -> bytes:
    """A small PNG file that claims to be a large gray picture, all of its rows there."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 + width * bits // 8) * min(height, 100), 9)
    parts = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n"
DOS_POSTSCRIPT = b"\xc5\xd0\xd3\xc6" + struct.pack("<IIIIIIH", 30, len(POSTSCRIPT), 0, 0, 0, 0, 0xFFFF) + POSTSCRIPT


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (POSTSCRIPT, "PostScript"),
        (DOS_POSTSCRIPT, "PostScript"),
        *((saved(Image.new("RGB", (7, 9)), kind), kind) for kind in ("GIF", "BMP", "TIFF", "JPEG")),
        (b"%PDF-1.7\n", "PDF"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"\n<!DOCTYPE html><title>Sign in</title>", "an HTML page"),
        (b"gimp xcf v011", "GIMP"),
        (b"PK\x03\x04" + bytes(30), "a zip archive"),
    ],
)
def test_the_content_decides_which_format_it_is_and_only_those_asked_for_are_opened(
    content: bytes, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the name says, no program is started: Ghostscript is what Pillow calls for PostScript."""
    started = tmp_path / "started"
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {started}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "mask.png").write_bytes(content)
    for source in (content, tmp_path / "mask.png"):
        with pytest.raises(PictureError, match=f"holds {found}, not PNG: save it as PNG"):
            open_picture(source)
    with pytest.raises(PictureError, match="mask.png"):
        open_picture(tmp_path / "mask.png")
    assert not started.exists()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_every_format_that_is_asked_for_is_read(format: str) -> None:
    assert open_picture(saved(Image.new("L", (7, 9)), format), formats=(format,), size=(9, 7)).size == (7, 9)


def test_each_flipped_bit_and_each_cut_of_a_png_is_noticed() -> None:
    """Beyond the last row, too, where Pillow does not look at checksums any more."""
    content = png(IMAGE)
    changed = [content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :] for at in range(len(content))]
    for damaged in (*changed, *(content[:end] for end in range(len(content)))):
        with pytest.raises(PictureError):
            open_picture(damaged)
    assert open_picture(content + b"more").size == (7, 9)


@pytest.mark.parametrize("content", [zeros(60_000, 60_000), zeros(2**31 - 1, 1, 1), zeros(2**15, 2**11)])
def test_sizes_are_believed_before_anything_is_decoded(content: bytes) -> None:
    with pytest.raises(PictureError, match=r"pixels, at most|more than the 33554432 pixels|damaged PNG"):
        open_picture(content)
    with pytest.raises(PictureError, match=r"pixels, expected 7×9|more than the 33554432 pixels|damaged PNG") as caught:
        open_picture(content, size=(9, 7))
    assert pickle.loads(pickle.dumps(caught.value)).size == caught.value.size


def test_only_ordinary_files_of_bounded_length_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with (tmp_path / "long.png").open("wb") as file:
        file.truncate(2**40)
    for name, reason in (("pipe.png", "a device or a pipe"), ("long.png", "bytes, at most"), ("", "is a folder")):
        with pytest.raises(PictureError, match=reason):
            open_picture(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        open_picture(tmp_path / "nowhere.png")


#: What opens a picture in some format that the content asks for: of Pillow, OpenCV, torchvision, imageio, matplotlib.
OPENERS = {("Image", "open"), ("io", "read_image"), ("io", "decode_image"), ("plt", "imread"), ("iio", "imread")}


@pytest.mark.parametrize("folder", ["dsgan_datasets", "adapters", "tools", "demo", "examples", "benchmarks"])
def test_pictures_are_opened_in_one_place_only(folder: str) -> None:
    root = Path(__file__).resolve().parent.parent
    for path in (root / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                owner = node.value.id if isinstance(node.value, ast.Name) else ""
                opens = (owner, node.attr) in OPENERS or node.attr in ("imread", "imdecode", "decode_jpeg")
                assert not opens or (path.name == "images.py" and folder == "dsgan_datasets"), f"{path}:{node.lineno}"


def test_a_picture_of_too_many_pixels_is_not_called_damaged() -> None:
    """Pillow refuses this one itself, in its own words."""
    content = bytearray(png(IDS))
    content[16:24] = struct.pack(">II", 30_000, 30_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    with pytest.raises(PictureError, match="has more than the 33554432 pixels that are read: make it smaller"):
        open_picture(bytes(content))
