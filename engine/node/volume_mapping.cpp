// SPDX-License-Identifier: Apache-2.0
// See volume_mapping.hpp.
#include "engine/node/volume_mapping.hpp"

#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <syslog.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <utility>

#include "engine/base/text.hpp"
#include "engine/io/process.hpp"

namespace replica {
namespace {

constexpr std::uint64_t sector = 512;
constexpr std::chrono::milliseconds again{500}, much_later{30'000}, idle{3'600'000};

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
        TRY(mapper_, open_(log_));
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
    if (!record_->held) TRY_STATUS(check_door());
    if (record_->over == place && !record_->held) {
        return Error{Errc::exists, 0,
                     text_of("%s is at %s, over %s, already", options_.resource.c_str(),
                             path().c_str(), place.c_str())};
    }
    return swap(place);
}

// Its users have had errors since it was closed, and what they remember may not be so any more.
Status VolumeMapping::check_door() {
    const auto facts = facts_of(record_->over);
    if (facts || facts.error().code != Errc::not_found) return ok_status();
    return Error{Errc::state, 0,
                 text_of("%s lay over %s, which is closed, so that its users get errors: end them, "
                         "and unexport it (--door mapped) first",
                         path().c_str(), record_->over.c_str())};
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
    const bool was_open = !is_remote(place) && facts_of(place);
    TRY_STATUS(note({before.uuid, place, before.held ? before.from : before.over, before.held}));
    const auto undo = [&](const Error& error) -> Status {
        const Status closed = was_open ? ok_status() : close_place(place, false);
        if (!closed) options_.log(LOG_ERR, closed.error().message);
        TRY_STATUS(note(before));
        return error;
    };
    const auto target = open_place(place);
    if (!target) return undo(target.error());
    const Status fits = check_size(place, target.value());
    if (!fits) return undo(fits.error());
    const Status exchanged = exchange(target.value());
    if (!exchanged) return settled_ ? undo(exchanged.error()) : exchanged;
    TRY_STATUS(note({before.uuid, place, record_->from, false}));
    const Status closed = close_place(record_->from, false);
    if (!closed) {
        options_.log(LOG_WARNING, "the door that lay below stays open: " + closed.error().message);
    }
    TRY_STATUS(note({before.uuid, place, "", false}));
    wake();
    return ok_status();
}

// A door that was opened after the volume grew is larger: so becomes what is mapped.
Status VolumeMapping::check_size(const std::string& place, const BlockTarget& target) {
    TRY(Mapper* const mapper, host_.get());
    TRY(const MapTable table, mapper->table(key()));
    const std::uint64_t mapped = table.empty() ? 0 : table.front().sectors * sector;
    const std::uint64_t volume = doors_.volume_bytes();
    const bool another = is_remote(place) && volume != 0 && target.size_bytes != volume;
    if (target.size_bytes >= mapped && !another) return ok_status();
    return Error{Errc::invalid, 0,
                 text_of("%s has %llu bytes, and what is mapped has %llu: not the same volume",
                         place.c_str(), static_cast<unsigned long long>(target.size_bytes),
                         static_cast<unsigned long long>(mapped))};
}

// Between suspend and resume nothing here may touch the device, nor wait for who does.
Status VolumeMapping::exchange(const BlockTarget& target) {
    TRY(Mapper* const mapper, host_.get());
    TRY_STATUS(mapper->load(key(), over(target)));
    const Status suspended = mapper->suspend(key());
    if (!suspended) {
        const Status dropped = mapper->drop_loaded(key());
        if (!dropped) options_.log(LOG_ERR, dropped.error().message);
        if (!dropped || suspended.error().os_errno == ETIMEDOUT) unsettle();
        return suspended;
    }
    Status resumed = mapper->resume(key());
    if (!resumed) unsettle();  // its users wait meanwhile
    return resumed;
}

// How a call has ended is not known: it may yet be done.
void VolumeMapping::unsettle() {
    settled_ = false;
    wake();
}

Status VolumeMapping::hold() {
    if (!settled_) TRY_STATUS(settle());
    if (!record_) {
        return Error{Errc::not_found, 0,
                     options_.resource + " is not mapped here: export it with --mapped first"};
    }
    if (record_->held) return Error{Errc::state, 0, path() + " is held already"};
    TRY_STATUS(check_door());
    TRY_STATUS(check_state_dir());
    TRY(Mapper* const mapper, host_.get());
    const Status suspended = mapper->suspend(key());
    if (!suspended) {
        unsettle();
        return suspended;
    }
    const MappingRecord before = *record_;
    const Status noted = note({before.uuid, "", before.over, true});
    if (!noted) {
        if (!mapper->resume(key())) unsettle();
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
    const std::uint64_t mapped = table.empty() ? 0 : table.front().sectors * sector;
    if (target.size_bytes > mapped) TRY_STATUS(exchange(target));
    if (target.size_bytes >= doors_.volume_bytes()) return ok_status();
    const std::string other = record_->over == "ublk" ? "nbd" : "ublk";
    const std::string help = leads_elsewhere()
                                 ? "hold, then map --to " + record_->over + " again"
                                 : "export --mapped --door " + other + ", and back if need be";
    return Error{Errc::unsupported, 0,
                 path() +
                     " stays as large as what lies below it; while it is in use, this makes "
                     "it grow: " +
                     help};
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
    return record_->held ? settle_held(*mapper, *info) : settle_swap(*mapper, *info);
}

Status VolumeMapping::settle_held(Mapper& mapper, const MapInfo& info) {
    // It was to go on, and did.
    if (!info.suspended && !record_->over.empty()) {
        TRY_STATUS(note({record_->uuid, record_->over, record_->from, false}));
        return settle_swap(mapper, info);
    }
    if (info.loaded) TRY_STATUS(mapper.drop_loaded(key()));
    for (const std::string& place : {record_->over, record_->from}) {
        // Before the resource is up it is not known whether its door was left.
        const bool down = !place.empty() && !is_remote(place) && doors_.volume_bytes() == 0;
        if (down) return Error{Errc::state, 0, path() + " is held; the door below it waits"};
        TRY_STATUS(close_place(place, true));
    }
    TRY_STATUS(note({record_->uuid, "", "", true}));
    settled_ = true;
    return ok_status();
}

// Whichever table is live decides how it ends; the other door was extra.
Status VolumeMapping::settle_swap(Mapper& mapper, const MapInfo& info) {
    // Then a table that waits is of no swap that is on record.
    const bool undone = record_->from.empty();
    if (info.loaded && (undone || !info.suspended)) TRY_STATUS(mapper.drop_loaded(key()));
    if (info.suspended) {
        options_.log(LOG_NOTICE, path() + " was left suspended: it goes on");
        TRY_STATUS(mapper.resume(key()));
    }
    if (undone) {
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

void VolumeMapping::keep_connection() {
    const std::string owner = owner_of(record_->over);
    const RemoteVolume::Health health = remote_.health(owner);
    if (health == RemoteVolume::Health::answers) say("");
    if (health != RemoteVolume::Health::broken) return;
    const Status mended = remote_.reconnect(record_->over, options_.resource, owner);
    if (mended) return;
    say("no connection below " + path() + ", whose users wait: " + mended.error().message);
}

std::chrono::milliseconds VolumeMapping::turn() {
    if (!record_) return idle;
    if (!settled_) {
        const Status put_right = settle();
        say(put_right ? "" : put_right.error().message);
        const bool absent = !put_right && put_right.error().code == Errc::unsupported;
        return absent ? much_later : again;
    }
    if (record_->held) return idle;
    if (is_remote(record_->over)) {
        keep_connection();
        return again;
    }
    const Status grown = grow();
    // Not yet: a door of an earlier daemon waits, and its own trouble is told.
    if (!grown && grown.error().code == Errc::state) return again;
    if (!grown && grown.error().code == Errc::not_found) {
        say(check_door().error().message);
    } else {
        say(grown ? "" : grown.error().message);
    }
    return idle;
}

}  // namespace replica
