// SPDX-License-Identifier: Apache-2.0
// A node in a process of its own, which a test can kill with SIGKILL at any moment. The test's own
// process runs no node then, so that it stays single-threaded and may fork. Commands go over a
// socket pair as lines; what was written and acknowledged is kept in shared memory, where it
// outlives every process.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "engine/node.hpp"

namespace replica::test {

// What a volume may hold: for each 4 KiB block the version that was last submitted, and the one
// that was last acknowledged. In memory that forked children share.
class Ledger {
  public:
    explicit Ledger(std::uint32_t blocks);
    ~Ledger();
    Ledger(const Ledger&) = delete;
    Ledger& operator=(const Ledger&) = delete;
    std::uint32_t blocks() const { return blocks_; }
    std::atomic<std::uint64_t>& issued(std::uint32_t block) { return cells_[block].issued; }
    std::atomic<std::uint64_t>& acked(std::uint32_t block) { return cells_[block].acked; }
    std::atomic<std::uint64_t>& writes() { return cells_[blocks_].acked; }

  private:
    struct Cell {
        std::atomic<std::uint64_t> issued, acked;
    };
    std::uint32_t blocks_;
    Cell* cells_;
};

class NodeChild {
  public:
    // Forks. `configure` names the resource r0 that `create` and `add` make.
    NodeChild(const NodeOptions& options, const ResourceConfig& config, Ledger& ledger);
    ~NodeChild();  // kills it if it runs
    NodeChild(const NodeChild&) = delete;
    NodeChild& operator=(const NodeChild&) = delete;

    // "create BYTES", "add", "up", "down", "promote", "promote-force", "demote", "disconnect",
    // "connect", "load" (starts writing all over the volume), "stop" (ends that, flushes),
    // "write BLOCK COUNT", "verify" (reads all and compares with the ledger). Returns "ok ..." or
    // the error's text.
    std::string call(const std::string& command);
    void must(const std::string& command);  // fails the test unless "ok"
    // Fields of the status: role, disk, connection, peer-disk, replication, out-of-sync,
    // resync-sent, resync-received, sent, size, why.
    std::map<std::string, std::string> status();

    void signal(int number);
    void kill();  // SIGKILL, and waits until the kernel has let go of its disk
    void quit();  // ends the node cleanly, and waits
    bool running() const { return pid_ > 0; }

  private:
    std::string disk_;
    pid_t pid_ = -1;
    int socket_ = -1;
};

}  // namespace replica::test
