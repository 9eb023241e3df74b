"""`make bench`: every measurement, one after the other, each beside its peer in the same run. Run when nothing else runs.

python -m tests.benchmarks [NAME ...]
"""

import subprocess
import sys
from pathlib import Path


def main() -> int:
    folder = Path(__file__).parent
    known = sorted(path.stem for path in folder.glob("[a-z]*.py"))
    failed = 0
    for name in sys.argv[1:] or known:
        print(f"== {name}", flush=True)
        failed += subprocess.run([sys.executable, "-m", f"tests.benchmarks.{name}"], check=False).returncode != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
