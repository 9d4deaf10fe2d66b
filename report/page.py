"""The page: sections of HTML, one style, one script, no request to anywhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources

import numpy as np
import numpy.typing as npt
from PIL import Image


@dataclass
class Page:
    """A page that is written section by section.

    Attributes
    ----------
    title : str
    """

    title: str
    _sections: list[tuple[str, str]] = field(default_factory=list)

    def section(self, heading: str, *parts: str) -> None:
        """A section; parts are HTML."""
        self._sections.append((heading, "\n".join(parts)))

    def render(self) -> str:
        """The whole page."""
        assets = resources.files(__package__)
        style = (assets / "page.css").read_text(encoding="utf-8")
        script = (assets / "page.js").read_text(encoding="utf-8")
        places = [(f"s{i}", heading, body) for i, (heading, body) in enumerate(self._sections)]
        links = "".join(f'<a href="#{key}">{text(head)}</a>' for key, head, _ in places)
        bodies = "".join(
            f'<section id="{key}"><h2>{text(head)}</h2>\n{body}\n</section>\n'
            for key, head, body in places
        )
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{text(self.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
            f"<header><h1>{text(self.title)}</h1>\n<nav>{links}</nav></header>\n"
            f"<main>\n{bodies}</main>\n<script>\n{script}</script>\n</body>\n</html>\n"
        )


def text(value: object) -> str:
    """A value as text of HTML; names come from files of strangers."""
    return html.escape(str(value))


def paragraph(words: str) -> str:
    return f"<p>{text(words)}</p>"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; numbers stand to the right, None is a dash. It scrolls where it is too wide."""

    rows = list(rows)

    def number(value: object) -> bool:
        return (
            value is None
            or isinstance(value, int | float)
            or (isinstance(value, str) and value[:1] in "+-0123456789" and value[-1:] != "k")
        )

    def cell(value: object) -> str:
        shown = "–" if value is None else f"{value:,}" if isinstance(value, int) else value
        return f'<td class="n">{text(shown)}</td>' if number(value) else f"<td>{text(shown)}</td>"

    right = [bool(rows) and all(number(row[i]) for row in rows) for i in range(len(heads))]
    head = "".join(
        f'<th class="n">{text(h)}</th>' if n else f"<th>{text(h)}</th>"
        for h, n in zip(heads, right, strict=True)
    )
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>\n" for row in rows)
    content = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide"><table>{content}</table></div>'


def picture(pixels: npt.NDArray[np.uint8], label: str) -> str:
    """An image inside the page."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    height, width = pixels.shape[:2]
    return (
        f'<img alt="{text(label)}" width="{width}" height="{height}" '
        f'src="data:image/png;base64,{data}">'
    )


def slider(
    left: npt.NDArray[np.uint8], right: npt.NDArray[np.uint8], names: tuple[str, str]
) -> str:
    """Two images of one size over each other, and a handle that moves the line between them."""
    return (
        '<figure class="slider"><div class="pair">'
        f"{picture(left, names[0])}{picture(right, names[1])}"
        '<input type="range" min="0" max="100" value="50" '
        f'aria-label="{text(names[0])} to the left, {text(names[1])} to the right"></div>'
        f"<figcaption><span>{text(names[0])}</span><span>{text(names[1])}</span></figcaption>"
        "</figure>"
    )


def error_map(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The mean magnitude of the difference, eight times enlarged, as grey."""
    error = np.abs(a.astype(np.int32) - b.astype(np.int32)).mean(axis=2)
    return np.clip(8 * error, 0, 255).astype(np.uint8)
