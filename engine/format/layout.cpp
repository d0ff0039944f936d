// SPDX-License-Identifier: Apache-2.0
// The arithmetic of places and sizes. The numbers have to be those that DRBD computes, to the byte:
// both recompute them when a disk is attached and refuse one that says otherwise.
#include "engine/format/layout.hpp"

#include <algorithm>
#include <cinttypes>
#include <limits>

#include "engine/base/text.hpp"

namespace replica {
namespace {

constexpr std::uint64_t unit = 4096;
constexpr std::uint64_t volume_bytes_limit = std::uint64_t{1} << 50;  // 1 PiB

static_assert(unit == superblock_bytes && unit == block_bytes);

constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}
constexpr std::uint64_t round_down(std::uint64_t value, std::uint64_t multiple) {
    return value / multiple * multiple;
}

std::uint64_t al_bytes_of(const Superblock& superblock) {
    return std::uint64_t{superblock.al_stripes} * superblock.al_stripe_blocks * unit;
}

Error too_small(const char* device, std::uint64_t bytes, std::uint64_t needed) {
    return Error{Errc::no_space, 0,
                 text_of("the %s device has %" PRIu64 " bytes; superblock, activity log and bitmap "
                         "leave no room for data below %" PRIu64 " bytes",
                         device, bytes, needed)};
}

Error too_large(const char* device, std::uint64_t bytes) {
    return Error{
        Errc::limit, 0,
        text_of("the %s device has %" PRIu64 " bytes, more than v09 metadata can describe: "
                "use a smaller one (volumes end at 1 PiB)",
                device, bytes)};
}

// [data][bitmap][activity log][superblock][up to 7 sectors unused]
Result<MetadataLayout> plan_internal(std::uint64_t device_bytes, const Superblock& superblock) {
    // The limit leaves room for the metadata of a volume of the largest size.
    if (device_bytes > 2 * volume_bytes_limit) return too_large("data", device_bytes);
    MetadataLayout layout;
    layout.al_bytes = al_bytes_of(superblock);
    layout.bitmap_bytes = bitmap_bytes_for(round_down(device_bytes, sector_bytes),
                                           superblock.bytes_per_bit, superblock.max_peers);
    const std::uint64_t needed = layout.al_bytes + layout.bitmap_bytes + unit + unit;
    if (device_bytes < needed) return too_small("data", device_bytes, needed);
    layout.superblock_offset = superblock_position(MetadataPlace::internal, device_bytes);
    layout.al_offset = layout.superblock_offset - layout.al_bytes;
    layout.bitmap_offset = layout.al_offset - layout.bitmap_bytes;
    layout.data_bytes_max = std::min(layout.bitmap_offset, volume_bytes_limit);
    return layout;
}

// [superblock][activity log][bitmap ... to the end]
Result<MetadataLayout> plan_external(std::uint64_t device_bytes, std::uint64_t metadata_bytes,
                                     const Superblock& superblock) {
    MetadataLayout layout;
    layout.place = MetadataPlace::external;
    layout.al_offset = unit;
    layout.al_bytes = al_bytes_of(superblock);
    layout.bitmap_offset = layout.al_offset + layout.al_bytes;
    const std::uint64_t needed = layout.bitmap_offset + unit;
    if (metadata_bytes < needed) return too_small("metadata", metadata_bytes, needed);
    // A slot takes whole 64-bit words, as in memory.
    const std::uint64_t room = round_down(metadata_bytes - layout.bitmap_offset, unit);
    const std::uint64_t bits_max = room / superblock.max_peers / 8 * 64;
    const std::uint64_t bits_limit = volume_bytes_limit / superblock.bytes_per_bit;
    layout.data_bytes_max =
        std::min(round_down(device_bytes, sector_bytes),
                 std::min(bits_max, bits_limit) * std::uint64_t{superblock.bytes_per_bit});
    if (layout.data_bytes_max == 0) return too_small("data", device_bytes, sector_bytes);
    layout.bitmap_bytes =
        bitmap_bytes_for(layout.data_bytes_max, superblock.bytes_per_bit, superblock.max_peers);
    ASSERT(layout.bitmap_bytes <= room);
    return layout;
}

std::int64_t sectors(std::uint64_t bytes) {
    return static_cast<std::int64_t>(bytes / sector_bytes);
}

Error shrunk(const char* what, std::uint64_t have, std::uint64_t recorded) {
    return Error{Errc::no_space, 0,
                 text_of("the %s device has %" PRIu64 " bytes, its metadata was made for %" PRIu64
                         ": it has shrunk or is the wrong device; give it back its size",
                         what, have, recorded)};
}

}  // namespace

std::uint64_t superblock_position(MetadataPlace place, std::uint64_t device_bytes) {
    if (place == MetadataPlace::external || device_bytes < unit) return 0;
    return round_down(device_bytes, unit) - unit;
}

std::uint64_t bitmap_bytes_for(std::uint64_t volume_bytes, std::uint32_t bytes_per_bit,
                               std::uint32_t max_peers) {
    const std::uint64_t bits = round_up(volume_bytes, bytes_per_bit) / bytes_per_bit;
    return round_up(round_up(bits, 64) / 8 * max_peers, unit);
}

Result<MetadataLayout> plan_layout(MetadataPlace place, std::uint64_t data_device_bytes,
                                   std::uint64_t metadata_bytes, Superblock& superblock) {
    if (Status fields = check_superblock(superblock); !fields) {
        return Error{Errc::invalid, 0, fields.error().message};
    }
    TRY(MetadataLayout layout, place == MetadataPlace::internal
                                   ? plan_internal(data_device_bytes, superblock)
                                   : plan_external(data_device_bytes, metadata_bytes, superblock));
    layout.max_peers = superblock.max_peers;

    const bool internal = place == MetadataPlace::internal;
    const std::uint64_t md_bytes =
        internal ? layout.bitmap_bytes + layout.al_bytes + unit : metadata_bytes;
    if (sectors(md_bytes) > std::numeric_limits<std::int32_t>::max()) {
        return too_large(internal ? "data" : "metadata",
                         internal ? data_device_bytes : metadata_bytes);
    }
    const std::int64_t origin = sectors(layout.superblock_offset);
    superblock.md_size_sectors = static_cast<std::uint32_t>(sectors(md_bytes));
    superblock.al_offset_sectors = static_cast<std::int32_t>(sectors(layout.al_offset) - origin);
    superblock.bm_offset_sectors =
        static_cast<std::int32_t>(sectors(layout.bitmap_offset) - origin);
    return layout;
}

Result<MetadataLayout> check_layout(MetadataPlace place, std::uint64_t data_device_bytes,
                                    std::uint64_t metadata_bytes, const Superblock& superblock) {
    const std::uint64_t recorded = std::uint64_t{superblock.md_size_sectors} * sector_bytes;
    if (place == MetadataPlace::external && metadata_bytes < recorded) {
        return shrunk("metadata", metadata_bytes, recorded);
    }
    const std::uint64_t placed_for = superblock.extension.device_bytes;
    if (place == MetadataPlace::internal && placed_for != 0) {
        if (data_device_bytes < placed_for) return shrunk("data", data_device_bytes, placed_for);
        data_device_bytes = placed_for;
    }
    // A metadata device that has grown is used as far as it was when the metadata was made.
    Superblock expected = superblock;
    TRY(MetadataLayout layout, plan_layout(place, data_device_bytes, recorded, expected));
    if (expected.md_size_sectors != superblock.md_size_sectors ||
        expected.al_offset_sectors != superblock.al_offset_sectors ||
        expected.bm_offset_sectors != superblock.bm_offset_sectors) {
        return Error{
            Errc::corrupt, 0,
            text_of("the metadata does not fit this device: it records size, log and "
                    "bitmap at %" PRIu32 ", %" PRId32 ", %" PRId32 " sectors where %" PRIu32
                    ", %" PRId32 ", %" PRId32 " are right; the device was resized, or the "
                    "metadata is another device's",
                    superblock.md_size_sectors, superblock.al_offset_sectors,
                    superblock.bm_offset_sectors, expected.md_size_sectors,
                    expected.al_offset_sectors, expected.bm_offset_sectors)};
    }
    const std::uint64_t volume_bytes = superblock.effective_size_sectors * sector_bytes;
    if (volume_bytes > layout.data_bytes_max) {
        return shrunk("data", layout.data_bytes_max, volume_bytes);
    }
    return layout;
}

}  // namespace replica
