// SPDX-License-Identifier: Apache-2.0
// Disks that have grown, and volumes that grow into them. See local_node.hpp.
#include "engine/node/local_node.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <syslog.h>
#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "engine/base/text.hpp"

namespace replica {

// Only the copying is done while no metadata is written, which new extents and changes of the set
// wait for.
Status LocalNode::move_metadata(Resource& resource, AttachedDisk& disk, const GrowthPlan& plan) {
    TRY_STATUS(prepare_move(disk, plan));
    TRY_STATUS(run(resource, {.kind = CommandKind::hold_metadata}));
    const Status copied = copy_metadata(disk, plan);
    if (!copied) {
        static_cast<void>(run(resource, {.kind = CommandKind::release_metadata}));
        return copied;
    }
    TRY_STATUS(resource.thread->call_async(
        [&resource, plan](ResourceShell::Done done) {
            resource.shell->metadata_moved(plan, std::move(done));
        },
        command_timeout));
    disk.layout = plan.layout;
    return ok_status();
}

Status LocalNode::make_room(Resource& resource) {
    const auto look = [](ResourceShell& shell) { return shell.attached_disk(); };
    TRY(auto found, ask(resource, look));
    TRY(AttachedDisk disk, std::move(found));
    TRY(const GrowthPlan plan, plan_growth(disk));
    if (plan.changes) TRY_STATUS(move_metadata(resource, disk, plan));
    const std::uint64_t from = disk.zeroed_bytes;
    const std::uint64_t until = disk.layout.data_bytes_max / size_unit * size_unit;
    if (until <= from) return ok_status();
    const auto told = [&](std::uint64_t done, std::uint64_t total) {
        return ask(resource,
                   [&](ResourceShell& shell) {
                       shell.zeroing(done, total);
                       return shell.disk_open();
                   })
            .value();
    };
    const Status zeroed =
        zero_room(disk, from, until, [&](std::uint64_t done) { return told(done, until - from); });
    static_cast<void>(told(0, 0));
    TRY_STATUS(zeroed);
    static_cast<void>(ask(resource, [&](ResourceShell& shell) {
        if (shell.disk_open()) shell.room_made(until);
        return true;
    }));
    return ok_status();
}

Result<ResizeResult> LocalNode::resize(const std::string& name, std::uint64_t size_bytes) {
    if (size_bytes % size_unit != 0) {
        return Error{Errc::invalid, 0,
                     text_of("a volume of %llu bytes: its size is a multiple of %llu",
                             static_cast<unsigned long long>(size_bytes),
                             static_cast<unsigned long long>(size_unit))};
    }
    TRY(const ResourcePtr resource, find(name));
    const std::lock_guard changing(resource->changing);
    TRY_STATUS(make_room(*resource));
    const auto look = [](ResourceShell& shell) { return shell.sizes(); };
    TRY(ResizeResult sizes, ask(*resource, look));
    const std::uint64_t before = sizes.size_bytes;
    if (size_bytes > sizes.room_bytes) {
        return Error{Errc::no_space, 0,
                     text_of("%s: the disk here takes a volume of %llu bytes at most", name.c_str(),
                             static_cast<unsigned long long>(sizes.room_bytes))};
    }
    const Status grown = run(*resource, {.kind = CommandKind::resize, .size_bytes = size_bytes});
    TRY(sizes, ask(*resource, look));
    std::erase_if(sizes.waits_for, [&](const ResizeResult::Peer& peer) {
        return peer.connected && size_bytes != 0 && peer.room_bytes >= size_bytes;
    });
    const bool waits = !grown && !sizes.waits_for.empty() &&
                       (grown.error().code == Errc::state || grown.error().code == Errc::no_space);
    if (!grown && !waits) return grown.error();
    if (sizes.size_bytes == before) return sizes;
    TRY(sizes.remarks,
        ask(*resource, [](ResourceShell& shell) { return shell.clients_of_old_size(); }));
    for (std::string& remark : resource->devices->grow(sizes.size_bytes))
        sizes.remarks.push_back(std::move(remark));
    const Status mapped = resource->mapping->grow();
    if (!mapped) sizes.remarks.push_back(mapped.error().message);
    return sizes;
}

}  // namespace replica
