// SPDX-License-Identifier: Apache-2.0
// JSON-RPC 2.0 as spoken on the control socket: one message a line, UTF-8, at most line_bytes_max
// bytes. Requests go to the node, responses come back in the order of the requests, and after
// events.subscribe the node sends notifications "event" and "events.gap" between them. Batches are
// not spoken. Pure: no sockets here. docs/control.md.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "control/codec.hpp"
#include "engine/base/result.hpp"

namespace replica::control {

inline constexpr unsigned protocol_version = 1;
inline constexpr std::size_t line_bytes_max = 1U << 20;  // without the newline
inline constexpr const char* default_control_path = "/run/replica/control.sock";
inline constexpr const char* default_state_dir = "/var/lib/replica";

// JSON-RPC's own codes; the Errc of a refused request n is told as rpc_error_base - n.
inline constexpr int rpc_parse_error = -32700;
inline constexpr int rpc_invalid_request = -32600;
inline constexpr int rpc_method_not_found = -32601;
inline constexpr int rpc_error_base = -32000;

struct RpcRequest {
    Json id;  // string or number; null: the caller wants no answer
    bool has_id = false;
    std::string method;
    Json params;
};

// What is wrong with a line, as the response that says so.
struct RpcRefusal {
    std::string response;
};

// Either a request, or the line to answer. Never throws.
std::variant<RpcRequest, RpcRefusal> parse_request(std::string_view line);

// Lines to send, newline included.
std::string request_line(std::uint64_t id, const std::string& method, const Json& params);
std::string result_line(const Json& id, const Json& result);
std::string error_line(const Json& id, const Error& error);
std::string error_line(const Json& id, int rpc_code, const std::string& message);
std::string notification_line(const char* method, const Json& params);

// What the client makes of an "error" member.
Error error_from_json(const Json& error);

// Gathers bytes into lines.
class LineBuffer {
  public:
    explicit LineBuffer(std::size_t bytes_max = line_bytes_max) : bytes_max_(bytes_max) {}
    void append(std::string_view bytes) { bytes_.append(bytes); }
    // The next complete line, without its newline (and without a carriage return before it).
    std::optional<std::string> next();
    // More than `bytes_max` bytes without a newline: nothing good can follow.
    bool overflown() const { return overflown_ || bytes_.size() - begin_ > bytes_max_ + 1; }
    bool has_partial() const { return bytes_.size() > begin_; }

  private:
    std::size_t bytes_max_;
    std::string bytes_;
    std::size_t begin_ = 0;    // what is before was handed out
    std::size_t scanned_ = 0;  // no newline in [begin_, scanned_)
    bool overflown_ = false;
};

}  // namespace replica::control
