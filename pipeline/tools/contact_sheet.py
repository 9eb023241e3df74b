"""contact-sheet: a random sample of a corpus as one HTML file that opens anywhere, without a network.

Rows are chosen by hashes of the content root, so the same corpus gives the same sheet and nobody picks the pictures; only the row groups
that
hold them are read. Everything that came from the web is escaped text: captions, URLs (not links, so that nobody follows one by accident).
Pictures are data URIs, and the page forbids itself every request (Content-Security-Policy).
"""

import base64
import hashlib
import html

from pipeline import status
from pipeline.contracts import manifest, parquet, storage
from pipeline.contracts.errors import InputError
from pipeline.contracts.manifest import Manifest

MOST_ROWS = 2_000

_TYPES = {"jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp"}

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --dim: #5f6368; --paper: #ffffff; --card: #f3f3f1; --line: #dcdcd8; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --dim: #a0a4a8; --paper: #161618; --card: #222225; --line: #38383c; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 24px; background: var(--paper); color: var(--ink); font: 14px/1.45 system-ui, sans-serif; }
h1 { font-size: 20px; margin: 0 0 4px; }
header p { margin: 0 0 20px; color: var(--dim); overflow-wrap: anywhere; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 16px; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }
.picture { display: flex; align-items: center; justify-content: center; height: 220px; background: var(--line); color: var(--dim); }
img { display: block; max-width: 100%; max-height: 220px; }
figcaption { padding: 10px 12px; }
figcaption p { margin: 0 0 6px; overflow-wrap: anywhere; }
.caption { display: -webkit-box; -webkit-line-clamp: 6; -webkit-box-orient: vertical; overflow: hidden; }
.small { color: var(--dim); font-size: 12px; max-height: 5.6em; overflow: auto; }
"""


def write(path: str, rows: int, place: str) -> int:
    """Write the sheet of the corpus at `path` (a run's output, a corpus, or its manifest) to `place`; returns how many rows it shows.

    Raises InputError for a corpus without rows or a number that is too large for one page.
    """
    if not 1 <= rows <= MOST_ROWS:
        raise InputError(f"--rows {rows}: give 1 to {MOST_ROWS:,}; a page with more does not load")
    corpus = status.corpus(path)
    found = manifest.load(corpus)
    if not found.rows:
        raise InputError(f"{corpus}: the corpus has no rows; there is nothing to show")
    shown = sample(corpus, found, rows)
    storage.write_atomic(place, page(found, shown, _query_texts(corpus)).encode())
    return len(shown)


def chosen(root: str, rows: int, number: int) -> list[int]:
    """`number` distinct row numbers below `rows`, in order: hashes of the content root, one after the other, until there are enough."""
    found: set[int] = set()
    turn = 0
    while len(found) < min(number, rows):
        drawn = hashlib.blake2b(f"{root} {turn}".encode(), digest_size=16, person=b"contact-sheet").digest()
        found.add(int.from_bytes(drawn, "big") % rows)
        turn += 1
    return sorted(found)


def sample(corpus: str, found: Manifest, number: int) -> list[dict[str, object]]:
    """The chosen rows as Python values, in uid order."""
    wanted = chosen(found.content_root, found.rows, number)
    shown: list[dict[str, object]] = []
    start = 0
    for shard in found.shards:
        for group_number, group in enumerate(shard.row_groups):
            mine = [row - start for row in wanted if start <= row < start + group.rows]
            if mine:
                shown += parquet.read_row_group(manifest.shard_uri(corpus, shard), group_number).take(mine).to_pylist()
            start += group.rows
    return shown


def _query_texts(corpus: str) -> dict[int, str]:
    """Queries by number, from the ledger, where there is one."""
    tables = [parquet.read(uri, ["query_id", "query"]) for uri in status.ledger(corpus)]
    return {
        number: text
        for table in tables
        for number, text in zip(table["query_id"].to_pylist(), table["query"].to_pylist(), strict=True)
    }


def page(found: Manifest, rows: list[dict[str, object]], queries: dict[int, str]) -> str:
    """The whole HTML file."""
    figures = "\n".join(_figure(row, queries) for row in rows)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="referrer" content="no-referrer">
<title>Contact sheet {found.content_root[:12]}</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>{len(rows):,} of {found.rows:,} pairs, chosen at random</h1>
<p>content root {found.content_root}</p></header>
<main>
{figures}
</main>
</body>
</html>
"""


def _figure(row: dict[str, object], queries: dict[int, str]) -> str:
    caption = "no caption" if row["caption"] is None else str(row["caption"])
    ids = row["query_ids"] if isinstance(row["query_ids"], list) else []
    counted = row["query_id"] if isinstance(row["query_id"], int) else None
    names = [queries.get(number, f"query {number}") + (" (counted)" if number == counted else "") for number in ids]
    size = f"{row['width']} × {row['height']}, from {row['original_width']} × {row['original_height']}"
    uid = row["uid"].hex() if isinstance(row["uid"], bytes) else ""
    lines = [", ".join(names), size, str(row["url"] or ""), uid]
    small = "".join(f'<p class="small">{html.escape(line)}</p>' for line in lines if line)
    text = f'<p class="caption">{html.escape(caption)}</p>'
    return f'<figure><div class="picture">{_picture(row)}</div><figcaption>{text}{small}</figcaption></figure>'


def _picture(row: dict[str, object]) -> str:
    image, kind = row["image"], _TYPES.get(str(row["format"]))
    if not isinstance(image, bytes) or kind is None:
        return "no picture"
    data = base64.b64encode(image).decode()
    return f'<img alt="{html.escape(str(row["caption"] or ""), quote=True)}" src="data:{kind};base64,{data}">'
