#!/usr/bin/env bash
# One command for all checks: makes the environment, then ruff, mypy and the tests. About 8 minutes on two cores, the
# environment not counted. Arguments go to pytest: ./run_tests.sh -k w2
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
cd "$root"
. ./environment.sh
make_environment requirements.txt requirements-test.txt

"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
exec "$python" -m pytest -n 2 --dist loadfile "$@"
