"""What sixteen annotated samples give: held-out IoU of the published recipe and of others, on `demo-faces`.

A segmentation network annotates in place of a person (see demo). Five times sixteen random
samples are annotated; on each sixteen an interpreter is fitted by every recipe, and compared with the stand-in on 200
further samples. A fit takes less than a minute; what is in the file that is written is not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import cpu_name, write_report
from torch import Tensor

from dsgan_datasets import AnnotatedImages, LabeledGenerator, Recipe, fit_interpreter, sample_latents
from dsgan_datasets.fitting.evaluation import evaluate
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.interpreters import Frame, Interpreter, LabelingOptions
from dsgan_datasets.latents import Purpose

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "demo"))
from annotator import Annotator, load_annotator

IMAGES, CHOICES, HELD_OUT, HELD_OUT_START = 16, 5, 200, 10_000
PUBLISHED = {"class_balance": 0.0, "standardize": False, "dtype": "float32"}
#: The defaults when these variants were compared; `prior` came later, see `interpreters.py`.
OURS = {"prior": 0.0}
#: What is compared: arguments of `fit_interpreter`. They differ from "ours" in what names them.
VARIANTS: dict[str, dict[str, Any]] = {
    "published": PUBLISHED,
    "ours": OURS,
    "float32": {**OURS, "dtype": "float32"},
    "pixels as they come": {**OURS, "class_balance": 0.0},
    "fully balanced": {**OURS, "class_balance": 1.0},
    "features as they are": {**OURS, "standardize": False},
    "annealed": {**OURS, "anneal": True},
}

EXAMPLE = "example: python benchmarks/annotations.py --annotator annotator.safetensors --out annotations.json"

Result = dict[str, Any]


def annotate(generator: FeatureGenerator, annotator: Annotator, recipe: Recipe, indices: range) -> AnnotatedImages:
    """Let the stand-in annotate the images of some indices."""
    latents = sample_latents(indices, generator.z_dim, seed=0, purpose=Purpose.ANNOTATION)
    masks = [annotator.annotate(synthesize(generator, recipe, z)[0]) for z in latents.split(20)]
    return AnnotatedImages(latents, torch.cat(masks))


def milliseconds(generator: FeatureGenerator, interpreter: Interpreter, recipe: Recipe, latents: Tensor) -> float:
    """Median time of labeling one image, features given."""
    frame, times = Frame(recipe.frame_size(generator.img_size)), []
    for z in latents.split(1):
        _, features = synthesize(generator, recipe, z)
        start = time.perf_counter()
        interpreter.predict(features, frame, LabelingOptions())
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def summary(runs: dict[str, Result], variants: Sequence[str], classes: Sequence[str]) -> Result:
    """Mean and standard deviation over the choices, in all and by class; what each variant gains over the published."""
    report: Result = {}
    for name in variants:
        iou = [runs[f"{name}/{k}"]["iou"] for k in range(CHOICES)]
        means = [statistics.mean(values) for values in iou]
        by_class = {c: [values[i] for values in iou] for i, c in enumerate(classes)}
        report[name] = {
            "mean_iou": round(statistics.mean(means), 4),
            "std_over_choices": round(statistics.stdev(means), 4),
            "mean_iou_of_each_choice": [round(m, 4) for m in means],
            "iou": {c: round(statistics.mean(v), 4) for c, v in by_class.items()},
            "iou_std": {c: round(statistics.stdev(v), 4) for c, v in by_class.items()},
            "seconds": round(statistics.median(runs[f"{name}/{k}"]["seconds"] for k in range(CHOICES)), 1),
            "milliseconds": statistics.median(runs[f"{name}/{k}"].get("milliseconds", 0.0) for k in range(CHOICES)),
        }
    if "published" in report:
        for name in variants:
            pairs = zip(
                report[name]["mean_iou_of_each_choice"], report["published"]["mean_iou_of_each_choice"], strict=True
            )
            gains = [a - b for a, b in pairs]
            report[name]["gain_over_published"] = round(statistics.mean(gains), 4)
            report[name]["gain_std"] = round(statistics.stdev(gains), 4)
            report[name]["classes_that_lose"] = {
                c: round(value - report["published"]["iou"][c], 4)
                for c, value in report[name]["iou"].items()
                if value < report["published"]["iou"][c]
            }
    return report


def table(report: Result) -> str:
    """The report, for people."""
    variants = report["variants"]
    lines = [f"{'class':>12}" + "".join(f"{name:>24}" for name in variants)]
    for c in next(iter(variants.values()))["iou"]:
        lines.append(f"{c:>12}" + "".join(f"{v['iou'][c]:>16.3f} ± {v['iou_std'][c]:.3f}" for v in variants.values()))
    lines.append(
        f"{'mean':>12}" + "".join(f"{v['mean_iou']:>16.3f} ± {v['std_over_choices']:.3f}" for v in variants.values())
    )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit and compare what the file does not hold yet; 1 if with --check ours is worse than the published recipe."""
    parser = argparse.ArgumentParser(description="Held-out IoU of sixteen annotated samples.", epilog=EXAMPLE)
    parser.add_argument("--annotator", type=Path, required=True, help="weights written by train_annotator.py")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write, and to continue")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    parser.add_argument("--minutes", type=float, default=8.0, help="begin no fit after so long (default: 8)")
    parser.add_argument("--check", action="store_true", help="exit with 1 if ours is worse on the mean")
    args = parser.parse_args(arguments)
    begun = time.monotonic()
    labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    generator, schema, annotator = labeled.generator, labeled.schema, load_annotator(args.annotator)
    recipe = Recipe(truncation_psi=labeled.recipe.truncation_psi)
    runs: dict[str, Result] = json.loads(args.out.read_text())["runs"] if args.out.is_file() else {}
    truth = annotate(generator, annotator, recipe, range(HELD_OUT_START, HELD_OUT_START + HELD_OUT))
    for k in range(CHOICES):
        chosen = annotate(generator, annotator, recipe, range(k * IMAGES, (k + 1) * IMAGES))
        for name in args.variants:
            if f"{name}/{k}" in runs or time.monotonic() - begun > 60 * args.minutes:
                continue
            start = time.perf_counter()
            interpreter = fit_interpreter(generator, chosen, schema, recipe=recipe, seed=k, **VARIANTS[name])
            seconds = time.perf_counter() - start
            quality = evaluate(generator, interpreter, truth, recipe=recipe)
            runs[f"{name}/{k}"] = {
                "mean_iou": round(quality.mean_iou, 5),
                "pixel_accuracy": round(quality.pixel_accuracy, 5),
                "seconds": round(seconds, 1),
                "milliseconds": round(milliseconds(generator, interpreter, recipe, truth.latents[:30]), 1),
                "iou": [round(value, 5) for value in quality.iou.tolist()],
            }
            print(f"{name}, choice {k}: mean IoU {quality.mean_iou:.3f}, {seconds:.0f} s", file=sys.stderr, flush=True)
            write_report(args.out, {"runs": runs})
    complete = [name for name in VARIANTS if all(f"{name}/{k}" in runs for k in range(CHOICES))]
    report: Result = {
        "benchmark": "annotations",
        "checkpoint": "demo-faces",
        "generator": labeled.weights["generator"],
        "psi": recipe.truncation_psi,
    }
    report |= {"cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    report |= {"images": IMAGES, "choices": CHOICES, "held_out": HELD_OUT, "settings": VARIANTS}
    report |= {"variants": summary(runs, complete, schema.classes), "runs": runs}
    write_report(args.out, report)
    if complete:
        print(table(report))
    if len(complete) < len(args.variants):
        print("not complete: run it again", file=sys.stderr)
    worse = {"published", "ours"} <= set(complete) and report["variants"]["ours"]["gain_over_published"] < 0
    return 1 if worse and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
