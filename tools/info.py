"""`dsgan info`: what a file is, without running anything from it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dsgan_datasets.checkpoints import directory as checkpoint_directory
from dsgan_datasets.checkpoints.tensors import digest_tensors
from dsgan_datasets.files import is_file, is_folder
from dsgan_datasets.generators import FeatureGenerator, load_generator
from dsgan_datasets.generators.base import IMAGE_CHANNELS
from dsgan_datasets.generators.loading import generator_tensors
from dsgan_datasets.interpreters import load_interpreter
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.labelers.joint import num_classes
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.tools import options


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = options.add_verb(
        verbs,
        "info",
        "say what a checkpoint directory or a file of another project is, without running anything from it",
        "dsgan info demo-faces --json\n  dsgan info network-snapshot.pkl\n  dsgan info stylegan2-cat-config-f.pkl",
    )
    parser.add_argument(
        "source",
        help="checkpoint directory, built-in name, generator file of another project, or folder of model_*.pth",
    )
    options.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Find out and print."""
    path = checkpoint_directory.find(args.source)
    rows = {"path": str(path), **info_rows(path)}
    if args.json:
        options.print_json(rows)
    else:
        options.print_rows(rows)


def info_rows(path: Path) -> dict[str, str]:
    """What is known about a file or folder, as printable rows."""
    if is_folder(path) and not is_file(path / "config.json") and any(path.glob("model_*.pth")):
        interpreter = load_interpreter(path, device="cpu")
        return {"kind": "folder of published pixel classifiers", **_interpreter_rows(interpreter.config)}
    if is_folder(path) or path.name == "generator.safetensors":
        return _checkpoint_rows(path if is_folder(path) else path.parent)
    generator = load_generator(path, device="cpu")
    return {**generator_rows(generator), **_mask_rows(generator)}


def _checkpoint_rows(path: Path) -> dict[str, str]:
    config = checkpoint_directory.read_config(path)
    # The file's own: `read_config` gives the current format, whatever it was written in.
    rows = {"kind": f"checkpoint directory, format {config.get('migrated_from', config['format_version'])}"}
    if "labeler" not in config:
        generator = load_generator(path, device="cpu")
        rows.update(generator_rows(generator), **_mask_rows(generator))
    else:
        labeled = LabeledGenerator.from_pretrained(path, device="cpu")
        rows.update(generator_rows(labeled.generator))
        parts = labeled.labeler.parts()
        interpreters = {stem: part.config for stem, part in parts.items() if stem.startswith("interpreter")}
        for stem, facts in interpreters.items():
            rows.update(_interpreter_rows(facts, stem.replace("_", " of ", 1)))
        if not interpreters:
            rows["masks"] = f"made by the generator itself, from {labeled.generator.extra_channels} channel(s)"
        for target in labeled.targets:
            rows[target.field] = target.summary
        for field, figures in (labeled.fit.quality if labeled.fit else {}).items():
            known = {name: value for name, value in figures.summary.items() if value is not None}
            rows[f"{field} held out"] = ", ".join(f"{name} {value:.3f}" for name, value in known.items())
        rows["recipe"] = _recipe(labeled.recipe)
        rows["filter"] = _filter(labeled)
        rows["fingerprint"] = labeled.fingerprint
    rows["license"] = str(config.get("license", "not stated"))
    return rows


def generator_rows(generator: FeatureGenerator) -> dict[str, str]:
    """What a generator is and where it came from, as printable rows."""
    maps = [f"{info.channels}×{_size(info.size)}" for info in generator.feature_info]
    provenance, config = generator.provenance, generator.config
    rows = {}
    if provenance is not None:
        rows = {"read from": provenance.dialect, "source file": f"{provenance.file}, sha256 {provenance.sha256[:16]}…"}
    if provenance is not None and provenance.notes:
        rows["notes"] = "; ".join(provenance.notes)
    architecture = [config["architecture"], *([f"{config['block']} architecture"] if "block" in config else [])]
    if config.get("conv_clamp") is not None:
        architecture.append(f"clamp {config['conv_clamp']:g}")
    average = "average w known" if generator.mean_w is not None else "no average w: truncation_psi must be 1"
    if not generator.has_w_space:
        average = "no space of styles: truncation_psi must be 1"
    classes = f"{generator.c_dim} image classes" if generator.c_dim else "unconditional"
    return rows | {
        "generator": ", ".join(architecture),
        "resolution": f"{'×'.join(map(str, generator.img_size))}, {IMAGE_CHANNELS[generator.img_channels]}",
        "latents": f"z {generator.z_dim}, w {generator.w_dim} × {generator.num_ws}, {classes}, {average}",
        "features": f"{sum(generator.feature_channels)} channels in layout {generator.features}: {', '.join(maps)}",
        "parameters": f"{sum(p.numel() for p in generator.parameters()):,}",
        "weights": f"sha256 {digest_tensors(generator_tensors(generator))[:16]}…",
        "license": provenance.license if provenance else "unspecified",
    }


def _size(size: tuple[int, int]) -> str:
    """Rows and columns of a map, for people."""
    return f"{size[0]}²" if size[0] == size[1] else f"{size[0]}×{size[1]}"


def _mask_rows(generator: FeatureGenerator) -> dict[str, str]:
    """What a generator without labels could label by itself."""
    if not generator.extra_channels:
        return {}
    if generator.extra_are_logits:
        return {"masks": f"{num_classes(generator)} classes, made by the generator itself: dsgan convert --classes …"}
    return {"masks": "of 2 classes, if the fourth channel is one: dsgan convert --label-channel --classes …"}


def _recipe(recipe: Recipe) -> str:
    """What differs from the defaults, without the filter."""
    sections = (fields for name, fields in recipe.decisions().items() if name != "filter")
    return ", ".join(f"{name} {value}" for fields in sections for name, value in fields.items()) or "defaults"


def _filter(labeled: LabeledGenerator) -> str:
    if not labeled.labeler.has_uncertainty:
        return "by content only (require, visible): there is no uncertainty"
    recipe, found = labeled.recipe, labeled.calibration
    if found is None or (recipe.threshold is None and not recipe.scores):
        return "not calibrated"
    dropped = []
    if recipe.threshold is not None:
        unit = getattr(labeled.interpreter, "uncertainty_unit", "nats")
        error = f"{recipe.threshold:.5g} ± {found.standard_error:.2g} {unit}"
        dropped.append(f"{recipe.reject_fraction:.0%}: score above {error}")
    dropped += [f"{s.reject_fraction:.0%} by {s.field}: score above {s.threshold:.5g}" for s in recipe.scores]
    return f"drops {'; '.join(dropped)}"


#: Facts of an interpreter's config that have words of their own.
_FACTS: dict[str, Callable[[Any], str]] = {
    "members": lambda count: f"{count} networks",
    "channels": lambda channels: f"{sum(channels)} features",
    "hidden": lambda widths: f"{'/'.join(map(str, widths))} hidden units",
    "classes": lambda count: f"{count} classes",
}


def _interpreter_rows(config: Mapping[str, Any], name: str = "interpreter") -> dict[str, str]:
    facts = [text(config[name]) for name, text in _FACTS.items() if name in config]
    return {name: f"{config['architecture']}: {', '.join(facts)}".removesuffix(": ")}
