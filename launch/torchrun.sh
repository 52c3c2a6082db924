#!/usr/bin/env bash
# torchrun as a run of ours wants it: one process a device, threads, signals, time to save.
#
#   launch/torchrun.sh [torchrun options] -- [COMMAND] [key=value ...]
#
# COMMAND is train (default), sweep or evaluate. It ends with the exit code of the run on this node,
# where torchrun's own is 1 whatever happened: 0 done; 75 stopped by SIGTERM or SIGUSR1 with a
# checkpoint, run the same command again; 2 wrong config; 1 another error.
#
#   NPROC_PER_NODE     processes; default: one a GPU, one where there is none
#   OMP_NUM_THREADS    CPU threads a process; default: the node's cores over its processes
#   MAX_RESTARTS       times that all processes start again after one has died; default 0
#   JOIN_SECONDS       that a machine waits for the others to start, or to come again; default 600
#   LOST_SECONDS       without a sign of the rendezvous host, after which it is lost; default 60
#   LEAVE_TOGETHER     0: where a signal to another machine has stopped the run, this one waits for it to
#                      come back, while MAX_RESTARTS are left; default 1: it ends too, with 75
#   SHUTDOWN_SECONDS   between a signal and SIGKILL: a step and a checkpoint; default 300
#   PYTHON             default: that of the project's .venv, else python3
set -uo pipefail
{ # read as a whole before it starts: it runs for days, and may be edited meanwhile

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[[ -z ${PYTHON:-} && -x $root/.venv/bin/python ]] && PYTHON=$root/.venv/bin/python
PYTHON=${PYTHON:-python3}

options=()
while (($#)) && [[ $1 != -- ]]; do
    options+=("$1")
    shift
done
if (($# == 0)); then
    echo "error: no -- before the command: launch/torchrun.sh [torchrun options] -- [train|sweep|evaluate] key=value ..." >&2
    exit 2
fi
shift
command=train
if (($#)) && [[ $1 != *=* && $1 != [-~]* ]]; then
    command=$1
    shift
fi
case $command in
    train) program=train/main.py ;;
    sweep) program=merge/sweep.py ;;
    evaluate) program=train/evaluate.py ;;
    *)
        echo "error: $command: train, sweep and evaluate run in several processes; for other commands: visiongraft COMMAND" >&2
        exit 2
        ;;
esac

if [[ -z ${NPROC_PER_NODE:-} ]]; then
    devices=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())') || exit 1
    NPROC_PER_NODE=$((devices > 0 ? devices : 1))
fi
if [[ ! $NPROC_PER_NODE =~ ^[1-9][0-9]*$ ]]; then
    echo "error: NPROC_PER_NODE=$NPROC_PER_NODE; give a number of processes, from 1" >&2
    exit 2
fi
if [[ -z ${OMP_NUM_THREADS:-} ]]; then
    cores=$(nproc)
    export OMP_NUM_THREADS=$((cores > NPROC_PER_NODE ? cores / NPROC_PER_NODE : 1))
fi

# $TMPDIR may be that of the machine where the job was submitted.
VISIONGRAFT_EXIT_FILE=$(mktemp 2>/dev/null || TMPDIR=/tmp mktemp) || exit 1
export VISIONGRAFT_EXIT_FILE
trap 'rm -f "$VISIONGRAFT_EXIT_FILE"' EXIT

# Once within 3 s: SLURM may have sent it to torchrun too, and to who started this script, who hands it
# on. A third one ends torchrun while it waits for the processes, and they are left alone.
handed=-9 torchrun='' early=''
hand_on() {
    if [[ -z $torchrun ]]; then
        early=$1 # before torchrun is started
    elif ((SECONDS - handed >= 3)); then
        handed=$SECONDS
        kill -"$1" "$torchrun" 2>/dev/null
    fi
}
for signal in TERM INT HUP QUIT USR1; do
    # shellcheck disable=SC2064
    trap "hand_on $signal" "$signal"
done

# torchrun's own variable, which an operator of Kubernetes may have set; --rdzv-conf stands above it.
JOIN_SECONDS=${JOIN_SECONDS:-600}
export PET_RDZV_CONF=${PET_RDZV_CONF:-join_timeout=$JOIN_SECONDS,read_timeout=$JOIN_SECONDS}
# torch 2.13's store in the agent keeps what a start has written: processes that torchrun starts again
# would look for each other where they were before (github.com/pytorch/pytorch/issues/135712).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=${TORCH_DISABLE_SHARE_RDZV_TCP_STORE:-1}

set -m # a process group of its own: Ctrl-C comes once, from here
"$PYTHON" "$root/launch/agent.py" \
    --nproc-per-node "$NPROC_PER_NODE" \
    --max-restarts "${MAX_RESTARTS:-0}" \
    --shutdown-timeout "${SHUTDOWN_SECONDS:-300}" \
    --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    ${options[@]+"${options[@]}"} \
    "$root/$program" "$@" &
torchrun=$!
[[ -n $early ]] && hand_on "$early"
# `wait` returns at each signal; asked once more, it gives the exit code that bash has kept.
{ # bash would tell of the signal that has ended a process
    wait "$torchrun"
    while kill -0 "$torchrun" 2>/dev/null; do
        wait "$torchrun"
    done
    wait "$torchrun"
} 2>/dev/null
code=$?
told=$(cat "$VISIONGRAFT_EXIT_FILE")
# Nothing has begun (75 is the agent's), or the signal has ended torchrun before it could hand it on.
if [[ -z $told && $handed != -9 && $code =~ ^(75|138|143)$ ]]; then
    echo "stopped by a signal before there was anything to save; run the same command again (exit code 75)" >&2
    told=75
fi
if ((code)) && [[ -n $told && $told != 0 ]]; then
    code=$told
fi
exit "$code"
}
