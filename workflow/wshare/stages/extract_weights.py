"""Extract each layer's weight and importance into one file that all clustering jobs read."""

from pathlib import Path

from wshare.artifacts.model import read_model
from wshare.artifacts.weights import write_weights
from wshare.calibration.importance import fisher_diagonal
from wshare.data.devices import device_of, placed
from wshare.data.images import ImageFile
from wshare.files.sealed import check_origin, read_json
from wshare.tasks.table import task


def extract_weights(
    settings: dict, spec: Path, weights: Path, layers: Path, search_images: Path, layer_weights: Path, gpus: int
) -> None:
    """Write weights.h5 of the layers that layers.json lists."""
    device = device_of(gpus)
    description, table = read_json(spec), read_json(layers)
    check_origin(layers, table, {"model": description["sha256"]})
    model = read_model(spec, weights, device)
    names = [layer["name"] for layer in table["layers"]]
    arrays = {layer: model.get_submodule(layer).weight.numpy(force=True) for layer in names}
    sample = ImageFile(search_images, limit=settings["images"], preprocessing=description["preprocessing"])
    importance = fisher_diagonal(
        task(description["task"]), model, placed(sample, device).batches(), names, settings["seed"]
    )
    made_from = {"model": description["sha256"], "images": sample.fingerprint}
    write_weights(layer_weights, arrays, importance, settings, made_from)
