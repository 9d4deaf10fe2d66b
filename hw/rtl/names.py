"""Names in Verilog: legal, no keyword, each once; and short ones for modules."""

from __future__ import annotations

import re
from collections.abc import Iterable

_KEYWORDS = """
alias always and assert assign assume automatic before begin bind bins bit break buf bufif0 bufif1
byte case casex casez cell chandle checker class clocking cmos config const constraint context
continue cover cross deassign default define defparam design disable dist do edge else end endcase
endconfig endfunction endgenerate endmodule endprimitive endspecify endtable endtask enum event
expect export extends extern final first_match for force foreach forever fork forkjoin function
generate genvar global highz0 highz1 if iff ifnone import incdir include initial inout input
inside instance int integer interface intersect join large let liblist library local localparam
logic longint macromodule matches medium modport module nand negedge new nmos nor not notif0
notif1 null or output package packed parameter pmos posedge primitive priority program property
protected pull0 pull1 pulldown pullup pure rand randc real realtime ref reg release repeat return
rtran scalared sequence shortint shortreal signed small solve specify static string strong struct
super supply0 supply1 table tagged task this throughout time timescale tran tri tri0 tri1 triand
trior trireg type typedef union unique unsigned use uwire var vectored virtual void wait wand weak
while wildcard wire with within wor xnor xor
"""
KEYWORDS = frozenset(_KEYWORDS.split())
"""Of Verilog and SystemVerilog."""


class Names:
    """Identifiers of one scope, each given once."""

    def __init__(self, taken: Iterable[str] = ()):
        self._taken = set(taken)

    def add(self, wanted: str) -> str:
        """An identifier like the wanted one: the same, or with a number."""
        name = re.sub(r"\W+", "_", re.sub(r"\$\d+", "", wanted), flags=re.ASCII).strip("_")
        if not name or name[0].isdigit():
            name = f"n{name}"
        if "unused" in name.lower():  # linters take the word for a wish
            name = re.sub("unused", "idle", name, flags=re.IGNORECASE)
        found, number = name, 1
        while found in self._taken or found in KEYWORDS:
            number += 1
            found = f"{name}_{number}"
        self._taken.add(found)
        return found


def module_names(paths: dict[str, list[str]], top: str) -> dict[str, str]:
    """Identifiers of modules, the top's and others below it as ``TOP_*``.

    Parameters
    ----------
    paths : dict of str to list of str
        Every module that is written, the top first, and the paths of all that it stands for.
    top : str

    What stands for several is called after what their paths end in alike, without the numbers
    in which they differ.
    """
    names = Names()
    found: dict[str, str] = {}
    for module, members in paths.items():
        if not found:
            found[module] = names.add(top)
            continue
        parts = [path.split(".")[1:] for path in members]
        if len(parts) > 1:
            parts = [[re.sub(r"(_\d+)+$", "", word) for word in words] for words in parts]
        common: list[str] = []
        for words in zip(*(reversed(p) for p in parts), strict=False):
            if len(set(words)) > 1:
                break
            common.insert(0, words[0])
        found[module] = names.add("_".join([top, *(common or ["part"])]))
    return found
