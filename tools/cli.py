"""`dsgan`: parse, hand over to the verb, turn errors of the user's making into one line."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

from dsgan_datasets.tools import annotate, calibrate, cluster, convert, export, fit, info, preview, shards, stats

VERBS = (preview, info, convert, annotate, fit, cluster, calibrate, stats, shards, export)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="dsgan",
        description="Labeled images, generated on the fly from a frozen GAN and its interpreter.",
        epilog="example:\n  dsgan preview demo-faces --out faces.png",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for verb in VERBS:
        verb.add_parser(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for an error, 2 for a usage error, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without × still gets the rest of the line
    args = build_parser().parse_args(argv)
    try:
        return int(args.run(args) or 0)  # only a verb that finds fault with its input returns anything
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"dsgan: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dsgan: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
