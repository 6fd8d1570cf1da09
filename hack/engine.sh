#!/usr/bin/env bash
#
# Makes sure that a Docker engine runs on this machine and says how. An engine
# that it starts itself, because no init system does, is noted in DIR, and
# `stop` ends that one and no other.
#
#   hack/engine.sh start DIR
#   hack/engine.sh stop DIR

set -euo pipefail

say() { printf 'engine: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

docker=${DOCKER:-docker}
answers() { "$docker" version --format '{{.Server.Version}}' 2>/dev/null; }

start() {
    local dir=$1 version log
    if version=$(answers); then
        say "Docker $version runs already"
        return
    fi
    command -v dockerd >/dev/null || die 'no dockerd: run hack/deps.sh run'
    [[ $EUID -eq 0 ]] || die 'no Docker engine answers, and starting one needs root'
    if [[ -d /run/systemd/system ]]; then
        say 'starting docker.service'
        systemctl start docker
    else
        log=$dir/dockerd.log
        say "no init system runs here: starting dockerd in the background, its log is $log"
        setsid --fork dockerd >>"$log" 2>&1 </dev/null
        touch "$dir/dockerd.ours"
    fi
    for _ in {1..300}; do
        if version=$(answers); then
            say "Docker $version runs"
            return
        fi
        sleep 0.1
    done
    [[ -z ${log-} ]] || tail -n 20 "$log" >&2
    die 'Docker does not answer'
}

stop() {
    local dir=$1 pid
    [[ -e $dir/dockerd.ours ]] || return 0
    # Only what start started: it left no choice of the pid file's place.
    pid=$(cat /var/run/docker.pid 2>/dev/null) || pid=
    if [[ -n $pid && $(readlink "/proc/$pid/exe") == */dockerd* ]]; then
        say "stopping dockerd, pid $pid, which make up had started"
        kill -TERM "$pid"
        for _ in {1..300}; do
            [[ -d /proc/$pid ]] || break
            sleep 0.1
        done
        [[ ! -d /proc/$pid ]] || die "dockerd, pid $pid, does not end"
    fi
    rm -f "$dir/dockerd.ours"
}

case ${1-}:${2-} in
start:?*) start "$2" ;;
stop:?*) stop "$2" ;;
*) die 'usage: hack/engine.sh start|stop DIR' ;;
esac
