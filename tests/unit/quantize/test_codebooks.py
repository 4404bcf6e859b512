import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wshare.packed.format import load_packed, pack, read_shared
from wshare.quantize.batch_norm import FoldedNorm
from wshare.quantize.codebooks import Layout, Shared, row_scale

SIZES = st.integers(1, 4)


def output_of(layout: Layout, shape: tuple[int, ...], place: tuple[int, ...]) -> int:
    """The output that the weight at a place belongs to, by the definition."""
    if layout.axis == 0:
        return place[0]
    group = place[0] // (shape[0] // layout.groups)
    return group * shape[layout.axis] + place[layout.axis]


@given(st.integers(0, 2), SIZES, SIZES, st.lists(SIZES, min_size=2, max_size=3))
def test_a_row_of_the_matrix_holds_the_weights_of_one_output(axis, groups, within, rest):
    layout, shape = Layout(axis, groups), (groups * within, *rest)
    weight = np.arange(np.prod(shape)).reshape(shape)
    outputs = layout.outputs(shape)
    matrix = layout.to_matrix(weight)
    assert matrix.shape == (groups, weight.size // outputs, outputs // groups)
    values = np.arange(outputs) + 0.5
    spread = np.broadcast_to(layout.per_output(values, shape), shape)
    rows = matrix.transpose(0, 2, 1).reshape(outputs, -1)
    for place in np.ndindex(shape):
        output = output_of(layout, shape, place)
        assert weight[place] in rows[output]
        assert spread[place] == output + 0.5
    # Columns keep the order of the other axes.
    assert (np.diff(rows, axis=1) > 0).all()
    back = layout.from_matrix(matrix, shape)
    assert np.array_equal(back, weight)
    assert back.flags.c_contiguous


@pytest.mark.parametrize(("axis", "groups", "outputs"), [(0, 1, 6), (1, 1, 4), (1, 3, 12), (2, 2, 10)])
def test_scales_and_shifts_of_any_layout_come_back_from_a_packed_file(axis, groups, outputs):
    rng = np.random.default_rng(0)
    layout, shape = Layout(axis, groups), (6, 4, 5)
    codebook = np.array([-1, 0.25, 1], np.float32)
    exponents = rng.integers(-20, 20, outputs).astype(np.int16)
    shared = Shared(codebook, rng.integers(3, size=shape).astype(np.uint16), exponents, layout)
    expected = codebook[shared.indices]
    for place in np.ndindex(shape):
        expected[place] *= row_scale(exponents)[output_of(layout, shape, place)]
    assert shared.weight().tobytes() == expected.tobytes()
    folded = FoldedNorm("w", rng.integers(-9, 9, outputs).astype(np.int32), 0.1, 1e-3, True)
    content, sizes = pack({"w": expected}, {"w": shared}, {}, {"bn": folded}, {}, "entropy")
    assert sizes["packed"] == len(content)
    state = load_packed(content)
    assert state["w"].numpy().tobytes() == expected.tobytes()
    assert np.array_equal(state["bn.bias"].numpy(), folded.norm(exponents).shift)
    # By the first axis outputs come in order whatever the groups, which the file does not tell.
    assert read_shared(content)[0]["w"].layout == (layout if axis else Layout())
