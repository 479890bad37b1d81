"""Charts: colors mean what the legend says, and nothing global is touched."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from conftest import SCHEMA
from PIL import ImageColor

from dsgan_datasets.charts import DROPPED, KEPT, histogram, tally_bars


def pixels_of(picture: object, color: str | tuple[int, ...]) -> int:
    rgb = ImageColor.getrgb(color) if isinstance(color, str) else color
    return int((np.asarray(picture).reshape(-1, 3) == rgb).all(1).sum())


def test_histogram_is_cut_at_the_threshold() -> None:
    scores = np.linspace(0.01, 1.0, 500)
    cut = histogram(scores, threshold=0.5)
    assert pixels_of(cut, KEPT) == pytest.approx(pixels_of(cut, DROPPED), rel=0.1)
    assert pixels_of(cut, KEPT) > 1000
    assert pixels_of(histogram(scores), DROPPED) == 0
    assert histogram(np.zeros(3)).size == (720, 360)  # all members agree everywhere


@pytest.mark.parametrize("threshold", [0.2, 0.98, 0.991, 1.0])
def test_no_bar_of_kept_samples_lies_behind_the_threshold(threshold: float) -> None:
    scores = np.linspace(0.01, min(threshold, 0.99), 300)
    picture = np.asarray(histogram(scores, threshold=threshold, of="samples"))
    kept = (picture == ImageColor.getrgb(KEPT)).all(2).any(0).nonzero()[0]
    line = (picture == ImageColor.getrgb("#1e1e1e")).all(2)[60:300].mean(0)[100:].argmax() + 100
    assert kept.max() <= line


def test_bars_are_as_long_as_their_shares() -> None:
    shares = {"a": [0.0, 0.4, 0.8, float("nan")]}
    areas = [pixels_of(tally_bars(shares, SCHEMA), color) for color in SCHEMA.palette]
    assert areas[2] == pytest.approx(2 * areas[1], rel=0.05) and areas[1] > 1000
    assert areas[3] == 0


@pytest.mark.slow
def test_pyplot_is_not_touched() -> None:
    code = (
        "import sys, numpy; from dsgan_datasets.charts import histogram; "
        "assert 'matplotlib' not in sys.modules; "
        "histogram(numpy.ones(3)); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'dsgan_datasets\[pictures\]'"):
        histogram(np.ones(3))
