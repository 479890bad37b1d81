"""What the guide, the examples and the benchmark of the Detectron2 adapter promise."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from test_examples import ROOT, load

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("one_thread")]

pycocotools_mask = pytest.importorskip("pycocotools.mask")
pytest.importorskip("detectron2")

import detectron2_support  # noqa: E402
from detectron2.engine import defaults  # noqa: E402

from dsgan_datasets.adapters import detectron2 as adapter  # noqa: E402
from dsgan_datasets.adapters.detectron2 import tasks  # noqa: E402

labeled = detectron2_support.labeled
checkpoint = detectron2_support.checkpoint
register = detectron2_support.register
real = detectron2_support.real


EXAMPLES = ROOT / "examples" / "detectron2"


@pytest.mark.parametrize(
    ("name", "task", "metric"), [("semantic", "sem_seg", "sem_seg"), ("instances", "instances", "segm")]
)
def test_yaml_examples_run(clean: None, tmp_path: Path, name: str, task: str, metric: str) -> None:
    adapter.register("few", "demo-faces", task=task, seed=1, length=3)
    options = [
        "DATASETS.TEST",
        "('few',)",
        "SOLVER.MAX_ITER",
        "2",
        "SOLVER.IMS_PER_BATCH",
        "2",
        "OUTPUT_DIR",
        str(tmp_path),
    ]
    words = ["--config-file", str(EXAMPLES / f"{name}.yaml"), *options]
    results = load(EXAMPLES / "train.py").main(defaults.default_argument_parser().parse_args(words))
    assert metric in results


def test_what_a_user_writes_is_short() -> None:
    """Under ten lines each: the body of `main`, and the nodes of the YAML that name datasets."""
    tree = ast.parse((EXAMPLES / "train.py").read_text())
    main = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    assert len(main.body) <= 12  # nine of them are Detectron2's own
    assert sum("dsgan." in ast.unparse(node) for node in main.body) == 3
    yaml = (EXAMPLES / "semantic.yaml").read_text()
    assert len(yaml[yaml.index("DSGAN:") : yaml.index("MODEL:")].split("\n")) < 10


@pytest.mark.extended
def test_lazy_example_runs(clean: None, tmp_path: Path) -> None:
    adapter.register("few", "demo-faces", task="instances", seed=1, length=3)
    options = ["dataloader.test.dataset.names=few", "dataloader.evaluator.name=few", "train.max_iter=1"]
    options += [f"train.output_dir={tmp_path}", f"dataloader.evaluator.output_dir={tmp_path}"]
    options += ["model.roi_heads.box_predictor.test_score_thresh=0"]  # after one step no score is high
    words = ["--config-file", str(EXAMPLES / "lazy.py"), "dataloader.train.total_batch_size=2", *options]
    results = load(EXAMPLES / "train_lazy.py").main(defaults.default_argument_parser().parse_args(words))
    assert "segm" in results


def test_the_guide_is_complete() -> None:
    guide = ROOT / "docs" / "detectron2.md"
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", guide.read_text()):
        assert (guide.parent / target).exists(), target
    undocumented = {name for name in adapter.__all__ if name not in guide.read_text()}
    assert undocumented <= {"DSGANPathHandler", "MixedStream", "RecordList", "RecordStream", "register_mixture"}


def test_benchmark(
    clean: None, checkpoint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    benchmark = load(ROOT / "benchmarks" / "adapters.py")
    words = ["--checkpoint", checkpoint, "--samples", "16", "--runs", "1", "--threads", "1", "--device", "cpu"]
    assert benchmark.main([*words, "--out", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["samples_compared"] == 16
    assert benchmark.main([*words, "--check"]) == 1  # one run proves nothing
    assert "with so few runs" in capsys.readouterr().err
    monkeypatch.setattr(tasks.SemSeg, "sem_seg", lambda self, mask: mask.flip(0))
    assert benchmark.main(words) == 1
    assert "the mask of sample 0 is not that of" in capsys.readouterr().err
    assert benchmark.median_interval(range(7)) == (0, 6)  # tables of the sign test
    assert benchmark.median_interval(range(11)) == (1, 9)
    assert benchmark.median_interval(range(5)) == (-float("inf"), float("inf"))
