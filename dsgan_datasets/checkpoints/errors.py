"""The one error of everything that reads a file."""

_LONGEST = 1500


class CheckpointError(ValueError):
    """A checkpoint file is missing, damaged, of another kind than expected, or asks for something not allowed.

    The message is one line of printable characters, shortened in the middle if need be: it may quote what is in a
    file, and a file may hold megabytes, line breaks or the control sequences of a terminal.
    """

    def __init__(self, message: str) -> None:
        escaped = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in _shortened(message))
        super().__init__(_shortened(escaped))


def _shortened(message: str) -> str:
    if len(message) <= _LONGEST:
        return message
    return f"{message[: _LONGEST * 2 // 3]} […] {message[-_LONGEST // 4 :]}"
