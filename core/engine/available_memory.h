// How much memory this process may still take: what the machine has left, and no more than its control group allows, for
// the kernel kills what goes beyond either. Reading only; what to do about it is the plan's business.
#pragma once

#include <cstddef>
#include <string>

namespace quire {

// Bytes: the least of MemAvailable in /proc/meminfo and, for the process's control group and each one above it (v2, or
// v1's memory controller), its limit − its use, where pages of files count as free, for they are given up first.
// 0 when nothing can be read. root: put before every path, for tests.
size_t AvailableMemory(const std::string& root = "");

}  // namespace quire
