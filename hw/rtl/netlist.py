"""The netlist that Amaranth makes (RTLIL), read into records: modules, cells, processes.

Values are lists of *bits*, the lowest first. A bit is a number: that of a wire's first bit plus its
place in the wire, or `ZERO`, `ONE` or `UNKNOWN`.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

ZERO, ONE, UNKNOWN = -1, -2, -3
Bits = list[int]

_CONSTANTS = {"0": ZERO, "1": ONE, "x": UNKNOWN}
_TOKEN = re.compile(r"\{|\}|\d+'[01x-]*|[\\$]\S+(?: \[\d+(?::\d+)?\])?")
_SLICE = re.compile(r"(\S+) \[(\d+)(?::(\d+))?\]")


@dataclass
class Wire:
    """A named value.

    Attributes
    ----------
    name : str
        As Amaranth calls it, with its first character, ``\\`` for names and ``$`` for others.
    start, width : int
        Number of the first bit; how many.
    port : str
        ``input``, ``output`` or empty.
    init : str
        Initial value of a register, highest bit first; empty for none.
    """

    name: str
    start: int
    width: int
    port: str = ""
    init: str = ""

    @property
    def bits(self) -> Bits:
        return list(range(self.start, self.start + self.width))


@dataclass
class Cell:
    """An operator (``$add``, ..), a part of a memory, a register, or an instance of a module."""

    kind: str
    name: str
    parameters: dict[str, str] = field(default_factory=dict)
    ports: dict[str, Bits] = field(default_factory=dict)

    def number(self, parameter: str) -> int:
        """A parameter as a non-negative number."""
        return _number(self.parameters[parameter])


@dataclass
class Assign:
    """``lhs`` takes ``rhs``, unless something later overrides it."""

    lhs: Bits
    rhs: Bits


@dataclass
class Switch:
    """The first case of which a pattern matches ``select``; no pattern matches always.

    Patterns are of ``0``, ``1`` and ``-``, highest bit first.
    """

    select: Bits
    cases: list[tuple[list[str], list[Statement]]]


Statement = Assign | Switch


@dataclass
class Process:
    """Statements that make a value of others, without memory."""

    body: list[Statement]

    def assigns(self) -> Iterator[Assign]:
        """All assignments, outer ones first."""
        return assigns(self.body)


@dataclass
class Memory:
    """Words of a memory; ``init`` has its first ones as numbers."""

    name: str
    width: int
    depth: int
    attributes: dict[str, str]
    init: list[int] = field(default_factory=list)


@dataclass
class Module:
    """A module.

    Attributes
    ----------
    name : str
        Path from the top, parts joined by dots.
    alias : dict of int to int
        Bits that are but other names, and what they are names of.
    """

    name: str
    wires: list[Wire] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    memories: dict[str, Memory] = field(default_factory=dict)
    alias: dict[int, int] = field(default_factory=dict)

    @property
    def ports(self) -> list[Wire]:
        return [wire for wire in self.wires if wire.port]

    def owner(self, bit: int) -> Wire:
        """The wire a bit belongs to."""
        return self.wires[bisect.bisect_right(self._starts, bit) - 1]

    def seal(self) -> None:
        """Call when all wires are there."""
        self.wires = [wire for wire in self.wires if wire.width]
        self._starts = [wire.start for wire in self.wires]

    def resolve(self, bits: Bits) -> Bits:
        """What bits are once all aliases are followed."""
        return [self._resolve(bit) for bit in bits]

    def _resolve(self, bit: int) -> int:
        while bit in self.alias:
            bit = self.alias[bit]
        return bit


def assigns(body: list[Statement]) -> Iterator[Assign]:
    """All assignments of statements, outer ones first."""
    for statement in body:
        if isinstance(statement, Assign):
            yield statement
        else:
            for _, inner in statement.cases:
                yield from assigns(inner)


def _number(text: str) -> int:
    return int(text.split("'")[1] or "0", 2) if "'" in text else int(text)


class _Reader:
    """Reads the lines of one module."""

    def __init__(self, lines: list[str]):
        self.lines = lines
        self.at = 0
        self.names: dict[str, Wire] = {}
        self.bits = 0

    def next(self) -> str:
        line = self.lines[self.at].strip()
        self.at += 1
        return line

    def value(self, text: str) -> Bits:
        parts: list[Bits] = []
        for token in _TOKEN.findall(text):
            if token in "{}":
                continue
            if token[0].isdigit():
                digits = token.split("'")[1]
                parts.append([_CONSTANTS[digit] for digit in reversed(digits)])
                continue
            found = _SLICE.fullmatch(token)
            if found is None:
                parts.append(self.names[token].bits)
            else:
                wire, high = self.names[found[1]], int(found[2])
                low = high if found[3] is None else int(found[3])
                parts.append(list(range(wire.start + low, wire.start + high + 1)))
        return [bit for part in reversed(parts) for bit in part]

    def module(self) -> Module:
        module = Module(self.next().split(" ", 1)[1].removeprefix("\\"))
        attributes: dict[str, str] = {}
        while self.at < len(self.lines):
            line = self.next()
            word, _, rest = line.partition(" ")
            if word == "attribute":
                name, _, value = rest.partition(" ")
                attributes[name.removeprefix("\\")] = value
                continue
            if word == "wire":
                self._wire(module, rest, attributes)
            elif word == "memory":
                width, depth, name = re.fullmatch(  # type: ignore[union-attr]
                    r"width (\d+) size (\d+) (\S+)", rest
                ).groups()
                module.memories[name] = Memory(
                    name, int(width), int(depth), {k: _plain(v) for k, v in attributes.items()}
                )
            elif word == "cell":
                self._cell(module, rest)
            elif word == "process":
                module.processes.append(Process(self._body()))
                self.next()
            elif word == "connect":
                lhs, rhs = self._pair(rest)
                module.alias.update(zip(lhs, rhs, strict=True))
            attributes = {}
        module.seal()
        return module

    def _wire(self, module: Module, text: str, attributes: dict[str, str]) -> None:
        words = text.split()
        port = next((word for word in words if word in ("input", "output")), "")
        init = attributes.get("init", "")
        wire = Wire(
            words[-1], self.bits, int(words[1]), port, init.split("'")[1] if "'" in init else ""
        )
        self.bits += wire.width
        self.names[wire.name] = wire
        module.wires.append(wire)

    def _cell(self, module: Module, text: str) -> None:
        kind, name = text.split()
        cell = Cell(kind, name)
        while (line := self.next()) != "end":
            word, _, rest = line.partition(" ")
            if word == "parameter":
                rest = rest.removeprefix("signed ")
                key, _, value = rest.partition(" ")
                cell.parameters[key.removeprefix("\\")] = value
            else:
                key, _, value = rest.partition(" ")
                cell.ports[key.removeprefix("\\")] = self.value(value)
        if kind == "$meminit_v2":
            memory = module.memories[memory_name(cell)]
            ones = cell.ports["DATA"]
            for start in range(0, len(ones), max(1, memory.width)):
                word_bits = ones[start : start + memory.width]
                memory.init.append(sum(1 << i for i, bit in enumerate(word_bits) if bit == ONE))
        else:
            module.cells.append(cell)

    def _pair(self, text: str) -> tuple[Bits, Bits]:
        """Two values, one after the other."""
        if text.startswith("{"):
            end = text.index("}") + 1
        else:
            found = _TOKEN.match(text)
            assert found is not None, text
            end = found.end()
        return self.value(text[:end]), self.value(text[end:])

    def _body(self) -> list[Statement]:
        """Statements up to the line that ends them, which is left."""
        body: list[Statement] = []
        while True:
            word, _, rest = self.next().partition(" ")
            if word in ("end", "case"):
                self.at -= 1
                return body
            if word == "assign":
                body.append(Assign(*self._pair(rest)))
            elif word == "switch":
                body.append(self._switch(rest))

    def _switch(self, text: str) -> Switch:
        switch = Switch(self.value(text), [])
        while (line := self.next()) != "end":
            assert line.startswith("case"), line
            patterns = [word.split("'")[1] for word in line[4:].replace(",", " ").split()]
            switch.cases.append((patterns, self._body()))
        return switch


def memory_name(cell: Cell) -> str:
    """The memory that a cell is a part of."""
    return "\\" + _plain(cell.parameters["MEMID"]).lstrip("\\")


def _plain(value: str) -> str:
    """An attribute or parameter without quotes."""
    return value[1:-1] if value.startswith('"') else value


def blocks(text: str) -> Iterator[list[str]]:
    """The lines of every module, from its head to the one before its end."""
    lines: list[str] | None = None
    for line in text.splitlines():
        if line.startswith("module "):
            lines = [line]
        elif line == "end" and lines is not None:
            yield lines
            lines = None
        elif lines is not None and line:
            lines.append(line)


def read(lines: list[str]) -> Module:
    """A module from its lines."""
    return _Reader(lines).module()


def read_design(text: str) -> tuple[dict[str, Module], dict[str, str]]:
    """Modules of a design, equal ones once.

    Parameters
    ----------
    text : str
        RTLIL in which parents come before their children, as Amaranth writes it.

    Returns
    -------
    modules : dict of str to Module
        Those that differ, by name, parents first; instances name them.
    same : dict of str to str
        For every module there was, the name of the one that stands for it.
    """
    heads = {}
    for lines in blocks(text):
        heads[lines[0].split(" ", 1)[1].removeprefix("\\")] = lines
    same: dict[str, str] = {}
    known: dict[str, str] = {}
    modules: dict[str, Module] = {}
    numbers: dict[str, dict[str, str]] = {}
    for name in reversed(heads):
        lines = heads[name]
        numbers[name] = _renumber(lines, same, numbers)
        key = "\n".join(lines[1:])
        if key not in known:
            known[key] = name
            modules[name] = read(lines)
        same[name] = known[key]
    return dict(reversed(modules.items())), same


_NUMBER = re.compile(r"\$(\d+)")
_INSTANCE = re.compile(r"  cell \\(\S+) (\S+)")


def _renumber(
    lines: list[str], same: dict[str, str], numbers: dict[str, dict[str, str]]
) -> dict[str, str]:
    """Number names in the order of a module's own lines, and let instances name what stands for
    their module; numbers by those there were. Amaranth's depend on what is elsewhere."""
    found: dict[str, str] = {}

    def number(match: re.Match[str]) -> str:
        return "$" + found.setdefault(match[1], str(len(found) + 1))

    child: dict[str, str] | None = None
    for i, line in enumerate(lines[1:], 1):
        if instance := _INSTANCE.fullmatch(line):
            child = numbers.get(instance[1])
            kind = same.get(instance[1], instance[1])
            lines[i] = f"  cell \\{kind} {_NUMBER.sub(number, instance[2])}"
        elif child is not None and line.startswith("    connect "):
            _, port, value = line.strip().split(" ", 2)
            inside = child
            port = _NUMBER.sub(lambda m, inside=inside: "$" + inside[m[1]], port)  # type: ignore[misc]
            lines[i] = f"    connect {port} {_NUMBER.sub(number, value)}"
        else:
            if line == "  end":
                child = None
            lines[i] = _NUMBER.sub(number, line)
    return found
