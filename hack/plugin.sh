#!/usr/bin/env bash
#
# Makes the managed plugin carrick/carrick:VERSION in the local engine from
# bin/carrick (or CARRICK_BIN) and plugin.json, without a registry. VERSION is the
# tree's.
#
#   hack/plugin.sh          make it (make plugin)
#   hack/plugin.sh DIR      only write what `docker plugin create` takes to DIR

set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
docker=${DOCKER:-docker}
version=${VERSION:-$(git describe --tags --always --dirty)}
name=carrick/carrick:$version

die() {
    printf 'plugin: %s\n' "$*" >&2
    exit 1
}

bin=${CARRICK_BIN:-bin/carrick}
[[ -x $bin ]] || die "$bin is missing: make build"

# layout DIR writes config.json and rootfs.
layout() {
    mkdir -p "$1/rootfs/etc"
    cp plugin.json "$1/config.json"
    cp "$bin" "$1/rootfs/carrick"
    # The state directory is bound to the machine-id. A mount of that file alone
    # would keep the plugin from being enabled on hosts without one.
    ln -s /host/etc/machine-id "$1/rootfs/etc/machine-id"
}

if [[ $# -gt 0 ]]; then
    layout "$1"
    exit
fi

enabled=$("$docker" plugin inspect -f '{{.Enabled}}' "$name" 2>/dev/null) || enabled=absent
case $enabled in
true) die "$name is enabled already: docker plugin disable -f $name (containers go on), then make plugin again" ;;
false)
    echo "removing the disabled $name; its state stays in /var/lib/carrick"
    "$docker" plugin rm "$name" >/dev/null
    ;;
esac

dir=$(mktemp -d)
trap 'rm -rf -- "$dir"' EXIT
layout "$dir"
"$docker" plugin create "$name" "$dir" >/dev/null
cat <<TXT
made $name; next:

  docker plugin set $name CARRICK_STORE=consul://ADDRESS:8500/carrick      (more than one host)
  docker plugin enable $name
  docker network create -d $name --ipam-driver $name --subnet 10.42.0.0/16 app

An engine knows a managed plugin by its name with the tag, here and in compose files.
TXT
