"""A Dask cluster, by the address of its scheduler. Stands below all rooms and imports none."""

from __future__ import annotations

from typing import Any

from lichen.errors import UserError

CONNECT_S = 10
"""A scheduler answers within so many seconds, or is not there."""


def connect(address: str) -> Any:
    """A ``distributed.Client`` of the scheduler at an address, as Dask writes it; close it.

    Raises UserError when the extra is missing, no scheduler answers, or it has no workers.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise UserError(
            f"a cluster needs the cluster extra ({error.name} is missing); "
            "install it with: pip install 'lichen[cluster]'"
        ) from None
    try:
        client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"there is no Dask scheduler at {address} ({reason}); `dask scheduler` starts one."
        ) from None
    if not client.scheduler_info()["workers"]:
        client.close()
        raise UserError(
            f"the Dask scheduler at {address} has no workers; `dask worker {address}` adds one."
        )
    return client
