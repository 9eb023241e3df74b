"""What of the commit protocol can be asked without Ray; the protocol itself is tested with Ray in test_engine.py."""

import subprocess
import sys

import pyarrow as pa

from pipeline import commit


def test_order_puts_parts_together_as_the_whole() -> None:
    """Keys that a table lacks are left out, nulls come last, equal rows stay as they are."""
    uids = [None, *(bytes([value]) * 16 for value in (3, 1, 3, 2))]
    table = pa.table({"uid": pa.array(uids, pa.binary(16)), "row": range(5)})
    assert commit.in_order(table, "partition", "uid")["row"].to_pylist() == [2, 4, 1, 3, 0]
    assert commit.in_order(table.drop_columns(["uid"]), "uid")["row"].to_pylist() == [0, 1, 2, 3, 4]


def test_what_a_stage_is_needs_no_ray() -> None:
    code = "import sys, pipeline.commit; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
