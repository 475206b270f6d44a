// The contract every communicator keeps, run by all ranks of a group at once. Values are small integers, whose
// float sums are exact in any order. Each check returns "" or a sentence, so that it works on threads and processes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace quire::testing {

inline TensorView View(std::vector<float>& data) {
  return {data.data(), DType::kF32, {static_cast<int64_t>(data.size())}, {}};
}

// Rank r's i-th value in round `salt`.
inline float Value(int rank, int64_t i, int salt) { return static_cast<float>((i * 7 + rank * 13 + salt * 3) % 101 - 50); }

inline std::string Expect(bool ok, const std::string& what) { return ok ? "" : what; }

inline std::string CheckSize(Communicator& comm, int64_t n, int salt) {
  const int rank = comm.rank(), size = comm.size();
  const std::string where = " of " + std::to_string(n) + " on rank " + std::to_string(rank) + "/" + std::to_string(size);
  std::vector<float> mine(n);
  for (int64_t i = 0; i < n; ++i) mine[i] = Value(rank, i, salt);

  std::vector<float> sum = mine;
  if (Status s = comm.AllReduce(View(sum)); !s.ok()) return s.ToString() + where;
  for (int64_t i = 0; i < n; ++i) {
    float want = 0;
    for (int r = 0; r < size; ++r) want += Value(r, i, salt);
    if (sum[i] != want) return "AllReduce" + where + " is wrong at " + std::to_string(i);
  }

  std::vector<float> all(n * size, -1e9f);
  if (Status s = comm.AllGather(View(mine), View(all)); !s.ok()) return s.ToString() + where;
  for (int64_t i = 0; i < n * size; ++i) {
    if (all[i] != Value(static_cast<int>(i / n), i % n, salt)) return "AllGather" + where + " is wrong";
  }

  // Rank r gives n + r elements, the last one nothing (when there are several).
  std::vector<int64_t> counts(size);
  int64_t total = 0;
  for (int r = 0; r < size; ++r) total += counts[r] = (size > 1 && r == size - 1) ? 0 : n + r;
  std::vector<float> part(counts[rank]), parts(total, -1e9f);
  for (size_t i = 0; i < part.size(); ++i) part[i] = Value(rank, static_cast<int64_t>(i), salt + 1);
  if (Status s = comm.AllGatherV(View(part), View(parts), counts); !s.ok()) return s.ToString() + where;
  for (int64_t r = 0, at = 0; r < size; at += counts[r], ++r) {
    for (int64_t i = 0; i < counts[r]; ++i) {
      if (parts[at + i] != Value(static_cast<int>(r), i, salt + 1)) return "AllGatherV" + where + " is wrong";
    }
  }

  std::vector<float> wide(n * size), slice(n, -1e9f);
  for (int64_t i = 0; i < n * size; ++i) wide[i] = Value(rank, i, salt + 2);
  if (Status s = comm.ReduceScatter(View(wide), View(slice)); !s.ok()) return s.ToString() + where;
  for (int64_t i = 0; i < n; ++i) {
    float want = 0;
    for (int r = 0; r < size; ++r) want += Value(r, rank * n + i, salt + 2);
    if (slice[i] != want) return "ReduceScatter" + where + " is wrong";
  }

  for (int root = 0; root < size; ++root) {
    std::vector<float> data(n);
    for (int64_t i = 0; i < n; ++i) data[i] = Value(rank, i, salt + 4 + root);
    if (Status s = comm.Broadcast(View(data), root); !s.ok()) return s.ToString() + where;
    for (int64_t i = 0; i < n; ++i) {
      if (data[i] != Value(root, i, salt + 4 + root)) return "Broadcast" + where + " is wrong";
    }
  }

  // A ring: even ranks send first, so that blocking calls can't lock.
  if (size > 1) {
    const int next = (rank + 1) % size, before = (rank + size - 1) % size;
    std::vector<float> got(n, -1e9f);
    const auto send = [&] { return comm.Send(View(mine), next); };
    const auto recv = [&] { return comm.Recv(View(got), before); };
    const Status first = rank % 2 == 0 ? send() : recv();
    if (!first.ok()) return first.ToString() + where;
    const Status second = rank % 2 == 0 ? recv() : send();
    if (!second.ok()) return second.ToString() + where;
    for (int64_t i = 0; i < n; ++i) {
      if (got[i] != Value(before, i, salt)) return "Send and Recv" + where + " are wrong";
    }
  }
  return "";
}

// Sums whose rounding depends on the order: all ranks must get the bits of rank order.
inline std::string CheckRankOrder(Communicator& comm, int64_t n) {
  const auto value = [](int rank, int64_t i) { return 1.0f / static_cast<float>(1 + rank * 31 + i % 97); };
  std::vector<float> data(n);
  for (int64_t i = 0; i < n; ++i) data[i] = value(comm.rank(), i);
  if (Status s = comm.AllReduce(View(data)); !s.ok()) return s.ToString();
  for (int64_t i = 0; i < n; ++i) {
    float want = value(0, i);
    for (int r = 1; r < comm.size(); ++r) want += value(r, i);
    if (data[i] != want) return "AllReduce did not sum in rank order at " + std::to_string(i);
  }
  return "";
}

// Collectives that only move data move every element type, byte for byte; a gather may send from its own place.
inline std::string CheckTypes(Communicator& comm, int64_t n) {
  const int rank = comm.rank(), size = comm.size();
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kI8, DType::kI32, DType::kU8}) {
    const int64_t bytes = n * ElementSize(dtype);
    const auto value = [&](int r, int64_t i) { return static_cast<uint8_t>(r * 37 + i * 11 + static_cast<int>(dtype)); };
    const std::string what = std::string(DTypeName(dtype)) + " on rank " + std::to_string(rank) + " went wrong in ";
    std::vector<uint8_t> all(static_cast<size_t>(bytes * size)), parts(all.size()), copy(static_cast<size_t>(bytes));
    uint8_t* mine = all.data() + rank * bytes;
    for (int64_t i = 0; i < bytes; ++i) copy[i] = mine[i] = value(rank, i);
    const TensorView whole{all.data(), dtype, {n * size}, {}}, part{mine, dtype, {n}, {}};
    if (Status s = comm.AllGather(part, whole); !s.ok()) return what + s.ToString();
    const std::vector<int64_t> counts(static_cast<size_t>(size), n);
    if (Status s = comm.AllGatherV({copy.data(), dtype, {n}, {}}, {parts.data(), dtype, {n * size}, {}}, counts); !s.ok()) {
      return what + s.ToString();
    }
    for (int64_t i = 0; i < bytes * size; ++i) {
      const uint8_t want = value(static_cast<int>(i / std::max<int64_t>(bytes, 1)), i % std::max<int64_t>(bytes, 1));
      if (all[i] != want) return what + "AllGather in place";
      if (parts[i] != want) return what + "AllGatherV";
    }
    if (Status s = comm.Broadcast({copy.data(), dtype, {n}, {}}, size - 1); !s.ok()) return what + s.ToString();
    for (int64_t i = 0; i < bytes; ++i) {
      if (copy[i] != value(size - 1, i)) return what + "Broadcast";
    }
    if (size < 2 || rank > 1) continue;
    // Rank 0 gives rank 1 its own.
    if (Status s = rank == 0 ? comm.Send(part, 1) : comm.Recv({copy.data(), dtype, {n}, {}}, 0); !s.ok()) {
      return what + s.ToString();
    }
    for (int64_t i = 0; rank == 1 && i < bytes; ++i) {
      if (copy[i] != value(0, i)) return what + "Send and Recv";
    }
  }
  return "";
}

// "" when the group keeps the contract.
inline std::string CheckContract(Communicator& comm) {
  int salt = 0;
  for (int64_t n : {int64_t{0}, int64_t{1}, int64_t{3}, int64_t{17}, int64_t{4096}, int64_t{4097}, int64_t{100003}}) {
    if (std::string e = CheckSize(comm, n, salt++); !e.empty()) return e;
  }
  for (int64_t n : {int64_t{5}, int64_t{20001}}) {
    if (std::string e = CheckRankOrder(comm, n); !e.empty()) return e;
  }
  for (int64_t n : {int64_t{1}, int64_t{33}}) {
    if (std::string e = CheckTypes(comm, n); !e.empty()) return e;
  }
  for (int i = 0; i < 50; ++i) {
    if (Status s = comm.Barrier(); !s.ok()) return s.ToString();
  }
  // Sizes that can't be right are refused before anything is sent.
  std::vector<float> a(3), b(comm.size() * 3 + 1);
  const auto invalid = [](const Status& s) { return s.code() == StatusCode::kInvalidArgument; };
  if (!invalid(comm.AllGather(View(a), View(b)))) return "AllGather took a buffer that doesn't fit";
  if (!invalid(comm.ReduceScatter(View(b), View(a)))) return "ReduceScatter took a buffer that doesn't fit";
  if (!invalid(comm.Broadcast(View(a), comm.size()))) return "Broadcast took a root that isn't there";
  if (!invalid(comm.Send(View(a), comm.rank()))) return "Send to oneself was taken";
  TensorView half = View(a);
  half.dtype = DType::kBF16;
  if (!invalid(comm.AllReduce(half))) return "AllReduce of bfloat16 was taken";
  return comm.Barrier().ok() ? "" : "the group broke";
}

}  // namespace quire::testing
