#!/usr/bin/env bash
# ruff, pyright and pytest. Arguments go to pytest: bash launch/test.sh -k active_set
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
ensure_venv export dev
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 TF_CPP_MIN_LOG_LEVEL=2
# Scratch in huge pages: see amortjax/launch/huge_pages.py.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

ruff check .
ruff format --check .
pyright
# Most of the time is XLA compiling, on one core: two processes, each with its own files.
python -m pytest -n "${TEST_PROCESSES:-2}" --dist loadfile "$@"
