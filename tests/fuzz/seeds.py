"""Good files of every kind that the targets read, to start from."""

import io
from pathlib import Path

import safetensors.torch
import torch

from tests.fuzz.targets import split, without_hash

DATA = Path(__file__).parents[1] / "data"


def write_seeds(target: str, corpus: Path) -> None:
    """Fill the corpus of a target with seeds and the cases kept from earlier runs."""
    corpus.mkdir(parents=True, exist_ok=True)
    golden = sorted(DATA.glob("golden_v?*.safetensors"))
    packed = [path for path in golden if "expected" not in path.name]
    if target == "packed":
        seeds = [path.read_bytes() for path in packed]
    elif target == "sealed":
        parts = [split(path) for path in packed if "golden_v2" in path.name]
        seeds = [len(text).to_bytes(2, "little") + text + payload for text, payload in parts]
    elif target == "hashed":
        seeds = [without_hash(path) for path in packed if "golden_v3" in path.name]
    else:
        seeds = model_files()
    seeds += [path.read_bytes() for path in sorted((DATA / "fuzz" / target).glob("*"))]
    for number, content in enumerate(seeds):
        (corpus / f"seed{number}").write_bytes(content)


def model_files() -> list[bytes]:
    """A small state dict as safetensors, as zip archive of torch, and in torch's old format."""
    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2), "n": torch.tensor(3)}
    found = [safetensors.torch.save(state)]
    for content in (state, {"state_dict": {f"module.{name}": value.half() for name, value in state.items()}}):
        for archive in (True, False):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=archive)
            found.append(buffer.getvalue())
    return found
