"""Wikitext to the plain text of its sentences, in time linear in its length whatever it holds.

The nested part (templates, parser functions, links, pictures with their captions) is parsed by mwparserfromhell. The other maintained
parser, wikitextparser, was half as fast again over the 111 articles of two genuine dumps (2.6 against 1.7 MB/s) and as good (538 words
seen 100 times with either), but it is under the GPL, which a program of this licence does not import. Either needs seconds to
minutes for 100 kB of hostile markup (a tag, table or link opened 10,000 times, templates nested 3,000 deep). So what is flat is taken
out before, by scans that look at each character a bounded number of times (which also makes the whole faster than either parser alone),
and text nested deeper than the parser follows is refused.

What becomes of what. Comments, references, formulas, code, galleries and other elements whose content is no prose vanish with their
content, and so do templates, categories, pictures and tables: cells are figures and names rather than sentences. What stood before and
behind them are no neighbours, since a reader sees something between; a comment and a reference's mark part nothing. Other tags go and
their content stays. Links leave their text. Addresses go. A heading, a list item and a paragraph are each a text of their own.
"""

import re
from importlib import metadata
from typing import Any

import mwparserfromhell
from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Tag, Text, Wikilink
from mwparserfromhell.parser import ParserError

MARKUP_VERSION = f"3, mwparserfromhell {metadata.version('mwparserfromhell')}"
"""Enters the digest of what is counted."""

BREAK = "\x1f"
"""Stands where something was that no two words are neighbours across. XML allows no such character, so that no dump holds it."""

_MAX_DEPTH = 30
"""Of templates and links inside one another. The parser follows 33 templates, MediaWiki 40 ($wgMaxTemplateDepth); articles have a few."""

_DROPPED = frozenset(
    {
        "ref", "references", "math", "chem", "ce", "nowiki", "pre", "code", "syntaxhighlight", "source", "gallery", "timeline", "score",
        "graph", "imagemap", "templatedata", "mapframe", "maplink", "hiero", "inputbox", "categorytree", "charinsert", "indicator",
    }
)  # fmt: skip
_BLOCK_TAGS = frozenset(
    {
        "br", "p", "div", "li", "ul", "ol", "dl", "dt", "dd", "tr", "td", "th", "table", "caption", "hr", "blockquote", "center", "poem",
        "h1", "h2", "h3", "h4", "h5", "h6",
    }
)  # fmt: skip
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]{0,30})(?:[\s/][^<>]{0,2000})?>")
_CLOSING = {name: re.compile(rf"</{name}\s{{0,20}}>", re.IGNORECASE) for name in _DROPPED}
_LINKED = re.compile(r"\[(?:https?:|ftp:|mailto:|news:|irc:)?//[^\s\[\]<>]*+([^\[\]\n]*+)\]")
_ADDRESS = re.compile(r"(?:https?|ftp)://[^\s\[\]|<>{}]+")
_PILED = re.compile(r"\{\{(?=\{\{)")
_NESTING = re.compile(r"\{\{|\}\}|\[\[|\]\]")
_EMPHASIS = re.compile(r"'{2,5}")
_SWITCH = re.compile(r"__[A-Z]{2,30}__")


class TooDeep(Exception):
    """Markup nested deeper than _MAX_DEPTH."""


class Unreadable(Exception):
    """Markup that the parser fails on."""


_TROUBLE = (ParserError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a parser may raise on a text that its author did not foresee. It must not end the count of a dump."""


def plain_lines(text: str, namespaces: frozenset[str]) -> list[str]:
    """The lines of prose of a page, with BREAK where something was cut out between words.

    `namespaces` (casefolded) are the prefixes of links that show nothing or a picture, such as categories and files. Raises
    TooDeep and Unreadable.
    """
    text = _without_elements(_without_comments(text))
    text = _LINKED.sub(r"\1", text)
    text = _ADDRESS.sub(BREAK, text)
    text = _SWITCH.sub("", _EMPHASIS.sub("", text))
    text = _balanced(_without_tables(text))
    parts: list[str] = []
    try:
        _collect(mwparserfromhell.parse(text, skip_style_tags=True), namespaces, parts)
    except _TROUBLE as error:
        raise Unreadable(str(error)) from None
    # A line that begins like a row or a cell is what is left of a broken table or template.
    return [line for line in "".join(parts).split("\n") if line.lstrip(BREAK)[:1] not in ("", "|", "!")]


# ---- what is flat


def _without_comments(text: str) -> str:
    if "<!--" not in text:
        return text
    parts, at = [], 0
    while (start := text.find("<!--", at)) != -1:
        parts.append(text[at:start])
        end = text.find("-->", start + 4)
        at = len(text) if end == -1 else end + 3  # MediaWiki: one that is not closed goes on to the end
    return "".join([*parts, text[at:]])


def _without_elements(text: str) -> str:
    """Tags go; the content of those in _DROPPED goes too. A block, or what is dropped from inside a sentence, leaves a BREAK, and so does
    a loose `<`."""
    parts, at = [], 0
    unclosed: set[str] = set()  # names that are not closed any more: looked for once, not once a tag
    while (tag := _TAG.search(text, at)) is not None:
        name = tag[2].lower()
        parts.append(text[at : tag.start()])
        at = tag.end()
        if name in _BLOCK_TAGS or (name in _DROPPED and name != "ref"):
            parts.append(BREAK)
        if name in _DROPPED and not tag[1] and not tag[0].endswith("/>") and name not in unclosed:
            closing = _CLOSING[name].search(text, at)
            if closing is None:
                unclosed.add(name)
            else:
                at = closing.end()
    return "".join([*parts, text[at:]]).replace("<", BREAK)  # no tag is left, nor what a parser would try as one


def _without_tables(text: str) -> str:
    """The lines outside tables."""
    kept, depth = [], 0
    for line in text.split("\n"):
        bare = line.lstrip(":*#; \t" + BREAK)
        if bare.startswith("{|"):
            depth += 1
        elif depth and bare.startswith("|}") and not bare.startswith("|}}"):
            depth -= 1
        elif depth == 0 or bare.startswith(
            "=="
        ):  # no table holds a heading: one that was not closed ends there at the latest
            depth = 0
            kept.append(bare)  # without the signs of a list, of which the parser would make tags
    return "\n".join(kept)


# ---- what is nested


def _balanced(text: str) -> str:
    """The text with what opens and does not close replaced by BREAK: a parser tries each of those again and again. Raises TooDeep."""
    parts: list[str] = []
    opened: list[tuple[int, int]] = []  # place in parts; how many lie inside one another in it, so far
    open_now = {"{{": 0, "[[": 0}  # how many of each are open
    at = 0
    for found in _NESTING.finditer(text):
        token = found[0]
        parts += (_flat(text[at : found.start()]), token)
        at = found.end()
        if token in open_now:
            open_now[token] += 1
            opened.append((len(parts) - 1, 0))
        elif open_now[opener := "{{" if token == "}}" else "[["]:
            while parts[opened[-1][0]] != opener:
                open_now[parts[opened[-1][0]]] -= 1
                parts[opened.pop()[0]] = BREAK
            open_now[opener] -= 1
            inside = opened.pop()[1] + 1
            if inside > _MAX_DEPTH:
                raise TooDeep
            if opened:
                opened[-1] = (opened[-1][0], max(opened[-1][1], inside))
    for place, _ in opened:
        parts[place] = BREAK
    return _PILED.sub("{{" + BREAK, "".join([*parts, _flat(text[at:])]))


def _flat(text: str) -> str:
    """What lies between templates and links, without what a parser would take for the beginning of an address, of a table or (a third
    brace) of a parameter: it looks for the end of each, to the end of the text."""
    return text.removeprefix("{").removeprefix("}").replace("[", BREAK).replace("{|", BREAK)


def _collect(code: Any, namespaces: frozenset[str], parts: list[str]) -> None:
    """Append the text that a reader sees. At most _MAX_DEPTH calls deep, because the parser nests no deeper."""
    for node in code.nodes:
        if isinstance(node, Text):
            parts.append(node.value)
        elif isinstance(node, Wikilink):
            prefix, colon, _ = str(node.title).partition(":")
            if colon and prefix.strip().casefold() in namespaces:
                parts.append(BREAK)
            else:
                _collect(node.title if node.text is None else node.text, namespaces, parts)
        elif isinstance(node, Heading):
            parts.append("\n")
            _collect(node.title, namespaces, parts)
            parts.append("\n")
        elif isinstance(node, HTMLEntity):
            parts.append(str(node.normalize()))
        elif isinstance(node, ExternalLink):
            parts.append(BREAK)
            if node.title is not None:
                _collect(node.title, namespaces, parts)
        elif isinstance(node, Tag):  # the parser makes them from signs: lists, rules
            if node.contents is not None:
                _collect(node.contents, namespaces, parts)
        else:  # a template or its parameter
            parts.append(BREAK)
