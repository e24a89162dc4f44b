#!/usr/bin/env bash
# The test suite: makes .venv if there is none, installs, runs. Arguments go to pytest, for instance: bash tests/run.sh -m unit
set -eu -o pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
ensure_environment "[test]"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
python -m pytest "$@"
