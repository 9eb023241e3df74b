"""Gather the wheels that a machine without a package index needs, on one that has an index.

    python infra/offline/carry.py OUT [--python 3.12] [--platform manylinux_2_28_x86_64] [--node node.txt] [--without ray] [--also …]

OUT becomes a folder of wheels with `requirements.txt` (what install.sh installs) and `SHA256SUMS`. Run it from a checkout, under any Python
that has pip, the node's version by preference. Without --python and --platform the wheels are for this interpreter and this machine.

--node names what `python3 -m pip list --format=freeze` prints on the node: those packages stay as they are there, torch above all, so
they are not carried, and all others are of the tested set (infra/constraints.txt). Where that does not fit what the node has, only
DeepSpeed is, on whose inside the trainer builds, and the others are what fits; which ones is said. What the node has in a version that
this project does not take is carried, and said too: in the environment that install.sh makes it hides the node's own.

--without names a package that will not be used there, --also one that this project does not need. What an index has as source only
(DeepSpeed) is built here first; that makes wheels for any machine as long as they are pure Python, and a refusal where they are not and
--python or --platform is given.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SUMS, REQUIREMENTS = "SHA256SUMS", "requirements.txt"


class PipError(Exception):
    """The end of what pip said where it failed."""


def pip(*arguments: str) -> None:
    """Raises PipError."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if not line.startswith(("WARNING", "Collecting"))]
        raise PipError("\n".join((*said[-20:], f"error: pip {arguments[0]} failed for the reason above")))


def chosen(wanted: Sequence[str], options: Sequence[str]) -> list[dict[str, Any]]:
    """What pip would install: its report's entries (pip's documentation, "Installation Report")."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip("install", "--dry-run", "--ignore-installed", "--report", str(report), *options, *wanted)
        found: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    return found


def fits(wanted: Sequence[str], options: Sequence[str]) -> bool:
    try:
        chosen(wanted, options)
    except PipError:
        return False
    return True


def constrain(path: Path, versions: Mapping[str, str]) -> None:
    path.write_text("".join(f"{name}=={version}\n" for name, version in versions.items()))


def normal(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def listed(path: Path) -> dict[str, str]:
    """Names and versions of `pip list --format=freeze`, with a local part (PEP 440) that no index has: only `stand_in` fits them."""
    lines = (line.strip().partition("==") for line in path.read_text().splitlines())
    return {normal(name): f"{version}{'.' if '+' in version else '+'}node" for name, sign, version in lines if sign}


def tested(here: Mapping[str, str]) -> dict[str, str]:
    """Names and versions of infra/constraints.txt, without those that are `here`."""
    lines = (line.partition("==") for line in (ROOT / "infra/constraints.txt").read_text().splitlines())
    return {normal(name): version for name, sign, version in lines if sign and normal(name) not in here}


def stand_in(folder: Path, name: str, version: str) -> None:
    """An empty wheel of that name and version, so that pip takes what the node has for given and asks no index for that very build."""
    stem = f"{name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")


def unfit(extras: Sequence[str], here: Mapping[str, str], folder: Path) -> list[str]:
    """Those of `here`, which have stand-ins in the folder, that pyproject.toml does not take in that version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(line for one in extras for line in project["optional-dependencies"].get(one, ())),
    ]
    named = {normal(re.split(r"[^A-Za-z0-9._-]", line)[0]): line for line in wanted}
    alone = ["--no-index", "--no-deps", "--find-links", str(folder)]
    return [
        name
        for name, line in sorted(named.items())
        if name in here and not fits([line, f"{name}=={here[name]}"], alone)
    ]


def main() -> None:
    try:
        carry()
    except PipError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def carry() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--extras", default="trainer", help="of pyproject.toml, comma between them")
    parser.add_argument("--python", help="version of the node's, as 3.12")
    parser.add_argument("--platform", action="append", help="tags of the node; may be given several times")
    parser.add_argument("--node", type=Path, help="what `python3 -m pip list --format=freeze` prints on the node")
    parser.add_argument(
        "--without", action="append", default=[], help="a package that is not carried; what needs it will not run there"
    )
    parser.add_argument(
        "--also", action="append", default=[], help="another package to carry, as open_clip_torch==3.3.0"
    )
    settings = parser.parse_args()
    out: Path = settings.out
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        print(f"error: {out}: is not empty; name a new folder", file=sys.stderr)
        raise SystemExit(2)
    here = {normal(name): "9999+node" for name in settings.without}
    here |= {} if settings.node is None else listed(settings.node)
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    if settings.python not in (None, running):
        print(
            f"note: pip judges by the Python that runs it, {running}, what packages need of each other (python_version < …); a Python"
            f" {settings.python} would choose as the node's does",
            file=sys.stderr,
        )

    with tempfile.TemporaryDirectory() as folder:
        for name, version in here.items():
            stand_in(Path(folder), name, version)
        replaced = unfit(settings.extras.split(","), here, Path(folder))
        if replaced:
            shown = ", ".join(f"{name} {here.pop(name).removesuffix('node').rstrip('+.')}" for name in replaced)
            print(
                f"note: on the node in a version that this project does not take, so carried: {shown}", file=sys.stderr
            )
        known = tested(here)
        fixed = Path(folder) / "fixed.txt"
        fitting = ["--find-links", folder, "--find-links", str(out), "--constraint", str(fixed)]
        target = [*(["--python-version", settings.python] if settings.python else [])]
        target += [word for tag in settings.platform or () for word in ("--platform", tag)]

        # This project, and what the index has as source only.
        pip("wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(ROOT))
        wanted = [f"corpus-and-clip[{settings.extras}]", *settings.also]
        constrain(fixed, here | known)
        if here and not fits(wanted, fitting):
            constrain(fixed, here | {name: known[name] for name in known if name == "deepspeed"})
        sources = [
            f"{one['metadata']['name']}=={one['metadata']['version']}"
            for one in chosen(wanted, fitting)
            if not one["download_info"]["url"].endswith(".whl")
        ]
        for source in sources:
            pip("wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), source)

        options = [*fitting, *target, *(["--only-binary", ":all:", "--target", folder] if target else [])]
        found = {normal(one["metadata"]["name"]): one["metadata"]["version"] for one in chosen(wanted, options)}
        carried = [f"{name}=={version}" for name, version in sorted(found.items()) if name not in here]
        binary = ["--only-binary", ":all:", *target]
        pip("download", "--quiet", "--no-deps", "--find-links", str(out), "--dest", str(out), *binary, *carried)

    (out / REQUIREMENTS).write_text("".join(f"{line}\n" for line in carried))
    wheels = sorted(out.glob("*.whl"))
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in (*wheels, out / REQUIREMENTS)]
    (out / SUMS).write_text("".join(sums))
    untested = [
        f"{name} {found[name]} (tested: {known[name]})"
        for name in sorted(found)
        if found[name] != known.get(name, found[name])
    ]
    if untested:
        print(f"note: not of the tested versions, which do not fit the node's: {', '.join(untested)}", file=sys.stderr)
    size = sum(path.stat().st_size for path in wheels)
    print(
        f"{out}: {len(wheels)} wheels, {size / 2**20:,.0f} MiB; carry the folder and infra/offline/install.sh to the node"
    )


if __name__ == "__main__":
    main()
