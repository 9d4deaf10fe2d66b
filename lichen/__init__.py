"""Lichen grows trained learned-image-compression networks on open FPGAs."""

import os
import sys
from pathlib import Path

__version__ = "0.2.0"
"""What pyproject.toml takes for the package's version: reading it back is slow."""


def _name_the_processor() -> None:
    """Tell OpenBLAS which kernels this processor runs, before NumPy loads it.

    An OpenBLAS older than its processor (NumPy 1.26's on servers of 2023) takes it for one of
    2004, and multiplies at a quarter of the speed. Sums are exact with any kernels, so this
    changes no result. Without effect where NumPy was imported first, or where the user has
    chosen.
    """
    if sys.platform != "linux" or "OPENBLAS_CORETYPE" in os.environ:
        return
    try:
        with Path("/proc/cpuinfo").open() as file:
            flags = next((set(line.split()) for line in file if line.startswith("flags")), set())
    except OSError:
        return
    if {"avx512f", "avx512dq", "avx512bw", "avx512vl"} <= flags:
        os.environ["OPENBLAS_CORETYPE"] = "SkylakeX"
    elif {"avx2", "fma"} <= flags:
        os.environ["OPENBLAS_CORETYPE"] = "Haswell"


_name_the_processor()
