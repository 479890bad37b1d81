"""Photos -> the style vectors whose image each of them is, and labels that are read there.

The flow: reading (files -> aligned photos, and labels of their own) -> inverter (photos -> styles, and how well they
fit) -> labeled_photos (a source of samples), folder (a round of annotations) or evaluation (are the labels right?).
"""

from dsgan_datasets.inversion.alignment import Alignment
from dsgan_datasets.inversion.evaluation import Comparison, Evaluation, evaluate_photos, evaluation_sheet
from dsgan_datasets.inversion.folder import export_photos
from dsgan_datasets.inversion.inverter import Inversion, InversionSettings, Inverter
from dsgan_datasets.inversion.labeled_photos import LabeledPhotos
from dsgan_datasets.inversion.labels import read_labels
from dsgan_datasets.inversion.photos import Photo, Photos
from dsgan_datasets.inversion.reading import read_photos
from dsgan_datasets.inversion.sheets import inversion_sheet
from dsgan_datasets.inversion.work import finish_work, invert_photos, read_styles

__all__ = [
    "Alignment",
    "Comparison",
    "Evaluation",
    "Inversion",
    "InversionSettings",
    "Inverter",
    "LabeledPhotos",
    "Photo",
    "Photos",
    "evaluate_photos",
    "evaluation_sheet",
    "export_photos",
    "finish_work",
    "inversion_sheet",
    "invert_photos",
    "read_labels",
    "read_photos",
    "read_styles",
]
