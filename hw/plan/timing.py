"""The cycle model: when every unit of a pipeline does what, exactly.

It runs the control of the units - pointers, credits and queues, no data - cycle by cycle in
compiled code. Each rule below states the same fact as the gateware does; tests hold the two
together by comparing cycle counts for equality.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lichen import caches
from lichen.hw.engine.core import Core
from lichen.hw.engine.pixel_buffer import PixelBuffer
from lichen.hw.engine.skid import Skid

if TYPE_CHECKING:
    from lichen.hw.stage.pipeline import Pipeline

QUEUE = 256
"""Ring size of the model's event queues; more than any unit has banks or fifo places."""

NEVER = 1 << 62

SKID_PLACES = Skid.places

_PARAMETERS = (
    "kind",  # 0 convolution, 1 normalization
    "regroup",  # 0 none, 1 collect, 2 split
    "ratio",
    "regroup_beats",  # beats per pixel on the narrow side
    "beats_in",  # beats per pixel into the window or pixel buffer
    "kernel",
    "stride",
    "padding",
    "rows",
    "width",
    "height",
    "out_width",
    "out_height",
    "pixels",
    "group_cycles",
    "fill_latency",
    "banks",
    "beats_out",
    "post_latency",
    "fifo_depth",
)
(
    KIND,
    REGROUP,
    RATIO,
    REGROUP_BEATS,
    BEATS_IN,
    KERNEL,
    STRIDE,
    PADDING,
    ROWS,
    WIDTH,
    HEIGHT,
    OUT_WIDTH,
    OUT_HEIGHT,
    PIXELS,
    GROUP_CYCLES,
    FILL_LATENCY,
    BANKS,
    BEATS_OUT,
    POST_LATENCY,
    FIFO_DEPTH,
) = range(len(_PARAMETERS))

_STATE = (
    # regroup
    *("g_full", "g_slot", "g_beat"),
    # skid buffer of a convolution: items in it
    "skid",
    # window: write side
    *("w_beat", "wx", "wy", "written", "lead", "last_user", "user_sub", "room"),
    # window: what is released, what comes next
    *("free_row", "free_x", "finished", "n_row", "n_x", "left", "exhausted", "available"),
    # pixel buffer
    *("p_pixel", "p_x", "queued", "used", "p_head", "p_tail"),
    # sequencer: cycles left of the group being read
    "busy",
    # drain banks and reader
    *("free", "f_head", "f_tail", "pixel", "beat"),
    # output queue
    *("credits", "o_head", "o_tail"),
    # statistics
    *("groups", "stall_input", "stall_drain"),
)
(
    G_FULL,
    G_SLOT,
    G_BEAT,
    SKID,
    W_BEAT,
    WX,
    WY,
    WRITTEN,
    LEAD,
    LAST_USER,
    USER_SUB,
    ROOM,
    FREE_ROW,
    FREE_X,
    FINISHED,
    N_ROW,
    N_X,
    LEFT,
    EXHAUSTED,
    AVAILABLE,
    P_PIXEL,
    P_X,
    QUEUED,
    USED,
    P_HEAD,
    P_TAIL,
    BUSY,
    FREE,
    F_HEAD,
    F_TAIL,
    PIXEL,
    BEAT,
    CREDITS,
    O_HEAD,
    O_TAIL,
    GROUPS,
    STALL_INPUT,
    STALL_DRAIN,
) = range(len(_STATE))


@caches.jit()
def _run(par, state, counts, fills, buffered, pushes, in_beats, out_beats, spent, slice_cycles):
    """Step all units until ``out_beats`` have left; returns (cycles, beats that left).

    ``spent`` (units, slices) collects the busy cycles of every unit's array by the time they
    fall into, in slices of ``slice_cycles`` from the first beat accepted.
    """
    units = par.shape[0]
    accepted = 0
    left = 0
    first = -1
    i_ready = np.zeros(units + 1, np.bool_)
    i_ready[units] = True
    w_ready = np.zeros(units, np.bool_)
    g_ready = np.zeros(units, np.bool_)  # what the regrouper hands over to
    room = np.zeros(units, np.bool_)  # of the next cycle
    o_valid = np.zeros(units, np.bool_)
    t = 0
    while True:
        moved = False
        # What every unit shows to its neighbours, from registers only.
        for u in range(units):
            p, s = par[u], state[u]
            if p[KIND] == 0:
                w_ready[u] = s[ROOM] != 0
                room[u] = s[WRITTEN] == 0 and (
                    s[LEAD] != 0
                    or s[FINISHED] != 0
                    or s[FREE_ROW] > s[LAST_USER]
                    or (s[FREE_ROW] == s[LAST_USER] and s[WX] + 1 < s[FREE_X])
                )
            else:
                w_ready[u] = s[USED] != 2
            g_ready[u] = s[SKID] != SKID_PLACES if p[KIND] == 0 else w_ready[u]
            if p[REGROUP] == 0:
                i_ready[u] = g_ready[u]
            elif p[REGROUP] == 1:
                i_ready[u] = s[G_FULL] == 0 or g_ready[u]
            else:
                last = s[G_SLOT] == p[RATIO] - 1 or s[G_BEAT] == p[REGROUP_BEATS] - 1
                i_ready[u] = s[G_FULL] == 0 or (g_ready[u] and last)
            o_valid[u] = s[O_HEAD] != s[O_TAIL] and pushes[u, s[O_HEAD] % QUEUE] <= t

        for u in range(units):
            p, s = par[u], state[u]
            i_valid = accepted < in_beats if u == 0 else o_valid[u - 1]
            i_fire = i_valid and i_ready[u]
            if u == 0 and i_fire:
                accepted += 1
                if first < 0:
                    first = t
            # Regroup.
            if p[REGROUP] == 0:
                g_fire = i_fire
            else:
                g_fire = s[G_FULL] != 0 and g_ready[u]
                if p[REGROUP] == 1:
                    if g_fire:
                        s[G_FULL] = 0
                    if i_fire:
                        if s[G_SLOT] == p[RATIO] - 1 or s[G_BEAT] == p[REGROUP_BEATS] - 1:
                            s[G_FULL] = 1
                            s[G_SLOT] = 0
                        else:
                            s[G_SLOT] += 1
                        s[G_BEAT] = 0 if s[G_BEAT] == p[REGROUP_BEATS] - 1 else s[G_BEAT] + 1
                else:
                    if g_fire:
                        at_end = s[G_BEAT] == p[REGROUP_BEATS] - 1
                        if s[G_SLOT] == p[RATIO] - 1 or at_end:
                            s[G_SLOT] = 0
                            s[G_FULL] = 0
                        else:
                            s[G_SLOT] += 1
                        s[G_BEAT] = 0 if at_end else s[G_BEAT] + 1
                    if i_fire:
                        s[G_FULL] = 1

            # Skid buffer.
            if p[KIND] == 0:
                w_fire = s[SKID] != 0 and w_ready[u]
                s[SKID] += g_fire
                s[SKID] -= w_fire
            else:
                w_fire = g_fire

            # Sequencer: does a group end, does one start?
            done = s[BUSY] == 1
            ready = s[AVAILABLE] != 0 if p[KIND] == 0 else s[QUEUED] != 0
            idle = s[BUSY] == 0 or done
            start = ready and s[FREE] != 0 and idle
            if idle and not start:
                s[STALL_DRAIN if ready else STALL_INPUT] += 1

            # The next group, and what its predecessor released.
            if p[KIND] == 0:
                need_x = s[N_X] + (p[PIXELS] - 1) * p[STRIDE] + p[KERNEL] - 1
                need_y = s[N_ROW] * p[STRIDE] + p[KERNEL] - 1
                available = (
                    not start
                    and s[EXHAUSTED] == 0
                    and (s[WRITTEN] != 0 or s[WY] > need_y or (s[WY] == need_y and s[WX] > need_x))
                )
                if done:
                    s[FREE_ROW] = s[N_ROW]
                    s[FREE_X] = s[N_X]
                    s[FINISHED] = s[EXHAUSTED]
                if start:
                    row_end = s[LEFT] <= p[PIXELS]
                    counts[u, s[F_TAIL] % QUEUE] = s[LEFT] if row_end else p[PIXELS]
                    s[LEFT] -= p[PIXELS]
                    s[N_X] += p[PIXELS] * p[STRIDE]
                    if row_end:
                        s[LEFT] = p[OUT_WIDTH]
                        s[N_X] = 0
                        s[N_ROW] += 1
                        s[EXHAUSTED] = s[N_ROW] == p[OUT_HEIGHT]
                moved = moved or s[AVAILABLE] != available
                s[AVAILABLE] = available
                # Write side.
                if w_fire:
                    if s[W_BEAT] == p[BEATS_IN] - 1:
                        s[W_BEAT] = 0
                        s[WX] += 1
                        if s[WX] == p[WIDTH] + p[PADDING]:
                            room[u] = False
                            s[WX] = p[PADDING]
                            s[WY] += 1
                            s[WRITTEN] = s[WY] == p[HEIGHT] + p[PADDING]
                            if s[LEAD] != 0:
                                s[LEAD] -= 1
                            elif s[USER_SUB] == p[STRIDE] - 1:
                                s[USER_SUB] = 0
                                s[LAST_USER] += 1
                            else:
                                s[USER_SUB] += 1
                    else:
                        s[W_BEAT] += 1
                moved = moved or s[ROOM] != room[u]
                s[ROOM] = room[u]
            else:
                if done:
                    s[USED] -= 1
                if start:
                    s[QUEUED] -= 1
                    counts[u, s[F_TAIL] % QUEUE] = buffered[u, s[P_HEAD] % QUEUE]
                    s[P_HEAD] += 1
                if w_fire:
                    if s[W_BEAT] == p[BEATS_IN] - 1:
                        s[W_BEAT] = 0
                        if s[P_PIXEL] == p[PIXELS] - 1 or s[P_X] == p[WIDTH]:
                            buffered[u, s[P_TAIL] % QUEUE] = s[P_PIXEL] + 1
                            s[P_TAIL] += 1
                            s[P_PIXEL] = 0
                            s[QUEUED] += 1
                            s[USED] += 1
                        else:
                            s[P_PIXEL] += 1
                        s[P_X] = 1 if s[P_X] == p[WIDTH] else s[P_X] + 1
                    else:
                        s[W_BEAT] += 1

            if i_fire or g_fire or w_fire or start or done:
                moved = True
            # Drain reader, with the counters as they were before this cycle's group start.
            issue = s[F_HEAD] != s[F_TAIL] and fills[u, s[F_HEAD] % QUEUE] <= t and s[CREDITS] != 0
            if start:
                s[GROUPS] += 1
                s[BUSY] = p[GROUP_CYCLES]
                at, rest = t + 1 - max(first, 0), p[GROUP_CYCLES]
                while rest > 0 and at // slice_cycles < spent.shape[1]:
                    part = min(rest, slice_cycles - at % slice_cycles)
                    spent[u, at // slice_cycles] += part
                    at += part
                    rest -= part
                # the group's last cycle on the sequencer is t + GROUP_CYCLES
                fills[u, s[F_TAIL] % QUEUE] = t + p[GROUP_CYCLES] + p[FILL_LATENCY]
                s[F_TAIL] += 1
                s[FREE] -= 1
            elif s[BUSY] != 0:
                s[BUSY] -= 1
            if issue:
                moved = True
                pushes[u, s[O_TAIL] % QUEUE] = t + p[POST_LATENCY] + 1
                s[O_TAIL] += 1
                s[CREDITS] -= 1
                if s[BEAT] == p[BEATS_OUT] - 1:
                    s[BEAT] = 0
                    s[PIXEL] += 1
                    if s[PIXEL] == counts[u, s[F_HEAD] % QUEUE]:
                        s[PIXEL] = 0
                        s[F_HEAD] += 1
                        s[FREE] += 1
                else:
                    s[BEAT] += 1
            if o_valid[u] and i_ready[u + 1]:
                moved = True
                s[O_HEAD] += 1
                s[CREDITS] += 1
                if u == units - 1:
                    left += 1
                    if left == out_beats:
                        return t - first + 1, left
        t += 1
        if moved:
            continue
        # Nothing can happen until a group ends, a bank fills or a beat arrives: go there.
        jump = NEVER
        for u in range(units):
            s = state[u]
            if s[BUSY] != 0:
                jump = min(jump, s[BUSY] - 1)
            if s[F_HEAD] != s[F_TAIL] and fills[u, s[F_HEAD] % QUEUE] >= t:
                jump = min(jump, fills[u, s[F_HEAD] % QUEUE] - t)
            if s[O_HEAD] != s[O_TAIL] and pushes[u, s[O_HEAD] % QUEUE] >= t:
                jump = min(jump, pushes[u, s[O_HEAD] % QUEUE] - t)
        if jump == NEVER:
            return -1, left
        t += jump
        for u in range(units):
            s = state[u]
            if s[BUSY] != 0:
                s[BUSY] -= jump
            elif (s[AVAILABLE] if par[u, KIND] == 0 else s[QUEUED]) != 0:
                s[STALL_DRAIN] += jump
            else:
                s[STALL_INPUT] += jump


def _parameters(pipeline: Pipeline, height: int, width: int) -> npt.NDArray[np.int64]:
    rows = []
    sizes = iter(pipeline.transform.sizes(height, width))
    h, w = next(sizes)
    for unit in pipeline.units:
        row = dict.fromkeys(_PARAMETERS, 0)
        core, regroup = unit.core, unit.regroup
        row |= {"width": w, "height": h}
        if hasattr(unit, "window"):
            window = unit.window
            h, w = next(sizes)
            row |= {
                "kind": 0,
                "kernel": window.kernel,
                "stride": window.stride,
                "padding": window.padding,
                "rows": window.rows,
                "out_width": w,
                "out_height": h,
                "beats_in": window.groups_per_pixel,
                "pixels": window.pixels,
            }
        else:
            row |= {"kind": 1, "beats_in": unit.buffer.steps, "pixels": unit.buffer.pixels}
            assert PixelBuffer.banks == 2
        if regroup.i_lanes < regroup.o_lanes:
            row |= {"regroup": 1, "ratio": regroup.ratio, "regroup_beats": regroup.i_beats}
        elif regroup.i_lanes > regroup.o_lanes:
            row |= {"regroup": 2, "ratio": regroup.ratio, "regroup_beats": regroup.o_beats}
        row |= {
            "group_cycles": core.shape.group_cycles,
            "fill_latency": core.shape.fill_latency,
            "banks": core.shape.banks,
            "beats_out": core.shape.beats,
            "post_latency": Core.latency + unit.post.latency,
            "fifo_depth": unit.fifo.depth,
        }
        rows.append([row[name] for name in _PARAMETERS])
    return np.array(rows, dtype=np.int64)


def cycles(pipeline: Pipeline, height: int, width: int) -> int:
    """Cycles of one frame from the first beat accepted to the last beat out, both included.

    Raises RuntimeError if the model stops moving, which would be a deadlock of the gateware.
    """
    return int(simulate(pipeline, height, width)[0])


def occupancy(
    pipeline: Pipeline, height: int, width: int, slice_cycles: int
) -> npt.NDArray[np.float64]:
    """How busy every unit's array is over a frame: (units, slices), shares from 0 to 1.

    Slices have ``slice_cycles`` cycles each; the last one reaches beyond the end of the frame.
    """
    slices = -(-cycles(pipeline, height, width) // slice_cycles)
    spent = np.zeros((len(pipeline.units), slices), dtype=np.int64)
    _simulate(pipeline, height, width, spent, slice_cycles)
    return spent / slice_cycles


def simulate(pipeline: Pipeline, height: int, width: int) -> tuple[int, list[dict[str, int]]]:
    """The cycle count, and per unit how its array spent the cycles.

    Each dictionary holds ``busy`` (cycles with a group on the array), ``stall_input`` and
    ``stall_drain`` (idle cycles waiting for pixels, and for a drain bank).
    """
    nothing = np.zeros((len(pipeline.units), 0), dtype=np.int64)
    return _simulate(pipeline, height, width, nothing, 1)


def _simulate(
    pipeline: Pipeline, height: int, width: int, slices: npt.NDArray[np.int64], slice_cycles: int
) -> tuple[int, list[dict[str, int]]]:
    par = _parameters(pipeline, height, width)
    units = len(par)
    state = np.zeros((units, len(_STATE)), dtype=np.int64)
    state[:, WX] = state[:, WY] = par[:, PADDING]
    state[:, LEAD] = par[:, ROWS]
    state[:, ROOM] = 1
    stride = np.maximum(par[:, STRIDE], 1)
    state[:, LAST_USER] = par[:, PADDING] // stride
    state[:, USER_SUB] = par[:, PADDING] % stride
    state[:, LEFT] = par[:, OUT_WIDTH]
    state[:, P_X] = 1
    state[:, FREE] = par[:, BANKS]
    state[:, CREDITS] = par[:, FIFO_DEPTH]
    queues = [np.zeros((units, QUEUE), dtype=np.int64) for _ in range(4)]
    (h, w) = pipeline.transform.sizes(height, width)[-1]
    in_beats = height * width * pipeline.units[0].regroup.i_beats
    out_beats = h * w * pipeline.units[-1].core.shape.beats
    counts, fills, buffered, pushes = queues
    total, left = _run(
        par, state, counts, fills, buffered, pushes, in_beats, out_beats, slices, slice_cycles
    )
    if total < 0:
        raise RuntimeError(f"the cycle model stopped after {left} of {out_beats} beats")
    spent = [
        {
            "busy": int(s[GROUPS] * p[GROUP_CYCLES]),
            "stall_input": int(s[STALL_INPUT]),
            "stall_drain": int(s[STALL_DRAIN]),
        }
        for s, p in zip(state, par, strict=True)
    ]
    return int(total), spent
