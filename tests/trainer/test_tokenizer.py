"""The tokenizer against ids that the reference gave, and against a twin that follows OpenAI's description with strings and no shortcut."""

import gzip
import html
import importlib.machinery
import itertools
import json
import random
import sys
from collections import Counter
from pathlib import Path

import ftfy
import pytest
import regex
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.contracts.errors import InputError
from trainer.tokenizer import Tokenizer, load, train_vocabulary
from trainer.tokenizer.vocabulary import learn_merges
from trainer.tokenizer.words import CHARACTER_OF_BYTE, VOCABULARY_ORDER, clean

MERGES = "bpe_simple_vocab_16e6.txt.gz"
CORPUS = [
    "a red circle left of a blue square",
    "two blue circles above the red square",
    "the reddest of all squares isn't square",
    "Größe 42 &amp; naïve café 日本語 日本語 日本語",
    "photo_photo_photo no.7 of 100 circles!!! !!!",
]


def naive_clean(text: str) -> str:
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return str(regex.sub(r"\s+", " ", text)).strip().lower()


def naive_words(text: str) -> list[str]:
    pattern = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    return [str(word) for word in regex.findall(pattern, naive_clean(text), regex.IGNORECASE)]


def naive_pieces(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Merge the neighbours of the lowest rank, everywhere from the left, until none has a rank."""
    pieces = [CHARACTER_OF_BYTE[byte] for byte in word.encode()]
    pieces[-1] += "</w>"
    while True:
        ranked = [pair for pair in itertools.pairwise(pieces) if pair in ranks]
        if not ranked:
            return pieces
        best = min(ranked, key=lambda pair: ranks[pair])
        place = 0
        while place < len(pieces) - 1:
            if (pieces[place], pieces[place + 1]) == best:
                pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
            place += 1


def naive_ids(text: str, merges: list[tuple[str, str]]) -> list[int]:
    singles = [CHARACTER_OF_BYTE[byte] for byte in VOCABULARY_ORDER]
    vocabulary = [*singles, *(single + "</w>" for single in singles), *(a + b for a, b in merges)]
    numbers = {piece: place for place, piece in enumerate([*vocabulary, "<|startoftext|>", "<|endoftext|>"])}
    ranks = {pair: place for place, pair in enumerate(merges)}
    found = []
    for word in naive_words(text):
        if word in numbers and word.startswith("<|"):
            found.append(numbers[word])
        else:
            found += [numbers[piece] for piece in naive_pieces(word, ranks)]
    return found


def naive_merges(counts: Counter[str], wanted: int) -> list[tuple[str, str]]:
    """Count every pair anew for every merge."""
    words = {word: naive_pieces(word, {}) for word in counts}
    merges: list[tuple[str, str]] = []
    made = {piece for byte in CHARACTER_OF_BYTE for piece in (byte, byte + "</w>")}
    while len(merges) < wanted:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in words.items():
            for pair in itertools.pairwise(pieces):
                if pair[0] + pair[1] not in made:
                    pairs[pair] += counts[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < 2:
            break
        merges.append(best)
        made.add(best[0] + best[1])
        # A pair that only another route could have made stays apart, as in the tokenizer.
        ranks = {pair: place for place, pair in enumerate(merges)}
        words = {word: naive_pieces(word, ranks) for word in counts}
    return merges


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
    merges = [
        tuple(line.split()) for line in gzip.decompress(Path(openai_vocabulary).read_bytes()).decode().split("\n")
    ]
    pairs = [(line[0], line[1]) for line in merges[1 : 49152 - 256 - 2 + 1]]
    with gzip.open(real_data / "tables" / "cc3m_val.tsv.gz", "rt") as lines:
        captions = [line.split("\t")[0] for line in lines][:1500:10]
    captions += [
        "\u00e2\u0080\u0099tis",
        "&amp;amp; &lt;b&gt;",
        "A\tB\x1fC\u00a0D",
        "x" * 300,
        "<|endoftext|> <|STARTOFTEXT|>",
    ]
    singles = [CHARACTER_OF_BYTE[byte] for byte in VOCABULARY_ORDER]
    vocabulary = [*singles, *(single + "</w>" for single in singles), *(a + b for a, b in pairs)]
    numbers = {piece: place for place, piece in enumerate([*vocabulary, "<|startoftext|>", "<|endoftext|>"])}
    ranks = {pair: place for place, pair in enumerate(pairs)}
    for caption in captions:
        expected = []
        for word in naive_words(caption):
            expected += (
                [numbers[word]]
                if word in numbers and word.startswith("<|")
                else [numbers[piece] for piece in naive_pieces(word, ranks)]
            )
        assert openai.encode(caption) == expected, caption


@given(st.text(max_size=40) | st.text(alphabet=st.characters(max_codepoint=127), max_size=60))
@settings(max_examples=300, deadline=None)
def test_cleaning_takes_its_shortcut_only_where_nothing_changes(text: str) -> None:
    assert clean(text) == naive_clean(text)


@given(st.text(alphabet="abcde' 1!é", min_size=1, max_size=120), st.integers(0, 60))
@settings(max_examples=200, deadline=None)
def test_short_and_long_words_merge_as_the_naive_twin(text: str, wanted: int) -> None:
    counts = Counter(word for line in [*CORPUS, text, text.replace(" ", "")] for word in naive_words(line))
    merges = learn_merges(counts, wanted)
    assert merges == naive_merges(counts, wanted)
    tokenizer = Tokenizer(merges)
    for line in (text, text.replace(" ", "") * 3):
        assert tokenizer.encode(line) == naive_ids(line, merges)


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


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("openai", b"#version\na b\nc d e\n", "line 3 is 'c d e', not a pair"),
        ("openai", b"#version\na b", "1 merges, not 48,894"),
        ("openai", b"\xff\xfe", "not UTF-8"),
        ("openai", gzip.compress(b"#version\na b\n")[:-9], "broken gzip"),
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


def test_missing_files_and_lengths(tmp_path: Path) -> None:
    for kind in ("openai", "bpe"):
        with pytest.raises(InputError, match="nowhere"):
            load(kind, vocab=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="reads a file"):
        load("bpe")
    with pytest.raises(InputError, match="use 3 or more"):
        Tokenizer([], context_length=2)
