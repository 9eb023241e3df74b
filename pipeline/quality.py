"""Which captions are worth fetching a picture for: length, language, and whether they are language at all.

The CLIP paper cut YFCC100M to 15 million pictures by keeping those whose title or description is natural language in English, since
most carry what a camera wrote ("20160716 113957.JPG", section 2.2). The rules here are of that kind. Each judges the whole caption,
never a part of it: "IMG_0001.JPG" is a file name, "photo of IMG_0001.JPG on my screen" is a sentence. Each can be switched off by name
(`quality.drop`).

Words mean nothing in scripts without word spaces: there every character counts as a word, and one character may be a caption. Most captions
of the web begin with three plain words; unless all of such a caption is a stock phrase, it is language, and no further pattern is tried.

A rule is a guess about a text without its picture, and these are the ones that go against somebody: "Canon EOS 5D Mark II" goes, though a
shop may show that camera; "Photo 51" goes, because a thousand galleries count their pictures for one that shows the X-ray picture of that
name; `lincoln_1860` goes, though it says whom it shows.
"""

import re
import unicodedata
from collections.abc import Iterator
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pydantic

from pipeline.content import language
from pipeline.content.cameras import is_camera_text
from pipeline.content.scripts import is_spaceless
from pipeline.content.text import clean
from pipeline.contracts.config import StrictModel
from pipeline.contracts.schema import MATCHED_SCHEMA, REJECTED_SCHEMA, Reason, rejected_rows
from pipeline.match import Matcher

Rule = Literal["file_name", "camera_name", "date", "url", "mail", "identifier", "not_words", "boilerplate"]
RULES: tuple[Rule, ...] = get_args(Rule)

_WORD = r"[^\W\d_]{2,}"
_PLAIN = re.compile(rf"(?:{_WORD}[,;:]? ){{2}}{_WORD}(?![.\w]*\.\w)")

_FILE = re.compile(
    r".*\.(?:jpe?g|jpe|jfif|png|gif|webp|bmp|tiff?|svg|ico|heic|heif|avif|raw|cr2|cr3|nef|arw|dng|orf|psd|ai|eps|pdf|docx?|pptx?"
    r"|xlsx?|mp4|mov|avi|webm|zip|html?|php|aspx?)(?: ?\(\d+\))?",
    re.IGNORECASE,
)
_UNDERSCORED = re.compile(r"[^\s_]*_\S*")
_HYPHENATED = re.compile(r"[^\W_]+(?:-[^\W_]+){3,}")
_LINKING = frozenset(
    (
        "a", "an", "and", "as", "at", "by", "for", "from", "go", "in", "it", "of", "on", "or", "over", "the", "to", "under", "up", "upon",
        "you", "au", "aux", "de", "des", "du", "en", "et", "la", "le", "les", "lès", "ou", "par", "sous", "sur", "am", "auf", "bei", "dem",
        "den", "der", "im", "ob", "und", "vom", "von", "vor", "zu", "zum", "zur", "da", "del", "della", "di", "do", "dos", "el", "het",
        "op", "ten", "ter", "van", "y", "al", "ibn", "ul",
    )
)  # fmt: skip
"""Words that link the parts of a compound or a name of four parts or five: "jack-in-the-box", "Saint-Germain-en-Laye"."""
_COUNT = r"[ _.#-]*\(?\d[\dA-Za-z _.:()-]*"
_CAMERA_FILE = re.compile(
    rf"_?(?:IMG|IMAG|IMGP|DSC|DSCN|DSCF|DSCI|DSCO|_?MG|PICT|PIC|PXL|MVI|MVIMG|MVC|GOPR|DJI|SDC|SNC|HPIM|KIF|CIMG|FB_IMG|WHATSAPP IMAGE"
    rf"|SCREEN ?SHOT){_COUNT}"
    # What may also be something else, with as many digits as a camera writes: "SL270012", but "Mercedes SL 500".
    r"|(?:CAM|CRW|DCP|GP|SAM|SL|VID|WP)[_-]?\d{4,}[\w.-]*"
    # A word of a language with a count; with a year it says something: "Portrait 1889".
    rf"|(?:IMAGE|FILE|SCAN|BURST|PANO|PORTRAIT|PHOTO|FOTO|BILD|PICTURE|UNTITLED|SLIDE|FIGURE|FIG)(?! (?:1[5-9]|20)\d\d$){_COUNT}"
    r"|[PR][A-C\d]\d{5,6}|\d{3}[_-]\d{4}|DSC[A-Z]?_*",
    re.IGNORECASE,
)
_SENTENCE = re.compile(rf"{_WORD} {_WORD}")
_MONTHS = "|".join((
    "jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?",
    "januar|februar|märz|mai|juni|juli|oktober|dezember",
    "janvier|février|mars|avril|juin|juillet|août|septembre|octobre|novembre|décembre",
    "enero|febrero|marzo|abril|mayo|junio|julio|agosto|septiembre|octubre|noviembre|diciembre",
    "gennaio|febbraio|aprile|maggio|giugno|luglio|settembre|ottobre|dicembre",
    "janeiro|fevereiro|março|maio|junho|julho|setembro|outubro|novembro|dezembro",
    "januari|februari|maart|mei|augustus",
))  # fmt: skip
"""English with its abbreviations, and what is new in German, French, Spanish, Italian, Portuguese and Dutch."""
_DATE = re.compile(
    r"(?:(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?\.?,? )?"
    rf"(?:\d{{1,4}}[-./ _]\d{{1,2}}[-./ _]\d{{1,4}}|(?:19|20)\d{{6}}"
    rf"|(?=[^\W\d_]{{3,10}}\.? \d)(?!mars )(?:{_MONTHS})\.? (?:\d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}}|(?:19|20)\d{{2}})"
    rf"|\d{{1,2}}(?:st|nd|rd|th)?\.? (?:de )?(?:{_MONTHS})\.?,? (?:de )?(?:\d{{4}}|'?\d\d)"
    r"|\d{4}年\d{1,2}月(?:\d{1,2}日)?)"
    r"(?:(?:,? at|[ T_,-])? ?\d{1,2}(?:[:.h-]?\d{2}(?:[:.-]?\d{2})?(?:[.:]\d+)? ?(?:[ap]\.?m\.?|z|utc|gmt)?| ?[ap]\.?m\.?))?",
    re.IGNORECASE,
)
_URL = re.compile(
    r"(?:[a-z][a-z0-9+.-]{1,10}://|www\.)\S+"
    r"|(?:[\w-]+\.)+(?:com|org|net|info|biz|edu|gov|io|co|de|fr|uk|ru|cn|jp|it|es|nl|pl|br|eu|us|ca|au|tv|me|shop|online)(?:[/:?#]\S*)?",
    re.IGNORECASE,
)
_MAIL = re.compile(r"(?:mailto:)?[^\s@]+@[^\s@]+\.[A-Za-z]{2,}", re.IGNORECASE)
_UUID_OR_HASH = re.compile(r"\{?[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\}?|(?=[a-f]*\d)[0-9a-f]{8,}", re.IGNORECASE)
_TOKEN = re.compile(r"[A-Za-z0-9=+/-]{8,}")
_YEAR = re.compile(r"[A-Za-z]{3,}[-_]?(?:19|20)\d\d|(?:19|20)\d\d[-_]?[A-Za-z]{3,}")
_BOILERPLATE = frozenset(
    (
        "image", "images", "img", "photo", "photos", "picture", "pictures", "pic", "thumbnail", "thumb", "untitled",
        "placeholder", "no image", "no image available", "image not found", "image not available",
        "image unavailable", "no photo", "no photo available", "no picture", "click to enlarge",
        "click for larger image", "click to view", "click here", "enlarge image", "view larger image", "alt text",
        "alt", "alt tag", "image description", "default", "default image", "null", "undefined", "none", "n/a",
        "loading", "featured image", "main image", "product image", "article image", "post image", "header image",
        "hero image", "slide", "slider",
    )
)  # fmt: skip


class QualityConfig(StrictModel):
    """Which captions go on to matching. Sizes and shapes of pictures are in [crawl]."""

    min_characters: int = pydantic.Field(default=2, ge=1)
    """Characters of the cleaned caption; in scripts without word spaces one is enough."""
    max_characters: int = pydantic.Field(default=1000, ge=1)
    min_words: int = pydantic.Field(default=1, ge=1)
    """Words between spaces; in scripts without word spaces every character is one."""
    max_words: int = pydantic.Field(default=200, ge=1)
    """Words between spaces. Not asked of scripts without them."""
    identify_language: bool = True
    """Fill the `language` column; off: it stays as the source has it."""
    languages: tuple[str, ...] = ()
    """Languages that are kept (ISO 639-1); empty: all."""
    keep_unsure: bool = True
    """Keep captions whose language cannot be said, as with most single words, although `languages` is given."""
    drop: tuple[Rule, ...] = RULES
    """What is no natural language; leave a rule out to switch it off."""

    @pydantic.field_validator("languages")
    @classmethod
    def _codes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for code in value:
            if not re.fullmatch("[a-z]{2}", code):
                raise ValueError(f"languages: {code!r} is no ISO 639-1 code; give two small letters, such as 'en'")
        return value

    @pydantic.model_validator(mode="after")
    def _can_be_met(self) -> "QualityConfig":
        if self.min_characters > self.max_characters or self.min_words > self.max_words:
            raise ValueError(
                "quality: a minimum is above its maximum; no caption could be kept: lower min_ or raise max_"
            )
        if self.languages and not self.identify_language:
            raise ValueError("quality.languages needs quality.identify_language; set it to true")
        return self


def filter_rows(table: pa.Table, matcher: Matcher, config: QualityConfig | None = None) -> tuple[pa.Table, pa.Table]:
    """Candidates as (rows of MATCHED_SCHEMA, rows of REJECTED_SCHEMA), the kept ones in their order.

    Adds the cleaned `caption`, its `language` and its `query_ids`. Rejections: empty_caption (cleaning leaves nothing), caption_length,
    not_natural_language, language, no_query, by the first that applies.
    """
    config = config or QualityConfig()
    captions = pa.array([clean(text) for text in table["caption_raw"].to_pylist()], pa.string())
    table, rejected = _judged(table.append_column("caption", captions), config)
    if config.identify_language:
        table = _with_language(table)
        table, foreign = _in_languages(table, config)
        rejected.append(foreign)
    table = table.append_column("query_ids", matcher.match(table["caption"]))
    matched = pc.greater(pc.list_value_length(table["query_ids"]), 0)
    rejected.append(rejected_rows(table.filter(pc.invert(matched)), Reason.NO_QUERY))
    rows = table.filter(matched).select(MATCHED_SCHEMA.names).cast(MATCHED_SCHEMA)
    return rows, pa.concat_tables([REJECTED_SCHEMA.empty_table(), *rejected])


def judge(caption: str, config: QualityConfig) -> tuple[Reason, str | None] | None:
    """Why a cleaned caption is not kept, whatever its language; None: it is."""
    if not caption:
        return Reason.EMPTY_CAPTION, None
    spaceless = is_spaceless(caption)
    characters = len(caption)
    words = characters if spaceless else caption.count(" ") + 1
    if characters < config.min_characters and not spaceless:
        return Reason.CAPTION_LENGTH, f"{characters} characters, fewer than {config.min_characters}"
    if characters > config.max_characters:
        return Reason.CAPTION_LENGTH, f"{characters:,} characters, more than {config.max_characters:,}"
    if words < config.min_words:
        return Reason.CAPTION_LENGTH, f"{words} words, fewer than {config.min_words}"
    if words > config.max_words and not spaceless:
        return Reason.CAPTION_LENGTH, f"{words:,} words, more than {config.max_words:,}"
    if _PLAIN.match(caption) and _stock_rule(caption) is None:
        return None
    rule = next((rule for rule in broken_rules(caption) if rule in config.drop), None)
    return None if rule is None else (Reason.NOT_NATURAL_LANGUAGE, rule)


def broken_rules(caption: str) -> Iterator[Rule]:
    """The rules by which a cleaned caption is no natural language, the most telling first."""
    file, stock = _FILE.fullmatch(caption), _stock_rule(caption)
    if _MAIL.fullmatch(caption):
        yield "mail"
    if not file and _URL.fullmatch(caption):
        yield "url"
    if _DATE.fullmatch(caption):
        yield "date"
    # Two plain words make a sentence of what a file's or a camera's name begins with: "Fig 3 cell membrane".
    stem = caption.rpartition(".")[0] if file else caption
    if stock == "camera_name" or (_CAMERA_FILE.fullmatch(stem) and not _SENTENCE.search(stem.partition(" ")[2])):
        yield "camera_name"
    digits = sum(map(str.isdigit, caption))
    if _UUID_OR_HASH.fullmatch(caption):
        yield "identifier"
    if file or _UNDERSCORED.fullmatch(caption) or _is_slug(caption):
        yield "file_name"
    if 4 <= digits < len(caption) and _TOKEN.fullmatch(caption) and not _YEAR.fullmatch(caption):
        yield "identifier"
    if stock == "boilerplate":
        yield "boilerplate"
    if _mostly_signs(caption):
        yield "not_words"


def _stock_rule(caption: str) -> Rule | None:
    """The rule that a caption breaks as a whole phrase, be it of plain words: "No image available", "OLYMPUS DIGITAL CAMERA"."""
    if len(caption) >= 40:
        return None
    bare = caption.casefold().strip(" .!:#*-[]()\"'")
    if bare in _BOILERPLATE:
        return "boilerplate"
    return "camera_name" if is_camera_text(bare) else None


def _is_slug(caption: str) -> bool:
    """Whether hyphens join words as an address or a file name has them: four parts or more with a digit, more than five parts, or four or
    five with neither a linking word inside nor a capital at each. So "jack-in-the-box", "Saint-Jean-de-Luz" and
    "Johann-Wolfgang-Goethe-Universität" are none."""
    if not _HYPHENATED.fullmatch(caption):
        return False
    parts = caption.split("-")
    if len(parts) > 5 or any(map(str.isdigit, caption)):
        return True
    return _LINKING.isdisjoint(part.casefold() for part in parts[1:-1]) and not all(part[0].isupper() for part in parts)


def _mostly_signs(caption: str) -> bool:
    """Whether fewer than a quarter of the characters, spaces aside, are letters. Marks (the vowels of Thai) are neither."""
    letters = sum(map(str.isalpha, caption))
    if letters * 4 >= len(caption):
        return False
    others = sum(
        1 for char in caption if not (char.isspace() or char.isalpha()) and (char.isascii() or not _is_mark(char))
    )
    return letters * 3 < others


def _is_mark(char: str) -> bool:
    return unicodedata.category(char)[0] == "M"


def _judged(table: pa.Table, config: QualityConfig) -> tuple[pa.Table, list[pa.Table]]:
    """The rows whose captions are kept, and the others as rejections in their order."""
    verdicts = [judge(caption, config) for caption in table["caption"].to_pylist()]
    rejected = []
    for reason in (Reason.EMPTY_CAPTION, Reason.CAPTION_LENGTH, Reason.NOT_NATURAL_LANGUAGE):
        places = [place for place, verdict in enumerate(verdicts) if verdict is not None and verdict[0] is reason]
        details = pa.array([(verdicts[place] or (reason, None))[1] for place in places], pa.string())
        rejected.append(rejected_rows(table.take(pa.array(places, pa.int64())), reason, details))
    return table.filter(pa.array([verdict is None for verdict in verdicts], pa.bool_())), rejected


def _with_language(table: pa.Table) -> pa.Table:
    """What is identified, else what the source says."""
    found = pc.coalesce(language.identify(table["caption"]), table["language"].cast(pa.string()))
    return table.set_column(table.column_names.index("language"), "language", found)


def _in_languages(table: pa.Table, config: QualityConfig) -> tuple[pa.Table, pa.Table]:
    if not config.languages:
        return table, REJECTED_SCHEMA.empty_table()
    kept = pc.is_in(table["language"], pa.array(config.languages, pa.string()))
    if config.keep_unsure:
        kept = pc.or_(kept, pc.is_null(table["language"]))
    left = table.filter(pc.invert(kept))
    details = pc.coalesce(left["language"], pa.scalar("unsure"))
    return table.filter(kept), rejected_rows(left, Reason.LANGUAGE, details)
