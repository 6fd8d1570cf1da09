#!/usr/bin/env bash
#
# Takes the store away from simulated hosts for ten minutes, lets them live at
# random for a while and counts drift, leaks and addresses held twice, and then
# plays new random histories for as long.
#
#   hack/soak.sh [TIME]     30m unless given; CARRICK_SEED=N repeats a run's choices

set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
[[ $EUID -eq 0 ]] || {
    echo 'soak: needs root' >&2
    exit 1
}
tools/install.sh consul dockerd runc >/dev/null
export CARRICK_SOAK=${1:-30m} CARRICK_OUTAGE=${CARRICK_OUTAGE:-10m}
failed=
go test -count=1 -timeout 0 -v -run '^TestStoreOutage$' ./integration/scenarios || failed=1
go test -count=1 -timeout 0 -v ./integration/soak || failed=1
go test -race -count=1 -timeout 0 -v ./internal/history || failed=1
[[ -z $failed ]]
