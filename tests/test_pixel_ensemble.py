"""PixelEnsemble against the paper's order (`reference`), and the properties of its labels."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsgan_datasets import reference
from dsgan_datasets.checkpoints.errors import CheckpointError
from dsgan_datasets.device import has_fast_bfloat16
from dsgan_datasets.interpreters import Labels, load_interpreter, rowwise
from dsgan_datasets.interpreters.base import Frame, LabelingOptions, Prediction, check_channels
from dsgan_datasets.interpreters.loading import ARCHITECTURES, build_interpreter
from dsgan_datasets.interpreters.pixel_ensemble import PixelEnsemble
from dsgan_datasets.interpreters.reduce import Votes
from dsgan_datasets.interpreters.rowwise import Chunks
from dsgan_datasets.interpreters.weights import EnsembleWeights
from dsgan_datasets.uncertainty import image_score, js_divergence

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-5


def random_ensemble(total, members=3, hidden=(32, 16), classes=5, **options) -> PixelEnsemble:
    """An ensemble of random classifiers whose activations and logits are of the order of one."""
    draw = torch.Generator().manual_seed(total * 1000 + classes)
    h1, h2 = hidden
    shapes = {
        "w1": (total, members, h1),
        "b1": (members, h1),
        "w2": (members, h1, h2),
        "b2": (members, h2),
        "w3": (members, h2, classes),
        "b3": (members, classes),
    }
    fan_in = {"w1": total, "w2": h1, "w3": h2}
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


def label_constant(logits, **options) -> Prediction:
    return constant_ensemble(logits).predict([torch.zeros(1, 1, 2, 2)], Frame((4, 4)), LabelingOptions(**options))


def mask_of_constant(logits, **options) -> Tensor:
    return label_constant(logits, **options).labels["mask"]


def oracle(ensemble, maps, size, rows=None) -> Tensor:
    """Logits in the paper's order, in float64."""
    return reference.classify(
        ensemble.weights.map(Tensor.double), reference.pixel_features([f.double() for f in maps], Frame(size, rows))
    )


def assert_matches_oracle(ensemble, maps, size, rows=None, chunks=rowwise.DEFAULT_CHUNKS):
    expected = oracle(ensemble, maps, size, rows)
    got = rowwise.outputs(ensemble.weights, maps, Frame(size, rows), chunks)
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
    "several maps many times smaller": (
        [(4, 2, 2), (3, 4, 4), (3, 8, 8), (2, 16, 16), (2, 32, 32)],
        (64, 128),
        (7, 50),
    ),
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
    found = ensemble.predict(maps, Frame((37, 53)))
    assert torch.equal(found.labels["mask"], oracle(ensemble, maps, (37, 53))[0].argmax(1))
    assert found.uncertainty.max() <= 1e-6, "one member cannot disagree"


@pytest.mark.parametrize("vote", ["majority", "mean"])
@pytest.mark.parametrize("name", ["odd, not square", "rows of a crop", "maps exceed the frame"])
def test_predictions_match_the_reference(name, vote):
    shapes, size, rows = CASES[name]
    ensemble = random_ensemble(sum(c for c, _, _ in shapes), members=5)
    maps, frame, options = random_maps(shapes, batch=2), Frame(size, rows), LabelingOptions(vote, 0.2)
    got = ensemble.predict(maps, frame, options)
    expected = reference.label(ensemble.weights.map(Tensor.double), [f.double() for f in maps], frame, options)
    assert (got.labels["mask"] != expected.labels["mask"]).double().mean() <= 0.001  # near ties
    assert (got.uncertainty - expected.uncertainty).abs().max() <= 1e-5
    assert (got.uncertainty_score - expected.uncertainty_score).abs().max() <= 1e-5


@pytest.mark.parametrize("rows", [None, (5, 31)])
@pytest.mark.parametrize(("chunk_pixels", "band_rows"), [(1, 1), (60, 1), (200, 7), (200, 64), (2048, 3)])
def test_chunks_match_the_oracle(chunk_pixels, band_rows, rows):
    ensemble, maps, chunks = (
        random_ensemble(24),
        random_maps(MIXED, batch=2),
        Chunks(band_rows, chunk_pixels, outputs=8),
    )
    assert_matches_oracle(ensemble, maps, (37, 53), rows, chunks)
    frame = Frame((37, 53), rows)
    expected = rowwise.reduce(ensemble.weights, maps, frame, Votes("majority"))
    got = rowwise.reduce(ensemble.weights, maps, frame, Votes("majority"), chunks)
    assert (got[0] != expected[0]).double().mean() <= 0.001  # near ties
    torch.testing.assert_close(got[1], expected[1], rtol=0, atol=1e-6)


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
    pixels, band = data.draw(st.sampled_from([16, 100, 2048])), data.draw(st.sampled_from([1, 5, 64]))
    assert_matches_oracle(ensemble, random_maps(shapes), size, (top, bottom), Chunks(band, pixels))


@pytest.mark.skipif(not has_fast_bfloat16(torch.device("cpu")), reason="the processor has no bfloat16")
def test_bfloat16_maps_are_labeled_in_bfloat16_and_change_little():
    ensemble, frame = random_ensemble(24, members=5), Frame((37, 53))
    maps = [f.bfloat16().float() for f in random_maps(MIXED)]
    exact, found = ensemble.predict(maps, frame), ensemble.predict([f.bfloat16() for f in maps], frame)
    difference = (found.uncertainty - exact.uncertainty).abs().max()
    assert 0 < difference <= 20 * torch.finfo(torch.bfloat16).eps
    assert (found.labels["mask"] != exact.labels["mask"]).double().mean() <= 0.02
    again = ensemble.predict([f.bfloat16() for f in maps], frame)
    assert torch.equal(again.uncertainty, found.uncertainty)


def test_the_same_maps_are_prepared_for_once_and_again_after_a_change():
    ensemble, maps, frame = random_ensemble(24), random_maps(MIXED), Frame((37, 53))
    before = ensemble.predict(maps, frame).uncertainty
    ensemble.b3.mul_(3)
    after = ensemble.predict(maps, frame).uncertainty
    assert not torch.equal(before, after)
    assert torch.equal(after, random_like(ensemble).predict(maps, frame).uncertainty)


def random_like(ensemble) -> PixelEnsemble:
    """Another ensemble of the same weights."""
    return PixelEnsemble({name: matrix.clone() for name, matrix in ensemble.weights.named().items()})


def test_half_precision_maps_are_computed_in_float32():
    ensemble = random_ensemble(24)
    maps = [f.bfloat16() for f in random_maps(MIXED)]
    assert torch.equal(ensemble.logits(maps, (37, 53)), ensemble.logits([f.float() for f in maps], (37, 53)))


# --- one sample, one result ---


@pytest.mark.parametrize("classes", [2, 3, 5, 6, 7, 8, 20, 34])
def test_threads_change_nothing(classes):
    weights = random_ensemble(176, 10, (128, 32), classes).weights
    maps, frame = random_maps([(64, 4, 4), (64, 8, 8), (32, 32, 32), (16, 64, 64)], batch=2), Frame((64, 50))
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        chunks = Chunks(band_rows=24)
        results.append(
            (
                rowwise.outputs(weights, maps, frame, chunks),
                *rowwise.reduce(weights, maps, frame, Votes("majority"), chunks),
            )
        )
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_threads_do_not_change_scores():
    ensemble, maps = random_ensemble(24), random_maps(MIXED, batch=5)
    scores = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        scores.append(ensemble.predict(maps, Frame((64, 50))).uncertainty_score)
    assert torch.equal(*scores)


def test_the_position_in_the_batch_changes_nothing():
    ensemble = random_ensemble(24)
    maps, size = random_maps(MIXED, batch=3), (37, 53)
    together, logits = ensemble.predict(maps, Frame(size)), ensemble.logits(maps, size)
    for i in range(3):
        alone = [f[i : i + 1] for f in maps]
        found = ensemble.predict(alone, Frame(size))
        assert torch.equal(ensemble.logits(alone, size), logits[:, i : i + 1])
        assert torch.equal(found.labels["mask"][0], together.labels["mask"][i])
        assert torch.equal(found.uncertainty[0], together.uncertainty[i])
        assert torch.equal(found.uncertainty_score[0], together.uncertainty_score[i])
    turned = ensemble.predict([f.flip(0) for f in maps], Frame(size))
    assert torch.equal(turned.uncertainty.flip(0), together.uncertainty)
    assert torch.equal(turned.labels["mask"].flip(0), together.labels["mask"])


# --- labels ---


def one_hot(classes, k, logit=5.0):
    return [[logit if i == c else 0.0 for i in range(k)] for c in classes]


@pytest.mark.parametrize(
    ("votes", "winner"),
    [([2, 2, 1], 2), ([3, 3, 1, 1], 1), ([1, 1, 3, 3], 1), ([3, 2, 1], 1), ([3, 0, 3, 0, 2], 0), ([2], 2)],
)
def test_majority_ties_go_to_the_lowest_class(votes, winner):
    assert mask_of_constant(one_hot(votes, 4)).unique().tolist() == [winner]


def test_equal_logits_give_the_lowest_class():
    assert mask_of_constant([[1.0, 3.0, 3.0, 0.0]]).unique().tolist() == [1]
    assert mask_of_constant([[1.0, 3.0, 3.0, 0.0]], vote="mean").unique().tolist() == [1]
    assert mask_of_constant([[1.0, 3.0, 3.0, 0.0], [0.0, 0.0, 5.0, 0.0]]).unique().tolist() == [1], "one vote a member"


def test_the_votes_differ_where_few_are_sure():
    logits = [[0.1, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 0.0, 9.0]]
    assert mask_of_constant(logits).unique().tolist() == [0]
    assert mask_of_constant(logits, vote="mean").unique().tolist() == [2]


@pytest.mark.parametrize("vote", ["majority", "mean"])
def test_labels_follow_from_the_logits(vote):
    ensemble = random_ensemble(24, members=5)
    maps, size, rows = random_maps(MIXED, batch=2), (37, 53), (4, 30)
    logits = ensemble.logits(maps, size, rows=rows)
    found = ensemble.predict(maps, Frame(size, rows), LabelingOptions(vote))
    probabilities = logits.softmax(2)
    assert torch.equal(ensemble.probabilities(maps, size, rows=rows), probabilities)
    votes = torch.nn.functional.one_hot(logits.argmax(2), ensemble.num_classes).sum(0)
    expected = votes.argmax(-1) if vote == "majority" else probabilities.mean(0).argmax(1)
    mask = found.labels["mask"]
    assert mask.shape == (2, 26, 53)
    assert mask.dtype == torch.int64
    assert torch.equal(mask, expected)
    torch.testing.assert_close(found.uncertainty, js_divergence(probabilities), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.uncertainty_score, image_score(found.uncertainty))


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
    options = LabelingOptions(top_fraction=fraction)
    labels = random_ensemble(24).predict(random_maps(MIXED, batch=2), Frame((10, 13)), options)
    expected = labels.uncertainty.flatten(1).sort(1, descending=True).values[:, :count].mean(1)
    torch.testing.assert_close(labels.uncertainty_score, expected, rtol=1e-6, atol=0)


# --- what it was fitted on ---

CHANNELS = [7, 5, 5, 3, 4]


def fitted_ensemble(channels=CHANNELS, **options) -> PixelEnsemble:
    """An ensemble that knows its layout."""
    return random_ensemble(sum(channels), layout="convs", channels=channels, **options)


READERS = {
    "predict": lambda ensemble, maps, size, rows=None: ensemble.predict(maps, Frame(size, rows)),
    "logits": lambda ensemble, maps, size, rows=None: ensemble.logits(maps, size, rows=rows),
    "probabilities": lambda ensemble, maps, size, rows=None: ensemble.probabilities(maps, size, rows=rows),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_layout_of_equal_total_is_refused(read):
    """Sums alone would let the maps of another layout pass."""
    other = [MIXED[i] for i in (1, 0, 2, 3, 4)]
    with pytest.raises(ValueError, match=r"fitted on maps of \[7, 5, 5, 3, 4\] channels, these have \[5, 7, 5, 3, 4\]"):
        read(fitted_ensemble(), random_maps(other), (8, 8))


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_of_an_unknown_layout_the_total_is_checked(read):
    ensemble = random_ensemble(24)
    assert (ensemble.layout, ensemble.channels) == (None, (24,))
    read(ensemble, random_maps(MIXED), (8, 8))
    with pytest.raises(ValueError, match=r"fitted on maps of \[24\] channels, these have \[7, 5, 5, 3\]"):
        read(ensemble, random_maps(MIXED[:-1]), (8, 8))


def test_a_layout_can_be_said_later():
    ensemble = random_ensemble(24)
    known = ensemble.with_layout("const+convs", CHANNELS)
    assert (known.layout, known.channels) == ("const+convs", tuple(CHANNELS))
    assert all(torch.equal(a, b) for a, b in zip(known.buffers(), ensemble.buffers(), strict=True))
    with pytest.raises(ValueError, match="add up to 23, w1 takes 24"):
        ensemble.with_layout("convs", [20, 3])


@pytest.mark.parametrize("channels", [[], [0, 24], [-1, 25], [True, 23], [24.0], "24", 24])
def test_channels_must_be_counts(channels):
    with pytest.raises(ValueError, match="channels must be the channels of each map"):
        random_ensemble(24, channels=channels)


def test_channels_are_compared_in_order():
    check_channels([3, 5], [3, 5])
    check_channels([8], [3, 5])
    for other in ([5, 3], [8], [3, 5, 1]):
        with pytest.raises(ValueError, match="fitted on maps of"):
            check_channels([3, 5], other)


def test_the_config_says_the_shape():
    assert fitted_ensemble().config == {
        "architecture": "pixel_ensemble",
        "layout": "convs",
        "channels": CHANNELS,
        "members": 3,
        "hidden": [32, 16],
        "classes": 5,
    }


def test_parts_give_the_ensemble_back():
    ensemble = fitted_ensemble()
    again = build_interpreter(ensemble.config, ensemble.state_dict(), device="cpu")
    assert isinstance(again, PixelEnsemble) and again.config == ensemble.config
    assert all(torch.equal(a, b) for a, b in zip(again.buffers(), ensemble.buffers(), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "oracle"}, "architecture 'oracle' is unknown; known: .*pixel_ensemble"),
        ({"architecture": ["pixel_ensemble"]}, "is unknown; known: "),
        ({"members": 4}, "config.json promises"),
        ({"channels": [7, 5, 5, 3, 5]}, "add up to 25, w1 takes 24"),
        ({"channels": "24"}, "must be the channels of each map"),
        ({"layout": 3}, "layout must be the name"),
        ({"dropout": 0.5}, "config.json promises"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(change, message):
    ensemble = fitted_ensemble()
    with pytest.raises(CheckpointError, match=message):
        build_interpreter({**ensemble.config, **change}, ensemble.state_dict(), device="cpu", source="here")


def test_a_missing_matrix_is_refused():
    ensemble = fitted_ensemble()
    tensors = {name: matrix for name, matrix in ensemble.state_dict().items() if name != "b2"}
    with pytest.raises(CheckpointError, match=r"here: .* do not fit together: 'b2'"):
        build_interpreter(ensemble.config, tensors, device="cpu", source="here")


def test_another_architecture_is_an_entry(monkeypatch):
    class Twice(PixelEnsemble):
        architecture = "twice"

    monkeypatch.setitem(ARCHITECTURES, "twice", Twice)
    found = build_interpreter(
        {**fitted_ensemble().config, "architecture": "twice"}, fitted_ensemble().state_dict(), device="cpu"
    )
    assert type(found) is Twice


def test_a_built_in_checkpoint_knows_its_layout():
    ensemble = load_interpreter("demo-faces", device="cpu")
    assert ensemble.layout == "convs" and ensemble.has_uncertainty


# --- copies ---


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e)), lambda e: e.to("cpu")])
def test_copies_label_alike(copied):
    ensemble, maps = fitted_ensemble(), random_maps(MIXED)
    expected = ensemble.predict(maps, Frame((9, 11)))
    got = copied(ensemble)
    assert got.config == ensemble.config
    assert torch.equal(got.predict(maps, Frame((9, 11))).uncertainty, expected.uncertainty)


# --- deprecated ---


def test_label_still_works_under_its_old_names():
    ensemble, maps = random_ensemble(24), random_maps(MIXED, batch=2)
    expected = ensemble.predict(maps, Frame((10, 13), (2, 9)))
    with pytest.warns(DeprecationWarning, match=r"label.* is deprecated .* use predict"):
        labels = ensemble.label(maps, (10, 13), rows=(2, 9))
    assert isinstance(labels, Labels)
    assert torch.equal(labels.mask, expected.labels["mask"])
    assert torch.equal(labels.uncertainty, expected.uncertainty)
    with pytest.warns(DeprecationWarning, match=r"use Labels\.uncertainty$"):
        assert labels.js is labels.uncertainty
    with pytest.warns(DeprecationWarning, match=r"use Labels\.uncertainty_score$"):
        assert labels.score is labels.uncertainty_score


def test_a_vote_given_when_loading_is_that_of_label():
    with pytest.warns(DeprecationWarning, match="vote"):
        ensemble = load_interpreter("demo-faces", device="cpu", vote="mean")
    random = torch.Generator().manual_seed(0)
    maps = [torch.randn(1, channels, 8, 8, generator=random) for channels in ensemble.channels]
    by_vote = {vote: ensemble.predict(maps, Frame((8, 8)), LabelingOptions(vote)) for vote in ("majority", "mean")}
    with pytest.warns(DeprecationWarning):
        labels = ensemble.label(maps, (8, 8))
    assert torch.equal(labels.mask, by_vote["mean"].labels["mask"])
    assert not torch.equal(labels.mask, by_vote["majority"].labels["mask"])


# --- refusals ---


@pytest.mark.parametrize("rows", [(-1, 4), (0, 9), (4, 4), (5, 3), (8, 9)])
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_rows_outside_the_frame_are_refused(read, rows):
    with pytest.raises(ValueError, match=r"rows .* inside the frame: .* <= 8"):
        read(random_ensemble(24), random_maps(MIXED), (8, 8), rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vote": "most"}, "vote must be 'majority' or 'mean', not 'most'"),
        ({"top_fraction": 0.0}, r"top_fraction must lie in \(0, 1\]"),
        ({"top_fraction": 1.5}, r"top_fraction must lie in \(0, 1\]"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        label_constant([[1.0, 0.0]], **options)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("w2", lambda w: w[:, 1:], r"w2 has shape \[3, 31, 16\], expected \[3, 32, 16\]"),
        ("b3", lambda w: w[0], r"b3 has shape \[5\], expected \[3, 5\]"),
        ("w1", lambda w: w[0], r"w1 must be \[C, M, h1\]"),
        ("w3", lambda w: w[:, :, :0], r"w3 \[M, h2, K\]"),
    ],
)
def test_matrices_that_do_not_fit_are_refused(name, change, message):
    weights = dict(random_ensemble(24).state_dict())
    with pytest.raises(ValueError, match=message):
        PixelEnsemble({**weights, name: change(weights[name])})
    with pytest.raises(ValueError, match=message):
        EnsembleWeights(**{**weights, name: change(weights[name])})


def test_the_version_of_weights_changes_with_them():
    ensemble = random_ensemble(24)
    weights, before = ensemble.weights, ensemble.weights.version()
    assert ensemble.weights.version() == before
    ensemble.b3.add_(1)
    written = ensemble.weights.version()
    assert written != before
    ensemble.w2 = ensemble.w2.clone()
    assert ensemble.weights.version() != written and weights.w2 is not ensemble.w2
