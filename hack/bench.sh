#!/usr/bin/env bash
#
# Runs the benchmarks: hosts on three real Consul servers, a kernel with large
# networks, containers on real engines; printed as the tables that
# docs/performance.md has (package bench), then what single functions take.
#
#   hack/bench.sh           all; about fifteen minutes, as root
#   hack/bench.sh NAME      the tables whose benchmark's name matches: Allocate,
#                           Together, Bytes, Watchers, Reach, Scale, Paths, Names,
#                           Run

set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

if [[ $EUID -eq 0 ]]; then
    hack/deps.sh --check test
    tools/install.sh consul dockerd runc >/dev/null
else
    echo 'bench: without root there are no simulated hosts: what needs kernels and engines is left out' >&2
    tools/install.sh consul >/dev/null
fi

printf '%s, %s cores, load %s, %s\n' "$(git describe --tags --always --dirty)" "$(nproc)" "$(cut -d' ' -f1-3 /proc/loadavg)" "$(go version | cut -d' ' -f3-)"

# The framework's own lines say nothing beside the tables, but for what failed.
tables() {
    go test -run '^$' -bench "$1" -benchtime 1x -timeout 30m ./bench |
        awk '/^(goos|goarch|pkg|cpu):|^PASS|^ok |^Benchmark[A-Za-z]+(-[0-9]+)?[ \t]+[0-9]+[ \t]*$/ { next } { print; fflush() }'
}

if [[ $# -gt 0 ]]; then
    tables "$1"
    exit
fi
tables .
printf '\nSingle functions\n\n'
# shellcheck disable=SC2046 # directories without spaces
go test -run '^$' -bench . -benchmem -benchtime 200ms \
    $(git grep -l '^func Benchmark' -- '*_test.go' ':!bench' | xargs -n1 dirname | sort -u | sed 's#^#./#') |
    grep -E '^(Benchmark|---|FAIL|panic)'
