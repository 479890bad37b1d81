"""Photos with labels that are read where their inversions lie, as a source of samples."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsgan_datasets.checkpoints.tensors import digest_tensors, fingerprint
from dsgan_datasets.export.inputs import ExportInput
from dsgan_datasets.inversion.inverter import Inversion, InversionSettings, Inverter
from dsgan_datasets.inversion.photos import Photo, Photos
from dsgan_datasets.inversion.reading import read_photos
from dsgan_datasets.inversion.work import invert_photos
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.parallel import parallel_map
from dsgan_datasets.samples import Sample, SampleBatch
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.segmentation import schema_of


class LabeledPhotos:
    """Photos with labels and uncertainty; a `SampleSource`, so that whatever reads or exports samples takes it.

    Each photo is inverted, and the checkpoint's interpreter reads its features there. The image of a sample is the
    photo itself. Photos with a score above 1 are unlike what the generator knows, or could not be reconstructed: their
    labels would mean nothing, so they are left out and listed in `untrusted`.

    Args:
        labeled: the checkpoint.
        photos: of its image size.
        inversion: of these photos, in order.
        keep_untrusted: label such photos too; their samples say so by their "inversion_score".

    Samples have the further field "inversion_score", float32 scalar, see `Inversion.scores`; and `names` tells what
    the photo of each is called.

    Raises:
        ValueError: photos and inversion do not belong together, or no photo can be trusted.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces")  # doctest: +SKIP
        >>> photos = LabeledPhotos.of(labeled, "my-photos")  # doctest: +SKIP
        >>> photos.batch([0]).mask.shape, photos.untrusted  # doctest: +SKIP
        (torch.Size([1, 64, 64]), ('landscape', 'logo'))
    """

    def __init__(
        self, labeled: LabeledGenerator, photos: Photos, inversion: Inversion, *, keep_untrusted: bool = False
    ) -> None:
        if len(photos) != len(inversion.styles):
            raise ValueError(
                f"{len(photos)} photos and inversions of {len(inversion.styles)}: give those of the photos"
            )
        if photos.size != labeled.image_size:
            raise ValueError(f"photos are {photos.size}, the checkpoint's images {labeled.image_size}: align them anew")
        self.labeled = labeled.with_recipe(labeled.recipe.unfiltered())  # rules are for draws
        self.photos = photos
        self.inversion = inversion
        trusted = inversion.trusted.tolist()
        #: Names of the photos that are left out, or would be.
        self.untrusted = tuple(name for name, keep in zip(photos.names, trusted, strict=True) if not keep)
        self._rows = [row for row, keep in enumerate(trusted) if keep or keep_untrusted]
        if not self._rows:
            raise ValueError(
                f"none of the {len(photos)} photos can be trusted (best score {float(inversion.scores.min()):.2f}, of "
                "at most 1): do they show what the generator makes, aligned as it does?"
            )

    @classmethod
    def of(
        cls,
        labeled: LabeledGenerator,
        where: str | os.PathLike[str],
        settings: InversionSettings | None = None,
        *,
        work: str | os.PathLike[str] | None = None,
        keep_untrusted: bool = False,
        **reading: Any,
    ) -> LabeledPhotos:
        """Read photos, invert and label them.

        Args:
            labeled: the checkpoint.
            where: the photos, see `read_photos`.
            settings: of the inversion.
            work: folder that keeps finished inversions, see `invert_photos`.
            keep_untrusted: see `LabeledPhotos`.
            reading: further arguments of `read_photos`.
        """
        photos = read_photos(where, labeled.image_size, **reading)
        inverter = Inverter(labeled.generator, labeled.recipe, settings)
        found = invert_photos(inverter, photos, work=None if work is None else Path(work))
        return cls(labeled, photos, found, keep_untrusted=keep_untrusted)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._rows)

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return len(self._rows)

    @property
    def names(self) -> tuple[str, ...]:
        """What the photo of each sample is called."""
        return tuple(self.photos.names[row] for row in self._rows)

    @property
    def facts(self) -> list[dict[str, Any]]:
        """Of the photo of each sample: its score, and where its frame lies in the photo, as JSON."""
        return [photo_facts(self.photos[row], float(self.inversion.scores[row])) for row in self._rows]

    def as_input(self) -> ExportInput:
        """All of them, for `export`: the files are called like the photos."""
        return ExportInput(self, range(len(self)), 0, 0, self.fingerprint, names=self.names, facts=self.facts)

    @property
    def targets(self) -> tuple[Target, ...]:
        """The labels of each sample."""
        return self.labeled.targets

    @property
    def schema(self) -> Any:
        """What the class ids of the masks mean; ValueError if there are none."""
        return schema_of(self.targets)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of photos and labels."""
        return self.photos.size

    @property
    def license(self) -> str:
        """Of the photos."""
        return self.photos.license

    @property
    def group(self) -> int:
        """1: there are no groups."""
        return 1

    @property
    def block(self) -> int:
        """Samples that cost together no more than one of them."""
        return self.labeled.block

    @property
    def device(self) -> torch.device:
        """That labels are made on."""
        return self.labeled.device

    @cached_property
    def fingerprint(self) -> str:
        """Of the checkpoint, the photos and their styles."""
        pixels = hashlib.sha256()
        for row in self._rows:
            pixels.update(self.photos[row].image.numpy().tobytes())
        return fingerprint(
            self.labeled.fingerprint, pixels.hexdigest(), digest_tensors({"": self.inversion.styles[self._rows]})
        )

    def batch(self, indices: Sequence[int], *, seed: int = 0, extras: Collection[str] = ()) -> SampleBatch:
        """The samples of some photos, in the order asked for; the seed changes nothing."""
        return SampleBatch.stack(list(self.stream(indices, seed=seed, extras=extras)))

    def stream(self, indices: Iterable[int], *, seed: int = 0, extras: Collection[str] = ()) -> Iterator[Sample]:
        """The samples of some photos one by one; the seed changes nothing.

        Raises:
            ValueError: an unknown extra.
            IndexError: there is no such photo.
        """
        labeler = self.labeled.labeler
        known = [score.removesuffix("_score") for score in labeler.scores.values()]
        known += ["probabilities"] * labeler.has_probabilities
        wanted = {extras} if isinstance(extras, str) else set(extras)
        if unknown := wanted - set(known):
            raise ValueError(f"photos have the extras {', '.join(known) or 'none'}, not {', '.join(sorted(unknown))}")
        unwanted = set(known) - wanted
        waiting: list[int] = []
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"there is no photo {index}: they are numbered 0 … {len(self) - 1}")
            waiting.append(index)
            if len(waiting) == self.labeled.recipe.compute_batch:
                yield from self._labeled(waiting, wanted, unwanted)
                waiting = []
        yield from self._labeled(waiting, wanted, unwanted)

    @torch.no_grad()
    def _labeled(self, indices: Sequence[int], wanted: set[str], unwanted: set[str]) -> list[Sample]:
        rows = [self._rows[index] for index in indices]

        def label(row: int) -> dict[str, Tensor]:
            styles = self.inversion.styles[row : row + 1].to(self.device)
            fields = self.labeled.labeler.label(styles, self.labeled.recipe, wanted)
            return {
                name: value[0].cpu() if name.endswith("_score") else value[0]
                for name, value in fields.items()
                if name not in unwanted
            }

        samples = []
        for index, row, fields in zip(indices, rows, parallel_map(label, rows, self.device), strict=True):
            image = self.photos[row].image.to(self.device)
            numbers = {"index": torch.tensor(index), "attempt": torch.tensor(0)}
            score = {"inversion_score": self.inversion.scores[row]}
            samples.append(Sample({**fields, "image": image, **numbers, **score}))
        return samples


def photo_facts(photo: Photo, score: float) -> dict[str, Any]:
    """What files say of an inverted photo, as JSON."""
    alignment = None if photo.alignment is None else photo.alignment.to_dict()
    return {"photo": photo.name, "inversion_score": round(score, 4), "alignment": alignment}
