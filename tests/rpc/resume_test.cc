// Generation.Resume: a stream taken up again where it was, by the same service or, with the request brought along, by
// another; and what is refused.
#include "tests/rpc/service_fixture.h"

namespace quire {
namespace {

TEST_F(ServiceTest, AResumedStreamGoesOnWhereItWas) {
  Start(Retriever());
  v1::GenerateRequest request = Ids(BytePrompt(64), 400);
  Streams wanted;
  ASSERT_TRUE(Stream(request, &wanted).ok());
  request.set_request_id("again");
  request.set_resumable(true);
  Streams streams;
  {
    grpc::ClientContext context;
    auto reader = generation_->GenerateStream(&context, request);
    v1::GenerateChunk chunk;
    ASSERT_TRUE(reader->Read(&chunk));
    Collect(chunk, &streams);
    context.TryCancel();
    (void)reader->Finish();
  }
  const auto resume = [&](int from, Streams* into) {
    v1::ResumeRequest message;
    message.set_request_id("again");
    if (from >= 0) message.add_positions()->set_next_token_index(from);
    grpc::ClientContext context;
    context.set_deadline(In(30));
    auto reader = generation_->Resume(&context, message);
    v1::GenerateChunk chunk;
    while (reader->Read(&chunk)) Collect(chunk, into);
    return reader->Finish();
  };
  const int have = static_cast<int>((streams[{0, 0}].ids.size()));
  ASSERT_TRUE(resume(have, &streams).ok());
  EXPECT_EQ((streams[{0, 0}].ids), (wanted[{0, 0}].ids));
  EXPECT_EQ((streams[{0, 0}].text), (wanted[{0, 0}].text));
  EXPECT_EQ((streams[{0, 0}].last.finish_reason()), v1::FINISH_REASON_LENGTH);
  // It has ended, and can still be read: from the beginning, and from the end.
  Streams whole;
  ASSERT_TRUE(resume(-1, &whole).ok());
  EXPECT_EQ((whole[{0, 0}].text), (wanted[{0, 0}].text));
  v1::ResumeRequest message;
  message.set_request_id("again");
  message.add_positions()->set_next_token_index(400);
  grpc::ClientContext context;
  auto reader = generation_->Resume(&context, message);
  v1::GenerateChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  EXPECT_EQ(chunk.token_ids_size(), 0);
  EXPECT_EQ(chunk.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_FALSE(reader->Read(&chunk));
  EXPECT_TRUE(reader->Finish().ok());
  // Who has had the last chunk, and not the status, gets the status alone.
  message.mutable_positions(0)->set_finished(true);
  grpc::ClientContext after;
  auto status_alone = generation_->Resume(&after, message);
  EXPECT_FALSE(status_alone->Read(&chunk));
  EXPECT_TRUE(status_alone->Finish().ok());

  Streams none;
  EXPECT_EQ(resume(401, &none).error_code(), grpc::OUT_OF_RANGE);
  message.set_request_id("unknown");
  grpc::ClientContext other;
  auto missing = generation_->Resume(&other, message);
  EXPECT_FALSE(missing->Read(&chunk));
  EXPECT_EQ(missing->Finish().error_code(), grpc::NOT_FOUND);
}

TEST_F(ServiceTest, ANewReaderTakesOverAndTheOldCallEnds) {
  Start(Retriever());
  v1::GenerateRequest request = Ids(BytePrompt(64), 600);
  request.set_request_id("r");
  request.set_resumable(true);
  grpc::ClientContext first;
  auto reader = generation_->GenerateStream(&first, request);
  v1::GenerateChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  v1::ResumeRequest message;
  message.set_request_id("r");
  grpc::ClientContext second;
  auto resumed = generation_->Resume(&second, message);
  std::thread old([&] {
    v1::GenerateChunk rest;
    while (reader->Read(&rest)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::CANCELLED);
  });
  Streams streams;
  while (resumed->Read(&chunk)) Collect(chunk, &streams);
  EXPECT_TRUE(resumed->Finish().ok());
  EXPECT_EQ((streams[{0, 0}].ids.size()), 600u);
  old.join();
}

TEST_F(ServiceTest, AResumableRequestThatNobodyReadsEndsAfterItsTime) {
  ServeOptions serve;
  serve.keep_s = 0.2;
  Start(Retriever(), serve);
  v1::GenerateRequest request = Endless("left");
  request.set_resumable(true);
  grpc::ClientContext context;
  auto reader = generation_->GenerateStream(&context, request);
  v1::GenerateChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  context.TryCancel();
  (void)reader->Finish();
  EXPECT_FALSE(Empty());  // it goes on meanwhile
  EXPECT_TRUE(Eventually([&] { return Empty(); }));
  std::this_thread::sleep_for(std::chrono::milliseconds(400));  // an attempt to read it would keep it longer
  v1::ResumeRequest message;
  message.set_request_id("left");
  grpc::ClientContext resume;
  auto gone = generation_->Resume(&resume, message);
  EXPECT_FALSE(gone->Read(&chunk));
  EXPECT_EQ(gone->Finish().error_code(), grpc::NOT_FOUND);
}

}  // namespace
}  // namespace quire
