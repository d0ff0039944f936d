#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs the build to a prefix of its own and looks whether everything is there that a user gets:
# programs, library, headers, pkg-config file, CMake package, manual pages, service, completion.
# That the installed package can be built against is tests/abi/installed.sh.
#   install_test.sh BUILD_DIR
set -euo pipefail
build=${1:?usage: install_test.sh BUILD_DIR}
here=$(cd "$(dirname "$0")" && pwd)

prefix=$(mktemp -d /var/tmp/replica-install.XXXXXX)
trap 'rm -rf "$prefix"' EXIT
cmake --install "$build" --prefix "$prefix" >/dev/null

# The library's directory differs between distributions (lib, lib64, lib/x86_64-linux-gnu), and
# versions and build types are not what this test is about.
export LC_ALL=C
listed=$(cd "$prefix" && find . \( -type f -o -type l \) -printf '%P\n' |
    sed -E 's#^lib(64)?/([a-z0-9_]+-linux-gnu[a-z0-9]*/)?(libreplica|pkgconfig|cmake)#LIB/\3#
            s#\.so(\.[0-9]+)+$#.so.VERSION#
            s#(ReplicaTargets)-[a-z]+\.#\1-BUILD.#' | sort -u)
if ! diff -u --label wanted "$here/installed_files.txt" --label installed - <<<"$listed"; then
    echo "the list differs; if that is wanted, mend tests/integration/installed_files.txt"
    exit 1
fi

for program in replicactl replicad replicameta; do
    "$prefix/sbin/$program" --help >/dev/null
done
units=$prefix/lib/systemd/system
grep -q "^ExecStart=$prefix/sbin/replicad " "$units/replicad.service"
grep -q "^ExecStart=$prefix/sbin/replicactl promote " "$units/replica@.service"
if command -v systemd-analyze >/dev/null; then
    # It also looks at units of the machine; only what it says about ours counts.
    cp "$units/replica@.service" "$units/replica@r0.service"
    complaints=$(systemd-analyze verify --man=no "$units/replicad.service" \
        "$units/replica@r0.service" 2>&1 | grep 'replicad\.service\|replica@' || true)
    [ -z "$complaints" ] || { echo "$complaints"; exit 1; }
else
    echo "systemd-analyze is not installed: the units were not checked"
fi
if udevadm verify --help >/dev/null 2>&1; then  # systemd 254 and later
    udevadm verify "$prefix/lib/udev/rules.d/65-replica.rules"
else
    echo "udevadm can not verify here: the rule was not checked"
fi
if command -v mandoc >/dev/null; then
    mandoc -T lint -W error "$prefix"/share/man/man?/*
else
    echo "mandoc is not installed: the manual pages were not checked"
fi
echo "installed as listed"
