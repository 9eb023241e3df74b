"""The bad-input table: what a user gets wrong, the one sentence that tells, the exit code, and nothing lost.

Each case runs a command line's `main` as `python -m` would. What lay in the folder before must lie there unchanged afterwards; a failed
run may add files of its own (its `run.json` says that it failed).
"""

import hashlib
import importlib
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.contracts import manifest
from pipeline.contracts.cli import exit_code
from tests.conftest import ROOT, s3_environment
from tests.pipeline.contracts.test_manifest import rows

PIPELINE = """
[run]
out = "out"
[sources]
paths = ["list.parquet"]
[filter]
queries = "queries.txt"
"""
TRAINER = """
[data]
manifest = "corpus"
[model]
preset = "tiny-vit"
[tokenizer]
kind = "bpe"
train_size = 600
[optim]
steps = 3
warmup_steps = 1
[batch]
global_size = 8
[run]
dir = "run"
"""
OVERLAP = """
[corpus]
manifest = "corpus"
[[sets]]
name = "birds"
path = "birds.parquet"
[report]
dir = "report"
"""
ZEROSHOT = """
model = "model.safetensors"
out = "scores"
[[sets]]
name = "birds"
path = "birds.parquet"
"""


class Case(NamedTuple):
    """`line` is run in a folder with good files, after `spoil` has made one of them bad."""

    line: str
    says: str
    code: int = 2
    spoil: Callable[[], object] = lambda: None
    process: bool = False  # in a process of its own: what it starts must not stay in this one


def write(name: str, content: str | bytes) -> Callable[[], object]:
    def act() -> None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)

    return act


def table(name: str, **columns: list[object]) -> Callable[[], object]:
    return lambda: pq.write_table(pa.table(columns), name)


def edit_manifest(**changes: object) -> Callable[[], object]:
    def act() -> None:
        path = Path("corpus/manifest.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return act


def flip_a_shard() -> None:
    path = next(path for path in sorted(Path("corpus").glob("*.parquet")) if "index" not in path.name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def changed_shard_and_a_list() -> None:
    flip_a_shard()
    write("ids.txt", "00" * 16)()


def numbered_labels() -> None:
    table("birds.parquet", image=[b"x", b"y"], label=[0, 7])()
    with_classes("wren", "tit")


def fewer_classes() -> None:
    with_classes("wren")


def with_classes(*names: str) -> None:
    line = f'path = "birds.parquet"\nlabel = "label"\nclasses = {list(names)}'
    write("overlap.toml", OVERLAP.replace('path = "birds.parquet"', line))()


def remove(name: str) -> Callable[[], object]:
    return lambda: Path(name).unlink()


def file_in_the_way() -> None:
    Path("out").write_text("not a folder")


def nobody_listens() -> None:
    for key, value in s3_environment("http://127.0.0.1:1").items():
        os.environ[key] = value


RUN = "pipeline run --config pipeline.toml"
TRAIN = "trainer --config trainer.toml"
AUDIT = "evaluation overlap --config overlap.toml"
SCORE = "evaluation zeroshot --config zeroshot.toml"

CASES = {
    # the configuration
    "unknown key": Case(f"{RUN} crawl.timeout=3", "override 'crawl.timeout': unknown key; did you mean 'timeout_s'?"),
    "unknown table": Case(
        RUN,
        "pipeline.toml: balanc: unknown key; did you mean 'balance'?",
        spoil=write("pipeline.toml", PIPELINE + "[balanc]\ncap = 3\n"),
    ),
    "wrong type": Case(f"{RUN} balance.cap=many", "override 'balance.cap': input should be a valid integer"),
    "out of range": Case(
        f"{RUN} dedup.threshold=1.5", "'dedup.threshold': input should be less than or equal to 1 (got 1.5)"
    ),
    "missing table": Case(
        RUN,
        "pipeline.toml: filter: missing",
        spoil=write("pipeline.toml", PIPELINE.replace('[filter]\nqueries = "queries.txt"', "")),
    ),
    "missing configuration": Case("pipeline run --config none.toml", "none.toml: no such file; check the path"),
    "not TOML": Case(RUN, "pipeline.toml: not valid TOML", spoil=write("pipeline.toml", "run.out = = 3")),
    "TOML that is too deep": Case(
        RUN, "pipeline.toml: lists or tables in one", spoil=write("pipeline.toml", "a = " + "[" * 5000 + "]" * 5000)
    ),
    "tables that are too deep": Case(
        RUN, "pipeline.toml: lists or tables in one", spoil=write("pipeline.toml", "a" + ".a" * 5000 + " = 1")
    ),
    "override that is too deep": Case(
        f"{RUN} balance.cap={'[' * 5000}{']' * 5000}", "override 'balance.cap': brackets in one another"
    ),
    "malformed override": Case(f"{RUN} balance.cap", "override 'balance.cap': expected table.key=value"),
    "cap above precap": Case(
        f"{RUN} precap.per_query=10 balance.cap=11", "precap.per_query is 10 but balance.cap is 11"
    ),
    "not a network": Case(f"{RUN} crawl.allow_addresses=['10.0.0.0/99']", "10.0.0.0/99"),
    # sources and queries
    "missing source": Case(
        f"{RUN} sources.paths=['none.parquet']", "sources.paths: no file, folder or pattern 'none.parquet'"
    ),
    "pattern without a match": Case(f"{RUN} sources.paths=['x*.csv']", "sources.paths: nothing matches 'x*.csv'"),
    "unknown kind of file": Case(f"{RUN} sources.paths=['pipeline.toml']", "pipeline.toml' ends in none of .parquet"),
    "unknown kind of place": Case(f"{RUN} sources.paths=['ftp://host/a.csv']", "ftp://host/a.csv"),
    "empty source": Case(RUN, "list.parquet: the file is empty", spoil=write("list.parquet", b"")),
    "corrupt parquet": Case(
        RUN, "list.parquet: not a parquet file", spoil=write("list.parquet", b"PAR1 and then nothing PAR1")
    ),
    "no caption column": Case(RUN, "list.parquet: no column", spoil=table("list.parquet", url=["http://a/1"])),
    "lists of URLs only": Case(
        f"{RUN} sources.paths=['urls.txt']",
        "sources.paths: only lists of URLs without captions (.txt); name tables with a caption column",
        spoil=write("urls.txt", "http://a/1\n"),
    ),
    "missing query list": Case(f"{RUN} filter.queries=none.txt", "none.txt: no such file"),
    "empty query list": Case(
        RUN, "queries.txt: no query in the list; give one query a line", spoil=write("queries.txt", "\n \n")
    ),
    # places
    "output is a file": Case(RUN, "out: is a file, not a folder; choose another output", spoil=file_in_the_way),
    "unwritable output": Case(f"{RUN} run.out=/proc/nowhere/out", "/proc/nowhere/out: "),
    "wrong S3 endpoint": Case(f"{RUN} run.out=s3://bucket/x", "check AWS_ENDPOINT_URL", spoil=nobody_listens),
    "wrong S3 endpoint for a source": Case(
        f"{RUN} sources.paths=['s3://bucket/x.parquet']", "check AWS_ENDPOINT_URL", spoil=nobody_listens
    ),
    "output of another store": Case(
        f"{RUN} --check run.out=gs://bucket/x", "'gs://bucket/x': unknown kind of place; use a"
    ),
    "output with a colon": Case(f"{RUN} --check run.out=exp:1", "./exp:1 for a file of this name"),
    "checked output is a file": Case(
        f"{RUN} --check", "out: is a file, not a folder; choose another output", spoil=file_in_the_way
    ),
    "folder for a configuration": Case("pipeline run --config .", ".: is a folder, not a file; name a file"),
    "folder for a query list": Case(f"{RUN} filter.queries=.", ".: is a folder, not a file; name a file"),
    "no bucket": Case(f"{RUN} run.out=s3:///x", "no bucket; write s3://BUCKET/KEY"),
    "status of nothing": Case(
        "pipeline status nowhere", "nowhere: no run.json here; give the run.out of a pipeline run"
    ),
    # corpora
    "no corpus": Case("pipeline verify nowhere/manifest.json", "nowhere/manifest.json: no such file"),
    "changed shard": Case(
        "pipeline verify corpus", "corpus: 1 differences from what was recorded, listed above", 3, flip_a_shard
    ),
    "other format version": Case(
        "pipeline verify corpus", "format version 2, this program reads 1", spoil=edit_manifest(format_version=2)
    ),
    "unknown balance mode": Case(
        f"{RUN} balance.mode=soft", "override 'balance.mode': input should be 'hard_cap' or 'metaclip'"
    ),
    "two sizes of a shard": Case(f"{RUN} shard.rows=10 shard.bytes=1000", "rows=10 and bytes=1000 are both given"),
    "unknown exact key": Case(f"{RUN} dedup.exact=['picture']", "input should be 'url', 'caption' or 'source'"),
    "policy hook that is not there": Case(
        f"{RUN} policy=[{{name='x',hook='nowhere:f'}}]", "policy 'x': hook 'nowhere:f': cannot be imported"
    ),
    "policy list that is not there": Case(
        f"{RUN} policy=[{{name='x',hook='pipeline.policy.block_list:source_hashes',options={{hashes='none.txt'}}}}]",
        "policy 'x': hook 'pipeline.policy.block_list:source_hashes': none.txt: no such file",
    ),
    "two policies of one name": Case(
        f"{RUN} policy=[{{name='x',hook='a:b'}},{{name='x',hook='c:d'}}]", "two tables have the same name"
    ),
    "stage that is left out": Case(
        f"{RUN.replace('run', 'policy', 1)}", "policy: this configuration has no such stage"
    ),
    "show of no uid": Case("pipeline show corpus 12", "'12' is no uid; give its 32 hexadecimal digits"),
    "show of no run": Case(f"pipeline show corpus {'00' * 16}", "corpus: no run.json here"),
    "retry of no run": Case("pipeline retry corpus --reason dns", "corpus: no run.json here"),
    "exclude without a list": Case("pipeline exclude corpus=corpus out=new", "exclude: no list is given"),
    "exclude from nothing": Case(
        "pipeline exclude --ids queries.txt corpus=none out=new", "none/manifest.json: no such file"
    ),
    "exclude from a changed shard": Case(
        "pipeline exclude --ids ids.txt corpus=corpus out=new",
        "sha256 differs from the manifest",
        spoil=changed_shard_and_a_list,
        process=True,
    ),
    "contact sheet of nothing": Case("pipeline contact-sheet nowhere", "nowhere/manifest.json: no such file"),
    "plan without prices": Case(
        f"pipeline plan --config plan.toml pipeline={ROOT}/pipeline/configs/paper.toml",
        "plan.toml: prices: missing",
        spoil=write(
            "plan.toml", "[cluster]\nnodes=3\ncores_per_node=4\nmemory_gb_per_node=16\nnetwork_gbit_per_node=10"
        ),
    ),
    "plan of no configuration": Case(
        f"pipeline plan --config {ROOT}/pipeline/configs/plan.toml pipeline=none.toml", "none.toml: no such file"
    ),
    "takedown into the corpus": Case(
        "pipeline exclude --ids ids.txt corpus=corpus out=./corpus/",
        "is the folder of the corpus itself",
        spoil=write("ids.txt", "00" * 16),
    ),
    "takedown around the corpus": Case(
        "pipeline exclude --ids ids.txt corpus=corpus out=.",
        "lie one in the other; give the new version a folder of its own",
        spoil=write("ids.txt", "00" * 16),
    ),
    "list of numbers": Case(
        "pipeline exclude --ids ids.parquet corpus=corpus out=new",
        "ids.parquet: column 'uid' holds int64; store it as strings",
        spoil=table("ids.parquet", uid=[1, 2]),
    ),
    "rates of no run": Case(
        f"pipeline plan --config {ROOT}/pipeline/configs/plan.toml --from corpus", "corpus: no run.json here"
    ),
    "not a manifest": Case(
        "pipeline verify corpus/manifest.json", "not a corpus manifest", spoil=write("corpus/manifest.json", "{}")
    ),
    # trainer
    "unknown preset": Case(f"{TRAIN} model.preset=ViT-B/23", "ViT-B/23"),
    "unknown trainer key": Case(
        f"{TRAIN} optim.weigth_decay=0.1", "override 'optim.weigth_decay': unknown key; did you mean 'weight_decay'?"
    ),
    "plain gradient accumulation": Case(
        f"{TRAIN} batch.accum_freq=4",
        "batch.accum_freq 4: a contrastive loss compares every pair of the batch with every other",
    ),
    "unknown ZeRO stage": Case(f"{TRAIN} zero.stage=4", "'zero.stage': input should be"),
    "batch that does not divide": Case(
        f"{TRAIN} --check batch.global_size=7", "global_size", spoil=lambda: os.environ.update(WORLD_SIZE="2")
    ),
    "corpus that is not there": Case(f"{TRAIN} data.manifest=nowhere", "nowhere/manifest.json: no such file"),
    "missing vocabulary": Case(
        TRAIN,
        "none.json",
        spoil=write("trainer.toml", TRAINER.replace("train_size = 600", 'vocab = "none.json"')),
        process=True,
    ),
    "no weights to export": Case("trainer.export nowhere --out x.safetensors", "nowhere"),
    "vocabulary of the wrong size": Case(
        f"{TRAIN} model.vocab_size=515", "has 515 ids, the vocabulary has", process=True
    ),
    "vocabulary of nothing": Case(
        "trainer.tokenizer train --manifest nowhere --out v.json", "nowhere/manifest.json: no such file"
    ),
    "vocabulary of too few ids": Case(
        "trainer.tokenizer train --manifest corpus --size 500 --out v.json", "less than the 514 ids"
    ),
    "vocabulary into a folder": Case(
        "trainer.tokenizer train --manifest corpus --out corpus", "--out: 'corpus' is a folder; name the file"
    ),
    # evaluation
    "unknown evaluation key": Case(
        f"{AUDIT} match.pdq_distanc=3", "override 'match.pdq_distanc': unknown key; did you mean 'pdq_distance'?"
    ),
    "audit without a corpus": Case(f"{AUDIT} corpus.manifest=nowhere", "nowhere/manifest.json: no such file"),
    "audit of another version": Case(
        AUDIT, "format version 2, this program reads 1", spoil=edit_manifest(format_version=2)
    ),
    "set that is not there": Case(AUDIT, "birds.parquet", spoil=remove("birds.parquet")),
    "set without pictures": Case(AUDIT, "birds.parquet", spoil=table("birds.parquet", image=[], label=[])),
    "label out of range": Case(AUDIT, "birds.parquet", spoil=numbered_labels),
    "class list of another length": Case(AUDIT, "birds.parquet", spoil=fewer_classes),
    "model that is not there": Case(SCORE, "model.json: no such file; check the path"),
    "report of nothing": Case("evaluation report nowhere", "nowhere"),
    "verify of nothing": Case("evaluation verify nowhere", "nowhere"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for key in ("WORLD_SIZE", *s3_environment("")):  # what a case sets is taken back
        monkeypatch.setenv(key, "1")
        monkeypatch.delenv(key)
    for name, text in (("pipeline", PIPELINE), ("trainer", TRAINER), ("overlap", OVERLAP), ("zeroshot", ZEROSHOT)):
        write(f"{name}.toml", text)()
    table("list.parquet", url=["http://a/1"], caption=["a dog"])()
    write("queries.txt", "dog\n")()
    table("birds.parquet", image=[b"x", b"y"], label=["wren", "tit"])()
    manifest.write_corpus("corpus", [rows(40)])
    return tmp_path


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "run.json"
    }


@pytest.mark.parametrize("name", CASES)
def test_one_sentence_an_exit_code_and_nothing_lost(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for handler in logging.getLogger("ray").handlers:  # Ray's logger remembers the stderr of an earlier case
        if isinstance(handler, logging.StreamHandler) and handler.stream.closed:
            handler.stream = sys.stderr
    case = CASES[name]
    case.spoil()
    before = content(folder)
    module, *arguments = case.line.split(" ")
    if case.process:
        environment = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        code, said = done.returncode, done.stderr
    else:
        main = importlib.import_module(module if module == "trainer.export" else f"{module}.__main__").main
        code, said = exit_code(main, arguments), capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == case.code, said
    assert len(errors) == 1, said
    assert case.says in errors[0]
    assert "Traceback" not in said
    assert re.search(r"[;:,] ", errors[0].removeprefix("error: ")), "a place or a next step is missing"
    assert before.items() <= content(folder).items()


def test_the_table_is_long_enough() -> None:
    assert len(CASES) >= 25
