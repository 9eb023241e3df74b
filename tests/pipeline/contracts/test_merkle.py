"""The Merkle tree against RFC 6962's recursive definition, written here a second time and naively."""

import hashlib
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.contracts import merkle

LEAVES = [hashlib.sha256(bytes([number])).digest() for number in range(70)]


def naive_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word (leaf digests given)."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + naive_root(leaves[:split]) + naive_root(leaves[split:])).digest()


@pytest.mark.parametrize("rows", range(70))
def test_root_is_that_of_rfc_6962(rows: int) -> None:
    assert merkle.merkle_root(LEAVES[:rows]) == naive_root(LEAVES[:rows]).hex()


@pytest.mark.parametrize("rows", range(1, 40))
def test_every_row_has_a_proof_and_no_other_row_passes(rows: int) -> None:
    root = merkle.merkle_root(LEAVES[:rows])
    for index in range(rows):
        proof = merkle.merkle_proof(LEAVES[:rows], index)
        assert merkle.check_proof(LEAVES[index], index, rows, proof, root)
        assert not merkle.check_proof(LEAVES[index + 1], index, rows, proof, root)
        assert not merkle.check_proof(LEAVES[index], (index + 1) % rows, rows, proof, root) or rows == 1
        if proof:
            assert not merkle.check_proof(LEAVES[index], index, rows, proof[:-1], root)
            assert not merkle.check_proof(LEAVES[index], index, rows, [*proof, LEAVES[0]], root)


@given(st.lists(st.integers(0, 70), max_size=4).map(sorted), st.integers(0, 70))
@settings(deadline=None)
def test_the_root_does_not_depend_on_how_the_rows_are_cut(cuts: list[int], rows: int) -> None:
    edges = [0, *(min(cut, rows) for cut in cuts), rows]
    parts = [part for start, stop in itertools.pairwise(edges) for part in merkle.subtrees(LEAVES[start:stop], start)]
    assert merkle.root_of_subtrees(parts) == naive_root(LEAVES[:rows]).hex()


def test_a_gap_between_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 3"):
        merkle.root_of_subtrees([*merkle.subtrees(LEAVES[:3]), *merkle.subtrees(LEAVES[4:6], 4)])


def test_null_and_empty_give_different_leaves() -> None:
    uid, sha256 = bytes(16), bytes(32)
    variants = [(None, None), ("", None), (None, sha256), ("", sha256), ("\x01", None)]
    assert len({merkle.row_digest(uid, caption, image) for caption, image in variants}) == len(variants)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 21, 64, 70])
def test_a_proof_from_the_parts_of_other_shards_is_the_proof_over_all_leaves(rows: int) -> None:
    """For a shard of five leaves anywhere, with the others cut into shards of five as well."""
    leaves = LEAVES[:rows]
    shards = range(0, rows, 5)
    parts = [part for start in shards for part in merkle.subtrees(leaves[start : start + 5], start)]
    for start in shards:
        mine = leaves[start : start + 5]
        for index in range(start, start + len(mine)):
            found = merkle.proof_from_subtrees(parts, mine, start, index, rows)
            assert found == merkle.merkle_proof(leaves, index)
            assert merkle.check_proof(leaves[index], index, rows, found, merkle.merkle_root(leaves))


def test_a_proof_needs_all_other_leaves_and_believes_none_of_the_parts_about_its_own() -> None:
    parts = merkle.subtrees(LEAVES[:8])
    with pytest.raises(ValueError, match="no part covers leaf"):
        merkle.proof_from_subtrees(parts, LEAVES[8:13], 8, 9, 64)
    lies = [merkle.Subtree(part.start, part.size, b"x" * 32) for part in merkle.subtrees(LEAVES[8:16], 8)]
    found = merkle.proof_from_subtrees([*parts, *lies], LEAVES[8:16], 8, 9, 16)
    assert found == merkle.merkle_proof(LEAVES[:16], 9)
