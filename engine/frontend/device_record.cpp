// SPDX-License-Identifier: Apache-2.0
// See device_record.hpp.
#include "engine/frontend/device_record.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "engine/base/text.hpp"
#include "engine/io/process.hpp"

namespace replica {
namespace {

constexpr const char* read_only_line = "read-only\n";
constexpr std::uint64_t magic = 0x5270;  // "Rp", in the highest 16 bits of a token
std::string text_for(DeviceKind kind, const DeviceRecord& record) {
    return text_of("replica %s device 1\ntoken %016" PRIx64 "\ngeneration %016" PRIX64 "\n%s",
                   name_of(kind), record.token, record.generation,
                   record.read_only ? read_only_line : "");
}

Error file_error(const std::string& path, const char* what) {
    return {Errc::io, errno,
            text_of("%s can not be %s: %s", path.c_str(), what, std::strerror(errno))};
}

// True if it is on stable storage. Leaves errno.
bool write_stable(const std::string& path, const std::string& text) {
    const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) return false;
    const ssize_t written = ::write(fd, text.data(), text.size());
    if (written >= 0 && written < static_cast<ssize_t>(text.size())) errno = ENOSPC;
    const bool good = written == static_cast<ssize_t>(text.size()) && ::fsync(fd) == 0;
    const int error = errno;
    ::close(fd);
    errno = error;
    return good;
}

bool sync_directory(const std::string& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return false;
    const bool good = ::fsync(fd) == 0;
    const int error = errno;
    ::close(fd);
    errno = error;
    return good;
}

}  // namespace

std::uint64_t new_device_token() { return magic << 48 | random_u64() >> 16; }

DeviceRecordFile::DeviceRecordFile(const std::string& state_dir, DeviceKind kind,
                                   const std::string& resource)
    : kind_(kind),
      directory_(state_dir + "/" + name_of(kind)),
      path_(directory_ + "/" + resource) {}

bool DeviceRecordFile::exists() const {
    return ::access(path_.c_str(), F_OK) == 0 || errno != ENOENT;
}

Result<std::optional<DeviceRecord>> DeviceRecordFile::load() const {
    char text[256] = {};
    const int fd = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        if (errno == ENOENT) return std::optional<DeviceRecord>();
        return file_error(path_, "read");
    }
    const ssize_t length = ::read(fd, text, sizeof text - 1);
    const int error = errno;
    ::close(fd);
    errno = error;
    if (length < 0) return file_error(path_, "read");
    DeviceRecord record;
    const int taken =
        std::sscanf(text, "replica %*s device 1\ntoken %16" SCNx64 "\ngeneration %16" SCNx64,
                    &record.token, &record.generation);
    record.read_only = std::string_view(text).ends_with(read_only_line);
    if (taken != 2 || text_for(kind_, record) != text) {
        return Error{Errc::corrupt, 0,
                     text_of("%s is not the record of a device of %s: see which device waits (ls "
                             "/sys/block), end it, and remove the file",
                             path_.c_str(), name_of(kind_))};
    }
    return std::optional<DeviceRecord>(record);
}

Status DeviceRecordFile::save(const DeviceRecord& record) const {
    if (::mkdir(directory_.c_str(), 0700) != 0 && errno != EEXIST) {
        return file_error(directory_, "made");
    }
    // No resource has such a name.
    const std::string next = directory_ + "/." + path_.substr(directory_.size() + 1) + ".new";
    if (!write_stable(next, text_for(kind_, record)) ||
        ::rename(next.c_str(), path_.c_str()) != 0 || !sync_directory(directory_)) {
        return file_error(path_, "written");
    }
    return ok_status();
}

Status DeviceRecordFile::remove() const {
    if (::unlink(path_.c_str()) == 0 || errno == ENOENT) return ok_status();
    return file_error(path_, "removed");
}

}  // namespace replica
