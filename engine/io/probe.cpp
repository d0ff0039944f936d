// SPDX-License-Identifier: Apache-2.0
// What lies on a disk that somebody wants to hand over: metadata of ours or of DRBD, whatever
// libblkid knows, and failing that, whether its first and last bytes are blank.
#include <blkid/blkid.h>

#include <algorithm>
#include <memory>

#include "engine/base/text.hpp"
#include "engine/io/metadata_file.hpp"

namespace replica {
namespace {

constexpr std::uint64_t edge_bytes = 64U << 10;

std::string metadata_in(std::span<const std::byte, superblock_bytes> block) {
    if (!has_metadata_magic(block)) return {};
    const auto decoded = decode_superblock(block);
    if (!decoded && decoded.error().code == Errc::corrupt) return "damaged DRBD v09 metadata";
    if (!decoded) return "DRBD metadata of another version";
    if (!decoded.value().extension.present) return "DRBD v09 metadata";
    return text_of("Replica metadata (node %d, generation %016llx)", int{decoded.value().node_id},
                   static_cast<unsigned long long>(decoded.value().current_uuid));
}

// Internal metadata lies at the end, external at the start, indexed at multiples of 128 MiB.
Result<std::string> drbd_metadata(const DiskFile& disk) {
    constexpr std::uint64_t index_bytes = 128U << 20;
    constexpr unsigned indexes = 32;
    std::vector<std::uint64_t> places{
        superblock_position(MetadataPlace::internal, disk.size_bytes())};
    for (unsigned i = 0; i < indexes; ++i)
        places.push_back(i * index_bytes);
    std::array<std::byte, superblock_bytes> block;
    for (const std::uint64_t place : places) {
        if (place + block.size() > disk.size_bytes()) continue;
        TRY_STATUS(disk.read(place, block));
        std::string found = metadata_in(block);
        if (!found.empty()) return found;
    }
    return std::string{};
}

std::string value_of(blkid_probe probe, const char* name) {
    const char* value = nullptr;
    if (blkid_probe_lookup_value(probe, name, &value, nullptr) != 0) return {};
    return value;
}

Result<std::string> known_signature(const DiskFile& disk) {
    const std::unique_ptr<blkid_struct_probe, void (*)(blkid_probe)> probe(blkid_new_probe(),
                                                                           blkid_free_probe);
    if (!probe || blkid_probe_set_device(probe.get(), disk.fd(), 0, 0) != 0) {
        return Error{Errc::io, 0,
                     text_of("%s can not be probed for its contents", disk.path().c_str())};
    }
    blkid_probe_enable_superblocks(probe.get(), 1);
    blkid_probe_set_superblocks_flags(probe.get(), BLKID_SUBLKS_TYPE | BLKID_SUBLKS_LABEL);
    blkid_probe_enable_partitions(probe.get(), 1);
    const int found = blkid_do_safeprobe(probe.get());
    if (found == -2) return std::string("signatures of several file systems or partition tables");
    if (found < 0) {
        return Error{Errc::io, 0,
                     text_of("%s can not be read to find out what it holds", disk.path().c_str())};
    }
    const std::string type = value_of(probe.get(), "TYPE");
    const std::string label = value_of(probe.get(), "LABEL");
    const std::string table = value_of(probe.get(), "PTTYPE");
    if (!type.empty() && !label.empty()) {
        return text_of("%s (label %s)", type.c_str(), label.c_str());
    }
    if (!type.empty()) return type;
    if (!table.empty()) return text_of("a partition table (%s)", table.c_str());
    return std::string{};
}

Result<bool> blank(const DiskFile& disk, std::uint64_t offset, std::uint64_t length) {
    std::vector<std::byte> bytes(length);
    TRY_STATUS(disk.read(offset, bytes));
    return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

}  // namespace

Result<std::string> probe_signature(const DiskFile& disk) {
    if (disk.size_bytes() == 0) return std::string{};
    TRY(std::string found, drbd_metadata(disk));
    if (found.empty()) {
        TRY(found, known_signature(disk));
    }
    if (!found.empty()) return found;
    const std::uint64_t edge = std::min(edge_bytes, disk.size_bytes());
    TRY(const bool blank_start, blank(disk, 0, edge));
    TRY(const bool blank_end, blank(disk, disk.size_bytes() - edge, edge));
    if (blank_start && blank_end) return found;
    return text_of("data of an unknown kind (its %s 64 KiB are not all zero)",
                   blank_start ? "last" : "first");
}

Result<std::string> probe_signature(const std::string& path) {
    TRY(const DiskFile disk, DiskFile::open(path, DiskAccess::shared_read));
    return probe_signature(disk);
}

}  // namespace replica
