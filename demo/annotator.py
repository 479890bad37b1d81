"""A small U-Net that labels face parts; it annotates the 16 generated images of the demo in place of a person.

Shapes: N images, C classes, H = W = `resolution` pixels, 64 or 128.

    annotator = load_annotator("annotator.safetensors")
    masks = annotator.annotate(images)  # uint8 [N, 3, 64, 64] -> int64 [N, 64, 64]
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from renders import annotated_classes
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm import tqdm

from dsgan_datasets.files import atomic_write, write_json
from dsgan_datasets.students import UNet

#: Channels at each level, by resolution: the coarsest level has 8 pixels across.
WIDTHS = {64: (16, 32, 64, 128), 128: (16, 32, 64, 128, 128)}


class Annotator(UNet):
    """A U-Net for the classes that are annotated at its resolution: twelve at 64, fourteen at 128.

    Args:
        resolution: H = W of the images that it labels, pixels.
        widths: channels at full, half, ... resolution, each a multiple of 4 (default: `WIDTHS`).

    Example:
        >>> Annotator().annotate(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape
        torch.Size([2, 64, 64])
    """

    def __init__(self, resolution: int = 64, widths: tuple[int, ...] | None = None) -> None:
        widths = tuple(widths or WIDTHS[resolution])
        self.classes = annotated_classes(resolution)
        super().__init__(len(self.classes), widths)
        self.resolution, self.widths = resolution, widths

    @torch.inference_mode()
    def annotate(self, images: Tensor, batch_size: int = 64) -> Tensor:
        """Masks int64 [N, H, W] of images uint8 [N, 3, H, W] (RGB), on the images' device.

        Class probabilities are averaged over the image and its mirror image (no class is left or right).

        Raises:
            ValueError: images of another dtype or shape.
        """
        side = self.resolution
        expected = [len(images), 3, side, side]
        if images.dtype != torch.uint8 or list(images.shape) != expected:
            raise ValueError(f"got images {images.dtype} {list(images.shape)}, expected torch.uint8 {expected}")
        device = self.head.weight.device
        masks = [torch.empty(0, side, side, dtype=torch.int64, device=device)]
        batches = images.to(device).split(batch_size)
        for part in tqdm(batches, "annotating", unit="batch", delay=2, leave=False):
            x = part.float() / 127.5 - 1
            p = self(x).softmax(1) + self(x.flip(3)).softmax(1).flip(3)
            masks.append(p.argmax(1))
        return torch.cat(masks).to(images.device)


def report_path(path: Path) -> Path:
    """Where the report of the weights in `path` goes.

    Raises:
        ValueError: a name that would not keep both apart.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: the name of an annotator ends in .safetensors")
    return path.with_suffix(".json")


def save_annotator(annotator: Annotator, path: str | Path, report: dict[str, object]) -> None:
    """Write the weights to `path`, with `report` in their metadata and in a .json file beside them."""
    path = Path(path)
    report = {"classes": annotator.classes, "resolution": annotator.resolution, "widths": annotator.widths, **report}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(report_path(path), report)
    write_weights(annotator, path, report)


def load_annotator(path: str | Path) -> Annotator:
    """The annotator stored at `path` by `save_annotator`, on the CPU, in evaluation mode, without gradients.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is not an annotator with the classes of its resolution.
    """
    path = Path(path)
    with readable(path, "train_annotator.py"):
        report, weights = read_weights(path)
        if "points" in report:
            raise ValueError("it annotates points: give it as --points")
        classes, resolution = tuple(report["classes"]), int(report.get("resolution", 64))
        annotator = Annotator(resolution, tuple(report["widths"]))
        if classes != annotator.classes:
            theirs, ours = (", ".join(names) for names in (classes, annotator.classes))
            raise ValueError(f"got classes {theirs}, expected {ours} at {resolution}×{resolution} pixels")
        annotator.load_state_dict(weights)
    return annotator.eval().requires_grad_(False)


def one_cycle(optimizer: torch.optim.Optimizer, lr: float, steps: int) -> torch.optim.lr_scheduler.OneCycleLR:
    """The schedule of a training: up for a tenth of the steps, then down."""
    share = 0.1 if steps > 10 else 0.3  # of ten steps, a tenth would be a cycle without length
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=share)


def write_weights(network: nn.Module, path: Path, report: dict[str, object]) -> None:
    """Write a network's tensors, with a report in their metadata."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    metadata = {"report": json.dumps(report)}  # one entry: safetensors writes several in random order
    with atomic_write(path) as file:
        file.write(save(weights, metadata))


def read_weights(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Report and tensors that `write_weights` wrote; ValueError if a training that diverged did."""
    with safe_open(str(path), framework="pt") as file:
        stored = (file.metadata() or {}).get("report")
    if stored is None:
        raise ValueError("it holds tensors, but no report of their training")
    report: dict[str, Any] = json.loads(stored)
    weights = load_file(path)
    if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise ValueError("some of its weights are not finite: its training diverged")
    return report, weights


@contextmanager
def readable(path: Path, script: str) -> Iterator[None]:
    """Says that a file is none that a script writes, if reading it fails.

    Raises:
        FileNotFoundError: no such file.
        ValueError: what fails within the block.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: {script} makes it")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the file that {script} made")
    try:
        yield
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is not a readable annotator ({reason}): {script} makes one") from error
