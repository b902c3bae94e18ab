#!/usr/bin/env bash
# The main job: a small language model over the documentation on this machine, two SAEs, and the price of their
# encoders. About five minutes on two cores once installed; a second run finds everything done.
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
ensure_venv export
export TOKENIZERS_PARALLELISM=false TF_CPP_MIN_LOG_LEVEL=2

python -m amortjax.launch.collect --flagfile=configs/collect/embedded.flags
python -m amortjax.launch.train --flagfile=configs/train/embedded_topk.flags
python -m amortjax.launch.train --flagfile=configs/train/embedded_standard.flags
python -m amortjax.launch.section5 --flagfile=configs/section5/embedded.flags "$@"
