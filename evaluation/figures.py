"""What can be said of prediction files without the model: `compare`, `calibration` and `groups`, as commands.

Each reads what `zeroshot` wrote (`compare` the ranks of `retrieval` too), prints its figures, and writes them as JSON where `--out FILE`
asks for it. Neither ray nor torch is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from evaluation import calibration, compare, groups, predictions
from evaluation.predictions import Predictions
from evaluation.report.files import canonical
from pipeline.contracts import storage
from pipeline.contracts.config import Json
from pipeline.contracts.errors import InputError

CONFIDENCE = 0.95
_LACKING = {"calibration": "no probabilities", "groups": "fewer than two subgroups"}
_NEXT = {
    "calibration": "score them again with this version of `zeroshot`, which writes them",
    "groups": "name the column of a set with `subgroup` and score it again",
}


def run(command: str, places: Sequence[str], out: str | None) -> str:
    """One of the three commands over what lies at `places`; returns the lines for the terminal."""
    value: Json
    for place in places:
        if not place.endswith(".parquet") and storage.exists(place):
            raise InputError(
                f"{place}: is a file, and none of answers (.parquet); give a run's `out`, or one file of its answers"
            )
    if command == "compare":
        reference, against = compare.compare(places, CONFIDENCE)
        said = [compare.describe(reference, against, places[0], CONFIDENCE)]
        value = compare.as_json(reference, against, CONFIDENCE)
    else:
        said, entries, without = [], [], []
        for one in _each(places):
            found = _calibration(one) if command == "calibration" else _groups(one)
            if found is None:
                without.append(one.name)
                continue
            said.append(found[0])
            entries.append({"set": one.name, "content_hash": one.set_hash, "model": one.model, **found[1]})
        if without:
            said.append(f"left out, {_LACKING[command]}: {', '.join(without)}")
        if not entries:
            raise InputError(f"{places[0]}: every set has {_LACKING[command]}; {_NEXT[command]}")
        value = {"kind": f"evaluation.{command}", "version": 1, "confidence": CONFIDENCE, "sets": list(entries)}
    if out is not None:
        storage.write_atomic(out, canonical(value))
        said.append(f"\nfigures: {out}")
    return "\n".join(said)


def _calibration(one: Predictions) -> tuple[str, dict[str, Json]] | None:
    found = calibration.calibrate(one, CONFIDENCE)
    return None if found is None else (calibration.describe(one.name, *found), calibration.as_json(*found))


def _groups(one: Predictions) -> tuple[str, dict[str, Json]] | None:
    found = groups.of_predictions(one, CONFIDENCE)
    return None if found is None else (groups.describe(one.name, found), groups.as_json(found))


def _each(places: Sequence[str]) -> Iterator[Predictions]:
    """Every prediction file at the places. Raises InputError where one set of one model would be said twice."""
    seen: set[tuple[str, str]] = set()
    for place in places:
        for uri in predictions.find(place).values():
            one = predictions.read(uri)
            if (one.name, one.model) in seen:
                raise InputError(f"{uri}: this model's answers on {one.name!r} come twice; name each place once")
            seen.add((one.name, one.model))
            yield one
