"""The form of a recipe names what other modules have, without importing them."""

from wshare.quantize.kmeans import METHODS
from wshare.search.recipe_form import artifacts_form


def test_a_recipe_may_name_every_method_of_clustering_and_no_other():
    named = artifacts_form(("clusters",), ["conv"])["clustering"]["conv"]["method"]
    assert all(map(named, METHODS))
    assert not named("another")
