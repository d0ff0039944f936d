// SPDX-License-Identifier: Apache-2.0
// A value or an Error, for caller and configuration errors (docs/architecture.md, "Errors").
// The engine compiles without exceptions, and libstdc++ 12 has no std::expected in C++20.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>

#include "engine/base/assert.hpp"

namespace replica {

// What kind of thing went wrong; the numbers are part of the control protocol and of exit codes.
enum class Errc : std::uint16_t {
    ok = 0,
    invalid = 1,      // the request itself is malformed or contradictory
    not_found = 2,    // no such resource, peer, file
    exists = 3,       // would overwrite something; --force may be what is wanted
    busy = 4,         // in use, or another operation of the kind is under way
    io = 5,           // a disk or socket failed; os_errno says how
    corrupt = 6,      // bytes that fail their checksum, magic or bounds
    unsupported = 7,  // a version or feature that this build does not know
    state = 8,        // refused in the present role, disk or connection state
    no_space = 9,     // the device is too small or full
    permission = 10,  // the caller may not
    timeout = 11,     // did not happen in the time given
    cancelled = 12,   // ended by a shutdown or by the caller
    limit = 13,       // a compiled-in or configured limit
};

// `message` names what was refused, why, and what would make it work.
struct [[nodiscard]] Error {
    Errc code = Errc::invalid;
    int os_errno = 0;
    std::string message;
};

template <class T>
class [[nodiscard]] Result {
  public:
    Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
    Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {
        ASSERT(this->error().code != Errc::ok);
    }

    explicit operator bool() const { return state_.index() == 0; }

    T& value() & {
        ASSERT(state_.index() == 0);
        return *std::get_if<0>(&state_);
    }
    const T& value() const& {
        ASSERT(state_.index() == 0);
        return *std::get_if<0>(&state_);
    }
    T&& value() && {
        ASSERT(state_.index() == 0);
        return std::move(*std::get_if<0>(&state_));
    }
    const Error& error() const {
        ASSERT(state_.index() == 1);
        return *std::get_if<1>(&state_);
    }

  private:
    std::variant<T, Error> state_;
};

using Status = Result<std::monostate>;
inline Status ok_status() { return Status(std::monostate{}); }

}  // namespace replica

// TRY(auto x, f()): bind the value or return the error. TRY_STATUS(f()): return the error, if any.
#define REPLICA_CAT2(a, b) a##b
#define REPLICA_CAT(a, b) REPLICA_CAT2(a, b)
#define REPLICA_TRY_IMPL(tmp, declaration, expression) \
    auto tmp = (expression);                           \
    if (!tmp) return tmp.error();                      \
    declaration = std::move(tmp).value()
#define TRY(declaration, expression) \
    REPLICA_TRY_IMPL(REPLICA_CAT(try_, __LINE__), declaration, expression)
#define TRY_STATUS(expression)                                                      \
    do {                                                                            \
        if (auto try_status = (expression); !try_status) return try_status.error(); \
    } while (false)
