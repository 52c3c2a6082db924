#!/usr/bin/env bash
# What launch/slurm/run.sbatch starts on each node of a job: torchrun, or a command in one process.
#
#   launch/slurm/node.sh COMMAND [key=value ...]
#
# It leaves a line in the file $NODE_TOLD.<number of the node>: when it ended, its exit code, and
# whether it was sent a signal before. To srun it says 0 where the run has stopped with a checkpoint
# (75): when a task ends with another code, srun ends the rest, which may still be writing.
set -uo pipefail
{ # read as a whole before it starts: it runs for days, and may be edited meanwhile
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
command=$1
shift

signalled=""
child=""
for signal in TERM USR1; do
    # shellcheck disable=SC2064
    trap "signalled=$signal; [[ -n \$child ]] && kill -$signal \$child 2>/dev/null" "$signal"
done

run() {
    [[ -n $signalled ]] && return 75
    "$@" &
    child=$!
    # One that came while it was started.
    [[ -n $signalled ]] && kill -"$signalled" "$child" 2>/dev/null
    wait "$child"
    while kill -0 "$child" 2>/dev/null; do
        wait "$child"
    done
    wait "$child"
}

work() {
    if ((SLURM_NODEID == 0 && ${SLURM_RESTART_COUNT:-0} > 0)); then
        run "$PYTHON" -m launch.slurm.progress "$NODE_TOLD.mark" "$command" "$@" || return
    fi
    if [[ ! $command =~ ^(train|sweep|evaluate)$ ]]; then
        run "$PYTHON" -m launch.cli "$command" "$@"
        return
    fi
    # SLURM knows the node's GPUs; where it names none, torchrun.sh looks.
    [[ -z ${NPROC_PER_NODE:-} && -n ${SLURM_GPUS_ON_NODE:-} ]] && export NPROC_PER_NODE=$SLURM_GPUS_ON_NODE
    # A new --rdzv-id at each start: nobody meets what is left of the last one. --local-addr: the name
    # that SLURM knows the node by; what the node calls itself may be known to nobody else.
    local join=${JOIN_SECONDS:-600}
    run "$root/launch/torchrun.sh" --nnodes "$SLURM_STEP_NUM_NODES" --rdzv-backend c10d \
        --rdzv-endpoint "$RENDEZVOUS" --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
        --rdzv-conf "is_host=$((SLURM_NODEID == 0)),join_timeout=$join,read_timeout=$join" \
        --local-addr "$SLURMD_NODENAME" -- "$command" "$@"
}

work "$@"
code=$?
signalled=${signalled:+1}
# Not $EPOCHREALTIME, which bash 4.4 (RHEL 8) does not have.
if echo "$(date +%s.%N) $code ${signalled:-0}" >"$NODE_TOLD.$SLURM_NODEID"; then
    ((code == 75)) && exit 0
fi
# The first node may be about to say what is wrong, before srun ends it.
((code && SLURM_NODEID)) && sleep 15
exit "$code"
}
