"""Training of the small networks that come with the workflow; never of a network that is being compressed."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from wshare.errors import UserError
from wshare.progress import PROGRESS


def train(
    module: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    shift: int,
) -> list[dict]:
    """Loss and accuracy of each epoch, of a network trained in place from fresh weights.

    `images` is float [N, C, H, W], normalised; `labels` is integer [N]. The initial weights, the order of the images
    and their random shifts by up to `shift` pixels all follow from `seed`, whatever `module` held before; the global
    random state stays as it was. AdamW with a one-cycle schedule that peaks at `learning_rate`. An entry is
    {"epoch", "loss" (nats), "accuracy" (share)}, measured on the shifted images while the weights change.

    The result is equal to the byte on one machine if the caller has set one torch thread: with more, sums are split
    by the number of threads. UserError if the loss stops being finite. Leaves `module` in eval mode.
    """
    if len(images) != len(labels) or len(images) < 2:
        raise UserError(f"training: {len(images)} images and {len(labels)} labels; give 2 or more, as many of each")
    batches = math.ceil(len(images) / batch_size)
    history = []
    bar = tqdm(range(1, epochs + 1), desc="train", unit="epoch", **PROGRESS)
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), bar:
        torch.manual_seed(seed)
        for part in module.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
        optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * batches)
        module.train()
        for epoch in bar:
            loss_sum = correct = 0.0
            # Batches of nearly equal size: batch norm cannot train on a last batch of one image.
            for chosen in torch.randperm(len(images)).tensor_split(batches):
                targets = labels[chosen]
                outputs = module(shifted(images[chosen], shift))
                loss = functional.cross_entropy(outputs, targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                loss_sum += loss.item() * len(chosen)
                correct += (outputs.argmax(1) == targets).sum().item()
            if not math.isfinite(loss_sum):
                raise UserError(
                    f"training: the loss is not finite in epoch {epoch}; lower learning_rate ({learning_rate})"
                )
            history.append({"epoch": epoch, "loss": loss_sum / len(images), "accuracy": correct / len(images)})
        optimizer.zero_grad()
    module.eval()
    return history


def shifted(images: Tensor, shift: int) -> Tensor:
    """Each image [C, H, W] of a batch moved by its own random offset of -shift..shift pixels in both directions.

    What comes in from outside repeats the border. Draws from torch's global random state.
    """
    if shift == 0:
        return images
    height, width = images.shape[2:]
    padded = functional.pad(images, [shift] * 4, mode="replicate")
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    down, right = torch.randint(2 * shift + 1, (2, len(images)))
    return windows[torch.arange(len(images)), :, down, right]
