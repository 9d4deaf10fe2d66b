"""Verilog of a component, the same text for the same component."""

from __future__ import annotations

import gc

from amaranth.back import verilog
from amaranth.lib import wiring

from lichen import caches


def emit(component: wiring.Component, name: str = "lichen_top", platform: object = None) -> str:
    """Verilog of a component and everything below it.

    Parameters
    ----------
    component : wiring.Component
        Elaborated once: a second call needs a fresh component.
    name : str
        Name of the top module.
    platform : object
        What ``elaborate`` is given; `lichen.hw.device.ecp5.Target` makes vendor cells where
        there are any, None what every tool understands.

    Returns
    -------
    str
        Ports carry the flattened names of the signature's members (``i__payload``,
        ``i__valid``, ``i__ready``, ...), plus ``clk`` and ``rst``. No source locations and no
        paths: the text depends on the component alone, so that it can key a cache.
    """
    caches.prepare()  # its yosys compiles, and keeps the result
    # Amaranth makes millions of small objects here and drops none: collecting garbage meanwhile
    # finds nothing and costs a quarter of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return verilog.convert(
            component, name=name, platform=platform, emit_src=False, strip_internal_attrs=True
        )
    finally:
        if collecting:
            gc.enable()
