"""Compare the package with full reference arrays: `compare_golden.py GOLDEN [GOLDEN ...]`.

The same comparison as in tests/test_golden.py, there on probes of these arrays. Prints a table, writes the worst errors
to benchmarks/results/golden.json, and exits with status 1 where an array is outside the tolerance.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from pathlib import Path

import torch
from golden_data import TOLERANCE, Comparison, all_sets, compare_set, summary
from make_golden_probes import folder_of

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "golden.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("golden", type=Path, nargs="+", metavar="GOLDEN", help="folders with full reference arrays")
    folders = parser.parse_args().golden
    for folder in folders:
        if not folder.is_dir():
            parser.error(f"{folder} is not a folder")

    print(f"{'set':33}{'arrays':>7}{'relative':>10}{'levels':>8}{'pixels':>8}  worst array")
    sets, violations = {}, []
    for name in all_sets():
        comparisons = compare_set(folder_of(f"{name}.npz", folders), name)
        sets[name] = row = describe(comparisons)
        print(
            f"{name:33}{row['arrays']:7}{summary(comparisons)['relative'].error:10.1e}"
            f"{_number(row['uint8_levels']):>8}{_number(row['label_pixels']):>8}  {row['worst_array']}"
        )
        violations += [f"{name}: {c.name}: {c.error:g} ({c.kind})" for c in comparisons if not c.ok]
    result = {
        "tolerance": TOLERANCE,
        "sets": sets,
        "violations": violations,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "hardware": hardware(),
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    found = {path.stem for folder in folders for path in folder.glob("*.npz")}
    if other := sorted(found - sets.keys()):
        print(f"not compared: {', '.join(other)}")
    if violations:
        sys.exit("\n".join(["outside the tolerance:", *violations]))
    print("all within the tolerance")


def describe(comparisons: list[Comparison]) -> dict[str, object]:
    """Number of arrays, and the worst error of each kind; None where there is no array of that kind."""
    worst = summary(comparisons)

    def error(kind: str) -> float | None:
        found = worst[kind].error if kind in worst else math.inf
        return float(f"{found:.3g}") if math.isfinite(found) else None

    return {
        "arrays": len(comparisons),
        "worst_relative_error": error("relative"),
        "worst_array": worst["relative"].name,
        "uint8_levels": error("levels"),
        "label_pixels": error("pixels"),
    }


def _number(value: object) -> str:
    return "-" if value is None else f"{value:g}"


def hardware() -> str:
    """Processor and machine type, without names of hosts."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor() or 'unknown processor'}, {platform.machine()}"


if __name__ == "__main__":
    main()
