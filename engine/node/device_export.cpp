// SPDX-License-Identifier: Apache-2.0
// See device_export.hpp.
#include "engine/node/device_export.hpp"

#include <syslog.h>

#include <utility>

#include "engine/base/text.hpp"
#include "engine/node/handover.hpp"

namespace replica {
namespace {

using std::chrono::milliseconds;
constexpr milliseconds somebody_else{20}, soon{50}, later{1000}, idle{3'600'000};
constexpr std::chrono::seconds end_timeout{30};

}  // namespace

DeviceExport::DeviceExport(const Resource& resource, const KernelDeviceOptions& options,
                           DeviceMaker maker)
    : resource_(resource),
      name_(options.resource),
      log_(options.log),
      record_(options.state_dir, maker.kind, options.resource),
      maker_(std::move(maker)) {}

DeviceExport::~DeviceExport() { leave(); }

// ---- by command ---------------------------------------------------------------------------------

Status DeviceExport::open(bool read_only) {
    TRY_STATUS(look());
    if (device_ && state_ == State::live) {
        return Error{Errc::exists, 0, name_ + " is exported at " + device_->path() + " already"};
    }
    if (device_) {
        return Error{Errc::busy, 0,
                     device_->path() +
                         " of an earlier daemon waits to be adopted: see the status for what it "
                         "waits for, or unexport it"};
    }
    TRY_STATUS(ask([read_only](ResourceShell& shell) {
        return read_only ? shell.may_read() : shell.may_export();
    }));
    struct View {
        VolumeInfo info;
        std::uint64_t generation;
    };
    View view = ask([](ResourceShell& shell) { return View{shell.info(), shell.generation()}; });
    view.info.writable = !read_only;
    TRY(device_, maker_.create(view.info, view.generation));
    state_ = State::ending;  // unless all goes well
    const Status served = serve();
    if (served) {
        go_live();
        return ok_status();
    }
    const Status dismissed = dismiss(true);
    if (!dismissed) log(LOG_ERR, dismissed.error().message);
    wake();  // for the case that it was not
    return served.error();
}

// From the opening of the channel on, this process is the one that answers.
Status DeviceExport::serve() {
    VolumeInfo info = ask([](ResourceShell& shell) { return shell.info(); });
    info.writable = !device_->read_only();
    TRY(auto channel, device_->open_channel(info));
    TRY_STATUS(ask([&](ResourceShell& shell) {
        return shell.open_device(
            kind(), *channel, device_->door(), device_->read_only(), [this] { wake(); },
            [this] { answered_ns_ = monotonic_ns(); });
    }));
    const Status started = device_->start();
    ask([this](ResourceShell& shell) {
        shell.device_started(kind());
        return true;
    });
    return started;
}

void DeviceExport::go_live() {
    state_ = State::live;
    trouble_.clear();
    ask([this](ResourceShell& shell) {
        shell.device_waits(kind(), 0, "");
        shell.tell_changes(kind(), [this] { wake(); });
        return true;
    });
    wake();
}

Status DeviceExport::grow(std::uint64_t size_bytes) {
    if (state_ != State::live) return ok_status();
    TRY_STATUS(device_->grow(size_bytes));
    log(LOG_NOTICE, text_of("%s has %llu bytes now", device_->path().c_str(),
                            static_cast<unsigned long long>(size_bytes)));
    return ok_status();
}

// The volume may have grown, by a command to another node, or while nobody served the device. Not
// while the queue is held: the kernel may wait for what is under way before it changes the size.
void DeviceExport::catch_up() {
    const auto facts = device_->facts();
    const std::uint64_t size = ask([](ResourceShell& shell) { return shell.info().size_bytes; });
    if (!facts || facts.value().size_bytes >= size || size == size_tried_) return;
    size_tried_ = size;
    const Status grown = grow(size);
    if (!grown) log(LOG_WARNING, grown.error().message);
    if (resource_.resized) resource_.resized();
}

// By force it is not taken back any more: its users have got errors. Nor is what the driver was
// told and has not done in time.
Status DeviceExport::dismiss(bool force) {
    if (force) {
        ask([this](ResourceShell& shell) {
            shell.cut_off_device(kind());
            return true;
        });
    }
    const Status stopped = device_->stop(force);
    const bool begun = state_ == State::live && (force || device_->is_ending());
    if (stopped || begun) state_ = State::ending;
    if (state_ == State::ending) wake();  // for the case that this or what follows fails
    TRY_STATUS(stopped);
    TRY_STATUS(resource_.thread.call_async(
        [this](ResourceShell::Done done) {
            resource_.shell->tell_changes(kind(), nullptr);
            resource_.shell->wait_device_ended(kind(), std::move(done));
        },
        end_timeout));
    TRY_STATUS(device_->remove());
    device_.reset();
    state_ = State::none;
    trouble_.clear();
    ask([this](ResourceShell& shell) {
        shell.device_waits(kind(), 0, "");
        return true;
    });
    resource_.closed();
    return ok_status();
}

Status DeviceExport::close(bool force) {
    if (!device_) return ok_status();
    return dismiss(force || state_ == State::ending);
}

Status DeviceExport::check_unused() { return device_ ? device_->check_unused() : ok_status(); }

Status DeviceExport::close_left(bool force) {
    ASSERT(!device_);
    TRY(auto left, maker_.find());
    if (!left) {
        return Error{Errc::not_found, 0, name_ + " has no device of " + name_of(kind())};
    }
    TRY_STATUS(left->stop(force));
    return left->remove();
}

// ---- to the next program ------------------------------------------------------------------------

Status DeviceExport::hold(std::chrono::seconds timeout) {
    if (state_ == State::ending) {
        return Error{Errc::busy, 0, device_->path() + " is being stopped: see the status"};
    }
    if (state_ != State::live) return ok_status();
    held_ns_ = monotonic_ns();
    const Status held = resource_.thread.call_async(
        [this](ResourceShell::Done done) { resource_.shell->hold_device(kind(), std::move(done)); },
        timeout);
    if (held) return held;
    resume();
    return Error{Errc::timeout, 0,
                 text_of("%s has requests that do not end in %lld s: see the status for what they "
                         "wait for",
                         device_->path().c_str(), static_cast<long long>(timeout.count()))};
}

void DeviceExport::resume() {
    held_ns_ = 0;
    if (state_ != State::live) return;
    ask([this](ResourceShell& shell) {
        shell.resume_device(kind());
        return true;
    });
}

int DeviceExport::hand_over() {
    leave();
    int socket = -1;
    if (state_ == State::live) {
        static_cast<void>(note());
        socket = ask([this](ResourceShell& shell) { return shell.abandon_device(kind()); });
    }
    if (device_) {
        ask([this](ResourceShell& shell) {
            shell.device_waits(kind(), 0, "");
            return true;
        });
    }
    device_.reset();
    state_ = State::none;
    return socket;
}

std::optional<DeviceExport::Pause> DeviceExport::pause() const {
    const std::uint64_t held = held_ns_, adopted = adopted_ns_, answered = answered_ns_;
    if (held == 0) return {};
    return Pause{adopted == 0 ? 0 : adopted - held, answered == 0 ? 0 : answered - held};
}

// ---- what an earlier daemon left ----------------------------------------------------------------

bool DeviceExport::may_be_left() const { return record_.exists(); }

void DeviceExport::keep_trying(bool wanted) {
    if (wanted_ == wanted) return;
    wanted_ = wanted;
    if (wanted) wake();
}

Status DeviceExport::look() {
    if (device_) return ok_status();
    TRY(device_, maker_.find());
    wanted_ = false;
    if (!device_) return ok_status();
    state_ = State::waiting;
    trouble_.clear();
    say(LOG_NOTICE,
        device_->read_only() ? "until this disk is UpToDate" : "until this node is Primary again");
    wake();
    return ok_status();
}

Status DeviceExport::before_promotion(bool force) {
    TRY_STATUS(look());
    if (state_ != State::waiting || device_->read_only()) return ok_status();
    const Lineage lineage = ask([this](ResourceShell& shell) { return shell.lineage(kind()); });
    if (lineage == Lineage::good) return ok_status();
    if (lineage == Lineage::stale) return give_up("another node has written since");
    if (force) return give_up("this node is promoted by force, without the data of its users");
    return Error{Errc::state, 0,
                 device_->path() +
                     " of an earlier daemon waits for the data that its users have "
                     "seen: connect the peer that has it"};
}

Status DeviceExport::give_up(const std::string& why) {
    const std::string path = device_->path();
    log(LOG_CRIT, path + " is given up, and what waits in it fails: " + why);
    return dismiss(true);
}

// Why the device waits: for the log and the status, once until it is something else.
void DeviceExport::say(int level, const std::string& text) {
    if (text == trouble_) return;
    trouble_ = text;
    const std::string line = device_->path() + " of an earlier daemon waits: " + text;
    log(level, line);
    ask([&](ResourceShell& shell) {
        shell.device_waits(kind(), device_->read_only() ? 0 : device_->generation(), line);
        return true;
    });
}

milliseconds DeviceExport::adopt() {
    if (device_->read_only()) return adopt_reader();
    struct View {
        Lineage lineage;
        bool primary, serves;
    };
    const View view = ask([this](ResourceShell& shell) {
        return View{shell.lineage(kind()), shell.primary(), shell.serves()};
    });
    const bool missing = view.lineage == Lineage::behind;
    if (view.lineage == Lineage::stale || (view.primary && missing)) {
        const Status given_up =
            give_up(missing ? "this node is Primary without the data of its users"
                            : "another node has written since, and its data would be overwritten "
                              "by older");
        if (!given_up) say(LOG_ERR, given_up.error().message);
        return later;
    }
    if (missing) {
        say(LOG_NOTICE, "this disk lacks data that its users have seen, which a peer has");
        return soon;
    }
    if (!view.primary) {
        const Status promoted = resource_.promote();
        if (state_ != State::waiting) return idle;  // given up: another node has just written
        if (!promoted) say(LOG_NOTICE, promoted.error().message);
        return promoted ? milliseconds(0) : soon;
    }
    if (!view.serves) return somebody_else;
    return take_on();
}

// Reads may be repeated at any time, and nobody has to be Primary for them.
milliseconds DeviceExport::adopt_reader() {
    const Status may = ask([](ResourceShell& shell) { return shell.may_read(); });
    if (may) return take_on();
    say(LOG_NOTICE, may.error().message);
    return soon;
}

milliseconds DeviceExport::take_on() {
    const Status served = serve();
    if (served) {
        adopted_ns_ = monotonic_ns();
        log(LOG_NOTICE, device_->path() + " of an earlier daemon is adopted, and goes on");
        go_live();
        return milliseconds(0);
    }
    const Error& error = served.error();
    if (error.code == Errc::corrupt) {
        const Status given_up = give_up(error.message);
        if (!given_up) say(LOG_ERR, given_up.error().message);
        return later;
    }
    say(error.code == Errc::busy ? LOG_NOTICE : LOG_ERR, error.message);
    if (!ask([this](ResourceShell& shell) { return shell.has_device(kind()); })) {
        return error.code == Errc::busy ? somebody_else : later;
    }
    // Half of a hand-over can not be repeated.
    const Status given_up = give_up(error.message);
    if (!given_up) log(LOG_ERR, given_up.error().message);
    return later;
}

// Its driver waits for another server while this process goes on: a socket broke. What was asked
// for by the old one has ended, and nobody else can have written meanwhile.
milliseconds DeviceExport::serve_again() {
    const Status served = serve();
    if (served) {
        log(LOG_WARNING, device_->path() + " had lost its connection, and is served again");
        return milliseconds(0);
    }
    if (trouble_ != served.error().message) log(LOG_ERR, served.error().message);
    trouble_ = served.error().message;
    return later;
}

// An older record is the safe direction: the disk then has to descend from it.
milliseconds DeviceExport::note() {
    const std::uint64_t now = ask([](ResourceShell& shell) { return shell.generation(); });
    const Status noted = device_->note_generation(now);
    if (noted) {
        trouble_.clear();
        return idle;
    }
    if (trouble_ != noted.error().message) log(LOG_WARNING, noted.error().message);
    trouble_ = noted.error().message;
    return later;
}

// ---- the keeper ---------------------------------------------------------------------------------

void DeviceExport::wake() {
    const std::lock_guard lock(keeper_mutex_);
    woken_ = true;
    if (!keeper_.joinable() && !stop_) keeper_ = std::thread([this] { keep(); });
    keeper_wakes_.notify_one();
}

void DeviceExport::leave() {
    {
        const std::lock_guard lock(keeper_mutex_);
        stop_ = true;
        keeper_wakes_.notify_one();
    }
    if (keeper_.joinable()) keeper_.join();
}

void DeviceExport::keep() {
    milliseconds pause = idle;
    std::unique_lock lock(keeper_mutex_);
    for (;;) {
        keeper_wakes_.wait_for(lock, pause, [this] { return woken_ || stop_; });
        if (stop_) return;
        woken_ = false;
        lock.unlock();
        {
            // Whoever changes the resource goes first, and may be waiting for this thread to end.
            const std::unique_lock changing(resource_.changing, std::try_to_lock);
            pause = changing.owns_lock() ? turn() : somebody_else;
        }
        lock.lock();
    }
}

milliseconds DeviceExport::turn() {
    switch (state_) {
        case State::none: {
            if (!wanted_) return idle;
            const Status up = resource_.bring_up();
            if (!up && up.error().message != trouble_) {
                trouble_ = up.error().message;
                log(LOG_ERR, "is tried again, as a block device may wait for it: " + trouble_);
            }
            return up ? milliseconds(0) : later;
        }
        case State::waiting:
            return adopt();
        case State::live: {
            const bool served =
                ask([this](ResourceShell& shell) { return shell.has_device(kind()); });
            if (!served) return serve_again();
            catch_up();
            return note();
        }
        case State::ending: {
            const Status dismissed = dismiss(true);
            if (dismissed || dismissed.error().message == trouble_) return later;
            trouble_ = dismissed.error().message;
            log(LOG_ERR, trouble_);
            return later;
        }
    }
    return idle;
}

}  // namespace replica
