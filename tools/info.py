"""`dsgan info`: what a file is, without running anything from it."""

from __future__ import annotations

import argparse
from pathlib import Path

from dsgan_datasets.checkpoints import directory as checkpoint_directory
from dsgan_datasets.checkpoints.tensors import digest_tensors
from dsgan_datasets.generators import FeatureGenerator, load_generator
from dsgan_datasets.generators.base import IMAGE_CHANNELS
from dsgan_datasets.generators.loading import generator_tensors
from dsgan_datasets.interpreters import load_interpreter
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.recipe import Calibration
from dsgan_datasets.tools import options


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = options.add_verb(
        verbs,
        "info",
        "tell what a checkpoint directory or a foreign file is, without running anything from it",
        "dsgan info demo-faces\n  dsgan info network-snapshot-025000.pkl\n  dsgan info stylegan2-cat-config-f.pt",
    )
    parser.add_argument(
        "source", help="checkpoint directory, built-in name, .pkl snapshot, .pt state dict, or folder of model_*.pth"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Find out and print."""
    path = checkpoint_directory.find(args.source)
    rows = {"path": str(path), **describe(path)}
    options.print_rows(rows)


def describe(path: Path) -> dict[str, str]:
    """What is known about a file or folder, as printable rows."""
    if path.is_dir() and not (path / "config.json").is_file() and any(path.glob("model_*.pth")):
        return {"kind": "folder of published pixel classifiers", **_interpreter(path)}
    if path.is_dir() or path.name == "generator.safetensors":
        return _checkpoint(path if path.is_dir() else path.parent)
    return generator_rows(load_generator(path, device="cpu"))


def _checkpoint(path: Path) -> dict[str, str]:
    config = checkpoint_directory.read_config(path)
    rows = {"kind": f"checkpoint directory, format {config['format_version']}"}
    if "interpreter" not in config:
        rows.update(generator_rows(load_generator(path, device="cpu")))
    else:
        labeled = LabeledGenerator.from_pretrained(path, device="cpu")
        rows.update(generator_rows(labeled.generator))
        rows.update(_interpreter(path))
        rows["class names"] = ", ".join(labeled.schema.classes)
        rows["recipe"] = ", ".join(f"{k} {v}" for k, v in labeled.recipe.to_dict().items() if v not in (None, []))
        rows["filter"] = _filter(labeled.calibration)
        rows["fingerprint"] = labeled.fingerprint
    rows["license"] = str(config.get("license", "not stated"))
    return rows


def generator_rows(generator: FeatureGenerator) -> dict[str, str]:
    """What a generator is and where it came from, as printable rows."""
    maps = [f"{c}×{r}²" for c, r in zip(generator.feature_channels, generator.feature_resolutions, strict=True)]
    source, config = generator.source, generator.config
    rows = {}
    if source is not None:
        rows = {"read from": source.dialect, "source file": f"{source.file}, sha256 {source.sha256[:16]}…"}
    if source is not None and source.notes:
        rows["notes"] = "; ".join(source.notes)
    architecture = [config["architecture"], *([f"{config['block']} architecture"] if "block" in config else [])]
    if config.get("conv_clamp") is not None:
        architecture.append(f"clamp {config['conv_clamp']:g}")
    average = "average w known" if generator.mean_w is not None else "no average w: psi must be 1"
    classes = f"{generator.c_dim} image classes" if generator.c_dim else "unconditional"
    return rows | {
        "generator": ", ".join(architecture),
        "resolution": f"{generator.img_resolution}×{generator.img_resolution}, "
        f"{IMAGE_CHANNELS[generator.img_channels]}",
        "latents": f"z {generator.z_dim}, w {generator.w_dim} × {generator.num_ws}, {classes}, {average}",
        "features": f"{sum(generator.feature_channels)} channels in layout {generator.features}: {', '.join(maps)}",
        "parameters": f"{sum(p.numel() for p in generator.parameters()):,}",
        "weights": f"sha256 {digest_tensors(generator_tensors(generator))[:16]}…",
        "license": source.license if source else "unspecified",
    }


def _filter(found: Calibration | None) -> str:
    if found is None:
        return "not calibrated"
    error = f"{found.threshold:.5g} ± {found.standard_error:.2g} nats"
    return f"drops {found.reject_fraction:.0%}: score above {error}"


def _interpreter(path: Path) -> dict[str, str]:
    ensemble = load_interpreter(path, device="cpu")
    hidden = "/".join(map(str, ensemble.config["hidden"]))
    return {
        "interpreter": f"{ensemble.num_members} pixel classifiers, {ensemble.in_channels} features, "
        f"{hidden} hidden units",
        "classes": str(ensemble.num_classes),
    }
