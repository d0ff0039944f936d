# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced, with pipefail set, by the scripts that build: test.sh, demo.sh and bench.sh here, and
# tests/abi/installed.sh. If a build fails, they show its first errors, which cause those after
# them, and name the file that has all of the output.

# build_preset PRESET [TARGET...]: configures a preset of CMakePresets.json here, then builds it.
# build/PRESET/build.log has the output of the last step that ran. Prints the build's last line, or
# why it failed.
build_preset() {
    local preset=$1 log=build/$1/build.log
    shift
    local make=(cmake --build --preset "$preset")
    [ $# = 0 ] || make+=(--target "$@")
    mkdir -p "build/$preset"
    build_logged "$log" cmake --preset "$preset" || return
    if [ -t 1 ]; then
        build_on_terminal "$log" "${make[@]}" -- -j "$(nproc)" || return
    else
        build_logged "$log" "${make[@]}" -- -j "$(nproc)" || return
        tail -n 1 "$log"
    fi
}

# build_logged LOG COMMAND...: writes the command's output to LOG, and the first errors to the
# standard error if it fails.
build_logged() {
    local log=$1 code=0
    shift
    "$@" >"$log" 2>&1 || code=$?
    [ "$code" = 0 ] || first_errors "$log" "$@" >&2
    return "$code"
}

# As build_logged, and shows ninja's progress on one line.
build_on_terminal() {
    local log=$1 code=0 line width
    shift
    width=$(tput cols 2>/dev/null) || width=80
    "$@" 2>&1 | tee "$log" | while IFS= read -r line; do
        [[ "$line" != "["*/*"]"* ]] || printf '\r\033[K%s' "${line:0:width-1}"
    done || code=$?
    printf '\n'
    [ "$code" = 0 ] || first_errors "$log" "$@" >&2
    return "$code"
}

# first_errors LOG COMMAND...: prints the first errors of the compiler, the linker, ninja or cmake.
# It cuts long lines, and prints at most a screenful.
first_errors() {
    local log=$1 pattern shown
    shift
    pattern='(^|[ :])(fatal |internal compiler )?error: |^FAILED: |^CMake Error|undefined reference'
    pattern+='|multiple definition of|cannot find -l|^make.*\*\*\* |^ninja: build stopped'
    shown=$(grep -v '^\[[0-9]*/[0-9]*\] ' "$log" | grep -E -m 8 -B 3 -A 5 "$pattern" |
        cut -c 1-300 | head -n 60) || true
    [ -n "$shown" ] || shown=$(tail -n 40 "$log")
    printf '\n== Failed: %s\n== Its first errors:\n%s\n== All of its output: %s\n' \
        "$*" "$shown" "$(realpath "$log")"
}
