"""Train one of the embedded networks, for datasets that no published weights fit."""

from pathlib import Path

import numpy as np
import torch

from wshare.artifacts.model import write_model
from wshare.data.dataset import UnreadableImage, all_unreadable, first_readable
from wshare.data.images import normalised
from wshare.data.prepare import prepared_split
from wshare.data.registry import open_dataset
from wshare.data.splits import splits_of
from wshare.errors import UserError
from wshare.models import zoo
from wshare.models.description import finish
from wshare.models.forward import forward
from wshare.models.preprocessing import complete_preprocessing
from wshare.models.training import train
from wshare.tasks.description import described
from wshare.tasks.table import task_of


def train_model(settings: dict, weights: Path, spec: Path) -> None:
    """Write weights.safetensors and model.json of a network trained on the train split.

    UserError if its quality on the search split, by its task, is below the floor.
    """
    # Sums on one thread are the same however many cores there are, and so is the network.
    torch.set_num_threads(1)
    recipe = settings["training"]
    data = open_dataset(settings["dataset"])
    if data.labels is None:
        raise UserError("training: the dataset gives no labels to learn from; use another source for the network")
    first = first_readable(data)
    found = {"channels": len(first.getbands()), "crop": first.height}
    preprocessing = complete_preprocessing(found, settings["preprocessing"])
    arguments = {"classes": data.classes} | settings["arguments"]
    if preprocessing["crop"] is None:
        raise UserError("preprocessing.crop: null is not for source 'train', whose networks take one size; give a size")
    module = zoo.build(settings["architecture"], arguments)
    splits = splits_of(data, settings["dataset"]["split"], settings["seed"])

    def decoded(split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels of a split, without the images that are skipped."""
        chosen = splits[split]
        try:
            found = list(prepared_split(split, data, chosen, preprocessing, settings["dataset"]))
        except UnreadableImage:
            raise all_unreadable(data, np.concatenate([splits["train"], splits["search"]])) from None
        kept = [place for place, image in enumerate(found) if image is not None]
        pixels = np.stack([found[place] for place in kept])
        return normalised(pixels, preprocessing["mean"], preprocessing["std"]), torch.from_numpy(
            data.labels[chosen[kept]]
        )

    hyperparameters = {key: recipe[key] for key in ("epochs", "learning_rate", "batch_size", "shift")}
    train(module, *decoded("train"), **hyperparameters, seed=settings["seed"])
    builder = {"kind": "embedded", "name": settings["architecture"], "arguments": arguments}
    fetched = described(
        finish(
            module,
            settings,
            builder=builder,
            preprocessing=preprocessing,
            origin="trained by wshare",
            categories=data.folders,
        ),
        settings,
    )
    images, labels = decoded("search")
    outputs, kind = forward(module, images), task_of(fetched.spec)
    quality, measure = kind.score(outputs, outputs, labels.numpy()).quality, kind.measure(labels.numpy())
    print(f"{measure} on the search split: {quality:.2%}, floor {recipe['floor']:.2%}")
    if quality < recipe["floor"]:
        raise UserError(
            f"training: {measure} {quality:.2%} is below training.floor {recipe['floor']:.2%}; train for longer"
        )
    write_model(fetched, weights, spec)
