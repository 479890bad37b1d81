"""Trains from a LazyConfig: python examples/detectron2/train_lazy.py --config-file FILE.py [key=value …]"""

import argparse

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import SimpleTrainer, default_argument_parser, default_setup, hooks
from detectron2.evaluation import inference_on_dataset
from detectron2.utils.events import CommonMetricPrinter

from dsgan_datasets.adapters.detectron2 import ResumeHook


def main(args: argparse.Namespace) -> dict:
    cfg = LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.opts)
    default_setup(cfg, args)
    model = instantiate(cfg.model).to(cfg.train.device)
    cfg.optimizer.params.model = model
    trainer = SimpleTrainer(model, instantiate(cfg.dataloader.train), instantiate(cfg.optimizer))
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    writers = hooks.PeriodicWriter([CommonMetricPrinter(cfg.train.max_iter)], period=20)
    trainer.register_hooks([ResumeHook(), hooks.PeriodicCheckpointer(checkpointer, period=100), writers])
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
    start = trainer.iter + 1 if args.resume and checkpointer.has_checkpoint() else 0
    trainer.train(start, cfg.train.max_iter)
    return inference_on_dataset(model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator))


if __name__ == "__main__":
    main(default_argument_parser().parse_args())
