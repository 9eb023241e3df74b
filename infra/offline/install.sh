#!/usr/bin/env bash
# Install what carry.py has gathered, on a machine without a package index. Nothing is asked of any network.
#
#   bash install.sh WHEELS VENV      PYTHON=python3.12 names the interpreter, python3 by default
#
# The environment sees the packages that the interpreter has already (torch of a GPU image), which carry.py's --node left out; also where
# that interpreter is one of a virtual environment, which venv itself would pass over in favour of the system's.
set -euo pipefail
if [[ $# -ne 2 ]]; then
    echo "usage: bash install.sh WHEELS VENV" >&2
    exit 2
fi
wheels=$(cd "$1" && pwd)
(cd "$wheels" && sha256sum --check --quiet SHA256SUMS) || {
    echo "error: $wheels: not what carry.py has written; carry the folder again" >&2
    exit 2
}
python=${PYTHON:-python3}
own_pip=()
"$python" -c "import ensurepip" 2>/dev/null || own_pip=(--without-pip) # Debian's without python3-venv: the pip that is seen will do
"$python" -m venv --system-site-packages "${own_pip[@]}" "$2"
"$python" - "$2" <<'OUTER'
import sys
import sysconfig
from pathlib import Path

if sys.prefix != sys.base_prefix:
    seen = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    inner = sysconfig.get_path("purelib", "venv", {"base": sys.argv[1]})
    lines = (f"import site; site.addsitedir({path!r})\n" for path in seen)
    Path(inner, "outer.pth").write_text("".join(lines))
OUTER
unset PYTHONPATH # a checkout on it that was built there once looks installed to pip
"$2/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --find-links "$wheels" --requirement "$wheels/requirements.txt"
"$2/bin/python" -m pip check --disable-pip-version-check || echo "warning: the packages above do not fit each other" >&2
"$2/bin/python" - <<'CHECK'
import torch
import trainer.config

name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: it will train on CPUs"
print(f"installed: torch {torch.__version__}, {name}; next: python -m trainer --config FILE --check")
CHECK
