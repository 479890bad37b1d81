"""Images and what identifies them -> the folder that an annotator works in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from dsgan_datasets.annotations.folder import Exported, hash_pixels, write_bytes
from dsgan_datasets.annotations.projects import projects, write_drafts, write_projects, write_readme
from dsgan_datasets.files import written_whole
from dsgan_datasets.images import png
from dsgan_datasets.pictures import as_png, photo, sheet


def write_folder(
    out: Path,
    exported: Exported,
    images: Tensor,
    drafts: Mapping[str, Tensor],
    *,
    rounds: Sequence[str] = (),
    how: str,
    more: Mapping[str, bytes] | None = None,
) -> Exported:
    """Write images to annotate, with projects for annotation tools; the folder appears when it is complete.

    Args:
        out: new, or empty.
        exported: what is written; the hashes of images and drafts are filled in.
        images: uint8 [A, 3, H, W], in the order of `exported.images`.
        drafts: field -> drafted labels [A, ...], of those that are drafted.
        rounds: names of the folders that this one will be fitted together with.
        how: the images were chosen, for the title of the contact sheet.
        more: further files, path -> content.

    Returns:
        `exported`, with the hashes.

    Raises:
        ValueError: something is at `out`.
        OSError: the folder cannot be written.
    """
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    stems = [image.name for image in exported.images]
    with written_whole(out) as folder:
        (folder / "images").mkdir()
        for image, content in zip(exported.images, pixels, strict=True):
            write_bytes(folder / image.file, png(content))
        for path, written in (more or {}).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(folder / path, written)
        given = projects(exported.targets, drafts)
        write_projects(folder, given)
        hashes = write_drafts(folder, stems, exported.targets, given, drafts, exported.size)
        to_fit = [*rounds, out.resolve().name]
        write_readme(folder, given, exported.size, exported.generator, to_fit, drafted=bool(drafts))
        exported = dataclasses.replace(
            exported,
            images=tuple(
                dataclasses.replace(image, sha256=hash_pixels(content), draft=draft)
                for image, content, draft in zip(exported.images, pixels, hashes, strict=True)
            ),
        )
        write_bytes(folder / "contact_sheet.png", _contact_sheet(exported, images, drafts, how))
        exported.write(folder)
    return exported


def _contact_sheet(exported: Exported, images: Tensor, drafts: Mapping[str, Tensor], how: str) -> bytes:
    """A picture of what is to be annotated, with the drafts if there are some."""
    pictures, captions = [], []
    for i, image in enumerate(exported.images):
        cells = [photo(images[i])]
        cells += [
            target.draw(cells[0], drafts[target.field][i], exported.size)
            for target in exported.targets
            if target.field in drafts
        ]
        pictures.append(cells)
        score = image.uncertainty_score
        captions.append(image.name if score is None else f"{image.name}   score {score:.4f} nats")
    title = f"{exported.generator} · {len(pictures)} images to annotate, {how}"
    return as_png(sheet(pictures, captions, title, exported.targets, columns=4))
