"""Networks as people bring them: wrappers, weights that are computed, attributes that cannot be copied."""

import copy
import logging
import threading
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel

from wshare.errors import UserError
from wshare.models.plain import check_network, is_plain, plain_copy, unwrapped


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


def batch() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def heard(caplog):
    caplog.set_level(logging.INFO)
    return caplog


@pytest.mark.parametrize(
    "wrap",
    [torch.compile, nn.DataParallel, AveragedModel, lambda model: AveragedModel(nn.DataParallel(torch.compile(model)))],
    ids=["compiled", "data parallel", "averaged", "all"],
)
def test_wrappers_are_taken_off(wrap, heard):
    inside = net()
    wrapped = wrap(inside)
    made = plain_copy(wrapped, "model")
    assert type(made) is nn.Sequential
    assert same(state(made), state(inside))
    assert made[0].weight is not unwrapped(wrapped)[0].weight
    assert heard.text.count("model: the Sequential inside") == 1
    assert plain_copy(inside, "model")[0].weight is not inside[0].weight
    assert heard.text.count("inside") == 1


def test_a_module_compiled_in_place_is_copied():
    model = net()
    model.compile()
    assert same(state(plain_copy(model, "model")), state(model))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrised(model: nn.Module, leaf: str = "weight") -> nn.Module:
    parametrize.register_parametrization(model, leaf, Doubled())
    return model


WAYS = {
    "weight_norm": parametrizations.weight_norm,
    "old weight_norm": nn.utils.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "pruned twice": lambda layer: prune.random_unstructured(prune.l1_unstructured(layer, "weight", 0.5), "weight", 0.5),
    "orthogonal": parametrizations.orthogonal,
    "one's own": parametrised,
    "bias too": lambda layer: parametrised(parametrizations.weight_norm(layer), "bias"),
}


def computed(way: str) -> nn.Sequential:
    model = net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for place in (0, 3):
            model[place] = WAYS[way](model[place])
        model.train()
        model(batch())
    return model


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_weights_that_are_computed_become_parameters_on_a_copy(way, frozen, heard):
    model = computed(way).requires_grad_(not frozen)
    # As layers that were used keep what they computed, which cannot be copied.
    model(batch())
    before, kinds = state(model), [type(part) for part in model.modules()]
    made = plain_copy(model, "model")
    assert [part.training for part in made.modules()] == [True] * len(list(made.modules()))
    assert not is_plain(model)
    assert is_plain(made)
    assert made.state_dict().keys() == net().state_dict().keys()
    assert dict(made.named_parameters()).keys() == dict(net().named_parameters()).keys()
    assert type(made[0]) is nn.Conv2d
    assert {parameter.requires_grad for parameter in made.parameters()} == {not frozen}
    # The one that was passed is as it was, and works.
    assert [type(part) for part in model.modules()] == kinds
    assert same(state(model), before)
    model.eval(), made.eval()
    with torch.no_grad():
        assert torch.equal(made(batch()), model(batch()))
    assert "model: computed from other tensors (weight_norm and the like)" in heard.text
    assert "0.weight" in heard.text
    assert "3.weight" in heard.text


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_types_stay(kind):
    model = computed("weight_norm").to(kind).eval()
    made = plain_copy(model, "model")
    assert {tensor.dtype for tensor in made.parameters()} == {kind}
    assert torch.equal(made[0].weight, model[0].weight)


class Held(nn.Module):
    """A network that holds what cannot be copied."""

    def __init__(self, path: Path):
        super().__init__()
        self.net = net()
        self.lock = threading.Lock()
        self.files = {"log": path.open("w")}
        self.trainer = Trainer(self)
        self.last = None
        self.net.register_forward_hook(self.trainer.hear)

    def forward(self, images: Tensor) -> Tensor:
        self.last = self.net(images)
        return self.last


class Trainer:
    """What trains a network: it knows the network, and holds what cannot be copied."""

    def __init__(self, model: nn.Module):
        self.model, self.lock, self.calls = model, threading.Lock(), 0

    def hear(self, *_: object) -> None:
        self.calls += 1


def test_attributes_that_cannot_be_copied_are_shared_and_named(tmp_path, heard):
    model = Held(tmp_path / "log")
    model(batch())
    made = plain_copy(model, "model")
    model.files["log"].close()
    assert (made.lock, made.files["log"], made.trainer) == (model.lock, model.files["log"], model.trainer)
    assert made.files is not model.files
    assert made.net[0].weight is not model.net[0].weight
    assert made.last is not model.last
    for name in ("lock", "files['log']", "trainer"):
        assert name in heard.text
    # Hooks of the copy are its own.
    made.net.register_forward_hook(lambda *_: None)
    assert len(model.net._forward_hooks) == 1


def test_a_network_that_cannot_be_copied_at_all_is_one_line():
    class Stubborn(nn.Sequential):
        def __deepcopy__(self, memo: dict) -> None:
            raise OSError("a device\nis busy")

    with pytest.raises(UserError, match=r"^model: cannot be copied \(a device is busy\); take out"):
        plain_copy(Stubborn(nn.Linear(2, 3)), "model")


def test_a_network_made_in_inference_mode_can_be_trained_as_a_copy():
    with torch.inference_mode():
        model = net()
    made = plain_copy(model, "model")
    assert not made[0].weight.is_inference()
    made(batch()).sum().backward()


class Two(nn.Module):
    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        return images * masks


class ByName(nn.Module):
    def forward(self, *, images: Tensor) -> Tensor:
        return images


class Nothing(nn.Module):
    def forward(self) -> None:
        return None


class Rich(nn.Module):
    """What may be left out may be anything."""

    def forward(
        self, images: Tensor, scale: float = 1.0, *more: object, masks: Tensor = None, **rest: object
    ) -> Tensor:
        return images


def complex_network() -> nn.Module:
    model = net()
    model.phases = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    return model


def with_buffer(tensor: Tensor) -> nn.Module:
    model = net()
    model.register_buffer("table", tensor)
    return model


def scripted_part() -> nn.Module:
    return nn.Sequential(nn.Identity(), torch.jit.script(nn.Linear(2, 3)))


REFUSED = {
    "scripted": (lambda: torch.jit.script(net()), "^model: a program of torch.jit, scripted or traced, whose layers"),
    "traced": (lambda: torch.jit.trace(net(), batch()), "pass the module that it was made from"),
    "scripted part": (scripted_part, "^model: part '1' is a program of torch.jit"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(3, 3)), "^model: 0.weight is lazy and has no shape yet; run"),
    "meta": (lambda: net().to("meta"), "^model: 0.weight is on the device meta and has no values; load"),
    "complex": (complex_network, "^model: phases is torch.strided, torch.complex64, which no packed file holds"),
    "sparse": (lambda: with_buffer(torch.eye(3).to_sparse()), "^model: table is torch.sparse_coo"),
    "two inputs": (Two, "^model: forward takes images, masks, but is called with one tensor of inputs; wrap"),
    "by name": (ByName, "^model: forward takes images by name, but"),
    "no input": (Nothing, "^model: forward takes no input, but"),
    "compiled two inputs": (lambda: torch.compile(Two()), "^model: forward takes images, masks"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compressed_is_one_line(case):
    make, told = REFUSED[case]
    with pytest.raises(UserError, match=told) as error:
        check_network(make(), "model")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model", [Rich(), net(), torch.compile(net()), nn.DataParallel(net())])
def test_what_may_be_left_out_is_no_reason_to_refuse(model):
    check_network(model, "model")


def test_a_copy_of_a_copy_is_one_too():
    made = plain_copy(computed("weight_norm"), "model")
    assert same(state(copy.deepcopy(made)), state(made))
