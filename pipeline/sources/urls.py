"""URLs of web pages as references and archives spell them, and how over-long ones are cut."""

from urllib.parse import quote, urlsplit

_ENCODED = "%/:=&?~#+!$,;'@()*[]"  # what stays as it is; a browser encodes spaces, quotes and everything beyond ASCII


def picture_key(url: str) -> str:
    """The form in which the URL of a picture's record and that of a reference are compared: host in lower case, percent-encoded."""
    try:
        parts = urlsplit(url)
        return quote(parts._replace(netloc=parts.netloc.lower(), fragment="").geturl(), safe=_ENCODED)
    except ValueError:
        return url


def without_data(url: str | None) -> str | None:
    """A URL as it is kept: of a `data:` URI, which is the picture itself, only what is in front of the data."""
    return url.partition(",")[0][:100] if url is not None and url[:5].lower() == "data:" else url


def cut(text: str, most: int) -> str:
    """The text, or of one with more than `most` characters only those and a sign that there were more, which makes it too long still."""
    return text if len(text) <= most else text[:most] + "…"
