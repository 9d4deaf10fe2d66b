"""BLAS, whose own threads would get into the way of those that the golden model starts."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from threadpoolctl import ThreadpoolController


class Blas:
    """BLAS, one thread per call while strips run: the strips share the cores between them."""

    def __init__(self) -> None:
        self.libraries = ThreadpoolController().select(user_api="blas")
        self.threads = max((lib.num_threads for lib in self.libraries.lib_controllers), default=1)
        self.users = 0
        self.limit = self.libraries.limit(limits=self.threads)
        self.lock = threading.Lock()

    @contextmanager
    def single_threaded(self) -> Iterator[None]:
        """The limit holds for the process: the first user sets it, the last one lifts it."""
        with self.lock:
            if not self.users:
                self.limit = self.libraries.limit(limits=1)
            self.users += 1
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if not self.users:
                    self.limit.restore_original_limits()


@functools.cache
def pool(threads: int) -> ThreadPoolExecutor:
    """Threads that stay, and with them the memory they work in (`lichen.sim.rooms`)."""
    return ThreadPoolExecutor(threads, "lichen-golden")


if hasattr(os, "register_at_fork"):
    # no thread lives on in a child
    os.register_at_fork(after_in_child=pool.cache_clear)
