#!/usr/bin/env bash
# One run on all hosts of a Cloud TPU slice:
#
#   export NAME=kdjax ZONE=us-central1-a TYPE=v5litepod-16 SHARE=10.0.0.2:/share
#   launch/tpu_pod.sh create     # a slice; leave it out where one exists
#   launch/tpu_pod.sh install    # this code, its libraries and the share on every host
#   launch/tpu_pod.sh prepare cifar100                    # data onto the share, once
#   launch/tpu_pod.sh run --config configs/dgkd.py --workdir share/runs/dgkd
#   launch/tpu_pod.sh stop       # the run saves and ends; the same `run` continues
#   launch/tpu_pod.sh fetch share/runs/dgkd               # into ./dgkd
#   launch/tpu_pod.sh delete
#
# SHARE is an NFS export that the hosts reach (Filestore, for example); it appears on each
# as ~/share, and --workdir is a path in it: share/... All processes need the same working folder,
# with renames that happen at once: a bucket under Cloud Storage FUSE has these only with
# a hierarchical namespace. VERSION names the slice's software, and PROJECT the project
# where it is not gcloud's default.
set -euo pipefail

: "${NAME:?the name of the slice}" "${ZONE:?the zone of the slice}"
version=${VERSION:-v2-alpha-tpuv5-lite}
where=(--zone "$ZONE")
if [[ -n ${PROJECT:-} ]]; then
  where+=(--project "$PROJECT")
fi
tpu=(gcloud compute tpus tpu-vm)

on() { # on WORKER COMMAND
  "${tpu[@]}" ssh "$NAME" "${where[@]}" --worker "$1" --command "$2"
}

task=${1:-}
(($# == 0)) || shift
case $task in
  create)
    "${tpu[@]}" create "$NAME" "${where[@]}" \
      --accelerator-type "${TYPE:?the slice, such as v5litepod-16}" --version "$version"
    ;;
  install)
    : "${SHARE:?the NFS export, HOST:/PATH}"
    archive=$(mktemp -d)
    trap 'rm -rf "$archive"' EXIT
    # What git knows, in its present state.
    git -C "$(dirname "$0")/.." ls-files -z |
      tar -C "$(dirname "$0")/.." --null -T - -czf "$archive/kdjax.tar.gz"
    "${tpu[@]}" scp "$archive/kdjax.tar.gz" "$NAME:" "${where[@]}" --worker all
    on all "set -e
      sudo apt-get -qq install -y nfs-common python3-venv
      mkdir -p ~/share ~/kdjax
      ln -sfn ~/share ~/kdjax/share
      mountpoint -q ~/share || sudo mount -t nfs $(printf %q "$SHARE") ~/share
      tar -xzf ~/kdjax.tar.gz -C ~/kdjax
      python3 -m venv ~/venv
      ~/venv/bin/pip install -q 'jax[tpu]' -e ~/kdjax"
    ;;
  prepare)
    on 0 "cd ~/kdjax && ~/venv/bin/python -m kdjax.data.prepare $(printf '%q ' "$@") \
--data-dir ~/share/tensorflow_datasets"
    ;;
  run)
    # The hosts find each other by the slice's metadata: no flags are needed.
    on all "cd ~/kdjax && ~/venv/bin/python -m kdjax.main \
--config.data.dir=\$HOME/share/tensorflow_datasets $(printf '%q ' "$@")"
    ;;
  stop)
    on all "pkill -TERM -f '[k]djax.main' || true"
    ;;
  fetch)
    folder=${1:?the working folder, such as share/runs/dgkd}
    "${tpu[@]}" scp --recurse "$NAME:$folder" . "${where[@]}" --worker 0
    ;;
  delete)
    "${tpu[@]}" delete "$NAME" "${where[@]}"
    ;;
  *)
    sed -n '2,/^set/p' "$0" | sed -n 's/^# \{0,1\}//p' >&2
    exit 2
    ;;
esac
