"""Training of FP32 networks: CompressAI's rate-distortion loop, resumable to the step.

The loss is CompressAI's `lmbda * 255**2 * MSE + bpp` (Ballé et al., "Variational image
compression with a scale hyperprior", ICLR 2018). Rounding is replaced by uniform noise;
from `round_from` of the schedule on, the synthesis reads latents rounded to the integer
grid (straight-through gradients) while the rate still comes from the noisy ones (Minnen
and Singh, "Channel-wise autoregressive entropy models", 2020): deployed symbols sit on
the integer grid with median 0, and this is where the network learns of it.

The transforms' weights are optimized with SOAP (Vyas et al., "SOAP: Improving and stabilizing
Shampoo using Adam", 2024): for these networks 1500 steps of it lower the validation loss five
times as much as 1500 of Adam, each a tenth to a quarter slower (docs/manual/training.md). All else
takes Adam. With `precision` bfloat16 the transforms' products and feature maps are rounded to 8
bits of mantissa; weights, rate and distortion stay in float32.

Under torchrun every process computes a part of each batch, and gradients are averaged.
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_optimizer import SOAP
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from lichen.errors import UserError
from lichen.files import temporary_name
from lichen.processes import SIGNALS, Interrupted
from lichen.quant.float.architectures import ARCHS, build_model, new_model, parameters_of
from lichen.quant.float.channels import SCALE, add_scales, fold_scales
from lichen.quant.float.checkpoint import Checkpoint, save_checkpoint
from lichen.quant.float.tensors import save_tensors
from lichen.quant.training.data import CropSource
from lichen.quant.training.evaluate import integer_grid
from lichen.sim.images import list_images

HISTORY = (
    "arch",
    "lmbda",
    "steps_done",
    "minutes_done",
    "batch",
    "patch",
    "optimizer",
    "precision",
    "lr",
    "round_from",
)
"""What a checkpoint says of each run that its starting weights come from."""

SLIMMED = ("kept_channels", "unpruned_n", "unpruned_m")
"""What a checkpoint says of channels that have left it, and passes on."""

OPTIMIZERS = ("soap", "adam")
PRECISIONS = ("auto", "bfloat16", "float32")


@dataclass
class TrainConfig:
    """What a training run is made of; everything here is stored in the checkpoint.

    `steps` or `minutes` sets the length (exactly one of them); `batch` counts the crops of all
    processes together. `lr` is the peak of the transforms' weights and `lr_adam` that of all
    other parameters (with the optimizer adam, `lr` is everybody's): both follow a cosine that
    starts after `warmup` steps and ends at `lr_end` times the peak. `ema` is the decay of the
    averaged weights that get saved (0 saves the raw ones: with the cosine down to 1 % an
    average gained nothing, and halfway through it lags behind). `precision` auto is bfloat16
    where it pays (`bfloat16_pays`), and float32 elsewhere. `widths` are those of
    layers that don't have N (or M) channels (`lichen.quant.float.architectures.new_model`).
    `sparsity` gives the layers it names a factor before each output channel, whose magnitude adds
    to the loss with the layer's weight; they are folded away in what is saved.
    """

    arch: str = "bmshj2018-factorized"
    n: int = 16
    m: int = 48
    lmbda: float = 0.013
    steps: int | None = None
    minutes: float | None = None
    batch: int = 8
    patch: int = 128
    optimizer: str = "soap"
    precision: str = "auto"
    compile: bool = False
    lr: float = 2e-3
    lr_end: float = 0.01
    lr_adam: float = 1e-3
    warmup: int = 200
    clip: float = 1.0
    ema: float = 0.0
    round_from: float = 0.5
    downscale: float = 0.0
    seed: int = 0
    widths: dict[str, int] | None = None
    sparsity: dict[str, float] | None = None


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
        (c.lr_adam > 0, f"--lr-adam must be above 0, not {c.lr_adam}"),
        (
            c.optimizer in OPTIMIZERS,
            f"--optimizer must be one of {', '.join(OPTIMIZERS)}, not {c.optimizer}",
        ),
        (
            c.precision in PRECISIONS,
            f"--precision must be one of {', '.join(PRECISIONS)}, not {c.precision}",
        ),
        (0 <= c.ema < 1, f"--ema must be at least 0 and below 1, not {c.ema}"),
        (0 <= c.downscale <= 1, f"--downscale must be within 0 and 1, not {c.downscale}"),
        (c.seed >= 0, f"--seed must not be negative, not {c.seed}"),
    ):
        if not good:
            raise UserError(what + ".")


def _ste_round(x: Tensor) -> Tensor:
    """Round to the integer grid; the gradient passes straight through."""
    return x + (torch.round(x) - x).detach()


class Transforms:
    """A model's g_a, g_s, h_a and h_s as functions, in mixed precision and compiled if asked.

    In bfloat16 the last layers of all but g_s stay in float32: latents of a few hundred would
    lose their fraction, and these layers are small.
    """

    def __init__(self, model: Any, *, bfloat16: bool = False, compiled: bool = False):
        self._parts: dict[str, list[tuple[Callable[[Tensor], Tensor], bool]]] = {}
        for name in ("g_a", "g_s", "h_a", "h_s"):
            layers = getattr(model, name, None)
            if layers is None:
                continue
            parts = [(layers, bfloat16)]
            if bfloat16 and name != "g_s":
                parts = [(layers[:-1], True), (layers[-1], False)]
            self._parts[name] = [
                (torch.compile(part) if compiled else part, half) for part, half in parts
            ]

    def __call__(self, name: str, x: Tensor) -> Tensor:
        for part, half in self._parts[name]:
            with torch.autocast(x.device.type, torch.bfloat16) if half else nullcontext():
                x = part(x)
            x = x.float()
        return x


def forward_train(
    model: Any, arch: str, x: Tensor, rounded: bool, transforms: Transforms | None = None
) -> dict[str, Any]:
    """Forward pass in training: noisy likelihoods; the synthesis reads noisy or rounded latents.

    Args:
        model: a CompressAI model of `arch` in training mode.
        x: images, float32 in 0..1, shape (batch, 3, height, width).
        rounded: True gives synthesis (and h_s) latents rounded to the integer grid.
        transforms: what computes the transforms; by default the model's own modules.

    Returns:
        CompressAI's dictionary: `x_hat` and `likelihoods`.
    """
    run = transforms or Transforms(model)
    kind = ARCHS[arch]
    y = run("g_a", x)
    if not kind.hyperprior:
        noisy, likelihood = model.entropy_bottleneck(y)
        x_hat = run("g_s", _ste_round(y) if rounded else noisy)
        return {"x_hat": x_hat, "likelihoods": {"y": likelihood}}
    z = run("h_a", y if kind.means else torch.abs(y))
    noisy_z, z_likelihood = model.entropy_bottleneck(z)
    scales = run("h_s", _ste_round(z) if rounded else noisy_z)
    means = None
    if kind.means:
        scales, means = scales.chunk(2, 1)
    noisy, likelihood = model.gaussian_conditional(y, scales, means=means)
    if rounded:
        noisy = _ste_round(y) if means is None else _ste_round(y - means) + means
    return {"x_hat": run("g_s", noisy), "likelihoods": {"y": likelihood, "z": z_likelihood}}


def rd_loss(out: dict[str, Any], x: Tensor, lmbda: float) -> tuple[Tensor, Tensor, Tensor]:
    """CompressAI's `lmbda * 255**2 * MSE + bpp`; returns (loss, bpp, mse), mse in 0..1 units."""
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    nats = torch.stack([-torch.log(p).sum() for p in out["likelihoods"].values()]).sum()
    bpp = nats / (math.log(2) * pixels)
    mse = torch.mean((out["x_hat"] - x) ** 2)
    return lmbda * 255**2 * mse + bpp, bpp, mse


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


def _device(name: str, local_rank: int) -> torch.device:
    """The device of this process; `auto` is a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda needs a GPU that torch can use, and there is none.")
    if name == "cuda":
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    if name != "cpu":
        raise UserError(f"--device must be auto, cpu or cuda, not {name}.")
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


class Trainer:
    """A training run in memory: model, optimizers, averaged weights, step counter."""

    def __init__(self, config: TrainConfig, source: CropSource, device: str = "auto"):
        check_config(config)
        self.config = config
        self.source = source
        self.step = 0
        self.elapsed = 0.0
        self.progress = 0.0
        self.init: dict[str, Any] = {}
        self.slimmed: dict[str, Any] = {}
        self.processes = Processes()
        if config.batch % self.processes.count:
            raise UserError(
                f"--batch must be a multiple of the {self.processes.count} processes, "
                f"not {config.batch}."
            )
        self.device = _device(device, self.processes.local_rank)
        self.processes.join(self.device)
        torch.manual_seed(config.seed)
        self.model = new_model(config.arch, config.n, config.m, config.widths)
        self.scales = add_scales(self.model, config.arch, config.sparsity or {})
        # Channels last is a sixth faster on CPUs.
        self.model.train().to(self.device, memory_format=torch.channels_last)
        self.bfloat16 = config.precision == "bfloat16" or (
            config.precision == "auto" and bfloat16_pays(self.device)
        )
        self.transforms = Transforms(self.model, bfloat16=self.bfloat16, compiled=config.compile)
        # CompressAI's quantiles belong to its coder: they are solved for when a run is saved.
        self.named = {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if not name.endswith(".quantiles")
        }
        self.optimizers, self.lr = self._make_optimizers()
        self.average = self._copy()
        self._crops: tuple[int, Future[np.ndarray]] | None = None
        self._reader = ThreadPoolExecutor(1)

    def _make_optimizers(self) -> tuple[dict[str, tuple[Any, list[str]]], dict[str, float]]:
        """Optimizers with the names of their parameters, and their peak learning rates."""
        c = self.config
        matrices = [
            name
            for name, parameter in self.named.items()
            if parameter.dim() >= 2 and name.startswith(("g_a.", "g_s.", "h_a.", "h_s."))
        ]
        if c.optimizer == "adam":
            matrices = []
        others = [name for name in self.named if name not in matrices]
        lr_others = c.lr if c.optimizer == "adam" else c.lr_adam
        adam = torch.optim.Adam([self.named[k] for k in others], lr=lr_others, fused=True)
        optimizers: dict[str, tuple[Any, list[str]]] = {"adam": (adam, others)}
        if matrices:
            # With its greatest dimension as the limit, the rows and columns of a kernel merge:
            # a weight has three factors, which the kernel's 25 taps are one of.
            grouped: dict[int, list[str]] = {}
            for name in matrices:
                shape = self.named[name].shape
                limit = max(*shape, math.prod(shape[2:]))
                grouped.setdefault(limit, []).append(name)
            soap = SOAP(
                [
                    {"params": [self.named[k] for k in names], "max_precondition_dim": limit}
                    for limit, names in grouped.items()
                ],
                lr=c.lr,
                betas=(0.95, 0.95),
                weight_decay=0.0,
                precondition_frequency=10,
                merge_dims=True,
            )
            optimizers["soap"] = (soap, matrices)
        return optimizers, {"adam": lr_others, "soap": c.lr}

    def initialise(self, start: Checkpoint) -> None:
        """Start from the parameters of a checkpoint.

        One of the same architecture gives all of its parameters; one of another
        architecture, for example a factorized model for a hyperprior, its transforms g_a and
        g_s, while the rest keeps its fresh initialisation.

        Raises UserError when N, M, the widths or the activations of the transforms differ.
        """
        c = self.config
        same = start.arch == c.arch
        if (start.n, start.m) != (c.n, c.m) or ARCHS[start.arch].gdn != ARCHS[c.arch].gdn:
            raise UserError(
                f"the starting checkpoint is {start.arch} with N = {start.n}, M = {start.m}, whose "
                f"transforms are not those of {c.arch} with N = {c.n}, M = {c.m}."
            )
        mine = ("",) if same else ("g_a.", "g_s.")
        taken = [name for name in self.named if name.startswith(mine) and not name.endswith(SCALE)]
        for name in taken:
            if start.state_dict[name].shape != self.named[name].shape:
                raise UserError(
                    f"the starting checkpoint has {name} of shape "
                    f"{tuple(start.state_dict[name].shape)}, this run "
                    f"{tuple(self.named[name].shape)}: its layers have other widths."
                )
        with torch.no_grad():
            for name in taken:
                self.named[name].copy_(start.state_dict[name])
        self.init = {k: start.metadata[k] for k in ("source", "sha256") if k in start.metadata}
        if not same:
            self.init |= {"arch": start.arch, "transforms": ["g_a", "g_s"]}
        before = start.metadata.get("init", {}).get("history", [])
        if "steps_done" in start.metadata:
            before = [*before, {k: start.metadata[k] for k in HISTORY if k in start.metadata}]
        self.init["history"] = before
        self.slimmed = {k: start.metadata[k] for k in SLIMMED if k in start.metadata}
        if "kept_channels" in self.slimmed:
            self.slimmed["kept_channels"] = {
                name: channels
                for name, channels in self.slimmed["kept_channels"].items()
                if name.startswith(mine)
            }
        self.average = self._copy()

    def _copy(self) -> dict[str, Tensor]:
        return {k: p.detach().clone() for k, p in self.model.named_parameters()}

    def _progress(self) -> float:
        """How far the schedule is, 0..1: in steps, or in minutes spent training."""
        if self.config.steps is not None:
            return min(1.0, self.step / max(1, self.config.steps))
        assert self.config.minutes is not None
        # Processes whose clocks differ must still take the same steps.
        return self.processes.agree(
            min(1.0, self.elapsed / (60 * self.config.minutes)), self.device
        )

    def schedule(self) -> float:
        """What peak learning rates are multiplied with: linear warm-up, cosine to `lr_end`."""
        c = self.config
        cosine = c.lr_end + (1 - c.lr_end) * 0.5 * (1 + math.cos(math.pi * self.progress))
        return cosine * min(1.0, (self.step + 1) / max(1, c.warmup))

    def _batch(self) -> Tensor:
        """This process's part of the step's crops, 0..1; the next ones are cut meanwhile."""
        c, part = self.config, self.processes

        def cut(step: int) -> np.ndarray:
            return self.source.batch(c.seed, step, c.batch)[part.rank :: part.count]

        ready, self._crops = self._crops, (self.step + 1, self._reader.submit(cut, self.step + 1))
        crops = ready[1].result() if ready and ready[0] == self.step else cut(self.step)
        return (torch.from_numpy(crops).to(self.device, torch.float32) / 255).contiguous(
            memory_format=torch.channels_last
        )

    def train_step(self) -> tuple[float, float, float]:
        """One step of all optimizers; returns (loss, bpp, mse) of the batch, before the step."""
        c = self.config
        started = time.perf_counter()
        factor = self.schedule()
        for name, (optimizer, _) in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.lr[name] * factor
        x = self._batch()
        # The noise of a step depends on (seed, step, process) alone, as the crops do: resuming
        # needs no generator state.
        noise = (c.seed * 1_000_003 + self.step + 1) * self.processes.count + self.processes.rank
        torch.manual_seed(noise % 2**63)
        rounded = self.progress >= c.round_from
        out = forward_train(self.model, c.arch, x, rounded, self.transforms)
        loss, bpp, mse = rd_loss(out, x, c.lmbda)
        for optimizer, _ in self.optimizers.values():
            optimizer.zero_grad()
        total = loss
        for name, weight in (c.sparsity or {}).items():
            total = total + weight * self.scales[name].abs().sum()
        total.backward()
        figures = torch.stack([loss.detach(), bpp.detach(), mse.detach()])
        gradients = [p.grad for p in self.named.values() if p.grad is not None]
        self.processes.average([figures, *gradients])
        norm = torch.nn.utils.clip_grad_norm_(list(self.named.values()), c.clip)
        if not (torch.isfinite(figures[0]) and torch.isfinite(norm)):
            # Raised before the weights are touched, so that no broken state gets saved.
            raise UserError(
                f"the loss is {figures[0].item()} with gradient norm {norm.item()} at step "
                f"{self.step}; lower --lr (the last saved state is intact)."
            )
        for optimizer, _ in self.optimizers.values():
            optimizer.step()
        self.step += 1
        # Early on an average over 1/(1-ema) steps would be mostly initial weights.
        decay = min(c.ema, self.step / (self.step + 9)) if c.ema else 0.0
        with torch.no_grad():
            for name, parameter in self.named.items():
                self.average[name].lerp_(parameter, 1 - decay)
        self.elapsed += time.perf_counter() - started
        self.progress = self._progress()
        result = figures.tolist()
        return result[0], result[1], result[2]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything needed to go on: tensors for safetensors, the rest for its JSON header."""
        tensors = {f"model.{k}": v for k, v in parameters_of(self.model).items()}
        tensors |= {f"average.{k}": v.detach().cpu().clone() for k, v in self.average.items()}
        values: dict[str, dict[str, Any]] = {}
        for kind, (optimizer, names) in self.optimizers.items():
            groups = [
                {k: v for k, v in group.items() if k != "params"}
                for group in optimizer.param_groups
            ]
            values[kind] = {"groups": groups, "state": {}}
            for name in names:
                found, rest = flatten(optimizer.state.get(self.named[name], {}))
                tensors |= {f"{kind}.{name}/{key}": value for key, value in found.items()}
                values[kind]["state"][name] = rest
        info = {
            "config": asdict(self.config),
            "step": self.step,
            "elapsed": self.elapsed,
            "images": self.source.digest,
            "init": self.init,
            "slimmed": self.slimmed,
            "optimizers": values,
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
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
                self.average[name].copy_(tensors[f"average.{name}"])
        for kind, (optimizer, names) in self.optimizers.items():
            saved = info["optimizers"][kind]
            for group, values in zip(optimizer.param_groups, saved["groups"], strict=True):
                group.update(values)
            for name in names:
                start = f"{kind}.{name}/"
                found = {
                    k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)
                }
                if found:
                    parameter = self.named[name]
                    optimizer.state[parameter] = unflatten(found, saved["state"][name], parameter)
        self.step = int(info["step"])
        self.elapsed = float(info["elapsed"])
        self.init = info.get("init", {})
        self.slimmed = info.get("slimmed", {})
        self.progress = self._progress()


LAYOUT = "strides of transposed tensors"
"""Where `flatten` keeps the memory layout of what is not contiguous."""


def flatten(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state of one parameter as tensors, and JSON values.

    An item i of a list of tensors is called KEY/i; an empty list in its place is left out, and
    the value KEY then says how long the list is. A matrix may lie transposed in memory (an
    eigenbasis does), and products of such round differently: that is kept as well.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            tensors[key] = value
        elif isinstance(value, list | tuple):
            values[key] = len(value)
            for i, item in enumerate(value):
                if isinstance(item, Tensor):
                    tensors[f"{key}/{i}"] = item
        else:
            values[key] = value
    if tensors:
        values[LAYOUT] = {k: list(v.stride()) for k, v in tensors.items() if not v.is_contiguous()}
    return {k: v.detach().cpu().clone() for k, v in tensors.items()}, values


def unflatten(
    tensors: dict[str, Tensor], values: dict[str, Any], parameter: Tensor
) -> dict[str, Any]:
    """Undo `flatten`, on the parameter's device."""
    state: dict[str, Any] = dict(values)
    layout = state.pop(LAYOUT, None)
    for key in {k.split("/")[0] for k in tensors if "/" in k}:
        state[key] = [[] for _ in range(values[key])]
    for key, value in tensors.items():
        where, _, index = key.partition("/")
        # A copy in any case: what was read from a file may lie at odd addresses in memory, and
        # sums over it are then grouped, and rounded, in another way.
        if layout is None and value.shape == parameter.shape and not index:
            placed = torch.empty_like(parameter).detach()  # as older versions left it to be
        else:
            strides = (layout or {}).get(key, value.stride())
            placed = torch.empty_strided(
                value.shape, strides, dtype=value.dtype, device=parameter.device
            )
        placed.copy_(value)
        if index:
            state[where][int(index)] = placed
        else:
            state[key] = placed
    return state


def state_path(output: str | Path) -> Path:
    """Where the training state of a run lies: RUN.safetensors -> RUN.state.safetensors."""
    output = Path(output)
    return output.with_name(temporary_name(output.stem, ".state.safetensors"))


def save_run(trainer: Trainer, output: Path, half: bool = False) -> None:
    """Write the training state, then the checkpoint, both atomically.

    The checkpoint holds the averaged weights, and quantiles solved by bisection with the
    median at zero: CompressAI, too, then codes its symbols on the integer grid. Of processes
    that train together the first one writes.
    """
    if trainer.processes.rank:
        return
    tensors, info = trainer.state()
    save_tensors(tensors, state_path(output), {"lichen-train": json.dumps(info)})
    c = trainer.config
    average = fold_scales({k: v.cpu() for k, v in trainer.average.items()}, c.arch)
    model = integer_grid(build_model(c.arch, c.n, c.m, average))
    metadata = {
        **asdict(c),
        "precision": "bfloat16" if trainer.bfloat16 else "float32",
        "steps_done": trainer.step,
        "minutes_done": round(trainer.elapsed / 60, 2),
        "images_count": len(trainer.source.images),
        "images_sha256": trainer.source.digest,
    }
    if trainer.init:
        metadata["init"] = trainer.init
    metadata |= trainer.slimmed
    save_checkpoint(output, c.arch, c.n, c.m, parameters_of(model), metadata, half=half)


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
    """Collect signals to end instead of dying in the middle of an optimizer step.

    One that is ignored (by ``nohup``) stays so.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {
        number: signal.signal(number, lambda signum, frame: received.append(signum))
        for number in SIGNALS
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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


@flushed_denormals()
def train(
    config: TrainConfig,
    images: str | Path | CropSource,
    output: str | Path,
    *,
    init: Checkpoint | None = None,
    resume: bool = False,
    save_every: float = 60.0,
    progress: bool = True,
    stop_after: int | None = None,
    log: Callable[[str], None] | None = None,
    device: str = "auto",
    tensorboard: str | Path | None = None,
    half: bool = False,
) -> Trainer:
    """Train (or resume) a network; write `output` and, beside it, the training state.

    Args:
        config: the run; with `resume`, only `steps` and `minutes` may differ from the
            state's (with the same ones, the weights equal an uninterrupted run's bit for bit).
        images: folder of training images, each at least `patch` pixels wide and high, or what
            `CropSource` has made of them.
        output: a path ending in `.safetensors`.
        init: a checkpoint of the same widths to start from (see `Trainer.initialise`).
        resume: go on from the state beside `output`.
        save_every: seconds between intermediate saves.
        progress: show a progress bar on stderr.
        stop_after: stop (and save) after this many steps in this call, whatever the schedule.
        log: called about once a minute with a line of figures.
        device: auto (a GPU where there is one), cpu or cuda.
        tensorboard: folder for TensorBoard's event files: loss, bpp, psnr and learning rate
            about every ten seconds.
        half: store the checkpoint in float16; the training state keeps float32.

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
    if isinstance(images, CropSource):
        source = images
    else:
        source = CropSource(list_images(images), patch=config.patch, downscale=config.downscale)
    trainer = Trainer(config, source, device)
    if saved_state is not None:
        trainer.restore(*saved_state)
    elif init is not None:
        trainer.initialise(init)
    bar = tqdm(
        total=config.steps,
        initial=trainer.step,
        disable=not progress or trainer.processes.rank > 0,
        unit="step",
        mininterval=2,
        desc=f"{config.arch} N={config.n} M={config.m}",
    )
    writer = None
    if tensorboard is not None and not trainer.processes.rank:
        writer = _summary_writer(tensorboard, trainer.step)
    first = trainer.step
    saved = logged = written = time.monotonic()
    sums, recent = np.zeros(3), np.zeros(4)
    count = 0
    with bar, deferred_interrupts() as interrupts, writer or nullcontext():
        while trainer.progress < 1 and not _interrupted(trainer, interrupts):
            if stop_after is not None and trainer.step - first >= stop_after:
                break
            figures = trainer.train_step()
            sums += figures
            recent += (*figures, 1)
            count += 1
            bar.update()
            now = time.monotonic()
            if writer is not None and (now - written >= 10 or trainer.progress >= 1):
                loss, bpp, mse = recent[:3] / recent[3]
                rate = trainer.lr["soap" if "soap" in trainer.optimizers else "adam"]
                for name, value in (
                    ("loss", loss),
                    ("bpp", bpp),
                    ("psnr", -10 * math.log10(mse)),
                    ("learning rate", rate * trainer.schedule()),
                ):
                    writer.add_scalar(name, value, trainer.step)
                recent, written = np.zeros(4), now
            if now - logged >= 60 or trainer.progress >= 1:
                loss, bpp, mse = sums / count
                quality = -10 * math.log10(mse)
                bar.set_postfix_str(
                    f"{trainer.progress:.0%} loss {loss:.3f} bpp {bpp:.3f} psnr {quality:.2f}"
                )
                if log:
                    log(
                        f"step {trainer.step} loss {loss:.4f} bpp {bpp:.4f} psnr {quality:.3f} "
                        f"schedule {trainer.schedule():.4f} progress {trainer.progress:.3f} "
                        f"{trainer.elapsed / trainer.step:.4f} s/step"
                    )
                sums, count, logged = np.zeros(3), 0, now
            if now - saved >= save_every:
                save_run(trainer, output, half)
                saved = now
        save_run(trainer, output, half)
    if interrupts:
        raise Interrupted(interrupts[0])
    return trainer


def _interrupted(trainer: Trainer, interrupts: list[int]) -> bool:
    """Whether this process or one that it trains with has received a signal."""
    if trainer.processes.count == 1:
        return bool(interrupts)
    if trainer.processes.agree(float(bool(interrupts)), trainer.device):
        interrupts.append(signal.SIGTERM)
    return bool(interrupts)


def _summary_writer(folder: str | Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "TensorBoard's logs need its package; install it with: pip install tensorboard."
        ) from None
    try:
        return SummaryWriter(str(folder), purge_step=step)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}).") from None


def _check_same_run(config: TrainConfig, saved: dict[str, Any]) -> None:
    """A resumed run may get longer, nothing else; UserError names the option."""
    saved = asdict(TrainConfig(**saved))  # with what an older state doesn't know of
    for name, value in asdict(config).items():
        if name not in ("steps", "minutes") and saved[name] != value:
            raise UserError(
                f"the saved run has {name} = {saved[name]}, not {value}; resume it with the same "
                "options or start anew without --resume."
            )
