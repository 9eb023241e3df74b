"""Which language a caption is in: ISO 639-1, or null where that cannot be said.

Scripts come first, because they decide: kana is Japanese, Hangul Korean, Thai script Thai, and Han characters without kana Chinese. (A
Japanese caption in kanji alone is taken for Chinese; in so few characters nothing tells them apart.) Everything else goes to CLD2
(pycld2), whose
tables lie inside its wheel: nothing is fetched at run time. An answer that CLD2 itself calls unreliable is null, and so are codes of three
letters, which it gives rare languages that short captions are mistaken for.

Chosen among what ships its model, over captions of COCO and CC3M, names of emoji in English and Chinese, and 75 short captions in
15 languages, on one shared core (accuracy COCO / CC3M / emoji English / emoji Chinese / 15 languages, captions a second):

    pycld2 0.42            99.9 / 99.9 / 91.3 / 85.3 /  93.3 %   about 120,000    Apache-2.0, 14 MB
    lid.176.ftz (fastText) 99.7 / 99.5 / 92.8 / 62.2 /  97.3 %   about  50,000    model CC BY-SA 3.0
    py3langid 0.4          99.9 / 99.7 / 59.8 / 76.8 /  97.3 %   about  20,000    BSD, 105 MB of memory
    lingua 2.1             99.0 / 100  / 73.0 / 100  / 100   %   about     700    Apache-2.0, 1.1 GB of memory
    resiliparse 2.0        83.7 / 84.8 / 24.5 /  0.0 /  42.7 %   about 180,000

Those figures are best guesses without a threshold and without the rule for scripts, which settles the Chinese names. With CLD2's own
threshold
(no best effort) two in three of the shortest names get an answer, 96 % of them right, and 99.5 % of the captions, 99.9 % of them right.
"""

import re

import pyarrow as pa

_KANA = re.compile(r"[\u3041-\u3096\u30a1-\u30fa\uff66-\uff9d]")
_HANGUL = re.compile(r"[\uac00-\ud7a3\u1100-\u11ff\u3131-\u318e]")
_THAI = re.compile(r"[\u0e01-\u0e4e]")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_LATIN = re.compile(r"[A-Za-z]")
_LETTERS_PER_HAN = 4
"""Latin letters that weigh as much as one Han character: "新 iPhone 15 Pro" stays open, "iPhone 手机壳" is Chinese."""
_CODES = {"iw": "he", "jw": "jv", "zh-Hant": "zh"}


def identify(captions: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The language of each cleaned caption: string array of the same length, null where unsure."""
    # Here and not above: CLD2's tables are 14 MB that only the processes that ask should load.
    import pycld2

    def of(caption: str | None) -> str | None:
        if not caption:
            return None
        if not caption.isascii() and (language := by_script(caption)) is not None:
            return language
        try:
            reliable, _, found = pycld2.detect(caption.lower() if caption.isupper() else caption, isPlainText=True)
        except pycld2.error:  # characters that CLD2 takes for broken UTF-8, such as noncharacters
            return None
        code = _CODES.get(found[0][1], found[0][1])
        return code if reliable and len(code) == 2 and code != "un" else None

    return pa.array([of(caption) for caption in captions.to_pylist()], pa.string())


def by_script(caption: str) -> str | None:
    """The language that a script alone decides, or None."""
    for pattern, language in ((_KANA, "ja"), (_HANGUL, "ko"), (_THAI, "th")):
        if pattern.search(caption):
            return language
    han = len(_HAN.findall(caption))
    return "zh" if han and han * _LETTERS_PER_HAN >= len(_LATIN.findall(caption)) else None
