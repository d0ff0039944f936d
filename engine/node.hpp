// SPDX-License-Identifier: Apache-2.0
// One node: its resources, their reactor threads and its listener. This is what replicad and the
// embedded node of libreplica drive; JSON, sockets for control and files of configuration are above
// it (control/).
//
// Threads: every member may be called from any thread and blocks until the reactor has answered;
// none may be called from a reactor thread. Errors carry a message that says what would make it
// work.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/base/result.hpp"
#include "engine/base/units.hpp"
#include "engine/core/policy.hpp"
#include "engine/frontend/device_kind.hpp"
#include "engine/frontend/volume.hpp"

namespace replica {

struct PeerConfig {
    std::string name;  // node name, [A-Za-z0-9][A-Za-z0-9._-]{0,62}
    NodeId node_id = 0;
    std::string address;  // HOST:PORT of the peer's replicad; IPv6 in brackets
    friend bool operator==(const PeerConfig&, const PeerConfig&) = default;
};

struct ResourceConfig {
    std::string name;    // as node names
    NodeId node_id = 0;  // of this node
    std::uint16_t volume = 0;
    std::string disk;      // file or block device, absolute path
    std::string metadata;  // empty: internal; else an absolute path (flexible external)
    std::vector<PeerConfig> peers;
    ResourceOptions options;
    friend bool operator==(const ResourceConfig&, const ResourceConfig&) = default;
};

// What `create` does to the disk.
struct CreateOptions {
    bool force = false;            // overwrite data or metadata that is found
    std::uint32_t max_peers = 0;   // bitmap slots, 0: one for each configured peer, at least 1
    std::uint64_t size_bytes = 0;  // of the volume, 0: all that fits
};

struct PeerStatus {
    std::string name;
    NodeId node_id = 0;
    std::string connection;   // DRBD's names: StandAlone, Connecting, Connected, ...
    std::string role;         // Primary, Secondary, Unknown
    std::string disk;         // DRBD's disk states, DUnknown when not connected
    std::string replication;  // Off, Established, SyncSource, SyncTarget, ...
    std::string why;          // why it is StandAlone or what it waits for; empty: nothing to say
    std::uint64_t out_of_sync_bytes = 0;
    std::uint64_t resync_total_bytes = 0;  // at the start of the resync, 0: none
    std::uint64_t resync_done_bytes = 0;
    std::uint64_t resync_bytes_per_s = 0;
    std::uint64_t sent_bytes = 0;  // payload of application writes
    std::uint64_t received_bytes = 0;
    std::uint64_t resync_sent_bytes = 0;  // payload of resync
    std::uint64_t resync_received_bytes = 0;
    std::uint64_t pending = 0;  // requests sent and not answered
    std::uint64_t unacked = 0;  // requests received and not yet answered
};

struct ResourceStatus {
    std::string name;
    NodeId node_id = 0;
    std::uint16_t volume = 0;
    bool up = false;
    std::string role;
    std::string disk;
    bool suspended = false;  // writes wait for a generation to be recorded, or an operator
    std::string why;         // why not attached, not promotable...; empty: nothing to say
    std::uint64_t size_bytes = 0;
    std::uint64_t zeroing_total_bytes = 0;  // of room that is being made for it, 0: none
    std::uint64_t zeroing_done_bytes = 0;
    std::uint64_t read_bytes = 0, written_bytes = 0;  // by the doors
    std::uint64_t al_writes = 0, bm_writes = 0, md_writes = 0;
    std::uint64_t al_used = 0;  // extents active now
    std::string current_uuid;   // 16 hex digits
    std::uint64_t generation_seq = 0;
    // "unix:PATH", "tcp:HOST:PORT", "ublk:/dev/ublkbN", "mapped:/dev/mapper/replica-NAME over ublk"
    std::vector<std::string> doors;
    std::vector<PeerStatus> peers;
};

// A block device that is open.
struct BlockDoor {
    DeviceKind kind = DeviceKind::ublk;
    std::string door;  // as the status has it: "nbd:/dev/nbd3"
    std::string path;  // "/dev/nbd3"
    std::uint64_t size_bytes = 0;
    std::uint32_t major = 0, minor = 0;
};

struct ResizeResult {
    std::uint64_t size_bytes = 0;  // of the volume now
    std::uint64_t room_bytes = 0;  // how large it could be on this node
    struct Peer {
        std::string name;
        bool connected = false;        // with its disk
        std::uint64_t room_bytes = 0;  // how large it could be there
    };
    std::vector<Peer> waits_for;       // who lacks room for what this node has
    std::vector<std::string> remarks;  // a sentence for each open door that does not follow
};

// What a planned hand-over meant for who uses a block device: since it was held by the program
// before. 0: not there yet.
struct DoorPause {
    std::string resource;
    DeviceKind kind = DeviceKind::ublk;
    std::uint64_t adopted_ns = 0;   // until it was adopted
    std::uint64_t answered_ns = 0;  // until the first request was answered
};

// What one program of a process leaves to the next.
struct HandOver {
    std::string devices;               // NodeOptions::handed of the next node
    std::vector<std::string> remarks;  // a sentence for each resource that comes back as less
};

struct Event {
    std::uint64_t seq = 0;  // +1 each; a gap means that the listener was too slow
    std::string resource;
    std::string kind;    // "resource", "device", "connection", "peer-device", "door", "split-brain"
    std::string action;  // "create", "change", "destroy"
    std::string peer;    // empty if not about a peer
    std::string detail;  // for people
};

// latency in nanoseconds of one part of a write; counts[i] counts [2^i, 2^(i+1)) ns
struct Histogram {
    std::uint64_t counts[40] = {};
    std::uint64_t total = 0;
    std::uint64_t sum_ns = 0;
    std::uint64_t max_ns = 0;
};
struct ResourceStats {
    Histogram write_total;   // submit to completion at the door's side
    Histogram write_local;   // local disk
    Histogram write_remote;  // send to the last peer's ack
    Histogram read_total;
    Histogram flush_total;
};

struct NodeOptions {
    std::string name;         // this node's name
    std::string state_dir;    // absolute; holds superblock copies; made with mode 0700
    std::string listen;       // HOST:PORT for peers; empty: nowhere (a lone node)
    unsigned reactors = 1;    // 1..64 threads; resources are spread over them
    bool lock_memory = true;  // mlockall and PR_SET_IO_FLUSHER; falls back with a warning
    std::function<void(int level, const std::string& line)> log;  // syslog levels; any thread
    std::string handed;  // HandOver::devices of the program before in this process
};

class Node {
  public:
    static Result<std::unique_ptr<Node>> create(const NodeOptions& options);
    // Downs every resource cleanly, but for those with a block device: they stay as they are, for
    // the next node with this state directory. The process should end soon after.
    virtual ~Node() = default;

    // Writes fresh metadata; the resource is then configured but down. Errors: exists (the disk
    // holds data or metadata and force is off), busy, no_space, not_found, invalid.
    virtual Status create_resource(const ResourceConfig& config, const CreateOptions& options) = 0;
    // Makes a resource known whose metadata is on its disk already.
    virtual Status add_resource(const ResourceConfig& config) = 0;
    // The same, and its disk is taken for good, also if the one that this node used under this name
    // and volume before was another one.
    virtual Status adopt_resource(const ResourceConfig& config) = 0;
    // The resource must be down; the disk is not touched.
    virtual Status remove_resource(const std::string& name) = 0;
    virtual Status change_options(const std::string& name, const ResourceOptions& options) = 0;
    // Gives the disk back what it held before it became the target of a resync that has not ended
    // (the option snapshot_before_resync). The resource must be down. The data is old, and its
    // metadata fresh: it is Inconsistent, and whole data only for who promotes it by force. Returns
    // what it holds, for people. Errors: state, not_found (no snapshot), unsupported, busy, io.
    virtual Result<std::string> restore_before_resync(const std::string& name) = 0;

    // Attaches the disk, if it is not, and connects to all peers, also to those that disconnect()
    // left. What was down stays down if its disk can not be attached. The calls from here to
    // unexport() need a resource that is up (Errors: state), but for attach() and down().
    virtual Status up(const std::string& name) = 0;
    // Closes doors, demotes, disconnects, detaches. Errors: busy (a door is in use). By force its
    // users get I/O errors, or lose their connection.
    virtual Status down(const std::string& name, bool force = false) = 0;
    virtual Status attach(const std::string& name) = 0;  // of a resource that is down: up, alone
    virtual Status detach(const std::string& name) = 0;  // returns when the disk is closed
    virtual Status connect(const std::string& name, const std::string& peer,
                           bool discard_my_data) = 0;
    // peer "": all of them.
    virtual Status disconnect(const std::string& name, const std::string& peer) = 0;
    virtual Status promote(const std::string& name, bool force) = 0;
    virtual Status demote(const std::string& name) = 0;  // Errors: busy (a door is in use)
    virtual Status invalidate(const std::string& name) = 0;
    virtual Status invalidate_remote(const std::string& name, const std::string& peer) = 0;
    virtual Status pause_sync(const std::string& name, const std::string& peer) = 0;
    virtual Status resume_sync(const std::string& name, const std::string& peer) = 0;
    // Makes room for a larger volume on the disk of this node, if that has grown: the metadata is
    // moved to its new end while the volume is in use, and what the volume may grow into is zeroed.
    // Then the volume grows to size_bytes, 0: to all that there is room for on every node, once
    // they all have made room; until then it keeps its size and that is no error. Takes as long as
    // the zeroing, which lets other commands go first, and ends when go_on() says false. Errors:
    // state (no disk), no_space (size_bytes is more than the disk takes), unsupported (a volume can
    // not shrink), cancelled (by go_on), io.
    virtual Result<ResizeResult> resize(const std::string& name, std::uint64_t size_bytes,
                                        const std::function<bool()>& go_on) = 0;
    // New generation on a lone Secondary; with clear_bitmap both sides must be just created and
    // provably equal (both disks all zeroes or holes), which is checked.
    virtual Status new_current_uuid(const std::string& name, bool clear_bitmap) = 0;

    // door: "unix:PATH" or "tcp:HOST:PORT". read_only: also on a Secondary, as long as its disk is
    // UpToDate. Returns the door, with the port that the kernel chose. Errors: state (not primary),
    // exists, io.
    virtual Result<std::string> export_nbd(const std::string& name, const std::string& door,
                                           bool read_only = false) = 0;
    // A block device, also at /dev/replica/by-res/NAME, which is that of the one that was opened
    // last: one of each kind may be open. It outlives this process if that ends while it is in use:
    // the next node with this state directory goes on with it. Errors: state (not primary), exists,
    // unsupported (the kernel has none of this kind, and why), permission, busy, io.
    virtual Result<BlockDoor> export_device(const std::string& name, DeviceKind kind,
                                            bool read_only = false) = 0;
    // Errors: not_found (it is not open), state, io.
    virtual Result<BlockDoor> block_door(const std::string& name, DeviceKind kind) = 0;
    // /dev/mapper/replica-NAME, whose path is returned, a device that stays when what lies below it
    // changes: `place` is "ublk" or "nbd", a door of this node that is opened if it is not, or
    // "tcp:HOST:PORT", that of the connected peer that is Primary. What is mapped already is
    // swapped under its users, and what was held goes on; the door that lay below is closed.
    // Errors: exists (it lies there already), state, unsupported, timeout, those of the door.
    virtual Result<std::string> map_volume(const std::string& name, const std::string& place) = 0;
    // What the users of the mapped device ask waits from now on, and the door below is closed: to
    // demote this node and map it elsewhere. Errors: not_found (not mapped), state, timeout, io.
    virtual Status hold_volume(const std::string& name) = 0;
    // "": all doors; "ublk", "nbd": the block device of this kind, also one that an earlier node
    // left and that waits, even for a resource that is down; "mapped": the mapped device, but not
    // the door below. Errors: busy (it is in use, or has NBD clients). By force it is stopped under
    // its users, and what waits in it fails.
    virtual Status unexport(const std::string& name, const std::string& door,
                            bool force = false) = 0;

    // For another program in this process (execve), which is to follow at once. Errors: busy (NBD
    // clients would lose their connection; by force they do).
    virtual Status may_hand_over(bool force) = 0;
    // Holds every block device, so that what is asked of it waits, then brings everything down but
    // the devices: no resync will follow. If it fails, all goes on as before; if not, nothing but
    // the descriptors named in what it returns may be used any more. Errors: timeout (requests do
    // not end), busy (as may_hand_over(): asked again, and no client comes after).
    virtual Result<HandOver> hand_over(bool force) = 0;
    // Of the devices that were handed to this node.
    virtual std::vector<DoorPause> pauses() = 0;

    virtual std::vector<std::string> resources() = 0;
    virtual Result<ResourceStatus> status(const std::string& name) = 0;
    virtual Result<ResourceStats> stats(const std::string& name) = 0;
    // Called on a thread of the node that does nothing else, for every event until the token is
    // given to unsubscribe(), which waits for a call that is under way. A listener may call the
    // node.
    virtual std::uint64_t subscribe(std::function<void(const Event&)> listener) = 0;
    virtual void unsubscribe(std::uint64_t token) = 0;

    // In-process door, for the embedded node. Blocking calls of any length and sector alignment.
    // Errors: state (not primary, for writes), invalid (beyond the end), io.
    virtual Status read(const std::string& name, std::uint64_t offset,
                        std::span<std::byte> into) = 0;
    virtual Status write(const std::string& name, std::uint64_t offset,
                         std::span<const std::byte> from, bool fua) = 0;
    virtual Status flush(const std::string& name) = 0;
    virtual Status discard(const std::string& name, std::uint64_t offset, std::uint64_t length) = 0;
    virtual Status write_zeroes(const std::string& name, std::uint64_t offset,
                                std::uint64_t length) = 0;
    // The same without blocking; `done` is called on the reactor thread with 0 or a positive errno.
    virtual Status submit(const std::string& name, IoKind kind, bool fua, std::uint64_t offset,
                          std::span<std::byte> bytes, std::uint64_t length,
                          void (*done)(void* context, int error), void* context) = 0;
};

}  // namespace replica
