// SPDX-License-Identifier: Apache-2.0
// The io_uring loop that owns a thread. It turns system calls into completions and decides nothing.
// One io_uring_enter a turn: submit everything that was queued and wait for the next completion.
// A turn is: completions, due timers, posted tasks; then turn hooks and deferred tasks; then enter.
#pragma once

#include <sys/socket.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "engine/base/result.hpp"
#include "engine/base/units.hpp"
#include "engine/io/timer.hpp"

namespace replica {

// One operation in the kernel. Owned by the caller, who keeps it (and its buffers) in place until
// `callback` has run; every started operation calls back exactly once, also when cancelled
// (-ECANCELED). `result` is the io_uring result: >= 0, or -errno. The callback never runs inside
// the call that starts the operation. It may start operations, this one included, but not again
// after -ECANCELED from a stopped reactor. An Op must not be destroyed in flight (asserted).
struct Op {
    void (*callback)(Op& op, std::int32_t result) = nullptr;
    void* context = nullptr;  // the caller's own
    bool in_flight = false;   // kept by the reactor

    ~Op();
};

// A call that is due at the end of this turn: after the hooks, before the thread sleeps. Hooks run
// again after it. Owned by the caller; must not be destroyed while `queued`.
struct Deferred {
    void (*callback)(Deferred& task) = nullptr;
    void* context = nullptr;  // the caller's own

    Deferred* next = nullptr;  // kept by the reactor, as is
    bool queued = false;
};

struct ReactorOptions {
    std::uint32_t entries = 1024;  // submission queue; the completion queue has 4 times as many
    std::size_t arena_bytes =
        64U << 20;              // registered buffer memory, page-aligned, pre-touched; 0: none
    bool defer_taskrun = true;  // false: as on kernels that lack it (for tests)
};

class Reactor {
  public:
    // Errors: unsupported (io_uring is missing or forbidden; the message names the sysctl or
    // seccomp profile to look at), no_space (memory).
    static Result<std::unique_ptr<Reactor>> create(const ReactorOptions& options);
    // Not while run() runs. Operations started before a run() that never came are an error.
    virtual ~Reactor() = default;

    // Runs until stop(). Must be called from one thread only, which becomes the owner; all other
    // members but post() and stop() are for that thread (or before run(), then for at most
    // ReactorOptions::entries operations). When stopped it cancels what is in flight, refuses what
    // is started from then on (-ECANCELED), and returns when every operation has called back and
    // everything posted before stop() has run. The owner may call it again.
    virtual void run() = 0;
    virtual void stop() = 0;                            // any thread
    virtual void post(std::function<void()> task) = 0;  // any thread; runs on the owner, in order
    // Called on each turn after all completions were handled and before sleeping, in order of
    // registration; the place to flush gathered effects. Returns nothing; may start operations.
    virtual void add_turn_hook(void (*hook)(void* context), void* context) = 0;
    virtual void remove_turn_hook(void* context) = 0;
    // Runs `task` once at the end of this turn; nothing if it is queued already.
    virtual void defer(Deferred& task) = 0;

    virtual Instant now() const = 0;  // CLOCK_MONOTONIC, read once a turn
    virtual bool on_owner_thread() const = 0;
    // What was asked for and is missing (registered buffers...), for the log; empty: nothing.
    virtual const std::string& warning() const = 0;

    // Files. Buffers inside the arena use the registered-buffer opcodes. `dsync` adds RWF_DSYNC.
    virtual void read(Op& op, int fd, std::span<std::byte> into, std::uint64_t offset) = 0;
    virtual void write(Op& op, int fd, std::span<const std::byte> from, std::uint64_t offset,
                       bool dsync) = 0;
    virtual void fdatasync(Op& op, int fd) = 0;
    virtual void fallocate(Op& op, int fd, int mode, std::uint64_t offset,
                           std::uint64_t length) = 0;

    // Sockets. Addresses and messages stay in place until the callback.
    virtual void accept(Op& op, int fd) = 0;  // result: the new descriptor, close-on-exec
    virtual void connect(Op& op, int fd, const sockaddr* address, socklen_t length) = 0;
    virtual void recv(Op& op, int fd, std::span<std::byte> into, int flags) = 0;
    // The same when no data is expected yet: saves the futile first try.
    virtual void recv_later(Op& op, int fd, std::span<std::byte> into, int flags) = 0;
    virtual void send(Op& op, int fd, std::span<const std::byte> from, int flags) = 0;
    virtual void sendmsg(Op& op, int fd, const msghdr* message, int flags) = 0;
    virtual void poll(Op& op, int fd, short events) = 0;  // result: the events

    // A command to a driver (IORING_OP_URING_CMD), for it to answer whenever it likes: `number` and
    // 16 bytes of arguments, which are copied. Such a command may be beyond cancelling: whoever
    // started it makes the driver end it before stop().
    virtual void command(Op& op, int fd, std::uint32_t number,
                         std::span<const std::byte, 16> arguments) = 0;

    // A deadline in the kernel. Result: -ETIME when due. For most needs set_timer() is better.
    virtual void timeout(Op& op, Instant at) = 0;
    // Asks; op still calls back: -ECANCELED, or what it came to before. Nothing if not in flight.
    virtual void cancel(Op& op) = 0;
    virtual void set_timer(Timer& timer, Instant at) = 0;  // Timer::clear() takes it back

    // The arena: `count` buffers of `bytes` each can be carved from it at start (never freed).
    virtual std::span<std::byte> carve(std::size_t bytes) = 0;  // page-aligned; empty when used up
};

}  // namespace replica
