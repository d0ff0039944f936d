// SPDX-License-Identifier: Apache-2.0
// See ublk_export.hpp.
#include "engine/node/ublk_export.hpp"

#include <syslog.h>

#include <utility>

namespace replica {
namespace {

using std::chrono::milliseconds;
constexpr milliseconds somebody_else{20}, soon{100}, later{1000}, idle{3'600'000};
constexpr std::chrono::seconds end_timeout{120};

}  // namespace

UblkExport::UblkExport(const Resource& resource, UblkDeviceOptions options)
    : resource_(resource), options_(std::move(options)) {}

UblkExport::~UblkExport() { leave(); }

// ---- by command ---------------------------------------------------------------------------------

Result<std::string> UblkExport::open() {
    TRY_STATUS(look());
    if (device_ && state_ == State::live) {
        return Error{Errc::exists, 0,
                     options_.resource + " is exported at " + device_->path() + " already"};
    }
    if (device_) {
        return Error{Errc::busy, 0,
                     device_->path() +
                         " of an earlier daemon waits to be adopted: see the status for what it "
                         "waits for, or unexport it"};
    }
    TRY_STATUS(ask([](ResourceShell& shell) { return shell.may_export(); }));
    struct View {
        VolumeInfo info;
        std::uint64_t generation;
    };
    const View view = ask([](ResourceShell& shell) {
        return View{shell.info(), shell.generation()};
    });
    TRY(device_, UblkDevice::create(options_, view.info, view.generation));
    state_ = State::ending;  // unless all goes well
    const Status served = serve();
    if (served) {
        go_live();
        return device_->door();
    }
    const Status dismissed = dismiss(true);
    if (!dismissed) log(LOG_ERR, dismissed.error().message);
    return served.error();
}

// From the opening of the channel on, this process is the one that answers.
Status UblkExport::serve() {
    const VolumeInfo info = ask([](ResourceShell& shell) { return shell.info(); });
    TRY(auto channel, device_->open_channel(info));
    const std::string door = device_->door();
    TRY_STATUS(
        ask([&](ResourceShell& shell) { return shell.open_ublk(std::move(channel), door); }));
    const Status started = device_->start();
    ask([](ResourceShell& shell) {
        shell.ublk_started();
        return true;
    });
    return started;
}

void UblkExport::go_live() {
    state_ = State::live;
    trouble_.clear();
    ask([this](ResourceShell& shell) {
        shell.ublk_waits(0, "");
        shell.tell_generation([this] { wake(); });
        return true;
    });
    wake();
}

Status UblkExport::dismiss(bool force) {
    TRY_STATUS(device_->stop(force));
    state_ = State::ending;
    wake();  // for the case that what follows fails
    TRY_STATUS(resource_.thread.call_async(
        [this](ResourceShell::Done done) {
            resource_.shell->tell_generation(nullptr);
            resource_.shell->wait_ublk_ended(std::move(done));
        },
        end_timeout));
    TRY_STATUS(device_->remove());
    device_.reset();
    state_ = State::none;
    trouble_.clear();
    ask([](ResourceShell& shell) {
        shell.ublk_waits(0, "");
        return true;
    });
    return ok_status();
}

Status UblkExport::close(bool force) {
    if (!device_) return ok_status();
    return dismiss(force || state_ == State::ending);
}

Status UblkExport::close_left(bool force) {
    ASSERT(!device_);
    TRY(auto left, UblkDevice::find(options_));
    if (!left) return Error{Errc::not_found, 0, options_.resource + " has no ublk device"};
    TRY_STATUS(left->stop(force));
    return left->remove();
}

// ---- what an earlier daemon left ----------------------------------------------------------------

bool UblkExport::may_be_left() const {
    return UblkRecordFile(options_.state_dir, options_.resource).exists();
}

void UblkExport::keep_trying(bool wanted) {
    if (wanted_ == wanted) return;
    wanted_ = wanted;
    if (wanted) wake();
}

Status UblkExport::look() {
    if (device_) return ok_status();
    TRY(device_, UblkDevice::find(options_));
    wanted_ = false;
    if (!device_) return ok_status();
    state_ = State::waiting;
    trouble_.clear();
    say(LOG_NOTICE, "until this node is Primary again");
    wake();
    return ok_status();
}

Status UblkExport::before_promotion(bool force) {
    TRY_STATUS(look());
    if (state_ != State::waiting) return ok_status();
    const Lineage lineage = ask([](ResourceShell& shell) { return shell.lineage(); });
    if (lineage == Lineage::good) return ok_status();
    if (lineage == Lineage::stale) return give_up("another node has written since");
    if (force) return give_up("this node is promoted by force, without the data of its users");
    return Error{Errc::state, 0,
                 device_->path() +
                     " of an earlier daemon waits for the data that its users have "
                     "seen: connect the peer that has it"};
}

Status UblkExport::give_up(const std::string& why) {
    const std::string path = device_->path();
    log(LOG_CRIT, path + " is given up, and what waits in it fails: " + why);
    return dismiss(true);
}

// Why the device waits: for the log and the status, once until it is something else.
void UblkExport::say(int level, const std::string& text) {
    if (text == trouble_) return;
    trouble_ = text;
    const std::string line = device_->path() + " of an earlier daemon waits: " + text;
    log(level, line);
    ask([&](ResourceShell& shell) {
        shell.ublk_waits(device_->generation(), line);
        return true;
    });
}

milliseconds UblkExport::adopt() {
    struct View {
        Lineage lineage;
        bool primary, serves;
    };
    const View view = ask([](ResourceShell& shell) {
        return View{shell.lineage(), shell.primary(), shell.serves()};
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
        if (!promoted) say(LOG_NOTICE, promoted.error().message);
        return promoted ? milliseconds(0) : soon;
    }
    if (!view.serves) return somebody_else;
    const Status served = serve();
    if (served) {
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
    if (!ask([](ResourceShell& shell) { return shell.has_ublk(); })) {
        return error.code == Errc::busy ? somebody_else : later;
    }
    // Half of a hand-over can not be repeated.
    const Status given_up = give_up(error.message);
    if (!given_up) log(LOG_ERR, given_up.error().message);
    return later;
}

// An older record is the safe direction: the disk then has to descend from it.
milliseconds UblkExport::note() {
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

void UblkExport::wake() {
    const std::lock_guard lock(keeper_mutex_);
    woken_ = true;
    if (!keeper_.joinable() && !stop_) keeper_ = std::thread([this] { keep(); });
    keeper_wakes_.notify_one();
}

void UblkExport::leave() {
    {
        const std::lock_guard lock(keeper_mutex_);
        stop_ = true;
        keeper_wakes_.notify_one();
    }
    if (keeper_.joinable()) keeper_.join();
}

void UblkExport::keep() {
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

milliseconds UblkExport::turn() {
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
        case State::live:
            return note();
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
