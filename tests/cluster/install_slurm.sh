#!/bin/sh
# Installs Slurm and MUNGE from Debian's packages, where they are missing.
set -eu
PATH=$PATH:/usr/sbin:/sbin
missing=""
for program in slurmctld slurmd sbatch srun munged; do
    command -v "$program" > /dev/null || missing="$missing $program"
done
[ -z "$missing" ] && exit 0

packages="slurmctld slurmd slurm-client munge"
if ! command -v apt-get > /dev/null; then
    echo "make test-cluster: no$missing here. Install Slurm and MUNGE with this system's packages, then run it again." >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then
    as_root=""
elif command -v sudo > /dev/null; then
    as_root="sudo"
else
    echo "make test-cluster: no$missing here. As root run: apt-get install $packages" >&2
    exit 1
fi
$as_root apt-get update -qq
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -qq --no-install-recommends $packages
