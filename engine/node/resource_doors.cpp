// SPDX-License-Identifier: Apache-2.0
// A resource's doors: NBD servers that come and go, block devices, and the in-process one.
#include <algorithm>
#include <utility>

#include "engine/node/resource_shell.hpp"

namespace replica {

Status ResourceShell::may_serve() const {
    if (!primary()) {
        return Error{Errc::state, 0,
                     config_.name +
                         " is Secondary here: promote it, then export it; or export it read-only"};
    }
    if (!serves()) return Error{Errc::state, 0, config_.name + " is being promoted"};
    if (refusing_) return Error{Errc::state, 0, config_.name + " is going down"};
    if (core_->demoting()) return Error{Errc::state, 0, config_.name + " is being demoted"};
    if (core_->volume_bytes() == 0) {
        return Error{Errc::state, 0, config_.name + " has no size yet: attach its disk"};
    }
    return ok_status();
}

// What this process could not end with, for as long as it lasts: the next program would wait for
// it.
Status ResourceShell::nothing_left_behind() const {
    std::string why = silent_disk();
    if (why.empty() && !ended_queues_.empty()) {
        why = "requests of a device that was taken away do not end";
    }
    return why.empty() ? ok_status() : Status(Error{Errc::busy, 0, config_.name + ": " + why});
}

ReadView::Source ResourceShell::read_source() const {
    if (serves()) return ReadView::Source::whole;
    const bool good = core_->disk() == DiskState::up_to_date;
    return good ? ReadView::Source::disk : ReadView::Source::nothing;
}

Status ResourceShell::may_read() const {
    if (serves()) return may_serve();
    if (refusing_) return Error{Errc::state, 0, config_.name + " is going down"};
    if (read_source() == ReadView::Source::disk && core_->volume_bytes() > 0) return ok_status();
    return Error{Errc::state, 0,
                 config_.name + " can be read only where its disk is UpToDate, and here it is " +
                     name_of(core_->disk())};
}

// What waits was written before anything that comes by another door, and would be repeated after.
Status ResourceShell::may_export() const {
    TRY_STATUS(may_serve());
    for (const Device& device : devices_) {
        if (device.noted != 0) return Error{Errc::busy, 0, device.why};
    }
    return ok_status();
}

Result<std::string> ResourceShell::export_nbd(const std::string& name, bool read_only) {
    TRY_STATUS(read_only ? may_read() : may_export());
    const bool known = std::any_of(doors_.begin(), doors_.end(), [&](const Door& door) {
        return door.name == name || door.server->door() == name;
    });
    if (known) return Error{Errc::exists, 0, config_.name + " is exported at " + name + " already"};
    NbdServerOptions options;
    options.log = [this](int level, const std::string& line) { log_(level, line); };
    Volume& volume = read_only ? static_cast<Volume&>(view_) : *this;
    auto server = std::make_unique<NbdServer>(reactor_, volume, config_.name, options);
    TRY_STATUS(server->start(name));
    doors_.push_back({std::move(server), name, read_only, false});
    publish("door", "create", "", doors_.back().server->door());
    return doors_.back().server->door();
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

// ---- block devices ------------------------------------------------------------------------------

Status ResourceShell::open_device(DeviceKind kind, KernelChannel& channel, const std::string& door,
                                  bool read_only, std::function<void()> on_lost,
                                  std::function<void()> on_answer) {
    TRY_STATUS(read_only ? may_read() : may_serve());
    Device& device = this->device(kind);
    ASSERT(!device.queue || device.lost());
    const bool again = device.queue != nullptr;
    Volume& volume = read_only ? static_cast<Volume&>(view_) : *this;
    device.queue = channel.serve({reactor_, volume,
                                  [this](int level, const std::string& line) { log(level, line); },
                                  std::move(on_lost), std::move(on_answer)});
    device.door = door;
    if (!again) publish("door", "create", "", door);
    return ok_status();
}

void ResourceShell::device_started(DeviceKind kind) {
    if (device(kind).queue) device(kind).queue->started();
}

void ResourceShell::hold_device(DeviceKind kind, Done done) {
    KernelQueue* const queue = device(kind).queue.get();
    if (queue == nullptr) return done(ok_status());
    queue->hold([done = std::move(done)] { done(ok_status()); });
}

void ResourceShell::resume_device(DeviceKind kind) {
    if (device(kind).queue) device(kind).queue->resume();
}

int ResourceShell::abandon_device(DeviceKind kind) {
    Device& device = this->device(kind);
    device.changed = nullptr;
    if (!device.queue) return -1;
    const int socket = device.queue->abandon();
    // What the kernel may still write to is left behind; the process goes on as another program.
    if (!device.queue->destructible()) static_cast<void>(device.queue.release());
    device.queue.reset();
    reactor_.defer(turn_);
    return socket;
}

void ResourceShell::cut_off_device(DeviceKind kind) {
    if (device(kind).queue) device(kind).queue->cut_off();
}

void ResourceShell::wait_device_ended(DeviceKind kind, Done done) {
    Device& device = this->device(kind);
    if (!device.queue) return done(ok_status());
    device.queue->when_ended([this, &device, done = std::move(done)] {
        if (device.queue) {
            publish("door", "destroy", "", device.door);
            ended_queues_.push_back(std::move(device.queue));
            KernelQueue* const ended = ended_queues_.back().get();
            ended->when_idle([this, ended] { on_queue_idle(ended); });
        }
        done(ok_status());
    });
}

void ResourceShell::on_queue_idle(const KernelQueue* idle) {
    ended_queues_.remove_if([idle](const auto& queue) { return queue.get() == idle; });
    reactor_.defer(turn_);
}

bool ResourceShell::any_device() const {
    return !ended_queues_.empty() ||
           std::any_of(devices_.begin(), devices_.end(),
                       [](const Device& device) { return device.queue != nullptr; });
}

bool ResourceShell::any_device_waits() const {
    return std::any_of(devices_.begin(), devices_.end(),
                       [](const Device& device) { return device.noted != 0; });
}

Status ResourceShell::stays_secondary() const {
    for (const Device& device : devices_) {
        if (device.noted == 0) continue;
        return Error{Errc::busy, 0,
                     device.why + "; to stay Secondary, unexport it: what waits in it fails then"};
    }
    return ok_status();
}

void ResourceShell::device_waits(DeviceKind kind, std::uint64_t noted, const std::string& why) {
    Device& device = this->device(kind);
    const bool begins = device.noted == 0;
    device.noted = noted;
    if (why != device.why) publish("door", "change", "", noted != 0 ? why : "waits no more");
    device.why = why;
    if (noted == 0) return;
    // Nobody is promoted before it was looked for; so a Primary has no past that could be judged.
    if (begins) device.lineage = Lineage::stale;
    watch_lineage();
}

void ResourceShell::watch_lineage() {
    if (!any_device_waits() || core_->role() == Role::primary) return;
    bool received = false;
    for (NodeId id = 0; id < nodes_max; ++id) {
        received = received || (peers_[id] && core_->view(id).received_bytes > 0);
    }
    for (Device& device : devices_) {
        if (device.noted == 0) continue;
        device.lineage = judge_lineage(device.noted, core_->superblock(), received,
                                       core_->disk() == DiskState::up_to_date);
    }
}

// The one before, while the present one is not yet on every disk that it names.
std::uint64_t ResourceShell::generation() const {
    const Superblock& superblock = core_->superblock();
    const bool recorded =
        !core_->suspended() || uuid_identity(superblock.extension.parent_uuid) == uuid_none;
    return uuid_identity(recorded ? superblock.current_uuid : superblock.extension.parent_uuid);
}

void ResourceShell::tell_changes(DeviceKind kind, std::function<void()> changed) {
    device(kind).generation_told = generation();
    device(kind).size_told = core_->volume_bytes();
    device(kind).changed = std::move(changed);
}

// ---- all ----------------------------------------------------------------------------------------

Status ResourceShell::no_clients(const std::string& name) const {
    for (const Door& door : doors_) {
        if (!name.empty() && door.name != name && door.server->door() != name) continue;
        if (door.stopping || door.server->clients() == 0) continue;
        return Error{Errc::busy, 0,
                     config_.name + " has " + std::to_string(door.server->clients()) +
                         " client(s) at " + door.server->door() +
                         ": disconnect them, or cut them off by unexport --force"};
    }
    return ok_status();
}

Status ResourceShell::doors_unused() const {
    TRY_STATUS(no_clients(""));
    if (local_door_ && local_door_->in_flight() > 0) {
        return Error{Errc::busy, 0,
                     config_.name + " has in-process requests in flight: wait for them"};
    }
    return ok_status();
}

void ResourceShell::turn_clients_away(bool away) {
    for (Door& door : doors_)
        door.server->turn_away(away);
}

std::string ResourceShell::what_ends(bool primary_again) const {
    std::string closed;
    for (const Door& door : doors_) {
        if (!door.stopping) closed += (closed.empty() ? "" : ", ") + door.server->door();
    }
    if (!primary() || primary_again) {
        return closed.empty() ? "" : config_.name + ": closed: " + closed + "; export it again";
    }
    if (closed.empty()) return config_.name + " is Secondary now: promote it again";
    return config_.name + " is Secondary now, and closed: " + closed + "; promote, export";
}

std::vector<std::string> ResourceShell::clients_of_old_size() const {
    std::vector<std::string> remarks;
    for (const Door& door : doors_) {
        if (door.stopping || door.server->clients() == 0) continue;
        remarks.push_back(std::to_string(door.server->clients()) + " NBD client(s) at " +
                          door.server->door() +
                          " see the new size when they connect again, as NBD tells it only then");
    }
    return remarks;
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
    for (Device& device : devices_) {
        const std::uint64_t size = core_->volume_bytes();
        if (!device.changed) continue;
        if (device.generation_told == generation() && device.size_told == size) continue;
        device.generation_told = generation();
        device.size_told = size;
        device.changed();
    }
    // Whoever lost its role serves nobody.
    if (!primary()) {
        for (Door& door : doors_) {
            if (!door.read_only) stop_door(door);
        }
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
