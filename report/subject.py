"""What a report is about: networks and builds, found from what the user names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lichen import models
from lichen.errors import UserError
from lichen.network import file
from lichen.network.description import Network
from lichen.network.identity import static_digest

BUILD_REPORT = "report.json"


@dataclass(frozen=True)
class Subject:
    """A network, a build, or a build with its network.

    Attributes
    ----------
    title : str
    network : Network or None
        None for a build whose network is not at hand.
    parent : Path or None
        The FP32 checkpoint of a shipped network.
    build : dict or None
        What `lichen build` reported.
    folder : Path or None
        Where the build's report lies.
    """

    title: str
    network: Network | None = None
    parent: Path | None = None
    build: dict[str, Any] | None = None
    folder: Path | None = None


def find(sources: Sequence[str]) -> list[Subject]:
    """One subject for each source: a network's name or file, a build's folder or its report.

    Raises UserError for what is none of these.
    """
    return [_find(source) for source in sources]


def _find(source: str) -> Subject:
    path = Path(source)
    if path.is_dir() or path.suffix == ".json":
        return _build(path)
    network = models.load_network(source)
    title = network.name or path.stem
    return Subject(title=title, network=network, parent=models.shipped_parent(title))


def _build(path: Path) -> Subject:
    report = path / BUILD_REPORT if path.is_dir() else path
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} holds no {BUILD_REPORT}: name a network, or a folder that `lichen build` made."
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {report}: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise UserError(f"{report} is not JSON.") from None
    named = content.get("network") if isinstance(content, dict) else None
    if not isinstance(named, dict) or "fmax_mhz" not in content:
        raise UserError(f"{report} is not a report of `lichen build`.")
    name = str(named.get("name") or path.stem)
    return Subject(
        title=f"{name} {content.get('transform', '')} on {content.get('board', '?')}",
        network=_shipped(name, str(named.get("sha256"))),
        parent=models.shipped_parent(name),
        build=content,
        folder=report.parent,
    )


def _shipped(name: str, sha256: str) -> Network | None:
    """The shipped network of that name, if it is the very one that was built."""
    path = models.shipped_network(name)
    if path is None:
        return None
    network = file.load(path)
    # gateware knows nothing of context models, so a build names the network without
    return network if sha256 in (file.digest(network), static_digest(network)) else None
