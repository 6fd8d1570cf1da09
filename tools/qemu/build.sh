#!/usr/bin/env bash
#
# Unpacks a QEMU that has network cards with virtual functions (igb, from 8.0 on), for
# machines whose own is older. Nothing is installed; tools/install.sh qemu calls it and
# keeps the result.
#
#   tools/qemu/build.sh DIR
#
#   DIR/qemu-system-x86_64       starts it with its own libraries' and firmware's paths
#   DIR/usr                      Debian's packages, of this release's backports
#
# The package lists are read into a directory that goes away: what apt-get knows of this
# machine stays as it is. Libraries that it needs and that are neither there nor among
# those of qemu-system-x86 are an error that names them.

set -euo pipefail

say() { printf 'tools/qemu/build.sh: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

# The program, and the firmware that it loads at its start.
packages=(qemu-system-x86 qemu-system-common qemu-system-data seabios)

for program in apt-get dpkg dpkg-deb ldd; do
    command -v "$program" >/dev/null || die "needs $program: QEMU is Debian's"
done
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
out=$(realpath -- "${1:?where to}")

# The mirror that this machine has the release itself from has its backports as well.
# shellcheck source=/dev/null
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
# shellcheck disable=SC2016 # apt-get's own words
mirror=$(apt-get indextargets --format '$(CREATED_BY) $(CODENAME) $(COMPONENT) $(REPO_URI)' |
    awk -v of="$release" '$1 == "Packages" && $2 == of && $3 == "main" { print $4; exit }')
[[ -n $mirror ]] || die "apt-get knows no mirror of $release"
cat >"$work/backports.sources" <<SOURCE
Types: deb
URIs: $mirror
Suites: $release $release-backports
Components: main
SOURCE
# What is installed is not asked for: -t prefers the backports, else the release.
mkdir -p -- "$work"/{lists,cache,parts}/partial
apt=(apt-get -q -o APT::Sandbox::User=root -o APT::Default-Release="$release-backports"
    -o Dir::Etc::sourcelist="$work/backports.sources" -o Dir::Etc::sourceparts="$work/parts"
    -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache"
    -o Acquire::Languages=none)
"${apt[@]}" update
(cd -- "$work" && "${apt[@]}" download "${packages[@]}")
for deb in "$work"/*.deb; do
    say "$(dpkg-deb --show "$deb" | xargs)"
    dpkg-deb --extract "$deb" "$out"
done

program=$out/usr/bin/qemu-system-x86_64
missing=$(ldd "$program" | awk '/not found/ { print $1 }' | xargs)
[[ -z $missing ]] || die "this machine lacks libraries: $missing: apt-get install qemu-system-x86 (make deps)"
cat >"$out/qemu-system-x86_64" <<'WRAPPER'
#!/bin/sh
# QEMU looks for modules and firmware where it would have been installed.
here=$(dirname -- "$(readlink -f -- "$0")")
QEMU_MODULE_DIR=$here/usr/lib/x86_64-linux-gnu/qemu exec "$here/usr/bin/qemu-system-x86_64" \
    -L "$here/usr/share/qemu" -L "$here/usr/share/seabios" "$@"
WRAPPER
chmod 0755 "$out/qemu-system-x86_64"
"$out/qemu-system-x86_64" -device igb,help >/dev/null || die "$("$out/qemu-system-x86_64" --version | head -n 1) has no igb"
rm -rf -- "$out/usr/share/doc" "$out/usr/share/man"
