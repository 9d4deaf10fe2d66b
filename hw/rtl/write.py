"""A module as Verilog-2001 in which every width is right by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from lichen.hw.rtl.names import Names
from lichen.hw.rtl.netlist import (
    ONE,
    Assign,
    Bits,
    Cell,
    Memory,
    Process,
    Statement,
    Switch,
)
from lichen.hw.rtl.prune import (
    BITWISE,
    BLACK_BOXES,
    COMPARISONS,
    RISING,
    Design,
    compared_width,
    operand,
    result,
    targets,
)
from lichen.hw.rtl.text import (
    WIDTH,
    Text,
    bare,
    broken,
    constant,
    listed,
    parameter,
    span,
    switch,
)
from lichen.hw.rtl.values import Values

_BINARY = {
    **{"$add": "+", "$sub": "-", "$mul": "*", "$and": "&", "$or": "|", "$xor": "^", "$xnor": "~^"},
    **{"$eq": "==", "$ne": "!=", "$lt": "<", "$le": "<=", "$gt": ">", "$ge": ">="},
    **{"$shl": "<<", "$shr": ">>", "$sshr": ">>>", "$shift": ">>"},
}
_UNARY = {
    **{"$not": "~", "$neg": "-", "$reduce_or": "|", "$reduce_and": "&", "$reduce_xor": "^"},
    **{"$reduce_bool": "|", "$logic_not": "~|"},
}


class Writer(Values):
    """Writes one module of a design.

    Parameters
    ----------
    design : Design
    name : str
        Its name there.
    modules : dict of str to str
        Identifiers of all modules by their names.
    ports : dict of str to dict of str to str
        Identifiers of the ports of the modules below it; its own are added.
    """

    def __init__(
        self,
        design: Design,
        name: str,
        modules: dict[str, str],
        ports: dict[str, dict[str, str]],
    ):
        super().__init__(design, name, modules, ports)
        self._registers = self._absorbed()

    def write(self) -> str:
        """The module's text, from ``module`` to ``endmodule``."""
        self._name_wires()
        taken = self.names
        self._sink_dead_bits()
        for final in (False, True):
            self.names = Names(taken._taken)
            text = Text()
            self._memories(text)
            self._cells(text, final=final)
            self._processes(text)
            self._outputs(text)
            self._sink(text)
            if not final:
                uses, self._uses = self._uses, Counter()
                self._inlined = {
                    start: function
                    for start, function in self._candidates().items()
                    if uses[start] == 1
                }
        return self._assemble(text)

    # Cells

    def _candidates(self) -> dict[int, Callable[[], str]]:
        """Operators without a name whose text can stand where their value is wanted."""
        found: dict[int, Callable[[], str]] = {}
        for cell in self.module.cells:
            if cell.kind not in (*_UNARY, *BITWISE, *COMPARISONS, "$mux", "$add", "$sub"):
                continue
            out = result(cell)
            wire = self.module.owner(out[0])
            if not wire.name.startswith("$") or not self.facts.alive(out):
                continue
            if any(bit in out for bit in self.sunk):
                continue
            found[wire.start] = lambda cell=cell: self._operator(cell)  # type: ignore[misc]
        return found

    def _operator(self, cell: Cell) -> str:
        """The right side of an operator."""
        kind, out = cell.kind, result(cell)
        kept = [i for i, bit in enumerate(out) if self._exists(bit)]
        if kind == "$mux":
            a, b = (self.value([cell.ports[port][i] for i in kept]) for port in "AB")
            return f"{self.value(cell.ports['S'])} ? {b} : {a}"
        if kind in _UNARY:
            if kind in ("$not", "$neg"):
                width = kept[-1] + 1
                bits = operand(cell, "A", width)
                if kind == "$not":
                    bits = [bits[i] for i in kept]
            else:
                bits = cell.ports["A"]
            return f"{_UNARY[kind]}{self.value(bits)}"
        if kind not in (*BITWISE, *RISING, *COMPARISONS):
            raise NotImplementedError(f"no Verilog for the cell {kind}")
        sign = _BINARY[kind]
        if kind in BITWISE:
            sides = [[operand(cell, p, len(out))[i] for i in kept] for p in "AB"]
            return f" {sign} ".join(self.value(side) for side in sides)
        signed = False
        if kind in RISING:
            sides = [operand(cell, port, kept[-1] + 1) for port in "AB"]
            signed = kind == "$mul" and bool(cell.number("A_SIGNED"))
        else:
            sides = [operand(cell, port, compared_width(cell)) for port in "AB"]
            signed = kind not in ("$eq", "$ne") and bool(cell.number("A_SIGNED"))
        texts = [self.value(side) for side in sides]
        if signed:
            texts = [f"$signed({text})" for text in texts]
        return f" {sign} ".join(texts)

    def _cells(self, text: Text, *, final: bool) -> None:
        for cell in self.module.cells:
            if cell.kind in ("$memrd_v2", "$memwr_v2"):
                continue
            if not cell.kind.startswith("$"):
                self._instance(cell, text)
                continue
            out = self._kept(result(cell))
            if not out or not self.facts.alive(result(cell)):
                continue
            if cell.kind == "$dff":
                self._register(cell, text)
                continue
            self._declare(out, text)
            if cell.kind in ("$shl", "$shr", "$sshr", "$shift"):
                self._shift(cell, text)
                continue
            start = self.module.owner(out[0]).start
            if start in self._inlined:
                text.declarations.pop()
                continue
            text.body.append(f"assign {self._left(out)} = {self._operator(cell)};")

    def _shift(self, cell: Cell, text: Text) -> None:
        """A shift by a value, in a width that holds all of the operand and of the result."""
        out = self._kept(result(cell))
        width = len(result(cell))
        if cell.kind != "$shl":
            width = max(width, len(cell.ports["A"]))
        signed = cell.kind == "$sshr"
        if cell.kind == "$shift" and cell.number("A_SIGNED"):
            raise NotImplementedError("no Verilog for a part of a signed value")
        source = self.value(operand(cell, "A", width))
        if signed:
            source = f"$signed({source})"
        expression = f"{source} {_BINARY[cell.kind]} {self.value(cell.ports['B'])}"
        if width == len(out):
            text.body.append(f"assign {self._left(out)} = {expression};")
            return
        name = self.names.add("shifted")
        text.declarations.append(f"wire [{width - 1}:0] {name};")
        text.body.append(f"assign {name} = {expression};")
        text.body.append(f"assign {self._left(out)} = {name}[{len(out) - 1}:0];")
        self._extra.append(f"{name}[{width - 1}:{len(out)}]")

    # Registers

    def _absorbed(self) -> dict[int, Process]:
        """Processes that make nothing but what a register takes, by the register's first bit."""
        readers: Counter[int] = Counter()
        for cell in self.module.cells:
            for bits in cell.ports.values():
                readers.update(bits)
        for process in self.module.processes:
            readers.update(targets(process))  # as a driver, once
            for statement in process.assigns():
                readers.update(bit for bit in statement.rhs)
            readers.update(_selects(process.body))
        for wire in self.module.wires:
            if wire.port == "output":
                readers.update(self.module.resolve(wire.bits))
        found: dict[int, Process] = {}
        for cell in self.module.cells:
            if cell.kind != "$dff":
                continue
            driver = self.facts.driver.get(cell.ports["D"][0])
            if (
                isinstance(driver, Process)
                and targets(driver) == cell.ports["D"]
                and all(readers[bit] == 2 for bit in cell.ports["D"])
            ):
                found[cell.ports["Q"][0]] = driver
        return found

    def _register(self, cell: Cell, text: Text) -> None:
        out = cell.ports["Q"]
        kept = self._kept(out)
        self._declare(kept, text, "reg")
        clock = self.value(cell.ports["CLK"])
        lines = text.clocked.setdefault(clock, [])
        process = self._registers.get(out[0])
        wire = self.module.owner(out[0])
        if wire.init:
            bits = [ONE if digit == "1" else -1 for digit in reversed(wire.init)]
            value = constant([bits[b - wire.start] for b in kept])
            text.initial.append(f"{self._left(kept)} = {value};")
        if process is None:
            source = [d for d, q in zip(cell.ports["D"], out, strict=True) if self._exists(q)]
            lines.append(f"{self._left(kept)} <= {bare(self.value(source))};")
            return
        to_q = dict(zip(cell.ports["D"], out, strict=True))
        body = process.body
        first = body[0]
        if isinstance(first, Assign) and [to_q[b] for b in first.lhs] == first.rhs:
            body = body[1:]  # it stays what it is
        lines += self._statements(body, "<=", lambda bits: [to_q[b] for b in bits])

    # Processes

    def _processes(self, text: Text) -> None:
        absorbed = {id(process) for process in self._registers.values()}
        for process in self.module.processes:
            out = self._kept(targets(process))
            if id(process) in absorbed or not out:
                continue
            self._declare(out, text)
            single = self._chain(process, out)
            if single is not None:
                text.body.append(f"assign {self._left(out)} = {single};")
            else:
                self._function(process, out, text)

    def _chain(self, process: Process, out: Bits) -> str | None:
        """A process that asks one bit at a time, as nested ``?:``; None if it does more."""
        place = {bit: i for i, bit in enumerate(out)}

        def rhs(assign: Assign) -> str | None:
            pairs = [
                (place[b], r) for b, r in zip(assign.lhs, assign.rhs, strict=True) if b in place
            ]
            if [i for i, _ in pairs] != list(range(len(out))):
                return None
            return self.value([r for _, r in pairs])

        value: str | None = None
        for statement in process.body:
            if isinstance(statement, Assign):
                if value is not None and any(b in place for b in statement.lhs):
                    return None
                value = rhs(statement)
                continue
            if value is None or len(statement.select) != 1 or len(value) > WIDTH:
                return None
            arms = {"0": value, "1": value}
            for patterns, body in reversed(statement.cases):
                if len(body) > 1 or (body and isinstance(body[0], Switch)):
                    return None
                inner = rhs(body[0]) if body and isinstance(body[0], Assign) else value
                if inner is None:
                    return None
                for pattern in patterns or ["0", "1"]:
                    arms[pattern] = inner
            if arms["0"] != arms["1"]:
                value = f"{self.value(statement.select)} ? {arms['1']} : {arms['0']}"
                if arms["1"].count("?"):
                    return None
        return value

    def _function(self, process: Process, out: Bits, text: Text) -> None:
        """A process as a function of all it reads: unlike a block, it has a value from the start
        in every simulator."""
        name = self.names.add("next_" + self._left(out).split("[")[0].strip("{"))
        arguments: dict[str, tuple[str, int]] = {}

        def argument(bits: Bits) -> str:
            if all(bit < 0 for bit in bits):
                return constant(bits)
            shown = self.value(bits)
            if shown not in arguments:
                plain = "".join(c if c.isalnum() or c == "_" else "_" for c in shown)
                if len(plain) > 24:
                    plain = "value"
                arguments[shown] = (self.names.add(f"{plain}_in"), len(bits))
            return arguments[shown][0]

        place = {bit: i for i, bit in enumerate(out)}

        def target(bits: Bits) -> str:
            first, last = place[bits[0]], place[bits[-1]]
            if len(bits) == len(out):
                return name
            return f"{name}[{last}]" if len(bits) == 1 else f"{name}[{last}:{first}]"

        lines = self._statements(process.body, "=", lambda bits: bits, argument, target)
        text.body.append(f"function {span(len(out))}{name};")
        for ident, width in arguments.values():
            text.body.append(f"  input {span(width)}{ident};")
        text.body += [
            "  begin",
            *(f"    {line}" for line in lines),
            "  end",
            "endfunction",
        ]
        text.body.append(f"assign {self._left(out)} = {name}({', '.join(arguments)});")

    def _statements(
        self,
        body: Iterable[Statement],
        becomes: str,
        renamed: Callable[[Bits], Bits],
        value: Callable[[Bits], str] | None = None,
        target: Callable[[Bits], str] | None = None,
    ) -> list[str]:
        """Statements of a block; empty where none of them drives anything that is written."""
        show, left = value or self.value, target or self._left
        lines: list[str] = []
        for statement in body:
            if isinstance(statement, Assign):
                for lhs, rhs in _runs(renamed(statement.lhs), statement.rhs, self._exists):
                    lines.append(f"{left(lhs)} {becomes} {bare(show(rhs))};")
                continue
            arms = [
                (patterns, self._statements(inner, becomes, renamed, value, target))
                for patterns, inner in statement.cases
            ]
            if any(lines for _, lines in arms):
                lines += switch(statement.select, arms, show)
        return lines

    # Memories

    def _memories(self, text: Text) -> None:
        self._extra: list[str] = []
        self._port_registers.clear()
        for memory in self.module.memories.values():
            parts = self.facts.readers[memory.name]
            reads = [c for c in parts if c.kind == "$memrd_v2" and self.facts.alive(result(c))]
            if not reads:
                continue
            name = self.names.add(memory.name[1:])
            attributes = ", ".join(
                f"{key} = " + (value if value.isdigit() else f'"{value}"')
                for key, value in sorted(memory.attributes.items())
            )
            if attributes:
                text.declarations.append(f"(* {attributes} *)")
            text.declarations.append(f"reg {span(memory.width)}{name} [0:{memory.depth - 1}];")
            self._memory_words(memory, name, text)
            for cell in parts:
                if cell.kind == "$memwr_v2":
                    self._write_port(cell, memory, name, text)
            for cell in reads:
                self._read_port(cell, name, text)

    def _memory_words(self, memory: Memory, name: str, text: Text) -> None:
        words = memory.init + [0] * (memory.depth - len(memory.init))
        if not any(words):
            index = self.names.add("i")
            text.declarations.append(f"integer {index};")
            text.initial.append(
                f"for ({index} = 0; {index} < {memory.depth}; {index} = {index} + 1) "
                f"{name}[{index}] = {memory.width}'d0;"
            )
            return
        digits = (memory.width + 3) // 4
        text.initial += [
            f"{name}[{i}] = {memory.width}'h{word:0{digits}x};" for i, word in enumerate(words)
        ]

    def _write_port(self, cell: Cell, memory: Memory, name: str, text: Text) -> None:
        ports = cell.ports
        lines = text.clocked.setdefault(self.value(ports["CLK"]), [])
        if len(set(ports["EN"])) != 1:
            raise NotImplementedError("no Verilog for a memory written in parts of words")
        store = f"{name}[{self.value(ports['ADDR'])}] <= {self.value(ports['DATA'])};"
        if ports["EN"][0] == ONE:
            lines.append(store)
        else:
            lines += [f"if ({bare(self.value(ports['EN'][:1]))})", f"  {store}"]

    def _read_port(self, cell: Cell, name: str, text: Text) -> None:
        ports = cell.ports
        out = self._kept(ports["DATA"])
        word = f"{name}[{self.value(ports['ADDR'])}]" if ports["ADDR"] else f"{name}[0]"
        whole = len(out) == len(ports["DATA"])
        if not whole:  # the rest of the word goes to the sink
            wide = self.names.add(f"{name}_word")
            text.declarations.append(f"wire [{len(ports['DATA']) - 1}:0] {wide};")
            text.body.append(f"assign {wide} = {word};")
            word = f"{wide}[{len(out) - 1}:0]"
            self._extra.append(f"{wide}[{len(ports['DATA']) - 1}:{len(out)}]")
        if not cell.number("CLK_ENABLE"):
            self._declare(out, text)
            text.body.append(f"assign {self._left(out)} = {word};")
            return
        self._declare(out, text, "reg")
        lines = text.clocked.setdefault(self.value(ports["CLK"]), [])
        load = f"{self._left(out)} <= {word};"
        if ports["EN"] == [ONE]:
            lines.append(load)
        else:
            lines += [f"if ({bare(self.value(ports['EN']))})", f"  {load}"]

    # Instances

    def _instance(self, cell: Cell, text: Text) -> None:
        child = self.design.child(cell)
        kind = cell.kind.removeprefix("\\")
        if child is None:
            outputs = set(BLACK_BOXES[kind])
        else:
            module = self.design.modules[child]
            outputs = {w.name.removeprefix("\\") for w in module.ports if w.port == "output"}
        if not any(self.facts.alive(cell.ports[p]) for p in outputs if p in cell.ports):
            return
        name = self.names.add(cell.name[1:])
        lines = []
        for port, bits in cell.ports.items():
            ident = port
            if child is not None:
                if port not in self.ports[child]:
                    continue
                ident = self.ports[child][port]
                bits = [bits[i] for i in self.design.facts[child].port_places["\\" + port]]
            if port in outputs:
                self._declare_once(self._kept(bits), text)
                lines.append(f".{ident}({self._receiver(bits, f'{name}_{ident}', text)})")
            else:
                lines.append(f".{ident}({self.value(bits)})")
        if child is None:
            for ident in BLACK_BOXES[kind]:
                if ident not in cell.ports:
                    open_ = f"{self.names.add(f'{name}_{ident}')}_unused"
                    text.declarations.append(f"wire {open_};")
                    lines.append(f".{ident}({open_})")
        head = f"{self.modules[child] if child is not None else kind} "
        parameters = [f".{k}({parameter(v)})" for k, v in cell.parameters.items()]
        if parameters:
            text.body += [head + "#(", *listed(parameters), f") {name} ("]
        else:
            text.body.append(f"{head}{name} (")
        text.body += [*listed(lines), ");"]

    def _declare_once(self, bits: Bits, text: Text) -> None:
        for wire in {id(w): w for w in map(self.module.owner, bits)}.values():
            line = f"wire {span(self.places[wire.start].width)}{self.places[wire.start].name};"
            if not wire.port and line not in text.declarations:
                text.declarations.append(line)

    def _receiver(self, bits: Bits, label: str, text: Text) -> str:
        """What an output drives: bits that nobody reads go to a wire that says so."""
        kept = self._kept(bits)
        if len(kept) == len(bits):
            return self._left(bits)
        name = self.names.add(label)
        name = f"{name}_unused"
        text.declarations.append(f"wire {span(len(bits) - len(kept))}{name};")
        parts: list[str] = []
        free = len(bits) - len(kept)
        run: Bits = []
        missing = 0

        def flush() -> None:
            nonlocal run, missing, free
            if run:
                parts.append(self._left(list(reversed(run))))
            if missing:
                if free == missing == len(bits) - len(kept):
                    parts.append(name)
                else:
                    high, low = free - 1, free - missing
                    parts.append(f"{name}[{high}]" if high == low else f"{name}[{high}:{low}]")
                free -= missing
            run, missing = [], 0

        for bit in reversed(bits):
            if self._exists(bit):
                if missing:
                    flush()
                run.append(bit)
            else:
                if run:
                    flush()
                missing += 1
        flush()
        return parts[0] if len(parts) == 1 else "{" + ", ".join(parts) + "}"

    # Ends

    def _outputs(self, text: Text) -> None:
        """Outputs that are other names of something."""
        for wire in self._ports:
            if wire.port != "output" or wire.start not in self.places:
                continue
            resolved = self.module.resolve(wire.bits)
            if resolved == wire.bits:
                continue
            place = self.places[wire.start]
            source = bare(self.value([resolved[i] for i in place.places]))
            text.body.append(f"assign {place.name} = {source};")

    def _sink(self, text: Text) -> None:
        """Bits that a sum or a memory makes and nobody needs, told to linters."""
        shown = []
        by_wire: dict[int, Bits] = {}
        for bit in self.sunk:
            by_wire.setdefault(self.module.owner(bit).start, []).append(bit)
        for bits in by_wire.values():
            shown.append(self.value(bits))
        shown += self._extra
        if shown:
            text.declarations.append("wire unused;")
            text.body.append(f"assign unused = &{{1'b0, {', '.join(shown)}}};")

    def _assemble(self, text: Text) -> str:
        heads = []
        for wire in self._ports:
            place = self.places.get(wire.start)
            if place is None:
                continue
            kind = "reg" if wire.start in self._port_registers else "wire"
            heads.append(f"{wire.port} {kind} {span(place.width)}{place.name}")
        lines = [f"module {self.modules[self.name]} ("]
        lines += [*listed(heads, "    "), ");"]
        lines += [f"  {line}" for line in text.declarations]
        if text.initial:
            lines += ["", "  initial begin", *(f"    {s}" for s in text.initial), "  end"]
        if text.body:
            lines += ["", *(f"  {line}" for line in text.body)]
        for clock, statements in text.clocked.items():
            lines += ["", f"  always @(posedge {clock}) begin"]
            lines += [*(f"    {line}" for line in statements), "  end"]
        lines.append("endmodule")
        return "".join(f"{line}\n" for long in lines for line in broken(long))


def _selects(body: Iterable[Statement]) -> list[int]:
    found: list[int] = []
    for statement in body:
        if isinstance(statement, Switch):
            found += statement.select
            for _, inner in statement.cases:
                found += _selects(inner)
    return found


def _runs(lhs: Bits, rhs: Bits, exists: Callable[[int], bool]) -> list[tuple[Bits, Bits]]:
    """An assignment's bits that exist, in one piece: bits in a row stay in a row when others are
    left out."""
    pairs = [(left, right) for left, right in zip(lhs, rhs, strict=True) if exists(left)]
    return [([p[0] for p in pairs], [p[1] for p in pairs])] if pairs else []


__all__ = ["Writer"]
