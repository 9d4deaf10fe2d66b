"""Names and other text from files, made fit for a terminal."""

from __future__ import annotations

NAME_SHOWN = 80
"""Characters of a name that are shown."""


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable(
    text: str, *, most: int | None = NAME_SHOWN, quoted: bool = False, keep: str = ""
) -> str:
    """Text that a terminal shows as it is: nothing moves the cursor, changes colours or hides.

    Control, format, surrogate and unassigned characters, and spaces other than the plain one,
    become backslash escapes.

    Parameters
    ----------
    text : str
    most : int or None
        Characters shown; an ellipsis stands for the rest.
    quoted : bool
        In quotation marks.
    keep : str
        Characters that stay although they don't print, such as newlines of a report.
    """
    cut = text if most is None or len(text) <= most else text[:most] + "\u2026"
    shown = "".join(c if c in keep else _escaped(c) for c in cut)
    return f'"{shown}"' if quoted else shown


def lines(text: str) -> str:
    """Several lines for a terminal: `printable`, whole, but for their newlines."""
    return printable(text, most=None, keep="\n")
