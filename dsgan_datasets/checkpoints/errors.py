"""The one error of everything that reads a file."""

from __future__ import annotations

from dsgan_datasets.checks import one_line


class CheckpointError(ValueError):
    """A checkpoint file is missing, damaged, of another kind than expected, or asks for something not allowed.

    The message is one line of printable characters, shortened in the middle if need be: it may quote what is in a
    file, and a file may hold megabytes, line breaks or the control sequences of a terminal.

    Example:
        >>> try:
        ...     LabeledGenerator.from_pretrained("no-such-checkpoint")
        ... except CheckpointError as error:
        ...     print(str(error)[:40])
        no file or directory 'no-such-checkpoint
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))
