// SPDX-License-Identifier: Apache-2.0
// A backing disk: a regular file or a block device, opened for this process alone and used with
// O_DIRECT through the reactor. Opening and asking block for a moment; reading and writing never
// do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "engine/base/result.hpp"
#include "engine/io/reactor.hpp"

namespace replica {

class BlockFile;

// One request to a BlockFile. Owned by the caller, who keeps it and its buffer in place until
// `done` has run, which is once for each request and never inside the call that starts it. error: 0
// (all of it is done) or a positive errno: ENOSPC (full disk under a sparse file), EIO,
// ECANCELED...; a read beyond the end of the file is EIO. `done` may start another request with the
// same DiskOp.
struct DiskOp {
    void (*done)(DiskOp& request, int error) = nullptr;
    void* context = nullptr;  // the caller's own

    bool in_flight() const { return file_ != nullptr; }

  private:
    friend class BlockFile;
    enum class Kind : std::uint8_t { read, write, flush, punch_hole, zero_range, write_zeroes };
    Op op_;
    BlockFile* file_ = nullptr;  // while in flight
    Kind kind_ = Kind::read;
    bool dsync_ = false;
    std::byte* data_ = nullptr;
    std::uint64_t offset_ = 0;
    std::uint64_t left_ = 0;
};

struct BlockFileOptions {
    bool read_only = false;
    bool direct = true;     // O_DIRECT where the file system has it, else with a warning()
    bool exclusive = true;  // nobody else may open it exclusively, mount it, or lock it
};

// All members but open() belong to the reactor's thread.
class BlockFile {
  public:
    // Any thread. `path`: absolute. Errors: not_found, permission (read-only medium or rights),
    // busy (the message says who uses it), invalid (neither file nor block device), io.
    static Result<std::unique_ptr<BlockFile>> open(Reactor& reactor, const std::string& path,
                                                   const BlockFileOptions& options);
    BlockFile(const BlockFile&) = delete;
    BlockFile& operator=(const BlockFile&) = delete;
    ~BlockFile();  // nothing may be in flight; releases the lock

    int fd() const { return fd_; }
    const std::string& path() const { return path_; }
    bool is_block_device() const { return is_block_device_; }
    bool read_only() const { return read_only_; }
    std::uint64_t size_bytes() const { return size_bytes_; }
    // Offsets, lengths and buffer addresses are multiples of it: 512 or 4096 as a rule.
    std::uint32_t logical_block_bytes() const { return logical_block_bytes_; }
    const std::string& warning() const { return warning_; }  // empty: nothing to say
    std::uint32_t in_flight() const { return in_flight_; }
    // How long nothing has come back though something is under way; 0: nothing is.
    std::uint64_t silent_ns() const;

    void read(DiskOp& request, std::span<std::byte> into, std::uint64_t offset);
    // `dsync`: stable when done, as if followed by flush().
    void write(DiskOp& request, std::span<const std::byte> from, std::uint64_t offset, bool dsync);
    void flush(DiskOp& request);
    // Afterwards the range reads as zeroes, whichever way the disk knows: a punched hole (if
    // `unmap`), a zeroed range, or zeroes written. Not stable before flush().
    void zero(DiskOp& request, std::uint64_t offset, std::uint64_t length, bool unmap);

    // The length of the leading run of [offset, offset + length) that is all hole (reads as zeroes
    // and uses no space), or all data. Block devices and file systems that can not tell: data.
    std::uint64_t extent_status(std::uint64_t offset, std::uint64_t length, bool& hole) const;

  private:
    explicit BlockFile(Reactor& reactor) : reactor_(reactor) {}
    Status open_path(const std::string& path, const BlockFileOptions& options);
    Status inspect_device(const BlockFileOptions& options);
    Status inspect_file(const BlockFileOptions& options);
    std::uint32_t direct_alignment() const;
    void begin(DiskOp& request, DiskOp::Kind kind, std::uint64_t offset, std::uint64_t length);
    void issue(DiskOp& request);
    void advance(DiskOp& request, std::int32_t result);
    bool fall_back(DiskOp& request, int error);
    void finish(DiskOp& request, int error);

    Reactor& reactor_;
    std::string path_;
    std::string warning_;
    int fd_ = -1;
    bool is_block_device_ = false;
    bool read_only_ = false;
    bool can_punch_hole_ = true;  // until the disk has refused it
    bool can_zero_range_ = true;
    std::uint32_t logical_block_bytes_ = 512;
    std::uint32_t in_flight_ = 0;
    Instant answered_at_;  // or was asked, after a rest
    std::uint64_t size_bytes_ = 0;
};

// Takes the locks that make a regular file ours: flock (whose holder the kernel can name) and an
// open-file-description lock on all of it (which conflicts with those of QEMU). Both go with the
// descriptor. Errors: busy, with the holder if it is known; io.
Status lock_file_exclusively(int fd, const std::string& path);

// Who uses a block device that could not be opened with O_EXCL: "mounted on /srv", "held by dm-3".
// Empty if that can not be found out. `device`: st_rdev.
std::string block_device_user(std::uint64_t device);

}  // namespace replica
