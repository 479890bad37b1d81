"""Parts small enough for tests that run many samples: a 16-pixel StyleGAN2 and an ensemble of three, and a domain."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import signal
import tarfile
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dsgan_datasets
from dsgan_datasets import (
    InterpretedLabeler,
    LabeledGenerator,
    LabelSchema,
    PixelEnsemble,
    Recipe,
    load_generator,
    write_shards,
)

# With a PYTHONPATH, the package may be of one checkout and these two of another one that is installed.
tools = find_spec("dsgan_datasets.tools")
if tools is None or not Path(str(tools.origin)).resolve().is_relative_to(
    Path(dsgan_datasets.__file__).resolve().parents[1]
):
    pytest.exit("the package has no adapters and tools of its own: run `make links`, or pip install -e .", 4)

GOLDEN = Path(__file__).parent / "golden"
SCHEMA = LabelSchema(("background", "left", "right", "hat"), flip_pairs=((1, 2),))
RENDERED_CLASSES = (
    "background", "skin", "neck", "ear", "nose", "brow", "eye_white", "iris", "upper_lip", "lower_lip", "mouth", "hair",
    "beard", "clothes",
)  # fmt: skip
TRAIN_RENDERS, TEST_RENDERS = 24, 5


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes do not name a test: gzip writes the time into them, and xdist wants the same names in each process."""
    return argname if isinstance(val, bytes) else None


def small_ensemble(
    channels: int | list[int], *, layout: str | None = None, members: int = 3, classes: int = 4, seed: int = 0
) -> PixelEnsemble:
    """Random classifiers; `channels` of each map, or of all maps together."""
    channels = [channels] if isinstance(channels, int) else channels
    total = sum(channels)
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    weights = {
        "w1": normal(total, members, 8) / total**0.5,
        "b1": normal(members, 8),
        "w2": normal(members, 8, 6),
        "b2": normal(members, 6),
        "w3": normal(members, 6, classes),
        "b3": normal(members, classes),
    }
    return PixelEnsemble(weights, layout=layout, channels=channels)


def small_labeled(**recipe: object) -> LabeledGenerator:
    generator = load_generator(GOLDEN / "sg2ada_fullsnapshot16.pkl", device="cpu")
    ensemble = small_ensemble(list(generator.feature_channels), layout=generator.features)
    return LabeledGenerator(InterpretedLabeler(generator, ensemble, [SCHEMA]), Recipe(truncation_psi=0.9, **recipe))


def small_stylegan1() -> dict[str, torch.Tensor]:
    """An 8-pixel StyleGAN1 in the layout that DatasetGAN reads."""
    random = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"g_synthesis.torgb.weight": (3, 4, 1, 1), "g_synthesis.torgb.bias": (3,)}
    for i in range(2):
        shapes |= {f"g_mapping.dense{i}.weight": (16, 16), f"g_mapping.dense{i}.bias": (16,)}
    for side, convs in ((4, ("conv",)), (8, ("conv0_up", "conv1"))):
        block = f"g_synthesis.blocks.{side}x{side}"
        for conv in convs:
            shapes |= {f"{block}.{conv}.weight": (4, 4, 3, 3), f"{block}.{conv}.bias": (4,)}
        for epilogue in ("epi1", "epi2"):
            shapes[f"{block}.{epilogue}.top_epi.noise.weight"] = (4,)
            shapes[f"{block}.{epilogue}.style_mod.lin.weight"] = (8, 16)
            shapes[f"{block}.{epilogue}.style_mod.lin.bias"] = (8,)
    shapes |= {"g_synthesis.blocks.4x4.const": (1, 4, 4, 4), "g_synthesis.blocks.4x4.bias": (4,)}
    return {name: torch.randn(*shape, generator=random) for name, shape in shapes.items()}


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests remember nothing in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSGAN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def unfiltered() -> LabeledGenerator:
    """Accepts every draw."""
    return small_labeled()


@pytest.fixture(scope="session")
def filtered(unfiltered: LabeledGenerator) -> LabeledGenerator:
    """Rejects about 40 % of the draws, so that redraws are common."""
    from dsgan_datasets import calibrate

    return calibrate(unfiltered, 100, reject_fraction=0.4)


@pytest.fixture(scope="session")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of renders, as the demo's domain has them: rectangles whose color is their class."""
    folder = tmp_path_factory.mktemp("domain")
    classes = [{"id": i, "name": name} for i, name in enumerate(RENDERED_CLASSES)]
    (folder / "classes.json").write_text(json.dumps({"classes": classes}))
    random = np.random.default_rng(0)
    for shard, count in (("train-0000.tar", TRAIN_RENDERS), ("test-0000.tar", TEST_RENDERS)):
        with tarfile.open(folder / shard, "w") as tar:
            for i in range(count):
                mask = np.zeros((128, 128), np.uint8)
                for c in range(1, 14):
                    top, left = random.integers(0, 96, 2)
                    mask[top : top + 32, left : left + 32] = c
                image = np.stack([mask * 19, 255 - mask * 9, mask * 7], 2)
                for kind, array, form in (("jpg", image, "JPEG"), ("seg.png", mask, "PNG")):
                    data = io.BytesIO()
                    Image.fromarray(array).save(data, form)
                    member = tarfile.TarInfo(f"{i:06d}.{kind}")
                    member.size = len(data.getvalue())
                    tar.addfile(member, io.BytesIO(data.getvalue()))
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small arrays: a second thread only waits, and on a busy machine for long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tars(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Faces in shards, whose indices are not their places."""
    path = tmp_path_factory.mktemp("shards") / "faces"
    faces = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    write_shards(faces, path, range(100, 124), seed=4, samples_per_shard=10)
    return str(path)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The indices that any generator of this process is asked for: a list for each `generate`, and each of a stream."""
    calls: list[list[int]] = []
    generate, stream = LabeledGenerator.generate, LabeledGenerator.stream

    def noted(indices: Iterable[int]) -> Iterator[int]:
        for index in indices:
            calls.append([int(index)])
            yield index

    def noting_generate(self: LabeledGenerator, indices: Any, **options: Any) -> Any:
        calls.append([int(index) for index in indices])
        return generate(self, indices, **options)

    monkeypatch.setattr(LabeledGenerator, "generate", noting_generate)
    monkeypatch.setattr(LabeledGenerator, "stream", lambda self, indices, **o: stream(self, noted(indices), **o))
    return calls


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `export_annotations` wrote; not to be changed."""
    import annotation_folders

    return annotation_folders.export_to(tmp_path_factory.mktemp("annotations") / "pristine")


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy of it, to be annotated."""
    return shutil.copytree(pristine, tmp_path / "work")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Signals do what Python starts with, here and in children: a shell lets its jobs in the background ignore SIGINT,
    and a framework that another test imported may have left handlers of its own."""
    fresh = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in fresh.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def clean() -> Iterator[None]:
    """Detectron2's catalogs, which all tests share, without generated datasets; afterwards they are as before."""
    data = pytest.importorskip("detectron2.data")
    from dsgan_datasets.adapters.detectron2.registered import REGISTERED

    catalogs: list[Any] = [data.DatasetCatalog, data.MetadataCatalog, REGISTERED]
    before = [dict(catalog) for catalog in catalogs]
    for catalog, name in itertools.product(catalogs, before[2]):
        catalog.pop(name, None)
    yield
    for catalog, entries in zip(catalogs, before, strict=True):
        catalog.clear()
        catalog.update(entries)
