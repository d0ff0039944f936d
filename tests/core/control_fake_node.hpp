// SPDX-License-Identifier: Apache-2.0
// A stand-in for the engine in tests of the control layer alone: it keeps configurations and roles,
// does no IO, records every call and can be told to fail or to take its time. What the control
// layer makes of a real node is tested in tests/integration and tests/abi.
#pragma once

#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "engine/node.hpp"

namespace replica::test {

class FakeNode final : public Node {
  public:
    // The next call whose record begins with `call` fails with this.
    void fail_next(const std::string& call, Error error) {
        const std::lock_guard lock(mutex_);
        failures_.insert_or_assign(call, std::move(error));
    }
    // Calls whose record begins with `call` block until release().
    void hold(const std::string& call) {
        const std::lock_guard lock(mutex_);
        held_ = call;
    }
    void release() {
        const std::lock_guard lock(mutex_);
        held_.clear();
        released_.notify_all();
    }
    std::vector<std::string> calls() {
        const std::lock_guard lock(mutex_);
        return calls_;
    }
    void change(const std::string& name, const std::function<void(ResourceStatus&)>& edit) {
        {
            const std::lock_guard lock(mutex_);
            edit(status_.at(name));
        }
        emit(name, "change");
    }
    void emit(const std::string& name, const std::string& action) {
        const std::lock_guard lock(mutex_);
        Event event{++seq_, name, "resource", action, "", "told by the fake"};
        for (const auto& [token, listener] : listeners_)
            listener(event);
    }

    Status create_resource(const ResourceConfig& config, const CreateOptions& options) override {
        TRY_STATUS(record("create " + config.name + (options.force ? " force" : "")));
        return know(config);
    }
    Status add_resource(const ResourceConfig& config) override {
        TRY_STATUS(record("add " + config.name));
        return know(config);
    }
    Status adopt_resource(const ResourceConfig& config) override {
        TRY_STATUS(record("adopt " + config.name));
        return know(config);
    }
    Status remove_resource(const std::string& name) override {
        TRY_STATUS(record("remove " + name));
        {
            const std::lock_guard lock(mutex_);
            if (status_.at(name).up) return Error{Errc::state, 0, name + " is up; down it first"};
            status_.erase(name);
        }
        emit(name, "destroy");
        return ok_status();
    }
    Status change_options(const std::string& name, const ResourceOptions& options) override {
        return record("options " + name + " al " + std::to_string(options.al_extents));
    }
    Status up(const std::string& name) override {
        return act("up " + name, name, [](auto& s) {
            s.up = true;
            s.disk = "UpToDate";
        });
    }
    Status down(const std::string& name, bool force) override {
        return act("down " + name + (force ? " force" : ""), name, [](auto& s) {
            s.up = false;
            s.role = "Secondary";
            s.disk = "Diskless";
        });
    }
    Status attach(const std::string& name) override { return record("attach " + name); }
    Status detach(const std::string& name) override { return record("detach " + name); }
    Status connect(const std::string& name, const std::string& peer, bool discard) override {
        return record("connect " + name + " " + peer + (discard ? " discard" : ""));
    }
    Status disconnect(const std::string& name, const std::string& peer) override {
        return record("disconnect " + name + " " + peer);
    }
    Status promote(const std::string& name, bool force) override {
        return act("promote " + name + (force ? " force" : ""), name,
                   [](auto& s) { s.role = "Primary"; });
    }
    Status demote(const std::string& name) override {
        return act("demote " + name, name, [](auto& s) { s.role = "Secondary"; });
    }
    Status invalidate(const std::string& name) override { return record("invalidate " + name); }
    Status invalidate_remote(const std::string& name, const std::string& peer) override {
        return record("invalidate-remote " + name + " " + peer);
    }
    Status pause_sync(const std::string& name, const std::string& peer) override {
        return record("pause-sync " + name + " " + peer);
    }
    Status resume_sync(const std::string& name, const std::string& peer) override {
        return record("resume-sync " + name + " " + peer);
    }
    Result<ResizeResult> resize(const std::string& name, std::uint64_t size_bytes,
                                const std::function<bool()>&) override {
        TRY_STATUS(record("resize " + name + " " + std::to_string(size_bytes)));
        return ResizeResult{size_bytes, 2 * size_bytes, {{"beta", true, size_bytes}}, {}};
    }
    Status new_current_uuid(const std::string& name, bool clear) override {
        return record("new-current-uuid " + name + (clear ? " clear" : ""));
    }
    Result<std::string> export_nbd(const std::string& name, const std::string& door,
                                   bool) override {
        TRY_STATUS(
            act("export " + name + " " + door, name, [&](auto& s) { s.doors.push_back(door); }));
        return door;
    }
    Result<BlockDoor> export_device(const std::string& name, DeviceKind kind, bool) override {
        BlockDoor door{kind, "", std::string("/dev/") + name_of(kind) + "0", 1 << 20, 43, 7};
        door.door = name_of(kind) + (":" + door.path);
        TRY_STATUS(act("export " + name + " " + name_of(kind), name,
                       [&](auto& s) { s.doors.push_back(door.door); }));
        return door;
    }
    Result<BlockDoor> block_door(const std::string& name, DeviceKind kind) override {
        return Error{Errc::not_found, 0, name + " has no " + name_of(kind)};
    }
    Result<std::string> map_volume(const std::string& name, const std::string& place) override {
        TRY_STATUS(record("map " + name + " " + place));
        return "/dev/mapper/replica-" + name;
    }
    Result<std::string> restore_before_resync(const std::string& name) override {
        TRY_STATUS(record("restore-before-resync " + name));
        return "restored " + name;
    }
    Status hold_volume(const std::string& name) override { return record("hold " + name); }
    Status may_hand_over(bool) override { return ok_status(); }
    Result<HandOver> hand_over(bool) override { return HandOver{}; }
    std::vector<DoorPause> pauses() override { return {{"r0", DeviceKind::nbd, 1'500'000, 0}}; }
    Status unexport(const std::string& name, const std::string& door, bool force) override {
        return act("unexport " + name + " " + door + (force ? " force" : ""), name,
                   [](auto& s) { s.doors.clear(); });
    }
    std::vector<std::string> resources() override {
        const std::lock_guard lock(mutex_);
        std::vector<std::string> names;
        for (const auto& [name, status] : status_)
            names.push_back(name);
        return names;
    }
    Result<ResourceStatus> status(const std::string& name) override {
        const std::lock_guard lock(mutex_);
        const auto found = status_.find(name);
        if (found == status_.end()) return Error{Errc::not_found, 0, "the fake has no " + name};
        return found->second;
    }
    Result<ResourceStats> stats(const std::string&) override {
        ResourceStats stats;
        stats.write_total.counts[10] = 3;
        stats.write_total.total = 3;
        stats.write_total.sum_ns = 4500;
        stats.write_total.max_ns = 2000;
        return stats;
    }
    std::uint64_t subscribe(std::function<void(const Event&)> listener) override {
        const std::lock_guard lock(mutex_);
        listeners_[++token_] = std::move(listener);
        return token_;
    }
    void unsubscribe(std::uint64_t token) override {
        const std::lock_guard lock(mutex_);
        listeners_.erase(token);
    }
    std::size_t listener_count() {
        const std::lock_guard lock(mutex_);
        return listeners_.size();
    }

    Status read(const std::string& name, std::uint64_t, std::span<std::byte>) override {
        return record("read " + name);
    }
    Status write(const std::string& name, std::uint64_t, std::span<const std::byte>,
                 bool) override {
        return record("write " + name);
    }
    Status flush(const std::string& name) override { return record("flush " + name); }
    Status discard(const std::string& name, std::uint64_t, std::uint64_t) override {
        return record("discard " + name);
    }
    Status write_zeroes(const std::string& name, std::uint64_t, std::uint64_t) override {
        return record("write-zeroes " + name);
    }
    Status submit(const std::string& name, IoKind, bool, std::uint64_t, std::span<std::byte>,
                  std::uint64_t, void (*done)(void*, int), void* context) override {
        TRY_STATUS(record("submit " + name));
        done(context, 0);
        return ok_status();
    }

  private:
    Status record(const std::string& call) {
        std::unique_lock lock(mutex_);
        calls_.push_back(call);
        released_.wait(lock, [&] { return held_.empty() || !call.starts_with(held_); });
        for (auto it = failures_.begin(); it != failures_.end(); ++it) {
            if (!call.starts_with(it->first)) continue;
            const Error error = it->second;
            failures_.erase(it);
            return error;
        }
        return ok_status();
    }
    Status know(const ResourceConfig& config) {
        {
            const std::lock_guard lock(mutex_);
            ResourceStatus status;
            status.name = config.name;
            status.node_id = config.node_id;
            status.volume = config.volume;
            status.role = "Secondary";
            status.disk = "Diskless";
            status.size_bytes = 1U << 20;
            for (const auto& peer : config.peers) {
                PeerStatus each;
                each.name = peer.name;
                each.node_id = peer.node_id;
                each.connection = "StandAlone";
                each.role = "Unknown";
                each.disk = "DUnknown";
                each.replication = "Off";
                status.peers.push_back(each);
            }
            status_.insert_or_assign(config.name, std::move(status));
        }
        emit(config.name, "create");
        return ok_status();
    }
    Status act(const std::string& call, const std::string& name,
               const std::function<void(ResourceStatus&)>& edit) {
        TRY_STATUS(record(call));
        change(name, edit);
        return ok_status();
    }

    std::mutex mutex_;
    std::condition_variable released_;
    std::string held_;
    std::map<std::string, Error> failures_;
    std::vector<std::string> calls_;
    std::map<std::string, ResourceStatus> status_;
    std::map<std::uint64_t, std::function<void(const Event&)>> listeners_;
    std::uint64_t token_ = 0;
    std::uint64_t seq_ = 0;
};

}  // namespace replica::test
