// What a group says of itself: Control, health and reflection.
#include <atomic>

#include "rpc/health.h"
#include "rpc/tokenizer_files.h"
#include "tests/rpc/reflected.h"
#include "tests/rpc/service_fixture.h"

namespace quire {
namespace {

TEST_F(ServiceTest, ALoadingServiceSaysSoAndIsAliveButNotReady) {
  StartLoading();
  server_->SetLoading("weights", 0.4);
  Streams none;
  const grpc::Status status = Stream(Story(3), &none);
  EXPECT_EQ(status.error_code(), grpc::UNAVAILABLE);
  EXPECT_NE(status.error_message().find("weights 40%"), std::string::npos) << status.error_message();
  grpc::ClientContext context;
  v1::GetServerInfoResponse info;
  ASSERT_TRUE(control_->GetServerInfo(&context, {}, &info).ok());
  EXPECT_EQ(info.state(), v1::SERVER_STATE_LOADING);
  EXPECT_EQ(info.role(), "group");
  EXPECT_TRUE(*rpc::CheckHealth(channel_, "", 5));
  EXPECT_FALSE(*rpc::CheckHealth(channel_, "quire.v1.Generation", 5));
  server_->Serve(MakeEngine(Stories()));
  EXPECT_TRUE(Eventually([&] { return *rpc::CheckHealth(channel_, "quire.v1.Generation", 5); }));
  EXPECT_TRUE(*rpc::CheckHealth(channel_, "quire.v1.Worker", 5));
  EXPECT_EQ(rpc::CheckHealth(channel_, "quire.v1.Nothing", 5).status().code(), StatusCode::kNotFound);
  EXPECT_TRUE(Stream(Story(3), &none).ok());
}

TEST_F(ServiceTest, TheTokenizerThatIsSentIsTheModels) {
  Start(Stories());
  grpc::ClientContext context;
  auto reader = control_->GetTokenizer(&context, {});
  std::vector<rpc::TokenizerFile> files;
  v1::GetTokenizerResponse part;
  while (reader->Read(&part)) {
    if (files.empty() || files.back().name != part.name()) files.push_back({part.name(), ""});
    files.back().data += part.data();
  }
  ASSERT_TRUE(reader->Finish().ok());
  const auto sent = rpc::MakeTokenizer(files);
  ASSERT_TRUE(sent.ok()) << sent.status().ToString();
  const auto own = *LoadTokenizer(DataPath("stories260K"));
  EXPECT_EQ(*(*sent)->Encode("Once upon a time", {}), *own->Encode("Once upon a time", {}));
}

TEST_F(ServiceTest, TheModelSaysWhatItIs) {
  EngineOptions options = Stories();
  options.attention = {*AttentionSpec::Parse("dense"), *AttentionSpec::Parse("quest:token_budget=128")};
  ServeOptions serve;
  serve.served_model = "tales";
  Start(options, serve);
  grpc::ClientContext context;
  v1::GetModelInfoResponse info;
  ASSERT_TRUE(control_->GetModelInfo(&context, {}, &info).ok());
  EXPECT_EQ(info.model(), "tales");
  EXPECT_EQ(info.vocab(), 512);
  EXPECT_EQ(info.dtype(), "float32");
  EXPECT_EQ(info.max_model_len(), 512);
  EXPECT_TRUE(info.has_tokenizer());
  EXPECT_EQ(info.model_hash().size(), 32u);
  ASSERT_EQ(info.attention_size(), 2);
  EXPECT_EQ(info.attention(1), "quest:token_budget=128");
  Streams streams;
  v1::GenerateRequest request = Story(3);
  request.set_model("tales");
  EXPECT_TRUE(Stream(request, &streams).ok());
  request.set_model("other");
  EXPECT_EQ(Stream(request, &streams).error_code(), grpc::NOT_FOUND);
}

TEST_F(ServiceTest, ReflectionListsTheServices) {
  Start(Stories());
  ExpectReflected(channel_, {"quire.v1.Generation", "quire.v1.Control", "quire.v1.Worker", "grpc.health.v1.Health"});
}

// Holds the engine's step for as long as it is shut.
struct Gate : SelectionObserver {
  void OnSelect(const SelectParams&, const SelectionView&) override {
    while (shut) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  std::atomic<bool> shut = false;
};

TEST_F(ServiceTest, NotReadyWhileRequestsRunAndNoStepEnds) {
  Gate gate;
  ServeOptions serve;
  serve.stall_s = 0.3 * kSlowness;
  StartLoading(serve);
  EngineOptions options = Retriever();
  options.attention = {*AttentionSpec::Parse("quest:token_budget=64:dense_layers=0")};
  auto engine = MakeEngine(options);
  engine->set_selection_observer(&gate);
  server_->Serve(std::move(engine));
  ASSERT_TRUE(Eventually([&] { return *rpc::CheckHealth(channel_, "quire.v1.Generation", 5); }));
  grpc::ClientContext context;
  auto reader = generation_->GenerateStream(&context, Ids(BytePrompt(400), 100000));
  v1::GenerateChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  gate.shut = true;
  // Until the step that the gate holds is taken for one: a slow one before it may have been, too.
  const auto stalled = [&] {
    grpc::ClientContext info_context;
    v1::GetServerInfoResponse info;
    return control_->GetServerInfo(&info_context, {}, &info).ok() && info.state() == v1::SERVER_STATE_STALLED;
  };
  EXPECT_TRUE(Eventually([&] { return stalled() && !*rpc::CheckHealth(channel_, "quire.v1.Generation", 5); }));
  EXPECT_TRUE(*rpc::CheckHealth(channel_, "", 5));
  gate.shut = false;
  EXPECT_TRUE(Eventually([&] { return *rpc::CheckHealth(channel_, "quire.v1.Generation", 5); }));
  context.TryCancel();
  while (reader->Read(&chunk)) {
  }
  (void)reader->Finish();
  EXPECT_TRUE(Eventually([&] { return Empty(); }));
  server_.reset();  // before the gate
}

}  // namespace
}  // namespace quire
