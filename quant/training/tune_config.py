"""What a phase of fine-tuning is made of."""

from __future__ import annotations

from dataclasses import dataclass

from lichen.errors import UserError

DISTORTIONS = ("mse", "psnr")
"""What the loss takes the mean of, over crops."""


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """What a phase is made of; all of it is stored in the state.

    Attributes
    ----------
    steps, minutes : int or None, float or None
        Length; exactly one of them.
    batch, patch : int
        Crops per step and their side in pixels.
    optimizer : str
        ``soap`` (Vyas et al., "SOAP: Improving and stabilizing Shampoo using Adam", 2024) for
        weights and gammas, or ``adam``; everything else takes Adam in any case.
    lr : float
        Peak learning rate, relative to full scale: a weight of b bits moves about
        ``lr * 2**(b - 1)`` integer steps per optimizer step.
    lr_end : float
        Where the cosine ends, relative to the peak.
    warmup : int
        Steps of linear warm-up.
    ema : float
        Decay of an exponential average of all that is learned, which the phase ends with (0: it
        ends with the last step's).
    lr_scales : float
        Learning rate of the (logarithmic) scales, relative to ``lr``; 0 leaves them as they
        were calibrated.
    lr_entropy : float
        The same of the entropy bottleneck.
    lr_hyper : float
        The same of h_a and h_s, whose scales stay as they were calibrated.
    lmbda : float
        Weight of the mean squared error of 8-bit pixels against bits per pixel.
    distortion : str
        ``mse``, or ``psnr``: each crop's squared error counts ``(1 + level) / (1 + error)``, which
        is the gradient of the mean of PSNRs (and of 1 more, so that no crop counts without limit).
    level : float
        For ``psnr``, the squared error that counts as much as it does for ``mse``.
    distill : float
        0 .. 1: the part of the loss that keeps to the FP32 parent's reconstruction instead of
        the image, see `lichen.quant.training.finetune.FineTuner.loss`.
    penalty : float
        Greatest weight of the outlier penalty.
    sigmas : float
        Bound of the penalty, in standard deviations of an output channel's weights.
    downscale : float
        Probability that a crop is taken larger and reduced.
    seed : int
    """

    steps: int | None = None
    minutes: float | None = None
    batch: int = 8
    patch: int = 128
    optimizer: str = "soap"
    lr: float = 1e-3
    lr_end: float = 0.01
    warmup: int = 50
    ema: float = 0.0
    lr_scales: float = 3.0
    lr_entropy: float = 1.0
    lr_hyper: float = 0.1
    lmbda: float = 0.013
    distortion: str = "mse"
    level: float = 1.0
    distill: float = 0.0
    penalty: float = 0.01
    sigmas: float = 4.0
    downscale: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise UserError("fine-tuning needs either a number of steps or of minutes.")
        for good, what in (
            (self.steps is None or self.steps >= 0, f"steps must not be negative: {self.steps}"),
            (
                self.minutes is None or self.minutes >= 0,
                f"minutes must not be negative: {self.minutes}",
            ),
            (self.batch >= 1, f"the batch must be at least 1, not {self.batch}"),
            (self.patch >= 16, f"the patch must be at least 16, not {self.patch}"),
            (self.lr_scales >= 0, f"lr_scales must not be negative: {self.lr_scales}"),
            (
                self.optimizer in ("soap", "adam"),
                f"the optimizer must be soap or adam, not {self.optimizer!r}",
            ),
            (0 <= self.ema < 1, f"ema must be at least 0 and below 1, not {self.ema}"),
            (self.lr > 0, f"the learning rate must be above 0, not {self.lr}"),
            (self.lmbda > 0, f"lambda must be above 0, not {self.lmbda}"),
            (
                self.distortion in DISTORTIONS,
                f"the distortion must be mse or psnr, not {self.distortion!r}",
            ),
            (self.level >= 0, f"the level must not be negative: {self.level}"),
            (0 <= self.distill <= 1, f"distill must lie in 0 .. 1, not {self.distill}"),
            (self.penalty >= 0, f"the penalty must not be negative: {self.penalty}"),
            (self.sigmas > 0, f"the bound must be above 0 deviations, not {self.sigmas}"),
            (0 <= self.downscale <= 1, f"downscale must lie in 0 .. 1, not {self.downscale}"),
            (self.seed >= 0, f"the seed must not be negative: {self.seed}"),
        ):
            if not good:
                raise UserError(what + ".")
