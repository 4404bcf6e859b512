"""Names: of layers as folders and by patterns, and what was meant by one that is unknown."""

from pathlib import PurePosixPath
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wshare.errors import UserError
from wshare.names import check_patterns, closest, did_you_mean, folder_name, layer_name, matches


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("uniforn", ["uniform", "slope"], "Did you mean 'uniform'?"),
        ("zzz", ["uniform", "slope"], "Known: 'uniform', 'slope'."),
        (
            "zzz",
            [f"layer{i}" for i in range(14)],
            f"Known: {', '.join(repr(f'layer{i}') for i in range(12))} and 2 more.",
        ),
        ("zzz", [], "There is none."),
        (12, [1, 34], "Did you mean '1'?"),
    ],
)
def test_the_closest_name_is_told_or_those_there_are(name, known, expected):
    assert closest(name, known) == expected


def test_nothing_is_said_to_be_meant_where_no_name_is_close():
    assert did_you_mean("zzz", ["uniform"]) == ""


def test_patterns_match_exactly_or_as_a_regular_expression():
    assert matches("a.b", "a.b")
    assert not matches("a.b", "axb")
    assert matches("re:a.b", "axb")
    assert not matches("re:a", "ab")
    check_patterns(["a", "re:b+"], ["a", "bb"], "here")
    with pytest.raises(UserError, match="here.'c': no such layer. There is none. `inspect_model`"):
        check_patterns(["c"], [], "here")


@given(st.text(min_size=1, max_size=30))
def test_a_layer_name_is_one_safe_folder_and_comes_back(layer):
    if set(layer) <= {"."} or len(quote(layer, safe="")) > 200:
        with pytest.raises(UserError, match="cannot be a folder"):
            folder_name(layer)
        return
    folder = folder_name(layer)
    assert layer_name(folder) == layer
    assert folder.isascii()
    assert folder.isprintable()
    assert len(folder) <= 200
    assert PurePosixPath(folder).parts == (folder,)
    assert not {"/", "\\", "\0", "*", "{", "}", " ", ":"} & set(folder)
    assert folder not in ("", ".", "..")


@given(st.lists(st.text("./ab%", min_size=1, max_size=4), unique=True))
def test_different_layers_have_different_folders(layers):
    layers = [layer for layer in layers if layer.strip(".")]
    assert len({folder_name(layer) for layer in layers}) == len(layers)


@pytest.mark.parametrize("layer", ["", ".", "..", "x" * 201, "ä" * 40])
def test_names_that_cannot_be_a_folder_are_refused(layer):
    with pytest.raises(UserError, match="cannot be a folder"):
        folder_name(layer)
