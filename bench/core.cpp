// SPDX-License-Identifier: Apache-2.0
// The core alone: a Primary and a Secondary in memory, without disks, sockets or clocks. Under
// callgrind it shows how many instructions a replicated write costs each of the two cores;
// bench/core_instructions.sh does that. It measures no time, and its shell is not counted. All
// events wait in one queue: with N requests under way their I/O and messages overlap as they do in
// a daemon, and each run takes the same course. Time stands still under load, so flushes come only
// from a journal or an activity log without room, and never from idleness.
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/prng.hpp"
#include "engine/core/core.hpp"

using namespace replica;

namespace {

constexpr std::uint64_t volume_bytes = std::uint64_t{20} << 30;
constexpr std::uint32_t volume_extents = volume_bytes / extent_bytes;
constexpr std::uint32_t write_bytes = 4096;
constexpr NodeId primary = 0;
constexpr NodeId secondary = 1;

[[noreturn]] void die(const char* what) {
    std::fprintf(stderr, "bench_core: %s\n", what);
    std::exit(1);
}

struct Load {
    std::uint32_t writes = 8192;
    std::uint32_t warm_up = 8192;  // writes before the counted ones
    std::uint32_t depth = 16;
    std::uint32_t extents = 64;  // extents that are written to, at equal distances
};

// Something that a core is told, or asked to encode.
struct Event {
    enum class Kind : std::uint8_t { request, io, message, metadata, hello, dialled };
    Kind kind = Kind::io;
    NodeId to = primary;
    Stream stream = Stream::bulk;
    IoTag tag;
    std::uint32_t slot = 0;
    std::uint64_t offset = 0;
    Message message;
    BufferRef buffer;
    std::vector<std::byte> payload;  // structured ones only: data is not copied
};

void feed(Core& core, Instant now, const Event& event) {
    const auto peer = static_cast<NodeId>(1 - event.to);
    if (event.kind == Event::Kind::io) {
        core.on_io(now, event.tag, 0);
    } else if (event.kind == Event::Kind::message) {
        core.on_message(now, peer, event.stream, event.message, event.payload, event.buffer);
    } else {
        ASSERT(event.kind == Event::Kind::metadata);
        std::array<std::byte, 4096> block;
        core.encode_metadata(event.tag, block);
    }
}

// callgrind counts from the entry to the return of these two functions, and finds them by name.
// They return a value, so the last call in them is no tail call. Their bodies differ, so the
// compiler does not merge them.
[[gnu::noinline]] std::size_t counted_primary(Core& core, Instant now, const Event& event) {
    if (event.kind == Event::Kind::request) {
        core.on_request(now, event.slot, IoKind::write, event.offset, write_bytes, false);
    } else {
        feed(core, now, event);
    }
    return core.effects().size();
}
[[gnu::noinline]] std::size_t counted_secondary(Core& core, Instant now, const Event& event) {
    feed(core, now, event);
    return core.effects().size();
}

CoreConfig make_config(NodeId id) {
    CoreConfig config;
    config.node_id = id;
    config.peers = NodeMask::of(static_cast<NodeId>(1 - id));
    config.resource = "r0";
    config.entropy = 1000U + id;
    return config;
}

struct Node {
    Core core;
    std::vector<std::uint32_t> free_buffers;  // for payloads that arrive
    std::uint64_t inputs = 0, disk_writes = 0, flushes = 0;
    explicit Node(NodeId id) : core(make_config(id)) {
        const CoreLimits limits;
        for (std::uint32_t i = limits.journal + limits.requests; i > 0; --i)
            free_buffers.push_back(i - 1);
    }
};

class Pair {
  public:
    // Connected, in sync, node 0 is Primary, nothing under way.
    Pair();
    // Writes to random places, `depth` at a time; returns when all were acknowledged.
    void write(const Load& load, std::uint32_t writes);
    void count() { counting_ = true; }
    void report(const Load& load) const;

  private:
    void attach(NodeId id);
    void command(NodeId id, CommandKind kind, bool force = false);
    void tick();
    bool in_order() const;
    void submit(std::uint32_t slot);
    void tell(const Event& event);
    void settle();
    void deliver(Event event);
    void perform(NodeId id);
    void perform_one(NodeId id, const Effect& effect);
    void send(NodeId id, const Effect& effect);

    Instant now_{ns_per_s};
    std::array<Node, 2> nodes_{Node(primary), Node(secondary)};
    std::deque<Event> queue_;
    bool counting_ = false;
    bool adopted_ = false;  // by the accepting side, node 1
    Prng random_{1};
    Load load_;
    std::uint32_t left_ = 0, completed_ = 0;
};

Pair::Pair() {
    attach(primary);
    attach(secondary);
    settle();
    for (int i = 0; i < 20 && !adopted_; ++i)
        tick();
    command(primary, CommandKind::new_current_uuid, true);
    settle();
    command(primary, CommandKind::promote);
    for (int i = 0; i < 20 && !in_order(); ++i)
        tick();
    if (!in_order()) die("the two nodes do not get in sync");
}

void Pair::attach(NodeId id) {
    Core& core = nodes_[id].core;
    Superblock superblock;
    superblock.effective_size_sectors = volume_bytes / sector_bytes;
    superblock.device_uuid = 100U + id;
    superblock.node_id = id;
    superblock.extension.present = true;
    if (!core.prepare_attach(superblock)) die("the metadata is refused");
    const std::array<std::byte, 4096> zeroes{};
    for (std::uint64_t page = 0; page < core.bitmap_pages(); ++page)
        core.load_bitmap_page(page, zeroes);
    AttachInfo info;
    info.boot_id.fill(1);
    info.data_bytes_max = volume_bytes;
    info.all_zero = true;
    core.on_attach(now_, info);
    perform(id);
    command(id, CommandKind::connect);
}

void Pair::command(NodeId id, CommandKind kind, bool force) {
    Command command;
    command.kind = kind;
    command.force = force;
    nodes_[id].core.on_command(now_, command);
    perform(id);
}

void Pair::tick() {
    now_ = now_ + 500 * ns_per_ms;
    for (const NodeId id : {primary, secondary}) {
        nodes_[id].core.on_tick(now_);
        perform(id);
        settle();
    }
}

bool Pair::in_order() const {
    for (const NodeId id : {primary, secondary}) {
        const Core& core = nodes_[id].core;
        const PeerView view = core.view(static_cast<NodeId>(1 - id));
        if (core.disk() != DiskState::up_to_date || view.disk != DiskState::up_to_date ||
            view.replication != ReplicationState::established || view.out_of_sync_bits != 0 ||
            !core.idle() || core.in_sync().count() != 2)
            return false;
    }
    return nodes_[primary].core.serves();
}

// --- Load

void Pair::write(const Load& load, std::uint32_t writes) {
    load_ = load;
    left_ = writes;
    completed_ = 0;
    for (Node& node : nodes_)
        node.inputs = node.disk_writes = node.flushes = 0;
    for (std::uint32_t slot = 0; slot < load.depth; ++slot)
        submit(slot);
    settle();
    if (completed_ != writes) die("a write is never acknowledged");
    for (const Node& node : nodes_) {
        if (node.disk_writes != writes) die("a write did not reach both disks once");
    }
    if (!in_order()) die("the two nodes are not in sync after the load");
}

void Pair::submit(std::uint32_t slot) {
    if (left_ == 0) return;
    --left_;
    Event event;
    event.kind = Event::Kind::request;
    event.slot = slot;
    const std::uint64_t extent = random_.below(load_.extents) * (volume_extents / load_.extents);
    event.offset = extent * extent_bytes + random_.below(blocks_per_extent) * block_bytes;
    queue_.push_back(std::move(event));
}

// An event of the load's kinds.
void Pair::tell(const Event& event) {
    Node& node = nodes_[event.to];
    ++node.inputs;
    if (counting_) {
        event.to == primary ? counted_primary(node.core, now_, event)
                            : counted_secondary(node.core, now_, event);
    } else if (event.kind == Event::Kind::request) {
        node.core.on_request(now_, event.slot, IoKind::write, event.offset, write_bytes, false);
    } else {
        feed(node.core, now_, event);
    }
}

void Pair::settle() {
    while (!queue_.empty()) {
        Event event = std::move(queue_.front());
        queue_.pop_front();
        const NodeId to = event.to;
        deliver(std::move(event));
        perform(to);
    }
}

void Pair::deliver(Event event) {
    Node& node = nodes_[event.to];
    if (event.kind == Event::Kind::dialled) {
        node.core.on_dialled(now_, static_cast<NodeId>(1 - event.to), true);
        return;
    }
    if (event.kind == Event::Kind::message && event.to == secondary && !adopted_) {
        const auto hello = decode_hello(event.payload);
        if (!hello) die("the first message is no hello");
        node.core.on_hello(now_, static_cast<std::uint64_t>(event.stream) + 1, hello.value());
        return;
    }
    if (event.kind == Event::Kind::message) {
        event.buffer = node.core.destination(static_cast<NodeId>(1 - event.to), event.message);
        if (event.buffer.kind == BufferKind::receive) {
            if (node.free_buffers.empty()) die("no receive buffer is free");
            event.buffer.index = node.free_buffers.back();
            node.free_buffers.pop_back();
        }
    }
    tell(event);
}

// --- Effects

void Pair::perform(NodeId id) {
    Core& core = nodes_[id].core;
    for (const Effect& effect : core.effects())
        perform_one(id, effect);
    core.clear_effects();
}

void Pair::perform_one(NodeId id, const Effect& effect) {
    Node& node = nodes_[id];
    Event event;
    event.to = id;
    event.tag = effect.tag;
    switch (effect.kind) {
        case EffectKind::complete:
            if (effect.error != 0) die("a write failed");
            ++completed_;
            return submit(effect.index);
        case EffectKind::metadata:
            event.kind = Event::Kind::metadata;
            tell(event);
            event.kind = Event::Kind::io;
            return queue_.push_back(std::move(event));
        case EffectKind::disk_write:
            ++node.disk_writes;
            return queue_.push_back(std::move(event));
        case EffectKind::disk_flush:
            ++node.flushes;
            return queue_.push_back(std::move(event));
        case EffectKind::disk_read:
        case EffectKind::disk_zero:
            return queue_.push_back(std::move(event));
        case EffectKind::send:
            return send(id, effect);
        case EffectKind::release:
            return node.free_buffers.push_back(effect.index);
        case EffectKind::dial:
            event.kind = Event::Kind::dialled;
            return queue_.push_back(std::move(event));
        case EffectKind::adopt:
            adopted_ = true;
            return;
        case EffectKind::refuse:
        case EffectKind::close_link:
            die("a connection ends");
        case EffectKind::reply:
            if (effect.errc != Errc::ok) die(effect.text);
            return;
        case EffectKind::knock:
        case EffectKind::notice:
            return;
    }
}

void Pair::send(NodeId id, const Effect& effect) {
    Event event;
    event.kind = Event::Kind::message;
    event.to = static_cast<NodeId>(1 - id);
    event.stream = effect.stream;
    event.message = effect.message;
    if (effect.buffer.kind == BufferKind::none && effect.message.payload_bytes > 0) {
        event.payload.resize(effect.message.payload_bytes);
        nodes_[id].core.encode_payload(effect, event.payload);
    }
    queue_.push_back(std::move(event));
}

void Pair::report(const Load& load) const {
    std::printf("%u writes of %u bytes to %u extents, %u at a time\n", load.writes, write_bytes,
                load.extents, load.depth);
    for (const NodeId id : {primary, secondary}) {
        const Node& node = nodes_[id];
        std::printf("%s: %llu inputs, %llu disk writes, %llu flushes\n",
                    id == primary ? "primary" : "secondary",
                    static_cast<unsigned long long>(node.inputs),
                    static_cast<unsigned long long>(node.disk_writes),
                    static_cast<unsigned long long>(node.flushes));
    }
}

}  // namespace

int main(int argc, char** argv) {
    Load load;
    struct Option {
        const char* name;
        std::uint32_t* value;
        std::uint32_t least, most;
    };
    const Option options[] = {{"--writes", &load.writes, 1, 1U << 24},
                              {"--warm-up", &load.warm_up, 0, 1U << 24},
                              {"--depth", &load.depth, 1, CoreLimits{}.requests},
                              {"--extents", &load.extents, 1, volume_extents}};
    for (int i = 1; i < argc; i += 2) {
        const auto* const option =
            std::find_if(std::begin(options), std::end(options),
                         [&](const Option& o) { return std::strcmp(o.name, argv[i]) == 0; });
        const unsigned long value = i + 1 < argc ? std::strtoul(argv[i + 1], nullptr, 10) : ~0UL;
        if (option == std::end(options) || value < option->least || value > option->most) {
            std::puts(
                "usage: bench_core [--writes N] [--warm-up N] [--depth 1..256] "
                "[--extents 1..5120]");
            return 2;
        }
        *option->value = static_cast<std::uint32_t>(value);
    }
    Pair pair;
    if (load.warm_up > 0) pair.write(load, load.warm_up);
    pair.count();
    pair.write(load, load.writes);
    pair.report(load);
    return 0;
}
