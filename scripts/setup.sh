#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what Replica needs on Debian 12 or 13, and nothing when all of it is there already.
#   scripts/setup.sh [--list] [build] [demo] [test]     no group named: all of them
# Works as root or through sudo. Without either it says what to install and exits with 3.
set -euo pipefail

# Read through a name reference below.
# shellcheck disable=SC2034
{
build=(g++ cmake ninja-build ccache pkg-config liburing-dev libnl-3-dev libnl-genl-3-dev
    libnl-route-3-dev libdevmapper-dev libfmt-dev libspdlog-dev libcli11-dev nlohmann-json3-dev
    libssl-dev libblkid-dev catch2 libbenchmark-dev python3)
demo=(fio qemu-utils libnbd-bin e2fsprogs iproute2 jq procps util-linux)
# nbdinfo asks file(1) what a volume holds, and prints garbage where it is missing.
test=(drbd-utils file python3-libnbd clang clang-format mandoc valgrind libnbd-dev shellcheck)
}
# Taken where the archive has them, and done without elsewhere: what is not in every release, and
# what the guests of tests/vm need (their kernel is fetched by tests/vm/kernel.sh).
test_if_offered=(clang-format-14 qemu-system-x86 busybox-static kmod xz-utils zstd xfsprogs dmsetup
    udev systemd lvm2 thin-provisioning-tools)

say() { printf 'setup: %s\n' "$*" >&2; }

list_only=0
groups=()
for argument in "$@"; do
    case "$argument" in
        --list) list_only=1 ;;
        build | demo | test) groups+=("$argument") ;;
        *)
            say "unknown argument '$argument'"
            say "usage: scripts/setup.sh [--list] [build] [demo] [test]"
            exit 2
            ;;
    esac
done
[ ${#groups[@]} -gt 0 ] || groups=(build demo test)

wanted=()
for group in "${groups[@]}"; do
    declare -n packages=$group
    wanted+=("${packages[@]}")
done
if [ "$list_only" = 1 ]; then
    printf '%s\n' "${wanted[@]}"
    exit 0
fi

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    say "this is not Debian: nothing was installed. Replica needs the equivalents of:"
    say "  ${wanted[*]}"
    exit 0
fi

# One call for all packages; "ii" in the first column is installed and configured.
missing_of() {
    local have
    have=$(dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n' "$@" 2>/dev/null |
        awk '$1 == "ii" {print $2}') || true
    comm -23 <(printf '%s\n' "$@" | sort -u) <(sort -u <<<"$have")
}

mapfile -t missing < <(missing_of "${wanted[@]}")
look_for_optional() {
    optional=()
    [[ " ${groups[*]} " == *" test "* ]] || return 0
    local package
    for package in $(missing_of "${test_if_offered[@]}"); do
        if apt-cache show "$package" >/dev/null 2>&1; then optional+=("$package"); fi
    done
}
look_for_optional
[ $((${#missing[@]} + ${#optional[@]})) -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
        as_root=(sudo)
    elif [ ${#missing[@]} = 0 ]; then
        exit 0
    else
        say "these packages are missing and only root may install them:"
        say "  apt-get install ${missing[*]}"
        exit 3
    fi
fi

say "installing ${missing[*]} ${optional[*]}"
apt() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a \
        apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" >&2
}
apt update || say "apt-get update failed; trying with the lists that are there"
look_for_optional
for package in "${optional[@]}"; do
    apt install --no-install-recommends "$package" || say "without $package: some tests will skip"
done
[ ${#missing[@]} -gt 0 ] || exit 0
if ! apt install --no-install-recommends "${missing[@]}"; then
    say "apt-get could not install the packages above; see its message."
    exit 4
fi
