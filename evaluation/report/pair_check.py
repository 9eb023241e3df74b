"""The second hand for a set's tables: every pair and every copy is what its hashes say, and the split follows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from evaluation.overlap.tables import METHODS
from evaluation.report import twin
from evaluation.report.differences import check_share, differ
from evaluation.report.schema import SetReport
from evaluation.report.twin import Row


def check_pairs(place: str, one: SetReport, own: list[Row], split: list[Row], keep: int) -> Iterator[str]:
    """Each pair must hold what it claims, and the split must follow from the pairs, of which the table holds `keep` by each method."""
    limits = one.thresholds
    best: dict[object, tuple[int, str]] = {}
    rows = {row["eval_row"]: row for row in split}
    for pair in own:
        example = rows.get(pair["eval_row"], {})
        where = f"{place}: set {one.name!r}: example {pair['eval_id']!r} with {twin.in_hex(pair['uid'])}"
        if (example.get("eval_id"), example.get("sha256")) != (pair["eval_id"], pair["eval_sha256"]):
            yield f"{where}: is another example, or none, in the split table"
            continue
        pdq, phash = bits_apart(example["pdq256"], pair["pdq256"]), bits_apart(example["phash64"], pair["phash64"])
        known = pdq is not None and phash is not None and pair["pdq_quality"] is not None
        if ((pdq, phash) if known else (None, None)) != (pair["pdq_distance"], pair["phash_distance"]):
            yield f"{where}: its distances are not those of its hashes"
        textured = known and min(int(str(example["pdq_quality"])), int(str(pair["pdq_quality"]))) >= limits.pdq_quality
        holds = {
            "source_sha256": pair["source_sha256"] == pair["eval_sha256"],
            "image_sha256": pair["image_sha256"] == pair["eval_sha256"],
            "pdq": textured and pdq is not None and pdq <= limits.pdq_distance,
            "phash": textured
            and (phash is not None and phash <= limits.phash_distance)
            and (pdq is not None and pdq <= limits.phash_pdq_distance),
            "descriptor": textured and reaches(pair["descriptor_score"], limits.descriptor_score),
        }
        if (pair["source_exact"], pair["stored_exact"]) != (holds["source_sha256"], holds["image_sha256"]):
            yield f"{where}: source_exact and stored_exact are not what its sha256 say"
        strongest = next((method for method in METHODS if holds[method]), None)
        if strongest != pair["method"]:
            yield f"{where}: is a match by {strongest or 'no method'}, not by {pair['method']}"
        rank = METHODS.index(str(pair["method"]))
        best[pair["eval_row"]] = min(best.get(pair["eval_row"], (rank, "")), (rank, ""))
    yield from _check_distances(place, one, own, split, keep)
    for row in split:
        method = METHODS[best[row["eval_row"]][0]] if row["eval_row"] in best else None
        if row["in_overlap"] != (method is not None) or row["method"] != method:
            yield f"{place}: set {one.name!r}: example {row['eval_id']!r}: its pairs say {method}, its split {row['method']}"


def _check_distances(place: str, one: SetReport, own: list[Row], split: list[Row], keep: int) -> Iterator[str]:
    """How many pairs an example has, and the smallest distances over them; of an example that may have more pairs than the table holds,
    neither more pairs in the table than in all, nor a larger pHash distance than theirs."""
    of_row: dict[object, list[Row]] = {}
    for pair in own:
        of_row.setdefault(pair["eval_row"], []).append(pair)
    for number, row in enumerate(split):
        pairs = of_row.get(row["eval_row"], [])
        where = f"{place}: set {one.name!r}: example {row['eval_id']!r}"
        if row["eval_row"] != number:
            yield f"{where}: is row {row['eval_row']} of the set, in the split table {number}"
        most = max(Counter(pair["method"] for pair in pairs).values(), default=0)
        if most > keep:
            yield f"{where}: has {most} pairs by one method, more than the {keep} that the table holds"
        all_pairs = int(str(row["pairs"]))
        if all_pairs != len(pairs) and (most < keep or all_pairs < len(pairs)):
            yield f"{where}: has {len(pairs)} pairs, its split says {row['pairs']}"
        for name in ("pdq_distance", "phash_distance"):
            least = min((int(str(pair[name])) for pair in pairs if pair[name] is not None), default=None)
            stated = row[name]
            unseen = name == "phash_distance" and all_pairs > len(pairs)
            nearer = isinstance(stated, int) and 0 <= stated <= (64 if least is None else least)
            if stated != least and not (unseen and nearer):
                yield f"{where}: the least {name} of its pairs is {least}, its split says {stated}"


SIDES: dict[str, float | None] = {
    "recompressed, JPEG q10": 1.0,
    "half size": 0.5,
    "thumbnail of 64 pixels": None,
    "square of 256, nearest": 1e9,
    "grey": 1.0,
    "brightness and contrast 1.4": 1.0,
    "banner of 12 %": 1.0,
    "border of 10 %": 1.2,
    "mirrored": 1.0,
    "turned by 3 degrees": 1.0,
    "turned by 10 degrees": 1.0,
    "CLIP's centre crop of 224": 1e9,
    "crop, 95 % of the area": 0.95**0.5,
    "crop, 90 % of the area": 0.9**0.5,
    "crop, half of the area": 0.5**0.5,
    "crop, a quarter of the area": 0.5,
}
"""How long a copy's side is beside the picture's: a copy that is too small to be one is left out, and then no smaller one is there. Two
have their own size and are always there; a thumbnail is too small where the picture is narrow."""


def left_out(names: list[str]) -> bool:
    """Whether one of the changes is missing that the size of a picture cannot have lost; `names` are those of one example."""
    sides = {name: side for name, side in SIDES.items() if side is not None}
    lost = max((side for name, side in sides.items() if name not in names), default=0.0)
    there = min((side for name, side in sides.items() if name in names), default=0.0)
    return lost >= there or names != [name for name in SIDES if name in names]


def check_copies(
    table: str, place: str, one: SetReport, copied: list[Row], split: list[Row], asked: list[int], confidence: float
) -> Iterator[str]:
    """The recalls from the distances of the copies, counted one by one; the copies are those of the sampled examples, each changed in every
    way."""
    names: dict[int, list[str]] = {}
    for row in copied:
        names.setdefault(int(str(row["eval_row"])), []).append(str(row["transform"]))
    if list(names) != asked or any(split[int(str(row["eval_row"]))]["eval_id"] != row["eval_id"] for row in copied):
        yield f"{table}: set {one.name!r}: holds other examples than the sample that their ids choose; write the report again"
    for number in (number for number, given in names.items() if left_out(given)):
        yield f"{table}: set {one.name!r}: example {number}: has not one copy of every kind, in order; write the report again"
    limits, name = one.thresholds, f"sets.{one.name}.copies"
    counts: dict[str, list[int]] = {}
    for row in copied:
        pdq, phash, quality = (int(str(row[key])) for key in ("pdq_distance", "phash_distance", "pdq_quality"))
        near = quality >= limits.pdq_quality and pdq <= limits.pdq_distance
        alike = quality >= limits.pdq_quality and phash <= limits.phash_distance and pdq <= limits.phash_pdq_distance
        learned = quality >= limits.pdq_quality and reaches(row["descriptor_score"], limits.descriptor_score)
        before = counts.setdefault(str(row["transform"]), [0, 0, 0, 0, 0])
        for slot, value in enumerate((1, near or alike or learned, near, alike, learned)):
            before[slot] += value
    yield from differ(place, f"{name}.transform", [recall.transform for recall in one.copies], list(counts))
    for recall in one.copies:
        n, either, *by_method = counts.get(recall.transform, [0, 0, 0, 0, 0])
        yield from check_share(place, f"{name}.{recall.transform}.found", recall.found, either, n, confidence)
        for key, count in zip(("pdq", "phash", "descriptor"), by_method, strict=True):
            yield from differ(place, f"{name}.{recall.transform}.{key}", getattr(recall, key), count)


def reaches(score: object, least: float | None) -> bool:
    """Whether a score is known and at least the threshold, if there is one."""
    return least is not None and isinstance(score, float) and score >= least


def bits_apart(left: object, right: object) -> int | None:
    """Differing bits of two hashes; None where one is unknown."""
    if isinstance(left, bytes) and isinstance(right, bytes):
        return (int.from_bytes(left) ^ int.from_bytes(right)).bit_count()
    if isinstance(left, int) and isinstance(right, int):
        return (left ^ right).bit_count()
    return None
