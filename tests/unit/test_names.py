"""What was meant by a name that is unknown."""

import pytest

from wshare.names import closest, did_you_mean


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
