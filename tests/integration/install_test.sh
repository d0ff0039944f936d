#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs the build to a prefix of its own and looks whether everything is there that a user gets:
# programs, library, headers, pkg-config file, CMake package, manual pages, service, completion.
#   install_test.sh BUILD_DIR
set -euo pipefail
build=${1:?usage: install_test.sh BUILD_DIR}
here=$(cd "$(dirname "$0")" && pwd)

prefix=$(mktemp -d /var/tmp/replica-install.XXXXXX)
trap 'rm -rf "$prefix"' EXIT
cmake --install "$build" --prefix "$prefix" >/dev/null

# The library's directory differs between distributions (lib, lib64, lib/x86_64-linux-gnu), and a
# page may be compressed by whoever packages; versions are not what this test is about.
listed=$(cd "$prefix" && find . \( -type f -o -type l \) -printf "%P\n" |
    sed -E 's#^lib(64)?/([a-z0-9_]+-linux-gnu[a-z0-9]*/)?(lib|pkgconfig|cmake)#LIB/\3#
            s#\.so(\.[0-9]+)+$#.so.VERSION#' | sort -u)
if ! diff -u --label wanted "$here/installed_files.txt" --label installed - <<<"$listed"; then
    echo "the list differs; if that is wanted, mend tests/integration/installed_files.txt"
    exit 1
fi

for program in bin/replicactl sbin/replicad bin/replicameta; do
    [ ! -e "$prefix/$program" ] || "$prefix/$program" --help >/dev/null
done
if command -v mandoc >/dev/null; then
    find "$prefix" -path '*/man/*' -type f -print0 | xargs -0 mandoc -T lint -W error
else
    echo "mandoc is not installed: the manual pages were not checked"
fi
if command -v systemd-analyze >/dev/null; then
    sed -i "s#^ExecStart=[^ ]*#ExecStart=$prefix/sbin/replicad#" \
        "$prefix/lib/systemd/system/replicad.service"
    systemd-analyze verify "$prefix/lib/systemd/system/replicad.service" 2>&1 | grep -i replicad &&
        exit 1
fi
echo "installed as listed"
