"""A compressed network: what every search ends in, and every packed file is made from."""

from dataclasses import dataclass, field

import numpy as np

from wshare.quantize.batch_norm import FoldedNorm
from wshare.quantize.codebooks import Shared


@dataclass(frozen=True)
class Compressed:
    """What of a network is compressed.

    `shared` goes by tensor name, `folded` by batch norm; `changed` holds other tensors of the state dict that are not
    the network's. `bits` is the analytic size of the weights of all layers that a search chose settings for, those
    that it kept dense included.
    """

    shared: dict[str, Shared]
    bits: float
    changed: dict[str, np.ndarray] = field(default_factory=dict)
    folded: dict[str, FoldedNorm] = field(default_factory=dict)

    def tensors(self) -> dict[str, np.ndarray]:
        """What of the state dict changes, by tensor name: as a reader of the packed file gets it."""
        found = {name: tensor.weight() for name, tensor in self.shared.items()}
        for name, norm in self.folded.items():
            found |= norm.norm(self.shared[norm.tensor].exponents).tensors(name)
        return found | self.changed
