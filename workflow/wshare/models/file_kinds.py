"""What a file of a network is, told by its first bytes, whatever its name says."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wshare.errors import FormatError

# As many bytes as any of them is told by.
START = 256


@dataclass(frozen=True)
class FileKind:
    """A kind of file: its `name`, and what to do with one, None for those that weights are read from."""

    name: str
    told_by: Callable[[bytes, Path], bool]
    remedy: str | None = None


SAVE = "load it where you trust it and save torch.save(model.state_dict(), 'weights.pth'), or better a safetensors file"
TO_ONNX = "convert it to ONNX ({}) and give that with source onnx, on the command line --architecture onnx:<path>"
OF_KERAS = TO_ONNX.format(
    'keras.models.load_model(path).export("saved"); python -m tf2onnx.convert --saved-model saved --output net.onnx'
)
OF_TFLITE = TO_ONNX.format("python -m tf2onnx.convert --tflite <path> --output net.onnx")


def kind_of_file(path: Path) -> FileKind | None:
    """The first kind that a file is; None for one of no kind that is known."""
    with open(path, "rb") as file:
        start = file.read(START)
    return next((kind for kind in KINDS if kind.told_by(start, path)), None)


def check_kind(path: Path, wanted: str) -> None:
    """FormatError, with what to do, for a file that is of another kind that is known."""
    kind = kind_of_file(path)
    if kind is not None and kind.name != wanted:
        weights = "give it with source file, and the architecture that its weights are for"
        raise FormatError(f"{path}: {kind.name}, no {wanted}; {kind.remedy or weights}")


def _begins(*prefixes: bytes) -> Callable[[bytes, Path], bool]:
    return lambda start, path: start.startswith(prefixes)


def _holds(*ends: str) -> Callable[[bytes, Path], bool]:
    """A zip archive with a member whose path ends so."""

    def told_by(start: bytes, path: Path) -> bool:
        try:
            with zipfile.ZipFile(path) as archive:
                return any(name.endswith(ends) for name in archive.namelist())
        except (zipfile.BadZipFile, NotImplementedError, EOFError, UnicodeDecodeError):
            # No archive, or a damaged one: whatever reads it says so.
            return False

    return told_by


def _is_onnx(start: bytes, path: Path) -> bool:
    # A protocol buffer: field 1, the version of the format, a small number; then the producer or another early field.
    return len(start) > 2 and start[0] == 0x08 and 0 < start[1] < 32 and start[2] in (0x12, 0x1A, 0x22, 0x3A, 0x42)


KINDS = (
    FileKind("safetensors file", lambda start, path: start[8:9] == b"{" and len(start) > 9),
    FileKind("TensorFlow Lite file", lambda start, path: start[4:8] == b"TFL3", OF_TFLITE),
    FileKind("Keras or other HDF5 file", _begins(b"\x89HDF\r\n\x1a\n"), OF_KERAS),
    FileKind("Keras file", _holds("model.weights.h5"), OF_KERAS),
    FileKind(
        "torch.export program",
        _holds("archive_format", "serialized_exported_program.json"),
        "give it with source torch_export, on the command line --architecture torch_export:<path>",
    ),
    FileKind("archive of numpy arrays", _holds(".npy"), "save them as a safetensors file under the network's names"),
    FileKind("TorchScript program", _holds("/constants.pkl"), SAVE),
    FileKind("torch file", _holds("/data.pkl")),
    FileKind("ONNX file", _is_onnx, "give it with source onnx, on the command line --architecture onnx:<path>"),
    FileKind("pointer of Git LFS", _begins(b"version https://git-lfs"), "get the file itself: git lfs pull"),
    FileKind("web page", _begins(b"<!DOCTYPE", b"<!doctype", b"<html"), "download the file itself"),
    FileKind("gzip archive", _begins(b"\x1f\x8b"), "unpack it"),
    FileKind("Zstandard archive", _begins(b"\x28\xb5\x2f\xfd"), "unpack it"),
)
