"""Weight files: what they may hold, and what is refused."""

import argparse
import gzip
import hashlib
import os
import pathlib
import pickle
import zipfile

import h5py
import numpy as np
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
        # torch.compile'd and data-parallel.
        lambda state: {f"module._orig_mod.{name}": value for name, value in state.items()},
        # Lightning's: the network is a part of the module that trains it, which has other tensors.
        lambda state: {
            "state_dict": {f"model.{name}": value for name, value in state.items()} | {"loss.weight": torch.ones(5)},
            "hyper_parameters": {"lr": np.float64(0.1), "folder": pathlib.Path("runs")},
            "callbacks": {},
        },
        # timm's.
        lambda state: {"epoch": 3, "args": argparse.Namespace(lr=0.1), "state_dict": state, "metric": np.float32(0.7)},
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


def averaged(state):
    return {name: value + 1 for name, value in state.items()}


def both(state):
    """Two networks in one state dict, as those that learn from each other are saved."""
    return {f"{name}.{key}": value for name, part in state.items() for key, value in part.items()}


@pytest.mark.parametrize("flat", [False, True])
def test_of_several_networks_in_a_checkpoint_one_is_asked_for(user_settings, flat):
    parts = {"model": user_state(), "ema": averaged(user_state())}
    torch.save(both(parts) if flat else parts | {"epoch": 3}, "weights.pth")
    what = "networks of this architecture" if flat else "state dicts"
    assert error(user_settings) == f"weights.pth: holds several {what}, model, ema; set key to one of them"
    for key, state in parts.items():
        found = registry.fetch(user_settings | {"key": key}, "cache").module.state_dict()
        assert torch.equal(found["3.bias"], state["3.bias"])
    assert "key: 'emma': no " in error(user_settings | {"key": "emma"})
    assert "Did you mean 'ema'?" in error(user_settings | {"key": "emma"})


def test_what_stands_beside_the_network_is_told(user_settings, caplog):
    caplog.set_level("INFO")
    state = {f"model.{name}": value for name, value in user_state().items()}
    torch.save({"state_dict": state | {"loss.weight": torch.ones(5)}}, "weights.pth")
    registry.fetch(user_settings, "cache")
    assert "weights.pth: weights are those under 'state_dict'" in caplog.text
    assert "are those under 'model.'; 1 other tensors are left out, such as loss.weight" in caplog.text


def test_a_prefix_that_does_not_fit_the_network_is_not_taken_off(user_settings):
    state = {f"model.{name}": value for name, value in user_state().items() if name != "3.bias"}
    torch.save(state, "weights.pth")
    assert "weights do not fit the architecture: missing 0.weight" in error(user_settings)


def zipped(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"0")


OTHERS = {
    "Keras or other HDF5 file": lambda path: h5py.File(path, "w").close(),
    "Keras file": lambda path: zipped(path, "metadata.json", "model.weights.h5"),
    "TensorFlow Lite file": lambda path: path.write_bytes(b"\x1c\0\0\0TFL3" + bytes(64)),
    "torch.export program": lambda path: zipped(path, "net/archive_format", "net/data/weights/model.pt"),
    "archive of numpy arrays": lambda path: zipped(path, "a.npy", "b.npy"),
    "ONNX file": lambda path: path.write_bytes(b"\x08\x08\x12\x07pytorch" + bytes(64)),
    "pointer of Git LFS": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "web page": lambda path: path.write_text("<!DOCTYPE html><html></html>"),
    "gzip archive": lambda path: path.write_bytes(gzip.compress(b"weights")),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_of_another_kind_is_told_by_its_content(user_settings, tmp_path, kind, name):
    OTHERS[kind](tmp_path / name)
    message = error(user_settings | {"path": name}, kind=FormatError)
    assert message.startswith(f"{name}: {kind}, not a file of weights; ")


def test_a_torch_file_named_as_safetensors_is_read(user_settings):
    torch.save(user_state(), "weights.safetensors")
    found = registry.fetch(user_settings | {"path": "weights.safetensors"}, "cache").module
    assert torch.equal(found.state_dict()["3.bias"], user_state()["3.bias"])


def test_a_home_folder_is_expanded(user_settings, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(user_state(), "weights.pth")
    assert (
        registry.fetch(user_settings | {"path": "~/weights.pth"}, "cache").spec["origin"].startswith(f"file {tmp_path}")
    )


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
