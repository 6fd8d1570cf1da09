#!/usr/bin/env bash
#
# Runs tiers of tests and says at the end what ran, what was skipped and why.
#
#   hack/test.sh [TIER...]
#
# Tiers, in the order of a full run (make test):
#   lint         golangci-lint, gofmt and shellcheck
#   unit         what needs neither root nor other programs
#   history      random histories of simulated hosts, 100,000 operations
#   kernel       packages that test on the real kernel: root
#   vm           packages that test on Debian's kernel in a virtual machine where the
#                machine's own lacks something: root
#   integration  real engines, a real Consul and simulated hosts: root
#
# And two that a full run leaves out, the first because it wants a QEMU of its own and is
# about network cards that few hosts have, the second for its time:
#   sriov        virtual functions of an emulated card, in a virtual machine: root
#   ipvlan       three hosts with real engines and ipvlan networks, in a virtual machine where
#                the kernel has no ipvlan, which takes minutes: root
#
# All but vm, sriov, ipvlan and integration run with the race detector; RACE= in the environment leaves it
# out, which is faster from cold.
#
# A tier that cannot run here is skipped as a whole, with the reason; within a
# tier that runs as root a test that needs root fails rather than skips. Every
# tier runs even if one before it failed; the exit code says whether all passed.

set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

say() { printf '\n=== %s\n' "$*"; }
die() {
    printf 'test: %s\n' "$*" >&2
    exit 2
}

work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
results=$work/results
race=${RACE--race}
go build -o "$work/testreport" ./hack/testreport

# importing PACKAGE prints the packages whose tests import it.
importing() {
    # shellcheck disable=SC2016 # a Go template
    go list -f '{{$p := .ImportPath}}{{range .TestImports}}{{$p}} {{.}}
{{end}}{{range .XTestImports}}{{$p}} {{.}}
{{end}}' ./... | awk -v want="$1" '$2 == want { print $1 }' | sort -u
}

module=$(go list -m)
# The tiers are worked out, not listed: a package's tests may need a virtual
# machine if they use vmtest, but for those with a lab; else they are on the kernel if they make namespaces
# with nstest, and need servers if they start Consul with consultest or are below
# integration.
sriov=$module/integration/sriov
labs=$(importing "$module/integration/lab")
vm=$(importing "$module/internal/vmtest" | grep -vxF -e "$sriov" -e "$labs")
kernel=$(importing "$module/internal/nstest" | grep -vxF -e "$vm" -e "$sriov")
servers=$({
    importing "$module/internal/consultest"
    echo "$module/internal/consultest"
    go list ./integration/...
} | grep -vxF -e "$vm" -e "$sriov")
history=$module/internal/history
unit=$(go list ./... | grep -vxF -e "$kernel" -e "$vm" -e "$servers" -e "$history" -e "$sriov")

# gotest TIER ARGUMENTS... runs go test and keeps the results.
gotest() {
    local tier=$1
    shift
    go test -json "$@" 2>&1 | "$work/testreport" run "$tier" "$results"
}

lint() {
    local linter unformatted ok=pass
    if ! linter=$(tools/install.sh golangci-lint); then
        "$work/testreport" fail lint "$results"
        return 1
    fi
    "$linter" run ./... || ok=fail
    unformatted=$(git ls-files '*.go' | xargs gofmt -l)
    if [[ -n $unformatted ]]; then
        printf 'not formatted with gofmt:\n%s\n' "$unformatted"
        ok=fail
    fi
    if command -v shellcheck >/dev/null; then
        # shellcheck disable=SC2046 # names without spaces
        shellcheck $(git ls-files '*.sh' .ci/run) || ok=fail
    else
        printf 'shellcheck is missing: make deps\n'
        ok=fail
    fi
    "$work/testreport" $ok lint "$results"
    [[ $ok == pass ]]
}

# shellcheck disable=SC2086 # lists of packages
tier() {
    case $1 in
    lint) lint ;;
    unit) gotest unit $race $unit ;;
    history) gotest history $race -timeout 40m "$history" ;;
    kernel | vm | sriov | ipvlan | integration)
        if [[ $EUID -ne 0 ]]; then
            echo 'skipped: it needs root'
            "$work/testreport" skip "$1" 'it needs root' "$results"
            return 0
        fi
        export CARRICK_REQUIRE_ROOT=1
        if [[ $1 == kernel ]]; then
            gotest kernel $race -timeout 20m $kernel
        elif [[ $1 == vm ]]; then
            if ! tools/install.sh vm; then
                "$work/testreport" fail vm "$results"
                return 1
            fi
            # One package at a time: a guest has as many CPUs as a small machine. Without
            # the race detector: it costs most where every instruction is emulated.
            gotest vm -p 1 -timeout 15m $vm
        elif [[ $1 == sriov ]]; then
            if ! tools/install.sh vm qemu dockerd runc; then
                "$work/testreport" fail sriov "$results"
                return 1
            fi
            gotest sriov -timeout 20m $sriov
        elif [[ $1 == ipvlan ]]; then
            if ! tools/install.sh vm consul dockerd runc; then
                "$work/testreport" fail ipvlan "$results"
                return 1
            fi
            CARRICK_IPVLAN=1 gotest ipvlan -timeout 40m -run '^TestIPVLAN$' ./integration/scenarios
        else
            if ! tools/install.sh consul dockerd runc compose; then
                "$work/testreport" fail integration "$results"
                return 1
            fi
            # Two packages at a time: each runs engines for several hosts, and most
            # of the time they wait.
            gotest integration -p 2 -timeout 80m $servers
        fi
        ;;
    *) die "unknown tier $1: want lint, unit, history, kernel, vm, sriov, ipvlan or integration" ;;
    esac
}

[[ $# -gt 0 ]] || set -- lint unit history kernel vm integration
failed=
for name in "$@"; do
    say "$name"
    began=$SECONDS
    tier "$name" || failed=1
    echo "($((SECONDS - began)) s)"
done
"$work/testreport" summary "$results" || failed=1
[[ -z $failed ]]
