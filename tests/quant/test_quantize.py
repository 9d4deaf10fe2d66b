"""Quantizing a trained checkpoint: minmax and ptq, from the command and from Python."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("compressai")

from lichen import models  # noqa: E402
from lichen.cli import main  # noqa: E402
from lichen.commands.quantize import command  # noqa: E402
from lichen.errors import UserError  # noqa: E402
from lichen.network.description import Network  # noqa: E402
from lichen.network.file import digest, load, save  # noqa: E402
from lichen.quant.calibration import quantize as quantization  # noqa: E402
from lichen.quant.calibration.calibrate import CalibrationImages, load_calibration  # noqa: E402
from lichen.quant.calibration.measure import measure, measure_float  # noqa: E402
from lichen.quant.calibration.options import Options, Widths, with_bits  # noqa: E402
from lichen.quant.calibration.quantize import Quantized, choose_clip_factor, quantize  # noqa: E402
from lichen.quant.float.architectures import build_model  # noqa: E402
from lichen.quant.float.checkpoint import load_checkpoint  # noqa: E402
from lichen.quant.float.network import FloatNetwork, from_compressai  # noqa: E402
from lichen.sim.golden import analysis, estimate_bits  # noqa: E402
from lichen.sim.images import crop_middle, read_image  # noqa: E402

SMALL = ["--crop", "96", "--max-images", "3", "--threads", "1", "--quiet"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    path = models.shipped_parent("tiny")
    assert path is not None
    return path


@pytest.fixture(scope="module")
def network(checkpoint: Path) -> FloatNetwork:
    loaded = load_checkpoint(checkpoint)
    model = build_model(loaded.arch, loaded.n, loaded.m, loaded.state_dict)
    return from_compressai(model, loaded.arch, loaded.n, loaded.m, name="tiny")


@pytest.fixture(scope="module")
def images(network: FloatNetwork) -> CalibrationImages:
    return load_calibration(models.calibration_photographs(), network.factor, size=160, limit=8)


@pytest.fixture(scope="module")
def unseen() -> list[np.ndarray]:
    """Parts of the shipped photograph, which nothing is calibrated on."""
    photo = read_image(models.photograph())
    return [crop_middle(photo, 160, 208), photo[:100, :130]]


@pytest.fixture(scope="module")
def minmax(network: FloatNetwork, images: CalibrationImages) -> Quantized:
    return quantize(network, images, Options(method="minmax"))


@pytest.fixture(scope="module")
def ptq(network: FloatNetwork, images: CalibrationImages) -> Quantized:
    return quantize(network, images)


def test_ptq_is_close_to_fp32_and_better_than_minmax(
    network: FloatNetwork, minmax: Quantized, ptq: Quantized, unseen: list[np.ndarray]
) -> None:
    full = measure_float(network, unseen)
    plain, fitted = measure(minmax.network, unseen), measure(ptq.network, unseen)
    assert full.psnr > 25
    # measured with 8 crops: 0.4 and 1.1 dB; with all that ship 0.3 and 1.4
    assert full.psnr - fitted.psnr < 0.5
    assert full.psnr - plain.psnr < 1.5
    assert fitted.psnr > plain.psnr + 0.3
    assert abs(fitted.bpp / full.bpp - 1) < 0.05
    # on what it was calibrated on, as reported
    for one in (minmax, ptq):
        assert one.before.psnr - one.after.psnr == pytest.approx(
            one.network.provenance["quantization"]["fp32"]["psnr"]
            - one.network.provenance["quantization"]["integer"]["psnr"],
            abs=2e-4,
        )
    assert minmax.before.psnr == ptq.before.psnr
    assert minmax.after.psnr < ptq.after.psnr <= ptq.before.psnr + 0.1


def test_what_is_reported_is_what_the_file_does(
    ptq: Quantized, images: CalibrationImages, tmp_path: Path
) -> None:
    save(ptq.network, tmp_path / "net.lichen")
    again = measure(load(tmp_path / "net.lichen"), images.crops)
    assert (again.psnr, again.bpp) == pytest.approx((ptq.after.psnr, ptq.after.bpp))


def test_symbols_lie_on_the_integer_grid(
    network: FloatNetwork, ptq: Quantized, unseen: list[np.ndarray]
) -> None:
    """One step of g_a's output is one step of the latent, and g_s reads just that."""
    integer = ptq.network
    assert integer.latent_fraction == 0
    g_a, g_s = integer.transforms["g_a"], integer.transforms["g_s"]
    np.testing.assert_array_equal(g_a.stages[-1].scales["output"], 1.0)
    np.testing.assert_array_equal(g_s.stages[0].scales["input"], 1.0)
    assert g_s.input == g_a.output
    assert (g_s.output.lo, g_s.output.hi, g_s.output.signed) == (0, 255, False)
    for image in unseen:
        latents = analysis(integer, image)
        symbols = latents["y"].symbols
        rounded = np.rint(network.analyze(image))
        assert symbols.dtype.kind == "i" and symbols.std() > 0.3
        # the nearest integer of the latent, but for quantization errors near a half
        assert np.mean(symbols == rounded) > 0.8
        assert np.abs(symbols - rounded).max() <= 2
        assert sum(estimate_bits(integer, latents).values()) > 0


def test_formats_are_as_asked(network: FloatNetwork, images: CalibrationImages) -> None:
    widths = Widths(weight=5, activation=6, gamma=4, u=7, gdn_input=9)
    other = Widths(weight=10, activation=11)
    result = quantize(
        network,
        images,
        Options(method="minmax", widths=widths, per_stage={"g_a.conv2": other}, latent_bits=7),
    )
    g_a, g_s = (result.network.transforms[name] for name in ("g_a", "g_s"))
    assert g_a.output.bits == 7 and g_s.input.bits == 7 and g_s.output.bits == 8
    for transform in (g_a, g_s):
        for index, stage in enumerate(transform.stages):
            special = transform is g_a and index == 1
            w = other if special else widths
            assert stage.convolution.weight_bits == w.weight
            if stage.normalization is not None:
                norm = stage.normalization
                assert stage.output.bits == w.activation
                assert norm.gamma_bits == w.gamma and norm.u_bits <= w.u
                assert stage.requantizer.output.bits == w.gdn_input
    assert [r.stage.name for r in result.stages] == ["conv1", "conv2", "conv3", "conv4"] * 2


def test_more_bits_lose_less(network: FloatNetwork, images: CalibrationImages) -> None:
    losses = []
    for bits in (4, 6, 8, 11):
        widths = Widths(weight=bits, activation=bits, gamma=bits, u=bits, gdn_input=bits + 2)
        result = quantize(network, images, Options(method="minmax", widths=widths, latent_bits=8))
        losses.append(result.before.psnr - result.after.psnr)
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 1 and losses[-1] < 0.1


def test_equal_arguments_give_equal_networks(
    network: FloatNetwork, images: CalibrationImages, minmax: Quantized
) -> None:
    again = quantize(network, images, Options(method="minmax"))
    assert digest(again.network) == digest(minmax.network)


def test_the_clip_factor_is_chosen_on_other_images(
    network: FloatNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    crops = [rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(5)]
    calibrated: list[list[bytes]] = []
    measured: list[list[bytes]] = []

    def quantized(_, images, options, **more):
        calibrated.append([crop.tobytes() for crop in images.crops])
        return SimpleNamespace(network=(options.clip_factor, options.gdn_input_clip_factor))

    def rates(factors, images):
        common, inputs = factors
        measured.append([crop.tobytes() for crop in images])
        return SimpleNamespace(bpp=abs(common - 1.3) + abs((inputs or common) - 1.9), psnr=30.0)

    monkeypatch.setattr(quantization, "quantize", quantized)
    monkeypatch.setattr(quantization, "measure", rates)
    five = CalibrationImages(crops)
    factor, losses = choose_clip_factor(network, five, Options(gdn_input_clip_factor=1.0), 0.5)
    assert factor == 1.25 and losses[1.0] == 0 and losses[1.25] == pytest.approx(0.05 - 0.3)
    own, _ = choose_clip_factor(network, five, Options(), 0.5, field="gdn_input_clip_factor")
    assert own == 2.0
    for some, held in zip(calibrated, measured, strict=True):
        assert sorted(some + held) == sorted(crop.tobytes() for crop in crops)
        assert len(some) == 3
    one = CalibrationImages(crops[:1])
    choose_clip_factor(network, one, Options(), 0.5)
    assert calibrated[-1] == measured[-1] == [crops[0].tobytes()]


def test_inputs_of_normalizations_have_a_clip_factor_of_their_own() -> None:
    options = Options(clip_factor=1.5, gdn_input_clip_factor=1.25)
    assert options.clip_rule("g_a.conv1.x").factor == 1.25
    assert options.clip_rule("g_a.conv1.output").factor == 1.5
    assert replace(options, gdn_input_clip_factor=None).clip_rule("g_a.conv1.x").factor == 1.5
    assert replace(options, clip="percentile").clip_rule("g_a.conv1.x").factor == 1.0
    with pytest.raises(UserError, match="clip factor must be above 0, not 0"):
        Options(gdn_input_clip_factor=0.0)


def test_bits_of_single_tensors() -> None:
    stages, widths = ["g_a.conv1", "g_a.conv2", "g_s.conv1"], Widths(weight=7)
    before = {"g_a.conv1": Widths(gamma=5)}
    given = ["g_a.*.u=9", "g_a.conv2.u=10", "g_s.conv?.activation=12"]
    assert with_bits(before, widths, stages, given) == {
        "g_a.conv1": Widths(gamma=5, u=9),
        "g_a.conv2": Widths(weight=7, u=10),
        "g_s.conv1": Widths(weight=7, activation=12),
    }
    assert with_bits(before, widths, stages, []) == before
    for text, message in (
        ("g_a.conv1.u", "NAME=BITS"),
        ("g_a.conv1.u=-3", "NAME=BITS"),
        ("g_a.conv9.u=9", r"no tensor is called g_a.conv9.u; a name is a stage's \(g_a.conv1, "),
        ("g_a.conv1.x=9", "one of weight, activation, gamma, u, gdn_input"),
        ("*.weight=13", "bits of weight must lie in 2 .. 12, not 13"),
    ):
        with pytest.raises(UserError, match=message):
            with_bits({}, widths, stages, [text])


def test_validation_on_the_way_in_and_out(minmax: Quantized) -> None:
    assert Network.model_validate(minmax.network.model_dump())
    assert minmax.network.entropy["y"].lengths.shape == (minmax.network.m,)


# The command --------------------------------------------------------------------------------


def test_the_command(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.lichen"
    done = CliRunner().invoke(
        command, [str(checkpoint), "-o", str(target), "--json", "-", "--method", "minmax", *SMALL]
    )
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    integer = load(target)
    assert integer.name == report["name"] == "small"
    assert (report["n"], report["m"], report["method"]) == (integer.n, integer.m, "minmax")
    assert report["size_bytes"] == target.stat().st_size
    layers = report["layers"]
    assert [(x["transform"], x["stage"]) for x in layers] == [
        (name, f"conv{k}") for name in ("g_a", "g_s") for k in range(1, 5)
    ]
    for layer in layers:
        stages = integer.transforms[layer["transform"]].stages
        stage = next(s for s in stages if s.name == layer["stage"])
        assert layer["weight_bits"] == stage.convolution.weight_bits == 8
        assert layer["output_bits"] == stage.output.bits
        keys = {"weight", "output"} | ({"x"} if stage.normalization is not None else set())
        assert set(layer["clip"]) == keys
        assert all(0 < lo <= hi for lo, hi in layer["clip"].values())
        assert np.isfinite(layer["sqnr_db"])
    loss = report["loss"]
    assert loss["psnr_db"] == pytest.approx(
        loss["before"]["psnr"] - loss["after"]["psnr"], abs=2e-4
    )
    assert loss["before"]["bpp"] > 0 and loss["after"]["images"] == 3
    assert "small.lichen: minmax" in done.stderr


def test_the_file_holds_nothing_of_the_machine(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the folders it was made in nor of, whatever way they were given."""
    folder = tmp_path / "secret-folder"
    (folder / "photos").mkdir(parents=True)
    for k, photo in enumerate(models.calibration_photographs()[:2]):
        Image.fromarray(read_image(photo)[:64, :64]).save(folder / "photos" / f"{k}.png")
    copy = folder / "weights.safetensors"
    copy.write_bytes(checkpoint.read_bytes())
    bare = folder / "bare.pth.tar"
    torch.save({"state_dict": load_checkpoint(checkpoint).state_dict}, bare)
    for source in (copy, bare):
        arguments = [str(source), "-o", str(folder / "net.lichen"), "--method", "minmax"]
        arguments += ["--calibrate", str(folder / "photos"), "--evaluate", str(folder / "photos")]
        done = CliRunner().invoke(command, [*arguments, "--threads", "1", "--quiet"])
        assert done.exit_code == 0, done.output
        content = (folder / "net.lichen").read_bytes()
        assert b"secret-folder" not in content
        for trace in (str(tmp_path), str(Path.home()), str(Path.cwd())):
            assert trace.encode() not in content
        provenance = load(folder / "net.lichen").provenance
        assert len(provenance["source"]["sha256"]) == 64
        assert provenance["rd"]["set"] == "photos" and provenance["rd"]["images"] == 2


def refusal(arguments: list[str]) -> str:
    with CliRunner().isolation() as streams:
        with pytest.raises(SystemExit) as caught:
            main(["quantize", *arguments])
        assert caught.value.code == 2
        return streams[1].getvalue().decode()


def test_bad_input_gets_one_sentence(checkpoint: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "a.png").write_bytes(b"no picture")
    text = tmp_path / "text.pth"
    text.write_text("hello")
    out, good = str(tmp_path / "net.lichen"), str(checkpoint)
    for arguments, words in (
        ([str(tmp_path / "nothing.pth"), "-o", out], "nothing.pth"),
        ([str(text), "-o", out], "text.pth"),
        ([str(tmp_path), "-o", out], "not a file"),
        ([str(models.shipped_network("tiny")), "-o", out], "tiny.lichen"),
        ([good, "-o", str(tmp_path / "nowhere" / "net.lichen")], "does not exist"),
        ([good, "-o", str(tmp_path)], "it is a folder"),
        ([good, "-o", out, "--calibrate", str(empty)], str(empty)),
        ([good, "-o", out, "--calibrate", str(damaged)], "a.png"),
        ([good, "-o", out, "--calibrate", str(tmp_path / "no")], "no"),
    ):
        said = refusal([*arguments, "--quiet"])
        assert said.startswith("lichen: ") and said.count("\n") == 1, said
        assert words in said, said
    assert not (tmp_path / "net.lichen").exists()
    for option, value in (("--weight-bits", "13"), ("--method", "magic"), ("--latent-bits", "1")):
        said = refusal([good, "-o", out, option, value])
        assert option in said and "Traceback" not in said


def test_options_are_checked() -> None:
    for make in (
        lambda: Widths(weight=1),
        lambda: Widths(gamma=13),
        lambda: Options(method="best"),
        lambda: Options(clip="none"),
        lambda: Options(percentile=120.0),
        lambda: Options(latent_bits=17),
    ):
        with pytest.raises(UserError, match="must"):
            make()


def test_unknown_stages_and_missing_images_are_refused(
    network: FloatNetwork, images: CalibrationImages
) -> None:
    with pytest.raises(UserError, match=r"no stage g_a\.conv9"):
        quantize(network, images, Options(per_stage={"g_a.conv9": Widths()}))
    with pytest.raises(UserError, match="no calibration images"):
        quantize(network, CalibrationImages([]))
