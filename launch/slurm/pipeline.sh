#!/usr/bin/env bash
# text -> align -> sft -> merge -> sweep as five SLURM jobs, each after the one before has ended well.
#
#   launch/slurm/pipeline.sh [key=value ...]     # overrides for the stages that train and the sweep
#   DRY_RUN=1 launch/slurm/pipeline.sh           # prints the commands
#
# By default the demo (`make demo`). A stage whose result is there is left out, one that is still in
# the queue is waited for: the same command goes on after a failure. When a stage fails, those after
# it are cancelled; when it is preempted and queued again, they wait.
#
#   OUT          folder to fill; default outputs/demo
#   TEXT_LM      a text LM that is there already: no text stage
#   TEXT, ALIGN, SFT, MERGE, SWEEP    overrides of a stage, quoted as in a shell; default: the demo's
#   SBATCH_ARGS  sbatch's options for all jobs; TEXT_SBATCH_ARGS, ALIGN_SBATCH_ARGS, ... for one more
#
# Your own models:
#
#   OUT=outputs/aya TEXT_LM=command-r7b/ SBATCH_ARGS='--account=ME --time=12:00:00 --gpus-per-node=8' \
#   ALIGN='experiment=aya_vision_8b_align data.sources.captions.path=ORG/NAME' \
#   SFT='experiment=aya_vision_8b_sft_lora data.sources.captions.path=ORG/NAME' SFT_SBATCH_ARGS=--nodes=4 \
#   SWEEP='data=captions_held_out data.held_out.captions.path=ORG/HELD_OUT' \
#   launch/slurm/pipeline.sh tracker.group=aya
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
[[ -z ${PYTHON:-} && -x $root/.venv/bin/python ]] && PYTHON=$root/.venv/bin/python
PYTHON=${PYTHON:-python3}

OUT=${OUT:-outputs/demo}
TEXT=${TEXT-experiment=demo_text}
ALIGN=${ALIGN-experiment=demo_align}
SFT=${SFT-experiment=demo_sft}
MERGE=${MERGE-alpha=0.4}
SWEEP=${SWEEP-data=demo_held_out tracker.group=demo}
overrides=("$@")
notes=$OUT/pipeline # of each stage: its command, its job, its log

fail() {
    echo "error: $*" >&2
    exit 2
}

# words NAME: splits what the variable of that name holds, as a shell would, into the array `words`.
words() {
    words=()
    [[ ${!1-} =~ [^[:space:]] ]] || return 0
    xargs printf '%s\n' <<<"${!1}" >/dev/null || fail "$1: ${!1}"
    mapfile -d '' -t words < <(xargs printf '%s\0' <<<"${!1}")
}

# look NAME RESULT COMMAND key=value ... : what is done, what is queued; nothing is submitted where
# that does not fit together.
declare -A queued=()
undone='' lost='' # the last stages that are not done, and neither done nor queued
commands=()
look() {
    local name=$1 result=$2 id='' before=''
    shift 2
    [[ -f $notes/$name.job ]] && id=$(<"$notes/$name.job") && before=$(<"$notes/$name.command")
    # The name too, for numbers are used again.
    if [[ -n $id && $(squeue --noheader --jobs="$id" --format=%j 2>/dev/null) == "${OUT##*/}-$name" ]]; then
        queued[$name]=$id
        [[ -z $lost ]] || fail "job $id, $name, is queued, and $lost, which it waits for, is not: scancel $id"
        [[ $before == "$(printf '%q ' "$@")" ]] || fail "job $id, $name, is of another command: scancel $id
  $before"
        undone=$name
    elif [[ ! -e $result ]]; then
        undone=$name lost=$name
    elif [[ -n $undone ]]; then
        fail "$result is there, and $undone, which it is made of, is not: remove it, or name another OUT"
    elif [[ -n $before && $before != "$(printf '%q ' "$@")" ]]; then
        fail "$result was made by another command: remove it, or name another OUT
  $before"
    fi
    commands+=(-- "$@")
}

# submit NAME RESULT COMMAND key=value ... : unless it is done or in the queue.
previous='' # the job that the next one waits for
jobs=()
submit() {
    local name=$1 result=$2 id=${queued[$1]-} options=()
    shift 2
    if [[ -n $id ]]; then
        echo "# $name: job $id is in the queue"
    elif [[ -e $result ]]; then
        echo "# $name: done before, $result"
        return
    else
        options=(--output="$notes/$name-%j.log")
        words SBATCH_ARGS
        options+=("${words[@]}")
        words "${name^^}_SBATCH_ARGS"
        options+=("${words[@]}" --job-name="${OUT##*/}-$name")
        [[ -n $previous ]] && options+=(--dependency="afterok:$previous" --kill-on-invalid-dep=yes)
        if [[ ${DRY_RUN:-0} != 0 ]]; then
            # shellcheck disable=SC2016 # the shell that runs what is printed shall expand it
            printf '%s=$(sbatch --parsable%s)\n' "$name" \
                "$(printf ' %q' "${options[@]}" "$root/launch/slurm/run.sbatch" "$@" | sed 's/afterok:\\/afterok:/')"
            previous=\$$name
            return
        fi
        mkdir -p "$notes"
        id=$(sbatch --parsable "${options[@]}" "$root/launch/slurm/run.sbatch" "$@") || exit 1
        id=${id%%;*} # where there are several clusters sbatch names the one
        printf '%q ' "$@" >"$notes/$name.command"
        echo "$id" >"$notes/$name.job"
        echo "# $name: job $id${previous:+, after $previous}"
    fi
    previous=$id
    jobs+=("$id")
}

plan() { # plan CALL: calls it with every stage
    local text_lm=${TEXT_LM:-$OUT/text/export}
    if [[ -z ${TEXT_LM:-} ]]; then
        words TEXT
        "$1" text "$OUT/text/finished.json" train "${words[@]}" "${overrides[@]}" output_dir="$OUT/text"
    fi
    words ALIGN
    "$1" align "$OUT/align/finished.json" train "${words[@]}" model.decoder.path="$text_lm" \
        "${overrides[@]}" output_dir="$OUT/align"
    words SFT
    "$1" sft "$OUT/sft/finished.json" train "${words[@]}" model.path="$OUT/align/export" \
        "${overrides[@]}" output_dir="$OUT/sft"
    words MERGE
    "$1" merge "$OUT/merged/merge_report.json" merge "${words[@]}" vlm="$OUT/sft/export" \
        text="$text_lm" out="$OUT/merged"
    words SWEEP
    "$1" sweep "$OUT/sweep/sweep.json" sweep "${words[@]}" vlm="$OUT/sft/export" \
        text="$text_lm" "${overrides[@]}" out="$OUT/sweep"
}

[[ -z ${TEXT_LM:-} || -d $TEXT_LM ]] || fail "TEXT_LM=$TEXT_LM is no folder; merge and sweep read files"
plan look
# A wrong key is told now, and not after a night in the queue.
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} "$PYTHON" -m launch.slurm.check "${commands[@]:1}" || exit
# sbatch hands this on: run.sbatch is copied elsewhere, and the folder it is called in may be any.
export VISIONGRAFT_HOME=$root
[[ ${DRY_RUN:-0} == 0 ]] || echo "export VISIONGRAFT_HOME=$(printf %q "$root")"
plan submit
if ((${#jobs[@]})); then
    echo "# watch:  squeue --jobs=$(IFS=, && echo "${jobs[*]}")    tail -F $notes/*.log"
    echo "# end:    scancel ${jobs[*]}"
    echo "# after a failure: the same command again"
fi
