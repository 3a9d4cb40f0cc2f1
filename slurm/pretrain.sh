#!/bin/bash
# One pretraining run on the nodes and GPUs that sbatch requests, with one process per GPU:
#
#   sbatch --nodes=2 --gpus-per-node=4 --cpus-per-gpu=8 slurm/pretrain.sh model=large objective=maml_paper data=text data.text_dir=TEXT run_dir=runs/large
#
# If no GPUs are requested, --ntasks-per-node is the number of processes per node; the default is one.
# The scripts set no number of CPUs: without --cpus-per-gpu or --cpus-per-task the site decides.
# Before the time limit Slurm sends USR1 to all processes; the run saves and exits with 75, and this job is requeued.
# Settings of a site: metapt sbatch cluster=./site.yaml (docs/slurm.md). Without it, python of the environment runs.
#SBATCH --job-name=metapt-pretrain
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
MODULE=metapt.pretrain
# Processes per node. SLURM_NTASKS_PER_NODE may belong to a job in which sbatch was called.
TASKS=${SLURM_GPUS_ON_NODE:-${SLURM_TASKS_PER_NODE%%(*}}

# ---- the same in pretrain.sh and finetune.sh: sbatch copies only one file, so they cannot share a third one --
# the interpreter, a command that starts each process (for example a container), and further options of srun
PYTHON=python LAUNCH=() SRUN_ARGS=()
# ---- site: here `metapt sbatch cluster=./site.yaml` inserts the settings of a site
set -u # not earlier: what loads modules and environments often reads unset variables
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000)) # below the ephemeral ports of common systems
export WORLD_SIZE=$((SLURM_JOB_NUM_NODES * TASKS)) LOCAL_WORLD_SIZE=$TASKS
export OMP_NUM_THREADS=$((SLURM_CPUS_ON_NODE < TASKS ? 1 : SLURM_CPUS_ON_NODE / TASKS))
# What follows leaves the user's own settings alone; metapt.launch.process sets the same for the jobs of grids.
[ -n "${PYTORCH_CUDA_ALLOC_CONF:-}" ] || export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-expandable_segments:True} # GPU memory does not fragment
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # threads that spin while they wait slow down others
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.mmap_threshold=34359738368:glibc.malloc.trim_threshold=34359738368:glibc.malloc.mmap_max=0}
NODE_TMP=${TMPDIR:-/tmp} # for compiled code: on the node, and kept when the job is requeued, so not in a folder of the job
case $NODE_TMP in *"$SLURM_JOB_ID"*) NODE_TMP=/tmp ;; esac
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$NODE_TMP/metapt-$(id -un)/inductor}
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$NODE_TMP/metapt-$(id -un)/triton}
OVERCOMMIT=() # more processes than CPUs, which srun refuses otherwise
if [ "$SLURM_CPUS_ON_NODE" -lt "$TASKS" ]; then
    OVERCOMMIT=(--overcommit)
    echo "warning: $TASKS processes per node share $SLURM_CPUS_ON_NODE CPU(s); request more with --cpus-per-gpu or --cpus-per-task" >&2
fi
unset SLURM_CPUS_PER_GPU # with it srun requires GPUs even where Slurm has none; --cpus-per-task replaces it

CHECK=() # where srun starts the container, it also starts the check
[ ${#SRUN_ARGS[@]} = 0 ] || CHECK=(srun --nodes=1 --ntasks=1 --export=ALL "${SRUN_ARGS[@]}")

# Prints which source the job runs: the present one, not that of the time of submission. Ends a job whose run would refuse
# its configuration or data (exit code 2), and one that was requeued too often without a new checkpoint.
"${CHECK[@]}" "${LAUNCH[@]}" "$PYTHON" -m metapt.launch.requeues "$MODULE" "$@" || exit

# srun and not torchrun, which does not forward the signal. --wait: after one process has died, the others are ended.
# USR1 is ignored until the program installs its handler: by default it would kill the process.
# shellcheck disable=SC2016 # RANK and LOCAL_RANK differ between processes
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$WORLD_SIZE" --ntasks-per-node="$TASKS" \
    --cpus-per-task="$OMP_NUM_THREADS" --wait=600 --export=ALL "${OVERCOMMIT[@]}" "${SRUN_ARGS[@]}" \
    bash -c 'trap "" USR1; RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$@"' "$MODULE" \
    "${LAUNCH[@]}" "$PYTHON" -m "$MODULE" "$@"
code=$?
[ $code = 0 ] && exit
# The nodes that the job has to avoid, if a node has failed. Fails if nodes have failed too often.
avoided=$("${CHECK[@]}" "${LAUNCH[@]}" "$PYTHON" -m metapt.launch.requeues after "$MODULE" "$@") || exit
if [ $code = 75 ] || [ -n "$avoided" ]; then
    trap '' TERM # of the requeue, until the nodes are excluded
    scontrol requeue "$SLURM_JOB_ID"
    [ -z "$avoided" ] || scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="$avoided"
fi
exit $code
