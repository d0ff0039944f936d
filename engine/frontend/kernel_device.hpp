// SPDX-License-Identifier: Apache-2.0
// A block device of the kernel whose requests this process answers, of whatever driver: made, gone
// live, taken over by the next process, stopped, removed. ublk_device.hpp is one kind; the other is
// engine/node/nbd_block_device.hpp.
//
// The device outlives its daemon: when that dies, the kernel keeps the requests, and the next
// daemon takes the device over and gets them again. It knows its own device by a random number that
// the kernel keeps with it and that stands in the record (device_record.hpp), and touches no
// others. docs/doors.md has the order of events.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "engine/base/result.hpp"
#include "engine/frontend/block_nodes.hpp"
#include "engine/frontend/device_kind.hpp"
#include "engine/frontend/device_record.hpp"
#include "engine/frontend/volume.hpp"
#include "engine/io/patient_thread.hpp"
#include "engine/io/reactor.hpp"

namespace replica {

using DeviceLog = std::function<void(int level, const std::string& line)>;

// The requests of one device, on the reactor that owns the volume. Reactor thread only.
class KernelQueue {
  public:
    virtual ~KernelQueue() = default;
    virtual void started() = 0;  // or not: the command that starts the device has ended
    // From now on each request fails in the kernel's eyes, also those under way: so that the device
    // can be stopped over a volume that does not answer.
    virtual void cut_off() = 0;
    // Each `done` is called once, later, when the kernel has let go of every request, which it does
    // when the device is stopped. Nothing comes any more then.
    virtual void when_ended(std::function<void()> done) = 0;
    // Of a queue that has ended: `done` is called once, later, when the volume is through with what
    // came before, which may never be; the queue may be destroyed in it.
    virtual void when_idle(std::function<void()> done) = 0;
    // The kernel does not reach this queue any more, though the device was not stopped here.
    virtual bool lost() const = 0;

    // Passes no request on from now on: what comes waits, unanswered. `held` is called once, later,
    // when what came before is answered; not if resume() comes first.
    virtual void hold(std::function<void()> held) = 0;
    // Ends that: what waited is passed on.
    virtual void resume() = 0;
    // Of a held queue, for the next program of this process (execve), which is to follow soon: the
    // descriptor that it can go on with; -1: it has to take the device over. The queue touches
    // neither its volume nor its log from now on.
    virtual int abandon() = 0;
    // Whether it may be destroyed then, or has to be left behind as it is, with what the kernel
    // may still write to.
    virtual bool destructible() const = 0;
};

// All that a queue needs: made where it may block, given to the reactor.
class KernelChannel {
  public:
    struct Server {
        Reactor& reactor;
        Volume& volume;
        DeviceLog log;
        // On the reactor's thread, when the queue is lost; it must not be destroyed in there.
        std::function<void()> on_lost;
        // The same, when the first request is answered; may be empty.
        std::function<void()> on_answer;
    };
    virtual ~KernelChannel() = default;
    // On the reactor's thread, once; the queue has all that there is from then on.
    virtual std::unique_ptr<KernelQueue> serve(const Server& server) = 0;
};

struct KernelDeviceOptions {
    std::string state_dir;  // absolute; the record is STATE/KIND/RESOURCE
    std::string resource;
    DeviceLog log;                              // never empty
    std::string names = "/dev/replica/by-res";  // where a stable name is made
    std::shared_ptr<BlockNodes> nodes = BlockNodes::of_this_machine();  // never null
    // How long what the page cache holds may take to be written.
    std::chrono::milliseconds write_out_limit{30'000};
};

// None of the members that give a Result or a Status may be called on the reactor that serves the
// device: the kernel waits there for requests that it has to answer.
class KernelDevice {
  public:
    virtual ~KernelDevice() = default;
    KernelDevice(const KernelDevice&) = delete;
    KernelDevice& operator=(const KernelDevice&) = delete;

    DeviceKind kind() const { return kind_; }
    // "/dev/ublkb3"; empty as long as the kernel has given it no number.
    std::string path() const { return node_.empty() ? "" : "/dev/" + node_; }
    // As status and unexport name the door: "ublk:/dev/ublkb3"
    std::string door() const { return name_of(kind_) + (":" + path()); }
    Result<BlockFacts> facts() { return options_.nodes->facts(node_); }

    // The generation on record. What the kernel kept may be repeated only on this data, or on what
    // this node alone made of it.
    std::uint64_t generation() const { return record_.generation; }
    Status note_generation(std::uint64_t generation);
    // It was made for a volume that was not writable, and nothing that waits in it is a write.
    bool read_only() const { return record_.read_only; }

    // The channel for the queue that will serve the device. Of a found device: takes it over first.
    // Errors: busy (the old daemon is not gone yet, in the kernel's eyes: try again), state (it
    // does not fit the volume), corrupt (this kernel hands it on no more: only stop() helps),
    // permission, unsupported, no_space, io.
    virtual Result<std::unique_ptr<KernelChannel>> open_channel(const VolumeInfo& info) = 0;
    // Goes live. A queue on the channel has to run.
    Status start();
    // Gives it the stable name, which another device may have had.
    Status link();

    // Of a live device whose volume has grown. Waits for requests under way. Errors: unsupported
    // (this driver can not while it is live, and what helps), io.
    virtual Status grow(std::uint64_t size_bytes) = 0;

    // Errors: busy (mounted, held by another exclusive user, or open in a process), timeout (what
    // is still to be written to it is not, in half a minute), io.
    Status check_unused();
    // Stops it; what waits fails if nobody serves it. The queue ends by that. What the page cache
    // holds is written before, unless forced. Errors: those of check_unused(), unless forced;
    // timeout, io.
    Status stop(bool force);
    // The driver was told to stop it, and has not done it in time: it may yet.
    bool is_ending() const { return ending_; }
    // Removes a stopped device, its name and its record.
    Status remove();

  protected:
    KernelDevice(DeviceKind kind, const KernelDeviceOptions& options, const DeviceRecord& record)
        : kind_(kind),
          options_(options),
          file_(options.state_dir, kind, options.resource),
          record_(record) {}
    void set_node(const std::string& node) { node_ = node; }
    const std::string& node() const { return node_; }
    const KernelDeviceOptions& options() const { return options_; }
    std::uint64_t token() const { return record_.token; }
    // Of what was left by another process, before anything is changed.
    Status check_fit(std::uint64_t size_bytes, const VolumeInfo& info) const;
    Error misfit(const std::string& why) const;

    // What the driver is told for start(), stop() and remove(). It is no error that there is no
    // such device any more.
    virtual Status begin() = 0;
    virtual Status end() = 0;
    virtual Status erase() = 0;
    virtual unsigned io_timeout_ms() const = 0;

  private:
    // An exclusive descriptor: nobody can mount the device meanwhile.
    class Claim;
    using ClaimPtr = std::shared_ptr<Claim>;  // nullptr: there is no such device

    Result<ClaimPtr> claim();
    Result<ClaimPtr> claim_unused();
    Status patiently(std::function<Status()> job);
    Status write_out(const ClaimPtr& claim);
    Status let_go(ClaimPtr claim);

    const DeviceKind kind_;
    const KernelDeviceOptions options_;
    const DeviceRecordFile file_;
    DeviceRecord record_;
    std::string node_;     // "ublkb3"
    bool served_ = false;  // by this process
    bool ending_ = false;
    std::unique_ptr<PatientThread> patient_;  // for what may wait for requests; made when needed
};

// How devices of one kind come into being.
struct DeviceMaker {
    DeviceKind kind = DeviceKind::ublk;
    // A new device that is on record with the data's generation, and not yet live; read-only, if
    // the volume is not writable. Errors: unsupported, permission (a sentence for who asked for
    // it), no_space, io.
    std::function<Result<std::unique_ptr<KernelDevice>>(const VolumeInfo&,
                                                        std::uint64_t generation)>
        create;
    // The device that an earlier daemon left; nullptr: there is none. Removes what was never
    // started or is stopped, and a record without its device. Errors: it is not known whether there
    // is one.
    std::function<Result<std::unique_ptr<KernelDevice>>()> find;
};

// The stable name of a resource's device goes, if it is that of `path`; or, if this ends with a
// '*', of a device whose path begins so.
void remove_device_name(const KernelDeviceOptions& options, const std::string& path);

}  // namespace replica
