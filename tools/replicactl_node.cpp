// SPDX-License-Identifier: Apache-2.0
// See replicactl_node.hpp.
#include "tools/replicactl_node.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <thread>

#include "control/fd.hpp"

namespace replica::replicactl {

using control::Client;
using control::Json;
using control::Refused;

std::string absolute_path(const std::string& path) {
    return path.empty() ? path : std::filesystem::absolute(path).lexically_normal().string();
}

std::unique_ptr<Client> reach(const std::string& control_path) {
    auto client = Client::connect(absolute_path(control_path), view_limit_ms);
    if (client) return std::move(client).value();
    const Error& error = client.error();
    if (error.code == Errc::permission || error.code == Errc::timeout) throw Refused(error);
    throw Unreachable(error.message);
}

Json ask(Client& client, const std::string& method, const Json& params, int limit_ms) {
    auto result = client.call(method, params, limit_ms);
    if (!result) throw Refused(result.error());
    return std::move(result).value();
}

namespace {

using Clock = std::chrono::steady_clock;

// The process behind a control socket, which execve() does not change. If it can not be seen, as
// from another container, it seems to live.
class NodeProcess {
  public:
    explicit NodeProcess(const Client& client) {
        const int pid = client.node_pid();
        if (pid > 0) fd_ = control::Fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
    }
    bool ended() const {
        pollfd polled{fd_.get(), POLLIN, 0};
        return fd_ && ::poll(&polled, 1, 0) == 1;
    }

  private:
    control::Fd fd_;
};

// What the node says of the upgrade; null: nobody answers yet, or it has not happened.
Json report_of(const UpgradeOrder& order, const Json& begun) {
    auto client = Client::connect(absolute_path(order.control_path), view_limit_ms);
    if (!client) return nullptr;
    auto info = client.value()->call("node.info", Json::object(), view_limit_ms);
    if (!info) return nullptr;
    if (begun.contains("pid") && info.value()["pid"] != begun["pid"]) {
        throw Refused(Error{Errc::cancelled, 0,
                            fmt::format("the daemon ended in the upgrade, and another one was "
                                        "started (process {}, version {}): see its log",
                                        info.value()["pid"].get<int>(),
                                        info.value()["version"].get<std::string>())});
    }
    if (!info.value().contains("upgrade")) return nullptr;
    Json report = info.value()["upgrade"];
    if (report["id"] != begun["id"]) return nullptr;
    report["to"] = info.value()["version"];
    return report;
}

bool all_have(const Json& doors, const char* what) {
    return std::all_of(doors.begin(), doors.end(),
                       [what](const Json& door) { return door[what] > 0; });
}

Json follow(const UpgradeOrder& order, const Json& begun, const NodeProcess& process,
            Clock::time_point end) {
    auto idle_end = Clock::time_point::max();
    for (;;) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        const bool ended = process.ended();
        const Json report = report_of(order, begun);
        const bool there = !report.is_null();
        if (!there && ended) {
            throw Unreachable(
                "the daemon ended in the upgrade: see its log; start it again (systemctl start "
                "replicad), block devices wait for it");
        }
        if (there && report["error"] != "") {
            throw Refused(Error{static_cast<Errc>(report.value("errc", 1)), 0,
                                report["error"].get<std::string>()});
        }
        const bool adopted = there && all_have(report["doors"], "adopted-ms");
        if (adopted && idle_end == Clock::time_point::max()) {
            idle_end = Clock::now() + std::chrono::seconds(1);
        }
        if (adopted && (all_have(report["doors"], "pause-ms") || Clock::now() >= idle_end)) {
            return report;
        }
        if (Clock::now() < end) continue;
        throw Refused(Error{Errc::timeout, 0,
                            there ? "the new program runs, but a block device waits: see the status"
                                  : "the new program does not answer: see the log"});
    }
}

}  // namespace

// What was not asked for is not sent: the node may be of a version that does not know it.
Json upgrade(const UpgradeOrder& order) {
    const std::chrono::milliseconds limit(order.timeout_ms > 0 ? order.timeout_ms : 120'000);
    const auto end = Clock::now() + limit;
    Json params = {{"force", order.force}};
    if (order.timeout_ms > 0) params["timeout-ms"] = order.timeout_ms;
    if (!order.program.empty()) params["program"] = absolute_path(order.program);
    auto client = reach(order.control_path);
    const NodeProcess process(*client);
    const Json begun =
        ask(*client, "node.upgrade", params, static_cast<int>(limit.count()) + view_limit_ms);
    client.reset();
    return follow(order, begun, process, end);
}

}  // namespace replica::replicactl
