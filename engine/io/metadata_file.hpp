// SPDX-License-Identifier: Apache-2.0
// A volume's metadata as a whole, by blocking calls: create it, read it, apply its activity log,
// remove it. For the offline tool and for a node that creates or looks at a resource; a volume in
// use is written by its reactor alone. Layout and order of writes: docs/on-disk.md.
// Any thread; one object belongs to one thread at a time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/base/result.hpp"
#include "engine/format/layout.hpp"
#include "engine/format/superblock.hpp"

namespace replica {

// shared_read disturbs nobody and may see a volume in use between two of its writes; exclusive
// reads and writes, and is refused while anybody else mounts, claims or locks the device.
enum class DiskAccess : std::uint8_t { shared_read, exclusive };

// A regular file or block device, read and written in place. Movable, not copyable.
class DiskFile {
  public:
    // Errors: not_found, permission (also: read-only), busy (says by whom), invalid (neither file
    // nor block device), io.
    static Result<DiskFile> open(const std::string& path, DiskAccess access);
    DiskFile(DiskFile&& other) noexcept;
    DiskFile& operator=(DiskFile&& other) noexcept;
    ~DiskFile();  // releases the lock

    const std::string& path() const { return path_; }
    std::uint64_t size_bytes() const { return size_bytes_; }
    int fd() const { return fd_; }

    // All bytes or an error: io, no_space, corrupt (a read beyond the end).
    Status read(std::uint64_t offset, std::span<std::byte> into) const;
    Status write(std::uint64_t offset, std::span<const std::byte> from);
    Status zero(std::uint64_t offset, std::uint64_t length);  // allocates, too, where it is a file
    Status flush();                                           // what was written is stable

  private:
    DiskFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
    Status inspect(DiskAccess access);

    std::string path_;
    int fd_ = -1;
    std::uint64_t size_bytes_ = 0;
};

// Where a volume lives.
struct MetadataTarget {
    std::string disk;      // file or block device
    std::string metadata;  // empty: internal, else the device of flexible external metadata
};

// The open device or devices of a volume.
class MetadataFile {
  public:
    // Errors: those of DiskFile::open; invalid (disk and metadata are the same file).
    static Result<MetadataFile> open(const MetadataTarget& target, DiskAccess access);

    MetadataPlace place() const;
    const DiskFile& disk() const { return devices_.front(); }
    DiskFile& device() { return devices_.back(); }  // the one that holds the metadata
    const DiskFile& device() const { return devices_.back(); }
    std::uint64_t superblock_offset() const;
    // Internal metadata is looked for as if the disk had this size: what it had before it grew.
    void assume_placed_for(std::uint64_t disk_bytes) { placed_for_ = disk_bytes; }

    using Block = std::array<std::byte, superblock_bytes>;
    Result<Block> read_superblock() const;  // as it lies there, not judged
    Status write_superblock(std::span<const std::byte, superblock_bytes> block);  // and flushes
    // Errors: corrupt, no_space: as check_layout().
    Result<MetadataLayout> layout_of(const Superblock& superblock) const;
    // Errors: io; limit (a log of more than 256 MiB, which nothing writes).
    Result<std::vector<std::byte>> read_activity_log(const MetadataLayout& layout) const;

  private:
    std::vector<DiskFile> devices_;  // the disk, and for external metadata its device
    std::uint64_t placed_for_ = 0;   // 0: for the size that the disk has
};

// Chooses between the superblock on the disk and the node's copy (empty if there is none;
// choose_superblock() has the rules), and looks where the copy says that the metadata was placed if
// the disk has grown since; `file` knows that place from then on. Errors: those of
// choose_superblock(); no_space (the disk has shrunk); io.
Result<Superblock> find_superblock(MetadataFile& file, std::span<const std::byte> copy);

// Superblock, places and activity log; the bitmap can be large and stays where it is.
struct MetadataImage {
    Superblock superblock;
    MetadataLayout layout;
    std::vector<std::byte> activity_log;
};

// Errors: those of find_superblock(), check_layout() and DiskFile.
Result<MetadataImage> read_metadata(MetadataFile& file, std::span<const std::byte> copy = {});
Result<MetadataImage> read_metadata(const MetadataTarget& target);

// Writes fresh metadata: empty bitmap, fresh log, and `initial` with its positions filled in.
// initial.effective_size_sectors is the size of the volume, 0: not agreed yet. A crash on the way
// leaves a disk without a superblock. Returns what was written.
// Errors: exists (a device holds data or metadata and force is off), no_space, limit, invalid, busy
// and the other errors of DiskFile.
Result<MetadataImage> create_metadata(const MetadataTarget& target, const Superblock& initial,
                                      bool force);

// Zeroes the superblock, by which the rest means nothing any more, then log and bitmap. Of a
// damaged superblock or one of another version only itself. Errors: not_found (something else is
// there), io.
Status wipe_metadata(MetadataFile& file);

struct AppliedLog {
    bool was_primary = false;          // only then, and without al_clean, hot extents are marked
    std::uint64_t extents_hot = 0;     // in the log
    std::uint64_t extents_beyond = 0;  // of these, beyond the volume's end and ignored
    std::uint64_t bits_marked = 0;     // newly set, over all bitmap slots
    std::uint32_t blocks_corrupt = 0;
    std::string warning;  // a log that could not be read but did not matter
};

// Marks what the activity log says was being written, sets al_clean and empties the log, in this
// order, each stable before the next. A log that al_clean says nothing of is not looked at. `image`
// as read from `file`; its superblock is updated and gets write_seq + seq_step. `copy_path`: where
// the node's copy lies, written before the disk; empty: none, and seq_step should be
// write_seq_offline_step. Errors: corrupt (the log is unusable and the node was primary: nothing
// was changed), io, no_space.
Result<AppliedLog> apply_activity_log(MetadataFile& file, MetadataImage& image,
                                      std::uint64_t seq_step, const std::string& copy_path);

// Set bits of each slot, and bits set beyond the volume's end, where there must be none.
struct BitmapCounts {
    std::vector<std::uint64_t> slots;
    std::uint64_t beyond = 0;
};
Result<BitmapCounts> count_bitmap(const MetadataFile& file, const MetadataImage& image);

// What a device seems to hold, in words for people: "DRBD v09 metadata", "ext4 (label srv)", "a
// partition table (gpt)", "data of an unknown kind". Empty: nothing that could be found.
Result<std::string> probe_signature(const DiskFile& disk);
Result<std::string> probe_signature(const std::string& path);

// The node's copy of a superblock: 4096 bytes in a file of its own. Reading one that does not exist
// gives no bytes; writing replaces it in one step and returns when that is durable.
Result<std::vector<std::byte>> read_superblock_copy(const std::string& path);
Status write_superblock_copy(const std::string& path,
                             std::span<const std::byte, superblock_bytes> block);

}  // namespace replica
