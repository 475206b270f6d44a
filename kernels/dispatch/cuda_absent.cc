// kernels/cuda in a build without nvcc. Nothing gets here: without a GPU no DeviceSession is made.
#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/attention_prefill.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/hierarchical.h"
#include "kernels/cuda/hybrid.h"
#include "kernels/cuda/kv_append.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/missing_mass.h"
#include "kernels/cuda/page_fill.h"
#include "kernels/cuda/page_history.h"
#include "kernels/cuda/page_ops.h"
#include "kernels/cuda/page_weights.h"
#include "kernels/cuda/prefill_mass.h"
#include "kernels/cuda/quest.h"
#include "kernels/cuda/reuse.h"
#include "kernels/cuda/sinks.h"
#include "kernels/cuda/slot_map.h"
#include "kernels/cuda/sparq.h"
#include "kernels/cuda/top_candidates.h"
#include "kernels/cuda/top_pages.h"

namespace quire::cuda {
namespace {
Status Absent() { return FailedPrecondition("this build has no CUDA kernels (QUIRE_CUDA); use --device cpu"); }
}  // namespace

size_t AttentionDecodeWorkspace(const AttentionDecodeParams&, int) { return 0; }
template <class Mod>
Status AttentionDecode(Stream, const AttentionDecodeParams&, int, const Mod&, void*, int32_t*) {
  return Absent();
}
template Status AttentionDecode(Stream, const AttentionDecodeParams&, int, const PlainMod&, void*, int32_t*);
template Status AttentionDecode(Stream, const AttentionDecodeParams&, int, const SoftCapMod&, void*, int32_t*);
template <class Mod>
Status AttentionPrefill(Stream, const AttentionPrefillParams&, int64_t, const Mod&) {
  return Absent();
}
template Status AttentionPrefill(Stream, const AttentionPrefillParams&, int64_t, const PlainMod&);
template Status AttentionPrefill(Stream, const AttentionPrefillParams&, int64_t, const SoftCapMod&);
template <class Mod>
Status PrefillMass(Stream, const PrefillMassParams&, const Mod&) {
  return Absent();
}
template Status PrefillMass(Stream, const PrefillMassParams&, const PlainMod&);
template Status PrefillMass(Stream, const PrefillMassParams&, const SoftCapMod&);
template <class Mod>
Status SlotMass(Stream, const SlotMassParams&, const Mod&) {
  return Absent();
}
template Status SlotMass(Stream, const SlotMassParams&, const PlainMod&);
template Status SlotMass(Stream, const SlotMassParams&, const SoftCapMod&);
Status RmsNorm(Stream, DType, DType, const RmsNormParams&) { return Absent(); }
Status HeadRmsNorm(Stream, DType, const HeadRmsNormParams&) { return Absent(); }
Status AddToResidual(Stream, DType, const void*, float*, int64_t, int64_t) { return Absent(); }
Status SiluMul(Stream, DType, DType, const void*, void*, int64_t, int64_t) { return Absent(); }
Status GeluTanhMul(Stream, DType, DType, const void*, void*, int64_t, int64_t) { return Absent(); }
Status Scale(Stream, float, float*, int64_t) { return Absent(); }
Status SoftCapRows(Stream, float, float*, int64_t) { return Absent(); }
Status Narrow(Stream, DType, const float*, int64_t, int64_t, int64_t, void*) { return Absent(); }
Status Embed(Stream, DType, const EmbedParams&) { return Absent(); }
Status RopeTable(Stream, const RopeTableParams&) { return Absent(); }
Status Rope(Stream, const RopeParams&) { return Absent(); }
Status KvAppend(Stream, DType, const KvAppendParams&) { return Absent(); }
Result<std::unique_ptr<Matmul>> MakeMatmul(Device) { return Absent(); }
size_t MissingMassWorkspace(const PageFormat&, int, int, int) { return 0; }
Status MissingMass(Stream, const MissingMassParams&, void*) { return Absent(); }
Status FillPages(Stream, const PageFillParams&) { return Absent(); }
Status CopyPages(Stream, const LayersOfPages&, const PageCopies&) { return Absent(); }
Status ZeroPages(Stream, const LayersOfPages&, const int32_t*, int) { return Absent(); }
Status CopyGroups(Stream, const LayersOfPages&, const PageCopies&, const int32_t*) { return Absent(); }
Status ResetGroups(Stream, const LayersOfPages&, const int32_t*, int) { return Absent(); }
Status RecomputeMetadata(Stream, const LayersOfPages&, const MetadataRecompute*, int) { return Absent(); }
Status RememberMass(Stream, HistoryRule, const RememberParams&) { return Absent(); }
Status HistoryScores(Stream, HistoryRule, const HistoryScoresParams&) { return Absent(); }
Status EvictSlots(Stream, int64_t, int64_t, const EvictParams&) { return Absent(); }
Status RememberSlots(Stream, SlotRule, const RememberSlotsParams&) { return Absent(); }
Status QuestSelect(Stream, DType, const QuestParams&, SelectionView) { return Absent(); }
Status ListPages(Stream, const QuestParams&, SelectionView) { return Absent(); }
Status HierarchicalSelect(Stream, const HierarchicalParams&, SelectionView) { return Absent(); }
Status HybridSelect(Stream, const QuestParams&, int, SelectionView) { return Absent(); }
Status PageWeights(Stream, const PageWeightsParams&) { return Absent(); }
Status TopPages(Stream, const TopPagesParams&, int) { return Absent(); }
Status TopShare(Stream, const TopShareParams&) { return Absent(); }
Status RowsThatSelect(Stream, const ReuseParams&) { return Absent(); }
Status KeepOrList(Stream, const ReuseParams&) { return Absent(); }
Status TopTokens(Stream, const TopTokensParams&) { return Absent(); }
Status SparqCorrect(Stream, const SparqCorrectionParams&) { return Absent(); }
Status SinkPages(Stream, const SinkPagesParams&) { return Absent(); }
Status SinkLengths(Stream, int, int, int32_t*) { return Absent(); }
Status MergeSinks(Stream, const MergeSinksParams&) { return Absent(); }
TopCandidatesConfig TopCandidatesConfig::For(int64_t, int64_t, int) { return {}; }
Status TopCandidates(Stream, DType, const TopCandidatesParams&) { return Absent(); }
Status GatherLogits(Stream, DType, const GatherLogitsParams&) { return Absent(); }

}  // namespace quire::cuda
