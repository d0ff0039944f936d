// SPDX-License-Identifier: Apache-2.0
// The reactor on liburing. The ring is made disabled and enabled by the thread that calls run(),
// because a SINGLE_ISSUER ring belongs to the task that enables it. An operation's user_data is the
// address of its Op; zero marks what nobody waits for (cancel requests, timeout updates).
#include "engine/io/reactor.hpp"

#include <liburing.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "engine/io/process.hpp"

namespace replica {

Op::~Op() { ASSERT(!in_flight); }

namespace {

constexpr std::size_t page_bytes = 4096;
constexpr std::size_t registered_bytes_max = std::size_t{1} << 30;  // the kernel's limit a buffer
constexpr std::size_t timers_expected = 256;

// What a turn may do over and over before it looks at the kernel again: hooks and deferred tasks
// that keep each other busy must not starve the completions.
constexpr int settle_rounds_max = 8;

constexpr std::uint64_t drain_retry_ns = 5 * ns_per_ms;

std::size_t page_up(std::size_t bytes) { return (bytes + page_bytes - 1) & ~(page_bytes - 1); }

Error setup_error(int os_errno) {
    Error error{Errc::unsupported, os_errno, {}};
    switch (os_errno) {
        case ENOSYS:
            error.message =
                "io_uring is missing: run a Linux kernel 5.19 or later with CONFIG_IO_URING";
            break;
        case EPERM:
            error.message =
                "io_uring is forbidden: set the sysctl kernel.io_uring_disabled=0 (or join "
                "kernel.io_uring_group), or allow io_uring_setup, io_uring_enter and "
                "io_uring_register in the container's seccomp profile";
            break;
        case EINVAL:
            error.message = "io_uring is too old: run a Linux kernel 5.19 or later";
            break;
        case ENOMEM:
            error.code = Errc::no_space;
            error.message =
                "no memory for an io_uring: raise the limit of locked memory (ulimit -l)";
            break;
        default:
            error.code = Errc::io;
            error.message = std::string("io_uring_setup failed: ") + std::strerror(os_errno);
    }
    return error;
}

[[noreturn]] void fail(const char* what, int os_errno) {
    std::fprintf(stderr, "replica: %s failed: %s\n", what, std::strerror(os_errno));
    std::fflush(stderr);
    std::abort();
}

class UringReactor final : public Reactor {
  public:
    UringReactor() : timers_(timers_expected) {}
    ~UringReactor() override;
    Status open(const ReactorOptions& options);

    void run() override;
    void stop() override;
    void post(std::function<void()> task) override;
    void add_turn_hook(void (*hook)(void* context), void* context) override;
    void remove_turn_hook(void* context) override;
    void defer(Deferred& task) override;

    Instant now() const override { return now_; }
    bool on_owner_thread() const override;
    const std::string& warning() const override { return warning_; }

    void read(Op& op, int fd, std::span<std::byte> into, std::uint64_t offset) override;
    void write(Op& op, int fd, std::span<const std::byte> from, std::uint64_t offset,
               bool dsync) override;
    void fdatasync(Op& op, int fd) override;
    void fallocate(Op& op, int fd, int mode, std::uint64_t offset, std::uint64_t length) override;
    void accept(Op& op, int fd) override;
    void connect(Op& op, int fd, const sockaddr* address, socklen_t length) override;
    void recv(Op& op, int fd, std::span<std::byte> into, int flags) override;
    void recv_later(Op& op, int fd, std::span<std::byte> into, int flags) override;
    void send(Op& op, int fd, std::span<const std::byte> from, int flags) override;
    void sendmsg(Op& op, int fd, const msghdr* message, int flags) override;
    void poll(Op& op, int fd, short events) override;
    void command(Op& op, int fd, std::uint32_t number,
                 std::span<const std::byte, 16> arguments) override;
    void timeout(Op& op, Instant at) override;
    void cancel(Op& op) override;
    void set_timer(Timer& timer, Instant at) override {
        ASSERT(usable_here());
        timers_.set(timer, at);
    }
    std::span<std::byte> carve(std::size_t bytes) override;

  private:
    struct Hook {
        void (*call)(void* context);
        void* context;
    };
    struct Completion {
        Op* op;
        std::int32_t result;
    };

    Status open_ring(const ReactorOptions& options);
    Status open_arena(std::size_t bytes);
    void register_arena();
    bool usable_here() const { return !ring_enabled_ || on_owner_thread(); }
    int fixed_buffer(const std::byte* data, std::size_t bytes) const;

    // `prepare(sqe)` fills the entry of an operation that is to be started.
    template <class Prepare>
    void start(Op& op, Prepare&& prepare);
    io_uring_sqe& next_sqe();
    __kernel_timespec* timespec_of(const io_uring_sqe& sqe, Instant at);
    void submit_now();
    void set_aside_completions();

    void turn();
    void enter(bool wait);
    void complete(Op& op, std::int32_t result);
    void dispatch_completions();
    void dispatch_timers();
    void run_posted();
    bool settle();
    void arm_wake();
    void arm_clock();
    void cancel_all();
    bool drained();
    void wake();
    void read_clock();

    io_uring ring_{};
    bool ring_open_ = false;
    bool ring_enabled_ = false;  // since the first run()
    bool single_issuer_ = false;
    std::vector<__kernel_timespec> timespecs_;  // one a submission entry; read when it is submitted
    std::uint32_t in_flight_ = 0;
    std::vector<Completion> ready_;        // to be dispatched besides those in the ring
    std::vector<Completion> dispatching_;  // ready_ while it is walked through

    std::vector<Hook> hooks_;
    Deferred* deferred_first_ = nullptr;
    Deferred** deferred_end_ = &deferred_first_;

    TimerHeap timers_;
    Op clock_op_;        // the kernel's timeout for the earliest timer
    Instant clock_due_;  // when clock_op_ is in flight
    Instant now_;

    int wake_fd_ = -1;
    Op wake_op_;
    std::uint64_t wake_count_ = 0;
    std::mutex posted_mutex_;
    std::vector<std::function<void()>> posted_;   // guarded by posted_mutex_
    std::vector<std::function<void()>> running_;  // posted_ while it runs
    std::atomic<bool> stop_requested_ = false;
    bool draining_ = false;
    std::atomic<std::thread::id> owner_;

    std::byte* arena_ = nullptr;
    std::size_t arena_bytes_ = 0;
    std::size_t carved_bytes_ = 0;
    bool arena_registered_ = false;
    std::string warning_;
};

// ---- set-up -------------------------------------------------------------------------------------

Status UringReactor::open(const ReactorOptions& options) {
    read_clock();
    TRY_STATUS(open_ring(options));
    TRY_STATUS(open_arena(options.arena_bytes));
    // Not O_NONBLOCK: the ring's read waits for the next post by itself.
    wake_fd_ = eventfd(0, EFD_CLOEXEC);
    if (wake_fd_ < 0) {
        return Error{Errc::limit, errno,
                     "no descriptor for the reactor's eventfd: raise the limit of open files"};
    }
    wake_op_.context = this;
    wake_op_.callback = [](Op& op, std::int32_t) {
        auto* self = static_cast<UringReactor*>(op.context);
        self->run_posted();
        self->arm_wake();
    };
    clock_op_.context = this;
    clock_op_.callback = [](Op&, std::int32_t) {};  // waking up was all: each turn looks at timers
    return ok_status();
}

Status UringReactor::open_ring(const ReactorOptions& options) {
    static constexpr unsigned always =
        IORING_SETUP_R_DISABLED | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP;
    static constexpr unsigned single = IORING_SETUP_SINGLE_ISSUER;
    static constexpr unsigned cooperative = IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
    const unsigned choices[] = {single | IORING_SETUP_DEFER_TASKRUN, single | cooperative,
                                cooperative};
    int failure = EINVAL;
    for (std::size_t i = options.defer_taskrun ? 0 : 2; i < std::size(choices); ++i) {
        io_uring_params params{};
        params.flags = always | choices[i];
        params.cq_entries = 4 * options.entries;
        failure = -io_uring_queue_init_params(options.entries, &ring_, &params);
        if (failure == EINVAL) continue;
        if (failure != 0) break;
        ring_open_ = true;
        single_issuer_ = (params.flags & single) != 0;
        if (i != 0) warning_ = "the kernel has no IORING_SETUP_DEFER_TASKRUN (Linux 6.1); slower";
        if (!options.defer_taskrun) warning_.clear();
        timespecs_.resize(params.sq_entries);
        ready_.reserve(params.cq_entries);
        dispatching_.reserve(params.cq_entries);
        return ok_status();
    }
    return setup_error(failure);
}

Status UringReactor::open_arena(std::size_t bytes) {
    if (bytes == 0) return ok_status();
    bytes = page_up(bytes);
    std::byte* const memory = map_touched(bytes);
    if (memory == nullptr) {
        return Error{Errc::no_space, errno,
                     "no memory for " + std::to_string(bytes >> 20) +
                         " MiB of IO buffers: free some, or raise the limit of locked memory"};
    }
    arena_ = memory;
    arena_bytes_ = bytes;
    register_arena();
    return ok_status();
}

void UringReactor::register_arena() {
    std::vector<iovec> chunks;
    for (std::size_t at = 0; at < arena_bytes_; at += registered_bytes_max) {
        chunks.push_back({arena_ + at, std::min(registered_bytes_max, arena_bytes_ - at)});
    }
    const int result =
        io_uring_register_buffers(&ring_, chunks.data(), static_cast<unsigned>(chunks.size()));
    arena_registered_ = result == 0;
    if (arena_registered_) return;
    if (!warning_.empty()) warning_ += "; ";
    warning_ += std::string("IO buffers are not registered with the kernel (") +
                std::strerror(-result) +
                "), which costs some speed: raise the limit of locked memory (ulimit -l, "
                "LimitMEMLOCK= in systemd)";
}

UringReactor::~UringReactor() {
    ASSERT(in_flight_ == 0);
    ASSERT(deferred_first_ == nullptr);
    if (ring_open_) io_uring_queue_exit(&ring_);
    if (wake_fd_ >= 0) close(wake_fd_);
    if (arena_ != nullptr) munmap(arena_, arena_bytes_);
}

std::span<std::byte> UringReactor::carve(std::size_t bytes) {
    bytes = page_up(bytes);
    if (bytes == 0 || bytes > arena_bytes_ - carved_bytes_) return {};
    std::byte* start = arena_ + carved_bytes_;
    carved_bytes_ += bytes;
    return {start, bytes};
}

// The index of the registered buffer that holds all of [data, data + bytes), or -1.
int UringReactor::fixed_buffer(const std::byte* data, std::size_t bytes) const {
    // One unsigned compare for both ends: an address below the arena wraps to a huge offset.
    const auto offset =
        reinterpret_cast<std::uintptr_t>(data) - reinterpret_cast<std::uintptr_t>(arena_);
    if (!arena_registered_ || offset >= arena_bytes_ || bytes > arena_bytes_ - offset) return -1;
    const std::size_t chunk = offset / registered_bytes_max;
    if (bytes != 0 && (offset + bytes - 1) / registered_bytes_max != chunk) return -1;
    return static_cast<int>(chunk);
}

// ---- the loop -----------------------------------------------------------------------------------

bool UringReactor::on_owner_thread() const {
    return owner_.load(std::memory_order_relaxed) == std::this_thread::get_id();
}

void UringReactor::read_clock() {
    timespec ts{};
    clock_gettime(CLOCK_MONOTONIC, &ts);
    now_.ns =
        static_cast<std::uint64_t>(ts.tv_sec) * ns_per_s + static_cast<std::uint64_t>(ts.tv_nsec);
}

void UringReactor::run() {
    const std::thread::id nobody;
    ASSERT(owner_ == nobody || owner_ == std::this_thread::get_id());
    owner_ = std::this_thread::get_id();
    if (!ring_enabled_) {
        // Not io_uring_enable_rings(): liburing 2.3 declares it and does not export it.
        if (syscall(__NR_io_uring_register, ring_.ring_fd, IORING_REGISTER_ENABLE_RINGS, nullptr,
                    0) < 0) {
            fail("IORING_REGISTER_ENABLE_RINGS", errno);
        }
        ring_enabled_ = true;
    }
    io_uring_register_ring_fd(&ring_);  // saves a lookup a turn; older kernels go on without
    read_clock();
    arm_wake();
    while (!stop_requested_.load(std::memory_order_acquire))
        turn();
    draining_ = true;
    while (!drained()) {
        cancel_all();
        turn();
    }
    // Else the registration would keep the ring alive until this thread ends.
    io_uring_unregister_ring_fd(&ring_);
    draining_ = false;
    stop_requested_ = false;
}

void UringReactor::turn() {
    const bool settled = settle();
    const bool stopping = stop_requested_.load(std::memory_order_acquire) && !draining_;
    if (!draining_) arm_clock();
    enter(settled && ready_.empty() && !stopping && in_flight_ > 0);
    read_clock();
    dispatch_completions();
    if (!draining_) dispatch_timers();
}

void UringReactor::enter(bool wait) {
    int result = 0;
    if (!wait) {
        result = io_uring_submit_and_get_events(&ring_);
    } else if (!draining_) {
        result = io_uring_submit_and_wait(&ring_, 1);
    } else {
        // A cancel request misses an operation that is just being retried: ask again soon.
        __kernel_timespec soon{0, static_cast<long long>(drain_retry_ns)};
        io_uring_cqe* cqe = nullptr;
        result = io_uring_submit_and_wait_timeout(&ring_, &cqe, 1, &soon, nullptr);
        if (result == -ETIME) return;
    }
    if (result >= 0) return;
    // EINTR: a signal. EBUSY and EAGAIN: too many completions or too little memory just now; the
    // entries stay queued and the next turn submits them again.
    if (result != -EINTR && result != -EBUSY && result != -EAGAIN) fail("io_uring_enter", -result);
}

void UringReactor::complete(Op& op, std::int32_t result) {
    ASSERT(op.in_flight && in_flight_ > 0);
    op.in_flight = false;
    in_flight_ -= 1;
    op.callback(op, result);
}

void UringReactor::dispatch_completions() {
    dispatching_.swap(ready_);
    for (const Completion& completion : dispatching_)
        complete(*completion.op, completion.result);
    dispatching_.clear();
    // No more than there were at the start: callbacks may cause new ones without an end.
    for (unsigned left = io_uring_cq_ready(&ring_); left > 0; --left) {
        io_uring_cqe* cqe = nullptr;
        if (io_uring_peek_cqe(&ring_, &cqe) != 0) break;  // set aside by a callback's submit
        auto* op = static_cast<Op*>(io_uring_cqe_get_data(cqe));
        const std::int32_t result = cqe->res;
        io_uring_cqe_seen(&ring_, cqe);
        if (op != nullptr) complete(*op, result);
    }
}

void UringReactor::dispatch_timers() {
    // Bounded, for a callback may set its timer for now again.
    for (std::size_t left = timers_expected; left > 0; --left) {
        Timer* timer = timers_.take_due(now_);
        if (timer == nullptr) return;
        timer->callback(*timer);
    }
}

void UringReactor::run_posted() {
    {
        const std::lock_guard lock(posted_mutex_);
        running_.swap(posted_);
    }
    for (auto& task : running_)
        task();
    running_.clear();
}

// Runs hooks and deferred tasks until nothing is left to do. False: there is more, do not sleep.
bool UringReactor::settle() {
    for (int round = 0; round < settle_rounds_max; ++round) {
        for (std::size_t i = 0; i < hooks_.size(); ++i) {
            if (hooks_[i].call != nullptr) hooks_[i].call(hooks_[i].context);
        }
        std::erase_if(hooks_, [](const Hook& hook) { return hook.call == nullptr; });
        if (deferred_first_ == nullptr) return true;
        Deferred* task = std::exchange(deferred_first_, nullptr);
        deferred_end_ = &deferred_first_;
        while (task != nullptr) {
            Deferred* next = task->next;  // the callback may queue the task again or free it
            task->queued = false;
            task->callback(*task);
            task = next;
        }
    }
    return false;
}

void UringReactor::add_turn_hook(void (*hook)(void* context), void* context) {
    hooks_.push_back({hook, context});
}

void UringReactor::remove_turn_hook(void* context) {
    // Only marked: settle() may be walking through them.
    for (Hook& hook : hooks_) {
        if (hook.context == context) hook.call = nullptr;
    }
}

void UringReactor::defer(Deferred& task) {
    ASSERT(task.callback != nullptr && usable_here());
    if (task.queued) return;
    task.queued = true;
    task.next = nullptr;
    *deferred_end_ = &task;
    deferred_end_ = &task.next;
}

// ---- other threads ------------------------------------------------------------------------------

void UringReactor::wake() {
    const std::uint64_t one = 1;
    // Can only fail by overflow, when the reader has 2^64 - 2 reasons to wake up already.
    [[maybe_unused]] const auto written = ::write(wake_fd_, &one, sizeof one);
}

void UringReactor::post(std::function<void()> task) {
    bool first = false;
    {
        const std::lock_guard lock(posted_mutex_);
        first = posted_.empty();
        posted_.push_back(std::move(task));
    }
    if (first) wake();
}

void UringReactor::stop() {
    stop_requested_.store(true, std::memory_order_release);
    wake();
}

void UringReactor::arm_wake() {
    if (draining_) return;
    read(wake_op_, wake_fd_, std::as_writable_bytes(std::span(&wake_count_, 1)), 0);
}

// ---- stopping -----------------------------------------------------------------------------------

void UringReactor::cancel_all() {
    io_uring_sqe& sqe = next_sqe();
    io_uring_prep_cancel64(&sqe, 0, IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL);
    io_uring_sqe_set_data64(&sqe, 0);
    sqe.flags |= IOSQE_CQE_SKIP_SUCCESS;  // or its own completion would end the wait for the others
}

bool UringReactor::drained() {
    run_posted();
    const std::lock_guard lock(posted_mutex_);
    return in_flight_ == 0 && deferred_first_ == nullptr && posted_.empty();
}

// ---- operations ---------------------------------------------------------------------------------

io_uring_sqe& UringReactor::next_sqe() {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    while (sqe == nullptr) {
        submit_now();
        sqe = io_uring_get_sqe(&ring_);
    }
    return *sqe;
}

// The submission queue is full in the middle of a turn.
void UringReactor::submit_now() {
    ASSERT(ring_enabled_);  // more operations before run() than the queue has entries
    const int result = io_uring_submit(&ring_);
    if (result >= 0) return;
    if (result != -EINTR && result != -EBUSY && result != -EAGAIN) fail("io_uring_submit", -result);
    if (result == -EBUSY) set_aside_completions();
}

// Makes room in a completion queue that has overflowed, without running callbacks.
void UringReactor::set_aside_completions() {
    io_uring_get_events(&ring_);
    io_uring_cqe* cqe = nullptr;
    while (io_uring_peek_cqe(&ring_, &cqe) == 0) {
        auto* op = static_cast<Op*>(io_uring_cqe_get_data(cqe));
        if (op != nullptr) ready_.push_back({op, cqe->res});
        io_uring_cqe_seen(&ring_, cqe);
    }
}

template <class Prepare>
void UringReactor::start(Op& op, Prepare&& prepare) {
    ASSERT(op.callback != nullptr && !op.in_flight);
    ASSERT(usable_here());
    op.in_flight = true;
    in_flight_ += 1;
    if (draining_) {
        ready_.push_back({&op, -ECANCELED});
        return;
    }
    io_uring_sqe& sqe = next_sqe();
    prepare(sqe);
    io_uring_sqe_set_data(&sqe, &op);
}

// The kernel reads a timeout when its entry is submitted, so the place of the entry has one.
__kernel_timespec* UringReactor::timespec_of(const io_uring_sqe& sqe, Instant at) {
    __kernel_timespec& ts = timespecs_[static_cast<std::size_t>(&sqe - ring_.sq.sqes)];
    ts.tv_sec = static_cast<std::int64_t>(at.ns / ns_per_s);
    ts.tv_nsec = static_cast<long long>(at.ns % ns_per_s);
    return &ts;
}

void UringReactor::read(Op& op, int fd, std::span<std::byte> into, std::uint64_t offset) {
    const auto bytes = static_cast<unsigned>(into.size());
    const int fixed = fixed_buffer(into.data(), into.size());
    start(op, [&](io_uring_sqe& sqe) {
        if (fixed >= 0) {
            io_uring_prep_read_fixed(&sqe, fd, into.data(), bytes, offset, fixed);
        } else {
            io_uring_prep_read(&sqe, fd, into.data(), bytes, offset);
        }
    });
}

void UringReactor::write(Op& op, int fd, std::span<const std::byte> from, std::uint64_t offset,
                         bool dsync) {
    const auto bytes = static_cast<unsigned>(from.size());
    const int fixed = fixed_buffer(from.data(), from.size());
    start(op, [&](io_uring_sqe& sqe) {
        if (fixed >= 0) {
            io_uring_prep_write_fixed(&sqe, fd, from.data(), bytes, offset, fixed);
        } else {
            io_uring_prep_write(&sqe, fd, from.data(), bytes, offset);
        }
        if (dsync) sqe.rw_flags = RWF_DSYNC;
    });
}

void UringReactor::fdatasync(Op& op, int fd) {
    start(op, [&](io_uring_sqe& sqe) { io_uring_prep_fsync(&sqe, fd, IORING_FSYNC_DATASYNC); });
}

void UringReactor::fallocate(Op& op, int fd, int mode, std::uint64_t offset, std::uint64_t length) {
    start(op, [&](io_uring_sqe& sqe) {
        // Not io_uring_prep_fallocate(): its lengths are signed in some versions of liburing and
        // unsigned in others.
        io_uring_prep_rw(IORING_OP_FALLOCATE, &sqe, fd, nullptr, static_cast<unsigned>(mode),
                         offset);
        sqe.addr = length;
    });
}

void UringReactor::accept(Op& op, int fd) {
    start(op, [&](io_uring_sqe& sqe) {
        io_uring_prep_accept(&sqe, fd, nullptr, nullptr, SOCK_CLOEXEC);
    });
}

void UringReactor::connect(Op& op, int fd, const sockaddr* address, socklen_t length) {
    start(op, [&](io_uring_sqe& sqe) { io_uring_prep_connect(&sqe, fd, address, length); });
}

void UringReactor::recv(Op& op, int fd, std::span<std::byte> into, int flags) {
    start(op, [&](io_uring_sqe& sqe) {
        io_uring_prep_recv(&sqe, fd, into.data(), into.size(), flags);
    });
}

void UringReactor::recv_later(Op& op, int fd, std::span<std::byte> into, int flags) {
    start(op, [&](io_uring_sqe& sqe) {
        io_uring_prep_recv(&sqe, fd, into.data(), into.size(), flags);
        // Both came with Linux 6.0; the flag can not be probed and the ring's set-up was.
        if (single_issuer_) sqe.ioprio |= IORING_RECVSEND_POLL_FIRST;
    });
}

void UringReactor::send(Op& op, int fd, std::span<const std::byte> from, int flags) {
    start(op, [&](io_uring_sqe& sqe) {
        io_uring_prep_send(&sqe, fd, from.data(), from.size(), flags | MSG_NOSIGNAL);
    });
}

void UringReactor::sendmsg(Op& op, int fd, const msghdr* message, int flags) {
    start(op, [&](io_uring_sqe& sqe) {
        io_uring_prep_sendmsg(&sqe, fd, message, static_cast<unsigned>(flags | MSG_NOSIGNAL));
    });
}

void UringReactor::poll(Op& op, int fd, short events) {
    start(op, [&](io_uring_sqe& sqe) {
        io_uring_prep_poll_add(&sqe, fd, static_cast<unsigned>(events));
    });
}

void UringReactor::command(Op& op, int fd, std::uint32_t number,
                           std::span<const std::byte, 16> arguments) {
    start(op, [&](io_uring_sqe& sqe) {
        std::memset(&sqe, 0, sizeof sqe);
        sqe.opcode = IORING_OP_URING_CMD;
        sqe.fd = fd;
        sqe.cmd_op = number;
        // The last quarter of an entry. Its name came and went with versions of liburing.
        static_assert(sizeof sqe == 64);
        std::memcpy(reinterpret_cast<std::byte*>(&sqe) + 48, arguments.data(), arguments.size());
    });
}

void UringReactor::timeout(Op& op, Instant at) {
    start(op, [&](io_uring_sqe& sqe) {
        io_uring_prep_timeout(&sqe, timespec_of(sqe, at), 0, IORING_TIMEOUT_ABS);
    });
}

void UringReactor::cancel(Op& op) {
    ASSERT(usable_here());
    if (!op.in_flight || draining_) return;
    io_uring_sqe& sqe = next_sqe();
    io_uring_prep_cancel(&sqe, &op, 0);
    io_uring_sqe_set_data64(&sqe, 0);
}

// One kernel timeout stands for all timers. It is only ever moved to an earlier time; when it comes
// too early, because the earliest timer was cleared, the turn that it causes sets it anew.
void UringReactor::arm_clock() {
    if (timers_.empty()) return;
    const Instant earliest = timers_.earliest();
    if (!clock_op_.in_flight) {
        clock_due_ = earliest;
        timeout(clock_op_, earliest);
    } else if (earliest < clock_due_) {
        clock_due_ = earliest;
        io_uring_sqe& sqe = next_sqe();
        // The helper wants the address as a number; it has come and gone when this finds nothing.
        io_uring_prep_timeout_update(&sqe, timespec_of(sqe, earliest),
                                     reinterpret_cast<std::uintptr_t>(&clock_op_),
                                     IORING_TIMEOUT_ABS);
        io_uring_sqe_set_data64(&sqe, 0);
    }
}

}  // namespace

Result<std::unique_ptr<Reactor>> Reactor::create(const ReactorOptions& options) {
    auto reactor = std::make_unique<UringReactor>();
    TRY_STATUS(reactor->open(options));
    return std::unique_ptr<Reactor>(std::move(reactor));
}

}  // namespace replica
