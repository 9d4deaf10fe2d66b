"""What of a netlist is needed: bits that nothing reads are not written, through all modules.

Amaranth keeps every named signal and every bit of a sum. A linter rightly asks what they are for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from lichen.hw.rtl.netlist import (
    ONE,
    ZERO,
    Assign,
    Bits,
    Cell,
    Module,
    Process,
    Statement,
    Switch,
    memory_name,
)

BITWISE = ("$and", "$or", "$xor", "$xnor")
"""Operators whose every bit needs but the operands' bits at its place."""
RISING = ("$add", "$sub", "$mul", "$neg")
"""Operators whose every bit needs the operands' bits up to its place."""
COMPARISONS = ("$eq", "$ne", "$lt", "$le", "$gt", "$ge")
SHIFTS = ("$shl", "$shr", "$sshr", "$shift")
EMPTY = {
    **dict.fromkeys(("$eq", "$le", "$ge", "$reduce_and", "$logic_not"), ONE),
    **dict.fromkeys(("$ne", "$lt", "$gt", "$reduce_or", "$reduce_xor", "$reduce_bool"), ZERO),
}
"""Results for operands without bits."""
NEUTRAL = {"$and": ONE, "$or": ZERO, "$xor": ZERO, "$add": ZERO, "$sub": ZERO}
"""The bit of a constant operand that changes nothing; of ``$sub`` the second one."""
OUTPUTS = ("Y", "Q", "DATA")
"""What an operator, a register or a memory's read port calls its result."""


def operand(cell: Cell, port: str, width: int) -> Bits:
    """An operand, extended by its sign or zeros, or cut, to so many bits."""
    bits = cell.ports[port]
    signed = bool(cell.number(f"{port}_SIGNED"))
    filling = bits[-1] if signed and bits else ZERO
    return (bits + [filling] * (width - len(bits)))[:width]


def compared_width(cell: Cell) -> int:
    """Bits that both operands of a comparison are extended to."""
    return max(len(cell.ports["A"]), len(cell.ports["B"]))


def result(cell: Cell) -> Bits:
    """What an operator, a register or a memory's read port drives; empty for a write port."""
    if cell.kind == "$memwr_v2":
        return []
    return next(cell.ports[name] for name in OUTPUTS if name in cell.ports)


def targets(process: Process) -> Bits:
    """What a process drives."""
    return sorted({bit for assign in process.assigns() for bit in assign.lhs})


@dataclass
class Facts:
    """A module with its aliases resolved, and who drives what.

    Attributes
    ----------
    driver : dict of bit to Cell or Process
    needs : dict of bit to set of bits
        What a process makes a bit of.
    live : set of bits
        Those that something reads, and what drives them, too.
    """

    module: Module
    driver: dict[int, Cell | Process] = field(default_factory=dict)
    needs: dict[int, set[int]] = field(default_factory=dict)
    live: set[int] = field(default_factory=set)
    readers: dict[str, list[Cell]] = field(default_factory=lambda: defaultdict(list))

    def alive(self, bits: Bits) -> bool:
        return any(bit in self.live for bit in bits)

    def port_bits(self, name: str) -> list[int]:
        """Places of a port's bits that exist, in order."""
        return self.port_places[name]

    port_places: dict[str, list[int]] = field(default_factory=dict)


class Design:
    """Modules that differ, and what of each is needed.

    Parameters
    ----------
    modules : dict of str to Module
        Parents first. The first is the top, whose ports all stay.
    """

    def __init__(self, modules: dict[str, Module]):
        self.modules = modules
        self.facts = {name: _facts(module, modules) for name, module in modules.items()}
        self.parents: dict[str, list[tuple[str, Cell]]] = defaultdict(list)
        for name, module in modules.items():
            for cell in module.cells:
                if cell.kind.removeprefix("\\") in modules:
                    self.parents[cell.kind.removeprefix("\\")].append((name, cell))
        self._wanted: list[tuple[str, int]] = []
        top = next(iter(modules))
        for wire in modules[top].ports:
            if wire.port == "output":
                self._want(top, modules[top].resolve(wire.bits))
        self._spread()
        for name in modules:
            self._place_ports(name, everything=name == top)

    def needed(self, name: str) -> bool:
        """Whether anything that a module drives is read."""
        ports = self.modules[name].ports
        return any(self.facts[name].port_places[w.name] for w in ports if w.port == "output")

    def child(self, cell: Cell) -> str | None:
        """The module a cell is an instance of, if it is one of the design's."""
        kind = cell.kind.removeprefix("\\")
        return kind if kind in self.modules else None

    def _want(self, name: str, bits: Bits) -> None:
        live = self.facts[name].live
        for bit in bits:
            if bit >= 0 and bit not in live:
                live.add(bit)
                self._wanted.append((name, bit))

    def _spread(self) -> None:
        while self._wanted:
            name, bit = self._wanted.pop()
            facts = self.facts[name]
            driver = facts.driver.get(bit)
            if driver is None:
                self._want_outside(name, bit)
            elif isinstance(driver, Process):
                self._want(name, list(facts.needs[bit]))
            elif (child := self.child(driver)) is not None:
                self._want_inside(driver, child, bit)
            else:
                self._want(name, _operands(facts, driver, bit))

    def _want_outside(self, name: str, bit: int) -> None:
        """An input's bit: whatever drives it in every instance."""
        wire = self.modules[name].owner(bit)
        for parent, cell in self.parents[name]:
            value = cell.ports.get(wire.name.removeprefix("\\"))
            if value is not None:
                self._want(parent, [value[bit - wire.start]])

    def _want_inside(self, cell: Cell, child: str, bit: int) -> None:
        """An instance's output: that output of its module, and what its inputs were known to
        need before this instance was."""
        inside = self.modules[child]
        for wire in inside.ports:
            value = cell.ports.get(wire.name.removeprefix("\\"), [])
            if wire.port == "output" and bit in value:
                self._want(child, inside.resolve([wire.bits[value.index(bit)]]))

    def _place_ports(self, name: str, *, everything: bool) -> None:
        """Which bits of its ports a module keeps."""
        facts = self.facts[name]
        for wire in facts.module.ports:
            places = list(range(wire.width))
            if not everything:
                if wire.port == "output":
                    used = self._used_outside(name, wire.name)
                    resolved = facts.module.resolve(wire.bits)
                    own = resolved == wire.bits
                    places = [i for i in places if i in used or (own and resolved[i] in facts.live)]
                else:
                    places = [i for i in places if wire.start + i in facts.live]
            facts.port_places[wire.name] = places

    def _used_outside(self, name: str, port: str) -> set[int]:
        used = set()
        for parent, cell in self.parents[name]:
            live = self.facts[parent].live
            value = cell.ports.get(port.removeprefix("\\"), [])
            used |= {i for i, bit in enumerate(value) if bit in live}
        return used


def _facts(module: Module, modules: dict[str, Module]) -> Facts:
    facts = Facts(module)
    before = -1
    while before != len(module.cells) + len(module.processes):  # an alias may make another one
        before = len(module.cells) + len(module.processes)
        module.cells = [cell for cell in module.cells if not _is_alias(module, cell)]
        for process in module.processes:
            process.body = _resolved(module, process.body)
        module.processes = [p for p in module.processes if not _is_same(module, p)]
    for cell in module.cells:
        drives = set(_outputs(cell, modules))
        for port, bits in cell.ports.items():
            if port not in drives:
                cell.ports[port] = module.resolve(bits)
        for port in drives:
            facts.driver.update(dict.fromkeys(cell.ports[port], cell))
        if cell.kind in ("$memrd_v2", "$memwr_v2"):
            facts.readers[memory_name(cell)].append(cell)
    for process in module.processes:
        process.body = _resolved(module, process.body)
        facts.driver.update(dict.fromkeys(targets(process), process))
        _process_needs(process.body, [], facts.needs)
    return facts


def _outputs(cell: Cell, modules: dict[str, Module]) -> Iterator[str]:
    """Names of a cell's outputs."""
    if cell.kind.startswith("$"):
        yield from (name for name in OUTPUTS if name in cell.ports and cell.kind != "$memwr_v2")
        return
    child = modules.get(cell.kind.removeprefix("\\"))
    if child is not None:
        yield from (w.name.removeprefix("\\") for w in child.ports if w.port == "output")
    else:
        outputs = BLACK_BOXES[cell.kind.removeprefix("\\")]
        yield from (name for name in outputs if name in cell.ports)


BLACK_BOXES = {
    "CCU2C": ("S0", "S1", "COUT"),
    "DP16KD": tuple(f"DO{side}{i}" for side in "AB" for i in range(18)),
    "MULT18X18D": tuple(f"P{i}" for i in range(36)),
}
"""Outputs of the cells that are no module of the design."""


def _is_alias(module: Module, cell: Cell) -> bool:
    """Whether a cell computes nothing; its output then is an alias: of a shifted value, or of what
    operators make of values without bits."""
    kind = cell.kind
    if kind in SHIFTS and all(bit < 0 for bit in cell.ports["B"]):
        _alias_shift(module, cell)
        return True
    if kind in NEUTRAL and _is_neutral(module, cell):
        return True
    if kind in COMPARISONS and (known := _known(module, cell)) is not None:
        module.alias[cell.ports["Y"][0]] = known
        return True
    if kind in EMPTY and not any(cell.ports[port] for port in "AB" if port in cell.ports):
        module.alias[cell.ports["Y"][0]] = EMPTY[kind]
        return True
    return kind.startswith("$") and kind != "$memwr_v2" and not result(cell)


def _is_neutral(module: Module, cell: Cell) -> bool:
    """Whether an operator has a constant that leaves the other operand as it is."""
    out = cell.ports["Y"]
    sides = [module.resolve(operand(cell, port, len(out))) for port in "AB"]
    orders = [sides[::-1]] if cell.kind == "$sub" else [sides, sides[::-1]]
    for constant, other in orders:
        if all(bit == NEUTRAL[cell.kind] for bit in constant):
            module.alias.update(zip(out, other, strict=True))
            return True
    return False


def _known(module: Module, cell: Cell) -> int | None:
    """The result of an unsigned comparison with the least or the greatest number, where it is
    always the same."""
    if cell.kind in ("$eq", "$ne") or cell.number("A_SIGNED"):
        return None
    width = compared_width(cell)
    a, b = (module.resolve(operand(cell, port, width)) for port in "AB")
    if cell.kind in ("$gt", "$le"):
        least = all(bit == ZERO for bit in a) or all(bit == ONE for bit in b)
        return {"$gt": ZERO, "$le": ONE}[cell.kind] if least else None
    least = all(bit == ONE for bit in a) or all(bit == ZERO for bit in b)
    return {"$lt": ZERO, "$ge": ONE}[cell.kind] if least else None


def _is_same(module: Module, process: Process) -> bool:
    """Whether a process asks nothing, or gives the same whatever it asks; its value is an alias."""
    found: dict[int, int] = {}
    plain = all(isinstance(statement, Assign) for statement in process.body)
    for assign in process.assigns():
        rhs = module.resolve(assign.rhs)
        if plain:
            found.update(zip(assign.lhs, rhs, strict=True))
        elif any(found.setdefault(b, r) != r for b, r in zip(assign.lhs, rhs, strict=True)):
            return False
    module.alias.update(found)
    return True


def _alias_shift(module: Module, cell: Cell) -> None:
    """A shift by a constant is but another name."""
    distance = sum(1 << i for i, bit in enumerate(cell.ports["B"]) if bit == ONE)
    out = cell.ports["Y"]
    bits = cell.ports["A"]
    filling = bits[-1] if cell.number("A_SIGNED") and bits else ZERO
    if cell.kind == "$shl":
        wide = [ZERO] * distance + bits
    elif cell.kind == "$sshr":
        wide = bits[distance:]
    else:
        wide = (bits + [filling] * (len(out) - len(bits)))[distance:]
        filling = ZERO
    wide = wide + [filling] * (len(out) - len(wide))
    module.alias.update(zip(out, wide, strict=False))


def _resolved(module: Module, body: list[Statement]) -> list[Statement]:
    """Statements with aliases followed, and of what asks for a constant the case that it takes."""
    found: list[Statement] = []
    for statement in body:
        if isinstance(statement, Assign):
            found.append(Assign(statement.lhs, module.resolve(statement.rhs)))
            continue
        select = module.resolve(statement.select)
        if all(bit in (ZERO, ONE) for bit in select):
            digits = "".join("1" if bit == ONE else "0" for bit in reversed(select))
            for patterns, inner in statement.cases:
                if not patterns or any(_matches(pattern, digits) for pattern in patterns):
                    found += _resolved(module, inner)
                    break
            continue
        cases = [(patterns, _resolved(module, inner)) for patterns, inner in statement.cases]
        found.append(Switch(select, cases))
    return found


def _matches(pattern: str, digits: str) -> bool:
    return all(p in ("-", d) for p, d in zip(pattern, digits, strict=True))


def _process_needs(body: list[Statement], conditions: Bits, needs: dict[int, set[int]]) -> None:
    for statement in body:
        if isinstance(statement, Switch):
            for _, inner in statement.cases:
                _process_needs(inner, [*conditions, *statement.select], needs)
        else:
            for left, right in zip(statement.lhs, statement.rhs, strict=True):
                needs.setdefault(left, set()).update([right, *conditions])


def _operands(facts: Facts, cell: Cell, bit: int) -> Bits:
    """What a bit is made of that an operator, register, memory or vendor's cell drives."""
    ports, kind = cell.ports, cell.kind
    if not kind.startswith("$"):
        return [b for name, bits in ports.items() for b in bits if facts.driver.get(b) is not cell]
    out = result(cell)
    place = bit - out[0]
    if kind == "$dff":
        return [ports["D"][place], *ports["CLK"]]
    if kind == "$mux":
        return [ports["A"][place], ports["B"][place], *ports["S"]]
    if kind in BITWISE:
        return [operand(cell, port, len(out))[place] for port in "AB"]
    if kind == "$not":
        return [operand(cell, "A", len(out))[place]]
    if kind in RISING:
        sources = [operand(cell, port, len(out)) for port in "AB" if port in ports]
        return [b for source in sources for b in source[: place + 1]]
    if kind == "$memrd_v2":
        found = [b for name in ("ADDR", "EN", "CLK") for b in ports[name]]
        for other in facts.readers[memory_name(cell)]:
            if other.kind == "$memwr_v2":
                found += [b for bits in other.ports.values() for b in bits]
        return found
    return [b for name, bits in ports.items() if name not in OUTPUTS for b in bits]
