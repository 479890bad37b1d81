"""What each rank of a trainer reads: ``python -m ranks TRAINER FOLDER CHECKPOINT RUNS``, for test_ranks.py.

This process imports the framework and computes nothing, so that it may fork the ranks of one run after the other.
A function of `TRAINERS` trains as its guide shows, from global batch `start` (continuing what an earlier run saved
there) to `stop`, and saves there.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sources import NumberSource
from test_distributed import _free_port
from torch.utils.data import DataLoader

from dsgan_datasets import DSGANDataset, DSGANIterableDataset, LabeledGenerator, Mixture
from dsgan_datasets.export import ExportInput, export
from dsgan_datasets.sources.share import current_rank

#: B, samples of a global batch; global batches of an epoch, and of two.
B, EPOCH, END = 12, 4, 8
#: In an epoch of Ultralytics.
FILES = 3
#: Of a whole run: the ranks may take this long.
LIMIT = 120.0

Steps = list[list[int]]


class Run(NamedTuple):
    """One training, or a part of one.

    Attributes:
        folder: where it finds and leaves what it saves.
        ranks: 1 … 3.
        start, stop: global batches.
        checkpoint: of a small generator, for trainers that know checkpoints only.
    """

    folder: str
    ranks: int
    start: int
    stop: int
    checkpoint: str

    @property
    def batch_size(self) -> int:
        """Of one rank."""
        return B // self.ranks

    def saved(self, step: int) -> Path:
        """Where a state of this step is, for trainers that save nothing themselves."""
        return Path(self.folder, f"{step}.pt")


def loop(stream: Any, run: Run) -> Steps:
    """A loop of one's own, over a stream that names neither rank nor world size."""
    if run.start:
        stream.load_state_dict(torch.load(run.saved(run.start)))
    loader, seen, step = DataLoader(stream, batch_size=run.batch_size), [], run.start
    while step < run.stop:
        for batch in loader:
            seen.append(batch["index"].tolist())
            step += 1
            if step == run.stop:
                torch.save(stream.state_dict(step=(step - 1) % EPOCH + 1), run.saved(step))
                break
    return seen


def stream(run: Run) -> Steps:
    """PyTorch alone."""
    return loop(DSGANIterableDataset(NumberSource(), length=EPOCH * B, global_batch=B), run)


def mixture(run: Run) -> Steps:
    """Two parts, each with epochs of its own."""
    parts = [DSGANIterableDataset(NumberSource(), start=100, length=17), DSGANDataset(NumberSource(), 5)]
    return loop(Mixture(parts, [2, 1], length=EPOCH * B, global_batch=B), run)


def accelerate(run: Run) -> Steps:
    """The loader is not prepared."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == run.ranks
    accelerator.prepare(torch.nn.Linear(1, 1))
    return loop(DSGANIterableDataset(NumberSource(), length=EPOCH * B, global_batch=B), run)


def prepared(run: Run) -> Steps:
    """Accelerate shares out the batches."""
    from accelerate import Accelerator

    data = DSGANIterableDataset(NumberSource(), length=EPOCH * B, global_batch=B, split_by_rank=False)
    loader: Any = Accelerator(cpu=True).prepare(DataLoader(data, batch_size=run.batch_size))
    if run.start:
        state = torch.load(run.saved(run.start))
        data.load_state_dict(state)
        loader.set_epoch(state["epoch"])
    seen: Steps = []
    for _ in range(run.start // EPOCH, 2):
        for batch in loader:
            seen.append(batch["index"].tolist())
            if run.start + len(seen) == run.stop:
                epoch, step = divmod(run.stop, EPOCH)
                torch.save({**data.state_dict(step=0), "epoch": epoch, "batches": step}, run.saved(run.stop))
                return seen
    raise AssertionError(f"the data end after {seen}")


def lightning(run: Run) -> Steps:
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint
    from test_trainers import network

    from dsgan_datasets.adapters.lightning import DSGANDataModule

    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=run.ranks,
        strategy="ddp" if run.ranks > 1 else "auto",
        max_steps=run.stop,
        callbacks=[ModelCheckpoint(run.folder, "{step}", every_n_train_steps=1, save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    net = network()
    data = DSGANDataModule(NumberSource(), batch_size=run.batch_size, length=EPOCH * B)
    trainer.fit(net, datamodule=data, ckpt_path=f"{run.folder}/step={run.start}.ckpt" if run.start else None)
    seen: Steps = net.seen
    return seen


def transformers(run: Run) -> Steps:
    import transformers

    from dsgan_datasets.adapters.huggingface import for_trainer

    class Model(torch.nn.Module):
        """Notes the numbers that the pixels of `NumberSource` are."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.seen: Steps = []

        def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            self.seen.append(NumberSource.numbers(pixel_values))
            return {"loss": self.layer(pixel_values[:, 0, 0]).mean()}

    model = Model()
    arguments = transformers.TrainingArguments(
        run.folder,
        max_steps=run.stop,
        per_device_train_batch_size=run.batch_size,
        save_steps=run.stop,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    data = for_trainer(DSGANIterableDataset(NumberSource(), length=EPOCH * B), preprocess=torch.Tensor.float)
    trainer = transformers.Trainer(model, arguments, train_dataset=data)
    assert trainer.accelerator.num_processes == run.ranks
    trainer.train(resume_from_checkpoint=f"{run.folder}/checkpoint-{run.start}" if run.start else None)
    return model.seen


def detectron2(run: Run) -> Steps:
    import detectron2_support as support
    from detectron2.engine import defaults
    from detectron2.utils import comm

    if run.ranks > 1:
        comm.create_local_process_group(run.ranks)
        # It always passes device_ids, which DistributedDataParallel refuses on the CPU.
        create_ddp_model = defaults.create_ddp_model
        defaults.create_ddp_model = lambda *a, **k: create_ddp_model(*a, **{**k, "device_ids": None})
    support.adapter.register("small", run.checkpoint, device="cpu")
    config = support.config(Path(run.folder), SOLVER__IMS_PER_BATCH=B, SOLVER__MAX_ITER=run.stop)
    seen: Steps = support.train(support.StockTrainer, config, resume=run.start > 0)[1]
    return seen


def mmseg(run: Run) -> Steps:
    import mmseg_support as support

    support.register_all_modules()
    data = support.stream(run.checkpoint, length=EPOCH * B)
    options: dict[str, Any] = {"custom_hooks": [{"type": "DSGANResumeHook"}]}
    options["default_hooks"] = {"checkpoint": {"type": "CheckpointHook", "interval": run.stop, "by_epoch": False}}
    if run.start:
        options |= {"resume": True, "load_from": f"{run.folder}/iter_{run.start}.pth"}
    if run.ranks > 1:
        options["model_wrapper_cfg"] = {"type": "MMDistributedDataParallel", "device_ids": None}
    loader = support.loader(data, batch_size=run.batch_size)
    seen = support.run(Path(run.folder), loader, iters=run.stop, **options).indices
    return [seen[i : i + run.batch_size] for i in range(0, len(seen), run.batch_size)]


def ultralytics(run: Run) -> Steps:
    """Its dataset and loader, with files mixed in: Ultralytics itself trains on several ranks on GPUs only."""
    import ultralytics_support as support

    from dsgan_datasets.adapters.ultralytics.loading import build_loader

    folder = Path(run.folder, f"files-{run.start}-{current_rank()}")
    faces = LabeledGenerator.from_pretrained(run.checkpoint, device="cpu")
    export(ExportInput.generated(faces, FILES), folder, "yolo-seg", splits={})
    data = support.dataset(folder / "images", files=True, checkpoint=run.checkpoint, length=EPOCH * B - FILES)
    loader = build_loader(data, run.batch_size, 0, train=True)

    def number(path: str) -> int:
        """Files are numbered -1, -2, …"""
        return -1 - int(Path(path).stem) if Path(path).is_file() else support.numbers([path])[0]

    seen: Steps = []
    for epoch in range(run.start // EPOCH, run.stop // EPOCH):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        seen += [list(map(number, batch["im_file"])) for batch in loader]
    return seen


TRAINERS: dict[str, Callable[[Run], Steps]] = {
    trainer.__name__: trainer
    for trainer in (
        stream, mixture, accelerate, prepared, lightning, transformers, detectron2, mmseg, ultralytics,
    )
}  # fmt: skip

#: What a trainer needs; imported once.
MODULES = {
    "accelerate": ["accelerate"],
    "prepared": ["accelerate"],
    "lightning": ["lightning", "dsgan_datasets.adapters.lightning", "test_trainers"],
    "transformers": ["transformers.trainer", "dsgan_datasets.adapters.huggingface"],
    "detectron2": ["detectron2", "detectron2_support"],
    "mmseg": ["mmseg.models", "mmseg.datasets", "mmseg.engine", "mmseg.evaluation", "mmseg_support"],
    "ultralytics": ["ultralytics", "ultralytics_support"],
}


def _rank(rank: int, trainer: str, run: Run, port: int) -> None:
    """One rank of a run, as a launcher starts it."""
    numbers = {"MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
    numbers |= {"WORLD_SIZE": run.ranks, "LOCAL_WORLD_SIZE": run.ranks, "TORCHELASTIC_RUN_ID": port}
    os.environ.update(MASTER_ADDR="127.0.0.1", **{name: str(number) for name, number in numbers.items()})
    torch.set_num_threads(1)
    os.chdir(run.folder)
    if run.ranks > 1:
        dist.init_process_group("gloo", rank=rank, world_size=run.ranks)
    seen = TRAINERS[trainer](run)
    Path(run.folder, f"seen-{rank}.json").write_text(json.dumps(seen))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _steps(trainer: str, run: Run) -> Iterator[list[int]]:
    """The indices of each global batch, of all ranks in turn."""
    Path(run.folder).mkdir(exist_ok=True)
    running = mp.start_processes(
        _rank, args=(trainer, run, _free_port()), nprocs=run.ranks, join=False, start_method="fork"
    )
    try:
        # It returns when one more of them has ended.
        if not any(running.join(timeout=LIMIT) for _ in range(run.ranks)):
            raise TimeoutError(f"{trainer}: the ranks hang in {run}")
    finally:
        for process in running.processes:
            process.kill()
    parts = [json.loads(Path(run.folder, f"seen-{rank}.json").read_text()) for rank in range(run.ranks)]
    for step in zip(*parts, strict=True):
        yield [index for part in step for index in part]


def main(trainer: str, folder: str, checkpoint: str, runs: str) -> None:
    """Write what all ranks of some runs saw to ``seen.json``."""
    # DistributedDataParallel imports the first of these when it is made.
    for module in ("torch._dynamo", *MODULES.get(trainer, [])):
        import_module(module)
    seen = []
    for name, *numbers in json.loads(runs):
        seen.append(list(_steps(trainer, Run(str(Path(folder, name)), *numbers, checkpoint))))
    Path(folder, "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
