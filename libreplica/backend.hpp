// SPDX-License-Identifier: Apache-2.0
// What is behind a replica_node: a daemon on a Unix socket, or a node in this process. Both answer
// the methods of the control protocol; only the second one has volumes to read and write.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "control/codec.hpp"
#include "engine/base/result.hpp"
#include "engine/node.hpp"
#include "replica/replica.h"

namespace replica::lib {

using control::Json;

// One reader of events. One thread at a time.
class EventSource {
  public:
    struct Item {
        std::uint64_t missed = 0;
        Event event;
    };
    virtual ~EventSource() = default;
    virtual int fd() const = 0;
    // Nothing if none came within `timeout_ms` (-1: no limit).
    virtual Result<std::optional<Item>> next(int timeout_ms) = 0;
};

class Backend {
  public:
    virtual ~Backend() = default;
    // Any thread; blocks. Errors: as the method.
    virtual Result<Json> call(const std::string& method, const Json& params) = 0;
    // `resource` "": all.
    virtual Result<std::unique_ptr<EventSource>> events(const std::string& resource) = 0;
    // The node in this process, or nullptr.
    virtual Node* node() { return nullptr; }
};

// Errors: nobody answers at `path`, or not to us.
Result<std::shared_ptr<Backend>> open_unix(const std::string& path);
// Errors: as Node::create, ConfigStore::open and Server::start.
Result<std::shared_ptr<Backend>> open_embedded(const std::string& directory,
                                               const replica_embedded_options& options);

}  // namespace replica::lib

// The handles behind the C interface; each keeps its node alive, and longer than what hangs on it:
// members are destroyed from the last to the first.
struct replica_node {
    std::shared_ptr<replica::lib::Backend> backend;
};
struct replica_events {
    std::shared_ptr<replica::lib::Backend> backend;
    std::unique_ptr<replica::lib::EventSource> source;
    replica::Event last;  // what `view` points into
    replica_event view{};
};
struct replica_volume {
    std::shared_ptr<replica::lib::Backend> backend;
    std::string name;
};
