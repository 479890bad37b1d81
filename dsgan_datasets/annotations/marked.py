"""Draws that a person has chosen to annotate: `dsgan view` writes them, `dsgan annotate export --marked` reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsgan_datasets.checks import one_line
from dsgan_datasets.contents import LONGEST_JSON, ContentError, parse_json, read_bounded
from dsgan_datasets.files import write_json
from dsgan_datasets.latents import as_indices, check_index, check_seed
from dsgan_datasets.recipe import Recipe

_FORMAT_VERSION = 1


@dataclass(frozen=True)
class Marked:
    """Which draws of the annotation family, and what is needed to make the same images again.

    Attributes:
        generator: name under which the generator was loaded, without folders.
        fingerprint: of that generator, see `generator_fingerprint`.
        recipe: how the images were made; its filter has no effect on them.
        seed: of the draws.
        indices: of the draws, ascending.
    """

    generator: str
    fingerprint: str
    recipe: Recipe
    seed: int
    indices: tuple[int, ...] = ()

    def with_mark(self, index: int, marked: bool) -> Marked:
        """The same with or without one of the draws.

        Raises:
            ValueError, TypeError: not an index of a draw.

        Example:
            >>> Marked("faces", "0", Recipe(), seed=0, indices=(4,)).with_mark(2, True).indices
            (2, 4)
        """
        index = check_index(index)
        others = {*self.indices} - {index}
        return dataclasses.replace(self, indices=tuple(sorted({*others, index} if marked else others)))

    def same_draws(self, other: Marked) -> bool:
        """Whether an index means the same image in both."""
        these, those = (
            (marked.fingerprint, marked.seed, marked.recipe.sampling, marked.recipe.rendering)
            for marked in (self, other)
        )
        return these == those

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        content = {
            "format_version": _FORMAT_VERSION,
            "generator": {"name": self.generator, "fingerprint": self.fingerprint},
            "recipe": self.recipe.to_dict(),
            "seed": self.seed,
            "indices": list(self.indices),
        }
        write_json(path, content)

    @classmethod
    def read(cls, path: Path) -> Marked:
        """Inverse of `write`.

        Raises:
            ValueError: the file is damaged, or another one; the message names it.
            OSError: it is not there, or cannot be read.
        """
        try:
            return cls._parsed(parse_json(read_bounded(path, LONGEST_JSON), "name a file that `dsgan view` wrote"))
        except ContentError as error:
            raise ValueError(f"{path} {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            found = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"{path} is not a list of marked draws as `dsgan view` writes it ({one_line(found, 300)}): name "
                "another file"
            ) from error

    @classmethod
    def _parsed(cls, stored: Any) -> Marked:
        if not isinstance(stored, Mapping) or stored.get("format_version") != _FORMAT_VERSION:
            raise ValueError(f"its format_version is not {_FORMAT_VERSION}")
        return cls(
            generator=str(stored["generator"]["name"]),
            fingerprint=str(stored["generator"]["fingerprint"]),
            recipe=Recipe.from_dict(stored["recipe"]),
            seed=check_seed(stored["seed"]),
            indices=tuple(sorted({*as_indices(stored["indices"]).tolist()})),
        )
