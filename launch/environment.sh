# Sourced by the launch scripts and by tests/run.sh: makes .venv if there is none, installs into it, and activates it.
# A stamp holds the hash of what was installed, so that a second run installs nothing.

fail() { echo "error: $*" >&2; exit 2; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10 python; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.10 or newer was found: install one, or name it with PYTHON=/path/to/python"
}

installed_python() {  # the one that a script would use, or another that has what reading a config needs; status 1 where there is none
    local candidate
    for candidate in .venv/bin/python "${PYTHON:-}" python3 python; do
        if [ -n "$candidate" ] &&
            "$candidate" -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ("torch", "yaml", "pyarrow"))))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

ensure_environment() {  # $1: extras to install, such as "[test]", or empty
    local extras="${1:-}" wanted python
    command -v c++ >/dev/null || command -v g++ >/dev/null ||
        fail "no C++ compiler was found: DeepSpeed compiles its CPU optimizer with one (Debian: apt install g++)"
    wanted="$(cat setup.cfg pyproject.toml constraints.txt | cksum | cut -d' ' -f1)"
    if [ ! -x .venv/bin/pip ]; then
        python="$(find_python)" || exit 2
        echo "making .venv"
        rm -rf .venv
        "$python" -m venv .venv || {
            rm -rf .venv
            fail "$python cannot make a virtual environment: install its venv module (Debian: apt install python3-venv)"
        }
    fi
    local stamp=.venv/.vlmphys-installed
    # Lines of one hash are the extras that were installed for it; another hash begins a new stamp.
    if [ -f "$stamp" ] && ! grep -q "^$wanted" "$stamp"; then rm -f "$stamp"; fi
    if [ ! -f "$stamp" ] || ! grep -qxF "$wanted${extras}" "$stamp"; then
        echo "installing the package and what it needs into .venv (once; a few minutes and 2 GB, more with CUDA)"
        .venv/bin/python -m pip install --progress-bar on --quiet --constraint constraints.txt --editable ".${extras}" ||
            fail "the installation failed: see the lines above; nothing else was changed"
        echo "$wanted${extras}" >> "$stamp"
    fi
    # shellcheck disable=SC1091
    . .venv/bin/activate
    export TOKENIZERS_PARALLELISM=false
}
