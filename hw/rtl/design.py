"""A component and all below it as Verilog files that stand alone."""

from __future__ import annotations

import gc

from amaranth.back import rtlil
from amaranth.lib import wiring

from lichen.hw.rtl.names import module_names
from lichen.hw.rtl.netlist import read_design
from lichen.hw.rtl.prune import Design
from lichen.hw.rtl.write import Writer


def modules(component: wiring.Component, top: str, platform: object = None) -> dict[str, str]:
    """Verilog of a component, a text for every module that differs from others.

    Parameters
    ----------
    component : wiring.Component
        Elaborated once: a second call needs a fresh component.
    top : str
        Name of its module; those below are called ``TOP_*``.
    platform : object
        What ``elaborate`` is given; see `lichen.hw.verilog.emit`.

    Returns
    -------
    dict of str to str
        By the module's name, the top first. Equal components give equal texts.
    """
    collecting = gc.isenabled()
    gc.disable()  # as in `lichen.hw.verilog.emit`
    try:
        text = rtlil.convert(component, name="top", platform=platform, emit_src=False)
        return from_rtlil(text, top)
    finally:
        if collecting:
            gc.enable()


def from_rtlil(text: str, top: str) -> dict[str, str]:
    """`modules` of a netlist as Amaranth writes it."""
    found, same = read_design(text)
    paths: dict[str, list[str]] = {name: [] for name in found}
    for path, name in same.items():
        paths[name].append(path)
    for members in paths.values():
        members.sort()
    names = module_names(paths, top)
    design = Design(found)
    ports: dict[str, dict[str, str]] = {}
    texts: dict[str, str] = {}
    written: dict[str, str] = {}
    for name in reversed(found):
        if not design.needed(name):
            continue
        text = Writer(design, name, names, ports).write()
        body = text.removeprefix(f"module {names[name]} ")
        # what differed in nothing but unread bits
        names[name] = written.setdefault(body, names[name])
        texts.setdefault(names[name], text)
    return dict(reversed(texts.items()))
