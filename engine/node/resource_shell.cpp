// SPDX-License-Identifier: Apache-2.0
// The step and its effects; attaching a disk; coming to rest. See resource_shell.hpp.
#include "engine/node/resource_shell.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <syslog.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <ctime>
#include <utility>

#include "engine/base/crc32c.hpp"
#include "engine/io/process.hpp"

namespace replica {
namespace {

CoreConfig core_config(const ResourceConfig& config, const CoreLimits& limits) {
    CoreConfig core;
    core.node_id = config.node_id;
    for (const PeerConfig& peer : config.peers)
        core.peers.add(peer.node_id);
    core.resource = config.name;
    core.options = config.options;
    core.limits = limits;
    core.entropy = random_u64();
    return core;
}

CoreLimits shell_limits() {
    CoreLimits limits;
    limits.bitmap_writes = 256;  // written in batches (metadata_store.hpp)
    return limits;
}

}  // namespace

ResourceShell::ResourceShell(const Context& context, const ResourceConfig& config)
    : thread_(context.thread),
      reactor_(context.thread.reactor()),
      events_(context.events),
      log_(context.log),
      config_(config),
      limits_(shell_limits()),
      core_(std::make_unique<Core>(core_config(config, limits_))),
      view_(reactor_, *this, [this] { return read_source(); }),
      snapshot_(reactor_, config.name,
                [this](int level, const std::string& text) { log(level, text); }),
      slots_(limits_.requests),
      slot_of_seq_(limits_.journal),
      out_buffers_(context.thread.send_buffers().count()),
      chunk_out_(limits_.resync_chunks),
      serve_out_(limits_.peer_reads_max()) {
    for (auto slot = slots_.rbegin(); slot != slots_.rend(); ++slot) {
        slot->shell = this;
        slot->next = free_slot_;
        free_slot_ = &*slot;
    }
    completions_.reserve(limits_.requests);
    for (std::uint32_t i = 0; i < out_buffers_.size(); ++i) {
        out_buffers_[i].shell = this;
        out_buffers_[i].bytes = thread_.send_buffers().buffer(i);
    }
    turn_.context = tick_.context = this;
    turn_.callback = [](Deferred& task) { static_cast<ResourceShell*>(task.context)->on_turn(); };
    tick_.callback = [](Timer& timer) { static_cast<ResourceShell*>(timer.context)->on_tick(); };
    make_links();
}

ResourceShell::~ResourceShell() { ASSERT(!started_ || removable()); }

void ResourceShell::log(int level, const std::string& text) const {
    log_(level, config_.name + ": " + text);
}

void ResourceShell::start() {
    started_ = true;
    local_door_ = std::make_unique<LocalDoor>(reactor_, *this);
    reactor_.defer(turn_);
}

int ResourceShell::peer_id(const std::string& name) const {
    for (NodeId id = 0; id < nodes_max; ++id) {
        if (peers_[id] && peers_[id]->name == name) return id;
    }
    return -1;
}

// ---- the step -----------------------------------------------------------------------------------

void ResourceShell::perform_effects() {
    for (const Effect& effect : core_->effects())
        perform(effect);
    core_->clear_effects();
}

void ResourceShell::perform(const Effect& effect) {
    switch (effect.kind) {
        case EffectKind::complete:
            return complete(effect.index, effect.error);
        case EffectKind::disk_read:
        case EffectKind::disk_write:
        case EffectKind::disk_zero:
        case EffectKind::disk_flush:
            return perform_disk(effect);
        case EffectKind::metadata:
            return perform_metadata(effect.tag);
        case EffectKind::send:
            return perform_send(effect);
        case EffectKind::release:
            return thread_.receive_buffers().release(
                thread_.receive_buffers().buffer(effect.index));
        case EffectKind::dial:
        case EffectKind::knock:
        case EffectKind::adopt:
        case EffectKind::refuse:
        case EffectKind::close_link:
            return perform_link(effect);
        case EffectKind::reply:
            return perform_reply(effect);
        case EffectKind::notice:
            return perform_notice(effect);
    }
}

std::span<std::byte> ResourceShell::memory_of(BufferRef buffer, std::uint32_t length) {
    switch (buffer.kind) {
        case BufferKind::request:
            return {slots_[buffer.index].request->buffer, length};
        case BufferKind::receive:
            return {thread_.receive_buffers().buffer(buffer.index), length};
        case BufferKind::resync:
        case BufferKind::serve:
            return {out_slot(buffer.kind, buffer.index)->bytes, length};
        case BufferKind::none:
            break;
    }
    assert_failed("an effect without its buffer", __FILE__, __LINE__);
    return {};
}

void ResourceShell::perform_disk(const Effect& e) {
    ASSERT(data_);
    const bool of_request = e.tag.origin == IoOrigin::request;
    if (of_request) slots_[e.tag.index].disk_started = now();
    switch (e.kind) {
        case EffectKind::disk_read:
            if (e.buffer.kind == BufferKind::request) {
                return data_->read(e.tag, memory_of(e.buffer, e.length), e.offset, false);
            }
            return start_read(e.tag, e.offset, e.length);
        case EffectKind::disk_write:
            return data_->write(e.tag, memory_of(e.buffer, e.length), e.offset, e.durable);
        case EffectKind::disk_zero:
            return data_->zero(e.tag, e.offset, e.length, e.discard, e.durable);
        case EffectKind::disk_flush:
            return data_->flush(e.tag);
        case EffectKind::complete:
        case EffectKind::metadata:
        case EffectKind::send:
        case EffectKind::release:
        case EffectKind::dial:
        case EffectKind::knock:
        case EffectKind::adopt:
        case EffectKind::refuse:
        case EffectKind::close_link:
        case EffectKind::reply:
        case EffectKind::notice:
            break;
    }
}

// The core waits until it is on record that the data is not whole any more, before the first block
// of a resync arrives. As long as that record is held back the disk is as it was.
void ResourceShell::perform_metadata(IoTag tag) {
    ASSERT(metadata_);
    if (tag.origin != IoOrigin::superblock) return metadata_->write(*core_, tag);
    next_label_consistent_ = (core_->superblock().flags & md_flag::consistent) != 0;
    const bool held = label_consistent_ && !next_label_consistent_ &&
                      config_.options.snapshot_before_resync == SnapshotBeforeResync::yes;
    metadata_->write(*core_, tag, held);
    if (held) snapshot_.take(generation(), [this] { metadata_->release(); });
}

// Reads for a resync or for a peer, as soon as there is a buffer.
void ResourceShell::start_read(IoTag tag, std::uint64_t offset, std::uint32_t length) {
    SharedBuffers& buffers = thread_.send_buffers();
    std::byte* bytes = buffers.try_acquire(length);
    if (bytes == nullptr) {
        WaitingRead& waiting = waiting_reads_.emplace_back();
        waiting.shell = this;
        waiting.tag = tag;
        waiting.offset = offset;
        waiting.length = length;
        waiting.waiter.context = &waiting;
        waiting.waiter.ready = [](BufferWaiter& waiter) {
            auto& ready = *static_cast<WaitingRead*>(waiter.context);
            ResourceShell& shell = *ready.shell;
            const WaitingRead read = ready;
            shell.waiting_reads_.remove_if([&](const WaitingRead& w) { return &w == &ready; });
            shell.start_read(read.tag, read.offset, read.length);
        };
        bytes = buffers.acquire(length, waiting.waiter);
        ASSERT(bytes == nullptr);
        return;
    }
    OutBuffer& out = out_buffers_[buffers.index_of(bytes)];
    ASSERT(out.references == 0);
    out.length = length;
    out.references = 1;
    const bool resync = tag.origin == IoOrigin::resync;
    out_slot(resync ? BufferKind::resync : BufferKind::serve, tag.index) = &out;
    data_->read(tag, {bytes, length}, offset, resync);
}

ResourceShell::OutBuffer*& ResourceShell::out_slot(BufferKind kind, std::uint32_t index) {
    return kind == BufferKind::resync ? chunk_out_[index] : serve_out_[index];
}

void ResourceShell::drop(OutBuffer& out) {
    ASSERT(out.references > 0);
    if (--out.references == 0) thread_.send_buffers().release(out.bytes);
}

ResourceShell::SmallPayload& ResourceShell::take_small() {
    if (free_small_ == nullptr) {
        free_small_ = &small_.emplace_back();
        free_small_->shell = this;
    }
    return *std::exchange(free_small_, free_small_->next);
}

void ResourceShell::perform_send(const Effect& e) {
    PeerState& to = *peer(static_cast<NodeId>(e.peer));
    std::span<const std::byte> payload;
    std::uint32_t crc = 0;
    SendDone done;
    SmallPayload* small = nullptr;
    if (e.buffer.kind == BufferKind::request) {
        Slot& slot = slots_[e.buffer.index];
        payload = memory_of(e.buffer, e.message.payload_bytes);
        if (!slot.crc_known) slot.crc = crc32c(payload);
        slot.crc_known = true;
        crc = slot.crc;
        done = {[](void* context, int) {
                    Slot& sent = *static_cast<Slot*>(context);
                    sent.shell->on_slot_sent(sent);
                },
                &slot};
    } else if (e.buffer.kind != BufferKind::none) {
        payload = memory_of(e.buffer, e.message.payload_bytes);
        crc = crc32c(payload);
        done = {[](void* context, int) {
                    OutBuffer& out = *static_cast<OutBuffer*>(context);
                    out.shell->drop(out);
                },
                out_slot(e.buffer.kind, e.buffer.index)};
    } else if (e.message.payload_bytes > 0) {
        small = &take_small();
        payload = std::span(small->bytes).first(core_->encode_payload(e, small->bytes));
        crc = crc32c(payload);
        done = {[](void* context, int) {
                    auto& sent = *static_cast<SmallPayload*>(context);
                    sent.next = sent.shell->free_small_;
                    sent.shell->free_small_ = &sent;
                },
                small};
    }
    std::array<std::byte, wire_header_bytes> header;
    encode_header(e.message, crc, header);
    if (!to.link->send(e.stream, header, payload, done)) {
        if (small != nullptr) done.call(done.context, 0);
        return;
    }
    if (e.buffer.kind == BufferKind::request) {
        Slot& slot = slots_[e.buffer.index];
        ++slot.sends;
        slot.seq = e.message.seq;
        slot.sent = now();
        slot_of_seq_[slot.seq % slot_of_seq_.size()] = e.buffer.index;
    } else if (e.buffer.kind != BufferKind::none) {
        ++out_slot(e.buffer.kind, e.buffer.index)->references;
    }
}

void ResourceShell::perform_reply(const Effect& e) {
    for (auto at = waiting_.begin(); at != waiting_.end(); ++at) {
        if (at->token != e.index) continue;
        Done done = std::move(at->done);
        waiting_.erase(at);
        if (e.errc == Errc::ok) return done(ok_status());
        return done(Error{e.errc, 0, config_.name + ": " + e.text});
    }
}

void ResourceShell::perform_notice(const Effect& e) {
    const bool split_brain = std::string_view(e.text).starts_with("split brain");
    const PeerState* about = e.peer >= 0 ? peer(static_cast<NodeId>(e.peer)) : nullptr;
    const std::string name = about != nullptr ? about->name : "";
    log(e.level, (about != nullptr ? "peer " + name + ": " : "") + e.text);
    publish(split_brain        ? "split-brain"
            : about != nullptr ? "connection"
                               : "resource",
            "change", name, e.text);
}

void ResourceShell::on_disk_done(IoTag tag, int error, bool zeroes) {
    const bool resync = tag.origin == IoOrigin::resync;
    OutBuffer* out = nullptr;
    if (resync || tag.origin == IoOrigin::peer_read) {
        out = out_slot(resync ? BufferKind::resync : BufferKind::serve, tag.index);
    }
    if (tag.origin == IoOrigin::request) slots_[tag.index].disk_done = now();
    if (error != 0) {
        log(LOG_ERR, disk_->data->path() + ": an I/O failed: " + std::string(std::strerror(error)));
    }
    if (data_->met_part_of_block() && !std::exchange(told_of_parts_, true)) {
        log(LOG_NOTICE, disk_->data->path() + " takes only blocks of " +
                            std::to_string(disk_->data->logical_block_bytes()) +
                            " bytes, and parts of them are asked for: that is slow");
    }
    step([&](Core& core) { core.on_io(now(), tag, error, zeroes); });
    if (out != nullptr) drop(*out);  // what was sent of it has its own reference
    run_completions();
}

void ResourceShell::on_metadata_done(IoTag tag, int error) {
    if (error != 0) {
        log(LOG_ERR, disk_->metadata().path() +
                         ": a metadata write failed: " + std::string(std::strerror(error)));
    } else if (tag.origin == IoOrigin::superblock) {
        label_consistent_ = next_label_consistent_;
        if (label_consistent_ && snapshot_.kept()) {
            snapshot_.remove([this] { reactor_.defer(turn_); });
        }
    }
    step([&](Core& core) { core.on_io(now(), tag, error); });
    run_completions();
}

// Once after the inputs of a turn.
void ResourceShell::on_turn() {
    pump();
    run_completions();
    if (!started_) return;
    note_failed_disk();
    close_dead_disk();
    maybe_attached();
    if (core_->state_version() != version_seen_) publish_changes();
    maybe_doors_stopped();
    set_tick();
    maybe_quiet();
}

void ResourceShell::set_tick() {
    const auto deadline = core_->next_deadline();
    if (!deadline) return tick_.clear();
    if (tick_.is_set() && tick_.due() == *deadline) return;
    reactor_.set_timer(tick_, *deadline);
}

void ResourceShell::on_tick() {
    tell_backlogs();
    step([&](Core& core) { core.on_tick(now()); });
    run_completions();
}

// ---- commands -----------------------------------------------------------------------------------

void ResourceShell::command(Command command, Done done) {
    command.token = token_next_++;
    command.wall_clock_s = static_cast<std::uint64_t>(std::time(nullptr));
    waiting_.push_back({command.token, std::move(done)});
    step([&](Core& core) { core.on_command(now(), command); });
    run_completions();
}

void ResourceShell::change_options(const ResourceOptions& options) {
    config_.options = options;
    for (const auto& state : peers_) {
        if (state) state->link->set_user_timeout(options.request_timeout_ms);
    }
    step([&](Core& core) { core.on_options(now(), options); });
    run_completions();
}

// ---- attach -------------------------------------------------------------------------------------

Status ResourceShell::load_superblock(OpenDisk& disk) {
    Superblock superblock = disk.superblock;
    superblock.effective_size_sectors = disk.volume_bytes / sector_bytes;
    TRY_STATUS(core_->prepare_attach(superblock));
    return seal_extension(disk, *core_);
}

Status ResourceShell::load(OpenDisk& disk) {
    TRY_STATUS(load_superblock(disk));
    return read_bitmap(disk, [this](std::uint64_t page, std::span<const std::byte, 4096> bytes) {
        core_->load_bitmap_page(page, bytes);
    });
}

Status ResourceShell::load(OpenDisk& disk, const std::vector<Page>& pages) {
    if (primary() && disk.info.data_bytes_max < core_->volume_bytes()) {
        return Error{Errc::no_space, 0,
                     config_.name + " is in use with " + std::to_string(core_->volume_bytes()) +
                         " bytes, and the disk takes only " +
                         std::to_string(disk.info.data_bytes_max) + ": attach a larger one"};
    }
    TRY_STATUS(load_superblock(disk));
    for (const Page& page : pages)
        core_->load_bitmap_page(page.index, page.bytes);
    return ok_status();
}

void ResourceShell::attach(OpenDisk disk, Done done) {
    ASSERT(!disk_ && !attach_done_);
    disk_ = std::make_unique<OpenDisk>(std::move(disk));
    data_ = std::make_unique<BackingDisk>(
        *disk_->data,
        [](void* context, IoTag tag, int error, bool zeroes) {
            static_cast<ResourceShell*>(context)->on_disk_done(tag, error, zeroes);
        },
        this);
    view_.attach(*disk_->data);
    metadata_ = std::make_unique<MetadataStore>(
        reactor_, disk_->metadata(), disk_->copy.get(), disk_->layout,
        [](void* context, IoTag tag, int error) {
            static_cast<ResourceShell*>(context)->on_metadata_done(tag, error);
        },
        this);
    told_of_parts_ = false;
    // Who uses the volume was told of its blocks.
    if (!primary()) logical_block_bytes_ = disk_->data->logical_block_bytes();
    file_disk_ = !disk_->data->is_block_device();
    for (const std::string& warning : disk_->warnings)
        log(LOG_WARNING, warning);
    attach_done_ = std::move(done);
    disk_noted_ = disk_->info.cache_suspect;
    label_consistent_ = (disk_->superblock.flags & md_flag::consistent) != 0;
    snapshot_.attached(disk_->paths.disk, disk_->paths.copy);
    watch_disks();
    step([&](Core& core) { core.on_attach(now(), std::move(disk_->info)); });
}

void ResourceShell::maybe_attached() {
    if (!attach_done_ || core_->disk() == DiskState::attaching) return;
    const Done done = std::exchange(attach_done_, nullptr);
    if (core_->disk() >= DiskState::inconsistent) return done(ok_status());
    done(Error{Errc::io, 0, config_.name + ": attaching failed: " + core_->why()});
}

void ResourceShell::watch_disks() {
    DiskMonitor* const monitor = thread_.kernel_events().disks();
    if (monitor == nullptr) return;
    const BlockFile* const files[] = {disk_->data.get(), disk_->external.get()};
    for (std::size_t i = 0; i < disk_watches_.size(); ++i) {
        DiskWatch& watch = disk_watches_[i];
        watch.context = this;
        watch.callback = [](DiskWatch& told, DiskChange change) {
            auto& shell = *static_cast<ResourceShell*>(told.context);
            const bool data = &told == &shell.disk_watches_[0];
            shell.on_disk_change(data ? *shell.disk_->data : *shell.disk_->external, change);
        };
        struct stat status;
        if (files[i] == nullptr || !files[i]->is_block_device()) continue;
        if (::fstat(files[i]->fd(), &status) == 0) monitor->start(watch, status.st_rdev);
    }
}

void ResourceShell::on_disk_change(const BlockFile& file, DiskChange change) {
    switch (change) {
        case DiskChange::removed:
            log(LOG_ERR, file.path() + " was removed from this machine");
            step([&](Core& core) { core.on_disk_removed(now()); });
            return run_completions();
        case DiskChange::resized:
            return log(LOG_NOTICE, file.path() +
                                       " has another size now; the volume keeps its own. "
                                       "If the disk has grown, resize makes use of it");
        case DiskChange::read_only:
            return log(LOG_ERR, file.path() + " can no longer be written to");
    }
}

// A disk that failed may have lost what its cache held: a process that is started anew in this boot
// has to know. It need not survive more than that, so nothing is flushed.
void ResourceShell::note_failed_disk() {
    if (!disk_ || disk_->paths.copy.empty()) return;
    const bool attached = core_->disk() >= DiskState::inconsistent;
    const bool failed = core_->cache_suspect();
    if (failed == disk_noted_ || (!failed && !attached)) return;
    disk_noted_ = failed;
    const std::string note = failure_note(disk_->paths);
    if (!failed) {
        ::unlink(note.c_str());
        return;
    }
    const int fd = ::open(note.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return log(LOG_ERR, note + ": " + std::strerror(errno));
    ::close(fd);
}

// The core has let go of the disk, after a detach or a failure: others may have it.
void ResourceShell::close_dead_disk() {
    if (!disk_ || core_->disk() != DiskState::diskless) return;
    if (!data_->idle() || !metadata_->idle() || !view_.idle()) return;
    for (DiskWatch& watch : disk_watches_) {
        if (watch.monitor != nullptr) watch.monitor->stop(watch);
    }
    data_.reset();
    view_.detach();
    metadata_.reset();
    disk_.reset();
    for (const Done& done : std::exchange(detach_done_, {}))
        done(ok_status());
}

void ResourceShell::wait_detached(Done done) {
    if (!disk_) return done(ok_status());
    detach_done_.push_back(std::move(done));
}

// ---- a disk that grows --------------------------------------------------------------------------

Result<AttachedDisk> ResourceShell::attached_disk() const {
    if (!disk_ || core_->disk() < DiskState::inconsistent) {
        return Error{Errc::state, 0, config_.name + " has no disk attached"};
    }
    if (core_->metadata_is_held()) {
        return Error{Errc::busy, 0, config_.name + " has its metadata moved already"};
    }
    // It may take another volume at any moment, and with it what would be zeroed.
    if (uuid_identity(core_->superblock().current_uuid) == uuid_just_created) {
        return Error{Errc::state, 0,
                     config_.name +
                         " holds nothing yet: create it anew, with the size that it "
                         "shall have, or promote it first"};
    }
    AttachedDisk disk;
    disk.path = disk_->metadata().path();
    disk.data = OwnedFd(::fcntl(disk_->data->fd(), F_DUPFD_CLOEXEC, 0));
    if (disk_->external)
        disk.external = OwnedFd(::fcntl(disk_->external->fd(), F_DUPFD_CLOEXEC, 0));
    if (disk.data.get() < 0 || (disk_->external && disk.external.get() < 0)) {
        return Error{Errc::io, errno, disk.path + ": " + std::strerror(errno)};
    }
    disk.layout = disk_->layout;
    disk.superblock = core_->superblock();
    disk.volume_bytes = core_->volume_bytes();
    disk.zeroed_bytes = std::min(std::max(disk.volume_bytes, disk.superblock.extension.ready_bytes),
                                 disk.layout.data_bytes_max);
    return disk;
}

void ResourceShell::metadata_moved(const GrowthPlan& plan, Done done) {
    if (!disk_ || core_->disk() < DiskState::inconsistent) {
        return done(Error{Errc::state, 0, config_.name + " has lost its disk"});
    }
    disk_->layout = plan.layout;
    metadata_->move_to(plan.layout);
    const std::uint32_t token = token_next_++;
    waiting_.push_back({token, std::move(done)});
    step([&](Core& core) {
        core.on_metadata_moved(now(), token, plan.placed, plan.layout.data_bytes_max);
    });
    run_completions();
}

void ResourceShell::room_made(std::uint64_t bytes) {
    step([&](Core& core) { core.on_room(now(), bytes); });
    run_completions();
}

ResizeResult ResourceShell::sizes() const {
    ResizeResult sizes;
    sizes.size_bytes = core_->volume_bytes();
    sizes.room_bytes = core_->room();
    for (NodeId id = 0; id < nodes_max; ++id) {
        if (!peers_[id]) continue;
        const PeerView view = core_->view(id);
        const std::uint64_t room = std::max(view.size_bytes, view.room_bytes);
        const bool disk = view.disk >= DiskState::inconsistent && view.disk != DiskState::unknown;
        const bool connected =
            view.connection == ConnectionState::connected && view.size_bytes > 0 && disk;
        if (!connected || room < sizes.room_bytes)
            sizes.waits_for.push_back({peers_[id]->name, connected, connected ? room : 0});
    }
    return sizes;
}

// ---- coming to rest -----------------------------------------------------------------------------

void ResourceShell::wait_quiet(Done done) {
    quiet_done_ = std::move(done);  // who asked before has given up: a disk hung
    reactor_.defer(turn_);
}

void ResourceShell::maybe_quiet() {
    if (!quiet_done_ || disk_ || snapshot_.busy() || !accepted_.empty() || !doors_.empty() ||
        any_device())
        return;
    for (const auto& state : peers_) {
        if (state && !state->link->quiet()) return;
    }
    for (const Waiting& command : std::exchange(waiting_, {})) {
        command.done(Error{Errc::cancelled, 0, config_.name + " went down meanwhile"});
    }
    const Done done = std::exchange(quiet_done_, nullptr);
    done(ok_status());
}

bool ResourceShell::removable() const {
    if (disk_ || snapshot_.busy() || !accepted_.empty() || !doors_.empty() || any_device() ||
        turn_.queued || !view_.idle() || queue_ != nullptr || !completions_.empty()) {
        return false;
    }
    for (const auto& state : peers_) {
        if (state && !state->link->quiet()) return false;
    }
    return !local_door_ || local_stopped_;
}

}  // namespace replica
