"""What training computes on: devices, their number formats, processes that share the work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lichen.errors import UserError


def bfloat16_pays(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 faster than float32.

    oneDNN does where the processor has tiles (AMX) or dot products (avx512_bf16) of it; elsewhere
    it would convert.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # which the oldest torch allowed does not have
    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.backends.mkldnn.is_available() and any(
        known.get(name, False) for name in ("amx_tile", "avx512_bf16")
    )


def precision_remark(precision: str, device: str) -> str | None:
    """A sentence where the user has chosen a precision that the device only imitates, else None."""
    if precision != "bfloat16" or bfloat16_pays(local_device(device, 0)):
        return None
    return (
        "this device has no arithmetic for bfloat16, and imitates it at a small part of its speed; "
        "--precision auto takes what is fast."
    )


def local_device(name: str, local_rank: int) -> torch.device:
    """The device of this process; `auto` is a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("the device cuda needs a GPU that torch can use, and there is none.")
    if name == "cuda":
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    if name != "cpu":
        raise UserError(f"the device must be auto, cpu or cuda, not {name}.")
    return torch.device("cpu")


class Processes:
    """The processes that train together: one, or as many as torchrun has started."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))

    def join(self, device: torch.device) -> None:
        """Meet the others; does nothing for one process alone."""
        if self.count > 1 and not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")

    def average(self, tensors: list[Tensor]) -> None:
        """Replace tensors by their means over all processes."""
        if self.count == 1:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self.count
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def agree(self, value: float, device: torch.device) -> float:
        """The greatest of all processes' values."""
        if self.count == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
        return shared.item()


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Take numbers near the least that floats hold for zero; also a decorator.

    Gradients run into such numbers, which are several times slower. What is computed after
    training may need them (the processor's mode is NumPy's as well).
    """
    denormal = torch.full((1,), 1e-310, dtype=torch.float64)
    before = not (denormal * 0.5).item()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
