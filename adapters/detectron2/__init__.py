"""Generated datasets in Detectron2: one import, and a config file or one call of `register`.

The guide is docs/detectron2.md. The flow: registered -> paths and streams -> mapper -> evaluation; catalog on top.
"""

try:
    from dsgan_datasets.adapters.detectron2.catalog import (
        add_dsgan_config,
        register,
        register_from_config,
        register_mixture,
        register_shards,
    )
    from dsgan_datasets.adapters.detectron2.evaluation import build_evaluator, load_sem_seg
    from dsgan_datasets.adapters.detectron2.mapper import DSGANDatasetMapper
    from dsgan_datasets.adapters.detectron2.paths import DSGANPathHandler
    from dsgan_datasets.adapters.detectron2.resume import ResumeHook
    from dsgan_datasets.adapters.detectron2.streams import MixedStream, RecordList, RecordStream
except ModuleNotFoundError as error:
    raise ImportError(
        f"dsgan_datasets.adapters.detectron2 needs Detectron2, which is not complete here ({error}). Install it into "
        "this environment: `dsgan install detectron2` (a tested build that needs no compiler), or the original, as "
        "docs/detectron2.md says"
    ) from error

__all__ = [
    "DSGANDatasetMapper",
    "DSGANPathHandler",
    "MixedStream",
    "RecordList",
    "RecordStream",
    "ResumeHook",
    "add_dsgan_config",
    "build_evaluator",
    "load_sem_seg",
    "register",
    "register_from_config",
    "register_mixture",
    "register_shards",
]
