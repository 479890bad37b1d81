"""What sixteen annotated samples give: keypoints and depth of `demo-faces`, compared with what annotates them.

A network annotates in place of a person: a U-Net trained on renders of the demo's domain with their exact keypoints and
depth, hardened for images of a GAN (demo/train_point_annotator.py). Five times sixteen random samples are annotated; on
each sixteen interpreters are fitted, and compared with that network on 200 further samples. A distance of a keypoint is
divided by the square root of the area of the box around the skin, as the checkpoint's own masks have it.

    python benchmarks/keypoints.py measure --domain DOMAIN --annotator points.safetensors --out keypoints.json
    python benchmarks/keypoints.py settings --domain DOMAIN --annotator points.safetensors    # what chose the defaults
    python benchmarks/keypoints.py students --domain DOMAIN --annotator points.safetensors --test --out students.json

Settings were chosen on other samples ("settings"): three times sixteen, and 100 held out.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import cpu_name, progress, write_report
from segmentation.data import VALIDATION
from torch import Tensor

from dsgan_datasets import (
    AnnotatedImages,
    InterpretedLabeler,
    Keypoints,
    LabeledGenerator,
    calibrate,
    fit_interpreter,
    sample_latents,
)
from dsgan_datasets.fitting import FitSettings
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.interpreters.base import Frame, LabelingOptions
from dsgan_datasets.latents import Purpose
from dsgan_datasets.targets.instances import tight_boxes

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "demo"))
from point_annotator import PointAnnotator, load_point_annotator
from render_points import BACKGROUND, DEPTH, Renders, keypoints_of_domain, read
from train_point_annotator import new_annotator, train

IMAGES, SEEDS = 16, 3
#: Draws of "measure" and of "settings": choices of sixteen, first index, held-out samples, their first index.
MEASURED, CHOOSING = (5, 0, 200, 10_000), (3, 20_000, 100, 30_000)
PCK_AT = (0.05, 0.10)
#: Predicted values below it are background: halfway to what is farthest away in a head.
FIGURE_FROM = (BACKGROUND - 0.75) / 2
#: What was tried for keypoints: arguments of `fit_interpreter`; "ours" are its defaults.
VARIANTS: dict[str, dict[str, Any]] = {
    "ours": {},
    "sigma 1.5 %": {"sigma": 0.015},
    "sigma 3 %": {"sigma": 0.03},
    "sigma 4 %": {"sigma": 0.04},
    "pixels as they come": {"class_balance": 0.0},
    "fully balanced": {"class_balance": 1.0},
    "hidden 128/32": {"hidden": (128, 32)},
    "hidden 256/128": {"hidden": (256, 128)},
    "annealed": {"anneal": True},
    "annealed, 3000 steps": {"anneal": True, "steps": 3000},
}

Result = dict[str, Any]


@dataclass(frozen=True)
class Samples:
    """Annotated samples and what a distance among them is divided by.

    Attributes:
        annotated: with "keypoints" and "depth".
        sizes: square root of the area of the box around the skin, pixels [N].
    """

    annotated: AnnotatedImages
    sizes: Tensor

    @classmethod
    def of(cls, labeled: LabeledGenerator, annotator: PointAnnotator, indices: range) -> Samples:
        """The network's annotations of the samples of some indices."""
        latents = sample_latents(indices, labeled.generator.z_dim, seed=0, purpose=Purpose.ANNOTATION)
        frame, skin = Frame(labeled.image_size), labeled.schema.index("skin")
        points, depths, sizes = [], [], []
        for z in latents.split(20):
            images, features = synthesize(labeled.generator, labeled.recipe, z)
            found = annotator.annotate(images)
            points.append(found[0])
            depths.append(found[1])
            boxes = tight_boxes(labeled.interpreter.predict(features, frame, LabelingOptions()).labels["mask"] == skin)
            sizes.append(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt())
        labels = {"keypoints": torch.cat(points), "depth": torch.cat(depths)}
        return cls(AnnotatedImages(latents, labels), torch.cat(sizes))


def predictions(labeled: LabeledGenerator, interpreter: Any, samples: Samples) -> tuple[Tensor, Tensor]:
    """Labels and scores of all samples, by one interpreter."""
    (field,), found = interpreter.fields, []
    for z in samples.annotated.latents.split(20):
        _, features = synthesize(labeled.generator, labeled.recipe, z)
        found.append(interpreter.predict(features, Frame(labeled.image_size)))
    return torch.cat([part.labels[field] for part in found]), torch.cat([part.uncertainty_score for part in found])


def of_points(truth: Tensor, points: Tensor, sizes: Tensor, names: Sequence[str]) -> Result:
    """Errors of keypoints [N, K, 3], as shares of the size of a face [N]."""
    errors = _point_errors(truth, points, sizes)
    finite = errors.masked_fill(errors.isinf(), torch.nan)
    result: Result = {"mean_error": _number(finite.nanmean())}
    result |= {f"pck_{share:.2f}": _number((errors <= share).double().mean()) for share in PCK_AT}
    result["missing"] = _number((points[..., 2] == 0).double().mean())
    result["visibility"] = _number((truth[..., 2] == points[..., 2]).double().mean())
    result["of_points"] = {
        name: {"mean_error": _number(finite[:, i].nanmean())}
        | {f"pck_{share:.2f}": _number((errors[:, i] <= share).double().mean()) for share in PCK_AT}
        for i, name in enumerate(names)
    }
    return result


def _point_errors(truth: Tensor, points: Tensor, sizes: Tensor) -> Tensor:
    """[N, K]; infinite for points that are not found."""
    errors = (truth[..., :2] - points[..., :2]).norm(dim=2) / sizes[:, None]
    return errors.masked_fill(points[..., 2] == 0, torch.inf)


def of_depth(truth: Tensor, depth: Tensor) -> Result:
    """Errors of depth [N, 1, H, W] in head heights over the foreground, and IoU of the background."""
    behind, predicted = truth <= BACKGROUND, depth < FIGURE_FROM
    error = (depth - truth)[~behind]
    return {
        "mae": _number(error.abs().mean()),
        "rmse": _number(error.square().mean().sqrt()),
        "background_iou": _number((behind & predicted).sum() / (behind | predicted).sum()),
    }


def certainty(scores: Tensor, errors: Tensor) -> Result:
    """What the uncertainty score [N] of samples says of their errors [N]."""
    kept = scores.argsort()[: round(0.9 * len(errors))]
    return {
        "score_rank_correlation": _number(_rank_correlation(scores, errors)),
        "error_of_the_certain_90_percent": _number(errors[kept].nanmean()),
    }


def _rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's."""
    return torch.corrcoef(torch.stack([v.argsort().argsort().double() for v in (a, b)]))[0, 1]


def _number(value: Tensor) -> float:
    return round(value.item(), 4)


def run(
    labeled: LabeledGenerator,
    annotator: PointAnnotator,
    target: Keypoints,
    draws: tuple[int, int, int, int],
    variants: dict[str, dict[str, Any]],
) -> Result:
    """Every variant on every choice of sixteen: keypoints, and depth by the defaults."""
    choices, first, held_out, start = draws
    rest = Samples.of(labeled, annotator, range(start, start + held_out))
    truth, depths = rest.annotated.of("keypoints"), rest.annotated.of("depth")
    result: Result = {"keypoints": {name: [] for name in variants}, "depth": []}
    for k in range(choices):
        chosen = Samples.of(labeled, annotator, range(first + IMAGES * k, first + IMAGES * (k + 1)))
        fit = functools.partial(fit_interpreter, labeled.generator, chosen.annotated, recipe=labeled.recipe, seed=k)
        for name, changes in variants.items():
            began = time.perf_counter()
            fitted = fit(target, **changes)
            seconds = time.perf_counter() - began
            points, scores = predictions(labeled, fitted, rest)
            found = of_points(truth, points, rest.sizes, target.names)
            errors = _point_errors(truth, points, rest.sizes)
            found |= certainty(scores, errors.masked_fill(errors.isinf(), torch.nan).nanmean(1))
            result["keypoints"][name].append({**found, "fit_seconds": round(seconds, 1)})
            progress(f"{name}, choice {k}: {_short(result['keypoints'][name][-1])}")
        depth, scores = predictions(labeled, fit(DEPTH), rest)
        figure = depths > BACKGROUND
        errors = torch.where(figure, (depth - depths).abs(), 0).flatten(1).sum(1) / figure.flatten(1).sum(1)
        result["depth"].append({**of_depth(depths, depth), **certainty(scores, errors)})
        progress(f"depth, choice {k}: {_short(result['depth'][-1])}")
    return result


def _short(found: Result) -> Result:
    return {name: value for name, value in found.items() if name != "of_points"}


def summary(runs: Sequence[Result]) -> Result:
    """Mean and standard deviation over the choices, of every number."""
    found: Result = {}
    for name, value in runs[0].items():
        values = [run[name] for run in runs]
        if isinstance(value, dict):
            found[name] = {part: summary([v[part] for v in values]) for part in value}
        else:
            found[name] = {"mean": round(statistics.mean(values), 4), "std": round(statistics.stdev(values), 4)}
    return found


def _measure(args: argparse.Namespace) -> Result:
    labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    target, annotator = keypoints_of_domain(args.domain), load_point_annotator(args.annotator)
    if args.what == "settings":
        return run(labeled, annotator, target, CHOOSING, VARIANTS)
    found = run(labeled, annotator, target, MEASURED, {"ours": {}})
    return {
        "hardware": cpu_name(),
        "torch": torch.__version__,
        "checkpoint": "demo-faces",
        "fingerprint": labeled.fingerprint,
        "annotator": annotator.report,
        "annotated_images": IMAGES,
        "choices": MEASURED[0],
        "held_out": MEASURED[2],
        "settings": asdict(FitSettings()),
        "distances_divided_by": "square root of the area of the box around the skin of the checkpoint's own mask",
        "keypoints": summary(found["keypoints"]["ours"]),
        "depth": summary(found["depth"]),
        "keypoints_of_each_choice": [_short(one) for one in found["keypoints"]["ours"]],
        "depth_of_each_choice": found["depth"],
    }


def _students(args: argparse.Namespace) -> Result:
    """Students of the sixteen and of the stream, on validation renders, or with --test on the test renders."""
    labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    target, annotator = keypoints_of_domain(args.domain), load_point_annotator(args.annotator)
    chosen = Samples.of(labeled, annotator, range(IMAGES))
    source = streaming(labeled, chosen, target)
    rows = {"sixteen": _as_renders(labeled, chosen), "stream": _streamed(source, args.stream)}
    if args.test:
        renders = read(args.domain, "test", 64)
    else:
        renders = read(args.domain, "train", 64).part(slice(-VALIDATION, None))
    boxes = tight_boxes(renders.masks == labeled.schema.index("skin"))
    sizes = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    known = ~renders.depths[:, 0, 0, 0].isnan()
    result: Result = {name: [] for name in rows}
    for seed in range(SEEDS):
        for name, data in rows.items():
            network = new_annotator(target.names, data.images.shape[3], seed)
            train(network, data, steps=args.steps, batch_size=24, lr=4e-3, seed=seed)
            points, depths = network.annotate(renders.images)
            found = of_points(renders.points, points, sizes, target.names)
            if known.any():
                found |= of_depth(renders.depths[known], depths[known])
            result[name].append(found)
            progress(f"{name}, seed {seed}: {_short(found)}")
    return {
        "hardware": cpu_name(),
        "torch": torch.__version__,
        "renders": len(renders.images),
        "steps": args.steps,
        "stream": args.stream,
        "seeds": SEEDS,
        "rows": {name: summary(found) for name, found in result.items()},
        "each_seed": {name: [_short(one) for one in found] for name, found in result.items()},
    }


def streaming(labeled: LabeledGenerator, chosen: Samples, target: Keypoints) -> LabeledGenerator:
    """The checkpoint with interpreters of keypoints and depth beside its own, filtered by masks and keypoints."""
    fitted = [
        fit_interpreter(labeled.generator, chosen.annotated, label, recipe=labeled.recipe) for label in (target, DEPTH)
    ]
    labeler = InterpretedLabeler(labeled.generator, [labeled.interpreter, *fitted], [labeled.schema, target, DEPTH])
    plain = LabeledGenerator(labeler, labeled.recipe.unfiltered())
    return calibrate(plain, 1000, reject_fraction={"mask": 0.1, "keypoints": 0.1})


def _as_renders(labeled: LabeledGenerator, samples: Samples) -> Renders:
    """The annotated samples as data to train on; masks, which only augmentation reads, are the checkpoint's."""
    images, features = synthesize(labeled.generator, labeled.recipe, samples.annotated.latents)
    masks = labeled.interpreter.predict(features, Frame(labeled.image_size)).labels["mask"]
    return Renders(images, masks, samples.annotated.of("keypoints"), samples.annotated.of("depth"))


def _streamed(source: LabeledGenerator, count: int) -> Renders:
    """The first samples of the stream."""
    batches = [source.generate(range(i, min(i + 64, count))) for i in range(0, count, 64)]
    fields = ("image", "mask", "keypoints", "depth")
    return Renders(*(torch.cat([batch[field] for batch in batches]) for field in fields))


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "settings", "students"))
    parser.add_argument("--domain", type=Path, required=True, help="folder of renders, with keypoints.json")
    text = "weights written by demo/train_point_annotator.py"
    parser.add_argument("--annotator", type=Path, required=True, help=text)
    parser.add_argument("--out", type=Path, help="where to write the report")
    parser.add_argument("--steps", type=int, default=700, help="of a student's training (default: 700)")
    parser.add_argument("--stream", type=int, default=4000, help="generated samples of a student (default: 4000)")
    parser.add_argument("--test", action="store_true", help="students: measure on the test renders, which is done once")
    args = parser.parse_args(argv)
    report = (_students if args.what == "students" else _measure)(args)
    if args.out is not None:
        write_report(args.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
