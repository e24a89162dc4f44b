#!/usr/bin/env bash
# The test suite: makes .venv if there is none, installs, runs. Arguments go to pytest, for instance: bash tests/run.sh -m unit
set -eu -o pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
ensure_environment "[test]"
# Two tests at a time, one thread each: most of their time goes into starting commands. `-n 0` runs them one after the other.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
python -m pytest -n 2 --dist worksteal "$@"
