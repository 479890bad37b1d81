"""The parts of `keypoints.py`: renders with their exact keypoints and depth, and the stand-in that annotates samples.

Shapes: N images, K keypoints, H = W pixels. Keypoints are float32 [N, K, 3] = (x, y, v) in pixels of these images,
depths float32 [N, 1, H, W] in head heights from the head's center towards the camera, NaN where it is not known.
"""

import sys
from pathlib import Path

# The demo's renders, its U-Net and its augmentation: scripts that import each other by bare name.
sys.path.append(str(Path(__file__).resolve().parents[2] / "demo"))
