"""Folders of image files, ImageNet among them."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tests.unit.data.pictures import GOLDFISH, TENCH, TOILET_TISSUE, assert_sound, noise, one_line, save
from wshare.data.datasets import folders
from wshare.data.datasets.folders import imagenet_wnids
from wshare.data.registry import open_dataset
from wshare.errors import UserError


def write_folders(root: Path, *folders: str) -> None:
    for place, folder in enumerate(folders):
        save(root / folder / "b.JPEG", noise(8, 9, 3, seed=place))
        save(root / folder / "a.jpg", noise(7, 5, 3, seed=10 + place))


def test_wnids_are_known_without_torch():
    wnids = imagenet_wnids()
    assert (wnids[0], wnids[1], wnids[999]) == (TENCH, GOLDFISH, TOILET_TISSUE)
    code = "import sys, wshare.data.datasets.folders as d; d.imagenet_wnids(); sys.exit('torch' in sys.modules)"
    package = Path(folders.__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=package, check=False).returncode == 0


def test_wnids_without_timm_are_an_error(monkeypatch):
    monkeypatch.setattr(folders.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="timm"):
        imagenet_wnids.__wrapped__()


@pytest.mark.parametrize("source", ["imagenet", "imagenette"])
@pytest.mark.parametrize("below", ["val", "."])
def test_class_is_the_place_of_the_wnid(tmp_path, source, below):
    write_folders(tmp_path / below, TOILET_TISSUE, TENCH)
    dataset = open_dataset({"source": source, "path": str(tmp_path)})
    assert_sound(dataset)
    assert dataset.keys == tuple(f"{wnid}/{name}" for wnid in (TENCH, TOILET_TISSUE) for name in ("a.jpg", "b.JPEG"))
    assert dataset.labels.tolist() == [0, 0, 999, 999]
    assert dataset.classes == 1000


def test_images_are_those_of_torchvisions_image_folder(tmp_path):
    from torchvision.datasets import ImageFolder

    write_folders(tmp_path, TENCH, GOLDFISH)
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    save(tmp_path / TENCH / "turned.jpg", noise(6, 12, 3), exif=turned)
    save(tmp_path / TENCH / "print.jpg", PIL.Image.fromarray(noise(6, 5, 4), "CMYK"))
    save(tmp_path / TENCH / "grey.jpg", noise(6, 5))
    save(tmp_path / TENCH / "palette.png", PIL.Image.fromarray(noise(6, 5, 3)).quantize(7))
    save(tmp_path / TENCH / "glass.png", noise(6, 5, 4))
    save(tmp_path / TENCH / "bits.png", PIL.Image.fromarray(noise(6, 5)).convert("1"))
    save(tmp_path / TENCH / "deep.webp", noise(6, 5, 3))
    save(tmp_path / TENCH / "plain.PPM", noise(6, 5, 3))
    save(tmp_path / TENCH / "windows.bmp", noise(6, 5, 3))
    save(tmp_path / TENCH / "scan.TIFF", noise(6, 5, 3))
    save(tmp_path / TENCH / "scan.tif", noise(6, 5))
    save(tmp_path / TENCH / "grey.pgm", noise(6, 5), format="PPM")
    dataset = open_dataset({"source": "imagefolder", "path": str(tmp_path)})
    reference = ImageFolder(tmp_path)
    assert [str(tmp_path / key) for key in dataset.keys] == [path for path, _ in reference.samples]
    assert len(dataset.keys) == 16
    for index, (expected, label) in enumerate(reference):
        image = dataset.read(index)
        assert (image.mode, image.size, dataset.labels[index]) == (expected.mode, expected.size, label)
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


def test_what_is_no_image_is_left_out(tmp_path):
    write_folders(tmp_path, TENCH)
    save(tmp_path / TENCH / "below" / "c.png", noise(3, 3))
    (tmp_path / TENCH / "._a.jpg").write_bytes(b"a Mac's")
    (tmp_path / TENCH / "notes.txt").write_text("no image")
    (tmp_path / "labels.csv").write_text("no image")
    (tmp_path / ".cache").mkdir()
    (tmp_path / GOLDFISH).symlink_to(TENCH)
    dataset = open_dataset({"source": "imagenet", "path": str(tmp_path)})
    names = ("a.jpg", "b.JPEG", "below/c.png")
    assert dataset.keys == tuple(f"{wnid}/{name}" for wnid in (TENCH, GOLDFISH) for name in names)


def test_images_are_opened_only_when_read(tmp_path):
    write_folders(tmp_path, TENCH)
    path = tmp_path / TENCH / "b.JPEG"
    path.write_bytes(path.read_bytes()[:300])
    dataset = open_dataset({"source": "imagenet", "path": str(tmp_path)})
    dataset.read(0)
    with pytest.raises(UserError, match=r"b\.JPEG: unreadable image \(.*replace or remove") as error:
        dataset.read(1)
    one_line(error)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_unreadable_image_is_named(tmp_path, content):
    write_folders(tmp_path, TENCH)
    (tmp_path / TENCH / "a.jpg").write_bytes(content)
    with pytest.raises(UserError, match="a.jpg: unreadable image"):
        open_dataset({"source": "imagenet", "path": str(tmp_path)}).read(0)


def test_folder_errors_say_what_to_do(tmp_path):
    def message(source="imagenet", path: Path | None = tmp_path):
        with pytest.raises(UserError) as error:
            open_dataset({"source": source, "path": None if path is None else str(path)})
        return one_line(error)

    assert "'path' is missing" in message(path=None)
    assert "nowhere: no such folder" in message(path=tmp_path / "nowhere")
    assert "holds no class folders" in message()
    (tmp_path / TENCH).mkdir()
    assert "hold no image" in message()
    write_folders(tmp_path, "n01440765")
    assert f"n01440765: not one of ImageNet's 1000 wnids. Did you mean '{TENCH}'" in message("imagenette")
    assert "n01440765" in message("imagefolder")
    (tmp_path / "cats").mkdir()
    assert "cats: no ImageNet wnid" in message("imagefolder")
    file = save(tmp_path / "loose.JPEG", noise(4, 4, 3))
    assert "1 images lie in no class folder, among them loose.JPEG" in message()
    assert "loose.JPEG: not a folder" in message(path=file)


def test_folder_without_labels_is_all_images_at_any_depth(tmp_path):
    for name in ("z.png", "a/b/c/deep.jpg", "a/one.JPEG", "notes.txt", "a/._one.JPEG"):
        save(tmp_path / name, noise(4, 5, 3), format="PNG")
    dataset = open_dataset({"source": "imagefolder", "path": str(tmp_path), "class_map": None, "labels": False})
    assert dataset.keys == ("a/b/c/deep.jpg", "a/one.JPEG", "z.png")
    assert dataset.labels is None
    assert dataset.classes is None
    np.testing.assert_array_equal(np.asarray(dataset.read(2)), noise(4, 5, 3))
    with pytest.raises(UserError, match="1 images lie in no class folder, among them z.png"):
        open_dataset({"source": "imagefolder", "path": str(tmp_path), "class_map": None, "labels": True})
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no image"):
        open_dataset({"source": "imagefolder", "path": str(tmp_path / "empty"), "labels": False})


def test_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    write_folders(tmp_path, TENCH, GOLDFISH)
    listed = folders.os.scandir

    def scandir(path):
        if str(path).endswith(GOLDFISH):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(folders.os, "scandir", scandir)
    with pytest.raises(UserError, match=f"{GOLDFISH}: Permission denied"):
        open_dataset({"source": "imagenet", "path": str(tmp_path)})


def test_class_map(tmp_path):
    write_folders(tmp_path / "images", "dogs", "cats")
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"dogs": 207, "cats": 281, "birds": 10}))
    dataset = open_dataset({"source": "imagefolder", "path": str(tmp_path / "images"), "class_map": str(path)})
    assert_sound(dataset)
    assert dict(zip((key.split("/")[0] for key in dataset.keys), dataset.labels, strict=True)) == {
        "cats": 281,
        "dogs": 207,
    }
    assert dataset.classes is None


def test_class_map_sorted_is_the_place_in_the_sorted_folders(tmp_path):
    write_folders(tmp_path, TOILET_TISSUE, "zebra", "ant")
    dataset = open_dataset({"source": "imagefolder", "path": str(tmp_path), "class_map": "sorted"})
    assert dataset.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [key.split("/")[0] for key in dataset.keys[::2]] == ["ant", TOILET_TISSUE, "zebra"]
    assert dataset.classes == 3


def test_folders_without_a_class_map_are_an_error(tmp_path):
    write_folders(tmp_path, TENCH, "cats")
    with pytest.raises(UserError, match="cats: no ImageNet wnid.*'class_map'"):
        open_dataset({"source": "imagefolder", "path": str(tmp_path), "class_map": None})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"dogs": 1}', "no index for folder .*cats; add 'cats'"),
        ('{"cats": "1"}', "'cats' is '1'"),
        ('{"cats": true}', "'cats' is True"),
        ('{"cats": -1}', "'cats' is -1"),
        ('["cats"]', "must be an object"),
        ("{cats}", "not JSON"),
        (None, "No such file"),
    ],
)
def test_bad_class_map_is_named(tmp_path, content, message):
    write_folders(tmp_path / "images", "cats")
    path = tmp_path / "map.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=f"map.json: {message}") as error:
        open_dataset({"source": "imagefolder", "path": str(tmp_path / "images"), "class_map": str(path)})
    one_line(error)


@pytest.mark.parametrize(
    ("found", "first"),
    [(("train", "val"), "val"), (("Train", "TEST", "meta"), "TEST"), (("train",), "train"), (("test", "val"), "test")],
)
def test_a_folder_of_splits_is_no_folder_of_classes(tmp_path, found, first):
    for split in found:
        write_folders(tmp_path / split, TENCH, GOLDFISH)
    with pytest.raises(UserError) as error:
        open_dataset({"source": "imagefolder", "path": str(tmp_path), "class_map": "sorted"})
    told = one_line(error)
    assert told.startswith(f"{tmp_path}: holds ")
    assert f"which are splits and no classes; give {tmp_path / first}, which must hold" in told
    both = f", or {tmp_path / found[0]} with {tmp_path / first} as held_out"
    assert told.endswith(f"images a class{both if found[0] in ('train', 'Train') and len(found) > 1 else ''}")
    dataset = open_dataset({"source": "imagefolder", "path": str(tmp_path / first), "class_map": "sorted"})
    assert dataset.folders == (TENCH, GOLDFISH)


def test_a_class_may_be_called_train(tmp_path):
    write_folders(tmp_path, "bus", "train")
    dataset = open_dataset({"source": "imagefolder", "path": str(tmp_path), "class_map": "sorted"})
    assert dataset.folders == ("bus", "train")
    assert dataset.labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("labels", [True, False])
def test_images_of_types_that_are_not_read_are_told(tmp_path, caplog, labels):
    settings = {"source": "imagefolder", "path": str(tmp_path), "class_map": "sorted", "labels": labels}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.HEIC").write_bytes(b"an iPhone's")
    (tmp_path / "a" / "two.avif").write_bytes(b"a browser's")
    with pytest.raises(UserError) as error:
        open_dataset(settings)
    assert "2 images of other types are there, such as a/one.HEIC: convert them" in one_line(error)
    write_folders(tmp_path, "a", "b")
    with caplog.at_level("WARNING", "wshare"):
        dataset = open_dataset(settings)
    assert len(dataset.keys) == 4
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}: 2 images are of types that are not read and are left out, such as a/one.HEIC; convert them, to "
        "PNG say"
    ]
    # A class of which no image can be read is no class without images.
    for path in (tmp_path / "b").iterdir():
        path.rename(path.with_suffix(".gif"))
    if labels:
        with pytest.raises(UserError, match=r"b: class folder without images; .* 2 images of other types are there"):
            open_dataset(settings)


def write_archives(root: Path, monkeypatch) -> None:
    """ImageNet's validation archive and development kit, with three images of two classes."""
    import scipy.io
    from torchvision.datasets import imagenet

    def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))

    synsets = np.array(
        [(1, TOILET_TISSUE, "tissue", "", 0), (2, TENCH, "tench", "", 0)],
        dtype=[(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")],
    )
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets})
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        add(archive, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        truth = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
        add(archive, truth, b"1\n2\n1\n")
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as archive:
        for number in range(1, 4):
            image = io.BytesIO()
            PIL.Image.fromarray(noise(4, 4, 3, seed=number)).save(image, "JPEG")
            add(archive, f"ILSVRC2012_val_0000000{number}.JPEG", image.getvalue())
    for part in ("val", "devkit"):
        name = imagenet.ARCHIVE_META[part][0]
        digest = hashlib.md5((root / name).read_bytes()).hexdigest()
        monkeypatch.setitem(imagenet.ARCHIVE_META, part, (name, digest))


def test_imagenet_archives_are_unpacked_once(tmp_path, monkeypatch):
    write_archives(tmp_path, monkeypatch)
    for _ in range(2):
        dataset = open_dataset({"source": "imagenet", "path": str(tmp_path)})
        assert dataset.labels.tolist() == [0, 999, 999]
        assert dataset.keys[0] == f"{TENCH}/ILSVRC2012_val_00000002.JPEG"
        (tmp_path / "ILSVRC2012_img_val.tar").unlink(missing_ok=True)


def test_damaged_imagenet_archive_is_named(tmp_path, monkeypatch):
    write_archives(tmp_path, monkeypatch)
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(b"short")
    with pytest.raises(UserError, match="ILSVRC2012_img_val.tar is not present.* or is corrupted") as error:
        open_dataset({"source": "imagenet", "path": str(tmp_path)})
    one_line(error)
