// SPDX-License-Identifier: Apache-2.0
// See patient_nbd.hpp.
#include "engine/node/patient_nbd.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "engine/base/text.hpp"
#include "engine/io/patient_thread.hpp"

namespace replica {
namespace {

// The kernel looks at the numbers when it gets to the call, which may be late.
class Sockets {
  public:
    static Result<std::shared_ptr<Sockets>> copy(std::span<const int> sockets) {
        auto self = std::make_shared<Sockets>();
        for (const int socket : sockets) {
            const int fd = ::fcntl(socket, F_DUPFD_CLOEXEC, 0);
            if (fd < 0) {
                return Error{Errc::limit, errno,
                             text_of("no descriptor for nbd: %s", std::strerror(errno))};
            }
            self->fds_.push_back(fd);
        }
        return self;
    }
    Sockets() = default;
    ~Sockets() {
        for (const int fd : fds_)
            ::close(fd);
    }
    Sockets(const Sockets&) = delete;
    Sockets& operator=(const Sockets&) = delete;
    std::span<const int> all() const { return fds_; }

  private:
    std::vector<int> fds_;
};

class PatientNbd final : public NbdControl {
  public:
    PatientNbd(std::unique_ptr<PatientThread> thread, std::chrono::milliseconds limit)
        : thread_(std::move(thread)), limit_(limit) {}
    Status begin(const std::function<Result<std::unique_ptr<NbdControl>>()>& open) {
        return wait("asking for the kernel's nbd", [open, kernel = kernel_]() -> Status {
            TRY(*kernel, open());
            return ok_status();
        });
    }

    Result<int> connect(const NbdDeviceConfig& config, std::span<const int> sockets) override {
        TRY(const auto copies, Sockets::copy(sockets));
        return ask<int>("connecting a device", [config, copies](NbdControl& kernel) {
            return kernel.connect(config, copies->all());
        });
    }
    Status reconfigure(int index, const NbdDeviceChange& change,
                       std::span<const int> sockets) override {
        TRY(const auto copies, Sockets::copy(sockets));
        return tell("changing a device", [index, change, copies](NbdControl& kernel) {
            return kernel.reconfigure(index, change, copies->all());
        });
    }
    Status disconnect(int index) override {
        return tell("disconnecting a device",
                    [index](NbdControl& kernel) { return kernel.disconnect(index); });
    }
    Result<std::vector<NbdDeviceState>> status() override {
        return ask<std::vector<NbdDeviceState>>("listing devices",
                                                [](NbdControl& kernel) { return kernel.status(); });
    }
    // A file of /sys, which waits for nobody.
    Result<std::string> backend_of(int index) override { return (*kernel_)->backend_of(index); }

  private:
    Status wait(const char* what, std::function<Status()> job) {
        Status done = thread_->run(std::move(job), limit_);
        if (done || done.error().code != Errc::timeout) return done;
        return Error{
            Errc::timeout, ETIMEDOUT,
            text_of("%s: the kernel's nbd does not answer in %lld s, as a request to one of "
                    "the machine's nbd devices does not end: look for a disk, a peer or an "
                    "nbd server that hangs; it goes on when that does",
                    what, static_cast<long long>(limit_.count() / 1000))};
    }
    Status tell(const char* what, std::function<Status(NbdControl&)> call) {
        return wait(what, [call = std::move(call), kernel = kernel_] { return call(**kernel); });
    }
    template <class T>
    Result<T> ask(const char* what, std::function<Result<T>(NbdControl&)> call) {
        const auto value = std::make_shared<std::optional<T>>();  // the job may be left behind
        TRY_STATUS(tell(what, [call = std::move(call), value](NbdControl& kernel) -> Status {
            TRY(auto got, call(kernel));
            value->emplace(std::move(got));
            return ok_status();
        }));
        return std::move(**value);
    }

    const std::unique_ptr<PatientThread> thread_;
    const std::chrono::milliseconds limit_;
    // Used on the thread, which may outlive this.
    const std::shared_ptr<std::unique_ptr<NbdControl>> kernel_ =
        std::make_shared<std::unique_ptr<NbdControl>>();
};

}  // namespace

Result<std::unique_ptr<NbdControl>> open_patient_nbd(
    const std::function<Result<std::unique_ptr<NbdControl>>()>& open,
    std::chrono::milliseconds limit) {
    constexpr std::chrono::milliseconds grace{5000};
    TRY(auto thread, PatientThread::start("the kernel's nbd", std::min(limit, grace)));
    auto self = std::make_unique<PatientNbd>(std::move(thread), limit);
    TRY_STATUS(self->begin(open));
    return std::unique_ptr<NbdControl>(std::move(self));
}

}  // namespace replica
