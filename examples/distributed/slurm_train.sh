#!/usr/bin/env bash
# sbatch slurm_train.sh: one worker for each GPU of a SLURM job.
#SBATCH --job-name=train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --requeue
set -euo pipefail
export SHARED=${SHARED:-/shared}
# Since SLURM 22.05 srun does not take the job's --cpus-per-task by itself.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
port=$((12000 + SLURM_JOB_ID % 20000)) # of the first worker on a host; two jobs can share one
workers=""
for host in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
    for local in $(seq 0 $((SLURM_NTASKS_PER_NODE - 1))); do
        workers+="${workers:+,}$host:$((port + local))"
    done
done
export WORKERS=$workers
# Tasks are numbered node by node, as the list is. A requeued job goes on from its last epoch.
srun --distribution=block --kill-on-bad-exit=1 bash -c 'python train.py --data="$SHARED/train.npz" \
    --cache="$SHARED/cache" --output="$SHARED/student.keras" --batch_size=1024 --workers="$WORKERS" \
    --index="$SLURM_PROCID"'
