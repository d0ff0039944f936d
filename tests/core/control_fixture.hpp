// SPDX-License-Identifier: Apache-2.0
// What the tests of the control layer share: a directory of their own, a configuration, and a
// service over the stand-in node, with or without a socket.
#pragma once

#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>

#include "control/client.hpp"
#include "control/config_store.hpp"
#include "control/server.hpp"
#include "control/service.hpp"
#include "tests/catch.hpp"
#include "tests/core/control_fake_node.hpp"

namespace replica::test {

// Catch2 v3 renamed the matcher for strings and moved Approx.
#ifdef REPLICA_CATCH2_V3
using Catch::Approx;
inline auto contains(const std::string& part) { return Catch::Matchers::ContainsSubstring(part); }
#else
using ::Approx;
inline auto contains(const std::string& part) { return Catch::Matchers::Contains(part); }
#endif

class TemporaryDirectory {
  public:
    TemporaryDirectory() {
        std::string pattern = "/tmp/replica-control-XXXXXX";
        path_ = ::mkdtemp(pattern.data());
    }
    ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
    TemporaryDirectory(const TemporaryDirectory&) = delete;
    TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
    const std::string& path() const { return path_; }

  private:
    std::string path_;
};

inline std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}
inline void write_file(const std::string& path, const std::string& text) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

inline ResourceConfig sample_config(const std::string& name = "r0") {
    ResourceConfig config;
    config.name = name;
    config.node_id = 1;
    config.volume = 3;
    config.disk = "/disks/" + name;
    config.peers = {{"beta", 2, "192.0.2.2:7000"}, {"gamma", 5, "[2001:db8::5]:7000"}};
    config.options.protocol = Protocol::b;
    config.options.after_sb_0pri = AfterSb0Pri::discard_zero_changes;
    config.options.resync_rate_max = 12345678;
    return config;
}

// A service over the stand-in node in a directory; restarted by making another one.
struct TestService {
    explicit TestService(const std::string& directory)
        : store(std::move(control::ConfigStore::open(directory + "/state")).value()),
          service(node, *store, {"alpha", "", [this](int, const std::string& line) {
                                     const std::lock_guard lock(log_mutex);
                                     log += line + "\n";
                                 }}) {}

    Result<control::Json> call(const std::string& method, const control::Json& params) {
        return service.call(method, params, {"test", {}});
    }
    control::Json must(const std::string& method, const control::Json& params) {
        auto result = call(method, params);
        if (!result) throw std::runtime_error(method + ": " + result.error().message);
        return std::move(result).value();
    }
    void create(const std::string& name) {
        must("resource.create", {{"config", control::to_json(sample_config(name))}});
    }

    FakeNode node;
    std::unique_ptr<control::ConfigStore> store;
    std::mutex log_mutex;
    std::string log;
    control::Service service;
};

}  // namespace replica::test
