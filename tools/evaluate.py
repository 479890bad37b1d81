"""`dsgan evaluate`: will a checkpoint help with photos like those that somebody has labeled?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dsgan_datasets.checkpoints.fit_report import Figures
from dsgan_datasets.files import write_json, written_whole
from dsgan_datasets.inversion.evaluation import (
    Evaluation,
    compared_rows,
    evaluate_photos,
    evaluation_sheet,
    expectation,
)
from dsgan_datasets.inversion.labeled_photos import LabeledPhotos
from dsgan_datasets.inversion.work import finish_work
from dsgan_datasets.pictures import save_png
from dsgan_datasets.students import Student, train_student
from dsgan_datasets.tools import invert, options
from dsgan_datasets.tools.fit import figure_lines

#: Minutes that the student learns.
_MINUTES = 5.0


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = options.add_verb(
        verbs,
        "evaluate",
        "will a checkpoint help with your photos? Labels by inversion, and of a small student that learns from the "
        "stream for some minutes, against labels of your own",
        "dsgan evaluate my-faces photos evaluation --labels photo-masks\n"
        "  dsgan evaluate my-faces photos/instances.json --align boxes      # labels of the COCO file itself\n"
        "  dsgan evaluate my-faces photos --labels photo-masks --student-minutes 0     # labels by inversion alone",
        kept=invert.KEPT,
    )
    options.add_checkpoint(parser)
    parser.add_argument("photos", help=invert.PHOTOS)
    parser.add_argument(
        "out",
        type=Path,
        nargs="?",
        default=Path("evaluation"),
        help="folder to create, for evaluation.json and the picture evaluation.png (default: evaluation)",
    )
    invert.add_labels(parser)
    parser.add_argument(
        "--student-minutes",
        type=options.number,
        default=_MINUTES,
        help=f"that the student learns; 0 trains none (default: {_MINUTES:g})",
    )
    invert.add_reading(parser.add_argument_group("reading the photos"))
    invert.add_inversion(parser.add_argument_group("inversion"))
    parser.set_defaults(run=run, keep_untrusted=False)


def run(args: argparse.Namespace) -> None:
    """Invert, label, train, compare."""
    invert.check_out(args)
    if not 0 <= args.student_minutes < 1e6:
        raise ValueError(f"--student-minutes {args.student_minutes:g}: give minutes from 0, which trains no student")
    labeled = options.load(args)
    photos = invert.photos_of(args, labeled.image_size, labeled.targets)
    labels = invert.labels_of(args, photos, labeled.targets)
    if not labels:
        raise ValueError(f"{args.photos} comes without labels of {_fields(labeled.targets)}: pass them with --labels")
    work = invert.work_of(args.out)
    found = invert.inverted(args, args.checkpoint, labeled.generator, labeled.recipe, photos, work)
    invert.print_scores(photos, found)
    source = LabeledPhotos(labeled, photos, found)
    compared_rows(source, labels)  # fails before minutes of training
    student = train_student(labeled, minutes=args.student_minutes) if args.student_minutes else None
    evaluation = evaluate_photos(source, labels, student)
    picture, trusted = args.out / "evaluation.png", len(source) / len(photos)
    said = expectation(trusted, evaluation, None if student is None else student.steps)
    facts = {
        "photos": len(photos),
        "trusted": len(source),
        "compared": len(evaluation.names),
        "fingerprint": labeled.fingerprint,
        "student": None if student is None else {"minutes": args.student_minutes, "steps": student.steps},
        "labels": _numbers(evaluation),
        "expectation": said,
    }
    with written_whole(args.out) as folder:
        title = options.short(args.checkpoint)
        save_png(evaluation_sheet(source, labels, evaluation, title=title), folder / "evaluation.png")
        write_json(folder / "evaluation.json", facts)
    finish_work(work)
    print("\n".join(_tables(evaluation, student, args.student_minutes)))
    print(f"{len(evaluation.names)} of {len(photos)} photos were compared.\n{said}\npicture: {picture.resolve()}")


def _numbers(found: Evaluation) -> dict[str, Any]:
    return {
        each.target.field: {
            "compared": each.compared,
            **{who: figures.to_dict() for who, figures in each.figures.items()},
        }
        for each in found.comparisons
    }


def _tables(found: Evaluation, student: Student | None, minutes: float) -> list[str]:
    """The figures of each label, of both ways side by side."""
    trained = "" if student is None else f" (student: {minutes:g} min, {student.steps:,} steps)"
    lines = []
    for each in found.comparisons:
        ways = each.figures.items()
        summary = {f"{name} by {who}": value for who, its in ways for name, value in its.summary.items()}
        by_name = {f"{name} by {who}": values for who, its in ways for name, values in its.by_name.items()}
        lines += [f"{each.target.field}{trained}:", *figure_lines(Figures(summary, by_name))]
    return lines


def _fields(targets: Any) -> str:
    return ", ".join(target.field for target in targets)
