"""Fine-tuning with ``R + lambda D + penalty`` through the exact integer arithmetic.

One `FineTuner` serves both phases of DRAQ (`lichen.quant.draq.draq`): the regularization of the
real network, and the training of the integer network by fake quantization. A step depends on the
shadows, the optimizer's moments and ``(seed, step)`` alone, so a resumed run goes on as if it
had never stopped.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lichen.errors import UserError
from lichen.network.description import Network
from lichen.network.flow import IMAGE, LATENTS, Latent, inward, outward
from lichen.processes import Interrupted
from lichen.quant.calibration.quantize import scale_step
from lichen.quant.float.network import FloatNetwork
from lichen.quant.training import outliers, rate
from lichen.quant.training.average import average_in, copy_of
from lichen.quant.training.data import CropSource
from lichen.quant.training.device import flushed_denormals
from lichen.quant.training.fake import BIN_MARGIN, FakeTransform
from lichen.quant.training.runs import (
    deferred_interrupts,
    flatten,
    network_of,
    network_tensor,
    not_a_state,
    read_state,
    save_state,
    unflatten,
)
from lichen.quant.training.tune_config import TuneConfig

REAL, INTEGER = "regularize", "finetune"
"""The phases: real arithmetic with a growing penalty, integer arithmetic with a fading one."""

OUTER = LATENTS[0]
"""The latent of the image itself."""


def _straight(value: Tensor, rounded: Tensor) -> Tensor:
    """``rounded``, with the gradient of ``value``."""
    return value + (rounded - value).detach()


def bias_scale(stage: Any) -> float:
    """What counts as the full scale of a stage's biases, in steps.

    The range of what it rounds, since calibration has made that a few standard deviations. Pixels,
    latents, scales and means have steps that are given, and reach far beyond the usual ones: there
    it is 1, as the real network has them. A step of 127 symbols is none that z could be trained by.
    """
    output = stage.start.scales.get("output") if stage.fixed else None
    if output is None:
        return float(stage.start.requantizer.output.magnitude)
    return float(1 / np.max(output))


def choose_device(name: str = "auto") -> torch.device:
    """``cpu``, ``cuda`` or, for ``auto``, a GPU when there is one; UserError if it is missing."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("there is no GPU that PyTorch can use; choose the device cpu.")
    try:
        return torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}; choose auto, cpu or cuda.") from None


class FineTuner:
    """A phase in memory: shadows, entropy bottleneck, optimizer, step counter.

    Parameters
    ----------
    phase : str
        `REAL` computes with the shadows themselves, `INTEGER` through fake quantization.
    start : Network
        Supplies the integers, and says the scales.
    real : FloatNetwork or None
        Where the shadows start: whole in the real phase, as far as the starting integers
        allow in the other. None starts at the integers.
    bottleneck : dict of str to array
        Parameters of the entropy bottleneck: of y, or with a hyperprior of z.
    source : CropSource
    """

    def __init__(
        self,
        phase: str,
        start: Network,
        real: FloatNetwork | None,
        bottleneck: dict[str, npt.NDArray],
        config: TuneConfig,
        source: CropSource,
        device: torch.device | None = None,
    ) -> None:
        self.phase, self.start, self.config, self.source = phase, start, config, source
        self.device = device or torch.device("cpu")
        self.step, self.elapsed = 0, 0.0
        within = None if phase == REAL else BIN_MARGIN
        transforms = {
            key: FakeTransform(
                start.transforms[key],
                None if real is None else real.transforms[key],
                within=within,
            )
            for key in start.transforms
        }
        self.transforms: Any = nn.ModuleDict(transforms).to(self.device)
        # The parent, as shadows that nothing moves.
        self.teacher: Any = None
        if config.distill and phase == INTEGER:
            if real is None:
                raise ValueError("distilling takes the real network as well")
            self.teacher = nn.ModuleDict(
                {
                    key: FakeTransform(start.transforms[key], real.transforms[key], within=None)
                    for key in start.transforms
                }
            ).to(self.device)
            self.teacher.requires_grad_(False)
        coded = start.transforms[start.latents[-1].analysis]
        self.bottleneck = rate.make_bottleneck(coded.out_channels, bottleneck).to(self.device)
        self.fraction = start.latent_fraction
        # g_a rounds a latent with a fraction down
        # (`lichen.quant.calibration.options.FixedOutput.floor`), but real shadows do not.
        self.offset = 0.5 if self.fraction and phase == INTEGER else 0.0
        inner = start.inner(OUTER)
        if inner is not None:
            # of one integer that h_s makes
            self.scale_step = scale_step(start.transforms[inner.synthesis].output)
        self.named: dict[str, nn.Parameter] = {}
        self.optimizers = self._make_optimizers()
        self.average = copy_of(self.named) if config.ema else {}

    def _make_optimizers(self) -> dict[str, tuple[Any, list[str]]]:
        """Optimizers, and the names of their parameters in the order of the groups."""
        groups: dict[str, list[dict[str, Any]]] = {"soap": [], "adam": []}
        names: dict[str, list[str]] = {"soap": [], "adam": []}
        for name, parameter, scale in self._scaled_parameters():
            self.named[name] = parameter
            kind = name.rpartition(".")[2]
            matrix = self.config.optimizer == "soap" and kind in ("weight", "gamma")
            owner = "soap" if matrix else "adam"
            group: dict[str, Any] = {"params": [parameter], "scale": scale}
            if matrix:
                # With its greatest dimension as the limit, the rows and columns of a kernel
                # merge: a weight has three factors, which the kernel's taps are one of.
                shape = parameter.shape
                group["max_precondition_dim"] = max(*shape, math.prod(shape[2:]))
            groups[owner].append(group)
            names[owner].append(name)
        result: dict[str, tuple[Any, list[str]]] = {}
        if groups["adam"]:
            adam = torch.optim.Adam(groups["adam"], betas=(0.9, 0.99), fused=True)
            result["adam"] = (adam, names["adam"])
        if groups["soap"]:
            from pytorch_optimizer import SOAP

            soap = SOAP(
                groups["soap"],
                betas=(0.95, 0.95),
                weight_decay=0.0,
                precondition_frequency=10,
                merge_dims=True,
            )
            result["soap"] = (soap, names["soap"])
        return result

    def fake_stages(self) -> list[Any]:
        """The fake stages of all transforms, in order."""
        return [stage for t in self.transforms.values() for stage in t.stages]

    def _scaled_parameters(self) -> list[tuple[str, nn.Parameter, float]]:
        """Name, parameter, and what its learning rate is multiplied with."""
        c, result = self.config, []
        for name, parameter in self.transforms.named_parameters():
            owner, _, kind = name.rpartition(".")
            stage = self.transforms.get_submodule(owner)
            hyper = name.partition(".")[0] not in (OUTER.analysis, OUTER.synthesis)
            if hyper and not c.lr_hyper:
                continue
            if kind == "weight":
                scale = float(stage.limit)
            elif kind == "bias":
                scale = bias_scale(stage)
            elif kind == "gamma":
                # most gammas are small, so a step of theirs is a greater part of them
                scale = float(1 << (stage.start.normalization.gamma_bits - 2))
            elif kind.startswith("log_"):
                # Without rounding, scales cancel.
                if self.phase == REAL or not c.lr_scales or hyper:
                    continue
                scale = c.lr_scales
            else:
                scale = 1.0  # beta, relative
            if hyper:
                scale *= c.lr_hyper
            result.append((name, parameter, scale))
        for name, parameter in self.bottleneck.named_parameters():
            if parameter.requires_grad:
                result.append((f"bottleneck.{name}", parameter, c.lr_entropy))
        return result

    @property
    def progress(self) -> float:
        """How far the phase is, 0 .. 1: in steps, or in minutes spent."""
        c = self.config
        if c.steps is not None:
            return min(1.0, self.step / c.steps) if c.steps else 1.0
        assert c.minutes is not None
        return min(1.0, self.elapsed / (60 * c.minutes)) if c.minutes else 1.0

    def learning_rate(self) -> float:
        """Peak times linear warm-up times cosine down to ``lr_end``."""
        c = self.config
        cosine = c.lr_end + (1 - c.lr_end) * 0.5 * (1 + math.cos(math.pi * self.progress))
        return c.lr * cosine * min(1.0, (self.step + 1) / max(1, c.warmup))

    def penalty_weight(self) -> float:
        """Rises linearly over the first half of the real phase; fades over the integer one."""
        part = min(1.0, 2 * self.progress) if self.phase == REAL else 1.0 - self.progress
        return self.config.penalty * part

    def loss(self, x: Tensor, rng_seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """``(R + lambda D, R, D)`` of pixels 0 .. 255 (B, 3, H, W): bpp, and MSE of 8 bits.

        With distillation, a part of the loss is not ``R + lambda D`` but lambda times what
        quantization adds to the parent's reconstruction: much smaller than D at low rates, and
        as much less noisy from batch to batch. The parent's g_s reads its own latents, rounded
        together with ours so that a symbol on the edge does not count as an error.
        """
        torch.manual_seed(rng_seed)
        part = 0.0 if self.teacher is None else self.config.distill
        read, soft, bits = self._code(x, part)
        if self.phase == REAL:
            x_hat = self.transforms[OUTER.synthesis].forward_real(read)
            if not torch.is_grad_enabled():
                x_hat = torch.round(x_hat).clamp(0, 255)
        else:
            x_hat = self.transforms[OUTER.synthesis](read, inward=True).float()
        bpp = bits / (x.shape[0] * x.shape[2] * x.shape[3])
        errors = torch.mean((x_hat - x) ** 2, dim=(1, 2, 3))
        mse = errors.mean()
        counts = torch.ones_like(errors)
        if self.config.distortion == "psnr":
            counts = (1 + self.config.level) / (1 + errors.detach())
        distortion = torch.mean(counts * errors)
        if self.teacher is not None and torch.is_grad_enabled():
            with torch.no_grad():
                y = self.teacher[OUTER.analysis].forward_real(x)
                # the rounding error is ours, the latent is the parent's
                own = y if self.start.means else y * 0.5**self.fraction
                picture = self.teacher[OUTER.synthesis].forward_real(own + (read - soft))
                target = picture.clamp(0, 255)
            added = torch.mean((x_hat - target) ** 2, dim=(1, 2, 3))
            distortion = (1 - part) * distortion + part * torch.mean(counts * added)
        return self.config.lmbda * distortion + bpp, bpp, mse

    def _run(self, key: str, x: Tensor, inward: bool = False) -> tuple[Tensor, Tensor]:
        """A transform's output, and the same before its rounding."""
        if self.phase == REAL:
            soft = self.transforms[key].forward_real(x)
            return soft, soft
        outputs, soft = self.transforms[key].run(x, inward=inward)
        return outputs[-1].to(soft.dtype), soft

    def _code(self, x: Tensor, part: float) -> tuple[Tensor, Tensor, Tensor]:
        """What g_s reads, the same without the rounding to symbols, and the bits.

        ``part`` of the gradient of the bits does not reach g_a: of the parent's R and D, which
        are in balance, only their common part may move the latents.
        """

        def seen(latent: Latent, source: tuple[Tensor, Tensor]) -> Tensor:
            value = source[0]
            if latent.source == IMAGE:
                return value
            form = self.start.transforms[latent.analysis].input
            value = value if form.signed else value.abs()
            return value.clamp(form.lo, form.hi) if self.phase == INTEGER else value

        values = inward(self.start.latents, (x, x), seen, self._run)
        y, y_soft = values[OUTER.name]
        if part:
            values[OUTER.name] = y, (1 - part) * y_soft + part * y_soft.detach()
        bits: list[Tensor] = []

        def read(latent: Latent, said: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
            parameters = None if said is None else said[0]
            value, soft, own = self._symbols(latent, *values[latent.name], parameters)
            bits.append(own)
            return value, soft

        def run(key: str, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            # what makes the picture is the caller's
            return x if key == OUTER.synthesis else self._run(key, x[0], inward=True)

        sent, soft = outward(self.start.latents, read, run)
        return sent, soft, functools.reduce(torch.add, bits)

    def _symbols(
        self, latent: Latent, value: Tensor, soft: Tensor, parameters: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What a latent's synthesis reads, the same without the rounding to symbols, and the bits.

        ``parameters`` are what the inner latent's synthesis says of it, if there is one.
        """
        f, means = self.start.fraction(latent), self.start.has_means(latent)
        real = (soft + self.offset) * 0.5**f if f else soft
        if parameters is None:
            bits = rate.noisy_bits(self.bottleneck, real.contiguous())
            return _straight(value, torch.floor(value + 0.5)), soft, bits
        scales, mu = parameters, torch.zeros((), dtype=value.dtype, device=value.device)
        if means:
            scales, mu = parameters.chunk(2, dim=1)
        bits = rate.noisy_gaussian_bits(real, scales * self.scale_step, mu * 0.5**f)
        symbols = torch.floor((value - mu) * 0.5**f + 0.5)
        if not means:
            return _straight(value * 0.5**f, symbols), real, bits
        read = symbols * 2**f + mu
        if self.phase == INTEGER:
            form = self.start.transforms[latent.synthesis].input
            read = read.clamp(form.lo, form.hi)
        return _straight(value, read), soft, bits

    def penalty(self) -> Tensor:
        """The outlier penalty, mean over the stages."""
        terms = [
            outliers.penalty(stage.folded_weight(log_input), self.config.sigmas)
            for transform in self.transforms.values()
            for stage, log_input in zip(transform.stages, transform.log_inputs(), strict=True)
        ]
        return torch.stack(terms).mean()

    def train_step(self) -> tuple[float, float, float]:
        """One step; returns (R + lambda D, bpp, mse) of the batch, before the step."""
        c = self.config
        started = time.perf_counter()
        lr = self.learning_rate()
        for optimizer, _ in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = lr * group["scale"]
        crops = torch.from_numpy(self.source.batch(c.seed, self.step, c.batch))
        x = crops.to(self.device, torch.float32).contiguous(memory_format=torch.channels_last)
        # The noise depends on (seed, step) alone, as the crops do: no generator is saved.
        loss, bpp, mse = self.loss(x, (c.seed * 1_000_003 + self.step + 1) % 2**63)
        weight = self.penalty_weight()
        total = loss + weight * self.penalty() if weight else loss
        for optimizer, _ in self.optimizers.values():
            optimizer.zero_grad()
        total.backward()
        if not torch.isfinite(total):
            raise UserError(
                f"the loss is {total.item()} at step {self.step}; lower the learning rate "
                "(the last saved state is intact)."
            )
        for optimizer, _ in self.optimizers.values():
            optimizer.step()
        self.step += 1
        if self.average:
            average_in(self.average, self.named, c.ema, self.step)
        result = loss.item(), bpp.item(), mse.item()
        self.elapsed += time.perf_counter() - started
        return result

    @torch.no_grad()
    def settle(self) -> None:
        """Take the averages for the parameters, at the end of a phase; nothing without them."""
        for name, value in self.average.items():
            self.named[name].copy_(value)

    @torch.no_grad()
    def evaluate(self, crops: list[npt.NDArray[np.uint8]]) -> tuple[float, float, float]:
        """Means of ``(R + lambda D, R, D)`` over crops (H, W, 3), noise from the seed."""
        total = np.zeros(3)
        for i, crop in enumerate(crops):
            x = torch.from_numpy(crop.copy()).permute(2, 0, 1)[None].to(self.device, torch.float32)
            x = x.contiguous(memory_format=torch.channels_last)
            total += [v.item() for v in self.loss(x, self.config.seed + i)]
        loss, bpp, mse = total / len(crops)
        return float(loss), float(bpp), float(mse)

    # State ---------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything needed to go on: tensors, and JSON values."""
        tensors = {f"model.{k}": v.detach().cpu().clone() for k, v in self._everything().items()}
        tensors |= {f"average.{k}": v.cpu().clone() for k, v in self.average.items()}
        values: dict[str, Any] = {}
        for kind, (optimizer, names) in self.optimizers.items():
            values[kind] = {"step": [g.get("step") for g in optimizer.param_groups], "state": {}}
            for name in names:
                found, rest = flatten(optimizer.state.get(self.named[name], {}))
                tensors |= {f"{kind}.{name}/{key}": value for key, value in found.items()}
                values[kind]["state"][name] = rest
        info = {
            "optimizers": values,
            "phase": self.phase,
            "config": asdict(self.config),
            "step": self.step,
            "elapsed": self.elapsed,
            "images": self.source.digest,
        }
        return tensors, info

    def _everything(self) -> dict[str, Tensor]:
        """Parameters and buffers that a phase starts from or changes."""
        result = dict(self.transforms.named_parameters()) | dict(self.transforms.named_buffers())
        if self.teacher is not None:
            for part in (self.teacher.named_parameters(), self.teacher.named_buffers()):
                result |= {f"teacher.{k}": v for k, v in part}
        return result | {f"bottleneck.{k}": v for k, v in self.bottleneck.named_parameters()}

    def restore(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Undo `state`: the next step is the one the saved run would have taken."""
        if info["images"] != self.source.digest:
            raise UserError(
                "the training images differ from those of the saved run; give the same folder "
                "or start anew."
            )
        with torch.no_grad():
            for name, value in self._everything().items():
                value.copy_(tensors[f"model.{name}"])
            for name, value in self.average.items():
                value.copy_(tensors[f"average.{name}"])
        for kind, (optimizer, names) in self.optimizers.items():
            saved = info["optimizers"][kind]
            for group, step in zip(optimizer.param_groups, saved["step"], strict=True):
                if step is not None:
                    group["step"] = step
            for name in names:
                prefix = f"{kind}.{name}/"
                found = {
                    key.removeprefix(prefix): value
                    for key, value in tensors.items()
                    if key.startswith(prefix)
                }
                if found:
                    parameter = self.named[name]
                    rest = saved["state"][name]
                    optimizer.state[parameter] = unflatten(found, rest, parameter)
        self.step, self.elapsed = int(info["step"]), float(info["elapsed"])


STATE = "lichen-draq"
"""The kind of a phase's state."""


def save_tuner(tuner: FineTuner, path: Path, extra: dict[str, Any]) -> None:
    """Write a phase's state atomically, with further JSON values and the starting network."""
    tensors, info = tuner.state()
    save_state(
        path, STATE, tensors | {"start": network_tensor(tuner.start)}, info | {"extra": extra}
    )


def load_tuner(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], Network]:
    """Tensors, JSON values and starting network that `save_tuner` wrote.

    Raises UserError when there is no state or it is damaged.
    """
    tensors, info = read_state(path, STATE)
    try:
        TuneConfig(**info["config"])
        return tensors, info, network_of(tensors.pop("start"))
    except (KeyError, TypeError):
        raise not_a_state(path, STATE) from None


@flushed_denormals()
def run(
    tuner: FineTuner,
    *,
    save: Callable[[], None] = lambda: None,
    save_every: float = 120.0,
    progress: bool = True,
    stop_after: int | None = None,
    log: Callable[[str], None] | None = None,
) -> None:
    """Run a phase to its end, saving now and then; KeyboardInterrupt after a signal, saved.

    ``stop_after`` ends it after so many steps of this call, whatever the schedule.
    """
    first = tuner.step
    saved = logged = time.monotonic()
    sums, count = np.zeros(3), 0
    bar = tqdm(
        total=tuner.config.steps,
        initial=tuner.step,
        disable=not progress,
        unit="step",
        mininterval=2,
        desc=tuner.phase,
    )
    with bar, deferred_interrupts() as interrupts:
        while tuner.progress < 1 and not interrupts:
            if stop_after is not None and tuner.step - first >= stop_after:
                break
            sums += tuner.train_step()
            count += 1
            bar.update()
            now = time.monotonic()
            if now - logged >= 20 or tuner.progress >= 1:
                loss, bpp, mse = sums / count
                quality = 10 * math.log10(255**2 / max(mse, 1e-9))
                pace = tuner.elapsed / tuner.step
                bar.set_postfix_str(
                    f"{tuner.progress:.0%} loss {loss:.3f} bpp {bpp:.3f} psnr {quality:.2f} "
                    f"{pace:.3f} s/step"
                )
                if log:
                    log(
                        f"{tuner.phase} step {tuner.step} loss {loss:.4f} bpp {bpp:.4f} "
                        f"psnr {quality:.3f} {pace:.3f} s/step"
                    )
                sums, count, logged = np.zeros(3), 0, now
            if now - saved >= save_every:
                save()
                saved = now
        save()
    if interrupts:
        raise Interrupted(interrupts[0])
