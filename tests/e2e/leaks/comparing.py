"""What the report says, beside what was planted: kind by kind, set by set. Reads the published tables and nothing of the job's."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from evaluation.overlap.tables import METHODS, TEXT_METHODS
from tests.e2e.leaks.ground import SCORED, VERDICTS, Ground, Plant
from tests.e2e.steps import Checks

Found = dict[tuple[str, str, bytes], str]
"""(set, example, corpus row) → method"""
UNKNOWN = "of no corpus"


def compare(ground: Ground, report: Path) -> Checks:
    """Print the tables; the checks hold if all that was planted was found as it was planted, and nothing else was."""
    checks = Checks()
    figures = json.loads((report / "report.json").read_bytes())
    of_set = {one["name"]: one for one in figures["sets"]}
    sizes = ", ".join(f"{len(one)} {name}" for name, one in ground.sets.items())
    print(f"\n{len(ground.rows):,} corpus rows; examples: {sizes}")
    print("\n1. Pictures: pairs of an example and a corpus row\n")
    pairs = _rows(report / "pairs.parquet", "set", "eval_id", "uid", "method", "names_label")
    copies = {(one["set"], one["eval_id"], one["uid"]): one["method"] for one in pairs}
    _kinds(ground.copies, copies, METHODS, ground.others, checks)
    checks.that("look-alike" in ground.others.values(), "there are look-alikes among them")
    checks.that(
        ground.blank_alike > 0,
        f"{ground.blank_alike} pairs of blank frames are kept apart by their want of texture alone",
    )
    print("\n2. Captions: pairs of a set's caption and a corpus row\n")
    said = _rows(report / "text_pairs.parquet", "set", "text", "uid", "method")
    texts = {(one["set"], ground.sets[one["set"]][one["text"]].id, one["uid"]): one["method"] for one in said}
    spoken = {uid: what if "caption" in what else "without a caption of a set" for uid, what in ground.others.items()}
    _kinds(ground.captions, texts, TEXT_METHODS, spoken, checks)
    print("\n3. Repeats, class names, scores\n")
    _repeats(ground, report, checks)
    _names(ground, pairs, report, checks)
    _scores(ground, of_set, checks)
    print("\n4. What may be said\n")
    _verdicts(ground, of_set, checks)
    return checks


def _rows(table: Path, *columns: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(table, columns=list(columns)).to_pylist()
    return found


# ---- what was found, and as what


def _kinds(
    planted: Iterable[Plant], found: Found, methods: Iterable[str], what: Mapping[bytes, str], checks: Checks
) -> None:
    """One line a kind of plant, then one for each kind of row that has none; `what` says of each corpus row what it is to be called."""
    expected = {(plant.set, plant.example, plant.uid): plant for plant in planted}
    by_kind: dict[str, list[tuple[Plant, str | None]]] = {}
    for key, plant in expected.items():
        by_kind.setdefault(plant.kind, []).append((plant, found.get(key)))
    print(f"  {'kind':<36}{'to be found by':<16}{'planted':>8}{'found':>7}   by")
    for kind, own in by_kind.items():
        by = Counter(method for _, method in own if method is not None)
        said = ", ".join(f"{name} {by[name]}" for name in methods if by[name])
        print(f"  {kind:<36}{own[0][0].method:<16}{len(own):>8}{by.total():>7}   {said}")
        for plant, method in own:
            if method != plant.method:
                checks.that(
                    False, f"{kind}: {plant.example} must be found by {plant.method}, and was found by {method}"
                )
    print()
    wrong = {key: method for key, method in found.items() if key not in expected}
    for (name, example, uid), method in wrong.items():
        checks.that(False, f"{example} of {name} was found by {method} in a row that is: {what.get(uid, UNKNOWN)}")
    right = sum(found.get(key) == plant.method for key, plant in expected.items())
    checks.that(right == len(expected) > 0, f"{right} of {len(expected)} plants were found, each by its method")
    guilty, flagged = {uid for _, _, uid in expected}, Counter(what.get(uid, UNKNOWN) for _, _, uid in wrong)
    for name, count in sorted(Counter(name for uid, name in what.items() if uid not in guilty).items()):
        checks.that(flagged[name] == 0, f"{flagged[name]} of {count:,} rows were flagged that are: {name}")


def _repeats(ground: Ground, report: Path, checks: Checks) -> None:
    repeats = same = 0
    for name, examples in ground.sets.items():
        expected = ground.clusters(name)
        split = _rows(report / "splits" / f"{name}.parquet", "eval_id", "cluster", "in_overlap")
        found = [one["cluster"] for one in split]
        repeats += sum(row != first for row, first in enumerate(expected))
        same += sum(row != first == mine for row, (first, mine) in enumerate(zip(expected, found, strict=True)))
        for one, first, mine in zip(examples, expected, found, strict=True):
            if first != mine:
                checks.that(False, f"{one.id} of {name} shows the picture of row {first}, and was put to row {mine}")
        inside = {one["eval_id"] for one in split if one["in_overlap"]}
        checks.that(
            inside == ground.leaked(name), f"{name}: {len(inside)} of {len(examples)} examples are Overlap, as planted"
        )
    checks.that(same == repeats > 0, f"{same} of {repeats} repeats inside sets were found, and no other")


def _names(ground: Ground, pairs: Iterable[Mapping[str, Any]], report: Path, checks: Checks) -> None:
    label = {one.id: one.label for examples in ground.sets.values() for one in examples}
    expected = {plant[:3] for plant in ground.copies if ground.names.get(plant.uid) == label[plant.example]}
    found = {(one["set"], one["eval_id"], one["uid"]) for one in pairs if one["names_label"]}
    checks.that(
        found == expected, f"{len(found)} captions beside a leaked picture name its class, {len(expected)} planted"
    )
    rows = _rows(report / "classes.parquet", "set", "label", "rows")
    counted = {(one["set"], one["label"]): one["rows"] for one in rows if one["rows"]}
    named = Counter(ground.names.values())
    planted = {(name, label): count for name in ground.sets for label, count in named.items()}
    checks.that(counted == planted, f"{named.total()} rows of the corpus name one of {len(named)} classes, as planted")


# ---- scores and verdicts


def _scores(ground: Ground, of_set: Mapping[str, dict[str, object]], checks: Checks) -> None:
    """Right answers and examples on both sides, counted from what was planted."""
    for name in SCORED:
        leaked, right = ground.leaked(name), ground.right(name)
        effect = of_set[name]["effect"]
        assert isinstance(effect, dict)
        for side, inside in (("overlap", True), ("clean", False)):
            answers = [correct for example, correct in right.items() if (example in leaked) == inside]
            found = effect[side]["hits"], effect[side]["n"]
            checks.that(
                found == (sum(answers), len(answers)), f"{name}: {found[0]} of {found[1]} right on {side}, as planted"
            )


def _verdicts(ground: Ground, of_set: Mapping[str, Mapping[str, object]], checks: Checks) -> None:
    for name, verdict in VERDICTS.items():
        found = of_set[name]["verdict"]
        effect = of_set[name]["effect"]
        gain = effect["detectable_gain"] if isinstance(effect, dict) else None
        power = f"; a gain of {gain:.3f} would have been seen" if isinstance(gain, float) else ""
        checks.that(
            found == verdict, f"{name}: {len(ground.leaked(name))} leaked: {found!r}, expected {verdict!r}{power}"
        )
