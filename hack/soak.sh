#!/usr/bin/env bash
#
# Starts and stops containers on simulated hosts as fast as their engines can,
# 20,000 times, with a lossy way to the store and agents killed; takes the store
# away for ten minutes; resolves names while their containers come and go, and in
# the first act of new ones; lets the hosts live at random for a while; and then plays
# new random histories for as long. Drift, leaks and addresses held twice are
# counted.
#
#   hack/soak.sh [TIME]     30m unless given
#
# CARRICK_CHURN=N has that many starts, a quarter of them in routed and in macvlan networks and a
# hundredth, for it may take a virtual machine, in ipvlan ones; CARRICK_SEED=N repeats a run's choices.

set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
[[ $EUID -eq 0 ]] || {
    echo 'soak: needs root' >&2
    exit 1
}
tools/install.sh consul dockerd runc compose vm >/dev/null
export CARRICK_SOAK=${1:-30m} CARRICK_OUTAGE=${CARRICK_OUTAGE:-10m}
churn=${CARRICK_CHURN:-20000}
unset CARRICK_CHURN
failed=
CARRICK_CHURN=$churn go test -count=1 -timeout 0 -v -run '^TestChurn$' ./integration/soak || failed=1
for mode in routed macvlan; do
    CARRICK_CHURN=$((churn / 4)) CARRICK_CHURN_MODE=$mode go test -count=1 -timeout 0 -v -run '^TestChurn$' ./integration/soak || failed=1
done
CARRICK_CHURN=$(((churn + 99) / 100)) CARRICK_CHURN_MODE=ipvlan go test -count=1 -timeout 4h -v -run '^TestChurn$' ./integration/soak || failed=1
go test -count=1 -timeout 0 -v -run '^TestStoreOutage$' ./integration/scenarios || failed=1
go test -count=1 -timeout 0 -v -run '^(TestNamesUnderChurn|TestFirstActIsAName|TestCompose.*|TestGarbageForQuestions|TestFiftyNetworksAtOnce|TestAMacvlanContainerEndsUnseen|TestARoutedNetworkSurvives)$' ./integration/scenarios || failed=1
go test -count=1 -timeout 0 -v -skip '^TestChurn$' ./integration/soak || failed=1
go test -race -count=1 -timeout 0 -v ./internal/history || failed=1
[[ -z $failed ]]
