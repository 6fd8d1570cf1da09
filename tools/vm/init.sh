#!/bin/busybox sh
# The guest's first process, from the initramfs: mounts the host's files, read-only
# below an overlay in memory, and goes on with stage2.sh in there.
#
# The kernel's command line says where the host has the modules: carrick.modules=DIR.

# shellcheck shell=dash
set -eu
bb=/bin/busybox

$bb mount -t proc proc /proc
$bb mount -t sysfs sys /sys
$bb mount -t devtmpfs dev /dev
while read -r module; do
    $bb insmod "/modules/$module"
done </modules/order

modules=
for word in $($bb cat /proc/cmdline); do
    case $word in
    carrick.modules=*) modules=${word#*=} ;;
    esac
done

# Large messages: each costs a trip to the host. The host's files do not change
# under a test, so what was read is kept; the run's own directory does.
options=trans=virtio,version=9p2000.L,msize=524288
$bb mount -t 9p -o "ro,$options,cache=loose" host /host
$bb mount -t tmpfs -o size=90% upper /upper
$bb mkdir /upper/files /upper/work
$bb mount -t overlay -o lowerdir=/host,upperdir=/upper/files,workdir=/upper/work overlay /new

$bb mkdir -p /new/carrick /new/proc /new/sys /new/dev /new/usr/lib/modules
$bb mount -t 9p -o "rw,$options,cache=none" run /new/carrick
$bb ln -s "$modules" "/new/usr/lib/modules/$($bb uname -r)"
$bb mount -t proc proc /new/proc
$bb mount -t sysfs sys /new/sys
$bb mount -t devtmpfs dev /new/dev
$bb cp /bin/busybox /stage2 /new/
$bb umount /proc /sys /dev
exec $bb switch_root /new /busybox sh /stage2
