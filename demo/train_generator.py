"""Train the StyleGAN2 of the demo on folders or WebDataset tars of images; training resumes after every stop.

Examples:
    # from a trained start, until Ctrl-C (or SIGTERM); the same command resumes
    python demo/train_generator.py --images DOMAIN/train-*.tar --start DOMAIN/start \\
        --annotator annotator.safetensors --state runs/faces

    # in slices of nine minutes
    python demo/train_generator.py --images DOMAIN/train-*.tar --start DOMAIN/start \\
        --annotator annotator.safetensors --state runs/faces --minutes 9

    # 128×128 from nothing, on a GPU, with a further discriminator that knows ImageNet
    python demo/train_generator.py --images photos/ --state runs/big --resolution 128 --batch 32 --imagenet 0.5

    # late in a training of faces: another one that looks at close-ups of eyes, mouth and nose
    python demo/train_generator.py --images faces/ --state runs/big --resolution 128 --batch 32 --imagenet 0.5 \\
        --closeups 1 --points parts.safetensors --lr 0.0003 --change-settings

The state folder holds all that is learned (files of at most 15 MB), grids of samples over time (samples/,
evolution.png) and, with --annotator, the best generator by the Frechet distance to renders that were never trained on
(best/, which `dsgan annotate` and `dsgan fit` take). Never give it the tar that is kept for testing.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from annotator import load_annotator
from closeups import Closeups
from commands import MAX_THREADS, new_parser
from discriminator import GROUP, Discriminator, augment, r1_penalty
from growing import Phase, describe_phase, extend, grow_discriminator, phase_at
from images import digest, read_images, split
from PIL import Image
from point_annotator import PointAnnotator, load_point_annotator
from pretrained_discriminator import PretrainedDiscriminator, discriminator_loss, generator_loss
from quality import Ruler
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from training_state import (
    StateError,
    Tensors,
    load_state,
    locked,
    read_json,
    read_tensors,
    recover_best,
    save_best,
    save_state,
    start_folder,
)

from dsgan_datasets import sample_latents
from dsgan_datasets.files import atomic_write, write_json
from dsgan_datasets.generators import (
    FeatureGenerator,
    StyleGAN2,
    StyleGAN2Config,
    generator_tensors,
    load_generator,
    save_generator,
)
from dsgan_datasets.images import open_picture

#: Channels of a network that does not start from another one.
CHANNELS = {4: 128, 8: 128, 16: 96, 32: 64, 64: 32, 128: 16, 256: 16}
#: Its channels by resolution, in config.json; older ones lack it: they were those of the generator.
DISCRIMINATOR = "discriminator_channels"
#: Columns and rows of a grid of samples.
GRID = (8, 4)
#: Sample grids that are kept; more are thinned out.
MAX_GRIDS = 12
#: Truncation psi of the sample grids: that of the demo.
PSI = 0.7
#: Of a further discriminator. Where it is too large, Adam's moments overflow, and nothing is learned any more.
MAX_WEIGHT = 1000
#: Mean error of points, as a share of the side, above which close-ups hardly show what they should.
MAX_POINT_ERROR = 0.05
#: The learning rate rises over this number of steps, as Adam starts without its moments.
WARMUP = 100
#: Further discriminators learn at this rate at least, so that they may join late; the generator listens to one more and
#: more over so many of its steps.
FURTHER_RATE, LISTENING = 1e-3, 300
#: Share of real images that the discriminator is sure of, and images after which p may have gone from 0 to 1
#: (StyleGAN2-ADA, section 3.1).
ADA_TARGET, ADA_IMAGES = 0.6, 500_000
#: Loss of a discriminator that cannot tell real images from generated ones, how near counts, and for how many images.
CHANCE, NEAR_CHANCE, CHANCE_IMAGES = 2 * math.log(2), 0.02, 4_000


# --------------------------------------------------------------------------------------------- networks


@dataclass(frozen=True)
class TrainingSettings:
    """What distinguishes two trainings; stored with the state."""

    seed: int = 0
    batch: int = 16
    lr: float = 2e-3
    gamma: float = 0.4  # weight of R1
    r1_every: int = 16
    ema_images: int = 10_000
    mirror: bool = True
    augment: bool = False
    imagenet: float = 0.0  # weight of a discriminator on features of ImageNet
    closeups: float = 0.0  # weight of one that looks at close-ups
    points: str = ""  # what finds them: sha256 of its file
    validation: float = 0.1


def generator_config(fields: Mapping[str, Any]) -> StyleGAN2Config:
    """Shape from the config.json of a training folder."""
    try:
        shape = ("z_dim", "w_dim", "img_resolution", "channels", "conv_clamp")
        names = (*shape, "mapping_layers", "mapping_lr_multiplier")
        return StyleGAN2Config(block="skip", **{name: fields[name] for name in names})
    except (LookupError, TypeError, ValueError) as error:
        raise StateError(f"config.json does not belong to a training folder: {error!r}") from error


def config_fields(config: StyleGAN2Config, channels: Mapping[int, int], images_seen: int) -> dict[str, Any]:
    """Inverse of `generator_config` and `discriminator_channels`."""
    fields = {**config.to_dict(), "architecture": "stylegan2-skip", "images_seen": images_seen}
    return {**fields, DISCRIMINATOR: {str(r): n for r, n in channels.items()}}


def new_generator(config: StyleGAN2Config, random: torch.Generator) -> StyleGAN2:
    """An untrained generator: unit-normal weights, styles of one, no noise (StyleGAN2)."""
    generator = StyleGAN2(config)
    with torch.no_grad():
        for name, tensor in generator.state_dict().items():
            if name.endswith(("weight", "const", "noise_const")):
                tensor.normal_(generator=random)
            elif name.endswith("affine.bias"):
                tensor.fill_(1)
            else:
                tensor.zero_()
        for name, tensor in generator.mapping_network.named_parameters():
            if name.endswith("weight"):
                tensor.div_(config.mapping_lr_multiplier)
    return generator


def put(network: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Copy tensors into a network.

    Raises:
        StateError: names or shapes differ.
    """
    own = generator_tensors(network) if isinstance(network, StyleGAN2) else network.state_dict()
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("resample_filter")}
    differing = list(own.keys() ^ tensors.keys())
    differing += [name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape]
    if differing:
        raise StateError(f"{what} does not fit the network: {', '.join(sorted(differing)[:4])} ({len(differing)})")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def synthesize(
    generator: StyleGAN2, z: Tensor, noise: list[Tensor] | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Images [N, 3, H, W] and w [N, w_dim] with gradients; derived values are recomputed on each call."""
    generator.precompute()
    ws = generator.mapping(z)
    images, _ = generator.synthesis(ws, noise=noise, dtype=dtype)
    return images, ws[:, 0]


@torch.no_grad()
def images_of(generator: FeatureGenerator, z: Tensor, psi: float = 1.0, batch_size: int = 32) -> Tensor:
    """Images uint8 [N, 3, H, W] of a frozen generator, on the CPU."""
    parts = []
    for block in z.to(generator.device).split(batch_size):
        image, _ = generator.synthesis(generator.mapping(block, truncation_psi=psi))
        parts.append((image * 127.5 + 128).clamp(0, 255).to(torch.uint8).cpu())
    return torch.cat(parts)


# --------------------------------------------------------------------------------------------- training


@dataclass
class Further:
    """A further discriminator: its small networks learn, and the generator listens to it."""

    network: PretrainedDiscriminator
    optimizer: torch.optim.Optimizer
    weight: float  # of its part of the generator's loss

    @property
    def steps(self) -> int:
        """Those of its training on each view."""
        return max((int(state.get("step", 0)) for state in self.optimizer.state.values()), default=0)


class Training:
    """Generator, its average, discriminators and their optimizers: everything that a step changes.

    Each step draws its random numbers from (seed, step) alone, so stopping and resuming changes nothing.

    Args:
        config: shape of the generator.
        settings: the rules.
        device: where it runs.
        dtype: precision of the convolutions; R1 is always float32.
        channels: resolution -> channels of the discriminator; None: those of the generator.
        locator: finds what close-ups show, if the settings want them.
    """

    def __init__(
        self,
        config: StyleGAN2Config,
        settings: TrainingSettings,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels: Mapping[int, int] | None = None,
        locator: PointAnnotator | None = None,
    ) -> None:
        self.config, self.settings = config, settings
        self.channels = dict(channels or config.channels)
        self.device, self.dtype = torch.device(device), dtype
        random = torch.Generator().manual_seed(settings.seed)
        with torch.random.fork_rng(devices=[]):  # torch initializes layers from its global generator only
            torch.manual_seed(settings.seed)
            self.discriminator = Discriminator(self.channels)
            further = {}
            if settings.imagenet:
                further["pretrained"] = PretrainedDiscriminator(config.img_resolution, dtype), settings.imagenet
            if settings.closeups:
                assert locator is not None
                views = [Closeups(locator.to(self.device), dtype)]
                closeups = PretrainedDiscriminator(config.img_resolution, dtype, views)
                further["closeups"] = closeups, settings.closeups
        self.generator = new_generator(config, random)
        self.ema = StyleGAN2(config)
        self.ema.load_state_dict(self.generator.state_dict())
        for network in (self.generator, self.ema, self.discriminator, *(network for network, _ in further.values())):
            network.to(self.device).to(memory_format=torch.channels_last)
        self.ema.freeze()
        self.step = 0
        self.images_seen = 0
        self.p = 0.0  # probability of augmentation
        self.sureness = 0.0  # running mean of sign(D(real)): 1 is a discriminator that knows its images by heart
        self.d_loss = 0.0  # running mean
        self.images_at_chance = 0  # since the discriminator last told real images from generated ones
        self.grown_from: int | None = None  # resolution of the start, if that was coarser
        self.grown_at = 0  # images_seen when it was grown
        # Lazy R1 (StyleGAN2, appendix B): the step it adds is made up for by a smaller rate and a longer memory.
        c = settings.r1_every / (settings.r1_every + 1)
        self.g_optimizer = torch.optim.Adam(self.generator.parameters(), settings.lr, (0.0, 0.99))
        self.d_optimizer = torch.optim.Adam(self.discriminator.parameters(), settings.lr * c, (0.0, 0.99**c))
        self._d_rate = settings.lr * c
        self._further_rate = max(settings.lr, FURTHER_RATE)
        self.further = {
            name: Further(network, torch.optim.Adam(network.heads.parameters(), betas=(0.0, 0.99)), weight)
            for name, (network, weight) in further.items()
        }

    # --- one step ---

    def train_step(self, renders: Tensor) -> dict[str, Tensor]:
        """One step of discriminator and generator on the next batch of renders uint8 [N, 3, H, W]; losses."""
        s = self.settings
        seed = np.random.SeedSequence((s.seed, self.step)).generate_state(1, np.uint64)[0]
        random = torch.Generator(self.device).manual_seed(int(seed))
        phase = self._begin_step()

        real = augment(self._real_batch(renders), self.p, random)
        with torch.set_grad_enabled(phase.generator_rate > 0):  # all networks learn from the same images
            fake, w = self._fake_batch(random)
            fake = augment(fake, self.p, random)
        real_logits = self.discriminator(real, self.dtype)
        d_loss = F.softplus(self.discriminator(fake.detach(), self.dtype)).mean() + F.softplus(-real_logits).mean()
        self._update(self.d_optimizer, d_loss)
        losses = {"D": d_loss.detach()}
        if self.step % s.r1_every == 0:
            penalty = r1_penalty(self.discriminator, real).mean()
            if gamma := s.gamma * phase.gamma:
                self._update(self.d_optimizer, penalty * (gamma / 2 * s.r1_every))
            losses["R1"] = penalty.detach()

        self.step += 1
        self.images_seen += s.batch
        if phase.generator_rate:
            self.discriminator.requires_grad_(False)  # its gradients would cost time and are not used
            g_loss = F.softplus(-self.discriminator(fake, self.dtype)).mean()
            losses["G"] = g_loss.detach()
            if self.further:  # in turn, as each costs half a step
                turn, which = divmod(self.step, len(self.further))
                name = list(self.further)[which]
                losses[name], judged = self._ask(self.further[name], turn, real, fake, random)
                g_loss = g_loss + judged
            self._update(self.g_optimizer, g_loss)
            self.discriminator.requires_grad_(True)
            self._average(w.detach())
        self._adapt(float(real_logits.detach().sign().mean()))
        self._watch(float(losses["D"]))
        return losses

    def _ask(
        self, further: Further, turn: int, real: Tensor, fake: Tensor, random: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Let a further discriminator learn; its loss, and that of the generator by it."""
        network = further.network
        view = turn % len(network.views)
        real_features, features = map(network.features, network.views[view]([real, fake], random))
        loss = discriminator_loss(network(real_features, view), network([maps.detach() for maps in features], view))
        self._update(further.optimizer, loss)
        network.heads.requires_grad_(False)
        judged = generator_loss(network(features, view))
        network.heads.requires_grad_(True)
        return loss.detach(), judged * further.weight * min(1.0, further.steps / LISTENING)

    def _begin_step(self) -> Phase:
        """Set rates and what trains; the phase of growing, if any."""
        s = self.settings
        phase, within = phase_at(self._images_since_growth())
        warm = min(1.0, ((self.step if self.grown_from is None else within // s.batch) + 1) / WARMUP)
        self.d_optimizer.param_groups[0]["lr"] = self._d_rate * warm
        self.g_optimizer.param_groups[0]["lr"] = s.lr * phase.generator_rate * warm
        for further in self.further.values():
            further.optimizer.param_groups[0]["lr"] = self._further_rate * warm
        new = tuple(f"synthesis_network.b{r}." for r in self._finer_than(self.grown_from or self.config.img_resolution))
        for name, parameter in self.generator.named_parameters():
            parameter.requires_grad_(not phase.new_block_only or name.startswith(new))
        return phase

    def _images_since_growth(self) -> int:
        """Images of the transition to a finer resolution so far; more than it takes if there is none."""
        return sys.maxsize if self.grown_from is None else self.images_seen - self.grown_at

    @property
    def phase(self) -> str:
        """What the transition to a finer resolution is doing; empty after it, and without one."""
        return describe_phase(self._images_since_growth())

    def _finer_than(self, resolution: int) -> list[int]:
        return [r for r in self.config.resolutions if r > resolution]

    def _watch(self, d_loss: float) -> None:
        """Count how long the discriminator has been at chance, from which a training does not recover."""
        self.d_loss += 0.02 * (d_loss - self.d_loss)
        at_chance = abs(self.d_loss - CHANCE) < NEAR_CHANCE and abs(self.sureness) < 0.1
        self.images_at_chance = self.images_at_chance + self.settings.batch if at_chance else 0

    def _real_batch(self, renders: Tensor) -> Tensor:
        """The next images of the epoch's order, some mirrored, in [-1, 1]."""
        s, n = self.settings, len(renders)
        first = self.step * s.batch
        rows = []
        for epoch in range(first // n, (first + s.batch - 1) // n + 1):
            order = np.random.default_rng((s.seed, 1, epoch)).permutation(n)
            rows.append(order[max(first - epoch * n, 0) : first + s.batch - epoch * n])
        images = renders[torch.from_numpy(np.concatenate(rows))].to(self.device).float() / 127.5 - 1
        if not s.mirror:
            return images
        coins = np.random.default_rng((s.seed, 2, self.step)).random(s.batch) < 0.5
        return torch.where(torch.from_numpy(coins).to(self.device)[:, None, None, None], images.flip(3), images)

    def _fake_batch(self, random: torch.Generator) -> tuple[Tensor, Tensor]:
        n = self.settings.batch

        def normal(*shape: int) -> Tensor:
            return torch.randn(n, *shape, generator=random, device=self.device)

        noise = [normal(1, side, side) for side in self.generator.feature_resolutions]
        return synthesize(self.generator, normal(self.config.z_dim), noise, self.dtype)

    @staticmethod
    def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def _average(self, w: Tensor) -> None:
        """Average w, and the average generator: half-life of `ema_images`, shorter at the beginning."""
        mean_w = self.generator.mean_w
        assert mean_w is not None
        mean_w.lerp_(w.mean(0), 1 - 0.995)
        half_life = min(self.settings.ema_images, 0.05 * self.images_seen)
        keep = 0.5 ** (self.settings.batch / half_life)
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.generator.parameters()), 1 - keep)
        for mine, new in zip(self.ema.buffers(), self.generator.buffers(), strict=True):
            mine.copy_(new)

    def _adapt(self, sureness: float) -> None:
        """The heuristic r_t of StyleGAN2-ADA, section 3.1."""
        self.sureness += 0.02 * (sureness - self.sureness)
        if self.settings.augment:
            direction = math.copysign(1.0, self.sureness - ADA_TARGET)
            self.p = min(max(self.p + direction * self.settings.batch / ADA_IMAGES, 0.0), 1.0)

    # --- images ---

    def images(self, z: Tensor, psi: float = 1.0) -> Tensor:
        """Images uint8 [N, 3, H, W] of the averaged generator, on the CPU."""
        self.ema.freeze()
        return images_of(self.ema, z, psi)

    @torch.no_grad()
    def shown_closeups(self, renders: Tensor) -> Image.Image:
        """What the discriminator of close-ups sees: of a row of real images, and of one of generated images below."""
        real = renders[: GRID[0]]
        made = self.images(sample_latents(range(len(real)), self.config.z_dim, seed=0), PSI)
        [view] = self.further["closeups"].network.views
        both = torch.cat([real, made]).to(self.device).float() / 127.5 - 1
        shown = (view([both], torch.Generator())[0] + 1) * 127.5
        return mosaic(shown.round().clamp(0, 255).to("cpu", torch.uint8), len(real))

    @torch.no_grad()
    def sure(self, images: Tensor) -> float:
        """How sure the discriminator is of images uint8 [N, 3, H, W]: mean sign of its logits, from -1 to 1 (real)."""
        n, group = len(images), math.gcd(GROUP, self.settings.batch)
        size = max(group, min(self.settings.batch, n - n % group))
        # Whole batches, as in training: the discriminator compares the images of a group. The first ones fill the last.
        parts = images[torch.arange(-(-n // size) * size) % n].split(size)
        signs = [self.discriminator(part.to(self.device).float() / 127.5 - 1, self.dtype).sign() for part in parts]
        return float(torch.cat(signs)[:n].mean())

    # --- state ---

    def start_from(self, folder: Path) -> int:
        """Take the networks of a training folder; returns the images they have seen.

        Finer networks than those start as if they were those: the generator's new layers add nothing to the image yet,
        and the discriminator sees the halved image. They then go through the phases of `growing.TRANSITION`. A
        generator of more channels starts with the same images, too.

        Raises:
            StateError: the networks do not fit, or have too few channels to grow.
        """
        config = read_json(folder / "config.json")
        old = generator_config(config)
        images_seen = config.get("images_seen", 0)
        if not isinstance(images_seen, int) or images_seen < 0:
            raise StateError(f"{folder}/config.json: images_seen must be a count, not {images_seen!r:.40}")
        finer = self._finer_than(old.img_resolution)
        for network, name in ((self.generator, "generator"), (self.ema, "generator_ema")):
            for r in finer:
                network.synthesis_network.get_parameter(f"b{r}.torgb.weight").data.zero_()
            start = StyleGAN2(old)
            put(start, read_tensors(folder, name), f"{folder}/{name}.safetensors")
            extend(generator_tensors(network), generator_tensors(start))
        self._start_discriminator(folder, grow=bool(finer))
        for name, further in self.further.items():
            if not finer and any(folder.glob(f"{name}*.safetensors")):
                put(further.network.heads, read_tensors(folder, name), f"{folder}/{name}.safetensors")
        if (folder / "check.npz").is_file() and not finer:
            self._check_against(folder / "check.npz")
        self.images_seen = images_seen
        if finer:
            self.grown_from, self.grown_at = old.img_resolution, self.images_seen
        return self.images_seen

    def _start_discriminator(self, folder: Path, *, grow: bool) -> None:
        where = f"{folder}/discriminator.safetensors"
        tensors = read_tensors(folder, "discriminator")
        if not grow:
            put(self.discriminator, tensors, where)
            return
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("resample_filter")}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            try:
                grow_discriminator(self.discriminator, tensors, self.channels)
            except ValueError as error:
                raise StateError(f"{where}: {error}") from error

    def _check_against(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as check:
            z, expected = torch.from_numpy(check["z"]), torch.from_numpy(check["image_const"])
        with torch.no_grad():
            image, _ = synthesize(self.ema, z.to(self.device))
        error = float((image.cpu() - expected).abs().max() / expected.abs().max())
        if error > 1e-3:
            raise StateError(f"the generator does not reproduce {path}: relative error {error:.1e}")

    def networks(self) -> dict[str, Tensors]:
        """All tensors of the state. Adam's first moments are left out: with beta_1 = 0 they are the gradient."""
        return {
            "generator": generator_tensors(self.generator),
            "generator_ema": generator_tensors(self.ema),
            "discriminator": self.discriminator.state_dict(),
            **{name: further.network.heads.state_dict() for name, further in self.further.items()},
            **{f"{name}_moments": _moments(network, optimizer) for network, optimizer, name in self._optimized()},
        }

    @torch.no_grad()
    def broken(self) -> str | None:
        """What contains NaN or infinity: networks, what Adam remembers of them, or what they make of some latents."""
        for name, tensors in self.networks().items():
            if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
                return f"NaN or infinity in {name}"
        images, _ = synthesize(self.generator, sample_latents(range(GROUP), self.config.z_dim, seed=0).to(self.device))
        if not bool(self.discriminator(images.float(), self.dtype).isfinite().all()):
            return "NaN or infinity in the generated images"
        return None

    def _optimized(self) -> Iterator[tuple[nn.Module, torch.optim.Optimizer, str]]:
        yield self.generator, self.g_optimizer, "generator"
        yield self.discriminator, self.d_optimizer, "discriminator"
        for name, further in self.further.items():
            yield further.network.heads, further.optimizer, name

    def progress(self) -> dict[str, Any]:
        """The numbers of the state."""
        return {
            "step": self.step,
            "images_seen": self.images_seen,
            "p": self.p,
            "sureness": self.sureness,
            "d_loss": self.d_loss,
            "images_at_chance": self.images_at_chance,
            "grown_from": self.grown_from,
            "grown_at": self.grown_at,
        }

    def restore(self, progress: Mapping[str, Any], networks: Mapping[str, Tensors]) -> None:
        """Resume from `progress` and `networks`; StateError if they do not fit."""
        try:
            put(self.generator, networks["generator"], "generator")
            put(self.ema, networks["generator_ema"], "generator_ema")
            put(self.discriminator, networks["discriminator"], "discriminator")
            for name in self.further.keys() & networks.keys():  # a training may take one up later
                put(self.further[name].network.heads, networks[name], name)
            self.step, self.images_seen = int(progress["step"]), int(progress["images_seen"])
            self.p, self.sureness = float(progress["p"]), float(progress["sureness"])
            # States from before networks could grow in steps lack these.
            self.d_loss, self.images_at_chance = (
                float(progress.get("d_loss", 0)),
                int(progress.get("images_at_chance", 0)),
            )
            self.grown_from, self.grown_at = progress.get("grown_from"), int(progress.get("grown_at", 0))
            for network, optimizer, name in self._optimized():
                _set_moments(network, optimizer, networks.get(f"{name}_moments", {}))
        except (KeyError, TypeError, RuntimeError) as error:
            raise StateError(f"the state lacks something: {error!r}") from error


def _moments(network: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """Adam's second moments and, as R1 gives the last bias no gradient, its count of steps for each parameter."""
    tensors: Tensors = {}
    for name, parameter in network.named_parameters():
        state = optimizer.state[parameter]
        if state:
            tensors |= {name: state["exp_avg_sq"], f"{name}.step": state["step"]}
    return tensors


def _set_moments(network: nn.Module, optimizer: torch.optim.Optimizer, moments: Tensors) -> None:
    optimizer.state.clear()
    for name, parameter in network.named_parameters():
        if name in moments:
            optimizer.state[parameter] = {
                "step": moments[f"{name}.step"].clone(),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter).copy_(moments[name]),
            }


def _short(setting: object) -> str:
    """A setting in a message: hashes by their beginning."""
    return f"{setting:.8}" or "none" if isinstance(setting, str) else str(setting)


# --------------------------------------------------------------------------------------------- pictures


def mosaic(images: Tensor, columns: int) -> Image.Image:
    """Images uint8 [N, 3, H, W] side by side, row after row."""
    n, _, h, w = images.shape
    rows = images.view(n // columns, columns, 3, h, w).permute(0, 3, 1, 4, 2)
    return Image.fromarray(rows.reshape(n // columns * h, columns * w, 3).numpy())


def save_png(image: Image.Image, path: Path) -> None:
    """The file appears whole or not at all."""
    with atomic_write(path) as file:
        image.save(file, "png")


def save_pictures(folder: Path, training: Training) -> None:
    """samples/IMAGES.png of latents that stay the same, and evolution.png: the first faces of all grids, in columns."""
    samples = folder / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    columns, rows = GRID
    z = sample_latents(range(columns * rows), training.config.z_dim, seed=0)
    save_png(mosaic(training.images(z, PSI), columns), samples / f"{training.images_seen:09d}.png")
    grids = sorted(samples.glob("*.png"))
    if len(grids) > MAX_GRIDS:  # every second one goes, but not the first and the last
        for grid in grids[1:-1:2]:
            grid.unlink()
        grids = sorted(samples.glob("*.png"))
    side = training.config.img_resolution
    pictures = []
    for grid in grids:
        try:
            pictures.append(open_picture(grid))
        except (OSError, ValueError) as error:  # a picture is no reason to lose what was trained
            tqdm.write(f"warning: {grid} is left out of evolution.png: {error}", file=sys.stderr)
    strip = Image.new("RGB", (side * len(pictures), side * columns))
    for x, picture in enumerate(pictures):
        for y in range(columns):
            strip.paste(picture.crop((y * side, 0, (y + 1) * side, side)), (x * side, y * side))
    save_png(strip, folder / "evolution.png")


# --------------------------------------------------------------------------------------------- a run


class Run:
    """A training with its folder: when to save, when to measure, when to stop.

    Args:
        folder: of the state.
        training: new, or resumed by `resume`.
        renders: uint8 [N, 3, H, W] to train on.
        ruler: measures; None for no measuring.
        held_out: as `renders`, never trained on; None without any.
    """

    def __init__(
        self, folder: Path, training: Training, renders: Tensor, ruler: Ruler | None, held_out: Tensor | None = None
    ) -> None:
        self.folder, self.training, self.renders, self.ruler = folder, training, renders, ruler
        self.held_out = held_out if held_out is not None and len(held_out) else None
        self.images_sha256 = digest(renders)
        self.best_frechet = math.inf  # of folder/best, by this ruler
        self.seconds = 0.0
        self.evaluations: list[dict[str, Any]] = []
        self.stopped = False

    def resume(self, *, change_settings: bool = False) -> bool:
        """Resume from the state of the folder; False if it has none.

        Raises:
            StateError: it is damaged, or was trained by other settings or on other images.
        """
        recover_best(self.folder)
        with self._way_out():
            state = load_state(self.folder)
        if state is None:
            return False
        config, progress, networks = state
        with self._way_out():
            shape = generator_config(config)
        if shape != self.training.config:
            raise StateError(
                f"{self.folder} holds a generator of another shape: use the same --start, --resolution and --widen, or "
                "another --state"
            )
        mine: dict[str, Any] = {
            "settings": dataclasses.asdict(self.training.settings),
            "images_sha256": self.images_sha256,
        }
        there = {name: progress.get(name) for name in mine}
        if isinstance(there["settings"], dict):  # older states lack newer settings
            there["settings"] = {**dataclasses.asdict(TrainingSettings()), **there["settings"]}
        if there != mine and not change_settings:
            settings = there["settings"] if isinstance(there["settings"], dict) else {}
            differing = [
                f"{k} {_short(settings.get(k))} (now {_short(v)})"
                for k, v in mine["settings"].items()
                if settings.get(k) != v
            ]
            if there["images_sha256"] != self.images_sha256:
                differing.append("other training images")
            raise StateError(
                f"{self.folder} was trained with {', '.join(differing)}: use the same, another --state, or "
                "--change-settings to resume with the new ones"
            )
        for name, option in {"pretrained": "--imagenet", "closeups": "--closeups"}.items():
            if name in networks and name not in self.training.further:
                print(f"without {option} a further discriminator of the state is dropped for good", file=sys.stderr)
        with self._way_out():
            self.training.restore(progress, networks)
            try:
                self.seconds, self.evaluations = float(progress["seconds"]), list(progress["evaluations"])
            except (LookupError, TypeError, ValueError) as error:
                raise StateError(f"the state lacks something: {error!r}") from error
        self._measure_best()
        return True

    @contextmanager
    def _way_out(self) -> Iterator[None]:
        """Errors about a damaged state say what is left to do."""
        try:
            yield
        except StateError as error:
            best = self.folder / "best"
            kept = f"; the best generator so far is still in {best}" if best.is_dir() else ""
            raise StateError(f"{error}: training cannot resume from this state, give another --state{kept}") from error

    def _measure_best(self) -> None:
        """The distance of what is kept as best; another ruler than the one that chose it has to measure it anew."""
        best = self.folder / "best"
        if self.ruler is None or not best.is_dir():
            return
        chosen = best / "evaluation.json"
        found = read_json(chosen) if chosen.exists() else {}
        if found.get("ruler") == self.ruler.name and "frechet" in found:
            self.best_frechet = float(found["frechet"])
            return
        generator = load_generator(best, device=self.training.device)
        measured = self.ruler.measure(images_of(generator, self._latents()))
        self.best_frechet = measured["frechet"]
        write_json(chosen, {**found, **measured, "ruler": self.ruler.name})
        print(f"{best}: Fréchet distance {self.best_frechet:.4f} by this annotator", flush=True)

    def _latents(self) -> Tensor:
        """As many as there are renders to measure against."""
        assert self.ruler is not None
        return sample_latents(range(len(self.ruler)), self.training.config.z_dim, seed=1)

    def save(self) -> None:
        """Make what there is the state of the folder."""
        progress = {
            **self.training.progress(),
            "seconds": round(self.seconds, 1),
            "settings": dataclasses.asdict(self.training.settings),
            "images_sha256": self.images_sha256,
            "evaluations": self.evaluations,
        }
        config = config_fields(self.training.config, self.training.channels, self.training.images_seen)
        save_state(self.folder, config, progress, self.training.networks())

    def diverged(self, what: str) -> RuntimeError:
        """The error that says so, and what is left."""
        kept = "the last state is kept; resume from it" if (self.folder / "state.json").exists() else "begin again"
        return RuntimeError(
            f"{what} at {self.training.images_seen:,} images: {kept} with a lower --lr, a higher --gamma or a lower "
            "weight of a further discriminator, and --change-settings"
        )

    def evaluate(self) -> None:
        """Pictures, how sure the discriminator is, and the measure on as many images as there are renders to measure
        against; the best generator is kept."""
        save_pictures(self.folder, self.training)
        if "closeups" in self.training.further:
            save_png(self.training.shown_closeups(self.renders), self.folder / "closeups.png")
        found: dict[str, Any] = {"images_seen": self.training.images_seen, "seconds": round(self.seconds, 1)}
        if self.held_out is not None and len(self.held_out) >= GROUP:
            seen = self.renders[: len(self.held_out)]
            found |= {"sure": self.training.sure(seen), "sure_held_out": self.training.sure(self.held_out)}
        if self.ruler is not None:
            measured = self.ruler.measure(self.training.images(self._latents()))
            found |= measured | {"ruler": self.ruler.name}
        found = {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}
        if self.ruler is not None:
            self._keep_if_best(found)
        self.evaluations.append(found)
        tqdm.write(json.dumps(found), file=sys.stderr)

    def _keep_if_best(self, found: dict[str, Any]) -> None:
        if self.best_frechet <= found["frechet"]:
            return
        self.best_frechet = found["frechet"]

        def write(folder: Path) -> None:
            save_generator(self.training.ema, folder)
            write_json(folder / "evaluation.json", found)

        save_best(self.folder, write)

    @property
    def _evaluated_at(self) -> int:
        """Images seen at the last evaluation."""
        return self.evaluations[-1]["images_seen"] if self.evaluations else -1

    def stop(self, *_: object) -> None:
        """Save and end after this step (a signal handler)."""
        self.stopped = True

    def go(self, *, minutes: float, until: int, save_every: float, evaluate_every: float) -> None:
        """Train until the time, the count of images or a signal says stop; times in minutes."""
        began = saved = last = time.monotonic()
        training = self.training
        means: dict[str, float] = {}
        pace = 0.5 if sys.stderr.isatty() else 60.0  # a log needs no line twice a second
        with tqdm(unit="image", initial=training.images_seen, mininterval=pace, maxinterval=pace) as bar:
            while True:
                now = time.monotonic()
                self.seconds += now - last
                last = now
                ending = self.stopped or now - began >= minutes * 60 or training.images_seen >= until
                due = self.seconds - (self.evaluations[-1]["seconds"] if self.evaluations else -math.inf)
                reached = training.images_seen >= until
                measuring = reached or (due >= evaluate_every * 60 and not ending)
                measuring = measuring and training.images_seen > self._evaluated_at
                saving = measuring or ending or now - saved >= save_every * 60
                if saving and (broken := training.broken()):  # the losses are those of before the last update
                    raise self.diverged(broken)
                if measuring:
                    self.evaluate()
                if saving:
                    self.save()
                    saved = time.monotonic()
                if ending:
                    return
                for name, value in training.train_step(self.renders).items():
                    means[name] = 0.98 * means.get(name, float(value)) + 0.02 * float(value)
                if not math.isfinite(sum(means.values())):
                    raise self.diverged("NaN or infinity in the losses")
                if 0 <= training.images_at_chance - CHANCE_IMAGES < training.settings.batch:
                    tqdm.write(
                        f"warning: at {training.images_seen:,} images the discriminator is at chance (loss "
                        f"{training.d_loss:.3f}) since {CHANCE_IMAGES:,} images; a training seldom recovers from "
                        "this. Look at samples/, and train from an earlier state with a lower --gamma or --lr",
                        file=sys.stderr,
                    )
                bar.set_description(training.phase, refresh=False)
                bar.set_postfix({**means, "sure": training.sureness, "p": training.p}, refresh=False)
                bar.update(training.settings.batch)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__)
    default = TrainingSettings()
    add = parser.add_argument
    add("--images", type=Path, nargs="+", required=True, metavar="PATH", help="folders of images, or tars of them")
    add(
        "--state",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the state to resume from",
    )
    add("--start", type=Path, metavar="DIR", help="networks to begin with, or the --state of another training")
    add("--resolution", type=int, choices=sorted(CHANNELS)[2:], help="side, pixels (that of the start, or 64)")
    add(
        "--widen",
        action="store_true",
        help="twice the channels of the start's generator, which makes the same images at first: for when 'sure' and "
        "'sure_held_out' both stay above 0.6",
    )
    add(
        "--annotator", type=Path, metavar="FILE", help="weights of train_annotator.py; without them nothing is measured"
    )
    group = parser.add_argument_group("when")
    add = group.add_argument
    add("--minutes", type=float, default=math.inf, help="stop after this many minutes (default: never)")
    add("--until", type=int, default=sys.maxsize, metavar="N", help="stop after N images seen (default: never)")
    add("--save-every", type=float, default=3, metavar="MIN", help="minutes between states (default: 3)")
    add("--evaluate", type=float, default=15, metavar="MIN", help="minutes between pictures and measures (default: 15)")
    group = parser.add_argument_group("settings of the training, which a state remembers")
    add = group.add_argument
    add("--batch", type=int, default=default.batch, help=f"images a step (default: {default.batch})")
    add("--lr", type=float, default=default.lr, help=f"learning rate (default: {default.lr:g})")
    add("--gamma", type=float, default=default.gamma, help=f"weight of R1 (default: {default.gamma:g})")
    text = f"half-life of the averaged generator, images (default: {default.ema_images:,})"
    add("--ema-images", type=int, default=default.ema_images, metavar="N", help=text)
    add("--no-mirror", dest="mirror", action="store_false", help="do not mirror half of the images")
    add(
        "--augment",
        action="store_true",
        help="adaptive augmentation, for few images: 'sure_held_out' falls below 'sure'",
    )
    text = "weight of a further discriminator on features of ImageNet, such as 0.5; needs the extra efficientnet"
    add("--imagenet", type=float, default=default.imagenet, metavar="WEIGHT", help=f"{text} (default: none)")
    text = (
        "weight of a further discriminator that looks at close-ups of eyes, mouth and nose, such as 1; needs --points, "
        "and the extra efficientnet"
    )
    add("--closeups", type=float, default=default.closeups, metavar="WEIGHT", help=f"{text} (default: none)")
    text = "weights of train_point_annotator.py: where eyes, mouth and nose are"
    add("--points", type=Path, metavar="FILE", help=text)
    text = f"share of the images kept for measuring (default: {default.validation:g})"
    add("--validation", type=float, default=default.validation, metavar="SHARE", help=text)
    add("--seed", type=int, default=default.seed, help=f"fixes everything that is drawn (default: {default.seed})")
    add("--change-settings", action="store_true", help="resume from a state that had other settings or images")
    group = parser.add_argument_group("machine")
    add = group.add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: cuda if there is one")
    text = "of convolutions; auto: bfloat16 on a GPU (twice as fast too on CPUs with AVX512-BF16), R1 is always float32"
    add("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help=text)
    add("--threads", type=int, help="CPU threads; 1 repeats exactly")
    args = parser.parse_args(argv)
    if args.batch < 1 or not 0 < args.lr < math.inf or args.ema_images < 1:
        parser.error("--batch and --ema-images must be at least 1, --lr a number above 0, such as 0.002")
    if not 0 <= args.gamma < math.inf:
        parser.error(f"--gamma {args.gamma} must be a number from 0, such as 0.4")
    if not 0 <= args.seed < 2**63:
        parser.error(f"--seed {args.seed} must be from 0 to below 2**63")
    for name in ("imagenet", "closeups"):
        if not 0 <= getattr(args, name) <= MAX_WEIGHT:
            parser.error(f"--{name} {getattr(args, name)} must lie in 0 … {MAX_WEIGHT:,}, such as 0.5; 0 is none")
    if (args.closeups > 0) != (args.points is not None):
        parser.error("--closeups WEIGHT, above 0, and --points FILE need each other")
    if args.widen and args.start is None:
        parser.error("--widen needs --start: it widens the generator of a trained start")
    if not (args.minutes >= 0 and args.save_every > 0 and args.evaluate >= 0 and args.until >= 1):
        parser.error("--minutes and --evaluate must not be below 0, --save-every above 0, --until at least 1")
    if not 0 <= args.validation < 1:
        parser.error(f"--validation {args.validation} must be from 0 to below 1")
    if args.threads is not None and not 1 <= args.threads <= MAX_THREADS:
        parser.error(f"--threads {args.threads} must lie in 1 … {MAX_THREADS:,}")
    return args


def choose_config(start: Path | None, resolution: int | None, *, widen: bool = False) -> StyleGAN2Config:
    """Shape of the generator: that of the start, with further blocks up to the resolution, or twice the channels."""
    if start is None:
        resolution = resolution or 64
        channels = {r: c for r, c in CHANNELS.items() if r <= resolution}
        return StyleGAN2Config(z_dim=128, w_dim=128, mapping_layers=4, img_resolution=resolution, channels=channels)
    config = generator_config(read_json(start / "config.json"))
    resolution = resolution or config.img_resolution
    if resolution < config.img_resolution:
        raise ValueError(f"--resolution {resolution} is below the {config.img_resolution} of {start}")
    finer = {r: c for r, c in CHANNELS.items() if config.img_resolution < r <= resolution}
    channels = {r: c * (2 if widen else 1) for r, c in {**config.channels, **finer}.items()}
    return dataclasses.replace(config, img_resolution=resolution, channels=channels)


def discriminator_channels(start: Path | None, config: StyleGAN2Config) -> dict[int, int]:
    """Resolution -> channels: those of the start, and at finer resolutions the usual ones."""
    if start is None:
        return dict(config.channels)
    fields = read_json(start / "config.json")
    channels = generator_config({**fields, "channels": fields.get(DISCRIMINATOR) or fields.get("channels")}).channels
    return {r: channels.get(r, CHANNELS[r]) for r in config.channels}


def prepare(args: argparse.Namespace) -> Run:
    """Read images, networks and state."""
    locator = None if args.points is None else load_point_annotator(args.points)
    error = None if locator is None else locator.report.get("val_error_px")
    if locator is not None and isinstance(error, float) and error > MAX_POINT_ERROR * locator.resolution:
        print(
            f"warning: the points of {args.points} are off by {error:.1f} of {locator.resolution} pixels: close-ups "
            "will hardly show eyes and mouths (see closeups.png in --state). Train it longer, or on more images",
            file=sys.stderr,
        )
    args.points = "" if args.points is None else hashlib.sha256(args.points.read_bytes()).hexdigest()
    names = [field.name for field in dataclasses.fields(TrainingSettings) if field.name in args]
    settings = TrainingSettings(**{name: getattr(args, name) for name in names})
    start = None if args.start is None else start_folder(args.start)
    config = choose_config(start, args.resolution, widen=args.widen)
    device = torch.device(args.device)
    half = args.precision == "bfloat16" or (args.precision == "auto" and device.type == "cuda")
    # What may be refused comes before images are read.
    annotator = load_annotator(args.annotator) if args.annotator is not None else None
    for path in args.images:
        if path.is_dir() and args.state.resolve().is_relative_to(path.resolve()):
            raise ValueError(f"--state {args.state} lies in --images {path}, and its pictures would be trained on")
    channels = discriminator_channels(start, config)
    training = Training(config, settings, device, torch.bfloat16 if half else torch.float32, channels, locator)
    keys, images = read_images(args.images, config.img_resolution)
    renders, held_out = split(keys, images, settings.validation)
    if len(renders) < settings.batch:
        raise ValueError(
            f"{len(renders)} images to train on are fewer than --batch {settings.batch}: give more, or a smaller batch"
        )
    ruler = None
    if annotator is not None:
        if len(held_out) < 8:
            raise ValueError(f"{len(held_out)} images to measure against are too few: more images, or --validation")
        ruler = Ruler(annotator, held_out)
    run = Run(args.state, training, renders, ruler, held_out)
    if run.resume(change_settings=args.change_settings):
        begin = f"resuming from {args.state} at {training.images_seen:,} images"
    elif start is not None:
        begin = f"starting from {start} at {training.start_from(start):,} images"
    else:
        begin = "starting from nothing"
    kept = "to measure against" if ruler else "kept out (--annotator measures against them)"
    print(f"{begin}; {len(renders):,} images to train on, {len(held_out):,} {kept}", flush=True)
    if ruler is not None and not run.evaluations:
        floor = ruler.measure(renders[: len(ruler)])
        print("for comparison, renders that are trained on:", {k: round(v, 4) for k, v in floor.items()}, flush=True)
    return run


def main(argv: Iterable[str] | None = None) -> int:
    """The command."""
    args = parse_args(None if argv is None else list(argv))
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        with locked(args.state):
            run = prepare(args)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, run.stop)
            run.go(minutes=args.minutes, until=args.until, save_every=args.save_every, evaluate_every=args.evaluate)
    except (ImportError, ValueError, OSError, RuntimeError) as error:
        print(f"train_generator.py: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the training has begun
        return 130
    print(f"stopped at {run.training.images_seen:,} images; the same command resumes", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
