// SPDX-License-Identifier: Apache-2.0
// A node in the calling process: the same node, service and stored configuration that replicad
// runs, without its main(). It installs no signal handlers and prints nothing.
#include <poll.h>
#include <unistd.h>

#include <cerrno>

#include "control/config_store.hpp"
#include "control/event_queue.hpp"
#include "control/server.hpp"
#include "control/service.hpp"
#include "libreplica/backend.hpp"

namespace replica::lib {
namespace {

using namespace control;

constexpr std::size_t events_queued_max = 4096;

class EmbeddedEvents final : public EventSource {
  public:
    EmbeddedEvents(Node& node, std::shared_ptr<EventQueue> queue)
        : node_(node), queue_(std::move(queue)) {
        token_ = node_.subscribe([kept = queue_](const Event& event) { kept->push(event); });
    }
    ~EmbeddedEvents() override { node_.unsubscribe(token_); }

    int fd() const override { return queue_->fd(); }

    Result<std::optional<Item>> next(int timeout_ms) override {
        auto item = queue_->pop();
        if (!item && timeout_ms != 0) {
            pollfd fd{queue_->fd(), POLLIN, 0};
            if (::poll(&fd, 1, timeout_ms) < 0 && errno != EINTR) {
                return errno_error(errno, "can not wait for events");
            }
            item = queue_->pop();
        }
        if (!item) return std::optional<Item>();
        return std::optional<Item>(Item{item->missed, std::move(item->event)});
    }

  private:
    Node& node_;
    std::shared_ptr<EventQueue> queue_;
    std::uint64_t token_ = 0;
};

class EmbeddedBackend final : public Backend {
  public:
    EmbeddedBackend(std::unique_ptr<ConfigStore> store, std::unique_ptr<Node> node,
                    ServiceOptions options)
        : store_(std::move(store)),
          node_(std::move(node)),
          service_(*node_, *store_, std::move(options)) {}

    ~EmbeddedBackend() override { service_.stop(); }

    Status start(const std::string& control) {
        TRY_STATUS(service_.restore());
        if (control.empty()) return ok_status();
        ServerOptions options;
        options.path = control;
        TRY(server_, Server::start(service_, options));
        return ok_status();
    }

    Result<Json> call(const std::string& method, const Json& params) override {
        return service_.call(method, params, caller_);
    }

    Result<std::unique_ptr<EventSource>> events(const std::string& resource) override {
        if (!resource.empty()) {
            const auto exists = service_.call("resource.get", {{"name", resource}}, caller_);
            if (!exists) return exists.error();
        }
        auto queue = std::make_shared<EventQueue>(events_queued_max, resource);
        if (!queue->usable()) return errno_error(errno, "can not make an event queue");
        return std::unique_ptr<EventSource>(
            std::make_unique<EmbeddedEvents>(*node_, std::move(queue)));
    }

    Node* node() override { return node_.get(); }

  private:
    const Caller caller_{"this process", {}};
    // Torn down from the last to the first.
    std::unique_ptr<ConfigStore> store_;
    std::unique_ptr<Node> node_;
    Service service_;
    std::unique_ptr<Server> server_;
};

std::string host_name() {
    char buffer[256] = {};
    ::gethostname(buffer, sizeof buffer - 1);
    const std::string name(buffer);
    return name.substr(0, name.find('.'));
}

}  // namespace

Result<std::shared_ptr<Backend>> open_embedded(const std::string& directory,
                                               const replica_embedded_options& options) {
    const auto text = [](const char* string) { return std::string(string ? string : ""); };
    NodeOptions node_options;
    node_options.name = options.name != nullptr ? text(options.name) : host_name();
    node_options.state_dir = directory;
    node_options.listen = text(options.listen);
    node_options.reactors = options.reactors == 0 ? 1 : options.reactors;
    node_options.lock_memory = options.lock_memory;
    if (options.log != nullptr) {
        node_options.log = [log = options.log, context = options.log_context](
                               int level, const std::string& line) {
            log(context, level, line.c_str());
        };
    }
    TRY_STATUS(check_name("node", node_options.name));
    if (!node_options.listen.empty()) {
        TRY_STATUS(check_address("listen address", node_options.listen));
    }
    if (node_options.reactors > 64) {
        return Error{Errc::invalid, 0, "reactors must be 1..64"};
    }
    TRY(auto store, ConfigStore::open(directory));
    TRY(auto node, Node::create(node_options));
    auto backend = std::make_shared<EmbeddedBackend>(
        std::move(store), std::move(node),
        ServiceOptions{node_options.name, node_options.listen, node_options.log});
    TRY_STATUS(backend->start(text(options.control)));
    return std::shared_ptr<Backend>(std::move(backend));
}

}  // namespace replica::lib
