#!/bin/bash
# Several nodes under SLURM: one task a node, which starts one process a GPU. What follows the config goes to
# `mmcl train`:
#   sbatch docs/slurm.sh configs/clip_vit_b32.yaml --set data.train.source='/data/train-{00000..09999}.tar'
# A job that is preempted, or whose node fails, is put back into the queue and goes on from its newest checkpoint. One
# that reaches its time limit is not: submit it again.
#SBATCH --job-name=mmcl
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

config=$1
shift
run=runs/$(basename "$config" .yaml)
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
resume=()
if [ -s "$run/metrics.jsonl" ] || [ -d "$run/checkpoints" ]; then resume=(--resume); fi

srun torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head:29500" \
  -m mmcl train "$config" --out "$run" "${resume[@]}" "$@"
