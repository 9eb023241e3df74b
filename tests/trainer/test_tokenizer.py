"""The tokenizer against ids that the reference gave, and against a naive twin."""

import concurrent.futures
import gzip
import importlib.machinery
import json
import pickle
import random
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.contracts.errors import InputError
from tests.trainer.naive_tokenizer import ANYTHING, CORPUS, NaiveTokenizer, naive_merges, naive_words
from trainer.tokenizer import Tokenizer, load, train_vocabulary
from trainer.tokenizer.bpe import _REMEMBERED
from trainer.tokenizer.training import learn_merges
from trainer.tokenizer.words import CHARACTER_OF_BYTE

MERGES = "bpe_simple_vocab_16e6.txt.gz"


@pytest.fixture(scope="module")
def openai_vocabulary(real_data: Path) -> str:
    return str(real_data / "tokenizers" / MERGES)


@pytest.fixture(scope="module")
def openai(openai_vocabulary: str) -> Tokenizer:
    return load("openai", openai_vocabulary)


def test_every_golden_id_is_equal(openai: Tokenizer, real_data: Path) -> None:
    with gzip.open(real_data / "tokenizers" / "golden_clip_bpe_emoji_en.jsonl.gz", "rt") as lines:
        golden = [json.loads(line) for line in lines]
    assert len(golden) > 7000
    rows = openai([row["text"] for row in golden])
    assert rows.shape == (len(golden), 77)
    for row, found in zip(golden, rows.tolist(), strict=True):
        assert found == row["ids"] + [0] * (77 - len(row["ids"])), row["text"]


def test_published_cases_equal_openais_reference(openai: Tokenizer, real_data: Path) -> None:
    cases = json.loads((real_data / "tokenizers" / "clip_bpe_published_ids.json").read_text())
    assert len(cases) >= 25
    for case in cases:
        assert [openai.sot, *openai.encode(case["text"]), openai.eot] == case["openai_reference_ids"], case["name"]


def test_captions_of_the_web_equal_the_naive_twin(openai: Tokenizer, openai_vocabulary: str, real_data: Path) -> None:
    lines = gzip.decompress(Path(openai_vocabulary).read_bytes()).decode().split("\n")
    twin = NaiveTokenizer([(line.split()[0], line.split()[1]) for line in lines[1 : 49152 - 256 - 2 + 1]])
    with gzip.open(real_data / "tables" / "cc3m_val.tsv.gz", "rt") as rows:
        captions = [row.split("\t")[0] for row in rows][:1500:10]
    laion = pq.read_table(real_data / "tables" / "laion_10k.parquet", columns=["TEXT"])["TEXT"].drop_null().to_pylist()
    captions += [caption for caption in laion if not caption.isascii()][::8]
    captions += [
        "\u00e2\u0080\u0099tis",
        "&amp;amp; &lt;b&gt;",
        "A\tB\x1fC\u00a0D",
        "x" * 300,
        "<|endoftext|> <|STARTOFTEXT|> <|\u017ftartoftext|>",
    ]
    for caption in captions:
        assert openai.encode(caption) == twin.encode(caption), caption


SMALL = learn_merges(Counter(word for line in CORPUS for word in naive_words(line)), 120)


@given(ANYTHING, st.integers(3, 80))
@settings(max_examples=400, deadline=None)
def test_any_text_gives_the_naive_twins_ids(text: str, length: int) -> None:
    tokenizer, expected = Tokenizer(SMALL, context_length=length), NaiveTokenizer(SMALL).encode(text)
    assert tokenizer.encode(text) == expected
    row = [tokenizer.sot, *expected[: length - 2], tokenizer.eot]
    assert tokenizer([text, "", text]).tolist() == [
        row + [0] * (length - len(row)),
        [tokenizer.sot, tokenizer.eot] + [0] * (length - 2),
        row + [0] * (length - len(row)),
    ]


@given(st.text(alphabet="abcde' 1!é", min_size=1, max_size=120), st.integers(0, 60))
@settings(max_examples=200, deadline=None)
def test_short_and_long_words_merge_as_the_naive_twin(text: str, wanted: int) -> None:
    counts = Counter(word for line in [*CORPUS, text, text.replace(" ", "")] for word in naive_words(line))
    merges = learn_merges(counts, wanted)
    assert merges == naive_merges(counts, wanted)
    tokenizer, twin = Tokenizer(merges), NaiveTokenizer(merges)
    for line in (text, text.replace(" ", "") * 3):
        assert tokenizer.encode(line) == twin.encode(line)


def test_more_words_than_are_remembered(openai: Tokenizer) -> None:
    """Words that drive one another out of the memory keep their ids; those of 30 to 33 bytes lie at its bound."""
    draws = random.Random(8)
    words = [
        "".join(draws.choices("abcdefgh", k=draws.choice((2, 3, 5, 6, 7, 30, 31, 32, 33)))) for _ in range(150_000)
    ]
    assert len(set(words)) > 1.5 * _REMEMBERED
    first = openai(words)
    again = openai(words[::-1]).flip(0)
    assert torch.equal(first, again)
    assert [openai.decode(row) for row in first[:2000]] == words[:2000]
    alone = Tokenizer(SMALL)
    twin = NaiveTokenizer(SMALL)
    assert [alone.encode(word) for word in words[:500]] == [twin.encode(word) for word in words[:500]]


def test_threads_share_a_tokenizer(openai: Tokenizer) -> None:
    draws = random.Random(9)
    words = ["".join(draws.choices("abcdefgh", k=6)) for _ in range(60_000)]
    parts = [words[start : start + 300] for start in range(0, len(words), 300)]
    expected = [openai(part) for part in parts]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        for found, wanted in zip(threads.map(openai, parts), expected, strict=True):
            assert torch.equal(found, wanted)


def test_a_tokenizer_can_be_sent_to_another_process(openai: Tokenizer) -> None:
    sent = pickle.loads(pickle.dumps(openai))
    assert torch.equal(sent(CORPUS), openai(CORPUS))
    assert torch.equal(sent(CORPUS), openai(CORPUS))


def test_an_endless_word_is_quick() -> None:
    letters = "".join(random.Random(5).choices("abcdefgh", k=200_000))
    tokenizer = Tokenizer(learn_merges(Counter(naive_words(letters[:2000])), 400))
    ids = tokenizer.encode(letters)
    assert tokenizer.decode(ids) == letters
    assert len(ids) < 120_000


def test_rows_are_cut_padded_and_closed(tmp_path: Path) -> None:
    path = str(tmp_path / "own.json")
    size = train_vocabulary(CORPUS, 600, path)
    tokenizer = load("bpe", vocab=path, context_length=6)
    assert tokenizer.vocab_size == size
    assert (tokenizer.sot, tokenizer.eot) == (size - 2, size - 1)
    rows = tokenizer(["", "a", "a red circle left of a blue square and more"])
    assert rows.dtype == torch.int64
    assert rows.shape == (3, 6)
    assert rows[0].tolist() == [size - 2, size - 1, 0, 0, 0, 0]
    assert rows[:, 0].tolist() == [size - 2] * 3
    assert rows[2, 5] == size - 1
    assert rows.max() == size - 1
    assert rows.argmax(1).tolist() == [1, 2, 5]
    assert tokenizer("one caption").shape == (1, 6)
    assert tokenizer([]).shape == (0, 6)


def test_decoding_gives_the_cleaned_text_back(tmp_path: Path) -> None:
    path = str(tmp_path / "own.json")
    train_vocabulary(CORPUS, 700, path)
    tokenizer = load("bpe", vocab=path)
    assert tokenizer.decode(tokenizer("A  red CIRCLE 日本語 ☃")[0]) == "a red circle 日本語 ☃"
    with pytest.raises(ValueError, match="outside the vocabulary"):
        tokenizer.decode([10_000])


def synthetic_openai_file() -> str:
    """A file of OpenAI's shape and size: every pair of byte characters, which any vocabulary may start with."""
    pairs = [f"{a} {b}" for a in CHARACTER_OF_BYTE for b in CHARACTER_OF_BYTE]
    return "\n".join(["#version: 0.2", *pairs])


@pytest.mark.parametrize("packed", [True, False])
def test_an_installed_open_clip_lends_its_file_unimported(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "open_clip"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    data = synthetic_openai_file().encode()
    (package / MERGES).write_bytes(gzip.compress(data) if packed else data)
    tokenizer = load("openai")
    assert tokenizer.vocab_size == 49_408
    assert "open_clip" not in sys.modules


def test_without_open_clip_a_path_is_asked_for() -> None:
    if importlib.machinery.PathFinder.find_spec("open_clip") is not None:
        pytest.skip("open_clip is installed here")
    with pytest.raises(InputError, match="give the path of that file"):
        load("openai")


OWN = b'{"format": "byte-pair merges, version 1", "merges": [%s]}'


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("openai", b"#version\na b\nc d e\n", "line 3 is 'c d e', not a pair"),
        ("openai", b"#version\na b", "1 merges, not 48,894"),
        ("openai", b"\xff\xfe", "not UTF-8"),
        ("openai", gzip.compress(b"#version\na b\n", mtime=0)[:-9], "broken gzip"),
        ("openai", gzip.compress(bytes(65 << 20)), "bytes unpacked"),
        ("openai", synthetic_openai_file().replace("! #", "zz #").encode() + b"\n", "does not follow"),
        ("bpe", b"\x80\x04\x95pickle", "not a vocabulary of format"),
        ("bpe", b'{"merges": []}', "not a vocabulary of format"),
        ("bpe", b"[" * 100_000, "not a vocabulary of format"),
        ("bpe", b'{"format": "byte-pair merges, version 1", "merges": [["a", 1]]}', "merge 1 is"),
        ("bpe", b'{"format": "byte-pair merges, version 1", "merges": [["ab", "c"]]}', "does not follow"),
        ("bpe", b'{"format": "byte-pair merges, version 1", "merges": [["a</w>", "b"]]}', "does not follow"),
        ("bpe", b'{"format": "byte-pair merges, version 1", "merges": [["a", "b"], ["a", "b"]]}', "does not follow"),
        ("wordpiece", b"", "kind: 'wordpiece' is unknown"),
    ],
)
def test_files_that_are_no_vocabulary(kind: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "vocabulary"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load(kind, vocab=str(path))


@pytest.mark.parametrize("many", ["[],", "[", '{"a":0},'])
def test_more_values_than_a_vocabulary_has_are_not_made(many: str, tmp_path: Path) -> None:
    path = tmp_path / "vocabulary"
    path.write_bytes(OWN % (many.encode() * 5_000_000))
    with pytest.raises(InputError, match="brackets and commas, more than a vocabulary of 1,048,576 ids has"):
        load("bpe", vocab=str(path))


@pytest.mark.parametrize("kind", ["openai", "bpe"])
def test_a_piece_without_end_is_not_printed(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "vocabulary"
    piece = "a" * 5_000_000
    own = OWN % json.dumps([piece, "b"]).encode()
    path.write_bytes(own if kind == "bpe" else synthetic_openai_file().replace("! #", f"{piece} #", 1).encode() + b"\n")
    with pytest.raises(InputError, match="does not follow") as caught:
        load(kind, vocab=str(path))
    assert len(str(caught.value)) < 400 + len(str(path))


def test_missing_files_and_lengths(tmp_path: Path) -> None:
    for kind in ("openai", "bpe"):
        with pytest.raises(InputError, match="nowhere"):
            load(kind, vocab=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="reads a file"):
        load("bpe")
    with pytest.raises(InputError, match="use 3 or more"):
        Tokenizer([], context_length=2)
