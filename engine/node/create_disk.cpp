// SPDX-License-Identifier: Apache-2.0
// See create_disk.hpp.
#include "engine/node/create_disk.hpp"

#include <sys/stat.h>

#include <algorithm>

#include "engine/base/text.hpp"
#include "engine/io/metadata_file.hpp"
#include "engine/io/process.hpp"
#include "engine/node/resync_snapshot.hpp"

namespace replica {
namespace {

// Sizes of volumes are whole blocks of the bitmap, so that every client can address all of it.
constexpr std::uint64_t size_unit = block_bytes;

// A way back that has begun is given up, unless LVM is still to put the snapshot back: it would do
// that below the new volume.
Status end_restore(const std::string& name, const DiskPaths& paths, const LvmProgram& lvm) {
    const auto note = load_snapshot_note(paths.copy);
    if (!note || !note.value() || !note.value()->restoring) return ok_status();
    const auto snapshot = ThinSnapshot::of(paths.disk, name, lvm);
    if (snapshot) {
        TRY(const bool waits, snapshot.value().exists());
        if (waits) return snapshot.value().still_waits();
    }
    remove_snapshot_note(paths.copy);
    return ok_status();
}

}  // namespace

bool same_disk(const std::string& one, const std::string& other) {
    struct stat a {
    }, b{};
    if (one.empty() || other.empty()) return false;
    if (::stat(one.c_str(), &a) != 0 || ::stat(other.c_str(), &b) != 0) return one == other;
    if (S_ISBLK(a.st_mode) && S_ISBLK(b.st_mode)) return a.st_rdev == b.st_rdev;
    return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

Status create_disk(const ResourceConfig& config, const CreateOptions& options,
                   const DiskPaths& paths, const LvmProgram& lvm) {
    TRY_STATUS(end_restore(config.name, paths, lvm));
    Superblock initial;
    initial.node_id = config.node_id;
    initial.max_peers =
        options.max_peers != 0
            ? options.max_peers
            : std::max<std::uint32_t>(1, static_cast<std::uint32_t>(config.peers.size()));
    if (initial.max_peers < config.peers.size() || initial.max_peers > bitmap_slots_max) {
        return Error{Errc::invalid, 0,
                     text_of("%u bitmap slots for %zu peers: 1 to %u, and one for each peer",
                             initial.max_peers, config.peers.size(), bitmap_slots_max)};
    }
    initial.al_extents = config.options.al_extents;
    initial.device_uuid = random_u64();
    initial.extension.present = true;
    initial.extension.write_seq = 1;
    initial.extension.in_sync = NodeMask::of(config.node_id);

    const MetadataTarget target{paths.disk, paths.metadata};
    std::uint64_t size = options.size_bytes;
    if (size == 0) {
        TRY(const MetadataFile file, MetadataFile::open(target, DiskAccess::shared_read));
        Superblock planned = initial;
        TRY(const MetadataLayout layout, plan_layout(file.place(), file.disk().size_bytes(),
                                                     file.device().size_bytes(), planned));
        size = layout.data_bytes_max / size_unit * size_unit;
        if (size == 0) return Error{Errc::no_space, 0, paths.disk + " has no room for a volume"};
    }
    if (size % size_unit != 0) {
        return Error{Errc::invalid, 0,
                     text_of("a volume of %llu bytes: its size is a multiple of %llu",
                             static_cast<unsigned long long>(size),
                             static_cast<unsigned long long>(size_unit))};
    }
    initial.effective_size_sectors = size / sector_bytes;
    TRY(const MetadataImage image, create_metadata(target, initial, options.force));
    MetadataFile::Block block;
    encode_superblock(image.superblock, block);
    return write_superblock_copy(paths.copy, block);
}

}  // namespace replica
