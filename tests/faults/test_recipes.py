"""Recipes that this version does not apply, and one whose promise its network does not keep: told in one line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from wshare.cli import main
from wshare.files.sealed import read_json, write_json

from .pipeline import MODEL, R, flags, run, searched

SEARCHES = ("slope", "rd")
WRITTEN = Path("applied.safetensors")


def pack(search: str) -> int:
    """Exit code of the stage, with nothing of its own there before."""
    for path in outputs(search):
        path.unlink()
    return run("pack_model", search)


def apply(search: str) -> int:
    """Exit code of `wshare apply` on the network and the images that were searched."""
    arguments = ["--recipe", searched(search)["recipe"], "--spec", MODEL["spec"], "--weights", MODEL["weights"]]
    if search == "rd":
        arguments += ["--calibration-images", f"{R}/images/calibration.h5"]
    return main(["apply", *arguments, "--search-images", f"{R}/images/search.h5", "--output", str(WRITTEN)])


COMMANDS = {"pack_model": pack, "apply": apply}


def outputs(search: str) -> list[Path]:
    return [Path(path) for path in flags("pack_model", search)[1].values()]


def changed(search: str, change: Callable[[dict], object]) -> Path:
    """The recipe of a search, changed and with the right checksum."""
    path = Path(searched(search)["recipe"])
    recipe = read_json(path)
    change(recipe)
    write_json(path, recipe)
    return path


def check_refused(command: str, search: str, capsys: pytest.CaptureFixture, message: str) -> None:
    """Assert that a command ends with one line, and that no packed file is there afterwards."""
    capsys.readouterr()
    assert COMMANDS[command](search) == 1
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    lines = [line for line in printed.splitlines() if "error: " in line]
    assert lines == [f"wshare {command}: error: {searched(search)['recipe']}: {message}"]
    left = [path for path in (*outputs(search), WRITTEN) if path.exists()]
    assert left == (outputs(search) if command == "apply" else [])
    assert not [path for path in Path().rglob("*") if ".tmp" in path.name]


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_recipe_of_the_first_version_is_refused(results, fault, capsys, command, search):
    row = fault(3, "recipe of another version", where=command, data="refused in one line; no packed file")
    # What the first version told of a network, its settings and its layers.
    kept = ("model", "search_images", "made_from", "settings", "layers", "on_search_images", "evaluations")
    path = Path(searched(search)["recipe"])
    write_json(path, {key: value for key, value in read_json(path).items() if key in kept})
    check_refused(
        command,
        search,
        capsys,
        "of an earlier wshare, whose recipes do not tell clustering, packing and calibration, so that it cannot be "
        "applied again; search again with this version",
    )
    row.round(True)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("part", ["recipe", "method"])
@pytest.mark.parametrize("step", [-1, 1])
def test_a_recipe_of_another_version_is_refused(results, fault, capsys, command, search, part, step):
    """As after a method was changed: it would realise the same settings otherwise."""
    row = fault(3, "recipe of another version", where=command, data="refused in one line; no packed file")
    here = read_json(searched(search)["recipe"])["versions"]
    there = here | {part: here[part] + step}
    changed(search, lambda recipe: recipe.update(versions=there))
    check_refused(
        command,
        search,
        capsys,
        f"of recipe version {there['recipe']}, method version {there['method']}; this wshare applies "
        f"{here['recipe']} and {here['method']}; search again",
    )
    row.round(True)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_recipe_of_a_method_that_is_not_there_is_refused(results, fault, capsys, command):
    row = fault(3, "recipe of another version", where=command, data="refused in one line; no packed file")
    changed("slope", lambda recipe: recipe["settings"].update(method="slopes"))
    check_refused(
        command, "slope", capsys, "searched by method 'slopes', which this wshare does not have; search again"
    )
    row.round(True)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_promise_that_the_packed_network_does_not_keep_is_told(results, fault, capsys, command, search):
    """As if it were another network than the search had measured."""
    row = fault(
        3,
        "recipe that promises far less divergence than its network shows",
        where=command,
        data="refused in one line; no packed file",
    )
    told = "divergence of the packed network on the search images: "
    capsys.readouterr()
    assert pack(search) == 0
    (shown,) = [line.removeprefix(told) for line in capsys.readouterr().out.splitlines() if line.startswith(told)]
    kl = float(shown.removesuffix(" nats"))
    # What is tolerated is more than this.
    assert kl > 0.02
    promised = read_json(searched(search)["recipe"])["on_search_images"]["kl_high"]
    assert kl <= 2 * promised + 0.01
    changed(search, lambda recipe: recipe["on_search_images"].update(kl_high=0.001))
    check_refused(
        command,
        search,
        capsys,
        f"the packed network diverges by {kl:.3g} nats on the search images, and the search had measured at most "
        "0.001; it is not the network that was searched: search again",
    )
    row.round(True)


@pytest.mark.parametrize("search", SEARCHES)
def test_an_applied_recipe_gives_the_packed_file_again(results, search):
    """What the refusals are held against."""
    assert apply(search) == 0
    assert WRITTEN.read_bytes() == Path(searched(search)["packed"]).read_bytes()
