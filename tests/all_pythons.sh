#!/usr/bin/env bash
# Runs the test suite on every supported Python that is found: `make test-all`.
# Each interpreter gets an environment of its own under .venvs/, kept for the next run.
set -uo pipefail
cd "$(dirname "$0")/.."
status=0
tried=""
for version in 3.10 3.11 3.12 3.13; do
  python=""
  for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python; do
    if "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
      python=$candidate
      break
    fi
  done
  if [ -z "$python" ]; then
    echo "== Python $version: not found, not tried"
    continue
  fi
  echo "== Python $version: $("$python" --version 2>&1)"
  if make --no-print-directory test PYTHON="$python" VENV=".venvs/$version" PYTEST_FLAGS="${PYTEST_FLAGS:-}"; then
    tried="$tried $version:passed"
  else
    tried="$tried $version:FAILED"
    status=1
  fi
done
echo "== Summary:${tried:- no supported Python was found}"
[ -n "$tried" ] || status=1
exit $status
