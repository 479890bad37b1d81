"""What `dsgan stats` says is what the samples hold."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from new_kinds import kinds_labeled
from PIL import Image

from dsgan_datasets import LabeledGenerator
from dsgan_datasets.statistics import measure
from dsgan_datasets.tools.cli import main


def test_shares_are_those_of_the_masks(filtered: LabeledGenerator) -> None:
    found = measure(filtered, range(3, 23), seed=4)
    batch = filtered.generate(range(3, 23), seed=4)
    label = found.labels["mask"]
    for i in range(4):
        area = (batch.mask == i).flatten(1).double().mean(1)
        assert label.frequency[i] == pytest.approx((area > 0).double().mean().item())
        assert label.mean_share[i] == pytest.approx(area[area > 0].mean().item(), nan_ok=True)
    assert torch.equal(found.scores, batch.uncertainty_score) and label.ignored == 0


def test_old_names_of_the_statistics_of_masks(unfiltered: LabeledGenerator) -> None:
    found = measure(unfiltered, range(2))
    with pytest.warns(DeprecationWarning, match="mean_share"):
        assert found.mean_area == found.labels["mask"].mean_share


def test_ignored_pixels_are_no_class(unfiltered: LabeledGenerator) -> None:
    ignoring = unfiltered.with_recipe(unfiltered.recipe.override(max_uncertainty=0.3))
    found = measure(ignoring, range(10)).labels["mask"]
    assert found.ignored == pytest.approx((ignoring.generate(range(10)).mask == 255).double().mean().item())
    assert found.ignored > 0


def test_a_class_that_never_appears_is_null_in_json(unfiltered: LabeledGenerator) -> None:
    recipe = unfiltered.recipe.override(max_uncertainty=0.0)  # hardly a pixel on which all members agree exactly
    found = measure(unfiltered.with_recipe(recipe), range(4)).to_dict()
    assert any(entry["mean_share"] is None for entry in found["labels"]["mask"]["counted"])
    json.dumps(found, allow_nan=False)


def test_no_samples(unfiltered: LabeledGenerator) -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        measure(unfiltered, [])


def test_command(filtered: LabeledGenerator, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filtered.save_pretrained(tmp_path / "c")
    command = ["stats", str(tmp_path / "c"), "--num-samples", "12", "--device", "cpu"]
    command += ["--out", str(tmp_path / "new" / "s.png")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "hat" in printed and "12 samples" in printed
    assert main([*command, "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    found = measure(filtered, range(12))
    assert numbers["fingerprint"] == filtered.fingerprint
    assert [c["frequency"] for c in numbers["labels"]["mask"]["counted"]] == list(found.labels["mask"].frequency)
    assert found.score_quantiles is not None
    assert math.isclose(numbers["uncertainty_score"]["median"], found.score_quantiles[1])
    with Image.open(tmp_path / "new" / "s.png") as picture:
        assert picture.width == 720


def test_scores_of_a_map_are_not_in_nats(
    filtered: LabeledGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = replace(measure(kinds_labeled(("depth",)), range(4)), scores=torch.linspace(0, 1, 4))
    monkeypatch.setattr("dsgan_datasets.tools.stats.measure", lambda *_, **__: found)
    filtered.save_pretrained(tmp_path / "c")
    assert main(["stats", str(tmp_path / "c"), "--device", "cpu", "--out", str(tmp_path / "s.png")]) == 0
    printed = capsys.readouterr().out
    assert "half of the samples below 0.5, 5 % below" in printed


def test_the_command_says_what_charts_need(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["stats", "demo-faces", "--device", "cpu"]) == 1
    assert "pip install 'dsgan_datasets[pictures]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stats", "demo-dogs"], "built-in checkpoint"),
        (["stats", "demo-faces", "--out", "x.txt"], "must end in .png"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1 and message in capsys.readouterr().err
