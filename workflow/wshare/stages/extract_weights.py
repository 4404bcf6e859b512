"""Extract each layer's weight and importance into one file that all clustering jobs read."""

from pathlib import Path

from wshare.artifacts.model import read_model
from wshare.artifacts.weights import write_weights
from wshare.calibration.importance import fisher_diagonal, total
from wshare.data.devices import device_of, placed
from wshare.data.images import ImageFile
from wshare.files.sealed import check_origin, read_json
from wshare.models.kinds.table import layer_of
from wshare.stages.arguments import Machine
from wshare.tasks.table import task_of


def extract_weights(
    settings: dict, spec: Path, weights: Path, layers: Path, search_images: Path, layer_weights: Path, machine: Machine
) -> None:
    """Write weights.h5: weights and importance of the layers that layers.json says are shared."""
    description, table = read_json(spec), read_json(layers)
    check_origin(layers, table, {"model": description["sha256"]})
    device = device_of(machine.gpus)
    model = read_model(spec, weights, device)
    names = [layer["name"] for layer in table["layers"]]
    arrays = {name: layer_of(model, name).weight.numpy(force=True) for name in names}
    sample = ImageFile(search_images, limit=settings["images"], preprocessing=description["preprocessing"])
    batches = placed(sample, device).batches()
    importance = fisher_diagonal(task_of(description), model, batches, names, settings["seed"], machine.threads)
    fisher = {name: total(array) for name, array in importance.items()}
    made_from = {"model": description["sha256"], "images": sample.fingerprint}
    write_weights(layer_weights, arrays, importance, fisher, settings, made_from)
