"""What the examples promise."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.extended
def test_plain_pytorch_training_learns_from_the_stream() -> None:
    losses = load(ROOT / "examples" / "pytorch" / "train.py").train(steps=25)
    assert len(losses) == 25
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]


def test_the_training_loop_is_short() -> None:
    """At most 15 lines for a user to write: the statements of `train`, without its signature."""
    source = (ROOT / "examples" / "pytorch" / "train.py").read_text()
    function = next(n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == "train")
    assert function.body[-1].end_lineno - function.body[0].lineno + 1 <= 15  # type: ignore[operator]


@pytest.mark.extended
def test_the_notebook_runs() -> None:
    """From top to bottom in a kernel of its own; the network learns, and pictures are shown."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "examples" / "notebooks" / "quickstart.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in data for data in outputs) == 2
    (losses,) = [ast.literal_eval(data["text/plain"]) for data in outputs if data.get("text/plain", "").startswith("[")]
    assert len(losses) == 10 and losses[-1] < losses[0]


def test_the_notebook_is_committed_without_outputs() -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(ROOT / "examples" / "notebooks" / "quickstart.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
