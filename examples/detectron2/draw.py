"""Draws samples of demo-faces with Detectron2's Visualizer: python examples/detectron2/draw.py OUT.png [INDEX …]"""

import argparse

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.utils.visualizer import ColorMode, Visualizer
from PIL import Image

from dsgan_datasets.adapters.detectron2 import register

SCALE = 5
DATASETS = (
    register("semantic", "demo-faces"),
    register("parts", "demo-faces", task="instances", instances="components", min_instance_area=8),
    register("heads", "demo-faces", task="instances", instances="object"),
)


def draw(index: int) -> np.ndarray:
    """The image, and the record of each dataset drawn over it, side by side: uint8 [H, W, 3]."""
    image = read_image(DATASETS[0].path(index, "image"), "RGB")
    large = Image.fromarray(image).resize((image.shape[1] * SCALE, image.shape[0] * SCALE), Image.Resampling.BICUBIC)
    pictures = [np.asarray(large)]
    for dataset in DATASETS:
        visualizer = Visualizer(image, MetadataCatalog.get(dataset.name), SCALE, ColorMode.SEGMENTATION)
        pictures.append(visualizer.draw_dataset_dict(dataset.record(index)).get_image())
    return np.concatenate([np.pad(picture, ((3, 3), (3, 3), (0, 0)), constant_values=255) for picture in pictures], 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", metavar="OUT.png")
    parser.add_argument("indices", metavar="INDEX", type=int, nargs="*", default=[3, 5])
    args = parser.parse_args()
    Image.fromarray(np.concatenate([draw(index) for index in args.indices])).save(args.out, optimize=True)
