#!/usr/bin/env bash
# sbatch slurm_label.sh: a Ray cluster inside a SLURM job, and the labelling on it.
#SBATCH --job-name=label
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail
shared=${SHARED:-/shared}
port=6379
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RAY_USAGE_STATS_ENABLED=0
# Since SLURM 22.05 srun does not take the job's --cpus-per-task by itself.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

srun --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --port=$port --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus=4 --include-dashboard=false --block &
sleep 15
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head" \
        ray start --address="$head:$port" --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus=4 --block &
    sleep 15
fi
# A requeued job goes on where it was.
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    python label.py --data="$shared/train.npz" --teacher="$shared/teacher.keras" --cache="$shared/cache" \
    --address="$head:$port" --gpus=1 --cpus=4
