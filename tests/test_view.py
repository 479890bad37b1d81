"""What `dsgan view` shows is what a stream yields, and what is marked there is what gets annotated."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from conftest import SCHEMA, small_labeled
from kinds import labeled_with
from PIL import Image

from dsgan_datasets import LabeledGenerator, LabelSchema
from dsgan_datasets.annotations.folder import Exported
from dsgan_datasets.tools import page
from dsgan_datasets.tools.cli import main
from dsgan_datasets.tools.looking import Asked, MarkFile, StoppedError, look, usual
from dsgan_datasets.tools.page import STREAM, TO_ANNOTATE, Page


def asked_of(labeled: LabeledGenerator, **changes: Any) -> Asked:
    return dataclasses.replace(usual(labeled), num_samples=5, **changes)


def test_the_page_shows_the_samples_of_the_stream(filtered: LabeledGenerator) -> None:
    seen = look(filtered, asked_of(filtered, seed=3, first=20))
    stream = filtered.stream(range(20, 25), seed=3, extras=("uncertainty",))
    for shown, sample in zip(seen.samples.rows(), stream, strict=True):
        assert shown.keys() == sample.keys() and all(shown[name].equal(sample[name]) for name in sample)
    assert seen.num_draws == 5 + int(seen.samples.attempt.sum()) > 5 and all(seen.accepted)


def test_a_changed_recipe_is_shown_as_the_stream_has_it() -> None:
    """Psi, rules and several thresholds together; a rule takes effect without any wait for a calibration."""
    labeled = labeled_with("mask", "keypoints", "depth")
    free = look(labeled, asked_of(labeled, psi=0.6))
    levels = {field: float(free.samples[score].median()) + 0.05 for field, score in labeled.labeler.scores.items()}
    seen = look(labeled, asked_of(labeled, psi=0.6, thresholds=levels, require=["left"], min_area=3))
    for field, score in labeled.labeler.scores.items():
        assert (seen.samples[score] <= levels[field]).all()
    assert ((seen.samples.mask == SCHEMA.index("left")).sum((1, 2)) >= 3).all()


def test_what_was_found_is_shown_though_an_index_finds_nothing(filtered: LabeledGenerator) -> None:
    free = look(filtered, Asked(num_samples=40)).samples.uncertainty_score
    first, level = int(free.argmin()), float(free.min())  # one draw in forty, and a page that begins with it
    seen = look(filtered, Asked(first=first, num_samples=12, thresholds={"mask": level}))
    indices = seen.samples.index.tolist()
    assert first in indices and seen.missing and len(seen.accepted) == len(indices)
    assert sorted([*indices, *seen.missing]) == list(range(first, first + 12))
    assert (seen.samples.uncertainty_score <= level).all()
    said = page.summary(seen, filtered.targets, Asked())
    assert f"samples {first} … {first + 11}: {len(indices)} of 12 shown · {seen.num_draws} draws looked at" in said
    assert f"the filter accepted no draw for samples {seen.missing[0]}, " in said


def test_a_threshold_that_no_draw_meets_is_given_up_on_early(filtered: LabeledGenerator) -> None:
    drawn = []
    with pytest.raises(ValueError, match=r"accepts none of (\d+) draws: raise the highest uncertainty") as caught:
        look(filtered, Asked(num_samples=200, thresholds={"mask": 0.0}), lambda done, total: drawn.append(done))
    assert set(drawn) == {0} and int(str(caught.value).split("none of ")[1].split()[0]) < 200
    many = look(filtered, Asked(num_samples=100, thresholds={"mask": 0.0}, to_annotate=True))
    assert many.samples.num_samples == 100 and not any(many.accepted)  # all are worth annotating


def test_a_search_that_is_stopped_keeps_what_it_found(filtered: LabeledGenerator) -> None:
    done = [0]
    asked = Asked(num_samples=60)
    whole = look(filtered, asked)
    seen = look(filtered, asked, lambda found, total: done.append(found), lambda: len(done) > 2)
    assert len(done) == 3 and 0 < seen.samples.num_samples == done[-1] < 60 and seen.stopped and not whole.stopped
    assert seen.num_draws == 2 * filtered.recipe.compute_batch < whole.num_draws
    assert sorted([*seen.samples.index.tolist(), *seen.missing]) == list(range(60))
    shown = dict(zip(whole.samples.index.tolist(), whole.samples.rows(), strict=True))
    for sample in seen.samples.rows():
        assert all(value.equal(shown[int(sample.index)][name]) for name, value in sample.items())
    said = page.summary(seen, filtered.targets, asked)
    assert f"samples 0 … 59: {done[-1]} of 60 shown · {seen.num_draws} draws looked at" in said
    assert f"stopped before the filter accepted a draw for samples {seen.missing[0]}, " in said
    with pytest.raises(StoppedError, match="stopped after 0 draws, of which the filter accepts none"):
        look(filtered, asked, stopped=lambda: True)


def test_each_page_stops_its_own_search(tmp_path: Path, filtered: LabeledGenerator) -> None:
    """Searches of other pages continue, and so does the next one of the same page."""
    shown = Page(filtered, MarkFile(tmp_path / "marks.json", filtered, "checkpoint"), 60)
    values = (STREAM, "0", "0", 0.9, [], 1, "")
    shown.stop("one")  # nothing to stop

    def search(browser: str) -> str:
        return shown.shown(*values, progress=lambda found, total: shown.stop("one"), browser=browser)[0]

    assert "stopped" not in search("other")
    assert "stopped" in search("one")
    assert "stopped" not in shown.shown(*values, browser="one")[0]


def test_the_next_search_of_a_page_ends_the_one_before(
    tmp_path: Path, filtered: LabeledGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it shows; a wrong value begins none; and what is stopped while it waits for another page never draws."""
    over = page.SupersededError
    drawing, may_draw, seeds = threading.Event(), threading.Event(), []
    generate = LabeledGenerator.generate

    def slowly(*args: Any, **kwargs: Any) -> Any:
        seeds.append(kwargs["seed"])
        drawing.set()
        assert may_draw.wait(60)
        return generate(*args, **kwargs)

    monkeypatch.setattr(LabeledGenerator, "generate", slowly)
    shown = Page(filtered, MarkFile(tmp_path / "marks.json", filtered, "checkpoint"), 60)
    with ThreadPoolExecutor(4) as pool:

        def search(draws: str, seed: str, browser: str) -> Future[Any]:
            return pool.submit(shown.shown, draws, seed, "0", 0.9, [], 1, "", browser=browser)

        first = search(STREAM, "1", "one")
        assert drawing.wait(60) and shown.searches("one") and not shown.searches("two")
        with pytest.raises(ValueError, match="seed"):
            shown.shown(STREAM, "x", "0", 0.9, [], 1, "", browser="one")
        other = search(STREAM, "2", "two")
        wait_for(lambda: shown.searches("two"))
        shown.stop("two")
        with pytest.raises(StoppedError, match="before the first draw"):
            other.result(60)
        later = [search(STREAM, "3", "one"), search(TO_ANNOTATE, "4", "one")]
        wait_for(lambda: any(each.done() for each in later))  # one of them, which has waited for the first
        assert seeds == [1] and not first.done()
        may_draw.set()
        ends = [type(each.exception(60)) for each in (first, *later)]
        assert ends in ([over, over, type(None)], [over, type(None), over])
        assert seeds.count(1) == 1 and len(set(seeds)) == 2 and not shown.searches("one")


def test_view_groups_stay_together() -> None:
    labeled = small_labeled(group_size=4, mixing_layer=2)
    seen = look(labeled, asked_of(labeled, first=6))
    assert seen.samples.index.tolist() == list(range(4, 12))


def test_what_is_marked_is_what_is_exported(tmp_path: Path, filtered: LabeledGenerator) -> None:
    filtered.save_pretrained(tmp_path / "checkpoint")
    labeled = LabeledGenerator.from_pretrained(tmp_path / "checkpoint", device="cpu")
    asked = asked_of(labeled, seed=7, psi=0.8, first=2**53, to_annotate=True)
    file = MarkFile(tmp_path / "marks.json", labeled, str(tmp_path / "checkpoint"))
    for index in (2**53 + 4, 2**53 + 1, 2**53 + 2):
        file.mark(asked, {index: True})
    file.mark(asked, {2**53 + 2: False})
    again = MarkFile(tmp_path / "marks.json", labeled, "checkpoint")  # as the next `dsgan view` finds it
    marked = again.read()
    assert marked.indices == (2**53 + 1, 2**53 + 4)
    assert marked.same_draws(again.of(asked)) and not marked.same_draws(again.of(Asked(seed=8)))
    export = ["annotate", "export", str(tmp_path / "checkpoint"), "--marked", str(tmp_path / "marks.json")]
    assert main([*export, str(tmp_path / "round"), "--device", "cpu"]) == 0
    exported = Exported.read(tmp_path / "round")
    assert [image.index for image in exported.images] == list(marked.indices)
    seen = look(labeled, asked).samples
    assert seen.num_samples == 5  # rejected draws too: those are worth annotating
    for image, row in zip(exported.images, (1, 4), strict=True):
        pixels = np.asarray(Image.open(tmp_path / "round" / image.file))
        assert np.array_equal(pixels, seen.image[row].permute(1, 2, 0).numpy())


def test_marks_of_an_earlier_round_are_left_out(
    tmp_path: Path, unfiltered: LabeledGenerator, capsys: pytest.CaptureFixture[str]
) -> None:
    unfiltered.save_pretrained(tmp_path / "checkpoint")
    file = MarkFile(tmp_path / "marks.json", unfiltered, "checkpoint")
    export = ["annotate", "export", str(tmp_path / "checkpoint"), "--marked", str(file.path), "--device", "cpu"]
    file.mark(Asked(), {3: True})
    assert main([*export, str(tmp_path / "one")]) == 0
    later = [*export, "--after", str(tmp_path / "one"), str(tmp_path / "two")]
    assert main(later) == 1
    said = capsys.readouterr().err
    assert "nothing is left to annotate" in said and "in an earlier round" in said and "start" not in said
    file.mark(Asked(), {9: True})
    assert main(later) == 0 and "1 marked draw left out" in capsys.readouterr().err
    assert [image.index for image in Exported.read(tmp_path / "two").images] == [9]
    file.clear(file.read())
    assert main([*later[:-1], str(tmp_path / "three")]) == 1
    assert f"--marked {file.path} holds no marks" in capsys.readouterr().err


def test_one_file_has_marks_of_one_seed_and_generator(tmp_path: Path, unfiltered: LabeledGenerator) -> None:
    path = tmp_path / "marks.json"
    file = MarkFile(path, unfiltered, "checkpoint")
    file.mark(Asked(), {3: True})
    written = path.read_bytes()
    for other in (Asked(seed=1), Asked(psi=0.3)):
        with pytest.raises(ValueError, match=r"holds marks of seed 0, psi 0\.9"):
            file.mark(other, {4: True})
    assert path.read_bytes() == written
    file.mark(Asked(thresholds={"mask": 0.1}, require=["left"]), {4: True})  # the filter does not change a draw
    file.clear(file.read())
    file.mark(Asked(seed=1), {5: True})
    assert json.loads(path.read_text())["indices"] == [5]
    stranger = json.loads(path.read_text())
    path.write_text(json.dumps({**stranger, "generator": {"name": "cars", "fingerprint": "0" * 64}}))
    with pytest.raises(ValueError, match=r"another generator \(cars\)"):
        MarkFile(path, unfiltered, "checkpoint")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"format_version": 1}', '{"format_version": 1, "generator": 3}', "\x00", '{"format_version": 2}'],
)
def test_other_files_are_no_marks(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "marks.json"
    path.write_text(content)
    assert main(["annotate", "export", "demo-faces", str(tmp_path / "out"), "--marked", str(path)]) == 1
    said = capsys.readouterr().err
    assert str(path) in said and "export it again" not in said and path.read_text() == content


def test_other_ways_to_choose_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["annotate", "export", "demo-faces", str(tmp_path / "out"), "--marked", "marks.json"]
    assert main([*command, "--num-samples", "3", "--truncation-psi", "0.5"]) == 2
    assert "leave out --num-samples, --truncation-psi" in capsys.readouterr().err


def page_of(labeled: LabeledGenerator, folder: Path) -> Page:
    return Page(labeled, MarkFile(folder / "marks.json", labeled, "my <b>parts"), 3)


def test_the_page_quotes_names_and_shows_every_label(tmp_path: Path) -> None:
    labeled = labeled_with("mask", "keypoints", "depth")
    named = LabelSchema(("background", "<script>", "right", "hat"))
    labeled.labeler = labeled.labeler.with_targets([named, *labeled.targets[1:]])
    shown = page_of(labeled, tmp_path)
    levels = [""] * len(labeled.labeler.scores)
    summary, cards, _ = shown.shown(STREAM, "0", "0", 1, [], 1, *levels)
    assert cards.count('class="picture ') == 3 * (1 + 3 + 3) and cards.count("<input") == 0
    assert "samples 0 … 2: all 3 shown · 3 draws looked at, 0 rejected by the filter" in summary
    assert "depth uncertainty" in summary
    shown.file.mark(Asked(psi=1), {1: True})
    _, cards, _ = shown.shown(TO_ANNOTATE, "0", "0", 1, [], 1, *levels)
    assert cards.count("<input") == 3 and cards.count(" checked") == 1
    texts = [page.legend(labeled.targets), cards, shown.panel(None)[0]]
    assert not any("<script>" in text or "<b>" in text for text in texts) and "&lt;script&gt;" in texts[0]


@pytest.mark.parametrize(
    ("box", "value", "message"),
    [
        (1, "-1", r"seed: '-1' is not an integer in 0 … 2\^64-1"),
        (2, "x", "first index: 'x' is not an integer"),
        (6, "much", "highest uncertainty of mask: 'much' is not a number"),
        (6, "-1", "highest uncertainty of mask: '-1' is below 0"),
        (3, None, "truncation psi: the box is empty"),
        (3, 7, "truncation psi: '7' is not in 0 … 1"),
        (3, -1, "truncation psi: '-1' is not in 0 … 1"),
        (1, "", "seed: the box is empty"),
        (5, None, "pixels of each: the box is empty"),
        (5, 2.5, r"pixels of each: '2\.5' is not an integer"),
        (5, 0, "pixels of each: '0' is not an integer in 1 … 256"),
        (5, 999999, "pixels of each: '999999' is not an integer in 1 … 256"),
        (4, ["tail"], "in every sample: no class or point is named 'tail'"),
        (4, 3, "in every sample must be a list of names, not 3"),
        (0, "anything", "show: 'anything' is neither"),
    ],
)
def test_wrong_values_of_boxes_are_named(
    tmp_path: Path, unfiltered: LabeledGenerator, box: int, value: object, message: str
) -> None:
    values: list[Any] = [STREAM, "0", "0", 0.9, [], 1, ""]
    values[box] = value
    with pytest.raises(ValueError, match=message):
        page_of(unfiltered, tmp_path).shown(*values)


def test_a_threshold_is_shown_short_and_meant_whole(tmp_path: Path, filtered: LabeledGenerator) -> None:
    """What the page shows at first is the stream of the checkpoint, bit for bit."""
    pages = page_of(filtered, tmp_path)
    whole = usual(filtered).thresholds["mask"]
    assert whole is not None and len(pages.levels["mask"]) < len(repr(whole))
    assert float(pages.levels["mask"]) == pytest.approx(whole, rel=1e-3)
    levels = [(STREAM, "0", "0", 0.9, [], 1, text) for text in (pages.levels["mask"], "0.25", "")]
    assert [pages.asked(*values).thresholds["mask"] for values in levels] == [whole, 0.25, None]


ANNOTATING = (TO_ANNOTATE, "5", "8", 0.9, [], 1, "")


def ticked(shown: page.Shown, boxes: dict[Any, object]) -> dict[str, object]:
    """What a browser sends."""
    return {"page": shown.token, "boxes": boxes}


def test_a_mark_is_of_the_picture_that_is_seen(tmp_path: Path, unfiltered: LabeledGenerator) -> None:
    """Controls may say something else by then; a box of samples that are gone marks nothing."""
    pages = page_of(unfiltered, tmp_path)
    _, cards, shown = pages.shown(*ANNOTATING)
    assert f'data-page="{shown.token}"' in cards
    marked = pages.mark(shown, ticked(shown, {str(shown.indices[2]): True}))
    assert (marked.seed, marked.indices) == (5, (10,)) and marked == pages.file.read()
    for changes in ({1: "6"}, {2: "9"}, {3: 0.8}):
        _, _, later = pages.shown(*(changes.get(i, value) for i, value in enumerate(ANNOTATING)))
        with pytest.raises(ValueError, match=r"other samples are shown by now\. Press Show"):
            pages.mark(later, ticked(shown, {"9": True}))
    with pytest.raises(ValueError, match="Press Show"):
        pages.mark(None, ticked(shown, {"9": True}))
    _, _, stream = pages.shown(STREAM, *ANNOTATING[1:])
    with pytest.raises(ValueError, match="9 is not one of the draws to annotate"):
        pages.mark(stream, ticked(stream, {"9": True}))
    assert pages.file.read() == marked == pages.mark(shown, None)  # a box whose change went with another one's


def test_boxes_that_were_changed_are_saved_together(tmp_path: Path, unfiltered: LabeledGenerator) -> None:
    """And no others: another page may have changed those. The page learns which of its boxes are ticked then."""
    pages = page_of(unfiltered, tmp_path)
    _, _, shown = pages.shown(*ANNOTATING)
    pages.file.mark(shown.asked, {10: True, 77: True})
    marked = pages.mark(shown, ticked(shown, {"8": True, "9": True}))
    assert marked.indices == (8, 9, 10, 77) and pages.panel(shown)[2] == ["8", "9", "10", "77"]
    assert pages.mark(shown, ticked(shown, {"8": False, "10": False})).indices == (9, 77)
    with pytest.raises(ValueError, match="11 is not one of the draws to annotate"):
        pages.mark(shown, ticked(shown, {"8": True, "11": True}))
    assert pages.file.read().indices == (9, 77)
    _, _, other = pages.shown(TO_ANNOTATE, "6", *ANNOTATING[2:])
    assert pages.panel(other)[2] == []


@pytest.mark.parametrize("index", ["-1", "9223372036854775808", 1e300, None, True, (9,), "11", "9.0"])
def test_what_is_no_draw_is_not_marked(tmp_path: Path, unfiltered: LabeledGenerator, index: object) -> None:
    pages = page_of(unfiltered, tmp_path)
    _, _, shown = pages.shown(*ANNOTATING)
    before = pages.mark(shown, ticked(shown, {9: True}))
    with pytest.raises(ValueError, match="index|not one of"):
        pages.mark(shown, ticked(shown, {index: True}))
    with pytest.raises(ValueError, match="marked must be True or False, not 'False'"):
        pages.mark(shown, ticked(shown, {"9": "False"}))
    assert pages.file.read() == before
    with pytest.raises(ValueError, match=r"2\^63-1"):
        before.with_mark(2**63, True)


def test_several_programs_mark_in_one_file(tmp_path: Path, unfiltered: LabeledGenerator) -> None:
    one, two = (MarkFile(tmp_path / "new" / "marks.json", unfiltered, "checkpoint") for _ in range(2))
    one.mark(Asked(), {3: True})
    seen = one.mark(Asked(), {1: True})
    assert two.mark(Asked(), {2: True}).indices == one.read().indices == (1, 2, 3)
    with pytest.raises(ValueError, match="was changed elsewhere, and nothing is cleared"):
        one.clear(seen)  # 2 has never been on this page
    one.clear(one.read())
    one.mark(Asked(seed=9), {77: True})
    with pytest.raises(ValueError, match="holds marks of seed 9"):
        two.mark(Asked(), {4: True})
    assert two.read().indices == (77,)
    two.path.write_text("{}")
    with pytest.raises(ValueError, match="it has no|format_version is not 1"):
        one.mark(Asked(seed=9), {78: True})
    assert two.path.read_text() == "{}" and [file.name for file in two.path.parent.iterdir()] == ["marks.json"]


def test_marks_made_at_the_same_time_are_all_kept(tmp_path: Path, unfiltered: LabeledGenerator) -> None:
    files = [MarkFile(tmp_path / "marks.json", unfiltered, "checkpoint") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: files[i % 4].mark(Asked(), {i: True}), range(24), timeout=60))
    assert files[0].read().indices == tuple(range(24))


def test_the_reason_why_a_file_is_refused_is_whole(tmp_path: Path, unfiltered: LabeledGenerator) -> None:
    file = MarkFile(tmp_path / "marks.json", unfiltered, "checkpoint")
    file.mark(Asked(), {3: True})
    content = json.loads(file.path.read_text())
    file.path.write_text(json.dumps({**content, "indices": [3, -1]}))
    with pytest.raises(ValueError, match=r"indices must (be|lie) .* 2\^63-1.*, got -1"):
        file.read()
    del content["seed"]
    file.path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="it has no 'seed'"):
        file.read()


def test_pages_move_within_the_indices(tmp_path: Path, unfiltered: LabeledGenerator) -> None:
    shown = page_of(unfiltered, tmp_path)
    assert shown.moved("4", 1) == "7" and shown.moved("2", -1) == "0"
    assert shown.moved(str(2**63 - 1), 1) == str(2**63 - 1)


def test_view_says_how_to_install_gradio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["view", "demo-faces", "--marks", str(tmp_path / "m.json")]) == 1
    assert "pip install 'dsgan_datasets[view]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (["--host", "192.0.2.1"], r"cannot listen on 192\.0\.2\.1, port \d+ \(Cannot assign .*--host takes an address"),
        (["--host", "no.host.invalid"], r"cannot listen on no\.host\.invalid, port \d+ \(.*--host takes an address"),
        (["--host", "a..b"], r"cannot listen on a\.\.b, port \d+ \(.*--host takes an address"),
        (["--port", "{taken}"], r"cannot listen on 127\.0\.0\.1: port \d+ is in use: choose another --port"),
    ],
)
def test_an_address_that_cannot_be_served_is_refused_at_once(
    tmp_path: Path, where: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = [text.format(taken=taken.getsockname()[1]) for text in where]
        command = ["view", "demo-faces", "--device", "cpu", "--no-browser", "--marks", str(tmp_path / "marks.json")]
        assert main([*command, *options]) == 1
    said = capfd.readouterr().err
    assert re.fullmatch(f"dsgan: error: {message}.*\n", said), said


@pytest.mark.filterwarnings("ignore:unclosed event loop:ResourceWarning")  # of Gradio's
def test_the_server_refuses_strangers(tmp_path: Path, unfiltered: LabeledGenerator) -> None:
    """Names of other sites, and uploads; and it ends at once, though a page is open."""
    pytest.importorskip("gradio")

    def status(path: str, headers: dict[str, str], data: bytes | None = None) -> int:
        try:
            with urlopen(Request(address + path, headers=headers, data=data), timeout=20) as answer:
                return int(answer.status)
        except HTTPError as error:
            error.close()
            return error.code

    served = {"seed": 0, "start": 0, "to_annotate": True, "host": "127.0.0.1", "port": None, "browser": False}
    with page.served(page_of(unfiltered, tmp_path), **served) as address:
        port = address.rstrip("/").rpartition(":")[2]
        for name in ("127.0.0.1", "localhost", "[::1]"):
            assert status("config", {"Host": f"{name}:{port}"}) == 200
        assert status("config", {"Host": "strangers.example"}) == 400
        form = (
            b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n' + bytes(999) + b"\r\n--x--\r\n"
        )
        assert status("gradio_api/upload", {"Content-Type": "multipart/form-data; boundary=x"}, form) == 413


def test_labels_are_as_opaque_as_asked_for() -> None:
    labeled = labeled_with("mask", "keypoints", "depth")
    sample = labeled.generate([0], seed=1)
    image = Image.new("RGB", (160, 160), (200, 100, 50))
    for target in labeled.targets:
        value = sample[target.field][0]
        none, half, full = (
            np.asarray(target.draw(image, value, (16, 16), opacity=share)).astype(int) for share in (0.0, 0.5, 1.0)
        )
        assert np.array_equal(none, np.asarray(image)) and not np.array_equal(full, none)
        assert abs(half - (none + full) / 2).max() <= 1


def wait_for(found: Callable[[], Any], seconds: float = 60) -> Any:
    """What becomes true; the page is drawn anew while it is asked, so that what was there may be gone."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if value := found():
                return value
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "selenium":
                raise
        time.sleep(0.1)
    raise AssertionError("it did not come")


@pytest.fixture
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="drives the browser")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium with chromedriver on PATH (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    # Chromium's own requests to its maker may be refused here, and it waits for them.
    quiet = ("background-networking", "component-update", "default-apps", "quic", "sync")
    for argument in ("--headless=new", "--no-sandbox", "--no-first-run", "--window-size=1500,1000"):
        options.add_argument(argument)
    for what in ("dev-shm-usage", *quiet):
        options.add_argument(f"--disable-{what}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    started.set_page_load_timeout(60)
    try:
        yield started
    finally:
        started.quit()


@pytest.mark.extended
def test_in_a_browser(tmp_path: Path, browser: Any) -> None:
    """Looking, changing what is shown, marking, a mistake; nothing is fetched from elsewhere, and a signal ends it."""
    pytest.importorskip("gradio")
    command = [
        sys.executable,
        "-m",
        "dsgan_datasets.tools.cli",
        "view",
        "demo-faces",
        "--no-browser",
        "--device",
        "cpu",
    ]
    options = ["--num-samples", "4", "--seed", str(2**64 - 1)]
    env = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    with (tmp_path / "out").open("wb") as out:
        server = subprocess.Popen([*command, *options], cwd=tmp_path, stdout=out, stderr=out, env=env)
    try:

        def printed() -> list[str]:
            said = (tmp_path / "out").read_text()
            assert server.poll() is None, said
            return [word for word in said.split() if word.startswith("http://")]

        (address,) = wait_for(printed)
        assert address.startswith("http://127.0.0.1:")
        browser.get(address)

        def all_of(css: str) -> list[Any]:
            return list(browser.find_elements("css selector", css))

        def text_of(css: str) -> str:
            return str(all_of(css)[0].text)

        def typed(css: str, text: str) -> None:
            box = all_of(f"{css} input, {css} textarea")[0]
            box.clear()
            box.send_keys(text)

        wait_for(lambda: len(all_of("figure.sample")) == 4)
        assert "samples 0 … 3" in text_of("#summary") and "hair" in text_of(".legend") and not all_of("input.mark")
        all_of("#next")[0].click()
        wait_for(lambda: "samples 4 … 7" in text_of("#summary"))
        all_of("#draws input")[1].click()
        wait_for(lambda: len(all_of("input.mark")) == 4)
        all_of("input.mark")[2].click()
        wait_for(lambda: "1 draw marked" in text_of("#marks"))
        marks = json.loads((tmp_path / "marks.json").read_text())
        assert (marks["seed"], marks["indices"]) == (2**64 - 1, [6])
        assert "--marked marks.json" in text_of("#marks code")

        typed("#seed", "1\n")
        wait_for(lambda: len(all_of("input.mark")) == 4 and not all_of("input.mark:checked"))
        all_of("input.mark")[0].click()  # of another seed than the marks that are there
        wait_for(lambda: "holds marks of seed 18446744073709551615" in text_of("body"))
        wait_for(lambda: len(all_of("input.mark")) == 4 and not all_of("input.mark:checked"))
        assert json.loads((tmp_path / "marks.json").read_text()) == marks

        wait_for(lambda: "holds marks of seed" not in text_of("body"))  # a message leaves after some seconds
        all_of("#clear")[0].click()
        wait_for(lambda: "Nothing is marked" in text_of("#marks"))
        all_of("input.mark")[0].click()
        wait_for(lambda: "seed 1, " in text_of("#marks"))

        typed("#seed", "5")  # without Enter: the samples are still those of seed 1
        all_of("input.mark")[1].click()
        wait_for(lambda: "2 draws marked (seed 1, " in text_of("#marks"))
        assert json.loads((tmp_path / "marks.json").read_text())["seed"] == 1
        all_of("input.mark")[1].click()
        wait_for(lambda: "1 draw marked (seed 1, " in text_of("#marks"))

        saved = json.loads((tmp_path / "marks.json").read_text())["indices"]
        for gap in (0, 30):  # ms from one tick to the next; each round takes back what the one before did
            boxes = {int(box.get_attribute("value")): box.is_selected() for box in all_of("input.mark")}
            each = "setTimeout(() => box.click(), i * arguments[0])"
            browser.execute_script(f"document.querySelectorAll('input.mark').forEach((box, i) => {each})", gap)
            others = sorted(index for index, marked in boxes.items() if not marked)
            wait_for(lambda: json.loads((tmp_path / "marks.json").read_text())["indices"] == others)  # noqa: B023
        assert others == saved and len(boxes) == 4

        all_of("#layers input")[0].click()
        wait_for(lambda: not all_of(".layer-0")[0].is_displayed() and all_of(".layer-1")[0].is_displayed())
        opacity = all_of("#opacity input[type=number]")[0]
        opacity.clear()
        opacity.send_keys("1\t")
        seen = "return getComputedStyle(document.querySelector('.picture .label')).opacity"
        wait_for(lambda: browser.execute_script(seen) == "1")

        messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        assert urls and not [url for url in urls if not url.startswith((address, "data:", "blob:"))]
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 130, (tmp_path / "out").read_text()
        said = (tmp_path / "out").read_text()
        assert "1 marked draw in marks.json" in said and "Traceback" not in said and "ERROR" not in said
        assert not list((tmp_path / "tmp").glob("*gradio*")) and not list((tmp_path / "tmp").glob("dsgan-view-*"))
    finally:
        server.kill()
        server.wait(30)


@pytest.mark.extended
@pytest.mark.filterwarnings("ignore:unclosed event loop:ResourceWarning")  # of Gradio's
def test_stop_in_a_browser(
    tmp_path: Path, browser: Any, filtered: LabeledGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop ends a search that would take long, and its samples are there; so does a page that is closed."""
    pytest.importorskip("gradio")
    left, may_draw = [1], threading.Event()  # batches that are drawn at once, before a stop
    generate = LabeledGenerator.generate

    def slowly(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        assert left[0] >= 0 or may_draw.wait(60)
        return generate(*args, **kwargs)

    class Watched(Page):
        def stop(self, browser: str) -> None:
            super().stop(browser)
            may_draw.set()

    monkeypatch.setattr(LabeledGenerator, "generate", slowly)
    shown = Watched(filtered, MarkFile(tmp_path / "marks.json", filtered, "checkpoint"), 60)
    served = {"seed": 0, "start": 0, "to_annotate": False, "host": "127.0.0.1", "port": None, "browser": False}
    with page.served(shown, **served) as address:
        browser.get(address)

        def button(name: str) -> Any:
            return browser.find_element("css selector", f"#{name}")

        def summary() -> str:
            return str(browser.find_element("css selector", "#summary").text)

        wait_for(lambda: button("stop").is_enabled())
        button("stop").click()
        wait_for(lambda: "stopped before the filter accepted a draw" in summary())
        number = len(browser.find_elements("css selector", "figure.sample"))
        assert 0 < number < 60 and f"samples 0 … 59: {number} of 60 shown" in summary()
        wait_for(lambda: not button("stop").is_enabled())

        button("show").click()
        wait_for(lambda: summary().startswith("samples 0 … 59: all 60 shown"))
        assert len(browser.find_elements("css selector", "figure.sample")) == 60

        def searching() -> None:
            left[0] = 0
            may_draw.clear()
            button("show").click()
            wait_for(lambda: button("stop").is_enabled())

        searching()
        button("show").click()
        button("show").click()
        button("stop").click()  # all three
        wait_for(lambda: not button("stop").is_enabled())
        assert summary().startswith("samples 0 … 59: all 60 shown")
        wait_for(lambda: "what was shown before stays" in browser.find_element("css selector", "body").text)

        searching()
        browser.find_elements("css selector", "#draws input")[1].click()
        may_draw.set()
        wait_for(lambda: summary().startswith("draws 0 … 59"))
        wait_for(lambda: not button("stop").is_enabled())

        searching()
        browser.get("about:blank")
        assert may_draw.wait(60)


def test_marks_are_of_draws_that_no_stream_has(tmp_path: Path, unfiltered: LabeledGenerator) -> None:
    seen = look(unfiltered, Asked(to_annotate=True, num_samples=4)).samples
    stream = unfiltered.generate(range(4))
    assert not torch.equal(seen.image, stream.image)
