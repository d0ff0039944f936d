// SPDX-License-Identifier: Apache-2.0
// A daemon on a Unix socket. Each call takes a connection that is idle or makes one, so threads do
// not wait for each other; a connection that the daemon closed (it was restarted) is not used
// again.
#include <fmt/format.h>

#include <mutex>
#include <vector>

#include "control/client.hpp"
#include "libreplica/backend.hpp"

namespace replica::lib {
namespace {

using control::Client;

class UnixEvents final : public EventSource {
  public:
    explicit UnixEvents(std::unique_ptr<Client> client) : client_(std::move(client)) {}

    int fd() const override { return client_->fd(); }

    Result<std::optional<Item>> next(int timeout_ms) override {
        TRY(const auto message, client_->next_notification(timeout_ms));
        if (!message) return std::optional<Item>();
        Item item;
        try {
            const Json& params = message->at("params");
            if (message->at("method") == "events.gap") {
                item.missed = params.at("missed").get<std::uint64_t>();
            } else {
                item.event = control::event_from_json(params);
            }
        } catch (const std::exception& error) {
            return Error{Errc::corrupt, 0,
                         fmt::format("the node sent an event that is not one: {}", error.what())};
        }
        return std::optional<Item>(std::move(item));
    }

  private:
    std::unique_ptr<Client> client_;
};

class UnixBackend final : public Backend {
  public:
    explicit UnixBackend(std::string path) : path_(std::move(path)) {}

    Result<Json> call(const std::string& method, const Json& params) override {
        TRY(auto client, take());
        auto result = client->call(method, params);
        if (client->idle_and_alive()) {
            const std::lock_guard lock(mutex_);
            if (idle_.size() < idle_max) idle_.push_back(std::move(client));
        }
        return result;
    }

    Result<std::unique_ptr<EventSource>> events(const std::string& resource) override {
        TRY(auto client, Client::connect(path_));
        Json params = Json::object();
        if (!resource.empty()) params["name"] = resource;
        const auto subscribed = client->call("events.subscribe", params);
        if (!subscribed) return subscribed.error();
        return std::unique_ptr<EventSource>(std::make_unique<UnixEvents>(std::move(client)));
    }

  private:
    static constexpr std::size_t idle_max = 4;

    Result<std::unique_ptr<Client>> take() {
        {
            const std::lock_guard lock(mutex_);
            while (!idle_.empty()) {
                auto client = std::move(idle_.back());
                idle_.pop_back();
                if (client->idle_and_alive()) return client;
            }
        }
        return Client::connect(path_);
    }

    const std::string path_;
    std::mutex mutex_;
    std::vector<std::unique_ptr<Client>> idle_;
};

}  // namespace

Result<std::shared_ptr<Backend>> open_unix(const std::string& path) {
    auto backend = std::make_shared<UnixBackend>(path);
    const auto info = backend->call("node.info", Json::object());
    if (!info) return info.error();
    return std::shared_ptr<Backend>(std::move(backend));
}

}  // namespace replica::lib
