"""The cycle model: when every unit of a pipeline does what, exactly.

It runs the control of the units - pointers, credits and queues, no data - cycle by cycle in
compiled code. Each function below states the same facts as the part of the gateware that it is
named after; tests hold the two together by comparing cycle counts for equality. They share a file
because numba's cache goes by the file of the function that is called from outside: an edit of any
of them is never missed.
"""

from __future__ import annotations

import numpy as np

from lichen import caches
from lichen.hw.engine.skid import Skid

QUEUE = 256
"""Ring size of the model's event queues; more than any unit has banks or fifo places."""

NEVER = 1 << 62

SKID_PLACES = Skid.places

PHASES = 4
"""Row phases a unit may have: the largest stride."""

PASS_ON, COLLECT, SPLIT = range(3)
"""What a regrouper does."""

ROWS, PIXELS = range(2)
"""What feeds an array: a window over rows, or a buffer of single pixels."""

UNIT = np.dtype(
    [
        # regrouper: kind, narrow beats per wide one, narrow beats per pixel
        *((name, np.int64) for name in ("regroup", "ratio", "regroup_beats")),
        # what feeds the array, beats per pixel into it, positions per group
        *((name, np.int64) for name in ("feeder", "beats_in", "pixels")),
        # window, write side: first column, end of columns and rows, in its own coordinates
        *((name, np.int64) for name in ("first_x", "first_y", "end_x", "end_y")),
        # row slots; the row overwritten by the first row that waits was last needed by output row
        # `last_user` (and `user_sub` shares of one); a row advances that by `users` / `users_of`
        *((name, np.int64) for name in ("slots", "last_user", "user_sub", "users", "users_of")),
        # window, read side: the first position, what a group needs beyond it, what may be freed
        *(
            (name, np.int64)
            for name in ("read_x", "read_y", "stride", "span_x", "span_y", "behind")
        ),
        # phases of rows and columns, and the first ones
        *((name, np.int64) for name in ("row_phases", "column_phases", "row_phase", "skip")),
        *((name, np.int64) for name in ("width", "out_width", "out_height")),
        # core: cycles by the phase of the row
        ("group_cycles", np.int64, PHASES),
        *((name, np.int64) for name in ("fill_latency", "banks")),
        *((name, np.int64) for name in ("beats_out", "post_latency", "fifo_depth")),
    ]
)
"""What the model knows of a unit; every field is 0 where a unit has no such thing."""

STATE = np.dtype(
    [
        # regrouper, skid buffer
        *((name, np.int64) for name in ("g_full", "g_slot", "g_beat", "skid")),
        # window: write side
        *((name, np.int64) for name in ("w_beat", "wx", "wy", "written", "lead")),
        *((name, np.int64) for name in ("last_user", "user_sub", "room")),
        # window: what is released, what comes next
        *((name, np.int64) for name in ("free_row", "free_x", "finished", "n_row", "n_phase")),
        *((name, np.int64) for name in ("n_x", "n_y", "left", "head", "exhausted", "available")),
        # pixel buffer
        *((name, np.int64) for name in ("p_pixel", "p_x", "queued", "used", "p_head", "p_tail")),
        # sequencer: cycles left of the group being read
        ("busy", np.int64),
        # drain banks and reader
        *((name, np.int64) for name in ("free", "f_head", "f_tail", "pixel", "beat")),
        # output queue
        *((name, np.int64) for name in ("credits", "o_head", "o_tail")),
        # statistics
        *((name, np.int64) for name in ("spent", "stall_input", "stall_drain")),
        # when groups start and beats leave: the first and the last, from the first beat accepted
        *((name, np.int64) for name in ("start_first", "start_last", "out_first", "out_last")),
        # queues: pixels of a group by bank and by pixel buffer, when banks are full, when beats
        # reach the output
        *((name, np.int64, QUEUE) for name in ("counts", "buffered", "fills", "pushes")),
    ]
)
"""Registers of a unit."""

_jit = caches.jit()


@_jit
def _begin(p, s):
    """A unit before its first frame."""
    s.wx, s.wy = p.first_x, p.first_y
    s.lead, s.room = p.slots, 1
    s.last_user, s.user_sub = p.last_user, p.user_sub
    s.n_x, s.n_y, s.n_phase = p.read_x, p.read_y, p.row_phase
    s.left, s.head = p.out_width + p.skip, 1
    s.p_x = 1
    s.free, s.credits = p.banks, p.fifo_depth
    s.start_first = s.out_first = -1


@_jit
def _feeder_ready(p, s):
    """Whether the feeder takes a beat."""
    return s.room != 0 if p.feeder == ROWS else s.used != 2


@_jit
def _regroup_takes(p, s, sink_ready):
    """Whether the regrouper takes a beat."""
    if p.regroup == PASS_ON:
        return sink_ready
    if p.regroup == COLLECT:
        return s.g_full == 0 or sink_ready
    last = s.g_slot == p.ratio - 1 or s.g_beat == p.regroup_beats - 1
    return s.g_full == 0 or (sink_ready and last)


@_jit
def _regroup(p, s, i_fire, sink_ready):
    """A cycle of the regrouper; whether it hands a beat over."""
    if p.regroup == PASS_ON:
        return i_fire
    fire = s.g_full != 0 and sink_ready
    if p.regroup == COLLECT:
        if fire:
            s.g_full = 0
        if i_fire:
            if s.g_slot == p.ratio - 1 or s.g_beat == p.regroup_beats - 1:
                s.g_full = 1
                s.g_slot = 0
            else:
                s.g_slot += 1
            s.g_beat = 0 if s.g_beat == p.regroup_beats - 1 else s.g_beat + 1
        return fire
    if fire:
        at_end = s.g_beat == p.regroup_beats - 1
        if s.g_slot == p.ratio - 1 or at_end:
            s.g_slot = 0
            s.g_full = 0
        else:
            s.g_slot += 1
        s.g_beat = 0 if at_end else s.g_beat + 1
    if i_fire:
        s.g_full = 1
    return fire


@_jit
def _window_room(p, s):
    """Whether the pixel after the present one may be written, in the next cycle."""
    return s.written == 0 and (
        s.lead != 0
        or s.finished != 0
        or s.free_row > s.last_user
        or (s.free_row == s.last_user and s.wx + 1 < s.free_x)
    )


@_jit
def _window_write(p, s, room):
    """A beat is written; whether there is room for the next one."""
    if s.w_beat != p.beats_in - 1:
        s.w_beat += 1
        return room
    s.w_beat = 0
    s.wx += 1
    if s.wx != p.end_x:
        return room
    s.wx = p.first_x
    s.wy += 1
    s.written = s.wy == p.end_y
    if s.lead != 0:
        s.lead -= 1
    else:
        s.user_sub += p.users
        s.last_user += s.user_sub // p.users_of
        s.user_sub %= p.users_of
    return False


@_jit
def _window_available(p, s, start):
    """Whether all that the next group reads has arrived, and it may start in the next cycle."""
    need_x, need_y = s.n_x + p.span_x, s.n_y + p.span_y
    arrived = s.written != 0 or s.wy > need_y or (s.wy == need_y and s.wx > need_x)
    return not start and s.exhausted == 0 and arrived


@_jit
def _window_release(p, s):
    """A group has been read."""
    s.free_row = s.n_row
    s.free_x = max(0, s.n_x - p.behind)
    s.finished = s.exhausted


@_jit
def _window_start(p, s):
    """A group starts, the next one is looked at; how many output pixels it has."""
    most = p.pixels * p.column_phases
    row_end = s.left <= most
    count = (s.left if row_end else most) - (p.skip if s.head else 0)
    s.head = 0
    s.left -= most
    s.n_x += p.pixels * p.stride
    if row_end:
        s.left, s.head = p.out_width + p.skip, 1
        s.n_x = p.read_x
        s.n_row += 1
        s.n_phase += 1
        if s.n_phase == p.row_phases:
            s.n_phase = 0
            s.n_y += p.stride
        s.exhausted = s.n_row == p.out_height
    return count


@_jit
def _buffer_start(p, s):
    """A group of a pixel buffer starts; how many pixels it has."""
    s.queued -= 1
    count = s.buffered[s.p_head % QUEUE]
    s.p_head += 1
    return count


@_jit
def _buffer_write(p, s):
    """A beat is written into the pixel buffer."""
    if s.w_beat != p.beats_in - 1:
        s.w_beat += 1
        return
    s.w_beat = 0
    if s.p_pixel == p.pixels - 1 or s.p_x == p.width:
        s.buffered[s.p_tail % QUEUE] = s.p_pixel + 1
        s.p_tail += 1
        s.p_pixel = 0
        s.queued += 1
        s.used += 1
    else:
        s.p_pixel += 1
    s.p_x = 1 if s.p_x == p.width else s.p_x + 1


@_jit
def _drain_issues(p, s, t):
    """Whether the drain's reader sends a beat."""
    return s.f_head != s.f_tail and s.fills[s.f_head % QUEUE] <= t and s.credits != 0


@_jit
def _core_start(p, s, phase, count, t):
    """A group starts: its last cycle on the sequencer is ``t + group_cycles``."""
    s.busy = p.group_cycles[phase]
    s.spent += s.busy
    s.counts[s.f_tail % QUEUE] = count
    s.fills[s.f_tail % QUEUE] = t + p.group_cycles[phase] + p.fill_latency
    s.f_tail += 1
    s.free -= 1


@_jit
def _drain_issue(p, s, t):
    """The drain's reader sends a beat, which reaches the output queue later."""
    s.pushes[s.o_tail % QUEUE] = t + p.post_latency + 1
    s.o_tail += 1
    s.credits -= 1
    if s.beat != p.beats_out - 1:
        s.beat += 1
        return
    s.beat = 0
    s.pixel += 1
    if s.pixel == s.counts[s.f_head % QUEUE]:
        s.pixel = 0
        s.f_head += 1
        s.free += 1


@_jit
def _account(spent, at, cycles, slice_cycles):
    """Spread ``cycles`` from cycle ``at`` on over slices of time."""
    while cycles > 0 and at // slice_cycles < len(spent):
        part = min(cycles, slice_cycles - at % slice_cycles)
        spent[at // slice_cycles] += part
        at += part
        cycles -= part


@_jit
def _idle_cycles(s, t):
    """How long nothing can happen in a unit by itself."""
    jump = NEVER
    if s.busy != 0:
        jump = min(jump, s.busy - 1)
    if s.f_head != s.f_tail and s.fills[s.f_head % QUEUE] >= t:
        jump = min(jump, s.fills[s.f_head % QUEUE] - t)
    if s.o_head != s.o_tail and s.pushes[s.o_head % QUEUE] >= t:
        jump = min(jump, s.pushes[s.o_head % QUEUE] - t)
    return jump


@_jit
def _wait(p, s, cycles):
    """Nothing happens for so long."""
    if s.busy != 0:
        s.busy -= cycles
    elif (s.available if p.feeder == ROWS else s.queued) != 0:
        s.stall_drain += cycles
    else:
        s.stall_input += cycles


@_jit
def _step(p, s, i_fire, t, spent, since, slice_cycles):
    """A cycle of a unit that takes a beat, or does not; whether anything moves."""
    rows = p.feeder == ROWS
    feeder_ready = _feeder_ready(p, s)
    room = rows and _window_room(p, s)
    g_fire = _regroup(p, s, i_fire, s.skid != SKID_PLACES if rows else feeder_ready)
    if rows:
        w_fire = s.skid != 0 and feeder_ready
        s.skid += g_fire
        s.skid -= w_fire
    else:
        w_fire = g_fire

    # Sequencer: does a group end, does one start?
    done = s.busy == 1
    ready = (s.available if rows else s.queued) != 0
    idle = s.busy == 0 or done
    start = ready and s.free != 0 and idle
    if idle and not start:
        if ready:
            s.stall_drain += 1
        else:
            s.stall_input += 1
    moved = i_fire or g_fire or w_fire or start or done
    issue = _drain_issues(p, s, t)  # with the counters as they were before the group's start

    phase, count = s.n_phase, 0
    if rows:
        available = _window_available(p, s, start)
        if done:
            _window_release(p, s)
        if start:
            count = _window_start(p, s)
        moved = moved or s.available != available
        s.available = available
        if w_fire:
            room = _window_write(p, s, room)
        moved = moved or s.room != room
        s.room = room
    else:
        if done:
            s.used -= 1
        if start:
            count = _buffer_start(p, s)
        if w_fire:
            _buffer_write(p, s)

    if start:
        _core_start(p, s, phase, count, t)
        s.start_last = since
        if s.start_first < 0:
            s.start_first = since
        _account(spent, since + 1, s.busy, slice_cycles)
    elif s.busy != 0:
        s.busy -= 1
    if issue:
        _drain_issue(p, s, t)
    return moved or issue


@_jit
def run(par, state, in_beats, out_beats, spent, slice_cycles):
    """Step all units until ``out_beats`` have left; returns (cycles, beats that left).

    ``spent`` (units, slices) collects the busy cycles of every unit's array by the time they
    fall into, in slices of ``slice_cycles`` from the first beat accepted.
    """
    units = len(par)
    accepted = left = t = 0
    first = -1
    i_ready = np.zeros(units + 1, np.bool_)
    i_ready[units] = True
    o_valid = np.zeros(units, np.bool_)
    for u in range(units):
        _begin(par[u], state[u])
    while True:
        moved = False
        # What every unit shows to its neighbours, from registers only.
        for u in range(units):
            p, s = par[u], state[u]
            ready = s.skid != SKID_PLACES if p.feeder == ROWS else _feeder_ready(p, s)
            i_ready[u] = _regroup_takes(p, s, ready)
            o_valid[u] = s.o_head != s.o_tail and s.pushes[s.o_head % QUEUE] <= t
        for u in range(units):
            p, s = par[u], state[u]
            i_fire = (accepted < in_beats if u == 0 else o_valid[u - 1]) and i_ready[u]
            if u == 0 and i_fire:
                accepted += 1
                if first < 0:
                    first = t
            if _step(p, s, i_fire, t, spent[u], t - max(first, 0), slice_cycles):
                moved = True
            if o_valid[u] and i_ready[u + 1]:
                moved = True
                s.o_head += 1
                s.credits += 1
                s.out_last = t - first
                if s.out_first < 0:
                    s.out_first = t - first
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
            jump = min(jump, _idle_cycles(state[u], t))
        if jump == NEVER:
            return -1, left
        t += jump
        for u in range(units):
            _wait(par[u], state[u], jump)
