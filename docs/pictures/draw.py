"""Draws the pictures of the documentation: `python docs/pictures/draw.py` writes the SVG files.

No library: boxes, arrows and words, so that the files are small and their differences readable.
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent

INK, PAPER, LINE = "#1b2a22", "#ffffff", "#4d6358"
COLOURS = {"memory": "#cfe3f5", "logic": "#e4f0d8", "multiply": "#f8ddc8", "stream": "#f2eef8"}

STYLE = (
    f"<style>text{{font-family:Helvetica,Arial,sans-serif;fill:{INK}}}"
    ".t{font-size:14px;font-weight:bold}.s{font-size:11px}.h{font-size:17px;font-weight:bold}"
    "</style>"
)


class Drawing:
    """An SVG of ``width`` x ``height`` user units, collected element by element."""

    def __init__(self, width: int, height: int, title: str):
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def box(self, x: int, y: int, w: int, h: int, kind: str, *lines: str) -> None:
        """A rounded box; the first line is its name, the others say what it does."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="6" fill="{COLOURS[kind]}" '
            f'stroke="{LINE}"/>'
        )
        top = y + h / 2 - 8 * (len(lines) - 1) + 5
        for i, line in enumerate(lines):
            self.words(x + w / 2, top + 16 * i, line, "t" if i == 0 else "s", "middle")

    def words(self, x: float, y: float, text: str, style: str = "s", anchor: str = "start") -> None:
        text = text.replace("&", "&amp;").replace("<", "&lt;")
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" class="{style}" text-anchor="{anchor}">{text}</text>'
        )

    def cell(self, x: float, y: float, w: float, h: float, colour: str, text: str = "") -> None:
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" fill="{colour}" '
            f'stroke="{LINE}" stroke-width="0.5"/>'
        )
        if text:
            self.words(x + w / 2, y + h / 2 + 4, text, "s", "middle")

    def arrow(self, *points: tuple[int, int]) -> None:
        path = " ".join(f"{x},{y}" for x, y in points)
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{INK}" stroke-width="1.6" '
            'marker-end="url(#head)"/>'
        )

    def save(self, name: str) -> None:
        head = (
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>'
        )
        body = "\n".join(self.parts)
        (HERE / name).write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'role="img"><title>{self.title}</title>{STYLE}{head}'
            f'<rect width="{self.width}" height="{self.height}" fill="{PAPER}"/>\n{body}\n</svg>\n'
        )


def stage() -> None:
    """One stage: a convolution unit, and the normalization unit behind it."""
    d = Drawing(1180, 500, "A convolution with its divisive normalization, in gateware")
    d.words(20, 30, "Convolution unit", "h")
    y = 60
    d.box(20, y, 110, 60, "logic", "Regroup", "beats of S lanes")
    d.box(155, y, 90, 60, "logic", "Skid", "cuts the wires")
    d.box(270, y, 170, 60, "memory", "Window", "k + 1 rows, P banks")
    d.box(500, y, 190, 60, "multiply", "Systolic array", "P pixels x Q channels, S lanes")
    d.box(500, y + 105, 190, 50, "memory", "Weight ROM", "Q x S weights a word")
    d.box(750, y, 110, 60, "memory", "Drain", "P memories")
    d.box(885, y, 165, 60, "multiply", "Requantize", "+b, >>d, sat18, xm, >>s")
    d.box(1075, y, 85, 60, "memory", "FIFO", "credits")
    for a, b in ((130, 155), (245, 270), (690, 750), (860, 885), (1050, 1075)):
        d.arrow((a, y + 30), (b, y + 30))
    d.arrow((440, y + 30), (500, y + 30))
    d.words(470, y + 22, "P x S", "s", "middle")
    d.arrow((595, y + 105), (595, y + 60))
    d.words(720, y + 22, "sums", "s", "middle")
    d.arrow((805, y + 60), (805, y + 85), (355, y + 85), (355, y + 60))
    d.words(455, y + 100, "a bank is free: a group may start", "s", "middle")

    d.words(20, 270, "Normalization unit (GDN, IGDN, GDN1, IGDN1)", "h")
    y = 300
    d.box(20, y, 110, 60, "logic", "Regroup", "u, S lanes a beat")
    d.box(220, y, 170, 60, "memory", "Pixel buffer", "2 groups of P pixels")
    d.box(450, y, 190, 60, "multiply", "Systolic array", "sums of gamma u")
    d.box(450, y + 105, 190, 50, "memory", "Gamma ROM", "unsigned")
    d.box(700, y, 110, 60, "memory", "Drain", "P memories")
    d.box(840, y, 210, 60, "multiply", "Normalize", "+beta, root table, xr, xk, >>")
    d.box(1075, y, 85, 60, "memory", "FIFO", "credits")
    d.box(220, y + 105, 170, 50, "memory", "Queue of x", "waits for its norm")
    for a, b in ((130, 220), (390, 450), (640, 700), (810, 840), (1050, 1075)):
        d.arrow((a, y + 30), (b, y + 30))
    d.arrow((545, y + 105), (545, y + 60))
    d.arrow((8, y + 30), (8, y + 130), (220, y + 130))
    d.arrow((390, y + 130), (415, y + 130), (415, y + 175), (945, y + 175), (945, y + 60))
    d.words(120, y + 124, "x", "s", "middle")
    d.arrow((1117, 120), (1117, 235), (8, 235), (8, y + 30), (20, y + 30))
    d.words(600, 229, "x and u = x*x >> t of every channel, from the requantizer", "s", "middle")
    for i, (kind, text) in enumerate(
        (("memory", "holds"), ("multiply", "multiplies"), ("logic", "moves"))
    ):
        d.cell(20 + 90 * i, 472, 14, 14, COLOURS[kind])
        d.words(40 + 90 * i, 483, text)
    d.save("stage.svg")


def space_time() -> None:
    """When each element of a chain works: two passes, and the beats that leave the drain."""
    elements, steps, cell, left, top = 4, 7, 30, 150, 70
    d = Drawing(1060, 375, "Group, pass, step and beat over time")
    d.words(
        20, 30, "One group of P pixels: two passes of seven steps, a chain of four elements", "h"
    )
    shades = ("#f8ddc8", "#e4f0d8")

    def column(cycle: int) -> int:
        return left + cell * cycle

    for cycle in range(30):
        d.words(column(cycle) + cell / 2, top - 8, str(cycle), "s", "middle")
    d.words(left - 12, top - 8, "cycle", "s", "end")
    for i in range(elements):
        y = top + cell * i
        d.words(left - 12, y + 19, f"element {i}", "s", "end")
        for number in range(2):
            for step in range(steps):
                mark = {0: "first", steps - 1: "last"}.get(step, str(step))
                d.cell(column(number * steps + step + i), y, cell, cell, shades[number], mark)
    # An element's sum is complete after its last step; the last element's leaves first.
    latency = 5  # operand, element, accumulator and drain registers
    y = top + cell * (elements + 1)
    d.words(left - 12, y + 19, "drain memory", "s", "end")
    for number in range(2):
        for word in range(elements):
            cycle = (number + 1) * steps + elements - 1 + latency - 1 + word
            d.cell(column(cycle), y, cell, cell, shades[number], f"c{number * elements + word}")
    y += 2 * cell
    d.words(left - 12, y + 19, "beats out", "s", "end")
    start = 2 * steps + elements - 1 + latency - 1 + elements + 1
    for beat in range(2 * elements):
        if start + beat < 30:
            d.cell(column(start + beat), y, cell, cell, "#cfe3f5", f"c{beat}")
    lines = (
        "A step multiplies S lanes in every element. Operands reach the next element a cycle "
        "later; its weights arrive with them.",
        "A pass ends with its last step. Its sums move to the drain registers, and the next pass "
        "starts without a gap.",
        "Sums shift along the chain into the drain memory, one a cycle. Beats leave in channel "
        "order when the group is complete.",
    )
    for i, line in enumerate(lines):
        d.words(20, y + 62 + 19 * i, line)
    d.save("space-time.svg")


if __name__ == "__main__":
    stage()
    space_time()
