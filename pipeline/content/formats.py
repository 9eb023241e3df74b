"""What the bytes of a picture say before anything is decoded: format, size, orientation, and whether they end early.

Small readers of the fixed parts of each container. They allocate nothing, look at a few hundred bytes (at the chunk or
box list where there is one), and are written against the specifications named beside them. `image.py` asks them first.
"""

import importlib.util
import struct

from pipeline.contracts.schema import Reason

MAX_SIDE = 65_535
"""Pixels, what JPEG and GIF can say. PNG, BMP and TIFF can say more, and of a thread 5 pixels wide and 12 million long the perceptual
hashes would hold 6 GB: they pad its lines, and what they sample of it is wider than it is."""
_PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})


class ImageRejected(Exception):
    """These bytes do not become a picture; `reason` is counted, `detail` is for whoever reads the rejected rows."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)  # both, so that it survives pickling on its way out of a worker
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def sniff(data: bytes) -> str | None:
    """Format by the first bytes: an allowed one, None when unknown; a known but refused format raises ImageRejected."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR" and len(data) >= 24:
        return "png"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "tiff"
    # Two letters are no signature: the size of the header that follows must be one that exists.
    if data.startswith(b"BM") and len(data) >= 18 and data[14:18] in _BMP_HEADER_SIZES:
        return "bmp"
    if data[4:8] == b"ftyp":
        return _isobmff_kind(data)
    for signature, name in _KNOWN_BUT_REFUSED.items():
        if data.startswith(signature):
            raise ImageRejected(Reason.IMAGE_FORMAT, f"{name} is not among the formats read")
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"<svg") or (head.startswith(b"<?xml") and b"<svg" in head):
        raise ImageRejected(Reason.IMAGE_FORMAT, "svg is not among the formats read")
    return None


_BMP_HEADER_SIZES = frozenset(struct.pack("<I", size) for size in (12, 40, 52, 56, 64, 108, 124))
_KNOWN_BUT_REFUSED = {
    b"\0\0\0\x0cjP  \r\n\x87\n": "jpeg 2000",
    b"\xff\x4f\xff\x51": "jpeg 2000",
    b"\0\0\0\x0cJXL \r\n\x87\n": "jpeg xl",
    b"\xff\x0a": "jpeg xl",
    b"\0\0\1\0": "ico",
    b"8BPS": "photoshop",
    b"%!PS": "postscript",
    b"%PDF": "pdf",
}


def _isobmff_kind(data: bytes) -> str | None:
    """avif or heic by the brands of the file type box (ISO/IEC 14496-12); other brands are video or unknown."""
    (box_size,) = struct.unpack(">I", data[:4])
    brands = {data[8:12]} | {data[at : at + 4] for at in range(16, min(box_size, 256, len(data)), 4)}
    if brands & {b"avif", b"avis"}:
        return "avif"
    if brands & {b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1"}:
        if importlib.util.find_spec("pillow_heif") is None:
            raise ImageRejected(Reason.IMAGE_FORMAT, "heic needs the package pillow-heif, which is not installed")
        return "heic"
    return None


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse what a header says before anything is allocated."""
    if width < 1 or height < 1:
        raise ImageRejected(Reason.IMAGE_CORRUPT, f"header says {width} x {height}")
    if max(width, height) > MAX_SIDE:
        raise ImageRejected(Reason.IMAGE_TOO_LARGE, f"{width} x {height} (limit {MAX_SIDE} pixels a side)")
    if width * height > max_pixels:
        raise ImageRejected(
            Reason.IMAGE_TOO_LARGE, f"{width} x {height} = {width * height} pixels (limit {max_pixels})"
        )


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG of the plainest kind, which is what most encoders write: a JFIF header, tables and comments, one baseline
    frame of 8 bits, grey or of three components, all of it in one scan. None for whatever else: metadata, progressive, broken.

    ITU-T T.81, B.2 and T.871 (JFIF). Such a file has no orientation, no ICC profile and no scan to be counted.
    """
    if data[2:11] != b"\xff\xe0\x00\x10JFIF\0" or len(data) < 20:
        return None
    at, components, size = 20, 0, (0, 0)
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        marker, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        if at + 2 + length > len(data):
            return None
        if marker == 0xC0 and not components and length >= 8 and data[at + 4] == 8:
            height, width, components = struct.unpack(">HHB", data[at + 5 : at + 10])
            size = width, height
        elif marker == 0xDA:
            return size if components in (1, 3) and length > 2 and data[at + 4] == components else None
        elif marker not in (0xC4, 0xDB, 0xDD, 0xFE):  # Huffman and quantisation tables, restart interval, comment
            return None
        at += 2 + length
    return None


def webp_size(data: bytes) -> tuple[int, int]:
    """Canvas of a WebP file from its first chunk (RFC 9649, sections 2.5 to 2.7)."""
    chunk = data[12:16]
    if len(data) < 30:
        raise ImageRejected(Reason.IMAGE_TRUNCATED, f"webp of {len(data)} bytes")
    if chunk == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    if chunk == b"VP8 ":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    raise ImageRejected(Reason.IMAGE_CORRUPT, f"webp whose first chunk is {chunk!r}")


def png_pixels_only(data: bytes) -> tuple[bytes, bytes]:
    """A PNG without the chunks that carry no pixels, and its EXIF block (empty when it has none)."""
    kept, exif, at = [data[:8]], b"", 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        name, end = data[at + 4 : at + 8], at + 12 + length
        if end > len(data):
            break
        if name in _PIXEL_CHUNKS:
            kept.append(data[at:end])
        elif name == b"eXIf" and not exif:
            exif = data[at + 8 : end - 4]
        if name == b"IEND":
            return b"".join(kept), exif
        at = end
    raise ImageRejected(Reason.IMAGE_TRUNCATED, f"png of {len(data)} bytes without its end chunk")


def exif_orientation(exif: bytes) -> int:
    """Orientation 1-8 of an EXIF block; 1 where there is none or it cannot be read (metadata never costs a picture)."""
    block = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None or len(block) < 10:
        return 1
    (directory,) = struct.unpack(order + "I", block[4:8])
    (count,) = struct.unpack(order + "H", block[directory : directory + 2].ljust(2, b"\0"))
    for at in range(directory + 2, min(directory + 2 + 12 * count, len(block) - 11), 12):
        tag, kind, _ = struct.unpack(order + "HHI", block[at : at + 8])
        if tag == 0x0112:
            (value,) = struct.unpack(
                order + ("H" if kind == 3 else "I"), block[at + 8 : at + (10 if kind == 3 else 12)]
            )
            return int(value) if 1 <= value <= 8 else 1
    return 1


def ends_early(kind: str, data: bytes) -> bool:
    """Does the container itself promise more bytes than there are?"""
    if kind == "jpeg":
        return data.rfind(b"\xff\xd9") < max(0, data.rfind(b"\xff\xda"))
    if kind == "webp":
        return len(data) < 12 or 8 + int.from_bytes(data[4:8], "little") > len(data)
    if kind == "gif":
        return not data.rstrip(b"\0").endswith(b";")
    if kind == "bmp":
        return int.from_bytes(data[2:6], "little") > len(data)
    if kind == "tiff":
        return _tiff_ends_early(data)
    at = 0
    while kind in ("avif", "heic") and at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size == 0:  # to the end of the file
            return False
        at += max(size, 8)
    return kind in ("avif", "heic") and at != len(data)


def _tiff_ends_early(data: bytes) -> bool:
    """The first directory, or a value or strip that it points to with one offset, lies beyond the end."""
    order = "<" if data[:2] == b"II" else ">"
    if len(data) < 8:
        return True
    (directory,) = struct.unpack(order + "I", data[4:8])
    if directory + 2 > len(data):
        return True
    (count,) = struct.unpack(order + "H", data[directory : directory + 2])
    if directory + 2 + 12 * count > len(data):
        return True
    strip = [0, 0]
    for at in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind, number, value = struct.unpack(order + "HHII", data[at : at + 12])
        if kind == 3 and number == 1 and order == ">":
            value >>= 16
        if number * {3: 2, 4: 4, 5: 8}.get(kind, 1) > 4 and value + number > len(data):
            return True
        if tag in (273, 279) and number == 1:  # StripOffsets, StripByteCounts
            strip[tag == 279] = value & 0xFFFF if kind == 3 else value
    return sum(strip) > len(data)
