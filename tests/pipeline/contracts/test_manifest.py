"""A corpus on disk: what is written reads back, the same rows give the same bytes, and every flipped bit is named."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.contracts import manifest, merkle, parquet, schema
from pipeline.contracts.errors import InputError


def rows(count: int, image_bytes: int = 300) -> pa.Table:
    entries = []
    for number in range(count):
        url, caption = f"http://host/{number}", f"caption {number}"
        image = hashlib.shake_256(url.encode()).digest(image_bytes)
        entries.append(
            {
                "uid": schema.uid(url, caption),
                "url": url,
                "caption": caption if number % 7 else None,
                "caption_raw": caption,
                "image": image,
                "image_sha256": hashlib.sha256(image).digest(),
                "query_ids": [number % 3],
            }
        )
    return pa.Table.from_pylist(entries, schema=schema.SHARD_SCHEMA)


def test_a_corpus_reads_back_in_uid_order(tmp_path: Path) -> None:
    table = rows(250)
    written = manifest.write_corpus(str(tmp_path), [table.slice(0, 100), table.slice(100)], rows_per_shard=60)
    loaded = manifest.load(str(tmp_path))
    assert loaded == written == manifest.load(str(tmp_path / "manifest.json"))
    assert [shard.rows for shard in loaded.shards] == [60, 60, 60, 60, 10]
    back = pa.concat_tables(parquet.read(manifest.shard_uri(str(tmp_path), shard)) for shard in loaded.shards)
    index = pa.concat_tables(parquet.read(manifest.index_uri(str(tmp_path), shard)) for shard in loaded.shards)
    assert back.equals(table.sort_by("uid"))
    assert index.schema == schema.INDEX_SCHEMA
    assert index.equals(back.drop_columns(["image"]))
    assert manifest.verify(str(tmp_path)) == []


def test_the_root_is_over_the_rows_alone(tmp_path: Path) -> None:
    table = rows(101)
    roots = {
        manifest.write_corpus(str(tmp_path / str(size)), [table], rows_per_shard=size).content_root
        for size in (1000, 33, 7)
    }
    leaves = []
    for row in table.sort_by("uid").to_pylist():
        caption = (
            b"\0"
            if row["caption"] is None
            else b"\1" + len(row["caption"]).to_bytes(8, "little") + row["caption"].encode()
        )
        leaves.append(hashlib.sha256(b"\0" + row["uid"] + caption + b"\1" + row["image_sha256"]).digest())
    assert roots == {merkle.merkle_root(leaves)}


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    table = rows(80)
    shuffled = table.take(pa.array(range(79, -1, -1)))
    for name, given in (("a", table), ("b", shuffled)):
        manifest.write_corpus(str(tmp_path / name), [given], rows_per_shard=25)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("a", "b")]
    assert files[0] == files[1]


def test_row_groups_are_where_the_manifest_says(tmp_path: Path) -> None:
    written = manifest.write_corpus(str(tmp_path), [rows(300, 60_000)], rows_per_shard=200)
    for shard in written.shards:
        data = (tmp_path / shard.path).read_bytes()
        assert len(shard.row_groups) > 1
        assert sum(group.rows for group in shard.row_groups) == shard.rows
        place = 4
        for number, group in enumerate(shard.row_groups):
            assert group.offset == place
            place += group.bytes
            table = parquet.read_row_group(str(tmp_path / shard.path), number)
            assert table["image"][0].as_py() in data[group.offset : group.offset + group.bytes]


def test_every_kind_of_damage_is_named(tmp_path: Path) -> None:
    written = manifest.write_corpus(str(tmp_path), [rows(40)], rows_per_shard=20)
    for shard in written.shards:
        for path in (tmp_path / shard.path, tmp_path / shard.index_path):
            original = path.read_bytes()
            for place in (10, len(original) // 2, len(original) - 1):
                path.write_bytes(original[:place] + bytes([original[place] ^ 1]) + original[place + 1 :])
                assert manifest.verify(str(tmp_path)) == [
                    f"{path}: sha256 differs from the manifest; restore it or run the pipeline again"
                ]
            path.unlink()
            assert manifest.verify(str(tmp_path)) == [f"{path}: is missing; restore it or run the pipeline again"]
            path.write_bytes(original)
    assert manifest.verify(str(tmp_path)) == []


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("content_root", "0" * 64, "content_root differs from the rows"),
        ("rows", 41, "rows is 41 but the shards list 40"),
    ],
)
def test_a_manifest_that_lies(tmp_path: Path, key: str, value: object, sentence: str) -> None:
    manifest.write_corpus(str(tmp_path), [rows(40)], rows_per_shard=20)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    problems = manifest.verify(str(tmp_path))
    assert len(problems) == 1
    assert sentence in problems[0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rows": 300}, "rows is 300 but the shards list 40"),
        ({"rows": -40}, "rows: Input should be greater than or equal to 0"),
        ({"rows": 2**63}, "rows: Input should be less than"),
        ({"shards": []}, "rows is 40 but the shards list 0"),
        ({"shards.0.rows": 19}, "shards.0.rows is 19 but its row groups list 20"),
        ({"shards.1.row_groups": [[20, 4, 9], [5, 4, 9]]}, "shards.1.rows is 20 but its row groups list 25"),
        ({"shards.1.row_groups": [[-3, 4, 9], [23, 4, 9]]}, "row_groups.0.0: Input should be greater than or equal"),
        ({"shards.1.row_groups": [[20, -4, 9]]}, "row_groups.0.1: Input should be greater than or equal to 0"),
    ],
)
def test_a_manifest_whose_counts_cannot_be_is_not_believed(
    tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    manifest.write_corpus(str(tmp_path), [rows(40)], rows_per_shard=20)
    path = tmp_path / "manifest.json"
    values = json.loads(path.read_text())
    for key, value in change.items():
        *tables, last = key.split(".")
        place = values
        for name in tables:
            place = place[int(name)] if name.isdigit() else place[name]
        place[last] = value
    path.write_text(json.dumps(values))
    with pytest.raises(InputError) as raised:
        manifest.load(str(tmp_path))
    assert str(path) in str(raised.value)
    assert sentence in str(raised.value)
    assert "restore the manifest" in str(raised.value)


def test_counts_that_do_not_add_up(tmp_path: Path) -> None:
    whole = manifest.StageCounts(rows_in=5, rows_out=3, rejected={"too_short": 1, "duplicate": 1})
    manifest.write_corpus(str(tmp_path), [rows(4)], counts={"filter": whole, "dedup": whole})
    assert manifest.verify(str(tmp_path)) == []
    torn = manifest.StageCounts(rows_in=5, rows_out=1, rejected={})
    manifest.write_corpus(str(tmp_path), [rows(4)], counts={"filter": whole, "dedup": torn})
    place = tmp_path / "manifest.json"
    assert manifest.verify(str(tmp_path)) == [
        f"{place}: counts.dedup: 5 rows in are not 1 out and 0 rejected; restore the manifest from its run"
    ]


def test_a_configuration_that_is_not_the_one_of_the_digest(tmp_path: Path) -> None:
    manifest.write_corpus(str(tmp_path), [rows(4)], config_values={"dedup": {"threshold": 0.8}})
    assert manifest.verify(str(tmp_path)) == []
    place = tmp_path / "manifest.json"
    place.write_text(place.read_text().replace("0.8", "0.5"))
    assert manifest.verify(str(tmp_path)) == [
        f"{place}: config_digest differs from config; restore the manifest from its run"
    ]


def test_an_edited_manifest_differs_from_its_copies(tmp_path: Path) -> None:
    """Whatever was edited; an earlier manifest of the folder is as good, and so is one that was moved without copies."""
    for count in (5, 4):
        manifest.write_corpus(str(tmp_path), [rows(count)])
        assert manifest.verify(str(tmp_path)) == []
    place = tmp_path / "manifest.json"
    values = json.loads(place.read_text())
    copies = sorted(tmp_path.glob("manifest-*.json"))
    for copy in copies:
        place.write_bytes(copy.read_bytes())
        assert manifest.verify(str(tmp_path)) == manifest.verify(str(copy)) == []
    place.write_text(json.dumps(values | {"query_list_digest": "0" * 64}))
    assert manifest.verify(str(tmp_path)) == [
        f"{place}: differs from every copy beside it, like {copies[-1].name}; restore it from the one of its run"
    ]
    for copy in copies:
        copy.unlink()
    assert manifest.verify(str(tmp_path)) == []


@pytest.mark.parametrize("field", ["rows", "offset", "bytes", "one more"])
def test_row_groups_that_lie(tmp_path: Path, field: str) -> None:
    manifest.write_corpus(str(tmp_path), [rows(40)], rows_per_shard=20)
    place = tmp_path / "manifest.json"
    values = json.loads(place.read_text())
    groups = values["shards"][1]["row_groups"]
    if field == "one more":
        groups.append(groups[0])
    else:
        groups[0][parquet.RowGroup._fields.index(field)] += 1
    place.write_text(json.dumps(values))
    assert manifest.verify(str(tmp_path)) == [
        f"{tmp_path / values['shards'][1]['path']}: row_groups (rows, offsets, bytes) differ from the file's footer; "
        "restore the manifest from its run"
    ]


@pytest.mark.parametrize("field", ["bytes", "index_bytes"])
def test_a_size_that_lies(tmp_path: Path, field: str) -> None:
    manifest.write_corpus(str(tmp_path), [rows(3)])
    place = tmp_path / "manifest.json"
    values = json.loads(place.read_text())
    values["shards"][0][field] += 1
    place.write_text(json.dumps(values))
    (problem,) = manifest.verify(str(tmp_path))
    assert f"the manifest says {values['shards'][0][field]:,}; restore the manifest" in problem


def test_what_hashes_alone_cannot_tell(tmp_path: Path) -> None:
    """A writer with a bug: files and hashes agree, but a picture is not the one its row names."""
    table = rows(10).sort_by("uid")
    wrong = table.set_column(4, schema.SHARD_SCHEMA.field("image"), table["image"].take(pa.array([1, *range(1, 10)])))
    manifest.write_corpus(str(tmp_path), [wrong])
    assert [problem.split(": ", 1)[1] for problem in manifest.verify(str(tmp_path))] == [
        "row group 0 holds a picture that is not its image_sha256; rebuild the corpus"
    ]


def test_an_empty_corpus(tmp_path: Path) -> None:
    written = manifest.write_corpus(str(tmp_path), [rows(0)])
    assert (written.rows, written.content_root) == (0, merkle.EMPTY_ROOT)
    assert manifest.verify(str(tmp_path)) == []


def test_two_rows_with_one_uid_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="same uid"):
        manifest.write_corpus(str(tmp_path), [rows(3), rows(1)])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "not a corpus manifest"),
        ("[1]", "not a corpus manifest"),
        ('{"kind": "report"}', "not a corpus manifest"),
        ('{"kind": "corpus", "format_version": 99}', "format version 99, this program reads 1"),
        ('{"kind": "corpus", "format_version": 1}', "rows: Field required"),
    ],
)
def test_what_is_no_manifest(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=sentence):
        manifest.load(str(tmp_path))


@pytest.mark.parametrize("path", ["/etc/passwd", "../other.parquet", "a/../../b", "s3://bucket/x"])
def test_a_manifest_cannot_point_outside(tmp_path: Path, path: str) -> None:
    manifest.write_corpus(str(tmp_path), [rows(3)])
    place = tmp_path / "manifest.json"
    values = json.loads(place.read_text())
    values["shards"][0]["path"] = path
    place.write_text(json.dumps(values))
    with pytest.raises(InputError, match="leaves the folder of the manifest"):
        manifest.load(str(tmp_path))


def test_on_s3_as_on_the_disk(tmp_path: Path, s3_endpoint: str) -> None:
    import boto3

    boto3.client("s3").create_bucket(Bucket="corpora")
    local = manifest.write_corpus(str(tmp_path), [rows(30)], rows_per_shard=10)
    remote = manifest.write_corpus("s3://corpora/a", [rows(30)], rows_per_shard=10)
    assert local == remote == manifest.load("s3://corpora/a")
    assert manifest.verify("s3://corpora/a") == []
