"""Trains what a config says, as MMSegmentation's tools/train.py does: python train.py demo_faces.py"""

import argparse

from mmengine.config import Config, DictAction
from mmengine.runner import Runner

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--work-dir", default="work_dirs/demo_faces", help="for logs, pictures and checkpoints")
    parser.add_argument("--resume", action="store_true", help="resume after the last checkpoint in there")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, default={}, help="train_cfg.max_iters=50 …")
    args = parser.parse_args()
    config = Config.fromfile(args.config)
    config.merge_from_dict({"work_dir": args.work_dir, "resume": args.resume, **args.cfg_options})
    Runner.from_cfg(config).train()
