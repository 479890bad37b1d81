"""All mistakes in a folder of annotations at once, so that one round of corrections is enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from dsgan_datasets.checks import one_line
from dsgan_datasets.contents import ContentError, shown

#: Mistakes that a message lists; more would help nobody.
_LONGEST_LIST = 40
#: Mistakes and warnings that are kept; a file may have millions.
_MOST_KEPT = 1000

Read = TypeVar("Read")


class AnnotationError(ValueError):
    """Annotations cannot be used as they are.

    Attributes:
        mistakes: one sentence each: file, what is wrong with it, and the way out.

    Args:
        folder: in which they are.
        mistakes: see above.
        way_out: a last line that holds for all of them.

    Example:
        >>> error = AnnotationError("to-annotate", "masks/3.png: is 32×32 pixels, its image is 64×64")
        >>> error.mistakes
        ('masks/3.png: is 32×32 pixels, its image is 64×64',)
    """

    def __init__(self, folder: Path | str, *mistakes: str, way_out: str | None = None) -> None:
        self.mistakes = tuple(map(one_line, mistakes))
        lines = [f"  {mistake}" for mistake in self.mistakes[:_LONGEST_LIST]]
        if (more := len(self.mistakes) - _LONGEST_LIST) > 0:
            lines.append(f"  … and {more} more")
        count = "1 mistake" if len(self.mistakes) == 1 else f"{len(self.mistakes)} mistakes"
        lines += [] if way_out is None else [way_out]
        super().__init__("\n".join([f"{count} in {one_line(str(folder))}:", *lines]))


@dataclass
class Findings:
    """What was noticed while reading: mistakes stop the import in the end, warnings are shown.

    Attributes:
        mistakes: see `AnnotationError`; of very many, the first ones.
        warnings: one sentence each; of very many, the first ones.
        count: of all mistakes.
        size_advice: what to do where a label has another size than its image.
    """

    mistakes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    count: int = 0
    size_advice: str = "annotate the exported image, and do not scale or crop the mask"

    def error(self, where: object, what: str) -> None:
        """Note a mistake; `where` names file and shape."""
        self.count += 1
        if len(self.mistakes) < _MOST_KEPT:
            self.mistakes.append(f"{where}: {what}")

    def wrong_size(self, where: object, got: tuple[int, int], expected: tuple[int, int]) -> None:
        """Note that a label has another size than its image; both are (H, W) and shown as width × height."""
        sizes = f"is {shown(got[1])}×{shown(got[0])} pixels, its image is {expected[1]}×{expected[0]}"
        self.error(where, f"{sizes}: {self.size_advice}")

    def warning(self, where: object, what: str) -> None:
        """Note a warning; the same one again counts once."""
        if len(self.warnings) < _MOST_KEPT:
            warning = one_line(f"{where}: {what}")
            if warning not in self.warnings[-1:]:
                self.warnings.append(warning)

    def guarded(self, where: object, read: Callable[[], Read]) -> Read | None:
        """What `read` gives; None, with the mistake noted, if it fails in whatever way: the one place where that is so.

        A stranger's file is behind it. Parsers, numpy and Pillow may raise anything at all for one that is damaged.
        """
        try:
            return read()
        except AnnotationError:
            raise
        except ContentError as error:
            self.error(where, str(error))
        except OSError as error:
            self.error(where, f"cannot be read: {error.strerror or shown(error)}")
        except MemoryError:
            self.error(where, "needs more memory than this machine gives")
        except Exception as error:
            self.error(where, f"cannot be read ({shown(error)}): save or export it again")
        return None


def listed(names: Sequence[object], most: int = 8) -> str:
    """The names with commas, shortened if there are many.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b, … (3 in all)'
    """
    if len(names) <= most:
        return ", ".join(map(str, names))
    return f"{', '.join(map(str, names[:most]))}, … ({len(names)} in all)"
