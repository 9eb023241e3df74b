"""What is known of each dataset before it is opened: how many classes and examples it must have, and how it is scored.

The figures are data, `catalogue.toml`. The paper speaks of 39 evaluations on 36 datasets and does not list the nine beyond the 27 of its
table 9; this catalogue counts the seven natural distribution shifts and the two retrieval sets.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from evaluation.config import Metric
from pipeline.contracts.config import StrictModel
from pipeline.contracts.errors import InputError


class Dataset(StrictModel):
    """One dataset. `splits`: split → who uses it → examples."""

    name: str
    title: str
    group: Literal["paper", "shift", "retrieval", "more"]
    metric: Metric | Literal["recall"]
    classes: int | None = Field(None, ge=2)
    splits: dict[str, dict[str, int]]

    @model_validator(mode="before")
    @classmethod
    def _tables_are_splits(cls, table: dict[str, Any]) -> dict[str, Any]:
        splits = {key: value for key, value in table.items() if isinstance(value, dict) and key != "splits"}
        return {"splits": splits} | {key: value for key, value in table.items() if key not in splits}


@functools.cache
def catalogue() -> dict[str, Dataset]:
    """Every dataset by name, in the order of the file."""
    text = (Path(__file__).parent / "catalogue.toml").read_text("utf-8")
    return {name: Dataset.model_validate({"name": name, **table}) for name, table in tomllib.loads(text).items()}


def known(name: str) -> Dataset:
    """One dataset. Raises InputError for a name that is not in the catalogue."""
    found = catalogue().get(name)
    if found is None:
        raise InputError(
            f"dataset {name!r} is not in the catalogue; known are {', '.join(catalogue())}; leave `dataset` out for another set"
        )
    return found


def check_known(names: Iterable[str | None]) -> None:
    """For `--check`, which opens no set. Raises InputError for the name of a dataset that is not in the catalogue."""
    for name in names:
        if name is not None:
            known(name)


def metric_of(dataset: str | None, asked: Metric | None) -> Metric:
    """The headline metric of a set: as asked for, else its dataset's, else accuracy (also where the dataset is one of retrieval)."""
    if asked is not None:
        return asked
    metric = "accuracy" if dataset is None else known(dataset).metric
    return "accuracy" if metric == "recall" else metric


def check_size(dataset: Dataset, split: str, *, place: str, examples: int, classes: int, accept: bool) -> str | None:
    """Who uses a split of this size; None where no size is known of this split, or any is accepted.

    Raises InputError where the number of classes or of examples is another than every known one.
    """
    if accept:
        return None
    step = "check the archive and `split`, or allow it with other_counts = true"
    if dataset.classes is not None and classes != dataset.classes:
        raise InputError(f"{place}: {classes:,} classes where {dataset.title} has {dataset.classes:,}; {step}")
    sizes = dataset.splits.get(split)
    if sizes is None:
        return None
    user = next((who for who, size in sizes.items() if size == examples), None)
    if user is None:
        said = ", ".join(f"{size:,} ({who})" for who, size in sizes.items())
        raise InputError(f"{place}: {examples:,} examples where {dataset.title}, split {split!r}, has {said}; {step}")
    return user
