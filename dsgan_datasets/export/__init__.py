"""Samples -> datasets of files for those who use neither stream nor shards.

The flow: source (where samples come from) -> layouts (folder, coco, mmseg, yolo) -> writing (appears when complete).
"""

from dsgan_datasets.export.source import Source
from dsgan_datasets.export.writing import FORMATS, export

__all__ = ["FORMATS", "Source", "export"]
