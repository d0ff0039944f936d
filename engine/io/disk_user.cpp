// SPDX-License-Identifier: Apache-2.0
// Locks on backing files, and who stands in the way: what /proc and /sys know about the users of a
// file or block device. Only for messages; the locks and O_EXCL decide.
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "engine/base/text.hpp"
#include "engine/io/block_file.hpp"

namespace replica {

namespace {

struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

std::string first_line(const std::string& path) {
    const File file(std::fopen(path.c_str(), "re"));
    char line[512];
    if (!file || std::fgets(line, sizeof line, file.get()) == nullptr) return {};
    line[std::strcspn(line, "\n")] = '\0';
    return line;
}

std::string process_text(long pid) {
    const std::string name = first_line(text_of("/proc/%ld/comm", pid));
    return name.empty() ? text_of("process %ld", pid)
                        : text_of("%s (process %ld)", name.c_str(), pid);
}

// The process that holds an flock on the file, by /proc/locks, whose lines are
// "1: FLOCK  ADVISORY  WRITE 4242 fe:00:1234 0 EOF" (inode numbers in decimal, devices in hex).
std::string lock_holder(const struct stat& st) {
    const File file(std::fopen("/proc/locks", "re"));
    if (!file) return {};
    char line[256];
    while (std::fgets(line, sizeof line, file.get()) != nullptr) {
        long pid = 0;
        unsigned device_major = 0, device_minor = 0;
        unsigned long inode = 0;
        const char* kind = std::strstr(line, "FLOCK");
        if (kind == nullptr || std::sscanf(kind, "FLOCK %*s %*s %ld %x:%x:%lu", &pid, &device_major,
                                           &device_minor, &inode) != 4) {
            continue;
        }
        if (inode == st.st_ino && device_major == major(st.st_dev) &&
            device_minor == minor(st.st_dev) && pid > 0) {
            return process_text(pid);
        }
    }
    return {};
}

// The loop device that has the file as its backing, empty if none: loop devices take no locks.
std::string loop_device_of(const std::string& path) {
    const std::unique_ptr<char, void (*)(void*)> real(realpath(path.c_str(), nullptr), std::free);
    const std::unique_ptr<DIR, int (*)(DIR*)> blocks(opendir("/sys/block"), closedir);
    if (!real || !blocks) return {};
    while (const dirent* entry = readdir(blocks.get())) {
        if (std::strncmp(entry->d_name, "loop", 4) != 0) continue;
        const auto backing = text_of("/sys/block/%s/loop/backing_file", entry->d_name);
        if (first_line(backing) == real.get()) return text_of("/dev/%s", entry->d_name);
    }
    return {};
}

Error file_busy(const std::string& path, const std::string& user) {
    return {Errc::busy, EBUSY,
            text_of("disk %s is in use by %s: stop that, or name another disk", path.c_str(),
                    user.empty() ? "another program" : user.c_str())};
}

}  // namespace

Status lock_file_exclusively(int fd, const std::string& path) {
    struct stat st {};
    if (fstat(fd, &st) != 0) {
        return Error{Errc::io, errno,
                     text_of("disk %s: fstat failed: %s", path.c_str(), std::strerror(errno))};
    }
    const std::string loop = loop_device_of(path);
    if (!loop.empty()) return file_busy(path, "loop device " + loop);
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno == EWOULDBLOCK) return file_busy(path, lock_holder(st));
        return Error{Errc::io, errno,
                     text_of("disk %s can not be locked: %s", path.c_str(), std::strerror(errno))};
    }
    struct flock range {};
    const int mode = fcntl(fd, F_GETFL);
    range.l_type = (mode & O_ACCMODE) == O_RDONLY ? F_RDLCK : F_WRLCK;
    range.l_whence = SEEK_SET;
    if (fcntl(fd, F_OFD_SETLK, &range) != 0 && (errno == EAGAIN || errno == EACCES)) {
        return file_busy(path, "another program (a virtual machine, perhaps)");
    }
    return ok_status();
}

std::string block_device_user(std::uint64_t device) {
    const unsigned device_major = major(device), device_minor = minor(device);
    const auto directory = text_of("/sys/dev/block/%u:%u/holders", device_major, device_minor);
    if (const std::unique_ptr<DIR, int (*)(DIR*)> holders(opendir(directory.c_str()), closedir);
        holders) {
        while (const dirent* entry = readdir(holders.get())) {
            if (entry->d_name[0] != '.') return text_of("held by %s", entry->d_name);
        }
    }
    // Lines are "36 35 98:0 /root /mount/point options...".
    const File mounts(std::fopen("/proc/self/mountinfo", "re"));
    char line[4096];
    while (mounts && std::fgets(line, sizeof line, mounts.get()) != nullptr) {
        unsigned line_major = 0, line_minor = 0;
        char point[1024];
        if (std::sscanf(line, "%*d %*d %u:%u %*s %1023s", &line_major, &line_minor, point) == 3 &&
            line_major == device_major && line_minor == device_minor) {
            return text_of("mounted on %s", point);
        }
    }
    return {};
}

}  // namespace replica
