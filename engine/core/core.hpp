// SPDX-License-Identifier: Apache-2.0
// The replication state machine of one resource on one node. Deterministic: no system call, clock,
// thread, random source or pointer order in it; memory is allocated in the constructor, in
// prepare_attach() and when the volume grows, only. A value: it can be copied, and the copy goes
// its own way.
//
// The shell calls one on_...() per input and then performs the effects (take them with effects(),
// give the list back with clear_effects()) before the next input. docs/architecture.md describes
// the rules (D4 to D6 of the design) and which file holds which part:
//   core.cpp        construction, the end of each step, timers, status
//   metadata.cpp    attach, detach, superblock, activity log and bitmap I/O
//   requests.cpp    the application's reads, writes, flushes
//   peer_io.cpp     a peer's writes, flushes and reads on this node
//   link.cpp        connecting, hello, ping, loss
//   handshake.cpp   exchange of states, verdicts
//   membership.cpp  the in-sync set, generations, promote and demote
//   resync.cpp      bitmap exchange, source and target
//   size.cpp        agreeing on the volume's size, growing it, moving the metadata
//   commands.cpp    what the operator asks for
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/base/prng.hpp"
#include "engine/base/units.hpp"
#include "engine/core/al_cache.hpp"
#include "engine/core/bitmap.hpp"
#include "engine/core/effects.hpp"
#include "engine/core/generation.hpp"
#include "engine/core/io_kind.hpp"
#include "engine/core/journal.hpp"
#include "engine/core/mutant.hpp"
#include "engine/core/policy.hpp"
#include "engine/core/register.hpp"
#include "engine/core/types.hpp"
#include "engine/format/superblock.hpp"
#include "engine/format/wire.hpp"

namespace replica {

// The low 16 bits of the id of a read are its slot; the rest tells two reads of one slot apart.
constexpr std::uint32_t read_slot(std::uint32_t id) { return id & 0xffff; }

struct CoreLimits {
    std::uint32_t requests = 256;    // application requests at once, up to 65535
    std::uint32_t journal = 8192;    // writes not known to be stable everywhere
    std::uint32_t peer_reads = 256;  // reads of peers being served
    // Reads of a connection that is over keep their places until the disk has done them.
    std::uint32_t peer_reads_max() const { return 2 * peer_reads; }
    std::uint32_t resync_chunks = 16;  // resync requests under way
    std::uint32_t resync_chunk_bytes = 256 * 1024;
    std::uint32_t bitmap_writes = 4;  // bitmap pages written at once in the background
    std::uint64_t idle_flush_ns = 500 * ns_per_ms;  // unflushed writes are made stable after this
};

struct CoreConfig {
    NodeId node_id = 0;
    NodeMask peers;        // configured peers, own id not included
    std::string resource;  // name, at most wire_name_max - 1 bytes
    ResourceOptions options;
    CoreLimits limits;
    std::uint64_t entropy = 0;  // from a true random source; seeds session and generation ids
    Mutant mutant = Mutant::none;
};

struct AttachInfo {
    std::vector<std::uint32_t> hot_extents;  // from the activity log
    std::array<std::uint8_t, 16> boot_id{};  // of this boot of the machine
    std::uint64_t data_bytes_max = 0;        // the largest volume that fits the disk
    bool all_zero = false;                   // the data area is known to read as zeroes
    bool cache_suspect = false;              // Core::cache_suspect() of an earlier process
    std::uint64_t device_bytes = 0;          // of the disk, with internal metadata
};

enum class CommandKind : std::uint8_t {
    promote,
    demote,
    connect,
    disconnect,
    detach,
    invalidate,
    invalidate_remote,
    pause_sync,
    resume_sync,
    new_current_uuid,
    resize,            // all nodes have room, by on_room()
    hold_metadata,     // ends when no metadata is being written; no more is, until
    release_metadata,  // this, or on_metadata_moved()
    down,
};
struct Command {
    CommandKind kind = CommandKind::promote;
    std::uint32_t token = 0;       // comes back in the reply effect
    int peer = -1;                 // -1: all
    bool force = false;            // promote; new_current_uuid: clear the bitmap
    bool discard_my_data = false;  // connect
    std::uint64_t wall_clock_s = 0;
    std::uint64_t size_bytes = 0;  // resize: 0: all that there is room for on every node
};

struct PeerView {
    ConnectionState connection = ConnectionState::standalone;
    Role role = Role::unknown;
    DiskState disk = DiskState::unknown;
    ReplicationState replication = ReplicationState::off;
    const char* why = "";
    std::uint64_t out_of_sync_bits = 0;
    std::uint64_t resync_total_bits = 0;
    std::uint64_t resync_done_bits = 0;
    std::uint64_t sent_bytes = 0, received_bytes = 0;
    std::uint64_t resync_sent_bytes = 0, resync_received_bytes = 0;
    std::uint32_t pending = 0;     // requests sent and not answered
    std::uint32_t unacked = 0;     // requests received and not answered
    bool in_sync = false;          // member of the in-sync set
    std::uint64_t size_bytes = 0;  // of its volume, 0: not heard, or no disk
    std::uint64_t room_bytes = 0;  // how far that could grow
};

class Core {
  public:
    explicit Core(const CoreConfig& config);

    // --- Attach. prepare_attach() allocates bitmap and activity log; then every bitmap page is
    // loaded; then on_attach(). Errors: what the operator must change, e.g. another node's
    // metadata.
    Status prepare_attach(const Superblock& superblock);
    std::uint64_t bitmap_pages() const { return bitmap_ ? bitmap_->pages() : 0; }
    void load_bitmap_page(std::uint64_t page, std::span<const std::byte, 4096> bytes);
    void on_attach(Instant now, AttachInfo info);

    // --- Inputs.
    void on_request(Instant now, std::uint32_t slot, IoKind kind, std::uint64_t offset,
                    std::uint32_t length, bool fua);
    // result: 0, or a positive errno. zeroes: a resync read found nothing but zeroes.
    void on_io(Instant now, IoTag tag, int result, bool zeroes = false);
    void on_command(Instant now, const Command& command);
    void on_disk_removed(Instant now);  // the backing disk is gone from the machine
    // On stable storage the disk reads as zeroes from the volume's end to `bytes`, at most
    // data_bytes_max.
    void on_room(Instant now, std::uint64_t bytes);
    // While they were held all metadata was copied to where `placed` has it. The next superblock is
    // written there, on the disk before the copy; from then on that is the place, and `token` is
    // replied to.
    void on_metadata_moved(Instant now, std::uint32_t token, const Superblock& placed,
                           std::uint64_t data_bytes_max);
    void on_tick(Instant now);
    void on_options(Instant now, const ResourceOptions& options);
    // How much the shell has queued for a peer's bulk stream; a long exchange of bitmaps waits for
    // it.
    void on_backlog(NodeId peer, std::uint64_t bytes) { peers_[peer].backlog_bytes = bytes; }

    // --- Links. The shell opens and accepts connections; who talks to whom is decided here.
    void on_dialled(Instant now, NodeId peer, bool ok);  // both connections are open, or not
    void on_hello(Instant now, std::uint64_t handle, const HelloPayload& hello);  // accepted side
    void on_handle_closed(Instant now, std::uint64_t handle);  // before it was adopted
    void on_link_closed(Instant now, NodeId peer);             // either stream broke
    // The network toward the peer is there again, or another one: do not wait for the next attempt.
    void on_path_found(Instant now, NodeId peer);
    // Where the shell puts the payload of a message that is arriving: the door's buffer of a read,
    // or one of the shell's receive buffers. kind none: the payload is structured, or unexpected.
    BufferRef destination(NodeId peer, const Message& message) const;
    // payload: bytes of structured payloads; buffer: where data payloads were put.
    void on_message(Instant now, NodeId peer, Stream stream, const Message& message,
                    std::span<const std::byte> payload, BufferRef buffer);

    // --- Outputs.
    std::vector<Effect>& effects() { return effects_; }
    void clear_effects() { effects_.clear(); }
    // Bytes of a metadata effect. Length: superblock 4096, al 4096, bitmap_page 4096.
    void encode_metadata(IoTag tag, std::span<std::byte> out) const;
    // Position of the activity-log block of the transaction under way, in blocks.
    std::uint32_t al_block() const;
    // Bytes of a structured payload of a send effect; returns how many.
    std::size_t encode_payload(const Effect& effect, std::span<std::byte> out) const;
    std::optional<Instant> next_deadline() const;

    // --- Views.
    Role role() const { return role_; }
    // Requests are taken: Primary, and that is on record.
    bool serves() const { return role_ == Role::primary && promotion_ == Promotion::none; }
    // It is to become Secondary as soon as its requests have ended.
    bool demoting() const { return demote_command_.has_value(); }
    DiskState disk() const { return disk_; }
    bool suspended() const { return !settled(); }
    bool has_good_data() const;
    int no_data_error() const;
    // The disk failed and is not attached since: its cache may have lost what it held. The shell
    // remembers this until the machine starts anew, which says so by itself.
    bool cache_suspect() const { return disk_failed_; }
    std::uint64_t volume_bytes() const { return volume_bytes_; }
    bool metadata_is_held() const { return hold_ != MetadataHold::none; }
    std::uint64_t room() const;  // how large the volume could be on this disk
    const Superblock& superblock() const { return sb_; }
    const Bitmap* bitmap() const { return bitmap_ ? &*bitmap_ : nullptr; }
    const AlCache* al() const { return al_ ? &*al_ : nullptr; }
    const Journal& journal() const { return journal_; }
    PeerView view(NodeId peer) const;
    NodeMask in_sync() const { return register_.members(); }
    NodeMask configured_peers() const { return config_.peers; }
    const char* why() const { return why_; }
    bool idle() const;  // nothing under way: no request, no I/O
    struct Counters {
        std::uint64_t read_bytes = 0, written_bytes = 0;
        std::uint64_t al_writes = 0, bm_writes = 0, md_writes = 0;
    };
    const Counters& counters() const { return counters_; }
    std::string describe() const;                                   // for people
    std::uint64_t state_version() const { return state_version_; }  // changes with any status word

    void check_invariants() const;

  private:
    enum class Phase : std::uint8_t { free, held, al_wait, active };
    struct Request {
        Phase phase = Phase::free;
        IoKind kind = IoKind::read;
        bool fua = false;
        bool local_pending = false;
        bool local_ok = false;
        bool remote_read = false;
        bool flushed_here = false;  // a flush: this node's disk is part of it
        bool counted = false;       // a read in active_reads_
        bool al_held = false;       // while it waits for the activity log
        // Why a replica has not done it: the errno of this node's disk, or EIO of a peer's.
        int error = 0;
        int read_peer = -1;
        NodeMask refused;               // nodes whose disk could not read it
        std::uint16_t read_serial = 0;  // of the read or flush that peers were asked
        std::uint32_t length = 0;
        std::uint64_t offset = 0;
        std::uint64_t seq = 0;              // journal entry of a write
        std::uint64_t flush_local_seq = 0;  // flush: covers here what is written up to this one
        NodeMask waiting;                   // peers whose answer is missing
        NodeMask answered_ok;               // in-sync peers that have it
        std::uint64_t order = 0;            // arrival
        std::uint64_t sent_order = 0;       // of a flush or a read of a peer's disk
    };
    enum class PeerIo : std::uint8_t { write, zero, resync_write, resync_zero, flush };
    struct PeerRequest {
        Phase phase = Phase::free;
        PeerIo kind = PeerIo::write;
        bool fua = false;
        bool discard = false;
        bool al_held = false;
        bool journalled = false;  // seq is its entry in the journal
        NodeMask missing;         // who lacks a primary's write, by its word
        NodeId peer = 0;
        std::uint32_t link = 0;  // which incarnation of the connection it came by
        std::uint32_t id = 0;
        std::uint32_t length = 0;
        std::uint64_t offset = 0;
        std::uint64_t seq = 0;
        std::uint64_t order = 0;
        BufferRef buffer;
    };
    struct PeerRead {
        bool used = false;
        bool issued = false;
        NodeId peer = 0;
        std::uint32_t link = 0;
        std::uint32_t id = 0;
        std::uint32_t length = 0;
        std::uint64_t offset = 0;
        std::uint64_t order = 0;
    };
    struct Chunk {
        // reserved: it waits for the writes under way, and later writes wait for it.
        enum class State : std::uint8_t { free, reserved, reading, sent } state = State::free;
        bool aborted = false;
        NodeId peer = 0;
        std::uint64_t offset = 0;
        std::uint32_t length = 0;
        std::uint64_t sent_order = 0;
    };
    // For each kind of request, the oldest that has reached a peer and is not answered.
    static constexpr std::size_t unanswered_kinds = 4;
    struct Watch {
        std::uint64_t order = 0;
        Instant since;
    };
    enum class LinkPhase : std::uint8_t { down, dialling, greeting, up };
    struct Peer {
        int slot = -1;        // bitmap slot
        bool wanted = false;  // try to connect
        LinkPhase phase = LinkPhase::down;
        std::uint32_t link = 0;  // +1 for each new connection
        std::uint64_t session = 0;
        std::array<std::uint64_t, 8> used_sessions{};  // that were accepted, the last one first
        Instant retry_at;
        bool retries = false;  // the last attempt failed: the next one waits twice as long
        bool knocks = true;    // a side that only listens says once, at retry_at, that it is there
        Instant phase_since;
        std::array<std::uint64_t, 2> pending_handle{};  // accepted, waiting for the other stream
        std::uint64_t pending_session = 0;
        Instant pending_since;
        std::uint64_t incarnation = 0;
        std::array<bool, 2> greeted{};  // dialling side: hello came back on the stream
        bool accepting = false;         // accepting side: up at the dialler's first message
        std::uint32_t ping_id = 0;
        bool ping_pending = false;
        Instant ping_at;
        Instant progress_at;        // last time that an answer came, or the first was asked for
        std::uint32_t pending = 0;  // requests of all kinds without their answer
        // The place of the latest request that it answered. What was sent before that has arrived.
        std::uint64_t answered_order = 0;
        std::uint32_t reads_given_up = 0;  // by this link, and their answers may still come
        std::uint64_t state_order = 0, done_order = 0, generation_order = 0, promote_order = 0;
        std::array<Watch, unanswered_kinds> watches;
        Instant watch_at;
        std::uint32_t journal_max = 0;
        const char* why = "";

        bool want_state = false;  // a handshake round is wanted
        bool state_sent = false, state_received = false;
        StatePayload sent, received;
        std::uint32_t sent_attachment = 0;  // the disk that `sent` speaks of
        // The number of its in-sync set that it told last on this link: generation, change.
        std::array<std::uint32_t, 2> told_set{};
        // The generation that it has recorded, by its answer on this link.
        Uuid recorded = uuid_none;
        // A state that was received is answered, or waits to be.
        bool in_round() const { return want_state || state_sent; }
        std::optional<Message> late_update;  // came between its state and the verdict
        std::uint32_t cache_losses = 0;      // of its disk, when the two last met
        bool lacks_acknowledged = false;     // the last copy, of what this Primary acknowledged
        bool discard_my_data = false;
        bool named = false;    // it named what it holds before this node could believe it
        bool aligned = false;  // both slots of the pair were seen to be empty

        Role role = Role::unknown;
        bool agreed = false;              // Primary only by a promotion that this node agreed to
        std::uint32_t agreed_to = 0;      // which ask that is
        std::uint32_t promote_asked = 0;  // the number of this node's last ask
        // Its word about the in-sync set is the truth.
        bool leads() const { return role == Role::primary && !agreed; }
        DiskState disk = DiskState::unknown;
        ReplicationState repl = ReplicationState::off;
        std::uint64_t size_bytes = 0, room_bytes = 0;  // as its last state has them
        std::uint64_t stable_seq = 0;  // writes up to this one are stable on the peer
        std::uint64_t trim_told = 0;
        bool wants_trim = false;      // its activity log has no room until it hears of a trim
        std::uint64_t first_seq = 0;  // source: the target's journal begins here

        // Resync.
        bool paused_here = false, paused_there = false, pause_told = false;
        std::uint64_t backlog_bytes = 0;  // queued in the shell for the bulk stream
        bool bitmap_sent = false, bitmap_received = false;
        bool full_target = false;         // takes everything: its own label means nothing
        bool finishing = false;           // source: the target is counted in
        bool done_sent = false;           // and has been told
        std::uint32_t done_id = 0;        // the id of the last sync_done
        Uuid done_uuid = uuid_none;       // the generation that it named
        bool paused_for_other = false;    // target: another source is at work
        std::uint64_t bitmap_cursor = 0;  // next wire page to send
        std::uint64_t cursor = 0;         // next bit to look at
        std::uint64_t total_bits = 0, done_bits = 0;
        std::uint32_t chunks = 0;
        std::uint32_t small_chunks = 0;  // so many chunks of one block, after a skipped one
        std::uint32_t busy_passes = 0;   // in a row, with all that is left being written
        std::uint64_t sent_bytes = 0, received_bytes = 0;
        std::uint64_t resync_sent_bytes = 0, resync_received_bytes = 0;
    };
    // Something that happens once the superblock of `version` is durable.
    struct OnDurable {
        enum class What : std::uint8_t {
            generation_ack,
            sync_done_ack,
            promote_reply,
            promoted,
            demoted,
            reply_ok,
            detached,
        } what = What::reply_ok;
        std::uint64_t version = 0;
        NodeId peer = 0;
        std::uint32_t link = 0;
        std::uint64_t value = 0;
        SetNumber number;      // generation_ack: of the set that is recorded
        std::uint32_t id = 0;  // sync_done_ack: of the sync_done that is answered
    };
    enum class Promotion : std::uint8_t { none, asking, recording };
    // Of metadata writes, while the metadata is moved: what is on its way ends; nothing goes out;
    // the superblock goes to the new place.
    enum class MetadataHold : std::uint8_t { none, draining, held, recording };
    enum class MetaPhase : std::uint8_t {
        detached,
        attach_bitmap,
        attach_mark,
        attach_al,
        attach_superblock,
        attached,
        detach_drain,
        detach_bitmap,
        detach_superblock,
        detach_al,
        detach_seal,
    };

    // core.cpp
    void end_step();
    bool progress();
    Effect& emit(EffectKind kind);
    void notice(int level, int peer, const char* text);
    void reply(std::uint32_t token, Errc code, const char* text);
    bool configured(NodeId peer) const { return config_.peers.has(peer); }
    template <class F>
    void for_peers(F&& f);
    template <class F>
    void for_peers(F&& f) const;
    bool is(Mutant mutant) const { return config_.mutant == mutant; }
    NodeMask self() const { return NodeMask::of(config_.node_id); }
    // Those of the in-sync set that can be heard at all: an operator took the others away.
    NodeMask members() const { return in_sync() & (config_.peers | self()); }
    std::uint64_t new_id();
    void touch() { ++state_version_; }
    void schedule(Instant at);

    // metadata.cpp
    bool disk_usable() const;  // can take reads and writes of data
    bool metadata_usable() const { return meta_ == MetaPhase::attached; }
    void persist();
    bool label_covers_data() const;
    void data_changes();
    Effect& write_data(IoTag tag, BufferRef buffer, std::uint64_t offset, std::uint32_t length);
    bool durable() const { return sb_durable_ >= sb_version_ || !metadata_usable(); }
    void on_durable(OnDurable::What what, NodeId peer, std::uint64_t value);
    void run_on_durable();
    void agree_to_promotion(const OnDurable& asked);
    void pump_superblock();
    void pump_activity_log();
    void pump_bitmap();
    void pump_local_flush();
    void on_local_flushed(int result);
    void on_superblock_written(int result);
    void on_al_written(int result);
    void on_al_initialised(int result);
    void on_bitmap_page_written(std::uint64_t page, int result);
    void attach_next();
    void detach_next();
    void start_detach();
    void local_disk_failed(const char* why);
    void local_io_failed(int error, const char* what = nullptr);
    void finish_failed_disk();
    void set_disk(DiskState state);
    void sync_flags();
    void assign_slots();
    void keep_live_label(const Superblock& live);
    void mark_journal(std::uint64_t after_seq, NodeMask nodes);
    void mark_unstable(NodeId peer);
    void release_journal_entry(JournalEntry& entry);
    void drop_journal(bool mark);
    void maybe_clear_crash_marker();
    void set_slot_full(NodeId peer);
    bool quiet() const;  // no I/O to data, bitmap or log is under way or waits

    // requests.cpp
    void admit(std::uint32_t slot);
    bool conflicts(const Request& request) const;
    void issue_write(std::uint32_t slot);
    void issue_read(std::uint32_t slot);
    void issue_flush(std::uint32_t slot);
    void flush_here(std::uint32_t slot);
    bool replicates_to(const Peer& peer, NodeId id) const;
    void maybe_complete(std::uint32_t slot);
    bool has_own_copy() const;
    bool request_succeeded(const Request& request) const;
    void complete(std::uint32_t slot, int error);
    void complete_waiting();
    void retry_held();
    void retry_al_waiters();
    bool may_pass_on(const Request& request) const;
    void on_request_io(std::uint32_t slot, int result);
    void peer_answered(std::uint64_t seq, NodeId peer, bool written);
    void flush_answered(std::uint32_t flush, NodeId peer, bool ok);
    void retry_read(std::uint32_t slot);
    void advance_trim();
    void tell_trim();
    void on_want_trim(NodeId peer);
    bool holds_up_trim(NodeId peer) const;
    bool trim_waits_for_another(NodeId peer) const;
    void start_epoch_flush();
    bool write_range_busy(std::uint64_t offset, std::uint64_t length) const;
    bool own_write_under_way(std::uint64_t offset, std::uint64_t length) const;
    std::uint64_t answered_bound(NodeId peer) const;
    std::uint64_t flush_bound(NodeId peer, std::uint32_t slot) const;
    bool starving() const;
    bool flush_helps() const;
    std::uint64_t local_done_seq() const;
    std::uint64_t journal_limit() const;
    bool journal_full() const { return journal_.size() >= journal_limit(); }
    // error: what its disk has to do with that; 0: nothing, it is out of reach.
    void peer_gone_from_requests(NodeId peer, int error);
    void send_write(std::uint32_t slot, NodeId peer, NodeMask missing);

    // peer_io.cpp
    void on_peer_write(NodeId peer, const Message& m, BufferRef buffer);
    void follow_sequence(NodeId primary, std::uint64_t seq);
    void on_peer_flush(NodeId peer, const Message& m);
    void on_peer_read(NodeId peer, const Message& m);
    void issue_peer_reads();
    void answer_peer_read(PeerRead& read, BufferRef buffer);
    void on_peer_read_io(std::uint32_t index, int result);
    bool read_is_asked(NodeId peer, const Message& m) const;
    void on_read_reply(NodeId peer, const Message& m, BufferRef buffer);
    void on_trim(NodeId peer, std::uint64_t trim_seq);
    void admit_peer_request(std::uint32_t index);
    bool peer_conflicts(const PeerRequest& request) const;
    void issue_peer_request(std::uint32_t index);
    void finish_peer_request(std::uint32_t index, int result);
    void answer_peer_request(const PeerRequest& request, bool ok, bool skipped);
    void free_peer_request(std::uint32_t index);
    void retry_peer_requests();
    bool landing(const PeerRequest& request) const;
    std::optional<std::uint32_t> new_peer_request(NodeId peer);

    // link.cpp
    void send(NodeId peer, Stream stream, Message message, BufferRef buffer = {});
    void send_generation(NodeId peer, Message message);
    bool under_told_set(NodeId peer, const Message& m);
    void send_control(NodeId peer, MessageType type, std::uint32_t id, std::uint16_t flags = 0);
    HelloPayload hello_for(NodeId peer, Stream stream) const;
    void start_dial(NodeId peer);
    void knock(NodeId peer);
    void accept_pair(NodeId peer, const HelloPayload& hello);
    void on_knock(NodeId peer);
    Instant next_attempt(const Peer& peer) const;
    const char* ask_who_is_there(NodeId peer);
    void link_up(NodeId peer);
    void lose_link(NodeId peer, const char* why, bool graceful = false, int level = 5);
    bool lacks_acknowledged(NodeId peer) const;
    void go_standalone(NodeId peer, const char* why);
    void protocol_error(NodeId peer, const char* why);
    void tick_link(NodeId peer);
    bool awaits_answer(const Peer& peer, NodeId id) const;
    std::uint64_t expect_answer(NodeId peer, std::uint32_t pending);
    void answered(NodeId peer, std::uint64_t order, std::uint32_t pending);
    std::array<std::uint64_t, unanswered_kinds> oldest_unanswered(NodeId peer) const;
    bool hangs(NodeId peer);
    void dispatch_structured(NodeId peer, const Message& m, std::span<const std::byte> payload);
    void dispatch(NodeId peer, const Message& m, std::span<const std::byte> payload,
                  BufferRef buffer);
    void on_write_ack(NodeId peer, const Message& m);
    void on_goodbye(NodeId peer, const Message& m);
    bool dials(NodeId peer) const { return config_.node_id < peer; }

    // handshake.cpp
    void want_handshake(NodeId peer);
    void maybe_send_state(NodeId peer);
    StatePayload make_state(NodeId peer) const;
    void on_state(NodeId peer, const StatePayload& state);
    void evaluate(NodeId peer);
    bool is_overtaken(const Peer& peer, NodeId id) const;
    void judge(NodeId peer);
    const char* not_to_be_met(NodeId peer) const;
    void apply_no_sync(NodeId peer);
    // How this node knows that a peer lacks nothing of what its marks stand for.
    enum class Proof : std::uint8_t {
        equal,      // the two compared their states, at rest
        delivered,  // this node filled it, and it has said so
        received,   // this node was filled by it
        primary,    // a Primary that counts both, at a point of the stream of its writes
        zeroes,     // no disk was ever written
    };
    bool clear_marks(NodeId peer, Proof proof);
    bool rests() const;
    void take_content(std::uint64_t content, NodeMask others);
    void hear_name_again(NodeId peer);
    void on_state_update(NodeId peer, const Message& m);
    void announce_state();
    void no_good_copy(NodeId peer);
    bool equal_and_usable(const Peer& peer) const;
    bool equal(const Peer& peer) const;
    bool holds_generation(const Peer& peer) const;
    bool meet_without_disk(NodeId peer);
    bool learn_members(NodeId peer);
    int lowest_equal() const;
    void leave_it_to_the_primary();
    void look_at_marked_peers();
    void ask_the_lowest(NodeId deferred);
    void maybe_up_to_date(bool peer_is_up_to_date);
    bool sees_primary() const;
    void primary_is_gone(NodeId peer);
    void follow(NodeId primary);

    // membership.cpp
    bool settled() const;
    void evict(NodeMask lost);
    void open_generation(NodeMask members, NodeMask lost);
    void open_generation_after(Uuid theirs);
    bool nothing_acknowledged_since(Uuid theirs) const;
    void tell_generation();
    void mirror_set();
    void propose_set(const InSyncSet& next);
    void take_set(const InSyncSet& set);
    void announce_set(NodeMask except);
    NodeMask recorders(NodeMask but) const;
    InSyncSet set_of(const StatePayload& state) const;
    InSyncSet set_of(const GenerationPayload& g) const;
    void take_primarys_set(NodeId peer, const Message& m);
    void tell_recorded(NodeId peer);
    void offer_generation(NodeId peer);
    void on_generation(NodeId peer, const Message& m, const GenerationPayload& g);
    void on_generation_ack(NodeId peer, const Message& m);
    void on_generation_committed(NodeId peer, const Message& m);
    void on_in_sync(NodeId peer, const Message& m);
    void maybe_commit_generation();
    GenerationPayload make_generation() const;
    void admit_to_in_sync(NodeId peer);
    void pass_number(SetNumber theirs);
    void change_members(NodeMask members, NodeMask later, std::uint64_t passed = 0);
    void peer_lost_data(NodeId peer);
    void try_promote();
    void become_primary();
    void try_demote();
    bool is_past(Uuid generation) const;
    void on_promote(NodeId peer, const Message& m);
    void on_promotion_given_up(NodeId peer, std::uint32_t attempt);
    void on_promote_reply(NodeId peer, const Message& m);
    void abandon_promotion(Errc code, const char* why);

    // resync.cpp
    void start_source(NodeId peer, bool full);
    void start_target(NodeId peer, bool full);
    void abort_resync(NodeId peer);
    bool may_send_bitmap(const Peer& peer) const;
    void pump_bitmap_exchange(NodeId peer);
    void on_bitmap_message(NodeId peer, const Message& m, std::span<const std::byte> payload);
    void pump_resync(NodeId peer);
    bool leaves_room() const;
    bool start_chunk(NodeId peer);
    void read_chunk(std::uint32_t index);
    void give_up_reserved(NodeId peer);
    const Chunk* chunk_over(std::uint64_t offset, std::uint64_t length) const;
    std::uint64_t unwritten_part(std::uint64_t offset, std::uint64_t length) const;
    void on_chunk_read(std::uint32_t chunk, int result, bool zeroes);
    void on_resync_ack(NodeId peer, const Message& m);
    void mark_held_writes(NodeId target, const Chunk& chunk);
    void maybe_finish_source(NodeId peer);
    void send_sync_done(NodeId peer);
    void on_sync_done(NodeId peer, std::uint32_t done, const GenerationPayload& g);
    void answer_sync_done(NodeId peer, std::uint32_t done);
    void look_at_others(NodeId source);
    void primary_is_complete(NodeId source, std::uint32_t done);
    bool is_newer_here(NodeId source, std::uint64_t offset, std::uint64_t length) const;
    void on_sync_done_ack(NodeId peer, const Message& m);
    void target_is_complete(NodeId peer, Uuid generation);
    void on_sync_pause(NodeId peer, const Message& m);
    void bitmap_exchanged(NodeId peer);
    // begun: count only writes that are on their way to a disk or a peer.
    bool written_now(std::uint64_t offset, std::uint64_t length, bool begun = false) const;
    bool chunk_conflicts(std::uint64_t offset, std::uint64_t length) const;
    void update_pause(NodeId peer);
    int active_source() const;
    void look_at_paused_sources();
    bool ends_resync(const Peer& peer) const;
    bool ends_any_resync() const;
    void stop_being_source();
    void give_up_targets();
    void revive_paused_sources();
    void tell_in_sync();

    // size.cpp
    static std::uint32_t extents_of(std::uint64_t bytes) {
        return static_cast<std::uint32_t>((bytes + extent_bytes - 1) / extent_bytes);
    }
    void change_volume_size(std::uint64_t bytes);
    bool agree_on_size(NodeId peer);
    bool sees_data() const;
    void agree_to_grow(NodeId peer);
    void begin_growth(std::uint64_t bytes);
    void grow(std::uint64_t bytes);
    void finish_growth();
    bool out_of_reach(const Request& request) const;
    void command_resize(const Command& c);
    void begin_resize();
    void command_hold_metadata(const Command& c);
    void finish_hold();
    void end_hold(Errc code, const char* why);

    // commands.cpp
    void command_promote(const Command& c);
    bool knows_state(const Peer& peer) const {
        const bool told = peer.state_sent || peer.repl != ReplicationState::off;
        return peer.phase == LinkPhase::up && told;
    }
    void ask_to_agree(NodeId peer);
    void command_connect(const Command& c);
    void command_detach(const Command& c);
    void try_detach_primary();
    void begin_clean_detach();
    void on_adopt_generation(NodeId peer, const GenerationPayload& g);
    void command_disconnect(const Command& c);
    void command_invalidate(const Command& c);
    const char* no_full_resync(NodeId peer, bool to_peer) const;
    bool is_of_this_generation(NodeId peer) const;
    void on_invalidate(NodeId peer);
    void on_invalidate_refused(NodeId peer);
    void finish_invalidation();
    void invalidate_local(NodeId source);
    void command_new_uuid(const Command& c);
    void command_pause(const Command& c);
    void command_down();
    void disconnect_peer(NodeId peer);
    void finish_commands();

    CoreConfig config_;
    Instant now_;
    std::vector<Effect> effects_;
    Prng entropy_;

    Role role_ = Role::secondary;
    DiskState disk_ = DiskState::diskless;
    MetaPhase meta_ = MetaPhase::detached;
    bool orphaned_ = false;  // diskless primary whose last copy lost acknowledged writes
    const char* why_ = "";
    std::uint64_t volume_bytes_ = 0;
    std::uint64_t recorded_bytes_ = 0;  // of these, as the durable superblock has it
    std::uint64_t size_version_ = 0;    // of the superblock that has volume_bytes_
    std::uint64_t growing_to_ = 0;      // what the peers are asked to record first, 0: nothing
    std::uint64_t data_bytes_max_ = 0;
    bool all_zero_ = false;
    std::uint32_t attachment_ = 0;  // +1 for each disk that comes or goes
    // The name of what this disk holds at rest; 0: none. Every write and every attach clears it.
    // Nodes with the same name hold the same bytes.
    std::uint64_t content_ = 0;
    bool offers_ = false;              // a peer was offered that this node discards its data
    bool disk_failed_ = false;         // the last disk did, and is not attached since
    Uuid lost_disk_uuid_ = uuid_none;  // what its label says
    bool crashed_ = false;             // writes may have been in flight when it last stopped
    bool crashed_power_ = false;       // and the drive's cache may be lost
    bool was_primary_ = false;         // it was the primary of that generation

    Superblock sb_;
    Superblock flying_label_;  // as it goes to the disk
    Superblock label_;         // as the disk has it
    std::uint64_t sb_version_ = 0, sb_durable_ = 0, sb_flying_ = 0;
    bool sb_in_flight_ = false;
    std::vector<OnDurable> on_durable_;
    std::optional<Bitmap> bitmap_;
    std::optional<AlCache> al_;
    std::vector<std::uint32_t> evicted_;   // extents of the transaction being prepared
    std::vector<std::uint64_t> al_pages_;  // bitmap pages it waits for
    bool al_preparing_ = false, al_writing_ = false, al_initialising_ = false;
    std::uint32_t bitmap_in_flight_ = 0;
    std::vector<std::uint8_t> page_in_flight_;
    std::uint64_t bitmap_cursor_ = 0;
    MetadataHold hold_ = MetadataHold::none;
    bool flush_wanted_ = false, flushing_ = false;  // a local flush before the next handshake
    bool flush_bitmap_ = false;                     // write all dirty pages in the background
    bool al_starving_ = false;                      // application writes wait for a slot
    bool peer_al_starving_ = false;                 // peers' writes do
    // The order of arrival of the first request of each kind that waits.
    std::uint64_t al_starving_order_ = 0, peer_al_starving_order_ = 0;
    bool trim_asked_ = false;    // the journal's owner was asked, and no trim came since
    std::uint32_t disk_io_ = 0;  // data I/O in the kernel

    std::array<Peer, nodes_max> peers_;
    std::vector<Request> requests_;    // one more than limits.requests: the epoch flush
    std::vector<std::uint32_t> held_;  // slots, in order of arrival
    std::vector<std::uint32_t> al_waiting_;
    std::vector<std::uint64_t> flush_seqs_;  // by request and peer: the write that a flush covers
    std::uint32_t active_writes_ = 0;
    std::uint32_t active_reads_ = 0;
    bool epoch_flush_ = false;
    std::uint64_t order_ = 0;
    std::uint16_t read_serial_ = 0;
    Journal journal_;
    int journal_owner_ = -1;  // whose writes it holds; -1: nobody's
    std::uint64_t local_stable_seq_ = 0;
    std::uint64_t last_seq_ = 0;
    std::uint64_t own_seq_ = 1;  // of this node's next write as Primary; never again the same
    std::optional<Instant> idle_flush_at_;

    std::vector<PeerRequest> peer_requests_;
    std::vector<std::uint32_t> peer_queue_;  // used slots, in order of arrival
    std::vector<PeerRead> peer_reads_;
    std::uint32_t peer_reads_waiting_ = 0;  // of these, not issued yet
    std::vector<Chunk> chunks_;
    Instant resync_next_at_;
    Instant app_request_at_;  // the last request of the application, here or at a peer

    // The in-sync set and its generation. The label mirrors it, by mirror_set() alone.
    InSyncRegister register_;
    std::uint64_t barrier_version_ = 0;  // of the label, before anything is acknowledged
    bool commit_pending_ = false;
    bool completions_waiting_ = false;
    std::uint64_t marked_seq_ = 0;      // what the generation message names
    NodeMask left_;                     // who is behind since that generation
    Uuid acknowledged_in_ = uuid_none;  // the generation of the last acknowledgement
    // The generations that the messages of a step carry; a step loses each peer at most once.
    std::array<GenerationPayload, nodes_max + 1> told_;
    std::uint32_t told_last_ = 0;

    Promotion promotion_ = Promotion::none;
    std::uint32_t promote_attempt_ = 0;
    NodeMask promote_waiting_;
    Command promote_command_;
    std::optional<Command> demote_command_, detach_command_, down_command_;
    std::optional<Command> resize_command_;
    struct Invalidation {  // of a peer, that was asked for and has not been seen to happen
        std::uint32_t token = 0;
        NodeId peer = 0;
        std::uint32_t link = 0;
    };
    std::optional<Invalidation> invalidating_;
    std::uint64_t resize_to_ = 0;  // 0: it has not begun yet
    std::optional<std::uint32_t> hold_token_;
    std::uint64_t detach_seq_ = 0;  // a primary's detach waits until its peers have these writes
    bool retry_held_ = false, retry_peers_ = false, retry_al_ = false, want_epoch_flush_ = false;
    std::vector<std::uint32_t> scratch_, peer_scratch_;  // so that retries allocate nothing

    Counters counters_;
    std::uint64_t state_version_ = 1;
    std::uint64_t tick_due_ns_ = ~std::uint64_t{0};
};

}  // namespace replica
