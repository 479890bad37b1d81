"""The first eight minutes on a GPU: does it run, are the bits equal, how fast is it, and what should be tried next.

Each step is a process of its own with a time limit, so that one that hangs or fails costs no more than that; what a
step finds is in a JSON file of the folder after each of its cases. The first answers come within two minutes. A step
that makes the later ones worthless ends the run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import progress, write_report

HERE = Path(__file__).resolve().parent
#: Tests that only a GPU can run and that ask most for their time.
TESTS = "company or arrive_whole or waits or agree or graph or chosen"
#: A stream may take this many times bare + labels before overlapping batches is worth more than any kernel.
OVERLAP = 1.3


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: of its file.
        seconds: that it may take.
        command: after the interpreter.
        decides: whether the later steps are left out if it fails.
    """

    name: str
    seconds: int
    command: tuple[str, ...]
    decides: bool = False


def steps(out: Path, *, dry_run: bool) -> list[Step]:
    """The steps in order; 450 seconds in all, and more on a processor, where it is not the time that is tried."""
    patience = 5 if dry_run else 1
    benchmark = (str(HERE / "gpu.py"), *(("--dry-run",) if dry_run else ()))
    tests = ("-m", "pytest", "-q", "-m", "gpu", str(HERE.parent / "tests" / "test_gpu.py"), "-rP", "-k", TESTS)
    shapes = () if dry_run else ("--sides", "512", "256", "--batches", "8", "32", "--dtypes", "float16")
    one = () if dry_run else ("--sides", "512", "--batches", "8", "--dtypes", "float16")
    return [
        Step("smoke", 110 * patience, (*benchmark, "--part", "smoke", "--out", str(out / "smoke.json")), decides=True),
        Step("tests", 110 * patience, (*tests, *(("--collect-only",) if dry_run else ()))),
        Step("times", 170 * patience, (*benchmark, *shapes, "--minutes", "2.5", "--out", str(out / "times.json"))),
        Step(
            "divisions",
            60 * patience,
            (*benchmark, *one, "--tiles", "--minutes", "60", "--out", str(out / "divisions.json")),
        ),
    ]


def run(out: Path | None, *, dry_run: bool) -> int:
    """All steps; 1 if one of them failed.

    Args:
        out: folder for what the steps find; None is gpu-first.
        dry_run: the smallest shapes on the CPU.
    """
    out = out or Path("gpu-first")
    out.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = {"steps": {}, "advice": []}
    for step in steps(out, dry_run=dry_run):
        progress(f"step {step.name}, at most {step.seconds} s")
        found = _child(step, out)
        summary["steps"][step.name] = found
        summary["advice"] = advice(out)
        write_report(out / "summary.json", summary)
        if found["status"] != "ok" and step.decides:
            progress(f"{step.name} failed: nothing after it would be worth its time; see {out}")
            break
    for line in summary["advice"]:
        print(line)
    return 0 if all(step["status"] == "ok" for step in summary["steps"].values()) else 1


def _child(step: Step, out: Path) -> dict[str, Any]:
    """Run a step; its output goes into a file, whose end is kept with how it ended."""
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    log, start = out / f"{step.name}.log", time.monotonic()
    with log.open("w") as output:
        try:
            finished = subprocess.run(
                [sys.executable, *step.command],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=step.seconds,
                check=False,
            )
            status = "ok" if finished.returncode == 0 else f"exit status {finished.returncode}"
        except subprocess.TimeoutExpired:
            status = f"stopped after {step.seconds} s"
    seconds = round(time.monotonic() - start, 1)
    progress(f"step {step.name}: {status}, {seconds} s")
    return {"status": status, "seconds": seconds, "end": log.read_text(errors="replace")[-2000:]}


def advice(out: Path) -> list[str]:
    """What the numbers say should be done next."""
    cases = [case for case in _read(out / "times.json").get("cases", []) if "ms" in case]
    lines = []
    for case in cases:
        ms, name = case["ms"], f"{case['side']}², batch {case['batch']}"
        bare, stream = ms.get("bare_graph", ms["bare"])["ms"], ms.get("stream_graph", ms["stream"])["ms"]
        if stream > OVERLAP * (bare + ms["labels"]["ms"]):
            lines.append(
                f"{name}: the stream takes {stream / (bare + ms['labels']['ms']):.2f} x its parts: overlap batches"
            )
        top = [row["name"] for row in case.get("profile", [])[:3]]
        if any("depthwise" in kernel or "grouped" in kernel for kernel in top):
            lines.append(f"{name}: a depthwise convolution is among the three slowest kernels: filter in Triton first")
    return lines


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return content


def smoke(out: Path | None, *, dry_run: bool) -> int:
    """Samples of demo-faces in every precision, then a batch at 512² twice; a warning is an error.

    Args:
        out: JSON file, written after each answer.
        dry_run: on the CPU, and the smallest shape in place of 512².
    """
    import torch
    from arithmetic import Shape
    from gpu import profile, random_labeled, same_bits

    from dsgan_datasets import LabeledGenerator
    from dsgan_datasets.recipe import Precision

    device = torch.device("cpu" if dry_run else "cuda")
    report: dict[str, Any] = {"answers": []}

    def answer(name: str, **found: Any) -> None:
        progress(f"{name}: {found}")
        report["answers"].append({"name": name, **found})
        if out:
            write_report(out, report)

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        dtypes: tuple[Precision, ...] = ("float16",) if dry_run else ("float16", "float32", "bfloat16")
        for dtype in dtypes:
            labeled = LabeledGenerator.from_pretrained("demo-faces", device=device, dtype=dtype, reject_fraction=0)
            batch = labeled.generate(range(2 if dry_run else 64))
            finite = bool(batch.uncertainty_score.isfinite().all())
            answer(dtype, samples=batch.num_samples, finite=finite, classes=len(batch.mask.unique()))
            if not finite:
                return 1
        shape = Shape(16, 128) if dry_run else Shape.published(512)
        labeled = random_labeled(shape, "float16", 2 if dry_run else 8, device)
        ws = torch.randn(labeled.recipe.compute_batch, labeled.generator.num_ws, 512, device=device) * 0.5
        answer(f"{shape.side}²", same_bits=same_bits(labeled, ws))
        answer("profile", rows=profile(labeled, ws))
    return 0
