// SPDX-License-Identifier: Apache-2.0
// The activity log's 4 KiB transaction blocks as DRBD 8.4 and 9 write them: encode, decode, replay.
// Bytes only: no IO. The layout, with its sources, is docs/on-disk.md.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/base/result.hpp"

namespace replica {

inline constexpr std::size_t al_block_bytes = 4096;
inline constexpr unsigned al_updates_max = 64;   // updates in one transaction
inline constexpr unsigned al_context_max = 919;  // slots repeated in one transaction
inline constexpr std::uint32_t al_extent_free = 0xffffffff;

struct AlUpdate {
    std::uint16_t slot = 0;
    std::uint32_t extent = al_extent_free;
};

// One transaction. `context` describes slots [context_start, context_start + context_count); of the
// updates the first update_count count.
struct AlTransaction {
    std::uint32_t number = 0;
    std::uint16_t slots = 0;         // size of the whole slot table (al_extents)
    std::uint16_t update_count = 0;  // 0..al_updates_max
    std::array<AlUpdate, al_updates_max> updates{};
    std::uint16_t context_start = 0;
    std::uint16_t context_count = 0;  // 0..al_context_max
    std::array<std::uint32_t, al_context_max> context{};
};

// Writes all 4096 bytes, the checksum included. Asserts the two counts.
void encode_al_transaction(const AlTransaction& transaction,
                           std::span<std::byte, al_block_bytes> out);
void encode_al_initialised(std::span<std::byte, al_block_bytes> out);  // type 0xffff, empty

// The 4 KiB block, counted from the log's start, that holds transaction `number`. With several
// stripes neighbours lie in different stripes. stripes and stripe_blocks > 0.
std::uint32_t al_block_index(std::uint32_t number, std::uint32_t stripes,
                             std::uint32_t stripe_blocks);

// The number of the transaction after `number`: one more, except where the numbers wrap and the
// ring's size is no power of two. There the plain successor would jump back in the ring and
// overwrite transactions that replay still needs; numbers are skipped until it is the next block's
// turn.
std::uint32_t al_next_number(std::uint32_t number, std::uint32_t stripes,
                             std::uint32_t stripe_blocks);

// Result of reading a whole log.
struct AlReplay {
    std::vector<std::uint32_t> extents;  // distinct hot extents, ascending
    std::uint32_t next_number = 0;       // transaction number to go on with
    std::uint32_t blocks_corrupt = 0;    // blocks that failed magic or checksum
    std::uint32_t slots_ignored = 0;     // entries for slots beyond the largest possible table
};

// `log` is the ring as it lies on the disk, exactly stripes * stripe_blocks blocks (asserted).
// Errors: corrupt (no usable block at all, or usable ones without a transaction where there must be
// one); the caller decides with the superblock's primary_ind whether that matters
// (docs/on-disk.md, "Replay").
Result<AlReplay> replay_activity_log(std::span<const std::byte> log, std::uint32_t stripes,
                                     std::uint32_t stripe_blocks);

}  // namespace replica
