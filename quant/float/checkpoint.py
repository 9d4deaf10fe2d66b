"""FP32 checkpoints: the project's own safetensors and CompressAI's `.pth`, however wrapped."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lichen import caches
from lichen.errors import UserError
from lichen.models import shipped_parent
from lichen.network.file import FP32_FORMAT, HEADER
from lichen.quant.float.architectures import ARCHS, channel_counts
from lichen.quant.float.state_dict import checked_parameters, find_state
from lichen.quant.float.tensors import DIGEST, digest_of, first_line, read_tensors, save_tensors

VERSION = 1

log = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    """What `load_checkpoint` returns; `state_dict` holds parameters only, as float32."""

    arch: str
    n: int
    m: int
    state_dict: dict[str, Tensor]
    metadata: dict[str, Any]


def stated_lambda(metadata: Mapping[str, Any]) -> float | None:
    """The lambda that a checkpoint's header says it was trained with, if it does."""
    value = metadata.get("lmbda")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 < value < 1e30 else None


def save_checkpoint(
    path: str | Path,
    arch: str,
    n: int,
    m: int,
    state_dict: Mapping[str, Tensor],
    metadata: dict[str, Any],
    *,
    half: bool = False,
) -> None:
    """Write the project's FP32 checkpoint: safetensors, JSON under the header key `lichen`.

    `half` stores float16 (relative error 2^-11); reading makes float32 of it again.
    """
    dtype = torch.float16 if half else torch.float32
    tensors = {k: v.detach().to("cpu", dtype) for k, v in state_dict.items()}
    header = {"format": FP32_FORMAT, "version": VERSION, **metadata, "arch": arch, "n": n, "m": m}
    header[DIGEST] = digest_of(tensors, header)
    save_tensors(tensors, Path(path), {HEADER: json.dumps(header)})


def zoo_checkpoint(name: str) -> Path | None:
    """Download (or find in torch's cache) CompressAI's pretrained `ARCH:Q`, e.g.
    `bmshj2018-hyperprior:3` or `mbt2018-mean-q5`, trained for MSE; None for other names.
    """
    match = re.fullmatch(r"(.+?)(?::|-)q?(\d)", name)
    if not match or match[1] not in ARCHS:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from compressai.zoo.image import model_urls
    urls = model_urls.get(match[1], {}).get("mse", {})
    quality = int(match[2])
    if quality not in urls:
        known = f"qualities {min(urls)} to {max(urls)}" if urls else "no pretrained weights"
        raise UserError(f"CompressAI's zoo has {known} for {match[1]}, not {quality}.")
    url = urls[quality]
    caches.prepare()
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            # The name ends with the start of the file's digest, as in all of torch's archives.
            digest = re.search(r"-([0-9a-f]{8,})\.", file.name)
            torch.hub.download_url_to_file(
                url, str(file), hash_prefix=digest[1] if digest else None, progress=False
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"{name} could not be downloaded from CompressAI's zoo ({first_line(error)}); "
                f"fetch {url} where there is a network and put it at {file}."
            ) from None
    return file


def load_checkpoint(path_or_name: str | Path) -> Checkpoint:
    """Read an FP32 checkpoint: `(arch, n, m, state_dict, metadata)`.

    Args:
        path_or_name: the project's safetensors, a bare safetensors state dict, a
            CompressAI `.pth`/`.pth.tar` (the one network in nested mappings, its names under any
            common prefix; with old or new names of the entropy bottleneck's parameters; CDF
            tables of any size), the name of a shipped network, or a CompressAI zoo name such as
            `bmshj2018-factorized-3`.

    Returns:
        Architecture, N and M as found in keys and shapes (layers may have counts of their own:
        `other_channel_counts`); parameters in float32 under the names of CompressAI 1.2.8; metadata
        from the file plus `source` (file name) and `sha256` (of the file).

    Raises:
        UserError: the file is missing, damaged, holds pickled code, or is another network;
            the sentence names the key.
    """
    path = Path(path_or_name)
    if path.is_dir() or not path.exists():
        found = shipped_parent(str(path_or_name)) or zoo_checkpoint(str(path_or_name))
        if found is not None:
            path = found
        elif not path.exists():
            raise UserError(f"{path_or_name} is neither a file nor the name of a shipped network.")
    file = read_tensors(path)
    state, beside = find_state(file.content, path)
    arch, n, m, parameters = checked_parameters(state, path)
    metadata = beside | file.header
    if file.header:
        _check_header(file.header, (arch, n, m), path)
    elif not file.checked:
        log.warning(
            "lichen: %s holds no checksum, so damage to its numbers cannot be seen; "
            "torch.save of PyTorch 1.6 and later writes them.",
            path,
        )
    _check_kept(metadata.get("kept_channels", {}), channel_counts(arch, parameters), path)
    metadata |= {"source": path.name, "sha256": file.sha256}
    return Checkpoint(arch, n, m, parameters, metadata)


def _check_header(header: Mapping[str, Any], found: tuple[str, int, int], path: Path) -> None:
    """UserError unless a header is of this version and says what network the tensors are."""
    if header.get("format") != FP32_FORMAT:
        raise UserError(f"{path} is not an FP32 checkpoint: its header is that of another file.")
    version = header.get("version")
    if type(version) is not int or version != VERSION:
        raise UserError(
            f"{path} is an FP32 checkpoint of version {str(version)[:20]}, and this Lichen reads "
            f"version {VERSION}; use the Lichen that wrote it."
        )
    if tuple(header.get(key) for key in ("arch", "n", "m")) != found:
        raise UserError(f"{path}: its header says another network than its tensors ({found[0]}).")


def _check_kept(kept: Any, counts: Mapping[str, int], path: Path) -> None:
    """UserError unless a header's kept channels (see `lichen.quant.slim.slim`) are the layers'."""
    if not isinstance(kept, Mapping):
        raise UserError(f"{path} has a damaged header: kept_channels is no object.")
    for name, channels in kept.items():
        good = isinstance(channels, list) and all(
            type(c) is int and 0 <= c < 2**31 for c in channels
        )
        if not good or sorted(set(channels)) != channels or len(channels) != counts.get(name):
            raise UserError(
                f"{path} has a damaged header: kept_channels does not say which "
                f"{counts.get(name, 0)} channels {name} has kept."
            )
