// SPDX-License-Identifier: Apache-2.0
// Reads metadata and judges it. check() goes on as far as what it has found so far allows: without
// a superblock there is no log to look at, but a damaged log does not keep it from the bitmap.
#include "replicameta_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "engine/format/activity_log.hpp"

namespace replica {
namespace {

struct FlagName {
    std::uint32_t bit;
    const char* name;
};

constexpr std::array device_flags{
    FlagName{md_flag::consistent, "consistent"},
    FlagName{md_flag::primary_ind, "primary-ind"},
    FlagName{md_flag::was_up_to_date, "was-up-to-date"},
    FlagName{md_flag::crashed_primary, "crashed-primary"},
    FlagName{md_flag::al_clean, "al-clean"},
    FlagName{md_flag::al_disabled, "al-disabled"},
    FlagName{md_flag::primary_lost_quorum, "primary-lost-quorum"},
    FlagName{md_flag::have_quorum, "have-quorum"},
};

constexpr std::array peer_flags{
    FlagName{md_peer_flag::connected, "connected"},
    FlagName{md_peer_flag::outdated, "peer-outdated"},
    FlagName{md_peer_flag::fencing, "peer-fencing"},
    FlagName{md_peer_flag::full_sync, "full-sync"},
    FlagName{md_peer_flag::device_seen, "peer-device-seen"},
    FlagName{md_peer_flag::node_exists, "node-exists"},
};

template <std::size_t N>
Json names_of(std::uint32_t flags, const std::array<FlagName, N>& names) {
    Json list = Json::array();
    for (const FlagName& flag : names) {
        if ((flags & flag.bit) != 0) list.push_back(flag.name);
        flags &= ~flag.bit;
    }
    if (flags != 0) list.push_back(fmt::format("0x{:x}", flags));
    return list;
}

std::string hex(std::uint64_t value) { return fmt::format("{:016X}", value); }

std::string hex(const std::array<std::uint8_t, 16>& id) {
    std::string text;
    for (const std::uint8_t byte : id)
        text += fmt::format("{:02x}", byte);
    return text;
}

Json nodes_of(NodeMask mask) {
    Json list = Json::array();
    for (unsigned n = 0; n < nodes_max; ++n) {
        if (mask.has(static_cast<NodeId>(n))) list.push_back(n);
    }
    return list;
}

Json describe_peers(const Superblock& superblock) {
    Json list = Json::array();
    for (unsigned n = 0; n < nodes_max; ++n) {
        const PeerMetadata& peer = superblock.peers[n];
        if (peer == PeerMetadata{}) continue;
        list.push_back({{"node-id", n},
                        {"bitmap-index", peer.bitmap_index},
                        {"bitmap-uuid", hex(peer.bitmap_uuid)},
                        {"bitmap-dagtag", hex(peer.bitmap_dagtag)},
                        {"admitting-uuid", hex(peer.admitting_uuid)},
                        {"flags", names_of(peer.flags, peer_flags)}});
    }
    return list;
}

Json describe_history(const Superblock& superblock) {
    Json list = Json::array();
    for (const Uuid uuid : superblock.history)
        list.push_back(hex(uuid));
    while (!list.empty() && list.back() == hex(uuid_none))
        list.erase(list.size() - 1);
    return list;
}

Json describe_extension(const SuperblockExtension& extension) {
    if (!extension.present) return nullptr;
    return {
        {"write-seq", extension.write_seq},          {"generation-seq", extension.generation_seq},
        {"parent-uuid", hex(extension.parent_uuid)}, {"in-sync", nodes_of(extension.in_sync)},
        {"primary-node", extension.primary_node},    {"volume-id", hex(extension.volume_id)},
        {"boot-id", hex(extension.boot_id)},         {"promoted-at-s", extension.promoted_at_s},
        {"set-change", extension.set_change},        {"vote-ballot", extension.vote_ballot},
        {"vote-accepted", extension.vote_accepted},  {"device-bytes", extension.device_bytes},
        {"ready-bytes", extension.ready_bytes}};
}

Json describe_layout(const MetadataLayout& layout) {
    return {{"superblock-offset", layout.superblock_offset},
            {"al-offset", layout.al_offset},
            {"al-bytes", layout.al_bytes},
            {"bitmap-offset", layout.bitmap_offset},
            {"bitmap-bytes", layout.bitmap_bytes},
            {"data-bytes-max", layout.data_bytes_max}};
}

Result<AlReplay> replay_of(const MetadataImage& image) {
    return replay_activity_log(image.activity_log, image.superblock.al_stripes,
                               image.superblock.al_stripe_blocks);
}

Json describe_log(const MetadataImage& image) {
    const auto replay = replay_of(image);
    if (!replay) return {{"error", replay.error().message}};
    return {{"next-number", replay.value().next_number},
            {"blocks-damaged", replay.value().blocks_corrupt},
            {"hot-extents", replay.value().extents}};
}

Json describe_bitmap(const MetadataImage& image, const BitmapCounts& counts) {
    Json list = Json::array();
    for (std::size_t slot = 0; slot < counts.slots.size(); ++slot) {
        Json owner = nullptr;
        for (unsigned n = 0; n < nodes_max; ++n) {
            if (image.superblock.peers[n].bitmap_index == static_cast<int>(slot)) owner = n;
        }
        list.push_back({{"slot", slot}, {"node-id", owner}, {"bits-set", counts.slots[slot]}});
    }
    return list;
}

// Collects what check() finds.
class Findings {
  public:
    template <class... Args>
    void problem(fmt::format_string<Args...> format, Args&&... args) {
        problems_.push_back(fmt::format(format, std::forward<Args>(args)...));
    }
    template <class... Args>
    void note(fmt::format_string<Args...> format, Args&&... args) {
        notes_.push_back(fmt::format(format, std::forward<Args>(args)...));
    }
    Json json() const { return {{"problems", problems_}, {"notes", notes_}}; }

  private:
    Json problems_ = Json::array();
    Json notes_ = Json::array();
};

void check_flags(const Superblock& superblock, Findings& findings) {
    const std::uint32_t flags = superblock.flags;
    const auto has = [flags](std::uint32_t flag) { return (flags & flag) != 0; };
    if (has(md_flag::was_up_to_date) && !has(md_flag::consistent)) {
        findings.problem("flags: was-up-to-date without consistent can not be");
    }
    if (!has(md_flag::al_clean)) {
        findings.note(
            "the activity log was not applied yet: the volume is in use, or was when the "
            "node stopped (apply-al, or attach it)");
    }
    if (has(md_flag::primary_ind) && has(md_flag::al_clean)) {
        findings.note("this node was primary; its activity log has been applied since");
    }
    if (superblock.current_uuid == uuid_none) {
        findings.problem("current-uuid is 0, which names no generation");
    }
}

void check_peers(const Superblock& superblock, Findings& findings) {
    const int own = superblock.node_id;
    if (own >= 0 && superblock.peers[static_cast<unsigned>(own)].bitmap_index != -1) {
        findings.problem("this node ({}) has a bitmap slot toward itself", own);
    }
    const auto& slots = superblock.peers;
    const auto owned = std::count_if(slots.begin(), slots.end(), [](const PeerMetadata& peer) {
        return peer.bitmap_index != -1;
    });
    if (static_cast<std::uint32_t>(owned) < superblock.max_peers) {
        findings.note("{} of {} bitmap slots are not given to a peer yet",
                      superblock.max_peers - static_cast<std::uint32_t>(owned),
                      superblock.max_peers);
    }
}

void check_extension(const Superblock& superblock, Findings& findings) {
    const SuperblockExtension& extension = superblock.extension;
    if (!extension.present) {
        findings.note("no Replica extension: DRBD or drbdmeta wrote last");
        return;
    }
    const bool decided = uuid_identity(superblock.current_uuid) != uuid_just_created &&
                         superblock.current_uuid != uuid_none;
    const bool up_to_date = (superblock.flags & md_flag::was_up_to_date) != 0;
    const int own = superblock.node_id;
    if (decided && up_to_date && own >= 0 && !extension.in_sync.empty() &&
        !extension.in_sync.has(static_cast<NodeId>(own))) {
        findings.note("up to date, but not in the in-sync set that this node has recorded");
    }
    if (extension.write_seq == 0) findings.problem("write-seq is 0: never counted");
}

void check_log(const MetadataImage& image, Findings& findings) {
    const auto replay = replay_of(image);
    const Superblock& superblock = image.superblock;
    const bool clean = (superblock.flags & md_flag::al_clean) != 0;
    const bool primary = (superblock.flags & md_flag::primary_ind) != 0;
    if (!replay) {
        if (primary && !clean) {
            findings.problem("{}", replay.error().message);
        } else {
            findings.note("{} (it does not matter: no write depends on it)",
                          replay.error().message);
        }
        return;
    }
    const AlReplay& log = replay.value();
    if (log.blocks_corrupt == 1) findings.note("one block of the activity log is torn or damaged");
    if (log.blocks_corrupt > 1) {
        findings.problem("{} blocks of the activity log are damaged", log.blocks_corrupt);
    }
    if (log.slots_ignored > 0) {
        findings.problem("the activity log names {} slots that can not exist", log.slots_ignored);
    }
    if (clean && !log.extents.empty()) {
        findings.note("the activity log still names {} extents, all of them in the bitmap already",
                      log.extents.size());
    }
    const std::uint64_t bytes = superblock.effective_size_sectors * sector_bytes;
    const auto beyond = std::count_if(
        log.extents.begin(), log.extents.end(),
        [bytes](std::uint32_t extent) { return std::uint64_t{extent} * extent_bytes >= bytes; });
    if (beyond > 0) {
        findings.problem("the activity log holds {} extents beyond the volume's end", beyond);
    }
}

void check_bitmap(const MetadataFile& file, const MetadataImage& image, Findings& findings) {
    const auto counts = count_bitmap(file, image);
    if (!counts) {
        findings.problem("{}", counts.error().message);
    } else if (counts.value().beyond > 0) {
        findings.note(
            "{} bits are set beyond the volume's end (drbdmeta apply-al does that); they "
            "mean nothing",
            counts.value().beyond);
    }
}

// The block as it lies on the disk, and the node's copy, each by itself.
void check_copies(const MetadataFile& file, std::span<const std::byte> copy, Findings& findings) {
    const auto block = file.read_superblock();
    if (!block) return findings.problem("{}", block.error().message);
    if (const auto disk = decode_superblock(block.value()); !disk) {
        findings.problem("on the disk: {}", disk.error().message);
    }
    if (copy.empty()) return;
    if (copy.size() != superblock_bytes) {
        return findings.problem("the copy has {} bytes, {} are right", copy.size(),
                                superblock_bytes);
    }
    if (const auto decoded = decode_superblock(copy.first<superblock_bytes>()); !decoded) {
        findings.problem("in the copy: {}", decoded.error().message);
    } else if (!std::equal(copy.begin(), copy.end(), block.value().begin())) {
        findings.note("disk and copy differ; number {} is in the copy",
                      decoded.value().extension.write_seq);
    }
}

void append_text(const Json& value, const std::string& indent, std::string& text);

std::string scalar(const Json& value) {
    if (value.is_null()) return "-";
    return value.is_string() ? value.get<std::string>() : value.dump();
}

bool is_plain_list(const Json& value) {
    return value.is_array() && std::none_of(value.begin(), value.end(), [](const Json& entry) {
               return entry.is_structured() ||
                      (entry.is_string() && entry.get_ref<const std::string&>().size() > 20);
           });
}

std::string joined(const Json& list) {
    std::string text;
    for (const Json& entry : list)
        text += (text.empty() ? "" : " ") + scalar(entry);
    return text.empty() ? "-" : text;
}

void append_list(const Json& list, const std::string& indent, std::string& text) {
    for (const Json& entry : list) {
        if (!entry.is_object()) {
            text += fmt::format("{}- {}\n", indent, scalar(entry));
            continue;
        }
        std::string inner;
        append_text(entry, indent + "  ", inner);
        inner[indent.size()] = '-';
        text += inner;
    }
}

void append_text(const Json& value, const std::string& indent, std::string& text) {
    for (const auto& [name, entry] : value.items()) {
        if (is_plain_list(entry)) {
            text += fmt::format("{}{}: {}\n", indent, name, joined(entry));
        } else if (entry.is_array()) {
            text += fmt::format("{}{}:\n", indent, name);
            append_list(entry, indent + "  ", text);
        } else if (entry.is_object()) {
            text += fmt::format("{}{}:\n", indent, name);
            append_text(entry, indent + "  ", text);
        } else {
            text += fmt::format("{}{}: {}\n", indent, name, scalar(entry));
        }
    }
}

}  // namespace

Json describe(const MetadataFile& file, const MetadataImage& image, const BitmapCounts& counts) {
    const Superblock& superblock = image.superblock;
    return {{"disk", file.disk().path()},
            {"metadata", file.device().path()},
            {"place", file.place() == MetadataPlace::internal ? "internal" : "flex-external"},
            {"version", "v09"},
            {"effective-size-sectors", superblock.effective_size_sectors},
            {"current-uuid", hex(superblock.current_uuid)},
            {"members", hex(superblock.members)},
            {"device-uuid", hex(superblock.device_uuid)},
            {"flags", names_of(superblock.flags, device_flags)},
            {"flags-value", superblock.flags},
            {"node-id", superblock.node_id},
            {"md-size-sectors", superblock.md_size_sectors},
            {"al-offset-sectors", superblock.al_offset_sectors},
            {"bm-offset-sectors", superblock.bm_offset_sectors},
            {"al-nr-extents", superblock.al_extents},
            {"bm-bytes-per-bit", superblock.bytes_per_bit},
            {"la-peer-max-bio-size", superblock.max_bio_bytes},
            {"max-peers", superblock.max_peers},
            {"al-stripes", superblock.al_stripes},
            {"al-stripe-size-4k", superblock.al_stripe_blocks},
            {"layout", describe_layout(image.layout)},
            {"peers", describe_peers(superblock)},
            {"history", describe_history(superblock)},
            {"extension", describe_extension(superblock.extension)},
            {"activity-log", describe_log(image)},
            {"bitmap", describe_bitmap(image, counts)},
            {"bits-beyond-end", counts.beyond}};
}

Json check(MetadataFile& file, std::span<const std::byte> copy) {
    Findings findings;
    const auto image = read_metadata(file, copy);  // finds the place
    check_copies(file, copy, findings);
    if (!image) {
        const auto block = file.read_superblock();
        const bool told = block && !decode_superblock(block.value()) && copy.empty();
        if (!told) findings.problem("{}", image.error().message);
        return findings.json();
    }
    check_flags(image.value().superblock, findings);
    check_peers(image.value().superblock, findings);
    check_extension(image.value().superblock, findings);
    check_log(image.value(), findings);
    check_bitmap(file, image.value(), findings);
    return findings.json();
}

std::string to_text(const Json& document) {
    std::string text;
    append_text(document, "", text);
    return text;
}

}  // namespace replica
