"""The processor that networks run on."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from wshare.data.images import DeviceImages, Images
from wshare.errors import UserError
from wshare.models.state import CPU

_log = logging.getLogger(__name__)

# Of a GPU's free memory, what images may take; the rest is the network's.
SHARE = 0.5


def device_of(gpus: int) -> torch.device:
    """The CPU for no GPU, the first one that the job sees for one.

    float32 is float32 there: without TF32, which keeps 10 bits of a mantissa. UserError if there is no such GPU: a job
    that was meant for one may take days without it.
    """
    if gpus == 0:
        return CPU
    if gpus != 1:
        raise UserError(f"{gpus} GPUs for one job; it uses one (resource gpu of the profile)")
    if not torch.cuda.is_available():
        raise UserError(
            f"a GPU is asked for, and torch {torch.__version__} sees none; check the driver (nvidia-smi) and "
            "CUDA_VISIBLE_DEVICES, or run with a profile that gives jobs no resource gpu"
        )
    device = torch.device("cuda", 0)
    _set_exact(device)
    return device


def device_named(name: str | torch.device | None) -> torch.device:
    """The device that a user names: the CPU for None and "cpu", a GPU for "cuda" and "cuda:<number>".

    UserError if torch sees no such GPU, and for devices of other kinds.
    """
    if name is None:
        return CPU
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"device {str(name)!r}: must be cpu, cuda or cuda:<number>")
    if device.type == "cpu":
        return CPU
    count, place = torch.cuda.device_count() if torch.cuda.is_available() else 0, device.index or 0
    if place >= count:
        raise UserError(
            f"device {str(name)!r}: torch {torch.__version__} sees {count} GPUs; check the driver (nvidia-smi) and "
            "CUDA_VISIBLE_DEVICES, or leave device out to compute on the CPU"
        )
    return torch.device("cuda", place)


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """float32 is float32 on this device, as for `device_of`; torch's settings are the caller's again afterwards."""
    if device.type != "cuda":
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic
    _set_exact(device)
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic = before


def _set_exact(device: torch.device) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    _log.info("on %s", torch.cuda.get_device_name(device))


def placed(images: Images, device: torch.device) -> Images:
    """Images for networks on a device: in its memory, if it is a GPU's and they fit."""
    if device.type != "cuda":
        return images
    # What earlier passes left in PyTorch's cache is free, too.
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return DeviceImages(images, device, int(SHARE * free))
