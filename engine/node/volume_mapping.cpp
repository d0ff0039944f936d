// SPDX-License-Identifier: Apache-2.0
// See volume_mapping.hpp.
#include "engine/node/volume_mapping.hpp"

#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <syslog.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <utility>

#include "engine/base/text.hpp"
#include "engine/io/process.hpp"

namespace replica {
namespace {

constexpr std::uint64_t sector = 512;
constexpr std::chrono::milliseconds again{500}, idle{3'600'000};

bool is_remote(const std::string& place) { return place.starts_with("tcp:"); }

// The users of the mapped device were told its block size when it was made.
std::uint32_t block_bytes_of(dev_t device) {
    unsigned bytes = 0;
    const std::string path =
        text_of("/sys/dev/block/%u:%u/queue/logical_block_size", major(device), minor(device));
    std::FILE* const file = std::fopen(path.c_str(), "re");
    if (file == nullptr) return 512;
    if (std::fscanf(file, "%u", &bytes) != 1) bytes = 512;
    std::fclose(file);
    return bytes;
}

}  // namespace

Result<Mapper*> MapperHost::get() {
    const std::lock_guard lock(mutex_);
    if (!mapper_) {
        TRY(mapper_, Mapper::open(log_));
    }
    return mapper_.get();
}

VolumeMapping::VolumeMapping(const Options& options, MapperHost& mapper, Doors doors,
                             ChangeLock& changing)
    : options_(options),
      host_(mapper),
      doors_(std::move(doors)),
      changing_(changing),
      file_(options.state_dir, options.resource) {}

VolumeMapping::~VolumeMapping() { leave(); }

MapTable VolumeMapping::over(const BlockTarget& target) const {
    return {{target.size_bytes / sector, "linear", map_parameters(target.device, 0)}};
}

// ---- what may lie below -------------------------------------------------------------------------

Result<BlockTarget> VolumeMapping::open_place(const std::string& place) {
    if (!is_remote(place)) return doors_.open(place);
    TRY(Mapper* const mapper, host_.get());
    TRY(const auto info, mapper->info(key()));
    return remote_.connect(place, options_.resource, owner_of(place),
                           info ? block_bytes_of(info->device) : 512);
}

Result<BlockTarget> VolumeMapping::facts_of(const std::string& place) {
    if (!is_remote(place)) return doors_.facts(place);
    TRY(const auto found, remote_.find(owner_of(place)));
    if (found) return *found;
    return Error{Errc::not_found, 0, "there is no connection to " + place};
}

Status VolumeMapping::close_place(const std::string& place, bool force) {
    if (place.empty()) return ok_status();
    if (is_remote(place)) return remote_.disconnect(owner_of(place));
    const auto facts = doors_.facts(place);
    if (!facts && facts.error().code == Errc::not_found) return ok_status();
    return doors_.close(place, force);
}

// To write a record while the device is suspended would wait for itself.
Status VolumeMapping::check_state_dir() {
    struct stat directory {};
    TRY(Mapper* const mapper, host_.get());
    TRY(const auto info, mapper->info(MapKey::of_name(name())));
    if (!info || ::stat(options_.state_dir.c_str(), &directory) != 0) return ok_status();
    if (directory.st_dev != info->device) return ok_status();
    return Error{Errc::state, 0,
                 "the state directory " + options_.state_dir + " lies on " + path() +
                     " itself: it has to be elsewhere"};
}

// ---- the record ---------------------------------------------------------------------------------

Status VolumeMapping::note(const MappingRecord& record) {
    TRY_STATUS(file_.save(record));
    record_ = record;
    show();
    return ok_status();
}

Status VolumeMapping::forget() {
    TRY_STATUS(file_.remove());
    record_.reset();
    show();
    return ok_status();
}

void VolumeMapping::show() {
    View view;
    if (record_) {
        view.path = path();
        view.over = record_->over;
        view.held = record_->held;
        view.trouble = trouble_;
        if (view.held) {
            view.trouble = path() +
                           " is held: what its users ask waits until it is mapped again (export "
                           "--mapped here, or map --to the node that is Primary)";
        }
    }
    const std::lock_guard lock(view_mutex_);
    view_ = std::move(view);
}

VolumeMapping::View VolumeMapping::view() const {
    const std::lock_guard lock(view_mutex_);
    return view_;
}

void VolumeMapping::say(const std::string& trouble) {
    if (trouble == trouble_) return;
    trouble_ = trouble;
    if (!trouble.empty()) options_.log(LOG_WARNING, options_.resource + ": " + trouble);
    show();
}

// ---- by command ---------------------------------------------------------------------------------

Status VolumeMapping::map(const std::string& place) {
    TRY(Mapper* const mapper, host_.get());
    if (!settled_) TRY_STATUS(settle());
    if (!record_) return make(place);
    TRY(const auto info, mapper->info(key()));
    if (!info) {  // somebody has removed it
        TRY_STATUS(forget());
        return make(place);
    }
    if (record_->over == place && !record_->held) {
        return Error{Errc::exists, 0,
                     text_of("%s is at %s, over %s, already", options_.resource.c_str(),
                             path().c_str(), place.c_str())};
    }
    return swap(place);
}

Status VolumeMapping::make(const std::string& place) {
    if (is_remote(place)) {
        return Error{Errc::state, 0,
                     options_.resource +
                         " is not mapped here: only a mapped device that is in use here can be "
                         "led to another node (export --mapped, hold, then map --to)"};
    }
    TRY(Mapper* const mapper, host_.get());
    TRY(const auto other, mapper->info(MapKey::of_name(name())));
    if (other) {
        return Error{Errc::exists, 0,
                     path() + " is there already, and not ours: its UUID is '" + other->uuid + "'"};
    }
    const bool was_open = static_cast<bool>(doors_.facts(place));
    TRY(const BlockTarget target, doors_.open(place));
    TRY_STATUS(note({text_of("REPLICA-%016llx-%s", static_cast<unsigned long long>(random_u64()),
                             options_.resource.c_str()),
                     place, "", false}));
    const auto made = mapper->create(name(), record_->uuid, over(target));
    if (made) return ok_status();
    TRY_STATUS(forget());
    if (!was_open) TRY_STATUS(doors_.close(place, false));
    return made.error();
}

// The record names both before the new door is opened: whoever finds it knows which one is extra.
Status VolumeMapping::swap(const std::string& place) {
    TRY_STATUS(check_state_dir());
    const MappingRecord before = *record_;
    TRY_STATUS(note({before.uuid, place, before.held ? before.from : before.over, before.held}));
    const auto undo = [&](const Error& error) -> Status {
        const Status closed = close_place(place, false);
        if (!closed) options_.log(LOG_ERR, closed.error().message);
        TRY_STATUS(note(before));
        return error;
    };
    const auto target = open_place(place);
    if (!target) return undo(target.error());
    TRY(Mapper* const mapper, host_.get());
    const auto table = mapper->table(MapKey::of_uuid(before.uuid));
    if (!table) return undo(table.error());
    const std::uint64_t sectors = table.value().empty() ? 0 : table.value().front().sectors;
    // A door that was opened after the volume grew is larger: so becomes what is mapped.
    const std::uint64_t now = target.value().size_bytes / sector;
    if (is_remote(place) ? now != sectors : now < sectors) {
        return undo(
            {Errc::invalid, 0,
             text_of("%s has %llu bytes and what is mapped has %llu: not the same volume",
                     place.c_str(), static_cast<unsigned long long>(target.value().size_bytes),
                     static_cast<unsigned long long>(sectors * sector))});
    }
    const Status exchanged = exchange(target.value());
    if (!exchanged) return undo(exchanged.error());
    TRY_STATUS(note({before.uuid, place, record_->from, false}));
    const Status closed = close_place(record_->from, false);
    if (!closed) {
        options_.log(LOG_WARNING, "the door that lay below stays open: " + closed.error().message);
    }
    return note({before.uuid, place, "", false});
}

// Between suspend and resume nothing here may touch the device, nor wait for who does.
Status VolumeMapping::exchange(const BlockTarget& target) {
    TRY(Mapper* const mapper, host_.get());
    TRY_STATUS(mapper->load(key(), over(target)));
    const Status suspended = mapper->suspend(key());
    if (!suspended) {
        const Status dropped = mapper->drop_loaded(key());
        if (!dropped) options_.log(LOG_ERR, dropped.error().message);
        return suspended;
    }
    Status resumed = mapper->resume(key());
    if (!resumed) {  // its users wait meanwhile
        settled_ = false;
        wake();
    }
    return resumed;
}

Status VolumeMapping::hold() {
    if (!settled_) TRY_STATUS(settle());
    if (!record_) {
        return Error{Errc::not_found, 0,
                     options_.resource + " is not mapped here: export it with --mapped first"};
    }
    if (record_->held) return Error{Errc::state, 0, path() + " is held already"};
    TRY_STATUS(check_state_dir());
    TRY(Mapper* const mapper, host_.get());
    TRY_STATUS(mapper->suspend(key()));
    const MappingRecord before = *record_;
    const Status noted = note({before.uuid, "", before.over, true});
    if (!noted) {
        TRY_STATUS(mapper->resume(key()));
        return noted;
    }
    // The mapped device has it open until it is swapped, but asks nothing of it.
    TRY_STATUS(close_place(before.over, true));
    return note({before.uuid, "", "", true});
}

Status VolumeMapping::grow() {
    if (!record_ || record_->held || !settled_) return ok_status();
    TRY(Mapper* const mapper, host_.get());
    TRY(const BlockTarget target, facts_of(record_->over));
    TRY(const MapTable table, mapper->table(key()));
    if (table == over(target)) return ok_status();
    return exchange(target);
}

Status VolumeMapping::check_unused() {
    if (!record_) return ok_status();
    if (record_->held) {
        return Error{Errc::busy, 0,
                     path() + " is held, and its users wait: map it again, or unexport by force"};
    }
    TRY(Mapper* const mapper, host_.get());
    TRY(const auto info, mapper->info(key()));
    if (!info || info->open_count == 0) return ok_status();
    return Error{Errc::busy, 0,
                 path() +
                     " is in use (mounted, held by another device, or open in a process): end "
                     "that first"};
}

Status VolumeMapping::close(bool force) {
    if (!record_) return ok_status();
    if (!force) TRY_STATUS(check_unused());
    TRY(Mapper* const mapper, host_.get());
    TRY(const auto info, mapper->info(key()));
    if (info && force && info->open_count > 0) {
        // Its users keep a device that fails everything, until they let go of it.
        TRY(const MapTable table, mapper->table(key()));
        const std::uint64_t sectors = table.empty() ? 1 : table.front().sectors;
        for (const std::string& place : {record_->over, record_->from})
            TRY_STATUS(close_place(place, true));
        TRY_STATUS(mapper->load(key(), {{sectors, "error", ""}}));
        TRY_STATUS(mapper->suspend(key()));
        TRY_STATUS(mapper->resume(key()));
        TRY_STATUS(mapper->remove_when_unused(key()));
        return forget();
    }
    if (info) {
        if (info->suspended) TRY_STATUS(mapper->resume(key()));
        TRY_STATUS(mapper->remove(key()));
    }
    for (const std::string& place : {record_->over, record_->from}) {
        if (is_remote(place)) TRY_STATUS(close_place(place, true));
    }
    return forget();
}

// ---- what an earlier daemon left ----------------------------------------------------------------

void VolumeMapping::look() {
    if (record_ || !file_.exists()) return;
    auto loaded = file_.load();
    if (!loaded) return say(loaded.error().message);
    record_ = std::move(loaded).value();
    if (!record_) return;
    settled_ = false;
    show();
    wake();
}

// Errors: not yet, and why.
Status VolumeMapping::settle() {
    TRY(Mapper* const mapper, host_.get());
    TRY(const auto info, mapper->info(key()));
    if (!info || (!info->live && !info->suspended)) {
        // It was never made, or not finished; or the machine has started anew.
        if (info) TRY_STATUS(mapper->remove(key()));
        for (const std::string& place : {record_->over, record_->from}) {
            if (is_remote(place)) TRY_STATUS(close_place(place, true));
        }
        settled_ = true;
        return forget();
    }
    if (record_->held) {
        TRY_STATUS(close_place(record_->from, true));
        if (!record_->over.empty()) TRY_STATUS(close_place(record_->over, true));
        TRY_STATUS(note({record_->uuid, "", "", true}));
        settled_ = true;
        return ok_status();
    }
    return settle_swap(*mapper, *info);
}

// Whichever table is live decides how it ends; the other door was extra.
Status VolumeMapping::settle_swap(Mapper& mapper, const MapInfo& info) {
    if (info.suspended) {
        options_.log(LOG_NOTICE, path() + " was left suspended: it goes on");
        TRY_STATUS(mapper.resume(key()));
    } else if (info.loaded) {
        TRY_STATUS(mapper.drop_loaded(key()));
    }
    if (record_->from.empty()) {
        settled_ = true;
        return ok_status();
    }
    TRY(const auto below, mapper.dependencies(key()));
    const auto lies_below = [&](const std::string& place) {
        const auto facts = facts_of(place);
        return facts && std::find(below.begin(), below.end(), facts.value().device) != below.end();
    };
    const std::string over = record_->over, from = record_->from;
    const bool done = lies_below(over);
    if (!done && !lies_below(from)) {
        return Error{Errc::state, 0, path() + " waits for the door below it"};
    }
    TRY_STATUS(close_place(done ? from : over, false));
    TRY_STATUS(note({record_->uuid, done ? over : from, "", false}));
    settled_ = true;
    return ok_status();
}

// ---- the keeper ---------------------------------------------------------------------------------

void VolumeMapping::wake() {
    const std::lock_guard lock(keeper_mutex_);
    woken_ = true;
    if (!keeper_.joinable() && !stop_) keeper_ = std::thread([this] { keep(); });
    keeper_wakes_.notify_one();
}

void VolumeMapping::leave() {
    {
        const std::lock_guard lock(keeper_mutex_);
        stop_ = true;
        keeper_wakes_.notify_one();
    }
    if (keeper_.joinable()) keeper_.join();
}

void VolumeMapping::keep() {
    std::unique_lock lock(keeper_mutex_);
    std::chrono::milliseconds pause{0};
    for (;;) {
        keeper_wakes_.wait_for(lock, pause, [this] { return woken_ || stop_; });
        if (stop_) return;
        woken_ = false;
        lock.unlock();
        pause = again;
        // Whoever changes the resource goes first, and may be waiting for this thread to end.
        if (const std::unique_lock changing(changing_, std::try_to_lock); changing.owns_lock()) {
            pause = turn();
        }
        lock.lock();
    }
}

std::chrono::milliseconds VolumeMapping::turn() {
    if (!record_) return idle;
    if (!settled_) {
        const Status put_right = settle();
        say(put_right ? "" : put_right.error().message);
        return again;
    }
    if (!is_remote(record_->over)) return idle;
    if (remote_.broken()) {
        const Status mended =
            remote_.reconnect(record_->over, options_.resource, owner_of(record_->over));
        say(mended ? ""
                   : "no connection below " + path() +
                         ", whose users wait: " + mended.error().message);
    }
    return again;
}

}  // namespace replica
