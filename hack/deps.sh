#!/usr/bin/env bash
#
# Installs what building, testing and running Carrick needs on Debian 12, besides
# Go: only what is missing, and it says what that is.
#
#   hack/deps.sh [GROUP...]     GROUP is build, run or test; none means all
#   hack/deps.sh --check GROUP  install nothing; fail and say what is missing

set -euo pipefail

say() { printf 'deps: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

# What each group needs. The engine is in run; in test are what the lab's hosts
# and the tests on the kernel call, what boots a kernel of our own for tests
# (qemu, kmod, xz; busybox is in run), and compilers: the race detector and runc
# need one.
build=(make git ca-certificates)
run=(docker.io iptables iproute2 procps busybox-static)
tests=(gcc libc6-dev pkg-config libseccomp-dev nftables iperf3 sockperf ethtool tcpdump jq util-linux systemd shellcheck
    qemu-system-x86 kmod xz-utils)

check=
if [[ ${1-} == --check ]]; then
    check=1
    shift
fi
packages=()
for group in "${@:-all}"; do
    case $group in
    build) packages+=("${build[@]}") ;;
    run) packages+=("${run[@]}") ;;
    test) packages+=("${tests[@]}") ;;
    all) packages+=("${build[@]}" "${run[@]}" "${tests[@]}") ;;
    *) die "unknown group $group: want build, run or test" ;;
    esac
done

installed() { [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }

# An engine from elsewhere does as well as Debian's to run Carrick, and both at
# once would fight. The lab wants Debian's own version as one of its two.
have() {
    installed "$1" && return
    case $1 in
    docker.io) installed docker-ce ;;
    make | git) command -v "$1" >/dev/null ;;
    *) return 1 ;;
    esac
}

command -v go >/dev/null || die 'Go is missing: install the version go.mod asks for (https://go.dev/dl) and put it into PATH'
if ! command -v dpkg-query >/dev/null; then
    say "this is not Debian: nothing is installed; needed are: ${packages[*]}"
    exit 0
fi

missing=()
for p in "${packages[@]}"; do
    have "$p" || missing+=("$p")
done
if [[ ${#missing[@]} -eq 0 ]]; then
    say 'nothing is missing'
    exit 0
fi
[[ -z $check ]] || die "missing: ${missing[*]} (make deps)"
[[ $EUID -eq 0 ]] || die "missing: ${missing[*]}; run as root: hack/deps.sh $*"

say "installing ${missing[*]}"
apt=(apt-get -q -y -o DPkg::Lock::Timeout=300)
export DEBIAN_FRONTEND=noninteractive
# The lists may be as old as the image.
"${apt[@]}" install --no-install-recommends "${missing[@]}" >&2 || {
    say 'that failed; once more with fresh package lists'
    "${apt[@]}" update >&2
    "${apt[@]}" install --no-install-recommends "${missing[@]}" >&2
}
say "installed ${missing[*]}"
