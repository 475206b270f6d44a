#include "tests/rpc/mutated_calls.h"

#include <grpcpp/generic/generic_stub.h>

#include <cstdlib>
#include <limits>
#include <set>

#include "tests/rpc/service_fixture.h"

namespace quire {
namespace {

uint64_t Seed() {
  const char* given = std::getenv("QUIRE_TEST_SEED");
  return given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
}

}  // namespace

MutatedCalls::MutatedCalls(std::shared_ptr<grpc::Channel> channel)
    : seed_(Seed()), random_(seed_), channel_(std::move(channel)) {}

std::string MutatedCalls::Mutated(const std::string& bytes) {
  std::string out = bytes;
  const int changes = 1 + static_cast<int>(random_() % 4);
  for (int i = 0; i < changes; ++i) {
    const size_t at = out.empty() ? 0 : random_() % out.size();
    switch (random_() % 5) {
      case 0: if (!out.empty()) out[at] = static_cast<char>(random_()); break;
      case 1: if (!out.empty()) out[at] = static_cast<char>(out[at] ^ (1 << random_() % 8)); break;
      case 2: out.insert(at, 1, static_cast<char>(random_())); break;
      case 3: if (!out.empty()) out.erase(at, 1 + random_() % 3); break;
      default: out.resize(at); break;
    }
  }
  return out;
}

// A message that can be read, with a few fields set to something.
void MutatedCalls::Scramble(google::protobuf::Message* message) {
  const auto* descriptor = message->GetDescriptor();
  const auto* reflection = message->GetReflection();
  if (descriptor->field_count() == 0) return;
  const auto* field = descriptor->field(static_cast<int>(random_() % descriptor->field_count()));
  static constexpr int32_t kInts[] = {0, -1, 1, 2, 3, 511, 512, 1024, 65536, 2147483647, -2147483647 - 1};
  static constexpr float kFloats[] = {0.0f, -1.0f, 0.5f, 1.0f, 1e30f, -1e-30f, std::numeric_limits<float>::infinity(),
                                      std::numeric_limits<float>::quiet_NaN()};
  const int32_t number = kInts[random_() % std::size(kInts)];
  const float real = kFloats[random_() % std::size(kFloats)];
  const std::string text = random_() % 4 == 0 ? std::string(300, 'x') : random_() % 2 ? "" : "ab\n\x01ä";
  using google::protobuf::FieldDescriptor;
  const bool many = field->is_repeated();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_MESSAGE:
      if (field->is_map()) return;
      Scramble(many ? reflection->AddMessage(message, field) : reflection->MutableMessage(message, field));
      return;
    case FieldDescriptor::CPPTYPE_INT32:
      many ? reflection->AddInt32(message, field, number) : reflection->SetInt32(message, field, number);
      return;
    case FieldDescriptor::CPPTYPE_UINT32:
      if (!many) reflection->SetUInt32(message, field, static_cast<uint32_t>(number));
      return;
    case FieldDescriptor::CPPTYPE_UINT64:
      if (!many) reflection->SetUInt64(message, field, random_());
      return;
    case FieldDescriptor::CPPTYPE_FLOAT:
      if (!many) reflection->SetFloat(message, field, real);
      return;
    case FieldDescriptor::CPPTYPE_BOOL:
      if (!many) reflection->SetBool(message, field, random_() % 2 == 0);
      return;
    case FieldDescriptor::CPPTYPE_STRING:
      many ? reflection->AddString(message, field, text) : reflection->SetString(message, field, text);
      return;
    default: return;
  }
}

v1::GenerateRequest MutatedCalls::GoodRequest() {
  v1::GenerateRequest request;
  request.add_prompts()->set_text("Once upon a time");
  request.set_request_id("f" + std::to_string(random_() % 8));
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_seed(3);
  request.mutable_sampling()->set_top_k(5);
  request.mutable_sampling()->set_top_p(0.9f);
  request.mutable_sampling()->set_n(2);
  request.mutable_penalties()->set_repetition_penalty(1.1f);
  (*request.mutable_logit_bias())[5] = 1;
  request.mutable_stopping()->set_max_tokens(3);
  request.mutable_stopping()->set_ignore_eos(true);
  request.mutable_stopping()->add_stop("zz");
  request.mutable_stopping()->add_stop_token_ids(9);
  request.mutable_response()->set_logprobs(2);
  request.mutable_attention()->set_policy("dense");
  request.set_client("me");
  if (random_() % 2) request.add_prompts()->mutable_token_ids()->add_ids(7);
  return request;
}

// One call of raw bytes to its end. A message that can be read has a status that these calls may have, with a
// sentence; bytes that are no message are refused by gRPC itself, which says nothing more.
void MutatedCalls::Call(const std::string& method, const std::string& bytes, bool readable) {
  grpc::GenericStub stub(channel_);
  grpc::ClientContext context;
  context.set_deadline(In(10));
  grpc::CompletionQueue queue;
  auto call = stub.PrepareCall(&context, method, &queue);
  void* tag = nullptr;
  bool ok = false;
  call->StartCall(nullptr);
  queue.Next(&tag, &ok);
  const grpc::Slice slice(bytes);
  grpc::ByteBuffer buffer(&slice, 1);
  if (ok) {
    call->Write(buffer, nullptr);
    queue.Next(&tag, &ok);
  }
  if (ok) {
    call->WritesDone(nullptr);
    queue.Next(&tag, &ok);
  }
  for (ok = true; ok;) {
    grpc::ByteBuffer answer;
    call->Read(&answer, nullptr);
    queue.Next(&tag, &ok);
  }
  grpc::Status status;
  call->Finish(&status, nullptr);
  queue.Next(&tag, &ok);
  queue.Shutdown();
  while (queue.Next(&tag, &ok)) {
  }
  static const std::set<grpc::StatusCode> kReadable = {grpc::OK,           grpc::INVALID_ARGUMENT,
                                                       grpc::NOT_FOUND,    grpc::ALREADY_EXISTS,
                                                       grpc::OUT_OF_RANGE, grpc::RESOURCE_EXHAUSTED,
                                                       grpc::FAILED_PRECONDITION,  // of a hello
                                                       // 1,024 sequences may take long
                                                       grpc::DEADLINE_EXCEEDED,
                                                       grpc::UNIMPLEMENTED};
  // A stream of messages that ends in one that can't be read has ended.
  static const std::set<grpc::StatusCode> kUnreadable = {grpc::INTERNAL, grpc::UNIMPLEMENTED, grpc::OK,
                                                         grpc::INVALID_ARGUMENT};
  EXPECT_TRUE((readable ? kReadable : kUnreadable).count(status.error_code()))
      << method << ": " << status.error_code() << " " << status.error_message();
  if (readable && !status.ok()) {
    EXPECT_GT(status.error_message().size(), 10u) << method << ": " << status.error_code();
  }
  ++(readable ? read_ : unread_);
  ++statuses_[status.error_code()];
}

void MutatedCalls::ExpectMixed() const {
  const int count = read_ + unread_;
  const auto of = [&](grpc::StatusCode code) { return statuses_.count(code) > 0 ? statuses_.at(code) : 0; };
  EXPECT_GT(of(grpc::OK), count / 20);
  EXPECT_GT(of(grpc::INVALID_ARGUMENT), count / 100);
  EXPECT_GT(read_, count / 5);
  EXPECT_GT(unread_, count / 20);
}

}  // namespace quire
