"""Exact zeros of a pruned network."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import wshare
from wshare.api import apply_recipe
from wshare.data.images import ImageArray
from wshare.errors import UserError
from wshare.models import zoo as networks

IMAGES = torch.randn(160, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def pruned() -> nn.Module:
    """A network whose weights of layers are 0 to 60 %, with batch norms that scale and shift."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = networks.tiny().eval()
        for part in model.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                prune.l1_unstructured(part, "weight", 0.6)
            elif isinstance(part, nn.BatchNorm2d):
                part.running_var.uniform_(0.5, 2)
                nn.init.uniform_(part.weight, 0.5, 2)
    return model


def zeros(model: nn.Module) -> dict[str, Tensor]:
    """Where weights are 0, by name."""
    return {
        f"{name}.weight": part.weight == 0 for name, part in model.named_modules() if prune.is_pruned(part) and name
    }


def kept(packed: bytes) -> bool:
    """Whether all zeros of the network are zeros of a packed file."""
    state = wshare.load_packed(packed)
    masks = {name: mask for name, mask in zeros(pruned()).items() if name in state}
    assert sum(mask.sum() for mask in masks.values()) > 0.55 * sum(mask.numel() for mask in masks.values())
    return all((state[name][mask] == 0).all() for name, mask in masks.items())


def compress(method: str, **given: object) -> wshare.Result:
    return wshare.compress(pruned(), IMAGES, quality=0.5, confidence=None, method=method, **given)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("rate_distortion", {"compression_rate": 8}),
        ("rate_distortion", {"compression_rate": 6, "format": "fixed", "probe_images": 0}),
        ("uniform", {"max_bits": 2}),
    ],
)
def test_zeros_are_kept_and_the_recipe_keeps_them_again(method, options):
    result = compress(method, options=options, keep_zeros=True)
    assert kept(result.packed)
    recipe = result.recipe
    where = {"options": recipe["settings"]["options"]} | recipe["artifacts"].get("clustering", {})
    assert all(settings["keep_zeros"] for settings in where.values() if "keep_zeros" in settings)
    assert any("keep_zeros" in settings for settings in where.values())
    images = ImageArray(IMAGES, None)
    assert kept(apply_recipe(pruned(), recipe, "the recipe", images)[0])


@pytest.mark.slow
def test_without_the_option_zeros_may_become_other_values():
    options = {"compression_rate": 6, "format": "fixed", "probe_images": 0}
    assert not kept(compress("rate_distortion", options=options).packed)


@pytest.mark.parametrize("keep", [True, False])
def test_zeros_are_kept_without_images(keep):
    assert kept(wshare.compress_data_free(pruned(), 2, keep_zeros=keep).packed) is keep


def test_a_method_that_cannot_keep_zeros_is_refused(monkeypatch):
    from wshare.search import methods

    monkeypatch.setitem(methods.METHODS, "milp", methods.Method("milp", "by_k.milp", ("layer_weights",), ()))
    with pytest.raises(UserError, match="keep_zeros"):
        compress("milp", keep_zeros=True)
