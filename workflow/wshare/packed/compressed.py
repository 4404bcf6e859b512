"""A compressed network: what every search ends in, and every packed file is made from."""

from dataclasses import dataclass, field

import numpy as np

from wshare.quantize.batch_norm import FoldedNorm
from wshare.quantize.codebooks import Shared


@dataclass(frozen=True)
class Compressed:
    """What of a network is compressed.

    `shared` goes by tensor name, `folded` by batch norm; `merged` holds the lengths of biases, by name, that became a
    part of a folded batch norm's shift and are 0 now; `changed` other tensors that are not the network's. `bits` is the
    analytic size of the weights of all layers that a search chose settings for, those that it kept dense included.
    """

    shared: dict[str, Shared]
    bits: float
    changed: dict[str, np.ndarray] = field(default_factory=dict)
    folded: dict[str, FoldedNorm] = field(default_factory=dict)
    merged: dict[str, int] = field(default_factory=dict)

    def tensors(self) -> dict[str, np.ndarray]:
        """What of the state dict changes, by tensor name: as a reader of the packed file gets it."""
        found = {name: tensor.weight() for name, tensor in self.shared.items()}
        for name, norm in self.folded.items():
            found |= norm.norm(self.shared[norm.tensor].exponents).tensors(name)
        found |= {name: np.zeros(count, np.float32) for name, count in self.merged.items()}
        return found | self.changed

    def stored(self) -> dict[str, Shared]:
        """What the packed file shares: a merged bias is one value, 0, which takes a few bytes."""
        zero = np.zeros(1, np.float32)
        return self.shared | {name: Shared(zero, np.zeros(count, np.uint16)) for name, count in self.merged.items()}
