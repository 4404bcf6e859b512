"""Names of what a network gives, in graphs."""

from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import coremltools
import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import wshare
from wshare.exports.outputs import named_outputs
from wshare.exports.table import FORMATS

Found = namedtuple("Found", ["boxes", "scores"])
WAYS: dict[str, tuple[Callable[[Tensor, Tensor], object], list[str]]] = {
    "one": (lambda a, b: a, ["logits"]),
    "tuple": (lambda a, b: (a, b), ["output_0", "output_1"]),
    "mapping": (lambda a, b: {"boxes": a, "scores": b}, ["boxes", "scores"]),
    "named tuple": (Found, ["boxes", "scores"]),
    "nested": (lambda a, b: {"levels": [a, None, b], "images": a + 1}, ["levels_0", "levels_2", "output_images"]),
    "twice": (lambda a, b: {"boxes": a, "same": a, "scores": b}, ["boxes", "scores"]),
    "alike": (lambda a, b: {"a.b": a, "a-b": b}, ["a_b", "a_b_"]),
}


class Detector(nn.Module):
    def __init__(self, way: str):
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(1, 4, 3), nn.Linear(144, 4), nn.Linear(144, 2)
        self.way = way

    def forward(self, images: Tensor) -> object:
        found = self.conv(images).flatten(1)
        return WAYS[self.way][0](self.first(found), self.second(found))


@pytest.mark.parametrize("way", WAYS)
def test_outputs_are_called_by_their_keys(way):
    network, images = Detector(way).eval(), torch.rand(1, 1, 8, 8)
    names = named_outputs(network, images)
    assert list(names) == WAYS[way][1]
    found = network(images)
    found = (found,) if isinstance(found, Tensor) else found
    assert all(torch.equal(tensor, expected) for tensor, expected in zip(found, names.values(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["tuple", "nested", "twice"])
def test_graphs_have_these_names(way, tmp_path: Path):
    network, images = Detector(way).eval(), torch.rand(3, 1, 8, 8)
    result = wshare.compress_data_free(network, 4)
    result.save(tmp_path / "packed")
    for name, file in (("onnx", "net.onnx"), ("coreml", "net.mlpackage")):
        FORMATS[name].write(tmp_path / "packed", tmp_path / file, network, torch.zeros(1, 1, 8, 8))
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == WAYS[way][1]
    spec = coremltools.utils.load_spec(str(tmp_path / "net.mlpackage"))
    assert [output.name for output in spec.description.output] == WAYS[way][1]
    expected = named_outputs(result.model, images)
    for found, tensor in zip(session.run(None, {"images": images.numpy()}), expected.values(), strict=True):
        np.testing.assert_allclose(found, tensor.numpy(), rtol=1e-4, atol=1e-5)
