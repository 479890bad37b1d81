"""Depth beside images is read from 16-bit PNG and .npy files, or the mistake is named; drafts of all labels."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from annotation_folders import (
    DEPTH,
    GENERATOR,
    POINTS,
    SIZE,
    change,
    export_to,
    mistakes,
    names,
    places,
    ramp,
    write_depth,
    write_labelme_points,
    write_masks,
)
from conftest import SCHEMA, small_labeled
from PIL import Image
from torch import Tensor

from dsgan_datasets import InterpretedLabeler, LabeledGenerator
from dsgan_datasets.annotations import export_annotations, load_annotations
from dsgan_datasets.images import png
from dsgan_datasets.interpreters.base import Frame, LabelingOptions, Prediction
from dsgan_datasets.targets import DenseMap
from dsgan_datasets.tools.cli import main


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("maps")
    return {"depth": export_to(root / "depth", DEPTH), "all": export_to(root / "all", SCHEMA, POINTS, DEPTH)}


@pytest.fixture
def folder(exported: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported["depth"], tmp_path / "work"))


@pytest.fixture
def everything(exported: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported["all"], tmp_path / "everything"))


def equal(found: Any, maps: np.ndarray) -> bool:
    return np.array_equal(found.annotated.of("depth").numpy(), maps, equal_nan=True)


def test_depth_comes_back(folder: Path) -> None:
    maps = write_depth(folder)
    found = load_annotations(folder, GENERATOR, device="cpu")
    assert equal(found, maps) and found.targets == (DEPTH,) and not found.warnings
    (folder / "depth").rename(folder.parent / "elsewhere")
    assert equal(load_annotations(folder, files=folder.parent / "elsewhere"), maps)


@pytest.mark.parametrize("kind", [np.float16, ">f4", np.int8, np.uint64, "columns first", "[1, H, W]"])
def test_arrays_may_have_any_type_of_number(folder: Path, kind: Any) -> None:
    write_depth(folder)
    values = np.indices(SIZE).sum(0) % 2
    path = folder / "depth" / f"{names(folder)[0]}.npy"
    if kind == "columns first":
        np.save(path, np.asfortranarray(values))
    elif kind == "[1, H, W]":
        np.save(path, values[None])
    else:
        np.save(path, values.astype(kind))
    assert np.array_equal(load_annotations(folder).annotated.of("depth")[0, 0].numpy(), values)


def test_millimeters_are_a_range_in_which_zero_is_unknown(tmp_path: Path) -> None:
    """Cameras write so: the level is the distance, and 0 stands for none."""
    camera = DenseMap("depth", 0.001, 65.535, unit="m")
    folder = export_to(tmp_path / "camera", camera)
    levels = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE) * 200
    (folder / "depth").mkdir()
    for name in names(folder):
        (folder / "depth" / f"{name}.png").write_bytes(png(levels))
    found = load_annotations(folder).annotated.of("depth")[0, 0].numpy()
    assert np.isnan(found[0, 0]) and np.allclose(found.flatten()[1:], levels.flatten()[1:] / 1000, atol=1e-5)


def picture(mode: str, size: tuple[int, int] = SIZE) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (size[1], size[0])).save(file, format="PNG")
    return file.getvalue()


def array(values: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, values, **options)
    return file.getvalue()


def claims(shape: tuple[int, ...]) -> bytes:
    """A header that promises more than there is."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(64)


MISTAKES: list[tuple[str, bytes, str]] = [
    (".png", picture("L"), "is a picture of 8 bits, too coarse for a map: save it as 16-bit gray PNG or as .npy"),
    (".png", picture("RGB"), "is a picture of 8 bits in color, too coarse"),
    (".png", png(np.ones((8, 8), np.uint16)), "is 8×8 pixels, its image is 16×16"),
    (".png", png(np.zeros(SIZE, np.uint16)), "the depth map is empty: every pixel is unknown"),
    (".png", b"", "is empty"),
    (".png", b"GIF89a" + bytes(20), "holds GIF, not PNG"),
    (".png", png(np.ones(SIZE, np.uint16))[:60], "is a damaged PNG file"),
    (".npy", array(np.zeros((8, 16))), "is 16×8 pixels, its image is 16×16"),
    (".npy", array(np.zeros((2, *SIZE))), "is an array [2, 16, 16], expected [H, W]"),
    (".npy", array(np.zeros(())), "is an array [], expected [H, W]"),
    (".npy", array(np.full(SIZE, 1.5)), "holds 1.5 … 1.5; its range is -1 … 1 m: change low and high in targets.json"),
    (".npy", array(np.full(SIZE, np.inf)), "holds inf … inf"),
    (".npy", array(np.full(SIZE, 1e300)), "holds inf … inf"),
    (".npy", array(np.full(SIZE, np.nan)), "is empty: every pixel is unknown"),
    (".npy", array(np.full(SIZE, "x")), "is not an .npy file of numbers"),
    (".npy", array(np.full(SIZE, 1j)), "is not an .npy file of numbers"),
    (".npy", array(np.array([{"a": 1}], dtype=object), allow_pickle=True), "is not an .npy file of numbers"),
    (".npy", claims((10**9, 10**9)), "is not an .npy file of numbers"),
    (".npy", claims((-4, -4)), "is not an .npy file of numbers"),
    (".npy", array(np.zeros(SIZE, np.float32))[:-3], "it holds 1021 bytes of values, its header says 1024"),
    (".npy", b"PK\x03\x04", "is not an .npy file of numbers"),
    (".jpg", b"\xff\xd8\xff", "is not a PNG or .npy file but JPEG"),
]


@pytest.mark.parametrize(("ending", "content", "words"), MISTAKES)
def test_mistakes_in_maps(folder: Path, ending: str, content: bytes, words: str) -> None:
    write_depth(folder)
    first = names(folder)[0]
    (folder / "depth" / f"{first}.npy").unlink()
    (folder / "depth" / f"{first}{ending}").write_bytes(content)
    output = mistakes(folder)
    assert first in output[0] and words in output[0], output


def test_normals_are_arrays_of_three_channels(tmp_path: Path) -> None:
    normals = DenseMap("normals", -1, 1, channels=("x", "y", "z"), signed=(0,))
    folder = export_to(tmp_path / "normals", normals)
    (folder / "normals").mkdir()
    values = np.random.default_rng(0).uniform(-1, 1, (3, *SIZE)).astype(np.float32)
    for name in names(folder):
        np.save(folder / "normals" / f"{name}.npy", values)
    assert np.array_equal(load_annotations(folder).annotated.of("normals")[1].numpy(), values)
    (folder / "normals" / f"{names(folder)[0]}.npy").unlink()
    (folder / "normals" / f"{names(folder)[0]}.png").write_bytes(png(np.ones(SIZE, np.uint16)))
    assert "normals has 3 channels: save it as .npy" in mistakes(folder)[0]


def test_a_range_that_is_hardly_used_is_a_warning(folder: Path) -> None:
    write_depth(folder)
    change(folder / "targets.json", lambda c: c[0].update(low=-1000, high=1000))
    for name in names(folder)[1:]:
        (folder / "depth" / f"{name}.png").unlink()
    (warning,) = load_annotations(folder, allow_missing=True).warnings
    assert "0.1% of the range -1000 … 1000: check low, high and unit in targets.json" in warning


def test_masks_points_and_depth_of_one_folder(everything: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks, points, maps = write_masks(everything), write_labelme_points(everything), write_depth(everything)
    found = load_annotations(everything)
    assert equal(found, maps) and np.array_equal(found.masks.numpy(), masks)
    assert np.array_equal(found.annotated.of("keypoints").numpy(), points)
    assert main(["annotate", "check", str(everything)]) == 0
    assert "known (m)" in capsys.readouterr().out
    given = everything.parent / "given"
    given.mkdir()
    for name in ("masks", "depth"):
        (everything / name).rename(given / name)
    assert equal(load_annotations(everything, files=given), maps)
    for path in [*given.rglob("*.*")]:
        path.rename(given / f"{path.parent.name}-{path.name}")
    (output,) = mistakes(everything, files=given)
    assert "put them into folders masks and depth" in output
    assert "put depth/NAME.png or depth/NAME.npy" in "".join(mistakes(everything, format="maps"))


# ----------------------------------------------------------------------------------------------- drafts


class Seer:
    """An interpreter that sees the same points and the same depth in every image."""

    architecture = "seer"
    fields = ("keypoints", "depth")
    has_uncertainty = False

    def __init__(self, like: Any) -> None:
        self.layout, self.channels, self.device = like.layout, like.channels, like.device
        self.config: dict[str, Any] = {}

    def check_options(self, options: LabelingOptions) -> None:
        pass

    def predict(self, features: Sequence[Tensor], frame: Frame, options: LabelingOptions) -> Prediction:
        count = len(features[0])
        points = torch.from_numpy(np.stack([places(1)] * count))
        return Prediction({"keypoints": points, "depth": torch.from_numpy(np.stack([ramp(0)] * count))})

    def state_dict(self) -> Mapping[str, Tensor]:
        return {}


@pytest.fixture
def seeing() -> LabeledGenerator:
    """The small checkpoint, whose interpreter of masks is joined by another."""
    small = small_labeled()
    parts = [small.interpreter, Seer(small.interpreter)]
    labeler = InterpretedLabeler(small.generator, parts, (*small.targets, POINTS, DEPTH))
    return LabeledGenerator(labeler, small.recipe)


@pytest.mark.parametrize("tool", ["labelme", "coco"])
def test_drafts_of_every_label_are_read_as_what_was_predicted(
    seeing: LabeledGenerator, tmp_path: Path, tool: str
) -> None:
    folder = tmp_path / "round-2"
    export_annotations(
        seeing.generator, (POINTS, SCHEMA, DEPTH), folder, num_samples=2, select="random", recipe=seeing.recipe,
        interpreter=seeing,
    )  # fmt: skip
    shutil.copytree(folder / "drafts-depth", folder / "depth")
    if tool == "coco":
        for name in ("coco", "coco_keypoints"):
            (folder / "cvat" / f"{name}_import.json").rename(folder / f"{name}.json")
    found = load_annotations(folder)
    assert np.array_equal(found.annotated.of("keypoints").numpy(), np.stack([places(1)] * 2))
    assert equal(found, np.stack([ramp(0)] * 2))
    drafts = np.stack([np.asarray(Image.open(path)) for path in sorted((folder / "drafts").glob("*.png"))])
    assert (found.masks.numpy() == drafts).mean() > 0.9
    assert any("unchanged drafts" in warning for warning in found.warnings) == (tool == "labelme")
    skeleton = json.loads((folder / "cvat" / "labels.json").read_text())[0]
    assert skeleton["type"] == "skeleton" and "Correct all 3 points" in (folder / "README.txt").read_text()


def test_only_what_is_to_be_annotated_is_drafted(seeing: LabeledGenerator, tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_samples": 1, "select": "random", "recipe": seeing.recipe}
    export_annotations(seeing.generator, POINTS, tmp_path / "points", interpreter=seeing, **options)
    assert not (tmp_path / "points" / "drafts").exists() and list((tmp_path / "points" / "images").glob("*.json"))
    normals = DenseMap("normals", -1, 1, channels=("x", "y", "z"))
    for target, words in (
        (normals, "nothing of what is to be annotated"),
        (DenseMap("depth", 0, 5), "describe them alike"),
    ):
        with pytest.raises(ValueError, match=words):
            export_annotations(seeing.generator, target, tmp_path / "other", interpreter=seeing, **options)
