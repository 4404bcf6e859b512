"""Core ML packages, as far as they can be read without macOS: palettes and scales give back the weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import wshare
from wshare.errors import UserError
from wshare.exports.table import FORMATS
from wshare.packed.format import load_packed, read_shared
from wshare.quantize.cost import index_bits

from ..test_nn import network, pack

EXAMPLE = torch.zeros(1, 3, 6, 7)


def read(path: Path) -> list:
    """Operations of a package, read back from its files."""
    # It takes two seconds to import.
    import coremltools
    from coremltools.converters.mil.frontend.milproto.load import load

    model = coremltools.models.MLModel(str(path), skip_model_load=True)
    spec = model.get_spec()
    assert [entry.name for entry in spec.description.input] == ["images"]
    assert [entry.name for entry in spec.description.output] == ["logits"]
    program = load(spec, spec.specificationVersion, model.weights_dir)
    return list(program.functions["main"].operations)


def value_of(operation) -> np.ndarray | None:
    """What a constant holds, or a constant expression gives."""
    if operation.op_type.startswith("constexpr"):
        return operation.materialized_val_inference()
    return operation.val.val if operation.op_type == "const" else None


@pytest.mark.slow
def test_palettes_are_the_codebooks_and_weights_come_back_to_the_bit(tmp_path):
    packed = pack(network(), tmp_path / "packed", ks=(5, 16, 1, 300, 37))
    FORMATS["coreml"].write(packed, tmp_path / "net.mlpackage", network(), EXAMPLE)
    operations, state = read(tmp_path / "net.mlpackage"), load_packed(packed)
    shared, _ = read_shared(packed)
    palettes = [operation for operation in operations if operation.op_type == "constexpr_lut_to_dense"]
    # The layer of 300 values stays dense, and tied layers are one.
    assert len(palettes) == len({id(tensor) for tensor in shared.values()}) - 1
    values = {operation.inputs["lut"].val.ravel().tobytes() for operation in palettes}
    for tensor in shared.values():
        k, width = len(tensor.codebook), {5: 3, 16: 4, 1: 1, 37: 6}.get(len(tensor.codebook))
        if width is not None:
            assert np.pad(tensor.codebook, (0, 2**width - k), mode="edge").tobytes() in values
    found = {np.asarray(value).tobytes() for operation in operations if (value := value_of(operation)) is not None}
    assert all(state[name].numpy().tobytes() in found for name in shared)


def test_a_name_without_suffix_and_a_folder_that_exists_are_refused(tmp_path):
    packed = pack(network(), tmp_path / "packed")
    with pytest.raises(UserError, match=r"ends in \.mlpackage"):
        FORMATS["coreml"].write(packed, tmp_path / "net", network(), EXAMPLE)
    (tmp_path / "net.mlpackage").mkdir()
    with pytest.raises(UserError, match="exists; delete it"):
        FORMATS["coreml"].write(packed, tmp_path / "net.mlpackage", network(), EXAMPLE)


def test_a_network_that_cannot_be_converted_leaves_nothing(tmp_path):
    from tests.unit.exports.test_exports import Branching

    packed = pack(Branching(), tmp_path / "packed")
    with pytest.raises(UserError, match="export coreml: coremltools cannot convert this network"):
        FORMATS["coreml"].write(packed, tmp_path / "net.mlpackage", Branching(), torch.zeros(3, 3))
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


@pytest.mark.slow
def test_all_layers_of_a_search_for_core_ml_are_palettes_without_padding(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, groups=12),
        nn.ReLU(),
        nn.Conv2d(12, 24, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 4),
    ).eval()
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight *= 4
    images = torch.randn(300, 1, 12, 12) + 2 * torch.randn(300, 1, 1, 1)
    options = {"format": "coreml", "max_kl": 1e-4}
    result = wshare.compress(model, images, quality=0.5, confidence=None, options=options)
    assert result.recipe["settings"]["options"]["format"] == "coreml"
    assert result.recipe["packing"]["format"] == "entropy"
    result.save(tmp_path / "packed")
    FORMATS["coreml"].write(tmp_path / "packed", tmp_path / "net.mlpackage", model, images[:1])
    operations = read(tmp_path / "net.mlpackage")
    palettes = [operation for operation in operations if operation.op_type == "constexpr_lut_to_dense"]
    shared, _ = read_shared(tmp_path / "packed")
    assert len(palettes) == len(shared) == 4
    widths = sorted(int(np.log2(operation.inputs["lut"].val.size)) for operation in palettes)
    assert widths == sorted(index_bits(len(tensor.codebook)) for tensor in shared.values())
    # More than one, so that the search had a choice.
    assert len(set(widths)) > 1
