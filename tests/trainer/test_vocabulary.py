"""Training a vocabulary: counts and merges against naive twins, the bound on memory, and the command."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.contracts import manifest as manifests
from pipeline.contracts.errors import InputError
from tests.trainer.naive_tokenizer import ANYTHING, CORPUS, naive_merges, naive_words
from trainer.data.shards import ShardCorpus
from trainer.tokenizer import load, train_vocabulary
from trainer.tokenizer.__main__ import main
from trainer.tokenizer.training import WordCounts, learn_merges


def naive_counts(texts: Sequence[str], limit: int) -> Counter[str]:
    """Count one word after the other; where one too many comes, all go that stand as often as the least frequent half."""
    found: Counter[str] = Counter()
    for text in texts:
        for word in naive_words(text):
            if word in ("<|startoftext|>", "<|endoftext|>") or len(word.encode()) > 256:
                continue
            if word not in found and len(found) == limit:
                rarest = sorted(found.values())[limit - limit // 2 - 1]
                found = Counter({kept: count for kept, count in found.items() if count > rarest})
            found[word] += 1
    return found


@given(st.lists(ANYTHING, max_size=8), st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_words_are_counted_as_the_expression_finds_them(texts: list[str], batch: int) -> None:
    counter = WordCounts()
    for start in range(0, len(texts), batch):
        counter.add(texts[start : start + batch])
    assert counter.counts() == naive_counts(texts, 1 << 20)


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 30))
@settings(max_examples=150, deadline=None)
def test_a_full_table_drops_the_rarest_wherever_batches_end(seed: int, limit: int, batch: int) -> None:
    draws = random.Random(seed)
    words = [first + second for first in "abcdefgh" for second in "stuvwxyz"]
    weights = [1 / (1 + place) for place in range(len(words))]
    texts = [" ".join(draws.choices(words, weights, k=draws.randrange(6))) for _ in range(120)]
    counter = WordCounts(limit)
    for start in range(0, len(texts), batch):
        counter.add(texts[start : start + batch])
        assert len(counter.counts()) <= limit
    assert counter.counts() == naive_counts(texts, limit)


def test_words_without_end_are_passed_over() -> None:
    counter = WordCounts()
    counter.add(["x" * 256, "y" * 257, "<|endoftext|> z <|startoftext|>", "é" * 128, "é" * 129])
    assert counter.counts() == {"x" * 256: 1, "z": 1, "é" * 128: 1}


def test_captions_of_the_web_are_counted_and_merged_as_the_naive_twins_do(real_data: Path) -> None:
    table = pq.read_table(real_data / "tables" / "laion_10k.parquet", columns=["TEXT"])
    texts = table["TEXT"].drop_null().to_pylist()
    counter = WordCounts()
    counter.add(texts)
    counts = Counter(counter.counts())
    assert counts == naive_counts(texts, 1 << 20)
    assert len(counts) > 10_000
    few = Counter(dict(counts.most_common(1500)))
    assert learn_merges(few, 250) == naive_merges(few, 250)


@given(st.dictionaries(st.text("ab</w>c", min_size=1, max_size=9), st.integers(1, 6), max_size=12))
@settings(max_examples=200, deadline=None)
def test_ties_and_pieces_that_look_alike_merge_as_the_naive_twin(counts: dict[str, int]) -> None:
    """Small counts tie all the time; a word that spells the end-of-word mark makes pieces whose text is there already."""
    assert learn_merges(counts, 60) == naive_merges(Counter(counts), 60)


def test_the_order_of_the_words_does_not_matter() -> None:
    draws = random.Random(4)
    counts = {"".join(draws.choices("abcdé", k=draws.randrange(1, 12))): draws.randrange(1, 50) for _ in range(3000)}
    turned = dict(sorted(counts.items(), reverse=True))
    merges = learn_merges(counts, 1500)
    assert len(merges) == 1500
    assert learn_merges(turned, 1500) == merges
    assert learn_merges(counts, 700) == merges[:700]


def test_training_is_deterministic_and_stops_when_nothing_repeats(tmp_path: Path) -> None:
    first, second = str(tmp_path / "a.json"), str(tmp_path / "b.json")
    size = train_vocabulary(CORPUS, 540, first)
    assert size == 540
    assert train_vocabulary(reversed(CORPUS), 540, second) == 540
    assert Path(first).read_bytes() == Path(second).read_bytes()
    all_of_it = train_vocabulary(CORPUS, 49_408, second)
    assert 540 < all_of_it < 600
    assert load("bpe", vocab=second).vocab_size == all_of_it
    with pytest.raises(InputError, match="less than the 514"):
        train_vocabulary(CORPUS, 513, second)
    with pytest.raises(InputError, match="1000000000000 is more than 1,048,576"):
        train_vocabulary(CORPUS, 10**12, second)
    assert train_vocabulary([], 600, second) == 514
    assert load("bpe", vocab=second).decode(load("bpe", vocab=second).encode("Any thing é")) == "any thing é"


def test_the_command_trains_what_a_run_would(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, expected = tmp_path / "new" / "own.json", tmp_path / "expected.json"
    assert main(["train", "--manifest", str(corpus), "--size", "600", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    size = train_vocabulary(ShardCorpus(str(corpus), manifests.load(str(corpus))).captions(), 600, str(expected))
    assert out.read_bytes() == expected.read_bytes()
    assert 514 < len(json.loads(out.read_text())["merges"]) + 514 == size <= 600
    assert f"{out}: {size} ids" in said
    assert f"tokenizer.kind=bpe tokenizer.vocab={out} model.vocab_size={size}" in said


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("file/own.json", "a part of the path is a file|is a file, not a folder"),
        ("folder", "--out: .*folder' is a folder; name the file that the vocabulary goes to"),
        ("gs://bucket/own.json", "--out: 'gs://bucket/.*: unknown kind of place"),
        ("s3://", "--out: 's3://': no bucket"),
    ],
)
def test_where_a_vocabulary_cannot_go_is_said_before_captions_are_counted(
    out: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The corpus is not there either, which is said later."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=said):
        main(["train", "--manifest", str(tmp_path / "nothing"), "--out", out])
