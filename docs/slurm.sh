#!/bin/bash
# Several nodes under SLURM: one task a node, which starts one process a GPU. `sbatch docs/slurm.sh configs/clip_vit_b32.yaml`
# A job that is cut off is put back into the queue, and goes on from its newest checkpoint.
#SBATCH --job-name=mmcl
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

config=$1
run=runs/$(basename "$config" .yaml)
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
resume=()
[ -d "$run/checkpoints" ] && resume=(--resume)

srun torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head:29500" \
  -m mmcl train "$config" --out "$run" "${resume[@]}"
