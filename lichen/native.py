"""Loops in machine code: compiled by numba once, and from then on loaded without it.

Importing numba and reading its caches takes longer than coding a photograph. So loops that every
command needs are compiled to C functions, whose object code lies in the user's cache folder under
a name that depends on the sources, the processor and the compilers' versions; LLVM's loader alone
takes it up again. Where nothing can be kept they are compiled anew, and are the same.

The functions see nothing but pointers, so `Kernel` checks every array that it is given. The module
stands below all rooms.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lichen import caches, files
from lichen.errors import UserError

Build = Callable[[Callable[..., Any]], Mapping[str, Callable[..., Any]]]
"""Makes plain functions, given what decorates those that they call."""

MAGIC = b"lichen kernels 1\n"

_LIBRARY_SYMBOLS = ("memset", "memcpy", "memmove", "llvm.")
"""What compiled loops may call: the C library, and what LLVM expands."""


class Pinned(NamedTuple):
    """An array that has been looked at: what a call needs of it, for those that many calls read."""

    array: npt.NDArray
    values: tuple[int, ...]


class Kernel:
    """A compiled loop.

    Parameters
    ----------
    address : int
        Of a C function.
    arguments : sequence of str
        ``int32[2]`` for an array of two dimensions, ``int64`` for an integer.
    """

    def __init__(self, name: str, address: int, arguments: Sequence[str]):
        self.name = name
        self._kinds = [_parse(argument) for argument in arguments]
        types: list[Any] = []
        for _, dimensions in self._kinds:
            types += [ctypes.c_int64] if dimensions is None else [ctypes.c_void_p]
            types += [ctypes.c_int64] * (dimensions or 0)
        # releases the interpreter's lock while it runs
        self._function = ctypes.CFUNCTYPE(ctypes.c_int64, *types)(address)

    def __call__(self, *arguments: Any) -> int:
        """Run it; TypeError for arrays that it would misread."""
        if len(arguments) != len(self._kinds):
            raise TypeError(f"{self.name} takes {len(self._kinds)} arguments")
        values: list[int] = []
        for argument, (kind, dimensions) in zip(arguments, self._kinds, strict=True):
            if dimensions is None:
                values.append(int(argument))
            elif isinstance(argument, Pinned):
                if argument.array.dtype != kind or argument.array.ndim != dimensions:
                    raise self._misfit(argument.array, kind, dimensions)
                values += argument.values
            else:
                if (
                    argument.dtype != kind
                    or argument.ndim != dimensions
                    or not argument.flags.c_contiguous
                ):
                    raise self._misfit(argument, kind, dimensions)
                values.append(argument.__array_interface__["data"][0])
                values += argument.shape
        return self._function(*values)

    def _misfit(self, array: npt.NDArray, kind: np.dtype, dimensions: int) -> TypeError:
        return TypeError(
            f"{self.name} takes {kind} in {dimensions} dimensions without gaps, not {array.dtype} "
            f"of shape {array.shape}"
        )


def pin(array: npt.NDArray) -> Pinned:
    """An array ready for any number of calls; it must not be resized after."""
    array = np.ascontiguousarray(array)
    return Pinned(array, (array.__array_interface__["data"][0], *array.shape))


def _parse(argument: str) -> tuple[np.dtype, int | None]:
    """Type and dimensions, None of which an integer has."""
    kind, _, rest = argument.partition("[")
    return np.dtype(kind), int(rest.rstrip("]")) if rest else None


def interpreted(build: Build) -> SimpleNamespace:
    """The loops as the interpreter runs them, for comparison."""

    def plain(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            return function(*(a.array if isinstance(a, Pinned) else a for a in arguments))

        return call

    functions = build(lambda function: function)
    return SimpleNamespace(**{name: plain(function) for name, function in functions.items()})


def load(
    group: str, build: Build, signatures: Mapping[str, Sequence[str]], sources: Sequence[Path]
) -> SimpleNamespace:
    """A namespace of `Kernel` for the functions that ``build`` makes.

    Parameters
    ----------
    group : str
        What the file is called by.
    build : callable
        Given a decorator, makes the functions by name. They take arrays and integers, return an
        integer, make no arrays and raise nothing.
    signatures : dict of str to sequence of str
        Arguments of each function, see `Kernel`.
    sources : sequence of Path
        All files whose text decides on what is compiled.
    """
    # threads that want the same loops at once wait for the first
    with _lock:
        if group not in _loaded:
            _loaded[group] = _load(group, build, signatures, sources)
        return _loaded[group]


_lock = threading.Lock()
_loaded: dict[str, SimpleNamespace] = {}


def _load(
    group: str, build: Build, signatures: Mapping[str, Sequence[str]], sources: Sequence[Path]
) -> SimpleNamespace:
    import llvmlite.binding as llvm

    key = _key(llvm, repr(sorted(signatures.items())), sources)
    file = _folder() / f"{group}-{key[:32]}.o"
    objects = _read(file, key)
    if objects is None:
        objects = _compile(llvm, build, signatures)
        _keep(file, key, objects)
    try:
        addresses = _link(llvm, group, objects)
    except RuntimeError:  # whole, but not for this machine after all
        addresses = _link(llvm, group, _compile(llvm, build, signatures))
    return SimpleNamespace(
        **{name: Kernel(name, addresses[name], signatures[name]) for name in signatures}
    )


# What is kept ------------------------------------------------------------------------------------


def _key(llvm: Any, signatures: str, sources: Sequence[Path]) -> str:
    """Of everything that the machine code depends on."""
    state = hashlib.sha256(MAGIC)
    parts = [
        signatures.encode(),
        *(path.read_bytes() for path in (Path(__file__), *sources)),
        llvm.get_process_triple().encode(),
        *(text.encode() for text in _processor(llvm)),
        repr((sys.version_info[:3], np.__version__)).encode(),
        *_versions(),
    ]
    for part in parts:
        state.update(len(part).to_bytes(8, "little") + part)
    return state.hexdigest()


def _processor(llvm: Any) -> tuple[str, str]:
    """Name and features of the processor to compile for; numba's own variables override them."""
    name = os.environ.get("NUMBA_CPU_NAME") or llvm.get_host_cpu_name()
    features = os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        generic = name == "generic"
        features = "" if generic else llvm.get_host_cpu_features().flatten()
    return name, features


def _versions() -> Iterator[bytes]:
    """Of the compilers, without importing the slow one of them."""
    for package in ("numba", "llvmlite"):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            with suppress(OSError):
                yield Path(spec.origin).with_name("_version.py").read_bytes()


def _folder() -> Path:
    """Where nobody else can write: what lies there is run."""
    return caches.private_folder("kernels")


def _read(file: Path, key: str) -> dict[str, bytes] | None:
    """Object code by name; None where there is none that can be trusted, or it is damaged."""
    try:
        with file.open("rb") as opened:
            if not caches.is_private(os.fstat(opened.fileno())):
                return None
            data = opened.read()
    except OSError:
        return None
    head = MAGIC + bytes.fromhex(key)
    begin = len(head) + 32
    if (
        data[: len(head)] != head
        or hashlib.sha256(data[begin:]).digest() != data[begin - 32 : begin]
    ):
        return None
    objects, at = {}, begin
    while at < len(data):
        name_size, size = struct.unpack_from("<IQ", data, at)
        at += struct.calcsize("<IQ")
        objects[data[at : at + name_size].decode()] = data[at + name_size : at + name_size + size]
        at += name_size + size
    return objects


def _keep(file: Path, key: str, objects: Mapping[str, bytes]) -> None:
    """Write object code, whole or not at all; where that cannot be, go on."""
    body = b"".join(
        struct.pack("<IQ", len(name.encode()), len(code)) + name.encode() + code
        for name, code in objects.items()
    )
    data = MAGIC + bytes.fromhex(key) + hashlib.sha256(body).digest() + body
    try:
        files.write_privately(file, data)
    except UserError:
        return
    _forget_older(file)


KEPT = 8
"""Files of one group that stay: of other processors, versions and checkouts."""


def _forget_older(file: Path) -> None:
    group = file.name.rpartition("-")[0]
    with suppress(OSError):
        others = [(path.stat().st_mtime, path) for path in file.parent.glob(f"{group}-*.o")]
        for _, path in sorted(others, reverse=True)[KEPT:]:
            path.unlink()


# Compiling and linking ---------------------------------------------------------------------------


def _compile(llvm: Any, build: Build, signatures: Mapping[str, Sequence[str]]) -> dict[str, bytes]:
    """Object code of each function."""
    import numba
    from numba.extending import register_jitable

    caches.prepare()
    inline = register_jitable(forceinline=True, error_model="numpy")
    functions = build(inline)
    cpu, features = _processor(llvm)
    _initialize(llvm)
    found = {}
    compile_c: Any = numba.cfunc
    for name, arguments in signatures.items():
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=cpu, features=features, opt=3, reloc="default", codemodel="jitdefault", jit=True
        )
        entry, types = _entry(inline(functions[name]), arguments)
        compiled = compile_c(
            numba.int64(*types), nopython=True, forceinline=True, error_model="numpy"
        )(entry)
        module = llvm.parse_assembly(compiled.inspect_llvm())
        _reduce(llvm, module, compiled.native_name, name, machine)
        found[name] = machine.emit_object(module)
    return found


def _entry(function: Callable[..., Any], arguments: Sequence[str]) -> tuple[Any, list[Any]]:
    """A function of pointers and integers alone that calls one of arrays, and its types."""
    import numba
    from numba import types

    parameters: list[str] = []
    values: list[str] = []
    kinds: list[Any] = []
    for i, argument in enumerate(arguments):
        kind, dimensions = _parse(argument)
        if dimensions is None:
            parameters.append(f"v{i}")
            values.append(f"v{i}")
            kinds.append(types.int64)
            continue
        sizes = [f"n{i}_{d}" for d in range(dimensions)]
        parameters += [f"v{i}", *sizes]
        values.append(f"carray(v{i}, ({', '.join(sizes)},))")
        kinds += [types.CPointer(numba.from_dtype(kind)), *[types.int64] * dimensions]
    text = f"def entry({', '.join(parameters)}):\n    return function({', '.join(values)})\n"
    space: dict[str, Any] = {"function": function, "carray": numba.carray}
    exec(text, space)
    return space["entry"], kinds


def _reduce(llvm: Any, module: Any, native_name: str, name: str, machine: Any) -> None:
    """Leave nothing in a module but one function, under our name, and what it calls.

    Raises RuntimeError where that needs numba's runtime.
    """
    for function in module.functions:
        if not function.is_declaration:
            function.linkage = "internal"
    for variable in module.global_variables:
        variable.linkage = "internal" if not variable.is_declaration else "external"
    entry = module.get_function(native_name)
    entry.linkage = "external"
    entry.name = name
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options())
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, builder)
    wanted = [f.name for f in module.functions if f.is_declaration]
    wanted += [v.name for v in module.global_variables if v.is_declaration]
    foreign = [one for one in wanted if not one.startswith(_LIBRARY_SYMBOLS)]
    if foreign:
        raise RuntimeError(f"the loop {name} needs {', '.join(foreign)}; it may raise or allocate")


def _initialize(llvm: Any) -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


_keep_alive: list[Any] = []
"""LLVM's loader, and what it has loaded."""


def _link(llvm: Any, group: str, objects: Mapping[str, bytes]) -> dict[str, int]:
    """Addresses of functions in object code, which stays loaded; RuntimeError if it cannot be."""
    _initialize(llvm)
    if not _keep_alive:
        _keep_alive.append(llvm.create_lljit_compiler())
    library = llvm.JITLibraryBuilder()
    for name, code in objects.items():
        library.add_object_img(code)
        library.export_symbol(name)
    name = f"lichen {group} {len(_keep_alive)}"
    tracker = library.add_current_process().link(_keep_alive[0], name)
    _keep_alive.append(tracker)
    return {name: tracker[name] for name in objects}
