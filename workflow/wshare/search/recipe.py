"""recipe.json: what a search chose, and all that the result depends on, so that it can be applied again."""

from pathlib import Path

from wshare.errors import FormatError, UserError
from wshare.files.atomic import remedy
from wshare.files.sealed import check_origin, read_json
from wshare.packed.compressed import Compressed
from wshare.search.method import Artifacts, SettingError
from wshare.search.methods import METHODS, Method
from wshare.search.recipe_form import HEAD, REST, Form, artifacts_form, first_wrong

# Version 1, which had no number, told neither clustering nor packing nor calibration.
VERSION = 2
# Divergence of the packed network above which it is another one than was searched: so many times the upper bound that
# the search measured, and so many nats more. A choice, wide on purpose: only a wrong file shall be refused.
FAR_OFF, SLACK = 2.0, 0.01


def read_recipe(path: Path) -> dict:
    """A recipe that this version can realise; FormatError tells why another one cannot be, and what to do."""
    recipe = read_json(path)
    if not recipe.get("layers") or "settings" not in recipe:
        raise FormatError(f"{path}: not a recipe of wshare; give the recipe.json of a search")
    if "versions" not in recipe:
        raise FormatError(
            f"{path}: of an earlier wshare, whose recipes do not tell clustering, packing and calibration, so that it "
            "cannot be applied again; search again with this version"
        )
    _check_form(recipe, HEAD, path)
    check_versions(recipe, str(path))
    _check_form(recipe, REST, path)
    own = artifacts_form(method_of(recipe, str(path)).realised_from, list(recipe["layers"]))
    _check_form(recipe, {"artifacts": own}, path)
    return recipe


def _check_form(recipe: dict, form: Form, path: Path) -> None:
    wrong = first_wrong(recipe, form)
    if wrong is not None:
        raise FormatError(
            f"{path}: not a whole recipe ({'.'.join(wrong)} is missing, or not what a search writes); {remedy(path)}"
        )


def check_versions(recipe: dict, where: str) -> None:
    """FormatError unless this version realises recipes of that version, by that version of their method."""
    method = method_of(recipe, where)
    expected = {"recipe": VERSION, "method": method.load().version}
    if recipe["versions"] != expected:
        raise FormatError(
            f"{where}: of recipe version {recipe['versions'].get('recipe')}, method version "
            f"{recipe['versions'].get('method')}; this wshare applies {VERSION} and {expected['method']}; search again"
        )


def method_of(recipe: dict, where: str) -> Method:
    """The row of the recipe's method; UserError if there is none."""
    name = recipe["settings"]["method"]
    if name not in METHODS:
        raise UserError(f"{where}: searched by method {name!r}, which this wshare does not have; search again")
    return METHODS[name]


def realised(recipe: dict, artifacts: Artifacts, where: str, threads: int) -> Compressed:
    """Compressed tensors of the recipe's layers: what packing, `wshare apply` and the API make a file of.

    FormatError for a setting that the method cannot realise.
    """
    method = method_of(recipe, where).load()
    space = method.prepare(artifacts, recipe["settings"]["options"], threads)
    try:
        return method.realise(space, recipe["layers"])
    except SettingError as error:
        raise FormatError(f"{where}: {error}; search again") from None


def check_recipe(recipe: dict, path: Path, made_from: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> None:
    """FormatError unless the recipe was made from what `made_from` tells, and for layers of these shapes."""
    found = {"model": recipe["model"]["sha256"], "images": recipe["search_images"]} | recipe["made_from"]
    check_origin(path, found, made_from)
    check_layers(recipe, str(path), shapes, remedy(path))


def check_layers(recipe: dict, where: str, shapes: dict[str, tuple[int, ...]], cure: str) -> None:
    """FormatError unless the recipe's layers have these names and shapes; it opens with `where`, ends with `cure`."""
    found = {name: tuple(layer["shape"]) for name, layer in recipe["layers"].items()}
    if found != shapes:
        wrong = min(name for name in found.keys() | shapes.keys() if found.get(name) != shapes.get(name))
        there, here = (list(layers[wrong]) if wrong in layers else "missing" for layers in (found, shapes))
        raise FormatError(
            f"{where}: layer {wrong!r} is not that of the network ({there} in the recipe, {here} in the network); "
            f"{cure}"
        )


def check_promise(recipe: dict, where: str, kl: float) -> None:
    """UserError if the packed network diverges far more than the search measured on the same images.

    `kl` is its divergence in nats. Batch norms in float16, and layers taught by all images instead of half of them,
    change it by little; FAR_OFF times the upper bound that the search measured, and SLACK nats, is another network.
    """
    promised = recipe["on_search_images"]["kl_high"]
    if not kl <= FAR_OFF * promised + SLACK:
        raise UserError(
            f"{where}: the packed network diverges by {kl:.3g} nats on the search images, and the search had measured "
            f"at most {promised:.3g}; it is not the network that was searched: search again"
        )
