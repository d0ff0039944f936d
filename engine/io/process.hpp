// SPDX-License-Identifier: Apache-2.0
// What a process does once at its start to serve a disk: raise limits, lock its memory, tell the
// kernel that it is part of the write-out path. And what the kernel knows that a generation needs.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "engine/base/result.hpp"

namespace replica {

struct ProcessOptions {
    bool lock_memory = true;
    bool io_flusher = true;  // PR_SET_IO_FLUSHER: memory reclaim must not wait for our own writes
};

// Call it from the main thread before others are started: threads inherit what it sets. Raises the
// limits of descriptors and locked memory as far as allowed. Never fails: what could not be had
// comes back as sentences for the log, each saying what would make it work.
std::vector<std::string> prepare_process(const ProcessOptions& options);

// Anonymous memory that is there from the start, not at its first use; in large pages where the
// system has them, as a daemon that takes over from another has no time for thousands of small
// ones. nullptr: none, with errno. munmap() gives it back.
std::byte* map_touched(std::size_t bytes);

// The kernel's id of this boot: equal for every process until the machine restarts.
// Errors: io (no /proc).
Result<std::array<std::byte, 16>> read_boot_id();

// From getrandom(2), fit for generation ids. Blocks only before the kernel's pool is ready.
void fill_random(std::span<std::byte> bytes);
std::uint64_t random_u64();  // never 0

// By modprobe, whose business aliases, options and dependencies are. Whether it is there now is for
// the caller to see: there may be no modprobe, no right to, or no such module. Blocks.
void load_module(const std::string& name);

}  // namespace replica
