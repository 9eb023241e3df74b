"""Installing without a package index: what is carried, what is refused, and the whole way with no network to ask."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT

CARRY, INSTALL = ROOT / "infra/offline/carry.py", ROOT / "infra/offline/install.sh"
NOWHERE = {
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_NO_CACHE_DIR": "1",
    "PIP_RETRIES": "0",
}
"""An index that nobody can reach, in the place of the one that this machine knows; it is asked once."""


def run(
    command: Sequence[str], /, cwd: str | Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def carry() -> ModuleType:
    spec = importlib.util.spec_from_file_location("carry", CARRY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_listing_of_the_node_is_read(carry: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "node.txt").write_text("torch==2.11.0+cu130\nTyping_Extensions==4.1\n-e git+https://example.org/x\n\n")
    assert carry.listed(tmp_path / "node.txt") == {"torch": "2.11.0+cu130.node", "typing-extensions": "4.1+node"}


def test_pip_takes_a_stand_in_for_what_the_node_has(carry: ModuleType, tmp_path: Path) -> None:
    carry.stand_in(tmp_path, "torch", "2.11.0+cu130.node")
    folder = ["--no-index", "--find-links", str(tmp_path)]
    (found,) = carry.chosen(["torch>=2.8,<2.12"], folder)
    assert found["metadata"]["version"] == "2.11.0+cu130.node"


def test_what_the_node_lacks_is_of_the_tested_set_where_that_fits(carry: ModuleType, tmp_path: Path) -> None:
    known = carry.tested({"torch": "2.11.0+node"})
    assert "torch" not in known
    assert f"deepspeed=={known['deepspeed']}" in (ROOT / "infra/constraints.txt").read_text().splitlines()
    carry.stand_in(tmp_path, "torch", "2.11.0+node")
    fixed = tmp_path / "fixed.txt"
    options = ["--no-index", "--find-links", str(tmp_path), "--constraint", str(fixed)]
    for version, fits in (("2.13.0", False), ("2.11.0+node", True)):
        carry.constrain(fixed, {"torch": version})
        assert carry.fits(["torch>=2.8"], options) is fits


def test_what_the_node_has_in_no_fit_version_is_told_from_what_stays(carry: ModuleType, tmp_path: Path) -> None:
    here = {
        "pillow": "12.0.0+node",
        "torch": "2.11.0+cu130.node",
        "pyarrow": "24.0+node",
        "left": "1+node",
        "ray": "9999+node",
    }
    for name, version in here.items():
        carry.stand_in(tmp_path, name, version)
    assert carry.unfit(["trainer"], here, tmp_path) == ["pillow"]
    carry.stand_in(tmp_path, "torch", "2.8.0+node")
    assert carry.unfit(["trainer"], here | {"torch": "2.8.0+node"}, tmp_path) == ["pillow", "torch"]
    assert carry.unfit(["pipeline"], here, tmp_path) == ["pillow"]


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    done = run([sys.executable, str(CARRY), str(tmp_path)])
    assert (done.returncode, done.stderr) == (2, f"error: {tmp_path}: is not empty; name a new folder\n")


def test_what_pip_cannot_find_is_one_last_sentence(tmp_path: Path) -> None:
    done = run([sys.executable, str(CARRY), str(tmp_path / "out"), "--also", "no-such-package-anywhere"], **NOWHERE)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: pip ")
    assert "Traceback" not in done.stderr


def test_wheels_that_were_changed_are_refused(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("x==1\n")
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  requirements.txt\n")
    done = run(["bash", str(INSTALL), str(tmp_path), str(tmp_path / "venv")])
    assert done.returncode == 2
    assert "not what carry.py has written" in done.stderr
    assert not (tmp_path / "venv").exists()
    assert run(["bash", str(INSTALL)]).returncode == 2


@pytest.mark.prove
@pytest.mark.parametrize("has_ensurepip", [True, False])
def test_packages_of_an_interpreter_that_is_a_virtual_environments_are_seen(
    has_ensurepip: bool, carry: ModuleType, tmp_path: Path
) -> None:
    """As in GPU images: torch is in a virtual environment, of a Debian Python that may lack ensurepip."""
    outer, wheels, broken = tmp_path / "outer", tmp_path / "wheels", tmp_path / "broken"
    venv.create(outer)
    (site,) = outer.glob("lib/python*/site-packages")
    (site / "torch.py").write_text("__version__ = '9.9'\nclass cuda:\n    is_available = staticmethod(lambda: False)\n")
    (site / "trainer").mkdir()
    (site / "trainer/config.py").touch()  # `node` runs outside of the checkout
    broken.mkdir()
    if not has_ensurepip:
        (broken / "ensurepip.py").write_text("raise ImportError\n")
        shutil.copytree(str(importlib.metadata.distribution("pip").locate_file("pip")), site / "pip")
    wheels.mkdir()
    carry.stand_in(wheels, "carried", "1")
    (wheels / "requirements.txt").write_text("carried==1\n")
    sums = subprocess.run("sha256sum *", shell=True, cwd=wheels, check=True, capture_output=True).stdout
    (wheels / "SHA256SUMS").write_bytes(sums)
    node = tmp_path / "node"
    done = run(
        ["bash", str(INSTALL), str(wheels), str(node)],
        tmp_path,
        PYTHON=str(outer / "bin/python"),
        PYTHONPATH=str(broken),
        **NOWHERE,
    )
    assert done.returncode == 0, done.stderr
    assert "installed: torch 9.9" in done.stdout
    assert list(node.glob("lib/python*/site-packages/carried-1.dist-info"))


@pytest.mark.prove
@pytest.mark.timeout(1500)
def test_a_machine_without_an_index_trains(tmp_path: Path) -> None:
    """Everything is carried, torch too; then no index can be reached, and the trainer checks a recipe in the new environment."""
    wheels, node = tmp_path / "wheels", tmp_path / "node"
    carried = run([sys.executable, str(CARRY), str(wheels), "--without", "ray"])
    assert carried.returncode == 0, carried.stderr
    names = {path.name.partition("-")[0].lower() for path in wheels.glob("*.whl")}
    assert {"corpus_and_clip", "deepspeed", "torch"} <= names
    assert "ray" not in names
    venv.create(tmp_path / "bare")
    python = str((tmp_path / "bare" / "bin" / "python").resolve())
    installed = run(["bash", str(INSTALL), str(wheels), str(node)], PYTHON=python, PYTHONPATH=str(ROOT), **NOWHERE)
    assert installed.returncode == 0, installed.stderr
    assert "installed: torch" in installed.stdout
    recipe = str(ROOT / "trainer/configs/smoke.toml")
    checked = subprocess.run(
        [str(node / "bin/python"), "-m", "trainer", "--config", recipe, "--check"],
        cwd=tmp_path,
        env={**os.environ, **NOWHERE, "DS_ACCELERATOR": "cpu", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
