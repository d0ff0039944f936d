// SPDX-License-Identifier: Apache-2.0
#include "engine/core/types.hpp"

namespace replica {

const char* name_of(Role role) {
    switch (role) {
        case Role::unknown:
            return "Unknown";
        case Role::primary:
            return "Primary";
        case Role::secondary:
            return "Secondary";
    }
    return "?";
}

const char* name_of(DiskState state) {
    switch (state) {
        case DiskState::diskless:
            return "Diskless";
        case DiskState::attaching:
            return "Attaching";
        case DiskState::failed:
            return "Failed";
        case DiskState::inconsistent:
            return "Inconsistent";
        case DiskState::outdated:
            return "Outdated";
        case DiskState::unknown:
            return "DUnknown";
        case DiskState::consistent:
            return "Consistent";
        case DiskState::up_to_date:
            return "UpToDate";
    }
    return "?";
}

const char* name_of(ConnectionState state) {
    switch (state) {
        case ConnectionState::standalone:
            return "StandAlone";
        case ConnectionState::unconnected:
            return "Unconnected";
        case ConnectionState::connecting:
            return "Connecting";
        case ConnectionState::connected:
            return "Connected";
    }
    return "?";
}

const char* name_of(ReplicationState state) {
    switch (state) {
        case ReplicationState::off:
            return "Off";
        case ReplicationState::established:
            return "Established";
        case ReplicationState::bitmap_source:
            return "WFBitMapS";
        case ReplicationState::bitmap_target:
            return "WFBitMapT";
        case ReplicationState::sync_source:
            return "SyncSource";
        case ReplicationState::sync_target:
            return "SyncTarget";
        case ReplicationState::paused_source:
            return "PausedSyncS";
        case ReplicationState::paused_target:
            return "PausedSyncT";
    }
    return "?";
}

}  // namespace replica
