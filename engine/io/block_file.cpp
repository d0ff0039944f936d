// SPDX-License-Identifier: Apache-2.0
// A request is one reactor operation at a time, issued again for what a short transfer left over.
// Zeroing goes down a ladder: punch a hole, zero the range, write zeroes; what the disk does not
// know is not tried again.
#include "engine/io/block_file.hpp"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "engine/base/text.hpp"

namespace replica {

namespace {

// What zeroes are written from; page-aligned for O_DIRECT. Never written to.
constexpr std::size_t zeroes_bytes = 256U << 10;
alignas(4096) std::array<std::byte, zeroes_bytes> zeroes;

// One operation: below the kernel's limit for a single read or write (2 GiB - 4 KiB).
constexpr std::uint64_t transfer_bytes_max = 1U << 30;

Error open_error(const std::string& path, int os_errno, bool read_only) {
    const char* p = path.c_str();
    switch (os_errno) {
        case ENOENT:
        case ENOTDIR:
        case ENXIO:
            return {Errc::not_found, os_errno,
                    text_of("disk %s does not exist: create it, or correct the path", p)};
        case EROFS:
            return {
                Errc::permission, os_errno,
                text_of("disk %s is read-only: make it writable (blockdev --setrw, or remount its "
                        "file system read-write)",
                        p)};
        case EACCES:
        case EPERM:
            return {
                Errc::permission, os_errno,
                text_of(
                    "disk %s may not be opened for %s: run as root, or give this user the right "
                    "(chown, chmod, group disk; chattr -i)",
                    p, read_only ? "reading" : "writing")};
        case ETXTBSY:
            return {Errc::busy, os_errno,
                    text_of("disk %s is in use as a swap file or a running program: stop that", p)};
        default:
            return {Errc::io, os_errno,
                    text_of("disk %s can not be opened: %s", p, std::strerror(os_errno))};
    }
}

bool refused_for_good(int error) {
    return error == EOPNOTSUPP || error == ENOSYS || error == ENOTTY;
}

}  // namespace

Result<std::unique_ptr<BlockFile>> BlockFile::open(Reactor& reactor, const std::string& path,
                                                   const BlockFileOptions& options) {
    std::unique_ptr<BlockFile> file(new BlockFile(reactor));
    TRY_STATUS(file->open_path(path, options));
    return file;
}

BlockFile::~BlockFile() {
    ASSERT(in_flight_ == 0);
    if (fd_ >= 0) ::close(fd_);
}

Status BlockFile::open_path(const std::string& path, const BlockFileOptions& options) {
    path_ = path;
    read_only_ = options.read_only;
    // Looked at before it is opened: opening a FIFO blocks, and opening a tape drive rewinds it.
    struct stat st {};
    if (stat(path.c_str(), &st) != 0) return open_error(path, errno, read_only_);
    is_block_device_ = S_ISBLK(st.st_mode);
    if (!is_block_device_ && !S_ISREG(st.st_mode)) {
        return Error{
            Errc::invalid, 0,
            text_of("disk %s is neither a regular file nor a block device: name one of these",
                    path.c_str())};
    }
    int flags = O_CLOEXEC | (read_only_ ? O_RDONLY : O_RDWR);
    // Without O_CREAT, O_EXCL means on a block device: nobody else may claim it (mount, dm, md,
    // us).
    if (is_block_device_ && options.exclusive) flags |= O_EXCL;
    bool direct = options.direct;
    fd_ = ::open(path.c_str(), flags | (direct ? O_DIRECT : 0));
    if (fd_ < 0 && errno == EINVAL && direct) {
        direct = false;
        fd_ = ::open(path.c_str(), flags);
        warning_ =
            text_of("the file system of disk %s has no direct IO: every block is cached twice",
                    path.c_str());
    }
    if (fd_ < 0 && errno == EBUSY) {
        const std::string user = block_device_user(st.st_rdev);
        return Error{Errc::busy, EBUSY,
                     text_of("disk %s is in use%s%s: release it first", path.c_str(),
                             user.empty() ? " by another program" : ", ", user.c_str())};
    }
    if (fd_ < 0) return open_error(path, errno, read_only_);
    TRY_STATUS(is_block_device_ ? inspect_device(options) : inspect_file(options));
    if (!direct) return ok_status();
    if (!is_block_device_) logical_block_bytes_ = direct_alignment();
    // One cached page of the file, and the kernel hands the end of every direct write to a worker
    // thread, to look whether that page has to go.
    if (!read_only_) fdatasync(fd_);
    posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED);
    return ok_status();
}

Status BlockFile::inspect_device(const BlockFileOptions& options) {
    int read_only = 0;
    std::uint64_t bytes = 0;
    int block = 0;
    if (ioctl(fd_, BLKROGET, &read_only) != 0 || ioctl(fd_, BLKGETSIZE64, &bytes) != 0 ||
        ioctl(fd_, BLKSSZGET, &block) != 0) {
        return Error{
            Errc::io, errno,
            text_of("disk %s does not tell its size: %s", path_.c_str(), std::strerror(errno))};
    }
    if (read_only != 0 && !options.read_only) return open_error(path_, EROFS, false);
    size_bytes_ = bytes;
    logical_block_bytes_ = static_cast<std::uint32_t>(block);
    return ok_status();
}

Status BlockFile::inspect_file(const BlockFileOptions& options) {
    if (options.exclusive) TRY_STATUS(lock_file_exclusively(fd_, path_));
    // After the lock: whoever held it may have changed the size.
    struct stat st {};
    if (fstat(fd_, &st) != 0) {
        return Error{
            Errc::io, errno,
            text_of("disk %s does not tell its size: %s", path_.c_str(), std::strerror(errno))};
    }
    size_bytes_ = static_cast<std::uint64_t>(st.st_size);
    return ok_status();
}

// What O_DIRECT wants offsets, lengths and addresses to be a multiple of.
std::uint32_t BlockFile::direct_alignment() const {
#ifdef STATX_DIOALIGN
    struct statx sx {};
    if (statx(fd_, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) == 0 &&
        (sx.stx_mask & STATX_DIOALIGN) != 0 && sx.stx_dio_offset_align != 0) {
        return std::max({sx.stx_dio_offset_align, sx.stx_dio_mem_align, std::uint32_t{512}});
    }
#endif
    // Kernels before 6.1, and file systems that do not tell: try. An empty file accepts anything,
    // and has no block that could be misread either.
    alignas(4096) std::array<std::byte, 4096> page;
    for (const std::uint32_t bytes : {512U, 1024U, 2048U}) {
        if (pread(fd_, page.data(), bytes, 0) >= 0) return bytes;
    }
    return 4096;
}

// ---- requests -----------------------------------------------------------------------------------

void BlockFile::begin(DiskOp& request, DiskOp::Kind kind, std::uint64_t offset,
                      std::uint64_t length) {
    ASSERT(request.done != nullptr && !request.in_flight());
    ASSERT(!read_only_ || kind == DiskOp::Kind::read || kind == DiskOp::Kind::flush);
    if (in_flight_++ == 0) answered_at_ = reactor_.now();
    request.file_ = this;
    request.kind_ = kind;
    request.offset_ = offset;
    request.left_ = length;
    request.op_.context = &request;
    request.op_.callback = [](Op& op, std::int32_t result) {
        auto* self = static_cast<DiskOp*>(op.context);
        self->file_->advance(*self, result);
    };
}

void BlockFile::read(DiskOp& request, std::span<std::byte> into, std::uint64_t offset) {
    begin(request, DiskOp::Kind::read, offset, into.size());
    request.data_ = into.data();
    issue(request);
}

void BlockFile::write(DiskOp& request, std::span<const std::byte> from, std::uint64_t offset,
                      bool dsync) {
    begin(request, DiskOp::Kind::write, offset, from.size());
    request.data_ = const_cast<std::byte*>(from.data());  // one field for both directions
    request.dsync_ = dsync;
    issue(request);
}

void BlockFile::flush(DiskOp& request) {
    begin(request, DiskOp::Kind::flush, 0, 0);
    issue(request);
}

void BlockFile::zero(DiskOp& request, std::uint64_t offset, std::uint64_t length, bool unmap) {
    DiskOp::Kind kind = DiskOp::Kind::write_zeroes;
    if (can_zero_range_) kind = DiskOp::Kind::zero_range;
    if (can_punch_hole_ && unmap) kind = DiskOp::Kind::punch_hole;
    begin(request, kind, offset, length);
    request.dsync_ = false;
    issue(request);
}

void BlockFile::issue(DiskOp& request) {
    const auto bytes = static_cast<std::size_t>(std::min(request.left_, transfer_bytes_max));
    switch (request.kind_) {
        case DiskOp::Kind::read:
            return reactor_.read(request.op_, fd_, {request.data_, bytes}, request.offset_);
        case DiskOp::Kind::write:
            return reactor_.write(request.op_, fd_, {request.data_, bytes}, request.offset_,
                                  request.dsync_);
        case DiskOp::Kind::flush:
            return reactor_.fdatasync(request.op_, fd_);
        case DiskOp::Kind::punch_hole:
            return reactor_.fallocate(request.op_, fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                      request.offset_, request.left_);
        case DiskOp::Kind::zero_range:
            return reactor_.fallocate(request.op_, fd_, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                                      request.offset_, request.left_);
        case DiskOp::Kind::write_zeroes:
            return reactor_.write(request.op_, fd_,
                                  std::span(zeroes).first(std::min(bytes, zeroes.size())),
                                  request.offset_, false);
    }
}

void BlockFile::advance(DiskOp& request, std::int32_t result) {
    if (result == -EINTR || result == -EAGAIN) return issue(request);
    if (result < 0) {
        if (fall_back(request, -result)) return issue(request);
        return finish(request, -result);
    }
    switch (request.kind_) {
        case DiskOp::Kind::flush:
        case DiskOp::Kind::punch_hole:
        case DiskOp::Kind::zero_range:
            return finish(request, 0);
        case DiskOp::Kind::read:
        case DiskOp::Kind::write:
            request.data_ += result;
            break;
        case DiskOp::Kind::write_zeroes:
            break;
    }
    const auto bytes = static_cast<std::uint64_t>(result);
    ASSERT(bytes <= request.left_);
    request.offset_ += bytes;
    request.left_ -= bytes;
    if (request.left_ == 0) return finish(request, 0);
    if (bytes == 0) return finish(request, EIO);  // the end of the file
    issue(request);
}

// Steps down the ladder of zeroing. False: `error` is the outcome.
bool BlockFile::fall_back(DiskOp& request, int error) {
    // Not for good: EINVAL may be the alignment of this one request, and a file system without a
    // free block for its own bookkeeping may still have room for zeroes where data was.
    if (!refused_for_good(error) && error != EINVAL && error != ENOSPC) return false;
    if (request.kind_ == DiskOp::Kind::punch_hole) {
        if (refused_for_good(error)) can_punch_hole_ = false;
        request.kind_ = can_zero_range_ ? DiskOp::Kind::zero_range : DiskOp::Kind::write_zeroes;
        return true;
    }
    if (request.kind_ == DiskOp::Kind::zero_range) {
        if (refused_for_good(error)) can_zero_range_ = false;
        request.kind_ = DiskOp::Kind::write_zeroes;
        return true;
    }
    return false;
}

void BlockFile::finish(DiskOp& request, int error) {
    ASSERT(in_flight_ > 0);
    in_flight_ -= 1;
    answered_at_ = reactor_.now();
    request.file_ = nullptr;
    request.done(request, error);
}

std::uint64_t BlockFile::silent_ns() const {
    return in_flight_ == 0 ? 0 : reactor_.now().ns - answered_at_.ns;
}

std::uint64_t BlockFile::extent_status(std::uint64_t offset, std::uint64_t length,
                                       bool& hole) const {
    hole = false;
    if (is_block_device_ || length == 0) return length;
    const auto at = static_cast<off_t>(offset);
    const off_t data = lseek(fd_, at, SEEK_DATA);
    if (data < 0 && errno != ENXIO) return length;  // can not tell
    // ENXIO: nothing but hole up to the end.
    hole = data < 0 || data > at;
    const off_t end = hole ? data : lseek(fd_, at, SEEK_HOLE);
    if (end < 0) return length;
    // Whole blocks only: a file system may tell in smaller units than ours.
    const std::uint64_t run = static_cast<std::uint64_t>(end) - offset;
    if (run >= length) return length;
    const std::uint64_t block = logical_block_bytes_;
    const std::uint64_t whole = hole ? run / block * block : (run + block - 1) / block * block;
    if (whole != 0) return std::min(whole, length);
    hole = false;  // a part of a block is hole: the block is data
    return std::min(block, length);
}

}  // namespace replica
