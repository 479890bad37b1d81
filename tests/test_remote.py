"""Remote samples: bit for bit those of the checkpoint, whatever happens to the workers, and an end to every wait."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_labeled
from remote_yard import Yard
from torch.utils.data import DataLoader

from dsgan_datasets import DSGANDataset, DSGANIterableDataset, LabeledGenerator, Mixture, Sample
from dsgan_datasets.remote import RemoteError, RemoteSource, Request, crew, requests
from dsgan_datasets.remote.messages import pack
from dsgan_datasets.sources import choose_classes
from dsgan_datasets.tools.cli import main


@pytest.fixture(scope="module")
def checkpoint(filtered: LabeledGenerator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a trainer has it: without weights."""
    path = tmp_path_factory.mktemp("remote") / "small"
    filtered.save_pretrained(path)
    for file in path.iterdir():
        if file.name != "config.json":
            file.unlink()
    return path


@pytest.fixture
def yard(monkeypatch: pytest.MonkeyPatch) -> Yard:
    """Looks at who is there at every turn, and waits for nothing long."""
    monkeypatch.setattr(crew, "_LOOK_EVERY", 0)
    monkeypatch.setattr(requests, "_TICK", 0.001)
    return Yard()


def remote(checkpoint: Path, yard: Yard, **options: Any) -> RemoteSource:
    return RemoteSource(checkpoint, transport=lambda: yard, **{"timeout": 5, "request_size": 4, **options})


def equal(got: Sample, expected: Sample) -> bool:
    return got.keys() == expected.keys() and all(
        got[name].dtype == value.dtype and torch.equal(got[name], value) for name, value in expected.items()
    )


def assert_equal(got: Iterator[Sample] | list[Sample], expected: Iterator[Sample] | list[Sample]) -> None:
    for a, b in zip(got, expected, strict=True):
        assert equal(a, b), f"sample {int(b.index)} differs"


@pytest.mark.parametrize("workers", [1, 3])
def test_samples_are_those_of_the_checkpoint(
    checkpoint: Path, filtered: LabeledGenerator, yard: Yard, workers: int
) -> None:
    """Of a filtered generator, in an order with gaps, with every extra."""
    names = yard.serve(filtered, workers)
    source = remote(checkpoint, yard)
    indices, extras = [*range(20), 300, 2**62, 7, 3], ("uncertainty", "latent")
    assert_equal(source.stream(iter(indices), seed=5, extras=extras), filtered.stream(indices, seed=5, extras=extras))
    assert set(yard.made) == set(names)
    got, expected = source.batch([9, 4], seed=5), filtered.batch([9, 4], seed=5)
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    assert source.batch([]).image.shape == filtered.batch([]).image.shape


def test_it_says_what_the_checkpoint_says(checkpoint: Path, filtered: LabeledGenerator, yard: Yard) -> None:
    source = remote(checkpoint, yard)
    for name in ("targets", "image_size", "fingerprint", "license", "group", "num_samples"):
        assert getattr(source, name) == getattr(filtered, name)
    assert yard.looks == 0  # nobody was asked for it


def test_view_groups_stay_together(tmp_path: Path, yard: Yard) -> None:
    labeled = small_labeled(group_size=3, mixing_side="fine", mixing_layer=2)
    labeled.save_pretrained(tmp_path)
    yard.serve(labeled, 2)
    source = remote(tmp_path, yard, request_size=4)
    asked: list[Request] = []
    yard.before = lambda worker, request: asked.append(request)
    assert_equal(iter(DSGANIterableDataset(source, length=18, seed=2)), labeled.stream(range(18), seed=2))
    assert {request.indices[0] % 3 for request in asked} == {0} and {len(request.indices) for request in asked} == {6}


def test_a_stream_survives_any_deaths(checkpoint: Path, filtered: LabeledGenerator, yard: Yard) -> None:
    """Every third answer kills its worker; another joins a little later. No sample is missing, doubled or changed."""
    yard.serve(filtered, 3)
    answers = count(1)

    def kill(worker: str, request: Request) -> None:
        if next(answers) % 3 == 0:
            yard.kill(worker)
            yard.at_look[yard.looks + 3] = lambda: yard.serve(filtered)

    yard.before = kill
    assert_equal(remote(checkpoint, yard).stream(range(48)), filtered.stream(range(48)))
    assert next(answers) > 17


def test_workers_join_while_a_stream_waits(checkpoint: Path, filtered: LabeledGenerator, yard: Yard) -> None:
    yard.at_look = {5: lambda: yard.present.update(starting=None), 9: lambda: yard.serve(filtered, 2)}
    assert_equal(remote(checkpoint, yard).stream(range(12)), filtered.stream(range(12)))
    assert yard.looks > 9


def test_nothing_piles_up(checkpoint: Path, filtered: LabeledGenerator, yard: Yard) -> None:
    """However many workers there are, and however slow the consumer is."""
    names, taken = yard.serve(filtered, 2), count()
    stream = remote(checkpoint, yard).stream((next(taken) for _ in range(10**6)), seed=1)
    for _ in islice(stream, 9):
        assert len(yard.calls) <= 4
    assert next(taken) <= 9 + 4 * (2 * 3) and {yard.most[name] for name in names} == {2}
    yard.serve(filtered, 60)
    for _ in islice(stream, 9):
        pass
    assert len(yard.calls) <= requests._MOST and next(taken) <= 20 + 4 * requests._MOST


def test_trainers_share_workers_and_samples(checkpoint: Path, filtered: LabeledGenerator, yard: Yard) -> None:
    """Three ranks over two epochs, and a worker that leaves in the first."""
    names = yard.serve(filtered, 2)
    datasets = [
        DSGANIterableDataset(remote(checkpoint, yard), length=24, global_batch=6, rank=rank, world_size=3)
        for rank in range(3)
    ]
    got: list[Sample] = []
    for epoch in range(2):
        for dataset in datasets:
            dataset.set_epoch(epoch)
        iterators = [iter(dataset) for dataset in datasets]
        for _ in range(4):
            for iterator in iterators:
                got += islice(iterator, 2)
            yard.kill(names[0])
    assert_equal(got, filtered.stream(range(48)))


def test_resuming_is_by_position(checkpoint: Path, filtered: LabeledGenerator, yard: Yard) -> None:
    """A state moves between a remote and a local source, in both directions."""
    yard.serve(filtered, 2)
    near, far = (
        lambda source=source: DSGANIterableDataset(source, length=24, seed=3, batch_size=3)
        for source in (filtered, remote(checkpoint, yard))
    )
    for before, after in ((far, far), (far, near), (near, far)):
        first, second = before(), after()
        got = list(islice(iterator := iter(first), 13))
        state = first.state_dict()
        iterator.close()
        second.load_state_dict(state)
        assert_equal([*got, *second], filtered.stream(range(24), seed=3))


def test_every_dataset_takes_it(checkpoint: Path, filtered: LabeledGenerator, yard: Yard) -> None:
    yard.serve(filtered, 2)
    source = remote(checkpoint, yard)
    dataset = DSGANDataset(source, 30, seed=4)
    assert_equal(dataset.__getitems__([29, 0, -1]), DSGANDataset(filtered, 30, seed=4).__getitems__([29, 0, -1]))
    batches = list(DataLoader(DSGANIterableDataset(source, length=8), batch_size=4))
    assert torch.equal(torch.cat([batch.image for batch in batches]), filtered.generate(range(8)).image)
    mixed = [
        list(Mixture([DSGANIterableDataset(each), DSGANDataset(filtered, 3, seed=9)], weights=[3, 1], length=12))
        for each in (source, filtered)
    ]
    assert_equal(*mixed)
    chosen = choose_classes(source, ["hat", "background"])
    assert chosen.schema.classes == ("hat", "background")
    assert torch.equal(chosen.batch([3]).mask == 0, filtered.batch([3]).mask == 3)


def test_it_travels_without_its_connection(checkpoint: Path, filtered: LabeledGenerator) -> None:
    source = RemoteSource(checkpoint, "ray://somewhere:10001")
    copy = pickle.loads(pickle.dumps(source))
    assert (copy.fingerprint, copy.address, copy.identity) == (source.fingerprint, source.address, source.identity)
    assert len(DSGANIterableDataset(copy, length=5)) == 5


@pytest.mark.parametrize(
    "claims, message",
    [
        ({"made_with": {"torch": "1.0"}}, "torch 1.0, not 2"),
        ({"made_with": {"device": {"type": "cuda", "name": "A100"}}}, "device cuda, A100, not cpu"),
        ({"made_with": {"dsgan_datasets": "0.0.1"}}, r"dsgan_datasets 0\.0\.1, not 0.*same version on both sides"),
        ({"trouble": "CUDA went away"}, "cannot work: CUDA went away"),
    ],
)
def test_workers_that_would_make_other_samples_are_not_asked(
    checkpoint: Path, filtered: LabeledGenerator, yard: Yard, claims: dict[str, Any], message: str
) -> None:
    yard.serve(filtered)
    (other,) = yard.serve(filtered, **claims)
    with pytest.warns(UserWarning, match=rf"remote worker \S+:\d+ .*{message}.*: it is not asked"):
        assert_equal(remote(checkpoint, yard).stream(range(16)), filtered.stream(range(16)))
    assert other not in yard.made


def test_if_all_are_unfit_that_is_an_error_at_once(checkpoint: Path, filtered: LabeledGenerator, yard: Yard) -> None:
    yard.serve(filtered, 2, made_with={"dsgan_datasets": "9.9"})
    with pytest.warns(UserWarning), pytest.raises(RemoteError, match=r"has dsgan_datasets 9\.9, not"):
        next(remote(checkpoint, yard, timeout=1000).stream([0]))


def test_nobody_serves_this(checkpoint: Path, yard: Yard) -> None:
    """Another fingerprint is named, and a wait has an end."""
    yard.serve(small_labeled())
    with pytest.raises(
        RemoteError,
        match=r"no samples for 0 s: nobody serves small \(fingerprint \w{8}\) on the yard; others are "
        r"served: small \(\w{8}\).*Start workers with `dsgan serve small`",
    ):
        next(remote(checkpoint, yard, timeout=0.1).stream([0]))


@pytest.mark.parametrize("rest", [30, 0.01])
def test_everybody_dies(
    checkpoint: Path, filtered: LabeledGenerator, yard: Yard, monkeypatch: pytest.MonkeyPatch, rest: float
) -> None:
    """Also if the timeout is longer than a lost worker is left alone: it was asked again and again, without an end."""
    monkeypatch.setattr(crew, "_REST", rest)
    yard.serve(filtered, 2)
    stream = remote(checkpoint, yard, timeout=0.1).stream(range(99))
    got = list(islice(stream, 6))
    yard.present.clear()
    yard.away = "it does not answer"
    with pytest.raises(RemoteError, match="nobody serves .*; it does not answer; lost last: worker .*it is gone"):
        got += stream
    assert_equal(got, filtered.stream(range(len(got))))


def test_a_request_that_kills_every_worker_is_given_up(
    checkpoint: Path, filtered: LabeledGenerator, yard: Yard
) -> None:
    yard.serve(filtered, 9)
    yard.before = lambda worker, request: yard.kill(worker) if 6 in request.indices else None
    stream = remote(checkpoint, yard).stream(range(99))
    assert_equal(list(islice(stream, 4)), filtered.stream(range(4)))
    with pytest.raises(RemoteError, match=r"4 workers in turn failed at samples 4 … 7; .*it died\. Do they"):
        next(stream)


def test_a_worker_without_memory_is_spared(checkpoint: Path, filtered: LabeledGenerator, yard: Yard) -> None:
    poor, rich = yard.serve(filtered, 2)
    full = {"error": "not enough memory", "elsewhere": True}
    yard.before = lambda worker, request: full if worker == poor else None
    assert_equal(remote(checkpoint, yard).stream(range(20)), filtered.stream(range(20)))
    assert yard.made[poor] <= 2 < yard.made[rich]


def test_a_sample_that_cannot_be_made_is_an_error(checkpoint: Path, filtered: LabeledGenerator, yard: Yard) -> None:
    """What the generator says, and who said it: asking others would give the same."""
    yard.serve(filtered)
    with pytest.raises(RemoteError, match=r"worker \S+:\d+ cannot make sample 0: extras are .* not 'depth'"):
        next(remote(checkpoint, yard).stream([0], extras=["depth"]))
    with pytest.raises(ValueError, match="indices"):
        next(remote(checkpoint, yard).stream([-1]))


def test_a_silent_worker_is_given_up(
    checkpoint: Path, filtered: LabeledGenerator, yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_ASK_AFTER", 0)
    hung, _ = yard.serve(filtered, 2)
    yard.silent.add(hung)
    with pytest.warns(UserWarning, match=r"remote worker \S+:\d+ made nothing for \d s: others are asked"):
        assert_equal(remote(checkpoint, yard, timeout=0.2).stream(range(24)), filtered.stream(range(24)))


def test_a_worker_that_is_busy_for_others_is_waited_for(
    checkpoint: Path, filtered: LabeledGenerator, yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_ASK_AFTER", 0)
    (busy,) = yard.serve(filtered)
    made = count()
    monkeypatch.setattr(yard, "status", lambda worker, timeout: {"samples": next(made)})
    stream = remote(checkpoint, yard, timeout=0.05).stream(range(4))
    yard.silent.add(busy)
    looks = count()
    monkeypatch.setattr(yard, "workers", _after(yard, lambda: next(looks) > 30 and yard.silent.clear()))
    assert_equal(stream, filtered.stream(range(4)))


def _after(yard: Yard, action: Any) -> Any:
    workers = yard.workers
    return lambda: (action(), workers())[1]


def test_answers_are_checked(checkpoint: Path, filtered: LabeledGenerator, yard: Yard) -> None:
    yard.serve(filtered)
    for samples, message in (
        (pack(filtered.generate([1])), "is about other samples than sample 0"),
        ({"index": ("int64", torch.tensor([0]).numpy())}, "has no image, mask"),
    ):
        yard.before = lambda worker, request, samples=samples: {"samples": samples}
        with pytest.raises(RemoteError, match=rf"worker \S+:\d+: the answer {message}"):
            next(remote(checkpoint, yard).stream([0]))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"address": 7}, "address must be that of a Ray cluster"),
        ({"timeout": 0}, "timeout must be a number of seconds above 0"),
        ({"timeout": float("nan")}, "timeout must be"),
        ({"request_size": 0}, "request_size must be an integer"),
    ],
)
def test_arguments(checkpoint: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RemoteSource(checkpoint, **options)


def test_serving_says_what_it_cannot_do(capsys: pytest.CaptureFixture[str]) -> None:
    """Before it looks for a cluster."""
    assert main(["serve", "demo-faces", "--workers", "0"]) == 2
    assert main(["serve", "demo-faces", "--device", "cuda:1"]) == 1
    assert 'device is what workers compute on, "cuda" or "cpu", not \'cuda:1\'' in capsys.readouterr().err
