#!/usr/bin/env bash
# Runs a command in an unpacked image as `docker run --read-only --network none` would: sandbox.sh ROOT BUNDLE OUT USER COMMAND...
# Needs root with CAP_SYS_ADMIN, no container engine; the environment comes as the image's, in the file ROOT.env.
set -euo pipefail
if test "${1:-}" != --inside; then
  exec unshare --mount --net --pid --ipc --uts --fork --kill-child bash "$0" --inside "$@"
fi
root=$2 bundle=$3 out=$4 user=$5
shift 5
mount --make-rprivate /
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
mount -t tmpfs -o nosuid,mode=755 dev "$root/dev"
for device in full null random urandom zero; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir -m 1777 "$root/dev/shm"
mount -t tmpfs -o nosuid,nodev,mode=1777 shm "$root/dev/shm"
mount -t tmpfs -o nosuid,nodev,mode=1777 scratch "$root/scratch"
mount --bind "$bundle" "$root/bundle"
mount -o remount,bind,ro "$root/bundle"
mount --bind "$out" "$root/out"
mapfile -t environment <"$root.env"
exec chroot --userspec="$user" --groups='' "$root" /usr/bin/env -i --chdir=/scratch "${environment[@]}" "$@"
