"""One sentence for each stated number that is not the computed one; `verify` is made of these."""

from __future__ import annotations

from collections.abc import Iterator

from scipy.stats import binomtest

from evaluation.report.schema import Difference, Share

TOLERANCE = 1e-9  # of scipy's interval search; the report's own figures are good to 1e-12
_P_VALUES = ("p_value", "exact_p", "holm_p")
_SHARE_OF_P = 1e-6  # ours and scipy's p were at most 1e-9 of it apart, down to 1e-228 and up to a million examples
_NOTHING = 1e-300  # smaller p have lost their digits, or are 0 in one of the two computations


def differ(place: str, name: str, stated: object, computed: object) -> Iterator[str]:
    """A sentence when two values differ; numbers may differ by the tolerance, and p values by a small share of themselves only."""
    if isinstance(stated, float) and isinstance(computed, (int, float)):
        same = abs(stated - computed) <= TOLERANCE
        if name.rpartition(".")[2] in _P_VALUES:
            same = same and abs(stated - computed) <= max(_SHARE_OF_P * max(stated, computed), _NOTHING)
    else:
        same = stated == computed
    if not same:
        yield f"{place}: {name} is {stated!r}, the tables give {computed!r}; write the report again"


def check_share(place: str, name: str, stated: Share, hits: int, n: int, confidence: float) -> Iterator[str]:
    yield from differ(place, f"{name}.n", stated.n, n)
    yield from differ(place, f"{name}.hits", stated.hits, hits)
    yield from differ(place, f"{name}.value", stated.value, hits / n if n else None)
    interval = binomtest(hits, n).proportion_ci(confidence, method="exact") if n else (0.0, 1.0)
    yield from differ(place, f"{name}.low", stated.low, float(interval[0]))
    yield from differ(place, f"{name}.high", stated.high, float(interval[1]))


def check_difference(
    place: str, name: str, stated: Difference | None, computed: tuple[float, float, float] | None
) -> Iterator[str]:
    if stated is None or computed is None:
        yield from differ(place, name, stated, computed)
        return
    for key, value in zip(("value", "low", "high"), computed, strict=True):
        yield from differ(place, f"{name}.{key}", getattr(stated, key), value)


def check_rows(place: str, name: str, stated: int, seen: int, unseen: int) -> Iterator[str]:
    """A count of corpus rows, of which the table shows `seen`, and of `unseen` pairs only the number: each may be of one row more."""
    if not seen <= stated <= seen + unseen:
        yield from differ(place, name, stated, seen if not unseen else f"{seen} to {seen + unseen}")
