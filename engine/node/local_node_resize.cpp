// SPDX-License-Identifier: Apache-2.0
// Disks that have grown, and volumes that grow into them. See local_node.hpp.
#include "engine/node/local_node.hpp"

#include <algorithm>
#include <mutex>
#include <thread>
#include <utility>

#include "engine/base/text.hpp"

namespace replica {

// Only the copying is done while no metadata is written, which new extents and changes of the set
// wait for.
Status LocalNode::move_metadata(Resource& resource, AttachedDisk& disk, const GrowthPlan& plan) {
    Status copied = run(resource, {.kind = CommandKind::hold_metadata});
    if (copied) copied = copy_metadata(disk, plan);
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

// False: somebody else wants to change the resource. What is zeroed by then is on record.
Result<bool> LocalNode::make_room(Resource& resource, std::uint64_t size_bytes,
                                  const std::function<bool()>& go_on) {
    const std::string& name = resource.config.name;
    if (resource.removed) return Error{Errc::not_found, 0, name + " was just removed"};
    TRY(auto found, ask(resource, [](ResourceShell& shell) { return shell.attached_disk(); }));
    TRY(AttachedDisk disk, std::move(found));
    if (size_bytes != 0 && size_bytes < disk.volume_bytes) {
        return Error{Errc::unsupported, 0, name + ": a volume can not shrink"};
    }
    TRY(const GrowthPlan plan, plan_growth(disk));
    TRY_STATUS(prepare_move(disk, plan));
    if (plan.changes) TRY_STATUS(move_metadata(resource, disk, plan));
    const std::uint64_t from = disk.zeroed_bytes;
    const std::uint64_t most = disk.layout.data_bytes_max / size_unit * size_unit;
    const std::uint64_t until = size_bytes != 0 ? std::min(size_bytes, most) : most;
    if (until <= from) return true;
    std::uint64_t done = 0;
    const auto told = [&](std::uint64_t total) {
        return ask(resource, [&](ResourceShell& shell) {
            shell.zeroing(done, total);
            return shell.disk_open();
        });
    };
    bool wanted = false;
    const Status zeroed = zero_room(disk, from, until, [&](std::uint64_t so_far) {
        done = so_far;
        wanted = so_far > 0 && (resource.changing.is_wanted() || !go_on());
        return !wanted && told(until - from).value();
    });
    if (zeroed) done = until - from;
    const bool whole = done == until - from;
    const bool ended = wanted && zeroed.error().code == Errc::cancelled;  // and flushed
    if (whole || ended) {
        static_cast<void>(ask(resource, [&](ResourceShell& shell) {
            shell.zeroing(0, 0);
            if (shell.disk_open()) shell.room_made(from + done);
            return true;
        }));
        return whole;
    }
    done = 0;
    static_cast<void>(told(0));
    return zeroed.error();
}

// After make_room().
Result<ResizeResult> LocalNode::grow_volume(Resource& resource, std::uint64_t size_bytes) {
    const auto look = [](ResourceShell& shell) { return shell.sizes(); };
    TRY(ResizeResult sizes, ask(resource, look));
    const std::uint64_t before = sizes.size_bytes;
    if (size_bytes > sizes.room_bytes) {
        return Error{Errc::no_space, 0,
                     text_of("%s: the disk here takes a volume of %llu bytes at most",
                             resource.config.name.c_str(),
                             static_cast<unsigned long long>(sizes.room_bytes))};
    }
    const Status grown = run(resource, {.kind = CommandKind::resize, .size_bytes = size_bytes});
    TRY(sizes, ask(resource, look));
    std::erase_if(sizes.waits_for, [&](const ResizeResult::Peer& peer) {
        return peer.connected && size_bytes != 0 && peer.room_bytes >= size_bytes;
    });
    const bool waits = !grown && grown.error().code == Errc::no_space && !sizes.waits_for.empty();
    if (!grown && !waits) return grown.error();
    if (sizes.size_bytes == before) return sizes;
    TRY(sizes.remarks,
        ask(resource, [](ResourceShell& shell) { return shell.clients_of_old_size(); }));
    for (std::string& remark : resource.devices->grow(sizes.size_bytes))
        sizes.remarks.push_back(std::move(remark));
    const Status mapped = resource.mapping->grow();
    if (!mapped) sizes.remarks.push_back(mapped.error().message);
    return sizes;
}

Result<ResizeResult> LocalNode::resize(const std::string& name, std::uint64_t size_bytes,
                                       const std::function<bool()>& go_on) {
    if (size_bytes % size_unit != 0) {
        return Error{Errc::invalid, 0,
                     text_of("a volume of %llu bytes: its size is a multiple of %llu",
                             static_cast<unsigned long long>(size_bytes),
                             static_cast<unsigned long long>(size_unit))};
    }
    TRY(const ResourcePtr resource, find(name));
    for (;;) {
        {
            const std::lock_guard changing(resource->changing);
            TRY(const bool made, make_room(*resource, size_bytes, go_on));
            if (made) return grow_volume(*resource, size_bytes);
        }
        if (!go_on()) {
            return Error{Errc::cancelled, 0,
                         name +
                             " is not resized: it was interrupted, and goes on from there when "
                             "it is said again"};
        }
        std::this_thread::sleep_for(busy_pause);
    }
}

}  // namespace replica
