"""Images for a person to annotate, and what the person made of them.

Export: generator -> draws -> selection -> folder. Import: folders -> masks -> `Annotations`, for
`fit_interpreter`.
"""

from dsgan_datasets.annotations.export import export_annotations
from dsgan_datasets.annotations.folder import read_classes
from dsgan_datasets.annotations.loading import Annotations
from dsgan_datasets.annotations.mistakes import AnnotationError
from dsgan_datasets.annotations.png import encode_png
from dsgan_datasets.annotations.rounds import load_annotations

__all__ = ["AnnotationError", "Annotations", "encode_png", "export_annotations", "load_annotations", "read_classes"]
