"""`dsgan preview`: a contact sheet of samples."""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from dsgan_datasets.files import atomic_write
from dsgan_datasets.pictures import contact_sheet
from dsgan_datasets.samples import SampleBatch
from dsgan_datasets.tools import options


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = options.add_verb(
        verbs,
        "preview",
        "write a contact sheet: image, labels and uncertainty map of some samples",
        "dsgan preview demo-faces --num-samples 12 --seed 3 --out faces.png",
    )
    options.add_checkpoint(parser)
    options.add_seed(parser)
    parser.add_argument("--num-samples", type=options.count, default=12, help="samples on the sheet (default: 12)")
    parser.add_argument("--start", type=int, default=0, help="index of the first sample (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("preview.png"), help="picture to write (default: preview.png)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Generate, draw, write."""
    if args.out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"--out {args.out}: a picture file must end in .png or .jpg")
    labeled = options.load(args)
    indices = range(args.start, args.start + args.num_samples)
    extras = ("uncertainty",) if labeled.labeler.has_uncertainty else ()
    samples = labeled.stream(indices, seed=args.seed, extras=extras)
    progress = tqdm(samples, "generating", total=args.num_samples, unit="sample", delay=2, leave=False)
    batch = SampleBatch.stack(list(progress))
    psi = " … ".join(f"{number:g}" for number in dict.fromkeys(labeled.recipe.psi_range))
    title = f"{args.checkpoint} · psi {psi} · seed {args.seed} · {labeled.fingerprint[:8]}"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    kind = "PNG" if args.out.suffix.lower() == ".png" else "JPEG"
    with atomic_write(args.out) as file:
        columns = labeled.recipe.group_size if labeled.recipe.group_size > 1 else 3  # a view group fills a row
        contact_sheet(batch, labeled.targets, title=title, columns=columns).save(file, format=kind)
    print(f"preview of {args.num_samples} samples: {args.out.resolve()}")
