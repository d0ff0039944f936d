// SPDX-License-Identifier: Apache-2.0
// JSON of everything that crosses the control socket or lies in a configuration file. Field names
// of a status are those of `drbdsetup status --json`; fields that DRBD does not have are ours and
// have a unit in their name. Sizes under DRBD's names are in KiB, as there. Decoding refuses what
// it does not know, by name: a misspelt option must never be a default.
#pragma once

#include <exception>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string>
#include <utility>

#include "control/text.hpp"
#include "engine/node.hpp"

namespace replica::control {

using Json = nlohmann::json;

// How code above the engine, which has exceptions, refuses input. Never leaves control/: Service
// and ConfigStore turn it into an Error at their edge.
class Refused : public std::exception {
  public:
    explicit Refused(Error error) : error_(std::move(error)) {}
    explicit Refused(std::string message) : error_{Errc::invalid, 0, std::move(message)} {}
    const Error& error() const { return error_; }
    const char* what() const noexcept override { return error_.message.c_str(); }

  private:
    Error error_;
};

// Takes named members out of a JSON object and, at finish(), refuses those that nobody took.
// Every member throws Refused, whose message begins with `where`.
class Params {
  public:
    // `object` may be null (no members) or an object.
    Params(std::string where, const Json& object);

    bool has(const char* key);  // null counts as absent, everywhere
    std::string text(const char* key);
    std::string text_or(const char* key, std::string fallback);
    bool flag(const char* key);  // false when absent
    std::uint64_t number(const char* key, std::uint64_t min, std::uint64_t max);
    std::uint64_t number_or(const char* key, std::uint64_t fallback, std::uint64_t min,
                            std::uint64_t max);
    std::uint64_t size_or(const char* key, std::uint64_t fallback);  // 10, "10", "10M"
    const Json& any(const char* key);                                // null when absent
    void finish() const;

  private:
    const Json* find(const char* key);

    std::string where_;
    const Json& object_;
    std::set<std::string, std::less<>> taken_;
};

// One entry of ResourceOptions, for JSON, for the command line and for manuals.
struct OptionField {
    const char* key;   // "after-sb-0pri"
    const char* help;  // one line, with range and unit
    Json (*get)(const ResourceOptions& options);
    void (*set)(ResourceOptions& options, const Json& value);  // throws Refused
};
std::span<const OptionField> option_fields();

// `changes` is an object with some of the option keys; numbers may be given as text, with suffix.
void apply_options(ResourceOptions& options, const Json& changes);  // throws Refused
Json to_json(const ResourceOptions& options);

ResourceConfig config_from_json(const Json& object);  // throws Refused; checks every name and range
Json to_json(const ResourceConfig& config);

Json to_json(const ResizeResult& result);
Json to_json(const ResourceStatus& status);
Json to_json(const ResourceStats& stats);
Json to_json(const Event& event);
Event event_from_json(const Json& object);  // throws Refused

// False if brackets nest deeper than any message of ours: printing JSON recurses, so what comes
// from outside is looked at before it is parsed.
bool nesting_is_sane(std::string_view text);

// The text of a line. Bytes that are not UTF-8 (a path in a message) become U+FFFD.
std::string dump_line(const Json& value);

}  // namespace replica::control
