"""16-byte keys as numpy words: sorting, choosing and finding against the bytes themselves."""

import hashlib
import random

import numpy as np
import pyarrow as pa

from pipeline import keys
from pipeline.contracts.schema import choice_key


def _uids(count: int) -> list[bytes]:
    hashed = [hashlib.blake2b(str(number).encode(), digest_size=16).digest() for number in range(count)]
    return [*hashed, b"\0" * 16, b"\xff" * 16, b"\0" * 15 + b"\1", b"\1" + b"\0" * 15]


def test_words_sort_and_come_back_as_bytes() -> None:
    uids = _uids(200)
    random.Random(2).shuffle(uids)
    column = pa.array(uids, pa.binary(16))
    words = keys.words(column)
    assert keys.to_binary(words).equals(column)
    assert [uids[place] for place in keys.sort_order(words)] == sorted(uids)
    assert keys.words(column.slice(3, 5)).tolist() == words[3:8].tolist()
    assert keys.words(pa.chunked_array([column.slice(0, 7), column.slice(7)])).tolist() == words.tolist()
    assert keys.words(pa.array([], pa.binary(16))).shape == (0, 2)
    first = np.array([number % 2 for number in range(len(uids))])
    assert [uids[place] for place in keys.sort_order(words, first)] == sorted(uids[::2]) + sorted(uids[1::2])


def test_choice_words_are_the_choice_keys() -> None:
    uids = _uids(20)
    chosen = keys.choice_words(keys.words(pa.array(uids, pa.binary(16))), 7, "test")
    assert keys.to_binary(chosen).to_pylist() == [choice_key(uid, 7, "test") for uid in uids]


def test_find_is_a_dictionary_lookup() -> None:
    uids = _uids(300)
    present, asked = uids[:150], random.Random(3).choices(uids, k=500)
    naive = {uid: place for place, uid in enumerate(present)}
    found = keys.find(keys.words(pa.array(asked, pa.binary(16))), keys.words(pa.array(present, pa.binary(16))))
    assert found.tolist() == [naive.get(uid, -1) for uid in asked]
    empty = keys.words(pa.array([], pa.binary(16)))
    assert keys.find(empty, empty).tolist() == []
    assert keys.find(found.astype(np.uint64).reshape(-1, 2), empty).tolist() == [-1] * 250


def test_null_fixed_bytes_are_zeros() -> None:
    assert keys.fixed_bytes(pa.array([None, b"ab"], pa.binary(2)), 2).tolist() == [[0, 0], [97, 98]]


def test_rows_taken_in_chunks_are_those_of_a_plain_take() -> None:
    random_ = random.Random(6)
    for count in (0, 1, 40):
        values = [None if random_.random() < 0.2 else random_.randbytes(random_.randint(0, 50)) for _ in range(count)]
        lists = [None if random_.random() < 0.2 else [number] * random_.randint(0, 3) for number in range(count)]
        columns = [pa.array(values, pa.binary()), pa.array(range(count)), pa.array(lists, pa.list_(pa.int32()))]
        whole = pa.table(columns, names=["image", "number", "lists"])
        table = pa.concat_tables([whole.slice(start, 7) for start in range(0, max(count, 1), 7)])
        for chosen in (count, count // 2, 0):
            at = np.array(random_.sample(range(count), chosen), np.int64)
            for most in (1, 60, 200, 1 << 30):
                taken = keys.take_rows(table, at, most)
                assert taken.equals(whole.take(pa.array(at)))
                chunks = [sum(len(value or b"") for value in chunk.to_pylist()) for chunk in taken["image"].chunks]
                assert max(chunks) <= most + 50, "a chunk and its last value"
                assert len(chunks) <= 2 + sum(chunks) / most


def test_rows_are_taken_from_more_than_two_gigabytes_of_pictures() -> None:
    """The pictures are zeros that no page of memory stands behind."""
    size, number = 16 << 20, 66
    offsets = pa.py_buffer((np.arange(number + 1) * size).astype(np.int32))
    half = pa.Array.from_buffers(pa.binary(), number, [None, offsets, pa.py_buffer(np.zeros(number * size, np.uint8))])
    table = pa.table({"image": pa.chunked_array([half, half, pa.array([b"last"])])})
    assert table.nbytes > 1 << 31
    taken = keys.take_rows(table, np.array([2 * number, 3, number + 1]))["image"]
    assert [len(value) for value in taken.to_pylist()] == [4, size, size]
