// SPDX-License-Identifier: Apache-2.0
// A resource's doors: NBD servers that come and go, a ublk device, and the in-process one.
#include <algorithm>
#include <cinttypes>
#include <utility>

#include "engine/base/text.hpp"
#include "engine/node/resource_shell.hpp"

namespace replica {

Status ResourceShell::may_export() const {
    if (!primary()) {
        return Error{Errc::state, 0,
                     config_.name + " is Secondary here: promote it, then export it"};
    }
    if (refusing_) return Error{Errc::state, 0, config_.name + " is going down"};
    if (core_->volume_bytes() == 0) {
        return Error{Errc::state, 0, config_.name + " has no size yet: attach its disk"};
    }
    return ok_status();
}

Status ResourceShell::export_nbd(const std::string& name) {
    TRY_STATUS(may_export());
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

// ---- ublk ---------------------------------------------------------------------------------------

Status ResourceShell::open_ublk(std::unique_ptr<UblkChannel> channel, const std::string& door) {
    TRY_STATUS(may_export());
    ASSERT(!ublk_);
    ublk_ = std::make_unique<UblkQueue>(
        reactor_, *this, std::move(channel),
        [this](int level, const std::string& line) { log(level, line); });
    ublk_door_ = door;
    publish("door", "create", "", door);
    return ok_status();
}

void ResourceShell::wait_ublk_ended(Done done) {
    if (!ublk_) return done(ok_status());
    ublk_->when_ended([this, done = std::move(done)] {
        ublk_.reset();
        publish("door", "destroy", "", ublk_door_);
        reactor_.defer(turn_);
        done(ok_status());
    });
}

// Without the lowest bit, which is the role and not part of the generation.
std::string ResourceShell::generation() const {
    return text_of("%016" PRIX64, core_->superblock().current_uuid & ~std::uint64_t{1});
}

// A peer that is promoted while it is connected opens no generation, but what it writes comes here.
bool ResourceShell::is_as_kept() const {
    for (NodeId id = 0; id < nodes_max; ++id) {
        if (peers_[id] && core_->view(id).received_bytes > 0) return false;
    }
    return generation() == kept_generation_;
}

// ---- all ----------------------------------------------------------------------------------------

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
