"""The ablation command, on six crops."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256

import pytest
from click.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("compressai")

from lichen import models
from lichen.commands.ablate import ROWS, command
from lichen.models import calibration_photographs


def test_ablate(tmp_path):
    photos = str(calibration_photographs()[0].parent)
    few = tmp_path / "few"
    few.mkdir()
    for photo in calibration_photographs()[::8]:
        shutil.copy(photo, few)
    arguments = ["tiny", "--calibrate", photos, "--train", str(few), "--images", str(few)]
    arguments += ["--max-images", "6", "--crop", "256", "--patch", "64", "--batch", "1"]
    arguments += ["--regularize-steps", "1", "--steps", "2", "-o", str(tmp_path)]
    arguments += ["--json", str(tmp_path / "rows.json"), "--quiet", "--threads", "1"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    report = json.loads((tmp_path / "rows.json").read_text())
    parent = models.shipped_parent("tiny")
    assert parent is not None
    assert report["sha256"] == sha256(parent.read_bytes()).hexdigest()
    rows = report["rows"]
    assert [row["name"] for row in rows] == ["FP32", *ROWS]
    assert rows[1]["psnr"] < rows[2]["psnr"] < rows[0]["psnr"]
    assert rows[1]["loss_change"] > rows[2]["loss_change"] > rows[0]["loss_change"] == 0
    assert all(f"| {row['name']} |" in result.output for row in rows)
    assert len(list(tmp_path.glob("*.lichen"))) == len(ROWS)
