// SPDX-License-Identifier: Apache-2.0
// What people and files write: names, addresses, paths, sizes, times, and the spelling of the enums
// of engine/node.hpp. Names end in paths and on other machines, so the set of characters is strict.
// Everything here is pure and may be called from any thread.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "engine/base/result.hpp"
#include "engine/node.hpp"

namespace replica::control {

// For messages: what was typed, in quotes, shortened, without anything that could disturb a
// terminal.
std::string quoted(std::string_view text);

// [A-Za-z0-9][A-Za-z0-9._-]{0,62}. `what` ("resource", "node") goes into the message.
Status check_name(std::string_view what, std::string_view name);

// HOST:PORT or [IPV6]:PORT, port 1..65535 (0 too where `any_port`, which means: choose one).
Status check_address(std::string_view what, std::string_view address, bool any_port = false);

// Absolute, without "." or ".." components, NUL or control characters, shorter than PATH_MAX.
Status check_path(std::string_view what, std::string_view path);

// "unix:PATH" or "tcp:HOST:PORT".
Status check_door(std::string_view door);

// A decimal number with an optional binary suffix K, M, G, T or P ("10G" is 10 * 2^30), in bytes.
Result<std::uint64_t> parse_size(std::string_view text);
// "4.0 KiB", "1.5 GiB"; exact below 1 KiB.
std::string format_size(std::uint64_t bytes);
// "2h03m", "4m05s", "12s".
std::string format_seconds(std::uint64_t seconds);

// Stable short names of error kinds: "invalid", "not-found", ...
std::string_view errc_name(Errc code);
// Errc::io, no_space, not_found, exists, permission, busy ... as fits an errno. The message becomes
// "<what>: <strerror>".
Error errno_error(int os_errno, const std::string& what);

// The spelling of an enumerator, both ways; equal to DRBD's configuration file.
template <class E>
using Spelling = std::pair<E, std::string_view>;

inline constexpr std::array<Spelling<Protocol>, 3> protocol_names{{
    {Protocol::a, "A"},
    {Protocol::b, "B"},
    {Protocol::c, "C"},
}};
inline constexpr std::array<Spelling<OnIoError>, 2> on_io_error_names{{
    {OnIoError::detach, "detach"},
    {OnIoError::pass_on, "pass_on"},
}};
inline constexpr std::array<Spelling<SnapshotBeforeResync>, 2> snapshot_names{{
    {SnapshotBeforeResync::no, "no"},
    {SnapshotBeforeResync::yes, "yes"},
}};
inline constexpr std::array<Spelling<AfterSb0Pri>, 7> after_sb_0pri_names{{
    {AfterSb0Pri::disconnect, "disconnect"},
    {AfterSb0Pri::discard_younger_primary, "discard-younger-primary"},
    {AfterSb0Pri::discard_older_primary, "discard-older-primary"},
    {AfterSb0Pri::discard_zero_changes, "discard-zero-changes"},
    {AfterSb0Pri::discard_least_changes, "discard-least-changes"},
    {AfterSb0Pri::discard_local, "discard-local"},
    {AfterSb0Pri::discard_remote, "discard-remote"},
}};
inline constexpr std::array<Spelling<AfterSb1Pri>, 4> after_sb_1pri_names{{
    {AfterSb1Pri::disconnect, "disconnect"},
    {AfterSb1Pri::consensus, "consensus"},
    {AfterSb1Pri::violently_as0p, "violently-as0p"},
    {AfterSb1Pri::discard_secondary, "discard-secondary"},
}};
inline constexpr std::array<Spelling<AfterSb2Pri>, 2> after_sb_2pri_names{{
    {AfterSb2Pri::disconnect, "disconnect"},
    {AfterSb2Pri::violently_as0p, "violently-as0p"},
}};

}  // namespace replica::control
