"""A module of the user, which builds a network."""

import sys

import pytest


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """A module of the user in the working directory."""
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\n"
        "def build(width=4, classes=5):\n"
        "    return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, classes))\n"
        "def wrapped():\n"
        "    model = build()\n"
        "    nn.utils.parametrizations.weight_norm(model[0])\n"
        "    nn.utils.parametrizations.spectral_norm(model[3])\n"
        "    return nn.DataParallel(model)\n"
        "def two():\n"
        "    return nn.Bilinear(3, 3, 2)\n"
        "class NoTensor(nn.Module):\n"
        "    def forward(self, images):\n"
        "        return 'words'\n"
        "def no_tensor():\n"
        "    return NoTensor()\n"
        "def number():\n"
        "    return 3\n"
    )
    (tmp_path / "broken.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("mynet", None)


@pytest.fixture
def user_settings(user_module):
    return {
        "source": "file",
        "architecture": "python:mynet:build",
        "path": "weights.pth",
        "preprocessing": {"channels": 1, "crop": 8},
    }
