"""How much of the tests this simulator runs.

Verilator runs all of them. Icarus is some hundred times slower, so ``interface.json`` says under
``bench`` what it runs of a core of this size: all, the smallest frame, or nothing but a look at the
ports. ``FULL=1`` runs everything everywhere.
"""

from __future__ import annotations

import os

import cocotb
from golden import INTERFACE

_ICARUS = "icarus" in cocotb.SIM_NAME.lower()

SHARE = INTERFACE["bench"]["icarus"] if _ICARUS and not os.environ.get("FULL") else "all"
"""``all``, ``smallest`` or ``ports``."""
