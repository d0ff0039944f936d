// SPDX-License-Identifier: Apache-2.0
// What must hold for the whole cluster at any moment, all nodes frozen: if the records of two nodes
// say that the bits cover what differs, the bits do.
#include <algorithm>

#include "tests/sim/world.hpp"

namespace replica::sim {
namespace {

constexpr std::uint64_t sectors_per_block = block_bytes / sector_bytes;

}  // namespace

// The blocks that may differ on `peer`, by node n's records.
std::vector<bool> World::covered(int n, int peer) {
    const std::uint64_t all = (max_sectors_ + sectors_per_block - 1) / sectors_per_block;
    std::vector<bool> blocks(all);
    Node& node = nodes_[static_cast<std::size_t>(n)];
    const auto& sb = node.disk->newest();
    if (!sb) fail("a superblock cannot be read");
    const auto add_range = [&](std::uint64_t offset, std::uint64_t length) {
        const std::uint64_t end = std::min(all, (offset + length + block_bytes - 1) / block_bytes);
        for (std::uint64_t b = offset / block_bytes; b < end; ++b)
            blocks[b] = true;
    };
    const bool running =
        node.up && node.core->bitmap() != nullptr && node.core->disk() >= DiskState::inconsistent;
    const Superblock& known = running ? node.core->superblock() : sb.value();
    const int slot = known.peers[static_cast<std::size_t>(peer)].bitmap_index;
    const bool full =
        (known.peers[static_cast<std::size_t>(peer)].flags & md_peer_flag::full_sync) != 0;
    if (slot < 0 || full) {
        blocks.assign(all, true);
        return blocks;
    }
    if (running) {
        const Bitmap& bitmap = *node.core->bitmap();
        for (std::uint64_t bit = 0;
             (bit = bitmap.find_set(static_cast<unsigned>(slot), bit)) != Bitmap::none; ++bit) {
            blocks[bit] = true;
        }
        const Journal& journal = node.core->journal();
        for (std::uint64_t seq = journal.head(); seq < journal.tail(); ++seq) {
            add_range(journal.at(seq).offset, journal.at(seq).length);
        }
    } else {
        Bitmap bitmap(known.effective_size_sectors * sector_bytes, known.max_peers, 1U << slot);
        for (std::uint64_t page = 0; page < bitmap.pages(); ++page)
            bitmap.load_page(page, node.disk->bitmap[page]);
        for (std::uint64_t bit = 0;
             (bit = bitmap.find_set(static_cast<unsigned>(slot), bit)) != Bitmap::none; ++bit) {
            blocks[bit] = true;
        }
        const bool log_counts = (known.flags & md_flag::al_clean) == 0;
        if (log_counts && (known.flags & md_flag::primary_ind) != 0) {
            const auto replay = replay_activity_log(
                {reinterpret_cast<const std::byte*>(node.disk->activity_log.data()),
                 node.disk->activity_log.size() * 4096},
                1, 8);
            if (replay) {
                for (const std::uint32_t extent : replay.value().extents) {
                    add_range(std::uint64_t{extent} * extent_bytes, extent_bytes);
                }
            }
        }
    }
    for (const auto& [id, op] : node.ops) {
        if (op.write) add_range(op.sector * sector_bytes, op.data.size() * sector_bytes);
    }
    return blocks;
}

// I-R3 and I-R7: if the records of a pair say that a bitmap covers the difference, it does.
void World::audit_pair(int a, int b) {
    Node& x = nodes_[static_cast<std::size_t>(a)];
    Node& y = nodes_[static_cast<std::size_t>(b)];
    const auto label = [&](Node& node) {
        const auto& sb = node.disk->newest();
        if (!sb) fail("I-M1 neither copy of a superblock can be read");
        return node.up && node.core->disk() >= DiskState::inconsistent ? node.core->superblock()
                                                                       : sb.value();
    };
    const Superblock sx = label(x), sy = label(y);
    const auto tracks = [](const Superblock& s, int peer, Uuid uuid) {
        const PeerMetadata& md = s.peers[static_cast<std::size_t>(peer)];
        const bool known =
            uuid_identity(uuid) != uuid_none && uuid_identity(uuid) != uuid_just_created;
        return known && (uuid_equal(md.bitmap_uuid, uuid) || uuid_equal(md.admitting_uuid, uuid));
    };
    const bool equal = uuid_equal(sx.current_uuid, sy.current_uuid) &&
                       uuid_identity(sx.current_uuid) != uuid_just_created;
    if (!equal && !tracks(sx, b, sy.current_uuid) && !tracks(sy, a, sx.current_uuid)) return;
    const std::uint64_t both = std::min(sx.effective_size_sectors, sy.effective_size_sectors);
    std::uint64_t s = x.disk->first_difference(*y.disk, 0, both);
    if (s == both) return;
    const std::vector<bool> from_x = covered(a, b), from_y = covered(b, a);
    for (; s < both; s = x.disk->first_difference(*y.disk, s + 1, both)) {
        if (from_x[s / sectors_per_block] || from_y[s / sectors_per_block]) continue;
        fail("I-R7 n" + std::to_string(a) + " and n" + std::to_string(b) + " differ in block " +
             std::to_string(s / sectors_per_block) + " (writes " +
             std::to_string(x.disk->visible(s)) + ", " + std::to_string(y.disk->visible(s)) +
             ") and nothing says so");
    }
}

void World::audit_all() {
    ++stats_.audits;
    for (int a = 0; a < static_cast<int>(nodes_.size()); ++a) {
        for (int b = a + 1; b < static_cast<int>(nodes_.size()); ++b)
            audit_pair(a, b);
    }
}

}  // namespace replica::sim
