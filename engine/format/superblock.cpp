// SPDX-License-Identifier: Apache-2.0
// Encodes, decodes and judges superblocks. Every field's place is a constant below; the static
// assertions tie them to each other, and tests/golden ties them to what drbdmeta writes.
// Described byte by byte in docs/on-disk.md.
#include "engine/format/superblock.hpp"

#include <algorithm>
#include <bit>
#include <cinttypes>
#include <optional>

#include "engine/base/crc32c.hpp"
#include "engine/base/endian.hpp"
#include "engine/base/text.hpp"

namespace replica {
namespace {

using Block = std::span<const std::byte, superblock_bytes>;

// The v09 part. All fields are big-endian.
namespace at {
constexpr std::size_t effective_size = 0;
constexpr std::size_t current_uuid = 8;
constexpr std::size_t members = 16;
constexpr std::size_t reserved_0 = 24;  // three u64
constexpr std::size_t device_uuid = 48;
constexpr std::size_t flags = 56;
constexpr std::size_t magic = 60;
constexpr std::size_t md_size = 64;
constexpr std::size_t al_offset = 68;
constexpr std::size_t al_extents = 72;
constexpr std::size_t bm_offset = 76;
constexpr std::size_t bytes_per_bit = 80;
constexpr std::size_t max_bio_bytes = 84;
constexpr std::size_t max_peers = 88;
constexpr std::size_t node_id = 92;
constexpr std::size_t al_stripes = 96;
constexpr std::size_t al_stripe_blocks = 100;
constexpr std::size_t reserved_1 = 104;  // two u32
constexpr std::size_t peers = 112;
constexpr std::size_t history = 1136;
constexpr std::size_t extension = 1392;
}  // namespace at

namespace peer_at {
constexpr std::size_t bitmap_uuid = 0;
constexpr std::size_t bitmap_dagtag = 8;
constexpr std::size_t flags = 16;
constexpr std::size_t bitmap_index = 20;
constexpr std::size_t reserved = 24;  // two u32
constexpr std::size_t bytes = 32;
}  // namespace peer_at

static_assert(at::reserved_0 + 3 * 8 == at::device_uuid);
static_assert(at::flags == 56 && at::magic == 60 && at::max_peers == 88 && at::node_id == 92);
static_assert(at::reserved_1 + 2 * 4 == at::peers);
static_assert(at::peers + nodes_max * peer_at::bytes == at::history);
static_assert(at::history + history_uuids_max * 8 == at::extension);
static_assert(peer_at::reserved + 2 * 4 == peer_at::bytes);

// The extension, from the block's start. Also big-endian. Magic, version and checksum keep their
// places and their meaning in all versions.
namespace ext_at {
constexpr std::size_t magic = at::extension;
constexpr std::size_t version = 1400;
constexpr std::size_t checksum = 1404;
constexpr std::size_t write_seq = 1408;
constexpr std::size_t generation_seq = 1416;
constexpr std::size_t parent_uuid = 1424;
constexpr std::size_t in_sync = 1432;
constexpr std::size_t primary_node = 1436;
constexpr std::size_t volume_id = 1440;
constexpr std::size_t boot_id = 1456;
constexpr std::size_t vote_ballot = 1472;
constexpr std::size_t vote_accepted = 1480;
constexpr std::size_t admitting_uuids = 1488;  // 32 u64, by node id
constexpr std::size_t promoted_at = 1744;
constexpr std::size_t crash_kind = 1752;
constexpr std::size_t cache_losses = 1756;
constexpr std::size_t device_bytes = 1760;
constexpr std::size_t ready_bytes = 1768;
// Since version 2; zero in version 1.
constexpr std::size_t set_change = 1776;
constexpr std::size_t vote_generation = 1784;
constexpr std::size_t vote_parent = 1792;
constexpr std::size_t vote_generation_seq = 1800;
constexpr std::size_t vote_change = 1808;
constexpr std::size_t vote_members = 1816;
constexpr std::size_t vote_primary = 1820;
constexpr std::size_t reserved = 1824;  // zero up to the end
}  // namespace ext_at

static_assert(ext_at::magic + 8 == ext_at::version && ext_at::version + 4 == ext_at::checksum);
static_assert(ext_at::checksum + 4 == ext_at::write_seq);
static_assert(ext_at::write_seq + 3 * 8 == ext_at::in_sync);
static_assert(ext_at::primary_node + 4 == ext_at::volume_id);
static_assert(ext_at::volume_id + 16 == ext_at::boot_id && ext_at::boot_id + 16 == 1472);
static_assert(ext_at::vote_accepted + 8 == ext_at::admitting_uuids);
static_assert(ext_at::admitting_uuids + nodes_max * 8 == ext_at::promoted_at);
static_assert(ext_at::promoted_at + 8 == ext_at::crash_kind);
static_assert(ext_at::crash_kind + 4 == ext_at::cache_losses);
static_assert(ext_at::cache_losses + 4 == ext_at::device_bytes);
static_assert(ext_at::ready_bytes + 8 == ext_at::set_change);
static_assert(ext_at::set_change + 5 * 8 == ext_at::vote_members);
static_assert(ext_at::vote_primary + 4 == ext_at::reserved);
static_assert(ext_at::reserved < superblock_bytes);
// What tells a torn block's two halves apart (magic to vote) must not tear itself.
static_assert(ext_at::magic / 512 == (ext_at::admitting_uuids - 1) / 512);

constexpr std::uint64_t extension_magic = 0x5265706c69636120;  // "Replica "
constexpr std::uint32_t extension_version = 2;                 // written; version 1 is read as well

constexpr std::uint32_t v06_magic = 0x83740269;
constexpr std::uint32_t v07_magic = 0x8374026a;
constexpr std::uint32_t v08_unclean_magic = 0x8374026c;  // v08 itself: 0x8374026b

constexpr std::uint64_t effective_size_sectors_max = std::uint64_t{1} << 41;  // 1 PiB
constexpr std::uint32_t al_stripes_max = 1024;
constexpr std::uint64_t al_blocks_min = 8;
constexpr std::uint64_t al_blocks_max = std::uint64_t{4} << 20;
constexpr std::uint32_t al_slots_max = 65534;
constexpr std::uint32_t bytes_per_bit_max = 1U << 20;

// Reads and writes fields of either part. A signed field is its two's complement.
struct Reader {
    Block bytes;
    std::uint64_t u64(std::size_t at) const { return load_be<std::uint64_t>(&bytes[at]); }
    std::uint32_t u32(std::size_t at) const { return load_be<std::uint32_t>(&bytes[at]); }
    std::int32_t s32(std::size_t at) const { return static_cast<std::int32_t>(u32(at)); }
    std::array<std::uint8_t, 16> id(std::size_t at) const {
        std::array<std::uint8_t, 16> id;
        std::memcpy(id.data(), &bytes[at], id.size());
        return id;
    }
    bool zero(std::size_t from, std::size_t to) const {
        return std::all_of(&bytes[from], bytes.data() + to,
                           [](std::byte b) { return b == std::byte{0}; });
    }
};

struct Writer {
    std::span<std::byte, superblock_bytes> bytes;
    void u64(std::size_t at, std::uint64_t value) { store_be(&bytes[at], value); }
    void u32(std::size_t at, std::uint32_t value) { store_be(&bytes[at], value); }
    void s32(std::size_t at, std::int32_t value) { u32(at, static_cast<std::uint32_t>(value)); }
    void id(std::size_t at, const std::array<std::uint8_t, 16>& id) {
        std::memcpy(&bytes[at], id.data(), id.size());
    }
};

std::uint32_t block_checksum(Block bytes) {
    constexpr std::array<std::byte, 4> no_checksum{};
    constexpr std::size_t behind = ext_at::checksum + no_checksum.size();
    std::uint32_t crc = ~std::uint32_t{0};
    crc = crc32c_update(crc, bytes.first<ext_at::checksum>());
    crc = crc32c_update(crc, no_checksum);
    return ~crc32c_update(crc, bytes.subspan<behind>());
}

enum class BlockKind {
    foreign,        // no magic of DRBD's family
    other_version,  // v06, v07, v08
    drbd,           // v09, and zeroes where the extension would be: DRBD wrote it
    ours,           // v09 with an extension whose checksum is right
    damaged,        // v09, and neither zeroes nor a whole extension
};

BlockKind kind_of(Block bytes) {
    const Reader in{bytes};
    const std::uint32_t magic = in.u32(at::magic);
    if (magic >= v06_magic && magic <= v08_unclean_magic) return BlockKind::other_version;
    if (magic != v09_magic) return BlockKind::foreign;
    if (in.zero(at::extension, superblock_bytes)) return BlockKind::drbd;
    if (in.u64(ext_at::magic) != extension_magic) return BlockKind::damaged;
    return in.u32(ext_at::checksum) == block_checksum(bytes) ? BlockKind::ours : BlockKind::damaged;
}

Error other_version_error(std::uint32_t magic) {
    const char* const version = magic == v06_magic ? "v06" : magic == v07_magic ? "v07" : "v08";
    return Error{Errc::unsupported, 0,
                 text_of("DRBD metadata %s found, Replica reads v09: with the volume down "
                         "everywhere, run drbdmeta apply-al and then drbdmeta create-md with v09, "
                         "which converts it in place",
                         version)};
}

Error corrupt_error(std::string message) { return Error{Errc::corrupt, 0, std::move(message)}; }

void decode_v09(const Reader& in, Superblock& superblock) {
    superblock.effective_size_sectors = in.u64(at::effective_size);
    superblock.current_uuid = in.u64(at::current_uuid);
    superblock.members = in.u64(at::members);
    superblock.device_uuid = in.u64(at::device_uuid);
    superblock.flags = in.u32(at::flags);
    superblock.md_size_sectors = in.u32(at::md_size);
    superblock.al_offset_sectors = in.s32(at::al_offset);
    superblock.bm_offset_sectors = in.s32(at::bm_offset);
    superblock.al_extents = in.u32(at::al_extents);
    superblock.bytes_per_bit = in.u32(at::bytes_per_bit);
    superblock.max_bio_bytes = in.u32(at::max_bio_bytes);
    superblock.max_peers = in.u32(at::max_peers);
    superblock.node_id = in.s32(at::node_id);
    superblock.al_stripes = in.u32(at::al_stripes);
    superblock.al_stripe_blocks = in.u32(at::al_stripe_blocks);
    if (superblock.al_stripes == 0 && superblock.al_stripe_blocks == 0) {
        superblock.al_stripes = 1;  // older than stripes
        superblock.al_stripe_blocks = 8;
    }
    for (std::size_t n = 0; n < nodes_max; ++n) {
        const std::size_t peer = at::peers + n * peer_at::bytes;
        superblock.peers[n].bitmap_uuid = in.u64(peer + peer_at::bitmap_uuid);
        superblock.peers[n].bitmap_dagtag = in.u64(peer + peer_at::bitmap_dagtag);
        superblock.peers[n].flags = in.u32(peer + peer_at::flags);
        superblock.peers[n].bitmap_index = in.s32(peer + peer_at::bitmap_index);
    }
    for (std::size_t i = 0; i < history_uuids_max; ++i) {
        superblock.history[i] = in.u64(at::history + 8 * i);
    }
}

void decode_extension(const Reader& in, Superblock& superblock) {
    SuperblockExtension& extension = superblock.extension;
    extension.present = true;
    extension.write_seq = in.u64(ext_at::write_seq);
    extension.generation_seq = in.u64(ext_at::generation_seq);
    extension.parent_uuid = in.u64(ext_at::parent_uuid);
    extension.in_sync = NodeMask{in.u32(ext_at::in_sync)};
    extension.primary_node = in.s32(ext_at::primary_node);
    extension.volume_id = in.id(ext_at::volume_id);
    extension.boot_id = in.id(ext_at::boot_id);
    extension.vote_ballot = in.u64(ext_at::vote_ballot);
    extension.vote_accepted = in.u64(ext_at::vote_accepted);
    extension.promoted_at_s = in.u64(ext_at::promoted_at);
    extension.crash_kind = in.u32(ext_at::crash_kind);
    extension.cache_losses = in.u32(ext_at::cache_losses);
    extension.device_bytes = in.u64(ext_at::device_bytes);
    extension.ready_bytes = in.u64(ext_at::ready_bytes);
    // A set of version 1 was never changed within its generation by number, and nobody voted.
    if (in.u32(ext_at::version) >= 2) {
        extension.set_change = in.u64(ext_at::set_change);
        VotedSet& vote = extension.vote_value;
        vote.generation = in.u64(ext_at::vote_generation);
        vote.parent = in.u64(ext_at::vote_parent);
        vote.generation_seq = in.u64(ext_at::vote_generation_seq);
        vote.change = in.u64(ext_at::vote_change);
        vote.members = NodeMask{in.u32(ext_at::vote_members)};
        vote.primary = in.s32(ext_at::vote_primary);
    }
    for (std::size_t n = 0; n < nodes_max; ++n) {
        superblock.peers[n].admitting_uuid = in.u64(ext_at::admitting_uuids + 8 * n);
    }
}

bool reserved_fields_used(const Reader& in) {
    bool used = !in.zero(at::reserved_0, at::device_uuid) || !in.zero(at::reserved_1, at::peers);
    for (std::size_t n = 0; n < nodes_max; ++n) {
        const std::size_t peer = at::peers + n * peer_at::bytes;
        used = used || !in.zero(peer + peer_at::reserved, peer + peer_at::bytes);
    }
    return used;
}

void encode_extension(const Superblock& superblock, Writer out) {
    const SuperblockExtension& extension = superblock.extension;
    out.u64(ext_at::magic, extension_magic);
    out.u32(ext_at::version, extension_version);
    out.u64(ext_at::write_seq, extension.write_seq);
    out.u64(ext_at::generation_seq, extension.generation_seq);
    out.u64(ext_at::parent_uuid, extension.parent_uuid);
    out.u32(ext_at::in_sync, extension.in_sync.bits);
    out.s32(ext_at::primary_node, extension.primary_node);
    out.id(ext_at::volume_id, extension.volume_id);
    out.id(ext_at::boot_id, extension.boot_id);
    out.u64(ext_at::vote_ballot, extension.vote_ballot);
    out.u64(ext_at::vote_accepted, extension.vote_accepted);
    out.u64(ext_at::promoted_at, extension.promoted_at_s);
    out.u32(ext_at::crash_kind, extension.crash_kind);
    out.u32(ext_at::cache_losses, extension.cache_losses);
    out.u64(ext_at::device_bytes, extension.device_bytes);
    out.u64(ext_at::ready_bytes, extension.ready_bytes);
    out.u64(ext_at::set_change, extension.set_change);
    const VotedSet& vote = extension.vote_value;
    out.u64(ext_at::vote_generation, vote.generation);
    out.u64(ext_at::vote_parent, vote.parent);
    out.u64(ext_at::vote_generation_seq, vote.generation_seq);
    out.u64(ext_at::vote_change, vote.change);
    out.u32(ext_at::vote_members, vote.members.bits);
    out.s32(ext_at::vote_primary, vote.primary);
    for (std::size_t n = 0; n < nodes_max; ++n) {
        out.u64(ext_at::admitting_uuids + 8 * n, superblock.peers[n].admitting_uuid);
    }
    out.u32(ext_at::checksum, block_checksum(out.bytes));
}

Status in_range(const char* field, std::int64_t value, std::int64_t low, std::int64_t high) {
    if (value >= low && value <= high) return ok_status();
    return corrupt_error(text_of("superblock: %s is %" PRId64 ", allowed are %" PRId64 "..%" PRId64,
                                 field, value, low, high));
}

Status check_slots(const Superblock& superblock) {
    std::uint32_t taken = 0;
    for (std::size_t n = 0; n < nodes_max; ++n) {
        const std::int32_t slot = superblock.peers[n].bitmap_index;
        if (slot == -1) continue;
        const auto slot_end = static_cast<std::int64_t>(superblock.max_peers) - 1;
        TRY_STATUS(in_range("a peer's bitmap_index", slot, -1, slot_end));
        if (((taken >> slot) & 1U) != 0) {
            return corrupt_error(
                text_of("superblock: bitmap slot %d is given to two peers", int{slot}));
        }
        taken |= std::uint32_t{1} << slot;
    }
    return ok_status();
}

// Whether the copy describes what is, or was, on this disk. In the life of one volume a node's
// identity is set once, so that every mix of two of its blocks shows it; zero means "not yet set".
bool same_volume(const Reader& disk, bool disk_has_extension, const Superblock& copy) {
    constexpr std::array<std::uint8_t, 16> unset{};
    const std::int32_t disk_node = disk.s32(at::node_id);
    if (disk_node != copy.node_id && disk_node != -1) return false;
    if (disk.u64(at::device_uuid) != copy.device_uuid) return false;
    if (!disk_has_extension) return copy.device_uuid != 0;
    const auto disk_volume = disk.id(ext_at::volume_id);
    const auto& copy_volume = copy.extension.volume_id;
    if (disk_volume == copy_volume) return copy.device_uuid != 0 || copy_volume != unset;
    return copy.device_uuid != 0 && (disk_volume == unset || copy_volume == unset);
}

// Whether two whole blocks are of two disks. What is not set yet says nothing.
bool another_disk(const Superblock& disk, const Superblock& copy) {
    constexpr std::array<std::uint8_t, 16> unset{};
    const auto& volume = disk.extension.volume_id;
    const auto& copy_volume = copy.extension.volume_id;
    const bool device_set = disk.device_uuid != 0 && copy.device_uuid != 0;
    const bool volume_set = volume != unset && copy_volume != unset;
    return (device_set && disk.device_uuid != copy.device_uuid) ||
           (volume_set && volume != copy_volume);
}

Error another_disk_error(const Superblock& disk, const Superblock& copy) {
    return {Errc::state, 0,
            text_of("this is not the disk that was used here last: its metadata is of device "
                    "%016" PRIX64 ", node id %d, and that disk is device %016" PRIX64
                    ", node id %d. Correct the disk's path; or, to take this disk for good, remove "
                    "the resource, then adopt it with this disk's data, or create it anew with "
                    "--force",
                    disk.device_uuid, int{disk.node_id}, copy.device_uuid, int{copy.node_id})};
}

Error stale_disk_error(std::uint64_t disk_seq, std::uint64_t copy_seq) {
    return corrupt_error(
        text_of("this disk is an old copy of itself: its superblock is number %" PRIu64
                ", but this node has written number %" PRIu64 " to it. If a snapshot or backup was "
                "restored on purpose, remove the resource here and create it again with --force, "
                "so that everything is copied from a peer",
                disk_seq, copy_seq));
}

// Both blocks are whole and of the same volume.
Result<Superblock> newer_of(const Superblock& disk, const Superblock& copy) {
    const std::uint64_t disk_seq = disk.extension.write_seq;
    const std::uint64_t copy_seq = copy.extension.write_seq;
    if (copy_seq < disk_seq) return disk;
    if (copy_seq - disk_seq > copy_lead_max) return stale_disk_error(disk_seq, copy_seq);
    if (copy_seq == disk_seq && !(copy == disk)) {
        return corrupt_error(
            text_of("the disk's superblock and this node's copy of it differ but carry the same "
                    "number %" PRIu64
                    ": another node or program has written to this disk. Stop it, "
                    "then invalidate the volume here",
                    disk_seq));
    }
    return copy;
}

// The disk's block is a mix of two writes, or was damaged.
Result<Superblock> repaired(Block on_disk, const std::optional<Superblock>& copy) {
    const Reader disk{on_disk};
    const bool has_extension = disk.u64(ext_at::magic) == extension_magic;
    if (!copy || !same_volume(disk, has_extension, *copy)) {
        return corrupt_error(
            text_of("the superblock fails its checksum (a torn write or damage) and this node has "
                    "%s of it: give back the node's state directory, or create the metadata anew "
                    "and resync from a peer",
                    copy ? "only another volume's copy" : "no valid copy"));
    }
    if (has_extension) {
        // Intact enough to show its number, a torn block is at most as far behind as a whole one.
        const std::uint64_t disk_seq = disk.u64(ext_at::write_seq);
        const std::uint64_t copy_seq = copy->extension.write_seq;
        if (copy_seq < disk_seq) {
            return corrupt_error(
                text_of("the superblock fails its checksum (a torn write or damage) and this "
                        "node's copy, number %" PRIu64 ", is older than number %" PRIu64
                        " on the disk: create the metadata anew and resync from a peer",
                        copy_seq, disk_seq));
        }
        if (copy_seq - disk_seq > copy_lead_max) return stale_disk_error(disk_seq, copy_seq);
    }
    return *copy;
}

}  // namespace

std::uint32_t al_extents_limit(std::uint64_t al_blocks) {
    constexpr std::uint64_t context = 919;
    if (al_blocks > al_slots_max / context + 1) return al_slots_max;
    return static_cast<std::uint32_t>((al_blocks - 1) * context);
}

Status check_superblock(const Superblock& superblock) {
    if (superblock.effective_size_sectors > effective_size_sectors_max) {
        return corrupt_error(text_of(
            "superblock: the volume has %" PRIu64 " sectors, allowed are up to %" PRIu64 " (1 PiB)",
            superblock.effective_size_sectors, effective_size_sectors_max));
    }
    const std::uint64_t al_blocks =
        std::uint64_t{superblock.al_stripes} * superblock.al_stripe_blocks;
    TRY_STATUS(in_range("al_stripes", superblock.al_stripes, 1, al_stripes_max));
    TRY_STATUS(in_range("al_stripes * al_stripe_size_4k", static_cast<std::int64_t>(al_blocks),
                        al_blocks_min, al_blocks_max));
    TRY_STATUS(in_range("al_nr_extents", superblock.al_extents, 1, al_slots_max));
    TRY_STATUS(
        in_range("bm_bytes_per_bit", superblock.bytes_per_bit, block_bytes, bytes_per_bit_max));
    if (!std::has_single_bit(superblock.bytes_per_bit)) {
        return corrupt_error(text_of("superblock: bm_bytes_per_bit is %" PRIu32
                                     ", which is not a power of two",
                                     superblock.bytes_per_bit));
    }
    TRY_STATUS(in_range("bm_max_peers", superblock.max_peers, 1, bitmap_slots_max));
    TRY_STATUS(in_range("node_id", superblock.node_id, -1, nodes_max - 1));
    TRY_STATUS(in_range("primary_node", superblock.extension.primary_node, -1, nodes_max - 1));
    TRY_STATUS(
        in_range("vote_primary", superblock.extension.vote_value.primary, -1, nodes_max - 1));
    return check_slots(superblock);
}

void encode_superblock(const Superblock& superblock, std::span<std::byte, superblock_bytes> out) {
    ASSERT(check_superblock(superblock));
    std::fill(out.begin(), out.end(), std::byte{0});
    Writer to{out};
    to.u64(at::effective_size, superblock.effective_size_sectors);
    to.u64(at::current_uuid, superblock.current_uuid);
    to.u64(at::members, superblock.members);
    to.u64(at::device_uuid, superblock.device_uuid);
    to.u32(at::flags, superblock.flags);
    to.u32(at::magic, v09_magic);
    to.u32(at::md_size, superblock.md_size_sectors);
    to.s32(at::al_offset, superblock.al_offset_sectors);
    to.s32(at::bm_offset, superblock.bm_offset_sectors);
    to.u32(at::al_extents, superblock.al_extents);
    to.u32(at::bytes_per_bit, superblock.bytes_per_bit);
    to.u32(at::max_bio_bytes, superblock.max_bio_bytes);
    to.u32(at::max_peers, superblock.max_peers);
    to.s32(at::node_id, superblock.node_id);
    to.u32(at::al_stripes, superblock.al_stripes);
    to.u32(at::al_stripe_blocks, superblock.al_stripe_blocks);
    for (std::size_t n = 0; n < nodes_max; ++n) {
        const std::size_t peer = at::peers + n * peer_at::bytes;
        to.u64(peer + peer_at::bitmap_uuid, superblock.peers[n].bitmap_uuid);
        to.u64(peer + peer_at::bitmap_dagtag, superblock.peers[n].bitmap_dagtag);
        to.u32(peer + peer_at::flags, superblock.peers[n].flags);
        to.s32(peer + peer_at::bitmap_index, superblock.peers[n].bitmap_index);
    }
    for (std::size_t i = 0; i < history_uuids_max; ++i) {
        to.u64(at::history + 8 * i, superblock.history[i]);
    }
    if (superblock.extension.present) encode_extension(superblock, to);
}

bool has_metadata_magic(Block bytes) { return kind_of(bytes) != BlockKind::foreign; }

Result<Superblock> decode_superblock(Block bytes) {
    const Reader in{bytes};
    const BlockKind kind = kind_of(bytes);
    switch (kind) {
        case BlockKind::foreign:
            return corrupt_error(
                "no DRBD v09 superblock here (the magic number is missing): the disk was replaced "
                "or resized, the metadata is elsewhere, or none was ever created");
        case BlockKind::other_version:
            return other_version_error(in.u32(at::magic));
        case BlockKind::damaged:
            return corrupt_error("the superblock fails its checksum: a torn write or damage");
        case BlockKind::drbd:
        case BlockKind::ours:
            break;
    }
    const std::uint32_t version = kind == BlockKind::ours ? in.u32(ext_at::version) : 1;
    if (version < 1 || version > extension_version) {
        return Error{
            Errc::unsupported, 0,
            text_of("the superblock's Replica extension has version %" PRIu32
                    ", this program reads versions 1 to %" PRIu32 ": use the newer Replica",
                    version, extension_version)};
    }
    const std::size_t used = version == 1 ? ext_at::set_change : ext_at::reserved;
    const bool tail_used = kind == BlockKind::ours && !in.zero(used, superblock_bytes);
    if (tail_used || reserved_fields_used(in)) {
        return Error{
            Errc::unsupported, 0,
            "the superblock uses fields that are reserved in v09: it was written by a newer "
            "DRBD or Replica, use that"};
    }
    Superblock superblock;
    decode_v09(in, superblock);
    if (kind == BlockKind::ours) decode_extension(in, superblock);
    TRY_STATUS(check_superblock(superblock));
    return superblock;
}

Result<Superblock> choose_superblock(Block on_disk, std::span<const std::byte> copy) {
    std::optional<Superblock> ours;
    if (copy.size() == superblock_bytes) {
        Result<Superblock> decoded = decode_superblock(copy.first<superblock_bytes>());
        if (decoded && decoded.value().extension.present) ours = std::move(decoded).value();
    }
    const BlockKind kind = kind_of(on_disk);
    if (kind == BlockKind::damaged) return repaired(on_disk, ours);

    TRY(Superblock disk, decode_superblock(on_disk));
    if (ours && another_disk(disk, *ours)) return another_disk_error(disk, *ours);
    if (kind == BlockKind::ours && ours && same_volume(Reader{on_disk}, true, *ours)) {
        return newer_of(disk, *ours);
    }
    return disk;
}

}  // namespace replica
