"""The one error of everything that reads a file."""


class CheckpointError(ValueError):
    """A checkpoint file is missing, damaged, of another kind than expected, or asks for something not allowed."""
