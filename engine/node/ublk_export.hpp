// SPDX-License-Identifier: Apache-2.0
// The ublk door of one resource: opens and closes its device, and goes on with the device that an
// earlier daemon left behind under a mounted file system.
//
// Threads: every member blocks, is called with the resource's `changing` held, and not on its
// reactor.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "engine/base/result.hpp"
#include "engine/frontend/ublk_device.hpp"
#include "engine/node/reactor_thread.hpp"
#include "engine/node/resource_shell.hpp"

namespace replica {

class UblkExport {
  public:
    struct Resource {
        ReactorThread& thread;
        std::unique_ptr<ResourceShell>& shell;  // used on the reactor's thread
        std::mutex& changing;
        std::function<Status()> promote;  // without force
    };

    UblkExport(const Resource& resource, UblkDeviceOptions options);
    ~UblkExport();  // leaves a device that is live or waits to the next daemon
    UblkExport(const UblkExport&) = delete;
    UblkExport& operator=(const UblkExport&) = delete;

    // Returns "ublk:/dev/ublkbN". Errors: those of ResourceShell::may_export() and of UblkDevice;
    // exists, busy (a device waits to be adopted).
    Result<std::string> open();
    // Errors: busy (mounted). `waiting_too`: a device that waits for its adoption is stopped even
    // if it is mounted; what waits in it fails.
    Status close(bool waiting_too);
    bool is_open() const { return device_ != nullptr; }
    // Nothing more is adopted; what there is stays for the next daemon.
    void leave() { stop_adopting(); }

    // For a resource whose disk is attached and that has not connected yet: looks for a device that
    // was left. What it finds is adopted, by a thread, as soon as this node can be Primary again,
    // if nobody else has written meanwhile; otherwise the requests that wait in it fail, because
    // they would bring old data back.
    Status look();

  private:
    // On the resource's shell, on its thread.
    template <class F>
    auto ask(F&& f) {
        return resource_.thread.call([&] { return f(*resource_.shell); });
    }
    void log(int level, const std::string& line) const { options_.log(level, line); }
    Status serve();
    Status dismiss(bool force);
    void adopt_later();
    bool try_to_adopt();
    void stop_adopting();

    Resource resource_;
    UblkDeviceOptions options_;
    std::unique_ptr<UblkDevice> device_;
    bool waiting_ = false;  // device_ is not served yet
    std::string trouble_;   // why not, said once
    std::thread adopter_;
    std::atomic<bool> stop_ = false;
};

}  // namespace replica
