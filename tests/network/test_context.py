"""What a network file may say of contexts, and what it is refused for."""

from __future__ import annotations

import numpy as np
import pytest

from lichen.errors import UserError
from lichen.network.context import ContextModel, Contexts
from lichen.network.file import dumps, load, save
from lichen.network.identity import decoder_digest, replacing, static_digest
from lichen.network.model import ValidationError
from lichen.network.random import random_contexts
from tests.codec.cases import KINDS, make_network


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("excess", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_contexts_come_back_from_the_file(kind, excess, carry, tmp_path):
    plain = make_network(kind)
    network = random_contexts(3, plain, excess=excess, carry=carry)
    save(network, tmp_path / "net.lichen")
    again = load(tmp_path / "net.lichen")
    assert dumps(again) == dumps(network)
    newer = excess and network.hyper
    least = 4 if carry else 3 if newer else 2
    assert f'\\"format\\":{least}'.encode() in dumps(network)
    assert (b"carry" in dumps(network)) == carry
    assert (b"gain_shift" in dumps(network)) == newer
    assert b'\\"format\\":1' in dumps(plain)
    assert decoder_digest(again) == decoder_digest(network)
    assert static_digest(again) == static_digest(network) == static_digest(plain)


def model(**changes):
    """A context model of two channels with changed fields."""
    fields = {
        "bias": np.array([1, 2]),
        "near": np.ones((4, 2), int),
        "slope": np.ones((4, 2), int),
        "inner": np.ones((1, 2), int),
        "outer": np.ones((1, 2), int),
        "near_shift": 1,
        "shift": 2,
        "edges": np.array([3, 9]),
        "phase": np.repeat([0, 1], [9, 8]),
        "choice": np.zeros((3, 2), int),
    }
    return ContextModel(**fields | changes)


EXCESS = {
    "spread": np.ones(2, int),
    "levels": np.array([5, 900]),
    "unit": np.array([200, 3]),
    "usual": np.array([20, 25]),
    "gain_shift": 9,
}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bias": np.array([1, 4096])}, "bias must lie in 0 .. 4095"),
        ({"bias": np.zeros((1, 2), int)}, "bias must have one dimension"),
        ({"bias": np.zeros(0, int)}, "bias must have one dimension"),
        ({"near": np.ones((3, 2), int)}, "near must have shape"),
        ({"near": np.full((4, 2), 32)}, "near must lie in 0 .. 31"),
        ({"near": np.full((4, 2), -1)}, "near must lie in 0 .. 31"),
        ({"near": np.ones((4, 2))}, "must be an integer tensor"),
        ({"slope": np.full((4, 2), 32)}, "slope must lie in -32 .. 31"),
        ({"slope": np.ones((4, 3), int)}, "slope must have shape"),
        ({"inner": np.ones((9, 2), int), "outer": np.ones((9, 2), int)}, "inner must have shape"),
        ({"outer": np.ones((2, 2), int)}, "outer must have shape"),
        ({"near_shift": 16}, "near_shift"),
        ({"spread": np.ones(2, int)}, "spread and levels go with each other"),
        ({"spread": np.ones(3, int), "levels": np.ones(2, int)}, "spread must have shape"),
        ({"spread": np.ones(2, int), "levels": np.array([65536])}, "levels must lie in"),
        ({"edges": np.array([3, 3])}, "edges must rise"),
        ({"edges": np.array([0, 3])}, "edges must lie in 1 .. 65535"),
        ({"edges": np.arange(1, 65), "choice": np.zeros((65, 2), int)}, "fewer than 64"),
        ({"phase": np.zeros(16, int)}, "phase must have shape"),
        ({"phase": np.full(17, 2)}, "phase must lie in 0 .. 1"),
        ({"phase": np.repeat([1, 0], [9, 8])}, "phase must not fall"),
        ({"choice": np.zeros((2, 2), int)}, "choice must have shape"),
        ({"choice": np.zeros((3, 9), int)}, "1 to 8 phases"),
        ({"choice": np.full((3, 2), 128)}, "choice must lie in"),
        (EXCESS | {"usual": None}, "go with each other"),
        (EXCESS | {"gain_shift": None}, "go with each other"),
        (EXCESS | {"spread": None, "levels": None}, "unit goes with levels"),
        (EXCESS | {"spread_shift": 1}, "spread_shift must be 0"),
        (EXCESS | {"unit": np.full(2, 512)}, "unit must lie in 0 .. 511"),
        (EXCESS | {"usual": np.full(2, -1)}, "usual must lie in 0 .. 511"),
        (EXCESS | {"unit": np.ones(3, int)}, "unit must have shape"),
        (EXCESS | {"gain_shift": 16}, "gain_shift"),
        ({"carry": np.ones((4, 2), int)}, "carry must have shape"),
        ({"carry": np.ones((2, 1), int)}, "carry must have shape"),
        ({"carry": np.full((4, 1), 32)}, "carry must lie in 0 .. 31"),
        ({"carry": np.full((4, 1), -1)}, "carry must lie in 0 .. 31"),
        (
            {
                "carry": np.zeros((4, 0), int),
                "inner": np.zeros((0, 2), int),
                "outer": np.zeros((0, 2), int),
            },
            "carry goes with inner",
        ),
        (
            {
                "spread": np.full(2, 31),
                "levels": np.array([65535]),
                "spread_shift": 15,
            },
            "beyond 31 bits",
        ),
    ],
)
def test_models_that_are_refused(changes, reason):
    model()
    model(**EXCESS)
    with pytest.raises(ValidationError, match=reason):
        model(**changes)


def test_the_greatest_sum_is_one_that_is_reached():
    one = model(
        near=np.full((4, 2), 31),
        inner=np.array([[31, 5]]),
        outer=np.array([[9, 31]]),
        spread=np.array([2, 31]),
        levels=np.array([7, 900]),
        spread_shift=3,
    )
    near, across, spread = 4 * 31 * 31 << 1, 31 * 31 * 31, 31 * 900 << 3
    # the sum over earlier channels counts the last one, too: a bound, 36/31 of what is reached
    assert near + across + spread <= one.greatest_sum() <= near + across * 36 // 31 + spread + 4096


def test_networks_that_are_refused():
    network = random_contexts(1, make_network("hyperprior"))
    contexts = network.contexts
    y, z = contexts.latents["y"], contexts.latents["z"]

    def check(latents, reason, tables=contexts.tables):
        with pytest.raises(ValidationError, match=reason):
            type(network)(**dict(network) | {"contexts": Contexts(tables=tables, latents=latents)})

    check({"y": y}, "contexts must be there for y, z")
    check({"y": y, "z": z, "x": z}, "contexts must be there for y, z, not for x, y, z")
    check({"y": z, "z": z}, "contexts.latents.y.bias has 4 channels, but the latent 6")
    check({"y": y.model_copy(update={"spread": None, "levels": None}), "z": z}, "levels has no")
    check({"y": y.model_copy(update={"levels": np.ones(3, int)}), "z": z}, "levels has 3 entries")
    high = y.model_copy(update={"choice": y.choice + 9})
    check({"y": high, "z": z}, "latents.y.choice must lie in 0 .. 8")
    wide = {name: np.full((4, 400), 31) for name in ("near", "slope", "inner", "outer")}
    many = model(bias=np.ones(400, int), **wide)
    check({"y": many, "z": z}, "bits, more than 12000")
    lengths = np.full(9, 700)
    rows = np.concatenate([np.arange(699), [65536]])
    long = contexts.tables.model_copy(update={"cdf": np.tile(rows, (9, 1)), "lengths": lengths})
    check({"y": y, "z": z}, "entries, more than 6000", long)


def test_what_files_name_a_network_by():
    """What a decoder reads, and nothing else."""
    network = random_contexts(3, make_network("mean-scale"))
    name = decoder_digest(network)
    transforms, contexts = network.transforms, network.contexts
    first, *rest = transforms["g_a"].stages
    other = first.model_copy(
        update={
            "convolution": first.convolution.model_copy(update={"bias": first.convolution.bias + 1})
        }
    )
    g_a = transforms["g_a"].model_copy(update={"stages": [other, *rest]})
    for same in (
        {"name": "another"},
        {"provenance": {"lambda": 1}},
        {"transforms": transforms | {"g_a": g_a}},
        {"contexts": contexts.model_copy(update={"provenance": {"seed": 1}})},
    ):
        assert decoder_digest(network.model_copy(update=same)) == name
    y = contexts.latents["y"]
    moved = y.model_copy(update={"edges": y.edges + 1})
    for different in (
        {"transforms": transforms | {"g_s": g_a}},
        {"latent_fraction": 1},
        {"scale_thresholds": network.scale_thresholds + 1},
        {"contexts": contexts.model_copy(update={"latents": contexts.latents | {"y": moved}})},
        {"contexts": None},
    ):
        assert decoder_digest(network.model_copy(update=different)) != name


def test_version_1_names_the_file_that_contexts_were_fitted_to(tmp_path):
    """Whatever its bytes are, as long as what version 1 decodes is what it was."""
    plain = make_network("hyperprior")
    data = dumps(plain)
    length = int.from_bytes(data[:8], "little")
    # a space more in the header: the same network in other bytes
    (tmp_path / "old.lichen").write_bytes(
        (length + 8).to_bytes(8, "little") + data[8 : 8 + length] + b" " * 8 + data[8 + length :]
    )
    old = load(tmp_path / "old.lichen")
    assert static_digest(old) != static_digest(plain)
    fitted = random_contexts(3, old)
    contexts = fitted.contexts.model_copy(update={"replaced": replacing(old)})
    network = fitted.model_copy(update={"contexts": contexts})
    assert static_digest(network) == static_digest(old)
    assert decoder_digest(network) == decoder_digest(fitted)
    save(network, tmp_path / "new.lichen")
    assert static_digest(load(tmp_path / "new.lichen")) == static_digest(old)
    changed = network.model_copy(update={"latent_fraction": 1})
    assert static_digest(changed) != static_digest(old)


def test_damaged_files_name_the_field(tmp_path):
    network = random_contexts(3, make_network("factorized"))
    model_ = network.contexts.latents["y"]
    bad = model_.model_copy(update={"bias": model_.bias + 4096})
    contexts = network.contexts.model_copy(update={"latents": {"y": bad}})
    save(network.model_copy(update={"contexts": contexts}), tmp_path / "bad.lichen")
    with pytest.raises(UserError, match=r"contexts\.latents\.y: bias must lie in 0 \.\. 4095"):
        load(tmp_path / "bad.lichen")
