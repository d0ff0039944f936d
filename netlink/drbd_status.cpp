// SPDX-License-Identifier: Apache-2.0
// See drbd_status.hpp. Numbers are those of the family's interface, which the kernel has in
// linux/drbd_genl.h; its headers are no C++ and differ between 8.4 and 9, so they are named here.
#include "netlink/drbd_status.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netlink/attr.h>
#include <netlink/genl/ctrl.h>
#include <netlink/genl/family.h>
#include <netlink/genl/genl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "engine/base/text.hpp"
#include "engine/base/units.hpp"
#include "netlink/nl.hpp"

namespace replica {
namespace {

constexpr const char* family_name = "drbd";
constexpr unsigned version_84 = 1, version_9 = 2;

// Before the attributes of each message: a minor number, and flags or a return code.
struct UserHeader {
    std::uint32_t minor;
    std::uint32_t flags;
};
constexpr std::size_t message_bytes_max = 1 << 20;
constexpr std::uint32_t no_minor = ~std::uint32_t{0};

enum Dump : std::uint8_t { get_resources = 30, get_devices, get_connections, get_peer_devices };

// Attributes of a message; each holds others.
enum Nest : std::uint8_t {
    cfg_context = 2,
    resource_info = 15,
    device_info,
    connection_info,
    peer_device_info,
    resource_statistics,
    device_statistics,
    connection_statistics,
    peer_device_statistics,
    nests
};
enum Context : std::uint8_t {
    ctx_volume = 1,
    ctx_resource,
    ctx_local,
    ctx_peer,
    ctx_name,
    ctx_peer_node_id,
};

const char* name_in(std::span<const char* const> names, std::uint32_t number) {
    return number < names.size() ? names[number] : "Unknown";
}
constexpr const char* roles[] = {"Unknown", "Primary", "Secondary"};
constexpr const char* disks_84[] = {"Diskless",    "Attaching",    "Failed",
                                    "Negotiating", "Inconsistent", "Outdated",
                                    "DUnknown",    "Consistent",   "UpToDate"};
constexpr const char* disks_9[] = {"Diskless",    "Attaching",    "Detaching", "Failed",
                                   "Negotiating", "Inconsistent", "Outdated",  "DUnknown",
                                   "Consistent",  "UpToDate"};
// Connection and replication are one row of numbers.
constexpr const char* connections[] = {"StandAlone",    "Disconnecting", "Unconnected",
                                       "Timeout",       "BrokenPipe",    "NetworkFailure",
                                       "ProtocolError", "TearDown",      "Connecting"};
constexpr std::uint32_t established = 10;
constexpr const char* replications[] = {
    "Established", "StartingSyncS", "StartingSyncT", "WFBitMapS", "WFBitMapT",
    "WFSyncUUID",  "SyncSource",    "SyncTarget",    "VerifyS",   "VerifyT",
    "PausedSyncS", "PausedSyncT",   "Ahead",         "Behind"};

std::string disk_name(unsigned version, std::uint32_t state) {
    return version == version_84 ? name_in(disks_84, state) : name_in(disks_9, state);
}
// Of a connection 8.4 says at most WFReportParams, which is where 9 begins to say Connected.
std::string connection_name(std::uint32_t state) {
    return state < std::size(connections) ? connections[state] : "Connected";
}
std::string replication_name(std::uint32_t state) {
    return state < established ? "Off" : name_in(replications, state - established);
}

// The attributes inside of one, by number; what is absent or too short is zero or empty.
class Fields {
  public:
    explicit Fields(nlattr* nest) : present_(nest != nullptr) {
        if (present_) static_cast<void>(nla_parse_nested(at_, fields_max, nest, nullptr));
    }
    explicit operator bool() const { return present_; }
    std::uint32_t u32(int number) const { return read<std::uint32_t>(number); }
    std::uint64_t u64(int number) const { return read<std::uint64_t>(number); }
    bool flag(int number) const { return read<std::uint8_t>(number) != 0; }
    bool has(int number) const { return at_[number] != nullptr; }
    std::string text(int number) const {
        if (!has(number)) return "";
        const auto* const from = static_cast<const char*>(nla_data(at_[number]));
        return {from, strnlen(from, static_cast<std::size_t>(nla_len(at_[number])))};
    }
    std::string address(int number) const;

  private:
    template <class T>
    T read(int number) const {
        T value{};
        if (has(number) && nla_len(at_[number]) >= static_cast<int>(sizeof value)) {
            std::memcpy(&value, nla_data(at_[number]), sizeof value);
        }
        return value;
    }

    static constexpr int fields_max = 31;
    nlattr* at_[fields_max + 1] = {};
    bool present_;
};

// A sockaddr as the kernel keeps it.
std::string Fields::address(int number) const {
    if (!has(number)) return "";
    const auto* const bytes = static_cast<const std::byte*>(nla_data(at_[number]));
    const auto length = static_cast<std::size_t>(nla_len(at_[number]));
    char host[INET6_ADDRSTRLEN] = "";
    sockaddr_in in{};
    if (length < sizeof in) return "";
    std::memcpy(&in, bytes, sizeof in);
    if (in.sin_family == AF_INET) {
        inet_ntop(AF_INET, &in.sin_addr, host, sizeof host);
        return text_of("%s:%u", host, static_cast<unsigned>(ntohs(in.sin_port)));
    }
    sockaddr_in6 in6{};
    if (in.sin_family != AF_INET6 || length < sizeof in6) return "";
    std::memcpy(&in6, bytes, sizeof in6);
    inet_ntop(AF_INET6, &in6.sin6_addr, host, sizeof host);
    return text_of("[%s]:%u", host, static_cast<unsigned>(ntohs(in6.sin6_port)));
}

// The entry with this key, made if there is none.
template <class T, class Is>
T& entry(std::vector<T>& list, Is is) {
    const auto at = std::find_if(list.begin(), list.end(), is);
    return at != list.end() ? *at : list.emplace_back();
}

std::uint64_t bytes_of_sectors(std::uint64_t sectors) { return sectors * sector_bytes; }

void add_device(DrbdResource& resource, const Fields& context, std::uint32_t minor,
                unsigned version, const Fields& info, const Fields& statistics) {
    const std::uint32_t volume = context.u32(ctx_volume);
    DrbdDevice& device =
        entry(resource.devices, [&](const DrbdDevice& d) { return d.volume == volume; });
    device.volume = volume;
    device.minor = minor;
    device.disk = disk_name(version, info.u32(1));
    if (version == version_9) device.backing = info.text(4);
    if (!statistics) return;
    device.size_bytes = bytes_of_sectors(statistics.u64(1));
    device.read_bytes = bytes_of_sectors(statistics.u64(2));
    device.written_bytes = bytes_of_sectors(statistics.u64(3));
    device.al_writes = statistics.u64(4);
    device.bm_writes = statistics.u64(5);
    device.current_uuid = statistics.u64(12);
}

// 9 has names and node ids, 8.4 only addresses.
DrbdConnection& connection_of(DrbdResource& resource, const Fields& context) {
    DrbdConnection key;
    key.name = context.text(ctx_name);
    key.local = context.address(ctx_local);
    key.peer = context.address(ctx_peer);
    if (context.has(ctx_peer_node_id))
        key.peer_node_id = static_cast<int>(context.u32(ctx_peer_node_id));
    DrbdConnection& connection = entry(resource.connections, [&](const DrbdConnection& c) {
        return key.peer_node_id >= 0 ? c.peer_node_id == key.peer_node_id
                                     : c.local == key.local && c.peer == key.peer;
    });
    if (connection.state.empty()) connection = std::move(key);
    return connection;
}

void add_peer_device(DrbdConnection& connection, const Fields& context, unsigned version,
                     const Fields& info, const Fields& statistics) {
    const std::uint32_t volume = context.u32(ctx_volume);
    DrbdPeerDevice& device =
        entry(connection.devices, [&](const DrbdPeerDevice& d) { return d.volume == volume; });
    device.volume = volume;
    device.replication = replication_name(info.u32(1));
    device.disk = disk_name(version, info.u32(2));
    device.resync_suspended = info.u32(3) != 0 || info.u32(4) != 0 || info.u32(5) != 0;
    if (!statistics) return;
    device.received_bytes = bytes_of_sectors(statistics.u64(1));
    device.sent_bytes = bytes_of_sectors(statistics.u64(2));
    device.pending = statistics.u32(3);
    device.unacked = statistics.u32(4);
    device.out_of_sync_bytes = bytes_of_sectors(statistics.u64(5));
}

bool add_message(nlmsghdr* header, unsigned version, std::vector<DrbdResource>& resources) {
    nlattr* at[nests] = {};
    if (!genlmsg_valid_hdr(header, sizeof(UserHeader)) ||
        genlmsg_parse(header, sizeof(UserHeader), at, nests - 1, nullptr) < 0) {
        return false;
    }
    const Fields context(at[cfg_context]), of_resource(at[resource_info]),
        of_device(at[device_info]), of_connection(at[connection_info]),
        of_peer_device(at[peer_device_info]);
    const std::string name = context.text(ctx_resource);
    if (name.empty() || !(of_resource || of_device || of_connection || of_peer_device)) {
        return false;
    }
    UserHeader user;
    std::memcpy(&user, genlmsg_user_hdr(genlmsg_hdr(header)), sizeof user);
    DrbdResource& resource =
        entry(resources, [&](const DrbdResource& r) { return r.name == name; });
    resource.name = name;
    if (of_resource) {
        resource.role = name_in(roles, of_resource.u32(1));
        resource.suspended = of_resource.flag(2) || of_resource.flag(3) || of_resource.flag(4) ||
                             (version == version_9 && of_resource.flag(5));
    }
    if (of_device) {
        add_device(resource, context, user.minor, version, of_device,
                   Fields(at[device_statistics]));
    }
    if (of_connection) {
        DrbdConnection& connection = connection_of(resource, context);
        connection.state = connection_name(of_connection.u32(1));
        connection.role = name_in(roles, of_connection.u32(2));
    }
    if (of_peer_device) {
        add_peer_device(connection_of(resource, context), context, version, of_peer_device,
                        Fields(at[peer_device_statistics]));
    }
    return true;
}

struct Reading {
    unsigned version = 0;
    std::vector<DrbdResource> resources;
};

int take_message(nl_msg* message, void* context) {
    Reading& reading = *static_cast<Reading*>(context);
    add_message(nlmsg_hdr(message), reading.version, reading.resources);
    return NL_OK;
}

struct CacheFree {
    void operator()(nl_cache* cache) const { nl_cache_free(cache); }
};
struct FamilyPut {
    void operator()(genl_family* family) const { genl_family_put(family); }
};

Status dump(nl_sock* socket, int family, Dump what, Reading& reading) {
    const NlMessage request(nlmsg_alloc());
    void* const user =
        request ? genlmsg_put(request.get(), NL_AUTO_PORT, NL_AUTO_SEQ, family, sizeof(UserHeader),
                              NLM_F_DUMP, what, static_cast<std::uint8_t>(reading.version))
                : nullptr;
    if (user == nullptr) return Error{Errc::limit, 0, "no memory for a netlink message"};
    const UserHeader header{no_minor, 0};
    std::memcpy(user, &header, sizeof header);
    const int result = nl_ask(socket, request.get(), take_message, &reading);
    if (result < 0) return nl_error("asking for the state of the kernel's DRBD", result);
    return ok_status();
}

}  // namespace

Result<std::vector<DrbdResource>> read_drbd_status() {
    const NlSocket socket(nl_socket_alloc());
    if (!socket) return Error{Errc::limit, 0, "no memory for a netlink socket"};
    nl_socket_enable_msg_peek(socket.get());
    nl_cache* listed = nullptr;
    int result = genl_connect(socket.get());
    // All families are listed: to ask for one that is not there might load a module.
    if (result == 0) result = genl_ctrl_alloc_cache(socket.get(), &listed);
    const std::unique_ptr<nl_cache, CacheFree> families(listed);
    if (result < 0) return nl_error("looking for the kernel's DRBD", result);
    const std::unique_ptr<genl_family, FamilyPut> family(
        genl_ctrl_search_by_name(families.get(), family_name));
    if (!family) {
        return Error{Errc::not_found, 0,
                     "this kernel has no DRBD, or its module is not loaded: no in-kernel resource"};
    }
    Reading reading;
    reading.version = genl_family_get_version(family.get());
    if (reading.version != version_84 && reading.version != version_9) {
        return Error{Errc::unsupported, 0,
                     text_of("the kernel's DRBD speaks version %u of its interface, which is not "
                             "known here: 1 (DRBD 8.4) and 2 (DRBD 9) are",
                             reading.version)};
    }
    const int id = static_cast<int>(genl_family_get_id(family.get()));
    for (const Dump what : {get_resources, get_devices, get_connections, get_peer_devices}) {
        TRY_STATUS(dump(socket.get(), id, what, reading));
    }
    return std::move(reading.resources);
}

bool add_drbd_message(std::span<const std::byte> message, unsigned version,
                      std::vector<DrbdResource>& resources) {
    if (message.size() < sizeof(nlmsghdr) || message.size() > message_bytes_max) return false;
    // A copy: libnl's parsers take what they could change, and alignment is not ours to know.
    std::vector<std::uint64_t> aligned((message.size() + 7) / 8);
    std::memcpy(aligned.data(), message.data(), message.size());
    auto* const header = reinterpret_cast<nlmsghdr*>(aligned.data());
    if (header->nlmsg_len > message.size()) return false;
    return add_message(header, version, resources);
}

}  // namespace replica
