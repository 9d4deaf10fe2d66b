"""One core, several networks: what is filled in at run time is what the core computes with."""

from __future__ import annotations

from typing import Any

import cocotb
from golden import FOLDER, frames
from port import Bench
from share import SHARE

OTHERS = sorted(path.stem for path in FOLDER.glob("*.hex") if path.stem != "own")


@cocotb.test(skip=SHARE != "all")
async def a_wrong_word_shows_in_the_checksum(dut: Any) -> None:
    """Words of the network that the core holds, put in again, one of them with a wrong bit."""
    bench = Bench(dut)
    await bench.reset()
    text = (FOLDER / "own.hex").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("//")][:40]
    checksums = []
    for flip in (0, 1, 0):
        await bench.clear_crc()
        last = lines[-1]
        await bench.put([*lines[:-1], last[:-1] + f"{int(last[-1], 16) ^ flip:x}"])
        checksums.append(await bench.crc())
    assert checksums[0] == checksums[2] != checksums[1]


@cocotb.test(skip=SHARE != "all")
async def other_networks_take_over(dut: Any) -> None:
    """Each is right in every stage, and takes the very same cycles."""
    bench = Bench(dut)
    await bench.reset()
    for network in OTHERS:
        await bench.fill(network)
        for frame in frames(network):
            taken = await bench.alone(frame)
            assert taken == frame.cycles, f"{network}, {frame.name}: {taken} cycles"
