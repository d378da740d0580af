"""Metadata. The four layers live at the top of the tree and are installed under `plywise`."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
LAYERS = {
    "compressors": "modules statistics formats recipes packing structure sparsity quantization",
    "env": "storage execution task channels network calibration runtime costs bank prices score walk recovery",
    "agent": "learning search",
    "experiments": "breadth commands console data families front handover networks pages studies workbench",
}
FOLDERS = [*LAYERS, *(f"{layer}/{folder}" for layer, folders in LAYERS.items() for folder in folders.split())]
PACKAGES = {"plywise": "plywise", **{f"plywise.{folder.replace('/', '.')}": folder for folder in FOLDERS}}
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "plywise/__init__.py").read_text(encoding="utf-8"))
assert VERSION is not None

setup(
    name="plywise",
    version=VERSION.group(1),
    description="A reinforcement-learning agent that picks compression techniques for each layer of a network",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={"plywise": ["py.typed"], "plywise.experiments.pages": ["templates/*.html"]},
    install_requires=[
        "torch>=2.13",
        "numpy>=2",
        "scipy>=1.17",
        "gymnasium>=1.4",
        "stable-baselines3>=2.9",
        "sb3-contrib>=2.9",
        "tensorboard>=2.21",
        "torch-pruning>=1.6.1",
        "onnx>=1.23",
        "onnxscript>=0.7",
        "onnxruntime>=1.31",
        "safetensors>=0.8",
        "constriction>=0.5",
        "scikit-learn>=1.9",
        "pillow>=13",
        "matplotlib>=3.11",
        "rich>=15",
        "Jinja2>=3.1.6",
        "MarkupSafe>=3",
        "jsonargparse>=4.53",
        "docstring-parser>=0.17",
        "PyYAML>=6",
    ],
    extras_require={
        "dev": ["pytest>=9", "pytest-xdist>=3.8", "mypy>=2", "ruff>=0.17", "types-PyYAML"],
        "docs": ["pdoc>=16"],
        "study": ["torchao>=0.18"],
        "breadth": ["timm>=1.0", "torchvision>=0.28", "transformers>=5"],
    },
    entry_points={"console_scripts": ["plywise=plywise.__main__:main"]},
)
