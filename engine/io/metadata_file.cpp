// SPDX-License-Identifier: Apache-2.0
// Every change is ordered so that a crash between any two writes leaves metadata that is old, new,
// or visibly absent: what is referred to is stable before the superblock that refers to it.
#include "engine/io/metadata_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstring>

#include "engine/base/text.hpp"
#include "engine/format/activity_log.hpp"
#include "engine/format/bitmap_page.hpp"

namespace replica {
namespace {

constexpr std::uint64_t activity_log_bytes_max = 256U << 20;
constexpr std::uint64_t chunk_bytes = 1U << 20;

std::uint64_t bits_of(const Superblock& superblock) {
    const std::uint64_t bytes = superblock.effective_size_sectors * sector_bytes;
    return (bytes + superblock.bytes_per_bit - 1) / superblock.bytes_per_bit;
}

std::vector<std::byte> fresh_activity_log(const MetadataLayout& layout) {
    std::vector<std::byte> log(layout.al_bytes);
    for (std::size_t at = 0; at < log.size(); at += al_block_bytes) {
        encode_al_initialised(std::span(log).subspan(at).first<al_block_bytes>());
    }
    return log;
}

// One page of the on-disk bitmap at a time; extents in ascending order touch each page once.
class PageMarker {
  public:
    PageMarker(DiskFile& device, const MetadataImage& image)
        : device_(device), image_(image), page_bytes_(bitmap_page_bytes) {}

    Status mark(BitRange bits) {
        const std::uint32_t max_peers = image_.layout.max_peers;
        const BitmapPageRange pages = bitmap_pages_of_bits(bits.first, bits.last, max_peers);
        for (std::uint64_t page = pages.first; page <= pages.last; ++page) {
            TRY_STATUS(turn_to(page));
            marked_ += set_bitmap_page_bits(bytes(), page, max_peers, bits);
        }
        return ok_status();
    }
    Status finish() {
        if (page_ == none) return ok_status();
        return device_.write(offset_of(page_), bytes());
    }
    std::uint64_t marked() const { return marked_; }

  private:
    static constexpr std::uint64_t none = ~std::uint64_t{0};
    BitmapPage bytes() { return std::span(page_bytes_).first<bitmap_page_bytes>(); }
    std::uint64_t offset_of(std::uint64_t page) const {
        return image_.layout.bitmap_offset + page * bitmap_page_bytes;
    }
    Status turn_to(std::uint64_t page) {
        if (page_ == page) return ok_status();
        TRY_STATUS(finish());
        page_ = none;
        TRY_STATUS(device_.read(offset_of(page), bytes()));
        page_ = page;
        return ok_status();
    }

    DiskFile& device_;
    const MetadataImage& image_;
    std::vector<std::byte> page_bytes_;
    std::uint64_t page_ = none;
    std::uint64_t marked_ = 0;
};

Status mark_extents(DiskFile& device, const MetadataImage& image,
                    const std::vector<std::uint32_t>& extents, AppliedLog& applied) {
    const std::uint64_t bits_total = bits_of(image.superblock);
    const std::uint64_t bits_per_extent = extent_bytes / image.superblock.bytes_per_bit;
    PageMarker marker(device, image);
    for (const std::uint32_t extent : extents) {
        const std::uint64_t first = extent * bits_per_extent;
        if (first >= bits_total) {
            ++applied.extents_beyond;
            continue;
        }
        const std::uint64_t last = std::min(first + bits_per_extent, bits_total) - 1;
        TRY_STATUS(marker.mark({first, last}));
    }
    TRY_STATUS(marker.finish());
    applied.bits_marked = marker.marked();
    return device.flush();
}

Status refuse_contents(const DiskFile& disk) {
    TRY(const std::string contents, probe_signature(disk));
    if (contents.empty()) return ok_status();
    return Error{Errc::exists, 0,
                 text_of("%s holds %s: name another disk, or say --force to overwrite it",
                         disk.path().c_str(), contents.c_str())};
}

Status check_size(const MetadataFile& file, const MetadataImage& image) {
    const std::uint64_t wanted = image.superblock.effective_size_sectors * sector_bytes;
    if (wanted <= image.layout.data_bytes_max) return ok_status();
    return Error{Errc::no_space, 0,
                 text_of("a volume of %" PRIu64 " bytes does not fit: %s leaves %" PRIu64
                         " bytes beside its metadata",
                         wanted, file.disk().path().c_str(), image.layout.data_bytes_max)};
}

Status same_file(const DiskFile& a, const DiskFile& b) {
    struct stat first {};
    struct stat second {};
    if (::fstat(a.fd(), &first) != 0 || ::fstat(b.fd(), &second) != 0) {
        return Error{Errc::io, errno, text_of("fstat failed: %s", std::strerror(errno))};
    }
    const bool same = S_ISBLK(first.st_mode) && S_ISBLK(second.st_mode)
                          ? first.st_rdev == second.st_rdev
                          : first.st_dev == second.st_dev && first.st_ino == second.st_ino;
    if (!same) return ok_status();
    return Error{Errc::invalid, 0,
                 text_of("%s is named for data and for metadata: name no metadata device for "
                         "internal metadata",
                         a.path().c_str())};
}

}  // namespace

Result<MetadataFile> MetadataFile::open(const MetadataTarget& target, DiskAccess access) {
    // The same device twice would be busy by ourselves if it were not looked at before.
    if (!target.metadata.empty()) {
        TRY(const DiskFile data, DiskFile::open(target.disk, DiskAccess::shared_read));
        TRY(const DiskFile metadata, DiskFile::open(target.metadata, DiskAccess::shared_read));
        TRY_STATUS(same_file(data, metadata));
    }
    MetadataFile file;
    TRY(DiskFile disk, DiskFile::open(target.disk, access));
    file.devices_.push_back(std::move(disk));
    if (!target.metadata.empty()) {
        TRY(DiskFile metadata, DiskFile::open(target.metadata, access));
        file.devices_.push_back(std::move(metadata));
    }
    return file;
}

MetadataPlace MetadataFile::place() const {
    return devices_.size() == 1 ? MetadataPlace::internal : MetadataPlace::external;
}

std::uint64_t MetadataFile::superblock_offset() const {
    return superblock_position(place(), placed_for_ != 0 ? placed_for_ : device().size_bytes());
}

Result<MetadataFile::Block> MetadataFile::read_superblock() const {
    Block block;
    TRY_STATUS(device().read(superblock_offset(), block));
    return block;
}

Status MetadataFile::write_superblock(std::span<const std::byte, superblock_bytes> block) {
    TRY_STATUS(device().write(superblock_offset(), block));
    return device().flush();
}

Result<MetadataLayout> MetadataFile::layout_of(const Superblock& superblock) const {
    return check_layout(place(), disk().size_bytes(), device().size_bytes(), superblock);
}

Result<std::vector<std::byte>> MetadataFile::read_activity_log(const MetadataLayout& layout) const {
    if (layout.al_bytes > activity_log_bytes_max) {
        return Error{Errc::limit, 0,
                     text_of("an activity log of %" PRIu64 " bytes, at most %" PRIu64 " are read",
                             layout.al_bytes, activity_log_bytes_max)};
    }
    std::vector<std::byte> log(layout.al_bytes);
    TRY_STATUS(device().read(layout.al_offset, log));
    return log;
}

// Where the copy says that internal metadata was placed, 0: nowhere else than where it is expected.
static std::uint64_t placed_elsewhere(const MetadataFile& file, std::span<const std::byte> copy) {
    if (file.place() == MetadataPlace::external || copy.size() != superblock_bytes) return 0;
    const auto known = decode_superblock(copy.first<superblock_bytes>());
    if (!known) return 0;
    const std::uint64_t bytes = known.value().extension.device_bytes;
    return bytes == file.disk().size_bytes() ? 0 : bytes;
}

// Metadata is moved by writing all of it at its new place, the superblock last, and then the copy
// (docs/on-disk.md, "A disk that grows"). So a superblock at the end of the disk counts if it says
// that it was placed there; before, the old one does.
Result<Superblock> find_superblock(MetadataFile& file, std::span<const std::byte> copy) {
    TRY(const MetadataFile::Block at_end, file.read_superblock());
    auto found = choose_superblock(at_end, copy);
    const std::uint64_t placed_for = placed_elsewhere(file, copy);
    if (placed_for == 0) return found;
    if (found && found.value().extension.device_bytes == file.disk().size_bytes()) return found;
    if (placed_for > file.disk().size_bytes()) {
        return Error{Errc::no_space, 0,
                     text_of("the disk has %" PRIu64 " bytes, and had %" PRIu64
                             " when it was used last: it has shrunk; give it back its size",
                             file.disk().size_bytes(), placed_for)};
    }
    file.assume_placed_for(placed_for);
    TRY(const MetadataFile::Block before, file.read_superblock());
    const auto there = choose_superblock(before, copy);
    if (!there) file.assume_placed_for(0);
    // DRBD knows no device_bytes. It may have grown the disk, or have had one of this size before.
    const bool drbds = found && !found.value().extension.present &&
                       check_layout(file.place(), file.disk().size_bytes(), 0, found.value());
    if (drbds && there) {
        return Error{Errc::corrupt, 0,
                     text_of("%s holds metadata that DRBD wrote at its end, and this node's own "
                             "where it ended when it had %" PRIu64
                             " bytes: nobody can tell which is newer. Clear the 4096 bytes of the "
                             "wrong one, at %" PRIu64 " or %" PRIu64,
                             file.disk().path().c_str(), placed_for,
                             superblock_position(file.place(), file.disk().size_bytes()),
                             superblock_position(file.place(), placed_for))};
    }
    if (drbds) return found;
    if (there || found) return there;
    return found;  // it says why
}

Result<MetadataImage> read_metadata(MetadataFile& file, std::span<const std::byte> copy) {
    MetadataImage image;
    TRY(image.superblock, find_superblock(file, copy));
    TRY(image.layout, file.layout_of(image.superblock));
    TRY(image.activity_log, file.read_activity_log(image.layout));
    return image;
}

Result<MetadataImage> read_metadata(const MetadataTarget& target) {
    TRY(MetadataFile file, MetadataFile::open(target, DiskAccess::shared_read));
    return read_metadata(file);
}

Result<MetadataImage> create_metadata(const MetadataTarget& target, const Superblock& initial,
                                      bool force) {
    TRY(MetadataFile file, MetadataFile::open(target, DiskAccess::exclusive));
    if (!force) {
        TRY_STATUS(refuse_contents(file.disk()));
        if (file.place() == MetadataPlace::external) TRY_STATUS(refuse_contents(file.device()));
    }
    DiskFile& device = file.device();
    MetadataImage image;
    image.superblock = initial;
    TRY(image.layout,
        plan_layout(file.place(), file.disk().size_bytes(), device.size_bytes(), image.superblock));
    if (file.place() == MetadataPlace::internal && initial.extension.present) {
        image.superblock.extension.device_bytes = file.disk().size_bytes();
    }
    TRY_STATUS(check_size(file, image));
    MetadataFile::Block block;
    encode_superblock(image.superblock, block);
    image.activity_log = fresh_activity_log(image.layout);

    // From here to the last write there is no superblock: a crash leaves nothing half-made.
    TRY_STATUS(file.write_superblock(MetadataFile::Block{}));
    TRY_STATUS(device.zero(image.layout.bitmap_offset, image.layout.bitmap_bytes));
    TRY_STATUS(device.write(image.layout.al_offset, image.activity_log));
    TRY_STATUS(device.flush());
    TRY_STATUS(file.write_superblock(block));
    return image;
}

Status wipe_metadata(MetadataFile& file) {
    TRY(const MetadataFile::Block block, file.read_superblock());
    if (!has_metadata_magic(block)) {
        return Error{Errc::not_found, 0,
                     text_of("%s holds no metadata at its place: nothing was changed",
                             file.device().path().c_str())};
    }
    TRY_STATUS(file.write_superblock(MetadataFile::Block{}));
    // The rest is only cleaned up, where it can be found.
    const auto superblock = decode_superblock(block);
    if (!superblock) return ok_status();
    const auto layout = file.layout_of(superblock.value());
    if (!layout) return ok_status();
    TRY_STATUS(file.device().zero(layout.value().al_offset, layout.value().al_bytes));
    TRY_STATUS(file.device().zero(layout.value().bitmap_offset, layout.value().bitmap_bytes));
    return file.device().flush();
}

Result<AppliedLog> apply_activity_log(MetadataFile& file, MetadataImage& image,
                                      std::uint64_t seq_step, const std::string& copy_path) {
    Superblock& superblock = image.superblock;
    AppliedLog applied;
    applied.was_primary = (superblock.flags & md_flag::primary_ind) != 0;
    const bool counts = applied.was_primary && (superblock.flags & md_flag::al_clean) == 0;
    const auto replay =
        replay_activity_log(image.activity_log, superblock.al_stripes, superblock.al_stripe_blocks);
    if (!replay) {
        if (counts) return replay.error();
        applied.warning = replay.error().message;
    } else {
        applied.extents_hot = replay.value().extents.size();
        applied.blocks_corrupt = replay.value().blocks_corrupt;
        if (counts) {
            TRY_STATUS(mark_extents(file.device(), image, replay.value().extents, applied));
        }
    }
    // The choice between disk and copy goes to the disk before the copy changes again.
    TRY(const MetadataFile::Block on_disk, file.read_superblock());
    MetadataFile::Block block;
    encode_superblock(superblock, block);
    if (superblock.extension.present && block != on_disk) TRY_STATUS(file.write_superblock(block));
    // First the word that the log says nothing more: a power cut may tear it while it is emptied.
    superblock.flags |= md_flag::al_clean;
    if (superblock.extension.present) superblock.extension.write_seq += seq_step;
    encode_superblock(superblock, block);
    if (!copy_path.empty()) TRY_STATUS(write_superblock_copy(copy_path, block));
    TRY_STATUS(file.write_superblock(block));

    image.activity_log = fresh_activity_log(image.layout);
    TRY_STATUS(file.device().write(image.layout.al_offset, image.activity_log));
    TRY_STATUS(file.device().flush());
    return applied;
}

Result<BitmapCounts> count_bitmap(const MetadataFile& file, const MetadataImage& image) {
    const std::uint64_t bits = bits_of(image.superblock);
    BitmapCounts counts;
    counts.slots.resize(image.layout.max_peers);
    std::vector<std::byte> chunk(chunk_bytes);
    for (std::uint64_t at = 0; at < image.layout.bitmap_bytes; at += chunk_bytes) {
        const auto part = std::span(chunk).first(
            static_cast<std::size_t>(std::min(chunk_bytes, image.layout.bitmap_bytes - at)));
        TRY_STATUS(file.device().read(image.layout.bitmap_offset + at, part));
        for (std::size_t page = 0; page < part.size(); page += bitmap_page_bytes) {
            const auto bytes = part.subspan(page).first<bitmap_page_bytes>();
            counts.beyond += count_bitmap_page(bytes, (at + page) / bitmap_page_bytes,
                                               image.layout.max_peers, bits, counts.slots);
        }
    }
    return counts;
}

Result<std::vector<std::byte>> read_superblock_copy(const std::string& path) {
    std::vector<std::byte> bytes(superblock_bytes);
    auto file = DiskFile::open(path, DiskAccess::shared_read);
    if (!file && file.error().code == Errc::not_found) return std::vector<std::byte>{};
    if (!file) return file.error();
    if (file.value().size_bytes() != bytes.size()) return std::vector<std::byte>{};
    TRY_STATUS(file.value().read(0, bytes));
    return bytes;
}

Status write_superblock_copy(const std::string& path,
                             std::span<const std::byte, superblock_bytes> block) {
    const std::string directory =
        path.find('/') == std::string::npos ? "." : path.substr(0, path.rfind('/') + 1);
    const std::string fresh = path + ".new";
    const auto failed = [&path](const char* what) {
        const int os_errno = errno;
        return Error{os_errno == ENOSPC ? Errc::no_space : Errc::io, os_errno,
                     text_of("the superblock's copy %s: %s failed: %s", path.c_str(), what,
                             std::strerror(os_errno))};
    };
    const int created = ::open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (created < 0) return failed("creating it");
    ::close(created);
    {
        TRY(DiskFile file, DiskFile::open(fresh, DiskAccess::exclusive));
        TRY_STATUS(file.write(0, block));
        TRY_STATUS(file.flush());
    }
    if (::rename(fresh.c_str(), path.c_str()) != 0) return failed("renaming it");
    const int parent = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (parent < 0) return failed("opening its directory");
    const int synced = ::fsync(parent);
    ::close(parent);
    return synced == 0 ? ok_status() : Status(failed("flushing its directory"));
}

}  // namespace replica
