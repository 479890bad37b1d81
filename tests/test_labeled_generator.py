"""Invariants 1, 2 and 4: samples are bit-identical however they are asked for, and every index is an accepted one."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN, SCHEMA, small_ensemble, small_labeled
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import assert_same_samples, rows_by_index

from dsgan_datasets import InterpretedLabeler, LabeledGenerator, Recipe, calibrate, load_generator
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.latents import Purpose, sample_latents


@pytest.fixture(scope="module")
def reference(filtered: LabeledGenerator) -> dict[int, object]:
    return rows_by_index(filtered.generate(range(40), seed=5))  # type: ignore[return-value]


def test_some_of_these_samples_were_drawn_again(reference: dict) -> None:
    attempts = [int(s.attempt) for s in reference.values()]
    assert 0 in attempts and max(attempts) >= 2


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 39), min_size=1, max_size=20))
def test_any_request_gives_the_same_bits(filtered: LabeledGenerator, reference: dict, indices: list[int]) -> None:
    batch = filtered.generate(indices, seed=5)
    assert_same_samples(batch.rows(), [reference[i] for i in indices])


@pytest.mark.slow
def test_samples_next_to_the_threshold(filtered: LabeledGenerator) -> None:
    """The draws whose score lies nearest to the threshold are decided the same way alone and in company."""
    drawn = filtered.generate(range(200), seed=9, attempts=0)
    assert filtered.recipe.threshold is not None
    nearest = (drawn.uncertainty_score - filtered.recipe.threshold).abs().argsort()[:6].tolist()
    together = rows_by_index(filtered.generate(range(200), seed=9))
    for i in nearest:
        assert_same_samples(filtered.generate([i], seed=9).rows(), [together[i]])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_thread_count(filtered: LabeledGenerator, reference: dict, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_same_samples(filtered.generate(range(11), seed=5).rows(), [reference[i] for i in range(11)])
    finally:
        torch.set_num_threads(before)


def test_demo_faces_do_not_depend_on_company_or_threads() -> None:
    """The same on the real checkpoint, whose convolutions are large enough to be split among threads."""
    labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = rows_by_index(labeled.generate(range(20)))
        torch.set_num_threads(1)
        assert_same_samples(labeled.generate([13, 2]).rows(), [together[13], together[2]])
    finally:
        torch.set_num_threads(before)


def test_stream_is_generate(filtered: LabeledGenerator, reference: dict) -> None:
    samples = itertools.islice(filtered.stream(itertools.count(3), seed=5), 20)
    assert_same_samples(samples, [reference[i] for i in range(3, 23)])


def test_every_sample_passes_the_filter(filtered: LabeledGenerator, unfiltered: LabeledGenerator) -> None:
    threshold = filtered.recipe.threshold
    assert bool((filtered.generate(range(60), seed=1).uncertainty_score <= threshold).all())
    assert bool((unfiltered.generate(range(60), seed=1).uncertainty_score > threshold).any())


def test_recorded_attempts_replay(filtered: LabeledGenerator) -> None:
    batch = filtered.generate(range(30), seed=2)
    replayed = filtered.generate(batch.index, seed=2, attempts=batch.attempt)
    assert_same_samples(replayed.rows(), batch.rows())


def test_attempt_zero_is_the_first_draw(filtered: LabeledGenerator) -> None:
    batch = filtered.generate([4], seed=3, attempts=0, extras=("latent",))
    assert torch.equal(batch.latent, sample_latents([4], 32, seed=3))


def test_seeds_differ(unfiltered: LabeledGenerator) -> None:
    assert not torch.equal(unfiltered.generate([0], seed=0).image, unfiltered.generate([0], seed=1).image)


@pytest.mark.slow
def test_rules_by_content(unfiltered: LabeledGenerator) -> None:
    share = unfiltered.generate(range(100)).mask
    area = (share == 1).flatten(1).sum(1)
    least = int(area.double().quantile(0.5)) + 1
    strict = small_labeled(require=(1,), min_area=least)
    masks = strict.generate(range(30)).mask
    assert bool(((masks == 1).flatten(1).sum(1) >= least).all())


def test_a_filter_that_accepts_nearly_nothing_is_refused_by_rule() -> None:
    hopeless = small_labeled(threshold=-1.0, require=(1,))
    with pytest.raises(ValueError, match=r"accepts 0\.00%.*score <= -1: 0\.00%; left >= 1 px: [1-9]"):
        hopeless.generate([0])
    assert hopeless.generate([0], attempts=0).num_samples == 1, "a replayed draw needs no filter"


class Counting:
    """A labeler that counts the draws it was asked for."""

    def __init__(self, labeler: Any) -> None:
        self.labeler, self.draws = labeler, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["labeler"], name)

    def label(self, ws: torch.Tensor, recipe: Recipe) -> dict[str, torch.Tensor]:
        self.draws += len(ws)
        return self.labeler.label(ws, recipe)


@pytest.mark.slow
def test_a_constructor_draws_nothing_and_a_rate_is_measured_once_for_a_user(
    unfiltered: LabeledGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSGAN_CACHE", str(tmp_path))
    counting = Counting(unfiltered.labeler)
    recipe = dataclasses.replace(unfiltered.recipe, require=(1,))
    first = LabeledGenerator(counting, recipe)
    assert counting.draws == 0
    expected = first.generate([0])
    assert counting.draws >= 256
    counting.draws = 0
    again = LabeledGenerator(counting, recipe).generate([0])
    assert counting.draws < 64
    assert_same_samples(again.rows(), expected.rows())
    for file in (tmp_path / "acceptance").glob("*.json"):
        file.write_text("{")  # a damaged cache is as good as none
    assert_same_samples(LabeledGenerator(counting, recipe).generate([0]).rows(), expected.rows())


def test_a_cache_that_cannot_be_written_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSGAN_CACHE", "/dev/null/nowhere")
    assert small_labeled(require=(1,)).generate([0]).num_samples == 1


def test_it_moves_and_travels_as_a_whole(unfiltered: LabeledGenerator) -> None:
    merged = unfiltered.merge_classes({"side": ["left", "right"]})
    expected = merged.generate(range(3))
    with pytest.warns(RuntimeWarning, match="computed plainly"):
        merged.capture_graph()
    copy = pickle.loads(pickle.dumps(merged)).to("cpu")
    assert copy.fingerprint == merged.fingerprint
    assert_same_samples(copy.generate(range(3)).rows(), expected.rows())
    meta = pickle.loads(pickle.dumps(merged)).to("meta")
    assert {str(t.device) for part in meta.labeler.parts().values() for t in part.tensors.values()} == {"meta"}


def test_compiling_is_another_recipe(unfiltered: LabeledGenerator) -> None:
    compiled = unfiltered.with_recipe(dataclasses.replace(unfiltered.recipe, compile=True))
    assert compiled.fingerprint != unfiltered.fingerprint
    with pytest.raises(ValueError, match="compile=True needs a CUDA device, this is cpu"):
        compiled.generate([0])
    assert unfiltered.recipe.override(compile=True).threshold == unfiltered.recipe.threshold


def test_the_old_form_still_works(unfiltered: LabeledGenerator) -> None:
    parts = unfiltered.generator, unfiltered.interpreter, unfiltered.schema, unfiltered.recipe
    with pytest.warns(DeprecationWarning, match="InterpretedLabeler"):
        old = LabeledGenerator(*parts)
    assert old.fingerprint == unfiltered.fingerprint
    with pytest.warns(DeprecationWarning, match="sample.js"):
        assert next(old.stream([0], extras=("uncertainty",))).js.shape == (16, 16)
    with pytest.warns(DeprecationWarning, match="sample.score"):
        assert next(old.stream([0]))["score"].ndim == 0


def test_generation_stops_when_the_acceptance_rate_was_wrong(filtered: LabeledGenerator) -> None:
    assert filtered.calibration is not None
    wrong = dataclasses.replace(filtered.recipe, threshold=-1.0)
    hopeless = filtered.with_recipe(wrong, filtered.calibration)
    with pytest.raises(RuntimeError, match="index 0 found no accepted draw in .* attempts"):
        hopeless.generate([0])


def test_changed_recipe_needs_calibration(tmp_path_factory: pytest.TempPathFactory, filtered: LabeledGenerator) -> None:
    path = tmp_path_factory.mktemp("checkpoint")
    filtered.save_pretrained(path)
    changed = LabeledGenerator.from_pretrained(path, device="cpu", truncation_psi=0.5)
    assert changed.fingerprint != filtered.fingerprint
    with pytest.raises(ValueError, match="rejects 40%.*calibrate"):
        changed.generate([0])
    assert calibrate(changed, 40, reject_fraction=0.4).generate([0]).num_samples == 1
    assert (
        LabeledGenerator.from_pretrained(path, device="cpu", truncation_psi=0.5, reject_fraction=0)
        .generate([0])
        .num_samples
        == 1
    )


def test_calibration_draws_are_of_their_own_family(unfiltered: LabeledGenerator) -> None:
    drawn = next(unfiltered.unfiltered(4, seed=0))
    assert not torch.equal(drawn["latent"], sample_latents(range(4), 32, seed=0))
    assert torch.equal(drawn["latent"], sample_latents(range(4), 32, seed=0, purpose=Purpose.CALIBRATION))


def test_empty_request(filtered: LabeledGenerator) -> None:
    batch = filtered.generate([], extras=("uncertainty",))
    assert batch.image.shape == (0, 3, 16, 16) and batch.uncertainty.shape == (0, 16, 16) and batch.num_samples == 0


def test_crop_keeps_rows_of_the_full_frame() -> None:
    whole, cropped = small_labeled(), small_labeled(crop=(3, 12))
    a, b = whole.generate([0, 1], extras=("uncertainty",)), cropped.generate([0, 1], extras=("uncertainty",))
    assert torch.equal(a.image[:, :, 3:12], b.image)
    assert torch.equal(a.mask[:, 3:12], b.mask)
    assert torch.allclose(a.uncertainty[:, 3:12], b.uncertainty, atol=1e-6)
    assert cropped.image_size == (9, 16)


def test_size_scales_image_and_mask() -> None:
    batch = small_labeled(size=(12, 20)).generate([0])
    assert batch.image.shape == (1, 3, 12, 20) and batch.mask.shape == (1, 12, 20)


def test_merged_classes_are_mapped_after_the_vote(unfiltered: LabeledGenerator) -> None:
    merged = unfiltered.merge_classes({"side": ["left", "right"]})
    assert merged.schema.classes == ("background", "side", "hat")
    fine = unfiltered.generate([0]).mask
    assert torch.equal(merged.generate([0]).mask, torch.tensor([0, 1, 1, 2])[fine])
    assert merged.fingerprint != unfiltered.fingerprint


def test_names_and_colors_are_outside_the_fingerprint(unfiltered: LabeledGenerator) -> None:
    renamed = dataclasses.replace(SCHEMA, classes=("a", "b", "c", "d"))
    other = LabeledGenerator(unfiltered.labeler.with_targets([renamed]), unfiltered.recipe)
    assert other.fingerprint == unfiltered.fingerprint


def test_global_state_is_left_alone(unfiltered: LabeledGenerator) -> None:
    """Invariants 1 and 8: no global generator, no process-wide switch, gradients on as before, leaf tensors usable."""
    switches = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision(), torch.get_default_dtype()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    batch = unfiltered.generate([0])
    assert torch.equal(torch.get_rng_state(), state)
    assert switches == (
        torch.backends.cudnn.benchmark,
        torch.get_float32_matmul_precision(),
        torch.get_default_dtype(),
    )
    assert torch.is_grad_enabled() and not batch.uncertainty_score.is_inference()
    batch.image.add_(1)  # an in-place augmentation must be possible


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_changes_little(unfiltered: LabeledGenerator, dtype: str) -> None:
    half, full = small_labeled(dtype=dtype).generate(range(8)), unfiltered.generate(range(8))
    assert (half.image.int() - full.image.int()).abs().float().mean() < 3
    assert (half.mask != full.mask).float().mean() < 0.05


def test_half_precision_stays_in_range() -> None:
    """Styles and activations far above one, as trained networks have: float16 ends at 65504."""
    generator = load_generator("demo-faces", device="cpu")
    latent = sample_latents(range(2), generator.z_dim, seed=0)
    full, _ = synthesize(generator, Recipe(truncation_psi=1.0), latent)
    half, features = synthesize(generator, Recipe(truncation_psi=1.0, dtype="float16"), latent)
    assert all(bool(f.isfinite().all()) for f in features)
    assert (half.int() - full.int()).abs().max() <= 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": (0, 17)}, "beyond the 16 rows"),
        ({"class_label": 0}, "None: the generator is unconditional"),
        ({"require": (4,)}, "schema has 0 … 3"),
    ],
)
def test_recipe_that_does_not_fit(unfiltered: LabeledGenerator, change: dict[str, object], message: str) -> None:
    recipe = dataclasses.replace(unfiltered.recipe, **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        unfiltered.with_recipe(recipe)


def test_interpreter_that_does_not_fit(unfiltered: LabeledGenerator) -> None:
    generator = unfiltered.generator
    with pytest.raises(ValueError, match="add up to 104, w1 takes 7 features"):
        InterpretedLabeler(generator, small_ensemble(7), [SCHEMA])
    with pytest.raises(ValueError, match="predicts 5 classes, the schema names 4"):
        five = small_ensemble(sum(generator.feature_channels), classes=5)
        LabeledGenerator(InterpretedLabeler(generator, five, [SCHEMA]), unfiltered.recipe)


def test_another_layout_of_as_many_channels_does_not_fit(unfiltered: LabeledGenerator) -> None:
    other = load_generator(GOLDEN / "sg2ada_fullsnapshot16.pkl", device="cpu", features="const+convs")
    with pytest.raises(ValueError, match=r"fitted on features in layout 'convs'.*features='convs'"):
        InterpretedLabeler(other, unfiltered.interpreter, [SCHEMA])


def test_conditional_generator_needs_a_class() -> None:
    generator = load_generator(GOLDEN / "sg2ada_cond32_skip.pkl", device="cpu")
    ensemble = small_ensemble(sum(generator.feature_channels))
    labeler = InterpretedLabeler(generator, ensemble, [SCHEMA])
    with pytest.raises(ValueError, match=r"class_label is None, allowed is 0 … 2"):
        LabeledGenerator(labeler, Recipe())
    images = [LabeledGenerator(labeler, Recipe(class_label=c)).generate([0]).image for c in (0, 2)]
    assert not torch.equal(*images)


@pytest.mark.parametrize(
    ("argument", "value"), [("attempts", -1), ("attempts", [0, 1]), ("extras", ("depth",)), ("seed", -1)]
)
def test_bad_arguments(unfiltered: LabeledGenerator, argument: str, value: object) -> None:
    with pytest.raises(ValueError, match=argument):
        unfiltered.generate([0], **{argument: value})  # type: ignore[arg-type]


def test_acceleration_that_is_not_to_be_had_changes_nothing(unfiltered: LabeledGenerator) -> None:
    expected = unfiltered.generate(range(3))
    plain = unfiltered.with_recipe(unfiltered.recipe)
    with pytest.warns(RuntimeWarning, match="computed plainly.*need a CUDA device, this is cpu"):
        assert plain.capture_graph() is plain
    assert_same_samples(plain.generate(range(3)).rows(), expected.rows())
