"""Label Studio's own JSON gives masks and points exactly, or says what is wrong with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotation_folders import (
    POINTS,
    SIZE,
    change,
    export_to,
    labelstudio_task,
    mistakes,
    names,
    region,
    write,
    write_labelstudio,
)
from conftest import SCHEMA

from dsgan_datasets.annotations import load_annotations
from dsgan_datasets.annotations.labelstudio import decode_brush
from dsgan_datasets.contents import ContentError

Content = list[Any]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_to(tmp_path_factory.mktemp("labelstudio") / "both", SCHEMA, POINTS)


@pytest.fixture
def both(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "both"))


def test_brushes_and_points_come_back(both: Path) -> None:
    masks, points = write_labelstudio(both)
    for elsewhere in (None, both.parent / "project-1.json"):
        if elsewhere:
            (both / "labelstudio.json").rename(elsewhere)
        found = load_annotations(both, files=elsewhere)
        assert np.array_equal(found.masks.numpy(), masks) and not found.warnings
        assert np.allclose(found.annotated.of("keypoints").numpy(), points, atol=1e-5)


def test_polygons_boxes_and_ellipses_are_percent_of_the_image(folder: Path) -> None:
    rows, columns = np.indices(SIZE) + 0.5
    triangle = region("polygonlabels", "left", points=[[0, 0], [50, 0], [0, 50]])
    box = region("rectanglelabels", "right", x=75, y=25, width=25, height=12.5, rotation=90)
    ellipse = region("ellipselabels", "hat", x=50, y=75, radiusX=25, radiusY=12.5, rotation=0)
    write(folder / "labelstudio.json", [labelstudio_task(names(folder)[0], triangle, box, ellipse)])
    expected = np.where(rows + columns < 8, 1, 0)
    expected[4:8, 10:12] = 2  # turned around its first corner (12, 4): 4×2 becomes 2×4, to the left and down
    expected[((columns - 8) / 4) ** 2 + ((rows - 12) / 2) ** 2 <= 1] = 3
    assert np.array_equal(load_annotations(folder, allow_missing=True).masks[0].numpy(), expected)


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Content], object]:
    """Of the first region of the first task."""
    return lambda tasks: change(tasks[0]["annotations"][1]["result"][0])


MISTAKES: list[tuple[Callable[[Content], object], str]] = [
    (edit(lambda r: r["value"].update(brushlabels=["Left"])), "unknown class 'Left'"),
    (edit(lambda r: r["value"].update(rle=r["value"]["rle"][:9])), "region 1 ('left'): the brush ends early"),
    (edit(lambda r: r["value"].update(rle=[0, 0, 0, 9] + 99 * [0])), "the brush has 9 numbers, its picture 1024"),
    (edit(lambda r: r["value"].update(rle=[300])), "a list of bytes"),
    (edit(lambda r: r["value"].update(rle="text")), "a list of bytes"),
    (edit(lambda r: r["value"].update(rle=[0] * 10**5)), "no longer than its picture"),
    (edit(lambda r: r["value"].update(format="mask")), "of the format 'mask'"),
    (edit(lambda r: r.update(original_width=32)), "is 32×16 pixels, its image is 16×16"),
    (edit(lambda r: r.update(image_rotation=90)), "the image was rotated"),
    (edit(lambda r: r.update(value=3)), "make no sense"),
    (edit(lambda r: r.update(type="polygonlabels")), "make no sense"),
    (edit(lambda r: r.update(type="keypointlabels", value={"x": float("nan"), "y": 3})), "pair (x, y)"),
    (edit(lambda r: r.update(type="keypointlabels", value={"x": 10**400, "y": 3})), "make no sense"),
    (lambda tasks: tasks[0]["annotations"][1].update(result=3), "not a list of regions"),
    (lambda tasks: tasks[0]["annotations"].append(tasks[1]["annotations"][1]), "has 2 annotations of"),
    (lambda tasks: tasks.append(tasks[0]), "as another task does"),
    (lambda tasks: tasks[0].update(data={"image": "x.png"}), "its data names no exported image"),
    (lambda tasks: tasks[0].pop("data"), "is not a task with data and annotations"),
    (lambda tasks: tasks.append([]), "is not a task with data and annotations"),
]


@pytest.mark.parametrize(("damage", "words"), MISTAKES)
def test_mistakes(both: Path, damage: Callable[[Content], object], words: str) -> None:
    write_labelstudio(both)
    change(both / "labelstudio.json", damage)  # type: ignore[arg-type]
    output = mistakes(both)
    assert "labelstudio.json" in output[0] and words in output[0] and len(output[0]) < 400, output


def test_runs_that_take_too_long_are_refused() -> None:
    """One number each, in 12 bits: twice as many runs as a picture should have."""
    spent = []

    def spend(runs: int) -> None:
        spent.append(runs)
        if sum(spent) > 4096:
            raise ContentError("too many")

    count = 20_000
    bits = f"{count:032b}{7:05b}" + "0000" * 4 + ("1000" + "00000001") * count
    content = [int(bits[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(bits), 8)]
    with pytest.raises(ContentError, match="too many"):
        decode_brush(content, count, spend)
    assert decode_brush(content, count).sum() == count


def test_another_region_is_a_warning(both: Path) -> None:
    write_labelstudio(both)
    change(
        both / "labelstudio.json",
        lambda tasks: tasks[0]["annotations"][1]["result"].append(region("cuboidlabels", "left")),
    )
    (warning,) = load_annotations(both).warnings
    assert "a 'cuboidlabels' is not read" in warning
