// SPDX-License-Identifier: Apache-2.0
// The daemon: one node, its stored configuration and its control socket, until a signal says stop.
// It stays in the foreground and logs to standard error; systemd or a script does the rest. Told
// nothing, it listens nowhere but on its Unix socket. Options and exit codes: man/replicad.8.
#include <fmt/format.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <syslog.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "control/protocol.hpp"
#include "control/server.hpp"
#include "control/service.hpp"
#include "engine/node.hpp"
#include "tools/command_line.hpp"
#include "tools/replicad_upgrade.hpp"
#include "tools/standard_streams.hpp"

namespace {

using namespace replica;

constexpr int exit_usage = 64;
// From a thread of the control socket to the main one.
constexpr int upgrade_signal = SIGUSR2;

struct Options {
    std::string name;
    std::string state = control::default_state_dir;
    std::string control = control::default_control_path;
    std::string listen;
    unsigned reactors = 1;
    std::string log_level = "info";
    bool lock_memory = true;
};

// Lines go to standard error; under systemd with the priority prefix that journald understands.
class Log {
  public:
    explicit Log(const std::string& level)
        : logger_(spdlog::stderr_logger_mt("replicad")),
          journal_(std::getenv("JOURNAL_STREAM") != nullptr) {
        logger_->set_pattern(journal_ ? "%v" : "%Y-%m-%dT%H:%M:%S.%f %L %v");
        logger_->set_level(spdlog::level::from_str(level));
        logger_->flush_on(spdlog::level::debug);
    }
    void operator()(int priority, const std::string& line) const {
        logger_->log(level_of(priority), "{}{}",
                     journal_ ? fmt::format("<{}>", priority) : std::string(), line);
    }

  private:
    static spdlog::level::level_enum level_of(int priority) {
        if (priority <= LOG_CRIT) return spdlog::level::critical;
        if (priority == LOG_ERR) return spdlog::level::err;
        if (priority == LOG_WARNING) return spdlog::level::warn;
        return priority == LOG_DEBUG ? spdlog::level::debug : spdlog::level::info;
    }

    std::shared_ptr<spdlog::logger> logger_;
    bool journal_;
};

// systemd's readiness protocol: a datagram to the socket named in the environment, if there is one.
void notify_manager(const std::string& state) {
    const char* const path = std::getenv("NOTIFY_SOCKET");
    sockaddr_un address{};
    if (path == nullptr || (path[0] != '/' && path[0] != '@')) return;
    const std::size_t length = std::strlen(path);
    if (length < 2 || length >= sizeof address.sun_path) return;
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path, length);
    if (path[0] == '@') address.sun_path[0] = '\0';  // an abstract socket
    const int fd = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return;
    (void)!::sendto(fd, state.data(), state.size(), MSG_NOSIGNAL,
                    reinterpret_cast<const sockaddr*>(&address),
                    static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length));
    ::close(fd);
}

std::string host_name() {
    char buffer[256] = {};
    ::gethostname(buffer, sizeof buffer - 1);
    const std::string name(buffer);
    return name.substr(0, name.find('.'));
}

// Blocks the signals that stop the daemon in this and in every later thread.
sigset_t block_signals() {
    sigset_t set;
    sigemptyset(&set);
    for (const int signal : {SIGTERM, SIGINT, SIGHUP, upgrade_signal})
        sigaddset(&set, signal);
    pthread_sigmask(SIG_BLOCK, &set, nullptr);
    // What waits since before the exec was meant for the program before.
    sigset_t upgrade;
    sigemptyset(&upgrade);
    sigaddset(&upgrade, upgrade_signal);
    const timespec at_once{};
    sigtimedwait(&upgrade, nullptr, &at_once);
    struct sigaction ignore {};
    ignore.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &ignore, nullptr);
    return set;
}

// Tries again what could not be brought up, as long as it lives and something is left.
class LateStarts {
  public:
    explicit LateStarts(control::Service& service)
        : service_(service), thread_([this] { run(); }) {}
    LateStarts(const LateStarts&) = delete;
    LateStarts& operator=(const LateStarts&) = delete;
    ~LateStarts() {
        {
            const std::lock_guard lock(mutex_);
            stop_ = true;
        }
        stopped_.notify_all();
        thread_.join();
    }

  private:
    void run() {
        std::unique_lock lock(mutex_);
        for (bool rest = true; rest;) {
            if (stopped_.wait_for(lock, std::chrono::seconds(1), [this] { return stop_.load(); }))
                return;
            lock.unlock();
            rest = service_.bring_up_rest([this] { return !stop_; });
            lock.lock();
        }
    }

    control::Service& service_;
    std::mutex mutex_;
    std::condition_variable stopped_;
    std::atomic<bool> stop_{false};
    std::thread thread_;
};

// True: to become the program that was chosen; false: to stop.
bool wait_for_stop(const sigset_t& set, const Log& log, tools::Upgrader& upgrader) {
    int signal = 0;
    while (signal != SIGTERM && signal != SIGINT) {
        siginfo_t info{};
        signal = sigwaitinfo(&set, &info);
        if (signal == SIGHUP) log(LOG_INFO, "SIGHUP: there is nothing to reload");
        if (signal != upgrade_signal) continue;
        if (upgrader.chosen()) return true;
        log(LOG_WARNING, fmt::format("SIGUSR2 from uid {} pid {} is ignored: an upgrade is asked "
                                     "for by replicactl",
                                     info.si_uid, info.si_pid));
    }
    log(LOG_INFO, fmt::format("{}: bringing everything down", strsignal(signal)));
    notify_manager("STOPPING=1");
    // From here a second SIGTERM or SIGINT ends the process at once, as a crash would: safe, but
    // what is active in the activity log is resynced at the next start.
    sigset_t again = set;
    sigdelset(&again, SIGHUP);
    sigdelset(&again, upgrade_signal);
    pthread_sigmask(SIG_UNBLOCK, &again, nullptr);
    return false;
}

Status check(const Options& options) {
    TRY_STATUS(control::check_name("node", options.name));
    TRY_STATUS(control::check_path("--state", options.state));
    TRY_STATUS(control::check_path("--control", options.control));
    if (!options.listen.empty()) {
        TRY_STATUS(control::check_address("--listen", options.listen));
    }
    return ok_status();
}

// Returns if the upgrade came to nothing, and all is as before.
void upgrade(Node& node, control::Service& service, tools::Upgrader& upgrader, const Log& log) {
    const auto request = upgrader.chosen();
    const auto left = node.hand_over(request->force);
    if (!left) {
        const Error& error = left.error();
        log(LOG_ERR, fmt::format("no upgrade: {}", error.message));
        upgrader.dismiss();
        return service.go_on({request->id, REPLICA_VERSION_TEXT, error.message, {}, error.code});
    }
    for (const std::string& remark : left.value().remarks)
        log(LOG_WARNING, remark);
    log(LOG_INFO, fmt::format("everything is handed over: {} starts", request->program));
    upgrader.become(left.value());
    // Everything is down, and what was held waits for whoever is started next.
    log(LOG_CRIT, fmt::format("no program can be started: {}", std::strerror(errno)));
    std::_Exit(static_cast<int>(Errc::io));
}

Status run(const Options& options, const Log& log, const sigset_t& signals,
           tools::Upgrader& upgrader) {
    if (!upgrader.upgraded().id.empty()) {
        log(LOG_INFO, fmt::format("version {} takes over from {}", REPLICA_VERSION_TEXT,
                                  upgrader.upgraded().from));
    }
    TRY(const auto store, control::ConfigStore::open(options.state));
    NodeOptions node_options;
    node_options.name = options.name;
    node_options.state_dir = options.state;
    node_options.listen = options.listen;
    node_options.reactors = options.reactors;
    node_options.lock_memory = options.lock_memory;
    node_options.log = log;
    node_options.handed = upgrader.handed();
    TRY(auto node, Node::create(node_options));
    const auto choose = [&upgrader](const control::UpgradeRequest& request) {
        auto version = upgrader.choose(request);
        if (version) ::kill(::getpid(), upgrade_signal);
        return version;
    };
    control::Service service(*node, *store,
                             {options.name, options.listen, log, choose, upgrader.upgraded()});
    TRY_STATUS(service.restore());
    control::ServerOptions server_options;
    server_options.path = options.control;
    TRY(auto server, control::Server::start(service, server_options));

    log(LOG_INFO, fmt::format("node {} version {} is ready; control socket {}, listening on {}",
                              options.name, REPLICA_VERSION_TEXT, options.control,
                              options.listen.empty() ? "nothing else" : options.listen));
    notify_manager(fmt::format("READY=1\nSTATUS=node {} is ready", options.name));
    std::optional<LateStarts> late(service);
    while (wait_for_stop(signals, log, upgrader)) {
        late.reset();
        server.reset();
        upgrade(*node, service, upgrader, log);
        TRY(server, control::Server::start(service, server_options));
        late.emplace(service);
    }
    late.reset();
    server.reset();
    node.reset();
    log(LOG_INFO, "everything is down");
    return ok_status();
}

void add_options(CLI::App& app, Options& options) {
    app.set_version_flag("--version", std::string("replicad ") + REPLICA_VERSION_TEXT);
    // The last one counts: a unit file that names the node can be overruled by who appends to it.
    app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    app.add_option("--name", options.name, "name of this node")->default_str(host_name());
    app.add_option("--state", options.state, "state directory")->capture_default_str();
    app.add_option("--control", options.control, "control socket")->capture_default_str();
    app.add_option("--listen", options.listen, "HOST:PORT for peers; without it: nowhere");
    app.add_option("--reactors", options.reactors, "threads that serve resources")
        ->transform(tools::decimal())
        ->check(CLI::Range(1, 64))
        ->capture_default_str();
    app.add_option("--log-level", options.log_level, "debug, info, warning, error")
        ->check(CLI::IsMember({"debug", "info", "warning", "error"}))
        ->capture_default_str();
    app.add_flag("!--no-lock-memory", options.lock_memory, "do not lock memory");
}

}  // namespace

int main(int argc, char** argv) {
    tools::hold_standard_streams();
    tools::Upgrader upgrader(argv);
    Options options;
    options.name = host_name();
    CLI::App app{"replicad: mirrors block volumes between machines"};
    add_options(app, options);
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
        tools::complain(fmt::format("replicad: {}; see replicad --help\n", error.what()));
        return exit_usage;
    }
    try {
        for (auto* const path : {&options.state, &options.control})
            if (!path->empty())
                *path = std::filesystem::absolute(*path).lexically_normal().string();
        const sigset_t signals = block_signals();
        const Log log(options.log_level);
        if (const auto checked = check(options); !checked) {
            log(LOG_ERR, checked.error().message);
            return exit_usage;
        }
        const auto status = run(options, log, signals, upgrader);
        if (status) return 0;
        log(LOG_ERR, status.error().message);
        return static_cast<int>(status.error().code);
    } catch (const std::exception& error) {
        tools::complain(fmt::format("replicad: {}\n", error.what()));
        return static_cast<int>(Errc::limit);
    }
}
