// SPDX-License-Identifier: Apache-2.0
// A resource's doors: NBD servers that come and go, and the in-process one.
#include <algorithm>
#include <utility>

#include "engine/node/resource_shell.hpp"

namespace replica {

Status ResourceShell::export_nbd(const std::string& name) {
    if (!primary()) {
        return Error{Errc::state, 0,
                     config_.name + " is Secondary here: promote it, then export it"};
    }
    if (refusing_) return Error{Errc::state, 0, config_.name + " is going down"};
    if (core_->volume_bytes() == 0) {
        return Error{Errc::state, 0, config_.name + " has no size yet: attach its disk"};
    }
    const bool known = std::any_of(doors_.begin(), doors_.end(), [&](const Door& door) {
        return door.name == name || door.server->door() == name;
    });
    if (known) return Error{Errc::exists, 0, config_.name + " is exported at " + name + " already"};
    NbdServerOptions options;
    options.log = [this](int level, const std::string& line) { log_(level, line); };
    auto server = std::make_unique<NbdServer>(reactor_, *this, config_.name, options);
    TRY_STATUS(server->start(name));
    doors_.push_back({std::move(server), name, false});
    publish("door", "create", "", doors_.back().server->door());
    return ok_status();
}

void ResourceShell::stop_door(Door& door) {
    if (std::exchange(door.stopping, true)) return;
    const std::string at = door.server->door();
    door.server->stop([this, &door] { on_door_stopped(door); });
    publish("door", "destroy", "", at);
}

void ResourceShell::on_door_stopped(Door& stopped) {
    doors_.remove_if([&](const Door& door) { return &door == &stopped; });
    reactor_.defer(turn_);
}

void ResourceShell::unexport(const std::string& name, Done done) {
    bool found = false;
    for (Door& door : doors_) {
        if (!name.empty() && door.name != name && door.server->door() != name) continue;
        found = true;
        stop_door(door);
    }
    if (!found && !name.empty()) {
        return done(
            Error{Errc::not_found, 0,
                  config_.name + " is not exported at " + name + "; the status lists its doors"});
    }
    unexports_.push_back(std::move(done));
    reactor_.defer(turn_);
}

Status ResourceShell::doors_unused() const {
    for (const Door& door : doors_) {
        if (door.stopping || door.server->clients() == 0) continue;
        return Error{Errc::busy, 0,
                     config_.name + " has " + std::to_string(door.server->clients()) +
                         " client(s) at " + door.server->door() +
                         ": disconnect them, or unexport that door"};
    }
    if (local_door_ && local_door_->in_flight() > 0) {
        return Error{Errc::busy, 0,
                     config_.name + " has in-process requests in flight: wait for them"};
    }
    return ok_status();
}

void ResourceShell::stop_doors(Done done) {
    refusing_ = true;
    pump();
    for (Door& door : doors_)
        stop_door(door);
    if (local_door_ && !local_stopped_ && !doors_done_) {
        local_door_->stop([this] {
            local_stopped_ = true;
            reactor_.defer(turn_);
        });
    }
    doors_done_ = std::move(done);
    reactor_.defer(turn_);
}

void ResourceShell::maybe_doors_stopped() {
    // Whoever lost its role serves nobody.
    if (!primary()) {
        for (Door& door : doors_)
            stop_door(door);
    }
    const bool stopping =
        std::any_of(doors_.begin(), doors_.end(), [](const Door& door) { return door.stopping; });
    if (!stopping) {
        for (const Done& done : std::exchange(unexports_, {}))
            done(ok_status());
    }
    if (!doors_done_ || !doors_.empty() || (local_door_ && !local_stopped_)) return;
    const Done done = std::exchange(doors_done_, nullptr);
    done(ok_status());
}

}  // namespace replica
