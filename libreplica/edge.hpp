// SPDX-License-Identifier: Apache-2.0
// The edge of the C interface: turns a Status into a code and the thread's last error, and lets no
// exception through. Every public function that can fail runs inside `at_edge`.
#pragma once

#include <cstddef>
#include <cstring>
#include <exception>
#include <new>
#include <string>

#include "control/codec.hpp"
#include "engine/base/result.hpp"

namespace replica::lib {

int remember(const Error& error);  // sets the thread's last error; returns its code

template <class F>
int at_edge(F&& body) noexcept {
    try {
        const Status status = body();
        return status ? 0 : remember(status.error());
    } catch (const control::Refused& refused) {
        return remember(refused.error());
    } catch (const std::bad_alloc&) {
        return remember(Error{Errc::limit, 0, "out of memory"});
    } catch (const std::exception& error) {
        return remember(Error{Errc::invalid, 0, error.what()});
    } catch (...) {
        return remember(Error{Errc::invalid, 0, "an unknown exception"});
    }
}

inline Error invalid_argument(const char* what) {
    return Error{Errc::invalid, 0, std::string(what)};
}

// A copy of a caller's structure of any age: what it does not have is zero.
template <class T>
Result<T> copy_versioned(const T* given, const char* what) {
    T copy{};
    if (given == nullptr) return invalid_argument(what);
    // The first versions of all structures were larger than two pointers; less is a mistake.
    if (given->struct_size < 2 * sizeof(void*)) {
        return Error{Errc::invalid, 0, std::string(what) + ": struct_size is not set"};
    }
    std::memcpy(&copy, given, given->struct_size < sizeof copy ? given->struct_size : sizeof copy);
    return copy;
}

// A string for the caller, to be freed with replica_free().
char* hand_out(const std::string& text);

}  // namespace replica::lib
