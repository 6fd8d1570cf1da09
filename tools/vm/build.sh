#!/usr/bin/env bash
#
# Makes of Debian's packages what a virtual machine for tests boots. Nothing is
# installed; tools/install.sh vm calls it and keeps the result.
#
#   tools/vm/build.sh DIR
#
#   DIR/vmlinux                  Debian's generic kernel, unpacked
#   DIR/initramfs                busybox, the modules to reach the host's files, init.sh, stage2.sh
#   DIR/lib/modules/VERSION      the modules below, unpacked, and what they depend on
#
# The kernel is the one that linux-image-amd64 depends on today. Once built it is
# kept until one of these scripts changes.

set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

say() { printf 'tools/vm/build.sh: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

# What the guest needs before it sees the host's files.
boot=(virtio_pci virtio_console 9pnet_virtio 9p overlay)

# The modules that tests may ask for, as patterns of paths below kernel/. All
# others are left out: to unpack them takes longer than everything else.
modules='(net/(?!wireless|mac80211|bluetooth|can|nfc|rds|tipc|sunrpc|ceph|atm|ax25|dccp|decnet|appletalk)'
modules+='|drivers/net/[^/]+\.ko|drivers/net/(ipvlan|vxlan|wireguard|bonding|team)/'
modules+='|drivers/net/ethernet/intel/igb(vf)?/|drivers/(virtio/|char/virtio_console\.ko)|fs/(9p|overlayfs)/|crypto/|arch/x86/crypto/)'

busybox=/bin/busybox
for program in apt-get apt-cache dpkg dpkg-deb; do
    command -v "$program" >/dev/null || die "needs $program: the kernel is Debian's"
done
for program in depmod modprobe:kmod xz:xz-utils perl:perl-base; do
    command -v "${program%:*}" >/dev/null || die "needs ${program%:*}: apt-get install ${program#*:} (make deps)"
done
[[ -x $busybox ]] || die "needs $busybox: apt-get install busybox-static (make deps)"

work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
out=$(realpath -- "${1:?where to}")

# download fetches the kernel's package into the working directory.
download() {
    local image
    image=$(apt-cache depends linux-image-amd64 | awk '$1 == "Depends:" { print $2; exit }')
    [[ -n $image ]] || return 1
    (cd -- "$work" && apt-get -q -o APT::Sandbox::User=root download "$image")
}
download || {
    say 'that failed; once more with fresh package lists'
    apt-get -q -o DPkg::Lock::Timeout=300 update
    download || die 'cannot download the kernel that linux-image-amd64 depends on'
}

dpkg-deb --extract "$work"/linux-image-*.deb "$work/image"
version=$(ls "$work/image/lib/modules")
say "Linux $version"

# number FILE OFFSET BYTES prints an unsigned little-endian number.
number() { od -An -v -t "u$3" -j "$2" -N "$3" --endian=little -- "$1" | tr -d ' '; }

# extract BZIMAGE prints the ELF file within. QEMU starts that without the
# kernel's own decompression, which is slow without hardware. The header says where
# it is (Documentation/arch/x86/boot.rst of the kernel: setup_sects,
# payload_offset, payload_length); its last four bytes are its length unpacked.
extract() {
    local start length magic
    start=$(((1 + $(number "$1" 0x1f1 1)) * 512 + $(number "$1" 0x248 4)))
    length=$(($(number "$1" 0x24c 4) - 4))
    dd if="$1" of="$work/payload" bs=1M iflag=skip_bytes,count_bytes skip="$start" count="$length" status=none
    magic=$(od -An -v -t x1 -N 4 -- "$work/payload" | tr -d ' ')
    case $magic in
    fd377a58) xz -dc -- "$work/payload" ;;
    1f8b*) gzip -dc <"$work/payload" ;;
    28b52ffd) zstd -dc -- "$work/payload" ;;
    *) die "$1 is packed with something other than xz, gzip and zstd: its first bytes are $magic" ;;
    esac
}
extract "$work/image/boot/vmlinuz-$version" >"$out/vmlinux"
[[ $(head -c 4 "$out/vmlinux") == $'\x7fELF' ]] || die 'what was extracted is no kernel'

# The modules wanted and, by depmod's list, what each needs.
depmod -b "$work/image" "$version"
from=$work/image/lib/modules/$version
to=$out/lib/modules/$version
mkdir -p -- "$to"
perl -ne 'next unless m{^kernel/'"$modules"'}; s/://; print "$_\n" for split' "$from/modules.dep" | sort -u >"$work/wanted"
while read -r file; do
    mkdir -p -- "$to/${file%/*}"
    case $file in
    *.xz) xz -dc -- "$from/$file" >"$to/${file%.xz}" ;;
    *) cp -- "$from/$file" "$to/$file" ;;
    esac
done <"$work/wanted"
cp -- "$from"/modules.{order,builtin,builtin.modinfo} "$to/"
depmod -b "$out" "$version"
say "$(wc -l <"$work/wanted") modules"

root=$work/root
mkdir -p -- "$root"/{bin,modules,proc,sys,dev,host,upper,new}
cp -- "$busybox" "$root/bin/busybox"
cp -- "$here/init.sh" "$root/init"
cp -- "$here/stage2.sh" "$root/stage2"
chmod 0755 "$root/init"
# In the order in which they can be inserted; what is built in is not among them.
modprobe -d "$out" -S "$version" --show-depends -a "${boot[@]}" |
    awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$work/boot"
[[ -s $work/boot ]] || die "no module to reach the host's files"
while read -r file; do
    cp -- "$file" "$root/modules/"
    basename -- "$file" >>"$root/modules/order"
done <"$work/boot"
(cd -- "$root" && find . | "$busybox" cpio -o -H newc 2>/dev/null) >"$out/initramfs"
