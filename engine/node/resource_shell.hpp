// SPDX-License-Identifier: Apache-2.0
// One resource on its reactor: turns what the disk, the sockets, the doors and the clock say into
// inputs of the Core and performs the effects that follow. It decides nothing. After each input all
// effects are performed, in order, before the next one; completions that they give to the doors run
// after that, because a door may submit again from inside.
//
// resource_shell.cpp     the step and its effects, attach, stop
// resource_requests.cpp  what the doors see: requests, buffers, block status
// resource_links.cpp     peers: messages, accepted connections
// resource_doors.cpp     NBD servers and the in-process door
// resource_status.cpp    status, events, histograms
#pragma once

#include <array>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/core/core.hpp"
#include "engine/frontend/kernel_device.hpp"
#include "engine/frontend/local_door.hpp"
#include "engine/frontend/nbd_server.hpp"
#include "engine/frontend/volume.hpp"
#include "engine/node.hpp"
#include "engine/node/backing_disk.hpp"
#include "engine/node/device_lineage.hpp"
#include "engine/node/disk_growth.hpp"
#include "engine/node/event_hub.hpp"
#include "engine/node/metadata_store.hpp"
#include "engine/node/peer_link.hpp"
#include "engine/node/reactor_thread.hpp"
#include "engine/node/read_view.hpp"
#include "engine/node/resync_snapshot.hpp"

namespace replica {

using LogFunction = std::function<void(int level, const std::string& line)>;

class ResourceShell final : public Volume, private LinkOwner {
  public:
    using Done = ReactorThread::Done;
    struct Context {
        ReactorThread& thread;
        EventHub& events;
        LogFunction log;  // never empty
    };

    // Any thread. Nothing happens before start().
    ResourceShell(const Context& context, const ResourceConfig& config);
    // On the reactor's thread, and only when removable().
    ~ResourceShell() override;

    // --- Life. All on the reactor's thread but for load(), which is for the thread that made the
    // shell, before start().
    void start();
    // Hands metadata and bitmap to the core, for attach(). Errors: those of Core::prepare_attach()
    // and of the disk.
    Status load(OpenDisk& disk);
    struct Page {
        std::uint64_t index;
        std::array<std::byte, 4096> bytes;
    };
    Status load(OpenDisk& disk, const std::vector<Page>& pages);
    void attach(OpenDisk disk, Done done);  // done: when it is attached or has failed
    void command(Command command, Done done);
    void change_options(const ResourceOptions& options);
    void wait_detached(Done done);  // when the disk is closed, at once if none is open
    bool disk_open() const { return disk_ != nullptr; }
    // For who makes it larger. Errors: state (none is attached); io.
    Result<AttachedDisk> attached_disk() const;
    // All metadata was copied, after the command hold_metadata. done: when it is on record.
    void metadata_moved(const GrowthPlan& plan, Done done);
    void room_made(std::uint64_t bytes);  // as Core::on_room()
    // 0: nothing is zeroed (any more).
    void zeroing(std::uint64_t done, std::uint64_t total) { zeroing_ = {done, total}; }
    ResizeResult sizes() const;
    bool primary() const { return core_->role() == Role::primary; }
    bool serves() const { return core_->serves(); }  // Primary, and on record as that
    bool follows_primary() const;                    // a connected peer is Primary
    int peer_id(const std::string& name) const;      // -1: no such peer

    // Refuses new requests, fails those that wait, closes the doors. done: when they are closed.
    void stop_doors(Done done);
    // After the command `down`: when nothing is left in the kernel, and the disk is closed.
    void wait_quiet(Done done);
    bool removable() const;

    // --- Doors.
    // Returns the door with the port that the kernel chose.
    Result<std::string> export_nbd(const std::string& door, bool read_only);
    void unexport(const std::string& door, Done done);  // "": all
    // Errors: busy (somebody uses one).
    Status doors_unused() const;
    // Errors: busy (its disk does not answer, or requests of a device that was taken away do not
    // end).
    Status nothing_left_behind() const;
    // Errors: busy (NBD clients at this door; "": at any).
    Status no_clients(const std::string& door) const;
    // From now on, or no more: who connects to a door is told nothing and closed.
    void turn_clients_away(bool away);
    // What is gone when this program is followed by another one, a sentence; empty: nothing.
    // primary_again: it will be promoted for a block device.
    std::string what_ends(bool primary_again) const;
    // Which NBD clients learn a new size of the volume only later, a sentence for each door.
    std::vector<std::string> clients_of_old_size() const;
    // Errors: state (not primary, no size, going down); busy (a block device waits).
    Status may_export() const;
    // For a door that only reads, on a Secondary, too. Errors: state (the disk is not UpToDate, no
    // size, going down).
    Status may_read() const;
    // The queue of a block device, whose life is DeviceExport's business. on_lost, on_answer:
    // called on this thread, see KernelChannel::Server. Errors: those of may_export(), but for
    // busy; or of may_read().
    Status open_device(DeviceKind kind, KernelChannel& channel, const std::string& door,
                       bool read_only, std::function<void()> on_lost,
                       std::function<void()> on_answer);
    void device_started(DeviceKind kind);  // or not: the kernel has answered
    // As their namesakes in KernelQueue; `done` at once if there is none.
    void hold_device(DeviceKind kind, Done done);
    void resume_device(DeviceKind kind);
    int abandon_device(DeviceKind kind);
    bool has_device(DeviceKind kind) const { return device(kind).queue && !device(kind).lost(); }
    void cut_off_device(DeviceKind kind);
    // When the kernel has let go of it, at once if there is none. What it had asked for before may
    // still be under way here.
    void wait_device_ended(DeviceKind kind, Done done);
    // A device of an earlier daemon waits, and why; it was served last in the generation `noted`.
    // What waits in it goes before all else: no other door opens. 0: none waits (any more).
    void device_waits(DeviceKind kind, std::uint64_t noted, const std::string& why);
    bool any_device_waits() const;
    // Errors: busy (a device waits for this node to be Primary, which it will be for that).
    Status stays_secondary() const;
    // Whether it may go on. While this node is Primary: as it was just before the promotion.
    Lineage lineage(DeviceKind kind) const { return device(kind).lineage; }
    std::uint64_t generation() const;  // of the data as it is on record here
    // `changed` is called on this thread when that, or the volume's size, is another one.
    void tell_changes(DeviceKind kind, std::function<void()> changed);
    // For callers of this process; nullptr: the resource goes down.
    LocalDoor* local_door() { return refusing_ ? nullptr : local_door_.get(); }

    // --- Peers. Takes the descriptor of an accepted connection whose hello was read.
    void on_accepted(std::uint64_t handle, int fd, const HelloPayload& hello);

    // --- Views.
    ResourceStatus status() const;
    const ResourceStats& stats() const { return stats_; }

    // --- Volume.
    VolumeInfo info() const override;
    void submit(IoRequest& request) override;
    std::byte* acquire_buffer() override { return acquire_buffer_for(io_bytes_max); }
    std::byte* acquire_buffer_for(std::uint32_t bytes) override;
    void release_buffer(std::byte* buffer) override;
    std::uint64_t extent_status(std::uint64_t offset, std::uint64_t length, bool& hole) override;
    std::uint64_t dirty_status(std::uint64_t offset, std::uint64_t length, bool& dirty) override;

  private:
    // A request of a door while the core has it, and longer if a socket still sends its buffer.
    struct Slot {
        ResourceShell* shell = nullptr;
        IoRequest* request = nullptr;
        std::uint32_t sends = 0;  // sockets that refer to the buffer
        bool completed = false;   // by the core, with `error`
        int error = 0;
        bool crc_known = false;
        std::uint32_t crc = 0;  // of the buffer
        std::uint64_t seq = 0;  // of the write on the wire, 0: was not sent
        Instant submitted, disk_started, disk_done, sent, answered;
        Slot* next = nullptr;
    };
    // What was read for a peer, from the disk read until the last socket has sent it.
    struct OutBuffer {
        ResourceShell* shell = nullptr;
        std::byte* bytes = nullptr;
        std::uint32_t length = 0;
        std::uint32_t references = 0;
    };
    // A read for a peer that waits for its buffer.
    struct WaitingRead {
        ResourceShell* shell = nullptr;
        BufferWaiter waiter;
        IoTag tag;
        std::uint64_t offset = 0;
        std::uint32_t length = 0;
    };
    // A structured payload while it is sent.
    struct SmallPayload {
        ResourceShell* shell = nullptr;
        std::array<std::byte, 4096> bytes;
        SmallPayload* next = nullptr;
    };
    struct Accepted {
        ResourceShell* shell = nullptr;
        std::uint64_t handle = 0;
        int fd = -1;  // -1: adopted or refused; waits for `poll` to come back
        Op poll;
    };
    struct Door {
        std::unique_ptr<NbdServer> server;
        std::string name;
        bool read_only = false;
        bool stopping = false;
    };
    // A block device of the kernel: served, or waiting to be.
    struct Device {
        std::unique_ptr<KernelQueue> queue;
        std::string door;
        std::uint64_t noted = 0;  // 0: it does not wait
        std::string why;
        Lineage lineage = Lineage::stale;
        std::uint64_t generation_told = 0, size_told = 0;
        std::function<void()> changed;

        bool lost() const { return queue->lost(); }
    };
    struct Waiting {
        std::uint32_t token;
        Done done;
    };
    // What the last events told.
    struct SeenPeer {
        ConnectionState connection = ConnectionState::standalone;
        Role role = Role::unknown;
        DiskState disk = DiskState::unknown;
        ReplicationState replication = ReplicationState::off;
        std::uint64_t done_bits = 0;
    };
    // Bytes that a resync has moved, a second apart, for its rate.
    struct RateSample {
        Instant at;
        std::uint64_t bytes = 0;
    };
    struct PeerState {
        std::string name;
        std::unique_ptr<PeerLink> link;
        std::string logged;  // the last trouble, said once until it is another
        SeenPeer seen;
        std::array<RateSample, 5> rate{};
        std::size_t rate_next = 0;
    };

    // resource_shell.cpp
    Instant now() const { return reactor_.now(); }
    void log(int level, const std::string& text) const;
    template <class F>
    void step(F&& input);
    void perform_effects();
    void perform(const Effect& effect);
    void perform_disk(const Effect& effect);
    void perform_metadata(IoTag tag);
    void perform_send(const Effect& effect);
    void perform_link(const Effect& effect);
    void perform_reply(const Effect& effect);
    void perform_notice(const Effect& effect);
    void start_read(IoTag tag, std::uint64_t offset, std::uint32_t length);
    void on_disk_done(IoTag tag, int error, bool zeroes);
    void on_metadata_done(IoTag tag, int error);
    void on_turn();
    void on_tick();
    void set_tick();
    Status load_superblock(OpenDisk& disk);
    void watch_disks();
    void on_disk_change(const BlockFile& file, DiskChange change);
    void close_dead_disk();
    void maybe_attached();
    void note_failed_disk();
    void maybe_quiet();
    PeerState* peer(NodeId id) const { return peers_[id].get(); }
    std::span<std::byte> memory_of(BufferRef buffer, std::uint32_t length);
    OutBuffer*& out_slot(BufferKind kind, std::uint32_t index);
    void drop(OutBuffer& out);
    SmallPayload& take_small();

    // resource_requests.cpp
    void pump();
    void complete(std::uint32_t slot, int error);
    void on_slot_sent(Slot& slot);
    void run_completions();
    void measure(const Slot& slot);

    // resource_links.cpp
    void make_links();
    void on_link_dialled(NodeId peer, bool ok) override;
    void on_link_broken(NodeId peer) override;
    void on_link_message(NodeId peer, Stream stream, const Message& message,
                         std::span<const std::byte> payload) override;
    void on_path_found(NodeId peer) override;
    void on_link_quiet() override { reactor_.defer(turn_); }
    void log_trouble(NodeId peer);
    BufferRef place_payload(NodeId peer, const Message& message,
                            std::span<const std::byte> payload);
    void on_handle_event(Accepted& accepted);
    int take_handle(std::uint64_t handle);
    void refuse_handle(std::uint64_t handle, const char* text);
    void tell_backlogs();

    // resource_doors.cpp
    void stop_door(Door& door);
    void on_door_stopped(Door& door);
    void maybe_doors_stopped();
    Status may_serve() const;
    ReadView::Source read_source() const;
    void watch_lineage();
    Device& device(DeviceKind kind) { return devices_[static_cast<std::size_t>(kind)]; }
    const Device& device(DeviceKind kind) const { return devices_[static_cast<std::size_t>(kind)]; }
    bool any_device() const;
    void on_queue_idle(const KernelQueue* idle);

    // resource_status.cpp
    void publish(const char* kind, const char* action, const std::string& peer,
                 const std::string& detail);
    void publish_changes();
    void publish_peer(PeerState& peer, const PeerView& view, bool progress);
    void sample_rates();
    std::uint64_t rate_of(const PeerState& peer, const PeerView& view) const;
    PeerStatus status_of(NodeId id, const PeerState& peer) const;
    std::string silent_disk() const;
    std::string why() const;

    ReactorThread& thread_;
    Reactor& reactor_;
    EventHub& events_;
    LogFunction log_;
    ResourceConfig config_;
    CoreLimits limits_;
    std::unique_ptr<Core> core_;
    std::array<std::unique_ptr<PeerState>, nodes_max> peers_;

    std::unique_ptr<OpenDisk> disk_;
    std::unique_ptr<BackingDisk> data_;
    ReadView view_;  // of read-only doors
    std::unique_ptr<MetadataStore> metadata_;
    // Of the disk and of an external metadata device, while they are attached.
    std::array<DiskWatch, 2> disk_watches_;
    Done attach_done_;
    struct {
        std::uint64_t done = 0, total = 0;
    } zeroing_;
    bool disk_noted_ = false;  // the note of a failed disk is in the state directory
    ResyncSnapshot snapshot_;
    bool label_consistent_ = false;       // what the disk's label says of its data
    bool next_label_consistent_ = false;  // and the one that is being written
    std::vector<Done> detach_done_;
    std::uint32_t logical_block_bytes_ = sector_bytes;  // of the last disk of a Secondary
    bool told_of_parts_ = false;                        // of blocks, which this disk does not take
    bool file_disk_ = false;

    bool started_ = false;
    bool in_step_ = false;  // effects are being performed: no input now
    Deferred turn_;         // what is due once after the inputs of a turn
    Timer tick_;
    std::vector<Waiting> waiting_;  // commands
    std::uint32_t token_next_ = 1;
    Done quiet_done_;

    // Requests.
    std::vector<Slot> slots_;
    Slot* free_slot_ = nullptr;
    IoRequest* queue_ = nullptr;  // more than there are slots, and those of the present turn
    IoRequest** queue_tail_ = &queue_;
    std::vector<std::uint32_t> slot_of_seq_;  // by seq modulo its size, which is the journal's
    struct Completion {
        IoRequest* request;
        int error;
    };
    std::vector<Completion> completions_;
    bool completing_ = false;
    bool refusing_ = false;  // the doors are being closed for good

    // Payloads on their way out.
    std::vector<OutBuffer> out_buffers_;  // by the index of the buffer
    std::vector<OutBuffer*> chunk_out_, serve_out_;
    std::list<WaitingRead> waiting_reads_;
    std::deque<SmallPayload> small_;
    SmallPayload* free_small_ = nullptr;

    std::list<Accepted> accepted_;
    std::list<Door> doors_;
    std::array<Device, device_kinds> devices_;
    std::list<std::unique_ptr<KernelQueue>> ended_queues_;  // and not idle yet
    std::unique_ptr<LocalDoor> local_door_;
    bool local_stopped_ = false;
    Done doors_done_;
    std::vector<Done> unexports_;  // wait until no door is closing

    // Events and measurements.
    std::uint64_t version_seen_ = 0;
    Role role_seen_ = Role::secondary;
    DiskState disk_seen_ = DiskState::diskless;
    bool suspended_seen_ = false;
    Instant progress_at_;
    ResourceStats stats_;
};

template <class F>
void ResourceShell::step(F&& input) {
    ASSERT(!in_step_);
    in_step_ = true;
    input(*core_);
    perform_effects();
    in_step_ = false;
    watch_lineage();
    reactor_.defer(turn_);
}

// Of a resource without a shell.
ResourceStatus status_when_down(const ResourceConfig& config);

// Counts one latency.
void add(Histogram& histogram, Instant from, Instant to);

}  // namespace replica
