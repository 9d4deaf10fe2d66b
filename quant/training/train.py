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

import math
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from lichen.errors import UserError
from lichen.processes import Interrupted
from lichen.quant.float.architectures import build_model, parameters_of
from lichen.quant.float.channels import fold_scales
from lichen.quant.float.checkpoint import Checkpoint, save_checkpoint
from lichen.quant.training.data import CropSource
from lichen.quant.training.device import flushed_denormals
from lichen.quant.training.evaluate import integer_grid
from lichen.quant.training.runs import (
    check_same,
    deferred_interrupts,
    not_a_state,
    read_state,
    save_state,
    state_path,
)
from lichen.quant.training.trainer import TrainConfig, Trainer
from lichen.sim.images import list_images

STATE = "lichen-train"
"""The kind of a training run's state."""


def save_run(trainer: Trainer, output: Path, half: bool = False) -> None:
    """Write the training state, then the checkpoint, both atomically.

    The checkpoint holds the averaged weights, and quantiles solved by bisection with the
    median at zero: CompressAI, too, then codes its symbols on the integer grid. Of processes
    that train together the first one writes.
    """
    if trainer.processes.rank:
        return
    tensors, info = trainer.state()
    save_state(state_path(output), STATE, tensors, info)
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
    tensors, info = read_state(path, STATE)
    try:
        TrainConfig(**info["config"])
    except (KeyError, TypeError):
        raise not_a_state(path, STATE) from None
    return tensors, info


@flushed_denormals()
def train(
    config: TrainConfig,
    images: str | Path | CropSource,
    output: str | Path,
    *,
    init: Checkpoint | None = None,
    prior: Checkpoint | None = None,
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
        prior: where the rest comes from if `init` is of another architecture.
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
        trainer.initialise(init, prior)
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
    first, saved = trainer.step, time.monotonic()
    figures = _Figures(trainer, bar, writer, log)
    with bar, deferred_interrupts() as interrupts, writer or nullcontext():
        while trainer.progress < 1 and not _interrupted(trainer, interrupts):
            if stop_after is not None and trainer.step - first >= stop_after:
                break
            figures.add(trainer.train_step())
            bar.update()
            if time.monotonic() - saved >= save_every:
                save_run(trainer, output, half)
                saved = time.monotonic()
        save_run(trainer, output, half)
    if interrupts:
        raise Interrupted(interrupts[0])
    return trainer


class _Figures:
    """Loss, bits and distortion since they were last told, for whoever watches."""

    def __init__(
        self, trainer: Trainer, bar: Any, writer: Any, log: Callable[[str], None] | None
    ) -> None:
        self.trainer, self.bar, self.writer, self.log = trainer, bar, writer, log
        self.logged = self.written = time.monotonic()
        self.sums, self.recent = np.zeros(4), np.zeros(4)

    def add(self, figures: tuple[float, float, float]) -> None:
        """Count a step's; a log gets a line a minute, TensorBoard a point in ten seconds."""
        self.sums += (*figures, 1)
        self.recent += (*figures, 1)
        now, ends = time.monotonic(), self.trainer.progress >= 1
        if self.writer is not None and (now - self.written >= 10 or ends):
            self._write()
            self.recent, self.written = np.zeros(4), now
        if now - self.logged >= 60 or ends:
            self._tell()
            self.sums, self.logged = np.zeros(4), now

    def _write(self) -> None:
        trainer = self.trainer
        loss, bpp, mse = self.recent[:3] / self.recent[3]
        rate = trainer.lr["soap" if "soap" in trainer.optimizers else "adam"]
        for name, value in (
            ("loss", loss),
            ("bpp", bpp),
            ("psnr", -10 * math.log10(mse)),
            ("learning rate", rate * trainer.schedule()),
        ):
            self.writer.add_scalar(name, value, trainer.step)

    def _tell(self) -> None:
        trainer = self.trainer
        loss, bpp, mse = self.sums[:3] / self.sums[3]
        quality = -10 * math.log10(mse)
        self.bar.set_postfix_str(
            f"{trainer.progress:.0%} loss {loss:.3f} bpp {bpp:.3f} psnr {quality:.2f}"
        )
        if self.log:
            self.log(
                f"step {trainer.step} loss {loss:.4f} bpp {bpp:.4f} psnr {quality:.3f} "
                f"schedule {trainer.schedule():.4f} progress {trainer.progress:.3f} "
                f"{trainer.elapsed / trainer.step:.4f} s/step"
            )


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
    longer = ("steps", "minutes")
    given = {name: value for name, value in asdict(config).items() if name not in longer}
    # with what an older state doesn't know of
    check_same(asdict(TrainConfig(**saved)), given)
