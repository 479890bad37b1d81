#!/usr/bin/env bash
# Installs Detectron2, MMSegmentation and Ultralytics into the environment of one interpreter, pinned by hash:
#
#     .ci/install_frameworks.sh .venv/bin/python
#
# Their ordinary dependencies come first, from the extras:
# pip install -c constraints.txt -e ".[detectron2,mmseg,ultralytics]".
# No framework can be an extra itself: mmcv-lite asks for mmengine under its other name, the Detectron2 wheel is tagged
# for Python 3.10 and asks for numpy<2, and Ultralytics is licensed under the AGPL-3.0. All of them work as installed
# here (--no-deps).
# Says so and does nothing when everything is in place.
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: $0 PYTHON" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=$1
pip() { "$python" -m pip --disable-pip-version-check --no-input --retries 10 "$@"; }

# Prints what of the requirement files is not installed in exactly that version.
missing() {
    "$python" - "$here/frameworks.txt" "$here/detectron2.txt" "$here/ultralytics.txt" <<'PY'
import re
import sys
from importlib import metadata
from pathlib import Path

for path in sys.argv[1:]:
    for name, version in re.findall(r"^([\w.-]+)==([\w.]+)", Path(path).read_text(), re.MULTILINE):
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = None
        if found != version:
            print(f"{name}=={version}")
PY
}

"$python" -W ignore -c 'import pkg_resources, torch' 2>/dev/null || {
    echo "$python needs torch and setuptools<81 first: pip install -c constraints.txt -e \".[detectron2,mmseg,ultralytics]\"" >&2
    exit 1
}

todo=$(missing)
if [ -z "$todo" ]; then
    echo "Detectron2, MMSegmentation and Ultralytics are in place"
    exit 0
fi

if grep -qv '^sal-detectron2==' <<<"$todo"; then
    pip install --quiet --no-deps --no-build-isolation --require-hashes \
        -r "$here/frameworks.txt" -r "$here/ultralytics.txt"
fi

if grep -q '^sal-detectron2==' <<<"$todo"; then
    wheels=$(mktemp -d)
    trap 'rm -rf "$wheels"' EXIT
    pip download --quiet --no-deps --only-binary=:all: --python-version 3.10 --dest "$wheels" \
        --require-hashes -r "$here/detectron2.txt"
    tagged=$(echo "$wheels"/sal_detectron2-*-cp310-none-any.whl)
    untagged=${tagged/-cp310-none-any/-py3-none-any}
    mv "$tagged" "$untagged"
    pip install --quiet --no-deps --no-index "$untagged"
fi

todo=$(missing)
[ -z "$todo" ] || { echo "still missing after the installation: $todo" >&2; exit 1; }
echo "Detectron2, MMSegmentation and Ultralytics are installed"
