"""Networks of torchvision, without a network connection."""

import functools
import hashlib
import http.server
import threading

import pytest
import torch
from torch import nn

from tests.unit.models.fetching import MOBILENET, SMALL, error, evaluate, rebuilt
from wshare.errors import UserError
from wshare.files import downloads
from wshare.models import registry
from wshare.models.sources import torchvision as torchvision_source


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


@pytest.mark.slow
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
        "order": "rgb",
        "letterbox": None,
        "interpolation": "bilinear",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    assert spec["published"] == {"top1": 71.878, "dataset": "ImageNet-1K"}
    assert spec["categories"][281] == "tabby"
    assert (spec["name"], len(spec["categories"]), spec["input"]) == ("mobilenet_v2", 1000, [3, 224, 224])
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


class Late(nn.Module):
    """As DenseNet names its layers now."""

    def __init__(self):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(3)


class Stub(nn.Module):
    """Stands for any network of a thousand classes, with a layer of DenseNet."""

    def __init__(self):
        super().__init__()
        self.denselayer1 = Late()
        self.fc = nn.Linear(3, 1000)

    def forward(self, images):
        return self.fc(self.denselayer1.norm1(images).mean((2, 3)))


@pytest.fixture
def stubbed(tmp_path, monkeypatch):
    """What is fetched for a name and its weights, where a stub stands for the network and its file."""
    monkeypatch.setattr(torchvision_source, "build", lambda name, arguments: Stub())
    path = tmp_path / "weights.pth"
    # Files of DenseNet are older than its code.
    older = {name.replace(".norm1", ".norm.1"): value for name, value in Stub().state_dict().items()}
    torch.save(older, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    def fetched(name, weights=None):
        settings = {"source": "torchvision", "architecture": name, "weights": weights}
        return registry.fetch(settings | {"path": str(path), "sha256": sha256}, tmp_path)

    assert "denselayer1.norm.1.weight" in older
    return fetched


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("mobilenet_v2", "MobileNet_V2_Weights.IMAGENET1K_V1", "IMAGENET1K_V1"),
        ("mobilenet_v2", "IMAGENET1K_V1", "IMAGENET1K_V1"),
        ("mobilenet_v2", None, "IMAGENET1K_V2"),
    ],
)
def test_weights_are_named_with_or_without_their_enum_or_the_best(stubbed, name, weights, expected):
    assert f"MobileNet_V2_Weights.{expected} (" in stubbed(name, weights).spec["origin"]


def test_arguments_are_those_that_torchvision_sets_for_weights(stubbed):
    expected = {"num_classes": 1000, "aux_logits": True, "transform_input": True}
    assert stubbed("inception_v3").spec["builder"]["arguments"] == expected
    assert stubbed("vit_b_16", "IMAGENET1K_SWAG_E2E_V1").spec["builder"]["arguments"]["image_size"] == 384


def test_densenet_files_have_older_names(stubbed):
    assert "denselayer1.norm1.weight" in stubbed("densenet121").module.state_dict()


def test_wrong_arguments():
    with pytest.raises(UserError, match=r"torchvision cannot build mobilenet_v2 with them: .*widht"):
        torchvision_source.build("mobilenet_v2", {"widht": 2})
