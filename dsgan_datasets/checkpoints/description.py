"""Old names of `checkpoints.labeled`."""

from dsgan_datasets._deprecation import moved

__getattr__ = moved(
    __name__,
    {
        "Description": "dsgan_datasets.checkpoints.labeled:Checkpoint",
        "describe": "dsgan_datasets:describe",
    },
)
