"""`dsgan serve`: workers that make samples for trainers on other machines."""

from __future__ import annotations

import argparse
from contextlib import closing

from tqdm import tqdm

from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.remote import serve
from dsgan_datasets.tools import options

_EXAMPLE = """dsgan serve demo-faces                        # on this machine; a Ray cluster is started if there is none
  dsgan serve my-faces --workers 2 --truncation-psi 0.5
  ray start --head                              # on the first of several machines
  ray start --address=FIRST:6379                # on each other one
  dsgan serve my-faces --address auto           # on any of them: a worker for every GPU of the cluster

In the training script: RemoteSource("my-faces", "ray://FIRST:10001") in place of the generator, with the same options
of the recipe. Ctrl-C or SIGTERM ends the workers; trainers ask others that serve the same, or wait.
Everyone who can reach a Ray cluster can run code on it: keep it inside a network that you trust."""
_KEPT = "its workers have ended: trainers wait for others that serve the same"


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = options.add_verb(
        verbs, "serve", "make samples for trainers on other machines, as workers on a Ray cluster", _EXAMPLE, kept=_KEPT
    )
    options.add_checkpoint(parser)
    for action in parser._actions:
        if action.dest == "device":
            action.help = "of the workers: cuda or cpu (default: cuda if the cluster has a GPU, else cpu)"
    workers = "how many (default: as many as the cluster has room for, also when machines join)"
    parser.add_argument("--workers", type=options.integer(1, 10_000), help=workers)
    cores = "cores of each worker (default: 1)"
    parser.add_argument("--cpus-per-worker", type=options.integer(1, 10_000), default=1, metavar="N", help=cores)
    where = "of the cluster, such as HOST:6379; auto is the one of this machine (default: RAY_ADDRESS, or auto)"
    parser.add_argument("--address", help=where)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Serve until a signal comes."""
    device, args.device = args.device, "cpu"  # the generator is only sent from here
    labeled: LabeledGenerator = options.load(args)
    reports = serve(
        labeled,
        options.short(args.checkpoint),
        address=args.address,
        workers=args.workers,
        device=device,
        cpus_per_worker=args.cpus_per_worker,
    )
    before: tuple[str, ...] = ()
    form = "{desc}{n} samples [{elapsed}, {rate_fmt}{postfix}]"
    with closing(reports), tqdm(unit="sample", mininterval=5, bar_format=form) as bar:
        for now in reports:
            if now.running != before:
                who = ", ".join(now.running) or "no worker"
                served = f"{options.short(args.checkpoint)} (fingerprint {labeled.fingerprint[:8]})"
                with tqdm.external_write_mode():
                    print(f"{served} on {now.place}: {len(now.running)} of {now.wanted} workers: {who}", flush=True)
                before = now.running
            bar.set_description_str(f"{len(now.running)} of {now.wanted} workers, ", refresh=False)
            bar.set_postfix_str(f"{now.bytes / 1e6:.1f} MB" + f", {now.lost} replaced" * bool(now.lost), False)
            bar.update(now.samples - bar.n)
