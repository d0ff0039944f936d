#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Gives scripts/build.sh builds that fail. Each time it must print the first error, and the file
# that it names must have the rest. The project is three lines, written here.
#   build_errors_test.sh ROOT
set -euo pipefail
root=$(realpath "${1:?}")
# shellcheck source=scripts/build.sh
. "$root/scripts/build.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat >CMakePresets.json <<'JSON'
{"version": 3,
 "configurePresets": [{"name": "p", "generator": "Ninja", "binaryDir": "${sourceDir}/build/p"}],
 "buildPresets": [{"name": "p", "configurePreset": "p"}]}
JSON
cat >CMakeLists.txt <<'CMAKE'
cmake_minimum_required(VERSION 3.25)
project(Sample LANGUAGES C)
add_executable(sample main.c)
CMAKE

fail() {
    printf 'build_errors_test: %s\n' "$1" >&2
    cat said >&2
    exit 1
}
says() { grep -q -- "$1" said || fail "it does not say '$1'"; }
log_says() { grep -q -- "$1" build/p/build.log || fail "its log does not say '$1'"; }
fails() {  # fails COMMAND...: a build that has to fail
    ! "$@" >said 2>&1 || fail "a broken build passes"
    says "^== All of its output: $work/build/p/build.log"
    [ "$(wc -l <said)" -le 70 ] || fail "it is longer than a screen"
}
# An error followed by more of them than anybody scrolls back.
break_it() {
    printf '#error the first one\n'
    printf '#error one of the others\n%.0s' $(seq 300)
    printf '#error the last one\n'
}

echo 'int main(void) { return 0; }' >main.c
build_preset p >said 2>&1 || fail "a good build fails"
[ "$(wc -l <said)" = 1 ] || fail "a good build prints more than one line"
log_says 'Linking C executable sample'

break_it >main.c
fails build_preset p
says 'main.c:1:.*the first one'
log_says 'the last one'

# On a terminal, after ninja's progress. script(1) is the terminal.
printf '. %q/scripts/build.sh && build_preset p\n' "$root" >on_terminal.sh
on_terminal() { script -qec "bash -o pipefail on_terminal.sh" /dev/null </dev/null; }
fails on_terminal
says 'main.c:1:.*the first one'
log_says 'the last one'

echo 'int missing(void); int main(void) { return missing(); }' >main.c
fails build_preset p
says "undefined reference to .missing"

echo 'find_package(NobodyHasThis REQUIRED)' >>CMakeLists.txt
fails build_preset p
says 'NobodyHasThis'
echo "the first error is shown of the compiler, on a terminal too, the linker and cmake"
