"""Images for a person to annotate, and what the person made of them.

Export: generator -> draws -> selection -> folder. Import: folder -> masks -> `Annotations`, for `fit_interpreter`.
"""

from dsgan_datasets.annotations.export import export_annotations
from dsgan_datasets.annotations.loading import Annotations, load_annotations
from dsgan_datasets.annotations.mistakes import AnnotationError

__all__ = ["AnnotationError", "Annotations", "export_annotations", "load_annotations"]
