"""Start tags with more attributes than any page needs, ended early: each new attribute is compared with all before it.

The HTML standard asks for that comparison, and for merging the attributes of every further `<html>` and `<body>` into the first. With
100,000 of them in one tag, 0.7 MB, lexbor takes forty seconds; with MAX_ATTRIBUTES in each tag the same bytes take one. What is left
grows with the square of the different names on the page, to a minute for 4 MiB of nothing else.

Where a tag starts depends on what stands before it (comments, scripts, quoted values), which only a parser knows. So every `<` with a
letter behind it is followed as if it were a tag's, all at once: the tokenizer's states in a tag are eight, and for each the largest number
of attributes that some reading has come to is enough. No tag of the page has more than the largest, and the scan takes the same few steps
at each byte whatever the page holds. What looks like such a tag inside a script or a comment gets a `>` that nobody reads.
"""

import numpy as np

from pipeline.content.kernels import Bytes, compiled

MAX_ATTRIBUTES = 1000
_MAX_MERGED = 8
"""`<html>` and `<body>` tags with attributes that stay; those that follow are renamed. Conditional comments make four or five."""


def bounded(text: str, most: int = MAX_ATTRIBUTES) -> str:
    """The page with a `>` behind the first `most` attributes of each tag; nearly always the same text."""
    data = np.frombuffer(bytearray(text.encode()), np.uint8)
    return data.tobytes().decode() if _end_early(data, most, _MAX_MERGED) else text


@compiled
def _end_early(data: Bytes, most: int, merged: int) -> bool:
    """Overwrite UTF-8 in place, whole characters by ASCII; True where something was changed.

    The variables are the states of the tokenizer (HTML, 13.2.5): the most attributes of a reading that is in it now, -1 where none is.
    """
    changed = False
    in_name = before = in_attribute = after = before_value = in_double = in_single = in_bare = -1
    seen = 0  # <html> and <body> tags
    size = len(data)
    # What a byte can change: 0 nothing but which attribute or value begins, 1 a tag outside of quotes, 2 a quoted value, 3 everything.
    kinds = np.zeros(256, np.uint8)
    for byte in (9, 10, 12, 13, 32, 47, 61, 62):
        kinds[byte] = 1
    kinds[34] = kinds[39] = 2
    kinds[60] = 3
    at = -1
    while True:
        at += 1
        if max(before, after, before_value) < 0:
            quoted = max(in_double, in_single) >= 0
            least = 1 if max(in_name, in_attribute, in_bare) >= 0 else 2 if quoted else 3
            while at < size and kinds[data[at]] < least:
                at += 1
        if at >= size:
            return changed
        byte = data[at]
        if byte == 32 or byte == 10 or byte == 9 or byte == 13 or byte == 12:
            before = max(before, in_name, in_bare)
            after = max(after, in_attribute)
            in_name = in_bare = in_attribute = -1
        elif byte == 62:  # >
            in_name = before = in_attribute = after = before_value = in_bare = -1
        elif byte == 47:  # /
            before = max(before, in_name, in_attribute, after)
            in_bare = max(in_bare, before_value)
            in_name = in_attribute = after = before_value = -1
        else:
            if before >= most or (after >= most and byte != 61):
                changed = True
                place = at
                if (
                    data[at - 1] != 34 and data[at - 1] != 39
                ):  # not behind a quote: what separates it from the one before goes
                    place = at - 1
                data[place] = 62
                in_name = before = in_attribute = after = before_value = in_bare = -1
                if place == at:
                    for more in range(at + 1, min(at + 4, size)):
                        if data[more] & 0xC0 != 0x80:
                            break
                        data[more] = 32
                    continue
            if byte == 61:  # =
                before_value, in_bare = max(in_attribute, after), max(in_bare, before_value)
                in_attribute = before + 1 if before >= 0 else -1
                before = after = -1
            else:
                started = max(before, after)
                in_attribute = max(in_attribute, started + 1) if started >= 0 else in_attribute
                before = after = -1
                if byte == 34:  # "
                    before, in_double = in_double, before_value
                elif byte == 39:  # '
                    before, in_single = in_single, before_value
                else:
                    in_bare = max(in_bare, before_value)
                before_value = -1
                if byte == 60 and at + 1 < size and 97 <= data[at + 1] | 32 <= 122:  # < and a letter
                    in_name = max(in_name, 0)
                    if _is_merged(data, at + 1):
                        seen += 1
                        if seen > merged:
                            data[at + 1 : at + 5] = 113
                            changed = True


@compiled
def _is_merged(data: Bytes, at: int) -> bool:
    """Whether `html` or `body` stands here, with room for attributes behind it."""
    if at + 4 >= len(data):
        return False
    end = data[at + 4]
    if not (end == 32 or end == 10 or end == 9 or end == 13 or end == 12 or end == 47):
        return False
    first, second, third, fourth = data[at] | 32, data[at + 1] | 32, data[at + 2] | 32, data[at + 3] | 32
    html = first == 104 and second == 116 and third == 109 and fourth == 108
    body = first == 98 and second == 111 and third == 100 and fourth == 121
    return bool(html or body)
