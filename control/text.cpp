// SPDX-License-Identifier: Apache-2.0
// See text.hpp. Hand-written scanners: the strings come from outside, so every one is looked at
// character by character and nothing depends on the locale.
#include "control/text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <climits>
#include <cmath>
#include <cstring>
#include <limits>

namespace replica::control {
namespace {

constexpr std::size_t name_bytes_max = 63;  // as in the hello to a peer
constexpr std::size_t host_bytes_max = 253;

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_alnum(char c) { return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

Error invalid(std::string message) { return Error{Errc::invalid, 0, std::move(message)}; }

bool valid_host(std::string_view host) {
    if (host.empty() || host.size() > host_bytes_max) return false;
    if (host.front() == '[') {
        if (host.size() < 4 || host.back() != ']') return false;
        const auto inner = host.substr(1, host.size() - 2);
        const auto zone = inner.find('%');
        const auto digits = inner.substr(0, zone);
        const bool hex = std::all_of(digits.begin(), digits.end(), [](char c) {
            return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F') || c == ':' ||
                   c == '.';
        });
        return hex && digits.find(':') != std::string_view::npos;
    }
    return is_alnum(host.front()) && std::all_of(host.begin(), host.end(), [](char c) {
               return is_alnum(c) || c == '.' || c == '-' || c == '_';
           });
}

}  // namespace

std::string quoted(std::string_view text) {
    std::string out = "\"";
    for (char c : text.substr(0, 80)) {
        const auto byte = static_cast<unsigned char>(c);
        if (byte < 0x20 || byte >= 0x7f) {
            out += fmt::format("\\x{:02x}", byte);
        } else {
            out += c;
        }
    }
    return out + (text.size() > 80 ? "...\"" : "\"");
}

Status check_name(std::string_view what, std::string_view name) {
    const bool good = !name.empty() && name.size() <= name_bytes_max && is_alnum(name.front()) &&
                      std::all_of(name.begin(), name.end(), [](char c) {
                          return is_alnum(c) || c == '.' || c == '_' || c == '-';
                      });
    if (good) return ok_status();
    return invalid(fmt::format(
        "{} name {} is refused: a name has 1 to {} of the characters A-Z a-z 0-9 . _ - and begins "
        "with a letter or a digit",
        what, quoted(name), name_bytes_max));
}

Status check_address(std::string_view what, std::string_view address, bool any_port) {
    const auto colon = address.rfind(':');
    if (colon != std::string_view::npos && valid_host(address.substr(0, colon))) {
        const auto port = address.substr(colon + 1);
        unsigned value = 0;
        const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), value);
        const bool whole = error == std::errc{} && end == port.data() + port.size();
        if (whole && port.size() <= 5 && value <= 65535 && (value > 0 || any_port)) {
            return ok_status();
        }
    }
    return invalid(fmt::format(
        "{} {} is refused: write HOST:PORT, an IPv6 address in brackets, the port {}..65535", what,
        quoted(address), any_port ? 0 : 1));
}

Status check_path(std::string_view what, std::string_view path) {
    if (path.empty() || path.front() != '/') {
        return invalid(
            fmt::format("{} {} is refused: the path must be absolute", what, quoted(path)));
    }
    if (path.size() >= PATH_MAX) {
        return invalid(fmt::format("{} is refused: the path has {} bytes, at most {} are possible",
                                   what, path.size(), PATH_MAX - 1));
    }
    for (char c : path) {
        const auto byte = static_cast<unsigned char>(c);
        if (byte < 0x20 || byte == 0x7f) {
            return invalid(fmt::format("{} {} is refused: the path holds a control character", what,
                                       quoted(path)));
        }
    }
    for (std::size_t at = 0; at < path.size();) {
        const auto end = std::min(path.find('/', at), path.size());
        const auto part = path.substr(at, end - at);
        if (part == "." || part == "..") {
            return invalid(fmt::format("{} {} is refused: write the path without . and ..", what,
                                       quoted(path)));
        }
        at = end + 1;
    }
    return ok_status();
}

Status check_door(std::string_view door) {
    if (door.starts_with("unix:")) return check_path("NBD socket", door.substr(5));
    if (door.starts_with("tcp:")) return check_address("NBD address", door.substr(4), true);
    if (door == "ublk" || door.starts_with("ublk:/dev/ublkb")) return ok_status();
    if (door == "nbd" || door.starts_with("nbd:/dev/nbd")) return ok_status();
    if (door == "mapped" || door.starts_with("mapped:/dev/mapper/")) return ok_status();
    return invalid(fmt::format(
        "export door {} is refused: write ublk, nbd, unix:PATH or tcp:HOST:PORT", quoted(door)));
}

Result<std::uint64_t> parse_size(std::string_view text) {
    std::uint64_t value = 0;
    const char* const end = text.data() + text.size();
    const auto [at, error] = std::from_chars(text.data(), end, value);
    const std::string_view suffixes = "KMGTP";
    unsigned shift = 0;
    bool good = error == std::errc{} && at != text.data() && end - at <= 1;
    if (good && at != end) {
        const char upper = (*at >= 'a' && *at <= 'z') ? static_cast<char>(*at - 'a' + 'A') : *at;
        const auto found = suffixes.find(upper);
        good = found != std::string_view::npos;
        shift = good ? 10 * (static_cast<unsigned>(found) + 1) : 0;
    }
    if (!good) {
        return invalid(fmt::format(
            "{} is refused: write a whole number, or one with K, M, G, T or P", quoted(text)));
    }
    if (value > std::numeric_limits<std::uint64_t>::max() >> shift) {
        return invalid(fmt::format("{} is refused: it is beyond 2^64", quoted(text)));
    }
    return value << shift;
}

std::string format_size(std::uint64_t bytes) {
    static constexpr std::array<const char*, 6> units{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    if (bytes < 1024) return fmt::format("{} B", bytes);
    double value = static_cast<double>(bytes) / 1024;
    std::size_t unit = 0;
    while (value >= 1024 && unit + 1 < units.size()) {
        value /= 1024;
        ++unit;
    }
    // Not rounded up: what is a little less than 64 MiB has no room for them.
    return fmt::format("{:.1f} {}", std::floor(value * 10) / 10, units[unit]);
}

std::string format_seconds(std::uint64_t seconds) {
    if (seconds >= 3600) return fmt::format("{}h{:02}m", seconds / 3600, seconds / 60 % 60);
    if (seconds >= 60) return fmt::format("{}m{:02}s", seconds / 60, seconds % 60);
    return fmt::format("{}s", seconds);
}

std::string_view errc_name(Errc code) {
    switch (code) {
        case Errc::ok:
            return "ok";
        case Errc::invalid:
            return "invalid";
        case Errc::not_found:
            return "not-found";
        case Errc::exists:
            return "exists";
        case Errc::busy:
            return "busy";
        case Errc::io:
            return "io";
        case Errc::corrupt:
            return "corrupt";
        case Errc::unsupported:
            return "unsupported";
        case Errc::state:
            return "state";
        case Errc::no_space:
            return "no-space";
        case Errc::permission:
            return "permission";
        case Errc::timeout:
            return "timeout";
        case Errc::cancelled:
            return "cancelled";
        case Errc::limit:
            return "limit";
    }
    return "unknown";
}

Error errno_error(int os_errno, const std::string& what) {
    Errc code = Errc::io;
    switch (os_errno) {
        case ENOENT:
            code = Errc::not_found;
            break;
        case EEXIST:
            code = Errc::exists;
            break;
        case EACCES:
        case EPERM:
        case EROFS:
            code = Errc::permission;
            break;
        case ENOSPC:
        case EDQUOT:
            code = Errc::no_space;
            break;
        case EBUSY:
        case EADDRINUSE:
            code = Errc::busy;
            break;
        case EMFILE:
        case ENFILE:
        case ENOMEM:
            code = Errc::limit;
            break;
        case ETIMEDOUT:
            code = Errc::timeout;
            break;
        default:
            break;
    }
    char buffer[128];
    return Error{code, os_errno,
                 fmt::format("{}: {}", what, strerror_r(os_errno, buffer, sizeof buffer))};
}

}  // namespace replica::control
