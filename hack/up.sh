#!/usr/bin/env bash
#
# From a fresh machine to two containers that reach each other over a Carrick
# network: installs what is missing, builds, starts the agent with the embedded
# store, makes a network and runs the containers. Running it again is harmless;
# an agent older than the tree is replaced, with its containers running on.
#
#   hack/up.sh            (make up)
#   hack/up.sh down       undoes it (make down)
#
# Everything it makes is in CARRICK_UP_DIR, /var/lib/carrick-up, or is called
# carrick-demo*; the network is called demo.

set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
dir=${CARRICK_UP_DIR:-/var/lib/carrick-up}
docker=${DOCKER:-docker}
network=demo
image=carrick-demo
socket=/run/docker/plugins/carrick.sock

say() { printf '\n==> %s\n' "$*"; }
die() {
    printf 'up: %s\n' "$*" >&2
    exit 1
}

[[ $EUID -eq 0 ]] || die 'needs root, as the agent does'

# agent_pid prints the pid of the agent this script started, if it lives.
agent_pid() {
    local pid
    pid=$(cat "$dir/agent.pid" 2>/dev/null) || return 1
    # After a reboot the number may be anybody's.
    [[ $(readlink "/proc/$pid/exe" 2>/dev/null) == "$dir/carrick"* ]] || return 1
    echo "$pid"
}

stop_agent() {
    local pid
    pid=$(agent_pid) || return 0
    kill -TERM "$pid"
    for _ in {1..300}; do
        agent_pid >/dev/null || break
        sleep 0.1
    done
    ! agent_pid >/dev/null || die "the agent, pid $pid, does not end"
    rm -f "$dir/agent.pid"
}

# alive says whether somebody listens on the plugin socket. /proc/net/unix has
# the sockets that listen, flag 00010000 (SO_ACCEPTCON).
alive() { awk -v s="$1" '$4 == "00010000" && $NF == s { found = 1 } END { exit !found }' /proc/net/unix; }

start_agent() {
    if agent_pid >/dev/null; then
        if cmp -s "$root/bin/carrick" "$dir/carrick"; then
            echo "it runs already, pid $(agent_pid)"
            return
        fi
        echo "the one that runs is older than this tree: replacing it"
        stop_agent
    fi
    if alive "$socket"; then
        die "another agent serves $socket: stop it first"
    fi
    install -m 0755 "$root/bin/carrick" "$dir/carrick"
    # shellcheck disable=SC2016 # for the shell in between, which becomes the agent
    setsid --fork sh -c 'echo $$ >"$0/agent.pid"; exec "$0/carrick" agent --state-dir "$0/state"' "$dir" \
        >>"$dir/agent.log" 2>&1 </dev/null
    for _ in {1..300}; do
        if alive "$socket"; then
            echo "pid $(agent_pid), log $dir/agent.log, state $dir/state"
            return
        fi
        sleep 0.1
    done
    tail -n 20 "$dir/agent.log" >&2
    die 'the agent did not start'
}

make_image() {
    if "$docker" image inspect "$image" >/dev/null 2>&1; then
        echo 'it is there already'
        return
    fi
    [[ -x /bin/busybox ]] || die 'no /bin/busybox: run hack/deps.sh run'
    local fs
    fs=$(mktemp -d)
    mkdir -p "$fs"/{bin,etc,proc,sys,dev,tmp,root,www}
    cp /bin/busybox "$fs/bin/busybox"
    local applet
    for applet in $(/bin/busybox --list); do
        [[ $applet == busybox ]] || ln -s busybox "$fs/bin/$applet"
    done
    echo 'root:x:0:0:root:/root:/bin/sh' >"$fs/etc/passwd"
    echo 'root:x:0:' >"$fs/etc/group"
    echo 'It works: this page came over a Carrick network.' >"$fs/www/index.html"
    tar -C "$fs" -c . | "$docker" import --change 'CMD ["sh"]' - "$image" >/dev/null
    rm -rf "$fs"
    echo "made of this machine's busybox"
}

# container NAME COMMAND... runs a container on the network unless it runs.
container() {
    local name=$1
    shift
    if [[ $("$docker" inspect -f '{{.State.Running}}' "$name" 2>/dev/null) == true ]]; then
        echo "$name runs already"
        return
    fi
    "$docker" rm -f "$name" >/dev/null 2>&1 || true
    "$docker" run -d --name "$name" --network "$network" "$image" "$@" >/dev/null
    echo "$name runs"
}

address() { "$docker" inspect -f "{{(index .NetworkSettings.Networks \"$network\").IPAddress}}" "$1"; }

up() {
    mkdir -p "$dir"
    say 'What this machine lacks'
    "$root/hack/deps.sh" build run
    say 'Building bin/carrick'
    make -C "$root" --no-print-directory build
    say 'The Docker engine'
    "$root/hack/engine.sh" start "$dir"
    say 'The agent, with the embedded store'
    start_agent
    say "The image $image"
    make_image

    say "The network $network"
    local driver
    driver=$("$docker" network inspect -f '{{.Driver}}' "$network" 2>/dev/null) || driver=
    case $driver in
    carrick) echo 'it is there already' ;;
    '')
        "$docker" network inspect docker_gwbridge >/dev/null 2>&1 || touch "$dir/gwbridge.ours"
        "$docker" network create -d carrick --ipam-driver carrick "$network" >/dev/null
        "$docker" network inspect -f '{{range .IPAM.Config}}{{.Subnet}}{{end}}' "$network"
        ;;
    *) die "a network called $network exists already, of driver $driver: remove it first" ;;
    esac

    say 'Two containers'
    container carrick-demo-web httpd -f -h /www
    container carrick-demo-client sleep 2147483647
    printf '%s has %s, %s has %s\n' carrick-demo-web "$(address carrick-demo-web)" carrick-demo-client "$(address carrick-demo-client)"

    say 'From one to the other, by name'
    local page
    for _ in {1..100}; do
        page=$("$docker" exec carrick-demo-client timeout 2 wget -q -O - http://carrick-demo-web/ 2>/dev/null) && break
        sleep 0.1
    done
    [[ -n ${page-} ]] || {
        "$docker" exec carrick-demo-client ping -c 1 -W 1 "$(address carrick-demo-web)" >&2 || true
        tail -n 20 "$dir/agent.log" >&2
        die 'the containers do not reach each other'
    }
    echo "$page"

    cat <<TXT

What to try next:

  bin/carrick status                                        what the agent does
  bin/carrick network ls                                    the networks it knows
  docker exec -it carrick-demo-client sh                    look around inside
  docker run --rm --network $network $image wget -qO- http://carrick-demo-web/
  kill -9 \$(cat $dir/agent.pid); make up     the containers do not notice
  make lab                                                  three hosts with a real Consul
  make down                                                 undo all of this

A second host joins when both agents use one Consul:

  carrick agent --store consul://ADDRESS:8500/carrick
TXT
}

down() {
    if [[ ! -d $dir ]]; then
        echo 'nothing to undo'
        return
    fi
    if "$docker" version >/dev/null 2>&1; then
        "$docker" rm -f carrick-demo-web carrick-demo-client >/dev/null 2>&1 || true
        if [[ $("$docker" network inspect -f '{{.Driver}}' "$network" 2>/dev/null) == carrick ]]; then
            "$docker" network rm "$network" >/dev/null
        fi
        if [[ -e $dir/gwbridge.ours ]]; then
            # Others may use it by now; then it stays.
            "$docker" network rm docker_gwbridge >/dev/null 2>&1 || true
        fi
        "$docker" image rm "$image" >/dev/null 2>&1 || true
    fi
    stop_agent
    "$root/hack/engine.sh" stop "$dir"
    rm -rf "$dir"
    echo "the containers, the network $network, the image, the agent and $dir are gone; installed packages stay"
}

case ${1-up} in
up) up ;;
down) down ;;
*) die 'usage: hack/up.sh [down]' ;;
esac
