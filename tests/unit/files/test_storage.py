import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from wshare.artifacts.clusters import Clusters, read_clusters, write_clusters
from wshare.artifacts.outputs import read_outputs, write_outputs
from wshare.artifacts.weights import read_fisher, read_layer, write_weights
from wshare.calibration.importance import total
from wshare.config.validation import PACKAGE
from wshare.data.images import ImageFile
from wshare.data.stored import write_images
from wshare.errors import FormatError, UserError
from wshare.files.atomic import atomic, write_text
from wshare.files.hdf5 import SCHEMA_VERSION, content_hash, create_h5, open_h5, sha256_arrays, write_arrays
from wshare.files.sealed import read_json, sha256_file, write_json
from wshare.files.tables import read_sealed, write_sealed, write_table
from wshare.quantize.kmeans import sweep


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "file"


def refused(read: Callable[[], object], path: Path) -> str:
    """The one line that a reader ends with."""
    with pytest.raises(FormatError) as error:
        read()
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_atomic_makes_folders_and_the_file(path):
    with atomic(path) as temporary:
        assert temporary.parent.parent == path.parent
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [None, "old"])
def test_atomic_leaves_nothing_behind_on_an_error_and_keeps_the_old_file(path, old, error):
    if old:
        write_text(path, old)

    def fail() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert os.listdir(path.parent) == (["file"] if old else [])
    assert not old or path.read_text() == old


def test_what_a_killed_writer_left_is_removed(path):
    left = path.parent / f".{path.name}.tmp"
    left.mkdir(parents=True)
    for name in ("lock", path.name, ".tmpAbC"):
        (left / name).write_text("half")
    write_text(path, "whole")
    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["file"]


def test_a_second_writer_of_a_file_waits(path):
    second = threading.Thread(target=write_text, args=(path, "second"))
    with atomic(path) as temporary:
        second.start()
        second.join(0.1)
        assert second.is_alive()
        temporary.write_text("first")
    second.join()
    assert path.read_text() == "second"
    assert os.listdir(path.parent) == ["file"]


def test_a_file_that_has_no_room_is_not_begun(path):
    with pytest.raises(UserError, match=r"file: needs 1000000000000\.0 MB, and its disk has .* MB left; free space"):
        atomic(path, 10**18).__enter__()
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("limit", [0, 1000, 20_000])
def test_h5_beyond_the_limit_of_file_sizes_ends_in_one_line(path, limit):
    """In a process of its own: HDF5 would crash it in the end, had it seen the write fail."""
    program = (
        "import resource, sys, numpy\n"
        "from wshare.files.hdf5 import create_h5\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
        "try:\n"
        "    with create_h5(sys.argv[1], 'kind', {}, {}) as file:\n"
        "        file['x'] = numpy.arange(9000)\n"
        "except Exception as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(path), str(limit)],
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    cure = "cannot be written (File too large); raise the limit of file sizes (ulimit -f) and run again"
    assert run.stdout == f"{path}: {cure}\n"
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_have_the_rights_that_the_umask_leaves(path, umask, mode):
    mask = os.umask(umask)
    try:
        write_text(path, "x")
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_json_comes_back_and_knows_no_nan(path):
    value = {"a": [1, 2.5, None, "ä"], "b": {"c": True}, "third": 1 / 3}
    write_json(path, value)
    assert read_json(path) == value
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == value


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe", b"nothing", b'{"a": NaN}', b"\xff" * 10_000])
def test_damaged_or_missing_json_is_refused(path, content):
    assert "no such file" in refused(lambda: read_json(path), path)
    path.parent.mkdir()
    path.write_bytes(content)
    message = refused(lambda: read_json(path), path)
    assert "damaged JSON" in message
    assert len(message) < 1000


def test_hashes_tell_bytes_types_shapes_and_order_apart(path):
    write_text(path, "abc")
    assert sha256_file(path) == hashlib.sha256(b"abc").hexdigest()
    zeros = np.zeros((2, 3), np.float32)
    arrays = [
        [zeros],
        [zeros.reshape(3, 2)],
        [zeros.astype(np.int32)],
        [zeros + 1],
        [zeros, zeros],
        [],
        [zeros[:0]],
        [np.float32(0)],
    ]
    assert len({sha256_arrays(*map(np.asarray, each)) for each in arrays}) == len(arrays)
    grid = np.arange(6.0).reshape(2, 3)
    assert sha256_arrays(grid.T) == sha256_arrays(np.ascontiguousarray(grid.T)) != sha256_arrays(grid)


def write_h5(path: Path) -> None:
    with create_h5(path, "kind", {"b": 1, "a": 2}, {"model": "0"}) as file:
        file["x"] = np.arange(1000)


def read_h5(path: Path) -> np.ndarray:
    with open_h5(path, "kind") as file:
        return file["x"][:]


def test_h5_keeps_its_settings_and_content(path):
    write_h5(path)
    assert np.array_equal(read_h5(path), np.arange(1000))
    with open_h5(path, "kind") as file:
        assert json.loads(file.attrs["settings"]) == {"a": 2, "b": 1}


def test_h5_of_another_kind_version_or_without_its_end_is_refused(path):
    write_h5(path)
    assert "other" in refused(lambda: open_h5(path, "other").__enter__(), path)
    with h5py.File(path, "a") as file:
        file.attrs["version"] = 99
    assert "99" in refused(lambda: read_h5(path), path)
    with h5py.File(path, "a") as file:
        file.attrs["version"] = SCHEMA_VERSION
        del file.attrs["complete"]
    assert "complete" in refused(lambda: read_h5(path), path)


def test_h5_that_fails_while_it_is_written_leaves_nothing(path):
    def fail() -> None:
        with create_h5(path, "kind", {}, {}) as file:
            file["x"] = 1
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert os.listdir(path.parent) == []


def test_missing_truncated_and_foreign_h5_files_are_refused(path):
    assert "no such file" in refused(lambda: read_h5(path), path)
    write_h5(path)
    whole = path.read_bytes()
    for length in (0, 1, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(lambda: read_h5(path), path)
    path.write_text("a text")
    refused(lambda: read_h5(path), path)
    with h5py.File(path, "w") as file:
        file["x"] = 1
    refused(lambda: read_h5(path), path)


def test_an_entry_that_is_missing_is_refused(path):
    with create_h5(path, "kind", {}, {}):
        pass
    refused(lambda: read_h5(path), path)


def sample_images(path: Path) -> ImageFile:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 3, 6, 5), dtype=np.uint8)
    preprocessing = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    write_images(path, pixels, np.arange(90) % 7, [f"image {i}" for i in range(90)], preprocessing, {}, 9)
    return ImageFile(path)


def sample_weights(path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(20, 30)).astype(np.float32) for name in ("a.b", "c/../d")}
    importance = {name: np.square(w) for name, w in weights.items()}
    write_weights(path, weights, importance, {name: total(w) for name, w in importance.items()}, {}, {"model": "0"})


def sample_clusters(path: Path) -> Clusters:
    weights = np.random.default_rng(0).normal(size=(8, 4, 3, 1)).astype(np.float32)
    clusters = Clusters("a.b", weights.shape, (2, 5, 9), "importance", sweep(weights, weights**2, k_max=20))
    write_clusters(path, clusters, {}, {"model": "0"})
    return clusters


def test_images_come_back_normalised_in_order(path):
    images = sample_images(path)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 3, 6, 5), dtype=np.uint8)
    mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]))
    batches = list(images.batches())
    assert [len(batch) for batch in batches] == [64, 26]
    np.testing.assert_allclose(
        torch.cat(batches).numpy(), (pixels / np.float32(255) - mean) / std, rtol=1e-5, atol=1e-6
    )
    assert np.array_equal(images.labels, np.arange(90) % 7)
    assert images.keys[89] == "image 89"
    assert (len(images), images.shape) == (90, (3, 6, 5))
    assert images.fingerprint == hashlib.sha256(pixels.tobytes() + images.labels.tobytes()).hexdigest()


def test_images_without_labels_hold_none_and_are_known_by_their_pixels(path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 1, 4, 5), dtype=np.uint8)
    preprocessing = {"mean": [0.1], "std": [0.4]}
    write_images(path, pixels, None, [str(i) for i in range(9)], preprocessing, {}, 9)
    images = ImageFile(path, limit=7)
    assert images.labels is None
    assert (len(images), len(images.batch(0))) == (7, 7)
    assert images.fingerprint == hashlib.sha256(pixels.tobytes()).hexdigest()
    with h5py.File(path) as file:
        assert "labels" not in file


def test_images_that_are_none_are_counted_and_left_out(path):
    """The file is that of the other images, but for their number."""
    pixels = np.random.default_rng(0).integers(0, 256, (70, 3, 40, 41), dtype=np.uint8)
    keys, labels, none = [str(i) for i in range(70)], np.arange(70) % 7, {0, 3, 68, 69}
    kept = [i for i in range(70) if i not in none]
    preprocessing = {"mean": [0.1] * 3, "std": [0.4] * 3}
    given = [None if i in none else image for i, image in enumerate(pixels)]
    found = write_images(path, given, labels, keys, preprocessing, {}, 9)
    whole = path.with_name("whole.h5")
    assert found == write_images(whole, pixels[kept], labels[kept], [keys[i] for i in kept], preprocessing, {}, 9)
    skipped, expected = ImageFile(path), ImageFile(whole)
    assert (skipped.skipped, expected.skipped) == (4, 0)
    assert skipped.keys == expected.keys
    assert np.array_equal(skipped.labels, expected.labels)
    assert torch.equal(torch.cat(list(skipped.batches())), torch.cat(list(expected.batches())))


def test_labels_that_are_lost_do_not_pass_for_no_labels(path):
    sample_images(path)
    with h5py.File(path, "a") as file:
        del file["labels"]
    assert "labels are not as it says" in refused(lambda: ImageFile(path), path)


def test_one_label_an_image(path):
    preprocessing = {"mean": [0.1], "std": [0.4]}
    with pytest.raises(ValueError, match="2 labels for 3 images"):
        write_images(path, np.zeros((3, 1, 2, 2), np.uint8), np.zeros(2), ["a", "b", "c"], preprocessing, {}, 9)


def test_a_limit_keeps_the_first_images(path):
    whole, part = sample_images(path), ImageFile(path, limit=70)
    assert (len(part), len(part.labels), len(part.keys)) == (70, 70, 70)
    assert torch.equal(torch.cat(list(part.batches())), torch.cat(list(whole.batches()))[:70])
    assert len(ImageFile(path, limit=1000)) == 90


def test_weights_and_importance_come_back_to_the_byte(path):
    sample_weights(path)
    weight, importance, made_from = read_layer(path, "c/../d", {"model": "0"})
    assert made_from == {"model": "0"}
    rng = np.random.default_rng(0)
    rng.normal(size=(20, 30))
    expected = rng.normal(size=(20, 30)).astype(np.float32)
    assert weight.tobytes() == expected.tobytes()
    assert importance.tobytes() == np.square(expected).tobytes()
    assert read_fisher(path, {"model": "0"})["c/../d"] == total(importance)
    assert list(read_fisher(path)) == ["a.b", "c/../d"]
    assert "no layer 'x'" in refused(lambda: read_layer(path, "x"), path)


def test_a_layer_that_does_not_match_its_checksum_is_refused(path):
    sample_weights(path)
    with h5py.File(path, "a") as file:
        file["a.b/weight"][3, 4] += 1
    assert "checksum" in refused(lambda: read_layer(path, "a.b"), path)
    read_layer(path, "c/../d")


def test_clusters_come_back_to_the_byte(path):
    clusters = sample_clusters(path)
    found = read_clusters(path)
    assert (found.layer, found.shape, found.candidates) == ("a.b", (8, 4, 3, 1), (2, 5, 9))
    assert found.weighting == "importance"
    assert found.weights == 96
    assert found.objective.tobytes() == clusters.sweep.weighted_inertia.tobytes()
    for name in ("inertia", "weighted_inertia", "codebooks"):
        assert getattr(found.sweep, name).tobytes() == getattr(clusters.sweep, name).tobytes()
        assert getattr(found.sweep, name).dtype == getattr(clusters.sweep, name).dtype


def content_of_images(path: Path) -> list[object]:
    images = ImageFile(path)
    pixels = [batch.numpy().tobytes() for batch in images.batches()]
    return [pixels, images.labels.tobytes(), images.keys, images.fingerprint, images.shape]


def content_of_weights(path: Path) -> list[object]:
    return [array.tobytes() for array in read_layer(path, "a.b")[:2]]


def content_of_clusters(path: Path) -> list[object]:
    found = read_clusters(path)
    arrays = (found.sweep.inertia, found.sweep.weighted_inertia, found.sweep.codebooks)
    return [found.layer, found.shape, found.candidates, found.weighting, *(array.tobytes() for array in arrays)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "content", "datasets"),
    [
        (sample_images, content_of_images, ["images", "labels", "keys", "checksums"]),
        (sample_weights, content_of_weights, ["a.b/weight", "a.b/importance"]),
        (sample_clusters, content_of_clusters, ["candidates", "inertia", "weighted_inertia", "codebooks"]),
    ],
    ids=["images", "weights", "clusters"],
)
def test_a_changed_byte_is_found_wherever_it_lies(path, write, content, datasets):
    """In the data it always is; in the rest of the file it may also lie in padding and change nothing."""
    write(path)
    whole, expected = path.read_bytes(), content(path)
    rng = np.random.default_rng(0)
    data = set()
    with h5py.File(path) as file:
        for name in datasets:
            dataset = file[name]
            for i in range(dataset.id.get_num_chunks()):
                chunk = dataset.id.get_chunk_info(i)
                places = {0, chunk.size - 1, *rng.integers(chunk.size, size=10).tolist()}
                data |= {chunk.byte_offset + place for place in places}
    assert len(data) > 10 * len(datasets)
    for place in data | set(rng.integers(len(whole), size=300).tolist()):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        # A new file each time: the library may still hold the old one.
        path.unlink()
        path.write_bytes(damaged)
        try:
            assert content(path) == expected
        except FormatError:
            continue
        assert place not in data


def test_logits_come_back_and_belong_to_their_images(path, random_images):
    images, others = random_images(30), random_images(30, seed=1)
    logits = np.random.default_rng(0).normal(size=(30, 10)).astype(np.float32)
    write_outputs(path, logits, images, "0")
    assert read_outputs(path, images, "0").tobytes() == logits.tobytes()
    assert np.array_equal(read_outputs(path, ImageFile(images.path, limit=7), "0"), logits[:7])
    assert "made from other images" in refused(lambda: read_outputs(path, others, "0"), path)
    assert "made from other model" in refused(lambda: read_outputs(path, images, "1"), path)


def test_a_table_keeps_all_digits(path):
    rows = [{"a": 1 / 3, "b": "x,\n'\"y", "c": 5}, {"a": 1e-300, "b": "", "c": -1}]
    write_sealed(path, ["a", "b", "c"], rows, {"model": "0"})
    found, made_from = read_sealed(path, ["a", "b", "c"])
    assert made_from == {"model": "0"}
    assert [float(row["a"]) for row in found] == [1 / 3, 1e-300]
    assert [row["b"] for row in found] == ["x,\n'\"y", ""]
    assert path.read_bytes().startswith(b"a,b,c\n")


def test_a_table_cut_off_or_changed_anywhere_is_refused(path):
    write_sealed(path, ["a", "b"], [{"a": 0.125, "b": "x"}, {"a": "y", "b": 0.375}], {"model": "0"})
    whole = path.read_bytes()
    for place in range(len(whole) - 1):
        path.write_bytes(whole[:place])
        refused(lambda: read_sealed(path), path)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        refused(lambda: read_sealed(path), path)


def test_a_table_without_a_seal_or_with_other_columns_is_refused(path):
    write_table(path, ["a", "b"], [{"a": 1, "b": 2}])
    assert path.read_text() == "a,b\n1,2\n"
    assert "not a whole table" in refused(lambda: read_sealed(path), path)
    write_sealed(path, ["a", "b"], [{"a": 1, "b": 2}], {})
    assert "not a table of b, a" in refused(lambda: read_sealed(path, ["b", "a"]), path)
    assert "no such file" in refused(lambda: read_sealed(path.parent / "absent"), path.parent / "absent")


@pytest.mark.parametrize(("first", "stop"), [(0, 3), (3, 11), (8, 11), (4, 4), (9, 99)])
def test_a_part_of_the_images_is_those_images(random_images, first, stop):
    whole = random_images(11)
    whole.batch_size = 4
    everything = torch.cat(list(whole.batches()))
    part = whole.part(first, stop)
    assert len(part) == len(everything[first:stop])
    assert part.keys == whole.keys[first:stop]
    assert np.array_equal(part.labels, whole.labels[first:stop])
    found = list(part.batches())
    assert torch.equal(torch.cat(found or [everything[:0]]), everything[first:stop])
    assert [len(batch) for batch in found[:-1]] == [4] * (len(found) - 1)
    # The whole stays as it was.
    assert torch.equal(torch.cat(list(whole.batches())), everything)


def test_a_part_of_a_part_counts_from_its_first_image(random_images):
    whole = random_images(11)
    part = whole.part(2, 10).part(1, 5)
    assert part.keys == ("3", "4", "5", "6")
    assert torch.equal(part.batch(0), whole.batch(0)[3:7])


def test_a_part_of_a_limited_file_ends_with_it(random_images):
    part = ImageFile(random_images(11).path, limit=6).part(4, 11)
    assert part.keys == ("4", "5")
    assert len(part.batch(0)) == 2


@pytest.mark.parametrize(
    ("count", "middle"), [(1, 0), (2, 1), (3, 1), (7, 3), (8, 4), (9, 4), (11, 4), (15, 4), (16, 8), (100, 48)]
)
def test_the_middle_is_between_batches_if_there_are_several(random_images, count, middle):
    images = random_images(count)
    images.batch_size = 4
    assert images.middle() == middle


def test_the_hash_of_content_tells_arrays_and_settings_apart(tmp_path):
    def hashed(name: str, settings: dict, first: int, inner: int) -> str:
        with create_h5(tmp_path / name, "kind", settings, {}) as file:
            write_arrays(file, a=np.full(5, first))
            write_arrays(file.create_group("deep").create_group("er"), a=np.full(5, inner))
        return content_hash(tmp_path / name, "kind")

    assert hashed("a", {"k": 1}, 1, 2) == hashed("b", {"k": 1}, 1, 2)
    assert len({hashed("c", {"k": k}, first, inner) for k in (1, 2) for first in (1, 2) for inner in (1, 2)}) == 8


def test_a_json_file_or_table_of_another_version_is_refused(path):
    write_json(path, {"a": 1})
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    assert "of version 2, and this wshare reads 1" in refused(lambda: read_json(path), path)
    path.write_text('{"a": 1, "checksum": ""}')
    assert "of version None" in refused(lambda: read_json(path), path)
    write_sealed(path, ["a"], [{"a": 1}], {})
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    assert "of version 2, and this wshare reads 1" in refused(lambda: read_sealed(path), path)


@pytest.mark.slow
def test_without_unix_locks_files_are_read_and_writing_says_what_to_do(tmp_path):
    program = """
import sys

sys.modules["fcntl"] = None
import wshare
from wshare.files.atomic import write_text

assert callable(wshare.load_packed) and callable(wshare.load)
write_text("file", "text")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "files are written under Unix file locks, which linux lacks; run wshare in WSL" in done.stderr
    assert not (tmp_path / "file").exists()
