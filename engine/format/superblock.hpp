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
inline constexpr std::uint32_t consistent = 1U << 0;       // clear: Inconsistent
inline constexpr std::uint32_t primary_ind = 1U << 1;      // a primary may have writes in flight
inline constexpr std::uint32_t was_up_to_date = 1U << 4;   // clear with consistent set: Outdated
inline constexpr std::uint32_t crashed_primary = 1U << 6;  // crashed as primary, not reconciled yet
inline constexpr std::uint32_t al_clean = 1U << 7;         // the activity log has been applied
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
    Uuid bitmap_uuid = uuid_none;  // the generation that the set bits toward this peer start from
    std::uint64_t bitmap_dagtag = 0;
    std::uint32_t flags = 0;         // md_peer_flag
    std::int32_t bitmap_index = -1;  // slot, -1: none

    // Extension. A second base for the same bits: the generation this peer may already carry if it
    // was being admitted to the in-sync set when the connection broke. uuid_none: none.
    Uuid admitting_uuid = uuid_none;

    friend bool operator==(const PeerMetadata&, const PeerMetadata&) = default;
};

// A value of the in-sync set as the quorum register's vote names it (docs/membership.md).
struct VotedSet {
    Uuid generation = uuid_none;
    Uuid parent = uuid_none;
    std::uint64_t generation_seq = 0;
    std::uint64_t change = 0;
    NodeMask members;
    std::int32_t primary = -1;
    friend bool operator==(const VotedSet&, const VotedSet&) = default;
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
    // The in-sync set is a register: in_sync has this place in the order of the sets of its
    // generation (docs/membership.md).
    std::uint64_t set_change = 0;
    // This node's vote on the next set: no lower ballot counts, and in this one it accepted that
    // value. All 0 while no majority is asked (quorum off).
    std::uint64_t vote_ballot = 0;
    std::uint64_t vote_accepted = 0;
    VotedSet vote_value;
    std::uint64_t promoted_at_s = 0;  // wall clock of this node's last promotion, 0: never
    // How it last stopped with writes possibly in flight, until reconciled: 0 it did not, 1 the
    // process ended and the drive kept its cache, 2 the cache may be lost.
    std::uint32_t crash_kind = 0;
    // So often did that cost the drive's cache. A primary without a disk that meets this node again
    // sees by it that writes may be gone, even if the crash was reconciled with others since.
    std::uint32_t cache_losses = 0;
    // The size of the disk at whose end internal metadata was placed: where to look for it after
    // the disk has grown. 0: not known, or external.
    std::uint64_t device_bytes = 0;
    // From the volume's end to here the disk reads as zeroes, on stable storage, so that the volume
    // may grow this far. 0, or less than the volume: not at all.
    std::uint64_t ready_bytes = 0;

    friend bool operator==(const SuperblockExtension&, const SuperblockExtension&) = default;
};

// A superblock as values, not bytes.
struct Superblock {
    std::uint64_t effective_size_sectors = 0;  // agreed size of the volume, 0: never agreed
    Uuid current_uuid = uuid_just_created;
    std::uint64_t members = 0;
    std::uint64_t device_uuid = 0;
    std::uint32_t flags = md_flag::al_clean;  // md_flag
    std::uint32_t md_size_sectors = 0;
    std::int32_t al_offset_sectors = 0;  // relative to the superblock
    std::int32_t bm_offset_sectors = 0;  // relative to the superblock
    std::uint32_t al_extents = 1237;     // slots of the activity log in use
    std::uint32_t bytes_per_bit = block_bytes;
    std::uint32_t max_bio_bytes = io_bytes_max;
    std::uint32_t max_peers = 1;  // bitmap slots
    std::int32_t node_id = -1;
    std::uint32_t al_stripes = 1;
    std::uint32_t al_stripe_blocks = 8;  // 4 KiB blocks a stripe
    std::array<PeerMetadata, nodes_max> peers{};
    std::array<Uuid, history_uuids_max> history{};  // newest first
    SuperblockExtension extension;

    friend bool operator==(const Superblock&, const Superblock&) = default;
};

// The largest number of activity-log slots whose whole table stays in a ring of this many blocks.
std::uint32_t al_extents_limit(std::uint64_t al_blocks);

// Whether every field is in its range: al_stripes 1..1024, stripes * al_stripe_blocks 8..4194304,
// al_extents 1..65534, bytes_per_bit a power of two 4096..1048576, max_peers 1..31, node_id and
// primary_node -1..31, bitmap_index -1..max_peers-1 and no slot given twice, effective_size_sectors
// up to 2^41 (1 PiB). Errors: corrupt, naming the field, its value and its range. Positions are for
// check_layout() (layout.hpp).
Status check_superblock(const Superblock& superblock);

// Writes all 4096 bytes, the extension with its checksum included if extension.present (without it
// the peers' admitting_uuid have no place and are dropped). Asserts check_superblock().
// The encoding is canonical: equal values give equal bytes, and decode(encode(x)) == x.
void encode_superblock(const Superblock& superblock, std::span<std::byte, superblock_bytes> out);

// Whether the block carries the magic number of any DRBD metadata version, be it whole or damaged.
bool has_metadata_magic(std::span<const std::byte, superblock_bytes> bytes);

// Errors: corrupt (no v09 magic; a field out of its range; an extension whose checksum is wrong: a
// torn or damaged block), unsupported (another metadata version, reserved fields in use, an
// extension from a newer Replica).
Result<Superblock> decode_superblock(std::span<const std::byte, superblock_bytes> bytes);

// Offline tools, which do not touch the node's copy, add this to write_seq: the disk is then newer
// than any copy.
inline constexpr std::uint64_t write_seq_offline_step = 16;

// How far the copy may be ahead of the disk: the one write that a crash kept from the disk. After
// that the disk is mended before the copy is written again. Further ahead, the disk is an old copy
// of itself (a restored snapshot).
inline constexpr std::uint64_t copy_lead_max = 1;
static_assert(copy_lead_max < write_seq_offline_step);

// Picks from the block on the disk and the copy in the node's state directory (may be empty: no
// copy) what the node was last promised. Rules and their reasons: docs/on-disk.md, "Two copies".
// The caller's part:
//  - each update is written to the copy, fdatasync, then to the disk with DSYNC, one at a time;
//  - if the choice, encoded, differs from `on_disk`, it goes to the disk before the copy is touched
//    again, because a torn disk and a torn copy together are lost;
//  - if the choice has no extension (DRBD wrote last), the first update adds the extension and
//    leaves every v09 field as it is, because a mix of two v09 parts has no checksum to give it
//    away.
// Errors: corrupt (nothing valid is left, the disk is a stale copy of itself, or disk and copy
// claim the same write_seq with different contents), unsupported (as decode_superblock), state
// (both are whole, but of two disks; nothing else gives this code).
Result<Superblock> choose_superblock(std::span<const std::byte, superblock_bytes> on_disk,
                                     std::span<const std::byte> copy);

}  // namespace replica
