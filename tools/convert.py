"""`dsgan convert`: a generator of any known kind -> a checkpoint directory of the project."""

from __future__ import annotations

import argparse
from pathlib import Path

from dsgan_datasets.generators import load_generator, save_generator
from dsgan_datasets.generators.dialects import read_average
from dsgan_datasets.tools import options
from dsgan_datasets.tools.info import generator_rows


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = options.add_verb(
        verbs,
        "convert",
        "turn a StyleGAN1, 2 or 3 of another project into the project's own files, running nothing from it",
        "dsgan convert network-snapshot-025000.pkl my-generator\n"
        "  dsgan convert ffhq.for_g_all.pt ffhq --avg-latent avg_latent_stylegan1.npy --license CC-BY-NC-SA-4.0",
    )
    parser.add_argument("source", help=".pkl snapshot, .pt state dict, or checkpoint directory (its generator)")
    parser.add_argument("out", type=Path, help="checkpoint directory to write")
    parser.add_argument(
        "--avg-latent",
        type=Path,
        metavar="NPY",
        help="average w, [w_dim] or equal rows (default: the file's own; of StyleGAN1 <stem>_avg_latent.npy beside it)",
    )
    parser.add_argument("--license", help="license note of the weights, kept in config.json (default: unspecified)")
    options.add_overwrite(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Load, save, print what was found."""
    options.check_out(args)
    if (args.out / "interpreter.safetensors").exists():
        raise ValueError(
            f"{args.out} is a labeled checkpoint, whose interpreter would be left behind: choose another name"
        )
    average = None if args.avg_latent is None else read_average(args.avg_latent)
    generator = load_generator(args.source, device="cpu", avg_latent=average)
    save_generator(generator, args.out, license=args.license)
    rows = generator_rows(load_generator(args.out, device="cpu"))
    options.print_rows({**rows, "license": args.license or rows["license"], "written to": str(args.out.resolve())})
