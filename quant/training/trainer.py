"""One run of training in memory: its options, its parameters and optimizers, its steps."""

from __future__ import annotations

import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from pytorch_optimizer import SOAP
from torch import Tensor

from lichen.errors import UserError
from lichen.quant.float.architectures import ARCHS, latents_of, new_model, parameters_of
from lichen.quant.float.channels import SCALE, add_scales
from lichen.quant.float.checkpoint import Checkpoint
from lichen.quant.training.average import average_in, copy_of
from lichen.quant.training.data import CropSource
from lichen.quant.training.device import Processes, bfloat16_pays, local_device
from lichen.quant.training.loss import Transforms, forward_train, rd_loss
from lichen.quant.training.normalization import use_products
from lichen.quant.training.runs import flatten, unflatten

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
    "frozen",
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
    where it pays (`bfloat16_pays`), and float32 elsewhere. `widths` (so states
    keep calling it) says how many channels layers have that don't have N or M
    (`lichen.quant.float.architectures.new_model`).
    `sparsity` gives the layers it names a factor before each output channel, whose magnitude adds
    to the loss with the layer's weight; they are folded away in what is saved.
    `frozen` names transforms that keep their weights, such as g_a and g_s while a new prior learns
    what their latents are.
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
    frozen: list[str] | None = None


def check_config(config: TrainConfig) -> None:
    """UserError that names the first unusable option."""
    c = config
    if (c.steps is None) == (c.minutes is None):
        raise UserError("give exactly one of steps and minutes.")
    factor = ARCHS[c.arch].factor if c.arch in ARCHS else 1
    for good, what in (
        (c.steps is None or c.steps >= 1, f"steps must be at least 1, not {c.steps}"),
        (c.minutes is None or c.minutes > 0, f"minutes must be above 0, not {c.minutes}"),
        (c.batch >= 1, f"batch must be at least 1, not {c.batch}"),
        (
            c.patch >= factor and c.patch % factor == 0,
            f"patch must be a multiple of {factor} for {c.arch}, not {c.patch}",
        ),
        (c.lmbda > 0, f"lmbda must be above 0, not {c.lmbda}"),
        (c.lr > 0, f"lr must be above 0, not {c.lr}"),
        (c.lr_adam > 0, f"lr adam must be above 0, not {c.lr_adam}"),
        (0 <= c.lr_end <= 1, f"lr end must be within 0 and 1, not {c.lr_end}"),
        (
            c.optimizer in OPTIMIZERS,
            f"optimizer must be one of {', '.join(OPTIMIZERS)}, not {c.optimizer}",
        ),
        (
            c.precision in PRECISIONS,
            f"precision must be one of {', '.join(PRECISIONS)}, not {c.precision}",
        ),
        (0 <= c.ema < 1, f"ema must be at least 0 and below 1, not {c.ema}"),
        (0 <= c.downscale <= 1, f"downscale must be within 0 and 1, not {c.downscale}"),
        (c.seed >= 0, f"seed must not be negative, not {c.seed}"),
    ):
        if not good:
            raise UserError(what + ".")
    if c.arch in ARCHS:
        has = [key for latent in latents_of(c.arch) for key in (latent.analysis, latent.synthesis)]
        for name in c.frozen or []:
            if name not in has:
                raise UserError(f"{c.arch} has {', '.join(has)} to freeze, not {name}.")


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
                f"batch must be a multiple of the {self.processes.count} processes, "
                f"not {config.batch}."
            )
        self.device = local_device(device, self.processes.local_rank)
        self.processes.join(self.device)
        torch.manual_seed(config.seed)
        self.model = new_model(config.arch, config.n, config.m, config.widths)
        use_products(self.model)
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
        frozen = tuple(f"{name}." for name in config.frozen or ())
        self.learned = {k: p for k, p in self.named.items() if not k.startswith(frozen)}
        for name in self.named.keys() - self.learned:
            self.named[name].requires_grad_(False)
        self.optimizers, self.lr = self._make_optimizers()
        self.average = copy_of(dict(self.model.named_parameters()))
        self._crops: tuple[int, Future[np.ndarray]] | None = None
        self._reader = ThreadPoolExecutor(1)

    def _make_optimizers(self) -> tuple[dict[str, tuple[Any, list[str]]], dict[str, float]]:
        """Optimizers with the names of their parameters, and their peak learning rates."""
        c = self.config
        matrices = [
            name
            for name, parameter in self.learned.items()
            if parameter.dim() >= 2 and name.startswith(("g_a.", "g_s.", "h_a.", "h_s."))
        ]
        if c.optimizer == "adam":
            matrices = []
        others = [name for name in self.learned if name not in matrices]
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

    def initialise(self, start: Checkpoint, prior: Checkpoint | None = None) -> None:
        """Start from the parameters of a checkpoint.

        One of the same architecture gives all of its parameters; one of another
        architecture, for example a factorized model for a hyperprior, its transforms g_a and
        g_s, while the rest keeps its fresh initialisation, or comes from `prior`, of this
        architecture.

        Raises UserError when N, M, the widths or the activations of the transforms differ, or
        nothing is left for `prior` to give.
        """
        same = start.arch == self.config.arch
        transforms = ("g_a.", "g_s.")
        mine = ("",) if same else transforms
        self._take(start, [name for name in self.named if name.startswith(mine)])
        self.init = _origin(start)
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
        if prior is not None:
            if same or prior.arch != self.config.arch:
                raise UserError(
                    f"a prior gives what a starting checkpoint of another architecture lacks: it "
                    f"must be {self.config.arch}, and the start must not ({prior.arch}, "
                    f"{start.arch})."
                )
            self._take(prior, [name for name in self.named if not name.startswith(transforms)])
            self.init["prior"] = _origin(prior)
        self.average = copy_of(dict(self.model.named_parameters()))

    def _take(self, start: Checkpoint, names: list[str]) -> None:
        """Take over these parameters, but for scales; UserError where they do not suit."""
        c = self.config
        if (start.n, start.m) != (c.n, c.m) or ARCHS[start.arch].gdn != ARCHS[c.arch].gdn:
            raise UserError(
                f"the starting checkpoint is {start.arch} with N = {start.n}, M = {start.m}, whose "
                f"transforms are not those of {c.arch} with N = {c.n}, M = {c.m}."
            )
        taken = [name for name in names if not name.endswith(SCALE)]
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
        gradients = [p.grad for p in self.learned.values() if p.grad is not None]
        self.processes.average([figures, *gradients])
        norm = torch.nn.utils.clip_grad_norm_(list(self.learned.values()), c.clip)
        if not (torch.isfinite(figures[0]) and torch.isfinite(norm)):
            # Raised before the weights are touched, so that no broken state gets saved.
            raise UserError(
                f"the loss is {figures[0].item()} with gradient norm {norm.item()} at step "
                f"{self.step}; lower the learning rate (the last saved state is intact)."
            )
        for optimizer, _ in self.optimizers.values():
            optimizer.step()
        self.step += 1
        average_in(self.average, self.named, c.ema, self.step)
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
                "or start anew."
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


def _origin(start: Checkpoint) -> dict[str, Any]:
    """Where a checkpoint came from, as far as it tells."""
    return {k: start.metadata[k] for k in ("source", "sha256") if k in start.metadata}
