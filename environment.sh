#!/usr/bin/env bash
# Sourced by reproduce.sh and run_tests.sh: make_environment REQUIREMENTS... puts the pinned packages and this
# repository into .venv, once; it sets $python. Nothing outside this folder is written but the installer's own cache.
#
#   PYTHON=python3.12 ./reproduce.sh     another Python to build .venv with (3.11 to 3.13)
#   PYTHON_ENV=/path/to/venv             use that environment as it is and install nothing

make_environment() {
  local wanted stamp candidate name base=
  local files=() lists=()
  for name; do
    files+=("$root/$name") lists+=(-r "$root/$name")
  done
  if [ -n "${PYTHON_ENV:-}" ]; then
    case $PYTHON_ENV in /*) python=$PYTHON_ENV/bin/python ;; *) python=$PWD/$PYTHON_ENV/bin/python ;; esac
    "$python" -c 'import torch' 2>/dev/null || { echo "error: no torch in PYTHON_ENV=$PYTHON_ENV" >&2; return 1; }
    export PYTHONPATH=$root/code${PYTHONPATH:+:$PYTHONPATH}
    return
  fi
  python=$root/.venv/bin/python stamp=$root/.venv/installed
  # A line a list of packages. A copied or renamed folder would import the package from where it was.
  wanted="$*: $(cat "$root/pyproject.toml" "${files[@]}" | cksum) $root"
  if [ -x "$python" ] && grep -qxF "$wanted" "$stamp" 2>/dev/null; then
    return
  fi
  # Also where making it was interrupted, which leaves no activate. One that uv made has no pip.
  if ! { "$python" -c '' && { command -v uv || "$python" -m pip --version ||
    { [ -e "$root/.venv/bin/activate" ] && "$python" -m ensurepip; }; }; } >/dev/null 2>&1; then
    local candidates=(python3 python3.13 python3.12 python3.11)
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
      if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
        base=$candidate
        break
      fi
    done
    [ -n "$base" ] || { echo "error: needs Python 3.11 to 3.13 (set PYTHON=/path/to/python)" >&2; return 1; }
    echo "making .venv with $("$base" --version)"
    if command -v uv >/dev/null; then
      uv venv --quiet --python "$base" "$root/.venv"
    else
      "$base" -m venv --clear "$root/.venv"
    fi
  fi
  echo "installing ${*} into .venv (torch is large: minutes the first time)"
  local install=("$python" -m pip install --quiet --disable-pip-version-check)
  if command -v uv >/dev/null; then
    install=(uv pip install --quiet --python "$python")
  fi
  "${install[@]}" "${lists[@]}"
  "${install[@]}" --no-deps --editable "$root"
  { grep -vF "$*: " "$stamp" 2>/dev/null || true; echo "$wanted"; } >"$stamp.new"
  mv "$stamp.new" "$stamp"
}
