"""Place and route on other machines: every seed is a task of a Dask cluster.

A task carries the files that the program reads, compressed and sent once for all seeds, and brings
back those it writes. Workers need this project installed and the program in the same version, so
that a seed gives the same bitstream wherever it is tried.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lichen import cluster, processes
from lichen.boards.build.toolchain import all_tools
from lichen.boards.build.tools import Progress, Tool, ToolFailedError, run
from lichen.errors import UserError

LOG = "log"

Files = Mapping[str, bytes]
"""Contents by name within a build's folder, compressed by zlib."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A run of a program.

    Attributes
    ----------
    tool : str
        Name of the `Tool`.
    version : str
        That it must have.
    arguments : tuple of str
    results : tuple of str
        Files that it writes and that are wanted, named within its folder.
    """

    tool: str
    version: str
    arguments: tuple[str, ...]
    results: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a task.

    Attributes
    ----------
    files : Files
        Its results, as far as they were written, and its `LOG`.
    failure : str
        A sentence, or nothing.
    """

    files: Files = field(default_factory=dict)
    failure: str = ""


def pack(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Those of the files that exist."""
    paths = {name: folder / name for name in names}
    return {
        name: zlib.compress(path.read_bytes(), 1) for name, path in paths.items() if path.is_file()
    }


def unpack(files: Files, folder: Path) -> None:
    """Write files that `pack` has read."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(zlib.decompress(content))


def work(task: Task, files: Files) -> Outcome:
    """Run a task; on the machine of a worker."""
    tool = all_tools()[task.tool]
    try:
        version = tool.version()
        if version != task.version:
            return Outcome(failure=f"{tool.name} is {version} there, and {task.version} here.")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            unpack(files, folder)
            for result in task.results:
                (folder / result).parent.mkdir(parents=True, exist_ok=True)
            failure, log = "", folder / LOG
            try:
                command = [tool.find(), *task.arguments]
                run(command, folder=folder, log=log, progress=Progress(), stuck=tool.stuck)
            except ToolFailedError as error:
                failure = str(error).replace(f"; see {log}", "")
            return Outcome(files=pack(folder, (*task.results, LOG)), failure=failure)
    except UserError as error:
        return Outcome(failure=str(error))


class Cluster:
    """A Dask cluster that runs tools.

    Parameters
    ----------
    client : distributed.Client
    address : str
        For messages.
    """

    def __init__(self, client: Any, address: str):
        self._client, self.address = client, address

    def run(
        self,
        *,
        tool: Tool,
        arguments: Sequence[Sequence[str]],
        results: Sequence[Sequence[str]],
        logs: Sequence[Path],
        inputs: Iterable[str],
        folder: Path,
        progress: Progress,
    ) -> None:
        """Run a tool several times, on as many workers as there are.

        Parameters
        ----------
        tool : Tool
        arguments : strings of every run
        results : names of the files it writes that are wanted, of every run
        logs : paths of the logs, of every run
        inputs : names of the files that all runs read
        folder : Path
            Where inputs are and results go.
        progress : Progress

        Raises
        ------
        ToolFailedError
            When a run fails, or the cluster is lost. The logs are there.
        """
        version = tool.version()
        files = self._client.scatter(pack(folder, inputs), direct=False, hash=False)
        futures = {}
        for n, (own, wanted) in enumerate(zip(arguments, results, strict=True)):
            task = Task(
                tool=tool.name, version=version, arguments=tuple(own), results=tuple(wanted)
            )
            futures[self._client.submit(work, task, files, pure=False)] = n
        for future in self._completed(futures, progress):
            outcome, log = self._outcome(future, tool), logs[futures[future]]
            made = dict(outcome.files)
            log.write_bytes(zlib.decompress(made.pop(LOG)) if LOG in made else b"")
            unpack(made, folder)
            if outcome.failure:
                reason = outcome.failure.rstrip(".")
                raise ToolFailedError(f"on a worker of {self.address}: {reason}; see {log}.")

    def _completed(self, futures: Iterable[Any], progress: Progress) -> Iterator[Any]:
        """Pass on what is completed, and keep the progress line up to date meanwhile."""
        from distributed import wait

        pending = set(futures)
        count = len(pending)
        while pending:
            try:
                with self._client.as_current():
                    done, pending = wait(pending, processes.TICK_S, "FIRST_COMPLETED")
            except TimeoutError:
                progress.tick(f"{count - len(pending)} of {count} done")
            else:
                yield from done

    def _outcome(self, future: Any, tool: Tool) -> Outcome:
        try:
            outcome = future.result()
        except (ImportError, AttributeError) as error:
            raise ToolFailedError(
                f"a worker of {self.address} has another version of Lichen, or none ({error}); "
                "install this one there."
            ) from None
        except Exception as error:  # whatever a cluster may raise: a worker killed, a lost line
            raise ToolFailedError(
                f"{tool.name} was lost on the cluster of {self.address}: "
                f"{type(error).__name__}: {error}."
            ) from None
        assert isinstance(outcome, Outcome)
        return outcome


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """A cluster by its scheduler's address; a UserError says what is missing."""
    client = cluster.connect(address)
    try:
        yield Cluster(client, address)
    finally:
        client.close()
