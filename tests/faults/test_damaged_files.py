"""A file that was truncated or changed stops the stage that reads it, with the command that makes it again."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from wshare.data.images import ImageFile
from wshare.data.stored import write_images
from wshare.errors import FormatError
from wshare.files.sealed import read_json, write_json
from wshare.files.tables import write_sealed

from ..runs import ROOT, run_to_end
from ..workflow.conftest import CONFIG, snakemake
from . import pipeline
from .pipeline import CLUSTERS, MODEL, R, flags, run, searched

SLOPE, RD = searched("slope"), searched("rd")
# Each file that one stage writes and another reads, with the stage that reads it and what that stage works on.
READERS = [
    (MODEL["spec"], "inspect_model", ""),
    (MODEL["weights"], "inspect_model", ""),
    (f"{R}/model/layers.json", "measure_inputs", ""),
    (f"{R}/images/search.h5", "evaluate_dense", ""),
    (f"{R}/images/held_out.h5", "evaluate_dense", ""),
    (f"{R}/images/search.h5", "extract_weights", ""),
    (f"{R}/images/search.h5", "prepare_calibration", ""),
    (f"{R}/images/held_out.h5", "prepare_calibration", ""),
    (f"{R}/images/calibration.h5", "measure_inputs", ""),
    (f"{R}/model/layers.json", "extract_weights", ""),
    (f"{R}/model/layers.json", "search", "rd"),
    (f"{R}/model/layers.json", "pack_model", "rd"),
    (f"{R}/weights.h5", "cluster_layer", "pointwise"),
    (f"{R}/weights.h5", "search", "rd"),
    (f"{R}/weights.h5", "pack_model", "rd"),
    (f"{R}/calibration.h5", "search", "rd"),
    (f"{R}/calibration.h5", "pack_model", "rd"),
    (CLUSTERS[0], "profile_layers", ""),
    (CLUSTERS[1], "search", "slope"),
    (CLUSTERS[1], "pack_model", "slope"),
    (f"{R}/baseline/search.h5", "profile_layers", ""),
    (f"{R}/baseline/search.h5", "search", "rd"),
    (f"{R}/baseline/search.h5", "pack_model", "rd"),
    (f"{R}/baseline/held_out.h5", "evaluate_packed", "rd"),
    (f"{R}/sensitivity/0.csv", "gather_sensitivity", ""),
    (f"{R}/sensitivity.csv", "search", "slope"),
    (SLOPE["recipe"], "pack_model", "slope"),
    (RD["recipe"], "pack_model", "rd"),
    (RD["recipe"], "evaluate_packed", "rd"),
    (RD["sizes"], "evaluate_packed", "rd"),
    (SLOPE["packed"], "evaluate_packed", "slope"),
    (RD["packed"], "evaluate_packed", "rd"),
    (MODEL["spec"], "evaluate_packed", "slope"),
    (f"{R}/images/held_out.h5", "evaluate_packed", "slope"),
    *((RD[name], "summarise", "") for name in ("metrics", "timings", "recipe")),
    (f"{R}/baseline/metrics.json", "summarise", ""),
    (MODEL["spec"], "report_model", "slope"),
    (MODEL["weights"], "report_model", "slope"),
    (f"{R}/model/layers.json", "report_model", "slope"),
    (f"{R}/images/held_out.h5", "report_model", "slope"),
    (f"{R}/baseline/metrics.json", "report_model", "slope"),
    (f"{R}/sensitivity.csv", "report_model", "slope"),
    *((RD[name], "report_model", "rd") for name in ("metrics", "timings", "recipe", "sizes", "front")),
    *((RD[name], "report_model", "rd") for name in ("losses", "predictions", "packed")),
    (SLOPE["losses"], "report_model", "slope"),
]
IDS = [f"{stage}-{path.removeprefix(R + '/').replace('/', '.')}" for path, stage, _ in READERS]
FLIPS = 12
SEARCHES = ("slope", "rd")


@pytest.fixture
def study(results, monkeypatch) -> Path:
    """The results of every stage as working directory."""
    # Figures take most of a report's time; they are drawn from what its page holds.
    monkeypatch.setattr("wshare.stages.report_model.write_figures", lambda *_: None)
    return results


def overwrite(path: Path, content: bytes) -> None:
    """Other content at the same time of change, in a new file: HDF5 may still hold the old one."""
    times = path.stat()
    path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def outputs(stage: str, item: str) -> list[Path]:
    return [Path(path) for path in flags(stage, item)[1].values()]


def made(stage: str, item: str) -> list[object]:
    """Content of what a stage wrote, without the time that it took."""
    found = []
    for path in outputs(stage, item):
        content: object = path.read_bytes()
        if path.name == "timings.json":
            timings = read_json(path)
            content = timings | {"seconds": timings["seconds"].keys()}
        found.append(content)
    return found


def again(stage: str, item: str) -> int:
    """Exit code of a stage that starts from nothing but its inputs."""
    for path in outputs(stage, item):
        path.unlink(missing_ok=True)
    if stage == "search":
        Path(searched(item)["journal"]).unlink(missing_ok=True)
    return run(stage, item)


def refused(path: str, stage: str, item: str, capsys: pytest.CaptureFixture) -> None:
    """The stage has failed before its last file, and told in one line which file to make again, and how."""
    message = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
    assert len(message) == 1, message
    assert message[0].startswith(f"wshare {stage}: error: {path}: "), message
    assert message[0].endswith(f"; remake it with: snakemake --cores all --forcerun {path}"), message
    assert not outputs(stage, item)[-1].exists()


@pytest.mark.parametrize(("path", "stage", "item"), READERS, ids=IDS)
def test_a_truncated_file_stops_the_stage_that_reads_it(study, fault, capsys, path, stage, item):
    row = fault(3, "file truncated to 0, 10, 50 or 99 %", data="refused; the command in the message mends it")
    whole = Path(path).read_bytes()
    for share in (0, 0.1, 0.5, 0.99):
        overwrite(Path(path), whole[: int(share * len(whole))])
        assert again(stage, item) == 1, share
        refused(path, stage, item, capsys)
        row.round(True)
    overwrite(Path(path), whole)
    assert again(stage, item) == 0


@pytest.mark.parametrize(("path", "stage", "item"), READERS, ids=IDS)
def test_a_flipped_bit_stops_the_stage_or_changes_nothing(study, fault, capsys, path, stage, item):
    """A bit may lie in padding that no reader looks at; then the result is the same to the byte."""
    row = fault(3, "one bit of a file flipped", data="refused, or the result is the same to the byte")
    expected, whole = made(stage, item), Path(path).read_bytes()
    rng, found = np.random.default_rng(len(path)), 0
    for _ in range(FLIPS):
        changed = bytearray(whole)
        changed[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
        overwrite(Path(path), bytes(changed))
        if again(stage, item):
            refused(path, stage, item, capsys)
            found += 1
        else:
            assert made(stage, item) == expected
        row.round(True)
    assert found


def test_a_block_of_ones_that_became_zeros_is_found(tmp_path, fault):
    """Fletcher-32, the checksum of HDF5, does not tell 00 00 from ff ff: a lost block of white pixels passed it."""
    row = fault(3, "block of white pixels read as zeros", data="refused")
    path = tmp_path / "images.h5"
    pixels = np.full((9, 1, 16, 16), 255, np.uint8)
    write_images(path, pixels, None, [str(i) for i in range(9)], {"mean": [0.5], "std": [0.25]}, {}, 9)
    with h5py.File(path) as file:
        chunk = file["images"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + 512 : chunk.byte_offset + 1024] = bytes(512)
    overwrite(path, bytes(content))
    with pytest.raises(FormatError, match=r"image '2' damaged \(checksum differs\)"):
        list(ImageFile(path).batches())
    row.round(True)


@pytest.mark.parametrize("search", SEARCHES)
def test_a_report_reads_no_journal(study, search):
    """The front has all measurements in their order; a journal serves the search that writes it alone."""
    (expected,) = made("report_model", search)
    Path(searched(search)["journal"]).write_bytes(b"damaged")
    assert again("report_model", search) == 0
    assert made("report_model", search) == [expected]


@pytest.mark.parametrize("search", SEARCHES)
def test_a_damaged_journal_is_refused_or_measured_anew(study, fault, capsys, search):
    row = fault(3, "journal of a search truncated or changed", data="its whole lines count, a changed one is refused")
    recipe, journal = Path(searched(search)["recipe"]), Path(searched(search)["journal"])
    assert again("search", search) == 0
    expected, whole = recipe.read_bytes(), journal.read_bytes()
    capsys.readouterr()
    rng, found = np.random.default_rng(0), 0
    changed = [bytearray(whole) for _ in range(25)]
    for content in changed:
        content[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
    for content in (*(whole[: int(share * len(whole))] for share in (0, 0.1, 0.5, 0.99)), *map(bytes, changed)):
        recipe.unlink(missing_ok=True)
        journal.write_bytes(content)
        if run("search", search):
            error = capsys.readouterr().err
            assert f"error: {journal}: " in error
            assert error.strip().endswith(f"with: rm {journal}")
            assert not recipe.exists()
            found += 1
        else:
            assert recipe.read_bytes() == expected
        row.round(True)
    assert found > 5


@pytest.mark.parametrize(
    ("path", "stage", "item", "what"),
    [
        (f"{R}/model/layers.json", "measure_inputs", "", "model"),
        (f"{R}/images/search.h5", "evaluate_dense", "", "preprocessing"),
        (f"{R}/calibration.h5", "search", "rd", "model"),
        (CLUSTERS[1], "search", "slope", "images"),
        (f"{R}/sensitivity.csv", "search", "slope", "images"),
        (f"{R}/sensitivity.csv", "search", "slope", "clusters of pointwise"),
        (SLOPE["recipe"], "pack_model", "slope", "images"),
        (SLOPE["recipe"], "pack_model", "slope", "clusters of depthwise"),
        (RD["recipe"], "pack_model", "rd", "weights.h5"),
        (RD["recipe"], "pack_model", "rd", "calibration.h5"),
        (RD["recipe"], "evaluate_packed", "rd", "model"),
        (RD["sizes"], "evaluate_packed", "rd", "packed"),
        (f"{R}/model/layers.json", "report_model", "slope", "model"),
        (f"{R}/baseline/metrics.json", "report_model", "slope", "model"),
        (f"{R}/baseline/metrics.json", "report_model", "slope", "held_out_images"),
        (f"{R}/sensitivity.csv", "report_model", "slope", "clusters of pointwise"),
        (RD["timings"], "summarise", "", "packed"),
        (RD["timings"], "report_model", "rd", "packed"),
        (RD["metrics"], "report_model", "rd", "search_images"),
        (RD["metrics"], "report_model", "rd", "recipe"),
        (RD["metrics"], "report_model", "rd", "packed"),
        (RD["front"], "report_model", "rd", "images"),
        (RD["losses"], "report_model", "rd", "model"),
        (RD["predictions"], "report_model", "rd", "packed"),
    ],
)
def test_a_file_made_from_other_files_is_refused(study, fault, capsys, path, stage, item, what):
    """Whole in itself, but of another run: as after a folder was copied over another."""
    row = fault(3, "file of another run in its place", data="refused; the command in the message mends it")
    content, old = Path(path).read_bytes(), known(Path(path), what)
    new = bytes(48 + (octet + 1) % 8 for octet in old.encode())
    if path.endswith(".h5"):
        with h5py.File(path, "a") as file:
            text = file.attrs["made_from"]
            file.attrs["made_from"] = np.bytes_(text.replace(old.encode(), new))
    else:
        resealed(Path(path), content.decode().replace(old, new.decode()))
    assert again(stage, item) == 1
    refused(path, stage, item, capsys)
    row.round(True)


@pytest.mark.parametrize(
    ("stage", "path"),
    [("search", f"{R}/sensitivity.csv"), ("pack_model", SLOPE["recipe"])],
    ids=["search", "pack_model"],
)
def test_clusters_of_other_settings_are_refused(study, fault, capsys, monkeypatch, stage, path):
    """Of the same network and images, but not those that the profile and the recipe were made with."""
    row = fault(3, "file of another run in its place", data="refused; the command in the message mends it")
    monkeypatch.setitem(pipeline.CONFIG["clustering"], "bins", 16)
    assert again("cluster_layer", "pointwise") == 0
    assert again(stage, "slope") == 1
    refused(path, stage, "slope", capsys)
    row.round(True)


# model.json has the hash of the weights, which are plain tensors without a version of ours.
VERSIONED = [reader for reader in READERS if reader[0] != MODEL["weights"]]


@pytest.mark.parametrize(("path", "stage", "item"), VERSIONED)
def test_a_file_of_another_version_is_refused(study, capsys, path, stage, item):
    """As after another release of wshare: whole, but not what this one reads."""
    file = Path(path)
    if file.suffix == ".h5":
        with h5py.File(file, "a") as content:
            content.attrs["version"] += 1
    elif file.name == "packed.safetensors":
        content = bytearray(file.read_bytes())
        # The payload's first byte, behind the container's header.
        content[8 + int.from_bytes(content[:8], "little")] += 1
        file.write_bytes(content)
    else:
        file.write_text(re.sub('"version": 1', '"version": 0', file.read_text(), count=1))
    assert again(stage, item) == 1
    refused(path, stage, item, capsys)


def known(path: Path, what: str) -> str:
    """What a file says that it was made from."""
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return json.loads(file.attrs["made_from"])[what]
    if path.suffix == ".csv":
        return json.loads(path.read_text().splitlines()[-1].removeprefix("# "))["made_from"][what]
    content = json.loads(path.read_text())
    found = content | content.get("sha256", {}) | content.get("made_from", {})
    if path.name == "recipe.json":
        found |= {"model": content["model"]["sha256"], "images": content["search_images"]}
    return found[what]


def resealed(path: Path, text: str) -> None:
    """Write a changed text with the right checksum."""
    if path.suffix == ".json":
        write_json(path, {key: value for key, value in json.loads(text).items() if key not in ("version", "checksum")})
        return
    header, *lines, seal = text.splitlines()
    columns = header.split(",")
    rows = [dict(zip(columns, line.split(","), strict=True)) for line in lines]
    write_sealed(path, columns, rows, json.loads(seal.removeprefix("# "))["made_from"])


@pytest.mark.slow
def test_the_command_in_the_message_mends_the_file(tmp_path, fault):
    """Weights and the table of layers: the second is read while the graph of jobs is built."""
    row = fault(3, "damaged file under Snakemake", data="the command in the message ends like a new run")
    config = yaml.safe_load(CONFIG.read_text())
    config["searches"] = {"uniform": config["searches"]["uniform"] | {"options": {"max_bits": 2}}}
    config["models"]["tiny"]["training"] |= {"epochs": 2, "floor": 0.2}
    config["models"]["tiny"]["layers"] = {"include": ["pointwise"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    results = tmp_path / "results" / "tiny"
    packed = results / "search" / "uniform" / "packed.safetensors"
    target = str(packed.relative_to(tmp_path))
    done = snakemake(tmp_path, "--cores", "2", target)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = packed.read_bytes()
    for damaged, gone in (
        (results / "weights.h5", ("layers", "sensitivity", "sensitivity.csv", "search")),
        (results / "model" / "layers.json", ("search",)),
    ):
        content = damaged.read_bytes()
        overwrite(damaged, content[: len(content) // 2])
        subprocess.run(["rm", "-r", *(str(results / name) for name in gone)], check=True)
        stopped = snakemake(tmp_path, "--cores", "2", target)
        assert stopped.returncode == 1
        output = stopped.stdout + stopped.stderr
        # Snakemake itself adds where in its files an input function failed.
        assert "Traceback (most recent call last)" not in output
        name = re.escape(str(damaged.relative_to(tmp_path)))
        found = re.search(rf"{name}: .*; remake it with: (snakemake .*)", output)
        assert found, output
        command = [sys.executable, "-m", *shlex.split(found[1])]
        mended = run_to_end(command, ROOT)
        assert mended.returncode == 0, mended.stdout + mended.stderr
        assert packed.read_bytes() == expected
        row.round(True)
