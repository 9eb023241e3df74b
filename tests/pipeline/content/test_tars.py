"""What writers before ustar and beside GNU did in tars, against Python's tarfile; most of the walker is tested by those who use it."""

import io
import tarfile

import pytest

from pipeline.content import tars


def header(name: bytes, kind: bytes, size: bytes, *, signed: bool = False) -> bytes:
    """A header and nothing else: one of the form before ustar."""
    block = name.ljust(100, b"\0") + bytes(24) + size.ljust(12, b"\0") + bytes(20) + kind + bytes(355)
    total = sum(block) + 8 * 0x20
    if signed:
        total -= 256 * sum(byte > 0x7F for byte in block)
    return block[:148] + b"%06o\0 " % total + block[156:]


DATA = b"bytes".ljust(512, b"\0")
PAX = b"16 path=new.jpg\n".ljust(512, b"\0")
END = bytes(1024)
OLD = {
    "signed sum": header("grün.jpg".encode(), b"0", b"5", signed=True) + DATA,
    "folder without a type": header(b"folder/", b"\0", b"0") + header(b"folder/a.jpg", b"\0", b"5") + DATA,
    "contiguous file": header(b"a.jpg", b"7", b"5") + DATA,
    "pax of Solaris": header(b"x", b"X", b"%o" % 16) + PAX + header(b"old.jpg", b"0", b"5") + DATA,
    "link with a size": header(b"a.jpg", b"2", b"5") + header(b"b.jpg", b"0", b"5") + DATA,
    "label of a volume": header(b"label", b"V", b"0") + header(b"b.jpg", b"0", b"5") + DATA,
}


@pytest.mark.parametrize("data", OLD.values(), ids=OLD)
def test_the_files_are_those_that_tarfile_finds(data: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(data + END)) as tar:
        expected = [(each.name, each.offset_data, each.size) for each in tar if each.type in b"07\0"]
    assert len(expected) == 1
    for behind in (b"", b"what lies behind the mark"):
        found = list(tars.plain_files(io.BytesIO(data + END + behind)))
        assert [(each.name, each.data, each.size) for each in found] == expected


@pytest.mark.parametrize("most", [None, 1 << 40])
@pytest.mark.parametrize("kind", [b"0", b"V", b"L", b"x"])
def test_a_size_beyond_all_files_is_refused_before_it_is_sought(kind: bytes, most: int | None) -> None:
    """Sizes of GNU's large numbers go up to 2^88, offsets of a file to 2^63."""
    data = header(b"a.jpg", b"0", b"5") + DATA + header(b"b.jpg", kind, b"\x80" + b"\xff" * 11) + END
    with pytest.raises(tars.Damaged, match="ends inside the file at byte 1,024"):
        list(tars.plain_files(io.BytesIO(data), most=most))
