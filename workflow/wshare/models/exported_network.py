"""A network of a torch.export program as a torch module, whose layers and batch norms are modules again."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from wshare.models.outputs import one_by_one

aten = torch.ops.aten
# Arguments of convolutions that their modules take under the same names.
GEOMETRY = ("stride", "padding", "output_padding", "dilation", "groups")


class ExportedNetwork(nn.Module):
    """The network of a program; it takes images [N, C, ...] and gives what the program does.

    Parameters have the names that they had in the exported module. A program of one image (`one_by_one`) is called for
    each.
    """

    def __init__(self, program: ExportedProgram, one_by_one: bool = False):
        super().__init__()
        whole = program.module(check_guards=False)
        self._parameters, self._buffers, self._modules = whole._parameters, whole._buffers, whole._modules
        self._non_persistent_buffers_set = whole._non_persistent_buffers_set
        self.graph, self.one_by_one = whole.graph, one_by_one
        for node in list(self.graph.nodes):
            if node.target in CALLS:
                self._call_module(node, CALLS[node.target])
        self.graph.eliminate_dead_code()
        self.eval()

    def forward(self, images: Tensor) -> object:
        """What the program gives for images [N, C, ...]."""
        if not self.one_by_one or len(images) == 1:
            return fx.Interpreter(self, graph=self.graph).run(images)
        return one_by_one(self.forward, images)

    def _call_module(self, node: fx.Node, call: "_Call") -> None:
        """Call a module in place of a function, if one module held all its tensors, under the module's own names."""
        given = _arguments(node)
        paths = {leaf: getattr(given[leaf], "target", None) for leaf in call.tensors if given[leaf] is not None}
        if any(given[leaf].op != "get_attr" for leaf in paths):
            # Computed from others, as by weight_norm.
            return
        owners = {path.rpartition(".")[0] for path in paths.values()}
        owner = min(owners, default="")
        if len(owners) != 1 or not owner or any(path != f"{owner}.{leaf}" for leaf, path in paths.items()):
            return
        held = self.get_submodule(owner)
        made = call.make(held, given)
        if type(held) is nn.Module and not held._modules:
            made._parameters = dict.fromkeys(made._parameters) | held._parameters
            made._buffers = dict.fromkeys(made._buffers) | held._buffers
            self.set_submodule(owner, made)
        elif repr(held) != repr(made):
            # The same tensors in another way.
            return
        with self.graph.inserting_before(node):
            node.replace_all_uses_with(self.graph.call_module(owner, (given["input"],)))


@dataclass(frozen=True)
class _Call:
    """A function of `tensors` besides its input; `make(held, arguments)` is the module that computes the same.

    `held` has the tensors; the module's own are not used.
    """

    tensors: tuple[str, ...]
    make: Callable[[nn.Module, dict], nn.Module]


def _convolution(kind: type[nn.Module], transposed: bool = False) -> _Call:
    def make(held: nn.Module, given: dict) -> nn.Module:
        first, second, *kernel = held.weight.shape
        sizes = (first, second * given["groups"]) if transposed else (second * given["groups"], first)
        geometry = {name: given[name] for name in GEOMETRY if name in given}
        bias = given["bias"] is not None
        return kind(*sizes, tuple(kernel), **geometry, bias=bias, device="meta")

    return _Call(("weight", "bias"), make)


def _linear(held: nn.Module, given: dict) -> nn.Module:
    outputs, inputs = held.weight.shape
    return nn.Linear(inputs, outputs, bias=given["bias"] is not None, device="meta")


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Of inputs of any rank: the program does not say which class it was."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def _batch_norm(held: nn.Module, given: dict) -> nn.Module:
    affine = given["weight"] is not None
    return _BatchNorm(len(held.running_mean), given["eps"], given["momentum"], affine, device="meta")


CALLS = {
    aten.conv1d.default: _convolution(nn.Conv1d),
    aten.conv1d.padding: _convolution(nn.Conv1d),
    aten.conv2d.default: _convolution(nn.Conv2d),
    aten.conv2d.padding: _convolution(nn.Conv2d),
    aten.conv3d.default: _convolution(nn.Conv3d),
    aten.conv3d.padding: _convolution(nn.Conv3d),
    aten.conv_transpose1d.default: _convolution(nn.ConvTranspose1d, transposed=True),
    aten.conv_transpose2d.input: _convolution(nn.ConvTranspose2d, transposed=True),
    aten.conv_transpose3d.input: _convolution(nn.ConvTranspose3d, transposed=True),
    aten.linear.default: _Call(("weight", "bias"), _linear),
    aten.batch_norm.default: _Call(("weight", "bias", "running_mean", "running_var"), _batch_norm),
}


def trained_calls(program: ExportedProgram) -> Iterator[str]:
    """Names of the batch norms and dropouts that behave as in training."""
    for node in program.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            given = _arguments(node)
            if given.get("training") is True or (node.target is aten.dropout.default and given["train"]):
                yield node.name


def _arguments(node: fx.Node) -> dict:
    """Arguments of a call by name, with the operator's defaults."""
    schema = node.target._schema.arguments
    given = dict(zip((argument.name for argument in schema), node.args, strict=False)) | node.kwargs
    return {argument.name: given.get(argument.name, argument.default_value) for argument in schema}
