#!/bin/bash
# One fine-tuning run, in one process, or (tuning=full, lora) in as many on a node as --ntasks-per-node says, one per GPU:
#
#   sbatch --gpus-per-node=1 slurm/finetune.sh checkpoint=runs/large source=en_ewt tuning=full run_dir=runs/large-en
#
# Before the time limit Slurm sends USR1 to all of them; the run saves and exits with 75, and this job is queued again.
# What a site needs is in slurm/site.env; see slurm/site.env.example.
#SBATCH --job-name=metapt-finetune
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
MODULE=metapt.finetune
TASKS=${SLURM_TASKS_PER_NODE%%(*} # on a node

# ---- the same in pretrain.sh and finetune.sh: sbatch hands over one file alone, so they can share none -------
LAUNCH=() # what each process is started with: a container, for example
SITE=${METAPT_SITE:-$SLURM_SUBMIT_DIR/slurm/site.env}
if [ -r "$SITE" ]; then
    # shellcheck source=/dev/null
    . "$SITE"
elif [ -n "${METAPT_SITE:-}" ]; then
    echo "METAPT_SITE=$METAPT_SITE: no such file" >&2
    exit 2
fi
set -u # not before: what loads modules and environments often reads unset variables
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000)) # below the ports that systems give out by themselves
export WORLD_SIZE=$((SLURM_JOB_NUM_NODES * TASKS)) LOCAL_WORLD_SIZE=$TASKS
export OMP_NUM_THREADS=$((SLURM_CPUS_ON_NODE < TASKS ? 1 : SLURM_CPUS_ON_NODE / TASKS))
unset SLURM_CPUS_PER_GPU # with it srun wants GPUs also where Slurm knows of none; --cpus-per-task says the same

# Says which source is run: as it is now, not when sbatch was called. Ends a job that is queued again and again without a
# new checkpoint.
"${LAUNCH[@]}" "${PYTHON:-python}" -m metapt.launch.requeues "$MODULE" "$@" || exit

# Not torchrun, which keeps the signal to itself; --wait: when one process has died the others do not wait for it;
# USR1 is ignored until the program listens, since its default is death.
# shellcheck disable=SC2016 # RANK and LOCAL_RANK are each process's own
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$WORLD_SIZE" --ntasks-per-node="$TASKS" \
    --cpus-per-task="$OMP_NUM_THREADS" --wait=600 \
    bash -c 'trap "" USR1; RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$@"' "$MODULE" \
    "${LAUNCH[@]}" "${PYTHON:-python}" -m "$MODULE" "$@"
code=$?
[ $code = 75 ] && exec scontrol requeue "$SLURM_JOB_ID"
exit $code
