"""Samples -> datasets of files, for users of neither stream nor shards.

The flow: inputs (where samples come from) -> layouts (folder, coco, mmseg, yolo) -> writing (appears when complete).
"""

from dsgan_datasets._deprecation import moved
from dsgan_datasets.export.inputs import ExportInput
from dsgan_datasets.export.writing import FORMATS, check_export, export, formats_for

__all__ = ["FORMATS", "ExportInput", "check_export", "export", "formats_for"]

__getattr__ = moved(__name__, {"Source": "dsgan_datasets.export:ExportInput"})
