"""Core ML packages whose weights are palettized with the packed file's codebooks (iOS 18, macOS 15)."""

import shutil
import warnings
from pathlib import Path

import coremltools
import numpy as np
import torch
from coremltools.converters.mil.mil import Builder, Operation, types
from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY
from torch import nn

from wshare.errors import UserError
from wshare.exports.outputs import INPUT, named_outputs
from wshare.models.kinds.attention import called_as_modules
from wshare.models.plain import plain_copy
from wshare.models.state import load_state
from wshare.packed.format import load_packed, read_shared
from wshare.quantize.codebooks import Shared, row_scale
from wshare.quantize.formats import coreml_width

PASS = "wshare::share"
# They would multiply weights by the scale of a batch norm.
FUSIONS = ("common::fuse_conv_batchnorm", "common::fuse_conv_scale")


def write_coreml(packed: Path, output: Path, model: nn.Module, example: torch.Tensor) -> None:
    """Write a folder `output`, which must end in .mlpackage, with float32 activations and the example's shape of input.

    Weights with up to 256 shared values are palettized; others, and those that Core ML holds in another form, stay
    dense. UserError if the folder exists or the network cannot be converted.
    """
    if output.suffix != ".mlpackage":
        raise UserError(f"export coreml: {output}: a Core ML package ends in .mlpackage")
    if output.exists():
        raise UserError(f"export coreml: {output} exists; delete it or give another name")
    temporary = output.with_name(f".{output.stem}.tmp.mlpackage")
    try:
        convert(packed, model, example).save(str(temporary))
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def convert(packed: Path, model: nn.Module, example: torch.Tensor) -> "coremltools.models.MLModel":
    """The network as a Core ML model, not loaded."""
    network = plain_copy(model, "model", told=False).eval().to(memory_format=torch.contiguous_format)
    load_state(network, load_packed(packed), str(packed))
    shared, _ = read_shared(packed)
    # Passes are found by name, and need an instance each.
    PASS_REGISTRY.passes[PASS] = _Share({_key(tensor.weight()): tensor for tensor in shared.values()})
    pipeline = coremltools.PassPipeline()
    pipeline.remove_passes(FUSIONS)
    pipeline.append_pass(PASS)
    with warnings.catch_warnings(), torch.no_grad(), called_as_modules():
        warnings.simplefilter("ignore")
        try:
            outputs = named_outputs(network, example)
            return coremltools.convert(
                torch.jit.trace(network, example.contiguous()),
                inputs=[coremltools.TensorType(INPUT, shape=example.shape)],
                outputs=[coremltools.TensorType(name) for name in outputs],
                convert_to="mlprogram",
                minimum_deployment_target=coremltools.target.iOS18,
                compute_precision=coremltools.precision.FLOAT32,
                pass_pipeline=pipeline,
                skip_model_load=True,
            )
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"export coreml: coremltools cannot convert this network ({reason}); use onnx") from None
        finally:
            del PASS_REGISTRY.passes[PASS]


class _Share(AbstractGraphPass):
    """Replace constants that equal a shared tensor."""

    def __init__(self, shared: dict[tuple, Shared]):
        super().__init__()
        self.shared = shared

    def apply(self, program: object) -> None:
        """Change the program."""
        for function in program.functions.values():
            for operation in list(function.operations):
                if operation.op_type == "const" and isinstance(operation.outputs[0].val, np.ndarray):
                    tensor = self.shared.get(_key(operation.outputs[0].val))
                    if tensor is not None and len(tensor.codebook) <= 256:
                        self._replace(function, operation, tensor)

    def _replace(self, function: object, constant: Operation, tensor: Shared) -> None:
        width = coreml_width(len(tensor.codebook))
        axes = tensor.indices.ndim
        # Core ML wants 2^width values; those beyond k are never used.
        palette = np.pad(tensor.codebook, (0, (1 << width) - len(tensor.codebook)), mode="edge")
        kind = types.nptype_from_builtin(types.string_to_builtin(f"uint{width}"))
        with function:
            weight = Builder.constexpr_lut_to_dense(
                indices=tensor.indices.astype(np.uint8).astype(kind),
                lut=palette.reshape(*[1] * axes, -1, 1),
                before_op=constant,
            )
            if tensor.exponents is not None:
                scale = tensor.layout.per_output(row_scale(tensor.exponents), tensor.indices.shape)
                weight = Builder.constexpr_blockwise_shift_scale(data=weight, scale=scale, before_op=constant)
            function.replace_uses_of_var_after_op(
                anchor_op=constant,
                old_var=constant.outputs[0],
                new_var=weight,
                force_replace=True,
            )
            function.remove_ops([constant])


def _key(array: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    """Shape and bytes."""
    return array.shape, array.tobytes()
