"""What `dsgan stats` says is what the samples hold."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from dsgan_datasets import LabeledGenerator
from dsgan_datasets.statistics import measure
from dsgan_datasets.tools.cli import main


def test_shares_are_those_of_the_masks(filtered: LabeledGenerator) -> None:
    found = measure(filtered, range(3, 23), seed=4)
    batch = filtered.generate(range(3, 23), seed=4)
    for i in range(4):
        area = (batch.mask == i).flatten(1).double().mean(1)
        assert found.frequency[i] == pytest.approx((area > 0).double().mean().item())
        assert found.mean_area[i] == pytest.approx(area[area > 0].mean().item(), nan_ok=True)
    assert torch.equal(found.scores, batch.uncertainty_score) and found.ignored == 0


def test_ignored_pixels_are_no_class(unfiltered: LabeledGenerator) -> None:
    recipe = unfiltered.recipe.override(max_uncertainty=0.3)
    ignoring = LabeledGenerator(unfiltered.generator, unfiltered.interpreter, unfiltered.schema, recipe)
    found = measure(ignoring, range(10))
    assert found.ignored == pytest.approx((ignoring.generate(range(10)).mask == 255).double().mean().item())
    assert found.ignored > 0


def test_a_class_that_never_appears_is_null_in_json(unfiltered: LabeledGenerator) -> None:
    recipe = unfiltered.recipe.override(max_uncertainty=0.0)  # hardly a pixel on which all members agree exactly
    ignoring = LabeledGenerator(unfiltered.generator, unfiltered.interpreter, unfiltered.schema, recipe)
    found = measure(ignoring, range(4)).to_dict()
    assert any(entry["mean_area"] is None for entry in found["classes"])
    json.dumps(found, allow_nan=False)


def test_no_samples(unfiltered: LabeledGenerator) -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        measure(unfiltered, [])


def test_command(filtered: LabeledGenerator, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filtered.save_pretrained(tmp_path / "c")
    places = ["--out", str(tmp_path / "new" / "s.png"), "--json", str(tmp_path / "s.json")]
    assert main(["stats", str(tmp_path / "c"), "--num-samples", "12", "--device", "cpu", *places]) == 0
    printed = capsys.readouterr().out
    assert "hat" in printed and "12 samples" in printed
    numbers = json.loads((tmp_path / "s.json").read_text())
    found = measure(filtered, range(12))
    assert numbers["fingerprint"] == filtered.fingerprint
    assert [c["frequency"] for c in numbers["classes"]] == list(found.frequency)
    assert math.isclose(numbers["score"]["median"], found.score_quantiles[1])
    with Image.open(tmp_path / "new" / "s.png") as picture:
        assert picture.width == 720


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stats", "demo-dogs"], "built-in checkpoint"),
        (["stats", "demo-faces", "--out", "x.txt"], "must end in .png"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1 and message in capsys.readouterr().err
