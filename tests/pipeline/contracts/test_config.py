"""The configuration loader: what a user types wrong, and what the digest covers."""

from pathlib import Path

import pydantic
import pytest

from pipeline.contracts import config
from pipeline.contracts.config import StrictModel, not_semantic
from pipeline.contracts.errors import InputError


class Place(StrictModel):
    folder: str = not_semantic("here")
    depth: int = 3


class Part(StrictModel):
    name: str
    share: float = pydantic.Field(0.5, ge=0, le=1)


class Whole(StrictModel):
    place: Place = Place()
    parts: list[Part] = pydantic.Field(default_factory=list)
    note: str | None = None
    threads: int = not_semantic(4)


def load(tmp_path: Path, text: str, *overrides: str) -> Whole:
    path = tmp_path / "c.toml"
    path.write_text(text)
    return config.load_config(Whole, str(path), overrides)


def test_a_file_and_its_overrides(tmp_path: Path) -> None:
    loaded = load(
        tmp_path, "threads = 2\n[place]\ndepth = 7\n", "place.folder=s3://bucket/x", "note=2026", "place.depth=0x10"
    )
    assert loaded == Whole(place=Place(folder="s3://bucket/x", depth=16), note="2026", threads=2)


@pytest.mark.parametrize(
    ("text", "overrides", "sentence"),
    [
        ("[place]\ndeph = 1", [], "c.toml: place.deph: unknown key; did you mean 'depth'?"),
        ("[place]\nzzz = 1", [], "c.toml: place.zzz: unknown key; known keys: folder, depth"),
        ("[[parts]]\nname = 'a'\nshard = 1", [], "c.toml: parts.0.shard: unknown key; did you mean 'share'?"),
        ("[[parts]]\nshare = 0.1", [], "c.toml: parts.0.name: missing; add it to the file or give parts.0.name=VALUE"),
        (
            "[place]\ndepth = 'x'",
            [],
            "c.toml: place.depth: input should be a valid integer, unable to parse string as an integer (got 'x')",
        ),
        ("", ["place.depth=many"], "override 'place.depth': input should be a valid integer"),
        ("", ["plac.depth=1"], "override 'plac': unknown key; did you mean 'place'?"),
        ("", ["depth"], "override 'depth': expected table.key=value, for example run.seed=17"),
        ("note = 'x'", ["note.x=1"], "override 'note.x=1': 'note' is a value, not a table"),
        ("= 1", [], "not valid TOML"),
        ("threads = nan", [], "input should be"),
    ],
)
def test_one_sentence_for_each_mistake(tmp_path: Path, text: str, overrides: list[str], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, text, *overrides)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_problem_has_its_own_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, "thread = 1\n[place]\ndeph = 1\n")
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        config.load_config(Whole, str(tmp_path / "none.toml"))


def test_the_digest_covers_what_matters_only() -> None:
    base = Whole(parts=[Part(name="a")])
    assert config.digest(base) == config.digest(Whole(parts=[Part(name="a")], threads=9, place=Place(folder="there")))
    assert config.digest(base) != config.digest(Whole(parts=[Part(name="a", share=0.25)]))
    assert config.digest(base) != config.digest(Whole(parts=[Part(name="a")], place=Place(depth=4)))
    assert config.semantic(base) == {"place": {"depth": 3}, "parts": [{"name": "a", "share": 0.5}], "note": None}


def test_what_is_printed_loads_again(tmp_path: Path) -> None:
    original = Whole(parts=[Part(name="a"), Part(name="b", share=0.125)], place=Place(depth=9))
    assert load(tmp_path, config.to_toml(original)) == original


def test_values_do_not_change_after_loading() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        setattr(Whole(), "threads", 5)  # noqa: B010 - mypy already refuses the plain assignment
