"""One number that stands for all rows of a corpus, and proofs for single rows.

The tree is that of RFC 6962 section 2.1 (Certificate Transparency): leaves are hashed with a leading 0x00, inner nodes with
0x01, and n leaves are split at the largest power of two below n. Leaves are the row digests in uid order over the whole corpus, so the
root depends on the rows alone: not on how they were cut into shards, and not on the version of a Parquet writer.

A shard can hash its own part without the others (`subtrees`): the aligned complete subtrees inside a range of leaves are nodes of the
whole tree, and `root_of_subtrees` joins them. A corpus of any size needs memory for the logarithm of its rows.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

EMPTY_ROOT = hashlib.sha256(b"").hexdigest()
"""The root of no rows (RFC 6962: the hash of the empty string)."""


class Subtree(NamedTuple):
    """A complete subtree over leaves [start, start + size); size is a power of two that divides start."""

    start: int
    size: int
    digest: bytes


def row_digest(uid: bytes, caption: str | None, image_sha256: bytes | None) -> bytes:
    """The leaf of a row: SHA-256 over 0x00, the uid (16 bytes), the caption and the picture's hash; null and empty differ."""
    caption_part = b"\x00" if caption is None else b"\x01" + _sized(caption.encode("utf-8", "surrogatepass"))
    image_part = b"\x00" if image_sha256 is None else b"\x01" + image_sha256
    return hashlib.sha256(b"\x00" + uid + caption_part + image_part).digest()


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def subtrees(leaves: Iterable[bytes], start: int = 0) -> list[Subtree]:
    """The aligned complete subtrees that cover leaves number start, start + 1, ... (leaf digests from `row_digest`)."""
    stack: list[Subtree] = []
    for place, leaf in enumerate(leaves, start):
        _push(stack, Subtree(place, 1, leaf))
    return stack


def _push(stack: list[Subtree], new: Subtree) -> None:
    """Append a subtree, joining equal neighbours while their union is aligned."""
    while stack and stack[-1].size == new.size and stack[-1].start % (2 * new.size) == 0:
        left = stack.pop()
        new = Subtree(left.start, 2 * new.size, _node(left.digest, new.digest))
    stack.append(new)


def root_of_subtrees(parts: Iterable[Subtree]) -> str:
    """The root (64 hex digits) of a tree whose consecutive parts are given in order, from leaf 0 on, without gaps."""
    stack: list[Subtree] = []
    expected = 0
    for part in parts:
        if part.start != expected:
            raise ValueError(f"subtree starts at leaf {part.start}, expected {expected}")
        expected += part.size
        _push(stack, part)
    if not stack:
        return EMPTY_ROOT
    digest = stack.pop().digest
    while stack:
        digest = _node(stack.pop().digest, digest)
    return digest.hex()


def merkle_root(leaves: Iterable[bytes]) -> str:
    """The root (64 hex digits) over leaf digests."""
    return root_of_subtrees(subtrees(leaves))


def merkle_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The audit path of leaf `index` (RFC 6962 2.1.1): the sibling hashes from the leaf up."""
    if not 0 <= index < len(leaves):
        raise IndexError(f"leaf {index} of {len(leaves)}")
    if len(leaves) == 1:
        return []
    split = 1 << (len(leaves) - 1).bit_length() - 1
    left, right = leaves[:split], leaves[split:]
    if index < split:
        return [*merkle_proof(left, index), bytes.fromhex(merkle_root(right))]
    return [*merkle_proof(right, index - split), bytes.fromhex(merkle_root(left))]


def proof_from_subtrees(
    parts: Iterable[Subtree], leaves: Sequence[bytes], start: int, index: int, rows: int
) -> list[bytes]:
    """The audit path of leaf `index` of `rows`, for who holds the leaves from `start` on (a shard) and `parts` of the whole tree.

    `parts` must cover all other leaves; what they say of the leaves held is not believed. Raises ValueError when leaves are missing.
    """
    stop = start + len(leaves)
    known = {
        (part.start, part.size): part.digest for part in parts if part.start + part.size <= start or part.start >= stop
    }

    def node(low: int, size: int) -> bytes:
        if (low, size) in known:
            return known[low, size]
        if start <= low and low + size <= stop:
            return bytes.fromhex(merkle_root(leaves[low - start : low - start + size]))
        if size == 1:
            raise ValueError(f"no part covers leaf {low}")
        left = 1 << (size - 1).bit_length() - 1
        return _node(node(low, left), node(low + left, size - left))

    path, low, size = [], 0, rows
    while size > 1:
        left = 1 << (size - 1).bit_length() - 1
        if index < low + left:
            path.append(node(low + left, size - left))
            size = left
        else:
            path.append(node(low, left))
            low, size = low + left, size - left
    return path[::-1]


def check_proof(leaf: bytes, index: int, rows: int, proof: Sequence[bytes], root: str) -> bool:
    """Whether `proof` shows that `leaf` is row number `index` of the corpus of `rows` rows with that root."""
    if not 0 <= index < rows:
        return False
    digest, place, last = leaf, index, rows - 1
    for sibling in proof:
        if last == 0:
            return False
        if place % 2 == 1 or place == last:
            digest = _node(sibling, digest)
            while place % 2 == 0 and place:
                place, last = place // 2, last // 2
        else:
            digest = _node(digest, sibling)
        place, last = place // 2, last // 2
    return last == 0 and digest.hex() == root
