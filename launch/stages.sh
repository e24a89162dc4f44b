# Sourced by quickstart.sh and single_4090.sh: the stages from videos to a report, each skipped when it was done before.
# A stage's mark holds a checksum of its command, of the marks of the stages before it and of the files it reads beside them, so that
# a change anywhere repeats what depends on it.

say() { printf '\n== %s\n' "$*"; }

stage() {  # stage MARK_FILE "what it does" "files it depends on, without blanks in their names" command...
    local mark="$1" title="$2" before="$3" key; shift 3
    # shellcheck disable=SC2086
    key="$({ printf '%s\n' "$*"; [ -z "$before" ] || cat $before; } | cksum | tr ' ' '-')"
    if [ -f "$mark" ] && [ "$(cat "$mark")" = "$key" ]; then
        echo "-- $title: done before"
        return
    fi
    say "$title"
    rm -f "$mark"
    "$@" || { unclaim_out; echo "error: the stage '$title' failed; what was made before it is kept, run the same command again to go on" >&2; exit 2; }
    mkdir -p "$(dirname "$mark")"
    echo "$key" > "$mark"
}

list_videos() {  # list_videos FOLDER FILE: names, sizes and times, so that a clip that comes, goes or changes is noticed
    find "$1" -type f -printf '%P %s %T@\n' | sort > "$2"
}

drop_stale() {  # drop_stale FILE MARK: predictions of a model that has been trained again since are not added to
    if [ -f "$1" ] && [ "$2" -nt "$1" ]; then
        echo "-- $1 is older than the model and is made anew"
        rm -f "$1"
    fi
}

claim_out() {  # claim_out FOLDER "settings": one folder holds what one set of settings made, and nothing of others
    case "$1" in *[[:space:]]*) fail "--out '$1' holds a blank: give a folder without one" ;; esac
    claimed="$1"
    if [ -f "$1/settings" ]; then
        [ "$(cat "$1/settings")" = "$2" ] ||
            fail "$1 was made with other settings ($(cat "$1/settings")), not ($2): give another --out, or remove that folder"
    elif [ -e "$1" ] && [ -n "$(ls -A "$1")" ]; then
        fail "$1 exists and was not made by this script: give another --out"
    fi
    mkdir -p "$1"
    echo "$2" > "$1/settings"
}

unclaim_out() {  # a first stage that refused its input leaves nothing behind
    [ -n "${claimed:-}" ] || return 0
    if [ "$(ls -A "$claimed")" = settings ] || [ "$(ls -A "$claimed" | tr '\n' ' ')" = "settings videos.list " ]; then
        rm -rf "$claimed"
    fi
}

check_number() {  # check_number --option value lowest "why"
    case "$2" in ''|*[!0-9]*) fail "$1 is '$2': a whole number of at least $3 is needed" ;; esac
    [ "$2" -ge "$3" ] || fail "$1 is '$2': a whole number of at least $3 is needed${4:+, $4}"
}

known_variants="multi_turn single_turn no_physics"

check_variants() {  # check_variants "a,b"
    local variant
    for variant in ${1//,/ }; do
        case " $known_variants " in *" $variant "*) ;; *) fail "unknown variant '$variant': allowed are ${known_variants// /, }" ;; esac
    done
}
