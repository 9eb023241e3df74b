"""Which of half a million phrases stand in a text as whole tokens: tables, and compiled loops over Arrow buffers.

A text is cut into tokens: what stands between two spaces, and where `cut` says so one character of a script without spaces. A hash of every
prefix of the text gives the hash of any run of tokens in one multiplication. One table leads from a token to the lengths (in tokens) of the
phrases that begin with it, another from the hash of a phrase to the phrase, whose bytes are then compared: hashes never decide. So a
position in a text costs one look-up and one more for each possible length, however many phrases there are.

Nearly every look-up misses the cache, so a block of texts goes through the look-ups together, one kind at a time: the processor then waits
for ten of them at once (measured: twice as fast as text by text). That is why each step below sums what the next one will read: the loads
of the sum are what brings it into the cache.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.content.kernels import Bytes, Text, code_point, compiled, text_buffers
from pipeline.content.scripts import spaceless_points

_Words = npt.NDArray[np.uint64]
_Places = npt.NDArray[np.int64]
_Ids = npt.NDArray[np.int32]


class Phrases(NamedTuple):
    """The texts of phrases and the ways to them. Phrases with the same text share one.

    Open addressing by a hash, 0 where a slot is empty:

    heads: by a first token, uint64 (slots, 2). In the halves of the first word, high and low: its hash's high half, made odd; the lengths
    of the texts in `longer` that begin with it (bit n - 1: n tokens; bit 31: some of `long_lengths`). In those of the second: 1 + the
    answer of the text that is this token alone (0: none), and where that one begins in `texts`.
    longer: by a text of several tokens, uint64 (slots, 2): its hash; its answer in the high half, its place in `texts` in the low one. A
    text of one token is here too when `heads` takes its token for another.
    An answer is the phrase whose text it is, and where there are several of them _SHARED | the number of the text.
    sieve: a bit for each hash of `longer`, modulo its size: most look-ups end here, in a megabyte that stays in the cache.
    """

    texts: Bytes  # each ends with _END
    members: _Ids  # phrases, by text: text i has those from `member_starts[i]` on
    member_starts: _Places
    heads: _Words
    longer: _Words
    sieve: _Words
    long_lengths: _Places  # lengths of 32 tokens and more
    powers: _Words  # of the hash's base, up to the bytes of the longest text


def build(phrases: pa.Array, usable: npt.NDArray[np.bool_], cut: bool) -> Phrases:
    """Tables of the phrases (string array) that are `usable`; what stands in a text is told by their indices."""
    coded = phrases.dictionary_encode()
    # Short texts are found most: side by side they stay in the cache.
    order = np.argsort(pc.binary_length(coded.dictionary).to_numpy(zero_copy_only=False), kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    dictionary = coded.dictionary.take(pa.array(order))
    number = place[coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)]
    members = np.flatnonzero(usable)
    members = members[np.argsort(number[members], kind="stable")]
    sizes_of = np.bincount(number[members], minlength=len(dictionary))
    texts = Text(*_ended(*text_buffers(dictionary)))
    longest = int(np.diff(texts.starts).max(initial=1)) - 1
    powers = np.full(longest + 1, _BASE, np.uint64)
    powers[0] = 1
    member_starts = np.concatenate([[0], np.cumsum(sizes_of)]).astype(np.int64)
    answers = np.arange(len(sizes_of), dtype=np.uint32) | _SHARED
    answers[sizes_of == 1] = members[member_starts[:-1][sizes_of == 1]]
    firsts = np.unique(_head_hashes(*texts, spaceless_points(), cut, longest))
    # Few texts begin with a new token: a table of that size is looked up in the cache, where one for all texts is not.
    heads, longer = (np.zeros((_slots(count), 2), np.uint64) for count in (len(firsts), len(sizes_of)))
    sieve, has_long = np.zeros(len(longer) // 8, np.uint64), np.zeros(longest + 2, np.bool_)
    _fill(*texts, sizes_of > 0, answers, spaceless_points(), cut, heads, longer, sieve, has_long)
    tables = Phrases(
        texts.data,
        members.astype(np.int32),
        member_starts,
        heads,
        longer,
        sieve,
        np.flatnonzero(has_long),
        np.multiply.accumulate(powers),
    )
    for array in tables:
        array.setflags(write=False)  # as they are when they come back from Ray: one compiled loop for both
    return tables


def _slots(count: int) -> int:
    """A power of two that `count` entries fill to two thirds at most."""
    return 1 << max(4, (3 * count // 2).bit_length())


def find(text: Text, phrases: Phrases, cut: bool) -> pa.Array:
    """For each row of the text the sorted indices of the phrases in it, every overlapping one: list<int32>. `cut` as for `build`."""
    rows = len(text.starts) - 1
    # Room that stays untouched costs nothing; what is outgrown is copied.
    found, starts = np.empty(32 * rows + 64, np.int32), np.zeros(rows + 1, np.int32)
    row = 0
    while (row := _find(*text, phrases, spaceless_points(), cut, row, found, starts)[0]) < rows:
        found = np.concatenate([found, np.empty_like(found)])
    return pa.ListArray.from_arrays(pa.array(starts), pa.array(found[: starts[-1]]))


# ---- kernels

_BASE = np.uint64(0x9E3779B97F4A7C15)  # of the polynomial hash; odd
_SHARED = np.uint32(1 << 31)  # the sign of an answer as int32
_END = np.uint8(0xFF)  # behind each text: no byte of UTF-8
_BLOCK_BYTES = 8192
_RANKED = 64  # values that are sorted by rank
_NO_ID = np.int32(0x7FFFFFFF)  # no phrase, and as an answer greater than all
_LOW_HALF = np.uint64(0xFFFFFFFF)


@compiled
def _mixed(value: np.uint64) -> np.uint64:
    """A bijection that spreads the hash over the low bits (the finalizer of MurmurHash3, A. Appleby, public domain); never 0."""
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xFF51AFD7ED558CCD)
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xC4CEB9FE1A85EC53)
    value ^= value >> np.uint64(33)
    return value if value else np.uint64(1)


@compiled
def _hash_prefixes(data: Bytes, start: int, end: int, prefixes: _Words) -> None:
    """Polynomial hashes of `data[start:start + n]`, into `prefixes[n]`."""
    hashed = np.uint64(0)
    prefixes[0] = hashed
    for at in range(start, end):
        hashed = hashed * _BASE + np.uint64(data[at]) + np.uint64(1)
        prefixes[at - start + 1] = hashed


@compiled
def cut_tokens(
    data: Bytes,
    start: int,
    end: int,
    spaceless: npt.NDArray[np.bool_],
    cut: bool,
    tokens: _Places,
    count: int,
) -> int:
    """Where the tokens of a text begin and end, into `tokens[count:, 2]`; returns the new count. Between two spaces is always a token."""
    begin, at = start, start
    after_cut = False  # the last token was one character, so that what follows it without a space begins another
    while at < end:
        byte = data[at]
        if byte == 32:
            if not after_cut:
                tokens[count, 0], tokens[count, 1] = begin, at
                count += 1
            at += 1
            begin, after_cut = at, False
        elif cut and byte >= 0xE0:
            point, length = code_point(data, at, end)
            if spaceless[point]:
                if at > begin:
                    tokens[count, 0], tokens[count, 1] = begin, at
                    count += 1
                tokens[count, 0], tokens[count, 1] = at, at + length
                count += 1
                begin = at + length
            after_cut = spaceless[point]
            at += length
        else:
            at += 1
            after_cut = False
    if not after_cut:
        tokens[count, 0], tokens[count, 1] = begin, end
        count += 1
    return count


@compiled
def _head_hashes(
    texts: Bytes, starts: _Places, spaceless: npt.NDArray[np.bool_], cut: bool, longest: int
) -> npt.NDArray[np.uint64]:
    """The hash of each text's first token."""
    hashes = np.empty(len(starts) - 1, np.uint64)
    prefixes = np.empty(longest + 2, np.uint64)
    tokens = np.empty((longest + 2, 2), np.int64)
    for text in range(len(hashes)):
        start, end = starts[text], starts[text + 1] - 1
        cut_tokens(texts, start, end, spaceless, cut, tokens, 0)
        _hash_prefixes(texts, start, tokens[0, 1], prefixes)
        hashes[text] = _mixed(prefixes[tokens[0, 1] - start])
    return hashes


@compiled
def _fill(
    texts: Bytes,
    starts: _Places,
    used: npt.NDArray[np.bool_],
    answers: npt.NDArray[np.uint32],
    spaceless: npt.NDArray[np.bool_],
    cut: bool,
    heads: _Words,
    longer: _Words,
    sieve: _Words,
    has_long: npt.NDArray[np.bool_],
) -> None:
    """Enter every used text into the tables."""
    prefixes = np.empty(len(has_long), np.uint64)
    tokens = np.empty((len(has_long), 2), np.int64)
    last = np.uint64(len(longer) - 1)
    for text in range(len(starts) - 1):
        if not used[text]:
            continue
        start, end = starts[text], starts[text + 1] - 1
        _hash_prefixes(texts, start, end, prefixes)
        count = cut_tokens(texts, start, end, spaceless, cut, tokens, 0)
        head = _mixed(prefixes[tokens[0, 1] - start])
        slot = _head_slot(heads, head)
        heads[slot, 0] |= (head >> np.uint64(32) | np.uint64(1)) << np.uint64(32)
        if count == 1 and heads[slot, 1] == 0:
            heads[slot, 1] = (np.uint64(answers[text]) + np.uint64(1)) << np.uint64(32) | np.uint64(start)
            continue
        heads[slot, 0] |= np.uint64(1) << np.uint64(min(count, 32) - 1)
        has_long[count] |= count > 31
        whole = _mixed(prefixes[end - start])
        bit = whole & np.uint64(64 * len(sieve) - 1)
        sieve[bit >> np.uint64(6)] |= np.uint64(1) << (bit & np.uint64(63))
        slot = whole & last
        while longer[slot, 0] != 0:
            slot = (slot + np.uint64(1)) & last
        longer[slot, 0], longer[slot, 1] = whole, np.uint64(answers[text]) << np.uint64(32) | np.uint64(start)


@compiled
def _head_slot(heads: _Words, token_hash: np.uint64) -> np.uint64:
    """The slot of a token in `heads`, or the empty one where it would be."""
    last = np.uint64(len(heads) - 1)
    slot, tag = token_hash & last, token_hash >> np.uint64(32) | np.uint64(1)
    while heads[slot, 0] >> np.uint64(32) != tag and heads[slot, 0] != 0:
        slot = (slot + np.uint64(1)) & last
    return slot


@compiled
def _is_text(texts: Bytes, place: int, data: Bytes, begin: int, size: int) -> bool:
    """Whether the text at `place` is the `size` bytes of `data` from `begin` on."""
    for at in range(size):
        if texts[place + at] != data[begin + at]:
            return False
    return bool(texts[place + size] == _END)


@compiled
def _find(
    data: Bytes,
    starts: _Places,
    phrases: Phrases,
    spaceless: npt.NDArray[np.bool_],
    cut: bool,
    row: int,
    out: _Ids,
    out_starts: _Ids,
) -> tuple[int, np.uint64]:
    """Write the phrases of rows `row`.. into `out`; returns the row that found no room, or the number of rows, and a number that means
    nothing (but were it not returned, the compiler would leave out the loads that it sums)."""
    touched = np.uint64(0)
    bounds = np.empty(_BLOCK_BYTES + 1, np.int64)  # where the tokens, then the runs, of each row of the block begin
    runs, hashes = np.empty((4 * _BLOCK_BYTES, 4), np.int64), np.empty(4 * _BLOCK_BYTES, np.uint64)
    found, scratch = np.empty(256, np.int32), np.empty(2 * _RANKED, np.int32)
    while row < len(starts) - 1:
        stop = _block_end(starts, row)
        prefixes = np.empty(starts[stop] - starts[row] + 1, np.uint64)
        _hash_prefixes(data, starts[row], starts[stop], prefixes)
        tokens, token_hashes, loads = _block_tokens(data, starts, row, stop, spaceless, cut, prefixes, phrases, bounds)
        touched += loads
        runs, hashes, loads = _block_runs(
            tokens, token_hashes, stop - row, starts[row], prefixes, phrases, bounds, runs, hashes
        )
        touched += loads + _look_up(runs, hashes, bounds[stop - row], phrases)
        for place in range(stop - row):
            if bounds[place + 1] - bounds[place] > len(found):
                found = np.empty(2 * (bounds[place + 1] - bounds[place]), np.int32)
            hits = _verified(data, runs, hashes, bounds[place], bounds[place + 1], phrases, found)
            hits = _sorted_distinct(found, hits, scratch)
            filled = _put_members(found, hits, phrases, out, np.int64(out_starts[row]), scratch)
            if filled < 0:
                return row, touched
            row += 1
            out_starts[row] = filled
    return row, touched


@compiled
def _block_end(starts: _Places, first: int) -> int:
    """The row behind a block: rows of a few kilobytes together, at least one."""
    stop = first + 1
    while stop < len(starts) - 1 and stop - first < _BLOCK_BYTES and starts[stop + 1] - starts[first] <= _BLOCK_BYTES:
        stop += 1
    return stop


@compiled
def _block_tokens(
    data: Bytes,
    starts: _Places,
    first: int,
    stop: int,
    spaceless: npt.NDArray[np.bool_],
    cut: bool,
    prefixes: _Words,
    phrases: Phrases,
    bounds: _Places,
) -> tuple[_Places, _Words, np.uint64]:
    """Tokens of the rows (begin, end) and their hashes; row i's are those from `bounds[i]` on."""
    start, last, touched = starts[first], np.uint64(len(phrases.heads) - 1), np.uint64(0)
    tokens = np.empty((starts[stop] - start + stop - first, 2), np.int64)
    number = 0
    for place in range(stop - first):
        bounds[place] = number
        number = cut_tokens(data, starts[first + place], starts[first + place + 1], spaceless, cut, tokens, number)
    bounds[stop - first] = number
    hashes = np.empty(number, np.uint64)
    for token in range(number):
        begin, size = tokens[token, 0] - start, tokens[token, 1] - tokens[token, 0]
        power = phrases.powers[min(size, len(phrases.powers) - 1)]
        hashes[token] = _mixed(prefixes[begin + size] - prefixes[begin] * power)
        touched += phrases.heads[hashes[token] & last, 0]
    return tokens, hashes, touched


@compiled
def _block_runs(
    tokens: _Places,
    token_hashes: _Words,
    rows: int,
    start: int,
    prefixes: _Words,
    phrases: Phrases,
    bounds: _Places,
    runs: _Places,
    hashes: _Words,
) -> tuple[_Places, _Words, np.uint64]:
    """Runs of tokens that may be a text, and the hashes of those of several tokens; row i's are those from `bounds[i]` on.

    A run is where it begins, its bytes, the answer (-1: to be looked up in `longer`), and its text's place. What is returned is `runs` and
    `hashes` again, or longer ones.
    """
    sieve_last = np.uint64(64 * len(phrases.sieve) - 1)
    longest, touched, count = len(phrases.powers) - 1, np.uint64(0), 0
    for row in range(rows):
        first_token, end_token = bounds[row], bounds[row + 1]
        bounds[row] = count
        for token in range(first_token, end_token):
            begin, size = tokens[token, 0], tokens[token, 1] - tokens[token, 0]
            slot = _head_slot(phrases.heads, token_hashes[token])
            if phrases.heads[slot, 0] == 0 or size > longest:
                continue
            if count + 32 + len(phrases.long_lengths) > len(runs):
                runs = np.concatenate((runs, np.empty((len(runs) + len(phrases.long_lengths), 4), np.int64)))
                hashes = np.concatenate((hashes, np.empty(len(runs) - len(hashes), np.uint64)))
            alone = phrases.heads[slot, 1]
            if alone != 0:
                runs[count, 0], runs[count, 1] = begin, size
                runs[count, 2], runs[count, 3] = np.int64(alone >> np.uint64(32)) - 1, np.int64(alone & _LOW_HALF)
                touched += np.uint64(phrases.texts[runs[count, 3]])
                count += 1
            lengths, turn = phrases.heads[slot, 0] & _LOW_HALF, 0
            while lengths != 0:
                turn += 1
                if turn < 32:
                    tried, wanted = turn, lengths & np.uint64(1)
                    lengths >>= np.uint64(1)
                    if wanted == 0:
                        continue
                else:
                    if turn - 32 == len(phrases.long_lengths):
                        break
                    tried = phrases.long_lengths[turn - 32]
                if token + tried > end_token:
                    break
                size = tokens[token + tried - 1, 1] - begin
                if size > longest:
                    break
                whole = _mixed(prefixes[begin + size - start] - prefixes[begin - start] * phrases.powers[size])
                bit = whole & sieve_last
                if (phrases.sieve[bit >> np.uint64(6)] >> (bit & np.uint64(63))) & np.uint64(1) != 0:
                    runs[count, 0], runs[count, 1], runs[count, 2] = begin, size, -1
                    hashes[count] = whole
                    count += 1
    bounds[rows] = count
    return runs, hashes, touched


@compiled
def _look_up(runs: _Places, hashes: _Words, count: int, phrases: Phrases) -> np.uint64:
    """Give each run of several tokens the first slot of `longer` that has its hash, or the empty one behind."""
    last, touched = np.uint64(len(phrases.longer) - 1), np.uint64(0)
    for run in range(count):
        if runs[run, 2] < 0:
            touched += phrases.longer[hashes[run] & last, 0]
    for run in range(count):
        if runs[run, 2] < 0:
            slot = hashes[run] & last
            while phrases.longer[slot, 0] != hashes[run] and phrases.longer[slot, 0] != 0:
                slot = (slot + np.uint64(1)) & last
            runs[run, 3] = slot
            touched += np.uint64(phrases.texts[phrases.longer[slot, 1] & _LOW_HALF])
    return touched


@compiled
def _verified(data: Bytes, runs: _Places, hashes: _Words, first: int, stop: int, phrases: Phrases, found: _Ids) -> int:
    """The answers of runs `first`..`stop` whose texts they are, byte by byte, into `found`; returns how many."""
    last, hits = np.uint64(len(phrases.longer) - 1), 0
    for run in range(first, stop):
        begin, size = runs[run, 0], runs[run, 1]
        if runs[run, 2] >= 0:
            if _is_text(phrases.texts, runs[run, 3], data, begin, size):
                found[hits] = runs[run, 2]
                hits += 1
            continue
        slot = np.uint64(runs[run, 3])
        while phrases.longer[slot, 0] != 0:
            text = phrases.longer[slot, 1]
            if phrases.longer[slot, 0] == hashes[run] and _is_text(
                phrases.texts, np.int64(text & _LOW_HALF), data, begin, size
            ):
                found[hits] = text >> np.uint64(32)
                hits += 1
                break
            slot = (slot + np.uint64(1)) & last
    return hits


@compiled
def _put_members(found: _Ids, hits: int, phrases: Phrases, out: _Ids, start: int, scratch: _Ids) -> int:
    """Write the phrases of the answers `found[:hits]`, sorted, to `out[start:]`; returns where they end, or -1 when there is no room."""
    needed, shared = 0, 0  # answers of several phrases are negative, and so come first
    while shared < hits and found[shared] < 0:
        text = np.int64(found[shared]) & 0x7FFFFFFF
        needed += phrases.member_starts[text + 1] - phrases.member_starts[text]
        shared += 1
    needed += hits - shared
    if start + needed > len(out):
        return -1
    filled = start
    for hit in range(shared):
        text = np.int64(found[hit]) & 0x7FFFFFFF
        for member in range(phrases.member_starts[text], phrases.member_starts[text + 1]):
            out[filled] = phrases.members[member]
            filled += 1
    for hit in range(shared, hits):
        out[filled] = found[hit]
        filled += 1
    if shared:
        _sorted_distinct(out[start:filled], needed, scratch)
    return filled


@compiled
def _sorted_distinct(values: _Ids, count: int, scratch: _Ids) -> int:
    """Sort `values[:count]` in place and move the distinct ones to the front; returns how many they are. `scratch`: 2 * _RANKED.

    A few values are put where their rank is, the number of smaller ones, which the processor counts sixteen at a time and without a branch:
    half the time of sorting by insertion.
    """
    if count > _RANKED:
        values[:count] = np.sort(values[:count])
    else:
        padded = (count + 15) // 16 * 16
        scratch[:count] = values[:count]
        scratch[count:padded] = _NO_ID
        scratch[_RANKED : _RANKED + count] = _NO_ID
        for place in range(count):
            rank = 0
            for other in range(padded):
                rank += scratch[other] < scratch[place]
            scratch[_RANKED + rank] = scratch[place]  # equal ones have one place, and leave the next ones free
        values[:count] = scratch[_RANKED : _RANKED + count]
    kept = 0
    for place in range(count):
        value = values[place]
        if value != _NO_ID and (kept == 0 or value != values[kept - 1]):
            values[kept] = value
            kept += 1
    return kept


@compiled
def _ended(data: Bytes, starts: _Places) -> tuple[Bytes, _Places]:
    """Texts with _END behind each."""
    out = np.empty(starts[-1] - starts[0] + len(starts) - 1, np.uint8)
    out_starts = np.zeros_like(starts)
    at = 0
    for row in range(len(starts) - 1):
        for place in range(starts[row], starts[row + 1]):
            out[at] = data[place]
            at += 1
        out[at] = _END
        at += 1
        out_starts[row + 1] = at
    return out, out_starts
