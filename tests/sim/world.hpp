// SPDX-License-Identifier: Apache-2.0
// A cluster in one thread and virtual time: real cores, simulated disks, connections, machines,
// application and operator, all drawn from one seed. The second shell over engine/core.
#pragma once

#include <cstdarg>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "engine/core/core.hpp"
#include "tests/sim/checker.hpp"
#include "tests/sim/sim_disk.hpp"

namespace replica::sim {

// Deliberate mistakes of the shell, as Mutant names those of the core.
enum class ShellMutant : std::uint8_t {
    none,
    accept_damage,       // the checksum of a payload is not looked at
    keep_torn_label,     // an attach does not put the chosen superblock on the disk
    flush_does_nothing,  // a flush of the backing disk makes nothing stable
    room_not_zeroed,     // a volume grows into what happens to be there
};

// The kinds of decisions. Each decision draws from a random stream of its own, so it stays the same
// when others are left out (shrink.hpp).
enum class Actor : std::uint8_t { feature, application, operators, faults, accident, count_ };

struct Options {
    std::uint64_t seed = 1;
    Mutant mutant = Mutant::none;
    ShellMutant shell_mutant = ShellMutant::none;
    bool trace = false;
    bool calm = false;  // a seed without faults
    bool tell = false;  // print what happens to the cluster, and not what the cores do
    const std::vector<std::uint64_t>* only = nullptr;  // decisions, sorted; none: all
};

// What a run met, by kind: a fault that never happens tests nothing.
enum class Fault : std::uint8_t {
    lost_cache,
    torn_write,
    latent_error,
    read_error,
    write_error,
    flush_error,
    metadata_error,
    stall_disk,
    broken_disk,
    disk_removed,
    reset,
    stall_stream,
    partition,
    one_way,
    slow_link,
    cut_message,
    bit_flip,
    path_found,
    damage_found,
    kill,
    power_cut,
    all_power,
    pause,
    crash_while_starting,
    crash_while_labelling,
    command,
    options,
    resize,
    slow_kind,
    across_extents,
    stranger,
    broken_copy,
    lost_copy,
    old_disk,
    new_disk,
    left_out,
    count_,
};
inline constexpr std::size_t fault_kinds = static_cast<std::size_t>(Fault::count_);
const char* name_of(Fault fault);

// The state of the protocol in which a fault hits a node (coverage.cpp).
enum class ProtocolState : std::uint8_t {
    down,
    attaching,
    promoting,  // asked for, agreed upon, being recorded
    recording,  // a primary whose generation is not on record everywhere yet
    diskless_primary,
    diskless,
    handshake,
    bitmaps,  // are being exchanged
    target,
    source,
    held,   // no metadata is written while it is moved
    alone,  // no peer is connected
    primary,
    secondary,
    count_,
};
inline constexpr auto protocol_states = static_cast<std::size_t>(ProtocolState::count_);

struct Stats {
    std::array<std::array<std::uint64_t, protocol_states>, fault_kinds> met_in{};
    std::array<std::uint64_t, fault_kinds> met{};
    std::uint64_t& of(Fault fault) { return met[static_cast<std::size_t>(fault)]; }
    std::uint64_t events = 0, writes = 0, reads = 0, flushes = 0, faults = 0, crashes = 0;
    std::uint64_t resyncs = 0, promotions = 0, split_brains = 0, audits = 0;
    std::uint64_t calm = 0, wait_ns_max = 0;  // seeds without a fault; their longest wait
    std::uint64_t simulated_ns = 0;
};

// A cluster that is not drawn: for scripted scenarios.
struct Setup {
    std::size_t nodes = 2;
    Protocol protocol = Protocol::c;
    OnIoError on_io_error = OnIoError::detach;
    std::uint64_t extents = 4;
    std::uint64_t room_extents = 0;  // behind the volume
    std::uint32_t al_extents = 4;
    std::uint32_t al_extents_1 = 0;  // of node 1, where it differs
    std::uint32_t journal = 64;
    std::uint32_t chunks = 2;
    std::uint32_t chunk_blocks = 16;
    std::uint64_t idle_flush_ns = 500 * ns_per_ms;
};

// Thrown by the checker and the world: what was violated. Ends the run of this seed.
struct Violation {
    std::string what;
};

// Prints a table of faults by states, and the pairs that never met.
void print_coverage(const Stats& stats);

// If nothing fails no request waits longer.
inline constexpr std::uint64_t answer_bound_ns = 2 * ns_per_s;

class World {
  public:
    explicit World(const Options& options);
    World(const Options& options, const Setup& setup);
    // The whole life of the seed: faults, healing, convergence, audit. Throws Violation.
    void run();
    std::uint64_t hash() const { return hash_; }
    const Stats& stats() const { return stats_; }
    // What was decided in this run, in that order.
    const std::vector<std::uint64_t>& decisions() const { return decisions_; }

  private:
    friend class Scenario;  // drives the parts by hand (scenario.hpp)
    // Which faults this seed has, and how often (per million steps of the fault actor).
    struct Swarm {
        bool calm = false;  // nothing fails; an operator may do what operators do
        bool process_crash = false, power_cut = false, all_power = false, partition = false;
        bool half_open = false, slow_disk = false, disk_errors = false, pause = false;
        bool operators = false, force = false, detach = false;
        bool late = false;  // the delays of the network have a long tail
        bool segments = false, bit_flips = false, resets = false, stalls = false, one_way = false;
        bool latent = false, options = false, restarts = false;
        bool ambushes = false;  // faults right when something short begins
        bool strangers = false, copy_errors = false, old_disks = false, leavers = false;
        bool slow_data = false, slow_metadata = false, resize = false;
        std::uint64_t ns_per_kib = 0;  // of a link
        // Widens rare windows: this kind of I/O and this kind of message are always slow.
        int slow_origin = -1, slow_message = -1;
        std::uint32_t slow_nodes = 0;  // on these, by these
        std::uint64_t slow_ns = 0;
        std::array<int, 2> slow_pair{-1, -1};  // a link of 1 MB a second
        std::uint64_t net_delay_ns = 0, disk_delay_ns = 0;
    };
    // Part of a stream of bytes, cut anywhere. weight: how long it occupies the wire; the simulator
    // sends 8 bytes for a sector of data.
    struct Piece {
        std::vector<std::byte> bytes;
        std::uint64_t weight = 0;
        std::uint64_t order = 0;
    };
    // One TCP connection. Side 0 dialled it.
    struct Connection {
        std::array<int, 2> node{-1, -1};
        std::array<std::uint32_t, 2> incarnation{};
        std::array<bool, 2> open{true, true};
        std::array<bool, 2> bound{false, false};  // belongs to a link of that side
        std::array<std::uint64_t, 2> last_arrival{};
        std::array<std::vector<std::byte>, 2> inbox;       // arrived at that side, not complete yet
        std::array<std::deque<std::uint64_t>, 2> genuine;  // digests of what that side sent
        std::array<std::uint64_t, 2> queued{};             // weight on the way from that side
        bool damaged = false;                              // a bit was flipped
        bool stranger = false;  // side 0 is none of the nodes; what it is told is lost
        std::array<std::deque<Piece>, 2> stalled;  // sent by that side while the network was cut
        std::array<std::uint64_t, 2> sent{}, arrived{};  // pieces from that side
        // From that side, while one before is missing.
        std::array<std::map<std::uint64_t, Piece>, 2> early;
        std::array<bool, 2> held{};  // a scenario holds what that side sends
        Stream stream = Stream::bulk;
    };
    struct Link {
        std::array<std::uint64_t, 2> connection{};  // by stream; 0: none
    };
    struct AppRequest {
        bool used = false;
        std::uint64_t ticket = 0;
        IoKind kind = IoKind::read;
        bool fua = false;
        std::uint64_t id = 0;
        std::uint64_t sector = 0;
        std::uint32_t sectors = 0;
        std::vector<Stamp> buffer;
        std::uint64_t submitted_at = 0;
        int disk_error = 0;       // what the node's own disk said of it
        bool peer_error = false;  // a read that a peer could not do
        ReadToken read;
        Uuid generation = 0;
        std::map<std::uint64_t, std::uint64_t> promise;  // flush
    };
    struct DiskOp {
        bool write = false, metadata = false;
        IoTag tag;
        std::uint64_t sector = 0;
        std::vector<Stamp> data;
        SimDisk::Block bytes{};
        std::uint32_t al_block = 0;
        int stage = 0;  // superblock: 0 the copy is being written, 1 the disk
    };
    struct Node {
        std::unique_ptr<Core> core;
        std::unique_ptr<SimDisk> disk;
        bool up = false;
        bool attached = false;    // the shell has attached or is about to
        std::set<Uuid> recorded;  // generations that its label has had
        int left_out = -1;        // the node that it does not have as a peer
        std::uint32_t incarnation = 0;
        std::uint64_t boot = 0;
        std::uint64_t paused_until = 0;
        bool copy_broken = false;  // the state directory fails
        std::optional<SimDisk::Block> old_label;
        bool disk_broken = false;  // every I/O fails until it is replaced... by itself
        std::array<Link, nodes_max> links;
        std::array<std::uint64_t, nodes_max> first_to{};  // note_first_write()
        std::vector<AppRequest> requests;
        std::vector<std::vector<Stamp>> receive, resync, serve;
        std::vector<std::uint32_t> receive_free;
        std::map<std::uint64_t, DiskOp> ops;  // in the kernel
        std::uint64_t timer = 0;              // armed for this instant
        std::uint64_t lost_power_at = 0;
        std::set<std::uint32_t> log;  // what a replay of its activity log finds
        bool log_known = false;
        std::array<std::uint64_t, 32> bits_seen{};
        bool forced = false;  // its pending promotion is a forced one
        std::uint32_t promote_token = 0;
        std::uint32_t down_token = 0, hold_token = 0;
        bool suspect = false;           // Core::cache_suspect(), kept over a restart
        std::uint64_t first_write = 0;  // that could be its own, since it is primary
        Uuid parent = 0;                // its generation when it was told to be primary
        NodeMask members_seen;          // as primary, and the name of its data (links.cpp)
        Uuid generation_seen = 0;
        std::uint64_t detached_at = 0;  // by hand
        std::uint64_t failed_at = 0;    // when it last had one, or was gone
        std::uint64_t refused_at = 0;  // when a peer last said that its disk is not good (any more)
        ResourceOptions options;
        CoreLimits limits;
    };
    // While it lives, everything is drawn from its stream.
    class Decision {
      public:
        Decision(World& world, Actor actor);
        ~Decision() { world_.random_ = outside_; }
        Decision(const Decision&) = delete;
        Decision& operator=(const Decision&) = delete;
        bool on() const { return on_; }

      private:
        World& world_;
        Prng outside_;
        bool on_ = true;
    };
    bool decide(std::uint64_t key);
    bool accident(std::uint32_t per_million);
    void leave_out_features();
    using Task = std::function<void()>;
    struct Scheduled {
        std::uint64_t at;
        std::uint64_t seq;
        int node;  // -1: the world's own
        std::uint32_t incarnation;
        Task task;
        bool operator>(const Scheduled& o) const { return at != o.at ? at > o.at : seq > o.seq; }
    };

    void at(std::uint64_t delay, Task task) { schedule(-1, delay, std::move(task)); }
    void schedule(int node, std::uint64_t delay, Task task);
    bool step();
    [[noreturn]] void fail(const std::string& what);
    void trace(int node, const char* format, ...) __attribute__((format(printf, 3, 4)));
    void tell(int node, const char* format, ...) __attribute__((format(printf, 3, 4)));
    void print_line(int node, const char* format, std::va_list args);
    void mix(std::uint64_t value) { hash_ = (hash_ ^ value) * 0x100000001b3U; }

    void draw_swarm();
    void draw_slowness();
    void draw_volume();
    std::uint32_t draw_al_extents();
    void draw_node(Node& node);
    void change_options(int n);
    void disk_fault(int n);
    void network_fault(int n);
    void path_found(int n, int peer);
    void lose_cache(int n);
    void start_later(int n, std::uint64_t delay);
    void crash_later(int n, std::uint64_t delay, bool power);
    // growth.cpp
    std::uint64_t size_of(int n) const;  // sectors, of the core or by its label
    void fill_room(int n);
    void grow_something(int n);
    void resize(int n, std::uint64_t bytes);
    void make_room(int n);
    bool left_behind_in_size(int n) const;
    void metadata_held(int n);
    void zero_room(int n);
    void grown(int n, const std::string& notice);
    void audit_sizes();
    void audit_told_size(int n, std::span<const std::byte> state);
    // coverage.cpp
    ProtocolState state_of(int n) const;
    void met(Fault fault, int n);
    std::optional<ProtocolState> dying_in_;  // of the node that is being killed
    // strangers.cpp
    void remember_frame(const Connection& c, std::uint64_t id, std::size_t side,
                        const std::vector<std::byte>& frame);
    std::vector<std::byte> strange_hello(int from, int to);
    void stranger(int to);
    void copy_fault(int n);
    void find_other_disk(int n);
    void remember_label(int n);
    // leavers.cpp
    void restart_for_peers(int n);
    void tell_all_of_peers();
    bool can_be_taken_out(int gone) const;
    void take_out(int gone);
    void wait_to_take_out(int gone, int looks);
    void take_in(int gone);
    void forget_nobody();
    // links.cpp
    bool calm() const { return swarm_.calm; }
    bool undisturbed() const { return swarm_.calm && !operated_; }
    bool deceived(int, int) const { return false; }
    void judge_lost_link(int n, std::span<const Effect> effects, std::size_t at);
    void judge_effects(int n, std::span<const Effect> effects);
    void judge_members(int n);
    void judge_waiting();
    bool settle_superblock(int n);
    std::size_t draw_cluster();
    void make_nodes(std::size_t count);
    void new_disk(int n);
    void start(int n);
    void attach(int n);
    void forget_promotion(Node& node);
    void crash(int n, bool power, std::optional<SimDisk::LossMode> mode = std::nullopt);
    void drop_connections(int n, bool power);
    void perform(int n);
    void perform_one(int n, const Effect& e);
    void arm_timer(int n);
    static void note_first_write(Node& node, int peer, const Message& m);
    void audit_admission(int n, int peer, std::span<const std::byte> payload);
    void send(int n, const Effect& e);
    void dial(int n, NodeId peer);
    void knock(int n, const Effect& e);
    void deliver(std::uint64_t id, int to_side, Piece piece, std::uint64_t later = 0);
    void receive(std::uint64_t id, int side, const Piece& piece);
    bool parse(std::uint64_t id, int side);
    void frame_arrived(std::uint64_t id, int side, const Message& m,
                       std::span<const std::byte> payload);
    void broken(std::uint64_t id, int side);
    void refuse(int n, const Effect& e);
    void transmit(std::uint64_t id, int from_side, const Message& m,
                  std::span<const std::byte> payload);
    void put_on_wire(std::uint64_t id, int side, const std::vector<std::byte>& bytes,
                     std::uint64_t weight, std::uint64_t later);
    void close_side(std::uint64_t id, int side, bool abrupt);
    void close_link(int n, NodeId peer, bool graceful = false);
    const std::set<std::uint32_t>& node_log(int n);
    void check_label(int n);
    void disk_io(int n, const Effect& e);
    void metadata_io(int n, const Effect& e);
    void finish_op(int n, std::uint64_t op);
    std::vector<Stamp>& buffer(int n, BufferRef ref);
    std::uint64_t net_delay();
    std::uint64_t disk_delay(int n, bool metadata = false);
    std::uint64_t slowness(int n, int kind, int slow_kind);
    int disk_error(int n, const Effect& e);
    // What a sends does not reach b.
    bool cut(int a, int b) const {
        return cut_[static_cast<std::size_t>(a)][static_cast<std::size_t>(b)];
    }
    void set_cut(int a, int b, bool value, bool one_way = false);

    void application();
    void submit(int n);
    void submit_pieces(int n, IoKind kind, std::uint64_t sector, std::uint64_t sectors, bool fua);
    std::uint64_t submit(int n, IoKind kind, std::uint64_t sector, std::uint32_t sectors, bool fua);
    void finish_io(int n, IoOrigin origin, Task task);
    std::vector<const SimDisk*> holders(NodeMask members, std::uint64_t since);
    bool moved_on(int member, int primary, Uuid ours);
    void read_after_writes(const Node& node, const AppRequest& read);
    void completed(int n, const Effect& e);
    const char* untrue_error(int n, const AppRequest& r, int error) const;
    bool has_good_peer(int n) const;
    void note_refusal(int n, const Message& m, std::span<const std::byte> payload);
    bool kept_since(int n, std::uint64_t then) const;
    void replied(int n, std::uint32_t token, Errc code);
    void operators();
    void faults();
    void one_fault();
    void ambush(std::string_view happened);
    void one_command();
    void command(int n, CommandKind kind, int peer = -1, bool force = false, bool discard = false);
    void heal();
    void give_up_other_volumes(int keep);
    void reconnect_marked(int n);
    void settle_split_brain();
    bool converged(std::string& why);
    void audit_all();
    void audit_pair(int a, int b);
    std::vector<bool> covered(int n, int peer);
    void read_on();
    void audit_model();

    Options options_;
    Prng random_;
    Swarm swarm_;
    std::array<std::uint32_t, static_cast<std::size_t>(Actor::count_)> decided_{};
    std::vector<std::uint64_t> decisions_;
    CoreConfig base_;
    std::uint64_t now_ = ns_per_s;
    std::uint64_t seq_ = 0;
    std::priority_queue<Scheduled, std::vector<Scheduled>, std::greater<>> queue_;
    std::vector<Node> nodes_;
    std::map<std::uint64_t, Connection> connections_;
    std::uint64_t next_connection_ = 1;
    struct OldFrames {
        std::uint64_t connection = 0;
        bool accepted = false;
        std::array<int, 2> node{};
        std::vector<std::vector<std::byte>> frames;
    };
    std::vector<OldFrames> old_frames_;
    std::uint64_t next_op_ = 1;
    std::array<std::array<bool, 8>, 8> cut_{};
    std::uint64_t volume_sectors_ = 0;  // at first
    std::uint64_t max_sectors_ = 0;     // it may grow this far
    std::vector<std::uint64_t> hot_blocks_;
    bool wide_ = false;             // many extents
    bool volume_is_drawn_ = false;  // or else a scenario's
    bool faulty_ = true;
    bool busy_ = true;
    bool no_attach_ = false;  // start() leaves the disk alone
    int leaving_ = -1;        // a node that is down and is about to be taken out
    int left_out_ = -1;       // a node that is out of the cluster for a while
    bool operated_ = false;   // somebody interfered: links may go, members may leave
    std::uint32_t token_ = 0;
    std::uint64_t hash_ = 0xcbf29ce484222325U;
    Stats stats_;
    struct LastAck {
        NodeMask members;
        std::uint64_t at = 0;
        int by = -1;
    };
    std::map<Uuid, LastAck> last_ack_;
    std::uint64_t next_write_ = 1;
    Checker checker_;
    // What scenarios hold back, and how their requests ended.
    std::function<bool(int from, int to, MessageType type)> hold_message_;
    std::function<bool(int n, IoOrigin origin)> hold_io_;
    std::function<bool(int n, IoOrigin origin)> fail_io_;
    struct HeldIo {
        int node;
        std::uint32_t incarnation;
        Task task;
    };
    std::vector<HeldIo> held_io_;
    std::uint64_t next_ticket_ = 1;
    std::map<std::uint64_t, int> writers_;   // by write
    std::map<std::uint64_t, int> answers_;   // by ticket
    std::map<std::uint32_t, Errc> replies_;  // by token
};

}  // namespace replica::sim
