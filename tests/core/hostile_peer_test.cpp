// SPDX-License-Identifier: Apache-2.0
// A core among peers that say anything: every message that the framing lets through, at any moment,
// true, changed or made up. Nothing of it may trip an assertion, put a byte on the disk that no
// message brought, write beside the volume or two writes to one place at once, reach the disk of a
// Primary, lose a request of the application or a buffer.
// What a peer is believed by design (that it is Primary, that its data is newer) it may use here
// too: the protocol is not authenticated (docs/protocol.md).
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/base/crc32c.hpp"
#include "engine/base/endian.hpp"
#include "engine/core/core.hpp"
#include "tests/catch.hpp"

using namespace replica;

namespace {

constexpr NodeId own_id = 1;
constexpr NodeId peer_ids[] = {0, 2, 3};
constexpr std::size_t effects_max = 20'000;  // of one step

// What the runs came to: a test that reaches nothing proves nothing.
struct Reached {
    std::uint64_t peer_writes = 0;    // of a peer that is Primary, on the disk here
    std::uint64_t resync_writes = 0;  // of a source
    std::uint64_t resync_reads = 0;   // for a target
    std::uint64_t acknowledged = 0;   // requests of the application
};

class Arena {
  public:
    Arena(std::uint64_t seed, Reached& reached);
    void run(int steps);

  private:
    struct Io {
        IoTag tag;
        EffectKind kind = EffectKind::disk_read;
        std::uint64_t offset = 0;
        std::uint64_t length = 0;
    };
    struct Buffer {  // of the shell's receive buffers, in use
        std::uint64_t offset = 0;
        std::uint32_t length = 0;
    };
    struct Foe {
        enum class Link : std::uint8_t { closed, dialling, open } link = Link::closed;
        Role role = Role::secondary;  // what it says mostly
        std::deque<Message> heard;
        std::uint64_t session = 0;
        std::array<std::uint32_t, 2> told{};  // the number of its in-sync set
    };

    void require(bool holds, const char* what) {
        if (!holds) throw std::runtime_error(what);
    }
    std::uint64_t below(std::uint64_t n) { return random_.below(n); }
    bool chance(unsigned percent) { return below(100) < percent; }
    template <class T, std::size_t n>
    T one_of(const T (&values)[n]) {
        return values[below(n)];
    }

    Superblock draw_superblock();
    void attach();
    void attach_again();
    void act();
    void perform();
    void perform_one(const Effect& e);
    void perform_io(const Effect& e);
    void perform_send(const Effect& e);
    void finish_io(bool may_fail);
    void submit();
    void command();
    void greet(NodeId id);
    void speak(NodeId id);
    bool answer(NodeId id, const Message& heard);
    Message invent(NodeId id);
    Message press_on(NodeId id);
    void number(Foe& foe, Message& m, std::span<const std::byte> payload);
    void say(NodeId id, Message m);
    void fill_payload(NodeId id, const Message& m, std::vector<std::byte>& out);
    StatePayload draw_state(NodeId id);
    std::uint32_t draw_words(NodeId id);
    GenerationPayload draw_generation();
    HelloPayload hello(NodeId id, Stream stream);
    Uuid draw_uuid();
    std::uint64_t draw_offset();
    std::uint32_t draw_length();
    std::uint64_t draw_seq();
    void end_of_all();
    Instant now() {
        now_.ns += 1 + below(2'000'000);
        return now_;
    }

    Prng random_;
    Reached& reached_;
    Instant now_{ns_per_s};
    std::uint64_t volume_ = 0;
    std::uint64_t volume_max_ = 0;
    std::unique_ptr<Core> core_;
    std::vector<Io> io_;
    std::map<std::uint32_t, Buffer> buffers_;
    std::uint32_t next_buffer_ = 0;
    std::uint64_t next_handle_ = 1;
    std::set<std::uint32_t> requests_;  // slots in use
    std::array<Foe, nodes_max> foes_;
    std::vector<Uuid> uuids_;
    std::uint32_t token_ = 0;
    bool primary_ = false;  // at the end of the last step
    // How this run is: in percent.
    unsigned wild_ = 0;      // values that can not be
    unsigned made_up_ = 0;   // messages that nobody asked for
    unsigned commands_ = 0;  // of the operator
};

CoreConfig config_for(Prng& random) {
    CoreConfig config;
    config.node_id = own_id;
    for (const NodeId id : peer_ids)
        config.peers.add(id);
    config.resource = "r0";
    config.limits = {
        4, static_cast<std::uint32_t>(8 + random.below(8)), 4, 2, 65536, 4, 500 * ns_per_ms};
    constexpr Protocol protocols[] = {Protocol::a, Protocol::b, Protocol::c};
    config.options.protocol = protocols[random.below(3)];
    config.options.al_extents = static_cast<std::uint32_t>(1 + random.below(3));
    config.options.connect_interval_ms = 50;
    config.options.after_sb_0pri = static_cast<AfterSb0Pri>(random.below(7));
    config.options.after_sb_1pri = static_cast<AfterSb1Pri>(random.below(4));
    config.options.after_sb_2pri = static_cast<AfterSb2Pri>(random.below(2));
    config.entropy = random.next();
    return config;
}

Arena::Arena(std::uint64_t seed, Reached& reached) : random_(seed), reached_(reached) {
    constexpr std::uint64_t sizes[] = {3 * extent_bytes, 2 * extent_bytes + 5 * 4096 + 512, 512,
                                       32 * extent_bytes + 4096};
    volume_ = sizes[random_.below(4)];
    volume_max_ = volume_ + one_of<std::uint64_t>({0, 4096, extent_bytes});
    for (Uuid uuid = 0x1000; uuid < 0x5000; uuid += 0x1000)
        uuids_.push_back(uuid);
    uuids_.insert(uuids_.end(), {0, 1, 4, 5, ~Uuid{0}});
    wild_ = one_of<unsigned>({0, 2, 20});
    made_up_ = one_of<unsigned>({3, 20, 60});
    commands_ = one_of<unsigned>({0, 1, 5});
    core_ = std::make_unique<Core>(config_for(random_));
    if (chance(95)) attach();
    Command connect;
    connect.kind = CommandKind::connect;
    connect.token = ++token_;
    core_->on_command(now(), connect);
    perform();
    while (!io_.empty())
        finish_io(false);
    if (chance(30)) {
        Command promote;
        promote.token = ++token_;
        promote.force = true;
        core_->on_command(now(), promote);
        perform();
    }
}

Superblock Arena::draw_superblock() {
    Superblock sb;
    sb.effective_size_sectors = volume_ / sector_bytes;
    sb.max_peers = 3 + static_cast<std::uint32_t>(below(2)) * 4;
    sb.extension.present = chance(90);
    sb.node_id = own_id;
    if (chance(25)) return sb;
    sb.current_uuid = uuids_[below(3)];
    sb.flags = md_flag::consistent | md_flag::was_up_to_date;
    if (chance(20)) sb.flags |= md_flag::primary_ind;
    sb.extension.in_sync = NodeMask::of(own_id);
    for (const NodeId id : peer_ids) {
        sb.peers[id].bitmap_index = id == 0 ? 2 : id - 2;
        if (chance(70))
            sb.extension.in_sync.add(id);
        else
            sb.peers[id].bitmap_uuid = uuids_[below(4)];
    }
    sb.history[0] = uuids_[3];
    sb.extension.volume_id[0] = 7;
    return sb;
}

void Arena::attach() {
    const Status ready = core_->prepare_attach(draw_superblock());
    require(static_cast<bool>(ready), "attach");
    std::array<std::byte, 4096> page{};
    for (std::uint64_t n = 0; n < core_->bitmap_pages(); ++n) {
        if (chance(30)) page[below(4096)] = std::byte{0x10};
        core_->load_bitmap_page(n, page);
    }
    AttachInfo info;
    info.data_bytes_max = volume_max_;
    info.all_zero = chance(50);
    if (chance(30)) info.hot_extents = {0, 1, 0x7fffffff};
    core_->on_attach(now(), info);
}

// --- What the core asks for
// ----------------------------------------------------------------------------------------------

void Arena::perform() {
    while (!core_->effects().empty()) {
        const std::vector<Effect> effects = core_->effects();
        core_->clear_effects();
        require(effects.size() < effects_max, "a step with too many effects");
        for (const Effect& e : effects)
            perform_one(e);
    }
    core_->check_invariants();
    primary_ = core_->role() == Role::primary;
}

void Arena::perform_one(const Effect& e) {
    const auto peer = static_cast<std::size_t>(e.peer < 0 ? 0 : e.peer);
    switch (e.kind) {
        case EffectKind::complete:
            require(requests_.erase(e.index) == 1, "a request was answered twice");
            reached_.acknowledged += e.error == 0 ? 1 : 0;
            break;
        case EffectKind::disk_read:
        case EffectKind::disk_write:
        case EffectKind::disk_zero:
        case EffectKind::disk_flush:
        case EffectKind::metadata:
            return perform_io(e);
        case EffectKind::send:
            return perform_send(e);
        case EffectKind::release:
            require(buffers_.erase(e.index) == 1, "a buffer was released twice");
            break;
        case EffectKind::dial:
            require(e.peer > own_id, "a dial to a lower id");
            foes_[peer].link = Foe::Link::dialling;
            break;
        case EffectKind::knock:
            require(e.peer < own_id, "a knock at a higher id");
            break;
        case EffectKind::adopt:
            foes_[peer] = Foe{};
            foes_[peer].link = Foe::Link::open;
            break;
        case EffectKind::refuse:
            break;
        case EffectKind::close_link:
            foes_[peer] = Foe{};
            break;
        case EffectKind::reply:
        case EffectKind::notice:
            break;
    }
}

void Arena::perform_io(const Effect& e) {
    const bool data = e.kind == EffectKind::disk_read || e.kind == EffectKind::disk_write ||
                      e.kind == EffectKind::disk_zero;
    const bool writes = e.kind == EffectKind::disk_write || e.kind == EffectKind::disk_zero;
    for (const Io& other : io_) {
        const bool same = other.tag.origin == e.tag.origin && other.tag.index == e.tag.index;
        require(!same, "a tag was used twice");
        const bool both =
            writes && (other.kind == EffectKind::disk_write || other.kind == EffectKind::disk_zero);
        const bool overlap =
            e.offset < other.offset + other.length && other.offset < e.offset + e.length;
        require(!both || !overlap, "two writes to one place at once");
    }
    if (data) {
        require(e.length > 0 && e.offset % sector_bytes == 0 && e.length % sector_bytes == 0,
                "an I/O that is not aligned");
        require(e.offset < core_->volume_bytes() && e.length <= core_->volume_bytes() - e.offset,
                "an I/O beside the volume");
        require(core_->volume_bytes() <= volume_max_, "a volume that does not fit its disk");
    }
    if (e.tag.origin == IoOrigin::resync) ++reached_.resync_reads;
    if (writes && e.tag.origin == IoOrigin::peer_request) {
        // What a resync writes is durable, and what it zeroes may be freed.
        ++(e.durable && e.discard ? reached_.resync_writes : reached_.peer_writes);
        require(!primary_ || core_->role() != Role::primary, "a peer writes to a Primary's disk");
    }
    if (e.buffer.kind == BufferKind::receive) {
        const auto buffer = buffers_.find(e.buffer.index);
        require(buffer != buffers_.end(), "a write from a buffer that is free");
        require(buffer->second.offset == e.offset && buffer->second.length == e.length,
                "a write to a place that no message named");
    }
    if (e.kind == EffectKind::metadata) {
        std::array<std::byte, 4096> block{};
        core_->encode_metadata(e.tag, block);
        if (e.tag.origin == IoOrigin::superblock) {
            const auto decoded = decode_superblock(block);
            require(static_cast<bool>(decoded), "a superblock that can not be read");
            require(decoded.value().effective_size_sectors > 0, "a volume without a size");
        }
    }
    io_.push_back({e.tag, e.kind, e.offset, data ? e.length : 0});
}

void Arena::perform_send(const Effect& e) {
    std::array<std::byte, wire_header_bytes> header{};
    encode_header(e.message, 0, header);
    if (e.message.payload_bytes > 0 && e.buffer.kind == BufferKind::none) {
        std::vector<std::byte> payload(e.message.payload_bytes);
        require(core_->encode_payload(e, payload) == payload.size(), "a payload of another size");
        if (e.message.type == MessageType::hello) {
            foes_[static_cast<std::size_t>(e.peer)].session = decode_hello(payload).value().session;
        }
    }
    Foe& foe = foes_[static_cast<std::size_t>(e.peer)];
    if (foe.link != Foe::Link::closed) foe.heard.push_back(e.message);
    if (foe.heard.size() > 64) foe.heard.pop_front();
}

// --- What happens to it
// ------------------------------------------------------------------------------------------------

void Arena::finish_io(bool may_fail) {
    if (io_.empty()) return;
    const std::size_t n = below(io_.size());
    const Io io = io_[n];
    io_.erase(io_.begin() + static_cast<std::ptrdiff_t>(n));
    const int result = may_fail && below(3'000) == 0 ? 5 : 0;
    core_->on_io(now(), io.tag, result, chance(20));
    perform();
}

void Arena::submit() {
    const auto slot = static_cast<std::uint32_t>(below(4));
    if (requests_.count(slot) != 0) return;
    constexpr IoKind kinds[] = {IoKind::read,    IoKind::write,        IoKind::write,
                                IoKind::discard, IoKind::write_zeroes, IoKind::flush};
    const IoKind kind = one_of(kinds);
    std::uint64_t offset =
        below(std::min<std::uint64_t>(core_->volume_bytes() / 512 + 1, 64)) * 512;
    const std::uint64_t room = extent_bytes - offset % extent_bytes;
    const auto length =
        static_cast<std::uint32_t>(std::min<std::uint64_t>(room, sector_bytes * (1 + below(40))));
    requests_.insert(slot);
    core_->on_request(now(), slot, kind, offset, kind == IoKind::flush ? 0 : length, chance(20));
    perform();
}

void Arena::command() {
    Command c;
    constexpr CommandKind kinds[] = {
        CommandKind::promote,    CommandKind::promote,     CommandKind::promote,
        CommandKind::demote,     CommandKind::connect,     CommandKind::disconnect,
        CommandKind::detach,     CommandKind::invalidate,  CommandKind::invalidate_remote,
        CommandKind::pause_sync, CommandKind::resume_sync, CommandKind::new_current_uuid,
    };
    c.kind = one_of(kinds);
    if (c.kind == CommandKind::detach && chance(80)) c.kind = CommandKind::connect;
    c.token = ++token_;
    if (chance(50)) c.peer = one_of(peer_ids);
    c.force = chance(50);
    c.discard_my_data = chance(10);
    c.wall_clock_s = below(1000);
    core_->on_command(now(), c);
    perform();
}

void Arena::act() {
    const NodeId id = one_of(peer_ids);
    Foe& foe = foes_[id];
    if (chance(commands_)) return command();
    const std::uint64_t what = below(100);
    if (what < 45) return foe.link == Foe::Link::open ? speak(id) : greet(id);
    if (what < 80) return finish_io(true);
    if (what < 88) return submit();
    if (what < 92) {
        // A peer that was refused is welcome again.
        Command c;
        c.kind = CommandKind::connect;
        c.token = ++token_;
        core_->on_command(now(), c);
        now_.ns += chance(10) ? below(20 * ns_per_s) : below(100 * ns_per_ms);
        core_->on_tick(now_);
        return perform();
    }
    if (what == 92 && foe.link == Foe::Link::open && chance(20)) {
        foe = Foe{};
        core_->on_link_closed(now(), id);
        return perform();
    }
    if (what == 93 && core_->disk() == DiskState::diskless && chance(20)) {
        attach_again();
        return perform();
    }
    if (what == 94) core_->on_backlog(id, chance(90) ? 0 : 1U << 30);
}

void Arena::attach_again() {
    if (!core_->prepare_attach(draw_superblock())) return;
    core_->on_attach(now(), {{}, {}, volume_max_, false});
}

// --- What the peers say
// ------------------------------------------------------------------------------------------------

HelloPayload Arena::hello(NodeId id, Stream stream) {
    HelloPayload h;
    h.stream = stream;
    h.from = id;
    h.to = own_id;
    h.session = foes_[id].session;
    h.journal_entries = !chance(wild_) ? 16 : one_of<std::uint32_t>({0, 8, ~0U});
    h.io_bytes_max = io_bytes_max;
    h.resource[0] = 'r';
    h.resource[1] = '0';
    if (!chance(wild_)) return h;
    if (chance(30)) h.from = static_cast<NodeId>(below(nodes_max));
    if (chance(30)) h.to = static_cast<NodeId>(below(nodes_max));
    if (chance(30)) h.version_min = h.version_max = 0xffff;
    if (chance(30)) h.volume_id[0] = 9;
    return h;
}

void Arena::greet(NodeId id) {
    Foe& foe = foes_[id];
    if (foe.link == Foe::Link::dialling) {
        foe.link = Foe::Link::open;
        const bool ok = chance(90);
        if (!ok) foe = Foe{};
        core_->on_dialled(now(), id, ok);
        return perform();
    }
    if (id > own_id && !chance(wild_)) return;
    if (chance(60)) foe.session = random_.next();
    const Stream stream = chance(50) ? Stream::bulk : Stream::control;
    const std::uint64_t handle = next_handle_++;
    const HelloPayload first = hello(id, stream);
    core_->on_hello(now(), handle, first);
    perform();
    if (chance(10)) {
        core_->on_handle_closed(now(), handle);
        perform();
    }
    HelloPayload second = hello(id, stream == Stream::bulk ? Stream::control : Stream::bulk);
    second.session = first.session;
    core_->on_hello(now(), next_handle_++, second);
    perform();
}

void Arena::speak(NodeId id) {
    Foe& foe = foes_[id];
    while (!foe.heard.empty() && !chance(made_up_)) {
        const Message heard = foe.heard.front();
        foe.heard.pop_front();
        if (answer(id, heard)) return;
        if (foe.link != Foe::Link::open) return;
    }
    say(id, chance(made_up_) ? invent(id) : press_on(id));
}

// What a peer says by itself in the role that it has taken.
Message Arena::press_on(NodeId id) {
    Foe& foe = foes_[id];
    const PeerView view = core_->view(id);
    Message m = invent(id);
    const auto as = [&](std::initializer_list<MessageType> types) {
        m.type = types.begin()[below(types.size())];
        return m;
    };
    if (is_exchanging_bitmaps(view.replication) && chance(60)) {
        return as({MessageType::bitmap_done, MessageType::bitmap_page, MessageType::bitmap_ones});
    }
    if (view.replication == ReplicationState::sync_target && chance(60)) {
        if (chance(2)) return as({MessageType::sync_done});
        return as({MessageType::resync_data, MessageType::resync_zeroes});
    }
    if (foe.role == Role::primary) {
        if (view.role != Role::primary && chance(50)) return as({MessageType::state_update});
        if (chance(10)) return as({MessageType::generation, MessageType::in_sync});
        return as(
            {MessageType::write, MessageType::write_zeroes, MessageType::flush, MessageType::trim});
    }
    if (chance(3)) foe.role = Role::primary;
    return as({MessageType::promote, MessageType::state_update, MessageType::ping,
               MessageType::read, MessageType::want_trim});
}

// The answer that an honest peer gives; false: none.
bool Arena::answer(NodeId id, const Message& heard) {
    constexpr std::pair<MessageType, MessageType> answers[] = {
        {MessageType::hello, MessageType::hello},
        {MessageType::state, MessageType::state},
        {MessageType::generation, MessageType::generation_ack},
        {MessageType::promote, MessageType::promote_reply},
        {MessageType::write, MessageType::write_ack},
        {MessageType::write_zeroes, MessageType::write_ack},
        {MessageType::flush, MessageType::flush_ack},
        {MessageType::read, MessageType::read_reply},
        {MessageType::bitmap_done, MessageType::bitmap_done},
        {MessageType::resync_data, MessageType::resync_ack},
        {MessageType::resync_zeroes, MessageType::resync_ack},
        {MessageType::sync_done, MessageType::sync_done_ack},
        {MessageType::ping, MessageType::pong},
    };
    for (const auto& [question, type] : answers) {
        if (question != heard.type) continue;
        // Who dialled has the other's hello already, and speaks first.
        Message m;
        if (heard.type == MessageType::hello && id < own_id) {
            m.type = MessageType::ping;
            say(id, m);
            return true;
        }
        m.type = type;
        m.id = heard.id;
        if (type == MessageType::write_ack) m.seq = heard.seq;
        if (type == MessageType::read_reply) m.length = heard.length;
        if (type == MessageType::generation_ack || type == MessageType::sync_done_ack) {
            m.offset = core_->superblock().current_uuid;
        }
        if (chance(wild_)) m.flags = 1;
        if (heard.type == MessageType::hello) foes_[id].heard.clear();
        if (m.type == MessageType::hello || m.type == MessageType::bitmap_done) m.flags = 0;
        say(id, m);
        if (heard.type == MessageType::ping && chance(20)) say(id, m);
        return true;
    }
    return false;
}

Uuid Arena::draw_uuid() {
    const Superblock& sb = core_->superblock();
    switch (below(6)) {
        case 0:
        case 1:
            return sb.current_uuid;
        case 2:
            return sb.peers[one_of(peer_ids)].bitmap_uuid;
        case 3:
            return sb.history[below(4)];
        default:
            return uuids_[below(uuids_.size())];
    }
}

std::uint64_t Arena::draw_offset() {
    if (!chance(wild_)) return below(std::min<std::uint64_t>(volume_ / 4096 + 1, 8)) * 4096;
    return one_of<std::uint64_t>({volume_ - 512, volume_, 1U << 20, extent_bytes - 4096,
                                  extent_bytes, 513, std::uint64_t{1} << 63, ~std::uint64_t{0},
                                  ~std::uint64_t{4095}, volume_ / 4096 * 4096});
}

std::uint32_t Arena::draw_length() {
    if (!chance(wild_)) return static_cast<std::uint32_t>(512 * (1 + below(24)));
    return one_of<std::uint32_t>({1, 0, 65536, io_bytes_max, extent_bytes, 0xfffffe00, ~0U});
}

std::uint64_t Arena::draw_seq() {
    const Journal& journal = core_->journal();
    if (!chance(wild_)) return journal.tail();
    if (chance(50)) return journal.tail() - below(6);
    return one_of<std::uint64_t>(
        {0, 1, 2, ~std::uint64_t{0}, ~std::uint64_t{1}, std::uint64_t{1} << 63, journal.head()});
}

// All that there are; what changes data comes up more often.
constexpr MessageType message_types[] = {
    MessageType::hello,          MessageType::reject,
    MessageType::state,          MessageType::state,
    MessageType::state_update,   MessageType::state_update,
    MessageType::generation,     MessageType::generation,
    MessageType::generation_ack, MessageType::generation_committed,
    MessageType::in_sync,        MessageType::promote,
    MessageType::promote_reply,  MessageType::goodbye,
    MessageType::invalidate,     MessageType::adopt_generation,
    MessageType::write,          MessageType::write,
    MessageType::write,          MessageType::write_zeroes,
    MessageType::write,          MessageType::write_zeroes,
    MessageType::write_received, MessageType::write_ack,
    MessageType::flush,          MessageType::flush,
    MessageType::flush_ack,      MessageType::trim,
    MessageType::want_trim,      MessageType::read,
    MessageType::read_reply,     MessageType::bitmap_page,
    MessageType::bitmap_ones,    MessageType::bitmap_done,
    MessageType::resync_data,    MessageType::resync_data,
    MessageType::resync_zeroes,  MessageType::resync_ack,
    MessageType::sync_done,      MessageType::sync_done_ack,
    MessageType::sync_pause,     MessageType::ping,
    MessageType::pong,
};

Message Arena::invent(NodeId id) {
    Message m;
    m.type = one_of(message_types);
    // These end the connection for good, and with it the talk.
    const bool last = m.type == MessageType::hello || m.type == MessageType::reject ||
                      m.type == MessageType::goodbye;
    if (last && chance(80)) m.type = MessageType::state_update;
    m.flags = static_cast<std::uint16_t>(chance(60)       ? 0
                                         : !chance(wild_) ? below(8)
                                                          : random_.next());
    m.seq = draw_seq();
    m.offset = draw_offset();
    m.trim_seq = draw_seq() - below(8);
    m.length = draw_length();
    m.nodes = static_cast<std::uint32_t>(!chance(wild_) ? below(16) : random_.next());
    m.id = static_cast<std::uint32_t>(!chance(wild_) ? below(6) : random_.next());
    if (m.type == MessageType::state_update) m.id = draw_words(id);
    const bool names_generation = m.type == MessageType::generation_ack ||
                                  m.type == MessageType::generation_committed ||
                                  m.type == MessageType::sync_done_ack;
    if (names_generation) m.offset = draw_uuid();
    if (m.type == MessageType::bitmap_page || m.type == MessageType::bitmap_ones) {
        m.offset = one_of<std::uint64_t>({0, 0, 0, 1, 2, ~std::uint64_t{0}});
        m.length = one_of<std::uint32_t>({1, 1, 2, 0, ~0U});
    }
    return m;
}

// Role and disk state, as state_update has them.
std::uint32_t Arena::draw_words(NodeId id) {
    constexpr DiskState disks[] = {DiskState::up_to_date, DiskState::up_to_date,
                                   DiskState::up_to_date, DiskState::inconsistent,
                                   DiskState::outdated,   DiskState::consistent,
                                   DiskState::failed,     DiskState::diskless};
    Foe& foe = foes_[id];
    if (chance(wild_)) foe.role = chance(50) ? Role::primary : Role::secondary;
    if (chance(wild_)) return static_cast<std::uint32_t>(below(1024));
    return static_cast<std::uint32_t>(foe.role) |
           static_cast<std::uint32_t>(chance(60) ? DiskState::up_to_date : one_of(disks)) << 8;
}

StatePayload Arena::draw_state(NodeId id) {
    const Superblock& sb = core_->superblock();
    StatePayload s;
    const std::uint32_t words = draw_words(id);
    s.role = static_cast<std::uint8_t>(words);
    s.disk = static_cast<std::uint8_t>(words >> 8);
    s.flags = chance(70) ? 0 : static_cast<std::uint16_t>(random_.next());
    s.in_sync = static_cast<std::uint32_t>(below(16));
    s.size_bytes = s.size_max_bytes = core_->volume_bytes();
    if (s.disk < 4) s.size_bytes = 0;
    if (chance(wild_)) {
        s.size_bytes = one_of<std::uint64_t>({0, 1, 511, 512, 4096, volume_ - 512, volume_ + 512,
                                              volume_max_, extent_bytes, ~std::uint64_t{0}});
    }
    if (chance(wild_)) s.size_max_bytes = one_of<std::uint64_t>({0, 512, ~std::uint64_t{0}});
    s.current_uuid = draw_uuid();
    s.bitmap_uuid = chance(50) ? 0 : draw_uuid();
    s.admitting_uuid = chance(80) ? 0 : draw_uuid();
    s.bits = chance(50) ? 0 : random_.next();
    s.last_seq = draw_seq();
    s.promoted_at = below(1000);
    for (std::uint8_t& policy : s.after_sb)
        policy = static_cast<std::uint8_t>(!chance(wild_) ? below(8) : below(256));
    if (chance(80)) s.after_sb[3] = 0;
    s.volume_id = sb.extension.volume_id;
    if (chance(wild_)) s.volume_id[3] ^= 1;
    for (Uuid& uuid : s.history)
        uuid = chance(90) ? 0 : draw_uuid();
    return s;
}

GenerationPayload Arena::draw_generation() {
    const Superblock& sb = core_->superblock();
    GenerationPayload g;
    g.current_uuid = chance(50) ? random_.next() : draw_uuid();
    g.parent_uuid = draw_uuid();
    g.generation_seq = sb.extension.generation_seq + 1;
    g.in_sync = static_cast<std::uint32_t>(chance(70) ? below(16) | 2 : random_.next());
    g.primary_node = static_cast<int>(below(4)) - 1;
    g.disk = static_cast<std::uint8_t>(chance(80) ? 8 : below(16));
    g.volume_id = sb.extension.volume_id;
    for (Uuid& uuid : g.history)
        uuid = chance(90) ? 0 : draw_uuid();
    return g;
}

void Arena::fill_payload(NodeId id, const Message& m, std::vector<std::byte>& out) {
    if (m.type == MessageType::hello) {
        out.resize(hello_payload_bytes);
        HelloPayload h = hello(id, Stream::bulk);
        encode_hello(h, std::span<std::byte, hello_payload_bytes>(out));
    } else if (m.type == MessageType::state) {
        out.resize(state_payload_bytes);
        encode_state(draw_state(id), std::span<std::byte, state_payload_bytes>(out));
    } else if (m.type == MessageType::generation || m.type == MessageType::sync_done ||
               m.type == MessageType::adopt_generation) {
        out.resize(generation_payload_bytes);
        encode_generation(draw_generation(), std::span<std::byte, generation_payload_bytes>(out));
    } else if (m.type == MessageType::bitmap_page) {
        out.resize(wire_bitmap_page_bytes);
        for (std::byte& byte : out)
            byte = chance(98) ? std::byte{0} : std::byte{0x81};
    }
}

// Only what the framing lets through reaches a core: fields that a type does not use are zero, and
// the payload is as long as the type wants it.
Message framed(Message m, std::size_t structured) {
    const auto tried = [&](const Message& candidate) {
        std::array<std::byte, wire_header_bytes> bytes{};
        std::byte* p = bytes.data();
        store_le<std::uint32_t>(p, wire_magic);
        store_le<std::uint16_t>(p + 4, static_cast<std::uint16_t>(candidate.type));
        store_le<std::uint16_t>(p + 6, candidate.flags);
        store_le<std::uint32_t>(p + 8, candidate.payload_bytes);
        store_le<std::uint64_t>(p + 24, candidate.seq);
        store_le<std::uint64_t>(p + 32, candidate.offset);
        store_le<std::uint64_t>(p + 40, candidate.trim_seq);
        store_le<std::uint32_t>(p + 48, candidate.length);
        store_le<std::uint32_t>(p + 52, candidate.nodes);
        store_le<std::uint32_t>(p + 56, candidate.id);
        store_le<std::uint32_t>(p + 16, crc32c(bytes));
        return static_cast<bool>(decode_header(bytes));
    };
    // Each field stays if some choice of the others makes the frame a good one.
    for (unsigned dropped = 0; dropped < 128; ++dropped) {
        Message candidate = m;
        if ((dropped & 1) != 0) candidate.seq = 0;
        if ((dropped & 2) != 0) candidate.trim_seq = 0;
        if ((dropped & 4) != 0) candidate.nodes = 0;
        if ((dropped & 8) != 0) candidate.id = 0;
        if ((dropped & 16) != 0) candidate.offset = 0;
        if ((dropped & 32) != 0) candidate.length = 0;
        if ((dropped & 64) != 0) candidate.flags = 0;
        for (const std::uint32_t bytes :
             {static_cast<std::uint32_t>(structured), candidate.length}) {
            candidate.payload_bytes = bytes;
            if (tried(candidate)) return candidate;
        }
    }
    Message none;
    none.type = MessageType::want_trim;
    return none;
}

bool by_control(MessageType type) {
    switch (static_cast<int>(type)) {
        case 19:
        case 34:
        case 35:
        case 37:
        case 38:
        case 39:
        case 53:
        case 55:
        case 64:
        case 65:
            return true;
        default:
            return false;
    }
}

// What depends on the in-sync set names the one that the foe told, mostly.
void Arena::number(Foe& foe, Message& m, std::span<const std::byte> payload) {
    const auto low = [](std::uint64_t generation, std::uint64_t change) {
        return low_number({generation, change});
    };
    if (m.type == MessageType::state) {
        const auto s = decode_state(payload);
        foe.told = low(s.value().generation_seq, s.value().set_change);
    } else if (payload.size() == generation_payload_bytes) {
        const auto g = decode_generation(payload);
        if (g) foe.told = low(g.value().generation_seq, g.value().set_change);
    } else if (m.type == MessageType::in_sync && chance(50)) {
        foe.told = {foe.told[0], foe.told[1] + static_cast<std::uint32_t>(below(3))};
    }
    const SuperblockExtension& own = core_->superblock().extension;
    const auto named = m.type == MessageType::generation_ack && !chance(wild_)
                           ? low(own.generation_seq, own.set_change)
                           : foe.told;
    constexpr MessageType numbered[] = {
        MessageType::write,          MessageType::write_zeroes, MessageType::flush,
        MessageType::in_sync,        MessageType::promote,      MessageType::promote_reply,
        MessageType::generation_ack,
    };
    if (std::find(std::begin(numbered), std::end(numbered), m.type) == std::end(numbered)) return;
    m.set_generation = named[0];
    m.set_change = named[1] + (chance(wild_) ? 1 : 0);
}

void Arena::say(NodeId id, Message m) {
    Foe& foe = foes_[id];
    if (foe.link != Foe::Link::open) return;
    std::vector<std::byte> payload;
    fill_payload(id, m, payload);
    m = framed(m, payload.size());
    number(foe, m, payload);
    const bool data = m.type == MessageType::write || m.type == MessageType::resync_data ||
                      m.type == MessageType::read_reply;
    BufferRef buffer;
    if (data && m.payload_bytes > 0) {
        buffer = {BufferKind::receive, ++next_buffer_};
        if (m.type == MessageType::read_reply) {
            buffer = core_->destination(id, m);
        } else {
            buffers_[next_buffer_] = {m.offset, m.length};
        }
    }
    Stream stream = by_control(m.type) ? Stream::control : Stream::bulk;
    if (chance(wild_) && chance(5))
        stream = stream == Stream::bulk ? Stream::control : Stream::bulk;
    if (m.type == MessageType::hello) {
        for (const Stream each : {Stream::bulk, Stream::control}) {
            if (foe.link == Foe::Link::open) core_->on_message(now(), id, each, m, payload, buffer);
            perform();
        }
        return;
    }
    core_->on_message(now(), id, stream, m, payload, buffer);
    perform();
}

// The peers leave, the disk answers: nothing is left behind.
void Arena::end_of_all() {
    for (const NodeId id : peer_ids) {
        if (foes_[id].link == Foe::Link::dialling) core_->on_dialled(now(), id, false);
        if (foes_[id].link == Foe::Link::open) core_->on_link_closed(now(), id);
        foes_[id] = Foe{};
        perform();
    }
    for (int turn = 0; turn < 400; ++turn) {
        while (!io_.empty())
            finish_io(false);
        now_.ns += 100 * ns_per_ms;
        core_->on_tick(now_);
        perform();
        for (const NodeId id : peer_ids) {
            if (foes_[id].link == Foe::Link::dialling) core_->on_dialled(now(), id, false);
            perform();
        }
    }
    require(requests_.empty(), "a request was never answered");
    require(buffers_.empty(), "a buffer was never released");
    require(core_->idle(), "something is left under way");
}

void Arena::run(int steps) {
    perform();
    for (int i = 0; i < steps; ++i)
        act();
    end_of_all();
}

}  // namespace

TEST_CASE("a core survives peers that say anything") {
    // REPLICA_HOSTILE_SEED=n: this one alone. REPLICA_HOSTILE_SEEDS=n: so many.
    const auto number = [](const char* name, std::uint64_t otherwise) {
        const char* const text = std::getenv(name);
        return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
    };
    const std::uint64_t only = number("REPLICA_HOSTILE_SEED", 0);
    const std::uint64_t last = only != 0 ? only : number("REPLICA_HOSTILE_SEEDS", 2'500);
    Reached reached;
    for (std::uint64_t seed = only != 0 ? only : 1; seed <= last; ++seed) {
        INFO("seed " << seed);
        try {
            Arena(seed, reached).run(600);
        } catch (const std::runtime_error& e) {
            FAIL(e.what());
        }
    }
    if (only != 0 || last < 2'500) return;
    CHECK(reached.peer_writes > 250);
    CHECK(reached.resync_writes > 1'000);
    CHECK(reached.resync_reads > 1'000);
    CHECK(reached.acknowledged > 1'000);
}
