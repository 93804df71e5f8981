#!/bin/bash
# A run on several nodes under SLURM that goes on by itself, after its time is up or a node was lost.
#
#   sbatch examples/slurm/several_nodes.sh --config my.yaml
#
# Set nodes and GPUs here, and nowhere else. The config needs a ModelCheckpoint with a `dirpath` of its own on a file
# system that all nodes see; name it in CHECKPOINTS:
#
#   sbatch --export=ALL,CHECKPOINTS=runs/my/checkpoints examples/slurm/several_nodes.sh --config my.yaml
#
#SBATCH --job-name=pera
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# SIGTERM two minutes before the end: the batch in hand is trained, PeraCallback writes last-sigterm.ckpt. Not SIGUSR1,
# for which Lightning saves in the middle of a step: with several processes that can hang.
#SBATCH --signal=TERM@120
set -euo pipefail

CHECKPOINTS=${CHECKPOINTS:?the folder of the ModelCheckpoint}
SAVED="$CHECKPOINTS/last-sigterm.ckpt"
BEGIN=$(mktemp)
trap 'rm -f "$BEGIN"' EXIT

# "last" begins anew where there is no checkpoint yet. If one task is lost, srun ends the others.
srun --kill-on-bad-exit=1 python -m pera_lightning fit "$@" \
    --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" --ckpt_path last

# A checkpoint of this job, not of an earlier one: the time was up, so the same job goes on from it.
if [ "$SAVED" -nt "$BEGIN" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
