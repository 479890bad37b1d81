"""The parts of `downstream.py`: data, students, the rows that differ in what they train on, and the table.

Shapes: N images, K classes, H = W pixels of a student's image, C feature channels, P pixels, A annotated images.
Images are uint8 RGB [N, 3, H, W], masks int64 [N, H, W] with class ids and `IGNORE`.
"""

import sys
from pathlib import Path

# The demo's renders, its U-Net and its annotator: scripts that import each other by bare name.
sys.path.append(str(Path(__file__).resolve().parents[2] / "demo"))
