// SPDX-License-Identifier: Apache-2.0
// See ublk_export.hpp.
#include "engine/node/ublk_export.hpp"

#include <syslog.h>

#include <chrono>
#include <utility>

namespace replica {
namespace {

constexpr std::chrono::milliseconds adopt_pause{100};
constexpr std::chrono::seconds end_timeout{120};

}  // namespace

UblkExport::UblkExport(const Resource& resource, UblkDeviceOptions options)
    : resource_(resource), options_(std::move(options)) {}

UblkExport::~UblkExport() { stop_adopting(); }

Result<std::string> UblkExport::open() {
    if (device_) {
        if (!waiting_) {
            return Error{Errc::exists, 0,
                         options_.resource + " is exported at " + device_->path() + " already"};
        }
        return Error{Errc::busy, 0,
                     device_->path() + " of an earlier daemon waits for this node to be Primary"};
    }
    TRY_STATUS(ask([](ResourceShell& shell) { return shell.may_export(); }));
    const VolumeInfo info = ask([](ResourceShell& shell) { return shell.info(); });
    TRY(device_, UblkDevice::create(options_, info));
    const Status served = serve();
    if (served) return device_->door();
    static_cast<void>(dismiss(true));
    return served.error();
}

// From the opening of the channel on, this process is the one that answers.
Status UblkExport::serve() {
    const VolumeInfo info = ask([](ResourceShell& shell) { return shell.info(); });
    TRY(auto channel, device_->open_channel(info));
    const std::string door = device_->door();
    TRY_STATUS(
        ask([&](ResourceShell& shell) { return shell.open_ublk(std::move(channel), door); }));
    return device_->start();
}

Status UblkExport::dismiss(bool force) {
    TRY_STATUS(device_->stop(force));
    TRY_STATUS(resource_.thread.call_async(
        [this](ResourceShell::Done done) { resource_.shell->wait_ublk_ended(std::move(done)); },
        end_timeout));
    const Status removed = device_->remove();
    device_.reset();
    waiting_ = false;
    return removed;
}

Status UblkExport::close(bool waiting_too) {
    if (!device_) return ok_status();
    const bool force = waiting_ && waiting_too;
    if (!force) TRY_STATUS(device_->check_unused());
    stop_adopting();
    return dismiss(force);
}

// ---- what an earlier daemon left ----------------------------------------------------------------

Status UblkExport::look() {
    if (device_) return ok_status();
    stop_adopting();
    TRY(device_, UblkDevice::find(options_));
    if (!device_) return ok_status();
    waiting_ = true;
    trouble_.clear();
    // The generation that counts is the one before anybody else had a say. Noted, because the next
    // daemon may find another one on the disk if this one is killed, too.
    if (device_->generation().empty()) {
        TRY_STATUS(
            device_->note_generation(ask([](ResourceShell& shell) { return shell.generation(); })));
    }
    ask([this](ResourceShell& shell) {
        shell.keep_generation(device_->generation());
        return true;
    });
    log(LOG_NOTICE, options_.resource + ": " + device_->path() +
                        " of an earlier daemon waits until this node is Primary again");
    adopt_later();
    return ok_status();
}

void UblkExport::adopt_later() {
    stop_ = false;
    adopter_ = std::thread([this] {
        for (;; std::this_thread::sleep_for(adopt_pause)) {
            // Whoever changes the resource goes first, and may be waiting for this thread to end.
            const std::unique_lock lock(resource_.changing, std::try_to_lock);
            if (stop_) return;
            if (lock.owns_lock() && try_to_adopt()) return;
        }
    });
}

void UblkExport::stop_adopting() {
    stop_ = true;
    if (adopter_.joinable()) adopter_.join();
}

// True: nothing is left to try.
bool UblkExport::try_to_adopt() {
    const auto say = [this](int level, const std::string& text) {
        if (text != trouble_) log(level, options_.resource + ": " + text);
        trouble_ = text;
    };
    struct View {
        bool primary, good;
    };
    const auto look_at = [](ResourceShell& shell) {
        const bool primary = shell.primary();
        return View{primary, primary ? shell.was_as_kept() : shell.is_as_kept()};
    };
    View view = ask(look_at);
    if (view.good && !view.primary) {
        const Status promoted = resource_.promote();
        if (!promoted) {
            say(LOG_NOTICE,
                device_->path() + " waits for its adoption: " + promoted.error().message);
            return false;
        }
        view = ask(look_at);
    }
    const std::string path = device_->path();
    if (!view.good) {
        log(LOG_CRIT, options_.resource + ": " + path +
                          " is given up, and what waits in it fails: another node has written "
                          "since, and its data would be overwritten by older");
        const Status dismissed = dismiss(true);
        if (!dismissed) log(LOG_ERR, dismissed.error().message);
        return dismissed || !device_;
    }
    Status served =
        device_->note_generation(ask([](ResourceShell& shell) { return shell.generation(); }));
    if (served) served = serve();
    if (!served) {
        say(LOG_ERR, path + " is not adopted: " + served.error().message);
        if (!ask([](ResourceShell& shell) { return shell.has_ublk(); })) return false;
        // Half of a hand-over can not be repeated.
        const Status dismissed = dismiss(true);
        if (!dismissed) log(LOG_ERR, dismissed.error().message);
        return true;
    }
    waiting_ = false;
    log(LOG_NOTICE, options_.resource + ": " + path + " is adopted, and goes on");
    return true;
}

}  // namespace replica
