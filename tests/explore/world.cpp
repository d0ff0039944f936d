// SPDX-License-Identifier: Apache-2.0
#include "tests/explore/world.hpp"

#include <algorithm>
#include <cstring>

#include "engine/base/crc32c.hpp"
#include "engine/format/activity_log.hpp"

namespace replica::explore {
namespace {

constexpr std::uint32_t volume_blocks = blocks_per_extent + 4;  // two extents
constexpr std::uint64_t fnv_prime = 0x100000001b3;

std::uint64_t mix(std::uint64_t hash, std::uint64_t value) {
    hash = (hash ^ value) * fnv_prime;
    return hash ^ (hash >> 29);
}
std::uint64_t mix(std::uint64_t hash, const void* data, std::size_t size) {
    const auto* p = static_cast<const unsigned char*>(data);
    for (std::size_t i = 0; i < size; ++i)
        hash = (hash ^ p[i]) * fnv_prime;
    return hash ^ (hash >> 29);
}

struct TypeName {
    MessageType type;
    const char* name;
};
constexpr TypeName type_names[] = {
    {MessageType::hello, "hello"},
    {MessageType::reject, "reject"},
    {MessageType::state, "state"},
    {MessageType::state_update, "state_update"},
    {MessageType::generation, "generation"},
    {MessageType::generation_ack, "generation_ack"},
    {MessageType::generation_committed, "generation_committed"},
    {MessageType::in_sync, "in_sync"},
    {MessageType::promote, "promote"},
    {MessageType::promote_reply, "promote_reply"},
    {MessageType::goodbye, "goodbye"},
    {MessageType::adopt_generation, "adopt_generation"},
    {MessageType::invalidate, "invalidate"},
    {MessageType::write, "write"},
    {MessageType::write_zeroes, "write_zeroes"},
    {MessageType::write_received, "write_received"},
    {MessageType::write_ack, "write_ack"},
    {MessageType::flush, "flush"},
    {MessageType::flush_ack, "flush_ack"},
    {MessageType::trim, "trim"},
    {MessageType::want_trim, "want_trim"},
    {MessageType::read, "read"},
    {MessageType::read_reply, "read_reply"},
    {MessageType::bitmap_page, "bitmap_page"},
    {MessageType::bitmap_ones, "bitmap_ones"},
    {MessageType::bitmap_done, "bitmap_done"},
    {MessageType::resync_data, "resync_data"},
    {MessageType::resync_zeroes, "resync_zeroes"},
    {MessageType::resync_ack, "resync_ack"},
    {MessageType::sync_done, "sync_done"},
    {MessageType::sync_done_ack, "sync_done_ack"},
    {MessageType::sync_pause, "sync_pause"},
    {MessageType::ping, "ping"},
    {MessageType::pong, "pong"},
};

const char* name_of(MessageType type) {
    for (const TypeName& t : type_names) {
        if (t.type == type) return t.name;
    }
    return "?";
}

const char* name_of(IoOrigin origin) {
    switch (origin) {
        case IoOrigin::request:
            return "request";
        case IoOrigin::peer_request:
            return "peer request";
        case IoOrigin::resync:
            return "resync read";
        case IoOrigin::peer_read:
            return "peer read";
        case IoOrigin::epoch_flush:
            return "epoch flush";
        case IoOrigin::local_flush:
            return "local flush";
        case IoOrigin::superblock:
            return "superblock";
        case IoOrigin::al:
            return "activity log";
        case IoOrigin::al_init:
            return "activity log, empty";
        case IoOrigin::bitmap_page:
            return "bitmap page";
    }
    return "?";
}

}  // namespace

Stamp World::Image::at(std::uint32_t block) const {
    for (const Cell& cell : cells_) {
        if (cell.block == block) return cell.stamp;
    }
    return 0;
}

void World::Image::put(std::uint32_t block, Stamp stamp) {
    const auto at = std::lower_bound(cells_.begin(), cells_.end(), block,
                                     [](const Cell& c, std::uint32_t b) { return c.block < b; });
    if (at != cells_.end() && at->block == block) {
        at->stamp = stamp;
    } else if (stamp != 0) {
        cells_.insert(at, Cell{block, stamp});
    }
}

void World::fail(const std::string& what) {
    if (violation_.empty()) violation_ = what;
}

// --- Life
// ---------------------------------------------------------------------------------------

World::World(const Scope& scope, Mutant mutant) : mutant_(mutant), al_extents_(scope.al_extents) {
    for (unsigned n = 0; n < 2; ++n) {
        Superblock sb;
        sb.effective_size_sectors = std::uint64_t{volume_blocks} * block_bytes / sector_bytes;
        sb.device_uuid = 100 + n;
        sb.md_size_sectors = 8 + 64 + 8;
        sb.al_offset_sectors = -64;
        sb.bm_offset_sectors = -64 - 8;
        sb.max_peers = 1;
        sb.node_id = static_cast<std::int32_t>(n);
        sb.extension.present = true;
        Block bytes;
        encode_superblock(sb, bytes);
        Disk& disk = nodes_[n].disk;
        disk.superblock = std::make_shared<const Block>(bytes);
        encode_al_initialised(bytes);
        disk.log.fill(std::make_shared<const Block>(bytes));
        disk.bitmap = std::make_shared<const Block>();
        start(n);
    }
    settle();
    for (int i = 0; i < 20 && !link_[1].open; ++i)
        advance(500);
    command(0, CommandKind::new_current_uuid, true);
    settle();
    command(0, CommandKind::promote);
    for (int i = 0; i < 4; ++i)
        advance(500);
    if (!in_order()) fail("the beginning does not come to rest: " + describe());
    if (!violation_.empty()) return;
    if (scope.resync) begin_resync();
    lost_ = false;
}

// The link breaks; two blocks are written without the peer; then it is back.
void World::begin_resync() {
    link_[1].open = link_[0].open = false;
    for (unsigned n = 0; n < 2; ++n) {
        change(n).on_link_closed(now_, static_cast<NodeId>(1 - n));
        perform(n);
    }
    settle();
    submit({IoKind::write, 0, 1});
    submit({IoKind::write, 2, 1});
    settle();
    for (int i = 0; i < 20 && !dialling_; ++i) {
        now_ = now_ + 500 * ns_per_ms;
        for (unsigned n = 0; n < 2; ++n) {
            change(n).on_tick(now_);
            perform(n);
        }
    }
    Scope quiet;
    while (core(0).view(1).replication != ReplicationState::bitmap_source) {
        if (dialling_) {
            dial();
            continue;
        }
        const auto next = events(quiet);
        if (next.empty()) return fail("the resync does not begin: " + describe());
        apply(quiet, next.front());
    }
}

void World::start(unsigned n) {
    Node& node = nodes_[n];
    CoreConfig config;
    config.node_id = static_cast<NodeId>(n);
    config.peers = NodeMask::of(static_cast<NodeId>(1 - n));
    config.resource = "r0";
    config.options.al_extents = al_extents_;
    config.limits.requests = 3;
    config.limits.journal = 8;
    config.limits.peer_reads = 1;
    config.limits.resync_chunks = 2;
    config.limits.resync_chunk_bytes = io_bytes_max;
    config.limits.bitmap_writes = 1;
    config.entropy = 1000 * (n + 1) + node.starts++;
    config.mutant = mutant_;
    node.core = std::make_shared<Core>(config);
    node.up = true;
    const auto sb = decode_superblock(*node.disk.superblock);
    if (!sb) return fail("no usable superblock");
    const Status ready = node.core->prepare_attach(sb.value());
    if (!ready) return fail("attach refused: " + ready.error().message);
    node.core->load_bitmap_page(0, *node.disk.bitmap);
    AttachInfo info;
    replay_log(node.disk);
    info.hot_extents = node.disk.logged;
    info.boot_id.fill(node.boot);
    info.data_bytes_max = std::uint64_t{volume_blocks} * block_bytes;
    info.all_zero = node.starts == 1;
    node.core->on_attach(now_, info);
    perform(n);
    command(n, CommandKind::connect);
}

void World::command(unsigned n, CommandKind kind, bool force) {
    Command c;
    c.kind = kind;
    c.force = force;
    change(n).on_command(now_, c);
    perform(n);
}

// Kill: what was submitted completes. Power cut: it does not, and the cache is gone.
void World::crash(unsigned n, bool power) {
    Node& node = nodes_[n];
    for (const Io& io : node.io) {
        if (power) break;
        if (io.kind == EffectKind::metadata) finish_metadata(node.disk, io);
        if (io.kind != EffectKind::disk_write) continue;
        for (std::uint32_t b = 0; b < io.blocks; ++b)
            node.disk.visible.put(io.block + b, static_cast<Stamp>(io.data[b]));
    }
    if (power) {
        node.disk.visible = node.disk.durable;
        node.lost_cache = true;
        ++node.boot;
    }
    node.io.clear();
    node.buffers.clear();
    node.up = false;
    lost_ = true;
    link_[n] = Side{};
}

// --- Disks
// ---------------------------------------------------------------------------------------

Data& World::buffer(unsigned n, BufferRef ref) {
    for (Buffer& b : nodes_[n].buffers) {
        if (b.ref.kind == ref.kind && b.ref.index == ref.index) return b.data;
    }
    nodes_[n].buffers.push_back({ref, {}});
    return nodes_[n].buffers.back().data;
}

void World::drop_buffer(unsigned n, BufferRef ref) {
    std::erase_if(nodes_[n].buffers, [&](const Buffer& b) {
        return b.ref.kind == ref.kind && b.ref.index == ref.index;
    });
}

void World::disk_io(unsigned n, const Effect& e) {
    Node& node = nodes_[n];
    Io io;
    io.tag = e.tag;
    io.kind = e.kind;
    io.buffer = e.buffer;
    io.block = static_cast<std::uint32_t>(e.offset / block_bytes);
    io.blocks = e.length / block_bytes;
    io.durable = e.durable;
    if (e.kind == EffectKind::disk_flush) io.snapshot = node.disk.visible;
    if (e.kind == EffectKind::disk_zero) {
        io.kind = EffectKind::disk_write;
        io.data.assign(io.blocks, '\0');
    } else if (e.kind == EffectKind::disk_write) {
        io.data = buffer(n, e.buffer);
    }
    if (io.kind == EffectKind::disk_write) {
        if (io.data.size() != io.blocks) fail("a write of another length than its buffer");
        const auto extent = static_cast<std::uint32_t>(e.offset / extent_bytes);
        const auto& logged = node.disk.logged;
        if (std::find(logged.begin(), logged.end(), extent) == logged.end())
            fail("I-R5: a write before its extent is in a durable activity log");
    }
    node.io.push_back(std::move(io));
}

void World::metadata_io(unsigned n, const Effect& e) {
    Node& node = nodes_[n];
    Io io;
    io.tag = e.tag;
    io.kind = EffectKind::metadata;
    Block bytes;
    node.core->encode_metadata(e.tag, bytes);
    io.bytes = std::make_shared<const Block>(bytes);
    io.current = node.core->superblock().current_uuid;
    io.good = (node.core->superblock().flags & md_flag::was_up_to_date) != 0;
    if (e.tag.origin == IoOrigin::al) io.al_block = node.core->al_block();
    node.io.push_back(std::move(io));
}

void World::replay_log(Disk& disk) {
    std::vector<std::byte> ring;
    for (const SharedBlock& block : disk.log)
        ring.insert(ring.end(), block->begin(), block->end());
    const auto replay = replay_activity_log(ring, 1, static_cast<std::uint32_t>(disk.log.size()));
    if (!replay) return fail("the activity log cannot be read");
    disk.logged = replay.value().extents;
}

void World::finish_metadata(Disk& disk, const Io& io) {
    if (io.tag.origin == IoOrigin::superblock) {
        disk.superblock = io.bytes;
        disk.current = io.current;
        disk.good = io.good;
    } else if (io.tag.origin == IoOrigin::bitmap_page) {
        disk.bitmap = io.bytes;
    } else if (io.tag.origin == IoOrigin::al_init) {
        disk.log.fill(io.bytes);
        disk.logged.clear();
    } else {
        disk.log[io.al_block] = io.bytes;
        replay_log(disk);
    }
}

void World::finish_io(unsigned n, std::size_t index) {
    Node& node = nodes_[n];
    const Io io = std::move(node.io[index]);
    node.io.erase(node.io.begin() + static_cast<std::ptrdiff_t>(index));
    bool zeroes = false;
    if (io.kind == EffectKind::metadata) {
        finish_metadata(node.disk, io);
    } else if (io.kind == EffectKind::disk_write) {
        for (std::uint32_t b = 0; b < io.blocks; ++b) {
            const auto stamp = static_cast<Stamp>(io.data[b]);
            node.disk.visible.put(io.block + b, stamp);
            if (io.durable) node.disk.durable.put(io.block + b, stamp);
        }
    } else if (io.kind == EffectKind::disk_flush) {
        for (const Cell& cell : io.snapshot.cells())
            node.disk.durable.put(cell.block,
                                  std::max(cell.stamp, node.disk.durable.at(cell.block)));
    } else {
        Data& into = buffer(n, io.buffer);
        into.assign(io.blocks, '\0');
        for (std::uint32_t b = 0; b < io.blocks; ++b)
            into[b] = static_cast<char>(node.disk.visible.at(io.block + b));
        zeroes = into.find_first_not_of('\0') == Data::npos;
    }
    change(n).on_io(now_, io.tag, 0, zeroes);
    perform(n);
}

// --- Effects
// ---------------------------------------------------------------------------------------

Core& World::change(unsigned n) {
    Node& node = nodes_[n];
    if (node.core.use_count() > 1) node.core = std::make_shared<Core>(*node.core);
    node.core_hash = 0;
    return *node.core;
}

void World::perform(unsigned n) {
    Core& c = *nodes_[n].core;
    c.check_invariants();
    const std::vector<Effect> effects = std::move(c.effects());
    c.clear_effects();
    for (const Effect& e : effects)
        perform_one(n, e);
}

void World::perform_one(unsigned n, const Effect& e) {
    switch (e.kind) {
        case EffectKind::complete:
            return completed(e);
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
            return drop_buffer(n, {BufferKind::receive, e.index});
        case EffectKind::dial:
            dialling_ = true;
            return;
        case EffectKind::knock:  // who dials never waits here
            return;
        case EffectKind::adopt:
            bound_ = true;
            return;
        case EffectKind::refuse:
            link_[1] = Side{};
            return;
        case EffectKind::close_link:
            link_[n].open = false;
            return;
        case EffectKind::reply:
            if (e.errc != Errc::ok) fail(std::string("a command failed: ") + e.text);
            return;
        case EffectKind::notice:
            return;
    }
}

void World::send(unsigned n, const Effect& e) {
    Frame frame;
    frame.message = e.message;
    if (e.buffer.kind != BufferKind::none) {
        frame.data = buffer(n, e.buffer);
    } else if (e.message.payload_bytes > 0) {
        std::vector<std::byte> bytes(e.message.payload_bytes);
        nodes_[n].core->encode_payload(e, bytes);
        frame.bytes = std::make_shared<const std::vector<std::byte>>(std::move(bytes));
    }
    if (!link_[n].open || !link_[1 - n].open) return;  // nobody hears it
    link_[1 - n].incoming[static_cast<std::size_t>(e.stream)].push_back(std::move(frame));
}

void World::deliver(unsigned n, unsigned stream) {
    auto& queue = link_[n].incoming[stream];
    const Frame frame = std::move(queue.front());
    queue.pop_front();
    const auto peer = static_cast<NodeId>(1 - n);
    const std::span<const std::byte> bytes =
        frame.bytes ? std::span<const std::byte>(*frame.bytes) : std::span<const std::byte>();
    Core& c = change(n);
    if (n == 1 && !bound_) {
        const auto hello = decode_hello(bytes);
        if (!hello) return fail("a hello that its own decoder refuses");
        c.on_hello(now_, stream + 1, hello.value());
        return perform(n);
    }
    BufferRef into = c.destination(peer, frame.message);
    if (into.kind == BufferKind::receive) {
        const auto taken = [&](std::uint32_t i) {
            return std::any_of(nodes_[n].buffers.begin(), nodes_[n].buffers.end(),
                               [&](const Buffer& b) {
                                   return b.ref.kind == BufferKind::receive && b.ref.index == i;
                               });
        };
        while (taken(into.index))
            ++into.index;
    }
    if (into.kind != BufferKind::none) buffer(n, into) = frame.data;
    c.on_message(now_, peer, static_cast<Stream>(stream), frame.message, bytes, into);
    perform(n);
}

void World::dial() {
    dialling_ = bound_ = false;
    const bool ok = nodes_[1].up;
    link_ = {};
    link_[0].open = link_[1].open = ok;
    change(0).on_dialled(now_, 1, ok);
    perform(0);
}

// --- The application
// ---------------------------------------------------------------------------------------

void World::submit(const Step& step) {
    const auto slot =
        std::find_if(pending_.begin(), pending_.end(), [](const Pending& p) { return !p.used; });
    *slot = Pending{true, 0, step, {}};
    const auto index = static_cast<std::uint32_t>(slot - pending_.begin());
    if (step.kind == IoKind::write) {
        slot->stamp = ++last_stamp_;
        buffer(0, {BufferKind::request, index}).assign(step.blocks, static_cast<char>(slot->stamp));
    } else {
        slot->promise = acked_;
    }
    change(0).on_request(now_, index, step.kind, std::uint64_t{step.block} * block_bytes,
                         step.blocks * block_bytes, false);
    perform(0);
}

void World::completed(const Effect& e) {
    Pending& p = pending_[e.index];
    if (!p.used) return fail("I-C7: a request was completed twice");
    p.used = false;
    drop_buffer(0, {BufferKind::request, e.index});
    if (e.error != 0) return fail("a request failed though a good disk was there all the time");
    const Core& primary = core(0);
    for (unsigned m = 0; m < 2; ++m) {
        const Disk& disk = nodes_[m].disk;
        if (!primary.in_sync().has(static_cast<NodeId>(m))) {
            if (disk.good && uuid_equal(disk.current, primary.superblock().current_uuid))
                fail("I-Q2: acknowledged without n1, whose disk calls itself as good as any");
            continue;
        }
        const std::string where = " on n" + std::to_string(m);
        // A member that is being told that it is UpToDate was counted in a moment before.
        const bool joining = m == 1 && primary.view(1).replication == ReplicationState::sync_source;
        if (!uuid_equal(disk.current, primary.superblock().current_uuid) && !joining)
            fail("I-Q2: acknowledged before the generation is" + where + "'s disk");
        if (nodes_[m].lost_cache) continue;
        for (std::uint32_t b = p.step.block; b < p.step.block + p.step.blocks; ++b) {
            if (p.step.kind == IoKind::write && disk.visible.at(b) < p.stamp)
                fail("I-C2: write " + std::to_string(p.stamp) + " acknowledged, but block " +
                     std::to_string(b) + " does not have it" + where);
        }
        for (const Cell& cell : p.promise.cells()) {
            if (disk.durable.at(cell.block) < cell.stamp)
                fail("I-C3: flush acknowledged, but block " + std::to_string(cell.block) +
                     " is not stable" + where);
        }
    }
    if (p.step.kind != IoKind::write) return;
    for (std::uint32_t b = p.step.block; b < p.step.block + p.step.blocks; ++b)
        acked_.put(b, std::max(p.stamp, acked_.at(b)));
}

// --- Events
// ---------------------------------------------------------------------------------------

std::vector<Event> World::events(const Scope& scope) const {
    std::vector<Event> list;
    using Kind = Event::Kind;
    for (std::uint8_t n = 0; n < 2; ++n) {
        for (std::size_t i = 0; i < nodes_[n].io.size(); ++i)
            list.push_back({Kind::io, n, static_cast<std::uint8_t>(i)});
    }
    for (std::uint8_t n = 0; n < 2; ++n) {
        if (!nodes_[n].up || !link_[n].open) continue;
        for (std::uint8_t s = 0; s < 2; ++s) {
            if (!link_[n].incoming[s].empty()) list.push_back({Kind::message, n, s});
        }
        if ((scope.link_loss && !lost_) || !link_[1 - n].open) list.push_back({Kind::close, n, 0});
    }
    const bool room =
        std::any_of(pending_.begin(), pending_.end(), [](const Pending& p) { return !p.used; });
    if (submitted_ < scope.requests.size() && room && nodes_[0].up)
        list.push_back({Kind::submit, 0, 0});
    if (scope.kill_secondary && !lost_) list.push_back({Kind::kill, 1, 0});
    if (scope.kill_primary && !lost_) list.push_back({Kind::kill, 0, 0});
    if (scope.power_cut_secondary && !lost_) list.push_back({Kind::power_cut, 1, 0});
    return list;
}

void World::apply(const Scope& scope, Event event) {
    switch (event.kind) {
        case Event::Kind::submit:
            return submit(scope.requests[submitted_++]);
        case Event::Kind::io:
            return finish_io(event.node, event.index);
        case Event::Kind::message:
            return deliver(event.node, event.index);
        case Event::Kind::close:
            // What it had sent may still arrive; what comes for it is lost.
            lost_ = true;
            link_[event.node] = Side{};
            change(event.node).on_link_closed(now_, static_cast<NodeId>(1 - event.node));
            return perform(event.node);
        case Event::Kind::kill:
        case Event::Kind::power_cut:
            return crash(event.node, event.kind == Event::Kind::power_cut);
    }
}

std::string World::label(const Scope& scope, Event event) const {
    const std::string node = "n" + std::to_string(event.node);
    switch (event.kind) {
        case Event::Kind::submit: {
            const Step& s = scope.requests[submitted_];
            if (s.kind == IoKind::flush) return node + " is asked to flush";
            return node + " is asked to write " + std::to_string(last_stamp_ + 1) + " to blocks " +
                   std::to_string(s.block) + ".." + std::to_string(s.block + s.blocks - 1);
        }
        case Event::Kind::io: {
            const Io& io = nodes_[event.node].io[event.index];
            std::string what = node + " I/O done: " + name_of(io.tag.origin);
            if (io.kind == EffectKind::disk_flush) what += " (flush)";
            if (io.blocks > 0) {
                what += " blocks " + std::to_string(io.block) + ".." +
                        std::to_string(io.block + io.blocks - 1);
            }
            if (!io.data.empty())
                what += " write " + std::to_string(static_cast<Stamp>(io.data[0]));
            return what;
        }
        case Event::Kind::message: {
            const Message& m = link_[event.node].incoming[event.index].front().message;
            return node + " receives " + name_of(m.type) +
                   (m.seq != 0 ? " seq " + std::to_string(m.seq) : "");
        }
        case Event::Kind::close:
            return node + " sees the connection break";
        case Event::Kind::kill:
            return node + " is killed";
        case Event::Kind::power_cut:
            return node + " loses power";
    }
    return "?";
}

// --- Checks
// ---------------------------------------------------------------------------------------

// Does node n know that the peer may lack this block?
bool World::covered(unsigned n, std::uint32_t block) const {
    const Node& node = nodes_[n];
    if (!node.up) {
        const auto word = (*node.disk.bitmap)[block / 8];
        const auto& logged = node.disk.logged;
        const bool hot =
            std::find(logged.begin(), logged.end(), block / blocks_per_extent) != logged.end();
        return hot || (std::to_integer<unsigned>(word) >> (block % 8) & 1U) != 0;
    }
    const Core& c = *node.core;
    const std::uint64_t offset = std::uint64_t{block} * block_bytes;
    if (c.bitmap() != nullptr && c.bitmap()->any_in_bytes(0, offset, block_bytes)) return true;
    const Journal& journal = c.journal();
    for (std::uint64_t seq = journal.head(); seq < journal.tail(); ++seq) {
        const JournalEntry& e = journal.at(seq);
        if (e.offset < offset + block_bytes && offset < e.offset + e.length) return true;
    }
    return false;
}

void World::check() {
    const Image& a = nodes_[0].disk.visible;
    const Image& b = nodes_[1].disk.visible;
    for (const Image* image : {&a, &b}) {
        for (const Cell& cell : image->cells()) {
            if (a.at(cell.block) == b.at(cell.block)) continue;
            if (!covered(0, cell.block) && !covered(1, cell.block))
                fail("I-R3/I-R7: block " + std::to_string(cell.block) + " holds " +
                     std::to_string(a.at(cell.block)) + " and " + std::to_string(b.at(cell.block)) +
                     ", and neither side has it marked");
        }
    }
    for (unsigned m = 0; m < 2 && nodes_[0].up; ++m) {
        if (!core(0).in_sync().has(static_cast<NodeId>(m)) || nodes_[m].lost_cache) continue;
        for (const Cell& cell : acked_.cells()) {
            const Stamp found = nodes_[m].disk.visible.at(cell.block);
            if (found < cell.stamp)
                fail("I-C2: n" + std::to_string(m) + " is in sync, and block " +
                     std::to_string(cell.block) + " went back from acknowledged write " +
                     std::to_string(cell.stamp) + " to " + std::to_string(found));
        }
    }
}

bool World::in_order() {
    for (unsigned n = 0; n < 2; ++n) {
        if (!nodes_[n].up) return false;
        const PeerView v = core(n).view(static_cast<NodeId>(1 - n));
        if (core(n).disk() != DiskState::up_to_date || !core(n).idle() ||
            v.replication != ReplicationState::established || v.out_of_sync_bits != 0 ||
            v.disk != DiskState::up_to_date || !core(n).journal().empty() ||
            core(n).in_sync().count() != 2)
            return false;
    }
    return core(primary_).role() == Role::primary;
}

// Everything that can happen by itself, one after the other.
void World::settle() {
    const Scope quiet;
    for (int i = 0; i < 100'000 && violation_.empty(); ++i) {
        if (dialling_) {
            dial();
            continue;
        }
        const auto next = events(quiet);
        if (next.empty()) return;
        apply(quiet, next.front());
    }
    fail("it does not come to rest");
}

void World::advance(std::uint64_t ms) {
    now_ = now_ + ms * ns_per_ms;
    for (unsigned n = 0; n < 2; ++n) {
        if (!nodes_[n].up) continue;
        change(n).on_tick(now_);
        perform(n);
    }
    settle();
}

// The application died with the primary: what was not answered may be there or not, the rest is.
void World::fail_over() {
    pending_ = {};
    for (int i = 0; i < 4; ++i)
        advance(500);
    command(1, CommandKind::promote);
    settle();
    if (core(1).role() != Role::primary) return fail("I-L1: the survivor is not promoted");
    for (const Cell& cell : acked_.cells()) {
        if (nodes_[1].disk.visible.at(cell.block) < cell.stamp)
            return fail("I-C2: the survivor lacks acknowledged write " +
                        std::to_string(cell.stamp) + " in block " + std::to_string(cell.block));
    }
    primary_ = 1;
    start(0);
}

void World::check_end() {
    if (!nodes_[0].up) fail_over();
    for (const Pending& p : pending_) {
        if (p.used) return fail("I-L1: a request is never answered");
    }
    if (!nodes_[1].up) start(1);
    settle();
    for (int i = 0; i < 60 && !in_order() && violation_.empty(); ++i) {
        advance(500);
        check();
    }
    if (!violation_.empty()) return;
    if (!in_order()) return fail("I-L1: the nodes do not get in sync again\n" + describe());
    check();
    for (std::uint32_t b = 0; b < volume_blocks; ++b) {
        if (nodes_[0].disk.visible.at(b) != nodes_[1].disk.visible.at(b))
            return fail("I-R12: block " + std::to_string(b) + " differs at the end");
    }
}

// --- Identity
// ---------------------------------------------------------------------------------------

std::string World::describe() const {
    return "n0\n" + core(0).describe() + "n1\n" + core(1).describe();
}

std::uint64_t World::hash_core(unsigned n) const {
    const Core& c = core(n);
    std::string text = c.describe();
    // Of the requests' numbers of arrival only the order counts, else a repetition would look new.
    std::vector<std::uint64_t> orders;
    static constexpr const char* mark = " order ";
    for (std::size_t at = text.find(mark); at != std::string::npos; at = text.find(mark, at)) {
        const std::size_t end = text.find('\n', at);
        orders.push_back(std::stoull(text.substr(at + std::strlen(mark), end - at)));
        text.erase(at, end - at);
    }
    std::uint64_t h = mix(0xcbf29ce484222325, text.data(), text.size());
    for (const std::uint64_t order : orders)
        h = mix(h, static_cast<std::uint64_t>(std::count_if(orders.begin(), orders.end(),
                                                            [&](auto o) { return o < order; })));
    Superblock sb = c.superblock();
    h = mix(h, sb.flags);
    h = mix(h, sb.extension.parent_uuid);
    h = mix(h, sb.peers[1 - n].flags);
    const Journal& journal = c.journal();
    for (std::uint64_t seq = journal.head(); seq < journal.tail(); ++seq) {
        const JournalEntry& e = journal.at(seq);
        h = mix(h, e.offset * 64 + e.request);
        h = mix(h, e.length * 64ULL + e.unwritten.bits * 8 + e.unreceived.bits * 2);
        h = mix(h, (e.local_pending ? 2U : 0U) + (e.al_held ? 1U : 0U));
    }
    if (c.bitmap() != nullptr) {
        for (const std::uint64_t word : c.bitmap()->words(0))
            h = mix(h, word);
        h = mix(h, c.bitmap()->dirty_pages());
    }
    if (c.al() != nullptr) {
        c.al()->for_each(
            [&](std::uint32_t e) { h = mix(h, e * 2 + (c.al()->is_active(e) ? 1 : 0)); });
        h = mix(h, c.al()->held());
    }
    return h;
}

std::uint64_t World::hash() const {
    std::uint64_t h = mix(submitted_ * 8 + last_stamp_, (lost_ ? 1 : 0) + (bound_ ? 2 : 0));
    const auto add_image = [&](const Image& image) {
        for (const Cell& cell : image.cells())
            h = mix(h, cell.block * 256 + cell.stamp);
        h = mix(h, image.cells().size());
    };
    for (unsigned n = 0; n < 2; ++n) {
        const Node& node = nodes_[n];
        if (node.core_hash == 0) node.core_hash = hash_core(n);
        h = mix(h, node.core_hash);
        h = mix(h, (node.up ? 1 : 0) + (node.lost_cache ? 2 : 0) + (link_[n].open ? 4 : 0));
        add_image(node.disk.visible);
        add_image(node.disk.durable);
        h = mix(h, node.disk.current * 2 + (node.disk.good ? 1 : 0));
        for (const std::uint32_t extent : node.disk.logged)
            h = mix(h, extent);
        h = mix(h, crc32c(*node.disk.bitmap));
        std::uint64_t sum = 0;  // a set: the order in which they were issued does not matter
        for (const Io& io : node.io) {
            // Slots of peers' requests are taken in turn: their numbers mean nothing.
            const std::uint32_t index = io.tag.origin == IoOrigin::peer_request ? 0 : io.tag.index;
            std::uint64_t one = mix(static_cast<unsigned>(io.tag.origin) * 1000ULL + index,
                                    static_cast<unsigned>(io.kind));
            one = mix(one, io.data.data(), io.data.size());
            one = mix(one, io.block * 4096ULL + io.blocks);
            for (const Cell& cell : io.snapshot.cells())
                one = mix(one, cell.block * 256 + cell.stamp);
            if (io.tag.origin == IoOrigin::bitmap_page) one = mix(one, crc32c(*io.bytes));
            sum += mix(one, io.current * 2 + (io.good ? 1 : 0));
        }
        h = mix(h, sum);
        for (const auto& queue : link_[n].incoming) {
            for (const Frame& f : queue) {
                const Message& m = f.message;
                h = mix(h, static_cast<unsigned>(m.type) * 65536ULL + m.flags);
                h = mix(h, m.seq * 1024 + m.trim_seq);
                h = mix(h, m.offset * 1024 + m.id * 64 + m.nodes);
                h = mix(h, f.data.data(), f.data.size());
                if (f.bytes) h = mix(h, f.bytes->data(), f.bytes->size());
            }
            h = mix(h, queue.size());
        }
    }
    for (const Pending& p : pending_)
        h = mix(h, p.used ? p.stamp + 1U : 0U);
    add_image(acked_);
    return h;
}

}  // namespace replica::explore
