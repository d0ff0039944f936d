// SPDX-License-Identifier: Apache-2.0
// Blocking reads and writes of whole ranges, and the errors of opening, in words that help. The
// kernel's page cache is used; what a reactor writes past it by O_DIRECT is seen here all the same.
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstring>
#include <utility>

#include "engine/base/text.hpp"
#include "engine/io/block_file.hpp"
#include "engine/io/metadata_file.hpp"

namespace replica {
namespace {

constexpr std::size_t zeroes_bytes = 256U << 10;
const std::array<std::byte, zeroes_bytes> zeroes{};

Error open_error(const std::string& path, DiskAccess access, int os_errno) {
    const char* const p = path.c_str();
    switch (os_errno) {
        case ENOENT:
        case ENOTDIR:
        case ENXIO:
            return {Errc::not_found, os_errno,
                    text_of("%s does not exist: create it, or correct the path", p)};
        case EROFS:
            return {Errc::permission, os_errno,
                    text_of("%s is read-only: make it writable (blockdev --setrw, or remount its "
                            "file system)",
                            p)};
        case EACCES:
        case EPERM:
            return {Errc::permission, os_errno,
                    text_of("%s may not be opened for %s: run as root, or give this user the right",
                            p, access == DiskAccess::exclusive ? "writing" : "reading")};
        default:
            return {Errc::io, os_errno,
                    text_of("%s can not be opened: %s", p, std::strerror(os_errno))};
    }
}

Error io_error(const DiskFile& file, const char* what, std::uint64_t offset) {
    const int os_errno = errno;
    const bool full = os_errno == ENOSPC || os_errno == EDQUOT;
    return {full ? Errc::no_space : Errc::io, os_errno,
            text_of("%s: %s at byte %" PRIu64 " failed: %s", file.path().c_str(), what, offset,
                    std::strerror(os_errno))};
}

}  // namespace

Result<DiskFile> DiskFile::open(const std::string& path, DiskAccess access) {
    // Looked at before it is opened: opening a FIFO blocks, and opening a tape drive rewinds it.
    struct stat st {};
    if (::stat(path.c_str(), &st) != 0) return open_error(path, access, errno);
    const bool block_device = S_ISBLK(st.st_mode);
    if (!block_device && !S_ISREG(st.st_mode)) {
        return Error{Errc::invalid, 0,
                     text_of("%s is neither a regular file nor a block device", path.c_str())};
    }
    const bool exclusive = access == DiskAccess::exclusive;
    // On a block device O_EXCL keeps out everybody else who claims it: mounts, dm, md, us.
    const int flags =
        O_CLOEXEC | (exclusive ? O_RDWR : O_RDONLY) | (exclusive && block_device ? O_EXCL : 0);
    DiskFile file(path, ::open(path.c_str(), flags));
    if (file.fd_ < 0 && errno == EBUSY) {
        const std::string user = block_device_user(st.st_rdev);
        return Error{Errc::busy, EBUSY,
                     text_of("%s is in use%s%s: release it first", path.c_str(),
                             user.empty() ? " by another program" : ", ", user.c_str())};
    }
    if (file.fd_ < 0) return open_error(path, access, errno);
    TRY_STATUS(file.inspect(access));
    return file;
}

Status DiskFile::inspect(DiskAccess access) {
    const bool exclusive = access == DiskAccess::exclusive;
    struct stat st {};
    if (::fstat(fd_, &st) != 0) return io_error(*this, "fstat", 0);
    if (S_ISBLK(st.st_mode)) {
        int read_only = 0;
        if (::ioctl(fd_, BLKGETSIZE64, &size_bytes_) != 0 ||
            ::ioctl(fd_, BLKROGET, &read_only) != 0) {
            return io_error(*this, "asking for its size", 0);
        }
        if (exclusive && read_only != 0) return open_error(path_, access, EROFS);
        return ok_status();
    }
    if (exclusive) TRY_STATUS(lock_file_exclusively(fd_, path_));
    // Again, after the lock: whoever held it may have changed the size.
    if (::fstat(fd_, &st) != 0) return io_error(*this, "fstat", 0);
    size_bytes_ = static_cast<std::uint64_t>(st.st_size) / sector_bytes * sector_bytes;
    return ok_status();
}

DiskFile::DiskFile(DiskFile&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      size_bytes_(other.size_bytes_) {}

DiskFile& DiskFile::operator=(DiskFile&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(fd_, other.fd_);
    std::swap(size_bytes_, other.size_bytes_);
    return *this;
}

DiskFile::~DiskFile() {
    if (fd_ >= 0) ::close(fd_);
}

Status DiskFile::read(std::uint64_t offset, std::span<std::byte> into) const {
    while (!into.empty()) {
        const ssize_t n = ::pread(fd_, into.data(), into.size(), static_cast<off_t>(offset));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return io_error(*this, "reading", offset);
        if (n == 0) {
            return Error{
                Errc::corrupt, 0,
                text_of("%s ends at byte %" PRIu64 ", more was expected", path_.c_str(), offset)};
        }
        offset += static_cast<std::uint64_t>(n);
        into = into.subspan(static_cast<std::size_t>(n));
    }
    return ok_status();
}

Status DiskFile::write(std::uint64_t offset, std::span<const std::byte> from) {
    while (!from.empty()) {
        const ssize_t n = ::pwrite(fd_, from.data(), from.size(), static_cast<off_t>(offset));
        if (n < 0 && errno == EINTR) continue;
        if (n == 0) errno = EIO;
        if (n <= 0) return io_error(*this, "writing", offset);
        offset += static_cast<std::uint64_t>(n);
        from = from.subspan(static_cast<std::size_t>(n));
    }
    return ok_status();
}

Status DiskFile::zero(std::uint64_t offset, std::uint64_t length) {
    // No hole is punched: metadata must not run out of space later, under a write that needs it.
    if (length == 0 || ::fallocate(fd_, FALLOC_FL_ZERO_RANGE, static_cast<off_t>(offset),
                                   static_cast<off_t>(length)) == 0) {
        return ok_status();
    }
    if (errno == ENOSPC || errno == EIO) return io_error(*this, "zeroing", offset);
    while (length > 0) {
        const std::uint64_t n = std::min<std::uint64_t>(length, zeroes.size());
        TRY_STATUS(write(offset, std::span(zeroes).first(static_cast<std::size_t>(n))));
        offset += n;
        length -= n;
    }
    return ok_status();
}

Status DiskFile::flush() {
    if (::fdatasync(fd_) != 0) return io_error(*this, "flushing", 0);
    return ok_status();
}

}  // namespace replica
