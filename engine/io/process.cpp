// SPDX-License-Identifier: Apache-2.0
// Locking memory has a trap: MCL_FUTURE under a small RLIMIT_MEMLOCK succeeds, and then any later
// allocation fails. So it is only used where the limit can not be reached.
#include "engine/io/process.hpp"

#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>

#include "engine/base/assert.hpp"
#include "engine/base/text.hpp"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

namespace replica {

namespace {

// Raises the soft limit to the hard one, and both to `wanted` if we may.
void raise_limit(__rlimit_resource resource, rlim_t wanted) {
    rlimit limit{};
    if (getrlimit(resource, &limit) != 0) return;
    if (limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < wanted) {
        const rlimit both{wanted, limit.rlim_max == RLIM_INFINITY || limit.rlim_max > wanted
                                      ? limit.rlim_max
                                      : wanted};
        if (setrlimit(resource, &both) == 0) return;
        const rlimit soft{limit.rlim_max, limit.rlim_max};
        setrlimit(resource, &soft);
    }
}

bool has_capability(unsigned capability) {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct data[2]{};
    if (syscall(SYS_capget, &header, data) != 0) return false;
    return ((data[capability / 32].effective >> (capability % 32)) & 1U) != 0;
}

bool may_lock_all() {
    rlimit limit{};
    if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur == RLIM_INFINITY) return true;
    return has_capability(CAP_IPC_LOCK);
}

struct Share {  // of memory that several threads touch
    std::byte* begin = nullptr;
    std::size_t bytes = 0;
    int error = 0;
    pthread_t thread{};
    bool started = false;
};

void* touch(void* context) {
    auto& share = *static_cast<Share*>(context);
    if (::madvise(share.begin, share.bytes, MADV_POPULATE_WRITE) == 0) return nullptr;
    if (errno != EINVAL) {
        share.error = errno;
        return nullptr;
    }
    for (std::size_t at = 0; at < share.bytes; at += 4096)  // not known before Linux 5.14
        static_cast<volatile std::byte*>(share.begin)[at] = std::byte{0};
    return nullptr;
}

// 0 or errno. The kernel zeroes each page, and that takes one processor long enough to be felt
// while an upgrade makes I/O wait: some of them share it.
int touch_all(std::byte* begin, std::size_t bytes) {
    static constexpr std::size_t share_bytes = std::size_t{8} << 20;
    std::array<Share, 4> shares;
    const auto processors = static_cast<std::size_t>(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN)));
    const std::size_t count =
        std::clamp(bytes / share_bytes, std::size_t{1}, std::min(processors, shares.size()));
    const std::size_t each = bytes / count >> 21U << 21U;  // large pages stay whole
    for (std::size_t i = 0; i < count; ++i) {
        Share& share = shares[i];
        share.begin = begin + i * each;
        share.bytes = i + 1 < count ? each : bytes - i * each;
        if (i > 0) share.started = pthread_create(&share.thread, nullptr, touch, &share) == 0;
    }
    for (Share& share : shares) {
        if (!share.started && share.bytes > 0) touch(&share);
    }
    int error = 0;
    for (Share& share : shares) {
        if (share.started) pthread_join(share.thread, nullptr);
        if (share.error != 0) error = share.error;
    }
    return error;
}

}  // namespace

std::vector<std::string> prepare_process(const ProcessOptions& options) {
    static constexpr rlim_t descriptors = 65'536;
    std::vector<std::string> warnings;
    raise_limit(RLIMIT_NOFILE, descriptors);
    raise_limit(RLIMIT_MEMLOCK, RLIM_INFINITY);
    if (options.lock_memory) {
        static constexpr const char* remedy =
            "under memory pressure the daemon may wait for its own disk: give it CAP_IPC_LOCK or "
            "LimitMEMLOCK=infinity (ulimit -l unlimited)";
        // ONFAULT: what is not touched costs nothing (thread stacks, reserved heaps).
        if (!may_lock_all()) {
            warnings.push_back(text_of("memory is not locked; %s", remedy));
        } else if (mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0) {
            warnings.push_back(
                text_of("memory is not locked (%s); %s", std::strerror(errno), remedy));
        }
    }
    if (options.io_flusher && prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0) {
        warnings.push_back(
            text_of("the kernel does not know that we serve a disk (PR_SET_IO_FLUSHER: "
                    "%s); under memory pressure it may make us wait for ourselves: give "
                    "the daemon CAP_SYS_RESOURCE",
                    std::strerror(errno)));
    }
    return warnings;
}

std::byte* map_touched(std::size_t bytes) {
    void* const memory =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    static_cast<void>(::madvise(memory, bytes, MADV_HUGEPAGE));
    auto* const begin = static_cast<std::byte*>(memory);
    const int error = touch_all(begin, bytes);
    if (error == 0) return begin;
    ::munmap(memory, bytes);
    errno = error;
    return nullptr;
}

Result<std::array<std::byte, 16>> read_boot_id() {
    static constexpr const char* path = "/proc/sys/kernel/random/boot_id";
    const Error failure{Errc::io, EIO, text_of("%s can not be read: mount /proc", path)};
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return failure;
    char text[64];
    const auto length = read(fd, text, sizeof text);
    close(fd);
    std::array<std::byte, 16> id{};
    std::size_t digits = 0;
    for (long i = 0; i < length && digits < 2 * id.size(); ++i) {
        const char c = text[i];
        unsigned value = 0;
        if (c >= '0' && c <= '9') {
            value = static_cast<unsigned>(c - '0');
        } else if (c >= 'a' && c <= 'f') {
            value = static_cast<unsigned>(c - 'a') + 10;
        } else {
            continue;  // a dash
        }
        id[digits / 2] =
            static_cast<std::byte>((std::to_integer<unsigned>(id[digits / 2]) << 4) | value);
        digits += 1;
    }
    if (digits != 2 * id.size()) return failure;
    return id;
}

void fill_random(std::span<std::byte> bytes) {
    while (!bytes.empty()) {
        const auto got = getrandom(bytes.data(), bytes.size(), 0);
        ASSERT(got > 0 || errno == EINTR);  // cannot fail otherwise since Linux 3.17
        if (got > 0) bytes = bytes.subspan(static_cast<std::size_t>(got));
    }
}

std::uint64_t random_u64() {
    std::uint64_t value = 0;
    while (value == 0)
        fill_random(std::as_writable_bytes(std::span(&value, 1)));
    return value;
}

void load_module(const std::string& name) {
    char program[] = "modprobe", quiet[] = "-q";
    char path[] = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
    std::string module = name;
    char* const arguments[] = {program, quiet, module.data(), nullptr};
    char* const environment[] = {path, nullptr};
    for (const char* file : {"/sbin/modprobe", "/usr/sbin/modprobe"}) {
        pid_t child = 0;
        if (::posix_spawn(&child, file, nullptr, nullptr, arguments, environment) != 0) continue;
        int status = 0;
        while (::waitpid(child, &status, 0) < 0 && errno == EINTR)
            continue;
        return;
    }
}

}  // namespace replica
