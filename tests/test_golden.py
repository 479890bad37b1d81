"""The package against the original implementations: generators, labels, published classifiers."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_data import (
    DIALECTS,
    GENERATORS,
    JOINT,
    LABELS,
    PROBES,
    TOLERANCE,
    Golden,
    compare_set,
    generator_arrays,
    generator_file,
    label_arrays,
    layer_outputs,
    reference_generator,
    sets_here,
)
from make_golden_probes import PROBE_COUNT, npz, probes

from dsgan_datasets.checkpoints.errors import CheckpointError
from dsgan_datasets.generators import load_generator
from dsgan_datasets.interpreters import load_interpreter

pytestmark = pytest.mark.usefixtures("one_thread")

HERE = [name for name in GENERATORS if name in sets_here()]
CONVS_TO_16 = ["b8.conv0", "b8.conv1", "b16.conv0", "b16.conv1"]
CLASSIFIERS = PROBES / "dgan_sg1_128_c7_ckpt"


@pytest.mark.parametrize("name", sets_here())
def test_every_array_is_within_the_tolerance(name):
    comparisons = compare_set(PROBES, name)
    assert len(comparisons) >= 4
    assert not [f"{c.name}: {c.error:.3g} ({c.kind})" for c in comparisons if not c.ok]


def test_the_sets_hold_what_the_package_promises():
    """A reference file that lost arrays must not pass."""
    blocks = [f"{r}x{r}.epi{i}" for r in (4, 8, 16, 32, 64, 128) for i in (1, 2)]
    expected = {
        "sg2": {
            *("w_avg", "ws_psi1", "ws_psi0.7", "feat/const", "feat/b4.conv1", "feat_none/b8.conv0"),
            *("img_psi1_const", "img_psi0.7_const", "img_psi1_none", "img_psi1_const_uint8"),
        },
        "sg3_": {"w_avg", "ws_psi1", "ws_psi0.7_cut4", "img_psi1_const", "img_psi0.7_cut8_const", "feat/input"},
        "semanticgan": {"ws_psi1", "img_psi1", "img_psi0.7", "seg_psi1", "seg_psi0.7", "feat/conv1", "feat/convs.3"},
        "sg2ada_4ch": {"w_avg", "ws_psi0.7", "img_psi1", "img_psi0.7", "feat/b32.conv1"},
        "sg3_4ch": {"w_avg", "ws_psi0.7", "img_psi1", "img_psi0.7", "feat/input", "feat/L5_32_12"},
        "ros": {
            "w",
            "latent_psi0.7",
            "img_psi1",
            "img_psi0.7",
            "img_psi1_zero_noise",
            "feat/convs.7",
            "feat/to_rgbs.3",
        },
        "dgan": {
            *("w", "w_trunc", "img", "img_no_trunc", "img_zero_noise", "img_uint8", "feat_zero_noise/last"),
            *(f"feat/{i:02d}" for i in range(12)),
            *(f"noise/{block}" for block in blocks),
        },
    }
    for name in HERE:
        names = set(Golden(PROBES / f"{name}.npz").names)
        kinds = ("semanticgan", "sg2ada_4ch", "sg3_4ch", "sg3_", "ros", "dgan")
        kind = next((kind for kind in kinds if name.startswith(kind)), "sg2")
        assert expected[kind] <= names
        if name in JOINT:
            continue
        if name.startswith("sg3_"):
            assert len([key for key in names if re.match(r"feat/L\d+_", key)]) == 15
        if name.startswith("sg"):
            assert len([key for key in names if key.startswith("ws_psi0.7_cut")]) == 2
    for name, how in LABELS.items():
        names = set(Golden(PROBES / f"{name}.npz").names)
        assert {"logits", "member_argmax", "features_at_check_pixels", "image_uint8"} <= names
        if how.members_here == 10:
            assert {"uncertainty", "label_mode", "label_argmax_mean", "mean_softmax", "full_entropy"} <= names


@pytest.mark.parametrize("name", LABELS)
def test_few_labels_are_excused_as_near_ties(name):
    computed = label_arrays(PROBES, name)
    for key in ("member_argmax", "label_mode", "label_argmax_mean"):
        assert computed[key].close.float().mean() < 0.02, key
    votes = {key: computed[key].values for key in ("label_mode", "label_argmax_mean")}
    assert (votes["label_mode"] != votes["label_argmax_mean"]).float().mean() > 0.05, "the votes must differ"


def test_layouts_share_their_maps():
    path = PROBES / "sg2ada_fullsnapshot16.pkl"
    with_const = load_generator(path, device="cpu", features="const+convs")
    convs = load_generator(path, device="cpu", features="convs")
    ws = convs.mapping(torch.ones(2, convs.z_dim))
    expected, got = with_const.synthesis(ws)[1], convs.synthesis(ws)[1]
    assert [f.shape[1] for f in expected] == with_const.feature_channels
    assert [f.shape[2] for f in expected] == with_const.feature_resolutions
    assert len(got) == len(expected) - 1
    assert all(torch.equal(a, b) for a, b in zip(got, expected[1:], strict=True))
    assert [info.name for info in with_const.feature_info] == ["b4.const", "b4.conv1", *CONVS_TO_16]
    assert with_const.feature_info[1:] == convs.feature_info


@pytest.mark.parametrize("name", [*HERE, *(name for name in DIALECTS if name in sets_here())])
def test_each_map_is_as_its_info_says(name):
    generator = load_generator(generator_file(PROBES, name), device="cpu")
    c = torch.eye(generator.c_dim)[:1] if generator.c_dim else None
    _, maps = generator.synthesis(generator.mapping(torch.ones(1, generator.z_dim), c))
    shapes = [(info.channels, *info.size) for info in generator.feature_info]
    assert [tuple(f.shape[1:]) for f in maps] == shapes
    assert [info.channels for info in generator.feature_info] == generator.feature_channels
    assert [info.resolution for info in generator.feature_info] == generator.feature_resolutions
    assert len({info.name for info in generator.feature_info}) == len(maps)


@pytest.mark.parametrize("name", ["sg2ada_fullsnapshot16", "sg2ada_uncond32_resnet"])
def test_each_layer_reads_its_own_w(name):
    """The reference repeats one w, so it cannot tell; the order is the one that its README gives."""
    generator = load_generator(PROBES / f"{name}.pkl", device="cpu", features="const+convs")
    ws = torch.randn(1, generator.num_ws, generator.w_dim, generator=torch.Generator().manual_seed(0))
    last_w = {"const": -1}  # output -> last of the style vectors that it depends on
    for j, r in enumerate(generator.synthesis_network.resolutions):
        last_w |= {f"b{r}.conv0": 2 * j - 1, f"b{r}.conv1": 2 * j, f"b{r}.out": 2 * j}
        last_w |= {f"b{r}.torgb": 2 * j + 1, f"b{r}.skip": 2 * j - 2}
    before = layer_outputs(generator, ws, "const")
    for i in range(generator.num_ws):
        changed = ws.clone()
        changed[:, i] *= 1.5
        after = layer_outputs(generator, changed, "const")
        assert {key for key in after if not torch.equal(after[key], before[key])} == {
            key for key in after if i <= last_w[key]
        }


@pytest.mark.parametrize("name", ["sg3_t_32", "sg3_r_32"])
def test_stylegan3_maps_are_returned_without_their_margin(name):
    """The reference has the margins, and `compare_set` compares the maps with them."""
    generator = load_generator(PROBES / f"{name}.pkl", device="cpu")
    ws = generator.mapping(torch.randn(2, generator.z_dim, generator=torch.Generator().manual_seed(0)))
    image, maps = generator.synthesis_network(ws, torch.float32)
    margins = [10] * 14 + [0]  # the last layer before the image already has its size
    assert [f.shape[2] - side for f, side in zip(maps, generator.feature_resolutions, strict=True)] == [
        2 * margin for margin in margins
    ]
    got = generator.synthesis(ws)
    assert torch.equal(got[0], image)
    for cropped, whole, margin in zip(got[1], maps, margins, strict=True):
        side = whole.shape[2]
        assert torch.equal(cropped, whole[:, :, margin : side - margin, margin : side - margin])
    assert [f.shape[1] for f in got[1]] == generator.feature_channels


@pytest.mark.parametrize("name", ["sg3_t_32", "sg3_r_32", "dgan_sg1_128"])
def test_each_map_reads_the_styles_up_to_its_own(name):
    """The reference repeats one w, so it cannot tell."""
    generator = reference_generator(PROBES, name)
    ws = torch.randn(1, generator.num_ws, generator.w_dim, generator=torch.Generator().manual_seed(0))
    before = generator.synthesis(ws)[1]
    for i in range(len(before)):
        changed = ws.clone()
        changed[:, i] *= 1.5
        after = generator.synthesis(changed)[1]
        differs = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        if name.startswith("sg3"):
            reads = [j >= i for j in range(len(before))]
        else:  # of each block its output, which reads both of the block's styles, then its raw convolution: the first
            reads = [(j // 2, 1 - j % 2) >= (i // 2, i % 2) for j in range(len(before))]
        assert differs == reads


# --- published classifiers ---


def rewritten(source: Path, target: Path, change) -> Path:
    """The classifiers of a folder, each state dict changed by `change(number, state) -> content`."""
    target.mkdir()
    for path in source.glob("model_*.pth"):
        number = int(path.stem.removeprefix("model_"))
        state = torch.load(path, weights_only=True)["model_state_dict"]
        torch.save(change(number, state), target / path.name)
    return target


def without_prefix(state):
    assert all(name.startswith("module.") for name in state)
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


@pytest.mark.parametrize("wrapped", [True, False])
def test_classifiers_load_without_the_module_prefix(tmp_path, wrapped):
    def change(number, state):
        state = without_prefix(state)
        return {"model_state_dict": state} if wrapped else state

    expected = load_interpreter(CLASSIFIERS, device="cpu").state_dict()
    got = load_interpreter(rewritten(CLASSIFIERS, tmp_path / "plain", change), device="cpu").state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_classifiers_are_in_numeric_order(tmp_path):
    def mark(number, state):
        return {
            "model_state_dict": {
                **state,
                "module.layers.0.bias": torch.full_like(state["module.layers.0.bias"], number),
            }
        }

    folder = rewritten(CLASSIFIERS, tmp_path / "eleven", mark)
    ten = mark(10, torch.load(CLASSIFIERS / "model_0.pth", weights_only=True)["model_state_dict"])
    torch.save(ten, folder / "model_10.pth")
    assert load_interpreter(folder, device="cpu").b1[:, 0].tolist() == list(range(11))


def test_classifiers_that_differ_in_shape_are_refused(tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(CLASSIFIERS, folder)
    shutil.copy(PROBES / "sg2ada_uncond64_skip_c34_ckpt" / "model_3.pth", folder / "model_3.pth")
    with pytest.raises(CheckpointError, match=r"model_3\.pth: layers\.\d.* has shape .* in model_0\.pth"):
        load_interpreter(folder, device="cpu")


# --- the comparison itself ---


def save_npz(path: Path, array: np.ndarray) -> Golden:
    path.write_bytes(npz(probes("seed", "a", array)))
    return Golden(path)


@pytest.mark.parametrize("shape", [(7, 11), (3, 40, 50)], ids=["whole", "probes"])
def test_a_difference_is_found(tmp_path, shape):
    array = np.random.RandomState(0).randn(*shape).astype(np.float32)
    golden = save_npz(tmp_path / "a.npz", array)
    assert golden.names == ["a"]
    assert golden.compare("a", torch.from_numpy(array)).error == 0
    off = torch.from_numpy(array) + 3e-4 * float(np.abs(array).max())
    assert golden.compare("a", off).error == pytest.approx(3e-4, rel=1e-3)
    assert not golden.compare("a", off).ok
    assert not golden.compare("a", torch.full(shape, torch.nan)).ok
    with pytest.raises(ValueError, match="shape"):
        golden.compare("a", off.flatten())


def test_probes_are_fixed_and_independent_of_the_values():
    array = np.random.RandomState(0).randn(100, 100).astype(np.float32)
    first, second = probes("seed", "a", array), probes("seed", "a", -5 * array)
    assert len(np.unique(first["a@index"])) == PROBE_COUNT
    assert np.array_equal(first["a@index"], second["a@index"])
    assert not np.array_equal(first["a@index"], probes("other", "a", array)["a@index"])
    assert first["a@max"] == np.abs(array).max()
    assert npz(first) == npz(probes("seed", "a", array.copy()))


def test_images_may_be_off_by_one_level_and_labels_only_where_two_classes_tie(tmp_path):
    array = np.random.RandomState(0).randint(0, 200, (6, 6)).astype(np.uint8)
    golden, got = save_npz(tmp_path / "a.npz", array), torch.from_numpy(array.copy())
    got[2, 3] += 1
    assert golden.compare("a", got).ok
    tied = torch.zeros(6, 6, dtype=torch.bool)
    assert golden.compare("a", got, tied).error == 1
    tied[2, 3] = True
    assert golden.compare("a", got, tied).ok
    got[2, 3] += 1
    assert not golden.compare("a", got).ok


def test_an_array_that_nothing_is_compared_with_is_an_error(tmp_path):
    name = "sg2ada_fullsnapshot16"
    shutil.copy(PROBES / f"{name}.pkl", tmp_path)
    with np.load(PROBES / f"{name}.npz") as file:
        entries = {**file, "feat/b99.conv1": np.zeros(3)}
    (tmp_path / f"{name}.npz").write_bytes(npz(entries))
    with pytest.raises(ValueError, match=r"feat/b99\.conv1"):
        compare_set(tmp_path, name)


def test_a_wrong_weight_breaks_parity():
    """One bias off by a thousandth of the largest feature is seen."""
    name = "sg2ada_fullsnapshot16"
    golden = Golden(PROBES / f"{name}.npz")
    computed = generator_arrays(PROBES, name)["feat/b16.conv1"].values
    computed[:, 3] += 10 * TOLERANCE["relative"] * computed.abs().max()
    assert not golden.compare("feat/b16.conv1", computed).ok
