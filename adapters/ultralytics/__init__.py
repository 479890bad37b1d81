"""Generated samples in Ultralytics: one line in the data YAML, and a trainer class. The guide is docs/ultralytics.md.

The flow: data YAML -> generated sets -> dataset -> loader -> trainers. Ultralytics is licensed under the AGPL-3.0; this
package does not depend on it and imports it only here.
"""

try:
    from dsgan_datasets.adapters.ultralytics.datasets import DSGANYOLODataset
    from dsgan_datasets.adapters.ultralytics.generated import GeneratedSet
    from dsgan_datasets.adapters.ultralytics.trainers import (
        DSGANDetectionTrainer,
        DSGANDetectionValidator,
        DSGANPoseTrainer,
        DSGANPoseValidator,
        DSGANSegmentationTrainer,
        DSGANSegmentationValidator,
    )
except ModuleNotFoundError as error:
    raise ImportError(
        f"dsgan_datasets.adapters.ultralytics needs Ultralytics, which is not complete here ({error}). Install it into "
        "this environment: `dsgan install ultralytics` (its license is the AGPL-3.0)"
    ) from error

__all__ = [
    "DSGANDetectionTrainer",
    "DSGANDetectionValidator",
    "DSGANPoseTrainer",
    "DSGANPoseValidator",
    "DSGANSegmentationTrainer",
    "DSGANSegmentationValidator",
    "DSGANYOLODataset",
    "GeneratedSet",
]
