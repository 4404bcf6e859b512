"""The model folder: weights.safetensors and model.json."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from wshare.errors import FormatError
from wshare.files.atomic import atomic, remedy
from wshare.files.sealed import check_sha256, read_json, sha256_file, write_json
from wshare.models.description import Fetched
from wshare.models.outputs import with_logits
from wshare.models.registry import load
from wshare.models.state import CPU, fast, state_of


def write_model(fetched: Fetched, weights: Path, spec: Path) -> None:
    """Write the weights, then the specification that holds their SHA-256."""
    state = state_of(fetched.module)
    with atomic(weights, sum(tensor.nbytes for tensor in state.values())) as temporary:
        save_file(state, temporary)
        digest = sha256_file(temporary)
    count = sum(parameter.numel() for parameter in fetched.module.parameters())
    write_json(spec, fetched.spec | {"parameters": count, "sha256": digest})


def check_description(description: dict, spec: Path, keys: tuple[str, ...]) -> None:
    """FormatError unless the content of a model.json has these keys: another file, or an earlier version's."""
    missing = [key for key in keys if key not in description]
    if missing:
        raise FormatError(f"{spec}: not a model.json of this wshare ({', '.join(missing)} missing); {remedy(spec)}")


def read_model(spec: Path, weights: Path, device: torch.device = CPU) -> torch.nn.Module:
    """The network in evaluation mode, on a device, giving logits even where the network itself gives probabilities.

    FormatError unless the weights are those the specification names.
    """
    description = read_json(spec)
    check_description(description, spec, ("sha256",))
    check_sha256(weights, description["sha256"], spec)
    check_description(description, spec, ("name", "builder", "dropped"))
    try:
        return with_logits(fast(load(description, load_file(weights)), device), description)
    except SafetensorError as error:
        raise FormatError(f"{weights}: damaged ({error}); {remedy(weights)}") from None
