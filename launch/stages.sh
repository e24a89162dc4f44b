# Sourced by quickstart.sh, single_4090.sh and reproduce_paper.sh: the stages from videos to a report, each skipped when it was done before.
# A stage's mark holds a checksum of its command, of the marks of the stages before it and of the files it reads beside them, so that
# a change anywhere repeats what depends on it.

say() { printf '\n== %s\n' "$*"; }

stage() {  # stage MARK_FILE "what it does" "files it depends on, without blanks in their names" command...
    local mark="$1" title="$2" before="$3" key; shift 3
    key="$(stage_key "$before" "$@")"
    if [ -f "$mark" ] && [ "$(cat "$mark")" = "$key" ]; then
        echo "-- $title: done before"
        repeated=""
        return
    fi
    say "$title"
    rm -f "$mark"
    "$@" || stage_failed "$title" $?
    repeated=1
    mkdir -p "$(dirname "$mark")"
    echo "$key" > "$mark"
}

stage_key() {  # stage_key "files it depends on" command...
    local before="$1"; shift
    # shellcheck disable=SC2086
    { printf '%s\n' "$*"; [ -z "$before" ] || cat $before; } | cksum | tr ' ' '-'
}

was_done() {  # was_done arguments of `stage`...: whether it would be skipped
    local mark="$1" before="$3"; shift 3
    [ -f "$mark" ] && [ "$(cat "$mark")" = "$(stage_key "$before" "$@")" ]
}

stage_failed() {  # stage_failed "what it does" STATUS: 2 is what the commands answer to an input that they refuse
    local cure="what was made before it is kept, run the same command again to go on"
    unclaim_out
    if [ ! -e "${claimed:-.}" ]; then
        cure="correct this, then run the same or the corrected command again"
    elif [ "$2" -eq 2 ]; then
        cure="correct this, then run the same command again, which goes on from there; with other options of this script give another --out"
        if may_set_anew "${claimed:-.}"; then
            cure="correct this, then run the same command again, which goes on from there, or with another --set; with other options of this"\
" script give another --out"
            [ -z "$(begun_runs "$claimed")" ] || cure="${cure/another --set/another --set of a key that a begun training may change}"
        fi
    fi
    echo "error: the stage '$1' failed; ${advice:+$advice; }$cure" >&2
    exit 2
}

advise_on_pack() {  # advise_on_pack FOLDER, before it is packed: options that pack.py may name where something is packed are none of these scripts
    advice=""
    [ ! -e "$1/frames" ] && [ ! -e "$1/frames.partial" ] ||
        advice="--drop, --repair and --restart are options of data_prep/pack.py, not of this script: give them to it once, or remove $1"
}

show_results() {  # show_results FOLDER, after the scoring: its table, where no stage has just printed it, and where the rest is
    if [ -z "${repeated:-}" ]; then
        echo
        cat "$1/scores/table.md"
    fi
    say "done: the table above is $1/scores/table.md"
    echo "report: $1/scores/report.html"
    echo "curves: tensorboard --logdir $1"
}

# list_videos FOLDER_OR_LIST FILE [CATEGORY]: names, sizes and times, so that a clip that comes, goes or changes is noticed; links are followed
list_videos() {
    if [ -d "$1" ]; then
        find -L "$1${3:+/$3}" -type f -printf '%P %s %T@\n' | sort > "$2"
        return
    fi
    python -c 'import os, sys
from vlmphys.clip_lists import find_clips
try:
    clips = find_clips(sys.argv[1])
except ValueError as error:
    sys.exit(f"error: {error}")
for clip in clips:
    if len(sys.argv) > 2 and clip.category != sys.argv[2]:
        continue
    found = os.stat(clip.path) if os.path.exists(clip.path) else None
    print(clip, found and (found.st_size, found.st_mtime))' "$1" ${3:+"$3"} > "$2" || { unclaim_out; exit 2; }
}

clip_categories() {  # clip_categories FOLDER_OR_LIST: the categories that hold a clip, a line each; a folder of notes is none
    if [ ! -d "$1" ]; then
        python -c 'import sys
from vlmphys.clip_lists import find_clips
try:
    print(*sorted({clip.category for clip in find_clips(sys.argv[1])}), sep="\n")
except ValueError as error:
    sys.exit(f"error: {error}")' "$1"
        return
    fi
    # Videos, or the folders of extracted frames.
    find -L "$1" -mindepth 3 -regextype posix-extended \( -type f -iregex '.*\.(mp4|avi|mov|mkv|webm|m4v|wmv|ts|mts|m2ts|mpg|mpeg|flv|3gp)' \
        -o -type d -regex '.*/(train|test)/frames/[^/]+' \) -printf '%P\n' |
        sed '/^\./d' | cut -d/ -f1 | sort -u
}

drop_stale() {  # drop_stale FILE MARK: predictions of a model that has been trained again since are not added to
    if [ -f "$1" ] && [ "$2" -nt "$1" ]; then
        echo "-- $1 is older than the model and is made anew"
        rm -f "$1"
    fi
}

check_settings() {  # check_settings RECIPE key=value...: a config that training would refuse is refused now, not after all packing
    python -c 'import sys
from vlmphys.config import load_config
try:
    load_config(sys.argv[1], sys.argv[2:])
except ValueError as error:
    sys.exit(f"error: {error}")' "$@" || exit 2
}

check_begun() {  # check_begun FOLDER RECIPE key=value...: trainings that have begun there with other settings are told of now, not by train.py
    [ -f "$1/settings" ] && may_set_anew "$1" && [ -n "$(begun_runs "$1")" ] || return 0
    begun_runs "$1" | python -c 'import sys
from pathlib import Path
from vlmphys.config import differences, load_config, read_back
given = load_config(sys.argv[2], sys.argv[3:])
for line in sys.stdin:
    run = Path(line.rstrip("\n")).parent
    try:
        begun = read_back(run / "config.yaml")
    except ValueError:
        continue
    # What the script gives itself differs from run to run, or its claim of the folder compares it.
    other = [one for one in differences(begun, given) if one.split()[0] not in ("model", "variant", "out", "data", "seed")]
    if other:
        sys.exit("error: the training in %s has begun with other settings: %s; go on with the same settings, remove %s to train it anew, "
                 "or give another --out" % (run, "; ".join(other), run))' "$@" || exit 2
}

begun_runs() {  # begun_runs FOLDER: the config of each training below it that has begun, a line each
    find "$1" -maxdepth 4 -name videos -prune -o -name packed -prune -o -name config.yaml -print | sort
}

check_model() {  # check_model NAME: 'tiny', a folder or a hub id; whether the hub has it is seen later
    local near=""
    case "$1" in
        tiny) return ;;
        [./~]*|*/*/*) [ -d "$1" ] || fail "--model '$1': no such folder" ;;
        ?*/?*) ;;
        *)
            case "${1,,}" in t*n*y*|tin*|*tiny*) near=" (did you mean 'tiny'?)" ;; esac
            [ -d "$1" ] || fail "--model '$1'$near: give 'tiny', a Hugging Face Video-LLaVA folder, or a hub id like org/name" ;;
    esac
}

may_set_anew() {  # may_set_anew FOLDER: whether its settings end with those of --set, and no training has ended, which alone goes by them
    grep -qs ' set=' "$1/settings" && [ -z "$(find "$1" -path '*/done/train*' -print -quit)" ]
}

words_beyond() {  # words_beyond "a b" "b c": the words of the first that are not in the second
    printf '%s\n' "$1" | tr ' ' '\n' | grep -vxF -e "${2// /$'\n'}" | paste -sd' ' || true
}

claim_out() {  # claim_out FOLDER "settings": one folder holds what one set of settings made, and nothing of others
    local stored here there
    case "$1" in *[[:space:]]*) fail "--out '$1' holds a blank: give a folder without one" ;; esac
    claimed="$1"
    if [ -f "$1/settings" ]; then
        stored="$(cat "$1/settings")"
        # Earlier versions wrote "own" where no --priors was given.
        stored="${stored/ priors=own / priors=builtin }" here="$2"
        if may_set_anew "$1"; then stored="${stored%% set=*}" here="${here%% set=*}"; fi
        if [ "$stored" != "$here" ]; then
            there="$(words_beyond "$stored" "$here")" here="$(words_beyond "$here" "$stored")"
            fail "$1 was made with other settings: ${there:-nothing} there, ${here:-nothing} here; give another --out, or remove that folder"
        fi
    elif [ -e "$1" ] && [ -n "$(ls -A "$1")" ]; then
        fail "$1 exists and was not made by this script: give another --out"
    fi
    mkdir -p "$1"
    lock_out "$1"
    echo "$2" > "$1/settings"
}

lock_out() {  # lock_out FOLDER: until this script and all that it has started have ended, another one is refused
    local lock status=0
    command -v flock >/dev/null || return 0
    exec {lock}<"$1"
    # Status 9 says that another process holds it; others, that this file system locks no folders.
    flock -n -E 9 "$lock" || status=$?
    [ "$status" -ne 9 ] || fail "$1: another run of this script is writing into this folder; wait for it, or give another --out"
}

unclaim_out() {  # first stages that refused their input leave nothing behind: lists and splits, which take seconds, claim no folder
    [ -n "${claimed:-}" ] && [ -d "$claimed" ] || return 0
    if [ -z "$(cd "$claimed" && find . ! -type d ! -path ./settings ! -name videos.list ! -path ./priors.list ! -name split.json \
            ! -path '*/done/split' ! -path ./done/check)" ]; then
        rm -rf "$claimed"
    fi
}

train_on_one_card() {  # train_on_one_card arguments of launch/train.py...
    train_on_cards 1 "$@"
}

train_on_cards() {  # train_on_cards N arguments of launch/train.py...: on a port that is free, since others may use DeepSpeed's own on this machine
    local port cards="$1"; shift
    port="$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')" || return
    deepspeed --num_gpus "$cards" --master_port "$port" launch/train.py "$@"
}

choose_batch() {  # choose_batch FILE arguments of `vlmphys plan`...: the largest micro-batch that fits here, 16 clips an update, as key=value words
    local file="$1" start="per_device_train_batch_size=16 gradient_accumulation_steps=1" found; shift
    # shellcheck disable=SC2086
    found="$(python -m vlmphys.cli plan --settings --only-batch "$@" --set $start)" || return
    echo "${found:-$start}" > "$file"
    cat "$file"
}

other_factor() {  # other_factor KEY VALUE OTHER_KEY: what OTHER_KEY must be for 16 clips an update
    check_number "--set $1" "$2" 1
    [ $((16 % $2)) -eq 0 ] || fail "--set $1=$2 does not divide 16, the clips of an update: add --set $3=N to say how many there are"
    echo $((16 / $2))
}

check_number() {  # check_number --option value lowest "why"
    case "$2" in ''|*[!0-9]*) fail "$1 is '$2': a whole number of at least $3 is needed" ;; esac
    [ "$2" -ge "$3" ] || fail "$1 is '$2': a whole number of at least $3 is needed${4:+, $4}"
}

check_priors() {  # check_priors FOLDER, or nothing where none is given
    [ ! -f "$1" ] || fail "--priors '$1' is a file: give the folder that it lies in"
    [ -z "$1" ] || [ -d "$1" ] || fail "--priors '$1' is no folder"
}

known_variants="multi_turn single_turn no_physics"

check_variants() {  # check_variants "a,b"
    local variant
    for variant in ${1//,/ }; do
        case " $known_variants " in *" $variant "*) ;; *) fail "unknown variant '$variant': allowed are ${known_variants// /, }" ;; esac
    done
}
