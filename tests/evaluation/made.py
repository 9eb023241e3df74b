"""A report as the real command makes it, on a planted corpus."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from evaluation.config import OverlapSet
from evaluation.overlap.exposure import Training
from evaluation.overlap.tables import PREDICTION_SCHEMA, PREDICTIONS_VERSION
from pipeline.content.labelled import open_set
from pipeline.contracts import manifest
from pipeline.contracts.config import to_toml
from tests.conftest import ROOT
from tests.evaluation import planted

TRAINING = Training(samples_seen=90, seed=5, window_row_groups=2)
"""The model behind the predictions had read half of an epoch."""


def command(*arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "evaluation", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout
    )


class Made:
    """A planted corpus, its config file, and the report that the command wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.planted = planted.plant(folder, repeats=2)
        self.report = folder / "report"
        predictions = folder / "predictions.parquet"
        (folder / "names_zh.txt").write_text(planted.NAMES_ZH, "utf-8")
        words = {"caption": "caption", "classes": list(planted.CLASSES), "names": [str(folder / "names_zh.txt")]}
        config = planted.overlap_config(
            self.planted,
            self.report,
            sets=[
                planted.set_table(self.planted, **words, predictions=str(predictions)),
                planted.set_table(self.planted, name="blind", limit=0.5, where={"label": 3}),
            ],
        )
        ids = open_set(config.sets[0]).ids
        # A model that knows what it has seen: right on leaked examples, on others every second time.
        self.right = {name: name in self.planted.answers or row % 2 == 0 for row, name in enumerate(ids)}
        write_predictions(predictions, config.sets[0], self.right, self.planted.corpus)
        self.config = folder / "overlap.toml"
        self.config.write_text(to_toml(config), "utf-8")
        self.result = command("overlap", "--config", str(self.config))


def write_predictions(path: Path, config: OverlapSet, right: Mapping[str, bool], corpus: Path | None = None) -> None:
    """What `zeroshot` would have written of a model that is right on these examples (id → whether) of a set; `corpus`: its training's."""
    labelled = open_set(config)
    rows = [
        {
            "row": row,
            "eval_id": name,
            "sha256": labelled.sha256[row],
            "label": int(labelled.labels[row]),
            "prediction": int(labelled.labels[row]) + (not right[name]),
            "top5": [1],
            "score": 0.5,
            "correct": right[name],
        }
        for row, name in enumerate(labelled.ids)
    ]
    table = pa.Table.from_pylist(rows, PREDICTION_SCHEMA)
    identity = {
        "format_version": str(PREDICTIONS_VERSION),
        "set_content_hash": labelled.content_hash,
    }
    if corpus is not None:
        identity |= {"content_root": manifest.load(str(corpus)).content_root, **TRAINING.metadata()}
    pq.write_table(table.replace_schema_metadata(identity), path)
