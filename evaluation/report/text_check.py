"""The second hand for words: what `overlap.text` and `text_numbers` compute, computed another way for `verify`.

Nothing here may call them. Where the first hand has compiled tables, filters and lists, this one has a dictionary of tuples of words for
each caption and compares one pair after the other. With `hash-only` evidence there are no captions to compare: then digests decide about
exact matches, and the scores of the others are taken as given.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from scipy.stats import binomtest

from evaluation.config import TextRule
from evaluation.overlap.tables import TEXT_METHODS
from evaluation.report.schema import SetReport, Share
from pipeline.content.scripts import spaceless_points
from pipeline.content.text import normal_form

Row = Mapping[str, object]
_TOLERANCE = 1e-9
_MILLIONTHS = 1_000_000


def strangers(text_pairs: Sequence[Row], splits: Mapping[str, Sequence[Row]]) -> str | None:
    """The first text pair that names what there is not, so that nothing else can be asked of the tables; None where all is known."""
    for pair in text_pairs:
        if pair["method"] not in TEXT_METHODS:
            return f"{pair['method']!r} is no method of matching"
        if not 0 <= _number(pair["text"]) < len(splits.get(str(pair["set"]), [])):
            return f"set {pair['set']!r} has no example {pair['text']!r}"
    return None


def check_pairs(
    one: SetReport, split: Sequence[Row], pictures: Sequence[Row], own: Sequence[Row], shown: bool, keep: int
) -> Iterator[str]:
    """What is wrong with a set's text pairs and its split's words, as the end of a sentence. `pictures` are its pairs of pictures; `shown`:
    captions are in the tables, which hold `keep` pairs of a caption by each method."""
    yield from _check_captions(split, shown)
    by_text = {row["text"]: row for row in split if row["text"] == row["eval_row"]}
    captions = [_words(_form(row["caption"])) for row in by_text.values()] if shown else []
    weights = _weights(captions, one.text.rule.run)
    if len({(pair["text"], pair["shard"], pair["row"]) for pair in own}) != len(own):
        yield "a text pair comes twice"
    for pair in own:
        where = f"caption of example {pair['text']} in row {pair['row']} of {pair['shard']}"
        ours = by_text.get(pair["text"])
        if ours is None or ours["text_sha256"] != pair["text_sha256"]:
            yield f"{where}: is not the caption of that example in the split"
            continue
        yield from (f"{where}: {problem}" for problem in _check_pair(one.text.rule, ours, pair, weights, shown))
    text_of = {row["eval_row"]: row["text"] for row in split}
    beside = {(text_of.get(pair["eval_row"]), pair["shard"], pair["row"]) for pair in pictures}
    for pair in own:
        if pair["with_picture"] != ((pair["text"], pair["shard"], pair["row"]) in beside):
            yield f"caption of example {pair['text']} in row {pair['row']} of {pair['shard']}: with_picture is not what the pictures say"
    alone = Counter((pair["text"], pair["method"]) for pair in own if not pair["with_picture"])
    for (text, method), count in alone.items():
        if count > keep:
            yield f"caption of example {text}: has {count} pairs by {method}, more than the {keep} that the table holds"
    full = {
        text for (text, _), count in Counter((pair["text"], pair["method"]) for pair in own).items() if count >= keep
    }
    found = _by_text(own)
    for row in split:
        pairs, *expected = found.get(row["text"], (0, None, None)) if row["text"] is not None else (None, None, None)
        stated = [row["text_method"], row["text_score"]]
        more = row["text"] in full and _number(row["text_pairs"]) >= _number(pairs)
        if stated != expected or (row["text_pairs"] != pairs and not more):
            yield f"example {row['eval_id']!r}: its text pairs give {[pairs, *expected]}, its split {[row['text_pairs'], *stated]}"


def check_labels(pairs: Sequence[Row], split: Sequence[Row], classes: Sequence[Row], shown: bool) -> Iterator[str]:
    """What is wrong with `names_label` of a set's pairs; `classes` are its CLASS_SCHEMA rows."""
    sought = {row["label"]: [_words(normal_form(name)) for name in str(row["names"]).split("|")] for row in classes}
    labels = {row["eval_row"]: row["label"] for row in split}
    for pair in pairs:
        label = labels.get(pair["eval_row"])
        asked = label in sought and pair["caption"] is not None
        words = _words(_form(pair["caption"]))
        expected = any(_stands_in(name, words) for name in sought.get(label, [])) if asked else None
        wrong = pair["names_label"] != expected if shown else pair["names_label"] is not None and label not in sought
        if wrong:
            where = f"example {pair['eval_id']!r} with row {pair['row']} of {pair['shard']}"
            yield f"{where}: names_label is {pair['names_label']!r}, not {expected!r}"


def check_figures(
    one: SetReport,
    split: Sequence[Row],
    pairs: Sequence[Row],
    own: Sequence[Row],
    classes: Sequence[Row],
    corpus_rows: int,
    confidence: float,
) -> Iterator[tuple[str, object, object]]:
    """(name, stated, computed) of every figure of a set's words."""
    captions, labels = one.text.captions, one.text.labels
    yield "captions", captions is not None, any(row["text"] is not None for row in split)
    yield "labels", labels is not None, bool(classes)
    if captions is not None:
        searched = [row for row in split if _number(row["text_tokens"]) >= one.text.rule.least]
        hits = [row for row in searched if row["text_method"] is not None]
        yield from _share("captions.share", captions.share, len(hits), len(searched), confidence)
        yield "captions.texts", captions.texts, len({row["text"] for row in searched})
        with_text = [row for row in split if row["text"] is not None]
        yield "captions.too_short", captions.too_short, len(with_text) - len(searched)
        methods = Counter(row["text_method"] for row in hits)
        yield "captions.by_method", captions.by_method, {key: methods[key] for key in TEXT_METHODS}
        pairs_of_all = sum(_number(row["text_pairs"]) for row in split if row["text"] == row["eval_row"])
        yield "captions.pairs", captions.pairs, pairs_of_all
        yield "captions.pairs_held", captions.pairs_held, len(own)
        seen, unseen = len({(row["shard"], row["row"]) for row in own}), pairs_of_all - len(own)
        possible = seen <= captions.corpus_rows <= seen + unseen
        yield "captions.corpus_rows", captions.corpus_rows, captions.corpus_rows if possible else seen
        text_at: dict[object, set[object]] = {}
        for pair in own:
            text_at.setdefault(pair["text"], set()).add((pair["shard"], pair["row"]))
        pictures_at: dict[object, set[object]] = {}
        for pair in pairs:
            pictures_at.setdefault(pair["eval_row"], set()).add((pair["shard"], pair["row"]))
        beside = sum(bool(text_at.get(row["text"], set()) & pictures_at.get(row["eval_row"], set())) for row in hits)
        yield "captions.with_picture", captions.with_picture, beside
    if labels is not None:
        label_of = {row["eval_row"]: _number(row["label"]) for row in split}
        video_of = {row["eval_row"]: row["group"] for row in split if row["group"] is not None}
        answers: dict[object, list[tuple[bool, int]]] = {}  # of a picture, or of all frames of a video
        for pair in pairs:
            if pair["names_label"] is not None:
                picture = pair["eval_row"]
                answer = (pair["names_label"] is True, label_of.get(picture, -1))
                answers.setdefault(video_of.get(picture, picture), []).append(answer)
        named = sum(any(names for names, _ in given) for given in answers.values())
        yield from _share("labels.named", labels.named, named, len(answers), confidence)
        rows = {row["label"]: _number(row["rows"]) for row in classes}
        shares = [rows.get(min(label for _, label in given), 0) / corpus_rows for given in answers.values()]
        yield "labels.expected", labels.expected, math.fsum(shares) / len(shares) if shares else None
        yield "labels.classes", labels.classes, len(rows)
        yield "labels.classes_named", labels.classes_named, sum(count > 0 for count in rows.values())
        yield "labels.mentions", labels.mentions, sum(rows.values())


def _share(name: str, stated: Share, hits: int, n: int, confidence: float) -> Iterator[tuple[str, object, object]]:
    low, high = binomtest(hits, n).proportion_ci(confidence, method="exact") if n else (0.0, 1.0)
    computed = {"n": n, "hits": hits, "value": hits / n if n else None, "low": float(low), "high": float(high)}
    for key, value in computed.items():
        yield f"{name}.{key}", getattr(stated, key), value


def _check_captions(split: Sequence[Row], shown: bool) -> Iterator[str]:
    """Token forms, digests, tokens, and who has the same caption."""
    first: dict[object, object] = {}
    for row in split:
        where = f"example {row['eval_id']!r}"
        if shown:
            form = _form(row["caption"])
            expected = (_sha256(form), len(_words(form))) if form else (None, None)
            if (row["text_sha256"], row["text_tokens"]) != expected:
                yield f"{where}: text_sha256 and text_tokens are not those of its caption"
        elif row["caption"] is not None:
            yield f"{where}: evidence is 'hash-only', and its split has the caption"
        digest = row["text_sha256"]
        same = None if digest is None else first.setdefault(digest, row["eval_row"])
        if row["text"] != same:
            yield f"{where}: text is {row['text']}, the first example with its caption is {same}"


def _check_pair(
    rule: TextRule, ours: Row, pair: Row, weights: Mapping[tuple[str, ...], int], shown: bool
) -> Iterator[str]:
    equal = pair["text_sha256"] == pair["caption_sha256"]
    size, score = _number(ours["text_tokens"]), float(str(pair["score"]))
    if (pair["method"] == "exact") != equal:
        yield f"is {'' if equal else 'not '}the same caption by its digest, and its method {pair['method']}"
    if size < (rule.whole_below if pair["method"] == "near" else rule.least):
        yield f"has {size} tokens, too few for {pair['method']}"
    if not rule.similarity <= score <= 1 or (pair["method"] != "near" and score != 1):
        yield f"score {score} is not one of {pair['method']}"
    if not shown:
        if pair["url"] is not None or pair["caption"] is not None:
            yield "evidence is 'hash-only', and it has a URL or a caption"
        return
    theirs = _form(pair["caption"])
    if _sha256(theirs) != pair["caption_sha256"]:
        yield "caption_sha256 is not that of its caption"
    own, words = _words(_form(ours["caption"])), _words(theirs)
    if (pair["method"] != "near") != _stands_in(own, words):
        yield f"its words do not stand as {pair['method']} says"
    if pair["method"] == "near":
        there = _runs(words, rule.run)
        runs = _runs(own, rule.run)
        computed = sum(weights[one] for one in runs & there) / max(1, sum(weights[one] for one in runs))
        if abs(computed - score) > _TOLERANCE:
            yield f"score is {score!r}, its captions give {computed!r}"


def _by_text(own: Sequence[Row]) -> dict[object, tuple[int, str, float]]:
    """(pairs, strongest method, its best score) of each caption."""
    found: dict[object, list[tuple[int, float]]] = {}
    for pair in own:
        found.setdefault(pair["text"], []).append((TEXT_METHODS.index(str(pair["method"])), -float(str(pair["score"]))))
    return {text: (len(all_), TEXT_METHODS[min(all_)[0]], -min(all_)[1]) for text, all_ in found.items()}


def _weights(captions: Sequence[Sequence[str]], longest: int) -> dict[tuple[str, ...], int]:
    """What each run weighs: rare ones more."""
    having = Counter(run for caption in captions for run in _runs(caption, longest))
    return {run: round(_MILLIONTHS * math.log((count + len(captions)) / count)) for run, count in having.items()}


def _runs(words: Sequence[str], longest: int) -> set[tuple[str, ...]]:
    return {tuple(words[at : at + size]) for size in range(1, longest + 1) for at in range(len(words) - size + 1)}


def _stands_in(part: Sequence[str], whole: Sequence[str]) -> bool:
    return any(whole[at : at + len(part)] == part for at in range(len(whole) - len(part) + 1))


def _words(form: str) -> list[str]:
    """Tokens, character by character: a space ends one, a character of a script without spaces is one."""
    alone = spaceless_points()
    found, current = [], ""
    for char in form:
        if char == " " or alone[ord(char)]:
            found += [current] if current else []
            found += [] if char == " " else [char]
            current = ""
        else:
            current += char
    return found + ([current] if current else [])


def _form(caption: object) -> str:
    """The token form."""
    return "" if caption is None else " ".join(_words(normal_form(str(caption))))


def _sha256(form: str) -> bytes:
    return hashlib.sha256(form.encode()).digest()


def _number(value: object) -> int:
    return value if isinstance(value, int) else -1
