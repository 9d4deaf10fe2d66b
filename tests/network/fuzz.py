"""Random descriptions and files: most of them wrong, and none may do worse than be refused.

A network is taken apart into the tree that a file holds, changed in a few places and put together
again; what loads is coded, decoded, sized and planned with.

    python -m tests.network.fuzz --count 5000 --seed 0
"""

from __future__ import annotations

# First, as in the command line: it chooses the kernels that NumPy will use.
import lichen  # noqa: F401

# isort: split

import argparse
import collections
import json
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as save_tensors

from lichen.boards import board as boards
from lichen.codec.container import Container, ContainerError, check_network
from lichen.errors import UserError
from lichen.hw.plan import planner
from lichen.network.description import PHOTO, Activation, Network
from lichen.network.file import HEADER, dumps, load
from lichen.network.random import random_contexts, random_factorized, random_hyperprior
from lichen.sim import golden

Rng = np.random.Generator
Tree = dict[str, Any]

INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
NUMBERS = (-(1 << 63), -(1 << 31), -129, -2, -1, 0, 1, 2, 3, 4, 5, 7, 8, 16, 17, 31, 32, 47, 62,
           127, 128, 255, 256, 65535, 65536, 131071, 131072, (1 << 31) - 1, 1 << 31, (1 << 32) - 1,
           1 << 46, (1 << 63) - 1, 1 << 63, 1 << 70)  # fmt: skip
VALUES = (None, True, "", "a;b", "\x1b[2J", "conv1", "5", 2.5, float("nan"), [], {}, [1, 2],
          {"a": 1}, {"tensor": "entropy.y.cdf"}, {"tensor": "none"}, "x" * 300, "\u202e\ud800",
          *NUMBERS)  # fmt: skip


def base(rng: Rng) -> Network:
    """A good one."""
    n, m = (int(rng.integers(1, 5)) for _ in range(2))
    widths = {
        "weight_bits": int(rng.integers(2, 13)),
        "x_bits": int(rng.integers(4, 13)),
        "output_bits": 8,
        "gamma_bits": int(rng.integers(2, 13)),
        "u_bits": int(rng.integers(6, 13)),
    }
    seed = int(rng.integers(1 << 30))
    kind = rng.integers(3)
    if kind == 0:
        network = random_factorized(seed, n=n, m=m, **widths)
    else:
        scales, fraction = int(rng.integers(1, 9)), int(rng.integers(0, 5))
        network = random_hyperprior(
            seed, n=n, m=m, means=kind == 2, scales=scales, fraction=fraction, **widths
        )
    return (
        random_contexts(seed, network, excess=bool(rng.integers(2)), carry=bool(rng.integers(2)))
        if rng.random() < 0.4
        else network
    )


def _places(tree: Any, wanted: Callable[[Any], bool]) -> list[tuple[Any, Any]]:
    """Containers and keys of all values that are wanted."""
    items = (
        tree.items() if isinstance(tree, dict)
        else enumerate(tree) if isinstance(tree, list)
        else ()
    )  # fmt: skip
    found = []
    for key, value in items:
        if wanted(value):
            found.append((tree, key))
        found += _places(value, wanted)
    return found


def _pick(rng: Rng, tree: Any, wanted: Callable[[Any], bool]) -> tuple[Any, Any] | None:
    places = _places(tree, wanted)
    return places[int(rng.integers(len(places)))] if places else None


def _stages(tree: Tree) -> list[Tree]:
    return [
        stage
        for transform in tree["transforms"].values()
        if isinstance(transform, dict) and isinstance(transform.get("stages"), list)
        for stage in transform["stages"]
        if isinstance(stage, dict) and isinstance(stage.get("convolution"), dict)
    ]


def change_number(rng: Rng, tree: Tree) -> None:
    """A field a little larger or smaller, or something else altogether."""
    place = _pick(rng, tree, lambda v: isinstance(v, int) and not isinstance(v, bool))
    if place is not None:
        box, key = place
        near = rng.random() < 0.7
        box[key] = box[key] + int(rng.integers(-2, 3)) if near else int(rng.choice(12)) if (
            rng.random() < 0.5
        ) else NUMBERS[int(rng.integers(len(NUMBERS)))]  # fmt: skip


def change_value(rng: Rng, tree: Tree) -> None:
    """Anything for anything."""
    place = _pick(rng, tree, lambda v: True)
    if place is not None:
        place[0][place[1]] = VALUES[int(rng.integers(len(VALUES)))]


def change_key(rng: Rng, tree: Tree) -> None:
    """A field too many or too few."""
    place = _pick(rng, tree, lambda v: isinstance(v, dict) and bool(v))
    if place is None:
        return
    box = place[0][place[1]]
    key = list(box)[int(rng.integers(len(box)))]
    value = box.pop(key)
    if rng.random() < 0.5:
        box[str(rng.choice(["extra", "z", "h_a", "g_s", "means", "\x1b]", ""]))] = value


def _array(rng: Rng, tree: Tree) -> tuple[Any, Any, np.ndarray] | None:
    place = _pick(rng, tree, lambda v: isinstance(v, np.ndarray))
    return None if place is None else (*place, place[0][place[1]])


def change_type(rng: Rng, tree: Tree) -> None:
    """A tensor of another type, where its values fit or not."""
    place = _array(rng, tree)
    if place is not None:
        box, key, array = place
        kinds = (*INTEGERS, "float64", "float16", "bool")
        with np.errstate(over="ignore"):
            box[key] = array.astype(kinds[int(rng.integers(len(kinds)))])


def change_types(rng: Rng, tree: Tree) -> None:
    """All integers in one type, which those that it holds survive."""
    kind = INTEGERS[int(rng.integers(len(INTEGERS)))]
    limits = np.iinfo(kind)
    for box, key in _places(tree, lambda v: isinstance(v, np.ndarray)):
        array = box[key]
        integers = array.dtype.kind in "iu" and array.size
        if integers and array.min() >= limits.min and array.max() <= limits.max:
            box[key] = array.astype(kind)


def change_element(rng: Rng, tree: Tree) -> None:
    """One number of a tensor."""
    place = _array(rng, tree)
    if place is None or not place[2].size or place[2].dtype.kind not in "iu":
        return
    box, key, array = place
    limits = np.iinfo(array.dtype)
    array = array.copy()
    value = NUMBERS[int(rng.integers(len(NUMBERS)))]
    if rng.random() < 0.5:
        value = int(rng.integers(-300, 300))
    array.reshape(-1)[int(rng.integers(array.size))] = min(max(value, limits.min), limits.max)
    box[key] = array


def change_shape(rng: Rng, tree: Tree) -> None:
    """A tensor of another shape."""
    place = _array(rng, tree)
    if place is not None:
        box, key, array = place
        shapes = (
            array[:0], array[..., :1], array[None], array.reshape(-1), np.zeros((), array.dtype),
            np.concatenate([array, array]) if array.ndim else array, array.T,
        )  # fmt: skip
        box[key] = shapes[int(rng.integers(len(shapes)))]


def change_geometry(rng: Rng, tree: Tree) -> None:
    """Another kernel, stride or padding, with weights that go with it."""
    stages = _stages(tree)
    if not stages:
        return
    conv = stages[int(rng.integers(len(stages)))]["convolution"]
    weight = conv.get("weight")
    if not isinstance(weight, np.ndarray) or weight.ndim != 4:
        return
    kernel = int(rng.integers(1, 10))
    conv["kernel"] = kernel
    conv["weight"] = np.resize(weight, (*weight.shape[:2], kernel, kernel))
    stride = conv.get("stride") if rng.random() < 0.7 else int(rng.integers(1, 5))
    conv["stride"] = stride
    conv["padding"] = int(rng.integers(0, kernel))
    if conv.get("transposed") and isinstance(stride, int):
        # often what makes the size whole again
        fitting = stride - kernel + 2 * conv["padding"]
        conv["output_padding"] = fitting if rng.random() < 0.8 else int(rng.integers(0, 4))
    elif isinstance(stride, int) and rng.random() < 0.8:
        conv["padding"] = max(0, (kernel - 1) // 2)


def change_format(rng: Rng, tree: Tree) -> None:
    """Another range, of a tensor that another transform may read."""
    place = _pick(rng, tree, lambda v: isinstance(v, dict) and {"lo", "hi", "bits"} <= set(v))
    if place is None:
        return
    bits, signed = int(rng.integers(2, 17)), bool(rng.integers(2))
    hi = (1 << (bits - signed)) - 1
    lo = -hi - int(rng.integers(2)) if signed else 0
    if rng.random() < 0.4:
        lo, hi = sorted(int(v) for v in rng.integers(lo, hi + 1, 2))
    place[0][place[1]] = {"bits": bits, "signed": signed, "lo": lo, "hi": hi}


def change_stages(rng: Rng, tree: Tree) -> None:
    """Stages in another order, or repeated under another name, or fewer."""
    place = _pick(rng, tree, lambda v: isinstance(v, list) and len(v) > 1)
    if place is None:
        return
    stages = list(place[0][place[1]])
    at = int(rng.integers(len(stages)))
    match rng.integers(3):
        case 0:
            stages.pop(at)
        case 1 if isinstance(stages[at], dict):
            stages.insert(
                at, stages[at] | {"name": str(rng.choice(["more", "conv1_norm", "MORE"]))}
            )
        case _:
            stages[at], stages[0] = stages[0], stages[at]
    place[0][place[1]] = stages


def change_parts(rng: Rng, tree: Tree) -> None:
    """Transforms or tables exchanged, or gone."""
    box = tree[str(rng.choice(["transforms", "entropy"]))]
    if not isinstance(box, dict) or not box:
        return
    names = sorted(box, key=str)
    one, two = (names[int(rng.integers(len(names)))] for _ in range(2))
    if rng.random() < 0.5:
        box[one], box[two] = box[two], box[one]
    else:
        del box[one]


def change_activation(rng: Rng, tree: Tree) -> None:
    stages = _stages(tree)
    if stages:
        stage = stages[int(rng.integers(len(stages)))]
        stage["activation"] = str(rng.choice([a.value for a in Activation]))
        norm = stage.get("normalization")
        if isinstance(norm, dict) and rng.random() < 0.8:
            norm["kind"] = stage["activation"]
            norm["shift"] = int(rng.integers(0, 48))


def change_tables(rng: Rng, tree: Tree) -> None:
    """Tables of other lengths and places."""
    tables = [t for t in tree["entropy"].values() if isinstance(t, dict)]
    if not tables:
        return
    table = tables[int(rng.integers(len(tables)))]
    lengths = table.get("lengths")
    count = lengths.size if isinstance(lengths, np.ndarray) else 1
    rows = []
    for _ in range(count):
        cuts = np.sort(rng.choice(65535, int(rng.integers(1, 12)), replace=False) + 1)
        rows.append([0, *cuts.tolist(), 65536])
    cdf = np.zeros((count, max(map(len, rows), default=3)), str(rng.choice(["int32", "uint64"])))
    for row, values in zip(cdf, rows, strict=True):
        row[: len(values)] = values
    table["cdf"] = cdf
    table["lengths"] = np.array([len(row) for row in rows], str(rng.choice(["int8", "uint32"])))
    table["offsets"] = rng.integers(-128, 128, count).astype(str(rng.choice(["int8", "int64"])))


CHANGES = (
    change_number, change_number, change_value, change_key, change_type, change_types,
    change_element, change_shape, change_geometry, change_geometry, change_format, change_stages,
    change_parts, change_activation, change_tables,
)  # fmt: skip


def copied(value: Any) -> Any:
    """A tree without shared parts; arrays stay."""
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


def network_file(tree: Any) -> bytes:
    """The file of a tree, as right or wrong as it is."""
    tensors: dict[str, np.ndarray] = {}

    def detached(value: Any, path: str) -> Any:
        if isinstance(value, np.ndarray):
            tensors[path] = np.ascontiguousarray(value)
            return {"tensor": path}
        if isinstance(value, dict):
            return {key: detached(item, f"{path}.{key}" if path else key)
                    for key, item in value.items()}  # fmt: skip
        if isinstance(value, list):
            return [detached(item, f"{path}.{i}") for i, item in enumerate(value)]
        return value

    text = json.dumps(detached(tree, ""))
    return save_tensors(tensors, metadata={HEADER: text})


def _flipped(rng: Rng, data: bytes) -> bytes:
    """Bytes of a file changed, mostly of its header."""
    length = int.from_bytes(data[:8], "little")
    damaged = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        end = 8 + length if rng.random() < 0.7 else len(data)
        damaged[int(rng.integers(end))] ^= 1 << int(rng.integers(8))
    return bytes(damaged if rng.random() < 0.9 else damaged[: int(rng.integers(len(data)))])


def damaged_file(rng: Rng) -> bytes:
    """A network file with a few things wrong, or with nothing."""
    network = base(rng)
    if rng.random() < 0.15:
        return _flipped(rng, dumps(network))
    silent = set(Network.OPTIONAL_PARTS) - set(network.optional_parts())
    tree = copied(network.model_dump(exclude=silent if rng.random() < 0.9 else ()))
    tree["format"] = network.format
    for _ in range(int(rng.choice([0, 1, 1, 1, 2, 2, 3]))):
        try:
            CHANGES[int(rng.integers(len(CHANGES)))](rng, tree)
        except (AttributeError, KeyError, TypeError, OverflowError, ValueError):
            return network_file(tree)  # an earlier change has left nothing to change
    return network_file(tree)


def use(network: Network, rng: Rng, *, plan: bool) -> None:
    """Do with a network whatever one does; any exception but the one for users is a fault.

    A network that codes no pictures, a decoding half among them, and a transform that is not
    generated, may say so.
    """
    network.macs(*PHOTO), network.bops(*PHOTO), network.frames(*PHOTO), dumps(network)
    assert network.title.isprintable()
    if plan:
        board = boards.find("ulx3s-85f")
        for name, frame in network.frames(*PHOTO).items():
            try:
                planner.plan(
                    network.transform(name), board.pipeline_budget, multipliers=16, frame=frame
                )
            except UserError as error:
                assert "\n" not in str(error)
    try:
        check_network(network)
        container = Container(network, threads=1, version=None if rng.random() < 0.6 else 1)
    except UserError as error:
        assert "so it codes no images" in str(error)
        for name, transform in network.transforms.items():
            if name in ("g_a", "h_a") or transform.upsampling <= 64:
                size = network.frames(16, 16)[name]
                if size[0] * size[1] <= 1 << 16:
                    golden.run_transform(
                        transform,
                        rng.integers(transform.input.lo, transform.input.hi + 1,
                                     (*size, transform.in_channels)),
                    )  # fmt: skip
        return
    size = int(rng.integers(1, 50)), int(rng.integers(1, 50))
    if np.prod(network.padded(*size)) > 1 << 16:
        return
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    data = container.encode(image)
    latents = golden.analysis(network, image)
    for segment, other in zip(latents.segments, container.latents(data).segments, strict=True):
        assert segment.name == other.name
        assert np.array_equal(segment.symbols, other.symbols)
    pixels = container.decode(data).picture.pixels
    assert np.array_equal(pixels, golden.reconstruct(network, latents))
    whole = _whole(network, latents)
    assert np.array_equal(pixels, np.clip(whole[: size[0], : size[1]], 0, 255))
    golden.estimate_bits(network, latents)
    broken = bytearray(data)
    broken[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    try:
        container.decode(bytes(broken), salvage=True)
    except ContainerError as error:
        assert "\n" not in str(error)


def _whole(network: Network, latents: golden.Latents) -> np.ndarray:
    """What g_s makes, uncut."""
    g_s = network.transform("g_s")
    means = None
    if network.hyper:
        means = golden.entropy_parameters(network, latents["z"].symbols).means
    read = golden.synthesis_input(latents["y"].symbols, means, network.latent_fraction, g_s.input)
    return golden.run_transform(g_s, read)


def check(seed: int, folder: Path, *, plan: bool = False) -> str:
    """What became of the file of one seed: ``refused`` or ``loaded``; raises for a fault."""
    rng = np.random.default_rng(seed)
    path = folder / "net.lichen"
    path.write_bytes(damaged_file(rng))
    try:
        network = load(path)
    except UserError as error:
        sentence = str(error)
        assert sentence.isprintable() and sentence.endswith((".", "`lichen quantize`.")), sentence
        return "refused"
    use(network, rng, plan=plan)
    return "loaded"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plan-every", type=int, default=50)
    options = parser.parse_args()
    outcomes: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seed, options.seed + options.count):
            try:
                plan = seed % options.plan_every == 0
                outcomes[check(seed, Path(folder), plan=plan)] += 1
            except Exception:
                outcomes["FAULT"] += 1
                print(f"seed {seed}", flush=True)
                traceback.print_exc()
    print(dict(outcomes))


if __name__ == "__main__":
    main()
