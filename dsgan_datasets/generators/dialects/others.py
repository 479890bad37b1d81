"""Files of well-known kinds that cannot be read: what they are, and the way out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dsgan_datasets.checkpoints.pickles import Holder
from dsgan_datasets.generators.dialects.states import ENTRIES, names_of

_NOT_YET = "is not read: open an issue if you need it"
#: A name of a tensor -> what the file is.
_MARKS: tuple[tuple[str, str], ...] = (
    (r"(.*\.)?iwt\.ll", f"a SWAGAN generator, which {_NOT_YET}"),
    (r"(.*\.)?generator\.progression\.0\..*", f"a StyleGAN1 of rosinality's style-based-gan-pytorch, which {_NOT_YET}"),
    (r"(.*\.)?convs\.0\.conv1\.input", f"a StyleGAN1 of mmgeneration or mmagic, which {_NOT_YET}"),
    (r"(.*\.)?style_mlp\.1\.weight", f"a StyleGAN2 of basicsr, which {_NOT_YET}"),
    (r"(model\.)?diffusion_model\..*|.*\.to_q\.weight", "a diffusion model, which has no latent space to label"),
    (
        r"(module\.)?layers\.[036]\.weight",
        "a pixel classifier of DatasetGAN, not a generator: pass the folder of all of them as the interpreter",
    ),
    (
        r"(.*\.)?final_linear\.1\.weight|(.*\.)?b4\.mbstd.*",
        "a discriminator: the generator is in another entry or file",
    ),
    (
        r"(.*\.)?features\.0\.weight|(.*\.)?layer1\.0\.conv1\.weight",
        "a network that classifies images, not a generator",
    ),
    (r"(.*\.)?encoder\..*", "an encoder without its generator: pass the generator that it was trained for"),
)


def what_else(content: Any) -> str | None:
    """What a file is whose content is of no dialect; None if that is not known either."""
    candidates = [content]
    if isinstance(content, Mapping):
        candidates += [
            content[name] for name in (*ENTRIES, "d", "D") if isinstance(content.get(name), Mapping | Holder)
        ]
    for candidate in candidates:
        names = names_of(candidate)
        for pattern, what in _MARKS:
            if any(re.fullmatch(pattern, name) for name in names):
                return what
    return None
