// SPDX-License-Identifier: Apache-2.0
// What the tests of engine/io share: temporary files, socket pairs, patterns, and running a batch
// of operations to their end on a reactor.
#pragma once

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/prng.hpp"
#include "engine/io/reactor.hpp"
#include "tests/catch.hpp"

namespace replica::test {

// A directory of its own below $TMPDIR or /var/tmp (a disk with O_DIRECT, where /tmp may be tmpfs).
class TempDir {
  public:
    TempDir() {
        const char* base = std::getenv("TMPDIR");
        path_ = std::string(base != nullptr ? base : "/var/tmp") + "/replica-io-XXXXXX";
        REQUIRE(mkdtemp(path_.data()) != nullptr);
    }
    TempDir(const TempDir&) = delete;
    TempDir& operator=(const TempDir&) = delete;
    ~TempDir() {
        const std::string command = "rm -rf '" + path_ + "'";
        [[maybe_unused]] const int status = std::system(command.c_str());
    }
    const std::string& path() const { return path_; }
    std::string operator/(const std::string& name) const { return path_ + "/" + name; }

  private:
    std::string path_;
};

// A file of `bytes`, open for reading and writing.
class TempFile {
  public:
    explicit TempFile(off_t bytes) : path_(directory_ / "file") {
        fd_ = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        REQUIRE(fd_ >= 0);
        REQUIRE(ftruncate(fd_, bytes) == 0);
    }
    TempFile(const TempFile&) = delete;
    TempFile& operator=(const TempFile&) = delete;
    ~TempFile() { close(fd_); }
    int fd() const { return fd_; }
    const std::string& path() const { return path_; }

  private:
    TempDir directory_;
    std::string path_;
    int fd_ = -1;
};

struct SocketPair {
    int a = -1, b = -1;
    explicit SocketPair(int type = SOCK_STREAM) {
        int fds[2];
        REQUIRE(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds) == 0);
        a = fds[0];
        b = fds[1];
    }
    SocketPair(const SocketPair&) = delete;
    SocketPair& operator=(const SocketPair&) = delete;
    ~SocketPair() {
        if (a >= 0) close(a);
        if (b >= 0) close(b);
    }
};

inline void fill_pattern(std::span<std::byte> bytes, std::uint64_t seed) {
    Prng prng(seed);
    std::uint64_t word = 0;
    for (std::size_t i = 0; i < bytes.size(); ++i) {
        if (i % 8 == 0) word = prng.next();
        bytes[i] = static_cast<std::byte>(word >> (8 * (i % 8)));
    }
}

// Starts each operation on the reactor, runs it until all have called back, returns their results.
inline std::vector<std::int32_t> run_ops(Reactor& reactor,
                                         const std::vector<std::function<void(Op&)>>& starts) {
    struct Batch {
        Reactor& reactor;
        std::size_t left;
    } batch{reactor, starts.size()};
    struct Item {
        Op op;
        Batch* batch = nullptr;
        std::int32_t result = 0;
    };
    std::vector<std::unique_ptr<Item>> items;
    reactor.post([&] {
        for (const auto& start : starts) {
            items.push_back(std::make_unique<Item>());
            Item& item = *items.back();
            item.batch = &batch;
            item.op.context = &item;
            item.op.callback = [](Op& op, std::int32_t result) {
                auto* self = static_cast<Item*>(op.context);
                self->result = result;
                if (--self->batch->left == 0) self->batch->reactor.stop();
            };
            start(item.op);
        }
    });
    reactor.run();
    std::vector<std::int32_t> results;
    for (const auto& item : items)
        results.push_back(item->result);
    return results;
}

}  // namespace replica::test
