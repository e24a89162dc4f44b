#!/usr/bin/env bash
# Everything on this machine, nothing downloaded but packages: simulate, split, pack, fine-tune, predict, score, report.
set -eu -o pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
. launch/stages.sh

usage() {
    cat <<EOF
usage: bash launch/quickstart.sh [--videos DIR|LIST | --categories fan,gear|all] [--variants multi_turn,single_turn,no_physics]
                                 [--clips-per-state N] [--protocol weak|given] [--per-anomaly N] [--priors DIR]
                                 [--epochs N | --max-steps N] [--appearance physad|wild] [--seed N] [--out runs/quickstart]
  --videos DIR          your own clips instead of simulated ones: a folder in the Phys-AD layout, or a list of clips (csv, jsonl, json)
  --categories LIST     simulated mechanisms, or 'all' of them     [$some]
  --clips-per-state N   simulated clips in each test folder; the train folder gets twice as many   [$clips]
  --protocol NAME       weak: some anomalous clips of each class go from test to train [this]; given: the list's own column 'split'
  --per-anomaly N       weak: anomalous clips of each class that go from test to train    [simulated: two thirds of --clips-per-state;
                        with --videos: the published number of each class]
  --priors DIR          your own <category>.yaml files beside those of vlmphys/priors/
  --epochs N            passes over the training clips; a few dozen clips need many more than     [as in launch/recipes/quickstart.yaml]
                        the recipe's, which suit some 800 clips: see launch/README.md
  --max-steps N         optimizer steps a variant                                                  [as in launch/recipes/quickstart.yaml]
Relative paths start at the root of the repository. A second run skips what is done; after an interruption it goes on.
EOF
}

# A first look must not take long: eight of the mechanisms, one or more for each kind of motion.
some=ball,clip,fan,gear,hinge,rubber_band,servo,slide
videos="" variants="multi_turn,single_turn,no_physics" categories="" clips=30 per_anomaly="" priors="" epochs="" steps=""
appearance=physad seed=0 out=runs/quickstart protocol=weak
while [ $# -gt 0 ]; do
    case "$1" in
        -h|--help) usage; exit 0 ;;
        --videos|--categories|--variants|--clips-per-state|--protocol|--per-anomaly|--priors|--epochs|--max-steps|--appearance|--seed|--out)
            [ $# -ge 2 ] || fail "$1 needs a value"
            case "$1" in
                --videos) videos="$2" ;; --categories) categories="$2" ;; --variants) variants="$2" ;; --clips-per-state) clips="$2" ;;
                --protocol) protocol="$2" ;; --per-anomaly) per_anomaly="$2" ;; --priors) priors="$2" ;;
                --epochs) epochs="$2" ;; --max-steps) steps="$2" ;;
                --appearance) appearance="$2" ;; --seed) seed="$2" ;; --out) out="$2" ;;
            esac; shift 2 ;;
        *) usage >&2; fail "unknown option $1" ;;
    esac
done
[ -z "$videos" ] || [ -z "$categories" ] ||
    fail "--categories chooses simulated mechanisms, and --videos takes clips of yours, all of them: give one of the two"
categories="${categories:-$some}"
check_variants "$variants"
case "$protocol" in weak|given) ;; *) fail "unknown --protocol '$protocol': allowed are weak, given" ;; esac
[ "$protocol" = weak ] || [ -n "$videos" ] || fail "--protocol given takes the sides of a list of clips: give it with --videos"
[ "$protocol" = weak ] || [ -z "$per_anomaly" ] || fail "--per-anomaly belongs to --protocol weak, not to '$protocol'"
check_number --clips-per-state "$clips" 2 "one clip to train on and one to test"
[ -n "$videos" ] || per_anomaly="${per_anomaly:-$((clips * 2 / 3))}"
[ -z "$per_anomaly" ] || check_number --per-anomaly "$per_anomaly" 1
[ -n "$videos" ] || [ "$per_anomaly" -lt "$clips" ] ||
    fail "--per-anomaly is $per_anomaly: of --clips-per-state $clips at least one must be left to test, so give at most $((clips - 1))"
check_priors "$priors"
check_number --seed "$seed" 0
[ -z "$steps" ] || check_number --max-steps "$steps" 1
[ -z "$epochs" ] || check_number --epochs "$epochs" 1
[ -z "$steps" ] || [ -z "$epochs" ] || fail "--epochs and --max-steps both say how long to train: give one of them"
case "$appearance" in physad|wild) ;; *) fail "unknown appearance '$appearance': allowed are physad, wild" ;; esac
[ -z "$videos" ] || [ -e "$videos" ] ||
    fail "--videos '$videos' is not there: give a folder in the layout <category>/{train,test/<state>}/*.mp4, or a list of clips"

ensure_environment
[ "$categories" = "$some" ] && chosen="" || chosen=" categories=$categories"
shares="per-anomaly=${per_anomaly:-published}"
[ "$protocol" = weak ] || shares="protocol=$protocol"
claim_out "$out" "videos=${videos:-simulated}$chosen clips-per-state=$clips $shares"\
" priors=${priors:-builtin} appearance=$appearance seed=$seed max-steps=${steps:-recipe}${epochs:+ epochs=$epochs}"
marks="$out/done"
[ -z "$priors" ] || list_videos "$priors" "$out/priors.list"
if [ -z "$videos" ]; then
    videos="$out/videos"
    stage "$marks/simulate" "simulating clips" "" \
        python data_prep/simulate.py --out "$videos" --categories "$categories" --clips-per-state "$clips" --size 112 --seed "$seed" \
        --appearance "$appearance"
    input="$marks/simulate"
else
    input="$out/videos.list"
    list_videos "$videos" "$input"
fi
stage "$marks/split" "splitting" "$input" \
    python data_prep/split.py --videos "$videos" --out "$out/split.json" --protocol "$protocol" ${per_anomaly:+--per-anomaly "$per_anomaly"} \
    --seed "$seed"
tiny=vlmphys/tiny_base
advise_on_pack "$out/packed"
stage "$marks/pack" "packing frames and dialogues" "$marks/split $tiny/config.json $tiny/tokenizer.json${priors:+ $out/priors.list}" \
    python data_prep/pack.py --videos "$videos" --split "$out/split.json" --model tiny --out "$out/packed" --seed "$seed" \
    ${priors:+--priors "$priors"}
advice=""
predictions=() finished=""
for variant in ${variants//,/ }; do
    stage "$marks/train-$variant" "fine-tuning, $variant" \
        "$marks/pack launch/recipes/quickstart.yaml ds_configs/zero2_offload.json $tiny/model.safetensors" \
        train_on_one_card --config launch/recipes/quickstart.yaml --data "$out/packed" --model tiny --variant "$variant" \
        --out "$out/$variant" --set "seed=$seed" ${steps:+"max_steps=$steps"} ${epochs:+"num_train_epochs=$epochs"}
    drop_stale "$out/$variant/predictions.jsonl" "$marks/train-$variant"
    stage "$marks/predict-$variant" "predicting, $variant" "$marks/train-$variant" \
        python launch/predict.py --run "$out/$variant" --data "$out/packed" --split test --out "$out/$variant/predictions.jsonl"
    predictions+=("$out/$variant/predictions.jsonl") finished="$finished $marks/predict-$variant"
done
stage "$marks/score" "scoring" "$finished${priors:+ $out/priors.list}" \
    python launch/score.py --predictions "${predictions[@]}" --data "$out/packed" --out "$out/scores" --overwrite ${priors:+--priors "$priors"}
show_results "$out"
