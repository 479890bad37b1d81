"""`dsgan cluster`: a generator -> clusters of its features -> names -> a labeled checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsgan_datasets.annotations import Annotations, load_annotations
from dsgan_datasets.annotations.folder import generator_fingerprint
from dsgan_datasets.checkpoints.labeled import Checkpoint
from dsgan_datasets.compatibility import class_ids
from dsgan_datasets.files import is_file
from dsgan_datasets.fitting.cluster_checkpoint import NAMES, SHEET, save_clusters
from dsgan_datasets.fitting.clusters import (
    cluster_schema,
    fit_clusters,
    named,
    named_by_masks,
    names_from_json,
    unused_classes,
)
from dsgan_datasets.generators import FeatureGenerator, load_generator
from dsgan_datasets.interpreters.clusters import ClusterInterpreter
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.recipe import RULE_NAMES, Recipe
from dsgan_datasets.targets.segmentation import LabelSchema
from dsgan_datasets.tools import options

#: Options of the first step -> default.
_FITTING: dict[str, Any] = {"clusters": 12, "num_samples": 50, "map": None, "seed": 0}


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = options.add_verb(
        verbs,
        "cluster",
        "cluster the features of a generator, show the clusters, and make a labeled checkpoint of the named ones",
        "dsgan cluster network-snapshot.pkl my-parts --clusters 12 --num-samples 50   # then look at clusters.png\n"
        "  dsgan cluster network-snapshot.pkl my-parts --names my-parts/names.json      # names from a file\n"
        "  dsgan cluster network-snapshot.pkl my-parts --masks to-annotate              # or from a few masks",
    )
    parser.add_argument("generator", help="generator file, checkpoint directory, or built-in name such as demo-faces")
    parser.add_argument("out", type=Path, help="checkpoint directory: written first, then named in place")
    naming = parser.add_mutually_exclusive_group()
    naming.add_argument(
        "--names",
        type=Path,
        metavar="JSON",
        help="name the clusters: cluster -> class; clusters may share a class, and the first class of the file is id 0",
    )
    naming.add_argument(
        "--masks",
        type=Path,
        metavar="FOLDER",
        action="append",
        help="give each cluster the class that most of its pixels have in this folder of `dsgan annotate export`; may "
        "be repeated for several rounds",
    )
    parser.add_argument("--clusters", type=options.integer(2, 255), help="number of clusters, 2 to 255 (default: 12)")
    parser.add_argument(
        "--num-samples", type=options.integer(1, 1_000_000), help="draws that are clustered (default: 50)"
    )
    parser.add_argument(
        "--map",
        type=options.integer(0, 100),
        help="feature map to read, from 0, coarse to fine (default: the finest up to 64 px and a quarter of the image)",
    )
    parser.add_argument("--seed", type=options.seed, help="of draws and k-means (default: 0)")
    parser.add_argument("--license", help="of weights and samples (default: that of the generator)")
    options.add_recipe(parser, psi="truncation psi of the samples, also of those clustered (default: 1)")
    options.add_overwrite(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Cluster, or take the clusters that are there; name them; write; print."""
    stored = _stored(args)
    if stored is None:
        options.check_out(args)
        interpreter, recipe, license = None, Recipe(), args.license
        generator = load_generator(args.generator, device=args.device)
    else:
        interpreter, recipe, license = stored.interpreter, stored.recipe.unfiltered(), args.license or stored.license
        generator = load_generator(args.generator, device=args.device, features=interpreter.layout)
        if generator_fingerprint(generator) != generator_fingerprint(stored.generator):
            raise ValueError(f"the clusters in {args.out} are those of another generator than {args.generator}")
    # Names and masks are read before any work.
    count = (args.clusters or _FITTING["clusters"]) if interpreter is None else interpreter.num_clusters
    names = None if args.names is None else names_from_json(args.names, count)
    masks = None if args.masks is None else load_annotations(args.masks, generator, device=args.device)
    changes = args.recipe
    if interpreter is None:
        free = {name: value for name, value in changes.items() if name not in RULE_NAMES}
        fitting = {name: getattr(args, name) for name in _FITTING if getattr(args, name) is not None}
        interpreter = fit_clusters(generator, recipe=recipe.override(**free), **{**_FITTING, **fitting})
    interpreter, schema = _named(generator, interpreter, names, masks)
    known = schema or cluster_schema(interpreter.num_clusters)
    labeled = save_clusters(
        generator,
        interpreter,
        args.out,
        schema=schema,
        recipe=recipe.override(**class_ids(changes, [known])),
        license=license,
        seed=args.seed or 0,
    )
    _print(args, interpreter, labeled, is_named=schema is not None)


def _stored(args: argparse.Namespace) -> LabeledGenerator | None:
    """The clusters at OUT, if they are to be named; None if there are none or they are to be replaced."""
    if args.overwrite or not (args.names or args.masks) or not is_file(args.out / "config.json"):
        return None
    if Checkpoint.open(args.out).parts.get("interpreter", {}).get("architecture") != ClusterInterpreter.architecture:
        return None
    if given := [f"--{name.replace('_', '-')}" for name in _FITTING if getattr(args, name) is not None]:
        raise ValueError(
            f"{args.out} holds clusters already, which are only named: leave out {', '.join(given)}, or pass "
            "--overwrite to cluster again"
        )
    return LabeledGenerator.from_pretrained(args.out, device=args.device)


def _named(
    generator: FeatureGenerator,
    interpreter: ClusterInterpreter,
    names: Mapping[int, str] | None,
    masks: Annotations | None,
) -> tuple[ClusterInterpreter, LabelSchema | None]:
    """The interpreter with its names, or those of masks, and their schema; None if neither is given."""
    if names is not None:
        return named(interpreter, names)
    if masks is None:
        return interpreter, None
    interpreter = named_by_masks(generator, interpreter, masks.annotated, masks.schema, recipe=masks.recipe)
    if absent := unused_classes(interpreter, masks.schema):
        print(
            f"warning: no cluster is mostly {' or '.join(absent)}, so these never appear: use more clusters, or leave "
            "them out of the classes"
        )
    return interpreter, masks.schema


def _print(
    args: argparse.Namespace, interpreter: ClusterInterpreter, labeled: LabeledGenerator, *, is_named: bool
) -> None:
    out = args.out.resolve()
    side = labeled.generator.feature_resolutions[interpreter.map]
    print(f"{interpreter.num_clusters} clusters of map {interpreter.map} ({side}×{side})")
    if is_named:
        for i, name in enumerate(labeled.schema.classes):
            numbers = [str(k) for k, c in enumerate(interpreter.classes.tolist()) if c == i]
            print(f"{i:>3}  {name}: {'clusters ' + ', '.join(numbers) if numbers else 'no cluster'}")
    else:
        print(f"look at {out / SHEET}, write names into {out / NAMES}, then run")
        print(f"  dsgan cluster {args.generator} {args.out} --names {args.out / NAMES}")
    print(f"checkpoint, with its card: {out / 'README.md'}")
