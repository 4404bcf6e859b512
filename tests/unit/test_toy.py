"""A kind of layer and a task of the user's own: a network with both is compressed, saved, loaded and applied again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import wshare
from wshare.api import apply_recipe
from wshare.data.images import ImageArray
from wshare.data.splits import split_indices
from wshare.models.kinds import table
from wshare.packed.format import read_shared
from wshare.quantize.codebooks import Layout
from wshare.tasks.table import TASKS, Row

from .models.test_kinds import MIXING, Mixing
from .tasks import vectors

NAME = "vectors"
COUNT, HELD_OUT = 60, 20
OPTIONS = {"rate_distortion": {"evaluations": 3, "probe_images": 4}, "slope": {"evaluations": 3}}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "KINDS", [*table.KINDS, MIXING])
    monkeypatch.setitem(TASKS, NAME, Row(NAME, vectors.__name__))


def network() -> nn.Module:
    """Mixing, whose weight is [inputs, outputs], between a convolution and a dense layer; it gives a vector."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), Mixing(48, 12), nn.Tanh(), nn.Linear(12, 3))
    return model.eval()


def images() -> torch.Tensor:
    return torch.randn(COUNT, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def search_images() -> ImageArray:
    """Those that `wshare.compress` chooses by."""
    chosen = split_indices(COUNT, None, {"search": COUNT - HELD_OUT, "held_out": HELD_OUT}, 0)["search"]
    return ImageArray(images()[torch.from_numpy(np.random.default_rng(0).permutation(chosen))], None)


@pytest.mark.slow
@pytest.mark.parametrize("method", OPTIONS)
def test_a_network_of_a_kind_and_a_task_of_its_own_goes_all_the_way(method: str, tmp_path: Path):
    given = {"method": method, "options": OPTIONS[method], "quality": 0.5, "confidence": None}
    result = wshare.compress(network(), images(), task=NAME, held_out=HELD_OUT, **given)
    metrics = result.metrics
    assert (metrics["task"], metrics["measure"]) == (NAME, "agreement")
    assert metrics["compressed"].keys() == {"near", "distance", "images", "kl", "relative_kl"}
    assert f"agreement {metrics['compressed']['near']:.2%} on {HELD_OUT} held-out images" in str(result)
    assert {"near", "distance"} <= result.front[0].keys()
    assert result.recipe["layers"].keys() == {"0", "3", "5"}
    assert result.recipe["layers"]["3"]["shape"] == [48, 12]
    result.save(tmp_path / "net.wshare.safetensors")
    shared, _ = read_shared(tmp_path / "net.wshare.safetensors")
    assert shared["3.weight"].layout == Layout(1)
    loaded = wshare.load(tmp_path / "net.wshare.safetensors", network())
    assert torch.equal(loaded(images()), result.model(images()))
    assert not torch.equal(loaded[3].weight, network()[3].weight)
    packed, _ = apply_recipe(network(), result.recipe, "the recipe", search_images())
    assert packed == result.packed
