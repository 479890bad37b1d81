"""PixelEnsemble against the plain oracle, and the properties of its labels."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsgan_datasets import reference as oracle
from dsgan_datasets.interpreters import pixel_ensemble
from dsgan_datasets.interpreters.pixel_ensemble import PixelEnsemble
from dsgan_datasets.uncertainty import image_score, js_divergence

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-5


def random_ensemble(channels, members=3, hidden=(32, 16), classes=5, **options) -> PixelEnsemble:
    """An ensemble of random classifiers whose activations and logits are of the order of one."""
    draw = torch.Generator().manual_seed(channels * 1000 + classes)
    h1, h2 = hidden
    shapes = {
        "w1": (channels, members, h1),
        "b1": (members, h1),
        "w2": (members, h1, h2),
        "b2": (members, h2),
        "w3": (members, h2, classes),
        "b3": (members, classes),
    }
    fan_in = {"w1": channels, "w2": h1, "w3": h2}
    weights = {
        name: torch.randn(shape, generator=draw) * math.sqrt(2 / fan_in.get(name, 20)) for name, shape in shapes.items()
    }
    return PixelEnsemble(weights, **options)


def random_maps(shapes, batch=1, seed=0) -> list[Tensor]:
    """Maps [batch, C, h, w] of shapes (C, h, w)."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn((batch, *shape), generator=draw) for shape in shapes]


def constant_ensemble(logits) -> PixelEnsemble:
    """Members that give the same logits [M, K] to every pixel; they take one channel."""
    b3 = torch.tensor(logits, dtype=torch.float32)
    m, k = b3.shape
    zeros = {"w1": (1, m, 1), "b1": (m, 1), "w2": (m, 1, 1), "b2": (m, 1), "w3": (m, 1, k)}
    return PixelEnsemble({**{name: torch.zeros(shape) for name, shape in zeros.items()}, "b3": b3})


def label_constant(logits, **options):
    ensemble = constant_ensemble(logits)
    for name, value in options.items():
        setattr(ensemble, name, value)
    return ensemble.label([torch.zeros(1, 1, 2, 2)], (4, 4))


def assert_matches_oracle(ensemble, maps, size, rows=None):
    expected, got = oracle.logits(ensemble, maps, size, rows), ensemble.logits(maps, size, rows=rows)
    assert got.shape == expected.shape
    assert got.dtype == torch.float32
    error = ((got - expected).abs().max() / expected.abs().max()).item()
    assert error <= TOLERANCE, f"relative error {error:.2g} for maps {[tuple(f.shape) for f in maps]}, {size=}, {rows=}"


# --- parity with the oracle ---

MIXED = [(7, 4, 4), (5, 8, 8), (5, 9, 7), (3, 16, 16), (4, 33, 33)]
CASES = {
    "odd, not square": (MIXED, (37, 53), None),
    "a map equals the frame": ([(4, 4, 4), (3, 37, 53)], (37, 53), None),
    "maps exceed the frame": ([(4, 4, 4), (3, 16, 16), (3, 40, 60), (2, 64, 64)], (16, 20), None),
    "a map exceeds the frame along one axis": ([(4, 50, 8), (3, 8, 50)], (16, 16), None),
    "only coarse maps": ([(6, 4, 4), (6, 8, 8)], (32, 32), None),
    "only fine maps": ([(6, 32, 32), (6, 64, 64)], (32, 32), None),
    "one pixel": ([(6, 1, 1), (2, 5, 5)], (1, 1), None),
    "rows of a crop": (MIXED, (37, 53), (5, 31)),
    "the last row": (MIXED, (37, 53), (36, 37)),
    "rows of larger maps": ([(4, 4, 4), (2, 64, 64)], (32, 32), (3, 30)),
}


@pytest.mark.parametrize(("shapes", "size", "rows"), CASES.values(), ids=CASES)
def test_logits_match_the_oracle(shapes, size, rows):
    ensemble = random_ensemble(sum(c for c, _, _ in shapes))
    assert_matches_oracle(ensemble, random_maps(shapes, batch=2), size, rows)


@pytest.mark.parametrize("hidden", [(128, 32), (256, 128)])
@pytest.mark.parametrize("classes", [2, 20, 34])
def test_published_widths_match_the_oracle(classes, hidden):
    shapes = [(64, 4, 4), (64, 8, 8), (32, 16, 16), (16, 32, 32)]
    assert_matches_oracle(random_ensemble(176, 10, hidden, classes), random_maps(shapes), (32, 32))


def test_one_member_matches_the_oracle():
    ensemble = random_ensemble(24, members=1)
    maps = random_maps(MIXED)
    assert_matches_oracle(ensemble, maps, (37, 53))
    labels = ensemble.label(maps, (37, 53))
    assert torch.equal(labels.mask, oracle.logits(ensemble, maps, (37, 53))[0].argmax(1))
    assert labels.uncertainty.max() <= 1e-6, "one member cannot disagree"


@pytest.mark.parametrize("rows", [None, (5, 31)])
@pytest.mark.parametrize(("chunk_pixels", "band_rows"), [(1, 1), (60, 1), (200, 7), (200, 64), (2048, 3)])
def test_chunks_match_the_oracle(monkeypatch, chunk_pixels, band_rows, rows):
    chunks = []
    tail = PixelEnsemble._tail
    monkeypatch.setattr(PixelEnsemble, "_tail", lambda self, hidden: chunks.append(len(hidden)) or tail(self, hidden))
    monkeypatch.setattr(pixel_ensemble, "_CHUNK_PIXELS", chunk_pixels)
    monkeypatch.setattr(pixel_ensemble, "_CHUNK_ROWS", 1)
    monkeypatch.setattr(pixel_ensemble, "_BAND_ROWS", band_rows)
    assert_matches_oracle(random_ensemble(24), random_maps(MIXED, batch=2), (37, 53), rows)
    assert len(chunks) >= 18, "more than one chunk was meant"
    assert max(chunks) <= max(chunk_pixels, 53)


side = st.integers(1, 33)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shapes_match_the_oracle(data):
    shapes = data.draw(st.lists(st.tuples(st.integers(1, 5), side, side), min_size=1, max_size=4), label="maps")
    size = data.draw(st.tuples(side, side), label="size")
    top = data.draw(st.integers(0, size[0] - 1), label="top")
    bottom = data.draw(st.integers(top + 1, size[0]), label="bottom")
    members, classes = data.draw(st.integers(1, 4), label="members"), data.draw(st.integers(2, 6), label="classes")
    ensemble = random_ensemble(sum(c for c, _, _ in shapes), members, (6, 4), classes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixel_ensemble, "_CHUNK_PIXELS", data.draw(st.sampled_from([16, 100, 2048]), label="chunk"))
        patch.setattr(pixel_ensemble, "_BAND_ROWS", data.draw(st.sampled_from([1, 5, 64]), label="band"))
        assert_matches_oracle(ensemble, random_maps(shapes), size, (top, bottom))


def test_half_precision_maps_are_computed_in_float32():
    ensemble = random_ensemble(24)
    maps = [f.bfloat16() for f in random_maps(MIXED)]
    assert torch.equal(ensemble.logits(maps, (37, 53)), ensemble.logits([f.float() for f in maps], (37, 53)))


# --- one sample, one result ---


@pytest.mark.parametrize("classes", [2, 3, 5, 6, 7, 8, 20, 34])
def test_threads_change_nothing(monkeypatch, classes):
    monkeypatch.setattr(pixel_ensemble, "_BAND_ROWS", 24)
    ensemble = random_ensemble(176, 10, (128, 32), classes)
    maps, size = random_maps([(64, 4, 4), (64, 8, 8), (32, 32, 32), (16, 64, 64)], batch=2), (64, 50)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        labels = ensemble.label(maps, size)
        results.append((ensemble.logits(maps, size), labels.mask, labels.uncertainty, labels.uncertainty_score))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_position_in_the_batch_changes_nothing():
    ensemble = random_ensemble(24)
    maps, size = random_maps(MIXED, batch=3), (37, 53)
    together, logits = ensemble.label(maps, size), ensemble.logits(maps, size)
    for i in range(3):
        alone = [f[i : i + 1] for f in maps]
        labels = ensemble.label(alone, size)
        assert torch.equal(ensemble.logits(alone, size), logits[:, i : i + 1])
        assert torch.equal(labels.mask[0], together.mask[i])
        assert torch.equal(labels.uncertainty[0], together.uncertainty[i])
        assert torch.equal(labels.uncertainty_score[0], together.uncertainty_score[i])
    turned = ensemble.label([f.flip(0) for f in maps], size)
    assert torch.equal(turned.uncertainty.flip(0), together.uncertainty)
    assert torch.equal(turned.mask.flip(0), together.mask)


# --- labels ---


def one_hot(classes, k, logit=5.0):
    return [[logit if i == c else 0.0 for i in range(k)] for c in classes]


@pytest.mark.parametrize(
    ("votes", "winner"),
    [([2, 2, 1], 2), ([3, 3, 1, 1], 1), ([1, 1, 3, 3], 1), ([3, 2, 1], 1), ([3, 0, 3, 0, 2], 0), ([2], 2)],
)
def test_majority_ties_go_to_the_lowest_class(votes, winner):
    assert label_constant(one_hot(votes, 4)).mask.unique().tolist() == [winner]


def test_equal_logits_give_the_lowest_class():
    assert label_constant([[1.0, 3.0, 3.0, 0.0]]).mask.unique().tolist() == [1]
    assert label_constant([[1.0, 3.0, 3.0, 0.0]], vote="mean").mask.unique().tolist() == [1]


def test_the_votes_differ_where_few_are_sure():
    logits = [[0.1, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 0.0, 9.0]]
    assert label_constant(logits).mask.unique().tolist() == [0]
    assert label_constant(logits, vote="mean").mask.unique().tolist() == [2]


@pytest.mark.parametrize("vote", ["majority", "mean"])
def test_labels_follow_from_the_logits(vote):
    ensemble = random_ensemble(24, members=5, vote=vote)
    maps, size, rows = random_maps(MIXED, batch=2), (37, 53), (4, 30)
    logits = ensemble.logits(maps, size, rows=rows)
    labels = ensemble.label(maps, size, rows=rows)
    probabilities = logits.softmax(2)
    assert torch.equal(ensemble.probabilities(maps, size, rows=rows), probabilities)
    votes = torch.nn.functional.one_hot(logits.argmax(2), ensemble.num_classes).sum(0)
    expected = votes.argmax(-1) if vote == "majority" else probabilities.mean(0).argmax(1)
    assert labels.mask.shape == (2, 26, 53)
    assert labels.mask.dtype == torch.int64
    assert torch.equal(labels.mask, expected)
    torch.testing.assert_close(labels.uncertainty, js_divergence(probabilities), rtol=0, atol=1e-6)
    torch.testing.assert_close(labels.uncertainty_score, image_score(labels.uncertainty))


@pytest.mark.parametrize(
    ("votes", "k", "expected"),
    [([0, 1], 3, math.log(2)), ([0, 1, 2] * 2, 3, math.log(3)), ([2, 2, 2], 3, 0.0), ([1], 2, 0.0)],
    ids=["two members", "three classes", "agreement", "one member"],
)
def test_js_reaches_its_bounds(votes, k, expected):
    labels = label_constant(one_hot(votes, k, logit=40.0))
    torch.testing.assert_close(labels.uncertainty, torch.full((1, 4, 4), expected), rtol=0, atol=1e-5)
    torch.testing.assert_close(labels.uncertainty_score, torch.tensor([expected]), rtol=0, atol=1e-5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    logits=st.integers(1, 5).flatmap(
        lambda k: st.lists(st.lists(st.floats(-50, 50), min_size=k + 1, max_size=k + 1), min_size=1, max_size=5)
    )
)
def test_js_stays_within_its_bounds(logits):
    js = label_constant(logits).uncertainty
    assert js.min() >= 0
    assert js.max() <= math.log(min(len(logits), len(logits[0]))) + 1e-5


@pytest.mark.parametrize(("fraction", "count"), [(0.1, 13), (1.0, 130), (0.25, 32), (1e-9, 1)])
def test_the_score_is_the_mean_of_the_most_uncertain_pixels(fraction, count):
    ensemble = random_ensemble(24, top_fraction=fraction)
    labels = ensemble.label(random_maps(MIXED, batch=2), (10, 13))
    expected = labels.uncertainty.flatten(1).sort(1, descending=True).values[:, :count].mean(1)
    torch.testing.assert_close(labels.uncertainty_score, expected, rtol=1e-6, atol=0)


# --- refusals ---


@pytest.mark.parametrize("method", ["logits", "probabilities", "label"])
def test_a_wrong_number_of_channels_is_named(method):
    ensemble = random_ensemble(24)
    with pytest.raises(ValueError, match=r"take 24 features .* have 20: \[7, 5, 5, 3\]"):
        getattr(ensemble, method)(random_maps(MIXED[:-1]), (8, 8))


@pytest.mark.parametrize("rows", [(-1, 4), (0, 9), (4, 4), (5, 3), (8, 9)])
@pytest.mark.parametrize("method", ["logits", "probabilities", "label"])
def test_rows_outside_the_frame_are_refused(method, rows):
    ensemble = random_ensemble(24)
    with pytest.raises(ValueError, match=r"rows .* inside the frame: .* <= 8"):
        getattr(ensemble, method)(random_maps(MIXED), (8, 8), rows=rows)


def test_matrices_that_do_not_fit_are_refused():
    weights = dict(random_ensemble(24).state_dict())
    with pytest.raises(ValueError, match=r"w2 has shape \[3, 31, 16\], expected \[3, 32, 16\]"):
        PixelEnsemble({**weights, "w2": weights["w2"][:, 1:]})
    with pytest.raises(ValueError, match="vote must be"):
        PixelEnsemble(weights, vote="most")


def test_the_config_says_the_shape():
    assert random_ensemble(24).config == {
        "architecture": "pixel_ensemble",
        "members": 3,
        "in_channels": 24,
        "hidden": [32, 16],
        "classes": 5,
    }
