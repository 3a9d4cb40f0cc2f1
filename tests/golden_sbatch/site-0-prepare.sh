#!/bin/bash

# Parameters
#SBATCH --comment='metapt /the root'
#SBATCH --cpus-per-task=4
#SBATCH --error='/the root/logs/submitit/%j_0_log.err'
#SBATCH --exclude='node[13-14]'
#SBATCH --job-name=prepare/demo-HASH
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=8GB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='/the root/logs/submitit/%j_0_log.out'
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=720

# setup
type module >/dev/null 2>&1 || . /etc/profile
set -e
trap 'echo "error: the setup of the site failed: $BASH_COMMAND" >&2' EXIT
module load cuda/12.4
export NCCL_SOCKET_IFNAME=ib0
date
set +e
trap - EXIT
export METAPT_CODE='/the root/code/HASH' PYTHONSAFEPATH=1
export PYTHONPATH="$METAPT_CODE${PYTHONPATH:+:$PYTHONPATH}"
for _ in $(seq 90); do [ -e "$METAPT_CODE/COMMIT" ] && break; sleep 1; done
[ -e "$METAPT_CODE/COMMIT" ] || { echo "error: $METAPT_CODE is not visible here" >&2; exit 1; }
apptainer exec --nv metapt.sif sh -c 'command -v scontrol && command -v squeue' >/dev/null || { echo 'error: cluster.launcher: jobs are requeued with scontrol and squeue, which are not in the container; bind them' >&2; exit 1; }

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/the root/logs/submitit/%j_%t_log.out' --error '/the root/logs/submitit/%j_%t_log.err' --export=ALL --cpus-per-task=4 --wait=600 --mpi=none apptainer exec --nv metapt.sif /opt/python -u -m submitit.core._submit '/the root/logs/submitit'
