#!/bin/sh
# One extraction over many Slurm tasks: a part of the archive each; the last one completes it.
#
#   scripts/slurm.sh /shared/archive 256 launch=slurm model=resnet50 dataset=image_folder dataset.root=/shared/photos
#
# Run it on a node that may submit jobs, with the archive on a disk that all nodes see. It waits for
# the array; parts that failed are listed and redone by the same command, finished ones are left alone.
set -eu
archive=$1 parts=$2
shift 2
featuremaps extract -m "$@" archive="$archive" shard.count="$parts" \
    "shard.index=range(0,$parts)" hydra.sweep.dir="$archive.sweep"
featuremaps info "$archive"
featuremaps verify "$archive"
