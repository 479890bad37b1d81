"""Reference arrays of the original implementations, and what this package computes in their place.

A folder of reference data holds, for a set NAME: `NAME.npz` with the arrays, `NAME.pkl` with the generator or `*_ckpt/`
with the classifiers. In `tests/golden` the larger arrays are reduced to probes, elsewhere they may be whole; everything
here takes either. Run `tests/make_golden_probes.py` to make the former from the latter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from oracle import pixel_features
from torch import Tensor

from dsgan_datasets.generators import FeatureGenerator, load_generator
from dsgan_datasets.interpreters import load_interpreter
from dsgan_datasets.labeled_generator import synthesize
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.uncertainty import entropy

PROBES = Path(__file__).resolve().parent / "golden"

GENERATORS = (
    "sg2ada_cond32_skip",
    "sg2ada_fullsnapshot16",
    "sg2ada_uncond32_resnet",
    "sg2ada_uncond64_skip",
    "sg3repo_sg2_32_skip",
)


@dataclass(frozen=True)
class LabelSet:
    """How a set of labels was made: classifiers, features (a row of the arrays of a set), frame and kept rows."""

    classifiers: str
    features: str
    row: int
    size: tuple[int, int]
    rows: tuple[int, int] | None = None


LABELS = {
    "dgan_sg1_128_c7_labels_crop": LabelSet("dgan_sg1_128_c7_ckpt", "dgan_sg1_128", 0, (128, 128), (16, 112)),
    "dgan_sg1_128_c7_labels_down64": LabelSet("dgan_sg1_128_c7_ckpt", "dgan_sg1_128", 1, (64, 64)),
    "sg2ada_uncond64_skip_c34_labels": LabelSet("sg2ada_uncond64_skip_c34_ckpt", "sg2ada_uncond64_skip", 0, (64, 64)),
}

#: Arrays that nothing is compared with: inputs, and images of a generator that the package does not load.
INPUTS = {"z", "c", "check_pixels", "logit_pixels"}
DGAN_IMAGE = "image_uint8"

#: Largest error allowed, by kind of array: max|a-b| / max|b| of numbers, levels of uint8 images, and pixels of
#: labels that differ although their two best classes do not nearly tie.
TOLERANCE = {"relative": 1e-4, "levels": 1.0, "pixels": 0.0}


@dataclass(frozen=True)
class Computed:
    """An array as the package computes it.

    Attributes:
        values: the array, shaped as the reference.
        close: of labels, the pixels whose two best classes are within the tolerance of each other.
    """

    values: Tensor
    close: Tensor | None = None


@dataclass(frozen=True)
class Comparison:
    """How far an array is from its reference; `kind` names the entry of `TOLERANCE`."""

    name: str
    kind: str
    error: float

    @property
    def ok(self) -> bool:
        return self.error <= TOLERANCE[self.kind]


class Golden:
    """The reference arrays of one set, whole or as probes.

    Args:
        path: an npz file. Of a probed array it has the entries `NAME@shape`, `NAME@index` (flat, C order),
            `NAME@value` and `NAME@max` (the largest magnitude in all of it).
    """

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            self._entries = dict(file)
        self.names = list(dict.fromkeys(name.partition("@")[0] for name in self._entries))

    def whole(self, name: str) -> Tensor:
        """An array that is stored whole."""
        return torch.from_numpy(self._entries[name])

    def compare(self, name: str, got: Tensor, close: Tensor | None = None) -> Comparison:
        """Compare an array with its reference.

        Args:
            name: name of the reference.
            got: the whole array.
            close: of labels, bool, where either class is right.
        """
        if name in self._entries:
            expected, index = self._entries[name], ...
            shape, largest = expected.shape, np.abs(expected.astype(np.float64)).max()
            expected = expected.ravel()
        else:
            shape, index, expected, largest = (self._entries[f"{name}@{k}"] for k in ("shape", "index", "value", "max"))
        if tuple(got.shape) != tuple(shape):
            raise ValueError(f"{name} has shape {tuple(got.shape)}, expected {tuple(shape)}")
        found = got.numpy().ravel()[index]
        difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
        if close is not None:
            return Comparison(name, "pixels", float(((difference != 0) & ~close.numpy().ravel()[index]).sum()))
        kind = "levels" if expected.dtype == np.uint8 else "relative"
        error = float(difference.max() / (1 if kind == "levels" else largest))
        return Comparison(name, kind, math.inf if math.isnan(error) else error)


def compare_set(folder: Path, name: str) -> list[Comparison]:
    """Compare every array of a set with what the package computes from the files in the same folder.

    Raises:
        ValueError: an array has another shape, or the set has arrays that nothing is computed for.
    """
    golden = Golden(folder / f"{name}.npz")
    computed = label_arrays(folder, name) if name in LABELS else generator_arrays(folder, name)
    skipped = INPUTS | ({DGAN_IMAGE} if name.startswith("dgan_") else set())
    if missing := set(golden.names) - skipped - computed.keys():
        raise ValueError(f"nothing is compared with {sorted(missing)} of {name}")
    return [
        golden.compare(key, computed[key].values, computed[key].close) for key in golden.names if key not in skipped
    ]


@torch.no_grad()
def generator_arrays(folder: Path, name: str) -> dict[str, Computed]:
    """All that the package can say about the generator of a set, under the names of the reference."""
    golden = Golden(folder / f"{name}.npz")
    generator = load_generator(folder / f"{name}.pkl", device="cpu", features="const+convs")
    z = golden.whole("z")
    c = golden.whole("c") if "c" in golden.names else None
    arrays = {"w_avg": generator.mean_w, "img_psi1_const_uint8": _uint8_images(generator, z, c)}
    for key in golden.names:
        if found := re.fullmatch(r"(ws|img)_psi([\d.]+)(?:_cut(\d+))?(?:_(const|none))?", key):
            what, psi, cutoff, noise_mode = found.groups()
            ws = generator.mapping(
                z, c, truncation_psi=float(psi), truncation_cutoff=None if cutoff is None else int(cutoff)
            )
            arrays[key] = ws if what == "ws" else generator.synthesis(ws, noise_mode=noise_mode)[0]
    ws = generator.mapping(z, c)
    arrays.update({f"feat/{key}": value for key, value in layer_outputs(generator, ws, "const").items()})
    arrays.update({f"feat_none/{key}": value for key, value in layer_outputs(generator, ws, "none").items()})
    return {key: Computed(value) for key, value in arrays.items()}


def layer_outputs(generator: FeatureGenerator, ws: Tensor, noise_mode: str) -> dict[str, Tensor]:
    """The feature maps of a "const+convs" generator by name, and by hooks the outputs that it does not return.

    "b8.out" is what the next block reads, or the last ToRGB.
    """
    network = generator.synthesis_network
    others: dict[str, Tensor] = {}

    def save_output(name: str) -> object:
        return lambda module, args, output: others.update({name: output})

    def save_input(name: str) -> object:
        return lambda module, args: others.update({name: args[0]})

    hooks = []
    for r in network.resolutions:
        block = network.get_submodule(f"b{r}")
        if block.torgb is not None:
            hooks.append(block.torgb.register_forward_hook(save_output(f"b{r}.torgb")))
        if block.skip is not None:
            hooks.append(block.skip.register_forward_hook(save_output(f"b{r}.skip")))
        reader = block.torgb if r == network.resolutions[-1] else network.get_submodule(f"b{2 * r}").conv0
        hooks.append(reader.register_forward_pre_hook(save_input(f"b{r}.out")))
    try:
        _, features = generator.synthesis(ws, noise_mode=noise_mode)
    finally:
        for hook in hooks:
            hook.remove()
    convs = ["b4.conv1", *(f"b{r}.conv{i}" for r in network.resolutions[1:] for i in (0, 1))]
    return {"const": features[0][-1], **dict(zip(convs, features[1:], strict=True)), **others}


def _uint8_images(generator: FeatureGenerator, z: Tensor, c: Tensor | None) -> Tensor:
    """uint8 [N, H, W, 3], as the package makes them for samples."""
    classes = [None] * len(z) if c is None else c.argmax(1).tolist()
    images = [synthesize(generator, Recipe(class_label=k), z[i : i + 1])[0] for i, k in enumerate(classes)]
    return torch.cat(images).permute(0, 2, 3, 1)


@torch.no_grad()
def label_arrays(folder: Path, name: str) -> dict[str, Computed]:
    """All that the package can say about a set of labels, under the names of the reference."""
    golden, how = Golden(folder / f"{name}.npz"), LABELS[name]
    arrays: dict[str, Tensor] = {}
    if how.features in GENERATORS:
        generator = load_generator(folder / f"{how.features}.pkl", device="cpu", features="const+convs")
        z = golden.whole("z")
        _, maps = generator.synthesis(generator.mapping(z))
        arrays["image_uint8"] = _uint8_images(generator, z, None)[0]
    else:
        inputs = Golden(folder / f"{how.features}.npz")
        names = sorted(key for key in inputs.names if key.startswith("feat/"))
        maps = [inputs.whole(key)[how.row : how.row + 1] for key in names]

    by_vote = {
        vote: load_interpreter(folder / how.classifiers, device="cpu", vote=vote) for vote in ("majority", "mean")
    }
    ensemble = by_vote["majority"]
    labels = ensemble.label(maps, how.size, rows=how.rows)
    logits = ensemble.logits(maps, how.size, rows=how.rows)[:, 0]  # [M, K, H, W]
    probabilities = ensemble.probabilities(maps, how.size, rows=how.rows)[:, 0]
    mean = probabilities.mean(0)

    by_pixel = logits.flatten(2).transpose(1, 2)
    features = pixel_features(maps, how.size, how.rows)[0].flatten(1).t()
    arrays |= {
        "features_at_check_pixels": features[golden.whole("check_pixels")],
        "logits": by_pixel[:, golden.whole("logit_pixels")] if "logit_pixels" in golden.names else by_pixel,
        "member_entropy_mean": entropy(probabilities, 1).mean(0),
        "mean_softmax": mean.flatten(1).t(),
        "full_entropy": entropy(mean, 0),
        "js": labels.js[0],
        "uncertainty": labels.score[0],
    }
    member_close, mean_close = _nearly_tied(logits, 1), _nearly_tied(mean, 0)
    by_mean = by_vote["mean"].label(maps, how.size, rows=how.rows).mask[0]
    return {key: Computed(value) for key, value in arrays.items()} | {
        "member_argmax": Computed(logits.argmax(1), member_close),
        "label_mode": Computed(labels.mask[0], member_close.any(0)),
        "label_argmax_mean": Computed(by_mean, mean_close),
    }


def _nearly_tied(values: Tensor, dim: int) -> Tensor:
    """Where the two largest values along `dim` are so close that rounding may swap them."""
    first, second = values.topk(2, dim).values.unbind(dim)
    return first - second <= TOLERANCE["relative"] * values.abs().max()


def summary(comparisons: list[Comparison]) -> Mapping[str, Comparison]:
    """The worst comparison of each kind."""
    return {c.kind: c for c in sorted(comparisons, key=lambda c: c.error)}


def all_sets() -> Iterator[str]:
    """Names of all sets that are compared."""
    yield from (*GENERATORS, *LABELS)
