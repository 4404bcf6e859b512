"""Nothing is left dense without a word: each parameter has its reason, and the share that is shared is told."""

import pytest
import torch
from torch import Tensor, nn

from wshare.models.coverage import covered, told
from wshare.models.layers import Choice, inspect, never_called


def entry(name: str, *shape: int, reason: str = "") -> dict:
    return {"name": name, "shape": list(shape), "status": "kept" if reason else "shared", "reason": reason}


def test_a_network_that_is_shared_as_good_as_whole_takes_a_few_words():
    parameters = [entry("a.weight", 30, 30), entry("a.bias", 100, reason="bias")]
    assert covered(parameters) == 0.9
    assert told(parameters) == "90.0% of 1,000 parameters are shared"


def test_below_that_reasons_are_told_by_what_they_keep():
    parameters = [
        entry("a.weight", 50, 12),
        entry("b.weight", 100, reason="small"),
        entry("rnn.weight_ih_l0", 100, reason="LSTM"),
        entry("rnn.weight_hh_l0", 120, reason="LSTM"),
        entry("c.weight", 70, reason="tiny"),
        entry("d.weight", 10, reason="tiniest"),
    ]
    assert told(parameters) == (
        "ONLY 60.0% of 1,000 parameters are shared; kept as they are: 22.0% rnn.weight_hh_l0 and 1 more (LSTM); "
        "10.0% b.weight (small); 7.0% c.weight (tiny); and 1 more reasons"
    )


def test_a_network_without_parameters_has_no_share():
    assert covered([]) == 0


class Odd(nn.Module):
    """Layers that are called, never called, lent to a function, and of no kind that can be shared."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.cells = nn.LSTM(8, 4, batch_first=True)
        self.head, self.auxiliary = nn.Linear(4, 5), nn.Sequential(nn.Linear(4, 40), nn.Linear(40, 5))

    def forward(self, images: Tensor) -> Tensor:
        sequence = self.conv(images).flatten(2).mT
        sequence, _ = self.attention(sequence, sequence, sequence)
        return self.head(self.cells(sequence)[0][:, -1])


SAMPLE = torch.zeros(2, 3, 6, 6)


def test_layers_that_are_never_called_are_kept_and_every_parameter_has_its_reason():
    model = Odd().eval()
    assert never_called(model, ["conv", "head", "auxiliary.0"], SAMPLE) == {"auxiliary.0"}
    assert not any(part._forward_pre_hooks for part in model.modules())
    table = inspect(model, [], Choice(), SAMPLE)
    assert [layer["name"] for layer in table["layers"]] == [
        "conv",
        "attention.in_proj_weight",
        "attention.out_proj",
        "cells.weight_ih_l0",
        "cells.weight_hh_l0",
        "head",
    ]
    reasons = {row["name"]: row["reason"] for row in table["parameters"] if row["status"] == "kept"}
    shared = {row["name"] for row in table["parameters"] if row["status"] == "shared"}
    assert "attention.out_proj.weight" in shared
    assert set(reasons) | shared == {name for name, _ in model.named_parameters()}
    idle = "never called: take it out of the network, unless another part uses its weight"
    assert {name for name, reason in reasons.items() if reason == idle} == {"auxiliary.0.weight", "auxiliary.1.weight"}
    assert reasons["attention.in_proj_bias"] == "in_proj_bias of a layer: few values, kept exact"
    assert all(reasons.values())
    assert told(table["parameters"]).startswith("ONLY ")


@pytest.mark.parametrize(("where", "key"), [("", "exclude"), ("models.m.layers", "models.m.layers.exclude")])
def test_messages_name_what_the_reader_can_change(where, key):
    table = inspect(Odd().eval(), [], Choice(exclude=["conv"], where=where), SAMPLE)
    reasons = {row["name"]: row["reason"] for row in table["parameters"]}
    assert reasons["conv.weight"] == f"named in {key}"
    with pytest.raises(Exception, match=f"never called.*; change {key.replace('exclude', 'include')} or {key}"):
        inspect(Odd().eval(), [], Choice(exclude=["conv", "head", "re:cells.*", "re:attention.*"], where=where), SAMPLE)
