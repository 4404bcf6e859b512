"""The compressed network as a packed file: what is kept in which type, and the divergence of what was packed."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from wshare.data.images import ImageArray
from wshare.errors import UserError
from wshare.evaluation.predict import predict
from wshare.files.sealed import read_json, sha256_file
from wshare.models.state import fast, load_state
from wshare.packed import write
from wshare.packed.compressed import Compressed
from wshare.packed.format import load_packed, read_index
from wshare.packed.write import pack_network, write_files
from wshare.quantize.codebooks import Shared, nearest_indices
from wshare.tasks import classification

IMAGES = ImageArray(torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1)), None)


def task(same: bool) -> SimpleNamespace:
    """Classification that says of any two outputs whether their predictions are the same."""
    return SimpleNamespace(score=classification.score, same_predictions=lambda first, second: same)


def network(scale: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5))
    with torch.no_grad():
        model[1].weight.uniform_(0.3, 2).mul_(scale)
        model[1].running_var.uniform_(0.3, 2)
        model[1].bias.normal_()
    return fast(model.eval())


def packed(batch_norm: str, same: bool = True, scale: float = 1.0) -> tuple[bytes, dict, float, np.ndarray]:
    """What `pack_network` gives of a network with a shared convolution, and the float32 outputs."""
    model = network(scale)
    reference = predict(model, IMAGES)
    weight, codebook = model[0].weight.numpy(force=True), np.linspace(-0.2, 0.2, 7, dtype=np.float32)
    compressed = Compressed({"0.weight": Shared(codebook, nearest_indices(weight, codebook))}, 500.0)
    return *pack_network(
        task(same), model, compressed, {"format": "entropy", "batch_norm": batch_norm}, IMAGES, reference, 2, 1234
    ), reference


@pytest.mark.parametrize(
    ("wanted", "same", "kept"),
    [
        ("auto", True, "float16"),
        ("auto", False, "float32"),
        ("float16", False, "float16"),
        ("float32", True, "float32"),
    ],
)
def test_the_divergence_is_that_of_the_network_as_it_is_packed(wanted, same, kept):
    content, sizes, kl, reference = packed(wanted, same)
    model = network()
    load_state(model, load_packed(content), "packed")
    expected = classification.score(predict(model, IMAGES), reference, None).kl
    assert kl == expected > 0
    assert sizes["batch_norm"] == kept
    assert read_index(content)["batch_norm"]["1"][2] == {"float16": "f2", "float32": "f4"}[kept]
    assert sizes["bytes"]["packed"] == len(content)
    assert (sizes["bytes"]["float32"], sizes["analytic_bits"], sizes["weights"]) == (1234, 500.0, 162)


@pytest.mark.parametrize(("wanted", "passes"), [("auto", 2), ("float16", 1), ("float32", 1)])
def test_outputs_that_were_computed_for_the_choice_are_not_computed_again(monkeypatch, wanted, passes):
    done = []
    monkeypatch.setattr(write, "predict", lambda *arguments: done.append(1) or predict(*arguments))
    packed(wanted)
    assert len(done) == passes


def test_a_batch_norm_beyond_float16_stays_float32_or_is_refused():
    assert packed("auto", scale=1e6)[1]["batch_norm"] == "float32"
    with pytest.raises(UserError, match="a scale or shift is beyond the range of float16; use auto or float32"):
        packed("float16", scale=1e6)


def test_files_hold_the_content_the_tensors_and_the_hashes(tmp_path):
    content, sizes, _, _ = packed("float32")
    (tmp_path / "recipe").write_text("recipe")
    write_files(content, sizes, *(tmp_path / name for name in ("recipe", "packed", "dense", "sizes")))
    assert (tmp_path / "packed").read_bytes() == content
    found = read_json(tmp_path / "sizes")
    assert found == sizes | {name: sha256_file(tmp_path / name) for name in ("recipe", "packed")}
    from safetensors.torch import load_file

    dense, state = load_file(tmp_path / "dense"), load_packed(content)
    assert dense.keys() == state.keys()
    assert all(torch.equal(dense[name], state[name]) for name in dense)
