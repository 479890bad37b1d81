"""StyleGAN1 in the PyTorch port that DatasetGAN uses: a state dict of ``g_mapping`` and ``g_synthesis``."""

from __future__ import annotations

import math
import re
from pathlib import Path

from dsgan_datasets.files import is_file
from dsgan_datasets.generators.dialects.average import average_w, read_average
from dsgan_datasets.generators.dialects.base import (
    Dialect,
    Found,
    ImportedGenerator,
    Tensors,
    check_filter,
    check_nothing_left,
    take,
)
from dsgan_datasets.generators.dialects.noise import check_doubling, drawn, fixed_noise, seed_of
from dsgan_datasets.generators.dialects.states import count, finder, tensors_of
from dsgan_datasets.generators.stylegan1 import StyleGAN1Config

_MARK = "g_synthesis.torgb.weight"


def _read(found: Found, path: Path) -> ImportedGenerator:
    theirs, average = tensors_of(found, _MARK), path.with_name(f"{path.stem}_avg_latent.npy")
    inside = theirs.pop("truncation.avg_latent", None)
    # Drawn before anything else is taken out, from the file's own tensors: the same weights, the same noise.
    seed = seed_of(theirs)
    noise_weight = re.compile(r"g_synthesis\.blocks\.(\d+)x\1\.epi1\.top_epi\.noise\.weight")
    resolutions = sorted(int(m[1]) for name in theirs if (m := noise_weight.fullmatch(name)))
    check_doubling([(r, r) for r in resolutions])
    ours: Tensors = {}
    depth = count(theirs, r"g_mapping\.dense\d+\.weight")
    for i in range(depth):
        ours[f"mapping.fc{i}.weight"] = take(theirs, f"g_mapping.dense{i}.weight")
        # Their gain sqrt(2) is inside the activation, on the weights alone; ours follows it.
        ours[f"mapping.fc{i}.bias"] = take(theirs, f"g_mapping.dense{i}.bias") / math.sqrt(2)
    for i, r in enumerate(resolutions):
        block, source = f"synthesis.b{r}", f"g_synthesis.blocks.{r}x{r}"
        if i == 0:
            ours[f"{block}.bias"] = take(theirs, f"{source}.bias")
            ours[f"{block}.const"] = take(theirs, f"{source}.const")[0]
        convs = {"conv1": "conv"} if i == 0 else {"conv0": "conv0_up", "conv1": "conv1"}
        for name, their_name in convs.items():
            ours[f"{block}.{name}.weight"] = take(theirs, f"{source}.{their_name}.weight")
            ours[f"{block}.{name}.bias"] = take(theirs, f"{source}.{their_name}.bias")
        for j in range(2):
            epilogue, style = f"{block}.epilogue{j}", f"{source}.epi{j + 1}.style_mod.lin"
            ours[f"{epilogue}.noise_strength"] = take(theirs, f"{source}.epi{j + 1}.top_epi.noise.weight")
            ours[f"{epilogue}.affine.weight"] = take(theirs, f"{style}.weight")
            ours[f"{epilogue}.affine.bias"] = take(theirs, f"{style}.bias")
            ours[f"{epilogue}.noise_const"] = fixed_noise(seed, 2 * i + j, (r, r))
    for part in ("weight", "bias"):
        ours[f"synthesis.torgb.{part}"] = take(theirs, f"g_synthesis.torgb.{part}")
    for name in [name for name in theirs if name.endswith("intermediate.kernel")]:
        check_filter(name, theirs.pop(name), [1, 2, 1])
    check_nothing_left(theirs)
    notes = [drawn(seed)]
    if is_file(average):
        ours["mapping.w_avg"] = read_average(average)
        notes.append(f"average w from {average.name}")
    elif inside is not None:
        ours["mapping.w_avg"] = average_w(inside)
    config = StyleGAN1Config(
        z_dim=ours["mapping.fc0.weight"].shape[1],
        w_dim=ours["mapping.fc0.weight"].shape[0],
        mapping_layers=depth,
        img_resolution=resolutions[-1],
        img_channels=ours["synthesis.torgb.weight"].shape[0],
        channels={r: ours[f"synthesis.b{r}.conv1.weight"].shape[0] for r in resolutions},
        has_w_avg="mapping.w_avg" in ours,
    )
    return ImportedGenerator(config, ours, tuple(notes))


DATASETGAN = Dialect(
    name="StyleGAN1 state dict (g_mapping, g_synthesis)",
    readable="a StyleGAN1 .pt as DatasetGAN uses it",
    find=finder(_MARK),
    read=_read,
)
