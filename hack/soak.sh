#!/usr/bin/env bash
#
# Churns simulated hosts for a while and counts drift and leaks, and then plays
# new random histories for as long.
#
#   hack/soak.sh [TIME]     30m unless given; CARRICK_SEED=N repeats a run's choices

set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
[[ $EUID -eq 0 ]] || {
    echo 'soak: needs root' >&2
    exit 1
}
tools/install.sh consul dockerd runc >/dev/null
export CARRICK_SOAK=${1:-30m}
go test -count=1 -timeout 0 -v ./integration/soak
go test -race -count=1 -timeout 0 -v ./internal/history
