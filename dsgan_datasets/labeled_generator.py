"""indices -> SampleBatch: the one place where latents, generator, interpreter and filter meet."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from dsgan_datasets.acceleration import Function, accelerated
from dsgan_datasets.checkpoints import directory as checkpoint_directory
from dsgan_datasets.checkpoints.card import PICTURES, model_card
from dsgan_datasets.checkpoints.description import describe, sample_fingerprint
from dsgan_datasets.checkpoints.errors import CheckpointError
from dsgan_datasets.checkpoints.fit_report import FitReport
from dsgan_datasets.checkpoints.tensors import digest_tensors
from dsgan_datasets.checks import integer
from dsgan_datasets.device import Device
from dsgan_datasets.filtering import Acceptance, accepts
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.generators.loading import build_generator, generator_tensors, parse_config, read_source
from dsgan_datasets.generators.synthesis import render, style_vectors
from dsgan_datasets.interpreters.loading import build_interpreter
from dsgan_datasets.interpreters.pixel_ensemble import PixelEnsemble
from dsgan_datasets.latents import MAX_INDEX, Latents, Purpose, as_indices, check_seed, draw_latents
from dsgan_datasets.parallel import parallel_map
from dsgan_datasets.recipe import Calibration, Recipe
from dsgan_datasets.samples import Sample, SampleBatch
from dsgan_datasets.targets.segmentation import LabelSchema

#: Fields of a sample that are only made when asked for.
EXTRAS = ("uncertainty", "latent")

#: Draws that tell the acceptance rate of a filter whose calibration did not store it.
_ESTIMATE_DRAWS = 256


class LabeledGenerator:
    """Generates labeled samples; a sample depends on (weights, recipe, seed, index) and on nothing else.

    Args:
        generator: frozen, with the feature layout that the recipe names.
        interpreter: fitted on that generator's features.
        schema: what the class ids mean.
        recipe: everything else that decides a sample.
        calibration: what `calibrate` measured for this recipe; saves measuring the acceptance rate again.
        license: license of the checkpoint, passed on to what is made with it; None is that of the generator.
        fit: how the interpreter was fitted, kept with the checkpoint.

    Raises:
        ValueError: parts do not fit together, or the filter accepts less than 2 % of the draws (the message names the
            rate of each rule).

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> batch = labeled.generate([0, 1, 2], seed=0)
        >>> batch.image.shape, batch.mask.shape
        (torch.Size([3, 3, 64, 64]), torch.Size([3, 64, 64]))
    """

    def __init__(
        self,
        generator: FeatureGenerator,
        interpreter: PixelEnsemble,
        schema: LabelSchema,
        recipe: Recipe,
        *,
        calibration: Calibration | None = None,
        license: str | None = None,
        fit: FitReport | None = None,
    ) -> None:
        self.generator = generator
        self.interpreter = interpreter
        self.schema = schema
        self.recipe = recipe
        self.calibration = calibration
        self.license = license or (generator.source.license if generator.source else "unspecified")
        self.fit = fit
        self._check_parts()
        self._class_map = None if schema.class_map is None else torch.tensor(schema.class_map, device=self.device)
        self._accelerated: Function | None = None
        self._attempt_limit = self._find_attempt_limit()

    def _check_parts(self) -> None:
        generator, interpreter, recipe = self.generator, self.interpreter, self.recipe
        check_recipe(recipe, generator, self.schema)
        if sum(generator.feature_channels) != interpreter.in_channels:
            raise ValueError(
                f"the interpreter takes {interpreter.in_channels} features a pixel, but the generator gives "
                f"{sum(generator.feature_channels)} in layout {generator.features!r}: they were not fitted together"
            )
        fine = len(self.schema.class_map or self.schema.classes)
        if fine != interpreter.num_classes:
            raise ValueError(f"the interpreter has {interpreter.num_classes} classes, the schema names {fine}")
        if (recipe.vote, recipe.top_fraction) != (interpreter.vote, interpreter.top_fraction):
            raise ValueError(
                f"recipe (vote {recipe.vote!r}, top_fraction {recipe.top_fraction}) and interpreter "
                f"(vote {interpreter.vote!r}, top_fraction {interpreter.top_fraction}) differ"
            )
        if generator.device != interpreter.w1.device:
            raise ValueError(
                f"generator on {generator.device}, interpreter on {interpreter.w1.device}: put both on one device"
            )

    def __repr__(self) -> str:
        size = "×".join(map(str, self.image_size))
        kind, classes = type(self.generator).__name__, self.schema.num_classes
        return f"LabeledGenerator({kind}, {size}, {classes} classes, {self.fingerprint[:8]})"

    @property
    def device(self) -> torch.device:
        """Where samples are computed and where images and masks stay."""
        return self.generator.device

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of images and masks."""
        return self.recipe.image_size(self.generator.img_resolution)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides a sample beside seed and index: equal prints, equal samples."""
        return sample_fingerprint(
            self.weights, self.generator.config, self.interpreter.config, self.schema, self.recipe
        )

    @property
    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """File stem -> tensors."""
        return {"generator": generator_tensors(self.generator), "interpreter": self.interpreter.state_dict()}

    @cached_property
    def weights(self) -> dict[str, str]:
        """SHA-256 (hex) of the tensors of "generator" and "interpreter"."""
        return {stem: digest_tensors(tensors) for stem, tensors in self._tensors.items()}

    def generate(
        self,
        indices: Tensor | Sequence[int] | range,
        *,
        seed: int = 0,
        attempts: int | Tensor | Sequence[int] | None = None,
        extras: Collection[str] = (),
    ) -> SampleBatch:
        """The samples of some indices, in the order asked for.

        A draw that the filter rejects is replaced by the next draw of the same index, so every index gives a sample.

        Args:
            indices: N integers in 0 … 2^63-1.
            seed: 0 … 2^64-1; another seed is another dataset.
            attempts: replay exactly these draws, without the filter; one number for all, or one an index. This is how
                a recorded sample is made again elsewhere.
            extras: further fields of the batch: "uncertainty" (per-pixel uncertainty), "latent" (z).

        Raises:
            ValueError: indices, seed or attempts out of range, or the filter has no threshold yet.
            RuntimeError: an index found no accepted draw (probability below 1e-12 if the acceptance rate is right).
        """
        flat = as_indices(indices)
        first = _as_attempts(0 if attempts is None else attempts, len(flat))
        draws = zip(flat.tolist(), first.tolist(), strict=True)
        samples = list(self._stream(draws, seed, filtered=attempts is None, extras=extras))
        return SampleBatch.stack(samples) if samples else self._empty(extras)

    def stream(
        self,
        indices: Iterable[int],
        *,
        seed: int = 0,
        attempts: Iterable[int] | None = None,
        extras: Collection[str] = (),
    ) -> Iterator[Sample]:
        """The samples of some indices one by one, in order; the samples are those of `generate`.

        Indices (and attempts, one an index, if draws are to be replayed) are taken from the iterable a little ahead of
        the samples: the places of rejected draws are filled with draws of later indices, so that no part of a compute
        batch is wasted.

        Example:
            >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
            >>> next(labeled.stream(itertools.count())).index
            tensor(0)
        """
        draws = ((i, 0) for i in indices) if attempts is None else zip(indices, attempts, strict=True)
        return self._stream(draws, seed, filtered=attempts is None, extras=extras)

    @torch.no_grad()
    def _stream(
        self, draws: Iterable[tuple[int, int]], seed: int, *, filtered: bool, extras: Collection[str]
    ) -> Iterator[Sample]:
        """Samples of (index, attempt) pairs, in order; rejected ones are drawn again if `filtered`."""
        seed = check_seed(seed)
        if unknown := set(extras) - set(EXTRAS):
            raise ValueError(f"extras are {' and '.join(EXTRAS)}, not {sorted(unknown)}")
        filtered = filtered and self._is_filtered()
        views = self.recipe.group_size if filtered else 1
        fresh = _units(draws, views)
        units_at_once = self.recipe.compute_batch // views
        rejected: deque[_Unit] = deque()
        finished: dict[int, Sample] = {}
        next_place = 0
        while True:
            again = [rejected.popleft() for _ in range(min(units_at_once, len(rejected)))]
            units = [*again, *islice(fresh, units_at_once - len(again))]
            if not units:
                return
            indices = torch.cat([unit.indices for unit in units])
            attempts = torch.cat([torch.full_like(unit.indices, unit.attempt) for unit in units])
            drawn = self._draw(indices, attempts, seed, Purpose.DATASET)
            fields = [name for name in drawn if name not in EXTRAS or name in extras]
            accepted = accepts(self.recipe, self.schema, drawn) if filtered else torch.ones(len(indices))
            first = 0  # row of the unit's first draw
            for unit in units:
                if accepted[first : first + len(unit.indices)].all():
                    for place, member in unit.wanted:
                        finished[place] = Sample({name: drawn[name][first + member] for name in fields})
                else:
                    rejected.append(unit._replace(attempt=self._next_attempt(unit)))
                first += len(unit.indices)
            while next_place in finished:
                yield finished.pop(next_place)
                next_place += 1

    def _next_attempt(self, unit: _Unit) -> int:
        if unit.attempt + 1 >= self._attempt_limit:
            raise RuntimeError(
                f"index {int(unit.indices[0])} found no accepted draw in {unit.attempt + 1} attempts; the acceptance "
                "rate must have changed since it was measured: calibrate again"
            )
        return unit.attempt + 1

    def _empty(self, extras: Collection[str]) -> SampleBatch:
        """A batch of no samples."""
        sample = next(self._stream([(0, 0)], 0, filtered=False, extras=extras))
        return SampleBatch({name: value.new_empty(0, *value.shape) for name, value in sample.items()})

    def _draw(self, indices: Tensor, attempts: Tensor, seed: int, purpose: Purpose) -> dict[str, Tensor]:
        """All fields of up to compute_batch draws, unfiltered; none depends on which others are asked for."""
        latents = draw_latents(self.recipe, self.generator.z_dim, indices, seed=seed, attempt=attempts, purpose=purpose)
        if self.device.type == "cpu":
            rows = parallel_map(self._compute, [latents[i : i + 1] for i in range(len(latents))], self.device)
            fields = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        else:
            # The last bits of a convolution depend on its batch size: it is always the same, filled up if need be.
            padding = torch.arange(self.recipe.compute_batch).clamp(max=len(indices) - 1)
            fields = {name: value[: len(indices)] for name, value in self._compute(latents[padding]).items()}
        fields |= {"index": indices, "attempt": attempts, "latent": latents.z}
        return fields if latents.class_label is None else {**fields, "class_label": latents.class_label}

    def _compute(self, latents: Latents) -> dict[str, Tensor]:
        """Image, mask and uncertainty of latents."""
        compute = self._accelerated or self._image_and_labels
        image, mask, js, score = compute(style_vectors(self.generator, self.recipe, latents))
        return {
            "image": image,
            "mask": mask,
            "uncertainty": js,
            "uncertainty_score": score.cpu(),
        }  # the one time that the host waits

    def _image_and_labels(self, ws: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Image, mask, uncertainty and score of style vectors; on a GPU nothing in here waits for it."""
        image, features = render(self.generator, self.recipe, ws)
        frame = self.recipe.frame_size(self.generator.img_resolution)
        labels = self.interpreter.label(features, frame, rows=self.recipe.crop)
        mask = labels.mask if self._class_map is None else self._class_map[labels.mask]
        if self.recipe.max_uncertainty is not None:
            mask = mask.masked_fill(labels.uncertainty > self.recipe.max_uncertainty, self.schema.ignore_index)
        return image, mask, labels.uncertainty, labels.uncertainty_score

    def _is_filtered(self) -> bool:
        if self.recipe.needs_calibration:
            raise ValueError(
                f"the recipe rejects {self.recipe.reject_fraction:.0%} of the draws, but has no threshold: it was "
                "changed, which drops the calibrated one. Run calibrate(...) (`dsgan calibrate`), or give threshold=… "
                "in nats, or threshold=None (`--no-filter`) to accept every draw"
            )
        return self.recipe.is_filtered

    def _find_attempt_limit(self) -> int:
        """Draws an index may take; refuses rules that hardly any draw passes."""
        if not self.recipe.is_filtered or self.recipe.needs_calibration:
            return 1
        if self.calibration is not None:
            measured = Acceptance(
                self.calibration.num_samples // self.recipe.group_size, self.calibration.acceptance, {}
            )
        else:
            drawn = self.unfiltered(
                max(_ESTIMATE_DRAWS, 32 * self.recipe.group_size), description="measuring the acceptance rate"
            )
            measured = Acceptance.measure(self.recipe, self.schema, drawn)
        return measured.check().attempt_limit

    @torch.no_grad()
    def unfiltered(self, num_draws: int, *, seed: int = 0, description: str = "drawing") -> Iterator[dict[str, Tensor]]:
        """Fields of draws that the filter has not seen, batch by batch, from the calibration's own family of latents.

        Shows a progress bar if it takes more than two seconds.
        """
        batches = range(0, num_draws, self.recipe.compute_batch)
        for start in tqdm(batches, description, unit="batch", delay=2, leave=False):
            indices = torch.arange(start, min(start + self.recipe.compute_batch, num_draws))
            yield self._draw(indices, torch.zeros_like(indices), seed, Purpose.CALIBRATION)

    @torch.no_grad()
    def accelerate(self, *, compile: bool = False) -> LabeledGenerator:
        """Compute a batch as one CUDA graph from now on: a GPU need not wait for the host to name each operation.

        Where that fails there is a RuntimeWarning, and samples are computed as before.

        Args:
            compile: have torch.compile fuse the generator's operations first. This takes a minute, and changes the last
                bits of samples: those of one dataset should all be made with it, or all without.

        Returns:
            The labeled generator itself.

        Example:
            >>> labeled = LabeledGenerator.from_pretrained("demo-faces").accelerate()  # doctest: +SKIP
        """
        ws = torch.zeros(self.recipe.compute_batch, self.generator.num_ws, self.generator.w_dim, device=self.device)
        modules = [self.generator.synthesis_network] if compile else []
        self._accelerated = accelerated(self._image_and_labels, ws, modules=modules)
        return self

    def with_recipe(self, recipe: Recipe, calibration: Calibration | None = None) -> LabeledGenerator:
        """The same parts with another recipe, and what was measured for that one; ValueError if they do not fit."""
        parts = (self.generator, self.interpreter, self.schema, recipe)
        return LabeledGenerator(*parts, calibration=calibration, license=self.license, fit=self.fit)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike[str], *, device: Device = None, **recipe_overrides: Any
    ) -> LabeledGenerator:
        """Load a checkpoint directory.

        Args:
            name_or_path: a path, the name of a built-in checkpoint ("demo-faces"), or "hf://org/name".
            device: None is the current CUDA device if there is one, else the CPU.
            recipe_overrides: fields of `Recipe` to change; `require` may name classes. A change that moves the scores
                drops the calibrated threshold: calibrate again, or say ``threshold=None`` for no filter.

        Raises:
            CheckpointError: files are missing, damaged, or do not belong together.
            ValueError: an override that is unknown or out of range.
        """
        found = describe(name_or_path, **recipe_overrides)
        tensors = {
            stem: checkpoint_directory.read_tensors(found.path / f"{stem}.safetensors")
            for stem in ("generator", "interpreter")
        }
        generator = build_generator(
            parse_config(found.generator, found.path),
            tensors["generator"],
            features=found.stored_recipe.features,
            device=device,
            source=read_source({"source": found.source}, found.path),
            path=found.path / "generator.safetensors",
        )
        interpreter = build_interpreter(
            found.interpreter,
            tensors["interpreter"],
            vote=found.recipe.vote,
            top_fraction=found.recipe.top_fraction,
            device=device,
            source=found.path / "interpreter.safetensors",
        )
        for stem, named in tensors.items():
            if (digest := digest_tensors(named)) != found.weights.get(stem):
                raise CheckpointError(
                    f"{found.path / stem}.safetensors was changed or damaged: config.json says SHA-256 "
                    f"{str(found.weights.get(stem))[:16]}…, the tensors give {digest[:16]}…"
                )
        return cls(
            generator,
            interpreter,
            found.schema,
            found.recipe,
            calibration=found.calibration,
            license=found.license,
            fit=found.fit,
        )

    def save_pretrained(
        self,
        path: str | os.PathLike[str],
        *,
        card: str | None = None,
        pictures: Mapping[str, bytes] | None = None,
    ) -> None:
        """Write a checkpoint directory; each file appears whole or not at all.

        Args:
            path: the directory; files of the same names in it are replaced.
            card: text of the model card (README.md); left out, one is made from what is known.
            pictures: contents of "preview.png" and "calibration.png", which such a card shows. Those of a checkpoint
                that is replaced are removed.

        Raises:
            CheckpointError: the directory cannot be written.
            ValueError: a card that is no text, or a picture of another name.
        """
        if card is not None and not isinstance(card, str):
            raise ValueError(f"card must be the text of the model card, got {type(card).__name__}")
        if unknown := set(pictures or ()) - set(PICTURES):
            raise ValueError(f"pictures of a card are {' and '.join(PICTURES)}, not {sorted(unknown)}")
        config = self.config
        card = card or model_card(config, pictures or ())
        checkpoint_directory.write(Path(path), config, self._tensors, card, pictures)

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says of the checkpoint."""
        return {
            "fingerprint": self.fingerprint,
            "weights": self.weights,
            "license": self.license,
            "generator": self.generator.config,
            "source": self.generator.source.to_dict() if self.generator.source else None,
            "interpreter": self.interpreter.config,
            "schema": self.schema.to_dict(),
            "recipe": self.recipe.to_dict(),
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "fit": None if self.fit is None else self.fit.to_dict(),
        }


def check_recipe(recipe: Recipe, generator: FeatureGenerator, schema: LabelSchema) -> None:
    """ValueError if the recipe asks for what this generator cannot give, or for classes that the schema lacks."""
    if recipe.features != generator.features:
        raise ValueError(
            f"the recipe reads features {recipe.features!r}, the generator gives {generator.features!r}: say "
            f"Recipe(features={generator.features!r}), or load the generator with the recipe's layout"
        )
    frame = recipe.frame_size(generator.img_resolution)
    if recipe.crop is not None and recipe.crop[1] > frame[0]:
        raise ValueError(f"crop {recipe.crop} reaches beyond the {frame[0]} rows of the frame")
    if any(i >= schema.num_classes for i in recipe.require):
        raise ValueError(f"require names class {max(recipe.require)}, the schema has 0 … {schema.num_classes - 1}")
    height, width = recipe.image_size(generator.img_resolution)
    if recipe.min_area * len(set(recipe.require)) > height * width:
        raise ValueError(
            f"min_area {recipe.min_area} for each of {len(set(recipe.require))} required classes is more than the "
            f"{height}×{width} = {height * width} pixels of an image"
        )
    classes, weights = generator.c_dim, recipe.class_weights
    if weights is not None:
        if len(weights) != classes:
            raise ValueError(f"class_weights has {len(weights)} weights, the generator has {classes} classes")
    elif recipe.class_label not in (range(classes) if classes else (None,)):
        allowed = f"0 … {classes - 1}, or class_weights" if classes else "None: the generator is unconditional"
        raise ValueError(f"class_label is {recipe.class_label}, allowed is {allowed}")
    if recipe.mixing_layer is not None and recipe.mixing_layer >= generator.num_ws:
        raise ValueError(f"mixing_layer is {recipe.mixing_layer}, this generator can mix at 1 … {generator.num_ws - 1}")
    if generator.mean_w is None and recipe.psi_range != (1, 1):
        raise ValueError(
            f"psi is {recipe.truncation_psi}, but the average w of this generator is not known: only psi 1 works"
        )


def _as_attempts(attempts: int | Tensor | Sequence[int], count: int) -> Tensor:
    """One attempt number an index, int64 [count]."""
    if isinstance(attempts, int):
        attempts = [integer("attempts", attempts, 0)] * count
    flat = as_indices(attempts)
    if len(flat) != count:
        raise ValueError(f"attempts must be one number, or one for each of the {count} indices; got {len(flat)}")
    return flat


class _Unit(NamedTuple):
    """What is accepted, or drawn again, as a whole: a draw, or all views of a group.

    `wanted` are (place of the sample in the stream, position in `indices`).
    """

    wanted: list[tuple[int, int]]
    indices: Tensor
    attempt: int


def _units(draws: Iterable[tuple[int, int]], views: int) -> Iterator[_Unit]:
    """(index, attempt) pairs as units; neighbors of the same group share one."""
    if views == 1:
        for place, (index, attempt) in enumerate(draws):
            yield _Unit([(place, 0)], torch.tensor([index]), attempt)
        return
    for (group, attempt), members in groupby(enumerate(draws), lambda m: (m[1][0] // views, m[1][1])):
        wanted = [(place, index - group * views) for place, (index, _) in members]
        last = min((group + 1) * views - 1, MAX_INDEX)
        yield _Unit(wanted, torch.arange(last - group * views + 1) + group * views, attempt)
