"""Clusters: nearest centers are what they should be, names come from files and masks, samples stream as any."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN
from PIL import Image
from torch.utils.data import DataLoader

from dsgan_datasets import (
    AnnotatedImages,
    DSGANIterableDataset,
    LabeledGenerator,
    LabelSchema,
    Recipe,
    calibrate,
    load_generator,
    load_interpreter,
)
from dsgan_datasets.annotations import export_annotations
from dsgan_datasets.fitting.cluster_checkpoint import save_clusters
from dsgan_datasets.fitting.clusters import (
    default_map,
    fit_clusters,
    k_means,
    named,
    named_by_masks,
    names_from_json,
    unused_classes,
)
from dsgan_datasets.fitting.evaluation import evaluate
from dsgan_datasets.generators import FeatureGenerator
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.interpreters.base import Frame, LabelingOptions
from dsgan_datasets.interpreters.clusters import ClusterInterpreter
from dsgan_datasets.labelers.interpreted import InterpretedLabeler
from dsgan_datasets.latents import Purpose, sample_latents
from dsgan_datasets.tools.cli import main

pytest.importorskip("sklearn")
GENERATOR = GOLDEN / "sg2ada_fullsnapshot16.pkl"
RECIPE = Recipe(truncation_psi=0.9)


@pytest.fixture(scope="module")
def generator() -> FeatureGenerator:
    return load_generator(GENERATOR, device="cpu")


@pytest.fixture(scope="module")
def clusters(generator: FeatureGenerator) -> ClusterInterpreter:
    return fit_clusters(generator, clusters=4, num_samples=10, map=2, recipe=RECIPE)


def labeled_by(generator: FeatureGenerator, interpreter: ClusterInterpreter, **recipe: Any) -> LabeledGenerator:
    schema = LabelSchema(tuple(f"class_{i}" for i in range(interpreter.num_classes)))
    return LabeledGenerator(InterpretedLabeler(generator, interpreter, [schema]), RECIPE.override(**recipe))


def random_clusters(count: int, channels: int = 5) -> ClusterInterpreter:
    random = torch.Generator().manual_seed(0)
    centers, mean = torch.randn(count, channels, generator=random), torch.randn(channels, generator=random)
    std = torch.rand(channels, generator=random) + 0.5
    return ClusterInterpreter(centers, mean, std, layout="convs", channels=[3, channels], map=1)


# Labels


@pytest.mark.parametrize("count", [3, 40, 70])
def test_a_pixel_has_the_nearest_center_of_its_resized_features(count: int) -> None:
    """The plain order: resize features, standardize, measure all distances; also beyond one chunk of clusters."""
    interpreter, frame = random_clusters(count), Frame((13, 9), (2, 11))
    features = [torch.randn(2, 3, 4, 4), torch.randn(2, 5, 6, 6)]
    resized = F.interpolate(features[1].double(), size=(13, 9), mode="bilinear")[:, :, 2:11]
    standard = (resized - interpreter.mean.double()[:, None, None]) / interpreter.std.double()[:, None, None]
    distances = (standard[:, None] - interpreter.centers.double()[None, :, :, None, None]).square().sum(2)
    prediction = interpreter.predict(features, frame)
    mask = prediction.labels["mask"]
    assert mask.shape == (2, 9, 9) and mask.dtype == torch.int64
    nearest = distances.gather(1, mask[:, None]) - distances.min(1, keepdim=True).values
    assert nearest.max() < 1e-4 and (mask == distances.argmin(1)).double().mean() > 0.99
    assert prediction.uncertainty is None and prediction.uncertainty_score is None


def test_ties_go_to_the_lowest_cluster() -> None:
    same = ClusterInterpreter(torch.ones(80, 2), torch.zeros(2), torch.ones(2), layout="convs", channels=[2], map=0)
    assert not same.predict([torch.randn(1, 2, 3, 3)], Frame((5, 5))).labels["mask"].any()


@pytest.mark.parametrize("threads", [2, 3])
def test_a_sample_is_the_same_in_any_company(
    generator: FeatureGenerator, clusters: ClusterInterpreter, threads: int, one_thread: None
) -> None:
    labeled = labeled_by(generator, clusters)
    torch.set_num_threads(1)
    alone = [labeled.generate([i]).mask[0] for i in range(5)]
    torch.set_num_threads(threads)
    together = labeled.generate(range(5)).mask
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_what_does_not_fit_is_refused(clusters: ClusterInterpreter) -> None:
    features = [torch.randn(1, c, 4, 4) for c in clusters.channels]
    with pytest.raises(ValueError, match="fitted on maps of"):
        clusters.predict(features[::-1], Frame((4, 4)))
    with pytest.raises(ValueError, match="rows"):
        clusters.predict(features, Frame((4, 4), (2, 9)))
    with pytest.raises(ValueError, match="neither members that vote nor an uncertainty"):
        clusters.predict(features, Frame((4, 4)), LabelingOptions(vote="mean"))
    parts: dict[str, Any] = {"layout": "convs", "channels": [2], "map": 0}
    one = torch.ones(1, 2)
    for message, arguments, changes in (
        ("map must be", (one, one[0], one[0]), {"map": 1}),
        ("centers have 2 features", (one, one[0], one[0]), {"channels": [3]}),
        ("mean has shape", (one, torch.ones(3), one[0]), {}),
        ("std must be positive", (one, one[0], torch.zeros(2)), {}),
        ("classes has shape", (one, one[0], one[0], torch.zeros(2, dtype=torch.int64)), {}),
        ("class ids from 0", (one, one[0], one[0], torch.tensor([-1])), {}),
        ("num_classes", (one, one[0], one[0], torch.tensor([3])), {"num_classes": 3}),
    ):
        with pytest.raises(ValueError, match=message):
            ClusterInterpreter(*arguments, **{**parts, **changes})


def test_another_layout_must_have_the_same_map() -> None:
    moved = random_clusters(3).with_layout("datasetgan", [7, 5])
    assert (moved.layout, moved.channels, moved.num_classes) == ("datasetgan", (7, 5), 3)
    with pytest.raises(ValueError, match="centers have 5 features, map 1 has 6"):
        moved.with_layout("convs", [5, 6])


# Fitting and naming


def test_k_means_finds_clouds() -> None:
    owner = torch.arange(300) % 3
    points = torch.eye(3)[owner] * 10 + torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    centers = k_means(points, 3, seed=2**64 - 1)
    found = torch.cdist(points, centers).argmin(1)
    assert all(len(set(found[owner == i].tolist())) == 1 for i in range(3)) and len(found.unique()) == 3


def test_the_same_seed_gives_the_same_clusters(generator: FeatureGenerator, one_thread: None) -> None:
    def fit(seed: int, threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        return fit_clusters(generator, clusters=3, num_samples=4, seed=seed, recipe=RECIPE).centers

    assert torch.equal(fit(0, 1), fit(0, 2)) and not torch.equal(fit(0, 1), fit(1, 1))


def test_arguments_of_the_fit(generator: FeatureGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    assert generator.feature_resolutions[default_map(generator)] == 4  # a quarter of 16
    wrong: tuple[dict[str, Any], ...] = (
        {"clusters": 1},
        {"clusters": 256},
        {"num_samples": 0},
        {"map": 99},
        {"pixels_per_image": 0},
    )
    for arguments in wrong:
        with pytest.raises(ValueError, match=next(iter(arguments))):
            fit_clusters(generator, **arguments)
    with pytest.raises(ValueError, match="need at least as many pixels"):
        fit_clusters(generator, clusters=20, num_samples=1, map=0)
    plain = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"dsgan_datasets\[clusters\]"):
        k_means(torch.randn(5, 2), 2)


def test_clusters_may_share_a_name(generator: FeatureGenerator, clusters: ClusterInterpreter) -> None:
    interpreter, schema = named(clusters, {2: "background", 0: "hair", 3: "hair", 1: "skin"})
    assert schema.classes == ("background", "hair", "skin") and interpreter.classes.tolist() == [1, 2, 0, 1]
    before = labeled_by(generator, clusters).generate(range(3)).mask
    after = labeled_by(generator, interpreter).generate(range(3)).mask
    assert torch.equal(after, torch.tensor([1, 2, 0, 1])[before])
    with pytest.raises(ValueError, match="name each of the clusters 0 … 3"):
        named(clusters, {0: "a", 1: "b"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("", "is empty"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"0": "a", "0": "b", "1": "c"}', "the key '0' twice"),
        ("[1]", "must be an object, cluster -> class name"),
        ('{"0": 1, "1": "a"}', "must be an object, cluster -> class name"),
        ('{"0": "a"}', "missing: 1"),
        ('{"0": "a", "1": "b", "2": "c"}', "no such cluster: 2"),
    ],
)
def test_mistakes_in_a_file_of_names(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "names.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        names_from_json(tmp_path / "names.json", 2)


def test_masks_name_the_clusters_that_they_overlap(generator: FeatureGenerator, clusters: ClusterInterpreter) -> None:
    """Masks drawn by the clusters themselves, in another order, and partly ignored."""
    latents = sample_latents(range(4), 32, seed=0, purpose=Purpose.ANNOTATION)
    _, features = synthesize(generator, RECIPE, latents)
    classes = torch.tensor([2, 0, 2, 1])
    masks = classes[clusters.clusters(features[clusters.map], Frame((16, 16)))]
    masks[:, :5] = 255
    schema = LabelSchema(("a", "b", "c", "never"))
    found = named_by_masks(generator, clusters, AnnotatedImages(latents, masks), schema, recipe=RECIPE)
    assert torch.equal(found.classes, classes) and found.num_classes == 4
    assert unused_classes(found, schema) == ["never"]
    assert evaluate(generator, found, AnnotatedImages(latents, masks), recipe=RECIPE).pixel_accuracy == 1
    with pytest.raises(ValueError, match="a mask is"):
        named_by_masks(generator, clusters, AnnotatedImages(latents, masks[:, :8]), schema, recipe=RECIPE)


# Checkpoints and streams


@pytest.mark.slow
def test_a_checkpoint_of_clusters_streams(
    generator: FeatureGenerator, clusters: ClusterInterpreter, tmp_path: Path
) -> None:
    interpreter, schema = named(clusters, {1: "background", 0: "hair", 2: "hair", 3: "skin"})
    saved = save_clusters(generator, interpreter, tmp_path / "out", schema=schema, recipe=RECIPE, license="CC0-1.0")
    loaded = LabeledGenerator.from_pretrained(tmp_path / "out", device="cpu")
    assert loaded.fingerprint == saved.fingerprint and loaded.schema.classes == schema.classes
    assert loaded.license == "CC0-1.0" and load_interpreter(tmp_path / "out", device="cpu").config == interpreter.config
    assert not (tmp_path / "out" / "names.json").exists()
    expected = saved.generate(range(4))
    assert torch.equal(loaded.generate(range(4)).mask, expected.mask)
    assert "uncertainty_score" not in expected and "uncertainty" not in expected
    loader: Any = DataLoader(DSGANIterableDataset(loaded, length=4), batch_size=4)
    batch = next(iter(loader))
    masks = batch[1] if isinstance(batch, list | tuple) else batch["mask"]
    assert torch.equal(torch.as_tensor(masks), expected.mask)
    other = labeled_by(generator, clusters)
    assert other.fingerprint != saved.fingerprint  # names that join clusters change masks


def test_rules_on_content_work_and_rules_on_uncertainty_are_refused(
    generator: FeatureGenerator, clusters: ClusterInterpreter
) -> None:
    areas = labeled_by(generator, clusters).generate(range(40)).mask.flatten(1)
    least = int((areas == 1).sum(1).median())
    ruled = labeled_by(generator, clusters, require=[1], min_area=least).generate(range(8))
    assert ((ruled.mask == 1).flatten(1).sum(1) >= least).all() and ruled.attempt.max() > 0
    for change in ({"reject_fraction": 0.1}, {"threshold": 0.5}, {"max_uncertainty": 0.1}):
        with pytest.raises(ValueError, match="does not know how certain it is"):
            labeled_by(generator, clusters, **change)
    with pytest.raises(ValueError, match="neither members that vote"):
        labeled_by(generator, clusters, vote="mean")
    with pytest.raises(ValueError, match="does not know how certain it is"):
        calibrate(labeled_by(generator, clusters), 20)


# The command

FAST = ("--clusters", "4", "--num-samples", "6", "--map", "2", "--truncation-psi", "0.9", "--device", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, generator: FeatureGenerator) -> Path:
    """Images that were exported and annotated: the left half is one class, the right half another."""
    folder = tmp_path_factory.mktemp("clusters") / "annotations"
    schema = LabelSchema(("left", "right", "nowhere"))
    exported = export_annotations(
        generator, schema, folder, num_samples=3, candidates=3, recipe=RECIPE, name=str(GENERATOR)
    )
    (folder / "masks").mkdir(exist_ok=True)
    for image in exported.images:
        Image.fromarray(np.repeat([[0] * 8 + [1] * 8], 16, 0).astype(np.uint8)).save(
            folder / "masks" / f"{image.name}.png"
        )
    return folder


@pytest.mark.slow
def test_clusters_are_shown_then_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "parts"
    command = ["cluster", str(GENERATOR), str(out), "--device", "cpu"]
    assert main([*command, *FAST]) == 0
    assert "--names" in capsys.readouterr().out
    unnamed = LabeledGenerator.from_pretrained(out, device="cpu")
    assert unnamed.schema.classes == tuple(f"cluster_{i}" for i in range(4)) and unnamed.recipe.truncation_psi == 0.9
    template = json.loads((out / "names.json").read_text())
    assert template == {str(i): f"cluster_{i}" for i in range(4)}
    with Image.open(out / "clusters.png") as sheet:
        assert sheet.width > 1000 and len(set(sheet.getdata())) > 100
    (out / "names.json").write_text(json.dumps({"3": "background", "0": "hair", "1": "hair", "2": "skin"}))
    assert main([*command, "--names", str(out / "names.json")]) == 0
    assert "hair: clusters 0, 1" in capsys.readouterr().out
    labeled = LabeledGenerator.from_pretrained(out, device="cpu")
    assert labeled.schema.classes == ("background", "hair", "skin") and labeled.recipe.truncation_psi == 0.9
    assert torch.equal(labeled.interpreter.centers, unnamed.interpreter.centers)
    assert torch.equal(labeled.generate([0]).mask, torch.tensor([1, 1, 2, 0])[unnamed.generate([0]).mask])
    assert json.loads((out / "names.json").read_text())["2"] == "skin"  # not replaced by the template

    assert main([*command, *FAST]) == 1 and "--overwrite" in capsys.readouterr().err
    assert main([*command, "--names", str(out / "names.json"), "--clusters", "5"]) == 1
    assert "leave out --clusters, or pass --overwrite" in capsys.readouterr().err
    other = ["cluster", "demo-faces", str(out), "--device", "cpu", "--names", str(out / "names.json")]
    assert main(other) == 1 and "of another generator" in capsys.readouterr().err


@pytest.mark.slow
def test_masks_name_clusters_in_one_step(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "parts"
    command = ["cluster", str(GENERATOR), str(out), *FAST, "--masks", str(folder), "--set", 'require=["right"]']
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "no cluster is mostly nowhere" in printed and "nowhere: no cluster" in printed
    labeled = LabeledGenerator.from_pretrained(out, device="cpu")
    assert labeled.schema.classes == ("left", "right", "nowhere") and labeled.recipe.require == (1,)
    assert (labeled.generate([0, 1]).mask == 1).flatten(1).any(1).all()


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--clusters", "1"], 2, "'1' is not an integer in 2 … 255"),
        (["--map", "99"], 1, "map must be an integer in 0 …"),
        (["--names", "nowhere.json"], 1, "nowhere.json"),
        (["--names", "a.json", "--masks", "b"], 2, "not allowed with"),
        (["--set", "reject_fraction=0.1"], 1, "does not know how certain it is"),
        (["--set", 'require=["ear"]'], 1, "the classes are: cluster_0"),
    ],
)
def test_mistakes_end_in_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], status: int, message: str
) -> None:
    fast = ["--num-samples", "2", "--clusters", "2", "--device", "cpu"]
    assert main(["cluster", str(GENERATOR), str(tmp_path / "out"), *fast, *options]) == status
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
