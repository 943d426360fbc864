#!/bin/sh
# The wheel, unpacked into an empty folder, imports and compiles outside the checkout.
set -eu
wheel=$(realpath "$1")
python=$(realpath -s .venv/bin/python)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m zipfile -e "$wheel" "$folder/site"
cd "$folder"
PYTHONPATH="$folder/site" "$python" - <<'PY'
import os, pathlib
import unlearning, unlearning_components, unlearning_pipelines
from unlearning_pipelines.compile import COMPILED, compile_all
here = pathlib.Path(os.getcwd())
for package in (unlearning, unlearning_components, unlearning_pipelines):
    assert pathlib.Path(package.__file__).is_relative_to(here), package.__file__
    assert pathlib.Path(package.__file__).with_name("py.typed").exists(), package.__name__
golden = sorted(path.name for path in COMPILED.glob("*.yaml"))
compiled = sorted(path.name for path in compile_all(here / "out"))
assert golden == compiled, (golden, compiled)
assert (pathlib.Path(unlearning.__file__).parent / "reporting" / "report.html.j2").exists()
print(f"wheel ok: {', '.join(golden)}")
PY
