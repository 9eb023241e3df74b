"""`make real` as a proof: the whole path on real pictures and real alt texts ends with exit code 0, so every check of it holds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

DATA = (ROOT / os.environ.get("REAL_DATA", "../shared/data")).resolve()
SHOWN = 60  # lines of its output


@pytest.mark.prove
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    not all((DATA / name).exists() for name in ("emoji.parquet", "photos_cc.parquet")),
    reason=f"no emoji.parquet or photos_cc.parquet in {DATA}; give the folder: REAL_DATA=DIR",
)
def test_the_whole_path_on_real_pictures(tmp_path: Path) -> None:
    log = tmp_path / "real.log"
    # ninja, which DeepSpeed calls by name, must be this environment's.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "REAL_DATA": str(DATA), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as sink:
        run = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.real"], cwd=ROOT, env=env, stdout=sink, stderr=subprocess.STDOUT
        )
    try:
        code = run.wait(1700)
    finally:
        run.terminate()  # it ends the step it is in; one that has ended does not notice
        run.wait()
        print("\n".join(log.read_text(errors="replace").splitlines()[-SHOWN:]))
    assert code == 0
