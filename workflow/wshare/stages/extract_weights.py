"""Extract each layer's weight and importance into one file that all clustering jobs read."""

from pathlib import Path

from wshare.artifacts.model import read_model
from wshare.artifacts.weights import write_weights
from wshare.calibration.importance import fisher_diagonal
from wshare.data.devices import device_of, placed
from wshare.data.images import ImageFile
from wshare.files.sealed import read_json
from wshare.models.layers import inspect
from wshare.tasks.table import task


def extract_weights(
    settings: dict, name: str, spec: Path, weights: Path, images: Path, extracted: Path, gpus: int
) -> None:
    """Write weights.h5; `name` is the model's name in the configuration, for messages."""
    device = device_of(gpus)
    model, description = read_model(spec, weights, device), read_json(spec)
    table = inspect(model, [], settings["include"], settings["exclude"], f"models.{name}.layers")
    names = [layer["name"] for layer in table["layers"]]
    arrays = {layer: model.get_submodule(layer).weight.numpy(force=True) for layer in names}
    sample = ImageFile(images, limit=settings["images"], preprocessing=description["preprocessing"])
    importance = fisher_diagonal(
        task(description["task"]), model, placed(sample, device).batches(), names, settings["seed"]
    )
    made_from = {"model": description["sha256"], "images": sample.fingerprint}
    write_weights(extracted, arrays, importance, settings, made_from)
