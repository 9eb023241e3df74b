"""show: the whole history of one row, from what a run committed: which stages saw it and what each did, up to its place in the corpus.

Footers and the row groups that may hold the uid are read: a stage's files and rejected files are looked up by the statistics of
their uids. Only of `dedup` all rejections are read (their uids and details), which tell for whom the row stays. At the end the row is
proved to be in the corpus: its leaf is hashed from the shard's own bytes (uid, caption, SHA-256 of the picture), and an audit path
leads from it to the manifest's content root.
"""

import hashlib
from collections.abc import Iterator, Sequence

import pyarrow.compute as pc

from pipeline import status
from pipeline.contracts import manifest, merkle, parquet, storage
from pipeline.contracts.at_once import at_once
from pipeline.contracts.errors import InputError
from pipeline.contracts.manifest import Manifest
from pipeline.status import StageStatus

Row = dict[str, object]
"""A row of a table as Python values."""

_DEDUP = "dedup"
_UNSEEN = "not seen"


def describe(out: str, uid_text: str) -> str:
    """The history of a row in lines for people.

    What an earlier run of the same configuration did in a stage that the last one has not reached is marked. Raises InputError when the uid
    is no uid, or when no stage has seen it.
    """
    uid = parse_uid(uid_text)
    stages = status.stages(out)
    queries = _Queries(out, stages)
    told = [(stage, line) for stage in stages for line in _stage_lines(out, stage, uid, queries)]
    if all(line.endswith(_UNSEEN) for _, line in told):
        raise InputError(f"{out}: no stage has seen the uid {uid_text!r}; check it, or give the output of another run")
    lines = [line + ("  (in an earlier run)" if stage.earlier else "") for stage, line in told]
    corpus = status.corpus(out)
    if storage.exists(manifest.manifest_path(corpus)):
        lines += _corpus_lines(corpus, uid)
    return "\n".join([f"uid {uid.hex()}", *lines])


def parse_uid(text: str) -> bytes:
    """16 bytes from 32 hexadecimal digits. Raises InputError."""
    try:
        uid = bytes.fromhex(text)
    except ValueError:
        uid = b""
    if len(uid) != 16:
        raise InputError(f"{text!r} is no uid; give its 32 hexadecimal digits")
    return uid


# ---- stages


def _stage_lines(out: str, stage: StageStatus, uid: bytes, queries: "_Queries") -> Iterator[str]:
    if stage.name == _DEDUP:
        yield from _follower_lines(out, stage, uid)
    if not all(record.accounted for record in stage.records):
        return
    kept = find(_uris(out, stage, [record.output.name for record in stage.records]), uid)
    gone = find(_uris(out, stage, [record.rejected_file.name for record in stage.records if record.rejected_file]), uid)
    label = f"{stage.name:<14}"
    for uri, row in kept:
        facts = _facts(stage.name, row, queries)
        yield f"{label}kept      {facts + '  ' if facts else ''}[{storage.name(uri)}]"
    for uri, row in gone:
        detail = f": {row['detail']}" if row.get("detail") else ""
        yield f"{label}rejected  {row['reason']}{detail}  (from {row['source']})  [{storage.name(uri)}]"
    if not kept and not gone and stage.records:
        yield f"{label}{_UNSEEN}"


def _uris(out: str, stage: StageStatus, names: Sequence[str]) -> list[str]:
    return [storage.join(out, stage.folder, name) for name in names]


def find(uris: Sequence[str], uid: bytes) -> list[tuple[str, Row]]:
    """(file, row without its picture) for every row of the files that has the uid."""
    found = at_once(lambda uri: [(uri, row) for row in _rows_in(uri, uid)], uris)
    return [each for one in found for each in one]


def _rows_in(uri: str, uid: bytes) -> list[Row]:
    rows: list[Row] = []
    with parquet.open_file(uri) as source:
        names = source.schema_arrow.names
        place = names.index("uid")
        for number in range(source.num_row_groups):
            statistics = source.metadata.row_group(number).column(place).statistics
            told = statistics is not None and statistics.has_min_max
            # A rejected row may have no uid; a group of such rows has no smallest one.
            if told and statistics.min <= uid <= statistics.max:
                uids = source.read_row_group(number, columns=["uid"])["uid"].to_pylist()
                places = [at for at, value in enumerate(uids) if value == uid]
                if places:
                    group = source.read_row_group(number, columns=[name for name in names if name != "image"])
                    rows += [group.slice(at, 1).to_pylist()[0] for at in places]
    return rows


def _facts(stage: str, row: Row, queries: "_Queries") -> str:
    """What a stage is told by, of a row that it kept."""
    if stage in ("candidates", "exact"):
        return f"{row['url']!r}  {row['caption_raw']!r}  (from {row['source']})"
    if stage == "filter":
        return f"{row['caption']!r} matches {queries.told(row['query_ids'])}"
    if stage in ("precap", "balance"):
        return f"counted for {queries.told([row['query_id']])}"
    if stage == "crawl" or stage.startswith("retry"):
        if "width" not in row:
            return ""
        sha256 = row["source_sha256"]
        source = sha256.hex() if isinstance(sha256, bytes) else "-"
        return f"{row['original_width']}x{row['original_height']} stored as {row['width']}x{row['height']} {row['format']}, source {source}"
    return ""


def _follower_lines(out: str, stage: StageStatus, uid: bytes) -> Iterator[str]:
    """The rows that went for this one, by the details of their rejections. (For whom it went itself, its own rejection tells.)"""
    followers: list[bytes] = []
    for uri in _uris(out, stage, [record.rejected_file.name for record in stage.records if record.rejected_file]):
        table = parquet.read(uri, ["uid", "detail"])
        followers += table.filter(pc.starts_with(table["detail"], f"{uid.hex()} stays"))["uid"].to_pylist()
    if followers:
        shown = ", ".join(row.hex() for row in followers[:5]) + (", …" if len(followers) > 5 else "")
        yield f"{stage.name:<14}stays for {len(followers):,} near-equal rows: {shown}"


class _Queries:
    """The texts of queries, from the ledger of the run if it has one."""

    def __init__(self, out: str, stages: Sequence[StageStatus]) -> None:
        self._files = [
            storage.join(out, stage.folder, record.output.name)
            for stage in stages
            if stage.name == "ledger"
            for record in stage.records
        ]

    def told(self, ids: object) -> str:
        """Queries as text with their numbers."""
        assert isinstance(ids, list)
        return ", ".join(self._one(number) for number in ids[:8]) + (", …" if len(ids) > 8 else "")

    def _one(self, number: int | None) -> str:
        if number is None:
            return "no query"
        for uri in self._files:
            found = parquet.read_where_equal(uri, "query_id", number, ["query"])["query"].to_pylist()
            if found:
                return f"{found[0]!r} ({number})"
        return f"query {number}"


# ---- the corpus


def _corpus_lines(corpus: str, uid: bytes) -> Iterator[str]:
    found = manifest.load(corpus)
    place = locate(corpus, found, uid)
    if place is None:
        yield "corpus        the row is not in it"
        return
    number, row = place
    shard = found.shards[number]
    start = sum(before.rows for before in found.shards[:number])
    leaf = _leaf(corpus, shard, row)
    leaves = list(manifest.shard_leaves(manifest.index_uri(corpus, shard)))
    leaves[row] = leaf
    path = merkle.proof_from_subtrees(manifest.read_subtrees(corpus), leaves, start, start + row, found.rows)
    right = merkle.check_proof(leaf, start + row, found.rows, path, found.content_root)
    yield f"corpus        row {row:,} of {shard.path}, row {start + row:,} of {found.rows:,}"
    said = "leads to" if right else "does NOT lead to"
    yield f"proof         its leaf {leaf.hex()[:16]}… {said} the content root {found.content_root[:16]}… in {len(path)} hashes"


def locate(corpus: str, found: Manifest, uid: bytes) -> tuple[int, int] | None:
    """(shard, row in it) of a uid, or None. Shards are in uid order: a bisection over their indexes, then one index."""
    low, high = 0, len(found.shards)
    while low < high:
        middle = (low + high) // 2
        uri = manifest.index_uri(corpus, found.shards[middle])
        uids = parquet.read(uri, ["uid"])["uid"].to_pylist()
        if uids and uids[0] <= uid <= uids[-1]:
            return (middle, uids.index(uid)) if uid in uids else None
        if not uids:  # an empty shard says nothing of its side: leave it out of the list
            rest = [n for n in range(low, high) if n != middle]
            inside = (_one_of(corpus, found, n, uid) for n in rest)
            return next((place for place in inside if place is not None), None)
        low, high = (low, middle) if uid < uids[0] else (middle + 1, high)
    return None


def _one_of(corpus: str, found: Manifest, number: int, uid: bytes) -> tuple[int, int] | None:
    uids = parquet.read(manifest.index_uri(corpus, found.shards[number]), ["uid"])["uid"].to_pylist()
    return (number, uids.index(uid)) if uid in uids else None


def _leaf(corpus: str, shard: manifest.Shard, row: int) -> bytes:
    """The leaf of a row, from the shard's bytes alone: the picture is hashed, not looked up."""
    for number, group in enumerate(shard.row_groups):
        if row < group.rows:
            table = parquet.read_row_group(manifest.shard_uri(corpus, shard), number, ["uid", "caption", "image"])
            values = table.slice(row, 1).to_pylist()[0]
            picture = None if values["image"] is None else hashlib.sha256(values["image"]).digest()
            return merkle.row_digest(values["uid"], values["caption"], picture)
        row -= group.rows
    raise InputError(f"{shard.path}: has fewer rows than its index; run python -m pipeline verify {corpus}")
