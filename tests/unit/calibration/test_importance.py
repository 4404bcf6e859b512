from threading import Barrier

import numpy as np
import pytest
import torch
from torch import nn

from wshare.calibration.importance import fisher_diagonal
from wshare.tasks import classification


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4)).eval()


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def test_it_is_the_mean_square_of_each_images_gradient_with_sampled_labels():
    """The same, with the labels drawn in the same order and one backward pass an image by hand."""
    model, sample = network(), images(6)
    found = fisher_diagonal(classification, model, [sample[:4], sample[4:]], ["0", "3"], seed=5)
    generator = torch.Generator().manual_seed(5)
    expected = {"0": 0.0, "3": 0.0}
    for image in sample:
        probabilities = model(image[None]).softmax(1)[0]
        label = int(torch.multinomial(probabilities.detach(), 1, generator=generator))
        model.zero_grad()
        probabilities[label].log().backward()
        for name in expected:
            expected[name] = expected[name] + model.get_submodule(name).weight.grad.double() ** 2 / len(sample)
    for name, value in expected.items():
        assert found[name].dtype == np.float32
        assert found[name].shape == model.get_submodule(name).weight.shape
        np.testing.assert_allclose(found[name], value.numpy(), rtol=1e-4, atol=1e-12)


@pytest.mark.slow
def test_it_estimates_the_expectation_over_the_networks_own_labels():
    """With many copies of one image, the sampled labels average to the sum over all labels."""
    model, image = network(), images(1)
    expected = torch.zeros_like(model[3].weight)
    log_probabilities = model(image).log_softmax(1)[0]
    for log_probability in log_probabilities:
        (gradient,) = torch.autograd.grad(log_probability, model[3].weight, retain_graph=True)
        expected += log_probability.exp().detach() * gradient**2
    found = fisher_diagonal(classification, model, [image.repeat(1500, 1, 1, 1)], ["3"], seed=0)["3"]
    np.testing.assert_allclose(found.sum(1), expected.sum(1).detach().numpy(), rtol=0.15)


def test_seeded_and_the_same_each_time():
    first, again, other = (
        fisher_diagonal(classification, network(), [images(8)], ["3"], seed)["3"] for seed in (0, 0, 1)
    )
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(threads: int):
    """Five images do not go into two or three threads: labels and sums keep the images' order."""
    batches = [images(5)[:4], images(5)[4:]]
    one, several = (fisher_diagonal(classification, network(), batches, ["0", "3"], 0, n) for n in (1, threads))
    assert {name: found.tobytes() for name, found in one.items()} == {
        name: found.tobytes() for name, found in several.items()
    }


def test_threads_run_side_by_side():
    """Both images are in the network at once: each waits there for the other."""
    model, both = network(), Barrier(2, timeout=60)

    def wait(module: nn.Module, inputs: tuple) -> None:
        both.wait()

    model.register_forward_pre_hook(wait)
    assert fisher_diagonal(classification, model, [images(2)], ["3"], seed=0, threads=2)["3"].any()


def test_weights_and_gradients_of_the_network_stay_as_they_are():
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fisher_diagonal(classification, model, [images(2)], ["0", "3"], seed=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_layer_without_influence_has_no_importance():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(16, 4), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x.flatten(1))

    found = fisher_diagonal(classification, Unused(), [images(3)], ["used", "spare"], seed=0)
    assert found["used"].any()
    assert not found["spare"].any()
    assert found["spare"].shape == (4, 16)


@pytest.mark.parametrize("inplace", [False, True])
def test_modules_that_write_in_place_are_no_obstacle(inplace):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace), nn.Flatten(), nn.Linear(12, 4)).eval()
    assert fisher_diagonal(classification, model, [images(4)], ["0"], seed=0)["0"].any()
