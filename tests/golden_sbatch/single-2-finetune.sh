#!/bin/bash

# Parameters
#SBATCH --comment='metapt /the root'
#SBATCH --cpus-per-task=2
#SBATCH --dependency=afterok:101
#SBATCH --error='/the root/logs/submitit/%j_0_log.err'
#SBATCH --job-name=finetune/nano-maml-s0-en_demo-head_only-HASH
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=3GB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='/the root/logs/submitit/%j_0_log.out'
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=480

# setup
export HF_HUB_CACHE='/the root/hub' HF_DATASETS_CACHE='/the root/datasets' HF_HUB_OFFLINE=1
export METAPT_CODE='/the root/code/HASH' PYTHONSAFEPATH=1
export PYTHONPATH="$METAPT_CODE${PYTHONPATH:+:$PYTHONPATH}"
for _ in $(seq 90); do [ -e "$METAPT_CODE/COMMIT" ] && break; sleep 1; done
[ -e "$METAPT_CODE/COMMIT" ] || { echo "error: $METAPT_CODE is not visible here" >&2; exit 1; }

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/the root/logs/submitit/%j_%t_log.out' --error '/the root/logs/submitit/%j_%t_log.err' --export=ALL --cpus-per-task=2 --wait=600 /bin/python -u -m submitit.core._submit '/the root/logs/submitit'
