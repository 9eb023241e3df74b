"""The overlap job ended by `kill -9` at random moments, then run again: the same report, byte for byte."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest

from evaluation.config import OverlapConfig
from evaluation.report import verify
from pipeline.contracts import storage
from pipeline.contracts.config import to_toml
from tests.conftest import ROOT
from tests.evaluation import planted

KILLS = 6


def start(config: Path, report: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "evaluation", "overlap", "--config", str(config), f"report.dir={report}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def contents(folder: Path) -> dict[str, bytes]:
    files = (one for one in folder.rglob("*") if one.is_file() and ".tmp-" not in one.name)
    return {str(one.relative_to(folder)): one.read_bytes() for one in files}


@pytest.mark.prove
@pytest.mark.timeout(1200)
def test_killed_and_run_again(tmp_path: Path) -> None:
    config = tmp_path / "overlap.toml"
    config.write_text(to_toml(planted.overlap_config(planted.plant(tmp_path), tmp_path / "unused")), "utf-8")
    began = time.monotonic()
    assert start(config, tmp_path / "whole").wait(300) == 0
    whole = time.monotonic() - began
    draws = random.Random(3)
    for _ in range(KILLS):
        driver = start(config, tmp_path / "killed")
        try:
            driver.wait(draws.uniform(0.3, 1.0) * whole)
        except subprocess.TimeoutExpired:
            driver.send_signal(signal.SIGKILL)
            driver.wait(30)
    assert start(config, tmp_path / "killed").wait(300) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert verify(str(tmp_path / "killed")) == []


@pytest.mark.prove
@pytest.mark.timeout(600)
def test_on_s3_as_on_the_disk(tmp_path: Path, s3_endpoint: str) -> None:
    """Corpus, set and report on an S3 server: the same bytes as locally, and `verify` reads them there."""
    made = planted.plant(tmp_path, examples=12, leaks=5, others=20)
    boto3.client("s3").create_bucket(Bucket="audit")
    for one in (path for path in tmp_path.rglob("*") if path.is_file()):
        storage.write_atomic(f"s3://audit/{one.relative_to(tmp_path)}", one.read_bytes())
    settings = planted.overlap_config(made, tmp_path / "report").model_dump(mode="json", exclude_none=True)
    config = tmp_path / "overlap.toml"
    config.write_text(to_toml(OverlapConfig.model_validate(settings)), "utf-8")
    assert start(config, tmp_path / "report").wait(300) == 0
    settings["corpus"]["manifest"] = "s3://audit/corpus"
    settings["sets"][0]["path"] = "s3://audit/evaluation.parquet"
    settings["report"]["dir"] = "s3://audit/report"
    remote = tmp_path / "remote.toml"
    remote.write_text(to_toml(OverlapConfig.model_validate(settings)), "utf-8")
    command = [sys.executable, "-m", "evaluation", "overlap", "--config", str(remote)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    local = contents(tmp_path / "report")
    assert {name: storage.read_bytes(f"s3://audit/report/{name}") for name in local} == local
    assert verify("s3://audit/report") == []
