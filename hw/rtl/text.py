"""Pieces of Verilog as text: constants, lists, lines that fit, choices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from lichen.hw.rtl.netlist import ONE, UNKNOWN, Bits

WIDTH = 100
"""Columns of a line, where it can be broken."""


@dataclass
class Text:
    """A module's declarations and statements."""

    declarations: list[str] = field(default_factory=list)
    initial: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    clocked: dict[str, list[str]] = field(default_factory=dict)


def constant(bits: Bits) -> str:
    """A constant: decimal where that is short."""
    if UNKNOWN in bits:
        digits = "".join({ONE: "1", UNKNOWN: "x"}.get(bit, "0") for bit in reversed(bits))
        return f"{len(bits)}'b{digits}"
    value = sum(1 << i for i, bit in enumerate(bits) if bit == ONE)
    if len(bits) == 1:
        return f"1'b{value}"
    return f"{len(bits)}'d{value}" if value < 10**6 else f"{len(bits)}'h{value:x}"


def span(width: int) -> str:
    """The range of a declaration of so many bits; nothing for one."""
    return "" if width == 1 else f"[{width - 1}:0] "


def bare(text: str) -> str:
    """An expression without parentheses around all of it."""
    if not (text.startswith("(") and text.endswith(")")):
        return text
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[1:-1] if i == len(text) - 1 else text
    return text


def parameter(value: str) -> str:
    """A parameter as RTLIL has it, in Verilog."""
    if value.startswith('"'):
        return value
    if "'" in value:
        width, digits = value.split("'")
        if int(width) >= 32:
            return f"{width}'h{int(digits, 2):0{int(width) // 4}x}"
        return f"{width}'h{int(digits, 2):x}"
    return value


def listed(items: list[str], indent: str = "    ") -> list[str]:
    """Items with a comma after each but the last."""
    return [f"{indent}{item}{',' if i < len(items) - 1 else ''}" for i, item in enumerate(items)]


def broken(line: str) -> list[str]:
    """A line, in as many as it takes to stay within `WIDTH`."""
    if len(line) <= WIDTH or ", " not in line:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    lines = [""]
    for part in line.split(", "):
        if len(lines[-1]) + len(part) > WIDTH - 1 and lines[-1].strip():
            lines.append(indent)
        lines[-1] += part + ", "
    return [text.rstrip() for text in lines[:-1]] + [lines[-1].removesuffix(", ")]


def indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def switch(
    select: Bits, arms: list[tuple[list[str], list[str]]], show: Callable[[Bits], str]
) -> list[str]:
    """``if`` where patterns ask one bit at a time, else ``case``."""
    if not select:
        return next((lines for _, lines in arms if lines), [])
    lone = [
        len(patterns) == 1 and len(patterns[0]) - patterns[0].count("-") == 1
        for patterns, _ in arms
    ]
    if all(lone) or (all(lone[:-1]) and not arms[-1][0]) or len(select) == 1:
        return _ifs(select, arms, show)
    wild = any("-" in pattern for patterns, _ in arms for pattern in patterns)
    lines = [f"{'casez' if wild else 'case'} ({bare(show(select))})"]
    if all(patterns for patterns, _ in arms) and not wild:
        arms = [arm for arm in arms if arm[1]]
    default = False
    for patterns, body in arms:
        default = default or not patterns
        label = ", ".join(f"{len(p)}'b{p.replace('-', '?')}" for p in patterns) or "default"
        if len(body) == 1:
            lines.append(f"  {label}: {body[0]}")
        elif body:
            lines += [f"  {label}: begin", *(f"    {line}" for line in body), "  end"]
        else:
            lines.append(f"  {label}: ;")
    if not default:
        lines.append("  default: ;")
    return [*lines, "endcase"]


def _ifs(
    select: Bits, arms: list[tuple[list[str], list[str]]], show: Callable[[Bits], str]
) -> list[str]:
    lines: list[str] = []
    arms = list(arms)
    while arms and not arms[-1][1]:
        arms.pop()
    seen: set[str] = set()
    for patterns, body in arms:
        if patterns:
            pattern = patterns[0]
            place = next(i for i, digit in enumerate(pattern) if digit != "-")
            bit = [select[len(pattern) - 1 - place]]
            test = bare(show(bit)) if pattern[place] == "1" else f"!{show(bit)}"
            last = len(select) == 1 and seen == {"0" if pattern == "1" else "1"}
            seen.add(pattern)
            head = "else" if last else f"{'else ' if lines else ''}if ({test})"
        else:
            head = "else"
        inner = body or [";"]
        if len(inner) == 1 and not inner[0].startswith("if"):
            lines += [head, f"  {inner[0]}"]
        else:
            lines += [f"{head} begin", *indented(inner), "end"]
    return lines
