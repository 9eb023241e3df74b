"""Personal data in captions: mail addresses and telephone numbers.

Rules of thumb, not a legal answer: they find what is written as such. A telephone number is one with an international prefix (+49 30
901820),
or ten to fifteen digits in groups as numbers are written ((555) 123-4567, 030/901 820-0); plain digits, dates, prices, sizes and
ISBNs are none, for captions are full of those.
"""

import re
from collections.abc import Mapping

import pyarrow as pa

from pipeline.contracts.config import Json
from pipeline.contracts.errors import InputError
from pipeline.policy.hook import hook

_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[a-z0-9-]{1,63}\.){1,8}[a-z]{2,24}(?![\w-])", re.IGNORECASE)
_PHONE = re.compile(
    r"(?<![\w+.,/-])(?:"
    r"\+[1-9](?:[ ()./-]{0,2}\d){7,14}"  # ITU-T E.164: a plus, then at most fifteen digits
    r"|\(\d{2,5}\) ?\d{3,4}[ .-]?\d{3,6}"  # an area code in brackets
    r"|\d{3}[ .-]\d{3}[ .-]\d{4}"  # North American: 555-123-4567
    r"|0\d{2,4}[ /-]\d{3,4}[ -]?\d{2,5}(?:-\d{1,4})?"  # a trunk prefix, then groups
    r")(?![\w]|[.,/-]\d)"
)
_RULES = {"mail": (_MAIL, "mail address"), "phone": (_PHONE, "phone number")}


@hook(columns=("caption",), version=1)
def captions(rows: pa.Table, options: Mapping[str, Json]) -> list[str | None]:
    """Refuses captions with a mail address (unless options.mail is false) or a telephone number (unless options.phone is false)."""
    for name, value in options.items():
        if name not in _RULES or not isinstance(value, bool):
            raise InputError(f"options.{name} is {value!r}; the options are mail and phone, true or false")
    rules = [rule for name, rule in _RULES.items() if options.get(name, True)]
    return [_verdict(caption, rules) for caption in rows["caption"].to_pylist()]


def _verdict(caption: str | None, rules: list[tuple[re.Pattern[str], str]]) -> str | None:
    return next((verdict for pattern, verdict in rules if caption and pattern.search(caption)), None)
