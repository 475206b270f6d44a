#include "tests/rpc/reflected.h"

#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

namespace quire {

void ExpectReflected(const std::shared_ptr<grpc::Channel>& channel, const std::vector<std::string>& names) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(In(20));
  grpc::CompletionQueue queue;
  auto call = stub.PrepareCall(&context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  void* tag = nullptr;
  bool ok = false;
  call->StartCall(nullptr);
  ASSERT_TRUE(queue.Next(&tag, &ok) && ok);
  const grpc::Slice list(std::string("\x3a\x00", 2));  // list_services = 7: ""
  call->Write(grpc::ByteBuffer(&list, 1), nullptr);
  ASSERT_TRUE(queue.Next(&tag, &ok) && ok);
  grpc::ByteBuffer answer;
  call->Read(&answer, nullptr);
  ASSERT_TRUE(queue.Next(&tag, &ok) && ok);
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(answer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  for (const std::string& name : names) EXPECT_NE(bytes.find(name), std::string::npos) << name;
  call->WritesDone(nullptr);
  ASSERT_TRUE(queue.Next(&tag, &ok));
  grpc::Status status;
  call->Finish(&status, nullptr);
  ASSERT_TRUE(queue.Next(&tag, &ok));
  queue.Shutdown();
}

}  // namespace quire
