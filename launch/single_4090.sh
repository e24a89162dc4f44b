#!/usr/bin/env bash
# From your videos to a scored run with one card: bf16, ZeRO-2 with the optimizer on the CPU, gradient checkpointing, LoRA or full tuning, 16 clips
# an update in micro-batches as large as `vlmphys plan` finds room for.
set -eu -o pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
. launch/stages.sh

usage() {
    cat <<EOF
usage: bash launch/single_4090.sh --videos DIR|LIST --model MODEL [--variant multi_turn] [--tune lora|full|qlora]
                                  [--protocol weak|given] [--per-anomaly N] [--priors DIR] [--set key=value]... [--out runs/single_4090]
  --videos DIR      clips in the Phys-AD layout: <category>/train/*.mp4, <category>/test/<state>/*.mp4, or a list of clips: csv, jsonl, json
  --model MODEL     a Hugging Face Video-LLaVA folder, a hub id, or 'tiny'
  --protocol NAME   weak: some anomalous clips of each class go from test to train [this]; given: the list's own column 'split'
  --per-anomaly N   weak: so many of each class                         [the published number of each class]
  --priors DIR      your own <category>.yaml files beside those of vlmphys/priors/
  --tune MODE       lora: adapters [this]; full: q, k, v and FFN themselves, for which a 7B model needs more than 128 GiB of host memory;
                    qlora: adapters on a 4-bit model, CUDA only
  --set key=value   any other key of the config, more than once if need be; with per_device_train_batch_size or
                    gradient_accumulation_steps among them the plan is not asked for the micro-batch: of one alone the other follows,
                    for 16 clips an update
Relative paths start at the root of the repository. A second run skips what is done; after an interruption it goes on.
EOF
}

videos="" model="" variant=multi_turn tune=lora out=runs/single_4090 protocol=weak per_anomaly="" priors="" settings=()
while [ $# -gt 0 ]; do
    case "$1" in
        -h|--help) usage; exit 0 ;;
        --videos|--model|--variant|--tune|--out|--protocol|--per-anomaly|--priors|--set)
            [ $# -ge 2 ] || fail "$1 needs a value"
            case "$1" in
                --videos) videos="$2" ;; --model) model="$2" ;; --variant) variant="$2" ;; --tune) tune="$2" ;;
                --out) out="$2" ;; --protocol) protocol="$2" ;; --per-anomaly) per_anomaly="$2" ;; --priors) priors="$2" ;;
                --set) settings+=("$2") ;;
            esac; shift 2 ;;
        *) usage >&2; fail "unknown option $1" ;;
    esac
done
[ -n "$videos" ] && [ -n "$model" ] || { usage >&2; fail "--videos and --model are needed"; }
[ -e "$videos" ] || fail "--videos '$videos' is not there: give a folder in the layout <category>/{train,test/<state>}/*.mp4, or a list of clips"
case "$protocol" in weak|given) ;; *) fail "unknown --protocol '$protocol': allowed are weak, given" ;; esac
[ "$protocol" = weak ] || [ -z "$per_anomaly" ] || fail "--per-anomaly belongs to --protocol weak, not to '$protocol'"
check_variants "$variant"
[ -z "$per_anomaly" ] || check_number --per-anomaly "$per_anomaly" 1
check_priors "$priors"
case "$tune" in lora|full|qlora) ;; *) fail "unknown --tune '$tune': allowed are lora, full, qlora" ;; esac
recipe=launch/recipes/single_4090.yaml

micro_batch="" accumulation=""
for setting in ${settings[@]:+"${settings[@]}"}; do
    key="${setting%%=*}" value="${setting#*=}"
    key="${key//[[:space:]]/}" value="${value//[[:space:]]/}"
    case "$key" in
        model|variant|tune|out) fail "--set $setting: use --$key, which the other stages need too" ;;
        data) fail "--set $setting: the data are packed from --videos" ;;
        per_device_train_batch_size) micro_batch="$value" ;;
        gradient_accumulation_steps) accumulation="$value" ;;
    esac
done
batch=()
if [ -n "$micro_batch" ] && [ -z "$accumulation" ]; then
    batch=("gradient_accumulation_steps=$(other_factor per_device_train_batch_size "$micro_batch" gradient_accumulation_steps)") || exit 2
elif [ -n "$accumulation" ] && [ -z "$micro_batch" ]; then
    batch=("per_device_train_batch_size=$(other_factor gradient_accumulation_steps "$accumulation" per_device_train_batch_size)") || exit 2
fi

if [ "$tune" = qlora ]; then
    command -v nvidia-smi >/dev/null || fail "--tune qlora needs a CUDA GPU, and there is none here: use --tune lora"
    ensure_environment "[qlora]"
else
    ensure_environment
fi
check_settings "$recipe" "model=$model" "variant=$variant" "tune=$tune" ${batch[@]:+"${batch[@]}"} ${settings[@]:+"${settings[@]}"}
shares="per-anomaly=${per_anomaly:-published}"
[ "$protocol" = weak ] || shares="protocol=$protocol"
claim_out "$out" "videos=$videos model=$model variant=$variant tune=$tune $shares"\
" priors=${priors:-builtin} set=${settings[*]:-}"
marks="$out/done"
list_videos "$videos" "$out/videos.list"
[ -z "$priors" ] || list_videos "$priors" "$out/priors.list"
stage "$marks/split" "splitting" "$out/videos.list" \
    python data_prep/split.py --videos "$videos" --out "$out/split.json" --protocol "$protocol" ${per_anomaly:+--per-anomaly "$per_anomaly"}
advise_on_pack "$out/packed"
stage "$marks/pack" "packing frames and dialogues" "$marks/split${priors:+ $out/priors.list}" \
    python data_prep/pack.py --videos "$videos" --split "$out/split.json" --model "$model" --out "$out/packed" --variants "$variant" \
    ${priors:+--priors "$priors"}
advice=""
if [ -z "$micro_batch$accumulation" ]; then
    stage "$marks/plan" "finding the micro-batch" "$marks/pack $recipe ds_configs/single_4090.json" \
        choose_batch "$out/batch" --config "$recipe" --data "$out/packed" \
        --set "model=$model" "variant=$variant" "out=$out/run" "tune=$tune" ${settings[@]:+"${settings[@]}"}
    read -r -a batch < "$out/batch"
fi
stage "$marks/train" "fine-tuning" "$marks/pack $recipe ds_configs/single_4090.json" \
    train_on_one_card --config "$recipe" --data "$out/packed" --model "$model" --variant "$variant" \
    --out "$out/run" --set "tune=$tune" ${batch[@]:+"${batch[@]}"} ${settings[@]:+"${settings[@]}"}
drop_stale "$out/predictions.jsonl" "$marks/train"
stage "$marks/predict" "predicting" "$marks/train" \
    python launch/predict.py --run "$out/run" --data "$out/packed" --split test --out "$out/predictions.jsonl"
stage "$marks/score" "scoring" "$marks/predict${priors:+ $out/priors.list}" \
    python launch/score.py --predictions "$out/predictions.jsonl" --data "$out/packed" --out "$out/scores" --overwrite ${priors:+--priors "$priors"}
show_results "$out"
