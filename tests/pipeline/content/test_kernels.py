"""Compiled loops where nothing can be written: a container whose files are read-only, for a user without a home."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PROGRAM = """
import numpy as np
import pipeline.content.hashes
from pipeline.content.kernels import code_point
print(pipeline.__file__, *code_point(np.frombuffer("\\u00e9".encode(), np.uint8), 0, 2))
"""


@pytest.mark.parametrize("named", [False, True])
def test_loops_that_cannot_be_kept_are_compiled_all_the_same(named: bool, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pipeline" / "content" / "__pycache__").touch()  # no folder can be made here, whoever asks
    env = {key: value for key, value in os.environ.items() if key not in ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR")}
    env |= {"HOME": os.devnull} | ({"NUMBA_CACHE_DIR": str(tmp_path / "kept")} if named else {})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/pipeline/__init__.py 233 2\n"), done.stderr
    if named:
        assert done.stderr == ""
        assert list((tmp_path / "kept").rglob("*.nbi"))
    else:
        assert done.stderr.count("NUMBA_CACHE_DIR") == done.stderr.count("\n") == 1
