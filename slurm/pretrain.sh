#!/bin/bash
# One pretraining run on as many nodes and GPUs as sbatch is told, one process per GPU (without GPUs: per node):
#
#   sbatch --nodes=2 --gpus-per-node=4 slurm/pretrain.sh model=large objective=maml run_dir=runs/large
#
# Before the time limit Slurm sends USR1; the run saves and exits with 75, and this job is queued again. Submit it
# from a folder in which `python -m metapt.pretrain` works; PYTHON names another interpreter.
#SBATCH --job-name=metapt-pretrain
#SBATCH --cpus-per-gpu=4
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
set -u
TASKS=${SLURM_GPUS_ON_NODE:-1}
export PYTHON=${PYTHON:-python}
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 40000))
export WORLD_SIZE=$((SLURM_JOB_NUM_NODES * TASKS)) LOCAL_WORLD_SIZE=$TASKS
export OMP_NUM_THREADS=$(((SLURM_CPUS_ON_NODE + TASKS - 1) / TASKS))

# Not torchrun, which keeps the signal to itself; --wait: when one process has died the others do not wait for it;
# USR1 is ignored until the program listens, since its default is death.
# shellcheck disable=SC2016 # RANK and LOCAL_RANK are each process's own
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node="$TASKS" --cpus-per-task="$OMP_NUM_THREADS" --wait=600 \
    bash -c 'trap "" USR1; RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$PYTHON" -m metapt.pretrain "$@"' pretrain "$@"
code=$?
[ $code = 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ] && exec scontrol requeue "$SLURM_JOB_ID"
exit $code
