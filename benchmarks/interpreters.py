"""What helps an interpreter of sixteen annotated samples of `demo-faces`: corrected frequencies, neighbors, or both.

Like `annotations.py`, a segmentation network annotates in place of a person, and interpreters fitted to five choices of
sixteen random samples are compared with it on further samples. Here one fit serves several variants: what is kept of
it are the mean probabilities of its members on the held-out samples, whose largest is the class.

    python benchmarks/interpreters.py --annotator annotator.safetensors --cells cells --only pixels
    python benchmarks/interpreters.py --annotator annotator.safetensors --cells cells --only convolutional
    python benchmarks/interpreters.py --annotator annotator.safetensors --cells cells --out interpreters.json

The first two commands may run side by side; what lies in the folder of cells is not fitted again. With --together, one
more interpreter is fitted to all choices at once: what it gains is owed to the number of annotated samples. With
--candidates 4, the sixteen are not random but those of 64 that are most unlike each other, as `dsgan annotate export`
chooses them; give it a folder of cells of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from annotations import CHOICES, HELD_OUT_START, IMAGES, annotate, milliseconds
from annotator import load_annotator, report_path
from measuring import cpu_name, write_report
from torch import Tensor

from dsgan_datasets import AnnotatedImages, LabeledGenerator, LabelSchema, Recipe, fit_interpreter
from dsgan_datasets.annotations.selection import diverse, pooled_features
from dsgan_datasets.files import atomic_write
from dsgan_datasets.fitting import ConvolutionalSettings, FitSettings
from dsgan_datasets.fitting.evaluation import ConfusionMatrix, count_pairs
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.interpreters import Frame, LabelingOptions

ARCHITECTURES = {"pixels": "pixel_ensemble", "convolutional": "convolutional"}

#: By how much each is corrected: above 0 rare classes become rarer, below 0 less rare.
PRIORS = {"pixels": (0.5, 1.0), "convolutional": (-0.5, 0.5)}

#: The cell of all choices at once.
TOGETHER = "together"

Result = dict[str, Any]


class Bench(NamedTuple):
    """What every interpreter is fitted to, and how."""

    labeled: LabeledGenerator
    recipe: Recipe
    args: argparse.Namespace


class Compared(NamedTuple):
    """Interpreters of the same annotated samples, on the held-out ones.

    Attributes:
        cells: of each architecture that is finished.
        probabilities: of each variant of them.
        iou: of each variant, class by class.
        iou_if_presence_were_known: the same if samples that do not show a class had none of it.
    """

    cells: dict[str, Result]
    probabilities: dict[str, Tensor]
    iou: dict[str, list[float]]
    iou_if_presence_were_known: dict[str, list[float]]


def fitted(labeled: LabeledGenerator, recipe: Recipe, chosen: AnnotatedImages, name: str, args: Any, seed: int) -> Any:
    """The interpreter of some images, with the frequencies that its training draws."""
    few = ConvolutionalSettings(members=args.convolutional_members, steps=args.convolutional_steps)
    settings = FitSettings(members=args.members, steps=args.steps, prior=0.0, seed=seed, convolutional=few)
    given: Result = {"recipe": recipe, "settings": settings, "architecture": ARCHITECTURES[name]}
    return fit_interpreter(labeled.generator, chosen, labeled.schema, **given)


@torch.no_grad()
def probabilities(labeled: LabeledGenerator, recipe: Recipe, interpreter: Any, latents: Tensor) -> Tensor:
    """Mean over the members, float16 [A, K, H, W]."""
    frame, options = Frame(recipe.frame_size(labeled.generator.img_size)), LabelingOptions(probabilities=True)
    made = []
    for z in latents.split(10):
        found = interpreter.predict(synthesize(labeled.generator, recipe, z)[1], frame, options).probabilities
        assert found is not None
        made.append(found)
    return torch.cat(made)


def variants(cells: dict[str, Result], masks: Tensor) -> dict[str, Tensor]:
    """Name -> probabilities of the held-out samples, of one choice of the sixteen.

    Args:
        cells: of each architecture that is finished.
        masks: of the sixteen.
    """
    made: dict[str, Tensor] = {name: cell["probabilities"].float() for name, cell in cells.items()}
    for name in list(made):
        counts = torch.bincount(masks.flatten(), minlength=made[name].shape[1]).clamp(min=1)
        frequency = (counts / counts.sum())[:, None, None]
        for prior in PRIORS[name]:
            corrected = made[name] * frequency ** (prior * FitSettings().class_balance)
            made[f"{name}, prior {prior:g}"] = corrected / corrected.sum(1, keepdim=True)
    if len(cells) == len(ARCHITECTURES):
        made["both"] = made["pixels, prior 0.5"] + made["convolutional"]
    return made


def agreement(truth: Tensor, found: Tensor, schema: LabelSchema) -> list[float]:
    """IoU of each class."""
    pairs = count_pairs(truth, found.argmax(1), schema.num_classes, schema.ignore_index)
    return [round(value, 5) for value in ConfusionMatrix(pairs).iou.tolist()]


def agreement_if_presence_were_known(truth: Tensor, found: Tensor, schema: LabelSchema) -> list[float]:
    """IoU of each class if samples that do not show it had none of it: what its false alarms cost."""
    shows = torch.stack([(truth == k).flatten(1).any(1) for k in range(schema.num_classes)], dim=1)
    known = []
    for k in range(schema.num_classes):
        others = torch.ones_like(shows)
        others[:, k] = shows[:, k]
        known.append(agreement(truth, found * others[:, :, None, None], schema)[k])
    return known


def _mean(values: Tensor) -> float | None:
    return round(values.mean().item(), 4) if values.numel() else None


def whole_parts(truth: Tensor, found: Tensor, schema: LabelSchema) -> dict[str, Result]:
    """Of each class: how many samples show it, in how many of them and of the others it is found, and its size; and the
    mean probability of its pixels where both have it, and where it is found in samples that do not show it."""
    report: dict[str, Result] = {}
    total = found.sum(1)
    for k, name in enumerate(schema.classes):
        there, drawn = (truth == k).flatten(1), (found.argmax(1) == k).flatten(1)
        shows, draws = there.any(1), drawn.any(1)
        both = shows & draws
        sure = found[:, k] / total
        alarms = drawn[draws & ~shows]
        overlap, union = (there & drawn)[both].sum(), (there | drawn)[both].sum()
        report[name] = {
            "samples_that_show_it": int(shows.sum()),
            "found_in": int(both.sum()),
            "found_in_others": int((draws & ~shows).sum()),
            "median_pixels": float(there.sum(1)[shows].float().median()) if shows.any() else None,
            "iou_where_both_have_it": round((overlap / union).item(), 4) if both.any() else None,
            "probability_where_both_have_it": _mean(sure.flatten(1)[both][(there & drawn)[both]]),
            "probability_of_false_alarms": _mean(sure.flatten(1)[draws & ~shows][alarms]),
        }
    return report


def summary(compared: Sequence[Compared], classes: Sequence[str]) -> Result:
    """Mean and standard deviation over the choices, and the gain over pixels on the same choice."""
    report: Result = {}
    iou: dict[str, dict[int, list[float]]] = {}
    known: dict[str, list[list[float]]] = {}
    for k, choice in enumerate(compared):
        for name, values in choice.iou.items():
            iou.setdefault(name, {})[k] = values
            known.setdefault(name, []).append(choice.iou_if_presence_were_known[name])
    for name, by_choice in iou.items():
        means = {k: statistics.mean(values) for k, values in by_choice.items()}
        gains = [m - statistics.mean(iou["pixels"][k]) for k, m in means.items() if k in iou.get("pixels", {})]
        report[name] = {
            "choices": sorted(by_choice),
            "mean_iou": round(statistics.mean(means.values()), 4),
            "std_over_choices": round(statistics.pstdev(means.values()), 4),
            "mean_iou_of_each_choice": [round(means[k], 4) for k in sorted(means)],
            "gain_over_pixels_of_each_choice": [round(gain, 4) for gain in gains],
            "iou": {c: round(statistics.mean(v[i] for v in by_choice.values()), 4) for i, c in enumerate(classes)},
            "iou_if_presence_were_known": {
                c: round(statistics.mean(values[i] for values in known[name]), 4) for i, c in enumerate(classes)
            },
            "iou_of_each_choice": {c: [by_choice[k][i] for k in sorted(by_choice)] for i, c in enumerate(classes)},
        }
    return report


def cell_of(name: str, key: str, chosen: AnnotatedImages, truth: AnnotatedImages, bench: Bench) -> Result | None:
    """What is kept of an interpreter: fitted now, or read; None if it is not there and not asked for."""
    labeled, recipe, args = bench
    path = args.cells / f"{name}-{key}.pt"
    if not path.is_file() and args.only in (None, name) and not args.out:
        start = time.perf_counter()
        interpreter = fitted(labeled, recipe, chosen, name, args, 0 if key == TOGETHER else int(key))
        cell: Result = {"seconds": round(time.perf_counter() - start, 1)}
        cell["milliseconds"] = round(milliseconds(labeled.generator, interpreter, recipe, truth.latents[:30]), 2)
        cell["probabilities"] = probabilities(labeled, recipe, interpreter, truth.latents)
        with atomic_write(path) as file:
            torch.save(cell, file)
    return torch.load(path, weights_only=True) if path.is_file() else None


def unlike(labeled: LabeledGenerator, recipe: Recipe, pool: AnnotatedImages) -> AnnotatedImages:
    """Sixteen of the pool that are unlike each other."""
    points = [pooled_features(synthesize(labeled.generator, recipe, z)[1]) for z in pool.latents.split(20)]
    rows = diverse(torch.cat(points), IMAGES)
    return AnnotatedImages(pool.latents[rows], pool.masks[rows])


def shown_by(masks: Tensor, schema: LabelSchema) -> dict[str, int]:
    """How many masks show each class."""
    return {name: int((masks == k).flatten(1).any(1).sum()) for k, name in enumerate(schema.classes)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit what the folder of cells does not hold, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotator", type=Path, required=True, help="weights written by demo/train_annotator.py")
    parser.add_argument("--cells", type=Path, required=True, metavar="DIR", help="folder of what is fitted")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--only", choices=ARCHITECTURES, help="fit this one only (default: both)")
    parser.add_argument("--choices", type=int, default=CHOICES, help="of sixteen samples (default: %(default)s)")
    parser.add_argument("--candidates", type=int, default=1, help="for each annotated sample (default: 1, random ones)")
    parser.add_argument("--together", action="store_true", help="fit one to all choices at once, too")
    parser.add_argument("--held-out", type=int, default=200, help="further samples (default: %(default)s)")
    parser.add_argument("--members", type=int, default=10, help="pixel classifiers (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1500, help="of their training (default: %(default)s)")
    parser.add_argument("--convolutional-members", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--convolutional-steps", type=int, default=240, help="(default: %(default)s)")
    args = parser.parse_args(arguments)
    labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    annotator, schema = load_annotator(args.annotator), labeled.schema
    recipe = Recipe(truncation_psi=labeled.recipe.truncation_psi)
    args.cells.mkdir(parents=True, exist_ok=True)
    held_out = range(HELD_OUT_START, HELD_OUT_START + args.held_out)
    truth = annotate(labeled.generator, annotator, recipe, held_out)
    bench = Bench(labeled, recipe, args)

    def choose(k: int) -> AnnotatedImages:
        pool = IMAGES * args.candidates
        found = annotate(labeled.generator, annotator, recipe, range(k * pool, (k + 1) * pool))
        return found if args.candidates == 1 else unlike(labeled, recipe, found)

    def compared(key: str, chosen: AnnotatedImages) -> Compared:
        found = {name: cell_of(name, key, chosen, truth, bench) for name in ARCHITECTURES}
        cells = {name: cell for name, cell in found.items() if cell is not None}
        made = variants(cells, chosen.masks)
        iou = {name: agreement(truth.masks, each, schema) for name, each in made.items()}
        for name, values in iou.items():
            print(f"choice {key}, {name}: mean IoU {statistics.mean(values):.4f}", file=sys.stderr, flush=True)
        known = {name: agreement_if_presence_were_known(truth.masks, each, schema) for name, each in made.items()}
        return Compared(cells, made, iou, known)

    costs: Result = {name: {"fit_seconds": [], "milliseconds": []} for name in ARCHITECTURES}
    shown: dict[str, list[int]] = {name: [] for name in schema.classes}
    choices = [choose(k) for k in range(args.choices)]
    found = [compared(str(k), chosen) for k, chosen in enumerate(choices)]
    for choice, chosen in zip(found, choices, strict=True):
        for name, cell in choice.cells.items():
            costs[name]["fit_seconds"].append(cell["seconds"])
            costs[name]["milliseconds"].append(cell["milliseconds"])
        for name, number in shown_by(chosen.masks, schema).items():
            shown[name].append(number)
    known = report_path(args.annotator)
    report: Result = {
        "benchmark": "interpreters",
        "checkpoint": "demo-faces",
        "generator": labeled.weights["generator"],
        "annotator": json.loads(known.read_text()) if known.is_file() else None,
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "held_out": args.held_out,
        "candidates_for_each_annotated_sample": args.candidates,
        "settings": {name: value for name, value in vars(args).items() if "members" in name or "steps" in name},
        "costs": costs,
        "variants": summary(found, schema.classes),
        "annotated_samples_that_show_it": shown,
    }
    if args.together:
        everything = AnnotatedImages(
            *(torch.cat(parts) for parts in zip(*((c.latents, c.masks) for c in choices), strict=True))
        )
        all_choices = compared(TOGETHER, everything)
        report[TOGETHER] = {
            "annotated_samples": len(everything.masks),
            "annotated_samples_that_show_it": shown_by(everything.masks, schema),
            "iou": {name: dict(zip(schema.classes, values, strict=True)) for name, values in all_choices.iou.items()},
            "held_out": {
                name: whole_parts(truth.masks, each, schema) for name, each in all_choices.probabilities.items()
            },
        }
    print(json.dumps(report["variants"], indent=2))
    if args.out:
        write_report(args.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
