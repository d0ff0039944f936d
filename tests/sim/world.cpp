// SPDX-License-Identifier: Apache-2.0
// The mechanics: time, disks, connections, and how a core's effects become events. What happens to
// the cluster is in actors.cpp.
#include "tests/sim/world.hpp"

#include <array>
#include <cerrno>
#include <cstdio>
#include <iterator>

#include "engine/format/activity_log.hpp"

namespace replica::sim {

World::World(const Options& options) : options_(options), random_(options.seed) {
    draw_swarm();
    make_nodes(draw_cluster());
}

World::World(const Options& options, const Setup& setup)
    : options_(options), random_(options.seed) {
    swarm_.net_delay_ns = 100'000;
    swarm_.disk_delay_ns = 100'000;
    faulty_ = busy_ = false;
    volume_sectors_ = setup.extents * extent_bytes / sector_bytes;
    max_sectors_ = volume_sectors_ + setup.room_extents * extent_bytes / sector_bytes;
    base_.resource = "r0";
    base_.mutant = options.mutant;
    base_.options.protocol = setup.protocol;
    base_.options.on_io_error = setup.on_io_error;
    base_.options.al_extents = setup.al_extents;
    base_.options.ping_interval_ms = 500;
    base_.options.ping_timeout_ms = 300;
    base_.options.request_timeout_ms = 4'000;
    base_.options.connect_interval_ms = 200;
    base_.limits.requests = 16;
    base_.limits.journal = setup.journal;
    base_.limits.peer_reads = 16;
    base_.limits.resync_chunks = setup.chunks;
    base_.limits.resync_chunk_bytes = setup.chunk_blocks * block_bytes;
    base_.limits.idle_flush_ns = setup.idle_flush_ns;
    make_nodes(setup.nodes);
    if (setup.al_extents_1 != 0) nodes_[1].options.al_extents = setup.al_extents_1;
}

const char* name_of(Fault fault) {
    constexpr const char* names[] = {
        "lost-cache",
        "torn-write",
        "latent-error",
        "read-error",
        "write-error",
        "flush-error",
        "metadata-error",
        "stall-disk",
        "broken-disk",
        "disk-removed",
        "reset",
        "stall-stream",
        "partition",
        "one-way",
        "slow-link",
        "cut-message",
        "bit-flip",
        "path-found",
        "damage-found",
        "kill",
        "power-cut",
        "all-power",
        "pause",
        "crash-while-starting",
        "crash-while-labelling",
        "command",
        "options",
        "resize",
        "slow-kind",
        "across-extents",
        "stranger",
        "broken-copy",
        "lost-copy",
        "old-disk",
        "new-disk",
        "left-out",
    };
    static_assert(std::size(names) == fault_kinds);
    return names[static_cast<std::size_t>(fault)];
}

void World::schedule(int node, std::uint64_t delay, Task task) {
    const std::uint32_t incarnation =
        node >= 0 ? nodes_[static_cast<std::size_t>(node)].incarnation : 0;
    queue_.push({now_ + delay, ++seq_, node, incarnation, std::move(task)});
}

void World::fail(const std::string& what) {
    for (std::size_t n = 0; options_.trace && n < nodes_.size(); ++n) {
        std::printf("--- n%zu %s\n%s", n, nodes_[n].up ? "" : "down",
                    nodes_[n].up ? nodes_[n].core->describe().c_str() : "");
    }
    throw Violation{what + " (at " + std::to_string(now_ / ns_per_ms) + " ms)"};
}

void World::print_line(int node, const char* format, std::va_list args) {
    std::printf("%10.3f ms  ", static_cast<double>(now_) / 1e6);
    if (node >= 0) std::printf("n%d  ", node);
    std::vprintf(format, args);
    std::printf("\n");
}

void World::trace(int node, const char* format, ...) {
    if (!options_.trace) return;
    va_list args;
    va_start(args, format);
    print_line(node, format, args);
    va_end(args);
}

void World::tell(int node, const char* format, ...) {
    if (!options_.trace && !options_.tell) return;
    va_list args;
    va_start(args, format);
    print_line(node, format, args);
    va_end(args);
}

bool World::step() {
    if (queue_.empty()) return false;
    Scheduled next = queue_.top();
    queue_.pop();
    now_ = std::max(now_, next.at);
    if (next.node >= 0) {
        Node& node = nodes_[static_cast<std::size_t>(next.node)];
        if (next.incarnation != node.incarnation) return true;
        if (node.paused_until > now_) {  // the machine stands still; its events wait in order
            next.at = node.paused_until;
            queue_.push(next);
            return true;
        }
    }
    ++stats_.events;
    mix(next.at);
    mix(static_cast<std::uint64_t>(next.node + 1));
    next.task();
    return true;
}

// --- Disks
// ----------------------------------------------------------------------------------------------

std::uint64_t World::disk_delay(int n, bool metadata) {
    std::uint64_t d = 1 + random_.below(swarm_.disk_delay_ns);
    const bool slow = metadata ? swarm_.slow_metadata : swarm_.slow_data;
    if (slow && faulty_ && accident(3'000)) {
        d += random_.below(3 * ns_per_s);
        met(Fault::stall_disk, n);
    }
    return d;
}

// What is always slow in this seed: a label that stays dirty long, an answer that comes late.
std::uint64_t World::slowness(int n, int kind, int slow_kind) {
    if (kind != slow_kind || !faulty_ || (swarm_.slow_nodes >> n & 1U) == 0) return 0;
    if (random_.below(3) == 0) return 0;
    met(Fault::slow_kind, n);
    return random_.below(swarm_.slow_ns);
}

std::vector<Stamp>& World::buffer(int n, BufferRef ref) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    switch (ref.kind) {
        case BufferKind::request:
            return node.requests[ref.index].buffer;
        case BufferKind::receive:
            return node.receive[ref.index];
        case BufferKind::resync:
            return node.resync[ref.index];
        case BufferKind::serve:
            return node.serve[ref.index];
        case BufferKind::none:
            break;
    }
    fail("an I/O without a buffer");
}

// The extents that a replay of the activity log on this disk would find.
const std::set<std::uint32_t>& World::node_log(int n) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    if (!node.log_known) {
        node.log.clear();
        const auto replay =
            replay_activity_log({reinterpret_cast<const std::byte*>(node.disk->activity_log.data()),
                                 node.disk->activity_log.size() * 4096},
                                1, static_cast<std::uint32_t>(node.disk->activity_log.size()));
        if (replay) node.log.insert(replay.value().extents.begin(), replay.value().extents.end());
        node.log_known = true;
    }
    return node.log;
}

// An I/O ends after a while, or when the scenario lets it.
void World::finish_io(int n, IoOrigin origin, Task task) {
    if (hold_io_ && hold_io_(n, origin)) {
        held_io_.push_back({n, nodes_[static_cast<std::size_t>(n)].incarnation, std::move(task)});
        return;
    }
    const std::uint64_t slow = slowness(n, static_cast<int>(origin), swarm_.slow_origin);
    schedule(n, disk_delay(n, origin >= IoOrigin::superblock) + slow, std::move(task));
}

// Whether this I/O fails: single errors, sectors that cannot be read until they are written again,
// and disks that fail everything.
int World::disk_error(int n, const Effect& e) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    const bool write = e.kind == EffectKind::disk_write || e.kind == EffectKind::disk_zero;
    const std::uint64_t sector = e.offset / sector_bytes;
    const bool latent =
        e.kind == EffectKind::disk_read && node.disk->unreadable(sector, e.length / sector_bytes);
    const bool injected = swarm_.disk_errors && faulty_ && accident(400);
    const bool scripted = fail_io_ && fail_io_(n, e.tag.origin);
    if (!node.disk_broken && !injected && !latent && !scripted) return 0;
    met(write                              ? Fault::write_error
        : e.kind == EffectKind::disk_flush ? Fault::flush_error
                                           : Fault::read_error,
        n);
    tell(n, "an I/O fails, origin %d", static_cast<int>(e.tag.origin));
    if (latent) return ENODATA;
    if (scripted || !write) return EIO;
    constexpr std::array kinds = {EIO, EIO, ENOSPC, EROFS};
    return kinds[random_.below(kinds.size())];
}

// Data may be written only if the label says that writes may be in flight, and promises no good
// copy while there is none.
void World::check_label(int n) {
    const Node& node = nodes_[static_cast<std::size_t>(n)];
    // Where the disk is being given another volume's name the two copies are of two volumes for a
    // moment, and none of them would be chosen: then the one on the disk counts.
    const Result<Superblock>& newest = node.disk->newest();
    const auto label = newest ? newest : decode_superblock(node.disk->superblock());
    const std::uint32_t flags = label ? label.value().flags : 0;
    if ((flags & md_flag::primary_ind) == 0)
        fail("I-R6 a write to a disk whose label does not say that writes may be in flight");
    const bool promises = (flags & md_flag::consistent) != 0;
    if (promises && node.core->disk() == DiskState::inconsistent)
        fail("I-R6 a write to a disk that is Inconsistent and whose label promises good data");
}

void World::disk_io(int n, const Effect& e) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    const std::uint64_t id = next_op_++;
    DiskOp& op = node.ops[id];
    op.tag = e.tag;
    op.sector = e.offset / sector_bytes;
    const std::uint64_t sectors = e.length / sector_bytes;
    if (e.kind != EffectKind::disk_flush && e.offset + e.length > node.core->volume_bytes()) {
        fail("I-C9 an I/O beyond the end of the volume");
    }
    const int error = disk_error(n, e);
    if (e.kind == EffectKind::disk_write || e.kind == EffectKind::disk_zero) {
        op.write = true;
        op.data =
            e.kind == EffectKind::disk_write ? buffer(n, e.buffer) : std::vector<Stamp>(sectors);
        if (op.data.size() != sectors) fail("a write of another length than its buffer");
        for (const auto& [other_id, other] : node.ops) {
            const bool apart = op.sector >= other.sector + other.data.size() ||
                               other.sector >= op.sector + sectors;
            if (other_id == id || !other.write || apart) continue;
            fail("I-C10 two writes of one sector are on their way to a disk");
        }
        check_label(n);
        const std::uint64_t extent = e.offset / extent_bytes;
        const bool logged = node_log(n).count(static_cast<std::uint32_t>(extent)) != 0;
        if (!logged) fail("I-R5 a write before its extent is in a durable activity log");
    }
    const bool durable = e.durable;
    const SimDisk::Snapshot snapshot =
        e.kind == EffectKind::disk_flush ? node.disk->begin_flush() : SimDisk::Snapshot{};
    const EffectKind kind = e.kind;
    const BufferRef into = e.buffer;
    const IoOrigin origin = e.tag.origin;
    finish_io(n, origin, [this, n, id, error, durable, snapshot, kind, into, sectors] {
        Node& at = nodes_[static_cast<std::size_t>(n)];
        const DiskOp done = at.ops.at(id);
        at.ops.erase(id);
        bool zeroes = false;
        if (error == 0) {
            if (done.write) at.disk->write(done.sector, done.data, durable);
            const bool lying = options_.shell_mutant == ShellMutant::flush_does_nothing;
            if (kind == EffectKind::disk_flush)
                at.disk->finish_flush(lying ? SimDisk::Snapshot{} : snapshot);
            if (kind == EffectKind::disk_read) {
                std::vector<Stamp>& out = buffer(n, into);
                out.clear();
                zeroes = true;
                for (std::uint64_t s = 0; s < sectors; ++s) {
                    out.push_back(at.disk->visible(done.sector + s));
                    zeroes = zeroes && out.back() == 0;
                }
            }
        } else if (kind == EffectKind::disk_flush) {
            lose_cache(n);  // nobody knows what is on the disk now
        } else if (done.write && random_.below(2) == 0) {
            at.disk->tear(done.sector, done.data, random_);
            met(Fault::torn_write, n);
        }
        if (error != 0) at.failed_at = now_;
        if (done.tag.origin == IoOrigin::request && error != 0) {
            at.requests[done.tag.index].disk_error = error == EROFS ? EIO : error;
        }
        at.core->on_io(Instant{now_}, done.tag, error, zeroes);
        perform(n);
    });
}

// What was not flushed is kept or lost, sector by sector.
void World::lose_cache(int n) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    node.disk->power_cut(SimDisk::LossMode::subset, random_);
    node.lost_power_at = now_;
    met(Fault::lost_cache, n);
}

void World::metadata_io(int n, const Effect& e) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    const std::uint64_t id = next_op_++;
    DiskOp& op = node.ops[id];
    op.tag = e.tag;
    op.metadata = true;
    node.core->encode_metadata(e.tag, op.bytes);
    if (e.tag.origin == IoOrigin::al) op.al_block = node.core->al_block();
    const bool power = swarm_.power_cut && (!swarm_.process_crash || random_.below(2) == 0);
    if (faulty_ && (power || swarm_.process_crash) &&
        accident(e.tag.origin == IoOrigin::superblock ? 30'000 : 1'000)) {
        crash_later(n, random_.below(2 * swarm_.disk_delay_ns), power);
    }
    finish_io(n, e.tag.origin, [this, n, id] { finish_op(n, id); });
}

void World::finish_op(int n, std::uint64_t id) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    DiskOp& op = node.ops.at(id);
    if (op.tag.origin == IoOrigin::al || op.tag.origin == IoOrigin::al_init) node.log_known = false;
    const bool copy = op.tag.origin == IoOrigin::superblock && op.stage == 0;
    const bool broken = copy ? node.copy_broken : node.disk_broken;
    const bool failed = broken || (swarm_.disk_errors && faulty_ && accident(200));
    if (failed) met(Fault::metadata_error, n);
    if (failed) tell(n, "a metadata write fails, origin %d", static_cast<int>(op.tag.origin));
    if (!failed) {
        switch (op.tag.origin) {
            case IoOrigin::superblock:
                if (op.stage == 0) {
                    node.disk->edit_copy() = op.bytes;
                    op.stage = 1;
                    const std::uint64_t slow =
                        slowness(n, static_cast<int>(op.tag.origin), swarm_.slow_origin);
                    return schedule(n, disk_delay(n, true) + slow,
                                    [this, n, id] { finish_op(n, id); });
                }
                node.disk->edit_superblock() = op.bytes;
                if (const auto label = decode_superblock(op.bytes))
                    node.recorded.insert(uuid_identity(label.value().current_uuid));
                break;
            case IoOrigin::al:
                node.disk->activity_log[op.al_block] = op.bytes;
                break;
            case IoOrigin::al_init:
                for (SimDisk::Block& block : node.disk->activity_log)
                    block = op.bytes;
                break;
            case IoOrigin::bitmap_page:
                node.disk->bitmap[op.tag.index] = op.bytes;
                break;
            case IoOrigin::request:
            case IoOrigin::peer_request:
            case IoOrigin::resync:
            case IoOrigin::peer_read:
            case IoOrigin::local_flush:
            case IoOrigin::epoch_flush:
                fail("data as metadata");
        }
    }
    const IoTag tag = op.tag;
    node.ops.erase(id);
    if (failed) node.failed_at = now_;
    node.core->on_io(Instant{now_}, tag, failed ? EIO : 0);
    perform(n);
}

// --- Effects
// ----------------------------------------------------------------------------------------------

void World::perform(int n) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    Core& core = *node.core;
    core.check_invariants();
    if (core.cache_suspect()) node.suspect = true;
    if (core.disk() >= DiskState::inconsistent) node.suspect = core.cache_suspect();
    if (core.role() == Role::primary) {
        const Superblock& sb = core.superblock();
        if (!checker_.knows(sb.current_uuid)) {
            // Several may have been opened in one step: the history names those in between.
            std::size_t known = 0;
            while (known + 1 < sb.history.size() && sb.history[known] != uuid_none &&
                   !checker_.knows(sb.history[known])) {
                ++known;
            }
            for (std::size_t i = known; i-- > 0;)
                checker_.generation(sb.history[i], sb.history[i + 1]);
            checker_.generation(sb.current_uuid, sb.extension.parent_uuid);
        }
    }
    for (NodeId p = 0; options_.trace && p < nodes_.size(); ++p) {
        const std::uint64_t bits = core.view(p).out_of_sync_bits;
        if ((bits == 0) != (node.bits_seen[p] == 0))
            trace(n, "bits toward n%d: %d", p, static_cast<int>(bits));
        node.bits_seen[p] = bits;
    }
    std::vector<Effect> effects;
    effects.swap(core.effects());
    judge_effects(n, effects);
    judge_members(n);
    core.effects().reserve(effects.capacity());
    for (const Effect& e : effects)
        perform_one(n, e);
    arm_timer(n);
}

void World::perform_one(int n, const Effect& e) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    mix(static_cast<std::uint64_t>(e.kind) * 31 + e.index);
    switch (e.kind) {
        case EffectKind::complete:
            return completed(n, e);
        case EffectKind::disk_read:
        case EffectKind::disk_write:
        case EffectKind::disk_zero:
        case EffectKind::disk_flush:
            return disk_io(n, e);
        case EffectKind::metadata:
            return metadata_io(n, e);
        case EffectKind::send:
            return send(n, e);
        case EffectKind::release:
            return node.receive_free.push_back(e.index);
        case EffectKind::dial:
            return dial(n, static_cast<NodeId>(e.peer));
        case EffectKind::knock:
            return knock(n, e);
        case EffectKind::adopt: {
            const std::uint64_t handles[2] = {e.handle, e.handle2};
            for (unsigned s = 0; s < 2; ++s) {
                const auto found = connections_.find(handles[s]);
                node.links[static_cast<std::size_t>(e.peer)].connection[s] = handles[s];
                if (found == connections_.end()) continue;
                found->second.bound[1] = true;
                for (OldFrames& old : old_frames_)
                    old.accepted = old.accepted || old.connection == handles[s];
                if (found->second.stranger) fail("I-N1 a stranger is taken for a peer");
            }
            return;
        }
        case EffectKind::refuse:
            return refuse(n, e);
        case EffectKind::close_link:
            return close_link(n, static_cast<NodeId>(e.peer), e.graceful);
        case EffectKind::reply:
            tell(n, "reply %u: %u %s", e.index, static_cast<unsigned>(e.errc), e.text);
            return replied(n, e.index, e.errc);
        case EffectKind::notice:
            tell(n, "notice (peer %d): %s", e.peer, e.text);
            if (std::string(e.text).find("resync started, this node is the source") == 0)
                ++stats_.resyncs;
            if (std::string(e.text).find("split brain: both") == 0) ++stats_.split_brains;
            for (const char* beyond :
                 {"a write outside the volume", "a bitmap page past the end"}) {
                if (e.text == std::string(beyond))
                    fail(std::string("I-S3 a peer has another size: ") + beyond);
            }
            if (std::string_view(e.text) == "disk detached") node.detached_at = now_;
            ambush(e.text);
            return grown(n, e.text);
    }
}

void World::arm_timer(int n) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    const auto next = node.core->next_deadline();
    if (!next) return;
    const std::uint64_t due = std::max(next->ns, now_ + 1000);
    if (node.timer != 0 && node.timer <= due && node.timer > now_) return;
    node.timer = due;
    schedule(n, due - now_, [this, n, due] {
        Node& at = nodes_[static_cast<std::size_t>(n)];
        if (at.timer != due) return;
        at.timer = 0;
        at.core->on_tick(Instant{now_});
        perform(n);
    });
}

// --- Life and death
// ---------------------------------------------------------------------------------------

void World::start(int n) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    find_other_disk(n);
    node.up = true;
    node.timer = 0;
    node.hold_token = 0;
    CoreConfig config = base_;
    config.options = node.options;
    config.limits = node.limits;
    config.node_id = static_cast<NodeId>(n);
    config.peers = NodeMask{};
    node.left_out = left_out_ == n ? -1 : left_out_;
    for (int p = 0; p < static_cast<int>(nodes_.size()); ++p) {
        if (p != n && p != node.left_out) config.peers.add(static_cast<NodeId>(p));
    }
    config.entropy = random_.next();
    node.core = std::make_unique<Core>(config);
    node.requests.assign(config.limits.requests, AppRequest{});
    node.receive.clear();
    node.receive_free.clear();
    node.resync.assign(config.limits.resync_chunks, {});
    node.serve.assign(config.limits.peer_reads_max(), {});
    node.links = {};
    tell(n, "starts");
    if (!no_attach_) attach(n);
    if (!node.up) return;  // it died again
    command(n, CommandKind::connect);
}

// The better of the two copies is put on the disk before the other one is touched, as a node does.
// False: the power went in the middle of it.
bool World::settle_superblock(int n) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    const auto& sb = node.disk->newest();
    if (!sb) fail("no usable superblock after a crash: " + sb.error().message);
    SimDisk::Block chosen;
    encode_superblock(sb.value(), chosen);
    if (options_.shell_mutant == ShellMutant::keep_torn_label) return true;
    if (chosen == node.disk->superblock()) return true;
    if (faulty_ && swarm_.power_cut && random_.below(2) == 0) {
        SimDisk::tear_bytes(node.disk->edit_superblock(), chosen, random_);
        met(Fault::crash_while_labelling, n);
        crash(n, true);
        start_later(n, ns_per_ms + random_.below(ns_per_s));
        return false;
    }
    node.disk->edit_superblock() = chosen;
    return true;
}

void World::attach(int n) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    if (!settle_superblock(n)) return;
    const auto sb = node.disk->newest();
    if (!sb) fail("no usable superblock after a crash: " + sb.error().message);
    const auto ring = std::span<const std::byte>(
        reinterpret_cast<const std::byte*>(node.disk->activity_log.data()),
        node.disk->activity_log.size() * 4096);
    const auto replay =
        replay_activity_log(ring, 1, static_cast<std::uint32_t>(node.disk->activity_log.size()));
    const bool clean = (sb.value().flags & md_flag::al_clean) != 0;
    if (!replay && !clean && (sb.value().flags & md_flag::primary_ind) != 0) {
        fail("no usable activity log after a crash: " + replay.error().message);
    }
    const Status ready = node.core->prepare_attach(sb.value());
    if (!ready) {
        tell(n, "attach refused: %s", ready.error().message.c_str());
        return;
    }
    for (std::uint64_t page = 0; page < node.core->bitmap_pages(); ++page) {
        node.core->load_bitmap_page(page, node.disk->bitmap[page]);
    }
    AttachInfo info;
    if (replay && !clean) info.hot_extents = replay.value().extents;
    std::memcpy(info.boot_id.data(), &node.boot, sizeof node.boot);
    info.data_bytes_max = max_sectors_ * sector_bytes;
    info.cache_suspect = node.suspect;
    node.core->on_attach(Instant{now_}, info);
    perform(n);
}

// kill -9: what was submitted still completes, caches survive. Power: caches are lost, in-flight
// writes tear, peers hear nothing.
// A promotion by force that was never answered may be on the disk all the same.
void World::forget_promotion(Node& node) {
    const Superblock& last = node.core->superblock();
    if (node.promote_token != 0 && node.forced && !uuid_equal(last.current_uuid, node.parent)) {
        checker_.generation(last.current_uuid, last.extension.parent_uuid);
        checker_.adopted(last.current_uuid, *node.disk, last.effective_size_sectors);
    }
    node.promote_token = 0;
}

void World::crash(int n, bool power, std::optional<SimDisk::LossMode> mode) {
    Node& node = nodes_[static_cast<std::size_t>(n)];
    if (!node.up) return;
    tell(n, power ? "loses power" : "is killed");
    dying_in_ = state_of(n);
    ++stats_.crashes;
    met(power ? Fault::power_cut : Fault::kill, n);
    if (node.core && node.core->disk() <= DiskState::attaching) met(Fault::crash_while_starting, n);
    node.log_known = false;
    node.up = false;
    ++node.incarnation;
    node.paused_until = 0;
    for (const auto& [id, op] : node.ops) {
        if (op.write) {
            if (power) {
                node.disk->tear(op.sector, op.data, random_);
                met(Fault::torn_write, n);
            } else {
                node.disk->write(op.sector, op.data, false);
            }
        }
        if (!op.metadata) continue;
        SimDisk::Block* places[2] = {nullptr, nullptr};
        switch (op.tag.origin) {
            case IoOrigin::superblock:
                places[0] = op.stage == 0 ? &node.disk->edit_copy() : &node.disk->edit_superblock();
                break;
            case IoOrigin::al:
                places[0] = &node.disk->activity_log[op.al_block];
                break;
            case IoOrigin::bitmap_page:
                places[0] = &node.disk->bitmap[op.tag.index];
                break;
            case IoOrigin::al_init:
                for (SimDisk::Block& block : node.disk->activity_log) {
                    if (random_.below(2) == 0) SimDisk::tear_bytes(block, op.bytes, random_);
                }
                break;
            case IoOrigin::request:
            case IoOrigin::peer_request:
            case IoOrigin::resync:
            case IoOrigin::peer_read:
            case IoOrigin::local_flush:
            case IoOrigin::epoch_flush:
                break;
        }
        if (places[0] == nullptr) continue;
        if (power) {
            SimDisk::tear_bytes(*places[0], op.bytes, random_);
        } else {
            *places[0] = op.bytes;
        }
    }
    node.ops.clear();
    if (power) {
        node.boot = random_.next();
        node.lost_power_at = now_;
        const auto drawn = static_cast<SimDisk::LossMode>(random_.below(3));
        node.disk->power_cut(mode.value_or(drawn), random_);
        met(Fault::lost_cache, n);
    }
    dying_in_.reset();
    forget_promotion(node);
    node.core.reset();
    drop_connections(n, power);
}

// Of a node that died. Without power nobody says so: the other side finds out by itself.
void World::drop_connections(int n, bool power) {
    std::vector<std::uint64_t> mine;
    for (const auto& [id, c] : connections_) {
        if ((c.node[0] == n && c.open[0]) || (c.node[1] == n && c.open[1])) mine.push_back(id);
    }
    for (const std::uint64_t id : mine) {
        const auto found = connections_.find(id);
        if (found == connections_.end()) continue;
        const int side = found->second.node[0] == n ? 0 : 1;
        if (power) {
            found->second.open[static_cast<std::size_t>(side)] = false;
            if (!found->second.open[static_cast<std::size_t>(1 - side)]) connections_.erase(found);
        } else {
            close_side(id, side, true);
        }
    }
}

}  // namespace replica::sim
