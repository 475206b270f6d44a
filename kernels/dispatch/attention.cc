// Attention with the Mods that models ask for by numbers.
#include <algorithm>

#include "kernels/attention_decode.h"
#include "kernels/attention_mass.h"
#include "kernels/attention_prefill.h"
#include "kernels/cpu/ops.h"
#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/attention_prefill.h"
#include "kernels/cuda/prefill_mass.h"
#include "kernels/dispatch/dispatch.h"

namespace quire {
namespace {

// Of a row's list.
int MostPages(const AttentionDecodeParams& p, const ModelMod& mod) {
  if (p.selection != nullptr) return p.selection->max_pages;
  const int64_t page_size = p.table.format.page_size;
  int64_t tokens = p.longest;
  if (mod.window > 0) tokens = std::min(tokens, mod.window + page_size - 1);  // it may begin with a page's last token
  return static_cast<int>((tokens + page_size - 1) / page_size);
}

// What a row of p is in the words of PrefillMass.
PrefillMassParams MassOfRow(const SlotMassParams& p, int row) {
  PrefillMassParams m;
  m.q = p.q;
  m.q_stride = p.q_stride;
  m.lse = p.lse;
  m.q_heads = p.q_heads;
  m.pages = p.pages;
  m.table = p.table;
  m.scale = p.scale;
  m.by_token = true;
  m.chunk = {p.row_seq[row], row, 1, p.row_len[row] - 1};
  m.mass = p.mass + row * p.table.format.kv_heads * p.mass_slots;
  m.mass_pages = p.mass_slots;
  return m;
}

}  // namespace

size_t AttentionDecodeWorkspace(const Context& ctx, const AttentionDecodeParams& params, const ModelMod& mod) {
  return DispatchValue(
      ctx, [&] { return AttentionDecodeWorkspace(params); },
      [&] { return cuda::AttentionDecodeWorkspace(params, MostPages(params, mod)); });
}

void AttentionDecode(const Context& ctx, const AttentionDecodeParams& params, void* workspace, const ModelMod& numbers) {
  WithModelMod(numbers, [&](const auto& mod) {
    Dispatch(
        ctx, [&] { AttentionDecode(ctx, params, mod, workspace); },
        [&](Stream stream) -> Status {
          if (params.rows == 0) return OkStatus();
          return cuda::AttentionDecode(stream, params, MostPages(params, numbers), mod, workspace, ctx.session->counters());
        });
  });
}

size_t AttentionPrefillWorkspace(const Context& ctx, const AttentionPrefillParams& params) {
  return DispatchValue(
      ctx, [&] { return cpu::AttentionPrefillWorkspace(ctx, params); }, [&] { return size_t{0}; });
}

void AttentionPrefill(const Context& ctx, const AttentionPrefillParams& params, void* workspace, const ModelMod& numbers) {
  WithModelMod(numbers, [&](const auto& mod) {
    Dispatch(
        ctx, [&] { AttentionPrefill(ctx, params, mod, workspace); },
        [&](Stream stream) -> Status {
          if (params.num_chunks == 0) return OkStatus();
          return cuda::AttentionPrefill(stream, params, params.rows, mod);
        });
  });
}

size_t PrefillMassWorkspace(const Context& ctx, const PrefillMassParams& params) {
  return DispatchValue(
      ctx, [&] { return cpu::PrefillMassWorkspace(ctx, params); }, [&] { return size_t{0}; });
}

void PrefillMass(const Context& ctx, const PrefillMassParams& params, void* workspace, const ModelMod& numbers) {
  WithModelMod(numbers, [&](const auto& mod) {
    Dispatch(
        ctx, [&] { PrefillMass(ctx, params, mod, workspace); },
        [&](Stream stream) -> Status {
          if (params.chunk.rows == 0) return OkStatus();
          return cuda::PrefillMass(stream, params, mod);
        });
  });
}

size_t SlotMassWorkspace(const Context& ctx, const SlotMassParams& params) {
  PrefillMassParams row;
  row.table = params.table;
  return PrefillMassWorkspace(ctx, row);
}

void SlotMass(const Context& ctx, const SlotMassParams& params, void* workspace, float softcap) {
  WithModelMod({.softcap = softcap}, [&](const auto& mod) {
    Dispatch(
        ctx,
        [&] {
          for (int row = 0; row < params.rows; ++row) PrefillMass(ctx, MassOfRow(params, row), mod, workspace);
        },
        [&](Stream stream) -> Status {
          if (params.rows == 0) return OkStatus();
          return cuda::SlotMass(stream, params, mod);
        });
  });
}

}  // namespace quire
