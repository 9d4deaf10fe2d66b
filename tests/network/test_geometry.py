"""Sizes, reaches and phases of convolutions against their definition, tap by tap."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lichen.network.geometry import Affine, Geometry, receptive_field


@st.composite
def geometries(draw) -> Geometry:
    kernel, stride = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    up = draw(st.booleans())
    return Geometry(
        kernel=kernel,
        stride=stride,
        padding=draw(st.integers(0, kernel - 1)),
        output_padding=draw(st.integers(0, stride - 1)) if up else 0,
        transposed=up,
    )


def taps(geometry: Geometry, size: int) -> dict[int, set[tuple[int, int]]]:
    """By output, the taps and inputs (inside and out) that it sums, from the definition.

    A plain convolution slides its kernel over the padded input. A transposed one adds the kernel,
    times an input, to the outputs from ``input * stride`` on, and cuts the padding off.
    """
    outputs: dict[int, set[tuple[int, int]]] = {o: set() for o in range(geometry.output_size(size))}
    reads = range(-40, size + 40)
    for read, tap in itertools.product(reads, range(geometry.kernel)):
        if geometry.transposed:
            o = read * geometry.stride + tap - geometry.padding
        else:
            o, rest = divmod(read + geometry.padding - tap, geometry.stride)
            if rest:
                continue
        if o in outputs:
            outputs[o].add((tap, read))
    return outputs


@given(geometry=geometries(), size=st.integers(1, 12))
def test_phases_and_reaches_are_those_of_the_definition(geometry, size):
    by_phase: dict[int, set[tuple[int, int]]] = {}
    expected = taps(geometry, size)
    for phase in geometry.phases():
        assert len(phase.taps) == len(phase.offsets)
        for o in range(phase.first, geometry.output_size(size), phase.outputs):
            m = (o - phase.first) // phase.outputs
            reads = (m * phase.inputs + offset for offset in phase.offsets)
            by_phase[o] = set(zip(phase.taps, reads, strict=True))
    assert by_phase == expected
    for o, sums in expected.items():
        first, last = geometry.reach(o)
        assert {read for _, read in sums} == set(range(first, last + 1))
    # what a longer input's first rows suffice for
    done = geometry.complete(size)
    assert all(geometry.reach(o)[1] < size for o in range(done))
    assert geometry.reach(done)[1] >= size


@given(geometry=geometries(), slope=st.integers(1, 20), offset=st.integers(-5, 5))
def test_growth_is_the_size_at_every_multiple(geometry, slope, offset):
    size = Affine(slope=slope, offset=offset)
    if not geometry.transposed and slope % geometry.stride:
        with pytest.raises(ValueError, match="does not divide"):
            geometry.grown(size)
        return
    grown = geometry.grown(size)
    assert [grown(n) for n in range(1, 9)] == [geometry.output_size(size(n)) for n in range(1, 9)]


def test_sizes_in_words():
    sizes = {(1, 0): "n", (16, 0): "16 n", (4, -1): "4 n - 1", (1, 2): "n + 2"}
    for (slope, offset), words in sizes.items():
        assert str(Affine(slope=slope, offset=offset)) == words
    image = Affine(slope=16, offset=0)
    assert Affine(slope=16, offset=3).covers(image)
    assert not Affine(slope=16, offset=-1).covers(image)
    assert not Affine(slope=8, offset=100).covers(image)


@given(chain=st.lists(geometries(), min_size=1, max_size=4), first=st.integers(0, 20))
def test_receptive_fields_are_reaches_of_reaches(chain, first):
    last = first + 3
    low, high = receptive_field(chain, first, last)
    for geometry in reversed(chain):
        first, last = geometry.reach(first)[0], geometry.reach(last)[1]
    assert (low, high) == (first, last)


def test_the_receptive_field_of_four_layers():
    """30 pixels to the left, and 15 beyond the 16-aligned core to the right."""
    layer = Geometry(kernel=5, stride=2, padding=2)
    assert receptive_field([layer] * 4, 0, 0) == (-30, 15 + 15)


@given(geometry=geometries(), size=st.integers(1, 12))
def test_products_are_counted_by_taps(geometry, size):
    """Of outputs whose every tap lies inside; inserted zeros don't count."""
    if geometry.transposed:
        positions = geometry.stride**2 * size**2
        assert geometry.macs(3, 5, positions) == 15 * geometry.kernel**2 * size**2
    else:
        assert geometry.macs(3, 5, size**2) == 15 * geometry.kernel**2 * size**2
