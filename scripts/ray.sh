#!/bin/sh
# A sweep on a Ray cluster, here one that is started on this machine and stopped at the end.
#
#   scripts/ray.sh outputs/on-ray model=resnet18,vgg11 dataset=image_folder dataset.root=DIR
#   scripts/ray.sh outputs/on-ray model=resnet18,vgg11 'archive=s3://bucket/sweep/${model.name}' …
#
# On a cluster that is running, leave `ray start` and `ray stop` out. The folder must be on a disk that all nodes see,
# unless the archives are in a bucket: then each node needs AWS_* in its environment, statuses come back with the jobs,
# and logs and pictures stay on the nodes.
set -eu
folder=$1
shift
ray start --head --port="${RAY_PORT:-6399}" --include-dashboard=false --disable-usage-stats
trap 'ray stop --force' EXIT
featuremaps run -m launch=ray hydra.launcher.ray.init.address=auto "$@" hydra.sweep.dir="$folder"
