"""The overlap report, made by the real command on a planted corpus: figures, evidence, page, resume, verify."""

import html.parser
import json
import logging
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from evaluation.__main__ import main
from evaluation.report import files, verify
from evaluation.report.files import read_report
from pipeline.contracts import manifest, storage
from pipeline.contracts.cli import exit_code
from pipeline.contracts.config import Json
from pipeline.contracts.errors import InputError, RunError
from tests.conftest import ROOT
from tests.evaluation import planted
from tests.evaluation.forging import restate, with_value
from tests.evaluation.made import TRAINING, Made, command
from trainer.data.order import SampleOrder

SEALED = {
    "classes.parquet", "copies.parquet", "labels.parquet", "manifest.json", "nearest.parquet", "pairs.parquet",
    "predictions/scenes.parquet", "removal_ids.txt", "removal_ids_text.txt", "report.html", "report.json", "report.schema.json",
    "row_groups.parquet", "splits/blind.parquet", "splits/scenes.parquet", "summary.csv", "text_pairs.parquet",
}  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """For runs in this process. The report that they are held against is of another one: what depends on the process would differ."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Path:
    """A report of one's own to damage."""
    return Path(shutil.copytree(made.report, tmp_path / "copy"))


def test_the_command(made: Made) -> None:
    assert made.result.returncode == 0, made.result.stderr
    assert "scenes: 17 of 43 examples (39.53 %) are in the corpus" in made.result.stdout
    assert set(contents(made.report)) == SEALED


def test_the_figures(made: Made) -> None:
    report = read_report(str(made.report))
    scenes, blind = report.sets
    assert (scenes.found.share.hits, scenes.examples, scenes.too_flat) == (len(made.planted.answers), 43, 1)
    assert (scenes.repeated_pictures, scenes.clusters) == (0, 41)
    assert scenes.found.by_method["source_sha256"] == scenes.found.by_method["image_sha256"] == 3
    assert scenes.effect is not None
    clean = [value for name, value in made.right.items() if name not in made.planted.answers]
    assert (scenes.effect.clean.n, scenes.effect.clean.hits) == (len(clean), sum(clean))
    assert scenes.effect.overlap.value == 1.0
    assert (scenes.effect.overlap.n, scenes.effect.overlap_units.n) == (17, 15), "the two repeats are no evidence"
    assert scenes.effect.clean_units == scenes.effect.clean
    assert scenes.effect.p_value == pytest.approx((sum(clean) / len(clean)) ** 15)
    assert scenes.effect.holm_p == scenes.effect.p_value, "one set has predictions"
    assert scenes.effect.by_class is not None
    assert scenes.effect.by_class.classes == 12, "and a 13th, of the blank frame, has no Overlap"
    assert scenes.verdict == "overlap, effect"
    assert (blind.effect, blind.verdict, blind.over_limit) == (None, "overlap, not scored", False)
    assert report.over_limit == ["scenes"]
    split = pq.read_table(made.report / "splits" / "scenes.parquet").to_pylist()
    assert [step.distance for step in scenes.sweep] == [0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 31]
    assert scenes.sweep[0].overlapping == 6 + sum(row["method"] == "pdq" and row["pdq_distance"] == 0 for row in split)
    last = scenes.sweep[-1]
    assert last.overlapping == 17 - scenes.found.by_method["phash"]
    assert (last.all_minus_clean, last.difference) == (scenes.effect.all_minus_clean, scenes.effect.difference)
    assert {(step.scored, step.p_value) for step in blind.sweep} == {(0, None)}
    assert (scenes.nearest.sampled, sum(scenes.nearest.counts)) == (42, 42), "all but the blank frame"
    assert sum(scenes.nearest.counts[:4]) == last.overlapping, "a match is within 31 bits and nothing else is"
    assert {recall.found.n for recall in scenes.copies} == {3}
    recalls = {recall.transform: recall.found.hits for recall in scenes.copies}
    assert (recalls["recompressed, JPEG q10"], recalls["mirrored"], recalls["crop, half of the area"]) == (3, 0, 0)
    assert {row["eval_id"]: row["cluster"] for row in split if row["cluster"] != row["eval_row"]} == {
        "r000": 0,
        "r001": 1,
    }
    assert {row["eval_id"] for row in split if row["in_overlap"]} == set(made.planted.answers)


def test_what_the_checkpoint_had_seen(made: Made) -> None:
    """Against a walk through the run's first samples, row by row."""
    scenes, blind = read_report(str(made.report)).sets
    found = manifest.load(str(made.planted.corpus))
    rows = [(shard.path, row) for shard in found.shards for row in range(shard.rows)]
    groups = [group.rows for shard in found.shards for group in shard.row_groups]
    order = SampleOrder(groups, seed=TRAINING.seed, window_row_groups=TRAINING.window_row_groups)
    walked = [rows[number] for number in order.rows(np.arange(TRAINING.samples_seen))]
    pairs = pq.read_table(made.report / "pairs.parquet").to_pylist()
    own = [pair for pair in pairs if pair["set"] == "scenes"]
    assert all(pair["seen"] == ((pair["shard"], pair["row"]) in walked) for pair in own)
    assert all(walked[pair["first_sample"]] == (pair["shard"], pair["row"]) for pair in own if pair["seen"])
    assert {(pair["first_sample"], pair["seen"]) for pair in pairs if pair["set"] == "blind"} == {(None, None)}
    seen = {pair["eval_id"] for pair in own if (pair["shard"], pair["row"]) in walked}
    split = pq.read_table(made.report / "splits" / "scenes.parquet").to_pylist()
    assert {row["eval_id"] for row in split if row["seen"]} == seen
    assert {row["eval_id"] for row in split if row["seen"] is None} == {
        row["eval_id"] for row in split if not row["in_overlap"]
    }
    exposure = scenes.exposure
    assert exposure is not None
    assert 3 < len(seen) < 14, "some of each"
    assert (exposure.share.n, exposure.share.hits) == (17, len(seen))
    assert exposure.corpus_rows == len({pair["uid"] for pair in own if pair["seen"]})
    assert (exposure.seen.n, exposure.seen.hits) == (len(seen), len(seen)), "a model that is right on all that leaked"
    assert (exposure.unseen.n, exposure.unseen.hits) == (17 - len(seen), 17 - len(seen))
    assert exposure.seen_units.n == len(seen - {"r000", "r001"} | {f"e{one[1:]}" for one in seen if one[0] == "r"})
    assert exposure.seen_units.n + exposure.unseen_units.n == 15
    assert exposure.difference is not None
    assert exposure.difference.value == 0.0
    assert blind.exposure is None
    told = f"after 90 samples of its training this checkpoint had seen {len(seen)} of the 17 examples that are in the corpus"
    assert told in made.result.stdout
    page = (made.report / "report.html").read_text("utf-8")
    assert told in page
    assert "not seen yet, comes as sample" in page


def test_predictions_are_the_models_own(made: Made) -> None:
    copied = (made.report / "predictions" / "scenes.parquet").read_bytes()
    assert copied == (made.folder / "predictions.parquet").read_bytes()


def test_the_words(made: Made) -> None:
    """Captions and class names: what was planted by the way it was planted, and nothing else."""
    scenes, blind = read_report(str(made.report)).sets
    split = pq.read_table(made.report / "splits" / "scenes.parquet").to_pylist()
    assert {row["eval_id"]: row["text_method"] for row in split if row["text_method"]} == made.planted.texts
    captions, labels = scenes.text.captions, scenes.text.labels
    assert captions is not None
    assert labels is not None
    assert (captions.share.n, captions.share.hits, captions.texts, captions.too_short) == (40, 8, 40, 2)
    assert captions.by_method == {"exact": 5, "contained": 1, "near": 2}
    assert (captions.pairs, captions.corpus_rows, captions.with_picture) == (8, 8, 3)
    pairs = pq.read_table(made.report / "pairs.parquet").to_pylist()
    assert {pair["eval_id"] for pair in pairs if pair["names_label"]} - {"r000", "r001"} == made.planted.named
    asked = {pair["eval_id"] for pair in pairs if pair["names_label"] is not None}
    assert (labels.named.n, labels.classes) == (len(asked), 13)
    assert asked == set(made.planted.answers)
    rows = {row["label"]: row["rows"] for row in pq.read_table(made.report / "classes.parquet").to_pylist()}
    assert labels.mentions == sum(rows.values()) == len(made.planted.named)
    assert (blind.text.captions, blind.text.labels) == (None, None), "class numbers are no names"
    removed = (made.report / "removal_ids_text.txt").read_text().split()
    assert len(removed) == len(made.planted.texts) - captions.with_picture
    assert not set(removed) & set((made.report / "removal_ids.txt").read_text().split())


def test_report_prints_and_exits_with_3(made: Made) -> None:
    result = command("report", str(made.report))
    assert result.returncode == 3
    assert "they move the accuracy by +" in result.stdout
    assert result.stderr.startswith("error: scenes: over the limit")


class Page(html.parser.HTMLParser):
    """What a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_self_contained_and_escapes(made: Made) -> None:
    text = (made.report / "report.html").read_text("utf-8")
    page = Page()
    page.feed(text)
    assert planted.HOSTILE in page.text
    assert not {"script", "iframe", "link", "object", "embed", "form", "base", "a"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("data:image/jpeg;base64,", "#")), value[:60]
        assert "javascript:" not in value
    assert not re.search(r"@import|url\((?!#)", text)
    assert "default-src 'none'" in text
    misses = sum(min(12, one.nearest.sampled - one.found.share.hits) for one in read_report(str(made.report)).sets)
    assert page.tags.count("img") == 2 * (17 + 2 + misses)


@pytest.mark.usefixtures("cluster")
def test_a_second_run_gives_the_same_bytes(made: Made, tmp_path: Path) -> None:
    before = contents(made.report)
    elsewhere = tmp_path / "again"
    assert main(["overlap", "--config", str(made.config), f"report.dir={elsewhere}", "engine.workers=1"]) is None
    assert contents(elsewhere) == before


@pytest.mark.usefixtures("cluster")
def test_an_interrupted_run_is_completed(made: Made, tmp_path: Path) -> None:
    """A run that stopped between two files, and one that lost half of its units, end with the same bytes."""
    half = tmp_path / "half"
    work = Path(shutil.copytree(f"{made.report}.work", tmp_path / "half.work"))
    for stage in ("join", "text"):
        for record in sorted((work / stage).rglob("*.json"))[::2]:
            record.unlink()
    shutil.copytree(made.report, half)
    for name in ("manifest.json", "report.html", "splits/scenes.parquet"):
        (half / name).unlink()
    (half / "pairs.parquet").write_bytes(b"half a file")
    assert main(["overlap", "--config", str(made.config), f"report.dir={half}"]) is None
    assert contents(half) == contents(made.report)


def test_a_folder_of_other_files_is_refused_and_what_a_killed_job_published_is_not(tmp_path: Path) -> None:
    for name in ("report.html", "splits/toys.parquet", "predictions/toys.parquet"):
        storage.write_atomic(str(tmp_path / name), b"half of a report")
    inputs: dict[str, Json] = {"sets": {"toys": "a hash"}, "predictions": {"toys": {}}}
    files.check_free(str(tmp_path), inputs)
    said = "which this report will not have; give it a folder of its own"
    with pytest.raises(InputError, match=rf"holds 'predictions/toys\.parquet', {said}"):
        files.check_free(str(tmp_path), inputs | {"predictions": {}})
    (tmp_path / "predictions/toys.parquet").unlink()
    with pytest.raises(InputError, match=rf"holds 'splits/toys\.parquet', {said}"):
        files.check_free(str(tmp_path), inputs | {"sets": {"dolls": "a hash"}})
    storage.write_atomic(str(tmp_path / "splits" / "notes.txt"), b"mine")
    with pytest.raises(InputError, match=rf"holds 'splits/notes\.txt', {said}"):
        files.check_free(f"{tmp_path}/", inputs)


def test_another_report_is_not_overwritten(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(made.report)
    assert exit_code(main, ["overlap", "--config", str(made.config), "match.pdq_distance=20"]) == 2
    said = capsys.readouterr().err
    assert "already holds a report with another config_digest" in said
    assert len(said.strip().splitlines()) == 1
    assert contents(made.report) == before


def test_verify_is_silent_on_a_whole_report(made: Made) -> None:
    assert verify(str(made.report)) == []


@pytest.mark.parametrize("name", sorted(SEALED))
def test_a_flipped_bit_is_named(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    for place in (0, len(data) // 2, len(data) - 2):
        data[place] ^= 1
        (copy / name).write_bytes(bytes(data))
        try:
            problems = verify(str(copy))
        except InputError as error:  # a manifest that is no JSON any more
            problems = [str(error)]
        assert any(name in problem for problem in problems), (name, place, problems)
        data[place] ^= 1


def reseal(folder: Path, name: str, data: bytes) -> None:
    """What a forger would do: change a file and every hash that names it."""
    (folder / name).write_bytes(data)
    seal = files.read_seal(str(folder))
    inside = {one: (folder / one).read_bytes() for one in seal.files}
    (folder / "manifest.json").write_bytes(files.seal(inside, seal.inputs))


FORGED: list[dict[str, tuple[tuple[str | int, ...], object]]] = [
    {
        "sets.scenes.effect.p_value is 0.4,": (("sets", 0, "effect", "p_value"), 0.4),
        "sets.scenes.effect.overlap.high is 0.9,": (("sets", 0, "effect", "overlap", "high"), 0.9),
        "sets.scenes.effect.detectable_gain is 0.01,": (("sets", 0, "effect", "detectable_gain"), 0.01),
        "sets.scenes.effect.all_minus_clean is 0.0,": (("sets", 0, "effect", "all_minus_clean"), 0.0),
        "sets.scenes.effect.holm_p is 0.5,": (("sets", 0, "effect", "holm_p"), 0.5),
        "sets.scenes.effect.exact_p is 0.5,": (("sets", 0, "effect", "exact_p"), 0.5),
        "sets.scenes.effect.largest_inflation is 0.0,": (("sets", 0, "effect", "largest_inflation"), 0.0),
        "sets.scenes.effect.difference.low is -0.5,": (("sets", 0, "effect", "difference", "low"), -0.5),
        "sets.scenes.effect.overlap_units.n is 17,": (("sets", 0, "effect", "overlap_units", "n"), 17),
        "sets.scenes.effect.by_class.p_value is 0.5,": (("sets", 0, "effect", "by_class", "p_value"), 0.5),
        "sets.scenes.effect.by_class.difference.value is 0.0,": (
            ("sets", 0, "effect", "by_class", "difference", "value"),
            0.0,
        ),
        "sets.scenes.effect.model_content_root is '0000": (("sets", 0, "effect", "model_content_root"), "00" * 32),
        "sets.scenes.effect.same_corpus is None,": (("sets", 0, "effect", "same_corpus"), None),
        "sets.scenes.effect.predictions_sha256 is '0000": (("sets", 0, "effect", "predictions_sha256"), "00" * 32),
        "sets.scenes.effect.model is 'a better model',": (("sets", 0, "effect", "model"), "a better model"),
        "sets.scenes.exposure.share.hits is 0,": (("sets", 0, "exposure", "share", "hits"), 0),
        "sets.scenes.text.captions.share.hits is 7,": (("sets", 0, "text", "captions", "share", "hits"), 7),
        "sets.scenes.text.captions.share.high is 0.9,": (("sets", 0, "text", "captions", "share", "high"), 0.9),
        "sets.scenes.text.captions.texts is 39,": (("sets", 0, "text", "captions", "texts"), 39),
        "sets.scenes.text.captions.too_short is 3,": (("sets", 0, "text", "captions", "too_short"), 3),
        "sets.scenes.text.captions.by_method is {'contained': 1, 'exact': 5, 'near': 1},": (
            ("sets", 0, "text", "captions", "by_method", "near"),
            1,
        ),
        "sets.scenes.text.captions.pairs is 7,": (("sets", 0, "text", "captions", "pairs"), 7),
        "sets.scenes.text.captions.corpus_rows is 7,": (("sets", 0, "text", "captions", "corpus_rows"), 7),
        "sets.scenes.text.captions.with_picture is 2,": (("sets", 0, "text", "captions", "with_picture"), 2),
        "sets.scenes.text.labels.named.hits is 5,": (("sets", 0, "text", "labels", "named", "hits"), 5),
        "sets.scenes.text.labels.named.low is 0.1,": (("sets", 0, "text", "labels", "named", "low"), 0.1),
        "sets.scenes.text.labels.expected is 0.5,": (("sets", 0, "text", "labels", "expected"), 0.5),
        "sets.scenes.text.labels.classes is 12,": (("sets", 0, "text", "labels", "classes"), 12),
        "sets.scenes.text.labels.classes_named is 13,": (("sets", 0, "text", "labels", "classes_named"), 13),
        "sets.scenes.text.labels.mentions is 5,": (("sets", 0, "text", "labels", "mentions"), 5),
        "sets: name, limit, thresholds, text is": (("sets", 0, "text", "rule", "similarity"), 0.7),
        "report.json: names_sha256 is {},": (("sets", 0, "text", "names_sha256"), []),
        "sets.scenes.clusters is 43,": (("sets", 0, "clusters"), 43),
        "sets.scenes.found.share.hits is 14,": (("sets", 0, "found", "share", "hits"), 14),
        "sets.scenes.found.by_method is {'descriptor': 0, 'image_sha256': 3, 'pdq': 8,": (
            ("sets", 0, "found", "by_method", "pdq"),
            8,
        ),
        "sets.scenes.verdict is 'clean',": (("sets", 0, "verdict"), "clean"),
        "sets.blind.too_flat is 1,": (("sets", 1, "too_flat"), 1),
        "sets.blind.over_limit is True,": (("sets", 1, "over_limit"), True),
        "statistics.tests is 2,": (("statistics", "tests"), 2),
        "report.json: over_limit is [],": (("over_limit",), []),
        "corpus.rows_without_hashes is 10000,": (("corpus", "rows_without_hashes"), 10_000),
        "corpus.hashes.pdq256 is 'other',": (("corpus", "hashes", "pdq256"), "other"),
        "not_checked is ['Nothing: everything was checked.'],": (
            ("not_checked",),
            ["Nothing: everything was checked."],
        ),
        "statistics.alpha is 0.01,": (("statistics", "alpha"), 0.01),
        "sets.scenes.sweep.9.overlapping is 0,": (("sets", 0, "sweep", 3, "overlapping"), 0),
        "sets.scenes.sweep.9.scored is 1,": (("sets", 0, "sweep", 3, "scored"), 1),
        "sets.scenes.sweep.9.all_minus_clean is 0.0,": (("sets", 0, "sweep", 3, "all_minus_clean"), 0.0),
        "sets.scenes.sweep.9.difference.high is 0.1,": (("sets", 0, "sweep", 3, "difference", "high"), 0.1),
        "sets.scenes.sweep.9.p_value is 0.5,": (("sets", 0, "sweep", 3, "p_value"), 0.5),
        "sets.scenes.nearest.sampled is 41,": (("sets", 0, "nearest", "sampled"), 41),
        "sets.scenes.nearest.median is 100.0,": (("sets", 0, "nearest", "median"), 100.0),
        "sets.blind.nearest.counts is [7,": (("sets", 1, "nearest", "counts", 0), 7),
        "sets.scenes.copies.thumbnail of 64 pixels.found.hits is 0,": (("sets", 0, "copies", 2, "found", "hits"), 0),
        "sets.scenes.copies.thumbnail of 64 pixels.pdq is 1,": (("sets", 0, "copies", 2, "pdq"), 1),
        "sets.scenes.copies.thumbnail of 64 pixels.phash is 1,": (("sets", 0, "copies", 2, "phash"), 1),
    },
    {
        "sets.scenes.effect.detectable_gain is 0.0,": (("sets", 0, "effect", "detectable_gain"), 0.0),
        "sets.scenes.effect.by_class is None,": (("sets", 0, "effect", "by_class"), None),
        "sets.scenes.text.captions is False,": (("sets", 0, "text", "captions"), None),
        "sets.scenes.text.labels is False,": (("sets", 0, "text", "labels"), None),
        "corpus_content_root is '0000": (("corpus", "content_root"), "00" * 32),
        "sets: name, limit, thresholds, text is [('scenes', 0.9,": (("sets", 0, "limit"), 0.9),
        "sets.scenes.sweep.distance is [0, 3, 6, 10, 12,": (("sets", 0, "sweep", 3, "distance"), 10),
        "sets.scenes.copies.transform is ['recompressed, JPEG q10', 'half size', 'none',": (
            ("sets", 0, "copies", 2, "transform"),
            "none",
        ),
    },
    {
        "sets.scenes.effect.detectable_gain is None,": (("sets", 0, "effect", "detectable_gain"), None),
        "sets: name, limit, thresholds, text is [('scenes', 0.1, Thresholds(pdq_distance=30,": (
            ("sets", 0, "thresholds", "pdq_distance"),
            30,
        ),
    },
    {
        "report.json says 3;": (("corpus", "rows"), 3),
    },
    {
        "report.json says 1;": (("corpus", "shards"), 1),
    },
]
"""What `verify` says of a figure in report.json that was set to another value. Those of a dictionary are set at once: a sentence names
its figure and the value, so that no other forgery can have led to it."""


@pytest.mark.parametrize("forged", FORGED, ids=["figures", "whole parts", "a threshold", "rows", "shards"])
def test_every_forged_number_is_found(copy: Path, forged: dict[str, tuple[tuple[str | int, ...], object]]) -> None:
    report = json.loads((copy / "report.json").read_bytes())
    for path, value in forged.values():
        restate(report, path, value)
    reseal(copy, "report.json", files.canonical(report))
    problems = verify(str(copy))
    for said in forged:
        assert any(said in problem and "report.json" in problem for problem in problems), (said, problems)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r"17 of 43 examples \(39.53 %\)", "1 of 41 examples (2.44 %)"),
        (r"<dt>distance</dt><dd>PDQ [0-9]+", "<dt>distance</dt><dd>PDQ 1"),
        (r"<dt>URL</dt><dd>[^<]*", "<dt>URL</dt><dd>https://example.org/innocent.jpg"),
        (r'alt="evaluation picture e[0-9]+"', 'alt="evaluation picture none"'),
        (r"<dt>example</dt><dd>e[0-9]+ ", "<dt>example</dt><dd>e999 "),
        (r"<article class=\"pair\">.*?</article>\n", ""),
        (r'<p class="said">A [a-z]+', '<p class="said">A yellow'),
        (r"</main>", "<p>All is well.</p></main>"),
        (r" d=\"M 4", ' d="M 5'),
        (r"<h2>Near misses</h2>.*?<dt>example</dt><dd>e[0-9]+ ", "<h2>Near misses</h2><dl><dt>example</dt><dd>e999 "),
    ],
)
def test_an_edited_page_is_found(copy: Path, old: str, new: str) -> None:
    text = (copy / "report.html").read_text("utf-8")
    edited = re.sub(old, lambda _: new, text, count=1, flags=re.DOTALL)
    assert edited != text
    reseal(copy, "report.html", edited.encode())
    problems = verify(str(copy))
    assert len(problems) == 1
    assert re.search(r"report\.html: (line|a figure|shows)", problems[0]), problems


@pytest.mark.parametrize("columns", [("eval_row",), ("pairs", "pdq_distance", "phash_distance", "cluster")])
def test_a_forged_split_is_found(copy: Path, columns: tuple[str, ...]) -> None:
    """Each column in an example of its own, which is named; a table with other rows is not looked into any further."""
    table = pq.read_table(copy / "splits" / "scenes.parquet")
    rows = table.to_pylist()
    forged = [row for row in rows if row["pdq_distance"]][: len(columns)]
    for column, row in zip(columns, forged, strict=True):
        row[column] += 100
    pq.write_table(pa.Table.from_pylist(rows, table.schema), copy / "splits" / "scenes.parquet")
    reseal(copy, "splits/scenes.parquet", (copy / "splits" / "scenes.parquet").read_bytes())
    problems = verify(str(copy))
    for column, row in zip(columns, forged, strict=True):
        assert any(row["eval_id"] in problem for problem in problems), (column, problems)


def rewrite(folder: Path, name: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """What a forger would do to a table."""
    pq.write_table(change(pq.read_table(folder / name)), folder / name)
    reseal(folder, name, (folder / name).read_bytes())


@pytest.mark.parametrize(
    ("name", "column", "value", "said"),
    [
        ("predictions/scenes.parquet", "correct", False, "'e001': correct is False, its split says True"),
        ("splits/scenes.parquet", "correct", False, "'e001': correct is True, its split says False"),
        ("splits/scenes.parquet", "seen", None, "'e001': first_sample and seen are"),
        ("pairs.parquet", "first_sample", 178, "and the run's order shows another row there"),
    ],
)
def test_forged_outcomes_and_exposures_are_found(copy: Path, name: str, column: str, value: object, said: str) -> None:
    rewrite(copy, name, with_value("e001", column, value))
    assert any(said in problem and "'e001'" in problem for problem in verify(str(copy)))


def test_forged_row_groups_are_found(copy: Path) -> None:
    rewrite(copy, "row_groups.parquet", lambda table: table.slice(1))
    assert any("row_groups.parquet: lists 128 rows, report.json says 178" in problem for problem in verify(str(copy)))


def test_predictions_cannot_be_left_out(copy: Path) -> None:
    seal = files.read_seal(str(copy))
    (copy / "predictions" / "scenes.parquet").unlink()
    inside = {one: (copy / one).read_bytes() for one in seal.files if one != "predictions/scenes.parquet"}
    (copy / "manifest.json").write_bytes(files.seal(inside, seal.inputs))
    assert any("predictions/scenes.parquet: named here or in report.json" in problem for problem in verify(str(copy)))


@pytest.mark.parametrize(
    ("column", "said"), [("pdq_distance", ".copies.half size."), ("eval_row", "holds other examples than the sample")]
)
def test_a_forged_copy_is_found(copy: Path, column: str, said: str) -> None:
    table = pq.read_table(copy / "copies.parquet")
    rows = table.to_pylist()
    rows[1][column] += 40
    pq.write_table(pa.Table.from_pylist(rows, table.schema), copy / "copies.parquet")
    reseal(copy, "copies.parquet", (copy / "copies.parquet").read_bytes())
    assert any(said in problem for problem in verify(str(copy)))


@pytest.mark.parametrize(
    ("column", "said"),
    [("pdq_distance", "its distance is not that of its hashes"), ("eval_row", "holds other examples than the sample")],
)
def test_a_forged_nearest_picture_is_found(copy: Path, column: str, said: str) -> None:
    table = pq.read_table(copy / "nearest.parquet")
    rows = table.to_pylist()
    rows[3][column] += 1
    pq.write_table(pa.Table.from_pylist(rows, table.schema), copy / "nearest.parquet")
    reseal(copy, "nearest.parquet", (copy / "nearest.parquet").read_bytes())
    assert any(said in problem for problem in verify(str(copy)))


def test_a_pair_that_was_taken_out_is_missed_by_the_nearest(copy: Path) -> None:
    """Whoever takes a copy out of the pairs must take it out of the nearest pictures too."""
    table = pq.read_table(copy / "pairs.parquet")
    rows = table.to_pylist()
    lost = next(row for row in rows if row["method"] == "pdq")
    left = [row for row in rows if row["eval_id"] != lost["eval_id"]]
    pq.write_table(pa.Table.from_pylist(left, table.schema), copy / "pairs.parquet")
    reseal(copy, "pairs.parquet", (copy / "pairs.parquet").read_bytes())
    said = f"example '{lost['eval_id']}': its nearest picture is within the threshold and not among its pairs"
    assert any(said in problem for problem in verify(str(copy)))


@pytest.mark.usefixtures("cluster")
def test_labels_enter_the_report(made: Made, tmp_path: Path) -> None:
    """Two people label the sample; precision, recall, agreement and choice are on the page, and `verify` counts them again."""
    closest = pq.read_table(made.report / "nearest.parquet").to_pylist()
    for rater in ("Ada", "Bo"):
        answers = [
            {
                "set": row["set"],
                "eval_id": row["eval_id"],
                "uid": row["uid"].hex(),
                "rater": rater,
                "answer": "same"
                if row["eval_id"] in made.planted.answers and row["eval_id"] != "e003"
                else "different",
            }
            for row in closest
        ]
        (tmp_path / f"{rater}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in answers), "utf-8")
    files_ = json.dumps([str(tmp_path / "Ada.jsonl"), str(tmp_path / "Bo.jsonl")])
    labelled = tmp_path / "labelled"
    shutil.copytree(f"{made.report}.work", f"{labelled}.work")
    assert main(["overlap", "--config", str(made.config), f"report.dir={labelled}", f"labels={files_}"]) is None
    found = read_report(str(labelled)).sets[0].calibration
    assert found is not None
    assert (found.raters, found.answers, found.kappa, found.chosen) == (["Ada", "Bo"], 42, 1.0, None)
    assert found.curve[-1].precision == pytest.approx(16 / 42)
    assert "Ambiguous band" in (labelled / "report.html").read_text("utf-8")
    assert verify(str(labelled)) == []
    report = json.loads((labelled / "report.json").read_bytes())
    forged: dict[tuple[str | int, ...], object] = {
        ("curve", 1, "precision_low"): 0.99,
        ("chosen",): 31,
        ("kappa",): 0.5,
        ("band",): [0, 0],
        ("answers",): 1000,
    }
    for path, value in forged.items():
        restate(report["sets"][0]["calibration"], path, value)
    reseal(labelled, "report.json", files.canonical(report))
    problems = verify(str(labelled))
    for path in forged:
        assert any(f"{path[-1]} is " in problem and "report.json" in problem for problem in problems), path


def test_forged_settings_are_found(copy: Path) -> None:
    """A limit that is raised in report.json and in the settings of the seal has another digest."""
    seal = files.read_seal(str(copy))
    inputs = json.loads(json.dumps(seal.inputs))
    inputs["config"]["sets"][1]["limit"] = 0.6
    inside = {one: (copy / one).read_bytes() for one in seal.files}
    (copy / "manifest.json").write_bytes(files.seal(inside, inputs))
    assert any("config_digest" in problem for problem in verify(str(copy)))


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("pdq_distance", 200, "its distances are not those of its hashes"),
        ("source_exact", True, "source_exact and stored_exact are not"),
        ("method", "guess", "'guess' is no method"),
        ("set", "other", "names a set 'other'"),
    ],
)
def test_a_forged_pair_is_found(copy: Path, column: str, value: object, said: str) -> None:
    table = pq.read_table(copy / "pairs.parquet")
    rows = table.to_pylist()
    rows[8][column] = value
    pq.write_table(pa.Table.from_pylist(rows, table.schema), copy / "pairs.parquet")
    reseal(copy, "pairs.parquet", (copy / "pairs.parquet").read_bytes())
    assert any(said in problem for problem in verify(str(copy)))


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("score", 0.99, "score is 0.99, its captions give"),
        ("score", 0.5, "score 0.5 is not one of near"),
        ("method", "contained", "its words do not stand as contained says"),
        ("method", "exact", "is not the same caption by its digest"),
        ("method", "guess", "'guess' is no method"),
        ("text", 1, "is not the caption of that example"),
        ("text", 1000, "has no example 1000"),
        ("caption", "A teal kettle", "caption_sha256 is not that of its caption"),
        ("set", "other", "names a set 'other'"),
        ("uid", bytes(16), "removal_ids_text.txt: is not the list of uids"),
    ],
)
def test_a_forged_text_pair_is_found(copy: Path, column: str, value: object, said: str) -> None:
    table = pq.read_table(copy / "text_pairs.parquet")
    rows = table.to_pylist()
    next(row for row in rows if row["method"] == "near")[column] = value
    pq.write_table(pa.Table.from_pylist(rows, table.schema), copy / "text_pairs.parquet")
    reseal(copy, "text_pairs.parquet", (copy / "text_pairs.parquet").read_bytes())
    assert any(said in problem for problem in verify(str(copy)))


@pytest.mark.parametrize(
    ("name", "column", "value", "said"),
    [
        ("splits/scenes.parquet", "caption", "Another caption of words", "are not those of its caption"),
        ("splits/scenes.parquet", "text", 5, "the first example with its caption is"),
        ("splits/scenes.parquet", "text_tokens", 50, "are not those of its caption"),
        ("splits/scenes.parquet", "text_pairs", 9, "its text pairs give"),
        ("splits/scenes.parquet", "text_method", "near", "its text pairs give"),
        ("pairs.parquet", "names_label", None, "names_label is None"),
        ("classes.parquet", "rows", 70, "labels.mentions"),
        ("classes.parquet", "names", "picture|wren", "names_label is"),
    ],
)
def test_forged_words_are_found(copy: Path, name: str, column: str, value: object, said: str) -> None:
    table = pq.read_table(copy / name)
    rows = table.to_pylist()
    row = next(row for row in rows if row.get("eval_id") == "e001" or row.get("label") == 2)
    assert row[column] != value
    row[column] = value
    pq.write_table(pa.Table.from_pylist(rows, table.schema), copy / name)
    reseal(copy, name, (copy / name).read_bytes())
    assert any(said in problem for problem in verify(str(copy)))


@pytest.mark.parametrize("name", ["../outside.txt", "splits/../../outside.txt", "/etc/hostname", "extra.txt"])
def test_a_sealed_name_that_no_report_has_is_not_followed(copy: Path, name: str) -> None:
    (copy.parent / "outside.txt").write_text("secret", "utf-8")
    seal = files.read_seal(str(copy))
    inside = {one: (copy / one).read_bytes() for one in seal.files}
    (copy / "manifest.json").write_bytes(files.seal({**inside, name: b"secret"}, seal.inputs))
    with pytest.raises(InputError, match="not the manifest of a report") as caught:
        verify(str(copy))
    assert "\n" not in str(caught.value)


def test_a_set_name_is_no_path(copy: Path) -> None:
    report = json.loads((copy / "report.json").read_bytes())
    report["sets"][0]["name"] = "../../x"
    reseal(copy, "report.json", files.canonical(report))
    assert any("sets.0.name" in problem for problem in verify(str(copy)))


def test_a_missing_file_cannot_be_left_out_of_the_manifest(copy: Path) -> None:
    seal = files.read_seal(str(copy))
    (copy / "removal_ids.txt").unlink()
    inside = {one: (copy / one).read_bytes() for one in seal.files if one != "removal_ids.txt"}
    (copy / "manifest.json").write_bytes(files.seal(inside, seal.inputs))
    assert any("removal_ids.txt: named here or in report.json, not in both" in problem for problem in verify(str(copy)))


def test_a_stray_file_is_named(copy: Path) -> None:
    (copy / "extra.txt").write_text("more", "utf-8")
    assert any("extra.txt" in problem for problem in verify(str(copy)))


def test_verify_without_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(main, ["verify", str(tmp_path)]) == 2
    assert "no manifest.json" in capsys.readouterr().err


def test_reading_a_report_is_light(made: Made) -> None:
    """`report`, `verify` and the package load neither ray nor torch nor deepspeed nor pandas."""
    program = (
        "import sys\n"
        "from evaluation.__main__ import main\n"
        "import evaluation.report\n"
        "from pipeline.contracts.errors import AuditFinding\n"
        "try:\n    main(['report', sys.argv[1]])\n"
        "except AuditFinding:\n    pass\n"
        "assert main(['verify', sys.argv[1]]) is None\n"
        "print('HEAVY', sorted({'ray', 'torch', 'deepspeed', 'pandas', 'transformers'} & set(sys.modules)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(made.report)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.stdout.splitlines()[-1] == "HEAVY []", result.stdout + result.stderr


def test_a_full_temporary_folder_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A limit of the size of files gives what a full disk does."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(RunError, match=f"{re.escape(str(tmp_path))}.*: cannot write.*; raise the limit"):
            files.table_bytes(pa.table({"row": list(range(100_000))}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
