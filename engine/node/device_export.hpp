// SPDX-License-Identifier: Apache-2.0
// A resource's block device of one kind: opened, closed, kept on record, and gone on with where an
// earlier daemon left it behind under a mounted file system. What kind it is shows in nothing here.
//
// Threads: every member blocks, is called with the resource's `changing` held, and not on its
// reactor. A thread of its own, the keeper, does what has to wait: it adopts a device when that may
// be, in short turns for which it takes `changing` if nobody else has it, and keeps the record of
// a live one up to date.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "engine/base/result.hpp"
#include "engine/frontend/kernel_device.hpp"
#include "engine/node/change_lock.hpp"
#include "engine/node/reactor_thread.hpp"
#include "engine/node/resource_shell.hpp"

namespace replica {

class DeviceExport {
  public:
    struct Resource {
        ReactorThread& thread;
        std::unique_ptr<ResourceShell>& shell;  // used on the reactor's thread
        ChangeLock& changing;
        std::function<Status()> promote;   // without force; soon back, and may then go on
        std::function<Status()> bring_up;  // what was not possible before, and then look()
        // Empty: nobody wants to know. A device is gone; the volume has grown, and the device if it
        // could.
        std::function<void()> closed = nullptr, resized = nullptr;
    };

    DeviceExport(const Resource& resource, const KernelDeviceOptions& options, DeviceMaker maker);
    ~DeviceExport();  // leaves a device that is live or waits to the next daemon
    DeviceExport(const DeviceExport&) = delete;
    DeviceExport& operator=(const DeviceExport&) = delete;

    // Errors: those of ResourceShell::may_export() or may_read() and of the device; exists, busy (a
    // device waits to be adopted).
    Status open(bool read_only);
    // Errors: busy (in use). By force it is stopped all the same, and what waits in it fails.
    Status close(bool force);
    Status check_unused();
    // Of a resource that is down: stops and deletes the device that was left. Errors: not_found,
    // and as close().
    Status close_left(bool force);
    // If it is live. Errors: those of KernelDevice::grow().
    Status grow(std::uint64_t size_bytes);
    bool is_open() const { return device_ != nullptr; }
    bool is_live() const { return state_ == State::live; }
    // What waits in it needs this node to be Primary.
    bool waits_for_promotion() const { return state_ == State::waiting && !device_->read_only(); }
    DeviceKind kind() const { return maker_.kind; }
    KernelDevice* device() { return device_.get(); }  // nullptr: none is open
    // Nothing more is adopted; what there is stays for the next daemon.
    void leave();

    // For a planned hand-over to the next program of this process. If the device is live: passes no
    // request on any more; returns when none is under way. Errors: timeout (some do not end).
    Status hold(std::chrono::seconds timeout);
    void resume();
    // After hold(): lets go of the device, live or waiting, without ending it. Nothing else may be
    // done with this export then. Returns the socket to go on with, or -1.
    int hand_over();
    // When the device was held by the program before, and what the pause was: from then on to its
    // adoption, and to the first request that was answered. 0: not yet; nullopt: it was not held.
    struct Pause {
        std::uint64_t adopted_ns = 0, answered_ns = 0;
    };
    std::optional<Pause> pause() const;
    void handed(std::uint64_t held_ns) { held_ns_ = held_ns; }
    std::uint64_t held_ns() const { return held_ns_; }

    // For a resource that is up: looks for a device that was left. What it finds is adopted as soon
    // as this node can be Primary again, if nobody else has written meanwhile; otherwise the
    // requests that wait in it fail, because they would bring old data back. Errors: it is not
    // known whether there is one.
    Status look();
    // A device may have been left by an earlier daemon.
    bool may_be_left() const;
    // Whether what could not be brought up is to be tried again and again.
    void keep_trying(bool wanted);
    // Before any promotion by somebody else: it is the one thing that could make the data look like
    // that of this node alone. So a device that may not go on is given up first. Errors: state (its
    // data is missing here, and force is off), and what prevents giving it up.
    Status before_promotion(bool force);

  private:
    enum class State {
        none,
        waiting,  // left by an earlier daemon, and not served yet
        live,
        ending,  // to be stopped and deleted, which did not work at once
    };
    using Milliseconds = std::chrono::milliseconds;

    // On the resource's shell, on its thread.
    template <class F>
    auto ask(F&& f) {
        return resource_.thread.call([&] { return f(*resource_.shell); });
    }
    void log(int level, const std::string& line) const { log_(level, name_ + ": " + line); }
    void say(int level, const std::string& text);
    Status serve();
    Status dismiss(bool force);
    Status give_up(const std::string& why);
    void go_live();
    void catch_up();
    void wake();
    void keep();
    Milliseconds turn();
    Milliseconds adopt();
    Milliseconds adopt_reader();
    Milliseconds take_on();
    Milliseconds serve_again();
    Milliseconds note();

    Resource resource_;
    const std::string name_;  // of the resource
    const DeviceLog log_;
    const DeviceRecordFile record_;
    const DeviceMaker maker_;
    std::unique_ptr<KernelDevice> device_;
    State state_ = State::none;
    bool wanted_ = false;           // keep_trying()
    std::string trouble_;           // said once
    std::uint64_t size_tried_ = 0;  // to grow to, with or without success
    // Of the last hand-over, if there was one.
    std::atomic<std::uint64_t> held_ns_ = 0, adopted_ns_ = 0, answered_ns_ = 0;

    std::mutex keeper_mutex_;  // guards the rest; nothing is locked while it is held
    std::condition_variable keeper_wakes_;
    bool woken_ = false, stop_ = false;
    std::thread keeper_;
};

}  // namespace replica
