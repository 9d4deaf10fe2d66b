"""Names of a module's wires, and bits of them as expressions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from lichen.hw.rtl.names import Names
from lichen.hw.rtl.netlist import Bits, Cell, Process, Wire
from lichen.hw.rtl.prune import BITWISE, Design, Facts
from lichen.hw.rtl.text import Text, constant, span

_ANONYMOUS = {
    **{"$add": "sum", "$sub": "difference", "$mul": "product", "$eq": "equal", "$ne": "differs"},
    **{"$mux": "choice", "$dff": "register", "$memrd_v2": "word"},
}


@dataclass
class Place:
    """Where a wire's bits are in what is written: by their place in the netlist's wire."""

    name: str
    width: int
    places: dict[int, int]


class Values:
    """What a module's wires are called, and how their bits are written.

    Parameters are `lichen.hw.rtl.write.Writer`'s.
    """

    def __init__(
        self,
        design: Design,
        name: str,
        modules: dict[str, str],
        ports: dict[str, dict[str, str]],
    ):
        self.design, self.name, self.modules, self.ports = design, name, modules, ports
        self.facts: Facts = design.facts[name]
        self.module = self.facts.module
        self.names = Names([modules[name]])
        self.places: dict[int, Place] = {}  # by the first bit of a wire
        self.sunk: Bits = []
        self._uses: Counter[int] = Counter()
        self._inlined: dict[int, Callable[[], str]] = {}
        self._ports: list[Wire] = []
        self._port_registers: set[int] = set()  # ports that a process or a register drives

    # Names and places

    def _name_wires(self) -> None:
        own = self.ports.setdefault(self.name, {})
        live = self.facts.live
        wires = sorted(self.module.wires, key=lambda w: (not w.port, w.name.startswith("$")))
        order = {id(w): i for i, w in enumerate(self.module.wires)}
        ports = sorted((w for w in wires if w.port), key=lambda w: order[id(w)])
        ports.sort(key=lambda w: {"\\clk": 0, "\\rst": 1}.get(w.name, 2))
        self._ports = ports
        for wire in [*ports, *(w for w in wires if not w.port)]:
            if wire.port:
                places = self.facts.port_places[wire.name]
            else:
                alive = [i for i in range(wire.width) if wire.start + i in live]
                places = alive if not alive or self._packs(wire) else list(range(alive[-1] + 1))
            if not places:
                continue
            if wire.name.startswith("$"):
                driver = self.facts.driver.get(wire.start)
                kind = driver.kind if isinstance(driver, Cell) else "$next"
                name = self.names.add(_ANONYMOUS.get(kind, kind.strip("$").split("_v2")[0]))
            else:
                name = self.names.add(wire.name[1:])
            place = Place(name, len(places), {old: new for new, old in enumerate(places)})
            self.places[wire.start] = place
            if wire.port:
                own[wire.name.removeprefix("\\")] = name

    def _packs(self, wire: Wire) -> bool:
        """Whether bits in the middle of a wire can be left out."""
        drivers = {id(self.facts.driver.get(bit)) for bit in wire.bits}
        driver = self.facts.driver.get(wire.start)
        if len(drivers) > 1 or driver is None:
            return False
        if isinstance(driver, Process):
            return True
        child = self.design.child(driver)
        return child is not None or driver.kind in ("$dff", "$mux", "$not", *BITWISE)

    def _sink_dead_bits(self) -> None:
        live = self.facts.live
        for wire in self.module.wires:
            place = self.places.get(wire.start)
            if place is None or (wire.port == "output" and not self._driven_here(wire)):
                continue
            dead = [wire.start + i for i in place.places if wire.start + i not in live]
            if wire.port == "output":
                dead = []
            self.sunk += dead

    def _driven_here(self, wire: Wire) -> bool:
        return any(bit in self.facts.driver for bit in wire.bits)

    # Values

    def value(self, bits: Bits) -> str:
        """Bits, the lowest first, as an expression."""
        assert bits
        chunks: list[str] = []
        at = len(bits)
        while at:
            at, text = self._chunk(bits, at)
            chunks.append(text)
        if len(chunks) == 1:
            if chunks[0].startswith("{"):
                return f"{{{chunks[0]}}}" if not chunks[0].startswith("{{") else chunks[0]
            return chunks[0]
        return "{" + ", ".join(chunks) + "}"

    def _chunk(self, bits: Bits, end: int) -> tuple[int, str]:
        """The longest expression for the bits below ``end``, and where it begins."""
        bit = bits[end - 1]
        begin = end - 1
        if bit < 0:
            while begin and bits[begin - 1] < 0:
                begin -= 1
            return begin, constant(bits[begin:end])
        wire = self.module.owner(bit)
        place = self.places[wire.start]
        high = place.places[bit - wire.start]
        while begin and bits[begin - 1] == bit:
            begin -= 1
        if end - begin > 1 and begin and bits[begin - 1] == bit - 1 >= wire.start:
            begin += 1  # a sign's own place is the value's
        if end - begin > 1:
            self._uses[wire.start] += 2
            index = "" if place.width == 1 else f"[{high}]"
            return begin, f"{{{end - begin}{{{place.name}{index}}}}}"
        low = high
        while begin and bits[begin - 1] >= 0:
            below = bits[begin - 1]
            if not wire.start <= below < wire.start + wire.width:
                break
            if place.places.get(below - wire.start) != low - 1:
                break
            low -= 1
            begin -= 1
        if high - low + 1 == place.width:
            whole = len(bits) == place.width
            self._uses[wire.start] += 1 if whole else 2
            if whole and wire.start in self._inlined:
                return begin, f"({self._inlined[wire.start]()})"
            return begin, place.name
        self._uses[wire.start] += 2
        return begin, f"{place.name}[{high}]" if high == low else f"{place.name}[{high}:{low}]"

    def _kept(self, bits: Bits) -> Bits:
        """Bits of a driven value that are written at all."""
        return [bit for bit in bits if self._exists(bit)]

    def _exists(self, bit: int) -> bool:
        wire = self.module.owner(bit)
        place = self.places.get(wire.start)
        return place is not None and bit - wire.start in place.places

    def _left(self, bits: Bits) -> str:
        """What is driven; the same text as its value, uncounted."""
        uses = self._uses.copy()
        inlined, self._inlined = self._inlined, {}
        text = self.value(bits)
        self._uses, self._inlined = uses, inlined
        return text

    def _declare(self, bits: Bits, text: Text, kind: str = "wire") -> None:
        """Declare the wires of driven bits, ports left out."""
        for wire in {id(w): w for w in map(self.module.owner, bits)}.values():
            place = self.places[wire.start]
            if wire.port:
                if kind == "reg":
                    self._port_registers.add(wire.start)
                continue
            text.declarations.append(f"{kind} {span(place.width)}{place.name};")
