"""`benchmarks/gpu.py` without a GPU: what it must do when something fails, and that a dry run works."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def gpu() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield importlib.import_module("gpu")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def gpu_first(gpu: ModuleType) -> ModuleType:
    return importlib.import_module("gpu_first")


def test_a_case_that_fails_costs_no_other(gpu: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    report = gpu.Report(out, 1, {"benchmark": "gpu"})

    def fails() -> dict[str, Any]:
        raise MemoryError("2 GiB")

    report.add("first", 0, fails)
    assert json.loads(out.read_text())["failed"] == [{"case": "first", "error": "MemoryError: 2 GiB"}]
    report.add("second", 0, lambda: {"side": 8})
    assert json.loads(out.read_text())["cases"] == [{"side": 8}], "written after each case"
    report.add("third", 2, lambda: {"side": 9})
    assert report.content["left_out"] == ["third"], "it would not fit into the minutes"


def test_no_times_where_bits_differ(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.torch, "equal", lambda a, b: False)
    monkeypatch.setattr(gpu, "ceilings", lambda *_, **__: (1e12, 1e11))
    monkeypatch.setattr(gpu, "training", lambda *_: {"overlap": 1.0})
    monkeypatch.setattr(gpu, "table", lambda report: "")
    monkeypatch.setattr(gpu, "times_of", lambda *_, **__: pytest.fail("timed before the bits were compared"))
    out = tmp_path / "report.json"
    assert gpu.main(["--dry-run", "--out", str(out)]) == 1
    found = json.loads(out.read_text())
    assert not found["cases"] and "bits differ (twice): no times" in found["failed"][0]["error"]


def test_the_slow_path_is_a_failure(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    case = {"side": 512, "dtype": "float16", "batch": 8, "check": {"kernel": "plain PyTorch"}}
    report = {"cpu_twin": False, "cases": [case], "failed": [], "targets_missed": []}
    monkeypatch.setattr(gpu, "run", lambda args: report)
    monkeypatch.setattr(gpu, "table", lambda report: "")
    assert gpu.main(["--device", "cpu"]) == 1
    case["check"]["kernel"] = "fused kernel"
    assert gpu.main(["--device", "cpu"]) == 0
    report["failed"] = [{"case": "x", "error": "y"}]
    assert gpu.main(["--device", "cpu"]) == 1


@pytest.mark.parametrize(("bare", "stream", "missed"), [(0.4, 0.9, []), (0.6, 1.2, ["bare", "labeled"])])
def test_targets_are_milliseconds(gpu: ModuleType, bare: float, stream: float, missed: list[str]) -> None:
    ms = {"bare": {"ms": 2.0}, "bare_graph": {"ms": bare}, "stream": {"ms": 3.0}, "stream_graph": {"ms": stream}}
    report = {"cpu_twin": False, "cases": [{"side": 512, "dtype": "float16", "batch": 8, "ms": ms}]}
    assert [message.partition(":")[0] for message in gpu.missed_targets(report)] == missed
    report["training"] = {"overlap": float("nan")}
    assert gpu.missed_targets(report)[-1].startswith("overlap")


def test_the_page_and_the_benchmark_expect_the_same(gpu: ModuleType) -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    for side, expected in gpu.PREDICTED.items():
        row = f"| {side}² | " + " | ".join(f"{value:.2f}" for value in expected.values()) + " |"
        assert row in page, row


def test_the_first_minutes_are_eight(gpu_first: ModuleType, tmp_path: Path) -> None:
    steps = gpu_first.steps(tmp_path, dry_run=False)
    assert steps[0].name == "smoke" and steps[0].decides and steps[0].seconds < 120
    assert sum(step.seconds for step in steps) <= 8 * 60


def test_a_step_that_hangs_is_stopped(gpu_first: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = gpu_first.Step("smoke", 1, ("-c", "import time; print('so far', flush=True); time.sleep(60)"), True)
    later = gpu_first.Step("times", 1, ("-c", "raise SystemExit(0)"))
    monkeypatch.setattr(gpu_first, "steps", lambda out, dry_run: [hanging, later])
    assert gpu_first.run(tmp_path, dry_run=False) == 1
    steps = json.loads((tmp_path / "summary.json").read_text())["steps"]
    assert list(steps) == ["smoke"], "what comes after it would be worth nothing"
    assert steps["smoke"]["status"] == "stopped after 1 s" and "so far" in steps["smoke"]["end"]


def test_advice(gpu_first: ModuleType, tmp_path: Path) -> None:
    ms = {name: {"ms": value} for name, value in {"bare": 1.0, "labels": 0.5, "stream": 3.0}.items()}
    profile = [{"name": "conv2d_grouped_direct_kernel", "calls": 8, "ms": 1}]
    (tmp_path / "times.json").write_text(
        json.dumps({"cases": [{"side": 512, "batch": 8, "ms": ms, "profile": profile}]})
    )
    stream, filter_first = gpu_first.advice(tmp_path)
    assert "2.00 x its parts" in stream and "depthwise" in filter_first


@pytest.mark.extended
def test_a_dry_run_of_the_first_minutes(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--first", "--dry-run", "--out", str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert finished.returncode == 0, summary
    assert list(summary["steps"]) == ["smoke", "tests", "times", "divisions"]
    smoke = json.loads((tmp_path / "smoke.json").read_text())["answers"]
    assert [answer["name"] for answer in smoke] == ["float16", "16²", "profile"]
    (case,) = json.loads((tmp_path / "times.json").read_text())["cases"]
    assert case["same_bits"] == {"twice": True}
    assert {"q1", "ms", "q3"} == set(case["ms"]["stream"]) and case["ms"]["filtered_stream"]["ms"] > 0
    assert case["profile"][0]["ms"] > 0
    assert len(json.loads((tmp_path / "divisions.json").read_text())["divisions"]) == 6
