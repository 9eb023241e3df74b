"""Languages of short captions: labelled sentences, names of emoji in two languages, and who loads the tables."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.content.language import by_script, identify

_SENTENCES = {
    "en": ["Two people riding bicycles along the river", "A bowl of fresh fruit on a wooden table", "Old red barn in the snow"],
    "de": ["Zwei Kinder spielen im Garten mit einem Ball", "Altes Schloss am Fluss bei Sonnenuntergang", "Rotes Auto vor einem Haus"],
    "fr": ["Deux enfants jouent au ballon dans le jardin", "Vieux château au bord de la rivière", "Vue sur les montagnes en hiver"],
    "es": ["Dos niños juegan con una pelota en el jardín", "Castillo antiguo junto al río al atardecer", "Coche rojo delante de una casa"],
    "it": ["Due bambini giocano con la palla nel giardino", "Antico castello sulla riva del fiume", "Vista delle montagne in inverno"],
    "pt": ["Duas crianças brincam com uma bola no jardim", "Um prato de frutas frescas sobre a mesa", "Vista das montanhas no inverno"],
    "nl": ["Twee kinderen spelen met een bal in de tuin", "Een schaal met vers fruit op tafel", "Uitzicht op de bergen in de winter"],
    "pl": ["Dwoje dzieci bawi się piłką w ogrodzie", "Stary zamek nad rzeką o zachodzie słońca", "Czerwony samochód przed domem"],
    "ru": ["Двое детей играют с мячом в саду", "Старый замок у реки на закате", "Красная машина перед домом"],
    "tr": ["İki çocuk bahçede topla oynuyor", "Gün batımında nehir kenarında eski kale", "Evin önünde kırmızı araba"],
    "ja": ["庭でボール遊びをする二人の子供", "夕暮れの川沿いの古い城", "家の前の赤い車"],
    "zh": ["两个孩子在花园里玩球", "夕阳下河边的古堡", "房子前面的红色汽车"],
    "ko": ["정원에서 공놀이를 하는 두 아이", "해질녘 강가의 오래된 성", "집 앞의 빨간 차"],
    "ar": ["طفلان يلعبان بالكرة في الحديقة", "قلعة قديمة على ضفة النهر", "منظر الجبال في الشتاء"],
    "th": ["เด็กสองคนเล่นบอลในสวน", "ปราสาทเก่าริมแม่น้ำ", "รถสีแดงหน้าบ้าน"],
    "he": ["שני ילדים משחקים בכדור בגינה", "טירה עתיקה על גדת הנהר"],
}  # fmt: skip


def _share(found: list[str | None], expected: list[str]) -> tuple[float, float]:
    """How many get an answer, and how many of the answers are right."""
    answers = [(one, wanted) for one, wanted in zip(found, expected, strict=True) if one is not None]
    return len(answers) / len(found), sum(one == wanted for one, wanted in answers) / max(1, len(answers))


def test_short_captions_of_many_languages() -> None:
    pairs = [(text, language) for language, texts in _SENTENCES.items() for text in texts]
    found = identify(pa.array([text for text, _ in pairs])).to_pylist()
    answered, right = _share(found, [language for _, language in pairs])
    assert answered >= 0.9
    assert right >= 0.95


@pytest.mark.parametrize(
    ("caption", "language"),
    [("狗", "zh"), ("タワー", "ja"), ("新しい", "ja"), ("강아지", "ko"), ("แมว", "th"), ("iPhone 手机壳", "zh"),
     ("new iPhone 15 Pro 新", None),      ("dog", None), ("café", None), ("·ー", None)],
)  # fmt: skip
def test_scripts_that_decide(caption: str, language: str | None) -> None:
    assert by_script(caption) == language


def test_unsure_strange_and_empty_captions_are_null() -> None:
    captions = ["", None, "IMG_1234", "12345", "\ufffe\ufdd0", "🐕🐕", "qzx", "\U0010ffff", "x" * 2000]
    assert identify(pa.array(captions)).to_pylist() == [None] * len(captions)
    chunked = pa.chunked_array([["A dog in the garden"], ["红色的狗"]])
    assert identify(chunked).to_pylist() == ["en", "zh"]
    assert identify(pa.array([], pa.string())).type == pa.string()
    assert identify(pa.array(["A BOWL OF FRESH FRUIT ON A WOODEN TABLE"])).to_pylist() == ["en"]


@pytest.mark.parametrize(
    ("column", "language", "answered", "right"), [("name_en", "en", 0.5, 0.9), ("name_zh", "zh", 0.99, 0.999)]
)
def test_names_of_emoji(column: str, language: str, answered: float, right: float) -> None:
    path = Path(os.environ.get("REAL_DATA", Path(__file__).parents[3].parent / "shared" / "data")) / "emoji.parquet"
    if not path.exists():
        pytest.skip("real data is absent")
    names = sorted({name for name in pq.read_table(path, columns=[column])[column].to_pylist() if name})
    found = _share(identify(pa.array(names)).to_pylist(), [language] * len(names))
    assert found[0] >= answered
    assert found[1] >= right


def test_the_tables_are_loaded_only_when_a_language_is_asked_for() -> None:
    code = "import sys, pipeline.config, pipeline.quality; print('pycld2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
