"""What all commands have in common: they look at the files they are given before they begin."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from lichen import files
from lichen.commands import _config
from lichen.errors import UserError

EXTRA_RESULTS = ("json_file", "plot_file", "log_file", "outlier_plot")
"""Parameters that name a file to write beside a command's main result."""

RESULTS = ("output", "latents", *EXTRA_RESULTS)
"""Parameters that name a file or folder to write; whatever else names files names what is read."""

GROUPS: dict[str, tuple[str, ...]] = {
    "Results": (*RESULTS, "tensorboard", "name", "half", "evaluate", "waves", "quiet"),
    "Gateware": (
        "board_name", "link_kind", "transform_name", "max_width", "multipliers", "folding_file",
        "clock",
    ),
    "Bits": (
        "weight_bits", "activation_bits", "gamma_bits", "u_bits", "gdn_input_bits", "latent_bits",
        "latent_fraction", "bits_from", "some_bits", "least_bits",
    ),
    "Calibration": (
        "calibrate", "max_images", "clip", "percentile", "clip_factor",
        "gdn_input_clip_factor", "split",
        "latent_gain", "equations", "rounding", "refit", "samples", "held_out",
    ),
    "Training": (
        "train_folder", "steps", "minutes", "steps_per_round", "tune_every", "final_steps",
        "regularize_steps", "regularize_lr", "lmbda", "lr", "lr_adam", "lr_scales", "warmup", "ema",
        "round_from", "downscale", "frozen", "batch", "patch", "optimizer", "precision", "compile",
        "distortion", "distill", "penalty", "sigmas", "init", "validate",
    ),
    "Running": (
        "threads", "device", "scheduler", "build_dir", "resume", "overwrite", "save_every",
        "stop_after", "config",
    ),
}  # fmt: skip
"""Headings of the help, and the parameters under them; what is in none comes first."""


class Command(click.Command):
    """A command that reads options from a file and says beside its result which ones it had.

    Before it begins it refuses to write over what it reads or writes.
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        # where none is given, click makes one of the function's name, which is `command`
        self.params.append(
            click.Option(
                ["--config"], metavar="FILE", type=click.Path(path_type=Path), is_eager=True,
                expose_value=False, callback=_read_config,
                help="Take options from a TOML file, such as lies beside every result; those "
                "given here go before.",
            )
        )  # fmt: skip

    def invoke(self, ctx: click.Context) -> Any:
        files.forget_written()
        check_paths(self, ctx.params)
        try:
            answer = super().invoke(ctx)
        except (click.exceptions.Exit, SystemExit):  # there may be a result all the same
            _config.write_beside(self, ctx.params, ("output", *EXTRA_RESULTS))
            raise
        _config.write_beside(self, ctx.params, ("output", *EXTRA_RESULTS))
        return answer

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under the headings of `GROUPS`."""
        heading = {name: group for group, names in GROUPS.items() for name in names}
        found: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                found.setdefault(heading.get(str(parameter.name), "Options"), []).append(record)
        for group in ("Options", *GROUPS):
            if found.get(group):
                with formatter.section(group):
                    formatter.write_dl(found[group])


def _read_config(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    if path is not None and not ctx.resilient_parsing:
        ctx.default_map = _config.read(path, ctx.command)


def check_paths(command: click.Command, values: dict[str, Any]) -> None:
    """UserError where a result could not be written, or would replace an input or another result.

    Names count as the same where they lead to the same file, through links or otherwise.
    """
    labels = {parameter.name: _label(parameter) for parameter in command.params}
    results = [
        (labels[name], Path(values[name]))
        for name in RESULTS
        if name in labels and values.get(name) not in (None, "-")
    ]
    for i, (label, path) in enumerate(results):
        for other, earlier in results[:i]:
            if files.same_file(path, earlier):
                raise UserError(f"{other} and {label} both name {path}; name two files.")
    for name, value in values.items():
        if name in RESULTS or name not in labels:
            continue
        for source in _names(value):
            for label, path in results:
                if _reads(source, path):
                    raise UserError(
                        f"{label} {path} would replace what {labels[name]} reads; name another "
                        "file."
                    )
    output = values.get("output")
    for name in EXTRA_RESULTS:
        if name in labels and values.get(name) not in (None, "-"):
            path = Path(values[name])
            # what goes into the main result's folder finds it once that is there
            if output is None or not _is_below(path, Path(output)):
                _check_writable(path)


def _label(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Option):
        return max(parameter.opts, key=len)
    return parameter.make_metavar(click.Context(click.Command(None))).strip("[].")


def _names(value: Any) -> Iterator[str]:
    """What may name files in a parameter's value."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _names(item)
    elif isinstance(value, (str, Path)) and str(value):
        yield str(value)


def _reads(source: str, path: Path) -> bool:
    """Whether reading a source, be it a file, a folder or a shipped network, reads ``path``."""
    # Path raises for names that are too long
    if not os.path.isfile(path):  # noqa: PTH113
        return False
    if os.path.isdir(source):  # noqa: PTH112
        from lichen.sim.images import EXTENSIONS

        inside = files.same_file(source, path.parent)
        return inside and path.suffix.lower() in (*EXTENSIONS, ".lic")
    if os.path.exists(source):  # noqa: PTH110
        return files.same_file(source, path)
    from lichen import models

    shipped = (models.shipped_network(source), models.shipped_parent(source))
    return any(file is not None and files.same_file(file, path) for file in shipped)


def _is_below(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents


def _check_writable(path: Path) -> None:
    """UserError where a file certainly cannot be written: better now than after the work."""
    with files.writing(path):
        if path.is_dir():
            raise UserError(f"cannot write {path}: it is a folder.")
        if path.exists():
            if not os.access(path, os.W_OK):
                raise UserError(f"cannot write {path}: it is write-protected.")
        elif not path.parent.is_dir():
            raise UserError(f"cannot write {path}: the folder {path.parent} does not exist.")
        elif not os.access(Path(os.path.realpath(path)).parent, os.W_OK | os.X_OK):
            raise UserError(f"cannot write {path}: its folder is write-protected.")
