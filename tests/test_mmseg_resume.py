"""A resumed training of MMEngine continues with the next sample and regenerates none of the past."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("one_thread")]
pytest.importorskip("mmseg")

import mmseg_support  # noqa: E402
from mmengine.registry import LOOPS  # noqa: E402
from mmengine.runner import IterBasedTrainLoop  # noqa: E402
from mmseg.utils import register_all_modules  # noqa: E402
from mmseg_support import (  # noqa: E402
    IS_FORK,
    dataset,
    loader,
    run,
    stream,
)

checkpoint = mmseg_support.checkpoint
scope = mmseg_support.scope
real = mmseg_support.real


class EagerIterator:
    """As the original MMEngine's: it starts the workers at once, and cannot skip."""

    def __init__(self, dataloader: Any) -> None:
        self._dataloader = dataloader
        self._iterator = iter(dataloader)

    def __next__(self) -> Any:
        return next(self._iterator)


@LOOPS.register_module()
class OriginalLoop(IterBasedTrainLoop):  # type: ignore[misc]
    """What a resume does in the original MMEngine 0.10.7, on its fork, beside which it cannot be installed.

    The iterator is made with the loop, and every past batch is fetched and thrown away.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dataloader_iterator = EagerIterator(self.dataloader)
        del self.fast_forward_on_resume

    def run(self) -> None:
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        for _ in range(self._iter):
            next(self.dataloader_iterator)
        while self._iter < self._max_iters:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
        self.runner.call_hook("after_train")


HOOK = {"custom_hooks": [{"type": "DSGANResumeHook"}]}
ORIGINAL = {"type": "OriginalLoop"}
UNWINDING = {"fast_forward_on_resume": True}  # the fork leaves the data where it is
LOOPS_HERE = {"as installed": {}, **({"as the original": ORIGINAL, "fork, switched off": UNWINDING} if IS_FORK else {})}


@pytest.fixture(scope="session", params=[("map", 0), ("map", 2), ("stream", 0), ("stream", 2)], ids=str)
def interrupted(request: Any, checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """(train loader, samples of 9 iterations, checkpoint after 5)."""
    register_all_modules()
    kind, workers = request.param
    data = {"map": dataset, "stream": stream}[kind](checkpoint)
    train = loader(data, num_workers=workers, persistent_workers=workers > 0)
    folder = tmp_path_factory.mktemp("interrupted")
    saving = {"default_hooks": {"checkpoint": {"type": "CheckpointHook", "interval": 5, "by_epoch": False}}}
    return train, run(folder, train, iters=9, **saving, **HOOK).indices, str(folder / "iter_5.pth")


@pytest.mark.parametrize("loop", LOOPS_HERE.values(), ids=LOOPS_HERE)
def test_resuming_with_the_hook(
    tmp_path: Path, interrupted: tuple[Any, ...], loop: dict[str, Any], asked: list[list[int]]
) -> None:
    train, expected, saved = interrupted
    asked.clear()
    seen = run(tmp_path, train, iters=9, loop=loop, resume=True, load_from=saved, **HOOK)
    assert seen.indices == expected[15:]
    if train["num_workers"] == 0:
        generated = list(itertools.chain(*asked))
        assert generated[:12] == expected[15:]
        if train["sampler"]:  # a stream is generated ahead
            assert len(generated) == 12


@pytest.mark.parametrize("interrupted", [("map", 0), ("stream", 0)], indirect=True, ids=str)
def test_resuming_without_the_hook(tmp_path: Path, interrupted: tuple[Any, ...], asked: list[list[int]]) -> None:
    """The fork needs none for an InfiniteSampler. Elsewhere the past comes again: the checks above can fail."""
    train, expected, saved = interrupted
    past_of = {"as installed": 0 if IS_FORK and train["sampler"] else 15, "as the original": 15}
    for name in past_of.keys() & LOOPS_HERE:
        loop, past = LOOPS_HERE[name], past_of[name]
        asked.clear()
        assert run(tmp_path, train, iters=9, loop=loop, resume=True, load_from=saved).indices == expected[15:]
        assert list(itertools.chain(*asked))[: past + 12] == expected[15 - past :]
    if IS_FORK:
        seen = run(tmp_path, train, iters=9, loop=UNWINDING, resume=True, load_from=saved)
        assert seen.indices == expected[:12]


def test_a_sampler_that_the_hook_cannot_advance(tmp_path: Path, checkpoint: str) -> None:
    saving = {"default_hooks": {"checkpoint": {"type": "CheckpointHook", "interval": 1, "by_epoch": False}}}
    train = loader(dataset(checkpoint), sampler={"type": "DefaultSampler"})
    run(tmp_path, train, iters=1, **saving)
    resumed = {"resume": True, "load_from": str(tmp_path / "iter_1.pth"), "log_level": "WARNING"}
    run(tmp_path, train, iters=2, **resumed, **HOOK)
    assert any("cannot advance a DefaultSampler" in log.read_text() for log in tmp_path.rglob("*.log"))


@pytest.mark.parametrize(("before", "after"), [(2, 0), (0, 2)])
def test_a_stream_resumes_with_other_workers(tmp_path: Path, checkpoint: str, before: int, after: int) -> None:
    """And beyond the end of an epoch, which is followed by the next one."""
    saving = {"default_hooks": {"checkpoint": {"type": "CheckpointHook", "interval": 3, "by_epoch": False}}}
    data = stream(checkpoint, length=12)  # four batches of three, then the next ones
    order = [*range(24)]
    seen = run(tmp_path, loader(data, num_workers=before), iters=6, **saving, **HOOK)
    assert seen.indices == order[:18]
    for iteration in (3, 6):
        resumed = {"resume": True, "load_from": str(tmp_path / f"iter_{iteration}.pth")}
        seen = run(tmp_path / str(iteration), loader(data, num_workers=after), iters=8, **resumed, **HOOK)
        assert seen.indices == order[3 * iteration :]
