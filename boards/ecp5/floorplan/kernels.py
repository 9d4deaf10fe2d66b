"""The inner loops of the floorplan, compiled.

The same netlist and seed must give the same places on every machine. So every loop runs in a fixed
order, one thread does it, and nothing but sums, differences, products, quotients and roots is taken
of floats, which IEEE 754 rounds in one way: no exponential of a C library, no BLAS, and no
`fastmath`, with which a compiler could contract or reorder.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True)
def decay(v):
    """About e**v for v <= 0, and its own derivative about as well: (1 + v/64)**64."""
    t = 1.0 + v * 0.015625
    if t <= 0.0:
        return 0.0
    t *= t
    t *= t
    t *= t
    t *= t
    t *= t
    return t * t


@njit(cache=True)
def pull(pointer, members, weight, at, smoothing, gradient):
    """Add the gradient of the smooth length of all nets along one axis.

    The length of a net is the weighted average of its far ends less that of its near ends (Hsu,
    Chang and Balabanov, "TSV-aware analytical placement for 3D IC designs", 2011).
    """
    longest = 0
    for net in range(len(pointer) - 1):
        longest = max(longest, pointer[net + 1] - pointer[net])
    near = np.empty(longest)
    far = np.empty(longest)
    for net in range(len(pointer) - 1):
        begin, end = pointer[net], pointer[net + 1]
        top = bottom = at[members[begin]]
        for k in range(begin + 1, end):
            v = at[members[k]]
            top = max(top, v)
            bottom = min(bottom, v)
        far_sum = far_moment = near_sum = near_moment = 0.0
        for k in range(begin, end):
            v = at[members[k]]
            f = decay((v - top) / smoothing)
            n = decay((bottom - v) / smoothing)
            far[k - begin] = f
            near[k - begin] = n
            far_sum += f
            far_moment += f * v
            near_sum += n
            near_moment += n * v
        far_mean = far_moment / far_sum
        near_mean = near_moment / near_sum
        for k in range(begin, end):
            v = at[members[k]]
            gradient[members[k]] += weight[net] * (
                far[k - begin] / far_sum * (1.0 + (v - far_mean) / smoothing)
                - near[k - begin] / near_sum * (1.0 - (v - near_mean) / smoothing)
            )


@njit(cache=True)
def half_perimeter(pointer, members, x, y):
    """Sum over all nets of the width and height of the box around its cells, in tiles."""
    total = 0.0
    for net in range(len(pointer) - 1):
        begin, end = pointer[net], pointer[net + 1]
        left = right = x[members[begin]]
        low = high = y[members[begin]]
        for k in range(begin + 1, end):
            i = members[k]
            left = min(left, x[i])
            right = max(right, x[i])
            low = min(low, y[i])
            high = max(high, y[i])
        total += right - left + high - low
    return total


@njit(cache=True)
def deposit(x, y, area, cells, bin_width, bin_height, grid):
    """Share the area of each cell among the four bins around it."""
    columns, rows = grid.shape
    for i in cells:
        u = min(max(x[i] / bin_width - 0.5, 0.0), columns - 1.001)
        v = min(max(y[i] / bin_height - 0.5, 0.0), rows - 1.001)
        a, b = int(u), int(v)
        du, dv = u - a, v - b
        grid[a, b] += area[i] * (1 - du) * (1 - dv)
        grid[a + 1, b] += area[i] * du * (1 - dv)
        grid[a, b + 1] += area[i] * (1 - du) * dv
        grid[a + 1, b + 1] += area[i] * du * dv


@njit(cache=True)
def repel(x, y, area, cells, bin_width, bin_height, field_x, field_y, gradient_x, gradient_y):
    """Add the force of the field, taken between the same four bins, on each cell."""
    columns, rows = field_x.shape
    for i in cells:
        u = min(max(x[i] / bin_width - 0.5, 0.0), columns - 1.001)
        v = min(max(y[i] / bin_height - 0.5, 0.0), rows - 1.001)
        a, b = int(u), int(v)
        du, dv = u - a, v - b
        gradient_x[i] += area[i] * (
            (field_x[a, b] * (1 - dv) + field_x[a, b + 1] * dv) * (1 - du)
            + (field_x[a + 1, b] * (1 - dv) + field_x[a + 1, b + 1] * dv) * du
        )
        gradient_y[i] += area[i] * (
            (field_y[a, b] * (1 - dv) + field_y[a, b + 1] * dv) * (1 - du)
            + (field_y[a + 1, b] * (1 - dv) + field_y[a + 1, b + 1] * dv) * du
        )


@njit(cache=True)
def product(left, right):
    """The matrix product, summed in the order of the indices."""
    out = np.zeros((left.shape[0], right.shape[1]))
    for i in range(left.shape[0]):
        for k in range(left.shape[1]):
            factor = left[i, k]
            for j in range(right.shape[1]):
                out[i, j] += factor * right[k, j]
    return out


@njit(cache=True)
def size(values, cells):
    """Sum of magnitudes over some cells."""
    total = 0.0
    for i in cells:
        total += abs(values[i])
    return total


@njit(cache=True)
def excess(grid, capacity):
    """By how much the bins are overfull, summed."""
    total = 0.0
    for i in range(grid.shape[0]):
        for j in range(grid.shape[1]):
            total += max(grid[i, j] - capacity[i, j], 0.0)
    return total


@njit(cache=True)
def path_lengths(source, sink, wire_ns, through_ns, ends, launch_ns):
    """The longest path through every edge of a timing graph in order, in nanoseconds."""
    edges, cells = len(source), len(launch_ns)
    arrival = launch_ns.copy()
    for k in range(edges):
        if not ends[k]:
            t = arrival[source[k]] + wire_ns[k] + through_ns[k]
            arrival[sink[k]] = max(arrival[sink[k]], t)
    rest = np.zeros(cells)
    length = np.empty(edges)
    for k in range(edges - 1, -1, -1):
        onward = wire_ns[k]
        if not ends[k]:
            onward += through_ns[k] + rest[sink[k]]
        rest[source[k]] = max(rest[source[k]], onward)
        length[k] = arrival[source[k]] + onward
    return length


@njit(cache=True)
def place_costs(pointer, members, weight, nets_from, nets, cells, x, y, place_x, place_y):
    """What the nets of each cell would cost with it on each place and all else where it is.

    Whole numbers throughout. ``nets[nets_from[r]:nets_from[r + 1]]`` are those of ``cells[r]``.
    """
    cost = np.zeros((len(cells), len(place_x)), np.int64)
    for r in range(len(cells)):
        for t in range(nets_from[r], nets_from[r + 1]):
            net = nets[t]
            first = True
            left = right = low = high = np.int64(0)
            for k in range(pointer[net], pointer[net + 1]):
                i = members[k]
                if i == cells[r]:
                    continue
                if first:
                    left = right = x[i]
                    low = high = y[i]
                    first = False
                left = min(left, x[i])
                right = max(right, x[i])
                low = min(low, y[i])
                high = max(high, y[i])
            if first:
                continue
            for j in range(len(place_x)):
                cost[r, j] += weight[net] * (
                    max(place_x[j] - right, 0)
                    + max(left - place_x[j], 0)
                    + max(place_y[j] - high, 0)
                    + max(low - place_y[j], 0)
                )
    return cost


@njit(cache=True)
def whole_cost(pointer, members, weight, nets, x, y):
    """Weighted half perimeters of some nets, in whole numbers."""
    total = np.int64(0)
    for net in nets:
        begin, end = pointer[net], pointer[net + 1]
        left = right = x[members[begin]]
        low = high = y[members[begin]]
        for k in range(begin + 1, end):
            i = members[k]
            left = min(left, x[i])
            right = max(right, x[i])
            low = min(low, y[i])
            high = max(high, y[i])
        total += weight[net] * (right - left + high - low)
    return total
