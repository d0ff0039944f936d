// SPDX-License-Identifier: Apache-2.0
// See replicactl_text.hpp. The status text follows drbdsetup: two spaces a level, key:value words.
#include "tools/replicactl_text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "control/text.hpp"

namespace replica::replicactl {

using control::format_seconds;
using control::format_size;
using control::Json;

namespace {

std::string text_at(const Json& object, const char* key) {
    const auto found = object.is_object() ? object.find(key) : object.end();
    if (!object.is_object() || found == object.end() || found->is_null()) return "";
    return found->is_string() ? found->get<std::string>() : control::dump_line(*found);
}

std::uint64_t number_at(const Json& object, const char* key) {
    if (!object.is_object() || !object.contains(key)) return 0;
    return object[key].is_number() ? object[key].get<std::uint64_t>() : 0;
}

bool flag_at(const Json& object, const char* key) {
    return object.is_object() && object.contains(key) && object[key] == true;
}

const Json& list_at(const Json& object, const char* key) {
    static const Json empty = Json::array();
    if (!object.is_object() || !object.contains(key) || !object[key].is_array()) return empty;
    return object[key];
}

std::string why_line(const Json& object, int indent) {
    const auto why = text_at(object, "why");
    return why.empty() ? "" : fmt::format("{:{}}# {}\n", "", indent, why);
}

double share(std::uint64_t part, std::uint64_t whole) {
    return whole == 0 ? 1.0
                      : static_cast<double>(std::min(part, whole)) / static_cast<double>(whole);
}

std::string progress_line(const Json& device, const StatusStyle& style) {
    const auto total = number_at(device, "resync-total-bytes");
    const auto resynced = number_at(device, "resync-done-bytes");
    const auto rate = number_at(device, "resync-bytes-per-s");
    const double part = share(resynced, total);
    const auto filled = static_cast<std::size_t>(part * style.bar_columns);
    std::string line = fmt::format("    [{}{}] {:5.1f}%  {} of {}", std::string(filled, '#'),
                                   std::string(style.bar_columns - filled, '-'), part * 100,
                                   format_size(resynced), format_size(total));
    if (rate > 0) {
        line += fmt::format("  {}/s  ETA {}", format_size(rate),
                            format_seconds((total - std::min(resynced, total) + rate - 1) / rate));
    }
    return line + "\n";
}

std::string peer_device_text(const Json& device, const StatusStyle& style) {
    const auto replication = text_at(device, "replication-state");
    const bool usual = replication == "Established" || replication == "Off" || replication.empty();
    std::string line = "   ";
    if (style.verbose || style.volumes) {
        line += fmt::format(" volume:{}", number_at(device, "volume"));
    }
    if (!usual || style.verbose) line += fmt::format(" replication:{}", replication);
    line += fmt::format(" peer-disk:{}", text_at(device, "peer-disk-state"));
    const auto paused = text_at(device, "resync-suspended");
    if (style.verbose || (!paused.empty() && paused != "no")) {
        line += fmt::format(" resync-suspended:{}", paused);
    }
    if (device.contains("done") && device["done"].is_number()) {
        line += fmt::format(" done:{:.2f}", device["done"].get<double>());
    }
    line += "\n";
    if (style.statistics) {
        line += fmt::format("        received:{} sent:{} out-of-sync:{} pending:{} unacked:{}\n",
                            number_at(device, "received"), number_at(device, "sent"),
                            number_at(device, "out-of-sync"), number_at(device, "pending"),
                            number_at(device, "unacked"));
    }
    const bool resync = number_at(device, "resync-total-bytes") > 0;
    if (style.progress && resync) line += progress_line(device, style);
    return line;
}

std::string connection_text(const Json& connection, const StatusStyle& style) {
    const auto state = text_at(connection, "connection-state");
    std::string text = fmt::format("  {}", text_at(connection, "name"));
    if (style.verbose) text += fmt::format(" node-id:{}", number_at(connection, "peer-node-id"));
    if (state != "Connected" || style.verbose) text += fmt::format(" connection:{}", state);
    if (state == "Connected" || style.verbose) {
        text += fmt::format(" role:{}", text_at(connection, "peer-role"));
    }
    text += "\n" + why_line(connection, 4);
    if (state != "Connected" && !style.verbose && !style.statistics) return text;
    for (const auto& device : list_at(connection, "peer_devices")) {
        text += peer_device_text(device, style);
    }
    return text;
}

std::string device_text(const Json& device, const StatusStyle& style) {
    std::string text = " ";
    if (style.verbose || style.volumes) {
        text += fmt::format(" volume:{}", number_at(device, "volume"));
    }
    text += fmt::format(" disk:{}", text_at(device, "disk-state"));
    if (style.verbose) {
        text += fmt::format(" size:{} uuid:{}", format_size(number_at(device, "size-bytes")),
                            text_at(device, "current-uuid"));
    }
    for (const auto& door : list_at(device, "doors")) {
        if (door.is_string()) text += fmt::format(" door:{}", door.get<std::string>());
    }
    text += "\n";
    if (style.statistics) {
        text += fmt::format(
            "      size:{} read:{} written:{} al-writes:{} bm-writes:{} md-writes:{} al-used:{}\n",
            number_at(device, "size"), number_at(device, "read"), number_at(device, "written"),
            number_at(device, "al-writes"), number_at(device, "bm-writes"),
            number_at(device, "md-writes"), number_at(device, "al-used"));
    }
    return text;
}

std::string nanoseconds(double ns) {
    if (ns < 1e3) return fmt::format("{:.0f}ns", ns);
    if (ns < 1e6) return fmt::format("{:.1f}us", ns / 1e3);
    if (ns < 1e9) return fmt::format("{:.1f}ms", ns / 1e6);
    return fmt::format("{:.2f}s", ns / 1e9);
}

// Within the bucket that holds the quantile, linearly: the buckets are powers of two.
double quantile_ns(const Json& histogram, double quantile) {
    const auto total = number_at(histogram, "total");
    const auto& counts = list_at(histogram, "counts-log2-ns");
    double left = quantile * static_cast<double>(total);
    for (std::size_t i = 0; i < counts.size(); ++i) {
        const auto count = counts[i].is_number() ? counts[i].get<double>() : 0;
        const double low = std::ldexp(1.0, static_cast<int>(i));
        if (count > 0 && left <= count) {
            return std::min(low + low * left / count,
                            static_cast<double>(number_at(histogram, "max-ns")));
        }
        left -= count;
    }
    return static_cast<double>(number_at(histogram, "max-ns"));
}

}  // namespace

std::string status_text(const Json& list, const StatusStyle& style) {
    std::string text;
    for (const auto& resource : list) {
        text += fmt::format("{} role:{}", text_at(resource, "name"), text_at(resource, "role"));
        if (style.verbose) text += fmt::format(" node-id:{}", number_at(resource, "node-id"));
        if (!flag_at(resource, "up")) text += " down";
        if (flag_at(resource, "suspended")) text += " suspended:yes";
        text += "\n" + why_line(resource, 2);
        for (const auto& device : list_at(resource, "devices"))
            text += device_text(device, style);
        for (const auto& connection : list_at(resource, "connections")) {
            text += connection_text(connection, style);
        }
        text += "\n";
    }
    return text.empty() ? "# no resource is defined\n" : text;
}

std::string stats_text(const Json& stats) {
    std::string text = fmt::format("{:<14} {:>10} {:>9} {:>9} {:>9} {:>9}\n", "part", "count",
                                   "mean", "p50", "p99", "max");
    if (!stats.is_object()) return text;
    for (const char* part :
         {"write-total", "write-local", "write-remote", "read-total", "flush-total"}) {
        if (!stats.contains(part)) continue;
        const Json& histogram = stats[part];
        const auto total = number_at(histogram, "total");
        const double mean = total == 0 ? 0
                                       : static_cast<double>(number_at(histogram, "sum-ns")) /
                                             static_cast<double>(total);
        text += fmt::format("{:<14} {:>10} {:>9} {:>9} {:>9} {:>9}\n", part, total,
                            nanoseconds(mean), nanoseconds(quantile_ns(histogram, 0.5)),
                            nanoseconds(quantile_ns(histogram, 0.99)),
                            nanoseconds(static_cast<double>(number_at(histogram, "max-ns"))));
    }
    return text;
}

std::string event_text(const Json& event) {
    std::string line = fmt::format("{} {} name:{}", text_at(event, "action"),
                                   text_at(event, "kind"), text_at(event, "resource"));
    const auto peer = text_at(event, "peer");
    const auto detail = text_at(event, "detail");
    if (!peer.empty()) line += " peer:" + peer;
    if (!detail.empty()) line += " " + detail;
    return line;
}

std::string exists_text(const Json& list) {
    std::string text;
    for (const auto& resource : list) {
        const auto name = text_at(resource, "name");
        text +=
            fmt::format("exists resource name:{} role:{} suspended:{}\n", name,
                        text_at(resource, "role"), flag_at(resource, "suspended") ? "yes" : "no");
        for (const auto& device : list_at(resource, "devices")) {
            text += fmt::format("exists device name:{} volume:{} disk:{}\n", name,
                                number_at(device, "volume"), text_at(device, "disk-state"));
        }
        for (const auto& peer : list_at(resource, "connections")) {
            text += fmt::format("exists connection name:{} peer:{} connection:{} role:{}\n", name,
                                text_at(peer, "name"), text_at(peer, "connection-state"),
                                text_at(peer, "peer-role"));
            for (const auto& device : list_at(peer, "peer_devices")) {
                text += fmt::format(
                    "exists peer-device name:{} peer:{} volume:{} replication:{} peer-disk:{}\n",
                    name, text_at(peer, "name"), number_at(device, "volume"),
                    text_at(device, "replication-state"), text_at(device, "peer-disk-state"));
            }
        }
    }
    return text + "exists -\n";
}

static std::string remarks_text(const Json& object) {
    std::string text;
    for (const auto& remark : list_at(object, "remarks")) {
        if (remark.is_string()) text += "# " + remark.get<std::string>() + "\n";
    }
    return text;
}

std::string resize_text(const Json& result) {
    const auto room = number_at(result, "room-bytes");
    std::string text = fmt::format("size:{} room:{}\n",
                                   format_size(number_at(result, "size-bytes")), format_size(room));
    for (const auto& peer : list_at(result, "waits-for")) {
        const bool connected = peer.value("connected", false);
        text += fmt::format("# waits for {}: {}\n", text_at(peer, "name"),
                            connected ? fmt::format("it has room for {}; say the same resize there",
                                                    format_size(number_at(peer, "room-bytes")))
                                      : "it is not connected with its disk");
    }
    return text + remarks_text(result);
}

std::string upgrade_text(const Json& report) {
    std::string text = fmt::format("{} -> {}\n", text_at(report, "from"), text_at(report, "to"));
    for (const auto& door : list_at(report, "doors")) {
        const double adopted = door.value("adopted-ms", 0.0), pause = door.value("pause-ms", 0.0);
        const std::string name =
            fmt::format("{}, {}", text_at(door, "resource"), text_at(door, "door"));
        text += pause > 0
                    ? fmt::format("{}: I/O paused for {:.0f} ms\n", name, pause)
                    : fmt::format("{}: adopted after {:.0f} ms, not used since\n", name, adopted);
    }
    return text + remarks_text(report);
}

std::string zeroing_line(const Json& list) {
    for (const auto& resource : list) {
        for (const auto& device : list_at(resource, "devices")) {
            const auto total = number_at(device, "zeroing-total-bytes");
            if (total == 0) continue;
            const auto done = number_at(device, "zeroing-done-bytes");
            return fmt::format("zeroing the new room: {} of {} ({}%)", format_size(done),
                               format_size(total), done * 100 / total);
        }
    }
    return "";
}

std::string plain_text(const Json& object, const std::string& indent) {
    std::string text;
    for (const auto& item : object.items()) {
        const Json& value = item.value();
        const bool nested =
            value.is_object() || (value.is_array() && !value.empty() && value.front().is_object());
        if (!nested) {
            text += fmt::format(
                "{}{} {}\n", indent, item.key(),
                value.is_string() ? value.get<std::string>() : control::dump_line(value));
            continue;
        }
        const Json items = value.is_array() ? value : Json::array({value});
        for (const auto& each : items) {
            text += fmt::format("{}{}\n{}", indent, item.key(), plain_text(each, indent + "  "));
        }
    }
    return text;
}

}  // namespace replica::replicactl
