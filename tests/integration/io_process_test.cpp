// SPDX-License-Identifier: Apache-2.0
// Process set-up and buffer pools. Limits and capabilities are tried in a child process.
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <vector>

#include "engine/io/buffer_pool.hpp"
#include "engine/io/process.hpp"
#include "tests/catch.hpp"
#include "tests/integration/io_support.hpp"

using namespace replica;
using namespace replica::test;

namespace {

// Runs `body` in a child; its return value is the exit code.
int in_child(const std::function<int()>& body) {
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) _exit(body());
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// The address sanitizer turns mlockall() into nothing.
#ifdef __SANITIZE_ADDRESS__
constexpr bool sanitized = true;
#else
constexpr bool sanitized = false;
#endif

bool has_capability(unsigned capability) {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct data[2]{};
    if (syscall(SYS_capget, &header, data) != 0) return false;
    return ((data[capability / 32].effective >> (capability % 32)) & 1U) != 0;
}

void drop_capabilities() {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct none[2]{};
    syscall(SYS_capset, &header, none);
}

// From here on io_uring_setup fails with `error` in this process, as in a container.
bool forbid_io_uring(int error) {
    sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<unsigned>(error)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    const sock_fprog program{static_cast<unsigned short>(std::size(filter)), filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

}  // namespace

TEST_CASE("where io_uring is missing or forbidden the reactor says what to change") {
    const std::pair<int, const char*> cases[] = {{EPERM, "kernel.io_uring_disabled=0"},
                                                 {ENOSYS, "CONFIG_IO_URING"},
                                                 {EINVAL, "5.19"},
                                                 {ENOMEM, "ulimit -l"}};
    for (const auto& [error, remedy] : cases) {
        INFO(remedy);
        CHECK(in_child([error = error, remedy = remedy] {
                  if (!forbid_io_uring(error)) return 1;
                  const auto reactor = Reactor::create({});
                  if (reactor) return 2;
                  if (reactor.error().os_errno != error) return 3;
                  return reactor.error().message.find(remedy) != std::string::npos ? 0 : 4;
              }) == 0);
    }
}

TEST_CASE("the boot id is the kernel's") {
    std::ifstream file("/proc/sys/kernel/random/boot_id");
    std::string text;
    file >> text;
    std::erase(text, '-');
    const auto id = read_boot_id();
    REQUIRE(id);
    std::string hex;
    for (const std::byte byte : id.value()) {
        char digits[3];
        std::snprintf(digits, sizeof digits, "%02x", std::to_integer<unsigned>(byte));
        hex += digits;
    }
    CHECK(hex == text);
}

TEST_CASE("random numbers differ and are never zero") {
    std::set<std::uint64_t> seen;
    for (int i = 0; i < 1000; ++i)
        seen.insert(random_u64());
    CHECK(seen.size() == 1000);
    CHECK(seen.count(0) == 0);
    std::array<std::byte, 1000> bytes{};
    fill_random(bytes);
    CHECK(std::count(bytes.begin(), bytes.end(), std::byte{0}) < 50);
}

TEST_CASE("a process without rights is told what it lacks, and can still allocate") {
    CHECK(in_child([] {
              const rlimit small{1U << 20, 1U << 20};
              if (setrlimit(RLIMIT_MEMLOCK, &small) != 0) return 1;
              const rlimit few{64, 256};
              if (setrlimit(RLIMIT_NOFILE, &few) != 0) return 2;
              drop_capabilities();
              const auto warnings = prepare_process({});
              if (warnings.size() != 2) return 3;
              if (warnings[0].find("CAP_IPC_LOCK") == std::string::npos) return 4;
              if (warnings[1].find("CAP_SYS_RESOURCE") == std::string::npos) return 5;
              rlimit now{};
              getrlimit(RLIMIT_NOFILE, &now);
              if (now.rlim_cur != 256) return 6;
              std::vector<char> large(64U << 20, 'x');  // MCL_FUTURE would have made this fail
              return large[1] == 'x' ? 0 : 7;
          }) == 0);
}

TEST_CASE("a process with rights locks its memory, raises its limits, is a flusher of IO") {
    if (!has_capability(CAP_IPC_LOCK)) {
        WARN("SKIPPED, needs CAP_IPC_LOCK: locking memory");
        return;
    }
    // Containers often keep this one from root.
    const bool resource = has_capability(CAP_SYS_RESOURCE);
    if (!resource) WARN("SKIPPED, needs CAP_SYS_RESOURCE: raising limits, PR_SET_IO_FLUSHER");
    CHECK(in_child([resource] {
              const rlimit few{64, 256};
              if (setrlimit(RLIMIT_NOFILE, &few) != 0) return 2;
              if (prepare_process({}).size() != (resource ? 0 : 1)) return 3;
              rlimit now{};
              getrlimit(RLIMIT_NOFILE, &now);
              if (now.rlim_cur < (resource ? 65'536 : 256)) return 4;
              if (resource && prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0) != 1) return 5;
              std::ifstream status("/proc/self/status");
              std::string word;
              while (status >> word && word != "VmLck:") {
              }
              long kib = 0;
              status >> kib;
              return kib > 1000 || sanitized ? 0 : 6;
          }) == 0);
}

TEST_CASE("without the right to lock memory the arena still works, with a warning") {
    CHECK(in_child([] {
              const rlimit small{1U << 20, 1U << 20};
              if (setrlimit(RLIMIT_MEMLOCK, &small) != 0) return 1;
              if (geteuid() == 0 && setresuid(65534, 65534, 65534) != 0) return 2;
              drop_capabilities();
              ReactorOptions options;
              options.entries = 64;
              options.arena_bytes = 16U << 20;
              auto reactor = Reactor::create(options);
              if (!reactor) return 3;
              if (reactor.value()->warning().find("ulimit -l") == std::string::npos) return 4;
              auto buffer = reactor.value()->carve(4096);
              std::FILE* file = std::tmpfile();
              const auto results = run_ops(*reactor.value(), {[&](Op& op) {
                  reactor.value()->write(op, fileno(file), buffer, 0, true);
              }});
              return results[0] == 4096 ? 0 : 5;
          }) == 0);
}

TEST_CASE("buffers of two sizes are handed out, named by index, and taken back") {
    ReactorOptions options;
    options.arena_bytes = BufferPool::arena_bytes(4, 2) + 4096;
    auto reactor = std::move(Reactor::create(options)).value();
    CHECK_FALSE(BufferPool::create(*reactor, 4, 3));
    auto pool = std::move(BufferPool::create(*reactor, 4, 2)).value();
    CHECK(pool->count() == 6);
    std::vector<std::byte*> got;
    std::set<BufferPool::Index> indexes;
    for (int i = 0; i < 6; ++i) {
        std::byte* buffer = pool->acquire(4096);  // the last two are large ones
        REQUIRE(buffer != nullptr);
        CHECK(reinterpret_cast<std::uintptr_t>(buffer) % 4096 == 0);
        const auto index = pool->index_of(buffer);
        CHECK(pool->buffer(index) == buffer);
        CHECK(pool->index_of(buffer + pool->capacity(index) - 1) == index);
        CHECK(pool->capacity(index) == (i < 4 ? small_buffer_bytes : large_buffer_bytes));
        indexes.insert(index);
        got.push_back(buffer);
    }
    CHECK(indexes.size() == 6);
    CHECK(pool->acquire(1) == nullptr);
    CHECK(pool->owns(got[0]));
    CHECK_FALSE(pool->owns(got[0] - 1));
    pool->release(got[1]);
    CHECK(pool->acquire(small_buffer_bytes + 1) == nullptr);
    CHECK(pool->acquire(small_buffer_bytes) == got[1]);
    pool->release(got[5]);
    CHECK(pool->acquire(large_buffer_bytes) == got[5]);
    for (std::byte* buffer : got)
        pool->release(buffer);
    CHECK(pool->free_small() == 4);
    CHECK(pool->free_large() == 2);
}

TEST_CASE("memory that is touched is there, every page of it") {
    for (const std::size_t bytes : {std::size_t{4096}, std::size_t{37} << 20 | 8192}) {
        std::byte* const memory = map_touched(bytes);
        REQUIRE(memory != nullptr);
        std::vector<unsigned char> resident(bytes / 4096);
        REQUIRE(mincore(memory, bytes, resident.data()) == 0);
        CHECK(std::count_if(resident.begin(), resident.end(),
                            [](unsigned char page) { return (page & 1) == 0; }) == 0);
        CHECK(std::all_of(memory, memory + bytes, [](std::byte b) { return b == std::byte{0}; }));
        REQUIRE(munmap(memory, bytes) == 0);
    }
    CHECK(in_child([] {
              const rlimit small{64U << 20, 64U << 20};
              setrlimit(RLIMIT_AS, &small);
              return map_touched(std::size_t{1} << 30) == nullptr && errno == ENOMEM ? 0 : 1;
          }) == 0);
}
