// SPDX-License-Identifier: Apache-2.0
// DRBD's v09 superblock and Replica's extension record in its zero bytes. Bytes only: no IO.
// The layout, with its sources, is docs/on-disk.md.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/base/result.hpp"
#include "engine/base/units.hpp"

namespace replica {

inline constexpr std::size_t superblock_bytes = 4096;
inline constexpr std::uint32_t v09_magic = 0x8374026d;
inline constexpr unsigned history_uuids_max = 32;
inline constexpr unsigned bitmap_slots_max = 31;

// A generation id. Bit 0 tells that it was made by a primary and is not part of its identity.
using Uuid = std::uint64_t;
inline constexpr Uuid uuid_none = 0;
inline constexpr Uuid uuid_just_created = 4;
inline constexpr Uuid uuid_primary_bit = 1;
constexpr Uuid uuid_identity(Uuid uuid) { return uuid & ~uuid_primary_bit; }
constexpr bool uuid_equal(Uuid a, Uuid b) { return uuid_identity(a) == uuid_identity(b); }

// v09 device flags (offset 56).
namespace md_flag {
inline constexpr std::uint32_t consistent = 1U << 0;        // clear: Inconsistent
inline constexpr std::uint32_t primary_ind = 1U << 1;       // a primary may have writes in flight
inline constexpr std::uint32_t was_up_to_date = 1U << 4;    // clear with consistent set: Outdated
inline constexpr std::uint32_t crashed_primary = 1U << 6;   // crashed as primary, not reconciled yet
inline constexpr std::uint32_t al_clean = 1U << 7;          // the activity log has been applied
inline constexpr std::uint32_t al_disabled = 1U << 8;
inline constexpr std::uint32_t primary_lost_quorum = 1U << 9;
inline constexpr std::uint32_t have_quorum = 1U << 10;
}  // namespace md_flag

// v09 flags of one peer's record.
namespace md_peer_flag {
inline constexpr std::uint32_t connected = 1U << 0;
inline constexpr std::uint32_t outdated = 1U << 1;
inline constexpr std::uint32_t fencing = 1U << 2;
inline constexpr std::uint32_t full_sync = 1U << 3;
inline constexpr std::uint32_t device_seen = 1U << 4;
inline constexpr std::uint32_t node_exists = 1U << 16;
}  // namespace md_peer_flag

struct PeerMetadata {
    Uuid bitmap_uuid = uuid_none;    // the generation that the set bits toward this peer start from
    std::uint64_t bitmap_dagtag = 0;
    std::uint32_t flags = 0;         // md_peer_flag
    std::int32_t bitmap_index = -1;  // slot, -1: none

    // Extension. A second base for the same bits: the generation this peer may already carry if it
    // was being admitted to the in-sync set when the connection broke. uuid_none: none.
    Uuid admitting_uuid = uuid_none;
};

// What v09 has no room for. Valid only if `present`; absent over a valid v09 superblock means that
// DRBD wrote last, and it is then rebuilt from the v09 fields.
struct SuperblockExtension {
    bool present = false;
    std::uint64_t write_seq = 0;       // +1 at each superblock write; picks the newer of two copies
    std::uint64_t generation_seq = 0;  // +1 at each new generation in a lineage
    Uuid parent_uuid = uuid_none;      // the generation that current_uuid was opened from
    NodeMask in_sync;                  // the in-sync set S of current_uuid, own node included
    std::int32_t primary_node = -1;    // who was primary in current_uuid, -1: nobody
    std::array<std::uint8_t, 16> volume_id{};  // names the volume; equal on all replicas, 0: unset
    std::array<std::uint8_t, 16> boot_id{};    // the machine's boot during which it was last in use
    std::uint64_t vote_ballot = 0;     // place of the quorum register (design D6); 0 with quorum off
    std::uint64_t vote_accepted = 0;
};

// A superblock as values, not bytes.
struct Superblock {
    std::uint64_t effective_size_sectors = 0;  // agreed size of the volume, 0: never agreed
    Uuid current_uuid = uuid_just_created;
    std::uint64_t members = 0;
    std::uint64_t device_uuid = 0;
    std::uint32_t flags = md_flag::al_clean;   // md_flag
    std::uint32_t md_size_sectors = 0;
    std::int32_t al_offset_sectors = 0;        // relative to the superblock
    std::int32_t bm_offset_sectors = 0;        // relative to the superblock
    std::uint32_t al_extents = 1237;           // slots of the activity log in use
    std::uint32_t bytes_per_bit = block_bytes;
    std::uint32_t max_bio_bytes = io_bytes_max;
    std::uint32_t max_peers = 1;               // bitmap slots
    std::int32_t node_id = -1;
    std::uint32_t al_stripes = 1;
    std::uint32_t al_stripe_blocks = 8;        // 4 KiB blocks a stripe
    std::array<PeerMetadata, nodes_max> peers{};
    std::array<Uuid, history_uuids_max> history{};  // newest first
    SuperblockExtension extension;
};

// Writes all 4096 bytes, the extension with its checksum included if extension.present.
void encode_superblock(const Superblock& superblock, std::span<std::byte, superblock_bytes> out);

// Errors: corrupt (no v09 magic; a field out of its range; an extension whose checksum is wrong: a
// torn or damaged block), unsupported (another metadata version, an extension from a newer Replica).
Result<Superblock> decode_superblock(std::span<const std::byte, superblock_bytes> bytes);

// Picks from the block on the disk and the copy in the node's state directory (may be empty: no
// copy) what the node was last promised. Rules and their reasons: docs/on-disk.md, "Two copies".
Result<Superblock> choose_superblock(std::span<const std::byte, superblock_bytes> on_disk,
                                     std::span<const std::byte> copy);

}  // namespace replica
