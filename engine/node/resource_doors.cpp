// SPDX-License-Identifier: Apache-2.0
// A resource's doors: NBD servers that come and go, a ublk device, and the in-process one.
#include <algorithm>
#include <utility>

#include "engine/node/resource_shell.hpp"

namespace replica {

Status ResourceShell::may_serve() const {
    if (!primary()) {
        return Error{Errc::state, 0,
                     config_.name + " is Secondary here: promote it, then export it"};
    }
    if (!serves()) return Error{Errc::state, 0, config_.name + " is being promoted"};
    if (refusing_) return Error{Errc::state, 0, config_.name + " is going down"};
    if (core_->volume_bytes() == 0) {
        return Error{Errc::state, 0, config_.name + " has no size yet: attach its disk"};
    }
    return ok_status();
}

// What waits was written before anything that comes by another door, and would be repeated after.
Status ResourceShell::may_export() const {
    TRY_STATUS(may_serve());
    if (ublk_noted_ == 0) return ok_status();
    return Error{Errc::busy, 0, ublk_why_};
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
    TRY_STATUS(may_serve());
    ASSERT(!ublk_);
    ublk_ = std::make_unique<UblkQueue>(
        reactor_, *this, std::move(channel),
        [this](int level, const std::string& line) { log(level, line); });
    ublk_door_ = door;
    publish("door", "create", "", door);
    return ok_status();
}

void ResourceShell::ublk_started() {
    if (ublk_) ublk_->started();
}

void ResourceShell::wait_ublk_ended(Done done) {
    if (!ublk_) return done(ok_status());
    ublk_->when_ended([this, done = std::move(done)] {
        if (ublk_) publish("door", "destroy", "", ublk_door_);
        ublk_.reset();
        reactor_.defer(turn_);
        done(ok_status());
    });
}

void ResourceShell::ublk_waits(std::uint64_t noted, const std::string& why) {
    const bool begins = ublk_noted_ == 0;
    ublk_noted_ = noted;
    if (why != ublk_why_) publish("door", "change", "", noted != 0 ? why : "waits no more");
    ublk_why_ = why;
    if (noted == 0) return;
    // Nobody is promoted before it was looked for; so a Primary has no past that could be judged.
    if (begins) lineage_ = Lineage::stale;
    watch_lineage();
}

void ResourceShell::watch_lineage() {
    if (core_->role() == Role::primary) return;
    bool received = false;
    for (NodeId id = 0; id < nodes_max; ++id) {
        received = received || (peers_[id] && core_->view(id).received_bytes > 0);
    }
    lineage_ = judge_lineage(ublk_noted_, core_->superblock(), received,
                             core_->disk() == DiskState::up_to_date);
}

// The one before, while the present one is not yet on every disk that it names.
std::uint64_t ResourceShell::generation() const {
    const Superblock& superblock = core_->superblock();
    const bool recorded =
        !core_->suspended() || uuid_identity(superblock.extension.parent_uuid) == uuid_none;
    return uuid_identity(recorded ? superblock.current_uuid : superblock.extension.parent_uuid);
}

void ResourceShell::tell_generation(std::function<void()> changed) {
    generation_told_ = generation();
    generation_changed_ = std::move(changed);
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
    if (generation_changed_ && generation() != generation_told_) {
        generation_told_ = generation();
        generation_changed_();
    }
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
