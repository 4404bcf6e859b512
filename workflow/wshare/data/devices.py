"""The processor that networks run on."""

import logging

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
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    device = torch.device("cuda", 0)
    _log.info("on %s", torch.cuda.get_device_name(device))
    return device


def placed(images: Images, device: torch.device) -> Images:
    """Images for networks on a device: in its memory, if it is a GPU's and they fit."""
    if device.type != "cuda":
        return images
    # What earlier passes left in PyTorch's cache is free, too.
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return DeviceImages(images, device, int(SHARE * free))
