"""Policy hooks: the two that we ship against hand-made rows, and every way in which somebody's hook can be wrong."""

import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import PipelineConfig, identity
from pipeline.contracts.config import Json
from pipeline.contracts.errors import HouseError, InputError, RunError
from pipeline.contracts.schema import SHARD_SCHEMA, uid
from pipeline.policy import hook
from pipeline.policy.hook import PolicyConfig


def table(captions: Sequence[str | None], **columns: Sequence[object]) -> pa.Table:
    values = {"uid": [uid("http://e.org/", str(n)) for n in range(len(captions))], "caption": captions, **columns}
    return pa.table(
        [
            pa.array(values[field.name], field.type) if field.name in values else pa.nulls(len(captions), field.type)
            for field in SHARD_SCHEMA
        ],
        schema=SHARD_SCHEMA,
    )


def policy(place: str, **options: Json) -> PolicyConfig:
    return PolicyConfig(name="ours", hook=place, options=options)


def details(configs: list[PolicyConfig], rows: pa.Table) -> dict[str | None, str]:
    kept, rejected = hook.judge(configs, rows)
    assert kept.num_rows + rejected.num_rows == rows.num_rows
    assert set(rejected["reason"].to_pylist()) <= {"policy"}
    captions = dict(zip(rows["uid"].to_pylist(), rows["caption"].to_pylist(), strict=True))
    return {captions[row["uid"]]: row["detail"] for row in rejected.to_pylist()}


# ---- what it is in the manifest


def test_a_configuration_is_told_by_the_content_of_its_lists_wherever_they_lie(tmp_path: Path) -> None:
    def made_from(name: str, content: str) -> dict[str, Json]:
        place = tmp_path / name
        place.write_text(content)
        found = policy("pipeline.policy.block_list:source_hashes", hashes=str(place))
        table = {"run": {"out": "o"}, "sources": {"paths": ["x"]}, "filter": {"queries": "q"}, "policy": [found]}
        return identity(PipelineConfig.model_validate(table))

    one, moved, other = made_from("a", "ab" * 32), made_from("b", "ab" * 32), made_from("a", "cd" * 32)
    assert one == moved
    assert {key for key in one if one[key] != other[key]} == {"policy"}
    assert str(tmp_path) not in str(one)


# ---- block lists


@pytest.mark.parametrize("kind", ["txt", "parquet", "hex"])
def test_a_block_list_of_sha256_refuses_the_bytes_it_names(tmp_path: Path, kind: str) -> None:
    shas = [hashlib.sha256(str(n).encode()).digest() for n in range(6)]
    listed = [shas[1], shas[4], hashlib.sha256(b"elsewhere").digest()]
    place = tmp_path / ("list.txt" if kind == "txt" else "list.parquet")
    if kind == "txt":
        place.write_text("".join(f"{sha.hex().upper()}  {n}.jpg\n\n" for n, sha in enumerate(listed)))
    else:
        pq.write_table(pa.table({"sha256": listed if kind == "parquet" else [sha.hex() for sha in listed]}), place)
    rows = table(
        ["a", "b", "c", "d", "e", None],
        source_sha256=[*shas[:4], None, None],
        image_sha256=[None, None, shas[3], None, shas[4], None],
    )
    found = details([policy("pipeline.policy.block_list:source_hashes", hashes=str(place))], rows)
    assert found == {"b": "ours: on the block list", "e": "ours: on the block list"}


def test_a_list_that_changes_is_read_again_by_the_same_process(tmp_path: Path) -> None:
    """Workers outlive a run."""
    place = tmp_path / "list"
    rows = table(["one", "two"], source_sha256=[b"1" * 32, b"2" * 32])
    ours = [policy("pipeline.policy.block_list:source_hashes", hashes=str(place))]
    for first, gone in ((b"1", "one"), (b"2", "two")):
        place.write_text((first * 32).hex())
        assert details(ours, rows) == {gone: "ours: on the block list"}


def test_a_pdq_list_refuses_within_its_distance(tmp_path: Path) -> None:
    """Against distances counted bit by bit; flat pictures are not compared."""
    draws = np.random.default_rng(4)
    blocked = draws.integers(0, 256, (5, 32), np.uint8)
    mine = draws.integers(0, 256, (60, 32), np.uint8)
    for row in range(40):
        near = np.unpackbits(blocked[row % 5])
        near[draws.choice(256, row, replace=False)] ^= 1
        mine[row] = np.packbits(near)
    quality = [20 if row % 7 == 0 else 90 for row in range(60)]
    (tmp_path / "list.txt").write_text("".join(f"{row.tobytes().hex()}\n" for row in blocked))
    rows = table([str(n) for n in range(60)], pdq256=[row.tobytes() for row in mine], pdq_quality=quality)
    found = details(
        [policy("pipeline.policy.block_list:pdq_hashes", hashes=str(tmp_path / "list.txt"), distance=20)], rows
    )
    truth = {}
    for row in range(60):
        bits = min(
            sum(bin(a ^ b).count("1") for a, b in zip(mine[row].tolist(), one.tolist(), strict=True)) for one in blocked
        )
        if quality[row] >= 50 and bits <= 20:
            truth[str(row)] = f"ours: {bits} bits from the block list"
    assert found == truth
    assert len(truth) > 10


@pytest.mark.parametrize(
    ("text", "said"),
    [("not a hash\n", r"list\.txt: line 1: 'not' is no hash of 64 hexadecimal digits"), ("\n", "nothing in the list")],
)
def test_a_bad_block_list_is_told_before_anything_starts(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(InputError, match=said):
        hook.load(policy("pipeline.policy.block_list:source_hashes", hashes=str(tmp_path / "list.txt")))


def test_the_digest_follows_the_content_of_a_list_and_not_its_place(tmp_path: Path) -> None:
    one, two, three = (tmp_path / f"{name}.txt" for name in ("one", "two", "three"))
    one.write_text("00" * 32)
    two.write_text("00" * 32)
    three.write_text("01" * 32)

    def told(place: Path) -> dict[str, Json]:
        config = policy("pipeline.policy.block_list:source_hashes", hashes=str(place))
        return hook.identity(config, hook.load(config))

    assert told(one) == told(two)
    assert told(one) != told(three)


# ---- personal data


@pytest.mark.parametrize(
    ("caption", "verdict"),
    [
        ("write to anna.lee+art@mail.example.co.uk today", "mail address"),
        ("anna@example.org", "mail address"),
        ("call +49 30 901820", "phone number"),
        ("Tel. +1 (555) 123-4567", "phone number"),
        ("(555) 123-4567 pizza", "phone number"),
        ("555-123-4567", "phone number"),
        ("Tel 030/901 820-0", "phone number"),
        ("follow @anna on twitter", None),
        ("a sign at 5pm @ the corner", None),
        ("2019-07-16 11:39:57", None),
        ("16/07/2019", None),
        ("1024x768 wallpaper 1920 1080", None),
        ("ISBN 978-3-16-148410-0", None),
        ("$1,234,567.89 sold", None),
        ("IMG_20160716_113957.jpg", None),
        ("population 1 234 567 890", None),
        ("a dog", None),
        (None, None),
    ],
)
def test_personal_data_in_captions(caption: str | None, verdict: str | None) -> None:
    found = details([policy("pipeline.policy.pii:captions")], table([caption]))
    assert found == ({} if verdict is None else {caption: f"ours: {verdict}"})


def test_a_rule_can_be_switched_off() -> None:
    rows = table(["a@b.example.org", "+49 30 901820"])
    assert details([policy("pipeline.policy.pii:captions", mail=False)], rows) == {
        "+49 30 901820": "ours: phone number"
    }
    with pytest.raises(
        InputError, match=r"policy 'ours': hook 'pipeline\.policy\.pii:captions': options\.fax is True; the options are"
    ):
        hook.load(policy("pipeline.policy.pii:captions", fax=True))


def test_hostile_captions_take_no_time() -> None:
    """Patterns that look back again and again would need minutes for these."""
    hostile = ["a." * 50_000, "a@" + "a." * 50_000, "+1 " * 30_000, "1 2 " * 30_000, "(12" * 30_000, "-" * 100_000]
    started = time.process_time()
    hook.judge([policy("pipeline.policy.pii:captions")], table(hostile))
    assert time.process_time() - started < 20


# ---- a hook of somebody else's


def test_the_second_hook_does_not_see_what_the_first_refused(tmp_path: Path) -> None:
    shas = [hashlib.sha256(b"x").digest(), None]
    (tmp_path / "list.txt").write_text(hashlib.sha256(b"x").hexdigest())
    first = PolicyConfig(
        name="list", hook="pipeline.policy.block_list:source_hashes", options={"hashes": str(tmp_path / "list.txt")}
    )
    second = PolicyConfig(name="pii", hook="pipeline.policy.pii:captions")
    rows = table(["a@b.example.org", "c@d.example.org"], source_sha256=shas)
    assert details([first, second], rows) == {
        "a@b.example.org": "list: on the block list",
        "c@d.example.org": "pii: mail address",
    }


MODULE = """
from pipeline.contracts.errors import InputError
from pipeline.policy.hook import hook

def plain(rows, options):
    return [None] * rows.num_rows

@hook(columns=("caption", "smell"), version=1)
def unknown_column(rows, options):
    return [None] * rows.num_rows

@hook(columns=("caption",), version=1)
def one_too_many(rows, options):
    return [None] * (rows.num_rows + 1)

@hook(columns=("caption",), version=1)
def too_few(rows, options):
    return [None] * min(rows.num_rows, 1)

@hook(columns=("caption",), version=1)
def number(rows, options):
    return [0] * rows.num_rows

@hook(columns=("caption",), version=1)
def empty(rows, options):
    return [""] * rows.num_rows

@hook(columns=("caption",), version=1)
def raises(rows, options):
    if rows.num_rows:
        raise ValueError("model\\nis gone")
    return []

@hook(columns=("caption",), version=1)
def nothing_at_all(rows, options):
    return None

@hook(columns=("caption",), version=1)
def five(rows, options):
    return 5

@hook(columns=("caption",), version=1)
def text(rows, options):
    return "" if not rows.num_rows else "ab"

@hook(columns=("caption",), version=1)
def ends(rows, options):
    raise SystemExit(3)

@hook(columns=("caption",), version=1)
def late(rows, options):
    return (int(caption) for caption in ["x", *rows["caption"].to_pylist()])

@hook(columns=("caption",), version=1)
def surrogate(rows, options):
    return ["\\ud800"] * rows.num_rows

@hook(columns=("image",), version=1)
def picture(rows, options):
    assert rows.column_names == ["image"]
    return ["large" if image and len(image) > 3 else None for image in rows["image"].to_pylist()]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "our_hooks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "our_hooks", raising=False)
    return "our_hooks"


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("nothing", InputError, r"hook 'our_hooks:nothing': is no policy hook; decorate"),
        ("plain", InputError, r"hook 'our_hooks:plain': is no policy hook; decorate"),
        ("unknown_column", InputError, r"asks for unknown columns \['smell'\]"),
        ("one_too_many", RunError, r"gave 1 verdicts for 0 rows; return one for each"),
        ("too_few", RunError, r"gave 1 verdicts for 2 rows"),
        ("number", RunError, r"gave the verdict 0; return None"),
        ("empty", RunError, r"gave the verdict ''; return None"),
        (
            "nothing_at_all",
            InputError,
            r"policy 'ours': hook 'our_hooks:nothing_at_all': gave None for 0 rows; return a list",
        ),
        ("five", InputError, r"gave 5 for 0 rows; return a list"),
        ("text", InputError, r"gave '' for 0 rows; return a list"),
        ("ends", RunError, r"policy 'ours': hook 'our_hooks:ends': raised SystemExit: 3; mend"),
        ("late", RunError, r"raised ValueError: invalid literal"),
        ("surrogate", RunError, r"gave the verdict '\\ud800'; return None"),
        ("raises", RunError, r"policy 'ours': hook 'our_hooks:raises': raised ValueError: model is gone; mend"),
    ],
)
def test_a_wrong_hook_is_told_in_one_sentence(module: str, name: str, error: type[HouseError], said: str) -> None:
    with pytest.raises(error, match=said) as told:
        hook.judge([policy(f"{module}:{name}")], table(["a", "b"]))
    assert "\n" not in str(told.value)


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"hook 'no_such_module:f': cannot be imported"):
        hook.load(policy("no_such_module:f"))


@pytest.mark.parametrize(
    ("body", "place", "said"),
    [
        ("def f(:", "broken_hooks:f", r"cannot be imported \(SyntaxError: invalid syntax.*\); mend the module"),
        ("raise ValueError('no\\nlicence')", "broken_hooks:f", r"cannot be imported \(ValueError: no licence\); mend"),
        ("raise SystemExit(3)", "broken_hooks:f", r"cannot be imported \(SystemExit: 3\); mend"),
        ("", ".broken_hooks:f", r"cannot be imported \(TypeError: .*\); mend the module, or write its name as package"),
        ("", "broken..hooks:f", r"cannot be imported \(.*\); "),
    ],
)
def test_a_module_that_does_not_import_is_told_in_one_sentence(
    body: str, place: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_hooks.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_hooks", raising=False)
    with pytest.raises(InputError, match=said) as told:
        hook.load(policy(place))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("source_hashes", {"distance": 3}, r"has no option 'distance'; its options are hashes$"),
        ("pdq_hashes", {"distnace": 3}, r"has no option 'distnace'; its options are hashes, distance, quality$"),
    ],
)
def test_a_misspelt_option_of_a_block_list(name: str, options: dict[str, Json], said: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("00" * 32)
    with pytest.raises(InputError, match=said):
        hook.load(policy(f"pipeline.policy.block_list:{name}", hashes=str(tmp_path / "list.txt"), **options))


def test_a_hook_may_ask_for_pictures(module: str) -> None:
    assert details([policy(f"{module}:picture")], table(["a", "b", "c"], image=[b"1234", None, b"1"])) == {
        "a": "ours: large"
    }


def test_a_missing_option_for_a_file() -> None:
    options: Mapping[str, Json] = {}
    with pytest.raises(InputError, match=r"needs options\.hashes, the path of a file"):
        hook.load(policy("pipeline.policy.block_list:source_hashes", **options))
