#!/usr/bin/env bash
#
# Builds the programs that the tests and the lab need and that no package
# manager has in the version we want, each from a Go module of its own beside
# this script, so that its hundreds of dependencies stay out of ours; and, as vm, the
# directory of a virtual machine for tests, from Debian's kernel (tools/vm/build.sh), and,
# as qemu, a QEMU for it that has more devices than the machine's own (tools/qemu/build.sh).
#
#   tools/install.sh NAME...          build what is not there yet, print the paths
#   tools/install.sh --path NAME...   build nothing; fail if one is not there
#
# NAME is consul, golangci-lint, dockerd (which brings docker-proxy), runc, compose
# (docker-compose), vm or qemu.
# Paths go to stdout, one executable (of vm, the directory) a line; everything else to
# stderr. What was built is kept in ${CARRICK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/carrick}/bin
# under the hash of its go.mod, its go.sum and how it is built (of vm and qemu, its scripts).
# Parallel runs wait for each other.

set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

say() { printf 'tools/install.sh: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

usage() {
    say 'usage: tools/install.sh [--path] consul|golangci-lint|dockerd|runc|compose|vm|qemu...'
    exit 2
}

# describe sets what differs from tool to tool: the module's directory, the
# executables, and what the user is told before the first build.
describe() {
    case $1 in
    consul) module=consul exes=(consul) hint='1.22.5, about 10 minutes the first time' ;;
    golangci-lint) module=lint exes=(golangci-lint) hint='2.15.0, about 5 minutes the first time' ;;
    dockerd) module=dockerd exes=(dockerd docker-proxy) hint='v2.0.0-beta.24, about 5 minutes the first time' ;;
    runc) module=runc exes=(runc) hint='1.4.3, about 1 minute the first time' ;;
    compose) module=compose exes=(docker-compose) hint='2.39.4, about 8 minutes the first time' ;;
    vm) module=vm exes=() hint='from Debian packages, about 1 minute the first time' ;;
    qemu) module=qemu exes=(qemu-system-x86_64) hint='from Debian packages, about 1 minute the first time' ;;
    *) usage ;;
    esac
}

# gobuild DIR builds the described tool's executables into DIR.
gobuild() {
    local go=(go build -C "$here/$module")
    case $module in
    consul)
        "${go[@]}" -ldflags '-s -w' -o "$1/consul" github.com/hashicorp/consul
        ;;
    lint)
        "${go[@]}" -ldflags '-s -w' -o "$1/golangci-lint" github.com/golangci/golangci-lint/v2/cmd/golangci-lint
        ;;
    dockerd)
        local tags='netgo osusergo static_build exclude_graphdriver_btrfs exclude_disk_quota'
        local version
        version=$(go list -C "$here/$module" -m -f '{{.Version}}' github.com/moby/moby/v2)
        CGO_ENABLED=0 "${go[@]}" -tags "$tags" -ldflags "-X github.com/moby/moby/v2/dockerversion.Version=${version#v}" \
            -o "$1/dockerd" github.com/moby/moby/v2/cmd/dockerd
        CGO_ENABLED=0 "${go[@]}" -tags "$tags" -o "$1/docker-proxy" github.com/moby/moby/v2/cmd/docker-proxy
        ;;
    runc)
        pkg-config --exists libseccomp 2>/dev/null ||
            die 'runc needs libseccomp: apt-get install pkg-config libseccomp-dev'
        CGO_ENABLED=1 "${go[@]}" -tags seccomp -o "$1/runc" github.com/opencontainers/runc
        ;;
    compose)
        local version
        version=$(go list -C "$here/$module" -m -f '{{.Version}}' github.com/docker/compose/v2)
        "${go[@]}" -ldflags "-s -w -X github.com/docker/compose/v2/internal.Version=$version" \
            -o "$1/docker-compose" github.com/docker/compose/v2/cmd
        ;;
    esac
}

# recipe prints all that decides what the described tool is.
recipe() {
    case $module in
    vm | qemu) cat -- "$here/$module"/*.sh ;;
    *) cat -- "$here/$module/go.mod" "$here/$module/go.sum" && declare -f gobuild ;;
    esac
}

# install builds one tool unless it is there, and prints its executables, or its
# directory if that is what it is.
install() {
    local name=$1 module hint exes sum dir exe
    describe "$name"
    sum=$(recipe | sha256sum | cut -c1-12)
    dir=$bin/$name-$sum
    if [[ ! -d $dir ]]; then
        [[ -z $only_path ]] || die "$name is not built: run tools/install.sh $name"
        build "$name" "$dir"
    fi
    [[ ${#exes[@]} -gt 0 ]] || printf '%s\n' "$dir"
    for exe in "${exes[@]}"; do
        printf '%s\n' "$dir/$exe"
    done
}

# build makes the directory appear whole or not at all.
build() (
    name=$1 dir=$2
    [[ $module == vm || $module == qemu ]] || command -v go >/dev/null || die 'needs Go: https://go.dev/dl'
    mkdir -p -- "$bin"
    exec 9>"$bin/.lock-$name"
    if ! flock --nonblock 9; then
        say "waiting for another build of $name"
        flock 9
    fi
    [[ ! -d $dir ]] || exit 0
    say "building $name $hint"
    tmp=$(mktemp -d "$bin/.tmp-$name-XXXXXX")
    trap 'rm -rf -- "$tmp"' EXIT
    case $module in
    vm | qemu) "$here/$module/build.sh" "$tmp" >&2 ;;
    *)
        unset GOFLAGS
        GOWORK=off gobuild "$tmp" >&2
        ;;
    esac
    chmod 0755 "$tmp"
    mv -T -- "$tmp" "$dir"
    trap - EXIT
    say "built $name"
)

only_path=
if [[ ${1-} == --path ]]; then
    only_path=1
    shift
fi
[[ $# -gt 0 ]] || usage
for name in "$@"; do
    describe "$name"
done

cache=${CARRICK_CACHE:-${XDG_CACHE_HOME:-${HOME:?neither CARRICK_CACHE nor HOME is set}/.cache}/carrick}
bin=$cache/bin
for name in "$@"; do
    install "$name"
done
