"""Photos -> the style vectors whose image each of them is, and labels that are read there.

The flow: photos (files -> aligned images) -> inverter (images -> styles, and how well they fit) -> labeled_photos (a
source of samples) or folder (a round of annotations).
"""

from dsgan_datasets.inversion.alignment import Alignment
from dsgan_datasets.inversion.evaluation import compare_masks, comparison_sheet
from dsgan_datasets.inversion.folder import export_photos
from dsgan_datasets.inversion.inverter import Inversion, InversionSettings, Inverter
from dsgan_datasets.inversion.labeled_photos import LabeledPhotos
from dsgan_datasets.inversion.photos import Photo, Photos, read_masks, read_photos
from dsgan_datasets.inversion.sheets import inversion_sheet
from dsgan_datasets.inversion.work import finish_work, invert_photos, read_styles

__all__ = [
    "Alignment",
    "Inversion",
    "InversionSettings",
    "Inverter",
    "LabeledPhotos",
    "Photo",
    "Photos",
    "compare_masks",
    "comparison_sheet",
    "export_photos",
    "finish_work",
    "inversion_sheet",
    "invert_photos",
    "read_masks",
    "read_photos",
    "read_styles",
]
