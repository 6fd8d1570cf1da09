#!/bin/busybox sh
# The guest's first process once the host's files are there: what a host has after
# its boot, then two scripts: /carrick/prepare and the command, /carrick/command. Its
# exit code goes to /carrick/status, and that is the end. Without preparation there is
# neither command nor code.

# shellcheck shell=dash
bb=/busybox
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LANG=C.UTF-8

$bb mount -t tmpfs run /run
$bb mkdir -p /dev/pts /dev/shm /run/netns /run/lock
$bb mount -t devpts -o ptmxmode=666 devpts /dev/pts
$bb mount -t tmpfs shm /dev/shm
$bb mount -t cgroup2 cgroup2 /sys/fs/cgroup
$bb mount -t bpf bpf /sys/fs/bpf
$bb ln -sf /proc/self/fd /dev/fd
$bb ip link set lo up
$bb hostname vm

/bin/sh /carrick/prepare </dev/null >/dev/ttyS0 2>&1 || $bb poweroff -f

# Bytes as they are: no newline becomes two. The terminal forgets it when the last who
# has it open closes it.
exec 3>/dev/hvc0
$bb stty -F /dev/hvc0 raw -echo
# By the host's shell: busybox's takes its own ip for iproute2's.
$bb setsid /bin/sh /carrick/command </dev/null >&3 2>&1 3>&-
# Whole or not at all: a guest that dies here has not reported.
echo $? >/carrick/status.new
$bb mv /carrick/status.new /carrick/status
$bb poweroff -f
