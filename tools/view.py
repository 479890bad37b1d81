"""`dsgan view`: a local page to look at the samples of a checkpoint, and to mark draws to annotate."""

from __future__ import annotations

import argparse
import threading
from contextlib import suppress
from pathlib import Path

from dsgan_datasets.tools import options, page
from dsgan_datasets.tools.looking import MarkFile
from dsgan_datasets.tools.messages import counted


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = options.add_verb(
        verbs,
        "view",
        "open a page on this machine to look at samples, and to mark draws to annotate",
        "dsgan view demo-faces\n"
        "  dsgan view my-parts --annotate --marks round-2.json   # mark draws, then:\n"
        "  dsgan annotate export my-parts round-2 --marked round-2.json\n"
        "  dsgan view my-parts --no-browser --port 8000          # there; here: ssh -N -L 8000:127.0.0.1:8000 THERE",
        kept="nothing was marked",
    )
    options.add_checkpoint(parser, filtered=False)
    options.add_seed(parser)
    parser.add_argument(
        "--num-samples", type=options.integer(1, 200), default=12, help="samples on a page (default: 12)"
    )
    parser.add_argument("--start", type=options.index, default=0, help="index of the first sample (default: 0)")
    parser.add_argument("--annotate", action="store_true", help="begin with the draws to annotate, not with the stream")
    parser.add_argument(
        "--marks",
        type=Path,
        default=Path("marks.json"),
        metavar="FILE",
        help="where marked draws are written; marks that are there stay (default: marks.json)",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 lets every machine of the network in, without a password (default: "
        "127.0.0.1, this machine alone)",
    )
    parser.add_argument(
        "--port", type=options.integer(1, 65535), help=f"default: the first free one from {page.FIRST_PORT}"
    )
    parser.add_argument("--no-browser", action="store_true", help="print the address, and open no browser")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Serve the page until a signal comes."""
    page.check_installed()
    options.check_file(args.marks, "--marks", ".json")
    labeled = options.load(args)
    marks = MarkFile(args.marks, labeled, args.checkpoint)
    shown = page.Page(labeled, marks, args.num_samples)
    where = {"host": args.host, "port": args.port, "browser": not args.no_browser}
    try:
        with page.served(shown, seed=args.seed, start=args.start, to_annotate=args.annotate, **where) as address:
            print(f"{options.short(args.checkpoint)}: {address}\nCtrl-C ends it", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        with suppress(ValueError, OSError):  # others may have damaged the file meanwhile
            if number := len(marks.read().indices):
                args.kept = f"{counted(number, 'marked draw')} in {args.marks}"
        raise
