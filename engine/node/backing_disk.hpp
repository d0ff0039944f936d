// SPDX-License-Identifier: Apache-2.0
// The disk below one resource: opening it with everything that its metadata says (any thread,
// blocks), and then reading, writing, zeroing and flushing its data on the reactor. The data begins
// at byte 0 of the disk, wherever the metadata lies.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/core/core.hpp"
#include "engine/format/layout.hpp"
#include "engine/io/block_file.hpp"
#include "engine/io/partial_blocks.hpp"

namespace replica {

// A file descriptor that closes itself.
class OwnedFd {
  public:
    OwnedFd() = default;
    explicit OwnedFd(int fd) : fd_(fd) {}
    OwnedFd(OwnedFd&& other) noexcept : fd_(other.release()) {}
    OwnedFd& operator=(OwnedFd&& other) noexcept;
    ~OwnedFd();
    int get() const { return fd_; }
    int release();

  private:
    int fd_ = -1;
};

struct DiskPaths {
    std::string disk;
    std::string metadata;  // empty: internal
    std::string copy;      // of the superblock, in the node's state directory
};
// A file that is there while the disk of this copy has failed and was not attached since.
inline std::string failure_note(const DiskPaths& paths) { return paths.copy + ".failed"; }

// An open disk whose metadata was read and found whole. BlockFiles belong to `reactor`.
struct OpenDisk {
    std::unique_ptr<BlockFile> data;
    std::unique_ptr<BlockFile> external;  // metadata device, null: internal
    OwnedFd copy;                         // the superblock's copy, open for writing in place
    DiskPaths paths;
    MetadataLayout layout;
    Superblock superblock;
    std::uint64_t volume_bytes = 0;  // of a volume whose size was never agreed: all that fits
    AttachInfo info;
    std::vector<std::string> warnings;

    BlockFile& metadata() const { return external ? *external : *data; }
};

// Opens exclusively, chooses between superblock and copy, checks the layout, replays the activity
// log. Errors name what is wrong with which device; state: it is another disk than the copy's.
Result<OpenDisk> open_disk(Reactor& reactor, const DiskPaths& paths);

// Removes the copy of another disk, so that open_disk() takes this one. What can not be read now is
// left to open_disk().
Status forget_other_disk(const DiskPaths& paths);

// The pages of the on-disk bitmap that are not all zero, in order. Errors: io.
using PageSink = std::function<void(std::uint64_t page, std::span<const std::byte, 4096> bytes)>;
Status read_bitmap(const OpenDisk& disk, const PageSink& sink);

// A disk on which DRBD wrote last gets the extension that `core` made up for it, all else as it
// was, before anything else is written: of a mix of two v09 parts nobody could tell the halves.
Status seal_extension(OpenDisk& disk, const Core& core);

// Reactor thread only. Flushes that are wanted while one is under way share the next one. Requests
// are whole sectors of 512 bytes, also where the disk has larger blocks: those that are no whole
// blocks then go one after the other. No two that change something may share a sector.
class BackingDisk {
  public:
    // zeroes: a read that was asked to look found nothing else.
    using Done = void (*)(void* context, IoTag tag, int error, bool zeroes);

    BackingDisk(BlockFile& file, Done done, void* context);
    ~BackingDisk();  // nothing may be in flight

    void read(IoTag tag, std::span<std::byte> into, std::uint64_t offset, bool look_for_zeroes);
    void write(IoTag tag, std::span<const std::byte> from, std::uint64_t offset, bool durable);
    void zero(IoTag tag, std::uint64_t offset, std::uint64_t length, bool discard, bool durable);
    void flush(IoTag tag);

    bool idle() const { return in_flight_ == 0; }
    BlockFile& file() { return file_; }
    // It was asked for a part of a block, which takes a read besides.
    bool met_part_of_block() const { return met_part_; }

  private:
    struct Task {
        DiskOp op;
        BackingDisk* disk = nullptr;
        IoTag tag;
        std::span<std::byte> look_at;  // a read that is to be looked at for zeroes
        bool flush_after = false;
        PartialBlocks::Request request;
        Task* next = nullptr;
    };
    using Kind = PartialBlocks::Kind;
    Task& take(IoTag tag);
    void begin(Task& task);
    void start_part();
    void part_done(int error);
    void want_flush(Task& task);
    void start_flush();
    void flushed(int error);
    void finish(Task& task, int error);
    static void op_done(DiskOp& op, int error);

    BlockFile& file_;
    Done done_;
    void* context_;
    std::uint32_t in_flight_ = 0;
    std::deque<Task> tasks_;  // grows when more than ever before are in flight
    Task* free_ = nullptr;
    DiskOp flush_op_;
    Task* flushing_ = nullptr;   // covered by the flush under way
    Task* unflushed_ = nullptr;  // came too late for it
    Task** unflushed_tail_ = &unflushed_;
    std::unique_ptr<PartialBlocks> parts_;  // where its blocks are larger than a sector
    Task* at_parts_ = nullptr;
    Task* waiting_ = nullptr;  // for their turn there
    Task** waiting_tail_ = &waiting_;
    bool met_part_ = false;
};

}  // namespace replica
