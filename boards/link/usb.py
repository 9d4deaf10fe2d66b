# amaranth: UnusedElaboratable=no
"""USB in place of a serial line: a CDC-ACM device around the bytes of the protocol.

The device is LUNA's (PyPI: luna-usb). To a host it is a modem, so every system has its driver, and
the host's program opens it as the serial port that it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from amaranth.hdl import Elaboratable, Module, ResetInserter, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import AsyncFIFO
from amaranth.lib.wiring import In, Out

from lichen.boards.link.ratio import Ratio
from lichen.errors import UserError
from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware

if TYPE_CHECKING:
    from usb_protocol.emitters import DeviceDescriptorCollection

USB_DOMAIN = "usb"
"""The clock domain of USB's bytes: 12 MHz at full speed, the transceiver's 60 at high speed."""

SAMPLING_DOMAIN = "usb_io"
"""At full speed, that of its wires: four times as fast, from the same oscillator."""

ID = (0x1209, 0x0001)
"""Vendor and product: pid.codes' for tests. Whoever sells boards needs one of their own."""

PACKET_BYTES = {"full": 64, "high": 512}
"""Of a bulk packet, by speed: the most that USB 2.0 allows (5.8.3)."""

CONTROL_BYTES = 64
NOTICE_BYTES = 8
"""Of a packet of the endpoint for a modem's news, of which there are none."""

NOTICES, DATA = 1, 2
"""Endpoints."""

CROSSING_DEPTH = 16
"""Bytes between the clocks."""

COSTS = {"full": Resources(lut=2010), "high": Resources(lut=1840, bram=3)}
"""As synthesized, by speed. Packets of full speed stand in lookup tables."""

WIRE = wiring.Signature({"i": In(1), "o": Out(1), "oe": Out(1)})
PADS = {
    "full": wiring.Signature(
        {"d_p": Out(WIRE), "d_n": Out(WIRE), "pullup": Out(wiring.Signature({"o": Out(1)}))}
    ),
    "high": wiring.Signature(
        {
            "data": Out(wiring.Signature({"i": In(8), "o": Out(8), "oe": Out(1)})),
            "dir": Out(wiring.Signature({"i": In(1)})),
            "nxt": Out(wiring.Signature({"i": In(1)})),
            "stp": Out(wiring.Signature({"o": Out(1)})),
            "rst": Out(wiring.Signature({"o": Out(1)})),
        }
    ),
}
"""Wires by speed: USB's own, or those of a transceiver with ULPI."""


def check_installed() -> None:
    """Raise UserError where LUNA is missing."""
    try:
        import luna  # noqa: F401
    except ImportError:
        raise UserError(
            "USB takes the package luna-usb, which is not installed: pip install 'lichen[usb]'"
        ) from None


def descriptors(speed: str) -> DeviceDescriptorCollection:
    """What the device says of itself: a modem (CDC 1.2, ACM) with one pair of bulk endpoints."""
    from usb_protocol.emitters import DeviceDescriptorCollection
    from usb_protocol.emitters.descriptors import cdc

    found = DeviceDescriptorCollection()
    with found.DeviceDescriptor() as device:
        device.bcdUSB = 2.00
        # A function of several interfaces, as Windows wants to be told.
        device.bDeviceClass, device.bDeviceSubclass, device.bDeviceProtocol = 0xEF, 2, 1
        device.idVendor, device.idProduct = ID
        device.iManufacturer, device.iProduct = "Lichen", "Lichen"
        device.bMaxPacketSize0 = CONTROL_BYTES
        device.bNumConfigurations = 1
    with found.ConfigurationDescriptor() as configuration:
        with configuration.InterfaceAssociationDescriptor() as function:
            function.bFirstInterface, function.bInterfaceCount = 0, 2
            function.bFunctionClass, function.bFunctionSubClass = 0x02, 0x02
            function.bFunctionProtocol = 0x00
        with configuration.InterfaceDescriptor() as control:
            control.bInterfaceNumber = 0
            control.bInterfaceClass, control.bInterfaceSubclass = 0x02, 0x02
            control.bInterfaceProtocol = 0x00
            control.add_subordinate_descriptor(cdc.HeaderDescriptorEmitter())
            union = cdc.UnionFunctionalDescriptorEmitter()
            union.bControlInterface, union.bSubordinateInterface0 = 0, 1
            control.add_subordinate_descriptor(union)
            calls = cdc.CallManagementFunctionalDescriptorEmitter()
            calls.bDataInterface = 1
            control.add_subordinate_descriptor(calls)
            with control.EndpointDescriptor() as endpoint:
                endpoint.bEndpointAddress = 0x80 | NOTICES
                endpoint.bmAttributes = 0x03
                endpoint.wMaxPacketSize = NOTICE_BYTES
                endpoint.bInterval = 16 if speed == "high" else 255
        with configuration.InterfaceDescriptor() as data:
            data.bInterfaceNumber = 1
            data.bInterfaceClass = 0x0A
            for direction in (0x80, 0x00):
                with data.EndpointDescriptor() as endpoint:
                    endpoint.bEndpointAddress = direction | DATA
                    endpoint.bmAttributes = 0x02
                    endpoint.wMaxPacketSize = PACKET_BYTES[speed]
    return found


class _Silence(Elaboratable):
    """The endpoint of a modem's news: there are none."""

    def __init__(self) -> None:
        from luna.gateware.usb.usb2.endpoint import EndpointInterface

        self.interface = EndpointInterface()

    def elaborate(self, platform: object) -> Module:
        m = Module()
        token = self.interface.tokenizer
        m.d.comb += self.interface.handshakes_out.nak.eq(
            token.is_in & token.ready_for_response & (token.endpoint == NOTICES)
        )
        return m


class _Anew(Elaboratable):
    """An endpoint that has its initial state again after a reset of the bus."""

    def __init__(self, endpoint: Any, reset: Signal):
        self.interface, self._endpoint, self._reset = endpoint.interface, endpoint, reset

    def elaborate(self, platform: object) -> Any:
        return ResetInserter({USB_DOMAIN: self._reset})(self._endpoint)


# LUNA calls endpoints by their classes, and namesakes by where they are in memory.
class _Heard(_Anew):
    """What a host sends."""


class _Said(_Anew):
    """What a host is sent."""


class USBLine(Gateware):
    """Bytes over USB: what `lichen.boards.link.line.SerialLine` is over a serial line.

    ``sync`` takes a byte a cycle, so the host alone waits. Bytes are neither lost nor changed:
    USB's own checksums and repeats see to that, and ``bad`` is never heard of.

    Parameters
    ----------
    speed : str
        ``full`` or ``high``, which is a key of `PADS`.

    Members
    -------
    pads : Out(PADS[speed])
    hold : In(1)
        Everything stays in its initial state. The domains of USB have resets of their own.
    i : In(stream of 8)
        What is sent.
    o : Out(stream of 8)
        What was received; always taken.
    bad : Out(1)
    ratio : Out(16)
        See `Ratio`.

    Raises UserError where LUNA is not installed.
    """

    def __init__(self, *, speed: str):
        check_installed()
        self.speed = speed
        self._ratio = Ratio()
        byte = stream.Signature(8)
        super().__init__(
            wiring.Signature(
                {
                    "pads": Out(PADS[speed]),
                    "hold": In(1),
                    "i": In(byte),
                    "o": Out(byte),
                    "bad": Out(1),
                    "ratio": Out(16),
                }
            )
        )

    def elaborate(self, platform: object) -> Module:
        from luna.gateware.usb.devices.acm import ACMRequestHandlers
        from luna.gateware.usb.usb2.device import USBDevice
        from luna.gateware.usb.usb2.endpoints.stream import (
            USBStreamInEndpoint,
            USBStreamOutEndpoint,
        )
        from luna.gateware.usb.usb2.request import StallOnlyRequestHandler
        from usb_protocol.types import USBRequestType

        m = Module()
        m.submodules.device = device = USBDevice(bus=self.pads, handle_clocking=False)
        control = device.add_standard_control_endpoint(descriptors(self.speed), avoid_blockram=True)
        control.add_request_handler(ACMRequestHandlers())
        control.add_request_handler(
            StallOnlyRequestHandler(
                lambda setup: (
                    (setup.type == USBRequestType.VENDOR) | (setup.type == USBRequestType.RESERVED)
                )
            )
        )
        size = PACKET_BYTES[self.speed]
        heard = USBStreamOutEndpoint(endpoint_number=DATA, max_packet_size=size)
        said = USBStreamInEndpoint(endpoint_number=DATA, max_packet_size=size)
        device.add_endpoint(_Silence())
        # What is left of a host's last talk, its toggles among it, is not the next one's.
        device.add_endpoint(_Heard(heard, device.reset_detected))
        device.add_endpoint(_Said(said, device.reset_detected))
        # Low while USB's domain is reset: a host sees that the device it knew is gone.
        connected = Signal()
        m.d[USB_DOMAIN] += connected.eq(1)
        m.d.comb += device.connect.eq(connected)

        own = ResetInserter(self.hold)
        inward = AsyncFIFO(width=8, depth=CROSSING_DEPTH, w_domain=USB_DOMAIN, r_domain="sync")
        outward = AsyncFIFO(width=8, depth=CROSSING_DEPTH, w_domain="sync", r_domain=USB_DOMAIN)
        m.submodules.inward, m.submodules.outward = own(inward), own(outward)
        m.submodules.ratio = self._ratio
        m.d.comb += [
            inward.w_data.eq(heard.stream.payload),
            inward.w_en.eq(heard.stream.valid),
            heard.stream.ready.eq(inward.w_rdy),
            self.o.payload.eq(inward.r_data),
            self.o.valid.eq(inward.r_rdy),
            inward.r_en.eq(self.o.ready),
            outward.w_data.eq(self.i.payload),
            outward.w_en.eq(self.i.valid),
            self.i.ready.eq(outward.w_rdy),
            said.stream.payload.eq(outward.r_data),
            said.stream.valid.eq(outward.r_rdy),
            outward.r_en.eq(said.stream.ready),
            # Nothing waits for more.
            said.flush.eq(~outward.r_rdy),
            self.ratio.eq(self._ratio.ratio),
        ]
        return m

    def resources(self, device: Device) -> Resources:
        return COSTS[self.speed] + self._ratio.resources(device)
