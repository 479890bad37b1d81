"""What the training scripts of the demo share as commands: help from the docstring, ranges of options, how they end."""

import argparse
import math
import sys
from collections.abc import Callable

MAX_THREADS = 1024


def new_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is a module's docstring: what stands before "Examples:", and at the end the examples."""
    description, _, examples = (doc or "").partition("Examples:")
    return argparse.ArgumentParser(
        description=description,
        epilog="examples:" + examples.partition("Shapes:")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace, *counts: str) -> None:
    """End with a message if a count, --lr, --seed or --threads is out of its range."""
    highest = {**dict.fromkeys(counts, 10**9), "threads": MAX_THREADS}
    for name, most in highest.items():
        if not 1 <= getattr(args, name) <= most:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)} must lie in 1 … {most:,}")
    if not 0 < args.lr < math.inf:
        parser.error(f"--lr {args.lr} must be a number above 0, such as 0.004")
    if not 0 <= args.seed < 2**63:
        parser.error(f"--seed {args.seed} must lie in 0 … 2^63-1")


def check_loss(loss: float, step: int) -> None:
    """ValueError if a training has diverged; `step` counts from 0."""
    if not math.isfinite(loss):
        raise ValueError(f"the training diverged: the loss of step {step + 1} is {loss}; a lower --lr may help")


def run_command(script: str, run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Run a training that writes at its end; its exit status, with a message if there is nothing to write."""
    try:
        run(args)
    except (ValueError, OSError, RuntimeError, AssertionError) as error:  # the last: torch without CUDA
        print(f"{script}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{script}: stopped, nothing is written", file=sys.stderr)
        return 130
    return 0
