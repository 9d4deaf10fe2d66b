"""Progressive mixed-precision search: bits go where they are worth what they cost.

After the second stage of Fang and Chen, "A multi-stage optimization framework for deploying
learned image compression on FPGAs" (2025); the cost, the local requantization and the order of
trials are ours. From a uniformly quantized network on, each step takes bits from weights,
activations or normalizations of one stage: where the cost saved per loss is greatest. A loss is
always measured, on crops that nothing is calibrated on, with the network really requantized; what
is only estimated is which changes are worth measuring (lazy greedy, after Minoux, "Accelerated
greedy algorithms for maximizing submodular set functions", 1978).

*Loss.* ``R + lambda D`` in bits per pixel, above that of the start, as a share of the start's R.
Since lambda is the slope of the rate-distortion curve where the network stands on it, this is, to
first order, the rate that the change costs at equal quality: a BD-rate.

*Requantization.* The stage that a change of bits touches (two, where the format between them
changes) is quantized anew as ptq does it, on the integers that reach it, and so are all stages
after it in the transform: each is fitted to what the real network makes there, and so makes good
what those before it lost. What bits lose then depends on the bits, not on the order in which they
were taken. After fine-tuning only the stages touched are, and all others stay what training has
made of them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from lichen.errors import UserError
from lichen.network.description import Network
from lichen.network.file import dumps
from lichen.quant.calibration.calibrate import CalibrationImages
from lichen.quant.calibration.latents import fit_latent_range
from lichen.quant.calibration.options import (
    bits_of,
)
from lichen.quant.calibration.quantize import check_supported, quantize
from lichen.quant.draq.draq import bottleneck_of, measured, real_network, tuned_network
from lichen.quant.float.network import FloatNetwork
from lichen.quant.search.costs import Cost
from lichen.quant.search.executors import Executor, InProcess
from lichen.quant.search.parents import float_network, without_floor
from lichen.quant.search.state import (
    CHANGING,
    PLAIN,
    STATE,
    SearchOptions,
    SearchResult,
    State,
    arrays_of,
    digest_of,
    with_arrays,
)
from lichen.quant.search.steps import Steps
from lichen.quant.search.trial import RD, Problem, bench_of
from lichen.quant.training import finetune, rate
from lichen.quant.training.data import CropSource
from lichen.quant.training.finetune import INTEGER, FineTuner
from lichen.quant.training.runs import (
    network_of,
    network_tensor,
    not_a_state,
    read_state,
    save_state,
)

MakeCost = Callable[[Network], Cost]


class Search(Steps):
    """A search in memory.

    Parameters
    ----------
    network : FloatNetwork
    images : CalibrationImages
        At least two; some are held out.
    options : SearchOptions
    make_cost : callable
        Makes the cost from the starting network.
    name : str or None
        Of the result; None takes the checkpoint's.
    start : Network or None
        Where to start; None quantizes with ``options.quantization``.
    train : sequence of path
        Photographs for fine-tuning.
    state : Path or None
        Where the state is kept after every step, and what ``resume`` goes on from.
    executor : Executor or None
    watch : callable
        Called with a phrase and the number of changes tried since the last call.
    """

    def __init__(
        self,
        network: FloatNetwork,
        images: CalibrationImages,
        options: SearchOptions,
        make_cost: MakeCost,
        *,
        name: str | None = None,
        start: Network | None = None,
        train: Sequence[str | Path] = (),
        state: Path | None = None,
        resume: bool = False,
        executor: Executor | None = None,
        watch: Callable[[str, int], None] = lambda phrase, trials: None,
    ) -> None:
        check_supported(network)
        if len(images.crops) < 2:
            raise UserError("a search takes at least two calibration images: one is held out.")
        self.parent, self.images, self.options = network, images, options
        self.name, self.path, self.watch = name, state, watch
        self.executor = executor or InProcess()
        every = options.held_out
        self.held_out = images.crops[every - 1 :: every] or images.crops[-1:]
        known = {id(crop) for crop in self.held_out}
        self.calibration = [crop for crop in images.crops if id(crop) not in known]
        self.source: CropSource | None = None
        if options.tune is not None:
            tune = options.tune
            if tune.patch % network.factor:
                raise UserError(
                    f"the patch must be a multiple of {network.factor}, not {tune.patch}."
                )
            self.source = CropSource(train, patch=tune.patch, downscale=tune.downscale)
        self.quantization = options.quantization
        if not network.hyper:
            bits = self.quantization.latent_bits or self.quantization.widths.activation
            self.quantization = replace(self.quantization, latent_bits=bits)
        self._settings: dict[str, Any] = {
            "options": options.json(),
            "calibration": images.digest,
            "training": None if self.source is None else self.source.digest,
            "network": digest_of(network),
            "start": None if start is None else hashlib.sha256(dumps(start)).hexdigest(),
        }
        saved = self._load() if resume else None
        self.state = self._begin(start) if saved is None else saved
        self.cost = make_cost(self.state.start)
        self._check_names()
        if saved is None:
            entry = self._entry("start", None)
            self.state.log.append(entry)
            self._check_target(entry["cost"])
            self._save()
        elif self.state.log[0]["how"] != self.cost.json():
            raise UserError(
                f"{self.path} counts another cost; resume with the same options or start anew."
            )

    # Start and end -------------------------------------------------------------------------

    def _begin(self, start: Network | None) -> State:
        real, follow = self.parent, start is None
        bottleneck = bottleneck_of(real, self.images, self.quantization.seed)
        if start is not None:
            _check_same_shape(self.parent, start)
            real = float_network(start, self.parent)
            if not real.hyper:
                # ranges of latents may have been fitted, and weights have been trained
                latents = [real.analyze(image) for image in self.calibration]
                bottleneck = rate.fit_bottleneck(latents, self.quantization.seed)
        else:
            if not real.hyper:
                latents = [real.analyze(image) for image in self.calibration]
                bits = self.quantization.latent_bits
                assert bits is not None
                real, _ = fit_latent_range(real, latents, bits)
                bottleneck = bottleneck_of(real, self.images, self.quantization.seed)
            self.watch("start", 0)
            crops = CalibrationImages(self.calibration)
            start = quantize(real, crops, self.quantization).network
        nothing = RD(math.inf, math.inf, math.inf)
        state = State(start, start, real, bottleneck, follow, nothing, nothing, [])
        self.state = state
        if self.options.tune is not None:
            # What more training alone would win must not count as won by the search.
            state.now = bench_of(self._problem(), start).own()
            self._tune()
            state.start = state.network
        state.first = state.now = bench_of(self._problem(), state.network).own()
        return state

    def _problem(self) -> Problem:
        s = self.state
        return Problem(
            s.real,
            s.follow,
            self.calibration,
            self.held_out,
            self.options.lmbda,
            self.quantization,
            digest_of(s.real) + self.images.digest,
        )

    def _check_names(self) -> None:
        layers = set(bits_of(self.state.start))
        unknown = sorted(set(self.options.layers) - layers)
        if unknown:
            raise UserError(
                f"the network has no stage {unknown[0]}, only {', '.join(sorted(layers))}."
            )
        if not self.knobs():
            raise UserError("there is nothing to search: no stage and kind of bits that counts.")

    def run(self, stop_after: int | None = None) -> SearchResult:
        """Search to the end, or for so many steps."""
        done = 0
        while self.state.ended is None and (stop_after is None or done < stop_after):
            self.step()
            self._save()
            done += 1
        return self._result()

    def _result(self) -> SearchResult:
        s = self.state
        settings = {
            "method": "search",
            **self.options.json(),
            "cost": self.cost.json(),
            "steps": sum(1 for entry in s.log if entry["step"] in CHANGING),
            "loss": self.loss(s.now),
            "ended": s.ended or "stopped",
        }
        final = measured(
            self.parent, self.images, s.network, s.bottleneck, settings, self.name, True
        )
        return SearchResult(s.start, final, s.first, s.now, s.log, s.ended or "stopped", s.target)

    # Fine-tuning ---------------------------------------------------------------------------

    def _tune(self) -> None:
        """A round of fine-tuning; kept if it helps on the crops held out."""
        s, options = self.state, self.options
        assert options.tune is not None and self.source is not None
        self.watch(f"fine-tuning, round {s.rounds + 1}", 0)
        steps = options.tune.steps or 0
        config = replace(
            options.tune,
            lmbda=options.lmbda,
            warmup=min(options.tune.warmup, steps // 4),
            # other crops in every round
            seed=options.tune.seed + 1000 * (s.rounds + 1),
        )
        device = finetune.choose_device(options.device)
        tuner = FineTuner(INTEGER, s.network, s.real, s.bottleneck, config, self.source, device)
        finetune.run(tuner, progress=False)
        bottleneck = rate.parameters_of(tuner.bottleneck)
        real = without_floor(real_network(tuner, s.real), s.network)
        network = measured(
            self.parent, self.images, tuned_network(tuner), bottleneck, {}, None, True
        ).network
        before = s.real, s.bottleneck, s.network, s.follow
        s.real, s.bottleneck, s.network, s.follow = real, bottleneck, network, False
        rd = bench_of(self._problem(), network).own()
        kept = rd.loss <= s.now.loss
        if kept:
            s.now = rd
        else:
            s.real, s.bottleneck, s.network, s.follow = before
        s.rounds, s.since = s.rounds + 1, 0
        if s.log:
            s.log.append(self._entry("tune", {"steps": steps, "kept": kept}))

    # State ---------------------------------------------------------------------------------

    def _save(self) -> None:
        if self.path is None:
            return
        s = self.state
        tensors = {"start": network_tensor(s.start), "network": network_tensor(s.network)}
        tensors |= {f"bottleneck.{k}": torch.from_numpy(v) for k, v in s.bottleneck.items()}
        tensors |= {f"real.{k}": torch.from_numpy(v) for k, v in arrays_of(s.real).items()}
        values = {
            "settings": self._settings,
            "first": asdict(s.first),
            "now": asdict(s.now),
        }
        for name in PLAIN:
            values[name] = getattr(s, name)
        save_state(self.path, STATE, tensors, values)

    def _load(self) -> State:
        path = self.path
        if path is None:
            raise ValueError("resuming takes a state")
        tensors, values = read_state(path, STATE)
        try:
            settings = values["settings"]
            arrays = {
                k.removeprefix("real."): v.numpy()
                for k, v in tensors.items()
                if k.startswith("real.")
            }
            bottleneck = {
                k.removeprefix("bottleneck."): v.numpy()
                for k, v in tensors.items()
                if k.startswith("bottleneck.")
            }
            state = State(
                start=network_of(tensors["start"]),
                network=network_of(tensors["network"]),
                real=with_arrays(self.parent, arrays),
                bottleneck=bottleneck,
                first=RD(**values["first"]),
                now=RD(**values["now"]),
                **{name: values[name] for name in PLAIN},
            )
        except (KeyError, ValueError, TypeError):
            raise not_a_state(path, STATE) from None
        for what, sentence in (
            ("calibration", "the calibration images differ"),
            ("training", "the training images differ"),
            ("network", "the checkpoint differs"),
            ("start", "the starting network differs"),
            ("options", "the options differ"),
        ):
            if settings[what] != self._settings[what]:
                raise UserError(
                    f"{sentence} from those of the saved search; give the same or start anew."
                )
        return state


def _check_same_shape(network: FloatNetwork, start: Network) -> None:
    """Raise UserError unless a network has the stages of a checkpoint."""
    for key, transform in network.transforms.items():
        mine = [(s.name, s.weight.shape) for s in transform.stages]
        theirs = [
            (s.name, s.convolution.weight.shape)
            for s in (start.transforms[key].stages if key in start.transforms else [])
        ]
        if mine != theirs:
            raise UserError(
                f"{key} of the starting network has other stages than the checkpoint; "
                "give the checkpoint that it was made of."
            )
