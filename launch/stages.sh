# Sourced by quickstart.sh and single_4090.sh: the stages from videos to a report, each skipped when it was done before.
# A stage's mark holds the command and the marks of the stages before it, so that a change anywhere repeats what depends on it.

say() { printf '\n== %s\n' "$*"; }

stage() {  # stage MARK_FILE "what it does" "marks it depends on" command...
    local mark="$1" title="$2" before="$3" key done_before; shift 3
    key="$({ printf '%s\n' "$*"; for done_before in $before; do cat "$done_before"; done; } | cksum | tr ' ' '-')"
    if [ -f "$mark" ] && [ "$(cat "$mark")" = "$key" ]; then
        echo "-- $title: done before"
        return
    fi
    say "$title"
    rm -f "$mark"
    "$@" || { echo "error: the stage '$title' failed; what was made before it is kept, run the same command again to go on" >&2; exit 2; }
    mkdir -p "$(dirname "$mark")"
    echo "$key" > "$mark"
}

drop_stale() {  # drop_stale FILE MARK: predictions of a model that has been trained again since are not added to
    if [ -f "$1" ] && [ "$2" -nt "$1" ]; then
        echo "-- $1 is older than the model and is made anew"
        rm -f "$1"
    fi
}

claim_out() {  # claim_out FOLDER "settings": one folder holds what one set of settings made
    if [ -f "$1/settings" ] && [ "$(cat "$1/settings")" != "$2" ]; then
        fail "$1 was made with other settings ($(cat "$1/settings")), not ($2): give another --out, or remove that folder"
    fi
    mkdir -p "$1"
    echo "$2" > "$1/settings"
}

known_variants="multi_turn single_turn no_physics"

check_variants() {  # check_variants "a,b"
    local variant
    for variant in ${1//,/ }; do
        case " $known_variants " in *" $variant "*) ;; *) fail "unknown variant '$variant': allowed are ${known_variants// /, }" ;; esac
    done
}
