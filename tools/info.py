"""`dsgan info`: what a file is, without running anything from it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from dsgan_datasets.checkpoints import CheckpointError
from dsgan_datasets.checkpoints import directory as checkpoint_directory
from dsgan_datasets.checkpoints.tensors import digest_tensors
from dsgan_datasets.generators.loading import build_generator, generator_of_snapshot
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
        "dsgan info demo-faces\n  dsgan info network-snapshot-025000.pkl",
    )
    parser.add_argument("source", help="checkpoint directory, built-in name, .pkl snapshot, or folder of model_*.pth")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Find out and print."""
    path = checkpoint_directory.find(args.source)
    rows = {"path": str(path), **describe(path)}
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:>{width}}  {value}")


def describe(path: Path) -> dict[str, str]:
    """What is known about a file or folder, as printable rows."""
    if path.is_dir() and not (path / "config.json").is_file() and any(path.glob("model_*.pth")):
        return {"kind": "folder of published pixel classifiers", **_interpreter(path)}
    if path.is_dir() or path.name == "generator.safetensors":
        return _checkpoint(path if path.is_dir() else path.parent)
    if path.suffix == ".pkl":
        config, tensors = generator_of_snapshot(path)
        rows = {"kind": "snapshot pickle of stylegan2-ada-pytorch or stylegan3, network G_ema"}
        return {**rows, **_generator(config, tensors, path), "licence": "not stated in the file: see where you got it"}
    raise CheckpointError(
        f"{path} is of no known kind: expected a checkpoint directory, a .pkl snapshot, or a folder of model_*.pth"
    )


def _checkpoint(path: Path) -> dict[str, str]:
    config = checkpoint_directory.read_config(path)
    section = checkpoint_directory.section(config, "generator", path)
    tensors = checkpoint_directory.read_tensors(path / "generator.safetensors")
    rows = {"kind": f"checkpoint directory, format {config['format_version']}", **_generator(section, tensors, path)}
    if "interpreter" in config:
        labeled = LabeledGenerator.from_pretrained(path, device="cpu")
        rows.update(_interpreter(path))
        rows["class names"] = ", ".join(labeled.schema.classes)
        rows["recipe"] = ", ".join(f"{k} {v}" for k, v in labeled.recipe.to_dict().items() if v not in (None, []))
        rows["filter"] = _filter(labeled.calibration)
        rows["fingerprint"] = labeled.fingerprint
    rows["licence"] = str(config.get("license", "not stated"))
    return rows


def _filter(found: Calibration | None) -> str:
    if found is None:
        return "not calibrated"
    error = f"{found.threshold:.5g} ± {found.standard_error:.2g} nats"
    return f"drops {found.reject_fraction:.0%}: score above {error}"


def _generator(config: Mapping[str, object], tensors: Mapping[str, Tensor], source: Path) -> dict[str, str]:
    generator = build_generator(config, tensors, device="cpu", source=source)
    maps = [f"{c}×{r}²" for c, r in zip(generator.feature_channels, generator.feature_resolutions, strict=True)]
    clamp = config.get("conv_clamp")
    return {
        "generator": f"{config['architecture']}, {config.get('block')} architecture"
        + (f", clamp {clamp:g}" if isinstance(clamp, float) else ""),
        "resolution": f"{generator.img_resolution}×{generator.img_resolution}, {generator.img_channels} channels",
        "latents": f"z {generator.z_dim}, w {generator.w_dim} × {generator.num_ws}, "
        + (f"{generator.c_dim} image classes" if generator.c_dim else "unconditional"),
        "features": f"{sum(generator.feature_channels)} channels in layout {generator.features}: {', '.join(maps)}",
        "parameters": f"{sum(p.numel() for p in generator.parameters()):,}",
        "weights": f"sha256 {digest_tensors(tensors)[:16]}…",
    }


def _interpreter(path: Path) -> dict[str, str]:
    ensemble = load_interpreter(path, device="cpu")
    hidden = "/".join(map(str, ensemble.config["hidden"]))
    return {
        "interpreter": f"{ensemble.num_members} pixel classifiers, {ensemble.in_channels} features, "
        f"{hidden} hidden units",
        "classes": str(ensemble.num_classes),
    }
