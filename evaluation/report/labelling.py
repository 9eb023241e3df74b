"""The labelling page: pairs of pictures, one after the other, for people to say whether they show the same picture.

One HTML file per set that opens offline and sends nothing anywhere. It shows neither distance nor caption, and the pairs come in an order
that has nothing to do with either. Answers are kept by the browser until they are exported as JSON lines (`labels.jsonl`), which
`overlap.thresholds` reads and which say by which measure (PDQ, or the descriptor's score) the pairs are the nearest. Of each of its bins at
most `per_bin` pairs are asked, chosen by hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evaluation.config import OverlapConfig
from evaluation.datasets import open_set
from evaluation.overlap.measures import MEASURES, PDQ, Measure
from evaluation.report import files
from evaluation.report.evidence import Pictures, Row, picture_pairs
from pipeline.content.labelled import LabelledSet
from pipeline.contracts import parquet, storage
from pipeline.contracts.errors import InputError

_FOLDER = Path(__file__).parent


def plan(config: OverlapConfig) -> str:
    """What `run` would do, for `--check`."""
    names = ", ".join(one.name for one in config.sets)
    return f"nearest pictures of {names} by {config.labelling.by} from {config.report.dir}; pages in {folder(config)}"


def folder(config: OverlapConfig) -> str:
    """Where the pages go; those by the descriptor into a folder of their own, for a set has one name."""
    place = config.labelling.dir or config.report.dir.rstrip("/") + ".labelling"
    return place if config.labelling.by == PDQ.name else storage.join(place, config.labelling.by)


def run(config: OverlapConfig) -> str:
    """Write the pages with the pictures of the corpus that the report is about; returns what to do with them.

    Raises InputError where `write` does, and where the corpus is not the one that was searched.
    """
    # Loads ray, whose stages know where the pictures of a corpus that others wrote lie.
    from evaluation.overlap import corpus, job

    written = write(config, corpus.pictures_of(config.corpus, job.work_folder(config)))
    pages = "".join(f"{place}: {asked:,} pairs\n" for place, asked in written)
    step = f"python -m evaluation thresholds {config.report.dir} labels-….jsonl"
    return f"{pages}open each page in a browser, answer, export; then: {step}"


def write(config: OverlapConfig, pictures: Pictures) -> list[tuple[str, int]]:
    """One page for each set of a finished report: its place, and how many pairs it asks. `pictures` are those of its corpus.

    Raises InputError without a report, for a set of other content than the report's, and where nearest pictures were not looked for.
    """
    report = files.read_report(config.report.dir)
    hashes = {one.name: one.content_hash for one in report.sets}
    closest, measure = parquet.read(storage.join(config.report.dir, files.NEAREST)), MEASURES[config.labelling.by]
    closest = closest.filter(pc.equal(closest["measure"], measure.name))
    written = []
    for one in config.sets:
        labelled = open_set(one)
        if hashes.get(one.name) != labelled.content_hash:
            raise InputError(
                f"set {one.name!r} ({one.path}): not the set that the report in {config.report.dir!r} is about; run `overlap` on it first"
            )
        own = closest.filter(pc.equal(closest["set"], one.name))
        if not own.num_rows:
            raise InputError(
                f"set {one.name!r}: the report in {config.report.dir!r} has no nearest pictures by {measure.name}; run `overlap` with "
                "nearest.examples above 0"
            )
        questions = choose(own, config.labelling.per_bin, measure)
        place = storage.join(folder(config), f"{one.name}.html")
        storage.write_atomic(place, page(labelled, questions, pictures, config.labelling.longest, measure).encode())
        written.append((place, len(questions)))
    return written


def choose(closest: pa.Table, per_bin: int, measure: Measure = PDQ) -> list[Row]:
    """At most `per_bin` rows of each bin of one set's NEAREST_SCHEMA rows by `measure`, in the order in which they are asked."""
    bins = (measure.steps(np.asarray(closest[measure.column])) // measure.bin).tolist()
    asked: dict[int, int] = {}
    chosen: list[Row] = []
    for place, row in sorted(zip(bins, closest.to_pylist(), strict=True), key=lambda one: _rank(one[1])):
        asked[place] = asked.get(place, 0) + 1
        if asked[place] <= per_bin:
            chosen.append(row)
    return chosen


def _rank(row: Row) -> bytes:
    name = f"{row['set']}\0{row['eval_id']}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(name, digest_size=16, key=b"labelling").digest()


def page(
    labelled: LabelledSet, questions: Sequence[Row], pictures: Pictures, longest: int, measure: Measure = PDQ
) -> str:
    """The page of one set, about its nearest pictures by `measure`; pictures are scaled to `longest` pixels at most."""
    asked = [
        {
            "eval_id": str(question["eval_id"]),
            "uid": question["uid"].hex() if isinstance(question["uid"], bytes) else "",
            "left": left.thumbnail or left.missing,
            "right": right.thumbnail or right.missing,
        }
        for question, (left, right) in zip(
            questions, picture_pairs(labelled, questions, pictures, longest), strict=True
        )
    ]
    script = (_FOLDER / "labelling.js").read_text("utf-8")
    # "<" may not stand in a script: a hostile id could close it.
    key = hashlib.sha256("".join(f"{one['eval_id']}\0{one['uid']}\0" for one in asked).encode("utf-8", "surrogatepass"))
    content = {"set": labelled.name, "measure": measure.name, "key": key.hexdigest(), "questions": asked}
    data = json.dumps(content, ensure_ascii=True).replace("<", "\\u003c")
    program = f"const asked = {data};\n{script}"
    policy = base64.b64encode(hashlib.sha256(program.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template("labelling.html.j2").render(
        name=labelled.name, total=len(asked), program=Markup(program), policy=policy
    )
