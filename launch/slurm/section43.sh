#!/usr/bin/env bash
# Section 4.3 as an array job, each task its share of the checkpoints; then, once, what gathers them:
#   job=$(sbatch --parsable --array=1-12 launch/slurm/section43.sh FLAGFILE)
#   sbatch --dependency=afterany:$job launch/slurm/section43.sh FLAGFILE
#SBATCH --job-name=section43
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --output=section43_%A_%a.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/../..}"
flagfile=${1:?name a flagfile, as in configs/section43/minilm.flags}
shift
part=()
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  part=("--part=$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT")
fi
exec "${PYTHON:-.venv/bin/python}" -m amortjax.launch.section43 --flagfile="$flagfile" ${part[@]+"${part[@]}"} "$@"
