#!/bin/bash

# Parameters
#SBATCH --account=nlp
#SBATCH --array=0-1%1
#SBATCH --comment='metapt /the root'
#SBATCH --constraint=a100
#SBATCH --cpus-per-task=4
#SBATCH --dependency=afterok:100
#SBATCH --error='/the root/logs/submitit/%A_%a_0_log.err'
#SBATCH --gpus-per-node=4
#SBATCH --job-name=demo/pretrain
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=32GB
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output='/the root/logs/submitit/%A_%a_0_log.out'
#SBATCH --partition=gpu
#SBATCH --qos=long
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=150

# setup
set -e
trap 'echo "error: the setup of the site failed: $BASH_COMMAND" >&2' EXIT
module load cuda
set +e
trap - EXIT
export HF_HUB_CACHE='/the root/hub' HF_DATASETS_CACHE='/the root/datasets' HF_HUB_OFFLINE=1
export METAPT_CODE='/the root/code/HASH' PYTHONSAFEPATH=1
export PYTHONPATH="$METAPT_CODE${PYTHONPATH:+:$PYTHONPATH}"
for _ in $(seq 90); do [ -e "$METAPT_CODE/COMMIT" ] && break; sleep 1; done
[ -e "$METAPT_CODE/COMMIT" ] || { echo "error: $METAPT_CODE is not visible here" >&2; exit 1; }

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/the root/logs/submitit/%A_%a_%t_log.out' --error '/the root/logs/submitit/%A_%a_%t_log.err' --export=ALL --cpus-per-task=4 --wait=600 /bin/python -u -m submitit.core._submit '/the root/logs/submitit'
