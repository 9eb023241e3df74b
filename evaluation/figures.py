"""What can be said of prediction files without the model: `compare`, `calibration` and `groups`, as commands.

Each reads what `zeroshot` wrote, prints its figures, and writes them as JSON where `--out FILE` asks for it. Neither ray nor torch is
loaded.
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


def run(command: str, places: Sequence[str], out: str | None) -> str:
    """One of the three commands over what lies at `places`; returns the lines for the terminal."""
    value: Json
    if command == "compare":
        reference, against = compare.compare(places, CONFIDENCE)
        said = [compare.describe(reference, against, places[0], CONFIDENCE)]
        value = compare.as_json(reference, against, CONFIDENCE)
    else:
        said, entries = [], []
        for one in _each(places):
            about: dict[str, Json] = {"set": one.name, "content_hash": one.set_hash, "model": one.model}
            if command == "calibration":
                found, tempered = calibration.calibrate(one, CONFIDENCE)
                said.append(calibration.describe(one.name, found, tempered))
                entries.append(about | calibration.as_json(found, tempered))
            else:
                worst = groups.of_predictions(one, CONFIDENCE)
                said.append(groups.describe(one.name, worst))
                entries.append(about | groups.as_json(worst))
        value = {"kind": f"evaluation.{command}", "version": 1, "confidence": CONFIDENCE, "sets": list(entries)}
    if out is not None:
        storage.write_atomic(out, canonical(value))
        said.append(f"\nfigures: {out}")
    return "\n".join(said)


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
