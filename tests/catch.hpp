// SPDX-License-Identifier: Apache-2.0
// One header for Catch2 v2 (Debian 12) and v3 (newer systems). Tests include this and nothing of
// Catch2 directly; tests/CMakeLists.txt finds out which of the two there is.
#pragma once
#ifdef REPLICA_CATCH2_V3
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif
