// SPDX-License-Identifier: Apache-2.0
// See restore_disk.hpp.
#include "engine/node/restore_disk.hpp"

#include <unistd.h>

#include <cinttypes>
#include <ctime>
#include <span>
#include <utility>

#include "engine/base/text.hpp"
#include "engine/io/metadata_file.hpp"
#include "engine/io/process.hpp"
#include "engine/mapper/thin_snapshot.hpp"
#include "engine/node/resync_snapshot.hpp"

namespace replica {
namespace {

std::string date_of(std::int64_t seconds) {
    const std::time_t time = seconds;
    std::tm parts{};
    char text[64] = {};
    if (::localtime_r(&time, &parts) != nullptr) {
        std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &parts);
    }
    return text;
}

// The last label, whose sizes still count. A death on the way may have left the disk without one.
Result<Superblock> last_label(const DiskPaths& paths, const MetadataTarget& target) {
    const auto copy = read_superblock_copy(paths.copy);
    if (copy && copy.value().size() == superblock_bytes) {
        const std::span<const std::byte> bytes(copy.value());
        auto label = decode_superblock(bytes.first<superblock_bytes>());
        if (label) return label;
    }
    TRY(MetadataImage image, read_metadata(target));
    return std::move(image.superblock);
}

// The peers have forgotten which of its blocks are old: what they sent is gone. So the label that
// came back with the snapshot must not be believed, and a new one claims nothing.
Status relabel(const DiskPaths& paths) {
    const MetadataTarget target{paths.disk, paths.metadata};
    TRY(const Superblock old, last_label(paths, target));
    Superblock initial;
    initial.node_id = old.node_id;
    initial.max_peers = old.max_peers;
    initial.al_extents = old.al_extents;
    initial.effective_size_sectors = old.effective_size_sectors;
    initial.device_uuid = random_u64();
    initial.extension.present = true;
    initial.extension.write_seq = 1;
    if (old.node_id >= 0) initial.extension.in_sync.add(static_cast<NodeId>(old.node_id));
    TRY(const MetadataImage fresh, create_metadata(target, initial, true));
    MetadataFile::Block block;
    encode_superblock(fresh.superblock, block);
    return write_superblock_copy(paths.copy, block);
}

}  // namespace

Result<std::string> restore_before_resync(const DiskPaths& paths, const std::string& resource) {
    TRY(auto note, load_snapshot_note(paths.copy));
    if (!note) {
        return Error{Errc::not_found, 0,
                     resource +
                         " has no snapshot of before a resync: none is taken without the option "
                         "snapshot-before-resync, and it goes when the resync has ended"};
    }
    TRY(const ThinSnapshot snapshot, ThinSnapshot::of(paths.disk, resource));
    TRY(const bool there, snapshot.exists());
    if (!there && !note->restoring) {
        remove_snapshot_note(paths.copy);
        return Error{Errc::not_found, 0, "the snapshot " + snapshot.name() + " is gone"};
    }
    // One that is in use would be put back when nobody thinks of it any more.
    if (there) TRY_STATUS(snapshot.check_unused());
    note->restoring = true;
    TRY_STATUS(save_snapshot_note(paths.copy, *note));
    if (there) TRY_STATUS(snapshot.restore());
    TRY_STATUS(relabel(paths));
    ::unlink(failure_note(paths).c_str());
    remove_snapshot_note(paths.copy);
    return text_of("%s has the data of generation %016" PRIX64
                   " as of %s again, and fresh metadata",
                   paths.disk.c_str(), note->generation, date_of(note->taken_at).c_str());
}

}  // namespace replica
