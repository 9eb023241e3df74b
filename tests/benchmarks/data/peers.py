"""Environments of their own for peers that cannot live in ours: torchvision without its build of torch, whatever else a peer brings."""

import subprocess
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

import torch

TORCHVISION = f"torchvision==0.{int(torch.__version__.split('.')[1]) + 15}.*"
"""The one that goes with this torch."""


def python_with(folder: Path, packages: Sequence[str], *, ours: bool) -> str:
    """The interpreter of an environment with `packages`, made in `folder` where it is missing or has others.

    With `ours` the packages come without what they require and all else, torch above all, is found in our environment; else with all that
    they require and nothing of ours.
    """
    python, made = folder / "bin" / "python", folder / "made"
    wanted = "\n".join(packages)
    if not made.exists() or made.read_text() != wanted:
        venv.create(folder, with_pip=True, clear=True)
        alone = ["--no-deps"] if ours else []
        subprocess.run([python, "-m", "pip", "install", "--quiet", *alone, *packages], check=True)
        if ours:
            site = sysconfig.get_path("purelib", vars={"base": str(folder)})
            (Path(site) / "zz_ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
        made.write_text(wanted)
    return str(python)
