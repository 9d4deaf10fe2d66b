"""Options of the test suite."""

from __future__ import annotations

import pytest

DEFAULT_FUZZ_SEEDS = "0-6"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-seeds",
        default=DEFAULT_FUZZ_SEEDS,
        metavar="A-B",
        help="seeds of the random networks, one or an inclusive range",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "fuzz_seed" in metafunc.fixturenames:
        first, _, last = metafunc.config.getoption("--fuzz-seeds").partition("-")
        metafunc.parametrize("fuzz_seed", range(int(first), int(last or first) + 1))
