"""The formats that a packed file can be written in: a new one is a module and a row here."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wshare.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Format:
    """A kind of file: `module` and `function` of this package write it, imported only then.

    `needs_model` tells whether the architecture and an example input are needed; `packages` are those to be installed
    for it beside what wshare itself needs. One that `describes` takes the network's description, too.
    """

    name: str
    description: str
    module: str
    function: str
    needs_model: bool = False
    packages: tuple[str, ...] = ()
    describes: bool = False

    def write(
        self,
        packed: Path,
        output: Path,
        model: "nn.Module | None" = None,
        example: "torch.Tensor | None" = None,
        description: dict | None = None,
    ) -> None:
        """Write the network of the file `packed` to `output`, which is either whole or absent.

        `model` is the architecture, whose weights do not matter and stay as they are; `example` an input
        [N, C, H, W]; `description` that of the network (model.json), if the file is to tell its preprocessing and
        categories. UserError names what is missing.
        """
        for package in self.packages:
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise UserError(f"export {self.name}: package {package} is needed ({error}); install it") from None
        function = getattr(importlib.import_module(f"wshare.exports.{self.module}"), self.function)
        if not self.needs_model:
            function(Path(packed), Path(output))
            return
        if model is None or example is None:
            raise UserError(f"export {self.name}: needs the architecture and an example input; give model and example")
        about = {"description": description} if self.describes else {}
        function(Path(packed), Path(output), model, example, **about)


FORMATS = {
    entry.name: entry
    for entry in (
        Format("dense", "safetensors file of float32 tensors", "dense", "write_float32"),
        Format("dense16", "safetensors file with float32 tensors rounded to float16", "dense", "write_float16"),
        Format("state_dict", "PyTorch file of float32 tensors, for torch.load", "dense", "write_state_dict"),
        Format(
            "onnx",
            "ONNX file that holds codebooks and indices and expands them by Gather",
            "onnxfile",
            "write_onnx",
            needs_model=True,
            packages=("onnx",),
        ),
        Format(
            "onnx-external",
            "ONNX graph whose weights are made from the packed file where it is installed",
            "external",
            "write_graph",
            needs_model=True,
            packages=("onnx",),
            describes=True,
        ),
        Format("onnx-data", "data file of an onnx-external graph", "external", "write_data", packages=("onnx",)),
        Format(
            "onnx-qdq",
            "ONNX file of integer weights of 8 or 4 bits with a scale a channel; activations stay float32",
            "qdq",
            "write_qdq",
            needs_model=True,
            packages=("onnx",),
        ),
        Format(
            "coreml",
            "Core ML package with palettized weights",
            "coreml",
            "write_coreml",
            needs_model=True,
            packages=("coremltools",),
        ),
        Format("c", "flat binary of fixed-width indices, and a C99 header that decodes it", "cfile", "write_c"),
    )
}
