# Sourced by the other scripts: makes .venv in the repository root and installs amortjax with the given extras.
# The second time, nothing is installed unless pyproject.toml or the constraints have changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ensure_venv() {  # ensure_venv EXTRA...
  local python=${PYTHON:-python3} extras marker want
  extras=$(IFS=,; echo "$*")
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: Python 3.11 or newer is needed; name one with PYTHON=/path/to/python3.11 bash $0" >&2
    exit 2
  fi
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  want=$(cat pyproject.toml launch/constraints.txt | cksum | tr -d ' \n')
  for extra in "$@"; do
    marker=.venv/.installed-$extra
    if [ "$(cat "$marker" 2>/dev/null)" != "$want" ]; then
      echo "installing amortjax[$extras] into .venv (a few minutes the first time)"
      # torch on its own first, so that its pinned version is what everything else finds.
      .venv/bin/pip install --quiet --disable-pip-version-check -c launch/constraints.txt torch
      .venv/bin/pip install --quiet --disable-pip-version-check -c launch/constraints.txt -e ".[$extras]"
      for done in "$@"; do echo "$want" > ".venv/.installed-$done"; done
      break
    fi
  done
  export PATH="$PWD/.venv/bin:$PATH"
}
