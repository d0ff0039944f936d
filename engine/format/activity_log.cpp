// SPDX-License-Identifier: Apache-2.0
// Encodes transactions and replays a whole log. A block is trusted only if magic and checksum hold;
// everything in it is bounds-checked all the same, because a checksum proves no good intention.
// Described byte by byte in docs/on-disk.md.
#include "engine/format/activity_log.hpp"

#include <algorithm>
#include <cinttypes>

#include "engine/base/crc32c.hpp"
#include "engine/base/endian.hpp"
#include "engine/base/text.hpp"

namespace replica {
namespace {

namespace at {  // big-endian fields
constexpr std::size_t magic = 0;
constexpr std::size_t number = 4;
constexpr std::size_t checksum = 8;
constexpr std::size_t type = 12;
constexpr std::size_t update_count = 14;
constexpr std::size_t slots = 16;
constexpr std::size_t context_start = 18;
constexpr std::size_t reserved = 20;  // four u32
constexpr std::size_t update_slots = 36;
constexpr std::size_t update_extents = 164;
constexpr std::size_t context = 420;
}  // namespace at

static_assert(at::reserved + 4 * 4 == at::update_slots);
static_assert(at::update_slots + al_updates_max * 2 == at::update_extents);
static_assert(at::update_extents + al_updates_max * 4 == at::context);
static_assert(at::context + al_context_max * 4 == al_block_bytes);

constexpr std::uint32_t block_magic = 0x69cb65a2;
constexpr std::uint16_t type_update = 0;
constexpr std::uint16_t type_initialised = 0xffff;
constexpr std::uint16_t slot_unused = 0xffff;
constexpr std::size_t slots_max = 65534;

using Block = std::span<const std::byte, al_block_bytes>;

// DRBD's variant: no inversions, the checksum field counts as zero.
std::uint32_t block_checksum(Block bytes) {
    constexpr std::array<std::byte, 4> no_checksum{};
    std::uint32_t crc = crc32c_update(0, bytes.first<at::checksum>());
    crc = crc32c_update(crc, no_checksum);
    return crc32c_update(crc, bytes.subspan<at::checksum + no_checksum.size()>());
}

bool block_valid(Block bytes) {
    if (load_be<std::uint32_t>(&bytes[at::magic]) != block_magic) return false;
    const auto type = load_be<std::uint16_t>(&bytes[at::type]);
    if (type != type_update && type != type_initialised) return false;
    return load_be<std::uint32_t>(&bytes[at::checksum]) == block_checksum(bytes);
}

// The slot table as far as the transactions applied so far tell.
class SlotTable {
  public:
    // Context first: it shows the table before the transaction, or after it; both give the same.
    void apply(Block block) {
        const auto slots = load_be<std::uint16_t>(&block[at::slots]);
        const auto start = load_be<std::uint16_t>(&block[at::context_start]);
        for (std::size_t i = 0; i < al_context_max; ++i) {
            const auto extent = load_be<std::uint32_t>(&block[at::context + 4 * i]);
            const std::size_t slot = start + i;
            // Within the table "free" is news, behind its end it is only filling.
            if (extent != al_extent_free || slot < slots) set(slot, extent);
        }
        const auto updates = load_be<std::uint16_t>(&block[at::update_count]);
        for (std::size_t i = 0; i < al_updates_max; ++i) {
            const auto slot = load_be<std::uint16_t>(&block[at::update_slots + 2 * i]);
            const auto extent = load_be<std::uint32_t>(&block[at::update_extents + 4 * i]);
            if (i < updates || slot != slot_unused) set(slot, extent);
        }
    }

    std::vector<std::uint32_t> hot_extents() const {
        std::vector<std::uint32_t> hot;
        std::copy_if(extents_.begin(), extents_.end(), std::back_inserter(hot),
                     [](std::uint32_t extent) { return extent != al_extent_free; });
        std::sort(hot.begin(), hot.end());
        hot.erase(std::unique(hot.begin(), hot.end()), hot.end());
        return hot;
    }

    std::uint32_t ignored() const { return ignored_; }

  private:
    void set(std::size_t slot, std::uint32_t extent) {
        if (slot >= slots_max) {
            ++ignored_;
            return;
        }
        if (slot >= extents_.size()) {
            if (extent == al_extent_free) return;
            extents_.resize(slot + 1, al_extent_free);
        }
        extents_[slot] = extent;
    }

    std::vector<std::uint32_t> extents_;  // by slot, as far as any slot has been used
    std::uint32_t ignored_ = 0;
};

struct Transaction {
    std::uint32_t number = 0;
    std::uint32_t block = 0;  // index on the disk
};

// Numbers wrap at 2^32, so "older" is the sign of the difference. All numbers of one ring lie
// within far less than half of that; what a foreign writer left beyond it sorts somewhere,
// harmlessly.
bool older(std::uint32_t a, std::uint32_t b) { return static_cast<std::int32_t>(a - b) < 0; }

void sort_oldest_first(std::vector<Transaction>& transactions) {
    std::uint32_t oldest = transactions.front().number;
    for (const Transaction& t : transactions) {
        if (older(t.number, oldest)) oldest = t.number;
    }
    // Distance from the oldest is an order even if the numbers are hostile.
    std::stable_sort(transactions.begin(), transactions.end(),
                     [oldest](const Transaction& a, const Transaction& b) {
                         return a.number - oldest < b.number - oldest;
                     });
}

Error unusable(std::string what) {
    return Error{Errc::corrupt, 0,
                 what +
                     ": which blocks were being written is not known. Invalidate the volume here "
                     "so that it is copied from a peer"};
}

}  // namespace

void encode_al_transaction(const AlTransaction& transaction,
                           std::span<std::byte, al_block_bytes> out) {
    ASSERT(transaction.update_count <= al_updates_max);
    ASSERT(transaction.context_count <= al_context_max);
    std::fill(out.begin(), out.end(), std::byte{0});
    store_be(&out[at::magic], block_magic);
    store_be(&out[at::number], transaction.number);
    store_be(&out[at::type], type_update);
    store_be(&out[at::update_count], transaction.update_count);
    store_be(&out[at::slots], transaction.slots);
    store_be(&out[at::context_start], transaction.context_start);
    std::fill(out.begin() + at::update_slots, out.end(), std::byte{0xff});
    for (std::size_t i = 0; i < transaction.update_count; ++i) {
        store_be(&out[at::update_slots + 2 * i], transaction.updates[i].slot);
        store_be(&out[at::update_extents + 4 * i], transaction.updates[i].extent);
    }
    for (std::size_t i = 0; i < transaction.context_count; ++i) {
        store_be(&out[at::context + 4 * i], transaction.context[i]);
    }
    store_be(&out[at::checksum], block_checksum(out));
}

void encode_al_initialised(std::span<std::byte, al_block_bytes> out) {
    std::fill(out.begin(), out.end(), std::byte{0});
    store_be(&out[at::magic], block_magic);
    store_be(&out[at::type], type_initialised);
    store_be(&out[at::checksum], block_checksum(out));
}

std::uint32_t al_block_index(std::uint32_t number, std::uint32_t stripes,
                             std::uint32_t stripe_blocks) {
    ASSERT(stripes > 0 && stripe_blocks > 0);
    const std::uint32_t position = number % (stripes * stripe_blocks);
    return position % stripes * stripe_blocks + position / stripes;
}

std::uint32_t al_next_number(std::uint32_t number, std::uint32_t stripes,
                             std::uint32_t stripe_blocks) {
    ASSERT(stripes > 0 && stripe_blocks > 0);
    const std::uint32_t next = number + 1;
    return next != 0 ? next : (number % (stripes * stripe_blocks) + 1) % (stripes * stripe_blocks);
}

Result<AlReplay> replay_activity_log(std::span<const std::byte> log, std::uint32_t stripes,
                                     std::uint32_t stripe_blocks) {
    const std::uint32_t blocks = stripes * stripe_blocks;
    ASSERT(blocks > 0 && log.size() == std::size_t{blocks} * al_block_bytes);

    AlReplay replay;
    std::vector<Transaction> transactions;
    const auto block_at = [log](std::uint32_t index) {
        return log.subspan(std::size_t{index} * al_block_bytes).first<al_block_bytes>();
    };
    for (std::uint32_t i = 0; i < blocks; ++i) {
        const Block block = block_at(i);
        if (!block_valid(block)) {
            ++replay.blocks_corrupt;
        } else if (load_be<std::uint16_t>(&block[at::type]) == type_update) {
            transactions.push_back({load_be<std::uint32_t>(&block[at::number]), i});
        }
    }
    if (replay.blocks_corrupt == blocks) {
        return unusable(text_of("none of the activity log's %" PRIu32 " blocks is valid", blocks));
    }
    if (transactions.empty()) {
        // A fresh log is fine, and so is one whose very first transaction was torn: it goes to
        // block 0. Any other hole may have been a transaction that was acknowledged.
        const bool fresh = replay.blocks_corrupt == 0;
        if (fresh || (replay.blocks_corrupt == 1 && !block_valid(block_at(0)))) return replay;
        return unusable(text_of("%" PRIu32 " of the activity log's %" PRIu32
                                " blocks are damaged and no transaction is left",
                                replay.blocks_corrupt, blocks));
    }
    sort_oldest_first(transactions);
    SlotTable table;
    for (const Transaction& transaction : transactions) {
        table.apply(block_at(transaction.block));
    }
    replay.extents = table.hot_extents();
    replay.next_number = al_next_number(transactions.back().number, stripes, stripe_blocks);
    replay.slots_ignored = table.ignored();
    return replay;
}

}  // namespace replica
