// SPDX-License-Identifier: Apache-2.0
// What replicactl prints for people, made from the JSON of the control protocol. Pure functions, so
// that tests can compare text; they accept documents with members missing, as another version of
// the daemon may send them.
#pragma once

#include <string>

#include "control/codec.hpp"

namespace replica::replicactl {

struct StatusStyle {
    bool verbose = false;     // every field of state, also those that have their usual value
    bool volumes = false;     // which volume, also without verbose
    bool statistics = false;  // counters
    bool progress = false;    // a bar with rate and time left below a running resync
    unsigned bar_columns = 30;
};

// `list` is the result of "status". Ends with a newline; a text of its own for no resources.
std::string status_text(const control::Json& list, const StatusStyle& style);

// Of an upgrade that has happened: versions, and how long the I/O of each block device paused.
std::string upgrade_text(const control::Json& report);

// The result of "stats": one line a part with count, mean, p50, p99 and maximum.
std::string stats_text(const control::Json& stats);

// One line of `events`: "change connection name:r0 peer:beta Connecting", without a newline.
std::string event_text(const control::Json& event);
// The lines that `events` begins with, "exists ..." for everything there is.
std::string exists_text(const control::Json& list);

// The result of "resource.resize".
std::string resize_text(const control::Json& result);
// How far the zeroing of new room is, by the result of "status"; empty: none is under way. Without
// a newline.
std::string zeroing_line(const control::Json& list);

// "key value" lines, nested objects indented, for show and options.
std::string plain_text(const control::Json& object, const std::string& indent = "");

}  // namespace replica::replicactl
