// SPDX-License-Identifier: Apache-2.0
// See patient_ring.hpp.
#include "engine/frontend/patient_ring.hpp"

#include <liburing.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <utility>

#include "engine/base/text.hpp"

namespace replica {

using std::chrono::milliseconds;

namespace {

constexpr std::uint64_t command_mark = 1, cancel_mark = 2;

}  // namespace

struct PatientRing::Ring {
    io_uring ring{};
    Memory memory{};
    Command command;
    bool open = false, ended = false, cancelled = false;
    int result = 0;

    ~Ring() {
        if (open) io_uring_queue_exit(&ring);
    }
    void note(io_uring_cqe* cqe) {
        if (io_uring_cqe_get_data64(cqe) == command_mark) {
            ended = true;
            result = cqe->res;
        }
        io_uring_cqe_seen(&ring, cqe);
    }
    bool look() {
        io_uring_cqe* cqe = nullptr;
        while (!ended && io_uring_peek_cqe(&ring, &cqe) == 0)
            note(cqe);
        return ended;
    }
    // 0: it has ended, or -errno.
    int wait_for(milliseconds limit) {
        const auto nanoseconds = std::chrono::nanoseconds(limit).count();
        __kernel_timespec left{nanoseconds / 1'000'000'000, nanoseconds % 1'000'000'000};
        while (!look()) {
            io_uring_cqe* cqe = nullptr;
            const int waited = io_uring_submit_and_wait_timeout(&ring, &cqe, 1, &left, nullptr);
            if (waited == -EINTR || waited == -EAGAIN) continue;
            if (cqe != nullptr) {
                note(cqe);
            } else if (waited < 0) {
                return look() ? 0 : waited;
            }
        }
        return 0;
    }
    io_uring_sqe& entry(std::uint64_t mark) {
        io_uring_sqe* const sqe = io_uring_get_sqe(&ring);
        ASSERT(sqe != nullptr);
        std::memset(sqe, 0, 2 * sizeof *sqe);
        io_uring_sqe_set_data64(sqe, mark);
        return *sqe;
    }
};

PatientRing::PatientRing(milliseconds limit, milliseconds cancel_limit)
    : limit_(limit), cancel_limit_(cancel_limit) {}

// What the kernel may still write to stays, until it has.
struct PatientRing::Orphans {
    std::mutex mutex;
    std::vector<std::unique_ptr<Ring>> rings;
    static Orphans& of_this_process() {
        static Orphans* const all = new Orphans;  // also for those that outlive main()
        return *all;
    }
    void add(std::vector<std::unique_ptr<Ring>> more) {
        const std::lock_guard lock(mutex);
        for (std::unique_ptr<Ring>& ring : more)
            rings.push_back(std::move(ring));
        std::erase_if(rings, [](const auto& ring) { return ring->look(); });
    }
};

PatientRing::~PatientRing() { Orphans::of_this_process().add(std::move(left_)); }

Result<std::unique_ptr<PatientRing::Ring>> PatientRing::make_ring() {
    auto ring = std::make_unique<Ring>();
    io_uring_params params{};
    params.flags = IORING_SETUP_SQE128;
    const int result = -io_uring_queue_init_params(4, &ring->ring, &params);
    if (result != 0) {
        return Error{Errc::io, result,
                     text_of("no io_uring for commands: %s", std::strerror(result))};
    }
    ring->open = true;
    return ring;
}

Result<std::unique_ptr<PatientRing>> PatientRing::create(milliseconds limit,
                                                         milliseconds cancel_limit) {
    std::unique_ptr<PatientRing> self(new PatientRing(limit, cancel_limit));
    TRY(self->ring_, make_ring());
    return self;
}

// Those that have ended meanwhile are done with.
std::unique_ptr<PatientRing::Ring> PatientRing::left_with(std::uint64_t key) {
    std::erase_if(left_, [](const auto& ring) { return ring->look(); });
    const auto found = std::find_if(left_.begin(), left_.end(),
                                    [key](const auto& ring) { return ring->command.key == key; });
    if (found == left_.end()) return nullptr;
    std::unique_ptr<Ring> ring = std::move(*found);
    left_.erase(found);
    return ring;
}

int PatientRing::run(const Command& command, const Prepare& prepare, std::span<std::byte> memory) {
    ASSERT(memory.size() <= Memory().size());
    std::unique_ptr<Ring> ring = left_with(command.key);
    if (!ring) {
        ring = std::move(ring_);
        if (!ring) {
            auto made = make_ring();
            if (!made) return -made.error().os_errno;
            ring = std::move(made).value();
        }
        ring->command = command;
        ring->ended = ring->cancelled = false;
        std::copy(memory.begin(), memory.end(), ring->memory.begin());
        prepare(ring->entry(command_mark), ring->memory);
    }
    const int result = wait(*ring);
    if (!ring->ended) {
        left_.push_back(std::move(ring));
        return result;
    }
    std::copy_n(ring->memory.begin(), memory.size(), memory.begin());
    // The answer to a cancel may yet come, and is nothing to the next command.
    if (!ring->cancelled) ring_ = std::move(ring);
    return result;
}

int PatientRing::wait(Ring& ring) {
    int waited = ring.wait_for(limit_);
    if (waited == -ETIME && ring.command.heeds_cancel && !ring.cancelled) {
        ring.cancelled = true;
        io_uring_sqe& entry = ring.entry(cancel_mark);
        io_uring_prep_cancel64(&entry, command_mark, 0);
        io_uring_sqe_set_data64(&entry, cancel_mark);
        waited = ring.wait_for(cancel_limit_);
    }
    if (waited != 0) return waited;
    return ring.cancelled && ring.result < 0 ? -ETIME : ring.result;
}

}  // namespace replica
