// SPDX-License-Identifier: Apache-2.0
// Where superblock, activity log, bitmap and data lie, internal and flexible external, and the
// bitmap's interleaved bytes. Same arithmetic as DRBD 9 and drbdmeta; docs/on-disk.md has it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/base/result.hpp"
#include "engine/base/units.hpp"
#include "engine/format/superblock.hpp"

namespace replica {

enum class MetadataPlace : std::uint8_t { internal, external };

// All positions in bytes from the start of the metadata device, which for internal metadata is the
// data device itself. All are multiples of 4 KiB.
struct MetadataLayout {
    MetadataPlace place = MetadataPlace::internal;
    std::uint64_t superblock_offset = 0;
    std::uint64_t al_offset = 0;
    std::uint64_t al_bytes = 0;
    std::uint64_t bitmap_offset = 0;
    // All slots, rounded up to 4 KiB. Internal: what DRBD reserves, for the whole device. External:
    // what data_bytes_max needs; the rest of the metadata device is unused.
    std::uint64_t bitmap_bytes = 0;
    std::uint64_t data_bytes_max = 0;  // the largest volume that fits, a multiple of 512
    std::uint32_t max_peers = 1;
};

// For a superblock that is to be made. `metadata_bytes` is the size of the metadata device (ignored
// for internal). Fills md_size_sectors, al_offset_sectors and bm_offset_sectors of `superblock`
// from its al_stripes, al_stripe_blocks, bytes_per_bit and max_peers. Errors: no_space (a device is
// too small), limit (it is too large to describe), invalid (a field out of range).
Result<MetadataLayout> plan_layout(MetadataPlace place, std::uint64_t data_device_bytes,
                                   std::uint64_t metadata_bytes, Superblock& superblock);

// For a superblock that was read: recomputes the layout, for the size that the device had when the
// metadata was placed if that is on record, and refuses what differs, as DRBD does.
// Errors: corrupt (offsets differ or overlap), no_space (the device shrank below what is recorded).
Result<MetadataLayout> check_layout(MetadataPlace place, std::uint64_t data_device_bytes,
                                    std::uint64_t metadata_bytes, const Superblock& superblock);

// Offset of the superblock on a device of this size. Internal: the last aligned 4 KiB, 0 if there
// is none.
std::uint64_t superblock_position(MetadataPlace place, std::uint64_t device_bytes);

// Bytes that the bitmap of `max_peers` slots takes for a volume of this size, rounded up to 4 KiB.
std::uint64_t bitmap_bytes_for(std::uint64_t volume_bytes, std::uint32_t bytes_per_bit,
                               std::uint32_t max_peers);

// The on-disk bitmap is little-endian 32-bit words, interleaved over the slots: word w of slot s
// lies at word index w * max_peers + s. (bitmap_page.hpp has whole pages.)
inline std::uint64_t bitmap_disk_word(std::uint64_t bit, std::uint32_t slot,
                                      std::uint32_t max_peers) {
    return (bit >> 5) * max_peers + slot;
}

}  // namespace replica
