"""`zeroshot` and `retrieval` on an exported model: figures against plain torch, files, identity, and the way into the overlap job."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from evaluation.__main__ import main
from evaluation.config import ZeroshotConfig
from evaluation.overlap.splits import read_predictions
from pipeline.content.image import decode
from pipeline.content.labelled import LabelledSet, open_set
from pipeline.contracts import storage
from pipeline.contracts.config import load_config, to_toml
from pipeline.contracts.errors import InputError
from tests.evaluation.planted import flat, picture
from trainer import export, models
from trainer.data.transforms import evaluation_pixels, normalise
from trainer.tokenizer import vocabulary

ROOT_HASH = "ab" * 32
NAMES = ["red_square", "blue circle", "green star"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported tiny model, as random as it was born."""
    folder = tmp_path_factory.mktemp("model")
    vocab = folder / "m.vocabulary"
    size = vocabulary.train_vocabulary([f"a picture of {name}" for name in NAMES * 5], 600, str(vocab))
    torch.manual_seed(4)
    built = models.build("tiny-vit", vocab_size=size)
    weights = folder / "m.safetensors"
    safetensors.torch.save_file(export.to_state_dict(built), weights)
    card = export.Card(
        preset="tiny-vit",
        image_size=built.preset.image_size,
        context_length=built.preset.context_length,
        vocab_size=size,
        embed_dim=built.preset.embed_dim,
        parameters=sum(parameter.numel() for parameter in built.parameters()),
        tokenizer="bpe",
        vocabulary="m.vocabulary",
        vocabulary_sha256=storage.sha256_file(str(vocab)),
        weights="m.safetensors",
        weights_sha256=storage.sha256_file(str(weights)),
        content_root=ROOT_HASH,
        config_digest="00",
        step=1,
        samples_seen=1,
        seed=0,
        window_row_groups=512,
    )
    (folder / "m.json").write_text(card.model_dump_json(), "utf-8")
    return folder


@pytest.fixture
def config(model: Path, tmp_path: Path) -> Path:
    table = pa.table(
        {
            "image": [picture(k, "evaluation", 1 + k % 3) for k in range(12)],
            "label": pa.array([k % 3 for k in range(12)], pa.int64()),
            "name": [f"a {NAMES[k % 3]} number {k % 2}" if k != 7 else None for k in range(12)],
        }
    )
    pq.write_table(table, tmp_path / "set.parquet")
    settings = {
        "model": str(model),
        "out": str(tmp_path / "out"),
        "batch": 5,
        "sets": [
            {
                "name": "shapes",
                "path": str(tmp_path / "set.parquet"),
                "label": "label",
                "caption": "name",
                "classes": NAMES,
            }
        ],
        "prompts": {"templates": ["a picture of a {}", "one {}"]},
    }
    path = tmp_path / "zeroshot.toml"
    path.write_text(to_toml(ZeroshotConfig.model_validate(settings)), "utf-8")
    return path


def test_zeroshot(config: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zeroshot", "--config", str(config)]) is None
    said = capsys.readouterr().out
    assert "shapes: 12 pictures, 3 classes" in said
    assert "chance 33.33%" in said
    net, tokens, card = export.load_model(str(model))
    rows = pq.read_table(tmp_path / "set.parquet").to_pylist()
    with torch.inference_mode():
        pixels = [evaluation_pixels(decode(row["image"]).rgb, card.image_size) for row in rows]
        images = torch.nn.functional.normalize(net.encode_image(normalise(torch.from_numpy(np.stack(pixels)))), dim=-1)
        sentences = [form.format(name.replace("_", " ")) for name in NAMES for form in ("a picture of a {}", "one {}")]
        texts = torch.nn.functional.normalize(net.encode_text(tokens(sentences)), dim=-1)
        classes = torch.nn.functional.normalize(texts.view(3, 2, -1).mean(dim=1), dim=-1)
        expected = (images @ classes.T).argmax(dim=1).tolist()
    table = pq.read_table(tmp_path / "out" / "predictions" / "shapes.parquet")
    assert table["prediction"].to_pylist() == expected
    figures = json.loads((tmp_path / "out" / "zeroshot.json").read_bytes())
    assert figures["model"] == {"content_root": ROOT_HASH, "sha256": card.weights_sha256}
    right = sum(one == row["label"] for one, row in zip(expected, rows, strict=True))
    assert figures["sets"]["shapes"]["top1"]["hits"] == right
    before = (tmp_path / "out" / "zeroshot.json").read_bytes()
    assert main(["zeroshot", "--config", str(config)]) is None
    assert (tmp_path / "out" / "zeroshot.json").read_bytes() == before


def test_predictions_enter_the_overlap_job(config: Path, model: Path, tmp_path: Path) -> None:
    assert main(["zeroshot", "--config", str(config)]) is None
    place = str(tmp_path / "out" / "predictions" / "shapes.parquet")
    one = load_config(ZeroshotConfig, str(config)).sets[0]
    labelled = open_set(one)
    found = read_predictions(place, labelled, "hash")
    assert (found.content_root, found.model) == (ROOT_HASH, export.load_model(str(model))[2].weights_sha256)
    table = pq.read_table(place)
    assert found.correct == table["correct"].to_pylist()

    def refused(said: str, changed: pa.Table = table, against: LabelledSet = labelled) -> None:
        pq.write_table(changed, tmp_path / "changed.parquet")
        with pytest.raises(InputError, match=said) as caught:
            read_predictions(str(tmp_path / "changed.parquet"), against, "hash")
        assert "\n" not in str(caught.value)

    def column(name: str, values: pa.Array) -> pa.Table:
        return table.set_column(table.column_names.index(name), name, values)

    refused("is another picture than in the set", against=dataclasses.replace(labelled, sha256=[bytes(32)] * 12))
    refused("is not in the set", against=dataclasses.replace(labelled, ids=[f"x{row}" for row in range(12)]))
    refused("no column 'eval_id'", table.drop_columns(["eval_id"]))
    refused(
        "scored against label 0, in the set it has 2",
        against=dataclasses.replace(labelled, labels=labelled.labels[::-1]),
    )
    refused("on a set of content hash", against=open_set(one.model_copy(update={"classes": ["red", "blue", "green"]})))
    refused("2 of 12 examples have a label and no score, the first is '0'", table.slice(2))
    refused("example '0' comes twice", pa.concat_tables([table, table]))
    refused("example '0' has no outcome", column("correct", pa.array([None, *[True] * 11])))
    refused("'correct' is int64, not bool", column("correct", pa.array([0, 1] * 6)))
    refused("does not say which set was scored", table.replace_schema_metadata({}))
    refused(
        "format version 9", table.replace_schema_metadata({**(table.schema.metadata or {}), b"format_version": b"9"})
    )


def test_retrieval(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["retrieval", "--config", str(config)]) is None
    assert "shapes: 11 pictures, 6 different captions" in capsys.readouterr().out
    entry = json.loads((tmp_path / "out" / "retrieval.json").read_bytes())["sets"]["shapes"]
    assert (entry["pictures"], entry["without_caption"], entry["captions"]) == (11, 1, 6)
    assert [one["k"] for one in entry["text_to_image"]] == [1, 5, 10]
    assert entry["image_to_text"][2]["value"] == entry["image_to_text"][2]["chance"] == 1.0

    # Each picture a second time with a caption of its own, as COCO has it.
    table = pq.read_table(tmp_path / "set.parquet")
    captions = pa.array([f"again {number}" for number in range(12)])
    again = table.set_column(table.schema.get_field_index("name"), "name", captions)
    pq.write_table(pa.concat_tables([table, again]), tmp_path / "set.parquet")
    main(["retrieval", "--config", str(config)])
    assert "shapes: 12 pictures, 18 different captions, 23 pairs" in capsys.readouterr().out
    entry = json.loads((tmp_path / "out" / "retrieval.json").read_bytes())["sets"]["shapes"]
    assert (entry["pictures"], entry["pairs"], entry["captions"]) == (12, 23, 18)
    assert [entry[direction][0]["n"] for direction in ("image_to_text", "text_to_image")] == [12, 18]
    assert entry["image_to_text"][0]["chance"] == pytest.approx((11 * 2 + 1) / 12 / 18)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model=nowhere", "holds 0 .safetensors files"),
        ("device=tpu9", "is no device of torch"),
        ("device=cuda:99", "is no device of torch|is not there"),
        ("prompts.templates=['no place']", "must hold {} exactly once"),
    ],
)
def test_bad_input(config: Path, override: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        main(["zeroshot", "--config", str(config), override])


def test_an_unreadable_picture_is_named(config: Path, tmp_path: Path) -> None:
    table = pa.table({"image": [flat(3), b"GIF89a broken", flat(9)], "label": [0, 1, 2], "name": ["a", "b", "c"]})
    pq.write_table(table, tmp_path / "set.parquet")
    with pytest.raises(InputError, match="picture '1' cannot be opened") as caught:
        main(["zeroshot", "--config", str(config)])
    assert "\n" not in str(caught.value)
