// SPDX-License-Identifier: Apache-2.0
// Requests of callers in this process. See local_node.hpp.
#include "engine/node/local_node.hpp"

#include <unistd.h>

#include <cerrno>
#include <utility>

namespace replica {
namespace {

// On the reactor's thread.
void start(Resource& resource, Submission& submission) {
    LocalDoor* const door = resource.shell ? resource.shell->local_door() : nullptr;
    const bool reads = submission.call.kind == IoKind::read;
    const bool may = door != nullptr && (reads || !resource.shell->any_device_waits());
    if (may) return door->submit(submission.call);
    submission.call.done(submission.call, door != nullptr ? EBUSY : ESHUTDOWN);
}

void submit_to(const ResourcePtr& resource, Submission& submission) {
    Reactor& reactor = resource->thread->reactor();
    if (reactor.on_owner_thread()) return start(*resource, submission);
    if (!resource->submissions.push(submission, resource)) return;
    reactor.post([waiting = resource.get()] {
        std::shared_ptr<void> alive;
        Submission* next = waiting->submissions.pop_all(alive);
        while (next != nullptr)
            start(*waiting, *std::exchange(next, next->next));
    });
}

struct Waiter {
    Submission submission;
    Baton baton;
    int error = 0;
};

}  // namespace

Status LocalNode::io(const std::string& name, IoKind kind, bool fua, std::uint64_t offset,
                     std::byte* memory, std::uint64_t length) {
    TRY(const ResourcePtr resource, find(name));
    ASSERT(!resource->thread->reactor().on_owner_thread());
    Waiter waiter;
    LocalCall& call = waiter.submission.call;
    call.kind = kind;
    call.fua = fua;
    call.offset = offset;
    call.length = length;
    call.memory = memory;
    call.context = &waiter;
    call.done = [](LocalCall& ended, int error) {
        auto& waiting = *static_cast<Waiter*>(ended.context);
        waiting.error = error;
        waiting.baton.pass();
    };
    submit_to(resource, waiter.submission);
    waiter.baton.wait();
    if (waiter.error == 0) return ok_status();
    return io_error(name, waiter.error);
}

Status LocalNode::read(const std::string& name, std::uint64_t offset, std::span<std::byte> into) {
    return io(name, IoKind::read, false, offset, into.data(), into.size());
}
Status LocalNode::write(const std::string& name, std::uint64_t offset,
                        std::span<const std::byte> from, bool fua) {
    // One field of a call serves both directions; a write does not touch it.
    return io(name, IoKind::write, fua, offset, const_cast<std::byte*>(from.data()), from.size());
}
Status LocalNode::flush(const std::string& name) {
    return io(name, IoKind::flush, false, 0, nullptr, 0);
}
Status LocalNode::discard(const std::string& name, std::uint64_t offset, std::uint64_t length) {
    return io(name, IoKind::discard, false, offset, nullptr, length);
}
Status LocalNode::write_zeroes(const std::string& name, std::uint64_t offset,
                               std::uint64_t length) {
    return io(name, IoKind::write_zeroes, false, offset, nullptr, length);
}

Status LocalNode::submit(const std::string& name, IoKind kind, bool fua, std::uint64_t offset,
                         std::span<std::byte> bytes, std::uint64_t length,
                         void (*done)(void* context, int error), void* context) {
    TRY(const ResourcePtr resource, find(name));
    const bool data = kind == IoKind::read || kind == IoKind::write;
    Submission& submission = resource->submissions.take();
    submission.done = done;
    submission.context = context;
    LocalCall& call = submission.call;
    call.kind = kind;
    call.fua = fua;
    call.offset = offset;
    call.length = data ? bytes.size() : length;
    call.memory = bytes.data();
    submit_to(resource, submission);
    return ok_status();
}

}  // namespace replica
