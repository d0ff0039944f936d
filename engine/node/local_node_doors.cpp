// SPDX-License-Identifier: Apache-2.0
// Demotion, which closes the doors; opening and closing them. See local_node.hpp.
#include "engine/node/local_node.hpp"

#include <fcntl.h>
#include <syslog.h>

#include <chrono>
#include <mutex>
#include <thread>
#include <utility>

namespace replica {

static constexpr int client_attempts = 25;
static constexpr auto client_pause = std::chrono::milliseconds(10);

// A Secondary is what it is told to be, and its doors only read: nothing is closed.
Status LocalNode::demote(const std::string& name) {
    TRY(const ResourcePtr resource, find(name));
    const std::lock_guard changing(resource->changing);
    TRY(const bool primary, ask(*resource, [](ResourceShell& shell) { return shell.primary(); }));
    if (!primary) {
        TRY(const Status stays,
            ask(*resource, [](ResourceShell& shell) { return shell.stays_secondary(); }));
        TRY_STATUS(stays);
        return run(*resource, {.kind = CommandKind::demote});
    }
    TRY(const Status unused,
        ask(*resource, [](ResourceShell& shell) { return shell.doors_unused(); }));
    TRY_STATUS(unused);
    if (resource->mapping->uses_doors()) TRY_STATUS(resource->mapping->close(false));
    TRY_STATUS(close_doors(resource, "", false));
    return run(*resource, {.kind = CommandKind::demote});
}

Result<std::string> LocalNode::export_nbd(const std::string& name, const std::string& door,
                                          bool read_only) {
    TRY(const ResourcePtr resource, find(name));
    TRY(auto exported,
        ask(*resource, [&](ResourceShell& shell) { return shell.export_nbd(door, read_only); }));
    return exported;
}

Result<BlockDoor> LocalNode::export_device(const std::string& name, DeviceKind kind,
                                           bool read_only) {
    TRY(const ResourcePtr resource, find(name));
    const std::lock_guard changing(resource->changing);
    if (!resource->up) return is_down(name);
    TRY_STATUS(resource->devices->open(kind, read_only));
    return resource->devices->facts(kind);
}

Result<BlockDoor> LocalNode::block_door(const std::string& name, DeviceKind kind) {
    TRY(const ResourcePtr resource, find(name));
    const std::lock_guard changing(resource->changing);
    return resource->devices->facts(kind);
}

Result<std::string> LocalNode::map_volume(const std::string& name, const std::string& place) {
    TRY(const ResourcePtr resource, find(name));
    const std::lock_guard changing(resource->changing);
    if (!KernelDoors::kind_of(
            place)) {  // another node's door: it must be that of the data as it is now
        TRY(const bool follows, ask(*resource, [](ResourceShell& shell) {
                return !shell.primary() && shell.follows_primary();
            }));
        if (!follows) {
            return Error{Errc::state, 0,
                         name +
                             " has to be Secondary here, and a connected peer Primary: only "
                             "that one's door can take its place"};
        }
    }
    TRY_STATUS(resource->mapping->map(place));
    return resource->mapping->view().path;
}

Status LocalNode::hold_volume(const std::string& name) {
    TRY(const ResourcePtr resource, find(name));
    const std::lock_guard changing(resource->changing);
    return resource->mapping->hold();
}

Status LocalNode::unexport(const std::string& name, const std::string& door, bool force) {
    TRY(const ResourcePtr resource, find(name));
    const std::lock_guard changing(resource->changing);
    const auto kind = KernelDoors::kind_of(door);
    const bool mapped = door.starts_with("mapped"), was_mapped = resource->mapping->is_mapped();
    if (resource->up && !kind && !mapped && !force) TRY_STATUS(no_clients(*resource, door));
    if (mapped || door.empty()) {
        if (mapped && !was_mapped) {
            return Error{Errc::not_found, 0, name + " is not mapped here"};
        }
        TRY_STATUS(resource->mapping->close(force));
        if (mapped) return ok_status();
    }
    if (resource->up || (!kind && !door.empty())) return close_doors(resource, door, force);
    // Of a resource that can not be brought up a device may wait all the same.
    const Status closed = resource->devices->close_left(kind, force);
    if (closed) resource->devices->keep_trying(false);
    if (closed || closed.error().code != Errc::not_found) return closed;
    if (was_mapped && door.empty()) return ok_status();
    return Error{Errc::state, 0, name + " is down, and has no door to be closed"};
}

// Who has just ended his connection may not have been noticed yet, so it looks for a moment.
Status LocalNode::no_clients(Resource& resource, const std::string& door) {
    for (int attempt = 0;; ++attempt) {
        TRY(const Status none,
            ask(resource, [&](ResourceShell& shell) { return shell.no_clients(door); }));
        if (none || attempt == client_attempts) return none;
        std::this_thread::sleep_for(client_pause);
    }
}

Status LocalNode::close_doors(const ResourcePtr& resource, const std::string& door, bool force) {
    if (!resource->up) return is_down(resource->config.name);
    const auto kind = KernelDoors::kind_of(door);
    if (kind && !resource->devices->is_open(kind)) {
        return Error{Errc::not_found, 0,
                     resource->config.name + " has no device of " + name_of(*kind)};
    }
    if (kind || door.empty()) TRY_STATUS(resource->devices->close(kind, force));
    if (kind) return ok_status();
    return resource->thread->call_async(
        [resource, door](ResourceShell::Done done) {
            if (!resource->shell) return done(is_down(resource->config.name));
            resource->shell->unexport(door, std::move(done));
        },
        command_timeout);
}

// ---- to the next program ------------------------------------------------------------------------

Status LocalNode::may_hand_over(bool force) {
    for (const std::string& name : resources()) {
        const auto found = find(name);
        if (!found || force) continue;
        const auto unused =
            ask(*found.value(), [](ResourceShell& shell) { return shell.doors_unused(); });
        if (unused && !unused.value()) return unused.value();
    }
    return ok_status();
}

Result<HandOver> LocalNode::hand_over(bool force) {
    std::vector<ResourcePtr> all;
    for (const std::string& name : resources()) {
        if (const auto found = find(name)) all.push_back(found.value());
    }
    std::vector<std::unique_lock<ChangeLock>> changing;
    for (const ResourcePtr& resource : all)
        changing.emplace_back(resource->changing);
    const auto turn_clients_away = [this, &all](bool away) {
        for (const ResourcePtr& resource : all) {
            static_cast<void>(ask(*resource, [away](ResourceShell& shell) {
                shell.turn_clients_away(away);
                return true;
            }));
        }
    };
    // Whoever has connected since the upgrade was asked for counts, too.
    turn_clients_away(true);
    Status ready = may_hand_over(force);
    std::size_t held = 0;
    for (; ready && held < all.size(); ++held) {
        if (!all[held]->up) continue;
        const auto clean =
            ask(*all[held], [](ResourceShell& shell) { return shell.nothing_left_behind(); });
        ready = clean ? clean.value() : Status(clean.error());
        if (ready) ready = all[held]->devices->hold(hold_timeout);
    }
    if (!ready) {  // what could not be held is not
        for (std::size_t i = 0; i + 1 < held; ++i)
            all[i]->devices->resume();
        turn_clients_away(false);
        return ready.error();
    }
    HandOver left;
    std::vector<HandedDevice> handed;
    for (const ResourcePtr& resource : all) {
        // If it fails, the next start is one after a crash, which loses nothing either.
        const Status down = to_next_program(*resource, left, handed);
        if (!down) options_.log(LOG_ERR, resource->config.name + ": " + down.error().message);
    }
    if (acceptor_) acceptor_->close();
    for (const HandedDevice& device : handed) {
        if (device.socket >= 0) ::fcntl(device.socket, F_SETFD, 0);
    }
    left.devices = to_text(handed);
    return left;
}

Status LocalNode::to_next_program(Resource& resource, HandOver& left,
                                  std::vector<HandedDevice>& handed) {
    const bool writes = resource.devices->any_writes();
    const auto remark =
        ask(resource, [writes](ResourceShell& shell) { return shell.what_ends(writes); });
    if (remark && !remark.value().empty()) left.remarks.push_back(remark.value());
    resource.mapping->leave();
    for (HandedDevice& device : resource.devices->hand_over())
        handed.push_back(std::move(device));
    return go_down(resource);
}

std::vector<DoorPause> LocalNode::pauses() {
    std::vector<DoorPause> all;
    for (const std::string& name : resources()) {
        const auto found = find(name);
        if (!found) continue;
        for (DoorPause& pause : found.value()->devices->pauses())
            all.push_back(std::move(pause));
    }
    return all;
}

}  // namespace replica
