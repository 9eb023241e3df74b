"""Captions in English and Chinese, how they leak, and what of one stands in another, counted by the definition.

The definition (evaluation/README.md, "Words"): the weight of a caption's words, and of the pairs of words that stand side by side, that are
in the other caption too, by the weight of all of them; a word or pair weighs ln(1 + captions of the set / captions of the set with it). In
Chinese a word is a sign. A caption that is `near` has as many words replaced as it surely may have, and its look-alike one more.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from evaluation.config import TextRule
from tests.web.dice import Dice

RULE = TextRule()
"""The job's defaults; its configuration says none."""
_MARGIN = 0.025
Language = Literal["en", "zh"]

CLASSES = ("blank frame", "wren", "heron", "crane", "stork", "gull", "tern", "petrel", "gannet")
CLASSES_ZH = ("白屏", "鹪鹩", "苍鹭", "丹顶鹤", "白鹳", "海鸥", "燕鸥", "海燕", "鲣鸟")
"""No sentence below has one of these words, so a caption names a class only where it is told to."""

_ADJECTIVES = (
    "brown", "scarlet", "teal", "ochre", "violet", "silver", "crimson", "dented", "polished", "narrow", "hollow", "striped",
    "painted", "rusty", "woven",
)  # fmt: skip
_THINGS = (
    "kettle", "ladder", "violin", "lantern", "barrel", "anchor", "saddle", "compass", "trowel", "spindle", "basket", "mirror",
    "bicycle", "clock", "suitcase", "stove",
)  # fmt: skip
_VERBS = ("stands", "leans", "lies", "rests", "waits", "hangs")
_SIDES = ("beside", "behind", "beneath", "against", "above")
_MATTERS = ("oak", "granite", "copper", "linen", "marble", "bamboo", "wicker", "velvet", "clay")
_PLACES = (
    "harbour", "meadow", "library", "workshop", "cellar", "orchard", "chapel", "quarry", "tavern", "bakery", "station",
    "courtyard", "attic",
)  # fmt: skip
_TIMES = ("dawn", "noon", "dusk", "midnight", "breakfast", "closing", "harvest")
_WEATHER = ("rain", "fog", "sunshine", "snow", "drizzle", "moonlight")
_ZH_COLOURS = "红黄蓝绿黑灰紫褐"
_ZH_THINGS = ("水壶", "梯子", "提琴", "灯笼", "木桶", "罗盘", "镜子", "篮子", "时钟", "皮箱", "火炉", "纸伞")
_ZH_PLACES = ("港口", "草地", "书房", "地窖", "果园", "教堂", "茶馆", "车站", "院子", "阁楼")
_ZH_TIMES = ("清晨", "正午", "黄昏", "深夜", "春天", "秋天", "冬天")
_ZH_ACTS = ("静静放着", "斜斜靠着", "高高挂着", "随意摆着")
_ZH_SIGNS = "甲乙丙丁东南西北山川石竹梅兰菊米布铁银铜"


class Caption(NamedTuple):
    """The words of a caption (in Chinese its signs), lower case and without punctuation."""

    language: Language
    words: tuple[str, ...]

    def __str__(self) -> str:
        """As somebody would write it."""
        if self.language == "zh":
            return "".join(self.words) + "。"
        text = " ".join(self.words)
        return text[0].upper() + text[1:] + "."


def sentence(dice: Dice, language: Language) -> Caption:
    """A caption that has hardly a twin: 16 words, or 20 signs or so."""
    if language == "zh":
        one, other = dice.pick(_ZH_THINGS), dice.pick(_ZH_THINGS)
        text = f"{dice.pick(_ZH_TIMES)}的{dice.pick(_ZH_PLACES)}里{dice.pick(_ZH_ACTS)}一个{dice.pick(_ZH_COLOURS)}色的{one}"
        return Caption("zh", tuple(f"{text}和{dice.pick(_ZH_PLACES)}的{other}"))
    text = (
        f"a {dice.pick(_ADJECTIVES)} {dice.pick(_THINGS)} {dice.pick(_VERBS)} {dice.pick(_SIDES)} the {dice.pick(_MATTERS)} "
        f"{dice.pick(_THINGS)} of the {dice.pick(_PLACES)} at {dice.pick(_TIMES)} in the {dice.pick(_WEATHER)}"
    )
    return Caption("en", tuple(text.split()))


def short(dice: Dice, words: int) -> Caption:
    """An English caption of 3 or 5 words: one is not searched at all, the other must be there as a whole."""
    if words == 3:
        return Caption("en", ("a", dice.pick(_ADJECTIVES), dice.pick(_THINGS)))
    return Caption("en", (dice.pick(_ADJECTIVES), dice.pick(_THINGS), "and", dice.pick(_MATTERS), dice.pick(_THINGS)))


# ---- how much of a caption stands in another


def runs(words: Sequence[str]) -> set[tuple[str, ...]]:
    """Its words, and the pairs that stand side by side."""
    return {(word,) for word in words} | set(itertools.pairwise(words))


class Weights:
    """What the runs of a set's captions weigh; the captions differ from one another."""

    def __init__(self, captions: Sequence[Caption]) -> None:
        having = Counter(run for caption in captions for run in runs(caption.words))
        self._weights = {run: math.log(1 + len(captions) / count) for run, count in having.items()}

    def share(self, own: Caption, there: set[tuple[str, ...]]) -> float:
        """Of a caption of the set: how much of it is among the runs of another text, 0 to 1."""
        total = common = 0.0
        for run in runs(own.words):
            total += self._weights[run]
            common += self._weights[run] if run in there else 0.0
        return common / total

    def surely_near(self, own: Caption, there: set[tuple[str, ...]]) -> bool:
        return self.share(own, there) >= RULE.similarity + _MARGIN

    def surely_apart(self, own: Caption, there: set[tuple[str, ...]]) -> bool:
        return self.share(own, there) < RULE.similarity - _MARGIN

    def around(self, own: Caption, dice: Dice) -> tuple[Caption, Caption]:
        """The last caption that surely is near and the first that surely is not, as one word after the other is replaced."""
        while True:
            near = own
            for changed in _replaced(own, dice):
                if self.surely_near(own, runs(changed.words)):
                    near = changed
                elif self.surely_apart(own, runs(changed.words)):
                    if near != own:
                        return near, changed
                    break


def _replaced(own: Caption, dice: Dice) -> Iterator[Caption]:
    """`own` with one word replaced, with two, and so on, in an order that dice choose."""
    pool = _ZH_SIGNS if own.language == "zh" else (*_ADJECTIVES, *_THINGS, *_PLACES)
    words, left = list(own.words), list(range(len(own.words)))
    while left:
        place = left.pop(dice.number(0, len(left) - 1))
        words[place] = dice.pick([word for word in pool if word not in own.words])
        yield Caption(own.language, tuple(words))


def differ(one: Caption, others: Sequence[Caption]) -> bool:
    """Whether less than half of its runs are in any of the others, so that two captions of a set cannot be taken for one another."""
    own = runs(one.words)
    return all(2 * len(own & runs(other.words)) < len(own) for other in others)


# ---- how it is written


def disguised(caption: Caption, dice: Dice) -> str:
    """The same words in another writing: case, width, spaces and punctuation."""
    if caption.language == "zh":
        place = dice.number(4, len(caption.words) - 4)
        words = "".join(caption.words)
        return f"“{words[:place]}，{words[place:]}！”"
    text = " ".join(caption.words)
    wide = "".join(chr(ord(sign) + 0xFEE0) if "a" <= sign <= "z" else sign for sign in text)
    return dice.pick((text.upper() + "!!", "  ".join(caption.words).title() + " …", wide, f"“{text},”"))


def within(caption: Caption, dice: Dice) -> str:
    """It, with something before it and behind it."""
    number = dice.number(10, 9999)
    if caption.language == "zh":
        return f"图{number}：{caption}图库照片"
    return f"Stock photo No. {number}: {str(caption)[:-1].upper()} - buy now!"
