"""The divergence that gradients go down is the one that scores tell."""

import numpy as np
import pytest
import torch

from wshare.tasks import binary, classification, multilabel, regression, segmentation
from wshare.tasks.own_quality import OwnQuality
from wshare.tasks.task import Task, fitted

from . import vectors

CASES = [
    (classification, (9, 5)),
    (binary, (9,)),
    (binary, (9, 1)),
    (multilabel, (9, 4)),
    (segmentation, (9, 3, 4, 4)),
    (segmentation, (9, 1, 4, 4)),
    (regression.TASK, (9, 4)),
    (regression.TASK, (9, 2, 3)),
    (OwnQuality(regression.TASK, "own:quality"), (9, 4)),
    (vectors, (9, 3)),
]


@pytest.mark.parametrize(("task", "shape"), CASES)
def test_it_is_that_of_the_score_and_has_a_gradient(task: Task, shape: tuple[int, ...]):
    rng = np.random.default_rng(0)
    reference = 3 * rng.normal(size=shape).astype(np.float32)
    outputs = reference + rng.normal(size=shape).astype(np.float32)
    known = fitted(task, reference)
    differentiable = torch.from_numpy(outputs).requires_grad_()
    found = known.divergence(differentiable, torch.from_numpy(reference))
    assert found.item() == pytest.approx(known.score(outputs, reference, None).kl, rel=1e-4)
    found.backward()
    assert differentiable.grad.abs().sum() > 0
    same = torch.from_numpy(reference)
    assert known.divergence(same, same).item() == pytest.approx(0, abs=1e-6)
