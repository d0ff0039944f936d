// SPDX-License-Identifier: Apache-2.0
// Two sockets: one hears the messages of the kernel, the other asks. Interfaces and addresses are
// kept in tables; routes are not, there may be a million of them: the kernel is asked for the one
// that counts.
#include "netlink/link_monitor.hpp"

#include <arpa/inet.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netlink/attr.h>
#include <netlink/errno.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "engine/base/text.hpp"
#include "netlink/nl.hpp"

namespace replica {
namespace {

// IFF_LOWER_UP and IFF_DORMANT of linux/if.h, which does not go with net/if.h.
constexpr unsigned carrier = 1U << 16, dormant = 1U << 17;
constexpr int messages_per_read = 256;
constexpr int receive_buffer_bytes = 1 << 20;

std::size_t bytes_of(int family) { return family == AF_INET ? 4 : 16; }

// IPv4 that is mapped into IPv6 becomes IPv4: it is routed as that.
PathAddress address_of(const sockaddr* from) {
    PathAddress address;
    if (from == nullptr) return address;
    if (from->sa_family == AF_INET) {
        sockaddr_in in;
        std::memcpy(&in, from, sizeof in);
        address.family = AF_INET;
        std::memcpy(address.bytes.data(), &in.sin_addr, 4);
    } else if (from->sa_family == AF_INET6) {
        sockaddr_in6 in;
        std::memcpy(&in, from, sizeof in);
        const bool mapped = IN6_IS_ADDR_V4MAPPED(&in.sin6_addr);
        address.family = mapped ? AF_INET : AF_INET6;
        const std::uint8_t* const raw = in.sin6_addr.s6_addr;
        std::memcpy(address.bytes.data(), mapped ? raw + 12 : raw, bytes_of(address.family));
        address.scope = static_cast<int>(in.sin6_scope_id);
    }
    return address;
}

PathAddress address_of(int family, const nlattr* attribute) {
    PathAddress address;
    const std::size_t bytes = bytes_of(family);
    if (attribute == nullptr || static_cast<std::size_t>(nla_len(attribute)) < bytes) {
        return address;
    }
    address.family = family;
    std::memcpy(address.bytes.data(), nla_data(attribute), bytes);
    return address;
}

std::string text_of_address(const PathAddress& address) {
    char text[INET6_ADDRSTRLEN] = "";
    inet_ntop(address.family, address.bytes.data(), text, sizeof text);
    return text;
}

struct Link {
    std::string name;
    bool usable = false;
    std::uint32_t ups = 0;
    bool listed = true;  // by the last dump
};

struct Route {
    bool found = false;
    int interface = 0;
    PathAddress source;
};

class RouteMonitor final : public LinkMonitor {
  public:
    ~RouteMonitor() override { ASSERT(watches_.empty()); }
    Status begin();

    void start(PathWatch& watch, const sockaddr* peer, const sockaddr* local) override;
    void forget_local(PathWatch& watch) override;
    void stop(PathWatch& watch) override;
    int fd() const override { return nl_socket_get_fd(events_.get()); }
    Result<Due> read_messages() override;
    void look() override;

  private:
    Status read_all();
    Status dump(int type);
    static int on_message(nl_msg* message, void* self);
    void take_link(nlmsghdr* header);
    void take_address(nlmsghdr* header);
    void set_usable(Link& link, bool usable);
    bool is_usable(int interface) const;
    std::string name_of(int interface) const;
    Route ask_route(const PathWatch& watch);
    std::string missing_locally(const PathAddress& local) const;
    PathWay way_of(const PathWatch& watch);

    NlSocket events_, questions_;
    std::map<int, Link> links_;
    std::set<std::pair<PathAddress, int>> addresses_;  // own ones that work, and their interfaces
    bool overrun_ = false;                             // messages were lost
    Due due_ = Due::nothing;
    std::vector<PathWatch*> watches_;  // nullptr: stopped during look()
    bool looking_ = false;
};

// ---- the tables ---------------------------------------------------------------------------------

Status RouteMonitor::begin() {
    constexpr const char* what = "watching the network's interfaces";
    events_.reset(nl_socket_alloc());
    questions_.reset(nl_socket_alloc());
    if (!events_ || !questions_) return Error{Errc::limit, 0, "no memory for a netlink socket"};
    for (nl_sock* const socket : {events_.get(), questions_.get()}) {
        nl_socket_enable_msg_peek(socket);
        const int result = nl_connect(socket, NETLINK_ROUTE);
        if (result < 0) return nl_error(what, result);
        nl_socket_modify_cb(socket, NL_CB_VALID, NL_CB_CUSTOM, on_message, this);
    }
    nl_socket_disable_seq_check(events_.get());
    nl_socket_set_buffer_size(events_.get(), receive_buffer_bytes, 0);
    int result = nl_socket_add_memberships(events_.get(), RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR,
                                           RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV4_ROUTE,
                                           RTNLGRP_IPV6_ROUTE, RTNLGRP_NONE);
    if (result == 0) result = nl_socket_set_nonblocking(events_.get());
    if (result < 0) return nl_error(what, result);
    return read_all();
}

// After the subscription, so that what changes meanwhile comes as a message.
Status RouteMonitor::read_all() {
    overrun_ = false;
    for (auto& [interface, link] : links_)
        link.listed = false;
    TRY_STATUS(dump(RTM_GETLINK));
    std::erase_if(links_, [](const auto& entry) { return !entry.second.listed; });
    addresses_.clear();
    TRY_STATUS(dump(RTM_GETADDR));
    due_ = Due::now;
    return ok_status();
}

Status RouteMonitor::dump(int type) {
    const NlMessage request(nlmsg_alloc_simple(type, NLM_F_DUMP));
    if (!request) return Error{Errc::limit, 0, "no memory for a netlink message"};
    rtgenmsg any{AF_UNSPEC};
    if (nlmsg_append(request.get(), &any, sizeof any, NLMSG_ALIGNTO) < 0) {
        return Error{Errc::limit, 0, "no memory for a netlink message"};
    }
    const int result = nl_ask(questions_.get(), request.get(), on_message, this);
    if (result < 0) return nl_error("listing the network's interfaces", result);
    return ok_status();
}

Result<LinkMonitor::Due> RouteMonitor::read_messages() {
    int result = 0;
    for (int i = 0; i < messages_per_read; ++i) {
        result = nl_recvmsgs_default(events_.get());
        if (result == -NLE_NOMEM || result == -NLE_MSG_TRUNC) {
            overrun_ = true;  // what is still queued is older than what was lost: read it first
        } else if (result < 0) {
            break;
        }
    }
    if (result < 0 && result != -NLE_AGAIN && !overrun_) {
        return nl_error("hearing of changes in the network", result);
    }
    if (overrun_ && result == -NLE_AGAIN) TRY_STATUS(read_all());
    return std::exchange(due_, Due::nothing);
}

int RouteMonitor::on_message(nl_msg* message, void* self) {
    auto& monitor = *static_cast<RouteMonitor*>(self);
    nlmsghdr* const header = nlmsg_hdr(message);
    switch (header->nlmsg_type) {
        case RTM_NEWLINK:
        case RTM_DELLINK:
            monitor.take_link(header);
            break;
        case RTM_NEWADDR:
        case RTM_DELADDR:
            monitor.take_address(header);
            break;
        case RTM_NEWROUTE:
        case RTM_DELROUTE:
            monitor.due_ = std::max(monitor.due_, Due::soon);
            break;
        default:
            break;
    }
    return NL_OK;
}

void RouteMonitor::take_link(nlmsghdr* header) {
    if (!nlmsg_valid_hdr(header, sizeof(ifinfomsg))) return;
    const auto* const info = static_cast<const ifinfomsg*>(nlmsg_data(header));
    if (info->ifi_family != AF_UNSPEC) return;  // a bridge's word about its ports
    const auto at = links_.find(info->ifi_index);
    if (header->nlmsg_type == RTM_DELLINK) {
        if (at == links_.end()) return;
        links_.erase(at);
        due_ = Due::now;
        return;
    }
    Link& link = links_[info->ifi_index];
    link.listed = true;
    const nlattr* const name = nlmsg_find_attr(header, sizeof(ifinfomsg), IFLA_IFNAME);
    if (name != nullptr) link.name = nla_get_string(name);
    // The carrier itself, and not IFF_RUNNING, which follows it up to a second later. Ports of a
    // bond that take over from each other do not show here, as long as the bond has one.
    constexpr unsigned wanted = IFF_UP | carrier;
    set_usable(link, (info->ifi_flags & (wanted | dormant)) == wanted);
}

void RouteMonitor::set_usable(Link& link, bool usable) {
    if (link.usable == usable) return;
    link.usable = usable;
    if (usable) ++link.ups;
    due_ = Due::now;
}

void RouteMonitor::take_address(nlmsghdr* header) {
    if (!nlmsg_valid_hdr(header, sizeof(ifaddrmsg))) return;
    const auto* const info = static_cast<const ifaddrmsg*>(nlmsg_data(header));
    if (info->ifa_family != AF_INET && info->ifa_family != AF_INET6) return;
    // Of a point-to-point interface IFA_ADDRESS is the other end's.
    nlattr* attribute = nlmsg_find_attr(header, sizeof(ifaddrmsg), IFA_LOCAL);
    if (attribute == nullptr) attribute = nlmsg_find_attr(header, sizeof(ifaddrmsg), IFA_ADDRESS);
    const PathAddress address = address_of(info->ifa_family, attribute);
    if (address.family == 0) return;
    std::uint32_t flags = info->ifa_flags;
    attribute = nlmsg_find_attr(header, sizeof(ifaddrmsg), IFA_FLAGS);
    if (attribute != nullptr) flags = nla_get_u32(attribute);
    // Whether nobody else has it is asked first; until then the kernel does not use it.
    const bool asked = (flags & IFA_F_TENTATIVE) == 0 || (flags & IFA_F_OPTIMISTIC) != 0;
    const bool works = header->nlmsg_type == RTM_NEWADDR && asked && (flags & IFA_F_DADFAILED) == 0;
    const std::pair entry{address, static_cast<int>(info->ifa_index)};
    const bool changed = works ? addresses_.insert(entry).second : addresses_.erase(entry) != 0;
    if (changed) due_ = Due::now;
}

bool RouteMonitor::is_usable(int interface) const {
    const auto at = links_.find(interface);
    return at != links_.end() && at->second.usable;
}

std::string RouteMonitor::name_of(int interface) const {
    const auto at = links_.find(interface);
    return at != links_.end() ? at->second.name : text_of("interface %d", interface);
}

// ---- ways ---------------------------------------------------------------------------------------

int take_route(nl_msg* message, void* context) {
    Route& route = *static_cast<Route*>(context);
    nlmsghdr* const header = nlmsg_hdr(message);
    if (header->nlmsg_type != RTM_NEWROUTE || !nlmsg_valid_hdr(header, sizeof(rtmsg))) {
        return NL_OK;
    }
    const auto* const info = static_cast<const rtmsg*>(nlmsg_data(header));
    const nlattr* const interface = nlmsg_find_attr(header, sizeof(rtmsg), RTA_OIF);
    route.found =
        interface != nullptr && (info->rtm_type == RTN_UNICAST || info->rtm_type == RTN_LOCAL);
    if (!route.found) return NL_OK;
    route.interface = static_cast<int>(nla_get_u32(interface));
    route.source =
        address_of(info->rtm_family, nlmsg_find_attr(header, sizeof(rtmsg), RTA_PREFSRC));
    return NL_OK;
}

Route RouteMonitor::ask_route(const PathWatch& watch) {
    const NlMessage request(nlmsg_alloc_simple(RTM_GETROUTE, 0));
    if (!request) return {};
    const std::size_t bytes = bytes_of(watch.peer.family);
    const bool from = watch.local.family == watch.peer.family;
    rtmsg info{};
    info.rtm_family = static_cast<unsigned char>(watch.peer.family);
    info.rtm_dst_len = static_cast<unsigned char>(8 * bytes);
    info.rtm_src_len = from ? info.rtm_dst_len : 0;
    nl_msg* const m = request.get();
    const int length = static_cast<int>(bytes);
    if (nlmsg_append(m, &info, sizeof info, NLMSG_ALIGNTO) < 0 ||
        nla_put(m, RTA_DST, length, watch.peer.bytes.data()) < 0 ||
        (from && nla_put(m, RTA_SRC, length, watch.local.bytes.data()) < 0) ||
        (watch.peer.scope != 0 &&
         nla_put_u32(m, RTA_OIF, static_cast<std::uint32_t>(watch.peer.scope)) < 0)) {
        return {};
    }
    Route route;
    if (nl_ask(questions_.get(), m, take_route, &route) < 0) return {};
    return route;
}

// What keeps a connection with this own address from working; empty: nothing.
std::string RouteMonitor::missing_locally(const PathAddress& local) const {
    PathAddress plain = local;
    plain.scope = 0;
    std::string missing = "the address " + text_of_address(local) + " is gone";
    for (auto at = addresses_.lower_bound({plain, 0}); at != addresses_.end() && at->first == plain;
         ++at) {
        if (local.scope != 0 && local.scope != at->second) continue;
        if (is_usable(at->second)) return "";
        missing = name_of(at->second) + " is down";
    }
    return missing;
}

PathWay RouteMonitor::way_of(const PathWatch& watch) {
    PathWay way;
    if (watch.local.family != 0) {
        way.why = missing_locally(watch.local);
        if (!way.why.empty()) return way;
    }
    const Route route = ask_route(watch);
    if (!route.found) {
        way.why = "there is no route to " + text_of_address(watch.peer);
    } else if (!is_usable(route.interface)) {
        way.why = name_of(route.interface) + " is down";
    } else {
        way.usable = true;
        way.interface = route.interface;
        way.ups = links_[route.interface].ups;
        way.source = watch.local.family != 0 ? watch.local : route.source;
    }
    return way;
}

bool alike(const PathWay& a, const PathWay& b) {
    return a.usable == b.usable && a.interface == b.interface && a.ups == b.ups &&
           a.source == b.source;
}

void RouteMonitor::start(PathWatch& watch, const sockaddr* peer, const sockaddr* local) {
    stop(watch);
    watch.peer = address_of(peer);
    watch.local = address_of(local);
    if (watch.peer.family == 0) return;
    watch.monitor = this;
    watch.seen = way_of(watch);
    // The kernel tells of a carrier up to a second late: who is connected already has one.
    if (!watch.seen.usable && watch.local.family != 0 && dump(RTM_GETLINK)) {
        watch.seen = way_of(watch);
    }
    watches_.push_back(&watch);
}

void RouteMonitor::forget_local(PathWatch& watch) {
    if (watch.monitor == nullptr) return;
    watch.local = {};
    watch.changed = false;
    watch.seen = way_of(watch);
}

void RouteMonitor::stop(PathWatch& watch) {
    if (watch.monitor == nullptr) return;
    ASSERT(watch.monitor == this);
    watch.monitor = nullptr;
    watch.changed = false;
    std::replace(watches_.begin(), watches_.end(), &watch, static_cast<PathWatch*>(nullptr));
    if (!looking_) std::erase(watches_, nullptr);
}

void RouteMonitor::look() {
    ASSERT(!looking_);
    looking_ = true;
    for (PathWatch* const watch : watches_) {
        PathWay way = way_of(*watch);
        watch->changed = way.usable ? !alike(way, watch->seen) : watch->seen.usable;
        watch->seen = std::move(way);
    }
    // A callback may start watches, which are appended, and stop any.
    for (std::size_t i = 0; i < watches_.size(); ++i) {
        PathWatch* const watch = watches_[i];
        if (watch == nullptr || !std::exchange(watch->changed, false)) continue;
        watch->callback(*watch, watch->seen.usable);
    }
    looking_ = false;
    std::erase(watches_, nullptr);
}

}  // namespace

PathWatch::~PathWatch() {
    if (monitor != nullptr) monitor->stop(*this);
}

Result<std::unique_ptr<LinkMonitor>> LinkMonitor::open() {
    auto monitor = std::make_unique<RouteMonitor>();
    TRY_STATUS(monitor->begin());
    return std::unique_ptr<LinkMonitor>(std::move(monitor));
}

}  // namespace replica
