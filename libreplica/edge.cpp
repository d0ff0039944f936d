// SPDX-License-Identifier: Apache-2.0
// Version, errors and strings of the C interface.
#include "libreplica/edge.hpp"

#include <cstdlib>

#include "control/text.hpp"
#include "replica/replica.h"

namespace replica::lib {
namespace {

struct LastError {
    replica_error error{REPLICA_OK, 0, ""};
    std::string message;
};
thread_local LastError last_error;

}  // namespace

int remember(const Error& error) {
    last_error.error.code = static_cast<int>(error.code);
    last_error.error.os_errno = error.os_errno;
    try {
        last_error.message = error.message;
        last_error.error.message = last_error.message.c_str();
    } catch (...) {
        last_error.error.message = "out of memory";
    }
    return last_error.error.code;
}

char* hand_out(const std::string& text) {
    auto* const copy = static_cast<char*>(std::malloc(text.size() + 1));
    if (copy == nullptr) throw std::bad_alloc();
    std::memcpy(copy, text.c_str(), text.size() + 1);
    return copy;
}

}  // namespace replica::lib

using namespace replica;

static_assert(REPLICA_LIMIT == static_cast<int>(Errc::limit));
static_assert(REPLICA_STATE == static_cast<int>(Errc::state));
static_assert(REPLICA_CORRUPT == static_cast<int>(Errc::corrupt));

uint32_t replica_version(void) {
    return REPLICA_VERSION_MAJOR << 16 | REPLICA_VERSION_MINOR << 8 | REPLICA_VERSION_PATCH;
}

const char* replica_version_string(void) { return REPLICA_VERSION_TEXT; }

const replica_error* replica_last_error(void) { return &lib::last_error.error; }

const char* replica_code_name(int code) {
    if (code < 0 || code > REPLICA_LIMIT) return "unknown";
    return control::errc_name(static_cast<Errc>(code)).data();
}

void replica_free(char* string) { std::free(string); }
