"""Two models compared on retrieval: the exact test of signs against every case counted, its level, the command, what is refused."""

import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest

from evaluation.__main__ import main
from evaluation.intervals import mcnemar, paired_difference, signs
from evaluation.overlap.tables import PREDICTIONS_VERSION
from evaluation.retrieval import RANK_SCHEMA
from pipeline.contracts.errors import InputError
from tests.evaluation.answers import digest, outcomes, write_answers


def test_signs_are_all_cases_counted() -> None:
    """Differences of several sizes: of all ways to turn them, the share that adds up to at least as much either way."""
    draws = np.random.default_rng(1)
    for _ in range(60):
        differences = draws.integers(-5, 6, int(draws.integers(1, 11)))
        sums = [
            abs(sum(sign * one for sign, one in zip(turned, differences.tolist(), strict=True)))
            for turned in itertools.product((-1, 1), repeat=len(differences))
        ]
        expected = np.mean([one >= abs(int(differences.sum())) for one in sums])
        assert signs(differences) == pytest.approx(expected, rel=1e-12)
    assert signs(np.zeros(7, np.int64)) == signs(np.empty(0, np.int64)) == 1.0


def test_signs_of_single_examples_are_mcnemars() -> None:
    draws = np.random.default_rng(2)
    for n in (3, 40, 5000):
        before, after = draws.random((2, n)) < [[0.5], [0.55]]
        found = signs(after.astype(np.int64) - before)
        wins, losses = int((after & ~before).sum()), int((before & ~after).sum())
        assert found == pytest.approx(mcnemar(before, after), rel=1e-9)
        assert found == pytest.approx(binomtest(wins, wins + losses).pvalue, rel=1e-9)


def test_captions_that_agree_are_no_evidence_of_their_own() -> None:
    """Two equal models whose five captions of a picture stand or fall together: McNemar over captions sees differences, signs do not."""
    draws = np.random.default_rng(3)
    too_sure = held = 0
    for _ in range(400):
        pictures = draws.choice([-1, 0, 1], 60, p=[0.2, 0.6, 0.2])
        captions = np.repeat(pictures, 5)
        too_sure += mcnemar(captions > 0, captions < 0) <= 0.05
        held += signs(5 * pictures) <= 0.05
    assert held <= 0.05 * 400 + 10
    assert too_sure > 0.25 * 400


def write_ranks(place: Path, ranks: dict[str, list[int]], captions: int, *, set_hash: str = "5e" * 32) -> str:
    """A file of ranks by direction; each picture has so many captions."""
    rows = [
        {
            "direction": direction,
            "row": row,
            "eval_id": f"e{row}",
            "sha256": digest(picture),
            "caption": f"caption {row}",
            "rank": rank,
        }
        for direction, of_queries in ranks.items()
        for number, rank in enumerate(of_queries)
        for picture, row in [
            (number, number * captions) if direction == "image_to_text" else (number // captions, number)
        ]
    ]
    metadata = {
        "format_version": str(PREDICTIONS_VERSION),
        "set_content_hash": set_hash,
        "model_sha256": place.parts[-3] * 32,
    }
    place.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, RANK_SCHEMA).replace_schema_metadata(metadata), place)
    return str(place)


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two models on a set of five captions a picture, on one of one caption a picture, and on one that is classified."""
    draws = np.random.default_rng(4)
    for number in range(2):
        out = tmp_path / f"{number}{number}"
        for name, pictures, captions in (("coco", 80, 5), ("muge", 150, 1)):
            ranks = {
                "image_to_text": draws.geometric(0.3 + 0.2 * number, pictures) - 1,
                "text_to_image": draws.geometric(0.2 + 0.05 * number, pictures * captions) - 1,
            }
            place = out / "retrieval" / f"{name}.parquet"
            write_ranks(place, {direction: of.tolist() for direction, of in ranks.items()}, captions)
        scores, labels = outcomes((draws.random(60) < 0.5 + 0.3 * number).tolist())
        write_answers(out / "predictions" / "shapes.parquet", scores, labels, model=f"{number}{number}" * 32)
    return [str(tmp_path / "00"), str(tmp_path / "11")]


def test_compare(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "compare.json"
    assert main(["compare", *runs, "--out", str(out)]) is None
    said = capsys.readouterr().out
    found = json.loads(out.read_bytes())
    assert "p of McNemar's exact test (of captions: of signs, picture by picture), Holm over 13 tests" in said
    assert "coco                     caption → picture  R@1 " in said
    assert "of 400 captions of 80 pictures" in said
    other = found["others"][0]
    p_values = [other["sets"]["shapes"]["p"]]
    for name, pictures in (("coco", 80), ("muge", 150)):
        one, two = (pq.read_table(Path(run) / "retrieval" / f"{name}.parquet").to_pylist() for run in runs)
        assert [(each["direction"], each["k"]) for each in other["retrieval"][name]] == [
            (direction, k) for direction in ("image_to_text", "text_to_image") for k in (1, 5, 10)
        ]
        for each in other["retrieval"][name]:
            rows = [
                (before["rank"] < each["k"], after["rank"] < each["k"], before["sha256"])
                for before, after in zip(one, two, strict=True)
                if before["direction"] == each["direction"]
            ]
            wins = sum(after and not before for before, after, _ in rows)
            losses = sum(before and not after for before, after, _ in rows)
            assert (each["n"], each["pictures"]) == (len(rows), pictures)
            assert (each["wins"], each["losses"]) == (wins, losses)
            assert each["first"] == pytest.approx(sum(before for before, _, _ in rows) / len(rows))
            assert each["second"] == pytest.approx(sum(after for _, after, _ in rows) / len(rows))
            difference = each["difference"]
            assert difference["value"] == pytest.approx((wins - losses) / len(rows))
            if len(rows) == pictures:
                plain = paired_difference(wins, losses, len(rows), 0.95)
                assert (difference["low"], difference["high"]) == (plain.low, plain.high)
                assert each["p"] == pytest.approx(binomtest(wins, wins + losses).pvalue, rel=1e-9)
            else:
                # By the normal law, over pictures: the spread of their mean changes.
                changes: dict[bytes, float] = {}
                for before, after, picture in rows:
                    changes[picture] = changes.get(picture, 0) + (int(after) - int(before)) / 5
                half = 1.96 * np.std(list(changes.values())) / np.sqrt(pictures)
                assert difference["high"] - difference["low"] == pytest.approx(2 * half, rel=0.15)
            p_values.append(each["p"])
    adjusted = [other["sets"]["shapes"]["p_holm"]]
    adjusted += [each["p_holm"] for name in ("coco", "muge") for each in other["retrieval"][name]]
    order = np.argsort(p_values)
    by_hand = np.maximum.accumulate([min(1.0, p_values[place] * (13 - rank)) for rank, place in enumerate(order)])
    assert [adjusted[place] for place in order] == pytest.approx(by_hand.tolist())
    before = out.read_bytes()
    assert main(["compare", *runs, "--out", str(out)]) is None
    assert out.read_bytes() == before
    assert main(["compare", *(f"{run}/retrieval/muge.parquet" for run in runs)]) is None
    assert "Holm over 6 tests" in capsys.readouterr().out


def test_what_is_refused(runs: list[str], tmp_path: Path) -> None:
    first = f"{runs[0]}/retrieval/muge.parquet"
    table = pq.read_table(first)
    metadata = table.schema.metadata
    place = tmp_path / "33" / "retrieval" / "muge.parquet"
    place.parent.mkdir(parents=True)

    def column(name: str, values: list[object], kind: pa.DataType | None = None) -> pa.Table:
        number = table.column_names.index(name)
        array = pa.array(values, kind or table.schema.field(name).type)
        return table.set_column(number, pa.field(name, array.type), array)

    ranks, rows = table["rank"].to_pylist(), table["row"].to_pylist()
    for said, changed in (
        ("no column 'caption'", table.drop_columns(["caption"])),
        ("more than one column 'rank'", table.append_column("rank", table["rank"])),
        ("format version None", table.replace_schema_metadata({b"\xff": b"\xff"})),
        ("column 'rank' is double, not int64", column("rank", ranks, pa.float64())),
        ("column 'rank' is missing in some rows", column("rank", [None, *ranks[1:]])),
        ("column 'rank' has -1, and 0 is first", column("rank", [-1, *ranks[1:]])),
        ("direction 'both' is none of", column("direction", ["both"] * len(ranks))),
        ("a query comes twice", column("row", [rows[1], *rows[1:]])),
        ("no rows", table.slice(0, 0)),
        ("format version '9'", table.replace_schema_metadata({**metadata, b"format_version": b"9"})),
        ("ranked on content hash", table.replace_schema_metadata({**metadata, b"set_content_hash": b"77" * 32})),
        ("do not list the same queries", table.slice(1)),
    ):
        if changed.schema.metadata is None:
            changed = changed.replace_schema_metadata(metadata)
        pq.write_table(changed, place)
        with pytest.raises(InputError, match=said) as caught:
            main(["compare", first, str(place)])
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 2
    with pytest.raises(InputError, match="has none of the sets of"):
        main(["compare", f"{runs[0]}/retrieval/coco.parquet", first])
    with pytest.raises(InputError, match=r"no predictions there; give the `out` of .* or `retrieval`"):
        main(["compare", first, str(tmp_path / "nowhere")])
