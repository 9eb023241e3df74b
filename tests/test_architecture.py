"""The house holds: arrows between packages, one door per heavy library, no cycles, light imports, and pages that name what exists."""

import ast
import functools
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "trainer", "evaluation")
EVERYONE = ("pipeline.contracts", "pipeline.content")

ALLOWED = {
    "pipeline.contracts": ("pipeline.contracts",),
    "pipeline.content": EVERYONE,
    "pipeline": ("pipeline",),
    "trainer": (*EVERYONE, "trainer"),
    "evaluation": (
        *EVERYONE,
        "pipeline.engine",
        "pipeline.commit",  # what it is given
        "pipeline.records",  # what it returns
        "trainer.models",
        "trainer.tokenizer",
        "trainer.data.transforms",
        "trainer.data.order",  # which rows a run has read; loads numpy only
        "trainer.export",
        "evaluation",
    ),
}
"""What the modules under each prefix (the longest that fits) may import of this project."""

DOORS = {
    "ray": {"pipeline/contracts/ray_start.py", "pipeline/engine.py", "trainer/launch_ray.py"},
    "deepspeed": {"trainer/zero.py"},
    "boto3": {"pipeline/contracts/s3.py"},
    "botocore": {"pipeline/contracts/s3.py"},
    "pyarrow.fs": {"pipeline/contracts/s3.py", "pipeline/contracts/storage.py"},
    "pipeline.contracts.s3": {"pipeline/contracts/storage.py"},
    "img2dataset": {"pipeline/crawl/img2dataset.py"},
    "aiohttp": {"pipeline/crawl/fetch.py", "pipeline/crawl/connections.py"},
    "idna": {"pipeline/crawl/urls.py"},
    "simplejpeg": {"pipeline/content/image.py"},
    "mwparserfromhell": {"pipeline/queries/markup.py"},
    "datasketch": {"pipeline/dedup/signatures.py"},
    "fastwarc": {"pipeline/sources/records.py"},
    "resiliparse": {"pipeline/sources/page.py"},
    "pycld2": {"pipeline/content/language.py"},
}
"""Libraries, and a file of ours, that only these files import."""


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@functools.cache
def imports(module: str) -> tuple[str, ...]:
    """Every module that `module` imports, anywhere in its text except under TYPE_CHECKING; `from a import b` is a.b where that is one."""
    return tuple(_imports(module))


def _imports(module: str) -> Iterator[str]:
    tree = ast.parse(MODULES[module].read_text())
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], node.module or ""])
                if node.level
                else ""
            )
            base = (base or node.module or "").rstrip(".")
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole in MODULES or base == "pyarrow" else base


def under(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


@pytest.mark.parametrize("module", MODULES)
def test_arrows(module: str) -> None:
    prefix = max((prefix for prefix in ALLOWED if under(module, prefix)), key=len)
    wrong = [
        name
        for name in imports(module)
        if name.split(".")[0] in (*PACKAGES, "infra", "tests")
        and not any(under(name, allowed) for allowed in ALLOWED[prefix])
    ]
    assert not wrong, f"{module} must not import {wrong}"


@pytest.mark.parametrize("library", DOORS)
def test_one_door_per_library(library: str) -> None:
    users = {
        str(MODULES[module].relative_to(ROOT))
        for module in MODULES
        if any(under(name, library) for name in imports(module))
    }
    assert users <= DOORS[library]


def test_no_import_cycles() -> None:
    graph = {module: {name for name in imports(module) if name in MODULES and name != module} for module in MODULES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join([*path[path.index(module) :], module])
        if module not in done:
            for name in graph[module]:
                visit(name, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize(
    ("together", "banned"),
    [
        (
            ("pipeline.contracts", "pipeline.contracts.manifest"),
            ("ray", "torch", "deepspeed", "pandas", "boto3", "numba"),
        ),
        (("pipeline.content.text",), ("ray", "torch", "deepspeed", "pandas", "numba")),
        (
            (
                "pipeline.content.image",
                "pipeline.content.hashes",
                "pipeline.status",
                "trainer.__main__",
                "evaluation.report",
            ),
            ("ray", "torch", "deepspeed", "pandas"),
        ),
        (("pipeline.crawl.stage",), ("img2dataset", "pandas", "wandb", "albumentations")),
        (("trainer.train",), ("ray", "pandas", "img2dataset", "wandb")),
    ],
    ids=lambda value: value[-1],
)
def test_imports_are_light(together: tuple[str, ...], banned: tuple[str, ...]) -> None:
    """What modules do not load together in a fresh interpreter, none of them loads alone."""
    code = f"import sys, {', '.join(together)}; print(*(name for name in {banned!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_contracts_import_in_little_more_than_their_libraries() -> None:
    """Processor seconds of both in turns, the best of three: on a slow or busy machine both take longer."""

    def seconds(code: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    libraries = "import pyarrow.compute, pyarrow.parquet, tomli_w; from pydantic import BaseModel"
    pairs = [(seconds("import pipeline.contracts.manifest"), seconds(libraries)) for _ in range(3)]
    ours, theirs = (min(one) for one in zip(*pairs, strict=True))
    assert ours < 1.75 * theirs


# ---- pages


def pages() -> list[Path]:
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in tracked.stdout.split()]


def named_paths(text: str) -> set[str]:
    """What looks like a path of this project: it starts with one of its folders or is a file of the top level."""
    found = set(re.findall(r"(?<![\w/.:-])(?:pipeline|trainer|evaluation|infra|tests)/[\w./-]*[\w/]", text))
    return {path.rstrip("/") for path in found} | set(
        re.findall(r"(?<![\w/])(?:pyproject\.toml|Makefile|LICENSE)\b", text)
    )


def is_made_by_people(path: str) -> bool:
    """A file that .gitignore names, such as the hostfile: everyone makes their own."""
    return subprocess.run(["git", "check-ignore", "--quiet", path], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    missing = [
        path for path in named_paths(page.read_text()) if not (ROOT / path).exists() and not is_made_by_people(path)
    ]
    assert not missing


def tree_of_the_readme() -> set[str]:
    """The paths that the README's tree draws: two spaces of indentation a level, folders end in a slash."""
    block = re.search(r"## The tree\n\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    folders: list[str] = []
    found = set()
    for line in block[1].splitlines():
        depth = (len(line) - len(line.lstrip(" "))) // 2
        name = line.split()[0]
        del folders[depth:]
        found.add("/".join([*folders, name.rstrip("/")]))
        if name.endswith("/"):
            folders.append(name.rstrip("/"))
    return found


def test_the_tree_in_the_readme_is_the_tree() -> None:
    """One line per file of the packages, and no line for what is not there."""
    drawn = tree_of_the_readme()
    files = {str(path.relative_to(ROOT)) for path in MODULES.values() if path.name != "__init__.py"}
    assert files - drawn == set()
    assert {path for path in drawn if not (ROOT / path).exists()} == set()


def test_the_readme_is_short() -> None:
    """Less the tree, which has a line for every file."""
    before, _, rest = (ROOT / "README.md").read_text().partition("```\npipeline/ ")
    assert len(before.splitlines()) + len(rest.partition("```")[2].splitlines()) <= 130


@pytest.mark.parametrize("package", [*PACKAGES, "infra", "pipeline/contracts"])
def test_each_package_has_its_page(package: str) -> None:
    assert (ROOT / package / "README.md").is_file()


def test_the_top_level_is_what_was_agreed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    top = {name.split("/")[0] for name in tracked}
    plain = {name for name in top if not name.startswith(".")}
    assert plain <= {*PACKAGES, "infra", "tests", "pyproject.toml", "README.md", "LICENSE", "Makefile"}
