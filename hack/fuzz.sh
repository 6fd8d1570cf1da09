#!/usr/bin/env bash
#
# Runs every fuzz target of the module for a while, one after another.
#
#   hack/fuzz.sh [TIME]     20s unless given

set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

time=${1:-20s}
count=0
failed=()
while read -r pkg target; do
    count=$((count + 1))
    printf '\n=== %s %s, %s\n' "${pkg##*/}" "$target" "$time"
    go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$pkg" </dev/null || failed+=("$pkg $target")
done < <(
    # go test -list prints targets first and the package's line after them.
    go test -list '^Fuzz' ./... | awk '
        /^Fuzz/ { target[n++] = $1; next }
        $1 == "ok" { for (i = 0; i < n; i++) print $2, target[i] }
        { n = 0 }'
)
[[ $count -gt 0 ]] || {
    echo 'fuzz: no target found' >&2
    exit 1
}
printf '\n%d targets, %d failed\n' "$count" "${#failed[@]}"
[[ ${#failed[@]} -eq 0 ]] || {
    printf '  %s\n' "${failed[@]}"
    exit 1
}
