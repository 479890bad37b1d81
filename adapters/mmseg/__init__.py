"""Generated samples in MMSegmentation 1.x: importing this registers everything that a config can name.

A config does so with ``custom_imports = dict(imports=["dsgan_datasets.adapters.mmseg"])``. The guide is docs/mmseg.md.
The flow: files (paths of samples) -> datasets -> flip, resume.
"""

try:
    from dsgan_datasets.adapters.mmseg.datasets import (
        DSGANConcatDataset,
        DSGANDepthDataset,
        DSGANDepthIterableDataset,
        DSGANSegDataset,
        DSGANSegIterableDataset,
        DSGANShardDepthDataset,
        DSGANShardSegDataset,
    )
    from dsgan_datasets.adapters.mmseg.flip import DSGANRandomFlip
    from dsgan_datasets.adapters.mmseg.resume import DSGANResumeHook
except ModuleNotFoundError as error:
    raise ImportError(
        f"dsgan_datasets.adapters.mmseg needs MMSegmentation 1.x ({error}). Install its maintained fork: "
        "`dsgan install mmseg`, or the original: mmengine, the whole mmcv (not mmcv-lite) and mmsegmentation, as "
        "docs/mmseg.md says"
    ) from error

__all__ = [
    "DSGANConcatDataset",
    "DSGANDepthDataset",
    "DSGANDepthIterableDataset",
    "DSGANRandomFlip",
    "DSGANResumeHook",
    "DSGANSegDataset",
    "DSGANSegIterableDataset",
    "DSGANShardDepthDataset",
    "DSGANShardSegDataset",
]
