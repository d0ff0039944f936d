// SPDX-License-Identifier: Apache-2.0
// See nbd_device.hpp.
#include "netlink/nbd_device.hpp"

#include <linux/nbd-netlink.h>
#include <netlink/attr.h>
#include <netlink/errno.h>
#include <netlink/genl/ctrl.h>
#include <netlink/genl/genl.h>

#include <utility>

#include "engine/base/text.hpp"
#include "netlink/nl.hpp"

namespace replica {
namespace {

// The UAPI header has no names for these.
constexpr std::uint64_t client_destroy_on_disconnect = 1;
constexpr std::uint64_t client_disconnect_on_close = 2;

// Attributes of a request that is being put together. One that does not fit fails the whole.
class Request {
  public:
    Request(int family, std::uint8_t command, int flags) : message_(nlmsg_alloc()) {
        good_ = message_ && genlmsg_put(message_.get(), NL_AUTO_PORT, NL_AUTO_SEQ, family, 0, flags,
                                        command, NBD_GENL_VERSION) != nullptr;
    }
    void put_u32(int type, std::uint32_t value) {
        good_ = good_ && nla_put_u32(message_.get(), type, value) == 0;
    }
    void put_u64(int type, std::uint64_t value) {
        good_ = good_ && nla_put_u64(message_.get(), type, value) == 0;
    }
    void put_text(int type, const std::string& text) {
        good_ = good_ && nla_put_string(message_.get(), type, text.c_str()) == 0;
    }
    void put_sockets(std::span<const int> sockets) {
        nlattr* const list = open(NBD_ATTR_SOCKETS);
        for (const int fd : sockets) {
            nlattr* const item = open(NBD_SOCK_ITEM);
            put_u32(NBD_SOCK_FD, static_cast<std::uint32_t>(fd));
            close(item);
        }
        close(list);
    }
    nl_msg* get() const { return good_ ? message_.get() : nullptr; }

  private:
    nlattr* open(int type) {
        nlattr* const nest = good_ ? nla_nest_start(message_.get(), type) : nullptr;
        good_ = nest != nullptr;
        return nest;
    }
    void close(nlattr* nest) {
        if (good_) nla_nest_end(message_.get(), nest);
    }

    NlMessage message_;
    bool good_ = false;
};

// The attributes of a message of the family, by number.
struct Attributes {
    nlattr* at[NBD_ATTR_MAX + 1] = {};
    explicit Attributes(nl_msg* message) {
        static_cast<void>(genlmsg_parse(nlmsg_hdr(message), 0, at, NBD_ATTR_MAX, nullptr));
    }
};

int take_index(nl_msg* message, void* context) {
    const Attributes attributes(message);
    const nlattr* const index = attributes.at[NBD_ATTR_INDEX];
    if (index != nullptr) *static_cast<int*>(context) = static_cast<int>(nla_get_u32(index));
    return NL_OK;
}

int take_states(nl_msg* message, void* context) {
    auto& states = *static_cast<std::vector<NbdDeviceState>*>(context);
    const Attributes attributes(message);
    nlattr* const list = attributes.at[NBD_ATTR_DEVICE_LIST];
    if (list == nullptr) return NL_OK;
    int left = nla_len(list);
    for (auto* item = static_cast<nlattr*>(nla_data(list)); nla_ok(item, left);
         item = nla_next(item, &left)) {
        nlattr* fields[NBD_DEVICE_ATTR_MAX + 1] = {};
        if (nla_parse_nested(fields, NBD_DEVICE_ATTR_MAX, item, nullptr) < 0 ||
            fields[NBD_DEVICE_INDEX] == nullptr) {
            continue;
        }
        const nlattr* const connected = fields[NBD_DEVICE_CONNECTED];
        states.push_back({static_cast<int>(nla_get_u32(fields[NBD_DEVICE_INDEX])),
                          connected != nullptr && nla_get_u8(connected) != 0});
    }
    return NL_OK;
}

class GenericNbdControl final : public NbdControl {
  public:
    Status begin();

    Result<int> connect(const NbdDeviceConfig& config, std::span<const int> sockets) override;
    Status reconfigure(int index, const NbdDeviceChange& change,
                       std::span<const int> sockets) override;
    Status disconnect(int index) override;
    Result<std::vector<NbdDeviceState>> status() override;
    Result<std::string> backend_of(int index) override {
        return nbd_backend_in(block_devices_path, index);
    }

  private:
    Status ask(const Request& request, const char* what, nl_recvmsg_msg_cb_t each, void* context);

    NlSocket socket_;
    int family_ = 0;
};

Status GenericNbdControl::begin() {
    socket_.reset(nl_socket_alloc());
    if (!socket_) return Error{Errc::limit, 0, "no memory for a netlink socket"};
    const int result = genl_connect(socket_.get());
    if (result < 0) return nl_error("asking for the kernel's nbd", result);
    family_ = genl_ctrl_resolve(socket_.get(), NBD_GENL_FAMILY_NAME);
    if (family_ >= 0) return ok_status();
    return Error{Errc::unsupported, 0,
                 "the kernel has no nbd driver, or it can not be loaded: modprobe nbd"};
}

Status GenericNbdControl::ask(const Request& request, const char* what, nl_recvmsg_msg_cb_t each,
                              void* context) {
    if (request.get() == nullptr) {
        return Error{Errc::limit, 0, text_of("%s: the request is too long", what)};
    }
    const int result = nl_ask(socket_.get(), request.get(), each, context);
    if (result < 0) return nl_error(what, result);
    return ok_status();
}

Result<int> GenericNbdControl::connect(const NbdDeviceConfig& config,
                                       std::span<const int> sockets) {
    Request request(family_, NBD_CMD_CONNECT, 0);
    if (config.index >= 0) {
        request.put_u32(NBD_ATTR_INDEX, static_cast<std::uint32_t>(config.index));
    }
    request.put_u64(NBD_ATTR_SIZE_BYTES, config.size_bytes);
    request.put_u64(NBD_ATTR_BLOCK_SIZE_BYTES, config.block_bytes);
    request.put_u64(NBD_ATTR_SERVER_FLAGS, config.transmission_flags);
    request.put_u64(NBD_ATTR_CLIENT_FLAGS,
                    (config.destroy_on_disconnect ? client_destroy_on_disconnect : 0) |
                        (config.disconnect_on_close ? client_disconnect_on_close : 0));
    // A timeout that the kernel is not told is none.
    if (config.request_timeout_s != 0) {
        request.put_u64(NBD_ATTR_TIMEOUT, config.request_timeout_s);
    }
    if (config.dead_connection_s != 0) {
        request.put_u64(NBD_ATTR_DEAD_CONN_TIMEOUT, config.dead_connection_s);
    }
    if (!config.backend.empty()) request.put_text(NBD_ATTR_BACKEND_IDENTIFIER, config.backend);
    request.put_sockets(sockets);
    int index = -1;
    TRY_STATUS(ask(request, "connecting an nbd device", take_index, &index));
    if (index < 0) return Error{Errc::io, 0, "the kernel did not say which nbd device it took"};
    return index;
}

Status GenericNbdControl::reconfigure(int index, const NbdDeviceChange& change,
                                      std::span<const int> sockets) {
    ASSERT(!change.size_bytes || sockets.empty());
    Request request(family_, NBD_CMD_RECONFIGURE, 0);
    request.put_u32(NBD_ATTR_INDEX, static_cast<std::uint32_t>(index));
    if (!change.backend.empty()) request.put_text(NBD_ATTR_BACKEND_IDENTIFIER, change.backend);
    if (change.size_bytes) request.put_u64(NBD_ATTR_SIZE_BYTES, *change.size_bytes);
    if (change.dead_connection_s) {
        request.put_u64(NBD_ATTR_DEAD_CONN_TIMEOUT, *change.dead_connection_s);
    }
    if (!sockets.empty()) request.put_sockets(sockets);
    int same = -1;
    return ask(request, "reconfiguring an nbd device", take_index, &same);
}

Status GenericNbdControl::disconnect(int index) {
    Request request(family_, NBD_CMD_DISCONNECT, 0);
    request.put_u32(NBD_ATTR_INDEX, static_cast<std::uint32_t>(index));
    int same = -1;
    return ask(request, "disconnecting an nbd device", take_index, &same);
}

Result<std::vector<NbdDeviceState>> GenericNbdControl::status() {
    const Request request(family_, NBD_CMD_STATUS, 0);
    std::vector<NbdDeviceState> states;
    TRY_STATUS(ask(request, "listing nbd devices", take_states, &states));
    return states;
}

}  // namespace

Result<std::unique_ptr<NbdControl>> NbdControl::open() {
    auto control = std::make_unique<GenericNbdControl>();
    TRY_STATUS(control->begin());
    return std::unique_ptr<NbdControl>(std::move(control));
}

}  // namespace replica
