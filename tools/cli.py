"""`dsgan`: parse, hand over to the verb, and end in order: with one sentence, whatever goes wrong."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence

from dsgan_datasets._version import __version__
from dsgan_datasets.tools import (
    annotate,
    calibrate,
    cluster,
    completion,
    convert,
    doctor,
    evaluate,
    export,
    fit,
    info,
    install,
    invert,
    label,
    preview,
    serve,
    shards,
    stats,
    view,
)
from dsgan_datasets.tools.messages import explain, printable
from dsgan_datasets.tools.options import Parser
from dsgan_datasets.tools.process import Stopped, standard_streams, stoppable

VERBS = (
    preview,
    view,
    info,
    convert,
    annotate,
    fit,
    cluster,
    calibrate,
    stats,
    invert,
    label,
    evaluate,
    shards,
    export,
    serve,
    doctor,
    install,
    completion,
)

#: Set to 1 by someone who wants to see where an error came from.
DEBUG = "DSGAN_DEBUG"

#: What bad arguments, files and machines raise; anything else is a fault of this program.
_EXPECTED = (ValueError, OSError, RuntimeError, ImportError, MemoryError)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = Parser(
        prog="dsgan",
        description="Labeled images, generated on the fly from a frozen GAN and its interpreter.",
        epilog=f"example:\n  dsgan preview demo-faces --out faces.png\n\n{DEBUG}=1 shows where an error came from.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for verb in VERBS:
        verb.add_parser(verbs)
    parser.set_defaults(root=parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        the exit status: 0; 1 for an error; 2 for a usage error; 128 + n after signal number n, so 130 after Ctrl-C.
    """
    with standard_streams() as out, stoppable():
        status = _run(sys.argv[1:] if argv is None else argv)
        out.flush()
        if out.error is not None:
            print(f"dsgan: error: standard output: {out.error.strerror}", file=sys.stderr)
            return status or 1
        return status


def _run(words: Sequence[str]) -> int:
    args = argparse.Namespace()
    try:
        parser = build_parser()
        for word in words:
            check_word(parser, word)
        args, unknown = parser.parse_known_args(words or ["--help"])
        if unknown:  # said by the command, whose usage helps
            args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        return int(args.run(args) or 0)  # only a verb that finds fault with its input returns anything
    except SystemExit as end:  # argparse has printed help, or a usage error
        return int(end.code or 0)
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        name = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
        print(f"\ndsgan: {name}; {getattr(args, 'kept', 'nothing was written')}", file=sys.stderr)
        return 128 + number
    except Exception as error:
        if os.environ.get(DEBUG, "0") not in ("", "0"):
            traceback.print_exc()
        if isinstance(error, _EXPECTED) and not isinstance(error, RecursionError | NotImplementedError):
            print(f"dsgan: error: {explain(error, args)}", file=sys.stderr)
        else:
            print(
                f"dsgan: internal error: {type(error).__name__}: {printable(str(error))}\nThis is a fault of "
                f"dsgan_datasets: please report it to its maintainers, with the command and what it prints with "
                f"{DEBUG}=1",
                file=sys.stderr,
            )
        return 1


def check_word(parser: argparse.ArgumentParser, word: str) -> None:
    """A usage error if an argument is not text that files and cards can hold."""
    try:
        word.encode()
    except UnicodeEncodeError:
        parser.error(f"the argument {word!a} is not UTF-8: type it, or rename the file, in UTF-8")
    if "\0" in word:
        parser.error(f"the argument {word!a} holds a null character, which no name has")


if __name__ == "__main__":
    sys.exit(main())
