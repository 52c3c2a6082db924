#!/usr/bin/env bash
# One machine: as many processes as it has GPUs, one where it has none.
#
#   launch/local.sh [COMMAND] [key=value ...]       COMMAND: train (default), sweep or evaluate
#   NPROC_PER_NODE=2 launch/local.sh experiment=demo_text
#
# What else can be set, and the exit codes: launch/torchrun.sh.
exec "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/torchrun.sh" --standalone -- "$@"
