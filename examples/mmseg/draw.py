"""Draws samples with MMSegmentation's own visualizer, as in docs/mmseg.md: python examples/mmseg/draw.py faces.png"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from mmseg.registry import DATASETS
from mmseg.utils import register_all_modules
from mmseg.visualization import SegLocalVisualizer
from PIL import Image

import dsgan_datasets.adapters.mmseg  # noqa: F401
from dsgan_datasets.images import open_picture


def draw(out: str, indices: list[int], checkpoint: str = "demo-faces", size: int = 256) -> None:
    """Images above, images with their masks below."""
    register_all_modules()
    pipeline = [{"type": "Resize", "scale": (size, size)}, {"type": "PackSegInputs"}]
    config = {"type": "DSGANSegDataset", "checkpoint": checkpoint, "length": max(indices) + 1, "pipeline": pipeline}
    dataset = DATASETS.build(config)
    visualizer = SegLocalVisualizer(alpha=0.55)
    visualizer.dataset_meta = dataset.metainfo
    columns = []
    with tempfile.TemporaryDirectory() as folder:
        for item in dataset.__getitems__(indices):
            # BGR -> RGB; OpenCV draws on contiguous arrays only.
            image = np.ascontiguousarray(item["inputs"].flip(0).permute(1, 2, 0).cpu().numpy())
            drawn = str(Path(folder, "drawn.png"))
            visualizer.add_datasample("sample", image, item["data_samples"], out_file=drawn)
            columns.append(np.concatenate([image, np.asarray(open_picture(drawn))]))
    Image.fromarray(np.concatenate(columns, axis=1)).save(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", help="PNG to write")
    parser.add_argument("--indices", type=int, nargs="+", default=[0, 1, 3, 4, 7])
    parser.add_argument("--checkpoint", default="demo-faces")
    args = parser.parse_args()
    draw(args.out, args.indices, args.checkpoint)
