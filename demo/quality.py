"""How far generated images are from renders that were not trained on.

Features are those of the stand-in annotator (annotator.py), each level of its encoder averaged over the image and
scaled to unit variance on the renders. The Frechet distance on them is *not* FID: that is defined by an Inception
network, and its numbers cannot be compared with these. The annotator was trained on renders of the same domain, some
of the validation split among them, so it is a ruler, not a judge of its own making.

Shapes: N images, F features.
"""

import hashlib

import torch
from annotator import Annotator
from images import digest
from torch import Tensor
from torch.nn import functional as F


@torch.inference_mode()
def encoder_features(annotator: Annotator, images: Tensor, batch_size: int = 64) -> Tensor:
    """Features float64 [N, F] of images uint8 [N, 3, H, W]; images are scaled to what the network takes."""
    rows = []
    for part in images.split(batch_size):
        x = part.float() / 127.5 - 1
        if x.shape[2] != (side := annotator.resolution):
            x = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        rows.append(torch.cat([level.mean((2, 3)) for level in annotator.levels(x)], 1))
    return torch.cat(rows).double().cpu()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of the Gaussians with the moments of a [N, F] and b [M, F].

    |mean_a − mean_b|² + tr(A + B − 2 (A B)^½) (Dowson & Landau 1982). The last trace is the sum of the square roots of
    the eigenvalues of A^½ B A^½, which is symmetric.
    """
    mean = (a.mean(0) - b.mean(0)).square().sum()
    cov_a, cov_b = torch.atleast_2d(a.T.cov(correction=0)), torch.atleast_2d(b.T.cov(correction=0))
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    return float(mean + cov_a.trace() + cov_b.trace() - 2 * cross)


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> tuple[float, float]:
    """Share of generated images among the real ones, and of real images among the generated.

    "Among": not farther from one of them than that one's k-th neighbor of its own kind (Kynkäänniemi et al. 2019,
    https://arxiv.org/abs/1904.06991, equation 1).
    """

    def radius(x: Tensor) -> Tensor:
        return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").kthvalue(k + 1).values  # 1st: itself

    distance = torch.cdist(real, generated)
    precision = (distance <= radius(real)[:, None]).any(0)
    recall = (distance <= radius(generated)[None]).any(1)
    return float(precision.double().mean()), float(recall.double().mean())


class Ruler:
    """Measures images against the renders of the validation split.

    Args:
        annotator: the network whose features are compared.
        renders: uint8 [N, 3, H, W], more than a handful.

    Attributes:
        name: differs where its distances cannot be compared with those of another ruler.
    """

    def __init__(self, annotator: Annotator, renders: Tensor) -> None:
        self.annotator = annotator
        features = encoder_features(annotator, renders)
        self.center, self.scale = features.mean(0), features.std(0).clamp_min(1e-6)
        self.real = (features - self.center) / self.scale
        weights = b"".join(w.cpu().numpy().tobytes() for w in annotator.state_dict().values())
        self.name = hashlib.sha256(weights + digest(renders).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.real)

    def measure(self, images: Tensor) -> dict[str, float]:
        """Frechet distance, precision and recall of images uint8 [N, 3, H, W]; best with as many as renders."""
        generated = (encoder_features(self.annotator, images) - self.center) / self.scale
        precision, recall = precision_recall(self.real, generated)
        return {"frechet": frechet_distance(self.real, generated), "precision": precision, "recall": recall}
