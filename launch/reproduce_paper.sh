#!/usr/bin/env bash
# The multi-turn paper's experiment: split and pack for all seeds, then for each seed fine-tune three variants, predict and score; at last
# its tables 1 to 3 beside the published figures.
set -eu -o pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
. launch/stages.sh

usage() {
    cat <<EOF
usage: bash launch/reproduce_paper.sh [--videos DIR|LIST] [--model MODEL] [--seeds N] [--anomalies published|half|N|given] [--per-category]
                                      [--variants multi_turn,single_turn,no_physics] [--recipe FILE] [--gpus N] [--priors DIR]
                                      [--set key=value]... [--out runs/paper]
  --videos DIR      Phys-AD, clips in its layout, or a list of clips (csv, jsonl, json)
                                                        [22 mechanisms are simulated into the --out folder, 12 clips in each test folder]
  --model MODEL     a Hugging Face Video-LLaVA folder, a hub id, or 'tiny'                          [tiny]
  --seeds N         seeds 0 to N-1, of split, order and questions; more can be added later          [1]
  --anomalies WHAT  anomalous clips of each class that go from test to train: 'published' (the benchmark's own numbers, 2 to 4),
                    'half' of each, or a number; 'given': the sides of the list's own column 'split'  [published]
  --per-category    one model for each category instead of one for all; with paper_tiny.yaml $category_steps updates each, where --set
                    gives neither max_steps nor num_train_epochs (the recipe's epochs are few updates with one category's clips)
  --variants LIST   the dialogues, each a model of its own: some of multi_turn, single_turn, no_physics, with commas    [all three]
  --recipe FILE     of launch/train.py                              [launch/recipes/paper_tiny.yaml for tiny, paper.yaml for others]
  --gpus N          cards of this machine that train together, a power of 2 up to 16; above 1 they share 16 clips an update, one a
                    card at a time, whatever the recipe says; with 1 the recipe's batch counts, 16 clips in those of this toolkit  [1]
  --priors DIR      your own <category>.yaml files beside those of vlmphys/priors/
  --set key=value   any other key of the config, more than once if need be
  --out DIR         everything that is made                                                         [runs/paper]
All is split and packed before the first training. Relative paths start at the root of the repository. A second run skips what is done, and keeps
in the tables what other variants gave; after an interruption it goes on. Another protocol needs another --out.
It makes .venv in the repository, installs what it needs there (once: minutes, and 2 GB or more) and runs in that, whatever environment is active.
EOF
}

category_steps=200
videos="" model=tiny seeds=1 anomalies=published per_category="" variants="no_physics,single_turn,multi_turn" recipe="" gpus=1 priors=""
settings=() out=runs/paper
while [ $# -gt 0 ]; do
    case "$1" in
        -h|--help) usage; exit 0 ;;
        --per-category) per_category=1; shift ;;
        --videos|--model|--seeds|--anomalies|--variants|--recipe|--gpus|--priors|--set|--out)
            [ $# -ge 2 ] || fail "$1 needs a value"
            case "$1" in
                --videos) videos="$2" ;; --model) model="$2" ;; --seeds) seeds="$2" ;; --anomalies) anomalies="$2" ;;
                --variants) variants="$2" ;; --recipe) recipe="$2" ;; --gpus) gpus="$2" ;; --priors) priors="$2" ;;
                --set) settings+=("$2") ;; --out) out="$2" ;;
            esac; shift 2 ;;
        *) usage >&2; fail "unknown option $1" ;;
    esac
done
[ -z "$videos" ] || [ -e "$videos" ] ||
    fail "--videos '$videos' is not there: give a folder in the layout <category>/{train,test/<state>}/*.mp4, or a list of clips"
check_variants "$variants"
check_number --seeds "$seeds" 1
check_model "$model"
check_priors "$priors"
case "$gpus" in 1|2|4|8|16) ;; *) fail "--gpus is '$gpus': 1, 2, 4, 8 or 16 share the 16 clips of an update evenly" ;; esac
case "$anomalies" in
    published) protocol=(--protocol weak) ;;
    half) protocol=(--protocol ratio --ratio 0.5) ;;
    given)
        [ -n "$videos" ] || fail "--anomalies given takes the sides of a list of clips: give it with --videos"
        protocol=(--protocol given) ;;
    *[!0-9]*|''|0*) fail "--anomalies is '$anomalies': give 'published', 'half', 'given', or the number of clips of each class" ;;
    *) protocol=(--protocol weak --per-anomaly "$anomalies") ;;
esac
if [ -z "$recipe" ]; then
    recipe=launch/recipes/paper.yaml
    [ "$model" != tiny ] || recipe=launch/recipes/paper_tiny.yaml
fi
[ -f "$recipe" ] || fail "--recipe '$recipe' is no file: those of this toolkit lie in launch/recipes/"
case "$recipe" in *[[:space:]]*) fail "--recipe '$recipe' holds a blank: give a file without one in its path" ;; esac
steps="$category_steps"
for setting in ${settings[@]:+"${settings[@]}"}; do
    key="${setting%%=*}"
    case "${key//[[:space:]]/}" in
        model|variant|out|data|seed) fail "--set $setting: this script gives that key itself" ;;
        per_device_train_batch_size|gradient_accumulation_steps)
            [ "$gpus" -eq 1 ] || fail "--set $setting: with --gpus $gpus this script divides the 16 clips of an update itself: leave it out" ;;
        max_steps|num_train_epochs) steps="" ;;
    esac
done
if [ -n "$per_category" ] && [ -n "$steps" ] && [ "$recipe" = launch/recipes/paper_tiny.yaml ]; then
    settings+=("max_steps=$steps")
fi
[ "$gpus" -eq 1 ] || settings+=("per_device_train_batch_size=1" "gradient_accumulation_steps=$((16 / gpus))")

find_categories() {  # sets `categories`: those of --videos that hold a clip; each becomes a folder's name in stages that take no blanks
    local category
    categories="$(clip_categories "$videos")" || [ -d "$videos" ] || exit 2
    mapfile -t categories <<< "$categories"
    [ -n "${categories[0]}" ] || fail "--videos '$videos' holds no clip: give a folder in the layout <category>/{train,test/<state>}/*.mp4"
    for category in "${categories[@]}"; do
        case "$category" in *[[:space:]]*) fail "the category '$category' holds a blank: rename its folder, or leave --per-category out" ;; esac
    done
}
[ -z "$per_category" ] || [ ! -d "$videos" ] || find_categories

ensure_environment
[ -z "$per_category" ] || [ -z "$videos" ] || [ -d "$videos" ] || find_categories
check_settings "$recipe" "model=$model" ${settings[@]:+"${settings[@]}"}
check_begun "$out" "$recipe" ${settings[@]:+"${settings[@]}"}
claim_out "$out" "videos=${videos:-simulated} model=$model anomalies=$anomalies per-category=${per_category:-no} recipe=$recipe gpus=$gpus"\
" priors=${priors:-builtin} set=${settings[*]:-}"
[ -z "$priors" ] || list_videos "$priors" "$out/priors.list"
if [ -z "$videos" ]; then
    videos="$out/videos"
    stage "$out/done/simulate" "simulating clips" "" python data_prep/simulate.py --out "$videos" --clips-per-state 12 --size 112
    [ -z "$per_category" ] || find_categories
fi
list_videos "$videos" "$out/videos.list"

# What split.py says of its own options, in those of this script.
of_split="--per-anomaly and --ratio above are --anomalies here"
prepare() {  # prepare FOLDER SEED [CATEGORY]: split and pack; with CATEGORY only its own clips count, so that those of others repeat nothing
    local folder="$1" seed="$2" category="${3:-}" marks="$1/done" what list="$out/videos.list"
    what="seed $seed${category:+, $category}"
    if [ -n "$category" ]; then
        mkdir -p "$folder"
        list="$folder/videos.list"
        list_videos "$videos" "$list" "$category"
    fi
    advice="$of_split"
    stage "$marks/split" "$what: splitting" "$list" \
        python data_prep/split.py --videos "$videos" --out "$folder/split.json" "${protocol[@]}" --seed "$seed" \
        ${category:+--categories "$category"}
    advise_on_pack "$folder/packed"
    stage "$marks/pack" "$what: packing frames and dialogues" "$marks/split${priors:+ $out/priors.list}" \
        python data_prep/pack.py --videos "$videos" --split "$folder/split.json" --model "$model" --out "$folder/packed" --seed "$seed" \
        ${priors:+--priors "$priors"}
    advice=""
}

train_variant() {  # train_variant stage|was_done, with the local variables of `experiment`
    "$1" "$marks/train-$variant" "$what: fine-tuning, $variant" "$marks/pack $recipe" \
        train_on_cards "$gpus" --config "$recipe" --data "$folder/packed" --model "$model" --variant "$variant" --out "$folder/$variant" \
        --set "seed=$seed" ${settings[@]:+"${settings[@]}"}
}

predict_variant() {  # predict_variant stage|was_done, with the local variables of `experiment`
    "$1" "$marks/predict-$variant" "$what: predicting, $variant" "$marks/train-$variant" \
        python launch/predict.py --run "$folder/$variant" --data "$folder/packed" --split test --out "$folder/$variant/predictions.jsonl"
}

experiment() {  # experiment FOLDER SEED [CATEGORY]: from packed data to the scores of all variants
    local folder="$1" seed="$2" category="${3:-}" marks="$1/done" variant predictions=() finished="" what
    what="seed $seed${category:+, $category}"
    for variant in ${variants//,/ }; do
        train_variant stage
        drop_stale "$folder/$variant/predictions.jsonl" "$marks/train-$variant"
        predict_variant stage
    done
    for variant in no_physics single_turn multi_turn; do
        # Variants that this command does not name stay in the scores where an earlier one has finished them.
        if [[ ",$variants," == *",$variant,"* ]] || { train_variant was_done && predict_variant was_done; }; then
            predictions+=("$folder/$variant/predictions.jsonl") finished="$finished $marks/predict-$variant"
        fi
    done
    stage "$marks/score" "$what: scoring" "$finished${priors:+ $out/priors.list}" \
        python launch/score.py --predictions "${predictions[@]}" --data "$folder/packed" --out "$folder/scores" --overwrite \
        ${priors:+--priors "$priors"}
}

each_model() {  # each_model FUNCTION: call it with FOLDER SEED [CATEGORY] for every seed, and category where each has its own model
    local seed category
    for seed in $(seq 0 $((seeds - 1))); do
        [ -n "$per_category" ] || { "$1" "$out/seed_$seed" "$seed"; continue; }
        for category in "${categories[@]}"; do
            "$1" "$out/seed_$seed/$category" "$seed" "$category"
        done
    done
}

if [ -n "$per_category" ]; then
    # One split of all, which nothing trains on, finds the categories with too few clips, without a prior or too long for the model: at once.
    advice="$of_split"
    stage "$out/done/split" "looking through all categories" "$out/videos.list" \
        python data_prep/split.py --videos "$videos" --out "$out/split.json" "${protocol[@]}"
    advice=""
    stage "$out/done/check" "checking priors and dialogues" "$out/done/split${priors:+ $out/priors.list}" \
        python data_prep/pack.py --check --videos "$videos" --split "$out/split.json" --model "$model" --out "$out/packed" \
        ${priors:+--priors "$priors"}
fi
each_model prepare
[ "$gpus" -eq 1 ] || echo "16 clips an update: one a card at a time on $gpus cards, gradient_accumulation_steps=$((16 / gpus))"
each_model experiment

folders=()
for seed in $(seq 0 $((seeds - 1))); do folders+=("$out/seed_$seed"); done
say "the paper's tables"
python launch/paper_tables.py --seeds "${folders[@]}" --out "$out/tables"
say "done: the tables are $out/tables/tables.md"
echo "reports: $out/seed_*/$([ -z "$per_category" ] || echo '*/')scores/report.html"
echo "curves: tensorboard --logdir $out"
