#!/bin/sh
# One extraction over many Slurm tasks: a part of the archive each; the last one completes it.
#
#   scripts/slurm.sh /shared/archive 256 launch=slurm model=resnet50 dataset=image_folder dataset.root=/shared/photos
#   scripts/slurm.sh s3://bucket/run1 256 model=resnet50 dataset=image_folder dataset.root=/photos
#
# Run it on a node that may submit jobs. The archive is on a disk that all nodes see, or in a bucket: then
# nodes share nothing, and Slurm's options are in the environment (SBATCH_PARTITION, SBATCH_GPUS, SBATCH_TIMELIMIT), as
# AWS_* are. It waits for the array; the same command redoes the parts that failed and leaves finished ones alone.
set -eu
archive=$1 parts=$2
shift 2
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then # this script as a task of the array
    exec featuremaps extract "$@" archive="$archive" shard.count="$parts" shard.index="$SLURM_ARRAY_TASK_ID"
fi
case $archive in
*://*)
    sbatch --wait --array="0-$((parts - 1))" --job-name=featuremaps "$0" "$archive" "$parts" "$@"
    featuremaps stitch "$archive"
    ;;
*)
    featuremaps extract -m "$@" archive="$archive" shard.count="$parts" \
        "shard.index=range(0,$parts)" hydra.sweep.dir="$archive.sweep"
    ;;
esac
featuremaps info "$archive"
featuremaps verify "$archive"
