// SPDX-License-Identifier: Apache-2.0
// See write_recorder.hpp.
#include "tests/integration/write_recorder.hpp"

#include <fcntl.h>
#include <sys/types.h>
#include <unistd.h>

#include <cstring>

#include "engine/base/units.hpp"

namespace replica::test {

std::vector<Step> record;
bool recording = false;

static void record_write(std::uint64_t offset, const std::byte* bytes, std::size_t length) {
    REQUIRE(offset % sector_bytes == 0);
    REQUIRE(length % sector_bytes == 0);
    for (std::size_t at = 0; at < length; at += sector_bytes) {
        Step step{false, offset + at, std::vector<std::byte>(sector_bytes)};
        if (bytes != nullptr) std::memcpy(step.bytes.data(), bytes + at, sector_bytes);
        record.push_back(std::move(step));
    }
}

}  // namespace replica::test

using namespace replica::test;

extern "C" {
ssize_t __real_pwrite(int fd, const void* bytes, size_t length, off_t offset);
int __real_fallocate(int fd, int mode, off_t offset, off_t length);
int __real_fdatasync(int fd);

ssize_t __wrap_pwrite(int fd, const void* bytes, size_t length, off_t offset);
int __wrap_fallocate(int fd, int mode, off_t offset, off_t length);
int __wrap_fdatasync(int fd);

ssize_t __wrap_pwrite(int fd, const void* bytes, size_t length, off_t offset) {
    const ssize_t n = __real_pwrite(fd, bytes, length, offset);
    if (recording && n > 0) {
        record_write(static_cast<std::uint64_t>(offset), static_cast<const std::byte*>(bytes),
                     static_cast<std::size_t>(n));
    }
    return n;
}

int __wrap_fallocate(int fd, int mode, off_t offset, off_t length) {
    const int result = __real_fallocate(fd, mode, offset, length);
    if (recording && result == 0) {
        record_write(static_cast<std::uint64_t>(offset), nullptr, static_cast<std::size_t>(length));
    }
    return result;
}

int __wrap_fdatasync(int fd) {
    if (recording) record.push_back({true, 0, {}});
    return __real_fdatasync(fd);
}
}
