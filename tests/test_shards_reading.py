"""Reading shards: the same samples as the live stream, shared out exactly, resumed exactly."""

from __future__ import annotations

import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import small_labeled
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from torchvision.transforms import v2

from dsgan_datasets import (
    DSGANDataset,
    DSGANIterableDataset,
    LabeledGenerator,
    Sample,
    ShardDataset,
    ShardError,
    ShardMapDataset,
    write_shards,
)
from dsgan_datasets.shards import Encoding
from dsgan_datasets.shards.source import ShardSource
from dsgan_datasets.sources.base import SampleSource

SAMPLES = 23


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, filtered: LabeledGenerator) -> Path:
    path = tmp_path_factory.mktemp("shards")
    write_shards(filtered, path, range(100, 100 + SAMPLES), seed=4, samples_per_shard=5)
    return path


def same(a: Sample, b: Sample) -> bool:
    return set(a) == set(b) and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def indices(samples: Iterator[Sample]) -> list[int]:
    return [int(sample.index) for sample in samples]


def test_both_give_what_the_live_stream_gives(folder: Path, filtered: LabeledGenerator) -> None:
    live = list(filtered.stream(range(100, 100 + SAMPLES), seed=4))
    assert all(same(a, b) for a, b in zip(ShardDataset(folder), live, strict=True))
    dataset = ShardMapDataset(folder)
    assert len(dataset) == SAMPLES and dataset.schema == filtered.schema and dataset.license == filtered.license
    assert all(same(dataset[i], live[i]) for i in (22, 0, 5, 4, -1, -SAMPLES))
    with pytest.raises(IndexError, match="out of range"):
        dataset[SAMPLES]
    assert [int(s.index) for s in dataset.__getitems__([3, 1])] == [103, 101]


@pytest.mark.parametrize("uneven", ["keep", "drop", "pad"])
@pytest.mark.parametrize("shuffle", [0, 6])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 30])
def test_ranks_share_without_gap_or_overlap(folder: Path, uneven: str, shuffle: int, world_size: int) -> None:
    shares = []
    for rank in range(world_size):
        dataset = ShardDataset(folder, shuffle=shuffle, rank=rank, world_size=world_size, uneven=uneven)  # type: ignore[arg-type]
        shares.append(indices(dataset))
        assert len(dataset) == len(shares[-1])
    found = sorted(i for share in shares for i in share)
    sizes = {len(share) for share in shares}
    if uneven == "keep":
        assert found == list(range(100, 100 + SAMPLES)) and max(sizes) - min(sizes) <= 1
    elif uneven == "drop":
        assert len(sizes) == 1 and len(set(found)) == len(found) == SAMPLES - SAMPLES % world_size
    else:
        assert len(sizes) == 1 and set(found) == set(range(100, 100 + SAMPLES))
        assert len(found) == SAMPLES + -SAMPLES % world_size


@pytest.mark.parametrize("workers", [0, 1, 3, 6])
def test_workers_share_what_their_rank_has(folder: Path, workers: int) -> None:
    """More workers than shards too."""
    dataset = ShardDataset(folder, shuffle=4, rank=1, world_size=2)
    expected = set(indices(ShardDataset(folder, shuffle=4, rank=1, world_size=2)))
    found = [int(i) for batch in DataLoader(dataset, batch_size=2, num_workers=workers) for i in batch.index]
    assert set(found) == expected and len(found) == len(expected) == len(dataset)


def test_shuffling_depends_on_seed_and_epoch_only(folder: Path) -> None:
    dataset = ShardDataset(folder, shuffle=8, seed=1)
    first, second = indices(dataset), indices(dataset)
    dataset.set_epoch(0)
    again = indices(dataset)
    assert first == again != sorted(first)
    assert second != first and sorted(second) == sorted(first)
    assert indices(ShardDataset(folder, shuffle=8, seed=2)) != first
    repeated = ShardDataset(folder, shuffle=8, seed=1, same_epoch=True)
    repeated.set_epoch(1)
    assert indices(repeated) == first


@pytest.mark.parametrize("shuffle", [1, 6, 23, 100])
def test_every_order_is_a_permutation(folder: Path, shuffle: int) -> None:
    """The same for any number of ranks, and samples stay within a window."""
    whole = indices(ShardDataset(folder, shuffle=shuffle, seed=2))
    assert sorted(whole) == list(range(100, 100 + SAMPLES))
    parts = [
        indices(ShardDataset(folder, shuffle=shuffle, seed=2, rank=r, world_size=3, uneven="keep")) for r in range(3)
    ]
    assert [parts[i % 3][i // 3] for i in range(SAMPLES)] == whole


@pytest.mark.slow
def test_shuffled_view_groups_stay_together(tmp_path: Path) -> None:
    """Ranks used to cut an epoch anywhere: 12 samples of groups of four for two ranks were 0-5 and 6-11."""
    labeled = small_labeled(group_size=4, mixing_layer=2)
    write_shards(labeled, tmp_path / "whole", range(8, 40), samples_per_shard=8)
    for shuffle in (0, 10):
        seen = []
        for rank in range(2):
            for workers in (0, 2):
                dataset = ShardDataset(tmp_path / "whole", shuffle=shuffle, rank=rank, world_size=2)
                found = [
                    int(i) for batch in DataLoader(dataset, batch_size=4, num_workers=workers) for i in batch.index
                ]
                assert all(
                    i % 4 == place % 4 and i // 4 == found[place - place % 4] // 4 for place, i in enumerate(found)
                )
            seen += found
        assert sorted(seen) == list(range(8, 40))
    write_shards(labeled, tmp_path / "one", range(8, 40), samples_per_shard=999)  # one shard: nothing is cut
    assert ShardSource(tmp_path / "whole").group == ShardSource(tmp_path / "one").group == 4
    assert ShardSource(tmp_path / "whole" / "shard-000001.tar").group == 4


def test_a_resumed_stream_reads_nothing_of_the_past(folder: Path, tmp_path: Path) -> None:
    """The shards that it is beyond of are not even opened."""
    place = broken(folder, tmp_path, lambda data: b"")
    (place / "shard-000000.tar").unlink()
    dataset = ShardDataset(place, global_batch=2)
    dataset.load_state_dict(dataset.state_dict(step=5))
    assert indices(dataset) == list(range(110, 100 + SAMPLES))


def test_a_source_keeps_recorded_indices(folder: Path, filtered: LabeledGenerator) -> None:
    """Numbers are places; `sample.index` is what the sample was generated as."""
    source = ShardSource(folder, read_together=9)
    live = filtered.generate([120, 103, 103, 122], seed=4)
    batch = source.batch([20, 3, 3, 22])
    assert batch.index.tolist() == [120, 103, 103, 122] and torch.equal(batch.image, live.image)
    order = [20, 3, 3, 22, 0, 1, 2, 7, 5, 13]
    assert [int(s.index) - 100 for s in source.stream(order)] == order
    assert isinstance(source, SampleSource) and source.num_samples == SAMPLES


def test_extras(folder: Path, tmp_path: Path, filtered: LabeledGenerator) -> None:
    write_shards(filtered, tmp_path, range(3), encoding=Encoding(latent=True))
    for kind in (ShardDataset, ShardMapDataset):
        sample = next(iter(kind(tmp_path, extras=("latent",))))
        assert torch.equal(sample.latent, filtered.generate([0], extras=("latent",)).latent[0])
        with pytest.raises(
            ValueError, match=r"do not hold 'uncertainty': write them with Encoding\(uncertainty=True\)"
        ):
            kind(tmp_path, extras=("uncertainty",))
        with pytest.raises(ValueError, match="extras are uncertainty and latent, not 'depth'"):
            kind(folder, extras=("depth",))


def test_generic_datasets_take_shards(folder: Path) -> None:
    source = ShardSource(folder)
    assert indices(DSGANIterableDataset(source, start=20)) == [120, 121, 122]
    assert int(DSGANDataset(source)[-1].index) == 122


@pytest.mark.parametrize("shuffle", [0, 6])
def test_resuming_goes_on_exactly(folder: Path, shuffle: int) -> None:
    one = ShardDataset(folder, shuffle=shuffle)
    whole, following = indices(one), indices(one)
    for stop in (0, 1, 9, SAMPLES):
        dataset = ShardDataset(folder, shuffle=shuffle)
        stream = iter(dataset)
        head = [int(next(stream).index) for _ in range(stop)]
        state = pickle.loads(pickle.dumps(dataset.state_dict()))
        resumed = ShardDataset(folder, shuffle=shuffle)
        resumed.load_state_dict(state)
        assert head + indices(resumed) == whole
        assert indices(resumed) == following  # the next epoch begins at its beginning


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stateful_loader_resumes(folder: Path, workers: int) -> None:
    def loader() -> StatefulDataLoader:
        return StatefulDataLoader(ShardDataset(folder, shuffle=6), batch_size=2, num_workers=workers)

    whole = [batch.index.tolist() for batch in loader()]
    first = loader()
    running = iter(first)
    head = [next(running).index.tolist() for _ in range(4)]
    second = loader()
    second.load_state_dict(first.state_dict())
    assert head + [batch.index.tolist() for batch in second] == whole


@pytest.mark.parametrize(("name", "value"), [("seed", 5), ("shuffle", 3), ("uneven", "drop")])
def test_another_state_is_refused_by_name(folder: Path, name: str, value: object) -> None:
    state = ShardDataset(folder).state_dict()
    with pytest.raises(ValueError, match=f"cannot resume: {name}"):
        ShardDataset(folder, **{name: value}).load_state_dict(state)  # type: ignore[arg-type]


def test_tars_lists_and_braces(folder: Path) -> None:
    assert indices(ShardDataset(folder / "shard-000001.tar")) == list(range(105, 110))
    assert indices(ShardDataset(f"{folder}/shard-{{000000..000001}}.tar")) == list(range(100, 110))
    parts = [str(folder / "shard-000004.tar"), str(folder / "shard-000000.tar")]
    assert indices(ShardDataset(parts)) == [*range(120, 123), *range(100, 105)]
    assert len(ShardMapDataset([folder, folder / "shard-000004.tar"])) == SAMPLES + 3


def test_transforms_move_image_and_mask_together(folder: Path) -> None:
    flip = v2.RandomHorizontalFlip(p=1)
    plain, flipped = ShardMapDataset(folder), ShardMapDataset(folder, transforms=flip)
    assert torch.equal(flipped[2].mask, plain[2].mask.flip(-1))
    assert torch.equal(next(iter(ShardDataset(folder, transforms=flip))).image, plain[0].image.flip(-1))


@pytest.mark.slow
def test_datasets_travel_to_spawned_workers(folder: Path) -> None:
    for dataset in (ShardDataset(folder), ShardMapDataset(folder)):
        loader = DataLoader(dataset, batch_size=4, num_workers=1, multiprocessing_context="spawn")
        assert [int(i) for batch in loader for i in batch.index] == list(range(100, 100 + SAMPLES))


# Damage and refusals


def broken(folder: Path, place: Path, change: object) -> Path:
    for path in folder.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    target = place / "shard-000001.tar"
    target.write_bytes(change(target.read_bytes()))  # type: ignore[operator]
    return place


@pytest.mark.parametrize("change", [lambda d: d[:3000], lambda d: d[:512], lambda d: b"", lambda d: b"\xff" + d[1:]])
def test_damage_is_an_error_that_names_the_shard(folder: Path, tmp_path: Path, change: object) -> None:
    place = broken(folder, tmp_path, change)
    with pytest.raises(ShardError, match=r"shard-000001\.tar.*damaged.*dsgan shards verify"):
        list(ShardDataset(place))
    with pytest.raises(ShardError, match=r"shard-000001\.tar is damaged"):
        [ShardMapDataset(place)[i] for i in range(SAMPLES)]


def test_hashes_are_checked_on_demand(folder: Path, tmp_path: Path) -> None:
    def other_end(data: bytes) -> bytes:
        return data[:-1] + b"x"

    place = broken(folder, tmp_path, other_end)
    assert len(list(ShardDataset(place))) == SAMPLES  # all records are as they were
    with pytest.raises(ShardError, match="SHA-256 is not the recorded one"):
        list(ShardDataset(place, check_hashes=True))
    assert len(list(ShardDataset(folder, check_hashes=True))) == SAMPLES


def test_a_missing_shard(folder: Path, tmp_path: Path) -> None:
    place = broken(folder, tmp_path, lambda data: data)
    (place / "shard-000001.tar").unlink()
    with pytest.raises(ShardError, match=r"shard-000001\.tar is damaged: there is no such file"):
        list(ShardDataset(place))


def test_nothing_in_a_tar_or_url_is_executed(folder: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    with pytest.raises(ValueError, match="never read through a command"):
        ShardDataset(f"pipe:touch {trap}")
    with pytest.raises(ShardError, match="has no manifest"):
        ShardDataset(f"pipe:touch {trap} #.tar".removeprefix("pipe:"))
    assert not trap.exists()


@pytest.mark.parametrize("place", ["nowhere", "nowhere/shard-000000.tar", "ftpx://host/faces"])
def test_places_that_hold_no_set(place: str) -> None:
    with pytest.raises(ValueError, match=r"no manifest|cannot reach"):
        ShardDataset(place)


def test_tars_that_the_manifest_does_not_list(folder: Path, tmp_path: Path) -> None:
    place = broken(folder, tmp_path, lambda data: data)
    with tarfile.open(place / "other.tar", "w"):
        pass
    with pytest.raises(ShardError, match=r"does not list other\.tar"):
        ShardDataset(place / "other.tar")
    with pytest.raises(ShardError, match="no shards were given"):
        ShardDataset([])


def test_sets_that_do_not_fit_together(folder: Path, tmp_path: Path, filtered: LabeledGenerator) -> None:
    write_shards(filtered, tmp_path / "a", range(2), encoding=Encoding(latent=True))
    with pytest.raises(ShardError, match="its extensions is"):
        ShardDataset([folder, tmp_path / "a"])
    write_shards(small_labeled(crop=(0, 12)), tmp_path / "b", range(2))
    with pytest.raises(ShardError, match="its image_size is"):
        ShardDataset([folder, tmp_path / "b"])


@pytest.mark.parametrize("arguments", [{"shuffle": -1}, {"uneven": "cut"}, {"rank": 0}, {"seed": -1}])
def test_bad_arguments(folder: Path, arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ShardDataset(folder, **arguments)  # type: ignore[arg-type]
