// SPDX-License-Identifier: Apache-2.0
// libnl's handles with owners, and its errors in the words of this project. Internal to netlink/:
// its public headers know nothing of libnl.
#pragma once

#include <netlink/msg.h>
#include <netlink/netlink.h>

#include <memory>

#include "engine/base/result.hpp"

namespace replica {

struct NlSocketFree {
    void operator()(nl_sock* socket) const { nl_socket_free(socket); }
};
using NlSocket = std::unique_ptr<nl_sock, NlSocketFree>;

struct NlMessageFree {
    void operator()(nl_msg* message) const { nlmsg_free(message); }
};
using NlMessage = std::unique_ptr<nl_msg, NlMessageFree>;

// `code`: what a call of libnl returned, below 0. `what` was tried, e.g. "watching links".
Error nl_error(const char* what, int code);

// Sends `request` and hears all of its answer: each message of it goes to `each`, whose value
// libnl wants (NL_OK). A dump that was disturbed by a change is asked for once more, up to a few
// times; `each` then hears it from the beginning. Blocks, as long as the kernel takes.
int nl_ask(nl_sock* socket, nl_msg* request, nl_recvmsg_msg_cb_t each, void* context);

}  // namespace replica
