// SPDX-License-Identifier: Apache-2.0
// Makes a disk look as if its node had crashed: writes activity-log transactions with this tree's
// encoder, damages some of them, and sets superblock fields. drbdmeta_test.py then lets drbdmeta
// and replicameta apply the log to two copies. Arguments are name=value; see the list in main().
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>

#include "engine/base/prng.hpp"
#include "engine/format/activity_log.hpp"
#include "engine/io/metadata_file.hpp"

using namespace replica;

namespace {

struct Arguments {
    int count;
    char** values;

    std::string text(const char* name) const {
        const std::size_t length = std::strlen(name);
        for (int i = 1; i < count; ++i) {
            if (std::strncmp(values[i], name, length) == 0 && values[i][length] == '=') {
                return values[i] + length + 1;
            }
        }
        return {};
    }
    std::uint64_t number(const char* name) const {
        return std::strtoull(text(name).c_str(), nullptr, 0);
    }
};

// Up to 64 different slots get extents of the volume, or become free.
void random_updates(Prng& prng, AlTransaction& transaction, std::uint64_t extents,
                    std::vector<std::uint32_t>& table) {
    std::set<std::uint16_t> used;
    const std::uint64_t count = 1 + prng.below(al_updates_max);
    for (std::uint64_t i = 0; i < count; ++i) {
        const auto slot = static_cast<std::uint16_t>(prng.below(table.size()));
        if (!used.insert(slot).second) continue;
        const auto extent = static_cast<std::uint32_t>(prng.below(extents));
        const bool frees = prng.chance(100'000);
        const AlUpdate update{slot, frees ? al_extent_free : extent};
        transaction.updates[transaction.update_count++] = update;
    }
    for (unsigned i = 0; i < transaction.update_count; ++i) {
        table[transaction.updates[i].slot] = transaction.updates[i].extent;
    }
}

void write_transactions(const Arguments& arguments, MetadataImage& image) {
    Prng prng(arguments.number("seed"));
    const std::uint32_t stripes = image.superblock.al_stripes;
    const std::uint32_t blocks = image.superblock.al_stripe_blocks;
    const std::uint64_t bytes = image.superblock.effective_size_sectors * sector_bytes;
    const std::uint64_t extents = (bytes + extent_bytes - 1) / extent_bytes;
    std::vector<std::uint32_t> table(image.superblock.al_extents, al_extent_free);
    auto number = static_cast<std::uint32_t>(arguments.number("start"));
    std::size_t context = 0;
    for (std::uint64_t i = arguments.number("transactions"); i > 0; --i) {
        AlTransaction transaction;
        transaction.number = number;
        transaction.slots = static_cast<std::uint16_t>(table.size());
        transaction.context_start = static_cast<std::uint16_t>(context);
        while (transaction.context_count < al_context_max &&
               context + transaction.context_count < table.size()) {
            transaction.context[transaction.context_count] =
                table[context + transaction.context_count];
            ++transaction.context_count;
        }
        random_updates(prng, transaction, extents, table);
        const std::size_t at =
            std::size_t{al_block_index(number, stripes, blocks)} * al_block_bytes;
        encode_al_transaction(transaction,
                              std::span(image.activity_log).subspan(at).first<al_block_bytes>());
        context = context + al_context_max < table.size() ? context + al_context_max : 0;
        number = al_next_number(number, stripes, blocks);
    }
    for (std::uint64_t i = arguments.number("damage"); i > 0; --i) {
        const std::uint64_t sector = prng.below(image.activity_log.size() / sector_bytes);
        for (std::uint32_t b = 0; b < sector_bytes; ++b) {
            image.activity_log[sector * sector_bytes + b] = static_cast<std::byte>(prng.next());
        }
    }
}

Status make(const Arguments& arguments) {
    const MetadataTarget target{arguments.text("disk"), arguments.text("metadata")};
    TRY(MetadataFile file, MetadataFile::open(target, DiskAccess::exclusive));
    TRY(MetadataImage image, read_metadata(file));
    Superblock& superblock = image.superblock;
    const std::uint64_t largest = image.layout.data_bytes_max / sector_bytes;
    superblock.effective_size_sectors = largest - arguments.number("smaller_by_sectors");
    superblock.flags = static_cast<std::uint32_t>(arguments.number("flags"));
    superblock.al_extents = static_cast<std::uint32_t>(arguments.number("slots"));
    superblock.current_uuid = 0x1122334455667788;
    superblock.node_id = 0;
    for (std::uint32_t slot = 0; slot < superblock.max_peers; ++slot) {
        superblock.peers[slot + 1].bitmap_index = static_cast<std::int32_t>(slot);
        superblock.peers[slot + 1].flags = md_peer_flag::node_exists;
    }
    write_transactions(arguments, image);
    TRY_STATUS(file.device().write(image.layout.al_offset, image.activity_log));
    MetadataFile::Block block;
    encode_superblock(superblock, block);
    return file.write_superblock(block);
}

}  // namespace

// disk, metadata: as MetadataTarget; seed; transactions; start: first number; slots: of the table;
// damage: sectors of the log; flags: of the device; smaller_by_sectors: volume against the largest.
int main(int argc, char** argv) {
    const Status done = make({argc, argv});
    if (!done) std::fprintf(stderr, "drbdmeta_crash_maker: %s\n", done.error().message.c_str());
    return done ? 0 : 1;
}
