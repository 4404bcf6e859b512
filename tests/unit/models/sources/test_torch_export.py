"""Networks of torch.export programs: layers are modules again, under the names that they had."""

import base64
import io
import json
import pickle
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.unit.models.fetching import error, evaluate, rebuilt
from wshare.errors import FormatError
from wshare.models import registry
from wshare.models.folding import folded_norms
from wshare.models.layers import Choice, inspect

# An export takes a third of a second and more.
pytestmark = pytest.mark.slow
SETTINGS = {"source": "torch_export", "path": "net.pt2"}


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Network(nn.Module):
    """Convolutions of some kinds, batch norms, one layer that is called twice and one weight used by a function."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding="same", bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.twice = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm2d(8, affine=False)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.line = nn.Conv1d(4, 4, 3, stride=2)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5)
        self.own = nn.Parameter(torch.randn(5, 5))

    def forward(self, images):
        values = self.norm(self.twice(functional.silu(self.twice(self.first(images)))))
        values = self.line(self.up(values).mean(3)).mean(2)
        return functional.linear(self.drop(self.head(values)), self.own)


def saved(module, shape=(2, 3, 8, 8), path="net.pt2", free=True):
    """Write a program, of any number of images if `free`."""
    shapes = ({0: torch.export.Dim("batch", max=64)},) if free else None
    torch.export.save(torch.export.export(module, (torch.zeros(shape),), dynamic_shapes=shapes), path)
    return module


def small():
    torch.manual_seed(0)
    network = Network()
    network(torch.randn(8, 3, 8, 8))
    return network.eval()


@pytest.mark.parametrize("free", [True, False])
def test_outputs_and_names_are_the_exported_modules(free):
    network = saved(small(), (2 if free else 1, 3, 8, 8), free=free)
    fetched = registry.fetch(SETTINGS, "cache")
    assert fetched.spec["input"] == [3, 8, 8]
    assert fetched.spec["name"] == "net"
    assert fetched.spec["builder"]["arguments"]["one_by_one"] == (not free)
    images = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(fetched.module(images), network(images))
    assert fetched.module.state_dict().keys() == network.state_dict().keys()
    assert evaluate(rebuilt(fetched, "saved.safetensors"), (3, 8, 8)) == evaluate(fetched.module, (3, 8, 8))


def test_layers_are_shared_and_batch_norms_folded():
    saved(small())
    network = registry.fetch(SETTINGS, "cache").module
    table = inspect(network, [], Choice())
    types = {entry["name"]: entry["type"] for entry in table["layers"]}
    expected = {"first.0": "Conv2d", "twice": "Conv2d", "up": "ConvTranspose2d", "line": "Conv1d", "head": "Linear"}
    assert types == expected
    assert "own" in [entry["name"] for entry in table["parameters"] if entry["status"] == "kept"]
    assert folded_norms(network, list(types), torch.rand(2, 3, 8, 8)) == {"first.0": "first.1"}


def test_a_weight_that_is_used_in_two_ways_stays_with_the_function():
    class TwoWays(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, images):
            return functional.conv2d(self.layer(images), self.layer.weight, self.layer.bias, stride=2).flatten(1)

    network = saved(TwoWays().eval())
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(registry.fetch(SETTINGS, "cache").module(images), network(images))


def test_the_program_travels_without_weights_and_example():
    saved(small())
    arguments = registry.fetch(SETTINGS, "cache").spec["builder"]["arguments"]
    json.dumps(arguments)
    content = zlib.decompress(base64.b64decode(arguments["program"]))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        weights = {name: archive.read(name) for name in archive.namelist() if "/data/weights/weight" in name}
        [example] = [archive.read(name) for name in archive.namelist() if "/data/sample_inputs/" in name]
    assert weights
    assert not any(map(any, weights.values()))
    assert not example


def test_a_program_in_training_mode_ends_in_one_line():
    saved(small().train())
    assert "works as in training; call eval() on the module and export it again" in error(SETTINGS)


def test_a_fixed_batch_of_several_ends_in_one_line():
    saved(small(), free=False)
    assert "net.pt2: takes batches of 2 alone; export it with dynamic_shapes={'images': {0:" in error(SETTINGS)


def test_other_files_end_in_one_line():
    torch.save(small().state_dict(), "net.pt2")
    assert error(SETTINGS, kind=FormatError).startswith(
        "net.pt2: torch file, no torch.export program; give it with source"
    )
    Path("net.pt2").write_bytes(b"nothing")
    assert error(SETTINGS, kind=FormatError).startswith("net.pt2: damaged (File is not a zip file)")


class Attack:
    """What writes a file when it is unpickled."""

    def __reduce__(self):
        return open, ("attacked", "w")


def test_nothing_that_is_pickled_in_a_file_is_run():
    saved(small())
    changed("net.pt2", "/data/sample_inputs/", lambda content: pickle.dumps(Attack()))
    registry.fetch(SETTINGS, "cache")
    changed(
        "net.pt2",
        "weights_config.json",
        lambda content: content.replace(b'"use_pickle": false', b'"use_pickle": true', 1),
    )
    changed("net.pt2", "/data/weights/weight_0", lambda content: pickle.dumps(Attack()))
    assert "net.pt2: holds pickled objects, which are not read" in error(SETTINGS, kind=FormatError)
    assert not Path("attacked").exists()


def test_nothing_that_is_pickled_in_a_description_is_run():
    saved(small())
    spec = registry.fetch(SETTINGS, "cache").spec
    Path("net.pt2").write_bytes(zlib.decompress(base64.b64decode(spec["builder"]["arguments"]["program"])))
    changed("net.pt2", "/data/sample_inputs/", lambda content: pickle.dumps(Attack()))
    program = base64.b64encode(zlib.compress(Path("net.pt2").read_bytes())).decode()
    registry.build(spec | {"builder": spec["builder"] | {"arguments": {"program": program, "one_by_one": False}}})
    assert not Path("attacked").exists()


@pytest.mark.parametrize("kept", [0.5, 0.999])
def test_a_damaged_file_ends_in_one_line(kept):
    saved(small())
    with open("net.pt2", "rb") as file:
        content = file.read()
    with open("net.pt2", "wb") as file:
        file.write(content[: int(kept * len(content))])
    assert error(SETTINGS, kind=FormatError).startswith("net.pt2: ")


def changed(path, part, change):
    """Write the archive again with one member changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, change(content) if part in name else content)
