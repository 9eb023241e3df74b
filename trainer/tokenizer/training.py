"""Training a vocabulary: the words of a corpus are counted, then the most frequent pair of neighbours is merged, again and again.

Both run compiled. Counting streams and is bounded (`WordCounts`); merging touches only the words that hold the pair, since each pair
keeps a list of them, and takes the next pair from a heap whose counts are brought up to date when they come to the top (a pair's count
only falls once the pair is there). Nothing depends on the order of the words or on a hash: equal counts are decided by the pair's text.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.content.kernels import Bytes, Text, compiled, text_buffers
from pipeline.contracts.cli import Progress
from trainer.tokenizer.bpe import END_OF_WORD, Int32s, Int64s, first_pieces
from trainer.tokenizer.words import CHARACTER_OF_BYTE, VOCABULARY_ORDER, character_classes, clean, next_word

Merges = list[tuple[str, str]]
Characters = npt.NDArray[np.uint16]

WORDS_LIMIT = 1 << 20
WORD_BYTES_LIMIT = 256
_LEAST_COUNT = 2
_MERGES_AT_ONCE = 512
_NONE = -1
_MIX = np.uint64(0x9E3779B97F4A7C15)
_MARK = np.array([ord(character) for character in END_OF_WORD], np.uint16)
_FIRST_TEXT = 256 + 256 * (1 + len(END_OF_WORD))
"""Where the words' texts start, after those of the single bytes."""

# ---- counting


class _Table(NamedTuple):
    """Distinct words and their counts; word i is data[starts[i]:starts[i + 1]]."""

    data: Bytes
    starts: Int64s
    counts: Int64s
    slots: Int32s
    """Open addressing: numbers of words, -1 where there is none."""
    words: Int64s
    """int64[1]: how many words there are."""


class WordCounts:
    """How often each word occurs in captions, with a bound on memory (about 60 MB for a million words of Latin script).

    Exact up to `limit` distinct words. When one more comes, the least frequent words are dropped, so many counts from below that at most
    half of the table stays; a dropped word that comes again starts from 0. From then on the counts depend on the order of the captions,
    but not on how they are cut into batches. End marks are no words, and words of more than 256 bytes are passed over: garbage, or text
    without spaces that goes on for a hundred characters.
    """

    def __init__(self, limit: int = WORDS_LIMIT) -> None:
        self._limit = limit
        self._table = _empty_table(limit)

    def add(self, captions: Sequence[str]) -> None:
        """Count the words of some captions."""
        text = text_buffers(pa.array([clean(caption) for caption in captions], pa.large_string()))
        row, at = 0, 0
        while row < len(captions):
            self._make_room(len(text.data))
            row, at = _count(text, row, at, character_classes(), self._table)
            if row < len(captions):
                self._drop_the_rarest()

    def counts(self) -> dict[str, int]:
        """Every word with its count."""
        found = self._table.counts[: self._table.words[0]]
        return dict(zip(self._words().to_pylist(), found.tolist(), strict=True))

    def _words(self) -> pa.LargeStringArray:
        number = int(self._table.words[0])
        return pa.LargeStringArray.from_buffers(
            number, pa.py_buffer(self._table.starts[: number + 1]), pa.py_buffer(self._table.data)
        )

    def _make_room(self, size: int) -> None:
        table = self._table
        used = int(table.starts[table.words[0]])
        if used + size > len(table.data):
            data = np.empty(2 * (used + size), np.uint8)
            data[:used] = table.data[:used]
            self._table = table._replace(data=data)

    def _drop_the_rarest(self) -> None:
        number = int(self._table.words[0])
        counts = self._table.counts[:number]
        dropped = np.partition(counts, number - self._limit // 2 - 1)[number - self._limit // 2 - 1]
        stay = counts > dropped
        words = text_buffers(self._words().filter(pa.array(stay)))
        self._table = _empty_table(self._limit)
        self._make_room(len(words.data))
        _put_back(words, counts[stay], self._table)


def _empty_table(limit: int) -> _Table:
    slots = 1 << (2 * limit).bit_length()
    return _Table(
        np.empty(1 << 16, np.uint8),
        np.zeros(limit + 1, np.int64),
        np.zeros(limit, np.int64),
        np.full(slots, _NONE, np.int32),
        np.zeros(1, np.int64),
    )


@compiled
def _count(text: Text, row: int, at: int, classes: Bytes, table: _Table) -> tuple[int, int]:
    """Count from byte `at` of caption `row` on (0: from its start); gives the place of the first word without room, else (captions, 0)."""
    captions, captions_starts = text.data, text.starts
    data, starts, counts, slots = table.data, table.starts, table.counts, table.slots
    number = table.words[0]
    while row < len(captions_starts) - 1:
        at, end = max(at, captions_starts[row]), captions_starts[row + 1]
        while True:
            start, at, mark = next_word(captions, at, end, classes)
            if start == at:
                break
            if mark or at - start > WORD_BYTES_LIMIT:
                continue
            slot = _slot(captions, start, at, data, starts, slots)
            if slots[slot] == _NONE:
                if number == len(counts):
                    return row, start
                _put(captions, start, at, slot, number, data, starts, slots)
                counts[number] = 0
                number += 1
                table.words[0] = number
            counts[slots[slot]] += 1
        row += 1
    return row, 0


@compiled
def _put_back(words: Text, counts: Int64s, table: _Table) -> None:
    """Fill an empty table with distinct words."""
    for word in range(len(counts)):
        start, stop = words.starts[word], words.starts[word + 1]
        slot = _slot(words.data, start, stop, table.data, table.starts, table.slots)
        _put(words.data, start, stop, slot, word, table.data, table.starts, table.slots)
        table.counts[word] = counts[word]
    table.words[0] = len(counts)


@compiled
def _slot(text: Bytes, start: int, stop: int, data: Bytes, starts: Int64s, slots: Int32s) -> np.int64:
    """The slot of the word text[start:stop], or the empty one where it would be."""
    mixed = np.uint64(stop - start)
    for place in range(start, stop):
        mixed = (mixed ^ np.uint64(text[place])) * _MIX
    slot = np.int64(mixed >> np.uint64(32)) & (len(slots) - 1)
    while slots[slot] != _NONE:
        first = starts[slots[slot]]
        same, place = starts[slots[slot] + 1] - first == stop - start, 0
        while same and place < stop - start:
            same = data[first + place] == text[start + place]
            place += 1
        if same:
            break
        slot = (slot + 1) & (len(slots) - 1)
    return slot


@compiled
def _put(
    text: Bytes, start: int, stop: int, slot: int, number: int, data: Bytes, starts: Int64s, slots: Int32s
) -> None:
    first = starts[number]
    for place in range(stop - start):
        data[first + place] = text[start + place]
    starts[number + 1] = first + stop - start
    slots[slot] = number


# ---- merging
#
# The tables are plain arrays with one row a thing, so that a compiled function takes few of them.

_KEY, _COUNT, _NEWEST, _FOLLOWING = range(4)
"""Columns of `pairs`, int64[pairs, 4]: left id << 32 | right id; how often the pair stands in the corpus; the newest entry of the list of
words that hold or held it; the next pair of the same bucket."""
_ENTRY_WORD, _ENTRY_BEFORE = range(2)
"""Columns of `entries`, int32[entries, 2]: a word, and the entry before it on the same pair's list."""
_AT, _SIZE, _SAME_BUCKET = range(3)
"""Columns of `pieces`, int64[pieces, 3]: the piece's text is texts[at:at + size]; the next piece of the same bucket."""


class _State(NamedTuple):
    texts: Characters
    """Code points of the words in printable characters, each with the end-of-word mark; before them those of the 512 first pieces."""
    symbols: Int32s
    """Ids of the words' pieces; word i has `lengths[i]` from `starts[i]` on."""
    starts: Int64s
    lengths: Int32s
    weights: Int64s
    """How often each word stands in the corpus."""
    pieces: Int64s
    piece_buckets: Int32s
    pairs: Int64s
    pair_buckets: Int32s
    entries: Int32s
    heap: Int64s
    """int64[n, 2], a heap of (count, pair), the next to merge first; the count is that of the time when the pair was put in its place."""
    sizes: Int64s
    """int64[4]: how many pieces, pairs, entries there are, and how many are in the heap."""


_PIECES, _PAIRS, _ENTRIES, _WAITING = range(4)


def learn_merges(word_counts: Mapping[str, int], wanted: int, progress: Progress | None = None) -> Merges:
    """The first `wanted` merges: the most frequent pair of neighbours, ties to the pair first in code-point order.

    Fewer where no pair occurs twice any more. A pair that makes a piece which another pair has made before is left apart: a second id
    for the same text would be unreachable.
    """
    state = _first_state(word_counts, wanted)
    merged = np.empty((wanted, 2), np.int64)
    found = 0
    while found < wanted:
        more = _learn(state, merged[found : found + _MERGES_AT_ONCE])
        found += more
        if progress is not None:
            progress.update(more)
        if more < _MERGES_AT_ONCE:
            break
    pieces = first_pieces()
    merges: Merges = []
    for left, right in merged[:found].tolist():
        merges.append((pieces[left], pieces[right]))
        pieces.append(pieces[left] + pieces[right])
    return merges


def _first_state(word_counts: Mapping[str, int], wanted: int) -> _State:
    """The words as single bytes. Arrays are as large as they can become: a merge makes two pairs at most where it is applied, and there
    are fewer such places than bytes. What is never used of them costs no memory."""
    words = text_buffers(pa.array(list(word_counts), pa.large_string()))
    size = int(words.starts[-1])
    most, every_piece = 3 * size, 512 + wanted
    state = _State(
        texts=np.empty(_FIRST_TEXT + size + len(END_OF_WORD) * len(word_counts), np.uint16),
        symbols=np.empty(size, np.int32),
        starts=words.starts[:-1],
        lengths=np.diff(words.starts).astype(np.int32),
        weights=np.fromiter(word_counts.values(), np.int64, len(word_counts)),
        pieces=np.empty((every_piece, 3), np.int64),
        piece_buckets=np.full(1 << every_piece.bit_length(), _NONE, np.int32),
        pairs=np.empty((most, 4), np.int64),
        pair_buckets=np.full(1 << max(4, size.bit_length()), _NONE, np.int32),
        entries=np.empty((most, 2), np.int32),
        heap=np.empty((most, 2), np.int64),
        sizes=np.zeros(4, np.int64),
    )
    characters = np.array([ord(character) for character in CHARACTER_OF_BYTE], np.uint16)
    _start(words.data, np.array(VOCABULARY_ORDER, np.int32), characters, state)
    return state


@compiled
def _start(data: Bytes, order: Int32s, characters: Characters, state: _State) -> None:
    """The pieces that are there before any merge, the words in them, and the pairs of neighbours."""
    texts, symbols, starts, lengths, pieces, sizes = (
        state.texts,
        state.symbols,
        state.starts,
        state.lengths,
        state.pieces,
        state.sizes,
    )
    at = 0
    for piece in range(512):
        mark = len(_MARK) if piece >= 256 else 0
        texts[at] = characters[order[piece & 255]]
        texts[at + 1 : at + 1 + mark] = _MARK[:mark]
        pieces[piece, _AT], pieces[piece, _SIZE] = at, 1 + mark
        _enter(piece, pieces, state.piece_buckets, texts)
        at += 1 + mark
    sizes[_PIECES] = 512
    piece_of_byte = np.empty(256, np.int32)
    for piece in range(256):
        piece_of_byte[order[piece]] = piece
    for word in range(len(starts)):
        start, length = starts[word], lengths[word]
        for place in range(start, start + length):
            texts[at] = characters[data[place]]
            symbols[place] = piece_of_byte[data[place]]
            at += 1
        symbols[start + length - 1] += 256
        texts[at : at + len(_MARK)] = _MARK
        at += len(_MARK)
        for place in range(start, start + length - 1):
            _change(
                symbols[place],
                symbols[place + 1],
                state.weights[word],
                word,
                state.pairs,
                state.pair_buckets,
                state.entries,
                sizes,
            )
    for pair in range(sizes[_PAIRS]):
        _push(pair, state.heap, state.pairs, pieces, texts, sizes)


@compiled
def _learn(state: _State, merged: Int64s) -> int:
    """Fill the rows of `merged` with the next merges' two pieces; gives how many there were."""
    heap, pairs, pieces, texts, sizes = state.heap, state.pairs, state.pieces, state.texts, state.sizes
    found = 0
    while found < len(merged) and sizes[_WAITING] > 0:
        count, pair = heap[0, 0], heap[0, 1]
        if count != pairs[pair, _COUNT]:
            heap[0, 0] = pairs[pair, _COUNT]
            _sift_down(heap, pairs, pieces, texts, sizes)
            continue
        if count < _LEAST_COUNT:
            break
        sizes[_WAITING] -= 1
        heap[0] = heap[sizes[_WAITING]]
        _sift_down(heap, pairs, pieces, texts, sizes)
        left, right = pairs[pair, _KEY] >> 32, pairs[pair, _KEY] & 0xFFFFFFFF
        if _is_made(left, right, pieces, state.piece_buckets, texts):
            continue
        merged[found] = left, right
        found += 1
        first_new = sizes[_PAIRS]
        _apply(pair, state)
        for new in range(first_new, sizes[_PAIRS]):
            if pairs[new, _COUNT] > 0:
                _push(new, heap, pairs, pieces, texts, sizes)
    return found


@compiled
def _apply(pair: int, state: _State) -> None:
    """Merge the pair in every word that holds it, into a new piece, and bring the counts up to date."""
    symbols, pieces, sizes = state.symbols, state.pieces, state.sizes
    pairs, buckets, entries = state.pairs, state.pair_buckets, state.entries
    starts, lengths, weights = state.starts, state.lengths, state.weights
    left, right = pairs[pair, _KEY] >> 32, pairs[pair, _KEY] & 0xFFFFFFFF
    made = sizes[_PIECES]
    sizes[_PIECES] = made + 1
    pieces[made, _SIZE] = pieces[left, _SIZE] + pieces[right, _SIZE]
    entry = pairs[pair, _NEWEST]
    while entry != _NONE:
        word = np.int64(entries[entry, _ENTRY_WORD])
        weight, written, read = weights[word], starts[word], starts[word]
        end = read + lengths[word]
        at = _FIRST_TEXT + read + len(_MARK) * word
        while read < end:
            piece = np.int64(symbols[read])
            if piece == left and read + 1 < end and symbols[read + 1] == right:
                _change(left, right, -weight, word, pairs, buckets, entries, sizes)
                if written > starts[word]:
                    before = np.int64(symbols[written - 1])
                    _change(before, left, -weight, word, pairs, buckets, entries, sizes)
                    _change(before, made, weight, word, pairs, buckets, entries, sizes)
                if read + 2 < end:
                    after = np.int64(symbols[read + 2])
                    _change(right, after, -weight, word, pairs, buckets, entries, sizes)
                    _change(made, after, weight, word, pairs, buckets, entries, sizes)
                pieces[made, _AT] = at
                piece = made
                read += 1
            symbols[written] = piece
            at += pieces[piece, _SIZE]
            read += 1
            written += 1
        lengths[word] = written - starts[word]
        entry = np.int64(entries[entry, _ENTRY_BEFORE])
    _enter(made, pieces, state.piece_buckets, state.texts)


@compiled
def _change(
    left: int, right: int, weight: int, word: int, pairs: Int64s, buckets: Int32s, entries: Int32s, sizes: Int64s
) -> None:
    """Add to the count of a pair of neighbours in `word`; where it grows, the word goes on the pair's list."""
    key = np.int64(left) << 32 | np.int64(right)
    bucket = np.int64(np.uint64(key) * _MIX >> np.uint64(32)) & (len(buckets) - 1)
    pair = np.int64(buckets[bucket])
    while pair != _NONE and pairs[pair, _KEY] != key:
        pair = pairs[pair, _FOLLOWING]
    if pair == _NONE:
        pair = sizes[_PAIRS]
        sizes[_PAIRS] = pair + 1
        pairs[pair, _KEY], pairs[pair, _COUNT], pairs[pair, _NEWEST] = key, 0, _NONE
        pairs[pair, _FOLLOWING] = buckets[bucket]
        buckets[bucket] = pair
    pairs[pair, _COUNT] += weight
    newest = pairs[pair, _NEWEST]
    if weight > 0 and (newest == _NONE or entries[newest, _ENTRY_WORD] != word):
        entry = sizes[_ENTRIES]
        sizes[_ENTRIES] = entry + 1
        entries[entry, _ENTRY_WORD], entries[entry, _ENTRY_BEFORE] = word, newest
        pairs[pair, _NEWEST] = entry


# ---- merging: texts


@compiled
def _bucket_of(
    first: int, first_end: int, second: int, second_end: int, buckets: Int32s, texts: Characters
) -> np.int64:
    """The bucket of the text texts[first:first_end] + texts[second:second_end]."""
    mixed = np.uint64(0)
    for place in range(first, first_end):
        mixed = (mixed ^ np.uint64(texts[place])) * _MIX
    for place in range(second, second_end):
        mixed = (mixed ^ np.uint64(texts[place])) * _MIX
    return np.int64(mixed >> np.uint64(32)) & (len(buckets) - 1)


@compiled
def _enter(piece: int, pieces: Int64s, buckets: Int32s, texts: Characters) -> None:
    """Put a piece, whose text is known, into the table of texts."""
    at = pieces[piece, _AT]
    bucket = _bucket_of(at, at + pieces[piece, _SIZE], 0, 0, buckets, texts)
    pieces[piece, _SAME_BUCKET] = buckets[bucket]
    buckets[bucket] = piece


@compiled
def _is_made(left: int, right: int, pieces: Int64s, buckets: Int32s, texts: Characters) -> bool:
    """Whether some piece has the text that the two would make."""
    first, first_size, second, second_size = (
        pieces[left, _AT],
        pieces[left, _SIZE],
        pieces[right, _AT],
        pieces[right, _SIZE],
    )
    bucket = _bucket_of(first, first + first_size, second, second + second_size, buckets, texts)
    piece = np.int64(buckets[bucket])
    while piece != _NONE:
        same = pieces[piece, _SIZE] == first_size + second_size
        at = pieces[piece, _AT]
        for place in range(first_size):
            same = same and texts[at + place] == texts[first + place]
        for place in range(second_size):
            same = same and texts[at + first_size + place] == texts[second + place]
        if same:
            return True
        piece = pieces[piece, _SAME_BUCKET]
    return False


# ---- merging: the heap


@compiled
def _is_before(
    count: int, pair: int, rival_count: int, rival: int, pairs: Int64s, pieces: Int64s, texts: Characters
) -> bool:
    """Whether `pair` is merged before `rival`: the higher count, then the lower text."""
    if count != rival_count:
        return count > rival_count
    key, rival_key = pairs[pair, _KEY], pairs[rival, _KEY]
    if key >> 32 != rival_key >> 32:
        piece, other = key >> 32, rival_key >> 32
    else:
        piece, other = key & 0xFFFFFFFF, rival_key & 0xFFFFFFFF
    at, other_at = pieces[piece, _AT], pieces[other, _AT]
    size, other_size = pieces[piece, _SIZE], pieces[other, _SIZE]
    for place in range(min(size, other_size)):
        if texts[at + place] != texts[other_at + place]:
            return bool(texts[at + place] < texts[other_at + place])
    return bool(size < other_size)


@compiled
def _push(pair: int, heap: Int64s, pairs: Int64s, pieces: Int64s, texts: Characters, sizes: Int64s) -> None:
    place, count = sizes[_WAITING], pairs[pair, _COUNT]
    sizes[_WAITING] = place + 1
    while place:
        above = (place - 1) >> 1
        if not _is_before(count, pair, heap[above, 0], heap[above, 1], pairs, pieces, texts):
            break
        heap[place, 0], heap[place, 1] = heap[above, 0], heap[above, 1]
        place = above
    heap[place, 0], heap[place, 1] = count, pair


@compiled
def _sift_down(heap: Int64s, pairs: Int64s, pieces: Int64s, texts: Characters, sizes: Int64s) -> None:
    """Let the first entry sink to where it belongs."""
    place, size, count, pair = 0, sizes[_WAITING], heap[0, 0], heap[0, 1]
    while 2 * place + 1 < size:
        child = 2 * place + 1
        if child + 1 < size and _is_before(
            heap[child + 1, 0], heap[child + 1, 1], heap[child, 0], heap[child, 1], pairs, pieces, texts
        ):
            child += 1
        if not _is_before(heap[child, 0], heap[child, 1], count, pair, pairs, pieces, texts):
            break
        heap[place, 0], heap[place, 1] = heap[child, 0], heap[child, 1]
        place = child
    heap[place, 0], heap[place, 1] = count, pair
