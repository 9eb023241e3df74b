"""Every command line that infra/ and the READMEs contain is run with `--check`, against a real S3 endpoint that holds what it names.

A command line is found by what it starts: `python -m pipeline|trainer|evaluation`, `deepspeed … --module trainer` or the Slurm script; here
the part that is ours must be valid. What `ray`, `deepspeed`, Slurm and Kubernetes make of their part is run for real elsewhere (tests/e2e,
tests/trainer), but for ssh and a real cluster.
"""

import bz2
import importlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.contracts import manifest, storage
from pipeline.contracts.errors import HouseError
from tests.conftest import ROOT
from tests.pipeline.contracts.test_manifest import rows

COMPUTING = re.compile(
    r"(?:(?:python|deepspeed)\b[^\n]*?(?:-m|--module)\s+(pipeline|trainer(?:\.launch_ray)?|evaluation)"
    r"|sbatch infra/slurm/(trainer)\.sbatch)\s+([^\n#&]*)"
)


def texts() -> Iterator[tuple[str, str]]:
    """(file, its commands as text): YAML values, Dockerfile lines, code of pages in blocks and in lines; continued lines joined."""
    for path in sorted((ROOT / "infra").rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            for value in strings(document):
                yield str(path.relative_to(ROOT)), value
            for command, arguments in shell_scripts(document):
                yield str(path.relative_to(ROOT)), command.replace('"$@"', shlex.join(arguments))
    for path in sorted((ROOT / "infra").rglob("*.Dockerfile")):
        for line in path.read_text().splitlines():
            if line.startswith("CMD "):
                yield str(path.relative_to(ROOT)), " ".join(json.loads(line.removeprefix("CMD ")))
    pages = [
        ROOT / "README.md",
        *(ROOT / name / "README.md" for name in ("pipeline", "trainer", "evaluation", "infra")),
    ]
    for path in filter(Path.exists, pages):
        text = path.read_text()
        for block in [
            *re.findall(r"```(?:bash)?\n(.*?)```", text, re.DOTALL),
            *re.findall(r"(?<!`)`([^`]+)`(?!`)", text),
        ]:
            for line in block.replace("\\\n", " ").splitlines():
                yield str(path.relative_to(ROOT)), line
    for path in sorted([*(ROOT / "infra" / "deepspeed").iterdir(), *(ROOT / "infra" / "slurm").iterdir()]):
        for line in path.read_text().splitlines():
            if line.startswith("# "):
                yield str(path.relative_to(ROOT)), line.lstrip("# ")


def shell_scripts(document: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Scripts of a job's containers and the arguments that the container gives them."""
    for container in document.get("spec", {}).get("template", {}).get("spec", {}).get("containers", []):
        if container.get("command", [])[:2] == ["bash", "-c"]:
            yield container["command"][2], container["args"]


def strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def commands() -> dict[tuple[str, ...], list[str]]:
    """(module, its arguments) → the files that have it; only commands with a configuration, each once."""
    found: dict[tuple[str, ...], list[str]] = {}
    for file, text in texts():
        for module, script, rest in COMPUTING.findall(text):
            arguments = tuple(word for word in shlex.split(rest) if word not in ("--check", "[key=value", "…]"))
            if "--config" in arguments and "FILE" not in arguments:
                found.setdefault((module or script, *arguments), []).append(file)
    return found


COMMANDS = commands()


@pytest.fixture(scope="module")
def bucket(s3_server: str) -> str:
    """s3://bucket with URL tables, a query list and a corpus, as the examples name them."""
    client = boto3.client(
        "s3",
        endpoint_url=s3_server,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="bucket")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"url": ["http://host/1"], "caption": ["a dog"]}), sink)
    client.put_object(Bucket="bucket", Key="lists/a.parquet", Body=sink.getvalue().to_pybytes())
    client.put_object(Bucket="bucket", Key="queries.txt", Body=b"dog\n")
    dump = b'<mediawiki xml:lang="en"><siteinfo><namespaces><namespace key="0"/></namespaces></siteinfo></mediawiki>'
    client.put_object(
        Bucket="bucket", Key="dumps/enwiki-20260101-pages-articles-multistream.xml.bz2", Body=bz2.compress(dump)
    )
    client.put_object(Bucket="bucket", Key="dumps/pageviews-20260101-000000", Body=b"en Dog 90 0\n")
    dog = b"02084071 05 n 02 dog 0 domestic_dog 0 001 @ 02083346 n 0000 | a member of the genus Canis  \n"
    for part, lines in (("noun", dog), ("verb", b""), ("adj", b""), ("adv", b"")):
        client.put_object(Bucket="bucket", Key=f"wordnet/data.{part}", Body=lines)
    return "bucket"


@pytest.fixture
def filled_bucket(bucket: str, s3_endpoint: str) -> str:
    folder = "s3://bucket/web-v1/shards"
    if not storage.exists(manifest.manifest_path(folder)):
        small = manifest.write_corpus(folder, [rows(20)])
        # --check reads the manifest and no shard: one that speaks of the paper's 400 million pairs makes the recipes' arithmetic real.
        many = small.shards[0].row_groups[0]._replace(rows=400_000_000)
        shard = small.shards[0].model_copy(update={"rows": 400_000_000, "row_groups": [many]})
        manifest.publish(folder, small.model_copy(update={"rows": 400_000_000, "shards": [shard]}))
    return bucket


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_command_line_is_valid(
    command: tuple[str, ...], filled_bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: a new one for each would be seconds of imports. Modules as commands are run elsewhere, `--check` too."""
    module, *arguments = command
    monkeypatch.chdir(ROOT)
    try:
        name = module if "." in module else f"{module}.__main__"
        code = importlib.import_module(name).main(with_check(arguments))
    except HouseError as error:
        pytest.fail(f"{COMMANDS[command]}: {error}")
    assert not code, COMMANDS[command]
    assert "digest" in capsys.readouterr().out


def with_check(arguments: list[str]) -> list[str]:
    """`--check` goes before the overrides, which argparse wants together at the end."""
    place = arguments.index("--config")
    return [*arguments[: place + 2], "--check", *arguments[place + 2 :]]


def test_every_infra_file_that_starts_something_was_found() -> None:
    files = {file for found in COMMANDS.values() for file in found}
    assert {
        "infra/k8s/pipeline-rayjob.yaml",
        "infra/k8s/trainer-job.yaml",
        "infra/docker/trainer.Dockerfile",
        "infra/slurm/trainer.sbatch",
        "README.md",
    } <= files


def test_hostfile_and_docker_sources_exist() -> None:
    hosts = [
        line
        for line in (ROOT / "infra/deepspeed/hostfile.example").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[\w.-]+ slots=\d+", line) for line in hosts)
    for path in (ROOT / "infra/docker").iterdir():
        for line in path.read_text().splitlines():
            if line.startswith("COPY "):
                assert all((ROOT / source).exists() for source in line.split()[1:-1]), f"{path.name}: {line}"


def test_rays_launcher_finds_what_it_needs_in_the_image() -> None:
    """Ray's own code reads cluster.yaml; the container it would start has the token where the image's user looks for it."""
    from ray.autoscaler._private.docker import docker_start_cmds
    from ray.autoscaler._private.util import prepare_config, validate_config

    image = (ROOT / "infra/docker/pipeline.Dockerfile").read_text()
    cluster = prepare_config(yaml.safe_load((ROOT / "infra/ray/cluster.yaml").read_text()))
    for kind in cluster["available_node_types"].values():
        kind.setdefault("resources", {})  # which Ray asks of AWS where we say nothing
    validate_config(cluster)
    (user,) = re.findall(r"^USER (.*)$", image, re.MULTILINE)
    (packages,) = re.findall(r"apt-get install -y --no-install-recommends (.*) \\", image)
    # `rsync -e 'docker exec -i'` runs rsync inside the container; the head starts its workers from there by ssh.
    assert {"rsync", "openssh-client"} <= set(packages.split())
    assert f"useradd --create-home --uid 1000 {user} " in image
    docker = cluster["docker"]
    # Ray expands ~ in a mount by HOME of the image's environment, /root when that is unset; `docker inspect` of ours has none.
    started = docker_start_cmds(  # type: ignore[no-untyped-call]
        "ubuntu", docker["image"], cluster["file_mounts"], "ray", [], "corpus", "/root", "docker"
    )
    assert f":/home/{user}/.ray/auth_token " in started
    assert "ENV HOME" not in image


def test_every_image_is_one_to_push() -> None:
    """A bare name would be looked for on Docker Hub."""
    found = [
        name
        for path in (ROOT / "infra").rglob("*.yaml")
        for name in re.findall(r"^\s*image: (\S+)", path.read_text(), re.MULTILINE)
    ]
    assert sorted(found) == [*["REGISTRY/corpus-pipeline:latest"] * 3, "REGISTRY/corpus-trainer:latest"]


def test_the_tested_set_fits_the_floors() -> None:
    """Every requirement of pyproject.toml is pinned in the tested set, at or above its floor."""
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [
        line for line in (ROOT / "infra/constraints.txt").read_text().splitlines() if line and not line.startswith("#")
    ]
    pinned = dict(line.lower().replace("_", "-").split("==") for line in lines)
    wanted = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    for requirement in map(Requirement, wanted):
        name = requirement.name.lower().replace("_", "-")
        if name == project["name"]:
            continue
        assert any(part.operator in (">=", "==") for part in requirement.specifier), f"{requirement}: no floor"
        assert requirement.specifier.contains(pinned[name]), f"{requirement}: tested with {pinned[name]}"
    assert pinned["torch"] == "2.13.0"
