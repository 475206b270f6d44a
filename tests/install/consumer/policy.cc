// A policy of one's own, beside the library's: it reads every stride-th page, and the last one. The engine, its cache and
// its kernels are the installed ones.
#include <quire/core/engine/engine.h>
#include <quire/kernels/selection/add_policy.h>

#include <charconv>
#include <cstdio>
#include <iostream>

namespace {

class StridedPolicy : public quire::AttentionPolicy {
 public:
  explicit StridedPolicy(int stride) : stride_(stride) {}

  std::string_view name() const override { return "strided"; }
  int64_t token_budget() const override { return 0; }
  quire::PageDataNeeds Declare() const override { return {.queries = false}; }
  bool IsDense(int64_t length, int, int page_size) const override { return length <= page_size; }
  int MaxPages(int64_t length, int page_size) const override {
    const int64_t pages = (length + page_size - 1) / page_size;
    return static_cast<int>((pages + stride_ - 1) / stride_ + 1);
  }
  size_t SelectWorkspace(const quire::SelectParams&) const override { return 0; }
  int64_t SelectBytes(const quire::SelectParams&) const override { return 0; }
  void Select(const quire::Context&, const quire::SelectParams& p, quire::SelectionView selection, void*) const override {
    const quire::PageFormat& format = p.table.format;
    for (int row = 0; row < p.rows; ++row) {
      const int last = (p.row_len[row] - 1) / format.page_size;
      for (int head = 0; head < format.kv_heads; ++head) {
        const int64_t list = int64_t{row} * format.kv_heads + head;
        int32_t* out = selection.pages + list * selection.max_pages;
        int count = 0;
        for (int page = 0; page < last; page += stride_) out[count++] = page;
        out[count++] = last;
        selection.counts[list] = count;
      }
    }
  }

 private:
  int stride_;
};

quire::Result<std::unique_ptr<quire::AttentionPolicy>> MakeStrided(const std::map<std::string, std::string>& options,
                                                                   const quire::PolicyShape&) {
  int stride = 2;
  for (const auto& [name, value] : options) {
    const char* end = value.data() + value.size();
    if (name != "stride") return quire::InvalidArgument("strided has no option '" + name + "'; it takes stride");
    if (std::from_chars(value.data(), end, stride).ptr != end || stride < 1) {
      return quire::InvalidArgument("strided: stride is " + value + "; it must be at least 1");
    }
  }
  return std::unique_ptr<quire::AttentionPolicy>(std::make_unique<StridedPolicy>(stride));
}

}  // namespace

int main(int, char** argv) {
  const quire::Status added =
      quire::AddPolicy({"strided", "nobody's", "every stride-th page of K and V", "stride (default 2)"}, MakeStrided);
  if (!added.ok()) return std::fprintf(stderr, "%s\n", added.ToString().c_str()), 1;
  quire::EngineOptions options;
  options.model = argv[1];
  options.page_size = 4;
  options.attention = {*quire::AttentionSpec::Parse("strided"), *quire::AttentionSpec::Parse("strided:stride=1"), {}};
  auto engine = quire::Engine::Create(options);
  if (!engine.ok()) return std::fprintf(stderr, "%s\n", engine.status().ToString().c_str()), 1;
  // Every page is read with a stride of 1, so that text is dense attention's; with 2, about half.
  for (const quire::AttentionSpec& attention : options.attention) {
    quire::GenerationRequest request;
    request.prompt = *(*engine)->tokenizer()->Encode("Once upon a time", {});
    request.sampling.temperature = 0;
    request.stopping.max_tokens = 40;
    request.attention = attention;
    std::string text;
    double share = 0;
    auto id = (*engine)->Submit(request, [&](const quire::TokenEvent& event) {
      text += event.text;
      if (event.finished) {
        share = static_cast<double>(event.attention.pages_read) / static_cast<double>(event.attention.pages_total);
      }
    });
    if (!id.ok() || !(*engine)->Run().ok()) return std::fprintf(stderr, "%s\n", id.status().ToString().c_str()), 1;
    std::cout << attention.ToString() << " reads " << static_cast<int>(100 * share + 0.5) << " %: " << text << "\n";
  }
  return 0;
}
