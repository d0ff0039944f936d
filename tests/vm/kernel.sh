#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Unpacks Debian's kernel for the guests (Linux 6.12 or later) without installing it, and prints the
# directory that holds boot/vmlinuz-* and lib/modules/.
#   tests/vm/kernel.sh DIRECTORY      where to unpack; what is there already is taken
# REPLICA_VM_KERNEL names another such directory ("/" for the kernels that are installed). Exits
# with 77, and says why, where there is no package to be had.
set -euo pipefail

target=${1:?usage: kernel.sh DIRECTORY}
missing() {
    printf 'vm: no kernel for the guest: %s\n' "$*" >&2
    exit 77
}
whole() { compgen -G "$1/boot/vmlinuz-*" >/dev/null && [ -d "$1/lib/modules" ]; }

if [ -n "${REPLICA_VM_KERNEL:-}" ]; then
    whole "$REPLICA_VM_KERNEL" || missing "REPLICA_VM_KERNEL=$REPLICA_VM_KERNEL holds none"
    echo "${REPLICA_VM_KERNEL%/}"
    exit
fi
mkdir -p "$target"
exec 9>"$target/lock"
flock 9
rm -rf "$target"/unpack.*  # of a run that was killed
if whole "$target/kernel"; then
    echo "$target/kernel"
    exit
fi
for tool in apt-get apt-cache dpkg-deb depmod; do
    command -v "$tool" >/dev/null || missing "$tool is not installed (scripts/setup.sh test)"
done

# Debian 12 has it beside its own 6.1, Debian 13 as its own. The meta package names the real one.
package=
for meta in linux-image-6.12-amd64 linux-image-amd64; do
    package=$(apt-cache depends --no-recommends --no-suggests "$meta" 2>/dev/null |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | sed -n 1p)
    version=${package#linux-image-}
    if [ -n "$package" ] && dpkg --compare-versions "${version%%-*}" ge 6.12; then break; fi
    package=
done
[ -n "$package" ] || missing "apt knows no linux-image of 6.12 or later (try apt-get update)"

work=$(mktemp -d "$target/unpack.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
download() {
    (cd "$work" && timeout 300 apt-get -q -o Acquire::Retries=5 -o Acquire::http::Timeout=30 \
        download "$package" >apt.log 2>&1)
}
download || { sleep 5 && download; } ||
    missing "$package can not be downloaded: $(tail -n 1 "$work/apt.log")"
mkdir "$work/kernel"
dpkg-deb -x "$work"/linux-image-*.deb "$work/kernel"
if [ ! -d "$work/kernel/lib/modules" ]; then  # Debian 13 ships them below usr
    mkdir -p "$work/kernel/lib"
    ln -s ../usr/lib/modules "$work/kernel/lib/modules"
fi
depmod -b "$work/kernel" "$version"
rm -rf "$target/kernel"
mv "$work/kernel" "$target/kernel"
echo "$target/kernel"
