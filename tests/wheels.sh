#!/usr/bin/env bash
# Wheels in a folder, each way of installing in an environment of its own: do they hold all they need, and distil?
#   bash tests/wheels.sh dist
set -euo pipefail
wheels="$(realpath "${1:-dist}")"
python="${PYTHON:-python3}"
here="$(mktemp -d)"
trap 'rm -rf "$here"' EXIT
short=(--set max_steps=2 --set evaluation.data=[] --set evaluation.cost=false)
export KDHUB_HOME="$here/home"
cp constraints.txt "$here"

tried() { # NAME KDHUB
  (cd "$here" && "$2" plugins && "$2" distill --method leaf --out "$here/$1-run" "${short[@]}" && test -f "$here/$1-run/README.md")
  echo "$1: installed and distilled"
}

"$python" -m venv "$here/pip"
"$here/pip/bin/pip" install --quiet --disable-pip-version-check -c "$here/constraints.txt" --find-links "$wheels" 'kdhub[all]'
tried pip "$here/pip/bin/kdhub"

if command -v uv > /dev/null; then
  uv venv --quiet --python "$python" "$here/uv"
  uv pip install --quiet --python "$here/uv/bin/python" -c "$here/constraints.txt" --find-links "$wheels" 'kdhub[all]'
  tried uv "$here/uv/bin/kdhub"
else
  echo "uv: not here, not tried"
fi

if command -v pipx > /dev/null; then
  export PIPX_HOME="$here/pipx" PIPX_BIN_DIR="$here/bin"
  pipx install --quiet --python "$python" --pip-args="-c $here/constraints.txt --find-links $wheels" 'kdhub[all]'
  tried pipx "$here/bin/kdhub"
else
  echo "pipx: not here, not tried"
fi
