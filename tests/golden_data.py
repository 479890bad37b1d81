"""Reference arrays of the original implementations, and what this package computes in their place.

A folder of reference data holds, for a set NAME: `NAME.npz` with the arrays, and the generator (`NAME.pkl`, `NAME.pt`,
or `NAME_weights_fp16.npz`, whose half precision is lossless) or the classifiers (`*_ckpt/`). In `tests/golden` the
larger arrays are reduced to probes, elsewhere they may be whole; everything here takes either. Run
`tests/make_golden_probes.py` to make the former from the latter.
"""

from __future__ import annotations

import dataclasses
import math
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dsgan_datasets.generators import FeatureGenerator, load_generator
from dsgan_datasets.generators.stylegan1 import StyleGAN1
from dsgan_datasets.generators.stylegan2 import upsample_image
from dsgan_datasets.generators.stylegan3 import StyleGAN3
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.interpreters import Frame, LabelingOptions, PixelEnsemble, load_interpreter
from dsgan_datasets.recipe import FeatureLayout, Recipe
from dsgan_datasets.reference import pixel_features
from dsgan_datasets.uncertainty import entropy

PROBES = Path(__file__).resolve().parent / "golden"

GENERATORS = (
    "dgan_sg1_128",
    "ros_sg2_64",
    "semanticgan_32",
    "sg2ada_4ch_32",
    "sg2ada_cond32_skip",
    "sg2ada_fullsnapshot16",
    "sg2ada_uncond32_resnet",
    "sg2ada_uncond64_skip",
    "sg3_4ch_t_32",
    "sg3_r_32",
    "sg3_t_32",
    "sg3repo_sg2_32_skip",
)

#: Files of other projects, each written by that project's own classes.
DIALECTS = (
    *("tf4_sg2_skip32", "tf4_sg2_cond16", "tf4_sg2_resnet32", "tf3_sg1_128", "tf3_sg1_cond16"),
    *("genforce_sg1_128", "genforce_sg1_cond16", "genforce_sg2_32", "xl_c0_r32", "xl_c4_t32", "xl_sr_c4_64"),
    *("pgan_sg2_32", "pgan_fastgan_256", "pgan_fastgan_lite_256", "pgan_fastgan_lite_cond_256"),
    *("human_sg2_64x32", "human_sg3_t_32x16", "human_ros_64x32", "gilesbathgate_24x40", "eps696_56x32"),
    *("ros_train_32", "mmagic_sg2_32", "mmgen_sg2_64", "mmagic_sg3_t_32"),
    *("lucidrains_32", "lucidrains_rgba_noconst_16", "lucidrains_attn_16"),
)

#: Sets that only `make test-golden` compares: others in the repository test the same code.
ELSEWHERE = (
    *("sg3repo_sg2_32_skip", "tf3_sg1_128", "genforce_sg1_128", "pgan_fastgan_lite_256", "eps696_56x32"),
    *("ros_train_32", "mmgen_sg2_64", "xl_c0_r32", "human_ros_64x32", "lucidrains_32"),
)

#: How DatasetGAN truncates.
DATASETGAN = Recipe(truncation_psi=0.7, truncation_cutoff=8)


@dataclass(frozen=True)
class LabelSet:
    """How a set of labels was made: classifiers, generator, frame and kept rows.

    `members_here` classifiers are in the repository; of the arrays that need all ten, only the full set is compared.
    """

    classifiers: str
    generator: str
    size: tuple[int, int]
    rows: tuple[int, int] | None = None
    members_here: int = 10


LABELS = {
    "dgan_sg1_128_c7_labels_crop": LabelSet("dgan_sg1_128_c7_ckpt", "dgan_sg1_128", (128, 128), (16, 112)),
    "dgan_sg1_128_c7_labels_down64": LabelSet("dgan_sg1_128_c7_ckpt", "dgan_sg1_128", (64, 64)),
    "sg2ada_uncond64_skip_c34_labels": LabelSet(
        "sg2ada_uncond64_skip_c34_ckpt", "sg2ada_uncond64_skip", (64, 64), members_here=5
    ),
}

#: Arrays that nothing is compared with.
INPUTS = re.compile(r"z|c|check_pixels|logit_pixels|latent_avg|w_mean|w_mean_seed|noise/.*|input_noise")

#: Generators that make a mask beside the image; all their channels are compared.
JOINT = ("semanticgan_32", "sg2ada_4ch_32", "sg3_4ch_t_32")

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

    def rows(self, name: str) -> int:
        """Length of the first axis of an array."""
        return int(self._entries[name].shape[0] if name in self._entries else self._entries[f"{name}@shape"][0])

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
    outputs = [key for key in golden.names if not INPUTS.fullmatch(key)]
    if missing := set(outputs) - computed.keys():
        raise ValueError(f"nothing is compared with {sorted(missing)} of {name}")
    return [golden.compare(key, computed[key].values, computed[key].close) for key in outputs]


_unpacked = tempfile.TemporaryDirectory()


@cache
def generator_file(folder: Path, name: str) -> Path:
    """The file of a generator, unpacked from half precision if need be."""
    for file in (f"{name}.pkl", f"{name}.pt", f"{name}.pth", f"{name}/model_0.pt"):
        if (path := folder / file).is_file():
            return path
    path = Path(_unpacked.name) / f"{name}.pt"
    with np.load(folder / f"{name}_weights_fp16.npz") as file:
        torch.save({key: torch.from_numpy(file[key]).float() for key in file.files}, path)
    shutil.copy(folder / f"{name}_avg_latent.npy", path.parent)
    return path


def reference_generator(folder: Path, name: str) -> FeatureGenerator:
    """The generator of a set, with the widest feature layout and the noise of the reference."""
    is_stylegan2 = name not in DIALECTS and ("sg2" in name or name == "semanticgan_32")
    layout: FeatureLayout | None = "const+convs" if is_stylegan2 else None
    golden = Golden(folder / f"{name}.npz")
    average = golden.whole("w_mean") if "w_mean" in golden.names else None  # of files that have none
    generator = load_generator(generator_file(folder, name), device="cpu", features=layout, avg_latent=average)
    if noise := [key for key in golden.names if key.startswith("noise/")]:
        for stored, key in zip(generator._stored_noise(), noise, strict=True):
            stored.copy_(golden.whole(key)[0, 0])
    return generator


@torch.no_grad()
def generator_arrays(folder: Path, name: str) -> dict[str, Computed]:
    """All that the package can say about the generator of a set, under the names of the reference."""
    golden = Golden(folder / f"{name}.npz")
    generator = reference_generator(folder, name)
    by_kind = {"dgan": _datasetgan_arrays, "ros": _rosinality_arrays, "semanticgan": _semanticgan_arrays}
    compute = _dialect_arrays if name in DIALECTS else by_kind.get(name.partition("_")[0], _snapshot_arrays)
    arrays = compute(generator, golden)
    return {key: Computed(value) for key, value in arrays.items()}


def _snapshot_arrays(generator: FeatureGenerator, golden: Golden) -> dict[str, Tensor]:
    z = golden.whole("z")
    c = golden.whole("c") if "c" in golden.names else None
    arrays = {"w_avg": generator.mean_w, "img_psi1_const_uint8": _uint8_images(generator, Recipe(), z, c)}
    for key in golden.names:
        if found := re.fullmatch(r"(ws|img)_psi([\d.]+)(?:_cut(\d+))?(?:_(const|none))?", key):
            what, psi, cutoff, noise_mode = found.groups()
            ws = generator.mapping(
                z, c, truncation_psi=float(psi), truncation_cutoff=None if cutoff is None else int(cutoff)
            )
            arrays[key] = ws if what == "ws" else generator.synthesis_channels(ws, noise_mode=noise_mode or "const")[0]
    ws = generator.mapping(z, c)
    if isinstance(generator, StyleGAN3):
        image, maps = generator.synthesis_network(ws, torch.float32)
        names = ["input", *generator._config.layer_names]
        maps = [*maps, image / generator._config.output_scale]
        maps = [m[: golden.rows("feat/input")] for m in maps]  # of some sets the maps of the first sample only
        return arrays | {f"feat/{key}": value for key, value in zip(names, maps, strict=True)}
    arrays.update({f"feat/{key}": value for key, value in layer_outputs(generator, ws, "const").items()})
    arrays.update({f"feat_none/{key}": value for key, value in layer_outputs(generator, ws, "none").items()})
    return arrays


def _dialect_arrays(generator: FeatureGenerator, golden: Golden) -> dict[str, Tensor]:
    """The arrays that a set of `DIALECTS` has."""
    z, c = golden.whole("z"), golden.whole("c").float() if "c" in golden.names else None
    noise = [golden.whole("input_noise")[..., 0][:, None]] if "input_noise" in golden.names else None
    arrays = {} if generator.mean_w is None else {"w_avg": generator.mean_w}
    for key in golden.names:
        if found := re.fullmatch(r"(ws|img)_psi([\d.]+)(?:_cut(\d+))?", key):
            what, psi, cutoff = found.groups()
            ws = generator.mapping(z, c, truncation_psi=float(psi), truncation_cutoff=int(cutoff) if cutoff else None)
            arrays[key] = ws if what == "ws" else generator.synthesis_channels(ws, noise=noise)[0]
        elif found := re.fullmatch(r"img_(no|fixed)noise_sample(\d)(_every4)?", key):
            kind, row, thinned = found.groups()
            row = int(row)
            drawn = [np.random.RandomState(1000 + k).randn(*n.shape) for k, n in enumerate(generator._stored_noise())]
            given = [torch.from_numpy(n).float() for n in drawn] if kind == "fixed" else None
            ws = generator.mapping(z[row : row + 1], None if c is None else c[row : row + 1])
            image = generator.synthesis_channels(ws, noise_mode="none", noise=given)[0]
            arrays[key] = image[..., ::4, ::4] if thinned else image
    ws = generator.mapping(z, c)
    is_fastgan = not generator.has_w_space
    if isinstance(generator, StyleGAN3):
        maps = [m[:1] for m in generator.synthesis_network(ws, torch.float32)[1]]  # with margins, of the first sample
    elif isinstance(generator, StyleGAN1):
        maps = _stylegan1_layers(generator, ws)
    else:
        maps = generator.synthesis(ws, noise=noise, noise_mode="none" if is_fastgan else "const")[1]
    names = [info.name for info in generator.feature_info]
    for key in [key for key in golden.names if key.startswith("feat/")]:
        arrays[key] = maps[_place(key.removeprefix("feat/"), names)]
    return arrays


def _place(name: str, names: list[str]) -> int:
    """Place of a map among those of a generator, by the name that it has in the other project."""
    if name in names:
        return names.index(name)
    if found := re.fullmatch(r"L(\d+)(_.*)", name):
        # With a superresolution stage, layers are numbered with gaps: the nearest of that size.
        alike = [i for i, ours in enumerate(names) if ours.endswith(found[2])]
        return min(alike, key=lambda i: abs(i - 1 - int(found[1])))
    if found := re.fullmatch(r"(conv|convs\.|layer|blocks\.)(\d+)", name):
        kind, number = found[1], int(found[2])
        return {"conv": 0, "convs.": number + 1}.get(kind, number)
    raise ValueError(f"no map is called {name}")


def _stylegan1_layers(generator: StyleGAN1, ws: Tensor) -> list[Tensor]:
    """The outputs of all layers after their style."""
    outputs: list[Tensor] = []
    blocks = generator.synthesis_network.blocks()
    hooks = [
        layer.register_forward_hook(lambda module, args, output: outputs.append(output))
        for block in blocks
        for layer in (block.epilogue0, block.epilogue1)
    ]
    try:
        generator.synthesis(ws)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def _rosinality_arrays(generator: FeatureGenerator, golden: Golden) -> dict[str, Tensor]:
    ws, truncated = (generator.mapping(golden.whole("z"), truncation_psi=psi) for psi in (1, 0.7))
    outputs = layer_outputs(generator, ws, "const")
    arrays = {
        "w": ws[:, 0],
        "latent_psi1": ws,
        "latent_psi0.7": truncated,
        "img_psi1": generator.synthesis(ws)[0],
        "img_psi0.7": generator.synthesis(truncated)[0],
        "img_psi1_zero_noise": generator.synthesis(ws, noise_mode="none")[0],
        "feat/input": outputs["const"][None],
        "feat/conv1": outputs["b4.conv1"],
        "feat/to_rgb1": outputs["b4.torgb"],
    }
    image = outputs["b4.torgb"]
    for j, r in enumerate(generator.synthesis_network.resolutions[1:]):
        image = outputs[f"b{r}.torgb"] + upsample_image(image)  # theirs is the image so far
        arrays[f"feat/to_rgbs.{j}"] = image
        arrays |= {f"feat/convs.{2 * j + i}": outputs[f"b{r}.conv{i}"] for i in (0, 1)}
    return arrays


def _semanticgan_arrays(generator: FeatureGenerator, golden: Golden) -> dict[str, Tensor]:
    arrays = {}
    for psi in ("1", "0.7"):
        ws = generator.mapping(golden.whole("z"), truncation_psi=float(psi))
        channels, maps = generator.synthesis_channels(ws)
        arrays |= {f"ws_psi{psi}": ws, f"img_psi{psi}": channels[:, :3], f"seg_psi{psi}": channels[:, 3:]}
        if psi == "1":
            names = ["const", "conv1", *(f"convs.{i}" for i in range(len(maps) - 2))]
            arrays |= {f"feat/{name}": value for name, value in zip(names, maps, strict=True)}
    return arrays


def _datasetgan_arrays(generator: FeatureGenerator, golden: Golden) -> dict[str, Tensor]:
    z = golden.whole("z")
    w = generator.mapping(z)
    truncated = generator.mapping(
        z, truncation_psi=DATASETGAN.truncation_psi, truncation_cutoff=DATASETGAN.truncation_cutoff
    )
    image, features = generator.synthesis(truncated)
    without_noise, features_without_noise = generator.synthesis(truncated, noise_mode="none")
    return {
        "w": w,
        "w_trunc": truncated,
        "img": image,
        "img_uint8": _uint8_images(generator, DATASETGAN, z),
        "img_no_trunc": generator.synthesis(w)[0],
        "img_zero_noise": without_noise,
        "feat_zero_noise/last": features_without_noise[-2],
        **{f"feat/{i:02d}": feature for i, feature in enumerate(features)},
    }


def layer_outputs(generator: FeatureGenerator, ws: Tensor, noise_mode: str) -> dict[str, Tensor]:
    """The feature maps of a "const+convs" generator by name, and by hooks the outputs that it does not return.

    "b8.out" is what the next block reads, and the block's ToRGB if it has one.
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
        if "torgb" in block.heads:
            hooks.append(block.torgb.register_forward_hook(save_output(f"b{r}.torgb")))
        if block.skip is not None:
            hooks.append(block.skip.register_forward_hook(save_output(f"b{r}.skip")))
        # The 3×3 layers are given it scaled by their styles.
        reader = block.torgb if "torgb" in block.heads else network.get_submodule(f"b{2 * r}").skip
        hooks.append(reader.register_forward_pre_hook(save_input(f"b{r}.out")))
    try:
        _, features = generator.synthesis(ws, noise_mode=noise_mode)
    finally:
        for hook in hooks:
            hook.remove()
    convs = ["b4.conv1", *(f"b{r}.conv{i}" for r in network.resolutions[1:] for i in (0, 1))]
    return {"const": features[0][-1], **dict(zip(convs, features[1:], strict=True)), **others}


def _uint8_images(generator: FeatureGenerator, recipe: Recipe, z: Tensor, c: Tensor | None = None) -> Tensor:
    """uint8 [N, H, W, 3], as the package makes them for samples."""
    classes = [None] * len(z) if c is None else c.argmax(1).tolist()
    images = [
        synthesize(generator, dataclasses.replace(recipe, class_label=k), z[i : i + 1])[0]
        for i, k in enumerate(classes)
    ]
    return torch.cat(images).permute(0, 2, 3, 1)


@torch.no_grad()
def label_arrays(folder: Path, name: str) -> dict[str, Computed]:
    """All that the package can say about a set of labels, under the names of the reference."""
    golden, how = Golden(folder / f"{name}.npz"), LABELS[name]
    generator = reference_generator(folder, how.generator)
    recipe = DATASETGAN if how.generator.startswith("dgan") else Recipe()
    recipe = dataclasses.replace(recipe, size=how.size, crop=how.rows)
    image, maps = synthesize(generator, recipe, golden.whole("z"))
    arrays: dict[str, Tensor] = {"image_uint8": image[0].permute(1, 2, 0)}

    ensemble, frame = load_interpreter(folder / how.classifiers, device="cpu"), Frame(how.size, how.rows)
    assert isinstance(ensemble, PixelEnsemble)
    found = ensemble.predict(maps, frame)
    logits = ensemble.logits(maps, how.size, rows=how.rows)[:, 0]  # [M, K, H, W]
    probabilities = ensemble.probabilities(maps, how.size, rows=how.rows)[:, 0]
    mean = probabilities.mean(0)

    by_pixel = logits.flatten(2).transpose(1, 2)
    features = pixel_features(maps, frame)[0].flatten(1).t()
    arrays |= {
        "features_at_check_pixels": features[golden.whole("check_pixels")],
        "logits": by_pixel[:, golden.whole("logit_pixels")] if "logit_pixels" in golden.names else by_pixel,
        "member_entropy_mean": entropy(probabilities, 1).mean(0),
        "mean_softmax": mean.flatten(1).t(),
        "full_entropy": entropy(mean, 0),
        "js": found.uncertainty[0],
        "uncertainty": found.uncertainty_score[0],
    }
    member_close, mean_close = _nearly_tied(logits, 1), _nearly_tied(mean, 0)
    by_mean = ensemble.predict(maps, frame, LabelingOptions(vote="mean")).labels["mask"][0]
    return {key: Computed(value) for key, value in arrays.items()} | {
        "member_argmax": Computed(logits.argmax(1), member_close),
        "label_mode": Computed(found.labels["mask"][0], member_close.any(0)),
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
    yield from (*GENERATORS, *DIALECTS, *LABELS)


def sets_here() -> list[str]:
    """Names of those in the repository."""
    return [name for name in all_sets() if name not in ELSEWHERE]
