"""How to search, where a search stands and where it ended."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lichen.errors import UserError
from lichen.network.description import Network
from lichen.quant.calibration.options import (
    WIDTHS_MIN,
    Options,
)
from lichen.quant.calibration.quantize import Quantized
from lichen.quant.float.network import FloatNetwork
from lichen.quant.search.trial import RD
from lichen.quant.training.tune_config import TuneConfig


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How to search.

    Attributes
    ----------
    quantization : Options
        Of the start, and how stages are requantized.
    lmbda : float
        Weight of the mean squared error of 8-bit pixels against bits per pixel.
    max_loss : float
        Where to end, see `lichen.quant.search.search`: 0.01 is 1 %. Below 0, that much must be won
        against the start, by bits given where they cost little.
    least : int
        Fewest bits of anything.
    tries : int
        Changes measured at a time.
    held_out : int
        Every so-many-th crop is measured on, and not calibrated on.
    layers : tuple of str
        Stages that may change, such as ``g_a.conv1``; none means all.
    kinds : tuple of str
        Fields of `Widths` that may change; none means all that the cost depends on.
    among : tuple of int
        The only numbers of bits to take or give; none means any.
    tune : TuneConfig or None
        Fine-tuning of a round; its ``steps`` are those of one round.
    tune_every : int
        Steps of the search from one fine-tuning to the next.
    device : str
        Of fine-tuning: ``auto``, ``cpu`` or ``cuda``.
    """

    quantization: Options
    lmbda: float
    max_loss: float = 0.01
    least: int = WIDTHS_MIN
    tries: int = 4
    held_out: int = 3
    layers: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    among: tuple[int, ...] = ()
    tune: TuneConfig | None = None
    tune_every: int = 8
    device: str = "auto"

    def __post_init__(self) -> None:
        for good, what in (
            (
                abs(self.max_loss) < 1,
                f"the loss must lie between -100 and 100 %, not be {self.max_loss:.0%}",
            ),
            (
                WIDTHS_MIN <= self.least <= 8,
                f"the fewest bits must lie in {WIDTHS_MIN} .. 8, not {self.least}",
            ),
            (self.tries >= 1, f"at least one change must be tried at a time, not {self.tries}"),
            (
                self.held_out >= 2,
                f"at most every second crop can be held out, not every {self.held_out}",
            ),
            (
                self.tune_every >= 1,
                f"fine-tuning must come after at least one step, not {self.tune_every}",
            ),
            (
                self.quantization.method == "ptq",
                "the search starts from ptq; the method minmax is a baseline of its own",
            ),
        ):
            if not good:
                raise UserError(what + ".")

    def json(self) -> dict[str, Any]:
        """As JSON values."""
        return json.loads(json.dumps(asdict(self)))


@dataclass
class State:
    """All that a search goes on from."""

    start: Network
    network: Network
    real: FloatNetwork
    bottleneck: dict[str, npt.NDArray]
    follow: bool
    first: RD
    now: RD
    log: list[dict[str, Any]]
    slopes: dict[str, float] = field(default_factory=dict)
    lowered: list[str] = field(default_factory=list)
    raised: list[str] = field(default_factory=list)
    bought: list[str] = field(default_factory=list)
    rounds: int = 0
    since: int = 0
    trials: int = 0
    ended: str | None = None
    target: dict[str, Any] | None = None


@dataclass(frozen=True)
class SearchResult:
    """Where the search ended.

    Attributes
    ----------
    start : Network
        Where it began.
    final : Quantized
        The network, its tables fitted anew, measured on all crops.
    first, last : RD
        On the crops held out.
    log : list of dict
        One entry a step.
    ended : str
        ``loss``, ``target``, or ``stopped`` by ``stop_after``.
    target : dict or None
        The plan that met the board target.
    """

    start: Network
    final: Quantized
    first: RD
    last: RD
    log: list[dict[str, Any]]
    ended: str
    target: dict[str, Any] | None


STATE = "lichen-search"


CHANGING = ("lower", "raise", "buy", "exchange")
"""Kinds of steps that change bits."""


PLAIN = (
    "follow", "log", "slopes", "lowered", "raised", "bought", "rounds", "since", "trials", "ended",
    "target",
)  # fmt: skip
"""What of a state is stored as JSON values."""


def arrays_of(real: FloatNetwork) -> dict[str, npt.NDArray]:
    """All weights of a real network."""
    result = {}
    for key, transform in real.transforms.items():
        for stage in transform.stages:
            for name in ("weight", "bias", "beta", "gamma"):
                if (value := getattr(stage, name)) is not None:
                    result[f"{key}.{stage.name}.{name}"] = np.ascontiguousarray(value)
    return result


def with_arrays(network: FloatNetwork, arrays: Mapping[str, npt.NDArray]) -> FloatNetwork:
    """A real network with other weights, as `arrays_of` gives them."""
    transforms = {}
    for key, transform in network.transforms.items():
        stages = []
        for stage in transform.stages:
            changed: dict[str, Any] = {
                name: arrays[f"{key}.{stage.name}.{name}"]
                for name in ("weight", "bias", "beta", "gamma")
                if getattr(stage, name) is not None
            }
            stages.append(replace(stage, **changed))
        transforms[key] = replace(transform, stages=stages)
    return replace(network, transforms=transforms)


def digest_of(network: FloatNetwork) -> str:
    """SHA-256 of all weights."""
    sha = hashlib.sha256()
    for name, value in sorted(arrays_of(network).items()):
        sha.update(name.encode())
        sha.update(value.astype("<f8").tobytes())
    return sha.hexdigest()
