"""Files of other projects: what is needed of them is read whatever stands beside it, and each says what it is."""

from __future__ import annotations

import copy
import functools
import gzip
import io
import pickle
import re
import sys
import tarfile
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import pytest
import torch
from golden_data import DIALECTS as DIALECT_SETS
from golden_data import PROBES, generator_file, sets_here
from torch import nn

from dsgan_datasets import CheckpointError, FeatureGenerator, load_generator, save_generator
from dsgan_datasets.checkpoints.pickles import Foreign, Holder
from dsgan_datasets.checkpoints.snapshot import read_snapshot
from dsgan_datasets.checkpoints.tensors import digest_tensors
from dsgan_datasets.generators.dialects import DIALECTS
from dsgan_datasets.generators.loading import generator_tensors
from dsgan_datasets.latents import Purpose, sample_latents
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.tools.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")

HERE = [name for name in DIALECT_SETS if name in sets_here()]
ROSINALITY = PROBES / "ros_sg2_64.pt"
SNAPSHOT = PROBES / "sg2ada_fullsnapshot16.pkl"


def image(generator: FeatureGenerator, **how: Any) -> torch.Tensor:
    z = torch.randn(2, generator.z_dim, generator=torch.Generator().manual_seed(0))
    c = torch.eye(generator.c_dim)[:2] if generator.c_dim else None
    return generator.synthesis_channels(generator.mapping(z, c, **how))[0]


def load(path: Path, **options: Any) -> FeatureGenerator:
    return load_generator(path, device="cpu", **options)


def notes(generator: FeatureGenerator) -> str:
    return "; ".join(generator.provenance.notes)


# --- objects of other projects, as a pickler of today writes them ---


class Persistent:
    """An object of NVIDIA's code, pickled as their decorator does."""

    module = "torch_utils.persistence"

    def __init__(self, holder: Holder) -> None:
        self.meta = {"type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": holder.name}
        state = {
            key: value for key, value in holder.state.items() if key not in ("_parameters", "_buffers", "_modules")
        }
        for kind in ("_parameters", "_buffers"):
            state[kind] = OrderedDict(holder.state[kind])
        state["_modules"] = OrderedDict(
            (name, Persistent(part)) for name, part in holder.state["_modules"].items() if part is not None
        )
        self.meta["state"] = state

    def __reduce__(self) -> tuple[Any, Any]:
        return getattr(sys.modules[self.module], "_reconstruct_persistent_obj"), (self.meta,)  # noqa: B009


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes a name importable, for the pickler only: module, name -> a class, or the object given."""

    def make(module: str, name: str, value: Any = None) -> Any:
        parts = module.split(".")
        for i in range(len(parts)):
            path = ".".join(parts[: i + 1])
            if path not in sys.modules:
                monkeypatch.setitem(sys.modules, path, types.ModuleType(path))
        if value is None:
            value = type(name, (), {})
        value.__module__, value.__qualname__, value.__name__ = module, name, name
        monkeypatch.setattr(sys.modules[module], name, value, raising=False)
        return value

    return make


@pytest.fixture
def network(foreign: Callable[..., Any]) -> Persistent:
    """G_ema of the small snapshot, to be pickled again."""
    foreign("torch_utils.persistence", "_reconstruct_persistent_obj", lambda meta: None)
    return Persistent(read_snapshot(SNAPSHOT)["G_ema"])


def save(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


EXPECTED = functools.cache(lambda: image(load(SNAPSHOT)))


class Hostile:
    """Pickles as a call that would leave a trace."""

    def __reduce__(self) -> tuple[Any, Any]:
        import os

        return os.system, ("touch CANARY",)


class Cycle:
    """An object that holds itself."""

    def __init__(self) -> None:
        self.me = self


# --- only what is needed is read ---


BESIDE: dict[str, Callable[[], Any]] = {
    "a module of PyTorch": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU()),
    "a path": lambda: PosixPath("data.zip"),
    "a partial": lambda: functools.partial(max, 2),
    "keys of other types": lambda: {0.5: 1, (1, 2): 3, None: 4, b"x": 5, 2**70: 6},
    "a frozen set of tuples": lambda: frozenset({(1, 2), (3, 4)}),
    "a loop of objects": Cycle,
    "a device and a type": lambda: [torch.device("cuda", 0), torch.float16, torch.Size([1, 2])],
    "a call of the system": Hostile,
    "a complex number, a range, a bytearray": lambda: [1j, range(3), bytearray(b"x"), Ellipsis],
}


@pytest.mark.parametrize("what", BESIDE)
@pytest.mark.parametrize("place", ["beside", "attribute"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_what_is_not_needed_becomes_a_placeholder(
    tmp_path: Path, network: Persistent, monkeypatch: pytest.MonkeyPatch, what: str, place: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    value = BESIDE[what]()
    if place == "attribute":
        network.meta["state"]["unread"] = value
        content = {"G_ema": network}
    else:
        content = {"D": value, "training_set_kwargs": {"path": value}, "G_ema": network}
    generator = load(save(tmp_path / "x.pkl", content, protocol))
    assert torch.equal(image(generator), EXPECTED())
    assert not Path("CANARY").exists()
    assert ("left alone: D" in notes(generator)) == (place == "beside")


@pytest.mark.parametrize("kind", ["_parameters", "_buffers", "_modules"])
def test_a_placeholder_inside_the_network_is_refused(
    tmp_path: Path, network: Persistent, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    network.meta["state"]["_modules"]["synthesis"].meta["state"][kind]["more"] = Hostile()
    with pytest.raises(CheckpointError, match=r"refused: the file asks for posix\.system, which is not on the allow"):
        load(save(tmp_path / "x.pkl", {"G_ema": network}))
    assert not Path("CANARY").exists()


def test_placeholders_keep_names_and_attributes_and_nothing_else(tmp_path: Path) -> None:
    module = nn.Linear(2, 3)
    found = read_snapshot(save(tmp_path / "x.pkl", {"m": module, "h": Hostile()}))
    assert isinstance(found["m"], Foreign) and found["m"].name == "torch.nn.modules.linear.Linear"
    assert torch.equal(found["m"].tensors()["weight"], module.weight) and found["h"].name == "posix.system"
    assert not found["h"].state


Wrap = Callable[[Any, Path], Any]
WRAPS: dict[str, Wrap] = {
    "snapshot": lambda g, path: save(path, {"G_ema": g}),
    "snapshot, protocol 2": lambda g, path: save(path, {"G_ema": g}, 2),
    "snapshot, protocol 5": lambda g, path: save(path, {"G_ema": g}, 5),
    "zip": lambda g, path: torch.save({"G_ema": g}, path),
    "zip, the network alone": torch.save,
    "legacy": lambda g, path: torch.save(g, path, _use_new_zipfile_serialization=False),
    "gzip": lambda g, path: path.write_bytes(gzip.compress(pickle.dumps({"G_ema": g}))),
    "gzip of a zip": lambda g, path: path.write_bytes(gzip.compress(_torch_bytes(g))),
    "the network alone": lambda g, path: path.write_bytes(pickle.dumps(g)),
    "only G": lambda g, path: save(path, {"G": g, "D": None}),
    "no average of it": lambda g, path: save(path, {"G_ema": None, "G": g}),
}


def _torch_bytes(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_network_is_known_whatever_it_comes_in(tmp_path: Path, network: Persistent, wrap: str) -> None:
    network.meta["state"] |= {"size": np.array([16, 16]), "rate": np.float64(2)}
    path = tmp_path / "x.bin"
    WRAPS[wrap](network, path)
    generator = load(path)
    assert torch.equal(image(generator), EXPECTED())
    assert ("not averaged" in notes(generator)) == (wrap in ("only G", "no average of it"))


def test_copies_of_the_code_in_other_packages(
    tmp_path: Path, network: Persistent, foreign: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign("some.package.torch_utils.persistence", "_reconstruct_persistent_obj", lambda meta: None)
    monkeypatch.setattr(Persistent, "module", "some.package.torch_utils.persistence")
    assert torch.equal(image(load(save(tmp_path / "x.pkl", {"G_ema": network}))), EXPECTED())


def test_a_snapshot_without_average(tmp_path: Path, network: Persistent) -> None:
    """w_avg_beta=None: training kept none."""
    del network.meta["state"]["_modules"]["mapping"].meta["state"]["_buffers"]["w_avg"]
    generator = load(save(tmp_path / "x.pkl", {"G_ema": network}))
    assert generator.mean_w is not None and "average w computed" in notes(generator)
    assert torch.equal(image(generator), EXPECTED())


def test_noise_may_be_off(tmp_path: Path, network: Persistent) -> None:
    block = network.meta["state"]["_modules"]["synthesis"].meta["state"]["_modules"]["b8"].meta["state"]["_modules"]
    layer = block["conv0"].meta["state"]
    layer["use_noise"] = False
    del layer["_parameters"]["noise_strength"], layer["_buffers"]["noise_const"]
    generator = load(save(tmp_path / "x.pkl", {"G_ema": network}))
    assert not generator._stored_noise()[1].any() and generator._stored_noise()[2].any()


# --- every dialect ---


def test_the_table_is_complete() -> None:
    assert len({dialect.name for dialect in DIALECTS}) == len(DIALECTS)
    readers = {load(generator_file(PROBES, name)).provenance.dialect for name in HERE}
    assert readers <= {dialect.name for dialect in DIALECTS} and len(readers) >= 9


def test_the_docs_name_every_dialect() -> None:
    table = (Path(__file__).parent.parent / "docs" / "generators.md").read_text()
    assert not [dialect.name for dialect in DIALECTS if dialect.name not in table]


@pytest.mark.parametrize("name", ["sg2ada_cond32_skip", "sg2ada_uncond32_resnet", "sg3_t_32", "sg3_r_32"])
def test_state_dicts_of_nvidias_networks(tmp_path: Path, name: str) -> None:
    """As `torch.save(G_ema.state_dict())` writes them."""
    tensors = read_snapshot(PROBES / f"{name}.pkl")["G_ema"].tensors()
    for content in (tensors, {"G_ema": tensors}, prefixed(tensors, "module.")):
        torch.save(content, tmp_path / "x.pt")
        found, expected = image(load(tmp_path / "x.pt")), load(PROBES / f"{name}.pkl")
        assert found.shape == image(expected).shape
        if name.startswith("sg3"):
            assert torch.equal(found, image(expected)) and load(tmp_path / "x.pt").config == expected.config


def test_class_embeddings_of_hammer(tmp_path: Path) -> None:
    """No reference file has one: for shape."""
    content = torch.load(PROBES / "genforce_sg2_32.pth", weights_only=True)
    state = content["generator_smooth"]
    first = state["mapping.dense0.weight"]
    state["mapping.embedding.weight"], state["mapping.embedding.bias"] = torch.randn(7, 4), torch.zeros(7)
    state["mapping.dense0.weight"] = torch.cat([first, torch.randn(len(first), 7)], 1)
    torch.save(content, tmp_path / "x.pth")
    generator = load(tmp_path / "x.pth")
    assert (generator.c_dim, generator.config["embed_dim"]) == (4, 7) and image(generator).shape == (2, 3, 32, 32)


@pytest.mark.parametrize("name", HERE)
def test_converting_changes_no_bit(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = generator_file(PROBES, name)
    assert main(["convert", str(source), str(tmp_path / "out")]) == 0
    theirs, ours = load(source), load(tmp_path / "out")
    assert theirs.provenance.dialect in capsys.readouterr().out
    assert digest_tensors(generator_tensors(theirs)) == digest_tensors(generator_tensors(ours))
    assert theirs.config == ours.config and torch.equal(image(theirs), image(ours))
    assert ours.provenance == theirs.provenance


@pytest.mark.parametrize("name", HERE)
def test_a_stranger_inside_any_network_is_refused(tmp_path: Path, name: str) -> None:
    """In every pickle of objects, a module of the wanted network is renamed."""
    data = generator_file(PROBES, name).read_bytes()
    for known, stranger in (
        (b"networks_fastgan", b"networks_fastxxx"),
        (b"blocks\x94\x8c\x03GLU", b"blocks\x94\x8c\x03GLX"),
    ):
        if known in data:
            (tmp_path / "x.pkl").write_bytes(data.replace(known, stranger))
            with pytest.raises(CheckpointError, match="refused: the file asks for pg_modules"):
                load(tmp_path / "x.pkl")


# --- TensorFlow ---


@pytest.fixture
def tensorflow(foreign: Callable[..., Any]) -> type:
    return foreign("dnnlib.tflib.network", "Network")


def as_objects(found: Foreign, kind: type, change: Callable[[dict[str, Any]], object] = lambda state: None) -> Any:
    """A network of a TensorFlow file as an object that pickles as it was."""
    made = kind()
    made.__dict__.update(copy.deepcopy(found.state))
    made.variables = [
        (name, np.array(value) if np.ndim(value) else np.float32(value)) for name, value in made.variables
    ]
    change(made.__dict__)
    made.components = {name: as_objects(part, kind, change) for name, part in found.state.get("components", {}).items()}
    return made


def tensorflow_file(path: Path, kind: type, change: Callable[[dict[str, Any]], object], source: str) -> Path:
    networks = read_snapshot(PROBES / f"{source}.pkl")
    return save(path, tuple(as_objects(network, kind, change) for network in networks), 2)


def renamed(
    pattern: str, new: str, edit: Callable[[Any], Any] = lambda value: value
) -> Callable[[dict[str, Any]], None]:
    """Variables whose names match get another name and value."""

    def change(state: dict[str, Any]) -> None:
        state["variables"] = [
            (re.sub(pattern, new, name), edit(value)) if re.search(pattern, name) else (name, value)
            for name, value in state["variables"]
        ]

    return change


def test_settings_of_forks_are_noted_and_change_nothing(tmp_path: Path, tensorflow: type) -> None:
    def change(state: dict[str, Any]) -> None:
        state["static_kwargs"] = {**state["static_kwargs"], "truncation_psi": 0.5, "dataset_mood": "sunny"}

    path = tensorflow_file(tmp_path / "x.pkl", tensorflow, change, "tf4_sg2_skip32")
    generator = load(path)
    assert torch.equal(image(generator), image(load(PROBES / "tf4_sg2_skip32.pkl")))
    assert "dataset_mood" in notes(generator) and "truncation_psi" not in notes(generator)


def test_source_in_the_file_is_never_looked_at(
    tmp_path: Path, tensorflow: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    change = {"build_module_src": "open('CANARY', 'w')", "build_func_name": "no_such_function"}
    path = tensorflow_file(tmp_path / "x.pkl", tensorflow, lambda state: state.update(change), "tf4_sg2_skip32")
    assert torch.equal(image(load(path)), image(load(PROBES / "tf4_sg2_skip32.pkl")))
    assert not Path("CANARY").exists()


def test_the_averaged_network_is_read_alone_too(tmp_path: Path, tensorflow: type) -> None:
    averaged = as_objects(read_snapshot(PROBES / "tf4_sg2_skip32.pkl")[2], tensorflow)
    for content in (averaged, {"Gs": averaged}, [averaged]):
        assert torch.equal(image(load(save(tmp_path / "x.pkl", content))), image(load(PROBES / "tf4_sg2_skip32.pkl")))


def test_concatenated_labels_of_stylegan2(tmp_path: Path, tensorflow: type) -> None:
    """LabelConcat of the first StyleGAN2: joined with z, then normalized. No reference file has it: by hand."""
    table = np.random.RandomState(0).randn(3, 32).astype(np.float32)

    def change(state: dict[str, Any]) -> None:
        state["variables"] = [(name, value) for name, value in state["variables"] if name != "LabelEmbed/bias"]
        renamed("LabelEmbed/weight", "LabelConcat/weight", lambda value: table)(state)

    generator = load(tensorflow_file(tmp_path / "x.pkl", tensorflow, change, "tf4_sg2_cond16"))
    z, c = torch.randn(2, 32), torch.eye(3)[[2, 0]]
    x = torch.cat([z, torch.from_numpy(table)[[2, 0]]], 1)
    x = x / x.square().mean(1, keepdim=True).sqrt()
    for i in range(generator.config["mapping_layers"]):
        layer = generator.mapping_network.get_submodule(f"fc{i}")
        x = nn.functional.leaky_relu(layer(x), 0.2) * 2**0.5
    assert torch.allclose(generator.mapping(z, c)[:, 0], x, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(5, 3), (2, 4)])
def test_rectangular_tensorflow_files(tmp_path: Path, tensorflow: type, height: int, width: int) -> None:
    """Blocks are named by rows and columns, as in the forks of skyflynil and aydao."""

    def change(state: dict[str, Any]) -> None:
        found = []
        for name, value in state["variables"]:
            if match := re.match(r"(\d+)x\1/", name):
                side = int(match[1]) // 4
                name = f"{side * height}x{side * width}/{name.partition('/')[2]}"
            if name.endswith("Const/const"):
                value = np.resize(value, (*value.shape[:2], height, width))
            if re.fullmatch(r"noise\d+", name):
                side = value.shape[-1] // 4
                value = np.resize(value, (1, 1, side * height, side * width))
            found.append((name, value))
        state["variables"] = found

    generator = load(tensorflow_file(tmp_path / "x.pkl", tensorflow, change, "tf4_sg2_skip32"))
    assert generator.img_size == (8 * height, 8 * width) == tuple(image(generator).shape[2:])


def test_one_torgb_only(tmp_path: Path, tensorflow: type) -> None:
    """architecture="orig": the image is what the last ToRGB makes. No reference file has it: by hand."""

    def change(state: dict[str, Any]) -> None:
        kept = [(n, v) for n, v in state["variables"] if "ToRGB" not in n or n.startswith("32x32/")]
        state["variables"] = kept

    path = tensorflow_file(tmp_path / "x.pkl", tensorflow, change, "tf4_sg2_skip32")
    generator = load(path)
    whole = load(PROBES / "tf4_sg2_skip32.pkl")
    ws = whole.mapping(torch.randn(1, 32))
    maps = whole.synthesis(ws)[1]
    expected = whole.synthesis_network.get_submodule("b32").torgb(maps[-1], ws[:, len(maps)])
    assert generator.config["block"] == "orig"
    assert torch.allclose(generator.synthesis(ws)[0], expected, atol=1e-5)


def test_noise_that_a_tensorflow_file_lacks_is_drawn(tmp_path: Path, tensorflow: type) -> None:
    def change(state: dict[str, Any]) -> None:
        state["variables"] = [(n, v) for n, v in state["variables"] if not n.startswith("noise")]

    for source in ("tf4_sg2_skip32", "tf3_sg1_cond16"):
        path = tensorflow_file(tmp_path / "x.pkl", tensorflow, change, source)
        first, second = load(path), load(path)
        assert "noise drawn from the weights' hash" in notes(first)
        assert all(torch.equal(a, b) for a, b in zip(first._stored_noise(), second._stored_noise(), strict=True))
        assert abs(float(first._stored_noise()[-1].std()) - 1) < 0.3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(variables=[("lod", np.float32(0))]), "TensorFlow.*has no layers such as 4x4/Conv"),
        (lambda s: s["static_kwargs"].update(nonlinearity="relu"), "TensorFlow.*nonlinearity is 'relu'"),
        (lambda s: s["static_kwargs"].update(resample_kernel=[1, 2, 1]), r"resample_kernel is \[1, 2, 1\]"),
        (lambda s: s["static_kwargs"].update(fused_scale=True), "fused_scale is True, only 'auto'"),
        (renamed("Conv1/mod_weight", "x"), "TensorFlow.*it has no .*Conv1/mod_weight"),
        (lambda s: s.update(variables=[("a", PosixPath("x"))]), "TensorFlow.*not a named array"),
        (lambda s: s.update(variables=3), "TensorFlow.*not a list"),
    ],
)
def test_damaged_tensorflow_files(
    tmp_path: Path, tensorflow: type, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(tensorflow_file(tmp_path / "x.pkl", tensorflow, change, "tf4_sg2_skip32"))


# --- rosinality and its family ---


def family(change: Callable[[dict[str, Any]], Any], path: Path) -> Path:
    content = torch.load(ROSINALITY, weights_only=True)
    torch.save(change(content) or content, path)
    return path


def prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


FAMILY: dict[str, Callable[[dict[str, Any]], Any]] = {
    "as published": lambda c: c,
    "data parallel": lambda c: {**c, "g_ema": prefixed(c["g_ema"], "module.")},
    "compiled": lambda c: {**c, "g_ema": prefixed(c["g_ema"], "_orig_mod.")},
    "both": lambda c: {**c, "g_ema": prefixed(c["g_ema"], "_orig_mod.module.")},
    "an encoder's decoder": lambda c: {
        "state_dict": {**prefixed(c["g_ema"], "decoder."), "encoder.body.0.weight": torch.zeros(2)},
        "latent_avg": c["latent_avg"].reshape(1, -1).repeat(10, 1),
        "opts": {"device": torch.device("cuda"), "path": PosixPath("x")},
    },
    "params_ema": lambda c: {"params_ema": c["g_ema"], "latent_avg": c["latent_avg"]},
    "a bare state dict": lambda c: {**c["g_ema"]},
    "only g": lambda c: {"g": c["g_ema"], "latent_avg": c["latent_avg"]},
    "half precision": lambda c: {**c, "g_ema": {name: t.half() for name, t in c["g_ema"].items()}},
    "with an optimizer": lambda c: {**c, "g": {"x": torch.zeros(1)}, "g_optim": {"state": {0: {"step": 1}}}, "iter": 9},
}


@pytest.mark.parametrize("kind", FAMILY)
def test_the_rosinality_family(tmp_path: Path, kind: str) -> None:
    generator, expected = load(family(FAMILY[kind], tmp_path / "x.pt")), load(ROSINALITY)
    psi = 1.0 if kind == "a bare state dict" else 0.7
    tolerance = 0.05 if kind == "half precision" else 0
    found, wanted = image(generator, truncation_psi=psi), image(expected, truncation_psi=psi)
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()
    assert (kind == "with an optimizer") == ("training progress: iter 9" in notes(generator))


@pytest.mark.slow
def test_a_whole_network_is_read_and_not_run(tmp_path: Path, foreign: Callable[..., Any]) -> None:
    """torch.save of the module itself: objects of classes that are not here, in both formats."""
    state = torch.load(ROSINALITY, weights_only=True)["g_ema"]
    kinds = {name: foreign("model", name, type(name, (nn.Module,), {})) for name in ("Generator", "StyledConv")}

    def module(names: dict[str, torch.Tensor], top: bool = False) -> nn.Module:
        made = kinds["Generator" if top else "StyledConv"]()
        for head in dict.fromkeys(name.partition(".")[0] for name in names):
            below = {name.partition(".")[2]: t for name, t in names.items() if name.partition(".")[0] == head}
            if "" in below:
                made.register_buffer(head, below[""])
            else:
                made.add_module(head, module(below))
        return made

    whole = module(state, top=True)
    for new in (True, False):
        for content in (whole, {"g_ema": whole}, nn.DataParallel(whole)):
            torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
            assert torch.equal(image(load(tmp_path / "x.pt")), image(load(ROSINALITY)))
    whole.add_module("spy", foreign("spies", "Spy", type("Spy", (nn.Module,), {}))())
    torch.save(whole, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"refused: the file asks for spies\.Spy"):
        load(tmp_path / "x.pt")


def test_noise_that_a_file_lacks_belongs_to_its_identity(tmp_path: Path) -> None:
    def without_noise(content: dict[str, Any]) -> None:
        content["g_ema"] = {name: t for name, t in content["g_ema"].items() if not name.startswith("noises.")}

    path = family(without_noise, tmp_path / "x.pt")
    generator = load(path)
    assert "noise drawn" in notes(generator) and torch.equal(image(generator), image(load(path)))
    save_generator(generator, tmp_path / "out")
    assert torch.equal(image(load(tmp_path / "out")), image(generator))


def test_any_depth_of_the_mapping(tmp_path: Path) -> None:
    def shallow(content: dict[str, Any]) -> None:
        for name in [name for name in content["g_ema"] if re.match(r"style\.[3-8]\.", name)]:
            del content["g_ema"][name]

    assert load(family(shallow, tmp_path / "x.pt")).config["mapping_layers"] == 2


def test_averages_are_computed_class_by_class(tmp_path: Path) -> None:
    """A conditional file without one: each class has its own, and truncation goes towards it."""
    content = torch.load(PROBES / "genforce_sg1_cond16.pth", weights_only=True)
    del content["generator_smooth"]["truncation.w_avg"]
    torch.save(content, tmp_path / "x.pth")
    generator = load(tmp_path / "x.pth")
    assert generator.mean_w is not None and generator.mean_w.shape == (3, generator.w_dim)
    assert "10000 fixed draws a class" in notes(generator)
    z, c = torch.randn(3, generator.z_dim), torch.eye(3)
    assert torch.allclose(generator.mapping(z, c, truncation_psi=0)[:, 0], generator.mean_w)
    draws = sample_latents(range(10_000), generator.z_dim, seed=0, purpose=Purpose.AVERAGE)
    mean = generator.mapping(draws, c[1:2].expand(10_000, -1))[:, 0].double().mean(0)
    assert torch.allclose(generator.mean_w[1].double(), mean, atol=1e-5)


@pytest.mark.parametrize("given", [lambda w: w.numpy(), lambda w: w[None], lambda w: w.repeat(1, 18, 1)])
def test_averages_in_other_forms(tmp_path: Path, given: Callable[[torch.Tensor], Any]) -> None:
    path = family(lambda c: {**c, "latent_avg": given(c["latent_avg"].flatten())}, tmp_path / "x.pt")
    generator = load(path)
    assert torch.equal(generator.mean_w, load(ROSINALITY).mean_w) and "computed" not in notes(generator)


def test_truncation_towards_the_nearest_centroid(tmp_path: Path) -> None:
    source = PROBES / "xl_c4_t32.pkl"
    centers = load(source).mapping(torch.randn(5, 24), torch.eye(4)[[0, 1, 2, 3, 3]])[:, 0].numpy()
    np.save(tmp_path / "centers.npy", centers)
    generator = load(source, centroids=centers)
    z, c = torch.randn(6, generator.z_dim), torch.eye(4)[[0, 1, 2, 3, 0, 1]]
    w = generator.mapping(z, c)[:, 0]
    nearest = torch.from_numpy(centers).float()[(w[:, None] - torch.from_numpy(centers).float()).norm(dim=2).argmin(1)]
    assert torch.allclose(generator.mapping(z, c, truncation_psi=0.5)[:, 0], (w + nearest) / 2, atol=1e-5)
    assert len(nearest.unique(dim=0)) > 1
    assert main(["convert", str(source), str(tmp_path / "out"), "--centroids", str(tmp_path / "centers.npy")]) == 0
    again = load(tmp_path / "out")
    assert again.config == generator.config and torch.equal(
        image(again, truncation_psi=0.5), image(generator, truncation_psi=0.5)
    )
    with pytest.raises(ValueError, match="give one of them"):
        load(source, centroids=centers, avg_latent=centers[0])
    with pytest.raises(CheckpointError, match="average w has"):
        load(source, centroids=centers[:, :7])


# --- one without styles, one with its own range ---


def test_fastgan_says_that_it_has_no_styles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = PROBES / "pgan_fastgan_256.pkl"
    generator = load(path)
    with pytest.raises(ValueError, match="FastGAN has no space of styles"):
        generator.mapping(torch.zeros(1, generator.z_dim), truncation_psi=0.7)
    from dsgan_datasets.compatibility import check_recipe

    for recipe in (Recipe(truncation_psi=0.7), Recipe(mixing_layer=1)):
        with pytest.raises(ValueError, match="no space of styles.*style mixing do not apply"):
            check_recipe(recipe, generator, [])
    assert main(["info", str(path)]) == 0
    assert "no space of styles" in capsys.readouterr().out


def test_images_from_zero_to_one_are_as_bright_as_they_should_be() -> None:
    from dsgan_datasets.generators.synthesis import synthesize

    generator = load(PROBES / "lucidrains_rgba_noconst_16" / "model_0.pt")
    z = torch.randn(1, generator.z_dim)
    raw = generator.synthesis(generator.mapping(z))[0]
    shown = synthesize(generator, Recipe(), z)[0]
    assert (shown.float() - (raw * 255).clamp(0, 255)).abs().max() <= 1


def test_blue_green_red(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("mmagic_sg2_32.pth", "mmagic_sg3_t_32.pth"):
        rgb, bgr = load(PROBES / name), load(PROBES / name, bgr=True)
        assert "order of its colors" in notes(rgb)
        assert torch.allclose(image(rgb), image(bgr).flip(1), atol=1e-5)
    assert main(["convert", str(PROBES / "mmagic_sg2_32.pth"), str(tmp_path / "out"), "--bgr"]) == 0
    assert torch.allclose(image(load(tmp_path / "out")), image(load(PROBES / "mmagic_sg2_32.pth", bgr=True)))
    with pytest.raises(ValueError, match="bgr is for images of three channels, not 4"):
        load(PROBES / "sg3_4ch_t_32.pkl", bgr=True)


# --- every file says what it is ---


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("network.pkl"))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"<!DOCTYPE html>\n<html><head><title>Google Drive", "HTML page.*fetch the file itself"),
        (b"\n  <html lang='en'>", "HTML page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "XML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12", "Git LFS pointer.*git lfs pull"),
        (b"https://example.com/ffhq.pkl\n", "address.*download what it points to"),
        (b'{"message": "Not Found"}', "JSON text"),
        (_tar(), "tar archive: unpack it"),
        (gzip.compress(_tar()), "tar archive: unpack it"),
        (b"7z\xbc\xaf\x27\x1c", "archive: unpack it"),
        (b"Rar!\x1a\x07", "archive: unpack it"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x40\x00\x00\x00\x00\x00\x00\x00" + b'{"a":{"dtype"', "safetensors file"),
        (b"\xff\xd8\xff\xe0", "a picture"),
        (b"", "empty file"),
        (gzip.compress(b"\x80\x04" + bytes(1000))[:-20], "gzip file that is damaged or cut off.*download it again"),
        (SNAPSHOT.read_bytes()[:100_000], "damaged or cut off.*download it again"),
        (ROSINALITY.read_bytes()[:100_000], "damaged or cut off.*download it again"),
    ],
)
def test_files_that_are_none(tmp_path: Path, data: bytes, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ffhq.pkl"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=says):
        load(path)
    assert main(["info", str(path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("address", ["https://example.com/ffhq.pkl", "s3://bucket/x.pt", "gdrive://1234"])
def test_addresses(address: str) -> None:
    with pytest.raises(CheckpointError, match="is an address: download the file"):
        load_generator(address)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"g_ema": {"iwt.ll": torch.zeros(1)}}, "SWAGAN"),
        ({"g_running": {"generator.progression.0.conv1.weight": torch.zeros(1)}}, "StyleGAN1 of rosinality's"),
        ({"state_dict": {"generator_ema.convs.0.conv1.input": torch.zeros(1)}}, "StyleGAN1 of mmgeneration"),
        ({"model_state_dict": {"layers.0.weight": torch.zeros(1)}}, "pixel classifier of DatasetGAN"),
        ({"state_dict": {"model.diffusion_model.x": torch.zeros(1)}}, "diffusion model"),
        ({"d": {"final_linear.1.weight": torch.zeros(1)}}, "discriminator"),
        ({"features.0.weight": torch.zeros(1)}, "classifies images"),
        ({"something": 1}, "not a generator file: it holds 'something'; expected"),
    ],
)
def test_state_dicts_of_something_else(tmp_path: Path, content: Any, says: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=says):
        load(tmp_path / "x.pt")


def test_info_says_dialect_progress_and_what_was_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(PROBES / "pgan_sg2_32.pkl")]) == 0
    printed = capsys.readouterr().out
    for text in ("StyleGAN2 snapshot", "cur_nimg 1000", "not needed and left alone", "ProjectedDiscriminator"):
        assert text in printed
