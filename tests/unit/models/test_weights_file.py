"""Weight files: what they may hold, and what is refused."""

import hashlib
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.models.fetching import error, evaluate, rebuilt, user_state
from wshare.errors import FormatError
from wshare.models import registry
from wshare.models import zoo as networks


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
