// SPDX-License-Identifier: Apache-2.0
// See node_child.hpp.
#include "tests/integration/node_child.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <sstream>
#include <thread>
#include <vector>

#include "engine/base/endian.hpp"
#include "engine/base/prng.hpp"
#include "tests/catch.hpp"
#include "tests/integration/io_support.hpp"

namespace replica::test {
namespace {

constexpr std::size_t block_size = 4096;
const std::string name = "r0";

// A block says which version it is, and the rest follows from that.
void fill_block(std::span<std::byte> block, std::uint32_t index, std::uint64_t version) {
    fill_pattern(block, version * 0x9e3779b97f4a7c15U + index);
    store_le<std::uint64_t>(block.data(), version);
}

// The part of NodeChild on the other side of fork().
class Child {
  public:
    Child(const NodeOptions& options, const ResourceConfig& config, Ledger& ledger)
        : options_(options), config_(config), ledger_(ledger) {}

    [[noreturn]] void run(int socket) {
        auto node = Node::create(options_);
        if (node) node_ = std::move(node).value();
        FILE* const in = fdopen(socket, "r");
        char line[256];
        while (fgets(line, sizeof line, in) != nullptr) {
            std::string answer = node_ ? handle(line) : node.error().message;
            answer += '\n';
            [[maybe_unused]] const auto sent = ::send(socket, answer.data(), answer.size(), 0);
        }
        stop_load();
        node_.reset();
        _exit(0);
    }

  private:
    static std::string text_of_status(const Status& status) {
        return status ? "ok" : status.error().message;
    }

    std::string handle(const std::string& line) {
        std::istringstream words(line);
        std::string command;
        std::uint64_t a = 0, b = 0;
        words >> command >> a >> b;
        if (command == "create") return text_of_status(node_->create_resource(config_, {}));
        if (command == "add") return text_of_status(node_->add_resource(config_));
        if (command == "up") return text_of_status(node_->up(name));
        if (command == "down") return text_of_status(node_->down(name));
        if (command == "promote") return text_of_status(node_->promote(name, false));
        if (command == "promote-force") return text_of_status(node_->promote(name, true));
        if (command == "demote") return text_of_status(node_->demote(name));
        if (command == "connect") return text_of_status(node_->connect(name, "", false));
        if (command == "disconnect") return text_of_status(node_->disconnect(name, ""));
        if (command == "write") return write(static_cast<std::uint32_t>(a), b);
        if (command == "verify") return verify();
        if (command == "status") return status();
        if (command == "load") return start_load();
        if (command == "stop") return stop_load();
        return "unknown command";
    }

    Status write_block(std::uint32_t index, std::uint32_t count, std::uint64_t version) {
        std::vector<std::byte> bytes(count * block_size);
        for (std::uint32_t i = 0; i < count; ++i) {
            ledger_.issued(index + i) = version;
            fill_block(std::span(bytes).subspan(i * block_size, block_size), index + i, version);
        }
        const Status status = node_->write(name, index * std::uint64_t{block_size}, bytes, false);
        for (std::uint32_t i = 0; status && i < count; ++i)
            ledger_.acked(index + i) = version;
        if (status) ledger_.writes() += count;
        return status;
    }

    std::string write(std::uint32_t index, std::uint64_t count) {
        for (std::uint64_t i = 0; i < count; ++i, ++index) {
            const auto status = write_block(index, 1, ledger_.issued(index) + 1);
            if (!status) return status.error().message;
        }
        return "ok";
    }

    // Each thread has its own blocks, so that there is one writer of a block at a time.
    std::string start_load() {
        loading_ = true;
        failure_.clear();
        for (std::uint32_t t = 0; t < threads_; ++t) {
            workers_.emplace_back([this, t] {
                Prng prng(options_.name.size() + t + ledger_.writes());
                const std::uint32_t share = ledger_.blocks() / threads_;
                while (loading_) {
                    const auto count = static_cast<std::uint32_t>(1 + prng.below(4));
                    const auto at = static_cast<std::uint32_t>(prng.below(share - count));
                    std::uint64_t version = 0;
                    for (std::uint32_t i = 0; i < count; ++i) {
                        version =
                            std::max<std::uint64_t>(version, ledger_.issued(t * share + at + i));
                    }
                    const auto status = write_block(t * share + at, count, version + 1);
                    if (status) continue;
                    const std::lock_guard lock(mutex_);
                    failure_ = status.error().message;
                    return;
                }
            });
        }
        return "ok";
    }

    std::string stop_load() {
        loading_ = false;
        for (std::thread& worker : workers_)
            worker.join();
        workers_.clear();
        if (!node_) return "ok";
        if (!failure_.empty()) return failure_;
        return text_of_status(node_->flush(name));
    }

    std::string verify() {
        std::vector<std::byte> bytes(256 * block_size);
        std::array<std::byte, block_size> expected;
        for (std::uint32_t at = 0; at < ledger_.blocks(); at += 256) {
            const auto status = node_->read(name, at * std::uint64_t{block_size}, bytes);
            if (!status) return status.error().message;
            for (std::uint32_t i = 0; i < 256 && at + i < ledger_.blocks(); ++i) {
                const auto block = std::span(bytes).subspan(i * block_size, block_size);
                const auto version = load_le<std::uint64_t>(block.data());
                const std::string where = "block " + std::to_string(at + i) + " has version " +
                                          std::to_string(version) + ", acknowledged is " +
                                          std::to_string(ledger_.acked(at + i)) + ", issued " +
                                          std::to_string(ledger_.issued(at + i));
                if (version < ledger_.acked(at + i) || version > ledger_.issued(at + i)) {
                    return where;
                }
                fill_block(expected, at + i, version);
                const bool same = version == 0
                                      ? std::all_of(block.begin(), block.end(),
                                                    [](std::byte x) { return x == std::byte{0}; })
                                      : std::equal(block.begin(), block.end(), expected.begin());
                if (!same) return where + ", and its bytes are not of that version";
            }
        }
        return "ok";
    }

    std::string status() {
        const auto result = node_->status(name);
        if (!result) return result.error().message;
        const ResourceStatus& s = result.value();
        const PeerStatus& p = s.peers.at(0);
        std::ostringstream text;
        text << "ok\trole=" << s.role << "\tdisk=" << s.disk << "\tsize=" << s.size_bytes
             << "\tconnection=" << p.connection << "\tpeer-disk=" << p.disk
             << "\treplication=" << p.replication << "\tout-of-sync=" << p.out_of_sync_bytes
             << "\tresync-sent=" << p.resync_sent_bytes
             << "\tresync-received=" << p.resync_received_bytes << "\tsent=" << p.sent_bytes
             << "\twhy=" << s.why << ' ' << p.why;
        return text.str();
    }

    static constexpr std::uint32_t threads_ = 4;
    NodeOptions options_;
    ResourceConfig config_;
    Ledger& ledger_;
    std::unique_ptr<Node> node_;
    std::vector<std::thread> workers_;
    std::atomic<bool> loading_ = false;
    std::mutex mutex_;
    std::string failure_;
};

}  // namespace

Ledger::Ledger(std::uint32_t blocks) : blocks_(blocks) {
    void* const memory = mmap(nullptr, (blocks + 1) * sizeof(Cell), PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(memory != MAP_FAILED);
    cells_ = static_cast<Cell*>(memory);
}
Ledger::~Ledger() { munmap(cells_, (blocks_ + 1) * sizeof(Cell)); }

NodeChild::NodeChild(const NodeOptions& options, const ResourceConfig& config, Ledger& ledger)
    : disk_(config.disk) {
    int ends[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    std::fflush(nullptr);
    pid_ = fork();
    REQUIRE(pid_ >= 0);
    if (pid_ == 0) {
        ::close(ends[0]);
        Child(options, config, ledger).run(ends[1]);
    }
    ::close(ends[1]);
    socket_ = ends[0];
}

NodeChild::~NodeChild() {
    if (running()) kill();
}

std::string NodeChild::call(const std::string& command) {
    const std::string line = command + "\n";
    if (::send(socket_, line.data(), line.size(), MSG_NOSIGNAL) < 0) return "the child is gone";
    std::string answer;
    char c = 0;
    while (::recv(socket_, &c, 1, 0) == 1 && c != '\n')
        answer += c;
    return c == '\n' ? answer : "the child is gone";
}

void NodeChild::must(const std::string& command) {
    const std::string answer = call(command);
    INFO(command);
    REQUIRE(answer == "ok");
}

std::map<std::string, std::string> NodeChild::status() {
    std::map<std::string, std::string> fields;
    std::istringstream text(call("status"));
    for (std::string field; std::getline(text, field, '\t');) {
        const auto equals = field.find('=');
        if (equals != std::string::npos) {
            fields[field.substr(0, equals)] = field.substr(equals + 1);
        }
    }
    return fields;
}

void NodeChild::signal(int number) { REQUIRE(::kill(pid_, number) == 0); }

void NodeChild::kill() {
    ::kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    ::close(socket_);
    pid_ = -1;
    // What was in its io_uring ends after the process, on a busy machine much later.
    const int disk = ::open(disk_.c_str(), O_RDONLY | O_CLOEXEC);
    while (disk >= 0 && ::flock(disk, LOCK_EX | LOCK_NB) != 0)
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
    if (disk >= 0) ::close(disk);
}

void NodeChild::quit() {
    shutdown(socket_, SHUT_WR);
    int result = 0;
    waitpid(pid_, &result, 0);
    ::close(socket_);
    pid_ = -1;
    CHECK(WIFEXITED(result));
    CHECK(WEXITSTATUS(result) == 0);
}

}  // namespace replica::test
