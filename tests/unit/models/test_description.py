"""Parts that evaluation never uses."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.unit.models.fetching import SMALL, evaluate
from wshare.models import description as description_module
from wshare.models import registry
from wshare.models import state as state_module
from wshare.models.sources import torchvision as torchvision_source


@pytest.mark.slow
@pytest.mark.parametrize(("name", "heads"), [("googlenet", ["aux1", "aux2"]), ("inception_v3", ["AuxLogits"])])
def test_auxiliary_heads_are_dropped(name, heads):
    shape = (3, 96, 96)
    arguments = {"aux_logits": True, "transform_input": True, "num_classes": 10}
    module = torchvision_source.build(name, arguments).eval()
    parameters = {key: value.clone() for key, value in module.state_dict().items()}
    before = evaluate(module, shape)
    assert description_module.drop_unused(module, shape) == heads
    assert evaluate(module, shape) == before
    state = state_module.state_of(module)
    assert set(parameters) - set(state) == {key for key in parameters if key.split(".")[0] in heads}
    assert all(torch.equal(parameters[key], value) for key, value in state.items())
    builder = {"kind": "torchvision", "name": name, "arguments": arguments}
    again = registry.load({"name": name, "builder": builder, "dropped": heads}, state)
    assert evaluate(again, shape) == before


class Lends(nn.Module):
    """Uses the weight of a linear module without calling it, as nn.MultiheadAttention does."""

    def __init__(self):
        super().__init__()
        self.used = nn.Linear(12, 4)
        self.lender = nn.Linear(4, 4)
        self.spare = nn.Linear(4, 4)
        self.box = nn.ModuleDict({"lender": nn.Linear(4, 4), "spare": nn.Linear(4, 4)})
        self.items = nn.ParameterList([torch.ones(4)])
        self.no_parameters = nn.Dropout()

    def forward(self, images):
        hidden = functional.linear(self.used(images.flatten(1)), self.lender.weight)
        return functional.linear(hidden, self.box["lender"].weight) * self.items[0]


class Looks(nn.Module):
    """The output hangs on whether a module is there, not on its numbers."""

    def __init__(self):
        super().__init__()
        self.used = nn.Linear(12, 4)
        self.flag = nn.Linear(1, 1)

    def forward(self, images):
        return self.used(images.flatten(1)) * (1 if self.flag is not None else 2)


class Sums(nn.Module):
    """Reads the weight of a module it never calls only to compare it: NaN changes nothing, its absence fails."""

    def __init__(self):
        super().__init__()
        self.used = nn.Linear(12, 4)
        self.gate = nn.Linear(2, 2)
        nn.init.constant_(self.gate.weight, -1)

    def forward(self, images):
        return self.used(images.flatten(1)) * (2 if self.gate.weight.sum() > 0 else 1)


class Falls(nn.Module):
    """Goes on with a default where a module is gone, which happens to be its very weight; NaN alone tells."""

    def __init__(self):
        super().__init__()
        self.used = nn.Linear(12, 4)
        self.scale = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.scale.weight, 2)

    def forward(self, images):
        return self.used(images.flatten(1)) * (2 if self.scale is None else self.scale.weight)


def test_modules_used_functionally_stay():
    module = Lends().eval()
    before, state = evaluate(module, (3, 2, 2)), copy.deepcopy(module.state_dict())
    assert description_module.drop_unused(module, (3, 2, 2)) == ["spare", "box.spare"]
    assert evaluate(module, (3, 2, 2)) == before
    assert {name for name in state if "spare" not in name} == set(module.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("make", [Looks, Sums, Falls])
def test_both_proofs_are_needed(make):
    module = make().eval()
    names = set(module.state_dict())
    assert description_module.drop_unused(module, (3, 2, 2)) == []
    assert set(module.state_dict()) == names
    assert not any(value.isnan().any() for value in module.state_dict().values())


@pytest.mark.slow
def test_attention_keeps_its_output_projection():
    torch.manual_seed(0)
    module = torchvision_source.build("vit_b_32", {"image_size": 32, "num_classes": 4}).eval()
    # One block of the twelve is enough.
    module.encoder.layers = module.encoder.layers[:1]
    assert description_module.drop_unused(module, SMALL) == []
