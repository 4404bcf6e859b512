"""What a network gives: one tensor, or several in any structure; logits, or probabilities that are turned into them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from wshare.errors import UserError

# In `outputs` of model.json, as the task describes it: of a softmax, and of sigmoids.
PROBABILITIES, SIGMOID = "probabilities", "sigmoid"
# Of a network that gives them, for the log.
TOLD = {
    PROBABILITIES: "gives probabilities (it ends in softmax); their logarithms are taken for logits",
    SIGMOID: "gives probabilities (it ends in a sigmoid); their log odds are taken for logits",
}
# What reshapes numbers and does not change them, by its name in autograd's graph.
RESHAPES = {"View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Select", "Slice", "Permute", "Transpose"}


# What a network calls its one output, where it gives others beside it: Hugging Face's, and torchvision's of masks.
FIRST = ("logits", "out")


@dataclass(frozen=True)
class Output:
    """One tensor that a network gives: where it lies, such as `boxes.0`, and its shape for one image."""

    path: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Taken:
    """A hook that takes these outputs out of all that a network gives: one as it is, several as one tensor [N, D]."""

    outputs: tuple[Output, ...]

    def __call__(self, module: nn.Module, images: tuple, output: object) -> Tensor:
        """UserError if an output is missing, or has another shape than it had."""
        found, count = dict(tensors_in(output)), len(images[0])
        for one in self.outputs:
            shape = tuple(found[one.path].shape) if one.path in found else None
            if shape != (count, *one.shape):
                given = "missing" if shape is None else list(shape)
                raise UserError(
                    f"model: {_called(one.path)} is {given} for {count} images, but was {list(one.shape)} for each; "
                    f"{WITHOUT}"
                )
        return joined([found[one.path] for one in self.outputs])


# For a network whose outputs cannot be compared from image to image.
WITHOUT = (
    "give the network without what selects among its outputs, such as non-maximum suppression, as a module that "
    "returns the tensors before it"
)


def one_by_one(run: Callable[[Tensor], object], images: Tensor) -> object:
    """What `run` gives for each of the images [N, ...] alone, put together: tensors in any structure."""
    parts = [run(image[None]) for image in images]
    return pytree.tree_map(lambda *tensors: torch.cat(tensors), *parts)


def tensors_in(output: object, path: str = "", name: str = "model") -> Iterator[tuple[str, Tensor]]:
    """Path and tensor of all that lies in tensors, tuples, lists, mappings, dataclasses and other objects, in order.

    None is passed over. UserError, which opens with `name`, for what is neither.
    """
    if isinstance(output, Tensor):
        yield path, output
        return
    if output is None:
        return
    if isinstance(output, Mapping):
        parts = output.items()
    elif isinstance(output, tuple) and hasattr(output, "_fields"):
        parts = zip(output._fields, output, strict=True)
    elif isinstance(output, tuple | list):
        parts = enumerate(output)
    elif is_dataclass(output):
        parts = ((field.name, getattr(output, field.name)) for field in fields(output))
    elif hasattr(output, "__dict__"):
        parts = vars(output).items()
    else:
        raise UserError(f"{name}: {_called(path)} is a {type(output).__name__}, not a tensor; return tensors alone")
    for key, part in parts:
        yield from tensors_in(part, f"{path}.{key}" if path else str(key), name)


def outputs_of(model: nn.Module, images: Tensor, name: str) -> dict[str, Tensor]:
    """By path, the tensors of floats that a network gives for a few images [N, C, H, W], of two or more.

    UserError, which opens with `name`, unless each has an entry for each image.
    """
    with torch.no_grad():
        # Copies: a network may write into its input.
        whole = model(images.clone())
        if isinstance(whole, Tensor):
            if whole.ndim == 0 or len(whole) != len(images):
                raise UserError(
                    f"{name}: gives {list(whole.shape)} for {len(images)} images, not a tensor with an output for each"
                )
            return {"": whole}
        found, single = (
            {path: tensor for path, tensor in tensors_in(output, name=name) if tensor.is_floating_point()}
            for output in (whole, model(images[:1].clone()))
        )
    for path, tensor in found.items():
        shapes = [list(other.shape) for other in (tensor, single.get(path)) if other is not None]
        if shapes[0][:1] != [len(images)] or shapes[1:] != [[1, *shapes[0][1:]]]:
            told = " and ".join(f"{shape} for {count}" for shape, count in zip(shapes, (len(images), 1), strict=False))
            raise UserError(f"{name}: {_called(path)} is {told} images, not an entry for each; {WITHOUT}")
    if not found:
        raise UserError(f"{name}: gives no tensor of floats, but a {type(whole).__name__}; return tensors")
    return found


def chosen_outputs(found: Mapping[str, Tensor], several: bool, name: str) -> tuple[Output, ...]:
    """Those that a task takes: all if it takes `several`, else the only one, or the one that is called logits.

    UserError, which opens with `name`, if none of them is the one.
    """
    paths = list(found)
    if not several and len(paths) > 1:
        paths = [path for path in paths if path.rpartition(".")[2] in FIRST]
        if len(paths) != 1:
            raise UserError(
                f"{name}: gives {len(found)} tensors: {told_outputs(found)}; the task regression takes all of them, or "
                "give a module that returns the one"
            )
    return tuple(Output(path, tuple(found[path].shape[1:])) for path in paths)


def told_outputs(found: Mapping[str, Tensor]) -> str:
    """Paths and shapes of tensors for a reader."""
    return ", ".join(f"{path or 'the output'} {list(tensor.shape)}" for path, tensor in found.items())


def structure(outputs: Sequence[Output]) -> dict:
    """The entry `structure` of model.json; none for a network that gives one plain tensor."""
    if [output.path for output in outputs] == [""]:
        return {}
    return {"structure": [{"path": output.path, "shape": list(output.shape)} for output in outputs]}


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor as it is; several side by side, float32 [N, D]."""
    return tensors[0] if len(tensors) == 1 else torch.cat([tensor.float().flatten(1) for tensor in tensors], 1)


def _called(path: str) -> str:
    return f"output {path!r}" if path else "the output"


def with_logits(model: nn.Module, description: Mapping[str, object]) -> nn.Module:
    """The same module, which gives what its task takes from now on; `description` (model.json) says what it gives.

    That is one tensor, of several outputs the joined one; and logits. Logarithms of probabilities are logits: softmax
    gives the probabilities back; of sigmoids they are log odds. Hooks do it, so names, weights and what is saved stay
    as they are. Only for networks of our own: never for one that a user passes in.
    """
    given = description.get("structure")
    taken = given and Taken(tuple(Output(output["path"], tuple(output["shape"])) for output in given))
    for hook in filter(None, (taken, HOOKS.get(description.get("outputs")))):
        if hook not in model._forward_hooks.values():
            model.register_forward_hook(hook)
    return model


def with_same_logits(model: nn.Module, original: nn.Module) -> nn.Module:
    """The module, with the hooks that `with_logits` gave the original, and no others of its hooks."""
    for hook in original._forward_hooks.values():
        if isinstance(hook, Taken) or hook in HOOKS.values():
            model.register_forward_hook(hook)
    return model


def ends_in_sigmoid(model: nn.Module, images: Tensor, path: str = "") -> bool:
    """Whether the last thing that the network does to its output at a path is a sigmoid, by autograd's graph.

    Values alone do not tell: logits may lie between 0 and 1 as well. `images` [N, C, H, W] stay as they are.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # Copies: the network may be frozen, so the images must ask for the gradient, and it may write into its input.
        node = dict(tensors_in(model(images.clone().requires_grad_().clone())))[path].grad_fn
    while node is not None and node.name().rstrip("0123456789").removesuffix("Backward") in RESHAPES:
        node = node.next_functions[0][0]
    return node is not None and node.name().startswith("SigmoidBackward")


def _logarithms(module: nn.Module, images: tuple, output: Tensor) -> Tensor:
    # Of a probability that is too small for float32, the least that is not.
    return output.float().clamp_min(torch.finfo(torch.float32).tiny).log()


def _log_odds(module: nn.Module, images: tuple, output: Tensor) -> Tensor:
    # The nearest to 1 that float32 has; it holds far smaller numbers near 0.
    limits = torch.finfo(torch.float32)
    probability = output.float().clamp(limits.tiny, 1 - limits.eps / 2)
    return probability.log() - torch.log1p(-probability)


HOOKS = {PROBABILITIES: _logarithms, SIGMOID: _log_odds}
