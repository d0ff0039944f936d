// SPDX-License-Identifier: Apache-2.0
// See nl.hpp.
#include "netlink/nl.hpp"

#include <netlink/errno.h>

#include <cstdlib>

#include "engine/base/text.hpp"

namespace replica {
namespace {

Errc errc_of(int code) {
    switch (std::abs(code)) {
        case NLE_PERM:
        case NLE_NOACCESS:
            return Errc::permission;
        case NLE_INVAL:
        case NLE_RANGE:
            return Errc::invalid;
        case NLE_NOMEM:
            return Errc::limit;
        case NLE_OBJ_NOTFOUND:
        case NLE_NODEV:
            return Errc::not_found;
        case NLE_BUSY:
            return Errc::busy;
        case NLE_EXIST:
            return Errc::exists;
        case NLE_AF_NOSUPPORT:
        case NLE_PROTO_MISMATCH:
        case NLE_OPNOTSUPP:
            return Errc::unsupported;
        default:
            return Errc::io;
    }
}

}  // namespace

Error nl_error(const char* what, int code) {
    return {errc_of(code), 0, text_of("%s: %s", what, nl_geterror(code))};
}

int nl_ask(nl_sock* socket, nl_msg* request, nl_recvmsg_msg_cb_t each, void* context) {
    // A dump ends with a message of its own, anything else with an acknowledgement.
    bool ended = false;
    const nl_recvmsg_msg_cb_t end = [](nl_msg*, void* flag) {
        *static_cast<bool*>(flag) = true;
        return static_cast<int>(NL_STOP);
    };
    nl_socket_modify_cb(socket, NL_CB_VALID, NL_CB_CUSTOM, each, context);
    nl_socket_modify_cb(socket, NL_CB_FINISH, NL_CB_CUSTOM, end, &ended);
    nl_socket_modify_cb(socket, NL_CB_ACK, NL_CB_CUSTOM, end, &ended);
    int result = 0;
    for (int attempt = 0; attempt < 5; ++attempt) {
        ended = false;
        nlmsg_hdr(request)->nlmsg_seq = NL_AUTO_SEQ;
        result = nl_send_auto(socket, request);
        while (result >= 0 && !ended)
            result = nl_recvmsgs_default(socket);
        if (result != -NLE_DUMP_INTR) break;
    }
    return result < 0 ? result : 0;
}

}  // namespace replica
