#!/bin/bash
# One fine-tuning run:
#
#   sbatch --gpus-per-node=1 slurm/finetune.sh checkpoint=runs/large source=en_ewt regime=full run_dir=runs/large-en
#
# Before the time limit Slurm sends USR1; the run saves and exits with 75, and this job is queued again. Submit it
# from a folder in which `python -m metapt.finetune` works; PYTHON names another interpreter.
#SBATCH --job-name=metapt-finetune
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
set -u
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

srun --cpus-per-task="$SLURM_CPUS_PER_TASK" bash -c 'trap "" USR1; exec "$@"' finetune \
    "${PYTHON:-python}" -m metapt.finetune "$@"
code=$?
[ $code = 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ] && exec scontrol requeue "$SLURM_JOB_ID"
exit $code
