"""Finished cells of the benchmark: one file each, written once it is finished, read by later runs and tables."""

from __future__ import annotations

import json
import math
import time
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dsgan_datasets.files import atomic_write, remove_leftovers, write_json

Cell = dict[str, Any]


#: Of a configuration: rows of renders are trained without them.
LATER = ("checkpoint", "fingerprint")


class OutOfTime(Exception):
    """The minutes asked for are over."""


def read_json(path: Path, needed: Collection[str], remedy: str) -> Cell:
    """A JSON object with some fields.

    Raises:
        ValueError: it is none; `remedy` says what to do.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): {remedy}") from error
    if not isinstance(content, dict) or (lacking := set(needed) - content.keys()):
        what = f"lacks {', '.join(sorted(lacking))}" if isinstance(content, dict) else "is no JSON object"
        raise ValueError(f"{path} {what}: {remedy}")
    return content


def read_cell(path: Path) -> Cell:
    """A trained student: its settings, and its IoU.

    Raises:
        ValueError: the file is damaged.
    """
    remedy = "delete it, and this student is trained anew"
    cell = read_json(path, ("row", "renders", "settings", "iou"), remedy)
    try:
        numbers = [cell["renders"], cell["settings"]["learning_rate"], cell["settings"]["steps"]]
        for measured in cell["iou"].values():
            numbers += [measured["mean"], *(value for value in measured["classes"] if value is not None)]
        sound = bool(cell["iou"]) and all(isinstance(number, int | float) for number in numbers)
    except (AttributeError, KeyError, TypeError):
        sound = False
    if not sound:
        raise ValueError(f"{path} does not hold a trained student's settings and IoU: {remedy}")
    return cell


class Forecast:
    """How long the cells take that a command has yet to train, by the speed of those that are finished.

    A row whose speed is unknown is taken to be as fast as the other rows of its folder, and these as those of the other
    folders.

    Args:
        planned: folder, name and steps of each cell, ROW.KIND-N. Steps that a search has yet to choose are a guess.
    """

    def __init__(self, planned: Collection[tuple[Cells, str, int]] = ()) -> None:
        self.planned = list(planned)

    def __str__(self) -> str:
        """Such as "about 3.2 hours left"; empty as long as no cell is finished, and after the last."""
        rates: dict[tuple[Path | None, str], list[float]] = defaultdict(list)
        left = []
        for cells, name, steps in self.planned:
            row, cell = name.rpartition(".")[0], cells.read(name)
            if cell is None:
                left.append((cells.folder, row, steps))
            elif "seconds" in cell:
                for key in ((cells.folder, row), (cells.folder, ""), (None, "")):
                    rates[key].append(cell["seconds"] / cell["settings"]["steps"])
        if not left or not rates:
            return ""
        seconds = 0.0
        for folder, row, steps in left:
            known = rates.get((folder, row)) or rates.get((folder, "")) or rates[None, ""]
            seconds += steps * sum(known) / len(known)
        if seconds >= 5400:
            return f"about {seconds / 3600:.1f} hours left"
        return f"about {math.ceil(seconds / 60)} minute{'s' * (seconds > 60)} left"


class Cells:
    """A folder of finished cells of one configuration.

    Args:
        folder: made if it does not exist.
        configuration: what a new folder is for; of an older one these fields must be the same. `LATER` may be added.
        minutes: after which no further cell is begun.

    Attributes:
        forecast: of the command that trains them.

    Raises:
        ValueError: the folder holds cells of another configuration, or of nobody knows which.
    """

    def __init__(self, folder: Path, configuration: Cell, minutes: float | None = None) -> None:
        self.folder = folder
        self.forecast = Forecast()
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "configuration.json"
        configuration = json.loads(json.dumps(configuration))
        if path.exists():
            held = read_json(path, (), "choose another --out")
            added = {key: configuration[key] for key in LATER if key in configuration and key not in held}
            if changed := [key for key in configuration if (held | added).get(key) != configuration[key]]:
                raise ValueError(f"{folder} holds cells with another {', '.join(changed)}: choose another --out")
            if added:
                self.write("configuration", held | added)
        elif any(folder.glob("*.json")):
            raise ValueError(f"{folder} holds JSON files but no configuration.json: choose another --out")
        else:
            self.write("configuration", configuration)

    def read(self, name: str) -> Cell | None:
        """A cell; None if it is not finished."""
        path = self.folder / f"{name}.json"
        return read_cell(path) if path.exists() else None

    def write(self, name: str, cell: Cell) -> None:
        """Finish a cell: its file appears whole or not at all."""
        path = self.folder / f"{name}.json"
        remove_leftovers(path)
        write_json(path, cell)

    def write_arrays(self, name: str, **arrays: Tensor) -> None:
        """One array as .npy (named "masks"), several as .npz."""
        held: dict[str, Any] = {key: value.cpu().numpy() for key, value in arrays.items()}
        with atomic_write(self.folder / name) as file:
            np.save(file, held["masks"]) if name.endswith(".npy") else np.savez_compressed(file, **held)

    def check_time(self) -> None:
        """Raise `OutOfTime` if it is time to stop."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise OutOfTime


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """What `Cells.write_arrays` wrote.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        with path.open("rb") as file:
            held = np.load(file, allow_pickle=False)
            return {"masks": held} if isinstance(held, np.ndarray) else dict(held)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} is missing or damaged: leave --picture out, or delete its ROW.seed-N.json (of any row, if it is "
            "examples.npz) and run again"
        ) from error
