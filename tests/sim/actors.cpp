// SPDX-License-Identifier: Apache-2.0
// What happens to the cluster: the swarm of faults that a seed draws, the application, the
// operator, and the end of each run: heal, resolve, demand convergence, compare every byte.
#include <algorithm>
#include <cerrno>
#include <iterator>

#include "engine/format/activity_log.hpp"
#include "tests/sim/world.hpp"

namespace replica::sim {
namespace {

constexpr std::uint64_t sectors_per_block = block_bytes / sector_bytes;
constexpr std::uint64_t sectors_per_extent = extent_bytes / sector_bytes;
constexpr std::uint64_t extent_blocks = extent_bytes / block_bytes;

bool is_write(IoKind kind) {
    return kind == IoKind::write || kind == IoKind::discard || kind == IoKind::write_zeroes;
}

}  // namespace

void World::draw_swarm() {
    const auto half = [&] { return random_.below(2) == 0; };
    swarm_.calm = random_.below(8) == 0 || options_.calm;
    if (!swarm_.calm) {
        swarm_.process_crash = half();
        swarm_.power_cut = half();
        swarm_.all_power = random_.below(4) == 0;
        swarm_.partition = half();
        swarm_.half_open = half();
        swarm_.slow_disk = random_.below(3) == 0;
        swarm_.slow_data = swarm_.slow_disk && random_.below(3) != 0;
        swarm_.slow_metadata = swarm_.slow_disk && (!swarm_.slow_data || half());
        swarm_.late = true;
        swarm_.segments = half();
        swarm_.bit_flips = random_.below(5) == 0;
        swarm_.resets = half();
        swarm_.stalls = half();
        swarm_.one_way = half();
        swarm_.ambushes = half();
        swarm_.strangers = random_.below(4) == 0;
        swarm_.copy_errors = random_.below(6) == 0;
        swarm_.old_disks = random_.below(8) == 0;
        swarm_.leavers = random_.below(5) == 0;
        swarm_.latent = random_.below(6) == 0;
        swarm_.restarts = random_.below(3) == 0;
        const std::uint64_t slowness[] = {0, 0, 0, 8'000, 60'000};
        swarm_.ns_per_kib = slowness[random_.below(5)];
        if (swarm_.ns_per_kib > 0) ++stats_.of(Fault::slow_link);
        swarm_.disk_errors = random_.below(4) == 0;
        swarm_.pause = random_.below(3) == 0;
    }
    swarm_.operators = swarm_.calm ? random_.below(3) == 0 : half();
    swarm_.options = swarm_.operators && half();
    swarm_.resize = half();
    swarm_.detach = swarm_.operators && half();
    swarm_.force = random_.below(6) == 0 && (swarm_.operators || !swarm_.calm);
    if (swarm_.calm) ++stats_.calm;
    if (!swarm_.calm) draw_slowness();
    const std::uint64_t net[] = {20'000, 200'000, 2'000'000};
    swarm_.net_delay_ns = net[random_.below(3)];
    const std::uint64_t disk[] = {30'000, 300'000, 5'000'000};
    swarm_.disk_delay_ns = disk[random_.below(3)];
    leave_out_features();
}

// One or two kinds that are always slow: so seeds often hit what can happen meanwhile.
void World::draw_slowness() {
    if (random_.below(3) == 0) {
        constexpr int origins = static_cast<int>(IoOrigin::bitmap_page) + 1;
        const bool label = random_.below(3) == 0;
        swarm_.slow_origin = label ? static_cast<int>(IoOrigin::superblock)
                                   : static_cast<int>(random_.below(origins));
    }
    if (random_.below(3) == 0) {
        constexpr MessageType types[] = {
            MessageType::state,
            MessageType::state_update,
            MessageType::generation,
            MessageType::generation_ack,
            MessageType::in_sync,
            MessageType::promote,
            MessageType::promote_reply,
            MessageType::write_ack,
            MessageType::flush_ack,
            MessageType::trim,
            MessageType::bitmap_done,
            MessageType::resync_ack,
            MessageType::sync_done,
            MessageType::sync_done_ack,
            MessageType::adopt_generation,
            MessageType::generation_committed,
        };
        swarm_.slow_message = static_cast<int>(types[random_.below(std::size(types))]);
    }
    const std::uint64_t longest[] = {20, 100, 250, 1'500};
    swarm_.slow_ns = longest[random_.below(4)] * ns_per_ms;
    swarm_.slow_nodes = random_.below(2) == 0 ? ~0U : static_cast<std::uint32_t>(random_.next());
    if (random_.below(8) == 0) swarm_.slow_pair = {0, 1};
}

// Most volumes have a few extents. Some have bitmaps of more than one page on the wire, and a few
// have more extents than one block of the activity log can name.
void World::draw_volume() {
    std::uint64_t extents = 2 + random_.below(5);
    const std::uint64_t kind = random_.below(150);
    if (kind == 0) {
        extents = al_context_max + random_.below(40);
        base_.options.al_extents = al_context_max + static_cast<std::uint32_t>(random_.below(60));
    } else if (kind < 12) {
        extents = 33 + random_.below(40);
    }
    wide_ = kind < 12;
    volume_sectors_ =
        extents * sectors_per_extent - random_.below(64) * sectors_per_block - random_.below(3);
    // Whole blocks are what a volume grows to; the last one of the first size may be a short one.
    max_sectors_ =
        (volume_sectors_ + sectors_per_block - 1) / sectors_per_block * sectors_per_block;
    if (swarm_.resize) {
        max_sectors_ +=
            (1 + random_.below(3 * sectors_per_extent / sectors_per_block)) * sectors_per_block;
    } else {
        max_sectors_ = volume_sectors_;
    }
    const std::size_t hot = 3 + random_.below(wide_ ? 60 : 12);
    for (std::size_t i = 0; i < hot; ++i) {
        const std::uint64_t block = random_.below(volume_sectors_ / sectors_per_block);
        // Some lie at the end of an extent, where requests go on into the next.
        const std::uint64_t last = (block / extent_blocks + 1) * extent_blocks - 1;
        const bool edge = random_.below(8) == 0 && last < volume_sectors_ / sectors_per_block;
        hot_blocks_.push_back(edge ? last : block);
    }
    hot_blocks_.push_back((volume_sectors_ - 1) / sectors_per_block);
}

std::size_t World::draw_cluster() {
    const std::size_t n = 1 + random_.below(16) % 4;
    std::size_t count = n == 1 && random_.below(3) != 0 ? 2 : n;
    if (random_.below(16) == 0) count = random_.below(6) == 0 ? 6 + random_.below(3) : 5;
    base_.options.al_extents = 2 + static_cast<std::uint32_t>(random_.below(5));
    draw_volume();
    base_.resource = "r0";
    base_.mutant = options_.mutant;
    const Protocol protocols[] = {Protocol::c, Protocol::c, Protocol::c, Protocol::a, Protocol::b};
    base_.options.protocol = protocols[random_.below(5)];
    base_.options.ping_interval_ms = 500;
    base_.options.ping_timeout_ms = 300;
    base_.options.request_timeout_ms = 4'000;
    base_.options.connect_interval_ms = 200;
    if (random_.below(4) == 0 && !wide_) base_.options.resync_rate_max = 4U << 20;
    const auto policy = [&](unsigned n_policies) {
        return static_cast<std::uint8_t>(random_.below(n_policies));
    };
    if (random_.below(2) == 0) {
        base_.options.after_sb_0pri = static_cast<AfterSb0Pri>(policy(5));
        base_.options.after_sb_1pri = static_cast<AfterSb1Pri>(policy(4));
        base_.options.after_sb_2pri = static_cast<AfterSb2Pri>(policy(2));
    }
    base_.limits.requests = 4 + static_cast<std::uint32_t>(random_.below(13));
    base_.limits.journal = 8U << random_.below(5);
    base_.limits.peer_reads = 16;
    base_.limits.resync_chunks = 1 + static_cast<std::uint32_t>(random_.below(6));
    base_.limits.resync_chunk_bytes = block_bytes
                                      << (wide_ ? 6 + random_.below(3) : random_.below(9));
    base_.limits.bitmap_writes = 1 + static_cast<std::uint32_t>(random_.below(3));
    volume_is_drawn_ = true;
    return count;
}

// Few, as many as extents, as many as a block of the log can name, and more.
std::uint32_t World::draw_al_extents() {
    const std::uint32_t more[] = {
        8, 16, 67, al_context_max, al_context_max + 1, 2 * al_context_max + 7};
    return random_.below(3) != 0 ? 2 + static_cast<std::uint32_t>(random_.below(7))
                                 : more[random_.below(std::size(more))];
}

// Options that may differ between nodes. The protocol is agreed upon by those who configure.
void World::draw_node(Node& node) {
    ResourceOptions& o = node.options;
    o = base_.options;
    o.on_io_error = random_.below(3) == 0 ? OnIoError::pass_on : OnIoError::detach;
    if (random_.below(3) == 0) o.al_extents = draw_al_extents();
    if (random_.below(3) == 0) {
        o.ping_interval_ms = 300 + static_cast<std::uint32_t>(random_.below(600));
        o.ping_timeout_ms = 200 + static_cast<std::uint32_t>(random_.below(400));
        o.request_timeout_ms = 2'000 + static_cast<std::uint32_t>(random_.below(6'000));
        o.connect_interval_ms = 100 + static_cast<std::uint32_t>(random_.below(400));
    }
    if (random_.below(4) == 0 && !wide_) o.resync_rate_max = random_.below(2) == 0 ? 8U << 20 : 0;
    node.limits = base_.limits;
    if (random_.below(3) == 0) node.limits.journal = 8U << random_.below(5);
    if (random_.below(3) == 0) {
        node.limits.requests = 4 + static_cast<std::uint32_t>(random_.below(13));
    }
    if (random_.below(3) == 0) {
        node.limits.resync_chunks = 1 + static_cast<std::uint32_t>(random_.below(6));
        node.limits.resync_chunk_bytes = block_bytes
                                         << (wide_ ? 6 + random_.below(3) : random_.below(9));
    }
}

void World::make_nodes(std::size_t count) {
    nodes_.resize(count);
    const bool drawn = volume_is_drawn_;
    for (Node& node : nodes_) {
        node.options = base_.options;
        node.limits = base_.limits;
        if (drawn) draw_node(node);
    }
    for (int n = 0; n < static_cast<int>(count); ++n) {
        new_disk(n);
        nodes_[static_cast<std::size_t>(n)].boot = random_.next();
    }
}

// One that never held the volume.
void World::new_disk(int n) {
    auto slots = static_cast<std::uint32_t>(std::max<std::size_t>(nodes_.size(), 2) - 1);
    if (volume_is_drawn_) slots += static_cast<std::uint32_t>(random_.below(6) % 3);
    const std::uint64_t blocks = (max_sectors_ + sectors_per_block - 1) / sectors_per_block;
    const std::uint64_t bitmap_bytes = (blocks + 63) / 64 * 8 * slots;
    Node& node = nodes_[static_cast<std::size_t>(n)];
    node.disk = std::make_unique<SimDisk>(max_sectors_, 8, (bitmap_bytes + 4095) / 4096);
    node.log_known = false;
    fill_room(n);
    Superblock sb;
    sb.effective_size_sectors = volume_sectors_;
    sb.device_uuid = random_.next();
    sb.md_size_sectors = 8 + 64 + static_cast<std::uint32_t>(node.disk->bitmap.size()) * 8;
    sb.al_offset_sectors = -64;
    sb.bm_offset_sectors = -64 - static_cast<std::int32_t>(node.disk->bitmap.size()) * 8;
    sb.max_peers = slots;
    sb.node_id = static_cast<std::int32_t>(n);
    sb.extension.present = true;
    encode_superblock(sb, node.disk->edit_superblock());
    node.disk->edit_copy() = node.disk->superblock();
    for (SimDisk::Block& block : node.disk->activity_log)
        encode_al_initialised(block);
}

// --- Application
// ------------------------------------------------------------------------------------------

void World::application() {
    judge_waiting();
    const Decision decision(*this, Actor::application);
    at(50'000 + random_.below(3 * ns_per_ms), [this] { application(); });
    for (int n = 0; decision.on() && n < static_cast<int>(nodes_.size()); ++n) {
        const Node& node = nodes_[static_cast<std::size_t>(n)];
        if (!busy_ || !node.up || node.paused_until > now_) continue;
        if (node.core->role() == Role::primary && node.promote_token == 0 &&
            random_.below(4) != 0) {
            submit(n);
        }
    }
}

void World::submit(int n) {
    const std::vector<AppRequest>& requests = nodes_[static_cast<std::size_t>(n)].requests;
    if (std::all_of(requests.begin(), requests.end(), [](const AppRequest& r) { return r.used; }))
        return;
    const std::uint64_t dice = random_.below(100);
    const IoKind kind = dice < 62   ? IoKind::write
                        : dice < 80 ? IoKind::read
                        : dice < 90 ? IoKind::flush
                        : dice < 95 ? IoKind::discard
                                    : IoKind::write_zeroes;
    const std::uint64_t size = nodes_[static_cast<std::size_t>(n)].core->volume_bytes();
    const std::uint64_t grown = (size - volume_sectors_ * sector_bytes) / block_bytes;
    const std::uint64_t block =
        grown > 0 && random_.below(2) == 0
            ? (size - 1) / block_bytes - random_.below(std::min<std::uint64_t>(grown + 1, 40))
            : hot_blocks_[random_.below(hot_blocks_.size())];
    std::uint64_t sector =
        block * sectors_per_block + (random_.below(3) == 0 ? random_.below(sectors_per_block) : 0);
    const std::uint64_t large =
        kind == IoKind::discard || kind == IoKind::write_zeroes ? 6'000 : 300;
    const std::uint64_t wanted = random_.below(3) != 0    ? sectors_per_block
                                 : random_.below(16) == 0 ? 1 + random_.below(large)
                                                          : 1 + random_.below(24);
    const std::uint64_t end = size / sector_bytes;
    if (sector >= end) sector = end - 1;
    const bool fua = is_write(kind) && random_.below(10) == 0;
    submit_pieces(n, kind, sector, std::min(wanted, end - sector), fua);
}

// The doors split a request that crosses the end of an extent, and so does this: the core gets the
// parts one after the other, as many as there is room for.
void World::submit_pieces(int n, IoKind kind, std::uint64_t sector, std::uint64_t sectors,
                          bool fua) {
    if (kind == IoKind::flush) return void(submit(n, kind, 0, 0, false));
    const std::uint64_t end = sector + sectors;
    while (sector < end) {
        const std::uint64_t extent_end = (sector / sectors_per_extent + 1) * sectors_per_extent;
        const std::uint64_t piece = std::min(end, extent_end) - sector;
        const Node& node = nodes_[static_cast<std::size_t>(n)];
        if (!node.up || !node.core->serves()) return;
        if (submit(n, kind, sector, static_cast<std::uint32_t>(piece), fua) == 0) return;
        sector += piece;
        if (sector < end) met(Fault::across_extents, n);
    }
}

// Returns a ticket for the answer, or 0: too many requests are under way.
std::uint64_t World::submit(int n, IoKind kind, std::uint64_t sector, std::uint32_t sectors,
                            bool fua) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    const auto slot_it = std::find_if(node.requests.begin(), node.requests.end(),
                                      [](const AppRequest& r) { return !r.used; });
    if (slot_it == node.requests.end()) return 0;
    const auto slot = static_cast<std::uint32_t>(slot_it - node.requests.begin());
    AppRequest& r = *slot_it;
    r = AppRequest{};
    r.used = true;
    r.ticket = next_ticket_++;
    const std::uint64_t ticket = r.ticket;
    r.submitted_at = now_;
    r.kind = kind;
    r.sector = sector;
    r.sectors = sectors;
    r.fua = fua;
    r.generation = node.core->superblock().current_uuid;
    if (!checker_.knows(r.generation)) fail("a primary without a known generation");
    if (is_write(r.kind)) {
        r.id = next_write_++;
        writers_[r.id] = n;
        ++stats_.writes;
        checker_.submitted(r.id, r.generation, r.sector, r.sectors, r.kind != IoKind::write);
        r.buffer.assign(r.sectors, r.id);
    } else if (r.kind == IoKind::read) {
        ++stats_.reads;
        r.read = checker_.read_submitted(r.generation, r.sector, r.sectors);
        r.buffer.assign(r.sectors, 0);
    } else {
        ++stats_.flushes;
        r.promise = checker_.flush_submitted(r.generation);
        r.sector = r.sectors = 0;
    }
    tell(n, "submits request %u: kind %u write %llu sector %llu+%u fua %d", slot,
         static_cast<unsigned>(r.kind), static_cast<unsigned long long>(r.id),
         static_cast<unsigned long long>(r.sector), r.sectors, r.fua);
    node.core->on_request(Instant{now_}, slot, r.kind, r.sector * sector_bytes,
                          r.sectors * sector_bytes, r.fua);
    perform(n);
    return ticket;
}

// With quorum off a primary that stood still does not know yet that a member went on without it: a
// split brain, which both find at the next handshake. The member owes it nothing any more.
bool World::moved_on(int member, int primary, Uuid ours) {
    const Node& node = nodes_[static_cast<std::size_t>(member)];
    if (member == primary) return false;
    const auto& sb = node.disk->newest();
    if (!sb) fail("a member's superblock cannot be read");
    const bool linked = node.up && node.core->view(static_cast<NodeId>(primary)).connection ==
                                       ConnectionState::connected;
    // It keeps the old name while it takes the blocks of another.
    const bool taking = (sb.value().flags & md_flag::consistent) == 0;
    const bool renamed =
        !uuid_equal(sb.value().current_uuid, ours) &&
        (node.recorded.count(uuid_identity(ours)) != 0 ||  // and then took older data for half
         !checker_.descends(ours, sb.value().current_uuid));
    return !linked && (taking || renamed);
}

// The disks of the in-sync set of this primary, as it sees it.
// `since`: a member whose cache was lost after that had it when it answered.
std::vector<const SimDisk*> World::holders(NodeMask members, std::uint64_t since) {
    std::vector<const SimDisk*> disks;
    for (std::size_t m = 0; m < nodes_.size(); ++m) {
        if (members.has(static_cast<NodeId>(m)) && nodes_[m].lost_power_at <= since) {
            disks.push_back(nodes_[m].disk.get());
        }
    }
    return disks;
}

// An error says why: the disk of this node, that of a peer, or that none could be asked. nullptr:
// it is the truth.
const char* World::untrue_error(int n, const AppRequest& r, int error) const {
    const Node& node = nodes_[static_cast<std::size_t>(n)];
    const Core& core = *node.core;
    if (r.disk_error != 0) return error == r.disk_error ? nullptr : "its own disk said another";
    switch (error) {
        case EROFS:
            return core.serves() ? "it is primary" : nullptr;
        case EINVAL:
        case ENOSPC: {
            const std::uint64_t end = (r.sector + r.sectors) * sector_bytes;
            return end > core.volume_bytes() || core.disk() < DiskState::inconsistent
                       ? nullptr
                       : "there is room, and no disk has said otherwise";
        }
        case EIO: {
            const bool own = core.disk() < DiskState::inconsistent &&
                             node.failed_at >= r.submitted_at && !has_good_peer(n);
            const bool peer = r.peer_error || node.refused_at >= r.submitted_at;
            // The last copy met the primary again without what it had acknowledged: its cache was
            // lost with the power, or has to be taken for lost since the disk failed.
            const bool lost = core.disk() < DiskState::consistent &&
                              std::any_of(nodes_.begin(), nodes_.end(), [&](const Node& other) {
                                  const bool failed = &other != &node && other.failed_at != 0;
                                  // With A and B it may not have got what was acknowledged.
                                  const bool weak = base_.options.protocol != Protocol::c;
                                  return other.lost_power_at != 0 || failed || weak;
                              });
            return own || peer || lost || nodes_.size() == 1 ? nullptr : "no disk has failed";
        }
        case ENOLINK:
            if (core.disk() == DiskState::up_to_date) return "its own disk is good";
            if (nodes_.size() == 1) return "there is nobody that could be asked";
            if (r.kind == IoKind::read && r.peer_error)
                return "a peer was asked, and its disk failed";
            return r.kind == IoKind::read && has_good_peer(n) ? "a peer could be asked" : nullptr;
        default:
            return "nothing has such an error";
    }
}

bool World::has_good_peer(int n) const {
    const Core& core = *nodes_[static_cast<std::size_t>(n)].core;
    for (std::size_t m = 0; m < nodes_.size(); ++m) {
        const auto id = static_cast<NodeId>(m);
        if (static_cast<int>(m) == n || !core.in_sync().has(id)) continue;
        const PeerView view = core.view(id);
        if (view.connection == ConnectionState::connected && view.disk == DiskState::up_to_date)
            return true;
    }
    return false;
}

// A value that a read returns is acknowledged before: else it could vanish at a failover although
// somebody has seen it.
void World::read_after_writes(const Node& node, const AppRequest& read) {
    for (const AppRequest& w : node.requests) {
        if (!w.used || w.kind != IoKind::write) continue;
        for (std::uint64_t s = std::max(read.sector, w.sector);
             s < std::min(read.sector + read.sectors, w.sector + w.sectors); ++s) {
            if (read.buffer[s - read.sector] == w.id)
                fail("I-C11 a read returns a write that is still under way");
        }
    }
}

void World::completed(int n, const Effect& e) {
    const std::uint32_t slot = e.index;
    const int error = e.error;
    Node& node = nodes_[static_cast<std::size_t>(n)];
    AppRequest& r = node.requests[slot];
    if (!r.used) fail("a request was completed twice");
    r.used = false;
    trace(n, "request %u kind %u write %llu sector %llu+%u: %d", slot,
          static_cast<unsigned>(r.kind), static_cast<unsigned long long>(r.id),
          static_cast<unsigned long long>(r.sector), r.sectors, error);
    answers_[r.ticket] = error;
    if (error != 0) {
        const char* const lie = untrue_error(n, r, error);
        if (lie != nullptr) fail("I-E1 error " + std::to_string(error) + " of a request: " + lie);
        return;
    }
    const Core& core = *node.core;
    const Uuid generation = e.offset;
    NodeMask members{e.message.nodes};
    for (std::size_t m = 0; m < nodes_.size(); ++m) {
        if (moved_on(static_cast<int>(m), n, generation)) members.remove(static_cast<NodeId>(m));
    }
    const bool c = base_.options.protocol == Protocol::c;
    const auto disks = holders(members, r.kind == IoKind::flush || r.fua ? now_ : r.submitted_at);
    std::string wrong;
    if (r.kind == IoKind::read) {
        wrong = checker_.read_done(r.read, r.sector, r.buffer);
        for (const Stamp value : r.buffer) {
            const auto writer = writers_.find(value);
            if (writer == writers_.end() || value < node.first_write) continue;
            if (writer->second != n) fail("I-Q8 a primary reads what another wrote in its time");
        }
        read_after_writes(node, r);
    } else if (r.kind == IoKind::flush) {
        wrong = checker_.flushed(r.promise, generation, disks);
    } else {
        wrong = checker_.acknowledged(r.id, generation, c, r.fua, disks);
    }
    if (!wrong.empty()) fail(wrong);
    if (r.kind == IoKind::read) return;
    // I-Q2: every member of the set has the generation on its disk before the acknowledgement.
    for (std::size_t m = 0; m < nodes_.size(); ++m) {
        if (!members.has(static_cast<NodeId>(m))) continue;
        const auto& sb = nodes_[m].disk->newest();
        if (!sb) fail("a member's superblock cannot be read");
        if (is_write(r.kind) && sb.value().effective_size_sectors < r.sector + r.sectors)
            fail("I-S2 acknowledged beyond the recorded size of n" + std::to_string(m));
        const bool same = uuid_equal(sb.value().current_uuid, generation);
        // A member that is being told that it is UpToDate was counted in a moment before; until its
        // label says so it is promoted by force only.
        const bool told =
            core.view(static_cast<NodeId>(m)).replication == ReplicationState::sync_source;
        const bool unfit = (sb.value().flags & md_flag::consistent) == 0;
        const bool joining = static_cast<int>(m) != n && (told || unfit);
        if (!same && !joining) {
            fail("I-Q2 acknowledged before n" + std::to_string(m) +
                 " has the generation on its disk");
        }
    }
    // A target that does not know yet that it is counted in is no copy if the source loses its
    // cache.
    for (std::size_t m = 0; m < nodes_.size(); ++m) {
        const auto& sb = nodes_[m].disk->newest();
        if (sb && (sb.value().flags & md_flag::consistent) == 0)
            members.remove(static_cast<NodeId>(m));
    }
    // From the moment that it was sent on a power cut of its holders may take it.
    last_ack_[uuid_identity(generation)] = {members, r.submitted_at, n};
}

// --- Operator
// ---------------------------------------------------------------------------------------------

void World::command(int n, CommandKind kind, int peer, bool force, bool discard) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    Command c;
    c.kind = kind;
    c.token = ++token_;
    c.peer = peer;
    c.force = force;
    c.discard_my_data = discard;
    c.wall_clock_s = now_ / ns_per_s;
    tell(n, "command %u peer %d force %d discard %d", static_cast<unsigned>(kind), peer, force,
         discard);
    if (kind == CommandKind::promote && node.core->role() == Role::secondary &&
        node.promote_token == 0) {
        node.promote_token = c.token;
        ambush("promote");
        node.forced = force && node.core->disk() != DiskState::up_to_date;
        node.parent = node.core->superblock().current_uuid;
    }
    if (kind == CommandKind::hold_metadata) ambush("hold");
    node.core->on_command(Instant{now_}, c);
    // Whose data the operator gives up is no holder of it any more.
    if (kind == CommandKind::invalidate && node.core->disk() == DiskState::inconsistent)
        node.lost_power_at = now_;
    if (kind == CommandKind::invalidate_remote) {
        for (std::size_t m = 0; m < nodes_.size(); ++m) {
            if (static_cast<int>(m) != n && (peer < 0 || static_cast<int>(m) == peer))
                nodes_[m].lost_power_at = now_;
        }
    }
    perform(n);
}

// Whether a disk still has what it had then. A disk that failed or was detached is behind, and its
// label names an older generation.
bool World::kept_since(int n, std::uint64_t then) const {
    const Node& node = nodes_[static_cast<std::size_t>(n)];
    return std::max({node.lost_power_at, node.failed_at, node.detached_at}) <= then;
}

void World::replied(int n, std::uint32_t token, Errc code) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    replies_[token] = code;
    // Its shell ends with it; somebody brings it up again.
    if (token == node.down_token && code == Errc::ok) {
        at(1, [this, n, incarnation = node.incarnation] {
            if (nodes_[static_cast<std::size_t>(n)].incarnation == incarnation) crash(n, false);
        });
        const std::uint64_t later = 100 * ns_per_ms + random_.below(2 * ns_per_s);
        if (n != leaving_) start_later(n, later);
    }
    if (token == node.hold_token) {
        node.hold_token = 0;
        if (code == Errc::ok) metadata_held(n);
    }
    if (token != node.promote_token) return;
    node.promote_token = 0;
    if (code != Errc::ok || node.core->role() != Role::primary) return;
    ++stats_.promotions;
    node.first_write = next_write_;
    const Uuid generation = node.core->superblock().current_uuid;
    if (!checker_.knows(generation))
        checker_.generation(generation, node.core->superblock().extension.parent_uuid);
    if (node.forced) return checker_.adopted(generation, *node.disk, size_of(n));
    // Nothing acknowledged is missing, unless every holder of it lost its cache since.
    bool strict = false;
    const auto ack = last_ack_.find(uuid_identity(node.parent));
    if (ack != last_ack_.end()) {
        for (std::size_t m = 0; m < nodes_.size(); ++m) {
            const bool holder = base_.options.protocol == Protocol::c
                                    ? ack->second.members.has(static_cast<NodeId>(m))
                                    : false;
            strict = strict || (holder && kept_since(static_cast<int>(m), ack->second.at));
        }
        if (base_.options.protocol != Protocol::c) {
            // Only the primary's own disk is sure to have it, if the primary had a disk then.
            const bool own = ack->second.by == n && ack->second.members.has(static_cast<NodeId>(n));
            strict = own && kept_since(n, ack->second.at);
        }
    }
    const std::string wrong = checker_.promoted(generation, *node.disk, strict);
    if (!wrong.empty()) fail("n" + std::to_string(n) + ": " + wrong);
    if (!strict) checker_.adopted_losses(generation, *node.disk);
}

// At any time, also while they matter.
void World::change_options(int n) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    met(Fault::options, n);
    draw_node(node);
    tell(n, "new options");
    node.core->on_options(Instant{now_}, node.options);
    perform(n);
}

void World::one_command() {
    const int n = static_cast<int>(random_.below(nodes_.size()));
    Node& node = nodes_[static_cast<std::size_t>(n)];
    if (!node.up || node.paused_until > now_) return;
    const int peer = random_.below(2) == 0 ? -1 : static_cast<int>(random_.below(nodes_.size()));
    const int other = peer == n ? -1 : peer;
    met(Fault::command, n);
    operated_ = true;
    if (swarm_.options && random_.below(4) == 0) return change_options(n);
    switch (random_.below(13)) {
        case 0:
            return command(n, CommandKind::demote);
        case 1:
            return command(n, CommandKind::disconnect, other);
        case 2:
        case 3:
            return command(n, CommandKind::connect, other);
        case 4:
            return command(n, CommandKind::invalidate, other);
        case 5:
            return command(n, CommandKind::invalidate_remote, other);
        case 6:
            return command(n, CommandKind::pause_sync, other);
        case 7:
            return command(n, CommandKind::resume_sync, other);
        case 8:
            if (swarm_.detach) command(n, CommandKind::detach);
            return;
        case 9:
            return command(n, CommandKind::new_current_uuid, -1, random_.below(4) == 0);
        case 10:
            command(n, CommandKind::down);
            node.down_token = token_;
            return;
        default:
            if (node.core->disk() == DiskState::diskless && !node.disk_broken) attach(n);
            return;
    }
}

void World::operators() {
    if (!faulty_) return;
    const Decision decision(*this, Actor::operators);
    at(100 * ns_per_ms + random_.below(900 * ns_per_ms), [this] { operators(); });
    if (!decision.on()) return;
    // Somebody wants a primary: where the data is good, or by force in some seeds.
    bool primary = false;
    for (const Node& node : nodes_) {
        primary = primary || (node.up && node.core->role() == Role::primary);
    }
    if (!primary || random_.below(6) == 0) {
        const int n = static_cast<int>(random_.below(nodes_.size()));
        if (nodes_[static_cast<std::size_t>(n)].up) {
            bool fresh = true;
            for (const Node& node : nodes_) {
                const auto& sb = node.disk->newest();
                fresh = fresh && sb && uuid_identity(sb.value().current_uuid) == uuid_just_created;
            }
            const Uuid label = nodes_[static_cast<std::size_t>(n)].core->superblock().current_uuid;
            const bool had_data = uuid_identity(label) != uuid_just_created;
            command(n, CommandKind::promote, -1,
                    fresh || (swarm_.force && had_data && random_.below(8) == 0));
        }
    }
    if (swarm_.leavers && random_.below(4) == 0)
        take_out(static_cast<int>(random_.below(nodes_.size())));
    if (swarm_.operators && random_.below(3) == 0) one_command();
    if (swarm_.resize && random_.below(4) != 0) {
        const int n = static_cast<int>(random_.below(nodes_.size()));
        const Node& node = nodes_[static_cast<std::size_t>(n)];
        if (node.up && node.paused_until <= now_) grow_something(n);
    }
}

// --- Faults
// -----------------------------------------------------------------------------------------------

// The kernel says that there is a way to the peer: it may be true, or mean nothing.
void World::path_found(int n, int peer) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    if (!node.up || node.paused_until > now_ || n == peer) return;
    met(Fault::path_found, n);
    tell(n, "hears of a way to n%d", peer);
    node.core->on_path_found(Instant{now_}, static_cast<NodeId>(peer));
    perform(n);
}

void World::network_fault(int n) {
    const int m = static_cast<int>(random_.below(nodes_.size()));
    if (random_.below(10) == 0) return path_found(n, m);
    if (swarm_.strangers && random_.below(4) == 0) return stranger(n);
    const std::uint64_t kind = random_.below(4);
    if (kind < 2) {
        if (!swarm_.partition || m == n) return;
        const bool one_way = swarm_.one_way && random_.below(2) == 0;
        met(one_way ? Fault::one_way : Fault::partition, n);
        set_cut(n, m, true, one_way);
        tell(n, one_way ? "does not reach n%d" : "cut from n%d", m);
        return at(random_.below(swarm_.half_open ? 6 * ns_per_s : 400 * ns_per_ms), [this, n, m] {
            set_cut(n, m, false);
            tell(n, "joined with n%d", m);
            if (random_.below(2) == 0) path_found(n, m);
            if (random_.below(2) == 0) path_found(m, n);
        });
    }
    if (connections_.empty()) return;
    auto it = connections_.begin();
    std::advance(it, static_cast<std::ptrdiff_t>(random_.below(connections_.size())));
    const std::size_t side = random_.below(2);
    if (kind == 2 && swarm_.resets && it->second.open[side] &&
        nodes_[static_cast<std::size_t>(it->second.node[side])].up) {
        met(Fault::reset, n);
        tell(it->second.node[side], "a connection is reset");
        broken(it->first, static_cast<int>(side));
    } else if (kind == 3 && swarm_.stalls) {  // one stream, one direction; the others go on
        met(Fault::stall_stream, n);
        it->second.last_arrival[side] =
            std::max(it->second.last_arrival[side], now_) + random_.below(2 * ns_per_s);
    }
}

void World::disk_fault(int n) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    if (swarm_.old_disks) remember_label(n);
    if (swarm_.copy_errors && random_.below(3) == 0) return copy_fault(n);
    if (swarm_.latent && random_.below(2) == 0) {
        met(Fault::latent_error, n);
        for (int i = 0; i < 3; ++i) {
            const std::uint64_t block = hot_blocks_[random_.below(hot_blocks_.size())];
            node.disk->spoil(std::min(
                volume_sectors_ - 1, block * sectors_per_block + random_.below(sectors_per_block)));
        }
        return;
    }
    if (!swarm_.disk_errors || random_.below(3) != 0) return;
    met(Fault::broken_disk, n);
    node.disk_broken = true;
    tell(n, "disk breaks");
    if (random_.below(2) == 0) {
        at(random_.below(5 * ns_per_ms), [this, n, incarnation = node.incarnation] {
            Node& pulled = nodes_[static_cast<std::size_t>(n)];
            if (!pulled.up || pulled.incarnation != incarnation || !pulled.disk_broken) return;
            met(Fault::disk_removed, n);
            pulled.failed_at = now_;
            pulled.core->on_disk_removed(Instant{now_});
            perform(n);
        });
    }
    at(random_.below(4 * ns_per_s), [this, n] {
        Node& mended = nodes_[static_cast<std::size_t>(n)];
        mended.disk_broken = false;
        if (mended.up && mended.core->disk() == DiskState::diskless) attach(n);
    });
}

void World::start_later(int n, std::uint64_t delay) {
    at(delay, [this, n] {
        if (!nodes_[static_cast<std::size_t>(n)].up) start(n);
    });
}

// In the middle of something, and then back.
void World::crash_later(int n, std::uint64_t delay, bool power) {
    at(delay, [this, n, power] {
        if (!faulty_) return;
        crash(n, power);
        start_later(n, 5 * ns_per_ms + random_.below(ns_per_s));
    });
}

void World::one_fault() {
    const int n = static_cast<int>(random_.below(nodes_.size()));
    const auto back_after = [&](int which) {
        // Soon enough, sometimes, to die again while it recovers.
        const bool soon = swarm_.restarts && random_.below(2) == 0;
        const std::uint64_t delay = 5 * ns_per_ms + random_.below(soon ? 100'000 : 3 * ns_per_s);
        start_later(which, delay);
        if (!soon) return;
        const bool power = swarm_.power_cut && (!swarm_.process_crash || random_.below(2) == 0);
        crash_later(which, delay + random_.below(10 * swarm_.disk_delay_ns + ns_per_ms), power);
    };
    ++stats_.faults;
    switch (random_.below(9)) {
        case 0:
            if (!swarm_.process_crash) return;
            crash(n, false);
            return back_after(n);
        case 1:
            if (!swarm_.power_cut) return;
            crash(n, true);
            return back_after(n);
        case 2:
            if (!swarm_.all_power || random_.below(3) != 0) return;
            met(Fault::all_power, n);
            for (int m = 0; m < static_cast<int>(nodes_.size()); ++m) {
                crash(m, true);
                back_after(m);
            }
            return;
        case 3:
        case 4:
        case 5:
        case 6:
            return network_fault(n);
        case 7:
            if (!swarm_.pause || !nodes_[static_cast<std::size_t>(n)].up) return;
            met(Fault::pause, n);
            nodes_[static_cast<std::size_t>(n)].paused_until = now_ + random_.below(5 * ns_per_s);
            return tell(n, "stands still");
        default:
            return disk_fault(n);
    }
}

// Handshakes, exchanges of bitmaps, promotions and new generations are short: faults at random
// moments hit them too seldom.
void World::ambush(std::string_view happened) {
    if (!swarm_.ambushes || !faulty_) return;
    const bool short_lived = happened == "connected" || happened == "a new data generation" ||
                             happened == "promote" || happened == "hold" ||
                             happened.starts_with("resync started");
    if (!short_lived || random_.below(12) != 0) return;
    at(random_.below(swarm_.disk_delay_ns + 2 * swarm_.net_delay_ns), [this] {
        if (!faulty_) return;
        const Decision decision(*this, Actor::faults);
        for (int i = 0; decision.on() && i < 3; ++i)
            one_fault();
    });
}

void World::faults() {
    if (!faulty_) return;
    const Decision decision(*this, Actor::faults);
    at(20 * ns_per_ms + random_.below(1'500 * ns_per_ms), [this] { faults(); });
    if (!decision.on()) return;
    one_fault();
    if (random_.below(4) == 0) audit_all();
}

void World::run() {
    for (int n = 0; n < static_cast<int>(nodes_.size()); ++n)
        start(n);
    at(10 * ns_per_ms, [this] { application(); });
    at(300 * ns_per_ms, [this] { operators(); });
    at(700 * ns_per_ms, [this] { faults(); });
    const std::uint64_t end = now_ + 3 * ns_per_s + random_.below(18 * ns_per_s);
    while (now_ < end && step()) {
    }
    heal();
    stats_.simulated_ns = now_;
}

}  // namespace replica::sim
