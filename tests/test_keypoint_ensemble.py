"""Keypoints and dense maps from ensembles: against a plain oracle, and the properties of what they predict."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence

import pytest
import torch
from test_pixel_ensemble import MIXED, random_ensemble, random_maps
from torch import Tensor

from dsgan_datasets import Keypoints, reference
from dsgan_datasets.checkpoints.errors import CheckpointError
from dsgan_datasets.device import has_fast_bfloat16
from dsgan_datasets.interpreters import KeypointEnsemble, MapEnsemble
from dsgan_datasets.interpreters.base import Frame, LabelingOptions
from dsgan_datasets.interpreters.keypoint_ensemble import points_of
from dsgan_datasets.interpreters.loading import build_interpreter

pytestmark = pytest.mark.usefixtures("one_thread")

FRAME = Frame((37, 53), (5, 31))
CHANNELS = [c for c, _, _ in MIXED]


def weights(outputs: int, members: int = 4) -> dict[str, Tensor]:
    """Of random members whose outputs are of the order of one."""
    return random_ensemble(sum(CHANNELS), members, (32, 16), outputs).weights.named()


def points_ensemble(members: int = 4) -> KeypointEnsemble:
    """Of three points, on maps `MIXED`."""
    return KeypointEnsemble(weights(6, members), sigma=0.03, layout="convs", channels=CHANNELS)


def map_ensemble() -> MapEnsemble:
    """Of two channels from 10 to 30."""
    made = weights(2)
    made["w3"], made["b3"] = 0.1 * made["w3"], torch.full((4, 2), 0.5)
    return MapEnsemble(made, field="depth", low=10, high=30, layout="convs", channels=CHANNELS)


def outputs(ensemble: KeypointEnsemble | MapEnsemble, maps: Sequence[Tensor], frame: Frame = FRAME) -> Tensor:
    """[M, N, K, H, W] in the paper's order, in float64."""
    pixels = reference.pixel_features([f.double() for f in maps], frame)
    return reference.classify(ensemble.weights.map(Tensor.double), pixels)


def gaussians(points: Tensor, sigma: float, size: tuple[int, int]) -> Tensor:
    """Both heat maps of points [K, 3], [1, 2 K, H, W]."""
    y, x = (torch.arange(side) + 0.5 for side in size)
    square = (x - points[:, 0, None, None]) ** 2 + (y[:, None] - points[:, 1, None, None]) ** 2
    heat = torch.exp(square / (-2 * sigma**2))
    return torch.cat([heat, heat * (points[:, 2] == 2)[:, None, None]])[None]


# --- against the oracle ---


def test_heat_and_disagreement_match_the_oracle() -> None:
    ensemble, maps = points_ensemble(), random_maps(MIXED, batch=2)
    found, made = ensemble.predict(maps, FRAME, LabelingOptions(top_fraction=0.2)), outputs(ensemble, maps)
    heat = made.mean(0)
    spread = (made[:, :, :3] - heat[:, :3]).square().sum(2).mean(0).sqrt()
    assert found.uncertainty is not None and (found.uncertainty - spread).abs().max() <= 1e-5
    highest = spread.flatten(1).topk(int(0.2 * spread[0].numel())).values.mean(1)
    assert found.uncertainty_score is not None and (found.uncertainty_score - highest).abs().max() <= 1e-5
    points = found.labels["keypoints"]
    Keypoints(("a", "b", "c")).check(points[0], FRAME.shape)
    best = heat[:, :3].flatten(2).argmax(2)
    assert (points[..., :2] - 0.5 - torch.stack([best % 53, best // 53], 2)).abs().max() <= 1


def test_maps_match_the_oracle() -> None:
    ensemble, maps = map_ensemble(), random_maps(MIXED, batch=2)
    found, made = ensemble.predict(maps, FRAME), outputs(ensemble, maps)
    expected = (10 + 20 * made.mean(0)).clamp(10, 30)
    assert (found.labels["depth"] - expected).abs().max() <= 1e-4
    spread = (made - made.mean(0)).square().sum(2).mean(0).sqrt()
    assert found.uncertainty is not None and (found.uncertainty - spread).abs().max() <= 1e-5


# --- points ---


@pytest.mark.parametrize("sigma", [0.8, 1.3, 4.0])
def test_the_maximum_is_found_between_pixels(sigma: float) -> None:
    draw = torch.Generator().manual_seed(0)
    places = torch.rand(40, 2, generator=draw) * torch.tensor([50.0, 30.0]) + 8
    points = torch.cat([places, torch.full((40, 1), 2.0)], 1)
    found = points_of(gaussians(points, sigma, (46, 66)), sigma, 0.1, 0.5)[0]
    assert (found[:, :2] - places).norm(dim=1).max() <= 0.12 and (found[:, 2] == 2).all()
    nearest = places.floor() + 0.5
    assert (found[:, :2] - places).norm(dim=1).mean() < 0.25 * (nearest - places).norm(dim=1).mean()


def test_visibility_is_told_from_the_maxima() -> None:
    """However low both maps are, their ratio counts; where there is no heat, there is no point."""
    points = torch.tensor([[4.5, 5.5, 2.0], [9.5, 3.5, 1.0], [2.5, 9.5, 2.0], [7.5, 7.5, 2.0]])
    heat = gaussians(points, 1.3, (12, 14))
    heat[:, [2, 6]] *= 0.3
    heat[:, [3, 7]] *= 0.05
    found = points_of(heat, 1.3, 0.1, 0.5)[0]
    assert found[:, 2].tolist() == [2, 1, 2, 0] and found[3].tolist() == [0, 0, 0]
    assert (points_of(heat * torch.nan, 1.3, 0.1, 0.5) == 0).all()


def test_points_at_the_edge_stay_in_the_image() -> None:
    points = torch.tensor([[0.0, 0.0, 2.0], [14.0, 12.0, 2.0], [14.0, 0.5, 2.0]])
    found = points_of(gaussians(points, 1.3, (12, 14)), 1.3, 0.1, 0.5)[0]
    Keypoints(("a", "b", "c")).check(found, (12, 14))
    assert (found - points).abs().max() < 1.0


# --- one sample, one result ---


@pytest.mark.parametrize("make", [points_ensemble, map_ensemble])
def test_the_batch_and_the_threads_change_nothing(make: type) -> None:
    ensemble, maps = make(), random_maps(MIXED, batch=3)
    torch.set_num_threads(2)
    together = ensemble.predict(maps, FRAME)
    (field,) = ensemble.fields
    torch.set_num_threads(1)
    for i in range(3):
        alone = ensemble.predict([f[i : i + 1] for f in maps], FRAME)
        assert torch.equal(alone.labels[field][0], together.labels[field][i])
        assert torch.equal(alone.uncertainty[0], together.uncertainty[i])
        assert torch.equal(alone.uncertainty_score[0], together.uncertainty_score[i])


@pytest.mark.skipif(not has_fast_bfloat16(torch.device("cpu")), reason="the processor has no bfloat16")
def test_bfloat16_changes_little() -> None:
    maps = [f.bfloat16() for f in random_maps(MIXED)]
    ensemble = map_ensemble()
    exact, found = ensemble.predict([f.float() for f in maps], FRAME), ensemble.predict(maps, FRAME)
    difference = (found.labels["depth"] - exact.labels["depth"]).abs().max()
    assert 0 < difference <= 0.02 * 20


def test_equal_members_agree() -> None:
    one = points_ensemble(members=1)
    found = one.predict(random_maps(MIXED), FRAME)
    assert found.uncertainty is not None and found.uncertainty.max() <= 2e-3
    several = points_ensemble().predict(random_maps(MIXED), FRAME)
    assert several.uncertainty is not None and several.uncertainty.mean() > 0.1


# --- stored, and refused ---


@pytest.mark.parametrize("make", [points_ensemble, map_ensemble])
def test_a_config_and_its_tensors_give_it_back(make: type) -> None:
    ensemble, maps = make(), random_maps(MIXED)
    again = build_interpreter(ensemble.config, dict(ensemble.state_dict()), device="cpu")
    moved = pickle.loads(pickle.dumps(again.to("cpu")))
    (field,) = ensemble.fields
    expected = ensemble.predict(maps, FRAME).labels[field]
    assert torch.equal(moved.predict(maps, FRAME).labels[field], expected)
    assert ensemble.with_layout("convs", CHANNELS).config == ensemble.config
    for name in ("sigma", "low"):
        if name in ensemble.config:
            with pytest.raises(CheckpointError, match="do not fit together"):
                build_interpreter({k: v for k, v in ensemble.config.items() if k != name}, ensemble.state_dict())


def test_what_does_not_fit_is_refused() -> None:
    ensemble = points_ensemble()
    with pytest.raises(ValueError, match="do not vote"):
        ensemble.predict(random_maps(MIXED), FRAME, LabelingOptions("mean"))
    with pytest.raises(ValueError, match="the interpreter was fitted on maps of"):
        ensemble.predict(random_maps(MIXED[1:]), FRAME)
    with pytest.raises(ValueError, match="an even number of outputs, w3 gives 5"):
        KeypointEnsemble(weights(5), sigma=0.03)
    for name, value in (("sigma", 0), ("sigma", math.nan), ("present", 1.5), ("visible", "x")):
        with pytest.raises(ValueError, match=f"{name} must be a number between 0 and 1"):
            KeypointEnsemble(weights(6), **{"sigma": 0.03, name: value})
    with pytest.raises(ValueError, match="low below high"):
        MapEnsemble(weights(1), field="depth", low=1, high=1)
    with pytest.raises(ValueError, match="field must be"):
        MapEnsemble(weights(1), field="", low=0, high=1)


def test_points_count_in_pixels_of_a_rectangular_frame() -> None:
    ensemble, maps, frame = points_ensemble(), random_maps([(c, 8, 8) for c in CHANNELS]), Frame((32, 64))
    found = ensemble.predict(maps, frame).labels["keypoints"][0]
    best = outputs(ensemble, maps, frame).mean(0)[0, :3].flatten(1).argmax(1)
    assert (found[:, :2] - 0.5 - torch.stack([best % 64, best // 64], 1)).abs().max() <= 1
