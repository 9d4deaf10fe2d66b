"""Options of the test suite."""

from __future__ import annotations

import signal

import pytest

DEFAULT_FUZZ_SEEDS = "0-6"


# A shell that starts the suite in the background, or nohup, has signals ignored, and so would
# every program that a test starts: those that test what signals do would wait for ever.
for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        default = signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL
        signal.signal(_number, default)


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
