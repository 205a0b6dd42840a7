#!/usr/bin/env bash
# Several processes of one run on this machine:
#
#   launch/local.sh [OPTION...] N -- --config configs/dgkd.py:digits --workdir runs/dgkd
#
#   --cpu K       K virtual CPU devices for each process
#   --gpus K      K GPUs for each process: 0 to K-1 for process 0, and so on
#   --module M    run python -m M instead of kdjax.main
#
# SIGTERM and Ctrl-C are passed on once to every process. When one fails, the others
# get SIGTERM, and after GRACE seconds (40) SIGKILL. The exit status is that of the first
# that failed. PYTHON names the interpreter. Needs bash 5.1 or newer.
set -euo pipefail

usage() {
  sed -n '2,/^set/p' "$0" | sed -n 's/^# \{0,1\}//p' >&2
  exit 2
}

cpu='' gpus='' module=kdjax.main python=${PYTHON:-python} grace=${GRACE:-40}
while (($#)) && [[ $1 == --?* ]]; do
  (($# > 1)) || usage
  case $1 in
    --cpu) cpu=$2 ;;
    --gpus) gpus=$2 ;;
    --module) module=$2 ;;
    *) usage ;;
  esac
  shift 2
done
number='^[1-9][0-9]*$'
[[ ${1:-} =~ $number && ${2:-} == -- ]] || usage
[[ -z $cpu || $cpu =~ $number ]] || usage
[[ -z $gpus || $gpus =~ $number ]] || usage
count=$1
shift 2

if [[ -n $cpu ]]; then
  export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=$cpu
fi
port=$("$python" -c 'import socket; s = socket.create_server(("", 0)); print(s.getsockname()[1])')

pids=()
sent=''
failed=0

send() { # send SIGNAL [-]: with - to the children of each process too
  local pid
  for pid in "${pids[@]}"; do
    kill -s "$1" -- "${2:-}$pid" 2> /dev/null || true
  done
}

trap 'sent=yes; send TERM' TERM
trap 'sent=yes; send INT' INT

# Each process in a group of its own: Ctrl-C then reaches this script alone, and every
# process gets it once, from here.
set -m
for ((i = 0; i < count; i++)); do
  if [[ -n $gpus ]]; then
    CUDA_VISIBLE_DEVICES=$(seq -s, $((i * gpus)) $((i * gpus + gpus - 1)))
    export CUDA_VISIBLE_DEVICES
  fi
  "$python" -m "$module" --coordinator "127.0.0.1:$port" \
    --processes "$count" --process "$i" "$@" &
  pids+=("$!")
done

killer=''
while ((${#pids[@]})); do
  status=0
  wait -n -p finished "${pids[@]}" || status=$?
  # A signal ends the waiting too: then nobody has finished.
  [[ -n ${finished:-} ]] || continue
  left=()
  for pid in "${pids[@]}"; do
    [[ $pid == "$finished" ]] || left+=("$pid")
  done
  pids=("${left[@]}")
  if ((status && !failed)); then
    failed=$status
    # After a signal from outside all are ending already, and may be saving.
    if [[ -z $sent ]] && ((${#pids[@]})); then
      send TERM
      (sleep "$grace"; send KILL -) &
      killer=$!
    fi
  fi
done
[[ -z $killer ]] || kill -- "-$killer" 2> /dev/null || true
exit "$failed"
