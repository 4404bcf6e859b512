"""The ImageNet study's networks with seeded random weights, for tests and timings where nothing can be downloaded.

    python -m tests.networks <folder>

writes everything that tests/config/networks.yaml reads, and the configuration itself, into an empty folder.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from wshare.models.state import state_of

CONFIG = Path(__file__).parent / "config" / "networks.yaml"
# Inception's smallest input is 75; twice that leaves its last batch norms some pixels to measure.
NOISE = (8, 3, 160, 160)
IMAGES, FOLDERS, SIDE = 64, 8, 256


def random_weights(architecture: str, seed: int = 0) -> nn.Module:
    """A torchvision network, or `timm:<name>`, in eval mode with random weights that make it a sane function.

    Batch norm holds the statistics of one forward pass of noise, so that activations stay finite and outputs
    differ from image to image. Same seed, same weights. A function for source `python`, too.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = _build(architecture).eval()
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.train().momentum = 1.0
        model(torch.randn(NOISE))
        for norm in norms:
            norm.eval().momentum = 0.1
    return model


def _build(architecture: str) -> nn.Module:
    kind, _, name = architecture.rpartition(":")
    if kind == "timm":
        import timm

        return timm.create_model(name)
    import torchvision

    # Their own initialisation takes seconds, and the auxiliary heads are no part of an evaluation.
    slow = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, **slow)


def write_images(folder: Path, seed: int = 0) -> None:
    """Noise over a gradient of random colours, in one folder a class."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, SIDE)[:, None, None]
    for i in range(IMAGES):
        top, bottom = rng.uniform(0, 255, (2, 1, 1, 3))
        pixels = top + (bottom - top) * ramp + rng.normal(0, 40, (SIDE, SIDE, 3))
        path = folder / str(i % FOLDERS) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def write_study(folder: Path) -> None:
    """Images, weights and configuration of the study; its paths are relative to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(CONFIG, folder / "config.yaml")
    write_images(folder / "images")
    for model in yaml.safe_load(CONFIG.read_text())["models"].values():
        if model["source"] == "file":
            path = folder / model["path"]
            path.parent.mkdir(exist_ok=True)
            save_file(state_of(random_weights(model["architecture"])), path)


if __name__ == "__main__":
    write_study(Path(sys.argv[1]))
