"""The registers, and what the streams' marks are good for."""

from __future__ import annotations

import random
from typing import Any

import cocotb
from cocotb.triggers import ClockCycles
from cocotbext.axi import AxiResp
from golden import INTERFACE, frames, stream_format
from port import REGISTERS, RESTART, RUN, Bench, axi_frame, idle
from share import SHARE
from streams import sometimes

IN = stream_format(INTERFACE["streams"]["i"])


@cocotb.test(skip=SHARE == "ports")
async def registers_say_what_the_core_is(dut: Any) -> None:
    bench = Bench(dut)
    await bench.reset()
    assert await bench.read("id") == 0x4C43484E
    assert await bench.read("version") == 1
    assert await bench.read("max_width") == INTERFACE["parameters"]["max_width"]
    digest = [await bench.read(f"digest_{k}") for k in range(8)]
    told = b"".join(word.to_bytes(4, "little") for word in digest)
    assert told.hex() == INTERFACE["network"]["sha256"]


@cocotb.test(skip=SHARE != "all")
async def output_frames_are_marked(dut: Any) -> None:
    """`tuser` is 1 in the first beat, `tlast` ends a frame, frames are counted."""
    bench = Bench(dut, sometimes(3), sometimes(4))
    await bench.reset()
    several = frames()[:2]
    for frame in several:
        await bench.send(frame)
    await bench.check(several)
    form = stream_format(INTERFACE["streams"]["o"])
    for frame in several:
        taken = await bench.sink.recv(compact=False)
        pixels = list(frame.stages.values())[-1].shape[:2]
        size = form.lanes * form.container // 8
        assert len(taken.tdata) == pixels[0] * pixels[1] * form.beats * size
        assert list(taken.tuser) == [1] * size + [0] * (len(taken.tdata) - size)
        assert all(taken.tkeep)
    assert await bench.read("frames_in") == await bench.read("frames_out") == 2
    await idle(bench)
    assert not await bench.read("status") & 16
    await bench.write("frames_in", 0)
    assert await bench.read("frames_in") == 0


@cocotb.test(skip=SHARE != "all")
async def wrong_marks_are_counted_and_the_size_is_believed(dut: Any) -> None:
    bench = Bench(dut)
    await bench.reset()
    frame = frames()[0]
    beats = len(IN.pack(frame.tensor))
    await bench.write("size", frame.size[0] | frame.size[1] << 16)
    # A frame in two packets, whose second beat claims to be the first.
    whole = axi_frame(frame, IN, tuser=[0, 1] + [0] * (beats - 2))
    size = IN.lanes * IN.container // 8
    half = beats // 2 * size
    for part in (slice(0, half), slice(half, None)):
        packet = type(whole)(whole.tdata[part], tuser=whole.tuser[part])
        await bench.source.send(packet)
    await bench.check([frame])
    assert await bench.read("early_last") == 1
    assert await bench.read("missing_last") == 0
    assert await bench.read("wrong_user") == 2
    assert await bench.read("status") & 16
    # Two frames in one packet.
    for name in ("early_last", "wrong_user"):
        await bench.write(name, 0)
    one = axi_frame(frame, IN)
    both = type(one)(one.tdata + one.tdata, tuser=list(one.tuser) * 2)
    await bench.source.send(both)
    await bench.check([frame] * 3)
    assert await bench.read("missing_last") == 1
    assert await bench.read("early_last") == await bench.read("wrong_user") == 0


@cocotb.test(skip=SHARE != "all")
async def frames_wait_for_control_and_size(dut: Any) -> None:
    bench = Bench(dut)
    await bench.reset()
    frame = frames()[0]
    await bench.source.send(axi_frame(frame, IN))
    widest = INTERFACE["parameters"]["max_width"]
    for size, control in (((0, 1), RUN), ((widest + 1, 1), RUN), (frame.size, 0)):
        await bench.write("control", 0)
        await bench.write("size", size[0] | size[1] << 16)
        await bench.write("control", control)
        await ClockCycles(dut.clk, 100)
        assert not bench.input.beats, f"a frame of {size} began with control {control}"
    await bench.write("control", RUN)
    await bench.check([frame])


@cocotb.test(skip=SHARE != "all")
async def a_restart_drops_what_is_on_its_way(dut: Any) -> None:
    bench = Bench(dut)
    await bench.reset()
    first, other, *_ = frames()
    await bench.send(first)
    await ClockCycles(dut.clk, first.cycles // 3)
    bench.source.pause = True
    bench.source.clear()
    bench.dropping = True
    await bench.write("control", RUN | RESTART)
    while await bench.read("control") & RESTART:
        pass
    await idle(bench)
    # The source still offers the beat it had offered when it was paused; a reset of it is due.
    await bench.reset()
    bench.dropping = False
    bench.source.pause = False
    await bench.send(other)
    await bench.check([other])


@cocotb.test(skip=SHARE != "all")
async def random_register_traffic(dut: Any) -> None:
    """Writes of any bytes and reads in any rhythm, while frames pass, do what a model says."""
    bench = Bench(dut, sometimes(5), sometimes(6))
    for number, channel in enumerate(
        (
            bench.lite.write_if.aw_channel,
            bench.lite.write_if.w_channel,
            bench.lite.write_if.b_channel,
            bench.lite.read_if.ar_channel,
            bench.lite.read_if.r_channel,
        )
    ):
        channel.set_pause_generator(sometimes(10 + number, 0.5, 4))
    await bench.reset()
    frame = frames()[0]
    await bench.send(frame)
    while not await bench.read("status") & 1:  # its size is taken when it begins
        pass
    rng = random.Random(7)
    model = bytearray(await read_bytes(bench, REGISTERS["size"], 4))
    for _ in range(100):
        offset = rng.randrange(4)
        length = rng.randint(1, 4 - offset)
        if rng.random() < 0.5:
            data = rng.randbytes(length)
            await bench.lite.write(REGISTERS["size"] + offset, data)
            model[offset : offset + length] = data
        else:
            got = await read_bytes(bench, REGISTERS["size"] + offset, length)
            assert got == bytes(model[offset : offset + length])
    nowhere = max(REGISTERS.values()) + 4
    for address in (nowhere, REGISTERS["id"]):
        done = await bench.lite.write(address, bytes(4))
        assert done.resp == AxiResp.SLVERR
    assert (await bench.lite.read(nowhere, 4)).resp == AxiResp.SLVERR
    assert await bench.read("id") == 0x4C43484E
    await bench.check([frame])


@cocotb.test(skip=SHARE != "all" or "load" not in INTERFACE)
async def constants_are_refused_while_a_frame_is_under_way(dut: Any) -> None:
    bench = Bench(dut)
    await bench.reset()
    assert await bench.read("load_map") == int.from_bytes(
        bytes.fromhex(INTERFACE["load"]["map"])[:4], "little"
    )
    await bench.clear_crc()
    before = await bench.crc()
    frame = frames()[0]
    await bench.send(frame)
    while not await bench.read("status") & 1:
        pass
    for size in (4, 1):
        done = await bench.lite.write(REGISTERS["load_data"], bytes(size))
        assert done.resp == AxiResp.SLVERR
    await bench.check([frame])
    assert await bench.crc() == before
    assert (await bench.lite.read(REGISTERS["load_data"], 4)).resp == AxiResp.SLVERR


async def read_bytes(bench: Bench, address: int, length: int) -> bytes:
    return bytes((await bench.lite.read(address, length)).data)
