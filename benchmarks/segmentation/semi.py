"""Semi-supervised segmentation in two branches: Mittal, Tatarchenko and Brox 2019, https://arxiv.org/abs/1908.05724.

s4GAN: a discriminator looks at (image, mask). It teaches the student by feature matching, and its score says which
predictions on unlabeled images the student may learn from. MLMT: a mean teacher that says which classes an image
holds; classes that it does not see are taken out of the student's output.

Changed for this benchmark: everything is trained from scratch (the paper starts from pretrained networks), so networks
are small, and the two unsupervised losses wait until the student knows something: its first predictions hold only the
large classes, and would teach it that there are no others.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsgan_datasets.students import segmentation_loss

from .data import IGNORE
from .students import Batch, Predictor

GAMMA = 0.6  # discriminator score above which a prediction becomes a label
# Weights of the losses. The paper, with hundreds of labeled images, has 0.1 for feature matching. The averages over
# sixteen masks are not those of the domain (hair covers 13 % of them, 17 % of the renders), and with 0.1 students
# shrank hair to match.
FEATURE_MATCHING, SELF_TRAINING = 0.01, 1.0
TAU = 0.2  # probability below which a class is taken out
EMA, CONSISTENCY = 0.99, 1.0
LEARNING_RATE = 1e-4  # of discriminator (as published) and, times ten, of the classifier
START, RAMP = 0.3, 0.2  # shares of the steps: when the unsupervised losses begin, and how long they grow


def _strided(n_in: int, widths: tuple[int, ...], dropout: float) -> nn.Sequential:
    """4x4 convolutions of stride 2, then the mean over the picture: [N, n_in, H, W] -> [N, widths[-1]]."""
    layers: list[nn.Module] = []
    for n in widths:
        layers += [nn.Conv2d(n_in, n, 4, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Dropout2d(dropout)]
        n_in = n
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Discriminator(nn.Module):
    """Does this mask belong to this image, and is it a person's?"""

    def __init__(self, num_classes: int, widths: tuple[int, ...] = (32, 64, 128, 128)) -> None:
        super().__init__()
        self.features = _strided(3 + num_classes, widths, dropout=0.2)
        self.score = nn.Linear(widths[-1], 1)

    def forward(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Images [N, 3, H, W] and class probabilities [N, K, H, W] -> features [N, C], score logits [N]."""
        features = self.features(torch.cat([images, masks], 1))
        return features, self.score(features)[:, 0]


class Classifier(nn.Module):
    """Which classes does the image hold? Logits [N, K]."""

    def __init__(self, num_classes: int, widths: tuple[int, ...] = (16, 32, 64, 128)) -> None:
        super().__init__()
        self.layers = nn.Sequential(_strided(3, widths, dropout=0.0), nn.Linear(widths[-1], num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class S4GANWithMLMT:
    """The objective of the row "semi": trains discriminator and classifiers beside the student."""

    def __init__(self, num_classes: int, steps: int, device: str) -> None:
        self.num_classes = num_classes
        self.steps = steps
        self.step = 0
        self.discriminator = Discriminator(num_classes).to(device)
        self.discriminator_optimizer = torch.optim.Adam(self.discriminator.parameters(), LEARNING_RATE, (0.5, 0.99))
        self.multi_label = MultiLabelMeanTeacher(num_classes, device)

    def __call__(self, student: nn.Module, batch: Batch) -> Tensor:
        assert batch.unlabeled is not None
        self.multi_label.update(batch)
        logits = student(torch.cat([batch.image, batch.unlabeled]))
        labeled, unlabeled = logits[: len(batch.image)], logits[len(batch.image) :]
        truth = one_hot(batch.mask, self.num_classes)
        predicted = unlabeled.softmax(1)
        self._update_discriminator(batch, truth, predicted.detach())

        self.discriminator.requires_grad_(False)
        with torch.no_grad():
            real, _ = self.discriminator(batch.image, truth)
        fake, score = self.discriminator(batch.unlabeled, predicted)
        self.discriminator.requires_grad_(True)
        matching = (real.mean(0) - fake.mean(0)).abs().mean()
        targets = self_training_targets(unlabeled, score.sigmoid(), GAMMA)
        self_training = F.cross_entropy(unlabeled, targets, ignore_index=IGNORE, reduction="sum") / targets.numel()
        self.step += 1
        ramp = min(1.0, max(0.0, (self.step / self.steps - START) / RAMP))
        unsupervised = FEATURE_MATCHING * matching + SELF_TRAINING * self_training
        return segmentation_loss(labeled, batch.mask, IGNORE) + ramp * unsupervised

    def _update_discriminator(self, batch: Batch, truth: Tensor, predicted: Tensor) -> None:
        assert batch.unlabeled is not None
        _, real = self.discriminator(batch.image, truth)
        _, fake = self.discriminator(batch.unlabeled, predicted)
        loss = F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
        loss = loss + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
        _descend(loss, self.discriminator_optimizer)

    def predictors(self, student: nn.Module) -> dict[str, Predictor]:
        """s4GAN alone, and with MLMT, which the authors too leave out where every image holds every class."""
        teacher = self.multi_label.teacher.eval()
        return {"": student, "with MLMT": lambda x: deactivate(student(x), teacher(x).sigmoid(), TAU)}


class MultiLabelMeanTeacher:
    """A classifier, and its moving average that it has to agree with on unlabeled images seen differently."""

    def __init__(self, num_classes: int, device: str) -> None:
        self.num_classes = num_classes
        self.pupil = Classifier(num_classes).to(device)
        self.teacher = copy.deepcopy(self.pupil).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.pupil.parameters(), 10 * LEARNING_RATE)

    def update(self, batch: Batch) -> None:
        """One step of the pupil, then of the average."""
        assert batch.unlabeled is not None
        present = one_hot(batch.mask, self.num_classes).amax((2, 3))
        loss = F.binary_cross_entropy_with_logits(self.pupil(batch.image), present)
        with torch.no_grad():
            taught = self.teacher(_perturbed(batch.unlabeled)).sigmoid()
        seen = self.pupil(_perturbed(batch.unlabeled)).sigmoid()
        _descend(loss + CONSISTENCY * F.mse_loss(seen, taught), self.optimizer)
        with torch.no_grad():
            for average, value in zip(self.teacher.parameters(), self.pupil.parameters(), strict=True):
                average.lerp_(value, 1 - EMA)


def one_hot(masks: Tensor, num_classes: int) -> Tensor:
    """int64 [N, H, W] -> float [N, K, H, W]; all 0 where a pixel is ignored."""
    counted = masks != IGNORE
    return (F.one_hot(masks * counted, num_classes) * counted[..., None]).permute(0, 3, 1, 2).float()


def self_training_targets(logits: Tensor, scores: Tensor, gamma: float) -> Tensor:
    """The student's own classes [N, H, W] where the discriminator's score of the image reaches gamma, else `IGNORE`.

    Example:
        >>> self_training_targets(torch.zeros(2, 3, 1, 1), torch.tensor([0.59, 0.6]), 0.6).flatten()
        tensor([255,   0])
    """
    trusted = (scores >= gamma)[:, None, None]
    return torch.where(trusted, logits.detach().argmax(1), IGNORE)


def deactivate(logits: Tensor, present: Tensor, tau: float) -> Tensor:
    """Logits without the classes that an image hardly holds; class 0, the background, always stays.

    Args:
        logits: [N, K, H, W].
        present: probability of each class, [N, K].
        tau: classes below are taken out.
    """
    out = present < tau
    out[:, 0] = False
    return logits.masked_fill(out[:, :, None, None], -torch.inf)


def _perturbed(images: Tensor) -> Tensor:
    """Noise, and mirrored or not: the classes stay."""
    flipped = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(flipped, images.flip(3), images) + 0.05 * torch.randn_like(images)


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
