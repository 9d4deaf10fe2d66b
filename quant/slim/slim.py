"""GDN-Slimming: channels leave a trained FP32 network where they are missed least.

After "network slimming" (Liu et al., "Learning efficient convolutional networks through network
slimming", ICCV 2017) and first-order importance (Molchanov et al., "Importance estimation for
neural network pruning", CVPR 2019), for networks whose channels also meet in each other's norms.

Round after round, the channels whose loss costs the least per multiplication saved leave
(`importances`, `choose`), what they did on average moves into what stays (`remove`), and the rest
is fine-tuned by `lichen.quant.training.train`; before and between, the loss may press on a factor
before each channel (`TrainConfig.sparsity`). The result is an ordinary checkpoint.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from lichen.errors import UserError
from lichen.files import temporary_name, write_atomically
from lichen.quant.calibration.calibrate import CalibrationImages
from lichen.quant.float.architectures import (
    build_model,
    channel_counts,
    other_channel_counts,
)
from lichen.quant.float.channels import LATENTS, Coupling, macs, without
from lichen.quant.float.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from lichen.quant.float.state_dict import infer_architecture
from lichen.quant.slim.config import ChannelCounts, Cost, SlimConfig
from lichen.quant.slim.gates import Gates
from lichen.quant.slim.importance import Ranking, choose, importances, slimmable
from lichen.quant.slim.surgery import remove
from lichen.quant.training.data import CropSource
from lichen.quant.training.evaluate import integer_grid
from lichen.quant.training.loss import forward_train, rd_loss
from lichen.quant.training.runs import state_path
from lichen.quant.training.train import train
from lichen.quant.training.trainer import SLIMMED, check_config


@dataclass(frozen=True)
class Loss:
    """Means over crops: ``R + lambda D``, bits per pixel, squared error of 0 .. 255, PSNR in dB."""

    loss: float
    bpp: float
    mse: float
    psnr: float


@torch.no_grad()
def evaluate_loss(model: Any, arch: str, crops: Sequence[npt.NDArray], lmbda: float) -> Loss:
    """FP32 on crops (H, W, 3): symbols on the integer grid, bits as CompressAI estimates them."""
    model = integer_grid(model)
    rows = []
    for crop in crops:
        x = _images(crop[None])
        out = forward_train(model, arch, x, True)
        _, bpp, mse = (value.item() for value in rd_loss(out, x, lmbda))
        mse *= 255**2
        rows.append((lmbda * mse + bpp, bpp, mse, 10 * math.log10(255**2 / max(mse, 1e-9))))
    return Loss(*(round(float(value), 6) for value in np.mean(rows, axis=0)))


def _images(crops: npt.NDArray) -> Tensor:
    """Bytes (B, H, W, 3) as images 0 .. 1, (B, 3, H, W)."""
    x = torch.from_numpy(np.array(crops)).permute(0, 3, 1, 2).float() / 255
    return x.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class SlimResult:
    """What `slim` has done.

    Attributes
    ----------
    checkpoint : Checkpoint
        As written.
    kept : dict of str to list of int
        Channels of the unpruned network that each layer has kept, by layer.
    macs_before, macs_after : dict of str to int
        By transform, for one image of `lichen.network.description.PHOTO`.
    before, after : Loss
    rounds : list of dict
        Of each round: ``macs``, ``widths``, and losses ``pruned`` and ``tuned``.
    """

    checkpoint: Checkpoint
    kept: dict[str, list[int]]
    macs_before: dict[str, int]
    macs_after: dict[str, int]
    before: Loss
    after: Loss
    rounds: list[dict[str, Any]]

    def json(self) -> dict[str, Any]:
        c = self.checkpoint
        return {
            "arch": c.arch,
            "n": c.n,
            "m": c.m,
            "widths": channel_counts(c.arch, c.state_dict),
            "kept_channels": self.kept,
            "macs": {
                "before": sum(self.macs_before.values()),
                "after": sum(self.macs_after.values()),
                "transforms_before": self.macs_before,
                "transforms_after": self.macs_after,
            },
            "loss": {"before": asdict(self.before), "after": asdict(self.after)},
            "rounds": self.rounds,
        }


def work_folder(output: str | Path) -> Path:
    """Where a run keeps what a resumed run goes on from: NET.safetensors -> NET.slim/."""
    output = Path(output)
    return output.with_name(temporary_name(output.stem, ".slim"))


LOG = "log.json"


class _Run:
    """A run on disk: a log of what is done, and checkpoints of the round under way."""

    def __init__(self, folder: Path, identity: dict[str, Any], resume: bool) -> None:
        self.folder = folder
        self.log: dict[str, Any] = {**identity, "rounds": []}
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
            try:
                folder.mkdir(parents=True)
            except OSError as error:
                raise UserError(f"{folder} cannot be made ({error.strerror}).") from None
            self.save()
            return
        try:
            self.log = json.loads((folder / LOG).read_text(encoding="utf-8"))
            saved = {key: self.log[key] for key in identity}
            self.log["rounds"][:0] = []
        except FileNotFoundError:
            raise UserError(f"{folder} holds no run to resume; start a new run.") from None
        except (ValueError, KeyError, TypeError, OSError):
            raise UserError(f"{folder} is not the state of a run; delete it.") from None
        for key, value in json.loads(json.dumps(identity)).items():
            if saved[key] != value:
                mine, theirs = value, saved[key]
                if isinstance(value, dict):
                    key = next(k for k in value if theirs.get(k) != value[k])
                    mine, theirs = value[key], theirs.get(key)
                raise UserError(
                    f"the saved run has {key} = {theirs}, not {mine}; resume it with the same "
                    "options or start anew."
                )

    def save(self) -> None:
        write_atomically(self.folder / LOG, (json.dumps(self.log, indent=1) + "\n").encode())

    def file(self, number: int, what: str) -> Path:
        return self.folder / f"round-{number}-{what}.safetensors"

    def record(self, number: int, **values: Any) -> dict[str, Any]:
        """Add to a round's entry and save; returns the entry."""
        rounds = self.log["rounds"]
        while len(rounds) <= number:
            rounds.append({})
        rounds[number] |= values
        if values:
            self.save()
        return rounds[number]


def slim(
    start: Checkpoint,
    config: SlimConfig,
    source: CropSource,
    crops: CalibrationImages,
    output: str | Path,
    *,
    resume: bool = False,
    half: bool = False,
    cost: Cost | None = None,
    progress: bool = True,
    stop_after: int | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> SlimResult:
    """Slim a network, write ``output``; what it needs to go on lies in `work_folder` meanwhile.

    Parameters
    ----------
    start : Checkpoint
    config : SlimConfig
    source : CropSource
        Training crops, on which importance is measured, too.
    crops : CalibrationImages
        Held-out crops, on which losses are reported.
    output : path
        Ends in ``.safetensors``.
    resume : bool
        Go on from what an interrupted run has left; ends at the same network.
    half : bool
        Store float16.
    cost : callable or None
        What a network of given counts costs; ``config.macs`` is the part of it to keep. None
        takes the MACs of ``config.count``.
    stop_after : int or None
        Stop, as an interruption would, after this many training steps of a round.
    log : callable
        Called with a line after each round.

    Raises UserError for unusable options; KeyboardInterrupt after a signal, once all is saved.
    """
    output = Path(output)
    if output.suffix != ".safetensors":
        raise UserError(f"the output {output} must end in .safetensors.")
    arch = start.arch
    check_config(config.training(1, arch=arch, n=start.n, m=start.m))
    couplings = slimmable(arch, config.kinds)
    if not couplings:
        raise UserError(f"{arch} has no {' and no '.join(config.kinds)} to slim.")

    def of_macs(counts: ChannelCounts) -> float:
        return float(sum(macs(arch, counts, config.count).values()))

    cost = cost or of_macs
    counts = channel_counts(arch, start.state_dict)
    whole = cost(counts)
    if not whole:
        raise UserError(f"{arch} has no {' and no '.join(config.count)} to count the MACs of.")
    even = {
        coupling.name: Ranking.by_value(np.ones(counts[coupling.name])) for coupling in couplings
    }
    target = config.macs * whole
    choose(arch, counts, even, couplings, target=target, multiple=config.multiple, cost=cost)

    identity = {
        "config": asdict(config),
        "sha256": start.metadata.get("sha256", ""),
        "images": source.digest,
        "crops": crops.digest,
    }
    run = _Run(work_folder(output), identity, resume)
    if "before" not in run.log:
        model = build_model(*start[:4])
        run.log["before"] = asdict(evaluate_loss(model, arch, crops.crops, config.lmbda))
        run.save()
    rounds = _Rounds(run, config, source, crops, couplings, cost, whole, progress, stop_after, log)
    current = start
    for number in range(config.rounds + 1):
        current = rounds.run(number, current)
    return _save(start, current, config, run, output, half)


def _save(
    start: Checkpoint,
    current: Checkpoint,
    config: SlimConfig,
    run: _Run,
    output: Path,
    half: bool,
) -> SlimResult:
    """Write what the last round has made; the run's folder goes."""
    arch = start.arch
    before, after = (macs(arch, channel_counts(arch, c.state_dict)) for c in (start, current))
    rounds = [{"round": i, **entry} for i, entry in enumerate(run.log["rounds"]) if entry]
    metadata = {
        **{k: v for k, v in start.metadata.items() if k not in ("source", "sha256", "format")},
        **{k: current.metadata[k] for k in (*SLIMMED, "init") if k in current.metadata},
        "slim": {
            **asdict(config),
            "source": start.metadata.get("source"),
            "sha256": start.metadata.get("sha256"),
            "macs_before": sum(before.values()),
            "macs_after": sum(after.values()),
            "rounds": rounds,
        },
    }
    save_checkpoint(output, arch, current.n, current.m, current.state_dict, metadata, half=half)
    shutil.rmtree(run.folder, ignore_errors=True)
    return SlimResult(
        checkpoint=load_checkpoint(output),
        kept=current.metadata["kept_channels"],
        macs_before=before,
        macs_after=after,
        before=Loss(**run.log["before"]),
        after=Loss(**rounds[-1]["tuned"]),
        rounds=rounds,
    )


@dataclass(frozen=True)
class _Rounds:
    """What all rounds have in common; ``whole`` is the cost of the network that came in."""

    folder: _Run
    config: SlimConfig
    source: CropSource
    crops: CalibrationImages
    couplings: Sequence[Coupling]
    cost: Cost
    whole: float
    progress: bool
    stop_after: int | None
    log: Callable[[str], None]

    def run(self, number: int, current: Checkpoint) -> Checkpoint:
        """Prune and fine-tune, or what an interrupted run has left of it."""
        config, folder = self.config, self.folder
        last = number == config.rounds
        steps = config.final_steps if last and config.final_steps is not None else config.steps
        press = config.sparsity > 0 and not last
        if number == 0 and not (press and steps):
            folder.record(0)
            return current
        tuned, pruned = folder.file(number, "tuned"), folder.file(number, "pruned")
        if "tuned" in folder.record(number):
            return load_checkpoint(tuned)
        if "pruned" not in folder.record(number):
            self._prune(number, current, pruned)
        current = load_checkpoint(pruned)
        if steps:
            self._tune(current, tuned, steps, press)
        else:
            write_atomically(tuned, pruned.read_bytes())
        current = load_checkpoint(tuned)
        after = self._measure(current)
        entry = folder.record(number, tuned=asdict(after))
        # the tuned network is all that the next round needs
        for file in (pruned, state_path(tuned), folder.file(number - 1, "tuned")):
            file.unlink(missing_ok=True)
        self.log(
            f"round {number}: {100 * entry['cost']:.1f} % of the cost, R + lambda D "
            f"{entry['pruned']['loss']:.4f} pruned, {after.loss:.4f} after {steps} steps"
        )
        return current

    def _measure(self, network: Checkpoint) -> Loss:
        model = build_model(*network[:4])
        return evaluate_loss(model, network.arch, self.crops.crops, self.config.lmbda)

    def _prune(self, number: int, current: Checkpoint, pruned: Path) -> None:
        """Take this round's channels out, save and record it."""
        config = self.config
        part = 1 - (1 - config.macs) * number / config.rounds
        arch, n, m, state, metadata = _prune(
            current,
            config,
            self.couplings,
            self.source,
            number,
            part * self.whole,
            self.cost,
            progress=self.progress,
        )
        save_checkpoint(pruned, arch, n, m, state, metadata)
        now = channel_counts(arch, state)
        self.folder.record(
            number,
            widths=now,
            macs=sum(macs(arch, now).values()),
            cost=self.cost(now) / self.whole,
            pruned=asdict(self._measure(Checkpoint(arch, n, m, state, metadata))),
        )

    def _tune(self, current: Checkpoint, tuned: Path, steps: int, press: bool) -> None:
        """Fine-tune what is left; KeyboardInterrupt when that ends early."""
        now = channel_counts(current.arch, current.state_dict)
        options = self.config.training(
            steps,
            arch=current.arch,
            n=current.n,
            m=current.m,
            widths=other_channel_counts(*current[:4]) or None,
            sparsity=_pressures(self.config, self.couplings, now, self.cost) if press else None,
        )
        trainer = train(
            options,
            self.source,
            tuned,
            init=current,
            resume=state_path(tuned).exists(),
            progress=self.progress,
            stop_after=self.stop_after,
        )
        if trainer.step < steps:
            raise KeyboardInterrupt


def _pressures(
    config: SlimConfig, couplings: Sequence[Coupling], counts: ChannelCounts, cost: Cost
) -> dict[str, float]:
    """What the magnitude of a channel's factor weighs in the loss, by layer."""
    whole = cost(counts)
    return {
        coupling.name: config.sparsity * (whole - cost(without(coupling, counts, 1))) / whole
        for coupling in couplings
    }


IMPORTANCE_STEP = 1_000_000_000
"""Where the numbers of the crops that importance is measured on begin, beyond all training's."""


def _prune(
    current: Checkpoint,
    config: SlimConfig,
    couplings: Sequence[Coupling],
    source: CropSource,
    number: int,
    target: float,
    cost: Cost,
    *,
    progress: bool,
) -> Checkpoint:
    """The network of a round before its fine-tuning."""
    arch, state = current.arch, current.state_dict
    counts = channel_counts(arch, state)
    before = current.metadata.get("kept_channels", {})
    kept = {name: list(before.get(name, range(width))) for name, width in counts.items()}
    if cost(counts) > target:
        model = build_model(*current[:4]).train().requires_grad_(False)
        model.to(memory_format=torch.channels_last)
        first = IMPORTANCE_STEP + number * config.batches
        batches = [
            _images(source.batch(config.seed, first + i, config.batch).transpose(0, 2, 3, 1))
            for i in range(config.batches)
        ]
        moments = Gates(model, arch).measure(batches)
        with tqdm(
            total=config.batches, disable=not progress, unit="batch", desc=f"importance {number}"
        ) as bar:
            values = importances(
                model,
                arch,
                couplings,
                batches,
                method=config.importance,
                lmbda=config.lmbda,
                moments=None if config.compensation == "none" else moments,
                cost=cost,
                seed=config.seed + number,
                progress=bar.update,
            )
        rankings = {name: Ranking.by_value(value) for name, value in values.items()}
        if config.compensation == "linear" and config.importance in ("taylor", "exact"):
            # latents that leave take their rate with them, whatever explains them
            for coupling in couplings:
                if coupling.kind != LATENTS:
                    rankings[coupling.name] = Ranking.by_elimination(
                        values[coupling.name],
                        moments.products[coupling.name],
                        moments.outputs[coupling.name],
                    )
        chosen = choose(
            arch, counts, rankings, couplings, target=target, multiple=config.multiple, cost=cost
        )
        state = remove(model, arch, chosen, moments, config.compensation)
        for coupling in couplings:
            if coupling.name in chosen:
                for name, parts in coupling.layers.items():
                    width = counts[coupling.name]
                    kept[name] = [
                        kept[name][part * width + c]
                        for part in range(parts)
                        for c in chosen[coupling.name]
                    ]
    _, n, m = infer_architecture(state, "the slimmed network")
    metadata = dict(current.metadata)
    metadata.setdefault("unpruned_n", current.n)
    metadata.setdefault("unpruned_m", current.m)
    metadata["kept_channels"] = kept
    return Checkpoint(arch, n, m, state, metadata)
