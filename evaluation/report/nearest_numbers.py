"""The figures of a set's nearest pictures: how far they are, and what people's labels of them say, by each measure; and where in a report
these are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evaluation.overlap.measures import Measure
from evaluation.overlap.thresholds import calibrate, histogram
from evaluation.report.schema import Calibration, Nearest, ScoreCalibration, ScoreNearest, SetReport


def nearest_figures(closest: pa.Table, measure: Measure) -> dict[str, Any]:
    """`Nearest` or `ScoreNearest` of one set's NEAREST_SCHEMA rows."""
    values = np.asarray(closest.filter(pc.equal(closest["measure"], measure.name))[measure.column])
    return {
        "sampled": len(values),
        "counts": histogram(closest, measure),
        "median": float(np.median(values)) if len(values) else None,
    }


def label_figures(labels: pa.Table, closest: pa.Table, measure: Measure) -> dict[str, Any] | None:
    """`Calibration` or `ScoreCalibration` of one set's LABEL_SCHEMA and NEAREST_SCHEMA rows; None where nobody labelled."""
    found = calibrate(labels, closest, measure)
    if found is None:
        return None
    curve = [
        {measure.kind if key == "threshold" else key: value for key, value in vars(point).items()}
        for point in found.curve
    ]
    return {**vars(found), "curve": curve}


def nearest_of(one: SetReport, measure: Measure) -> Nearest | ScoreNearest | None:
    """How far the nearest pictures are by a measure; None where there is no descriptor."""
    return one.nearest if measure.kind == "distance" else one.score_nearest


def calibration_of(one: SetReport, measure: Measure) -> Calibration | ScoreCalibration | None:
    """What people said of them; None where nobody did."""
    return one.calibration if measure.kind == "distance" else one.score_calibration


def threshold_of(one: SetReport, measure: Measure) -> int | float | None:
    """The set's threshold by a measure; None where it does not decide."""
    found: int | float | None = getattr(one.thresholds, measure.column)
    return found
