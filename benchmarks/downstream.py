"""Does training on generated labels help? Equal students, trained on different data, measured on real masks.

The test set is the 1,000 test renders of the demo's domain, validation the last 240 training renders. For every row
two learning rates and two augmentations are tried with one seed and judged on validation, then the best pair with twice
the steps, or more (`--longer`). What was best is trained with every seed and measured on the test set, which is not
read before all searches are done. Every trained student is a cell, written when it is finished and skipped when the
command runs again.

    python benchmarks/downstream.py run --domain DIR --annotator annotator.safetensors --out CELLS
    python benchmarks/downstream.py gaps --domain DIR --annotator annotator.safetensors --out CELLS
    python benchmarks/downstream.py parts --domain DIR --annotator annotator.safetensors --out CELLS
    python benchmarks/downstream.py table --cells CELLS
    python benchmarks/downstream.py curve
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from measuring import cpu_name, progress
from safetensors import SafetensorError
from segmentation.augment import STRENGTHS
from segmentation.cells import Cell, Cells, Forecast, OutOfTime
from segmentation.curve import draw_curve
from segmentation.curve import markdown as curve_markdown
from segmentation.data import TEST, TRAIN
from segmentation.parts import count_parts
from segmentation.rows import GAPS, ROWS, SMALL, Row, Sources
from segmentation.students import PRECISIONS, STUDENTS, Objective, StudentSettings, build_student, evaluate, train
from segmentation.table import LONGER, collect, comparison, fill, floors, joined, markdown, picture, read_report
from torch import Tensor, nn

from dsgan_datasets import LabelSchema
from dsgan_datasets.charts import check_installed
from dsgan_datasets.files import atomic_write, write_json
from dsgan_datasets.tools.options import count

RESULT = Path(__file__).resolve().parent / "results" / "downstream.json"
OF_CURVE = [RESULT.with_name(name) for name in ("downstream-128.json", "downstream-128-pretrained.json")]
LEARNING_RATES = (2e-3, 6e-3)
ANNOTATOR = "weights of demo/train_annotator.py, or a folder that `dsgan annotate export` made, annotated"
EXAMPLES = 6  # test images whose predictions are kept for the picture
Build = Callable[[int], nn.Module]  # number of classes -> a student with fresh weights


class Trained(NamedTuple):
    """A student after its training."""

    network: nn.Module
    objective: Objective
    settings: StudentSettings
    last_loss: float
    seconds: float


def search(
    cells: Cells, row: str, sources: Sources, build: Build, steps: int, longest: int
) -> tuple[StudentSettings, Trained | None]:
    """The settings with the best mean IoU on validation; the test set must not have been read.

    Every pair of learning rate and augmentation is tried with `steps`, then the best pair with `longest`: few images
    are learnt by heart long before many are learnt.

    Returns:
        Beside the settings the student of seed 0 that had them, unless an earlier run trained it.
    """
    scores: dict[StudentSettings, float] = {}
    best: Trained | None = None

    def attempt(settings: StudentSettings) -> None:
        nonlocal best
        name = f"{row}.search-{len(scores)}"
        cell, trained = cells.read(name), None
        if cell is None:
            cells.check_time()
            assert "test" not in vars(sources), "the test set was read before the search was done"
            trained = fit(row, ROWS[row], sources, settings, build, seed=0)
            cell, _ = measure(row, trained, sources, seed=0, on="validation")
            cells.write(name, cell)
            progress(_line(cells, name, cell))
        scores[settings] = cell["iou"][""]["mean"]
        if max(scores, key=scores.__getitem__) == settings:
            best = trained

    for rate, strength in itertools.product(LEARNING_RATES, STRENGTHS):
        attempt(StudentSettings(rate, steps, strength))
    attempt(dataclasses.replace(max(scores, key=scores.__getitem__), steps=longest))
    return max(scores, key=scores.__getitem__), best


def _search_steps(steps: int, longest: int) -> list[int]:
    """Steps of each attempt of `search`."""
    return [steps] * (len(LEARNING_RATES) * len(STRENGTHS)) + [longest]


def settings_of(row: str, student: str) -> StudentSettings:
    """What the search of a row chose that the committed result holds."""
    report = read_report(RESULT)
    rows = report["rows"]
    if row not in rows:
        raise ValueError(f"--settings-of {row}: {RESULT} holds the rows {', '.join(rows)}")
    if report["student"] != student:
        raise ValueError(
            f"--settings-of {row}: {RESULT} was searched with --student {report['student']}, not {student}"
        )
    return StudentSettings(**rows[row]["settings"])


def final(
    cells: Cells,
    row: str,
    sources: Sources,
    settings: StudentSettings,
    trained: Trained | None,
    build: Build,
    seed: int,
    more: Cell,
) -> None:
    """One seed of a row, measured on the test set; `trained` if that seed is trained already, `more` to be kept."""
    name = f"{row}.seed-{seed}"
    if cells.read(name) is not None:
        return
    cells.check_time()
    trained = trained or fit(row, ROWS[row], sources, settings, build, seed=seed)
    cell, masks = measure(row, trained, sources, seed=seed, on="test")
    cell |= more | annotated_by(ROWS[row], sources)
    if (facts := ROWS[row].facts) is not None:
        cell["facts"] = facts(sources)
    shown = torch.linspace(0, len(masks) - 1, EXAMPLES).long()
    cells.write_arrays("examples.npz", images=sources.test.images[shown], masks=sources.test.masks[shown])
    cells.write_arrays(f"{name}.npy", masks=masks[shown])
    cells.write(name, cell)  # last: with it the cell is finished
    progress(_line(cells, name, cell))


def fit(name: str, row: Row, sources: Sources, settings: StudentSettings, build: Build, *, seed: int) -> Trained:
    """Train a student; the same arguments give the same student."""
    started = time.perf_counter()
    torch.manual_seed(seed)
    k = sources.schema.num_classes
    network = build(k).to(sources.device)
    objective = row.objective(k, settings.steps, sources.device)
    batches = row.batches(sources, seed)
    losses = train(network, batches, settings, sources.schema, objective, f"{name}, seed {seed}")
    batches.close()  # type: ignore[attr-defined]  # ends the generating thread
    last = losses[-20:]
    return Trained(network, objective, settings, sum(last) / len(last), time.perf_counter() - started)


def measure(name: str, trained: Trained, sources: Sources, *, seed: int, on: str) -> tuple[Cell, Tensor]:
    """Measure a student on "validation" or "test"; the cell, and the predicted masks."""
    data = sources.test if on == "test" else sources.validation
    measured, masks = {}, None
    for variant, predictor in trained.objective.predictors(trained.network).items():
        iou, predicted = evaluate(predictor, data, sources.schema.num_classes, sources.device)
        masks = predicted if masks is None else masks
        values = [None if value != value else round(value, 5) for value in iou.tolist()]
        measured[variant] = {"mean": round(iou.nanmean().item(), 5), "classes": values}
    cell = {
        "row": name,
        "renders": sources.training.count,
        "seed": seed,
        "on": on,
        "settings": dataclasses.asdict(trained.settings),
        "iou": measured,
        "last_loss": round(trained.last_loss, 4),
        "seconds": round(trained.seconds, 1),
    }
    assert masks is not None
    return cell, masks


def annotated_by(row: Row, sources: Sources) -> Cell:
    """What a cell keeps of who annotates, if its row needs annotated images."""
    return {"annotator": sources.annotator_facts} if row.annotator else {}


def run(args: argparse.Namespace) -> int:
    """All searches, then all seeds."""
    if args.classes and (generated := [row for row in args.rows if ROWS[row].checkpoint]):
        free = ", ".join(name for name, row in ROWS.items() if not row.checkpoint)
        raise ValueError(f"the rows {', '.join(generated)} need --checkpoint; --classes is enough for {free}")
    if missing := [row for row in args.rows if ROWS[row].annotator and args.annotator is None]:
        raise ValueError(f"the rows {', '.join(missing)} need --annotator; others do not: {', '.join(_free_rows())}")
    sources, cells, build = prepare(args, [ROWS[row] for row in args.rows])
    if any(ROWS[row].annotator for row in args.rows) and not args.annotator.is_dir():
        _ = sources.annotator_network  # says now what hours later would be too late
    longest = args.longer * args.steps
    searches = [] if args.settings_of else _search_steps(args.steps, longest)
    cells.forecast = Forecast(
        [
            (cells, f"{row}.{kind}-{number}", steps)
            for row in args.rows
            for kind, planned in (("search", searches), ("seed", [longest] * args.seeds))
            for number, steps in enumerate(planned)
        ]
    )
    try:
        chosen: dict[str, tuple[StudentSettings, Trained | None]] = {}
        for row in args.rows:
            if args.settings_of is None:
                chosen[row] = search(cells, row, sources, build, args.steps, longest)
            else:
                chosen[row] = (settings_of(args.settings_of, args.student), None)
        more = {"settings_of": args.settings_of} if args.settings_of else {}
        for seed, row in itertools.product(range(args.seeds), args.rows):
            settings, trained = chosen[row]
            final(cells, row, sources, settings, trained if seed == 0 else None, build, seed, more)
    except OutOfTime:
        return _out_of_time(args)
    progress(f"all cells are done: python benchmarks/downstream.py table --cells {args.out}")
    return 0


def curve(args: argparse.Namespace) -> int:
    """How many labels is the stream worth? From results that hold the rows exact-16 to exact-256 and ours: those of
    students of different kinds, a panel each."""
    check_installed()
    reports = [read_report(path) for path in args.reports]
    text = curve_markdown(reports)
    print(text, end="\n\n")
    if args.docs is not None:
        fill(args.docs, "curve", text)
    if args.picture is not None:
        with atomic_write(args.picture) as file:
            draw_curve(reports).save(file, "PNG", optimize=True)
        progress(f"written: {args.picture}")
    return 0


def gaps(args: argparse.Namespace) -> int:
    """What lies between full supervision and the stream: one difference at a time, equal settings, on validation."""
    sources, cells, build = prepare(args, list(GAPS.values()))
    settings = StudentSettings(LEARNING_RATES[0], args.longer * args.steps, "weak")
    if (side := sources.annotator_network.resolution) != args.size:
        raise ValueError(f"who annotates labels renders too: gaps of {args.annotator} need --size {side}")
    trainings = list(itertools.product(range(args.seeds), args.rows))
    cells.forecast = Forecast([(cells, f"{key}.gap-{seed}", settings.steps) for seed, key in trainings])
    try:
        for seed, key in trainings:
            row = GAPS[key]
            name = f"{key}.gap-{seed}"
            if cells.read(name) is None:
                cells.check_time()
                trained = fit(key, row, sources, settings, build, seed=seed)
                cell, _ = measure(key, trained, sources, seed=seed, on="validation")
                cells.write(name, cell | annotated_by(row, sources))
                progress(_line(cells, name, cell))
    except OutOfTime:
        return _out_of_time(args)
    progress(f"all cells are done: python benchmarks/downstream.py table --cells {args.out}")
    return 0


def parts(args: argparse.Namespace) -> int:
    """How often each part is seen, and how large, in renders and in generated samples, by whose masks say so."""
    if not (args.out / "configuration.json").exists():
        raise ValueError(f"{args.out} holds no cells: `run` makes a folder of them")
    sources = _sources(args)
    cells = Cells(args.out, _data_configuration(args, sources, checkpoint=True))
    _ = sources.annotator_network  # says at once what it lacks
    cells.write("parts", count_parts(sources, args.images))
    progress(f"counted: python benchmarks/downstream.py table --cells {args.out}")
    return 0


def prepare(args: argparse.Namespace, rows: Sequence[Row]) -> tuple[Sources, Cells, Build]:
    """The data, the folder of cells, and what makes a student."""
    if args.batch_size % args.uses:
        raise ValueError(f"--batch-size {args.batch_size} must be a multiple of --uses {args.uses}")
    sources = _sources(args, batch_size=args.batch_size, uses=args.uses)
    build = partial(build_student, name=args.student, width=args.width, precision=args.precision)
    build(sources.schema.num_classes)  # says now what it lacks
    configuration = {
        "benchmark": "downstream",
        **_data_configuration(args, sources, checkpoint=any(row.checkpoint for row in rows)),
        **{
            key: getattr(args, key)
            for key in ("student", "width", "precision", "steps", "longer", "batch_size", "uses")
        },
        "hardware": cpu_name() if args.device == "cpu" else torch.cuda.get_device_name(args.device),
        "torch": torch.__version__,
    }
    return sources, Cells(args.out, configuration, args.minutes), build


def _sources(args: argparse.Namespace, **batches: int) -> Sources:
    if args.threads:
        torch.set_num_threads(args.threads)
    given = {"size": args.size, "device": args.device, "schema": args.classes, **batches}
    return Sources(args.domain, None if args.classes else args.checkpoint, args.annotator, **given)


def _data_configuration(args: argparse.Namespace, sources: Sources, *, checkpoint: bool) -> Cell:
    """What images and masks depend on: they may not change within a folder of cells."""
    shards = [shard for pattern in (TEST, TRAIN) for shard in sorted(args.domain.glob(pattern))]
    configuration: Cell = {
        "shards": {shard.name: shard.stat().st_size for shard in shards},
        "schema": sources.schema.to_dict(),
        "size": args.size,
    }
    if checkpoint:
        configuration["checkpoint"] = Path(args.checkpoint).name
        configuration["fingerprint"] = sources.labeled.fingerprint
    return configuration


def _out_of_time(args: argparse.Namespace) -> int:
    progress(f"stopped after {args.minutes:g} minutes; run the same command again to resume")
    return 0


def table(args: argparse.Namespace) -> int:
    """JSON, Markdown and picture of what is finished; with a floor that is missed the command exits with 1."""
    target = args.json or (RESULT if args.cells is None else args.cells / RESULT.name)
    if args.cells is not None:
        if args.add and args.picture is not None:
            raise ValueError("--picture shows the rows of --cells alone: leave out --add")
        report = collect(args.cells)
        drawn = picture(args.cells, report) if args.picture is not None else None
        report = joined(read_report(target), report) if args.add else report
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, report)
        progress(f"written: {target}")
        if drawn is not None:
            with atomic_write(args.picture) as file:
                drawn.save(file, "PNG", optimize=True)
            progress(f"written: {args.picture}")
    elif args.add:
        raise ValueError("--add needs --cells, whose rows are added")
    elif args.picture is not None:
        raise ValueError("--picture needs --cells: predictions are not in the JSON")
    report = read_report(target)
    texts = {target.name: markdown(report)}
    if args.before is not None:
        texts[args.before.name] = comparison(read_report(args.before, ("rows", "gaps")), report)
    for name, text in texts.items():
        print(text, end="\n\n")
        if args.docs is not None:
            fill(args.docs, name, text)
    return 1 if any(floor.held is False for floor in floors(report)) else 0


def _line(cells: Cells, name: str, cell: Cell) -> str:
    s = cell["settings"]
    means = ", ".join(f"{variant or 'mean IoU'} {iou['mean']:.3f}" for variant, iou in cell["iou"].items())
    chosen = f"rate {s['learning_rate']:g}, {s['steps']} steps, {s['augmentation']}"
    line = f"{cells.folder.name}/{name}: {means} on {cell['on']} ({chosen}; {cell['seconds']:.0f} s)"
    return ", ".join(filter(None, (line, str(cells.forecast))))


def _free_rows() -> list[str]:
    return [name for name, row in ROWS.items() if not row.annotator]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    verbs = parser.add_subparsers(dest="verb", required=True)
    examples = """examples:
  the small configuration, an hour a night:
    python benchmarks/downstream.py run --domain DIR --annotator annotator.safetensors --out cells --minutes 60
  one row with another checkpoint:
    python benchmarks/downstream.py run --domain DIR --checkpoint my-faces --rows ours --out cells-mine
  rows that see no generated samples, before there is a checkpoint; copy the folder for each one that comes:
    python benchmarks/downstream.py run --domain DIR --classes demo/classes-128.json --size 128 \\
        --rows few-real full --out cells
  everything, on a GPU:
    python benchmarks/downstream.py run --domain DIR --annotator annotator.safetensors --rows all --size 128 \\
        --student deeplabv3 --steps 10000 --uses 1 --device cuda --out cells-gpu"""
    add = verbs.add_parser(
        "run", help="train and measure", description=run.__doc__, epilog=examples, formatter_class=raw
    )
    add.add_argument("--rows", nargs="+", choices=[*ROWS, "all"], default=SMALL, help=f"(default: {' '.join(SMALL)})")
    between = verbs.add_parser(
        "gaps", help="where the stream loses to exact masks", description=gaps.__doc__, formatter_class=raw
    )
    shown = verbs.add_parser(
        "parts", help="how often and how large each part is", description=parts.__doc__, formatter_class=raw
    )
    add.add_argument(
        "--settings-of", metavar="ROW", help="instead of a search, what was best for ROW in the committed result"
    )
    between.add_argument("--rows", nargs="+", choices=GAPS, default=list(GAPS), help="(default: all)")
    shown.epilog = """examples:
  python benchmarks/downstream.py parts --domain DIR --annotator annotator.safetensors --out cells"""
    shown.add_argument("--images", type=count, default=1000, help="of each kind that are looked at (default: 1000)")
    between.epilog = """examples:
  python benchmarks/downstream.py gaps --domain DIR --annotator annotator.safetensors --out cells"""
    bent = verbs.add_parser(
        "curve", help="how many labels the stream is worth", description=curve.__doc__, formatter_class=raw
    )
    bent.epilog = """examples:
  the committed results, on their page:
    python benchmarks/downstream.py curve --docs docs/downstream.md --picture docs/images/curve.png
  your own, of one kind of student:
    python benchmarks/downstream.py run --domain DIR --rows ours exact-16 exact-30 exact-64 exact-128 exact-256 \\
        --out cells
    python benchmarks/downstream.py table --cells cells
    python benchmarks/downstream.py curve cells/downstream.json --picture curve.png"""
    names = " and ".join(path.name for path in OF_CURVE)
    bent.add_argument(
        "reports", nargs="*", type=Path, default=OF_CURVE, metavar="FILE", help=f"JSON of `table` (default: {names})"
    )
    bent.add_argument("--docs", type=Path, metavar="FILE", help="page whose table is replaced")
    bent.add_argument("--picture", type=Path, metavar="FILE", help="PNG of the curves")
    for verb in (add, between, shown):
        verb.add_argument(
            "--domain", type=Path, required=True, metavar="DIR", help="train-*.tar, test-*.tar, classes.json"
        )
        verb.add_argument(
            "--out", type=Path, required=True, metavar="DIR", help="folder of cells; what is there is kept"
        )
        verb.add_argument("--annotator", type=Path, metavar="PATH", help=ANNOTATOR)
    for verb in (between, shown):
        verb.set_defaults(classes=None)
    for verb in (add, between, shown):
        source = verb.add_mutually_exclusive_group()
        source.add_argument("--checkpoint", default="demo-faces", help="labeled generator (default: demo-faces)")
        if verb is add:
            text = "instead of a checkpoint, for rows that need none: JSON of the classes"
            source.add_argument("--classes", type=classes, metavar="FILE", help=text)
        _data_options(verb)
    for verb in (add, between):
        _training_options(verb)
        verb.add_argument("--student", choices=STUDENTS, default="unet", help="(default: unet)")
    show = verbs.add_parser("table", help="JSON, Markdown and picture", description=table.__doc__, formatter_class=raw)
    show.epilog = """examples:
  python benchmarks/downstream.py table --cells cells --json benchmarks/results/downstream.json \\
      --docs docs/downstream.md --picture docs/images/downstream.png
  python benchmarks/downstream.py table --before benchmarks/results/downstream-before.json \\
      --docs docs/downstream.md     # from the committed JSON"""
    show.add_argument("--cells", type=Path, metavar="DIR", help="folder of `run`; left out, the JSON is shown as it is")
    where = "(default: DIR/downstream.json of --cells; without them the committed benchmarks/results/downstream.json)"
    show.add_argument(
        "--json", type=Path, metavar="FILE", help=f"what --cells are written to, or what is shown {where}"
    )
    show.add_argument("--add", action="store_true", help="add the rows of --cells to those that the JSON has")
    show.add_argument("--before", type=Path, metavar="FILE", help="JSON of another checkpoint, to compare with")
    show.add_argument("--docs", type=Path, metavar="FILE", help="page whose table is replaced")
    show.add_argument("--picture", type=Path, metavar="FILE", help="PNG of predictions; needs --cells")
    args = parser.parse_args(arguments)
    if args.verb == "run" and "all" in args.rows:
        args.rows = list(ROWS)
    return args


def _data_options(add: argparse.ArgumentParser) -> None:
    add.add_argument("--size", type=int, choices=(64, 128), default=64, help="pixels (default: 64)")
    add.add_argument("--device", default="cpu", help="(default: cpu)")
    add.add_argument("--threads", type=count, help="of torch (default: its own)")


def _training_options(add: argparse.ArgumentParser) -> None:
    add.add_argument("--seeds", type=count, default=3, help="(default: 3)")
    add.add_argument("--width", type=count, default=16, help="channels of the U-Net's first level (default: 16)")
    add.add_argument("--precision", choices=PRECISIONS, default="bfloat16", help="of the student (default: bfloat16)")
    add.add_argument(
        "--steps", type=count, default=1500, help="of a training of the search but its last (default: 1500)"
    )
    add.add_argument(
        "--longer", type=count, default=LONGER, help=f"times these: of its last, and of the rest (default: {LONGER})"
    )
    add.add_argument("--batch-size", type=count, default=8, help="(default: 8)")
    add.add_argument("--uses", type=count, default=4, help="steps that see a generated sample, on average (default: 4)")
    add.add_argument("--minutes", type=minutes, help="start no cell after this time (default: no limit)")


def classes(path: str) -> LabelSchema:
    """A file such as demo/classes-128.json."""
    try:
        return LabelSchema.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be read: {error.strerror}") from error
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        hint = 'it holds {"classes": [{"name": "background"}, {"name": "eye"}, …]}, no name twice'
        raise argparse.ArgumentTypeError(f"{path} is not a file of classes: {hint}") from error


def minutes(text: str) -> float:
    """A number from 0."""
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    try:
        return {"run": run, "gaps": gaps, "parts": parts, "table": table, "curve": curve}[args.verb](args)
    except (ImportError, OSError, ValueError, RuntimeError, SafetensorError) as error:
        print(f"downstream: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("downstream: stopped; finished cells are kept, run the same command again to resume", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
