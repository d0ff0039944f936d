// SPDX-License-Identifier: Apache-2.0
// One header for Catch2 v2 (Debian 12) and v3 (newer systems).
#pragma once
#ifdef REPLICA_CATCH2_V3
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif
