"""The second hand for outcomes: the predictions that lie in the report's folder, against its splits and what it says of the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from evaluation.overlap import exposure
from evaluation.overlap.splits import strange
from evaluation.overlap.tables import PREDICTIONS_VERSION
from evaluation.report import files
from evaluation.report.differences import differ
from evaluation.report.schema import Effect, SetReport
from evaluation.report.twin import Row
from pipeline.contracts import parquet, storage
from pipeline.contracts.errors import InputError

_COLUMNS = ["eval_id", "sha256", "label", "correct"]
_MORE = ["prediction", "group"]  # checked where they are
_LISTS: dict[str, str] = {"mean_top1_top5": "top5", "roc_auc": "scores", "map11": "scores"}
"""Which list of an answer the set's metric is computed from."""


@dataclass(frozen=True)
class Copy:
    """A set's predictions as they lie in the folder: the rows, one for each scored example, and the metadata."""

    place: str
    rows: list[Row]
    metadata: dict[str, str]

    @property
    def content_root(self) -> str | None:
        return self.metadata.get("content_root") or None

    @property
    def training(self) -> exposure.Training | None:
        """Raises InputError where the metadata says what no card says."""
        return exposure.read_training(self.place, self.metadata)


def read_copy(directory: str, one: SetReport) -> Copy | None:
    """None where the set has no scores. Raises InputError where the file is none of predictions, or has more in it than they have."""
    if one.effect is None:
        return None
    place = storage.join(directory, files.predictions_name(one.name))
    with parquet.open_file(place) as source:
        found = source.schema_arrow
    stranger = strange(found)
    absent = [name for name in _COLUMNS if name not in found.names]
    if stranger is not None or absent:
        problem = f"has {stranger}, which no predictions have" if stranger else f"has no column {absent[0]!r}"
        raise InputError(f"{place}: {problem}; write the report again")
    more = [*_MORE, *([_LISTS[one.metric]] if one.metric in _LISTS else [])]
    table = parquet.read(place, [*_COLUMNS, *(name for name in more if name in found.names)])
    metadata = {key.decode(): value.decode("utf-8", "replace") for key, value in (found.metadata or {}).items()}
    rows: list[Row] = table.to_pylist()
    return Copy(place, rows, metadata)


def check_copy(place: str, one: SetReport, effect: Effect, split: list[Row], copy: Copy, sha256: str) -> Iterator[str]:
    """The file is the one that report.json names, of this set and model, and its outcomes are those of the split. `sha256`: the file's."""
    name = f"sets.{one.name}.effect"
    yield from differ(place, f"{name}.predictions_sha256", effect.predictions_sha256, sha256)
    yield from differ(place, f"{name}.model", effect.model, copy.metadata.get("model_sha256") or None)
    yield from differ(place, f"{name}.model_content_root", effect.model_content_root, copy.content_root)
    for key, value in (("format_version", str(PREDICTIONS_VERSION)), ("set_content_hash", one.content_hash)):
        if copy.metadata.get(key) != value:
            yield f"{copy.place}: {key} is {copy.metadata.get(key)!r}, not {value!r}; write the report again"
    said = {row["eval_id"]: row for row in copy.rows}
    if len(said) != len(copy.rows):
        yield f"{copy.place}: an example comes twice; write the report again"
    for row in split:
        where = f"{copy.place}: example {row['eval_id']!r}"
        answer = said.pop(row["eval_id"], None)
        if answer is None:
            if row["label"] is not None or row["correct"] is not None:
                yield f"{where}: is not there, and its split has a label or an outcome; write the report again"
            continue
        label = -1 if row["label"] is None else row["label"]
        if (answer["sha256"], answer["label"]) != (row["sha256"], label):
            yield f"{where}: is of another picture or label than its split; write the report again"
        if answer["correct"] is None or answer["correct"] != row["correct"]:
            yield f"{where}: correct is {answer['correct']!r}, its split says {row['correct']!r}; write the report again"
        listed = _LISTS.get(one.metric)
        if listed is not None and answer.get(listed) != row[listed]:
            yield f"{where}: {listed} are {answer.get(listed)!r}, its split says {row[listed]!r}; write the report again"
        if "group" in answer and answer["group"] != row["group"]:
            yield f"{where}: is a frame of video {answer['group']!r}, its split says {row['group']!r}; write the report again"
        if "prediction" in answer and label != -1 and (answer["prediction"] == label) != answer["correct"]:
            yield f"{where}: correct does not follow from label and prediction; score the set again"
    for stranger in list(said)[:1]:
        yield f"{copy.place}: example {stranger!r} is not in the split; write the report again"
