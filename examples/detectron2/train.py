"""Trains and evaluates from a config file: python examples/detectron2/train.py --config-file FILE.yaml [KEY VALUE …]"""

import argparse

from detectron2.config import get_cfg
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import DatasetEvaluator

from dsgan_datasets.adapters import detectron2 as dsgan


class Trainer(DefaultTrainer):
    """The fast path in training. `DefaultTrainer` itself works too; its mapper then reads samples as files."""

    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg, mapper=dsgan.DSGANDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_evaluator(cls, cfg, dataset_name) -> DatasetEvaluator:
        return dsgan.build_evaluator(dataset_name, cfg.OUTPUT_DIR)


def main(args: argparse.Namespace) -> dict:
    cfg = get_cfg()
    dsgan.add_dsgan_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    dsgan.register_from_config(cfg)
    default_setup(cfg, args)
    trainer = Trainer(cfg)
    trainer.register_hooks([dsgan.ResumeHook()])
    trainer.resume_or_load(args.resume)
    trainer.train()
    return trainer._last_eval_results


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(main, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,))
