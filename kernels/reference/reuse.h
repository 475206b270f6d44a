// Reference of reuse=R: a sequence's lists, step by step.
#pragma once

#include <cstdint>
#include <vector>

namespace quire::reference {

// Of one (sequence, KV head).
class Reuse {
 public:
  explicit Reuse(int steps) : steps_(steps) {}

  // The list of the step that attends to `length` tokens; fresh: what the policy itself chooses there. It is taken at
  // the first step and at positions that R divides; between, the last one taken with every page born since.
  std::vector<int32_t> List(int length, int page_size, const std::vector<int32_t>& fresh) {
    const int pages = (length + page_size - 1) / page_size;
    if (pages_ == 0 || (length - 1) % steps_ == 0) {
      taken_ = fresh;
      pages_ = pages;
    }
    std::vector<int32_t> list = taken_;
    for (int page = pages_; page < pages; ++page) list.push_back(page);
    return list;
  }

 private:
  int steps_;
  std::vector<int32_t> taken_;
  int pages_ = 0;  // there were when it was taken
};

}  // namespace quire::reference
