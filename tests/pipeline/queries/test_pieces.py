"""Any range of a file, plain or bzip2. Truth is what the bz2 module makes of the whole file."""

import bz2
import gzip
import random
from itertools import takewhile
from pathlib import Path

import pytest

from pipeline.contracts.errors import InputError
from pipeline.queries import pieces as module
from pipeline.queries.pieces import Kind, kind_of, pieces
from tests.pipeline.queries.making import real_data, streams


def text(size: int, seed: int = 1) -> bytes:
    dice = random.Random(seed)
    return " ".join(f"word{dice.randrange(5000)}" for _ in range(size // 8)).encode()


def own(path: Path, kind: Kind, start: int, stop: int) -> bytes:
    return b"".join(piece.data for piece in takewhile(lambda piece: piece.own, pieces(str(path), kind, start, stop)))


def in_ranges(path: Path, step: int) -> bytes:
    kind, size = kind_of(str(path)), path.stat().st_size
    return b"".join(own(path, kind, start, start + step) for start in range(0, size, step))


WRITTEN = {
    "one stream, one block": lambda: bz2.compress(text(50_000)),
    "one stream, many blocks": lambda: bz2.compress(text(700_000), 1),
    "streams that end anywhere": lambda: streams(text(60_000), 3),
    "blocks that do not compress": lambda: bz2.compress(random.Random(4).randbytes(1_300_000), 9),
    "an empty stream between": lambda: bz2.compress(text(9000)) + bz2.compress(b"") + bz2.compress(text(9000, 2)),
}


@pytest.mark.parametrize("how", WRITTEN)
def test_the_ranges_of_a_bzip2_file_are_the_file(how: str, tmp_path: Path) -> None:
    path = tmp_path / "file.bz2"
    path.write_bytes(WRITTEN[how]())
    truth = bz2.decompress(path.read_bytes())
    for step in (path.stat().st_size // 7 + 1, path.stat().st_size // 3, 1 << 30):
        assert in_ranges(path, step) == truth


def test_a_range_goes_on_beyond_its_end(tmp_path: Path) -> None:
    path = tmp_path / "file.bz2"
    path.write_bytes(bz2.compress(text(700_000), 1))
    found = list(pieces(str(path), "bz2", 0, 1000))
    assert b"".join(piece.data for piece in found) == text(700_000)
    assert [piece.own for piece in found] == [True] + [False] * (len(found) - 1)


def test_a_plain_file_and_a_gzip_file(tmp_path: Path) -> None:
    plain, zipped = tmp_path / "file.txt", tmp_path / "file.gz"
    data = text(3_000_000)
    plain.write_bytes(data)
    zipped.write_bytes(gzip.compress(data, 1))
    assert in_ranges(plain, 777_777) == data
    assert in_ranges(zipped, 777_777) == data  # all of it is in the first range


def test_the_genuine_dump_in_ranges() -> None:
    """Wikimedia's own file, in one stream of seven blocks."""
    path = next(real_data().glob("enwiki-latest*.bz2"))
    assert in_ranges(path, 300_001) == bz2.decompress(path.read_bytes())


def test_a_mark_inside_a_block_is_no_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chance makes one in 2**48 bits, too rare to find one; so one is reported where there is none."""
    path = tmp_path / "file.bz2"
    path.write_bytes(bz2.compress(text(350_000), 1))
    genuine = module._Window._find
    marks = genuine_marks(path)
    false = (marks[1] + marks[2]) // 2

    def find(self: module._Window, fresh: int) -> list[module._Mark]:
        return [*genuine(self, fresh), module._Mark(false, True)]

    monkeypatch.setattr(module._Window, "_find", find)
    assert own(path, "bz2", 0, 1 << 30) == text(350_000)


def genuine_marks(path: Path) -> list[int]:
    """The bits at which blocks begin, found bit by bit."""
    bits = "".join(f"{byte:08b}" for byte in path.read_bytes())
    mark, found, at = f"{0x314159265359:048b}", [], 0
    while (at := bits.find(mark, at)) != -1:
        found.append(at)
        at += 1
    return found


def test_what_is_truncated_or_corrupt_is_one_sentence(tmp_path: Path) -> None:
    whole = bz2.compress(text(700_000), 1)
    path = tmp_path / "file.bz2"
    for cut in (5, 2000, len(whole) // 2, len(whole) - 12):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"it is truncated, get it again"):
            in_ranges(path, 10_000)
    path.write_bytes(whole[:3000] + b"\xff" * 10 + whole[3010:])
    with pytest.raises(InputError, match=r"the bzip2 block at byte 4 is corrupt"):
        in_ranges(path, 1 << 30)
    path.write_bytes(gzip.compress(text(100_000))[:-50])
    with pytest.raises(InputError, match="truncated or corrupt gzip"):
        in_ranges(path, 1 << 30)


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (b"", "the file is empty"),
        (b"\x28\xb5\x2f\xfd1234", "give it as bz2 or plain"),
        (b"7z\xbc\xaf\x27\x1c", "give it as bz2 or plain"),
    ],
)
def test_other_compressions_are_refused(head: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(head)
    with pytest.raises(InputError, match=says):
        kind_of(str(path))


def test_a_file_of_zeros_that_says_it_is_bzip2_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "file.bz2"
    path.write_bytes(bz2.compress(text(1000))[:40] + bytes(9 << 20))
    with pytest.raises(InputError, match="no bzip2 block ends within 4,194,304 bytes"):
        in_ranges(path, 1 << 30)
