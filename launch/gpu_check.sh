#!/usr/bin/env bash
# What a GPU that is lent for minutes is asked for, in calls of less than ten minutes.
#
#   launch/gpu_check.sh steps OUT DATA             a second start, the steps, their profile
#   launch/gpu_check.sh options OUT DATA           the steps with other options of XLA
#   launch/gpu_check.sh epochs OUT DATA            whole epochs
#   launch/gpu_check.sh train OUT DATA [PACKED]    the CTKD paper's Table I, its left half
#   launch/gpu_check.sh baseline OUT DATA [PACKED] its labels-alone row by PyTorch
#
# OUT gets figures and logs, and from `train` the folder OUT/packed, which the next
# call takes as PACKED, on whatever machine; the call after which no stage is left ends
# with status 0, the others with 143. Of `baseline` that folder is OUT/baseline, with
# the seeds that are finished, and a call that leaves some ends with status 1. DATA
# holds CIFAR-10 as TFDS prepares it. Needs the packages of kdjax[benchmark] and JAX for
# the GPU; give the call ten minutes.
#
# Environment: MINUTES (9) is what a call takes at most, PRECISION (bf16) that of options,
# epochs and runs, SEEDS (3) of every stage. TINY=1 tries everything at the smallest size, also
# on CPU, where PRECISION=float32 is wanted.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

usage() {
  sed -n '2,/^set/p' "$0" | sed -n 's/^# \{0,1\}//p' >&2
  exit 2
}

python=${PYTHON:-python}
precision=${PRECISION:-bf16}
seconds=$((${MINUTES:-9} * 60))
failed=0

# Runs a command for a share of the time, in percent; the others go on if it fails.
step() {
  local name=$1 share=$2 begin=$SECONDS status=0
  shift 2
  timeout --kill-after=10 $((seconds * share / 100)) "$@" > "$out/$name.log" 2>&1 || status=$?
  echo "$name: status $status after $((SECONDS - begin)) s"
  ((status == 0)) || failed=1
}

# A second start comes first: from the compilation cache it once failed in cuDNN. The
# profile comes after the steps, whose programs it finds in the cache.
steps() {
  local size=(--rounds=5)
  [[ -z ${TINY:-} ]] || size=(--rounds=1 --busy=1 --tiny)
  step start 15 "$python" -m benchmarks.start "${size[@]}" --rounds=1 --cases supervised \
    --out="$out/start.json"
  step steps 65 "$python" -m benchmarks.steps "${size[@]}" --out="$out/steps.json"
  step profile 20 "$python" -m benchmarks.steps "${size[@]}" --profile \
    --cases supervised ctkd --out="$out/profile.json"
  return $failed
}

# A tenth of the time is left for starting and for the last set's overtime.
options() {
  local size=(--rounds=5)
  [[ -z ${TINY:-} ]] || size=(--rounds=1 --busy=1 --tiny)
  step options 100 "$python" -m benchmarks.options "${size[@]}" \
    --precision="$precision" --seconds=$((seconds * 9 / 10)) --out="$out/options.json"
  return $failed
}

epochs() {
  local size=(--epochs=4)
  [[ -z ${TINY:-} ]] || size=(--epochs=1 --busy=1 --train-size=256 --test-size=100)
  step epochs 100 "$python" -m benchmarks.epochs "${size[@]}" --rounds=1 \
    --data-dir="$data" --precision="$precision" --out="$out/epochs.json"
  return $failed
}

# Both configs share the working folder, and so the expert.
train() {
  local workdir=$out/run sizes=seeds=${SEEDS:-3} status=0
  # A minute is left for the last checkpoint and for packing.
  local end=$((SECONDS + seconds - 60))
  [[ -z ${TINY:-} ]] || sizes=seeds=1,epochs=1,train_size=256,test_size=100
  [[ -z $packed ]] || launch/visit.sh unpack "$packed" "$workdir" || return
  run ctkd "configs/ctkd.py:cifar10,scratch=replay,$sizes" &&
    run table1 "configs/ctkd_tables.py:table1,$sizes" --stages=baseline,kd,at
  status=$?
  launch/visit.sh pack "$workdir" "$out/packed" || return
  rm -rf "$workdir"
  return $status
}

# Finished seeds are found again; one that is cut off starts anew in the next call.
baseline() {
  local workdir=$out/baseline size=("--seeds=${SEEDS:-3}")
  [[ -z ${TINY:-} ]] || size=(--seeds=1 --epochs=1 --train-size=256 --test-size=100)
  if [[ -n $packed ]]; then # maybe read-only, as what came back from another machine
    mkdir -p "$workdir" && cp -R "$packed/." "$workdir" && chmod -R u+w "$workdir" || return
  fi
  step baseline 100 "$python" -m benchmarks.baseline "${size[@]}" --only=torch \
    --data-dir="$data" --precision="$precision" --workdir="$workdir" --out="$out/baseline.json"
  return $failed
}

# Trains what is missing until the time is up; the run then saves a checkpoint.
run() {
  local name=$1 config=$2 left=$((end - SECONDS)) status=0
  shift 2
  ((left > 0)) || return 143
  timeout --signal=TERM --kill-after=45 $left "$python" -m kdjax.main --config="$config" \
    --config.precision="$precision" --config.data.dir="$data" --workdir="$workdir" "$@" \
    > "$out/$name.log" 2>&1 || status=$?
  ((status != 124)) || status=143 # as `timeout` tells it
  echo "$name: status $status with $((end - SECONDS)) s left"
  ((status != 0)) || cp "$workdir/results.json" "$out/$name.json"
  return $status
}

(($# == 3 || $# == 4)) || usage
mkdir -p "$2" || exit 2
out=$(realpath "$2") data=$(realpath "$3") packed=${4:-}
case $1 in
  steps) steps ;;
  options) options ;;
  epochs) epochs ;;
  train) train ;;
  baseline) baseline ;;
  *) usage ;;
esac
