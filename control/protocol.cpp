// SPDX-License-Identifier: Apache-2.0
// See protocol.hpp. An Error crosses the socket as code, message and a "data" object, so that a
// client of any language can tell kinds apart and ours gets the same Error back.
#include "control/protocol.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace replica::control {
namespace {

RpcRefusal refusal(const Json& id, int rpc_code, const std::string& message) {
    return RpcRefusal{error_line(id, rpc_code, message)};
}

}  // namespace

std::variant<RpcRequest, RpcRefusal> parse_request(std::string_view line) {
    if (!nesting_is_sane(line)) {
        return refusal(nullptr, rpc_parse_error, "the line is nested too deeply");
    }
    Json json = Json::parse(line, nullptr, false);
    if (json.is_discarded()) {
        return refusal(nullptr, rpc_parse_error,
                       "the line is not JSON; send one JSON-RPC 2.0 request a line, in UTF-8");
    }
    if (!json.is_object()) {
        return refusal(nullptr, rpc_invalid_request,
                       "the line is not a JSON object (batches are not spoken)");
    }
    RpcRequest request;
    const auto id = json.find("id");
    request.has_id = id != json.end();
    if (request.has_id) {
        if (!id->is_string() && !id->is_number() && !id->is_null()) {
            return refusal(nullptr, rpc_invalid_request, "\"id\" must be a string or a number");
        }
        request.id = *id;
    }
    const auto version = json.find("jsonrpc");
    if (version == json.end() || *version != "2.0") {
        return refusal(request.id, rpc_invalid_request, "\"jsonrpc\":\"2.0\" is missing");
    }
    const auto method = json.find("method");
    if (method == json.end() || !method->is_string()) {
        return refusal(request.id, rpc_invalid_request, "\"method\" must be a string");
    }
    request.method = method->get<std::string>();
    if (const auto params = json.find("params"); params != json.end()) {
        request.params = std::move(*params);
    }
    return request;
}

std::string request_line(std::uint64_t id, const std::string& method, const Json& params) {
    return dump_line({{"jsonrpc", "2.0"}, {"id", id}, {"method", method}, {"params", params}}) +
           "\n";
}

std::string result_line(const Json& id, const Json& result) {
    return dump_line({{"jsonrpc", "2.0"}, {"id", id}, {"result", result}}) + "\n";
}

std::string error_line(const Json& id, const Error& error) {
    const Json data = {{"kind", errc_name(error.code)},
                       {"errc", static_cast<unsigned>(error.code)},
                       {"errno", error.os_errno}};
    const Json body = {{"code", rpc_error_base - static_cast<int>(error.code)},
                       {"message", error.message},
                       {"data", data}};
    return dump_line({{"jsonrpc", "2.0"}, {"id", id}, {"error", body}}) + "\n";
}

std::string error_line(const Json& id, int rpc_code, const std::string& message) {
    const Json body = {{"code", rpc_code}, {"message", message}};
    return dump_line({{"jsonrpc", "2.0"}, {"id", id}, {"error", body}}) + "\n";
}

std::string notification_line(const char* method, const Json& params) {
    return dump_line({{"jsonrpc", "2.0"}, {"method", method}, {"params", params}}) + "\n";
}

Error error_from_json(const Json& error) {
    Error out{Errc::invalid, 0, "the node refused without a reason"};
    if (!error.is_object()) return out;
    if (const auto text = error.find("message"); text != error.end() && text->is_string()) {
        out.message = text->get<std::string>();
    }
    const auto data = error.find("data");
    if (data != error.end() && data->is_object()) {
        const auto errc = data->value("errc", Json());
        const auto os_errno = data->value("errno", Json());
        if (errc.is_number_unsigned() && errc > 0U && errc <= static_cast<unsigned>(Errc::limit)) {
            out.code = static_cast<Errc>(errc.get<unsigned>());
        }
        if (os_errno.is_number_integer()) out.os_errno = os_errno.get<int>();
    } else if (error.value("code", Json()) == rpc_method_not_found) {
        out.code = Errc::unsupported;
    }
    return out;
}

std::optional<std::string> LineBuffer::next() {
    const auto end = bytes_.find('\n', std::max(scanned_, begin_));
    if (end == std::string::npos) {
        bytes_.erase(0, begin_);
        begin_ = 0;
        scanned_ = bytes_.size();
        return std::nullopt;
    }
    std::size_t length = end - begin_;
    if (length > bytes_max_) {
        overflown_ = true;
        return std::nullopt;
    }
    if (length > 0 && bytes_[end - 1] == '\r') --length;
    std::string line = bytes_.substr(begin_, length);
    begin_ = end + 1;
    scanned_ = begin_;
    return line;
}

}  // namespace replica::control
