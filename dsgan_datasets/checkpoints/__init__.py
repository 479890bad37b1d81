"""Files <-> plain data: the project's checkpoint directory, and allow-list readers of foreign files.

Nothing in here builds a network, and nothing that a file contains is ever run.
"""

from dsgan_datasets.checkpoints.errors import CheckpointError

__all__ = ["CheckpointError"]
