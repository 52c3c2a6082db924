#!/usr/bin/env bash
# Stands in for python in jobs of test_slurm.py: does what $DO says, where a run takes 20 s to start.
#
# A number: it ends with that code. "save": it waits for the file `end`, and a signal ends it with a
# checkpoint. "die": a signal ends it as before its first step. "fail": n2 ends with code 1, and n1 as
# with "die". Each start and each signal is a line of events.txt: node, restart, what.
if [[ $* == *launch.slurm.* ]]; then
    exec "$REAL_PYTHON" "$@"
fi
event() { echo "$SLURMD_NODENAME ${SLURM_RESTART_COUNT:-0} $1" >>events.txt; }
end() {
    [[ -z ${VISIONGRAFT_EXIT_FILE:-} ]] && exit "$1"
    echo "$1" >"$VISIONGRAFT_EXIT_FILE"
    exit $(($1 != 0)) # torchrun's own
}
# shellcheck disable=SC2064
for signal in TERM USR1; do
    case $DO in
        save) trap "event $signal; end 75" "$signal" ;;
        die | fail) trap "event $signal; exit 1" "$signal" ;;
    esac
done
event start
echo "$SLURMD_NODENAME is called with ${FROM_SITE:-}: $*"
[[ $DO$SLURMD_NODENAME == failn2 ]] && end 1
[[ $DO =~ ^[0-9]+$ ]] && end "$DO"
until [[ -e end ]]; do sleep 0.2; done
end 0
