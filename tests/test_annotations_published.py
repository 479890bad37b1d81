"""DatasetGAN's published layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from annotation_folders import equal, mistakes
from conftest import small_stylegan1

from dsgan_datasets import Recipe, load_generator
from dsgan_datasets.annotations import load_annotations
from dsgan_datasets.annotations.folder import Array
from dsgan_datasets.generators.synthesis import synthesize


def published(folder: Path, masks: Array, latents: Array) -> None:
    folder.mkdir()
    for i, mask in enumerate(masks):
        np.save(folder / f"image_mask{i}.npy", mask.astype(np.uint8))
    np.save(folder / "latent_stylegan1.npy", latents)
    np.save(folder / "avg_latent_stylegan1.npy", np.full((18, 16), 0.25, dtype=np.float32))


def stylegan1(folder: Path) -> Path:
    path = folder / "g.for_g_all.pt"
    torch.save(small_stylegan1(), path)
    return path


def test_the_published_layout(tmp_path: Path) -> None:
    masks = np.zeros((2, 16, 24), dtype=np.int64)
    masks[:, 3:9, 4:12], masks[:, 10:, :] = 1, 2
    latents = np.random.RandomState(0).randn(2, 16)
    published(tmp_path / "p", masks, latents)
    file = stylegan1(tmp_path)
    (output,) = mistakes(tmp_path / "p", file, device="cpu")
    assert "ids up to 2" in output and "--classes" in output
    found = load_annotations(tmp_path / "p", file, classes=("background", "a", "b"), device="cpu")
    assert equal(found, masks) and np.array_equal(found.latents.numpy(), latents.astype(np.float32))
    assert found.recipe == Recipe(truncation_psi=0.7, truncation_cutoff=8, size=(16, 24))
    assert found.generator is not None and found.generator.mean_w is not None
    assert torch.equal(found.generator.mean_w, torch.full((16,), 0.25))
    images, _ = synthesize(found.generator, found.recipe, found.latents)
    assert images.shape[2:] == found.masks.shape[1:]
    other = load_generator(file, device="cpu", avg_latent=torch.zeros(16))
    (output,) = mistakes(tmp_path / "p", other, classes=("background", "a", "b"))
    assert "another average w" in output
    changed = load_annotations(tmp_path / "p", classes=("background", "a", "b"), truncation_psi=0.5)
    assert changed.recipe.truncation_psi == 0.5


def test_mistakes_in_the_published_layout(tmp_path: Path) -> None:
    masks = np.zeros((5, 16, 16), dtype=np.int64)
    masks[:, 3:9] = 1
    published(tmp_path / "p", masks, np.zeros((5, 16)))
    folder = tmp_path / "p"
    np.save(folder / "image_mask0.npy", np.zeros((8, 8), dtype=np.uint8))
    np.save(folder / "image_mask1.npy", np.full((16, 16), 9))
    np.save(folder / "image_mask2.npy", np.array([{}]), allow_pickle=True)
    (folder / "image_mask3.npy").unlink()
    np.save(folder / "image_mask7.npy", masks[0])
    output = "\n".join(mistakes(folder, classes=("background", "a")))
    for words in (
        "image_mask0.npy: is 8×8 pixels", "image_mask1.npy: holds unknown class 9", "image_mask2.npy: is not an .npy",
        "image_mask3: has no annotation", "image_mask7: no such image",
    ):  # fmt: skip
        assert words in output
