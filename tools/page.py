"""The page of `dsgan view`. Needs Gradio (the extra "view"), which is imported only here and only when it is used.

Nothing on it comes from elsewhere: system fonts, pictures inside of the page, no analytics, no link to share it.
"""

from __future__ import annotations

import argparse
import base64
import errno
import hashlib
import html
import io
import logging
import os
import shlex
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address
from math import prod
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from PIL import Image

from dsgan_datasets.annotations.marked import Marked
from dsgan_datasets.checks import boolean, names
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.latents import MAX_INDEX
from dsgan_datasets.pictures import about, heat_map, photo
from dsgan_datasets.samples import Sample
from dsgan_datasets.targets.base import Target
from dsgan_datasets.tools import options
from dsgan_datasets.tools.looking import Asked, MarkFile, Seen, StoppedError, look, parts_of, usual
from dsgan_datasets.tools.messages import counted, explain
from dsgan_datasets.uncertainty import score_unit

Number = TypeVar("Number", int, float)

STREAM, TO_ANNOTATE = "samples of the stream", "draws to annotate"
#: First of the ports that are tried where none is named, and how many.
FIRST_PORT, _PORTS = 7860, 100

_CSS = """
:root { --label-opacity: 0.55; }
.gradio-container { max-width: none !important; }
.samples { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(var(--card), 1fr)); }
.sample { margin: 0; padding: 8px; border: 1px solid var(--border-color-primary); border-radius: 8px; }
.sample.marked { border-color: var(--color-accent); box-shadow: 0 0 0 1px var(--color-accent); }
.pictures { display: flex; gap: 4px; }
.picture { position: relative; flex: 1; min-width: 0; }
.picture img { display: block; width: 100%; margin: 0 !important; border-radius: 4px; }
.picture .label { position: absolute; inset: 0; height: 100%; opacity: var(--label-opacity); }
.sample figcaption { display: flex; gap: 4px 12px; flex-wrap: wrap; margin-top: 6px; font-size: 13px; }
.sample label { margin-left: auto; cursor: pointer; display: flex; gap: 4px; align-items: center; }
.rejected { color: var(--error-text-color, #b91c1c); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 0; padding: 0; list-style: none; font-size: 13px; }
.legend li { display: flex; align-items: center; gap: 5px; margin: 0; }
.swatch { width: 12px; height: 12px; border: 1px solid #0006; border-radius: 2px; }
.marks { font-size: 13px; overflow-wrap: anywhere; }
.marks code { display: block; padding: 6px; user-select: all; white-space: pre-wrap; }
"""
#: A checkbox of a sample -> an event of the page. While a change is being saved, Gradio holds later events back, then
#: sends one for all of them: so each brings all changes that were not sent before. Indices are text, as they may be
#: larger than numbers of JavaScript.
_ON_LOAD = """
element.addEventListener('change', event => {
  const box = event.target;
  if (!box.matches('input.mark')) return;
  box.closest('.sample').classList.toggle('marked', box.checked);
  const page = box.closest('.samples').dataset.page;
  if (window.ticked?.page !== page) window.ticked = {page: page, boxes: {}};
  window.ticked.boxes[box.value] = box.checked;
  trigger('select');
});
"""
_TICKED = """
(samples, shown) => {
  const sent = window.ticked ?? null;
  window.ticked = null;
  return [sent, shown];
}
"""
#: The page is not drawn anew where its HTML is the same as before, so boxes are set by hand to what is saved.
_SET = """
saved => {
  window.ticked = null;
  document.querySelectorAll('input.mark').forEach(box => {
    box.checked = saved.includes(box.value);
    box.closest('.sample').classList.toggle('marked', box.checked);
  });
}
"""
_OPACITY = "v => { document.documentElement.style.setProperty('--label-opacity', v); }"
_SHOW = "v => { document.documentElement.dataset.hidden = %s.filter(n => !v.includes(n[0])).map(n => n[1]).join(' '); }"


def check_installed() -> None:
    """Raise an ImportError that says how to install Gradio, if it is not there."""
    if find_spec("gradio") is None:
        raise ImportError("dsgan view needs Gradio: pip install 'dsgan_datasets[view]'")


def gradio() -> Any:
    """The package, with everything off that calls home."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import gradio

    return gradio


@dataclass(frozen=True)
class Shown:
    """The samples that are on a person's screen, whatever the controls say by now.

    Attributes:
        asked: what they were drawn for.
        indices: of the samples.
    """

    asked: Asked
    indices: tuple[int, ...]

    @property
    def token(self) -> str:
        """What the samples on the screen are known by."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


def cards(seen: Seen, targets: Sequence[Target], marked: Iterable[int], shown: Shown) -> str:
    """Samples as HTML: image, labels over the image, uncertainty; a caption, and a box to mark draws to annotate."""
    to_annotate = shown.asked.to_annotate
    maps = [name for name in seen.samples if name.endswith("uncertainty")]
    highest = {name: float(seen.samples[name].max()) for name in maps}
    unit, chosen = score_unit(targets), set(marked)
    figures = []
    for sample, accepted in zip(seen.samples.rows(), seen.accepted, strict=True):
        index = int(sample.index)
        said = [f"<span>{html.escape(text)}</span>" for text in about(sample, unit)]
        if not accepted:
            said.append('<span class="rejected">the filter rejects it</span>')
        if to_annotate:
            box = f'<input type="checkbox" class="mark" value="{index}" {"checked" if index in chosen else ""}>'
            said.append(f"<label>{box}annotate</label>")
        pictures = "".join(_pictures(sample, targets, highest))
        mark = " marked" if to_annotate and index in chosen else ""
        figures.append(
            f'<figure class="sample{mark}"><div class="pictures">{pictures}</div>'
            f"<figcaption>{''.join(said)}</figcaption></figure>"
        )
    columns = 1 + len(targets) + len(maps)
    wide = 150 * columns
    return f'<div class="samples" data-page="{shown.token}" style="--card: {wide}px">{"".join(figures)}</div>'


def _pictures(sample: Sample, targets: Sequence[Target], highest: Mapping[str, float]) -> Iterator[str]:
    """Cells of a card: layer 0 is the image, then labels, then uncertainties."""
    image, size = photo(sample.image), (sample.image.shape[1], sample.image.shape[2])
    below = _tag(image, f"image {int(sample.index)}")
    yield _cell(0, below)
    for layer, target in enumerate(targets, 1):
        # As opaque as can be: the page's slider shows the image through it.
        drawn = target.draw(image, sample[target.field], size, opacity=1.0)
        yield _cell(layer, below + _tag(drawn, f"{target.field} {int(sample.index)}", "label"))
    for number, (name, most) in enumerate(highest.items(), 1 + len(targets)):
        drawn = heat_map(sample[name].cpu().numpy(), most).resize(image.size, Image.Resampling.NEAREST)
        yield _cell(number, _tag(drawn, f"{name} {int(sample.index)}"))


def _cell(layer: int, content: str) -> str:
    return f'<div class="picture layer-{layer}">{content}</div>'


def _tag(picture: Image.Image, text: str, kind: str = "") -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=92, subsampling=0)
    content = base64.b64encode(file.getvalue()).decode()
    return f'<img class="{kind}" alt="{html.escape(text)}" src="data:image/jpeg;base64,{content}">'


def legend(targets: Sequence[Target]) -> str:
    """Names and colors of what is drawn, as HTML."""
    entries = [entry for target in targets for entry in zip(target.tally_names, target.tally_colors, strict=True)]
    items = [
        f'<li><span class="swatch" style="background: rgb{color}"></span>{html.escape(name)}</li>'
        for name, color in entries
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


def summary(seen: Seen, targets: Sequence[Target], asked: Asked) -> str:
    """One line about what is shown."""
    indices = sorted([*seen.samples.index.tolist(), *seen.missing])
    first, last = indices[0], indices[-1]
    scales = [
        f"{name.replace('_', ' ')}: dark 0, bright {float(seen.samples[name].max()):.3g} "
        f"{score_unit(targets) if name == 'uncertainty' else ''}".rstrip()
        for name in seen.samples
        if name.endswith("uncertainty")
    ]
    if asked.to_annotate:
        rejected = len(seen.accepted) - sum(seen.accepted)
        drawn = f"draws {first} … {last}, of which the filter would reject {rejected}"
    else:
        share = f"{len(seen.accepted)} of {len(indices)}" if seen.missing else f"all {len(indices)}"
        rejected = seen.num_draws - len(seen.accepted)
        looked_at = f"{counted(seen.num_draws, 'draw')} looked at, {rejected} rejected by the filter"
        drawn = f"samples {first} … {last}: {share} shown · {looked_at}"
    line = f"<p>{html.escape(' · '.join([drawn, *scales]))}</p>"
    if not seen.missing:
        return line
    some = ", ".join(map(str, seen.missing[:8])) + ", …" * (len(seen.missing) > 8)
    which = f"for sample{'s' * (len(seen.missing) > 1)} {some}"
    if seen.stopped:
        return f"{line}<p>stopped before the filter accepted a draw {which}: Show searches again from the start</p>"
    said = f"the filter accepted no draw {which}: raise the highest uncertainty, or require less"
    return f'{line}<p class="rejected">{said}</p>'


def marks_panel(file: MarkFile, found: Marked) -> str:
    """What is marked, and what to do with it, as HTML."""
    if not found.indices:
        return (
            '<div class="marks">Nothing is marked. Under “draws to annotate” each picture has a box: these draws are '
            "never in a stream, so what you annotate is not trained on twice.</div>"
        )
    words = ["dsgan", "annotate", "export", file.checkpoint, "to-annotate", "--marked", str(file.path)]
    indices = ", ".join(map(str, found.indices))
    return (
        f'<div class="marks">{counted(len(found.indices), "draw")} marked (seed {found.seed}, psi '
        f"{found.recipe.truncation_psi}): {indices}. Next:<code>{html.escape(shlex.join(words))}</code></div>"
    )


class SupersededError(Exception):
    """The same page has asked for something else meanwhile."""


class Page:
    """What the controls of the page do; everything that can be tried without a browser.

    Args:
        labeled: the checkpoint.
        file: of the marks.
        num_samples: on a page.
    """

    def __init__(self, labeled: LabeledGenerator, file: MarkFile, num_samples: int) -> None:
        self.labeled = labeled
        self.file = file
        self.num_samples = num_samples
        self.fields = list(labeled.labeler.scores)
        self.parts = [*parts_of(labeled)[0], *parts_of(labeled)[1]]
        low, high = labeled.recipe.psi_range
        self.has_psi = low == high
        self.psi_range = min(0.0, low), max(1.0, high)
        own = usual(labeled).thresholds
        # As the page shows them; left as it is, such a text means the whole number.
        self.levels = {field: "" if own[field] is None else f"{own[field]:.4g}" for field in self.fields}
        self._own_levels = own
        # The last search of each browser's page that has not ended; set: stopped.
        self._searches: dict[str, threading.Event] = {}
        self._changing, self._drawing = threading.Lock(), threading.Lock()

    def asked(
        self, draws: object, seed: object, first: object, psi: object, require: Any, min_area: object, *levels: object
    ) -> Asked:
        """The values of the controls, as a browser or another program sends them.

        Raises:
            ValueError: one that makes no sense, named.
        """
        if draws not in (STREAM, TO_ANNOTATE):
            raise ValueError(f"show: {draws!r:.80} is neither {STREAM!r} nor {TO_ANNOTATE!r}")
        if unknown := [name for name in names("in every sample", require or ()) if name not in self.parts]:
            raise ValueError(f"in every sample: no class or point is named {unknown[0]!r:.80}")
        return Asked(
            seed=_parsed("seed", options.seed, seed),
            first=_parsed("first index", options.index, first),
            num_samples=self.num_samples,
            psi=_parsed("truncation psi", _within(*self.psi_range), psi) if self.has_psi else None,
            thresholds={
                field: self._level(field, _text(level)) for field, level in zip(self.fields, levels, strict=True)
            },
            require=require or (),
            min_area=_parsed("pixels of each", options.integer(1, prod(self.labeled.image_size)), min_area),
            to_annotate=draws == TO_ANNOTATE,
        )

    def _level(self, field: str, text: str) -> float | None:
        """The highest accepted uncertainty of a label, as its box says it."""
        if text == self.levels[field]:
            return self._own_levels[field]
        return _parsed(f"highest uncertainty of {field}", _score, text) if text else None

    def shown(
        self, *values: Any, progress: Callable[[int, int], object] = lambda done, total: None, browser: str = ""
    ) -> tuple[str, str, Shown]:
        """Summary and samples as HTML, and what they are of.

        Args:
            values: as `asked` takes them.
            progress: called with the samples that are there, and all.
            browser: whose page it is; `stop` ends its search, and so does the next one.

        Raises:
            ValueError: a value makes no sense, or no draw was found.
            StoppedError: the search was stopped before any was.
            SupersededError: the next search of the same page has begun.
            OSError: the file of the marks cannot be read.
        """
        asked = self.asked(*values)
        search = threading.Event()
        with self._changing:
            self._searches[browser] = search

        def superseded() -> bool:
            return self._searches.get(browser) is not search

        def ended() -> bool:
            return search.is_set() or superseded()

        try:
            with self._turn(ended):
                seen = look(self.labeled, asked, progress, ended)
                targets = self.labeled.targets
                found = self.file.read()
                marked = found.indices if found.same_draws(self.file.of(asked)) else ()
                shown = Shown(asked, tuple(seen.samples.index.tolist()))
                drawn = summary(seen, targets, asked), cards(seen, targets, marked, shown), shown
        except (StoppedError, ValueError) as error:
            if superseded():
                raise SupersededError from error
            raise
        else:
            if superseded():
                raise SupersededError
            return drawn
        finally:
            with self._changing:
                if not superseded():
                    del self._searches[browser]

    @contextmanager
    def _turn(self, ended: Callable[[], bool]) -> Iterator[None]:
        """Searches of all pages take turns, as they share the processors. One that has ended meanwhile has none."""
        while not self._drawing.acquire(timeout=0.1):
            if ended():
                raise StoppedError("stopped before the first draw")
        try:
            yield
        finally:
            self._drawing.release()

    def searches(self, browser: str) -> bool:
        """Whether there is something to stop."""
        return browser in self._searches

    def stop(self, browser: str) -> None:
        """End the search of a browser's page, if there is one: `shown` returns what it has found."""
        if search := self._searches.get(browser):
            search.set()

    def mark(self, shown: Shown | None, ticked: object) -> Marked:
        """Mark draws, or take their marks away.

        Args:
            shown: what the person was shown last.
            ticked: ``{"page": token of the samples, "boxes": {index: what its box says}}``, of the boxes that were
                changed; None if that was sent before.

        Returns:
            what is marked then.

        Raises:
            ValueError: a box is not one of these samples.
            OSError: the file cannot be read or written.
        """
        if ticked is None:
            return self.file.read()
        sent = ticked if isinstance(ticked, Mapping) else {}
        boxes = sent.get("boxes")
        if shown is None or sent.get("page") != shown.token or not isinstance(boxes, Mapping):
            raise ValueError("nothing is marked: other samples are shown by now. Press Show, then mark them")
        changes = {_parsed("index", options.index, each): boolean("marked", box) for each, box in boxes.items()}
        for number in changes:
            if number not in shown.indices or not shown.asked.to_annotate:
                raise ValueError(f"nothing is marked: {number} is not one of the {TO_ANNOTATE} that are shown")
        return self.file.mark(shown.asked, changes)

    def panel(self, shown: Shown | None, found: Marked | None = None) -> tuple[str, Marked, list[str]]:
        """What is marked, as HTML, as it was read, and which of the boxes that are shown it ticks; None reads it."""
        found = found or self.file.read()
        same = shown is not None and shown.asked.to_annotate and found.same_draws(self.file.of(shown.asked))
        return marks_panel(self.file, found), found, [str(index) for index in found.indices] if same else []

    def moved(self, first: object, pages: int) -> str:
        """The first index of another page."""
        index = _parsed("first index", options.index, first) + pages * self.num_samples
        return str(min(max(index, 0), MAX_INDEX))


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _parsed(name: str, parse: Callable[[str], Number], value: object) -> Number:
    """A number as the command line takes it, of a box with that name."""
    if not (text := _text(value)):
        raise ValueError(f"{name}: the box is empty, type a number")
    try:
        return parse(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{name}: {error}") from None


def _within(low: float, high: float) -> Callable[[str], float]:
    """A number in low … high."""

    def parse(text: str) -> float:
        if not low <= (value := options.number(text)) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not in {low:g} … {high:g}")
        return value

    return parse


def _score(text: str) -> float:
    """The highest accepted uncertainty."""
    if (level := options.number(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is below 0, which no uncertainty is")
    return level


def build(page: Page, *, seed: int, start: int, to_annotate: bool) -> Any:
    """The page as Gradio's blocks."""
    gr = gradio()
    labeled, own = page.labeled, usual(page.labeled)
    low, high = labeled.recipe.psi_range
    classes, _ = parts_of(labeled)
    layers = _layers(labeled)
    name = options.short(page.file.checkpoint)
    title = f"{name} · dsgan view"
    with gr.Blocks(title=title, analytics_enabled=False, fill_width=True) as blocks:
        gr.Markdown(f"## {_plain(name)} `{labeled.fingerprint[:8]}`")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                draws = gr.Radio(
                    [STREAM, TO_ANNOTATE], value=TO_ANNOTATE if to_annotate else STREAM, label="Show", elem_id="draws"
                )
                with gr.Row():
                    seed_box = gr.Textbox(str(seed), label="Seed", elem_id="seed", min_width=100)
                    first = gr.Textbox(str(start), label="First index", elem_id="first", min_width=100)
                psi = gr.Slider(
                    *page.psi_range,
                    high,
                    step=0.01,
                    label="Truncation psi",
                    info="from {:g} to {:g}".format(*page.psi_range),
                    elem_id="psi",
                    visible=page.has_psi,
                )
                if not page.has_psi:
                    gr.Markdown(f"psi is drawn for every sample: {low:g} … {high:g}")
                levels = [
                    gr.Textbox(
                        page.levels[field],
                        label=f"Highest uncertainty of {field}",
                        info="empty: every draw, however uncertain",
                        elem_id=f"threshold-{number}",
                    )
                    for number, field in enumerate(page.fields)
                ]
                require = gr.Dropdown(
                    page.parts,
                    value=list(own.require),
                    multiselect=True,
                    label="In every sample",
                    elem_id="require",
                    visible=bool(page.parts),
                )
                min_area = gr.Number(
                    own.min_area, label="Pixels of each, at least", precision=0, minimum=1, visible=bool(classes)
                )
                opacity = gr.Slider(0, 1, 0.55, step=0.05, label="Opacity of labels", elem_id="opacity")
                layer = gr.CheckboxGroup(layers, value=layers, label="Pictures", elem_id="layers")
            with gr.Column(scale=4):
                gr.HTML(legend(labeled.targets))
                with gr.Row():
                    back = gr.Button("← Previous", size="sm", elem_id="previous")
                    again = gr.Button("Show", variant="primary", size="sm", elem_id="show")
                    forth = gr.Button("Next →", size="sm", elem_id="next")
                    stop = gr.Button("Stop", variant="stop", size="sm", elem_id="stop", interactive=False)
                line = gr.HTML(elem_id="summary")
                panel = gr.HTML(elem_id="marks")
                samples = gr.HTML(js_on_load=_ON_LOAD, elem_id="samples", min_height=200)
                clear = gr.Button("Clear marks", size="sm", elem_id="clear")

        controls = [draws, seed_box, first, psi, require, min_area, *levels]
        # Kept here for each browser: which samples it shows, and which marks.
        on_screen, known = gr.State(), gr.State()
        saved = gr.JSON([], visible=False)  # indices whose boxes are ticked, there

        def show(request: Any, *given: Any, progress: Any = gr.Progress()) -> Iterator[dict[Any, Any]]:  # noqa: B008
            def drawn(done: int, total: int) -> None:
                progress((done, total), "drawing")

            def done() -> dict[Any, Any]:
                return {stop: gr.Button(interactive=page.searches(request.session_hash))}

            yield {stop: gr.Button(interactive=True)}
            try:
                with _as_message(gr):
                    said, pictures, seen = page.shown(*given, progress=drawn, browser=request.session_hash)
                    found = said, pictures, seen, *page.panel(seen)
            except SupersededError:
                yield done()
            except StoppedError as told:
                gr.Info(f"{told}: what was shown before stays")
                yield done()
            except gr.Error:
                yield done()
                raise
            else:
                yield done() | dict(zip(everything, found, strict=True))

        def end(request: Any) -> None:
            page.stop(request.session_hash)

        for needs_request in (show, end):
            needs_request.__annotations__["request"] = gr.Request  # by which Gradio finds the argument

        def mark(ticked: object, shown: Shown | None) -> tuple[str, Marked, list[str]]:
            with _as_message(gr):
                return page.panel(shown, page.mark(shown, ticked))

        def unmark(seen: Marked | None, shown: Shown | None) -> tuple[str, Marked, list[str]]:
            with _as_message(gr):
                return page.panel(shown, page.file.clear(seen))

        def refresh(shown: Shown | None) -> tuple[str, Marked, list[str]]:
            with _as_message(gr):
                return page.panel(shown)

        def move(pages: int) -> Any:
            def moved(index: str) -> str:
                with _as_message(gr):
                    return page.moved(index, pages)

            return moved

        marks = [panel, known, saved]
        everything = [line, samples, on_screen, *marks]
        # Values are checked by `Page.asked`, which says what is wrong in a sentence.
        raw = {"preprocess": False}
        shows: dict[str, Any] = {
            "fn": show,
            "inputs": controls,
            "outputs": [*everything, stop],
            # Each begins at once, and ends the one before of the same page; those of several pages take turns.
            "trigger_mode": "multiple",
            "concurrency_limit": None,
            "show_progress_on": samples,
            **raw,
        }
        events = [blocks.load, again.click, draws.change, seed_box.submit, first.submit, require.change, psi.release]
        gr.on([*events, min_area.submit, *(level.submit for level in levels)], **shows)
        back.click(move(-1), first, first, **raw).success(**shows)
        forth.click(move(+1), first, first, **raw).success(**shows)
        stop.click(end)
        blocks.unload(end)  # nobody waits for it any more
        clearing = clear.click(unmark, [known, on_screen], marks)
        marking = samples.select(
            mark, [samples, on_screen], marks, js=_TICKED, trigger_mode="always_last", show_progress="hidden", **raw
        )
        clearing.success(None, saved, None, js=_SET)
        for event in (marking, clearing):
            event.failure(refresh, on_screen, marks).then(None, saved, None, js=_SET)
        opacity.change(None, opacity, None, js=_OPACITY)
        numbered = [[name, number] for number, name in enumerate(layers)]
        layer.change(None, layer, None, js=_SHOW % numbered)
    return blocks


def _layers(labeled: LabeledGenerator) -> list[str]:
    """Names of the pictures of a sample, in order."""
    maps = (score.removesuffix("_score") for score in labeled.labeler.scores.values())
    return ["image", *(target.field for target in labeled.targets), *maps]


def _hiding(labeled: LabeledGenerator) -> str:
    """Style sheet by which `_SHOW` hides pictures."""
    numbers = range(len(_layers(labeled)))
    return "".join(f'html[data-hidden~="{i}"] .layer-{i} {{ display: none; }}\n' for i in numbers)


def _plain(name: str) -> str:
    """A name in Markdown that means nothing but itself."""
    return html.escape(name).replace("_", r"\_").replace("*", r"\*").replace("`", "")


@contextmanager
def _as_message(gr: Any) -> Iterator[None]:
    """What a person can mend is shown on the page."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        raise gr.Error(explain(error, argparse.Namespace()), print_exception=False) from error


@contextmanager
def served(
    page: Page, *, seed: int, start: int, to_annotate: bool, host: str, port: int | None, browser: bool
) -> Iterator[str]:
    """Serve the page until the block ends.

    Args:
        page: what is served.
        seed, start, to_annotate: what it shows first.
        host: address to listen on.
        port: None is the first free one from 7860.
        browser: open the page in a browser.

    Yields:
        its address.

    Raises:
        OSError: it cannot listen there.
    """
    host = host.strip("[]")  # as addresses with colons are written before a port
    _port(host, port)  # what cannot be had is said now, not after the seconds that importing takes
    with TemporaryDirectory(prefix="dsgan-view-") as folder:
        # Nothing stays behind. It is read while importing, too: its default may belong to another user of the machine.
        os.environ["GRADIO_TEMP_DIR"] = folder
        gr = gradio()
        fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
        theme = gr.themes.Default(**fonts, radius_size="sm", spacing_size="sm")
        blocks = build(page, seed=seed, start=start, to_annotate=to_annotate)
        free = _port(host, port)  # again, as another page may have begun meanwhile
        try:
            try:
                _, address, _ = blocks.launch(
                    server_name=f"[{host}]" if ":" in host else host,
                    server_port=free,
                    inbrowser=browser,
                    share=False,
                    prevent_thread_lock=True,
                    quiet=True,
                    show_error=True,
                    footer_links=[],
                    ssr_mode=False,
                    enable_monitoring=False,
                    pwa=False,
                    mcp_server=False,
                    run_history=False,
                    max_file_size=1,  # there is nothing to upload
                    app_kwargs={"middleware": _hosts(host)},
                    theme=theme,
                    css=_CSS + _hiding(page.labeled),
                )
            except OSError as error:
                raise OSError(f"cannot listen on {host}, port {free}: choose another --port or --host") from error
            yield address
        finally:
            if blocks.is_running:
                blocks.server.force_exit = True  # a page that is open would be waited for
            with _quiet():
                blocks.close(verbose=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """While the block runs, the server does not report the requests that its end cuts short."""
    log = logging.getLogger("uvicorn.error")
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = False


def _port(host: str, port: int | None) -> int:
    """The port, or the first free one, that can be listened on.

    Raises:
        OSError: there is none; the message names host and port.
    """
    tried = [port] if port else range(FIRST_PORT, FIRST_PORT + _PORTS)
    for each in tried:
        try:
            # Gradio itself asks whether the port is free on this address.
            if _is_free(host, each) and _is_free("127.0.0.1", each):
                return each
        except (OSError, UnicodeError) as error:  # UnicodeError: no name of a host looks like that
            problem = getattr(error, "strerror", None) or "not a name"
            raise OSError(
                f"cannot listen on {host}, port {each} ({problem}): --host takes an address of this machine, "
                "--port one that you may open"
            ) from error
    where = f"port {port} is" if port else f"ports {tried[0]} … {tried[-1]} are"
    raise OSError(f"cannot listen on {host}: {where} in use: choose another --port")


def _is_free(host: str, port: int) -> bool:
    """False if something listens there.

    Raises:
        OSError: nothing ever can, or may.
    """
    problems = []
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            problems.append(error)
    if len(problems) == len(found):  # a name may have an address of a protocol that is off here
        raise problems[0]
    return True


def _hosts(host: str) -> list[Any]:
    """Middleware by which a page for this machine alone refuses requests under other names.

    A stranger's site could else let its own name point here, and then read the page.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    try:
        local = host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # another name
        local = False
    allowed = ["localhost", "127.0.0.1", "[::1]", host] if local else ["*"]
    return [Middleware(TrustedHostMiddleware, allowed_hosts=allowed, www_redirect=False)]
