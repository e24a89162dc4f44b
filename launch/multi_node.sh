#!/usr/bin/env bash
# Train on several machines: checks a hostfile and starts `deepspeed --hostfile FILE launch/train.py` with the remaining arguments.
set -eu -o pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh

usage() {
    cat <<EOF
usage: bash launch/multi_node.sh --hostfile FILE [--master-addr ADDRESS] [--master-port PORT] [--dry-run] ARGUMENTS OF launch/train.py...
  --hostfile FILE        one machine a line: 'host slots=GPUs'; '#' begins a comment
  --master-addr ADDRESS  address of the first machine, as the others see it    [what it answers to 'hostname -I']
  --master-port PORT     a free port there                                     [29500]
  --dry-run              check hostfile and config, print the global batch, the steps where the data are there, and the command; start nothing
Every machine needs this folder at the same path with .venv in it, the packed data and --out (a shared file system), and ssh without a password
from here. Relative paths start at the root of the repository.
EOF
}

hostfile="" address="" port=29500 dry=""
while [ $# -gt 0 ]; do
    case "$1" in
        -h|--help) usage; exit 0 ;;
        --dry-run) dry=1; shift ;;
        --hostfile|--master-addr|--master-port)
            [ $# -ge 2 ] || fail "$1 needs a value"
            case "$1" in --hostfile) hostfile="$2" ;; --master-addr) address="$2" ;; --master-port) port="$2" ;; esac; shift 2 ;;
        *) break ;;
    esac
done
[ -n "$hostfile" ] || { usage >&2; fail "--hostfile is needed"; }
[ -f "$hostfile" ] || fail "--hostfile '$hostfile' is no file: write one line a machine, 'host slots=GPUs'"
[ $# -gt 0 ] || fail "arguments of launch/train.py are needed, such as --config launch/recipes/single_4090.yaml --data packed --out runs/mine"
case "$port" in ''|*[!0-9]*) fail "--master-port is '$port': a number is needed" ;; esac

hosts=0 ranks=0 number=0 seen=" "
while IFS= read -r line || [ -n "$line" ]; do
    number=$((number + 1))
    read -r host slots more <<< "$line" || true
    case "${host:-}" in ''|'#'*) continue ;; esac
    [[ "${slots:-}" =~ ^slots=[1-9][0-9]*$ && ( -z "${more:-}" || "$more" == '#'* ) ]] ||
        fail "$hostfile, line $number: '$line' is not 'host slots=GPUs', for instance 'node-1 slots=8'"
    case "$seen" in *" $host "*) fail "$hostfile, line $number: $host stands there twice" ;; esac
    seen="$seen$host " hosts=$((hosts + 1)) ranks=$((ranks + ${slots#slots=}))
done < "$hostfile"
[ "$hosts" -gt 0 ] || fail "$hostfile names no machine: write one line a machine, 'host slots=GPUs'"

started_by=(--hostfile "$hostfile" --master_port "$port" ${address:+--master_addr "$address"})
if [ "$hosts" -eq 1 ]; then
    # DeepSpeed would start the ranks here, whatever machine the file names.
    host="${seen// /}" here="${HOSTNAME:-$(uname -n)}"
    case " localhost 127.0.0.1 ::1 $here ${here%%.*} $(hostname -f 2>/dev/null || true) $(hostname -I 2>/dev/null || true) " in
        *" $host "*) started_by=(--num_gpus "$ranks" --master_port "$port") ;;
        *) fail "$hostfile names one machine, $host, and this one is $here: start it there, or name 'localhost slots=$ranks' to train here" ;;
    esac
fi
command=(deepspeed "${started_by[@]}" launch/train.py "$@")
echo "$hosts machine(s), $ranks ranks"
if [ -n "$dry" ]; then
    if python="$(installed_python)"; then
        PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}" "$python" launch/train.py "$@" --dry-run "$ranks"
    else
        echo "global batch: per_device_train_batch_size x gradient_accumulation_steps x $ranks (the config was not read: nothing is installed yet)"
    fi
    printf '%q ' "${command[@]}"; echo
    exit 0
fi
if [ "$hosts" -gt 1 ]; then
    command -v ssh >/dev/null || fail "ssh was not found: DeepSpeed reaches the machines of a hostfile with it (Debian: apt install openssh-client)"
    command -v pdsh >/dev/null ||
        fail "pdsh was not found: DeepSpeed starts the ranks of several machines with it (Debian: apt install pdsh); or use Slurm, see"\
" launch/README.md"
fi
ensure_environment
exec "${command[@]}"
