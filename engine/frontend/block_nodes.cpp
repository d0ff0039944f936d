// SPDX-License-Identifier: Apache-2.0
// See block_nodes.hpp.
#include "engine/frontend/block_nodes.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <thread>

#include "engine/base/text.hpp"

namespace replica {
namespace {

constexpr std::chrono::seconds claim_patience{5};

// The text of a small file, without the newline at its end; empty if it can not be read.
std::string text_in(const std::string& path) {
    char text[64] = {};
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return "";
    const ssize_t length = ::read(fd, text, sizeof text - 1);
    ::close(fd);
    std::string line(text, length > 0 ? static_cast<std::size_t>(length) : 0);
    if (!line.empty() && line.back() == '\n') line.pop_back();
    return line;
}

bool has_open(const std::string& process, dev_t device) {
    const std::string path = "/proc/" + process + "/fd";
    DIR* const descriptors = ::opendir(path.c_str());
    if (descriptors == nullptr) return false;  // it ended, or is not ours to look at
    bool found = false;
    while (const dirent* entry = found ? nullptr : ::readdir(descriptors)) {
        struct stat at {};
        found = ::fstatat(::dirfd(descriptors), entry->d_name, &at, 0) == 0 &&
                S_ISBLK(at.st_mode) && at.st_rdev == device;
    }
    ::closedir(descriptors);
    return found;
}

// Opening may read a partition table, which takes until somebody serves the device; and whoever
// would serve it may be waiting for this call. So it is waited for elsewhere.
struct Claim {
    std::mutex mutex;
    std::condition_variable condition;
    bool ended = false, given_up = false;
    int result = 0;
};

void open_for(const std::shared_ptr<Claim>& claim, const std::string& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_EXCL | O_CLOEXEC);
    const int error = errno;
    const std::lock_guard lock(claim->mutex);
    claim->ended = true;
    claim->result = fd < 0 ? -error : fd;
    if (fd >= 0 && claim->given_up) ::close(fd);
    claim->condition.notify_one();
}

// 0, or -errno.
int write_attribute(const std::string& path, const std::string& text) {
    const int fd = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd < 0) return -errno;
    const bool good = ::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
    const int error = errno;
    ::close(fd);
    return good ? 0 : -error;
}

class MachineNodes final : public BlockNodes {
  public:
    int claim(const std::string& name) override {
        const auto claim = std::make_shared<Claim>();
        std::thread(open_for, claim, "/dev/" + name).detach();
        std::unique_lock lock(claim->mutex);
        if (claim->condition.wait_for(lock, claim_patience, [&] { return claim->ended; })) {
            return claim->result;
        }
        claim->given_up = true;
        return -ETIMEDOUT;
    }

    std::string user_of(const std::string& name) override {
        struct stat device {};
        if (::stat(("/dev/" + name).c_str(), &device) != 0) return "";
        DIR* const processes = ::opendir("/proc");
        if (processes == nullptr) return "";
        const std::string self = std::to_string(::getpid());
        std::string user;
        while (const dirent* entry = user.empty() ? ::readdir(processes) : nullptr) {
            const std::string process = entry->d_name;
            if (process.find_first_not_of("0123456789") != std::string::npos || process == self ||
                !has_open(process, device.st_rdev)) {
                continue;
            }
            const std::string program = text_in("/proc/" + process + "/comm");
            user = text_of("%s (pid %s)", program.c_str(), process.c_str());
        }
        ::closedir(processes);
        return user;
    }

    int set_io_timeout(const std::string& name, unsigned milliseconds) override {
        const std::string attribute = "/sys/block/" + name + "/queue/io_timeout";
        const std::string text = std::to_string(milliseconds);
        // The kernel waits for every request under way when it is written.
        return text_in(attribute) == text ? 0 : write_attribute(attribute, text);
    }

    // In a container /sys may be read-only; there is no udev there, either.
    void announce(const std::string& name) override {
        static_cast<void>(write_attribute("/sys/block/" + name + "/uevent", "change"));
    }

    Result<BlockFacts> facts(const std::string& name) override {
        const std::string directory = "/sys/block/" + name;
        BlockFacts facts;
        unsigned long long sectors = 0;
        if (::access(directory.c_str(), F_OK) != 0) {
            return Error{Errc::not_found, errno, "there is no block device " + name};
        }
        if (std::sscanf(text_in(directory + "/size").c_str(), "%llu", &sectors) != 1 ||
            std::sscanf(text_in(directory + "/queue/logical_block_size").c_str(), "%u",
                        &facts.logical_block_bytes) != 1 ||
            std::sscanf(text_in(directory + "/dev").c_str(), "%u:%u", &facts.major, &facts.minor) !=
                2) {
            return Error{Errc::io, 0, directory + " does not say what the device is"};
        }
        facts.size_bytes = sectors * 512;
        return facts;
    }
};

}  // namespace

std::shared_ptr<BlockNodes> BlockNodes::of_this_machine() {
    return std::make_shared<MachineNodes>();
}

}  // namespace replica
