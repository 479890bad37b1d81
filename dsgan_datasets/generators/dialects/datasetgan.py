"""StyleGAN1 in the PyTorch port that DatasetGAN uses: a state dict of ``g_mapping`` and ``g_synthesis``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsgan_datasets.checkpoints.tensors import digest_tensors
from dsgan_datasets.generators.dialects.average import read_average
from dsgan_datasets.generators.dialects.base import (
    Dialect,
    ImportedGenerator,
    Tensors,
    check_filter,
    check_nothing_left,
    named_tensors,
)
from dsgan_datasets.generators.dialects.containers import TORCH_FILE
from dsgan_datasets.generators.stylegan1 import StyleGAN1Config
from dsgan_datasets.latents import Quantity, domain, normals, philox_words


def _matches(content: Any) -> bool:
    return isinstance(content, Mapping) and "g_synthesis.torgb.weight" in content


def _read(content: Any, path: Path) -> ImportedGenerator:
    theirs, average = named_tensors(content), path.with_name(f"{path.stem}_avg_latent.npy")
    # Drawn before anything is taken out, from the file's own tensors: the same file, the same noise.
    seed = int(digest_tensors(theirs)[:16], 16)
    noise_weight = re.compile(r"g_synthesis\.blocks\.(\d+)x\1\.epi1\.top_epi\.noise\.weight")
    resolutions = sorted(int(m[1]) for name in theirs if (m := noise_weight.fullmatch(name)))
    ours: Tensors = {}

    def take(ours_name: str, theirs_name: str) -> None:
        ours[ours_name] = theirs.pop(theirs_name)

    depth = len([name for name in theirs if re.fullmatch(r"g_mapping\.dense\d+\.weight", name)])
    for i in range(depth):
        take(f"mapping.fc{i}.weight", f"g_mapping.dense{i}.weight")
        # Their gain sqrt(2) is inside the activation, on the weights alone; ours follows it.
        ours[f"mapping.fc{i}.bias"] = theirs.pop(f"g_mapping.dense{i}.bias") / math.sqrt(2)
    for i, r in enumerate(resolutions):
        block, source = f"synthesis.b{r}", f"g_synthesis.blocks.{r}x{r}"
        if i == 0:
            take(f"{block}.bias", f"{source}.bias")
            ours[f"{block}.const"] = theirs.pop(f"{source}.const")[0]
        convs = {"conv1": "conv"} if i == 0 else {"conv0": "conv0_up", "conv1": "conv1"}
        for name, their_name in convs.items():
            take(f"{block}.{name}.weight", f"{source}.{their_name}.weight")
            take(f"{block}.{name}.bias", f"{source}.{their_name}.bias")
        for j in range(2):
            take(f"{block}.epilogue{j}.noise_strength", f"{source}.epi{j + 1}.top_epi.noise.weight")
            take(f"{block}.epilogue{j}.affine.weight", f"{source}.epi{j + 1}.style_mod.lin.weight")
            take(f"{block}.epilogue{j}.affine.bias", f"{source}.epi{j + 1}.style_mod.lin.bias")
            ours[f"{block}.epilogue{j}.noise_const"] = _fixed_noise(seed, 2 * i + j, r)
    for part in ("weight", "bias"):
        take(f"synthesis.torgb.{part}", f"g_synthesis.torgb.{part}")
    for name in [name for name in theirs if name.endswith("intermediate.kernel")]:
        check_filter(name, theirs.pop(name), [1, 2, 1])
    check_nothing_left(theirs)
    notes = [f"noise drawn from the weights' hash (seed {seed}), as the file has none"]
    if average.is_file():
        ours["mapping.w_avg"] = read_average(average)
        notes.append(f"average w from {average.name}")
    else:
        notes.append(f"no average w: truncation is not possible without avg_latent, or {average.name} beside the file")
    config = StyleGAN1Config(
        z_dim=ours["mapping.fc0.weight"].shape[1],
        w_dim=ours["mapping.fc0.weight"].shape[0],
        mapping_layers=depth,
        img_resolution=resolutions[-1],
        img_channels=ours["synthesis.torgb.weight"].shape[0],
        channels={r: ours[f"synthesis.b{r}.conv1.weight"].shape[0] for r in resolutions},
        has_w_avg=average.is_file(),
    )
    return ImportedGenerator(config, ours, tuple(notes))


def _fixed_noise(seed: int, layer: int, resolution: int) -> Tensor:
    """Standard normal noise [resolution, resolution]: the same for the same seed and layer."""
    words = philox_words(
        torch.tensor([layer], device="cpu"), resolution * resolution, seed=seed, domain=domain(Quantity.NOISE)
    )
    return torch.from_numpy(normals(words).reshape(resolution, resolution).copy())


DATASETGAN = Dialect(
    name="StyleGAN1 state dict (g_mapping, g_synthesis)",
    readable="a StyleGAN1 .pt as DatasetGAN uses it (g_mapping, g_synthesis)",
    container=TORCH_FILE,
    matches=_matches,
    read=_read,
)
