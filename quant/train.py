"""Training of FP32 networks: CompressAI's rate-distortion loop, resumable to the bit.

The loss is CompressAI's `lmbda * 255**2 * MSE + bpp` (Ballé et al., "Variational image
compression with a scale hyperprior", ICLR 2018). Rounding is replaced by uniform noise;
from `round_from` of the schedule on, the synthesis reads latents rounded to the integer
grid (straight-through gradients) while the rate still comes from the noisy ones (Minnen
and Singh, "Channel-wise autoregressive entropy models", 2020): deployed symbols sit on
the integer grid with median 0, and this is where the network learns of it.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from lichen.errors import UserError
from lichen.quant.checkpoint import (
    ARCHS,
    Checkpoint,
    build_model,
    new_model,
    parameters_of,
    save_atomically,
    save_checkpoint,
)
from lichen.quant.data import CropSource
from lichen.quant.evaluate import integer_grid
from lichen.sim.images import list_images


@dataclass
class TrainConfig:
    """What a training run is made of; everything here is stored in the checkpoint.

    `steps` or `minutes` sets the length (exactly one of them); `lr` is the peak of a
    cosine that starts after `warmup` steps and ends at `lr_end * lr`; `ema` is the decay
    of the averaged weights that get saved (0 saves the raw ones: with the cosine down to
    1 % an average gained nothing, and halfway through it lags behind).
    """

    arch: str = "bmshj2018-factorized"
    n: int = 16
    m: int = 48
    lmbda: float = 0.013
    steps: int | None = None
    minutes: float | None = None
    batch: int = 8
    patch: int = 128
    lr: float = 1e-3
    lr_end: float = 0.01
    lr_aux: float = 1e-3
    warmup: int = 200
    clip: float = 1.0
    ema: float = 0.0
    round_from: float = 0.5
    downscale: float = 0.0
    seed: int = 0


def check_config(config: TrainConfig) -> None:
    """UserError that names the first unusable option."""
    c = config
    if (c.steps is None) == (c.minutes is None):
        raise UserError("give exactly one of --steps and --minutes.")
    factor = ARCHS[c.arch].factor if c.arch in ARCHS else 1
    for good, what in (
        (c.steps is None or c.steps >= 1, f"--steps must be at least 1, not {c.steps}"),
        (c.minutes is None or c.minutes > 0, f"--minutes must be above 0, not {c.minutes}"),
        (c.batch >= 1, f"--batch must be at least 1, not {c.batch}"),
        (
            c.patch >= factor and c.patch % factor == 0,
            f"--patch must be a multiple of {factor} for {c.arch}, not {c.patch}",
        ),
        (c.lmbda > 0, f"--lmbda must be above 0, not {c.lmbda}"),
        (c.lr > 0, f"--lr must be above 0, not {c.lr}"),
        (0 <= c.ema < 1, f"--ema must be at least 0 and below 1, not {c.ema}"),
        (0 <= c.downscale <= 1, f"--downscale must be within 0 and 1, not {c.downscale}"),
        (c.seed >= 0, f"--seed must not be negative, not {c.seed}"),
    ):
        if not good:
            raise UserError(what + ".")


def _ste_round(x: Tensor) -> Tensor:
    """Round to the integer grid; the gradient passes straight through."""
    return x + (torch.round(x) - x).detach()


def forward_train(model: Any, arch: str, x: Tensor, rounded: bool) -> dict[str, Any]:
    """Forward pass in training: noisy likelihoods; the synthesis reads noisy or rounded latents.

    Args:
        model: a CompressAI model of `arch` in training mode.
        x: images, float32 in 0..1, shape (batch, 3, height, width).
        rounded: True gives synthesis (and h_s) latents rounded to the integer grid.

    Returns:
        CompressAI's dictionary: `x_hat` and `likelihoods`.
    """
    if not rounded:
        return model(x)
    kind = ARCHS[arch]
    y = model.g_a(x)
    if not kind.hyperprior:
        _, likelihood = model.entropy_bottleneck(y)
        return {"x_hat": model.g_s(_ste_round(y)), "likelihoods": {"y": likelihood}}
    z = model.h_a(y if kind.means else torch.abs(y))
    _, z_likelihood = model.entropy_bottleneck(z)
    scales = model.h_s(_ste_round(z))
    means: Tensor | float = 0.0
    if kind.means:
        scales, means = scales.chunk(2, 1)
        _, likelihood = model.gaussian_conditional(y, scales, means=means)
    else:
        _, likelihood = model.gaussian_conditional(y, scales)
    x_hat = model.g_s(_ste_round(y - means) + means)
    return {"x_hat": x_hat, "likelihoods": {"y": likelihood, "z": z_likelihood}}


def rd_loss(out: dict[str, Any], x: Tensor, lmbda: float) -> tuple[Tensor, Tensor, Tensor]:
    """CompressAI's `lmbda * 255**2 * MSE + bpp`; returns (loss, bpp, mse), mse in 0..1 units."""
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    nats = torch.stack([-torch.log(p).sum() for p in out["likelihoods"].values()]).sum()
    bpp = nats / (math.log(2) * pixels)
    mse = torch.mean((out["x_hat"] - x) ** 2)
    return lmbda * 255**2 * mse + bpp, bpp, mse


class Trainer:
    """A training run in memory: model, two optimizers, averaged weights, step counter."""

    def __init__(self, config: TrainConfig, source: CropSource):
        check_config(config)
        self.config = config
        self.source = source
        self.step = 0
        self.elapsed = 0.0
        self.init: dict[str, Any] = {}
        torch.manual_seed(config.seed)
        self.model = new_model(config.arch, config.n, config.m)
        # Channels last is a sixth faster on CPUs.
        self.model.train().to(memory_format=torch.channels_last)
        self.named = dict(self.model.named_parameters())
        self.main = [k for k in self.named if not k.endswith(".quantiles")]
        self.aux = [k for k in self.named if k.endswith(".quantiles")]
        self.optimizer = torch.optim.Adam(
            [self.named[k] for k in self.main], lr=config.lr, fused=True
        )
        self.aux_optimizer = torch.optim.Adam([self.named[k] for k in self.aux], lr=config.lr_aux)
        self.average = parameters_of(self.model)

    def initialise(self, start: Checkpoint) -> None:
        """Start from the parameters of a checkpoint.

        One of the same architecture gives all of its parameters; one of another
        architecture, for example a factorized model for a hyperprior, its transforms g_a and
        g_s, while the rest keeps its fresh initialisation.

        Raises UserError when N, M or the activations of the transforms differ.
        """
        c = self.config
        same = start.arch == c.arch
        if (start.n, start.m) != (c.n, c.m) or ARCHS[start.arch].gdn != ARCHS[c.arch].gdn:
            raise UserError(
                f"the starting checkpoint is {start.arch} with N = {start.n}, M = {start.m}, whose "
                f"transforms are not those of {c.arch} with N = {c.n}, M = {c.m}."
            )
        taken = [name for name in self.named if same or name.startswith(("g_a.", "g_s."))]
        with torch.no_grad():
            for name in taken:
                self.named[name].copy_(start.state_dict[name])
        self.init = {k: start.metadata[k] for k in ("source", "sha256") if k in start.metadata}
        if not same:
            self.init |= {"arch": start.arch, "transforms": ["g_a", "g_s"]}
        self.average = parameters_of(self.model)

    @property
    def progress(self) -> float:
        """How far the schedule is, 0..1: in steps, or in minutes spent training."""
        if self.config.steps is not None:
            return min(1.0, self.step / max(1, self.config.steps))
        assert self.config.minutes is not None
        return min(1.0, self.elapsed / (60 * self.config.minutes))

    def learning_rate(self) -> float:
        """Peak times linear warm-up times cosine down to `lr_end`."""
        c = self.config
        cosine = c.lr_end + (1 - c.lr_end) * 0.5 * (1 + math.cos(math.pi * self.progress))
        return c.lr * cosine * min(1.0, (self.step + 1) / max(1, c.warmup))

    def train_step(self) -> tuple[float, float, float]:
        """One step of both optimizers; returns (loss, bpp, mse) of the batch, before the step."""
        c = self.config
        started = time.perf_counter()
        lr = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        crops = self.source.batch(c.seed, self.step, c.batch)
        x = (torch.from_numpy(crops).to(torch.float32) / 255).contiguous(
            memory_format=torch.channels_last
        )
        # The noise of a step depends on (seed, step) alone, as the crops do: resuming
        # needs no generator state.
        torch.manual_seed((c.seed * 1_000_003 + self.step + 1) % 2**63)
        out = forward_train(self.model, c.arch, x, self.progress >= c.round_from)
        loss, bpp, mse = rd_loss(out, x, c.lmbda)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([self.named[k] for k in self.main], c.clip)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            # Raised before the weights are touched, so that no broken state gets saved.
            raise UserError(
                f"the loss is {loss.item()} with gradient norm {norm.item()} at step {self.step}; "
                "lower --lr (the last saved state is intact)."
            )
        self.optimizer.step()
        self.aux_optimizer.zero_grad()
        self.model.aux_loss().backward()
        self.aux_optimizer.step()
        self.step += 1
        # Early on an average over 1/(1-ema) steps would be mostly initial weights.
        decay = min(c.ema, self.step / (self.step + 9)) if c.ema else 0.0
        with torch.no_grad():
            for name, parameter in self.named.items():
                self.average[name].lerp_(parameter, 1 - decay)
        self.elapsed += time.perf_counter() - started
        return loss.item(), bpp.item(), mse.item()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything needed to go on: tensors for safetensors, the rest for its JSON header."""
        tensors = {f"model.{k}": v for k, v in parameters_of(self.model).items()}
        tensors |= {f"average.{k}": v.clone() for k, v in self.average.items()}
        for names, optimizer in ((self.main, self.optimizer), (self.aux, self.aux_optimizer)):
            for name in names:
                for key, value in optimizer.state.get(self.named[name], {}).items():
                    tensors[f"adam.{key}.{name}"] = value.detach().clone()
        info = {
            "config": asdict(self.config),
            "step": self.step,
            "elapsed": self.elapsed,
            "images": self.source.digest,
            "init": self.init,
        }
        return tensors, info

    def restore(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Undo `state`: the next step is the one the saved run would have taken."""
        if info["images"] != self.source.digest:
            raise UserError(
                "the training images differ from those of the saved run; give the same folder "
                "or start anew without --resume."
            )
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(tensors[f"model.{name}"])
                self.average[name] = tensors[f"average.{name}"].clone()
        for names, optimizer in ((self.main, self.optimizer), (self.aux, self.aux_optimizer)):
            for name in names:
                if f"adam.step.{name}" not in tensors:
                    continue
                parameter = self.named[name]
                optimizer.state[parameter] = {"step": tensors[f"adam.step.{name}"].clone()}
                for key in ("exp_avg", "exp_avg_sq"):
                    # In the parameter's memory layout, which the fused optimizer relies on.
                    moment = torch.empty_like(parameter).copy_(tensors[f"adam.{key}.{name}"])
                    optimizer.state[parameter][key] = moment.detach()
        self.step = int(info["step"])
        self.elapsed = float(info["elapsed"])
        self.init = info.get("init", {})


def state_path(output: str | Path) -> Path:
    """Where the training state of a run lies: RUN.safetensors -> RUN.state.safetensors."""
    output = Path(output)
    return output.with_name(output.stem + ".state.safetensors")


def save_run(trainer: Trainer, output: Path) -> None:
    """Write the training state, then the checkpoint, both atomically.

    The checkpoint holds the averaged weights, and quantiles solved by bisection with the
    median at zero: CompressAI, too, then codes its symbols on the integer grid.
    """
    tensors, info = trainer.state()
    save_atomically(tensors, state_path(output), {"lichen-train": json.dumps(info)})
    c = trainer.config
    model = integer_grid(build_model(c.arch, c.n, c.m, trainer.average))
    metadata = {
        **asdict(c),
        "steps_done": trainer.step,
        "minutes_done": round(trainer.elapsed / 60, 2),
        "images_count": len(trainer.source.images),
        "images_sha256": trainer.source.digest,
    }
    if trainer.init:
        metadata["init"] = trainer.init
    save_checkpoint(output, c.arch, c.n, c.m, parameters_of(model), metadata)


def load_state(output: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the training state of a run: (tensors, header); UserError if there is none."""
    path = state_path(output)
    if not path.exists():
        raise UserError(
            f"{path} does not exist, so there is nothing to resume; leave out --resume to start."
        )
    try:
        with safe_open(path, framework="pt") as file:
            info = json.loads((file.metadata() or {})["lichen-train"])
            TrainConfig(**info["config"])
            return {key: file.get_tensor(key) for key in file.keys()}, info  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, TypeError, OSError):
        raise UserError(f"{path} is not a training state; delete it to start anew.") from None


@contextmanager
def deferred_interrupts() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying in the middle of an optimizer step."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, lambda signum, frame: received.append(signum))
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train(
    config: TrainConfig,
    images: str | Path,
    output: str | Path,
    *,
    init: Checkpoint | None = None,
    resume: bool = False,
    save_every: float = 60.0,
    progress: bool = True,
    stop_after: int | None = None,
    log: Callable[[str], None] | None = None,
) -> Trainer:
    """Train (or resume) a network; write `output` and, beside it, the training state.

    Args:
        config: the run; with `resume`, only `steps` and `minutes` may differ from the
            state's (with the same ones, the weights equal an uninterrupted run's bit for bit).
        images: folder of training images, each at least `patch` pixels wide and high.
        output: a path ending in `.safetensors`.
        init: a checkpoint of the same N and M to start from (see `Trainer.initialise`).
        resume: go on from the state beside `output`.
        save_every: seconds between intermediate saves.
        progress: show a progress bar on stderr.
        stop_after: stop (and save) after this many steps in this call, whatever the schedule.
        log: called about once a minute with a line of figures.

    Raises:
        UserError: unusable options, images or state; KeyboardInterrupt after SIGINT or
            SIGTERM, once the state is saved.
    """
    output = Path(output)
    if output.suffix != ".safetensors":
        raise UserError(f"the output {output} must end in .safetensors.")
    saved_state = load_state(output) if resume else None
    if saved_state is not None:
        _check_same_run(config, saved_state[1]["config"])
    source = CropSource(list_images(images), patch=config.patch, downscale=config.downscale)
    trainer = Trainer(config, source)
    if saved_state is not None:
        trainer.restore(*saved_state)
    elif init is not None:
        trainer.initialise(init)
    bar = tqdm(
        total=config.steps,
        initial=trainer.step,
        disable=not progress,
        unit="step",
        mininterval=2,
        desc=f"{config.arch} N={config.n} M={config.m}",
    )
    first = trainer.step
    saved = logged = time.monotonic()
    sums = np.zeros(3)
    count = 0
    with bar, deferred_interrupts() as interrupts:
        while trainer.progress < 1 and not interrupts:
            if stop_after is not None and trainer.step - first >= stop_after:
                break
            sums += trainer.train_step()
            count += 1
            bar.update()
            now = time.monotonic()
            if now - logged >= 60 or trainer.progress >= 1:
                loss, bpp, mse = sums / count
                quality = -10 * math.log10(mse)
                bar.set_postfix_str(
                    f"{trainer.progress:.0%} loss {loss:.3f} bpp {bpp:.3f} psnr {quality:.2f}"
                )
                if log:
                    log(
                        f"step {trainer.step} loss {loss:.4f} bpp {bpp:.4f} psnr {quality:.3f} "
                        f"lr {trainer.learning_rate():.2e} progress {trainer.progress:.3f}"
                    )
                sums, count, logged = np.zeros(3), 0, now
            if now - saved >= save_every:
                save_run(trainer, output)
                saved = now
        save_run(trainer, output)
    if interrupts:
        raise KeyboardInterrupt
    return trainer


def _check_same_run(config: TrainConfig, saved: dict[str, Any]) -> None:
    """A resumed run may get longer, nothing else; UserError names the option."""
    for name, value in asdict(config).items():
        if name not in ("steps", "minutes") and saved[name] != value:
            raise UserError(
                f"the saved run has {name} = {saved[name]}, not {value}; resume it with the same "
                "options or start anew without --resume."
            )
