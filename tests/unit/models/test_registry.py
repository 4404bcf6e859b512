"""Networks by the name of their source, and built again."""

import subprocess
import sys

import pytest
import torch

from tests.unit.models.fetching import MOBILENET, error
from wshare.errors import UserError
from wshare.models import registry
from wshare.models import state as state_module
from wshare.models import zoo as networks

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
    with pytest.raises(UserError, match=r"builder: 'embeded': no such kind. Did you mean 'embedded'"):
        registry.build({"builder": {"kind": "embeded"}, "dropped": []})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"source": "torchvison"}, "source: 'torchvison': no such source. Did you mean 'torchvision'"),
        (
            {"architecture": "mobilenetv2"},
            "'mobilenetv2': torchvision has no such classification network. Did you mean 'mob",
        ),
        ({"architecture": "fcn_resnet50"}, "'fcn_resnet50': torchvision has no such classification network"),
        (
            {"weights": "IMAGENET1K_V3"},
            "weights: 'IMAGENET1K_V3': mobilenet_v2 has no such weights. Did you mean 'IMAGENET1K",
        ),
        ({"source": "timm", "architecture": "resnetv2_5O"}, "timm has no such network. Did you mean 'resnetv2_50"),
        ({"source": "timm", "architecture": "resnetv2_50", "weights": "a1h"}, "Did you mean 'a1h_in1k'"),
        (
            {"source": "timm", "architecture": "resnetv2_50", "weights": None, "url": "http://x"},
            "url: 'http://x': source",
        ),
        (
            {"source": "efficientnet_lite", "architecture": "efficientnet_lite", "weights": None},
            "Did you mean 'efficientnet_lite",
        ),
        (
            {"source": "efficientnet_lite", "architecture": "efficientnet_lite0"},
            "weights: 'IMAGENET1K_V1': source 'efficientnet_lite' does not",
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


@pytest.mark.slow
def test_every_source_imports_only_when_asked():
    code = (
        "import sys, wshare.models.registry; heavy = ('torchvision', 'timm', 'wshare.models.sources.'); "
        "print(sorted(m for m in sys.modules if m.startswith(heavy)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['wshare.models.sources.table']"
