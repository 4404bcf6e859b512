"""Small networks that the workflow trains itself, each a chain of named modules."""

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

from wshare.errors import UserError
from wshare.names import closest


def lenet5(classes: int = 10) -> nn.Module:
    """LeNet-5 for images [1, 28, 28], with ReLU and max pooling; 61,706 parameters for ten classes.

    Source: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document recognition",
    Proc. IEEE, 1998.
    """
    return chain(
        conv1=nn.Conv2d(1, 6, 5, padding=2),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(6, 16, 5),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(400, 120),
        relu3=nn.ReLU(),
        fc2=nn.Linear(120, 84),
        relu4=nn.ReLU(),
        fc3=nn.Linear(84, classes),
    )


def resnet_ds(classes: int = 10) -> nn.Module:
    """Residual network of depthwise-separable convolutions and batch norm for images [1, 28, 28]."""
    return chain(
        stem=chain(
            conv=nn.Conv2d(1, 16, 3, padding=1, bias=False),
            pool=nn.MaxPool2d(2),
            bn=nn.BatchNorm2d(16),
            relu=nn.ReLU(),
        ),
        block1=_residual(16, 32, stride=1),
        relu1=nn.ReLU(),
        block2=_residual(32, 128, stride=2),
        relu2=nn.ReLU(),
        block3=_residual(128, 128, stride=1),
        relu3=nn.ReLU(),
        block4=_residual(128, 128, stride=1),
        relu4=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(128, classes),
    )


def tiny(classes: int = 10) -> nn.Module:
    """A few thousand weights for images [1, 8, 8]: plain, depthwise and pointwise convolution, batch norm, linear."""
    return chain(
        conv=nn.Conv2d(1, 16, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(16),
        relu1=nn.ReLU(),
        depthwise=nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
        bn2=nn.BatchNorm2d(16),
        relu2=nn.ReLU(),
        pointwise=nn.Conv2d(16, 32, 1, bias=False),
        bn3=nn.BatchNorm2d(32),
        relu3=nn.ReLU(),
        pool=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc=nn.Linear(512, classes),
    )


class Residual(nn.Module):
    """The sum of what `body` and `shortcut` make of the input."""

    def __init__(self, body: nn.Module, shortcut: nn.Module):
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, images: Tensor) -> Tensor:
        return self.shortcut(images) + self.body(images)


def chain(**parts: nn.Module) -> nn.Sequential:
    """The modules one after another, under their names."""
    return nn.Sequential(OrderedDict(parts))


NETWORKS: dict[str, Callable[[int], nn.Module]] = {"lenet5": lenet5, "resnet_ds": resnet_ds, "tiny": tiny}


def build(name: str, arguments: dict) -> nn.Module:
    """The embedded network `name`; `arguments` holds `classes`."""
    if name not in NETWORKS:
        raise UserError(f"architecture: {name!r}: no such network. {closest(name, NETWORKS)}")
    return NETWORKS[name](**arguments)


def _residual(inputs: int, outputs: int, stride: int) -> Residual:
    body = chain(
        depthwise1=nn.Conv2d(inputs, inputs, 3, stride=stride, padding=1, groups=inputs, bias=False),
        bn1=nn.BatchNorm2d(inputs),
        pointwise1=nn.Conv2d(inputs, outputs, 1, bias=False),
        bn2=nn.BatchNorm2d(outputs),
        relu=nn.ReLU(),
        depthwise2=nn.Conv2d(outputs, outputs, 3, padding=1, groups=outputs, bias=False),
        bn3=nn.BatchNorm2d(outputs),
        pointwise2=nn.Conv2d(outputs, outputs, 1, bias=False),
        bn4=nn.BatchNorm2d(outputs),
    )
    if inputs == outputs and stride == 1:
        return Residual(body, nn.Identity())
    shortcut = chain(
        conv=nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False),
        bn=nn.BatchNorm2d(outputs),
    )
    return Residual(body, shortcut)
