"""Networks as people bring them, through `wshare.compress`, `wshare.load` and `wshare.nn.compressed`."""

import logging
import threading
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from timm.layers.norm_act import FrozenBatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel
from torchvision.ops.misc import FrozenBatchNorm2d

import wshare
from wshare import api
from wshare.errors import UserError
from wshare.models.plain import unwrapped
from wshare.models.state import CPU
from wshare.nn import compressed

COUNTER = "num_batches_tracked"


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5)).eval()


IMAGES = torch.randn(120, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def compress(model: nn.Module, **options: object) -> wshare.Result:
    return wshare.compress(model, IMAGES, quality=0.8, confidence=None, options={"compression_rate": 4}, **options)


@pytest.fixture(scope="module")
def plain() -> wshare.Result:
    return compress(net())


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap", [torch.compile, nn.DataParallel, AveragedModel], ids=["compiled", "data parallel", "averaged"]
)
def test_a_wrapped_network_gives_the_file_of_the_one_inside(wrap, plain, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    wrapped = wrap(net())
    result = compress(wrapped)
    assert result.packed == plain.packed
    assert type(result.model) is nn.Sequential
    assert caplog.text.count("model: the Sequential inside") == 1
    assert result.metrics["model"] == "Sequential"
    result.save(tmp_path / "packed")
    # Into any of them, which stay what they are.
    for other in (net(), wrap(net())):
        assert wshare.load(tmp_path / "packed", other) is other
        inside = compressed(other, tmp_path / "packed")
        with torch.inference_mode():
            # Compilation takes seconds.
            assert torch.equal(getattr(other, "_orig_mod", other)(IMAGES), result.model(IMAGES))
            assert torch.equal(inside(IMAGES), result.model(IMAGES))


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap", [torch.compile, nn.DataParallel, AveragedModel], ids=["compiled", "data parallel", "averaged"]
)
def test_parts_are_taken_out_of_wrappers(wrap, plain, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model = net()
    model[0] = kept = wrap(model[0])
    result = compress(model)
    assert result.packed == plain.packed
    assert model[0] is kept
    assert type(result.model[0]) is nn.Conv2d
    assert caplog.text.count(f"model: parts are taken out of {type(kept).__name__}") == 1
    result.save(tmp_path / "packed")
    inside = compressed(wshare.load(tmp_path / "packed", model), tmp_path / "packed")
    assert model[0] is kept
    with torch.inference_mode():
        expected = result.model(IMAGES)
        assert torch.equal(inside(IMAGES), expected)
        # Compilation takes seconds.
        model[0] = unwrapped(kept)
        assert torch.equal(model(IMAGES), expected)
        assert torch.equal(wshare.load(tmp_path / "packed", net())(IMAGES), expected)


def with_norm(kind: Callable[[int], nn.Module]) -> nn.Sequential:
    norm, generator = nn.BatchNorm2d(6), torch.Generator().manual_seed(2)
    state = {name: torch.rand(6, generator=generator) + 0.5 for name in norm.state_dict() if name != COUNTER}
    made = kind(6)
    made.load_state_dict(state | {COUNTER: torch.tensor(0)})
    model = net()
    return nn.Sequential(model[0], made, *model[1:]).eval()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [FrozenBatchNorm2d, partial(FrozenBatchNormAct2d, apply_act=False)])
def test_frozen_batch_norms_are_folded(kind, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model, usual = with_norm(kind), with_norm(nn.BatchNorm2d)
    result, expected = (compress(part, method="rate_distortion") for part in (model, usual))
    assert "model: 1 frozen batch norms are taken for batch norms" in caplog.text
    assert result.packed == expected.packed
    assert result.recipe["layers"]["0"]["batch_norm"] == "1"
    result.save(tmp_path / "packed")
    loaded = wshare.load(tmp_path / "packed", model)
    assert loaded[1].__class__.__name__.startswith("Frozen")
    with torch.inference_mode():
        torch.testing.assert_close(loaded(IMAGES), result.model(IMAGES))
        torch.testing.assert_close(compressed(model, tmp_path / "packed")(IMAGES), result.model(IMAGES))


def normed() -> nn.Sequential:
    model = net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model[0] = nn.utils.weight_norm(model[0])
    model[3] = parametrizations.weight_norm(model[3])
    return model.eval()


@pytest.mark.slow
def test_a_network_with_weight_norms_is_compressed_whole(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model = normed()
    model(IMAGES)
    names = list(model.state_dict())
    result = compress(model)
    assert list(result.recipe["layers"]) == ["0", "3"]
    assert (
        "computed from other tensors (weight_norm and the like), parameters from now on: 0.weight, 3.weight"
        in caplog.text
    )
    assert list(model.state_dict()) == names
    assert result.model.state_dict().keys() == net().state_dict().keys()
    result.save(tmp_path / "packed")
    expected = result.model(IMAGES)
    for other in (net(), normed()):
        assert torch.equal(wshare.load(tmp_path / "packed", other)(IMAGES), expected)
        assert torch.equal(compressed(normed(), tmp_path / "packed")(IMAGES), expected)


def test_a_file_of_another_network_leaves_weight_norms_as_they_are(plain, tmp_path):
    plain.save(tmp_path / "packed")
    other = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 7, 3)))
    names = list(other.state_dict())
    with pytest.raises(UserError, match="made for another architecture"):
        wshare.load(tmp_path / "packed", other)
    assert list(other.state_dict()) == names


@pytest.mark.slow
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_result_has_the_type_that_came(kind, tmp_path):
    model = net().to(kind)
    result = compress(model)
    assert {tensor.dtype for tensor in result.model.parameters()} == {kind}
    result.save(tmp_path / "packed")
    small = compressed(model, tmp_path / "packed")
    loaded = wshare.load(tmp_path / "packed", net().to(kind))
    images = IMAGES.to(kind)
    for name in ("0", "3"):
        assert small.get_submodule(name).weight.dtype == kind
        assert torch.equal(small.get_submodule(name).weight, loaded.get_submodule(name).weight)
    assert torch.equal(small(images), loaded(images))
    assert torch.equal(small(images), result.model(images))
    # What is moved later is rounded from float32, and but once.
    moved = compressed(net(), tmp_path / "packed").to(kind)
    assert torch.equal(moved[0].weight, wshare.load(tmp_path / "packed", net()).to(kind)[0].weight)
    assert torch.equal(moved.float()[0].weight, wshare.load(tmp_path / "packed", net())[0].weight)


@pytest.mark.slow
@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_the_callers_modes_change_nothing(around, plain):
    with around():
        result = compress(net())
        images = IMAGES.clone()
        again = wshare.compress(net(), images, quality=0.8, confidence=None, options={"compression_rate": 4})
    assert result.packed == again.packed == plain.packed


@pytest.mark.slow
def test_frozen_networks_and_locks_change_nothing(plain):
    model = net().requires_grad_(False)
    model.lock = threading.Lock()
    result = compress(model)
    assert result.packed == plain.packed
    assert not any(parameter.requires_grad for parameter in result.model.parameters())


class Failing(nn.Module):
    """A network that raises what it is told to."""

    def __init__(self, error: type[Exception]):
        super().__init__()
        self.net, self.error = net(), error

    def forward(self, images: Tensor) -> Tensor:
        raise self.error("expected\n  volumes")


@pytest.mark.parametrize("error", [ValueError, TypeError, KeyError, IndexError, AssertionError, RuntimeError])
def test_a_forward_that_fails_is_one_line(error, monkeypatch):
    monkeypatch.setattr(api, "predict", None)
    with pytest.raises(
        UserError, match=r"^model: fails on images \[3, 8, 8\] \('?expected.* volumes'?\); give"
    ) as raised:
        compress(Failing(error))
    assert "\n" not in str(raised.value)


def test_a_forward_without_gradients_is_one_line():
    class Detached(nn.Sequential):
        @torch.no_grad()
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images)

    with pytest.raises(UserError, match="^model: its outputs have no gradient, .*; take torch.no_grad"):
        compress(Detached(*net()).eval())


def test_what_cannot_be_compressed_is_told_before_anything_is_searched(monkeypatch):
    monkeypatch.setattr(api, "predict", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(net())
    with pytest.raises(UserError, match="^model: a program of torch.jit"):
        compress(scripted)


class Auxiliary(nn.Module):
    """A network with a head that evaluation never calls, and an attention that lends its projection to a function."""

    def __init__(self):
        super().__init__()
        self.net, self.spare = net(), nn.Linear(5, 200)
        self.attention = nn.MultiheadAttention(5, 1, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        found = self.net(images)[:, None]
        return (found + self.attention(found, found, found)[0])[:, 0]


@pytest.mark.slow
def test_layers_that_are_never_called_are_kept_and_told(tmp_path):
    model = Auxiliary().eval()
    result = compress(model)
    assert list(result.recipe["layers"]) == ["net.0", "net.3", "attention.in_proj_weight", "attention.out_proj"]
    assert "ONLY " in str(result)
    assert "(never called: take it out of the network, unless another part uses its weight)" in str(result)
    assert torch.equal(result.model.spare.weight, model.spare.weight)
    kept = [row["name"] for row in result.parameters if "never called" in row["reason"]]
    assert kept == ["spare.weight"]
    result.save(tmp_path / "packed")
    found = wshare.load(tmp_path / "packed", Auxiliary())
    assert torch.equal(found(IMAGES), result.model(IMAGES))


@pytest.mark.slow
def test_networks_run_on_the_device_that_is_named(plain, monkeypatch):
    """As the workflow's jobs do: images and networks are placed there, and the file is packed on the CPU."""
    seen = []

    def recorded(name: str) -> None:
        original = getattr(api, name)

        def call(what: object, device: torch.device = CPU) -> object:
            seen.append((name, str(device)))
            return original(what, device)

        monkeypatch.setattr(api, name, call)

    recorded("placed")
    recorded("fast")
    # There is no GPU to test with; another name of the CPU stands for one.
    monkeypatch.setattr(api, "device_named", lambda name: torch.device("cpu", 0))
    assert compress(net(), device="cuda").packed == plain.packed
    working, *used = [device for name, device in seen if name == "fast"]
    assert [device for name, device in seen if name == "placed"] == ["cpu:0", "cpu:0"]
    assert working == "cpu"
    # The float32 network on both splits, packing, and the packed network.
    assert used == ["cpu:0", "cpu:0", "cpu", "cpu", "cpu:0"]


def test_a_gpu_that_is_not_there_is_told_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device 'cuda': torch .* sees 0 GPUs"):
        wshare.compress(net(), iter(lambda: 1 / 0, 1), device="cuda")


def test_arguments_that_are_swapped_are_one_line(tmp_path):
    with pytest.raises(UserError, match="model: a PosixPath, not an nn.Module; give the packed file, then the model"):
        wshare.load(net(), tmp_path)
    with pytest.raises(UserError, match="model: a PosixPath, not an nn.Module; give the model, then the packed file"):
        compressed(tmp_path, net())
