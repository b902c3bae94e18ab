#!/usr/bin/env bash
# Section 4.3: collects activations, trains TopK and Standard SAEs with snapshots, and follows the price of their encoders
# through training. `bash launch/section43.sh embedded` does it on the embedded language model in minutes; without it, on
# MiniLM (12 SAEs, 84 checkpoints). Further flags go to amortjax.launch.section43. A killed run goes on where it was.
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
ensure_venv export
export TOKENIZERS_PARALLELISM=false TF_CPP_MIN_LOG_LEVEL=2
# Compiled once for all runs: the solver of the optimum has many shapes.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/outputs/cache/jax} JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.2

run=minilm collect=minilm_wikitext train=section43
if [ "${1:-}" = embedded ]; then
  run=embedded collect=embedded train=section43_embedded
  shift
fi
python -m amortjax.launch.collect --flagfile=configs/collect/$collect.flags
for variant in topk standard; do
  python -m amortjax.launch.train --flagfile=configs/train/${train}_$variant.flags
done
python -m amortjax.launch.section43 --flagfile=configs/section43/$run.flags "$@"
