"""Networks that a function of the user makes."""

import pytest

from tests.unit.models.fetching import error, evaluate, rebuilt
from wshare.models import registry

PYTHON = {"source": "python", "architecture": "mynet:build", "preprocessing": {"channels": 1, "crop": 8}}


def test_python(user_module):
    fetched = registry.fetch(PYTHON | {"arguments": {"width": 2, "classes": 3}}, "cache")
    assert fetched.module[-1].out_features == 3
    assert fetched.spec["preprocessing"] == {
        "channels": 1,
        "resize": None,
        "crop": 8,
        "order": "rgb",
        "letterbox": None,
        "interpolation": "bilinear",
        "mean": [0.0],
        "std": [1.0],
    }
    assert evaluate(rebuilt(fetched, "saved.safetensors"), (1, 8, 8)) == evaluate(fetched.module, (1, 8, 8))


def test_a_wrapped_network_whose_weights_are_computed_is_a_plain_one_from_then_on(user_module, caplog):
    caplog.set_level("INFO")
    fetched = registry.fetch(PYTHON | {"architecture": "mynet:wrapped"}, "cache")
    assert set(fetched.module.state_dict()) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert "python mynet:wrapped: the Sequential inside DataParallel is taken" in caplog.text
    assert "0.weight, 3.weight" in caplog.text
    assert evaluate(rebuilt(fetched, "saved.safetensors"), (1, 8, 8)) == evaluate(fetched.module, (1, 8, 8))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"architecture": "mynte:build"}, "no module 'mynte' in the working directory"),
        ({"architecture": "mynet:biuld"}, "no function 'biuld' there. Did you mean 'build'"),
        ({"architecture": "mynet:two"}, "forward takes input1, input2, but is called with one tensor of inputs"),
        ({"architecture": "mynet:number"}, "returned a int, not an nn.Module"),
        ({"architecture": "mynet:no_tensor"}, "mynet:no_tensor: the output is a str, not a tensor"),
        ({"arguments": {"witdh": 3}}, "does not take them: got an unexpected keyword argument 'witdh'"),
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
